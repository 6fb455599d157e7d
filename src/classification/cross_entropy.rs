use tch::{Kind, Tensor};

use super::mean_over::MeanOver;
use super::nll;
use crate::check::{self, ClassIndices};
use crate::kernels::{NumberOperations, Real, RowLoss, RowReduction, Rows, f_softmax, f_softmax_of_shares};
use crate::mean_parts::{self, f_wide, f_wide_option};
use crate::numeric::{f_widely, wide_kind};
use crate::precomputed::Precomputed;
use crate::{Backend, InvalidValues, Loss, LossError, MeanParts, Reduction, with_backend};

crate::options::options! {
/// Cross entropy of logits: how unlikely a softmax over the classes makes the target.
///
/// The usual loss of classification and segmentation, over class indices or over class probabilities. It takes logits:
/// do not apply a softmax before it. For several labels at once choose
/// [`BceWithLogitsLoss`](crate::BceWithLogitsLoss).
///
/// # Formula
///
/// For class indices, with p = softmax(x) over the classes,
///
/// ℓₙ = (1 − ε) · w\[yₙ\] · (−log p\[n, yₙ\]) + ε/C · Σ_c w\[c\] · (−log p\[n, c\])
///
/// where y is the target, w the weight (1 where there is none), ε the label smoothing and C the number of classes.
/// An ignored target has ℓₙ = 0. The mean is Σ ℓₙ / Σ w\[yₙ\] over the targets that are not ignored; with
/// [`MeanOver::All`] it is Σ ℓₙ divided by the number of all targets.
///
/// For class probabilities q, first smoothed to (1 − ε) q + ε/C,
///
/// ℓₙ = −Σ_c w\[c\] · q\[n, c\] · log p\[n, c\]
///
/// and the mean divides by the number of targets, whatever the weights.
///
/// # Shapes
///
/// * `input`: `[C]`, `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: the same without C, of any integer kind, for class indices; or that of `input`, of a floating kind,
///   for class probabilities
/// * `weight`: `[C]`
/// * result: scalar, or the input's shape without C with [`Reduction::None`]
///
/// Over nothing the mean is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.CrossEntropyLoss` and `torch.nn.functional.cross_entropy` of PyTorch 2.13. It also is
/// `timm.loss.SoftTargetCrossEntropy` and `timm.loss.LabelSmoothingCrossEntropy` of timm 1.0.31, whose classes are the
/// last dimension, and with [`MeanOver::All`] `segmentation_models_pytorch.losses.SoftCrossEntropyLoss` of
/// segmentation-models-pytorch 0.6.0.
///
/// # Differences from PyTorch
///
/// * Class indices may be of any integer kind; PyTorch takes `int64` and `uint8`.
/// * A class out of range is an error on CUDA too, where PyTorch loses the CUDA context.
/// * A label smoothing below 0 is an error; PyTorch computes something.
/// * An ignored row of logits that are all −∞ has gradient 0; PyTorch's is NaN.
/// * A class that is masked by −∞ and has probability 0 in the target costs nothing, which is the limit; PyTorch's loss is
///   NaN. Probability on a masked class is +∞, as in PyTorch.
/// * `weight` may be of any floating kind; PyTorch takes that of the input.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a smoothing outside \[0, 1\] or an
/// `ignore_index` ≥ 0 with class probabilities.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{CrossEntropyLoss, Loss};
///
/// let logits = Tensor::from_slice(&[2.0, 0.5, -1.0, 0.0, 0.0, 3.0]).view([2, 3]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0_i64, 2]);
///
/// let loss = CrossEntropyLoss::new().label_smoothing(0.1).f_forward(&logits, &target)?;
/// loss.f_backward()?;
/// assert_eq!(logits.grad().size(), [2, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.CrossEntropyLoss")]
#[doc(alias = "cross_entropy")]
#[doc(alias = "SoftTargetCrossEntropy")]
#[doc(alias = "LabelSmoothingCrossEntropy")]
#[doc(alias = "SoftCrossEntropyLoss")]
pub struct CrossEntropyLoss: "cross_entropy";

/// Cross entropy with PyTorch's defaults.
new {
    /// a weight for each class. It is on the device of the input, in any floating kind.
    weight: Option<Tensor> = None,
    /// the class index whose targets count nothing.
    ignore_index: i64 = -100,
    /// the share of the target, in \[0, 1\], that is spread over all classes.
    label_smoothing: f64 = 0.0,
    /// what a class out of range does.
    invalid_values: InvalidValues = InvalidValues::Error,
    /// what the mean of class indices divides by where some are ignored.
    mean_over: MeanOver = MeanOver::Counted,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl CrossEntropyLoss {
    /// The weight, the ignored class, what the mean divides by, and the reduction, where these are all there is to a
    /// reduced loss: for an engine that computes it along with another one.
    pub(crate) fn plain(&self) -> Option<(Option<&Tensor>, i64, MeanOver, Reduction)> {
        let checked = self.label_smoothing == 0.0 && self.invalid_values == InvalidValues::Error;
        let plain = checked && self.reduction != Reduction::None;
        plain.then_some((self.weight.as_ref(), self.ignore_index, self.mean_over, self.reduction))
    }

    /// The log-probabilities of `input`, in single precision at least, and their loss: for a loss that needs both.
    pub(crate) fn f_with_log_probabilities(
        &self,
        input: &Tensor,
        target: &Tensor,
    ) -> Result<(Tensor, Tensor), LossError> {
        self.f_of(input, target, Some(wide_kind(input)?))
    }

    /// What the loss is computed of, the input or where a kind is given its log-probabilities in that, and the loss.
    fn f_of(&self, input: &Tensor, target: &Tensor, logs: Option<Kind>) -> Result<(Tensor, Tensor), LossError> {
        check::devices(&[("input", input), ("target", target)])?;
        check::floating(("input", input))?;
        self.f_check_options()?;
        let class_dim = check::class_dim(input)?;
        let shape = input.size();
        if let Some(weight) = &self.weight {
            check::class_weight(weight, input, shape[class_dim])?;
        }
        let f_logs = |input: &Tensor| match logs {
            Some(kind) => input.f_log_softmax(class_dim as i64, kind),
            None => Ok(input.shallow_clone()),
        };
        if target.size() == shape {
            self.f_check_probabilities(target)?;
            if logs.is_none()
                && let Some(loss) = self.f_fused_probabilities(input, class_dim, target)?
            {
                return Ok((input.shallow_clone(), loss));
            }
            let input = f_logs(input)?;
            let loss = f_widely([&input, target], |[x, y]| self.f_aten(x, y, false, self.reduction))?;
            return Ok((input, loss));
        }
        let target = self.f_class_indices(input, target, class_dim)?;
        if logs.is_none()
            && let Some(loss) = self.f_fused(input, class_dim, &target)?
        {
            return Ok((input.shallow_clone(), loss));
        }
        // A row of nothing but -∞ has NaN log-probabilities, which spoil its gradient even where it is ignored.
        let input = f_logs(&target.f_mask_ignored(input, class_dim)?)?;
        let loss = f_widely([&input], |[x]| self.f_indices(x, &target, logs.is_some()))?;
        Ok((input, loss))
    }

    /// The loss of class indices by the engine, where it takes the call.
    fn f_fused(&self, input: &Tensor, class_dim: usize, target: &ClassIndices) -> Result<Option<Tensor>, LossError> {
        if !target.validity.is_checked() {
            return Ok(None);
        }
        let reduction = match (self.reduction, self.mean_over) {
            (Reduction::Mean, MeanOver::All) => RowReduction::Mean,
            (reduction, _) => reduction.into(),
        };
        let rows = Rows {
            input,
            class_dim,
            target: &target.indices,
            ignore_index: Some(self.ignore_index),
            weight: self.weight.as_ref(),
        };
        f_softmax(LogLoss, self.label_smoothing, &rows, reduction, self.composite())
    }

    /// The loss by tensor operations.
    fn composite(&self) -> impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + use<> {
        let own = self.clone();
        move |input, target| with_backend(Backend::Composite, || own.f_forward(input, target))
    }

    /// A softmax of log-probabilities changes nothing, and so where all of them are needed one more may be taken.
    fn f_aten(&self, input: &Tensor, target: &Tensor, logs: bool, reduction: Reduction) -> Result<Tensor, LossError> {
        let weight = self.weight.as_ref().map(|weight| weight.f_to_kind(input.f_kind()?)).transpose()?;
        if logs && self.label_smoothing == 0.0 {
            let input = nll::f_one_after_another(input)?;
            return Ok(input.f_nll_loss_nd(target, weight.as_ref(), reduction.into(), self.ignore_index)?);
        }
        let (ignore_index, smoothing) = (self.ignore_index, self.label_smoothing);
        let input = match (target.size() == input.size(), smoothing == 0.0) {
            (true, true) => f_finite(input, Some(target), weight.as_ref())?,
            (false, true) => input.shallow_clone(),
            (_, false) => f_finite(input, None, weight.as_ref())?,
        };
        Ok(input.f_cross_entropy_loss(target, weight.as_ref(), reduction.into(), ignore_index, smoothing)?)
    }

    fn f_check_probabilities(&self, target: &Tensor) -> Result<(), LossError> {
        check::floating(("target", target))?;
        let expected = "negative with class probabilities as target";
        check::option("ignore_index", self.ignore_index, self.ignore_index < 0, expected)
    }

    /// The loss of class probabilities by the engine, where it takes the call.
    fn f_fused_probabilities(
        &self,
        input: &Tensor,
        class_dim: usize,
        target: &Tensor,
    ) -> Result<Option<Tensor>, LossError> {
        let reduction = RowReduction::over_all(self.reduction);
        let rows = Rows { input, class_dim, target, ignore_index: None, weight: self.weight.as_ref() };
        f_softmax_of_shares(self.label_smoothing, &rows, reduction, self.composite())
    }

    fn f_class_indices(&self, input: &Tensor, target: &Tensor, class_dim: usize) -> Result<ClassIndices, LossError> {
        let or = ", or that of input for class probabilities";
        let (classes, target) = check::class_target(target, input, class_dim, or)?;
        if let Some(weight) = &self.weight {
            check::without_gradient(("weight", weight))?;
        }
        ClassIndices::f_new(&target, classes, Some(self.ignore_index), self.invalid_values)
    }

    /// The loss of logits, or of log-probabilities.
    fn f_indices(&self, input: &Tensor, target: &ClassIndices, logs: bool) -> Result<Tensor, LossError> {
        let loss = match (self.reduction, self.mean_over) {
            (Reduction::Mean, MeanOver::All) => {
                self.f_aten(input, &target.f_kept(input)?, logs, Reduction::None)?.f_mean(None)?
            }
            (reduction, _) => self.f_aten(input, &target.f_kept(input)?, logs, reduction)?,
        };
        target.validity.f_poison(&loss, self.reduction == Reduction::None)
    }
}

/// A logit as unlikely as −∞, whose logarithm is finite.
const LEAST: f64 = -1e30;

/// `input` with [`LEAST`] where a class is masked by −∞ and has no share in the loss, because its `share` of the target or its
/// weight is 0: libtorch makes 0 · ∞ NaN of it.
fn f_finite(input: &Tensor, share: Option<&Tensor>, weight: Option<&Tensor>) -> Result<Tensor, LossError> {
    let class_dim = check::class_dim(input)?;
    let mut per_class = vec![1; input.dim()];
    per_class[class_dim] = -1;
    let shareless = share.map(|share| share.f_eq_number(0)).transpose()?;
    let weightless = weight.map(|weight| weight.f_reshape(&per_class)?.f_eq_number(0)).transpose()?;
    let none = match (shareless, weightless) {
        (Some(shareless), Some(weightless)) => shareless.f_logical_or(&weightless)?,
        (Some(none), None) | (None, Some(none)) => none,
        (None, None) => return Ok(input.shallow_clone()),
    };
    if input.numel() == 0 {
        return Ok(input.shallow_clone());
    }
    let masked = none.f_logical_and(&input.f_eq_number(f64::NEG_INFINITY)?)?;
    // A row of nothing but −∞ has no softmax.
    let possible = input.f_detach()?.f_amax([class_dim as i64].as_slice(), true)?.f_gt_number(f64::NEG_INFINITY)?;
    Ok(input.f_masked_fill_number(&masked.f_logical_and(&possible)?, LEAST)?)
}

impl Precomputed for CrossEntropyLoss {
    fn reduction(&self) -> Reduction {
        self.reduction
    }
}

impl Loss for CrossEntropyLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        let smoothing = self.label_smoothing;
        check::option("label_smoothing", smoothing, (0.0..=1.0).contains(&smoothing), "a number in [0, 1]")
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        Ok(self.f_of(input, target, None)?.1)
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let sum = Self { weight: f_wide_option(&self.weight)?, reduction: Reduction::Sum, ..*self };
        let numerator = sum.f_forward(&f_wide(input)?, &f_wide(target)?)?;
        let class_dim = check::class_dim(input)?;
        if self.mean_over == MeanOver::All || target.size() == input.size() {
            return MeanParts::f_over(numerator, mean_parts::rows(input, class_dim));
        }
        MeanParts::f_of_counted(
            numerator,
            target,
            input.size()[class_dim],
            Some(self.ignore_index),
            self.weight.as_ref(),
        )
    }
}

#[derive(Clone, Copy)]
struct LogLoss;

impl RowLoss for LogLoss {
    #[inline(always)]
    fn evaluate<R: Real>(self, log_p: R, _: R) -> (R, [R; 2]) {
        (-log_p, [R::of(-1.0), R::of(0.0)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, with_backend};

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.0, 0.0, 1.0, 1.0]).view([2, 2])
    }

    fn message(criterion: CrossEntropyLoss, input: &Tensor, target: &Tensor) -> String {
        criterion.f_forward(input, target).unwrap_err().to_string()
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (logits(), Tensor::from_slice(&[0_i64, 1]));
        let new = CrossEntropyLoss::new;
        let cases = [
            (
                message(new(), &input, &(&target + 1)),
                "target holds 2, expected classes in [0, 2), or ignore_index -100",
            ),
            (
                message(new(), &input, &(&target - 1)),
                "target holds -1, expected classes in [0, 2), or ignore_index -100",
            ),
            (message(new(), &target, &input), "input has kind Int64, expected a floating kind"),
            (message(new(), &input, &target.to_kind(Kind::Double)), "target has kind Double, expected an integer kind"),
            (message(new(), &input, &target.to_kind(Kind::Bool)), "target has kind Bool, expected an integer kind"),
            (message(new(), &input, &input.to_kind(Kind::Int64)), "target has kind Int64, expected a floating kind"),
            (
                message(new(), &input, &target.view([2, 1])),
                "target has shape [2, 1], expected [2], the shape of input without its classes, or that of input for \
                 class probabilities",
            ),
            (message(new(), &input.sum(None), &target), "input has shape [], expected [C], [N, C] or [N, C, d1, ...]"),
            (message(new(), &input, &Tensor::new()), "target is an undefined tensor"),
            (
                message(new().label_smoothing(1.5), &input, &target),
                "option label_smoothing is 1.5, expected a number in [0, 1]",
            ),
            (
                message(new().label_smoothing(f64::NAN), &input, &target),
                "option label_smoothing is NaN, expected a number in [0, 1]",
            ),
            (
                message(new().weight(input.shallow_clone()), &input, &target),
                "weight has shape [2, 2], expected [2], one weight per class",
            ),
            (
                message(new().weight(Tensor::from_slice(&[1_i64; 2])), &input, &target),
                "weight has kind Int64, expected a floating kind",
            ),
            (
                message(new().weight(Tensor::from_slice(&[1.0; 2]).set_requires_grad(true)), &input, &target),
                "option weight is a tensor that requires a gradient, expected one that requires none, for class indices",
            ),
            (
                message(new().ignore_index(0), &input, &input),
                "option ignore_index is 0, expected negative with class probabilities as target",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn every_integer_kind_is_a_class_index() {
        let input = Tensor::from_slice(&[0.5, -1.0, 2.0, 1.0]).view([2, 2]);
        let target = Tensor::from_slice(&[1_i64, 0]);
        let expected = CrossEntropyLoss::new().forward(&input, &target);
        for kind in [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64] {
            assert_eq!(CrossEntropyLoss::new().forward(&input, &target.to_kind(kind)), expected, "{kind:?}");
        }
    }

    #[test]
    fn an_ignored_row_of_masked_logits_leaves_value_and_gradient_alone() {
        let masked = [0.0, 0.0, f64::NEG_INFINITY, f64::NEG_INFINITY];
        for smoothing in [0.0, 0.5] {
            let input = Tensor::from_slice(&masked).view([2, 2]).set_requires_grad(true);
            let target = Tensor::from_slice(&[1_i64, 255]).to_kind(Kind::Uint8);
            let criterion = CrossEntropyLoss::new().ignore_index(255).label_smoothing(smoothing);
            let loss = criterion.forward(&input, &target);
            loss.backward();
            assert_eq!(loss.double_value(&[]), 2_f64.ln());
            let used = 0.5 * (1.0 - smoothing);
            assert_eq!(Vec::<f64>::try_from(input.grad().view(-1)).unwrap(), [used, -used, 0.0, 0.0]);
        }
    }

    #[test]
    fn the_mean_can_count_what_is_ignored() {
        let (input, target) =
            (Tensor::zeros([2, 2], (Kind::Double, tch::Device::Cpu)), Tensor::from_slice(&[1_i64, -100]));
        let of = |over| CrossEntropyLoss::new().mean_over(over).forward(&input, &target);
        assert_eq!(of(MeanOver::Counted).double_value(&[]), 2_f64.ln());
        assert_eq!(of(MeanOver::All).double_value(&[]), 2_f64.ln() / 2.0);
    }

    #[test]
    fn classes_out_of_range_can_make_the_loss_nan() {
        let target = Tensor::from_slice(&[1_i64, 2]);
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let input = logits().set_requires_grad(true);
            let criterion = CrossEntropyLoss::new().invalid_values(InvalidValues::Nan).reduction(reduction);
            let loss = criterion.forward(&input, &target);
            loss.sum(None).backward();
            assert!(loss.view(-1).double_value(&[-1]).is_nan());
            let used = if reduction == Reduction::None { 0.5 } else { 0.0 };
            assert_eq!(Vec::<f64>::try_from(input.grad().view(-1)).unwrap(), [used, -used, 0.0, 0.0]);
        }
    }

    #[test]
    fn an_impossible_target_has_the_slope_of_pytorch() {
        let weight = || Tensor::from_slice(&[0.5, 2.0]);
        for (weight, smoothing, class, slope) in [
            (None, 0.0, 0, 1.0),
            (None, 0.0, 1, 0.0),
            (None, 0.35, 0, 0.825),
            (None, 0.35, 1, 0.175),
            (Some(weight()), 0.0, 0, 0.5),
            (Some(weight()), 0.35, 0, 0.4125),
            (Some(weight()), 0.35, 1, 0.0875),
        ] {
            for backend in [Backend::Auto, Backend::Composite] {
                let x = Tensor::from_slice(&[f64::NEG_INFINITY, 0.0]).view([1, 2]).set_requires_grad(true);
                let mut criterion = CrossEntropyLoss::new().label_smoothing(smoothing).reduction(Reduction::Sum);
                if let Some(weight) = &weight {
                    criterion = criterion.weight(weight.shallow_clone());
                }
                let loss = with_backend(backend, || criterion.forward(&x, &Tensor::from_slice(&[class])));
                loss.backward();
                assert_eq!(loss.double_value(&[]), if slope == 0.0 { 0.0 } else { f64::INFINITY });
                let slopes = Vec::<f64>::try_from(x.grad().view(-1)).unwrap();
                let close = (slopes[0] + slope).abs() < 1e-15 && (slopes[1] - slope).abs() < 1e-15;
                assert!(close, "{backend:?}, {smoothing}, {class}: {slopes:?}");
            }
        }
    }
}
