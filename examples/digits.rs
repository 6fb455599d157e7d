//! Trains a small convolutional net to read handwritten digits, with a loss of your choice.
//!
//! ```sh
//! cargo run --release --example digits                                      # cross entropy, 20 epochs
//! cargo run --release --example digits -- --loss label-smoothing --seed 7
//! cargo run --release --example digits -- --loss mse,huber --epochs 10      # one after the other
//! cargo run --release --example digits -- --all                             # every loss, as a table
//! cargo run --release --example digits -- --loss-file examples/loss.toml    # a loss described in TOML or JSON
//! cargo run --release --example digits -- --imbalance 100                   # what helps rare digits, by digit
//! cargo run --release --example digits -- --help
//! ```
//!
//! The data are the 1797 real images of `examples/data/README.md`. A fifth of them is held out, always the same ones; the
//! accuracy on them is the result. On one CPU with one libtorch, the same seed gives the same result. A GPU starts from
//! the same weights and sees the same batches, but some of its kernels add in an order that varies.
//!
//! Where to look: [`LossName::objective`] says what each loss wants as input and as target, and [`train`] is the loop.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum, value_parser};
use common::args::{CommonArgs, DataArgs, read_loss, typed};
use common::digits::{CLASSES, Digits, SIDE};
use common::layers::same_size;
use common::plot;
use common::training::{Curve, Plan, train};
use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};
use tch_losses::{
    BceLoss, BceWithLogitsLoss, CrossEntropyLoss, HuberLoss, KlDivLoss, KlDivReduction, L1Loss, Loss, MseLoss,
    MultiLabelMarginLoss, MultiLabelSoftMarginLoss, MultiMarginLoss, NllLoss, PoissonNllLoss, SmoothL1Loss,
    SoftMarginLoss, SoftmaxFocalLoss,
};

fn main() -> ExitCode {
    common::end(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    common::use_one_core();
    let device = args.common.device()?;
    let (training, held_out) = args.data.digits()?;
    let (training, held_out) = (training.to_device(device), held_out.to_device(device));
    match args.imbalance {
        None => compare(args, &training, &held_out),
        Some(factor) => compare_by_digit(factor, args, &training, &held_out),
    }
}

/// Trains with each loss, and says how many digits are read.
fn compare(args: &Args, training: &Digits, held_out: &Digits) -> Result<()> {
    let device = training.images.device();
    println!("device {device:?}, {} images to learn from, {} held out", training.len(), held_out.len());
    let mut curves = Vec::new();
    for (name, objective) in args.objectives(device)? {
        let start = Instant::now();
        let (net, curve) = train_with(&name, &objective, args, training, held_out)?;
        let right = i64::try_from(net.right(held_out).sum(Kind::Int64))?;
        let percent = 100.0 * right as f64 / held_out.len() as f64;
        let seconds = start.elapsed().as_secs_f64();
        println!("{name:<24} {percent:6.2} % right ({right} of {}), {seconds:.1} s", held_out.len());
        curves.push(curve);
    }
    plot::curves(&curves, "share of held-out digits read", &args.common.picture("digits.svg")?)
}

/// Trains with few images of the high digits, and says for each digit how many are read, by losses that treat rare
/// classes differently.
fn compare_by_digit(factor: f64, args: &Args, training: &Digits, held_out: &Digits) -> Result<()> {
    let training = imbalanced(training, factor)?;
    let counts = counts(&training.classes)?;
    println!("{:<16} {}    mean", "digit", (0..CLASSES).map(|digit| format!("{digit:6}")).collect::<String>());
    println!("{:<16} {}", "to learn from", counts.iter().map(|count| format!("{count:6}")).collect::<String>());
    let mut curves = Vec::new();
    for (name, objective) in against_imbalance(&counts, training.images.device()) {
        let (net, curve) = train_with(name, &objective, args, &training, held_out)?;
        let recalls = net.recalls(held_out)?;
        let percents = recalls.iter().map(|recall| format!("{:6.0}", 100.0 * recall)).collect::<String>();
        println!("{name:<16} {percents} {:7.1}", 100.0 * recalls.iter().sum::<f64>() / recalls.len() as f64);
        curves.push(curve);
    }
    plot::curves(&curves, "share of held-out digits read", &args.common.picture("digits-imbalance.svg")?)
}

// ---------------------------------------------------------------------------------------------------------------------
// The losses
// ---------------------------------------------------------------------------------------------------------------------

/// The losses that can teach the net to classify.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LossName {
    /// CrossEntropyLoss: the usual choice
    CrossEntropy,
    /// CrossEntropyLoss with a label smoothing of 0.1
    LabelSmoothing,
    /// NLLLoss of log-probabilities; the same as cross-entropy, in two steps
    Nll,
    /// KLDivLoss from smoothed labels to the log-probabilities
    KlDiv,
    /// BCELoss: ten yes-or-no questions, answered by probabilities
    Bce,
    /// BCEWithLogitsLoss: ten yes-or-no questions, answered by logits
    BceWithLogits,
    /// MultiLabelSoftMarginLoss: binary cross entropy, averaged over the classes
    MultiLabelSoftMargin,
    /// SoftMarginLoss: ten answers of +1 or -1
    SoftMargin,
    /// MultiMarginLoss: the right class ahead of each other one by a margin
    MultiMargin,
    /// MultiLabelMarginLoss: the same margin, for a list of right classes
    MultiLabelMargin,
    /// MSELoss: regression onto one-hot vectors
    Mse,
    /// L1Loss: the same, with the absolute error
    L1,
    /// SmoothL1Loss: the same, with the absolute error rounded off near 0
    SmoothL1,
    /// HuberLoss: as smooth-l1, here with a delta of 0.5
    Huber,
    /// PoissonNLLLoss: the classes as counts of 0 or 1, the logits as log-rates
    PoissonNll,
}

impl LossName {
    /// The one place that knows what each loss wants.
    fn objective(self) -> Objective {
        let smoothed = CrossEntropyLoss::new().label_smoothing(0.1);
        let divergence = KlDivLoss::new().reduction(KlDivReduction::BatchMean);
        match self {
            Self::CrossEntropy => Objective::new(CrossEntropyLoss::new(), logits, class),
            Self::LabelSmoothing => Objective::new(smoothed, logits, class),
            Self::Nll => Objective::new(NllLoss::new(), log_probabilities, class),
            Self::KlDiv => Objective::new(divergence, log_probabilities, smoothed_one_hot),
            Self::Bce => Objective::new(BceLoss::new(), yes_probabilities, one_hot),
            Self::BceWithLogits => Objective::new(BceWithLogitsLoss::new(), logits, one_hot),
            Self::MultiLabelSoftMargin => Objective::new(MultiLabelSoftMarginLoss::new(), logits, one_hot),
            Self::SoftMargin => Objective::new(SoftMarginLoss::new(), logits, plus_minus_one),
            Self::MultiMargin => Objective::new(MultiMarginLoss::new(), logits, class),
            Self::MultiLabelMargin => Objective::new(MultiLabelMarginLoss::new(), logits, class_list),
            Self::Mse => Objective::new(MseLoss::new(), logits, one_hot),
            Self::L1 => Objective::new(L1Loss::new(), logits, one_hot),
            Self::SmoothL1 => Objective::new(SmoothL1Loss::new(), logits, one_hot),
            Self::Huber => Objective::new(HuberLoss::new().delta(0.5), logits, one_hot),
            Self::PoissonNll => Objective::new(PoissonNllLoss::new(), logits, one_hot),
        }
    }
}

/// Makes what a loss wants from what there is: logits of shape `[n, 10]`, or classes of shape `[n]`.
type Adapter = fn(&Tensor) -> Tensor;

/// A loss, and the two steps between it and the net.
struct Objective {
    criterion: Box<dyn Loss>,
    input: Adapter,
    target: Adapter,
}

impl Objective {
    fn new(criterion: impl Loss + 'static, input: Adapter, target: Adapter) -> Self {
        Self { criterion: Box::new(criterion), input, target }
    }

    fn loss(&self, logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
        Ok(self.criterion.f_forward(&(self.input)(logits), &(self.target)(classes))?)
    }
}

fn logits(logits: &Tensor) -> Tensor {
    logits.shallow_clone()
}

/// Of one distribution over the ten classes.
fn log_probabilities(logits: &Tensor) -> Tensor {
    logits.log_softmax(-1, Kind::Float)
}

/// Ten probabilities that know nothing of each other.
fn yes_probabilities(logits: &Tensor) -> Tensor {
    logits.sigmoid()
}

fn class(classes: &Tensor) -> Tensor {
    classes.shallow_clone()
}

fn one_hot(classes: &Tensor) -> Tensor {
    classes.onehot(CLASSES)
}

/// The targets that a label smoothing of 0.1 stands for.
fn smoothed_one_hot(classes: &Tensor) -> Tensor {
    one_hot(classes) * 0.9 + 0.1 / CLASSES as f64
}

fn plus_minus_one(classes: &Tensor) -> Tensor {
    one_hot(classes) * 2.0 - 1.0
}

/// The right classes of each image, and -1 where the list ends.
fn class_list(classes: &Tensor) -> Tensor {
    classes.unsqueeze(-1).pad([0, CLASSES - 1], "constant", -1.0)
}

/// The losses that are compared where some classes are rare. All take logits and classes.
fn against_imbalance(counts: &[i64], device: Device) -> [(&'static str, Objective); 4] {
    // Inverse to how frequent a class is, 1 on the average over the images; a class without images weighs 0.
    let images: i64 = counts.iter().sum();
    let weight = |&count: &i64| if count == 0 { 0.0 } else { images as f32 / (counts.len() as i64 * count) as f32 };
    let weight = Tensor::from_slice(&counts.iter().map(weight).collect::<Vec<f32>>()).to_device(device);
    [
        ("cross entropy", Objective::new(CrossEntropyLoss::new(), logits, class)),
        ("class weights", Objective::new(CrossEntropyLoss::new().weight(weight), logits, class)),
        ("focal", Objective::new(SoftmaxFocalLoss::new().gamma(2.0), logits, class)),
        ("label smoothing", Objective::new(CrossEntropyLoss::new().label_smoothing(0.1), logits, class)),
    ]
}

/// Keeps all images of 0, one of `factor` of 9, and of those between them shares that fall by equal factors.
fn imbalanced(digits: &Digits, factor: f64) -> Result<Digits> {
    let mut kept = Vec::new();
    for class in 0..CLASSES {
        let images = digits.classes.eq(class).nonzero().squeeze_dim(1);
        let share = factor.powf(-(class as f64) / (CLASSES - 1) as f64);
        let count = (images.size()[0] as f64 * share).round() as i64;
        ensure!(count > 0, "--imbalance {factor} leaves no image of the digit {class}; choose a smaller factor");
        kept.push(images.narrow(0, 0, count));
    }
    Ok(digits.select(&Tensor::cat(&kept, 0)))
}

/// How many images each digit has.
fn counts(classes: &Tensor) -> Result<Vec<i64>> {
    Ok(Vec::<i64>::try_from(classes.bincount::<Tensor>(None, CLASSES))?)
}

// ---------------------------------------------------------------------------------------------------------------------
// The net and its training
// ---------------------------------------------------------------------------------------------------------------------

/// Two convolutions, which see strokes, and two linear layers, which see digits.
struct Net {
    layers: nn::Sequential,
}

impl Net {
    fn new(path: &nn::Path) -> Self {
        let layers = nn::seq()
            .add(nn::conv2d(path / "conv1", 1, 32, 3, same_size(3)))
            .add_fn(Tensor::relu)
            .add(nn::conv2d(path / "conv2", 32, 64, 3, same_size(3)))
            .add_fn(Tensor::relu)
            .add_fn(|images| images.max_pool2d_default(2).flatten(1, -1))
            .add(nn::linear(path / "linear1", 64 * (SIDE / 2) * (SIDE / 2), 128, Default::default()))
            .add_fn(Tensor::relu)
            .add(nn::linear(path / "linear2", 128, CLASSES, Default::default()));
        Self { layers }
    }

    /// Which of the digits get their highest logit for the right class.
    fn right(&self, digits: &Digits) -> Tensor {
        let logits = tch::no_grad(|| self.layers.forward(&digits.images));
        logits.argmax(-1, false).eq_tensor(&digits.classes)
    }

    /// The share of each digit's images that are read.
    fn recalls(&self, digits: &Digits) -> Result<Vec<f64>> {
        let right = counts(&digits.classes.masked_select(&self.right(digits)))?;
        let all = counts(&digits.classes)?;
        Ok(right.into_iter().zip(all).map(|(right, all)| right as f64 / all.max(1) as f64).collect())
    }
}

fn train_with(
    name: &str,
    objective: &Objective,
    args: &Args,
    training: &Digits,
    held_out: &Digits,
) -> Result<(Net, Curve)> {
    tch::manual_seed(args.common.seed);
    // The weights are drawn on the CPU and then moved: a seed means the same start on every device.
    let mut variables = nn::VarStore::new(Device::Cpu);
    let net = Net::new(&variables.root());
    variables.set_device(training.images.device());
    let plan = Plan {
        name: name.to_owned(),
        epochs: args.common.epochs,
        samples: training.len(),
        batch_size: args.batch_size,
        lr: args.lr,
    };
    let step = |batch: &Tensor| {
        let digits = training.select(&batch.to_device(training.images.device()));
        objective.loss(&net.layers.forward(&digits.images), &digits.classes)
    };
    let curve = train(&plan, &variables, step, || Ok(f64::try_from(net.right(held_out).mean(Kind::Double))?))?;
    Ok((net, curve))
}

// ---------------------------------------------------------------------------------------------------------------------
// The command line
// ---------------------------------------------------------------------------------------------------------------------

/// Train a small convolutional net to read handwritten digits, with a loss of your choice.
#[derive(Parser)]
#[command(name = "digits", after_help = EXAMPLES)]
struct Args {
    /// The loss to train with; several are trained one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "cross-entropy")]
    loss: Vec<LossName>,

    /// A file that describes the loss, in TOML or, if it ends in .json, in JSON; it takes logits and class indices
    #[arg(long, value_name = "FILE", conflicts_with_all = ["loss", "all"])]
    loss_file: Option<PathBuf>,

    /// Train with every loss, one after the other
    #[arg(long, conflicts_with = "loss")]
    all: bool,

    /// Learn from so many times fewer images of 9 than of 0, and compare losses that treat rare classes differently
    #[arg(long, value_name = "FACTOR", conflicts_with_all = ["loss", "loss_file", "all"], value_parser = factor)]
    #[arg(allow_negative_numbers = true)]
    imbalance: Option<f64>,

    /// Images per step
    #[arg(long, default_value_t = 32, value_parser = value_parser!(i64).range(1..), allow_negative_numbers = true)]
    batch_size: i64,

    /// The learning rate of Adam at the start; it falls to 0
    #[arg(long, default_value_t = 0.001, value_parser = learning_rate, allow_negative_numbers = true)]
    lr: f64,

    #[command(flatten)]
    data: DataArgs,

    #[command(flatten)]
    common: CommonArgs<20>,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release --example digits
  cargo run --release --example digits -- --loss label-smoothing --seed 7
  cargo run --release --example digits -- --loss mse,huber --epochs 10
  cargo run --release --example digits -- --all --device cuda
  cargo run --release --example digits -- --imbalance 100
  cargo run --release --example digits -- --loss-file examples/loss.toml";

impl Args {
    /// The losses to train with, and their names.
    fn objectives(&self, device: Device) -> Result<Vec<(String, Objective)>> {
        if let Some(path) = &self.loss_file {
            return Ok(vec![(path.display().to_string(), Objective::new(read_loss(path, device)?, logits, class))]);
        }
        let names = if self.all { LossName::value_variants() } else { &self.loss };
        Ok(names.iter().map(|&name| (typed(name), name.objective())).collect())
    }
}

fn learning_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(lr) if lr > 0.0 && lr.is_finite() => Ok(lr),
        _ => Err("expected a number above 0".to_owned()),
    }
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor >= 1.0 && factor.is_finite() => Ok(factor),
        _ => Err("expected a number of at least 1".to_owned()),
    }
}
