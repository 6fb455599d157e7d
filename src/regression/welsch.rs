use tch::Tensor;

use super::{elementwise, of_formula};
use crate::kernels::{NumberOperations, Pointwise, Real};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The Welsch loss, or Leclerc: a squared error that levels off at 1 as fast as a Gaussian fades.
///
/// For regression where some targets are plainly wrong: a target a few scales away has no pull at all.
/// [`GemanMcClureLoss`](crate::GemanMcClureLoss) and [`CauchyLoss`](crate::CauchyLoss) let go of outliers more slowly.
/// None of the three is convex: start near the solution, or with a large scale.
///
/// # Formula
///
/// ℓᵢ = wᵢ (1 − exp(−(xᵢ − yᵢ)² / 2c²))
///
/// where x is the input, y the target, c the scale and w the weight, 1 where there is none. The mean is Σ ℓᵢ / Σ wᵢ. It
/// is Barron's loss with α = −∞.
///
#[doc = include_str!("../../docs/book/src/gallery/welsch.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`
/// * `target`, `weight`: `[*]`, the same shape
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `kornia.losses.WelschLoss` and `welsch_loss` of kornia 0.9.0, for c = 1; there losses are not reduced by default.
/// Dennis and Welsch, *Techniques for Nonlinear Least Squares and Robust Regression*, 1978; Barron,
/// <https://arxiv.org/abs/1701.03077>.
///
/// # Differences from kornia
///
/// The gradient of an infinite difference is 0, and not NaN.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Kind`] for an input
/// that is not floating, [`LossError::Option`] for a scale that is not positive.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, WelschLoss};
///
/// let input = Tensor::from_slice(&[0.0, 1e30]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0.0, 0.0]);
///
/// let loss = WelschLoss::new().f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 0.5);
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [0.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "welsch_loss")]
#[doc(alias = "LeclercLoss")]
pub struct WelschLoss: "welsch";

/// The Welsch loss with kornia's scale.
new {
    /// c > 0, the scale of the differences: from about there on they count as outliers.
    scale: f64 = 1.0,
    ..elementwise,
}
}

impl Loss for WelschLoss {
    of_formula!(Welsch { scale }, f_losses);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::positive("scale", self.scale)
    }
}

/// A distance at which loss and slope are 1 and 0 to the last digit.
const FAR: f64 = 100.0;

#[derive(Clone, Copy)]
struct Welsch {
    scale: f64,
}

impl Pointwise<2> for Welsch {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (half, far, scale) = (R::of(0.5), R::of(FAR), R::of(self.scale));
        let difference = ((x - y) / scale).at_least(-far).at_most(far);
        let exponent = -half * difference * difference;
        let slope = difference * exponent.exp() / scale;
        (-exponent.exp_m1(), [slope, -slope])
    }
}

fn f_losses(Welsch { scale }: Welsch, x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
    let difference = x.f_sub(y)?.f_div_number(scale)?;
    // A clamp would have gradient 0 for NaN.
    let far = difference.f_abs()?.f_gt_number(FAR)?;
    Ok(difference.f_masked_fill_number(&far, FAR)?.f_square()?.f_mul_number(-0.5)?.f_expm1()?.f_neg()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regression::robust;

    fn loss(scale: f64, weight: Option<Tensor>, reduction: Reduction) -> Box<dyn Loss> {
        Box::new(WelschLoss { weight, ..WelschLoss::new().scale(scale).reduction(reduction) })
    }

    #[test]
    fn the_scale_is_positive() {
        robust::assert_scale_is_positive("scale", loss);
    }

    #[test]
    fn huge_differences_do_not_overflow() {
        robust::assert_of_huge_differences(loss, 1.0, 0.0);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        robust::assert_gradients(loss);
    }
}
