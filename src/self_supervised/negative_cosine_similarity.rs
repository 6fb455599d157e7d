use tch::Tensor;

use super::views;
use crate::autograd::{self, Function, f_gradients_of};
use crate::kernels::{NumberOperations, Real, choose, waits};
use crate::metric::angle::{Angle, AngleLoss};
use crate::numeric::f_widely;
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The negative cosine similarity of a prediction and its target: −1 where they have the same direction.
///
/// For self-supervised learning by prediction of one view from the other, as in SimSiam and BYOL. No gradient may flow
/// through the target, or the representations collapse: pass it detached, and add the loss with the views swapped. For
/// labelled pairs choose [`CosineEmbeddingLoss`](crate::CosineEmbeddingLoss).
///
/// # Formula
///
/// ℓₙ = −Σ aᵢbᵢ / (max(‖a‖, ε) · max(‖b‖, ε))
///
/// where a and b are the vectors of input and target along the given dimension.
///
#[doc = include_str!("../../docs/book/src/gallery/negative_cosine_similarity.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`, or any shape `[*]` that has the dimension `dim`
/// * `target`: `[N, D]` or `[*]`, the same shape
/// * result: scalar, or with [`Reduction::None`] `[N]`, or `[*]` without the dimension `dim`
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `lightly.loss.NegativeCosineSimilarity` of lightly 1.6.0; Chen and He, SimSiam, <https://arxiv.org/abs/2011.10566>.
///
/// # Differences from lightly
///
/// * Arguments of different shapes are an error; lightly broadcasts silently.
/// * A vector of zeros has no direction: its cosine is 0, and so are its first and second derivatives; lightly's
///   gradient there is a quotient by ε.
/// * Half precision is computed in single precision.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a dimension that the input does not have, or an `eps` that is not a number ≥ 0.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, NegativeCosineSimilarity};
///
/// let criterion = NegativeCosineSimilarity::new();
/// let prediction = Tensor::from_slice(&[3.0, 4.0]).view([1, 2]).set_requires_grad(true);
/// let projection = Tensor::from_slice(&[8.0, 6.0]).view([1, 2]).set_requires_grad(true);
///
/// let loss = criterion.f_forward(&prediction, &projection.detach())?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? + 0.96).abs() < 1e-12);
/// assert!(prediction.grad().defined() && !projection.grad().defined());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "SimSiam")]
#[doc(alias = "BYOL")]
#[doc(alias = "cosine_similarity")]
pub struct NegativeCosineSimilarity: "negative_cosine_similarity";

/// The loss with lightly's defaults.
new {
    /// the dimension of the vectors; a negative one counts from the end.
    dim: i64 = 1,
    /// ε, the least norm; smaller ones are raised to it.
    eps: f64 = 1e-8,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl Loss for NegativeCosineSimilarity {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(unreduced);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::not_negative("eps", self.eps)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.f_check_options()?;
        views(("input", input), ("target", target))?;
        let rank = input.dim() as i64;
        let expected = format!("a dimension of input, which has {rank}");
        check::option("dim", self.dim, (-rank..rank).contains(&self.dim), &expected)?;
        check::not_negative("eps", self.eps)?;
        let loss = *self;
        let composite = move |[input, target]: [&Tensor; 2]| loss.f_composite(input, target);
        if self.dim.rem_euclid(rank) != rank - 1 {
            return f_widely([input, target], composite);
        }
        Angle(Formula { eps: self.eps }).f_loss([input, target], self.reduction, composite)
    }
}

impl NegativeCosineSimilarity {
    fn f_composite(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        if waits(input) && input.f_kind()? == target.f_kind()? {
            return Ok(self.reduction.f_apply(&self.f_similarity([input, target])?)?.f_neg()?);
        }
        self.f_of_operations(input, target)
    }

    /// The cosines of vectors, 0 for a vector of zeros, with the gradient as a formula: of a it is, for unit vectors u
    /// and v and up to a factor, (v − u (u · v)) / ‖a‖.
    fn f_similarity(self, arguments: [&Tensor; 2]) -> Result<Tensor, LossError> {
        let dims = [self.dim];
        let [a, b] = arguments.map(Tensor::f_detach);
        let (a, b) = (a?, b?);
        let norms = [a.f_norm_number(2, &dims, true)?, b.f_norm_number(2, &dims, true)?];
        let raised = [norms[0].f_clamp_min_number(self.eps)?, norms[1].f_clamp_min_number(self.eps)?];
        let f_zero = |vectors: &Tensor| vectors.f_eq_number(0)?.f_all_dim(self.dim, true);
        let none = f_zero(&a)?.f_logical_or_(&f_zero(&b)?)?;
        let units = [a.f_div(&raised[0])?, b.f_div(&raised[1])?];
        let cosines =
            units[0].f_mul(&units[1])?.f_sum_dim_intlist(dims.as_slice(), true, None)?.f_zeros_where(&none)?;
        let needed = autograd::needed(&arguments);
        let [a, b] = arguments;
        let saved = [a, b, &units[0], &units[1], &norms[0], &norms[1], &raised[0], &raised[1], &cosines, &none];
        let function = Function::new(&arguments).save(&saved);
        function.f_attach_one(cosines.f_squeeze_dim(self.dim)?, move |context| {
            let (Some(grad), [a, b, units @ .., cosines, none]) = (context.grad(0), context.saved()) else {
                return Ok(vec![None, None]);
            };
            let f_slope = |own: usize, other: usize| {
                let (norm, raised) = (&units[2 + own], &units[4 + own]);
                // The derivative of a norm of 0 is 0, and where it is raised that of the norm.
                let mut of_norm = raised.f_div(norm)?.f_zeros_where(&norm.f_eq_number(0)?)?;
                let mut slope = units[other].f_addcmul(&units[own], &of_norm.f_mul_(cosines)?.f_neg_()?)?;
                slope.f_mul_(&grad.f_unsqueeze(self.dim)?.f_div(raised)?)?.f_zeros_where(none)
            };
            let fused = || {
                let (of_a, of_b) = (needed[0].then(|| f_slope(0, 1)), needed[1].then(|| f_slope(1, 0)));
                Ok(vec![of_a.transpose()?, of_b.transpose()?])
            };
            let unreduced = Self { reduction: Reduction::None, ..self };
            let again = |inputs: &[Tensor]| Ok(unreduced.f_of_operations(&inputs[0], &inputs[1])?.f_neg()?);
            let arguments = [a.shallow_clone(), b.shallow_clone()];
            context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &arguments, &needed))
        })
    }

    /// The loss by operations that can be differentiated again.
    fn f_of_operations(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        // A vector of zeros has no direction. It is replaced by ones here, and its cosine by 0 below.
        let f_zero = |vectors: &Tensor| vectors.f_detach()?.f_eq_number(0)?.f_all_dim(self.dim, true);
        let zero = f_zero(input)?.f_logical_or(&f_zero(target)?)?;
        // Without such vectors nothing is copied, because a copy may have another layout in memory and so another order
        // of the sums. On other devices this is not tested, because it would wait for them.
        if !waits(&zero) && zero.f_any()?.f_int64_value(&[])? == 0 {
            let similarity = Tensor::f_cosine_similarity(input, target, self.dim, self.eps)?;
            return Ok(self.reduction.f_apply(&similarity)?.f_neg()?);
        }
        let [input, target] = [input, target].map(|vectors| vectors.f_masked_fill_number(&zero, 1));
        let similarity = Tensor::f_cosine_similarity(&input?, &target?, self.dim, self.eps)?;
        let similarity = similarity.f_masked_fill_number(&zero.f_squeeze_dim(self.dim)?, 0)?;
        Ok(self.reduction.f_apply(&similarity)?.f_neg()?)
    }
}

#[derive(Clone, Copy)]
struct Formula {
    eps: f64,
}

impl AngleLoss for Formula {
    /// Where a norm is raised to ε the derivative is still that of the norm, as in PyTorch.
    fn loss<R: Real>(self, [product, square_a, square_b]: [R; 3], _: R) -> (R, [R; 3]) {
        let (zero, half, one) = (R::of(0.0), R::of(0.5), R::of(1.0));
        // A vector of zeros has no direction, and its derivatives are 0. With NaN in the other vector the result is
        // NaN.
        let none = (square_a.equal(zero) | square_b.equal(zero)) & product.equal(zero);
        let norms = [square_a, square_b].map(R::sqrt);
        let [raised_a, raised_b] = norms.map(|norm| norm.max(R::of(self.eps)));
        let cosine = product / (raised_a * raised_b);
        let of_square = |norm: R, raised: R| choose(norm.equal(zero), zero, half * cosine / (raised * norm));
        let slopes = [-one / (raised_a * raised_b), of_square(norms[0], raised_a), of_square(norms[1], raised_b)];
        (choose(none, zero, -cosine), slopes.map(|slope| choose(none, zero, slope)))
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn ones(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, tch::kind::FLOAT_CPU)
    }

    #[test]
    fn the_gradient_as_a_formula_is_that_of_the_operations() {
        let a = Tensor::from_slice(&[1.0, -2.0, 0.5, 0.0, 0.0, 0.0, 1e-3, 2e-3, 0.0, 3.0, 1.0, -1.0]).view([4, 3]);
        let b = Tensor::from_slice(&[0.5, 1.0, -2.0, 1.0, 2.0, 3.0, -4.0, 1.0, 0.5, 0.0, 0.0, 0.0]).view([4, 3]);
        for (eps, dim) in [(1e-8, 1), (0.1, 1), (0.0, 1), (1e-8, 0)] {
            let loss = NegativeCosineSimilarity::new().eps(eps).dim(dim).reduction(Reduction::None);
            let derivatives = |formula: bool| {
                let leaves = [&a, &b].map(|tensor| tensor.copy().set_requires_grad(true));
                let [a, b] = &leaves;
                let value = if formula { loss.f_similarity([a, b]) } else { loss.f_of_operations(a, b) }.unwrap();
                let value = if formula { -value } else { value };
                let factors = Tensor::linspace(-1.0, 2.0, value.numel() as i64, (value.kind(), value.device()));
                let first = Tensor::run_backward(&[(&value * factors).sum(None)], &[a, b], true, true);
                let sum = first[0].square().sum(None) + first[1].square().sum(None);
                let second = Tensor::run_backward(&[sum], &[a, b], false, false);
                [value].into_iter().chain(first).chain(second).map(|tensor| tensor.detach()).collect::<Vec<_>>()
            };
            for (actual, expected) in derivatives(true).iter().zip(&derivatives(false)) {
                assert!(actual.allclose(expected, 1e-9, 1e-12, false), "{eps} {dim}: {actual} and not {expected}");
            }
        }
    }

    #[test]
    fn wrong_calls_are_named() {
        for (input, target, message) in [
            (&[4][..], &[4][..], "option dim is 1, expected a dimension of input, which has 1"),
            (&[4, 3], &[1, 3], "target has shape [1, 3], expected [4, 3], the shape of input"),
        ] {
            let error = NegativeCosineSimilarity::new().f_forward(&ones(input), &ones(target)).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn single_vectors_and_other_dimensions_work() {
        let loss = NegativeCosineSimilarity::new().dim(-1);
        assert!((f64::try_from(loss.forward(&ones(&[4]), &ones(&[4]))).unwrap() + 1.0).abs() < 1e-6);
        let loss = NegativeCosineSimilarity::new().dim(0).reduction(Reduction::None);
        assert_eq!(loss.forward(&ones(&[4, 3]), &ones(&[4, 3])).size(), [3]);
    }
}
