//! The engine of the absolute differences of neighbours in planes: total variation.
//!
//! The gradient of an element is the sum of the signs of its differences from the (up to four) elements beside it,
//! times the factor of the direction.

use tch::Tensor;

use super::elements::{Numbers, elements, is_plain};
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::simd::{self, Kernel, fold, total};
use super::{BLOCK, parallel};
use crate::LossError;
use crate::kernels::backend;
use crate::kernels::engine::{Composite, Engine, Factor, Reduce, RowFactors, by_width, f_dispatch};
use crate::kernels::variation::sizes;

/// The reduced losses of planes that are not empty; see [`f_variation`](crate::kernels::f_variation).
pub(in crate::kernels) fn f_reduced(
    factors: [f64; 2],
    planes: &Tensor,
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    if !backend::fused() || !is_plain(planes, planes.f_kind()?) {
        return composite(&[planes]);
    }
    f_dispatch(Box::new(Variation(factors)), &[planes], reduce, composite)
}

/// The engine, with the factors of the vertical and the horizontal direction.
struct Variation([f64; 2]);

impl Engine for Variation {
    fn count(&self, arguments: &[&Tensor]) -> usize {
        let [height, width] = sizes(arguments[0]);
        arguments[0].numel() / (height * width)
    }

    fn f_losses(&self, arguments: &[&Tensor]) -> Result<(f64, Tensor), LossError> {
        by_width!(arguments[0].f_kind()?, f_losses(self.0, arguments[0]))
    }

    fn f_sum(&self, arguments: &[&Tensor], factor: Factor, wanted: &[bool]) -> Result<(f64, Vec<Tensor>), LossError> {
        by_width!(arguments[0].f_kind()?, f_sum(self.0, arguments[0], factor, wanted[0]))
    }
}

fn f_losses<W: Wide>(factors: [f64; 2], planes: &Tensor) -> Result<(f64, Tensor), LossError> {
    let size = planes.size();
    let sums = f_run::<W>(factors, planes, &RowFactors::Number(0.0), None)?;
    let losses = Output::f_of_kind(&size[..size.len() - 2], planes.f_kind()?)?;
    let numbers: Vec<W> = sums.iter().map(|sum| W::from_f64(*sum)).collect();
    // SAFETY: nobody else has a part of it.
    unsafe { losses.write_cached(0..sums.len(), &numbers) };
    Ok((sums.iter().sum(), losses.into_tensor()))
}

fn f_sum<W: Wide>(
    factors: [f64; 2],
    planes: &Tensor,
    factor: Factor,
    wanted: bool,
) -> Result<(f64, Vec<Tensor>), LossError> {
    let gradient = wanted.then(|| Output::<W>::f_of_kind(&planes.size(), planes.f_kind()?)).transpose()?;
    let sums = f_run(factors, planes, &RowFactors::f_new(factor)?, gradient.as_ref())?;
    Ok((sums.iter().sum(), gradient.into_iter().map(Output::into_tensor).collect()))
}

/// Computes all planes, row by row: writes the gradient where there is an output for it, returns the sum of each plane.
fn f_run<W: Wide>(
    factors: [f64; 2],
    planes: &Tensor,
    of_planes: &RowFactors,
    gradient: Option<&Output<W>>,
) -> Result<Vec<f64>, LossError> {
    let [height, width] = sizes(planes);
    let planes = planes.f_detach()?.f_contiguous()?;
    let numbers = Numbers::of(&planes);
    let rows = numbers.len() / width;
    let sums = Output::<f64>::f_of_size(&[rows as i64])?;
    parallel::rows(rows, width, |range| {
        let zeros = vec![W::default(); width];
        let (mut room, mut slopes) = ([zeros.clone(), zeros.clone(), zeros.clone()], zeros);
        for row in range {
            let [above, own, below] = &mut room;
            let place = |row: usize| row * width..(row + 1) * width;
            let own = numbers.read(place(row), own);
            let line = row % height;
            let above = if line > 0 { numbers.read(place(row - 1), above) } else { own };
            let below = if line + 1 < height { numbers.read(place(row + 1), below) } else { own };
            let sum = simd::run(Sum { own, below: (line + 1 < height).then_some(below), factors });
            // SAFETY: each row is one thread's.
            unsafe { sums.write(row..row + 1, &[sum]) };
            if let Some(gradient) = gradient {
                let factors = factors.map(|factor| factor * of_planes.of_row(row / height));
                simd::run(Slopes { above, own, below, factors, slopes: &mut slopes });
                // SAFETY: as above.
                unsafe { gradient.write(row * width..(row + 1) * width, &slopes) };
            }
        }
        0.0
    });
    let sums = sums.into_tensor();
    Ok(elements::<f64>(&sums).chunks_exact(height).map(|rows| rows.iter().sum()).collect())
}

/// The kernel of a row's sum: its differences within the row, and from the row below if there is one.
struct Sum<'a, W> {
    own: &'a [W],
    below: Option<&'a [W]>,
    factors: [f64; 2],
}

impl<W: Wide> Kernel<W> for Sum<'_, W> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> f64 {
        let Self { own, below, factors: [down, across] } = self;
        let across = across * differences::<R, W>(&own[1..], &own[..own.len() - 1]);
        match below {
            Some(below) => across + down * differences::<R, W>(below, own),
            None => across,
        }
    }
}

/// Σ |a − b|
#[inline(always)]
fn differences<R: LaneOf<W>, W: Wide>(a: &[W], b: &[W]) -> f64 {
    let mut differences = 0.0;
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let [sums] = fold([a, b], [R::of(0.0)], |[a, b], [sum]| [sum + (a - b).abs()]);
        differences += total(sums);
    }
    differences
}

/// The kernel of a row's derivatives. At the border of a plane the row itself takes the place of the missing row above
/// or below, so that the difference is 0.
struct Slopes<'a, W> {
    above: &'a [W],
    own: &'a [W],
    below: &'a [W],
    factors: [f64; 2],
    slopes: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Slopes<'_, W> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let Self { above, own, below, factors, slopes } = self;
        let [down, across]: [R; 2] = simd::lanes_of(factors);
        let width = own.len();
        let (above, below, slopes) = (&above[..width], &below[..width], &mut slopes[..width]);
        for i in 0..width {
            let x = R::new(own[i]);
            slopes[i] = (((x - R::new(above[i])).sign() - (R::new(below[i]) - x).sign()) * down).get();
        }
        // The neighbours to the right, then those to the left.
        for (mine, theirs) in [(0, 1), (1, 0)] {
            let part = |from: usize| from..width - 1 + from;
            let (mine, theirs, slopes) = (&own[part(mine)], &own[part(theirs)], &mut slopes[part(mine)]);
            for i in 0..slopes.len() {
                let slope = (R::new(mine[i]) - R::new(theirs[i])).sign();
                slopes[i] = slope.mul_add(across, R::new(slopes[i])).get();
            }
        }
    }
}
