//! The engine of losses of rows of embeddings: a few sums over the numbers of a row, and a formula of these.
//!
//! A row is read twice, once for its sums and once for its gradients; the second time it is in the first cache. All threads share
//! a row that is longer than that.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::element::{Block, Element, Output, elements, f_numbers, is_plain};
use super::engine::{Engine, Factor, Reduce, RowFactors, f_dispatch, row_length};
use super::number::Real;
use super::simd::{self, Kernel, LANES, LaneOf, Wide, fold};
use super::{BLOCK, backend, parallel};
use crate::LossError;
use crate::numeric::f_widely_alike;

/// A loss of `N` embeddings and a label, by `S` sums over their numbers.
pub(crate) trait Embedding<const N: usize, const S: usize>: Copy + Send + Sync + 'static {
    /// The sums with the terms of one place of the embeddings added. To be `#[inline(always)]`.
    fn add<R: Real>(self, numbers: [R; N], sums: [R; S]) -> [R; S];

    /// The loss of the sums, and its derivatives with respect to them.
    fn loss(self, sums: [f64; S], label: f64) -> (f64, [f64; S]);

    /// The derivatives with respect to the numbers of one place, given those with respect to the sums. To be
    /// `#[inline(always)]`.
    fn derive<R: Real>(self, numbers: [R; N], of_sums: [R; S]) -> [R; N];
}

/// The reduced losses of embeddings `[*, D]`, all but the last of the `arguments`, and of labels `[*]`, the last, by `formula`, or by
/// the `composite` of tensor operations where the engine does not take the call. Losses without labels give any argument in
/// their place.
pub(crate) fn f_embedding<const N: usize, const S: usize, const M: usize, E, C>(
    formula: E,
    arguments: [&Tensor; M],
    reduce: impl Into<Reduce>,
    composite: C,
) -> Result<Tensor, LossError>
where
    E: Embedding<N, S>,
    C: Fn([&Tensor; M]) -> Result<Tensor, LossError> + Send + 'static,
{
    let composite = move |arguments: [&Tensor; M]| f_widely_alike(arguments, &composite);
    if !backend::fused() || !takes::<N, M>(arguments)? {
        return composite(arguments);
    }
    f_dispatch(Rows::<E, N, S>(formula), arguments, reduce.into(), composite)
}

fn takes<const N: usize, const M: usize>(arguments: [&Tensor; M]) -> Result<bool, LossError> {
    let (kind, size) = (arguments[0].f_kind()?, arguments[0].size());
    if !arguments[..N].iter().all(|argument| is_plain(argument, kind) && argument.size() == size) {
        return Ok(false);
    }
    let Some((columns, rows)) = size.split_last() else { return Ok(false) };
    let signed = [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Int];
    let is_labels = |labels: &&Tensor| {
        labels.size() == rows && labels.f_kind().is_ok_and(|kind| signed.contains(&kind) && is_plain(labels, kind))
    };
    Ok(*columns > 0 && arguments[0].numel() > 0 && arguments[N..].iter().all(is_labels))
}

/// The engine with a formula.
#[derive(Clone, Copy)]
struct Rows<E, const N: usize, const S: usize>(E);

impl<E: Embedding<N, S>, const N: usize, const S: usize, const M: usize> Engine<M> for Rows<E, N, S> {
    const DIFFERENTIABLE: usize = N;

    fn count(self, arguments: [&Tensor; M]) -> usize {
        arguments[0].numel() / row_length(arguments[0])
    }

    fn f_losses<T: Element>(self, arguments: [&Tensor; M]) -> Result<(f64, Tensor), LossError> {
        let size = arguments[0].size();
        let losses = Output::<T>::f_of_size(&size[..size.len() - 1])?;
        let sum = self.f_run(arguments, RowFactors::Number(0.0), Some(&losses), &[const { None }; N])?;
        Ok((sum, losses.into_tensor()))
    }

    fn f_sum<T: Element>(
        self,
        arguments: [&Tensor; M],
        factor: Factor,
        wanted: [bool; M],
    ) -> Result<(f64, Vec<Tensor>), LossError> {
        let mut gradients = [const { None }; N];
        for (gradient, _) in gradients.iter_mut().zip(wanted).filter(|(_, wanted)| *wanted) {
            *gradient = Some(Output::<T>::f_of_size(&arguments[0].size())?);
        }
        let sum = self.f_run(arguments, RowFactors::f_new(factor)?, None, &gradients)?;
        Ok((sum, gradients.into_iter().flatten().map(Output::into_tensor).collect()))
    }
}

impl<E, const N: usize, const S: usize> Rows<E, N, S> {
    /// Runs over all rows. Returns the sum of the losses.
    fn f_run<T: Element, const M: usize>(
        self,
        arguments: [&Tensor; M],
        factors: RowFactors,
        losses: Option<&Output<T>>,
        gradients: &[Option<Output<T>>; N],
    ) -> Result<f64, LossError>
    where
        E: Embedding<N, S>,
    {
        let labels = arguments.get(N).map(|labels| f_numbers(labels)).transpose()?;
        let mut embeddings = [const { None }; N];
        for (embedding, argument) in embeddings.iter_mut().zip(arguments) {
            *embedding = Some(argument.f_detach()?.f_contiguous()?);
        }
        let embeddings = embeddings.each_ref().map(|embedding| embedding.as_ref().map_or(&[][..], elements));
        let columns = row_length(arguments[0]);
        let job = Job { formula: self.0, embeddings, columns, labels, factors, losses, gradients };
        let rows = arguments[0].numel() / columns;
        if columns > LONG {
            return Ok((0..rows).map(|row| job.long_row(row)).sum());
        }
        Ok(parallel::rows(rows, columns, |rows| simd::run(Task { job: &job, rows })))
    }
}

/// What all threads work on.
struct Job<'a, T: Element, E, const N: usize> {
    formula: E,
    embeddings: [&'a [T]; N],
    columns: usize,
    labels: Option<Vec<f64>>,
    factors: RowFactors,
    losses: Option<&'a Output<T>>,
    gradients: &'a [Option<Output<T>>; N],
}

/// A row of more numbers has several tasks. It depends on the row alone, so that results do not depend on the number of threads.
const LONG: usize = 2 * parallel::TASK;

/// Rows that no other thread has.
struct Task<'a, 'b, T: Element, E, const N: usize, const S: usize> {
    job: &'a Job<'b, T, E, N>,
    rows: Range<usize>,
}

impl<T: Element, E: Embedding<N, S>, const N: usize, const S: usize> Kernel<T::Wide> for Task<'_, '_, T, E, N, S> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) -> f64 {
        let (job, mut room) = (self.job, Room::default());
        let mut total = 0.0;
        for row in self.rows {
            let range = row * job.columns..(row + 1) * job.columns;
            let sums = job.sums::<R, S>(range.clone(), &mut room);
            let (loss, of_sums) = job.loss(row, sums);
            total += loss;
            if job.is_differentiated() {
                job.derive::<R, S>(range, of_sums, &mut room);
            }
        }
        total
    }
}

/// The sums of a part of a row.
struct PartSums<'a, 'b, T: Element, E, const N: usize, const S: usize> {
    job: &'a Job<'b, T, E, N>,
    range: Range<usize>,
}

impl<T: Element, E: Embedding<N, S>, const N: usize, const S: usize> Kernel<T::Wide> for PartSums<'_, '_, T, E, N, S> {
    type Result = [f64; S];

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) -> [f64; S] {
        self.job.sums::<R, S>(self.range, &mut Room::default())
    }
}

/// The gradients of a part of a row, which no other thread has.
struct PartGradients<'a, 'b, T: Element, E, const N: usize, const S: usize> {
    job: &'a Job<'b, T, E, N>,
    range: Range<usize>,
    of_sums: [f64; S],
}

impl<T: Element, E: Embedding<N, S>, const N: usize, const S: usize> Kernel<T::Wide>
    for PartGradients<'_, '_, T, E, N, S>
{
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) {
        self.job.derive::<R, S>(self.range, self.of_sums, &mut Room::default());
    }
}

/// Room for one block of each argument and gradient.
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

impl<T: Element, E, const N: usize> Job<'_, T, E, N> {
    /// The loss of a row that all threads share.
    fn long_row<const S: usize>(&self, row: usize) -> f64
    where
        E: Embedding<N, S>,
    {
        let columns = self.columns;
        let part = |index: usize| {
            let (start, end) = (index * parallel::TASK, columns.min((index + 1) * parallel::TASK));
            row * columns + start..row * columns + end
        };
        let parts = columns.div_ceil(parallel::TASK);
        let of_parts = parallel::results(parts, columns, |index| simd::run(PartSums { job: self, range: part(index) }));
        let sums = of_parts.into_iter().fold([0.0; S], |sums, of_part| std::array::from_fn(|k| sums[k] + of_part[k]));
        let (loss, of_sums) = self.loss(row, sums);
        if self.is_differentiated() {
            let task = |index: usize| simd::run(PartGradients { job: self, range: part(index), of_sums });
            parallel::each(parts, columns, &task);
        }
        loss
    }

    fn is_differentiated(&self) -> bool {
        self.gradients.iter().any(Option::is_some)
    }

    /// Writes the loss of a row that this thread alone has. Returns it, and the derivatives of the result with respect to the sums.
    #[inline(always)]
    fn loss<const S: usize>(&self, row: usize, sums: [f64; S]) -> (f64, [f64; S])
    where
        E: Embedding<N, S>,
    {
        let label = self.labels.as_ref().map_or(0.0, |labels| labels[row]);
        let (loss, of_sums) = self.formula.loss(sums, label);
        if let Some(losses) = self.losses {
            // SAFETY: this thread alone has this row.
            let place = unsafe { losses.range(row..row + 1) };
            place[0].write(T::from_f64(loss));
        }
        let factor = self.factors.of_row(row);
        (loss, of_sums.map(|of_sum| of_sum * factor))
    }

    #[inline(always)]
    fn sums<R: LaneOf<T::Wide>, const S: usize>(&self, range: Range<usize>, room: &mut Room<T::Wide, N>) -> [f64; S]
    where
        E: Embedding<N, S>,
    {
        let mut sums = [0.0; S];
        for block in blocks(range) {
            let of_block = add::<R, T::Wide, E, N, S>(self.formula, self.read(block, &mut room.numbers));
            sums = std::array::from_fn(|k| sums[k] + of_block[k]);
        }
        sums
    }

    /// Writes the gradients of a range that this thread alone has.
    #[inline(always)]
    fn derive<R: LaneOf<T::Wide>, const S: usize>(
        &self,
        range: Range<usize>,
        of_sums: [f64; S],
        room: &mut Room<T::Wide, N>,
    ) where
        E: Embedding<N, S>,
    {
        let of_sums = of_sums.map(R::of);
        for block in blocks(range) {
            let length = block.len();
            let numbers = self.read(block.clone(), &mut room.numbers);
            let gradients = room.gradients.each_mut().map(|gradient| &mut gradient[..length]);
            derive::<R, T::Wide, E, N, S>(self.formula, numbers, of_sums, gradients);
            for (output, gradient) in self.gradients.iter().zip(&room.gradients) {
                let Some(output) = output else { continue };
                // SAFETY: this thread alone has this range; blocks are written one after another.
                unsafe { output.write(block.clone(), &gradient[..length]) };
            }
        }
    }

    #[inline(always)]
    fn read<'a>(&'a self, range: Range<usize>, room: &'a mut [Block<T::Wide>; N]) -> [&'a [T::Wide]; N] {
        let mut read = self.embeddings.iter().zip(room).map(|(numbers, room)| T::read(&numbers[range.clone()], room));
        std::array::from_fn(|_| read.next().unwrap_or_default())
    }
}

#[inline(always)]
fn blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(BLOCK).map(move |start| start..end.min(start + BLOCK))
}

/// The sums over a block, in a fixed order.
#[inline(always)]
fn add<R: LaneOf<W>, W: Wide, E: Embedding<N, S>, const N: usize, const S: usize>(
    formula: E,
    numbers: [&[W]; N],
) -> [f64; S] {
    let lanes = fold(numbers, [R::of(0.0); S], |numbers, sums| formula.add(numbers, sums));
    lanes.map(|mut sums| {
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                sums[lane] = sums[lane] + sums[lane + width];
            }
        }
        sums[0].get().into()
    })
}

/// The gradients of a block.
#[inline(always)]
fn derive<R: LaneOf<W>, W: Wide, E: Embedding<N, S>, const N: usize, const S: usize>(
    formula: E,
    numbers: [&[W]; N],
    of_sums: [R; S],
    gradients: [&mut [W]; N],
) {
    let length = numbers[0].len();
    let numbers = numbers.map(|numbers| &numbers[..length]);
    let gradients = gradients.map(|gradient| &mut gradient[..length]);
    for i in 0..length {
        let derivatives = formula.derive(numbers.map(|numbers| R::new(numbers[i])), of_sums);
        for k in 0..N {
            gradients[k][i] = derivatives[k].get();
        }
    }
}
