//! Losses of pairs of boxes, on the device of the boxes.

use tch::Tensor;

use super::cpu;
use super::engine::{Composite, Reduce, composite_of};
use super::formulas::{Pointwise, Typed};
use crate::LossError;

/// A formula without its type, for the engines of all devices.
#[cfg(not(any(test, feature = "cuda")))]
trait Formula: cpu::boxes::Formula {}
#[cfg(any(test, feature = "cuda"))]
trait Formula: cpu::boxes::Formula + super::cuda::pointwise::Recorded {}
impl<P: Pointwise<8>> Formula for Typed<P, 8> {}

/// The losses of pairs of boxes `[*, 4]`, reduced, by `formula`, whose arguments are the numbers of the first box and
/// then those of the second; by the `composite` of tensor operations where the engine does not take the call.
pub(crate) fn f_boxes<P, C>(
    formula: P,
    boxes: [&Tensor; 2],
    reduce: impl Into<Reduce>,
    composite: C,
) -> Result<Tensor, LossError>
where
    P: Pointwise<8>,
    C: Fn([&Tensor; 2]) -> Result<Tensor, LossError> + Send + 'static,
{
    f_pairs(Box::new(Typed(formula)), &boxes, reduce.into(), composite_of(composite))
}

fn f_pairs(
    formula: Box<dyn Formula>,
    boxes: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if super::cuda::is_asked_for_any_result(boxes[0]) {
        return super::cuda::boxes::f_pairs(formula, boxes, reduce, composite);
    }
    cpu::boxes::f_pairs(formula, boxes, reduce, composite)
}
