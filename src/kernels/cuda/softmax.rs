//! The engine of losses of a softmax over classes: cross entropy, softmax focal, poly cross entropy.

use tch::Tensor;

use super::rows::{RowKernel, f_rows};
use super::source::Recipe;
use super::source::rows::{around_row_loss, function};
use crate::LossError;
use crate::kernels::formulas::RowLoss;
use crate::kernels::graph;
use crate::kernels::rows::{RowReduction, Rows};

/// What engines with a softmax share.
pub(super) const EXPONENTIALS: &str = include_str!("source/exponentials.cu");

/// See [`kernels::f_softmax`](crate::kernels::f_softmax).
pub(in crate::kernels) fn f_softmax<F, C>(
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
    f_rows(|| of_classes(formula, smoothing), rows, reduction, composite)
}

/// See [`kernels::f_softmax_of_shares`](crate::kernels::f_softmax_of_shares).
pub(in crate::kernels) fn f_softmax_of_shares<C>(
    smoothing: f64,
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    f_rows(|| of_shares(false, smoothing), rows, reduction, composite)
}

fn of_classes(formula: impl RowLoss, smoothing: f64) -> RowKernel {
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
pub(super) fn of_shares(positions: bool, smoothing: f64) -> RowKernel {
    let definitions = format!("#define POSITIONS {}\n", i32::from(positions));
    let write = |recipe: &Recipe| around_row_loss(recipe, &[include_str!("source/shares.cu")]);
    RowKernel { definitions, partial: positions, smoothing, arrays: 2, ..RowKernel::of(write) }
}
