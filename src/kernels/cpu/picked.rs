//! The engine of the negative log likelihood, whose loss of a row is −w\[t\] x\[t\] with the target's class t. The
//! gradient is −w\[t\] there and 0 elsewhere.
//!
//! libtorch's own backward pass starts threads for a handful of rows, and waits for them.

use std::ops::Range;

use super::kinds::Wide;
use super::rows::RowFormula;
use super::rows::job::{Job, Pixels};

/// How many pixels a block has.
const PIXELS: usize = 512;

/// The loss as a [`RowFormula`].
pub(in crate::kernels) struct Picked;

impl RowFormula for Picked {
    fn run<W: Wide>(&self, job: &Job<W>) -> f64 {
        job.sum(PIXELS, |rows| of_rows(job, rows), |pixels| pixels.map(|pixels| of_pixels(job, pixels)).sum())
    }
}

/// Computes rows whose classes lie side by side in memory. Returns the sum of their losses.
fn of_rows<W: Wide>(job: &Job<W>, rows: Range<usize>) -> f64 {
    job.store_zeros(rows.start * job.classes, rows.len() * job.classes);
    let mut sum = 0.0;
    for row in rows {
        let loss = job.class(row).map_or(W::default(), |class| of_row(job, row, class, row * job.classes + class));
        job.store_losses(row, &[loss]);
        sum += loss.to_f64();
    }
    sum
}

/// Computes a block of pixels. Returns the sum of their losses.
fn of_pixels<W: Wide>(job: &Job<W>, pixels: Pixels) -> f64 {
    for class in 0..job.classes {
        job.store_zeros(pixels.of(class).start, pixels.length);
    }
    let mut losses = [W::default(); PIXELS];
    let losses = &mut losses[..pixels.length];
    for (i, loss) in losses.iter_mut().enumerate() {
        let row = pixels.row + i;
        if let Some(class) = job.class(row) {
            *loss = of_row(job, row, class, pixels.of(class).start + i);
        }
    }
    job.store_losses(pixels.row, losses);
    losses.iter().map(|loss| loss.to_f64()).sum()
}

/// The loss of a row, whose number of the target's class is at `place` of the input. Writes the derivative there.
#[inline(always)]
fn of_row<W: Wide>(job: &Job<W>, row: usize, class: usize, place: usize) -> W {
    let weight = job.options.weight_of(class);
    if job.needs_gradient() {
        job.store_number(place, W::from_f64(-weight * job.factor(row).to_f64()));
    }
    W::from_f64(-job.input.wide(place).to_f64() * weight)
}
