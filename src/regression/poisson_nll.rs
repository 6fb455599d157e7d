use std::f64::consts::PI;

use tch::Tensor;

use super::f_not_negative;
use crate::check::{self, Validity};
use crate::kernels::{self, Expected, Pointwise, Real, choose, f_pointwise, is_not_negative};
use crate::numeric::{f_subtractable, f_widely, real};
use crate::{InvalidValues, Loss, LossError, Reduction};

crate::options::options! {
/// The Poisson negative log-likelihood: how unlikely a predicted rate makes each count.
///
/// For regression of counts: visits, photons, word occurrences. By default the input is the logarithm of the expected
/// count, which keeps the count positive without a constraint.
///
/// # Formula
///
/// ℓᵢ = exp(xᵢ) − yᵢ xᵢ, or xᵢ − yᵢ log(xᵢ + ε) where the input is not a logarithm
///
/// where x is the input, y the target and ε a small number that keeps the logarithm finite. The term log(yᵢ!) is left
/// out: it does not depend on the input. The full loss adds Stirling's approximation of it,
/// yᵢ log yᵢ − yᵢ + ½ log(2π yᵢ), where yᵢ > 1.
///
#[doc = include_str!("../../docs/book/src/gallery/poisson_nll.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`
/// * `target`: `[*]`, the same shape
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.PoissonNLLLoss` and `torch.nn.functional.poisson_nll_loss` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// * A target of another shape is an error, unless [`broadcast`](Self::broadcast) allows it; PyTorch broadcasts
///   silently.
/// * A negative rate is an error; PyTorch returns NaN, as [`invalid_values`](Self::invalid_values) has it too.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Kind`] for Booleans
/// as input and for complex numbers, [`LossError::Value`] for a negative rate,
/// [`LossError::Option`] for an `eps` that is NaN.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, PoissonNllLoss};
///
/// let log_rate = Tensor::from_slice(&[0.0, 0.0]).set_requires_grad(true);
/// let counts = Tensor::from_slice(&[1.0, 3.0]);
///
/// let loss = PoissonNllLoss::new().f_forward(&log_rate, &counts)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 1.0);
/// assert_eq!(Vec::<f64>::try_from(log_rate.grad())?, [0.0, -1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy)]
#[doc(alias = "nn.PoissonNLLLoss")]
#[doc(alias = "poisson_nll_loss")]
pub struct PoissonNllLoss: "poisson_nll";

/// The Poisson loss with PyTorch's defaults.
new {
    /// whether the input is the logarithm of the expected count, rather than that count.
    log_input: bool = true,
    /// whether to add Stirling's approximation of log(yᵢ!).
    full: bool = false,
    /// ε, which is added to an input that is not a logarithm before its logarithm is taken.
    eps: f64 = 1e-8,
    /// whether input and target may differ in shape and are broadcast against each other.
    broadcast: bool = false,
    /// what a negative rate does, where the input holds rates.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl Loss for PoissonNllLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(sum);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::number("eps", self.eps)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::devices(&[("input", input), ("target", target)])?;
        self.f_check_options()?;
        check::same_shape_or_broadcast(("target", target), ("input", input), self.broadcast)?;
        check::not_boolean(("input", input))?;
        real(("input", input))?;
        real(("target", target))?;
        let Self { log_input, full, eps, reduction, .. } = *self;
        let loss = *self;
        let composite = move |arguments: [&Tensor; 2]| f_widely(arguments, |[x, y]| loss.f_composite(x, y));
        let left = !log_input && kernels::leaves_partial(input, self.invalid_values);
        // The derivative for a target of 0 is to be the one of PyTorch's operations.
        if full && target.requires_grad() || left {
            return composite([input, target]);
        }
        f_pointwise(Formula { log_input, full, eps }, [input, target], reduction, composite)
    }
}

impl PoissonNllLoss {
    fn f_composite(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let (log_input, unreduced) = (self.log_input, self.reduction == Reduction::None);
        let mut validity = match log_input {
            true => Validity::CHECKED,
            false => f_not_negative(("input", input), RATES, self.invalid_values)?,
        };
        let input = validity.f_replace(input, 1.0)?;
        let target = f_subtractable(target, &input)?;
        let loss = input.f_poisson_nll_loss(&target, log_input, self.full, self.eps, self.reduction.into())?;
        validity.f_poison_own(loss, unreduced)
    }
}

/// What an input of rates is.
const RATES: &str = "rates ≥ 0";

#[derive(Clone, Copy)]
struct Formula {
    log_input: bool,
    full: bool,
    eps: f64,
}

impl Pointwise<2> for Formula {
    /// A negative rate has no loss. Every logarithm of a rate has one.
    fn partial(self) -> Option<Expected> {
        (!self.log_input).then_some(("input", RATES))
    }

    #[inline(always)]
    fn is_defined<R: Real>(self, [x, _]: [R; 2]) -> R::Mask {
        is_not_negative(x)
    }

    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (loss, [of_x, of_y]) = if self.log_input {
            let rate = x.exp();
            (rate - y * x, [rate - y, -x])
        } else {
            let rate = x + R::of(self.eps);
            let log = rate.ln();
            let x = choose(is_not_negative(x), x, R::of(f64::NAN));
            (x - y * log, [R::of(1.0) - y / rate, -log])
        };
        if !self.full {
            return (loss, [of_x, of_y]);
        }
        let (one, half, zero) = (R::of(1.0), R::of(0.5), R::of(0.0));
        let log = y.ln();
        let stirling = y * log - y + half * (R::of((2.0 * PI).ln()) + log);
        let counted = y.greater(one);
        (loss + choose(counted, stirling, zero), [of_x, of_y + choose(counted, log + half / y, zero)])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::{Backend, with_backend};

    #[test]
    fn shapes_must_agree() {
        let (input, target) = (Tensor::from_slice(&[0.0, 0.0]), Tensor::from_slice(&[1.0]));
        let error = PoissonNllLoss::new().f_forward(&input, &target).unwrap_err();
        assert_eq!(error.to_string(), "target has shape [1], expected [2], the shape of input");
        let loss = PoissonNllLoss::new().broadcast(true).reduction(Reduction::Sum).forward(&input, &target);
        assert_eq!(f64::try_from(loss).unwrap(), 2.0);
    }

    #[test]
    fn counts_up_to_one_have_no_stirling_term() {
        let (input, target) = (Tensor::from_slice(&[0.0, 0.0]), Tensor::from_slice(&[0.0, 1.0]));
        let short = PoissonNllLoss::new().reduction(Reduction::None);
        let full = PoissonNllLoss::new().reduction(Reduction::None).full(true);
        assert_eq!(full.forward(&input, &target), short.forward(&input, &target));
    }

    #[test]
    fn a_negative_rate_is_none() {
        for backend in [Backend::Auto, Backend::Composite] {
            for kind in [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double] {
                let rates = || Tensor::from_slice(&[2.0, -1.0]).to_kind(kind).set_requires_grad(true);
                let counts = Tensor::from_slice(&[1.0, 1.0]).to_kind(kind);
                let criterion = PoissonNllLoss::new().log_input(false).reduction(Reduction::None);
                let error = with_backend(backend, || criterion.f_forward(&rates(), &counts)).unwrap_err();
                assert_eq!(error.to_string(), "input holds -1, expected rates ≥ 0", "{kind:?}");

                let (rates, criterion) = (rates(), criterion.invalid_values(InvalidValues::Nan));
                let loss = with_backend(backend, || criterion.forward(&rates, &counts));
                assert_eq!(Vec::<bool>::try_from(loss.isnan()).unwrap(), [false, true]);
                loss.sum(None).backward();
                let gradient = Vec::<f64>::try_from(rates.grad().to_kind(Kind::Double)).unwrap();
                assert!((gradient[0] - 0.5).abs() < 1e-6 && gradient[1] == 0.0, "{kind:?} {gradient:?}");

                // A rate of 0 has a loss, and NaN is nobody's fault.
                let rates = Tensor::from_slice(&[0.0, f64::NAN]).to_kind(kind);
                let loss =
                    with_backend(backend, || criterion.invalid_values(InvalidValues::Error).forward(&rates, &counts));
                assert_eq!(Vec::<bool>::try_from(loss.isnan()).unwrap(), [false, true]);
            }
        }
    }

    #[test]
    fn counts_may_be_booleans_and_rates_are_numbers() {
        let (input, target) = (Tensor::from_slice(&[0.0, 0.0]), Tensor::from_slice(&[true, false]));
        let criterion = PoissonNllLoss::new().full(true);
        assert_eq!(criterion.forward(&input, &target), criterion.forward(&input, &target.to_kind(Kind::Double)));
        let error = criterion.f_forward(&target, &input).unwrap_err().to_string();
        assert_eq!(error, "input has kind Bool, expected a kind of numbers");
        let error = criterion.f_forward(&input.to_kind(Kind::ComplexDouble), &input).unwrap_err().to_string();
        assert_eq!(error, "input has kind ComplexDouble, expected a kind of real numbers");
    }

    #[test]
    fn counts_may_be_integers() {
        let (input, target) = (Tensor::from_slice(&[0.0, 0.0]), Tensor::from_slice(&[1_i64, 3]));
        assert_eq!(f64::try_from(PoissonNllLoss::new().forward(&input, &target)).unwrap(), 1.0);
    }
}
