//! The engine of the Euclidean distances of all pairs of rows of two matrices, from their differences. Losses of pairs
//! and triplets use it.
//!
//! Like a matrix product, it computes [`ROWS`] rows by [`LANES`] columns of the result at a time, whose sums stay in
//! registers. The gradient is a sum of the same form, so that one kernel ([`Task`]) with two formulas serves both.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::elements::{elements, is_plain};
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::parallel;
use super::simd::{self, Kernel};
use crate::LossError;
use crate::kernels::backend;
use crate::kernels::number::{Real, choose};
use crate::kernels::tensors::f_contiguous;

/// How many rows of the result are computed at a time.
const ROWS: usize = 4;
/// How many columns of the result are computed at a time.
const LANES: usize = 16;
/// How many terms are added up before their sum is added to the total, so that long sums lose few digits.
const TERMS: usize = 32;

/// ‖aᵢ − bⱼ‖ for all rows i of `a` and j of `b`, as `[N, M]` without a graph. `None` where the engine does not take the
/// call.
pub(in crate::kernels) fn f_distances(a: &Tensor, b: &Tensor) -> Result<Option<Tensor>, LossError> {
    if !takes([a, b])? {
        return Ok(None);
    }
    Ok(Some(match a.f_kind()? {
        Kind::Float => f_run_distances::<f32>(a, b)?,
        _ => f_run_distances::<f64>(a, b)?,
    }))
}

/// The gradient of `a`, given `grad`, that of the distances: Σⱼ `grad`ᵢⱼ (aᵢ − bⱼ) / `distances`ᵢⱼ for all rows i of
/// `a`. Pairs of distance 0 add nothing. `None` where the engine does not take the call.
pub(in crate::kernels) fn f_distance_slopes(
    grad: &Tensor,
    a: &Tensor,
    b: &Tensor,
    distances: &Tensor,
) -> Result<Option<Tensor>, LossError> {
    if !takes([a, b, grad, distances])? {
        return Ok(None);
    }
    Ok(Some(match a.f_kind()? {
        Kind::Float => f_run_slopes::<f32>(grad, a, b, distances)?,
        _ => f_run_slopes::<f64>(grad, a, b, distances)?,
    }))
}

fn takes<const N: usize>(tensors: [&Tensor; N]) -> Result<bool, LossError> {
    let kind = tensors[0].f_kind()?;
    let wide = matches!(kind, Kind::Float | Kind::Double);
    let plain = |tensor: &&Tensor| is_plain(tensor, kind) && tensor.dim() == 2 && tensor.numel() != 0;
    Ok(backend::fused() && wide && tensors.iter().all(plain))
}

fn f_run_distances<T: Wide>(a: &Tensor, b: &Tensor) -> Result<Tensor, LossError> {
    let (rows, columns) = (f_contiguous(a)?, b.size()[0] as usize);
    // A sum runs over the numbers of a row.
    let numbers = Packed::<T>::f_new(&b.f_detach()?.f_transpose(0, 1)?)?;
    let output = Output::<T>::f_of_size(&[a.size()[0], b.size()[0]])?;
    let (a, terms) = (elements::<T>(&rows), numbers.terms);
    each_rows(a.len() / terms, terms * columns, |rows| {
        simd::run(Task { formula: Squares { a, length: terms }, numbers: &numbers, rows, columns, output: &output });
    });
    Ok(output.into_tensor())
}

fn f_run_slopes<T: Wide>(grad: &Tensor, a: &Tensor, b: &Tensor, distances: &Tensor) -> Result<Tensor, LossError> {
    let [grad, a, distances] = [f_contiguous(grad)?, f_contiguous(a)?, f_contiguous(distances)?];
    // A sum runs over the rows of `b`.
    let numbers = Packed::<T>::f_new(&b.f_detach()?)?;
    let output = Output::<T>::f_of_size(&a.size())?;
    let columns = a.size()[1] as usize;
    let (a, grad, distances, terms) = (elements::<T>(&a), elements(&grad), elements(&distances), numbers.terms);
    each_rows(a.len() / columns, terms * columns, |rows| {
        let [first, count] = rows;
        let range = first * terms..(first + count) * terms;
        let mut weights = vec![T::default(); range.len()];
        simd::run(Weights { grad: &grad[range.clone()], distances: &distances[range], weights: &mut weights });
        let formula = Slopes { a, columns, first, terms, weights: &weights };
        simd::run(Task { formula, numbers: &numbers, rows, columns, output: &output });
    });
    Ok(output.into_tensor())
}

/// Calls `task` for all rows, at most [`ROWS`] at a time, with the first one and how many they are. A row costs so much
/// `work`, in elements.
fn each_rows(rows: usize, work: usize, task: impl Fn([usize; 2]) + Sync) {
    parallel::sum(rows.div_ceil(ROWS) * ROWS * work, ROWS * work, |range| {
        for first in (range.start / work..range.end / work).step_by(ROWS) {
            task([first, ROWS.min(rows - first)]);
        }
        0.0
    });
}

/// A matrix `[terms, columns]` whose columns lie in groups of [`LANES`] side by side: `[groups, terms, LANES]`. The
/// last group is filled up with zeros.
struct Packed<T> {
    groups: Vec<[T; LANES]>,
    terms: usize,
}

impl<T: Wide> Packed<T> {
    fn f_new(matrix: &Tensor) -> Result<Self, LossError> {
        let (terms, columns) = (matrix.size()[0] as usize, matrix.size()[1] as usize);
        let matrix = f_contiguous(matrix)?;
        let mut groups = vec![[T::default(); LANES]; columns.div_ceil(LANES) * terms];
        for (term, row) in elements::<T>(&matrix).chunks_exact(columns).enumerate() {
            for (index, numbers) in row.chunks(LANES).enumerate() {
                groups[index * terms + term][..numbers.len()].copy_from_slice(numbers);
            }
        }
        Ok(Self { groups, terms })
    }
}

/// What is summed up for a row and a column of the result.
trait Formula<T>: Copy {
    /// The number that a row has for a term.
    fn of_row<R: LaneOf<T>>(self, row: usize, term: usize) -> R;
    /// The numbers that a row has for some columns, whatever the term.
    fn of_columns<R: LaneOf<T>>(self, row: usize, columns: Range<usize>) -> [R; LANES];
    /// The sum after a term has been added, given the numbers of the row and of the column, and that of the packed
    /// matrix.
    fn add<R: Real>(of_row: R, of_column: R, number: R, sum: R) -> R;
    /// The result, given the sum.
    fn finish<R: Real>(sum: R) -> R;
}

/// The distances: √Σ (a − b)².
#[derive(Clone, Copy)]
struct Squares<'a, T> {
    a: &'a [T],
    length: usize,
}

impl<T: Wide> Formula<T> for Squares<'_, T> {
    #[inline(always)]
    fn of_row<R: LaneOf<T>>(self, row: usize, term: usize) -> R {
        R::new(self.a[row * self.length + term])
    }

    #[inline(always)]
    fn of_columns<R: LaneOf<T>>(self, _: usize, _: Range<usize>) -> [R; LANES] {
        [R::of(0.0); LANES]
    }

    #[inline(always)]
    fn add<R: Real>(of_row: R, _: R, number: R, sum: R) -> R {
        let difference = of_row - number;
        difference.mul_add(difference, sum)
    }

    #[inline(always)]
    fn finish<R: Real>(sum: R) -> R {
        sum.sqrt()
    }
}

/// The kernel of the weights g / d of the slopes; 0 where d is 0.
struct Weights<'a, T> {
    grad: &'a [T],
    distances: &'a [T],
    weights: &'a mut [T],
}

impl<T: Wide> Kernel<T> for Weights<'_, T> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<T>>(self) {
        let zero = R::of(0.0);
        for ((weight, grad), distance) in self.weights.iter_mut().zip(self.grad).zip(self.distances) {
            let distance = R::new(*distance);
            *weight = choose(distance == zero, zero, R::new(*grad) / distance).get();
        }
    }
}

/// The gradient: Σ w (a − b).
#[derive(Clone, Copy)]
struct Slopes<'a, T> {
    a: &'a [T],
    columns: usize,
    /// The row that the first weights belong to.
    first: usize,
    terms: usize,
    weights: &'a [T],
}

impl<T: Wide> Formula<T> for Slopes<'_, T> {
    #[inline(always)]
    fn of_row<R: LaneOf<T>>(self, row: usize, term: usize) -> R {
        R::new(self.weights[(row - self.first) * self.terms + term])
    }

    #[inline(always)]
    fn of_columns<R: LaneOf<T>>(self, row: usize, columns: Range<usize>) -> [R; LANES] {
        let mut numbers = [R::of(0.0); LANES];
        for (number, a) in numbers.iter_mut().zip(&self.a[row * self.columns..][columns]) {
            *number = R::new(*a);
        }
        numbers
    }

    #[inline(always)]
    fn add<R: Real>(of_row: R, of_column: R, number: R, sum: R) -> R {
        of_row.mul_add(of_column - number, sum)
    }

    #[inline(always)]
    fn finish<R: Real>(sum: R) -> R {
        sum
    }
}

/// The kernel of all results of at most [`ROWS`] rows: the first one, and how many they are.
struct Task<'a, T, F> {
    formula: F,
    numbers: &'a Packed<T>,
    rows: [usize; 2],
    columns: usize,
    output: &'a Output<T>,
}

impl<T: Wide, F: Formula<T>> Kernel<T> for Task<'_, T, F> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<T>>(self) {
        let [first, count] = self.rows;
        let terms = self.numbers.terms;
        // Where there are fewer rows, the last one is computed several times, so that the loops have a fixed length.
        let mut rows = [first; ROWS];
        for k in 0..count {
            rows[k] = first + k;
        }
        for k in count..ROWS {
            rows[k] = first + count - 1;
        }
        for (group, numbers) in self.numbers.groups.chunks_exact(terms).enumerate() {
            let columns = group * LANES..self.columns.min((group + 1) * LANES);
            let (mut of_columns, mut sums) = ([[R::of(0.0); LANES]; ROWS], [[R::of(0.0); LANES]; ROWS]);
            for k in 0..ROWS {
                of_columns[k] = self.formula.of_columns(rows[k], columns.clone());
            }
            for start in (0..terms).step_by(TERMS) {
                let mut part = [[R::of(0.0); LANES]; ROWS];
                for term in start..terms.min(start + TERMS) {
                    let number = &numbers[term];
                    let mut of_rows = [R::of(0.0); ROWS];
                    for k in 0..ROWS {
                        of_rows[k] = self.formula.of_row(rows[k], term);
                    }
                    for k in 0..ROWS {
                        for lane in 0..LANES {
                            part[k][lane] =
                                F::add(of_rows[k], of_columns[k][lane], R::new(number[lane]), part[k][lane]);
                        }
                    }
                }
                for k in 0..ROWS {
                    for lane in 0..LANES {
                        sums[k][lane] = sums[k][lane] + part[k][lane];
                    }
                }
            }
            for k in 0..count {
                let mut results = [T::default(); LANES];
                for lane in 0..LANES {
                    results[lane] = F::finish(sums[k][lane]).get();
                }
                let start = rows[k] * self.columns;
                let range = start + columns.start..start + columns.end;
                // SAFETY: tasks have rows of their own, and write their groups one after another.
                unsafe { self.output.write(range, &results[..columns.len()]) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::randn;

    fn normal(size: [i64; 2], kind: Kind) -> Tensor {
        randn(size).to_kind(kind)
    }

    /// Sizes below, at and beyond those that are computed at a time.
    #[test]
    fn distances_and_slopes_are_those_of_libtorch() {
        for (kind, tolerance) in [(Kind::Double, 1e-13), (Kind::Float, 1e-5)] {
            for (rows, others, features) in [(1, 1, 1), (3, 17, 5), (4, 16, 16), (9, 70, 33), (130, 65, 40)] {
                let (a, b) = (normal([rows, features], kind), normal([others, features], kind));
                // Two rows of distance 0.
                a.get(0).copy_(&b.get(0));
                let distances = Tensor::cdist(&a, &b, 2.0, 2);
                let grad = normal([rows, others], kind);
                let slopes = Tensor::internal_cdist_backward(&grad, &a, &b, 2.0, &distances);
                let actual = f_distances(&a, &b).unwrap().unwrap();
                assert_eq!(actual.double_value(&[0, 0]), 0.0);
                let of_distances = f_distance_slopes(&grad, &a, &b, &actual).unwrap().unwrap();
                for (actual, expected) in [(actual, distances), (of_distances, slopes)] {
                    let furthest = (&actual - &expected).abs().max().double_value(&[]);
                    let scale = expected.abs().max().double_value(&[]).max(1.0);
                    assert!(furthest <= tolerance * scale, "{kind:?} {rows} {others} {features}: {furthest:e}");
                }
            }
        }
    }

    #[test]
    fn nothing_and_other_kinds_are_not_taken() {
        let half = normal([2, 3], Kind::Half);
        assert!(f_distances(&half, &half).unwrap().is_none());
        let empty = normal([0, 3], Kind::Float);
        assert!(f_distances(&empty, &normal([2, 3], Kind::Float)).unwrap().is_none());
    }
}
