//! Trains a small language model on words, with three losses of a large vocabulary, and then on preferences.
//!
//! ```sh
//! cargo run --release --example language_model                         # linear cross entropy, then DPO
//! cargo run --release --example language_model -- --loss all           # each loss, and the memory it takes
//! cargo run --release --example language_model -- --loss-file examples/language_model.toml
//! cargo run --release --example language_model -- --help
//! ```
//!
//! The text is that of `examples/data/README.md`: Psalms to Song of Songs, 76 362 words and marks, 3882 different ones.
//! The net is a recurrent one; what takes the memory is its last layer, whose output has a number for each word of the
//! vocabulary at each place of the text. The result is the perplexity of the held-out last tenth.
//!
//! Peak memory is that of one step of the last layer and its loss, forward and backward, without the arguments. It is
//! measured in a process of its own (on Linux and on the CPU alone), since memory that malloc keeps would blur it.
//!
//! Then direct preference optimisation (DPO) teaches the net to prefer the true end of a phrase to the same words with
//! two neighbours the other way round. The result is how often that worked for held-out phrases.
//!
//! Where to look: [`Head`] has the three losses, [`prefer`] is DPO.

mod common;

use std::collections::HashMap;
use std::env;
use std::fs::{File, read_to_string, write};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use common::args::{CommonArgs, chosen, read_description, typed};
use common::plot;
use common::training::{Curve, Plan, train};
use flate2::read::MultiGzDecoder;
use tch::nn::{Module, RNN};
use tch::{Device, Kind, Tensor, nn};
use tch_losses::{
    AdaptiveLogSoftmaxConfig, AdaptiveLogSoftmaxWithLoss, Chunking, CrossEntropyLoss, DpoLoss, LinearCrossEntropy,
    LinearHead, Loss, PairLogProbs, PreferenceLoss, SequenceLogProbs,
};

/// The numbers of a word and of the state.
const FEATURES: i64 = 128;
/// The words of a passage to learn from.
const PASSAGE: i64 = 32;
/// The passages of a step.
const BATCH_SIZE: i64 = 32;
const LEARNING_RATE: f64 = 5e-3;
/// The words of a phrase, and those of them that are its end.
const PHRASE: i64 = 20;
const PHRASE_END: i64 = 10;

fn main() -> ExitCode {
    common::end(run(&Args::parse()))
}

fn run(args: &Args) -> Result<()> {
    common::use_one_core();
    let device = args.common.device()?;
    let text = Text::read(&args.text)?.to_device(device);
    if args.peak_memory {
        return print_peak_memory(args, &text);
    }
    let (training, held_out) = text.split()?;
    let (words, vocabulary) = (training.size()[0], text.vocabulary);
    println!("device {device:?}, {words} words to learn from, a vocabulary of {vocabulary}");

    let mut curves = Vec::new();
    for name in args.losses() {
        let start = Instant::now();
        let (model, curve) = train_with(name, args, &training, &held_out, text.vocabulary)?;
        let memory = peak_memory(name, device)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("{:<22} perplexity {:.1}, {memory}, {seconds:.1} s", typed(name), curve.last_score());
        curves.push(curve);
        if name == LossName::LinearCrossEntropy {
            prefer(&model, args, &training, &held_out)?;
        }
    }
    plot::curves(&curves, "perplexity of held-out text", &args.common.picture("language_model.svg")?)
}

// ---------------------------------------------------------------------------------------------------------------------
// The losses
// ---------------------------------------------------------------------------------------------------------------------

/// The losses of a next word.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum LossName {
    /// Each of the others, one after the other
    All,
    /// CrossEntropyLoss of all logits at once
    CrossEntropy,
    /// LinearCrossEntropy: the same number, from the last layer, the logits of 64 words at a time
    LinearCrossEntropy,
    /// AdaptiveLogSoftmaxWithLoss: another last layer, which is smaller for rare words
    Adaptive,
}

/// The last layer and its loss.
enum Head {
    Logits { linear: nn::Linear },
    Linear { linear: nn::Linear, loss: LinearCrossEntropy },
    Adaptive(AdaptiveLogSoftmaxWithLoss),
}

impl Head {
    fn new(name: LossName, path: &nn::Path, vocabulary: i64, args: &Args) -> Result<Self> {
        let linear = || nn::linear(path / "linear", FEATURES, vocabulary, Default::default());
        Ok(match name {
            LossName::CrossEntropy => Self::Logits { linear: linear() },
            LossName::LinearCrossEntropy | LossName::All => {
                let loss = match &args.loss_file {
                    Some(file) => read_description(file)?,
                    None => LinearCrossEntropy::new().chunking(Chunking::Rows(64)),
                };
                Self::Linear { linear: linear(), loss }
            }
            LossName::Adaptive => {
                // The words are sorted by frequency: the first fifth makes up most of the text.
                let cutoffs = [vocabulary / 20, vocabulary / 5];
                let config = AdaptiveLogSoftmaxConfig::new().div_value(2.0);
                Self::Adaptive(AdaptiveLogSoftmaxWithLoss::f_new(
                    path / "adaptive",
                    FEATURES,
                    vocabulary,
                    &cutoffs,
                    config,
                )?)
            }
        })
    }

    /// The mean loss of states `[n, d]` and the words that follow, `[n]`.
    fn loss(&self, states: &Tensor, words: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Logits { linear } => CrossEntropyLoss::new().f_forward(&linear.forward(states), words)?,
            Self::Linear { linear, loss } => loss.f_forward(states, &linear.ws, words, linear.bs.as_ref())?,
            Self::Adaptive(adaptive) => adaptive.f_forward(states, words)?.loss,
        })
    }

    /// The layer of the losses that take it.
    fn linear<'a>(&'a self, states: &'a Tensor) -> Result<LinearHead<'a>> {
        let (Self::Logits { linear } | Self::Linear { linear, .. }) = self else {
            bail!("an adaptive softmax is no linear layer");
        };
        let head = LinearHead::new(states, &linear.ws);
        Ok(match &linear.bs {
            Some(bias) => head.bias(bias),
            None => head,
        })
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The model and its training
// ---------------------------------------------------------------------------------------------------------------------

struct Model {
    variables: nn::VarStore,
    words: nn::Embedding,
    memory: nn::GRU,
    head: Head,
}

impl Model {
    fn new(name: LossName, device: Device, vocabulary: i64, args: &Args) -> Result<Self> {
        tch::manual_seed(args.common.seed);
        let variables = nn::VarStore::new(device);
        let root = variables.root();
        let words = nn::embedding(&root / "words", vocabulary, FEATURES, Default::default());
        let memory = nn::gru(&root / "memory", FEATURES, FEATURES, Default::default());
        let head = Head::new(name, &(&root / "head"), vocabulary, args)?;
        Ok(Self { variables, words, memory, head })
    }

    /// What the model knows after each word: `[n, length, d]`, for passages `[n, length]`.
    fn states(&self, passages: &Tensor) -> Tensor {
        self.memory.seq(&self.words.forward(passages)).0
    }

    /// The loss of each word of passages `[n, length]` but the first.
    fn loss(&self, passages: &Tensor) -> Result<Tensor> {
        let length = passages.size()[1] - 1;
        let states = self.states(&passages.narrow(1, 0, length));
        self.head.loss(&states.reshape([-1, FEATURES]), &passages.narrow(1, 1, length).reshape([-1]))
    }

    /// The log-probability of the end of each phrase `[n, 20]`: `[n]`.
    fn end_log_probs(&self, phrases: &Tensor) -> Result<Tensor> {
        let states = self.states(&phrases.narrow(1, 0, PHRASE - 1)).narrow(1, PHRASE - PHRASE_END - 1, PHRASE_END);
        let ends = phrases.narrow(1, PHRASE - PHRASE_END, PHRASE_END);
        Ok(SequenceLogProbs::new().f_forward(self.head.linear(&states.contiguous())?, &ends)?)
    }
}

fn train_with(
    name: LossName,
    args: &Args,
    training: &Tensor,
    held_out: &Tensor,
    vocabulary: i64,
) -> Result<(Model, Curve)> {
    let model = Model::new(name, training.device(), vocabulary, args)?;
    let passages = pieces(training, PASSAGE + 1, PASSAGE);
    let plan = Plan {
        name: typed(name),
        epochs: args.common.epochs,
        samples: passages.size()[0],
        batch_size: BATCH_SIZE,
        lr: LEARNING_RATE,
    };
    let step = |batch: &Tensor| model.loss(&passages.index_select(0, &batch.to_device(passages.device())));
    let judged = pieces(held_out, PASSAGE + 1, PASSAGE);
    let curve = train(&plan, &model.variables, step, || Ok(f64::try_from(model.loss(&judged)?)?.exp()))?;
    Ok((model, curve))
}

/// Pieces of a text, `[n, length]`, that begin so many words after one another.
fn pieces(text: &Tensor, length: i64, step: i64) -> Tensor {
    text.unfold(0, length, step).contiguous()
}

// ---------------------------------------------------------------------------------------------------------------------
// Preferences
// ---------------------------------------------------------------------------------------------------------------------

/// Teaches the model to prefer the true end of a phrase, and prints for how many held-out phrases it learnt that: for how
/// many the true end has gained more than the other one (DPO's reward), and for how many it is the likelier one.
fn prefer(model: &Model, args: &Args, training: &Tensor, held_out: &Tensor) -> Result<()> {
    // Phrases to learn from overlap, so that there are more of them.
    let (pairs, judged) = (pairs(training, PHRASE / 4), pairs(held_out, PHRASE));
    // The reference is the model as it is now. It gets no gradient, and so its numbers are all that is needed of it.
    let log_probs = |[chosen, rejected]: &[Tensor; 2]| -> Result<[Tensor; 2]> {
        Ok([model.end_log_probs(chosen)?, model.end_log_probs(rejected)?])
    };
    let (reference, before) = tch::no_grad(|| anyhow::Ok((log_probs(&pairs)?, log_probs(&judged)?)))?;
    let ahead = |[chosen, rejected]: &[Tensor; 2]| chosen - rejected;
    let share = |right: Tensor| f64::try_from(right.to_kind(Kind::Double).mean(Kind::Double));

    let plan = Plan {
        name: "dpo".to_owned(),
        epochs: args.common.epochs.min(2),
        samples: pairs[0].size()[0],
        batch_size: BATCH_SIZE,
        lr: LEARNING_RATE / 20.0,
    };
    let step = |batch: &Tensor| {
        let of = |tensor: &Tensor| tensor.index_select(0, &batch.to_device(tensor.device()));
        let policy = log_probs(&pairs.each_ref().map(of))?;
        Ok(DpoLoss::new().beta(0.1).f_forward(as_pair(&policy), Some(as_pair(&reference.each_ref().map(of))))?)
    };
    let score = || Ok(share(ahead(&log_probs(&judged)?).gt_tensor(&ahead(&before)))?);
    let rewarded = 100.0 * train(&plan, &model.variables, step, score)?.last_score();
    let after = tch::no_grad(|| log_probs(&judged))?;
    let (before, after) = (100.0 * share(ahead(&before).gt(0.0))?, 100.0 * share(ahead(&after).gt(0.0))?);
    println!("{:<22} gained by the true end in {rewarded:.1} % of held-out phrases;", "dpo");
    println!("{:<22} it is the likelier one in {before:.1} % before, {after:.1} % after", "");
    Ok(())
}

/// Phrases that begin so many words after one another, and the same with a swap in their ends: `[n, 20]` each.
fn pairs(text: &Tensor, step: i64) -> [Tensor; 2] {
    let chosen = pieces(text, PHRASE, step);
    let (start, end) = (chosen.narrow(1, 0, PHRASE - PHRASE_END), chosen.narrow(1, PHRASE - PHRASE_END, PHRASE_END));
    let order = swapped(end.size()[0]).to_device(text.device());
    let rejected = Tensor::cat(&[start, end.gather(1, &order, false)], 1);
    [chosen, rejected]
}

/// For each phrase the order of the words of its end, with two neighbours of chance the other way round: `[n, 10]`.
fn swapped(phrases: i64) -> Tensor {
    let options = (Kind::Int64, Device::Cpu);
    let place = Tensor::arange(PHRASE_END, options).repeat([phrases, 1]);
    let first = Tensor::randint(PHRASE_END - 1, [phrases, 1], options);
    &place + place.eq_tensor(&first).to_kind(Kind::Int64) - place.eq_tensor(&(&first + 1)).to_kind(Kind::Int64)
}

fn as_pair([chosen, rejected]: &[Tensor; 2]) -> PairLogProbs<'_> {
    PairLogProbs::new(chosen, rejected)
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory
// ---------------------------------------------------------------------------------------------------------------------

/// What the last layer and its loss take at their peak, measured in a process of its own.
fn peak_memory(name: LossName, device: Device) -> Result<String> {
    if !cfg!(target_os = "linux") || device != Device::Cpu {
        return Ok("memory not measured here".to_owned());
    }
    // The same command, but for the losses. What malloc frees goes back to the system at once.
    let mut again = Command::new(env::current_exe()?);
    again.args(env::args().skip(1)).args(["--loss", &typed(name), "--peak-memory", "--device", "cpu"]);
    let output = again.env("MALLOC_MMAP_THRESHOLD_", "65536").output().context("cannot measure memory")?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "cannot measure memory: {}", message.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Takes one step, and prints how much the process grew.
fn print_peak_memory(args: &Args, text: &Text) -> Result<()> {
    let name = *args.loss.last().context("no loss")?;
    let model = Model::new(name, Device::Cpu, text.vocabulary, args)?;
    let count = (PASSAGE * BATCH_SIZE).min(text.words.size()[0]);
    let states = Tensor::rand([count, FEATURES], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let words = text.words.narrow(0, 0, count);
    let step = |rows: i64| -> Result<()> {
        model.head.loss(&states.narrow(0, 0, rows), &words.narrow(0, 0, rows))?.f_backward()?;
        Ok(())
    };
    // The first call starts threads and makes the gradients of the parameters.
    step(count.min(8))?;
    // The peak is from here on.
    write("/proc/self/clear_refs", "5")?;
    let before = status("VmRSS:")?;
    step(count)?;
    println!("peak memory {:.1} MiB", status("VmHWM:")? - before);
    Ok(())
}

/// A line of the process's status in MiB.
fn status(field: &str) -> Result<f64> {
    let status = read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field)).with_context(|| format!("no {field}"))?;
    let kibibytes: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kibibytes / 1024.0)
}

// ---------------------------------------------------------------------------------------------------------------------
// The data
// ---------------------------------------------------------------------------------------------------------------------

/// A text as numbers of words.
struct Text {
    /// Shape `[n]`. The most frequent word is 0, as an adaptive softmax wants it.
    words: Tensor,
    /// How many different ones there are.
    vocabulary: i64,
}

impl Text {
    /// Reads a text compressed with gzip.
    fn read(path: &Path) -> Result<Self> {
        let file = File::open(path)
            .with_context(|| format!("cannot open the text {} (--text names another)", path.display()))?;
        let mut text = String::new();
        MultiGzDecoder::new(file)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read {} as text compressed with gzip", path.display()))?;
        Self::parse(&text).with_context(|| format!("the text {}", path.display()))
    }

    /// Words are of small letters and apostrophes; each mark of a sentence is a word, too.
    fn parse(text: &str) -> Result<Self> {
        let mut words: Vec<String> = vec![String::new()];
        for letter in text.to_lowercase().chars() {
            let last = words.len() - 1;
            match letter {
                letter if letter.is_alphabetic() || letter == '\'' => words[last].push(letter),
                mark if ".,;:?!".contains(mark) => words.extend([mark.to_string(), String::new()]),
                _ => words.push(String::new()),
            }
        }
        words.retain(|word| !word.is_empty());
        let mut counts: HashMap<&str, i64> = HashMap::new();
        words.iter().for_each(|word| *counts.entry(word).or_default() += 1);
        let mut sorted: Vec<(&str, i64)> = counts.into_iter().collect();
        // The frequent ones first; by name where they are as frequent, so that each run has the same numbers.
        sorted.sort_by_key(|&(word, count)| (-count, word));
        let numbers: HashMap<&str, i64> = (0..).zip(&sorted).map(|(number, &(word, _))| (word, number)).collect();
        let vocabulary = numbers.len() as i64;
        ensure!(vocabulary >= 100, "it has {vocabulary} different words, expected at least 100");
        let words: Vec<i64> = words.iter().map(|word| numbers[word.as_str()]).collect();
        Ok(Self { words: Tensor::from_slice(&words), vocabulary })
    }

    fn to_device(&self, device: Device) -> Self {
        Self { words: self.words.to_device(device), vocabulary: self.vocabulary }
    }

    /// Nine tenths to learn from, and the last to be judged by.
    fn split(&self) -> Result<(Tensor, Tensor)> {
        let (all, held_out) = (self.words.size()[0], self.words.size()[0] / 10);
        ensure!(held_out > PASSAGE.max(PHRASE), "the text has {all} words, too few to hold some out");
        Ok((self.words.narrow(0, 0, all - held_out), self.words.narrow(0, all - held_out, held_out)))
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The command line
// ---------------------------------------------------------------------------------------------------------------------

/// Train a small language model on words, with a loss of a large vocabulary, and then on preferences.
#[derive(Parser)]
#[command(name = "language_model", after_help = EXAMPLES, args_override_self = true)]
struct Args {
    /// The loss to train with; several are trained one after the other. After linear-cross-entropy follows DPO
    #[arg(long, value_enum, value_delimiter = ',', default_value = "linear-cross-entropy")]
    loss: Vec<LossName>,

    /// A file with the options of LinearCrossEntropy, in TOML or, if it ends in .json, in JSON
    #[arg(long, value_name = "FILE")]
    loss_file: Option<PathBuf>,

    /// A text compressed with gzip
    #[arg(long, value_name = "FILE")]
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/wisdom.txt.gz"))]
    text: PathBuf,

    /// Print the peak memory of the last layer and its loss, and nothing else
    #[arg(long)]
    peak_memory: bool,

    #[command(flatten)]
    common: CommonArgs<4>,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release --example language_model
  cargo run --release --example language_model -- --loss all --epochs 4
  cargo run --release --example language_model -- --loss cross-entropy --peak-memory
  cargo run --release --example language_model -- --loss-file examples/language_model.toml";

impl Args {
    fn losses(&self) -> Vec<LossName> {
        chosen(&self.loss, LossName::All)
    }
}
