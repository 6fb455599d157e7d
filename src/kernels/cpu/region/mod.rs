//! The engine of losses that are a function of sums over the pixels of each class: Dice, Jaccard, Tversky, and their
//! sum with cross entropy.
//!
//! One pass over the input and the target gives the sums, a second one the gradient. Neither probabilities nor one-hot
//! masks are kept: the softmax of a block of pixels is computed when it is needed, in either pass.
//!
//! * `measure` says what a pixel contributes to the sums, and the derivatives.
//! * `loops` has the kernels over the pixels of a block.
//! * `job` calls these for the blocks of a task: the sums (`Job::sum`) and the gradient (`Job::gradient`).
//! * This file has the call: which ones are taken, the tasks, the graph.

mod job;
mod loops;
mod measure;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;
use std::ops::{Range, RangeInclusive};
use std::sync::OnceLock;

use tch::{Kind, Tensor};

use super::{BLOCK, parallel};
use crate::kernels::cpu::elements::{Numbers, elements, f_numbers, integers, is_plain};
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::output::Output;
use crate::kernels::measure::{Minimum, Product, Squared};
use crate::kernels::region::{Entropy, Regional, Total, Totals};
use crate::kernels::tensors::{f_contiguous, f_plain};
use crate::{Activation, LossError, OverlapMeasure};
use job::{Factors, Job, Part, Place, Target};

/// How many elements of all classes a block has, so that they fit the first-level and second-level caches.
const BLOCK_ELEMENTS: usize = 8192;
/// How many pixels a block of many classes has at least, so that vectors are full.
const LEAST_PIXELS: usize = 64;
/// How many elements of all classes one task has.
const TASK_ELEMENTS: usize = 1 << 15;

/// Which sums are computed, without tensors, so that threads can share it.
struct Options {
    activation: Activation,
    measure: OverlapMeasure,
    ignored: Option<i64>,
    expected: RangeInclusive<f64>,
    entropy: Option<HostEntropy>,
}

/// The options of the cross entropy: the weight of each class, 1 for each where absent.
struct HostEntropy {
    weight: Option<Vec<f64>>,
}

impl Options {
    fn f_of(formula: &Regional) -> Result<Self, LossError> {
        let &Regional { activation, measure, ignored, .. } = formula;
        let f_host = |entropy: &Entropy| {
            let weight = entropy.weight.as_ref().map(f_numbers).transpose()?;
            Ok::<_, LossError>(HostEntropy { weight })
        };
        let entropy = formula.entropy.as_ref().map(f_host).transpose()?;
        Ok(Self { activation, measure, ignored, expected: formula.expected.clone(), entropy })
    }
}

/// Whether the engine takes these planes.
pub(in crate::kernels) fn takes(input: &Tensor, target: &Tensor, kind: Kind) -> Result<bool, LossError> {
    let target_kind = if target.size() == input.size() { kind } else { Kind::Int64 };
    Ok(is_plain(input, kind) && is_plain(target, target_kind))
}

/// The sums; `None` where a class index, a mask or a probability is out of range.
pub(in crate::kernels) fn f_sums(
    formula: &Regional,
    input: &Tensor,
    target: &Tensor,
) -> Result<Option<Totals>, LossError> {
    match input.f_kind()? {
        Kind::Double => Pass::<f64>::f_new(&Options::f_of(formula)?, input, target)?.f_sums(),
        _ => Pass::<f32>::f_new(&Options::f_of(formula)?, input, target)?.f_sums(),
    }
}

/// The gradient of the input, given those of the sums.
pub(in crate::kernels) fn f_gradient(
    formula: &Regional,
    input: &Tensor,
    target: &Tensor,
    grads: &[Option<Tensor>],
) -> Result<Tensor, LossError> {
    match input.f_kind()? {
        Kind::Double => Pass::<f64>::f_new(&Options::f_of(formula)?, input, target)?.f_gradient(grads),
        _ => Pass::<f32>::f_new(&Options::f_of(formula)?, input, target)?.f_gradient(grads),
    }
}

/// One pass over a contiguous input and its target: for the sums or for the gradient.
struct Pass<'a, W> {
    formula: &'a Options,
    input: Tensor,
    target: Tensor,
    shape: Shape,
    kind: PhantomData<W>,
}

/// The sizes of the input, and of the blocks and tasks that it is cut into.
#[derive(Clone, Copy)]
struct Shape {
    samples: usize,
    classes: usize,
    pixels: usize,
    /// How many pixels a block has.
    block: usize,
    /// How many pixels a task has, a multiple of those of a block.
    task: usize,
}

impl Shape {
    fn new(size: &[i64], masks: bool, softmax: bool) -> Self {
        let (mut samples, mut classes) = (size[0] as usize, size[1] as usize);
        let pixels = size[2..].iter().product::<i64>() as usize;
        // Without a softmax the classes of masks do not depend on each other. They are treated as samples of one class,
        // whose pixels lie side by side.
        if masks && !softmax {
            (samples, classes) = (samples * classes, 1);
        }
        // A softmax keeps all classes of a block at once; otherwise a block is of one class at a time.
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

    /// The positions of the elements of one class of a block.
    fn row(&self, place: &Place, class: usize) -> Range<usize> {
        let start = (place.sample * self.classes + class) * self.pixels;
        start + place.pixels.start..start + place.pixels.end
    }
}

/// Calls a method of a job with the types of the measure and of the target, for which kernels are compiled.
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

impl<'a, W: Wide> Pass<'a, W> {
    fn f_new(formula: &'a Options, input: &Tensor, target: &Tensor) -> Result<Self, LossError> {
        let (masks, softmax) = (target.size() == input.size(), formula.activation == Activation::Softmax);
        let shape = Shape::new(&input.size(), masks, softmax);
        Ok(Self { formula, input: f_contiguous(input)?, target: f_contiguous(target)?, shape, kind: PhantomData })
    }

    fn job(&self) -> Job<'_, W> {
        let target = if self.target.size() == self.input.size() {
            Target::Masks(Numbers::of(&self.target))
        } else {
            Target::Indices(integers(&self.target))
        };
        Job { formula: self.formula, shape: self.shape, input: Numbers::of(&self.input), target }
    }

    /// The sums; `None` where a class index, a mask or a probability is out of range.
    fn f_sums(&self) -> Result<Option<Totals>, LossError> {
        let (job, shape) = (self.job(), self.shape);
        let parts: Vec<OnceLock<Option<Part>>> = (0..shape.tasks()).map(|_| OnceLock::new()).collect();
        parallel::each(parts.len(), job.input.len(), &|task| {
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
            entropy: f_tensor(&[entropy], &[])?,
            weight: Total::Number(weight),
            valid: None,
        }))
    }

    /// The gradient of the input, given those of the sums.
    fn f_gradient(&self, grads: &[Option<Tensor>]) -> Result<Tensor, LossError> {
        let regions = self.shape.samples * self.shape.classes;
        let f_numbers = |position: usize, count: usize| {
            let Some(grad) = grads.get(position).and_then(Option::as_ref) else {
                return Ok(vec![W::default(); count]);
            };
            let grad = f_plain(grad)?.f_detach()?.f_to_kind(W::KIND)?;
            Ok::<_, LossError>(elements::<W>(&grad.f_contiguous()?).to_vec())
        };
        let factors = Factors {
            intersection: f_numbers(0, regions)?,
            size: f_numbers(1, regions)?,
            entropy: f_numbers(2, 1)?[0],
        };
        let output = Output::<W>::f_like(&self.input)?;
        let job = self.job();
        parallel::each(self.shape.tasks(), job.input.len(), &|task| {
            by_type!(job.gradient(task, &factors, &output));
        });
        Ok(output.into_tensor())
    }
}
