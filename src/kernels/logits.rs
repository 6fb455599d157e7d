//! The engine of cross entropy with z-loss of logits that nobody needs afterwards: the gradient takes their place.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::element::{InPlace, Output, elements, integers, is_plain};
use super::rows::f_wide_numbers;
use super::simd::{self, Kernel, LaneOf, Wide};
use super::softmax::{distances, exponentials, largest};
use super::{backend, parallel};
use crate::LossError;

/// Rows of logits and their targets.
pub(crate) struct LogitRows<'a> {
    /// `[n, C]`, without a graph.
    pub(crate) logits: &'a Tensor,
    /// `[n]`: a class in range, or −1 where it is ignored; 64-bit.
    pub(crate) target: &'a Tensor,
    /// A factor for each class, of any floating kind.
    pub(crate) weight: Option<&'a Tensor>,
    /// The share of the target that is spread over all classes.
    pub(crate) smoothing: f64,
    /// The factor of the squared logarithm of the sum of the exponentials.
    pub(crate) z_loss: f64,
    /// The bound s of s tanh(x / s), which is what the losses are of.
    pub(crate) soft_cap: Option<f64>,
    /// The derivatives of the result with respect to the cross entropy and to the z-loss of each row, `[n]`.
    pub(crate) derivatives: Option<[&'a Tensor; 2]>,
}

/// The cross entropy and the z-loss of each row, `[n]`; `None` where the engine does not take the call. With derivatives the
/// logits become the gradient.
pub(crate) fn f_logits(rows: &LogitRows) -> Result<Option<[Tensor; 2]>, LossError> {
    let kind = rows.logits.f_kind()?;
    let fits = |tensor: &Tensor| is_plain(tensor, kind) && tensor.is_contiguous();
    let taken = backend::fused()
        && rows.logits.numel() != 0
        && fits(rows.logits)
        && is_plain(rows.target, Kind::Int64)
        && rows.target.is_contiguous()
        && rows.derivatives.is_none_or(|derivatives| derivatives.into_iter().all(fits));
    match kind {
        Kind::Float if taken => Ok(Some(f_run::<f32>(rows)?)),
        Kind::Double if taken => Ok(Some(f_run::<f64>(rows)?)),
        _ => Ok(None),
    }
}

fn f_run<W: Wide>(rows: &LogitRows) -> Result<[Tensor; 2], LossError> {
    let target = integers(rows.target);
    let classes = rows.logits.numel() / target.len();
    let weight = rows.weight.map(f_wide_numbers::<W>).transpose()?;
    let total = weight.as_ref().map_or(classes as f64, |weight| weight.iter().map(|&weight| weight.to_f64()).sum());
    let output = || Output::<W>::f_of_size(&[target.len() as i64]);
    let job = Job {
        logits: InPlace::new(rows.logits),
        target,
        classes,
        weight,
        own: 1.0 - rows.smoothing,
        spread: rows.smoothing / classes as f64,
        total,
        z_loss: rows.z_loss,
        soft_cap: rows.soft_cap,
        derivatives: rows.derivatives.map(|derivatives| derivatives.map(elements::<W>)),
        losses: [output()?, output()?],
    };
    let length = rows.logits.numel();
    parallel::sum(length, classes, |range| {
        job.rows(range.start / classes..range.end / classes);
        0.0
    });
    Ok(job.losses.map(Output::into_tensor))
}

/// What all threads work on.
struct Job<'a, W> {
    logits: InPlace<'a, W>,
    target: &'a [i64],
    classes: usize,
    weight: Option<Vec<W>>,
    /// The share of the target's class that is not spread.
    own: f64,
    /// The share of each class.
    spread: f64,
    /// The sum of the weights of all classes.
    total: f64,
    z_loss: f64,
    soft_cap: Option<f64>,
    derivatives: Option<[&'a [W]; 2]>,
    losses: [Output<W>; 2],
}

impl<W: Wide> Job<'_, W> {
    fn rows(&self, rows: Range<usize>) {
        let mut exponentials = vec![W::default(); self.classes];
        let mut capped = vec![W::default(); if self.soft_cap.is_some() { self.classes } else { 0 }];
        for row in rows {
            // SAFETY: tasks have rows of their own, and the logits belong to this call.
            let x = unsafe { self.logits.range(row * self.classes..(row + 1) * self.classes) };
            let (exponentials, capped) = (&mut exponentials[..], &mut capped[..]);
            let losses = if self.target[row] < 0 {
                x.fill(W::default());
                [W::default(); 2]
            } else {
                simd::run(LogitRow { job: self, row, x, exponentials, capped })
            };
            for (output, loss) in self.losses.iter().zip(losses) {
                // SAFETY: as above.
                W::write(&[loss], unsafe { output.range(row..row + 1) });
            }
        }
    }
}

/// One row: leaves its gradient in place of `x`, returns its losses.
struct LogitRow<'a, W: Wide> {
    job: &'a Job<'a, W>,
    row: usize,
    x: &'a mut [W],
    exponentials: &'a mut [W],
    /// Room for the capped logits.
    capped: &'a mut [W],
}

impl<W: Wide> Kernel<W> for LogitRow<'_, W> {
    type Result = [W; 2];

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> [W; 2] {
        let Self { job, row, x, exponentials, capped } = self;
        let cap = R::of(job.soft_cap.unwrap_or(1.0));
        let inverse = R::of(1.0) / cap;
        for (capped, x) in capped.iter_mut().zip(x.iter()) {
            *capped = ((R::new(*x) * inverse).tanh() * cap).get();
        }
        let logits = if job.soft_cap.is_some() { &*capped } else { &*x };
        let class = job.target[row] as usize;
        let max = largest::<W, R>(logits);
        let distances = if job.spread == 0.0 {
            R::of(0.0)
        } else {
            distances::<W, R>(logits, max, job.weight.as_deref(), exponentials)
        };
        let sum = R::of(self::exponentials::<W, R>(logits, max, exponentials, |_| ()));
        let log = sum.ln();
        let weight_of = |class: usize| job.weight.as_ref().map_or(1.0, |weight| weight[class].to_f64());
        let (weight, spread, total) = (R::of(job.own * weight_of(class)), R::of(job.spread), R::of(job.total));
        let mut entropy = weight * (log - (R::new(logits[class]) - max));
        if job.spread != 0.0 {
            entropy = entropy + spread * (distances + total * log);
        }
        let (log_sum, z_loss) = (max + log, R::of(job.z_loss));
        let losses = [entropy.get(), (z_loss * log_sum * log_sum).get()];
        let Some([of_entropy, of_z]) = job.derivatives.map(|of| of.map(|of| R::new(of[row]))) else { return losses };
        let of_p = of_entropy * (weight + spread * total) + R::of(2.0) * z_loss * log_sum * of_z;
        let (of_p, of_weight) = (of_p / sum, of_entropy * spread);
        match &job.weight {
            Some(weights) if job.spread != 0.0 => {
                for ((exponential, x), weight) in exponentials.iter().zip(x.iter_mut()).zip(weights) {
                    *x = (R::new(*exponential) * of_p - of_weight * R::new(*weight)).get();
                }
            }
            _ => {
                for (exponential, x) in exponentials.iter().zip(x.iter_mut()) {
                    *x = R::new(*exponential).mul_add(of_p, -of_weight).get();
                }
            }
        }
        x[class] = (R::new(x[class]) - of_entropy * weight).get();
        if job.soft_cap.is_some() {
            for (x, capped) in x.iter_mut().zip(capped.iter()) {
                let tanh = R::new(*capped) * inverse;
                *x = (R::new(*x) * (R::of(1.0) - tanh * tanh)).get();
            }
        }
        losses
    }
}
