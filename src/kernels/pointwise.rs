//! The engine of losses that are a function of each element.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};
use tch::{Kind, Tensor};

use super::element::{Block, Element, Output, elements, f_one_layout, f_plain, f_scalar, is_plain};
use super::number::Real;
use super::simd::{self, Kernel, LaneOf, Sum, Wide};
use super::{BLOCK, backend, parallel};
use crate::autograd::{self, Context, Function, StoredGradients};
use crate::{LossError, Reduction};

/// A loss of one element, given `N` numbers for it.
pub(crate) trait Pointwise<const N: usize>: Copy + Send + Sync + 'static {
    /// Whether some arguments have no loss. It is NaN there, and the composite is asked for the error.
    const PARTIAL: bool = false;

    /// The loss and its partial derivatives. To be `#[inline(always)]`.
    fn evaluate<R: Real>(self, arguments: [R; N]) -> (R, [R; N]);
}

/// A formula whose losses are multiplied by a last argument.
#[derive(Clone, Copy)]
pub(crate) struct Weighted<P>(pub(crate) P);

impl<P: Pointwise<2>> Pointwise<3> for Weighted<P> {
    const PARTIAL: bool = P::PARTIAL;

    #[inline(always)]
    fn evaluate<R: Real>(self, [a, b, weight]: [R; 3]) -> (R, [R; 3]) {
        let (loss, [of_a, of_b]) = self.0.evaluate([a, b]);
        (loss * weight, [of_a * weight, of_b * weight, loss])
    }
}

impl<P: Pointwise<3>> Pointwise<4> for Weighted<P> {
    const PARTIAL: bool = P::PARTIAL;

    #[inline(always)]
    fn evaluate<R: Real>(self, [a, b, c, weight]: [R; 4]) -> (R, [R; 4]) {
        let (loss, [of_a, of_b, of_c]) = self.0.evaluate([a, b, c]);
        (loss * weight, [of_a * weight, of_b * weight, of_c * weight, loss])
    }
}

/// The reduced loss of `arguments`, by `formula`, or by the `composite` of tensor operations where
/// the engine does not take the call.
pub(crate) fn f_pointwise<const N: usize, P, C>(
    formula: P,
    arguments: [&Tensor; N],
    reduction: Reduction,
    composite: C,
) -> Result<Tensor, LossError>
where
    P: Pointwise<N>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    if !backend::fused() {
        return composite(arguments);
    }
    let kind = arguments[0].f_kind()?;
    let size = arguments[0].size();
    if !arguments.iter().all(|argument| is_plain(argument, kind) && argument.size() == size) {
        return composite(arguments);
    }
    match kind {
        Kind::Float => f_run::<f32, N, P, C>(formula, arguments, reduction, composite),
        Kind::Double => f_run::<f64, N, P, C>(formula, arguments, reduction, composite),
        Kind::Half => f_run::<f16, N, P, C>(formula, arguments, reduction, composite),
        Kind::BFloat16 => f_run::<bf16, N, P, C>(formula, arguments, reduction, composite),
        _ => composite(arguments),
    }
}

fn f_run<T, const N: usize, P, C>(
    formula: P,
    arguments: [&Tensor; N],
    reduction: Reduction,
    composite: C,
) -> Result<Tensor, LossError>
where
    T: Element,
    P: Pointwise<N>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    let graph = autograd::grad_enabled();
    let needed = arguments.map(|argument| graph && argument.requires_grad());
    let pass = Pass::<T, N>::f_new(arguments)?;
    let scale = if reduction == Reduction::Mean { 1.0 / arguments[0].numel() as f64 } else { 1.0 };
    // The gradients of half precision would lose digits by being scaled twice, and are computed in the backward pass.
    let at_once = reduction != Reduction::None && size_of::<T>() >= size_of::<f32>();
    let wanted = needed.map(|needed| needed && at_once);
    let (sum, loss, gradients) = match reduction {
        Reduction::None => {
            let (sum, losses) = pass.f_losses(formula)?;
            (sum, losses, Vec::new())
        }
        _ => {
            let (sum, gradients) = pass.f_sum(formula, &Factor::Number(scale), wanted)?;
            (sum, f_scalar::<T>(sum * scale)?, gradients)
        }
    };
    if P::PARTIAL && sum.is_nan() {
        return composite(arguments);
    }
    if !needed.contains(&true) {
        return Ok(loss);
    }
    let store = || StoredGradients::f_of_own_kind(autograd::spread(gradients, &needed));
    let stored = at_once.then(store).transpose()?;
    let backward = move |context: Context| -> autograd::Gradients {
        let Some(grad) = context.grad(0) else { return Ok(autograd::spread(vec![], &needed)) };
        if context.create_graph() {
            let loss = |inputs: &[Tensor]| composite(std::array::from_fn(|position| &inputs[position]));
            return autograd::f_gradients_of(loss, &grad, context.saved(), &needed);
        }
        let grad = f_plain(&grad)?;
        if let Some(stored) = &stored {
            return stored.f_scaled(&context, &grad);
        }
        let pass = Pass::<T, N>::f_new(std::array::from_fn(|position| &context.saved()[position]))?;
        let factor = Factor::f_new::<T>(&grad, scale, &pass.arguments[0])?;
        Ok(autograd::spread(pass.f_sum(formula, &factor, needed)?.1, &needed))
    };
    Ok(Function::new(&arguments).save(&arguments).f_attach_own(vec![loss], backward)?.remove(0))
}

/// What the derivatives are multiplied by.
enum Factor {
    /// The same number for all elements.
    Number(f64),
    /// A number for each element.
    Tensor(Tensor),
}

impl Factor {
    /// The gradient of a loss that is `scale` times the sum, or of unreduced losses.
    fn f_new<T: Element>(grad: &Tensor, scale: f64, like: &Tensor) -> Result<Self, LossError> {
        if grad.dim() == 0 {
            return Ok(Factor::Number(elements::<T>(grad)[0].to_f64() * scale));
        }
        let [_, grad] = f_one_layout([like, grad])?;
        Ok(Factor::Tensor(grad))
    }
}

/// Arguments in one layout.
struct Pass<T, const N: usize> {
    arguments: [Tensor; N],
    kind: PhantomData<T>,
}

impl<T: Element, const N: usize> Pass<T, N> {
    fn f_new(arguments: [&Tensor; N]) -> Result<Self, LossError> {
        Ok(Self { arguments: f_one_layout(arguments)?, kind: PhantomData })
    }

    /// The loss of each element, and their sum.
    fn f_losses<P: Pointwise<N>>(&self, formula: P) -> Result<(f64, Tensor), LossError> {
        let losses = Output::<T>::f_like(&self.arguments[0])?;
        let sum = self.run(formula, &Factor::Number(1.0), Some(&losses), &[const { None }; N]);
        Ok((sum, losses.into_tensor()))
    }

    /// The sum of the losses, and those derivatives that are wanted, times `factor`.
    fn f_sum<P: Pointwise<N>>(
        &self,
        formula: P,
        factor: &Factor,
        wanted: [bool; N],
    ) -> Result<(f64, Vec<Tensor>), LossError> {
        let mut gradients = [const { None }; N];
        for (gradient, _) in gradients.iter_mut().zip(wanted).filter(|(_, wanted)| *wanted) {
            *gradient = Some(Output::<T>::f_like(&self.arguments[0])?);
        }
        let sum = self.run(formula, factor, None, &gradients);
        Ok((sum, gradients.into_iter().flatten().map(Output::into_tensor).collect()))
    }

    /// Runs over all elements. Returns the sum of the losses.
    fn run<P: Pointwise<N>>(
        &self,
        formula: P,
        factor: &Factor,
        losses: Option<&Output<T>>,
        gradients: &[Option<Output<T>>; N],
    ) -> f64 {
        let factor = match factor {
            Factor::Number(number) => Factors::Number(T::Wide::from_f64(*number)),
            Factor::Tensor(tensor) => Factors::Elements(elements(tensor)),
        };
        let arguments = std::array::from_fn(|position| elements(&self.arguments[position]));
        let job = Job { formula, arguments, factor, losses, gradients };
        parallel::sum(self.arguments[0].numel(), BLOCK, |range| job.task(range))
    }
}

/// What all threads work on.
struct Job<'a, T: Element, P, const N: usize> {
    formula: P,
    arguments: [&'a [T]; N],
    factor: Factors<'a, T>,
    losses: Option<&'a Output<T>>,
    gradients: &'a [Option<Output<T>>; N],
}

enum Factors<'a, T: Element> {
    Number(T::Wide),
    Elements(&'a [T]),
}

/// Room for one block of each argument and result.
struct Room<W, const N: usize> {
    arguments: [Block<W>; N],
    factors: Block<W>,
    losses: Block<W>,
    gradients: [Block<W>; N],
}

impl<T: Element, P: Pointwise<N>, const N: usize> Job<'_, T, P, N> {
    /// Computes the elements in `range`, which no other thread has. Returns the sum of their losses.
    fn task(&self, range: Range<usize>) -> f64 {
        let factor = match self.factor {
            Factors::Number(number) => number,
            Factors::Elements(_) => T::Wide::default(),
        };
        let zeros = [T::Wide::default(); BLOCK];
        let mut room = Room { arguments: [zeros; N], factors: [factor; BLOCK], losses: zeros, gradients: [zeros; N] };
        let blocks = range.clone().step_by(BLOCK).map(|start| start..range.end.min(start + BLOCK));
        blocks.map(|block| self.block(block, &mut room)).sum()
    }

    fn block(&self, range: Range<usize>, room: &mut Room<T::Wide, N>) -> f64 {
        let length = range.len();
        let slices = self.arguments.map(|argument| &argument[range.clone()]);
        let mut read = slices.iter().zip(&mut room.arguments).map(|(slice, room)| T::read(slice, room));
        let arguments = std::array::from_fn(|_| read.next().unwrap_or_default());
        let losses = &mut room.losses[..length];
        if self.gradients.iter().all(Option::is_none) {
            simd::run(Losses { formula: self.formula, arguments, losses });
        } else {
            let factors = match self.factor {
                Factors::Number(_) => &room.factors[..length],
                Factors::Elements(elements) => T::read(&elements[range.clone()], &mut room.factors),
            };
            let gradients = room.gradients.each_mut().map(|gradient| &mut gradient[..length]);
            simd::run(Gradients { formula: self.formula, arguments, factors, losses, gradients });
        }
        for (output, gradient) in self.gradients.iter().zip(&room.gradients) {
            self.store(output.as_ref(), &range, &gradient[..length]);
        }
        self.store(self.losses, &range, &room.losses[..length]);
        simd::run(Sum(&room.losses[..length]))
    }

    fn store(&self, output: Option<&Output<T>>, range: &Range<usize>, numbers: &[T::Wide]) {
        let Some(output) = output else { return };
        // SAFETY: tasks have ranges of their own, and the blocks of a task are computed one after another.
        T::write(numbers, unsafe { output.range(range.clone()) });
    }
}

/// The losses of a block.
struct Losses<'a, W, P, const N: usize> {
    formula: P,
    arguments: [&'a [W]; N],
    losses: &'a mut [W],
}

impl<W: Wide, P: Pointwise<N>, const N: usize> Kernel<W> for Losses<'_, W, P, N> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let length = self.losses.len();
        let arguments = self.arguments.map(|argument| &argument[..length]);
        for i in 0..length {
            self.losses[i] = self.formula.evaluate(arguments.map(|argument| R::new(argument[i]))).0.get();
        }
    }
}

/// The losses of a block and their derivatives.
struct Gradients<'a, W, P, const N: usize> {
    formula: P,
    arguments: [&'a [W]; N],
    factors: &'a [W],
    losses: &'a mut [W],
    gradients: [&'a mut [W]; N],
}

impl<W: Wide, P: Pointwise<N>, const N: usize> Kernel<W> for Gradients<'_, W, P, N> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let length = self.losses.len();
        let arguments = self.arguments.map(|argument| &argument[..length]);
        let factors = &self.factors[..length];
        let gradients = self.gradients.map(|gradient| &mut gradient[..length]);
        for i in 0..length {
            let (loss, derivatives) = self.formula.evaluate(arguments.map(|argument| R::new(argument[i])));
            self.losses[i] = loss.get();
            for k in 0..N {
                gradients[k][i] = (derivatives[k] * R::new(factors[i])).get();
            }
        }
    }
}
