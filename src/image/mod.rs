//! Losses between images, and of an image alone.
//!
//! [`SsimLoss`] or [`MsSsimLoss`] beside an L1 for restoration, [`MsSsimL1Loss`] for both in one;
//! [`TotalVariationLoss`] beside another one against noise.
//!
//! # Images
//!
//! These need the feature `image`.
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`SsimLoss`] | structure, as the eye sees it | `monai.losses.SSIMLoss`, kornia `SSIMLoss`, `SSIM3DLoss` | `input, target` |
//! | [`MsSsimLoss`] | the same at several scales | `monai.metrics.MultiScaleSSIMMetric` | `input, target` |
//! | [`MsSsimL1Loss`] | the same and the colour | kornia `MS_SSIMLoss` | `input, target` |
//! | [`PsnrLoss`] | decibels of a codec | kornia `PSNRLoss` | `input, target` |
//! | [`TotalVariationLoss`] | an image without noise | kornia `TotalVariation` | `input` |

mod ms_ssim;
mod ms_ssim_l1;
mod psnr;
mod ssim;
mod total_variation;

use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::kernels::{Beyond, Map, NumberOperations, Pointwise, Real, f_map, f_pointwise_of_planes, f_slide, waits};
use crate::numeric::{f_reals, real, wide_kind};
use crate::{LossError, Reduction, check};

pub use ms_ssim::{MsSsimLoss, MsSsimScope};
pub use ms_ssim_l1::MsSsimL1Loss;
pub use psnr::{PsnrLoss, PsnrScope};
pub use ssim::{SsimForm, SsimLoss, SsimPadding, SsimScope, SsimWindow};
pub use total_variation::{PixelReduction, TotalVariationLoss};

/// The weights of a window along one dimension; their sum is 1.
type Taps = Arc<[f64]>;

/// A Gaussian around the middle of the window.
fn gaussian(size: i64, sigma: f64) -> Taps {
    let middle = (size - 1) as f64 / 2.0;
    // Relative to the pixel nearest to the middle. In a window of even size the heights of a narrow Gaussian would
    // otherwise all be 0.
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

/// Whether a window is a single pixel, whose variance is 0.
fn is_one_pixel(window: &[Taps]) -> bool {
    window.iter().all(|taps| taps.len() == 1)
}

/// The weighted means under a window, which has one list of weights for each of the last dimensions.
fn f_means(input: &Tensor, window: &[Taps], beyond: Beyond) -> Result<Tensor, LossError> {
    let first = input.dim() - window.len();
    let along = |input: Tensor, (dim, taps): (usize, &Taps)| f_slide(&input, first + dim, taps, beyond);
    window.iter().enumerate().try_fold(input.shallow_clone(), along)
}

/// Checks two images and returns them. An input of integers, such as bytes, is converted to the floating kind of the
/// target, or to single precision.
fn f_images(input: &Tensor, target: &Tensor) -> Result<[Tensor; 2], LossError> {
    check::devices(&[("input", input), ("target", target)])?;
    let images = [("input", input), ("target", target)];
    images.into_iter().try_for_each(real)?;
    check::same_shape(("target", target), ("input", input))?;
    let floating = images.into_iter().find(|image| check::floating(*image).is_ok());
    let kind = floating.map_or(Ok(Kind::Float), |(_, image)| image.f_kind())?;
    let input =
        if check::floating(("input", input)).is_ok() { input.shallow_clone() } else { input.f_to_kind(kind)? };
    Ok([input, target.shallow_clone()])
}

/// Input and target as [`f_products`] takes them: in single precision, which it converts itself, or in the [exact
/// kind](exact_kind).
///
/// In a window of one pixel the variance is 0, and in its second derivative two terms cancel. They must not be rounded
/// to single precision before they are added, because the rest would not be 0.
fn f_pair(input: &Tensor, target: &Tensor, one_pixel: bool) -> Result<[Tensor; 2], LossError> {
    let single = !one_pixel && input.f_kind()? == Kind::Float && target.f_kind()? == Kind::Float;
    let kind = if single { Kind::Float } else { exact_kind(input, one_pixel)? };
    Ok([input.f_to_kind(kind)?, f_reals(("target", target), kind)?])
}

/// The sum of two images, its square, their difference and its square, as a formula of the images.
#[derive(Clone, Copy)]
struct OfImages;

impl Map<2, 4> for OfImages {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> [R; 4] {
        OfSums.evaluate([x + y, x - y])
    }

    #[inline(always)]
    fn derive<R: Real>(self, [x, y]: [R; 2], of_numbers: [R; 4]) -> [R; 2] {
        let [of_sum, of_difference] = OfSums.derive([x + y, x - y], of_numbers);
        [of_sum + of_difference, of_sum - of_difference]
    }
}

/// The same as a formula of their sum and difference.
#[derive(Clone, Copy)]
struct OfSums;

impl Map<2, 4> for OfSums {
    #[inline(always)]
    fn evaluate<R: Real>(self, [sum, difference]: [R; 2]) -> [R; 4] {
        [sum, sum * sum, difference, difference * difference]
    }

    #[inline(always)]
    fn derive<R: Real>(self, [sum, difference]: [R; 2], of: [R; 4]) -> [R; 2] {
        // In a window of one pixel these terms cancel with those of the squared mean, which are rounded in the same
        // way.
        let two = R::of(2.0);
        [two * sum * of[1] + of[0], two * difference * of[3] + of[2]]
    }
}

/// The sum of two images, its square, their difference and its square, in the exact kind: `[4, N, C, …]`. Their means
/// under a window are called the moments of the images.
fn f_products(x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
    f_map(OfImages, [x, y], |[x, y]| {
        let kind = exact_kind(x, false)?;
        let (x, y) = (x.f_to_kind(kind)?, y.f_to_kind(kind)?);
        f_squares(&x.f_add(&y)?, &x.f_sub(&y)?)
    })
}

/// The same, given the sum and the difference.
fn f_products_of_sums(sum: &Tensor, difference: &Tensor) -> Result<Tensor, LossError> {
    f_map(OfSums, [sum, difference], |[sum, difference]| f_squares(sum, difference))
}

fn f_squares(sum: &Tensor, difference: &Tensor) -> Result<Tensor, LossError> {
    Ok(Tensor::f_stack(&[sum, &sum.f_square()?, difference, &difference.f_square()?], 0)?)
}

/// One minus the similarity of two images under a window, computed from their moments, the means of their
/// [products](f_products).
///
/// With s and d the sum and the difference of x and y, μ_x² + μ_y² is half the sum of μ_s² and μ_d², 2 μ_x μ_y half
/// their difference, and so on. So the similarity is a function of the moments of s and d. One minus the similarity is
/// computed without a difference of nearly equal numbers, and so keeps its digits where the images are nearly equal.
#[derive(Debug, Clone, Copy)]
struct Unlikeness {
    /// c₁, where the luminance counts beside contrast and structure.
    luminance: Option<f64>,
    /// c₂.
    structure: f64,
    eps: f64,
    /// Whether the window has [one pixel](is_one_pixel). Then two terms of the gradient cancel, if both are rounded in
    /// the same way; so it is computed by tensor operations.
    one_pixel: bool,
}

impl Unlikeness {
    /// The reduced losses of the moments. With `so_far` they are one minus the product of the similarity and 1 −
    /// `so_far`.
    fn f_of(&self, moments: &Tensor, so_far: Option<&Tensor>, reduction: Reduction) -> Result<Tensor, LossError> {
        let own = *self;
        if self.one_pixel {
            return reduction.f_apply(&own.f_composite(moments, so_far)?);
        }
        match so_far {
            None => f_pointwise_of_planes::<1, 4, _, _>(own, [moments], reduction, move |[moments]| {
                reduction.f_apply(&own.f_composite(moments, None)?)
            }),
            Some(so_far) => {
                f_pointwise_of_planes::<2, 5, _, _>(own, [moments, so_far], reduction, move |[moments, so_far]| {
                    reduction.f_apply(&own.f_composite(moments, Some(so_far))?)
                })
            }
        }
    }

    fn f_composite(&self, moments: &Tensor, so_far: Option<&Tensor>) -> Result<Tensor, LossError> {
        // Each of four selections would have a gradient of the size of all.
        let moments = moments.f_unbind(0)?;
        let square_and_variance = |first: usize| {
            let square = moments[first].f_square()?;
            let variance = moments[first + 1].f_sub(&square)?;
            Ok::<_, LossError>((square, variance))
        };
        let f_raised = |number: &Tensor| match self.eps {
            0.0 => Ok(number.shallow_clone()),
            eps => number.f_add_number(eps),
        };
        let (bright, varied) = square_and_variance(0)?;
        let (dark, loose) = square_and_variance(2)?;
        let denominator = |a: &Tensor, b: &Tensor, c: f64| a.f_add(b)?.f_mul_number(0.5)?.f_add_number(c);
        let structure = denominator(&varied, &loose, self.structure)?;
        let luminance = self.luminance.map(|c| denominator(&bright, &dark, c)).transpose()?;
        let own = match luminance {
            None => f_raised(&loose)?.f_div(&f_raised(&structure)?)?,
            Some(luminance) if self.eps == 0.0 => f_joined(&loose.f_div(&structure)?, &dark.f_div(&luminance)?)?,
            Some(luminance) => {
                let both = luminance.f_mul(&loose)?.f_add(&dark.f_mul(&structure.f_sub(&loose)?)?)?;
                f_raised(&both)?.f_div(&f_raised(&luminance.f_mul(&structure)?)?)?
            }
        };
        so_far.map_or(Ok(own.shallow_clone()), |so_far| f_joined(so_far, &own))
    }
}

/// 1 − (1 − a) (1 − b)
fn f_joined(a: &Tensor, b: &Tensor) -> Result<Tensor, LossError> {
    Ok(b.f_add(&b.f_rsub_number(1)?.f_mul(a)?)?)
}

impl Pointwise<4> for Unlikeness {
    #[inline(always)]
    fn evaluate<R: Real>(self, moments: [R; 4]) -> (R, [R; 4]) {
        let [mean_of_sum, square_of_sum, mean_of_difference, square_of_difference] = moments;
        let (half, two, eps) = (R::of(0.5), R::of(2.0), R::of(self.eps));
        // Without luminance its factor is 1 − 0 / 1, so that the loop needs no branch.
        let (on, c1) = match self.luminance {
            Some(c) => (R::of(1.0), R::of(c)),
            None => (R::of(0.0), R::of(1.0)),
        };
        let (bright, apart) = (mean_of_sum * mean_of_sum, mean_of_difference * mean_of_difference);
        let (varied, loose) = (square_of_sum - bright, square_of_difference - apart);
        let dark = on * apart;
        let luminance = (half * on).mul_add(bright + apart, c1);
        let structure = half.mul_add(varied + loose, R::of(self.structure));
        let denominator = luminance.mul_add(structure, eps);
        let loss = (luminance.mul_add(loose, dark * (structure - loose)) + eps) / denominator;
        let share = R::of(1.0) / denominator;
        let of_luminance = half * on * share * (loose - loss * structure);
        let of_structure = half * share * (dark - loss * luminance);
        let of_dark = on * share * (structure - loose);
        let of_loose = share * (luminance - dark) + of_structure;
        let of_bright = of_luminance - of_structure;
        let of_apart = of_dark + of_luminance - of_loose;
        (loss, [two * mean_of_sum * of_bright, of_structure, two * mean_of_difference * of_apart, of_loose])
    }
}

/// The last argument is one minus the product of the other similarities.
impl Pointwise<5> for Unlikeness {
    #[inline(always)]
    fn evaluate<R: Real>(self, [a, b, c, d, so_far]: [R; 5]) -> (R, [R; 5]) {
        let (own, [of_a, of_b, of_c, of_d]) = Pointwise::<4>::evaluate(self, [a, b, c, d]);
        let (rest, others) = (R::of(1.0) - own, R::of(1.0) - so_far);
        (own + rest * so_far, [of_a * others, of_b * others, of_c * others, of_d * others, rest])
    }
}

/// The kind in which local variances are computed. They are differences of nearly equal numbers, of which few digits
/// are left in single precision, so that the CPU takes double precision. On a GPU that would be too slow, but for a
/// window of one pixel, where none is left.
fn exact_kind(image: &Tensor, one_pixel: bool) -> Result<Kind, LossError> {
    if waits(image) && !one_pixel { wide_kind(image) } else { Ok(Kind::Double) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::like_cuda;
    use crate::random::rand;
    use crate::{Backend, Loss, with_backend};

    /// A window of one pixel has no variance: the similarity is the luminance, and structure leaves no gradient.
    #[test]
    fn a_window_of_one_pixel_has_the_derivatives_of_the_luminance() {
        let (x, y) = (rand([1, 1, 8, 8]), rand([1, 1, 8, 8]));
        let (k1, range) = (0.3, 0.25_f64);
        let derivatives = |loss: &dyn Fn(&Tensor) -> Tensor, kind: Kind| {
            let x = x.to_kind(kind).set_requires_grad(true);
            let first = Tensor::run_backward(&[loss(&x)], &[&x], true, true).remove(0);
            let second = Tensor::run_backward(&[first.square().sum(None)], &[&x], false, false).remove(0);
            [first.detach(), second].map(|derivative| derivative.to_kind(Kind::Double))
        };
        let luminance = |x: &Tensor| {
            let c = (k1 * range).powi(2);
            let y = y.to_kind(Kind::Double);
            let x = x.to_kind(Kind::Double);
            ((x.square() + y.square() - &x * &y * 2.0) / (x.square() + y.square() + c)).mean(None)
        };
        let expected = derivatives(&luminance, Kind::Double);
        let ssim = SsimLoss::new().window_size(&[1]).data_range(range).k1(k1);
        for kind in [Kind::Double, Kind::Float] {
            let target = y.to_kind(kind);
            let of_ssim = || derivatives(&|x| ssim.forward(x, &target), kind);
            let backends = [Backend::Auto, Backend::Composite].map(|backend| with_backend(backend, of_ssim));
            for actual in backends.into_iter().chain([like_cuda(of_ssim)]) {
                for (actual, expected) in actual.iter().zip(&expected) {
                    let scale = expected.abs().max().double_value(&[]);
                    let off = (actual - expected).abs().max().double_value(&[]) / scale;
                    assert!(off < if kind == Kind::Double { 1e-10 } else { 1e-5 }, "{kind:?} {off:e}");
                }
            }
        }
    }

    #[test]
    fn the_scales_of_a_window_of_one_pixel_have_no_gradient_of_structure() {
        // At the first scale there is structure alone: a bright pixel has the gradient of the last one, next to
        // nothing.
        let (x, y) = (rand([1, 1, 8, 8]), rand([1, 1, 8, 8]));
        let _ = x.view(-1).get(0).fill_(3e38);
        let loss = MsSsimLoss::new().weights(&[0.5, 0.5]).window_size(&[1]);
        for kind in [Kind::Double, Kind::Float] {
            let x = x.to_kind(kind).copy().detach().set_requires_grad(true);
            loss.forward(&x, &y.to_kind(kind)).backward();
            assert!(x.grad().view(-1).double_value(&[0]).abs() < 1e-20, "{kind:?}");
        }
    }
}
