//! The engine of several numbers made of those of one element, each in a plane of its own.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::element::{Output, elements, f_plain, is_plain};
use super::number::Real;
use super::simd::{self, Kernel, LaneOf, Wide};
use super::{BLOCK, backend, parallel};
use crate::LossError;
use crate::autograd::{self, Context, Function};

/// `M` numbers made of `N`.
pub(crate) trait Map<const N: usize, const M: usize>: Copy + Send + Sync + 'static {
    /// The numbers. To be `#[inline(always)]`.
    fn evaluate<R: Real>(self, arguments: [R; N]) -> [R; M];

    /// The derivatives with respect to the arguments, given those with respect to the numbers. To be `#[inline(always)]`.
    fn derive<R: Real>(self, arguments: [R; N], of_numbers: [R; M]) -> [R; N];
}

/// The planes `[M, *]` of arguments `[*]` by `formula`, in double precision, or by the `composite` of tensor operations where
/// the engine does not take the call.
pub(crate) fn f_map<const N: usize, const M: usize, F, C>(
    formula: F,
    arguments: [&Tensor; N],
    composite: C,
) -> Result<Tensor, LossError>
where
    F: Map<N, M>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    let (kind, size) = (arguments[0].f_kind()?, arguments[0].size());
    if !backend::fused() || !arguments.iter().all(|argument| is_plain(argument, kind) && argument.size() == size) {
        return composite(arguments);
    }
    match kind {
        Kind::Float => f_run::<f32, N, M, F, C>(formula, arguments, composite),
        Kind::Double => f_run::<f64, N, M, F, C>(formula, arguments, composite),
        _ => composite(arguments),
    }
}

fn f_run<T: Wide, const N: usize, const M: usize, F, C>(
    formula: F,
    arguments: [&Tensor; N],
    composite: C,
) -> Result<Tensor, LossError>
where
    F: Map<N, M>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    let size = [&[M as i64], &arguments[0].size()[..]].concat();
    let planes = Output::<f64>::f_of_size(&size)?;
    let contiguous = f_contiguous(arguments)?;
    let job = Job { formula, arguments: contiguous.each_ref().map(elements::<T>) };
    let parts = planes.parts(M);
    parallel::sum(contiguous[0].numel(), BLOCK, |range| job.evaluate(range, &parts));
    let needed: [bool; N] = std::array::from_fn(|position| arguments[position].requires_grad());
    let backward = move |context: Context| -> autograd::Gradients {
        let Some(grad) = context.grad(0) else { return Ok(autograd::spread(vec![], &needed)) };
        let fused = || {
            let grad = f_plain(&grad)?.f_detach()?.f_contiguous()?;
            let contiguous = f_contiguous::<N>(std::array::from_fn(|position| &context.saved()[position]))?;
            let mut gradients = [const { None }; N];
            for (gradient, _) in gradients.iter_mut().zip(needed).filter(|(_, needed)| *needed) {
                *gradient = Some(Output::<T>::f_of_size(&contiguous[0].size())?);
            }
            let job = Job { formula, arguments: contiguous.each_ref().map(elements::<T>) };
            let grad = elements(&grad);
            parallel::sum(contiguous[0].numel(), BLOCK, |range| job.derive::<M>(range, grad, &gradients));
            Ok(gradients.into_iter().map(|gradient| gradient.map(Output::into_tensor)).collect())
        };
        let planes = |inputs: &[Tensor]| composite(std::array::from_fn(|position| &inputs[position]));
        context.f_gradients(fused, || autograd::f_gradients_of(planes, &grad, context.saved(), &needed))
    };
    Ok(Function::new(&arguments).save(&arguments).f_attach_own(vec![planes.into_tensor()], backward)?.remove(0))
}

fn f_contiguous<const N: usize>(tensors: [&Tensor; N]) -> Result<[Tensor; N], LossError> {
    let contiguous: Result<Vec<Tensor>, LossError> =
        tensors.iter().map(|tensor| Ok(tensor.f_detach()?.f_contiguous()?)).collect();
    let mut contiguous = contiguous?.into_iter();
    Ok(std::array::from_fn(|_| contiguous.next().unwrap_or_default()))
}

/// What all threads work on.
struct Job<'a, T, F, const N: usize> {
    formula: F,
    arguments: [&'a [T]; N],
}

impl<T: Wide, F, const N: usize> Job<'_, T, F, N> {
    /// Computes the numbers of the elements in `range`, which no other thread has.
    fn evaluate<const M: usize>(&self, range: Range<usize>, planes: &[Output<f64>]) -> f64
    where
        F: Map<N, M>,
    {
        let mut room = [[0.0; BLOCK]; M];
        for block in blocks(range) {
            let arguments = self.arguments.map(|argument| &argument[block.clone()]);
            let numbers = room.each_mut().map(|numbers| &mut numbers[..block.len()]);
            simd::run(Evaluate { formula: self.formula, arguments, numbers });
            for (plane, numbers) in planes.iter().zip(&room) {
                // SAFETY: tasks have ranges of their own, and the blocks of a task are computed one after another.
                unsafe { plane.write(block.clone(), &numbers[..block.len()]) };
            }
        }
        0.0
    }

    /// Computes the gradients of the elements in `range`, which no other thread has, given that of the planes.
    fn derive<const M: usize>(&self, range: Range<usize>, of_planes: &[f64], gradients: &[Option<Output<T>>; N]) -> f64
    where
        F: Map<N, M>,
    {
        let length = self.arguments[0].len();
        let mut room = [[T::default(); BLOCK]; N];
        for block in blocks(range) {
            let arguments = self.arguments.map(|argument| &argument[block.clone()]);
            let of_numbers = std::array::from_fn(|k| &of_planes[k * length..][block.clone()]);
            let outputs = room.each_mut().map(|gradient| &mut gradient[..block.len()]);
            simd::run(Derive { formula: self.formula, arguments, of_numbers, gradients: outputs });
            for (output, gradient) in gradients.iter().zip(&room) {
                let Some(output) = output else { continue };
                // SAFETY: as above.
                unsafe { output.write(block.clone(), &gradient[..block.len()]) };
            }
        }
        0.0
    }
}

fn blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(BLOCK).map(move |start| start..range.end.min(start + BLOCK))
}

/// The numbers of a block.
struct Evaluate<'a, T, F, const N: usize, const M: usize> {
    formula: F,
    arguments: [&'a [T]; N],
    numbers: [&'a mut [f64]; M],
}

impl<T: Wide, F: Map<N, M>, const N: usize, const M: usize> Kernel<f64> for Evaluate<'_, T, F, N, M> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<f64>>(self) {
        let length = self.numbers[0].len();
        let arguments = self.arguments.map(|argument| &argument[..length]);
        let planes = self.numbers.map(|numbers| &mut numbers[..length]);
        for i in 0..length {
            let numbers = self.formula.evaluate(arguments.map(|argument| R::new(argument[i].into())));
            for k in 0..M {
                planes[k][i] = numbers[k].get();
            }
        }
    }
}

/// The gradients of a block.
struct Derive<'a, T, F, const N: usize, const M: usize> {
    formula: F,
    arguments: [&'a [T]; N],
    of_numbers: [&'a [f64]; M],
    gradients: [&'a mut [T]; N],
}

impl<T: Wide, F: Map<N, M>, const N: usize, const M: usize> Kernel<f64> for Derive<'_, T, F, N, M> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<f64>>(self) {
        let length = self.gradients[0].len();
        let arguments = self.arguments.map(|argument| &argument[..length]);
        let of_numbers = self.of_numbers.map(|of_numbers| &of_numbers[..length]);
        let gradients = self.gradients.map(|gradient| &mut gradient[..length]);
        for i in 0..length {
            let of_numbers = of_numbers.map(|of_numbers| R::new(of_numbers[i]));
            let derivatives = self.formula.derive(arguments.map(|argument| R::new(argument[i].into())), of_numbers);
            for k in 0..N {
                gradients[k][i] = T::from_f64(derivatives[k].get());
            }
        }
    }
}
