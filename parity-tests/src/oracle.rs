//! Runs the Python side: the case generators and the oracle.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use indicatif::ProgressBar;
use once_cell::sync::Lazy;

use crate::jobs::run_all;
use crate::progress;
use crate::results::Results;

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

impl PythonOptions {
    /// The same for another process.
    pub fn pass_on(&self, command: &mut Command) {
        for (name, path) in [("--python", &self.python), ("--scripts", &self.scripts)] {
            if let Some(path) = path {
                command.arg(name).arg(path);
            }
        }
    }
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
    /// How many threads PyTorch uses in each job.
    pub threads: i32,
    /// How many processes share the cases.
    pub jobs: usize,
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
        self.run_with_spinner(command, "generating cases")
    }

    /// Computes the expected results.
    pub fn oracle(&self, call: &OracleCall) -> Result<Results> {
        let what = if call.upcast { "PyTorch, in double precision" } else { "PyTorch" };
        let bar = progress::bar(what, Some(call.total));
        let outs: Vec<PathBuf> = (0..call.jobs).map(|job| call.out.join(format!("part-{job}"))).collect();
        let parts = run_all(outs.iter().enumerate(), |(job, out)| {
            self.oracle_job(call, job, out, &bar)?;
            Results::read_dir(out)
        })?;
        bar.finish_and_clear();
        let results = Results::merge(parts);
        outs.iter().try_for_each(std::fs::remove_dir_all)?;
        results.write(&call.out.join("results.json"), &call.out.join("results.safetensors"))?;
        Ok(results)
    }

    /// Computes those cases of a call whose id is `wanted` in double precision.
    pub fn in_double_precision(&self, call: &OracleCall, wanted: impl Fn(&str) -> bool, out: &Path) -> Result<Results> {
        let mut file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(call.cases)?)?;
        let list = file["cases"].as_array_mut().context("a case file has a list of cases")?;
        list.retain(|case| case["id"].as_str().is_some_and(&wanted));
        let total = list.len();
        std::fs::create_dir_all(out)?;
        let cases = out.join("cases.json");
        std::fs::write(&cases, file.to_string())?;
        let call = OracleCall { cases: &cases, out, upcast: true, total, jobs: call.jobs.min(total), ..*call };
        self.oracle(&call)
    }

    fn oracle_job(&self, call: &OracleCall, job: usize, out: &Path, bar: &ProgressBar) -> Result<()> {
        std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        let mut command = self.command("oracle.py");
        command.arg("--cases").arg(call.cases).arg("--tensors").arg(call.tensors);
        command.arg("--results").arg(out.join("results.json"));
        command.arg("--result-tensors").arg(out.join("results.safetensors"));
        command.args(["--device", call.device, "--threads", &call.threads.to_string(), "--progress"]);
        command.args(["--part", &job.to_string(), &call.jobs.to_string()]);
        if call.upcast {
            command.arg("--upcast");
        }
        self.run(command, "oracle", bar)
    }

    /// Writes state dicts as PyTorch saves them, with a call of each module.
    pub fn save_modules(&self, out: &Path) -> Result<()> {
        let mut command = self.command("save_modules.py");
        command.arg(out);
        self.run_with_spinner(command, "saving modules")
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

    fn run_with_spinner(&self, command: Command, what: &str) -> Result<()> {
        let bar = progress::bar(what, None);
        self.run(command, what, &bar)?;
        bar.finish_and_clear();
        Ok(())
    }

    /// Runs a command; its `progress DONE TOTAL` lines move a bar, its other lines are shown where it fails.
    fn run(&self, mut command: Command, what: &str, bar: &ProgressBar) -> Result<()> {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.spawn(command)?;
        let (mut said, mut shown) = (Vec::new(), 0_u64);
        let stderr = child.stderr.take().context("the pipe is open")?;
        for line in BufReader::new(stderr).lines() {
            let line = line?;
            match line.strip_prefix("progress ").and_then(|rest| rest.split_whitespace().next()?.parse().ok()) {
                Some(done) => bar.inc(done - std::mem::replace(&mut shown, done)),
                None => said.push(line),
            }
        }
        let status = child.wait()?;
        if !status.success() {
            let last = said.iter().rev().take(30).rev().map(|line| format!("\n  {line}")).collect::<String>();
            bail!("{} {what} failed ({status}):{last}", self.exe.display());
        }
        ensure!(!said.iter().any(|line| line.starts_with("Traceback")), "{}", said.join("\n"));
        Ok(())
    }
}
