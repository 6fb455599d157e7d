//! The engine of losses of a softmax over classes: cross entropy, softmax focal, poly cross entropy.

use super::rows::RowKernel;
use super::source::Recipe;
use super::source::rows::{around_row_loss, function};
use crate::kernels::formulas::RowLoss;
use crate::kernels::graph;

/// What engines with a softmax share.
pub(super) const EXPONENTIALS: &str = include_str!("source/exponentials.cu");

/// The loss of the target's class, by a formula.
pub(in crate::kernels) fn of_classes(formula: impl RowLoss, smoothing: f64) -> RowKernel {
    let recording = graph::record(|[log_p, log_sum]| {
        let (loss, slopes) = formula.evaluate(log_p, log_sum);
        std::iter::once(loss).chain(slopes).collect()
    });
    let parameters = recording.parameters.clone();
    RowKernel { formulas: vec![recording], parameters, smoothing, ..RowKernel::of(write_classes) }
}

fn write_classes(recipe: &Recipe) -> String {
    let slopes = ["of_log_p", "of_log_sum"];
    let evaluate = function("evaluate", &["log_p", "log_sum"], &slopes, &recipe.formulas[0]);
    around_row_loss(recipe, &[&evaluate, EXPONENTIALS, include_str!("source/softmax.cu")])
}

/// The cross entropy of shares, or of `positions` between two classes.
pub(in crate::kernels) fn of_shares(positions: bool, smoothing: f64) -> RowKernel {
    let definitions = format!("#define POSITIONS {}\n", i32::from(positions));
    let write = |recipe: &Recipe| around_row_loss(recipe, &[include_str!("source/shares.cu")]);
    RowKernel { definitions, partial: positions, smoothing, arrays: 2, ..RowKernel::of(write) }
}
