//! Trains a small U-Net to find handwritten digits on noisy canvases and to say for each pixel which digit it is of.
//!
//! ```sh
//! cargo run --release --example segmentation                                # Dice plus cross entropy
//! cargo run --release --example segmentation -- --loss all --epochs 6       # each loss, as a table
//! cargo run --release --example segmentation -- --loss-file examples/segmentation.toml
//! cargo run --release --example segmentation -- --help
//! ```
//!
//! The digits are real ones; those on the canvases that judge are none of those on the canvases to learn from. Most
//! pixels are background, as in the images that Dice was made for. The result is the mean IoU of the eleven classes on
//! the canvases that judge.
//!
//! Where to look: [`LossName::criterion`] has the losses with their options, and [`train_with`] is the training.

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum, value_parser};
use common::args::{CommonArgs, DataArgs, chosen, read_loss, typed};
use common::canvas;
use common::digits::{self, Digits};
use common::layers::block;
use common::picture::{self, colours, enlarged, grey};
use common::plot;
use common::training::{Curve, Plan, train};
use tch::nn::ModuleT;
use tch::{Device, Kind, Tensor, nn};
use tch_losses::{
    Activation, CrossEntropyLoss, DiceCrossEntropyLoss, DiceLoss, Grouping, Loss, LovaszSoftmaxLoss, SoftmaxFocalLoss,
    TverskyLoss,
};

/// The background is class 0, digit d is class d + 1.
const CLASSES: i64 = digits::CLASSES + 1;
/// The canvases are 32 × 32.
const SIDE: i64 = 32;
/// A canvas has four fields of 16 × 16, and digits in so many of them.
const FIELD: i64 = SIDE / 2;
const DIGITS_EACH: usize = 3;
/// A pixel with less ink is background.
const FAINT: f64 = 0.5;
const BATCH_SIZE: i64 = 16;
const LEARNING_RATE: f64 = 4e-3;
/// The channels of the three levels: the finer a level is, the more a channel costs.
const CHANNELS: [i64; 3] = [12, 32, 64];
/// The canvases in the picture.
const SHOWN: i64 = 6;

fn main() -> ExitCode {
    common::end(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    common::use_one_core();
    let device = args.common.device()?;
    let (training, held_out) = args.data.digits()?;
    // The canvases are the same ones for every seed, as the held-out digits are.
    let (training, held_out) = (Scenes::of(&training, args.canvases, 1), Scenes::of(&held_out, 200, 2));
    let (training, held_out) = (training.to_device(device), held_out.to_device(device));
    println!("device {device:?}, {} canvases to learn from, {} held out", training.len(), held_out.len());

    let mut curves = Vec::new();
    for (name, criterion) in args.criteria(device)? {
        let start = Instant::now();
        let (net, curve) = train_with(&name, criterion.as_ref(), args, &training, &held_out)?;
        println!("{name:<20} mean IoU {:.3}, {:.1} s", curve.last_score(), start.elapsed().as_secs_f64());
        net.draw(&held_out, &args.common.picture(&format!("segmentation-{name}.png"))?)?;
        curves.push(curve);
    }
    plot::curves(&curves, "mean IoU on held-out canvases", &args.common.picture("segmentation.svg")?)
}

// ---------------------------------------------------------------------------------------------------------------------
// The losses
// ---------------------------------------------------------------------------------------------------------------------

/// The losses of logits `[n, 11, h, w]` and classes `[n, h, w]`.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum LossName {
    /// Each of the others, one after the other
    All,
    /// CrossEntropyLoss: each pixel counts the same
    CrossEntropy,
    /// DiceLoss: each class counts the same, however few pixels it has
    Dice,
    /// DiceCrossEntropyLoss: the sum of both, the usual choice
    DiceCrossEntropy,
    /// SoftmaxFocalLoss: pixels that are right already count little
    Focal,
    /// TverskyLoss: as Dice, but what is missed costs more than what is too much
    Tversky,
    /// LovaszSoftmaxLoss: a surface over the IoU itself
    Lovasz,
}

impl LossName {
    /// The one place that knows the options. Regions are taken over the whole batch, since few classes are on each
    /// canvas.
    fn criterion(self) -> Box<dyn Loss> {
        let dice = DiceLoss::new().activation(Activation::Softmax).grouping(Grouping::Class);
        let tversky = TverskyLoss::new().activation(Activation::Softmax).grouping(Grouping::Class);
        match self {
            Self::CrossEntropy => Box::new(CrossEntropyLoss::new()),
            Self::Dice => Box::new(dice),
            Self::DiceCrossEntropy | Self::All => Box::new(DiceCrossEntropyLoss::new().overlap(dice)),
            Self::Focal => Box::new(SoftmaxFocalLoss::new().gamma(2.0)),
            // MONAI's α is the weight of false positives, β that of false negatives.
            Self::Tversky => Box::new(tversky.alpha(0.3).beta(0.7)),
            Self::Lovasz => Box::new(LovaszSoftmaxLoss::new()),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The net and its training
// ---------------------------------------------------------------------------------------------------------------------

/// Three levels of resolution, and what each level saw on the way down on the way up.
struct UNet {
    down: [nn::SequentialT; 3],
    up: [nn::SequentialT; 2],
    head: nn::Conv2D,
}

impl UNet {
    fn new(path: &nn::Path) -> Self {
        let [fine, middle, coarse] = CHANNELS;
        let down = [(1, fine), (fine, middle), (middle, coarse)];
        let down = [0, 1, 2].map(|level| block(&(path / "down" / level), down[level].0, down[level].1));
        let up = [(coarse + middle, middle), (middle + fine, fine)];
        let up = [0, 1].map(|level| block(&(path / "up" / level), up[level].0, up[level].1));
        Self { down, up, head: nn::conv2d(path / "head", fine, CLASSES, 1, Default::default()) }
    }

    /// The logits `[n, 11, h, w]` of images `[n, 1, h, w]`.
    fn forward(&self, images: &Tensor, train: bool) -> Tensor {
        let fine = self.down[0].forward_t(images, train);
        let middle = self.down[1].forward_t(&fine.max_pool2d_default(2), train);
        let coarse = self.down[2].forward_t(&middle.max_pool2d_default(2), train);
        let middle = self.up[0].forward_t(&beside(&coarse, &middle), train);
        let fine = self.up[1].forward_t(&beside(&middle, &fine), train);
        self.head.forward_t(&fine, train)
    }

    /// Draws canvases, below them the true classes, and below those the predicted ones.
    fn draw(&self, scenes: &Scenes, file: &Path) -> Result<()> {
        let images = scenes.images.narrow(0, 0, SHOWN);
        let predicted = tch::no_grad(|| self.forward(&images, false)).argmax(1, false);
        let tile = |image: Tensor| enlarged(&image, 2);
        let rows = [
            (0..SHOWN).map(|at| tile(grey(&images.get(at).get(0)))).collect(),
            (0..SHOWN).map(|at| tile(colours(&scenes.classes.get(at)))).collect(),
            (0..SHOWN).map(|at| tile(colours(&predicted.get(at)))).collect(),
        ];
        picture::save_tiles(&rows, file)
    }
}

/// A coarse map enlarged, and the fine one of that size, as channels.
fn beside(coarse: &Tensor, fine: &Tensor) -> Tensor {
    let size = fine.size();
    Tensor::cat(&[&coarse.upsample_nearest2d([size[2], size[3]], None, None), fine], 1)
}

fn train_with(
    name: &str,
    criterion: &dyn Loss,
    args: &Args,
    training: &Scenes,
    held_out: &Scenes,
) -> Result<(UNet, Curve)> {
    tch::manual_seed(args.common.seed);
    let variables = nn::VarStore::new(training.images.device());
    let net = UNet::new(&variables.root());
    let plan = Plan {
        name: name.to_owned(),
        epochs: args.common.epochs,
        samples: training.len(),
        batch_size: BATCH_SIZE,
        lr: LEARNING_RATE,
    };
    let loss = |batch: &Tensor| {
        let scenes = training.select(batch);
        Ok(criterion.f_forward(&net.forward(&scenes.images, true), &scenes.classes)?)
    };
    let curve = train(&plan, &variables, loss, || mean_iou(&net, held_out))?;
    Ok((net, curve))
}

/// The mean over the classes of what prediction and truth have in common, in proportion to both together.
fn mean_iou(net: &UNet, scenes: &Scenes) -> Result<f64> {
    let predicted = net.forward(&scenes.images, false).argmax(1, false);
    // How often each true class was taken for each other one.
    let pairs = (&scenes.classes * CLASSES + predicted).flatten(0, 2);
    let counts = pairs.bincount::<Tensor>(None, CLASSES * CLASSES).view([CLASSES, CLASSES]).to_kind(Kind::Double);
    let both = counts.diag(0);
    let either =
        counts.sum_dim_intlist(0, false, Kind::Double) + counts.sum_dim_intlist(1, false, Kind::Double) - &both;
    Ok(f64::try_from((both / either.clamp_min(1.0)).mean(Kind::Double))?)
}

// ---------------------------------------------------------------------------------------------------------------------
// The data
// ---------------------------------------------------------------------------------------------------------------------

/// Canvases with digits.
struct Scenes {
    /// Shape `[n, 1, 32, 32]`.
    images: Tensor,
    /// Shape `[n, 32, 32]`: 0 for the background, else the digit and one.
    classes: Tensor,
}

impl Scenes {
    /// Pastes digits of several sizes into fields of chance, so that none covers another.
    fn of(digits: &Digits, count: i64, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        tch::manual_seed(seed as i64);
        let images = canvas::noise([count, SIDE, SIDE]);
        let classes = Tensor::zeros([count, SIDE, SIDE], (Kind::Int64, Device::Cpu));
        for scene in 0..count {
            for field in random.choose_multiple(0..4, DIGITS_EACH) {
                let chosen = random.i64(0..digits.len());
                let (size, class) = (random.i64(11..=FIELD), digits.classes.int64_value(&[chosen]));
                let mut within = || random.i64(0..=FIELD - size);
                let (top, left) = (field / 2 * FIELD + within(), field % 2 * FIELD + within());
                let digit = canvas::resized(&digits.images.get(chosen), [size, size]);
                canvas::paste(&images.get(scene).get(0), &digit, [top, left]);
                let mut place = canvas::window(&classes.get(scene), &digit, [top, left]);
                let _ = place.masked_fill_(&digit.ge(FAINT), class + 1);
            }
        }
        Self { images, classes }
    }

    fn len(&self) -> i64 {
        self.classes.size()[0]
    }

    fn to_device(&self, device: Device) -> Self {
        Self { images: self.images.to_device(device), classes: self.classes.to_device(device) }
    }

    fn select(&self, indices: &Tensor) -> Self {
        let indices = indices.to_device(self.classes.device());
        Self { images: self.images.index_select(0, &indices), classes: self.classes.index_select(0, &indices) }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The command line
// ---------------------------------------------------------------------------------------------------------------------

/// Train a small U-Net to find handwritten digits on noisy canvases, with a loss of your choice.
#[derive(Parser)]
#[command(name = "segmentation", after_help = EXAMPLES)]
struct Args {
    /// The loss to train with; several are trained one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "dice-cross-entropy")]
    loss: Vec<LossName>,

    /// A file that describes the loss, in TOML or, if it ends in .json, in JSON; it takes logits and class indices
    #[arg(long, value_name = "FILE", conflicts_with = "loss")]
    loss_file: Option<PathBuf>,

    /// How many canvases to learn from
    #[arg(long, default_value_t = 1500, value_parser = value_parser!(i64).range(1..=100_000))]
    #[arg(allow_negative_numbers = true)]
    canvases: i64,

    #[command(flatten)]
    data: DataArgs,

    #[command(flatten)]
    common: CommonArgs<14>,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release --example segmentation
  cargo run --release --example segmentation -- --loss cross-entropy,lovasz
  cargo run --release --example segmentation -- --loss all --epochs 6
  cargo run --release --example segmentation -- --loss-file examples/segmentation.toml";

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
