use tch::Tensor;

use super::batch::{Batch, Pairs, f_log_sum_exp};
use super::{EmbeddingDistance, EmbeddingReduction};
use crate::kernels::{Each, NumberOperations, OTHER, Positives, Real, SAME, scaled};
use crate::{Loss, LossError};

/// The lifted structure loss: each pair of one label against all negatives of both of its embeddings.
///
/// It was the first loss to use all pairs of a batch at once. Squares make its large losses larger, so that wrong
/// labels weigh much; [`MultiSimilarityLoss`](crate::MultiSimilarityLoss) is its younger relative without them.
///
/// # Formula
///
/// ℓ(a, p) = max(0, log(Σ_{n ∈ N(a)} exp(m₋ − d(a, n)) + Σ_{n ∈ N(p)} exp(m₋ − d(p, n))) + d(a, p) − m₊)² / 2
///
/// for each ordered pair (a, p) of one label, where N are the embeddings of other labels, d is the distance (or a
/// similarity with the other sign, and so the margins), m₊ and m₋ are the margins. Without negatives the loss is 0.
///
/// # Shapes
///
/// * `input`: `[N, D]`
/// * `target`: `[N]`, labels of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses of the pairs of one label, row by row
///
/// # Reference
///
/// `pytorch_metric_learning.losses.LiftedStructureLoss` 2.9.0; Song et al., <https://arxiv.org/abs/1511.06452>.
///
/// # Differences from pytorch-metric-learning
///
/// * Those of [`EmbeddingDistance`].
/// * There are no references, because the negatives of p are found by comparing p with the batch, and there p's
///   position among the references is taken for one in the batch.
/// * Memory grows with N², and not with the number of pairs of one label times that of other pairs.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a distance out of range.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{EmbeddingDistance, LiftedStructureLoss, Loss};
///
/// let embeddings = Tensor::from_slice(&[0.0, 2.0, 1.0]).view([3, 1]).set_requires_grad(true);
/// let labels = Tensor::from_slice(&[0_i64, 0, 1]);
///
/// // Both embeddings of label 0 are 1 away from the negative: log(2 exp(0)) + 2.
/// let distance = EmbeddingDistance::lp().normalize_embeddings(false);
/// let loss = LiftedStructureLoss::new().distance(distance).f_forward(&embeddings, &labels)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (2_f64.ln() + 2.0).powi(2) / 2.0).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LiftedStructureLoss {
    pos_margin: f64,
    neg_margin: f64,
    distance: EmbeddingDistance,
    reduction: EmbeddingReduction,
}

impl LiftedStructureLoss {
    /// The lifted structure loss with the defaults of pytorch-metric-learning.
    pub fn new() -> Self {
        Self {
            pos_margin: 0.0,
            neg_margin: 1.0,
            distance: EmbeddingDistance::lp(),
            reduction: EmbeddingReduction::Mean,
        }
    }

    /// Sets what is taken from the distance of a pair of one label, or from which its similarity is taken. 0 by
    /// default.
    pub fn pos_margin(mut self, pos_margin: f64) -> Self {
        self.pos_margin = pos_margin;
        self
    }

    /// Sets the distance that embeddings of two labels should have, or the similarity that they should not. 1 by
    /// default.
    pub fn neg_margin(mut self, neg_margin: f64) -> Self {
        self.neg_margin = neg_margin;
        self
    }

    /// Sets the distance. [`EmbeddingDistance::lp`] by default.
    pub fn distance(mut self, distance: EmbeddingDistance) -> Self {
        self.distance = distance;
        self
    }

    /// Sets the reduction. [`EmbeddingReduction::Mean`] by default.
    pub fn reduction(mut self, reduction: EmbeddingReduction) -> Self {
        self.reduction = reduction;
        self
    }

    fn f_loss(&self, batch: &Batch) -> Result<Tensor, LossError> {
        let loss = *self;
        let formula = Formula { sign: self.distance.sign(), margins: [self.pos_margin, self.neg_margin] };
        batch.f_reduced(self.distance, Each(formula), self.reduction, move |matrix, pairs| {
            loss.f_composite(matrix, pairs)
        })
    }

    fn f_composite(&self, matrix: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        let too_near = self.distance.f_beyond(matrix, self.neg_margin)?.f_neg()?;
        // One sum over negatives serves all pairs of an embedding.
        let negatives = f_log_sum_exp(&too_near, &pairs.f_negative()?)?;
        let of_both = negatives.f_logaddexp(&negatives.f_transpose(0, 1)?)?;
        let losses = of_both.f_add(&self.distance.f_beyond(matrix, self.pos_margin)?)?;
        let losses = losses.f_relu()?.f_square()?.f_div_number(2)?;
        self.reduction.f_apply(&losses, Some(&pairs.f_positive()?))
    }
}

#[derive(Clone, Copy)]
struct Formula {
    sign: f64,
    margins: [f64; 2],
}

impl Positives for Formula {
    const BOTH: bool = true;

    #[inline(always)]
    fn negative<R: Real>(self, x: R) -> (R, R) {
        scaled(x, self.margins[OTHER], -self.sign)
    }

    fn loss(self, x: f64, negatives: [f64; 2]) -> (f64, [f64; 3]) {
        let of_both = log_add_exp(negatives);
        let excess = of_both + self.sign * (x - self.margins[SAME]);
        if excess <= 0.0 {
            return (0.0, [0.0; 3]);
        }
        let [row, column] = negatives.map(|negatives| excess * (negatives - of_both).exp());
        (excess * excess / 2.0, [excess * self.sign, row, column])
    }
}

/// log(exp(a) + exp(b)), also of two that are −∞.
fn log_add_exp([a, b]: [f64; 2]) -> f64 {
    let most = a.max(b);
    if most == f64::NEG_INFINITY { a + b } else { most + ((a - most).exp() + (b - most).exp()).ln() }
}

impl Default for LiftedStructureLoss {
    fn default() -> Self {
        Self::new()
    }
}

impl Loss for LiftedStructureLoss {
    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.f_loss(&Batch::f_new(input, target)?)
    }
}
