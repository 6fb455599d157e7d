//! The engine of losses of embeddings: a formula of a few sums over the numbers of a row, such as dot products and
//! squared lengths. Cosine embedding, triplet margin and MCC use it.
//!
//! A row is read twice, once for its sums and once for its gradients; the second time it is in the first-level cache.
//! The gradient at a place is made of the numbers there and the derivatives of the loss with respect to the sums, times
//! a factor. A row that is longer than two tasks is shared by all threads.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::elements::{Block, Numbers, f_numbers, is_plain};
use super::kinds::Wide;
use super::lane::{Lane, LaneOf};
use super::output::Output;
use super::simd::{self, Kernel, LANES, fold};
use super::{BLOCK, parallel};
use crate::LossError;
use crate::kernels::backend;
use crate::kernels::engine::{Composite, Engine, Factor, Reduce, RowFactors, f_dispatch, row_length};
use crate::kernels::formulas::{Embedding, TypedRows};

/// The reduced losses of embeddings; see [`f_embedding`](crate::kernels::embedding::f_embedding).
pub(in crate::kernels) fn f_embeddings(
    formula: Box<dyn Formula>,
    embeddings: usize,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    if !backend::fused() || !takes(embeddings, arguments)? {
        return composite(arguments);
    }
    f_dispatch(Box::new(Rows { formula, embeddings }), arguments, reduce, composite)
}

fn takes(embeddings: usize, arguments: &[&Tensor]) -> Result<bool, LossError> {
    let (kind, size) = (arguments[0].f_kind()?, arguments[0].size());
    let (embeddings, labels) = arguments.split_at(embeddings);
    if !embeddings.iter().all(|argument| is_plain(argument, kind) && argument.size() == size) {
        return Ok(false);
    }
    let Some((columns, rows)) = size.split_last() else { return Ok(false) };
    let signed = [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Int];
    let is_labels = |labels: &&Tensor| {
        labels.size() == rows && labels.f_kind().is_ok_and(|kind| signed.contains(&kind) && is_plain(labels, kind))
    };
    Ok(*columns > 0 && arguments[0].numel() > 0 && labels.iter().all(is_labels))
}

/// A formula without its type. The engine calls it once for the rows of a task.
pub(in crate::kernels) trait Formula: OfRows<f32> + OfRows<f64> + Send + Sync {}

/// Computes the rows of a task, or a part of a long row.
pub(in crate::kernels) trait OfRows<W>: Sync {
    /// Computes what `part` says. For whole rows it returns the sum of their losses. For a part of a row it writes the
    /// sums to `sums`, or it reads the derivatives with respect to the sums from there.
    fn run(&self, job: &Job<W>, part: Part, sums: &mut Vec<f64>) -> f64;

    /// The loss of a row with these sums, which are overwritten by the loss's derivatives with respect to them.
    fn loss(&self, sums: &mut [f64], label: f64) -> f64;
}

impl<E: Embedding<N, S>, const N: usize, const S: usize> Formula for TypedRows<E, N, S> {}

impl<W: Wide, E: Embedding<N, S>, const N: usize, const S: usize> OfRows<W> for TypedRows<E, N, S> {
    fn run(&self, job: &Job<W>, part: Part, sums: &mut Vec<f64>) -> f64 {
        sums.resize(S, 0.0);
        let mut of = std::array::from_fn(|k| sums[k]);
        let loss = simd::run(Task::<_, _, N, S> { job, formula: self.0, part, sums: &mut of });
        sums.copy_from_slice(&of);
        loss
    }

    fn loss(&self, sums: &mut [f64], label: f64) -> f64 {
        let (loss, of_sums) = loss(self.0, std::array::from_fn(|k| sums[k]), label);
        sums.copy_from_slice(&of_sums);
        loss
    }
}

/// The loss of a row, and its derivatives with respect to the sums. Once for a row, without vector instructions.
fn loss<E: Embedding<N, S>, const N: usize, const S: usize>(formula: E, sums: [f64; S], label: f64) -> (f64, [f64; S]) {
    let (loss, of_sums) = formula.loss(sums.map(Lane), Lane(label));
    (loss.0, of_sums.map(|of_sum| of_sum.0))
}

/// The engine, with its formula.
struct Rows {
    formula: Box<dyn Formula>,
    /// How many of the arguments are embeddings.
    embeddings: usize,
}

impl Engine for Rows {
    fn differentiable(&self) -> usize {
        self.embeddings
    }

    fn count(&self, arguments: &[&Tensor]) -> usize {
        arguments[0].numel() / row_length(arguments[0])
    }

    fn f_losses(&self, arguments: &[&Tensor]) -> Result<(f64, Tensor), LossError> {
        match arguments[0].f_kind()? {
            Kind::Double => f_losses::<f64>(&*self.formula, self.embeddings, arguments),
            _ => f_losses::<f32>(&*self.formula, self.embeddings, arguments),
        }
    }

    fn f_sum(&self, arguments: &[&Tensor], factor: Factor, wanted: &[bool]) -> Result<(f64, Vec<Tensor>), LossError> {
        let wanted = &wanted[..self.embeddings];
        match arguments[0].f_kind()? {
            Kind::Double => f_sum::<f64>(&*self.formula, arguments, factor, wanted),
            _ => f_sum::<f32>(&*self.formula, arguments, factor, wanted),
        }
    }
}

fn f_losses<W: Wide>(
    formula: &dyn OfRows<W>,
    embeddings: usize,
    arguments: &[&Tensor],
) -> Result<(f64, Tensor), LossError> {
    let size = arguments[0].size();
    let losses = Output::<W>::f_of_kind(&size[..size.len() - 1], arguments[0].f_kind()?)?;
    let none: Vec<_> = (0..embeddings).map(|_| None).collect();
    let sum = f_run(formula, arguments, RowFactors::Number(0.0), Some(&losses), &none)?;
    Ok((sum, losses.into_tensor()))
}

fn f_sum<W: Wide>(
    formula: &dyn OfRows<W>,
    arguments: &[&Tensor],
    factor: Factor,
    wanted: &[bool],
) -> Result<(f64, Vec<Tensor>), LossError> {
    let (size, kind) = (arguments[0].size(), arguments[0].f_kind()?);
    let mut gradients = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        gradients.push(wanted.then(|| Output::<W>::f_of_kind(&size, kind)).transpose()?);
    }
    let sum = f_run(formula, arguments, RowFactors::f_new(factor)?, None, &gradients)?;
    Ok((sum, gradients.into_iter().flatten().map(Output::into_tensor).collect()))
}

/// Computes all rows: writes the losses and gradients where there are outputs for them, returns the sum of the losses.
/// There are as many embeddings as `gradients`.
fn f_run<W: Wide>(
    formula: &dyn OfRows<W>,
    arguments: &[&Tensor],
    factors: RowFactors,
    losses: Option<&Output<W>>,
    gradients: &[Option<Output<W>>],
) -> Result<f64, LossError> {
    let (embeddings, labels) = arguments.split_at(gradients.len());
    let labels = labels.first().map(|labels| f_numbers(labels)).transpose()?;
    let contiguous = |embedding: &&Tensor| embedding.f_detach()?.f_contiguous();
    let embeddings = embeddings.iter().map(contiguous).collect::<Result<Vec<Tensor>, _>>()?;
    let embeddings: Vec<Numbers<W>> = embeddings.iter().map(Numbers::of).collect();
    let columns = row_length(arguments[0]);
    let job = Job { formula, embeddings, columns, labels, factors, losses, gradients };
    let rows = arguments[0].numel() / columns;
    if columns > LONG {
        return Ok((0..rows).map(|row| job.long_row(row)).sum());
    }
    Ok(parallel::rows(rows, columns, |rows| formula.run(&job, Part::Rows(rows), &mut Vec::new())))
}

/// A call, which all threads share.
pub(in crate::kernels) struct Job<'a, W> {
    formula: &'a (dyn OfRows<W> + 'a),
    embeddings: Vec<Numbers<'a, W>>,
    /// D, the length of an embedding.
    columns: usize,
    labels: Option<Vec<f64>>,
    factors: RowFactors,
    losses: Option<&'a Output<W>>,
    gradients: &'a [Option<Output<W>>],
}

/// What one task does.
#[derive(Clone)]
pub(in crate::kernels) enum Part {
    /// The losses and gradients of these rows.
    Rows(Range<usize>),
    /// The sums over a part of a row, given as positions in the embeddings.
    Sums(Range<usize>),
    /// The gradients of a part of a row, given the derivatives with respect to the sums of the whole row.
    Gradients(Range<usize>),
}

/// A row of more numbers than this has several tasks. That depends on the row alone, so that results do not depend on
/// the number of threads.
const LONG: usize = 2 * parallel::TASK;

/// The kernel of a task.
struct Task<'a, 'b, W, E, const N: usize, const S: usize> {
    job: &'a Job<'b, W>,
    formula: E,
    part: Part,
    sums: &'a mut [f64; S],
}

impl<W: Wide, E: Embedding<N, S>, const N: usize, const S: usize> Kernel<W> for Task<'_, '_, W, E, N, S> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> f64 {
        let Self { job, formula, part, sums } = self;
        let mut room = Room::default();
        // A part of a row is handled as a row without a loss, so that the loops are compiled once.
        let (rows, part) = match part {
            Part::Rows(rows) => (rows, None),
            Part::Sums(range) => (0..1, Some((range, false))),
            Part::Gradients(range) => (0..1, Some((range, true))),
        };
        let mut total = 0.0;
        for row in rows {
            let (range, derived) = match &part {
                None => (row * job.columns..(row + 1) * job.columns, false),
                Some((range, derived)) => (range.clone(), *derived),
            };
            if !derived {
                *sums = job.sums::<R, E, N, S>(formula, range.clone(), &mut room);
            }
            if part.is_none() {
                let (loss, of_sums) = loss(formula, *sums, job.label(row));
                total += loss;
                job.store_loss(row, loss);
                let factor = job.factors.of_row(row);
                for k in 0..S {
                    sums[k] = of_sums[k] * factor;
                }
            }
            if derived || part.is_none() && job.is_differentiated() {
                job.derive::<R, E, N, S>(formula, range, *sums, &mut room);
            }
        }
        total
    }
}

/// Buffers of one block: for each embedding that has to be converted, and for each gradient.
struct Room<W, const N: usize> {
    numbers: [Block<W>; N],
    gradients: [Block<W>; N],
}

impl<W: Wide, const N: usize> Default for Room<W, N> {
    #[inline(always)]
    fn default() -> Self {
        let zeros = [W::default(); BLOCK];
        Room { numbers: [zeros; N], gradients: [zeros; N] }
    }
}

#[allow(private_bounds, reason = "a job is named beyond this module, and used here alone")]
impl<W: Wide> Job<'_, W> {
    /// Computes a row that all threads share: the sums of its parts, the loss, the gradients of its parts. Returns the
    /// loss.
    fn long_row(&self, row: usize) -> f64 {
        let columns = self.columns;
        let part = |index: usize| {
            let (start, end) = (index * parallel::TASK, columns.min((index + 1) * parallel::TASK));
            row * columns + start..row * columns + end
        };
        let parts = columns.div_ceil(parallel::TASK);
        let of_parts = parallel::results(parts, columns, |index| {
            let mut sums = Vec::new();
            self.formula.run(self, Part::Sums(part(index)), &mut sums);
            sums
        });
        let mut sums = vec![0.0; of_parts[0].len()];
        for of_part in of_parts {
            for (sum, of_part) in sums.iter_mut().zip(of_part) {
                *sum += of_part;
            }
        }
        let loss = self.formula.loss(&mut sums, self.label(row));
        self.store_loss(row, loss);
        if self.is_differentiated() {
            let factor = self.factors.of_row(row);
            sums.iter_mut().for_each(|of_sum| *of_sum *= factor);
            parallel::each(parts, columns, &|index| {
                self.formula.run(self, Part::Gradients(part(index)), &mut sums.clone());
            });
        }
        loss
    }

    fn is_differentiated(&self) -> bool {
        self.gradients.iter().any(Option::is_some)
    }

    fn label(&self, row: usize) -> f64 {
        self.labels.as_ref().map_or(0.0, |labels| labels[row])
    }

    /// Writes the loss of a row, which no other task has.
    fn store_loss(&self, row: usize, loss: f64) {
        if let Some(losses) = self.losses {
            // SAFETY: this thread alone has this row.
            unsafe { losses.write_cached(row..row + 1, &[W::from_f64(loss)]) };
        }
    }

    /// The sums over a range of positions.
    #[inline(always)]
    fn sums<R: LaneOf<W>, E: Embedding<N, S>, const N: usize, const S: usize>(
        &self,
        formula: E,
        range: Range<usize>,
        room: &mut Room<W, N>,
    ) -> [f64; S] {
        let mut sums = [0.0; S];
        for start in range.clone().step_by(BLOCK) {
            let block = start..range.end.min(start + BLOCK);
            let of_block = add::<R, W, E, N, S>(formula, self.read(block, &mut room.numbers));
            for k in 0..S {
                sums[k] += of_block[k];
            }
        }
        sums
    }

    /// Writes the gradients of a range of positions, which no other task has.
    #[inline(always)]
    fn derive<R: LaneOf<W>, E: Embedding<N, S>, const N: usize, const S: usize>(
        &self,
        formula: E,
        range: Range<usize>,
        of_sums: [f64; S],
        room: &mut Room<W, N>,
    ) {
        let of_sums: [R; S] = simd::lanes_of(of_sums);
        for start in range.clone().step_by(BLOCK) {
            let block = start..range.end.min(start + BLOCK);
            let length = block.len();
            let numbers = self.read(block.clone(), &mut room.numbers);
            derive::<R, W, E, N, S>(formula, numbers, of_sums, &mut room.gradients);
            for (output, gradient) in self.gradients.iter().zip(&room.gradients) {
                let Some(output) = output else { continue };
                // SAFETY: this thread alone has this range; blocks are written one after another.
                unsafe { output.write(block.clone(), &gradient[..length]) };
            }
        }
    }

    #[inline(always)]
    fn read<'a, const N: usize>(&'a self, range: Range<usize>, room: &'a mut [Block<W>; N]) -> [&'a [W]; N] {
        let mut read = [&[][..]; N];
        for ((read, numbers), room) in read.iter_mut().zip(&self.embeddings).zip(room) {
            *read = numbers.read(range.clone(), room);
        }
        read
    }
}

/// The sums over a block, added up in a fixed order.
#[inline(always)]
fn add<R: LaneOf<W>, W: Wide, E: Embedding<N, S>, const N: usize, const S: usize>(
    formula: E,
    numbers: [&[W]; N],
) -> [f64; S] {
    let lanes = fold(numbers, [R::of(0.0); S], |numbers, sums| formula.add(numbers, sums));
    let mut totals = [0.0; S];
    for k in 0..S {
        let mut sums = lanes[k];
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                sums[lane] = sums[lane] + sums[lane + width];
            }
        }
        totals[k] = sums[0].get().into();
    }
    totals
}

/// Computes the gradients of a block.
#[inline(always)]
fn derive<R: LaneOf<W>, W: Wide, E: Embedding<N, S>, const N: usize, const S: usize>(
    formula: E,
    numbers: [&[W]; N],
    of_sums: [R; S],
    gradients: &mut [Block<W>; N],
) {
    let length = numbers[0].len();
    let numbers = simd::part(numbers, 0..length);
    for i in 0..length.min(BLOCK) {
        let derivatives = formula.derive(simd::at(&numbers, i), of_sums);
        for k in 0..N {
            gradients[k][i] = derivatives[k].get();
        }
    }
}
