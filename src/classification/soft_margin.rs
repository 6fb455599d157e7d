use tch::Tensor;

use crate::kernels::{self, NumberOperations, Pointwise, Real, f_pointwise, sigmoids};
use crate::numeric::{f_reals, result_kind, wide_kind};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The soft margin loss: the logistic loss of a score whose label is 1 or −1.
///
/// It is [`BceWithLogitsLoss`](crate::BceWithLogitsLoss) for labels of 1 and −1 in place of 1 and 0: choose it where
/// the labels come like that, as from a support vector machine.
///
/// # Formula
///
/// ℓᵢ = log(1 + exp(−yᵢ xᵢ))
///
/// where x is the input and y the target.
///
#[doc = include_str!("../../docs/book/src/gallery/soft_margin.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`
/// * `target`: `[*]`, the same shape, with values 1 and −1, of any kind, used in the input's
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.SoftMarginLoss` and `torch.nn.functional.soft_margin_loss` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// * A score far on the wrong side has its right loss and gradient; PyTorch's exponential overflows there, from a
///   margin of −89 in `f32`, and gives an infinite loss with a NaN gradient.
/// * A target of another shape is an error, unless [`broadcast`](Self::broadcast) allows it; PyTorch broadcasts it to
///   the input's silently.
/// * The target may require a gradient.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Kind`] for an input that is not of a floating kind,
/// [`LossError::Device`] where devices differ.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, Reduction, SoftMarginLoss};
///
/// let input = Tensor::from_slice(&[0.0, -1000.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1.0, 1.0]);
///
/// let loss = SoftMarginLoss::new().reduction(Reduction::Sum).f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - (1000.0 + 2_f64.ln())).abs() < 1e-12);
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [-0.5, -1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.SoftMarginLoss")]
#[doc(alias = "soft_margin_loss")]
pub struct SoftMarginLoss: "soft_margin";

/// The soft margin loss with PyTorch's defaults.
new {
    /// whether input and target may differ in shape and are broadcast against each other.
    broadcast: bool = false,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl Loss for SoftMarginLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(sum);

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        check::same_shape_or_broadcast(("target", target), ("input", input), self.broadcast)?;
        let (reduction, kind, wide) = (self.reduction, result_kind(input)?, wide_kind(input)?);
        // Integer labels become single precision at least, because half precision cannot represent all of them.
        let labels = match kernels::f_beside(input, target)? {
            Some(labels) => labels,
            None => f_reals(("target", target), wide)?,
        };
        f_pointwise(Formula, [input, &labels], reduction, move |[input, target]| {
            let margins = target.f_to_kind(wide)?.f_mul(&input.f_to_kind(wide)?)?;
            let reduced = reduction.f_apply(&margins.f_log_sigmoid()?)?;
            // Subtracted from 0, because a negation would turn a loss of 0 into −0.
            Ok(reduced.f_rsub_number(0)?.f_to_kind(kind)?)
        })
    }
}

#[derive(Clone, Copy)]
struct Formula;

impl Pointwise<2> for Formula {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let margin = x * y;
        let (_, q, log) = sigmoids(margin);
        (log + (-margin).at_least(R::of(0.0)), [-(q * y), -(q * x)])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::{Backend, with_backend};

    #[test]
    fn large_margins_do_not_overflow() {
        for kind in [Kind::Float, Kind::Double] {
            let input = Tensor::from_slice(&[-1000.0, 1000.0, 1000.0]).to_kind(kind).set_requires_grad(true);
            let target = Tensor::from_slice(&[1_i64, -1, 1]);
            let loss = SoftMarginLoss::new().reduction(Reduction::None).f_forward(&input, &target).unwrap();
            loss.sum(None).backward();
            assert_eq!(Vec::<f64>::try_from(&loss.to_kind(Kind::Double)).unwrap(), [1000.0, 1000.0, 0.0]);
            assert_eq!(Vec::<f64>::try_from(&input.grad().to_kind(Kind::Double)).unwrap(), [-1.0, 1.0, 0.0]);
        }
    }

    #[test]
    fn a_loss_of_zero_has_no_sign() {
        let (input, target) = (Tensor::from_slice(&[1000.0]), Tensor::from_slice(&[1.0]));
        let loss = SoftMarginLoss::new().forward(&input, &target).double_value(&[]);
        assert!(loss == 0.0 && loss.is_sign_positive());
    }

    #[test]
    fn broadcasting_is_asked_for() {
        let input = Tensor::from_slice(&[0.0, 1.0, 2.0, 3.0]).view([2, 2]);
        let target = Tensor::from_slice(&[1.0, -1.0]);
        let error = SoftMarginLoss::new().f_forward(&input, &target).unwrap_err();
        assert_eq!(error.to_string(), "target has shape [2], expected [2, 2], the shape of input");
        let loss = SoftMarginLoss::new().broadcast(true).f_forward(&input, &target).unwrap();
        assert_eq!(loss, SoftMarginLoss::new().forward(&input, &target.expand_as(&input)));
    }

    #[test]
    fn the_input_has_a_floating_kind() {
        let input = Tensor::from_slice(&[1_i64]);
        let error = SoftMarginLoss::new().f_forward(&input, &input).unwrap_err();
        assert_eq!(error.to_string(), "input has kind Int64, expected a floating kind");
    }

    #[test]
    fn half_precision_takes_any_integer() {
        let target = Tensor::from_slice(&[i32::MIN, 0]);
        for backend in [Backend::Auto, Backend::Composite] {
            let input = Tensor::from_slice(&[-0.0, 65504.0]).to_kind(Kind::Half).set_requires_grad(true);
            let loss = with_backend(backend, || SoftMarginLoss::new().forward(&input, &target));
            loss.backward();
            assert_eq!((loss.kind(), loss.double_value(&[])), (Kind::Half, f64::from(half::f16::from_f64(2_f64.ln()))));
            let slopes = Vec::<f64>::try_from(input.grad().to_kind(Kind::Double)).unwrap();
            assert_eq!(slopes, [f64::INFINITY, 0.0], "{backend:?}");
        }
    }
}
