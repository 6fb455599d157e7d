use tch::{Kind, Tensor};

use super::pairs::{Indices, Listed};
use super::{EmbeddingDistance, EmbeddingPairs, EmbeddingReduction};
use crate::autograd::{Place, Tape, f_taped};
use crate::kernels::{NumberOperations, PairLabels, PairPlan, Real, f_pairs, f_pairs_on};
use crate::numeric::{result_kind, wide_kind};
use crate::{Loss, LossError, check};

/// A loss over all pairs of a batch of embeddings, or of a batch and a set of reference embeddings.
///
/// As a [`Loss`] its `input` are embeddings `[N, D]` and its `target` their labels `[N]`, of any integer kind:
/// embeddings of one label belong together. References are for embeddings of another origin: a memory of former
/// batches, of the other modality, or of a slowly moving copy of the model.
///
/// For [`when_empty`](Loss::when_empty) a batch is empty that has no pairs, or for losses that hold a pair of one label
/// against those of others ([`BatchTripletMarginLoss`](crate::BatchTripletMarginLoss),
/// [`CircleLoss`](crate::CircleLoss), [`LiftedStructureLoss`](crate::LiftedStructureLoss),
/// [`NtXentLoss`](crate::NtXentLoss), [`SupConLoss`](crate::SupConLoss)) no triplets, or for
/// [`NcaLoss`](crate::NcaLoss) no two embeddings of one label. A batch whose pairs all have a loss of 0 is not empty.
pub trait EmbeddingLoss: Loss {
    /// Computes the loss of `embeddings` `[N, D]` that are compared with `ref_emb` `[M, D]` alone, and not with each
    /// other.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    fn f_forward_with(
        &self,
        embeddings: &Tensor,
        labels: &Tensor,
        ref_emb: &Tensor,
        ref_labels: &Tensor,
    ) -> Result<Tensor, LossError>;

    /// Computes the loss of the `pairs` that are named, by hand or by a miner, in place of those that labels tell,
    /// which are not needed then. Where there are references `[M, D]`, the anchors are of `embeddings` and all others
    /// of `ref_emb`.
    ///
    /// For losses of pairs a triplet is two pairs, and for the triplet loss the pairs of one anchor make up triplets. A
    /// pair that is named twice counts twice in losses that are means over pairs or triplets, and once in those over
    /// embeddings.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    fn f_forward_pairs(
        &self,
        embeddings: &Tensor,
        pairs: &EmbeddingPairs,
        ref_emb: Option<&Tensor>,
    ) -> Result<Tensor, LossError>;

    /// Computes the loss of the embeddings of all ranks of a group, which may have different numbers of them, as one
    /// process with the whole batch does: each embedding is compared with those of all ranks.
    ///
    /// Every rank computes the whole loss, and has its value. The gradients, averaged over ranks as by data
    /// parallelism, are those of one process. pytorch-metric-learning has that as `DistributedLossWrapper`.
    ///
    /// # Errors
    /// Those of [`f_forward`](Loss::f_forward), and those of
    /// [`Group::f_gather_data_parallel`](crate::distributed::Group::f_gather_data_parallel).
    #[cfg(feature = "distributed")]
    #[doc(alias = "DistributedLossWrapper")]
    fn f_forward_over_ranks(
        &self,
        embeddings: &Tensor,
        labels: &Tensor,
        group: &crate::distributed::Group,
    ) -> Result<Tensor, LossError> {
        let checked = check::devices(&[("input", embeddings), ("target", labels)])
            .and_then(|()| f_labels(("input", embeddings), ("target", labels)));
        self.f_whole_over_ranks(embeddings, &group.f_or_refuse(checked)?, group)
    }

    /// Computes the loss as [`f_forward_pairs`](EmbeddingLoss::f_forward_pairs) does.
    ///
    /// # Panics
    /// Where `f_forward_pairs` returns an error, with its message.
    #[track_caller]
    fn forward_pairs(&self, embeddings: &Tensor, pairs: &EmbeddingPairs, ref_emb: Option<&Tensor>) -> Tensor {
        crate::loss::expect(self.f_forward_pairs(embeddings, pairs, ref_emb))
    }

    /// Computes the loss as [`f_forward_with`](EmbeddingLoss::f_forward_with) does.
    ///
    /// # Panics
    /// Where `f_forward_with` returns an error, with its message.
    #[track_caller]
    fn forward_with(&self, embeddings: &Tensor, labels: &Tensor, ref_emb: &Tensor, ref_labels: &Tensor) -> Tensor {
        crate::loss::expect(self.f_forward_with(embeddings, labels, ref_emb, ref_labels))
    }
}

/// The methods of a [`Loss`] over the pairs of a batch, except the check of its options. Its method `f_loss` computes
/// it from a [`Batch`]; a batch without what is [`Needed`] is empty.
macro_rules! loss_of_batch {
    ($needed:ident) => {
        crate::option_tensors::with_tensors!();

        fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
            self.f_loss(Batch::f_new(input, target)?)
        }

        fn f_is_empty(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
            super::batch::f_lacks(input, target, super::batch::Needed::$needed)
        }
    };
}
pub(super) use loss_of_batch;

/// The methods of an [`EmbeddingLoss`] that `f_loss` computes from a [`Batch`]: with references, and of pairs that are
/// named, where the method of [`Batch`] is given that takes them.
macro_rules! loss_of_pairs {
    () => {
        fn f_forward_with(
            &self,
            embeddings: &Tensor,
            labels: &Tensor,
            ref_emb: &Tensor,
            ref_labels: &Tensor,
        ) -> Result<Tensor, LossError> {
            self.f_loss(Batch::f_with_reference(embeddings, labels, ref_emb, ref_labels)?)
        }
    };
    ($f_of_pairs:ident) => {
        super::batch::loss_of_pairs!();

        fn f_forward_pairs(
            &self,
            embeddings: &Tensor,
            pairs: &super::EmbeddingPairs,
            ref_emb: Option<&Tensor>,
        ) -> Result<Tensor, LossError> {
            self.f_loss(Batch::$f_of_pairs(embeddings, pairs, ref_emb)?)
        }
    };
}
pub(super) use loss_of_pairs;

/// Up to how many pairs embeddings of single precision are compared in double precision. Gradients are sums over pairs
/// whose terms nearly cancel, so that single precision leaves few digits. For so few pairs double precision costs next
/// to nothing.
const FEW_PAIRS: i64 = 1 << 16;

/// The embeddings of a batch, and which of their pairs belong together.
pub(crate) struct Batch {
    pub(crate) embeddings: Tensor,
    /// None where the embeddings are compared with each other.
    pub(crate) reference: Option<Tensor>,
    pub(crate) pairs: Pairs,
}

/// Which embeddings of a batch belong together.
pub(crate) struct Pairs {
    /// Labels as 64-bit integers.
    pub(crate) labels: Tensor,
    /// Those of references.
    ref_labels: Option<Tensor>,
    /// The pairs that were named in place of labels.
    listed: Option<Listed>,
    /// The labels in the form that the engine of pairs takes.
    pub(crate) numbered: Option<PairLabels>,
    /// That of the embeddings.
    pub(crate) kind: Kind,
}

impl Batch {
    /// A batch whose embeddings are compared with each other.
    pub(crate) fn f_new(embeddings: &Tensor, labels: &Tensor) -> Result<Batch, LossError> {
        check::devices(&[("input", embeddings), ("target", labels)])?;
        let labels = f_labels(("input", embeddings), ("target", labels))?;
        let pairs = Pairs::f_new(labels, None, embeddings.f_kind()?)?;
        Ok(Batch { embeddings: embeddings.shallow_clone(), reference: None, pairs })
    }

    /// A batch whose embeddings are compared with references.
    pub(crate) fn f_with_reference(
        embeddings: &Tensor,
        labels: &Tensor,
        ref_emb: &Tensor,
        ref_labels: &Tensor,
    ) -> Result<Batch, LossError> {
        let names = ["embeddings", "labels", "ref_emb", "ref_labels"];
        let named = [(names[0], embeddings), (names[1], labels), (names[2], ref_emb), (names[3], ref_labels)];
        check::devices(&named)?;
        let (labels, ref_labels) = (f_labels(named[0], named[1])?, f_labels(named[2], named[3])?);
        same_features(named[2], embeddings)?;
        let pairs = Pairs::f_new(labels, Some(ref_labels), embeddings.f_kind()?)?;
        Ok(Batch { embeddings: embeddings.shallow_clone(), reference: Some(ref_emb.shallow_clone()), pairs })
    }

    /// A batch of which the pairs are named.
    pub(crate) fn f_of_pairs(
        embeddings: &Tensor,
        pairs: &EmbeddingPairs,
        ref_emb: Option<&Tensor>,
    ) -> Result<Batch, LossError> {
        Ok(Batch::f_with_indices(embeddings, pairs, ref_emb)?.0)
    }

    /// The same, and the positions that make up the pairs.
    pub(crate) fn f_with_indices(
        embeddings: &Tensor,
        pairs: &EmbeddingPairs,
        ref_emb: Option<&Tensor>,
    ) -> Result<(Batch, Indices), LossError> {
        let named = ("embeddings", embeddings);
        check::devices(&[named])?;
        f_rows(named)?;
        if let Some(ref_emb) = ref_emb {
            let reference = ("ref_emb", ref_emb);
            check::devices(&[named, reference])?;
            f_rows(reference)?;
            same_features(reference, embeddings)?;
        }
        let size = [embeddings.size()[0], ref_emb.unwrap_or(embeddings).size()[0]];
        let indices = pairs.f_indices(named, size)?;
        let pairs = Pairs {
            labels: Tensor::f_zeros([0], (Kind::Int64, embeddings.device()))?,
            ref_labels: None,
            listed: Some(indices.f_listed(size)?),
            numbered: None,
            kind: result_kind(embeddings)?,
        };
        let reference = ref_emb.map(Tensor::shallow_clone);
        Ok((Batch { embeddings: embeddings.shallow_clone(), reference, pairs }, indices))
    }

    /// The same for losses that sum over the pairs of an anchor, in which no pair may be a positive and a negative one.
    pub(crate) fn f_of_rows(
        embeddings: &Tensor,
        pairs: &EmbeddingPairs,
        ref_emb: Option<&Tensor>,
    ) -> Result<Batch, LossError> {
        let batch = Batch::f_of_pairs(embeddings, pairs, ref_emb)?;
        if let Some(listed) = &batch.pairs.listed {
            listed.f_check_disjoint()?;
        }
        Ok(batch)
    }

    /// The distances or similarities of all pairs, in the kind in which they are compared.
    pub(crate) fn f_matrix(&self, distance: EmbeddingDistance) -> Result<Tensor, LossError> {
        distance.f_matrix(&self.embeddings, self.reference.as_ref(), self.f_kind()?)
    }

    /// That in which pairs are compared.
    pub(crate) fn f_kind(&self) -> Result<Kind, LossError> {
        let others = self.reference.as_ref().unwrap_or(&self.embeddings);
        f_kind_of_pairs(&self.embeddings, [self.embeddings.size()[0], others.size()[0]])
    }

    /// What `plan` makes of that matrix, by engines, or `f_composite` of the `loss` by tensor operations; in the kind
    /// of the embeddings.
    pub(crate) fn f_reduced<P: PairPlan, L: Copy + Send + 'static>(
        &self,
        (distance, plan, reduction): (EmbeddingDistance, P, EmbeddingReduction),
        loss: L,
        f_composite: fn(&L, &Tensor, &Pairs) -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        let (pairs, counted) = (self.pairs.shallow_clone(), reduction.f_counted()?);
        let inputs: Vec<&Tensor> = [Some(&self.embeddings), self.reference.as_ref()].into_iter().flatten().collect();
        let kind = self.f_kind()?;
        let steps = |tape: &mut Tape, places: &[Place]| {
            if counted.is_none() || self.pairs.numbered.is_none() {
                return Ok(None);
            }
            let Some(matrix) = distance.f_matrix_on(tape, places, kind)? else { return Ok(None) };
            f_pairs_on(tape, plan, &[matrix], self.pairs.numbered.as_ref(), counted, self.pairs.kind)
        };
        f_taped(&inputs, steps, move |inputs| {
            let matrix = distance.f_matrix(&inputs[0], inputs.get(1), kind)?;
            let pairs = pairs.shallow_clone();
            let (numbered, kind) = (pairs.numbered.clone(), pairs.kind);
            let composite = move |[matrix]: [&Tensor; 1]| pairs.f_narrow(&f_composite(&loss, matrix, &pairs)?);
            f_pairs(plan, [&matrix], numbered.as_ref(), counted, kind, composite)
        })
    }
}

impl Pairs {
    fn f_new(labels: Tensor, ref_labels: Option<Tensor>, kind: Kind) -> Result<Self, LossError> {
        let numbered = PairLabels::f_new(&labels, ref_labels.as_ref())?;
        Ok(Self { labels, ref_labels, listed: None, numbered, kind })
    }

    fn shallow_clone(&self) -> Self {
        Self {
            labels: self.labels.shallow_clone(),
            ref_labels: self.ref_labels.as_ref().map(Tensor::shallow_clone),
            listed: self.listed.as_ref().map(Listed::shallow_clone),
            numbered: self.numbered.clone(),
            kind: self.kind,
        }
    }

    /// `[N, M]`: whether two embeddings belong together and are not one and the same.
    pub(crate) fn f_positive(&self) -> Result<Tensor, LossError> {
        if let Some(listed) = &self.listed {
            return listed.f_mask(&listed.positives);
        }
        let mut same = self.f_same()?;
        if self.ref_labels.is_none() {
            let _ = same.f_fill_diagonal_number_(0, false)?;
        }
        Ok(same)
    }

    /// `[N, M]`: whether two embeddings do not belong together.
    pub(crate) fn f_negative(&self) -> Result<Tensor, LossError> {
        match &self.listed {
            Some(listed) => listed.f_mask(&listed.negatives),
            None => self.f_different(),
        }
    }

    /// `[N, M]`: all pairs but those that [belong together](Self::f_positive).
    pub(crate) fn f_not_positive(&self) -> Result<Tensor, LossError> {
        if self.listed.is_some() {
            return Ok(self.f_positive()?.f_logical_not()?);
        }
        let mut different = self.f_different()?;
        if self.ref_labels.is_none() {
            let _ = different.f_fill_diagonal_number_(1, false)?;
        }
        Ok(different)
    }

    /// `[N, M]`: all pairs but those that [do not belong together](Self::f_negative).
    pub(crate) fn f_not_negative(&self) -> Result<Tensor, LossError> {
        match &self.listed {
            Some(listed) => Ok(listed.f_mask(&listed.negatives)?.f_logical_not()?),
            None => self.f_same(),
        }
    }

    /// Reduces the `losses` `[N, M]` of the pairs that belong together, of which the [mask](Self::f_positive) may be known.
    pub(crate) fn f_reduce_positives(
        &self,
        losses: &Tensor,
        known: Option<Tensor>,
        of: EmbeddingReduction,
    ) -> Result<Tensor, LossError> {
        match &self.listed {
            Some(listed) => listed.f_reduce(&listed.positives, losses, of),
            None => of.f_apply_to_pairs(losses, &known.map_or_else(|| self.f_positive(), Ok)?),
        }
    }

    /// Reduces those of the other pairs.
    pub(crate) fn f_reduce_negatives(&self, losses: &Tensor, of: EmbeddingReduction) -> Result<Tensor, LossError> {
        match &self.listed {
            Some(listed) => listed.f_reduce(&listed.negatives, losses, of),
            None => of.f_apply_to_pairs(losses, &self.f_negative()?),
        }
    }

    /// log Σ exp over those of each row that do not belong to it, each as often as it is named; and whether there are
    /// any.
    pub(crate) fn f_log_sum_exp_of_negatives(&self, matrix: &Tensor) -> Result<[Tensor; 2], LossError> {
        let any = self.f_negative()?.f_any_dim(1, true)?;
        let others = self.f_not_negative()?;
        let sum = match &self.listed {
            None => f_log_sum_exp_without(matrix, &others)?,
            Some(listed) => {
                let counts = listed.f_counts(&listed.negatives, matrix.f_kind()?)?;
                f_log_sum_exp_without(&matrix.f_add(&counts.f_clamp_min_number(1)?.f_log()?)?, &others)?
            }
        };
        Ok([sum, any])
    }

    /// Whether labels are equal, for each of the first with each of the second.
    fn f_same(&self) -> Result<Tensor, LossError> {
        let others = self.ref_labels.as_ref().unwrap_or(&self.labels);
        Ok(self.labels.f_unsqueeze(1)?.f_eq_tensor(&others.f_unsqueeze(0)?)?)
    }

    /// Whether they are not.
    fn f_different(&self) -> Result<Tensor, LossError> {
        let others = self.ref_labels.as_ref().unwrap_or(&self.labels);
        Ok(self.labels.f_unsqueeze(1)?.f_ne_tensor(&others.f_unsqueeze(0)?)?)
    }

    /// The result in the kind of the embeddings.
    pub(crate) fn f_narrow(&self, loss: &Tensor) -> Result<Tensor, LossError> {
        Ok(loss.f_to_kind(self.kind)?)
    }
}

/// The labels of embeddings as 64-bit integers.
pub(super) fn f_labels(embeddings: check::Named, labels: check::Named) -> Result<Tensor, LossError> {
    let size = f_rows(embeddings)?;
    let fits = labels.1.size() == size[..1];
    check::shape(labels, fits, format_args!("[{}], one label for each of {}", size[0], embeddings.0))?;
    check::integers(labels)
}

/// What a batch must contain so that it is not empty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Needed {
    /// Any two embeddings.
    Pair,
    /// Two embeddings of one label.
    Positive,
    /// Two embeddings of one label, and one of another, with which they make a triplet.
    Triplet,
}

/// Whether a batch with these `labels` lacks what is `needed`, as a Boolean scalar on their device.
pub(super) fn f_lacks(embeddings: &Tensor, labels: &Tensor, needed: Needed) -> Result<Tensor, LossError> {
    let named = [("input", embeddings), ("target", labels)];
    check::devices(&named)?;
    let labels = f_labels(named[0], named[1])?;
    let next = labels.size()[0] - 1;
    if next < 1 || needed == Needed::Pair {
        return Ok(Tensor::f_full_number(&[], i64::from(next < 1), (Kind::Bool, labels.device()))?);
    }
    let (sorted, _) = labels.f_sort(0, false)?;
    let equal = sorted.f_narrow(0, 1, next)?.f_eq_tensor(&sorted.f_narrow(0, 0, next)?)?;
    let no_positive = equal.f_any()?.f_logical_not()?;
    if needed == Needed::Positive {
        return Ok(no_positive);
    }
    Ok(no_positive.f_logical_or(&equal.f_all()?)?)
}

/// The size of embeddings.
fn f_rows(embeddings: check::Named) -> Result<Vec<i64>, LossError> {
    check::floating(embeddings)?;
    let size = embeddings.1.size();
    if size.len() == 2 && size[1] > 0 {
        return Ok(size);
    }
    Err(check::shape_error(embeddings, "[N, D] with D > 0"))
}

/// References have as many features as embeddings.
fn same_features(reference: check::Named, embeddings: &Tensor) -> Result<(), LossError> {
    let features = embeddings.size()[1];
    let fits = reference.1.size()[1] == features;
    check::shape(reference, fits, format_args!("[M, {features}], the dimension of embeddings"))
}

/// The kind in which so many rows of `embeddings` are compared with so many others.
pub(super) fn f_kind_of_pairs(embeddings: &Tensor, [rows, others]: [i64; 2]) -> Result<Kind, LossError> {
    let few = rows.saturating_mul(others) <= FEW_PAIRS;
    if few { Ok(Kind::Double) } else { wide_kind(embeddings) }
}

/// log Σ exp over the elements of each row that `mask` names. Without any it is so small that its exponential is 0.
pub(crate) fn f_log_sum_exp(matrix: &Tensor, mask: &Tensor) -> Result<Tensor, LossError> {
    f_log_sum_exp_without(matrix, &mask.f_logical_not()?)
}

/// The same over the elements that `others` does not name.
fn f_log_sum_exp_without(matrix: &Tensor, others: &Tensor) -> Result<Tensor, LossError> {
    // −∞ would not do: its difference from itself is NaN.
    let least = if matrix.f_kind()? == Kind::Double { f64::MIN } else { f64::from(f32::MIN) };
    Ok(matrix.f_masked_fill_number(others, least / 2.0)?.f_logsumexp([1_i64].as_slice(), true)?)
}

/// log(1 + exp(x)).
pub(crate) fn f_softplus(x: &Tensor) -> Result<Tensor, LossError> {
    Ok(x.f_neg()?.f_log_sigmoid()?.f_neg()?)
}

/// log(1 + exp(x)), and its derivative.
pub(crate) fn softplus<R: Real>(x: R) -> (R, R) {
    let one = R::of(1.0);
    (x.at_least(R::of(0.0)) + (-x.abs()).exp().ln_1p_unit(), one / (one + (-x).exp()))
}
