use tch::Tensor;

use super::batch::{Batch, Pairs, f_log_sum_exp, f_softplus, loss_of_batch, loss_of_pairs, softplus};
use super::{EmbeddingDistance, EmbeddingLoss, EmbeddingReduction};
use crate::kernels::{NumberOperations, OTHER, PairSlopes, PairSums, PairTerms, Real, SAME, Soft, SoftPairs};
use crate::{Loss, LossError, check};

crate::options::options! {
/// The circle loss: a pair counts more the farther its cosine is from where it should be.
///
/// A triplet loss has the same slope for both of its pairs, even where one of them is good enough already; this one has
/// the larger slope for the pair that is farther from its goal. With margin 0.25 and γ = 256 for faces, 0.25 and 128
/// for persons, 0.4 and 80 for fine-grained images, as the paper has it.
///
/// # Formula
///
/// ℓₐ = log(1 + Σ_{p ∈ P(a)} exp(−γ αₚ (s(a, p) − (1 − m))) · Σ_{n ∈ N(a)} exp(γ αₙ (s(a, n) − m)))
///
/// αₚ = max(0, 1 + m − s(a, p)) and αₙ = max(0, s(a, n) + m)
///
/// where P(a) are the other embeddings of a's label and N(a) those of other labels, s is the cosine, m the margin,
/// and the weights α are constants for the gradient. An embedding without a positive or without negatives has ℓₐ = 0.
///
#[doc = include_str!("../../docs/book/src/gallery/circle.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`
/// * `target`: `[N]`, labels of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses `[N]` of the embeddings
///
/// # Reference
///
/// `pytorch_metric_learning.losses.CircleLoss` 2.9.0; Sun et al., <https://arxiv.org/abs/2002.10857>.
///
/// # Differences from pytorch-metric-learning
///
/// * Those of [`EmbeddingDistance`].
/// * A single pair with a single other pair, as of one embedding and two references, has its loss; there it is 0.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for γ or the margin out of range.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{CircleLoss, Loss};
///
/// let embeddings = Tensor::from_slice(&[1.0, 0.0, 2.0, 0.0, 0.0, 1.0]).view([3, 2]).set_requires_grad(true);
/// let labels = Tensor::from_slice(&[0_i64, 0, 1]);
///
/// // The cosine of the pair is 1 and its weight m; that of the other pairs is 0 and their weight m, too.
/// let loss = CircleLoss::new().margin(0.25).gamma(8.0).f_forward(&embeddings, &labels)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (1.0 + (-2.0 * 8.0 * 0.25 * 0.25_f64).exp()).ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
pub struct CircleLoss: "circle";

/// The circle loss with the defaults of pytorch-metric-learning.
new {
    /// the margin m: pairs of one label should have a cosine above 1 − m, and others one below m.
    margin: f64 = 0.4,
    /// the scale γ > 0 of the cosines.
    gamma: f64 = 80.0,
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::MeanNonZero,
}
}

impl CircleLoss {
    fn f_loss(&self, batch: Batch) -> Result<Tensor, LossError> {
        let (m, gamma) = (self.margin, self.gamma);
        self.f_check_options()?;
        let formula = Formula { margin: m, gamma };
        batch.f_reduced(
            (EmbeddingDistance::cosine(), Soft(formula), self.reduction.of_anchors()),
            *self,
            Self::f_composite,
        )
    }

    fn f_composite(&self, cosine: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        let (m, gamma) = (self.margin, self.gamma);
        let constant = cosine.f_detach()?;
        let lag = constant.f_rsub_number(1.0 + m)?.f_relu()?;
        let lead = constant.f_add_number(m)?.f_relu()?;
        let positives = cosine.f_sub_number(1.0 - m)?.f_mul(&lag)?.f_mul_number(-gamma)?;
        let negatives = cosine.f_sub_number(m)?.f_mul(&lead)?.f_mul_number(gamma)?;
        let positives = f_log_sum_exp(&positives, &pairs.f_positive()?)?;
        let negatives = f_log_sum_exp(&negatives, &pairs.f_negative()?)?;
        self.reduction.of_anchors().f_apply(&f_softplus(&positives.f_add(&negatives)?)?.f_flatten(0, -1)?, None)
    }
}

#[derive(Clone, Copy)]
struct Formula {
    margin: f64,
    gamma: f64,
}

impl PairTerms for Formula {
    #[inline(always)]
    fn same<R: Real>(self, cosine: R) -> (R, R) {
        let lag = (R::of(1.0 + self.margin) - cosine).at_least(R::of(0.0));
        let slope = lag * R::of(-self.gamma);
        ((cosine - R::of(1.0 - self.margin)) * slope, slope)
    }

    #[inline(always)]
    fn other<R: Real>(self, cosine: R) -> (R, R) {
        let lead = (cosine + R::of(self.margin)).at_least(R::of(0.0));
        let slope = lead * R::of(self.gamma);
        ((cosine - R::of(self.margin)) * slope, slope)
    }
}

impl SoftPairs for Formula {
    fn loss<R: Real>(self, sums: &PairSums<R>) -> (R, PairSlopes<R>) {
        let (loss, slope) = softplus(sums.log_sum_exp[SAME] + sums.log_sum_exp[OTHER]);
        (loss, PairSlopes::of_log_sum_exp([slope; 2]))
    }
}

impl Loss for CircleLoss {
    loss_of_batch!(Triplet);

    fn f_check_options(&self) -> Result<(), LossError> {
        let (m, gamma) = (self.margin, self.gamma);
        check::finite("margin", m)?;
        check::option("gamma", gamma, gamma > 0.0 && gamma.is_finite(), "a finite number > 0")?;
        self.reduction.bounds().map(drop)
    }
}

impl EmbeddingLoss for CircleLoss {
    loss_of_pairs!(f_of_rows);
}
