#[cfg(test)]
mod tests;

use tch::{Kind, Tensor};

use super::mean_over::MeanOver;
use super::nll;
use crate::check::{self, ClassIndices};
use crate::kernels::{
    self, Note, NumberOperations, Real, RowLoss, RowReduction, Rows, f_softmax, f_softmax_of_shares, waits,
};
use crate::loss::composite;
use crate::mean_parts::{self, f_wide, f_wide_option};
use crate::numeric::{f_times, f_widely, wide_kind};
use crate::{InvalidValues, Loss, LossError, MeanParts, Reduction};

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
/// and the mean divides by the number of targets, whatever the weights are.
///
#[doc = include_str!("../../docs/book/src/gallery/cross_entropy.svg")]
///
/// # Shapes
///
/// * `input`: `[C]`, `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[]`, `[N]` or `[N, d₁, …, dₖ]`, of any integer kind, for class indices; or `[C]`, `[N, C]` or
///   `[N, C, d₁, …, dₖ]`, of a floating kind, for class probabilities
/// * `weight`: `[C]`
/// * result: scalar, or `[]`, `[N]` or `[N, d₁, …, dₖ]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
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
/// * A class out of range is an error, on CUDA a [later one](crate::InvalidValues::f_check)
///   and NaN until then, where PyTorch's makes every later CUDA call of the process fail.
/// * A label smoothing below 0 is an error; PyTorch computes a number without a meaning.
/// * An ignored row of logits that are all −∞ has gradient 0; PyTorch's is NaN.
/// * A class that is masked by −∞ and has probability 0 in the target adds 0, which is the limit; PyTorch's loss is
///   NaN. Where a masked class has a probability above 0 the loss is ∞, as in PyTorch.
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
#[doc(alias = "label_smoothing")]
#[doc(alias = "softmax_cross_entropy")]
#[doc(alias = "categorical_crossentropy")]
#[doc(alias = "sparse_categorical_crossentropy")]
#[doc(alias = "soft_target")]
pub struct CrossEntropyLoss: "cross_entropy";

/// Cross entropy with PyTorch's defaults.
new {
    /// a weight for each class. It is on the device of the input, in any floating kind.
    weight: Option<Tensor> = None,
    /// the class index whose targets are ignored.
    ignore_index: i64 = -100,
    /// the share of the target, in \[0, 1\], that is spread over all classes.
    label_smoothing: f64 = 0.0,
    /// how a class out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// what the mean of class indices divides by where some are ignored.
    mean_over: MeanOver = MeanOver::Counted,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl CrossEntropyLoss {
    /// The weight, the ignored class, the divisor of the mean and the reduction of a reduced loss that has no other
    /// options: for an engine that computes it along with another one.
    pub(crate) fn plain(&self, input: &Tensor) -> Option<(Option<&Tensor>, i64, MeanOver, Reduction)> {
        let checked = self.invalid_values.is_error() || kernels::is_on_cuda(input);
        let plain = checked && self.label_smoothing == 0.0 && self.reduction != Reduction::None;
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

    /// The input, or where `logs` has a kind its log-probabilities in that kind, and the loss.
    fn f_of(&self, input: &Tensor, target: &Tensor, logs: Option<Kind>) -> Result<(Tensor, Tensor), LossError> {
        check::arguments(input, target)?;
        self.f_check_options()?;
        let class_dim = check::class_dim(input)?;
        let shape = input.size();
        check::class_weight(self.weight.as_ref(), input, shape[class_dim])?;
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
        let engine = |target: &Tensor, note: Option<&Note>| match logs {
            None => self.f_fused(input, class_dim, target, note),
            Some(_) => Ok(None),
        };
        let target = match self.f_class_indices(input, target, class_dim, engine)? {
            Ok(loss) => return Ok((input.shallow_clone(), loss)),
            Err(target) if logs.is_none() && self.is_mean_over_counted() => target.f_ignoring_all()?,
            Err(target) => target,
        };
        // The log-probabilities of a row whose logits are all −∞ are NaN, which would make its gradient NaN even where
        // it is ignored. Where they are asked for they are to be numbers.
        let input = match logs {
            Some(_) => f_logs(&target.f_mask_ignored(input, class_dim)?)?,
            None => target.f_without_ignored(input, class_dim)?,
        };
        let loss = f_widely([&input], |[x]| self.f_indices(x, &target, logs.is_some()))?;
        Ok((input, loss))
    }

    fn is_mean_over_counted(&self) -> bool {
        self.reduction == Reduction::Mean && self.mean_over == MeanOver::Counted
    }

    /// The loss of class indices by the engine, or `None` where the engine does not take the call.
    fn f_fused(
        &self,
        input: &Tensor,
        class_dim: usize,
        target: &Tensor,
        note: Option<&Note>,
    ) -> Result<Option<Tensor>, LossError> {
        let reduction = match (self.reduction, self.mean_over) {
            (Reduction::Mean, MeanOver::All) => RowReduction::Mean,
            (reduction, _) => reduction.into(),
        };
        let rows = Rows {
            input,
            class_dim,
            target,
            ignore_index: Some(self.ignore_index),
            weight: self.weight.as_ref(),
            note,
        };
        f_softmax(LogLoss, self.label_smoothing, &rows, reduction, composite(self.clone()))
    }

    /// The loss by libtorch. Log-probabilities may be given as logits, because a log-softmax leaves them as they are.
    fn f_aten(&self, input: &Tensor, target: &Tensor, logs: bool, reduction: Reduction) -> Result<Tensor, LossError> {
        let weight = self.weight.as_ref().map(|weight| weight.f_to_kind(input.f_kind()?)).transpose()?;
        if logs && self.label_smoothing == 0.0 {
            let input = nll::f_one_after_another(input)?;
            return Ok(input.f_nll_loss_nd(target, weight.as_ref(), reduction.into(), self.ignore_index)?);
        }
        let (ignore_index, smoothing) = (self.ignore_index, self.label_smoothing);
        if target.size() == input.size() && smoothing == 0.0 && is_composed(input) {
            return f_of_probabilities(input, target, weight.as_ref(), reduction);
        }
        let input = match (target.size() == input.size(), smoothing == 0.0) {
            (true, true) => f_finite(input, Some(target), weight.as_ref())?,
            (false, true) => input.shallow_clone(),
            (_, false) => f_finite(input, None, weight.as_ref())?,
        };
        Ok(input.f_cross_entropy_loss(target, weight.as_ref(), reduction.into(), ignore_index, smoothing)?)
    }

    /// The smoothed loss of class indices with weights, by the operations of libtorch's.
    fn f_weighted(
        &self,
        input: &Tensor,
        target: &ClassIndices,
        weight: &Tensor,
        reduction: Reduction,
    ) -> Result<Tensor, LossError> {
        let dim = check::class_dim(input)? as i64;
        let weight = weight.f_to_kind(input.f_kind()?)?;
        let per_class = f_per_class(&weight, input)?;
        // A masked class without a weight has no part in the loss, where 0 · ∞ would be NaN.
        let log_p = input.f_log_softmax(dim, None)?;
        let masked = log_p.f_detach()?.f_eq_number(f64::NEG_INFINITY)?.f_logical_and(&per_class.f_eq_number(0)?)?;
        let log_p = log_p.f_zeros_where(&masked)?;
        let spread = target.f_zeros_at_ignored(&log_p.f_mul(&per_class)?.f_sum_dim_intlist(dim, false, None)?)?;
        let spread = match reduction {
            Reduction::None => spread,
            Reduction::Sum => spread.f_sum(None)?,
            Reduction::Mean => {
                let classes = target.f_classes(None)?;
                let weights = weight.f_index_select(0, &classes.f_flatten(0, -1)?)?.f_view_as(&classes)?;
                spread.f_sum(None)?.f_div(&target.f_zeros_at_ignored(&weights)?.f_sum(None)?)?
            }
        };
        let (log_p, indices) = (nll::f_one_after_another(&log_p)?, target.f_kept(input)?);
        let of_target = log_p.f_nll_loss_nd(&indices, Some(&weight), reduction.into(), self.ignore_index)?;
        let (smoothing, classes) = (self.label_smoothing, input.size()[dim as usize]);
        Ok(of_target.f_mul_number(1.0 - smoothing)?.f_add(&spread.f_mul_number(-smoothing / classes as f64)?)?)
    }

    fn f_check_probabilities(&self, target: &Tensor) -> Result<(), LossError> {
        check::floating(("target", target))?;
        let expected = "negative with class probabilities as target";
        check::option("ignore_index", self.ignore_index, self.ignore_index < 0, expected)
    }

    /// The loss of class probabilities by the engine, or `None` where the engine does not take the call.
    fn f_fused_probabilities(
        &self,
        input: &Tensor,
        class_dim: usize,
        target: &Tensor,
    ) -> Result<Option<Tensor>, LossError> {
        let reduction = RowReduction::over_all(self.reduction);
        let rows = Rows { input, class_dim, target, ignore_index: None, weight: self.weight.as_ref(), note: None };
        f_softmax_of_shares(self.label_smoothing, &rows, reduction, composite(self.clone()))
    }

    /// The loss by the engine, or the class indices where that does not take the call.
    fn f_class_indices(
        &self,
        input: &Tensor,
        target: &Tensor,
        class_dim: usize,
        engine: impl FnOnce(&Tensor, Option<&Note>) -> Result<Option<Tensor>, LossError>,
    ) -> Result<Result<Tensor, ClassIndices>, LossError> {
        let or = ", or that of input for class probabilities";
        let (classes, target) = check::class_target(target, input, class_dim, or)?;
        if let Some(weight) = &self.weight {
            check::without_gradient(("weight", weight))?;
        }
        let found = (self.invalid_values, self.reduction == Reduction::None);
        ClassIndices::f_fused(&target, classes, Some(self.ignore_index), found, engine)
    }

    /// The loss of logits, or of log-probabilities.
    fn f_indices(&self, input: &Tensor, target: &ClassIndices, logs: bool) -> Result<Tensor, LossError> {
        let f_loss = |reduction| match &self.weight {
            Some(weight) if self.label_smoothing > 0.0 && is_composed(input) => {
                self.f_weighted(input, target, weight, reduction)
            }
            _ => self.f_aten(input, &target.f_kept(input)?, logs, reduction),
        };
        let loss = match (self.reduction, self.mean_over) {
            (Reduction::Mean, MeanOver::All) => f_loss(Reduction::None)?.f_mean(None)?,
            (reduction, _) => f_loss(reduction)?,
        };
        target.validity.f_poison_own(loss, self.reduction == Reduction::None)
    }
}

/// Whether the operations of libtorch's take the place of its one operation. That needs logits whose masked classes are
/// finite, and a GPU has to tell it how many targets count.
fn is_composed(input: &Tensor) -> bool {
    waits(input) && input.numel() > 0
}

/// The loss of class probabilities, by the operations of libtorch's. A class that is masked by −∞ has no part in it where
/// its share or its weight is 0.
fn f_of_probabilities(
    input: &Tensor,
    target: &Tensor,
    weight: Option<&Tensor>,
    reduction: Reduction,
) -> Result<Tensor, LossError> {
    let dim = check::class_dim(input)? as i64;
    let log_p = input.f_log_softmax(dim, None)?;
    let per_class = weight.map(|weight| f_per_class(weight, input)).transpose()?;
    let shareless = target.f_eq_number(0)?;
    let none = match &per_class {
        Some(weight) => shareless.f_logical_or(&weight.f_eq_number(0)?)?,
        None => shareless,
    };
    let masked = none.f_logical_and(&log_p.f_eq_number(f64::NEG_INFINITY)?)?;
    let terms = f_times(&log_p.f_zeros_where(&masked)?.f_mul(target)?, per_class.as_ref())?;
    match reduction {
        Reduction::None => Ok(terms.f_sum_dim_intlist(dim, false, None)?.f_neg()?),
        Reduction::Sum => Ok(terms.f_sum(None)?.f_neg()?),
        Reduction::Mean => Ok(terms.f_sum(None)?.f_div_number(-(input.numel() as i64 / input.size()[dim as usize]))?),
    }
}

/// The `weight` of the classes in the shape that meets those of the `input`.
fn f_per_class(weight: &Tensor, input: &Tensor) -> Result<Tensor, LossError> {
    let mut shape = vec![1; input.dim()];
    shape[check::class_dim(input)?] = -1;
    Ok(weight.f_reshape(&shape)?)
}

/// A logit whose probability is 0 as that of −∞ is, but whose log-probability is finite.
const LEAST: f64 = -1e30;

/// `input` with [`LEAST`] where a class is masked by −∞ and has no part in the loss, because its `share` of the target
/// or its weight is 0. There libtorch multiplies 0 by ∞, which is NaN.
fn f_finite(input: &Tensor, share: Option<&Tensor>, weight: Option<&Tensor>) -> Result<Tensor, LossError> {
    let class_dim = check::class_dim(input)?;
    let shareless = share.map(|share| share.f_eq_number(0)).transpose()?;
    let weightless =
        weight.map(|weight| Ok::<_, LossError>(f_per_class(weight, input)?.f_eq_number(0)?)).transpose()?;
    let none = match (shareless, weightless) {
        (Some(shareless), Some(weightless)) => shareless.f_logical_or(&weightless)?,
        (Some(none), None) | (None, Some(none)) => none,
        (None, None) => return Ok(input.shallow_clone()),
    };
    if input.numel() == 0 {
        return Ok(input.shallow_clone());
    }
    let masked = none.f_logical_and(&input.f_eq_number(f64::NEG_INFINITY)?)?;
    // A row whose logits are all −∞ has no softmax and stays as it is.
    let possible = input.f_detach()?.f_amax([class_dim as i64].as_slice(), true)?.f_gt_number(f64::NEG_INFINITY)?;
    Ok(input.f_masked_fill_number(&masked.f_logical_and(&possible)?, LEAST)?)
}

crate::precomputed::precomputed!(CrossEntropyLoss);

impl Loss for CrossEntropyLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        check::share("label_smoothing", self.label_smoothing)
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
