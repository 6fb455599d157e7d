//! Losses of all pairs of a batch, on the device of their matrix.

use tch::{Kind, Tensor};

#[cfg(any(test, feature = "cuda"))]
use super::cuda;
use super::formulas::{PairTerms, SoftPairs};
#[cfg(feature = "metric")]
use super::number::Real;
use super::pair_labels::PairLabels;
use super::{cpu, formulas};
use crate::LossError;
use crate::autograd::{Place, Tape, f_taped};
use crate::numeric::references;

/// Which losses count, and how they are reduced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Counted {
    /// Losses ≤ this do not count; NaN where there is no such bound.
    pub(crate) low: f64,
    /// Losses ≥ this do not count; NaN where there is no such bound.
    pub(crate) high: f64,
    /// Whether the losses that count are averaged, or summed up.
    pub(crate) mean: bool,
}

impl Counted {
    /// The sum of all losses.
    pub(crate) const SUM: Self = Self { low: f64::NAN, high: f64::NAN, mean: false };

    /// What the sum of the losses is multiplied by, given how many count. Without any, the mean is 0 and not NaN.
    pub(super) fn scale(self, count: f64) -> f64 {
        if self.mean { 1.0 / count.max(1.0) } else { 1.0 }
    }

    pub(super) fn counts(self, loss: f64) -> bool {
        !(loss <= self.low || loss >= self.high)
    }
}

/// The plan of a loss for each row, which are then reduced.
#[derive(Clone, Copy)]
pub(crate) struct Soft<F>(pub(crate) F);

/// The plan of the terms of pairs with the same label, reduced, plus those of the others, reduced.
#[derive(Clone, Copy)]
pub(crate) struct Hard<F>(pub(crate) F);

/// The plan of a loss for each pair with the same label, which are then reduced.
#[cfg(feature = "metric")]
#[derive(Clone, Copy)]
pub(crate) struct Each<F>(pub(crate) F);

// Positives have no term in the sums of their rows.
#[cfg(feature = "metric")]
impl<F: formulas::Positives> PairTerms for Each<F> {
    #[inline(always)]
    fn same<R: Real>(self, _: R) -> (R, R) {
        (R::of(0.0), R::of(0.0))
    }

    #[inline(always)]
    fn other<R: Real>(self, x: R) -> (R, R) {
        self.0.negative(x)
    }
}

/// How a matrix becomes a loss, for the engines of all devices: [`Soft`], [`Hard`] or [`Each`].
#[cfg(not(any(test, feature = "cuda")))]
pub(crate) trait PairPlan: cpu::pairs::OnTape {}
#[cfg(any(test, feature = "cuda"))]
pub(crate) trait PairPlan: cpu::pairs::OnTape + cuda::pairs::Recorded {}
impl<F: SoftPairs> PairPlan for Soft<F> {}
impl<F: PairTerms> PairPlan for Hard<F> {}
#[cfg(feature = "metric")]
impl<F: formulas::Positives> PairPlan for Each<F> {}

/// The loss of a matrix `[N, M]` by `plan`, as a scalar of this `kind`; by the `composite` of tensor operations where
/// the engine does not take the call. A second argument has a number for each row, `[N]`.
pub(crate) fn f_pairs<const N: usize, P, C>(
    plan: P,
    arguments: [&Tensor; N],
    labels: Option<&PairLabels>,
    counted: Option<Counted>,
    kind: Kind,
    composite: C,
) -> Result<Tensor, LossError>
where
    P: PairPlan,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    let steps = |tape: &mut Tape, places: &[Place]| f_pairs_on(tape, plan, places, labels, counted, kind);
    f_taped(&arguments, steps, move |inputs| composite(references(inputs)))
}

/// [`f_pairs`] of tensors of a tape. `None` where the engine does not take the call.
pub(crate) fn f_pairs_on<P: PairPlan>(
    tape: &mut Tape,
    plan: P,
    arguments: &[Place],
    labels: Option<&PairLabels>,
    counted: Option<Counted>,
    kind: Kind,
) -> Result<Option<Place>, LossError> {
    let Some((labels, counted)) = labels.zip(counted) else { return Ok(None) };
    match labels {
        PairLabels::Host(labels) if cpu::pairs::takes(tape, arguments, labels)? => {
            plan.f_on(tape, arguments, labels, counted, kind)
        }
        PairLabels::Host(_) => Ok(None),
        #[cfg(any(test, feature = "cuda"))]
        PairLabels::Device(labels) => {
            cuda::pairs::f_on(tape, &|| plan.formulas(arguments.len() > 1), arguments, labels, counted, kind)
        }
    }
}
