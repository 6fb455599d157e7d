use tch::Tensor;

use super::{Taps, Unlikeness, check_range, f_images, f_means, f_pair, f_products, gaussian, is_one_pixel};
use crate::kernels::{Beyond, NumberOperations};
use crate::numeric::{f_of_elements, result_kind};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The SSIM loss: one minus the structural similarity of two images, which compares luminance, contrast and structure
/// under a small window.
///
/// For restoring and generating images, where pixel losses such as [`MseLoss`](crate::MseLoss) make them blurred: it
/// compares each neighbourhood as a whole. Often added to [`L1Loss`](crate::L1Loss), since it takes little notice of a
/// shift of brightness or colour; [`MsSsimL1Loss`](crate::MsSsimL1Loss) is such a sum over several windows.
/// [`MsSsimLoss`](crate::MsSsimLoss) compares smaller copies of the images as well.
///
/// # Formula
///
/// ℓᵢ = 1 − SSIMᵢ, SSIM = (2 μ_x μ_y + c₁) (2 σ_xy + c₂) / ((μ_x² + μ_y² + c₁) (σ_x² + σ_y² + c₂) + ε)
///
/// where μ_x, μ_y, σ_x², σ_y² and σ_xy are the means, variances and covariance of input and target under the window at
/// i, c₁ = (k₁ L)², c₂ = (k₂ L)² and L is the data range. ε is 0 by default, and added to numerator and denominator
/// alike where the loss is computed, so that equal images have the loss ε / (… + ε). With
/// [`SsimForm::Dissimilarity`] the loss is half of it.
///
#[doc = include_str!("../../docs/book/src/gallery/ssim.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C, H, W]` or `[N, C, D, H, W]`, or `[N, C, L]` with [`spatial_dims(1)`](Self::spatial_dims); of a
///   floating kind, or integers, such as bytes, with their [`data_range`](Self::data_range)
/// * `target`: `[N, C, H, W]`, `[N, C, D, H, W]` or `[N, C, L]`, the same shape
/// * result: scalar; with [`Reduction::None`] `[N, C, …]` without the border that the window does not reach, or `[N]`
///   with [`SsimScope::Sample`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `monai.losses.SSIMLoss` of MONAI 1.6.1, with [`SsimScope::Sample`]; `kornia.losses.SSIMLoss`, `ssim_loss`,
/// `SSIM3DLoss` and `ssim3d_loss` of kornia 0.9.0, with [`SsimForm::Dissimilarity`], ε = 10⁻¹² and
/// [`SsimPadding::Reflect`]. Wang et al., *Image Quality Assessment: From Error Visibility to Structural Similarity*,
/// 2004.
///
/// # Differences from MONAI and kornia
///
/// * It is computed in `f64` on the CPU, since variances of nearly even images lose the digits of `f32`; MONAI computes
///   in `f32`.
/// * One minus SSIM is computed from the difference of the images, so that it keeps its digits where they are nearly
///   equal. It is never clamped, as kornia's is.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ or an image is smaller than the window, [`LossError::Device`] where devices
/// do, [`LossError::Kind`] for complex numbers, [`LossError::Option`] for an option out of its range.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{Loss, SsimLoss};
///
/// let image = Tensor::linspace(0.0, 1.0, 256, (Kind::Float, Device::Cpu)).view([1, 1, 16, 16]);
/// let noisy = (&image + Tensor::randn_like(&image) * 0.1).set_requires_grad(true);
///
/// let criterion = SsimLoss::new().window_size(&[7]);
/// let loss = criterion.f_forward(&noisy, &image)?;
/// loss.f_backward()?;
///
/// assert!(f64::try_from(&loss)? > 0.0);
/// assert_eq!(f64::try_from(criterion.f_forward(&image, &image)?)?, 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(PartialEq)]
#[doc(alias = "SSIM")]
#[doc(alias = "DSSIM")]
#[doc(alias = "ssim_loss")]
#[doc(alias = "structural similarity")]
pub struct SsimLoss: "ssim";

/// The loss with the paper's window: a Gaussian of 11 pixels with a standard deviation of 1.5.
new {
    /// ε ≥ 0, which is added to the denominator of the similarity: 1e-12 in kornia.
    eps: f64 = 0.0,
    /// what is assumed beyond the border.
    padding: SsimPadding = SsimPadding::Valid,
    /// whether the loss is 1 − SSIM or half of it.
    form: SsimForm = SsimForm::Complement,
    /// what has a loss of its own.
    scope: SsimScope = SsimScope::Pixel,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
    ..of_similarity,
}
}

/// The options of the structural similarity at one or several scales.
macro_rules! of_similarity {
    ($($state:tt)*) => {
        crate::options::options! { @group $($state)*
            /// the number of dimensions of an image, from 1 to 3: the dimensions of the input without samples and
            /// channels. Without it an image has two or three, as the input says; then an input of three dimensions is
            /// an error, because it may be an image without samples.
            pub(super) spatial_dims: Option<usize> = None,
            /// the weights under the window.
            pub(super) window: crate::SsimWindow = SsimWindow::Gaussian,
            /// the pixels of the window: one number for all dimensions of the image, or one for each.
            pub(super) window_size: Vec<i64> = vec![11] => slice,
            /// the standard deviation of the Gaussian: one for all dimensions of the image, or one for each.
            pub(super) sigma: Vec<f64> = vec![1.5] => slice,
            /// L > 0, the range of the pixels: 1 for those in \[0, 1\], 255 for bytes.
            pub(super) data_range: f64 = 1.0,
            /// k₁ ≥ 0, which keeps the luminance of black stable.
            pub(super) k1: f64 = 0.01,
            /// k₂ ≥ 0, which keeps the structure of plain areas stable.
            pub(super) k2: f64 = 0.03,
        }
    };
}
pub(super) use of_similarity;

/// The weights under the window of an [`SsimLoss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum SsimWindow {
    /// The weights of a Gaussian. The default.
    #[default]
    Gaussian,
    /// Equal weights.
    Uniform,
}

/// What an [`SsimLoss`] assumes beyond the border of the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum SsimPadding {
    /// Nothing: the window stays inside, as in the paper. The default.
    #[default]
    Valid,
    /// The image, mirrored at the pixels of the border, so that each pixel has a loss.
    Reflect,
}

/// How the similarity becomes the loss in an [`SsimLoss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum SsimForm {
    /// 1 − SSIM, between 0 and 2. The default.
    #[default]
    Complement,
    /// (1 − SSIM) / 2, between 0 and 1, also known as DSSIM.
    Dissimilarity,
}

/// What has a loss of its own in an [`SsimLoss`]; the mean over all is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum SsimScope {
    /// Each place of the window, in each channel. The default.
    #[default]
    Pixel,
    /// Each sample of the batch: the mean over its channels and pixels.
    Sample,
}

crate::options::words!(SsimWindow, SsimPadding, SsimForm, SsimScope);

impl SsimLoss {
    /// c₁ and c₂.
    pub(super) fn constants(&self) -> [f64; 2] {
        [self.k1, self.k2].map(|k| (k * self.data_range).powi(2))
    }

    /// Checks that the input has samples, channels and an image. An input of three dimensions is taken for lines only
    /// with `spatial_dims(1)`.
    fn check_shape(&self, input: &Tensor) -> Result<(), LossError> {
        let (shape, least) = (input.size(), "with at least one channel");
        let expected = match self.spatial_dims {
            None if matches!(shape.len(), 4 | 5) && shape[1] > 0 => return Ok(()),
            None => format!("[N, C, H, W] or [N, C, D, H, W], {least}, or spatial_dims(1) for lines [N, C, L]"),
            Some(dims) => {
                check::option("spatial_dims", dims, (1..=3).contains(&dims), "1, 2 or 3")?;
                if shape.len() == dims + 2 && shape[1] > 0 {
                    return Ok(());
                }
                format!("[N, C, ...] with {dims} more as spatial_dims, {least}")
            }
        };
        Err(check::shape_error(("input", input), expected))
    }

    /// The window along each dimension of the image. The image must be large enough for it after it was `halved` that
    /// many times.
    pub(super) fn f_window(&self, input: &Tensor, halved: u32) -> Result<Vec<Taps>, LossError> {
        self.check_shape(input)?;
        let image = &input.size()[2..];
        let sizes = of_each("window_size", &self.window_size, image.len())?;
        let sigmas = of_each("sigma", &self.sigma, image.len())?;
        let room = |size: &i64| if self.padding == SsimPadding::Valid { *size } else { size / 2 + 1 };
        let least: Vec<i64> = sizes.iter().map(|size| room(size).saturating_mul(1 << halved)).collect();
        if image.iter().zip(&least).any(|(pixels, least)| pixels < least) {
            let scale = if halved == 0 { String::new() } else { format!(" at the last of {} scales", halved + 1) };
            let expected = format!("an image of at least {least:?}, for the window{scale}");
            return Err(check::shape_error(("input", input), expected));
        }
        let taps = |(size, sigma): (i64, f64)| match self.window {
            SsimWindow::Gaussian => gaussian(size, sigma),
            SsimWindow::Uniform => vec![1.0 / size as f64; size as usize].into(),
        };
        Ok(sizes.into_iter().zip(sigmas).map(taps).collect())
    }

    /// The image, with a mirrored border where `padding` asks for one.
    fn f_padded(&self, image: &Tensor, window: &[Taps]) -> Result<Tensor, LossError> {
        if self.padding == SsimPadding::Valid {
            return Ok(image.shallow_clone());
        }
        // libtorch wants the last dimension first.
        let padding: Vec<i64> = window.iter().rev().flat_map(|taps| [taps.len() as i64 / 2; 2]).collect();
        f_of_elements(image, |image| {
            Ok(match window.len() {
                1 => image.f_reflection_pad1d(padding)?,
                2 => image.f_reflection_pad2d(padding)?,
                _ => image.f_reflection_pad3d(padding)?,
            })
        })
    }
}

/// One value for each dimension.
fn of_each<T: Copy + std::fmt::Debug>(option: &'static str, values: &[T], dims: usize) -> Result<Vec<T>, LossError> {
    if let [value] = values {
        return Ok(vec![*value; dims]);
    }
    let expected = format!("one number, or {dims} for the dimensions of the image");
    check::option(option, format!("{values:?}"), values.len() == dims, &expected)?;
    Ok(values.into())
}

impl Loss for SsimLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(unreduced);

    fn f_check_options(&self) -> Result<(), LossError> {
        check_range(self.data_range, self.k1, self.k2)?;
        check::not_negative("eps", self.eps)?;
        for &size in &self.window_size {
            let odd = self.padding == SsimPadding::Valid || size % 2 == 1;
            let expected = if odd { "numbers ≥ 1" } else { "odd numbers, for a reflected border" };
            check::option("window_size", size, odd && size >= 1, expected)?;
        }
        self.sigma.iter().try_for_each(|&sigma| check::positive("sigma", sigma))
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let [input, target] = &f_images(input, target)?;
        self.f_check_options()?;
        let window = self.f_window(input, 0)?;
        let one_pixel = is_one_pixel(&window);
        let [x, y] = f_pair(input, target, one_pixel)?;
        let products = f_products(&self.f_padded(&x, &window)?, &self.f_padded(&y, &window)?)?;
        let moments = f_means(&products, &window, Beyond::Nothing)?;
        let [c1, c2] = self.constants();
        let unlikeness = Unlikeness { luminance: Some(c1), structure: c2, eps: self.eps, one_pixel };
        let loss = match self.scope {
            SsimScope::Pixel => unlikeness.f_of(&moments, None, self.reduction)?,
            SsimScope::Sample => {
                let pixels = unlikeness.f_of(&moments, None, Reduction::None)?;
                self.reduction.f_apply(&pixels.f_flatten(1, -1)?.f_mean_dim(1, false, None)?)?
            }
        };
        let loss = match self.form {
            SsimForm::Complement => loss,
            SsimForm::Dissimilarity => loss.f_mul_number(0.5)?,
        };
        Ok(loss.f_to_kind(result_kind(input)?)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::random::rand;

    fn image(shape: &[i64]) -> Tensor {
        rand(shape)
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let small = image(&[1, 1, 4, 4]);
        let new = || SsimLoss::new().window_size(&[3]);
        let message =
            |loss: SsimLoss, input: &Tensor, target: &Tensor| loss.f_forward(input, target).unwrap_err().to_string();
        let cases = [
            (
                message(SsimLoss::new(), &small, &small),
                "input has shape [1, 1, 4, 4], expected an image of at least [11, 11], for the window",
            ),
            (
                message(new(), &image(&[4, 4]), &image(&[4, 4])),
                "input has shape [4, 4], expected [N, C, H, W] or [N, C, D, H, W], with at least one channel, or \
                 spatial_dims(1) for lines [N, C, L]",
            ),
            (
                message(new().data_range(0.0), &small, &small),
                "option data_range is 0, expected a number in [1e-37, 1e37]",
            ),
            (message(new().k2(-1.0), &small, &small), "option k2 is -1, expected a number in [0, 1e37]"),
            (message(new().sigma(&[0.0]), &small, &small), "option sigma is 0, expected a number in [1e-37, 1e37]"),
            (message(new().window_size(&[0]), &small, &small), "option window_size is 0, expected numbers ≥ 1"),
            (
                message(new().window_size(&[2]).padding(SsimPadding::Reflect), &small, &small),
                "option window_size is 2, expected odd numbers, for a reflected border",
            ),
            (
                message(new().window_size(&[3, 3, 3]), &small, &small),
                "option window_size is [3, 3, 3], expected one number, or 2 for the dimensions of the image",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (input, target) = (image(&[2, 1, 4, 5]), image(&[2, 1, 4, 5]));
        for padding in [SsimPadding::Valid, SsimPadding::Reflect] {
            let loss = SsimLoss::new().window_size(&[3]).padding(padding);
            crate::numeric::assert_gradient(&input, |input| loss.forward(input, &target));
            crate::numeric::assert_gradient(&target, |target| loss.forward(&input, target));
        }
    }

    #[test]
    fn a_small_loss_keeps_its_digits() {
        let target = image(&[1, 1, 12, 12]);
        let input = &target + image(&[1, 1, 12, 12]) * 1e-4;
        let exact = SsimLoss::new().forward(&input, &target).double_value(&[]);
        let single = SsimLoss::new().forward(&input.to_kind(Kind::Float), &target.to_kind(Kind::Float));
        assert!((single.double_value(&[]) / exact - 1.0).abs() < 1e-2, "{exact:e}");
    }
}
