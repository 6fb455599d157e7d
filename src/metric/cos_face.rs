use tch::Tensor;

use super::class_vectors::{Classified, OwnSoftmax, owned, passed_in};
use super::pairs::CountedAs;
use super::{EmbeddingDistance, EmbeddingPairs, EmbeddingReduction};
use crate::{LossError, check};

crate::options::options! {
/// CosFace, a margin of cosines, with weights that are passed in: [`CosFaceLoss`] without parameters of its own, and
/// its options.
///
/// For weights that are shared, kept elsewhere or partly frozen. Where the loss may own them choose [`CosFaceLoss`].
///
/// # Formula
///
/// ℓₙ = −log (exp(s (cos θₙᵧ − m)) / (exp(s (cos θₙᵧ − m)) + Σ_c≠y exp(s cos θₙ_c)))
///
/// where θₙ_c is the angle between the embedding n and the weight of the class c, y is the class of the embedding, m
/// the margin and s the scale.
///
#[doc = include_str!("../../docs/book/src/gallery/cos_face.svg")]
///
/// # Shapes
///
/// * `input`: embeddings `[N, D]`
/// * `weight`: `[D, C]`
/// * `target`: classes `[N]`, of any integer kind
/// * result: scalar, or `[N]` with [`EmbeddingReduction::None`]
///
/// # Reference
///
/// `pytorch_metric_learning.losses.CosFaceLoss` 2.9.0; Wang et al., CosFace, <https://arxiv.org/abs/1801.09414>.
///
/// # Differences from pytorch-metric-learning
///
/// * Half precision is computed in single precision.
/// * Classes may be of any integer kind.
/// * Over no embeddings at all the mean is 0; there it is NaN.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a margin or scale that is not finite.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::CosFace;
///
/// let embeddings = Tensor::from_slice(&[2.0, 0.0, 0.0, 3.0]).view([2, 2]).set_requires_grad(true);
/// let weight = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0]).view([2, 2]);
/// let classes = Tensor::from_slice(&[0_i64, 1]);
///
/// // Each embedding points where its class does: 1 − 0.35 against cos 90°.
/// let loss = CosFace::new().scale(1.0).f_forward(&embeddings, &weight, &classes)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (-0.65_f64).exp().ln_1p()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
pub struct CosFace;

/// The defaults of pytorch-metric-learning.
new {
    /// by how much the cosine with the own class must be larger.
    margin: f64 = 0.35,
    /// the scale of the logits, the inverse of a temperature.
    scale: f64 = 64.0,
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::Mean,
}
}

impl CosFace {
    passed_in!(weight);

    fn f_loss(
        &self,
        input: &Tensor,
        weight: &Tensor,
        target: &Tensor,
        pairs: Option<&EmbeddingPairs>,
    ) -> Result<Tensor, LossError> {
        self.f_check()?;
        let softmax = OwnSoftmax { scale: self.scale, margin: self.margin };
        let batch = Classified::f_of_weight(input, weight, target, 1)?.f_weighted(pairs, CountedAs::Any)?;
        batch.f_cross_entropy_of(EmbeddingDistance::cosine(), softmax, self.reduction)
    }

    fn f_check(&self) -> Result<(), LossError> {
        check::finite("margin", self.margin)?;
        check::finite("scale", self.scale)
    }
}

owned! {
/// CosFace: classification by cosines, with a margin that each embedding must leave to the other classes.
///
/// For recognition of faces, products, landmarks, as [`ArcFaceLoss`](crate::ArcFaceLoss). A margin of cosines is a
/// smaller margin of the angle where the angle is near 90°, and a larger one where it is near 0° or 180°. It is easier
/// to train.
///
/// # Formula
///
/// loss = [`CosFace`](x, W, y)
///
/// where x is the input, y the target and W the weights of the classes.
///
#[doc = include_str!("../../docs/book/src/gallery/cos_face.svg")]
///
/// # Shapes
///
/// * `input`: embeddings `[N, D]`
/// * `target`: classes `[N]`, of any integer kind
/// * result: scalar, or `[N]` with [`EmbeddingReduction::None`]
///
/// The variable on the path is `W`, `[D, C]`, the name of the state dict of pytorch-metric-learning. Its initial values
/// are normal.
///
/// # Reference
///
/// `pytorch_metric_learning.losses.CosFaceLoss` 2.9.0.
///
/// # Differences from pytorch-metric-learning
///
/// Those of [`CosFace`].
///
/// # Errors
///
/// Those of [`CosFace`], and [`LossError::Option`] for a number of classes or features that is not positive.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor, nn};
/// use tch_losses::{CosFace, CosFaceLoss, Loss};
///
/// let vs = nn::VarStore::new(Device::Cpu);
/// let criterion = CosFaceLoss::f_new(vs.root() / "head", 10, 16, CosFace::new().margin(0.2))?;
/// assert_eq!(vs.variables()["head.W"].size(), [16, 10]);
///
/// let embeddings = Tensor::randn([4, 16], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let loss = criterion.f_forward(&embeddings, &Tensor::from_slice(&[0_i64, 9, 3, 3]))?;
/// loss.f_backward()?;
/// assert!(criterion.weight().grad().defined());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CosFaceLoss of cos_face: CosFace;

/// The weights of the classes.
weight: "W", |[classes, features]| ([features, classes], 1.0);
}

#[cfg(test)]
mod tests {
    use tch::{Device, nn};

    use super::*;
    use crate::ArcFace;
    use crate::random::randn;

    #[test]
    fn wrong_calls_are_named() {
        let (x, weight, classes) = (randn([2, 4]), randn([4, 6]), Tensor::from_slice(&[0_i64, -1]));
        let error = CosFace::new().f_forward(&x, &weight, &classes).unwrap_err();
        assert_eq!(error.to_string(), "target holds -1, expected classes in [0, 6)");
        let error = CosFace::new().margin(f64::NAN).f_forward(&x, &weight, &classes).unwrap_err();
        assert_eq!(error.to_string(), "option margin is NaN, expected a finite number");
        let vs = nn::VarStore::new(Device::Cpu);
        let error = CosFaceLoss::f_new(vs.root(), 0, 4, CosFace::new()).unwrap_err();
        assert_eq!(error.to_string(), "option num_classes is 0, expected a number > 0");
    }

    #[test]
    fn without_a_margin_it_is_arcface_without_one() {
        let (x, weight, classes) = (randn([3, 4]), randn([4, 6]), Tensor::from_slice(&[0_i64, 5, 2]));
        let cos = CosFace::new().margin(0.0).forward(&x, &weight, &classes);
        let arc = ArcFace::new().margin(0.0).forward(&x, &weight, &classes);
        assert!(f64::try_from(cos - arc).unwrap().abs() < 1e-12);
    }
}
