//! The whole check in one command: generate, oracle, evaluate, compare.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use tch::Device;
use tch_losses::{Backend, like_cuda, with_backend};

use crate::case::{Case, Tensors, read_cases, read_tensors};
use crate::compare::{Sides, Verdict, compare_case};
use crate::eval::{evaluate, run_adapter};
use crate::jobs::run_all;
use crate::oracle::{OracleCall, Python, PythonOptions};
use crate::progress;
use crate::results::{Results, Status};
use crate::table::{COLUMNS, Summary, closing_line};

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
    /// How many processes of PyTorch, and threads of the crate, share the cases [default: what the cores allow, up to
    /// 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Write a report in Markdown
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write a page to look at in a browser, with all rows to sort and to filter
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Folder for the cases and both results, kept for a look
    #[arg(long, value_name = "DIR", default_value = "target/parity")]
    pub work: PathBuf,
    /// What computes the losses of the crate; both by default on the CPU
    #[arg(long, value_enum)]
    pub backend: Option<BackendName>,
    #[command(flatten)]
    pub python: PythonOptions,
}

/// A backend of the crate, by the name that it has in TCH_LOSSES_BACKEND.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum BackendName {
    /// Fused engines where one takes the call
    #[default]
    Auto,
    /// Tensor operations, always
    Composite,
    /// Tensor operations on the CPU as they are on CUDA, where nobody looks at values
    LikeCuda,
    /// The engines of CUDA, whose kernels run on the CPU: slowly, and compiled by a C++ compiler
    #[cfg(feature = "emulation")]
    Emulated,
}

impl BackendName {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            BackendName::Auto => "auto",
            BackendName::Composite => "composite",
            BackendName::LikeCuda => "like-cuda",
            #[cfg(feature = "emulation")]
            BackendName::Emulated => "emulated",
        }
    }

    /// What computes.
    pub fn describe(self) -> &'static str {
        match self {
            BackendName::Auto => "engines",
            BackendName::Composite => "tensor operations",
            BackendName::LikeCuda => "tensor operations of CUDA, on the CPU",
            #[cfg(feature = "emulation")]
            BackendName::Emulated => "engines of CUDA, emulated",
        }
    }

    /// Whether the CPU takes the place of a GPU, so that no result is promised to be equal bit by bit.
    pub fn is_of_cuda(self) -> bool {
        !matches!(self, BackendName::Auto | BackendName::Composite)
    }

    /// Calls `work`, in which this computes the losses of this thread.
    pub fn within<T>(self, work: impl FnOnce() -> T) -> T {
        match self {
            BackendName::Auto | BackendName::Composite => with_backend(self.into(), work),
            BackendName::LikeCuda => like_cuda(work),
            #[cfg(feature = "emulation")]
            BackendName::Emulated => tch_losses::emulated_cuda(work),
        }
    }
}

impl From<BackendName> for Backend {
    fn from(name: BackendName) -> Self {
        match name {
            BackendName::Composite | BackendName::LikeCuda => Backend::Composite,
            _ => Backend::Auto,
        }
    }
}

impl CheckOptions {
    fn backends(&self) -> Vec<BackendName> {
        match (self.backend, self.device.0) {
            (Some(backend), _) => vec![backend],
            (None, Device::Cpu) => vec![BackendName::Auto, BackendName::Composite],
            // The engines are those of the CPU.
            (None, _) => vec![BackendName::Auto],
        }
    }

    fn jobs(&self) -> usize {
        // Each process holds PyTorch and the other libraries, so that many cores do not mean as many processes.
        const MOST: usize = 16;
        let fitting = || std::thread::available_parallelism().map_or(1, usize::from) / self.threads as usize;
        self.jobs.map_or_else(|| fitting().clamp(1, MOST), usize::from)
    }
}

/// The crate's results from one backend.
pub(crate) struct Side {
    backend: BackendName,
    actual: Results,
    pub(crate) verdicts: Vec<Verdict>,
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
    let cases = read_cases(&cases_file)?;
    ensure!(!cases.is_empty(), "no case matches the filter {:?}", options.filter.as_deref().unwrap_or_default());

    let Held { expected, sides: checked } = hold(&python, &cases, options)?;
    let summaries: Vec<Checked> =
        checked.iter().map(|side| (side.backend, Summary::new(&cases, &side.verdicts))).collect();
    print!("{}", text(&summaries, options));
    if let Some(path) = &options.report {
        std::fs::write(path, report(&summaries, &expected, options))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("report: {}", path.display());
    }
    if let Some(path) = &options.html {
        let sides: Vec<_> = checked.iter().map(|side| (side.backend, &side.verdicts[..])).collect();
        let summary = closing_line(&summaries.iter().map(|(_, summary)| summary).collect::<Vec<_>>());
        crate::report::page(&cases, &sides, &expected.versions, options, summary).write(path)?;
        println!("page: {}", path.display());
    }
    // A row can only be called stale where every reference and every backend could run.
    let complete = expected.cases.values().all(|result| result.status != Status::Unsupported);
    let every = complete && options.backend.is_none();
    let is_whole = every && options.filter.is_none() && options.device.0 == Device::Cpu;
    let stale: Vec<&str> = match &summaries[..] {
        _ if !is_whole => Vec::new(),
        [(_, first), others @ ..] => {
            let unseen = |name: &&str| others.iter().all(|(_, other)| other.unseen_differences().any(|o| o == *name));
            first.unseen_differences().filter(unseen).collect()
        }
        [] => Vec::new(),
    };
    if !stale.is_empty() {
        println!("deliberate differences that no case shows any more: {}", stale.join(", "));
    }
    let all: Vec<&Summary> = summaries.iter().map(|(_, summary)| summary).collect();
    println!("{}", closing_line(&all));
    Ok(all.iter().all(|summary| summary.failures().is_empty()) && stale.is_empty())
}

/// The results of the references, and those of the crate held against them.
pub(crate) struct Held {
    pub(crate) expected: Results,
    pub(crate) sides: Vec<Side>,
}

/// Computes the cases in the folder of the check on all sides, and compares them; where they are unequal, with the
/// results in double precision.
pub(crate) fn hold(python: &Python, cases: &[Case], options: &CheckOptions) -> Result<Held> {
    let cases_file = options.work.join("cases.json");
    let tensors_file = options.work.join("tensors.safetensors");
    let device = options.device.to_string();
    let expected_dir = options.work.join("expected");
    let call = OracleCall {
        cases: &cases_file,
        tensors: &tensors_file,
        out: &expected_dir,
        device: &device,
        threads: options.threads,
        jobs: options.jobs().min(cases.len()),
        upcast: false,
        total: cases.len(),
    };
    let expected = python.oracle(&call)?;
    let tensors = read_tensors(&tensors_file)?;
    let bitwise = options.device.0 == Device::Cpu;
    let compare = |side: &Side, case: &Case, truth: Option<&Results>| {
        let (bitwise, backend) = (bitwise && !side.backend.is_of_cuda(), side.backend.into());
        let sides = Sides { expected: &expected, actual: &side.actual, truth, bitwise, backend };
        compare_case(case, sides)
    };
    let mut checked = Vec::new();
    for backend in options.backends() {
        let actual = evaluate_with_bar(cases, &tensors, options, backend)?;
        let mut side = Side { backend, actual, verdicts: Vec::new() };
        side.verdicts = cases.iter().map(|case| compare(&side, case, None)).collect();
        checked.push(side);
    }
    if let Some(truth) = &truth_of_unequal(python, &call, cases, &checked, &options.work)? {
        for side in &mut checked {
            let again = |(case, verdict): (&Case, &Verdict)| match unequal(verdict) {
                true => compare(side, case, Some(truth)),
                false => verdict.clone(),
            };
            side.verdicts = cases.iter().zip(&side.verdicts).map(again).collect();
        }
    }
    Ok(Held { expected, sides: checked })
}

type Checked = (BackendName, Summary);

fn evaluate_with_bar(
    cases: &[Case],
    tensors: &Tensors,
    options: &CheckOptions,
    backend: BackendName,
) -> Result<Results> {
    let (bar, jobs) = (progress::bar(&format!("tch-losses, {backend:?}"), Some(cases.len())), options.jobs());
    let parts = run_all((0..jobs).map(|part| (part, shared(tensors))), |(part, tensors)| {
        tch::set_num_threads(options.threads);
        let cases = cases.iter().skip(part).step_by(jobs);
        backend.within(|| evaluate(cases, &tensors, options.device.0, &run_adapter, || bar.inc(1)))
    })?;
    let results = Results::merge(parts);
    bar.finish_and_clear();
    let actual = options.work.join(format!("actual-{}", backend.name()));
    std::fs::create_dir_all(&actual)?;
    results.write(&actual.join("results.json"), &actual.join("results.safetensors"))?;
    Ok(results)
}

/// The same tensors for another thread.
fn shared(tensors: &Tensors) -> Tensors {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
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
    checked: &[Side],
    work: &Path,
) -> Result<Option<Results>> {
    let verdicts = checked.iter().flat_map(|side| cases.iter().zip(&side.verdicts));
    let failed: std::collections::HashSet<&str> =
        verdicts.filter(|(_, verdict)| unequal(verdict)).map(|(case, _)| case.id.as_str()).collect();
    if failed.is_empty() {
        return Ok(None);
    }
    python.in_double_precision(call, |id| failed.contains(id), &work.join("truth")).map(Some)
}

fn text(summaries: &[Checked], options: &CheckOptions) -> String {
    let mut text = String::new();
    for (backend, summary) in summaries {
        let _ = writeln!(text, "{}\n\n{}", title(*backend), summary.losses());
        if let Some(table) = summary.differences() {
            let _ = writeln!(text, "\nDeliberate differences:\n\n{table}");
        }
        if let Some(table) = summary.not_checked() {
            let _ = writeln!(text, "\nNot checked, because the reference cannot run them here:\n\n{table}");
        }
        text += &failures(summary, *backend, options);
        text += "\n";
    }
    text
}

fn title(backend: BackendName) -> &'static str {
    match backend {
        BackendName::Auto => "Fused engines, where there is one",
        BackendName::Composite => "Tensor operations",
        BackendName::LikeCuda => "Tensor operations as on CUDA, computed on the CPU",
        #[cfg(feature = "emulation")]
        BackendName::Emulated => "Engines of CUDA, whose kernels run on the CPU",
    }
}

fn failures(summary: &Summary, backend: BackendName, options: &CheckOptions) -> String {
    let mut text = String::new();
    let backend = backend.name();
    for (id, reason) in summary.failures() {
        let (seed, device) = (options.seed, options.device);
        let rerun = format!("parity check --seed {seed} --device {device} --backend {backend} --filter '{id}'");
        let _ = write!(text, "\nFAILED {id}\n  {reason}\n  rerun: {rerun}\n");
    }
    text
}

fn report(summaries: &[Checked], expected: &Results, options: &CheckOptions) -> String {
    let mut text = String::from("# Parity report\n\n");
    let all: Vec<&Summary> = summaries.iter().map(|(_, summary)| summary).collect();
    let _ = writeln!(text, "{}\n", closing_line(&all));
    let _ = writeln!(text, "* device: {}; threads: {}; seed: {}", options.device, options.threads, options.seed);
    if let Some(filter) = &options.filter {
        let _ = writeln!(text, "* only cases whose id contains `{filter}`");
    }
    let _ = writeln!(text, "* processor: {}", processor());
    let _ = writeln!(text, "* tch-losses: {}", env!("CARGO_PKG_VERSION"));
    for (name, version) in &expected.versions {
        let _ = writeln!(text, "* {name}: {version}");
    }
    let _ = writeln!(text, "\nThe columns:\n");
    for (column, meaning) in COLUMNS.iter().filter(|(_, meaning)| !meaning.is_empty()) {
        let _ = writeln!(text, "* {column}: {meaning}");
    }
    for (backend, summary) in summaries {
        let _ = writeln!(text, "\n## {}\n\n{}", title(*backend), summary.losses());
        let sections = [("Deliberate differences", summary.differences()), ("Not checked", summary.not_checked())];
        for (title, table) in sections.into_iter().filter_map(|(title, table)| Some((title, table?))) {
            let _ = writeln!(text, "\n### {title}\n\n{table}");
        }
        if !summary.failures().is_empty() {
            let _ = writeln!(text, "\n### Failures\n\n```text{}```", failures(summary, *backend, options));
        }
    }
    text
}

/// The processor's name, and its cores.
pub(crate) fn processor() -> String {
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
