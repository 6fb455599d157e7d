//! The Lovász extension of the Jaccard loss, which the hinge and the softmax losses of that name share.

use tch::{Kind, Tensor};

use crate::check::Validity;
use crate::kernels::{NumberOperations, Ranked, Ranks, f_ranks};
use crate::numeric::{f_positions, f_times, result_kind};
use crate::{LossError, Reduction};

/// The errors of pixels, for the engine and by tensor operations.
pub(super) trait Errors: Ranked {
    /// The numbers that pixels are ranked by, and the terms that their weights are multiplied by. `own` are the pixels
    /// of the class.
    fn f_errors(self, numbers: &Tensor, own: &Tensor) -> Result<[Tensor; 2], LossError>;
}

/// The reduced losses `[R]` of `ranks`: the means over the classes of Σ weight · error, the extension of each.
/// Whether there may be pixels that are ignored, whose labels are negative, says `ignores`.
pub(super) fn f_loss<E: Errors>(
    errors: E,
    ranks: &Ranks,
    ignores: bool,
    reduction: Reduction,
) -> Result<Tensor, LossError> {
    let (weighted, present) = (ranks.weight.is_some(), ranks.present);
    f_ranks(errors, ranks, reduction, move |[numbers, labels, classes, weight]| {
        let ranks = Ranks { numbers, labels, classes, weight: weighted.then_some(weight), present };
        f_composite(errors, &ranks, ignores, reduction)
    })
}

/// The loss in the input's kind, NaN where the target is not valid.
pub(super) fn f_finish(
    loss: &Tensor,
    input: &Tensor,
    validity: Validity,
    reduction: Reduction,
) -> Result<Tensor, LossError> {
    let unreduced = reduction == Reduction::None;
    let validity = if unreduced { validity.f_rows()? } else { validity };
    validity.f_poison_own(loss.f_to_kind(result_kind(input)?)?, unreduced)
}

/// How many numbers are sorted at once. Below it a kernel costs more to launch than to run.
const AT_ONCE: i64 = 1 << 20;

/// The reduced losses by tensor operations.
fn f_composite(errors: impl Errors, ranks: &Ranks, ignores: bool, reduction: Reduction) -> Result<Tensor, LossError> {
    let labels = ranks.labels.f_unsqueeze(1)?;
    let own = labels.f_eq_tensor(&ranks.classes.f_unsqueeze(1)?)?;
    let [errors, mut terms] = errors.f_errors(ranks.numbers, &own)?;
    let mut errors = errors.f_detach()?;
    if ignores {
        let ignored = labels.f_lt_number(0)?;
        errors = errors.f_masked_fill_number(&ignored, f64::NEG_INFINITY)?;
        terms = terms.f_masked_fill_number(&ignored, 0)?;
    }
    let size = errors.size();
    // To sort all classes of a large input at once would take several times its memory.
    let classes = (AT_ONCE / (size[0] * size[2]).max(1)).max(1);
    let f_of_classes = |first: i64| {
        let f_part = |tensor: &Tensor| tensor.f_narrow(1, first, classes.min(size[1] - first));
        f_weights(&f_part(&errors)?, &f_part(&own)?)
    };
    let weights = (0..size[1]).step_by(classes as usize).map(f_of_classes).collect::<Result<Vec<_>, _>>()?;
    let mut weights = if let [all] = &weights[..] { all.shallow_clone() } else { Tensor::f_cat(&weights, 1)? };
    let is_equal = !ranks.present && ranks.weight.is_none();
    if !is_equal {
        weights = weights.f_mul(&f_shares(ranks, &own)?.f_unsqueeze(2)?)?;
    }
    let (terms, classes) = (terms.f_mul(&weights)?, if is_equal { size[1] } else { 1 });
    // Means over the classes and over the rows are one division, and none where there is one of each.
    let (sum, count) = match reduction {
        Reduction::None => (terms.f_sum_dim_intlist([1_i64, 2].as_slice(), false, None)?, classes),
        Reduction::Sum => (terms.f_sum(None)?, classes),
        Reduction::Mean => (terms.f_sum(None)?, classes * size[0]),
    };
    if count == 1 { Ok(sum) } else { Ok(sum.f_div_number(count)?) }
}

/// −1 where `own` is true and 1 elsewhere: a factor, which has fewer operations than a choice and its derivative.
pub(super) fn f_signs(own: &Tensor) -> Result<Tensor, LossError> {
    Ok(own.f_mul_number(-2.0)?.f_add_number_(1)?)
}

/// The share of each class in the mean, `[R, C]`.
fn f_shares(ranks: &Ranks, own: &Tensor) -> Result<Tensor, LossError> {
    let kind = ranks.numbers.f_kind()?;
    let present = own.f_any_dim(2, false)?.f_to_kind(kind)?;
    let counted = if ranks.present { present } else { present.f_ones_like()? };
    let shares = counted.f_div(&counted.f_sum_dim_intlist(1, true, None)?.f_clamp_min_number(1)?)?;
    f_times(&shares, ranks.weight.map(|weight| weight.f_to_kind(kind)).transpose()?.as_ref())
}

/// The weights of the errors in descending order: by how much the Jaccard loss grows with each further wrong pixel,
/// given the number of foreground pixels and whether the pixel is one.
///
/// They depend on the order of the errors alone, and so have no gradient. They are computed in closed form, because
/// with many pixels the difference of two Jaccard losses has few digits left.
pub(super) fn growths(total: usize) -> impl FnMut(bool) -> f64 {
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

/// The same of shares `[R, P]` in the order of their errors, with a graph. Δₖ = 1 − I / U, where I is the sum of the
/// shares after the k-th, t, and U = I + k; Δ₀ = 0. So the growth is (I + k t) / (U (U + t − 1)), of which no digits
/// cancel.
pub(super) fn f_growths_of_shares(shares: &Tensor) -> Result<Tensor, LossError> {
    let kind = shares.f_kind()?;
    let shares = shares.f_to_kind(Kind::Double)?;
    let intersection = shares.f_sum_dim_intlist(1, true, None)?.f_sub(&shares.f_cumsum(1, None)?)?;
    let ranks = f_positions(shares.size()[1], (Kind::Double, shares.device()))?.f_add_number(1)?;
    let union = intersection.f_add(&ranks)?;
    let f_rest = |tensor: &Tensor| tensor.f_narrow(1, 1, shares.size()[1] - 1);
    let numerator = intersection.f_add(&shares.f_mul(&ranks)?)?;
    let denominator = union.f_mul(&union.f_add(&shares)?.f_sub_number(1)?)?;
    let growths = [union.f_narrow(1, 0, 1)?.f_reciprocal()?, f_rest(&numerator)?.f_div(&f_rest(&denominator)?)?];
    Ok(Tensor::f_cat(&growths, 1)?.f_to_kind(kind)?)
}

/// The same by tensor operations, for errors `[R, K, P]` in any order.
fn f_weights(errors: &Tensor, foreground: &Tensor) -> Result<Tensor, LossError> {
    if errors.numel() == 0 {
        return Ok(errors.shallow_clone());
    }
    let order = errors.f_argsort_stable(true, 2, true)?;
    let sorted = foreground.f_gather(2, &order, false)?;
    let so_far = sorted.f_cumsum(2, Kind::Int)?;
    let intersection = so_far.f_narrow(2, errors.size()[2] - 1, 1)?.f_sub(&so_far)?;
    let before = intersection.f_add(&f_positions(errors.size()[2], (Kind::Int, errors.device()))?)?;
    // The weight of a foreground pixel is 1 / union, that of a background pixel intersection / (union (union - 1)). The
    // first wrong pixel has 1 / union in any case, where the quotient is 1 or 0 / 0.
    let kind = errors.f_kind()?;
    let part = if kind == Kind::Float { intersection } else { intersection.f_to_kind(kind)? };
    let mut background = part.f_div(&before)?;
    let background = background.f_nan_to_num_(1.0, None, None)?;
    let growth = background.f_maximum(&sorted)?.f_div(&before.f_add_number(1)?)?;
    // Each place is written.
    Ok(errors.f_empty_like()?.f_scatter_(2, &order, &growth)?)
}
