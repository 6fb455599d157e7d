use tch::Tensor;

use super::elementwise;
use crate::kernels::{NumberOperations, Pointwise, Real, f_pointwise};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The mean squared error: the squared distance of each element to its target.
///
/// The usual loss of regression. Where single targets may be outliers, [`HuberLoss`](crate::HuberLoss) and
/// [`L1Loss`](crate::L1Loss) give them less weight.
///
/// # Formula
///
/// ℓᵢ = wᵢ (xᵢ − yᵢ)²
///
/// where x is the input, y the target and w the weight, 1 where there is none. The mean is Σ ℓᵢ / Σ wᵢ.
///
#[doc = include_str!("../../docs/book/src/gallery/mse.svg")]
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
/// `torch.nn.MSELoss` and `torch.nn.functional.mse_loss` of PyTorch 2.13; the weight is that of the function.
///
/// # Differences from PyTorch
///
/// A target of another shape is an error, unless [`broadcast`](Self::broadcast) allows it; PyTorch broadcasts with a
/// warning.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, MseLoss};
///
/// let input = Tensor::from_slice(&[1.0, 2.0, 3.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1.0, 2.0, 6.0]);
///
/// let loss = MseLoss::new().f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 3.0);
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [0.0, 0.0, -2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.MSELoss")]
#[doc(alias = "mse_loss")]
#[doc(alias = "rmse")]
#[doc(alias = "l2_loss")]
#[doc(alias = "mean_squared_error")]
pub struct MseLoss: "mse" | "mean_squared_error";

/// The mean squared error with PyTorch's defaults.
new {
    ..elementwise,
}
}

impl Loss for MseLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(weighted sum over weights);

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        super::f_expanded(input, target, self.broadcast, |input, target| {
            let [input, target] = &super::f_real_pair(input, target)?;
            let Some(weight) = &self.weight else {
                let reduction = self.reduction;
                return f_pointwise(SquaredError, [input, target], reduction, move |[input, target]| {
                    Ok(input.f_mse_loss(target, reduction.into())?)
                });
            };
            check::element_weight(weight, input)?;
            let arguments = [input, target, weight];
            super::f_weighted(SquaredError, arguments, self.reduction, |[input, target, weight]| {
                Ok(input.f_sub(target)?.f_pow_number(2)?.f_mul(weight)?)
            })
        })
    }
}

#[derive(Clone, Copy)]
pub(crate) struct SquaredError;

impl Pointwise<2> for SquaredError {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let difference = x - y;
        let slope = difference + difference;
        (difference * difference, [slope, -slope])
    }
}
