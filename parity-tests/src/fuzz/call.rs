//! One call of a loss, made by chance.

use anyhow::Result;
use tch::{Kind, Tensor};
use tch_losses::{LossError, MeanParts};

use super::data::Data;
use super::random::Random;
use super::tensors::{describe, is_floating, values};
use super::{described, direct, families};

/// The square of a larger number is out of the range of single precision, or nearly so.
pub const LARGE: f64 = 1e15;

/// A loss with its options, as a function of the tensors of the call; options that are tensors are of the kind.
pub type Compute = Box<dyn Fn(&[Tensor], Kind) -> Result<Vec<Tensor>, LossError>>;
/// Numerator and denominator of the mean.
pub type Parts = Box<dyn Fn(&[Tensor], Kind) -> Result<MeanParts, LossError>>;

/// A call of a loss.
pub struct Call {
    /// The name of the loss.
    pub loss: &'static str,
    /// What the loss is, with its options.
    pub description: String,
    /// The same as data, where it is made of them.
    pub data: Option<Data>,
    /// The arguments, by name.
    pub arguments: Vec<(&'static str, Tensor)>,
    /// The kind of the tensors among the options.
    pub options: Kind,
    /// Computes it.
    pub compute: Compute,
    /// Its parts, where they are asked for: they are those of a mean, and so is the result.
    pub parts: Option<Parts>,
    /// What decides on the vectors that derivatives are multiplied with.
    pub seed: u64,
    /// Whether the second argument is the first one.
    pub same: bool,
    /// Whether an argument has a number that is not finite.
    pub infinite: bool,
    /// The largest number of the arguments and the options that is finite.
    pub largest: f64,
    /// The smallest number that is not 0.
    pub smallest: f64,
    /// The numbers among the options.
    pub numbers: Vec<f64>,
    /// Whether an embedding is so short, and not 0, that the slope of its unit vector multiplies every last digit.
    pub steep: bool,
    /// Whether an embedding has equal numbers, which is not 0.
    pub flat: bool,
    /// Whether the results are put into words.
    pub shown: bool,
    /// Which derivatives are computed.
    pub order: Order,
    /// Whether the backward pass keeps the graph, so that the second one is of the same forward pass.
    pub keep_graph: bool,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Call {
    /// A call of which nothing else is known.
    pub fn new(
        loss: &'static str,
        description: String,
        arguments: Vec<(&'static str, Tensor)>,
        options: Kind,
        compute: Compute,
    ) -> Call {
        Call {
            loss,
            description,
            data: None,
            arguments,
            options,
            compute,
            parts: None,
            seed: 0,
            same: false,
            infinite: false,
            largest: 0.0,
            smallest: f64::INFINITY,
            numbers: Vec::new(),
            steep: false,
            flat: false,
            shown: false,
            order: Order::First,
            keep_graph: false,
        }
    }

    /// The loss and its arguments in words.
    pub fn describe(&self) -> String {
        let mut text = format!("{}\n", self.description);
        if is_floating(self.options) {
            text += &format!("  tensors among the options: {:?}\n", self.options);
        }
        for (name, tensor) in &self.arguments {
            text += &format!("  {name}: {}\n", describe(tensor));
        }
        text
    }

    /// Whether the arguments are embeddings.
    pub fn takes_embeddings(&self) -> bool {
        families::takes_embeddings(self.loss) || direct::takes_embeddings(self.loss)
    }

    /// Whether the square of a number, or its product with others, may be out of the range of single precision.
    pub fn has_huge_numbers(&self) -> bool {
        self.infinite || self.largest > LARGE || self.numbers.iter().any(|number| number.abs() > LARGE)
    }

    /// Whether an option is so large that no digit is left of the numbers that it is added to, or so small.
    pub fn has_absurd_options(&self) -> bool {
        self.numbers.iter().any(|number| number.abs() > LARGE || *number != 0.0 && number.abs() < 1.0 / LARGE)
    }

    /// The largest option that is not too large for the others to count.
    pub fn largest_option(&self) -> f64 {
        self.numbers.iter().map(|number| number.abs()).filter(|number| *number < LARGE).fold(0.0, f64::max)
    }

    /// Whether an option is infinite or 0 in single precision.
    pub fn has_options_beyond_single(&self) -> bool {
        self.numbers.iter().any(|number| *number != 0.0 && !number.is_nan() && !(*number as f32).is_normal())
    }

    /// How many elements the arguments have.
    pub fn elements(&self) -> usize {
        self.arguments.iter().map(|(_, tensor)| if tensor.defined() { tensor.numel() } else { 0 }).sum()
    }
}

/// Which derivatives are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The gradients.
    First,
    /// The same once more under `create_graph`.
    CreateGraph,
    /// These and their derivatives.
    Second,
}

/// How a call is meant.
#[derive(Debug, Clone, Copy)]
pub struct Intent {
    /// Whether all is as the loss wants it, apart from the values that options and tensors have; otherwise anything.
    pub sensible: bool,
}

/// The names of all losses.
pub fn losses() -> Vec<&'static str> {
    families::losses().chain(direct::losses()).collect()
}

/// The loss of the call of a seed: the first thing that it decides.
pub fn loss_of(seed: u64, losses: &[&'static str]) -> &'static str {
    losses[Random::new(seed).below(losses.len())]
}

/// The call of a seed.
pub fn call(seed: u64, losses: &[&'static str]) -> Result<Call> {
    let mut random = Random::new(seed);
    let loss = *random.pick(losses);
    let intent = Intent { sensible: random.chance(0.75) };
    let mut call = match direct::call(loss, intent, &mut random) {
        Some(call) => call?,
        None => described::call(loss, intent, &mut random)?,
    };
    for (position, (_, tensor)) in call.arguments.iter_mut().enumerate() {
        let often = if position == 0 { 0.9 } else { 0.35 };
        if tensor.defined() && is_floating(tensor.kind()) && random.chance(often) {
            *tensor = tensor.f_detach()?.f_set_requires_grad(true)?;
        }
    }
    // Not every layout can be joined with another; then both stay as they are.
    let _ = alias(&mut call, &mut random);
    look_at_numbers(&mut call);
    call.seed = random.seed();
    call.keep_graph = random.chance(0.5);
    call.order = *random.pick(&[Order::First, Order::First, Order::CreateGraph, Order::Second, Order::Second]);
    Ok(call)
}

/// Which numbers there are among the arguments and the options.
fn look_at_numbers(call: &mut Call) {
    const SHORT: f64 = 1e-9;
    let words = call.description.split(|letter: char| !letter.is_ascii_alphanumeric() && !".-".contains(letter));
    call.numbers = words.filter_map(|word| word.parse::<f64>().ok()).collect();
    call.largest = call.largest_option();
    let of_embeddings = call.takes_embeddings();
    for (_, tensor) in call.arguments.iter().filter(|(_, tensor)| tensor.defined()) {
        let numbers = values(tensor).unwrap_or_default();
        let features = tensor.size().last().map_or(1, |size| (*size).max(1) as usize);
        let is_short = |row: &[f64]| row.iter().any(|x| *x != 0.0) && row.iter().all(|x| x.abs() < SHORT);
        call.steep |= of_embeddings && is_floating(tensor.kind()) && numbers.chunks(features).any(is_short);
        let is_flat = |row: &[f64]| row.len() > 1 && row[0] != 0.0 && row.iter().all(|x| *x == row[0]);
        call.flat |= of_embeddings && is_floating(tensor.kind()) && numbers.chunks(features).any(is_flat);
        for number in numbers {
            call.infinite |= !number.is_finite();
            call.smallest = if number == 0.0 { call.smallest } else { call.smallest.min(number.abs()) };
            call.largest = if number.is_finite() { call.largest.max(number.abs()) } else { call.largest };
        }
    }
}

/// Sometimes two arguments are one tensor, or share memory.
fn alias(call: &mut Call, random: &mut Random) -> Result<()> {
    if call.arguments.len() < 2 || !random.chance(0.03) {
        return Ok(());
    }
    let [(_, first), (_, second), ..] = &mut call.arguments[..] else { return Ok(()) };
    let same = first.defined() && second.defined() && first.size() == second.size() && first.kind() == second.kind();
    if !same {
        return Ok(());
    }
    if random.chance(0.5) || first.dim() == 0 {
        *second = first.shallow_clone();
        call.same = true;
        return Ok(());
    }
    let leaf = first.requires_grad();
    let both = Tensor::f_cat(&[&first.f_detach()?, &second.f_detach()?.f_narrow(0, 0, first.size()[0].min(1))?], 0)?;
    let rows = first.size()[0];
    *first = both.f_narrow(0, 0, rows)?.f_set_requires_grad(leaf)?;
    *second = both.f_narrow(0, first.size()[0].min(1), rows)?;
    Ok(())
}
