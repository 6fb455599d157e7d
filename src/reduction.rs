//! How one loss per element becomes the result.

use tch::Tensor;

use crate::LossError;

/// How the losses of the single elements become the result.
///
/// The mean is over the elements of the unreduced loss, except where a loss says otherwise (a weighted mean over the
/// classes of the targets, for example). Without elements the mean is NaN and the sum 0, as in PyTorch;
/// [`Loss::when_empty`](crate::Loss::when_empty) makes the mean 0 or an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[doc(alias = "reduction")]
pub enum Reduction {
    /// One loss per element, without a reduction.
    None,
    /// Their mean. The default.
    #[default]
    Mean,
    /// Their sum.
    Sum,
}

crate::options::words!(Reduction);

impl Reduction {
    /// Reduces the losses of the single elements.
    pub(crate) fn f_apply(self, losses: &Tensor) -> Result<Tensor, LossError> {
        Ok(match self {
            Reduction::None => losses.shallow_clone(),
            Reduction::Mean => losses.f_mean(None)?,
            Reduction::Sum => losses.f_sum(None)?,
        })
    }

    /// Reduces losses that were multiplied by `weight`; their mean divides by the sum of the weights.
    pub(crate) fn f_apply_weighted(self, losses: &Tensor, weight: &Tensor) -> Result<Tensor, LossError> {
        match self {
            Reduction::Mean => Ok(losses.f_sum(None)?.f_div(&weight.f_sum(None)?)?),
            _ => self.f_apply(losses),
        }
    }
}

impl From<Reduction> for tch::Reduction {
    fn from(reduction: Reduction) -> Self {
        match reduction {
            Reduction::None => tch::Reduction::None,
            Reduction::Mean => tch::Reduction::Mean,
            Reduction::Sum => tch::Reduction::Sum,
        }
    }
}
