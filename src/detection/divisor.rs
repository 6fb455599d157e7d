//! By what the losses of detection divide: an image may hold nothing that they are of.

use tch::{Kind, Tensor};

use crate::kernels::NumberOperations;
use crate::numeric::{f_reals, wide_kind};
use crate::{LossError, MeanParts, Reduction, check};

/// What the mean of a loss of detection divides the sum of the losses by.
///
/// Detectors sum over all places of an image and divide by how many of them hold something: mmdetection's `avg_factor`. A
/// number is [`Divisor::Number`].
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{DistributionFocalLoss, Divisor, Loss};
///
/// // An image without a box has nothing to learn from, where a mean would be 0 / 0.
/// let (logits, distances) = (Tensor::zeros([0, 17], (Kind::Float, Device::Cpu)), Tensor::from_slice::<f32>(&[]));
/// let loss = DistributionFocalLoss::new().divisor(Divisor::Positives).f_forward(&logits, &distances)?;
/// assert_eq!(f64::try_from(&loss)?, 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[doc(alias = "avg_factor")]
pub enum Divisor {
    /// How many losses there are, whatever the weights. The mean over none is NaN, and 0 for losses of boxes. The default.
    #[default]
    Losses,
    /// How many targets are positive, and at least 1: those above 0 of the losses of scores, and all of the losses of boxes and
    /// distances, which are given those of the positives alone.
    Positives,
    /// The sum of the weights, and at least 1; without weights each loss has the weight 1.
    Weights,
    /// This number above 0, such as the mean number of positives of all processes.
    Number(f64),
}

crate::option_tensors::without_tensors!(Divisor);

impl From<f64> for Divisor {
    fn from(number: f64) -> Self {
        Divisor::Number(number)
    }
}

impl Divisor {
    pub(crate) fn check(self) -> Result<(), LossError> {
        match self {
            Divisor::Number(number) => {
                check::option("divisor", number, number > 0.0 && number.is_finite(), "a finite number > 0")
            }
            _ => Ok(()),
        }
    }

    /// The divisor, without the bound, of losses of this shape. `positives` counts the positive targets.
    pub(crate) fn f_count(
        self,
        shape: &[i64],
        weight: Option<&Tensor>,
        like: &Tensor,
        positives: impl FnOnce() -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        let all = shape.iter().product::<i64>();
        let number = |number: f64| Tensor::f_full_number(&[], number, (Kind::Double, like.device()));
        Ok(match (self, weight) {
            (Divisor::Positives, _) => positives()?.f_to_kind(Kind::Double)?,
            (Divisor::Weights, Some(weight)) => weight.f_detach()?.f_expand(shape, false)?.f_sum(Kind::Double)?,
            (Divisor::Losses | Divisor::Weights, _) => number(all as f64)?,
            (Divisor::Number(given), _) => number(given)?,
        })
    }

    /// Numerator and denominator of a mean, given [`f_count`](Self::f_count), which counts as 1 where it is less.
    pub(crate) fn f_parts(self, sum: Tensor, count: Tensor) -> Result<MeanParts, LossError> {
        let parts = MeanParts::f_new(sum, count)?;
        Ok(match self {
            Divisor::Positives | Divisor::Weights => parts.at_least(1.0),
            Divisor::Losses | Divisor::Number(_) => parts,
        })
    }
}

/// How many targets are positive.
pub(crate) fn f_positives(target: &Tensor) -> Result<Tensor, LossError> {
    Ok(target.f_detach()?.f_gt_number(0)?.f_sum(Kind::Double)?)
}

/// What becomes of losses of detection.
pub(super) struct Reducing<'a> {
    pub(super) weight: Option<&'a Tensor>,
    pub(super) divisor: Divisor,
    pub(super) reduction: Reduction,
    /// The shape of the losses, and what has it.
    pub(super) shape: &'a [i64],
    pub(super) of: &'static str,
}

impl Reducing<'_> {
    /// The reduced loss of `input`, given the `losses` with any reduction.
    pub(super) fn f_apply(
        &self,
        input: &Tensor,
        positives: impl FnOnce() -> Result<Tensor, LossError>,
        losses: impl Fn(&Tensor, Reduction) -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        self.f_check(input)?;
        let counts = self.divisor != Divisor::Losses && self.reduction == Reduction::Mean;
        if self.weight.is_none() && !counts {
            return losses(input, self.reduction);
        }
        // A sum may be beyond half precision.
        let wide = input.f_to_kind(wide_kind(input)?)?;
        let loss = match (self.reduction, self.weight) {
            (Reduction::None, _) => self.f_weighted(&losses(&wide, Reduction::None)?)?,
            (Reduction::Sum, _) => self.f_sum(&wide, &losses)?,
            // The mean over no losses is the loss's own.
            (Reduction::Mean, _) if self.divisor == Divisor::Losses && self.shape.contains(&0) => {
                losses(&wide, Reduction::Mean)?
            }
            (Reduction::Mean, weight) => {
                let count = self.divisor.f_count(self.shape, weight, input, positives)?;
                self.divisor.f_parts(self.f_sum(&wide, &losses)?, count)?.f_value()?
            }
        };
        Ok(loss.f_to_kind(input.f_kind()?)?)
    }

    /// Numerator and denominator of the mean. The denominator has no bound, so that those of several calls can be added.
    pub(super) fn f_parts(
        &self,
        input: &Tensor,
        positives: impl FnOnce() -> Result<Tensor, LossError>,
        losses: impl Fn(&Tensor, Reduction) -> Result<Tensor, LossError>,
    ) -> Result<MeanParts, LossError> {
        self.f_check(input)?;
        let numerator = self.f_sum(&input.f_to_kind(wide_kind(input)?)?, &losses)?;
        self.divisor.f_parts(numerator, self.divisor.f_count(self.shape, self.weight, input, positives)?)
    }

    /// How many losses there are.
    pub(super) fn f_number(&self, input: &Tensor) -> Result<Tensor, LossError> {
        let number = self.shape.iter().product::<i64>();
        Ok(Tensor::f_full_number(&[], number, (Kind::Double, input.device()))?)
    }

    fn f_check(&self, input: &Tensor) -> Result<(), LossError> {
        self.divisor.check()?;
        let Some(weight) = self.weight else { return Ok(()) };
        check::devices(&[("input", input), ("weight", weight)])?;
        let size = weight.size();
        let fits = |(a, b): (&i64, &i64)| a == b || *a == 1;
        if size.len() <= self.shape.len() && size.iter().rev().zip(self.shape.iter().rev()).all(fits) {
            return Ok(());
        }
        let expected = format!("a shape that broadcasts to {:?}, that of {}", self.shape, self.of);
        Err(check::shape_error(("weight", weight), expected))
    }

    fn f_sum(
        &self,
        input: &Tensor,
        losses: impl Fn(&Tensor, Reduction) -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        match self.weight {
            Some(_) => Ok(self.f_weighted(&losses(input, Reduction::None)?)?.f_sum(None)?),
            None => losses(input, Reduction::Sum),
        }
    }

    fn f_weighted(&self, losses: &Tensor) -> Result<Tensor, LossError> {
        match self.weight {
            Some(weight) => Ok(losses.f_mul(&f_reals(("weight", weight), losses.f_kind()?)?)?),
            None => Ok(losses.shallow_clone()),
        }
    }
}
