use std::f64::consts::PI;

use tch::{TchError, Tensor};

use super::class_vectors::{Angles, OwnSoftmax, owned, passed_in};
use super::{EmbeddingPairs, EmbeddingReduction};
use crate::autograd::{self, Function, f_gradients_of};
use crate::kernels::{Embedding, NumberOperations, Real, choose, f_embedding};
use crate::{LossError, Reduction, check};

crate::options::options! {
/// ArcFace, an additive angular margin, with weights that are passed in: [`ArcFaceLoss`] without parameters of its own,
/// and its options.
///
/// For weights that are shared, kept elsewhere or partly frozen. Where the loss may own them choose [`ArcFaceLoss`].
///
/// # Formula
///
/// ℓₙ = −log (exp(s f(θₙᵧ)) / (exp(s f(θₙᵧ)) + Σ_c≠y exp(s cos θₙ_c)))
///
/// f(θ) = cos(θ + m) where θ ≤ π − m, and cos θ − m sin m otherwise
///
/// where θₙ_c is the angle between the embedding n and the weight of the class c, the nearest one of several, y is the
/// class of the embedding, m the margin and s the scale.
///
#[doc = include_str!("../../docs/book/src/gallery/arc_face.svg")]
///
/// # Shapes
///
/// * `input`: embeddings `[N, D]`
/// * `weight`: `[D, C]`, or `[D, C · K]` for K sub-centres, those of a class side by side
/// * `target`: classes `[N]`, of any integer kind
/// * result: scalar, or `[N]` with [`EmbeddingReduction::None`]
///
/// # Reference
///
/// `ArcFaceLoss` and `SubCenterArcFaceLoss` of `pytorch_metric_learning.losses` 2.9.0; Deng et al., ArcFace,
/// <https://arxiv.org/abs/1801.07698>; Deng et al., Sub-center ArcFace, 2020.
///
/// # Differences from pytorch-metric-learning
///
/// * The gradient of an embedding that points where the weight of its class does, or away from it, is finite; there it
///   is NaN. Angles near 0 and π keep the digits that their cosines have lost.
/// * Half precision is computed in single precision.
/// * Classes may be of any integer kind.
/// * Over no embeddings at all the mean is 0; there it is NaN.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a margin outside \[0, 180\], a scale that
/// is not finite or no sub-centres.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::ArcFace;
///
/// let embeddings = Tensor::from_slice(&[2.0, 0.0, 0.0, 3.0]).view([2, 2]).set_requires_grad(true);
/// let weight = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0]).view([2, 2]);
/// let classes = Tensor::from_slice(&[0_i64, 1]);
///
/// // Each embedding points where its class does: cos(0° + 60°) against cos 90°.
/// let loss = ArcFace::new().margin(60.0).scale(1.0).f_forward(&embeddings, &weight, &classes)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (-0.5_f64).exp().ln_1p()).abs() < 1e-12);
/// assert!(bool::try_from(embeddings.grad().isfinite().all())?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
pub struct ArcFace;

/// The defaults of pytorch-metric-learning.
new {
    /// the margin in degrees, in \[0, 180\]: half a radian by default.
    margin: f64 = 28.6,
    /// the scale of the logits, the inverse of a temperature.
    scale: f64 = 64.0,
    /// how many weights a class has, of which the nearest counts: noisy labels and other modes of a class gather around
    /// weights of their own. 3 is usual.
    sub_centers: i64 = 1,
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::Mean,
}
}

impl ArcFace {
    passed_in!(weight);

    fn f_loss(
        &self,
        input: &Tensor,
        weight: &Tensor,
        target: &Tensor,
        pairs: Option<&EmbeddingPairs>,
    ) -> Result<Tensor, LossError> {
        self.f_check()?;
        let angles = Angles::f_new(input, weight, target, self.sub_centers, pairs)?;
        let [embeddings, own] = angles.f_own_vectors()?;
        let moved = Moved { margin: self.margin.to_radians() };
        let composite = move |[a, b]: [&Tensor; 2]| moved.f_cosines(a, b);
        let own = f_embedding(moved, [&embeddings, &own], Reduction::None, composite)?;
        let softmax = OwnSoftmax { scale: self.scale, margin: 0.0 };
        angles.f_loss(softmax, Some(&own), self.reduction)
    }

    fn f_check(&self) -> Result<(), LossError> {
        let (margin, sub_centers) = (self.margin, self.sub_centers);
        check::option("margin", margin, (0.0..=180.0).contains(&margin), "a number in [0, 180]")?;
        check::finite("scale", self.scale)?;
        check::option("sub_centers", sub_centers, sub_centers > 0, "a number > 0")
    }
}

/// The cosine of the angle of two unit vectors and a margin.
///
/// The angle is 2 atan2(‖a − b‖, ‖a + b‖): near 0 and π it keeps the digits that the cosine has lost, and its gradient
/// is finite.
#[derive(Clone, Copy)]
struct Moved {
    /// In radians.
    margin: f64,
}

impl Moved {
    /// The cosines of rows, with their derivatives as a formula, which is half of the operations.
    fn f_cosines(self, a: &Tensor, b: &Tensor) -> Result<Tensor, LossError> {
        let arguments = [a, b];
        let needed = autograd::needed(&arguments);
        let Parts { sides: [difference, sum], lengths: [apart, together], angles, cosines } =
            self.f_parts(&a.f_detach()?, &b.f_detach()?)?;
        let saved = [a, b, &difference, &sum, &apart, &together, &angles];
        Function::new(&arguments).save(&saved).f_attach_one(cosines, move |context| {
            let (Some(grad), [a, b, difference, sum, apart, together, angles]) = (context.grad(0), context.saved())
            else {
                return Ok(vec![None, None]);
            };
            let fused = || {
                let squares = apart.f_square()?.f_addcmul(together, together)?;
                let slopes = angles.f_sin()?.f_mul(&grad)?.f_mul_number_(-2)?.f_div_(&squares)?;
                // The gradient of a length of 0 is 0.
                let f_along = |side: &Tensor, own: &Tensor, other: &Tensor| {
                    side.f_mul(&slopes.f_mul(other)?.f_div_(own)?.f_zeros_up_to(0, own)?.f_unsqueeze(1)?)
                };
                let (apart, together) = (f_along(difference, apart, together)?, f_along(sum, together, apart)?);
                let of_a = needed[0].then(|| apart.f_sub(&together)).transpose()?;
                let of_b = needed[1].then(|| apart.f_add(&together)?.f_neg()).transpose()?;
                Ok(vec![of_a, of_b])
            };
            let again = |inputs: &[Tensor]| Ok(self.f_parts(&inputs[0], &inputs[1])?.cosines);
            let arguments = [a.shallow_clone(), b.shallow_clone()];
            context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &arguments, &needed))
        })
    }

    fn f_parts(self, a: &Tensor, b: &Tensor) -> Result<Parts, TchError> {
        let sides = [a.f_sub(b)?, a.f_add(b)?];
        let norm = |rows: &Tensor| rows.f_norm_number(2, [1_i64].as_slice(), false);
        let lengths = [norm(&sides[0])?, norm(&sides[1])?];
        let angles = lengths[0].f_atan2(&lengths[1])?.f_mul_number(2)?;
        // With the margin the angle is beyond π, where the cosine rises again.
        let counts = angles.f_le_number(PI - self.margin)?;
        let angles = angles.f_add_number(self.margin)?.f_where_self(&counts, &angles)?;
        let cosines = angles.f_cos()?;
        let lowered = cosines.f_sub_number(self.margin * self.margin.sin())?;
        Ok(Parts { sides, lengths, angles, cosines: cosines.f_where_self(&counts, &lowered)? })
    }
}

/// What the moved cosines of rows are made of.
struct Parts {
    /// a − b and a + b
    sides: [Tensor; 2],
    /// Their lengths.
    lengths: [Tensor; 2],
    /// Whose cosine counts.
    angles: Tensor,
    cosines: Tensor,
}

impl Embedding<2, 2> for Moved {
    #[inline(always)]
    fn add<R: Real>(self, [a, b]: [R; 2], [apart, together]: [R; 2]) -> [R; 2] {
        let (difference, sum) = (a - b, a + b);
        [difference.mul_add(difference, apart), sum.mul_add(sum, together)]
    }

    /// Of the angle 2 atan2(‖a − b‖, ‖a + b‖) cosine and sine alone matter, which are rational in the lengths.
    fn loss<R: Real>(self, squares: [R; 2], _: R) -> (R, [R; 2]) {
        let (zero, two) = (R::of(0.0), R::of(2.0));
        let [apart, together] = squares.map(R::sqrt);
        let sum = squares[0] + squares[1];
        let nothing = sum.equal(zero);
        let cosine = choose(nothing, R::of(1.0), (squares[1] - squares[0]) / sum);
        let sine = choose(nothing, zero, two * apart * together / sum);
        let [of_sine, of_cosine] = [self.margin.sin(), self.margin.cos()].map(R::of);
        let moved = [cosine * of_cosine - sine * of_sine, sine * of_cosine + cosine * of_sine];
        let lowered = [cosine - R::of(self.margin * self.margin.sin()), sine];
        // Up to π, and so as long as its sine is positive, the moved angle counts.
        let counts = moved[1].greater_equal(zero);
        let [cosine, sine] = [0, 1].map(|k: usize| choose(counts, moved[k], lowered[k]));
        // The gradient of a length of 0 is 0.
        let over = |a: R, b: R| choose(b.equal(zero), zero, a / (b * sum));
        (cosine, [-sine * over(together, apart), sine * over(apart, together)])
    }

    #[inline(always)]
    fn derive<R: Real>(self, [a, b]: [R; 2], [of_apart, of_together]: [R; 2]) -> [R; 2] {
        let (difference, sum) = ((a - b) * of_apart * R::of(2.0), (a + b) * of_together * R::of(2.0));
        [difference + sum, sum - difference]
    }
}

owned! {
/// ArcFace: classification by angles, with a margin that each embedding must leave to the other classes.
///
/// For recognition of faces, products, landmarks: trained as a classifier, used without its weights, by the angles
/// between embeddings. The margin is the same at all angles; that of [`CosFaceLoss`](crate::CosFaceLoss) is one of
/// cosines. With noisy labels, or classes of several modes, set [`sub_centers`](ArcFace::sub_centers), which makes it
/// the sub-centre ArcFace. Where there are so many classes that a weight for each is too much, choose
/// [`NtXentLoss`](crate::NtXentLoss) or another loss of pairs.
///
/// # Formula
///
/// loss = [`ArcFace`](x, W, y)
///
/// where x is the input, y the target and W the weights of the classes.
///
#[doc = include_str!("../../docs/book/src/gallery/arc_face.svg")]
///
/// # Shapes
///
/// * `input`: embeddings `[N, D]`
/// * `target`: classes `[N]`, of any integer kind
/// * result: scalar, or `[N]` with [`EmbeddingReduction::None`]
///
/// The variable on the path is `W`, `[D, C · K]`, the name of the state dict of pytorch-metric-learning. Its initial
/// values are normal.
///
/// # Reference
///
/// `ArcFaceLoss` and `SubCenterArcFaceLoss` of `pytorch_metric_learning.losses` 2.9.0.
///
/// # Differences from pytorch-metric-learning
///
/// Those of [`ArcFace`].
///
/// # Errors
///
/// Those of [`ArcFace`], and [`LossError::Option`] for a number of classes or features that is not positive.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor, nn};
/// use tch_losses::{ArcFace, ArcFaceLoss, Loss};
///
/// let vs = nn::VarStore::new(Device::Cpu);
/// let criterion = ArcFaceLoss::f_new(vs.root() / "head", 10, 16, ArcFace::new().sub_centers(3))?;
/// assert_eq!(vs.variables()["head.W"].size(), [16, 30]);
///
/// let embeddings = Tensor::randn([4, 16], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let loss = criterion.f_forward(&embeddings, &Tensor::from_slice(&[0_i64, 9, 3, 3]))?;
/// loss.f_backward()?;
/// assert!(criterion.weight().grad().defined());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "SubCenterArcFaceLoss")]
pub struct ArcFaceLoss of arc_face: ArcFace;

/// The weights of the classes.
weight: "W",
    |[classes, features]| ([features, classes.saturating_mul(arc_face.sub_centers)], 1.0);
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::random::randn;

    #[test]
    fn wrong_calls_are_named() {
        let (x, weight, classes) = (randn([3, 4]), randn([4, 6]), Tensor::from_slice(&[0_i64, 5, 6]));
        let of_two = ArcFace::new().sub_centers(2);
        for (loss, weight, target, message) in [
            (ArcFace::new(), &weight, &classes, "target holds 6, expected classes in [0, 6)"),
            (of_two, &weight, &classes, "target holds 5, expected classes in [0, 3)"),
            (ArcFace::new(), &x, &classes, "weight has shape [3, 4], expected [4, C], one column for each class"),
            (of_two.sub_centers(4), &weight, &classes, {
                "weight has shape [4, 6], expected [4, 4 C], 4 columns for each class"
            }),
            (ArcFace::new(), &weight, &x, "target has shape [3, 4], expected [3], one label for each of input"),
            (ArcFace::new().margin(-1.0), &weight, &classes, "option margin is -1, expected a number in [0, 180]"),
            (ArcFace::new().sub_centers(0), &weight, &classes, "option sub_centers is 0, expected a number > 0"),
        ] {
            assert_eq!(loss.f_forward(&x, weight, target).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn saturated_angles_have_finite_gradients() {
        let weight = randn([4, 3]);
        for (sign, kind) in [1.0, -1.0].into_iter().flat_map(|sign| [Kind::Double, Kind::Float].map(|k| (sign, k))) {
            let input = (weight.transpose(0, 1) * (2.0 * sign)).to_kind(kind).detach().set_requires_grad(true);
            let weight = weight.to_kind(kind).detach().set_requires_grad(true);
            let classes = Tensor::arange(3, (Kind::Int64, Device::Cpu));
            let loss = ArcFace::new().reduction(EmbeddingReduction::None).forward(&input, &weight, &classes);
            loss.sum(Kind::Double).backward();
            for tensor in [&loss, &input.grad(), &weight.grad()] {
                assert!(bool::try_from(tensor.isfinite().all()).unwrap(), "{sign}, {kind:?}: {tensor}");
            }
        }
    }

    #[test]
    fn small_angles_keep_their_digits() {
        // In single precision the cosine of 10⁻⁴ is off by more than half of its distance from 1.
        let input = Tensor::from_slice(&[1.0_f32, 1e-4]).view([1, 2]);
        let weight = Tensor::from_slice(&[1.0_f32, 0.0, 0.0, 1.0]).view([2, 2]);
        let (single, double) = (ArcFace::new().scale(1.0), |tensor: &Tensor| tensor.to_kind(Kind::Double));
        let classes = Tensor::from_slice(&[0_i64]);
        let expected = single.forward(&double(&input), &double(&weight), &classes);
        let loss = single.forward(&input, &weight, &classes);
        assert!((f64::try_from(loss).unwrap() - f64::try_from(expected).unwrap()).abs() < 1e-7);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (x, weight, classes) = (randn([4, 3]), randn([3, 6]), Tensor::from_slice(&[0_i64, 2, 1, 1]));
        for sub_centers in [1, 2] {
            let loss = ArcFace::new().scale(4.0).sub_centers(sub_centers);
            crate::numeric::assert_gradient(&x, |x| loss.forward(x, &weight, &classes));
            crate::numeric::assert_gradient(&weight, |weight| loss.forward(&x, weight, &classes));
        }
    }
}
