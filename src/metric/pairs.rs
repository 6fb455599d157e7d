use tch::{Device, Kind, Tensor};

use super::EmbeddingReduction;
use crate::LossError;
use crate::check::{self, Named};
use crate::kernels::NumberOperations;

/// The pairs or triplets of a loss of embeddings, named by position: those that a miner found, or that are known
/// without labels.
///
/// Losses of pairs and triplets take them in [`EmbeddingLoss::f_forward_pairs`](crate::EmbeddingLoss::f_forward_pairs),
/// with or without references. For losses with a vector for each class ([`ArcFace`](crate::ArcFace),
/// [`CosFace`](crate::CosFace), [`ProxyAnchor`](crate::ProxyAnchor), [`ProxyNca`](crate::ProxyNca)) they are weights of
/// the embeddings: how often each of them is named (as an anchor, in [`ProxyNca`](crate::ProxyNca)), divided by the
/// largest of these numbers.
///
/// Positions may be of any integer kind. An anchor is one of the embeddings of the call; positives and negatives are of
/// the references, where there are some, or else of the embeddings, too.
///
/// # Reference
///
/// The argument `indices_tuple` of the losses of pytorch-metric-learning 2.9.0.
///
/// # Differences from pytorch-metric-learning
///
/// * Positions out of range, of another kind or in other shapes than `[P]` are an error that names them. Negative ones
///   do not count from the end.
/// * A single pair, or a single triplet, has its loss; there it is 0 in losses of pairs.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{ContrastiveLoss, EmbeddingDistance, EmbeddingLoss, EmbeddingPairs, EmbeddingReduction};
///
/// let embeddings = Tensor::from_slice(&[0.0, 2.0]).view([2, 1]).set_requires_grad(true);
/// // The memory of former batches.
/// let bank = Tensor::from_slice(&[1.0, 0.5, 7.0]).view([3, 1]);
/// let positions = |of: &[i64]| Tensor::from_slice(of);
///
/// // Embedding 0 belongs to bank 0, and embedding 1 does not belong to bank 2.
/// let pairs = EmbeddingPairs::pairs(&positions(&[0]), &positions(&[0]), &positions(&[1]), &positions(&[2]));
/// let loss = ContrastiveLoss::new()
///     .neg_margin(6.0)
///     .distance(EmbeddingDistance::lp().normalize_embeddings(false))
///     .reduction(EmbeddingReduction::Sum)
///     .f_forward_pairs(&embeddings, &pairs, Some(&bank))?;
/// loss.f_backward()?;
/// assert_eq!(f64::try_from(&loss)?, 1.0 + 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[doc(alias = "indices_tuple")]
pub struct EmbeddingPairs {
    tuple: Tuple,
}

#[derive(Debug)]
enum Tuple {
    /// Anchors and their positives, anchors and their negatives.
    Pairs([Tensor; 4]),
    /// Anchors, positives and negatives.
    Triplets([Tensor; 3]),
}

const OF_PAIRS: [&str; 4] = ["anchors", "positives", "anchors of negatives", "negatives"];
const OF_TRIPLETS: [&str; 3] = ["anchors", "positives", "negatives"];

impl EmbeddingPairs {
    /// Pairs (`anchors`, `positives`) that belong together, and pairs (`negative_anchors`, `negatives`) that do not.
    pub fn pairs(anchors: &Tensor, positives: &Tensor, negative_anchors: &Tensor, negatives: &Tensor) -> Self {
        Self { tuple: Tuple::Pairs([anchors, positives, negative_anchors, negatives].map(Tensor::shallow_clone)) }
    }

    /// Triplets of an anchor, of what belongs to it and of what does not.
    pub fn triplets(anchors: &Tensor, positives: &Tensor, negatives: &Tensor) -> Self {
        Self { tuple: Tuple::Triplets([anchors, positives, negatives].map(Tensor::shallow_clone)) }
    }

    /// The positions of `embeddings` and of what they are compared with, of which there are so many.
    pub(super) fn f_indices(&self, embeddings: Named, [rows, columns]: [i64; 2]) -> Result<Indices, LossError> {
        let f_positions = |named: Named, count| f_positions(named, embeddings, count);
        Ok(match &self.tuple {
            Tuple::Pairs([a, p, b, n]) => {
                same_length((OF_PAIRS[1], p), (OF_PAIRS[0], a))?;
                same_length((OF_PAIRS[3], n), (OF_PAIRS[2], b))?;
                let positives = [f_positions((OF_PAIRS[0], a), rows)?, f_positions((OF_PAIRS[1], p), columns)?];
                let negatives = [f_positions((OF_PAIRS[2], b), rows)?, f_positions((OF_PAIRS[3], n), columns)?];
                Indices { positives, negatives, are_triplets: false }
            }
            Tuple::Triplets([a, p, n]) => {
                same_length((OF_TRIPLETS[1], p), (OF_TRIPLETS[0], a))?;
                same_length((OF_TRIPLETS[2], n), (OF_TRIPLETS[0], a))?;
                let anchors = f_positions((OF_TRIPLETS[0], a), rows)?;
                let positives = [anchors.shallow_clone(), f_positions((OF_TRIPLETS[1], p), columns)?];
                let negatives = [anchors, f_positions((OF_TRIPLETS[2], n), columns)?];
                Indices { positives, negatives, are_triplets: true }
            }
        })
    }

    /// The weights of the `embeddings`, `[N]` of this kind: how often each is `named`, divided by the largest of these
    /// numbers. None where no embedding is named.
    pub(super) fn f_weights(
        &self,
        embeddings: Named,
        named: CountedAs,
        kind: Kind,
    ) -> Result<Option<Tensor>, LossError> {
        let rows = embeddings.1.size().first().copied().unwrap_or(0);
        let Indices { positives: [a, p], negatives: [b, n], are_triplets } = self.f_indices(embeddings, [rows; 2])?;
        let all = match (named, are_triplets) {
            (CountedAs::Anchors, true) => vec![&a],
            (CountedAs::Anchors, false) => vec![&a, &b],
            (CountedAs::Any, true) => vec![&a, &p, &n],
            (CountedAs::Any, false) => vec![&a, &p, &b, &n],
        };
        let all = Tensor::f_cat(&all, 0)?;
        if all.numel() == 0 {
            return Ok(None);
        }
        let counts = f_counts(&all, rows, kind)?;
        Ok(Some(counts.f_div(&counts.f_max()?)?))
    }
}

/// As what an embedding is named, where it is counted how often it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum CountedAs {
    Any,
    /// As an anchor alone.
    Anchors,
}

impl Clone for EmbeddingPairs {
    /// The clone shares the tensors.
    fn clone(&self) -> Self {
        let tuple = match &self.tuple {
            Tuple::Pairs(pairs) => Tuple::Pairs(pairs.each_ref().map(Tensor::shallow_clone)),
            Tuple::Triplets(triplets) => Tuple::Triplets(triplets.each_ref().map(Tensor::shallow_clone)),
        };
        Self { tuple }
    }
}

/// Positions as 64-bit integers, in range.
pub(crate) struct Indices {
    /// Anchors, and what belongs to them.
    pub(super) positives: [Tensor; 2],
    /// Anchors, and what does not.
    pub(super) negatives: [Tensor; 2],
    /// Whether positives and negatives were named together, as triplets.
    are_triplets: bool,
}

impl Indices {
    /// Anchors, positives and negatives: as they are named, or all pairs of one anchor with each other.
    pub(super) fn f_triplets(self) -> Result<[Tensor; 3], LossError> {
        let ([a, p], [b, n]) = (self.positives, self.negatives);
        if self.are_triplets {
            return Ok([a, p, n]);
        }
        let together = a.f_unsqueeze(1)?.f_eq_tensor(&b.f_unsqueeze(0)?)?.f_nonzero()?;
        let [first, last] = [together.f_select(1, 0)?, together.f_select(1, 1)?];
        Ok([a.f_index_select(0, &first)?, p.f_index_select(0, &first)?, n.f_index_select(0, &last)?])
    }

    /// The places of the pairs in a matrix of this size.
    pub(super) fn f_listed(&self, size: [i64; 2]) -> Result<Listed, LossError> {
        let places = |[rows, columns]: &[Tensor; 2]| rows.f_mul_number(size[1])?.f_add(columns);
        Ok(Listed { size, positives: places(&self.positives)?, negatives: places(&self.negatives)? })
    }
}

/// Pairs as places in a matrix, row by row.
pub(crate) struct Listed {
    /// The size of the matrix.
    size: [i64; 2],
    pub(super) positives: Tensor,
    pub(super) negatives: Tensor,
}

impl Listed {
    pub(super) fn shallow_clone(&self) -> Self {
        let [positives, negatives] = [&self.positives, &self.negatives].map(Tensor::shallow_clone);
        Self { positives, negatives, ..*self }
    }

    fn device(&self) -> Device {
        self.positives.device()
    }

    /// `[N, M]`: which elements are there.
    pub(super) fn f_mask(&self, places: &Tensor) -> Result<Tensor, LossError> {
        let nowhere = Tensor::f_zeros([self.size[0] * self.size[1]], (Kind::Bool, self.device()))?;
        Ok(nowhere.f_index_fill_number(0, places, 1)?.f_view(self.size)?)
    }

    /// `[N, M]`: how often elements are named.
    pub(super) fn f_counts(&self, places: &Tensor, kind: Kind) -> Result<Tensor, LossError> {
        Ok(f_counts(places, self.size[0] * self.size[1], kind)?.f_view(self.size)?)
    }

    /// Reduces the losses `[N, M]` at these places.
    pub(super) fn f_reduce(
        &self,
        places: &Tensor,
        losses: &Tensor,
        reduction: EmbeddingReduction,
    ) -> Result<Tensor, LossError> {
        match reduction {
            EmbeddingReduction::PerAnchor(_) => reduction.f_apply_to_pairs(losses, &self.f_mask(places)?),
            _ => reduction.f_apply(&losses.f_flatten(0, -1)?.f_index_select(0, places)?, None),
        }
    }

    /// No pair is named as a positive and as a negative one.
    pub(super) fn f_check_disjoint(&self) -> Result<(), LossError> {
        let both = self.f_mask(&self.positives)?.f_logical_and(&self.f_mask(&self.negatives)?)?.f_nonzero()?;
        if both.numel() == 0 {
            return Ok(());
        }
        let [anchor, other] = [0, 1].map(|column| both.f_int64_value(&[0, column]));
        let actual = format!("{} for anchor {}, one of its positives", other?, anchor?);
        Err(LossError::Value { argument: "negatives", expected: "others than the positives".into(), actual })
    }
}

/// How often each position below `count` is named.
fn f_counts(positions: &Tensor, count: i64, kind: Kind) -> Result<Tensor, LossError> {
    let ones = positions.f_ones_like()?.f_to_kind(kind)?;
    Ok(Tensor::f_zeros([count], (kind, positions.device()))?.f_index_add(0, positions, &ones)?)
}

fn same_length(positions: Named, anchors: Named) -> Result<(), LossError> {
    check::dense(positions)?;
    check::dense(anchors)?;
    check::same_shape(positions, anchors)
}

/// Positions `[P]` of any integer kind as 64-bit integers in `[0, count)`.
fn f_positions(named: Named, embeddings: Named, count: i64) -> Result<Tensor, LossError> {
    check::devices(&[embeddings, named])?;
    let (argument, positions) = named;
    // An empty list may be of any kind: in Python it becomes a tensor of floats.
    if positions.size() == [0] {
        return Ok(Tensor::f_zeros([0], (Kind::Int64, positions.device()))?);
    }
    check::shape(named, positions.dim() == 1, "[P], a position for each pair")?;
    let positions = check::integers(named)?;
    let outside = positions.f_lt_number(0)?.f_logical_or(&positions.f_ge_number(count)?)?.f_nonzero()?;
    if outside.numel() == 0 {
        return Ok(positions);
    }
    let actual = positions.f_int64_value(&[outside.f_int64_value(&[0, 0])?])?.to_string();
    Err(LossError::Value { argument, expected: format!("positions in [0, {count})"), actual })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::randn;
    use crate::{ContrastiveLoss, EmbeddingLoss, SupConLoss};

    fn positions(of: &[i64]) -> Tensor {
        Tensor::from_slice(of)
    }

    #[test]
    fn wrong_pairs_are_named() {
        let x = randn([4, 3]);
        let [one, two] = [positions(&[0]), positions(&[0, 1])];
        let message = |pairs: EmbeddingPairs, reference: Option<&Tensor>| {
            SupConLoss::new().f_forward_pairs(&x, &pairs, reference).unwrap_err().to_string()
        };
        let pairs = EmbeddingPairs::pairs;
        for (pairs, expected) in [
            (pairs(&one, &two, &one, &one), "positives has shape [2], expected [1], the shape of anchors"),
            (pairs(&one, &one, &two, &one), "negatives has shape [1], expected [2], the shape of anchors of negatives"),
            (pairs(&one, &positions(&[4]), &one, &one), "positives holds 4, expected positions in [0, 4)"),
            (pairs(&one, &one, &positions(&[-1]), &one), "anchors of negatives holds -1, expected positions in [0, 4)"),
            (
                pairs(&one.view([1, 1]), &one.view([1, 1]), &one, &one),
                "anchors has shape [1, 1], expected [P], a position for each pair",
            ),
            (pairs(&one, &one.to_kind(Kind::Float), &one, &one), "positives has kind Float, expected an integer kind"),
            (
                pairs(&one, &one, &one, &one),
                "negatives holds 0 for anchor 0, one of its positives, expected others than the positives",
            ),
            (EmbeddingPairs::triplets(&two, &two, &one), "negatives has shape [1], expected [2], the shape of anchors"),
        ] {
            assert_eq!(message(pairs, None), expected);
        }
        let far = pairs(&one, &positions(&[5]), &one, &one);
        assert_eq!(message(far, Some(&randn([5, 3]))), "positives holds 5, expected positions in [0, 5)");
        let other = randn([5, 2]);
        let expected = "ref_emb has shape [5, 2], expected [M, 3], the dimension of embeddings";
        assert_eq!(message(pairs(&one, &one, &one, &two), Some(&other)), expected);
    }

    #[test]
    fn positions_of_any_integer_kind_and_none_at_all_are_taken() {
        let (x, positives) = (randn([4, 3]), [positions(&[0, 2]), positions(&[1, 3])]);
        let loss = |kind| {
            let [a, p] = positives.each_ref().map(|positions| positions.to_kind(kind));
            let pairs = EmbeddingPairs::pairs(&a, &p, &p, &a);
            ContrastiveLoss::new().forward_pairs(&x, &pairs, None).double_value(&[])
        };
        for kind in [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int] {
            assert_eq!(loss(kind), loss(Kind::Int64), "{kind:?}");
        }
        let none = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        let leaf = x.copy().set_requires_grad(true);
        let loss = ContrastiveLoss::new().forward_pairs(&leaf, &EmbeddingPairs::triplets(&none, &none, &none), None);
        loss.backward();
        assert_eq!((loss.double_value(&[]), leaf.grad().abs().max().double_value(&[])), (0.0, 0.0));
    }
}
