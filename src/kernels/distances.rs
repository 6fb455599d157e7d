//! The Euclidean distances of all pairs of rows of two matrices, on their device.

use tch::Tensor;

use super::cpu;
use crate::LossError;

/// ‖aᵢ − bⱼ‖ for all rows i of `a` and j of `b`, as `[N, M]` without a graph. `None` where no engine takes the call.
pub(crate) fn f_distances(a: &Tensor, b: &Tensor) -> Result<Option<Tensor>, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if super::is_on_cuda(a) {
        return super::cuda::distances::f_distances(a, b);
    }
    cpu::distances::f_distances(a, b)
}

/// The gradient of `a`, given `grad`, that of the distances: Σⱼ `grad`ᵢⱼ (aᵢ − bⱼ) / `distances`ᵢⱼ for all rows i of
/// `a`. Pairs of distance 0 add nothing. `None` where no engine takes the call.
pub(crate) fn f_distance_slopes(
    grad: &Tensor,
    a: &Tensor,
    b: &Tensor,
    distances: &Tensor,
) -> Result<Option<Tensor>, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if super::is_on_cuda(a) {
        return super::cuda::distances::f_distance_slopes(grad, a, b, distances);
    }
    cpu::distances::f_distance_slopes(grad, a, b, distances)
}
