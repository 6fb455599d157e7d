//! The engine of cross entropy with z-loss of a chunk of logits, for linear cross entropy. Nobody needs the logits
//! afterwards, so the gradient overwrites them.
//!
//! Let p = softmax(x), t the target, S = Σ w and ε the smoothing. A row has two losses, each with its gradient:
//!
//! * the cross entropy (1 − ε) w\[t\] (−log p\[t\]) + ε/C Σ w\[c\] (−log p\[c\]),
//! * its gradient (1 − ε) w\[t\] (p\[c\] − \[c = t\]) + ε/C (S p\[c\] − w\[c\]),
//! * the z-loss z (log Σ exp(x))²,
//! * its gradient 2 z log Σ exp(x) p\[c\].

use std::ops::Range;

use tch::{Kind, Tensor};

use super::elements::{elements, integers, is_plain};
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::parallel;
use super::rows::options::{f_wide_numbers, total_of_spread};
use super::simd::{self, Kernel};
use super::softmax::exponentials::{Distances, largest, likely, others};
use super::softmax::{self};
use crate::LossError;
use crate::kernels::backend;
use crate::kernels::number::choose;
use crate::kernels::rows::LogitRows;

/// See [`kernels::f_logits`](crate::kernels::f_logits).
pub(in crate::kernels) fn f_logits(rows: &LogitRows) -> Result<Option<[Tensor; 2]>, LossError> {
    let taken = backend::fused()
        && rows.logits.numel() != 0
        && rows.logits.is_contiguous()
        && is_plain(rows.target, Kind::Int64)
        && rows.target.is_contiguous();
    match rows.logits.f_kind()? {
        Kind::Double if taken => f_run::<f64>(rows),
        Kind::Float | Kind::Half | Kind::BFloat16 if taken => f_run::<f32>(rows),
        _ => Ok(None),
    }
}

fn f_run<W: Wide>(rows: &LogitRows) -> Result<Option<[Tensor; 2]>, LossError> {
    let fits = |tensor: &Tensor| is_plain(tensor, W::KIND) && tensor.is_contiguous();
    if !is_plain(rows.logits, rows.logits.f_kind()?)
        || !rows.derivatives.is_none_or(|derivatives| derivatives.into_iter().all(fits))
    {
        return Ok(None);
    }
    let target = integers(rows.target);
    let classes = rows.logits.numel() / target.len();
    let weight = rows.weight.map(f_wide_numbers::<W>).transpose()?;
    let total = total_of_spread(weight.as_deref(), rows.smoothing, classes);
    let output = || Output::<W>::f_of_size(&[target.len() as i64]);
    let job = Job {
        logits: Output::f_over(rows.logits.shallow_clone())?,
        converted: rows.logits.f_kind()? != W::KIND,
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
    parallel::rows(rows.logits.numel() / classes, classes, |rows| {
        job.rows(rows);
        0.0
    });
    Ok(Some(job.losses.map(Output::into_tensor)))
}

/// A call, which all threads share.
struct Job<'a, W> {
    /// The logits, which are overwritten by the gradient row by row.
    logits: Output<W>,
    /// Whether the logits are of half precision.
    converted: bool,
    target: &'a [i64],
    classes: usize,
    weight: Option<Vec<W>>,
    /// 1 − ε
    own: f64,
    /// ε / C
    spread: f64,
    /// Σ w; 0 without smoothing.
    total: f64,
    z_loss: f64,
    soft_cap: Option<f64>,
    derivatives: Option<[&'a [W]; 2]>,
    /// The cross entropy and the z-loss of each row.
    losses: [Output<W>; 2],
}

/// The buffers of a row.
struct Room<W> {
    /// The logits, where they have to be converted.
    logits: Vec<W>,
    /// The capped logits, where there is a cap.
    capped: Vec<W>,
    /// The derivatives of the capped logits with respect to the logits, where there is a cap.
    slopes: Vec<W>,
    exponentials: Vec<W>,
}

impl<W: Wide> Job<'_, W> {
    /// Computes rows. Those whose target is negative are ignored: their losses and gradients are 0.
    fn rows(&self, rows: Range<usize>) {
        let zeros = |needed: bool| vec![W::default(); if needed { self.classes } else { 0 }];
        let mut room = Room {
            logits: zeros(self.converted),
            capped: zeros(self.soft_cap.is_some()),
            slopes: zeros(self.soft_cap.is_some()),
            exponentials: zeros(true),
        };
        for row in rows {
            let losses = if self.target[row] < 0 {
                // SAFETY: tasks have rows of their own, and the logits belong to this call.
                unsafe { self.logits.write_zeros(row * self.classes..(row + 1) * self.classes) };
                [W::default(); 2]
            } else {
                simd::run(LogitRow { job: self, row, room: &mut room })
            };
            for (output, loss) in self.losses.iter().zip(losses) {
                // SAFETY: as above.
                unsafe { output.write_cached(row..row + 1, &[loss]) };
            }
        }
    }
}

/// The kernel of one row: overwrites its logits by the gradient where there are derivatives, returns its two losses.
struct LogitRow<'a, W> {
    job: &'a Job<'a, W>,
    row: usize,
    room: &'a mut Room<W>,
}

impl<W: Wide> Kernel<W> for LogitRow<'_, W> {
    type Result = [W; 2];

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> [W; 2] {
        let Self { job, row, room: Room { logits, capped, slopes, exponentials } } = self;
        let place = row * job.classes..(row + 1) * job.classes;
        // SAFETY: tasks have rows of their own, and a row is written when its numbers are no longer used.
        let numbers = unsafe { job.logits.numbers(place.clone()) }.read(0..job.classes, logits);
        let cap = R::of(job.soft_cap.unwrap_or(1.0));
        let inverse = R::of(1.0) / cap;
        for ((capped, slope), x) in capped.iter_mut().zip(slopes.iter_mut()).zip(numbers) {
            let x = R::new(*x) * inverse;
            *capped = (x.tanh() * cap).get();
            // 4e / (1 + e)² with e = exp(−2|x|), because 1 − tanh² loses the digits of a slope near 0.
            let e = (R::of(-2.0) * x.abs()).exp_of_negative();
            let half = R::of(2.0) / (R::of(1.0) + e);
            *slope = (e * half * half).get();
        }
        let logits = if job.soft_cap.is_some() { &*capped } else { numbers };
        let class = job.target[row] as usize;
        let max = largest::<W, R>(logits);
        let distances = Distances::of_smoothed(job.spread != 0.0, job.weight.as_deref());
        let [sum, distances] = softmax::exponentials::exponentials(logits, max, distances, exponentials, |_| ());
        let (log, own, others) = (sum.ln(), R::new(exponentials[class]), others(exponentials, class, sum));
        let log_p = choose(own > others, likely(own, others), R::new(logits[class]) - max - log);
        let weight_of = |class: usize| match &job.weight {
            Some(weight) => R::new(weight[class]),
            None => R::of(1.0),
        };
        let (weight, spread, total) = (R::of(job.own) * weight_of(class), R::of(job.spread), R::of(job.total));
        let mut entropy = -(weight * log_p);
        if job.spread != 0.0 {
            entropy = entropy + spread * (distances + total * log);
        }
        let (log_sum, z_loss) = (max + log, R::of(job.z_loss));
        let losses = [entropy.get(), (z_loss * log_sum * log_sum).get()];
        let Some(derivatives) = job.derivatives else { return losses };
        let [of_entropy, of_z]: [R; 2] = simd::at(&derivatives, row);
        let of_row = of_entropy * spread * total + R::of(2.0) * z_loss * log_sum * of_z;
        let (of_p, of_weight) = ((of_entropy * weight + of_row) / sum, of_entropy * spread);
        // Without smoothing `of_weight` is 0, and an infinite weight must not make it NaN.
        let spread_to = |class: usize| if job.spread == 0.0 { R::of(0.0) } else { of_weight * weight_of(class) };
        let of_classes = |position: usize, exponential| R::new(exponential) * of_p - spread_to(position);
        // The gradient at the target is computed as p `of_row` − (1 − p) w: p − 1 would lose the digits of a p near 1,
        // and p (w + `of_row`) − w those of w where `of_row` is much larger.
        let own = (R::new(exponentials[class]) * of_row - others * (of_entropy * weight)) / sum - spread_to(class);
        let of = |own: R| Some((class, own.get()));
        // SAFETY: as above.
        unsafe {
            if job.soft_cap.is_some() {
                let gradient = |position, e| (of_classes(position, e) * R::new(slopes[position])).get();
                job.logits.write_mapped(place, exponentials, gradient, of(own * R::new(slopes[class])));
            } else if job.weight.is_some() && job.spread != 0.0 {
                job.logits.write_mapped(place, exponentials, |position, e| of_classes(position, e).get(), of(own));
            } else {
                let gradient = |_, e| R::new(e).mul_add(of_p, -of_weight).get();
                job.logits.write_mapped(place, exponentials, gradient, of(own));
            }
        }
        losses
    }
}
