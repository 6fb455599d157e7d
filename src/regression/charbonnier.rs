use tch::Tensor;

use super::few::Few;
use super::{elementwise, of_formula};
use crate::kernels::{NumberOperations, Pointwise, Real, choose};
use crate::numeric::f_abs;
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The Charbonnier loss, or pseudo-Huber: a smooth distance of each element to its target.
///
/// For regression with outliers and for restoring images, where it gives sharper results than
/// [`MseLoss`](crate::MseLoss): near the target it is squared, and from about ε on it grows with the distance. It is
/// convex, as [`HuberLoss`](crate::HuberLoss) is, and all of its derivatives are continuous.
///
/// # Formula
///
/// ℓᵢ = wᵢ (√((xᵢ − yᵢ)² + ε²) − ε)
///
/// where x is the input, y the target and w the weight, 1 where there is none. The mean is Σ ℓᵢ / Σ wᵢ. With
/// [`CharbonnierMinimum::Eps`] the last ε is left out; the gradient is the same. Divided by ε it is Barron's loss with
/// α = 1 and the scale ε.
///
#[doc = include_str!("../../docs/book/src/gallery/charbonnier.svg")]
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
/// `kornia.losses.CharbonnierLoss` and `charbonnier_loss` of kornia 0.9.0, for ε = 1; there losses are not reduced by
/// default. Charbonnier et al., *Two Deterministic Half-Quadratic Regularization Algorithms for Computed Imaging*,
/// 1994; with ε = 10⁻³ and the minimum ε it is the loss of LapSRN, <https://arxiv.org/abs/1704.03915>.
///
/// # Differences from kornia
///
/// A difference whose square overflows has a finite loss.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Kind`] for an input
/// that is not floating, [`LossError::Option`] for an ε that is not positive.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{CharbonnierLoss, CharbonnierMinimum, Loss};
///
/// let input = Tensor::from_slice(&[4.0, 1.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0.0, 1.0]);
///
/// let loss = CharbonnierLoss::new().eps(3.0).f_forward(&input, &target)?;
/// loss.f_backward()?;
/// assert_eq!(f64::try_from(&loss)?, (5.0 - 3.0) / 2.0);
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [0.4, 0.0]);
///
/// let of_the_paper = CharbonnierLoss::new().eps(3.0).minimum(CharbonnierMinimum::Eps);
/// assert_eq!(f64::try_from(of_the_paper.f_forward(&input, &target)?)?, (5.0 + 3.0) / 2.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "charbonnier_loss")]
#[doc(alias = "PseudoHuberLoss")]
#[doc(alias = "pseudo_huber")]
pub struct CharbonnierLoss: "charbonnier";

/// The Charbonnier loss with kornia's ε.
new {
    /// ε > 0, the distance from which on the loss grows with the distance; the default is kornia's.
    eps: f64 = 1.0,
    /// the loss of an element that equals its target.
    minimum: CharbonnierMinimum = CharbonnierMinimum::Zero,
    ..elementwise,
}
}

/// The loss of an element that equals its target, in a [`CharbonnierLoss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum CharbonnierMinimum {
    /// 0, as in kornia and of Barron's loss. The default.
    #[default]
    Zero,
    /// ε, as in the papers of image restoration.
    Eps,
}

crate::options::words!(CharbonnierMinimum);

impl Loss for CharbonnierLoss {
    of_formula!(Charbonnier { eps, minimum }, f_losses, FEW);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::positive("eps", self.eps)
    }
}

#[derive(Clone, Copy)]
struct Charbonnier {
    eps: f64,
    minimum: CharbonnierMinimum,
}

impl Pointwise<2> for Charbonnier {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (one, eps) = (R::of(1.0), R::of(self.eps));
        let difference = x - y;
        let size = difference.abs();
        let far = size.greater(eps);
        // A ratio of at most 1, whose square does not overflow.
        let ratio = choose(far, eps, size) / choose(far, size, eps);
        let stretch = (one + ratio * ratio).sqrt();
        let root = choose(far, size, eps) * stretch;
        let steepness = choose(far, one, ratio) / stretch;
        let loss = match self.minimum {
            CharbonnierMinimum::Zero => size * steepness / (one + eps / root),
            CharbonnierMinimum::Eps => root,
        };
        let slope = steepness * difference.sign();
        (loss, [slope, -slope])
    }
}

fn f_losses(Charbonnier { eps, minimum }: Charbonnier, x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
    let difference = x.f_sub(y)?;
    // The root of an infinite difference would have the slope ∞ / ∞.
    let infinite = difference.f_isinf()?;
    let finite = difference.f_masked_fill_number(&infinite, 0)?;
    let root = finite.f_hypot(&Tensor::f_full_number(&[], eps, (x.f_kind()?, x.device()))?)?;
    let losses = match minimum {
        CharbonnierMinimum::Eps => root,
        CharbonnierMinimum::Zero => {
            // Near the target the difference of root and ε would lose its digits.
            let near = finite.f_clamp_number(-eps, eps)?.f_square()?.f_div(&root.f_add_number(eps)?)?;
            near.f_where_self(&finite.f_abs()?.f_lt_number(eps)?, &root.f_sub_number(eps)?)?
        }
    };
    Ok(f_abs(&difference)?.f_where_self(&infinite, &losses)?)
}

/// d² / (√(d² + ε²) + ε), which is no number for an infinite difference; |d| − ε is never more, and is infinite there.
const FEW: Few<Charbonnier> = Few {
    f_losses: |Charbonnier { eps, minimum }, x, y| {
        let difference = x.f_sub(y)?;
        let root = difference.f_hypot(&Tensor::f_full_number(&[], eps, (x.f_kind()?, x.device()))?)?;
        let losses = match minimum {
            CharbonnierMinimum::Eps => root,
            CharbonnierMinimum::Zero => {
                let near = difference.f_div(&root.f_add_number(eps)?)?.f_mul(&difference)?;
                near.f_fmax(&difference.f_abs()?.f_sub_number(eps)?)?
            }
        };
        Ok((losses, vec![difference]))
    },
    // d / √(d² + ε²), whose limits these functions have.
    f_slopes: |Charbonnier { eps, .. }, kept, factor, number| {
        let slope = kept[0].f_div_number(eps)?.f_asinh()?.f_tanh()?;
        Ok(slope.f_mul(&factor.f_mul_number(number)?)?)
    },
    of_difference: true,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backend;
    use crate::regression::robust;

    fn loss(eps: f64, weight: Option<Tensor>, reduction: Reduction) -> Box<dyn Loss> {
        Box::new(CharbonnierLoss { weight, ..CharbonnierLoss::new().eps(eps).reduction(reduction) })
    }

    #[test]
    fn eps_is_positive() {
        robust::assert_scale_is_positive("eps", loss);
    }

    #[test]
    fn huge_differences_do_not_overflow() {
        robust::assert_of_huge_differences(loss, 1e25, 1.0);
    }

    #[test]
    fn small_differences_keep_their_digits() {
        for backend in [Backend::Auto, Backend::Composite] {
            let (x, y) = (Tensor::from_slice(&[1e-6_f32]), Tensor::from_slice(&[0_f32]));
            let loss = crate::with_backend(backend, || CharbonnierLoss::new().forward(&x, &y)).double_value(&[]);
            assert!((loss / 5e-13 - 1.0).abs() < 1e-6, "{loss:e}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        robust::assert_gradients(loss);
    }
}
