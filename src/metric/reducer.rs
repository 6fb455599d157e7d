use tch::{Kind, Tensor};

use crate::kernels::{Counted, NumberOperations};
use crate::{LossError, check};

/// How the losses of the pairs, triplets or anchors of a batch become the result.
///
/// Once a model has learnt a little, most pairs of a batch have a loss of 0, so that the mean over all pairs is small;
/// the mean over the losses above 0 stays large. Over no losses at all each reduction is 0, except
/// [`None`](Self::None), which then is empty.
#[derive(Debug, Clone, Copy, PartialEq)]
#[doc(alias = "AvgNonZeroReducer")]
#[doc(alias = "MeanReducer")]
#[doc(alias = "SumReducer")]
#[doc(alias = "ThresholdReducer")]
#[doc(alias = "DoNothingReducer")]
#[doc(alias = "PerAnchorReducer")]
#[non_exhaustive]
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
    /// The mean of each anchor's pairs first, 0 for an anchor without any, and then the given reduction of these means:
    /// an anchor with many pairs counts as much as one with few. For losses that have one number for each anchor the
    /// first step changes nothing; for losses of triplets it is an error.
    PerAnchor(AnchorReduction),
}

/// How the means of the anchors become the result.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum AnchorReduction {
    /// The means themselves, one for each anchor.
    None,
    /// Their mean. The default.
    #[default]
    Mean,
    /// The mean over those above 0.
    MeanNonZero,
    /// Their sum.
    Sum,
    /// The mean over those between the two.
    Threshold {
        /// Only those above it count, where there is one.
        low: Option<f64>,
        /// Only those below it count, where there is one.
        high: Option<f64>,
    },
}

crate::option_tensors::without_tensors!(EmbeddingReduction);

impl From<AnchorReduction> for EmbeddingReduction {
    fn from(reduction: AnchorReduction) -> Self {
        match reduction {
            AnchorReduction::None => EmbeddingReduction::None,
            AnchorReduction::Mean => EmbeddingReduction::Mean,
            AnchorReduction::MeanNonZero => EmbeddingReduction::MeanNonZero,
            AnchorReduction::Sum => EmbeddingReduction::Sum,
            AnchorReduction::Threshold { low, high } => EmbeddingReduction::Threshold { low, high },
        }
    }
}

impl EmbeddingReduction {
    /// The same of losses of which each anchor has one.
    pub(crate) fn of_anchors(self) -> Self {
        match self {
            EmbeddingReduction::PerAnchor(of_anchors) => of_anchors.into(),
            other => other,
        }
    }

    /// The same where losses up to this `noise` are taken for 0.
    pub(crate) fn above(self, noise: f64) -> Self {
        match self {
            EmbeddingReduction::MeanNonZero => EmbeddingReduction::Threshold { low: Some(noise), high: None },
            EmbeddingReduction::PerAnchor(AnchorReduction::MeanNonZero) => {
                EmbeddingReduction::PerAnchor(AnchorReduction::Threshold { low: Some(noise), high: None })
            }
            other => other,
        }
    }

    /// Which losses count: those above the first number and below the second.
    pub(crate) fn bounds(self) -> Result<(Option<f64>, Option<f64>), LossError> {
        let (low, high) = match self.of_anchors() {
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

    /// The reduction that an engine does; none where it does not, for unreduced losses and for means of each anchor.
    pub(crate) fn f_counted(self) -> Result<Option<Counted>, LossError> {
        let (low, high) = self.bounds()?;
        let (low, high) = (low.unwrap_or(f64::NAN), high.unwrap_or(f64::NAN));
        let counted = Counted { low, high, mean: self != EmbeddingReduction::Sum };
        let listed = matches!(self, EmbeddingReduction::None | EmbeddingReduction::PerAnchor(_));
        Ok((!listed).then_some(counted))
    }

    /// Reduces `losses`, of which those count that `exists` names, or all. A loss that is NaN makes the result NaN.
    pub(crate) fn f_apply(self, losses: &Tensor, exists: Option<&Tensor>) -> Result<Tensor, LossError> {
        let all = || losses.f_detach()?.f_ones_like()?.f_to_kind(Kind::Bool);
        match (self, exists) {
            (EmbeddingReduction::None, None) => return Ok(losses.f_flatten(0, -1)?),
            // All count, so that the host knows how many.
            (EmbeddingReduction::Mean, None) if losses.numel() > 0 => return Ok(losses.f_mean(None)?),
            (EmbeddingReduction::Sum, None) => return Ok(losses.f_sum(None)?),
            _ => {}
        }
        let exists = exists.map_or_else(all, |exists| Ok(exists.shallow_clone()))?;
        if self == EmbeddingReduction::None {
            return Ok(losses.f_masked_select(&exists)?);
        }
        let (sum, count) = self.f_sum_and_count(losses, &exists)?;
        Ok(self.f_of_sum(&sum, &count)?.f_to_kind(losses.f_kind()?)?)
    }

    /// Reduces the `losses` `[N, M]` of anchors with others, of which those that `exists` names are there.
    pub(crate) fn f_apply_to_pairs(self, losses: &Tensor, exists: &Tensor) -> Result<Tensor, LossError> {
        let EmbeddingReduction::PerAnchor(of_anchors) = self else { return self.f_apply(losses, Some(exists)) };
        let kind = losses.f_kind()?;
        let sums = losses.f_zeros_unless(exists)?;
        let sums = sums.f_sum_dim_intlist([1_i64].as_slice(), false, kind)?;
        let counts = exists.f_sum_dim_intlist([1_i64].as_slice(), false, kind)?.f_clamp_min_number(1)?;
        Self::from(of_anchors).f_apply(&sums.f_div(&counts)?, None)
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
        let sum = losses.f_zeros_unless(&counted)?.f_sum(Kind::Double)?;
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
    fn anchors_count_alike() {
        let losses = Tensor::from_slice(&[1.0, 2.0, 9.0, 4.0, 9.0, 9.0, 9.0, 9.0, 9.0]).view([3, 3]);
        let exists = Tensor::from_slice(&[true, true, false, true, false, false, false, false, false]).view([3, 3]);
        let value = |of_anchors| PerAnchor(of_anchors).f_apply_to_pairs(&losses, &exists).unwrap();
        assert_eq!(Vec::<f64>::try_from(value(AnchorReduction::None)).unwrap(), [1.5, 4.0, 0.0]);
        assert_eq!(value(AnchorReduction::Mean).double_value(&[]), 5.5 / 3.0);
        assert_eq!(value(AnchorReduction::MeanNonZero).double_value(&[]), 2.75);
        assert_eq!(value(AnchorReduction::Sum).double_value(&[]), 5.5);
        let high = AnchorReduction::Threshold { low: Option::None, high: Some(4.0) };
        assert_eq!(value(high).double_value(&[]), 0.75);
    }

    #[test]
    fn nan_is_not_left_out() {
        let losses = Tensor::from_slice(&[1.0, f64::NAN]);
        for reduction in [Mean, MeanNonZero, Sum, Threshold { low: Option::None, high: Some(3.0) }] {
            assert!(reduction.f_apply(&losses, Option::None).unwrap().double_value(&[]).is_nan());
        }
    }
}
