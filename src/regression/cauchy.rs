use std::f64::consts::{LN_2, SQRT_2};

use tch::Tensor;

use super::few::Few;
use super::{Distances, elementwise, of_formula};
use crate::kernels::{NumberOperations, Pointwise, Real, choose};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The Cauchy loss, or Lorentzian: the negative log-likelihood of errors of the Cauchy distribution.
///
/// For regression with gross outliers: it grows with the logarithm of the distance, so that the gradient of a far
/// target is small but never 0. [`GemanMcClureLoss`](crate::GemanMcClureLoss) and [`WelschLoss`](crate::WelschLoss) let
/// go of outliers altogether; [`CharbonnierLoss`](crate::CharbonnierLoss) is convex and holds on to them.
///
/// # Formula
///
/// ℓᵢ = wᵢ log(1 + (xᵢ − yᵢ)² / 2c²)
///
/// where x is the input, y the target, c the scale and w the weight, 1 where there is none. The mean is Σ ℓᵢ / Σ wᵢ. It
/// is Barron's loss with α = 0.
///
#[doc = include_str!("../../docs/book/src/gallery/cauchy.svg")]
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
/// `kornia.losses.CauchyLoss` and `cauchy_loss` of kornia 0.9.0, for c = 1; there losses are not reduced by default.
/// Black and Anandan, *The Robust Estimation of Multiple Motions*, 1996; Barron, <https://arxiv.org/abs/1701.03077>.
///
/// # Differences from kornia
///
/// A difference whose square overflows has a finite loss.
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
/// use tch_losses::{CauchyLoss, Loss};
///
/// let input = Tensor::from_slice(&[1.0, 4.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1.0, 0.0]);
///
/// let loss = CauchyLoss::new().scale(2.0).f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 3_f64.ln() / 2.0).abs() < 1e-12);
/// assert!((input.grad().double_value(&[1]) - 1.0 / 6.0).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "cauchy_loss")]
#[doc(alias = "LorentzianLoss")]
pub struct CauchyLoss: "cauchy";

/// The Cauchy loss with kornia's scale.
new {
    /// c > 0, the scale of the differences: from about there on they count as outliers.
    scale: f64 = 1.0,
    ..elementwise,
}
}

impl Loss for CauchyLoss {
    of_formula!(Cauchy { scale }, f_losses, FEW);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::positive("scale", self.scale)
    }
}

/// The distance from which on the 1 has no part in the logarithm's digits. Its square is within single precision.
const FAR: f64 = 1e16;

#[derive(Clone, Copy)]
struct Cauchy {
    scale: f64,
}

impl Pointwise<2> for Cauchy {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (one, two, half, scale) = (R::of(1.0), R::of(2.0), R::of(0.5), R::of(self.scale));
        let difference = (x - y) / scale;
        let size = difference.abs();
        let far = size.greater(R::of(FAR));
        let square = half * size * size;
        let log = choose(far, size, square).ln_1p();
        let loss = choose(far, two * log - R::of(LN_2), log);
        let slope = choose(far, two / difference, difference / (one + square)) / scale;
        (loss, [slope, -slope])
    }
}

fn f_losses(Cauchy { scale }: Cauchy, x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
    let difference = x.f_sub(y)?.f_div_number(scale)?;
    let Distances { near, far, is_far } = Distances::f_new(&difference, FAR)?;
    let far = far.f_log()?.f_mul_number(2)?.f_sub_number(LN_2)?;
    let near = near.f_square()?.f_mul_number(0.5)?.f_log1p()?;
    Ok(far.f_where_self(&is_far, &near)?)
}

/// log(1 + w²) of the difference w in units of √2 c. Where the square overflows, and from some time before, that is
/// 2 log(1 + |w|), which is never less.
const FEW: Few<Cauchy> = Few {
    f_losses: |Cauchy { scale }, x, y| {
        let w = x.f_sub(y)?.f_div_number(SQRT_2 * scale)?;
        let far = w.f_abs()?.f_log1p_times(2.0)?;
        let losses = w.f_square()?.f_log1p()?.f_minimum(&far)?;
        Ok((losses, vec![w]))
    },
    // 2 w / (1 + w²) = 2 / (w + 1 / w)
    f_slopes: |Cauchy { scale }, kept, factor, number| {
        let sum = kept[0].f_reciprocal()?.f_add(&kept[0])?;
        Ok(factor.f_mul_number(number * SQRT_2 / scale)?.f_div(&sum)?)
    },
    of_difference: true,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backend;
    use crate::regression::robust;

    fn loss(scale: f64, weight: Option<Tensor>, reduction: Reduction) -> Box<dyn Loss> {
        Box::new(CauchyLoss { weight, ..CauchyLoss::new().scale(scale).reduction(reduction) })
    }

    #[test]
    fn the_scale_is_positive() {
        robust::assert_scale_is_positive("scale", loss);
    }

    #[test]
    fn huge_differences_do_not_overflow() {
        let target = Tensor::from_slice(&[0_f32, 0.0]);
        for backend in [Backend::Auto, Backend::Composite] {
            let input = Tensor::from_slice(&[1e25_f32, -1e25]).set_requires_grad(true);
            let loss = crate::with_backend(backend, || CauchyLoss::new().forward(&input, &target));
            loss.backward();
            assert!((loss.double_value(&[]) - (50.0 * 10_f64.ln() - LN_2)).abs() < 1e-4);
            assert_eq!(Vec::<f32>::try_from(input.grad() * 1e25).unwrap(), [1.0, -1.0]);
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        robust::assert_gradients(loss);
    }
}
