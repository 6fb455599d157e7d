//! Starts the ranks of a job, and is the group of a rank.

use std::io::Read;
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tch_losses::distributed::Group;

/// The longest that a job may take, on a machine that is busy; under valgrind it takes longer.
fn longest() -> Duration {
    let seconds = std::env::var("TCH_LOSSES_TEST_SECONDS").map_or(120, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Some of the ranks.
type Which = fn(usize) -> bool;

/// Ranks that run one case.
pub struct Job {
    case: String,
    world: usize,
    started: usize,
    port: u16,
    /// The interpreter of the ranks that are of Python.
    python: Option<(PathBuf, Which)>,
}

/// What became of them.
pub struct Outcome(Vec<(bool, String)>);

impl Job {
    pub fn new(case: &str, world: usize) -> Self {
        Self { case: case.into(), world, started: world, port: free_port(), python: None }
    }

    /// Starts the first ranks only.
    pub fn start_only(self, started: usize) -> Self {
        Self { started, ..self }
    }

    /// Where they meet.
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Has those ranks run by Python.
    pub fn of_python(self, python: &Path, ranks: Which) -> Self {
        Self { python: Some((python.to_owned(), ranks)), ..self }
    }

    /// Waits for all ranks.
    pub fn run(self) -> Outcome {
        let ranks: Vec<_> = (0..self.started).map(|rank| self.start(rank)).collect();
        let end = Instant::now() + longest();
        Outcome(ranks.into_iter().map(|rank| finish(rank, end)).collect())
    }

    fn start(&self, rank: usize) -> (Child, [JoinHandle<String>; 2]) {
        let mut child = self
            .program(rank)
            .env("TCH_LOSSES_TEST_CASE", &self.case)
            .env("OMP_NUM_THREADS", "1")
            // So that what is freed goes back to the system at once, and memory can be measured.
            .env("MALLOC_MMAP_THRESHOLD_", "65536")
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", self.world.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", self.port.to_string())
            .env_remove("TORCHELASTIC_USE_AGENT_STORE")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let texts = [read(child.stdout.take().unwrap()), read(child.stderr.take().unwrap())];
        (child, texts)
    }
}

impl Job {
    fn program(&self, rank: usize) -> Command {
        match &self.python {
            Some((python, ranks)) if ranks(rank) => {
                let mut command = Command::new(python);
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/distributed/rank.py")).arg(&self.case);
                command
            }
            _ => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["--ignored", "--exact", "rank", "--nocapture"]);
                command
            }
        }
    }
}

impl Outcome {
    /// What the rank printed.
    pub fn text(&self, rank: usize) -> &str {
        &self.0[rank].1
    }

    pub fn succeeded(&self, rank: usize) -> bool {
        self.0[rank].0
    }

    #[track_caller]
    pub fn succeed(&self, ranks: Range<usize>) {
        for rank in ranks {
            let (succeeded, text) = &self.0[rank];
            assert!(*succeeded, "rank {rank} failed:\n{text}");
        }
    }

    #[track_caller]
    pub fn all_succeed(&self) {
        self.succeed(0..self.0.len());
    }
}

fn read(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn finish((mut child, texts): (Child, [JoinHandle<String>; 2]), end: Instant) -> (bool, String) {
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > end => {
                child.kill().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let _ = child.wait();
    let text = texts.map(|text| text.join().unwrap()).concat();
    match status {
        Some(status) => (status.success(), format!("{text}{status}")),
        None => (false, format!("{text}it did not end within {:?}", longest())),
    }
}

/// A port that nothing listens at, another one for each job. It is below those that a system gives to connections, from 32768
/// on with Linux: one of another job would take it before the rank listens.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16;
    loop {
        let port = 10_000 + first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

/// The group of this rank.
pub fn group(seconds: u64) -> Group {
    Group::from_env_within(Duration::from_secs(seconds)).unwrap()
}
