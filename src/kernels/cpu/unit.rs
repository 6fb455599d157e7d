//! The engine of rows that are scaled to length 1: the embeddings that losses of pairs compare.
//!
//! Rows are computed in double precision. They are divided, not multiplied by a reciprocal, first by their largest |x|
//! and then by the length of the result. So rows of one direction get the same unit vector, bit by bit, and a row with
//! one number that is not 0 has exactly 1 or −1 there.
//!
//! The gradient of a row with the unit vector u, given that of u, g, is (g − u (u · g)) / length.

use tch::{Kind, Tensor};

use super::elements::{Numbers, elements, is_plain};
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::simd::{self, Kernel, fold, total};
use super::{BLOCK, parallel};
use crate::LossError;
use crate::autograd::{Backward, Place, Tape};
use crate::kernels::backend;
use crate::kernels::tensors::f_plain;

/// The `rows` `[N, D]` of a tape, each divided by its length, or by `least` if it is shorter. The result is of this
/// `kind`, single or double precision. `None` where the engine does not take the call.
pub(in crate::kernels) fn f_unit(
    tape: &mut Tape,
    rows: Place,
    kind: Kind,
    least: f64,
) -> Result<Option<Place>, LossError> {
    let input = tape.value(rows);
    let own = input.f_kind()?;
    if !backend::fused() || !is_plain(input, own) || input.dim() != 2 || input.numel() == 0 {
        return Ok(None);
    }
    match (own, kind) {
        (Kind::Double, Kind::Double) => f_run::<f64, f64>(tape, rows, least),
        (Kind::Float | Kind::Half | Kind::BFloat16, Kind::Float) => f_run::<f32, f32>(tape, rows, least),
        (Kind::Float | Kind::Half | Kind::BFloat16, Kind::Double) => f_run::<f32, f64>(tape, rows, least),
        _ => Ok(None),
    }
}

/// [`f_unit`] for rows that are read as `W`, with a result of `U`.
fn f_run<W: Wide, U: Wide>(tape: &mut Tape, rows: Place, least: f64) -> Result<Option<Place>, LossError> {
    let input = tape.value(rows).f_contiguous()?;
    let width = input.size()[1] as usize;
    let output = Output::<U>::f_of_size(&input.size())?;
    let unusual = each_row(Numbers::<W>::of(&input), width, |row, numbers, scaled: &mut [U]| {
        let RowScale { length, scale } = RowScale::new(numbers, least);
        simd::run(Divide { numbers, divisors: [scale, length.max(least)], quotients: scaled });
        // SAFETY: each row is one thread's.
        unsafe { output.write(row * width..(row + 1) * width, scaled) };
        if length.is_finite() { 0.0 } else { 1.0 }
    });
    if unusual > 0.0 {
        return Ok(None);
    }
    let pull = move |of: Backward| Ok(vec![Some(f_gradient::<W, U>(of.arguments[0], of.grad, least)?)]);
    Ok(Some(tape.add(output.into_tensor(), &[rows], pull)))
}

/// What a row is divided by: `scale`, and then `length`.
struct RowScale {
    /// The length of the row after the division by `scale`; NaN or infinite where the row has such numbers.
    length: f64,
    /// The row's largest |x|; 1 for a row that is too short to be scaled to length 1.
    scale: f64,
}

impl RowScale {
    fn new(numbers: &[f64], least: f64) -> Self {
        let largest = simd::run(Largest { numbers });
        let scale = if largest <= least { 1.0 } else { largest };
        Self { length: simd::run(Squares { numbers, scale }).sqrt(), scale }
    }
}

/// The gradient of the rows, given that of the unit vectors.
fn f_gradient<W: Wide, U: Wide>(rows: &Tensor, grad: &Tensor, least: f64) -> Result<Tensor, LossError> {
    let (input, grad) = (rows.f_detach()?.f_contiguous()?, f_plain(grad)?.f_detach()?.f_contiguous()?);
    let width = rows.size()[1] as usize;
    let output = Output::<W>::f_of_kind(&rows.size(), rows.f_kind()?)?;
    let grad = elements::<U>(&grad);
    each_row(Numbers::<W>::of(&input), width, |row, numbers, slopes: &mut [W]| {
        let place = row * width..(row + 1) * width;
        let grad: Vec<f64> = grad[place.clone()].iter().map(|number| (*number).into()).collect();
        let RowScale { length, scale } = RowScale::new(numbers, least);
        if length == 0.0 {
            // A row of zeros has no direction; its gradient is 0.
            slopes.fill(W::default());
        } else {
            let divisors = [scale, length.max(least)];
            let mut units = vec![0.0; width];
            simd::run(Divide { numbers, divisors, quotients: &mut units });
            // A row that is shorter than `least` is divided by that constant, so its gradient has no part along u.
            let along = if length < least { 0.0 } else { simd::run(Product { a: &units, b: &grad }) };
            let factor = 1.0 / divisors[1] / scale;
            simd::run(Slopes { units: &units, grad: &grad, factor, along, slopes });
        }
        // SAFETY: each row is one thread's.
        unsafe { output.write(place, slopes) };
        0.0
    });
    Ok(output.into_tensor())
}

/// Calls `task` with the index of each row, its numbers, and a buffer for as many. Returns the sum of what it returns.
fn each_row<W, U, F>(rows: Numbers<W>, width: usize, task: F) -> f64
where
    W: Wide,
    U: Wide,
    F: Fn(usize, &[f64], &mut [U]) -> f64 + Sync,
{
    parallel::rows(rows.len() / width, width, |range| {
        let (mut wide, mut numbers, mut room) = (rows.room(width), vec![0.0; width], vec![U::default(); width]);
        let mut sum = 0.0;
        for row in range {
            let elements = rows.read(row * width..(row + 1) * width, &mut wide);
            for (number, element) in numbers.iter_mut().zip(elements) {
                *number = (*element).into();
            }
            sum += task(row, &numbers, &mut room);
        }
        sum
    })
}

/// Σ a b
struct Product<'a> {
    a: &'a [f64],
    b: &'a [f64],
}

impl Kernel<f64> for Product<'_> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<f64>>(self) -> f64 {
        let mut product = 0.0;
        for (a, b) in self.a.chunks(BLOCK).zip(self.b.chunks(BLOCK)) {
            let [sums] = fold([a, b], [R::of(0.0)], |[a, b], [sum]| [a.mul_add(b, sum)]);
            product += total(sums);
        }
        product
    }
}

/// The largest |x|; NaNs are skipped.
struct Largest<'a> {
    numbers: &'a [f64],
}

impl Kernel<f64> for Largest<'_> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<f64>>(self) -> f64 {
        let mut largest = R::of(0.0);
        for numbers in self.numbers.chunks(BLOCK) {
            let [lanes] = fold([numbers], [largest], |[number], [most]| [most.max(number.abs())]);
            largest = simd::largest_lane(lanes, largest);
        }
        largest.get()
    }
}

/// Σ (x / `scale`)²
struct Squares<'a> {
    numbers: &'a [f64],
    scale: f64,
}

impl Kernel<f64> for Squares<'_> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<f64>>(self) -> f64 {
        let (mut squares, scale) = (0.0, R::of(self.scale));
        for numbers in self.numbers.chunks(BLOCK) {
            let [sums] = fold([numbers], [R::of(0.0)], |[number], [sum]| {
                let number = number / scale;
                [number.mul_add(number, sum)]
            });
            squares += total(sums);
        }
        squares
    }
}

/// The kernel that divides numbers by the first divisor, and then by the second.
struct Divide<'a, U> {
    numbers: &'a [f64],
    divisors: [f64; 2],
    quotients: &'a mut [U],
}

impl<U: Wide> Kernel<f64> for Divide<'_, U> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<f64>>(self) {
        let [first, last]: [R; 2] = simd::lanes_of(self.divisors);
        for (quotient, number) in self.quotients.iter_mut().zip(self.numbers) {
            *quotient = U::from_f64((R::new(*number) / first / last).get());
        }
    }
}

/// The kernel of the gradient of a row: (g − u · `along`) · `factor`. Exactly 0 for a row of one number, whose u is 1
/// or −1.
struct Slopes<'a, W> {
    units: &'a [f64],
    grad: &'a [f64],
    factor: f64,
    along: f64,
    slopes: &'a mut [W],
}

impl<W: Wide> Kernel<f64> for Slopes<'_, W> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<f64>>(self) {
        let (factor, along) = (R::of(self.factor), R::of(-self.along));
        for ((slope, unit), grad) in self.slopes.iter_mut().zip(self.units).zip(self.grad) {
            *slope = W::from_f64((R::new(*unit).mul_add(along, R::new(*grad)) * factor).get());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::f_taped;
    use crate::kernels::{Backend, with_backend};
    use crate::numeric::f_unit_rows;
    use crate::random::randn;

    const LEAST: f64 = 1e-3;

    /// The rows scaled by tensor operations in double precision.
    fn f_expected(rows: &Tensor) -> Result<Tensor, LossError> {
        f_unit_rows(&rows.to_kind(Kind::Double), 2.0, LEAST)
    }

    fn f_engine(rows: &Tensor, kind: Kind) -> Result<Tensor, LossError> {
        f_by_engine(rows, kind, |_| unreachable!("the engine takes it"))
    }

    fn f_by_engine(
        rows: &Tensor,
        kind: Kind,
        otherwise: fn(&Tensor) -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        let steps = |tape: &mut Tape, places: &[Place]| f_unit(tape, places[0], kind, LEAST);
        with_backend(Backend::Auto, || f_taped(&[rows], steps, move |inputs| otherwise(&inputs[0])))
    }

    #[test]
    fn rows_and_gradients_are_those_of_tensor_operations() {
        let kinds = [
            (Kind::Double, Kind::Double, 1e-14),
            (Kind::Float, Kind::Double, 2e-7),
            (Kind::Float, Kind::Float, 2e-7),
            (Kind::Half, Kind::Float, 1e-3),
            (Kind::BFloat16, Kind::Double, 8e-3),
        ];
        for ((own, kind, tolerance), (rows, columns)) in
            kinds.into_iter().flat_map(|kinds| [(1, 1), (5, 33), (40, 1100)].map(|size| (kinds, size)))
        {
            let input = randn([rows, columns]);
            // One row is shorter than `LEAST`, and one is of zeros.
            let _ = (input.get(0).g_mul_scalar_(1e-5), input.get(rows - 1).zero_());
            let factors = randn([rows, columns]).to_kind(kind);
            // A matrix stored by columns, so that the numbers of a row do not lie side by side.
            let input = input.to_kind(own).transpose(0, 1).contiguous().transpose(0, 1);
            let results = |unit: &dyn Fn(&Tensor) -> Tensor| {
                let leaf = input.detach().set_requires_grad(true);
                let units = unit(&leaf);
                (&units * &factors).sum(Kind::Double).backward();
                [units.detach().to_kind(Kind::Double), leaf.grad().to_kind(Kind::Double)]
            };
            let expected = results(&|rows| f_expected(rows).unwrap());
            let actual = results(&|rows| f_engine(rows, kind).unwrap());
            for (actual, expected) in actual.iter().zip(&expected) {
                let (actual, expected) = (actual.get(rows - 1), expected.get(rows - 1));
                let furthest = (&actual - &expected).abs().max().double_value(&[]);
                assert!(furthest <= tolerance * expected.abs().max().double_value(&[]).max(1.0), "{own:?}");
            }
            let (actual, expected) = (Tensor::stack(&actual, 0), Tensor::stack(&expected, 0));
            // The gradients of rows that are too short are large, in proportion to how short these are.
            let scale = expected.abs().amax([2_i64].as_slice(), true).clamp_min(1e-30);
            let furthest = ((actual - expected).abs() / scale).max().double_value(&[]);
            assert!(furthest <= tolerance, "{own:?} {kind:?} {rows} {columns}: {furthest:e}");
        }
    }

    #[test]
    fn a_row_of_one_number_has_no_slope() {
        let input = Tensor::from_slice(&[0.1, -7.3, 49.0, 1e-7]).view([4, 1]).set_requires_grad(true);
        let unit = f_by_engine(&input, Kind::Double, |_| unreachable!()).unwrap();
        let factors = Tensor::from_slice(&[1e300, 0.3, 1.0 / 3.0, 0.7]).view([4, 1]);
        let slopes = Tensor::run_backward(&[(unit * factors).sum(Kind::Double)], &[&input], false, false).remove(0);
        // The last row is shorter than the least length.
        assert_eq!(Vec::<f64>::try_from(slopes.view(-1)).unwrap()[..3], [0.0; 3]);
    }

    #[test]
    fn second_derivatives_are_those_of_the_composite() {
        let input = randn([4, 3]);
        let second = |unit: &dyn Fn(&Tensor) -> Result<Tensor, LossError>| {
            let leaf = input.detach().set_requires_grad(true);
            let cubes = unit(&leaf).unwrap().pow_tensor_scalar(3).sum(Kind::Double);
            let first = Tensor::run_backward(&[cubes], &[&leaf], true, true).remove(0);
            Tensor::run_backward(&[first.square().sum(Kind::Double)], &[&leaf], false, false).remove(0)
        };
        let engine = |rows: &Tensor| f_by_engine(rows, Kind::Double, f_expected);
        let furthest = (second(&engine) - second(&f_expected)).abs().max().double_value(&[]);
        assert!(furthest < 1e-12, "{furthest:e}");
    }

    #[test]
    fn what_has_no_length_is_left_to_the_composite() {
        for number in [f64::INFINITY, f64::NAN] {
            let input = Tensor::from_slice(&[1.0, number]).view([1, 2]);
            let left = f_by_engine(&input, Kind::Double, |rows| Ok(rows.zeros_like())).unwrap();
            assert_eq!(left.double_value(&[0, 0]), 0.0);
        }
    }

    #[test]
    fn the_largest_and_the_smallest_rows_have_length_1_and_the_slopes_of_their_lengths() {
        for factor in [1e300, 1e160, 1.0, 1e-2] {
            let input = Tensor::from_slice(&[3.0 * factor, -4.0 * factor]).view([1, 2]).set_requires_grad(true);
            let unit = f_engine(&input, Kind::Double).unwrap();
            assert_eq!(Vec::<f64>::try_from(unit.view(-1)).unwrap(), [0.6, -0.8]);
            // (1 − u²) / length of the first number.
            let slope = Tensor::run_backward(&[unit.get(0).get(0)], &[&input], false, false).remove(0);
            let expected = 0.64 / 5.0 / factor;
            assert!((slope.double_value(&[0, 0]) / expected - 1.0).abs() < 1e-14, "{factor:e}");
        }
    }

    #[test]
    fn rows_of_one_direction_are_one_unit_vector() {
        let input = Tensor::from_slice(&[1.0, 3.0, 7.0, 3.0, 9.0, 21.0, 49.0, 147.0, 343.0, 0.25, 0.75, 1.75]);
        for (own, kind) in [(Kind::Double, Kind::Double), (Kind::Float, Kind::Double), (Kind::Float, Kind::Float)] {
            let rows = input.view([4, 3]).to_kind(own);
            for unit in [f_engine(&rows, kind).unwrap(), f_unit_rows(&rows.to_kind(kind), 2.0, LEAST).unwrap()] {
                assert!((1..4).all(|row| unit.get(row) == unit.get(0)), "{own:?} {kind:?}");
            }
        }
        // 49 · (1 / 49) is not 1.
        let axis = Tensor::from_slice(&[0.0, 49.0]).view([1, 2]);
        assert_eq!(f_engine(&axis, Kind::Double).unwrap().double_value(&[0, 1]), 1.0);
    }
}
