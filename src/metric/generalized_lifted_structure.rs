use tch::Tensor;

use super::batch::{Batch, Pairs, f_log_sum_exp, loss_of_batch, loss_of_pairs};
use super::{EmbeddingDistance, EmbeddingLoss, EmbeddingReduction};
use crate::kernels::{
    NumberOperations, OTHER, PairSlopes, PairSums, PairTerms, Real, SAME, Soft, SoftPairs, choose, scaled,
};
use crate::{Loss, LossError, check};

crate::options::options! {
/// The generalised lifted structure loss: all positives of an embedding against all of its negatives.
///
/// Where [`LiftedStructureLoss`](crate::LiftedStructureLoss) has a loss for each pair of one label, this has one for
/// each embedding, whose positives are summed up as its negatives are: a smooth
/// [`BatchTripletMarginLoss`](crate::BatchTripletMarginLoss) of hardest triplets.
///
/// # Formula
///
/// ℓₐ = max(0, log Σ_{p ∈ P(a)} exp(d(a, p) − m₊) + log Σ_{n ∈ N(a)} exp(m₋ − d(a, n)))
///
/// where P(a) are the other embeddings of a's label and N(a) those of other labels, d is the distance (or a
/// similarity with the other sign, and so the margins), m₊ and m₋ are the margins. The logarithm of a sum over
/// nothing is taken as 0.
///
#[doc = include_str!("../../docs/book/src/gallery/generalized_lifted_structure.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`
/// * `target`: `[N]`, labels of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses `[N]` of the embeddings
///
/// # Reference
///
/// `pytorch_metric_learning.losses.GeneralizedLiftedStructureLoss` 2.9.0; Hermans et al.,
/// <https://arxiv.org/abs/1703.07737>, equation 8.
///
/// # Differences from pytorch-metric-learning
///
/// * Those of [`EmbeddingDistance`].
/// * A single pair with a single other pair, as of one embedding and two references, has its loss; there it is 0.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a distance out of range or a margin that is NaN.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{EmbeddingDistance, GeneralizedLiftedStructureLoss, Loss};
///
/// let embeddings = Tensor::from_slice(&[0.0, 2.0, 1.0]).view([3, 1]).set_requires_grad(true);
/// let labels = Tensor::from_slice(&[0_i64, 0, 1]);
///
/// // The third has no positive: its two negatives alone have log(2 exp(0)).
/// let distance = EmbeddingDistance::lp().normalize_embeddings(false);
/// let loss = GeneralizedLiftedStructureLoss::new().distance(distance).f_forward(&embeddings, &labels)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (2.0 + 2.0 + 2_f64.ln()) / 3.0).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
pub struct GeneralizedLiftedStructureLoss: "generalized_lifted_structure";

/// The generalised lifted structure loss with the defaults of pytorch-metric-learning.
new {
    /// what is taken from the distance of a pair of one label, or from which its similarity is taken.
    pos_margin: f64 = 0.0,
    /// the distance that embeddings of two labels should have, or the similarity that they should not.
    neg_margin: f64 = 1.0,
    /// the distance.
    distance: EmbeddingDistance = EmbeddingDistance::lp(),
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::Mean,
}
}

impl GeneralizedLiftedStructureLoss {
    fn f_loss(&self, batch: Batch) -> Result<Tensor, LossError> {
        self.f_check_options()?;
        let formula = Formula { sign: self.distance.sign(), margins: [self.pos_margin, self.neg_margin] };
        batch.f_reduced((self.distance, Soft(formula), self.reduction.of_anchors()), *self, Self::f_composite)
    }

    fn f_composite(&self, matrix: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        let sum = |too_much: &Tensor, mask: &Tensor| {
            let none = mask.f_any_dim(1, true)?.f_logical_not()?;
            Ok::<_, LossError>(f_log_sum_exp(too_much, mask)?.f_masked_fill_number(&none, 0)?)
        };
        let positives = sum(&self.distance.f_beyond(matrix, self.pos_margin)?, &pairs.f_positive()?)?;
        let negatives = sum(&self.distance.f_within(matrix, self.neg_margin)?, &pairs.f_negative()?)?;
        self.reduction.of_anchors().f_apply(&positives.f_add(&negatives)?.f_relu()?.f_flatten(0, -1)?, None)
    }
}

/// Of distances, or of similarities with the sign −1.
#[derive(Clone, Copy)]
struct Formula {
    sign: f64,
    margins: [f64; 2],
}

impl PairTerms for Formula {
    #[inline(always)]
    fn same<R: Real>(self, x: R) -> (R, R) {
        scaled(x, self.margins[SAME], self.sign)
    }

    #[inline(always)]
    fn other<R: Real>(self, x: R) -> (R, R) {
        scaled(x, self.margins[OTHER], -self.sign)
    }
}

impl SoftPairs for Formula {
    fn loss<R: Real>(self, sums: &PairSums<R>) -> (R, PairSlopes<R>) {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let part = |k: usize| choose(sums.counts[k].greater(zero), sums.log_sum_exp[k], zero);
        let sum = part(SAME) + part(OTHER);
        let slope = choose(sum.less_equal(zero), zero, one);
        // NaN is not below 0, and so is kept.
        (sum.at_least(zero), PairSlopes::of_log_sum_exp([slope; 2]))
    }
}

impl Loss for GeneralizedLiftedStructureLoss {
    loss_of_batch!(Pair);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::number("pos_margin", self.pos_margin)?;
        check::number("neg_margin", self.neg_margin)?;
        self.distance.check()?;
        self.reduction.bounds().map(drop)
    }
}

impl EmbeddingLoss for GeneralizedLiftedStructureLoss {
    loss_of_pairs!(f_of_rows);
}
