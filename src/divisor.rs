//! What the mean of a loss of detection divides by: not always the number of losses, because an image may have no
//! objects.

use tch::{Kind, Tensor};

use crate::kernels::NumberOperations;
use crate::{LossError, MeanParts, check};

/// What the mean of a loss of detection divides the sum of the losses by.
///
/// Detectors sum the losses of all places of an image and divide by the number of places that have an object:
/// mmdetection's `avg_factor`. A number becomes a [`Divisor::Number`].
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{DistributionFocalLoss, Divisor, Loss};
///
/// // An image without a box has a loss of 0, where a mean would be 0 / 0.
/// let (logits, distances) = (Tensor::zeros([0, 17], (Kind::Float, Device::Cpu)), Tensor::from_slice::<f32>(&[]));
/// let loss = DistributionFocalLoss::new().divisor(Divisor::Positives).f_forward(&logits, &distances)?;
/// assert_eq!(f64::try_from(&loss)?, 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[doc(alias = "avg_factor")]
#[non_exhaustive]
pub enum Divisor {
    /// The number of losses, whatever the weights are. The mean over no losses is NaN, and 0 for losses of boxes. The
    /// default.
    #[default]
    Losses,
    /// The number of positive targets, and at least 1. In losses of scores these are the targets above 0; in losses of
    /// boxes and distances, which take the positives alone, they are all.
    Positives,
    /// The sum of the weights, and at least 1; without weights each loss has the weight 1.
    Weights,
    /// This number above 0, such as the mean number of positives of all processes.
    Number(f64),
}

crate::option_tensors::without_tensors!(Divisor);

crate::options::from_variants!(Divisor: f64 => Number);

impl Divisor {
    pub(crate) fn check(self) -> Result<(), LossError> {
        match self {
            Divisor::Number(number) => {
                check::option("divisor", number, number > 0.0 && number.is_finite(), "a finite number > 0")
            }
            _ => Ok(()),
        }
    }

    /// The divisor of losses of this shape, before the bound of at least 1. `positives` counts the positive targets.
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

    /// Numerator and denominator of a mean, given [`f_count`](Self::f_count), which is raised to at least 1.
    pub(crate) fn f_parts(self, sum: Tensor, count: Tensor) -> Result<MeanParts, LossError> {
        let parts = MeanParts::f_new(sum, count)?;
        Ok(match self {
            Divisor::Positives | Divisor::Weights => parts.at_least(1.0),
            Divisor::Losses | Divisor::Number(_) => parts,
        })
    }
}

/// The number of positive targets.
pub(crate) fn f_positives(target: &Tensor) -> Result<Tensor, LossError> {
    Ok(target.f_detach()?.f_gt_number(0)?.f_sum(Kind::Double)?)
}
