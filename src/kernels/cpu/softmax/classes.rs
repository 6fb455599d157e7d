//! Losses of rows with a class as their target: calls the formula between the two kernels of `class_rows` or
//! `class_pixels`.

use std::ops::Range;

use super::call::Call;
use super::class_pixels::{ClassPixels, DerivePixels, SumPixels};
use super::class_rows::{ClassRows, DeriveRows, SumRows};
use super::room::{Lines, ROWS, Room, block, rows_at_once};
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::lane::LaneOf;
use crate::kernels::cpu::rows::RowFormula;
use crate::kernels::cpu::rows::job::{Job, Pixels};
use crate::kernels::cpu::simd::{self, Kernel};
use crate::kernels::formulas::RowLoss;

/// A formula of losses with a class for each row, and the label smoothing ε.
pub(in crate::kernels) struct OfClasses<F> {
    pub(in crate::kernels) formula: F,
    pub(in crate::kernels) smoothing: f64,
}

impl<F: RowLoss> RowFormula for OfClasses<F> {
    fn run<W: Wide>(&self, job: &Job<W>) -> f64 {
        Classes { call: Call::new(job, self.smoothing), formula: &self.formula }.sum()
    }
}

/// A formula without its type. The engine calls it once for some rows.
trait OfRows<W>: Sync {
    fn evaluate(&self, rows: Evaluation<W>);
}

impl<W: Wide, F: RowLoss> OfRows<W> for F {
    fn evaluate(&self, rows: Evaluation<W>) {
        simd::run(Evaluate { formula: *self, rows });
    }
}

/// Some rows, whose losses and coefficients are to be computed.
///
/// With f = formula(log p\[t\], log Σ exp(x)), the loss of a row is (1 − ε) w\[t\] f + ε/C Σ w\[c\] (−log p\[c\]). Its
/// gradient is `of_p` p\[c\] − `of_weight` w\[c\], and `of_target` − `of_weight` w\[t\] at the target t.
pub(super) struct Evaluation<'a, W> {
    /// log p\[t\]
    log_p: &'a [W],
    /// 1 − p\[t\]
    rest: &'a [W],
    /// log Σ exp(x)
    log_sum: &'a [W],
    /// −Σ w log p over all classes; any number without smoothing, where `spread` is 0.
    smooth: &'a [W],
    /// (1 − ε) w\[t\]
    weights: &'a [W],
    /// What the gradient of each row is multiplied by.
    factors: &'a [W],
    /// ε / C, the share of each class in a smoothed target, and Σ w, the sum of the weights of all classes.
    spread: f64,
    total: f64,
    losses: &'a mut [W],
    of_p: &'a mut [W],
    of_target: &'a mut [W],
    of_weight: &'a mut [W],
}

/// The kernel that calls the formula for some rows.
struct Evaluate<'a, W, F> {
    formula: F,
    rows: Evaluation<'a, W>,
}

impl<W: Wide, F: RowLoss> Kernel<W> for Evaluate<'_, W, F> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let Evaluation { log_p, rest, log_sum, smooth, weights, factors, spread, total, .. } = self.rows;
        let Evaluation { losses, of_p, of_target, of_weight, .. } = self.rows;
        let length = losses.len();
        let [log_p, rest, log_sum, smooth, weights, factors] =
            simd::first(&[log_p, rest, log_sum, smooth, weights, factors], length);
        let (of_p, of_target, of_weight) = (&mut of_p[..length], &mut of_target[..length], &mut of_weight[..length]);
        let (spread, total) = (R::of(spread), R::of(total));
        for i in 0..length {
            let (weight, factor) = (R::new(weights[i]), R::new(factors[i]));
            let (loss, [of_log_p, of_log_sum]) = self.formula.evaluate(R::new(log_p[i]), R::new(log_sum[i]));
            // ∂ log p[t] / ∂x[c] is 1 − p[t] at the target and −p[c] elsewhere; ∂ log Σ exp(x) / ∂x[c] is p[c].
            // `of_row` is what multiplies p[c] without the term of log p[t].
            let of_row = factor * (weight * of_log_sum + spread * total);
            let of_row_p = of_row - factor * weight * of_log_p;
            losses[i] = (weight * loss + spread * R::new(smooth[i])).get();
            of_p[i] = of_row_p.get();
            // Computed from `rest`, 1 − p[t]: p − 1 would lose its digits where p is near 1.
            of_target[i] = (of_row - R::new(rest[i]) * of_row_p).get();
            of_weight[i] = (factor * spread).get();
        }
    }
}

/// A call with its formula.
struct Classes<'a, W> {
    call: Call<'a, W>,
    formula: &'a (dyn OfRows<W> + 'a),
}

impl<W: Wide> Classes<'_, W> {
    fn sum(&self) -> f64 {
        let job = self.call.job;
        job.sum(block(job.classes), |rows| self.rows(rows), |pixels| self.pixels(pixels))
    }

    /// Computes the losses of the first `rows` rows, and the coefficients of their gradients.
    fn evaluate<const L: usize>(&self, lines: &mut Lines<W, L>, rows: usize) {
        self.formula.evaluate(Evaluation {
            log_p: &lines.log_p,
            rest: &lines.rest,
            log_sum: &lines.log_sum,
            smooth: &lines.smooth,
            weights: &lines.weights,
            factors: &lines.factors,
            spread: self.call.spread,
            total: self.call.total,
            losses: &mut lines.losses[..rows],
            of_p: &mut lines.of_p,
            of_target: &mut lines.of_target,
            of_weight: &mut lines.of_weight,
        });
    }

    /// Computes rows whose classes lie side by side in memory. Returns the sum of their losses.
    fn rows(&self, rows: Range<usize>) -> f64 {
        let (call, job) = (&self.call, self.call.job);
        let classes = job.classes;
        let at_once = rows_at_once::<W>(classes);
        let (mut lines, mut sums, mut room) = (Lines::<W, ROWS>::new(), [W::default(); ROWS], job.input.room(classes));
        let mut exponentials = vec![W::default(); at_once.min(rows.len()) * classes];
        let mut sum = 0.0;
        for first in rows.clone().step_by(at_once) {
            let rows = first..rows.end.min(first + at_once);
            let group = ClassRows { call, rows: rows.clone(), lines: &mut lines, sums: &mut sums };
            simd::run(SumRows { group, room: &mut room, exponentials: &mut exponentials });
            self.evaluate(&mut lines, rows.len());
            if job.needs_gradient() {
                let group = ClassRows { call, rows: rows.clone(), lines: &mut lines, sums: &mut sums };
                simd::run(DeriveRows { group, exponentials: &mut exponentials });
            }
            for (row, loss) in rows.clone().zip(&mut lines.losses) {
                if job.class(row).is_none() {
                    *loss = W::default();
                }
                sum += loss.to_f64();
            }
            job.store_losses(first, &lines.losses[..rows.len()]);
        }
        sum
    }

    /// Computes blocks of pixels. Returns the sum of their losses.
    fn pixels(&self, blocks: &mut dyn Iterator<Item = Pixels>) -> f64 {
        let call = &self.call;
        let mut room = Room::new(call.job.classes);
        let mut sum = 0.0;
        for pixels in blocks {
            simd::run(SumPixels(ClassPixels { call, pixels, room: &mut room }));
            self.evaluate(&mut room.lines, pixels.length);
            sum += simd::run(DerivePixels(ClassPixels { call, pixels, room: &mut room }));
        }
        sum
    }
}
