#[cfg(test)]
mod tests;

use tch::{Kind, Tensor};

use crate::autograd::{Backward, Function, Gradients, Place, Tape, f_gradients_of, f_taped, needed};
use crate::kernels::{NumberOperations, f_distance_slopes, f_distances, f_unit};
use crate::numeric::f_matrix_product;
use crate::numeric::{f_power, f_unit_rows};
use crate::{LossError, check};

/// How far apart, or how alike, two embeddings are.
///
/// Losses over a batch compare its embeddings by one of these: the distance of their difference ([`lp`](Self::lp)), the
/// similarity of their directions ([`cosine`](Self::cosine)), their product ([`dot_product`](Self::dot_product)), or
/// the variance of their difference relative to that of the first ([`signal_to_noise`](Self::signal_to_noise)).
/// Embeddings are scaled to length 1 first, except where that is turned off: for unit vectors all but the last order
/// pairs in the same way, since ‖a − b‖² = 2 − 2 cos(a, b).
///
/// # Formula
///
/// | | d(a, b) | |
/// |---|---|---|
/// | `lp` | ‖a − b‖ₚ | distance |
/// | `cosine`, `dot_product` | a · b | similarity |
/// | `signal_to_noise` | var(a − b) / var(a) | distance |
///
/// where a and b are the embeddings, divided by max(‖·‖ₚ, 10⁻¹²) with `normalize_embeddings`; and all of it to the
/// power of `power`.
///
/// # Reference
///
/// `LpDistance`, `CosineSimilarity`, `DotProductSimilarity` and `SNRDistance` of `pytorch_metric_learning.distances`
/// 2.9.0.
///
/// # Differences from pytorch-metric-learning
///
/// * Distances are computed from differences, never from products, so that near embeddings keep the digits of their
///   distance, and equal ones have 0 with gradient 0.
/// * Half precision is computed in single precision, and up to 2¹⁶ pairs of either in double precision, because their
///   gradients are sums that nearly cancel.
/// * An embedding of zeros has no direction: it stays what it is, with first and second derivatives of 0. There its
///   gradient is over 10⁻¹².
/// * Embeddings of one direction have the same unit vector, bit by bit, and so distance 0.
/// * Large embeddings do not overflow, except in a dot product, where the result itself may be too large.
/// * The signal-to-noise ratio needs memory for the distances alone, not for the difference of each pair.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{ContrastiveLoss, EmbeddingDistance, Loss};
///
/// let embeddings = Tensor::from_slice(&[0.0, 0.0, 3.0, 4.0]).view([2, 2]);
/// let labels = Tensor::from_slice(&[7_i64, 7]);
///
/// // The distance is 5, and 25 when squared.
/// let distance = EmbeddingDistance::lp().normalize_embeddings(false).power(2.0);
/// let loss = ContrastiveLoss::new().distance(distance).f_forward(&embeddings, &labels)?;
/// assert_eq!(f64::try_from(loss)?, 25.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[doc(alias = "LpDistance")]
#[doc(alias = "CosineSimilarity")]
#[doc(alias = "DotProductSimilarity")]
#[doc(alias = "SNRDistance")]
#[must_use]
pub struct EmbeddingDistance {
    measure: Measure,
    normalize_embeddings: bool,
    p: f64,
    power: f64,
}

crate::option_tensors::without_tensors!(EmbeddingDistance);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    Lp,
    DotProduct,
    SignalToNoise,
}

/// The `compute_mode` of `cdist` that takes differences and no matrix product.
const OF_DIFFERENCES: i64 = 2;

/// The least length that an embedding is divided by, as in `torch.nn.functional.normalize`.
const LEAST_NORM: f64 = 1e-12;

/// Embeddings with elements above it are scaled before their differences are squared, which might overflow.
const LARGE: f64 = 1e10;

impl EmbeddingDistance {
    const fn new(measure: Measure) -> Self {
        Self { measure, normalize_embeddings: true, p: 2.0, power: 1.0 }
    }

    /// The p-norm of the difference, the Euclidean distance by default.
    pub const fn lp() -> Self {
        Self::new(Measure::Lp)
    }

    /// The cosine of the angle, which is the dot product of embeddings of length 1.
    pub const fn cosine() -> Self {
        Self::new(Measure::DotProduct)
    }

    /// The dot product. Of embeddings as they are, it needs
    /// [`normalize_embeddings(false)`](Self::normalize_embeddings); of unit vectors it is the cosine.
    pub const fn dot_product() -> Self {
        Self::new(Measure::DotProduct)
    }

    /// The variance of the difference over that of the first embedding, each over the dimensions of one embedding.
    pub const fn signal_to_noise() -> Self {
        Self::new(Measure::SignalToNoise)
    }

    /// The name of the measure in data, whether embeddings are normalised, p and the power.
    #[cfg(feature = "serde")]
    pub(crate) fn parts(self) -> (&'static str, bool, f64, f64) {
        let measure = match self.measure {
            Measure::Lp => "lp",
            Measure::DotProduct => "dot_product",
            Measure::SignalToNoise => "signal_to_noise",
        };
        (measure, self.normalize_embeddings, self.p, self.power)
    }

    /// Sets whether embeddings are scaled to length 1 before they are compared. True by default.
    pub fn normalize_embeddings(mut self, normalize_embeddings: bool) -> Self {
        self.normalize_embeddings = normalize_embeddings;
        self
    }

    /// Sets the p ≥ 1 of the norm: that of differences, and that by which embeddings are scaled. 2 by default.
    pub fn p(mut self, p: f64) -> Self {
        self.p = p;
        self
    }

    /// Sets the power > 0 to which distances or similarities are raised. 1 by default.
    pub fn power(mut self, power: f64) -> Self {
        self.power = power;
        self
    }

    /// Whether it is larger for embeddings that are more alike.
    pub fn is_similarity(self) -> bool {
        self.measure == Measure::DotProduct
    }

    /// Whether the options are in range.
    pub(crate) fn check(self) -> Result<(), LossError> {
        check::option("p", self.p, self.p >= 1.0, "a number ≥ 1")?;
        check::option("power", self.power, self.power > 0.0 && self.power.is_finite(), "a finite number > 0")
    }

    /// The distances or similarities of `embeddings` `[N, D]` to `reference` `[M, D]`, or among themselves, as a matrix
    /// `[N, M]`, computed in this `kind`, single or double precision.
    pub(crate) fn f_matrix(
        self,
        embeddings: &Tensor,
        reference: Option<&Tensor>,
        kind: Kind,
    ) -> Result<Tensor, LossError> {
        self.check()?;
        let a = self.f_prepared(embeddings, kind)?;
        let b = reference.map(|reference| self.f_prepared(reference, kind)).transpose()?;
        let matrix = match self.measure {
            Measure::DotProduct => f_matrix_product(&a, &b.as_ref().unwrap_or(&a).f_transpose(0, 1)?)?,
            Measure::Lp => self.f_lp(&a, b.as_ref())?,
            Measure::SignalToNoise => self.f_signal_to_noise(&a, b.as_ref())?,
        };
        match (self.power == 1.0, self.measure) {
            (true, _) => Ok(matrix),
            (false, Measure::DotProduct) => Ok(matrix.f_pow_number(self.power)?),
            (false, _) => f_power(&matrix, self.power),
        }
    }

    /// The same of the embeddings of a tape, and of a reference where there is a second place; none where an engine
    /// does not take them.
    pub(crate) fn f_matrix_on(self, tape: &mut Tape, places: &[Place], kind: Kind) -> Result<Option<Place>, LossError> {
        if self.power != 1.0 || self.measure == Measure::SignalToNoise {
            return Ok(None);
        }
        let Some(units) = self.f_units_on(tape, places, kind)? else { return Ok(None) };
        match self.measure {
            Measure::DotProduct => Ok(Some(f_products_on(tape, &units)?)),
            _ => f_euclidean_on(tape, &units),
        }
    }

    /// Embeddings of length 1, of a tape; none where the engine does not take them.
    pub(super) fn f_units_on(
        self,
        tape: &mut Tape,
        places: &[Place],
        kind: Kind,
    ) -> Result<Option<Vec<Place>>, LossError> {
        self.check()?;
        if !self.normalize_embeddings || self.p != 2.0 {
            return Ok(None);
        }
        places.iter().map(|place| f_unit(tape, *place, kind, LEAST_NORM)).collect()
    }

    /// By how much rounding may move apart two distances that are equal, in this kind. Distances of unit vectors are
    /// sums of rounded numbers near 1; those of other embeddings have no such bound, for which 0 stands.
    pub(super) fn noise(self, kind: Kind) -> f64 {
        let epsilon = if kind == Kind::Double { f64::EPSILON } else { f64::from(f32::EPSILON) };
        if self.normalize_embeddings { 8.0 * epsilon } else { 0.0 }
    }

    /// By how much the embeddings of each pair are farther apart than `margin`, or less alike.
    pub(crate) fn f_beyond(self, matrix: &Tensor, margin: f64) -> Result<Tensor, LossError> {
        Ok(match self.is_similarity() {
            true => matrix.f_rsub_number(margin)?,
            false if margin == 0.0 => matrix.shallow_clone(),
            false => matrix.f_sub_number(margin)?,
        })
    }

    /// By how much the embeddings of each pair are nearer to each other than `margin`, or more alike.
    pub(crate) fn f_within(self, matrix: &Tensor, margin: f64) -> Result<Tensor, LossError> {
        Ok(if self.is_similarity() { matrix.f_sub_number(margin)? } else { matrix.f_rsub_number(margin)? })
    }

    /// Whether that of a to b is that of b to a.
    pub(crate) fn is_symmetric(self) -> bool {
        self.measure != Measure::SignalToNoise
    }

    /// Whether it is ‖a − b‖² of embeddings of length 1.
    pub(super) fn is_squared_chord(self) -> bool {
        self == Self::lp().power(2.0)
    }

    /// By what the same is multiplied: 1 for a distance and −1 for a similarity.
    pub(crate) fn sign(self) -> f64 {
        if self.is_similarity() { -1.0 } else { 1.0 }
    }

    /// A similarity as it is, and a distance with the other sign: the larger, the more alike.
    pub(crate) fn f_alike(self, matrix: &Tensor) -> Result<Tensor, LossError> {
        if self.is_similarity() { Ok(matrix.shallow_clone()) } else { Ok(matrix.f_neg()?) }
    }

    /// Embeddings of length 1, or as they are, in this kind, single or double precision.
    pub(super) fn f_prepared(self, embeddings: &Tensor, kind: Kind) -> Result<Tensor, LossError> {
        // Gradients from several uses are added up in this kind.
        let embeddings = &embeddings.f_to_kind(kind)?;
        match self.normalize_embeddings {
            false => Ok(embeddings.shallow_clone()),
            true if self.p == 2.0 => {
                let steps = |tape: &mut Tape, places: &[Place]| f_unit(tape, places[0], kind, LEAST_NORM);
                f_taped(&[embeddings], steps, move |inputs| self.f_unit(&inputs[0]))
            }
            true => self.f_unit(embeddings),
        }
    }

    fn f_unit(self, embeddings: &Tensor) -> Result<Tensor, LossError> {
        f_unit_rows(embeddings, self.p, LEAST_NORM)
    }

    fn f_lp(self, a: &Tensor, b: Option<&Tensor>) -> Result<Tensor, LossError> {
        if self.normalize_embeddings {
            return f_norms(a, b, self.p);
        }
        let scale = f_scale(a, b)?;
        let (a, b) = (a.f_div(&scale)?, b.map(|b| b.f_div(&scale)).transpose()?);
        Ok(f_norms(&a, b.as_ref(), self.p)?.f_mul(&scale)?)
    }

    fn f_signal_to_noise(self, a: &Tensor, b: Option<&Tensor>) -> Result<Tensor, LossError> {
        let scale = f_scale(a, b)?;
        // The variance of a difference is the squared distance of what deviates from the means, over D − 1; and so is
        // that of an embedding. In their quotient the D − 1 cancels.
        let deviation = |x: &Tensor| {
            let scaled = x.f_div(&scale)?;
            // Relative to the first number, because the rounded mean of equal numbers may differ from them.
            let shifted = scaled.f_sub(&scaled.f_detach()?.f_narrow(1, 0, 1)?)?;
            shifted.f_sub(&shifted.f_mean_dim([1_i64].as_slice(), true, None)?)
        };
        let (a, b) = (deviation(a)?, b.map(deviation).transpose()?);
        let noise = f_norms(&a, b.as_ref(), 2.0)?.f_square()?;
        let signal = a.f_square()?.f_sum_dim_intlist([1_i64].as_slice(), true, None)?;
        // The ratio to a variance of 0 is infinite.
        let silent = signal.f_eq_number(0)?;
        Ok(noise.f_div(&signal.f_masked_fill_number(&silent, 1)?)?.f_masked_fill_number(&silent, f64::INFINITY)?)
    }
}

/// What the elements of embeddings are divided by, so that their squares do not overflow: 1 as long as they are not
/// large.
fn f_scale(a: &Tensor, b: Option<&Tensor>) -> Result<Tensor, LossError> {
    let one = a.f_detach()?.f_new_ones([1], (a.f_kind()?, a.device()))?;
    let mut largest = one.shallow_clone();
    for x in [Some(a), b].into_iter().flatten().filter(|x| x.numel() > 0) {
        largest = largest.f_maximum(&x.f_detach()?.f_abs()?.f_max()?)?;
    }
    Ok(largest.f_where_self(&largest.f_gt_number(LARGE)?, &one)?)
}

/// ‖aᵢ − bⱼ‖ₚ for all i and j, or ‖aᵢ − aⱼ‖ₚ, which can be differentiated more than once; those of `cdist` cannot.
fn f_norms(a: &Tensor, b: Option<&Tensor>, p: f64) -> Result<Tensor, LossError> {
    let inputs: Vec<&Tensor> = [Some(a), b].into_iter().flatten().collect();
    let needed = needed(&inputs);
    let bare = inputs.iter().map(|input| input.f_detach()).collect::<Result<Vec<_>, _>>()?;
    let (first, last) = (&bare[0], &bare[inputs.len() - 1]);
    let by_engine = if p == 2.0 { f_distances(first, last)? } else { None };
    let distances = by_engine.map_or_else(|| Tensor::f_cdist(first, last, p, OF_DIFFERENCES), Ok)?;
    let saved: Vec<&Tensor> = inputs.iter().copied().chain([&distances]).collect();
    Function::new(&inputs).save(&saved).f_attach_one(distances.f_detach()?, move |context| {
        let Some(grad) = context.grad(0) else { return Ok(needed.iter().map(|_| None).collect()) };
        let saved: Vec<&Tensor> = context.saved().iter().collect();
        let norms = move |inputs: &[Tensor]| f_norms_of_differences(&inputs[0], inputs.get(1), p);
        let with_graph = || match p {
            2.0 => f_slopes_with_graph(&saved, &grad),
            _ => f_gradients_of(&norms, &grad, &context.saved()[..needed.len()], &needed),
        };
        let gradients = context.f_gradients(&|| f_slopes(&saved, &grad, p), &with_graph)?;
        Ok(gradients.into_iter().zip(&needed).map(|(gradient, needed)| gradient.filter(|_| *needed)).collect())
    })
}

/// The same of operations that can be differentiated again, with memory for the difference of each pair.
fn f_norms_of_differences(a: &Tensor, b: Option<&Tensor>, p: f64) -> Result<Tensor, LossError> {
    let differences = a.f_unsqueeze(1)?.f_sub(&b.unwrap_or(a).f_unsqueeze(0)?)?;
    // Equal embeddings have distance 0 and gradient 0. Ones take the place of their difference, whose norm would have a
    // NaN gradient.
    let equal = differences.f_detach()?.f_eq_number(0)?.f_all_dim(-1, true)?;
    let norms = differences.f_masked_fill_number(&equal, 1)?.f_norm_number(p, &[2], true)?;
    Ok(norms.f_masked_fill_number(&equal, 0)?.f_squeeze_dim(2)?)
}

/// The Euclidean distances of one or two places of a tape; none where the engine does not take them.
fn f_euclidean_on(tape: &mut Tape, places: &[Place]) -> Result<Option<Place>, LossError> {
    let (first, last) = (tape.value(places[0]), tape.value(places[places.len() - 1]));
    let Some(distances) = f_distances(first, last)? else { return Ok(None) };
    let pull = |of: Backward| f_slopes(&[of.arguments, &[of.result]].concat(), of.grad, 2.0);
    Ok(Some(tape.add(distances, places, pull)))
}

/// The products of the rows of one or two places of a tape: `a · bᵀ`, or `a · aᵀ`.
fn f_products_on(tape: &mut Tape, places: &[Place]) -> Result<Place, LossError> {
    let (first, last) = (tape.value(places[0]), tape.value(places[places.len() - 1]));
    let products = f_matrix_product(first, &last.f_transpose(0, 1)?)?;
    let pull = |Backward { arguments, grad, needed, .. }: Backward| -> Gradients {
        let across = grad.f_transpose(0, 1)?;
        match arguments {
            // Both factors are the same.
            [a] => Ok(vec![Some(f_matrix_product(&grad.f_add(&across)?, a)?)]),
            [a, b] => {
                let product = |needed: bool, left: &Tensor, right: &Tensor| {
                    needed.then(|| f_matrix_product(left, right)).transpose()
                };
                Ok(vec![product(needed[0], grad, b)?, product(needed[1], &across, a)?])
            }
            _ => Ok(vec![]),
        }
    };
    Ok(tape.add(products, places, pull))
}

/// The gradients of p-norms, of Σⱼ gᵢⱼ (aᵢ − bⱼ) / dᵢⱼ for each i and the same for each j where p is 2, as `cdist`
/// computes them.
fn f_slopes(saved: &[&Tensor], grad: &Tensor, p: f64) -> Gradients {
    let slope = |grad: &Tensor, a: &Tensor, b: &Tensor, distances: &Tensor| -> Result<Tensor, LossError> {
        if p == 2.0
            && let Some(slopes) = f_distance_slopes(grad, a, b, distances)?
        {
            return Ok(slopes);
        }
        let [grad, a, b, distances] = [grad, a, b, distances].map(Tensor::f_contiguous);
        Ok(Tensor::f_internal_cdist_backward(&grad?, &a?, &b?, p, &distances?)?)
    };
    match saved {
        // Each distance stands in the matrix twice, so that its two gradients are added up first.
        [a, distances] => Ok(vec![Some(slope(&grad.f_add(&grad.f_transpose(0, 1)?)?, a, a, distances)?)]),
        [a, b, distances] => {
            let (across, back) = (grad.f_transpose(0, 1)?, distances.f_transpose(0, 1)?);
            Ok(vec![Some(slope(grad, a, b, distances)?), Some(slope(&across, b, a, &back)?)])
        }
        _ => Ok(vec![]),
    }
}

/// The same of operations that can be differentiated again.
fn f_slopes_with_graph(saved: &[&Tensor], grad: &Tensor) -> Gradients {
    let weights = |distances: Tensor| {
        let equal = distances.f_eq_number(0)?;
        Ok::<_, LossError>(grad.f_masked_fill_number(&equal, 0)?.f_div(&distances.f_masked_fill_number(&equal, 1)?)?)
    };
    // Σⱼ wᵢⱼ (aᵢ − bⱼ)
    let slope = |weights: &Tensor, a: &Tensor, b: &Tensor| {
        let own = a.f_mul(&weights.f_sum_dim_intlist([1_i64].as_slice(), true, None)?)?;
        Ok::<_, LossError>(own.f_sub(&f_matrix_product(weights, b)?)?)
    };
    match saved {
        [a, _] => {
            let weights = weights(f_norms(a, None, 2.0)?)?;
            Ok(vec![Some(slope(&weights.f_add(&weights.f_transpose(0, 1)?)?, a, a)?)])
        }
        [a, b, _] => {
            let weights = weights(f_norms(a, Some(b), 2.0)?)?;
            Ok(vec![Some(slope(&weights, a, b)?), Some(slope(&weights.f_transpose(0, 1)?, b, a)?)])
        }
        _ => Ok(vec![]),
    }
}
