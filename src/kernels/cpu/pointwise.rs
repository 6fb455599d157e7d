//! The engine of losses that are a function of each element, such as MSE, binary cross entropy or KL divergence.
//!
//! Each argument is read once, and each gradient is written once, in the same pass: the formula returns the loss of an
//! element and its partial derivatives. The gradient is the derivative times a factor, which is the gradient that comes
//! in, times the reduction's scale.

use std::mem::MaybeUninit;
use std::ops::Range;

use tch::{Kind, Tensor};

use super::elements::{Block, Numbers, are_alike};
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::simd::{self, Aligned, LANES, Sum};
use super::{BLOCK, parallel};
use crate::LossError;
use crate::autograd::Header;
use crate::kernels::backend;
use crate::kernels::engine::{Composite, Engine, Factor, Reduce, by_width, f_dispatch_to};
use crate::kernels::formulas::{Pointwise, Typed};
use crate::kernels::number::Real;
use crate::kernels::tensors::{f_in_one_layout, f_one_layout};

/// The reduced losses of `arguments`; see [`f_pointwise_to`](crate::kernels::pointwise::f_pointwise_to). The composite
/// takes half precision as it is.
pub(in crate::kernels) fn f_elements(
    result: Kind,
    formula: Box<dyn Formula>,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = arguments[0].f_kind()?;
    if !backend::fused() || !are_alike(arguments, kind) {
        return composite(arguments);
    }
    f_dispatch_to(result, Box::new(Elements(formula)), arguments, reduce, composite)
}

/// A formula without its type. The engine calls it once for each block.
pub(in crate::kernels) trait Formula: OfBlock<f32> + OfBlock<f64> + Send + Sync {
    fn is_partial(&self) -> bool;
}

/// Computes the losses and gradients of a block.
pub(in crate::kernels) trait OfBlock<W>: Sync {
    fn evaluate(&self, block: &mut Numerals<W>);
}

/// The numbers of a block, and places for its losses and gradients. Their count is a multiple of [`LANES`].
pub(in crate::kernels) struct Numerals<'a, W> {
    /// A slice for each argument of the formula; the others are empty.
    arguments: [&'a [W]; MOST],
    /// What the derivatives of each element are multiplied by.
    factors: &'a [W],
    losses: &'a mut [W],
    /// The sum of the losses, where no argument gets a gradient.
    sum: f64,
    /// Whether the losses are read later. Where not, and no argument gets a gradient, their places hold anything.
    kept: bool,
    /// How many arguments get a gradient: none, the first one alone, or all.
    differentiated: usize,
    /// Places for the gradients of the first `differentiated` arguments.
    gradients: [&'a mut [MaybeUninit<W>]; MOST],
}

/// The largest number of arguments that a formula has.
const MOST: usize = 5;

impl<P: Pointwise<N>, const N: usize> Formula for Typed<P, N> {
    fn is_partial(&self) -> bool {
        self.0.partial().is_some()
    }
}

impl<W: Wide, P: Pointwise<N>, const N: usize> OfBlock<W> for Typed<P, N> {
    fn evaluate(&self, block: &mut Numerals<W>) {
        match block.differentiated {
            0 => block.sum = self.0.run_block::<W, 0>(block),
            // As a rule the first argument alone has a gradient.
            1 => drop(self.0.run_block::<W, 1>(block)),
            _ => drop(self.0.run_block::<W, N>(block)),
        }
    }
}

/// Makes a method that is the loop over the slices of a block, compiled for the instructions of the given attribute.
macro_rules! loop_in {
    ($(#[$attribute:meta])* $name:ident) => {
        /// # Safety
        /// The processor has these instructions.
        #[allow(clippy::too_many_arguments)]
        $(#[$attribute])*
        unsafe fn $name<W: Wide, const M: usize>(
            self,
            a: &[W],
            b: &[W],
            c: &[W],
            d: &[W],
            e: &[W],
            factors: &[W],
            losses: &mut [W],
            kept: bool,
            of_a: &mut [MaybeUninit<W>],
            of_b: &mut [MaybeUninit<W>],
            of_c: &mut [MaybeUninit<W>],
            of_d: &mut [MaybeUninit<W>],
            of_e: &mut [MaybeUninit<W>],
        ) -> f64 {
            self.run_slices::<W, M>([a, b, c, d, e], factors, losses, kept, [of_a, of_b, of_c, of_d, of_e])
        }
    };
}

/// The loop over a block, as methods of the formula, so that they are compiled beside it; see [`Kernel`](simd::Kernel).
///
/// The slices are arguments of a function, from which the compiler knows that they do not overlap, and their length is
/// a multiple of that of vectors, so that no loop for a rest is needed. So the compiler makes one loop of vector
/// instructions and no other version of it.
trait Losses<const N: usize>: Pointwise<N> {
    fn run_block<W: Wide, const M: usize>(self, block: &mut Numerals<W>) -> f64 {
        let Numerals { arguments: [a, b, c, d, e], factors, losses, gradients, kept, .. } = block;
        let kept = *kept;
        let [of_a, of_b, of_c, of_d, of_e] = gradients;
        simd::check_vectors();
        if simd::WITHOUT_LOOPS {
            unreachable!();
        }
        #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
        if const { W::LONG } && simd::has_long_vectors() {
            // SAFETY: just checked.
            return unsafe {
                self.run_in_long_vectors::<W, M>(a, b, c, d, e, factors, losses, kept, of_a, of_b, of_c, of_d, of_e)
            };
        }
        // SAFETY: just checked.
        unsafe { self.run_in_vectors::<W, M>(a, b, c, d, e, factors, losses, kept, of_a, of_b, of_c, of_d, of_e) }
    }

    loop_in!(
        #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,bmi1,bmi2,fma,lzcnt,popcnt"))]
        run_in_vectors
    );
    loop_in!(
        #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
        run_in_long_vectors
    );

    /// Computes the losses, and the first `M` of their derivatives, times the factors. The losses are stored and added
    /// up later: a running sum would keep the loop from being vectorised.
    #[inline(always)]
    fn run_slices<W: Wide, const M: usize>(
        self,
        arguments: [&[W]; MOST],
        factors: &[W],
        losses: &mut [W],
        kept: bool,
        mut gradients: [&mut [MaybeUninit<W>]; MOST],
    ) -> f64 {
        let length = losses.len() / LANES * LANES;
        if length < LANES {
            return 0.0;
        }
        // Pointers, because a bounds check at each place would bring a loop for a rest.
        let arguments: [_; N] = simd::starts(&arguments, length);
        let gradients: [_; M] = simd::starts_mut(&mut gradients, length);
        let (factors, losses) = (factors[..length].as_ptr(), losses[..length].as_mut_ptr());
        let numbers_at = |i: usize| {
            let mut numbers = [W::Lane::of(0.0); N];
            for k in 0..N {
                // SAFETY: there are `length` numbers from each of the starts on, which are borrowed.
                numbers[k] = W::Lane::new(unsafe { *arguments[k].add(i) });
            }
            numbers
        };
        if M == 0 {
            // In the order of `Sum`, so that the loss has the same digits with gradients and without.
            let mut sums = [W::Lane::of(0.0); LANES];
            // Losses that nobody reads are all written to one place: loads of arguments would wait for stores to
            // addresses that end alike, and an array of losses has every ending.
            let step = usize::from(kept);
            for start in (0..length).step_by(LANES) {
                for lane in 0..LANES {
                    let (loss, _) = self.evaluate(numbers_at(start + lane));
                    // SAFETY: as above.
                    unsafe { losses.add(start * step + lane).write(loss.get()) };
                    sums[lane] = sums[lane] + loss;
                }
            }
            return simd::total(sums);
        }
        for i in 0..length {
            let (loss, derivatives) = self.evaluate(numbers_at(i));
            // SAFETY: as above.
            unsafe { losses.add(i).write(loss.get()) };
            for k in 0..M {
                // SAFETY: as above.
                unsafe {
                    let gradient = (derivatives[k] * W::Lane::new(*factors.add(i))).get();
                    gradients[k].add(i).write(MaybeUninit::new(gradient));
                }
            }
        }
        0.0
    }
}

impl<P: Pointwise<N>, const N: usize> Losses<N> for P {}

/// The engine of a formula whose arguments are tensors of one shape.
struct Elements(Box<dyn Formula>);

impl Engine for Elements {
    fn is_partial(&self) -> bool {
        self.0.is_partial()
    }

    fn count(&self, arguments: &[&Tensor]) -> usize {
        Header::of(arguments[0]).elements()
    }

    fn f_losses(&self, arguments: &[&Tensor]) -> Result<(f64, Tensor), LossError> {
        f_in_one_layout(arguments, |arguments| by_width!(arguments[0].f_kind()?, f_losses(&*self.0, arguments)))
    }

    fn f_sum(&self, arguments: &[&Tensor], factor: Factor, wanted: &[bool]) -> Result<(f64, Vec<Tensor>), LossError> {
        let f_sum =
            |arguments: &[&Tensor]| by_width!(arguments[0].f_kind()?, f_sum(&*self.0, arguments, factor, wanted));
        f_in_one_layout(arguments, f_sum)
    }
}

fn f_losses<W: Wide>(formula: &dyn OfBlock<W>, arguments: &[&Tensor]) -> Result<(f64, Tensor), LossError> {
    let losses = Output::<W>::f_like(arguments[0])?;
    let gradients: Vec<Option<Output<W>>> = arguments.iter().map(|_| None).collect();
    let sum = run(formula, arguments, Factors::Number(W::default()), Some(&losses), &gradients);
    Ok((sum, losses.into_tensor()))
}

fn f_sum<W: Wide>(
    formula: &dyn OfBlock<W>,
    arguments: &[&Tensor],
    factor: Factor,
    wanted: &[bool],
) -> Result<(f64, Vec<Tensor>), LossError> {
    let mut gradients = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        gradients.push(wanted.then(|| Output::<W>::f_like(arguments[0])).transpose()?);
    }
    let sum = match factor {
        Factor::Number(number) => run(formula, arguments, Factors::Number(W::from_f64(number)), None, &gradients),
        Factor::Tensor(factors) => {
            let factors = f_one_layout(&[arguments[0], factors])?.remove(1);
            run(formula, arguments, Factors::Elements(Numbers::of(&factors)), None, &gradients)
        }
    };
    Ok((sum, gradients.into_iter().flatten().map(Output::into_tensor).collect()))
}

/// Computes all elements of arguments in one layout: writes the losses and the gradients where there are outputs for
/// them, and returns the sum of the losses.
pub(super) fn run<W: Wide>(
    formula: &dyn OfBlock<W>,
    arguments: &[&Tensor],
    factor: Factors<W>,
    losses: Option<&Output<W>>,
    gradients: &[Option<Output<W>>],
) -> f64 {
    let length = Header::of(arguments[0]).elements();
    let arguments = arguments.iter().map(|argument| Numbers::of(argument)).collect();
    // As a rule the first argument alone has a gradient.
    let differentiated = match gradients.iter().rposition(Option::is_some) {
        None => 0,
        Some(0) => 1,
        Some(_) => gradients.len(),
    };
    let job = Job { formula, arguments, factor, losses, gradients: &gradients[..differentiated] };
    parallel::sum(length, BLOCK, |range| job.task(range))
}

/// A call, which all threads share.
struct Job<'a, W> {
    formula: &'a (dyn OfBlock<W> + 'a),
    arguments: Vec<Numbers<'a, W>>,
    factor: Factors<'a, W>,
    losses: Option<&'a Output<W>>,
    /// The outputs of the gradients of no argument, of the first one, or of all, of which some may not be wanted.
    gradients: &'a [Option<Output<W>>],
}

/// What the derivatives are multiplied by: one number, or a number for each element.
pub(super) enum Factors<'a, W> {
    Number(W),
    Elements(Numbers<'a, W>),
}

/// Buffers of one block: for each argument that has to be converted, and for each gradient that cannot be written
/// directly.
struct Room<W> {
    arguments: Vec<Vec<W>>,
    factors: Aligned<Block<W>>,
    losses: Aligned<Block<W>>,
    gradients: Vec<Vec<W>>,
}

impl<W: Wide> Job<'_, W> {
    /// Computes the elements in `range`, which no other task has. Returns the sum of their losses.
    fn task(&self, range: Range<usize>) -> f64 {
        let factor = match self.factor {
            Factors::Number(number) => number,
            Factors::Elements(_) => W::default(),
        };
        let room_of = |output: &Option<Output<W>>| match output {
            Some(output) if output.has_places() => Vec::new(),
            _ => vec![W::default(); BLOCK],
        };
        let mut room = Room {
            arguments: self.arguments.iter().map(|argument| argument.room(BLOCK)).collect(),
            factors: Aligned([factor; BLOCK]),
            losses: Aligned([W::default(); BLOCK]),
            gradients: self.gradients.iter().map(room_of).collect(),
        };
        let blocks = range.clone().step_by(BLOCK).map(|start| start..range.end.min(start + BLOCK));
        blocks.map(|block| self.block(block, &mut room)).sum()
    }

    fn block(&self, range: Range<usize>, room: &mut Room<W>) -> f64 {
        let (length, whole) = (range.len(), range.len() / LANES * LANES);
        let mut arguments = [&[][..]; MOST];
        for ((read, argument), room) in arguments.iter_mut().zip(&self.arguments).zip(&mut room.arguments) {
            *read = argument.read(range.clone(), room);
        }
        let factors = match self.factor {
            Factors::Number(_) => &room.factors.0[..length],
            Factors::Elements(elements) => elements.read(range.clone(), &mut room.factors.0),
        };
        let mut gradients: [&mut [MaybeUninit<W>]; MOST] = Default::default();
        for ((places, output), room) in gradients.iter_mut().zip(self.gradients).zip(&mut room.gradients) {
            // SAFETY: tasks have ranges of their own, and the blocks of a task are computed one after another.
            let own = output.as_ref().and_then(|output| unsafe { output.places(range.clone()) });
            *places = own.unwrap_or_else(|| uninit(&mut room[..length]));
        }
        let (losses, rest) = room.losses.0[..length].split_at_mut(whole);
        if !rest.is_empty() {
            let arguments = arguments.map(|argument| argument.get(whole..).unwrap_or_default());
            let gradients = gradients.each_mut().map(|places| places.get_mut(whole..).unwrap_or_default());
            self.rest(arguments, &factors[whole..], rest, gradients);
        }
        let differentiated = self.gradients.len();
        let summed = differentiated == 0 && rest.is_empty();
        let kept = self.losses.is_some() || !summed;
        let mut block = Numerals { arguments, factors, losses, sum: 0.0, kept, differentiated, gradients };
        if whole > 0 {
            self.formula.evaluate(&mut block);
        }
        let sum = block.sum;
        for (output, room) in self.gradients.iter().zip(&room.gradients) {
            if let Some(output) = output.as_ref().filter(|output| !output.has_places()) {
                // SAFETY: as above.
                unsafe { output.write(range.clone(), &room[..length]) };
            }
        }
        let losses = &room.losses.0[..length];
        if let Some(output) = self.losses {
            // SAFETY: as above.
            unsafe { output.write(range, losses) };
        }
        if summed { sum } else { simd::run(Sum(losses)) }
    }

    /// Computes the last numbers of a block, fewer than [`LANES`]. They are filled up with zeros to that number, so
    /// that the formula's loop needs no version for them.
    fn rest(&self, arguments: [&[W]; MOST], factors: &[W], losses: &mut [W], gradients: [&mut [MaybeUninit<W>]; MOST]) {
        let zeros = [W::default(); LANES];
        let filled = |numbers: &[W]| {
            let mut filled = zeros;
            filled[..numbers.len()].copy_from_slice(numbers);
            filled
        };
        let (arguments, factors, mut all) = (arguments.map(filled), filled(factors), zeros);
        let mut places = [[MaybeUninit::new(W::default()); LANES]; MOST];
        self.formula.evaluate(&mut Numerals {
            arguments: arguments.each_ref().map(|argument| &argument[..]),
            factors: &factors,
            losses: &mut all,
            sum: 0.0,
            kept: true,
            differentiated: self.gradients.len(),
            gradients: places.each_mut().map(|places| &mut places[..]),
        });
        losses.copy_from_slice(&all[..losses.len()]);
        for (gradient, places) in gradients.into_iter().zip(&places) {
            gradient.copy_from_slice(&places[..gradient.len()]);
        }
    }
}

/// Numbers as places to be overwritten.
fn uninit<W>(numbers: &mut [W]) -> &mut [MaybeUninit<W>] {
    // SAFETY: a formula writes whole numbers only.
    unsafe { &mut *(std::ptr::from_mut(numbers) as *mut [MaybeUninit<W>]) }
}
