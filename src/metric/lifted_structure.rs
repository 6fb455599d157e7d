use tch::{Kind, Tensor};

use super::batch::{Batch, Pairs, loss_of_batch, loss_of_pairs};
use super::{EmbeddingDistance, EmbeddingLoss, EmbeddingReduction};
use crate::kernels::{Each, NumberOperations, OTHER, Positives, Real, SAME, choose, scaled};
use crate::{Loss, LossError, check};

crate::options::options! {
/// The lifted structure loss: each pair of one label against all negatives of both of its embeddings.
///
/// It was the first loss to use all pairs of a batch at once. Its terms are squared, so that wrong labels weigh much;
/// [`MultiSimilarityLoss`](crate::MultiSimilarityLoss) is a later loss of this kind without squares.
///
/// # Formula
///
/// ℓ(a, p) = max(0, log(Σ_{n ∈ N(a)} exp(m₋ − d(a, n)) + Σ_{n ∈ N(p)} exp(m₋ − d(p, n))) + d(a, p) − m₊)² / 2
///
/// for each ordered pair (a, p) of one label, where N are the embeddings of other labels, d is the distance (or a
/// similarity with the other sign, and so the margins), m₊ and m₋ are the margins. Without negatives the loss is 0;
/// where only those of a and p are missing, the logarithm is taken as 0.
///
/// With references, p is one of these, and its negatives are those of the embedding at its position, where there is
/// one: references that go together with the batch, as its other view, or a gathered batch that begins with it, are of
/// the same order.
///
#[doc = include_str!("../../docs/book/src/gallery/lifted_structure.svg")]
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
/// * Memory grows with N², and not with the number of pairs of one label times that of other pairs.
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
#[derive(Copy, PartialEq)]
pub struct LiftedStructureLoss: "lifted_structure";

/// The lifted structure loss with the defaults of pytorch-metric-learning.
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

impl LiftedStructureLoss {
    fn f_loss(&self, mut batch: Batch) -> Result<Tensor, LossError> {
        self.f_check_options()?;
        if batch.reference.is_some() {
            // The engine compares the embeddings of a batch with each other alone.
            batch.pairs.numbered = None;
        }
        let formula = Formula { sign: self.distance.sign(), margins: [self.pos_margin, self.neg_margin] };
        batch.f_reduced((self.distance, Each(formula), self.reduction), *self, Self::f_composite)
    }

    fn f_composite(&self, matrix: &Tensor, pairs: &Pairs) -> Result<Tensor, LossError> {
        let too_near = self.distance.f_within(matrix, self.neg_margin)?;
        // One sum over negatives serves all pairs of an embedding.
        let [of_rows, any_of_rows] = pairs.f_log_sum_exp_of_negatives(&too_near)?;
        let (of_columns, any_of_columns) = (f_of_columns(&of_rows, matrix)?, f_of_columns(&any_of_rows, matrix)?);
        // The logarithm of a sum over nothing is taken as 0, but without any negatives at all nothing has a loss.
        let rows = of_rows.f_zeros_unless(&any_of_rows)?;
        let columns = of_columns.f_zeros_unless(&any_of_columns)?;
        // `logaddexp` is not used: its second derivative is NaN where the two are far from each other.
        let of_both = rows.f_sub(&rows.f_sub(&columns)?.f_log_sigmoid()?)?;
        // An embedding paired with itself has its negatives once, not twice.
        let own = Tensor::f_eye_m(matrix.size()[0], matrix.size()[1], (Kind::Bool, matrix.device()))?;
        let both = any_of_columns.f_gt_tensor(&own)?;
        let of_both = of_both.f_where_self(&both, &rows)?;
        let of_both = of_both.f_where_self(&any_of_rows, &columns)?;
        let losses = of_both.f_add(&self.distance.f_beyond(matrix, self.pos_margin)?)?.f_relu()?;
        // Other pairs may have an infinite loss, whose gradient times 0 would be NaN.
        let positive = pairs.f_positive()?;
        let counted = positive.f_logical_and(&any_of_rows.f_any()?)?;
        let losses = losses.f_zeros_unless(&counted)?.f_square()?.f_div_number(2)?;
        pairs.f_reduce_positives(&losses, Some(positive), self.reduction)
    }
}

/// The numbers `[N, 1]` of embeddings for the columns of a `matrix` `[N, M]`, `[1, M]`: that of the embedding at the
/// column's position, or nothing where there is none.
fn f_of_columns(of_rows: &Tensor, matrix: &Tensor) -> Result<Tensor, LossError> {
    let (rows, columns) = (matrix.size()[0], matrix.size()[1]);
    let across = of_rows.f_transpose(0, 1)?;
    if columns <= rows {
        return Ok(across.f_narrow(1, 0, columns)?);
    }
    let nothing = match of_rows.f_kind()? {
        Kind::Bool => 0.0,
        Kind::Double => f64::MIN / 2.0,
        _ => f64::from(f32::MIN) / 2.0,
    };
    let rest = Tensor::f_full_number(&[1, columns - rows], nothing, (of_rows.f_kind()?, of_rows.device()))?;
    Ok(Tensor::f_cat(&[across, rest], 1)?)
}

#[derive(Clone, Copy)]
struct Formula {
    sign: f64,
    margins: [f64; 2],
}

impl Positives for Formula {
    const BOTH: bool = true;
    const NEEDS_NEGATIVES: bool = true;

    #[inline(always)]
    fn negative<R: Real>(self, x: R) -> (R, R) {
        scaled(x, self.margins[OTHER], -self.sign)
    }

    fn loss<R: Real>(self, x: R, negatives: [R; 2]) -> (R, [R; 3]) {
        let (zero, sign) = (R::of(0.0), R::of(self.sign));
        let of_both = log_add_exp(negatives);
        let excess = of_both + sign * (x - R::of(self.margins[SAME]));
        let costs = excess.less_equal(zero) ^ R::Mask::from(true);
        let part = |number: R| choose(costs, number, zero);
        let [row, column] = negatives.map(|negatives| part(excess * (negatives - of_both).exp()));
        (part(excess * excess / R::of(2.0)), [part(excess * sign), row, column])
    }
}

/// log(exp(a) + exp(b)), also of two that are −∞.
fn log_add_exp<R: Real>([a, b]: [R; 2]) -> R {
    let most = a.max(b);
    let sum = most + ((a - most).exp() + (b - most).exp()).ln();
    choose(most.equal(R::of(f64::NEG_INFINITY)), a + b, sum)
}

impl Loss for LiftedStructureLoss {
    loss_of_batch!(Triplet);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::number("pos_margin", self.pos_margin)?;
        check::number("neg_margin", self.neg_margin)?;
        self.distance.check()?;
        self.reduction.bounds().map(drop)
    }
}

impl EmbeddingLoss for LiftedStructureLoss {
    loss_of_pairs!(f_of_pairs);
}
