//! How much memory a process takes, as Linux counts it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::ours::Ours;
use super::workloads::Workload;

/// With these a process maps every tensor by itself and gives it back when it is dropped, so that resident memory is
/// the memory of tensors. They make allocation slow, so that memory is measured in processes of its own.
pub const MALLOC: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_TRIM_THRESHOLD_", "65536")];

/// Bytes of memory that one training step takes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Memory {
    /// What the result of forward holds on to.
    pub kept: u64,
    /// The most that forward and backward take at a time, the gradients included.
    pub peak: u64,
}

/// Bytes of a field of a file under /proc/self.
fn proc_bytes(file: &str, field: &str) -> Result<u64> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.with_context(|| format!("{file} has no {field}"))? * 1024)
}

/// Measures a training step in this process.
pub fn measure_here(ours: &Ours) -> Result<Memory> {
    // What is kept for the next gradient is not kept by a loss.
    tch_losses::set_gradient_cache(0);
    ours.step()?;
    let before = proc_bytes("/proc/self/smaps_rollup", "Rss")?;
    std::fs::write("/proc/self/clear_refs", "5").context("cannot reset the peak in /proc/self/clear_refs")?;
    let loss = ours.loss()?;
    let kept = proc_bytes("/proc/self/smaps_rollup", "Rss")?;
    let gradients = ours.gradients(&loss)?;
    let peak = proc_bytes("/proc/self/status", "VmHWM")?;
    drop(gradients);
    Ok(Memory { kept: kept.saturating_sub(before), peak: peak.saturating_sub(before) })
}

/// Measures the crate's training step of a workload in a process of its own.
pub fn measure_in_child(workload: &Workload, threads: i32) -> Result<Memory> {
    let program = std::env::current_exe().context("this program has no path")?;
    let mut command = Command::new(program);
    command.args(["bench", "--memory-of", &workload.id(), "--threads", &threads.to_string()]).envs(MALLOC);
    command.args(["--dtype", workload.dtype.name()]);
    let output = command.stdin(Stdio::null()).output().context("cannot run this program again")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "measuring memory: {}", said.trim());
    serde_json::from_slice(&output.stdout).context("measuring memory: no answer")
}

/// Whether this system tells a process its peak.
pub fn is_available() -> bool {
    Path::new("/proc/self/smaps_rollup").exists() && Path::new("/proc/self/clear_refs").exists()
}
