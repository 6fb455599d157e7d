//! What a mean over nothing is.

use tch::{Device, Tensor};

use crate::kernels::NumberOperations;
use crate::option_tensors::Replace;
use crate::{Loss, LossError, MeanParts};

/// What a mean over nothing is: over an empty batch, over targets that are all ignored, over weights that are all 0.
///
/// By default it is what the reference of the loss has, NaN for most. [`Loss::when_empty`] sets it for any loss;
/// [`MeanParts::f_value_when_empty`] for the losses of other arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum WhenEmpty {
    /// NaN, with a gradient of 0.
    Nan,
    /// 0, with a gradient of 0: the sum with other losses goes on.
    Zero,
    /// An error: [`LossError::Empty`].
    Error,
}

crate::options::words!(WhenEmpty);

impl WhenEmpty {
    /// The value; the error, where that is asked for.
    fn f_value(self) -> Result<f64, LossError> {
        match self {
            WhenEmpty::Nan => Ok(f64::NAN),
            WhenEmpty::Zero => Ok(0.0),
            WhenEmpty::Error => Err(LossError::Empty),
        }
    }

    /// A mean, with the Boolean scalar that says whether it is over nothing, in which case its gradient is 0.
    pub(crate) fn f_choose(self, mean: &Tensor, empty: &Tensor) -> Result<Tensor, LossError> {
        if self == WhenEmpty::Error && empty.f_int64_value(&[])? != 0 {
            return Err(LossError::Empty);
        }
        match self.f_value() {
            Ok(value) => Ok(mean.f_masked_fill_number(empty, value)?),
            Err(_) => Ok(mean.shallow_clone()),
        }
    }
}

/// A loss with [`Loss::when_empty`].
///
/// Its value is that of the loss where it is over something. On the CPU a loss that is neither 0 nor NaN is known to
/// be; of another one the denominator is looked at, as it is of every one on CUDA, which [`WhenEmpty::Error`] waits
/// for.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct OverNothing<L> {
    loss: L,
    when_empty: WhenEmpty,
}

impl<L: Loss> OverNothing<L> {
    pub(crate) fn new(loss: L, when_empty: WhenEmpty) -> Self {
        Self { loss, when_empty }
    }

    /// The loss where its own value shows whether it is over nothing.
    fn f_on_host(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let loss = self.loss.f_forward(input, target)?;
        if loss.dim() != 0 {
            return Ok(loss);
        }
        let value = loss.f_double_value(&[])?;
        if !(value == 0.0 || value.is_nan()) || self.loss.f_is_empty(input, target)?.f_int64_value(&[])? == 0 {
            return Ok(loss);
        }
        let value = self.when_empty.f_value()?;
        f_constant(value, loss, [input, target])
    }

    /// The loss without a look at its value. What a mean over nothing makes of its gradient, such as 0 · ∞, is cut off
    /// on both sides of the loss.
    fn f_on_device(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let empty = self.loss.f_is_empty(input, target)?;
        let f_guarded = |tensor: &Tensor| -> Result<Tensor, LossError> {
            if !tensor.requires_grad() {
                return Ok(tensor.shallow_clone());
            }
            Ok(tensor.f_detach()?.f_where_self(&empty, tensor)?)
        };
        let loss = self.loss.f_forward(&f_guarded(input)?, &f_guarded(target)?)?;
        if loss.dim() != 0 {
            return Ok(loss);
        }
        self.when_empty.f_choose(&loss, &empty)
    }
}

/// `value` in the kind of `loss`, with a gradient of 0 for each argument that requires one.
fn f_constant(value: f64, loss: Tensor, arguments: [&Tensor; 2]) -> Result<Tensor, LossError> {
    let kind = loss.f_kind()?;
    let mut total = loss.f_detach()?.f_full_like_number(value)?;
    for argument in arguments.into_iter().filter(|argument| argument.requires_grad()) {
        let all = Tensor::f_full_number(&[], 1, (tch::Kind::Bool, argument.device()))?;
        total = total.f_add(&argument.f_masked_fill_number(&all, 0)?.f_sum(kind)?)?;
    }
    Ok(total)
}

impl<L: Loss> Loss for OverNothing<L> {
    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        // What the loss says of an undefined tensor comes from the loss.
        let device = if input.defined() { input.device() } else { Device::Cpu };
        if device == Device::Cpu { self.f_on_host(input, target) } else { self.f_on_device(input, target) }
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        Ok(self.loss.f_parts(input, target)?.when_empty(self.when_empty))
    }

    fn f_is_empty(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.loss.f_is_empty(input, target)
    }

    fn f_check_options(&self) -> Result<(), LossError> {
        self.loss.f_check_options()
    }

    fn with_tensors(&self, replace: &mut Replace) -> Option<Box<dyn Loss>> {
        Some(Box::new(OverNothing { loss: self.loss.with_tensors(replace)?, when_empty: self.when_empty }))
    }

    #[cfg(feature = "distributed")]
    fn described(&self) -> Option<String> {
        Some(format!("{} with {:?} over nothing", self.loss.described()?, self.when_empty))
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::{CrossEntropyLoss, MseLoss};

    /// As on CUDA.
    #[test]
    fn without_a_look_at_the_value_it_is_the_same() {
        let logits = || Tensor::from_slice(&[1.0, 2.0, 0.5, -1.0]).view([2, 2]).set_requires_grad(true);
        let ignored = Tensor::from_slice(&[-100_i64, -100]);
        let counted = Tensor::from_slice(&[-100_i64, 1]);
        for (when_empty, value) in [(WhenEmpty::Nan, f64::NAN), (WhenEmpty::Zero, 0.0)] {
            let input = logits();
            let entropy = CrossEntropyLoss::new().when_empty(when_empty);
            let loss = entropy.f_on_device(&input, &ignored).unwrap();
            loss.backward();
            assert_eq!(loss.double_value(&[]).to_bits(), value.to_bits());
            assert!(input.grad().equal(&input.zeros_like()));

            let plain = CrossEntropyLoss::new().forward(&logits(), &counted);
            assert_eq!(entropy.f_on_device(&logits(), &counted).unwrap(), plain);

            // The mean is 0 / 0, with a gradient of 0 · ∞.
            let input = logits();
            let mse = MseLoss::new().weight(input.zeros_like().detach()).when_empty(when_empty);
            let loss = mse.f_on_device(&input, &input.detach().zeros_like()).unwrap();
            loss.backward();
            assert_eq!(loss.double_value(&[]).to_bits(), value.to_bits());
            assert!(input.grad().equal(&input.zeros_like()));
        }
        let error = CrossEntropyLoss::new().when_empty(WhenEmpty::Error).f_on_device(&logits(), &ignored);
        assert!(matches!(error, Err(LossError::Empty)));
    }

    #[test]
    fn nan_of_an_input_stays_nan() {
        let input = Tensor::from_slice(&[f64::NAN, 1.0]);
        let loss = MseLoss::new()
            .when_empty(WhenEmpty::Zero)
            .forward(&input, &Tensor::zeros([2], (Kind::Double, Device::Cpu)));
        assert!(loss.double_value(&[]).is_nan());
    }
}
