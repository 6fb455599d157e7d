//! The processes that make the calls, each watched by a thread.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

use super::chance::{loss_of, losses};
use super::child::{BEGINS, Report, Sabotage, is_chosen};
use super::class::Class;
use super::report::Summary;
use crate::check::BackendName;
use crate::jobs::run_all;

/// How many calls a process makes: it takes a fifth of a second to start.
const CALLS_OF_A_PROCESS: u64 = 5000;

/// The longest start of a process.
const START: Duration = Duration::from_secs(120);

/// When to stop, and what to call.
#[derive(Debug)]
pub struct Plan {
    /// The seed of the first call.
    pub seed: u64,
    /// No more calls than this.
    pub calls: Option<u64>,
    /// No new calls after this.
    pub deadline: Option<Instant>,
    /// Only these losses; all where there is none.
    pub only: Vec<String>,
    /// How many processes there are at a time.
    pub jobs: usize,
    /// How long a call may take.
    pub patience: Duration,
    /// The most memory of a process, in MiB.
    pub memory: u64,
    /// The engines.
    pub engines: BackendName,
    /// Break the engines.
    pub sabotage: Option<Sabotage>,
}

/// The part of the seeds that one process takes.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    first: u64,
    seeds: u64,
}

/// Hands out the seeds.
#[derive(Debug)]
struct Seeds {
    losses: Vec<&'static str>,
    next: u64,
    left: Option<u64>,
}

impl Seeds {
    /// The next seeds; none where all calls are made.
    fn next(&mut self, plan: &Plan) -> Option<Chunk> {
        if self.left == Some(0) || plan.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return None;
        }
        let wanted =
            self.left.map_or(CALLS_OF_A_PROCESS, |left| left.div_ceil(plan.jobs as u64).clamp(1, CALLS_OF_A_PROCESS));
        let first = self.next;
        let mut found = 0;
        while found < wanted {
            found += u64::from(is_chosen(loss_of(self.next, &self.losses), &plan.only));
            self.next = self.next.wrapping_add(1);
        }
        self.left = self.left.map(|left| left.saturating_sub(found));
        Some(Chunk { first, seeds: self.next.wrapping_sub(first) })
    }
}

/// Makes the calls.
pub fn run(plan: &Plan, bar: &ProgressBar) -> Result<Summary> {
    let seeds = Mutex::new(Seeds { losses: losses(), next: plan.seed, left: plan.calls });
    let summary = Mutex::new(Summary::default());
    run_all(0..plan.jobs, |_| {
        loop {
            let chunk = seeds.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?.next(plan);
            let Some(chunk) = chunk else { return Ok(()) };
            watch(plan, chunk, &summary, bar)?;
        }
    })?;
    summary.into_inner().context("a thread panicked")
}

/// Makes the calls of a chunk; where a process ends before them, another one goes on behind the call that ended it.
fn watch(plan: &Plan, mut chunk: Chunk, summary: &Mutex<Summary>, bar: &ProgressBar) -> Result<()> {
    loop {
        let last = chunk.first.wrapping_add(chunk.seeds);
        let Some((seed, class, detail)) = run_child(plan, chunk, summary, bar)? else { return Ok(()) };
        let loss = loss_of(seed, &losses());
        with(summary, |summary| summary.end(loss, seed, class, &detail))?;
        bar.inc(1);
        chunk = Chunk { first: seed.wrapping_add(1), seeds: last.wrapping_sub(seed).wrapping_sub(1) };
        if chunk.seeds == 0 || plan.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(());
        }
    }
}

fn with<T>(summary: &Mutex<Summary>, work: impl FnOnce(&mut Summary) -> T) -> Result<T> {
    Ok(work(&mut *summary.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?))
}

/// The call that ended the process, where one did.
type Ended = Option<(u64, Class, String)>;

fn run_child(plan: &Plan, chunk: Chunk, summary: &Mutex<Summary>, bar: &ProgressBar) -> Result<Ended> {
    let mut child = start(plan, chunk)?;
    let lines = read(child.stdout.take().context("a process without output")?);
    let mut begun: Option<u64> = None;
    let class = loop {
        if plan.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        // The start of a process takes its time where the machine is busy.
        let patience = if begun.is_some() { plan.patience } else { plan.patience.max(START) };
        match lines.recv_timeout(patience) {
            Ok(line) => match (line.strip_prefix(BEGINS), begun) {
                (Some(seed), _) => begun = Some(seed.parse()?),
                (None, Some(seed)) => {
                    begun = None;
                    let report: Report = serde_json::from_str(&line)?;
                    with(summary, |summary| summary.call(seed, &report))?;
                    bar.inc(1);
                }
                (None, None) => bail!("a process says {line:?} at the wrong time"),
            },
            Err(RecvTimeoutError::Timeout) => {
                child.kill()?;
                break Class::Hang;
            }
            Err(RecvTimeoutError::Disconnected) => break Class::Crash,
        }
    };
    let status = child.wait()?;
    match (class, begun) {
        (Class::Crash, None) if status.success() => Ok(None),
        (Class::Hang, Some(seed)) => Ok(Some((seed, class, format!("no end after {:?}", plan.patience)))),
        (_, Some(seed)) => {
            let how = match status.signal() {
                Some(signal) => format!("signal {signal}"),
                None => format!("{status}"),
            };
            Ok(Some((seed, class, how)))
        }
        (_, None) => bail!("a process ended outside of a call: {status}"),
    }
}

/// Starts a process with a limit of its memory, which only the shell can set without unsafe code.
fn start(plan: &Plan, chunk: Chunk) -> Result<Child> {
    let exe = std::env::current_exe()?;
    let mut command = Command::new("sh");
    command.arg("-c").arg(r#"ulimit -v "$1" && ulimit -c 0 && shift && exec "$@""#).arg("sh");
    command.arg((plan.memory * 1024).to_string()).arg(exe).arg("fuzz-calls");
    command.arg("--first").arg(chunk.first.to_string()).arg("--seeds").arg(chunk.seeds.to_string());
    if !plan.only.is_empty() {
        command.arg("--only").arg(plan.only.join(","));
    }
    command.arg("--engines").arg(plan.engines.name());
    if let Some(sabotage) = plan.sabotage {
        command.arg("--sabotage").arg(format!("{sabotage:?}").to_lowercase());
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().context("cannot start a process")
}

/// The lines of a process, read by a thread of their own, so that they can be waited for with an end.
fn read(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
