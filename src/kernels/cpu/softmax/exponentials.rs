//! The exponentials of the logits of a row, their sums, and logarithms of probabilities that keep their digits. Used by
//! all engines with a softmax over rows.

use std::ops::Range;

use crate::kernels::cpu::BLOCK;
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::lane::LaneOf;
use crate::kernels::cpu::simd::{self, LANES, Sum};
use crate::kernels::number::{Real, choose};

/// The largest |x| of a moderate logit. The exponential of each such logit, divided by the sum of as many as there may
/// be classes, is a normal number, so that a softmax of them needs no shift by the maximum.
pub(in crate::kernels::cpu) const MODERATE: f64 = 30.0;

/// Computes the exponentials of the logits, not shifted by the maximum. Returns their sum, added up in a fixed order.
/// `None` where a logit is not [`MODERATE`]: then [`exponentials`] is to be called. `ahead` is as there.
#[inline(always)]
pub(in crate::kernels::cpu) fn powers<W: Wide, R: LaneOf<W>>(
    x: &[W],
    exponentials: &mut [W],
    ahead: impl Fn(Range<usize>),
) -> Option<f64> {
    let mut sum = 0.0;
    for (index, (x, exponentials)) in x.chunks(BLOCK).zip(exponentials.chunks_mut(BLOCK)).enumerate() {
        ahead(index * BLOCK..index * BLOCK + x.len());
        let mut extreme = false;
        for (x, exponential) in x.iter().zip(exponentials.iter_mut()) {
            extreme |= R::new(*x).abs() > R::of(MODERATE);
            *exponential = R::new(*x).exp_of_moderate().get();
        }
        if extreme {
            return None;
        }
        sum += sum_of(exponentials);
    }
    Some(sum)
}

/// The sum of a block. Not inlined: among the other loops of a kernel the compiler would use shorter vectors for it.
#[inline(never)]
fn sum_of<W: Wide>(numbers: &[W]) -> f64 {
    simd::run(Sum(numbers))
}

/// Which sum of the distances max − x of the logits from the largest one is computed.
#[derive(Clone, Copy)]
pub(in crate::kernels::cpu) enum Distances<'a, W> {
    Nothing,
    /// Σ (max − x)
    Equally,
    /// Σ w (max − x)
    Weighted(&'a [W]),
}

impl<'a, W> Distances<'a, W> {
    /// The sum that a `smoothed` target needs.
    pub(in crate::kernels::cpu) fn of_smoothed(smoothed: bool, weights: Option<&'a [W]>) -> Self {
        match weights {
            _ if !smoothed => Self::Nothing,
            None => Self::Equally,
            Some(weights) => Self::Weighted(weights),
        }
    }
}

/// Computes the exponentials of `x` − `max`, where `max` is the largest number. Returns their sum and that of the
/// `distances` `max` − `x`, added up in a fixed order. `ahead` is called with each range before it is computed, to have
/// memory loaded meanwhile that is needed next.
#[inline(always)]
pub(in crate::kernels::cpu) fn exponentials<W: Wide, R: LaneOf<W>>(
    x: &[W],
    max: R,
    distances: Distances<W>,
    exponentials: &mut [W],
    ahead: impl Fn(Range<usize>),
) -> [R; 2] {
    let mut totals = [0.0; 2];
    for (index, (x, exponentials)) in x.chunks(BLOCK).zip(exponentials.chunks_mut(BLOCK)).enumerate() {
        let start = index * BLOCK;
        ahead(start..start + x.len());
        let mut sums = [[R::of(0.0); LANES]; 2];
        for (group, (x, exponentials)) in x.chunks(LANES).zip(exponentials.chunks_mut(LANES)).enumerate() {
            let start = start + group * LANES;
            let distances = match distances {
                Distances::Weighted(weights) => Distances::Weighted(&weights[start..start + x.len()]),
                plain => plain,
            };
            match x.len() {
                // The compiler knows this length, a multiple of that of vectors, so that the loop needs no rest.
                LANES => add_group(&x[..LANES], max, distances, &mut exponentials[..LANES], &mut sums),
                _ => add_group(x, max, distances, exponentials, &mut sums),
            }
        }
        for k in 0..2 {
            totals[k] += simd::total(sums[k]);
        }
    }
    [R::of(totals[0]), R::of(totals[1])]
}

/// Computes the exponentials of at most [`LANES`] numbers, and adds each number's terms to the sums of its lane.
#[inline(always)]
fn add_group<W: Wide, R: LaneOf<W>>(
    x: &[W],
    max: R,
    distances: Distances<W>,
    exponentials: &mut [W],
    sums: &mut [[R; LANES]; 2],
) {
    let (length, exponentials) = (x.len(), &mut exponentials[..x.len()]);
    for i in 0..length {
        let exponential = (R::new(x[i]) - max).exp_of_negative();
        exponentials[i] = exponential.get();
        sums[0][i] = sums[0][i] + exponential;
    }
    match distances {
        Distances::Nothing => (),
        Distances::Equally => {
            for i in 0..length {
                sums[1][i] = sums[1][i] + (max - R::new(x[i]));
            }
        }
        Distances::Weighted(weights) => {
            let weights = &weights[..length];
            for i in 0..length {
                let weight = R::new(weights[i]);
                // A masked class has x = −∞. With weight 0 it must add 0, not 0 · ∞ = NaN.
                let distance = choose(weight == R::of(0.0), R::of(0.0), max - R::new(x[i]));
                sums[1][i] = distance.mul_add(weight, sums[1][i]);
            }
        }
    }
}

/// The largest number; NaNs are skipped.
#[inline(always)]
pub(in crate::kernels::cpu) fn largest<W: Wide, R: LaneOf<W>>(numbers: &[W]) -> R {
    let mut lanes = [W::from_f64(f64::NEG_INFINITY); LANES];
    let groups = numbers.chunks_exact(LANES);
    let rest = groups.remainder();
    for group in groups {
        for (lane, number) in lanes.iter_mut().zip(group) {
            *lane = R::new(*lane).max(R::new(*number)).get();
        }
    }
    for (lane, number) in lanes.iter_mut().zip(rest) {
        *lane = R::new(*lane).max(R::new(*number)).get();
    }
    // In pairs, so that no comparison waits for all before it.
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = R::new(lanes[lane]).max(R::new(lanes[lane + width])).get();
        }
    }
    R::new(lanes[0])
}

/// log p of a class, from the exponential of its logit and the sum of the other exponentials: −log(1 + others / own).
/// Unlike log(own / sum) it keeps the digits of a p near 1.
#[inline(always)]
pub(in crate::kernels::cpu) fn likely<R: Real>(own: R, others: R) -> R {
    -(others / own).ln_1p()
}

/// The sum of all exponentials but that at `place`, given the sum of all. Where that one is more than half of the sum,
/// the difference would lose digits, so the others are added up.
#[inline(always)]
pub(in crate::kernels::cpu) fn others<W: Wide, R: LaneOf<W>>(exponentials: &mut [W], place: usize, sum: R) -> R {
    let own = exponentials[place];
    let most = R::new(own) + R::new(own) > sum;
    if !most {
        return sum - R::new(own);
    }
    exponentials[place] = W::default();
    let others = simd::sum::<W, R>(exponentials);
    exponentials[place] = own;
    R::of(others)
}

/// The place of the largest logit, whose exponential is 1 after the shift, if that is more than half of the sum.
#[inline(always)]
pub(in crate::kernels::cpu) fn peak<W: Wide, R: LaneOf<W>>(exponentials: &[W], sum: R) -> Option<usize> {
    let peaked = sum < R::of(2.0);
    if !peaked {
        return None;
    }
    for place in 0..exponentials.len() {
        if R::new(exponentials[place]) == R::of(1.0) {
            return Some(place);
        }
    }
    None
}
