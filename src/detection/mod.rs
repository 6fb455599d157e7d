//! Losses of object detection: boxes and their scores.

mod boxes;
mod complete_box_iou;
mod distance_box_iou;
mod distribution_focal;
mod divisor;
mod generalized_box_iou;
mod quality_focal;
mod varifocal;

use tch::Tensor;

use crate::numeric::real;
use crate::{LossError, check};

pub use complete_box_iou::CompleteBoxIouLoss;
pub use distance_box_iou::DistanceBoxIouLoss;
pub use distribution_focal::DistributionFocalLoss;
pub use divisor::Divisor;
pub(crate) use divisor::f_positives;
pub use generalized_box_iou::GeneralizedBoxIouLoss;
pub use quality_focal::QualityFocalLoss;
pub use varifocal::VarifocalLoss;

/// Scores, which are logits, and a quality for each of them.
fn check_scores(input: &Tensor, target: &Tensor) -> Result<(), LossError> {
    check::devices(&[("input", input), ("target", target)])?;
    check::floating(("input", input))?;
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
            /// what a target outside \[0, 1\] does.
            invalid_values: InvalidValues = InvalidValues::Error,
            /// the reduction.
            reduction: Reduction = Reduction::Mean,
        }
    };
}
use of_scores;
