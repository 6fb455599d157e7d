//! The score of a region, from its sizes, and the loss of that score.

use tch::{Kind, Tensor};

use super::options::not_negative;
use crate::kernels::{NumberOperations, Pointwise, Real, choose, f_pointwise_to};
use crate::{LossError, Reduction, numeric};

/// The score of a region, as a function of the sizes of the intersection, of the input's region and of the target's.
#[derive(Clone, Copy)]
pub(in crate::segmentation) enum Score {
    /// Twice the intersection over both sizes.
    Dice,
    /// Intersection over union.
    Jaccard,
    /// With weights of false positives and false negatives.
    Tversky { alpha: f64, beta: f64 },
}

impl Score {
    pub(in crate::segmentation) fn f_tversky(alpha: f64, beta: f64) -> Result<Self, LossError> {
        not_negative("alpha", alpha)?;
        not_negative("beta", beta)?;
        Ok(Self::Tversky { alpha, beta })
    }

    fn f_losses(self, [intersection, input, target]: [&Tensor; 3], smoothing: Smoothing) -> Result<Tensor, LossError> {
        let eps = smoothing.eps;
        match self {
            Self::Dice => smoothing.f_losses(&intersection.f_mul_number(2)?, &input.f_add(target)?, 2.0 * eps),
            Self::Jaccard => smoothing.f_losses(intersection, &input.f_add(target)?.f_sub(intersection)?, eps),
            Self::Tversky { alpha, beta } => {
                let rest = 1.0 - (alpha + beta);
                if rest >= 0.0 {
                    // The same without differences.
                    let mut denominator = input.f_mul_number(alpha)?.f_add(&target.f_mul_number(beta)?)?;
                    if rest > 0.0 {
                        denominator = denominator.f_add(&intersection.f_mul_number(rest)?)?;
                    }
                    return smoothing.f_losses(intersection, &denominator, eps);
                }
                let false_positives = input.f_sub(intersection)?.f_mul_number(alpha)?;
                let false_negatives = target.f_sub(intersection)?.f_mul_number(beta)?;
                let denominator = intersection.f_add(&false_positives)?.f_add(&false_negatives)?;
                smoothing.f_losses(intersection, &denominator, eps)
            }
        }
    }
}

/// What keeps a score finite, and whether the loss is its logarithm.
#[derive(Clone, Copy)]
pub(super) struct Smoothing {
    pub(super) numerator: f64,
    pub(super) denominator: f64,
    pub(super) eps: f64,
    pub(super) log_loss: bool,
}

impl Smoothing {
    /// The loss of each region, of which the score is `numerator / denominator` with smoothing; the denominator is kept
    /// at `least` or more.
    fn f_losses(self, numerator: &Tensor, denominator: &Tensor, least: f64) -> Result<Tensor, LossError> {
        let numerator = numerator.f_add_number(self.numerator)?;
        let score = f_ratio(&numerator, &denominator.f_add_number(self.denominator)?, least)?;
        if !self.log_loss {
            return Ok(score.f_rsub_number(1)?);
        }
        Ok(numeric::f_at_least(&score, self.eps)?.f_log()?.f_neg()?)
    }

    /// The loss of a score, and its derivatives with respect to numerator and denominator.
    #[inline(always)]
    fn loss<R: Real>(self, numerator: R, denominator: R, least: f64) -> (R, R, R) {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let (numerator, sum) = (numerator + R::of(self.numerator), denominator + R::of(self.denominator));
        let small = R::Mask::from(least > 0.0) & sum.less(R::of(least));
        let denominator = choose(small, R::of(least), sum);
        // 0 / 0 is 0.
        let nothing = denominator.equal(zero);
        let denominator = choose(nothing, one, denominator);
        let score = choose(nothing, zero, numerator / denominator);
        let of_numerator = choose(nothing, zero, one / denominator);
        let of_denominator = choose(small, zero, -(score * of_numerator));
        if !self.log_loss {
            return (one - score, -of_numerator, -of_denominator);
        }
        let slope = choose(score.less(R::of(self.eps)), zero, -(one / score));
        (-score.at_least(R::of(self.eps)).ln(), slope * of_numerator, slope * of_denominator)
    }
}

/// The formula of the loss of a region.
#[derive(Clone, Copy)]
pub(super) struct Scored {
    pub(super) score: Score,
    pub(super) smoothing: Smoothing,
    /// Whether a region that is empty in the target has a loss of 0.
    pub(super) of_present: bool,
}

impl Scored {
    pub(super) fn f_of(self, sizes: [&Tensor; 3], reduction: Reduction, kind: Kind) -> Result<Tensor, LossError> {
        f_pointwise_to(kind, self, sizes, reduction, move |arguments| {
            let mut losses = self.score.f_losses(arguments, self.smoothing)?;
            if self.of_present {
                losses = f_of_present(&losses, arguments[2])?;
            }
            Ok(reduction.f_apply(&losses)?.f_to_kind(kind)?)
        })
    }

    #[inline(always)]
    fn of_all<R: Real>(self, [intersection, input, target]: [R; 3]) -> (R, [R; 3]) {
        let (one, two, eps) = (R::of(1.0), R::of(2.0), self.smoothing.eps);
        match self.score {
            Score::Dice => {
                let (loss, of_numerator, of_sum) = self.smoothing.loss(two * intersection, input + target, 2.0 * eps);
                (loss, [two * of_numerator, of_sum, of_sum])
            }
            Score::Jaccard => {
                let union = input + target - intersection;
                let (loss, of_intersection, of_union) = self.smoothing.loss(intersection, union, eps);
                (loss, [of_intersection - of_union, of_union, of_union])
            }
            Score::Tversky { alpha, beta } => {
                let (alpha, beta) = (R::of(alpha), R::of(beta));
                let sum = intersection + (input - intersection) * alpha + (target - intersection) * beta;
                let (loss, of_intersection, of_sum) = self.smoothing.loss(intersection, sum, eps);
                (loss, [of_intersection + (one - alpha - beta) * of_sum, alpha * of_sum, beta * of_sum])
            }
        }
    }
}

impl Pointwise<3> for Scored {
    #[inline(always)]
    fn evaluate<R: Real>(self, sizes: [R; 3]) -> (R, [R; 3]) {
        // Where empty regions cost something, none is taken for empty: no size is −1 or less.
        let absent = R::of(if self.of_present { 0.0 } else { -1.0 });
        let (loss, slopes) = self.of_all(sizes);
        // A NaN is kept, so that training shows where something has gone wrong.
        let nothing = sizes[2].less_equal(absent) & loss.is_number();
        let counted = |number: R| choose(nothing, R::of(0.0), number);
        let [a, b, c] = slopes;
        (counted(loss), [counted(a), counted(b), counted(c)])
    }
}

/// The losses of the regions that the target has; those of the others are 0, unless they are NaN.
pub(super) fn f_of_present(losses: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    let losses_are_numbers = losses.f_detach()?.f_eq_tensor(losses)?;
    let nothing = target.f_le_number(0)?.f_logical_and_(&losses_are_numbers)?;
    Ok(losses.f_masked_fill_number(&nothing, 0)?)
}

/// `numerator / denominator`, with a denominator of `least` or more; 0 / 0 is 0.
fn f_ratio(numerator: &Tensor, denominator: &Tensor, least: f64) -> Result<Tensor, LossError> {
    if least > 0.0 {
        return Ok(numerator.f_div(&numeric::f_at_least(denominator, least)?)?);
    }
    numeric::f_ratio(numerator, denominator)
}
