//! The engine of the negative log likelihood.

use super::rows::RowKernel;
use super::source::rows::around_row_loss;

pub(in crate::kernels) fn of_targets() -> RowKernel {
    RowKernel::of(|recipe| around_row_loss(recipe, &[include_str!("source/picked.cu")]))
}
