use tch::Tensor;

use super::boxes::{self, Boxes};
use crate::numeric::f_ratio;
use crate::{Loss, LossError, Reduction};

/// Complete IoU loss of boxes: one minus their overlap, plus the distance of their centres and of their aspect ratios.
///
/// The loss of box regression of the YOLO family. Without the aspect ratios it is
/// [`DistanceBoxIouLoss`](crate::DistanceBoxIouLoss).
///
/// # Formula
///
/// ℓ = 1 − I / (U + ε) + ρ² / (c² + ε) + α v, v = 4/π² (arctan(w'/h') − arctan(w/h))², α = v / (1 − I / (U + ε) + v + ε')
///
/// where I and U are the areas of the intersection and the union of both boxes, ρ is the distance of their centres, c the
/// diagonal of the smallest box that contains them, and w, h and w', h' are the widths and heights of the boxes. The
/// weight α is a constant: no gradient goes through it.
///
/// # Shapes
///
/// * `input`: `[*, 4]`, the corners x₁, y₁, x₂, y₂ of each box, with x₁ < x₂ and y₁ < y₂
/// * `target`: that of `input`, of any kind of numbers
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// # Reference
///
/// `torchvision.ops.complete_box_iou_loss` of torchvision 0.28; Zheng et al., Distance-IoU Loss,
/// <https://arxiv.org/abs/1911.08287>.
///
/// # Differences from torchvision
///
/// * Half precision is computed in `f32` and returned in the input's kind; torchvision returns `f32`.
/// * A divisor that is 0, as `eps(0.0)` makes it for boxes without an area, gives a quotient of 0; torchvision's is NaN.
/// * torchvision's `eps` is the ε' of α alone, and its ε is always 10⁻⁷. Here both are options, `eps` and `alpha_eps`.
/// * A box without a height has the angle π/2, and the aspect of a box that is a single point counts nothing;
///   torchvision's gradient is NaN for the first and its value for the second.
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
#[derive(Debug, Clone, Copy, PartialEq)]
#[doc(alias = "complete_box_iou_loss")]
#[doc(alias = "CIoU")]
pub struct CompleteBoxIouLoss {
    eps: f64,
    alpha_eps: f64,
    reduction: Reduction,
}

impl CompleteBoxIouLoss {
    /// The loss with torchvision's defaults.
    pub fn new() -> Self {
        Self { eps: 1e-7, alpha_eps: 1e-7, reduction: Reduction::None }
    }

    /// Sets the ε that is added to the area and the squared diagonal that are divided by. 10⁻⁷ by default.
    ///
    /// Boxes without an area are defined with 0, too.
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// Sets the ε of the divisor of α. 10⁻⁷ by default.
    pub fn alpha_eps(mut self, alpha_eps: f64) -> Self {
        self.alpha_eps = alpha_eps;
        self
    }

    /// Sets the reduction. [`Reduction::None`] by default, as in torchvision.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }
}

impl Default for CompleteBoxIouLoss {
    fn default() -> Self {
        Self::new()
    }
}

impl Loss for CompleteBoxIouLoss {
    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        boxes::check_eps("eps", self.eps)?;
        boxes::check_eps("alpha_eps", self.alpha_eps)?;
        let boxes = Boxes::f_new(input, target)?;
        let (iou, aspect) = (boxes.f_iou(self.eps)?, boxes.f_aspect()?);
        let constant = aspect.f_detach()?;
        let divisor = iou.f_detach()?.f_rsub_scalar(1)?.f_add(&constant)?.f_add_scalar(self.alpha_eps)?;
        let alpha = f_ratio(&constant, &divisor)?;
        let losses = boxes.f_distance_loss(&iou, self.eps)?.f_addcmul(&alpha, &aspect)?;
        boxes::f_reduce(&losses, self.reduction, input)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn boxes() -> (Tensor, Tensor) {
        let input = Tensor::from_slice(&[0.0, 0.0, 2.0, 2.0, 1.0, 1.0, 4.0, 3.0]).view([2, 4]);
        let target = Tensor::from_slice(&[1.0, 0.0, 3.0, 2.0, 1.5, 0.5, 3.0, 5.0]).view([2, 4]);
        (input, target)
    }

    fn message(criterion: CompleteBoxIouLoss, input: &Tensor, target: &Tensor) -> String {
        criterion.f_forward(input, target).unwrap_err().to_string()
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let ((input, target), new) = (boxes(), CompleteBoxIouLoss::new);
        let cases = [
            (
                message(new(), &input.view([4, 2]), &target),
                "input has shape [4, 2], expected [*, 4], the corners x1, y1, x2, y2 of boxes",
            ),
            (message(new(), &input, &target.get(0)), "target has shape [4], expected [2, 4], the shape of input"),
            (message(new(), &input.to_kind(Kind::Int64), &target), "input has kind Int64, expected a floating kind"),
            (message(new(), &input, &target.to_kind(Kind::Bool)), "target has kind Bool, expected a kind of numbers"),
            (message(new().eps(-1.0), &input, &target), "option eps is -1, expected a finite number of at least 0"),
            (
                message(new().alpha_eps(f64::NAN), &input, &target),
                "option alpha_eps is NaN, expected a finite number of at least 0",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn no_boxes_have_a_mean_of_zero() {
        let none = Tensor::zeros([0, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let loss = CompleteBoxIouLoss::new().reduction(Reduction::Mean).forward(&none, &none.detach());
        loss.backward();
        assert_eq!((f64::try_from(&loss).unwrap(), none.grad().size()), (0.0, vec![0, 4]));
    }

    #[test]
    fn half_kinds_are_computed_in_single_precision() {
        let (input, target) = boxes();
        let expected = CompleteBoxIouLoss::new().forward(&input.to_kind(Kind::Float), &target);
        for kind in [Kind::Half, Kind::BFloat16] {
            let loss = CompleteBoxIouLoss::new().forward(&input.to_kind(kind), &target.to_kind(kind));
            assert_eq!(loss, expected.to_kind(kind));
        }
    }

    #[test]
    fn degenerate_boxes_have_finite_values_and_gradients_without_an_epsilon_too() {
        for eps in [1e-7, 0.0] {
            for kind in [Kind::Float, Kind::Double] {
                for (a, b) in boxes::degenerate() {
                    let input = Tensor::from_slice(&a).to_kind(kind).set_requires_grad(true);
                    let loss = CompleteBoxIouLoss::new().eps(eps).forward(&input, &Tensor::from_slice(&b));
                    loss.backward();
                    let finite = loss.isfinite().all().logical_and(&input.grad().isfinite().all());
                    assert!(bool::try_from(finite).unwrap(), "{a:?} {b:?}: {loss} {}", input.grad());
                }
            }
        }
    }

    #[test]
    fn the_aspect_of_a_point_counts_nothing() {
        let (point, target) = (Tensor::from_slice(&[1.0, 1.0, 1.0, 1.0]), Tensor::from_slice(&[0.0, 0.0, 4.0, 2.0]));
        let distance = crate::DistanceBoxIouLoss::new().forward(&point, &target);
        assert_eq!(CompleteBoxIouLoss::new().forward(&point, &target), distance);
    }
}
