//! Losses between real numbers.
//!
//! [`MseLoss`] where errors are normally distributed, [`L1Loss`] or [`HuberLoss`] where some targets are outliers.
//! Where the model predicts a distribution, take its likelihood: [`GaussianNllLoss`] of a mean and a variance,
//! [`PoissonNllLoss`] of counts, [`QuantileLoss`] of bounds. The robust losses level off the more, the further down the
//! table they stand.
//!
//! # Of torch.nn
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`L1Loss`] | outliers that count in proportion; the median | `nn.L1Loss` | `input, target` |
//! | [`MseLoss`] | errors that are normally distributed; the mean | `nn.MSELoss` | `input, target` |
//! | [`SmoothL1Loss`] | as Huber, divided by β, such as of the corners of boxes | `nn.SmoothL1Loss` | `input, target` |
//! | [`HuberLoss`] | squared near the target, linear for outliers | `nn.HuberLoss` | `input, target` |
//! | [`PoissonNllLoss`] | counts | `nn.PoissonNLLLoss` | `input, target` |
//! | [`GaussianNllLoss`] | a mean and a variance that the model predicts | `nn.GaussianNLLLoss` | `input, target, var` |
//!
//! # Robust regression
//!
//! These need the feature `regression`.
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`CharbonnierLoss`] | a smooth L1, as in image restoration | kornia `CharbonnierLoss` | `input, target` |
//! | [`LogCoshLoss`] | a smooth L1 without a parameter | Keras `LogCosh` | `input, target` |
//! | [`CauchyLoss`] | outliers that count by their logarithm | kornia `CauchyLoss` | `input, target` |
//! | [`GemanMcClureLoss`] | outliers that hardly count | kornia `GemanMcclureLoss` | `input, target` |
//! | [`WelschLoss`] | outliers that do not count | kornia `WelschLoss` | `input, target` |
//! | [`MsleLoss`] | targets of several orders of magnitude | Keras `MeanSquaredLogarithmicError` | `input, target` |
//! | [`MapeLoss`] | errors in per cent of the target | Keras `MeanAbsolutePercentageError` | `input, target` |
//! | [`QuantileLoss`] | quantiles, such as the bounds of an interval | quantile or pinball loss (Koenker and Bassett) | `input, target` |

#[cfg(feature = "regression")]
mod cauchy;
#[cfg(feature = "regression")]
mod charbonnier;
mod few;
mod gaussian_nll;
#[cfg(feature = "regression")]
mod geman_mcclure;
mod huber;
mod l1;
#[cfg(feature = "regression")]
mod log_cosh;
#[cfg(feature = "regression")]
mod mape;
mod mse;
#[cfg(feature = "regression")]
mod msle;
mod poisson_nll;
#[cfg(feature = "regression")]
mod quantile;
#[cfg(test)]
mod robust;
mod smooth_l1;
#[cfg(feature = "regression")]
mod welsch;

use tch::{Kind, Tensor};

use crate::check::{self, Validity};
use crate::kernels::{NumberOperations, Pointwise, Weighted, f_pointwise};
use crate::numeric::{f_abs, f_reals, f_widely, is_half, real, result_kind, wide_kind};
use crate::{InvalidValues, LossError, Reduction};

#[cfg(feature = "regression")]
pub use self::{
    cauchy::CauchyLoss,
    charbonnier::{CharbonnierLoss, CharbonnierMinimum},
    geman_mcclure::GemanMcClureLoss,
    log_cosh::LogCoshLoss,
    mape::MapeLoss,
    msle::MsleLoss,
    quantile::{QuantileLoss, Quantiles},
    welsch::WelschLoss,
};
pub use gaussian_nll::{GaussianNllLoss, Variance};
pub use huber::HuberLoss;
pub use l1::L1Loss;
pub use mse::MseLoss;
pub(crate) use mse::SquaredError;
pub use poisson_nll::PoissonNllLoss;
pub use smooth_l1::SmoothL1Loss;

/// The reduced losses of `formula` times a weight, the last argument; their mean is over the sum of the weights.
fn f_weighted<P: Pointwise<2>>(
    formula: P,
    arguments: [&Tensor; 3],
    reduction: Reduction,
    losses: impl Fn([&Tensor; 3]) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Tensor, LossError> {
    let floating = arguments.iter().find(|argument| argument.is_floating_point());
    let floating = floating.unwrap_or(&arguments[0]);
    let (kind, wide) = (result_kind(floating)?, !is_half(floating.f_kind()?));
    if reduction == Reduction::Mean && !wide {
        // In half precision the sum may overflow, and both results would be rounded before they are divided.
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
    // The sum of weights is computed at least in the kind of the losses, so that it has as many digits.
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

/// Both for a loss of real numbers, of which input or target has a floating kind. Booleans as targets become numbers,
/// because libtorch subtracts none, and two floating kinds become the one that they promote to, because its backward
/// functions take one.
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

/// Looks for negative values, where others are `expected`. NaN does not count as negative, as in PyTorch.
fn f_not_negative(named: check::Named, expected: &str, mode: InvalidValues) -> Result<Validity, LossError> {
    let negative = named.1.f_lt_number(0)?;
    if mode.looks(named.1) && negative.f_any()?.f_int64_value(&[])? == 0 {
        return Ok(Validity::CHECKED);
    }
    Validity::f_new(named, negative, || expected.into(), mode)
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

/// How the losses of single elements become the result.
struct Elementwise<'a> {
    weight: Option<&'a Tensor>,
    broadcast: bool,
    reduction: Reduction,
}

impl Elementwise<'_> {
    /// The reduced losses by `formula`, or by `f_losses`: the tensor operations that define it, on arguments of single
    /// precision at least, or by `few` that do the same.
    fn f_forward<P: Pointwise<2>>(
        &self,
        formula: P,
        input: &Tensor,
        target: &Tensor,
        f_losses: fn(P, &Tensor, &Tensor) -> Result<Tensor, LossError>,
        few: Option<few::Few<P>>,
    ) -> Result<Tensor, LossError> {
        let reduction = self.reduction;
        f_expanded(input, target, self.broadcast, |x, y| {
            check::floating(("input", x))?;
            real(("target", y))?;
            let (kind, wide) = (result_kind(x)?, wide_kind(x)?);
            let f_wide = move |x: &Tensor, y: &Tensor| f_losses(formula, &x.f_to_kind(wide)?, &y.f_to_kind(wide)?);
            let Some(weight) = self.weight else {
                return f_pointwise(formula, [x, y], reduction, move |[x, y]| {
                    let loss = match few {
                        Some(few) => {
                            few.f_reduced(formula, [&x.f_to_kind(wide)?, &y.f_to_kind(wide)?], reduction, f_losses)
                        }
                        None => reduction.f_apply(&f_wide(x, y)?),
                    };
                    Ok(loss?.f_to_kind(kind)?)
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

/// What a [`Loss`](crate::Loss) with the options [`elementwise`] has beside the check of its options, where the loss of
/// an element is a formula of some of its options. `f_losses` are the tensor operations that define the formula, and
/// `few` are fewer ones that give the same.
macro_rules! of_formula {
    ($formula:ident $({ $($option:ident),+ })?, $f_losses:ident $(, $few:ident)?) => {
        crate::option_tensors::with_tensors!();
        crate::mean_parts::parts!(weighted sum over weights);

        fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
            self.f_check_options()?;
            let formula = $formula $({ $($option: self.$option),+ })?;
            let (weight, broadcast, reduction) = (self.weight.as_ref(), self.broadcast, self.reduction);
            let few = None$(.or(Some($few)))?;
            super::Elementwise { weight, broadcast, reduction }.f_forward(formula, input, target, $f_losses, few)
        }
    };
}
use of_formula;
