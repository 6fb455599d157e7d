//! Losses that no description makes: those of other arguments than an input and a target, and those with parameters.

mod language;
mod metric;
mod others;

use anyhow::Result;
use tch::{Kind, Tensor};
use tch_losses::{EmbeddingReduction, InvalidValues, LossError, Reduction};

use super::call::{Call, Compute};
use super::disturb::disturb;
use super::random::Random;
use super::tensors::{self, Intent, Values, special};

const FAMILIES: [&[&str]; 3] = [language::LOSSES, metric::LOSSES, others::LOSSES];

/// Their names.
pub fn losses() -> impl Iterator<Item = &'static str> {
    FAMILIES.into_iter().flatten().copied()
}

/// Whether the arguments are embeddings.
pub fn takes_embeddings(loss: &str) -> bool {
    metric::LOSSES.contains(&loss) || ["clip", "siglip"].contains(&loss)
}

/// A call of one of them; none for another name.
pub fn call(loss: &'static str, intent: Intent, random: &mut Random) -> Option<Result<Call>> {
    let kind = tensors::floating(random);
    let mut maker = Maker { intent, random, kind, words: vec![loss.to_owned()], arguments: Vec::new() };
    let compute = if language::LOSSES.contains(&loss) {
        language::make(loss, &mut maker)
    } else if metric::LOSSES.contains(&loss) {
        metric::make(loss, &mut maker)
    } else if others::LOSSES.contains(&loss) {
        others::make(loss, &mut maker)
    } else {
        return None;
    };
    Some(compute.and_then(|compute| maker.finish(loss, compute)))
}

/// Makes options and arguments, and remembers them.
struct Maker<'a> {
    intent: Intent,
    random: &'a mut Random,
    /// That of the input.
    kind: Kind,
    words: Vec<String>,
    arguments: Vec<(&'static str, Tensor)>,
}

impl Maker<'_> {
    fn finish(mut self, loss: &'static str, compute: Compute) -> Result<Call> {
        if !self.intent.sensible {
            disturb(&mut self.arguments, self.random);
        }
        Ok(Call::new(loss, self.words.join(", "), self.arguments, self.kind, compute))
    }

    /// Whether an option that is set is absurd.
    fn is_absurd(&mut self) -> bool {
        let often = if self.intent.sensible { 0.02 } else { 0.3 };
        self.random.chance(often)
    }

    /// A word for the description.
    fn say(&mut self, name: &str, value: impl std::fmt::Debug) {
        self.words.push(format!("{name} {value:?}"));
    }

    /// A number among the options: its default half of the time.
    fn number(&mut self, name: &str, default: f64, least: f64, most: f64) -> f64 {
        if self.random.chance(0.5) {
            return default;
        }
        let number = if self.is_absurd() { self.random.absurd() } else { self.random.uniform(least, most) };
        self.say(name, number);
        number
    }

    /// An integer among the options.
    fn integer(&mut self, name: &str, default: i64, least: i64, most: i64) -> i64 {
        if self.random.chance(0.5) {
            return default;
        }
        let number = if self.is_absurd() { self.random.absurd_integer() } else { self.random.between(least, most) };
        self.say(name, number);
        number
    }

    fn flag(&mut self, name: &str) -> bool {
        let flag = self.random.chance(0.5);
        if flag {
            self.say(name, flag);
        }
        flag
    }

    fn one_of<T: Copy + std::fmt::Debug>(&mut self, name: &str, items: &[T]) -> T {
        let item = *self.random.pick(items);
        self.say(name, item);
        item
    }

    fn reduction(&mut self) -> Reduction {
        self.one_of("reduction", &[Reduction::Mean, Reduction::Sum, Reduction::None])
    }

    fn embedding_reduction(&mut self) -> EmbeddingReduction {
        let (low, high) = (self.random.uniform(0.0, 0.5), self.random.uniform(0.5, 2.0));
        let threshold = EmbeddingReduction::Threshold { low: Some(low), high: Some(high) };
        use EmbeddingReduction::{Mean, MeanNonZero, None, Sum};
        self.one_of("reduction", &[None, Mean, MeanNonZero, Sum, threshold])
    }

    fn invalid_values(&mut self) -> InvalidValues {
        self.one_of("invalid_values", &[InvalidValues::Error, InvalidValues::Error, InvalidValues::Nan])
    }

    /// An argument of the input's kind.
    fn argument(&mut self, name: &'static str, shape: &[i64], values: Values) -> Result<()> {
        self.argument_of(name, shape, self.kind, values)
    }

    fn argument_of(&mut self, name: &'static str, shape: &[i64], kind: Kind, values: Values) -> Result<()> {
        let special = special(self.intent, self.random);
        self.arguments.push((name, tensors::tensor(shape, kind, values, special, self.random)?));
        Ok(())
    }

    /// An argument of class indices.
    fn classes(&mut self, name: &'static str, shape: &[i64], classes: i64) -> Result<()> {
        let kind = tensors::integer(self.random);
        self.argument_of(name, shape, kind, Values::Classes(classes))
    }
}

/// A result of one output.
fn one(result: Result<Tensor, LossError>) -> Result<Vec<Tensor>, LossError> {
    Ok(vec![result?])
}
