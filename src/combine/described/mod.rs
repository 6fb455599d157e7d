//! Losses described in data.

mod registry;
mod special;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};
use tch::{Device, Kind, TchError, Tensor};

use self::registry::LOSSES;
use super::{Term, TermParts, WeightedSum, WeightedSumOutput};
use crate::description::{Fields, LOSS, OptionValue, Place, Problem, Value, f_one_of};
use crate::loss::Part;
use crate::{Loss, LossError, MeanParts, option_tensors};

/// A loss that data describe: a training program reads it from JSON, TOML or another format of [serde].
///
/// A description has a field `loss` with the name of the loss, in snake case without the word "loss", and a field for
/// each option that is not the default. All losses of `(input, target)` of this crate can be described, but for those
/// that have parameters; [`names`](Self::names) and [`options`](Self::options) list them. PyTorch's class names are
/// names, too: `nn.MSELoss` is `mse`, and so are those of its functions and of other packages, in capitals or not, with
/// or without "loss". Each may have a field `when_empty`, which is [`when_empty`](Loss::when_empty): `"nan"`, `"zero"`
/// or
/// `"error"`. Enums are written in snake case, tensors as lists of numbers (or of booleans,
/// for a mask), with lists inside for more dimensions. `null` stands for an option that is none by default. A loss
/// alone, with all defaults, may be a string.
///
/// | TOML | Rust |
/// |---|---|
/// | `loss = "cross_entropy"`, `weight = [0.5, 1.0]`, `label_smoothing = 0.1` | `CrossEntropyLoss::new().weight(…).label_smoothing(0.1)` |
/// | `loss = "dice"`, `activation = "softmax"`, `include_background = false` | `DiceLoss::new().activation(Activation::Softmax)…` |
/// | `loss = "softmax_focal"`, `alpha = 0.25`, `ignore_index = "none"` | `SoftmaxFocalLoss::new().alpha(0.25).ignore_index(None)` |
/// | `loss = "dice_cross_entropy"`, `overlap = { loss = "jaccard" }` | `DiceCrossEntropyLoss::new().overlap(JaccardLoss::new())` |
///
/// A [`WeightedSum`] is `sum`, with a list `terms` of losses; each may have a `factor`, which is 1 by default, and a
/// `name`, which is that of the loss.
///
/// Each single loss can be read without the field `loss`, too, where a program knows which one it wants:
/// `serde_json::from_str::<DiceLoss>(r#"{"activation": "sigmoid"}"#)`.
///
/// # Writing
///
/// A loss is written into data by [serde], too, such as a log or a checkpoint: its name, and those of its options that
/// are not the default. What is read again is the same loss. A single loss is written without its name. Losses of other
/// arguments, such as [`TripletMarginLoss`](crate::TripletMarginLoss), have no name here, but their options are written
/// and read as a table in the same way. Data cannot say a function in place of an activation or a distance, which is an
/// error.
///
/// # Tensors
///
/// The weights of classes and the like are `Float` on the CPU. Where a loss wants them in another kind, or on the
/// device of its input, [`f_to`](Self::f_to) makes them so. Those of a single loss in another kind are written with it:
/// `{ kind = "double", values = [0.5, 1.0] }`; on which device they are is not written.
///
/// # Errors
///
/// Reading fails for an unknown loss or option, for a value of the wrong type or outside of its range, and for two
/// terms of one name, with a message that names the loss, the option and what is allowed, or the names that come
/// nearest. What depends on the input, such as the number of class weights, is looked at when the loss is computed.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{AnyLoss, Loss};
///
/// #[derive(serde::Deserialize)]
/// struct Training {
///     learning_rate: f64,
///     criterion: AnyLoss,
/// }
///
/// let training: Training = toml::from_str(
///     r#"
///     learning_rate = 1e-3
///
///     [criterion]
///     loss = "sum"
///
///     [[criterion.terms]]
///     factor = 0.5
///     loss = "dice"
///     activation = "softmax"
///
///     [[criterion.terms]]
///     factor = 0.5
///     loss = "cross_entropy"
///     weight = [0.2, 0.8]
///     "#,
/// )?;
/// let criterion = training.criterion.f_to(Device::Cpu, Kind::Double)?;
///
/// let logits = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0]).view([1, 2, 2]).set_requires_grad(true);
/// let output = criterion.f_forward_terms(&logits, &Tensor::from_slice(&[0_i64, 1]).view([1, 2]))?;
/// output.total.f_backward()?;
/// assert_eq!(output.terms[1].name, "cross_entropy");
///
/// let log = r#"{"loss":"sum","terms":[{"loss":"dice","activation":"softmax","factor":0.5},"#;
/// assert!(serde_json::to_string(&criterion)?.starts_with(log));
///
/// let error = serde_json::from_str::<AnyLoss>(r#"{"loss": "dice", "smooth": 1}"#).unwrap_err().to_string();
/// assert_eq!(error, "loss dice has no option smooth; did you mean smooth_nr, smooth_dr, log_loss?");
/// # assert_eq!(training.learning_rate, 1e-3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [serde]: https://docs.rs/serde
#[derive(Clone)]
#[must_use]
pub struct AnyLoss {
    name: &'static str,
    description: Value,
    built: Built,
}

#[derive(Clone)]
enum Built {
    One(Part),
    Sum(WeightedSum),
}

/// The name of a [`WeightedSum`], and its other ones.
const SUM: &[&str] = &["sum", "WeightedSum", "weighted_sum"];
/// Its only option.
const TERMS: &str = "terms";
/// What a term has beside its loss.
const FACTOR: &str = "factor";
const NAME: &str = "name";
/// What every loss may have beside its options.
const WHEN_EMPTY: &str = "when_empty";

impl AnyLoss {
    /// The names of all losses that can be described.
    pub fn names() -> impl Iterator<Item = &'static str> {
        LOSSES.iter().map(|entry| entry.names[0]).chain([SUM[0]])
    }

    /// The names of the options of a loss; none where there is no such loss.
    pub fn options(name: &str) -> Option<&'static [&'static str]> {
        if SUM.contains(&name) {
            return Some(&[TERMS]);
        }
        LOSSES.iter().find(|entry| entry.names.contains(&name)).map(|entry| entry.options)
    }

    /// The name of this loss.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The same loss with its tensors on `device` and in `kind`, such as those of the logits. Boolean ones stay
    /// Boolean.
    ///
    /// # Errors
    /// [`LossError::Kind`] for a kind that is not floating, [`LossError::Torch`] where libtorch cannot make the
    /// tensors.
    pub fn f_to(&self, device: Device, kind: Kind) -> Result<AnyLoss, LossError> {
        option_tensors::f_floating(kind)?;
        let again = AnyLoss::f_read(self.description.clone(), Place { device, kind: Some(kind) });
        // The description has been read before; only libtorch can fail.
        again.map_err(|message| LossError::Torch { source: TchError::Torch(message.clone()), message })
    }

    /// Computes the loss, and what each of its terms was where it is a sum; another loss is its only term.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument, the option or the term at fault.
    pub fn f_forward_terms(&self, input: &Tensor, target: &Tensor) -> Result<WeightedSumOutput, LossError> {
        match &self.built {
            Built::Sum(sum) => sum.f_forward_terms(input, target),
            Built::One(loss) => {
                let total = loss.lock().f_forward(input, target)?;
                let term = Term { name: self.name.to_owned(), factor: 1.0, loss: total.f_detach()? };
                Ok(WeightedSumOutput { total, terms: vec![term] })
            }
        }
    }

    /// The numerator and the denominator of each term where it is a sum; another loss is its only term.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument, the option or the term at fault.
    pub fn f_term_parts(&self, input: &Tensor, target: &Tensor) -> Result<Vec<TermParts>, LossError> {
        match &self.built {
            Built::Sum(sum) => sum.f_term_parts(input, target),
            Built::One(loss) => {
                let parts = loss.lock().f_parts(input, target)?;
                Ok(vec![TermParts { name: self.name.to_owned(), factor: 1.0, parts }])
            }
        }
    }

    fn f_read(description: Value, place: Place) -> Result<AnyLoss, Problem> {
        let (description, name, built) = f_build(&description, place)?;
        Ok(AnyLoss { name, description, built })
    }
}

/// The loss that is described, its name, and its description without what is the default.
fn f_build(description: &Value, place: Place) -> Result<(Value, &'static str, Built), Problem> {
    let names: Vec<&[&str]> = LOSSES.iter().map(|entry| entry.names).chain([SUM]).collect();
    let (name, mut fields) = f_one_of(description, &names)?;
    let named = (LOSS.to_owned(), Value::Text(name.to_owned()));
    let Some(entry) = LOSSES.iter().find(|entry| entry.names[0] == name) else {
        let (terms, sum) = f_sum(fields, place)?;
        return Ok((Value::Map(vec![named, (TERMS.to_owned(), terms)]), name, Built::Sum(sum)));
    };
    let given = fields.fields.clone();
    let mut when_empty = None;
    fields.f_read(WHEN_EMPTY, &mut when_empty, place)?;
    let (loss, said) = (entry.read)(fields, place)?;
    let told = given.into_iter().filter(|(option, value)| match option.as_str() {
        WHEN_EMPTY => *value != Value::Null,
        option => said.iter().any(|said| said == option),
    });
    // Null is a word of some formats alone.
    let in_words = |(option, value): &(String, Value)| match value {
        Value::Null => (option.clone(), Value::Text("none".to_owned())),
        value => (option.clone(), value.clone()),
    };
    let description = Value::Map([named].into_iter().chain(told.map(in_words)).collect());
    let loss = Part::new(match when_empty {
        Some(when_empty) => Box::new(loss.when_empty(when_empty)),
        None => loss,
    });
    Ok((description, name, Built::One(loss)))
}

/// The sum, and the description of its terms.
fn f_sum(mut fields: Fields, place: Place) -> Result<(Value, WeightedSum), Problem> {
    const EXPECTED: &str = "a list of losses, each with a factor, which is 1 by default";
    let (mut sum, mut described) = (WeightedSum::new(), Vec::new());
    match fields.take(TERMS) {
        Some(Value::List(terms)) if !terms.is_empty() => {
            for (index, term) in terms.iter().enumerate() {
                let in_term = |problem| format!("term {index}: {problem}");
                let (description, name, factor, built) = f_term(term, place).map_err(in_term)?;
                sum = built.add_to(sum, name, factor);
                described.push(description);
            }
        }
        Some(other) => return Err(format!("loss {}: option {TERMS} is {other}, expected {EXPECTED}", SUM[0])),
        None => return Err(format!("loss {}: option {TERMS} is missing, expected {EXPECTED}", SUM[0])),
    }
    fields.f_end(&[TERMS])?;
    sum.f_check_options().map_err(|error| format!("loss {}: {error}", SUM[0]))?;
    Ok((Value::List(described), sum))
}

/// A term of a sum: its description, name, factor, and the loss.
fn f_term(term: &Value, place: Place) -> Result<(Value, String, f64, Built), Problem> {
    let Value::Map(fields) = term else {
        let (description, name, built) = f_build(term, place)?;
        return Ok((description, name.to_owned(), 1.0, built));
    };
    let (own, rest): (Vec<_>, Vec<_>) = fields.iter().partition(|(field, _)| [FACTOR, NAME].contains(&field.as_str()));
    if own.iter().all(|(field, _)| field != FACTOR)
        && let Some((_, weight @ (Value::Integer(_) | Value::Number(_)))) =
            rest.iter().find(|(field, _)| field == "weight")
    {
        return Err(format!("option weight is {weight}, but what a term counts is its {FACTOR}"));
    }
    let (mut description, loss, built) = f_build(&Value::Map(rest.into_iter().cloned().collect()), place)?;
    let mut name = loss.to_owned();
    let mut factor = 1.0;
    for (field, value) in own {
        match (field.as_str(), value) {
            (NAME, Value::Text(text)) => name.clone_from(text),
            (NAME, other) => return Err(format!("{NAME} is {other}, expected a string")),
            (_, value) => {
                let Ok(number) = f64::f_read(value, place) else {
                    return Err(format!("{FACTOR} is {value}, expected a number"));
                };
                factor = number;
            }
        }
    }
    if let Value::Map(fields) = &mut description {
        fields.extend((factor != 1.0).then(|| (FACTOR.to_owned(), Value::Number(factor))));
        fields.extend((name != loss).then(|| (NAME.to_owned(), Value::Text(name.clone()))));
    }
    Ok((description, name, factor, built))
}

impl Built {
    fn add_to(self, sum: WeightedSum, name: String, factor: f64) -> WeightedSum {
        match self {
            Built::One(loss) => sum.with_part(name, factor, loss),
            Built::Sum(inner) => sum.term(name, factor, inner),
        }
    }
}

impl fmt::Debug for AnyLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnyLoss({})", self.description)
    }
}

impl Loss for AnyLoss {
    fn f_is_empty(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        match &self.built {
            Built::One(loss) => loss.lock().f_is_empty(input, target),
            Built::Sum(sum) => sum.f_is_empty(input, target),
        }
    }

    fn f_check_options(&self) -> Result<(), LossError> {
        match &self.built {
            Built::One(loss) => loss.lock().f_check_options(),
            Built::Sum(sum) => sum.f_check_options(),
        }
    }

    fn with_tensors(&self, replace: &mut dyn FnMut(&Tensor) -> Tensor) -> Option<Box<dyn Loss>> {
        match &self.built {
            Built::One(loss) => loss.lock().with_tensors(replace),
            Built::Sum(sum) => sum.with_tensors(replace),
        }
    }

    #[cfg(feature = "distributed")]
    fn described(&self) -> Option<String> {
        match &self.built {
            Built::One(loss) => loss.lock().described(),
            Built::Sum(sum) => sum.described(),
        }
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        match &self.built {
            Built::One(loss) => loss.lock().f_forward(input, target),
            Built::Sum(sum) => sum.f_forward(input, target),
        }
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        match &self.built {
            Built::One(loss) => loss.lock().f_parts(input, target),
            Built::Sum(sum) => sum.f_parts(input, target),
        }
    }
}

impl<'de> Deserialize<'de> for AnyLoss {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        AnyLoss::f_read(Value::deserialize(deserializer)?, Place::DEFAULT).map_err(D::Error::custom)
    }
}

/// Into the fields that describe it, without those that are the default.
impl Serialize for AnyLoss {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.description.serialize(serializer)
    }
}
