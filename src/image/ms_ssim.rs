use tch::Tensor;

use super::ssim::of_similarity;
use super::{SsimLoss, Taps, Unlikeness, exact_kind, f_images, f_means, f_products_of_sums, is_one_pixel};
use crate::kernels::{Beyond, NumberOperations};
use crate::numeric::{f_reals, result_kind};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The MS-SSIM loss: one minus the structural similarity of two images at several scales, under a small window in the
/// image and in smaller and smaller copies of it.
///
/// For restoring, compressing and generating images that are looked at from various distances: it weighs fine and
/// coarse structure as eyes do, where [`SsimLoss`] compares a single scale. The images must be large: 176 pixels wide
/// and high with the defaults. [`MsSsimL1Loss`](crate::MsSsimL1Loss) has windows of several sizes over one image
/// instead, and adds the absolute difference.
///
/// # Formula
///
/// ℓ = 1 − max(0, l_M c_M)^{w_M} Π_{i<M} max(0, c_i)^{w_i}
///
/// where the scales i = 1, …, M are the images, halved i − 1 times by the mean of neighbours, c_i is the mean of
/// contrast and structure (2 σ_xy + c₂) / (σ_x² + σ_y² + c₂) under the window, and l_M c_M that of the similarity, with
/// the luminance, at the last scale; see [`SsimLoss`]. w are the weights of the scales.
///
#[doc = include_str!("../../docs/book/src/gallery/ms_ssim.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C, H, W]` or `[N, C, D, H, W]`, or `[N, C, L]` with [`spatial_dims(1)`](Self::spatial_dims); the
///   last scale holds the window; of a floating kind, or integers, such as bytes, with their
///   [`data_range`](Self::data_range)
/// * `target`: `[N, C, H, W]`, `[N, C, D, H, W]` or `[N, C, L]`, the same shape
/// * result: scalar; with [`Reduction::None`] `[N]`, or `[N, C]` with [`MsSsimScope::Channel`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// One minus `monai.metrics.regression.compute_ms_ssim` (`MultiScaleSSIMMetric`) of MONAI 1.6.1. Wang, Simoncelli and
/// Bovik, *Multiscale Structural Similarity for Image Quality Assessment*, 2003.
///
/// # Differences from MONAI
///
/// * Where a mean is 0 or less the loss is 1 and its gradient 0, as in MONAI; second derivatives are 0 as well, for
///   which the plain formula can give NaN.
/// * It is computed in `f64` on the CPU, as [`SsimLoss`] is, and from the difference of the images.
/// * The image need only be so large that the last scale holds the window; MONAI divides by the squared number of
///   halvings instead of the power of two.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ or the last scale is smaller than the window, [`LossError::Device`] where
/// devices do, [`LossError::Kind`] for complex numbers, [`LossError::Option`] for an option out of its
/// range.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{Loss, MsSsimLoss};
///
/// let image = Tensor::linspace(0.0, 1.0, 32 * 32, (Kind::Float, Device::Cpu)).view([1, 1, 32, 32]);
/// let noisy = (&image + Tensor::randn_like(&image) * 0.1).set_requires_grad(true);
///
/// let criterion = MsSsimLoss::new().weights(&[0.3, 0.4, 0.3]).window_size(&[7]);
/// let loss = criterion.f_forward(&noisy, &image)?;
/// loss.f_backward()?;
///
/// assert!(f64::try_from(&loss)? > 0.0);
/// assert_eq!(f64::try_from(criterion.f_forward(&image, &image)?)?, 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "MS_SSIM")]
#[doc(alias = "MultiScaleSSIMMetric")]
#[doc(alias = "compute_ms_ssim")]
#[doc(alias = "multi-scale structural similarity")]
pub struct MsSsimLoss: "ms_ssim";

/// The loss with the paper's five scales and window.
new {
    // The options that it has in common with the loss of a single scale.
    inner single: SsimLoss = SsimLoss::new();
    /// the weights of the scales, the exponents w ≥ 0, from the image itself to its smallest copy.
    weights: Vec<f64> = vec![0.0448, 0.2856, 0.3001, 0.2363, 0.1333] => slice,
    /// what has a loss of its own: each sample or each channel.
    scope: MsSsimScope = MsSsimScope::Sample,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
    ..of_similarity in single,
}
}

/// What has a loss of its own in an [`MsSsimLoss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum MsSsimScope {
    /// Each sample: the means are over its channels and pixels. The default, as in MONAI.
    #[default]
    Sample,
    /// Each channel of each sample.
    Channel,
}

crate::options::words!(MsSsimScope);

impl MsSsimLoss {
    /// The losses of images in double precision.
    fn f_losses(&self, x: &Tensor, y: &Tensor, window: &[Taps]) -> Result<Tensor, LossError> {
        let [c1, c2] = self.single.constants();
        let (mut sum, mut difference) = (x.f_add(y)?, x.f_sub(y)?);
        let mut logarithm = self.f_means(&difference)?.f_zeros_like()?;
        let mut opposed = logarithm.f_zeros_like()?.f_to_kind(tch::Kind::Bool)?;
        for (scale, &weight) in self.weights.iter().enumerate() {
            if scale > 0 {
                (sum, difference) = (f_halved(&sum)?, f_halved(&difference)?);
            }
            // A scale of weight 0 has the factor 1.
            if weight == 0.0 {
                continue;
            }
            let luminance = (scale + 1 == self.weights.len()).then_some(c1);
            let moments = f_means(&f_products_of_sums(&sum, &difference)?, window, Beyond::Nothing)?;
            let unlikeness = Unlikeness { luminance, structure: c2, eps: 0.0, one_pixel: is_one_pixel(window) };
            let lacking = self.f_means(&unlikeness.f_of(&moments, None, Reduction::None)?)?;
            let none_left = lacking.f_ge_number(1)?;
            let term = lacking.f_masked_fill_number(&none_left, 0)?.f_neg()?.f_log1p()?.f_mul_number(weight)?;
            logarithm = logarithm.f_add(&term)?;
            opposed = opposed.f_logical_or(&none_left)?;
        }
        Ok(logarithm.f_expm1()?.f_neg()?.f_masked_fill_number(&opposed, 1)?)
    }

    /// The means over the pixels that share a loss.
    fn f_means(&self, map: &Tensor) -> Result<Tensor, LossError> {
        let first = match self.scope {
            MsSsimScope::Sample => 1,
            MsSsimScope::Channel => 2,
        };
        Ok(map.f_flatten(first, -1)?.f_mean_dim(first, false, None)?)
    }
}

/// The image at half the size: the means of neighbouring pixels. The last pixel of an odd size is dropped.
fn f_halved(image: &Tensor) -> Result<Tensor, LossError> {
    let dims = image.dim() - 2;
    let (two, zero) = (vec![2; dims], vec![0; dims]);
    Ok(match dims {
        1 => image.f_avg_pool1d(&two, &two, &zero, false, true)?,
        2 => image.f_avg_pool2d(&two, &two, &zero, false, true, None)?,
        _ => image.f_avg_pool3d(&two, &two, &zero, false, true, None)?,
    })
}

impl Loss for MsSsimLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(unreduced);

    fn f_check_options(&self) -> Result<(), LossError> {
        self.single.f_check_options()?;
        let count = self.weights.len();
        check::option("weights", format!("{count} numbers"), (1..=32).contains(&count), "1 to 32 numbers")?;
        self.weights.iter().try_for_each(|&weight| check::not_negative("weights", weight))
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let [input, target] = &f_images(input, target)?;
        self.f_check_options()?;
        let window = self.single.f_window(input, self.weights.len() as u32 - 1)?;
        let (kind, wide) = (result_kind(input)?, exact_kind(input, is_one_pixel(&window))?);
        let losses = self.f_losses(&input.f_to_kind(wide)?, &f_reals(("target", target), wide)?, &window)?;
        Ok(self.reduction.f_apply(&losses)?.f_to_kind(kind)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::rand;

    fn image(shape: &[i64]) -> Tensor {
        rand(shape)
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let message = |loss: MsSsimLoss, image: &Tensor| loss.f_forward(image, image).unwrap_err().to_string();
        let (small, new) = (image(&[1, 1, 8, 8]), MsSsimLoss::new);
        let cases = [
            (
                message(new(), &image(&[1, 1, 175, 176])),
                "input has shape [1, 1, 175, 176], expected an image of at least [176, 176], for the window at the \
                 last of 5 scales",
            ),
            (
                message(new(), &small.view([8, 8])),
                "input has shape [8, 8], expected [N, C, H, W] or [N, C, D, H, W], with at least one channel, or \
                 spatial_dims(1) for lines [N, C, L]",
            ),
            (message(new().weights(&[]), &small), "option weights is 0 numbers, expected 1 to 32 numbers"),
            (message(new().weights(&[-1.0]), &small), "option weights is -1, expected a number in [0, 1e37]"),
            (message(new().data_range(0.0), &small), "option data_range is 0, expected a number in [1e-37, 1e37]"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn a_single_scale_is_the_loss_of_one() {
        let x = image(&[2, 3, 8, 9]);
        let y = &x + image(&[2, 3, 8, 9]) * 0.1;
        let several = MsSsimLoss::new().weights(&[1.0]).window_size(&[3]).forward(&x, &y);
        let single = SsimLoss::new().window_size(&[3]).forward(&x, &y);
        assert!((several - single).double_value(&[]).abs() < 1e-14);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let target = image(&[2, 2, 6, 7]);
        let input = &target + image(&[2, 2, 6, 7]) * 0.3;
        for scope in [MsSsimScope::Sample, MsSsimScope::Channel] {
            let loss = MsSsimLoss::new().weights(&[0.4, 0.6]).window_size(&[3]).scope(scope);
            crate::numeric::assert_gradient(&input, |input| loss.forward(input, &target));
            crate::numeric::assert_gradient(&target, |target| loss.forward(&input, target));
        }
    }

    #[test]
    fn opposed_images_have_a_loss_of_one_and_no_gradient() {
        let image = image(&[1, 1, 8, 8]);
        let input = (image.neg() + 1.0).set_requires_grad(true);
        let loss = MsSsimLoss::new().weights(&[0.5, 0.5]).window_size(&[3]).forward(&input, &image);
        loss.backward();
        assert_eq!(loss.double_value(&[]), 1.0);
        assert_eq!(input.grad(), image.zeros_like());
    }
}
