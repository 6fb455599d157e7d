//! The hinges of all triplets of a batch, on the device of their distances.

use tch::{Kind, Tensor};

use super::cpu;
use super::engine::composite_of;
use super::pair_labels::PairLabels;
use super::pairs::Counted;
use crate::LossError;

/// Hinges max(0, p + `margin` − n), where p is the distance of a positive from the anchor and n that of a negative.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Triplets {
    pub(crate) margin: f64,
    /// Negatives with n ≤ p + this are left out, where it is given.
    pub(crate) beyond: Option<f64>,
    /// Negatives with n > p + this are left out, where it is given.
    pub(crate) up_to: Option<f64>,
    /// Which of the hinges count.
    pub(crate) counted: Counted,
}

/// The hinges of the triplets with the distances `far` `[N, M]`, reduced, as a scalar of this `kind`; by the
/// `composite` of tensor operations where the engine does not take the call.
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
    let composite = composite_of(move |[far]: [&Tensor; 1]| composite(far));
    match labels {
        Some(PairLabels::Host(labels)) => cpu::triplets::f_triplets(triplets, far, labels, kind, composite),
        #[cfg(any(test, feature = "cuda"))]
        Some(PairLabels::Device(labels)) => super::cuda::triplets::f_triplets(triplets, far, labels, kind, composite),
        None => composite(&[far]),
    }
}
