//! The engine of cross entropy with the Jensen-Shannon divergence.

use tch::Tensor;

use super::rows::{RowKernel, f_rows};
use super::softmax::EXPONENTIALS;
use super::source::Recipe;
use super::source::rows::around_row_loss;
use crate::LossError;
use crate::kernels::rows::{RowReduction, Rows, Views};

/// Views at most: a thread has numbers of all views in registers.
const VIEWS: usize = 4;

/// See [`kernels::f_views`](crate::kernels::f_views).
pub(in crate::kernels) fn f_views<C>(views: Views, rows: &Rows, composite: C) -> Result<Option<Tensor>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    if views.count > VIEWS {
        return Ok(None);
    }
    f_rows(|| of_views(views, rows.target.numel()), rows, RowReduction::Sum, composite)
}

fn of_views(Views { count, smoothing, weight, floor }: Views, samples: usize) -> RowKernel {
    let definitions = format!("#define VIEWS {count}\n#define OWN_MEAN 1\n");
    let write = |recipe: &Recipe| around_row_loss(recipe, &[EXPONENTIALS, include_str!("source/views.cu")]);
    let parameters = vec![weight / (samples * count) as f64, floor];
    // The probabilities, and the logits, which the terms replace.
    let arrays = 2 * count;
    RowKernel { definitions, parameters, smoothing, arrays, views: count, own_mean: true, ..RowKernel::of(write) }
}
