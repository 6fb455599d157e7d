use tch::Tensor;

use super::{elementwise, of_formula};
use crate::kernels::{NumberOperations, Pointwise, Real, choose};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The mean squared logarithmic error: the squared difference of the logarithms of 1 + each element.
///
/// For regression of quantities that range over magnitudes (prices, counts, durations), where twice as much is as wrong
/// for small ones as for large ones. A prediction below the target costs more than one that is as far above it. Targets
/// and predictions are at least 0; a negative one counts as ε, and a prediction below ε has no gradient.
///
/// # Formula
///
/// ℓᵢ = wᵢ (log(1 + max(xᵢ, ε)) − log(1 + max(yᵢ, ε)))²
///
/// where x is the input, y the target and w the weight, 1 where there is none. The mean is Σ ℓᵢ / Σ wᵢ.
///
#[doc = include_str!("../../docs/book/src/gallery/msle.svg")]
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
/// `keras.losses.MeanSquaredLogarithmicError`, with ε = 10⁻⁷. Keras takes the mean over the last dimension before it
/// reduces: its mean is the same, its sum is that of these means.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Kind`] for an input
/// that is not floating, [`LossError::Option`] for an ε that is not a number of at least 0.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, MsleLoss};
///
/// let input = Tensor::from_slice(&[3.0, 39.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1.0, 19.0]);
///
/// let loss = MsleLoss::new().f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 2_f64.ln().powi(2)).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "MeanSquaredLogarithmicError")]
#[doc(alias = "mean_squared_logarithmic_error")]
#[doc(alias = "rmsle")]
pub struct MsleLoss: "msle" | "mean_squared_logarithmic_error";

/// The mean squared logarithmic error with Keras' ε.
new {
    /// ε ≥ 0, the least value that inputs and targets are taken for.
    eps: f64 = 1e-7,
    ..elementwise,
}
}

impl Loss for MsleLoss {
    of_formula!(SquaredLogError { eps }, f_losses);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::not_negative("eps", self.eps)
    }
}

#[derive(Clone, Copy)]
struct SquaredLogError {
    eps: f64,
}

impl Pointwise<2> for SquaredLogError {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (zero, one, eps) = (R::of(0.0), R::of(1.0), R::of(self.eps));
        let (a, b) = (x.at_least(eps), y.at_least(eps));
        let difference = a.ln_1p() - b.ln_1p();
        let slope = difference + difference;
        let of_x = choose(x.less(eps), zero, slope / (one + a));
        let of_y = choose(y.less(eps), zero, -slope / (one + b));
        (difference * difference, [of_x, of_y])
    }
}

fn f_losses(SquaredLogError { eps }: SquaredLogError, x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
    // A clamp would have gradient 0 for NaN.
    let log = |tensor: &Tensor| tensor.f_masked_fill_number(&tensor.f_lt_number(eps)?, eps)?.f_log1p();
    Ok(log(x)?.f_sub(&log(y)?)?.f_square()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eps_is_not_negative() {
        let x = Tensor::from_slice(&[1.0]);
        for (eps, actual) in [(-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
            let error = MsleLoss::new().eps(eps).f_forward(&x, &x).unwrap_err();
            assert_eq!(error.to_string(), format!("option eps is {actual}, expected a number in [0, 1e37]"));
        }
    }

    #[test]
    fn negative_numbers_count_as_eps() {
        let input = Tensor::from_slice(&[-3.0, 0.5]).set_requires_grad(true);
        let loss = MsleLoss::new().eps(0.5).reduction(Reduction::Sum);
        let loss = loss.forward(&input, &Tensor::from_slice(&[-1.0, -2.0]));
        loss.backward();
        assert_eq!(loss.double_value(&[]), 0.0);
        assert_eq!(Vec::<f64>::try_from(input.grad()).unwrap(), [0.0, 0.0]);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (input, target) = (Tensor::from_slice(&[0.5, 2.0, 3.0, 9.0]), Tensor::from_slice(&[0.4, 2.0, 1.0, 70.0]));
        let weight = Tensor::from_slice(&[1.0, 2.0, 0.5, 0.1]);
        let loss = MsleLoss::new().weight(weight);
        crate::numeric::assert_gradient(&input, |input| loss.forward(input, &target));
        crate::numeric::assert_gradient(&target, |target| loss.forward(&input, target));
    }
}
