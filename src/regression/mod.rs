//! Losses between real numbers.

mod cauchy;
mod charbonnier;
mod gaussian_nll;
mod geman_mcclure;
mod huber;
mod l1;
mod log_cosh;
mod mape;
mod mse;
mod msle;
mod poisson_nll;
mod quantile;
#[cfg(test)]
mod robust;
mod smooth_l1;
mod welsch;

use tch::{Kind, Tensor};

use crate::check::{self, Validity};
use crate::kernels::{NumberOperations, Pointwise, Weighted, f_pointwise};
use crate::numeric::{f_abs, f_reals, f_widely, is_half, real, wide_kind};
use crate::{InvalidValues, LossError, Reduction};

pub use cauchy::CauchyLoss;
pub use charbonnier::{CharbonnierLoss, CharbonnierMinimum};
pub use gaussian_nll::{GaussianNllLoss, Variance};
pub use geman_mcclure::GemanMcClureLoss;
pub use huber::HuberLoss;
pub use l1::L1Loss;
pub use log_cosh::LogCoshLoss;
pub use mape::MapeLoss;
pub use mse::MseLoss;
pub(crate) use mse::SquaredError;
pub use msle::MsleLoss;
pub use poisson_nll::PoissonNllLoss;
pub use quantile::{QuantileLoss, Quantiles};
pub use smooth_l1::SmoothL1Loss;
pub use welsch::WelschLoss;

/// The reduced losses of `formula` times a weight, the last argument; their mean is over the sum of the weights.
fn f_weighted<P: Pointwise<2>>(
    formula: P,
    arguments: [&Tensor; 3],
    reduction: Reduction,
    losses: impl Fn([&Tensor; 3]) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Tensor, LossError> {
    let floating = arguments.iter().find(|argument| argument.is_floating_point());
    let kind = floating.unwrap_or(&arguments[0]).f_kind()?;
    let wide = matches!(kind, Kind::Float | Kind::Double);
    if reduction == Reduction::Mean && !wide {
        // Two results would be rounded, and the sum may overflow.
        let f_mean = |[x, y, weight]: [&Tensor; 3]| reduction.f_apply_weighted(&losses([x, y, weight])?, weight);
        return Ok(f_widely(arguments, f_mean)?.f_to_kind(kind)?);
    }
    let operation = if reduction == Reduction::Mean { Reduction::Sum } else { reduction };
    let composite = move |arguments: [&Tensor; 3]| {
        Ok(f_widely(arguments, |arguments| operation.f_apply(&losses(arguments)?))?.f_to_kind(kind)?)
    };
    let reduced = f_pointwise(Weighted(formula), arguments, operation, composite)?;
    if reduction != Reduction::Mean {
        return Ok(reduced);
    }
    // A sum in half precision would lose what the losses keep.
    let of_weight = arguments[2].f_kind()?;
    let narrow = is_half(of_weight) || (of_weight == Kind::Float && kind == Kind::Double);
    Ok(reduced.f_div(&arguments[2].f_sum(narrow.then_some(kind))?)?)
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
    if !broadcast || check::sizes_are_equal(input, target) {
        check::same_shape(("target", target), ("input", input))?;
        return loss(input, target);
    }
    check::same_shape_or_broadcast(("target", target), ("input", input), broadcast)?;
    let expanded = Tensor::f_broadcast_tensors(&[input, target])?;
    loss(&expanded[0], &expanded[1])
}

/// Both for a loss of real numbers, of which input or target has a floating kind. Booleans as targets become numbers, because
/// libtorch subtracts none, and two floating kinds become the one that they promote to, because its backward functions take one.
fn f_real_pair(input: &Tensor, target: &Tensor) -> Result<[Tensor; 2], LossError> {
    let (input, target) = (("input", input), ("target", target));
    real(input)?;
    real(target)?;
    if !input.1.is_floating_point() {
        check::not_boolean(input)?;
        check::floating(target)?;
    }
    let ((_, input), (_, target)) = (input, target);
    let [of_input, of_target] = [input.f_kind()?, target.f_kind()?];
    if of_target == Kind::Bool {
        return Ok([input.shallow_clone(), target.f_to_kind(of_input)?]);
    }
    if of_input == of_target || !input.is_floating_point() || !target.is_floating_point() {
        return Ok([input.shallow_clone(), target.shallow_clone()]);
    }
    let kind = if [of_input, of_target].contains(&Kind::Double) { Kind::Double } else { Kind::Float };
    Ok([input.f_to_kind(kind)?, target.f_to_kind(kind)?])
}

/// Looks for negative values, which are not what is `expected`; NaN is none, as in PyTorch.
fn f_not_negative(named: check::Named, expected: &str, mode: InvalidValues) -> Result<Validity, LossError> {
    let negative = named.1.f_lt_number(0)?;
    if mode == InvalidValues::Error && negative.f_any()?.f_int64_value(&[])? == 0 {
        return Ok(Validity::CHECKED);
    }
    Validity::f_new(named, negative.f_logical_not()?, || expected.into(), mode)
}

/// Differences that have one formula near the target and another one far from it.
struct Distances {
    /// The differences, 0 where they are far; NaN is near.
    near: Tensor,
    /// Their sizes, the bound where they are not far.
    far: Tensor,
    is_far: Tensor,
}

impl Distances {
    /// Those of more than `bound` are far.
    fn f_new(difference: &Tensor, bound: f64) -> Result<Self, LossError> {
        let size = f_abs(difference)?;
        let is_far = size.f_gt_number(bound)?;
        let near = difference.f_masked_fill_number(&is_far, 0)?;
        Ok(Self { near, far: size.f_masked_fill_number(&is_far.f_logical_not()?, bound)?, is_far })
    }
}

/// What becomes of the losses of single elements.
struct Elementwise<'a> {
    weight: Option<&'a Tensor>,
    broadcast: bool,
    reduction: Reduction,
}

impl Elementwise<'_> {
    /// The reduced losses by `formula`, or by `f_losses`: the tensor operations that define it, on arguments of single
    /// precision at least.
    fn f_forward<P: Pointwise<2>>(
        &self,
        formula: P,
        input: &Tensor,
        target: &Tensor,
        f_losses: fn(P, &Tensor, &Tensor) -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        let reduction = self.reduction;
        f_expanded(input, target, self.broadcast, |x, y| {
            check::floating(("input", x))?;
            real(("target", y))?;
            let (kind, wide) = (x.f_kind()?, wide_kind(x)?);
            let f_wide = move |x: &Tensor, y: &Tensor| f_losses(formula, &x.f_to_kind(wide)?, &y.f_to_kind(wide)?);
            let Some(weight) = self.weight else {
                return f_pointwise(formula, [x, y], reduction, move |[x, y]| {
                    Ok(reduction.f_apply(&f_wide(x, y)?)?.f_to_kind(kind)?)
                });
            };
            check::element_weight(weight, input)?;
            // A sum of weights may be beyond half precision.
            let weight = f_reals(("weight", weight), if reduction == Reduction::Mean { wide } else { kind })?;
            f_weighted(formula, [x, y, &weight], reduction, move |[x, y, weight]| {
                Ok(f_wide(x, y)?.f_mul(&weight.f_to_kind(wide)?)?)
            })
        })
    }
}

/// The options of losses of single elements.
macro_rules! elementwise {
    ($($state:tt)*) => {
        crate::options::options! { @group $($state)*
            /// a weight for each element, of the input's shape. It is on the device of the input, in any floating kind.
            weight: Option<Tensor> = None,
            /// whether input and target may differ in shape and are broadcast against each other.
            broadcast: bool = false,
            /// the reduction.
            reduction: Reduction = Reduction::Mean,
        }
    };
}
use elementwise;
