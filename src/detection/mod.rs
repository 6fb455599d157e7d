//! Losses of object detection: boxes and their scores.
//!
//! [`CompleteBoxIouLoss`] or [`GeneralizedBoxIouLoss`] for the boxes; for their scores
//! [`SigmoidFocalLoss`](crate::SigmoidFocalLoss) of labels, and
//! [`QualityFocalLoss`] or [`VarifocalLoss`] of qualities such as an IoU. [`Divisor`] is what their mean divides by.
//!
//! # Detection
//!
//! These need the feature `detection`.
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`GeneralizedBoxIouLoss`] | boxes, also such that do not meet | `torchvision.ops.generalized_box_iou_loss` | `input, target` |
//! | [`DistanceBoxIouLoss`] | the same, faster by the distance of centres | `torchvision.ops.distance_box_iou_loss` | `input, target` |
//! | [`CompleteBoxIouLoss`] | the same, and the aspect ratio | `torchvision.ops.complete_box_iou_loss` | `input, target` |
//! | [`QualityFocalLoss`] | scores that are the quality of a box | quality focal loss (GFL paper) | `input, target` |
//! | [`DistributionFocalLoss`] | the sides of a box as distributions | distribution focal loss (GFL paper) | `input, target` |
//! | [`VarifocalLoss`] | scores of a dense detector, by their quality | varifocal loss (VFNet paper) | `input, target` |

mod boxes;
mod complete_box_iou;
mod distance_box_iou;
mod distribution_focal;
mod generalized_box_iou;
mod quality_focal;
mod reducing;
mod varifocal;

use tch::Tensor;

use crate::binary::{self, Logits};
use crate::kernels::{self, Pointwise, f_pointwise};
use crate::numeric::{f_reals, real, result_kind, wide_kind};
use crate::{InvalidValues, LossError, Reduction, check, divisor};

pub use complete_box_iou::CompleteBoxIouLoss;
pub use distance_box_iou::DistanceBoxIouLoss;
pub use distribution_focal::DistributionFocalLoss;
pub use divisor::Divisor;
pub use generalized_box_iou::GeneralizedBoxIouLoss;
pub use quality_focal::QualityFocalLoss;
pub use varifocal::VarifocalLoss;

/// Checks the scores, which are logits, and a quality for each of them.
fn check_scores(input: &Tensor, target: &Tensor) -> Result<(), LossError> {
    check::arguments(input, target)?;
    real(("target", target))?;
    check::same_shape(("target", target), ("input", input))
}

/// The options of losses of pairs of boxes.
macro_rules! of_boxes {
    ($($state:tt)*) => {
        crate::options::options! { @group $($state)*
            /// a weight for each pair of boxes, broadcast to the losses' shape `[*]`. It is on the device of the input,
            /// in any floating kind.
            weight: Option<Tensor> = None,
            /// what the mean divides by.
            divisor: Divisor = Divisor::Losses => into,
            /// the reduction; the default is torchvision's.
            reduction: Reduction = Reduction::None,
        }
    };
}
use of_boxes;

/// The options of losses of the scores of a detector.
macro_rules! of_scores {
    ($($state:tt)*) => {
        crate::options::options! { @group $($state)*
            /// a weight for each element, broadcast to the input's shape; `[N, 1]` is one for each place of `[N, C]`.
            /// It is on the device of the input, in any floating kind.
            weight: Option<Tensor> = None,
            /// what the mean divides by.
            divisor: Divisor = Divisor::Losses => into,
            /// how a target outside \[0, 1\] is handled.
            invalid_values: InvalidValues = InvalidValues::default(),
            /// the reduction.
            reduction: Reduction = Reduction::Mean,
        }
    };
}
use of_scores;

/// A loss of the scores of a detector as a formula of a logit and its target.
trait ScoreFormula: Pointwise<2> {
    /// The losses by tensor operations, of targets in \[0, 1\] and of one kind with the logits.
    fn f_losses(self, logits: &Logits, target: &Tensor) -> Result<Tensor, LossError>;

    /// The reduced loss without a weight.
    fn f_reduced(
        self,
        [input, target]: [&Tensor; 2],
        mode: InvalidValues,
        reduction: Reduction,
    ) -> Result<Tensor, LossError> {
        let composite = move |[input, target]: [&Tensor; 2]| {
            let kind = wide_kind(input)?;
            let (logits, target) = (input.f_to_kind(kind)?, f_reals(("target", target), kind)?);
            let mut validity = binary::f_qualities(&target, mode)?;
            let losses = self.f_losses(&Logits::f_new(&logits)?, &validity.f_replace(&target, 0.0)?)?;
            let loss = reduction.f_apply(&losses)?.f_to_kind(result_kind(input)?)?;
            validity.f_poison_own(loss, reduction == Reduction::None)
        };
        match kernels::f_beside(input, target)?.filter(|_| kernels::takes_partial(input, mode)) {
            Some(target) => f_pointwise(self, [input, &target], reduction, composite),
            None => composite([input, target]),
        }
    }
}
