//! Learns embeddings of handwritten digits over several processes, with the supervised contrastive loss.
//!
//! ```sh
//! cargo run --release --features distributed --example distributed_contrastive -- --processes 4
//! cargo run --release --features distributed --example distributed_contrastive -- --processes 1   # the same numbers
//! # On many machines, each of which runs torchrun:
//! torchrun --nproc-per-node 4 --no-python target/release/examples/distributed_contrastive
//! ```
//!
//! Each rank embeds its part of the batch; the loss compares the embeddings of all ranks, so that a rank has as many
//! negatives as one process with the whole batch. The ranks average their gradients, which are then those of one
//! process: the printed losses are the same for any number of processes, up to the order of sums.
//!
//! Where to look: [`train`] is the loop, and [`average_gradients`] is data parallelism.

#[path = "common/ranks.rs"]
mod ranks;

use std::{io::Read, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use flate2::read::MultiGzDecoder;
use tch::{Device, Kind, Tensor, nn, nn::Module, nn::OptimizerConfig};
use tch_losses::distributed::{Group, Reduce};
use tch_losses::{EmbeddingLoss, SupConLoss};

const PIXELS: i64 = 64;
/// The darkest pixel.
const INK: f32 = 16.0;
/// How long a rank waits for the others.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Learns embeddings of handwritten digits over several processes.
#[derive(Parser)]
struct Args {
    /// How many processes this one starts. Without it, it is a rank itself, as torchrun starts it
    #[arg(long)]
    processes: Option<usize>,
    #[arg(long, default_value_t = 10)]
    epochs: i64,
    /// The images in a step, of all ranks together
    #[arg(long, default_value_t = 256)]
    batch: i64,
    #[arg(long, default_value_t = 0)]
    seed: i64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.processes {
        Some(processes) => launch(processes),
        None => train(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the ranks on this machine, with the variables that torchrun sets.
fn launch(processes: usize) -> Result<()> {
    // The options of this process, but for the one that made it a launcher.
    let mut options: Vec<String> = std::env::args().skip(1).collect();
    if let Some(place) = options.iter().position(|option| option == "--processes") {
        options.drain(place..place + 2);
    }
    options.retain(|option| !option.starts_with("--processes="));
    ranks::wait(ranks::start(processes, &options, false)?)
}

fn train(args: &Args) -> Result<()> {
    // Ranks share the cores of the machine.
    tch::set_num_threads(1);
    let group = Group::from_env_within(TIMEOUT)?;
    let world = group.world_size() as i64;
    ensure!(args.batch >= world, "a batch of {} images does not reach {world} ranks", args.batch);
    // All ranks draw the same numbers, and so begin with the same weights and see the same batches.
    tch::manual_seed(args.seed);
    let (images, labels) = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/digits.csv.gz"))?;
    let held_out = images.size()[0] / 5;
    let order = Tensor::randperm(images.size()[0], (Kind::Int64, Device::Cpu));
    let parts = order.split_with_sizes([held_out, images.size()[0] - held_out], 0);
    let store = nn::VarStore::new(Device::Cpu);
    let net = nn::seq()
        .add(nn::linear(store.root() / "hidden", PIXELS, 128, Default::default()))
        .add_fn(Tensor::relu)
        .add(nn::linear(store.root() / "embedding", 128, 32, Default::default()));
    let mut optimizer = nn::Adam::default().build(&store, 1e-3)?;
    let criterion = SupConLoss::new();

    for epoch in 1..=args.epochs {
        let shuffled = parts[1].index_select(0, &Tensor::randperm(parts[1].size()[0], (Kind::Int64, Device::Cpu)));
        let (mut total, mut steps) = (0.0, 0);
        for batch in shuffled.split(args.batch, 0) {
            if batch.size()[0] < world {
                continue;
            }
            // The ranks' parts differ by one image at most.
            let own = batch.tensor_split(world, 0).swap_remove(group.rank());
            let embeddings = net.forward(&images.index_select(0, &own));
            let loss = criterion.f_forward_over_ranks(&embeddings, &labels.index_select(0, &own), &group)?;
            optimizer.zero_grad();
            loss.f_backward()?;
            average_gradients(&store, &group)?;
            optimizer.step();
            total += f64::try_from(&loss)?;
            steps += 1;
        }
        if group.rank() == 0 {
            println!("epoch {epoch:>3}, {world} ranks: loss {:.6}", total / f64::from(steps));
        }
    }
    if group.rank() == 0 {
        let held_out = (images.index_select(0, &parts[0]), labels.index_select(0, &parts[0]));
        println!("recall at 1 on {} held-out images: {:.2} %", held_out.1.size()[0], 100.0 * recall(&net, &held_out)?);
    }
    Ok(())
}

/// Gives every parameter the average of the gradients of all ranks.
fn average_gradients(store: &nn::VarStore, group: &Group) -> Result<()> {
    let gradients: Vec<Tensor> = store.trainable_variables().iter().map(Tensor::grad).collect();
    // One call for all of them.
    let flat = Tensor::f_cat(&gradients.iter().map(|gradient| gradient.flatten(0, -1)).collect::<Vec<_>>(), 0)?;
    let average = group.f_all_reduce(&flat, Reduce::Sum)? / group.world_size() as f64;
    let sizes: Vec<i64> = gradients.iter().map(|gradient| gradient.numel() as i64).collect();
    for (mut gradient, average) in gradients.into_iter().zip(average.split_with_sizes(sizes, 0)) {
        gradient.f_copy_(&average.view_as(&gradient))?;
    }
    Ok(())
}

/// How often the nearest other image has the same class.
fn recall(net: &impl Module, (images, labels): &(Tensor, Tensor)) -> Result<f64> {
    let unit = tch::no_grad(|| {
        let embeddings = net.forward(images);
        &embeddings / embeddings.norm_scalaropt_dim(2, [1], true)
    });
    let mut similarities = unit.matmul(&unit.transpose(0, 1));
    let nearest = similarities.fill_diagonal_(-2, false).argmax(1, false);
    Ok(f64::try_from(labels.index_select(0, &nearest).eq_tensor(labels).to_kind(Kind::Double).mean(None))?)
}

/// The images, from 0 (no ink) to 1, and their classes, in the format that `examples/data/README.md` describes.
fn read(path: &Path) -> Result<(Tensor, Tensor)> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut text = String::new();
    MultiGzDecoder::new(file).read_to_string(&mut text)?;
    let numbers = text.lines().flat_map(|line| line.split(',')).map(str::parse::<f32>);
    let numbers = Tensor::from_slice(&numbers.collect::<Result<Vec<_>, _>>()?).view([-1, PIXELS + 1]);
    Ok((numbers.narrow(1, 0, PIXELS) / f64::from(INK), numbers.select(1, PIXELS).to_kind(Kind::Int64)))
}
