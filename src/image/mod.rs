//! Losses between images, and of an image alone.

mod ms_ssim;
mod ms_ssim_l1;
mod psnr;
mod ssim;
mod total_variation;

use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::kernels::f_slide;
use crate::numeric::wide_kind;
use crate::{LossError, check};

pub use ms_ssim::{MsSsimLoss, MsSsimScope};
pub use ms_ssim_l1::MsSsimL1Loss;
pub use psnr::{PsnrLoss, PsnrScope};
pub use ssim::{SsimForm, SsimLoss, SsimPadding, SsimScope, SsimWindow};
pub use total_variation::{PixelReduction, TotalVariationLoss};

/// The weights of a window along one dimension; their sum is 1.
type Taps = Arc<[f64]>;

/// A Gaussian about the middle of the window.
fn gaussian(size: i64, sigma: f64) -> Taps {
    let middle = (size - 1) as f64 / 2.0;
    // Relative to the nearest pixel, so that not all of a narrow one is 0 where no pixel is in the middle.
    let nearest = middle.fract().powi(2);
    let height = |at: i64| (-0.5 * ((at as f64 - middle).powi(2) - nearest) / sigma / sigma).exp();
    let heights: Vec<f64> = (0..size).map(height).collect();
    let sum: f64 = heights.iter().sum();
    heights.into_iter().map(|height| height / sum).collect()
}

/// The range of the pixels and the two constants that stabilise SSIM.
fn check_range(data_range: f64, k1: f64, k2: f64) -> Result<(), LossError> {
    check::positive("data_range", data_range)?;
    for (option, k) in [("k1", k1), ("k2", k2)] {
        check::not_negative(option, k)?;
        check::option(
            option,
            k,
            (k * data_range).powi(2) <= 1e37,
            "a number whose product with data_range has a square",
        )?;
    }
    Ok(())
}

/// The means under a window, which has taps for each of the last dimensions.
fn f_means(input: &Tensor, window: &[Taps]) -> Result<Tensor, LossError> {
    let first = input.dim() - window.len();
    let along = |input: Tensor, (dim, taps): (usize, &Taps)| f_slide(&input, first + dim, taps);
    window.iter().enumerate().try_fold(input.shallow_clone(), along)
}

/// What two images x and y have in common and what not, under a window: of their sum and of their difference the
/// square of the mean, and the variance.
///
/// SSIM and one minus it are both functions of these four, without a difference of numbers that are nearly equal where
/// the images are. μ_x² + μ_y² is half the sum of the squares of the means, 2 μ_x μ_y half their difference, and so
/// on.
struct Moments {
    mean_of_sum: Tensor,
    mean_of_difference: Tensor,
    variance_of_sum: Tensor,
    variance_of_difference: Tensor,
}

impl Moments {
    fn f_new(sum: &Tensor, difference: &Tensor, window: &[Taps]) -> Result<Self, LossError> {
        let moments = |image: &Tensor| {
            let mean = f_means(image, window)?.f_square()?;
            let variance = f_means(&image.f_square()?, window)?.f_sub(&mean)?;
            Ok::<_, LossError>((mean, variance))
        };
        let (mean_of_sum, variance_of_sum) = moments(sum)?;
        let (mean_of_difference, variance_of_difference) = moments(difference)?;
        Ok(Self { mean_of_sum, mean_of_difference, variance_of_sum, variance_of_difference })
    }

    /// The denominator of the luminance, μ_x² + μ_y² + c, and what its numerator lacks of it.
    fn f_luminance(&self, c: f64) -> Result<[Tensor; 2], LossError> {
        f_fraction(&self.mean_of_sum, &self.mean_of_difference, c)
    }

    /// The denominator of contrast and structure, σ_x² + σ_y² + c, and what its numerator lacks of it.
    fn f_structure(&self, c: f64) -> Result<[Tensor; 2], LossError> {
        f_fraction(&self.variance_of_sum, &self.variance_of_difference, c)
    }
}

fn f_fraction(of_sum: &Tensor, of_difference: &Tensor, c: f64) -> Result<[Tensor; 2], LossError> {
    let denominator = of_sum.f_add(of_difference)?.f_mul_scalar(0.5)?.f_add_scalar(c)?;
    Ok([denominator, of_difference.shallow_clone()])
}

/// What one minus a product lacks of 1 with one more factor, given as its denominator and what its numerator lacks.
fn f_joined(lacking: Option<Tensor>, [denominator, missing]: [Tensor; 2]) -> Result<Tensor, LossError> {
    let share = missing.f_div(&denominator)?;
    match lacking {
        None => Ok(share),
        Some(lacking) => Ok(share.f_add(&share.f_rsub_scalar(1)?.f_mul(&lacking)?)?),
    }
}

/// The kind in which local variances are computed: they are differences of nearly equal numbers, which single precision leaves
/// few digits of. A GPU has no time for double precision.
fn exact_kind(image: &Tensor) -> Result<Kind, LossError> {
    if image.device().is_cuda() { wide_kind(image) } else { Ok(Kind::Double) }
}
