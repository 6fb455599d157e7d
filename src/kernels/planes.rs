//! Losses of elements whose first numbers are planes of one tensor, as the sums under the windows of SSIM are, on the
//! device of that tensor.

use tch::Tensor;

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

/// [`f_pointwise`](crate::kernels::f_pointwise) of elements `[*]` whose first numbers are in the planes `[planes, *]` of
/// the first argument. The other arguments `[*]` have one number each.
pub(crate) fn f_pointwise_of_planes<const A: usize, const N: usize, P, C>(
    formula: P,
    arguments: [&Tensor; A],
    reduce: impl Into<Reduce>,
    composite: C,
) -> Result<Tensor, LossError>
where
    P: Pointwise<N>,
    C: Fn([&Tensor; A]) -> Result<Tensor, LossError> + Send + 'static,
{
    f_of_planes(Box::new(Typed(formula)), N + 1 - A, &arguments, reduce.into(), widely(composite_of(composite)))
}

fn f_of_planes(
    formula: Box<dyn Formula>,
    planes: usize,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if super::cuda::is_asked(arguments[0]) {
        return super::cuda::planes::f_elements(formula, planes, arguments, reduce, composite);
    }
    cpu::planes::f_elements(formula, planes, arguments, reduce, composite)
}
