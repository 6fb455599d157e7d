//! Losses between images, and of an image alone.

mod ms_ssim;
mod ms_ssim_l1;
mod psnr;
mod ssim;
mod total_variation;

use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::kernels::{Beyond, Map, NumberOperations, Pointwise, Real, f_map, f_pointwise_of_planes, f_slide};
use crate::numeric::{f_reals, real, wide_kind};
use crate::{LossError, Reduction, check};

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

/// Whether a window is a single pixel, whose variance is 0.
fn is_one_pixel(window: &[Taps]) -> bool {
    window.iter().all(|taps| taps.len() == 1)
}

/// The means under a window, which has taps for each of the last dimensions.
fn f_means(input: &Tensor, window: &[Taps], beyond: Beyond) -> Result<Tensor, LossError> {
    let first = input.dim() - window.len();
    let along = |input: Tensor, (dim, taps): (usize, &Taps)| f_slide(&input, first + dim, taps, beyond);
    window.iter().enumerate().try_fold(input.shallow_clone(), along)
}

/// The images after the checks that the losses of two of them begin with. Integers, such as bytes, are taken in the
/// floating kind of the target, or in single precision.
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

/// Input and target as [`f_products`] takes them: in single precision, which it converts itself, or in the exact kind.
///
/// In a window of one pixel the parts of a second derivative that come by the square and by its mean leave nothing, so
/// that they must not be rounded to single precision before they meet.
fn f_pair(input: &Tensor, target: &Tensor, one_pixel: bool) -> Result<[Tensor; 2], LossError> {
    let single = !one_pixel && input.f_kind()? == Kind::Float && target.f_kind()? == Kind::Float;
    let kind = if single { Kind::Float } else { exact_kind(input)? };
    Ok([input.f_to_kind(kind)?, f_reals(("target", target), kind)?])
}

/// Of the sum and the difference of two images the number and its square.
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

/// The same of their sum and difference.
#[derive(Clone, Copy)]
struct OfSums;

impl Map<2, 4> for OfSums {
    #[inline(always)]
    fn evaluate<R: Real>(self, [sum, difference]: [R; 2]) -> [R; 4] {
        [sum, sum * sum, difference, difference * difference]
    }

    #[inline(always)]
    fn derive<R: Real>(self, [sum, difference]: [R; 2], of: [R; 4]) -> [R; 2] {
        // Rounded alike, what a window of one pixel has of a square and of its mean leaves nothing.
        let two = R::of(2.0);
        [two * sum * of[1] + of[0], two * difference * of[3] + of[2]]
    }
}

/// The sum of two images, its square, their difference and its square, in the exact kind: `[4, N, C, …]`. Their means under a
/// window are the moments of the images.
fn f_products(x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
    f_map(OfImages, [x, y], |[x, y]| {
        let kind = exact_kind(x)?;
        let (x, y) = (x.f_to_kind(kind)?, y.f_to_kind(kind)?);
        f_squares(&x.f_add(&y)?, &x.f_sub(&y)?)
    })
}

/// The same, given sum and difference.
fn f_products_of_sums(sum: &Tensor, difference: &Tensor) -> Result<Tensor, LossError> {
    f_map(OfSums, [sum, difference], |[sum, difference]| f_squares(sum, difference))
}

fn f_squares(sum: &Tensor, difference: &Tensor) -> Result<Tensor, LossError> {
    Ok(Tensor::f_stack(&[sum, &sum.f_square()?, difference, &difference.f_square()?], 0)?)
}

/// How unlike two images are under a window: what their similarity lacks of 1, made of their moments, the means of their [products](f_products).
///
/// With s and d the sum and the difference of x and y, μ_x² + μ_y² is half the sum of μ_s² and μ_d², 2 μ_x μ_y half their
/// difference, and so on. So the similarity and what it lacks are functions of the moments of s and d, and the latter has no
/// difference of numbers that are nearly equal where the images are.
#[derive(Debug, Clone, Copy)]
struct Unlikeness {
    /// c₁, where the luminance counts beside contrast and structure.
    luminance: Option<f64>,
    /// c₂.
    structure: f64,
    eps: f64,
    /// Whether the window has [one pixel](is_one_pixel). The parts of the gradient of the variances, which is 0, then leave
    /// nothing where both are rounded alike, as tensor operations do.
    one_pixel: bool,
}

impl Unlikeness {
    /// The losses of the moments, reduced; where `so_far` is given, what the product of the similarity with 1 − `so_far`
    /// lacks of 1.
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
        let square_and_variance = |first: i64| {
            let square = moments.f_select(0, first)?.f_square()?;
            let variance = moments.f_select(0, first + 1)?.f_sub(&square)?;
            Ok::<_, LossError>((square, variance))
        };
        let (bright, varied) = square_and_variance(0)?;
        let (dark, loose) = square_and_variance(2)?;
        let denominator = |a: &Tensor, b: &Tensor, c: f64| a.f_add(b)?.f_mul_number(0.5)?.f_add_number(c);
        let structure = denominator(&varied, &loose, self.structure)?;
        let luminance = self.luminance.map(|c| denominator(&bright, &dark, c)).transpose()?;
        let own = match luminance {
            None => loose.f_add_number(self.eps)?.f_div(&structure.f_add_number(self.eps)?)?,
            Some(luminance) if self.eps == 0.0 => f_joined(&loose.f_div(&structure)?, &dark.f_div(&luminance)?)?,
            Some(luminance) => {
                let both = luminance.f_mul(&loose)?.f_add(&dark.f_mul(&structure.f_sub(&loose)?)?)?;
                both.f_add_number(self.eps)?.f_div(&luminance.f_mul(&structure)?.f_add_number(self.eps)?)?
            }
        };
        so_far.map_or(Ok(own.shallow_clone()), |so_far| f_joined(so_far, &own))
    }
}

/// What (1 − a) (1 − b) lacks of 1.
fn f_joined(a: &Tensor, b: &Tensor) -> Result<Tensor, LossError> {
    Ok(b.f_add(&b.f_rsub_number(1)?.f_mul(a)?)?)
}

impl Pointwise<4> for Unlikeness {
    #[inline(always)]
    fn evaluate<R: Real>(self, moments: [R; 4]) -> (R, [R; 4]) {
        let [mean_of_sum, square_of_sum, mean_of_difference, square_of_difference] = moments;
        let (half, two, eps) = (R::of(0.5), R::of(2.0), R::of(self.eps));
        // No luminance is the fraction 0 / 1, so that the loop has no branch.
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

/// The last argument is what the other similarities lack.
impl Pointwise<5> for Unlikeness {
    #[inline(always)]
    fn evaluate<R: Real>(self, [a, b, c, d, so_far]: [R; 5]) -> (R, [R; 5]) {
        let (own, [of_a, of_b, of_c, of_d]) = Pointwise::<4>::evaluate(self, [a, b, c, d]);
        let (rest, others) = (R::of(1.0) - own, R::of(1.0) - so_far);
        (own + rest * so_far, [of_a * others, of_b * others, of_c * others, of_d * others, rest])
    }
}

/// The kind in which local variances are computed: they are differences of nearly equal numbers, which single precision leaves
/// few digits of. A GPU has no time for double precision.
fn exact_kind(image: &Tensor) -> Result<Kind, LossError> {
    if image.device().is_cuda() { wide_kind(image) } else { Ok(Kind::Double) }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            for backend in [Backend::Auto, Backend::Composite] {
                let target = y.to_kind(kind);
                let actual = with_backend(backend, || derivatives(&|x| ssim.forward(x, &target), kind));
                for (actual, expected) in actual.iter().zip(&expected) {
                    let scale = expected.abs().max().double_value(&[]);
                    let off = (actual - expected).abs().max().double_value(&[]) / scale;
                    assert!(off < if kind == Kind::Double { 1e-10 } else { 1e-5 }, "{kind:?} {backend:?} {off:e}");
                }
            }
        }
    }

    #[test]
    fn the_scales_of_a_window_of_one_pixel_have_no_gradient_of_structure() {
        // At the first scale there is structure alone: a bright pixel has the gradient of the last one, next to nothing.
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
