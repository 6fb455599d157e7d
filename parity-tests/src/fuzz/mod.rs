//! Calls by chance: what no case has thought of.

mod arguments;
pub mod call;
pub mod chance;
pub mod child;
pub mod class;
mod data;
mod described;
mod direct;
mod disturb;
mod expected;
mod families;
pub mod judge;
mod options;
pub mod oracle;
mod parent;
mod random;
mod references;
mod report;
pub mod side;
mod tensors;
mod truth;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

use self::chance::{call, losses};
use self::child::Sabotage;
use self::class::Class;
use self::judge::judge;
use self::parent::Plan;
use crate::check::BackendName;
use crate::oracle::PythonOptions;
use crate::progress;

/// What to call, and for how long.
#[derive(Debug, Args)]
pub struct FuzzOptions {
    /// Stop after so many seconds [default: 60 where --calls is not given]
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Stop after so many calls
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    calls: Option<u64>,
    /// Seed of the first call; that of each next one is one more [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Make the call of this seed alone, and show it: the loss, its arguments, what both backends make of it
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seconds", "calls", "seed", "filter", "oracle_share"])]
    replay: Option<u64>,
    /// Only these losses
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    filter: Vec<String>,
    /// What is held against tensor operations
    #[arg(long, value_enum, default_value_t)]
    engines: BackendName,
    /// How many processes make calls [default: one for each core, up to 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Show how often each loss was computed, and the seeds of the findings
    #[arg(long, short)]
    verbose: bool,
    /// How many seconds a call may take
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    patience: u64,
    /// The most memory of a process, in MiB
    #[arg(long, value_name = "N", default_value_t = 8192)]
    memory: u64,
    /// The classes of findings that are counted and set the exit status; others are only shown [default: all]
    #[arg(long, value_name = "CLASS", value_delimiter = ',', value_parser = parse_class)]
    count: Vec<Class>,
    /// Which share of the computed calls goes through the Python reference, of losses that have one of the same options
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = parse_share)]
    oracle_share: f64,
    #[command(flatten)]
    python: PythonOptions,
    /// Break the engines, to see that it is found
    #[arg(long, value_enum, hide = true)]
    sabotage: Option<Sabotage>,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is no number from 0 to 1"))
}

fn parse_class(text: &str) -> Result<Class, String> {
    let class = Class::ALL.into_iter().find(|class| class.name() == text);
    class.ok_or_else(|| format!("{text:?} is none of {}", Class::ALL.map(Class::name).join(", ")))
}

/// Makes calls, prints what is wrong and says whether nothing is.
pub fn fuzz(options: &FuzzOptions) -> Result<bool> {
    if let Some(seed) = options.replay {
        return replay(seed, options.engines);
    }
    let known = losses();
    if let Some(unknown) = options.filter.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no loss {unknown:?}, only {}", known.join(", "));
    }
    let seconds = options.seconds.or(if options.calls.is_none() { Some(60) } else { None });
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 48));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan {
        seed,
        calls: options.calls,
        deadline: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
        only: options.filter.clone(),
        jobs: options.jobs.map_or(cores.min(16), usize::from),
        patience: Duration::from_secs(options.patience),
        memory: options.memory,
        engines: options.engines,
        sabotage: options.sabotage,
    };
    println!("seed {seed}");
    let (start, bar) = (Instant::now(), progress::bar("calls", options.calls.map(|calls| calls as usize)));
    let mut summary = parent::run(&plan, &bar)?;
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let chosen = (summary.comparable.len() as f64 * options.oracle_share).ceil() as usize;
    summary.comparable.sort_unstable();
    let seeds: Vec<u64> = summary.comparable.iter().copied().take(chosen).collect();
    let held = (chosen > 0).then(|| oracle::check(&seeds, &options.python, plan.jobs, &mut summary));
    if let Some(Ok(computed)) = held {
        println!("{computed} calls held against their Python references");
    }

    if options.verbose {
        println!("{}\n", summary.coverage());
    }
    if !summary.findings.is_empty() {
        println!("{}\n", summary.table());
        if options.verbose {
            println!("{}", summary.seeds());
        }
        println!("Show one: parity fuzz --replay SEED\n");
    }
    let (calls, accepted) = (summary.calls(), summary.accepted());
    let rate = calls as f64 / seconds.max(1e-3);
    println!(
        "{} losses, {accepted} calls computed, {} rejected, {rate:.0} calls/s",
        summary.losses.len(),
        calls - accepted
    );
    let counted = summary.count(if options.count.is_empty() { &Class::ALL } else { &options.count });
    if counted < summary.count(&Class::ALL) {
        println!("{} more findings are shown and not counted", summary.count(&Class::ALL) - counted);
    }
    println!("fuzz: {calls} calls, {counted} findings");
    held.transpose()?;
    Ok(counted == 0)
}

/// Makes one call and shows it.
fn replay(seed: u64, engines: BackendName) -> Result<bool> {
    tch::set_num_threads(1);
    let mut call = call(seed, &losses())?;
    (call.shown, call.engines) = (true, engines);
    println!("{}", call.describe());
    let verdict = judge(&call, &side::crate_itself);
    for (backend, result) in [engines.name(), "composite"].iter().zip(&verdict.results) {
        println!("{backend}: {result}");
    }
    for finding in &verdict.findings {
        println!("\n{}: {}\n  {}", finding.class.name(), finding.class.meaning(), finding.detail);
    }
    for reason in &verdict.expected {
        println!("\nexpected: {reason}");
    }
    println!("fuzz: 1 calls, {} findings", verdict.findings.len());
    Ok(verdict.findings.is_empty())
}
