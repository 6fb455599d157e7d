//! The engine of losses with a term for every class of a softmax, not for the target alone: the asymmetric loss of one
//! label.
//!
//! With the slopes s\[c\] of the terms with respect to log p\[c\] and S = Σ s, the gradient of a row is s\[c\] − p\[c\]
//! S.

use std::ops::Range;

use super::kinds::Wide;
use super::lane::LaneOf;
use super::rows::RowFormula;
use super::rows::job::Job;
use super::simd::{self, Kernel};
use super::softmax::exponentials::{Distances, exponentials, largest, likely, others};
use crate::kernels::formulas::ClassTerms;
use crate::kernels::number::choose;

/// The formula as a [`RowFormula`].
#[derive(Clone, Copy)]
pub(in crate::kernels) struct OfTerms<F>(pub(in crate::kernels) F);

impl<F: ClassTerms> RowFormula for OfTerms<F> {
    fn run<W: Wide>(&self, job: &Job<W>) -> f64 {
        job.sum_rows(|rows| self.rows(job, rows))
    }
}

impl<F: ClassTerms> OfTerms<F> {
    fn rows<W: Wide>(self, job: &Job<W>, rows: Range<usize>) -> f64 {
        let mut numbers = job.input.room(job.classes);
        let zeros = vec![W::default(); job.classes];
        let mut room = Room { p: zeros.clone(), terms: zeros.clone(), slopes: zeros };
        job.sum_classes(rows, |row, class| {
            let x = job.input.read(row * job.classes..(row + 1) * job.classes, &mut numbers);
            simd::run(TermsRow { job, formula: self.0, row, class, x, room: &mut room })
        })
    }
}

/// The buffers of a row.
struct Room<W> {
    /// The exponentials, and later the probabilities.
    p: Vec<W>,
    terms: Vec<W>,
    /// The derivatives of the terms with respect to log p; 0 at the target's class.
    slopes: Vec<W>,
}

/// The kernel of one row: writes its gradient, returns the loss.
struct TermsRow<'a, W, F> {
    job: &'a Job<'a, W>,
    formula: F,
    row: usize,
    class: usize,
    x: &'a [W],
    room: &'a mut Room<W>,
}

impl<W: Wide, F: ClassTerms> Kernel<W> for TermsRow<'_, W, F> {
    const LONG: bool = true;
    type Result = W;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> W {
        let Self { job, formula, row, class, x, room: Room { p, terms, slopes } } = self;
        let max = largest::<W, R>(x);
        let [sum, _] = exponentials(x, max, Distances::Nothing, p, |range| job.fetch_row(row, range));
        let (own, rest) = (R::new(p[class]), others(p, class, sum));
        let (length, log_sum, reciprocal) = (x.len(), sum.ln(), R::of(1.0) / sum);
        let (p, terms, slopes) = (&mut p[..length], &mut terms[..length], &mut slopes[..length]);
        for i in 0..length {
            let (term, slope) = formula.of_other(R::new(x[i]) - max - log_sum);
            p[i] = (R::new(p[i]) * reciprocal).get();
            terms[i] = term.get();
            slopes[i] = slope.get();
        }
        let log_p = choose(own > rest, likely(own, rest), R::new(x[class]) - max - log_sum);
        let (term, slope) = formula.of_target(log_p, R::new(p[class]));
        (terms[class], slopes[class]) = (term.get(), W::default());
        let loss = W::from_f64(simd::sum::<W, R>(terms));
        if job.needs_gradient() {
            let factor = R::new(job.factor(row));
            let of_others = R::of(simd::sum::<W, R>(slopes));
            let of_p = factor * (of_others + slope);
            let gradient = |i: usize, slope| (R::new(slope) * factor - R::new(p[i]) * of_p).get();
            // At the target s − p S is computed as s (1 − p) − p (S − s): p near 1 has lost the digits of 1 − p.
            let own = factor * (slope * rest * reciprocal - R::new(p[class]) * of_others);
            job.store_gradient(row * job.classes, slopes, gradient, Some((class, own.get())));
        }
        loss
    }
}
