use tch::Tensor;

use super::{elementwise, f_expanded, f_real_pair};
use crate::kernels::{Pointwise, Real, Weighted, choose, f_pointwise};
use crate::numeric::f_widely;
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The Huber loss: squared where an element is near its target, linear where it is far.
///
/// For regression with outliers: near the target it is half of [`MseLoss`](crate::MseLoss), and far from it the
/// slope stays at δ. [`SmoothL1Loss`](crate::SmoothL1Loss) is this loss divided by δ.
///
/// # Formula
///
/// ℓᵢ = wᵢ (xᵢ − yᵢ)² / 2 where |xᵢ − yᵢ| < δ, else wᵢ δ (|xᵢ − yᵢ| − δ/2)
///
/// where x is the input, y the target and w the weight, 1 where there is none. The mean is Σ ℓᵢ divided by the number
/// of elements, whatever the weights; those of [`MseLoss`](crate::MseLoss) and [`L1Loss`](crate::L1Loss) are divided by
/// Σ wᵢ. PyTorch defines them so.
///
#[doc = include_str!("../../docs/book/src/gallery/huber.svg")]
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
/// `torch.nn.HuberLoss` and `torch.nn.functional.huber_loss` of PyTorch 2.13, the weight is that of the function;
/// Huber, *Robust Estimation of a Location Parameter*, 1964.
///
/// # Differences from PyTorch
///
/// A target of another shape is an error, unless [`broadcast`](Self::broadcast) allows it; PyTorch broadcasts with a
/// warning.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Option`] for a
/// δ that is not positive.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{HuberLoss, Loss};
///
/// let input = Tensor::from_slice(&[1.0, 0.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[2.0, 4.0]);
///
/// let loss = HuberLoss::new().delta(2.0).f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, (0.5 + 6.0) / 2.0);
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [-0.5, -1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.HuberLoss")]
#[doc(alias = "huber_loss")]
pub struct HuberLoss: "huber";

/// The Huber loss with PyTorch's defaults.
new {
    /// δ > 0, the distance from which on the loss is linear.
    delta: f64 = 1.0,
    ..elementwise,
}
}

impl Loss for HuberLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(weighted sum over elements);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::option("delta", self.delta, self.delta > 0.0, "a number > 0")
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.f_check_options()?;
        let (delta, reduction) = (self.delta, self.reduction);
        let formula = Smooth { delta };
        f_expanded(input, target, self.broadcast, |x, y| {
            let [x, y] = &f_real_pair(x, y)?;
            check::floating(("input", x))?;
            let f_aten = move |x: &Tensor, y: &Tensor, reduction: Reduction| {
                // libtorch's forward takes an integer target with a floating input, but its backward does not.
                let y = if y.is_floating_point() { y.shallow_clone() } else { y.f_to_kind(x.f_kind()?)? };
                Ok::<_, LossError>(x.f_huber_loss(&y, reduction.into(), delta)?)
            };
            let Some(weight) = &self.weight else {
                return f_pointwise(formula, [x, y], reduction, move |arguments| {
                    f_widely(arguments, |[x, y]| f_aten(x, y, reduction))
                });
            };
            check::element_weight(weight, input)?;
            f_pointwise(Weighted(formula), [x, y, weight], reduction, move |arguments| {
                f_widely(arguments, |[x, y, weight]| reduction.f_apply(&f_aten(x, y, Reduction::None)?.f_mul(weight)?))
            })
        })
    }
}

#[derive(Clone, Copy)]
struct Smooth {
    delta: f64,
}

impl Pointwise<2> for Smooth {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (delta, half) = (R::of(self.delta), R::of(0.5));
        let difference = x - y;
        let size = difference.abs();
        let loss = choose(size.less(delta), half * size * size, delta * (size - half * delta));
        let slope = difference.at_least(-delta).at_most(delta);
        (loss, [slope, -slope])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn delta_is_positive() {
        let x = Tensor::from_slice(&[1.0]);
        for (delta, actual) in [(0.0, "0"), (-1.0, "-1"), (f64::NAN, "NaN")] {
            let error = HuberLoss::new().delta(delta).f_forward(&x, &x).unwrap_err();
            assert_eq!(error.to_string(), format!("option delta is {actual}, expected a number > 0"));
        }
    }

    #[test]
    fn the_weighted_mean_is_over_the_elements() {
        let (x, y) = (Tensor::from_slice(&[0.0, 0.0]), Tensor::from_slice(&[1.0, 1.0]));
        let loss = HuberLoss::new().weight(Tensor::from_slice(&[1.0, 7.0])).forward(&x, &y);
        assert_eq!(f64::try_from(loss).unwrap(), (0.5 + 3.5) / 2.0);
    }

    #[test]
    fn targets_of_every_real_kind_have_a_backward() {
        let y = Tensor::from_slice(&[0_i64, 1, 1]);
        for kind in [Kind::Bool, Kind::Uint8, Kind::Int, Kind::Int64, Kind::Float, Kind::Double] {
            for weight in [None, Some(Tensor::from_slice(&[1_f32, 1.0, 1.0]))] {
                let x = Tensor::from_slice(&[0.5_f32, 3.0, 1.0]).set_requires_grad(true);
                let criterion = HuberLoss { weight, ..HuberLoss::new().reduction(Reduction::Sum) };
                criterion.forward(&x, &y.to_kind(kind)).backward();
                assert_eq!(Vec::<f32>::try_from(x.grad()).unwrap(), [0.5, 1.0, 0.0], "{kind:?}");
            }
        }
    }

    #[test]
    fn it_is_the_smooth_l1_loss_times_delta() {
        let (x, y) = (Tensor::from_slice(&[0.0, 3.0, -1.0]), Tensor::from_slice(&[0.5, -1.0, 3.0]));
        let huber = HuberLoss::new().delta(2.0).forward(&x, &y);
        assert_eq!(huber, crate::SmoothL1Loss::new().beta(2.0).forward(&x, &y) * 2.0);
    }
}
