//! What losses over processes cost: time per step, bytes that a rank sends, and memory of a rank.
//!
//! ```sh
//! cargo run --release --features distributed --example distributed_cost                        # the whole report
//! cargo run --release --features distributed --example distributed_cost -- --steps 3 --batches 64 --worlds 1,2
//! ```
//!
//! It prints a page of Markdown. The bytes are those that the group counts (`Group::sent_bytes`), and the program fails
//! where they are not those of the formula beside them. Times are of processes on one machine, which share its cores, so
//! that they are worth something only where nothing else runs.
//!
//! Where to look: [`losses`] is the list, with the formulas.

#[path = "common/ranks.rs"]
mod ranks;

use std::{
    io::{BufRead, BufReader},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tch::{Device, Kind, Tensor, nn};
use tch_losses::distributed::{GlobalBatch, Group, VocabParallelCrossEntropy};
use tch_losses::{
    BarlowTwinsLoss, Chunking, ClipLoss, CrossEntropyLoss, DinoConfig, DinoLoss, EmbeddingLoss, EmbeddingPairs,
    EmbeddingReduction, Loss, LossError, SigLipLoss, SupConLoss, VicRegLoss,
};

/// The bytes of a record, which ranks exchange before each call.
const RECORD: usize = 232;
const FLOAT: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(120);
/// Of the layer whose classes are spread over ranks.
const CHUNK: i64 = 256;

/// Measures what losses over processes cost
#[derive(Parser)]
struct Args {
    /// The numbers of ranks
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    worlds: Vec<usize>,
    /// The samples in a step, of all ranks together
    #[arg(long, value_delimiter = ',', default_values_t = [256, 1024, 4096])]
    batches: Vec<i64>,
    /// The numbers of an embedding
    #[arg(long, default_value_t = 128)]
    features: i64,
    /// The classes that are spread over ranks
    #[arg(long, default_value_t = 32768)]
    classes: i64,
    /// The steps that are measured, of which the median counts
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// As a rank, which this program starts itself
    #[arg(long, hide = true)]
    rank: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.rank { measure(&args) } else { report(&args) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a rank has measured of one loss and batch.
struct Row {
    loss: String,
    world: usize,
    batch: i64,
    milliseconds: f64,
    bytes: u64,
    peak: f64,
}

/// Starts the ranks, and prints the page.
fn report(args: &Args) -> Result<()> {
    let mut rows = vec![];
    for &world in &args.worlds {
        rows.extend(run(world)?);
    }
    println!("# Cost of losses over processes\n");
    println!(
        "Written by `cargo run --release --features distributed --example distributed_cost`. Each process has one"
    );
    println!("thread; all are on one machine, and speak over its loopback network with Gloo. Embeddings have");
    println!(
        "D = {} numbers in single precision, the layer has C = {} classes; n = N / W is",
        args.features, args.classes
    );
    println!(
        "the batch of one of W ranks. A step is a forward and a backward pass; its time is the median of {} on",
        args.steps
    );
    println!("rank 0, which the others begin at the same moment.\n");
    println!("## Bytes that a rank sends in a step\n");
    println!("Before each call a rank sends (W - 1) * {RECORD} bytes more, which tell what it is about to do.\n");
    println!("| loss | bytes of tensors |\n|---|---|");
    for loss in losses(args, 1, args.batches[0]) {
        println!("| {} | {} |", loss.name, loss.formula);
    }
    println!("\nA = 2 (W - 1) / W is what a sum over ranks sends for each byte, G = W - 1 what a gather does.\n");
    for (title, number) in [
        ("Time of a step in milliseconds", (|row: &Row| format!("{:.2}", row.milliseconds)) as fn(&Row) -> String),
        ("Bytes sent per rank and step", |row| row.bytes.to_string()),
        ("Peak memory of a step on rank 0 in MiB, besides arguments, parameters and blocks below 1 MiB", |row| {
            format!("{:.1}", (row.peak / f64::from(1 << 20)).max(0.0))
        }),
    ] {
        print_table(title, args, &rows, number);
    }
    Ok(())
}

fn print_table(title: &str, args: &Args, rows: &[Row], number: fn(&Row) -> String) {
    println!("## {title}\n");
    let columns: Vec<(usize, i64)> =
        args.worlds.iter().flat_map(|&world| args.batches.iter().map(move |&batch| (world, batch))).collect();
    let heads: Vec<String> = columns.iter().map(|(world, batch)| format!("W = {world}, N = {batch}")).collect();
    println!("| loss | {} |\n|---|{}", heads.join(" | "), "--:|".repeat(columns.len()));
    for loss in losses(args, 1, args.batches[0]) {
        let of = |&(world, batch): &(usize, i64)| {
            let row = rows.iter().find(|row| row.loss == loss.name && row.world == world && row.batch == batch);
            row.map_or_else(|| "-".into(), number)
        };
        println!("| {} | {} |", loss.name, columns.iter().map(of).collect::<Vec<_>>().join(" | "));
    }
    println!();
}

/// Starts so many ranks, and reads what the first one prints.
fn run(world: usize) -> Result<Vec<Row>> {
    let arguments: Vec<String> = std::env::args().skip(1).chain(["--rank".into()]).collect();
    let mut ranks = ranks::start(world, &arguments, true)?;
    let output = ranks[0].stdout.take().context("the output of rank 0")?;
    let mut rows = vec![];
    for line in BufReader::new(output).lines() {
        let line = line?;
        let fields: Vec<&str> = line.split('\t').collect();
        let [loss, batch, milliseconds, bytes, peak] = fields[..] else { continue };
        let (loss, batch, milliseconds) = (loss.to_owned(), batch.parse()?, milliseconds.parse()?);
        rows.push(Row { loss, world, batch, milliseconds, bytes: bytes.parse()?, peak: peak.parse()? });
    }
    ranks::wait(ranks)?;
    Ok(rows)
}

/// What a rank does.
fn measure(args: &Args) -> Result<()> {
    tch::set_num_threads(1);
    let group = Group::from_env_within(TIMEOUT)?;
    let world = group.world_size();
    for &batch in &args.batches {
        ensure!(batch % world as i64 == 0, "a batch of {batch} cannot be cut into {world} parts of one size");
        for loss in losses(args, world, batch) {
            tch::manual_seed(group.rank() as i64);
            let mut step = (loss.step)(&group);
            step(&group)?;
            let sent = group.sent_bytes();
            step(&group)?;
            let sent = group.sent_bytes() - sent;
            let expected = loss.bytes + loss.calls * (world - 1) * RECORD;
            ensure!(sent == expected as u64, "{} sent {sent} bytes, expected {expected}", loss.name);
            let peak = peak(|| step(&group))?;
            let mut times = vec![];
            for _ in 0..args.steps.max(1) {
                group.f_barrier()?;
                let start = Instant::now();
                step(&group)?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            times.sort_by(f64::total_cmp);
            if group.rank() == 0 {
                println!("{}\t{batch}\t{}\t{sent}\t{peak}", loss.name, times[times.len() / 2]);
            }
        }
    }
    Ok(())
}

/// The most memory that a step has at a time, besides what there was before.
fn peak(mut step: impl FnMut() -> Result<(), LossError>) -> Result<f64> {
    // The peak begins anew: see proc_pid_clear_refs(5). Large blocks go back to the system when they are freed, because
    // `start` asks malloc for it.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = status("VmRSS:")?;
    step()?;
    Ok(status("VmHWM:")? - before)
}

/// The named line of this process's status, in bytes.
fn status(name: &str) -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let kibibytes = text.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"));
    Ok(kibibytes.context("no such line")?.trim().parse::<f64>()? * 1024.0)
}

type Step = Box<dyn FnMut(&Group) -> Result<(), LossError>>;

/// A loss over ranks.
struct Case {
    name: &'static str,
    /// The bytes of tensors that a rank sends in a step, in words and as a number.
    formula: &'static str,
    bytes: usize,
    /// The number of calls of the group in a step.
    calls: usize,
    /// Makes the arguments, and what computes the loss and its gradients.
    step: Box<dyn Fn(&Group) -> Step>,
}

fn losses(args: &Args, world: usize, batch: i64) -> Vec<Case> {
    let (rows, all) = ((batch / world as i64) as usize, batch as usize);
    let (features, classes) = (args.features, args.classes);
    let d = features as usize;
    let sum = |bytes: usize| 2 * (world - 1) * bytes / world;
    let gather = |bytes: usize| (world - 1) * bytes;
    let own_rows = rows as i64;
    let own_classes = classes / world as i64;
    let case =
        |name, formula, bytes, calls, step: Box<dyn Fn(&Group) -> Step>| Case { name, formula, bytes, calls, step };
    let chunks = (batch as usize).div_ceil(CHUNK as usize);
    let of_chunks: usize = (0..chunks)
        .map(|chunk| (all - chunk * CHUNK as usize).min(CHUNK as usize) * FLOAT)
        .map(|b| sum(b) + sum(2 * b))
        .sum();
    vec![
        case(
            "mean of cross entropy",
            "2 A 16",
            2 * sum(16),
            2,
            Box::new(move |_| {
                let (logits, target) = (embeddings(own_rows, features), labels(own_rows).remainder(features));
                Box::new(move |group| {
                    CrossEntropyLoss::new()
                        .f_mean_over_ranks(&logits, &target, group)
                        .and_then(|loss| f_back(&loss, &[&logits]))
                })
            }),
        ),
        case(
            "SupCon",
            "G n (4 D + 8)",
            gather(rows * d * FLOAT) + gather(rows * 8),
            2,
            Box::new(move |_| {
                let (x, target) = (embeddings(own_rows, features), labels(own_rows));
                Box::new(move |group| {
                    SupConLoss::new().f_forward_over_ranks(&x, &target, group).and_then(|loss| f_back(&loss, &[&x]))
                })
            }),
        ),
        case(
            "SupCon of the own anchors",
            "G n (4 D + 8) + A N 4 D",
            gather(rows * d * FLOAT) + gather(rows * 8) + sum(all * d * FLOAT),
            3,
            Box::new(move |_| {
                let (x, target) = (embeddings(own_rows, features), labels(own_rows));
                let loss = SupConLoss::new().reduction(EmbeddingReduction::Sum);
                Box::new(move |group| {
                    let pairs = EmbeddingPairs::f_over_ranks(&target, group)?;
                    let all = group.f_gather_data_parallel(&x)?;
                    f_back(&loss.f_forward_pairs(&x, &pairs, Some(&all))?, &[&x])
                })
            }),
        ),
        case(
            "CLIP",
            "G n 8 D + A N 8 D",
            gather(rows * 2 * d * FLOAT) + sum(all * 2 * d * FLOAT),
            2,
            Box::new(move |_| {
                let [x, y] = [0, 1].map(|_| embeddings(own_rows, features));
                Box::new(move |group| {
                    let loss = ClipLoss::new().f_forward_over_ranks(&x, &y, 10.0, group, GlobalBatch::new())?;
                    f_back(&loss, &[&x, &y])
                })
            }),
        ),
        case(
            "SigLIP of gathered texts",
            "G n 4 D + A N 4 D",
            gather(rows * d * FLOAT) + sum(all * d * FLOAT),
            2,
            Box::new(move |_| {
                let [x, y] = [0, 1].map(|_| embeddings(own_rows, features));
                Box::new(move |group| {
                    f_back(&SigLipLoss::new().f_forward_over_ranks(&x, &y, 10.0, -10.0, group)?, &[&x, &y])
                })
            }),
        ),
        case(
            "SigLIP of neighbours",
            "(3 W - 2) n 4 D for W > 1",
            if world > 1 { (3 * world - 2) * rows * d * FLOAT } else { 0 },
            if world > 1 { 2 * world - 1 } else { 0 },
            Box::new(move |_| {
                let [x, y] = [0, 1].map(|_| embeddings(own_rows, features));
                Box::new(move |group| {
                    f_back(&SigLipLoss::new().f_forward_over_neighbours(&x, &y, 10.0, -10.0, group)?, &[&x, &y])
                })
            }),
        ),
        case(
            "Barlow Twins",
            "A (4 D² + 32 D + 8)",
            sum(8) + 4 * sum(2 * d * FLOAT) + sum(d * d * FLOAT),
            6,
            Box::new(move |_| {
                let [x, y] = [0, 1].map(|_| embeddings(own_rows, features));
                Box::new(move |group| f_back(&BarlowTwinsLoss::new().f_forward_over_ranks(&x, &y, group)?, &[&x, &y]))
            }),
        ),
        case(
            "VICReg",
            "A (8 D² + 32 D + 12)",
            sum(8) + 4 * sum(2 * d * FLOAT) + sum(2 * d * d * FLOAT) + sum(FLOAT),
            7,
            Box::new(move |_| {
                let [x, y] = [0, 1].map(|_| embeddings(own_rows, features));
                Box::new(move |group| f_back(&VicRegLoss::new().f_forward_over_ranks(&x, &y, group)?, &[&x, &y]))
            }),
        ),
        case(
            "DINO and its centre",
            "24 G + A (8 D + 8)",
            gather(24) + sum((d + 1) * 8),
            2,
            Box::new(move |_| {
                let views = [0, 1, 2, 3].map(|_| embeddings(own_rows, features));
                let store = nn::VarStore::new(Device::Cpu);
                let mut criterion = DinoLoss::new(store.root(), features, DinoConfig::new());
                Box::new(move |group| {
                    // The store keeps the centre.
                    let _ = &store;
                    let teacher = [views[0].f_detach()?, views[1].f_detach()?];
                    f_back(&criterion.f_forward_over_ranks(&teacher, &views, group)?, &views.each_ref())?;
                    criterion.f_update_center_over_ranks(&teacher, group)
                })
            }),
        ),
        case(
            "spread classes at once (N rows on each rank)",
            "16 G + A N (4 D + 16)",
            gather(16) + sum(all * FLOAT) + sum(3 * all * FLOAT) + sum(all * d * FLOAT),
            4,
            spread(VocabParallelCrossEntropy::new, batch, features, own_classes),
        ),
        case(
            "spread classes in chunks (N rows on each rank)",
            "16 G + A N (4 D + 12)",
            gather(16) + of_chunks + sum(all * d * FLOAT),
            2 + 2 * chunks,
            spread(|| VocabParallelCrossEntropy::new().chunking(Chunking::Rows(CHUNK)), batch, features, own_classes),
        ),
    ]
}

/// A layer whose classes are spread over ranks. All ranks have the same rows.
fn spread(
    criterion: fn() -> VocabParallelCrossEntropy,
    rows: i64,
    features: i64,
    own_classes: i64,
) -> Box<dyn Fn(&Group) -> Step> {
    Box::new(move |group| {
        let layer = embeddings(own_classes, features);
        tch::manual_seed(0);
        let input = embeddings(rows, features);
        let all = own_classes * group.world_size() as i64;
        let target = Tensor::randint(all, [rows], (Kind::Int64, Device::Cpu));
        Box::new(move |group| {
            f_back(&criterion().f_forward_linear(&input, &layer, &target, None, group)?, &[&input, &layer])
        })
    })
}

fn embeddings(rows: i64, features: i64) -> Tensor {
    Tensor::randn([rows, features], (Kind::Float, Device::Cpu)).set_requires_grad(true)
}

/// Two of each.
fn labels(rows: i64) -> Tensor {
    Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder((rows / 2).clamp(1, 64))
}

/// A backward pass whose gradients nobody keeps.
fn f_back(loss: &Tensor, inputs: &[&Tensor]) -> Result<(), LossError> {
    drop(Tensor::f_run_backward(&[loss], inputs, false, false)?);
    Ok(())
}
