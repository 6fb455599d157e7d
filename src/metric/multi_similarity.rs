use std::array::from_fn;

use tch::Tensor;

use super::batch::{Batch, Pairs, f_log_sum_exp, f_softplus, loss_of_batch, loss_of_pairs, softplus};
use super::{EmbeddingDistance, EmbeddingLoss, EmbeddingReduction};
use crate::kernels::{NumberOperations, OTHER, PairSlopes, PairSums, PairTerms, Real, SAME, Soft, SoftPairs, scaled};
use crate::{Loss, LossError, check};

crate::options::options! {
/// The multi-similarity loss: a soft maximum over the positives of an embedding that are too far, and over the
/// negatives that are too near.
///
/// Each pair counts by its own similarity and by how it compares with the other pairs of the same anchor, so that no
/// mining is needed, although the paper uses it in addition. A strong default for image retrieval.
///
/// # Formula
///
/// ℓₐ = 1/α log(1 + Σ_{p ∈ P(a)} exp(−α (s(a, p) − λ))) + 1/β log(1 + Σ_{n ∈ N(a)} exp(β (s(a, n) − λ)))
///
/// where P(a) are the other embeddings of a's label and N(a) those of other labels, s is the similarity (or a distance
/// with the other sign, and so λ), λ is the base.
///
#[doc = include_str!("../../docs/book/src/gallery/multi_similarity.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`
/// * `target`: `[N]`, labels of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses `[N]` of the embeddings
///
/// # Reference
///
/// `pytorch_metric_learning.losses.MultiSimilarityLoss` 2.9.0; Wang et al., <https://arxiv.org/abs/1904.06627>.
///
/// # Differences from pytorch-metric-learning
///
/// * Those of [`EmbeddingDistance`].
/// * A single pair with a single other pair, as of one embedding and two references, has its loss; there it is 0.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for α, β or the distance out of range, or a base that is NaN.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, MultiSimilarityLoss};
///
/// let embeddings = Tensor::from_slice(&[1.0, 0.0, 2.0, 0.0]).view([2, 2]).set_requires_grad(true);
/// let labels = Tensor::from_slice(&[0_i64, 0]);
///
/// // Both have a positive of cosine 1, and no negatives.
/// let loss = MultiSimilarityLoss::new().f_forward(&embeddings, &labels)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (1.0 + (-2.0 * 0.5_f64).exp()).ln() / 2.0).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
pub struct MultiSimilarityLoss: "multi_similarity";

/// The multi-similarity loss with the defaults of pytorch-metric-learning.
new {
    /// how sharply the positives that are farthest stand out, α > 0.
    alpha: f64 = 2.0,
    /// how sharply the negatives that are nearest stand out, β > 0.
    beta: f64 = 50.0,
    /// the similarity, or distance, that positives should exceed and negatives should not.
    base: f64 = 0.5,
    /// the distance.
    distance: EmbeddingDistance = EmbeddingDistance::cosine(),
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::Mean,
}
}

impl MultiSimilarityLoss {
    fn f_loss(&self, batch: Batch) -> Result<Tensor, LossError> {
        self.f_check_options()?;
        let sign = self.distance.sign();
        let formula = Formula { base: self.base, scales: [sign * self.alpha, -sign * self.beta] };
        batch.f_reduced((self.distance, Soft(formula), self.reduction.of_anchors()), *self, Self::f_composite)
    }

    fn f_composite(&self, matrix: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        let too_far = self.distance.f_beyond(matrix, self.base)?;
        let soft_maximum = |scale: f64, sharpness: f64, mask: &Tensor| {
            let sum = f_log_sum_exp(&too_far.f_mul_number(scale)?, mask)?;
            Ok::<_, LossError>(f_softplus(&sum)?.f_div_number(sharpness)?)
        };
        let positives = soft_maximum(self.alpha, self.alpha, &pairs.f_positive()?)?;
        let negatives = soft_maximum(-self.beta, self.beta, &pairs.f_negative()?)?;
        self.reduction.of_anchors().f_apply(&positives.f_add(&negatives)?.f_flatten(0, -1)?, None)
    }
}

#[derive(Clone, Copy)]
struct Formula {
    base: f64,
    scales: [f64; 2],
}

impl PairTerms for Formula {
    #[inline(always)]
    fn same<R: Real>(self, x: R) -> (R, R) {
        scaled(x, self.base, self.scales[SAME])
    }

    #[inline(always)]
    fn other<R: Real>(self, x: R) -> (R, R) {
        scaled(x, self.base, self.scales[OTHER])
    }
}

impl SoftPairs for Formula {
    fn loss<R: Real>(self, sums: &PairSums<R>) -> (R, PairSlopes<R>) {
        let parts = sums.log_sum_exp.map(softplus);
        let over = |k: usize, number: R| number / R::of(self.scales[k].abs());
        let slopes = from_fn(|k| over(k, parts[k].1));
        (over(SAME, parts[SAME].0) + over(OTHER, parts[OTHER].0), PairSlopes::of_log_sum_exp(slopes))
    }
}

impl Loss for MultiSimilarityLoss {
    loss_of_batch!(Pair);

    fn f_check_options(&self) -> Result<(), LossError> {
        let finite = |x: f64| x > 0.0 && x.is_finite();
        check::option("alpha", self.alpha, finite(self.alpha), "a finite number > 0")?;
        check::option("beta", self.beta, finite(self.beta), "a finite number > 0")?;
        check::number("base", self.base)?;
        self.distance.check()?;
        self.reduction.bounds().map(drop)
    }
}

impl EmbeddingLoss for MultiSimilarityLoss {
    loss_of_pairs!(f_of_rows);
}
