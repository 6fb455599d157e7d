use tch::Tensor;

use super::few::Few;
use super::{elementwise, of_formula};
use crate::kernels::{NumberOperations, Pointwise, Real, choose};
use crate::numeric::{f_abs, f_sign_or_nan, f_with_nan_slopes};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The mean absolute percentage error: the distance of each element to its target, as a percentage of the target.
///
/// For regression of quantities whose relative error matters, and for reports that people read. Targets near 0 make it
/// huge, and it prefers predictions that are too low; where that hurts, choose [`MsleLoss`](crate::MsleLoss), or
/// [`L1Loss`](crate::L1Loss) of logarithms.
///
/// # Formula
///
/// ℓᵢ = 100 wᵢ |xᵢ − yᵢ| / max(|yᵢ|, ε)
///
/// where x is the input, y the target and w the weight, 1 where there is none. The mean is Σ ℓᵢ / Σ wᵢ. The gradient at
/// xᵢ = yᵢ is 0.
///
#[doc = include_str!("../../docs/book/src/gallery/mape.svg")]
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
/// `keras.losses.MeanAbsolutePercentageError`, with ε = 10⁻⁷. Keras takes the mean over the last dimension before it
/// reduces: its mean is the same, its sum is that of these means.
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
/// use tch_losses::{Loss, MapeLoss};
///
/// let input = Tensor::from_slice(&[6.0, 90.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[5.0, 100.0]);
///
/// let loss = MapeLoss::new().f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, (20.0 + 10.0) / 2.0);
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [10.0, -0.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "MeanAbsolutePercentageError")]
#[doc(alias = "mean_absolute_percentage_error")]
pub struct MapeLoss: "mape" | "mean_absolute_percentage_error";

/// The mean absolute percentage error with Keras' ε.
new {
    /// ε > 0, the least size that targets are taken for.
    eps: f64 = 1e-7,
    ..elementwise,
}
}

impl Loss for MapeLoss {
    of_formula!(PercentageError { eps }, f_losses, FEW);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::positive("eps", self.eps)
    }
}

#[derive(Clone, Copy)]
struct PercentageError {
    eps: f64,
}

impl Pointwise<2> for PercentageError {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (zero, hundred, eps) = (R::of(0.0), R::of(100.0), R::of(self.eps));
        let difference = x - y;
        let size = y.abs().at_least(eps);
        let loss = hundred * (difference.abs() / size);
        // The slope is NaN where the loss is, such as for ∞ / ∞.
        let slope = choose(loss.greater_equal(zero), hundred * difference.sign() / size, loss);
        let of_size = choose(y.abs().less(eps), zero, loss / size * y.sign());
        (loss, [slope, -slope - of_size])
    }
}

fn f_losses(PercentageError { eps }: PercentageError, x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
    let losses = f_abs(&x.f_sub(y)?)?.f_div(&f_abs(y)?.f_clamp_min_number(eps)?)?.f_mul_number(100)?;
    f_with_nan_slopes(&losses)
}

/// The same, and the slope of the input, which is NaN where the loss is.
const FEW: Few<PercentageError> = Few {
    f_losses: |PercentageError { eps }, x, y| {
        let size = y.f_abs()?.f_clamp_min_number(eps)?;
        let part = x.f_sub(y)?.f_div(&size)?;
        Ok((part.f_abs()?.f_mul_number(100)?, vec![part, size]))
    },
    f_slopes: |_, kept, factor, number| {
        Ok(f_sign_or_nan(&kept[0])?.f_div(&kept[1])?.f_mul(&factor.f_mul_number(100.0 * number)?)?)
    },
    of_difference: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eps_is_positive() {
        let x = Tensor::from_slice(&[1.0]);
        let error = MapeLoss::new().eps(0.0).f_forward(&x, &x).unwrap_err();
        assert_eq!(error.to_string(), "option eps is 0, expected a number in [1e-37, 1e37]");
    }

    #[test]
    fn targets_of_zero_count_as_eps() {
        let (x, y) = (Tensor::from_slice(&[1.0]), Tensor::from_slice(&[0.0]));
        assert_eq!(MapeLoss::new().eps(0.5).forward(&x, &y).double_value(&[]), 200.0);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (input, target) = (Tensor::from_slice(&[0.5, -2.0, 3.0, 9.0]), Tensor::from_slice(&[0.4, -2.5, 1.0, -1.0]));
        let weight = Tensor::from_slice(&[1.0, 2.0, 0.5, 0.1]);
        let loss = MapeLoss::new().weight(weight);
        crate::numeric::assert_gradient(&input, |input| loss.forward(input, &target));
        crate::numeric::assert_gradient(&target, |target| loss.forward(&input, target));
    }
}
