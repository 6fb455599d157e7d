//! The engine of cross entropy with a position between two classes as the target: distribution focal loss.
//!
//! Rows are short, with a class for each bin of a distribution, so that one loop runs over the classes of many rows.
//!
//! With the share r of the class on the right of the position, the loss of a row is log Σ exp(x) − (1 − r) x\[left\] −
//! r x\[right\], and its gradient is p, less 1 − r at the left class and r at the right one.

use std::ops::Range;

use super::kinds::Wide;
use super::lane::LaneOf;
use super::rows::RowFormula;
use super::rows::job::Job;
use super::simd::{self, Kernel};
use super::softmax::exponentials::{self, largest, peak};
use crate::kernels::number::choose;

/// The loss as a [`RowFormula`].
#[derive(Clone, Copy)]
pub(in crate::kernels) struct OfPositions;

impl RowFormula for OfPositions {
    fn run<W: Wide>(&self, job: &Job<W>) -> f64 {
        job.sum_rows(|rows| simd::run(PositionRows { job, rows, room: &mut Room::new(job) }))
    }
}

/// How many rows are computed at a time.
const ROWS: usize = 64;

/// The buffers of [`ROWS`] rows.
struct Room<W> {
    /// The logits, where they have to be converted.
    x: Vec<W>,
    /// The logits less the largest one, then their exponentials, then the gradient.
    numbers: Vec<W>,
    /// The sum of the exponentials of each row.
    sums: [W; ROWS],
    /// The sum without the exponential of the largest logit, which is 1.
    others: [W; ROWS],
    /// The logits of the classes to the left and right of each position, less the row's largest one.
    left: [W; ROWS],
    right: [W; ROWS],
    /// The share r of the class on the right.
    of_right: [W; ROWS],
    losses: [W; ROWS],
}

impl<W: Wide> Room<W> {
    fn new(job: &Job<W>) -> Self {
        let (length, zeros) = (ROWS * job.classes, [W::default(); ROWS]);
        let (x, numbers) = (job.input.room(length), vec![W::default(); length]);
        Self { x, numbers, sums: zeros, others: zeros, left: zeros, right: zeros, of_right: zeros, losses: zeros }
    }
}

/// The kernel of some rows: writes their gradients and losses, returns the sum of the losses.
struct PositionRows<'a, W> {
    job: &'a Job<'a, W>,
    rows: Range<usize>,
    room: &'a mut Room<W>,
}

impl<W: Wide> Kernel<W> for PositionRows<'_, W> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(mut self) -> f64 {
        let rows = self.rows.clone();
        let mut sum = 0.0;
        for first in rows.clone().step_by(ROWS) {
            let rows = first..rows.end.min(first + ROWS);
            self.read::<R>(rows.clone());
            self.evaluate::<R>();
            let losses = &self.room.losses[..rows.len()];
            self.job.store_losses(first, losses);
            sum += simd::sum::<W, R>(losses);
            if self.job.needs_gradient() {
                self.gradient::<R>(rows);
            }
        }
        sum
    }
}

impl<W: Wide> PositionRows<'_, W> {
    /// The class on the left of the position of a row.
    fn class(&self, row: usize) -> usize {
        (self.job.numbers.get(row) as usize).min(self.job.classes - 2)
    }

    /// Reads rows: computes their exponentials and the sums of these, and what belongs to the positions.
    #[inline(always)]
    fn read<R: LaneOf<W>>(&mut self, rows: Range<usize>) {
        let classes = self.job.classes;
        for (index, row) in rows.clone().enumerate() {
            let class = self.class(row);
            let Room { x, numbers, left, right, of_right, .. } = &mut *self.room;
            let x = &self.job.input.read(row * classes..(row + 1) * classes, x)[..classes];
            let numbers = &mut numbers[index * classes..][..classes];
            let max: R = largest::<W, R>(x);
            for i in 0..classes {
                numbers[i] = (R::new(x[i]) - max).get();
            }
            (left[index], right[index]) = (numbers[class], numbers[class + 1]);
            of_right[index] = W::from_f64(self.job.numbers.get(row) - class as f64);
        }
        for number in &mut self.room.numbers[..rows.len() * classes] {
            *number = R::new(*number).exp_of_negative().get();
        }
        let Room { numbers, sums, others, .. } = &mut *self.room;
        for (index, numbers) in numbers.chunks_mut(classes).enumerate().take(rows.len()) {
            let sum = R::of(simd::sum::<W, R>(numbers));
            let peak = peak::<W, R>(numbers, sum);
            sums[index] = sum.get();
            let rest = match peak {
                Some(peak) => exponentials::others(numbers, peak, sum),
                None => sum - R::of(1.0),
            };
            others[index] = rest.get();
        }
    }

    /// Computes the losses of all [`ROWS`] rows of the buffers, also where fewer are filled: the loop has a fixed
    /// length.
    #[inline(always)]
    fn evaluate<R: LaneOf<W>>(&mut self) {
        let Room { others, left, right, of_right, losses, .. } = &mut *self.room;
        let (zero, one) = (R::of(0.0), R::of(1.0));
        for i in 0..ROWS {
            let of_right = R::new(of_right[i]);
            // A masked class has x = −∞. With share 0 it must add 0, not 0 · ∞ = NaN.
            let left = choose(of_right == one, zero, (one - of_right) * R::new(left[i]));
            let right = choose(of_right == zero, zero, of_right * R::new(right[i]));
            losses[i] = (R::new(others[i]).ln_1p() - (left + right)).get();
        }
    }

    /// Computes and writes the gradient of the rows.
    #[inline(always)]
    fn gradient<R: LaneOf<W>>(&mut self, rows: Range<usize>) {
        let classes = self.job.classes;
        for (index, row) in rows.clone().enumerate() {
            let class = self.class(row);
            let Room { numbers, sums, others, of_right, .. } = &mut *self.room;
            let numbers = &mut numbers[index * classes..][..classes];
            let (factor, of_right) = (R::new(self.job.factor(row)), R::new(of_right[index]));
            let peak = peak::<W, R>(numbers, R::new(sums[index]));
            let scale = factor / R::new(sums[index]);
            for number in numbers.iter_mut() {
                *number = (R::new(*number) * scale).get();
            }
            let of_left = R::of(1.0) - of_right;
            for (place, share, rest) in [(class, of_left, of_right), (class + 1, of_right, of_left)] {
                // Where p > ½, p − share is computed as (1 − share) − (1 − p): p near 1 has lost the digits of 1 − p.
                numbers[place] = match peak == Some(place) {
                    true => (factor * rest - R::new(others[index]) * scale).get(),
                    false => (R::new(numbers[place]) - factor * share).get(),
                };
            }
        }
        let numbers = &mut self.room.numbers[..rows.len() * classes];
        self.job.store_gradient(rows.start * classes, numbers, |_, gradient| gradient, None);
    }
}
