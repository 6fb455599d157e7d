//! The Lovász extension of the Jaccard loss, which the hinge and the softmax losses of that name share.

use tch::{Kind, Tensor};

use crate::LossError;
use crate::kernels::f_by_rank;

/// The weights of the errors `[R, P]` of R rows of P pixels, such that Σ weight · error is the extension of each row.
///
/// `foreground` says which pixels belong to the region. The weights depend on the order of the errors alone: the
/// extension is linear as long as that order stays, and so they have no graph.
///
/// Each is what the Jaccard loss grows by when its pixel joins those of larger errors. It is computed in closed form,
/// because the difference of two Jaccard losses cancels where there are many pixels.
pub(super) fn f_weights(errors: &Tensor, foreground: &Tensor) -> Result<Tensor, LossError> {
    match f_by_rank(errors, foreground, growths)? {
        Some(weights) => Ok(weights),
        None => f_composite(errors, foreground),
    }
}

/// What the Jaccard loss grows by with one pixel after the other, given how many are foreground, and whether the pixel is.
fn growths(total: usize) -> impl FnMut(bool) -> f64 {
    let (mut rank, mut intersection) = (0, total);
    move |foreground| {
        rank += 1;
        intersection -= usize::from(foreground);
        let union = (intersection + rank) as f64;
        let of_background = if foreground { 1.0 } else { intersection as f64 / (union - 1.0).max(1.0) };
        // Without any foreground the first wrong pixel is the whole loss.
        let first = if total == 0 && rank == 1 { 1.0 } else { 0.0 };
        of_background / union + first
    }
}

/// The same by tensor operations.
fn f_composite(errors: &Tensor, foreground: &Tensor) -> Result<Tensor, LossError> {
    let (errors, pixels) = (errors.f_detach()?, errors.size()[1]);
    if errors.numel() == 0 {
        return Ok(errors);
    }
    let order = errors.f_argsort_stable(true, 1, true)?;
    let sorted = foreground.f_gather(1, &order, false)?;
    let total = foreground.f_sum_dim_intlist(1, true, Kind::Int)?;
    let intersection = total.f_sub(&sorted.f_cumsum(1, Kind::Int)?)?;
    let ranks = Tensor::f_arange_start(1, pixels + 1, (Kind::Int, errors.device()))?;
    let union = intersection.f_add(&ranks)?;
    // Of the foreground 1 / union, of the background intersection / (union (union - 1)).
    let background = intersection.f_to_kind(errors.f_kind()?)?.f_div(&union.f_sub_scalar(1)?.f_clamp_min(1)?)?;
    let growth = background.f_masked_fill(&sorted, 1)?.f_div(&union)?;
    // Without any foreground the first wrong pixel is the whole loss.
    let _ = growth.f_narrow(1, 0, 1)?.f_add_(&total.f_eq(0)?)?;
    Ok(errors.f_zeros_like()?.f_scatter_(1, &order, &growth)?)
}
