use tch::{Kind, Tensor};

use super::same_shape_or_broadcast_in_rank;
use crate::kernels::{self, NumberOperations, Pointwise, Real, choose, f_pointwise};
use crate::mean_parts::f_wide;
use crate::numeric::{f_widely, real};
use crate::{LossError, MeanParts, Reduction, check};

crate::options::options! {
/// The margin ranking loss: of two scores the one that is to rank first should be higher, by a margin.
///
/// For learning to rank from pairs: search results, preferences, recommendations.
///
/// # Formula
///
/// ℓᵢ = max(0, −yᵢ (aᵢ − bᵢ) + Δ)
///
/// where a is the first and b the second input and Δ the margin; the target y is 1 where a should rank higher and −1
/// where b should.
///
#[doc = include_str!("../../docs/book/src/gallery/margin_ranking.svg")]
///
/// # Shapes
///
/// * `input1`: any shape, `[*]`
/// * `input2`, `target`: `[*]`, the same shape
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// # Reference
///
/// `torch.nn.MarginRankingLoss` and `torch.nn.functional.margin_ranking_loss` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// * Arguments of different shapes are an error, unless [`broadcast`](Self::broadcast) allows them; PyTorch broadcasts
///   silently.
/// * A `uint8` target of 1 counts as 1; PyTorch negates it to 255. A Boolean target is an error, as in PyTorch.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Kind`] for booleans
/// and complex numbers, [`LossError::Option`] for a margin that is NaN.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::MarginRankingLoss;
///
/// let clicked = Tensor::from_slice(&[2.0, 0.5]).set_requires_grad(true);
/// let skipped = Tensor::from_slice(&[0.0, 1.0]);
/// let target = Tensor::from_slice(&[1_i64, 1]);
///
/// // (max(0, −2 + 1) + max(0, 0.5 + 1)) / 2
/// let loss = MarginRankingLoss::new().margin(1.0).f_forward(&clicked, &skipped, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 0.75);
/// assert_eq!(Vec::<f64>::try_from(clicked.grad())?, [0.0, -0.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.MarginRankingLoss")]
#[doc(alias = "margin_ranking_loss")]
#[doc(alias = "pairwise ranking")]
pub struct MarginRankingLoss;

/// The margin ranking loss with PyTorch's defaults.
new {
    /// the difference of the scores from which on a pair has a loss of 0.
    margin: f64 = 0.0,
    /// whether the arguments may differ in shape and are broadcast against each other; they still need the same number
    /// of dimensions.
    broadcast: bool = false,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl MarginRankingLoss {
    /// Computes the loss, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(&self, input1: &Tensor, input2: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let first = ("input1", input1);
        check::number("margin", self.margin)?;
        check::devices(&[first, ("input2", input2), ("target", target)])?;
        for argument in [first, ("input2", input2), ("target", target)] {
            check::not_boolean(argument)?;
            real(argument)?;
        }
        same_shape_or_broadcast_in_rank(("input2", input2), first, self.broadcast)?;
        same_shape_or_broadcast_in_rank(("target", target), first, self.broadcast)?;
        if target.f_kind()? == Kind::Uint8 {
            return self.f_aten(input1, input2, &target.f_to_kind(Kind::Int16)?);
        }
        self.f_aten(input1, input2, target)
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

    fn f_aten(&self, input1: &Tensor, input2: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let (margin, reduction) = (self.margin, self.reduction);
        let composite = move |[input1, input2, target]: [&Tensor; 3]| {
            f_widely([input1, input2, target], |[input1, input2, target]| {
                let target = f_negatable(target)?;
                Ok(Tensor::f_margin_ranking_loss(input1, input2, &target, margin, reduction.into())?)
            })
        };
        match kernels::f_beside(input1, target)? {
            Some(target) => f_pointwise(Formula { margin }, [input1, input2, &target], reduction, composite),
            None => composite([input1, input2, target]),
        }
    }
}

/// A target that libtorch can negate: the least integer of a kind has no negative in it.
fn f_negatable(target: &Tensor) -> Result<Tensor, LossError> {
    if target.is_floating_point() {
        return Ok(target.shallow_clone());
    }
    Ok(target.f_to_kind(Kind::Int64)?.f_clamp_min_number(-i64::MAX)?)
}

#[derive(Clone, Copy)]
struct Formula {
    margin: f64,
}

impl Pointwise<3> for Formula {
    #[inline(always)]
    fn evaluate<R: Real>(self, [a, b, y]: [R; 3]) -> (R, [R; 3]) {
        let zero = R::of(0.0);
        let difference = a - b;
        let short = R::of(self.margin) - y * difference;
        // As products, so that NaN and infinity have the same effect as in PyTorch.
        let open = choose(short.greater_equal(zero), R::of(1.0), zero);
        (short.at_least(zero), [-(open * y), open * y, -(open * difference)])
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn ones(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn the_least_integer_of_a_kind_is_negative() {
        let targets =
            [Tensor::from_slice(&[i64::MIN]), Tensor::from_slice(&[i32::MIN]), Tensor::from_slice(&[i8::MIN])];
        for backend in [crate::Backend::Auto, crate::Backend::Composite] {
            for (target, expected) in targets.iter().zip([-(i64::MIN as f64), -f64::from(i32::MIN), 128.0]) {
                let (two, one) = (Tensor::from_slice(&[2.0_f32]), Tensor::from_slice(&[1.0_f32]));
                let loss = crate::with_backend(backend, || MarginRankingLoss::new().forward(&two, &one, target));
                assert_eq!(loss.double_value(&[]), expected, "{backend:?}");
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let error = MarginRankingLoss::new().f_forward(&ones(&[3]), &ones(&[1]), &ones(&[3])).unwrap_err();
        assert_eq!(error.to_string(), "input2 has shape [1], expected [3], the shape of input1");
        let error = MarginRankingLoss::new().f_forward(&ones(&[3]), &ones(&[3]), &ones(&[])).unwrap_err();
        assert_eq!(error.to_string(), "target has shape [], expected [3], the shape of input1");
    }

    #[test]
    fn broadcasting_keeps_the_number_of_dimensions() {
        let loss = MarginRankingLoss::new().broadcast(true).reduction(Reduction::None);
        assert_eq!(loss.forward(&ones(&[3, 1]), &ones(&[1, 4]), &ones(&[3, 4])).size(), [3, 4]);
        let error = loss.f_forward(&ones(&[3]), &ones(&[3]), &ones(&[])).unwrap_err();
        assert_eq!(error.to_string(), "target has shape [], expected 1 dimensions, as many as input1");
    }

    #[test]
    fn an_unsigned_target_is_a_number() {
        let (higher, lower) = (Tensor::from_slice(&[3.0]), Tensor::from_slice(&[1.0]));
        let loss = MarginRankingLoss::new().margin(5.0).forward(&higher, &lower, &Tensor::from_slice(&[1_u8]));
        assert_eq!(f64::try_from(loss).unwrap(), 3.0);
    }
}
