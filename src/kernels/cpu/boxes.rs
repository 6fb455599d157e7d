//! The engine of losses of pairs of boxes, four numbers each that lie side by side: GIoU, DIoU and CIoU.
//!
//! The formula is one of `pointwise` with the eight numbers of two boxes. A block is transposed into a column for each
//! of the eight, so that kernels run over pairs, and the gradients are transposed back.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::elements::{Numbers, is_plain};
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::parallel;
use super::simd::{self, Kernel};
use crate::LossError;
use crate::kernels::backend;
use crate::kernels::engine::{Composite, Engine, Factor, Reduce, f_dispatch};
use crate::kernels::formulas::{Pointwise, Typed};

/// How many pairs of boxes a block has.
const PAIRS: usize = 64;

/// How many numbers a box has.
const CORNERS: usize = 4;

/// The reduced losses of pairs of boxes; see [`f_boxes`](crate::kernels::boxes::f_boxes).
pub(in crate::kernels) fn f_pairs(
    formula: Box<dyn Formula>,
    boxes: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let (input, target) = (boxes[0], boxes[1]);
    let kind = input.f_kind()?;
    let taken = || {
        let size = input.size();
        let plain = is_plain(input, kind) && is_plain(target, kind);
        plain && input.numel() > 0 && size.last() == Some(&(CORNERS as i64)) && target.size() == size
    };
    if !backend::fused() || !taken() {
        return composite(boxes);
    }
    f_dispatch(Box::new(Pairs(formula)), boxes, reduce, composite)
}

/// A formula without its type. The engine calls it once for each block.
pub(in crate::kernels) trait Formula: OfPairs<f32> + OfPairs<f64> + Send + Sync {}

/// Computes the losses and derivatives of a block.
pub(in crate::kernels) trait OfPairs<W>: Sync {
    /// Computes the losses of the pairs in `columns`, and where there are factors, the derivatives times these, into
    /// `of`.
    fn evaluate(
        &self,
        columns: &Columns<W>,
        factors: Option<&[W; PAIRS]>,
        losses: &mut [W; PAIRS],
        of: &mut Columns<W>,
    );
}

/// A block of pairs: a column for each of the eight numbers.
pub(in crate::kernels) type Columns<W> = [[W; PAIRS]; 2 * CORNERS];

impl<P: Pointwise<8>> Formula for Typed<P, 8> {}

impl<W: Wide, P: Pointwise<8>> OfPairs<W> for Typed<P, 8> {
    fn evaluate(
        &self,
        columns: &Columns<W>,
        factors: Option<&[W; PAIRS]>,
        losses: &mut [W; PAIRS],
        of: &mut Columns<W>,
    ) {
        match factors {
            Some(factors) => simd::run(Losses::<_, _, true> { formula: self.0, columns, factors, losses, of }),
            None => {
                let factors = &[W::default(); PAIRS];
                simd::run(Losses::<_, _, false> { formula: self.0, columns, factors, losses, of });
            }
        }
    }
}

/// The engine with a formula.
struct Pairs(Box<dyn Formula>);

impl Engine for Pairs {
    fn count(&self, boxes: &[&Tensor]) -> usize {
        boxes[0].numel() / CORNERS
    }

    fn f_losses(&self, boxes: &[&Tensor]) -> Result<(f64, Tensor), LossError> {
        match boxes[0].f_kind()? {
            Kind::Double => f_losses::<f64>(&*self.0, boxes),
            _ => f_losses::<f32>(&*self.0, boxes),
        }
    }

    fn f_sum(&self, boxes: &[&Tensor], factor: Factor, wanted: &[bool]) -> Result<(f64, Vec<Tensor>), LossError> {
        match boxes[0].f_kind()? {
            Kind::Double => f_sum::<f64>(&*self.0, boxes, factor, wanted),
            _ => f_sum::<f32>(&*self.0, boxes, factor, wanted),
        }
    }
}

fn f_losses<W: Wide>(formula: &dyn OfPairs<W>, boxes: &[&Tensor]) -> Result<(f64, Tensor), LossError> {
    let size = boxes[0].size();
    let losses = Output::<W>::f_of_kind(&size[..size.len() - 1], boxes[0].f_kind()?)?;
    let sum = f_run(formula, boxes, Factors::Number(0.0), Some(&losses), &[None, None])?;
    Ok((sum, losses.into_tensor()))
}

fn f_sum<W: Wide>(
    formula: &dyn OfPairs<W>,
    boxes: &[&Tensor],
    factor: Factor,
    wanted: &[bool],
) -> Result<(f64, Vec<Tensor>), LossError> {
    let kind = boxes[0].f_kind()?;
    let new = |wanted: bool| wanted.then(|| Output::<W>::f_of_kind(&boxes[0].size(), kind)).transpose();
    let gradients = [new(wanted[0])?, new(wanted[1])?];
    let sum = match factor {
        Factor::Number(number) => f_run(formula, boxes, Factors::Number(number), None, &gradients)?,
        Factor::Tensor(factors) => {
            let factors = factors.f_detach()?.f_contiguous()?;
            f_run(formula, boxes, Factors::Pairs(Numbers::of(&factors)), None, &gradients)?
        }
    };
    Ok((sum, gradients.into_iter().flatten().map(Output::into_tensor).collect()))
}

/// Computes all pairs: writes the losses and gradients where there are outputs for them, returns the sum of the losses.
fn f_run<W: Wide>(
    formula: &dyn OfPairs<W>,
    boxes: &[&Tensor],
    factors: Factors<W>,
    losses: Option<&Output<W>>,
    gradients: &[Option<Output<W>>; 2],
) -> Result<f64, LossError> {
    let boxes = [boxes[0].f_detach()?.f_contiguous()?, boxes[1].f_detach()?.f_contiguous()?];
    let numbers = [Numbers::of(&boxes[0]), Numbers::of(&boxes[1])];
    let job = Job { formula, numbers, factors, losses, gradients };
    Ok(parallel::sum(numbers[0].len(), PAIRS * CORNERS, |range| job.task(range.start / CORNERS..range.end / CORNERS)))
}

/// A call, which all threads share.
struct Job<'a, W> {
    formula: &'a (dyn OfPairs<W> + 'a),
    numbers: [Numbers<'a, W>; 2],
    factors: Factors<'a, W>,
    losses: Option<&'a Output<W>>,
    gradients: &'a [Option<Output<W>>; 2],
}

/// What the derivatives are multiplied by: one number, or a number for each pair.
enum Factors<'a, W> {
    Number(f64),
    Pairs(Numbers<'a, W>),
}

impl<W: Wide> Job<'_, W> {
    /// Computes pairs that no other task has. Returns the sum of their losses.
    fn task(&self, pairs: Range<usize>) -> f64 {
        let starts = pairs.clone().step_by(PAIRS);
        starts.map(|start| self.block(start..pairs.end.min(start + PAIRS))).sum()
    }

    /// Computes a block of pairs. Returns the sum of their losses. A last block that is not full is filled up with
    /// boxes of zeros, so that kernels have loops of a fixed length.
    fn block(&self, pairs: Range<usize>) -> f64 {
        let (zero, length) = (W::default(), pairs.len());
        let corners = pairs.start * CORNERS..pairs.end * CORNERS;
        let mut columns = [[zero; PAIRS]; 2 * CORNERS];
        for (numbers, columns) in self.numbers.iter().zip(columns.as_chunks_mut::<CORNERS>().0) {
            let mut boxes = [zero; PAIRS * CORNERS];
            numbers.copy(corners.clone(), &mut boxes[..corners.len()]);
            simd::run(Split { boxes: &boxes, columns });
        }
        let mut factors = [zero; PAIRS];
        match self.factors {
            Factors::Number(number) => factors = [W::from_f64(number); PAIRS],
            Factors::Pairs(all) => all.copy(pairs.clone(), &mut factors[..length]),
        }
        let mut losses = [zero; PAIRS];
        let mut derivatives = [[zero; PAIRS]; 2 * CORNERS];
        let wanted = self.gradients.iter().any(Option::is_some);
        self.formula.evaluate(&columns, wanted.then_some(&factors), &mut losses, &mut derivatives);
        for (output, columns) in self.gradients.iter().zip(derivatives.as_chunks::<CORNERS>().0) {
            let Some(output) = output else { continue };
            let mut boxes = [zero; PAIRS * CORNERS];
            simd::run(Join { columns, boxes: &mut boxes });
            // SAFETY: tasks have pairs of their own, and the blocks of a task are computed one after another.
            unsafe { output.write(corners.clone(), &boxes[..corners.len()]) };
        }
        if let Some(output) = self.losses {
            // SAFETY: as above.
            unsafe { output.write_cached(pairs, &losses[..length]) };
        }
        losses[..length].iter().map(|&loss| loss.into()).sum()
    }
}

/// The kernel that transposes boxes into columns.
struct Split<'a, W> {
    boxes: &'a [W; PAIRS * CORNERS],
    columns: &'a mut [[W; PAIRS]; CORNERS],
}

impl<W: Wide> Kernel<W> for Split<'_, W> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        for i in 0..PAIRS {
            for k in 0..CORNERS {
                self.columns[k][i] = self.boxes[i * CORNERS + k];
            }
        }
    }
}

/// The kernel that transposes columns into boxes.
struct Join<'a, W> {
    columns: &'a [[W; PAIRS]; CORNERS],
    boxes: &'a mut [W; PAIRS * CORNERS],
}

impl<W: Wide> Kernel<W> for Join<'_, W> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        for i in 0..PAIRS {
            for k in 0..CORNERS {
                self.boxes[i * CORNERS + k] = self.columns[k][i];
            }
        }
    }
}

/// The kernel of a block's losses and, with `GRADIENTS`, their derivatives times the factors.
struct Losses<'a, W, P, const GRADIENTS: bool> {
    formula: P,
    columns: &'a Columns<W>,
    factors: &'a [W; PAIRS],
    losses: &'a mut [W; PAIRS],
    of: &'a mut Columns<W>,
}

impl<W: Wide, P: Pointwise<8>, const GRADIENTS: bool> Kernel<W> for Losses<'_, W, P, GRADIENTS> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let Self { formula, columns, factors, losses, of } = self;
        for i in 0..PAIRS {
            let mut numbers = [R::of(0.0); 2 * CORNERS];
            for k in 0..2 * CORNERS {
                numbers[k] = R::new(columns[k][i]);
            }
            let (loss, of_numbers) = formula.evaluate(numbers);
            losses[i] = loss.get();
            if GRADIENTS {
                for k in 0..2 * CORNERS {
                    of[k][i] = (of_numbers[k] * R::new(factors[i])).get();
                }
            }
        }
    }
}
