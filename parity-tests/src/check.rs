//! The whole check in one command: generate, oracle, evaluate, compare.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tch::Device;

use crate::case::{Case, Tensors, read_cases, read_tensors};
use crate::compare::{Sides, Verdict, compare_case};
use crate::eval::{evaluate, run_adapter};
use crate::oracle::{OracleCall, Python, PythonOptions};
use crate::progress;
use crate::results::{Results, Status};
use crate::table::{COLUMNS, Summary};

/// What to check, and where.
#[derive(Debug, Args)]
pub struct CheckOptions {
    /// Seed of the generated cases
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Only cases whose id contains this, for example torch.nn.MSELoss or /reject/
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Device of both sides: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    pub device: DeviceName,
    /// libtorch threads of both sides; sums are split by threads, so bitwise equality needs the same number
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    pub threads: i32,
    /// Write a report in Markdown
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Folder for the cases and both results, kept for a look
    #[arg(long, value_name = "DIR", default_value = "target/parity")]
    pub work: PathBuf,
    #[command(flatten)]
    pub python: PythonOptions,
}

/// A device with its PyTorch name.
#[derive(Debug, Clone, Copy)]
pub struct DeviceName(pub Device);

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Device::Cuda(index) => write!(f, "cuda:{index}"),
            _ => write!(f, "cpu"),
        }
    }
}

/// Parses `cpu`, `cuda` or `cuda:N`.
pub fn parse_device(text: &str) -> Result<DeviceName, String> {
    let index = text.strip_prefix("cuda:").unwrap_or("0");
    match (text, index.parse()) {
        ("cpu", _) => Ok(DeviceName(Device::Cpu)),
        (text, Ok(index)) if text.starts_with("cuda") && (text == "cuda" || text.contains(':')) => {
            Ok(DeviceName(Device::Cuda(index)))
        }
        _ => Err(format!("{text:?} is neither cpu, cuda nor cuda:N")),
    }
}

impl DeviceName {
    /// Whether this machine has the device.
    pub fn is_available(self) -> bool {
        match self.0 {
            Device::Cuda(index) => tch::Cuda::is_available() && (index as i64) < tch::Cuda::device_count(),
            _ => true,
        }
    }
}

/// Runs the check, prints the tables and says whether everything is equal.
pub fn check(options: &CheckOptions) -> Result<bool> {
    let python = Python::find(&options.python)?;
    python.generate(&options.work, options.seed, options.filter.as_deref(), &[])?;
    let cases_file = options.work.join("cases.json");
    let tensors_file = options.work.join("tensors.safetensors");
    let cases = read_cases(&cases_file)?;
    ensure!(!cases.is_empty(), "no case matches the filter {:?}", options.filter.as_deref().unwrap_or_default());

    let device = options.device.to_string();
    let expected_dir = options.work.join("expected");
    let call = OracleCall {
        cases: &cases_file,
        tensors: &tensors_file,
        out: &expected_dir,
        device: &device,
        threads: options.threads,
        upcast: false,
        total: cases.len(),
    };
    python.oracle(&call)?;
    let expected = Results::read_dir(&expected_dir)?;
    let tensors = read_tensors(&tensors_file)?;
    let actual = evaluate_with_bar(&cases, &tensors, options)?;

    let bitwise = options.device.0 == Device::Cpu;
    let mut sides = Sides { expected: &expected, actual: &actual, truth: None, bitwise };
    let mut verdicts: Vec<Verdict> = cases.iter().map(|case| compare_case(case, sides)).collect();
    let truth = truth_of_unequal(&python, &call, &cases, &verdicts, &options.work)?;
    if let Some(truth) = &truth {
        sides.truth = Some(truth);
        for (case, verdict) in cases.iter().zip(&mut verdicts) {
            if unequal(verdict) {
                *verdict = compare_case(case, sides);
            }
        }
    }

    let summary = Summary::new(&cases, &verdicts);
    print!("{}", text(&summary, options));
    if let Some(path) = &options.report {
        std::fs::write(path, report(&summary, &expected, options))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("report: {}", path.display());
    }
    // A row can only be called stale where every reference could run.
    let complete = expected.cases.values().all(|result| result.status != Status::Unsupported);
    let is_whole = complete && options.filter.is_none() && options.device.0 == Device::Cpu;
    let stale: Vec<&str> = summary.unseen_differences().filter(|_| is_whole).collect();
    if !stale.is_empty() {
        println!("deliberate differences that no case shows any more: {}", stale.join(", "));
    }
    println!("{}", summary.closing_line());
    Ok(summary.failures().is_empty() && stale.is_empty())
}

fn evaluate_with_bar(cases: &[Case], tensors: &Tensors, options: &CheckOptions) -> Result<Results> {
    tch::set_num_threads(options.threads);
    let bar = progress::bar("tch-losses", Some(cases.len()));
    let results = evaluate(cases, tensors, options.device.0, &run_adapter, || bar.inc(1))?;
    bar.finish_and_clear();
    let actual = options.work.join("actual");
    std::fs::create_dir_all(&actual)?;
    results.write(&actual.join("results.json"), &actual.join("results.safetensors"))?;
    Ok(results)
}

/// Whether the result in double precision may say more.
fn unequal(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Failed(_) | Verdict::Different(_))
}

/// The unequal cases computed by the oracle in double precision, which shows whose result is the closer one.
fn truth_of_unequal(
    python: &Python,
    call: &OracleCall,
    cases: &[Case],
    verdicts: &[Verdict],
    work: &Path,
) -> Result<Option<Results>> {
    let failed = cases.iter().zip(verdicts).filter(|(_, verdict)| unequal(verdict));
    let failed: std::collections::HashSet<&str> = failed.map(|(case, _)| case.id.as_str()).collect();
    if failed.is_empty() {
        return Ok(None);
    }
    let mut file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(call.cases)?)?;
    let list = file["cases"].as_array_mut().context("a case file has a list of cases")?;
    list.retain(|case| case["id"].as_str().is_some_and(|id| failed.contains(id)));
    let (total, out) = (list.len(), work.join("truth"));
    std::fs::create_dir_all(&out)?;
    let cases = out.join("cases.json");
    std::fs::write(&cases, file.to_string())?;
    python.oracle(&OracleCall { cases: &cases, out: &out, upcast: true, total, ..*call })?;
    Results::read_dir(&out).map(Some)
}

fn text(summary: &Summary, options: &CheckOptions) -> String {
    let mut text = format!("{}\n", summary.losses());
    if let Some(table) = summary.differences() {
        text += &format!("\nDeliberate differences:\n\n{table}\n");
    }
    if let Some(table) = summary.not_checked() {
        text += &format!("\nNot checked, because the reference cannot run them here:\n\n{table}\n");
    }
    text += &failures(summary, options);
    text + "\n"
}

fn failures(summary: &Summary, options: &CheckOptions) -> String {
    let mut text = String::new();
    for (id, reason) in summary.failures() {
        let rerun = format!("parity check --seed {} --device {} --filter '{id}'", options.seed, options.device);
        let _ = write!(text, "\nFAILED {id}\n  {reason}\n  rerun: {rerun}\n");
    }
    text
}

fn report(summary: &Summary, expected: &Results, options: &CheckOptions) -> String {
    let mut text = String::from("# Parity report\n\n");
    let _ = writeln!(text, "{}\n", summary.closing_line());
    let _ = writeln!(text, "* device: {}; threads: {}; seed: {}", options.device, options.threads, options.seed);
    if let Some(filter) = &options.filter {
        let _ = writeln!(text, "* only cases whose id contains `{filter}`");
    }
    let _ = writeln!(text, "* processor: {}", processor());
    let _ = writeln!(text, "* tch-losses: {}", env!("CARGO_PKG_VERSION"));
    for (name, version) in &expected.versions {
        let _ = writeln!(text, "* {name}: {version}");
    }
    let _ = writeln!(text, "\n{}\n", summary.losses());
    for (column, meaning) in COLUMNS.iter().filter(|(_, meaning)| !meaning.is_empty()) {
        let _ = writeln!(text, "* {column}: {meaning}");
    }
    let sections = [("Deliberate differences", summary.differences()), ("Not checked", summary.not_checked())];
    for (title, table) in sections.into_iter().filter_map(|(title, table)| Some((title, table?))) {
        let _ = writeln!(text, "\n## {title}\n\n{table}");
    }
    if !summary.failures().is_empty() {
        let _ = writeln!(text, "\n## Failures\n\n```text{}```", failures(summary, options));
    }
    text
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", name.unwrap_or("unknown").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_pytorchs_names() {
        for (text, name) in [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:3", "cuda:3")] {
            assert_eq!(parse_device(text).unwrap().to_string(), name);
        }
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda3", "cpu:0"] {
            assert!(parse_device(wrong).is_err(), "{wrong}");
        }
    }
}
