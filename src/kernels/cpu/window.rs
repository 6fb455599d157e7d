//! The engine of sums under a window that slides along one dimension: the blur of SSIM and MS-SSIM. The gradient is
//! such a sum with the taps in reverse order.

use std::ops::Range;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::elements::elements;
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::simd::{self, Kernel};
use super::{BLOCK, parallel};
use crate::LossError;
use crate::autograd::{self, Context, Function};
use crate::kernels::tensors::f_plain;
use crate::kernels::{NumberOperations, takes};

/// What the window reads beyond the border of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// Nothing: the window has only those places where all of it fits.
    Nothing,
    /// Zeros: the window, of an odd number of taps, has its middle at each element.
    Zeros,
}

/// The sums under a window at each of its places: `out[i] = Σₜ taps[t] · input[i + t − lead]` along `dim`. With
/// [`Beyond::Zeros`] `lead` is half the window. With [`Beyond::Nothing`] it is 0, and `dim` is at least as long as the
/// window. The result can be differentiated any number of times.
pub(crate) fn f_slide(input: &Tensor, dim: usize, taps: &Arc<[f64]>, beyond: Beyond) -> Result<Tensor, LossError> {
    let (length, reach) = (input.size()[dim] as usize, taps.len() - 1);
    let (lead, places) = match beyond {
        Beyond::Nothing => (0, length - reach),
        Beyond::Zeros => (reach / 2, length),
    };
    if takes(input) && matches!(input.f_kind()?, Kind::Float | Kind::Double) {
        return f_engine(input, Slide { dim, taps: taps.clone(), lead, places });
    }
    let mut padding = vec![0; 2 * (input.dim() - dim)];
    padding[2 * (input.dim() - dim) - 2..].fill(lead as i64);
    let padded = if lead == 0 { input.shallow_clone() } else { input.f_constant_pad_nd(padding)? };
    let term = |(at, tap): (usize, &f64)| padded.f_narrow(dim as i64, at as i64, places as i64)?.f_mul_number(*tap);
    let mut terms = taps.iter().enumerate().map(term);
    let first = terms.next().ok_or_else(|| tch::TchError::Torch("a window without taps".into()))??;
    Ok(terms.try_fold(first, |sum, term| sum.f_add(&term?))?)
}

/// A window along one dimension.
#[derive(Debug, Clone)]
struct Slide {
    dim: usize,
    taps: Arc<[f64]>,
    /// How many taps are before the first element when the window is at its first place.
    lead: usize,
    /// How many places the window has.
    places: usize,
}

impl Slide {
    /// The window that makes the gradient of the input, whose length is given, of the gradient of the sums.
    fn transposed(&self, length: usize) -> Self {
        let taps: Arc<[f64]> = self.taps.iter().rev().copied().collect();
        Self { dim: self.dim, lead: taps.len() - 1 - self.lead, taps, places: length }
    }
}

fn f_engine(input: &Tensor, slide: Slide) -> Result<Tensor, LossError> {
    let plain = f_plain(&input.f_detach()?)?.f_contiguous()?;
    let output = match plain.f_kind()? {
        Kind::Float => f_run::<f32>(&plain, &slide)?,
        _ => f_run::<f64>(&plain, &slide)?,
    };
    let length = input.size()[slide.dim] as usize;
    let backward = move |context: Context| -> autograd::Gradients {
        let Some(grad) = context.grad(0) else { return Ok(vec![None]) };
        Ok(vec![Some(f_engine(&grad, slide.transposed(length))?)])
    };
    Ok(Function::new(&[input]).f_attach_own(vec![output], backward)?.remove(0))
}

fn f_run<W: Wide>(input: &Tensor, slide: &Slide) -> Result<Tensor, LossError> {
    let Slide { dim, lead, places, .. } = *slide;
    let mut size = input.size();
    let step = size[dim + 1..].iter().product::<i64>() as usize;
    let length = size[dim] as usize;
    size[dim] = places as i64;
    let taps: Vec<W> = slide.taps.iter().map(|tap| W::from_f64(*tap)).collect();
    let output = Output::<W>::f_of_size(&size)?;
    let job = Job {
        input: elements::<W>(input),
        output: &output,
        taps: &taps,
        step,
        lead: lead * step,
        read: length * step,
        written: places * step,
    };
    let total = size.iter().product::<i64>() as usize;
    parallel::sum(total, BLOCK, |range| job.task(range));
    Ok(output.into_tensor())
}

/// A call, which all threads share. The input is lines of `read` numbers, each of which becomes a line of `written`
/// sums.
struct Job<'a, W> {
    input: &'a [W],
    output: &'a Output<W>,
    taps: &'a [W],
    /// The distance in memory from one tap to the next: the product of the dimensions after `dim`.
    step: usize,
    /// How far before its line the window begins, in numbers.
    lead: usize,
    read: usize,
    written: usize,
}

impl<W: Wide> Job<'_, W> {
    /// Computes the sums in `range`, which no other task has.
    fn task(&self, range: Range<usize>) -> f64 {
        let mut room = [W::default(); BLOCK];
        let mut padded = [W::default(); 2 * BLOCK];
        let reach = (self.taps.len() - 1) * self.step;
        let mut start = range.start;
        while start < range.end {
            let (line, first) = (start / self.written, start % self.written);
            let length = BLOCK.min(range.end - start).min(self.written - first);
            let line = &self.input[line * self.read..][..self.read];
            let sums = &mut room[..length];
            let inside = first >= self.lead && first + length + reach <= line.len() + self.lead;
            let (line, first, lead) = if inside || length + reach > padded.len() {
                (line, first, self.lead)
            } else {
                (self.padded(line, first, &mut padded[..length + reach]), 0, 0)
            };
            simd::run(Sums { line, taps: self.taps, step: self.step, first, lead, sums });
            // SAFETY: tasks have ranges of their own, and the blocks of a task are computed one after another.
            unsafe { self.output.write_cached(start..start + length, &room[..length]) };
            start += length;
        }
        0.0
    }

    /// The numbers that the sums from `first` on read, with zeros for those beyond the line, copied into `room`.
    fn padded<'a>(&self, line: &[W], first: usize, room: &'a mut [W]) -> &'a [W] {
        let low = self.lead.saturating_sub(first).min(room.len());
        let high = (line.len() + self.lead).saturating_sub(first).clamp(low, room.len());
        room[..low].fill(W::default());
        room[low..high].copy_from_slice(&line[low + first - self.lead..high + first - self.lead]);
        room[high..].fill(W::default());
        room
    }
}

/// The kernel of `sums[i] = Σₜ taps[t] · line[first + i + t · step − lead]`, where numbers beyond the line are 0.
struct Sums<'a, W> {
    line: &'a [W],
    taps: &'a [W],
    step: usize,
    first: usize,
    lead: usize,
    sums: &'a mut [W],
}

/// How many sums are computed at a time, in registers.
const LANES: usize = 32;

/// How many sums are computed at a time where fewer than [`LANES`] are left.
const FEW: usize = 8;

impl<W: Wide> Kernel<W> for Sums<'_, W> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let Sums { line, taps, step, first, lead, sums } = self;
        let reach = (taps.len() - 1) * step;
        // The sums `begin..end` read numbers of the line only. The others are computed tap by tap, with what is inside
        // the line.
        let begin = lead.saturating_sub(first).min(sums.len());
        let end = (line.len() + lead).saturating_sub(reach + first).clamp(begin, sums.len());
        for edge in [0..begin, end..sums.len()] {
            if edge.is_empty() {
                continue;
            }
            sums[edge.clone()].fill(W::default());
            for (t, tap) in taps.iter().enumerate() {
                // The sum `i` reads at i + from − lead.
                let from = first + t * step;
                let low = lead.saturating_sub(from).max(edge.start);
                let high = (line.len() + lead).saturating_sub(from).min(edge.end);
                if low >= high {
                    continue;
                }
                let numbers = &line[low + from - lead..high + from - lead];
                for (sum, number) in sums[low..high].iter_mut().zip(numbers) {
                    *sum = R::new(*number).mul_add(R::new(*tap), R::new(*sum)).get();
                }
            }
        }
        // The sum `i` reads from i + first − lead on.
        let mut sums = &mut sums[begin..end];
        let mut numbers = &line[begin + first - lead.min(begin + first)..];
        (sums, numbers) = groups::<W, R, LANES>(sums, numbers, taps, step);
        (sums, numbers) = groups::<W, R, FEW>(sums, numbers, taps, step);
        groups::<W, R, 1>(sums, numbers, taps, step);
    }
}

/// Computes `LANES` sums at a time. Returns the sums that are left, and the numbers that they read.
#[inline(always)]
fn groups<'a, W: Wide, R: LaneOf<W>, const LANES: usize>(
    sums: &'a mut [W],
    numbers: &'a [W],
    taps: &[W],
    step: usize,
) -> (&'a mut [W], &'a [W]) {
    let whole = sums.len() - sums.len() % LANES;
    let (whole, rest) = sums.split_at_mut(whole);
    let mut at = 0;
    for group in whole.chunks_exact_mut(LANES) {
        let mut lanes = [R::of(0.0); LANES];
        for (t, tap) in taps.iter().enumerate() {
            let numbers = &numbers[at + t * step..][..LANES];
            for i in 0..LANES {
                lanes[i] = R::new(numbers[i]).mul_add(R::new(*tap), lanes[i]);
            }
        }
        for i in 0..LANES {
            group[i] = lanes[i].get();
        }
        at += LANES;
    }
    (rest, &numbers[at..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::randn;
    use crate::{Backend, with_backend};

    fn gradients(backend: Backend, input: &Tensor, dim: usize, taps: &Arc<[f64]>, beyond: Beyond) -> [Tensor; 3] {
        let leaf = input.detach().set_requires_grad(true);
        let output = with_backend(backend, || f_slide(&leaf, dim, taps, beyond).unwrap());
        let value = (&output * output.square()).sum(None);
        let first = Tensor::run_backward(&[value], &[&leaf], true, true).remove(0);
        let second = Tensor::run_backward(&[first.square().sum(None)], &[&leaf], false, false).remove(0);
        [output.detach(), first.detach(), second]
    }

    #[test]
    fn it_computes_what_tensor_operations_do() {
        for shape in [&[5, 7, 11][..], &[1, 40, 3], &[3, 2, 90], &[2, 3000, 1], &[1, 3, 41000], &[0, 4, 5]] {
            for (dim, size) in shape.iter().enumerate() {
                let inside = [1, 2, 5, 11].into_iter().filter(|count| count <= size);
                let inside = inside.map(|count| (count, Beyond::Nothing));
                for (count, beyond) in inside.chain([1, 3, 11, 33].map(|count| (count, Beyond::Zeros))) {
                    // The sums are about 1. Rounding errors of larger ones would exceed the absolute tolerance.
                    let taps: Arc<[f64]> = (0..count).map(|tap| (0.1 + tap as f64) / (count * count) as f64).collect();
                    let input = randn(shape);
                    let results = |backend| gradients(backend, &input, dim, &taps, beyond);
                    for (actual, expected) in results(Backend::Auto).iter().zip(results(Backend::Composite)) {
                        assert_eq!(actual.size(), expected.size());
                        assert!(actual.allclose(&expected, 1e-9, 1e-9, false), "{shape:?}, {dim}, {count}, {beyond:?}");
                    }
                }
            }
        }
    }
}
