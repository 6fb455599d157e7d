//! The engine of losses that are a function of sums over the pixels of each class.
//!
//! One pass over the input and the target gives the sums, a second one the gradient. Neither probabilities nor one-hot
//! masks are kept: the softmax of a block of pixels is computed when it is needed, in either pass.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;

use half::{bf16, f16};
use tch::{Device, Kind, Tensor};

use super::element::{Block, Element, Output, elements, f_plain, integers, is_plain};
use super::number::{Real, choose};
use super::simd::{self, Kernel, LANES, LaneOf, Sum, Wide, total};
use super::softmax::MODERATE;
use super::{BLOCK, parallel, takes};
use crate::autograd::{self, Context, Function};
use crate::{Activation, LossError, OverlapMeasure};

/// Rows of fewer pixels are not worth the calls that each of them costs.
const FEW_PIXELS: i64 = 16;
/// How many elements of all classes a block has, so that they fit the first caches.
const BLOCK_ELEMENTS: usize = 8192;
/// A block of many classes has this many pixels at least, for the sake of whole vectors.
const LEAST_PIXELS: usize = 64;
/// How many elements of all classes one task has.
const TASK_ELEMENTS: usize = 1 << 15;
/// Class indices up to here are exact in single precision.
const MOST_CLASSES: i64 = 1 << 24;

/// What is summed up.
#[derive(Debug, Clone)]
pub(crate) struct Regional {
    pub(crate) activation: Activation,
    pub(crate) measure: OverlapMeasure,
    /// The class index whose pixels, or the value in masks whose elements, count nothing.
    pub(crate) ignored: Option<i64>,
    /// A cross entropy of the same softmax.
    pub(crate) entropy: Option<Entropy>,
}

/// A cross entropy to be summed up.
#[derive(Debug, Clone)]
pub(crate) struct Entropy {
    /// The weight of each class; ones where absent.
    pub(crate) weight: Option<Vec<f64>>,
}

/// The sums, in double precision.
pub(crate) struct Sums {
    /// `[N, C]` each: those of the intersections, of the input's regions and of the target's.
    pub(crate) regions: [Tensor; 3],
    /// That of the cross entropies.
    pub(crate) entropy: Option<Tensor>,
    /// That of the weights in it.
    pub(crate) weight: f64,
}

/// Whether the engine is to be asked about an input: it is on the CPU, and has more than a few pixels.
pub(crate) fn takes_region(input: &Tensor) -> bool {
    let size = input.size();
    let enough = size.len() >= 3 && size[2..].iter().product::<i64>() >= FEW_PIXELS;
    enough && takes(input)
}

/// The sums of `input`, `[N, C, d1, ...]`, and `target`, which holds 64-bit class indices or masks. Nothing where the
/// engine does not take the call, which includes class indices out of range.
///
/// `composite` computes, with differentiable operations, those sums that have a gradient: the intersections, the
/// input's regions, the cross entropy where there is one.
pub(crate) fn f_region<C>(
    formula: Regional,
    input: &Tensor,
    target: &Tensor,
    composite: C,
) -> Result<Option<Sums>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Vec<Tensor>, LossError> + Send + 'static,
{
    if input.dim() < 3 || input.numel() == 0 || input.size()[1] > MOST_CLASSES {
        return Ok(None);
    }
    let kind = input.f_kind()?;
    let target_kind = if target.size() == input.size() { kind } else { Kind::Int64 };
    let differentiated = autograd::grad_enabled() && target.requires_grad();
    if !is_plain(input, kind) || !is_plain(target, target_kind) || differentiated {
        return Ok(None);
    }
    match kind {
        Kind::Float => f_run::<f32, C>(formula, input, target, composite),
        Kind::Double => f_run::<f64, C>(formula, input, target, composite),
        Kind::Half => f_run::<f16, C>(formula, input, target, composite),
        Kind::BFloat16 => f_run::<bf16, C>(formula, input, target, composite),
        _ => Ok(None),
    }
}

fn f_run<T, C>(formula: Regional, input: &Tensor, target: &Tensor, composite: C) -> Result<Option<Sums>, LossError>
where
    T: Element,
    C: Fn(&Tensor, &Tensor) -> Result<Vec<Tensor>, LossError> + Send + 'static,
{
    let Some(Totals { regions, entropy, weight }) = Pass::<T>::f_new(&formula, input, target)?.f_sums()? else {
        return Ok(None);
    };
    let [intersection, of_input, of_target] = regions;
    let with_entropy = formula.entropy.is_some();
    let differentiable = [intersection, of_input].into_iter().chain(entropy.filter(|_| with_entropy)).collect();
    let backward = move |context: Context| -> autograd::Gradients {
        let [input, target] = context.saved() else { return Ok(vec![None, None]) };
        let grads: Vec<Option<Tensor>> =
            (0..2 + usize::from(with_entropy)).map(|output| context.grad(output)).collect();
        if context.create_graph() {
            let loss = |inputs: &[Tensor]| f_weighted(&composite(&inputs[0], target)?, &grads);
            let one = Tensor::f_ones([], (Kind::Double, Device::Cpu))?;
            return autograd::f_gradients_of(loss, &one, std::slice::from_ref(input), &[true]);
        }
        let gradient = Pass::<T>::f_new(&formula, input, target)?.f_gradient(&grads)?;
        Ok(vec![Some(gradient)])
    };
    let outputs = Function::new(&[input]).save(&[input, target]).f_attach_own(differentiable, backward)?;
    let mut outputs = outputs.into_iter();
    let mut next = || outputs.next().unwrap_or_default();
    Ok(Some(Sums { regions: [next(), next(), of_target], entropy: with_entropy.then(next), weight }))
}

/// The sums times their gradients, added up.
fn f_weighted(sums: &[Tensor], grads: &[Option<Tensor>]) -> Result<Tensor, LossError> {
    let mut value = Tensor::f_zeros([0_i64; 0], (Kind::Double, Device::Cpu))?;
    for (sum, grad) in sums.iter().zip(grads) {
        let Some(grad) = grad else { continue };
        value = value.f_add(&sum.f_mul(grad)?.f_sum(None)?)?;
    }
    Ok(value)
}

/// The sums as tensors.
struct Totals {
    regions: [Tensor; 3],
    entropy: Option<Tensor>,
    weight: f64,
}

/// A contiguous input and its target.
struct Pass<'a, T> {
    formula: &'a Regional,
    input: Tensor,
    target: Tensor,
    shape: Shape,
    kind: PhantomData<T>,
}

/// The sizes of the input, and of the parts that it is worked on in.
#[derive(Clone, Copy)]
struct Shape {
    samples: usize,
    classes: usize,
    pixels: usize,
    /// The pixels of a block.
    block: usize,
    /// The pixels of a task, a multiple of those of a block.
    task: usize,
}

impl Shape {
    fn new(size: &[i64], masks: bool, softmax: bool) -> Self {
        let (mut samples, mut classes) = (size[0] as usize, size[1] as usize);
        let pixels = size[2..].iter().product::<i64>() as usize;
        // Classes that have nothing to do with each other are like samples, and their elements lie beside each other.
        if masks && !softmax {
            (samples, classes) = (samples * classes, 1);
        }
        // Only a softmax has all classes of a block at hand together.
        let at_once = if softmax { classes } else { 1 };
        let block = (BLOCK_ELEMENTS / at_once).next_multiple_of(LEAST_PIXELS).clamp(LEAST_PIXELS, BLOCK);
        let task = block * (TASK_ELEMENTS / (classes * block)).max(1);
        Self { samples, classes, pixels, block, task }
    }

    fn tasks_of_sample(&self) -> usize {
        self.pixels.div_ceil(self.task)
    }

    fn tasks(&self) -> usize {
        self.samples * self.tasks_of_sample()
    }

    /// The sample of a task.
    fn sample(&self, task: usize) -> usize {
        task / self.tasks_of_sample()
    }

    /// The blocks of a task, as ranges of pixels.
    fn blocks(&self, task: usize) -> impl Iterator<Item = Range<usize>> {
        let start = task % self.tasks_of_sample() * self.task;
        let (end, block) = (self.pixels.min(start + self.task), self.block);
        (start..end).step_by(block).map(move |start| start..end.min(start + block))
    }

    /// The elements of one class.
    fn row(&self, place: &Place, class: usize) -> Range<usize> {
        let start = (place.sample * self.classes + class) * self.pixels;
        start + place.pixels.start..start + place.pixels.end
    }
}

/// Calls a method of a job with the types of the measure and of the target.
macro_rules! by_type {
    ($job:ident.$method:ident($($argument:expr),*)) => {
        match ($job.formula.measure, matches!($job.target, Target::Indices(_))) {
            (OverlapMeasure::Product, true) => $job.$method::<Product, true>($($argument),*),
            (OverlapMeasure::Product, false) => $job.$method::<Product, false>($($argument),*),
            (OverlapMeasure::Squared, true) => $job.$method::<Squared, true>($($argument),*),
            (OverlapMeasure::Squared, false) => $job.$method::<Squared, false>($($argument),*),
            (OverlapMeasure::Minimum, true) => $job.$method::<Minimum, true>($($argument),*),
            (OverlapMeasure::Minimum, false) => $job.$method::<Minimum, false>($($argument),*),
        }
    };
}

impl<'a, T: Element> Pass<'a, T> {
    fn f_new(formula: &'a Regional, input: &Tensor, target: &Tensor) -> Result<Self, LossError> {
        let f_contiguous = |tensor: &Tensor| tensor.f_detach()?.f_contiguous();
        let (masks, softmax) = (target.size() == input.size(), formula.activation == Activation::Softmax);
        let shape = Shape::new(&input.size(), masks, softmax);
        Ok(Self { formula, input: f_contiguous(input)?, target: f_contiguous(target)?, shape, kind: PhantomData })
    }

    fn job(&self) -> Job<'_, T> {
        let target = if self.target.size() == self.input.size() {
            Target::Masks(elements(&self.target))
        } else {
            Target::Indices(integers(&self.target))
        };
        Job { formula: self.formula, shape: self.shape, input: elements(&self.input), target }
    }

    /// The sums; nothing where a class index is out of range.
    fn f_sums(&self) -> Result<Option<Totals>, LossError> {
        let (job, shape) = (self.job(), self.shape);
        let parts: Vec<OnceLock<Option<Part>>> = (0..shape.tasks()).map(|_| OnceLock::new()).collect();
        parallel::each(parts.len(), &|task| {
            let _ = parts[task].set(by_type!(job.sum(task)));
        });
        // The parts are added up in their order, whichever thread computed them.
        let mut regions = [(); 3].map(|()| vec![0.0; shape.samples * shape.classes]);
        let (mut entropy, mut weight) = (0.0, 0.0);
        for (task, part) in parts.into_iter().enumerate() {
            let Some(part) = part.into_inner().flatten() else { return Ok(None) };
            let start = shape.sample(task) * shape.classes;
            for (class, sums) in part.regions.iter().enumerate() {
                (0..3).for_each(|which| regions[which][start + class] += sums[which]);
            }
            entropy += part.entropy;
            weight += part.weight;
        }
        let f_tensor = |sums: &[f64], size: &[i64]| Tensor::f_from_slice(sums)?.f_reshape(size);
        let size = &self.input.size()[..2];
        let [intersection, of_input, of_target] = &regions;
        Ok(Some(Totals {
            regions: [f_tensor(intersection, size)?, f_tensor(of_input, size)?, f_tensor(of_target, size)?],
            entropy: Some(f_tensor(&[entropy], &[])?),
            weight,
        }))
    }

    /// The gradient of the input, given those of the sums.
    fn f_gradient(&self, grads: &[Option<Tensor>]) -> Result<Tensor, LossError> {
        let regions = self.shape.samples * self.shape.classes;
        let f_numbers = |position: usize, count: usize| {
            let Some(grad) = grads.get(position).and_then(Option::as_ref) else {
                return Ok(vec![T::Wide::default(); count]);
            };
            let grad = grad.f_detach()?.f_to_kind(T::Wide::KIND)?;
            Ok::<_, LossError>(elements(&f_plain(&grad.f_contiguous()?)?).to_vec())
        };
        let factors = Factors {
            intersection: f_numbers(0, regions)?,
            size: f_numbers(1, regions)?,
            entropy: f_numbers(2, 1)?[0],
        };
        let output = Output::<T>::f_like(&self.input)?;
        let job = self.job();
        parallel::each(self.shape.tasks(), &|task| {
            by_type!(job.gradient(task, &factors, &output));
        });
        Ok(output.into_tensor())
    }
}

/// What all threads work on.
struct Job<'a, T> {
    formula: &'a Regional,
    shape: Shape,
    input: &'a [T],
    target: Target<'a, T>,
}

enum Target<'a, T> {
    Indices(&'a [i64]),
    Masks(&'a [T]),
}

/// The sums of one task.
struct Part {
    /// Those of each class.
    regions: Vec<[f64; 3]>,
    entropy: f64,
    weight: f64,
}

/// The gradients of the sums.
struct Factors<W> {
    intersection: Vec<W>,
    size: Vec<W>,
    entropy: W,
}

/// Room for one block.
struct Room<W> {
    /// The exponentials of all classes, then their probabilities.
    exponentials: Vec<W>,
    /// The class of each pixel as a number, −1 where it is ignored.
    classes: Block<W>,
    greatest: Block<W>,
    /// The sum of a pixel's exponentials, then its inverse.
    inverse: Block<W>,
    /// Its logarithm.
    logarithm: Block<W>,
    /// What a softmax takes from the derivatives of a pixel.
    mean: Block<W>,
    /// The sum of a pixel's logits less the greatest, times their share and weight.
    picked: Block<W>,
    /// The sum of a pixel's shares times their weight.
    weights: Block<W>,
    /// What is summed up, or a gradient.
    term: Block<W>,
    rows: RowRoom<W>,
}

/// Room for a row of the input and of the target.
struct RowRoom<W> {
    input: Block<W>,
    masked: Block<W>,
    target: Block<W>,
}

impl<W: Wide> Room<W> {
    fn new(exponentials: usize) -> Self {
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
struct Place {
    sample: usize,
    pixels: Range<usize>,
}

impl<T: Element> Job<'_, T> {
    fn room(&self) -> Room<T::Wide> {
        let softmax = self.formula.activation == Activation::Softmax;
        Room::new(if softmax { self.shape.classes * self.shape.block } else { 0 })
    }

    fn places(&self, task: usize) -> impl Iterator<Item = Place> {
        let sample = self.shape.sample(task);
        self.shape.blocks(task).map(move |pixels| Place { sample, pixels })
    }

    /// The sums of a task; nothing where a class index is out of range.
    fn sum<M: Measure, const HARD: bool>(&self, task: usize) -> Option<Part> {
        let mut room = self.room();
        let mut part = Part { regions: vec![[0.0; 3]; self.shape.classes], entropy: 0.0, weight: 0.0 };
        for place in self.places(task) {
            if !self.read_classes(&place, &mut room.classes) {
                return None;
            }
            self.sum_block::<M, HARD>(&place, &mut room, &mut part);
        }
        Some(part)
    }

    fn sum_block<M: Measure, const HARD: bool>(&self, place: &Place, room: &mut Room<T::Wide>, part: &mut Part) {
        let length = place.pixels.len();
        if self.formula.activation == Activation::Softmax {
            self.softmax(place, room);
        }
        if self.formula.entropy.is_some() {
            self.entropy::<HARD>(place, room, part);
        }
        for (class, totals) in part.regions.iter_mut().enumerate() {
            let share = self.share::<HARD>(place, class, &room.classes, &mut room.rows.target);
            let measure = M::default();
            let sums = match self.formula.activation {
                Activation::Softmax => {
                    let start = class * self.shape.block;
                    let input = Softmax(&room.exponentials[start..start + length], &room.inverse[..length]);
                    simd::run(RegionSums { input, share, length, measure })
                }
                Activation::None => {
                    let input = Given(self.read(place, class, &mut room.rows.input));
                    simd::run(RegionSums { input, share, length, measure })
                }
                Activation::Sigmoid => {
                    let input = Sigmoid(self.read(place, class, &mut room.rows.input));
                    simd::run(RegionSums { input, share, length, measure })
                }
            };
            (0..3).for_each(|which| totals[which] += sums[which]);
        }
    }

    /// Adds the cross entropies of a block up, after its softmax.
    fn entropy<const HARD: bool>(&self, place: &Place, room: &mut Room<T::Wide>, part: &mut Part) {
        let length = place.pixels.len();
        let (picked, weights) = (&mut room.picked[..length], &mut room.weights[..length]);
        picked.fill(T::Wide::default());
        weights.fill(T::Wide::default());
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
    fn weight(&self, class: usize) -> T::Wide {
        let weight = self.formula.entropy.as_ref().and_then(|entropy| entropy.weight.as_ref());
        T::Wide::from_f64(weight.map_or(1.0, |weight| weight[class]))
    }

    /// Computes the exponentials of a block and the inverse of their sum, which is 0 where the pixel is ignored.
    fn softmax(&self, place: &Place, room: &mut Room<T::Wide>) {
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
            greatest.fill(T::Wide::from_f64(f64::NEG_INFINITY));
            inverse.fill(T::Wide::default());
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

    fn ignores_pixels(&self) -> bool {
        self.formula.ignored.is_some() && matches!(self.target, Target::Indices(_))
    }

    /// The logits of a class, 0 where the pixel is ignored: what they are there must not matter, not even a NaN.
    fn logits<'b>(
        &'b self,
        place: &Place,
        class: usize,
        classes: &Block<T::Wide>,
        room: &'b mut Block<T::Wide>,
        masked: &'b mut Block<T::Wide>,
    ) -> &'b [T::Wide] {
        let numbers = self.read(place, class, room);
        if !self.ignores_pixels() {
            return numbers;
        }
        let (classes, masked) = (&classes[..numbers.len()], &mut masked[..numbers.len()]);
        simd::run(Masked { numbers: Some(numbers), classes, masked });
        masked
    }

    /// The input of a class.
    fn read<'b>(&'b self, place: &Place, class: usize, room: &'b mut Block<T::Wide>) -> &'b [T::Wide] {
        T::read(&self.input[self.shape.row(place, class)], room)
    }

    /// The shares that the target has in a class.
    fn share<'b, const HARD: bool>(
        &'b self,
        place: &Place,
        class: usize,
        classes: &'b Block<T::Wide>,
        room: &'b mut Block<T::Wide>,
    ) -> Share<'b, T::Wide, HARD> {
        match self.target {
            Target::Indices(_) => {
                Share { numbers: &classes[..place.pixels.len()], key: T::Wide::from_f64(class as f64) }
            }
            Target::Masks(masks) => {
                let ignored = self.formula.ignored.map_or(f64::NAN, |ignored| ignored as f64);
                let numbers = T::read(&masks[self.shape.row(place, class)], room);
                Share { numbers, key: T::Wide::from_f64(ignored) }
            }
        }
    }

    /// Reads the class indices of a block. Whether all of them are in range.
    fn read_classes(&self, place: &Place, classes: &mut Block<T::Wide>) -> bool {
        let Target::Indices(indices) = self.target else { return true };
        let start = place.sample * self.shape.pixels;
        let indices = &indices[start + place.pixels.start..start + place.pixels.end];
        let count = self.shape.classes as i64;
        simd::run(Classes { indices, count, ignored: self.formula.ignored, classes: &mut classes[..indices.len()] })
    }

    /// Writes the gradient of a task.
    fn gradient<M: Measure, const HARD: bool>(&self, task: usize, factors: &Factors<T::Wide>, output: &Output<T>) {
        let mut room = self.room();
        for place in self.places(task) {
            // They were in range in the forward pass, and have not changed since.
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
                    simd::run(Gradients { input: Given(input), share, slopes, gradient });
                }
                self.store(&place, class, gradient, output);
            }
        }
    }

    fn softmax_gradient<M: Measure, const HARD: bool>(
        &self,
        place: &Place,
        room: &mut Room<T::Wide>,
        factors: &Factors<T::Wide>,
        output: &Output<T>,
    ) {
        let length = place.pixels.len();
        self.softmax(place, room);
        let Room { exponentials, classes, inverse, mean, term, rows, .. } = room;
        let (mean, gradient) = (&mut mean[..length], &mut term[..length]);
        mean.fill(T::Wide::default());
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

    fn slopes<M: Measure>(&self, place: &Place, class: usize, factors: &Factors<T::Wide>) -> Slopes<T::Wide, M> {
        let region = place.sample * self.shape.classes + class;
        let entropy = T::Wide::from_f64(factors.entropy.into() * self.weight(class).into());
        let (intersection, size) = (factors.intersection[region], factors.size[region]);
        Slopes { intersection, size, entropy, measure: M::default() }
    }

    fn store(&self, place: &Place, class: usize, numbers: &[T::Wide], output: &Output<T>) {
        // SAFETY: tasks have pixels of their own, and the rows of a task are computed one after another.
        unsafe { output.write(self.shape.row(place, class), numbers) };
    }
}

/// The shares of pixels in a class.
#[derive(Clone, Copy)]
struct Share<'a, W, const HARD: bool> {
    /// The pixels' classes as numbers, −1 where ignored (`HARD`), or the shares themselves.
    numbers: &'a [W],
    /// The class, or the share that is ignored: NaN for none.
    key: W,
}

impl<W: Wide, const HARD: bool> Share<'_, W, HARD> {
    /// Those of some of the pixels.
    #[inline(always)]
    fn part(self, pixels: Range<usize>) -> Self {
        Self { numbers: &self.numbers[pixels], ..self }
    }

    #[inline(always)]
    fn at<R: LaneOf<W>>(self, pixel: usize) -> PixelShare<R, HARD> {
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
struct PixelShare<R, const HARD: bool> {
    /// Whether it is not ignored.
    counts: bool,
    /// Whether it is 1, for class indices.
    whole: bool,
    value: R,
}

impl<R: Real, const HARD: bool> PixelShare<R, HARD> {
    /// `number` times the share. What class indices leave out does not matter, not even where it is infinite.
    #[inline(always)]
    fn of(self, number: R) -> R {
        if HARD { choose(self.whole, number, R::of(0.0)) } else { self.value * number }
    }
}

/// How regions are measured: the engine's side of [`OverlapMeasure`].
trait Measure: Copy + Default {
    /// What a pixel with the probability `p` contributes to the intersection, and the derivative.
    fn intersection<R: Real, const HARD: bool>(p: R, share: PixelShare<R, HARD>) -> (R, R);
    /// What it contributes to the size, and the derivative.
    fn size<R: Real>(p: R) -> (R, R);
}

#[derive(Clone, Copy, Default)]
struct Product;
#[derive(Clone, Copy, Default)]
struct Squared;
#[derive(Clone, Copy, Default)]
struct Minimum;

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
        let (zero, one) = (R::of(0.0), R::of(1.0));
        if HARD {
            return (share.of(p.at_most(one)), share.of(choose(p > one, zero, one)));
        }
        let t = share.value;
        // Where both are the same, each has half of the gradient, as in PyTorch.
        let slope = choose(p > t, zero, choose(p == t, R::of(0.5), one));
        // NaN where either of them is.
        (choose(p >= t, t, choose(p < t, p, p + t)), slope)
    }

    #[inline(always)]
    fn size<R: Real>(p: R) -> (R, R) {
        (p, R::of(1.0))
    }
}

/// The probabilities of pixels in a class.
trait Probabilities<W>: Copy {
    /// Those of some of the pixels.
    fn part(self, pixels: Range<usize>) -> Self;
    /// The probability of a pixel, and its derivative by the pixel's input where it depends on nothing else.
    fn at<R: LaneOf<W>>(self, pixel: usize) -> (R, R);
}

#[derive(Clone, Copy)]
struct Given<'a, W>(&'a [W]);
#[derive(Clone, Copy)]
struct Sigmoid<'a, W>(&'a [W]);
/// Exponentials and the inverse of their sum.
#[derive(Clone, Copy)]
struct Softmax<'a, W>(&'a [W], &'a [W]);

impl<W: Wide> Probabilities<W> for Given<'_, W> {
    #[inline(always)]
    fn part(self, pixels: Range<usize>) -> Self {
        Self(&self.0[pixels])
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
struct Slopes<W, M> {
    intersection: W,
    size: W,
    /// Times the weight of the class.
    entropy: W,
    #[allow(dead_code)]
    measure: M,
}

impl<W: Wide, M: Measure> Slopes<W, M> {
    /// The derivative of the sums over regions by the probability of a pixel.
    #[inline(always)]
    fn by_probability<R: LaneOf<W>, const HARD: bool>(self, p: R, share: PixelShare<R, HARD>) -> R {
        let slope = M::intersection(p, share).1;
        let of_size = R::new(self.size) * M::size(p).1;
        choose(share.counts, R::new(self.intersection).mul_add(slope, of_size), R::of(0.0))
    }
}

/// The class indices of pixels as numbers. Returns whether all of them are in range.
struct Classes<'a, W> {
    indices: &'a [i64],
    count: i64,
    ignored: Option<i64>,
    classes: &'a mut [W],
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

/// Numbers, those there are already where none are given, with 0 in place of those of ignored pixels.
struct Masked<'a, W> {
    numbers: Option<&'a [W]>,
    classes: &'a [W],
    masked: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Masked<'_, W> {
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

/// The exponentials of the logits themselves, and their sums so far. Returns whether all logits are [`MODERATE`]; if not, the rest
/// is worthless.
struct Powers<'a, W> {
    logits: &'a [W],
    exponentials: &'a mut [W],
    sums: &'a mut [W],
    /// Whether there are no sums yet.
    first: bool,
}

impl<W: Wide> Kernel<W> for Powers<'_, W> {
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

/// The greatest logit of each pixel so far.
struct Greatest<'a, W> {
    logits: &'a [W],
    greatest: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Greatest<'_, W> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let logits = &self.logits[..self.greatest.len()];
        for (greatest, &logit) in self.greatest.iter_mut().zip(logits) {
            *greatest = R::new(*greatest).max(R::new(logit)).get();
        }
    }
}

/// The exponentials of the logits less the greatest, and their sums so far.
struct Exponentials<'a, W> {
    logits: &'a [W],
    greatest: &'a [W],
    exponentials: &'a mut [W],
    sums: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Exponentials<'_, W> {
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

struct Logarithms<'a, W> {
    sums: &'a [W],
    logarithms: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Logarithms<'_, W> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let sums = &self.sums[..self.logarithms.len()];
        for (logarithm, &sum) in self.logarithms.iter_mut().zip(sums) {
            *logarithm = R::new(sum).ln().get();
        }
    }
}

/// One divided by numbers, in their place.
struct Inverses<'a, W>(&'a mut [W]);

impl<W: Wide> Kernel<W> for Inverses<'_, W> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        for number in self.0 {
            *number = (R::of(1.0) / R::new(*number)).get();
        }
    }
}

/// The sums over the regions of pixels: of the intersection, of the input's and of the target's.
struct RegionSums<P, S, M> {
    input: P,
    share: S,
    length: usize,
    #[allow(dead_code)]
    measure: M,
}

impl<W, P, M, const HARD: bool> Kernel<W> for RegionSums<P, Share<'_, W, HARD>, M>
where
    W: Wide,
    P: Probabilities<W>,
    M: Measure,
{
    type Result = [f64; 3];

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> [f64; 3] {
        let mut sums = [[W::default(); LANES]; 3];
        for start in (0..self.length).step_by(LANES) {
            let group = start..self.length.min(start + LANES);
            let (input, share) = (self.input.part(group.clone()), self.share.part(group.clone()));
            match group.len() {
                // So many are a loop without a rest.
                LANES => add::<W, R, P, M, HARD>(input.part(0..LANES), share.part(0..LANES), LANES, &mut sums),
                length => add::<W, R, P, M, HARD>(input, share, length, &mut sums),
            }
        }
        // Not `map`, which would not be compiled for the instruction set.
        [total(sums[0]), total(sums[1]), total(sums[2])]
    }
}

/// Adds what `length` pixels contribute to the first of the sums.
#[inline(always)]
fn add<W: Wide, R: LaneOf<W>, P: Probabilities<W>, M: Measure, const HARD: bool>(
    input: P,
    share: Share<W, HARD>,
    length: usize,
    sums: &mut [[W; LANES]; 3],
) {
    for i in 0..length {
        let share = share.at::<R>(i);
        let p = choose(share.counts, input.at::<R>(i).0, R::of(0.0));
        sums[0][i] = (R::new(sums[0][i]) + M::intersection(p, share).0).get();
        sums[1][i] = (R::new(sums[1][i]) + M::size(p).0).get();
        sums[2][i] = (R::new(sums[2][i]) + M::size(share.value).0).get();
    }
}

/// What the class of a logit adds to the cross entropy of each pixel.
struct Picked<'a, W, const HARD: bool> {
    logits: &'a [W],
    greatest: &'a [W],
    share: Share<'a, W, HARD>,
    weight: W,
    picked: &'a mut [W],
    weights: &'a mut [W],
}

impl<W: Wide, const HARD: bool> Kernel<W> for Picked<'_, W, HARD> {
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

/// The cross entropy of each pixel.
struct Entropies<'a, W> {
    logarithm: &'a [W],
    picked: &'a [W],
    weights: &'a [W],
    term: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Entropies<'_, W> {
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

/// The gradients of inputs that their probabilities alone depend on.
struct Gradients<'a, W, P, M, const HARD: bool> {
    input: P,
    share: Share<'a, W, HARD>,
    slopes: Slopes<W, M>,
    gradient: &'a mut [W],
}

impl<W: Wide, P: Probabilities<W>, M: Measure, const HARD: bool> Kernel<W> for Gradients<'_, W, P, M, HARD> {
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

/// The probabilities, in place of their exponentials, and what a softmax takes from their derivatives, so far.
struct Means<'a, W, M, const HARD: bool> {
    probabilities: &'a mut [W],
    inverse: &'a [W],
    share: Share<'a, W, HARD>,
    slopes: Slopes<W, M>,
    mean: &'a mut [W],
}

impl<W: Wide, M: Measure, const HARD: bool> Kernel<W> for Means<'_, W, M, HARD> {
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

/// The gradients of the logits of a softmax.
struct SoftmaxGradients<'a, W, M, const HARD: bool> {
    probabilities: &'a [W],
    share: Share<'a, W, HARD>,
    slopes: Slopes<W, M>,
    mean: &'a [W],
    gradient: &'a mut [W],
}

impl<W: Wide, M: Measure, const HARD: bool> Kernel<W> for SoftmaxGradients<'_, W, M, HARD> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Backend, CrossEntropyLoss, DiceCrossEntropyLoss, DiceLoss, GeneralizedDiceLoss, JaccardLoss, Loss, MeanOver,
        Reduction, TverskyLoss, with_backend,
    };

    const MEASURES: [OverlapMeasure; 3] = [OverlapMeasure::Product, OverlapMeasure::Squared, OverlapMeasure::Minimum];
    const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Sigmoid, Activation::Softmax];
    /// One pixel, one class, blocks with and without a rest, several tasks, more classes than fit a block.
    const SHAPES: [[i64; 4]; 9] = [
        [1, 1, 1, 1],
        [2, 3, 1, 1],
        [1, 1, 5, 7],
        [2, 4, 3, 11],
        [3, 2, 32, 32],
        [1, 5, 41, 101],
        [2, 3, 180, 190],
        [1, 150, 20, 20],
        [1, 9000, 1, 3],
    ];

    fn uniform(size: &[i64], kind: Kind) -> Tensor {
        Tensor::rand(size, (Kind::Double, Device::Cpu)).to_kind(kind)
    }

    /// An input that fits the activation.
    fn input(size: &[i64], activation: Activation) -> Tensor {
        match activation {
            Activation::None => uniform(size, Kind::Double),
            Activation::Sigmoid | Activation::Softmax => Tensor::randn(size, (Kind::Double, Device::Cpu)) * 3,
        }
    }

    fn classes(size: &[i64]) -> Tensor {
        Tensor::randint(size[1], [size[0], size[2], size[3]], (Kind::Int64, Device::Cpu))
    }

    fn one_hot(classes: &Tensor, count: i64, kind: Kind) -> Tensor {
        classes.one_hot(count).movedim_int(-1, 1).to_kind(kind).contiguous()
    }

    /// The sums by the engine, and their gradient for factors of the sums.
    fn fused(formula: &Regional, input: &Tensor, target: &Tensor) -> Option<(Vec<Tensor>, Tensor)> {
        let input = input.detach().set_requires_grad(true);
        let sums = f_region(formula.clone(), &input, target, |_, _| panic!("no second order here")).unwrap()?;
        let [intersection, size, of_target] = sums.regions;
        let gradient = gradient(&[&intersection, &size], sums.entropy.as_ref(), &input);
        let mut all = vec![intersection.detach(), size.detach(), of_target];
        all.extend(sums.entropy.map(|entropy| entropy.detach()));
        all.push(Tensor::from_slice(&[sums.weight]));
        Some((all, gradient))
    }

    fn gradient(regions: &[&Tensor], entropy: Option<&Tensor>, input: &Tensor) -> Tensor {
        let mut value = Tensor::zeros([0_i64; 0], (regions[0].kind(), Device::Cpu));
        for (position, sums) in regions.iter().enumerate() {
            let count = sums.numel() as i64;
            let factors = (Tensor::arange(count, (sums.kind(), Device::Cpu)) + (position + 1) as f64).sin();
            value += (factors.view_as(sums) * *sums).sum(None);
        }
        if let Some(entropy) = entropy {
            value += entropy * 0.75;
        }
        Tensor::run_backward(&[value], &[input], false, false).remove(0)
    }

    /// The same by a definition in tensor operations: of masks, of which class indices are made into some.
    fn defined(formula: &Regional, input: &Tensor, target: &Tensor) -> (Vec<Tensor>, Tensor) {
        let input = input.detach().set_requires_grad(true);
        let count = input.size()[1];
        let (mask, counts) = if target.size() == input.size() {
            let ignored = formula.ignored.map(|ignored| target.eq(ignored));
            let counts =
                ignored.map_or_else(|| target.ones_like(), |ignored| ignored.logical_not().to_kind(input.kind()));
            (target * &counts, counts)
        } else {
            let ignored = target.eq(formula.ignored.unwrap_or(i64::MIN));
            let counts = ignored.logical_not().unsqueeze(1).to_kind(input.kind());
            (one_hot(&target.masked_fill(&ignored, 0), count, input.kind()) * &counts, counts)
        };
        let p = match formula.activation {
            Activation::None => input.shallow_clone(),
            Activation::Sigmoid => input.sigmoid(),
            Activation::Softmax => input.softmax(1, input.kind()),
        } * &counts;
        let pixels = |tensor: &Tensor| tensor.flatten(2, -1).sum_dim_intlist(-1, false, None);
        let (intersection, size, of_target) = match formula.measure {
            OverlapMeasure::Product => (pixels(&(&p * &mask)), pixels(&p), pixels(&mask)),
            OverlapMeasure::Squared => (pixels(&(&p * &mask)), pixels(&p.square()), pixels(&mask.square())),
            OverlapMeasure::Minimum => (pixels(&p.minimum(&mask)), pixels(&p), pixels(&mask)),
        };
        let mut all = vec![intersection.detach(), size.detach(), of_target];
        let entropy = formula.entropy.as_ref().map(|entropy| {
            let weight = Tensor::from_slice(&entropy.weight.clone().unwrap_or_else(|| vec![1.0; count as usize]));
            let weights = &mask * weight.view([1, -1, 1, 1]);
            all.push(weights.sum(None));
            -(input.log_softmax(1, input.kind()) * weights).sum(None)
        });
        let weight = if entropy.is_some() { all.remove(3) } else { Tensor::from(0.0) };
        let gradient = gradient(&[&intersection, &size], entropy.as_ref(), &input);
        all.extend(entropy.map(|entropy| entropy.detach()));
        all.push(weight.view(1));
        (all, gradient)
    }

    #[track_caller]
    fn assert_close(actual: &Tensor, expected: &Tensor, relative: f64, absolute: f64, name: &str) {
        assert_eq!((actual.size(), actual.kind()), (expected.size(), expected.kind()), "{name}");
        let largest = (actual - expected).abs().max().double_value(&[]);
        assert!(actual.allclose(expected, relative, absolute, false), "{name}: {largest:e}");
    }

    #[track_caller]
    fn assert_as_defined(formula: &Regional, input: &Tensor, target: &Tensor) {
        let name = format!("{formula:?} {:?} {:?}", input.size(), target.kind());
        let (sums, gradient) = fused(formula, input, target).unwrap_or_else(|| panic!("{name} is not taken"));
        let (expected, expected_gradient) = defined(formula, input, target);
        assert_eq!(sums.len(), expected.len());
        for (actual, expected) in sums.iter().zip(&expected) {
            assert_close(actual, expected, 1e-12, 1e-12, &name);
        }
        assert_close(&gradient, &expected_gradient, 1e-10, 1e-14, &name);
    }

    /// Each form of a target, with what is ignored in it.
    fn targets(size: &[i64]) -> Vec<(Tensor, Option<i64>)> {
        let classes = classes(size);
        let hidden = Tensor::rand(classes.size(), (Kind::Double, Device::Cpu)).lt(0.3);
        let soft = uniform(size, Kind::Double);
        let some = Tensor::rand(size, (Kind::Double, Device::Cpu)).lt(0.3);
        vec![
            (classes.masked_fill(&hidden, 255), Some(255)),
            (classes.masked_fill(&hidden, -100), Some(-100)),
            (classes.shallow_clone(), Some(0)),
            (one_hot(&classes, size[1], Kind::Double), None),
            (soft.masked_fill(&some, 255), Some(255)),
            (soft, None),
            (classes, None),
        ]
    }

    #[test]
    fn the_sums_and_their_gradient_are_as_defined() {
        tch::manual_seed(1);
        for size in SHAPES {
            for (target, ignored) in targets(&size) {
                for activation in ACTIVATIONS {
                    // `Regions::f_fused` leaves that to the composite.
                    let single = size[1] == 1 && activation == Activation::Softmax;
                    let input = input(&size, activation);
                    for measure in MEASURES.into_iter().filter(|_| !single || ignored.is_none()) {
                        let formula = Regional { activation, measure, ignored, entropy: None };
                        assert_as_defined(&formula, &input, &target);
                    }
                }
            }
        }
    }

    #[test]
    fn so_is_the_cross_entropy() {
        tch::manual_seed(2);
        for size in SHAPES {
            for (target, ignored) in targets(&size) {
                if target.size() == size && ignored.is_some() {
                    continue;
                }
                let input = input(&size, Activation::Softmax);
                for weight in [None, Some(Vec::try_from(uniform(&size[1..2], Kind::Double)).unwrap())] {
                    let entropy = Some(Entropy { weight });
                    let (activation, measure) = (Activation::Softmax, OverlapMeasure::Product);
                    assert_as_defined(&Regional { activation, measure, ignored, entropy }, &input, &target);
                }
            }
        }
    }

    #[test]
    fn any_layout_is_taken() {
        tch::manual_seed(3);
        let size = [2, 4, 6, 5];
        for (target, ignored) in targets(&size) {
            let formula =
                Regional { activation: Activation::Softmax, measure: OverlapMeasure::Product, ignored, entropy: None };
            let double = (Kind::Double, Device::Cpu);
            let layouts = [
                Tensor::randn([2, 4, 5, 6], double).transpose(2, 3),
                Tensor::randn([2, 6, 5, 4], double).permute([0, 3, 1, 2]),
                Tensor::randn([4, 2, 6, 5], double).transpose(0, 1),
                Tensor::randn([2, 4, 6, 10], double).slice(3, 1, 10, 2),
                Tensor::randn([2, 1, 6, 5], double).expand(size, false),
            ];
            for input in layouts {
                assert_as_defined(&formula, &input, &target);
                let strided = Tensor::stack(&[&target, &target], -1).select(-1, 1);
                assert_as_defined(&formula, &input, &strided);
            }
        }
    }

    #[test]
    fn equal_probabilities_and_shares_divide_the_gradient_as_in_pytorch() {
        let size = [1, 2, 4, 5];
        let masks = Tensor::randint(2, size, (Kind::Double, Device::Cpu));
        let (activation, measure) = (Activation::None, OverlapMeasure::Minimum);
        let formula = Regional { activation, measure, ignored: None, entropy: None };
        assert_as_defined(&formula, &masks, &masks.copy());
    }

    #[test]
    fn a_result_does_not_depend_on_the_number_of_threads() {
        tch::manual_seed(4);
        let size = [3, 5, 90, 111];
        let threads = tch::get_num_threads();
        for (target, ignored) in [(classes(&size), None), (uniform(&size, Kind::Float), None)] {
            let input = input(&size, Activation::Softmax).to_kind(Kind::Float);
            let entropy = Some(Entropy { weight: None });
            let formula =
                Regional { activation: Activation::Softmax, measure: OverlapMeasure::Product, ignored, entropy };
            let results = [1, 2, 3, 8].map(|threads| {
                tch::set_num_threads(threads);
                fused(&formula, &input, &target).unwrap()
            });
            tch::set_num_threads(threads);
            let [first, others @ ..] = &results;
            for (sums, gradient) in others {
                assert_eq!((sums, gradient), (&first.0, &first.1));
            }
        }
    }

    #[test]
    fn a_class_out_of_range_is_not_taken() {
        let size = [1, 3, 4, 5];
        for wrong in [-1, 3, i64::MIN, i64::MAX, 1 << 32] {
            let target = classes(&size);
            let _ = target.get(0).get(2).get(3).fill_(wrong);
            for ignored in [None, Some(255)] {
                let formula =
                    Regional { activation: Activation::None, measure: OverlapMeasure::Product, ignored, entropy: None };
                let sums = f_region(formula, &uniform(&size, Kind::Float), &target, |_, _| Ok(vec![])).unwrap();
                assert!(sums.is_none(), "{wrong}");
            }
        }
    }

    /// Losses that the engine serves: with class indices, and with masks.
    fn losses() -> Vec<Box<dyn Loss>> {
        let softmax = Activation::Softmax;
        let dice = || DiceLoss::new().activation(softmax);
        let weight = Tensor::from_slice(&[0.5, 1.0, 2.0]);
        let all = CrossEntropyLoss::new().mean_over(MeanOver::All);
        let sum = CrossEntropyLoss::new().reduction(Reduction::Sum);
        vec![
            Box::new(dice()),
            Box::new(dice().measure(OverlapMeasure::Squared).include_background(false)),
            Box::new(DiceLoss::new().activation(Activation::Sigmoid).measure(OverlapMeasure::Minimum)),
            Box::new(JaccardLoss::new().activation(softmax).log_loss(true)),
            Box::new(TverskyLoss::new().activation(Activation::Sigmoid).alpha(0.3)),
            Box::new(GeneralizedDiceLoss::new().activation(softmax)),
            Box::new(DiceCrossEntropyLoss::new()),
            Box::new(DiceCrossEntropyLoss::new().cross_entropy(CrossEntropyLoss::new().weight(weight)).lambda_ce(0.5)),
            Box::new(DiceCrossEntropyLoss::new().cross_entropy(all).overlap(dice().reduction(Reduction::None))),
            Box::new(
                DiceCrossEntropyLoss::new().cross_entropy(sum).overlap(GeneralizedDiceLoss::new().activation(softmax)),
            ),
        ]
    }

    /// The loss, its gradient, and the gradient of a sum over that.
    fn orders(forward: &dyn Fn(&Tensor) -> Tensor, input: &Tensor) -> [Tensor; 3] {
        let leaf = input.detach().copy().set_requires_grad(true);
        let value = forward(&leaf);
        // Squared, so that the gradient of the loss depends on the input as well.
        let gradient = Tensor::run_backward(&[value.square().sum(None)], &[&leaf], true, true).remove(0);
        let direction = Tensor::arange(leaf.numel() as i64, (leaf.kind(), Device::Cpu)).sin().view_as(&leaf);
        let second = Tensor::run_backward(&[(&gradient * direction).sum(None)], &[&leaf], false, false).remove(0);
        [value.detach(), gradient.detach(), second]
    }

    #[track_caller]
    fn assert_orders(actual: &dyn Fn(&Tensor) -> Tensor, expected: &dyn Fn(&Tensor) -> Tensor, name: &str) {
        let logits = input(&[2, 3, 6, 7], Activation::Softmax);
        let actual = with_backend(Backend::Auto, || orders(actual, &logits));
        let expected = with_backend(Backend::Composite, || orders(expected, &logits));
        for (order, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            assert_close(actual, expected, 1e-10, 1e-12, &format!("{name}, order {order}"));
        }
    }

    #[test]
    fn losses_are_those_of_tensor_operations_to_second_order() {
        tch::manual_seed(5);
        let size = [2, 3, 6, 7];
        let weight = || Tensor::from_slice(&[0.5, 1.0, 2.0]);
        for target in [classes(&size), uniform(&size, Kind::Double), classes(&size).to_kind(Kind::Int)] {
            for (position, loss) in losses().iter().enumerate().take(6) {
                let forward = |input: &Tensor| loss.forward(input, &target);
                assert_orders(&forward, &forward, &format!("loss {position}"));
            }
            let both = DiceCrossEntropyLoss::new().cross_entropy(CrossEntropyLoss::new().weight(weight()));
            let dice = DiceLoss::new().activation(Activation::Softmax);
            let entropy = CrossEntropyLoss::new().weight(weight());
            let sum = |input: &Tensor| dice.forward(input, &target) + entropy.forward(input, &target);
            assert_orders(&|input| both.forward(input, &target), &sum, "Dice and cross entropy");
        }
    }

    #[test]
    fn lower_precision_is_computed_in_single() {
        tch::manual_seed(6);
        let size = [2, 3, 40, 41];
        for (kind, tolerance) in [(Kind::Float, 1.3e-6), (Kind::Half, 1e-3), (Kind::BFloat16, 1.6e-2)] {
            let logits = input(&size, Activation::Softmax).to_kind(kind);
            for target in [classes(&size), uniform(&size, kind)] {
                for (position, loss) in losses().iter().enumerate().filter(|(position, _)| *position != 7) {
                    let of = |backend, kind: Kind| {
                        let target = if target.kind() == Kind::Int64 { target.copy() } else { target.to_kind(kind) };
                        let leaf = logits.to_kind(kind).detach().set_requires_grad(true);
                        let value = with_backend(backend, || loss.forward(&leaf, &target));
                        let gradient = Tensor::run_backward(&[value.sum(None)], &[&leaf], false, false).remove(0);
                        [value.detach(), gradient]
                    };
                    let expected = of(Backend::Composite, Kind::Double).map(|tensor| tensor.to_kind(kind));
                    for (actual, expected) in of(Backend::Auto, kind).iter().zip(&expected) {
                        let scale = expected.abs().max().double_value(&[]);
                        let name = format!("{kind:?}, loss {position}");
                        assert_close(actual, expected, tolerance, tolerance * scale, &name);
                    }
                }
            }
        }
    }

    #[test]
    fn large_logits_have_a_finite_loss() {
        let size = [1, 3, 5, 6];
        let logits = Tensor::randint_low(-1, 2, size, (Kind::Float, Device::Cpu)) * 1e4;
        let target = classes(&size);
        for loss in losses().iter().take(7) {
            let leaf = logits.copy().set_requires_grad(true);
            let value = with_backend(Backend::Auto, || loss.forward(&leaf, &target));
            value.backward();
            assert!(value.double_value(&[]).is_finite());
            assert_eq!(leaf.grad().isfinite().all().int64_value(&[]), 1);
        }
    }

    #[test]
    fn a_gradient_is_computed_for_what_needs_one() {
        let size = [1, 3, 5, 6];
        let (logits, masks) = (input(&size, Activation::Softmax), uniform(&size, Kind::Double));
        for loss in losses() {
            for [of_input, of_target] in [[false, false], [true, false], [false, true], [true, true]] {
                let results = [Backend::Auto, Backend::Composite].map(|backend| {
                    let input = logits.copy().set_requires_grad(of_input);
                    let target = masks.copy().set_requires_grad(of_target);
                    let value = with_backend(backend, || loss.forward(&input, &target)).sum(None);
                    assert_eq!(value.requires_grad(), of_input || of_target);
                    if value.requires_grad() {
                        value.backward();
                    }
                    [input.grad(), target.grad()]
                });
                let [actual, expected] = &results;
                for ((actual, expected), needed) in actual.iter().zip(expected).zip([of_input, of_target]) {
                    assert_eq!((actual.defined(), expected.defined()), (needed, needed));
                    if needed {
                        assert_close(actual, expected, 1e-10, 1e-14, "gradient");
                    }
                }
            }
        }
    }

    #[test]
    fn a_target_changed_before_the_backward_pass_is_an_error() {
        let size = [1, 2, 5, 6];
        let (input, mut target) = (input(&size, Activation::Softmax).set_requires_grad(true), classes(&size));
        let loss =
            with_backend(Backend::Auto, || DiceLoss::new().activation(Activation::Softmax).forward(&input, &target));
        let _ = target.fill_(0);
        assert!(loss.f_backward().is_err());
    }
}
