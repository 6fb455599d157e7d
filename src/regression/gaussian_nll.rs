use tch::Tensor;

use super::f_not_negative;
use crate::autograd::{self, Function, f_gradients_of};
use crate::check::{self, Validity};
use crate::kernels::{self, Expected, NumberOperations, Pointwise, Real, choose, f_pointwise, is_not_negative};
use crate::numeric::{self, f_subtractable, f_widely, real};
use crate::{InvalidValues, LossError, MeanParts, Reduction};

crate::options::options! {
/// The Gaussian negative log-likelihood: how unlikely a predicted mean and variance make each target.
///
/// For regression with an uncertainty: the model predicts a mean and a variance for each element, and pays for a
/// variance that is too small as for one that is too large. With a constant variance it is
/// [`MseLoss`](crate::MseLoss) up to a factor and a constant.
///
/// # Formula
///
/// ℓᵢ = ½ (log vᵢ + (xᵢ − yᵢ)² / vᵢ), with v = max(var, ε)
///
/// where x is the input and y the target. The full loss adds the constant ½ log 2π. The gradient of the variance is the
/// one at v, without the factor of the maximum, so that a variance below ε can grow again.
///
#[doc = include_str!("../../docs/book/src/gallery/gaussian_nll.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`
/// * `target`: `[*]`, the same shape
/// * `var`: `[*]`, the same shape, or this without its last dimension, or with one dimension of size 1; or a number
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// # Reference
///
/// `torch.nn.GaussianNLLLoss` and `torch.nn.functional.gaussian_nll_loss` of PyTorch 2.13; Nix and Weigend,
/// *Estimating the Mean and Variance of the Target Probability Distribution*, 1994.
///
/// # Differences from PyTorch
///
/// A target of another shape is an error, unless [`broadcast`](Self::broadcast) allows it; PyTorch broadcasts
/// silently.
///
/// # Errors
///
/// [`LossError::Shape`] or [`LossError::Device`] for arguments that do not fit together, [`LossError::Kind`] for a
/// variance that is not of a floating kind, [`LossError::Value`] for a negative one. On CUDA it is one of
/// [`InvalidValues::f_check`], where PyTorch waits for the device in each call.
/// [`LossError::Option`] for an `eps` that is NaN, or that the kind of the variances does not hold.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::GaussianNllLoss;
///
/// let mean = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
/// let var = Tensor::from_slice(&[1.0, 1.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1.0, 4.0]);
///
/// let criterion = GaussianNllLoss::new();
/// let loss = criterion.f_forward(&mean, &target, &var)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 1.0);
/// assert_eq!(Vec::<f64>::try_from(mean.grad())?, [0.0, -1.0]);
/// assert_eq!(Vec::<f64>::try_from(var.grad())?, [0.25, -0.75]);
///
/// // One variance for all.
/// let loss = criterion.f_forward(&mean, &target, 1.0)?;
/// assert_eq!(f64::try_from(&loss)?, 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy)]
#[doc(alias = "nn.GaussianNLLLoss")]
#[doc(alias = "gaussian_nll_loss")]
#[doc(alias = "heteroscedastic")]
pub struct GaussianNllLoss;

/// The Gaussian loss with PyTorch's defaults.
new {
    /// whether to add the constant ½ log 2π.
    full: bool = false,
    /// ε, the least variance; smaller ones are raised to it.
    eps: f64 = 1e-6,
    /// whether input and target may differ in shape and are broadcast against each other.
    broadcast: bool = false,
    /// what a negative variance in a tensor does; as a number it is always an error.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

/// The variance of a [`GaussianNllLoss`], made from a tensor or a number.
#[derive(Debug, Clone, Copy)]
pub enum Variance<'a> {
    /// One for each element, or for several of them.
    Tensor(&'a Tensor),
    /// One for all elements.
    Number(f64),
}

crate::options::from_variants!(Variance<'a>: &'a Tensor => Tensor, f64 => Number);

impl GaussianNllLoss {
    /// Computes the loss, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward<'a>(
        &self,
        input: &Tensor,
        target: &Tensor,
        var: impl Into<Variance<'a>>,
    ) -> Result<Tensor, LossError> {
        check::devices(&[("input", input), ("target", target)])?;
        check::fits("eps", self.eps, input)?;
        check::same_shape_or_broadcast(("target", target), ("input", input), self.broadcast)?;
        check::not_boolean(("input", input))?;
        real(("input", input))?;
        real(("target", target))?;
        let target = &f_subtractable(target, input)?;
        let (loss, reduction) = (*self, self.reduction);
        match var.into() {
            Variance::Tensor(var) => {
                check::devices(&[("input", input), ("var", var)])?;
                check::floating(("var", var))?;
                // libtorch converts ε to the kind of the variance.
                check::fits("eps", self.eps, var)?;
                let var = f_shaped(var, input)?;
                let composite = move |arguments: [&Tensor; 3]| {
                    f_widely(arguments, |[input, target, var]| loss.f_of_tensor(input, target, var))
                };
                let shared = var.size() != input.size();
                // The gradient of a variance that several elements share is a sum, and half precision would round each
                // part of it. With an input of no elements the engine would not check the variance.
                if !kernels::takes_elements(input)
                    || kernels::leaves_partial(input, self.invalid_values)
                    || input.numel() == 0
                    || (shared && input.f_kind()? != numeric::wide_kind(input)?)
                {
                    return composite([input, target, &var]);
                }
                let var = if var.size() == input.size() { var } else { var.f_expand_as(input)? };
                f_pointwise(self.formula(), [input, target, &var], reduction, composite)
            }
            Variance::Number(var) => {
                check_number(var)?;
                f_pointwise(OfNumber(self.formula(), var), [input, target], reduction, move |[input, target]| {
                    f_widely([input, target], |[x, y]| loss.f_composite(x, y, &f_filled(var, x)?, &Validity::CHECKED))
                })
            }
        }
    }

    /// The numerator and the denominator of the mean, for means over several calls: see [`MeanParts`].
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward).
    pub fn f_parts<'a>(
        &self,
        input: &Tensor,
        target: &Tensor,
        var: impl Into<Variance<'a>>,
    ) -> Result<MeanParts, LossError> {
        let unreduced = Self { reduction: Reduction::None, ..*self };
        MeanParts::f_of_losses(&unreduced.f_forward(input, target, var)?)
    }

    crate::loss::or_panic! { "Computes the loss", forward['a] as
    f_forward(input: &Tensor, target: &Tensor, var: impl Into<Variance<'a>>) -> Tensor }

    fn formula(&self) -> Formula {
        Formula { eps: self.eps, constant: if self.full { HALF_LOG_2_PI } else { 0.0 } }
    }

    fn f_of_tensor(&self, input: &Tensor, target: &Tensor, var: &Tensor) -> Result<Tensor, LossError> {
        let validity = f_not_negative(("var", var), NOT_NEGATIVE, self.invalid_values)?;
        let loss = self.f_composite(input, target, var, &validity)?;
        validity.f_poison_own(loss, self.reduction == Reduction::None)
    }

    fn f_composite(
        &self,
        input: &Tensor,
        target: &Tensor,
        var: &Tensor,
        validity: &Validity,
    ) -> Result<Tensor, LossError> {
        let var = self.f_raised(var, validity)?;
        let squares = f_squares(input, target)?;
        let mut losses = var.f_log()?.f_add(&squares.f_div(&var)?)?.f_mul_number(0.5)?;
        if self.full {
            let _ = losses.f_add_number_(HALF_LOG_2_PI)?;
        }
        self.reduction.f_apply(&losses)
    }

    /// The larger of `var` and ε, with the gradient of `var`. A variance that is not valid becomes a harmless one.
    fn f_raised(&self, var: &Tensor, validity: &Validity) -> Result<Tensor, LossError> {
        let bare = var.f_detach()?;
        // An ε above 0 is harmless itself.
        let raised = if validity.is_checked() || self.eps > 0.0 {
            bare.f_clamp_min_number(self.eps)?
        } else {
            let mut copy = bare.f_to_dtype(bare.f_kind()?, false, true)?;
            validity.f_fill(&mut copy, 1.0)?;
            copy.f_clamp_min_number_(self.eps)?
        };
        let through = |context: autograd::Context| Ok(vec![context.grad(0)]);
        Ok(Function::new(&[var]).f_attach_own(vec![raised], through)?.remove(0))
    }
}

/// The squares of the differences. Their derivative is a formula where the arguments are alike, which is an operation less
/// than that of a power.
fn f_squares(input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    let f_operations = |input: &Tensor, target: &Tensor| input.f_sub(target)?.f_pow_number(2);
    let alike = input.f_kind()? == target.f_kind()? && check::sizes_are_equal(input, target);
    if !alike || !input.is_floating_point() {
        return Ok(f_operations(input, target)?);
    }
    let arguments = [input, target];
    let needed = autograd::needed(&arguments);
    let difference = input.f_detach()?.f_sub(&target.f_detach()?)?;
    let function = Function::new(&arguments).save(&[input, target, &difference]);
    function.f_attach_one(difference.f_square()?, move |context| {
        let (Some(grad), [input, target, difference]) = (context.grad(0), context.saved()) else {
            return Ok(vec![None, None]);
        };
        let fused = || {
            let slopes = difference.f_mul_number(2)?.f_mul_(&grad)?;
            let of_target = needed[1].then(|| slopes.f_neg()).transpose()?;
            Ok(vec![needed[0].then_some(slopes), of_target])
        };
        let again = |inputs: &[Tensor]| Ok(f_operations(&inputs[0], &inputs[1])?);
        let arguments = [input.shallow_clone(), target.shallow_clone()];
        context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &arguments, &needed))
    })
}

#[derive(Clone, Copy)]
struct Formula {
    eps: f64,
    constant: f64,
}

impl Pointwise<3> for Formula {
    /// A negative variance has no loss.
    fn partial(self) -> Option<Expected> {
        Some(("var", NOT_NEGATIVE))
    }

    #[inline(always)]
    fn is_defined<R: Real>(self, [_, _, var]: [R; 3]) -> R::Mask {
        is_not_negative(var)
    }

    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y, var]: [R; 3]) -> (R, [R; 3]) {
        let (half, one) = (R::of(0.5), R::of(1.0));
        let raised = choose(is_not_negative(var), var, R::of(f64::NAN)).at_least(R::of(self.eps));
        let difference = x - y;
        let slope = difference / raised;
        let loss = half * (raised.ln() + difference * slope) + R::of(self.constant);
        // As on the page: without the factor of the maximum.
        let of_var = half * (one / raised - slope * slope);
        (loss, [slope, -slope, of_var])
    }
}

/// With one variance for all.
#[derive(Clone, Copy)]
struct OfNumber(Formula, f64);

impl Pointwise<2> for OfNumber {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (loss, [of_x, of_y, _]) = self.0.evaluate([x, y, R::of(self.1)]);
        (loss, [of_x, of_y])
    }
}

/// ½ log 2π
const HALF_LOG_2_PI: f64 = 0.918_938_533_204_672_7;

const NOT_NEGATIVE: &str = "variances ≥ 0";

fn check_number(var: f64) -> Result<(), LossError> {
    if var < 0.0 {
        let actual = var.to_string();
        return Err(LossError::Value { argument: "var", expected: NOT_NEGATIVE.into(), actual });
    }
    Ok(())
}

/// `var` for each element of the input.
fn f_filled(var: f64, input: &Tensor) -> Result<Tensor, LossError> {
    let var = input.f_ones_like()?.f_mul_number(var)?;
    check::floating(("var", &var))?;
    Ok(var)
}

/// `var` in a shape that broadcasts against the input, if its shape is one of those that PyTorch takes.
fn f_shaped(var: &Tensor, input: &Tensor) -> Result<Tensor, LossError> {
    let (actual, expected) = (var.size(), input.size());
    if actual == expected {
        return Ok(var.shallow_clone());
    }
    if expected.split_last().is_some_and(|(_, others)| actual == others) {
        return Ok(var.f_unsqueeze(-1)?);
    }
    // PyTorch asks that the sizes that differ add up to 1; this also excludes a size of 0, which would leave the input
    // without a variance.
    let differing = expected.iter().zip(&actual).filter(|(x, v)| x != v).map(|(_, v)| *v);
    if actual.len() == expected.len() && differing.eq([1]) {
        return Ok(var.shallow_clone());
    }
    let of_input =
        format!("{expected:?}, the shape of input, or that without the last dimension or with 1 in place of one");
    Err(check::shape_error(("var", var), of_input))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, with_backend};

    const CPU: (tch::Kind, tch::Device) = (tch::Kind::Double, tch::Device::Cpu);

    fn none() -> GaussianNllLoss {
        GaussianNllLoss::new().reduction(Reduction::None)
    }

    #[test]
    fn wrong_shapes_are_named() {
        let x = Tensor::zeros([3, 4], CPU);
        for shape in [&[4][..], &[2, 4], &[1, 1], &[3, 4, 1]] {
            let error = none().f_forward(&x, &x, &Tensor::ones(shape, CPU)).unwrap_err();
            let expected = "[3, 4], the shape of input, or that without the last dimension or with 1 in place of one";
            assert_eq!(error.to_string(), format!("var has shape {shape:?}, expected {expected}"));
        }
        let error = none().f_forward(&x, &Tensor::zeros([3, 1], CPU), 1.0).unwrap_err();
        assert_eq!(error.to_string(), "target has shape [3, 1], expected [3, 4], the shape of input");
    }

    #[test]
    fn a_variance_is_not_negative() {
        let x = Tensor::from_slice(&[1.0, 2.0]);
        let var = Tensor::from_slice(&[0.5, -2.5]);
        let error = none().f_forward(&x, &x, &var).unwrap_err();
        assert_eq!(error.to_string(), "var holds -2.5, expected variances ≥ 0");
        for mode in [InvalidValues::Error, InvalidValues::Nan] {
            let error = none().invalid_values(mode).f_forward(&x, &x, -1.0).unwrap_err();
            assert_eq!(error.to_string(), "var holds -1, expected variances ≥ 0");
        }
        let nan = Tensor::from_slice(&[1.0, f64::NAN]);
        assert_eq!(Vec::<bool>::try_from(none().forward(&x, &x, &nan).isnan()).unwrap(), [false, true]);
    }

    #[test]
    fn nothing_has_variances_too() {
        let (x, var) = (Tensor::zeros([1, 0, 2], CPU), Tensor::from_slice(&[-2.0, 0.0]).view([1, 1, 2]));
        for backend in [Backend::Auto, Backend::Composite] {
            with_backend(backend, || {
                let error = none().f_forward(&x, &x, &var).unwrap_err();
                assert_eq!(error.to_string(), "var holds -2, expected variances ≥ 0");
                let sum = GaussianNllLoss::new().reduction(Reduction::Sum).invalid_values(InvalidValues::Nan);
                assert!(sum.forward(&x, &x, &var).double_value(&[]).is_nan(), "{backend:?}");
            });
        }
    }

    #[test]
    fn eps_is_a_number_of_the_variances() {
        let (x, var) = (Tensor::from_slice(&[1.0, 2.0]), Tensor::from_slice(&[1.0_f32, 2.0]));
        for (backend, mode) in [Backend::Auto, Backend::Composite]
            .into_iter()
            .flat_map(|b| [(b, InvalidValues::Error), (b, InvalidValues::Nan)])
        {
            let message = |eps: f64, var: &Tensor| {
                let loss = GaussianNllLoss::new().invalid_values(mode).eps(eps);
                with_backend(backend, || loss.f_forward(&x, &x, var)).unwrap_err().to_string()
            };
            let (double, expected) = (var.to_kind(tch::Kind::Double), "a number that single precision holds");
            assert_eq!(message(1e39, &var), format!("option eps is {}, expected {expected}", 1e39));
            assert_eq!(message(f64::NAN, &double), "option eps is NaN, expected a number");
        }
    }

    #[test]
    fn a_negative_variance_may_be_nan_without_a_gradient() {
        let x = Tensor::zeros([2, 2], CPU).set_requires_grad(true);
        let y = Tensor::ones([2, 2], CPU);
        let var = Tensor::from_slice(&[1.0, -1.0]).set_requires_grad(true);
        let loss = none().invalid_values(InvalidValues::Nan).forward(&x, &y, &var);
        assert_eq!(Vec::<bool>::try_from(loss.isnan().view([-1])).unwrap(), [false, false, true, true]);
        loss.sum(None).backward();
        assert_eq!(Vec::<f64>::try_from(x.grad().view([-1])).unwrap(), [-1.0, -1.0, 0.0, 0.0]);
        assert_eq!(Vec::<f64>::try_from(var.grad()).unwrap(), [0.0, 0.0]);
    }

    #[test]
    fn the_caller_s_variance_is_left_alone_and_has_a_gradient_below_eps() {
        let (x, y) = (Tensor::from_slice(&[0.0]), Tensor::from_slice(&[1.0]));
        let var = Tensor::from_slice(&[0.0]).set_requires_grad(true);
        GaussianNllLoss::new().eps(0.5).forward(&x, &y, &var).backward();
        assert_eq!(f64::try_from(&var).unwrap(), 0.0);
        assert_eq!(f64::try_from(var.grad()).unwrap(), 0.5 * (1.0 / 0.5 - 1.0 / 0.25));
    }
}
