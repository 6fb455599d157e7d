//! The engine of losses of pairs of boxes, four numbers each that lie side by side.

use std::ops::Range;

use tch::Tensor;

use super::element::{Element, Output, elements, is_plain};
use super::engine::{Engine, Factor, Reduce, f_dispatch};
use super::pointwise::Pointwise;
use super::simd::{self, Kernel, LaneOf};
use super::{backend, parallel};
use crate::LossError;

/// How many pairs of boxes are worked on at a time.
const PAIRS: usize = 64;

/// The numbers of a box.
const CORNERS: usize = 4;

/// The reduced losses of boxes `[*, 4]` by `formula`, whose arguments are the numbers of both, or by the `composite` of tensor
/// operations where the engine does not take the call.
pub(crate) fn f_boxes<P, C>(
    formula: P,
    boxes: [&Tensor; 2],
    reduce: impl Into<Reduce>,
    composite: C,
) -> Result<Tensor, LossError>
where
    P: Pointwise<8>,
    C: Fn([&Tensor; 2]) -> Result<Tensor, LossError> + Send + 'static,
{
    let [input, target] = boxes;
    let kind = input.f_kind()?;
    let taken = || {
        let size = input.size();
        let plain = is_plain(input, kind) && is_plain(target, kind);
        plain && input.numel() > 0 && size.last() == Some(&(CORNERS as i64)) && target.size() == size
    };
    if !backend::fused() || !taken() {
        return composite(boxes);
    }
    f_dispatch(Pairs(formula), boxes, reduce.into(), composite)
}

/// The engine with a formula.
#[derive(Clone, Copy)]
struct Pairs<P>(P);

impl<P: Pointwise<8>> Engine<2> for Pairs<P> {
    fn count(self, boxes: [&Tensor; 2]) -> usize {
        boxes[0].numel() / CORNERS
    }

    fn f_losses<T: Element>(self, boxes: [&Tensor; 2]) -> Result<(f64, Tensor), LossError> {
        let size = boxes[0].size();
        let losses = Output::<T>::f_of_size(&size[..size.len() - 1])?;
        let sum = self.f_run(boxes, Factors::Number(0.0), Some(&losses), &[None, None])?;
        Ok((sum, losses.into_tensor()))
    }

    fn f_sum<T: Element>(
        self,
        boxes: [&Tensor; 2],
        factor: Factor,
        wanted: [bool; 2],
    ) -> Result<(f64, Vec<Tensor>), LossError> {
        let new = |wanted: bool| wanted.then(|| Output::<T>::f_of_size(&boxes[0].size())).transpose();
        let gradients = [new(wanted[0])?, new(wanted[1])?];
        let sum = match factor {
            Factor::Number(number) => self.f_run(boxes, Factors::Number(number), None, &gradients)?,
            Factor::Tensor(factors) => {
                let factors = factors.f_detach()?.f_contiguous()?;
                self.f_run(boxes, Factors::Pairs(elements(&factors)), None, &gradients)?
            }
        };
        Ok((sum, gradients.into_iter().flatten().map(Output::into_tensor).collect()))
    }
}

impl<P: Pointwise<8>> Pairs<P> {
    /// Runs over all pairs. Returns the sum of the losses.
    fn f_run<T: Element>(
        self,
        boxes: [&Tensor; 2],
        factors: Factors<T>,
        losses: Option<&Output<T>>,
        gradients: &[Option<Output<T>>; 2],
    ) -> Result<f64, LossError> {
        let boxes = [boxes[0].f_detach()?.f_contiguous()?, boxes[1].f_detach()?.f_contiguous()?];
        let numbers = [elements(&boxes[0]), elements(&boxes[1])];
        let job = Job { formula: self.0, numbers, factors, losses, gradients };
        Ok(parallel::sum(numbers[0].len(), PAIRS * CORNERS, |range| {
            let pairs = range.start / CORNERS..range.end / CORNERS;
            if gradients.iter().any(Option::is_some) {
                simd::run(Task::<_, _, true> { job: &job, pairs })
            } else {
                simd::run(Task::<_, _, false> { job: &job, pairs })
            }
        }))
    }
}

/// What all threads work on.
struct Job<'a, T: Element, P> {
    formula: P,
    numbers: [&'a [T]; 2],
    factors: Factors<'a, T>,
    losses: Option<&'a Output<T>>,
    gradients: &'a [Option<Output<T>>; 2],
}

enum Factors<'a, T> {
    Number(f64),
    Pairs(&'a [T]),
}

/// Pairs that no other thread has.
struct Task<'a, 'b, T: Element, P, const GRADIENTS: bool> {
    job: &'a Job<'b, T, P>,
    pairs: Range<usize>,
}

impl<T: Element, P: Pointwise<8>, const GRADIENTS: bool> Kernel<T::Wide> for Task<'_, '_, T, P, GRADIENTS> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) -> f64 {
        let starts = self.pairs.clone().step_by(PAIRS);
        starts.map(|start| block::<R, T, P, GRADIENTS>(self.job, start..self.pairs.end.min(start + PAIRS))).sum()
    }
}

/// The sum of the losses of some pairs. Those of a last block that is not full are computed beside as many of nothing.
#[inline(always)]
fn block<R: LaneOf<T::Wide>, T: Element, P: Pointwise<8>, const GRADIENTS: bool>(
    job: &Job<T, P>,
    pairs: Range<usize>,
) -> f64 {
    let (zero, length) = (T::Wide::default(), pairs.len());
    let corners = pairs.start * CORNERS..pairs.end * CORNERS;
    let mut columns = [[zero; PAIRS]; 2 * CORNERS];
    for (of, numbers) in job.numbers.iter().enumerate() {
        let mut room = [zero; PAIRS * CORNERS];
        let rows = &numbers[corners.clone()];
        T::copy(rows, &mut room[..rows.len()]);
        for i in 0..PAIRS {
            for k in 0..CORNERS {
                columns[of * CORNERS + k][i] = room[i * CORNERS + k];
            }
        }
    }
    let mut factors = [zero; PAIRS];
    match job.factors {
        Factors::Number(number) => factors = [T::Wide::from_f64(number); PAIRS],
        Factors::Pairs(all) => T::copy(&all[pairs.clone()], &mut factors[..length]),
    }
    let mut losses = [zero; PAIRS];
    let mut derivatives = [[zero; PAIRS]; 2 * CORNERS];
    for i in 0..PAIRS {
        // By index: `map` would copy all columns each time.
        let numbers = std::array::from_fn(|k| R::new(columns[k][i]));
        let (loss, of_numbers) = job.formula.evaluate(numbers);
        losses[i] = loss.get();
        if GRADIENTS {
            for k in 0..2 * CORNERS {
                derivatives[k][i] = (of_numbers[k] * R::new(factors[i])).get();
            }
        }
    }
    for (of, output) in job.gradients.iter().enumerate() {
        let Some(output) = output else { continue };
        let mut room = [zero; PAIRS * CORNERS];
        for i in 0..PAIRS {
            for k in 0..CORNERS {
                room[i * CORNERS + k] = derivatives[of * CORNERS + k][i];
            }
        }
        // SAFETY: tasks have pairs of their own, and the blocks of a task are computed one after another.
        unsafe { output.write(corners.clone(), &room[..corners.len()]) };
    }
    if let Some(output) = job.losses {
        // SAFETY: as above.
        T::write(&losses[..length], unsafe { output.range(pairs) });
    }
    losses[..length].iter().map(|&loss| loss.into()).sum()
}
