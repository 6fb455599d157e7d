use tch::Tensor;

use super::triplet::{self, Triplet};
use crate::autograd::f_alias;
use crate::mean_parts::f_wide;
use crate::{LossError, MeanParts, Reduction, check};

crate::options::options! {
/// The triplet margin loss: an anchor should be nearer to a positive than to a negative example, by a margin.
///
/// For embeddings of faces, signatures, products: whatever is compared by its p-norm distance. For another distance
/// choose [`TripletMarginWithDistanceLoss`](crate::TripletMarginWithDistanceLoss); for labelled pairs
/// [`CosineEmbeddingLoss`](crate::CosineEmbeddingLoss).
///
/// # Formula
///
/// ℓₙ = max(0, d(aₙ, pₙ) − d(aₙ, nₙ) + Δ)
///
/// d(u, v) = ‖u − v + ε‖ₚ
///
/// where a is the anchor, p the positive and n the negative example, Δ the margin, and the norm is over the last
/// dimension. With a swap, d(aₙ, nₙ) is min(d(aₙ, nₙ), d(pₙ, nₙ)).
///
#[doc = include_str!("../../docs/book/src/gallery/triplet_margin.svg")]
///
/// # Shapes
///
/// * `anchor`: `[*, D]`, usually `[N, D]`
/// * `positive`, `negative`: `[*, D]`, the same shape
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// # Reference
///
/// `torch.nn.TripletMarginLoss` and `torch.nn.functional.triplet_margin_loss` of PyTorch 2.13; Balntas et al.,
/// *Learning shallow convolutional feature descriptors with triplet losses*, 2016, for the swap.
///
/// # Differences from PyTorch
///
/// * Arguments of different shapes are an error, unless [`broadcast`](Self::broadcast) allows them; PyTorch broadcasts
///   silently.
/// * A margin that is NaN is an error; PyTorch's result is NaN.
///
/// # Errors
///
/// [`LossError::Option`] for a margin that is not positive or a degree that is NaN, [`LossError::Shape`] where shapes
/// differ or embeddings of no elements have no norm, [`LossError::Device`] where devices differ, [`LossError::Kind`]
/// for booleans.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::TripletMarginLoss;
///
/// let anchor = Tensor::from_slice(&[0.0, 0.0]).view([1, 2]).set_requires_grad(true);
/// let positive = Tensor::from_slice(&[3.0, 4.0]).view([1, 2]);
/// let negative = Tensor::from_slice(&[6.0, 8.0]).view([1, 2]);
///
/// // The distances are 5 and 10.
/// let loss = TripletMarginLoss::new().margin(7.0).f_forward(&anchor, &positive, &negative)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 2.0).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.TripletMarginLoss")]
#[doc(alias = "triplet_margin_loss")]
pub struct TripletMarginLoss;

/// The triplet margin loss with PyTorch's defaults.
new {
    /// by how much the negative must be farther away, > 0, for a triplet to have a loss of 0.
    margin: f64 = 1.0,
    /// the degree of the norm.
    p: f64 = 2.0,
    /// what is added to each difference, which keeps the gradient at equal embeddings finite.
    eps: f64 = 1e-6,
    /// whether the distance from the positive to the negative counts where it is the smaller one.
    swap: bool = false,
    /// whether the arguments may differ in shape and are broadcast against each other; they still need the same number
    /// of dimensions.
    broadcast: bool = false,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl TripletMarginLoss {
    /// Computes the loss, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(&self, anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Result<Tensor, LossError> {
        let named = [("anchor", anchor), ("positive", positive), ("negative", negative)];
        triplet::check(named, self.margin, self.broadcast)?;
        let (margin, p, eps, swap, reduction) = (self.margin, self.p, self.eps, self.swap, self.reduction);
        check::number("p", p)?;
        check::number("eps", eps)?;
        let least = p < 0.0 || p.is_infinite();
        let fits = !least || named.iter().all(|(_, tensor)| tensor.size().last() != Some(&0));
        check::shape(named[0], fits, format_args!("[*, D] with D > 0, where p is {p}"))?;
        Triplet { margin, p, eps, swap }.f_loss(
            [anchor, positive, negative],
            reduction,
            move |[anchor, positive, negative]| {
                // libtorch's second derivative of the norm |x| is a zero tensor without memory.
                let alias = |x: &Tensor| if p == 1.0 { f_alias(x) } else { Ok(x.shallow_clone()) };
                let [anchor, positive, negative] = &[alias(anchor)?, alias(positive)?, alias(negative)?];
                Ok(Tensor::f_triplet_margin_loss(anchor, positive, negative, margin, p, eps, swap, reduction.into())?)
            },
        )
    }

    /// The numerator and the denominator of the mean, for means over several calls: see [`MeanParts`].
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward).
    pub fn f_parts(&self, anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Result<MeanParts, LossError> {
        let unreduced = Self { reduction: Reduction::None, ..*self };
        MeanParts::f_of_losses(&unreduced.f_forward(&f_wide(anchor)?, &f_wide(positive)?, &f_wide(negative)?)?)
    }

    crate::loss::or_panic!(forward as f_forward(anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Tensor);
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn ones(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn wrong_calls_are_named() {
        let x = ones(&[3, 4]);
        for (margin, positive, negative, message) in [
            (0.0, &[3, 4][..], &[3, 4][..], "option margin is 0, expected a number > 0"),
            (f64::NAN, &[3, 4], &[3, 4], "option margin is NaN, expected a number > 0"),
            (1.0, &[1, 4], &[3, 4], "positive has shape [1, 4], expected [3, 4], the shape of anchor"),
            (1.0, &[3, 4], &[4], "negative has shape [4], expected [3, 4], the shape of anchor"),
        ] {
            let loss = TripletMarginLoss::new().margin(margin);
            let error = loss.f_forward(&x, &ones(positive), &ones(negative)).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn what_has_no_norm_is_named() {
        let message = |p: f64, x: &Tensor| TripletMarginLoss::new().p(p).f_forward(x, x, x).unwrap_err().to_string();
        assert_eq!(message(f64::NAN, &ones(&[3, 4])), "option p is NaN, expected a number");
        let expected = "anchor has shape [3, 0], expected [*, D] with D > 0, where p is inf";
        assert_eq!(message(f64::INFINITY, &ones(&[3, 0])), expected);
        let expected = "anchor has kind Bool, expected a kind of numbers";
        assert_eq!(message(2.0, &ones(&[3, 4]).to_kind(Kind::Bool)), expected);
    }

    #[test]
    fn broadcasting_keeps_the_number_of_dimensions() {
        let loss = TripletMarginLoss::new().broadcast(true).reduction(Reduction::None);
        assert_eq!(loss.forward(&ones(&[3, 4]), &ones(&[1, 4]), &ones(&[3, 1])).size(), [3]);
        let error = loss.f_forward(&ones(&[3, 4]), &ones(&[4]), &ones(&[3, 4])).unwrap_err();
        assert_eq!(error.to_string(), "positive has shape [4], expected 2 dimensions, as many as anchor");
    }
}
