//! The kernels over the pixels of a block. Most are called once for each class.

use super::measure::{Probabilities, Share, Slopes};
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::lane::LaneOf;
use crate::kernels::cpu::simd::{Kernel, LANES, total};
use crate::kernels::cpu::softmax::exponentials::MODERATE;
use crate::kernels::measure::Measure;
use crate::kernels::number::choose;

/// Converts the class indices of pixels to floats, −1 where they are ignored. Returns whether all others are in range.
pub(super) struct Classes<'a, W> {
    pub(super) indices: &'a [i64],
    pub(super) count: i64,
    pub(super) ignored: Option<i64>,
    pub(super) classes: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Classes<'_, W> {
    type Result = bool;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> bool {
        let indices = &self.indices[..self.classes.len()];
        let (some, ignored) = (self.ignored.is_some(), self.ignored.unwrap_or(0));
        let mut wrong = false;
        for (class, &index) in self.classes.iter_mut().zip(indices) {
            let skipped = some & (index == ignored);
            wrong |= !skipped & ((index < 0) | (index >= self.count));
            *class = choose(skipped, -R::of(1.0), R::of(f64::from(index as i32))).get();
        }
        !wrong
    }
}

/// Writes `numbers` to `masked`, with 0 in place of those of ignored pixels. Without `numbers`, replaces those in
/// `masked`.
pub(super) struct Masked<'a, W> {
    pub(super) numbers: Option<&'a [W]>,
    pub(super) classes: &'a [W],
    pub(super) masked: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Masked<'_, W> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let classes = &self.classes[..self.masked.len()];
        let zero = R::of(0.0);
        if let Some(numbers) = self.numbers {
            self.masked.copy_from_slice(numbers);
        }
        for (masked, &class) in self.masked.iter_mut().zip(classes) {
            *masked = choose(R::new(class) >= zero, R::new(*masked), zero).get();
        }
    }
}

/// Computes the exponentials of a class's logits, not shifted by the maximum, and adds them to the sums. Returns
/// whether all logits are [`MODERATE`]; if not, the results may have overflowed and are not to be used.
pub(super) struct Powers<'a, W> {
    pub(super) logits: &'a [W],
    pub(super) exponentials: &'a mut [W],
    pub(super) sums: &'a mut [W],
    /// Whether this is the first class, so that the sums begin at 0.
    pub(super) first: bool,
}

impl<W: Wide> Kernel<W> for Powers<'_, W> {
    const LONG: bool = true;
    type Result = bool;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> bool {
        let Self { logits, exponentials, sums, first } = self;
        if first {
            sums.fill(W::default());
        }
        let length = sums.len();
        let (logits, exponentials) = (&logits[..length], &mut exponentials[..length]);
        let mut extreme = false;
        for i in 0..length {
            let logit = R::new(logits[i]);
            extreme |= logit.abs() > R::of(MODERATE);
            let exponential = logit.exp_of_moderate();
            exponentials[i] = exponential.get();
            sums[i] = (R::new(sums[i]) + exponential).get();
        }
        !extreme
    }
}

/// Updates the largest logit of each pixel by a class's logits.
pub(super) struct Greatest<'a, W> {
    pub(super) logits: &'a [W],
    pub(super) greatest: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Greatest<'_, W> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let logits = &self.logits[..self.greatest.len()];
        for (greatest, &logit) in self.greatest.iter_mut().zip(logits) {
            *greatest = R::new(*greatest).max(R::new(logit)).get();
        }
    }
}

/// Computes the exponentials of a class's logits less the pixels' largest ones, and adds them to the sums.
pub(super) struct Exponentials<'a, W> {
    pub(super) logits: &'a [W],
    pub(super) greatest: &'a [W],
    pub(super) exponentials: &'a mut [W],
    pub(super) sums: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Exponentials<'_, W> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let length = self.sums.len();
        let (logits, greatest) = (&self.logits[..length], &self.greatest[..length]);
        let exponentials = &mut self.exponentials[..length];
        for i in 0..length {
            let exponential = (R::new(logits[i]) - R::new(greatest[i])).exp_of_negative();
            exponentials[i] = exponential.get();
            self.sums[i] = (R::new(self.sums[i]) + exponential).get();
        }
    }
}

/// Computes the logarithms of the sums.
pub(super) struct Logarithms<'a, W> {
    pub(super) sums: &'a [W],
    pub(super) logarithms: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Logarithms<'_, W> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let sums = &self.sums[..self.logarithms.len()];
        for (logarithm, &sum) in self.logarithms.iter_mut().zip(sums) {
            *logarithm = R::new(sum).ln().get();
        }
    }
}

/// Replaces each number x by 1 / x.
pub(super) struct Inverses<'a, W>(pub(super) &'a mut [W]);

impl<W: Wide> Kernel<W> for Inverses<'_, W> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        for number in self.0 {
            *number = (R::of(1.0) / R::new(*number)).get();
        }
    }
}

/// The sums of a class over pixels: the intersection, the input's region, the target's region. Returns also whether all
/// shares are in \[0, 1\] and all probabilities in their expected range.
pub(super) struct RegionSums<P, S, M> {
    pub(super) input: P,
    pub(super) share: S,
    pub(super) length: usize,
    #[allow(dead_code)]
    pub(super) measure: M,
}

impl<W, P, M, const HARD: bool> Kernel<W> for RegionSums<P, Share<'_, W, HARD>, M>
where
    W: Wide,
    P: Probabilities<W>,
    M: Measure,
{
    const LONG: bool = true;
    type Result = ([f64; 3], bool);

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> ([f64; 3], bool) {
        let mut sums = [[R::of(0.0); LANES]; 3];
        let mut wrong = false;
        for start in (0..self.length).step_by(LANES) {
            let group = start..self.length.min(start + LANES);
            let (input, share) = (self.input.part(group.clone()), self.share.part(group.clone()));
            wrong |= match group.len() {
                // The compiler knows this length, a multiple of that of vectors, so that the loop needs no rest.
                LANES => add::<W, R, P, M, HARD>(input.part(0..LANES), share.part(0..LANES), LANES, &mut sums),
                length => add::<W, R, P, M, HARD>(input, share, length, &mut sums),
            };
        }
        ([total(sums[0]), total(sums[1]), total(sums[2])], !wrong)
    }
}

/// Adds what `length` pixels contribute, at most [`LANES`], each to the sums of its lane. Returns whether a number of
/// them is out of its range.
#[inline(always)]
pub(super) fn add<W: Wide, R: LaneOf<W>, P: Probabilities<W>, M: Measure, const HARD: bool>(
    input: P,
    share: Share<W, HARD>,
    length: usize,
    sums: &mut [[R; LANES]; 3],
) -> bool {
    let (zero, one) = (R::of(0.0), R::of(1.0));
    let mut wrong = false;
    for i in 0..length {
        let share = share.at::<R>(i);
        let p = choose(share.counts, input.at::<R>(i).0, zero);
        wrong |= input.is_out_of_range(p);
        if !HARD {
            wrong |= !((share.value >= zero) & (share.value <= one));
        }
        sums[0][i] = sums[0][i] + M::intersection(p, share).0;
        sums[1][i] = sums[1][i] + M::size(p).0;
        sums[2][i] = sums[2][i] + M::size(share.value).0;
    }
    wrong
}

/// Adds share · weight · (logit − greatest) of a class to `picked`, and share · weight to `weights`.
pub(super) struct Picked<'a, W, const HARD: bool> {
    pub(super) logits: &'a [W],
    pub(super) greatest: &'a [W],
    pub(super) share: Share<'a, W, HARD>,
    pub(super) weight: W,
    pub(super) picked: &'a mut [W],
    pub(super) weights: &'a mut [W],
}

impl<W: Wide, const HARD: bool> Kernel<W> for Picked<'_, W, HARD> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let length = self.picked.len();
        let (logits, greatest) = (&self.logits[..length], &self.greatest[..length]);
        let (share, weights) = (self.share.part(0..length), &mut self.weights[..length]);
        let weight = R::new(self.weight);
        for i in 0..length {
            let share = share.at::<R>(i);
            let logit = share.of(R::new(logits[i]) - R::new(greatest[i]));
            self.picked[i] = logit.mul_add(weight, R::new(self.picked[i])).get();
            weights[i] = share.value.mul_add(weight, R::new(weights[i])).get();
        }
    }
}

/// Computes the cross entropy of each pixel: `weights` · log Σ exp − `picked`.
pub(super) struct Entropies<'a, W> {
    pub(super) logarithm: &'a [W],
    pub(super) picked: &'a [W],
    pub(super) weights: &'a [W],
    pub(super) term: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Entropies<'_, W> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let length = self.term.len();
        let (logarithm, picked, weights) = (&self.logarithm[..length], &self.picked[..length], &self.weights[..length]);
        for i in 0..length {
            self.term[i] = R::new(weights[i]).mul_add(R::new(logarithm[i]), -R::new(picked[i])).get();
        }
    }
}

/// Computes the gradients of a class without a softmax: the derivative with respect to p, times that of p.
pub(super) struct Gradients<'a, W, P, M, const HARD: bool> {
    pub(super) input: P,
    pub(super) share: Share<'a, W, HARD>,
    pub(super) slopes: Slopes<W, M>,
    pub(super) gradient: &'a mut [W],
}

impl<W: Wide, P: Probabilities<W>, M: Measure, const HARD: bool> Kernel<W> for Gradients<'_, W, P, M, HARD> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let length = self.gradient.len();
        let (input, share) = (self.input.part(0..length), self.share.part(0..length));
        for i in 0..length {
            let (share, (p, slope)) = (share.at::<R>(i), input.at::<R>(i));
            let gradient = self.slopes.by_probability(p, share) * slope;
            self.gradient[i] = choose(share.counts, gradient, R::of(0.0)).get();
        }
    }
}

/// Replaces a class's exponentials by probabilities p, and adds what the class contributes to the `mean` of each pixel,
/// Σ p\[k\] s\[k\] − Σ e\[k\] share\[k\]. Here s is the derivative with respect to p by way of the regions, and e the
/// gradient of the cross entropy times the weight of the class.
pub(super) struct Means<'a, W, M, const HARD: bool> {
    pub(super) probabilities: &'a mut [W],
    pub(super) inverse: &'a [W],
    pub(super) share: Share<'a, W, HARD>,
    pub(super) slopes: Slopes<W, M>,
    pub(super) mean: &'a mut [W],
}

impl<W: Wide, M: Measure, const HARD: bool> Kernel<W> for Means<'_, W, M, HARD> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let length = self.mean.len();
        let (probabilities, inverse) = (&mut self.probabilities[..length], &self.inverse[..length]);
        let share = self.share.part(0..length);
        let entropy = R::new(self.slopes.entropy);
        for i in 0..length {
            let share = share.at::<R>(i);
            let p = R::new(probabilities[i]) * R::new(inverse[i]);
            probabilities[i] = p.get();
            let mean = p.mul_add(self.slopes.by_probability(p, share), R::new(self.mean[i]));
            self.mean[i] = (mean - share.of(entropy)).get();
        }
    }
}

/// Computes the gradients of a class with a softmax: p (s − `mean`) − e · share, with s and e as in [`Means`].
pub(super) struct SoftmaxGradients<'a, W, M, const HARD: bool> {
    pub(super) probabilities: &'a [W],
    pub(super) share: Share<'a, W, HARD>,
    pub(super) slopes: Slopes<W, M>,
    pub(super) mean: &'a [W],
    pub(super) gradient: &'a mut [W],
}

impl<W: Wide, M: Measure, const HARD: bool> Kernel<W> for SoftmaxGradients<'_, W, M, HARD> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let length = self.gradient.len();
        let (probabilities, mean) = (&self.probabilities[..length], &self.mean[..length]);
        let share = self.share.part(0..length);
        let entropy = R::new(self.slopes.entropy);
        for i in 0..length {
            let (share, p) = (share.at::<R>(i), R::new(probabilities[i]));
            let slope = self.slopes.by_probability(p, share) - R::new(mean[i]);
            self.gradient[i] = p.mul_add(slope, -share.of(entropy)).get();
        }
    }
}
