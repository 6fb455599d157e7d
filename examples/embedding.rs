//! Trains a net that maps images of two-digit numbers to points of a sphere, so that those of one number are near each
//! other: also of numbers that it never saw.
//!
//! ```sh
//! cargo run --release --example embedding                        # supervised contrastive
//! cargo run --release --example embedding -- --loss all          # each loss, as a table
//! cargo run --release --example embedding -- --loss-file examples/embedding.toml
//! cargo run --release --example embedding -- --help
//! ```
//!
//! The digits are real ones, and stand a little higher or lower on a noisy canvas, so that pixels say little. The net
//! learns from two thirds of the numbers from 00 to 99, and is judged by the other third, written with digits that were
//! held out. For each of those images the nearest other one is looked up; recall at 1 is how often that is of the same
//! number.
//!
//! Where to look: [`LossName::criterion`] has the losses with their options, [`recall_at_1`] is the search.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum, value_parser};
use common::args::{CommonArgs, DataArgs, chosen, read_loss, typed};
use common::canvas;
use common::digits::{CLASSES, Digits, SIDE};
use common::layers::{same_size, unit};
use common::plot;
use common::training::{Curve, Plan, train};
use tch::nn::ModuleT;
use tch::{Kind, Tensor, nn};
use tch_losses::{ArcFace, ArcFaceLoss, BatchTripletMarginLoss, Loss, MultiSimilarityLoss, SupConLoss, TripletMining};

/// The numbers from 00 to 99.
const NUMBERS: i64 = 100;
/// A canvas has the height and the width of two digits, and some room.
const HEIGHT: i64 = 12;
const WIDTH: i64 = 20;
/// The canvases that judge.
const HELD_OUT: i64 = 600;
/// The numbers in the picture.
const SHOWN: usize = 10;
/// The numbers of an embedding.
const FEATURES: i64 = 32;
/// Large enough for several images of each number, which losses of pairs need.
const BATCH_SIZE: i64 = 256;
const LEARNING_RATE: f64 = 2e-3;

fn main() -> ExitCode {
    common::end(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    common::use_one_core();
    let device = args.common.device()?;
    let (training, held_out) = args.data.digits()?;
    // The canvases are the same ones for every seed, as the held-out digits are.
    let (training, held_out) = (written(&training, args.canvases, true, 1)?, written(&held_out, HELD_OUT, false, 2)?);
    let (training, held_out) = (training.to_device(device), held_out.to_device(device));
    println!("device {device:?}, {} canvases to learn from, {} of other numbers", training.len(), held_out.len());
    let pixels = recall_at_1(&held_out.images.flatten(1, -1), &held_out.classes)?;
    println!("{:<20} recall at 1 {pixels:.3}: the nearest image without any net", "pixels");

    let mut curves = Vec::new();
    for (name, loss) in args.losses() {
        let start = Instant::now();
        let (net, curve) = train_with(&name, &loss, args, &training, &held_out)?;
        println!("{name:<20} recall at 1 {:.3}, {:.1} s", curve.last_score(), start.elapsed().as_secs_f64());
        draw(&net, &held_out, &name, args)?;
        curves.push(curve);
    }
    plot::curves(&curves, "recall at 1 of unseen numbers", &args.common.picture("embedding.svg")?)
}

// ---------------------------------------------------------------------------------------------------------------------
// The losses
// ---------------------------------------------------------------------------------------------------------------------

/// The losses of embeddings `[n, d]` and labels `[n]`.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum LossName {
    /// Each of the others, one after the other
    All,
    /// SupConLoss: all pairs of a number against all other pairs
    SupCon,
    /// BatchTripletMarginLoss of all triplets whose negative is not farther than the positive by the margin
    TripletAll,
    /// BatchTripletMarginLoss of all triplets whose negative is farther than the positive, by less than the margin
    TripletSemiHard,
    /// MultiSimilarityLoss: pairs that are hard against the others count most
    MultiSimilarity,
    /// ArcFaceLoss: a vector for each number, at an angle that is smaller by a margin
    ArcFace,
}

/// What to train with.
enum Chosen {
    Name(LossName),
    File(PathBuf),
}

impl Chosen {
    /// Without a batch norm all embeddings begin near one point of the sphere. Losses of a margin lead away from there
    /// slowly, or stay; those that compare each pair with all others learn more without it.
    fn needs_norm(&self) -> bool {
        matches!(self, Self::Name(LossName::TripletAll | LossName::TripletSemiHard | LossName::ArcFace))
    }

    /// A loss with variables of its own makes them on `path`, so that they are trained, too.
    fn criterion(&self, path: &nn::Path) -> Result<Box<dyn Loss>> {
        let triplets = BatchTripletMarginLoss::new().margin(0.2);
        let arc_face = ArcFace::new().margin(10.0).scale(16.0);
        Ok(match self {
            Self::File(file) => Box::new(read_loss(file, path.device())?),
            Self::Name(LossName::All | LossName::SupCon) => Box::new(SupConLoss::new().temperature(0.1)),
            // The hardest triplets alone (BatchHard) would draw all images to one point, from which nothing leads away.
            Self::Name(LossName::TripletAll) => Box::new(triplets.mining(TripletMining::All)),
            Self::Name(LossName::TripletSemiHard) => Box::new(triplets.mining(TripletMining::SemiHard)),
            Self::Name(LossName::MultiSimilarity) => Box::new(MultiSimilarityLoss::new()),
            Self::Name(LossName::ArcFace) => {
                let arc_face = ArcFaceLoss::f_new(path / "arc_face", NUMBERS, FEATURES, arc_face)?;
                // Only the directions of the vectors count, and short ones turn faster at the same learning rate.
                let _ = tch::no_grad(|| arc_face.weight().shallow_clone().g_mul_scalar_(0.05));
                Box::new(arc_face)
            }
        })
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The net and its training
// ---------------------------------------------------------------------------------------------------------------------

/// Embeddings of length 1, with a batch norm before that where the loss needs one.
fn net(path: &nn::Path, is_normed: bool) -> nn::SequentialT {
    let net = nn::seq_t()
        .add(nn::conv2d(path / "conv1", 1, 32, 3, same_size(3)))
        .add_fn(Tensor::relu)
        .add(nn::conv2d(path / "conv2", 32, 64, 3, same_size(3)))
        .add_fn(|images| images.relu().max_pool2d_default(2))
        .add(nn::conv2d(path / "conv3", 64, 64, 3, same_size(3)))
        .add_fn(|images| images.relu().max_pool2d_default(2).flatten(1, -1))
        .add(nn::linear(path / "linear", 64 * (HEIGHT / 4) * (WIDTH / 4), FEATURES, Default::default()));
    match is_normed {
        true => net.add(nn::batch_norm1d(path / "norm", FEATURES, Default::default())).add_fn(unit),
        false => net.add_fn(unit),
    }
}

fn train_with(
    name: &str,
    loss: &Chosen,
    args: &Args,
    training: &Digits,
    held_out: &Digits,
) -> Result<(nn::SequentialT, Curve)> {
    tch::manual_seed(args.common.seed);
    let variables = nn::VarStore::new(training.images.device());
    let net = net(&(variables.root() / "net"), loss.needs_norm());
    let criterion = loss.criterion(&variables.root())?;
    let plan = Plan {
        name: name.to_owned(),
        epochs: args.common.epochs,
        samples: training.len(),
        batch_size: BATCH_SIZE,
        lr: LEARNING_RATE,
    };
    let step = |batch: &Tensor| {
        let digits = training.select(&batch.to_device(training.images.device()));
        Ok(criterion.f_forward(&net.forward_t(&digits.images, true), &digits.classes)?)
    };
    let curve =
        train(&plan, &variables, step, || recall_at_1(&net.forward_t(&held_out.images, false), &held_out.classes))?;
    Ok((net, curve))
}

/// How often the nearest other image is of the same digit.
fn recall_at_1(embeddings: &Tensor, classes: &Tensor) -> Result<f64> {
    let distances = Tensor::cdist(embeddings, embeddings, 2.0, None);
    // An image is not its own neighbour.
    let itself = Tensor::eye(classes.size()[0], (Kind::Bool, classes.device()));
    let nearest = distances.masked_fill(&itself, f64::INFINITY).argmin(1, false);
    let right = classes.index_select(0, &nearest).eq_tensor(classes);
    Ok(f64::try_from(right.to_kind(Kind::Double).mean(Kind::Double))?)
}

/// Draws the embeddings of some unseen numbers in the plane in which they are spread most.
fn draw(net: &nn::SequentialT, numbers: &Digits, name: &str, args: &Args) -> Result<()> {
    let shown: Vec<i64> = (0..NUMBERS).filter(|&number| !is_seen(number)).step_by(3).take(SHOWN).collect();
    let numbers = numbers.of_classes(&shown);
    let embeddings = tch::no_grad(|| net.forward_t(&numbers.images, false)).to_kind(Kind::Double);
    let centred = &embeddings - embeddings.mean_dim(0, true, Kind::Double);
    // The directions of the greatest variance are the last columns.
    let (_, directions) = centred.transpose(0, 1).matmul(&centred).linalg_eigh("L");
    let plane = Vec::<f64>::try_from(centred.matmul(&directions.narrow(1, FEATURES - 2, 2)).flatten(0, 1))?;
    let points: Vec<(f64, f64)> = plane.chunks_exact(2).map(|at| (at[1], at[0])).collect();
    let classes = Vec::<i64>::try_from(&numbers.classes)?;
    let title = format!("{name}: numbers that the net never saw");
    plot::points(&points, &classes, &title, &args.common.picture(&format!("embedding-{name}.svg"))?)
}

/// Whether a number is one to learn from.
fn is_seen(number: i64) -> bool {
    (number / 10 + number % 10) % 3 > 0
}

/// Writes seen or unseen numbers with digits of chance, as images `[n, 1, 12, 20]`.
fn written(digits: &Digits, count: i64, seen: bool, seed: u64) -> Result<Digits> {
    let mut random = fastrand::Rng::with_seed(seed);
    tch::manual_seed(seed as i64);
    let numbers: Vec<i64> = (0..NUMBERS).filter(|&number| is_seen(number) == seen).collect();
    let of_class: Vec<Tensor> = (0..CLASSES).map(|class| digits.of_classes(&[class]).images).collect();
    ensure!(of_class.iter().all(|images| images.size()[0] > 0), "the data lack images of a digit");
    let images = canvas::noise([count, HEIGHT, WIDTH]);
    let mut classes = Vec::new();
    for at in 0..count {
        let number = numbers[random.usize(0..numbers.len())];
        for (digit, left) in [(number / 10, 0), (number % 10, WIDTH / 2)] {
            let like = &of_class[digit as usize];
            let image = like.get(random.i64(0..like.size()[0])).get(0);
            let place = [random.i64(0..=HEIGHT - SIDE), left + random.i64(0..=WIDTH / 2 - SIDE)];
            canvas::paste(&images.get(at).get(0), &image, place);
        }
        classes.push(number);
    }
    Ok(Digits { images, classes: Tensor::from_slice(&classes) })
}

// ---------------------------------------------------------------------------------------------------------------------
// The command line
// ---------------------------------------------------------------------------------------------------------------------

/// Train a net that maps images of one number to near points, with a loss of your choice.
#[derive(Parser)]
#[command(name = "embedding", after_help = EXAMPLES)]
struct Args {
    /// The loss to train with; several are trained one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "sup-con")]
    loss: Vec<LossName>,

    /// A file that describes the loss, in TOML or, if it ends in .json, in JSON; it takes embeddings and labels
    #[arg(long, value_name = "FILE", conflicts_with = "loss")]
    loss_file: Option<PathBuf>,

    /// How many canvases to learn from
    #[arg(long, default_value_t = 4000, value_parser = value_parser!(i64).range(1..=100_000))]
    #[arg(allow_negative_numbers = true)]
    canvases: i64,

    #[command(flatten)]
    data: DataArgs,

    #[command(flatten)]
    common: CommonArgs<12>,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release --example embedding
  cargo run --release --example embedding -- --loss triplet-all,arc-face
  cargo run --release --example embedding -- --loss all --epochs 10
  cargo run --release --example embedding -- --loss-file examples/embedding.toml";

impl Args {
    /// The losses to train with, and their names.
    fn losses(&self) -> Vec<(String, Chosen)> {
        if let Some(path) = &self.loss_file {
            return vec![("file".to_owned(), Chosen::File(path.clone()))];
        }
        let names = chosen(&self.loss, LossName::All).into_iter();
        names.map(|name| (typed(name), Chosen::Name(name))).collect()
    }
}
