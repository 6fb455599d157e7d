//! The engine of cross entropy with the Jensen-Shannon divergence.

use super::rows::RowKernel;
use super::softmax::EXPONENTIALS;
use super::source::Recipe;
use super::source::rows::around_row_loss;
use crate::kernels::rows::Views;

/// Views at most: a thread has numbers of all views in registers.
pub(in crate::kernels) const VIEWS: usize = 4;

pub(in crate::kernels) fn of_views(Views { count, smoothing, weight, floor }: Views, samples: usize) -> RowKernel {
    let definitions = format!("#define VIEWS {count}\n#define OWN_MEAN 1\n");
    let write = |recipe: &Recipe| around_row_loss(recipe, &[EXPONENTIALS, include_str!("source/views.cu")]);
    let parameters = vec![weight / (samples * count) as f64, floor];
    // The probabilities, and the logits, which the terms replace.
    let arrays = 2 * count;
    RowKernel { definitions, parameters, smoothing, arrays, views: count, own_mean: true, ..RowKernel::of(write) }
}
