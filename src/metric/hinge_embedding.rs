use tch::{Kind, Tensor};

use crate::autograd::f_with_zero_gradients;
use crate::kernels::{Pointwise, Real, choose, f_pointwise};
use crate::numeric::{real, result_kind, wide_kind};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The hinge embedding loss: a distance should be small for pairs that belong together, and at least a margin for pairs
/// that do not.
///
/// For distances, or other dissimilarities, that were computed already. From two embeddings and their cosine compute
/// [`CosineEmbeddingLoss`](crate::CosineEmbeddingLoss); from triplets [`TripletMarginLoss`](crate::TripletMarginLoss).
///
/// # Formula
///
/// ℓᵢ = xᵢ where yᵢ = 1, and max(0, Δ − xᵢ) where yᵢ = −1
///
/// where x is the input, y the target and Δ the margin. A target that is neither gets the sum of both.
///
#[doc = include_str!("../../docs/book/src/gallery/hinge_embedding.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`
/// * `target`: `[*]`, the same shape, of any kind
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.HingeEmbeddingLoss` and `torch.nn.functional.hinge_embedding_loss` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// A target of another shape is an error, unless [`broadcast`](Self::broadcast) allows it; PyTorch broadcasts silently.
/// A target that requires a gradient gets zeros, where PyTorch has none; a loss of integers has no graph.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Kind`] for an input
/// of booleans or complex numbers, or of integers, which have no mean, [`LossError::Option`] for a margin that is NaN,
/// or that the kind of the computation does not hold.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{HingeEmbeddingLoss, Loss};
///
/// let distance = Tensor::from_slice(&[0.5, 0.25, 2.0, 0.25]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64, -1, -1, 1]);
///
/// // (0.5 + (1 − 0.25) + 0 + 0.25) / 4
/// let loss = HingeEmbeddingLoss::new().f_forward(&distance, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 0.375);
/// assert_eq!(Vec::<f64>::try_from(distance.grad())?, [0.25, -0.25, 0.0, 0.25]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.HingeEmbeddingLoss")]
#[doc(alias = "hinge_embedding_loss")]
pub struct HingeEmbeddingLoss: "hinge_embedding";

/// The hinge embedding loss with PyTorch's defaults.
new {
    /// the distance from which on a pair that does not belong together has a loss of 0.
    margin: f64 = 1.0,
    /// whether input and target may differ in shape and are broadcast against each other.
    broadcast: bool = false,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl Loss for HingeEmbeddingLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(sum);

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::devices(&[("input", input), ("target", target)])?;
        check::not_boolean(("input", input))?;
        real(("input", input))?;
        if self.reduction == Reduction::Mean {
            // libtorch computes no mean of integers.
            check::floating(("input", input))?;
        }
        check::same_shape_or_broadcast(("target", target), ("input", input), self.broadcast)?;
        check::fits("margin", self.margin, input)?;
        let (margin, reduction, kind) = (self.margin, self.reduction, result_kind(input)?);
        // libtorch compares a byte with −1 as with 255, which as a number of eight bits with a sign is −1.
        let bytes = (target.f_kind()? == Kind::Uint8).then(|| target.f_to_kind(Kind::Int8)).transpose()?;
        let target = bytes.as_ref().unwrap_or(target);
        f_pointwise(Formula { margin }, [input, target], reduction, move |[input, target]| {
            // In half precision libtorch rejects a margin that this kind does not hold.
            let input = input.f_to_kind(wide_kind(input)?)?;
            let loss = input.f_hinge_embedding_loss(target, margin, reduction.into())?;
            f_with_zero_gradients(loss.f_to_kind(kind)?, &[target])
        })
    }
}

#[derive(Clone, Copy)]
struct Formula {
    margin: f64,
}

impl Pointwise<2> for Formula {
    /// A target that is neither 1 nor −1 counts as both, as in PyTorch.
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let missing = R::of(self.margin) - x;
        let (far, near) = (y.unequal(one), y.unequal(-one));
        let loss = choose(far, missing.at_least(zero), zero) + choose(near, x, zero);
        let slope = choose(near, one, zero) - choose(far & missing.greater_equal(zero), one, zero);
        (loss, [slope, zero])
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::{Backend, with_backend};

    #[test]
    fn broadcasting_is_asked_for() {
        let (input, target) = (Tensor::from_slice(&[0.5, 2.0]), Tensor::from_slice(&[1.0, -1.0]).view([2, 1]));
        let error = HingeEmbeddingLoss::new().f_forward(&input, &target).unwrap_err();
        assert_eq!(error.to_string(), "target has shape [2, 1], expected [2], the shape of input");
        let losses = HingeEmbeddingLoss::new().broadcast(true).reduction(Reduction::None).forward(&input, &target);
        assert_eq!(Vec::<Vec<f64>>::try_from(losses).unwrap(), [[0.5, 2.0], [0.5, 0.0]]);
    }

    #[test]
    fn integers_have_a_sum_and_no_mean() {
        let (input, target) = (Tensor::from_slice(&[3_i64, 4]), Tensor::from_slice(&[1.0, 1.0]));
        let error = HingeEmbeddingLoss::new().f_forward(&input, &target).unwrap_err();
        assert_eq!(error.to_string(), "input has kind Int64, expected a floating kind");
        let sum = HingeEmbeddingLoss::new().reduction(Reduction::Sum).forward(&input, &target);
        assert_eq!(sum.int64_value(&[]), 7);
    }

    #[test]
    fn an_integer_has_no_graph() {
        let (input, target) =
            (Tensor::from_slice(&[3_i64, 4]), Tensor::from_slice(&[1.0, 1.0]).set_requires_grad(true));
        for (backend, reduction) in
            [Backend::Auto, Backend::Composite].into_iter().flat_map(|b| [(b, Reduction::Sum), (b, Reduction::None)])
        {
            let criterion = HingeEmbeddingLoss::new().reduction(reduction);
            let loss = with_backend(backend, || criterion.forward(&input, &target));
            assert!(loss.kind() == Kind::Int64 && !loss.requires_grad(), "{backend:?}, {reduction:?}");
        }
    }

    #[test]
    fn half_precision_takes_any_margin() {
        for (backend, size) in [Backend::Auto, Backend::Composite].into_iter().flat_map(|b| [(b, 0), (b, 2)]) {
            let input = Tensor::ones([size], (Kind::Half, Device::Cpu)).set_requires_grad(true);
            let target = -Tensor::ones([size], (Kind::Double, Device::Cpu));
            let criterion = HingeEmbeddingLoss::new().margin(1e5).reduction(Reduction::Sum);
            let loss = with_backend(backend, || criterion.f_forward(&input, &target)).unwrap();
            assert_eq!(
                (loss.kind(), loss.double_value(&[])),
                (Kind::Half, if size == 0 { 0.0 } else { f64::INFINITY })
            );
        }
    }

    #[test]
    fn another_target_gets_both_terms() {
        let (input, target) = (Tensor::from_slice(&[0.25]), Tensor::from_slice(&[0.0]));
        let loss = HingeEmbeddingLoss::new().margin(2.0).forward(&input, &target);
        assert_eq!(f64::try_from(loss).unwrap(), 0.25 + 1.75);
    }
}
