//! The engine of cross entropy with a position between two classes as the target.
//!
//! Rows are short, a class for each bin of a distribution, so that many of them make one loop.

use std::ops::Range;

use tch::Tensor;

use super::element::Element;
use super::rows::{Job, RowFormula, RowReduction, Rows, f_rows};
use super::simd::{self, Kernel, LaneOf, Wide};
use super::softmax::{largest, room};
use crate::LossError;

/// The reduced loss of `rows` whose target is a position among the classes, which are the last dimension: the two classes beside
/// it share it. `None` where the engine does not take the call. Second derivatives are those of the `composite` of input and
/// target.
pub(crate) fn f_softmax_of_positions<C>(
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    f_rows(OfPositions, rows, reduction, composite)
}

#[derive(Clone, Copy)]
struct OfPositions;

impl RowFormula for OfPositions {
    fn run<T: Element>(self, job: &Job<T>) -> f64 {
        job.sum_rows(|rows| simd::run(PositionRows { job, rows, room: &mut Room::new::<T>(job.classes) }))
    }
}

/// How many rows are worked on at a time.
const ROWS: usize = 64;

/// Room for so many rows.
struct Room<W> {
    x: Vec<W>,
    /// What the exponentials are of, then these, then the gradient.
    numbers: Vec<W>,
    /// The sum of the exponentials of each row.
    sums: [W; ROWS],
    /// The logits beside each position, less the largest one.
    left: [W; ROWS],
    right: [W; ROWS],
    /// The share of the class on the right.
    of_right: [W; ROWS],
    losses: [W; ROWS],
}

impl<W: Wide> Room<W> {
    fn new<T: Element<Wide = W>>(classes: usize) -> Self {
        let (length, zeros) = (ROWS * classes, [W::default(); ROWS]);
        let (x, numbers) = (room::<T>(length), vec![W::default(); length]);
        Self { x, numbers, sums: zeros, left: zeros, right: zeros, of_right: zeros, losses: zeros }
    }
}

/// Rows with their positions: stores their gradients and losses, returns the sum of the losses.
struct PositionRows<'a, T: Element> {
    job: &'a Job<'a, T>,
    rows: Range<usize>,
    room: &'a mut Room<T::Wide>,
}

impl<T: Element> Kernel<T::Wide> for PositionRows<'_, T> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(mut self) -> f64 {
        let rows = self.rows.clone();
        let mut sum = 0.0;
        for first in rows.clone().step_by(ROWS) {
            let rows = first..rows.end.min(first + ROWS);
            self.read::<R>(rows.clone());
            self.evaluate::<R>();
            let losses = &self.room.losses[..rows.len()];
            self.job.store_losses(first, losses);
            sum += simd::sum::<T::Wide, R>(losses);
            if self.job.needs_gradient() {
                self.gradient::<R>(rows);
            }
        }
        sum
    }
}

impl<T: Element> PositionRows<'_, T> {
    /// The class on the left of the position of a row.
    fn class(&self, row: usize) -> usize {
        (self.job.numbers[row].to_f64() as usize).min(self.job.classes - 2)
    }

    /// Reads rows: their exponentials, the sums of these, and what is beside the positions.
    #[inline(always)]
    fn read<R: LaneOf<T::Wide>>(&mut self, rows: Range<usize>) {
        let classes = self.job.classes;
        for (index, row) in rows.clone().enumerate() {
            let class = self.class(row);
            let Room { x, numbers, left, right, of_right, .. } = &mut *self.room;
            let x = &T::read(&self.job.input[row * classes..(row + 1) * classes], x)[..classes];
            let numbers = &mut numbers[index * classes..][..classes];
            let max: R = largest::<T::Wide, R>(x);
            for i in 0..classes {
                numbers[i] = (R::new(x[i]) - max).get();
            }
            (left[index], right[index]) = (numbers[class], numbers[class + 1]);
            of_right[index] = T::Wide::from_f64(self.job.numbers[row].to_f64() - class as f64);
        }
        for number in &mut self.room.numbers[..rows.len() * classes] {
            *number = R::new(*number).exp_of_negative().get();
        }
        for (sum, numbers) in self.room.sums.iter_mut().zip(self.room.numbers.chunks(classes)).take(rows.len()) {
            *sum = T::Wide::from_f64(simd::sum::<T::Wide, R>(numbers));
        }
    }

    /// The losses of all rows that there is room for.
    #[inline(always)]
    fn evaluate<R: LaneOf<T::Wide>>(&mut self) {
        let Room { sums, left, right, of_right, losses, .. } = &mut *self.room;
        for i in 0..ROWS {
            let (left, right) = (R::new(left[i]), R::new(right[i]));
            let mean = R::new(of_right[i]).mul_add(right - left, left);
            losses[i] = (R::new(sums[i]).ln() - mean).get();
        }
    }

    #[inline(always)]
    fn gradient<R: LaneOf<T::Wide>>(&mut self, rows: Range<usize>) {
        let classes = self.job.classes;
        for (index, row) in rows.clone().enumerate() {
            let class = self.class(row);
            let Room { numbers, sums, of_right, .. } = &mut *self.room;
            let numbers = &mut numbers[index * classes..][..classes];
            let (factor, of_right) = (R::new(self.job.factor(row)), R::new(of_right[index]));
            let scale = factor / R::new(sums[index]);
            for number in numbers.iter_mut() {
                *number = (R::new(*number) * scale).get();
            }
            // A probability of 1 is exactly 1 by this, and leaves nothing of the gradient.
            for (place, share) in [(class, R::of(1.0) - of_right), (class + 1, of_right)] {
                numbers[place] = (R::new(numbers[place]) - factor * share).get();
            }
        }
        let numbers = &mut self.room.numbers[..rows.len() * classes];
        self.job.store_gradient(rows.start * classes, numbers, |_, gradient| gradient, None);
    }
}
