//! The engine of a window that slides along one dimension.

use std::ops::Range;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::element::{Output, elements, f_plain};
use super::simd::{self, Kernel, LaneOf, Wide};
use super::{BLOCK, parallel, takes};
use crate::LossError;
use crate::autograd::{self, Context, Function};

/// The sums under a window at each place where it fits: `out[i] = Σₜ taps[t] · input[i + t]` along `dim`, which is at
/// least as long as the window. It has all derivatives.
pub(crate) fn f_slide(input: &Tensor, dim: usize, taps: &Arc<[f64]>) -> Result<Tensor, LossError> {
    if takes(input) && matches!(input.f_kind()?, Kind::Float | Kind::Double) {
        return f_engine(input, dim, taps, Extent::Inside);
    }
    let places = input.size()[dim] - taps.len() as i64 + 1;
    let term = |(at, tap): (usize, &f64)| input.f_narrow(dim as i64, at as i64, places)?.f_mul_scalar(*tap);
    let mut terms = taps.iter().enumerate().map(term);
    let first = terms.next().ok_or_else(|| tch::TchError::Torch("a window without taps".into()))??;
    Ok(terms.try_fold(first, |sum, term| sum.f_add(&term?))?)
}

/// The places at which the window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All of it is inside of the input.
    Inside,
    /// Some of it is, with the window turned round: the transpose of the former.
    Touching,
}

fn f_engine(input: &Tensor, dim: usize, taps: &Arc<[f64]>, extent: Extent) -> Result<Tensor, LossError> {
    let plain = f_plain(&input.f_detach()?)?.f_contiguous()?;
    let output = match plain.f_kind()? {
        Kind::Float => f_run::<f32>(&plain, dim, taps, extent)?,
        _ => f_run::<f64>(&plain, dim, taps, extent)?,
    };
    let (taps, transposed) = (taps.clone(), if extent == Extent::Inside { Extent::Touching } else { Extent::Inside });
    let backward = move |context: Context| -> autograd::Gradients {
        let Some(grad) = context.grad(0) else { return Ok(vec![None]) };
        Ok(vec![Some(f_engine(&grad, dim, &taps, transposed)?)])
    };
    Ok(Function::new(&[input]).f_attach_own(vec![output], backward)?.remove(0))
}

fn f_run<W: Wide>(input: &Tensor, dim: usize, taps: &[f64], extent: Extent) -> Result<Tensor, LossError> {
    let mut size = input.size();
    let step = size[dim + 1..].iter().product::<i64>() as usize;
    let (length, reach) = (size[dim] as usize, taps.len() - 1);
    let (places, lead) = match extent {
        Extent::Inside => (length - reach, 0),
        Extent::Touching => (length + reach, reach),
    };
    size[dim] = places as i64;
    let mut taps: Vec<W> = taps.iter().map(|tap| W::from_f64(*tap)).collect();
    if extent == Extent::Touching {
        taps.reverse();
    }
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

/// What all threads work on: lines of `read` numbers, each of which becomes a line of `written` numbers.
struct Job<'a, W: Wide> {
    input: &'a [W],
    output: &'a Output<W>,
    taps: &'a [W],
    /// From one tap to the next.
    step: usize,
    /// How far before its line the window begins.
    lead: usize,
    read: usize,
    written: usize,
}

impl<W: Wide> Job<'_, W> {
    /// Computes the numbers in `range`, which no other thread has.
    fn task(&self, range: Range<usize>) -> f64 {
        let mut room = [W::default(); BLOCK];
        let mut start = range.start;
        while start < range.end {
            let (line, first) = (start / self.written, start % self.written);
            let length = BLOCK.min(range.end - start).min(self.written - first);
            let line = &self.input[line * self.read..][..self.read];
            let sums = &mut room[..length];
            simd::run(Sums { line, taps: self.taps, step: self.step, first, lead: self.lead, sums });
            // SAFETY: tasks have ranges of their own, and the blocks of a task are computed one after another.
            W::write(&room[..length], unsafe { self.output.range(start..start + length) });
            start += length;
        }
        0.0
    }
}

/// `sums[i] = Σₜ taps[t] · line[first + i + t · step − lead]`, where what is beyond the line is 0.
struct Sums<'a, W> {
    line: &'a [W],
    taps: &'a [W],
    step: usize,
    first: usize,
    lead: usize,
    sums: &'a mut [W],
}

/// How many sums are kept in registers.
const LANES: usize = 32;

impl<W: Wide> Kernel<W> for Sums<'_, W> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        let Sums { line, taps, step, first, lead, sums } = self;
        let reach = (taps.len() - 1) * step;
        // Those sums all of whose numbers are in the line.
        let begin = lead.saturating_sub(first).min(sums.len());
        let end = (line.len() + lead).saturating_sub(reach + first).clamp(begin, sums.len());
        for edge in [0..begin, end..sums.len()] {
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
        let mut groups = sums[begin..end].chunks_exact_mut(LANES);
        let mut at = begin + first - lead.min(begin + first);
        for group in &mut groups {
            let mut lanes = [R::of(0.0); LANES];
            for (t, tap) in taps.iter().enumerate() {
                let numbers = &line[at + t * step..][..LANES];
                for i in 0..LANES {
                    lanes[i] = R::new(numbers[i]).mul_add(R::new(*tap), lanes[i]);
                }
            }
            for i in 0..LANES {
                group[i] = lanes[i].get();
            }
            at += LANES;
        }
        for sum in groups.into_remainder() {
            let mut lane = R::of(0.0);
            for (t, tap) in taps.iter().enumerate() {
                lane = R::new(line[at + t * step]).mul_add(R::new(*tap), lane);
            }
            *sum = lane.get();
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::{Backend, with_backend};

    fn gradients(backend: Backend, input: &Tensor, dim: usize, taps: &Arc<[f64]>) -> [Tensor; 3] {
        let leaf = input.detach().set_requires_grad(true);
        let output = with_backend(backend, || f_slide(&leaf, dim, taps).unwrap());
        let value = (&output * output.square()).sum(None);
        let first = Tensor::run_backward(&[value], &[&leaf], true, true).remove(0);
        let second = Tensor::run_backward(&[first.square().sum(None)], &[&leaf], false, false).remove(0);
        [output.detach(), first.detach(), second]
    }

    #[test]
    fn it_computes_what_tensor_operations_do() {
        tch::manual_seed(0);
        let options = (Kind::Double, Device::Cpu);
        for shape in [&[5, 7, 11][..], &[1, 40, 3], &[3, 2, 90], &[2, 3000, 1], &[1, 3, 41000], &[0, 4, 5]] {
            for (dim, size) in shape.iter().enumerate() {
                for count in [1, 2, 5, 11].into_iter().filter(|count| count <= size) {
                    let taps: Arc<[f64]> = (0..count).map(|tap| 0.1 + tap as f64).collect();
                    let input = Tensor::randn(shape, options);
                    let results = |backend| gradients(backend, &input, dim, &taps);
                    for (actual, expected) in results(Backend::Auto).iter().zip(results(Backend::Composite)) {
                        assert_eq!(actual.size(), expected.size());
                        assert!(actual.allclose(&expected, 1e-9, 1e-9, false), "{shape:?}, {dim}, {count}");
                    }
                }
            }
        }
    }
}
