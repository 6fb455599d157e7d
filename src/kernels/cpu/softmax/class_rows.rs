//! The kernels of rows whose classes lie side by side in memory: a loop runs over the classes of one row. Used by
//! `classes`.

use std::ops::Range;

use super::call::Call;
use super::room::{Lines, ROWS};
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::lane::LaneOf;
use crate::kernels::cpu::simd::Kernel;
use crate::kernels::cpu::softmax::exponentials::Distances;
use crate::kernels::cpu::softmax::exponentials::exponentials;
use crate::kernels::cpu::softmax::exponentials::largest;
use crate::kernels::cpu::softmax::exponentials::others;
use crate::kernels::cpu::softmax::exponentials::powers;

/// Some rows, and what is kept of them between the two kernels.
pub(super) struct ClassRows<'a, W> {
    pub(super) call: &'a Call<'a, W>,
    pub(super) rows: Range<usize>,
    pub(super) lines: &'a mut Lines<W, ROWS>,
    /// Σ exp(x) of each row, shifted or not as the exponentials are.
    pub(super) sums: &'a mut [W; ROWS],
}

/// The first kernel of some rows: computes their exponentials, and log p\[t\] and log Σ exp(x) of each row.
pub(super) struct SumRows<'a, W> {
    pub(super) group: ClassRows<'a, W>,
    /// A buffer for the logits of a row, where they have to be converted.
    pub(super) room: &'a mut [W],
    pub(super) exponentials: &'a mut [W],
}

impl<W: Wide> Kernel<W> for SumRows<'_, W> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let ClassRows { call, rows, lines, sums } = self.group;
        let (job, classes, count) = (call.job, call.job.classes, rows.len());
        // The rows from `start` on have exponentials of the same sort: of the logits themselves (`unshifted`), or of
        // the logits less their maximum. Each such run of rows is finished by one loop.
        let (mut start, mut unshifted) = (0, true);
        for (i, row) in rows.enumerate() {
            let Some(class) = job.class(row) else {
                // The row is ignored. These numbers give a finite loss, which is overwritten by 0 later.
                lines.own[i] = R::of(1.0).get();
                lines.others[i] = W::default();
                continue;
            };
            let x = job.input.read(row * classes..(row + 1) * classes, self.room);
            let exponentials = &mut self.exponentials[i * classes..(i + 1) * classes];
            let ahead = |range| job.fetch_row(row, range);
            let moderate = if call.spread == 0.0 { powers::<W, R>(x, exponentials, ahead) } else { None };
            let is_unshifted = moderate.is_some();
            let sum = if let Some(sum) = moderate {
                R::of(sum)
            } else {
                let max = largest::<W, R>(x);
                let distances = Distances::of_smoothed(call.spread != 0.0, job.options.weight.as_deref());
                let [sum, distances] = self::exponentials(x, max, distances, exponentials, ahead);
                lines.max[i] = max.get();
                lines.targets[i] = x[class];
                lines.distances[i] = distances.get();
                sum
            };
            lines.own[i] = exponentials[class];
            lines.others[i] = others(exponentials, class, sum).get();
            sums[i] = sum.get();
            lines.weights[i] = call.weight(class);
            lines.factors[i] = job.factor(row);
            if is_unshifted != unshifted {
                lines.take::<R>(start..i, unshifted, call.total);
                (start, unshifted) = (i, is_unshifted);
            }
        }
        lines.take::<R>(start..count, unshifted, call.total);
    }
}

/// The second kernel of some rows, after the formula: writes their gradient, which is `of_p` exp(x\[c\]) / Σ exp(x) −
/// `of_weight` w\[c\], and at the target `of_target` − `of_weight` w\[t\]; see
/// [`Evaluation`](super::classes::Evaluation).
pub(super) struct DeriveRows<'a, W> {
    pub(super) group: ClassRows<'a, W>,
    pub(super) exponentials: &'a mut [W],
}

impl<W: Wide> Kernel<W> for DeriveRows<'_, W> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let ClassRows { call, rows, lines, sums } = self.group;
        let (job, classes) = (call.job, call.job.classes);
        let weights = job.options.weight.as_deref();
        for (i, row) in rows.enumerate() {
            let start = row * classes;
            let Some(class) = job.class(row) else {
                job.store_zeros(start, classes);
                continue;
            };
            let exponentials = &mut self.exponentials[i * classes..(i + 1) * classes];
            let of_weight = R::new(lines.of_weight[i]);
            // Without smoothing `of_weight` is 0, and an infinite weight must not make it NaN.
            let smooth = if call.spread == 0.0 { R::of(0.0) } else { of_weight * R::of(job.options.weight_of(class)) };
            let own = Some((class, (R::new(lines.of_target[i]) - smooth).get()));
            let of_p = R::new(lines.of_p[i]) / R::new(sums[i]);
            match weights {
                _ if call.spread == 0.0 => {
                    job.store_gradient(start, exponentials, |_, e| (R::new(e) * of_p).get(), own)
                }
                None => job.store_gradient(start, exponentials, |_, e| R::new(e).mul_add(of_p, -of_weight).get(), own),
                Some(weights) => {
                    let weights = &weights[..exponentials.len()];
                    let gradient = |i: usize, e| (R::new(e) * of_p - of_weight * R::new(weights[i])).get();
                    job.store_gradient(start, exponentials, gradient, own);
                }
            }
        }
    }
}
