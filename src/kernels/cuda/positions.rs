//! The engine of cross entropy with a position between two classes as the target: distribution focal loss.

use tch::Tensor;

use super::rows::f_rows;
use super::softmax::of_shares;
use crate::LossError;
use crate::kernels::rows::{RowReduction, Rows};

/// See [`kernels::f_softmax_of_positions`](crate::kernels::f_softmax_of_positions).
pub(in crate::kernels) fn f_softmax_of_positions<C>(
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    f_rows(|| of_shares(true, 0.0), rows, reduction, composite)
}
