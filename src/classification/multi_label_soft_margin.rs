use tch::Tensor;

use super::bce_with_logits::Formula;
use crate::binary::Logits;
use crate::kernels::{self, NumberOperations, Reduce, Weighted, f_pointwise};
use crate::mean_parts::broadcast_shape;
use crate::numeric::{f_times, f_widely, real};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The multi-label soft margin loss: binary cross entropy of logits, averaged over the classes of each sample.
///
/// For several labels at once, with one loss per sample. With the mean over everything it is
/// [`BceWithLogitsLoss`](crate::BceWithLogitsLoss), which is the faster of the two; choose this one for
/// [`Reduction::None`] and [`Reduction::Sum`] per sample.
///
/// # Formula
///
/// ℓₙ = −1/C · Σ_c w\[n, c\] · (y\[n, c\] log σ(x\[n, c\]) + (1 − y\[n, c\]) log σ(−x\[n, c\]))
///
/// where x is the input, y the target, w the weight (1 where there is none) and C the number of classes, the size of
/// the last dimension. The mean divides by the number of samples.
///
#[doc = include_str!("../../docs/book/src/gallery/multi_label_soft_margin.svg")]
///
/// # Shapes
///
/// * `input`: `[*, C]`
/// * `target`: `[*, C]`
/// * `weight`: any shape that broadcasts to `[*, C]`; `[C]` is one weight per class
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.MultiLabelSoftMarginLoss` and `torch.nn.functional.multilabel_soft_margin_loss` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// A target of another shape, or a weight that does not broadcast to the input's shape, is an error, unless
/// [`broadcast`](Self::broadcast) allows it; PyTorch broadcasts silently. On the CPU the loss of an infinite logit is
/// its limit, 0 or ∞, where PyTorch's is NaN.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, MultiLabelSoftMarginLoss};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0]).view([1, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1.0, 0.0]).view([1, 2]);
///
/// let loss = MultiLabelSoftMarginLoss::new().f_forward(&logits, &target)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 2_f64.ln()).abs() < 1e-12);
/// assert_eq!(Vec::<f64>::try_from(logits.grad().view(-1))?, [-0.25, 0.25]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.MultiLabelSoftMarginLoss")]
#[doc(alias = "multilabel_soft_margin_loss")]
pub struct MultiLabelSoftMarginLoss: "multi_label_soft_margin";

/// The multi-label soft margin loss with PyTorch's defaults.
new {
    /// a weight for each element, broadcast to the input's shape. It is on the device of the input, in any floating
    /// kind.
    weight: Option<Tensor> = None,
    /// whether input, target and weight may differ in shape and are broadcast against each other.
    broadcast: bool = false,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl Loss for MultiLabelSoftMarginLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(unreduced);

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        check::not_boolean(("target", target))?;
        real(("target", target))?;
        check::same_shape_or_broadcast(("target", target), ("input", input), self.broadcast)?;
        let Some(&classes) = input.size().last() else {
            return Err(check::shape_error(("input", input), "[C] or [..., C]"));
        };
        if let Some(weight) = &self.weight {
            check::devices(&[("input", input), ("weight", weight)])?;
            if self.broadcast {
                let losses = input.f_expand(broadcast_shape(input, target), false)?;
                check::same_shape_or_broadcast(("weight", weight), ("input and target", &losses), true)?;
            } else {
                check::broadcasts_to(("weight", weight), ("input", input))?;
            }
        }
        let (reduction, weight) = (self.reduction, self.weight.as_ref());
        let by_engine = reduction != Reduction::None && input.size() == target.size() && input.numel() > 0;
        let labels = if by_engine { kernels::f_beside(input, target)? } else { None };
        let Some(labels) = labels else { return f_composite(reduction, input, target, weight) };
        // The loss of a sample is a mean over its classes, so that the mean over the samples is the mean over all
        // elements.
        let reduce = if reduction == Reduction::Mean { Reduce::Mean } else { Reduce::Sum(1.0 / classes as f64) };
        let Some(weight) = weight else {
            return f_pointwise(Formula, [input, &labels], reduce, move |[x, y]| f_composite(reduction, x, y, None));
        };
        if check::broadcasts_to(("weight", weight), ("input", input)).is_err() {
            return f_composite(reduction, input, target, Some(weight));
        }
        let arguments = [input, &labels, &weight.f_expand_as(input)?];
        f_pointwise(Weighted(Formula), arguments, reduce, move |[x, y, w]| f_composite(reduction, x, y, Some(w)))
    }
}

fn f_composite(
    reduction: Reduction,
    input: &Tensor,
    target: &Tensor,
    weight: Option<&Tensor>,
) -> Result<Tensor, LossError> {
    // In place of a weight that is not given stands the input, which is then not used.
    f_widely([input, target, weight.unwrap_or(input)], |[x, y, w]| f_losses(reduction, x, y, weight.map(|_| w)))
}

fn f_losses(
    reduction: Reduction,
    input: &Tensor,
    target: &Tensor,
    weight: Option<&Tensor>,
) -> Result<Tensor, LossError> {
    // 1 − y of integers may overflow.
    let integral = !target.is_floating_point() && !target.is_complex();
    let target = if integral { target.f_to_kind(input.f_kind()?)? } else { target.shallow_clone() };
    let losses = f_times(&Logits::f_new(input)?.f_entropy_of_any(&target, None)?, weight)?;
    // The last dimension. PyTorch numbers it before broadcasting, and so takes another one where that adds dimensions.
    let shape = input.size();
    let class_dim = shape.len() as i64 - 1;
    let losses = losses.f_sum_dim_intlist(class_dim, false, None)?.f_div_number(shape[shape.len() - 1])?;
    reduction.f_apply(&losses)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::{Backend, with_backend};

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.0, 1.0, -2.0, 0.5]).view([2, 2])
    }

    fn message(criterion: MultiLabelSoftMarginLoss, input: &Tensor, target: &Tensor) -> String {
        criterion.f_forward(input, target).unwrap_err().to_string()
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (logits(), logits().sigmoid());
        let new = MultiLabelSoftMarginLoss::new;
        let three = Tensor::from_slice(&[1.0, 2.0, 3.0]);
        let cases = [
            (message(new(), &input, &target.get(0)), "target has shape [2], expected [2, 2], the shape of input"),
            (message(new(), &input.to_kind(Kind::Int64), &target), "input has kind Int64, expected a floating kind"),
            (message(new(), &Tensor::from(1.0), &Tensor::from(1.0)), "input has shape [], expected [C] or [..., C]"),
            (
                message(new().weight(three), &input, &target),
                "weight has shape [3], expected a shape that broadcasts to [2, 2], that of input",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn broadcasting_is_asked_for() {
        let (input, target) = (logits(), Tensor::from_slice(&[1.0, 0.0]));
        let criterion = MultiLabelSoftMarginLoss::new().broadcast(true);
        let expanded = MultiLabelSoftMarginLoss::new().forward(&input, &target.expand_as(&input));
        assert_eq!(criterion.f_forward(&input, &target).unwrap(), expanded);

        let (criterion, three) = (
            criterion.weight(Tensor::from_slice(&[1.0, 2.0, 3.0])),
            Tensor::ones([0], (Kind::Double, tch::Device::Cpu)),
        );
        let expected = "expected a shape that broadcasts against [2, 2], that of input and target";
        assert_eq!(message(criterion, &input, &target), format!("weight has shape [3], {expected}"));
        let none = MultiLabelSoftMarginLoss::new().broadcast(true).weight(three);
        assert_eq!(message(none, &input, &target), format!("weight has shape [0], {expected}"));
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let input = Tensor::from_slice(&[1000.0, -1000.0]).set_requires_grad(true);
        let loss = MultiLabelSoftMarginLoss::new().forward(&input, &Tensor::from_slice(&[0.0, 1.0]));
        loss.backward();
        assert_eq!(loss.double_value(&[]), 1000.0);
        assert_eq!(Vec::<f64>::try_from(input.grad()).unwrap(), [0.5, -0.5]);
    }

    #[test]
    fn any_integer_is_a_label() {
        let (x, y) =
            (Tensor::from_slice(&[0.5, -0.25]).view([1, 2]), Tensor::from_slice(&[i64::MIN, i64::MAX]).view([1, 2]));
        for backend in [Backend::Auto, Backend::Composite] {
            let (integers, numbers) = with_backend(backend, || {
                let loss = MultiLabelSoftMarginLoss::new();
                (loss.forward(&x, &y), loss.forward(&x, &y.to_kind(Kind::Double)))
            });
            assert_eq!(integers, numbers, "{backend:?}");
            // (2⁶³ · 0.5 + 2⁶³ · 0.25) / 2
            assert!(
                (integers.double_value(&[]) / (0.375 * 2_f64.powi(63)) - 1.0).abs() < 1e-15,
                "{backend:?}: {integers}"
            );
        }
    }
}
