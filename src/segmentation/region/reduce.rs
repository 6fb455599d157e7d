//! From the sizes of the regions to one loss: scores, empty masks, weights and reduction.

use tch::{Kind, Tensor};

use super::measure::Sizes;
use super::options::{EmptyMask, Grouping, Regions, WeightedMean};
use super::score::{Score, Scored, Smoothing, f_of_present};
use crate::kernels::NumberOperations;
use crate::numeric::f_times;
use crate::segmentation::activation::f_poison;
use crate::{LossError, Reduction};

impl Regions {
    fn smoothing(&self) -> Smoothing {
        Smoothing { numerator: self.smooth_nr, denominator: self.smooth_dr, eps: self.eps, log_loss: self.log_loss }
    }

    /// The loss of each region with this score.
    pub(in crate::segmentation) fn f_losses_of(&self, sizes: &Sizes, score: Score) -> Result<Tensor, LossError> {
        let scored = Scored { score, smoothing: self.smoothing(), of_present: false };
        scored.f_of(sizes.each(), Reduction::None, sizes.intersection.f_kind()?)
    }

    /// The loss of regions with this score, of this kind where that spares a conversion.
    pub(in crate::segmentation) fn f_loss_of(
        &self,
        sizes: &Sizes,
        score: Score,
        kind: Kind,
    ) -> Result<Tensor, LossError> {
        if self.empty_mask == EmptyMask::Skip || self.weight.is_some() {
            return self.f_reduce(&self.f_losses_of(sizes, score)?, sizes);
        }
        let scored = Scored { score, smoothing: self.smoothing(), of_present: self.empty_mask == EmptyMask::Zero };
        // Losses that are not reduced have the kind of the sizes.
        let kind = if self.reduction == Reduction::None { sizes.intersection.f_kind()? } else { kind };
        scored.f_of(sizes.each(), self.reduction, kind)
    }

    /// From the losses of the regions to the loss: empty masks, weights and reduction.
    pub(in crate::segmentation) fn f_reduce(&self, losses: &Tensor, sizes: &Sizes) -> Result<Tensor, LossError> {
        let losses = match self.empty_mask {
            EmptyMask::Formula => losses.shallow_clone(),
            EmptyMask::Zero | EmptyMask::Skip => f_of_present(losses, &sizes.target)?,
        };
        let counts = match self.empty_mask {
            EmptyMask::Formula | EmptyMask::Zero => None,
            EmptyMask::Skip => Some(sizes.target.f_gt_number(0)?.f_to_kind(losses.f_kind()?)?),
        };
        let weight = match self.grouping {
            Grouping::SampleAndClass | Grouping::Class => self.f_weight(&losses)?,
            Grouping::Sample | Grouping::All => None,
        };
        let losses = f_times(&losses, weight.as_ref())?;
        if self.reduction != Reduction::Mean {
            return self.reduction.f_apply(&losses);
        }
        let weight = weight.filter(|_| self.weighted_mean == WeightedMean::Weight);
        let shares = match (weight, counts) {
            (None, None) => return Ok(losses.f_mean(None)?),
            (Some(weight), None) => weight.f_expand_as(&losses)?,
            (None, Some(counts)) => counts,
            (Some(weight), Some(counts)) => counts.f_mul(&weight)?,
        };
        f_mean_of_means(&losses, &shares)
    }

    /// The loss in the input's kind; NaN where a class index was invalid.
    pub(in crate::segmentation) fn f_finish(&self, loss: &Tensor, sizes: &Sizes) -> Result<Tensor, LossError> {
        let loss = loss.f_to_kind(sizes.kind)?;
        f_poison(loss, &sizes.validity)
    }
}

/// The weighted mean over the last dimension, then the plain one. The mean over no regions is 1, the loss without
/// overlap.
fn f_mean_of_means(losses: &Tensor, shares: &Tensor) -> Result<Tensor, LossError> {
    let f_last = |tensor: &Tensor| match tensor.dim() {
        0 => Ok(tensor.shallow_clone()),
        _ => tensor.f_sum_dim_intlist(-1, false, None),
    };
    let (sum, share) = (f_last(losses)?, f_last(shares)?);
    let nothing = share.f_eq_number(0)?;
    let means = sum.f_div(&share.f_masked_fill_number(&nothing, 1)?)?.f_masked_fill_number(&nothing, 1)?;
    Ok(means.f_mean(None)?)
}
