//! The engine of losses of a softmax over classes, with a class or a share for each class as the target of a row.
//!
//! With p = softmax(x) of a row and its target t, such a loss is a function of log p[t] and of log Σ exp(x), or the cross entropy
//! of shares. Its gradient is a multiple of p and numbers more for the target, so that the logits are read once, the gradient is
//! written once, and no log-probabilities are kept.

use std::ops::Range;

use tch::Tensor;

use super::BLOCK;
use super::element::Element;
use super::number::{Real, choose};
use super::rows::{Job, Pixels, RowFormula, RowReduction, Rows, f_rows};
use super::simd::{self, Kernel, LANES, LaneOf, Sum, Wide};
use crate::LossError;

/// A loss of one row.
pub(crate) trait RowLoss: Copy + Send + Sync + 'static {
    /// The loss, given log p\[t\] and log Σ exp(x), and its derivatives with respect to both. To be `#[inline(always)]`.
    fn evaluate<R: Real>(self, log_p: R, log_sum: R) -> (R, [R; 2]);
}

/// The reduced loss of `rows` with classes as targets, of which the share `smoothing` is spread over all classes; `None` where
/// the engine does not take the call. Second derivatives are those of the `composite` of input and target.
pub(crate) fn f_softmax<F, C>(
    formula: F,
    smoothing: f64,
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    F: RowLoss,
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    f_rows(OfClasses { formula, smoothing }, rows, reduction, composite)
}

/// Does the same for the cross entropy of targets that hold a share for each class.
pub(crate) fn f_softmax_of_shares<C>(
    smoothing: f64,
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    f_rows(OfShares { smoothing }, rows, reduction, composite)
}

/// How many pixels are worked on at a time, at most.
const PIXELS: usize = 512;

/// How many losses of pixels are computed at a time; the last ones of a block may be of no pixel.
const GROUP: usize = 64;

/// How many, so that they fit the second cache with all their classes.
fn block(classes: usize) -> usize {
    ((1 << 15) / classes / 16 * 16).clamp(32, PIXELS)
}

/// Room for the numbers of a row or block, where its elements are converted to be read.
pub(super) fn room<T: Element>(length: usize) -> Vec<T::Wide> {
    vec![T::Wide::default(); if size_of::<T>() == size_of::<T::Wide>() { 0 } else { length }]
}

/// Losses of a class for each row.
#[derive(Clone, Copy)]
struct OfClasses<F> {
    formula: F,
    smoothing: f64,
}

impl<F: RowLoss> RowFormula for OfClasses<F> {
    fn run<T: Element>(self, job: &Job<T>) -> f64 {
        let total = job.options.total_of_spread(self.smoothing, job.classes);
        let spread = self.smoothing / job.classes as f64;
        let call = Classes { job, formula: self.formula, own: 1.0 - self.smoothing, total, spread };
        job.sum(block(job.classes), |rows| call.rows(rows), |pixels| call.pixels(pixels))
    }
}

struct Classes<'a, T: Element, F> {
    job: &'a Job<'a, T>,
    formula: F,
    /// The share of the target's class that is not spread.
    own: f64,
    /// The sum of the weights of all classes, 0 where the target is not smoothed.
    total: f64,
    /// The share of each class in a smoothed target.
    spread: f64,
}

/// The gradient of a row: `of_p` p\[c\] − `of_weight` w\[c\], and `of_row` − `of_p` (1 − p\[t\]) − `of_weight` w\[t\] at the target.
#[derive(Clone, Copy)]
struct Coefficients<R> {
    of_p: R,
    of_row: R,
    of_weight: R,
}

/// What a loss is made of.
struct RowSums<R> {
    /// log p\[t\]
    log_p: R,
    /// 1 − p\[t\]
    rest: R,
    /// log Σ exp(x)
    log_sum: R,
    /// −Σ w log p over all classes; anything where the target is not smoothed.
    smooth: R,
}

impl<R: Real> RowSums<R> {
    /// From the logit of the target less the largest one, the largest one, the sum of the weighted distances from it, the
    /// exponential of the target's logit less the largest one, and the sum of the others.
    #[inline(always)]
    fn of_shifted([x, max, distances]: [R; 3], own: R, others: R, total: f64) -> Self {
        let sum = own + others;
        let log = sum.ln();
        let log_p = choose(own > others, likely(own, others), x - log);
        Self { log_p, rest: others / sum, log_sum: max + log, smooth: distances + R::of(total) * log }
    }

    /// From the exponential of the target's logit, and the sum of the others.
    #[inline(always)]
    fn of_moderate(own: R, others: R) -> Self {
        let sum = own + others;
        // Not x − log Σ exp(x), which loses digits where both are large.
        Self { log_p: likely(own, others), rest: others / sum, log_sum: sum.ln(), smooth: R::of(0.0) }
    }
}

/// log p of the exponential of a logit and the sum of the others, which keeps the digits of a p near 1.
#[inline(always)]
pub(super) fn likely<R: Real>(own: R, others: R) -> R {
    -(others / own).ln_1p()
}

/// The sum of all exponentials but that at `place`, given that of all. Where that one is more than half of them, the difference
/// would lose digits.
#[inline(always)]
pub(super) fn others<W: Wide, R: LaneOf<W>>(exponentials: &mut [W], place: usize, sum: R) -> R {
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

impl<T: Element, F: RowLoss> Classes<'_, T, F> {
    /// The loss of a row whose target has this weight, and the coefficients of its gradient.
    #[inline(always)]
    fn evaluate<R: LaneOf<T::Wide>>(&self, weight: R, factor: R, row: RowSums<R>) -> (R, Coefficients<R>) {
        let (loss, [of_log_p, of_log_sum]) = self.formula.evaluate(row.log_p, row.log_sum);
        let (spread, total) = (R::of(self.spread), R::of(self.total));
        let loss = weight * loss + spread * row.smooth;
        let of_row = factor * (weight * of_log_sum + spread * total);
        (loss, Coefficients { of_p: of_row - factor * weight * of_log_p, of_row, of_weight: factor * spread })
    }

    /// How much the target of this class counts.
    fn weight(&self, class: usize) -> T::Wide {
        T::Wide::from_f64(self.own * self.job.options.weight_of(class))
    }

    /// Rows of classes side by side in memory.
    fn rows(&self, rows: Range<usize>) -> f64 {
        let classes = self.job.classes;
        simd::run(ClassRows {
            call: self,
            rows,
            room: &mut room::<T>(classes),
            exponentials: &mut vec![T::Wide::default(); classes],
        })
    }

    /// Blocks of pixels; a class has its pixels side by side in memory.
    fn pixels(&self, blocks: &mut dyn Iterator<Item = Pixels>) -> f64 {
        let mut room = Room::new(self.job.classes);
        blocks.map(|pixels| simd::run(ClassPixels { call: self, pixels, room: &mut room })).sum()
    }
}

/// Rows of classes: stores their gradients and losses, returns the sum of the losses.
struct ClassRows<'a, T: Element, F> {
    call: &'a Classes<'a, T, F>,
    rows: Range<usize>,
    room: &'a mut [T::Wide],
    exponentials: &'a mut [T::Wide],
}

impl<T: Element, F: RowLoss> Kernel<T::Wide> for ClassRows<'_, T, F> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) -> f64 {
        let Self { call, rows, room, exponentials } = self;
        let (job, classes) = (call.job, call.job.classes);
        let mut sum = 0.0;
        for row in rows {
            let start = row * classes;
            let Some(class) = job.class(row) else {
                job.store_zeros(start, classes);
                job.store_losses(row, &[T::Wide::default()]);
                continue;
            };
            let x = T::read(&job.input[start..start + classes], room);
            let loss = ClassRow { call, row, class, x, exponentials: &mut *exponentials }.run::<R>();
            job.store_losses(row, &[loss]);
            sum += loss.to_f64();
        }
        sum
    }
}

/// One row of classes: stores its gradient, returns the loss.
struct ClassRow<'a, T: Element, F> {
    call: &'a Classes<'a, T, F>,
    row: usize,
    class: usize,
    x: &'a [T::Wide],
    exponentials: &'a mut [T::Wide],
}

impl<T: Element, F: RowLoss> Kernel<T::Wide> for ClassRow<'_, T, F> {
    type Result = T::Wide;

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) -> T::Wide {
        let Self { call, row, class, x, exponentials } = self;
        let (job, start) = (call.job, row * call.job.classes);
        let weights = job.options.weight.as_deref();
        let ahead = |range| job.fetch_row(row, range);
        let moderate = if call.spread == 0.0 { powers::<T::Wide, R>(x, exponentials, ahead) } else { None };
        let (sum, sums) = if let Some(sum) = moderate {
            let others = others(exponentials, class, R::of(sum));
            (R::of(sum), RowSums::of_moderate(R::new(exponentials[class]), others))
        } else {
            let max = largest::<T::Wide, R>(x);
            let distances = Distances::of_smoothed(call.spread != 0.0, weights);
            let [sum, distances] = self::exponentials(x, max, distances, exponentials, ahead);
            let (own, others) = (R::new(exponentials[class]), others(exponentials, class, sum));
            (sum, RowSums::of_shifted([R::new(x[class]) - max, max, distances], own, others, call.total))
        };
        let rest = sums.rest;
        let (loss, of) = call.evaluate(R::new(call.weight(class)), R::new(job.factor(row)), sums);
        if !job.needs_gradient() {
            return loss.get();
        }
        // 0 · ∞ is 0: an infinite weight of which nothing is spread.
        let smooth = if call.spread == 0.0 { R::of(0.0) } else { of.of_weight * R::of(job.options.weight_of(class)) };
        // Not with p − 1, which loses the digits of a p near 1.
        let own = of.of_row - rest * of.of_p - smooth;
        let of_p = of.of_p / sum;
        let own = Some((class, own.get()));
        match weights {
            _ if call.spread == 0.0 => job.store_gradient(start, exponentials, |_, e| (R::new(e) * of_p).get(), own),
            None => job.store_gradient(start, exponentials, |_, e| R::new(e).mul_add(of_p, -of.of_weight).get(), own),
            Some(weights) => {
                let weights = &weights[..exponentials.len()];
                let gradient = |i: usize, e| (R::new(e) * of_p - of.of_weight * R::new(weights[i])).get();
                job.store_gradient(start, exponentials, gradient, own);
            }
        }
        loss.get()
    }
}

/// Of numbers up to here the exponential of each, divided by the sum of as many as there may be classes, is a normal number.
pub(super) const MODERATE: f64 = 30.0;

/// The exponentials of the numbers themselves, and their sum in a fixed order; none where one is not [`MODERATE`], so that they
/// are to be computed from the largest one on. `ahead` as for [`exponentials`].
#[inline(always)]
fn powers<W: Wide, R: LaneOf<W>>(x: &[W], exponentials: &mut [W], ahead: impl Fn(Range<usize>)) -> Option<f64> {
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
        sum += Sum(exponentials).run::<R>();
    }
    Some(sum)
}

/// What is summed up of the distances of numbers from the largest one.
#[derive(Clone, Copy)]
pub(super) enum Distances<'a, W> {
    Nothing,
    Equally,
    /// Each times a weight.
    Weighted(&'a [W]),
}

impl<'a, W> Distances<'a, W> {
    /// The distances that a `smoothed` target needs.
    pub(super) fn of_smoothed(smoothed: bool, weights: Option<&'a [W]>) -> Self {
        match weights {
            _ if !smoothed => Self::Nothing,
            None => Self::Equally,
            Some(weights) => Self::Weighted(weights),
        }
    }
}

/// The exponentials of `x` − `max`, of which `max` is the largest number; their sum, and that of the `distances` `max` − `x`, in a
/// fixed order. `ahead` is told the ranges that are computed, to have memory fetched meanwhile.
#[inline(always)]
pub(super) fn exponentials<W: Wide, R: LaneOf<W>>(
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
        let mut sums = [[W::default(); LANES]; 2];
        for (group, (x, exponentials)) in x.chunks(LANES).zip(exponentials.chunks_mut(LANES)).enumerate() {
            let start = start + group * LANES;
            let distances = match distances {
                Distances::Weighted(weights) => Distances::Weighted(&weights[start..start + x.len()]),
                plain => plain,
            };
            match x.len() {
                // So many are a loop without a rest.
                LANES => add_group(&x[..LANES], max, distances, &mut exponentials[..LANES], &mut sums),
                _ => add_group(x, max, distances, exponentials, &mut sums),
            }
        }
        for (total, sums) in totals.iter_mut().zip(sums) {
            *total += simd::total(sums);
        }
    }
    [R::of(totals[0]), R::of(totals[1])]
}

/// Does so for as many numbers as there are sums, at most.
#[inline(always)]
fn add_group<W: Wide, R: LaneOf<W>>(
    x: &[W],
    max: R,
    distances: Distances<W>,
    exponentials: &mut [W],
    sums: &mut [[W; LANES]; 2],
) {
    let (length, exponentials) = (x.len(), &mut exponentials[..x.len()]);
    for i in 0..length {
        let exponential = (R::new(x[i]) - max).exp_of_negative();
        exponentials[i] = exponential.get();
        sums[0][i] = (R::new(sums[0][i]) + exponential).get();
    }
    match distances {
        Distances::Nothing => (),
        Distances::Equally => {
            for i in 0..length {
                sums[1][i] = (R::new(sums[1][i]) + (max - R::new(x[i]))).get();
            }
        }
        Distances::Weighted(weights) => {
            let weights = &weights[..length];
            for i in 0..length {
                let weight = R::new(weights[i]);
                // 0 · ∞ is 0: a class that is masked and has no share.
                let distance = choose(weight == R::of(0.0), R::of(0.0), max - R::new(x[i]));
                sums[1][i] = distance.mul_add(weight, R::new(sums[1][i])).get();
            }
        }
    }
}

/// The largest number; NaNs are left out.
#[inline(always)]
pub(super) fn largest<W: Wide, R: LaneOf<W>>(numbers: &[W]) -> R {
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
    // In pairs, so that none waits for all before it.
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = R::new(lanes[lane]).max(R::new(lanes[lane + width])).get();
        }
    }
    R::new(lanes[0])
}

/// Numbers of pixels.
type Line<W> = [W; PIXELS];

/// Room for a block of pixels.
struct Room<W> {
    x: Line<W>,
    max: Line<W>,
    sums: Line<W>,
    /// The sums without the exponential of the target, or of the largest logit.
    others: Line<W>,
    distances: Line<W>,
    /// The class of the target, −1 where it is ignored.
    classes: Line<W>,
    /// The logit of the target.
    targets: Line<W>,
    /// The exponential of it.
    own: Line<W>,
    weights: Line<W>,
    factors: Line<W>,
    losses: Line<W>,
    of_p: Line<W>,
    /// The gradient at the target, but for its weight in a smoothed one.
    of_target: Line<W>,
    of_weight: Line<W>,
    exponentials: Vec<W>,
}

impl<W: Wide> Room<W> {
    fn new(classes: usize) -> Self {
        let zeros = [W::default(); PIXELS];
        Self {
            x: zeros,
            max: zeros,
            sums: zeros,
            others: zeros,
            distances: zeros,
            classes: zeros,
            targets: zeros,
            own: zeros,
            weights: zeros,
            factors: zeros,
            losses: zeros,
            of_p: zeros,
            of_target: zeros,
            of_weight: zeros,
            exponentials: vec![W::default(); block(classes) * classes],
        }
    }

    /// Finds the largest number of each pixel.
    #[inline(always)]
    fn find_max<T: Element<Wide = W>, R: LaneOf<W>>(&mut self, job: &Job<T>, pixels: Pixels) {
        let max = &mut self.max[..pixels.length];
        max.fill(W::from_f64(f64::NEG_INFINITY));
        for class in 0..job.classes {
            let x = T::read(&job.input[pixels.of(class)], &mut self.x);
            for (max, x) in max.iter_mut().zip(x) {
                *max = R::new(*max).max(R::new(*x)).get();
            }
        }
    }
}

/// One block of pixels: stores its gradient and losses, returns the sum of the losses.
struct ClassPixels<'a, T: Element, F> {
    call: &'a Classes<'a, T, F>,
    pixels: Pixels,
    room: &'a mut Room<T::Wide>,
}

impl<T: Element, F: RowLoss> Kernel<T::Wide> for ClassPixels<'_, T, F> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(mut self) -> f64 {
        let (job, pixels) = (self.call.job, self.pixels);
        job.class_numbers(pixels, &mut self.room.classes);
        if self.call.spread == 0.0 && self.powers::<R>() {
            self.read_targets();
            self.evaluate::<R, true>();
        } else {
            self.room.find_max::<T, R>(job, pixels);
            self.exponentials::<R>();
            self.read_targets();
            self.evaluate::<R, false>();
        }
        self.gradient::<R>();
        let losses = &self.room.losses[..pixels.length];
        job.store_losses(pixels.row, losses);
        Sum(losses).run::<R>()
    }
}

impl<T: Element, F: RowLoss> ClassPixels<'_, T, F> {
    /// The exponentials of the logits themselves, and their sums. Returns whether all logits are [`MODERATE`]; if not, what it has
    /// computed is worthless.
    #[inline(always)]
    fn powers<R: LaneOf<T::Wide>>(&mut self) -> bool {
        let (job, pixels, room) = (self.call.job, self.pixels, &mut *self.room);
        let length = pixels.length;
        let (others, classes) = (&mut room.others[..length], &room.classes[..length]);
        others.fill(T::Wide::default());
        let (mut extreme, zero) = (false, R::of(0.0));
        for class in 0..job.classes {
            let index = R::of(class as f64);
            let x = &T::read(&job.input[pixels.of(class)], &mut room.x)[..length];
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

    /// The exponentials, their sums, and for a smoothed target the distances from the maximum.
    #[inline(always)]
    fn exponentials<R: LaneOf<T::Wide>>(&mut self) {
        let (job, pixels, room) = (self.call.job, self.pixels, &mut *self.room);
        let length = pixels.length;
        let max = &room.max[..length];
        let (others, distances) = (&mut room.others[..length], &mut room.distances[..length]);
        let (classes, zero) = (&room.classes[..length], R::of(0.0));
        others.fill(T::Wide::default());
        distances.fill(T::Wide::default());
        for class in 0..job.classes {
            let index = R::of(class as f64);
            let x = &T::read(&job.input[pixels.of(class)], &mut room.x)[..length];
            let exponentials = &mut room.exponentials[class * length..][..length];
            job.fetch_pixels(pixels, class);
            for i in 0..length {
                let exponential = (R::new(x[i]) - R::new(max[i])).exp_of_negative();
                exponentials[i] = exponential.get();
                others[i] = (R::new(others[i]) + choose(R::new(classes[i]) == index, zero, exponential)).get();
            }
            // 0 · ∞ is 0: a class that is masked and has no share.
            if self.call.spread != 0.0 && job.options.weight_of(class) != 0.0 {
                let weight = R::of(job.options.weight_of(class));
                for i in 0..length {
                    let distance = R::new(max[i]) - R::new(x[i]);
                    distances[i] = weight.mul_add(distance, R::new(distances[i])).get();
                }
            }
        }
    }

    /// What belongs to the target of each pixel: its logit, the exponential of it, its weight, and the factor of the gradient.
    #[inline(always)]
    fn read_targets(&mut self) {
        let (call, job, pixels, room) = (self.call, self.call.job, self.pixels, &mut *self.room);
        for i in 0..pixels.length {
            let class = job.class(pixels.row + i).unwrap_or(0);
            room.own[i] = room.exponentials[class * pixels.length + i];
            room.targets[i] = job.input[pixels.of(class).start + i].wide();
        }
        match job.options.weight {
            None => room.weights.fill(T::Wide::from_f64(call.own)),
            Some(_) => {
                for (i, weight) in room.weights[..pixels.length].iter_mut().enumerate() {
                    *weight = call.weight(job.class(pixels.row + i).unwrap_or(0));
                }
            }
        }
        job.read_factors(pixels, &mut room.factors);
    }

    /// The losses and the coefficients of the gradient.
    #[inline(always)]
    fn evaluate<R: LaneOf<T::Wide>, const UNSHIFTED: bool>(&mut self) {
        let (call, room) = (self.call, &mut *self.room);
        let zero = R::of(0.0);
        for first in (0..self.pixels.length).step_by(GROUP) {
            let group = |line: &Line<T::Wide>| -> [T::Wide; GROUP] { std::array::from_fn(|i| line[first + i]) };
            let (max, others, distances) = (group(&room.max), group(&room.others), group(&room.distances));
            let (classes, targets, own) = (group(&room.classes), group(&room.targets), group(&room.own));
            let (weights, factors) = (group(&room.weights), group(&room.factors));
            let [mut losses, mut of_p, mut of_target, mut of_weight] = [[T::Wide::default(); GROUP]; 4];
            for i in 0..GROUP {
                let (max, own, others) = (R::new(max[i]), R::new(own[i]), R::new(others[i]));
                let pixel = if UNSHIFTED {
                    RowSums::of_moderate(own, others)
                } else {
                    let shifted = [R::new(targets[i]) - max, max, R::new(distances[i])];
                    RowSums::of_shifted(shifted, own, others, call.total)
                };
                let rest = pixel.rest;
                let (loss, of) = call.evaluate(R::new(weights[i]), R::new(factors[i]), pixel);
                losses[i] = choose(R::new(classes[i]) >= zero, loss, zero).get();
                of_p[i] = (of.of_p / (own + others)).get();
                of_target[i] = (of.of_row - rest * of.of_p).get();
                of_weight[i] = of.of_weight.get();
            }
            room.losses[first..first + GROUP].copy_from_slice(&losses);
            room.of_p[first..first + GROUP].copy_from_slice(&of_p);
            room.of_target[first..first + GROUP].copy_from_slice(&of_target);
            room.of_weight[first..first + GROUP].copy_from_slice(&of_weight);
        }
    }

    #[inline(always)]
    fn gradient<R: LaneOf<T::Wide>>(&mut self) {
        let (job, pixels, room) = (self.call.job, self.pixels, &mut *self.room);
        if !job.needs_gradient() {
            return;
        }
        let length = pixels.length;
        let (of_p, classes) = (&room.of_p[..length], &room.classes[..length]);
        let (of_target, of_weight) = (&room.of_target[..length], &room.of_weight[..length]);
        let zero = R::of(0.0);
        for class in 0..job.classes {
            let exponentials = &mut room.exponentials[class * length..][..length];
            let (index, weight) = (R::of(class as f64), R::of(job.options.weight_of(class)));
            let position = pixels.of(class).start;
            // Whatever an ignored pixel holds stays out of the gradient.
            let gradient = |i: usize, exponential: T::Wide, spread: R| {
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

/// The cross entropy of a share for each class.
#[derive(Clone, Copy)]
struct OfShares {
    smoothing: f64,
}

impl RowFormula for OfShares {
    fn run<T: Element>(self, job: &Job<T>) -> f64 {
        let call = Shares { job, own: 1.0 - self.smoothing, spread: self.smoothing / job.classes as f64 };
        job.sum(block(job.classes), |rows| call.rows(rows), |pixels| call.pixels(pixels))
    }
}

struct Shares<'a, T: Element> {
    job: &'a Job<'a, T>,
    /// What a share is multiplied by, and what is added to it, before the weight of its class.
    own: f64,
    spread: f64,
}

impl<T: Element> Shares<'_, T> {
    /// Rows of classes side by side in memory.
    fn rows(&self, rows: Range<usize>) -> f64 {
        let (job, classes) = (self.job, self.job.classes);
        let (mut room, mut of_shares) = (room::<T>(classes), room::<T>(classes));
        let (mut exponentials, mut target) = (vec![T::Wide::default(); classes], vec![T::Wide::default(); classes]);
        rows.map(|row| {
            let range = row * classes..(row + 1) * classes;
            let x = T::read(&job.input[range.clone()], &mut room);
            let shares = T::read(&job.numbers[range], &mut of_shares);
            let (exponentials, target) = (&mut exponentials[..], &mut target[..]);
            let loss = simd::run(ShareRow { call: self, row, x, shares, exponentials, target });
            job.store_losses(row, &[loss]);
            loss.to_f64()
        })
        .sum()
    }

    /// Blocks of pixels; a class has its pixels side by side in memory.
    fn pixels(&self, blocks: &mut dyn Iterator<Item = Pixels>) -> f64 {
        let mut room = Room::new(self.job.classes);
        blocks.map(|pixels| simd::run(SharePixels { call: self, pixels, room: &mut room })).sum()
    }

    /// The target of a class with this share, given its weight.
    #[inline(always)]
    fn target<R: LaneOf<T::Wide>>(&self, share: T::Wide, weight: R) -> R {
        R::new(share).mul_add(R::of(self.own), R::of(self.spread)) * weight
    }
}

/// One row of classes and its shares: stores its gradient, returns the loss.
struct ShareRow<'a, T: Element> {
    call: &'a Shares<'a, T>,
    row: usize,
    x: &'a [T::Wide],
    shares: &'a [T::Wide],
    exponentials: &'a mut [T::Wide],
    target: &'a mut [T::Wide],
}

impl<T: Element> Kernel<T::Wide> for ShareRow<'_, T> {
    type Result = T::Wide;

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) -> T::Wide {
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
        let max = largest::<T::Wide, R>(x);
        let total = R::of(simd::sum::<T::Wide, R>(target));
        let ahead = |range| job.fetch_row(row, range);
        let [sum, distances] = self::exponentials(x, max, Distances::Weighted(target), exponentials, ahead);
        let peak = peak::<T::Wide, R>(exponentials, sum);
        let rest = peak.map(|peak| others(exponentials, peak, sum));
        let loss = distances + total * rest.map_or(sum.ln(), |rest| rest.ln_1p());
        if job.needs_gradient() {
            let factor = R::new(job.factor(row));
            let of_p = factor * total / sum;
            // Not with p − 1, which loses the digits of a p near 1.
            let own = peak.zip(rest).map(|(peak, rest)| {
                let of_others = others(target, peak, total);
                (peak, (factor * of_others - rest * of_p).get())
            });
            let target = &target[..exponentials.len()];
            let gradient = |i: usize, e| (R::new(e) * of_p - factor * R::new(target[i])).get();
            job.store_gradient(row * job.classes, exponentials, gradient, own);
        }
        loss.get()
    }
}

/// Where the exponential of the largest logit is, 1, if it is more than half of their sum.
#[inline(always)]
pub(super) fn peak<W: Wide, R: LaneOf<W>>(exponentials: &[W], sum: R) -> Option<usize> {
    let peaked = sum < R::of(2.0);
    if peaked { exponentials.iter().position(|e| R::new(*e) == R::of(1.0)) } else { None }
}

/// One block of pixels and their shares: stores its gradient and losses, returns the sum of the losses.
struct SharePixels<'a, T: Element> {
    call: &'a Shares<'a, T>,
    pixels: Pixels,
    room: &'a mut Room<T::Wide>,
}

impl<T: Element> Kernel<T::Wide> for SharePixels<'_, T> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) -> f64 {
        let (call, job, pixels, room) = (self.call, self.call.job, self.pixels, self.room);
        let length = pixels.length;
        room.find_max::<T, R>(job, pixels);
        let max = &room.max[..length];
        let (sums, totals) = (&mut room.sums[..length], &mut room.weights[..length]);
        let (distances, others) = (&mut room.distances[..length], &mut room.others[..length]);
        // The shares of all classes but the most likely one.
        let lesser = &mut room.own[..length];
        for numbers in [&mut *sums, &mut *totals, &mut *distances, &mut *others, &mut *lesser] {
            numbers.fill(T::Wide::default());
        }
        let (zero, one) = (R::of(0.0), R::of(1.0));
        for class in 0..job.classes {
            let x = &T::read(&job.input[pixels.of(class)], &mut room.x)[..length];
            let shares = &T::read(&job.numbers[pixels.of(class)], &mut room.targets)[..length];
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
                // 0 · ∞ is 0: a class that is masked and has no share.
                let distance = choose(target == zero, zero, distance);
                distances[i] = target.mul_add(distance, R::new(distances[i])).get();
            }
        }
        job.read_factors(pixels, &mut room.factors);
        let factors = &room.factors[..length];
        let (losses, of_p) = (&mut room.losses[..length], &mut room.of_p[..length]);
        let of_target = &mut room.of_target[..length];
        for i in 0..length {
            let (sum, total, others) = (R::new(sums[i]), R::new(totals[i]), R::new(others[i]));
            // One class is more likely than all others together.
            let peaked = sum < R::of(2.0);
            let log = choose(peaked, others.ln_1p(), sum.ln());
            losses[i] = (R::new(distances[i]) + total * log).get();
            let of_sum = R::new(factors[i]) * total / sum;
            of_p[i] = of_sum.get();
            // Not with p − 1, which loses the digits of a p near 1.
            let own = R::new(factors[i]) * R::new(lesser[i]) - others * of_sum;
            of_target[i] = choose(peaked, own, R::of(f64::NAN)).get();
        }
        job.store_losses(pixels.row, losses);
        let sum = Sum(losses).run::<R>();
        if !job.needs_gradient() {
            return sum;
        }
        let (of_p, of_target) = (&room.of_p[..length], &room.of_target[..length]);
        for class in 0..job.classes {
            let shares = &T::read(&job.numbers[pixels.of(class)], &mut room.targets)[..length];
            let weight = R::of(job.options.weight_of(class));
            let exponentials = &mut room.exponentials[class * length..][..length];
            let gradient = |i: usize, e| {
                let target = R::new(factors[i]) * call.target(shares[i], weight);
                let (own, gradient) = (R::new(of_target[i]), R::new(e) * R::new(of_p[i]) - target);
                // NaN is the gradient of none.
                choose((R::new(e) == one) & own.is_number(), own, gradient).get()
            };
            job.store_gradient(pixels.of(class).start, exponentials, gradient, None);
        }
        sum
    }
}
