//! Losses that are a formula of sums over embeddings, on the device of the embeddings.

use tch::Tensor;

use super::cpu;
use super::engine::{Composite, Reduce, composite_of, widely};
use super::formulas::{Embedding, TypedRows};
use crate::LossError;

/// A formula without its type, for the engines of all devices.
#[cfg(not(any(test, feature = "cuda")))]
trait Formula: cpu::embedding::Formula {}
#[cfg(any(test, feature = "cuda"))]
trait Formula: cpu::embedding::Formula + super::cuda::embedding::Recorded {}
impl<E: Embedding<N, S>, const N: usize, const S: usize> Formula for TypedRows<E, N, S> {}

/// The losses of embeddings `[*, D]`, reduced, by `formula`, or by the `composite` of tensor operations where the
/// engine does not take the call. The first `N` of the `arguments` are embeddings. One more is the labels `[*]`; losses
/// without labels have none.
pub(crate) fn f_embedding<const N: usize, const S: usize, const M: usize, E, C>(
    formula: E,
    arguments: [&Tensor; M],
    reduce: impl Into<Reduce>,
    composite: C,
) -> Result<Tensor, LossError>
where
    E: Embedding<N, S>,
    C: Fn([&Tensor; M]) -> Result<Tensor, LossError> + Send + 'static,
{
    let formula = Box::new(TypedRows::<E, N, S>(formula));
    f_embeddings(formula, N, &arguments, reduce.into(), widely(composite_of(composite)))
}

fn f_embeddings(
    formula: Box<dyn Formula>,
    embeddings: usize,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if super::cuda::is_asked_for_any_result(arguments[0]) {
        return super::cuda::embedding::f_embeddings(formula, embeddings, arguments, reduce, composite);
    }
    cpu::embedding::f_embeddings(formula, embeddings, arguments, reduce, composite)
}
