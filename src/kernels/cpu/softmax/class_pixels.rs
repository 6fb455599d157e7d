//! The kernels of pixels: classes are not the last dimension, so the numbers of one class of neighbouring pixels lie
//! side by side in memory, and a loop runs over pixels. Used by `classes`.

use super::call::Call;
use super::room::{PIXELS, Room};
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::lane::LaneOf;
use crate::kernels::cpu::rows::job::Pixels;
use crate::kernels::cpu::simd::{Kernel, Sum};
use crate::kernels::cpu::softmax::exponentials::MODERATE;
use crate::kernels::number::choose;

/// One block of pixels.
pub(super) struct ClassPixels<'a, W> {
    pub(super) call: &'a Call<'a, W>,
    pub(super) pixels: Pixels,
    pub(super) room: &'a mut Room<W>,
}

/// The first kernel of a block: computes its exponentials, and log p\[t\] and log Σ exp(x) of each pixel.
pub(super) struct SumPixels<'a, W>(pub(super) ClassPixels<'a, W>);

impl<W: Wide> Kernel<W> for SumPixels<'_, W> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let Self(mut block) = self;
        let (call, job, pixels) = (block.call, block.call.job, block.pixels);
        job.class_numbers(pixels, &mut block.room.lines.classes);
        let unshifted = call.spread == 0.0 && block.powers::<R>();
        if !unshifted {
            block.room.find_max::<R>(job, pixels);
            block.exponentials::<R>();
        }
        block.read_targets();
        block.room.lines.take::<R>(0..pixels.length, unshifted, call.total);
    }
}

/// The second kernel of a block, after the formula: writes the gradient and the losses, and returns the sum of the
/// losses.
pub(super) struct DerivePixels<'a, W>(pub(super) ClassPixels<'a, W>);

impl<W: Wide> Kernel<W> for DerivePixels<'_, W> {
    const LONG: bool = true;
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> f64 {
        let Self(mut block) = self;
        let (job, pixels, zero) = (block.call.job, block.pixels, R::of(0.0));
        let lines = &mut block.room.lines;
        for i in 0..pixels.length.min(PIXELS) {
            lines.losses[i] = choose(R::new(lines.classes[i]) >= zero, R::new(lines.losses[i]), zero).get();
            let sum = R::new(lines.own[i]) + R::new(lines.others[i]);
            lines.of_p[i] = (R::new(lines.of_p[i]) / sum).get();
        }
        block.gradient::<R>();
        let losses = &block.room.lines.losses[..pixels.length];
        job.store_losses(pixels.row, losses);
        Sum(losses).run::<R>()
    }
}

impl<W: Wide> ClassPixels<'_, W> {
    /// Computes the exponentials of the logits, not shifted by the maximum, and the sums of those that are not the
    /// target's. Returns whether all logits are [`MODERATE`]; if not, the results may have overflowed and are not to be
    /// used.
    #[inline(always)]
    fn powers<R: LaneOf<W>>(&mut self) -> bool {
        let (job, pixels, room) = (self.call.job, self.pixels, &mut *self.room);
        let length = pixels.length;
        let (others, classes) = (&mut room.lines.others[..length], &room.lines.classes[..length]);
        others.fill(W::default());
        let (mut extreme, zero) = (false, R::of(0.0));
        for class in 0..job.classes {
            let index = R::of(class as f64);
            let x = &job.input.read(pixels.of(class), &mut room.x)[..length];
            let exponentials = &mut room.exponentials[class * length..][..length];
            job.fetch_pixels(pixels, class);
            for i in 0..length {
                let x = R::new(x[i]);
                extreme |= x.abs() > R::of(MODERATE);
                let exponential = x.exp_of_moderate();
                exponentials[i] = exponential.get();
                others[i] = (R::new(others[i]) + choose(R::new(classes[i]) == index, zero, exponential)).get();
            }
        }
        !extreme
    }

    /// Computes the exponentials of the logits less their maximum, the sums of those that are not the target's, and for
    /// a smoothed target Σ w (max − x).
    #[inline(always)]
    fn exponentials<R: LaneOf<W>>(&mut self) {
        let (job, pixels, room) = (self.call.job, self.pixels, &mut *self.room);
        let length = pixels.length;
        let max = &room.lines.max[..length];
        let (others, distances) = (&mut room.lines.others[..length], &mut room.lines.distances[..length]);
        let (classes, zero) = (&room.lines.classes[..length], R::of(0.0));
        others.fill(W::default());
        distances.fill(W::default());
        for class in 0..job.classes {
            let index = R::of(class as f64);
            let x = &job.input.read(pixels.of(class), &mut room.x)[..length];
            let exponentials = &mut room.exponentials[class * length..][..length];
            job.fetch_pixels(pixels, class);
            for i in 0..length {
                let exponential = (R::new(x[i]) - R::new(max[i])).exp_of_negative();
                exponentials[i] = exponential.get();
                others[i] = (R::new(others[i]) + choose(R::new(classes[i]) == index, zero, exponential)).get();
            }
            // A masked class has x = −∞. With weight 0 it must add 0, not 0 · ∞ = NaN.
            if self.call.spread != 0.0 && job.options.weight_of(class) != 0.0 {
                let weight = R::of(job.options.weight_of(class));
                for i in 0..length {
                    let distance = R::new(max[i]) - R::new(x[i]);
                    distances[i] = weight.mul_add(distance, R::new(distances[i])).get();
                }
            }
        }
    }

    /// Reads what belongs to the target of each pixel: its logit, the exponential of it, its weight, and the factor of
    /// the gradient.
    #[inline(always)]
    fn read_targets(&mut self) {
        let (call, job, pixels, room) = (self.call, self.call.job, self.pixels, &mut *self.room);
        for i in 0..pixels.length {
            let class = job.class(pixels.row + i).unwrap_or(0);
            room.lines.own[i] = room.exponentials[class * pixels.length + i];
            room.lines.targets[i] = job.input.wide(pixels.of(class).start + i);
        }
        match job.options.weight {
            None => room.lines.weights.fill(W::from_f64(call.own)),
            Some(_) => {
                for (i, weight) in room.lines.weights[..pixels.length].iter_mut().enumerate() {
                    *weight = call.weight(job.class(pixels.row + i).unwrap_or(0));
                }
            }
        }
        job.read_factors(pixels, &mut room.lines.factors);
    }

    /// Writes the gradient: `of_p` exp(x\[c\]) − `of_weight` w\[c\], where `of_p` has been divided by Σ exp(x), and at
    /// the target `of_target` − `of_weight` w\[t\]; see [`Evaluation`](super::classes::Evaluation).
    #[inline(always)]
    fn gradient<R: LaneOf<W>>(&mut self) {
        let (job, pixels, room) = (self.call.job, self.pixels, &mut *self.room);
        if !job.needs_gradient() {
            return;
        }
        let length = pixels.length;
        let (of_p, classes) = (&room.lines.of_p[..length], &room.lines.classes[..length]);
        let (of_target, of_weight) = (&room.lines.of_target[..length], &room.lines.of_weight[..length]);
        let zero = R::of(0.0);
        for class in 0..job.classes {
            let exponentials = &mut room.exponentials[class * length..][..length];
            let (index, weight) = (R::of(class as f64), R::of(job.options.weight_of(class)));
            let position = pixels.of(class).start;
            // An ignored pixel (class −1) has a gradient of 0, even where its logits are NaN.
            let gradient = |i: usize, exponential: W, spread: R| {
                let others = R::new(exponential) * R::new(of_p[i]);
                let gradient = choose(R::new(classes[i]) == index, R::new(of_target[i]), others) - spread;
                choose(R::new(classes[i]) >= zero, gradient, zero).get()
            };
            if self.call.spread == 0.0 {
                job.store_gradient(position, exponentials, |i, e| gradient(i, e, zero), None);
            } else {
                let gradient = |i: usize, e| gradient(i, e, R::new(of_weight[i]) * weight);
                job.store_gradient(position, exponentials, gradient, None);
            }
        }
    }
}
