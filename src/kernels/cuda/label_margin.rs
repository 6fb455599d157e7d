//! The engine of hinges between the score of each label of a row and those of all its other classes.

use tch::Tensor;

use super::rows::{RowKernel, f_rows};
use super::source::Recipe;
use super::source::rows::around_row_loss;
use crate::kernels::engine::Composite;
use crate::kernels::rows::{Note, RowReduction, Rows};
use crate::{LossError, Reduction};

/// See [`kernels::f_label_margin`](crate::kernels::f_label_margin).
pub(in crate::kernels) fn f_label_margin(
    arguments: [&Tensor; 2],
    reduction: Reduction,
    note: Option<&Note>,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let [input, target] = arguments;
    if input.dim() == 0 || input.size() != target.size() {
        return composite(&arguments);
    }
    let rows = Rows { input, class_dim: input.dim() - 1, target, ignore_index: None, weight: None, note };
    let write = |recipe: &Recipe| around_row_loss(recipe, &[include_str!("source/label_margin.cu")]);
    // The scores, their slopes, and which are no labels.
    let kernel = || RowKernel { arrays: 3, held_by_warps: true, ..RowKernel::of(write) };
    f_rows(kernel, &rows, RowReduction::over_all(reduction), composite)?.or_else(|composite| composite(&arguments))
}
