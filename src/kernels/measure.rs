//! What a pixel contributes to the sums of a class, and the derivatives of that, for the engines of regions of all
//! devices.

use super::number::{Real, choose};

/// How much of one pixel the target gives to a class.
#[derive(Clone, Copy)]
pub(super) struct PixelShare<R: Real, const HARD: bool> {
    /// Whether it is not ignored.
    pub(super) counts: R::Mask,
    /// Whether the share is 1. Only for class indices.
    pub(super) whole: R::Mask,
    pub(super) value: R,
}

impl<R: Real, const HARD: bool> PixelShare<R, HARD> {
    /// `HARD`: of the pixel's class, −1 where it is ignored, and of the class that is looked at. Else of a mask, and of
    /// the value of masks that is ignored, NaN for none.
    #[inline(always)]
    pub(super) fn new(number: R, key: R) -> Self {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let same = number.equal(key);
        if HARD {
            return Self { counts: number.greater_equal(zero), whole: same, value: choose(same, one, zero) };
        }
        Self { counts: number.unequal(key), whole: R::Mask::from(false), value: choose(same, zero, number) }
    }

    /// `number` times the share. With class indices a share of 0 gives 0 even of an infinite or NaN number.
    #[inline(always)]
    pub(super) fn of(self, number: R) -> R {
        if HARD { choose(self.whole, number, R::of(0.0)) } else { self.value * number }
    }
}

/// How regions are measured: the engine's side of [`OverlapMeasure`](crate::OverlapMeasure).
pub(super) trait Measure: Copy + Default {
    /// What a pixel with the probability `p` contributes to the intersection, and the derivative of that with respect
    /// to `p`.
    fn intersection<R: Real, const HARD: bool>(p: R, share: PixelShare<R, HARD>) -> (R, R);
    /// What it contributes to the size of the region, and the derivative of that with respect to `p`.
    fn size<R: Real>(p: R) -> (R, R);
}

/// Intersection Σ p t, size Σ p.
#[derive(Clone, Copy, Default)]
pub(super) struct Product;
/// Intersection Σ p t, size Σ p².
#[derive(Clone, Copy, Default)]
pub(super) struct Squared;
/// Intersection Σ min(p, t), size Σ p.
#[derive(Clone, Copy, Default)]
pub(super) struct Minimum;

impl Measure for Product {
    #[inline(always)]
    fn intersection<R: Real, const HARD: bool>(p: R, share: PixelShare<R, HARD>) -> (R, R) {
        (share.of(p), share.value)
    }

    #[inline(always)]
    fn size<R: Real>(p: R) -> (R, R) {
        (p, R::of(1.0))
    }
}

impl Measure for Squared {
    #[inline(always)]
    fn intersection<R: Real, const HARD: bool>(p: R, share: PixelShare<R, HARD>) -> (R, R) {
        (share.of(p), share.value)
    }

    #[inline(always)]
    fn size<R: Real>(p: R) -> (R, R) {
        (p * p, p + p)
    }
}

impl Measure for Minimum {
    #[inline(always)]
    fn intersection<R: Real, const HARD: bool>(p: R, share: PixelShare<R, HARD>) -> (R, R) {
        let (zero, one, t) = (R::of(0.0), R::of(1.0), share.value);
        // Where p and t are equal, each gets half of the gradient, as in PyTorch; also for the shares 0 and 1 of class
        // indices.
        let slope = choose(p.greater(t), zero, choose(p.equal(t), R::of(0.5), one));
        // The minimum, which is NaN where p or t is.
        (choose(p.greater_equal(t), t, choose(p.less(t), p, p + t)), slope)
    }

    #[inline(always)]
    fn size<R: Real>(p: R) -> (R, R) {
        (p, R::of(1.0))
    }
}

/// The derivative of the intersection and the size, times their gradients, with respect to the probability of a pixel; 0
/// where it is ignored.
#[inline(always)]
pub(super) fn by_probability<R: Real, M: Measure, const HARD: bool>(
    p: R,
    share: PixelShare<R, HARD>,
    [of_intersection, of_size]: [R; 2],
) -> R {
    let slope = M::intersection(p, share).1;
    choose(share.counts, of_intersection.mul_add(slope, of_size * M::size(p).1), R::of(0.0))
}
