use tch::Tensor;

use super::boxes::{self, Axis, BoxFormula, Boxes, Lengths, Overlap, Quotient};
use super::reducing::loss_of;
use super::{Divisor, of_boxes};
use crate::kernels::{NumberOperations, Pointwise, Real};
use crate::numeric::f_ratio;
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// Generalised IoU loss of boxes: one minus their overlap, plus the empty share of the box around both.
///
/// The loss of box regression that also pulls together boxes that do not overlap, where plain IoU has no gradient.
/// [`DistanceBoxIouLoss`](crate::DistanceBoxIouLoss) and [`CompleteBoxIouLoss`](crate::CompleteBoxIouLoss) usually
/// converge faster; this one depends on areas alone and is the usual choice of DETR and its successors.
///
/// # Formula
///
/// ℓ = 1 − I / (U + ε) + (C − U) / (C + ε)
///
/// where I and U are the areas of the intersection and the union of both boxes and C is the area of the smallest box
/// that contains them. It is 0 for equal boxes and less than 2.
///
#[doc = include_str!("../../docs/book/src/gallery/generalized_box_iou.svg")]
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
/// `torchvision.ops.generalized_box_iou_loss` of torchvision 0.28; Rezatofighi et al., Generalized Intersection over
/// Union, <https://arxiv.org/abs/1902.09630>.
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
/// use tch_losses::{GeneralizedBoxIouLoss, Loss, Reduction};
///
/// // Two unit squares, one apart: they have no area in common, and a third of the box around them is empty.
/// let input = Tensor::from_slice(&[0.0, 0.0, 1.0, 1.0]).view([1, 4]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[2.0, 0.0, 3.0, 1.0]).view([1, 4]);
///
/// let loss = GeneralizedBoxIouLoss::new().reduction(Reduction::Mean).f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 4.0 / 3.0).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "generalized_box_iou_loss")]
#[doc(alias = "GIoU")]
#[doc(alias = "giou")]
pub struct GeneralizedBoxIouLoss: "generalized_box_iou" | "GIoU";

/// The loss with torchvision's defaults.
new {
    /// the ε that is added to the areas that are divided by.
    ///
    /// With 0 the loss of boxes without an area is defined, too.
    eps: f64 = 1e-7,
    ..of_boxes,
}
}

impl Loss for GeneralizedBoxIouLoss {
    loss_of!(Boxes, boxes::check);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite_not_negative("eps", self.eps)?;
        self.divisor.check()
    }
}

impl GeneralizedBoxIouLoss {
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
        let area = boxes.f_enclosing_area()?;
        let empty = f_ratio(&area.f_sub(&boxes.union)?, &area.f_add_number(self.eps)?)?;
        Ok(boxes.f_iou(self.eps)?.f_rsub_number(1)?.f_add(&empty)?)
    }
}

impl Pointwise<8> for Formula {
    #[inline(always)]
    fn evaluate<R: Real>(self, corners: [R; 8]) -> (R, [R; 8]) {
        let axes = Axis::both(corners);
        let [x, y] = [axes[0].lengths(), axes[1].lengths()];
        let overlap = Overlap::new([x, y], self.eps);
        let area = x.enclosing * y.enclosing;
        let empty = Quotient::new(area - overlap.union, area + R::of(self.eps));
        let of_area = empty.of_dividend + empty.of_divisor;
        let [of_x, of_y] = overlap.derive([x, y], -empty.of_dividend);
        let of_x = Lengths { enclosing: of_area * y.enclosing, ..of_x };
        let of_y = Lengths { enclosing: of_area * x.enclosing, ..of_y };
        (R::of(1.0) - overlap.iou.value + empty.value, Axis::derive_both(axes, [of_x, of_y]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_loss_of_boxes() {
        boxes::assert_loss_of_boxes(|eps, reduction| {
            Box::new(GeneralizedBoxIouLoss::new().eps(eps).reduction(reduction))
        });
    }
}
