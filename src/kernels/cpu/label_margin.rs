//! The engine of hinges between the score of each label of a row and those of all its other classes: multi-label
//! margin.
//!
//! The gradient of a row is, at another class, how many labels have a hinge above 0 with it, and at a label minus how
//! many classes have one with it; all of it over C.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::elements::{Numbers, integers, is_plain};
use super::kinds::Wide;
use super::lane::LaneOf;
use super::output::Output;
use super::simd::{self, Kernel, LANES, fold, fold_into, total};
use super::{BLOCK, parallel};
use crate::kernels::backend;
use crate::kernels::engine::{Composite, Engine, Factor, Reduce, RowFactors, by_width, f_dispatch, row_length};
use crate::kernels::number::{Real, choose};
use crate::{LossError, Reduction};

/// See [`kernels::f_label_margin`](crate::kernels::f_label_margin).
pub(in crate::kernels) fn f_label_margin(
    arguments: [&Tensor; 2],
    reduction: Reduction,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let [input, target] = arguments;
    let kind = input.f_kind()?;
    let plain = is_plain(input, kind) && is_plain(target, Kind::Int64);
    if !backend::fused() || !plain || input.numel() == 0 || input.dim() == 0 || input.size() != target.size() {
        return composite(&arguments);
    }
    f_dispatch(Box::new(LabelMargin), &arguments, Reduce::from(reduction), composite)
}

/// The engine, which has no options.
struct LabelMargin;

impl Engine for LabelMargin {
    fn is_partial(&self) -> bool {
        true
    }

    fn differentiable(&self) -> usize {
        1
    }

    fn count(&self, arguments: &[&Tensor]) -> usize {
        arguments[0].numel() / row_length(arguments[0])
    }

    fn f_losses(&self, arguments: &[&Tensor]) -> Result<(f64, Tensor), LossError> {
        by_width!(arguments[0].f_kind()?, f_losses(arguments))
    }

    fn f_sum(&self, arguments: &[&Tensor], factor: Factor, wanted: &[bool]) -> Result<(f64, Vec<Tensor>), LossError> {
        by_width!(arguments[0].f_kind()?, f_sum(arguments, factor, wanted[0]))
    }
}

fn f_losses<W: Wide>(arguments: &[&Tensor]) -> Result<(f64, Tensor), LossError> {
    let size = arguments[0].size();
    let losses = Output::<W>::f_of_kind(&size[..size.len() - 1], arguments[0].f_kind()?)?;
    let sum = f_run(arguments, &RowFactors::Number(0.0), Some(&losses), None)?;
    Ok((sum, losses.into_tensor()))
}

fn f_sum<W: Wide>(arguments: &[&Tensor], factor: Factor, wanted: bool) -> Result<(f64, Vec<Tensor>), LossError> {
    let kind = arguments[0].f_kind()?;
    let gradient = wanted.then(|| Output::<W>::f_of_kind(&arguments[0].size(), kind)).transpose()?;
    let sum = f_run(arguments, &RowFactors::f_new(factor)?, None, gradient.as_ref())?;
    Ok((sum, gradient.into_iter().map(Output::into_tensor).collect()))
}

/// Computes all rows: writes the losses and the gradient where there are outputs for them, returns the sum of the
/// losses. That is NaN where a label is invalid, or where infinite scores have no sum.
fn f_run<W: Wide>(
    arguments: &[&Tensor],
    factors: &RowFactors,
    losses: Option<&Output<W>>,
    gradient: Option<&Output<W>>,
) -> Result<f64, LossError> {
    let classes = row_length(arguments[0]);
    let (input, target) = (arguments[0].f_detach()?.f_contiguous()?, arguments[1].f_contiguous()?);
    let (scores, labels) = (Numbers::of(&input), integers(&target));
    Ok(parallel::rows(scores.len() / classes, classes, |rows| {
        let mut room = Row::default();
        let each = |row: usize| {
            let place = row * classes..(row + 1) * classes;
            let loss = room.loss(scores, place.clone(), &labels[place.clone()], gradient.is_some());
            if let Some(losses) = losses {
                // SAFETY: each row is one thread's.
                unsafe { losses.write_cached(row..row + 1, &[W::from_f64(loss)]) };
            }
            if let Some(gradient) = gradient {
                simd::run(Scale { slopes: &mut room.slopes, factor: factors.of_row(row) / classes as f64 });
                // SAFETY: as above.
                unsafe { gradient.write(place, &room.slopes) };
            }
            loss
        };
        rows.map(each).sum()
    }))
}

/// The buffers of a row.
#[derive(Default)]
struct Row<W> {
    /// The scores of the labels.
    scores: Vec<W>,
    /// The scores of all classes, with −∞ at the labels, so that these have no hinge.
    others: Vec<W>,
    /// The derivatives of the sum of the hinges with respect to the scores.
    slopes: Vec<W>,
}

impl<W: Wide> Row<W> {
    /// The loss of a row, NaN where a label is invalid. Computes the slopes where they are `wanted`.
    fn loss(&mut self, scores: Numbers<W>, place: Range<usize>, labels: &[i64], wanted: bool) -> f64 {
        let classes = labels.len();
        self.slopes.clear();
        self.slopes.resize(classes, W::default());
        // Labels after the end of the list are checked as well, as libtorch does.
        if labels.iter().any(|label| !(-1..classes as i64).contains(label)) {
            return f64::NAN;
        }
        let labels = || labels.iter().take_while(|label| **label >= 0).map(|label| *label as usize);
        self.others.resize(classes, W::default());
        scores.copy(place.clone(), &mut self.others);
        let score = |label: usize| W::from_f64(scores.get(place.start + label));
        labels().for_each(|label| self.others[label] = W::from_f64(f64::NEG_INFINITY));
        for label in labels().filter(|_| wanted) {
            let count = simd::run(Outscored { score: score(label), others: &self.others, slopes: &mut self.slopes });
            self.slopes[label] = W::from_f64(self.slopes[label].into() - count);
        }
        self.scores.clear();
        self.scores.extend(labels().map(score));
        simd::run(Hinges { scores: &self.scores, others: &self.others }) / classes as f64
    }
}

/// The argument of the hinge of a label's `score` and an`other` one, 1 − score + other in the order in which libtorch
/// adds, and whether it is above 0. It is not where it is NaN, so that NaN adds nothing.
#[inline(always)]
fn hinge<R: Real>(score: R, other: R) -> (R, R::Mask) {
    let gap = (R::of(1.0) - score) + other;
    (gap, gap.greater(R::of(0.0)))
}

/// The kernel of a row's sum of hinges.
struct Hinges<'a, W> {
    scores: &'a [W],
    others: &'a [W],
}

/// How many labels' hinges are added up in the precision of the numbers, before the sum goes to double precision.
const FEW_LABELS: usize = 16;

impl<W: Wide> Kernel<W> for Hinges<'_, W> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> f64 {
        let zero = R::of(0.0);
        let mut sum = 0.0;
        for scores in self.scores.chunks(FEW_LABELS) {
            for block in self.others.chunks(BLOCK) {
                let mut lanes = [[zero; LANES]];
                for score in scores {
                    fold_into(&mut lanes, [block], |[other], [sum]| {
                        let (gap, costs) = hinge(R::new(*score), other);
                        [sum + choose(costs, gap, zero)]
                    });
                }
                sum += total(lanes[0]);
            }
        }
        sum
    }
}

/// The kernel that adds 1 to the slope of each class that has a hinge above 0 with the label of this `score`, and
/// returns how many classes have one.
struct Outscored<'a, W> {
    score: W,
    others: &'a [W],
    slopes: &'a mut [W],
}

impl<W: Wide> Kernel<W> for Outscored<'_, W> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> f64 {
        let (zero, one, score) = (R::of(0.0), R::of(1.0), R::new(self.score));
        let costs = |other: R| choose(hinge(score, other).1, one, zero);
        for (slope, other) in self.slopes.iter_mut().zip(self.others) {
            *slope = (R::new(*slope) + costs(R::new(*other))).get();
        }
        let [counts] = fold([self.others], [zero], |[other], [count]| [count + costs(other)]);
        total(counts)
    }
}

/// The kernel that multiplies slopes by a factor.
struct Scale<'a, W> {
    slopes: &'a mut [W],
    factor: f64,
}

impl<W: Wide> Kernel<W> for Scale<'_, W> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) {
        for slope in self.slopes {
            *slope = (R::new(*slope) * R::of(self.factor)).get();
        }
    }
}
