//! The engine of functions of each element with several results, each in a plane of its own: the products that SSIM
//! then sums up under a window.
//!
//! The planes are in double precision. The backward pass reads the arguments again.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::elements::{Block, elements, is_plain};
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::simd::{self, Kernel};
use super::{BLOCK, parallel};
use crate::LossError;
use crate::autograd::{self, Context};
use crate::kernels::backend;
use crate::kernels::engine::{Composite, f_with_graph};
use crate::kernels::formulas::{Map, TypedMap};
use crate::kernels::tensors::{f_all_contiguous, f_contiguous};

/// The results of a formula, as planes in double precision; see [`f_map`](crate::kernels::f_map).
pub(in crate::kernels) fn f_planes(
    formula: Box<dyn Formula>,
    planes: usize,
    arguments: &[&Tensor],
    composite: Composite,
) -> Result<Tensor, LossError> {
    let (kind, size) = (arguments[0].f_kind()?, arguments[0].size());
    if !backend::fused() || !arguments.iter().all(|argument| is_plain(argument, kind) && argument.size() == size) {
        return composite(arguments);
    }
    match kind {
        Kind::Float => f_run::<f32>(formula, |formula| formula, planes, arguments, composite),
        Kind::Double => f_run::<f64>(formula, |formula| formula, planes, arguments, composite),
        _ => composite(arguments),
    }
}

/// A formula without its type. The engine calls it once for each block, so that only the loop is compiled for each
/// formula.
pub(in crate::kernels) trait Formula: OfBlock<f32> + OfBlock<f64> + Send + Sync {}

/// Computes the results and the gradients of a block.
pub(in crate::kernels) trait OfBlock<W>: Sync {
    /// Computes the results, one array for each plane.
    fn evaluate(&self, arguments: &[&[W]], numbers: &mut [Block<f64>]);

    /// Computes the gradients of the arguments, given those of the results.
    fn derive(&self, arguments: &[&[W]], of_numbers: &[&[f64]], gradients: &mut [Block<W>]);
}

impl<F: Map<N, M>, const N: usize, const M: usize> Formula for TypedMap<F, N, M> {}

impl<W: Wide, F: Map<N, M>, const N: usize, const M: usize> OfBlock<W> for TypedMap<F, N, M> {
    fn evaluate(&self, arguments: &[&[W]], numbers: &mut [Block<f64>]) {
        simd::run(Evaluate::<_, _, N, M> { formula: self.0, arguments, numbers });
    }

    fn derive(&self, arguments: &[&[W]], of_numbers: &[&[f64]], gradients: &mut [Block<W>]) {
        simd::run(Derive::<_, _, N, M> { formula: self.0, arguments, of_numbers, gradients });
    }
}

fn f_run<W: Wide>(
    formula: Box<dyn Formula>,
    of_width: fn(&dyn Formula) -> &(dyn OfBlock<W> + '_),
    planes: usize,
    arguments: &[&Tensor],
    composite: Composite,
) -> Result<Tensor, LossError> {
    let size = [&[planes as i64], &arguments[0].size()[..]].concat();
    let outputs = Output::<f64>::f_of_size(&size)?;
    let contiguous = f_all_contiguous(arguments)?;
    let length = contiguous[0].numel();
    let job = Job { formula: of_width(&*formula), arguments: contiguous.iter().map(elements).collect() };
    let parts = outputs.parts(planes);
    parallel::sum(length, BLOCK, |range| job.evaluate(range, &parts));
    let fused = move |context: &Context, grad: &Tensor, needed: &[bool]| {
        let grad = f_contiguous(grad)?;
        let contiguous = f_all_contiguous(&context.saved().iter().collect::<Vec<_>>())?;
        let mut gradients = Vec::with_capacity(needed.len());
        for needed in needed {
            gradients.push(needed.then(|| Output::<W>::f_of_size(&contiguous[0].size())).transpose()?);
        }
        let job = Job { formula: of_width(&*formula), arguments: contiguous.iter().map(elements).collect() };
        let grad = elements(&grad);
        let of_planes: Vec<&[f64]> = (0..planes).map(|plane| &grad[plane * length..][..length]).collect();
        parallel::sum(length, BLOCK, |range| job.derive(range, &of_planes, &gradients));
        Ok(Some(gradients.into_iter().map(|gradient| gradient.map(Output::into_tensor)).collect()))
    };
    f_with_graph(outputs.into_tensor(), arguments, autograd::needed(arguments), composite, Box::new(fused))
}

/// A call, which all threads share.
struct Job<'a, W> {
    formula: &'a (dyn OfBlock<W> + 'a),
    arguments: Vec<&'a [W]>,
}

impl<W: Wide> Job<'_, W> {
    /// Computes the results of the elements in `range`, which no other task has. Returns 0, because `parallel::sum`
    /// adds up.
    fn evaluate(&self, range: Range<usize>, planes: &[Output<f64>]) -> f64 {
        let mut room = vec![[0.0; BLOCK]; planes.len()];
        for block in blocks(range) {
            self.formula.evaluate(&self.arguments_in(&block), &mut room);
            for (plane, numbers) in planes.iter().zip(&room) {
                // SAFETY: tasks have ranges of their own, and the blocks of a task are computed one after another.
                unsafe { plane.write(block.clone(), &numbers[..block.len()]) };
            }
        }
        0.0
    }

    /// Computes the gradients of the elements in `range`, which no other task has, given those of the planes. Returns
    /// 0, because `parallel::sum` adds up.
    fn derive(&self, range: Range<usize>, of_planes: &[&[f64]], gradients: &[Option<Output<W>>]) -> f64 {
        let mut room = vec![[W::default(); BLOCK]; gradients.len()];
        for block in blocks(range) {
            let of_numbers: Vec<&[f64]> = of_planes.iter().map(|of_plane| &of_plane[block.clone()]).collect();
            self.formula.derive(&self.arguments_in(&block), &of_numbers, &mut room);
            for (output, gradient) in gradients.iter().zip(&room) {
                let Some(output) = output else { continue };
                // SAFETY: as above.
                unsafe { output.write(block.clone(), &gradient[..block.len()]) };
            }
        }
        0.0
    }

    fn arguments_in(&self, block: &Range<usize>) -> Vec<&[W]> {
        self.arguments.iter().map(|argument| &argument[block.clone()]).collect()
    }
}

fn blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(BLOCK).map(move |start| start..range.end.min(start + BLOCK))
}

/// The numbers of all arrays at one place, in double precision.
#[inline(always)]
fn doubles_at<R: LaneOf<f64>, W: Wide, const N: usize>(arrays: &[&[W]; N], place: usize) -> [R; N] {
    let mut numbers = [R::of(0.0); N];
    for k in 0..N {
        numbers[k] = R::new(arrays[k][place].into());
    }
    numbers
}

/// The kernel that computes the results of a block.
struct Evaluate<'a, T, F, const N: usize, const M: usize> {
    formula: F,
    arguments: &'a [&'a [T]],
    numbers: &'a mut [Block<f64>],
}

impl<T: Wide, F: Map<N, M>, const N: usize, const M: usize> Kernel<f64> for Evaluate<'_, T, F, N, M> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<f64>>(self) {
        let (length, planes) = (self.arguments[0].len().min(BLOCK), &mut self.numbers[..M]);
        let arguments = simd::first(self.arguments, length);
        for i in 0..length {
            let numbers: [R; M] = self.formula.evaluate(doubles_at(&arguments, i));
            for k in 0..M {
                planes[k][i] = numbers[k].get();
            }
        }
    }
}

/// The kernel that computes the gradients of a block.
struct Derive<'a, T, F, const N: usize, const M: usize> {
    formula: F,
    arguments: &'a [&'a [T]],
    of_numbers: &'a [&'a [f64]],
    gradients: &'a mut [Block<T>],
}

impl<T: Wide, F: Map<N, M>, const N: usize, const M: usize> Kernel<f64> for Derive<'_, T, F, N, M> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<f64>>(self) {
        let (length, gradients) = (self.arguments[0].len().min(BLOCK), &mut self.gradients[..N]);
        let arguments = simd::first(self.arguments, length);
        let of_numbers: [_; M] = simd::first(self.of_numbers, length);
        for i in 0..length {
            let derivatives: [R; N] = self.formula.derive(doubles_at(&arguments, i), simd::at(&of_numbers, i));
            for k in 0..N {
                gradients[k][i] = T::from_f64(derivatives[k].get());
            }
        }
    }
}
