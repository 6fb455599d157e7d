//! The engine of cross entropy with z-loss of logits that nobody needs afterwards: the gradient takes their place.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::{bf16, f16};
use tch::{Kind, Tensor};

use super::element::{Element, InPlace, Output, elements, integers, is_plain};
use super::number::choose;
use super::rows::{f_wide_numbers, total_of_spread};
use super::simd::{self, Kernel, LaneOf};
use super::softmax::{self, Distances, largest, likely, others};
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
    /// The derivatives of the result with respect to the cross entropy and to the z-loss of each row, `[n]`, in the kind that
    /// the logits are computed in.
    pub(crate) derivatives: Option<[&'a Tensor; 2]>,
}

/// The cross entropy and the z-loss of each row, `[n]`, in single precision for logits of half; `None` where the engine does not take the call. With derivatives the
/// logits become the gradient.
pub(crate) fn f_logits(rows: &LogitRows) -> Result<Option<[Tensor; 2]>, LossError> {
    let taken = backend::fused()
        && rows.logits.numel() != 0
        && rows.logits.is_contiguous()
        && is_plain(rows.target, Kind::Int64)
        && rows.target.is_contiguous();
    match rows.logits.f_kind()? {
        Kind::Float if taken => f_run::<f32>(rows),
        Kind::Double if taken => f_run::<f64>(rows),
        Kind::Half if taken => f_run::<f16>(rows),
        Kind::BFloat16 if taken => f_run::<bf16>(rows),
        _ => Ok(None),
    }
}

fn f_run<T: Element>(rows: &LogitRows) -> Result<Option<[Tensor; 2]>, LossError> {
    let fits = |tensor: &Tensor| is_plain(tensor, T::Wide::KIND) && tensor.is_contiguous();
    if !is_plain(rows.logits, T::KIND) || !rows.derivatives.is_none_or(|derivatives| derivatives.into_iter().all(fits))
    {
        return Ok(None);
    }
    let target = integers(rows.target);
    let classes = rows.logits.numel() / target.len();
    let weight = rows.weight.map(f_wide_numbers::<T::Wide>).transpose()?;
    let total = total_of_spread(weight.as_deref(), rows.smoothing, classes);
    let output = || Output::<T::Wide>::f_of_size(&[target.len() as i64]);
    let job = Job {
        logits: InPlace::<T>::new(rows.logits),
        target,
        classes,
        weight,
        own: 1.0 - rows.smoothing,
        spread: rows.smoothing / classes as f64,
        total,
        z_loss: rows.z_loss,
        soft_cap: rows.soft_cap,
        derivatives: rows.derivatives.map(|derivatives| derivatives.map(elements::<T::Wide>)),
        losses: [output()?, output()?],
    };
    parallel::rows(rows.logits.numel() / classes, classes, |rows| {
        job.rows(rows);
        0.0
    });
    Ok(Some(job.losses.map(Output::into_tensor)))
}

/// What all threads work on.
struct Job<'a, T: Element> {
    logits: InPlace<'a, T>,
    target: &'a [i64],
    classes: usize,
    weight: Option<Vec<T::Wide>>,
    /// The share of the target's class that is not spread.
    own: f64,
    /// The share of each class.
    spread: f64,
    /// The sum of the weights of all classes.
    total: f64,
    z_loss: f64,
    soft_cap: Option<f64>,
    derivatives: Option<[&'a [T::Wide]; 2]>,
    losses: [Output<T::Wide>; 2],
}

/// Room for the numbers of a row.
struct Room<W> {
    /// The logits, where they have to be converted.
    logits: Vec<W>,
    /// The capped logits, where there is a cap.
    capped: Vec<W>,
    /// The slopes of the cap, where there is one.
    slopes: Vec<W>,
    exponentials: Vec<W>,
}

impl<T: Element> Job<'_, T> {
    fn rows(&self, rows: Range<usize>) {
        let zeros = |needed: bool| vec![T::Wide::default(); if needed { self.classes } else { 0 }];
        let mut room = Room {
            logits: softmax::room::<T>(self.classes),
            capped: zeros(self.soft_cap.is_some()),
            slopes: zeros(self.soft_cap.is_some()),
            exponentials: zeros(true),
        };
        for row in rows {
            // SAFETY: tasks have rows of their own, and the logits belong to this call.
            let x = unsafe { self.logits.range(row * self.classes..(row + 1) * self.classes) };
            let losses = if self.target[row] < 0 {
                x.fill(T::from_f64(0.0));
                [T::Wide::default(); 2]
            } else {
                simd::run(LogitRow { job: self, row, x, room: &mut room })
            };
            for (output, loss) in self.losses.iter().zip(losses) {
                // SAFETY: as above.
                T::Wide::write(&[loss], unsafe { output.range(row..row + 1) });
            }
        }
    }
}

/// One row: leaves its gradient in place of `x`, returns its losses.
struct LogitRow<'a, T: Element> {
    job: &'a Job<'a, T>,
    row: usize,
    x: &'a mut [T],
    room: &'a mut Room<T::Wide>,
}

impl<T: Element> Kernel<T::Wide> for LogitRow<'_, T> {
    type Result = [T::Wide; 2];

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) -> [T::Wide; 2] {
        let Self { job, row, x, room: Room { logits, capped, slopes, exponentials } } = self;
        let numbers = T::read(x, logits);
        let cap = R::of(job.soft_cap.unwrap_or(1.0));
        let inverse = R::of(1.0) / cap;
        for ((capped, slope), x) in capped.iter_mut().zip(slopes.iter_mut()).zip(numbers) {
            let x = R::new(*x) * inverse;
            *capped = (x.tanh() * cap).get();
            // Not 1 − tanh², which loses the digits of a slope near 0.
            let e = (R::of(-2.0) * x.abs()).exp_of_negative();
            let half = R::of(2.0) / (R::of(1.0) + e);
            *slope = (e * half * half).get();
        }
        let logits = if job.soft_cap.is_some() { &*capped } else { numbers };
        let class = job.target[row] as usize;
        let max = largest::<T::Wide, R>(logits);
        let distances = Distances::of_smoothed(job.spread != 0.0, job.weight.as_deref());
        let [sum, distances] = softmax::exponentials(logits, max, distances, exponentials, |_| ());
        let (log, own, others) = (sum.ln(), R::new(exponentials[class]), others(exponentials, class, sum));
        let log_p = choose(own > others, likely(own, others), R::new(logits[class]) - max - log);
        let weight_of =
            |class: usize| R::new(job.weight.as_ref().map_or(T::Wide::from_f64(1.0), |weight| weight[class]));
        let (weight, spread, total) = (R::of(job.own) * weight_of(class), R::of(job.spread), R::of(job.total));
        let mut entropy = -(weight * log_p);
        if job.spread != 0.0 {
            entropy = entropy + spread * (distances + total * log);
        }
        let (log_sum, z_loss) = (max + log, R::of(job.z_loss));
        let losses = [entropy.get(), (z_loss * log_sum * log_sum).get()];
        let Some([of_entropy, of_z]) = job.derivatives.map(|of| of.map(|of| R::new(of[row]))) else { return losses };
        let of_row = of_entropy * spread * total + R::of(2.0) * z_loss * log_sum * of_z;
        let (of_p, of_weight) = ((of_entropy * weight + of_row) / sum, of_entropy * spread);
        // 0 · ∞ is 0: an infinite weight of which nothing is spread.
        let spread_to = |class: usize| if job.spread == 0.0 { R::of(0.0) } else { of_weight * weight_of(class) };
        let of_classes = |position: usize, exponential| R::new(exponential) * of_p - spread_to(position);
        // Not with p − 1, which loses the digits of a p near 1; and what the row has is not taken from itself, which loses those
        // of the class where the row has more.
        let own = (R::new(exponentials[class]) * of_row - others * (of_entropy * weight)) / sum - spread_to(class);
        let x = uninit(x);
        let own = if job.soft_cap.is_some() {
            T::write_mapped(exponentials, x, |position, e| (of_classes(position, e) * R::new(slopes[position])).get());
            own * R::new(slopes[class])
        } else if job.weight.is_some() && job.spread != 0.0 {
            T::write_mapped(exponentials, x, |position, e| of_classes(position, e).get());
            own
        } else {
            T::write_mapped(exponentials, x, |_, e| R::new(e).mul_add(of_p, -of_weight).get());
            own
        };
        T::write(&[own.get()], &mut x[class..=class]);
        losses
    }
}

/// Elements that are to be overwritten.
fn uninit<T: Element>(elements: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: an engine writes whole elements only.
    unsafe { &mut *(std::ptr::from_mut(elements) as *mut [MaybeUninit<T>]) }
}
