//! Activations, which turn an input into probabilities, and the checks of input and masks.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use tch::Tensor;

use crate::check::{self, Validity};
#[cfg(feature = "serde")]
use crate::description::{Mismatch, OptionValue, Place, Problem, Value};
use crate::kernels::{self, NumberOperations};
use crate::numeric::f_of_elements;
use crate::{InvalidValues, LossError, numeric};

/// How the input becomes probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Activation {
    /// The input holds probabilities. The default, where a number that is far from \[0, 1\] is an error: it is a logit.
    /// A loss that is given this activation takes any numbers as they are.
    #[default]
    None,
    /// A sigmoid of each element: classes that may overlap, or a single one.
    Sigmoid,
    /// A softmax over the classes: each pixel belongs to one of them. An error for a single class, whose softmax is
    /// always 1.
    Softmax,
}

crate::options::words!(Activation);

/// What the user has set as the activation of a loss.
#[derive(Debug, Clone, Default)]
pub(super) enum Activating {
    /// Nothing. In a sum with a loss of pixels the activation is that of the other loss, and alone there is none.
    #[default]
    Unset,
    /// One of the activations of this crate.
    Known(Activation),
    /// A function of the user's own.
    Other(OtherActivation),
}

/// A function that makes probabilities of an input.
#[derive(Clone)]
pub(super) struct OtherActivation(Arc<Activate>);

crate::option_tensors::without_tensors!(Activating);

#[cfg(feature = "serde")]
impl OptionValue for Activating {
    fn f_read(value: &Value, place: Place) -> Result<Self, Mismatch> {
        Activation::f_read(value, place).map(Activating::Known)
    }

    fn f_write(&self) -> Result<Value, Problem> {
        match self {
            Activating::Unset => Ok(Value::Null),
            Activating::Known(activation) => activation.f_write(),
            Activating::Other(_) => Err("data cannot say a function".into()),
        }
    }
}

type Activate = dyn Fn(&Tensor) -> Result<Tensor, LossError> + Send + Sync;

impl OtherActivation {
    pub(super) fn new(function: impl Fn(&Tensor) -> Result<Tensor, LossError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(function))
    }
}

impl fmt::Debug for OtherActivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a function")
    }
}

/// Numbers that may be probabilities, rounded or interpolated: a little beyond 0 and 1.
const PROBABILITIES: RangeInclusive<f64> = -0.01..=1.01;
const ANY: RangeInclusive<f64> = f64::NEG_INFINITY..=f64::INFINITY;

impl Activating {
    /// The activation that is left to do after [`f_prepare`](Self::f_prepare).
    pub(super) fn activation(&self) -> Activation {
        match self {
            Self::Known(activation) => *activation,
            Self::Unset | Self::Other(_) => Activation::None,
        }
    }

    /// What is set, or `activation` where nothing is.
    pub(super) fn or(&self, activation: Activation) -> Self {
        match self {
            Self::Unset => Self::Known(activation),
            said => said.clone(),
        }
    }

    /// The range that the numbers of the input are expected in.
    pub(super) fn expected(&self) -> RangeInclusive<f64> {
        if matches!(self, Self::Unset) { PROBABILITIES } else { ANY }
    }

    /// The input, or what the user's function makes of it.
    pub(super) fn f_prepare(&self, input: &Tensor) -> Result<Tensor, LossError> {
        let Self::Other(OtherActivation(function)) = self else { return Ok(input.shallow_clone()) };
        let result = function(&input.f_to_kind(numeric::wide_kind(input)?)?)?;
        let argument = ("other_act(input)", &result);
        check::devices(&[("input", input), argument])?;
        check::floating(argument)?;
        check::same_shape(argument, ("input", input))?;
        Ok(result.f_to_kind(numeric::wide_kind(input)?)?)
    }

    /// The probabilities of an `input` in single precision at least, and whether its numbers are valid.
    pub(super) fn f_probabilities(&self, input: &Tensor, mode: InvalidValues) -> Result<(Tensor, Validity), LossError> {
        f_check_softmax(self.activation(), input)?;
        let validity = f_check_input(input, self.expected(), mode)?;
        Ok((f_activate(&self.f_prepare(input)?, self.activation(), None)?, validity))
    }
}

/// A softmax of a single class is 1 whatever the logits are, so that nothing could be learnt.
pub(super) fn f_check_softmax(activation: Activation, input: &Tensor) -> Result<(), LossError> {
    let single = activation == Activation::Softmax && input.size().get(1) == Some(&1);
    check::option("activation", "Softmax", !single, "Sigmoid for an input of a single class")
}

/// Checks that all numbers of an input are in the `expected` range, or NaN, which makes the loss NaN.
pub(super) fn f_check_input(
    input: &Tensor,
    expected: RangeInclusive<f64>,
    mode: InvalidValues,
) -> Result<Validity, LossError> {
    if expected == ANY || mode.looks(input) && kernels::scan_range(input, expected.clone()) == Some(true) {
        return Ok(Validity::CHECKED);
    }
    let input = input.f_detach()?;
    let mut invalid = input.f_lt_number(*expected.start())?;
    let _ = invalid.f_logical_or_(&input.f_gt_number(*expected.end())?)?;
    Validity::f_new(("input", &input), invalid, || "probabilities in [0, 1], or an activation".into(), mode)
}

/// Checks that all masks hold numbers in \[0, 1\]. Ignored elements are 0 in `masks` already.
pub(super) fn f_check_masks(masks: &Tensor, ignored: Option<i64>, mode: InvalidValues) -> Result<Validity, LossError> {
    let expected = match ignored {
        Some(ignored) => format!("values in [0, 1], or ignore_index {ignored}"),
        None => "values in [0, 1]".to_owned(),
    };
    check::f_in_range(("target", masks), 0.0..=1.0, &expected, mode)
}

/// The loss, NaN where one of the arguments is not valid.
pub(super) fn f_poison(loss: Tensor, validity: &[Validity]) -> Result<Tensor, LossError> {
    let all = validity.iter().try_fold(Validity::CHECKED, |all, validity| all.f_and(validity, false))?;
    all.f_poison_own(loss, false)
}

/// The probabilities, 0 where they are ignored. `ignored` is a mask of elements, or with one class a mask of pixels.
pub(super) fn f_activate(
    input: &Tensor,
    activation: Activation,
    ignored: Option<&Tensor>,
) -> Result<Tensor, LossError> {
    let f_softmax = |input: &Tensor| f_of_elements(input, |input| Ok(input.f_softmax(1, input.f_kind()?)?));
    let Some(ignored) = ignored else {
        return Ok(match activation {
            Activation::None => input.shallow_clone(),
            Activation::Sigmoid => input.f_sigmoid()?,
            Activation::Softmax => f_softmax(input)?,
        });
    };
    // The value of an ignored logit must not matter, even where it is NaN. So it is masked before the activation.
    Ok(match activation {
        Activation::None => input.f_masked_fill_number(ignored, 0)?,
        Activation::Sigmoid => input.f_masked_fill_number(ignored, f64::NEG_INFINITY)?.f_sigmoid()?,
        Activation::Softmax if ignored.size()[1] == 1 => {
            f_softmax(&input.f_masked_fill_number(ignored, 0)?)?.f_masked_fill_number(ignored, 0)?
        }
        Activation::Softmax => f_softmax(input)?.f_masked_fill_number(ignored, 0)?,
    })
}

/// The option of what makes probabilities.
macro_rules! activation_option {
    ($($state:tt)*) => {
        crate::options::options! { @group $($state)*
            /// how the input becomes probabilities. Without an activation the input holds them, and a number far from
            /// \[0, 1\] is an error. With [`Activation::None`](crate::Activation::None) all numbers are taken as they
            /// are.
            pub(super) activation: crate::segmentation::activation::Activating =
                crate::segmentation::activation::Activating::Unset => activation,
        }
    };
}
pub(super) use activation_option;

/// Its setters: one of the activations, or a function.
macro_rules! activation {
    ({ $($doc:tt)* } $($place:ident).+) => {
        $($doc)*
        pub fn activation(mut self, activation: crate::Activation) -> Self {
            self.$($place).+ = crate::segmentation::activation::Activating::Known(activation);
            self
        }

        /// Sets a function that turns the input into probabilities, in place of an activation. It gets the input, `f16`
        /// and `bf16` as `f32`, and its result, of the same shape, is taken as it is. It cannot be described in data.
        /// None by default.
        pub fn other_act<F>(mut self, other_act: F) -> Self
        where
            F: Fn(&tch::Tensor) -> Result<tch::Tensor, crate::LossError> + Send + Sync + 'static,
        {
            let function = crate::segmentation::activation::OtherActivation::new(other_act);
            self.$($place).+ = crate::segmentation::activation::Activating::Other(function);
            self
        }
    };
}
pub(super) use activation;
