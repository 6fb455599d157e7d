//! Functions of each element with several results, each in a plane of its own, on the device of the arguments.

use tch::Tensor;

use super::cpu;
use super::engine::{Composite, composite_of};
use super::formulas::{Map, TypedMap};
use crate::LossError;

/// A formula without its type, for the engines of all devices.
#[cfg(not(any(test, feature = "cuda")))]
trait Formula: cpu::map::Formula {}
#[cfg(any(test, feature = "cuda"))]
trait Formula: cpu::map::Formula + super::cuda::map::Recorded {}
impl<F: Map<N, M>, const N: usize, const M: usize> Formula for TypedMap<F, N, M> {}

/// The `M` results of `formula` for the elements of the arguments `[*]`, as planes `[M, *]`; by the `composite` of tensor
/// operations where the engine does not take the call. On the CPU they are in double precision, on CUDA in the kind of
/// the arguments, which is that of the composite's result there.
pub(crate) fn f_map<const N: usize, const M: usize, F, C>(
    formula: F,
    arguments: [&Tensor; N],
    composite: C,
) -> Result<Tensor, LossError>
where
    F: Map<N, M>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    f_planes(Box::new(TypedMap::<F, N, M>(formula)), M, &arguments, composite_of(composite))
}

fn f_planes(
    formula: Box<dyn Formula>,
    planes: usize,
    arguments: &[&Tensor],
    composite: Composite,
) -> Result<Tensor, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if super::cuda::is_asked(arguments[0]) {
        return super::cuda::map::f_planes(formula, planes, arguments, composite);
    }
    cpu::map::f_planes(formula, planes, arguments, composite)
}
