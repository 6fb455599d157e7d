//! The engine of the hinges of all triplets of a batch: the negatives of an anchor are sorted once, so that those which a positive
//! is compared with are a part of them, and their sum is one of two prefix sums.

use tch::{Kind, Tensor};

use super::element::{Output, elements, f_plain, f_scalar_of, is_plain};
use super::pairs::{Counted, PairLabels};
use super::simd::Wide;
use super::{backend, parallel};
use crate::LossError;
use crate::autograd::{self, Context, Function, StoredGradients};

/// Hinges max(0, p + `margin` − n) of the distance p of a positive and that of a negative, n.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Triplets {
    pub(crate) margin: f64,
    /// Whether negatives up to the distance of the positive are left out.
    pub(crate) farther: bool,
    /// Negatives at more than p plus this are left out.
    pub(crate) up_to: Option<f64>,
    /// Which of the hinges count.
    pub(crate) counted: Counted,
}

/// The reduced hinges of the triplets of which `far` `[N, M]` are the distances, as a scalar of this `kind`; by the `composite` of
/// tensor operations where the engine does not take the call.
pub(crate) fn f_triplets<C>(
    triplets: Triplets,
    far: &Tensor,
    labels: Option<&PairLabels>,
    kind: Kind,
    composite: C,
) -> Result<Tensor, LossError>
where
    C: Fn(&Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    let own = far.f_kind()?;
    let Some(labels) = labels.filter(|labels| labels.size() == far.size()[..]) else { return composite(far) };
    // Without a hinge below it none counts.
    let none = triplets.counted.high <= 0.0;
    if !backend::fused() || !is_plain(far, own) || far.numel() == 0 || none {
        return composite(far);
    }
    match own {
        Kind::Float => f_run::<f32, C>(triplets, far, labels, kind, composite),
        Kind::Double => f_run::<f64, C>(triplets, far, labels, kind, composite),
        _ => composite(far),
    }
}

fn f_run<W: Wide, C>(
    triplets: Triplets,
    far: &Tensor,
    labels: &PairLabels,
    kind: Kind,
    composite: C,
) -> Result<Tensor, LossError>
where
    C: Fn(&Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    let (distances, width) = (far.f_detach()?.f_contiguous()?, labels.columns.len());
    let needed = autograd::needed(&[far])[0];
    let gradient = needed.then(|| Output::<W>::f_of_size(&far.size())).transpose()?;
    let totals = Output::<f64>::f_of_size(&[labels.rows.len() as i64, 2])?;
    let numbers = elements::<W>(&distances);
    parallel::sum(numbers.len(), width, |range| {
        let mut room = Row::default();
        for row in range.start / width..range.end / width {
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
        return composite(far);
    }
    let scale = triplets.counted.scale(count);
    let loss = f_scalar_of(kind, sum * scale)?;
    let Some(gradient) = gradient else { return Ok(loss) };
    let stored = StoredGradients::f_of_own_kind([Some(gradient.into_tensor())])?;
    let backward = move |context: Context| -> autograd::Gradients {
        let Some(grad) = context.grad(0) else { return Ok(vec![None]) };
        if context.create_graph() {
            let loss = |inputs: &[Tensor]| composite(&inputs[0]);
            return autograd::f_gradients_of(loss, &grad, context.saved(), &[true]);
        }
        let grad = f_plain(&grad)?.f_double_value(&[])?;
        stored.f_scaled(&context, &f_scalar_of(W::KIND, grad * scale)?)
    };
    Ok(Function::new(&[far]).save(&[far]).f_attach_own(vec![loss], backward)?.remove(0))
}

/// Room for the row of one anchor.
#[derive(Default)]
struct Row {
    /// The distances of the negatives in their order, and their columns.
    negatives: Vec<(f64, usize)>,
    /// The sum of so many of the first ones.
    sums: Vec<f64>,
    /// By how many positives more each of them is met than the one before.
    changes: Vec<f64>,
    /// The derivatives of the sum of the hinges.
    slopes: Vec<f64>,
}

impl Row {
    /// The sum and the number of the hinges of an anchor.
    fn sum<W: Wide>(&mut self, triplets: Triplets, labels: &PairLabels, anchor: usize, far: &[W]) -> [f64; 2] {
        self.sort(labels, anchor, far);
        let label = labels.rows[anchor];
        let (mut total, mut number) = (0.0, 0.0);
        for (column, far) in far.iter().enumerate() {
            if labels.columns[column] != label || (labels.own && column == anchor) {
                continue;
            }
            let limit = (*far).into() + triplets.margin;
            let (from, to) = self.range(triplets, (*far).into(), limit);
            let costly = self.below(limit).min(to).saturating_sub(from);
            number += to.saturating_sub(from) as f64;
            let hinges = costly as f64 * limit - (self.sums[from + costly] - self.sums[from]);
            total += if costly > 0 { hinges } else { 0.0 };
            self.slopes[column] = costly as f64;
            self.changes[from] -= 1.0;
            self.changes[from + costly] += 1.0;
        }
        let mut met = 0.0;
        for ((_, column), change) in self.negatives.iter().zip(&self.changes) {
            met += change;
            self.slopes[*column] = met;
        }
        // No hinge is satisfied by a distance that is none.
        let nan = far.iter().any(|far| (*far).into().is_nan());
        [if nan { f64::NAN } else { total }, number]
    }

    fn sort<W: Wide>(&mut self, labels: &PairLabels, anchor: usize, far: &[W]) {
        let label = labels.rows[anchor];
        self.negatives.clear();
        let all = far.iter().enumerate().filter(|(column, _)| labels.columns[*column] != label);
        self.negatives.extend(all.map(|(column, far)| ((*far).into(), column)));
        self.negatives.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
        self.sums.clear();
        self.sums.push(0.0);
        let mut sum = 0.0;
        self.sums.extend(self.negatives.iter().map(|(far, _)| {
            sum += far;
            sum
        }));
        self.changes.clear();
        self.changes.resize(self.negatives.len() + 1, 0.0);
        self.slopes.clear();
        self.slopes.resize(far.len(), 0.0);
    }

    /// From which negative on and up to which the positive is compared.
    fn range(&self, triplets: Triplets, positive: f64, limit: f64) -> (usize, usize) {
        let Counted { low, high, .. } = triplets.counted;
        let mut from = if triplets.farther { self.up_to(positive) } else { 0 };
        let mut to = triplets.up_to.map_or(self.negatives.len(), |far| self.up_to(positive + far));
        if low >= 0.0 {
            to = to.min(self.below(limit - low));
        }
        if high > 0.0 {
            from = from.max(self.up_to(limit - high));
        }
        (from, to)
    }

    /// How many negatives are nearer than this.
    fn below(&self, distance: f64) -> usize {
        self.negatives.partition_point(|(far, _)| *far < distance)
    }

    /// How many are at most as far.
    fn up_to(&self, distance: f64) -> usize {
        self.negatives.partition_point(|(far, _)| *far <= distance)
    }
}
