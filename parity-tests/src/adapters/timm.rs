//! The losses of timm.

use tch::{Kind, Tensor};
use tch_losses::{
    AsymmetricMultiLabelLoss, AsymmetricSingleLabelLoss, CrossEntropyLoss, JsdCrossEntropyLoss, Loss, MeanOver,
    MultiLabelReduction, PolyBceWithLogitsLoss, PolyCrossEntropyLoss, Reduction, SoftBceWithLogitsLoss,
};

use super::Equality::Close;
use super::{Adapter, Outcome, adapter, with};
use crate::arguments::{Argument, Arguments, EvalError};

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("AsymmetricMultiLabelLoss", &["timm.loss.AsymmetricLossMultiLabel"], &["x", "y"], Close, asymmetric_multi_label),
    adapter("AsymmetricSingleLabelLoss", &["timm.loss.AsymmetricLossSingleLabel"], &["inputs", "target"], Close,
        asymmetric_single_label),
    adapter("SoftBceWithLogitsLoss (timm)", &["timm.loss.BinaryCrossEntropy"], &["x", "target"], Close,
        binary_cross_entropy),
    adapter("CrossEntropyLoss (timm, soft targets)", &["timm.loss.SoftTargetCrossEntropy"], &["x", "target"], Close,
        soft_target_cross_entropy),
    adapter("CrossEntropyLoss (timm, smoothed)", &["timm.loss.LabelSmoothingCrossEntropy"], &["x", "target"], Close,
        label_smoothing_cross_entropy),
    adapter("JsdCrossEntropyLoss", &["timm.loss.JsdCrossEntropy"], &["output", "target"], Close, jsd_cross_entropy),
    adapter("PolyCrossEntropyLoss", &["timm.loss.PolyCrossEntropy"], &["x", "target"], Close, poly_cross_entropy),
    adapter("PolyBceWithLogitsLoss", &["timm.loss.PolyBinaryCrossEntropy"], &["x", "target"], Close,
        poly_binary_cross_entropy),
];

/// Calls a loss that timm computes in single precision and returns as `kind`. Here double precision stays what it is
/// until the end.
fn single(loss: &dyn Loss, input: Tensor, target: &Tensor, kind: Kind) -> Outcome {
    let input = match input.f_kind()? {
        Kind::Half | Kind::BFloat16 => input.f_to_kind(Kind::Float)?,
        _ => input,
    };
    Ok(loss.f_forward(&input, target)?.f_to_kind(kind)?.into())
}

/// Moves the classes from the last dimension to the second.
fn classes_second(tensor: Tensor) -> Result<Tensor, EvalError> {
    Ok(if tensor.dim() > 2 { tensor.f_movedim_int(-1, 1)? } else { tensor })
}

fn multi_label_reduction(name: &str) -> Result<MultiLabelReduction, EvalError> {
    match name {
        "none" => Ok(MultiLabelReduction::None),
        "mean" => Ok(MultiLabelReduction::Mean),
        "batchmean" => Ok(MultiLabelReduction::BatchMean),
        "sum" => Ok(MultiLabelReduction::Sum),
        other => Err(EvalError::Rejected(format!("there is no reduction {other:?}"))),
    }
}

/// A smoothing, which is below 1 in timm.
fn smoothing(arguments: &mut Arguments, default: f64) -> Result<f64, EvalError> {
    match arguments.number("smoothing", default)? {
        smoothing if smoothing < 1.0 => Ok(smoothing),
        smoothing => Err(EvalError::Rejected(format!("smoothing is {smoothing}"))),
    }
}

/// A tensor, or a number as one.
fn weight(arguments: &mut Arguments, name: &str, like: &Tensor) -> Result<Option<Tensor>, EvalError> {
    match arguments.take(name) {
        None => Ok(None),
        Some(Argument::Tensor(tensor)) => Ok(Some(tensor)),
        Some(other) => {
            arguments.insert(name, other);
            let number = arguments.number(name, 1.0)?;
            Ok(Some(Tensor::from(number).f_to_kind(Kind::Float)?.f_to_device(like.device())?))
        }
    }
}

fn asymmetric_multi_label(arguments: &mut Arguments) -> Outcome {
    let (x, y) = (arguments.tensor("x")?, arguments.tensor("y")?);
    let reduction = arguments.text("reduction")?.unwrap_or_else(|| "batchmean".into());
    let loss = AsymmetricMultiLabelLoss::new()
        .gamma_neg(arguments.number("gamma_neg", 4.0)?)
        .gamma_pos(arguments.number("gamma_pos", 1.0)?)
        .clip(arguments.number_or_none("clip", Some(0.05))?.unwrap_or(0.0))
        .eps(arguments.number("eps", 1e-8)?)
        .detach_focus(arguments.boolean("disable_torch_grad_focal_loss", false)?)
        .label_smoothing(smoothing(arguments, 0.0)?)
        .reduction(multi_label_reduction(&reduction)?);
    let (weight, pos_weight) = (arguments.optional_tensor("weight")?, weight(arguments, "pos_weight", &x)?);
    let is_double = |tensor: &Tensor| tensor.kind() == Kind::Double;
    let double = weight.as_ref().is_some_and(is_double) || pos_weight.as_ref().is_some_and(is_double);
    let loss = with(loss, weight, AsymmetricMultiLabelLoss::weight);
    let loss = with(loss, pos_weight, AsymmetricMultiLabelLoss::pos_weight);
    single(&loss, x, &y, if double { Kind::Double } else { Kind::Float })
}

/// Every reduction but the mean is none.
fn asymmetric_single_label(arguments: &mut Arguments) -> Outcome {
    let reduction = match arguments.text("reduction")?.as_deref() {
        None | Some("mean") => Reduction::Mean,
        Some(_) => Reduction::None,
    };
    let loss = AsymmetricSingleLabelLoss::new()
        .gamma_pos(arguments.number("gamma_pos", 1.0)?)
        .gamma_neg(arguments.number("gamma_neg", 4.0)?)
        .label_smoothing(arguments.number("eps", 0.1)?)
        .reduction(reduction);
    Ok(loss.f_forward(&arguments.tensor("inputs")?, &arguments.tensor("target")?)?.into())
}

/// Targets of the input's shape are smoothed only where that is asked for.
fn binary_cross_entropy(arguments: &mut Arguments) -> Outcome {
    let (x, target) = (arguments.tensor("x")?, arguments.tensor("target")?);
    let smoothing = smoothing(arguments, 0.1)?;
    let smooth_dense = arguments.boolean("smooth_dense", false)?;
    let reduction = match (arguments.boolean("sum_classes", false)?, arguments.text("reduction")?.as_deref()) {
        (true, _) => MultiLabelReduction::BatchMean,
        (false, reduction) => multi_label_reduction(reduction.unwrap_or("mean"))?,
    };
    let smoothed = smooth_dense || target.size() != x.size();
    let loss = SoftBceWithLogitsLoss::new()
        .ignore_index(None)
        .label_smoothing(if smoothed { smoothing } else { 0.0 })
        .mean_over(MeanOver::Counted)
        .reduction(reduction);
    let loss = with(loss, arguments.optional_tensor("weight")?, SoftBceWithLogitsLoss::weight);
    let loss = with(loss, weight(arguments, "pos_weight", &x)?, SoftBceWithLogitsLoss::pos_weight);
    let threshold = arguments.number_or_none("target_threshold", None)?;
    let loss = with(loss, threshold, SoftBceWithLogitsLoss::target_threshold);
    Ok(loss.f_forward(&x, &target)?.into())
}

/// Calls PyTorch's cross entropy, whose sums overflow in half precision, in single precision as autocast does.
fn autocast(loss: &CrossEntropyLoss, x: &Tensor, target: &Tensor) -> Outcome {
    let kind = x.f_kind()?;
    let wide = |tensor: &Tensor| match tensor.f_kind()? {
        Kind::Half | Kind::BFloat16 => tensor.f_to_kind(Kind::Float),
        _ => Ok(tensor.shallow_clone()),
    };
    Ok(loss.f_forward(&wide(x)?, &wide(target)?)?.f_to_kind(kind)?.into())
}

fn soft_target_cross_entropy(arguments: &mut Arguments) -> Outcome {
    let (x, target) = (classes_second(arguments.tensor("x")?)?, classes_second(arguments.tensor("target")?)?);
    autocast(&CrossEntropyLoss::new(), &x, &target)
}

fn label_smoothing_cross_entropy(arguments: &mut Arguments) -> Outcome {
    let loss = CrossEntropyLoss::new().label_smoothing(smoothing(arguments, 0.1)?);
    autocast(&loss, &arguments.tensor("x")?, &arguments.tensor("target")?)
}

/// A smoothing of `None` is 0.
fn jsd_cross_entropy(arguments: &mut Arguments) -> Outcome {
    let smoothing = if arguments.contains("smoothing") { smoothing(arguments, 0.0)? } else { 0.1 };
    let loss = JsdCrossEntropyLoss::new()
        .num_splits(arguments.integer("num_splits", 3)?)
        .alpha(arguments.number("alpha", 12.0)?)
        .label_smoothing(smoothing);
    Ok(loss.f_forward(&arguments.tensor("output")?, &arguments.tensor("target")?)?.into())
}

/// Smoothing is for class indices alone.
fn poly_cross_entropy(arguments: &mut Arguments) -> Outcome {
    let (x, target) = (arguments.tensor("x")?, arguments.tensor("target")?);
    let smoothing = smoothing(arguments, 0.0)?;
    let dense = target.size() == x.size();
    let loss = PolyCrossEntropyLoss::new()
        .epsilon(arguments.number("epsilon", 2.0)?)
        .label_smoothing(if dense { 0.0 } else { smoothing })
        .reduction(arguments.reduction()?);
    let target = if dense { classes_second(target)? } else { target };
    single(&loss, classes_second(x)?, &target, Kind::Float)
}

fn poly_binary_cross_entropy(arguments: &mut Arguments) -> Outcome {
    let (x, target) = (arguments.tensor("x")?, arguments.tensor("target")?);
    let loss = PolyBceWithLogitsLoss::new()
        .epsilon(arguments.number("epsilon", 2.0)?)
        .gamma(arguments.number("gamma", 0.0)?)
        .label_smoothing(smoothing(arguments, 0.0)?)
        .reduction(multi_label_reduction(&arguments.text("reduction")?.unwrap_or_else(|| "mean".into()))?);
    let loss = with(loss, arguments.number_or_none("alpha", None)?, PolyBceWithLogitsLoss::alpha);
    single(&loss, x, &target, Kind::Float)
}
