use tch::Tensor;

use super::boxes::{self, Axis, BoxFormula, Boxes, Overlap, Quotient};
use super::reducing::loss_of;
use super::{Divisor, of_boxes};
use crate::kernels::{NumberOperations, Pointwise, Real, choose};
use crate::numeric::f_ratio;
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// Complete IoU loss of boxes: one minus their overlap, plus the distance of their centres and the difference of their
/// aspect ratios.
///
/// The loss of box regression of the YOLO family. Without the aspect ratios it is
/// [`DistanceBoxIouLoss`](crate::DistanceBoxIouLoss).
///
/// # Formula
///
/// ℓ = 1 − I / (U + ε) + ρ² / (c² + ε) + α v
///
/// v = 4/π² (arctan(w'/h') − arctan(w/h))², α = v / (1 − I / (U + ε) + v + ε')
///
/// where I and U are the areas of the intersection and the union of both boxes, ρ is the distance of their centres, c
/// the diagonal of the smallest box that contains them, and w, h and w', h' are the widths and heights of the boxes.
/// The weight α is a constant: no gradient goes through it.
///
#[doc = include_str!("../../docs/book/src/gallery/complete_box_iou.svg")]
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
/// `torchvision.ops.complete_box_iou_loss` of torchvision 0.28; Zheng et al., Distance-IoU Loss,
/// <https://arxiv.org/abs/1911.08287>.
///
/// # Differences from torchvision
///
/// * Half precision is computed in `f32` and returned in the input's kind; torchvision returns `f32`.
/// * A divisor that is 0, as `eps(0.0)` makes it for boxes without an area, gives a quotient of 0; torchvision's is
///   NaN.
/// * torchvision's `eps` is the ε' of α alone, and its ε is always 10⁻⁷. Here both are options, `eps` and `alpha_eps`.
/// * A box without a height has the angle π/2, and for a box that is a single point v is 0; torchvision's gradient is
///   NaN for the first and its value for the second.
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
/// use tch_losses::{CompleteBoxIouLoss, Loss, Reduction};
///
/// // Boxes of the same aspect: their centres have distance 2, the box around them is 3 by 1.
/// let input = Tensor::from_slice(&[0.0, 0.0, 1.0, 1.0]).view([1, 4]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[2.0, 0.0, 3.0, 1.0]).view([1, 4]);
///
/// let loss = CompleteBoxIouLoss::new().reduction(Reduction::Mean).f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 1.4).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "complete_box_iou_loss")]
#[doc(alias = "CIoU")]
#[doc(alias = "ciou")]
pub struct CompleteBoxIouLoss: "complete_box_iou" | "CIoU";

/// The loss with torchvision's defaults.
new {
    /// the ε that is added to the area and the squared diagonal that are divided by.
    ///
    /// With 0 the loss of boxes without an area is defined, too.
    eps: f64 = 1e-7,
    /// the ε of the divisor of α.
    alpha_eps: f64 = 1e-7,
    ..of_boxes,
}
}

impl Loss for CompleteBoxIouLoss {
    loss_of!(Boxes, boxes::check);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite_not_negative("eps", self.eps)?;
        check::finite_not_negative("alpha_eps", self.alpha_eps)?;
        self.divisor.check()
    }
}

impl CompleteBoxIouLoss {
    fn f_reduced(&self, input: &Tensor, target: &Tensor, reduction: Reduction) -> Result<Tensor, LossError> {
        Formula { eps: self.eps, alpha_eps: self.alpha_eps }.f_reduced(input, target, reduction)
    }
}

#[derive(Clone, Copy)]
struct Formula {
    eps: f64,
    alpha_eps: f64,
}

impl BoxFormula for Formula {
    fn f_losses(self, boxes: &Boxes) -> Result<Tensor, LossError> {
        let (iou, aspect) = (boxes.f_iou(self.eps)?, boxes.f_aspect()?);
        let constant = aspect.f_detach()?;
        let divisor = iou.f_detach()?.f_rsub_number(1)?.f_add(&constant)?.f_add_number(self.alpha_eps)?;
        let alpha = f_ratio(&constant, &divisor)?;
        Ok(boxes.f_distance_loss(&iou, self.eps)?.f_addcmul(&alpha, &aspect)?)
    }
}

impl Pointwise<8> for Formula {
    #[inline(always)]
    fn evaluate<R: Real>(self, corners: [R; 8]) -> (R, [R; 8]) {
        let axes = Axis::both(corners);
        let lengths = [axes[0].lengths(), axes[1].lengths()];
        let [x, y] = lengths;
        let overlap = Overlap::new(lengths, self.eps);
        let (distance_loss, [mut of_x, mut of_y]) = boxes::distance_loss(lengths, overlap, self.eps);

        let (zero, one) = (R::of(0.0), R::of(1.0));
        let (input, input_of_width, input_of_height) = boxes::angle(x.input, y.input);
        let (target, target_of_width, target_of_height) = boxes::angle(x.target, y.target);
        let is_point = |width: R, height: R| width.equal(zero) & height.equal(zero);
        let points = is_point(x.input, y.input) | is_point(x.target, y.target);
        let turn = choose(points, zero, target - input);
        let factor = R::of(4.0 / std::f64::consts::PI.powi(2));
        let aspect = factor * turn * turn;
        let alpha = Quotient::new(aspect, one - overlap.iou.value + aspect + R::of(self.alpha_eps)).value;
        let slope = R::of(2.0) * alpha * factor * turn;
        of_x.input = of_x.input - slope * input_of_width;
        of_y.input = of_y.input - slope * input_of_height;
        of_x.target = of_x.target + slope * target_of_width;
        of_y.target = of_y.target + slope * target_of_height;
        (distance_loss + alpha * aspect, Axis::derive_both(axes, [of_x, of_y]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_loss_of_boxes() {
        boxes::assert_loss_of_boxes(|eps, reduction| Box::new(CompleteBoxIouLoss::new().eps(eps).reduction(reduction)));
    }

    #[test]
    fn the_second_epsilon_is_checked_too() {
        let boxes = Tensor::from_slice(&[0.0, 0.0, 1.0, 1.0]);
        let error = CompleteBoxIouLoss::new().alpha_eps(f64::NAN).f_forward(&boxes, &boxes).unwrap_err();
        assert_eq!(error.to_string(), "option alpha_eps is NaN, expected a finite number of at least 0");
    }

    #[test]
    fn the_aspect_of_a_point_counts_nothing() {
        let (point, target) = (Tensor::from_slice(&[1.0, 1.0, 1.0, 1.0]), Tensor::from_slice(&[0.0, 0.0, 4.0, 2.0]));
        let distance = crate::DistanceBoxIouLoss::new().forward(&point, &target);
        assert_eq!(CompleteBoxIouLoss::new().forward(&point, &target), distance);
    }
}
