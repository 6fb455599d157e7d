use tch::Tensor;

use crate::check::{self, ClassIndices};
use crate::kernels::{Hinges, Margin, Note, NumberOperations, RowReduction, Rows, f_margin};
use crate::loss::composite;
use crate::{InvalidValues, Loss, LossError, Reduction, numeric};

crate::options::options! {
/// The multi-margin loss, a hinge loss of several classes: each other class should score lower than the target, by a
/// margin.
///
/// The loss of a multi-class support vector machine. Choose it where only the order of the scores matters; for
/// probabilities choose [`CrossEntropyLoss`](crate::CrossEntropyLoss), for several labels at once
/// [`MultiLabelMarginLoss`](crate::MultiLabelMarginLoss).
///
/// # Formula
///
/// ℓₙ = w\[yₙ\] / C · Σ_{c ≠ yₙ} max(0, m − x\[n, yₙ\] + x\[n, c\])ᵖ
///
/// where x is the input, y the target, m the margin, p the power (1 or 2), w the weight (1 where there is none) and C
/// the number of classes. The mean divides by the number of targets, whatever the weights are.
///
#[doc = include_str!("../../docs/book/src/gallery/multi_margin.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C]`, `[C]`, or `[]` for a single class
/// * `target`: `[N]`, or for a single row `[]` or `[1]`, of any integer kind
/// * `weight`: `[C]`, of the input's kind
/// * result: scalar, or `[N]`, `[1]` or `[]`, the target's, with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.MultiMarginLoss` and `torch.nn.functional.multi_margin_loss` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// * It has a second derivative and a gradient for the weight.
/// * A NaN in the input makes the loss NaN; PyTorch's kernel makes a hinge with a NaN 0.
/// * The mean over an empty batch is NaN and the sum 0; PyTorch returns uninitialised memory.
/// * Class indices may be of any integer kind; PyTorch takes `int64`.
/// * A class out of range is an error, on CUDA a [later one](crate::InvalidValues::f_check)
///   and NaN until then, where PyTorch's makes every later CUDA call of the process fail.
/// * `f16` and `bf16` work on the CPU too, and are computed in `f32`.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a `p` other than 1 and 2
/// or a margin that is NaN.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, MultiMarginLoss};
///
/// let scores = Tensor::from_slice(&[0.5, 1.0, 0.25, -1.0]).view([1, 4]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64]);
///
/// let loss = MultiMarginLoss::new().f_forward(&scores, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, (0.5 + 0.25) / 4.0);
/// assert_eq!(Vec::<f64>::try_from(scores.grad().view(-1))?, [0.25, -0.5, 0.25, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.MultiMarginLoss")]
#[doc(alias = "multi_margin_loss")]
pub struct MultiMarginLoss: "multi_margin";

/// The multi-class hinge loss with PyTorch's defaults.
new {
    /// the power of the hinges: 1, or 2 for squared hinges.
    p: i64 = 1,
    /// the margin between the target's score and the others.
    margin: f64 = 1.0,
    /// a weight for each class. It is on the device of the input, in any floating kind.
    weight: Option<Tensor> = None,
    /// how a class out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl MultiMarginLoss {
    /// The powers of the hinges, `[N, C]`, of an input of that shape with a target `[N]`.
    fn f_powers(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let (input, own) = (input.f_to_kind(numeric::wide_kind(input)?)?, target.f_unsqueeze(1)?);
        let excess = input.f_gather(1, &own, false)?.f_rsub_number(self.margin)?.f_add(&input)?;
        let hinges = excess.f_scatter_number(1, &own, 0)?.f_relu()?;
        Ok(if self.p == 1 { hinges } else { hinges.f_square()? })
    }

    /// The losses `[N]`, given the powers.
    fn f_losses(&self, powers: &Tensor, target: &Tensor, classes: i64) -> Result<Tensor, LossError> {
        let kind = powers.f_kind()?;
        let losses = powers.f_sum_dim_intlist(1, false, None)?.f_div_number(classes)?;
        let f_of_rows = |weight: &Tensor| weight.f_to_kind(kind)?.f_index_select(0, target);
        numeric::f_times(&losses, self.weight.as_ref().map(f_of_rows).transpose()?.as_ref())
    }

    /// The loss of an input `[N, C]` with a target `[N]` by the engine, or `None` where the engine does not take the
    /// call.
    fn f_fused(&self, input: &Tensor, target: &Tensor, note: Option<&Note>) -> Result<Option<Tensor>, LossError> {
        let reduction = RowReduction::over_all(self.reduction);
        let rows = Rows { input, class_dim: 1, target, ignore_index: None, weight: self.weight.as_ref(), note };
        let hinges = if self.p == 2 { Hinges::Squared } else { Hinges::All };
        f_margin(Margin { margin: self.margin, hinges }, &rows, reduction, composite(self.clone()))
    }
}

impl Loss for MultiMarginLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(unreduced);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::number("margin", self.margin)?;
        check::option("p", self.p, matches!(self.p, 1 | 2), "1 or 2")
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        self.f_check_options()?;
        let (rows, classes) = check::rows_and_classes(input)?;
        let shape = target.size();
        let fits = shape.len() <= 1 && shape.iter().product::<i64>() == rows;
        check::shape(("target", target), fits, format_args!("[{rows}], one class per row of input"))?;
        check::class_weight(self.weight.as_ref(), input, classes)?;
        if let Some(weight) = &self.weight {
            check::without_gradient(("weight", weight))?;
        }
        // Arguments that have the right shape are not reshaped, because each view adds a node to the graph.
        let input_rows = if input.dim() == 2 { input.shallow_clone() } else { input.f_reshape([rows, classes])? };
        let found = (self.invalid_values, self.reduction == Reduction::None);
        let engine = |target: &Tensor, note: Option<&Note>| {
            let loss = self.f_fused(&input_rows, &target.f_reshape([rows])?, note)?;
            let f_shaped = |loss: Tensor| {
                let other_shape = self.reduction == Reduction::None && loss.dim() != shape.len();
                Ok(if other_shape { loss.f_reshape(&shape)? } else { loss })
            };
            loss.map(f_shaped).transpose()
        };
        let target = match ClassIndices::f_fused(target, classes, None, found, engine)? {
            Ok(loss) => return Ok(loss),
            Err(target) => target,
        };
        let indices = target.indices.f_reshape([rows])?;
        let powers = self.f_powers(&input_rows, &indices)?;
        let loss = match (self.reduction, &self.weight) {
            // The mean over the rows of means over the classes is that over all.
            (Reduction::Mean, None) => powers.f_mean(None)?,
            (Reduction::Sum, None) => powers.f_sum(None)?.f_div_number(classes)?,
            (reduction, _) => reduction.f_apply(&self.f_losses(&powers, &indices, classes)?.f_reshape(&shape)?)?,
        };
        let loss = loss.f_to_kind(numeric::result_kind(input)?)?;
        target.validity.f_poison_own(loss, self.reduction == Reduction::None)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn scores() -> Tensor {
        Tensor::from_slice(&[0.5, 1.0, 0.25, -1.0]).view([1, 4])
    }

    fn message(criterion: MultiMarginLoss, input: &Tensor, target: &Tensor) -> String {
        criterion.f_forward(input, target).unwrap_err().to_string()
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (scores(), Tensor::from_slice(&[1_i64]));
        let new = MultiMarginLoss::new;
        let cases = [
            (message(new(), &input, &(&target + 3)), "target holds 4, expected classes in [0, 4)"),
            (message(new(), &input, &(&target - 2)), "target holds -1, expected classes in [0, 4)"),
            (
                message(new(), &input, &target.view([1, 1])),
                "target has shape [1, 1], expected [1], one class per row of input",
            ),
            (
                message(new(), &input.view([2, 2]), &target),
                "target has shape [1], expected [2], one class per row of input",
            ),
            (
                message(new(), &input.view([1, 2, 2]), &target),
                "input has shape [1, 2, 2], expected [C] or [N, C], with at least one class",
            ),
            (
                message(new(), &input.narrow(1, 0, 0), &target),
                "input has shape [1, 0], expected [C] or [N, C], with at least one class",
            ),
            (message(new(), &input, &target.to_kind(Kind::Double)), "target has kind Double, expected an integer kind"),
            (message(new().p(3), &input, &target), "option p is 3, expected 1 or 2"),
            (
                message(new().weight(Tensor::from_slice(&[1.0])), &input, &target),
                "weight has shape [1], expected [4], one weight per class",
            ),
            (
                message(new().weight(Tensor::from_slice(&[1_i64; 4])), &input, &target),
                "weight has kind Int64, expected a floating kind",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn the_gradient_at_the_kink_is_zero() {
        for p in [1, 2] {
            let input = Tensor::from_slice(&[1.0, 2.0, 0.0, 1.0]).set_requires_grad(true);
            let loss = MultiMarginLoss::new().p(p).f_forward(&input, &Tensor::from(1_i64)).unwrap();
            loss.backward();
            assert_eq!(loss.double_value(&[]), 0.0);
            assert_eq!(Vec::<f64>::try_from(input.grad()).unwrap(), [0.0; 4]);
        }
    }

    #[test]
    fn an_empty_batch_is_defined() {
        let (input, target) = (scores().narrow(0, 0, 0), Tensor::zeros([0], (Kind::Int64, Device::Cpu)));
        assert!(MultiMarginLoss::new().forward(&input, &target).double_value(&[]).is_nan());
        let sum = MultiMarginLoss::new().reduction(Reduction::Sum).forward(&input, &target);
        assert_eq!(sum.double_value(&[]), 0.0);
    }

    #[test]
    fn nan_is_not_hidden() {
        let input = Tensor::from_slice(&[f64::NAN, 1.0]);
        for class in [0, 1] {
            assert!(MultiMarginLoss::new().forward(&input, &Tensor::from(class)).double_value(&[]).is_nan());
        }
    }

    #[test]
    fn it_has_a_second_derivative() {
        // ℓ = ((1 − b + a)²) / 2, and with g its gradient Σ g² = 2 (1 − b + a)².
        let input = Tensor::from_slice(&[0.5, 0.25]).set_requires_grad(true);
        let loss = MultiMarginLoss::new().p(2).f_forward(&input, &Tensor::from(1_i64)).unwrap();
        let grad = Tensor::run_backward(&[loss], &[&input], true, true).remove(0);
        let second = Tensor::run_backward(&[grad.square().sum(None)], &[&input], false, false).remove(0);
        assert_eq!(Vec::<f64>::try_from(second).unwrap(), [5.0, -5.0]);
    }

    #[test]
    fn half_kinds_are_computed_in_single_precision() {
        let target = Tensor::from_slice(&[1_i64]);
        for kind in [Kind::Half, Kind::BFloat16] {
            let loss = MultiMarginLoss::new().f_forward(&scores().to_kind(kind), &target).unwrap();
            assert_eq!((loss.kind(), loss.double_value(&[])), (kind, 0.1875));
        }
    }

    #[test]
    fn classes_out_of_range_can_make_the_loss_nan() {
        let input = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0]).view([2, 2]).set_requires_grad(true);
        let criterion = MultiMarginLoss::new().invalid_values(InvalidValues::Nan).reduction(Reduction::None);
        let loss = criterion.f_forward(&input, &Tensor::from_slice(&[0_i64, 2])).unwrap();
        loss.sum(None).backward();
        assert!(loss.double_value(&[0]) == 0.5 && loss.double_value(&[1]).is_nan());
        assert_eq!(Vec::<f64>::try_from(input.grad().view(-1)).unwrap(), [-0.5, 0.5, 0.0, 0.0]);
    }
}
