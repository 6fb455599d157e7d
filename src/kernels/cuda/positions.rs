//! The engine of cross entropy with a position between two classes as the target: distribution focal loss.

use tch::Tensor;

use super::rows::f_rows;
use super::softmax::of_shares;
use crate::LossError;
use crate::kernels::rows::{RowReduction, Rows};
use crate::kernels::tensors::f_own;

/// See [`kernels::f_softmax_of_positions`](crate::kernels::f_softmax_of_positions).
pub(in crate::kernels) fn f_softmax_of_positions<C>(
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    // The composite takes places of classes from the target, which nobody is to change before a second derivative.
    let target = f_own(rows.target)?;
    f_rows(|| of_shares(true, 0.0), &Rows { target: &target, ..*rows }, reduction, composite)
}
