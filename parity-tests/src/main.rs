//! The command line of the parity harness.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use parity::case::{read_cases, read_tensors};
use parity::check::{BackendName, CheckOptions, DeviceName, check, parse_device};
use parity::compare::{Sides, Verdict, compare_case};
use parity::eval::{evaluate, run_adapter};
use parity::oracle::{OracleCall, Python, PythonOptions};
use parity::results::Results;
use parity::table::{Summary, closing_line};
use parity::{bench, fuzz, progress};

/// Proves the losses of tch-losses equal to their Python originals.
///
/// Exit status: 0 all equal, 1 something differs, 2 a wrong call or file, 3 no such device.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  parity check                                    every loss, on the CPU
  parity check --filter torch.nn.CTCLoss          one loss
  parity check --filter /reject/ --seed 7         the calls that must be rejected, with other numbers
  parity check --device cuda --report report.md   every loss on the GPU, with a report
  parity check --html report.html                 every loss, with a page for the browser"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate cases, run them in PyTorch and here, compare
    Check(CheckOptions),
    /// Run the cases of a file through the crate
    #[command(after_help = "Example:
  parity eval --cases cases.json --tensors tensors.safetensors \\
    --results results.json --result-tensors results.safetensors")]
    Eval(EvalOptions),
    /// Compare two folders of results
    #[command(after_help = "Example:
  parity compare --cases target/parity/cases.json --expected target/parity/expected --actual target/parity/actual")]
    Compare(CompareOptions),
    /// Write the golden files anew from PyTorch
    Record(RecordOptions),
    /// Measure the crate against PyTorch eager and torch.compile
    Bench(Box<bench::BenchOptions>),
    /// Make calls by chance, and hold both backends beside each other
    #[command(after_help = "Examples:
  parity fuzz                                     a minute of every loss
  parity fuzz --seconds 600 --verbose             ten minutes, and how often each loss was computed
  parity fuzz --calls 1000000 --seed 1            a million calls, the same ones each time
  parity fuzz --filter cross_entropy,nll          two losses
  parity fuzz --replay 4711                       one call in full")]
    Fuzz(fuzz::FuzzOptions),
    /// Make the calls of a process of fuzz
    #[command(hide = true)]
    FuzzCalls(fuzz::child::ChildOptions),
    /// Hold calls of fuzz against their references
    #[command(hide = true)]
    FuzzReferences(fuzz::oracle::ReferenceOptions),
}

#[derive(Debug, clap::Args)]
struct EvalOptions {
    /// The case file
    #[arg(long, value_name = "FILE")]
    cases: PathBuf,
    /// The tensors of the cases
    #[arg(long, value_name = "FILE")]
    tensors: PathBuf,
    /// The result file to write
    #[arg(long, value_name = "FILE")]
    results: PathBuf,
    /// The tensors of the results to write
    #[arg(long, value_name = "FILE")]
    result_tensors: PathBuf,
    /// Device: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    device: DeviceName,
    /// libtorch threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    threads: i32,
    /// What computes the losses
    #[arg(long, value_enum, default_value_t)]
    backend: BackendName,
}

#[derive(Debug, clap::Args)]
struct CompareOptions {
    /// The folder of the oracle's results.json and results.safetensors
    #[arg(long, value_name = "DIR")]
    expected: PathBuf,
    /// The folder of the crate's results.json and results.safetensors
    #[arg(long, value_name = "DIR")]
    actual: PathBuf,
    /// The case file [default: cases.json in the folder of the expected results, or above it]
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Accept the tolerance of the dtype also where bitwise equality is promised (results of another machine)
    #[arg(long)]
    close: bool,
    /// What computed the crate's results
    #[arg(long, value_enum, default_value_t)]
    backend: BackendName,
}

#[derive(Debug, clap::Args)]
struct RecordOptions {
    /// The folder to write
    #[arg(long, value_name = "DIR", default_value = "parity-tests/golden")]
    out: PathBuf,
    /// Seed of the generated cases
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    python: PythonOptions,
}

const DIFFERS: u8 = 1;
const WRONG_CALL: u8 = 2;
const NO_DEVICE: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let device = match &cli.command {
        Command::Check(options) => Some(options.device),
        Command::Eval(options) => Some(options.device),
        Command::Bench(options) => Some(options.device),
        _ => None,
    };
    if let Some(device) = device.filter(|device| !device.is_available()) {
        eprintln!("no device {device} on this machine: nothing was checked");
        return ExitCode::from(NO_DEVICE);
    }
    match run(cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(DIFFERS),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(WRONG_CALL)
        }
    }
}

/// Whether all is equal.
fn run(command: Command) -> Result<bool> {
    match command {
        Command::Check(options) => {
            silence_panics();
            check(&options)
        }
        Command::Eval(options) => {
            silence_panics();
            eval(&options).map(|()| true)
        }
        Command::Compare(options) => compare(&options),
        Command::Record(options) => record(&options).map(|()| true),
        Command::Bench(options) => bench::run(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options),
        Command::FuzzCalls(options) => fuzz::child::run(&options).map(|()| true),
        Command::FuzzReferences(options) => fuzz::oracle::run(&options).map(|()| true),
    }
}

/// A panic inside a case is a result of that case; it is reported there.
fn silence_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

fn eval(options: &EvalOptions) -> Result<()> {
    tch::set_num_threads(options.threads);
    let cases = read_cases(&options.cases)?;
    let tensors = read_tensors(&options.tensors)?;
    let bar = progress::bar("tch-losses", Some(cases.len()));
    let compute = || evaluate(&cases, &tensors, options.device.0, &run_adapter, || bar.inc(1));
    let results = options.backend.within(compute)?;
    bar.finish_and_clear();
    results.write(&options.results, &options.result_tensors)
}

fn compare(options: &CompareOptions) -> Result<bool> {
    let beside = options.expected.join("cases.json");
    let above = options.expected.parent().unwrap_or(Path::new(".")).join("cases.json");
    let found = options.cases.clone().or_else(|| [beside, above].into_iter().find(|path| path.is_file()));
    let cases =
        read_cases(&found.context("no cases.json beside or above the expected results: name it with --cases")?)?;
    let (expected, actual) = (Results::read_dir(&options.expected)?, Results::read_dir(&options.actual)?);
    let (bitwise, backend) = (!options.close, options.backend.into());
    let sides = Sides { expected: &expected, actual: &actual, truth: None, bitwise, backend };
    let verdicts: Vec<Verdict> = cases.iter().map(|case| compare_case(case, sides)).collect();
    let summary = Summary::new(&cases, &verdicts);
    println!("{}\n", summary.losses());
    for (id, reason) in summary.failures() {
        println!("FAILED {id}\n  {reason}");
    }
    println!("{}", closing_line(&[&summary]));
    Ok(summary.failures().is_empty())
}

fn record(options: &RecordOptions) -> Result<()> {
    let python = Python::find(&options.python)?;
    python.generate(&options.out, options.seed, None, &["--scale", "small"])?;
    let (cases, tensors) = (options.out.join("cases.json"), options.out.join("tensors.safetensors"));
    let total = read_cases(&cases)?.len();
    let call = OracleCall {
        cases: &cases,
        tensors: &tensors,
        out: &options.out,
        device: "cpu",
        threads: 1,
        jobs: 1,
        upcast: false,
        total,
    };
    python.oracle(&call)?;
    // In half precision this crate is closer to the result in double precision than PyTorch is.
    let half = |id: &str| id.contains("/f16/") || id.contains("/bf16/");
    let truth = options.out.join("truth");
    python.in_double_precision(&call, half, &truth)?;
    std::fs::remove_file(truth.join("cases.json"))?;
    python.save_modules(&options.out.join("modules"))?;
    println!("{total} cases in {}", options.out.display());
    Ok(())
}
