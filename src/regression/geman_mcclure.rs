use tch::Tensor;

use super::few::Few;
use super::{Distances, elementwise, of_formula};
use crate::kernels::{NumberOperations, Pointwise, Real, choose};
use crate::numeric::f_number_over;
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The Geman-McClure loss: a squared error that levels off at 2.
///
/// For regression where some targets are plainly wrong: the pull of a target fades with the cube of its distance.
/// [`WelschLoss`](crate::WelschLoss) lets go of outliers sooner, [`CauchyLoss`](crate::CauchyLoss) later. None of the
/// three is convex: start near the solution, or with a large scale.
///
/// # Formula
///
/// ℓᵢ = 2 wᵢ dᵢ² / (dᵢ² + 4), dᵢ = (xᵢ − yᵢ) / c
///
/// where x is the input, y the target, c the scale and w the weight, 1 where there is none. The mean is Σ ℓᵢ / Σ wᵢ. It
/// is Barron's loss with α = −2.
///
#[doc = include_str!("../../docs/book/src/gallery/geman_mcclure.svg")]
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
/// `kornia.losses.GemanMcclureLoss` and `geman_mcclure_loss` of kornia 0.9.0, for c = 1; there losses are not reduced
/// by default. Geman and McClure, *Bayesian Image Analysis*, 1985; Barron, <https://arxiv.org/abs/1701.03077>.
///
/// # Differences from kornia
///
/// A difference whose square overflows has the loss 2, and not NaN.
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
/// use tch_losses::{GemanMcClureLoss, Loss};
///
/// let input = Tensor::from_slice(&[2.0, 1e30]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0.0, 0.0]);
///
/// let loss = GemanMcClureLoss::new().f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, (1.0 + 2.0) / 2.0);
/// assert_eq!(input.grad().double_value(&[0]), 0.25);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "GemanMcclureLoss")]
#[doc(alias = "geman_mcclure_loss")]
pub struct GemanMcClureLoss: "geman_mcclure";

/// The Geman-McClure loss with kornia's scale.
new {
    /// c > 0, the scale of the differences: from about there on they count as outliers.
    scale: f64 = 1.0,
    ..elementwise,
}
}

impl Loss for GemanMcClureLoss {
    of_formula!(GemanMcClure { scale }, f_losses, FEW);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::positive("scale", self.scale)
    }
}

#[derive(Clone, Copy)]
struct GemanMcClure {
    scale: f64,
}

impl Pointwise<2> for GemanMcClure {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (one, two, scale) = (R::of(1.0), R::of(2.0), R::of(2.0 * self.scale));
        let difference = (x - y) / scale;
        let size = difference.abs();
        let far = size.greater(one);
        // A ratio of at most 1, whose square does not overflow.
        let ratio = choose(far, one / size, size);
        let square = ratio * ratio;
        let share = one / (one + square);
        let loss = two * share * choose(far, one, square);
        let steepness = choose(far, square * ratio, ratio) * share * share;
        let slope = (two + two) * steepness * difference.sign() / scale;
        (loss, [slope, -slope])
    }
}

fn f_losses(GemanMcClure { scale }: GemanMcClure, x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
    let difference = x.f_sub(y)?.f_div_number(2.0 * scale)?;
    let Distances { near, far, is_far } = Distances::f_new(&difference, 1.0)?;
    let near = near.f_square()?;
    let near = near.f_mul_number(2)?.f_div(&near.f_add_number(1)?)?;
    let far = far.f_reciprocal()?.f_square()?.f_add_number(1)?.f_reciprocal()?.f_mul_number(2)?;
    Ok(far.f_where_self(&is_far, &near)?)
}

/// 2 / (1 + 1 / u²) of the difference u in units of 2 c. At 0 and at infinity that has the right limits.
const FEW: Few<GemanMcClure> = Few {
    f_losses: |GemanMcClure { scale }, x, y| {
        let u = x.f_sub(y)?.f_div_number(2.0 * scale)?;
        Ok((f_number_over(2.0, &u.f_pow_number(-2)?.f_add_number(1)?)?, vec![u]))
    },
    // 4 u / (1 + u²)² = 4 / ((u + 1 / u) (1 + u²))
    f_slopes: |GemanMcClure { scale }, kept, factor, number| {
        let u = &kept[0];
        let divisor = u.f_reciprocal()?.f_add(u)?.f_mul(&u.f_square()?.f_add_number(1)?)?;
        Ok(factor.f_mul_number(number * 2.0 / scale)?.f_div(&divisor)?)
    },
    of_difference: true,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regression::robust;

    fn loss(scale: f64, weight: Option<Tensor>, reduction: Reduction) -> Box<dyn Loss> {
        Box::new(GemanMcClureLoss { weight, ..GemanMcClureLoss::new().scale(scale).reduction(reduction) })
    }

    #[test]
    fn the_scale_is_positive() {
        robust::assert_scale_is_positive("scale", loss);
    }

    #[test]
    fn huge_differences_do_not_overflow() {
        robust::assert_of_huge_differences(loss, 2.0, 0.0);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        robust::assert_gradients(loss);
    }
}
