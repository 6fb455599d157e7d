//! The engine of losses of a softmax over classes, with a class or a share for each class as the target of a row.
//!
//! With p = softmax(x) of a row and its target t, such a loss is a function of log p[t] and of log Σ exp(x), or the cross entropy
//! of shares. Its gradient is a multiple of p and numbers more for the target, so that the logits are read once, the gradient is
//! written once, and no log-probabilities are kept.

use std::ops::Range;

use tch::Tensor;

use super::BLOCK;
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

/// How many, so that they fit the second cache with all their classes.
fn block(classes: usize) -> usize {
    ((1 << 15) / classes / 16 * 16).clamp(32, PIXELS)
}

/// How many rows of classes side by side are worked on at a time, so that the first cache has their exponentials
/// until they are read again.
fn rows_at_once(classes: usize) -> usize {
    ((1 << 10) / classes).clamp(1, ROWS)
}

/// So many at most.
const ROWS: usize = 64;

/// Losses of a class for each row.
struct OfClasses<F> {
    formula: F,
    smoothing: f64,
}

impl<F: RowLoss> RowFormula for OfClasses<F> {
    fn run<W: Wide>(&self, job: &Job<W>) -> f64 {
        Classes::new(job, &self.formula, self.smoothing).sum()
    }
}

/// A formula without its type, which the engine calls once for some rows.
trait OfRows<W>: Sync {
    fn evaluate(&self, rows: Evaluation<W>);
}

impl<W: Wide, F: RowLoss> OfRows<W> for F {
    fn evaluate(&self, rows: Evaluation<W>) {
        simd::run(Evaluate { formula: *self, rows });
    }
}

/// Rows, whose losses and coefficients are to be computed. The gradient of a row is `of_p` p\[c\] − `of_weight`
/// w\[c\], and `of_target` − `of_weight` w\[t\] at the target.
struct Evaluation<'a, W> {
    /// log p\[t\]
    log_p: &'a [W],
    /// 1 − p\[t\]
    rest: &'a [W],
    /// log Σ exp(x)
    log_sum: &'a [W],
    /// −Σ w log p over all classes; anything where the target is not smoothed.
    smooth: &'a [W],
    weights: &'a [W],
    factors: &'a [W],
    /// The share of each class in a smoothed target, and the sum of the weights of all classes.
    spread: f64,
    total: f64,
    losses: &'a mut [W],
    of_p: &'a mut [W],
    of_target: &'a mut [W],
    of_weight: &'a mut [W],
}

/// Computes them.
struct Evaluate<'a, W, F> {
    formula: F,
    rows: Evaluation<'a, W>,
}

impl<W: Wide, F: RowLoss> Kernel<W> for Evaluate<'_, W, F> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let Evaluation { log_p, rest, log_sum, smooth, weights, factors, spread, total, .. } = self.rows;
        let Evaluation { losses, of_p, of_target, of_weight, .. } = self.rows;
        let length = losses.len();
        let [log_p, rest, log_sum, smooth, weights, factors] =
            simd::first(&[log_p, rest, log_sum, smooth, weights, factors], length);
        let (of_p, of_target, of_weight) = (&mut of_p[..length], &mut of_target[..length], &mut of_weight[..length]);
        let (spread, total) = (R::of(spread), R::of(total));
        for i in 0..length {
            let (weight, factor) = (R::new(weights[i]), R::new(factors[i]));
            let (loss, [of_log_p, of_log_sum]) = self.formula.evaluate(R::new(log_p[i]), R::new(log_sum[i]));
            let of_row = factor * (weight * of_log_sum + spread * total);
            let of_row_p = of_row - factor * weight * of_log_p;
            losses[i] = (weight * loss + spread * R::new(smooth[i])).get();
            of_p[i] = of_row_p.get();
            // Not with p − 1, which loses the digits of a p near 1.
            of_target[i] = (of_row - R::new(rest[i]) * of_row_p).get();
            of_weight[i] = (factor * spread).get();
        }
    }
}

struct Classes<'a, W> {
    job: &'a Job<'a, W>,
    formula: &'a (dyn OfRows<W> + 'a),
    /// The share of the target's class that is not spread.
    own: f64,
    /// The sum of the weights of all classes, 0 where the target is not smoothed.
    total: f64,
    /// The share of each class in a smoothed target.
    spread: f64,
}

/// Numbers of up to `L` rows, each line where one of the cache begins; see [`Aligned`](simd::Aligned).
#[repr(align(64))]
struct Lines<W, const L: usize> {
    /// The class of the target, −1 where it is ignored.
    classes: [W; L],
    /// The logit of the target.
    targets: [W; L],
    /// The largest logit, the exponential of the target's logit less it, and the sum of those of the others.
    max: [W; L],
    own: [W; L],
    others: [W; L],
    /// The sum of the weighted distances from the largest logit.
    distances: [W; L],
    /// See [`Evaluation`].
    log_p: [W; L],
    rest: [W; L],
    log_sum: [W; L],
    smooth: [W; L],
    weights: [W; L],
    factors: [W; L],
    losses: [W; L],
    of_p: [W; L],
    of_target: [W; L],
    of_weight: [W; L],
}

impl<W: Wide, const L: usize> Lines<W, L> {
    fn new() -> Self {
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

    #[inline(always)]
    fn take<R: LaneOf<W>>(&mut self, rows: Range<usize>, unshifted: bool, total: f64) {
        match unshifted {
            true => self.take_logarithms::<R, true>(rows, total),
            false => self.take_logarithms::<R, false>(rows, total),
        }
    }

    /// What the losses of some rows are made of, `UNSHIFTED` where exponentials are those of the logits themselves.
    #[inline(always)]
    fn take_logarithms<R: LaneOf<W>, const UNSHIFTED: bool>(&mut self, rows: Range<usize>, total: f64) {
        for i in rows.start..rows.end.min(L) {
            let (own, others) = (R::new(self.own[i]), R::new(self.others[i]));
            let sum = own + others;
            let log = sum.ln();
            let likely = likely(own, others);
            self.rest[i] = (others / sum).get();
            if UNSHIFTED {
                // Not x − log Σ exp(x), which loses digits where both are large.
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

impl<'a, W: Wide> Classes<'a, W> {
    fn new(job: &'a Job<'a, W>, formula: &'a (dyn OfRows<W> + 'a), smoothing: f64) -> Self {
        let total = job.options.total_of_spread(smoothing, job.classes);
        Self { job, formula, own: 1.0 - smoothing, total, spread: smoothing / job.classes as f64 }
    }

    fn sum(&self) -> f64 {
        self.job.sum(block(self.job.classes), |rows| self.rows(rows), |pixels| self.pixels(pixels))
    }

    /// How much the target of this class counts.
    fn weight(&self, class: usize) -> W {
        W::from_f64(self.own * self.job.options.weight_of(class))
    }

    /// The losses of the first rows, and the coefficients of their gradients.
    fn evaluate<const L: usize>(&self, lines: &mut Lines<W, L>, rows: usize) {
        self.formula.evaluate(Evaluation {
            log_p: &lines.log_p,
            rest: &lines.rest,
            log_sum: &lines.log_sum,
            smooth: &lines.smooth,
            weights: &lines.weights,
            factors: &lines.factors,
            spread: self.spread,
            total: self.total,
            losses: &mut lines.losses[..rows],
            of_p: &mut lines.of_p,
            of_target: &mut lines.of_target,
            of_weight: &mut lines.of_weight,
        });
    }

    /// Rows of classes side by side in memory.
    fn rows(&self, rows: Range<usize>) -> f64 {
        let (job, classes) = (self.job, self.job.classes);
        let at_once = rows_at_once(classes);
        let (mut lines, mut sums, mut room) = (Lines::<W, ROWS>::new(), [W::default(); ROWS], job.input.room(classes));
        let mut exponentials = vec![W::default(); at_once.min(rows.len()) * classes];
        let mut sum = 0.0;
        for first in rows.clone().step_by(at_once) {
            let rows = first..rows.end.min(first + at_once);
            let group = ClassRows { call: self, rows: rows.clone(), lines: &mut lines, sums: &mut sums };
            simd::run(SumRows { group, room: &mut room, exponentials: &mut exponentials });
            self.evaluate(&mut lines, rows.len());
            if job.needs_gradient() {
                let group = ClassRows { call: self, rows: rows.clone(), lines: &mut lines, sums: &mut sums };
                simd::run(DeriveRows { group, exponentials: &mut exponentials });
            }
            for (row, loss) in rows.clone().zip(&mut lines.losses) {
                if job.class(row).is_none() {
                    *loss = W::default();
                }
                sum += loss.to_f64();
            }
            job.store_losses(first, &lines.losses[..rows.len()]);
        }
        sum
    }

    /// Blocks of pixels; a class has its pixels side by side in memory.
    fn pixels(&self, blocks: &mut dyn Iterator<Item = Pixels>) -> f64 {
        let mut room = Room::new(self.job.classes);
        let mut sum = 0.0;
        for pixels in blocks {
            simd::run(SumPixels(ClassPixels { call: self, pixels, room: &mut room }));
            self.evaluate(&mut room.lines, pixels.length);
            sum += simd::run(DerivePixels(ClassPixels { call: self, pixels, room: &mut room }));
        }
        sum
    }
}

/// Rows of classes.
struct ClassRows<'a, W> {
    call: &'a Classes<'a, W>,
    rows: Range<usize>,
    lines: &'a mut Lines<W, ROWS>,
    /// The sums of the exponentials.
    sums: &'a mut [W; ROWS],
}

/// Their exponentials, and what their losses are made of.
struct SumRows<'a, W> {
    group: ClassRows<'a, W>,
    room: &'a mut [W],
    exponentials: &'a mut [W],
}

impl<W: Wide> Kernel<W> for SumRows<'_, W> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let ClassRows { call, rows, lines, sums } = self.group;
        let (job, classes, count) = (call.job, call.job.classes, rows.len());
        // From where on the rows are as this one: with exponentials of the logits themselves, or not.
        let (mut start, mut unshifted) = (0, true);
        for (i, row) in rows.enumerate() {
            let Some(class) = job.class(row) else {
                // The loss of anything, which is not looked at.
                lines.own[i] = R::of(1.0).get();
                lines.others[i] = W::default();
                continue;
            };
            let x = job.input.read(row * classes..(row + 1) * classes, self.room);
            let exponentials = &mut self.exponentials[i * classes..(i + 1) * classes];
            let ahead = |range| job.fetch_row(row, range);
            let moderate = if call.spread == 0.0 { powers::<W, R>(x, exponentials, ahead) } else { None };
            let is_unshifted = moderate.is_some();
            let sum = if let Some(sum) = moderate {
                R::of(sum)
            } else {
                let max = largest::<W, R>(x);
                let distances = Distances::of_smoothed(call.spread != 0.0, job.options.weight.as_deref());
                let [sum, distances] = self::exponentials(x, max, distances, exponentials, ahead);
                lines.max[i] = max.get();
                lines.targets[i] = x[class];
                lines.distances[i] = distances.get();
                sum
            };
            lines.own[i] = exponentials[class];
            lines.others[i] = others(exponentials, class, sum).get();
            sums[i] = sum.get();
            lines.weights[i] = call.weight(class);
            lines.factors[i] = job.factor(row);
            if is_unshifted != unshifted {
                lines.take::<R>(start..i, unshifted, call.total);
                (start, unshifted) = (i, is_unshifted);
            }
        }
        lines.take::<R>(start..count, unshifted, call.total);
    }
}

/// Their gradients.
struct DeriveRows<'a, W> {
    group: ClassRows<'a, W>,
    exponentials: &'a mut [W],
}

impl<W: Wide> Kernel<W> for DeriveRows<'_, W> {
    const LONG: bool = true;
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let ClassRows { call, rows, lines, sums } = self.group;
        let (job, classes) = (call.job, call.job.classes);
        let weights = job.options.weight.as_deref();
        for (i, row) in rows.enumerate() {
            let start = row * classes;
            let Some(class) = job.class(row) else {
                job.store_zeros(start, classes);
                continue;
            };
            let exponentials = &mut self.exponentials[i * classes..(i + 1) * classes];
            let of_weight = R::new(lines.of_weight[i]);
            // 0 · ∞ is 0: an infinite weight of which nothing is spread.
            let smooth = if call.spread == 0.0 { R::of(0.0) } else { of_weight * R::of(job.options.weight_of(class)) };
            let own = Some((class, (R::new(lines.of_target[i]) - smooth).get()));
            let of_p = R::new(lines.of_p[i]) / R::new(sums[i]);
            match weights {
                _ if call.spread == 0.0 => {
                    job.store_gradient(start, exponentials, |_, e| (R::new(e) * of_p).get(), own)
                }
                None => job.store_gradient(start, exponentials, |_, e| R::new(e).mul_add(of_p, -of_weight).get(), own),
                Some(weights) => {
                    let weights = &weights[..exponentials.len()];
                    let gradient = |i: usize, e| (R::new(e) * of_p - of_weight * R::new(weights[i])).get();
                    job.store_gradient(start, exponentials, gradient, own);
                }
            }
        }
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
        sum += sum_of(exponentials);
    }
    Some(sum)
}

/// The sum of a block, in a function of its own: beside the other loops of a kernel the compiler splits its vectors.
#[inline(never)]
fn sum_of<W: Wide>(numbers: &[W]) -> f64 {
    simd::run(Sum(numbers))
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
        let mut sums = [[R::of(0.0); LANES]; 2];
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
        for k in 0..2 {
            totals[k] += simd::total(sums[k]);
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
                // 0 · ∞ is 0: a class that is masked and has no share.
                let distance = choose(weight == R::of(0.0), R::of(0.0), max - R::new(x[i]));
                sums[1][i] = distance.mul_add(weight, sums[1][i]);
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

/// Room for a block of pixels.
struct Room<W> {
    x: [W; PIXELS],
    sums: [W; PIXELS],
    lines: Lines<W, PIXELS>,
    exponentials: Vec<W>,
}

impl<W: Wide> Room<W> {
    fn new(classes: usize) -> Self {
        let zeros = [W::default(); PIXELS];
        Self { x: zeros, sums: zeros, lines: Lines::new(), exponentials: vec![W::default(); block(classes) * classes] }
    }

    /// Finds the largest number of each pixel.
    #[inline(always)]
    fn find_max<R: LaneOf<W>>(&mut self, job: &Job<W>, pixels: Pixels) {
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

/// One block of pixels.
struct ClassPixels<'a, W> {
    call: &'a Classes<'a, W>,
    pixels: Pixels,
    room: &'a mut Room<W>,
}

/// Its exponentials, and what its losses are made of.
struct SumPixels<'a, W>(ClassPixels<'a, W>);

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

/// Stores its gradient and its losses, and returns their sum.
struct DerivePixels<'a, W>(ClassPixels<'a, W>);

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
    /// The exponentials of the logits themselves, and their sums. Returns whether all logits are [`MODERATE`]; if not, what it has
    /// computed is worthless.
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

    /// The exponentials, their sums, and for a smoothed target the distances from the maximum.
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
            // Whatever an ignored pixel holds stays out of the gradient.
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

/// The cross entropy of a share for each class.
#[derive(Clone, Copy)]
struct OfShares {
    smoothing: f64,
}

impl RowFormula for OfShares {
    fn run<W: Wide>(&self, job: &Job<W>) -> f64 {
        let call = Shares { job, own: 1.0 - self.smoothing, spread: self.smoothing / job.classes as f64 };
        job.sum(block(job.classes), |rows| call.rows(rows), |pixels| call.pixels(pixels))
    }
}

struct Shares<'a, W> {
    job: &'a Job<'a, W>,
    /// What a share is multiplied by, and what is added to it, before the weight of its class.
    own: f64,
    spread: f64,
}

impl<W: Wide> Shares<'_, W> {
    /// Rows of classes side by side in memory.
    fn rows(&self, rows: Range<usize>) -> f64 {
        let (job, classes) = (self.job, self.job.classes);
        let (mut room, mut of_shares) = (job.input.room(classes), job.numbers.room(classes));
        let (mut exponentials, mut target) = (vec![W::default(); classes], vec![W::default(); classes]);
        rows.map(|row| {
            let range = row * classes..(row + 1) * classes;
            let x = job.input.read(range.clone(), &mut room);
            let shares = job.numbers.read(range, &mut of_shares);
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
    fn target<R: LaneOf<W>>(&self, share: W, weight: R) -> R {
        R::new(share).mul_add(R::of(self.own), R::of(self.spread)) * weight
    }
}

/// One row of classes and its shares: stores its gradient, returns the loss.
struct ShareRow<'a, W> {
    call: &'a Shares<'a, W>,
    row: usize,
    x: &'a [W],
    shares: &'a [W],
    exponentials: &'a mut [W],
    target: &'a mut [W],
}

impl<W: Wide> Kernel<W> for ShareRow<'_, W> {
    const LONG: bool = true;
    type Result = W;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> W {
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
        let max = largest::<W, R>(x);
        let total = R::of(simd::sum::<W, R>(target));
        let ahead = |range| job.fetch_row(row, range);
        let [sum, distances] = self::exponentials(x, max, Distances::Weighted(target), exponentials, ahead);
        let peak = peak::<W, R>(exponentials, sum);
        let peak = match peak {
            Some(peak) => Some((peak, others(exponentials, peak, sum))),
            None => None,
        };
        let log = match peak {
            Some((_, rest)) => rest.ln_1p(),
            None => sum.ln(),
        };
        let loss = distances + total * log;
        if job.needs_gradient() {
            let factor = R::new(job.factor(row));
            let of_p = factor * total / sum;
            // Not with p − 1, which loses the digits of a p near 1.
            let own = match peak {
                Some((peak, rest)) => Some((peak, (factor * others(target, peak, total) - rest * of_p).get())),
                None => None,
            };
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

/// One block of pixels and their shares: stores its gradient and losses, returns the sum of the losses.
struct SharePixels<'a, W> {
    call: &'a Shares<'a, W>,
    pixels: Pixels,
    room: &'a mut Room<W>,
}

impl<W: Wide> Kernel<W> for SharePixels<'_, W> {
    const LONG: bool = true;
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> f64 {
        let (call, job, pixels, room) = (self.call, self.call.job, self.pixels, self.room);
        let length = pixels.length;
        room.find_max::<R>(job, pixels);
        let max = &room.lines.max[..length];
        let (sums, totals) = (&mut room.sums[..length], &mut room.lines.weights[..length]);
        let (distances, others) = (&mut room.lines.distances[..length], &mut room.lines.others[..length]);
        // The shares of all classes but the most likely one.
        let lesser = &mut room.lines.own[..length];
        for numbers in [&mut *sums, &mut *totals, &mut *distances, &mut *others, &mut *lesser] {
            numbers.fill(W::default());
        }
        let (zero, one) = (R::of(0.0), R::of(1.0));
        for class in 0..job.classes {
            let x = &job.input.read(pixels.of(class), &mut room.x)[..length];
            let shares = &job.numbers.read(pixels.of(class), &mut room.lines.targets)[..length];
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
        job.read_factors(pixels, &mut room.lines.factors);
        let factors = &room.lines.factors[..length];
        let (losses, of_p) = (&mut room.lines.losses[..length], &mut room.lines.of_p[..length]);
        let of_target = &mut room.lines.of_target[..length];
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
        let (of_p, of_target) = (&room.lines.of_p[..length], &room.lines.of_target[..length]);
        for class in 0..job.classes {
            let shares = &job.numbers.read(pixels.of(class), &mut room.lines.targets)[..length];
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
