//! The absolute differences of neighbours in planes, on the device of the planes: total variation.

use tch::Tensor;

use super::cpu;
use super::engine::{Composite, Reduce, composite_of};
use crate::{LossError, Reduction};

/// Σ |x\[i + 1, j\] − x\[i, j\]| times the first of the `factors`, plus Σ |x\[i, j + 1\] − x\[i, j\]| times the second
/// one, for each plane `[H, W]` of `planes` `[*, H, W]`, reduced. By the `composite` of tensor operations where the
/// engine does not take the call.
pub(crate) fn f_variation<C>(
    factors: [f64; 2],
    planes: &Tensor,
    reduction: Reduction,
    composite: C,
) -> Result<Tensor, LossError>
where
    C: Fn([&Tensor; 1]) -> Result<Tensor, LossError> + Send + 'static,
{
    f_reduced(factors, planes, reduction.into(), composite_of(composite))
}

fn f_reduced(factors: [f64; 2], planes: &Tensor, reduce: Reduce, composite: Composite) -> Result<Tensor, LossError> {
    if planes.dim() < 2 || planes.numel() == 0 {
        return composite(&[planes]);
    }
    #[cfg(any(test, feature = "cuda"))]
    if super::cuda::is_asked(planes) {
        return super::cuda::variation::f_reduced(factors, planes, reduce, composite);
    }
    cpu::variation::f_reduced(factors, planes, reduce, composite)
}

/// The height and the width of planes.
pub(super) fn sizes(planes: &Tensor) -> [usize; 2] {
    let size = planes.size();
    std::array::from_fn(|k| size[size.len() - 2 + k] as usize)
}
