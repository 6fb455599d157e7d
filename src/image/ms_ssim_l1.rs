mod at_once;

use tch::Tensor;

use super::{Taps, Unlikeness, check_range, exact_kind, f_images, f_means, f_pair, f_products, gaussian};
use crate::kernels::{Beyond, Map, NumberOperations, Pointwise, Real, Reduce, f_map, f_pointwise, is_on_cuda, waits};
use crate::numeric::{f_abs, result_kind};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The MS-SSIM + L1 loss: structural similarity at several scales, and the absolute difference of two images.
///
/// For restoring images: the similarity keeps contrast and structure from the finest details to the largest window, the
/// absolute difference keeps brightness and colour, which may drift with [`SsimLoss`](crate::SsimLoss) alone. The
/// scales are Gaussians of different widths over the full image, so that no pixel is left out.
///
/// # Formula
///
/// ℓᵢ = κ (α (1 − mean_c(l_M Πⱼ csⱼ)) + (1 − α) mean_c(G_M ∗ |x − y|) / L)
///
/// lⱼ = (2 μ_x μ_y + c₁) / (μ_x² + μ_y² + c₁), csⱼ = (2 σ_xy + c₂) / (σ_x² + σ_y² + c₂)
///
/// where x is the input, y the target, μ and σ are their means, variances and covariance at pixel i under the Gaussian
/// Gⱼ, M is the last of the scales j, mean_c that over the channels, c₁ = (k₁ L)², c₂ = (k₂ L)², L the data range and κ
/// the compensation. All windows have the size 2 ⌊2 σ_M⌋ + 1; beyond the border the image is 0.
///
#[doc = include_str!("../../docs/book/src/gallery/ms_ssim_l1.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C, H, W]`, of a floating kind, or integers, such as bytes, with their
///   [`data_range`](Self::data_range)
/// * `target`: `[N, C, H, W]`
/// * result: scalar, or `[N, H, W]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `kornia.losses.MS_SSIMLoss` of kornia 0.9.0; Zhao et al., *Loss Functions for Image Restoration with Neural
/// Networks*, <https://arxiv.org/abs/1511.08861>.
///
/// # Differences from kornia
///
/// * It is computed in `f64` on the CPU; kornia's windows are in `f32`.
/// * A single image is not broadcast over a batch.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ or do not fit, [`LossError::Device`] where devices differ,
/// [`LossError::Kind`] for complex numbers, [`LossError::Option`] for an option out of its range.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{Loss, MsSsimL1Loss};
///
/// let image = Tensor::linspace(0.0, 1.0, 256, (Kind::Float, Device::Cpu)).view([1, 1, 16, 16]);
/// let noisy = (&image + Tensor::randn_like(&image) * 0.1).set_requires_grad(true);
///
/// let criterion = MsSsimL1Loss::new().sigmas(&[0.5, 1.0, 2.0]);
/// let loss = criterion.f_forward(&noisy, &image)?;
/// loss.f_backward()?;
///
/// assert!(f64::try_from(&loss)? > 0.0);
/// assert_eq!(f64::try_from(criterion.f_forward(&image, &image)?)?, 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(PartialEq)]
#[doc(alias = "MS_SSIMLoss")]
#[doc(alias = "MS-SSIM")]
pub struct MsSsimL1Loss: "ms_ssim_l1";

/// The loss with kornia's defaults: five scales from 0.5 to 8.
new {
    /// the standard deviations of the windows in pixels, the widest last. 0.5, 1, 2, 4,
    sigmas: Vec<f64> = vec![0.5, 1.0, 2.0, 4.0, 8.0] => slice,
    /// L > 0, the range of the pixels: 1 for those in \[0, 1\], 255 for bytes.
    data_range: f64 = 1.0,
    /// k₁ ≥ 0, which keeps the luminance of black stable.
    k1: f64 = 0.01,
    /// k₂ ≥ 0, which keeps the structure of plain areas stable.
    k2: f64 = 0.03,
    /// the share α of the similarity, in \[0, 1\]; the absolute difference has the share 1 − α.
    alpha: f64 = 0.025,
    /// what the loss is multiplied by.
    compensation: f64 = 200.0,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl MsSsimL1Loss {
    /// Returns the last of the standard deviations.
    fn check_options(&self) -> Result<f64, LossError> {
        for &sigma in &self.sigmas {
            check::option("sigmas", sigma, sigma > 0.0 && sigma <= WIDEST, "numbers in (0, 10000]")?;
        }
        check_range(self.data_range, self.k1, self.k2)?;
        check::share("alpha", self.alpha)?;
        check::not_negative("compensation", self.compensation)?;
        check::option("sigmas", "empty", !self.sigmas.is_empty(), "at least one number")?;
        Ok(self.sigmas.last().copied().unwrap_or_default())
    }

    /// The loss of two images, in the exact kind.
    fn f_loss(&self, x: &Tensor, y: &Tensor, widest: f64) -> Result<Tensor, LossError> {
        let radius = radius(widest);
        // The window is cut to the size of the image, because beyond the image there are only zeros.
        let reach: Vec<i64> = x.size()[2..].iter().map(|pixels| radius.min(pixels - 1)).collect();
        let window = |sigma: f64| -> Vec<Taps> {
            let taps = gaussian(2 * radius + 1, sigma);
            let within = |reach: &i64| taps[(radius - reach) as usize..=(radius + reach) as usize].into();
            reach.iter().map(within).collect()
        };
        let [c1, c2] = [self.k1, self.k2].map(|k| (k * self.data_range).powi(2));
        let windows: Vec<Vec<Taps>> = self.sigmas.iter().map(|sigma| window(*sigma)).collect();
        let one_by_one = {
            let windows = windows.clone();
            move |x: &Tensor, y: &Tensor| f_one_by_one([x, y], &windows, [c1, c2], radius == 0)
        };
        let lacking = match waits(x) && !is_on_cuda(x) && radius > 0 && x.numel() > 0 {
            true => at_once::f_lacking([x, y], windows, [c1, c2], one_by_one)?,
            false => one_by_one(x, y)?,
        };
        let distance = f_map(Distance, [x, y], f_distance)?;
        let distance = f_means(&distance, &window(widest), Beyond::Zeros)?.f_squeeze_dim(0)?;
        self.f_sum(&lacking, &distance)
    }

    /// The weighted sum of one minus the similarity and of the distance for each channel, averaged over the channels
    /// and reduced.
    fn f_sum(&self, lacking: &Tensor, distance: &Tensor) -> Result<Tensor, LossError> {
        let reduction = self.reduction;
        let sum = Sum {
            of_lacking: self.compensation * self.alpha,
            of_distance: self.compensation * (1.0 - self.alpha) / self.data_range,
        };
        let reduce = match reduction {
            Reduction::Sum => Reduce::Sum(1.0 / lacking.size()[1] as f64),
            reduction => reduction.into(),
        };
        let channels = f_pointwise(sum, [lacking, distance], reduce, move |[lacking, distance]| {
            let channels = lacking.f_mul_number(sum.of_lacking)?.f_add(&distance.f_mul_number(sum.of_distance)?)?;
            match reduction {
                Reduction::None => Ok(channels),
                _ => reduction.f_apply(&channels.f_mean_dim(1, false, None)?),
            }
        })?;
        match reduction {
            Reduction::None => Ok(channels.f_mean_dim(1, false, None)?),
            _ => Ok(channels),
        }
    }
}

/// One minus the product of the similarities at all scales, scale by scale. The last one has the luminance.
fn f_one_by_one(
    [x, y]: [&Tensor; 2],
    windows: &[Vec<Taps>],
    [c1, c2]: [f64; 2],
    one_pixel: bool,
) -> Result<Tensor, LossError> {
    let products = f_products(x, y)?;
    let mut lacking = None;
    for (scale, window) in windows.iter().enumerate() {
        let luminance = (scale + 1 == windows.len()).then_some(c1);
        let unlikeness = Unlikeness { luminance, structure: c2, eps: 0.0, one_pixel };
        let moments = f_means(&products, window, Beyond::Zeros)?;
        lacking = Some(unlikeness.f_of(&moments, lacking.as_ref(), Reduction::None)?);
    }
    Ok(lacking.map_or_else(|| x.f_zeros_like(), Ok)?)
}

/// |x − y|
#[derive(Clone, Copy)]
struct Distance;

impl Map<2, 1> for Distance {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> [R; 1] {
        [(x - y).abs()]
    }

    #[inline(always)]
    fn derive<R: Real>(self, [x, y]: [R; 2], [of_distance]: [R; 1]) -> [R; 2] {
        let slope = (x - y).sign() * of_distance;
        [slope, -slope]
    }
}

fn f_distance([x, y]: [&Tensor; 2]) -> Result<Tensor, LossError> {
    let kind = exact_kind(x, false)?;
    Ok(f_abs(&x.f_to_kind(kind)?.f_sub(&y.f_to_kind(kind)?)?)?.f_unsqueeze(0)?)
}

/// The weighted sum of both terms.
#[derive(Clone, Copy)]
struct Sum {
    of_lacking: f64,
    of_distance: f64,
}

impl Pointwise<2> for Sum {
    #[inline(always)]
    fn evaluate<R: Real>(self, [lacking, distance]: [R; 2]) -> (R, [R; 2]) {
        let (of_lacking, of_distance) = (R::of(self.of_lacking), R::of(self.of_distance));
        (of_lacking * lacking + of_distance * distance, [of_lacking, of_distance])
    }
}

/// The largest standard deviation: its window of 40000 pixels is larger than any image.
const WIDEST: f64 = 1e4;

/// The number of pixels from the middle of a window to its border, for a standard deviation.
fn radius(sigma: f64) -> i64 {
    (2.0 * sigma) as i64
}

impl Loss for MsSsimL1Loss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(unreduced);

    fn f_check_options(&self) -> Result<(), LossError> {
        self.check_options().map(drop)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let [input, target] = &f_images(input, target)?;
        let widest = self.check_options()?;
        let fits = input.dim() == 4 && !input.size()[1..].contains(&0);
        check::shape(("input", input), fits, "[N, C, H, W], with pixels")?;
        let [x, y] = f_pair(input, target, radius(widest) == 0)?;
        Ok(self.f_loss(&x, &y, widest)?.f_to_kind(result_kind(input)?)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::random::rand;

    #[test]
    fn wrong_calls_name_the_argument() {
        let image = Tensor::ones([1, 1, 4, 4], (Kind::Double, Device::Cpu));
        let message = |loss: MsSsimL1Loss, image: &Tensor| loss.f_forward(image, image).unwrap_err().to_string();
        let new = MsSsimL1Loss::new;
        let cases = [
            (message(new(), &image.view([4, 4])), "input has shape [4, 4], expected [N, C, H, W], with pixels"),
            (message(new().sigmas(&[]), &image), "option sigmas is empty, expected at least one number"),
            (message(new().sigmas(&[-1.0]), &image), "option sigmas is -1, expected numbers in (0, 10000]"),
            (message(new().alpha(2.0), &image), "option alpha is 2, expected a number in [0, 1]"),
            (message(new().data_range(0.0), &image), "option data_range is 0, expected a number in [1e-37, 1e37]"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let image = || rand([1, 2, 4, 5]);
        let (input, target) = (image(), image());
        let loss = MsSsimL1Loss::new().sigmas(&[0.5, 1.5]).alpha(0.4).compensation(3.0);
        crate::numeric::assert_gradient(&input, |input| loss.forward(input, &target));
        crate::numeric::assert_gradient(&target, |target| loss.forward(&input, target));
    }
}
