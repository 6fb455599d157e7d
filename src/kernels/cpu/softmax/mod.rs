//! The engine of losses of a softmax over classes, with a class or a share for each class as the target of a row.
//!
//! With p = softmax(x) of a row and its target t, such a loss is a function of log p[t] and of log Σ exp(x), or the cross entropy
//! of shares. Its gradient is a multiple of p and numbers more for the target, so that the logits are read once, the gradient is
//! written once, and no log-probabilities are kept.

mod call;
mod class_pixels;
mod class_rows;
mod classes;
pub(super) mod exponentials;
mod room;
mod shares;

use tch::Tensor;

use super::rows::{RowReduction, Rows, f_rows};
use crate::LossError;
use crate::kernels::formulas::RowLoss;
use classes::OfClasses;
use shares::OfShares;

/// The reduced loss of `rows` with classes as targets, of which the share `smoothing` is spread over all classes; `None` where
/// the engine does not take the call. Second derivatives are those of the `composite` of input and target.
pub(crate) fn f_softmax<F, C>(
    formula: F,
    smoothing: f64,
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    F: RowLoss,
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    f_rows(OfClasses { formula, smoothing }, rows, reduction, composite)
}

/// Does the same for the cross entropy of targets that hold a share for each class.
pub(crate) fn f_softmax_of_shares<C>(
    smoothing: f64,
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    f_rows(OfShares { smoothing }, rows, reduction, composite)
}
