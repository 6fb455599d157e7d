use tch::{Kind, Tensor};

use crate::kernels::{Counted, NumberOperations};
use crate::{LossError, check};

/// How the losses of the pairs, triplets or anchors of a batch become the result.
///
/// Most pairs of a batch cost nothing once a model has learnt a little, so that a mean over all of them fades; the mean
/// over those that still cost something does not. Over no losses at all each of them is 0, except
/// [`None`](Self::None), which then is empty.
#[derive(Debug, Clone, Copy, PartialEq)]
#[doc(alias = "AvgNonZeroReducer")]
#[doc(alias = "MeanReducer")]
#[doc(alias = "SumReducer")]
#[doc(alias = "ThresholdReducer")]
#[doc(alias = "DoNothingReducer")]
pub enum EmbeddingReduction {
    /// The losses themselves, in one dimension: those of pairs row by row of the anchors.
    None,
    /// Their mean.
    Mean,
    /// The mean over those above 0.
    MeanNonZero,
    /// Their sum.
    Sum,
    /// The mean over those between the two.
    Threshold {
        /// Only losses above it count, where there is one.
        low: Option<f64>,
        /// Only losses below it count, where there is one.
        high: Option<f64>,
    },
}

impl EmbeddingReduction {
    /// Which losses count: those above the first number and below the second.
    pub(crate) fn bounds(self) -> Result<(Option<f64>, Option<f64>), LossError> {
        let (low, high) = match self {
            EmbeddingReduction::MeanNonZero => (Some(0.0), None),
            EmbeddingReduction::Threshold { low, high } => (low, high),
            _ => (None, None),
        };
        for (bound, value) in [("low", low), ("high", high)] {
            let value = value.unwrap_or(0.0);
            check::option(bound, value, value.abs() <= f64::from(f32::MAX), "a finite number of single precision")?;
        }
        Ok((low, high))
    }

    /// What an engine does; none for the losses themselves.
    pub(crate) fn f_counted(self) -> Result<Option<Counted>, LossError> {
        let (low, high) = self.bounds()?;
        let (low, high) = (low.unwrap_or(f64::NAN), high.unwrap_or(f64::NAN));
        let counted = Counted { low, high, mean: self != EmbeddingReduction::Sum };
        Ok((self != EmbeddingReduction::None).then_some(counted))
    }

    /// Reduces `losses`, of which those count that `exists` names, or all. A loss that is NaN makes the result NaN.
    pub(crate) fn f_apply(self, losses: &Tensor, exists: Option<&Tensor>) -> Result<Tensor, LossError> {
        let all = || losses.f_detach()?.f_ones_like()?.f_to_kind(Kind::Bool);
        let exists = exists.map_or_else(all, |exists| Ok(exists.shallow_clone()))?;
        if self == EmbeddingReduction::None {
            return Ok(losses.f_masked_select(&exists)?);
        }
        let (sum, count) = self.f_sum_and_count(losses, &exists)?;
        Ok(self.f_of_sum(&sum, &count)?.f_to_kind(losses.f_kind()?)?)
    }

    /// The sum, in double precision, and the number of those of `losses` that exist and count.
    pub(crate) fn f_sum_and_count(self, losses: &Tensor, exists: &Tensor) -> Result<(Tensor, Tensor), LossError> {
        let (mut counted, (low, high)) = (exists.shallow_clone(), self.bounds()?);
        if let Some(low) = low {
            counted = counted.f_logical_and(&losses.f_le_number(low)?.f_logical_not()?)?;
        }
        if let Some(high) = high {
            counted = counted.f_logical_and(&losses.f_ge_number(high)?.f_logical_not()?)?;
        }
        let sum = losses.f_masked_fill_number(&counted.f_logical_not()?, 0)?.f_sum(Kind::Double)?;
        Ok((sum, counted.f_sum(Kind::Int64)?))
    }

    /// Reduces losses of which the sum and the number are known. Not for [`None`](Self::None).
    pub(crate) fn f_of_sum(self, sum: &Tensor, count: &Tensor) -> Result<Tensor, LossError> {
        if self == EmbeddingReduction::Sum {
            return Ok(sum.shallow_clone());
        }
        Ok(sum.f_div(&count.f_clamp_min_number(1)?.f_to_kind(sum.f_kind()?)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::EmbeddingReduction::*;
    use super::*;

    #[test]
    fn each_counts_what_it_should() {
        let losses = Tensor::from_slice(&[0.0, 1.0, 2.0, 6.0, 100.0]).set_requires_grad(true);
        let exists = Tensor::from_slice(&[true, true, true, true, false]);
        let threshold = |low, high| Threshold { low, high };
        for (reduction, expected) in [
            (Mean, 2.25),
            (MeanNonZero, 3.0),
            (Sum, 9.0),
            (threshold(Some(1.0), Option::None), 4.0),
            (threshold(Some(0.0), Some(6.0)), 1.5),
            (threshold(Option::None, Some(2.0)), 0.5),
            (threshold(Some(6.0), Option::None), 0.0),
        ] {
            let reduced = reduction.f_apply(&losses, Some(&exists)).unwrap();
            assert_eq!(reduced.double_value(&[]), expected, "{reduction:?}");
            reduced.backward();
        }
        assert_eq!(losses.grad().double_value(&[4]), 0.0);
        assert_eq!(None.f_apply(&losses, Some(&exists)).unwrap().size(), [4]);
        assert_eq!(Sum.f_apply(&losses, Option::None).unwrap().double_value(&[]), 109.0);
    }

    #[test]
    fn nan_is_not_left_out() {
        let losses = Tensor::from_slice(&[1.0, f64::NAN]);
        for reduction in [Mean, MeanNonZero, Sum, Threshold { low: Option::None, high: Some(3.0) }] {
            assert!(reduction.f_apply(&losses, Option::None).unwrap().double_value(&[]).is_nan());
        }
    }
}
