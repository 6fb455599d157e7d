use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::batch::{Batch, Needed, f_kind_of_pairs, f_lacks};
use super::class_vectors::OwnSoftmax;
use super::{EmbeddingDistance, EmbeddingPairs, EmbeddingReduction};
use crate::autograd::{Backward, Place, Tape, f_taped};
use crate::kernels::{self, PairLabels, Soft, f_pairs_on};
use crate::numeric::{f_added_rows, f_positions, f_selected_rows};
use crate::{Loss, LossError, check};

crate::options::options! {
/// The N-pairs loss: of one pair of each label, each anchor picks its positive out of the positives of all labels.
///
/// For batches that are made of pairs, one per class. It compares 2N embeddings with N·(N − 1) negatives, which is
/// cheap, and uses no more than two embeddings of a label. The related [`NtXentLoss`](crate::NtXentLoss) uses all of
/// them, with a temperature.
///
/// # Formula
///
/// ℓᵢ = log Σⱼ exp(s(aᵢ, pⱼ)) − s(aᵢ, pᵢ)
///
/// for each label i that occurs more than once, where aᵢ is the first embedding of it and pᵢ the second, and s is the
/// similarity (or a distance with the other sign).
///
#[doc = include_str!("../../docs/book/src/gallery/n_pairs.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`
/// * `target`: `[N]`, labels of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses of the labels that occur more than once, in
///   ascending order
///
/// # Reference
///
/// `pytorch_metric_learning.losses.NPairsLoss` 2.9.0; Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss
/// Objective, 2016.
///
/// # Differences from pytorch-metric-learning
///
/// Those of [`EmbeddingDistance`].
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a distance out of range.
///
/// # Example
///
/// ```
/// use tch::{Kind, Tensor};
/// use tch_losses::{EmbeddingDistance, Loss, NPairsLoss};
///
/// let embeddings = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0, 3.0, 0.0, 0.0, 3.0]).view([4, 2]).set_requires_grad(true);
/// let labels = Tensor::from_slice(&[0_i64, 1, 0, 1]);
///
/// // Each anchor has product 3 with its positive and 0 with the other.
/// let product = EmbeddingDistance::dot_product().normalize_embeddings(false);
/// let loss = NPairsLoss::new().distance(product).f_forward(&embeddings, &labels)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (1.0 + (-3_f64).exp()).ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
pub struct NPairsLoss: "n_pairs";

/// The N-pairs loss with the defaults of pytorch-metric-learning.
new {
    /// the distance.
    distance: EmbeddingDistance = EmbeddingDistance::dot_product(),
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::Mean,
}
}

impl NPairsLoss {
    /// Computes the loss of the first of the `pairs` of each label, given the anchors' labels, in place of the first
    /// two embeddings of each label. Negatives are not needed; triplets will do.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward_pairs(
        &self,
        input: &Tensor,
        target: &Tensor,
        pairs: &EmbeddingPairs,
    ) -> Result<Tensor, LossError> {
        let batch = Batch::f_new(input, target)?;
        let [anchors, positives] = pairs.f_indices(("input", input), [input.size()[0]; 2])?.positives;
        let labels = check::host_integers(&batch.pairs.labels.f_index_select(0, &anchors)?)?;
        let mut first = BTreeMap::<i64, i64>::new();
        for (label, position) in labels.into_iter().zip(0..) {
            first.entry(label).or_insert(position);
        }
        let first = Tensor::f_from_slice(&first.into_values().collect::<Vec<_>>())?.f_to_device(input.device())?;
        self.f_loss(&batch, anchors.f_index_select(0, &first)?, positives.f_index_select(0, &first)?)
    }

    crate::loss::or_panic! {
        forward_pairs as f_forward_pairs(input: &Tensor, target: &Tensor, pairs: &EmbeddingPairs) -> Tensor
    }

    fn f_loss(&self, batch: &Batch, anchors: Tensor, positives: Tensor) -> Result<Tensor, LossError> {
        let loss = Self { reduction: self.reduction.of_anchors(), ..*self };
        let (pairs, counted) = (anchors.size()[0], loss.reduction.f_counted()?);
        let (wide, kind) = (f_kind_of_pairs(&batch.embeddings, [pairs; 2])?, batch.pairs.kind);
        let steps = |tape: &mut Tape, places: &[Place]| {
            let labels = PairLabels::of_diagonal(&batch.embeddings, 1, pairs as usize);
            if !kernels::takes_elements(&batch.embeddings) || pairs == 0 || counted.is_none() {
                return Ok(None);
            }
            let chosen = [f_select_on(tape, places[0], &anchors)?, f_select_on(tape, places[0], &positives)?];
            let Some(matrix) = self.distance.f_matrix_on(tape, &chosen, wide)? else { return Ok(None) };
            let softmax = OwnSoftmax { scale: -self.distance.sign(), margin: 0.0 };
            f_pairs_on(tape, Soft(softmax), &[matrix], labels.as_ref(), counted, kind)
        };
        let chosen = [&anchors, &positives].map(Tensor::shallow_clone);
        f_taped(&[&batch.embeddings], steps, move |inputs| {
            let [anchors, positives] = [&chosen[0], &chosen[1]].map(|indices| f_selected_rows(&inputs[0], indices));
            let matrix = loss.distance.f_matrix(&anchors?, Some(&positives?), wide)?;
            Ok(loss.f_composite(&matrix)?.f_to_kind(kind)?)
        })
    }

    fn f_composite(&self, matrix: &Tensor) -> Result<Tensor, LossError> {
        let alike = self.distance.f_alike(matrix)?;
        let own = f_positions(alike.size()[0], (Kind::Int64, alike.device()))?;
        let losses = OwnSoftmax { scale: 1.0, margin: 0.0 }.f_losses(&alike, None, &own)?;
        self.reduction.f_apply(&losses, None)
    }
}

impl Loss for NPairsLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        self.distance.check()?;
        self.reduction.bounds().map(drop)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let batch = Batch::f_new(input, target)?;
        let (anchors, positives) = f_pairs(&batch.pairs.labels)?;
        self.f_loss(&batch, anchors, positives)
    }

    fn f_is_empty(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        f_lacks(input, target, Needed::Triplet)
    }
}

/// The rows of a place of a tape that `indices` name.
fn f_select_on(tape: &mut Tape, place: Place, indices: &Tensor) -> Result<Place, LossError> {
    let (rows, indices) = (tape.value(place).f_index_select(0, indices)?, indices.shallow_clone());
    let pull = move |of: Backward| Ok(vec![Some(f_added_rows(&of.arguments[0].size(), &indices, of.grad)?)]);
    Ok(tape.add(rows, &[place], pull))
}

/// The positions of the first and of the second embedding of each label that occurs more than once.
fn f_pairs(labels: &Tensor) -> Result<(Tensor, Tensor), LossError> {
    let mut positions = BTreeMap::<i64, Vec<i64>>::new();
    for (label, position) in check::host_integers(labels)?.into_iter().zip(0..) {
        positions.entry(label).or_default().push(position);
    }
    let (anchors, positives): (Vec<i64>, Vec<i64>) = positions
        .into_values()
        .filter_map(|positions| match positions[..] {
            [anchor, positive, ..] => Some((anchor, positive)),
            _ => None,
        })
        .unzip();
    let on_device = |positions: &[i64]| Tensor::f_from_slice(positions)?.f_to_device(labels.device());
    Ok((on_device(&anchors)?, on_device(&positives)?))
}
