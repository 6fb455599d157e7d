use tch::Tensor;

use super::batch::{Batch, Pairs, f_log_sum_exp, f_softplus, loss_of_batch, loss_of_pairs, softplus};
use super::{EmbeddingDistance, EmbeddingLoss, EmbeddingReduction};
use crate::kernels::{NumberOperations, OTHER, PairSlopes, PairSums, PairTerms, Real, SAME, Soft, SoftPairs, scaled};
use crate::{Loss, LossError, check};

crate::options::options! {
/// The loss of neighbourhood components analysis (NCA): the negative log-probability that each embedding picks a
/// neighbour of its own label.
///
/// For classification by nearest neighbours: it is a smooth form of the leave-one-out error. An embedding needs one
/// near neighbour of its label, not all of them, so that a class may have several clusters. To bring all embeddings of
/// a class together choose [`SupConLoss`](crate::SupConLoss).
///
/// # Formula
///
/// ℓₐ = −log( Σ_{p ∈ P(a)} exp(−τ d(a, p)) / Σ_{i ≠ a} exp(−τ d(a, i)) )
///
/// where P(a) are the other embeddings of a's label, i are all others, d is the distance, squared by default, or a
/// similarity with the other sign, and τ the scale. An embedding without a positive has no loss and does not count in
/// the mean.
///
#[doc = include_str!("../../docs/book/src/gallery/nca.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`
/// * `target`: `[N]`, labels of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses of the embeddings that have a positive
///
/// # Reference
///
/// `pytorch_metric_learning.losses.NCALoss` 2.9.0; Goldberger et al., Neighbourhood Components Analysis, NIPS 2004,
/// with the negative mean of log pₐ in place of the sum.
///
/// # Differences from pytorch-metric-learning
///
/// * Those of [`EmbeddingDistance`].
/// * An embedding whose positives are so far away that their probability is rounded to 0 has a loss; there it does not
///   count.
/// * The loss of a batch without two embeddings of one label is 0; there it is NaN.
/// * A single embedding with references has a loss; there it is 0.
/// * [`f_forward_pairs`](EmbeddingLoss::f_forward_pairs) is over the given pairs; there these are only weights of the
///   anchors.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for the scale or the distance out of range.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{EmbeddingDistance, Loss, NcaLoss};
///
/// let embeddings = Tensor::from_slice(&[0.0, 1.0, 3.0]).view([3, 1]).set_requires_grad(true);
/// let labels = Tensor::from_slice(&[0_i64, 0, 1]);
///
/// // Squared distances: 1 within label 0, and 9 and 4 from there to the third, which has no positive and does not
/// // count.
/// let distance = EmbeddingDistance::lp().normalize_embeddings(false).power(2.0);
/// let loss = NcaLoss::new().distance(distance).f_forward(&embeddings, &labels)?;
/// loss.f_backward()?;
/// let expected = ((-8_f64).exp().ln_1p() + (-3_f64).exp().ln_1p()) / 2.0;
/// assert!((f64::try_from(&loss)? - expected).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "NCALoss")]
#[doc(alias = "neighbourhood components analysis")]
#[doc(alias = "soft nearest neighbor")]
pub struct NcaLoss: "nca";

/// The loss of neighbourhood components analysis with the defaults of pytorch-metric-learning.
new {
    /// the factor τ > 0 of the distances: the higher it is, the more the loss depends on the nearest embeddings alone.
    softmax_scale: f64 = 1.0,
    /// the distance.
    distance: EmbeddingDistance = EmbeddingDistance::lp().power(2.0),
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::Mean,
}
}

impl NcaLoss {
    fn f_loss(&self, batch: Batch) -> Result<Tensor, LossError> {
        self.f_check_options()?;
        let formula = Formula { scale: -self.distance.sign() * self.softmax_scale };
        batch.f_reduced((self.distance, Soft(formula), self.reduction.of_anchors()), *self, Self::f_composite)
    }

    fn f_composite(&self, matrix: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        let alike = self.distance.f_alike(matrix)?.f_mul_number(self.softmax_scale)?;
        let (positive, negative) = (pairs.f_positive()?, pairs.f_negative()?);
        // log(1 + q) of the quotient of negatives and positives keeps the digits of small losses.
        let quotient = f_log_sum_exp(&alike, &negative)?.f_sub(&f_log_sum_exp(&alike, &positive)?)?;
        let losses = f_softplus(&quotient)?.f_flatten(0, -1)?;
        self.reduction.of_anchors().f_apply(&losses, Some(&positive.f_any_dim(1, false)?))
    }
}

#[derive(Clone, Copy)]
struct Formula {
    scale: f64,
}

impl PairTerms for Formula {
    #[inline(always)]
    fn same<R: Real>(self, x: R) -> (R, R) {
        scaled(x, 0.0, self.scale)
    }

    #[inline(always)]
    fn other<R: Real>(self, x: R) -> (R, R) {
        self.same(x)
    }
}

impl SoftPairs for Formula {
    fn loss<R: Real>(self, sums: &PairSums<R>) -> (R, PairSlopes<R>) {
        let parts = sums.log_sum_exp;
        let (loss, share) = softplus(parts[OTHER] - parts[SAME]);
        (loss, PairSlopes::of_log_sum_exp([-share, share]))
    }

    fn exists<R: Real>(self, sums: &PairSums<R>) -> R::Mask {
        sums.counts[SAME].greater(R::of(0.0))
    }
}

impl Loss for NcaLoss {
    loss_of_batch!(Positive);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::positive("softmax_scale", self.softmax_scale)?;
        self.distance.check()?;
        self.reduction.bounds().map(drop)
    }
}

impl EmbeddingLoss for NcaLoss {
    loss_of_pairs!(f_of_rows);
}
