use std::f64::consts::LN_10;

use tch::{Kind, Tensor};

use super::f_images;
use crate::kernels::{NumberOperations, Pointwise, Real, choose, f_pointwise, f_pointwise_to, waits};
use crate::numeric::{f_reals, f_without_gradients, result_kind, wide_kind};
use crate::regression::SquaredError;
use crate::{Loss, LossError, MeanParts, MseLoss, Reduction, check};

crate::options::options! {
/// The PSNR loss: the negative peak signal-to-noise ratio of two images, in decibels.
///
/// For restoring images, where this ratio is reported: half the squared error lowers the loss by the same amount
/// whether the image is nearly right or far off. [`MseLoss`](crate::MseLoss) has the same minimum and steadier
/// gradients; [`SsimLoss`](crate::SsimLoss) is nearer to what people see.
///
/// # Formula
///
/// ℓ = −10 log₁₀(L² / (MSE + ε))
///
/// where L is the data range and MSE the mean squared difference of input and target, over the batch or over each
/// sample. ε is 0 by default: equal images have the loss −∞, and gradient 0.
///
#[doc = include_str!("../../docs/book/src/gallery/psnr.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`; `[N, *]` with [`PsnrScope::Sample`]; of a floating kind, or integers, such as bytes
/// * `target`: `[*]`, the same shape
/// * result: scalar, or `[N]` with [`PsnrScope::Sample`] and [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `kornia.losses.PSNRLoss` and `psnr_loss` of kornia 0.9.0.
///
/// # Differences from kornia
///
/// Equal images have the gradient 0, and not NaN.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Kind`] for complex
/// numbers, [`LossError::Option`] for a data range that is not positive or a negative ε.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, PsnrLoss};
///
/// let input = Tensor::from_slice(&[0.5, 0.7]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0.4, 0.8]);
///
/// let loss = PsnrLoss::new().f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? + 20.0).abs() < 1e-9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "PSNRLoss")]
#[doc(alias = "psnr_loss")]
pub struct PsnrLoss: "psnr";

/// The negative ratio of the whole batch, of images in \[0, 1\].
new {
    /// L > 0, the range of the pixels: 1 for those in \[0, 1\], 255 for bytes.
    #[doc(alias = "max_val")]
    data_range: f64 = 1.0,
    /// ε ≥ 0, which keeps the loss of equal images finite.
    eps: f64 = 0.0,
    /// what has a ratio of its own: the batch or each sample.
    scope: PsnrScope = PsnrScope::Batch,
    /// the reduction over the samples, for [`PsnrScope::Sample`].
    reduction: Reduction = Reduction::Mean,
}
}

/// What has a ratio of its own in a [`PsnrLoss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum PsnrScope {
    /// The whole batch, as in kornia. The default; there is nothing to reduce.
    #[default]
    Batch,
    /// Each sample.
    Sample,
}

crate::options::words!(PsnrScope);

impl PsnrLoss {
    /// The mean squared errors, computed in the kind `wide`.
    fn f_errors(&self, input: &Tensor, target: &Tensor, wide: Kind) -> Result<Tensor, LossError> {
        let errors = self.f_squared_errors(input, target, wide)?;
        if waits(&errors) || errors.f_detach()?.f_sum(Kind::Double)?.f_double_value(&[])? != f64::INFINITY {
            return Ok(errors);
        }
        // An error of ∞ has the derivative 0, which the gradient of a square multiplies by an infinite difference: NaN.
        // A product of the difference with itself avoids that.
        let difference = input.f_to_kind(wide)?.f_sub(&f_reals(("target", target), wide)?)?;
        let squares = difference.f_mul(&difference)?;
        match self.scope {
            PsnrScope::Batch => Ok(squares.f_mean(None)?),
            PsnrScope::Sample => f_means_of_samples(&squares),
        }
    }

    fn f_squared_errors(&self, input: &Tensor, target: &Tensor, wide: Kind) -> Result<Tensor, LossError> {
        let f_widened = move |[input, target]: [&Tensor; 2]| {
            Ok::<_, LossError>((input.f_to_kind(wide)?, f_reals(("target", target), wide)?))
        };
        if self.scope == PsnrScope::Batch && target.f_kind()? == input.f_kind()? {
            return f_pointwise_to(wide, SquaredError, [input, target], Reduction::Mean, move |arguments| {
                let (input, target) = f_widened(arguments)?;
                Ok(input.f_mse_loss(&target, tch::Reduction::Mean)?)
            });
        }
        let (input, target) = &f_widened([input, target])?;
        if self.scope == PsnrScope::Batch {
            return MseLoss::new().f_forward(input, target);
        }
        check::shape(("input", input), input.dim() != 0, "[N, ...], with a dimension of samples")?;
        let errors = MseLoss::new().reduction(Reduction::None).f_forward(input, target)?;
        f_means_of_samples(&errors)
    }
}

fn f_means_of_samples(errors: &Tensor) -> Result<Tensor, LossError> {
    let samples = errors.size()[0];
    let pixels: i64 = errors.size()[1..].iter().product();
    Ok(errors.f_reshape([samples, pixels])?.f_mean_dim(1, false, None)?)
}

impl Loss for PsnrLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        check::positive("data_range", self.data_range)?;
        check::not_negative("eps", self.eps)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let [input, target] = &f_images(input, target)?;
        self.f_check_options()?;
        let (kind, wide) = (result_kind(input)?, wide_kind(input)?);
        let errors = self.f_errors(input, target, wide)?;
        let formula = Decibels { eps: self.eps, data_range: self.data_range };
        let reduction = self.reduction;
        let composite = move |[errors]: [&Tensor; 1]| reduction.f_apply(&formula.f_losses(errors)?);
        Ok(f_pointwise(formula, [&errors], reduction, composite)?.f_to_kind(kind)?)
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        if self.scope == PsnrScope::Batch {
            return Err(LossError::no_mean::<Self>("it is the logarithm of a mean over the batch"));
        }
        let unreduced = Self { reduction: Reduction::None, ..*self };
        MeanParts::f_of_unreduced(&unreduced, input, target)
    }
}

/// The loss as a function of the mean squared error.
#[derive(Clone, Copy)]
struct Decibels {
    eps: f64,
    data_range: f64,
}

impl Decibels {
    /// The loss of an error of 1.
    fn offset(self) -> f64 {
        -20.0 * self.data_range.log10()
    }

    fn f_losses(self, errors: &Tensor) -> Result<Tensor, LossError> {
        let errors = if self.eps == 0.0 { errors.shallow_clone() } else { errors.f_add_number(self.eps)? };
        // An error of 0 has the loss −∞ and no meaningful gradient.
        let logarithm = f_without_gradients(&errors, |errors| errors.f_eq_number(0))?.f_log()?;
        Ok(logarithm.f_mul_number(10.0 / LN_10)?.f_add_number(self.offset())?)
    }
}

impl Pointwise<1> for Decibels {
    #[inline(always)]
    fn evaluate<R: Real>(self, [error]: [R; 1]) -> (R, [R; 1]) {
        let (factor, error) = (R::of(10.0 / LN_10), error + R::of(self.eps));
        let slope = choose(error.equal(R::of(0.0)), R::of(0.0), factor / error);
        (factor * error.ln() + R::of(self.offset()), [slope])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, with_backend};

    #[test]
    fn wrong_options_are_named() {
        let x = Tensor::from_slice(&[1.0]);
        let error = PsnrLoss::new().data_range(0.0).f_forward(&x, &x).unwrap_err();
        assert_eq!(error.to_string(), "option data_range is 0, expected a number in [1e-37, 1e37]");
        let error = PsnrLoss::new().eps(-1.0).f_forward(&x, &x).unwrap_err();
        assert_eq!(error.to_string(), "option eps is -1, expected a number in [0, 1e37]");
    }

    #[test]
    fn equal_images_have_no_gradient() {
        let x = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
        let loss = PsnrLoss::new().forward(&x, &x.detach());
        loss.backward();
        assert_eq!(loss.double_value(&[]), f64::NEG_INFINITY);
        assert_eq!(Vec::<f64>::try_from(x.grad()).unwrap(), [0.0, 0.0]);
        assert_eq!(PsnrLoss::new().eps(1e-4).forward(&x, &x).double_value(&[]).round(), -40.0);
    }

    #[test]
    fn samples_have_ratios_of_their_own() {
        let (x, y) =
            (Tensor::from_slice(&[0.1, 0.0, 0.01, 0.0]).view([2, 2]), Tensor::from_slice(&[0.0; 4]).view([2, 2]));
        let loss = PsnrLoss::new().scope(PsnrScope::Sample).reduction(Reduction::None);
        let expected = Tensor::from_slice(&[-10.0 * 200_f64.log10(), -10.0 * 20000_f64.log10()]);
        assert!(loss.forward(&x, &y).allclose(&expected, 1e-12, 0.0, false));
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (x, y) = (Tensor::from_slice(&[0.3, 0.5, 0.9]), Tensor::from_slice(&[0.1, 0.6, 0.9]));
        crate::numeric::assert_gradient(&x, |x| PsnrLoss::new().data_range(2.0).forward(x, &y));
    }

    #[test]
    fn errors_beyond_the_kind_have_no_slope() {
        let target = Tensor::from_slice(&[0_f32, 1.0]);
        for (backend, scope) in [Backend::Auto, Backend::Composite]
            .into_iter()
            .flat_map(|b| [(b, PsnrScope::Batch), (b, PsnrScope::Sample)])
        {
            let input = Tensor::from_slice(&[f32::MAX, -1.0]).set_requires_grad(true);
            let loss = PsnrLoss::new().scope(scope).reduction(Reduction::Sum);
            let loss = with_backend(backend, || loss.forward(&input, &target));
            loss.backward();
            let slope = input.grad().double_value(&[0]);
            assert!(loss.double_value(&[]) == f64::INFINITY && slope == 0.0, "{backend:?}, {scope:?}: {slope}");
        }
    }
}
