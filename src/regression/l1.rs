use tch::Tensor;

use super::{elementwise, f_expanded, f_weighted};
use crate::autograd::f_alias;
use crate::kernels::{Pointwise, Real, f_pointwise};
use crate::numeric::{f_abs, f_subtractable};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The mean absolute error: the distance of each element to its target.
///
/// For regression towards the median rather than the mean: the loss of a far target grows only in proportion to its
/// distance. Its gradient has the same size near the target as far from it; where that hinders convergence, choose
/// [`SmoothL1Loss`](crate::SmoothL1Loss) or [`HuberLoss`](crate::HuberLoss).
///
/// # Formula
///
/// ℓᵢ = wᵢ |xᵢ − yᵢ|
///
/// where x is the input, y the target and w the weight, 1 where there is none. The mean is Σ ℓᵢ / Σ wᵢ. The gradient at
/// xᵢ = yᵢ is 0.
///
#[doc = include_str!("../../docs/book/src/gallery/l1.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`, of numbers
/// * `target`, `weight`: `[*]`, the same shape
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.L1Loss` and `torch.nn.functional.l1_loss` of PyTorch 2.13; the weight is that of the function.
///
/// # Differences from PyTorch
///
/// A target of another shape is an error, unless [`broadcast`](Self::broadcast) allows it; PyTorch broadcasts with a
/// warning.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Kind`] for an input
/// of booleans, and for a mean of integers.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{L1Loss, Loss};
///
/// let input = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1.0, 1.0, 6.0, 8.0]);
///
/// let loss = L1Loss::new().f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 2.0);
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [0.0, 0.25, -0.25, -0.25]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.L1Loss")]
#[doc(alias = "l1_loss")]
#[doc(alias = "mae")]
#[doc(alias = "mean_absolute_error")]
pub struct L1Loss: "l1" | "mae" | "mean_absolute_error";

/// The mean absolute error with PyTorch's defaults.
new {
    ..elementwise,
}
}

impl Loss for L1Loss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(weighted sum over weights);

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        f_expanded(input, target, self.broadcast, |x, y| {
            check::not_boolean(("input", x))?;
            let y = &f_subtractable(y, x)?;
            let Some(weight) = &self.weight else {
                let reduction = self.reduction;
                if reduction == Reduction::Mean && [x, y].into_iter().all(is_integral) {
                    check::floating(("input", x))?;
                }
                return f_pointwise(AbsoluteError, [x, y], reduction, move |[x, y]| {
                    Ok(f_alias(x)?.f_l1_loss(&f_alias(y)?, reduction.into())?)
                });
            };
            check::element_weight(weight, input)?;
            f_weighted(AbsoluteError, [x, y, weight], self.reduction, |[x, y, weight]| {
                Ok(f_abs(&x.f_sub(y)?)?.f_mul(weight)?)
            })
        })
    }
}

/// Whether it holds integers, of which libtorch computes no mean.
fn is_integral(tensor: &Tensor) -> bool {
    !tensor.is_floating_point() && !tensor.is_complex()
}

#[derive(Clone, Copy)]
struct AbsoluteError;

impl Pointwise<2> for AbsoluteError {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let difference = x - y;
        let slope = difference.sign();
        (difference.abs(), [slope, -slope])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn ones(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Double, tch::Device::Cpu))
    }

    #[test]
    fn shapes_must_agree() {
        let error = L1Loss::new().f_forward(&ones(&[3, 1]), &ones(&[3])).unwrap_err();
        assert_eq!(error.to_string(), "target has shape [3], expected [3, 1], the shape of input");

        let error = L1Loss::new().broadcast(true).f_forward(&ones(&[3, 2]), &ones(&[3])).unwrap_err();
        let expected = "target has shape [3], expected a shape that broadcasts against [3, 2], that of input";
        assert_eq!(error.to_string(), expected);

        let weighted = L1Loss::new().weight(ones(&[2]));
        let error = weighted.f_forward(&ones(&[3, 2]), &ones(&[3, 2])).unwrap_err();
        assert_eq!(error.to_string(), "weight has shape [2], expected [3, 2], the shape of input");
    }

    #[test]
    fn the_weight_of_a_broadcast_input_has_the_shape_of_that_input() {
        let weighted = L1Loss::new().broadcast(true).weight(Tensor::from_slice(&[1.0, 3.0]));
        let loss = weighted
            .forward(&Tensor::from_slice(&[1.0, 2.0]), &Tensor::zeros([3, 2], (Kind::Double, tch::Device::Cpu)));
        assert_eq!(f64::try_from(loss).unwrap(), 3.0 * (1.0 + 6.0) / 4.0);
    }

    #[test]
    fn booleans_are_a_target_and_no_input() {
        let yes = Tensor::from_slice(&[true, false]);
        let input = Tensor::from_slice(&[0.25, -0.5]).set_requires_grad(true);
        for backend in [crate::Backend::Auto, crate::Backend::Composite] {
            let loss = crate::with_backend(backend, || L1Loss::new().forward(&input, &yes));
            assert_eq!(f64::try_from(loss).unwrap(), (0.75 + 0.5) / 2.0);
        }
        let error = L1Loss::new().f_forward(&yes, &yes).unwrap_err().to_string();
        assert!(error.starts_with("input has kind Bool"), "{error}");

        // Integers have a sum and no mean.
        let (one, three) = (Tensor::from_slice(&[1_i64]), Tensor::from_slice(&[3_i64]));
        assert_eq!(L1Loss::new().reduction(Reduction::Sum).forward(&one, &three).int64_value(&[]), 2);
        let error = L1Loss::new().f_forward(&one, &three).unwrap_err().to_string();
        assert_eq!(error, "input has kind Int64, expected a floating kind");
    }

    #[test]
    fn the_weights_of_half_precision_are_summed_up_in_the_kind_of_the_losses() {
        // 256 + 1 is 256 in bf16.
        let weight = || Tensor::from_slice(&[256.0, 1.0]).to_kind(Kind::BFloat16);
        let (zero, ones) = (Tensor::zeros([2], (Kind::Double, tch::Device::Cpu)), ones(&[2]));
        let l1 = L1Loss::new().weight(weight());
        let mse = crate::MseLoss::new().weight(weight());
        for kind in [Kind::Double, Kind::Float] {
            let (zero, ones) = (zero.to_kind(kind), ones.to_kind(kind));
            for loss in [&l1 as &dyn Loss, &mse] {
                assert_eq!(loss.f_forward(&zero, &ones).unwrap().double_value(&[]), 1.0, "{kind:?}");
                assert_eq!(loss.f_parts(&zero, &ones).unwrap().f_value().unwrap().double_value(&[]), 1.0, "{kind:?}");
            }
        }
    }
}
