use tch::Tensor;

use super::batch::{Batch, Pairs, loss_of_batch, loss_of_pairs};
use super::{AnchorReduction, EmbeddingDistance, EmbeddingLoss, EmbeddingReduction};
use crate::kernels::{Hard, OTHER, PairTerms, Real, SAME, choose};
use crate::{Loss, LossError, check};

crate::options::options! {
/// The contrastive loss: pulls embeddings of one label together, and pushes others apart up to a margin.
///
/// The oldest loss of pairs, and the one whose margins are easiest to read: they are the distances that embeddings
/// should have. Each pair is judged by itself; where the order of distances counts, and not their size, choose
/// [`BatchTripletMarginLoss`](crate::BatchTripletMarginLoss), and for large batches
/// [`NtXentLoss`](crate::NtXentLoss).
///
/// # Formula
///
/// L = R(max(0, d(a, b) − m₊) over pairs of one label) + R(max(0, m₋ − d(a, b)) over the other pairs)
///
/// where d is the distance, m₊ and m₋ are the margins and R is the reduction. With a similarity s the losses are
/// max(0, m₊ − s(a, b)) and max(0, s(a, b) − m₋).
///
#[doc = include_str!("../../docs/book/src/gallery/contrastive.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`
/// * `target`: `[N]`, labels of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses of the pairs of one label, row by row, and then
///   those of the others
///
/// # Reference
///
/// `pytorch_metric_learning.losses.ContrastiveLoss` 2.9.0; Hadsell et al., Dimensionality Reduction by Learning an
/// Invariant Mapping, 2006, whose loss has squares of these terms.
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
/// use tch_losses::{ContrastiveLoss, EmbeddingDistance, Loss};
///
/// let embeddings = Tensor::from_slice(&[0.0, 0.0, 3.0, 4.0, 0.0, 0.5]).view([3, 2]).set_requires_grad(true);
/// let labels = Tensor::from_slice(&[0_i64, 0, 1]);
///
/// // The pair of label 0 is 5 apart, and of the others one is nearer than 1: at 0.5.
/// let criterion = ContrastiveLoss::new().distance(EmbeddingDistance::lp().normalize_embeddings(false));
/// let loss = criterion.f_forward(&embeddings, &labels)?;
/// loss.f_backward()?;
/// assert_eq!(f64::try_from(&loss)?, 5.0 + 0.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
pub struct ContrastiveLoss: "contrastive";

/// The contrastive loss with the defaults of pytorch-metric-learning.
new {
    /// the distance up to which a pair of one label has a loss of 0, or the similarity from which on; for a similarity
    /// 1 is usual.
    pos_margin: f64 = 0.0,
    /// the distance from which on a pair of two labels has a loss of 0, or the similarity up to which; for a similarity
    /// 0 is usual.
    neg_margin: f64 = 1.0,
    /// the distance.
    distance: EmbeddingDistance = EmbeddingDistance::lp(),
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::MeanNonZero,
}
}

impl ContrastiveLoss {
    fn f_loss(&self, batch: Batch) -> Result<Tensor, LossError> {
        self.f_check_options()?;
        // A loss that is no more than rounding counts as 0, and so does not count in the mean over losses above 0.
        let reduction = self.reduction.above(self.distance.noise(batch.f_kind()?));
        let loss = Self { reduction, ..*self };
        let formula = Hinges { sign: self.distance.sign(), margins: [self.pos_margin, self.neg_margin] };
        batch.f_reduced((self.distance, Hard(formula), reduction), loss, Self::f_composite)
    }

    fn f_composite(&self, matrix: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        let too_far = self.distance.f_beyond(matrix, self.pos_margin)?.f_relu()?;
        let too_near = self.distance.f_within(matrix, self.neg_margin)?.f_relu()?;
        let of_one = pairs.f_reduce_positives(&too_far, None, self.reduction)?;
        let of_two = pairs.f_reduce_negatives(&too_near, self.reduction)?;
        match self.reduction {
            EmbeddingReduction::None | EmbeddingReduction::PerAnchor(AnchorReduction::None) => {
                Ok(Tensor::f_cat(&[of_one, of_two], 0)?)
            }
            _ => Ok(of_one.f_add(&of_two)?),
        }
    }
}

/// Hinges of distances, or of similarities with the sign −1.
#[derive(Clone, Copy)]
struct Hinges {
    sign: f64,
    margins: [f64; 2],
}

impl Hinges {
    /// max(0, `sign` (x − `margin`)) and its derivative.
    #[inline(always)]
    fn hinge<R: Real>(x: R, margin: f64, sign: f64) -> (R, R) {
        let (zero, sign) = (R::of(0.0), R::of(sign));
        let beyond = (x - R::of(margin)) * sign;
        (beyond.at_least(zero), choose(beyond.greater(zero), sign, zero))
    }
}

impl PairTerms for Hinges {
    #[inline(always)]
    fn same<R: Real>(self, x: R) -> (R, R) {
        Self::hinge(x, self.margins[SAME], self.sign)
    }

    #[inline(always)]
    fn other<R: Real>(self, x: R) -> (R, R) {
        Self::hinge(x, self.margins[OTHER], -self.sign)
    }
}

impl Loss for ContrastiveLoss {
    loss_of_batch!(Pair);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::number("pos_margin", self.pos_margin)?;
        check::number("neg_margin", self.neg_margin)?;
        self.distance.check()?;
        self.reduction.bounds().map(drop)
    }
}

impl EmbeddingLoss for ContrastiveLoss {
    loss_of_pairs!(f_of_pairs);
}
