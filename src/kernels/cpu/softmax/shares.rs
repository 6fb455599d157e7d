//! The cross entropy of rows with a share for each class as their target.
//!
//! Let t\[c\] = w\[c\] ((1 − ε) y\[c\] + ε/C) be the targets, made of the shares y, and T = Σ t. The loss of a row is T
//! log Σ exp(x − max) + Σ t (max − x), and its gradient is T p\[c\] − t\[c\].

use std::ops::Range;

use super::room::{Room, block};
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::lane::LaneOf;
use crate::kernels::cpu::rows::RowFormula;
use crate::kernels::cpu::rows::job::{Job, Pixels};
use crate::kernels::cpu::simd::{self, Kernel, Sum};
use crate::kernels::cpu::softmax::exponentials::Distances;
use crate::kernels::cpu::softmax::exponentials::largest;
use crate::kernels::cpu::softmax::exponentials::others;
use crate::kernels::cpu::softmax::exponentials::peak;
use crate::kernels::number::choose;

/// The cross entropy of shares with the label smoothing ε.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct OfShares {
    pub(in crate::kernels) smoothing: f64,
}

impl RowFormula for OfShares {
    fn run<W: Wide>(&self, job: &Job<W>) -> f64 {
        let call = Shares { job, own: 1.0 - self.smoothing, spread: self.smoothing / job.classes as f64 };
        job.sum(block(job.classes), |rows| call.rows(rows), |pixels| call.pixels(pixels))
    }
}

/// A call with shares as targets.
struct Shares<'a, W> {
    job: &'a Job<'a, W>,
    /// 1 − ε, which a share is multiplied by, and ε/C, which is added to it, before the weight of its class.
    own: f64,
    spread: f64,
}

impl<W: Wide> Shares<'_, W> {
    /// Computes rows whose classes lie side by side in memory. Returns the sum of their losses.
    fn rows(&self, rows: Range<usize>) -> f64 {
        let (job, classes) = (self.job, self.job.classes);
        let (mut room, mut of_shares) = (job.input.room(classes), job.numbers.room(classes));
        let (mut exponentials, mut target) = (vec![W::default(); classes], vec![W::default(); classes]);
        rows.map(|row| {
            let range = row * classes..(row + 1) * classes;
            let x = job.input.read(range.clone(), &mut room);
            let shares = job.numbers.read(range, &mut of_shares);
            let (exponentials, target) = (&mut exponentials[..], &mut target[..]);
            let loss = simd::run(ShareRow { call: self, row, x, shares, exponentials, target });
            job.store_losses(row, &[loss]);
            loss.to_f64()
        })
        .sum()
    }

    /// Computes blocks of pixels. Returns the sum of their losses.
    fn pixels(&self, blocks: &mut dyn Iterator<Item = Pixels>) -> f64 {
        let mut room = Room::new(self.job.classes);
        blocks.map(|pixels| simd::run(SharePixels { call: self, pixels, room: &mut room })).sum()
    }

    /// The target t of a class with this share and weight.
    #[inline(always)]
    fn target<R: LaneOf<W>>(&self, share: W, weight: R) -> R {
        R::new(share).mul_add(R::of(self.own), R::of(self.spread)) * weight
    }
}

/// The kernel of one row: writes its gradient, returns the loss.
struct ShareRow<'a, W> {
    call: &'a Shares<'a, W>,
    row: usize,
    x: &'a [W],
    shares: &'a [W],
    exponentials: &'a mut [W],
    target: &'a mut [W],
}

impl<W: Wide> Kernel<W> for ShareRow<'_, W> {
    const LONG: bool = true;
    type Result = W;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> W {
        let Self { call, row, x, shares, exponentials, target } = self;
        let job = call.job;
        match &job.options.weight {
            None => {
                for (target, share) in target.iter_mut().zip(shares) {
                    *target = call.target(*share, R::of(1.0)).get();
                }
            }
            Some(weights) => {
                for ((target, share), weight) in target.iter_mut().zip(shares).zip(weights) {
                    *target = call.target(*share, R::new(*weight)).get();
                }
            }
        }
        let max = largest::<W, R>(x);
        let total = R::of(simd::sum::<W, R>(target));
        let ahead = |range| job.fetch_row(row, range);
        let [sum, distances] =
            super::exponentials::exponentials(x, max, Distances::Weighted(target), exponentials, ahead);
        let peak = peak::<W, R>(exponentials, sum);
        let peak = match peak {
            Some(peak) => Some((peak, others(exponentials, peak, sum))),
            None => None,
        };
        let log = match peak {
            Some((_, rest)) => rest.ln_1p(),
            None => sum.ln(),
        };
        let loss = distances + total * log;
        if job.needs_gradient() {
            let factor = R::new(job.factor(row));
            let of_p = factor * total / sum;
            // At a class with p > ½ the gradient T p − t is computed as (T − t) − T (1 − p): p near 1 has lost the
            // digits of 1 − p.
            let own = match peak {
                Some((peak, rest)) => Some((peak, (factor * others(target, peak, total) - rest * of_p).get())),
                None => None,
            };
            let target = &target[..exponentials.len()];
            let gradient = |i: usize, e| (R::new(e) * of_p - factor * R::new(target[i])).get();
            job.store_gradient(row * job.classes, exponentials, gradient, own);
        }
        loss.get()
    }
}

/// The kernel of a block of pixels: writes the gradient and the losses, returns the sum of the losses.
struct SharePixels<'a, W> {
    call: &'a Shares<'a, W>,
    pixels: Pixels,
    room: &'a mut Room<W>,
}

impl<W: Wide> Kernel<W> for SharePixels<'_, W> {
    const LONG: bool = true;
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> f64 {
        let (call, job, pixels, room) = (self.call, self.call.job, self.pixels, self.room);
        let length = pixels.length;
        room.find_max::<R>(job, pixels);
        let max = &room.lines.max[..length];
        let (sums, totals) = (&mut room.sums[..length], &mut room.lines.weights[..length]);
        let (distances, others) = (&mut room.lines.distances[..length], &mut room.lines.others[..length]);
        // The sum of the targets of all classes but the one with the largest logit.
        let lesser = &mut room.lines.own[..length];
        for numbers in [&mut *sums, &mut *totals, &mut *distances, &mut *others, &mut *lesser] {
            numbers.fill(W::default());
        }
        let (zero, one) = (R::of(0.0), R::of(1.0));
        for class in 0..job.classes {
            let x = &job.input.read(pixels.of(class), &mut room.x)[..length];
            let shares = &job.numbers.read(pixels.of(class), &mut room.lines.targets)[..length];
            let exponentials = &mut room.exponentials[class * length..][..length];
            let weight = R::of(job.options.weight_of(class));
            job.fetch_pixels(pixels, class);
            for i in 0..length {
                let distance = R::new(max[i]) - R::new(x[i]);
                let exponential = (-distance).exp_of_negative();
                let target = call.target(shares[i], weight);
                exponentials[i] = exponential.get();
                sums[i] = (R::new(sums[i]) + exponential).get();
                totals[i] = (R::new(totals[i]) + target).get();
                let most = exponential == one;
                others[i] = (R::new(others[i]) + choose(most, zero, exponential)).get();
                lesser[i] = (R::new(lesser[i]) + choose(most, zero, target)).get();
                // A masked class has x = −∞. With target 0 it must add 0, not 0 · ∞ = NaN.
                let distance = choose(target == zero, zero, distance);
                distances[i] = target.mul_add(distance, R::new(distances[i])).get();
            }
        }
        job.read_factors(pixels, &mut room.lines.factors);
        let factors = &room.lines.factors[..length];
        let (losses, of_p) = (&mut room.lines.losses[..length], &mut room.lines.of_p[..length]);
        let of_target = &mut room.lines.of_target[..length];
        for i in 0..length {
            let (sum, total, others) = (R::new(sums[i]), R::new(totals[i]), R::new(others[i]));
            // The class with the largest logit has p > ½.
            let peaked = sum < R::of(2.0);
            let log = choose(peaked, others.ln_1p(), sum.ln());
            losses[i] = (R::new(distances[i]) + total * log).get();
            let of_sum = R::new(factors[i]) * total / sum;
            of_p[i] = of_sum.get();
            // The gradient of that class as in `ShareRow`: (T − t) − T (1 − p).
            let own = R::new(factors[i]) * R::new(lesser[i]) - others * of_sum;
            of_target[i] = choose(peaked, own, R::of(f64::NAN)).get();
        }
        job.store_losses(pixels.row, losses);
        let sum = Sum(losses).run::<R>();
        if !job.needs_gradient() {
            return sum;
        }
        let (of_p, of_target) = (&room.lines.of_p[..length], &room.lines.of_target[..length]);
        for class in 0..job.classes {
            let shares = &job.numbers.read(pixels.of(class), &mut room.lines.targets)[..length];
            let weight = R::of(job.options.weight_of(class));
            let exponentials = &mut room.exponentials[class * length..][..length];
            let gradient = |i: usize, e| {
                let target = R::new(factors[i]) * call.target(shares[i], weight);
                let (own, gradient) = (R::new(of_target[i]), R::new(e) * R::new(of_p[i]) - target);
                // `of_target` is NaN where no class has p > ½.
                choose((R::new(e) == one) & own.is_number(), own, gradient).get()
            };
            job.store_gradient(pixels.of(class).start, exponentials, gradient, None);
        }
        sum
    }
}
