//! The engine of the hinges of all triplets of a batch: triplet margin loss over all, semi-hard or hard triplets.
//!
//! The negatives of an anchor are sorted once. Those whose hinge with a positive counts lie side by side then, so that
//! their sum is the difference of two prefix sums.
//!
//! The gradient of the sum is, at a positive, how many negatives have a hinge above 0 with it, and at a negative minus
//! how many positives have one with it.

use tch::{Kind, Tensor};

use super::elements::{elements, is_plain};
use super::kinds::Wide;
use super::output::{Output, f_scalar_of};
use super::pair_labels::HostLabels;
use super::parallel;
use crate::LossError;
use crate::autograd::{self, Context, StoredGradients};
use crate::kernels::backend;
use crate::kernels::engine::{Composite, f_with_graph};
use crate::kernels::pairs::Counted;
use crate::kernels::triplets::Triplets;

/// The hinges of the triplets with the distances `far` `[N, M]`, reduced, as a scalar of this `kind`; by the
/// `composite` of tensor operations where the engine does not take the call.
pub(in crate::kernels) fn f_triplets(
    triplets: Triplets,
    far: &Tensor,
    labels: &HostLabels,
    kind: Kind,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let own = far.f_kind()?;
    // Hinges from `high` on do not count, and none is below 0.
    let none = triplets.counted.high <= 0.0;
    let fits = labels.size() == far.size()[..] && is_plain(far, own);
    if !backend::fused() || !fits || far.numel() == 0 || none {
        return composite(&[far]);
    }
    match own {
        Kind::Float => f_run::<f32>(triplets, far, labels, kind, composite),
        Kind::Double => f_run::<f64>(triplets, far, labels, kind, composite),
        _ => composite(&[far]),
    }
}

fn f_run<W: Wide>(
    triplets: Triplets,
    far: &Tensor,
    labels: &HostLabels,
    kind: Kind,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let (distances, width) = (far.f_detach()?.f_contiguous()?, labels.columns.len());
    let needed = autograd::needed(&[far]);
    let gradient = needed[0].then(|| Output::<W>::f_of_size(&far.size())).transpose()?;
    let totals = Output::<f64>::f_of_size(&[labels.rows.len() as i64, 2])?;
    let numbers = elements::<W>(&distances);
    parallel::rows(labels.rows.len(), width, |rows| {
        let mut room = Row::default();
        for row in rows {
            let place = row * width..(row + 1) * width;
            let total = room.sum(triplets, labels, row, &numbers[place.clone()]);
            // SAFETY: each row is one thread's.
            unsafe { totals.write(2 * row..2 * row + 2, &total) };
            if let Some(gradient) = &gradient {
                let slopes: Vec<W> = room.slopes.iter().map(|slope| W::from_f64(*slope)).collect();
                // SAFETY: as above.
                unsafe { gradient.write(place, &slopes) };
            }
        }
        0.0
    });
    let totals = totals.into_tensor();
    let totals = elements::<f64>(&totals);
    let [sum, count] = [0, 1].map(|k| totals.iter().skip(k).step_by(2).sum::<f64>());
    if sum.is_nan() {
        return composite(&[far]);
    }
    let scale = triplets.counted.scale(count);
    let loss = f_scalar_of(kind, sum * scale)?;
    let Some(gradient) = gradient else { return Ok(loss) };
    let stored = StoredGradients::f_of_own_kind([Some(gradient.into_tensor())])?;
    let fused = move |context: &Context, grad: &Tensor, _: &[bool]| {
        stored.f_scaled(context, &f_scalar_of(W::KIND, grad.f_double_value(&[])? * scale)?).map(Some)
    };
    f_with_graph(loss, &[far], needed, composite, Box::new(fused))
}

/// The buffers of one anchor.
#[derive(Default)]
struct Row {
    /// The distances of the negatives.
    negatives: Sorted,
    /// The derivatives of the sum of the hinges with respect to the distances.
    slopes: Vec<f64>,
}

impl Row {
    /// The sum and the number of the hinges of an anchor that count. The slopes are computed as well.
    fn sum<W: Wide>(&mut self, triplets: Triplets, labels: &HostLabels, anchor: usize, far: &[W]) -> [f64; 2] {
        self.slopes.clear();
        self.slopes.resize(far.len(), 0.0);
        // A NaN makes the sum NaN, and the composite is called.
        if far.iter().any(|far| (*far).into().is_nan()) {
            return [f64::NAN, 0.0];
        }
        let same = |column: usize| labels.columns[column] == labels.rows[anchor];
        let far = || far.iter().map(|far| (*far).into()).zip(0..);
        self.negatives.fill(far().filter(|(_, column)| !same(*column)));
        let (mut total, mut number) = (0.0, 0.0);
        for (far, column) in far().filter(|(_, column)| same(*column) && !(labels.own && *column == anchor)) {
            let limit = far + triplets.margin;
            let (from, to) = self.range(triplets, far, limit);
            number += to.saturating_sub(from) as f64;
            let costly = self.below(limit).min(to).saturating_sub(from);
            if costly > 0 {
                total += costly as f64 * limit - self.negatives.take(from, costly);
                self.slopes[column] = costly as f64;
            }
        }
        for (times, column) in self.negatives.taken() {
            self.slopes[column] = -times;
        }
        [total, number]
    }

    /// The range of the sorted negatives that a positive forms triplets with that count. `limit` is the positive's
    /// distance plus the margin, so that a hinge is `limit` − n.
    fn range(&self, triplets: Triplets, positive: f64, limit: f64) -> (usize, usize) {
        let Counted { low, high, .. } = triplets.counted;
        let mut from = triplets.beyond.map_or(0, |far| self.up_to(positive + far));
        let mut to = triplets.up_to.map_or(self.negatives.len(), |far| self.up_to(positive + far));
        if low >= 0.0 {
            to = to.min(self.below(limit - low));
        }
        if high > 0.0 {
            from = from.max(self.up_to(limit - high));
        }
        (from, to)
    }

    /// How many negatives are nearer than this, which are the first ones.
    fn below(&self, distance: f64) -> usize {
        self.negatives.first(|far| far < distance)
    }

    /// How many negatives are at most as far as this, which are the first ones.
    fn up_to(&self, distance: f64) -> usize {
        self.negatives.first(|far| far <= distance)
    }
}

/// Sorted numbers with their prefix sums. A range of them is added up and counted at once. The buffers are used again
/// for other numbers.
#[derive(Default)]
struct Sorted {
    /// The numbers, and where they came from.
    numbers: Vec<(f64, usize)>,
    /// `sums[k]` is the sum of the first k numbers.
    sums: Vec<f64>,
    /// By how much the number of ranges taken changes from the number before to each number.
    changes: Vec<f64>,
}

impl Sorted {
    /// Replaces the numbers. None of them is NaN.
    fn fill(&mut self, numbers: impl Iterator<Item = (f64, usize)>) {
        self.numbers.clear();
        self.numbers.extend(numbers);
        self.numbers.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
        self.sums.clear();
        self.sums.push(0.0);
        let mut sum = 0.0;
        self.sums.extend(self.numbers.iter().map(|(number, _)| {
            sum += number;
            sum
        }));
        self.changes.clear();
        self.changes.resize(self.sums.len(), 0.0);
    }

    fn len(&self) -> usize {
        self.numbers.len()
    }

    /// How many of the numbers, which are the first ones, satisfy `are`. Those after them do not.
    fn first(&self, are: impl Fn(f64) -> bool) -> usize {
        self.numbers.partition_point(|(number, _)| are(*number))
    }

    /// The sum of `count` numbers from `from` on. Counts each of them as taken.
    fn take(&mut self, from: usize, count: usize) -> f64 {
        let to = from + count;
        self.changes[from] += 1.0;
        self.changes[to] -= 1.0;
        self.sums[to] - self.sums[from]
    }

    /// How often each number was taken, and where it came from.
    fn taken(&self) -> impl Iterator<Item = (f64, usize)> {
        let mut times = 0.0;
        self.numbers.iter().zip(&self.changes).map(move |((_, position), change)| {
            times += change;
            (times, *position)
        })
    }
}
