//! The engine of cross entropy with the Jensen-Shannon divergence: each sample has several views (augmentations). The
//! loss is the cross entropy of the first view, plus the divergence of all views from their mean.
//!
//! With the probabilities p\[v, c\] of view v and m\[c\] their mean over the views, the divergence is Σ p\[v, c\] (log
//! p\[v, c\] − log m\[c\]). Its derivatives with respect to log p are the terms q\[v, c\] = p\[v, c\] (log p\[v, c\] −
//! log m\[c\]), because those by way of m add up to 0; and with respect to the logits q\[v, c\] − p\[v, c\] Σ q\[v\].
//!
//! The rows of a sample are read twice, once for their sums and once for the mixture of their probabilities. The second
//! time they are in the caches. Their gradients are written once.

use std::ops::Range;

use super::kinds::Wide;
use super::lane::LaneOf;
use super::rows::RowFormula;
use super::rows::job::Job;
use super::simd::{self, Kernel, Sum};
use super::softmax::exponentials::{Distances, exponentials, largest, likely, others};
use super::{BLOCK, parallel};
use crate::kernels::number::choose;
use crate::kernels::rows::Views;

impl RowFormula for Views {
    fn run<W: Wide>(&self, job: &Job<W>) -> f64 {
        let samples = job.target.len();
        let counted = (0..samples).filter(|sample| job.class(*sample).is_some()).count();
        let call = Call {
            job,
            views: *self,
            samples,
            of_entropy: 1.0 / counted as f64,
            of_divergence: self.weight / (samples * self.count) as f64,
        };
        let unit = self.count * job.classes;
        let sum = parallel::rows(job.input.len() / unit, unit, |rows| call.task(rows));
        if counted == 0 { f64::NAN } else { sum }
    }
}

/// A call, which all threads share.
struct Call<'a, W> {
    job: &'a Job<'a, W>,
    views: Views,
    samples: usize,
    /// What the cross entropy and the divergence of a sample are multiplied by: the means' divisors and the weight.
    of_entropy: f64,
    of_divergence: f64,
}

impl<W: Wide> Call<'_, W> {
    fn task(&self, samples: Range<usize>) -> f64 {
        let (count, classes) = (self.views.count, self.job.classes);
        let mut room = Room {
            x: self.job.input.room(classes),
            p: vec![W::default(); count * classes],
            terms: vec![W::default(); count * classes],
            views: vec![View::default(); count],
        };
        simd::run(Samples { call: self, samples, room: &mut room })
    }
}

/// The buffers of one sample.
struct Room<W> {
    /// The logits of a row, where they have to be converted.
    x: Vec<W>,
    /// The exponentials, and later the probabilities, `[views, classes]`.
    p: Vec<W>,
    /// The derivatives q of the divergence with respect to log p, `[views, classes]`.
    terms: Vec<W>,
    views: Vec<View<W>>,
}

/// What is known of the softmax of a row.
#[derive(Debug, Clone, Copy, Default)]
struct View<W> {
    max: W,
    sum: W,
    log_sum: W,
    /// 1 − p of the target's class; 0 for views other than the first.
    rest: W,
    /// Σ q over the classes.
    terms: f64,
}

/// The kernel of a task's samples: writes their gradients, returns the sum of their losses.
struct Samples<'a, W> {
    call: &'a Call<'a, W>,
    samples: Range<usize>,
    room: &'a mut Room<W>,
}

impl<W: Wide> Kernel<W> for Samples<'_, W> {
    const LONG: bool = true;
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> f64 {
        let Self { call, samples, room } = self;
        let mut sum = 0.0;
        for sample in samples {
            sum += call.entropy::<R>(sample, room) + call.of_divergence * call.divergence::<R>(sample, room);
            if call.job.needs_gradient() {
                call.gradient::<R>(sample, room);
            }
        }
        sum
    }
}

impl<W: Wide> Call<'_, W> {
    /// The row of a view of a sample.
    fn row(&self, sample: usize, view: usize) -> usize {
        view * self.samples + sample
    }

    /// The logits of some classes of a row.
    #[inline(always)]
    fn read<'b>(&'b self, row: usize, classes: Range<usize>, room: &'b mut [W]) -> &'b [W] {
        let start = row * self.job.classes;
        self.job.input.read(start + classes.start..start + classes.end, room)
    }

    /// ε / C: the share of each class in a smoothed target.
    fn spread(&self) -> f64 {
        self.views.smoothing / self.job.classes as f64
    }

    /// Computes the exponentials of all views. Returns the cross entropy of the first one, times `of_entropy`; 0 where
    /// the sample is ignored.
    #[inline(always)]
    fn entropy<R: LaneOf<W>>(&self, sample: usize, room: &mut Room<W>) -> f64 {
        let classes = self.job.classes;
        let mut entropy = 0.0;
        for (index, p) in room.p.chunks_exact_mut(classes).enumerate() {
            let row = self.row(sample, index);
            let x = self.read(row, 0..classes, &mut room.x);
            let max = largest::<W, R>(x);
            let class = if index == 0 { self.job.class(sample) } else { None };
            let smoothed = class.is_some() && self.views.smoothing != 0.0;
            let distances = Distances::of_smoothed(smoothed, None);
            let [sum, distances] = exponentials(x, max, distances, p, |range| self.job.fetch_row(row, range));
            let log_sum = sum.ln();
            let zero = W::default();
            let view = View { max: max.get(), sum: sum.get(), log_sum: log_sum.get(), rest: zero, terms: 0.0 };
            room.views[index] = view;
            let Some(class) = class else { continue };
            let (own, rest) = (R::new(p[class]), others(p, class, sum));
            room.views[index].rest = (rest / sum).get();
            let log_p = choose(own > rest, likely(own, rest), R::new(x[class]) - max - log_sum);
            let own = R::of(self.views.smoothing - 1.0) * log_p;
            let others = R::of(self.spread()) * (distances + R::of(classes as f64) * log_sum);
            entropy = (own + others).get().into() * self.of_entropy;
        }
        entropy
    }

    /// The sum of the divergences of the views from their mixture. Replaces the exponentials by the probabilities.
    #[inline(always)]
    fn divergence<R: LaneOf<W>>(&self, sample: usize, room: &mut Room<W>) -> f64 {
        let classes = self.job.classes;
        let mut sum = 0.0;
        for start in (0..classes).step_by(BLOCK) {
            let block = start..classes.min(start + BLOCK);
            sum += self.block::<R>(sample, block, room);
        }
        sum
    }

    /// The divergence of a block of classes.
    #[inline(always)]
    fn block<R: LaneOf<W>>(&self, sample: usize, block: Range<usize>, room: &mut Room<W>) -> f64 {
        let (classes, length) = (self.job.classes, block.len());
        let mut room_of = [[W::default(); BLOCK]; 4];
        let [means, mixture, below, losses] = &mut room_of;
        let (means, mixture) = (&mut means[..length], &mut mixture[..length]);
        let (below, losses) = (&mut below[..length], &mut losses[..length]);
        for (view, p) in room.views.iter().zip(room.p.chunks_exact_mut(classes)) {
            let (p, sum) = (&mut p[block.clone()], R::new(view.sum));
            for i in 0..length {
                let probability = R::new(p[i]) / sum;
                p[i] = probability.get();
                mixture[i] = (R::new(mixture[i]) + probability).get();
            }
        }
        let (share, floor) = (R::of(1.0 / self.views.count as f64), R::of(self.views.floor));
        for i in 0..length {
            let mean = R::new(mixture[i]) * share;
            // Where the floor replaces the mean, the derivatives by way of the mean are 0 and do not cancel the rest.
            below[i] = choose(mean < floor, R::of(1.0), R::of(0.0)).get();
            means[i] = choose(mean < floor, floor, mean).get();
            mixture[i] = R::new(means[i]).ln().get();
        }
        let rows = room.p.chunks_exact(classes).zip(room.terms.chunks_exact_mut(classes));
        for (index, (view, (p, terms))) in room.views.iter_mut().zip(rows).enumerate() {
            let x = &self.read(self.row(sample, index), block.clone(), &mut room.x)[..length];
            let (p, terms) = (&p[block.clone()], &mut terms[block.clone()]);
            let (max, log_sum) = (R::new(view.max), R::new(view.log_sum));
            for i in 0..length {
                let (probability, mean) = (R::new(p[i]), R::new(means[i]));
                let distance = probability - mean;
                let share = distance / mean;
                // log p − log m would lose the digits of a difference near 0, which views that agree have.
                let close = share.abs() < R::of(0.5);
                let difference = choose(close, share.ln_1p(), R::new(x[i]) - max - log_sum - R::new(mixture[i]));
                // A masked class has p = 0 and log p = −∞, and must add 0, not NaN.
                let loss = choose(probability == R::of(0.0), R::of(0.0), probability * difference);
                // p − m is subtracted from each view's term. Over all views these differences add up to 0, apart from
                // the rounding of m, whose effect on the sum this removes.
                let floored = R::new(below[i]) == R::of(1.0);
                let centred = loss - choose(floored, R::of(0.0), distance);
                losses[i] = (R::new(losses[i]) + centred).get();
                terms[i] = probability.mul_add(R::new(below[i]), loss).get();
            }
            view.terms += Sum(terms).run::<R>();
        }
        Sum(losses).run::<R>()
    }

    /// Writes the gradients of all views of a sample.
    #[inline(always)]
    fn gradient<R: LaneOf<W>>(&self, sample: usize, room: &mut Room<W>) {
        let classes = self.job.classes;
        let rows = room.p.chunks_exact(classes).zip(room.terms.chunks_exact_mut(classes));
        for (index, (view, (p, terms))) in room.views.iter().zip(rows).enumerate() {
            let row = self.row(sample, index);
            let class = if index == 0 { self.job.class(sample) } else { None };
            let factor = self.job.factor(row).to_f64();
            let of_divergence = factor * self.of_divergence;
            let of_entropy = if class.is_some() { factor * self.of_entropy } else { 0.0 };
            let of_p = R::of(of_entropy - of_divergence * view.terms);
            let (of_term, spread) = (R::of(of_divergence), R::of(of_entropy * self.spread()));
            let gradient = |i: usize, term| R::new(p[i]).mul_add(of_p, R::new(term).mul_add(of_term, -spread));
            let mut own = None;
            if let Some(class) = class {
                // p − (1 − ε) as ε − (1 − p): p near 1 has lost the digits of 1 − p.
                let entropy = R::of(of_entropy) * (R::of(self.views.smoothing) - R::new(view.rest));
                let of_p = R::of(-of_divergence * view.terms);
                let divergence = R::new(p[class]).mul_add(of_p, R::new(terms[class]) * of_term);
                own = Some((class, (entropy + divergence - spread).get()));
            }
            self.job.store_gradient(row * classes, terms, |i, term| gradient(i, term).get(), own);
        }
    }
}
