#[cfg(test)]
mod tests;

use std::cell::OnceCell;

use tch::{Kind, TchError, Tensor, no_grad};

use super::batch::{Batch, Pairs, f_softplus, loss_of_batch, loss_of_pairs};
use super::{EmbeddingDistance, EmbeddingLoss, EmbeddingPairs, EmbeddingReduction};
use crate::autograd::{Function, f_gradients_of, f_with_zero_gradients, needed, spread};
use crate::kernels::{NumberOperations, Triplets, f_triplets};
use crate::{Loss, LossError, check};

crate::options::options! {
/// The triplet margin loss over the triplets of a batch, with a choice of those that are mined.
///
/// An anchor should be nearer to each embedding of its own label than to any other, by a margin: the order counts,
/// and not the size of distances. Hardest triplets ([`TripletMining::BatchHard`]) learn fast and may collapse at the
/// start of a training; semi-hard ones do not; the mean over all that still cost something, the default, lies between
/// them. For triplets that are made elsewhere choose [`TripletMarginLoss`](crate::TripletMarginLoss).
///
/// # Formula
///
/// ℓ(a, p, n) = max(0, d(a, p) − d(a, n) + m), or log(1 + exp(d(a, p) − d(a, n) + m)) with `smooth_loss`
///
/// for each anchor a, another embedding p of its label and an embedding n of another label that mining takes, where d
/// is the distance (or a similarity with the other sign) and m the margin. With `swap`, d(a, n) is the smaller one of
/// d(a, n) and d(p, n).
///
#[doc = include_str!("../../docs/book/src/gallery/batch_triplet_margin.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`
/// * `target`: `[N]`, labels of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`], which is for [`TripletMining::BatchHard`] and for triplets that
///   are named, the losses of the anchors that have a triplet, or of the triplets
///
/// # Reference
///
/// `pytorch_metric_learning.losses.TripletMarginLoss` 2.9.0, behind `BatchHardMiner` or `TripletMarginMiner` of the
/// same margin; Schroff et al., FaceNet, <https://arxiv.org/abs/1503.03832>, Hermans et al.,
/// <https://arxiv.org/abs/1703.07737>.
///
/// # Differences from pytorch-metric-learning
///
/// * Those of [`EmbeddingDistance`].
/// * Triplets are not listed: without `swap` and `smooth_loss` their sum and number come from the sorted distances of
///   each anchor. Memory grows with N², also with them.
/// * `swap` is rejected with references: it compares p with n, which are both references, and there p's position
///   among the references is taken for one in the batch.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for the margin or the distance out of range, and for options that exclude each other.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{BatchTripletMarginLoss, EmbeddingDistance, Loss, TripletMining};
///
/// let embeddings = Tensor::from_slice(&[0.0, 1.0, 3.0]).view([3, 1]).set_requires_grad(true);
/// let labels = Tensor::from_slice(&[0_i64, 0, 1]);
///
/// // With anchor 0 the distances are 1 and 3, with anchor 1 they are 1 and 2.
/// let loss = BatchTripletMarginLoss::new()
///     .margin(1.5)
///     .mining(TripletMining::BatchHard)
///     .distance(EmbeddingDistance::lp().normalize_embeddings(false))
///     .f_forward(&embeddings, &labels)?;
/// loss.f_backward()?;
/// assert_eq!(f64::try_from(&loss)?, 0.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "BatchHardTripletLoss")]
#[doc(alias = "triplet_semi_hard")]
#[doc(alias = "TripletSemiHardLoss")]
#[doc(alias = "batch_hard")]
#[doc(alias = "triplet_hard")]
#[doc(alias = "online triplet mining")]
pub struct BatchTripletMarginLoss: "batch_triplet_margin" | "batch_triplet";

/// The triplet margin loss with the defaults of pytorch-metric-learning.
new {
    /// by how much n should be farther than p.
    margin: f64 = 0.05,
    /// whether n is compared with the nearer one of a and p.
    swap: bool = false,
    /// whether the hinge is a softplus, with which every triplet keeps a loss above 0.
    smooth_loss: bool = false,
    /// which triplets are mined; `swap` does not matter for that.
    mining: TripletMining = TripletMining::All,
    /// the distance.
    distance: EmbeddingDistance = EmbeddingDistance::lp(),
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::MeanNonZero,
}
}

/// Which triplets of a batch are mined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[doc(alias = "TripletMarginMiner")]
#[doc(alias = "BatchHardMiner")]
#[non_exhaustive]
pub enum TripletMining {
    /// All of them. The default.
    #[default]
    All,
    /// Those whose n is farther from a than p is, by no more than the margin.
    SemiHard,
    /// Those whose n is at least as near to a as p is.
    Hard,
    /// One for each anchor: the farthest p with the nearest n.
    BatchHard,
}

crate::options::words!(TripletMining);

/// How many losses are computed at a time where each triplet has its own.
const CHUNK: i64 = 1 << 22;

impl BatchTripletMarginLoss {
    fn check(&self, batch: &Batch) -> Result<(), LossError> {
        self.f_check_options()?;
        let swaps = self.swap && batch.reference.is_some();
        check::option("swap", self.swap, !swaps, "false with references, which are not compared with each other")
    }

    /// How far apart embeddings are.
    fn f_far(&self, batch: &Batch) -> Result<Tensor, LossError> {
        let matrix = batch.f_matrix(self.distance)?;
        if self.distance.is_similarity() { Ok(matrix.f_neg()?) } else { Ok(matrix) }
    }

    fn f_loss(&self, batch: Batch) -> Result<Tensor, LossError> {
        self.check(&batch)?;
        let listed = self.reduction == EmbeddingReduction::None && self.mining != TripletMining::BatchHard;
        check::option("reduction", "None", !listed, "a sum or a mean, since the triplets are too many to be listed")?;
        let far = self.f_far(&batch)?;
        let noise = self.distance.noise(far.f_kind()?);
        Mined { noise, loss: Self { reduction: self.reduction.above(noise), ..*self } }.f_loss(&far, batch.pairs)
    }

    /// From d(a, p) − d(a, n) to the losses.
    fn f_hinge(&self, difference: &Tensor) -> Result<Tensor, LossError> {
        let violation = difference.f_add_number(self.margin)?;
        if self.smooth_loss { f_softplus(&violation) } else { Ok(violation.f_relu()?) }
    }
}

/// The loss of the triplets that are mined.
#[derive(Clone, Copy)]
struct Mined {
    loss: BatchTripletMarginLoss,
    /// Distances that differ by less count as equal, so that rounding does not decide which triplets are mined.
    noise: f64,
}

impl Mined {
    fn f_loss(self, far: &Tensor, pairs: Pairs) -> Result<Tensor, LossError> {
        let losses = match self.loss.mining {
            _ if far.numel() == 0 && self.loss.reduction == EmbeddingReduction::None => far.f_flatten(0, -1)?,
            _ if far.numel() == 0 => far.f_sum(None)?,
            TripletMining::BatchHard => self.f_hardest(far, &pairs)?,
            _ if self.loss.swap || self.loss.smooth_loss => self.f_one_by_one(far, &pairs)?,
            _ => return self.f_all(far, pairs),
        };
        pairs.f_narrow(&losses)
    }

    /// All triplets that are mined, by the engine that sorts or by the tensor operations that do.
    fn f_all(self, far: &Tensor, pairs: Pairs) -> Result<Tensor, LossError> {
        let (numbered, kind) = (pairs.numbered.clone(), pairs.kind);
        let composite = move |far: &Tensor| pairs.f_narrow(&self.f_sorted(far, &pairs)?);
        let BatchTripletMarginLoss { margin, mining, .. } = self.loss;
        let Some(counted) = self.loss.reduction.f_counted()? else { return composite(far) };
        let up_to = match mining {
            TripletMining::SemiHard => Some(margin + self.noise),
            TripletMining::Hard => Some(self.noise),
            _ => None,
        };
        let beyond = (mining == TripletMining::SemiHard).then_some(self.noise);
        f_triplets(Triplets { margin, beyond, up_to, counted }, far, numbered.as_ref(), kind, composite)
    }

    /// One triplet for each anchor.
    fn f_hardest(&self, far: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        let (positive, negative) = (pairs.f_positive()?, pairs.f_negative()?);
        let mined = positive.f_any_dim(1, false)?.f_logical_and(&negative.f_any_dim(1, false)?)?;
        let (not_negative, not_positive) = (negative.f_logical_not()?, positive.f_logical_not()?);
        let (farthest, positive) = self.f_most(&far.f_masked_fill_number(&not_positive, f64::NEG_INFINITY)?)?;
        let (opposite, negative) = self.f_most(&far.f_masked_fill_number(&not_negative, f64::INFINITY)?.f_neg()?)?;
        let mut nearest = opposite.f_neg()?;
        if self.loss.swap {
            let across = far.f_index_select(0, &positive)?.f_gather(1, &negative.f_unsqueeze(1)?, false)?;
            nearest = nearest.f_minimum(&across.f_squeeze_dim(1)?)?;
        }
        let missing = mined.f_logical_not()?;
        let difference =
            farthest.f_masked_fill_number(&missing, 0)?.f_sub(&nearest.f_masked_fill_number(&missing, 0)?)?;
        self.loss.reduction.f_apply(&self.loss.f_hinge(&difference)?, Some(&mined))
    }

    /// The largest number of each row, and where it is: the first one of those that are equal up to rounding.
    fn f_most(&self, rows: &Tensor) -> Result<(Tensor, Tensor), LossError> {
        let bare = rows.f_detach()?;
        let (most, place) = bare.f_max_dim(1, true)?;
        let less = bare.f_lt_tensor(&most.f_sub_number(self.noise)?)?;
        let first = less.f_logical_not()?.f_to_kind(Kind::Int8)?.f_argmax(1, true)?;
        let first = place.f_where_self(&most.f_isnan()?, &first)?;
        let most = rows.f_gather(1, &first, false)?.f_squeeze_dim(1)?;
        Ok((most, first.f_squeeze_dim(1)?))
    }

    /// The hinges of all mined triplets, from the sorted distances of each anchor to its negatives: for a pair (a, p)
    /// the mined negatives whose hinge is above 0 are a range of them. A hinge is linear, so that it is enough to count
    /// of how many each distance is part.
    fn f_sorted(&self, far: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        // A sum of differences needs more digits than single precision has.
        let bare = far.f_detach()?.f_to_kind(Kind::Double)?;
        let (not_positive, not_negative) = (pairs.f_not_positive()?, pairs.f_not_negative()?);
        let negatives = Negatives::f_new(&bare, &not_negative)?;
        let limit = bare.f_add_number(self.loss.margin)?;
        let (from, mut to) = self.f_range(&negatives, &bare, &limit)?;
        let _ = to.f_masked_fill_number_(&not_positive, 0)?;
        let f_length = |to: &Tensor| match &from {
            Some(from) => to.f_sub(from)?.f_clamp_min_number(0),
            None => Ok(to.shallow_clone()),
        };
        // A negative at the limit or beyond it has a hinge of 0.
        let counted = f_length(&to)?;
        let costly = match self.counts_above_zero()? {
            true => counted.shallow_clone(),
            false => f_length(&negatives.f_below(&limit)?.f_minimum(&to)?)?,
        };
        let slopes = negatives.f_slopes(&costly, from.as_ref())?.f_to_kind(Kind::Double)?;
        // Times 0 an infinite distance is 0. One that is NaN has no place in the sorted order; it makes the result NaN,
        // unless there is no triplet at all.
        let none = not_positive.f_all()?.f_logical_or(&not_negative.f_all()?)?;
        let mut sum = bare.f_clamp_number(f64::MIN, f64::MAX)?.f_mul(&slopes)?.f_sum(None)?;
        let _ = sum.f_masked_fill_number_(&none, 0)?;
        let sum = sum.f_add(&costly.f_sum(Kind::Double)?.f_mul_number(self.loss.margin)?)?;
        let kind = far.f_kind()?;
        let sum = Function::new(&[far]).save(&[far, &slopes]).f_attach_one(sum, move |context| {
            let (Some(grad), [far, slopes]) = (context.grad(0), context.saved()) else { return Ok(vec![None]) };
            let gradient = no_grad(|| slopes.f_mul(&grad)?.f_to_kind(kind))?;
            // The counts do not change with the distances, so that second derivatives are 0.
            Ok(vec![Some(if context.create_graph() { f_with_zero_gradients(gradient, &[far])? } else { gradient })])
        })?;
        self.loss.reduction.f_of_sum(&sum, &counted.f_sum(Kind::Int64)?)
    }

    /// Whether those hinges alone count in the reduction that are above 0.
    fn counts_above_zero(&self) -> Result<bool, LossError> {
        Ok(self.loss.reduction.bounds()?.0.is_some_and(|low| low >= 0.0))
    }

    /// For each pair (a, p) the range of sorted negatives that are mined and whose hinges count in the reduction, given
    /// d(a, p) and d(a, p) + m; from the first one on where there is no beginning. It is empty where it ends before it
    /// begins.
    fn f_range(
        &self,
        negatives: &Negatives,
        far: &Tensor,
        limit: &Tensor,
    ) -> Result<(Option<Tensor>, Tensor), LossError> {
        let up_to = |values: &Tensor| negatives.f_up_to(&values.f_add_number(self.noise)?);
        let (mut from, mut to) = match self.loss.mining {
            TripletMining::SemiHard => (Some(up_to(far)?), Some(up_to(limit)?)),
            TripletMining::Hard => (None, Some(up_to(far)?)),
            _ => (None, None),
        };
        let (low, high) = self.loss.reduction.bounds()?;
        if let Some(low) = low.filter(|low| *low >= 0.0) {
            let above = negatives.f_below(&limit.f_sub_number(low)?)?;
            to = Some(to.map_or(Ok(above.shallow_clone()), |to| to.f_minimum(&above))?);
        }
        match high {
            Some(high) if high > 0.0 => {
                let below = negatives.f_up_to(&limit.f_sub_number(high)?)?;
                from = Some(from.map_or(Ok(below.shallow_clone()), |from| from.f_maximum(&below))?);
            }
            Some(_) => to = Some(far.f_zeros_like()?.f_to_kind(Kind::Int64)?),
            None => {}
        }
        let f_all = || negatives.f_number()?.f_expand_as(far)?.f_contiguous();
        Ok((from, to.map_or_else(f_all, Ok)?))
    }

    /// All mined triplets, some pairs (a, p) at a time. The gradient of each chunk is computed with it, so that no
    /// graph of all triplets is ever there.
    fn f_one_by_one(&self, far: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        let (pairs, negative) = (pairs.f_positive()?.f_nonzero()?, pairs.f_negative()?);
        let (mut sum, mut count) = (Tensor::f_zeros([], (Kind::Double, far.device()))?, None::<Tensor>);
        let needed = needed(&[far]);
        let bare = far.f_detach()?;
        let mut gradient = bare.f_zeros_like()?;
        for chunk in f_chunks(&pairs, far.size()[1])? {
            let leaf = bare.f_detach()?.f_set_requires_grad(needed[0])?;
            let (of_chunk, number) = self.f_triplets(&leaf, &chunk, &negative)?;
            if needed[0] {
                let _ = gradient.f_add_(&Tensor::f_run_backward(&[&of_chunk], &[&leaf], false, false)?[0])?;
            }
            sum = sum.f_add(&of_chunk.f_detach()?)?;
            count = Some(count.map_or(Ok(number.shallow_clone()), |count| count.f_add(&number))?);
        }
        let Some(count) = count else { return Ok(far.f_narrow(0, 0, 0)?.f_sum(None)?) };
        let mined = *self;
        let function = Function::new(&[far]).save(&[far, &gradient, &pairs, &negative]);
        let sum = function.f_attach_one(sum, move |context| {
            let Some(grad) = context.grad(0) else { return Ok(vec![None]) };
            let [far, gradient, pairs, negative] = context.saved() else { return Ok(vec![None]) };
            let chunked = || Ok(spread(vec![gradient.f_mul(&grad.f_to_kind(gradient.f_kind()?)?)?], &needed));
            let again = |far: &[Tensor]| Ok(mined.f_triplets(&far[0], pairs, negative)?.0);
            context.f_gradients(&chunked, &|| f_gradients_of(&again, &grad, &[far.shallow_clone()], &[true]))
        })?;
        self.loss.reduction.f_of_sum(&sum, &count)
    }

    /// The sum and the number of the losses of `pairs` `[P, 2]` of an anchor and a positive, with all negatives.
    fn f_triplets(&self, far: &Tensor, pairs: &Tensor, negative: &Tensor) -> Result<(Tensor, Tensor), LossError> {
        let (anchors, positives) = (pairs.f_select(1, 0)?, pairs.f_select(1, 1)?);
        let to_negatives = far.f_index_select(0, &anchors)?;
        let to_positive = to_negatives.f_gather(1, &positives.f_unsqueeze(1)?, false)?;
        let mut mined = negative.f_index_select(0, &anchors)?;
        let nearer = |margin: f64| to_negatives.f_le_tensor(&to_positive.f_add_number(margin + self.noise)?);
        match self.loss.mining {
            TripletMining::SemiHard => {
                mined =
                    mined.f_logical_and(&nearer(self.loss.margin)?)?.f_logical_and(&nearer(0.0)?.f_logical_not()?)?;
            }
            TripletMining::Hard => mined = mined.f_logical_and(&nearer(0.0)?)?,
            _ => {}
        }
        let nearest =
            if self.loss.swap { to_negatives.f_minimum(&far.f_index_select(0, &positives)?)? } else { to_negatives };
        self.loss.reduction.f_sum_and_count(&self.loss.f_hinge(&to_positive.f_sub(&nearest)?)?, &mined)
    }
}

/// The negatives of each anchor in the order of their distances.
struct Negatives {
    /// `[N, M]`, infinite after the last, and where each of them was.
    sorted: Tensor,
    order: Tensor,
    /// `[N, M]`: which are no negatives.
    others: Tensor,
    number: OnceCell<Tensor>,
}

impl Negatives {
    fn f_new(far: &Tensor, others: &Tensor) -> Result<Negatives, LossError> {
        let (sorted, order) = far.f_masked_fill_number(others, f64::INFINITY)?.f_sort(1, false)?;
        Ok(Negatives { sorted, order, others: others.shallow_clone(), number: OnceCell::new() })
    }

    /// How many there are, `[N, 1]`.
    fn f_number(&self) -> Result<Tensor, TchError> {
        if let Some(number) = self.number.get() {
            return Ok(number.shallow_clone());
        }
        let number = self.others.f_logical_not()?.f_sum_dim_intlist([1_i64].as_slice(), true, Kind::Int64)?;
        Ok(self.number.get_or_init(|| number).shallow_clone())
    }

    /// How many are below each value. What is no negative is infinite, and not below any.
    fn f_below(&self, values: &Tensor) -> Result<Tensor, TchError> {
        values.f_searchsorted(&self.sorted, false, false, "left", None::<Tensor>)
    }

    /// How many are not above each value.
    fn f_up_to(&self, values: &Tensor) -> Result<Tensor, TchError> {
        values.f_searchsorted(&self.sorted, false, true, "right", None::<Tensor>)?.f_minimum(&self.f_number()?)
    }

    /// The derivatives of the sum of hinges, `[N, M]`: for each positive how many negatives it meets, which are so many
    /// from a place on, and for each negative minus the number of positives.
    fn f_slopes(&self, lengths: &Tensor, from: Option<&Tensor>) -> Result<Tensor, TchError> {
        let [rows, columns] = [0, 1].map(|dim| self.sorted.size()[dim]);
        let options = (Kind::Int64, lengths.device());
        let one = Tensor::f_ones([1, 1], options)?.f_expand([rows, columns], false)?;
        // Ranges end and begin.
        let mut changes = Tensor::f_zeros([rows, columns + 1], options)?;
        match from {
            Some(from) => {
                let _ = changes.f_scatter_add_(1, &from.f_add(lengths)?, &one)?;
                let _ = changes.f_scatter_add_(1, from, &one.f_neg()?)?;
            }
            None => {
                let _ = changes.f_scatter_add_(1, lengths, &one)?;
                let _ = changes.f_narrow(1, 0, 1)?.f_add_number_(-columns)?;
            }
        }
        let of_sorted = changes.f_narrow(1, 0, columns)?.f_cumsum(1, None)?;
        let of_negatives = lengths.f_empty_like()?.f_scatter_(1, &self.order, &of_sorted)?;
        lengths.f_add(&of_negatives)
    }
}

/// `pairs` in parts of which each has about [`CHUNK`] triplets with `negatives`.
fn f_chunks(pairs: &Tensor, negatives: i64) -> Result<Vec<Tensor>, TchError> {
    let (count, rows) = (pairs.size()[0], (CHUNK / negatives).max(1));
    (0..count).step_by(rows as usize).map(|start| pairs.f_narrow(0, start, rows.min(count - start))).collect()
}

impl Loss for BatchTripletMarginLoss {
    loss_of_batch!(Triplet);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite("margin", self.margin)?;
        let per_anchor = matches!(self.reduction, EmbeddingReduction::PerAnchor(_));
        check::option(
            "reduction",
            "PerAnchor",
            !per_anchor,
            "another one, since it is for pairs and not for triplets",
        )?;
        self.distance.check()?;
        self.reduction.bounds().map(drop)
    }
}

impl EmbeddingLoss for BatchTripletMarginLoss {
    loss_of_pairs!();

    fn f_forward_pairs(
        &self,
        embeddings: &Tensor,
        pairs: &EmbeddingPairs,
        ref_emb: Option<&Tensor>,
    ) -> Result<Tensor, LossError> {
        let (batch, indices) = Batch::f_with_indices(embeddings, pairs, ref_emb)?;
        self.check(&batch)?;
        let far = self.f_far(&batch)?;
        let [anchors, positives, negatives] = indices.f_triplets()?;
        let places = |rows: &Tensor, columns: &Tensor| rows.f_mul_number(far.size()[1])?.f_add(columns);
        let flat = far.f_flatten(0, -1)?;
        let distances = |rows, columns| flat.f_index_select(0, &places(rows, columns)?);
        let mut nearest = distances(&anchors, &negatives)?;
        if self.swap {
            nearest = nearest.f_minimum(&distances(&positives, &negatives)?)?;
        }
        let losses = self.f_hinge(&distances(&anchors, &positives)?.f_sub(&nearest)?)?;
        let reduction = self.reduction.above(self.distance.noise(batch.f_kind()?));
        batch.pairs.f_narrow(&reduction.f_apply(&losses, None)?)
    }
}
