//! Pixels in a class: their shares and probabilities, and what they contribute.

use std::ops::Range;

use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::lane::LaneOf;
use crate::kernels::number::{Real, choose};

/// The shares of pixels in a class.
#[derive(Clone, Copy)]
pub(super) struct Share<'a, W, const HARD: bool> {
    /// The pixels' classes as numbers, −1 where ignored (`HARD`), or the shares themselves.
    pub(super) numbers: &'a [W],
    /// The class, or the share that is ignored: NaN for none.
    pub(super) key: W,
}

impl<W: Wide, const HARD: bool> Share<'_, W, HARD> {
    /// Those of some of the pixels.
    #[inline(always)]
    pub(super) fn part(self, pixels: Range<usize>) -> Self {
        Self { numbers: &self.numbers[pixels], ..self }
    }

    #[inline(always)]
    pub(super) fn at<R: LaneOf<W>>(self, pixel: usize) -> PixelShare<R, HARD> {
        let (number, key) = (R::new(self.numbers[pixel]), R::new(self.key));
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let same = number == key;
        if HARD {
            return PixelShare { counts: number >= zero, whole: same, value: choose(same, one, zero) };
        }
        PixelShare { counts: !same, whole: false, value: choose(same, zero, number) }
    }
}

/// The share of one pixel in a class.
#[derive(Clone, Copy)]
pub(super) struct PixelShare<R, const HARD: bool> {
    /// Whether it is not ignored.
    pub(super) counts: bool,
    /// Whether it is 1, for class indices.
    pub(super) whole: bool,
    pub(super) value: R,
}

impl<R: Real, const HARD: bool> PixelShare<R, HARD> {
    /// `number` times the share. What class indices leave out does not matter, not even where it is infinite.
    #[inline(always)]
    pub(super) fn of(self, number: R) -> R {
        if HARD { choose(self.whole, number, R::of(0.0)) } else { self.value * number }
    }
}

/// How regions are measured: the engine's side of [`OverlapMeasure`].
pub(super) trait Measure: Copy + Default {
    /// What a pixel with the probability `p` contributes to the intersection, and the derivative.
    fn intersection<R: Real, const HARD: bool>(p: R, share: PixelShare<R, HARD>) -> (R, R);
    /// What it contributes to the size, and the derivative.
    fn size<R: Real>(p: R) -> (R, R);
}

#[derive(Clone, Copy, Default)]
pub(super) struct Product;
#[derive(Clone, Copy, Default)]
pub(super) struct Squared;
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
        // Where both are the same, each has half of the gradient, as in PyTorch. With class indices too, whose shares
        // are 0 or 1.
        let slope = choose(p.greater(t), zero, choose(p.equal(t), R::of(0.5), one));
        // NaN where either of them is.
        (choose(p.greater_equal(t), t, choose(p.less(t), p, p + t)), slope)
    }

    #[inline(always)]
    fn size<R: Real>(p: R) -> (R, R) {
        (p, R::of(1.0))
    }
}

/// The probabilities of pixels in a class.
pub(super) trait Probabilities<W>: Copy {
    /// Those of some of the pixels.
    fn part(self, pixels: Range<usize>) -> Self;
    /// The probability of a pixel, and its derivative by the pixel's input where it depends on nothing else.
    fn at<R: LaneOf<W>>(self, pixel: usize) -> (R, R);
    /// Whether a number is none of the probabilities that were to be expected.
    #[inline(always)]
    fn is_strange<R: LaneOf<W>>(self, _: R) -> bool {
        false
    }
}

/// Numbers, and the range in which they are to be; NaN may be everywhere.
#[derive(Clone, Copy)]
pub(super) struct Given<'a, W>(pub(super) &'a [W], pub(super) [W; 2]);
#[derive(Clone, Copy)]
pub(super) struct Sigmoid<'a, W>(pub(super) &'a [W]);
/// Exponentials and the inverse of their sum.
#[derive(Clone, Copy)]
pub(super) struct Softmax<'a, W>(pub(super) &'a [W], pub(super) &'a [W]);

impl<W: Wide> Probabilities<W> for Given<'_, W> {
    #[inline(always)]
    fn part(self, pixels: Range<usize>) -> Self {
        Self(&self.0[pixels], self.1)
    }

    #[inline(always)]
    fn is_strange<R: LaneOf<W>>(self, number: R) -> bool {
        let [least, most] = [R::new(self.1[0]), R::new(self.1[1])];
        (number < least) | (number > most)
    }

    #[inline(always)]
    fn at<R: LaneOf<W>>(self, pixel: usize) -> (R, R) {
        (R::new(self.0[pixel]), R::of(1.0))
    }
}

impl<W: Wide> Probabilities<W> for Sigmoid<'_, W> {
    #[inline(always)]
    fn part(self, pixels: Range<usize>) -> Self {
        Self(&self.0[pixels])
    }

    #[inline(always)]
    fn at<R: LaneOf<W>>(self, pixel: usize) -> (R, R) {
        let x = R::new(self.0[pixel]);
        let e = (-x.abs()).exp_of_negative();
        let large = R::of(1.0) / (R::of(1.0) + e);
        let small = e * large;
        (choose(x >= R::of(0.0), large, small), large * small)
    }
}

impl<W: Wide> Probabilities<W> for Softmax<'_, W> {
    #[inline(always)]
    fn part(self, pixels: Range<usize>) -> Self {
        Self(&self.0[pixels.clone()], &self.1[pixels])
    }

    #[inline(always)]
    fn at<R: LaneOf<W>>(self, pixel: usize) -> (R, R) {
        (R::new(self.0[pixel]) * R::new(self.1[pixel]), R::of(1.0))
    }
}

/// The gradients of the sums of a class.
#[derive(Clone, Copy)]
pub(super) struct Slopes<W, M> {
    pub(super) intersection: W,
    pub(super) size: W,
    /// Times the weight of the class.
    pub(super) entropy: W,
    #[allow(dead_code)]
    pub(super) measure: M,
}

impl<W: Wide, M: Measure> Slopes<W, M> {
    /// The derivative of the sums over regions by the probability of a pixel.
    #[inline(always)]
    pub(super) fn by_probability<R: LaneOf<W>, const HARD: bool>(self, p: R, share: PixelShare<R, HARD>) -> R {
        let slope = M::intersection(p, share).1;
        let of_size = R::new(self.size) * M::size(p).1;
        choose(share.counts, R::new(self.intersection).mul_add(slope, of_size), R::of(0.0))
    }
}
