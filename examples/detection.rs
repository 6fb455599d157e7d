//! Trains a small dense detector: where on a noisy canvas is the digit, as a box.
//!
//! ```sh
//! cargo run --release --example detection                          # complete IoU
//! cargo run --release --example detection -- --loss all            # each loss of boxes, as a table
//! cargo run --release --example detection -- --loss-file examples/detection.toml
//! cargo run --release --example detection -- --help
//! ```
//!
//! As in Generalized Focal Loss, each cell of a grid says where the edges of the box around it are, and how well that
//! box will fit. The quality focal loss teaches the latter: its target is the IoU of the cell's own box. The box of the
//! best score is the prediction, and the result its mean IoU with the truth on held-out canvases.
//!
//! Where to look: [`LossName::criterion`] has the losses of boxes, [`loss`] puts both losses together.

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum, value_parser};
use common::args::{CommonArgs, DataArgs, chosen, read_loss, typed};
use common::canvas;
use common::digits::Digits;
use common::layers::{block, same_size};
use common::picture::{self, GREEN, RED, enlarged, grey, outline};
use common::plot;
use common::training::{Curve, Plan, train};
use tch::nn::ModuleT;
use tch::{Device, Kind, Tensor, nn};
use tch_losses::{
    CompleteBoxIouLoss, DistanceBoxIouLoss, Divisor, GeneralizedBoxIouLoss, Loss, QualityFocalLoss, Reduction,
    SmoothL1Loss,
};

/// The canvases are 48 × 48.
const SIDE: i64 = 48;
/// The pixels of a cell's side.
const STRIDE: i64 = 8;
/// The cells of a row.
const CELLS: i64 = SIDE / STRIDE;
const BATCH_SIZE: i64 = 32;
const LEARNING_RATE: f64 = 2e-3;
/// What the loss of boxes counts, where that of scores counts 1.
const BOX_WEIGHT: f64 = 2.0;
/// The canvases in the picture.
const SHOWN: i64 = 8;

fn main() -> ExitCode {
    common::end(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    common::use_one_core();
    let device = args.common.device()?;
    let (training, held_out) = args.data.digits()?;
    // The canvases are the same ones for every seed, as the held-out digits are.
    let (training, held_out) = (Scenes::of(&training, args.canvases, 1), Scenes::of(&held_out, 300, 2));
    let (training, held_out) = (training.to_device(device), held_out.to_device(device));
    println!("device {device:?}, {} canvases to learn from, {} held out", training.len(), held_out.len());

    let mut curves = Vec::new();
    for (name, criterion) in args.criteria(device)? {
        let start = Instant::now();
        let (net, curve) = train_with(&name, criterion.as_ref(), args, &training, &held_out)?;
        println!("{name:<20} mean IoU {:.3}, {:.1} s", curve.last_score(), start.elapsed().as_secs_f64());
        draw(&net, &held_out, &args.common.picture(&format!("detection-{name}.png"))?)?;
        curves.push(curve);
    }
    plot::curves(&curves, "mean IoU on held-out canvases", &args.common.picture("detection.svg")?)
}

// ---------------------------------------------------------------------------------------------------------------------
// The losses
// ---------------------------------------------------------------------------------------------------------------------

/// The losses of predicted and true boxes `[n, 4]`, given by corners in pixels.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum LossName {
    /// Each of the others, one after the other
    All,
    /// GeneralizedBoxIouLoss: the IoU, and how much of the box around both is of neither
    Giou,
    /// DistanceBoxIouLoss: the IoU, and the distance of the centres
    Diou,
    /// CompleteBoxIouLoss: the same, and the aspect ratios
    Ciou,
    /// SmoothL1Loss of the corners, which knows nothing of boxes
    SmoothL1,
}

impl LossName {
    /// torchvision's losses of boxes are not reduced by default.
    fn criterion(self) -> Box<dyn Loss> {
        match self {
            Self::Giou => Box::new(GeneralizedBoxIouLoss::new().reduction(Reduction::Mean)),
            Self::Diou => Box::new(DistanceBoxIouLoss::new().reduction(Reduction::Mean)),
            Self::Ciou | Self::All => Box::new(CompleteBoxIouLoss::new().reduction(Reduction::Mean)),
            Self::SmoothL1 => Box::new(SmoothL1Loss::new()),
        }
    }
}

/// The loss of the boxes of the cells inside the true boxes, and of the scores of all cells.
fn loss(criterion: &dyn Loss, predicted: &Predicted, truth: &Tensor) -> Result<Tensor> {
    let each = truth.unsqueeze(1).expand_as(&predicted.boxes);
    let centres = centres(truth.device());
    let (low, high) = (truth.narrow(1, 0, 2).unsqueeze(1), truth.narrow(1, 2, 2).unsqueeze(1));
    let inside = centres.gt_tensor(&low).logical_and(&centres.lt_tensor(&high)).all_dim(2, false);
    // The score of a cell is how well its box fits, and 0 outside of the digit.
    let quality = iou(&predicted.boxes, &each).detach() * inside.to_kind(Kind::Float);
    let scores = QualityFocalLoss::new().divisor(Divisor::Positives).f_forward(&predicted.scores, &quality)?;

    let positives = inside.flatten(0, 1).nonzero().squeeze_dim(1);
    let rows = |boxes: &Tensor| boxes.reshape([-1, 4]).index_select(0, &positives);
    Ok(criterion.f_forward(&rows(&predicted.boxes), &rows(&each))? * BOX_WEIGHT + scores)
}

/// The IoU of boxes with boxes, `[…, 4]` each.
fn iou(one: &Tensor, other: &Tensor) -> Tensor {
    let side = |low: &Tensor, high: &Tensor, axis: i64| high.select(-1, axis + 2) - low.select(-1, axis);
    let area = |corners: &Tensor| side(corners, corners, 0) * side(corners, corners, 1);
    let (low, high) = (one.maximum(other), one.minimum(other));
    let both = side(&low, &high, 0).clamp_min(0.0) * side(&low, &high, 1).clamp_min(0.0);
    &both / (area(one) + area(other) - &both)
}

// ---------------------------------------------------------------------------------------------------------------------
// The net and its training
// ---------------------------------------------------------------------------------------------------------------------

/// What the cells say: the score as a logit, `[n, cells]`, and the corners of the box, `[n, cells, 4]`.
struct Predicted {
    scores: Tensor,
    boxes: Tensor,
}

/// Three blocks, each at half the resolution of the one before, and two layers that see the neighbouring cells.
fn detector(path: &nn::Path) -> nn::SequentialT {
    nn::seq_t()
        .add(block(&(path / "block1"), 1, 16))
        .add_fn(|images| images.max_pool2d_default(2))
        .add(block(&(path / "block2"), 16, 32))
        .add_fn(|images| images.max_pool2d_default(2))
        .add(block(&(path / "block3"), 32, 48))
        .add_fn(|images| images.max_pool2d_default(2))
        .add(block(&(path / "block4"), 48, 64))
        .add(nn::conv2d(path / "head", 64, 5, 3, same_size(3)))
}

fn predict(net: &nn::SequentialT, images: &Tensor, train: bool) -> Predicted {
    let output = net.forward_t(images, train).flatten(2, 3).transpose(1, 2);
    // Above 0: how far the left, top, right and bottom edges are from the centre of the cell.
    let distances = output.narrow(2, 1, 4).softplus() * STRIDE as f64;
    let (low, high) = (distances.narrow(2, 0, 2), distances.narrow(2, 2, 2));
    let centres = centres(images.device());
    Predicted { scores: output.select(2, 0), boxes: Tensor::cat(&[&centres - low, &centres + high], 2) }
}

/// The centres of the cells in pixels, `[1, cells, 2]`.
fn centres(device: Device) -> Tensor {
    let along = (Tensor::arange(CELLS, (Kind::Float, device)) + 0.5) * STRIDE as f64;
    let grid = Tensor::meshgrid_indexing(&[&along, &along], "xy");
    Tensor::stack(&grid, -1).view([1, -1, 2])
}

fn train_with(
    name: &str,
    criterion: &dyn Loss,
    args: &Args,
    training: &Scenes,
    held_out: &Scenes,
) -> Result<(nn::SequentialT, Curve)> {
    tch::manual_seed(args.common.seed);
    let variables = nn::VarStore::new(training.images.device());
    let net = detector(&variables.root());
    let plan = Plan {
        name: name.to_owned(),
        epochs: args.common.epochs,
        samples: training.len(),
        batch_size: BATCH_SIZE,
        lr: LEARNING_RATE,
    };
    let step = |batch: &Tensor| {
        let scenes = training.select(batch);
        loss(criterion, &predict(&net, &scenes.images, true), &scenes.boxes)
    };
    let curve = train(&plan, &variables, step, || {
        Ok(f64::try_from(iou(&best_boxes(&net, &held_out.images), &held_out.boxes).mean(Kind::Double))?)
    })?;
    Ok((net, curve))
}

/// The box of the best score on each canvas, `[n, 4]`.
fn best_boxes(net: &nn::SequentialT, images: &Tensor) -> Tensor {
    let predicted = predict(net, images, false);
    let best = predicted.scores.argmax(1, true).unsqueeze(2).expand([-1, 1, 4], false);
    predicted.boxes.gather(1, &best, false).squeeze_dim(1)
}

/// Draws the true boxes green, the predicted ones red.
fn draw(net: &nn::SequentialT, scenes: &Scenes, file: &Path) -> Result<()> {
    const FACTOR: i64 = 2;
    let predicted = tch::no_grad(|| best_boxes(net, &scenes.images.narrow(0, 0, SHOWN)));
    let corners = |boxes: &Tensor, at: i64| -> Result<[f64; 4]> {
        let corners = Vec::<f64>::try_from(boxes.get(at).to_kind(Kind::Double))?;
        Ok([0, 1, 2, 3].map(|corner| corners[corner] * FACTOR as f64))
    };
    let tiles = (0..SHOWN).map(|at| -> Result<Tensor> {
        let image = enlarged(&grey(&scenes.images.get(at).get(0)), FACTOR);
        outline(&image, corners(&scenes.boxes, at)?, GREEN);
        outline(&image, corners(&predicted, at)?, RED);
        Ok(image)
    });
    let tiles = tiles.collect::<Result<Vec<_>>>()?;
    let (upper, lower) = tiles.split_at(SHOWN as usize / 2);
    let rows = [upper, lower].map(|row| row.iter().map(Tensor::shallow_clone).collect());
    picture::save_tiles(&rows, file)
}

// ---------------------------------------------------------------------------------------------------------------------
// The data
// ---------------------------------------------------------------------------------------------------------------------

/// Canvases with one digit each.
struct Scenes {
    /// Shape `[n, 1, 48, 48]`.
    images: Tensor,
    /// The corners of the digit's ink in pixels, `[n, 4]`.
    boxes: Tensor,
}

impl Scenes {
    /// A digit of some size at some place, and noise that is nearly as bright.
    fn of(digits: &Digits, count: i64, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        tch::manual_seed(seed as i64);
        let images = canvas::noise([count, SIDE, SIDE]);
        let boxes: Vec<f32> = (0..count)
            .flat_map(|scene| {
                let digit = digits.images.get(random.i64(0..digits.len()));
                let (height, width) = (random.i64(10..=32), random.i64(10..=32));
                let (top, left) = (random.i64(0..=SIDE - height), random.i64(0..=SIDE - width));
                let digit = canvas::resized(&digit, [height, width]);
                canvas::paste(&images.get(scene).get(0), &digit, [top, left]);
                ink(&digit, [top, left])
            })
            .collect();
        Self { images, boxes: Tensor::from_slice(&boxes).view([count, 4]) }
    }

    fn len(&self) -> i64 {
        self.boxes.size()[0]
    }

    fn to_device(&self, device: Device) -> Self {
        Self { images: self.images.to_device(device), boxes: self.boxes.to_device(device) }
    }

    fn select(&self, indices: &Tensor) -> Self {
        let indices = indices.to_device(self.boxes.device());
        Self { images: self.images.index_select(0, &indices), boxes: self.boxes.index_select(0, &indices) }
    }
}

/// The box around the ink of a digit that lies there: images of digits have empty columns at their sides.
fn ink(digit: &Tensor, [top, left]: [i64; 2]) -> [f32; 4] {
    let inked = digit.ge(0.3);
    let ends = |along: i64, start: i64| {
        let places = inked.any_dim(along, false).nonzero();
        let end = |place: Tensor| place.int64_value(&[]) + start;
        // Each image has ink.
        [end(places.min()) as f32, (end(places.max()) + 1) as f32]
    };
    let ([left, right], [top, bottom]) = (ends(0, left), ends(1, top));
    [left, top, right, bottom]
}

// ---------------------------------------------------------------------------------------------------------------------
// The command line
// ---------------------------------------------------------------------------------------------------------------------

/// Train a small detector of digits on noisy canvases, with a loss of boxes of your choice.
#[derive(Parser)]
#[command(name = "detection", after_help = EXAMPLES)]
struct Args {
    /// The loss of boxes to train with; several are trained one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "ciou")]
    loss: Vec<LossName>,

    /// A file that describes the loss of boxes, in TOML or, if it ends in .json, in JSON; its result is a scalar
    #[arg(long, value_name = "FILE", conflicts_with = "loss")]
    loss_file: Option<PathBuf>,

    /// How many canvases to learn from
    #[arg(long, default_value_t = 2000, value_parser = value_parser!(i64).range(1..=100_000))]
    #[arg(allow_negative_numbers = true)]
    canvases: i64,

    #[command(flatten)]
    data: DataArgs,

    #[command(flatten)]
    common: CommonArgs<8>,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release --example detection
  cargo run --release --example detection -- --loss giou,smooth-l1
  cargo run --release --example detection -- --loss all --epochs 8
  cargo run --release --example detection -- --loss-file examples/detection.toml";

impl Args {
    /// The losses to train with, and their names.
    fn criteria(&self, device: Device) -> Result<Vec<(String, Box<dyn Loss>)>> {
        if let Some(path) = &self.loss_file {
            return Ok(vec![("file".to_owned(), Box::new(read_loss(path, device)?))]);
        }
        let names = chosen(&self.loss, LossName::All);
        Ok(names.into_iter().map(|name| (typed(name), name.criterion())).collect())
    }
}
