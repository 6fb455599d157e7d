//! The engine of losses of a softmax over classes, with a class index for each row.
//!
//! With p = softmax(x) of a row and its target t, such a loss is a function of log p[t] and of log Σ exp(x). Its gradient is a
//! multiple of p and a number more at t, so that the logits are read once, the gradient is written once, and no
//! log-probabilities are kept.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};
use tch::{Kind, Tensor};

use super::element::{Element, Output, elements, f_plain, f_scalar, integers, is_dense, is_plain};
use super::number::{Real, choose};
use super::simd::{self, Kernel, LaneOf, Sum, Wide};
use super::{BLOCK, backend, parallel};
use crate::autograd::{self, Context, Function, StoredGradients};
use crate::{LossError, Reduction};

/// A loss of one row.
pub(crate) trait RowLoss: Copy + Send + Sync + 'static {
    /// The loss, given log p\[t\] and log Σ exp(x), and its derivatives with respect to both. To be `#[inline(always)]`.
    fn evaluate<R: Real>(self, log_p: R, log_sum: R) -> (R, [R; 2]);
}

/// The rows of a call.
pub(crate) struct Rows<'a> {
    /// Logits, with a graph.
    pub(crate) input: &'a Tensor,
    /// Where the classes are.
    pub(crate) class_dim: usize,
    /// A class in range for each row, or the ignored index; 64-bit.
    pub(crate) target: &'a Tensor,
    pub(crate) ignore_index: Option<i64>,
    /// A factor for each class, of any floating kind, without a gradient.
    pub(crate) weight: Option<&'a Tensor>,
    /// The share of the target that is spread over all classes.
    pub(crate) smoothing: f64,
}

/// What the losses of rows are reduced to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RowReduction {
    None,
    Sum,
    /// Divided by the sum of the weights of the targets that are not ignored.
    WeightedMean,
    /// Divided by the number of those targets.
    CountedMean,
    /// Divided by the number of all targets.
    Mean,
}

impl From<Reduction> for RowReduction {
    fn from(reduction: Reduction) -> Self {
        match reduction {
            Reduction::None => RowReduction::None,
            Reduction::Mean => RowReduction::WeightedMean,
            Reduction::Sum => RowReduction::Sum,
        }
    }
}

/// The reduced loss of `rows`; `None` where the engine does not take the call. Second derivatives are those of the
/// `composite` of input and target.
pub(crate) fn f_softmax<F, C>(
    formula: F,
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    F: RowLoss,
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    let kind = rows.input.f_kind()?;
    let taken = backend::fused()
        && is_plain(rows.input, kind)
        && is_plain(rows.target, Kind::Int64)
        && rows.weight.is_none_or(|weight| !weight.requires_grad());
    if !taken || rows.input.numel() == 0 {
        return Ok(None);
    }
    Ok(Some(match kind {
        Kind::Float => f_run::<f32, F, C>(formula, rows, reduction, composite)?,
        Kind::Double => f_run::<f64, F, C>(formula, rows, reduction, composite)?,
        Kind::Half => f_run::<f16, F, C>(formula, rows, reduction, composite)?,
        Kind::BFloat16 => f_run::<bf16, F, C>(formula, rows, reduction, composite)?,
        _ => return Ok(None),
    }))
}

fn f_run<T, F, C>(formula: F, rows: &Rows, reduction: RowReduction, composite: C) -> Result<Tensor, LossError>
where
    T: Element,
    F: RowLoss,
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    let options = Options::<T::Wide, F>::f_new(formula, rows)?;
    let pass = Pass::<T>::f_new(rows.input, rows.class_dim, rows.target)?;
    let needed = autograd::grad_enabled() && rows.input.requires_grad();
    let unreduced = reduction == RowReduction::None;
    // The gradients of half precision would lose digits by being scaled twice, and are computed in the backward pass.
    let at_once = !unreduced && size_of::<T>() >= size_of::<f32>();
    let scale = options.scale(integers(&pass.target), reduction);
    let (loss, gradient) = if unreduced {
        let losses = Output::<T>::f_of_size(&rows.target.size())?;
        pass.run(&options, Factors::Number(1.0), Some(&losses), None);
        (losses.into_tensor(), None)
    } else {
        let gradient = (needed && at_once).then(|| Output::<T>::f_like(&pass.input)).transpose()?;
        let sum = pass.run(&options, Factors::Number(scale), None, gradient.as_ref());
        (f_scalar::<T>(sum * scale)?, gradient.map(Output::into_tensor))
    };
    if !needed {
        return Ok(loss);
    }
    let class_dim = rows.class_dim;
    let stored = at_once.then(|| StoredGradients::f_of_own_kind([gradient])).transpose()?;
    let backward = move |context: Context| -> autograd::Gradients {
        let Some(grad) = context.grad(0) else { return Ok(vec![None]) };
        let saved = context.saved();
        if context.create_graph() {
            let loss = |inputs: &[Tensor]| composite(&inputs[0], &saved[1]);
            return autograd::f_gradients_of(loss, &grad, &saved[..1], &[true]);
        }
        let grad = f_plain(&grad)?.f_contiguous()?;
        if let Some(stored) = &stored {
            return stored.f_scaled(&context, &grad);
        }
        let pass = Pass::<T>::f_new(&saved[0], class_dim, &saved[1])?;
        let gradient = Output::<T>::f_like(&pass.input)?;
        let factors = match unreduced {
            true => Factors::Rows(elements::<T>(&grad)),
            false => Factors::Number(elements::<T>(&grad)[0].to_f64() * scale),
        };
        pass.run(&options, factors, None, Some(&gradient));
        Ok(vec![Some(gradient.into_tensor())])
    };
    Ok(Function::new(&[rows.input]).save(&[rows.input, rows.target]).f_attach_own(vec![loss], backward)?.remove(0))
}

/// The options of a call, in the kind that it is computed in.
struct Options<W, F> {
    formula: F,
    ignore_index: Option<i64>,
    weight: Option<Vec<W>>,
    smoothing: f64,
}

impl<W: Wide, F: RowLoss> Options<W, F> {
    fn f_new(formula: F, rows: &Rows) -> Result<Self, LossError> {
        let wide = |weight: &Tensor| weight.f_to_kind(Kind::Double)?.f_contiguous();
        let weight = rows.weight.map(wide).transpose()?;
        let weight = weight.map(|weight| elements::<f64>(&weight).iter().map(|&weight| W::from_f64(weight)).collect());
        Ok(Self { formula, ignore_index: rows.ignore_index, weight, smoothing: rows.smoothing })
    }

    fn weight_of(&self, class: usize) -> f64 {
        self.weight.as_ref().map_or(1.0, |weight| weight[class].into())
    }

    /// What the sum of the losses is multiplied by.
    fn scale(&self, target: &[i64], reduction: RowReduction) -> f64 {
        let counted = || target.iter().filter(|class| Some(**class) != self.ignore_index);
        let divisor = match reduction {
            RowReduction::None | RowReduction::Sum => 1.0,
            RowReduction::Mean => target.len() as f64,
            RowReduction::WeightedMean if self.weight.is_some() => {
                counted().map(|class| self.weight_of(*class as usize)).sum()
            }
            RowReduction::WeightedMean | RowReduction::CountedMean => counted().count() as f64,
        };
        1.0 / divisor
    }
}

/// Logits `[outer, classes, inner]` in memory, with a target for each row of classes.
struct Pass<T> {
    input: Tensor,
    target: Tensor,
    classes: usize,
    inner: usize,
    kind: PhantomData<T>,
}

/// What the gradients of the rows are multiplied by.
#[derive(Clone, Copy)]
enum Factors<'a, T> {
    Number(f64),
    Rows(&'a [T]),
}

impl<T: Element> Pass<T> {
    fn f_new(input: &Tensor, class_dim: usize, target: &Tensor) -> Result<Self, LossError> {
        let size = input.size();
        let classes = size[class_dim] as usize;
        let inner: i64 = size[class_dim + 1..].iter().product();
        let last = || input.f_movedim_int(class_dim as i64, -1);
        let (input, inner) = if !input.is_contiguous() && is_dense(input) && last()?.is_contiguous() {
            // Channels last.
            (input.f_detach()?, 1)
        } else {
            (input.f_detach()?.f_contiguous()?, inner as usize)
        };
        Ok(Self { input, target: target.f_contiguous()?, classes, inner, kind: PhantomData })
    }

    /// Runs over all rows. Returns the sum of the losses.
    fn run<F: RowLoss>(
        &self,
        options: &Options<T::Wide, F>,
        factors: Factors<T>,
        losses: Option<&Output<T>>,
        gradient: Option<&Output<T>>,
    ) -> f64 {
        let (classes, inner) = (self.classes, self.inner);
        let total = options.weight.as_ref().map_or(classes as f64, |weight| weight.iter().map(|&w| w.into()).sum());
        let spread = options.smoothing / classes as f64;
        let (input, target) = (elements::<T>(&self.input), integers(&self.target));
        let job = Job { options, total, spread, input, target, classes, inner, factors, losses, gradient };
        if inner == 1 {
            return parallel::sum(input.len(), classes, |range| job.rows(range.start / classes..range.end / classes));
        }
        // A block of pixels with all their classes fits the second cache.
        let block = ((1 << 16) / classes).clamp(16, BLOCK).min(inner);
        let blocks = inner.div_ceil(block);
        let unit = block * classes;
        let count = target.len() / inner * blocks;
        parallel::sum(count * unit, unit, |range| job.pixels(range.start / unit..range.end / unit, block, blocks))
    }
}

/// What all threads work on.
struct Job<'a, T: Element, F> {
    options: &'a Options<T::Wide, F>,
    /// The sum of the weights of all classes.
    total: f64,
    /// The share of each class in a smoothed target.
    spread: f64,
    input: &'a [T],
    target: &'a [i64],
    classes: usize,
    inner: usize,
    factors: Factors<'a, T>,
    losses: Option<&'a Output<T>>,
    gradient: Option<&'a Output<T>>,
}

/// The gradient of a row: `of_p` p\[c\] − `of_weight` w\[c\], and `of_target` less at the target.
#[derive(Clone, Copy)]
struct Coefficients<R> {
    of_p: R,
    of_target: R,
    of_weight: R,
}

impl<T: Element, F: RowLoss> Job<'_, T, F> {
    /// The class of a row that is not ignored.
    fn class(&self, row: usize) -> Option<usize> {
        let class = self.target[row];
        (Some(class) != self.options.ignore_index).then_some(class as usize)
    }

    fn factor(&self, row: usize) -> T::Wide {
        T::Wide::from_f64(match self.factors {
            Factors::Number(number) => number,
            Factors::Rows(factors) => factors[row].to_f64(),
        })
    }

    /// How much the target of this class counts.
    fn weight(&self, class: usize) -> T::Wide {
        T::Wide::from_f64((1.0 - self.options.smoothing) * self.options.weight_of(class))
    }

    /// The loss of a row whose target has this weight and the coefficients of its gradient, given the logit of the target less the
    /// largest one, the largest one, the logarithm of the sum of the exponentials, and the sum of weighted distances of all
    /// logits from the largest one.
    #[inline(always)]
    fn evaluate<R: LaneOf<T::Wide>>(&self, weight: R, factor: R, row: [R; 4]) -> (R, Coefficients<R>) {
        let [x, max, log, distances] = row;
        let (loss, [of_log_p, of_log_sum]) = self.options.formula.evaluate(x - log, max + log);
        let (spread, total) = (R::of(self.spread), R::of(self.total));
        let smooth = spread * (distances + total * log);
        let loss = weight * loss + choose(self.spread == 0.0, R::of(0.0), smooth);
        let of_p = factor * (weight * (of_log_sum - of_log_p) + spread * total);
        (loss, Coefficients { of_p, of_target: -(factor * weight * of_log_p), of_weight: factor * spread })
    }

    /// Stores results from `position` on.
    fn store(&self, output: Option<&Output<T>>, position: usize, numbers: &[T::Wide]) {
        let Some(output) = output else { return };
        // SAFETY: tasks have rows of their own, and write them one after another.
        T::write(numbers, unsafe { output.range(position..position + numbers.len()) });
    }

    /// Rows of classes side by side in memory.
    fn rows(&self, rows: Range<usize>) -> f64 {
        let zeros = vec![T::Wide::default(); self.classes];
        let (mut room, mut exponentials) = (zeros.clone(), zeros.clone());
        let mut sum = 0.0;
        for row in rows {
            let start = row * self.classes;
            let Some(class) = self.class(row) else {
                self.store(self.gradient, start, &zeros);
                self.store(self.losses, row, &zeros[..1]);
                continue;
            };
            let x = T::read(&self.input[start..start + self.classes], &mut room);
            let factor = self.factor(row);
            let loss = simd::run(Row { job: self, class, factor, x, exponentials: &mut exponentials });
            self.store(self.gradient, start, &exponentials);
            self.store(self.losses, row, &[loss]);
            sum += loss.into();
        }
        sum
    }

    /// Blocks of pixels, of which `blocks` make up one sample; a class has its pixels side by side in memory.
    fn pixels(&self, range: Range<usize>, block: usize, blocks: usize) -> f64 {
        let zeros = || vec![T::Wide::default(); block];
        let mut room = Pixels {
            x: zeros(),
            max: zeros(),
            sums: zeros(),
            distances: zeros(),
            targets: zeros(),
            counted: zeros(),
            weights: zeros(),
            factors: zeros(),
            losses: zeros(),
            of_p: zeros(),
            of_target: zeros(),
            of_weight: zeros(),
            exponentials: vec![T::Wide::default(); block * self.classes],
        };
        range
            .map(|index| {
                let (sample, start) = (index / blocks, index % blocks * block);
                let length = block.min(self.inner - start);
                simd::run(PixelBlock { job: self, sample, start, length, room: &mut room })
            })
            .sum()
    }
}

/// One row of classes: leaves the gradient in `exponentials`, returns the loss.
struct Row<'a, T: Element, F> {
    job: &'a Job<'a, T, F>,
    class: usize,
    factor: T::Wide,
    x: &'a [T::Wide],
    exponentials: &'a mut [T::Wide],
}

impl<T: Element, F: RowLoss> Kernel<T::Wide> for Row<'_, T, F> {
    type Result = T::Wide;

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) -> T::Wide {
        let max = largest::<T::Wide, R>(self.x);
        let mut sum = 0.0;
        for (x, exponentials) in self.x.chunks(BLOCK).zip(self.exponentials.chunks_mut(BLOCK)) {
            for (x, exponential) in x.iter().zip(exponentials.iter_mut()) {
                *exponential = (R::new(*x) - max).exp().get();
            }
            sum += Sum(exponentials).run::<R>();
        }
        let log = R::of(sum).ln();
        let distances = self.distances(max);
        let row = [R::new(self.x[self.class]) - max, max, log, distances];
        let (loss, of) = self.job.evaluate(R::new(self.job.weight(self.class)), R::new(self.factor), row);
        if self.job.gradient.is_none() {
            return loss.get();
        }
        let of_p = of.of_p / R::of(sum);
        match &self.job.options.weight {
            _ if self.job.spread == 0.0 => {
                for exponential in self.exponentials.iter_mut() {
                    *exponential = (R::new(*exponential) * of_p).get();
                }
            }
            None => {
                for exponential in self.exponentials.iter_mut() {
                    *exponential = (R::new(*exponential) * of_p - of.of_weight).get();
                }
            }
            Some(weight) => {
                for (exponential, weight) in self.exponentials.iter_mut().zip(weight) {
                    *exponential = (R::new(*exponential) * of_p - of.of_weight * R::new(*weight)).get();
                }
            }
        }
        let target = &mut self.exponentials[self.class];
        *target = (R::new(*target) - of.of_target).get();
        loss.get()
    }
}

impl<T: Element, F: RowLoss> Row<'_, T, F> {
    /// Σ w (max − x) over the classes, for a smoothed target.
    #[inline(always)]
    fn distances<R: LaneOf<T::Wide>>(&self, max: R) -> R {
        if self.job.spread == 0.0 {
            return R::of(0.0);
        }
        let mut room = [T::Wide::default(); BLOCK];
        let mut sum = 0.0;
        for (index, x) in self.x.chunks(BLOCK).enumerate() {
            let room = &mut room[..x.len()];
            for (x, distance) in x.iter().zip(room.iter_mut()) {
                *distance = (max - R::new(*x)).get();
            }
            if let Some(weight) = &self.job.options.weight {
                for (distance, weight) in room.iter_mut().zip(&weight[index * BLOCK..]) {
                    *distance = (R::new(*distance) * R::new(*weight)).get();
                }
            }
            sum += Sum(room).run::<R>();
        }
        R::of(sum)
    }
}

/// The largest number; NaNs are left out.
#[inline(always)]
fn largest<W: Wide, R: LaneOf<W>>(numbers: &[W]) -> R {
    const LANES: usize = 32;
    let mut lanes = [W::from_f64(f64::NEG_INFINITY); LANES];
    let groups = numbers.chunks_exact(LANES);
    let rest = groups.remainder();
    for group in groups {
        for (lane, number) in lanes.iter_mut().zip(group) {
            *lane = R::new(*lane).at_least(R::new(*number)).get();
        }
    }
    let all = lanes.iter().chain(rest);
    all.fold(R::of(f64::NEG_INFINITY), |max, number| max.at_least(R::new(*number)))
}

/// Room for a block of pixels.
struct Pixels<W> {
    x: Vec<W>,
    max: Vec<W>,
    sums: Vec<W>,
    distances: Vec<W>,
    /// The logit of the target.
    targets: Vec<W>,
    /// 1, or 0 where the target is ignored.
    counted: Vec<W>,
    weights: Vec<W>,
    factors: Vec<W>,
    losses: Vec<W>,
    of_p: Vec<W>,
    of_target: Vec<W>,
    of_weight: Vec<W>,
    exponentials: Vec<W>,
}

/// One block of pixels: writes its gradient and losses, returns the sum of the losses.
struct PixelBlock<'a, T: Element, F> {
    job: &'a Job<'a, T, F>,
    sample: usize,
    start: usize,
    length: usize,
    room: &'a mut Pixels<T::Wide>,
}

impl<T: Element, F: RowLoss> Kernel<T::Wide> for PixelBlock<'_, T, F> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) -> f64 {
        let Self { job, sample, start, length, room } = self;
        let (classes, inner) = (job.classes, job.inner);
        let at = |class: usize| (sample * classes + class) * inner + start;
        let row = sample * inner + start;

        let max = &mut room.max[..length];
        max.fill(T::Wide::from_f64(f64::NEG_INFINITY));
        for class in 0..classes {
            let x = T::read(&job.input[at(class)..at(class) + length], &mut room.x);
            for (max, x) in max.iter_mut().zip(x) {
                *max = R::new(*max).at_least(R::new(*x)).get();
            }
        }

        let (sums, distances) = (&mut room.sums[..length], &mut room.distances[..length]);
        sums.fill(T::Wide::default());
        distances.fill(T::Wide::default());
        for class in 0..classes {
            let x = T::read(&job.input[at(class)..at(class) + length], &mut room.x);
            let exponentials = &mut room.exponentials[class * length..][..length];
            for i in 0..length {
                let exponential = (R::new(x[i]) - R::new(max[i])).exp();
                exponentials[i] = exponential.get();
                sums[i] = (R::new(sums[i]) + exponential).get();
            }
            if job.spread != 0.0 {
                let weight = R::of(job.options.weight_of(class));
                for i in 0..length {
                    let distance = R::new(max[i]) - R::new(x[i]);
                    distances[i] = weight.mul_add(distance, R::new(distances[i])).get();
                }
            }
        }

        for i in 0..length {
            let class = job.class(row + i);
            room.counted[i] = T::Wide::from_f64(f64::from(class.is_some()));
            let class = class.unwrap_or(0);
            room.targets[i] = T::Wide::from_f64(job.input[at(class) + i].to_f64());
            room.weights[i] = job.weight(class);
            room.factors[i] = job.factor(row + i);
        }
        let (targets, counted) = (&room.targets[..length], &room.counted[..length]);
        let (weights, factors) = (&room.weights[..length], &room.factors[..length]);
        let (losses, of_p) = (&mut room.losses[..length], &mut room.of_p[..length]);
        let (of_target, of_weight) = (&mut room.of_target[..length], &mut room.of_weight[..length]);
        for i in 0..length {
            let (max, sum, zero) = (R::new(max[i]), R::new(sums[i]), R::of(0.0));
            let pixel = [R::new(targets[i]) - max, max, sum.ln(), R::new(distances[i])];
            let (loss, of) = job.evaluate(R::new(weights[i]), R::new(factors[i]), pixel);
            let counts = R::new(counted[i]) > zero;
            losses[i] = choose(counts, loss, zero).get();
            of_p[i] = choose(counts, of.of_p / sum, zero).get();
            of_target[i] = of.of_target.get();
            of_weight[i] = choose(counts, of.of_weight, zero).get();
        }
        let sum = Sum(&room.losses[..length]).run::<R>();
        job.store(job.losses, row, &room.losses[..length]);
        if job.gradient.is_none() {
            return sum;
        }

        let (of_p, of_weight) = (&room.of_p[..length], &room.of_weight[..length]);
        for class in 0..classes {
            let exponentials = &mut room.exponentials[class * length..][..length];
            let weight = R::of(job.options.weight_of(class));
            for i in 0..length {
                let smooth = R::new(of_weight[i]) * weight;
                exponentials[i] = (R::new(exponentials[i]) * R::new(of_p[i]) - smooth).get();
            }
        }
        for i in 0..length {
            match job.class(row + i) {
                Some(class) => {
                    let target = &mut room.exponentials[class * length + i];
                    *target = (R::new(*target) - R::new(room.of_target[i])).get();
                }
                None => (0..classes).for_each(|class| room.exponentials[class * length + i] = T::Wide::default()),
            }
        }
        for class in 0..classes {
            job.store(job.gradient, at(class), &room.exponentials[class * length..][..length]);
        }
        sum
    }
}
