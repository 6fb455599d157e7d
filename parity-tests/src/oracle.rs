//! Runs the Python side: the case generators and the oracle.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use once_cell::sync::Lazy;

use crate::progress;

/// The workspace of a checkout; absent on a machine that only has the bundle.
static WORKSPACE: Lazy<Option<PathBuf>> = Lazy::new(|| {
    let here = std::env::current_dir().ok()?;
    let is_workspace = |dir: &&Path| dir.join("parity-tests/pytorch/oracle.py").is_file();
    here.ancestors().find(is_workspace).map(Path::to_path_buf)
});

/// Where Python and its scripts are.
#[derive(Debug, Clone, Args)]
pub struct PythonOptions {
    /// The Python interpreter with PyTorch [default: .venv/bin/python of the checkout, else python3]
    #[arg(long, env = "PARITY_PYTHON", value_name = "EXE")]
    python: Option<PathBuf>,
    /// The folder of oracle.py and generate.py [default: parity-tests/pytorch of the checkout, else beside the binary]
    #[arg(long, env = "PARITY_SCRIPTS", value_name = "DIR")]
    scripts: Option<PathBuf>,
}

/// The Python side.
#[derive(Debug)]
pub struct Python {
    exe: PathBuf,
    scripts: PathBuf,
}

/// One call of the oracle.
#[derive(Debug)]
pub struct OracleCall<'a> {
    /// The case file.
    pub cases: &'a Path,
    /// Its tensors.
    pub tensors: &'a Path,
    /// Where `results.json` and `results.safetensors` go.
    pub out: &'a Path,
    /// The device by PyTorch's name.
    pub device: &'a str,
    /// How many threads PyTorch uses.
    pub threads: i32,
    /// Whether everything is computed in double precision.
    pub upcast: bool,
    /// How many cases there are.
    pub total: usize,
}

impl Python {
    /// Finds Python and the scripts.
    pub fn find(options: &PythonOptions) -> Result<Python> {
        let in_workspace = |path: &str| WORKSPACE.as_ref().map(|root| root.join(path));
        let venv = in_workspace(".venv/bin/python").filter(|exe| exe.is_file());
        let exe = options.python.clone().or(venv).unwrap_or_else(|| "python3".into());
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("pytorch")));
        let scripts = options.scripts.clone().or_else(|| in_workspace("parity-tests/pytorch")).or(beside);
        let scripts = scripts.filter(|dir| dir.join("oracle.py").is_file());
        let scripts = scripts.context("no folder with oracle.py: name it with --scripts")?;
        Ok(Python { exe, scripts })
    }

    /// Writes `cases.json` and `tensors.safetensors` into `out`.
    pub fn generate(&self, out: &Path, seed: u64, filter: Option<&str>, extra: &[&str]) -> Result<()> {
        std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        let mut command = self.command("generate.py");
        command.arg("--out").arg(out).arg("--seed").arg(seed.to_string()).args(extra);
        if let Some(filter) = filter {
            command.arg("--filter").arg(filter);
        }
        self.run(command, "generating cases", None)
    }

    /// Computes the expected results.
    pub fn oracle(&self, call: &OracleCall) -> Result<()> {
        std::fs::create_dir_all(call.out).with_context(|| format!("cannot create {}", call.out.display()))?;
        let mut command = self.command("oracle.py");
        command.arg("--cases").arg(call.cases).arg("--tensors").arg(call.tensors);
        command.arg("--results").arg(call.out.join("results.json"));
        command.arg("--result-tensors").arg(call.out.join("results.safetensors"));
        command.args(["--device", call.device, "--threads", &call.threads.to_string(), "--progress"]);
        if call.upcast {
            command.arg("--upcast");
        }
        let what = if call.upcast { "PyTorch, in double precision" } else { "PyTorch" };
        self.run(command, what, Some(call.total))
    }

    /// Writes state dicts as PyTorch saves them, with a call of each module.
    pub fn save_modules(&self, out: &Path) -> Result<()> {
        let mut command = self.command("save_modules.py");
        command.arg(out);
        self.run(command, "saving modules", None)
    }

    /// A call of a script.
    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new(&self.exe);
        command.arg(self.scripts.join(script)).stdin(Stdio::null());
        command
    }

    /// Starts a call of a script.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        command.spawn().with_context(|| {
            format!("cannot run {}: run ./scripts/setup, or name a Python with --python", self.exe.display())
        })
    }

    /// Runs a command; its `progress DONE TOTAL` lines move a bar, its other lines are shown where it fails.
    fn run(&self, mut command: Command, what: &str, total: Option<usize>) -> Result<()> {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.spawn(command)?;
        let bar = progress::bar(what, total);
        let mut said = Vec::new();
        let stderr = child.stderr.take().context("the pipe is open")?;
        for line in BufReader::new(stderr).lines() {
            let line = line?;
            match line.strip_prefix("progress ").and_then(|rest| rest.split_whitespace().next()?.parse().ok()) {
                Some(done) => bar.set_position(done),
                None => said.push(line),
            }
        }
        let status = child.wait()?;
        bar.finish_and_clear();
        if !status.success() {
            let last = said.iter().rev().take(30).rev().map(|line| format!("\n  {line}")).collect::<String>();
            bail!("{} {what} failed ({status}):{last}", self.exe.display());
        }
        ensure!(!said.iter().any(|line| line.starts_with("Traceback")), "{}", said.join("\n"));
        Ok(())
    }
}
