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
