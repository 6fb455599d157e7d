use tch::{Kind, Tensor};

use super::{f_expanded, f_real_pair};
use crate::autograd::f_alias;
use crate::kernels::{Pointwise, Real, choose, f_pointwise};
use crate::numeric::f_widely;
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The smooth L1 loss: squared where an element is near its target, its distance where it is far.
///
/// For regression with outliers, as of bounding boxes: far from the target the gradient is that of
/// [`L1Loss`](crate::L1Loss), 1 whatever β, and near it fades. [`HuberLoss`](crate::HuberLoss) is this loss times β.
///
/// # Formula
///
/// ℓᵢ = (xᵢ − yᵢ)² / 2β where |xᵢ − yᵢ| < β, else |xᵢ − yᵢ| − β/2
///
/// where x is the input and y the target. With β = 0 it is the L1 loss.
///
#[doc = include_str!("../../docs/book/src/gallery/smooth_l1.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`
/// * `target`: `[*]`, the same shape
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.SmoothL1Loss` and `torch.nn.functional.smooth_l1_loss` of PyTorch 2.13; Girshick, *Fast R-CNN*, 2015,
/// for β = 1.
///
/// # Differences from PyTorch
///
/// A target of another shape is an error, unless [`broadcast`](Self::broadcast) allows it; PyTorch broadcasts with a
/// warning.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Option`] for a
/// negative β.
///
/// # Example
///
/// ```
/// use tch::{Kind, Tensor};
/// use tch_losses::{Loss, SmoothL1Loss};
///
/// let input = Tensor::from_slice(&[1.0, 0.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[2.0, 4.0]);
///
/// let loss = SmoothL1Loss::new().beta(2.0).f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, (0.25 + 3.0) / 2.0);
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [-0.25, -0.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.SmoothL1Loss")]
#[doc(alias = "smooth_l1_loss")]
#[doc(alias = "smooth_l1")]
pub struct SmoothL1Loss: "smooth_l1";

/// The smooth L1 loss with PyTorch's defaults.
new {
    /// β ≥ 0, the distance from which on the loss is no longer squared.
    beta: f64 = 1.0,
    /// whether input and target may differ in shape and are broadcast against each other.
    broadcast: bool = false,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl Loss for SmoothL1Loss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(sum);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::option("beta", self.beta, self.beta >= 0.0, "a number ≥ 0")
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let (beta, reduction) = (self.beta, tch::Reduction::from(self.reduction));
        self.f_check_options()?;
        f_expanded(input, target, self.broadcast, |x, y| {
            let [x, y] = &f_real_pair(x, y)?;
            if is_zero(beta, x.f_kind()?) {
                return f_widely([x, y], |[x, y]| Ok(f_alias(x)?.f_l1_loss(&f_alias(y)?, reduction)?));
            }
            f_pointwise(Smooth { beta }, [x, y], self.reduction, move |[x, y]| {
                Ok(x.f_smooth_l1_loss(y, reduction, beta)?)
            })
        })
    }
}

/// Whether β is 0 in the kind that the loss is computed in. Then nothing is left of the parabola.
fn is_zero(beta: f64, kind: Kind) -> bool {
    if kind == Kind::Double { beta == 0.0 } else { beta as f32 == 0.0 }
}

#[derive(Clone, Copy)]
struct Smooth {
    beta: f64,
}

impl Pointwise<2> for Smooth {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (beta, half) = (R::of(self.beta), R::of(0.5));
        let difference = x - y;
        let size = difference.abs();
        let loss = choose(size.less(beta), half * size * size / beta, size - half * beta);
        // To bound the quotient would not do: where β and the difference are infinite it is NaN.
        let slope = choose(size.greater_equal(beta), difference.sign(), difference / beta);
        (loss, [slope, -slope])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, with_backend};

    #[test]
    fn beta_is_not_negative() {
        let x = Tensor::from_slice(&[1.0]);
        let error = SmoothL1Loss::new().beta(-1.0).f_forward(&x, &x).unwrap_err();
        assert_eq!(error.to_string(), "option beta is -1, expected a number ≥ 0");
        let error = SmoothL1Loss::new().beta(f64::NAN).f_forward(&x, &x).unwrap_err();
        assert_eq!(error.to_string(), "option beta is NaN, expected a number ≥ 0");
    }

    #[test]
    fn an_infinite_beta_has_the_slope_of_libtorch() {
        let y = Tensor::from_slice(&[0.0, 0.0, 0.0]);
        for backend in [Backend::Auto, Backend::Composite] {
            let x = Tensor::from_slice(&[f64::INFINITY, 2.0, f64::NAN]).set_requires_grad(true);
            let loss = SmoothL1Loss::new().beta(f64::INFINITY).reduction(Reduction::Sum);
            with_backend(backend, || loss.forward(&x, &y).backward());
            let slopes = Vec::<f64>::try_from(x.grad()).unwrap();
            assert!(slopes[..2] == [1.0, 0.0] && slopes[2].is_nan(), "{backend:?}: {slopes:?}");
        }
    }

    #[test]
    fn beta_zero_is_the_l1_loss() {
        let (x, y) = (Tensor::from_slice(&[1.0, -2.0, 0.5]), Tensor::from_slice(&[1.0, 1.0, 0.25]));
        let smooth = SmoothL1Loss::new().beta(0.0).forward(&x, &y);
        assert_eq!(smooth, crate::L1Loss::new().forward(&x, &y));
    }
}
