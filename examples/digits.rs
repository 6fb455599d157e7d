//! Trains a small convolutional net to read handwritten digits, with a loss of your choice.
//!
//! ```sh
//! cargo run --release --example digits                                      # cross entropy, 20 epochs
//! cargo run --release --example digits -- --loss label-smoothing --seed 7
//! cargo run --release --example digits -- --loss mse,huber --epochs 10      # one after the other
//! cargo run --release --example digits -- --all                             # every loss, as a table
//! cargo run --release --example digits -- --loss-file examples/loss.toml    # a loss described in TOML or JSON
//! cargo run --release --example digits -- --help
//! ```
//!
//! The data are the 1797 real images of `examples/data/README.md`. A fifth of them is held out, always the same ones; the
//! accuracy on them is the result. On one CPU with one libtorch, the same seed gives the same result. A GPU starts from
//! the same weights and sees the same batches, but some of its kernels add in an order that varies.
//!
//! Where to look: [`LossName::objective`] says what each loss wants as input and as target, and [`train`] is the loop.

use std::{
    fs::{File, read_to_string},
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum, value_parser};
use flate2::read::MultiGzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use tch::{Device, Kind, Tensor, nn, nn::Module, nn::OptimizerConfig};
use tch_losses::{
    AnyLoss, BceLoss, BceWithLogitsLoss, CrossEntropyLoss, HuberLoss, KlDivLoss, KlDivReduction, L1Loss, Loss, MseLoss,
    MultiLabelMarginLoss, MultiLabelSoftMarginLoss, MultiMarginLoss, NllLoss, PoissonNllLoss, SmoothL1Loss,
    SoftMarginLoss,
};

/// The digits 0 to 9.
const CLASSES: i64 = 10;
/// The images are 8 × 8.
const SIDE: i64 = 8;
/// The pixels of an image, which are the fields of a line before its label.
const PIXELS: usize = (SIDE * SIDE) as usize;
/// The darkest pixel.
const INK: u8 = 16;
/// Draws the held-out images. It is not `--seed`, so that runs with different seeds are judged by the same images.
const SPLIT_SEED: i64 = 0;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    // The net is so small that more threads gain little, and lose much where another program keeps a core busy: they wait
    // for each other at every step. With one, the result does not depend on the number of cores either.
    tch::set_num_threads(1);
    let device = args.device.find()?;
    let (training, held_out) = Digits::read(&args.data)?.to_device(device).split()?;
    println!("device {device:?}, {} images to learn from, {} held out", training.len(), held_out.len());

    for (name, objective) in args.objectives(device)? {
        let start = Instant::now();
        let net = train(&name, &objective, args, &training).with_context(|| format!("training with {name}"))?;
        let right = net.count_right(&held_out)?;
        let percent = 100.0 * right as f64 / held_out.len() as f64;
        let seconds = start.elapsed().as_secs_f64();
        println!("{name:<24} {percent:6.2} % right ({right} of {}), {seconds:.1} s", held_out.len());
    }
    Ok(())
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

impl std::fmt::Display for LossName {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        // The name as it is typed; no variant is hidden from clap. `pad` keeps the columns of the table.
        f.pad(self.to_possible_value().expect("every loss can be chosen").get_name())
    }
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

/// The loss that a file describes, with its weights on `device`.
fn read_loss(path: &Path, device: Device) -> Result<AnyLoss> {
    let read = || -> Result<AnyLoss> {
        let text = read_to_string(path)?;
        let loss: AnyLoss = match path.extension().is_some_and(|extension| extension == "json") {
            true => serde_json::from_str(&text)?,
            false => toml::from_str(&text)?,
        };
        Ok(loss.f_to(device, Kind::Float)?)
    };
    read().with_context(|| format!("the loss file {}", path.display()))
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

// ---------------------------------------------------------------------------------------------------------------------
// The net and its training
// ---------------------------------------------------------------------------------------------------------------------

/// Two convolutions, which see strokes, and two linear layers, which see digits.
struct Net {
    weights: nn::VarStore,
    layers: nn::Sequential,
}

impl Net {
    fn new(device: Device) -> Self {
        // The weights are drawn on the CPU and then moved: a seed means the same start on every device.
        let mut weights = nn::VarStore::new(Device::Cpu);
        let path = weights.root();
        let same_size = nn::ConvConfig { padding: 1, ..Default::default() };
        let layers = nn::seq()
            .add(nn::conv2d(&path / "conv1", 1, 32, 3, same_size))
            .add_fn(Tensor::relu)
            .add(nn::conv2d(&path / "conv2", 32, 64, 3, same_size))
            .add_fn(Tensor::relu)
            .add_fn(|images| images.max_pool2d_default(2).flatten(1, -1))
            .add(nn::linear(&path / "linear1", 64 * (SIDE / 2) * (SIDE / 2), 128, Default::default()))
            .add_fn(Tensor::relu)
            .add(nn::linear(&path / "linear2", 128, CLASSES, Default::default()));
        weights.set_device(device);
        Self { weights, layers }
    }

    /// How many of the digits get their highest logit for the right class.
    fn count_right(&self, digits: &Digits) -> Result<i64> {
        let logits = tch::no_grad(|| self.layers.forward(&digits.images));
        let right = logits.argmax(-1, false).eq_tensor(&digits.classes).sum(Kind::Int64);
        Ok(i64::try_from(right)?)
    }
}

fn train(name: &str, objective: &Objective, args: &Args, digits: &Digits) -> Result<Net> {
    tch::manual_seed(args.seed);
    let net = Net::new(digits.device());
    let mut optimizer = nn::Adam::default().build(&net.weights, args.lr)?;
    let progress = Progress::new(name, args.epochs, digits.batches(args.batch_size));

    for epoch in 1..=args.epochs {
        let mean = train_epoch(&net, &mut optimizer, objective, digits, args.batch_size, &progress)
            .with_context(|| format!("epoch {epoch}"))?;
        ensure!(mean.is_finite(), "the loss of epoch {epoch} is {mean}; a smaller --lr than {:?} may help", args.lr);
        progress.end_epoch(epoch, mean);
    }
    Ok(net)
}

/// Shows every image to the net once, in an order of its own, and returns the mean loss.
fn train_epoch(
    net: &Net,
    optimizer: &mut nn::Optimizer,
    objective: &Objective,
    digits: &Digits,
    batch_size: i64,
    progress: &Progress,
) -> Result<f64> {
    // The sum stays on the device: reading every loss would make the CPU wait for the GPU at every step.
    let mut sum = Tensor::zeros([], (Kind::Float, digits.device()));
    for batch in digits.shuffled().split(batch_size, 0) {
        let batch = digits.select(&batch);
        let loss = objective.loss(&net.layers.forward(&batch.images), &batch.classes)?;
        optimizer.backward_step(&loss);
        // Weighted, because the last batch can be smaller.
        sum += loss.detach() * batch.len();
        progress.end_step();
    }
    Ok(f64::try_from(sum)? / digits.len() as f64)
}

/// A bar on a terminal, and a line per epoch elsewhere.
struct Progress {
    bar: ProgressBar,
    name: String,
    epochs: u32,
}

impl Progress {
    fn new(name: &str, epochs: u32, batches: u64) -> Self {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {elapsed}, {eta} to go")
            .expect("the template is a constant, and valid");
        let bar = ProgressBar::new(u64::from(epochs) * batches).with_style(style);
        bar.set_message(format!("{name}: epoch 1/{epochs}"));
        Self { bar, name: name.to_owned(), epochs }
    }

    fn end_step(&self) {
        self.bar.inc(1);
    }

    fn end_epoch(&self, epoch: u32, loss: f64) {
        let message = format!("{}: epoch {epoch}/{} had loss {loss:.5}", self.name, self.epochs);
        if self.bar.is_hidden() {
            eprintln!("{message}");
        }
        self.bar.set_message(message);
    }
}

impl Drop for Progress {
    /// Leaves a clean line, for the result and for an error alike.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The data
// ---------------------------------------------------------------------------------------------------------------------

/// Images of digits, and which digit each one is.
struct Digits {
    /// Shape `[n, 1, 8, 8]`, from 0 (no ink) to 1.
    images: Tensor,
    /// Shape `[n]`, from 0 to 9.
    classes: Tensor,
}

impl Digits {
    /// Reads the format that `examples/data/README.md` describes.
    fn read(path: &Path) -> Result<Self> {
        let file = File::open(path)
            .with_context(|| format!("cannot open the data file {} (--data names another)", path.display()))?;
        let mut text = String::new();
        MultiGzDecoder::new(file)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read {} as text compressed with gzip", path.display()))?;
        Self::parse(&text).with_context(|| format!("the data file {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut pixels = Vec::new();
        let mut classes = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let (image, class) = parse_line(line).with_context(|| format!("line {}", index + 1))?;
            pixels.extend(image.iter().map(|&pixel| f32::from(pixel) / f32::from(INK)));
            classes.push(i64::from(class));
        }
        let images = Tensor::from_slice(&pixels).view([-1, 1, SIDE, SIDE]);
        Ok(Self { images, classes: Tensor::from_slice(&classes) })
    }

    fn len(&self) -> i64 {
        self.classes.size()[0]
    }

    fn device(&self) -> Device {
        self.images.device()
    }

    fn to_device(&self, device: Device) -> Self {
        Self { images: self.images.to_device(device), classes: self.classes.to_device(device) }
    }

    fn select(&self, indices: &Tensor) -> Self {
        Self { images: self.images.index_select(0, indices), classes: self.classes.index_select(0, indices) }
    }

    /// All indices in a random order, drawn on the CPU: a seed means the same order on every device.
    fn shuffled(&self) -> Tensor {
        Tensor::randperm(self.len(), (Kind::Int64, Device::Cpu)).to_device(self.device())
    }

    /// How many batches an epoch has.
    fn batches(&self, batch_size: i64) -> u64 {
        (self.len() as u64).div_ceil(batch_size as u64)
    }

    /// Divides the images into four fifths to learn from and a fifth to be judged by.
    fn split(&self) -> Result<(Self, Self)> {
        let held_out = self.len() / 5;
        ensure!(held_out > 0, "there are {} images, at least 5 are needed to hold some out", self.len());
        tch::manual_seed(SPLIT_SEED);
        let parts = self.shuffled().split_with_sizes([self.len() - held_out, held_out], 0);
        Ok((self.select(&parts[0]), self.select(&parts[1])))
    }
}

/// The pixels and the class of one line.
fn parse_line(line: &str) -> Result<(Vec<u8>, u8)> {
    let fields: Vec<&str> = line.split(',').collect();
    ensure!(fields.len() == PIXELS + 1, "expected {PIXELS} pixels and a class, got {} fields", fields.len());
    let pixels = fields[..PIXELS].iter().enumerate();
    let pixels: Result<Vec<u8>> = pixels
        .map(|(index, field)| parse_number(field, INK).with_context(|| format!("field {}, a pixel", index + 1)))
        .collect();
    let class = parse_number(fields[PIXELS], CLASSES as u8 - 1).context("the last field, the class")?;
    Ok((pixels?, class))
}

fn parse_number(field: &str, most: u8) -> Result<u8> {
    match field.trim().parse() {
        Ok(number) if number <= most => Ok(number),
        _ => bail!("expected a whole number from 0 to {most}, got {field:?}"),
    }
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

    /// How often to go through the training images
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u32).range(1..), allow_negative_numbers = true)]
    epochs: u32,

    /// Chooses the first weights and the order of the images
    #[arg(long, default_value_t = 1, value_parser = value_parser!(i64).range(0..), allow_negative_numbers = true)]
    seed: i64,

    /// Images per step
    #[arg(long, default_value_t = 32, value_parser = value_parser!(i64).range(1..), allow_negative_numbers = true)]
    batch_size: i64,

    /// The learning rate of Adam
    #[arg(long, default_value_t = 0.001, value_parser = learning_rate, allow_negative_numbers = true)]
    lr: f64,

    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,

    /// The data file, in the format of examples/data/README.md
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits.csv.gz"))]
    data: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release --example digits
  cargo run --release --example digits -- --loss label-smoothing --seed 7
  cargo run --release --example digits -- --loss mse,huber --epochs 10
  cargo run --release --example digits -- --all --device cuda
  cargo run --release --example digits -- --loss-file examples/loss.toml";

impl Args {
    /// The losses to train with, and their names.
    fn objectives(&self, device: Device) -> Result<Vec<(String, Objective)>> {
        if let Some(path) = &self.loss_file {
            return Ok(vec![(path.display().to_string(), Objective::new(read_loss(path, device)?, logits, class))]);
        }
        let names = if self.all { LossName::value_variants() } else { &self.loss };
        Ok(names.iter().map(|name| (name.to_string(), name.objective())).collect())
    }
}

fn learning_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(lr) if lr > 0.0 && lr.is_finite() => Ok(lr),
        _ => Err("expected a number above 0".to_owned()),
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceChoice {
    /// The first CUDA device if there is one, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// The first CUDA device
    Cuda,
}

impl DeviceChoice {
    fn find(self) -> Result<Device> {
        match self {
            Self::Auto => Ok(Device::cuda_if_available()),
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda if tch::Cuda::is_available() => Ok(Device::Cuda(0)),
            Self::Cuda => bail!("--device cuda: libtorch finds no CUDA device here; use --device cpu, or auto"),
        }
    }
}
