//! The engine of losses that are a function of each element.

use std::mem::MaybeUninit;
use std::ops::Range;

use tch::{Kind, Tensor};

use super::element::{Block, Element, Output, elements, f_one_layout, is_plain};
use super::engine::{Engine, Factor, Reduce, f_dispatch_to};
use super::number::Real;
use super::simd::{self, Kernel, LaneOf, Sum, Wide};
use super::{BLOCK, backend, parallel};
use crate::LossError;
use crate::numeric::f_widely_alike;

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

/// The reduced losses of `arguments`, by `formula`, or by the `composite` of tensor operations where the engine does not take
/// the call.
pub(crate) fn f_pointwise<const N: usize, P, C>(
    formula: P,
    arguments: [&Tensor; N],
    reduce: impl Into<Reduce>,
    composite: C,
) -> Result<Tensor, LossError>
where
    P: Pointwise<N>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    f_pointwise_to(arguments[0].f_kind()?, formula, arguments, reduce, composite)
}

/// The same, of which a reduced loss has this floating kind, `result`, as that of the `composite` has.
pub(crate) fn f_pointwise_to<const N: usize, P, C>(
    result: Kind,
    formula: P,
    arguments: [&Tensor; N],
    reduce: impl Into<Reduce>,
    composite: C,
) -> Result<Tensor, LossError>
where
    P: Pointwise<N>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    let kind = arguments[0].f_kind()?;
    // A result of another kind is the business of the composite.
    let widely = result == kind;
    let composite = move |arguments: [&Tensor; N]| match widely {
        true => f_widely_alike(arguments, &composite),
        false => composite(arguments),
    };
    if !backend::fused() {
        return composite(arguments);
    }
    let size = arguments[0].size();
    if !arguments.iter().all(|argument| is_plain(argument, kind) && argument.size() == size) {
        return composite(arguments);
    }
    f_dispatch_to(result, Elements(formula), arguments, reduce.into(), composite)
}

/// The reduced losses of elements `[*]` by a `formula` of their numbers in the planes `[planes, *]` of the first argument, and
/// then in the other ones, `[*]`, or by the `composite` of tensor operations where the engine does not take the call.
pub(crate) fn f_pointwise_of_planes<const A: usize, const N: usize, P, C>(
    formula: P,
    arguments: [&Tensor; A],
    reduce: impl Into<Reduce>,
    composite: C,
) -> Result<Tensor, LossError>
where
    P: Pointwise<N>,
    C: Fn([&Tensor; A]) -> Result<Tensor, LossError> + Send + 'static,
{
    let composite = move |arguments: [&Tensor; A]| f_widely_alike(arguments, &composite);
    let kind = arguments[0].f_kind()?;
    let size = arguments[0].size();
    let fits = |argument: &&Tensor| is_plain(argument, kind) && argument.size() == size[1..];
    let planes = size.first().map(|planes| *planes as usize);
    let taken = planes == Some(N + 1 - A) && is_plain(arguments[0], kind) && arguments[1..].iter().all(fits);
    if !backend::fused() || !taken {
        return composite(arguments);
    }
    f_dispatch_to(kind, Planes::<P, N>(formula), arguments, reduce.into(), composite)
}

/// The engine with a formula of planes.
#[derive(Clone, Copy)]
struct Planes<P, const N: usize>(P);

impl<P: Pointwise<N>, const A: usize, const N: usize> Engine<A> for Planes<P, N> {
    const PARTIAL: bool = P::PARTIAL;

    fn count(self, arguments: [&Tensor; A]) -> usize {
        arguments[0].numel() / (N + 1 - A)
    }

    fn f_losses<T: Element>(self, arguments: [&Tensor; A]) -> Result<(f64, Tensor), LossError> {
        let losses = Output::<T>::f_of_size(&arguments[0].size()[1..])?;
        let none = Factors::Number(T::Wide::default());
        let sum = Elements(self.0).run(&f_planes::<A, N>(arguments)?, none, Some(&losses), &[const { None }; N]);
        Ok((sum, losses.into_tensor()))
    }

    fn f_sum<T: Element>(
        self,
        arguments: [&Tensor; A],
        factor: Factor,
        wanted: [bool; A],
    ) -> Result<(f64, Vec<Tensor>), LossError> {
        let mut outputs = Vec::with_capacity(A);
        let mut gradients = [const { None }; N];
        for position in (0..A).filter(|position| wanted[*position]) {
            let (first, count) = if position == 0 { (0, N + 1 - A) } else { (N - A + position, 1) };
            let output = Output::<T>::f_of_size(&arguments[position].size())?;
            for (gradient, part) in gradients[first..].iter_mut().zip(output.parts(count)) {
                *gradient = Some(part);
            }
            outputs.push(output);
        }
        let planes = f_planes::<A, N>(arguments)?;
        let sum = match factor {
            Factor::Number(number) => {
                Elements(self.0).run(&planes, Factors::Number(T::Wide::from_f64(number)), None, &gradients)
            }
            Factor::Tensor(factors) => {
                let factors = factors.f_detach()?.f_contiguous()?;
                Elements(self.0).run(&planes, Factors::Elements(elements(&factors)), None, &gradients)
            }
        };
        Ok((sum, outputs.into_iter().map(Output::into_tensor).collect()))
    }
}

/// The planes of the first argument, and the other arguments, contiguous.
fn f_planes<const A: usize, const N: usize>(arguments: [&Tensor; A]) -> Result<[Tensor; N], LossError> {
    let planes = arguments[0].f_detach()?.f_contiguous()?;
    let mut all = Vec::with_capacity(N);
    for plane in 0..planes.size()[0] {
        all.push(planes.f_select(0, plane)?);
    }
    for argument in &arguments[1..] {
        all.push(argument.f_detach()?.f_contiguous()?);
    }
    let mut all = all.into_iter();
    Ok(std::array::from_fn(|_| all.next().unwrap_or_default()))
}

/// The engine with a formula.
#[derive(Clone, Copy)]
struct Elements<P>(P);

impl<P: Pointwise<N>, const N: usize> Engine<N> for Elements<P> {
    const PARTIAL: bool = P::PARTIAL;

    fn count(self, arguments: [&Tensor; N]) -> usize {
        arguments[0].numel()
    }

    fn f_losses<T: Element>(self, arguments: [&Tensor; N]) -> Result<(f64, Tensor), LossError> {
        let arguments = f_one_layout(arguments)?;
        let losses = Output::<T>::f_like(&arguments[0])?;
        let sum = self.run(&arguments, Factors::Number(T::Wide::default()), Some(&losses), &[const { None }; N]);
        Ok((sum, losses.into_tensor()))
    }

    fn f_sum<T: Element>(
        self,
        arguments: [&Tensor; N],
        factor: Factor,
        wanted: [bool; N],
    ) -> Result<(f64, Vec<Tensor>), LossError> {
        let arguments = f_one_layout(arguments)?;
        let mut gradients = [const { None }; N];
        for (gradient, _) in gradients.iter_mut().zip(wanted).filter(|(_, wanted)| *wanted) {
            *gradient = Some(Output::<T>::f_like(&arguments[0])?);
        }
        let sum = match factor {
            Factor::Number(number) => {
                self.run(&arguments, Factors::Number(T::Wide::from_f64(number)), None, &gradients)
            }
            Factor::Tensor(factors) => {
                let [_, factors] = f_one_layout([&arguments[0], factors])?;
                self.run(&arguments, Factors::Elements(elements(&factors)), None, &gradients)
            }
        };
        Ok((sum, gradients.into_iter().flatten().map(Output::into_tensor).collect()))
    }
}

impl<P> Elements<P> {
    /// Runs over all elements of arguments in one layout. Returns the sum of the losses.
    fn run<T: Element, const N: usize>(
        self,
        arguments: &[Tensor; N],
        factor: Factors<T>,
        losses: Option<&Output<T>>,
        gradients: &[Option<Output<T>>; N],
    ) -> f64
    where
        P: Pointwise<N>,
    {
        let length = arguments[0].numel();
        let arguments = std::array::from_fn(|position| elements(&arguments[position]));
        let job = Job { formula: self.0, arguments, factor, losses, gradients };
        parallel::sum(length, BLOCK, |range| job.task(range))
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

/// Room for one block of each argument and of those gradients that are computed.
struct Room<W, const N: usize, const M: usize> {
    arguments: [Block<W>; N],
    factors: Block<W>,
    losses: Block<W>,
    gradients: [[MaybeUninit<W>; BLOCK]; M],
}

impl<T: Element, P: Pointwise<N>, const N: usize> Job<'_, T, P, N> {
    /// Computes the elements in `range`, which no other thread has. Returns the sum of their losses.
    fn task(&self, range: Range<usize>) -> f64 {
        match self.gradients.iter().rposition(Option::is_some) {
            None => self.blocks::<0>(range),
            // The first argument is the one that has a gradient as a rule.
            Some(0) => self.blocks::<1>(range),
            Some(_) => self.blocks::<N>(range),
        }
    }

    /// The same, with the first `M` gradients.
    fn blocks<const M: usize>(&self, range: Range<usize>) -> f64 {
        let factor = match self.factor {
            Factors::Number(number) => number,
            Factors::Elements(_) => T::Wide::default(),
        };
        let zeros = [T::Wide::default(); BLOCK];
        let gradients = [[MaybeUninit::uninit(); BLOCK]; M];
        let mut room = Room { arguments: [zeros; N], factors: [factor; BLOCK], losses: zeros, gradients };
        let blocks = range.clone().step_by(BLOCK).map(|start| start..range.end.min(start + BLOCK));
        blocks.map(|block| self.block(block, &mut room)).sum()
    }

    fn block<const M: usize>(&self, range: Range<usize>, room: &mut Room<T::Wide, N, M>) -> f64 {
        let length = range.len();
        let slices = self.arguments.map(|argument| &argument[range.clone()]);
        let mut read = slices.iter().zip(&mut room.arguments).map(|(slice, room)| T::read(slice, room));
        let arguments = std::array::from_fn(|_| read.next().unwrap_or_default());
        let factors = match self.factor {
            Factors::Number(_) => &room.factors[..length],
            Factors::Elements(elements) => T::read(&elements[range.clone()], &mut room.factors),
        };
        let mut places = self.gradients.iter().zip(&mut room.gradients).map(|(output, room)| {
            // SAFETY: tasks have ranges of their own, and the blocks of a task are computed one after another.
            let place = output.as_ref().and_then(|output| unsafe { output.place(range.clone()) });
            place.unwrap_or(&mut room[..length])
        });
        let gradients: [_; M] = std::array::from_fn(|_| places.next().unwrap_or_default());
        let losses = &mut room.losses[..length];
        simd::run(Losses { formula: self.formula, arguments, factors, losses, gradients });
        for (output, room) in self.gradients.iter().zip(&room.gradients) {
            if let Some(output) = output.as_ref().filter(|output| !output.has_places()) {
                // SAFETY: as above; the kernel has written so many numbers.
                unsafe { output.write(range.clone(), std::slice::from_raw_parts(room.as_ptr().cast(), length)) };
            }
        }
        let losses = &room.losses[..length];
        if let Some(output) = self.losses {
            // SAFETY: as above.
            unsafe { output.write(range, losses) };
        }
        simd::run(Sum(losses))
    }
}

/// The losses of a block, and the first `M` of their derivatives, times the factors.
///
/// The losses are stored, not added up at once: the loop would not be made of vector instructions.
struct Losses<'a, W, P, const N: usize, const M: usize> {
    formula: P,
    arguments: [&'a [W]; N],
    factors: &'a [W],
    losses: &'a mut [W],
    gradients: [&'a mut [MaybeUninit<W>]; M],
}

impl<W: Wide, P: Pointwise<N>, const N: usize, const M: usize> Kernel<W> for Losses<'_, W, P, N, M> {
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
            for k in 0..M {
                gradients[k][i] = MaybeUninit::new((derivatives[k] * R::new(factors[i])).get());
            }
        }
    }
}
