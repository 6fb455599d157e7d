use tch::Tensor;

use super::batch::{Batch, Pairs, f_softplus, loss_of_batch, loss_of_pairs, softplus};
use super::{EmbeddingDistance, EmbeddingLoss, EmbeddingReduction};
use crate::kernels::{Each, NumberOperations, Positives, Real, scaled};
use crate::{Loss, LossError, check};

crate::options::options! {
/// The NT-Xent loss (normalised temperature-scaled cross entropy, InfoNCE): each embedding picks its positive out of
/// all negatives.
///
/// The loss of SimCLR and MoCo: for embeddings of two views of each sample, where the label is the number of the
/// sample. The negatives come from the batch, so that large batches help, or from references
/// ([`EmbeddingLoss::f_forward_with`]). Where labels are classes with many members, [`SupConLoss`](crate::SupConLoss)
/// weighs them better.
///
/// # Formula
///
/// ℓ(a, p) = −log( exp(s(a, p) / τ) / (exp(s(a, p) / τ) + Σₙ exp(s(a, n) / τ)) )
///
/// for each ordered pair (a, p) of one label, where n are the embeddings of other labels than a's, s is the similarity
/// (or a distance with the other sign) and τ the temperature. It is computed as the softplus of the difference
/// log Σₙ exp(s(a, n) / τ) − s(a, p) / τ.
///
#[doc = include_str!("../../docs/book/src/gallery/nt_xent.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`
/// * `target`: `[N]`, labels of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses of the pairs of one label, row by row
///
/// # Reference
///
/// `pytorch_metric_learning.losses.NTXentLoss` 2.9.0; van den Oord et al., <https://arxiv.org/abs/1807.03748>, Chen et
/// al., SimCLR, <https://arxiv.org/abs/2002.05709>.
///
/// # Differences from pytorch-metric-learning
///
/// * Those of [`EmbeddingDistance`].
/// * A pair whose probability underflows has its exact loss and gradient; there the logarithm is bounded by that of the
///   smallest number.
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
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{Loss, NtXentLoss};
///
/// // Two views of each of three samples.
/// let views = Tensor::eye(3, (Kind::Double, Device::Cpu)).repeat([2, 1]).set_requires_grad(true);
/// let labels = Tensor::arange(3, (Kind::Int64, Device::Cpu)).repeat([2]);
///
/// // The positive has cosine 1, and each of the four negatives 0.
/// let loss = NtXentLoss::new().temperature(1.0).f_forward(&views, &labels)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (1.0 + 4.0 * (-1_f64).exp()).ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "NTXentLoss")]
#[doc(alias = "InfoNCE")]
#[doc(alias = "SimCLR")]
#[doc(alias = "info_nce")]
#[doc(alias = "nce")]
pub struct NtXentLoss: "nt_xent" | "info_nce";

/// NT-Xent with the defaults of pytorch-metric-learning.
new {
    /// the temperature > 0 that similarities are divided by: the lower, the more the nearest negatives count.
    temperature: f64 = 0.07,
    /// the distance.
    distance: EmbeddingDistance = EmbeddingDistance::cosine(),
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::Mean,
}
}

impl NtXentLoss {
    fn f_loss(&self, batch: Batch) -> Result<Tensor, LossError> {
        self.f_check_options()?;
        let scale = -self.distance.sign() / self.temperature;
        batch.f_reduced((self.distance, Each(Formula { scale }), self.reduction), *self, Self::f_composite)
    }

    fn f_composite(&self, matrix: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        let alike = self.distance.f_alike(matrix)?.f_div_number(self.temperature)?;
        let [negatives, _] = pairs.f_log_sum_exp_of_negatives(&alike)?;
        let losses = f_softplus(&negatives.f_sub(&alike)?)?;
        pairs.f_reduce_positives(&losses, None, self.reduction)
    }
}

#[derive(Clone, Copy)]
struct Formula {
    /// Makes logits of similarities, or of distances.
    scale: f64,
}

impl Positives for Formula {
    const BOTH: bool = false;

    #[inline(always)]
    fn negative<R: Real>(self, x: R) -> (R, R) {
        scaled(x, 0.0, self.scale)
    }

    fn loss<R: Real>(self, x: R, [negatives, _]: [R; 2]) -> (R, [R; 3]) {
        let scale = R::of(self.scale);
        let (loss, slope) = softplus(negatives - scale * x);
        (loss, [-scale * slope, slope, R::of(0.0)])
    }
}

impl Loss for NtXentLoss {
    loss_of_batch!(Triplet);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::option("temperature", self.temperature, self.temperature > 0.0, "a number > 0")?;
        self.distance.check()?;
        self.reduction.bounds().map(drop)
    }
}

impl EmbeddingLoss for NtXentLoss {
    loss_of_pairs!(f_of_pairs);
}
