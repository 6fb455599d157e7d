//! The buffers of some rows, or of a block of pixels, between the kernels that compute them.

use std::ops::Range;

use super::exponentials::likely;
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::lane::LaneOf;
use crate::kernels::cpu::rows::job::{Job, Pixels};
use crate::kernels::number::choose;

/// How many pixels a block has at most.
pub(super) const PIXELS: usize = 512;

/// How many pixels a block has, so that it fits the second-level cache with all its classes.
pub(super) fn block(classes: usize) -> usize {
    ((1 << 15) / classes / 16 * 16).clamp(32, PIXELS)
}

/// How many rows are computed between two calls of the formula. More rows need fewer calls; no more than that the
/// first-level cache still has their exponentials when the gradient is computed.
pub(super) fn rows_at_once<W>(classes: usize) -> usize {
    ((1 << 14) / size_of::<W>() / classes).clamp(1, ROWS)
}

/// How many rows are computed between two calls of the formula at most.
pub(super) const ROWS: usize = 64;

/// Numbers of up to `L` rows or pixels. Each array begins at the start of a cache line; see
/// [`Aligned`](crate::kernels::cpu::simd::Aligned).
#[repr(align(64))]
pub(super) struct Lines<W, const L: usize> {
    /// The class of the target, −1 where it is ignored.
    pub(super) classes: [W; L],
    /// The logit of the target.
    pub(super) targets: [W; L],
    /// The largest logit, where the exponentials are shifted by it; the exponential of the target's logit; and the sum
    /// of the exponentials of the other classes.
    pub(super) max: [W; L],
    pub(super) own: [W; L],
    pub(super) others: [W; L],
    /// Σ w (max − x) over all classes, for a smoothed target.
    pub(super) distances: [W; L],
    /// See [`Evaluation`](super::classes::Evaluation).
    pub(super) log_p: [W; L],
    pub(super) rest: [W; L],
    pub(super) log_sum: [W; L],
    pub(super) smooth: [W; L],
    pub(super) weights: [W; L],
    pub(super) factors: [W; L],
    pub(super) losses: [W; L],
    pub(super) of_p: [W; L],
    pub(super) of_target: [W; L],
    pub(super) of_weight: [W; L],
}

impl<W: Wide, const L: usize> Lines<W, L> {
    pub(super) fn new() -> Self {
        let zeros = [W::default(); L];
        Self {
            classes: zeros,
            targets: zeros,
            max: zeros,
            own: zeros,
            others: zeros,
            distances: zeros,
            log_p: zeros,
            rest: zeros,
            log_sum: zeros,
            smooth: zeros,
            weights: zeros,
            factors: zeros,
            losses: zeros,
            of_p: zeros,
            of_target: zeros,
            of_weight: zeros,
        }
    }

    /// Computes `log_p`, `log_sum`, `rest` and `smooth` of some rows from `own`, `others`, `max`, `targets` and
    /// `distances`. `unshifted` as in [`take_logarithms`](Self::take_logarithms); `total` is the sum of the weights of
    /// all classes.
    #[inline(always)]
    pub(super) fn take<R: LaneOf<W>>(&mut self, rows: Range<usize>, unshifted: bool, total: f64) {
        match unshifted {
            true => self.take_logarithms::<R, true>(rows, total),
            false => self.take_logarithms::<R, false>(rows, total),
        }
    }

    /// [`take`](Self::take), where `UNSHIFTED` says that the exponentials are those of the logits themselves, not less
    /// their maximum.
    #[inline(always)]
    pub(super) fn take_logarithms<R: LaneOf<W>, const UNSHIFTED: bool>(&mut self, rows: Range<usize>, total: f64) {
        for i in rows.start..rows.end.min(L) {
            let (own, others) = (R::new(self.own[i]), R::new(self.others[i]));
            let sum = own + others;
            let log = sum.ln();
            let likely = likely(own, others);
            self.rest[i] = (others / sum).get();
            if UNSHIFTED {
                // x − log Σ exp(x) would lose digits where both are large.
                self.log_p[i] = likely.get();
                self.log_sum[i] = log.get();
                self.smooth[i] = W::default();
            } else {
                let max = R::new(self.max[i]);
                let x = R::new(self.targets[i]) - max;
                self.log_p[i] = choose(own > others, likely, x - log).get();
                self.log_sum[i] = (max + log).get();
                self.smooth[i] = (R::new(self.distances[i]) + R::of(total) * log).get();
            }
        }
    }
}

/// The buffers of a block of pixels.
pub(super) struct Room<W> {
    /// The logits of one class, where they have to be converted.
    pub(super) x: [W; PIXELS],
    pub(super) sums: [W; PIXELS],
    pub(super) lines: Lines<W, PIXELS>,
    /// The exponentials `[classes, pixels]`.
    pub(super) exponentials: Vec<W>,
}

impl<W: Wide> Room<W> {
    pub(super) fn new(classes: usize) -> Self {
        let zeros = [W::default(); PIXELS];
        Self { x: zeros, sums: zeros, lines: Lines::new(), exponentials: vec![W::default(); block(classes) * classes] }
    }

    /// Finds the largest logit of each pixel.
    #[inline(always)]
    pub(super) fn find_max<R: LaneOf<W>>(&mut self, job: &Job<W>, pixels: Pixels) {
        let max = &mut self.lines.max[..pixels.length];
        max.fill(W::from_f64(f64::NEG_INFINITY));
        for class in 0..job.classes {
            let x = job.input.read(pixels.of(class), &mut self.x);
            for (max, x) in max.iter_mut().zip(x) {
                *max = R::new(*max).max(R::new(*x)).get();
            }
        }
    }
}
