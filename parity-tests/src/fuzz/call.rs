//! One call of a loss.

use tch::{Kind, Tensor};
use tch_losses::{LossError, MeanParts};

use super::data::Data;
use super::tensors::{describe, is_floating};
use crate::check::BackendName;

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
    /// Whether the arguments are embeddings.
    pub takes_embeddings: bool,
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
    /// The engines that are held against tensor operations.
    pub engines: BackendName,
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
            takes_embeddings: false,
            infinite: false,
            largest: 0.0,
            smallest: f64::INFINITY,
            numbers: Vec::new(),
            steep: false,
            flat: false,
            shown: false,
            engines: BackendName::Auto,
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
