//! The engine of sums under a window that slides along one dimension; see [`f_slide`](crate::kernels::f_slide).

use std::ops::Range;

use tch::Tensor;

use super::elements::elements;
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::simd::{self, Kernel};
use super::{BLOCK, parallel};
use crate::LossError;
use crate::kernels::engine::by_width;
use crate::kernels::window::Slide;

/// The sums of a contiguous tensor of single or double precision, without a graph.
pub(in crate::kernels) fn f_sums(input: &Tensor, slide: &Slide) -> Result<Tensor, LossError> {
    by_width!(input.f_kind()?, f_run(input, slide))
}

fn f_run<W: Wide>(input: &Tensor, slide: &Slide) -> Result<Tensor, LossError> {
    let (size, step, length) = (slide.size(input), slide.step(input), input.size()[slide.dim] as usize);
    let taps: Vec<W> = slide.taps.iter().map(|tap| W::from_f64(*tap)).collect();
    let output = Output::<W>::f_of_size(&size)?;
    let job = Job {
        input: elements::<W>(input),
        output: &output,
        taps: &taps,
        step,
        lead: slide.lead * step,
        read: length * step,
        written: slide.places * step,
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
