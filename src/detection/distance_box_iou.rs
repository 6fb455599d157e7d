use tch::Tensor;

use super::boxes::{self, Axis, BoxFormula, Boxes, Overlap};
use super::reducing::loss_of;
use super::{Divisor, of_boxes};
use crate::kernels::{Pointwise, Real};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// Distance IoU loss of boxes: one minus their overlap, plus the distance of their centres.
///
/// It moves boxes together directly and so converges faster than
/// [`GeneralizedBoxIouLoss`](crate::GeneralizedBoxIouLoss); to compare the aspect ratios of the boxes as well, choose
/// [`CompleteBoxIouLoss`](crate::CompleteBoxIouLoss).
///
/// # Formula
///
/// ℓ = 1 − I / (U + ε) + ρ² / (c² + ε)
///
/// where I and U are the areas of the intersection and the union of both boxes, ρ is the distance of their centres and
/// c the diagonal of the smallest box that contains them. It is 0 for equal boxes and less than 2.
///
#[doc = include_str!("../../docs/book/src/gallery/distance_box_iou.svg")]
///
/// # Shapes
///
/// * `input`: `[*, 4]`, the corners x₁, y₁, x₂, y₂ of each box, with x₁ < x₂ and y₁ < y₂
/// * `target`: `[*, 4]`, of any kind of numbers
/// * `weight`: any shape that broadcasts to `[*]`
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no boxes is 0; [`when_empty`](Loss::when_empty) makes it NaN or an error.
///
/// # Reference
///
/// `torchvision.ops.distance_box_iou_loss` of torchvision 0.28; Zheng et al., Distance-IoU Loss,
/// <https://arxiv.org/abs/1911.08287>.
///
/// # Differences from torchvision
///
/// * Half precision is computed in `f32` and returned in the input's kind; torchvision returns `f32`.
/// * A divisor that is 0, as `eps(0.0)` makes it for boxes without an area, gives a quotient of 0; torchvision's is
///   NaN.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a negative ε.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{DistanceBoxIouLoss, Loss, Reduction};
///
/// // Two unit squares, one apart: their centres have distance 2, the box around them is 3 by 1.
/// let input = Tensor::from_slice(&[0.0, 0.0, 1.0, 1.0]).view([1, 4]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[2.0, 0.0, 3.0, 1.0]).view([1, 4]);
///
/// let loss = DistanceBoxIouLoss::new().reduction(Reduction::Mean).f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 1.4).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "distance_box_iou_loss")]
#[doc(alias = "DIoU")]
#[doc(alias = "diou")]
pub struct DistanceBoxIouLoss: "distance_box_iou" | "DIoU";

/// The loss with torchvision's defaults.
new {
    /// the ε that is added to the area and the squared diagonal that are divided by.
    ///
    /// With 0 the loss of boxes without an area is defined, too.
    eps: f64 = 1e-7,
    ..of_boxes,
}
}

impl Loss for DistanceBoxIouLoss {
    loss_of!(Boxes, boxes::check);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite_not_negative("eps", self.eps)?;
        self.divisor.check()
    }
}

impl DistanceBoxIouLoss {
    fn f_reduced(&self, input: &Tensor, target: &Tensor, reduction: Reduction) -> Result<Tensor, LossError> {
        Formula { eps: self.eps }.f_reduced(input, target, reduction)
    }
}

#[derive(Clone, Copy)]
struct Formula {
    eps: f64,
}

impl BoxFormula for Formula {
    fn f_losses(self, boxes: &Boxes) -> Result<Tensor, LossError> {
        boxes.f_distance_loss(&boxes.f_iou(self.eps)?, self.eps)
    }
}

impl Pointwise<8> for Formula {
    #[inline(always)]
    fn evaluate<R: Real>(self, corners: [R; 8]) -> (R, [R; 8]) {
        let axes = Axis::both(corners);
        let lengths = [axes[0].lengths(), axes[1].lengths()];
        let (loss, of_lengths) = boxes::distance_loss(lengths, Overlap::new(lengths, self.eps), self.eps);
        (loss, Axis::derive_both(axes, of_lengths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_loss_of_boxes() {
        boxes::assert_loss_of_boxes(|eps, reduction| Box::new(DistanceBoxIouLoss::new().eps(eps).reduction(reduction)));
    }
}
