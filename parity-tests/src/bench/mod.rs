//! The crate's losses against PyTorch: each workload is one call, timed here and in a Python process in turns.

mod accuracy;
mod busy;
pub mod kernels;
mod load;
mod measure;
mod memory;
pub mod ours;
mod overhead;
mod page;
mod peer;
mod plot;
mod report;
pub mod workloads;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use tch::{Device, Kind};

use self::busy::Busy;
use self::load::Ticks;
use self::measure::{Pass, Plan, Quartiles, Side, measure};
use self::ours::{Copy, Ours};
use self::peer::{Peer, PeerSide};
use self::report::{Machine, MemoryRecord, Record, Report};
use self::workloads::{Dtype, Inputs, Size, Workload, workloads};
use crate::check::{DeviceName, parse_device};
use crate::compare::{Sides, Verdict, compare_case};
use crate::oracle::{Python, PythonOptions};
use crate::progress;
use crate::results::Results;

/// What to measure and where the results go.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  parity bench                                         every loss and size
  parity bench --quick                                 tiny and medium sizes, few rounds
  parity bench --filter CrossEntropy --sizes large     some losses, one class of sizes
  parity bench --filter Dice,Jaccard,Tversky           several
  parity bench --dtype bf16 --no-compile               in another precision
  parity bench --device cuda                           on the GPU, without memory
  parity bench --json b.json --svg b.svg --report b.md files besides the table
  parity bench --quick --html b.html                   and a page for the browser
  parity bench --backend composite --no-compile        without the fused engines, against eager alone
  parity bench --overhead                              what a call costs over the bare tch operation
  parity bench --busy 1 --no-compile                   beside a process that keeps a core busy, and without it
  parity bench --accuracy                              how far both sides are from the result in double precision
  parity bench --kernels                               how many kernels a GPU runs for both sides, counted on the CPU

Status: 0 when all was measured, 1 when a loss differs from its reference or could not be measured, or is further from double
precision than PyTorch, or has more kernels, 2 for a wrong call.")]
pub struct BenchOptions {
    /// Only losses whose name or Python reference contains this, or one of these with commas between
    #[arg(long, value_name = "NAMES")]
    filter: Option<String>,
    /// Classes of sizes [default: all; tiny and medium with --quick]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SIZES")]
    sizes: Vec<Size>,
    /// The kind of the floating arguments
    #[arg(long, value_enum, default_value_t, conflicts_with_all = ["accuracy", "overhead"])]
    dtype: Dtype,
    /// Device of both sides: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_parser = parse_device, conflicts_with = "overhead")]
    pub device: DeviceName,
    /// Rounds at most; in each the sides alternate [default: 11, 5 with --quick, 200 with --overhead]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Threads of both sides [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    threads: Option<i32>,
    /// Tiny and medium sizes, few and short rounds, no memory
    #[arg(long)]
    quick: bool,
    /// Leave torch.compile out
    #[arg(long)]
    no_compile: bool,
    /// Leave backward out
    #[arg(long)]
    forward_only: bool,
    /// Measure beside so many processes that each keep a core busy; the crate without them, too
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["accuracy", "overhead"])]
    busy: usize,
    /// How the crate computes: sets TCH_LOSSES_BACKEND
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    /// Write everything measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a plot of the ratios
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the tables as Markdown
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write a page to look at in a browser, with all rows to sort and to filter
    #[arg(long, value_name = "FILE", conflicts_with_all = ["accuracy", "overhead"])]
    html: Option<PathBuf>,
    /// Where torch.compile keeps what it has compiled, for the next run
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    work: PathBuf,
    /// Measure what a call costs over the bare tch operation instead, on one thread
    #[arg(long)]
    overhead: bool,
    /// Measure how far the results are from those in double precision instead, the crate's and PyTorch's
    #[arg(long, conflicts_with = "overhead")]
    accuracy: bool,
    /// Count the kernels that a GPU runs for a call instead, the crate's and PyTorch's; with --json those of PyTorch, as
    /// the tests read them
    #[arg(long, conflicts_with_all = ["accuracy", "overhead", "device"])]
    kernels: bool,
    /// Calls per side and round of --overhead
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..), requires = "overhead")]
    calls: u32,
    /// Measure the memory of one workload in this process: for this program's own use
    #[arg(long, value_name = "ID", hide = true)]
    memory_of: Option<String>,
    /// Keep a core busy: for this program's own use
    #[arg(long, hide = true)]
    keep_busy: bool,
    #[command(flatten)]
    python: PythonOptions,
}

/// How the crate computes.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Backend {
    /// By tch operations
    Composite,
    /// By fused engines where they serve
    Auto,
}

const BACKEND_VARIABLE: &str = "TCH_LOSSES_BACKEND";

/// Measures and reports. Whether all could be measured.
pub fn run(options: &BenchOptions) -> Result<bool> {
    if options.keep_busy {
        busy::keep_busy();
    }
    if let Some(backend) = options.backend.and_then(|backend| backend.to_possible_value())
        && std::env::var(BACKEND_VARIABLE).as_deref() != Ok(backend.get_name())
    {
        return run_with_backend(backend.get_name());
    }
    if options.overhead {
        let rounds = options.rounds.unwrap_or(200);
        return overhead::run(&overhead::OverheadOptions { rounds, calls: options.calls }).map(|()| true);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or(cores as i32);
    tch::set_num_threads(threads);
    if let Some(id) = &options.memory_of {
        return memory_of(id, options.dtype).map(|()| true);
    }
    let bench = Bench::new(options, threads)?;
    if options.accuracy {
        return accuracy::run(bench);
    }
    if options.kernels {
        return kernels::run(&bench);
    }
    let report = bench.run()?;
    println!("{}", report.to_text());
    write(options.json.as_deref(), report.to_json()?)?;
    write(options.report.as_deref(), report.to_markdown())?;
    if let Some(file) = &options.html {
        page::page(&report).write(file)?;
    }
    if let Some(file) = &options.svg {
        plot::draw(&report, file).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(report.failures.is_empty())
}

/// Writes a file that was asked for.
fn write(file: Option<&Path>, text: String) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// The crate reads the variable when it starts, so that this program starts once more.
fn run_with_backend(backend: &str) -> Result<bool> {
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.args(std::env::args_os().skip(1)).env(BACKEND_VARIABLE, backend);
    match command.status().context("cannot run this program again")?.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => bail!("the run with {BACKEND_VARIABLE}={backend} failed"),
    }
}

fn memory_of(id: &str, dtype: Dtype) -> Result<()> {
    let all = workloads(None, Size::value_variants(), dtype);
    let workload = all.iter().find(|workload| workload.id() == id).with_context(|| format!("no workload {id}"))?;
    let ours = Ours::new(workload, &workload.inputs()?)?;
    println!("{}", serde_json::to_string(&memory::measure_here(&ours)?)?);
    Ok(())
}

/// A run.
struct Bench<'a> {
    options: &'a BenchOptions,
    workloads: Vec<Workload>,
    plan: Plan,
    threads: i32,
    python: Python,
    /// Where the tensors go that the Python side loads.
    dir: tempfile::TempDir,
    peer: Peer,
    copy: Copy,
    /// The Python side whose memory is measured, started when it is needed.
    memory_peer: Option<Peer>,
    busy: Busy,
    report: Report,
}

impl<'a> Bench<'a> {
    fn new(options: &'a BenchOptions, threads: i32) -> Result<Self> {
        let sizes = match (&options.sizes[..], options.quick) {
            ([], true) => &[Size::Tiny, Size::Medium],
            ([], false) => Size::value_variants(),
            (sizes, _) => sizes,
        };
        let workloads = workloads(options.filter.as_deref(), sizes, options.dtype);
        ensure!(!workloads.is_empty(), "no loss of that name has such a size");
        let plan = match options.quick {
            true => Plan { rounds: options.rounds.unwrap_or(5), batch_seconds: 0.01, budget_seconds: 0.25 },
            false => Plan { rounds: options.rounds.unwrap_or(11), batch_seconds: 0.02, budget_seconds: 1.0 },
        };
        let python = Python::find(&options.python)?;
        std::fs::create_dir_all(&options.work).with_context(|| format!("cannot create {}", options.work.display()))?;
        let work = options.work.canonicalize()?;
        let dir = tempfile::tempdir_in(&work).context("cannot create a folder for the tensors")?;
        let device = options.device;
        let peer = Peer::start(&python, threads, device, &cache(&work), &[])?;
        let hello = peer.hello()?;
        ensure!(hello.threads == threads, "PyTorch takes {} threads, not {threads}", hello.threads);
        let mut report = Report::new(Machine::new(hello, threads, options.dtype)?, !options.no_compile);
        report.machine.busy = options.busy;
        let busy = Busy::start(options.busy)?;
        let copy = Copy::new(device.0)?;
        let seconds = measure(&[&copy], Pass::Forward, Plan { rounds: 15, ..plan })?.swap_remove(0);
        report.machine.bandwidth = Copy::BYTES as f64 / Quartiles::of(seconds).median;
        if let (Some(problem), true) = (report.machine.python.problem.clone(), report.compile) {
            eprintln!("torch.compile is left out: {problem}");
            report.notes.push(format!("torch.compile is left out: {problem}"));
            report.compile = false;
        }
        Ok(Bench { options, workloads, plan, threads, python, dir, peer, copy, memory_peer: None, busy, report })
    }

    fn run(mut self) -> Result<Report> {
        let before = Ticks::now(&self.pids());
        let bar = progress::bar("starting", Some(self.workloads.len()));
        for workload in std::mem::take(&mut self.workloads) {
            bar.set_message(format!("{} {}", workload.name, workload.shape()));
            if let Err(error) = self.measure(&workload) {
                self.report.failures.push(format!("{} {}: {error:#}", workload.name, workload.shape()));
                self.revive()?;
            }
            // A run that is ended leaves what it has measured.
            write(self.options.report.as_deref(), self.report.to_markdown())?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let others = |(before, after): (Ticks, Ticks)| after.others_since(before, self.report.machine.cores);
        self.report.machine.others = before.zip(Ticks::now(&self.pids())).map(others);
        Ok(self.report)
    }

    fn pids(&self) -> Vec<u32> {
        std::iter::once(&self.peer).chain(&self.memory_peer).map(Peer::pid).collect()
    }

    /// Starts the Python side again where a workload has ended it.
    fn revive(&mut self) -> Result<()> {
        self.memory_peer = None;
        if self.peer.hello().is_err() {
            let cache = cache(&self.options.work.canonicalize()?);
            self.peer = Peer::start(&self.python, self.threads, self.options.device, &cache, &[])?;
        }
        Ok(())
    }

    /// Gives the workload to the Python side, by way of the file that is returned.
    fn load(&self, workload: &Workload, inputs: &Inputs) -> Result<PathBuf> {
        let tensors = self.dir.path().join("tensors.safetensors");
        let named: Vec<_> = inputs.tensors().into_iter().collect();
        tch::Tensor::write_safetensors(&named, &tensors)?;
        self.peer.load(&workload.case_json(inputs), &tensors)?;
        Ok(tensors)
    }

    fn measure(&mut self, workload: &Workload) -> Result<()> {
        let inputs = workload.inputs()?;
        let tensors = self.load(workload, &inputs)?;
        let ours = Ours::new(workload, &inputs.f_to_device(self.options.device.0)?)?;
        check_values(workload, &inputs, &ours, &self.peer, self.dir.path())?;
        self.time(workload, &inputs, &ours, Pass::Forward)?;
        if self.options.forward_only {
            return Ok(());
        }
        self.time(workload, &inputs, &ours, Pass::Backward)?;
        let on_cpu = self.options.device.0 == Device::Cpu;
        if workload.size == Size::Large && !self.options.quick && on_cpu && memory::is_available() {
            self.measure_memory(workload, &inputs, &tensors)?;
        }
        Ok(())
    }

    fn time(&mut self, workload: &Workload, inputs: &Inputs, ours: &Ours, pass: Pass) -> Result<()> {
        let compiles = self.compiles(workload, pass);
        let eager = PeerSide { peer: &self.peer, name: "eager" };
        let compiled = PeerSide { peer: &self.peer, name: "compile" };
        let alone = || Ok::<_, anyhow::Error>(Quartiles::of(measure(&[ours], pass, self.plan)?.swap_remove(0)));
        let quiet = (self.options.busy > 0).then(alone).transpose()?;
        let copies = workload.is_pointwise() && workload.size == Size::Large;
        let mut sides: Vec<&dyn Side> = vec![ours, &eager];
        let copy_at = copies.then(|| push(&mut sides, &self.copy));
        let compile_at = compiles.then(|| push(&mut sides, &compiled));

        self.busy.set(true)?;
        let samples = measure(&sides, pass, self.plan);
        self.busy.set(false)?;
        let samples = samples?;
        let seconds = |side: usize| Quartiles::of(samples[side].iter().copied());
        let ratio = |side: usize| Quartiles::of_ratios(&samples[side], &samples[0]);
        let (all, leaves) = inputs.bytes();
        let traffic = if pass == Pass::Forward { all } else { all + leaves };
        let copies_of_traffic = traffic as f64 / Copy::BYTES as f64;
        self.report.records.push(Record {
            loss: workload.name,
            reference: workload.reference(),
            size: workload.size,
            shape: workload.shape(),
            pass,
            rounds: samples[0].len(),
            ours: seconds(0),
            quiet,
            eager: seconds(1),
            compile: compile_at.map(seconds),
            eager_ratio: ratio(1),
            compile_ratio: compile_at.map(ratio),
            of_copy: copy_at.map(|at| ratio(at).median * copies_of_traffic),
        });
        Ok(())
    }

    /// Compiles the workload in Python. Whether it could be; where not, a note says why.
    fn compiles(&mut self, workload: &Workload, pass: Pass) -> bool {
        if !self.report.compile {
            return false;
        }
        let reason = match self.peer.compile(pass) {
            Ok(compiled) if compiled.graphs > 0 => return true,
            Ok(_) => "torch.compile finds nothing to compile".to_owned(),
            Err(error) => format!("torch.compile fails: {error:#}"),
        };
        self.report.notes.push(format!("{} {}, {}: {reason}", workload.name, workload.shape(), pass.title()));
        false
    }

    fn measure_memory(&mut self, workload: &Workload, inputs: &Inputs, tensors: &Path) -> Result<()> {
        let ours = memory::measure_in_child(workload, self.threads)?;
        let peer = match self.memory_peer.take() {
            Some(peer) => peer,
            None => {
                let cache = cache(&self.options.work.canonicalize()?);
                Peer::start(&self.python, self.threads, self.options.device, &cache, &memory::MALLOC)?
            }
        };
        peer.load(&workload.case_json(inputs), tensors)?;
        let eager = peer.memory("eager")?;
        let compiles = self.report.compile && peer.compile(Pass::Backward).is_ok_and(|compiled| compiled.graphs > 0);
        let compile = compiles.then(|| peer.memory("compile")).transpose()?;
        self.memory_peer = Some(peer);
        let (loss, shape) = (workload.name, workload.shape());
        self.report.memory.push(MemoryRecord { loss, shape, input_bytes: inputs.bytes().1, ours, eager, compile });
        Ok(())
    }
}

/// Adds a side and tells its place.
fn push<'a>(sides: &mut Vec<&'a dyn Side>, side: &'a dyn Side) -> usize {
    sides.push(side);
    sides.len() - 1
}

fn cache(work: &Path) -> PathBuf {
    work.join("inductor")
}

/// Proves by value and gradients that both sides do the same work. In half precision the reference may be off, or have
/// a result of another kind; there the result in double precision counts as well.
fn check_values(workload: &Workload, inputs: &Inputs, ours: &Ours, peer: &Peer, dir: &Path) -> Result<()> {
    let (case, id) = (workload.case(inputs)?, workload.id());
    let actual = ours.results(&id, inputs)?;
    let half = actual.tensors.values().any(|tensor| matches!(tensor.kind(), Kind::Half | Kind::BFloat16));
    let values = |upcast, file| -> Result<Results> {
        let mut results = peer.values(&id, upcast, &dir.join(file))?;
        if half && !upcast {
            in_kinds_of(&actual, &mut results)?;
        }
        Ok(results)
    };
    let compare = |expected: &Results, truth: Option<&Results>| {
        let backend = tch_losses::Backend::Auto;
        compare_case(&case, Sides { expected, actual: &actual, truth, bitwise: false, backend })
    };
    let expected = values(false, "values.safetensors")?;
    let mut verdict = compare(&expected, None);
    // The result in double precision takes its time, so that it is asked for only where it decides.
    if let Verdict::Failed(_) = verdict {
        let mut truth = values(true, "truth.safetensors")?;
        verdict = compare(&expected, Some(&truth));
        if half && let Verdict::Failed(_) = verdict {
            in_kinds_of(&actual, &mut truth)?;
            verdict = compare(&truth, None);
        }
    }
    match verdict {
        Verdict::Equal(_) => Ok(()),
        Verdict::Failed(reason) => bail!("not the reference's result: {reason}"),
        Verdict::NotChecked(reason) => bail!("the reference cannot run: {reason}"),
        other => bail!("not the reference's result: {other:?}"),
    }
}

/// Converts the tensors to the kinds that those of the same name have.
fn in_kinds_of(model: &Results, results: &mut Results) -> Result<()> {
    for (name, tensor) in &mut results.tensors {
        if let Some(like) = model.tensors.get(name) {
            *tensor = tensor.f_to_kind(like.kind())?;
        }
    }
    Ok(())
}
