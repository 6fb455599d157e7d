//! Losses that are a function of each element, on the device of their arguments.

use tch::{Kind, Tensor};

use super::cpu;
use super::engine::{Composite, Reduce, composite_of, widely};
use super::formulas::{Pointwise, Typed};
use crate::LossError;

/// A formula without its type, for the engines of all devices.
#[cfg(not(any(test, feature = "cuda")))]
trait Formula: cpu::pointwise::Formula {}
#[cfg(any(test, feature = "cuda"))]
trait Formula: cpu::pointwise::Formula + super::cuda::pointwise::Recorded {}
impl<P: Pointwise<N>, const N: usize> Formula for Typed<P, N> {}

/// The reduced losses of `arguments`, by `formula`, or by the `composite` of tensor operations where the engine does
/// not take the call.
pub(crate) fn f_pointwise<const N: usize, P, C>(
    formula: P,
    arguments: [&Tensor; N],
    reduce: impl Into<Reduce>,
    composite: C,
) -> Result<Tensor, LossError>
where
    P: Pointwise<N>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    f_pointwise_to(arguments[0].f_kind()?, formula, arguments, reduce, composite)
}

/// [`f_pointwise`] with another kind of the result: a reduced loss has the floating kind `result`, which is that of the
/// `composite`'s result.
pub(crate) fn f_pointwise_to<const N: usize, P, C>(
    result: Kind,
    formula: P,
    arguments: [&Tensor; N],
    reduce: impl Into<Reduce>,
    composite: C,
) -> Result<Tensor, LossError>
where
    P: Pointwise<N>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    f_elements(result, Box::new(Typed(formula)), &arguments, reduce.into(), composite_of(composite))
}

fn f_elements(
    result: Kind,
    formula: Box<dyn Formula>,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    // A result of another kind is the business of the composite.
    let composite = if result == arguments[0].f_kind()? { widely(composite) } else { composite };
    #[cfg(any(test, feature = "cuda"))]
    if super::cuda::is_asked_for_any_result(arguments[0]) {
        return super::cuda::pointwise::f_elements(result, formula, arguments, reduce, composite);
    }
    cpu::pointwise::f_elements(result, formula, arguments, reduce, composite)
}
