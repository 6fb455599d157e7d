//! Trains a variational autoencoder on handwritten digits, and draws digits that nobody wrote.
//!
//! ```sh
//! cargo run --release --example vae                        # binary cross entropy of pixels
//! cargo run --release --example vae -- --loss all          # each loss of the reconstruction
//! cargo run --release --example vae -- --loss-file examples/vae.toml
//! cargo run --release --example vae -- --help
//! ```
//!
//! The loss is that of the reconstruction, summed up over the pixels of an image, plus the Kullback-Leibler divergence
//! of the codes from the normal distribution. With the binary cross entropy it is a bound of −log p of an image, in
//! nats; the bound on held-out images is the result. Another loss of the reconstruction is another model of the pixels,
//! so that its number is no bound and is compared with none.
//!
//! Where to look: [`LossName::criterion`] has the losses, [`loss`] adds both parts up.

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use common::args::{CommonArgs, DataArgs, chosen, read_loss, typed};
use common::digits::{Digits, SIDE};
use common::picture::{self, enlarged, grey};
use common::plot;
use common::training::{Curve, Plan, train};
use tch::nn::Module;
use tch::{Device, Kind, Tensor, nn};
use tch_losses::{BceWithLogitsLoss, L1Loss, Loss, MseLoss, Reduction};

/// The numbers of a code.
const CODE: i64 = 8;
const PIXELS: i64 = SIDE * SIDE;
const HIDDEN: i64 = 256;
const BATCH_SIZE: i64 = 64;
const LEARNING_RATE: f64 = 3e-3;
/// The images in a row of the picture, and the rows of samples.
const SHOWN: i64 = 10;
const SAMPLE_ROWS: i64 = 4;

fn main() -> ExitCode {
    common::end(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    common::use_one_core();
    let device = args.common.device()?;
    let (training, held_out) = args.data.digits()?;
    let (training, held_out) = (training.to_device(device), held_out.to_device(device));
    println!("device {device:?}, {} images to learn from, {} held out", training.len(), held_out.len());

    let mut curves = Vec::new();
    for objective in args.objectives(device)? {
        let start = Instant::now();
        let (net, curve) = train_with(&objective, args, &training, &held_out)?;
        let (name, seconds) = (&objective.name, start.elapsed().as_secs_f64());
        println!("{name:<8} {:.2} per held-out image, {seconds:.1} s", curve.last_score());
        draw(&net, &objective, &held_out, &args.common.picture(&format!("vae-{name}.png"))?)?;
        curves.push(curve);
    }
    plot::curves(&curves, "reconstruction + divergence, held out", &args.common.picture("vae.svg")?)
}

// ---------------------------------------------------------------------------------------------------------------------
// The losses
// ---------------------------------------------------------------------------------------------------------------------

/// The losses between reconstructed and real pixels.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum LossName {
    /// Each of the others, one after the other
    All,
    /// BCEWithLogitsLoss: a pixel is a share of ink
    Bce,
    /// MSELoss, scaled as for pixels with a normal error of 0.2
    Mse,
    /// L1Loss, scaled as for pixels with a Laplacian error of 0.1
    L1,
}

/// What a training minimises.
struct Objective {
    name: String,
    criterion: Box<dyn Loss>,
    /// What the criterion is multiplied by, which weighs it against the divergence.
    factor: f64,
    /// From the decoder's output to pixels; the binary cross entropy of logits takes the output as it is.
    takes_logits: bool,
}

impl LossName {
    fn objective(self) -> Objective {
        let (criterion, factor): (Box<dyn Loss>, f64) = match self {
            Self::Bce | Self::All => (Box::new(BceWithLogitsLoss::new().reduction(Reduction::Sum)), 1.0),
            // −log of a normal density but for a constant: (x − y)² / 2σ².
            Self::Mse => (Box::new(MseLoss::new().reduction(Reduction::Sum)), 1.0 / (2.0 * 0.2 * 0.2)),
            Self::L1 => (Box::new(L1Loss::new().reduction(Reduction::Sum)), 1.0 / 0.1),
        };
        Objective { name: typed(self), criterion, factor, takes_logits: matches!(self, Self::Bce | Self::All) }
    }
}

/// The loss per image.
fn loss(objective: &Objective, output: &Decoded, images: &Tensor) -> Result<Tensor> {
    let pixels = if objective.takes_logits { output.logits.shallow_clone() } else { output.logits.sigmoid() };
    let reconstruction = objective.criterion.f_forward(&pixels, images)? * objective.factor;
    // KL(N(μ, σ²) ‖ N(0, 1)), in closed form.
    let divergence = (&output.mean.square() + output.log_var.exp() - 1.0 - &output.log_var).sum(Kind::Float) * 0.5;
    Ok((reconstruction + divergence) / images.size()[0] as f64)
}

// ---------------------------------------------------------------------------------------------------------------------
// The net and its training
// ---------------------------------------------------------------------------------------------------------------------

struct Vae {
    encoder: nn::Sequential,
    decoder: nn::Sequential,
}

/// What the net made of images `[n, 64]`.
struct Decoded {
    mean: Tensor,
    log_var: Tensor,
    logits: Tensor,
}

impl Vae {
    fn new(path: &nn::Path) -> Self {
        let layers = |path: nn::Path, inputs, outputs| {
            nn::seq()
                .add(nn::linear(&path / 0, inputs, HIDDEN, Default::default()))
                .add_fn(Tensor::relu)
                .add(nn::linear(&path / 1, HIDDEN, HIDDEN, Default::default()))
                .add_fn(Tensor::relu)
                .add(nn::linear(&path / 2, HIDDEN, outputs, Default::default()))
        };
        Self { encoder: layers(path / "encoder", PIXELS, 2 * CODE), decoder: layers(path / "decoder", CODE, PIXELS) }
    }

    /// Draws a code for each image and decodes it.
    fn forward(&self, images: &Tensor) -> Decoded {
        let code = self.encoder.forward(images);
        let (mean, log_var) = (code.narrow(1, 0, CODE), code.narrow(1, CODE, CODE));
        let drawn = &mean + (&log_var * 0.5).exp() * mean.randn_like();
        Decoded { logits: self.decoder.forward(&drawn), mean, log_var }
    }
}

fn train_with(objective: &Objective, args: &Args, training: &Digits, held_out: &Digits) -> Result<(Vae, Curve)> {
    tch::manual_seed(args.common.seed);
    let variables = nn::VarStore::new(training.images.device());
    let net = Vae::new(&variables.root());
    let plan = Plan {
        name: objective.name.clone(),
        epochs: args.common.epochs,
        samples: training.len(),
        batch_size: BATCH_SIZE,
        lr: LEARNING_RATE,
    };
    let step = |batch: &Tensor| {
        let images = training.select(&batch.to_device(training.images.device())).images.flatten(1, -1);
        loss(objective, &net.forward(&images), &images)
    };
    let held_out = held_out.images.flatten(1, -1);
    let curve =
        train(&plan, &variables, step, || Ok(f64::try_from(loss(objective, &net.forward(&held_out), &held_out)?)?))?;
    Ok((net, curve))
}

/// Draws real images, their reconstructions, and images of codes that are drawn from the normal distribution.
fn draw(net: &Vae, objective: &Objective, digits: &Digits, file: &Path) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let real = digits.images.narrow(0, 0, SHOWN).flatten(1, -1);
    let again = net.decoder.forward(&net.encoder.forward(&real).narrow(1, 0, CODE)).sigmoid();
    let codes = Tensor::randn([SAMPLE_ROWS * SHOWN, CODE], (Kind::Float, Device::Cpu)).to_device(real.device());
    let samples = net.decoder.forward(&codes).sigmoid();
    let mut rows = vec![row(&real), row(&again)];
    rows.extend(samples.split(SHOWN, 0).iter().map(row));
    println!("{:<8} rows: real, reconstructed, and {SAMPLE_ROWS} of samples", objective.name);
    picture::save_tiles(&rows, file)
}

fn row(images: &Tensor) -> Vec<Tensor> {
    (0..images.size()[0]).map(|at| enlarged(&grey(&images.get(at).view([SIDE, SIDE])), 4)).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// The command line
// ---------------------------------------------------------------------------------------------------------------------

/// Train a variational autoencoder on handwritten digits, with a loss of the reconstruction of your choice.
#[derive(Parser)]
#[command(name = "vae", after_help = EXAMPLES)]
struct Args {
    /// The loss of the reconstruction; several are trained one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "bce")]
    loss: Vec<LossName>,

    /// A file that describes a loss of pixels from 0 to 1, in TOML or, if it ends in .json, in JSON; it should be a sum
    #[arg(long, value_name = "FILE", conflicts_with = "loss")]
    loss_file: Option<PathBuf>,

    #[command(flatten)]
    data: DataArgs,

    #[command(flatten)]
    common: CommonArgs<60>,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release --example vae
  cargo run --release --example vae -- --loss bce,mse --seed 3
  cargo run --release --example vae -- --loss-file examples/vae.toml";

impl Args {
    fn objectives(&self, device: Device) -> Result<Vec<Objective>> {
        if let Some(path) = &self.loss_file {
            let criterion = Box::new(read_loss(path, device)?);
            return Ok(vec![Objective { name: "file".to_owned(), criterion, factor: 1.0, takes_logits: false }]);
        }
        Ok(chosen(&self.loss, LossName::All).into_iter().map(LossName::objective).collect())
    }
}
