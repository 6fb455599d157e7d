//! What a pixel is to a class: its share in the target, and its probability.

use std::ops::Range;

use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::lane::LaneOf;
use crate::kernels::measure::{Measure, PixelShare, by_probability};
use crate::kernels::number::choose;

/// How much of each pixel the target gives to a class. `HARD` for class indices, which give 0 or 1; else masks.
#[derive(Clone, Copy)]
pub(super) struct Share<'a, W, const HARD: bool> {
    /// `HARD`: the pixels' classes as floats, −1 where they are ignored. Else the masks.
    pub(super) numbers: &'a [W],
    /// `HARD`: the class. Else the value of masks that is ignored; NaN for none.
    pub(super) key: W,
}

impl<W: Wide, const HARD: bool> Share<'_, W, HARD> {
    /// The shares of some of the pixels.
    #[inline(always)]
    pub(super) fn part(self, pixels: Range<usize>) -> Self {
        Self { numbers: &self.numbers[pixels], ..self }
    }

    #[inline(always)]
    pub(super) fn at<R: LaneOf<W>>(self, pixel: usize) -> PixelShare<R, HARD> {
        PixelShare::new(R::new(self.numbers[pixel]), R::new(self.key))
    }
}

/// The probabilities of the pixels of one class.
pub(super) trait Probabilities<W>: Copy {
    /// The probabilities of some of the pixels.
    fn part(self, pixels: Range<usize>) -> Self;
    /// The probability of a pixel, and its derivative with respect to the pixel's input. With a softmax, where other
    /// inputs matter as well, the latter is 1 and is not used.
    fn at<R: LaneOf<W>>(self, pixel: usize) -> (R, R);
    /// Whether a probability is out of the range that was expected.
    #[inline(always)]
    fn is_out_of_range<R: LaneOf<W>>(self, _: R) -> bool {
        false
    }
}

/// Inputs without an activation, and the range in which they are expected. NaN is not out of it.
#[derive(Clone, Copy)]
pub(super) struct Given<'a, W>(pub(super) &'a [W], pub(super) [W; 2]);
/// Logits of a sigmoid.
#[derive(Clone, Copy)]
pub(super) struct Sigmoid<'a, W>(pub(super) &'a [W]);
/// Exponentials, and the inverse of their sum over the classes.
#[derive(Clone, Copy)]
pub(super) struct Softmax<'a, W>(pub(super) &'a [W], pub(super) &'a [W]);

impl<W: Wide> Probabilities<W> for Given<'_, W> {
    #[inline(always)]
    fn part(self, pixels: Range<usize>) -> Self {
        Self(&self.0[pixels], self.1)
    }

    #[inline(always)]
    fn is_out_of_range<R: LaneOf<W>>(self, number: R) -> bool {
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

/// The gradients of the sums of a class: of the intersection, the input's region and the cross entropy.
#[derive(Clone, Copy)]
pub(super) struct Slopes<W, M> {
    pub(super) intersection: W,
    pub(super) size: W,
    /// The gradient of the cross entropy times the weight of the class.
    pub(super) entropy: W,
    #[allow(dead_code)]
    pub(super) measure: M,
}

impl<W: Wide, M: Measure> Slopes<W, M> {
    /// The derivative of the intersection and the size, times their gradients, with respect to the probability of a
    /// pixel; 0 where it is ignored.
    #[inline(always)]
    pub(super) fn by_probability<R: LaneOf<W>, const HARD: bool>(self, p: R, share: PixelShare<R, HARD>) -> R {
        by_probability::<R, M, HARD>(p, share, [R::new(self.intersection), R::new(self.size)])
    }
}
