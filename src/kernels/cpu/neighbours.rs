//! The engine of erosion and dilation; see [`f_neighbours`](crate::kernels::f_neighbours).

use std::array::from_fn;
use std::ops::Range;

use tch::Tensor;

use super::elements::elements;
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::parallel;
use super::simd::{self, Kernel};
use crate::LossError;
use crate::kernels::engine::by_width;
use crate::kernels::neighbours::Neighbours;
use crate::kernels::number::choose;

/// The extremes of contiguous regions of single or double precision; none where one of the numbers is NaN.
pub(in crate::kernels) fn f_extremes(neighbours: Neighbours, input: &Tensor) -> Result<Option<Tensor>, LossError> {
    by_width!(input.f_kind()?, f_extremes_of(neighbours, input))
}

fn f_extremes_of<W: Wide>(neighbours: Neighbours, input: &Tensor) -> Result<Option<Tensor>, LossError> {
    let output = Output::<W>::f_of_size(&input.size())?;
    let numbers = Shape::new(neighbours, input).extremes(elements(input), &output);
    Ok(numbers.then(|| output.into_tensor()))
}

/// The gradient of the regions, given these, their extremes and the gradient of the extremes.
pub(in crate::kernels) fn f_slopes(neighbours: Neighbours, tensors: [&Tensor; 3]) -> Result<Tensor, LossError> {
    by_width!(tensors[0].f_kind()?, f_slopes_of(neighbours, tensors))
}

fn f_slopes_of<W: Wide>(neighbours: Neighbours, tensors: [&Tensor; 3]) -> Result<Tensor, LossError> {
    let [input, extremes, grad] = tensors.map(elements::<W>);
    let gradient = Output::<W>::f_of_size(&tensors[0].size())?;
    Shape::new(neighbours, tensors[0]).slopes(input, extremes, grad, &gradient);
    Ok(gradient.into_tensor())
}

/// The sizes of a volume. A plane is a volume of one layer.
#[derive(Debug, Clone, Copy)]
struct Shape {
    neighbours: Neighbours,
    /// Layers, rows, columns.
    sizes: [usize; 3],
    /// The first dimension (of layers, rows, columns) along which there are neighbours: 1 for planes.
    first: usize,
}

impl Shape {
    fn new(neighbours: Neighbours, regions: &Tensor) -> Self {
        let size = regions.size();
        let first = 5 - size.len();
        let sizes = from_fn(|axis| if axis < first { 1 } else { size[axis + 2 - first] as usize });
        Self { neighbours, sizes, first }
    }

    /// How many elements a volume has.
    fn volume(&self) -> usize {
        self.sizes.iter().product()
    }

    /// Writes the smallest or largest number around each element of `x`. Returns whether no number of `x` is NaN.
    fn extremes<W: Wide>(&self, x: &[W], output: &Output<W>) -> bool {
        let [layers, rows, width] = self.sizes;
        let nans = parallel::rows(x.len() / width, width, |range| {
            let mut room = [vec![W::default(); width], vec![W::default(); width]];
            let mut nans = 0.0;
            for row in range {
                let (layer, line) = (row / rows % layers, row % rows);
                let mut others = Vec::with_capacity(9);
                for (z, y) in self.rows_around(layer, line) {
                    let start = (row - layer * rows - line + z * rows + y) * width;
                    others.push(&x[start..start + width]);
                }
                let own = &x[row * width..(row + 1) * width];
                let [extremes, base] = &mut room;
                nans += match self.neighbours {
                    Neighbours::Erode => simd::run(Extremes::<W, true> { own, others: &others, extremes, base }),
                    Neighbours::Dilate => simd::run(Extremes::<W, false> { own, others: &others, extremes, base }),
                };
                // SAFETY: each row is one thread's.
                unsafe { output.write(row * width..(row + 1) * width, extremes) };
            }
            nans
        });
        nans == 0.0
    }

    /// The layers and lines of the rows that count for one: those directly beside it for erosion, all around it for
    /// dilation.
    fn rows_around(&self, layer: usize, line: usize) -> impl Iterator<Item = (usize, usize)> {
        let [layers, rows, _] = self.sizes;
        let direct = self.neighbours == Neighbours::Erode;
        let all = around(layer, layers).flat_map(move |z| around(line, rows).map(move |y| (z, y)));
        all.filter(move |(z, y)| (*z, *y) != (layer, line) && !(direct && *z != layer && *y != line))
    }

    /// Writes the gradient of `x`, given its `extremes` and their gradient `grad`.
    fn slopes<W: Wide>(&self, x: &[W], extremes: &[W], grad: &[W], output: &Output<W>) {
        let volume = self.volume();
        parallel::rows(x.len() / volume, volume, |range| {
            for index in range {
                let place = index * volume..(index + 1) * volume;
                let [x, extremes, grad] = [x, extremes, grad].map(|all| &all[place.clone()]);
                let mut slopes = vec![W::default(); volume];
                for (position, (grad, extreme)) in grad.iter().zip(extremes).enumerate() {
                    if *grad == W::default() {
                        continue;
                    }
                    let is = |place: &usize| x[*place] == *extreme;
                    match self.neighbours {
                        Neighbours::Erode => self.share(position, is, *grad, &mut slopes),
                        Neighbours::Dilate => {
                            if let Some(place) = self.all_around(position).find(is) {
                                add(&mut slopes[place], *grad);
                            }
                        }
                    }
                }
                // SAFETY: each volume is one thread's.
                unsafe { output.write(place, &slopes) };
            }
            0.0
        });
    }

    /// The layer, row and column of a position in a volume.
    fn coordinates(&self, position: usize) -> [usize; 3] {
        let [_, rows, width] = self.sizes;
        [position / (rows * width), position / width % rows, position % width]
    }

    /// The positions of an element and all its neighbours, in the order of memory.
    fn all_around(&self, position: usize) -> impl Iterator<Item = usize> {
        let [layers, rows, width] = self.sizes;
        let [layer, line, column] = self.coordinates(position);
        let lines = around(layer, layers).flat_map(move |z| around(line, rows).map(move |y| z * rows + y));
        lines.flat_map(move |row| around(column, width).map(move |x| row * width + x))
    }

    /// Adds the gradient of an erosion to the elements that it was taken from, as the composite min(min(a, b), c) of
    /// the minima along each dimension does. Each minimum of two equal numbers gives half to each: c gets one half, and
    /// b and a one quarter each. Along a dimension the first of the smallest elements gets all.
    fn share<W: Wide>(&self, position: usize, is_least: impl Fn(&usize) -> bool, grad: W, slopes: &mut [W]) {
        let [_, rows, width] = self.sizes;
        let (coordinates, strides) = (self.coordinates(position), [rows * width, width, 1]);
        let least = |axis: usize| {
            let start = position - coordinates[axis] * strides[axis];
            around(coordinates[axis], self.sizes[axis]).map(|place| start + place * strides[axis]).find(&is_least)
        };
        let mut share: f64 = grad.into();
        let mut last = None;
        for place in (self.first..3).rev().filter_map(least) {
            if let Some(place) = last.replace(place) {
                share /= 2.0;
                add(&mut slopes[place], W::from_f64(share));
            }
        }
        if let Some(place) = last {
            add(&mut slopes[place], W::from_f64(share));
        }
    }
}

/// A place and those directly before and after it, as far as they exist.
fn around(place: usize, size: usize) -> Range<usize> {
    place.saturating_sub(1)..(place + 2).min(size)
}

fn add<W: Wide>(sum: &mut W, number: W) {
    *sum = W::from_f64((*sum).into() + number.into());
}

/// The kernel of a row's smallest (`LEAST`) or largest numbers: of the row itself, the `others` above and below, and
/// the numbers to the left and right. For erosion these are those of the row itself; for dilation those of all rows.
struct Extremes<'a, W, const LEAST: bool> {
    own: &'a [W],
    others: &'a [&'a [W]],
    extremes: &'a mut [W],
    /// A buffer for the row whose left and right neighbours count.
    base: &'a mut [W],
}

impl<W: Wide, const LEAST: bool> Kernel<W> for Extremes<'_, W, LEAST> {
    /// How many numbers of the row are NaN.
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> f64 {
        let Self { own, others, extremes, base } = self;
        let length = own.len();
        extremes.copy_from_slice(own);
        for other in others {
            take::<R, W, LEAST>(extremes, &other[..length]);
        }
        base.copy_from_slice(if LEAST { own } else { extremes });
        take::<R, W, LEAST>(&mut extremes[1..], &base[..length - 1]);
        take::<R, W, LEAST>(&mut extremes[..length - 1], &base[1..]);
        // Every number but NaN is below 0 or at least 0.
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let [numbers] =
            simd::fold([own], [zero], |[x], [numbers]| [numbers + choose((x < zero) | (x >= zero), one, zero)]);
        length as f64 - simd::total(numbers)
    }
}

/// Replaces the extremes by the `others` that are smaller (`LEAST`) or larger.
#[inline(always)]
fn take<R: LaneOf<W>, W: Wide, const LEAST: bool>(extremes: &mut [W], others: &[W]) {
    for (extreme, other) in extremes.iter_mut().zip(others) {
        let (mine, other) = (R::new(*extreme), R::new(*other));
        *extreme = choose(if LEAST { other < mine } else { other > mine }, other, mine).get();
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::kernels::{Backend, f_neighbours, with_backend};
    use crate::random::randn;

    /// Erosion and dilation by libtorch's pooling.
    fn f_pooled(neighbours: Neighbours, regions: &Tensor) -> Result<Tensor, LossError> {
        let axes = regions.dim() - 2;
        let pool = |regions: &Tensor, window: &[i64]| {
            let (ones, padding) = (vec![1; axes], window.iter().map(|length| length / 2).collect::<Vec<_>>());
            match axes {
                2 => regions.max_pool2d(window, &ones[..], &padding[..], &ones[..], false),
                _ => regions.max_pool3d(window, &ones[..], &padding[..], &ones[..], false),
            }
        };
        if neighbours == Neighbours::Dilate {
            return Ok(pool(regions, &vec![3; axes]));
        }
        let along = |axis: usize| (0..axes).map(|other| if other == axis { 3 } else { 1 }).collect::<Vec<_>>();
        let minima = (0..axes).map(|axis| -pool(&-regions, &along(axis)));
        Ok(minima.reduce(|least, other| least.minimum(&other)).unwrap())
    }

    /// The elements, the gradient of a sum of them, and the gradient of a sum of that.
    fn results(regions: &Tensor, weights: &Tensor, of: &dyn Fn(&Tensor) -> Tensor) -> [Tensor; 3] {
        let leaf = regions.detach().set_requires_grad(true);
        let elements = of(&leaf);
        let sum = (elements.square() * weights).sum(None);
        let first = Tensor::run_backward(&[&sum], &[&leaf], true, false).remove(0);
        let slopes = Tensor::run_backward(&[&sum], &[&leaf], true, true).remove(0);
        let second = Tensor::run_backward(&[slopes.square().sum(None)], &[&leaf], false, false).remove(0);
        [elements.detach(), first, second]
    }

    #[test]
    fn elements_and_gradients_are_those_of_pooling() {
        let shapes: [&[i64]; 6] =
            [&[1, 1, 1, 1], &[2, 3, 5, 4], &[1, 2, 1, 7], &[2, 1, 40, 1100], &[2, 2, 3, 4, 5], &[1, 1, 2, 1, 2]];
        for (neighbours, shape) in
            [Neighbours::Erode, Neighbours::Dilate].into_iter().flat_map(|way| shapes.map(|shape| (way, shape)))
        {
            let normal = || randn(shape);
            let (random, weights) = (normal(), normal());
            // Random numbers, then rounded ones, of which many are equal, then zeros, which are all equal.
            for regions in [random.shallow_clone(), random.round(), random.zeros_like()] {
                for kind in [Kind::Double, Kind::Float] {
                    let (regions, weights) = (regions.to_kind(kind), weights.to_kind(kind));
                    let regions = regions.transpose(1, -1).contiguous().transpose(1, -1);
                    let composite = move |regions: &Tensor| f_pooled(neighbours, regions);
                    let engine = |regions: &Tensor| {
                        with_backend(Backend::Auto, || f_neighbours(neighbours, regions, composite)).unwrap()
                    };
                    let expected = results(&regions, &weights, &|regions| composite(regions).unwrap());
                    for (actual, expected) in results(&regions, &weights, &engine).iter().zip(&expected) {
                        let furthest = (actual - expected).abs().max().double_value(&[]);
                        let scale = expected.abs().max().double_value(&[]).max(1.0);
                        let tolerance = if kind == Kind::Double { 1e-14 } else { 1e-6 };
                        assert!(furthest <= tolerance * scale, "{neighbours:?} {shape:?} {kind:?}: {furthest:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_left_to_the_composite() {
        let regions = Tensor::from_slice(&[0.0, f64::NAN, 1.0, 2.0]).view([1, 1, 2, 2]);
        let composite = |regions: &Tensor| Ok(regions.ones_like());
        let left = with_backend(Backend::Auto, || f_neighbours(Neighbours::Erode, &regions, composite)).unwrap();
        assert_eq!(left.double_value(&[0, 0, 0, 0]), 1.0);
    }
}
