//! The engine of the negative log likelihood.

use tch::Tensor;

use super::rows::{RowKernel, f_rows};
use super::source::Recipe;
use super::source::rows::around_row_loss;
use crate::LossError;
use crate::kernels::rows::{RowReduction, Rows};

/// See [`kernels::f_picked`](crate::kernels::f_picked).
pub(in crate::kernels) fn f_picked<C>(
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    let write = |recipe: &Recipe| around_row_loss(recipe, &[include_str!("source/picked.cu")]);
    f_rows(|| RowKernel::of(write), rows, reduction, composite)
}
