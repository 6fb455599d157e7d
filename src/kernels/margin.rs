//! The engine of hinges between the score of a row's class and those of all others.

use std::ops::Range;

use tch::Tensor;

use super::BLOCK;
use super::element::Element;
use super::number::choose;
use super::rows::{Job, RowFormula, RowReduction, Rows, f_rows};
use super::simd::{self, Kernel, LaneOf, Sum};
use crate::LossError;

/// Hinges max(0, `margin` − x\[t\] + x\[c\]) of the classes c other than the target t, squared or as they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Margin {
    pub(crate) margin: f64,
    pub(crate) squared: bool,
}

/// The reduced mean over the classes of the hinges of `rows`, whose classes are the last dimension; `None` where the engine does
/// not take the call. Second derivatives are those of the `composite` of input and target.
pub(crate) fn f_margin<C>(
    margin: Margin,
    rows: &Rows,
    reduction: RowReduction,
    composite: C,
) -> Result<Option<Tensor>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    f_rows(margin, rows, reduction, composite)
}

impl RowFormula for Margin {
    fn run<T: Element>(self, job: &Job<T>) -> f64 {
        job.sum_rows(|rows| self.rows(job, rows))
    }
}

impl Margin {
    fn rows<T: Element>(self, job: &Job<T>, rows: Range<usize>) -> f64 {
        let zeros = vec![T::Wide::default(); job.classes];
        let (mut room, mut hinges) = (zeros.clone(), zeros);
        job.sum_classes(rows, |row, class| {
            let x = T::read(&job.input[row * job.classes..(row + 1) * job.classes], &mut room);
            simd::run(MarginRow { job, margin: self, row, class, x, hinges: &mut hinges })
        })
    }
}

/// One row: stores its gradient, returns the loss.
struct MarginRow<'a, T: Element> {
    job: &'a Job<'a, T>,
    margin: Margin,
    row: usize,
    class: usize,
    x: &'a [T::Wide],
    hinges: &'a mut [T::Wide],
}

impl<T: Element> Kernel<T::Wide> for MarginRow<'_, T> {
    type Result = T::Wide;

    #[inline(always)]
    fn run<R: LaneOf<T::Wide>>(self) -> T::Wide {
        let Self { job, margin, row, class, x, hinges } = self;
        let zero = R::of(0.0);
        let gap = R::of(margin.margin) - R::new(x[class]);
        for (hinge, x) in hinges.iter_mut().zip(x) {
            *hinge = (gap + R::new(*x)).at_least(zero).get();
        }
        hinges[class] = zero.get();
        let mut sum = 0.0;
        for hinges in hinges.chunks(BLOCK) {
            sum += margin.sum::<T, R>(hinges);
        }
        let weight = R::of(job.options.weight_of(class)) / R::of(job.classes as f64);
        let loss = (R::of(sum) * weight).get();
        if !job.needs_gradient() {
            return loss;
        }
        let factor = R::new(job.factor(row)) * weight;
        for hinge in hinges.iter_mut() {
            let slope = if margin.squared { R::of(2.0) * R::new(*hinge) * factor } else { factor };
            *hinge = choose(R::new(*hinge) <= zero, zero, slope).get();
        }
        let sum = simd::sum::<T::Wide, R>(hinges);
        job.store_gradient(row * job.classes, hinges, |_, slope| slope, Some((class, R::of(-sum).get())));
        loss
    }
}

impl Margin {
    /// The sum of the hinges of a block, or of their squares.
    #[inline(always)]
    fn sum<T: Element, R: LaneOf<T::Wide>>(self, hinges: &[T::Wide]) -> f64 {
        if !self.squared {
            return Sum(hinges).run::<R>();
        }
        let mut squares = [T::Wide::default(); BLOCK];
        for (square, hinge) in squares.iter_mut().zip(hinges) {
            *square = (R::new(*hinge) * R::new(*hinge)).get();
        }
        Sum(&squares[..hinges.len()]).run::<R>()
    }
}
