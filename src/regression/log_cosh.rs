use std::f64::consts::LN_2;

use tch::Tensor;

use super::few::Few;
use super::{Distances, elementwise, of_formula};
use crate::kernels::{NumberOperations, Pointwise, Real, choose};
use crate::{Loss, LossError, Reduction};

crate::options::options! {
/// The log-cosh loss: the logarithm of the hyperbolic cosine of each element's distance to its target.
///
/// For regression with outliers: near the target it is half the squared error, far from it the distance less log 2, as
/// [`HuberLoss`](crate::HuberLoss) with δ = 1 is, but with all its derivatives continuous, which second-order methods
/// like.
///
/// # Formula
///
/// ℓᵢ = wᵢ log cosh(xᵢ − yᵢ)
///
/// where x is the input, y the target and w the weight, 1 where there is none. The mean is Σ ℓᵢ / Σ wᵢ. The slope is
/// tanh(xᵢ − yᵢ).
///
#[doc = include_str!("../../docs/book/src/gallery/log_cosh.svg")]
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
/// `keras.losses.LogCosh`. Keras takes the mean over the last dimension before it reduces: its mean is the same, its
/// sum is that of these means.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Kind`] for an input
/// that is not floating.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{LogCoshLoss, Loss};
///
/// let input = Tensor::from_slice(&[1.0, 1000.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1.0, 0.0]);
///
/// let loss = LogCoshLoss::new().f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - (1000.0 - 2_f64.ln()) / 2.0).abs() < 1e-9);
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [0.0, 0.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "LogCosh")]
#[doc(alias = "log_cosh")]
pub struct LogCoshLoss: "log_cosh";

/// The log-cosh loss.
new {
    ..elementwise,
}
}

impl Loss for LogCoshLoss {
    of_formula!(LogCosh, f_losses, FEW);
}

#[derive(Clone, Copy)]
struct LogCosh;

impl Pointwise<2> for LogCosh {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (one, two, half) = (R::of(1.0), R::of(2.0), R::of(0.5));
        let difference = x - y;
        let size = difference.abs();
        let power = (-(size + size)).exp_m1();
        let tanh = -power / (two + power);
        // Near 0 log cosh is −½ log(1 − tanh²); far from it the difference of two logarithms loses nothing.
        let near = size.less(one);
        let log = choose(near, -tanh * tanh, half * power).ln_1p();
        let loss = choose(near, -half * log, size + log);
        let slope = tanh * difference.sign();
        (loss, [slope, -slope])
    }
}

fn f_losses(_: LogCosh, x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
    let difference = x.f_sub(y)?;
    let Distances { near, far, is_far } = Distances::f_new(&difference, 1.0)?;
    let far = far.f_add(&far.f_mul_number(-2)?.f_exp()?.f_log1p()?)?.f_sub_number(LN_2)?;
    let near = near.f_tanh()?.f_square()?.f_neg()?.f_log1p()?.f_mul_number(-0.5)?;
    Ok(far.f_where_self(&is_far, &near)?)
}

/// From this difference on log cosh d is |d| − log 2 to the last digit of double precision.
const STRAIGHT: f64 = 20.0;

/// ½ log(1 + sinh² d) = log cosh d keeps its digits near 0. Beyond [`STRAIGHT`] it is not followed any further, and the
/// straight line, which is never more, is the larger one.
const FEW: Few<LogCosh> = Few {
    f_losses: |_, x, y| {
        let difference = x.f_sub(y)?;
        let near = difference.f_clamp_number(-STRAIGHT, STRAIGHT)?.f_sinh()?.f_square()?.f_log1p_times(0.5)?;
        let losses = near.f_maximum(&difference.f_abs()?.f_sub_number(LN_2)?)?;
        Ok((losses, vec![difference]))
    },
    f_slopes: |_, kept, factor, number| Ok(kept[0].f_tanh()?.f_mul(&factor.f_mul_number(number)?)?),
    of_difference: true,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backend;

    #[test]
    fn huge_differences_do_not_overflow() {
        let target = Tensor::from_slice(&[0_f32, 0.0]);
        for backend in [Backend::Auto, Backend::Composite] {
            let input = Tensor::from_slice(&[1e30_f32, -1e30]).set_requires_grad(true);
            let loss = LogCoshLoss::new().reduction(Reduction::None);
            let losses = crate::with_backend(backend, || loss.forward(&input, &target));
            losses.sum(None).backward();
            assert_eq!(Vec::<f32>::try_from(losses).unwrap(), [1e30, 1e30]);
            assert_eq!(Vec::<f32>::try_from(input.grad()).unwrap(), [1.0, -1.0]);
        }
    }

    #[test]
    fn small_differences_keep_their_digits() {
        for backend in [Backend::Auto, Backend::Composite] {
            let loss = || LogCoshLoss::new().forward(&Tensor::from_slice(&[1e-6_f32]), &Tensor::from_slice(&[0_f32]));
            let loss = crate::with_backend(backend, loss).double_value(&[]);
            assert!((loss / 5e-13 - 1.0).abs() < 1e-6, "{loss:e}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (input, target) = (Tensor::from_slice(&[0.5, -2.0, 3.0, 9.0]), Tensor::from_slice(&[0.4, -2.0, 1.0, -1.0]));
        let weight = Tensor::from_slice(&[1.0, 2.0, 0.5, 0.1]);
        let loss = LogCoshLoss::new().weight(weight);
        crate::numeric::assert_gradient(&input, |input| loss.forward(input, &target));
        crate::numeric::assert_gradient(&target, |target| loss.forward(&input, target));
    }
}
