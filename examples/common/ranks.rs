//! Starts the ranks of a job on this machine, with the variables that torchrun sets.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Starts this program once for each rank. The first one's output is piped where `read` says so.
pub fn start(processes: usize, arguments: &[String], read: bool) -> Result<Vec<Child>> {
    ensure!(processes > 0, "--processes is 0, expected at least 1");
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let start = |rank: usize| {
        Command::new(std::env::current_exe()?)
            .args(arguments)
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", processes.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            // malloc keeps blocks below a threshold that grows; with one of its own memory can be measured.
            .env("MALLOC_MMAP_THRESHOLD_", "1048576")
            .stdout(if read && rank == 0 { Stdio::piped() } else { Stdio::inherit() })
            .spawn()
            .context("cannot start a rank")
    };
    (0..processes).map(start).collect()
}

/// Waits for all of them.
pub fn wait(ranks: Vec<Child>) -> Result<()> {
    for (rank, mut process) in ranks.into_iter().enumerate() {
        let status = process.wait()?;
        ensure!(status.success(), "rank {rank} failed: {status}");
    }
    Ok(())
}
