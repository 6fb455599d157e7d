//! What a task does: it computes its sums, or writes its gradient, block after block. Each function calls the kernels
//! of `loops` for all classes of a block.

use std::ops::Range;

use super::loops::{
    Classes, Entropies, Exponentials, Gradients, Greatest, Inverses, Logarithms, Masked, Means, Picked, Powers,
    RegionSums, SoftmaxGradients,
};
use super::measure::{Given, Share, Sigmoid, Slopes, Softmax};
use super::{Options, Shape};
use crate::Activation;
use crate::kernels::cpu::BLOCK;
use crate::kernels::cpu::elements::{Block, Numbers};
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::output::Output;
use crate::kernels::cpu::simd::{self, Sum};
use crate::kernels::measure::Measure;

/// A pass, which all threads share.
pub(super) struct Job<'a, W> {
    pub(super) formula: &'a Options,
    pub(super) shape: Shape,
    pub(super) input: Numbers<'a, W>,
    pub(super) target: Target<'a, W>,
}

/// The target: a class index for each pixel, or a mask for each class.
pub(super) enum Target<'a, W> {
    Indices(&'a [i64]),
    Masks(Numbers<'a, W>),
}

/// The sums over the pixels of one task.
pub(super) struct Part {
    /// For each class the intersection, the input's region and the target's region.
    pub(super) regions: Vec<[f64; 3]>,
    pub(super) entropy: f64,
    pub(super) weight: f64,
}

/// The gradients of the sums: for each sample and class, and of the cross entropy.
pub(super) struct Factors<W> {
    /// The gradients of the intersections.
    pub(super) intersection: Vec<W>,
    /// The gradients of the input's regions.
    pub(super) size: Vec<W>,
    pub(super) entropy: W,
}

/// The buffers of one block.
pub(super) struct Room<W> {
    /// The exponentials of all classes `[classes, block]`, and later their probabilities.
    pub(super) exponentials: Vec<W>,
    /// The class of each pixel as a float, −1 where it is ignored.
    pub(super) classes: Block<W>,
    /// The largest logit of each pixel.
    pub(super) greatest: Block<W>,
    /// The sum of a pixel's exponentials, and later the inverse of it; 0 where the pixel is ignored.
    pub(super) inverse: Block<W>,
    /// The logarithm of the sum of a pixel's exponentials.
    pub(super) logarithm: Block<W>,
    /// What the softmax subtracts from the derivatives of each pixel: the `mean` of [`Means`].
    pub(super) mean: Block<W>,
    /// Σ share · weight · (logit − greatest) over the classes of each pixel.
    pub(super) picked: Block<W>,
    /// Σ share · weight over the classes of each pixel.
    pub(super) weights: Block<W>,
    /// The cross entropy of each pixel, or the gradient of a class.
    pub(super) term: Block<W>,
    pub(super) rows: RowRoom<W>,
}

/// The buffers of one class of a block: of its logits where they are converted or masked, and of its target.
pub(super) struct RowRoom<W> {
    pub(super) input: Block<W>,
    pub(super) masked: Block<W>,
    pub(super) target: Block<W>,
}

impl<W: Wide> Room<W> {
    pub(super) fn new(exponentials: usize) -> Self {
        let zeros = [W::default(); BLOCK];
        Self {
            exponentials: vec![W::default(); exponentials],
            classes: zeros,
            greatest: zeros,
            inverse: zeros,
            logarithm: zeros,
            mean: zeros,
            picked: zeros,
            weights: zeros,
            term: zeros,
            rows: RowRoom { input: zeros, masked: zeros, target: zeros },
        }
    }
}

/// The pixels of a block.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) sample: usize,
    pub(super) pixels: Range<usize>,
}

impl<W: Wide> Job<'_, W> {
    pub(super) fn room(&self) -> Room<W> {
        let softmax = self.formula.activation == Activation::Softmax;
        Room::new(if softmax { self.shape.classes * self.shape.block } else { 0 })
    }

    pub(super) fn places(&self, task: usize) -> impl Iterator<Item = Place> {
        let sample = self.shape.sample(task);
        self.shape.blocks(task).map(move |pixels| Place { sample, pixels })
    }

    /// The sums of a task; `None` where a class index, a mask or a probability is out of range. `HARD` for class
    /// indices.
    pub(super) fn sum<M: Measure, const HARD: bool>(&self, task: usize) -> Option<Part> {
        let mut room = self.room();
        let mut part = Part { regions: vec![[0.0; 3]; self.shape.classes], entropy: 0.0, weight: 0.0 };
        for place in self.places(task) {
            let right = self.read_classes(&place, &mut room.classes);
            if !right || !self.sum_block::<M, HARD>(&place, &mut room, &mut part) {
                return None;
            }
        }
        Some(part)
    }

    /// Adds the sums of a block to those of the task. Returns whether all numbers of the block are in their range.
    pub(super) fn sum_block<M: Measure, const HARD: bool>(
        &self,
        place: &Place,
        room: &mut Room<W>,
        part: &mut Part,
    ) -> bool {
        let length = place.pixels.len();
        if self.formula.activation == Activation::Softmax {
            self.softmax(place, room);
        }
        if self.formula.entropy.is_some() {
            self.entropy::<HARD>(place, room, part);
        }
        let mut right = true;
        for (class, totals) in part.regions.iter_mut().enumerate() {
            let share = self.share::<HARD>(place, class, &room.classes, &mut room.rows.target);
            let measure = M::default();
            let (sums, in_range) = match self.formula.activation {
                Activation::Softmax => {
                    let start = class * self.shape.block;
                    let input = Softmax(&room.exponentials[start..start + length], &room.inverse[..length]);
                    simd::run(RegionSums { input, share, length, measure })
                }
                Activation::None => {
                    let input = Given(self.read(place, class, &mut room.rows.input), self.expected());
                    simd::run(RegionSums { input, share, length, measure })
                }
                Activation::Sigmoid => {
                    let input = Sigmoid(self.read(place, class, &mut room.rows.input));
                    simd::run(RegionSums { input, share, length, measure })
                }
            };
            (0..3).for_each(|which| totals[which] += sums[which]);
            right &= in_range;
        }
        right
    }

    /// The range in which inputs without an activation are expected.
    fn expected(&self) -> [W; 2] {
        let (start, end) = self.formula.expected.clone().into_inner();
        [start, end].map(W::from_f64)
    }

    /// Adds the cross entropies of a block to the sum of the task. Its softmax has been computed.
    pub(super) fn entropy<const HARD: bool>(&self, place: &Place, room: &mut Room<W>, part: &mut Part) {
        let length = place.pixels.len();
        let (picked, weights) = (&mut room.picked[..length], &mut room.weights[..length]);
        picked.fill(W::default());
        weights.fill(W::default());
        for class in 0..self.shape.classes {
            let logits = self.logits(place, class, &room.classes, &mut room.rows.input, &mut room.rows.masked);
            let share = self.share::<HARD>(place, class, &room.classes, &mut room.rows.target);
            let weight = self.weight(class);
            simd::run(Picked { logits, greatest: &room.greatest[..length], share, weight, picked, weights });
        }
        let (logarithm, term) = (&room.logarithm[..length], &mut room.term[..length]);
        simd::run(Entropies { logarithm, picked, weights, term });
        part.entropy += simd::run(Sum(term));
        part.weight += simd::run(Sum(weights));
    }

    /// The weight of a class in the cross entropy.
    pub(super) fn weight(&self, class: usize) -> W {
        let weight = self.formula.entropy.as_ref().and_then(|entropy| entropy.weight.as_ref());
        W::from_f64(weight.map_or(1.0, |weight| weight[class]))
    }

    /// Computes the exponentials of a block and the inverse of their sum, which is 0 where the pixel is ignored. For
    /// moderate logits and no cross entropy they are those of the logits themselves; otherwise of the logits less their
    /// maximum.
    pub(super) fn softmax(&self, place: &Place, room: &mut Room<W>) {
        let length = place.pixels.len();
        let Room { exponentials, classes, greatest, inverse, logarithm, rows, .. } = room;
        let (greatest, inverse) = (&mut greatest[..length], &mut inverse[..length]);
        let rows_of = |class: usize| class * self.shape.block..class * self.shape.block + length;
        let mut moderate = self.formula.entropy.is_none();
        for class in 0..if moderate { self.shape.classes } else { 0 } {
            let logits = self.logits(place, class, classes, &mut rows.input, &mut rows.masked);
            let exponentials = &mut exponentials[rows_of(class)];
            moderate &= simd::run(Powers { logits, exponentials, sums: inverse, first: class == 0 });
        }
        if !moderate {
            greatest.fill(W::from_f64(f64::NEG_INFINITY));
            inverse.fill(W::default());
            for class in 0..self.shape.classes {
                let logits = self.logits(place, class, classes, &mut rows.input, &mut rows.masked);
                simd::run(Greatest { logits, greatest });
            }
            for class in 0..self.shape.classes {
                let logits = self.logits(place, class, classes, &mut rows.input, &mut rows.masked);
                let exponentials = &mut exponentials[rows_of(class)];
                simd::run(Exponentials { logits, greatest, exponentials, sums: inverse });
            }
        }
        if self.formula.entropy.is_some() {
            simd::run(Logarithms { sums: inverse, logarithms: &mut logarithm[..length] });
        }
        simd::run(Inverses(inverse));
        if self.ignores_pixels() {
            simd::run(Masked { numbers: None, classes: &classes[..length], masked: inverse });
        }
    }

    pub(super) fn ignores_pixels(&self) -> bool {
        self.formula.ignored.is_some() && matches!(self.target, Target::Indices(_))
    }

    /// The logits of a class, with 0 at ignored pixels, so that not even a NaN there changes the result.
    pub(super) fn logits<'b>(
        &'b self,
        place: &Place,
        class: usize,
        classes: &Block<W>,
        room: &'b mut Block<W>,
        masked: &'b mut Block<W>,
    ) -> &'b [W] {
        let numbers = self.read(place, class, room);
        if !self.ignores_pixels() {
            return numbers;
        }
        let (classes, masked) = (&classes[..numbers.len()], &mut masked[..numbers.len()]);
        simd::run(Masked { numbers: Some(numbers), classes, masked });
        masked
    }

    /// The input of a class.
    pub(super) fn read<'b>(&'b self, place: &Place, class: usize, room: &'b mut Block<W>) -> &'b [W] {
        self.input.read(self.shape.row(place, class), room)
    }

    /// How much of each pixel the target gives to a class.
    pub(super) fn share<'b, const HARD: bool>(
        &'b self,
        place: &Place,
        class: usize,
        classes: &'b Block<W>,
        room: &'b mut Block<W>,
    ) -> Share<'b, W, HARD> {
        match self.target {
            Target::Indices(_) => Share { numbers: &classes[..place.pixels.len()], key: W::from_f64(class as f64) },
            Target::Masks(masks) => {
                let ignored = self.formula.ignored.map_or(f64::NAN, |ignored| ignored as f64);
                let numbers = masks.read(self.shape.row(place, class), room);
                Share { numbers, key: W::from_f64(ignored) }
            }
        }
    }

    /// Reads the class indices of a block as floats. Returns whether all of them are in range.
    pub(super) fn read_classes(&self, place: &Place, classes: &mut Block<W>) -> bool {
        let Target::Indices(indices) = self.target else { return true };
        let start = place.sample * self.shape.pixels;
        let indices = &indices[start + place.pixels.start..start + place.pixels.end];
        let count = self.shape.classes as i64;
        simd::run(Classes { indices, count, ignored: self.formula.ignored, classes: &mut classes[..indices.len()] })
    }

    /// Writes the gradient of a task.
    pub(super) fn gradient<M: Measure, const HARD: bool>(&self, task: usize, factors: &Factors<W>, output: &Output<W>) {
        let mut room = self.room();
        for place in self.places(task) {
            // They were in range in the forward pass, and libtorch reports saved tensors that have changed since.
            let _ = self.read_classes(&place, &mut room.classes);
            if self.formula.activation == Activation::Softmax {
                self.softmax_gradient::<M, HARD>(&place, &mut room, factors, output);
                continue;
            }
            for class in 0..self.shape.classes {
                let share = self.share::<HARD>(&place, class, &room.classes, &mut room.rows.target);
                let slopes = self.slopes::<M>(&place, class, factors);
                let gradient = &mut room.term[..place.pixels.len()];
                let input = self.read(&place, class, &mut room.rows.input);
                if self.formula.activation == Activation::Sigmoid {
                    simd::run(Gradients { input: Sigmoid(input), share, slopes, gradient });
                } else {
                    simd::run(Gradients { input: Given(input, self.expected()), share, slopes, gradient });
                }
                self.store(&place, class, gradient, output);
            }
        }
    }

    /// Writes the gradient of a block with a softmax: first the means over all classes, then the gradient of each
    /// class.
    pub(super) fn softmax_gradient<M: Measure, const HARD: bool>(
        &self,
        place: &Place,
        room: &mut Room<W>,
        factors: &Factors<W>,
        output: &Output<W>,
    ) {
        let length = place.pixels.len();
        self.softmax(place, room);
        let Room { exponentials, classes, inverse, mean, term, rows, .. } = room;
        let (mean, gradient) = (&mut mean[..length], &mut term[..length]);
        mean.fill(W::default());
        for class in 0..self.shape.classes {
            let share = self.share::<HARD>(place, class, classes, &mut rows.target);
            let slopes = self.slopes::<M>(place, class, factors);
            let probabilities = &mut exponentials[class * self.shape.block..][..length];
            simd::run(Means { probabilities, inverse: &inverse[..length], share, slopes, mean });
        }
        for class in 0..self.shape.classes {
            let share = self.share::<HARD>(place, class, classes, &mut rows.target);
            let slopes = self.slopes::<M>(place, class, factors);
            let probabilities = &exponentials[class * self.shape.block..][..length];
            simd::run(SoftmaxGradients { probabilities, share, slopes, mean, gradient });
            self.store(place, class, gradient, output);
        }
    }

    /// The gradients of the sums of a class.
    pub(super) fn slopes<M: Measure>(&self, place: &Place, class: usize, factors: &Factors<W>) -> Slopes<W, M> {
        let region = place.sample * self.shape.classes + class;
        let entropy = W::from_f64(factors.entropy.into() * self.weight(class).into());
        let (intersection, size) = (factors.intersection[region], factors.size[region]);
        Slopes { intersection, size, entropy, measure: M::default() }
    }

    /// Writes the gradient of a class.
    pub(super) fn store(&self, place: &Place, class: usize, numbers: &[W], output: &Output<W>) {
        // SAFETY: tasks have pixels of their own, and the rows of a task are computed one after another.
        unsafe { output.write(self.shape.row(place, class), numbers) };
    }
}
