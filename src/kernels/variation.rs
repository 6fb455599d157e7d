//! The engine of the differences of neighbours in planes.

use std::array::from_fn;

use tch::Tensor;

use super::element::{Element, Output, elements, is_plain};
use super::engine::{Engine, Factor, Reduce, RowFactors, f_dispatch};
use super::simd::{self, Kernel, LaneOf, Wide, fold, total};
use super::{BLOCK, backend, parallel};
use crate::{LossError, Reduction};

/// Σ |x\[i + 1, j\] − x\[i, j\]| times the first of the `factors` plus Σ |x\[i, j + 1\] − x\[i, j\]| times the second one, for each plane
/// `[H, W]` of `planes` `[*, H, W]`, reduced; by the `composite` of tensor operations where the engine does not take the call.
pub(crate) fn f_variation<C>(
    factors: [f64; 2],
    planes: &Tensor,
    reduction: Reduction,
    composite: C,
) -> Result<Tensor, LossError>
where
    C: Fn([&Tensor; 1]) -> Result<Tensor, LossError> + Send + 'static,
{
    let kind = planes.f_kind()?;
    if !backend::fused() || !is_plain(planes, kind) || planes.dim() < 2 || planes.numel() == 0 {
        return composite([planes]);
    }
    f_dispatch(Variation(factors), [planes], Reduce::from(reduction), composite)
}

/// The engine with the factors of both directions.
#[derive(Clone, Copy)]
struct Variation([f64; 2]);

impl Engine<1> for Variation {
    fn count(self, [planes]: [&Tensor; 1]) -> usize {
        let [height, width] = sizes(planes);
        planes.numel() / (height * width)
    }

    fn f_losses<T: Element>(self, arguments: [&Tensor; 1]) -> Result<(f64, Tensor), LossError> {
        let size = arguments[0].size();
        let sums = self.f_run::<T>(arguments, &RowFactors::Number(0.0), None)?;
        let losses = Output::<T>::f_of_size(&size[..size.len() - 2])?;
        // SAFETY: nobody else has a part of it.
        let places = unsafe { losses.range(0..sums.len()) };
        for (place, sum) in places.iter_mut().zip(&sums) {
            place.write(T::from_f64(*sum));
        }
        Ok((sums.iter().sum(), losses.into_tensor()))
    }

    fn f_sum<T: Element>(
        self,
        arguments: [&Tensor; 1],
        factor: Factor,
        [wanted]: [bool; 1],
    ) -> Result<(f64, Vec<Tensor>), LossError> {
        let gradient = wanted.then(|| Output::<T>::f_of_size(&arguments[0].size())).transpose()?;
        let sums = self.f_run(arguments, &RowFactors::f_new(factor)?, gradient.as_ref())?;
        Ok((sums.iter().sum(), gradient.into_iter().map(Output::into_tensor).collect()))
    }
}

fn sizes(planes: &Tensor) -> [usize; 2] {
    let size = planes.size();
    from_fn(|k| size[size.len() - 2 + k] as usize)
}

impl Variation {
    /// Runs over all planes, a row after the other. Returns the sum of each plane.
    fn f_run<T: Element>(
        self,
        [planes]: [&Tensor; 1],
        of_planes: &RowFactors,
        gradient: Option<&Output<T>>,
    ) -> Result<Vec<f64>, LossError> {
        let [height, width] = sizes(planes);
        let planes = planes.f_detach()?.f_contiguous()?;
        let numbers = elements::<T>(&planes);
        let rows = numbers.len() / width;
        let sums = Output::<f64>::f_of_size(&[rows as i64])?;
        parallel::rows(rows, width, |range| {
            let zeros = vec![T::Wide::default(); width];
            let (mut room, mut slopes) = ([zeros.clone(), zeros.clone(), zeros.clone()], zeros);
            for row in range {
                let [above, own, below] = &mut room;
                let read = |row: usize| &numbers[row * width..(row + 1) * width];
                let own = T::read(read(row), own);
                let line = row % height;
                let above = if line > 0 { T::read(read(row - 1), above) } else { own };
                let below = if line + 1 < height { T::read(read(row + 1), below) } else { own };
                let sum = simd::run(Sum { own, below: (line + 1 < height).then_some(below), factors: self.0 });
                // SAFETY: each row is one thread's.
                unsafe { sums.write(row..row + 1, &[sum]) };
                if let Some(gradient) = gradient {
                    let factors = self.0.map(|factor| factor * of_planes.of_row(row / height));
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
}

/// The sum of a row's differences within it and to the one below.
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
        across + below.map_or(0.0, |below| down * differences::<R, W>(below, own))
    }
}

/// Σ |a − b|
#[inline(always)]
fn differences<R: LaneOf<W>, W: Wide>(a: &[W], b: &[W]) -> f64 {
    let mut differences = 0.0;
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let [sums] = fold([a, b], [R::of(0.0)], |[a, b], [sum]| [sum + (a - b).abs()]);
        differences += total(sums.map(|sum| sum.get()));
    }
    differences
}

/// The derivatives of a row. Where there is no row above or below, the row itself is in its place.
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
        let [down, across] = factors.map(R::of);
        let width = own.len();
        let (above, below, slopes) = (&above[..width], &below[..width], &mut slopes[..width]);
        for i in 0..width {
            let x = R::new(own[i]);
            slopes[i] = (((x - R::new(above[i])).sign() - (R::new(below[i]) - x).sign()) * down).get();
        }
        // To the right and to the left.
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
