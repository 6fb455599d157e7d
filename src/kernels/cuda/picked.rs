//! The engine of the negative log likelihood.

use tch::Tensor;

use super::rows::{RowKernel, f_rows};
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
    let kernel = || RowKernel { text: include_str!("source/picked.cu").to_owned(), ..RowKernel::default() };
    f_rows(kernel, rows, reduction, composite)
}
