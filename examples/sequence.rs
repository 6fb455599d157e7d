//! Trains a net to read rows of handwritten digits, from the rows and what is written there, not where.
//!
//! ```sh
//! cargo run --release --example sequence
//! cargo run --release --example sequence -- --loss ctc-sum --epochs 10
//! cargo run --release --example sequence -- --loss-file examples/sequence.toml
//! cargo run --release --example sequence -- --help
//! ```
//!
//! A row has three to six real digits with gaps of chance, on a noisy canvas. The net says for each second column of
//! pixels which digit it sees or that it sees none (the blank); the CTC loss sums up over all ways in which the columns
//! can spell the digits. The result is the share of held-out rows that are read wrongly, and the edit distance per
//! digit.
//!
//! Where to look: [`Rows`] has the data as the loss takes them, [`read`] makes digits of columns.

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum, value_parser};
use common::args::{CommonArgs, DataArgs, chosen, read_description, typed};
use common::canvas;
use common::digits::{self, Digits};
use common::layers::block;
use common::picture::{self, RED, enlarged, grey, tinted};
use common::plot;
use common::training::{Curve, Plan, train};
use tch::nn::ModuleT;
use tch::{Device, Kind, Tensor, nn};
use tch_losses::{CtcLoss, Reduction};

/// Class 0 is the blank, digit d is class d + 1.
const CLASSES: i64 = digits::CLASSES + 1;
const HEIGHT: i64 = 12;
const WIDTH: i64 = 64;
/// The digits of a row.
const FEWEST: usize = 3;
const MOST: usize = 6;
/// The columns that the net answers for.
const STEPS: i64 = WIDTH / 2;
const BATCH_SIZE: i64 = 32;
const LEARNING_RATE: f64 = 3e-3;
/// The rows in the picture.
const SHOWN: i64 = 6;

fn main() -> ExitCode {
    common::end(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    common::use_one_core();
    let device = args.common.device()?;
    let (training, held_out) = args.data.digits()?;
    let glyphs = glyphs(&training);
    // The rows are the same ones for every seed, as the held-out digits are.
    let (training, held_out) = (Rows::of(&training, args.rows, 1), Rows::of(&held_out, 300, 2));
    let (training, held_out) = (training.to_device(device), held_out.to_device(device));
    println!("device {device:?}, {} rows to learn from, {} held out", training.len(), held_out.len());

    let mut curves = Vec::new();
    for (name, criterion) in args.criteria()? {
        let start = Instant::now();
        let (net, curve) = train_with(&name, &criterion, args, &training, &held_out)?;
        let errors = tch::no_grad(|| Errors::count(&net, &held_out))?;
        println!("{name:<8} {errors}, {:.1} s", start.elapsed().as_secs_f64());
        draw(&net, &held_out, &glyphs, &args.common.picture(&format!("sequence-{name}.png"))?)?;
        curves.push(curve);
    }
    plot::curves(&curves, "share of held-out rows read wrongly", &args.common.picture("sequence.svg")?)
}

// ---------------------------------------------------------------------------------------------------------------------
// The losses
// ---------------------------------------------------------------------------------------------------------------------

/// The reductions of the CTC loss.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum LossName {
    /// Each of the others, one after the other
    All,
    /// CtcLoss, as PyTorch takes the mean: each row's loss is divided by its length
    Ctc,
    /// CtcLoss summed up: a long row counts more than a short one
    CtcSum,
}

impl LossName {
    fn criterion(self) -> CtcLoss {
        // A row too long for its columns would cost infinitely much; there is none, but data of your own may have one.
        let ctc = CtcLoss::new().zero_infinity(true);
        if self == Self::CtcSum { ctc.reduction(Reduction::Sum) } else { ctc }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The net and its training
// ---------------------------------------------------------------------------------------------------------------------

/// Convolutions down to a height of 1, and two along the row, so that a column knows what is beside it.
fn reader(path: &nn::Path) -> nn::SequentialT {
    let column = nn::ConvConfigND::<[i64; 2]>::default();
    let along = nn::ConvConfigND::<[i64; 2]> { padding: [0, 2], ..Default::default() };
    nn::seq_t()
        .add(block(&(path / "block1"), 1, 24))
        .add_fn(|rows| rows.max_pool2d_default(2))
        .add(block(&(path / "block2"), 24, 48))
        .add_fn(|rows| rows.max_pool2d([2, 1], [2, 1], [0, 0], [1, 1], false))
        .add(nn::conv(path / "column", 48, 64, [HEIGHT / 2 / 2, 1], column))
        .add_fn(Tensor::relu)
        .add(nn::conv(path / "row1", 64, 64, [1, 5], along))
        .add_fn(Tensor::relu)
        .add(nn::conv(path / "row2", 64, CLASSES, [1, 5], along))
        // From [n, classes, 1, steps] to PyTorch's order for CTC: [steps, n, classes].
        .add_fn(|logits| logits.squeeze_dim(2).permute([2, 0, 1]).log_softmax(2, Kind::Float))
}

fn train_with(
    name: &str,
    criterion: &CtcLoss,
    args: &Args,
    training: &Rows,
    held_out: &Rows,
) -> Result<(nn::SequentialT, Curve)> {
    tch::manual_seed(args.common.seed);
    let variables = nn::VarStore::new(training.images.device());
    let net = reader(&variables.root());
    let plan = Plan {
        name: name.to_owned(),
        epochs: args.common.epochs,
        samples: training.len(),
        batch_size: BATCH_SIZE,
        // Adam's steps are of one length, whatever the scale of the loss.
        lr: LEARNING_RATE,
    };
    let step = |batch: &Tensor| {
        let rows = training.select(batch)?;
        let log_probs = net.forward_t(&rows.images, true);
        Ok(criterion.f_forward(&log_probs, &rows.targets, vec![STEPS; rows.lengths.len()], &rows.lengths)?)
    };
    let curve = train(&plan, &variables, step, || Ok(Errors::count(&net, held_out)?.wrong_rows()))?;
    Ok((net, curve))
}

/// What the net reads in each row: the best class of each column, those that repeat taken once, without the blanks.
fn read(net: &nn::SequentialT, images: &Tensor) -> Result<Vec<Vec<i64>>> {
    let best = net.forward_t(images, false).argmax(2, false).transpose(0, 1);
    let rows = Vec::<i64>::try_from(best.contiguous().view(-1))?;
    let spelled = |columns: &[i64]| {
        let mut classes = columns.to_vec();
        classes.dedup();
        classes.into_iter().filter(|&class| class > 0).map(|class| class - 1).collect()
    };
    Ok(rows.chunks_exact(STEPS as usize).map(spelled).collect())
}

/// How well rows were read.
struct Errors {
    rows: usize,
    wrong: usize,
    digits: usize,
    edits: usize,
}

impl Errors {
    fn count(net: &nn::SequentialT, rows: &Rows) -> Result<Self> {
        let mut errors = Self { rows: 0, wrong: 0, digits: 0, edits: 0 };
        for (actual, expected) in read(net, &rows.images)?.iter().zip(rows.digits()?) {
            let edits = edit_distance(actual, &expected);
            errors.rows += 1;
            errors.wrong += usize::from(edits > 0);
            errors.digits += expected.len();
            errors.edits += edits;
        }
        Ok(errors)
    }

    fn wrong_rows(&self) -> f64 {
        self.wrong as f64 / self.rows as f64
    }
}

impl std::fmt::Display for Errors {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole as f64;
        let (rows, digits) = (percent(self.wrong, self.rows), percent(self.edits, self.digits));
        write!(f, "{rows:.1} % of the rows wrong ({} of {}), {digits:.2} edits per 100 digits", self.wrong, self.rows)
    }
}

/// How many digits have to be inserted, left out or replaced to make one of the other (Levenshtein).
fn edit_distance(one: &[i64], other: &[i64]) -> usize {
    let mut distances: Vec<usize> = (0..=other.len()).collect();
    for (row, a) in one.iter().enumerate() {
        let mut diagonal = distances[0];
        distances[0] = row + 1;
        for (column, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = distances[column + 1];
            distances[column + 1] = replaced.min(diagonal + 1).min(distances[column] + 1);
        }
    }
    distances[other.len()]
}

/// Draws rows, and under each what was read: in green where it is right, in red otherwise.
fn draw(net: &nn::SequentialT, rows: &Rows, glyphs: &Tensor, file: &Path) -> Result<()> {
    let images = rows.images.narrow(0, 0, SHOWN);
    let mut tiles = Vec::new();
    for (at, (actual, expected)) in tch::no_grad(|| read(net, &images))?.iter().zip(rows.digits()?).enumerate() {
        let line = Tensor::zeros([HEIGHT, WIDTH], (Kind::Float, Device::Cpu));
        for (place, &digit) in actual.iter().take(MOST + 1).enumerate() {
            canvas::paste(&line, &glyphs.get(digit), [2, 9 * place as i64]);
        }
        let colour = if *actual == expected { picture::GREEN } else { RED };
        let row = enlarged(&grey(&images.get(at as i64).get(0)), 3);
        tiles.push(vec![row, enlarged(&tinted(&grey(&line), colour), 3)]);
    }
    picture::save_tiles(&tiles, file)
}

/// The mean image of each digit, `[10, 8, 8]`, to write with.
fn glyphs(digits: &Digits) -> Tensor {
    let means: Vec<Tensor> = (0..digits::CLASSES)
        .map(|class| digits.of_classes(&[class]).images.mean_dim(&[0, 1][..], false, Kind::Float))
        .collect();
    Tensor::stack(&means, 0)
}

// ---------------------------------------------------------------------------------------------------------------------
// The data
// ---------------------------------------------------------------------------------------------------------------------

/// Rows of digits.
struct Rows {
    /// Shape `[n, 1, 12, 64]`.
    images: Tensor,
    /// The classes of each row, padded with 0: `[n, 6]`. They stay on the CPU, where the loss looks at them.
    targets: Tensor,
    /// How many digits each row has.
    lengths: Vec<i64>,
}

impl Rows {
    /// Puts digits side by side. They may touch, and stand higher and lower.
    fn of(digits: &Digits, count: i64, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        tch::manual_seed(seed as i64);
        let images = canvas::noise([count, HEIGHT, WIDTH]);
        let (mut targets, mut lengths) = (Vec::new(), Vec::new());
        for row in 0..count {
            let length = random.usize(FEWEST..=MOST);
            let mut free = WIDTH - digits::SIDE * length as i64;
            let (mut left, mut classes) = (0, [0; MOST]);
            for class in &mut classes[..length] {
                let gap = random.i64(0..=free.min(5));
                (free, left) = (free - gap, left + gap);
                let chosen = random.i64(0..digits.len());
                let top = random.i64(0..=HEIGHT - digits::SIDE);
                canvas::paste(&images.get(row).get(0), &digits.images.get(chosen).get(0), [top, left]);
                *class = digits.classes.int64_value(&[chosen]) + 1;
                left += digits::SIDE;
            }
            targets.extend(classes);
            lengths.push(length as i64);
        }
        Self { images, targets: Tensor::from_slice(&targets).view([count, MOST as i64]), lengths }
    }

    fn len(&self) -> i64 {
        self.lengths.len() as i64
    }

    fn to_device(&self, device: Device) -> Self {
        let targets = self.targets.shallow_clone();
        Self { images: self.images.to_device(device), targets, lengths: self.lengths.clone() }
    }

    fn select(&self, indices: &Tensor) -> Result<Self> {
        let images = self.images.index_select(0, &indices.to_device(self.images.device()));
        let lengths = Vec::<i64>::try_from(indices)?.into_iter().map(|row| self.lengths[row as usize]).collect();
        Ok(Self { images, targets: self.targets.index_select(0, indices), lengths })
    }

    /// The digits of each row.
    fn digits(&self) -> Result<Vec<Vec<i64>>> {
        let classes = Vec::<i64>::try_from(self.targets.view(-1))?;
        let rows = classes.chunks_exact(MOST).zip(&self.lengths);
        Ok(rows.map(|(row, &length)| row[..length as usize].iter().map(|class| class - 1).collect()).collect())
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The command line
// ---------------------------------------------------------------------------------------------------------------------

/// Train a net to read rows of handwritten digits, with the CTC loss.
#[derive(Parser)]
#[command(name = "sequence", after_help = EXAMPLES)]
struct Args {
    /// The loss to train with; several are trained one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "ctc")]
    loss: Vec<LossName>,

    /// A file with the options of CtcLoss, in TOML or, if it ends in .json, in JSON
    #[arg(long, value_name = "FILE", conflicts_with = "loss")]
    loss_file: Option<PathBuf>,

    /// How many rows to learn from
    #[arg(long, default_value_t = 3000, value_parser = value_parser!(i64).range(1..=100_000))]
    #[arg(allow_negative_numbers = true)]
    rows: i64,

    #[command(flatten)]
    data: DataArgs,

    #[command(flatten)]
    common: CommonArgs<12>,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release --example sequence
  cargo run --release --example sequence -- --loss all --epochs 8
  cargo run --release --example sequence -- --loss-file examples/sequence.toml";

impl Args {
    /// The losses to train with, and their names.
    fn criteria(&self) -> Result<Vec<(String, CtcLoss)>> {
        if let Some(path) = &self.loss_file {
            return Ok(vec![("file".to_owned(), read_description(path)?)]);
        }
        let names = chosen(&self.loss, LossName::All).into_iter();
        Ok(names.map(|name| (typed(name), name.criterion())).collect())
    }
}
