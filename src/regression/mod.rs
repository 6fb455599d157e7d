//! Losses between real numbers.

mod gaussian_nll;
mod huber;
mod l1;
mod mse;
mod poisson_nll;
mod smooth_l1;

use tch::{Kind, Tensor};

use crate::kernels::{Pointwise, Weighted, f_pointwise};
use crate::{LossError, Reduction, check};

pub use gaussian_nll::{GaussianNllLoss, Variance};
pub use huber::HuberLoss;
pub use l1::L1Loss;
pub use mse::MseLoss;
pub use poisson_nll::PoissonNllLoss;
pub use smooth_l1::SmoothL1Loss;

/// The reduced losses of `formula` times a weight, the last argument; their mean is over the sum of the weights.
fn f_weighted<P: Pointwise<2>>(
    formula: P,
    arguments: [&Tensor; 3],
    reduction: Reduction,
    losses: impl Fn([&Tensor; 3]) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Tensor, LossError> {
    let wide = matches!(arguments[0].f_kind()?, Kind::Float | Kind::Double);
    if reduction == Reduction::Mean && !wide {
        // Two results would be rounded, and the sum may overflow.
        return reduction.f_apply_weighted(&losses(arguments)?, arguments[2]);
    }
    let operation = if reduction == Reduction::Mean { Reduction::Sum } else { reduction };
    let composite = move |arguments: [&Tensor; 3]| operation.f_apply(&losses(arguments)?);
    let reduced = f_pointwise(Weighted(formula), arguments, operation, composite)?;
    if reduction != Reduction::Mean {
        return Ok(reduced);
    }
    Ok(reduced.f_div(&arguments[2].f_sum(None)?)?)
}

/// The `loss` of input and target, expanded to one shape first where `broadcast` lets them differ.
///
/// libtorch's operations broadcast too, but their backward functions resize a gradient of the smaller shape, with a
/// warning that this will stop.
fn f_expanded(
    input: &Tensor,
    target: &Tensor,
    broadcast: bool,
    loss: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor, LossError>,
) -> Result<Tensor, LossError> {
    check::devices(&[("input", input), ("target", target)])?;
    if !broadcast || input.size() == target.size() {
        check::same_shape(("target", target), ("input", input))?;
        return loss(input, target);
    }
    check::same_shape_or_broadcast(("target", target), ("input", input), broadcast)?;
    let expanded = Tensor::f_broadcast_tensors(&[input, target])?;
    loss(&expanded[0], &expanded[1])
}
