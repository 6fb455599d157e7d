//! The Python side: a child process that answers commands, one JSON object a line.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::measure::{Pass, Side};
use super::memory::Memory;
use crate::case::read_tensors;
use crate::check::DeviceName;
use crate::oracle::Python;
use crate::results::{CaseResult, Results};

/// What runs on the Python side.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// The version of PyTorch.
    pub torch: String,
    /// The version of Python.
    pub python: String,
    /// How many threads PyTorch uses.
    pub threads: i32,
    /// The name of the GPU.
    pub gpu: Option<String>,
    /// The C++ compiler of `torch.compile`.
    pub compiler: Option<String>,
    /// Why there is none.
    pub problem: Option<String>,
}

/// The child process.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    pipes: RefCell<Pipes>,
}

#[derive(Debug)]
struct Pipes {
    commands: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    /// What the child writes besides; shown when it dies.
    said: std::fs::File,
}

/// How `torch.compile` went.
#[derive(Debug, Deserialize)]
pub struct Compiled {
    /// How many graphs were compiled.
    pub graphs: u64,
}

impl Peer {
    /// Starts the child with so many threads, on this device, with this environment; `cache` keeps what `torch.compile`
    /// compiles.
    pub fn start(
        python: &Python,
        threads: i32,
        device: DeviceName,
        cache: &Path,
        environment: &[(&str, &str)],
    ) -> Result<Peer> {
        let said = tempfile::tempfile().context("cannot create a temporary file")?;
        let threads = threads.to_string();
        let mut command = python.command("bench.py");
        command.args(["--threads", &threads, "--device", &device.to_string()]);
        command.env("OMP_NUM_THREADS", &threads).env("TORCHINDUCTOR_CACHE_DIR", cache);
        // Compilers in processes of their own would go on beside what is timed.
        command.env("TORCHINDUCTOR_COMPILE_THREADS", "1");
        command.envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(said.try_clone()?);
        let mut child = python.spawn(command)?;
        let pipes = Pipes {
            commands: child.stdin.take(),
            replies: BufReader::new(child.stdout.take().context("the pipe is open")?),
            said,
        };
        Ok(Peer { child, pipes: pipes.into() })
    }

    /// The id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What runs there.
    pub fn hello(&self) -> Result<Hello> {
        self.ask(json!({"do": "hello"}))
    }

    /// Makes the case the workload of all that follows.
    pub fn load(&self, case: &Json, tensors: &Path) -> Result<()> {
        self.ask::<Json>(json!({"do": "load", "case": case, "tensors": tensors})).map(drop)
    }

    /// The oracle's results of the workload, in double precision with `upcast`.
    pub fn values(&self, id: &str, upcast: bool, out: &Path) -> Result<Results> {
        let result: CaseResult = self.ask(json!({"do": "values", "upcast": upcast, "out": out}))?;
        let mut results = Results { tensors: read_tensors(out)?, ..Results::default() };
        results.cases.insert(id.to_owned(), result);
        Ok(results)
    }

    /// Compiles the workload for a pass.
    pub fn compile(&self, pass: Pass) -> Result<Compiled> {
        self.ask(json!({"do": "compile", "which": pass.command()}))
    }

    /// The memory of a training step.
    pub fn memory(&self, name: &str) -> Result<Memory> {
        self.ask(json!({"do": "memory", "peer": name}))
    }

    /// The operations of a call and of its backward pass for which a GPU runs a kernel, a line each, as the `library` counts
    /// them.
    pub fn kernels(&self, library: &Path) -> Result<[String; 2]> {
        self.ask(json!({"do": "kernels", "library": library}))
    }

    fn ask<T: for<'a> Deserialize<'a>>(&self, command: Json) -> Result<T> {
        let mut pipes = self.pipes.borrow_mut();
        let line = pipes.exchange(&command).with_context(|| format!("the Python side ended:{}", pipes.last_words()))?;
        let mut reply: Json = serde_json::from_str(&line).with_context(|| format!("the Python side says {line}"))?;
        if let Some(error) = reply.get("error").and_then(Json::as_str) {
            bail!("{error}");
        }
        Ok(serde_json::from_value(reply["ok"].take())?)
    }
}

impl Pipes {
    fn exchange(&mut self, command: &Json) -> Result<String> {
        let commands = self.commands.as_mut().context("the pipe is closed")?;
        writeln!(commands, "{command}")?;
        commands.flush()?;
        let mut line = String::new();
        match self.replies.read_line(&mut line)? {
            0 => Err(anyhow!("no answer")),
            _ => Ok(line),
        }
    }

    fn last_words(&mut self) -> String {
        let mut text = String::new();
        let _ = self.said.seek(SeekFrom::Start(0));
        let _ = self.said.read_to_string(&mut text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].iter().map(|line| format!("\n  {line}")).collect()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The end of its input ends the child.
        self.pipes.borrow_mut().commands = None;
        let _ = self.child.wait();
    }
}

/// One way in which the child computes the workload.
#[derive(Debug)]
pub struct PeerSide<'a> {
    /// The child.
    pub peer: &'a Peer,
    /// `eager` or `compile`.
    pub name: &'static str,
}

impl Side for PeerSide<'_> {
    fn time(&self, pass: Pass, warm: u64, count: u64) -> Result<f64> {
        #[derive(Deserialize)]
        struct Timed {
            seconds: f64,
        }
        let command = json!({"do": "time", "peer": self.name, "which": pass.command(), "warm": warm, "count": count});
        Ok(self.peer.ask::<Timed>(command)?.seconds)
    }
}
