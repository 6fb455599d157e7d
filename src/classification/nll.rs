use tch::Tensor;

use crate::check::{self, ClassIndices, Validity};
use crate::kernels::{Note, Rows, f_picked};
use crate::mean_parts::{f_wide, f_wide_option};
use crate::numeric::f_widely;
use crate::{Backend, InvalidValues, Loss, LossError, MeanParts, Reduction, with_backend};

crate::options::options! {
/// The negative log likelihood of the target class, given log-probabilities.
///
/// The loss of classification for a model that ends in a log-softmax. For one that ends in logits choose
/// [`CrossEntropyLoss`](crate::CrossEntropyLoss), which takes the log-softmax itself.
///
/// # Formula
///
/// ℓₙ = −w\[yₙ\] · x\[n, yₙ\]
///
/// where x holds log-probabilities, y is the target and w the weight, 1 where there is none. An ignored target has
/// ℓₙ = 0. The mean is Σ ℓₙ / Σ w\[yₙ\] over the targets that are not ignored.
///
#[doc = include_str!("../../docs/book/src/gallery/nll.svg")]
///
/// # Shapes
///
/// * `input`: `[C]`, `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[]`, `[N]` or `[N, d₁, …, dₖ]`, of any integer kind; with an input of `[C]` also `[1]`
/// * `weight`: `[C]`, of the input's kind
/// * result: scalar, or `[]`, `[N]` or `[N, d₁, …, dₖ]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.NLLLoss` and `torch.nn.functional.nll_loss` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// * Class indices may be of any integer kind; PyTorch takes `int64` and `uint8`.
/// * A class out of range is an error, on CUDA a [later one](crate::InvalidValues::f_check)
///   and NaN until then, where PyTorch's makes every later CUDA call of the process fail.
/// * An input of pixels may lie in memory in any order, such as channels last; PyTorch's backward rejects it.
/// * With an input of `[C]` and a target of `[1]`, [`Reduction::None`] has a gradient; PyTorch's backward fails.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, NllLoss};
///
/// let log_probs = Tensor::from_slice(&[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]).view([2, 3]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0_i64, 2]);
///
/// let loss = NllLoss::new().f_forward(&log_probs, &target)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 3.5);
/// let grad = Vec::<f64>::try_from(log_probs.grad().view(-1))?;
/// assert_eq!(grad, [-0.5, 0.0, 0.0, 0.0, 0.0, -0.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.NLLLoss")]
#[doc(alias = "NLLLoss2d")]
#[doc(alias = "nll_loss")]
pub struct NllLoss: "nll";

/// The negative log likelihood with PyTorch's defaults.
new {
    /// a weight for each class. It is on the device of the input, in any floating kind.
    weight: Option<Tensor> = None,
    /// the class index whose targets are ignored.
    ignore_index: i64 = -100,
    /// how a class out of range is handled, and a number above 0 where [`check_log_probs`](Self::check_log_probs) looks
    /// for those.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// whether numbers above 0 in the input are invalid. Log-probabilities are never above 0; logits are, and belong
    /// into [`CrossEntropyLoss`](crate::CrossEntropyLoss). The check reads the input once more; PyTorch takes any
    /// numbers.
    check_log_probs: bool = false,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

/// The input, contiguous where it has pixels, because the backward pass of libtorch's loss of pixels needs that.
pub(super) fn f_one_after_another(log_probs: &Tensor) -> Result<Tensor, LossError> {
    Ok(if log_probs.dim() > 2 { log_probs.f_contiguous()? } else { log_probs.shallow_clone() })
}

impl Loss for NllLoss {
    crate::option_tensors::with_tensors!();

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        let class_dim = check::class_dim(input)?;
        let (classes, target) = check::class_target(target, input, class_dim, "")?;
        let weight = check::f_class_weight(self.weight.as_ref(), input, classes)?;
        let log_probs = match self.check_log_probs {
            true => check::f_log_probs(("input", input), self.invalid_values)?,
            false => Validity::CHECKED,
        };
        let log_probs = log_probs.f_all_along(class_dim as i64)?;
        let unreduced = self.reduction == Reduction::None;
        let found = (self.invalid_values, unreduced);
        let engine = |target: &Tensor, note: Option<&Note>| self.f_fused(input, class_dim, target, note);
        let target = match ClassIndices::f_fused(&target, classes, Some(self.ignore_index), found, engine)? {
            Ok(loss) => return log_probs.f_poison(&loss, unreduced),
            Err(target) if self.reduction == Reduction::Mean => target.f_ignoring_all()?,
            Err(target) => target,
        };
        let indices = target.f_kept(input)?;
        let validity = log_probs.f_and(&target.validity, unreduced)?;
        f_widely([input], |[input]| {
            let reduction = self.reduction.into();
            let input = f_one_after_another(input)?;
            let loss = input.f_nll_loss_nd(&indices, weight.as_ref(), reduction, self.ignore_index)?;
            validity.f_poison_own(loss, unreduced)
        })
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let sum = Self { weight: f_wide_option(&self.weight)?, reduction: Reduction::Sum, ..*self };
        let numerator = sum.f_forward(&f_wide(input)?, target)?;
        let classes = input.size()[check::class_dim(input)?];
        MeanParts::f_of_counted(numerator, target, classes, Some(self.ignore_index), self.weight.as_ref())
    }
}

impl NllLoss {
    /// The loss by the engine, where it takes the call.
    fn f_fused(
        &self,
        input: &Tensor,
        class_dim: usize,
        target: &Tensor,
        note: Option<&Note>,
    ) -> Result<Option<Tensor>, LossError> {
        let (ignore_index, weight) = (Some(self.ignore_index), self.weight.as_ref());
        let rows = Rows { input, class_dim, target, ignore_index, weight, note };
        let own = self.clone();
        f_picked(&rows, self.reduction.into(), move |input, target| {
            with_backend(Backend::Composite, || own.f_forward(input, target))
        })
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn log_probs() -> Tensor {
        Tensor::from_slice(&[-1.0, -2.0, -3.0, -4.0]).view([2, 2])
    }

    fn message(criterion: NllLoss, input: &Tensor, target: &Tensor) -> String {
        criterion.f_forward(input, target).unwrap_err().to_string()
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (log_probs(), Tensor::from_slice(&[0_i64, 1]));
        let options = (Kind::Double, tch::Device::Cpu);
        let cases = [
            (
                message(NllLoss::new(), &input, &(&target + 1)),
                "target holds 2, expected classes in [0, 2), or ignore_index -100",
            ),
            (message(NllLoss::new(), &target, &input), "input has kind Int64, expected a floating kind"),
            (
                message(NllLoss::new(), &input, &target.view([2, 1])),
                "target has shape [2, 1], expected [2], the shape of input without its classes",
            ),
            (
                message(NllLoss::new(), &input, &target.to_kind(Kind::Double)),
                "target has kind Double, expected an integer kind",
            ),
            (
                message(NllLoss::new(), &input.get(0), &target),
                "target has shape [2], expected [], the shape of input without its classes",
            ),
            (
                message(NllLoss::new(), &input.sum(None), &target),
                "input has shape [], expected [C], [N, C] or [N, C, d1, ...]",
            ),
            (
                message(NllLoss::new().weight(Tensor::from_slice(&[1.0])), &input, &target),
                "weight has shape [1], expected [2], one weight per class",
            ),
            (
                message(NllLoss::new().weight(Tensor::from_slice(&[1_i64, 1])), &input, &target),
                "weight has kind Int64, expected a floating kind",
            ),
            (
                message(NllLoss::new().weight(Tensor::ones(2, options).set_requires_grad(true)), &input, &target),
                "option weight is a tensor that requires a gradient, expected one that requires none, for class \
                 indices",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn raw_logits_can_be_told_from_log_probabilities() {
        let (logits, target) = (-log_probs(), Tensor::from_slice(&[0_i64, 1]));
        let criterion = || NllLoss::new().check_log_probs(true);
        assert_eq!(
            message(criterion(), &logits, &target),
            "input holds 1, expected log-probabilities, which are at most 0: apply log_softmax before"
        );
        assert_eq!(criterion().forward(&log_probs(), &target), NllLoss::new().forward(&log_probs(), &target));
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let criterion = criterion().invalid_values(InvalidValues::Nan).reduction(reduction);
            assert!(criterion.forward(&logits, &target).sum(None).double_value(&[]).is_nan());
        }
    }

    #[test]
    fn every_integer_kind_is_a_class_index() {
        let target = Tensor::from_slice(&[1_i64, 0]);
        for kind in [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64] {
            let loss = NllLoss::new().f_forward(&log_probs(), &target.to_kind(kind)).unwrap();
            assert_eq!(loss.double_value(&[]), 2.5, "{kind:?}");
        }
    }

    #[test]
    fn ignored_rows_leave_value_and_gradient_alone() {
        let input = Tensor::from_slice(&[-1.0, -2.0, f64::NAN, f64::NEG_INFINITY]).view([2, 2]).set_requires_grad(true);
        let loss = NllLoss::new().f_forward(&input, &Tensor::from_slice(&[1_i64, -100])).unwrap();
        loss.backward();
        assert_eq!(loss.double_value(&[]), 2.0);
        assert_eq!(Vec::<f64>::try_from(input.grad().view(-1)).unwrap(), [0.0, -1.0, 0.0, 0.0]);
    }

    #[test]
    fn one_sample_without_a_batch() {
        for shape in [&[][..], &[1]] {
            let input = log_probs().get(0).set_requires_grad(true);
            let target = Tensor::from(1_i64).view(shape);
            let loss = NllLoss::new().reduction(Reduction::None).f_forward(&input, &target).unwrap();
            loss.backward();
            assert_eq!(loss.size(), [0_i64; 0]);
            assert_eq!(Vec::<f64>::try_from(input.grad()).unwrap(), [0.0, -1.0]);
        }
    }

    #[test]
    fn pixels_may_lie_in_memory_in_any_order() {
        let log_probs = Tensor::arange(120, (Kind::Double, tch::Device::Cpu)).view([2, 4, 5, 3]).movedim_int(3, 1);
        let target = Tensor::from_slice(&[0_i64, 2]).view([2, 1, 1]).expand([2, 4, 5], false);
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let gradient = |input: Tensor| {
                let input = input.set_requires_grad(true);
                NllLoss::new().reduction(reduction).forward(&input, &target).sum(None).backward();
                input.grad()
            };
            assert_eq!(gradient(log_probs.detach()), gradient(log_probs.contiguous().detach()));
        }
    }

    #[test]
    fn classes_out_of_range_can_make_the_loss_nan() {
        let target = Tensor::from_slice(&[1_i64, 7]);
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let input = log_probs().set_requires_grad(true);
            let criterion = NllLoss::new().invalid_values(InvalidValues::Nan).reduction(reduction);
            let loss = criterion.f_forward(&input, &target).unwrap();
            assert!(loss.view(-1).double_value(&[-1]).is_nan());
            loss.sum(None).backward();
            let used = if reduction == Reduction::None { -1.0 } else { 0.0 };
            assert_eq!(Vec::<f64>::try_from(input.grad().view(-1)).unwrap(), [0.0, used, 0.0, 0.0]);
        }
    }
}
