use tch::{Kind, Tensor};

use super::angle::{Angle, AngleLoss};
use super::same_shape_or_broadcast_in_rank;
use crate::kernels::{NumberOperations, Real, choose};
use crate::mean_parts::f_wide;
use crate::numeric::{f_widely, real, wide_kind};
use crate::{LossError, MeanParts, Reduction, check};

crate::options::options! {
/// The cosine embedding loss: the angle between two embeddings should be small for pairs that belong together, and wide
/// for pairs that do not.
///
/// For embeddings whose direction counts and whose length does not, of sentences or products for example. Where the
/// distance counts choose [`HingeEmbeddingLoss`](crate::HingeEmbeddingLoss); for triplets
/// [`TripletMarginLoss`](crate::TripletMarginLoss).
///
/// # Formula
///
/// ℓₙ = 1 − cos(aₙ, bₙ) where yₙ = 1, and max(0, cos(aₙ, bₙ) − Δ) where yₙ = −1
///
/// cos(a, b) = Σ aᵢbᵢ / √((Σ aᵢ² + 10⁻¹²) (Σ bᵢ² + 10⁻¹²))
///
/// where a and b are the inputs, y is the target and Δ the margin. A target that is neither has ℓₙ = 0.
///
#[doc = include_str!("../../docs/book/src/gallery/cosine_embedding.svg")]
///
/// # Shapes
///
/// * `input1`, `input2`: `[N, D]`, or `[D]` for a single pair
/// * `target`: `[N]`, or `[]` for a single pair, of any kind
/// * result: scalar, or `[N]` or `[]` with [`Reduction::None`]
///
/// # Reference
///
/// `torch.nn.CosineEmbeddingLoss` and `torch.nn.functional.cosine_embedding_loss` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// * Inputs of different shapes, or targets of another number, are an error unless [`broadcast`](Self::broadcast)
///   allows them; PyTorch broadcasts silently.
/// * Half precision is computed in single precision. In PyTorch's f16 the 10⁻¹² is 0, and an embedding of zeros has a
///   NaN gradient. Here it is 0 in f16; in other kinds it is PyTorch's, which is about 10⁶ times as large as that of
///   other embeddings. The normalising losses of this crate,
///   [`NegativeCosineSimilarity`](crate::NegativeCosineSimilarity) among them, have the gradient 0 for embeddings of
///   zeros in all kinds.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes do not fit, [`LossError::Device`] where devices differ, [`LossError::Kind`] for
/// complex inputs, [`LossError::Option`] for a margin that the kind of the computation does not hold.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::CosineEmbeddingLoss;
///
/// let input1 = Tensor::from_slice(&[3.0, 4.0, 3.0, 4.0]).view([2, 2]);
/// let input2 = Tensor::from_slice(&[4.0, 3.0, 4.0, 3.0]).view([2, 2]);
/// let target = Tensor::from_slice(&[1_i64, -1]);
///
/// // Both cosines are 24 / 25 = 0.96.
/// let loss = CosineEmbeddingLoss::new().margin(0.5).f_forward(&input1, &input2, &target)?;
///
/// assert!((f64::try_from(loss)? - (0.04 + 0.46) / 2.0).abs() < 1e-9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.CosineEmbeddingLoss")]
#[doc(alias = "cosine_embedding_loss")]
#[doc(alias = "cosine_similarity")]
pub struct CosineEmbeddingLoss;

/// The cosine embedding loss with PyTorch's defaults.
new {
    /// the cosine, in \[−1, 1\], up to which a pair that does not belong together has a loss of 0.
    margin: f64 = 0.0,
    /// whether inputs and target may differ in shape and are broadcast against each other.
    broadcast: bool = false,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl CosineEmbeddingLoss {
    /// Computes the loss, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(&self, input1: &Tensor, input2: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::devices(&[("input1", input1), ("input2", input2), ("target", target)])?;
        real(("input1", input1))?;
        real(("input2", input2))?;
        check::fits("margin", self.margin, input1)?;
        let mut pairs = input1.size();
        check::shape(("input1", input1), (1..=2).contains(&pairs.len()), "[N, D] or [D]")?;
        same_shape_or_broadcast_in_rank(("input2", input2), ("input1", input1), self.broadcast)?;
        pairs.pop();
        let actual = target.size();
        let fits = actual.len() == pairs.len() && (self.broadcast || actual == pairs);
        check::shape(("target", target), fits, format_args!("{pairs:?}, one value per pair"))?;
        let (margin, reduction) = (self.margin, self.reduction);
        let formula = Formula { margin, no_slope_of_zeros: input1.f_kind()? == Kind::Half };
        let composite = move |[input1, input2, target]: [&Tensor; 3]| match formula.no_slope_of_zeros {
            true => formula.f_composite(input1, input2, target, reduction),
            // An embedding of half precision is computed in single precision, whatever the kind of the other one is.
            false => f_widely([input1, input2], |[input1, input2]| {
                Ok(Tensor::f_cosine_embedding_loss(input1, input2, target, margin, reduction.into())?)
            }),
        };
        Angle(formula).f_loss([input1, input2, target], reduction, composite)
    }

    /// The numerator and the denominator of the mean, for means over several calls: see [`MeanParts`].
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward).
    pub fn f_parts(&self, input1: &Tensor, input2: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let unreduced = Self { reduction: Reduction::None, ..*self };
        MeanParts::f_of_losses(&unreduced.f_forward(&f_wide(input1)?, &f_wide(input2)?, &f_wide(target)?)?)
    }

    crate::loss::or_panic!(forward as f_forward(input1: &Tensor, input2: &Tensor, target: &Tensor) -> Tensor);
}

#[derive(Clone, Copy)]
struct Formula {
    margin: f64,
    /// Whether the gradient of an embedding of zeros is 0. It is too large for f16, in which PyTorch's is NaN.
    no_slope_of_zeros: bool,
}

impl Formula {
    /// The loss where embeddings of zeros have no slope, in single precision.
    fn f_composite(
        self,
        input1: &Tensor,
        input2: &Tensor,
        target: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor, LossError> {
        let own = input1.f_kind()?;
        let [(a, a_zero), (b, b_zero)] = [f_without_zeros(input1)?, f_without_zeros(input2)?];
        let sum = |product: Tensor| product.f_sum_dim_intlist([-1_i64].as_slice(), false, None);
        let square = |x: &Tensor| sum(x.f_square()?)?.f_add_number(EPSILON);
        let cosine = sum(a.f_mul(&b)?)?.f_div(&square(&a)?.f_mul(&square(&b)?)?.f_sqrt()?)?;
        let cosine = cosine.f_masked_fill_number(&a_zero.f_logical_or(&b_zero)?, 0)?;
        let nothing = cosine.f_zeros_like()?;
        let apart = cosine.f_sub_number(self.margin)?.f_clamp_min_number(0)?;
        let apart = apart.f_where_self(&target.f_eq_number(-1)?, &nothing)?;
        let losses = cosine.f_rsub_number(1)?.f_where_self(&target.f_eq_number(1)?, &apart)?;
        Ok(reduction.f_apply(&losses)?.f_to_kind(own)?)
    }
}

/// Embeddings in single precision, with ones in place of those of zeros, and which these are.
fn f_without_zeros(embeddings: &Tensor) -> Result<(Tensor, Tensor), LossError> {
    let zero = embeddings.f_detach()?.f_eq_number(0)?.f_all_dim(-1, true)?;
    let kind = wide_kind(embeddings)?;
    Ok((embeddings.f_to_kind(kind)?.f_masked_fill_number(&zero, 1)?, zero.f_squeeze_dim(-1)?))
}

impl AngleLoss for Formula {
    fn loss<R: Real>(self, [product, square_a, square_b]: [R; 3], label: R) -> (R, [R; 3]) {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let none = R::Mask::from(self.no_slope_of_zeros) & (square_a.equal(zero) | square_b.equal(zero));
        let (square_a, square_b) = (square_a + R::of(EPSILON), square_b + R::of(EPSILON));
        let length = (square_a * square_b).sqrt();
        let cosine = product / length;
        let above = cosine - R::of(self.margin);
        let (same, other) = (label.equal(one), label.equal(-one));
        let below = above.less(zero);
        let of_other = |number: R| choose(other, choose(below, zero, number), zero);
        let loss = choose(same, one - cosine, of_other(above));
        let slope = choose(none, zero, choose(same, -one, of_other(one)));
        let of_square = R::of(-0.5) * slope * cosine;
        (loss, [slope / length, of_square / square_a, of_square / square_b])
    }
}

/// What PyTorch adds to the squares.
const EPSILON: f64 = 1e-12;

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn ones(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Double, Device::Cpu))
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        for (input1, input2, target, message) in [
            (&[][..], &[][..], &[][..], "input1 has shape [], expected [N, D] or [D]"),
            (&[2, 3, 4], &[2, 3, 4], &[2], "input1 has shape [2, 3, 4], expected [N, D] or [D]"),
            (&[3, 4], &[1, 4], &[3], "input2 has shape [1, 4], expected [3, 4], the shape of input1"),
            (&[3, 4], &[3, 4], &[1], "target has shape [1], expected [3], one value per pair"),
            (&[3, 4], &[3, 4], &[], "target has shape [], expected [3], one value per pair"),
            (&[4], &[4], &[1], "target has shape [1], expected [], one value per pair"),
        ] {
            let error = CosineEmbeddingLoss::new().f_forward(&ones(input1), &ones(input2), &ones(target)).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn complex_embeddings_are_named() {
        let (x, complex) = (ones(&[3, 4]), ones(&[3, 4]).to_kind(Kind::ComplexFloat));
        for (input1, input2, argument) in [(&complex, &x, "input1"), (&x, &complex, "input2")] {
            let error = CosineEmbeddingLoss::new().f_forward(input1, input2, &ones(&[3])).unwrap_err();
            assert_eq!(error.to_string(), format!("{argument} has kind ComplexFloat, expected a kind of real numbers"));
        }
    }

    #[test]
    fn broadcasting_keeps_the_number_of_dimensions() {
        let loss = CosineEmbeddingLoss::new().broadcast(true).reduction(Reduction::None);
        assert_eq!(loss.forward(&ones(&[3, 4]), &ones(&[1, 4]), &ones(&[1])).size(), [3]);
        assert_eq!(loss.forward(&ones(&[1, 4]), &ones(&[1, 1]), &ones(&[5])).size(), [5]);
        let error = loss.f_forward(&ones(&[3, 4]), &ones(&[4]), &ones(&[3])).unwrap_err();
        assert_eq!(error.to_string(), "input2 has shape [4], expected 2 dimensions, as many as input1");
        loss.f_forward(&ones(&[3, 4]), &ones(&[3, 4]), &ones(&[])).unwrap_err();
    }

    #[test]
    fn a_zero_embedding_has_a_finite_gradient() {
        let input1 = ones(&[1, 2]).zeros_like().set_requires_grad(true);
        CosineEmbeddingLoss::new().forward(&input1, &ones(&[1, 2]), &ones(&[1])).backward();
        assert!(bool::try_from(input1.grad().isfinite().all()).unwrap());
    }
}
