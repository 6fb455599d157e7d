//! The engine of hinges between the score of each label of a row and those of all its other classes.

use tch::Tensor;

use super::rows::{RowKernel, f_of_composite};
use super::source::Recipe;
use super::source::rows::around_row_loss;
use crate::kernels::engine::{composite_of, widely};
use crate::kernels::rows::{Note, RowReduction, Rows};
use crate::{LossError, Reduction};

/// See [`kernels::f_label_margin`](crate::kernels::f_label_margin).
pub(in crate::kernels) fn f_label_margin<C>(
    arguments: [&Tensor; 2],
    reduction: Reduction,
    note: Option<&Note>,
    composite: C,
) -> Result<Tensor, LossError>
where
    C: Fn([&Tensor; 2]) -> Result<Tensor, LossError> + Send + 'static,
{
    let composite = widely(composite_of(composite));
    let [input, target] = arguments;
    if input.dim() == 0 || input.size() != target.size() {
        return composite(&arguments);
    }
    let rows = Rows { input, class_dim: input.dim() - 1, target, ignore_index: None, weight: None, note };
    let write = |recipe: &Recipe| around_row_loss(recipe, &[include_str!("source/label_margin.cu")]);
    // The scores, their slopes, and which are no labels.
    let kernel = || RowKernel { arrays: 3, held_by_warps: true, ..RowKernel::of(write) };
    match f_of_composite(kernel, &rows, RowReduction::over_all(reduction), composite)? {
        Ok(loss) => Ok(loss),
        Err(composite) => composite(&arguments),
    }
}
