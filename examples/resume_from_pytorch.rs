//! Goes on with a training where PyTorch stopped: with its weights, with its optimizer's state, and with its numbers.
//!
//! ```sh
//! cargo run --release --example resume_from_pytorch               # the file in examples/data
//! .venv/bin/python examples/resume_from_pytorch.py here.safetensors   # another one, made on this machine
//! cargo run --release --example resume_from_pytorch -- --file here.safetensors --exact
//! cargo run --release --example resume_from_pytorch -- --help
//! ```
//!
//! `resume_from_pytorch.py` trains a small net for 40 steps, saves how it stands, and goes on for 20 steps with each of
//! four losses. This program goes on from the same file over the same images, and compares the loss, the gradients, the
//! weights after the first step, all 20 losses and the weights after the last step with PyTorch's.
//!
//! The composites of the losses of torch.nn are PyTorch's own operations: all is equal bit by bit where both ran on one
//! kind of processor (on another one libtorch rounds its products of matrices otherwise). The focal loss of torchvision
//! is another formula here, which keeps the digits of confident predictions. The engines add up in an order of their own
//! and in double precision. So their last digits may differ, and more so from step to step, as any difference in a
//! training grows. What is farther off than `torch.testing.assert_close` allows is an error.
//!
//! Where to look: [`Adam`] takes up the state, [`go_on`] is the training.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use common::args::{DataArgs, chosen, typed};
use common::digits::Digits;
use common::layers::same_size;
use tch::nn::Module;
use tch::{Device, Kind, Tensor, nn};
use tch_losses::{
    Backend, BceWithLogitsLoss, CrossEntropyLoss, HuberLoss, Loss, Reduction, SigmoidFocalLoss, with_backend,
};

/// What the Python program does.
const BATCH: i64 = 64;
const STEPS_BEFORE: i64 = 40;
const STEPS_AFTER: usize = 20;
/// The tolerances of `torch.testing.assert_close` for single precision: relative and absolute.
const CLOSE: (f64, f64) = (1.3e-6, 1e-5);

fn main() -> ExitCode {
    common::end(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    // As the Python program does: the sums of a product of matrices depend on how many threads share it.
    tch::set_num_threads(1);
    let checkpoint = Checkpoint::read(&args.file)?;
    let batch = batch(&Digits::read(&args.data.data)?)?;
    println!(
        "{:<10} {:<16} {:<9} {:<12} {:<12} {:<12} last weights",
        "", "", "loss", "gradients", "weights", "20 losses"
    );

    let mut unequal = Vec::new();
    for backend in [Backend::Composite, Backend::Auto] {
        for loss in chosen(&args.loss, LossName::All) {
            let result = with_backend(backend, || go_on(loss, &checkpoint, &batch))?;
            let differences = result.compare(&checkpoint, &loss.key())?;
            let engine = if backend == Backend::Composite { "composite" } else { "engine" };
            let [value, gradients, weights, losses, last] = differences.each_ref().map(Difference::to_string);
            println!("{engine:<10} {:<16} {value:<9} {gradients:<12} {weights:<12} {losses:<12} {last}", loss.key());
            ensure!(differences.iter().all(|difference| difference.is_close), "{engine}, {}: not close", loss.key());
            let is_exact = differences.iter().all(|difference| difference.most == 0.0);
            if backend == Backend::Composite && loss.is_of_torch() && !is_exact {
                unequal.push(loss.key());
            }
            if let (Some(file), Backend::Composite) = (&args.save, backend) {
                result.save(file)?;
            }
        }
    }
    ensure!(!args.exact || unequal.is_empty(), "not equal bit by bit: {}", unequal.join(", "));
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------------
// The losses
// ---------------------------------------------------------------------------------------------------------------------

/// The losses that the Python program goes on with.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum LossName {
    /// Each of the others, one after the other
    All,
    /// CrossEntropyLoss with class weights and label smoothing
    CrossEntropy,
    /// HuberLoss of one-hot targets, with a delta of 0.5
    Huber,
    /// BCEWithLogitsLoss of one-hot targets
    BceWithLogits,
    /// torchvision's sigmoid_focal_loss of one-hot targets
    SigmoidFocal,
}

impl LossName {
    /// Its name in the file.
    fn key(self) -> String {
        typed(self).replace('-', "_")
    }

    /// Whether its composite is PyTorch's own operation.
    fn is_of_torch(self) -> bool {
        self != Self::SigmoidFocal
    }

    fn loss(self, logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
        let one_hot = || classes.one_hot(10).to_kind(Kind::Float);
        Ok(match self {
            Self::CrossEntropy | Self::All => {
                let weight = Tensor::linspace(0.5, 1.5, 10, (Kind::Float, Device::Cpu));
                CrossEntropyLoss::new().weight(weight).label_smoothing(0.1).f_forward(logits, classes)?
            }
            Self::Huber => HuberLoss::new().delta(0.5).f_forward(logits, &one_hot())?,
            Self::BceWithLogits => BceWithLogitsLoss::new().f_forward(logits, &one_hot())?,
            Self::SigmoidFocal => SigmoidFocalLoss::new().reduction(Reduction::Mean).f_forward(logits, &one_hot())?,
        })
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Going on
// ---------------------------------------------------------------------------------------------------------------------

/// The net of the Python program. The names of its variables are those of the state dict.
fn net(path: &nn::Path) -> nn::Sequential {
    nn::seq()
        .add(nn::conv2d(path / "0", 1, 4, 3, same_size(3)))
        .add_fn(Tensor::relu)
        .add_fn(|images| images.max_pool2d_default(2).flatten(1, -1))
        .add(nn::linear(path / "4", 64, 10, Default::default()))
}

/// What a training led to.
struct Resumed {
    losses: Vec<f32>,
    gradients: HashMap<String, Tensor>,
    weights: HashMap<String, Tensor>,
    last: HashMap<String, Tensor>,
    adam: Adam,
}

fn go_on(loss: LossName, checkpoint: &Checkpoint, (images, classes): &(Tensor, Tensor)) -> Result<Resumed> {
    let variables = nn::VarStore::new(Device::Cpu);
    let net = net(&variables.root());
    let mut parameters = variables.variables();
    tch::no_grad(|| -> Result<()> {
        for (name, parameter) in &mut parameters {
            parameter.f_copy_(checkpoint.get(&format!("weights.{name}"))?)?;
        }
        Ok(())
    })?;
    let mut adam = Adam::resume(checkpoint, parameters.keys())?;
    let (mut losses, mut gradients, mut weights) = (Vec::new(), HashMap::new(), HashMap::new());

    for step in 0..STEPS_AFTER {
        let loss = loss.loss(&net.forward(images), classes)?;
        parameters.values_mut().for_each(Tensor::zero_grad);
        loss.f_backward()?;
        losses.push(f32::try_from(&loss)?);
        if step == 0 {
            gradients = copies(&parameters, Tensor::grad);
        }
        tch::no_grad(|| adam.step(&mut parameters));
        if step == 0 {
            weights = copies(&parameters, Tensor::detach);
        }
    }
    let last = copies(&parameters, Tensor::detach);
    Ok(Resumed { losses, gradients, weights, last, adam })
}

fn copies(tensors: &HashMap<String, Tensor>, of: impl Fn(&Tensor) -> Tensor) -> HashMap<String, Tensor> {
    tensors.iter().map(|(name, tensor)| (name.clone(), of(tensor).copy())).collect()
}

/// `torch.optim.Adam`, operation by operation. The optimizers of tch start anew: they take up no state.
struct Adam {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    step: f64,
    exp_avg: HashMap<String, Tensor>,
    exp_avg_sq: HashMap<String, Tensor>,
}

impl Adam {
    fn resume<'a>(checkpoint: &Checkpoint, names: impl Iterator<Item = &'a String> + Clone) -> Result<Self> {
        let moments = |moment: &str| -> Result<HashMap<String, Tensor>> {
            let moments = names.clone().map(|name| {
                let tensor = checkpoint.get(&format!("{moment}.{name}"))?;
                Ok((name.clone(), tensor.copy()))
            });
            moments.collect()
        };
        let step = f64::try_from(checkpoint.get("step")?)?;
        let (exp_avg, exp_avg_sq) = (moments("exp_avg")?, moments("exp_avg_sq")?);
        Ok(Self { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, step, exp_avg, exp_avg_sq })
    }

    fn step(&mut self, parameters: &mut HashMap<String, Tensor>) {
        self.step += 1.0;
        let [beta1, beta2] = self.betas;
        let [correction1, correction2] = self.betas.map(|beta| 1.0 - beta.powf(self.step));
        for (name, parameter) in parameters {
            let gradient = parameter.grad();
            let (Some(mean), Some(square)) = (self.exp_avg.get_mut(name), self.exp_avg_sq.get_mut(name)) else {
                continue;
            };
            let _ = mean.lerp_(&gradient, 1.0 - beta1);
            // PyTorch's addcmul_ and addcdiv_ take a value, which tch's leave out: there it comes before the product.
            let _ = square.g_mul_scalar_(beta2);
            let _ = square.addcmul_(&(&gradient * (1.0 - beta2)), &gradient);
            let divisor = (square.sqrt() / correction2.powf(0.5)).g_add_scalar_(self.eps);
            let _ = parameter.addcdiv_(&(&*mean * (-self.lr / correction1)), &divisor);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Comparing
// ---------------------------------------------------------------------------------------------------------------------

/// What PyTorch wrote.
struct Checkpoint {
    file: PathBuf,
    tensors: HashMap<String, Tensor>,
}

impl Checkpoint {
    fn read(file: &Path) -> Result<Self> {
        let tensors = Tensor::read_safetensors(file)
            .with_context(|| format!("cannot read {} (examples/resume_from_pytorch.py makes it)", file.display()))?;
        Ok(Self { file: file.to_owned(), tensors: tensors.into_iter().collect() })
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("{} has no tensor {name}", self.file.display()))
    }
}

impl Resumed {
    /// Of the loss, the gradients, the weights after a step, all losses, and the weights after the last step.
    fn compare(&self, checkpoint: &Checkpoint, loss: &str) -> Result<[Difference; 5]> {
        let losses = Tensor::from_slice(&self.losses);
        let expected = checkpoint.get(&format!("{loss}.losses"))?;
        let all = |group: &str, tensors: &HashMap<String, Tensor>| -> Result<Difference> {
            let differences = tensors
                .iter()
                .map(|(name, tensor)| Difference::new(tensor, checkpoint.get(&format!("{loss}.{group}.{name}"))?));
            differences.collect::<Result<Vec<_>>>()?.into_iter().reduce(Difference::most).context("no tensors")
        };
        Ok([
            Difference::new(&losses.get(0), &expected.get(0))?,
            all("gradients", &self.gradients)?,
            all("weights", &self.weights)?,
            Difference::new(&losses, expected)?,
            all("last", &self.last)?,
        ])
    }

    /// Writes weights and state under the names of the Python program, which PyTorch goes on with.
    fn save(&self, file: &Path) -> Result<()> {
        let groups = [("weights", &self.last), ("exp_avg", &self.adam.exp_avg), ("exp_avg_sq", &self.adam.exp_avg_sq)];
        let tensors = groups.into_iter().flat_map(|(group, tensors)| {
            tensors.iter().map(move |(name, tensor)| (format!("{group}.{name}"), tensor.shallow_clone()))
        });
        let step = ("step".to_owned(), Tensor::from(self.adam.step as i64));
        let tensors: Vec<(String, Tensor)> = tensors.chain([step]).collect();
        Tensor::write_safetensors(&tensors, file).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// How far two tensors are apart.
struct Difference {
    /// The greatest absolute difference; 0 is equality bit by bit.
    most: f64,
    is_close: bool,
}

impl Difference {
    fn new(actual: &Tensor, expected: &Tensor) -> Result<Self> {
        ensure!(actual.size() == expected.size(), "{:?} is not {:?}", actual.size(), expected.size());
        let most = (actual.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max();
        Ok(Self { most: f64::try_from(most)?, is_close: actual.allclose(expected, CLOSE.0, CLOSE.1, false) })
    }

    fn most(self, other: Self) -> Self {
        Self { most: self.most.max(other.most), is_close: self.is_close && other.is_close }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        if self.most == 0.0 { f.write_str("equal") } else { write!(f, "{:.1e}", self.most) }
    }
}

/// The images and classes that the Python program goes on with: those after its 40 batches.
fn batch(digits: &Digits) -> Result<(Tensor, Tensor)> {
    ensure!(digits.len() > 0, "there are no images");
    let indices = Tensor::arange_start(STEPS_BEFORE * BATCH, (STEPS_BEFORE + 1) * BATCH, (Kind::Int64, Device::Cpu));
    let batch = digits.select(&indices.remainder(digits.len()));
    Ok((batch.images, batch.classes))
}

// ---------------------------------------------------------------------------------------------------------------------
// The command line
// ---------------------------------------------------------------------------------------------------------------------

/// Go on with a training where PyTorch stopped, and compare each number with PyTorch's.
#[derive(Parser)]
#[command(name = "resume_from_pytorch", after_help = EXAMPLES)]
struct Args {
    /// The loss to go on with; several are tried one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    loss: Vec<LossName>,

    /// What resume_from_pytorch.py wrote
    #[arg(long, value_name = "FILE")]
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/resume.safetensors"))]
    file: PathBuf,

    /// Fail where the composite of a loss of torch.nn is not equal bit by bit, for a file that was made on this machine
    #[arg(long)]
    exact: bool,

    /// Write the weights and Adam's state after the last step, of the last loss, for PyTorch to go on with
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    #[command(flatten)]
    data: DataArgs,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release --example resume_from_pytorch
  cargo run --release --example resume_from_pytorch -- --loss sigmoid-focal --save resumed.safetensors
  .venv/bin/python examples/resume_from_pytorch.py here.safetensors
  cargo run --release --example resume_from_pytorch -- --file here.safetensors --exact";
