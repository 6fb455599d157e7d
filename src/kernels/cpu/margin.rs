//! The engine of hinges between the score of a row's class and those of the other classes: of all of them
//! (multi-margin), or of the strongest one (categorical hinge).
//!
//! The gradient of a row is the slope of each hinge at its class, and minus the sum of these at the target.

use std::ops::Range;

use super::BLOCK;
use super::kinds::Wide;
use super::lane::LaneOf;
use super::rows::RowFormula;
use super::rows::job::Job;
use super::simd::{self, Kernel, Sum, fold, total};
use super::softmax::exponentials::largest;
use crate::kernels::number::choose;
use crate::kernels::rows::{Hinges, Margin};

impl RowFormula for Margin {
    fn run<W: Wide>(&self, job: &Job<W>) -> f64 {
        match self.hinges {
            Hinges::All | Hinges::Squared => job.sum_rows(|rows| self.all(job, rows)),
            Hinges::Strongest => job.sum_rows(|rows| self.strongest(job, rows)),
        }
    }
}

impl Margin {
    fn all<W: Wide>(self, job: &Job<W>, rows: Range<usize>) -> f64 {
        let zeros = vec![W::default(); job.classes];
        let (mut room, mut hinges) = (zeros.clone(), zeros);
        job.sum_classes(rows, |row, class| {
            let x = job.input.read(row * job.classes..(row + 1) * job.classes, &mut room);
            simd::run(MarginRow { job, margin: self, row, class, x, hinges: &mut hinges })
        })
    }

    fn strongest<W: Wide>(self, job: &Job<W>, rows: Range<usize>) -> f64 {
        let mut rivals = vec![W::default(); job.classes];
        job.sum_classes(rows, |row, class| {
            job.input.copy(row * job.classes..(row + 1) * job.classes, &mut rivals);
            let own = std::mem::take(&mut rivals[class]);
            simd::run(RivalRow { job, margin: self.margin, row, class, own, rivals: &mut rivals })
        })
    }
}

/// The kernel of a row with the hinges of all classes: writes its gradient, returns the loss.
struct MarginRow<'a, W> {
    job: &'a Job<'a, W>,
    margin: Margin,
    row: usize,
    class: usize,
    x: &'a [W],
    /// A buffer for the hinges, and then their slopes.
    hinges: &'a mut [W],
}

impl<W: Wide> Kernel<W> for MarginRow<'_, W> {
    type Result = W;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> W {
        let Self { job, margin, row, class, x, hinges } = self;
        let zero = R::of(0.0);
        let gap = R::of(margin.margin) - R::new(x[class]);
        for (hinge, x) in hinges.iter_mut().zip(x) {
            *hinge = (gap + R::new(*x)).at_least(zero).get();
        }
        hinges[class] = zero.get();
        let mut sum = 0.0;
        for hinges in hinges.chunks(BLOCK) {
            sum += margin.sum::<W, R>(hinges);
        }
        let weight = R::of(job.options.weight_of(class)) / R::of(job.classes as f64);
        let loss = (R::of(sum) * weight).get();
        if !job.needs_gradient() {
            return loss;
        }
        let (factor, squared) = (R::new(job.factor(row)) * weight, margin.hinges == Hinges::Squared);
        for hinge in hinges.iter_mut() {
            let slope = if squared { R::of(2.0) * R::new(*hinge) * factor } else { factor };
            *hinge = choose(R::new(*hinge) <= zero, zero, slope).get();
        }
        let sum = simd::sum::<W, R>(hinges);
        job.store_gradient(row * job.classes, hinges, |_, slope| slope, Some((class, R::of(-sum).get())));
        loss
    }
}

impl Margin {
    /// The sum of the hinges of a block, or of their squares for [`Hinges::Squared`].
    #[inline(always)]
    fn sum<W: Wide, R: LaneOf<W>>(self, hinges: &[W]) -> f64 {
        if self.hinges != Hinges::Squared {
            return Sum(hinges).run::<R>();
        }
        let mut squares = [W::default(); BLOCK];
        for (square, hinge) in squares.iter_mut().zip(hinges) {
            *square = (R::new(*hinge) * R::new(*hinge)).get();
        }
        Sum(&squares[..hinges.len()]).run::<R>()
    }
}

/// The kernel of a row with the hinge of its strongest class: writes its gradient, returns the loss.
struct RivalRow<'a, W> {
    job: &'a Job<'a, W>,
    margin: f64,
    row: usize,
    class: usize,
    /// The score of the target's class.
    own: W,
    /// The scores of the other classes; 0 in place of the target's, so that the maximum is at least 0, as the formula
    /// says.
    rivals: &'a mut [W],
}

impl<W: Wide> Kernel<W> for RivalRow<'_, W> {
    type Result = W;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> W {
        let Self { job, margin, row, class, own, rivals } = self;
        let (zero, start) = (R::of(0.0), row * job.classes);
        let (best, equal) = strongest::<W, R>(rivals);
        let hinge = (best - R::new(own) + R::of(margin)).at_least(zero);
        if !job.needs_gradient() {
            return hinge.get();
        }
        if hinge == zero {
            job.store_zeros(start, job.classes);
            return hinge.get();
        }
        let factor = R::new(job.factor(row));
        // Equally strong classes get equal parts of the gradient, as libtorch's maximum gives them. Where the strongest
        // is NaN, none is equal to it, and the gradient of all is NaN.
        let part = factor / R::of(equal);
        let rest = if equal == 0.0 { R::of(f64::NAN) } else { zero };
        for rival in rivals.iter_mut() {
            *rival = choose(R::new(*rival) == best, part, rest).get();
        }
        job.store_gradient(start, rivals, |_, slope| slope, Some((class, (-factor).get())));
        hinge.get()
    }
}

/// The greatest number and how many are equal to it. NaN and 0 where any number is NaN.
#[inline(always)]
fn strongest<W: Wide, R: LaneOf<W>>(numbers: &[W]) -> (R, f64) {
    let (zero, one, best) = (R::of(0.0), R::of(1.0), largest::<W, R>(numbers));
    let counts = fold([numbers], [zero; 2], |[x], [equal, ordered]| {
        [equal + choose(x == best, one, zero), ordered + choose(x <= best, one, zero)]
    });
    let [equal, ordered] = [total(counts[0]), total(counts[1])];
    if ordered == numbers.len() as f64 { (best, equal) } else { (R::of(f64::NAN), 0.0) }
}
