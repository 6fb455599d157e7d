use tch::Tensor;

use super::batch::{Batch, Pairs, f_log_sum_exp, loss_of_batch, loss_of_pairs};
use super::{EmbeddingDistance, EmbeddingLoss, EmbeddingReduction};
use crate::kernels::{
    NumberOperations, OTHER, PairSlopes, PairSums, PairTerms, Real, SAME, Soft, SoftPairs, choose, scaled,
};
use crate::{Loss, LossError, check};

crate::options::options! {
/// The supervised contrastive loss (SupCon): each embedding picks all others of its class out of the batch.
///
/// For classes with many members in a batch, where it trains encoders that beat those of cross entropy in the paper.
/// For two views of each sample choose [`NtXentLoss`](crate::NtXentLoss), whose denominator holds no other positives.
///
/// # Formula
///
/// ℓₐ = −1/|P(a)| Σ_{p ∈ P(a)} log( exp(s(a, p) / τ) / Σ_{i ≠ a} exp(s(a, i) / τ) )
///
/// where P(a) are the other embeddings of a's label, i are all others, s is the similarity (or a distance with the
/// other sign) and τ the temperature. An embedding without a positive has ℓₐ = 0, and so have all embeddings where the
/// batch has only one label.
///
#[doc = include_str!("../../docs/book/src/gallery/sup_con.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`
/// * `target`: `[N]`, labels of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses `[N]` of the embeddings
///
/// # Reference
///
/// `pytorch_metric_learning.losses.SupConLoss` 2.9.0; Khosla et al., <https://arxiv.org/abs/2004.11362>, L_out.
///
/// # Differences from pytorch-metric-learning
///
/// * Those of [`EmbeddingDistance`].
/// * A single pair with a single other pair, as of one embedding and two references, has its loss; there it is 0.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for the temperature or the distance out of range.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, SupConLoss};
///
/// let embeddings = Tensor::from_slice(&[1.0, 0.0, 2.0, 0.0, 0.0, 1.0]).view([3, 2]).set_requires_grad(true);
/// let labels = Tensor::from_slice(&[0_i64, 0, 1]);
///
/// // The two of label 0 have cosine 1 with each other and 0 with the third, which has no positive and does not count.
/// let loss = SupConLoss::new().temperature(1.0).f_forward(&embeddings, &labels)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (1.0 + (-1_f64).exp()).ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "SupervisedContrastiveLoss")]
#[doc(alias = "supervised contrastive")]
#[doc(alias = "supervised_contrastive")]
pub struct SupConLoss: "sup_con";

/// The supervised contrastive loss with the defaults of pytorch-metric-learning.
new {
    /// the temperature > 0 that similarities are divided by: the lower, the more the nearest embeddings count.
    temperature: f64 = 0.1,
    /// the distance.
    distance: EmbeddingDistance = EmbeddingDistance::cosine(),
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::MeanNonZero,
}
}

impl SupConLoss {
    fn f_loss(&self, batch: Batch) -> Result<Tensor, LossError> {
        self.f_check_options()?;
        let formula = Formula { scale: -self.distance.sign() / self.temperature };
        batch.f_reduced((self.distance, Soft(formula), self.reduction.of_anchors()), *self, Self::f_composite)
    }

    fn f_composite(&self, matrix: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        let alike = self.distance.f_alike(matrix)?.f_div_number(self.temperature)?;
        let (positive, negative) = (pairs.f_positive()?, pairs.f_negative()?);
        let others = positive.f_logical_or(&negative)?;
        let log_p = alike.f_sub(&f_log_sum_exp(&alike, &others)?)?.f_zeros_unless(&positive)?;
        let positives =
            positive.f_sum_dim_intlist([1_i64].as_slice(), false, log_p.f_kind()?)?.f_clamp_min_number(1)?;
        let losses = log_p.f_sum_dim_intlist([1_i64].as_slice(), false, None)?.f_neg()?.f_div(&positives)?;
        self.reduction.of_anchors().f_apply(&losses.f_masked_fill_number(&negative.f_any()?.f_logical_not()?, 0)?, None)
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
    const NEEDS_NEGATIVES: bool = true;

    fn loss<R: Real>(self, sums: &PairSums<R>) -> (R, PairSlopes<R>) {
        let (zero, one, positives) = (R::of(0.0), R::of(1.0), sums.counts[SAME]);
        let any = positives.greater(zero);
        let part = |number: R| choose(any, number, zero);
        let parts = sums.log_sum_exp;
        let most = parts[SAME].max(parts[OTHER]);
        let all = most + ((parts[SAME] - most).exp() + (parts[OTHER] - most).exp()).ln();
        let of_parts = PairSlopes::of_log_sum_exp(parts.map(|of| part((of - all).exp())));
        let slopes = PairSlopes { sums: [part(-one / positives), zero], ..of_parts };
        (part(all - sums.sums[SAME] / positives), slopes)
    }
}

impl Loss for SupConLoss {
    loss_of_batch!(Triplet);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::option("temperature", self.temperature, self.temperature > 0.0, "a number > 0")?;
        self.distance.check()?;
        self.reduction.bounds().map(drop)
    }
}

impl EmbeddingLoss for SupConLoss {
    loss_of_pairs!(f_of_rows);
}
