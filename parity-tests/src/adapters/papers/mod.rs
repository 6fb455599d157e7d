//! Losses that no installable package has: `pytorch/papers/` is an implementation of the papers' formulas.

pub(super) mod contrastive;
pub(super) mod preference;
pub(super) mod robust;

use tch::Tensor;
use tch_losses::{CategoricalHingeLoss, Chunking, HingeLoss, LinearCrossEntropy, Loss, Reduction};
use tch_losses::{
    DistributionFocalLoss, FocalAlpha, FocalNormalization, FocalSoftTargets, FocalTverskyLoss, OneVsRestFocalLoss,
    QualityFocalLoss, SigmoidFocalLoss, SoftmaxFocalLoss, VarifocalLoss,
};

use tch_losses::{
    Activation, DiceFocalLoss, DiceLoss, Grouping, HausdorffDtLoss, LovaszClasses, LovaszHingeLoss, LovaszSoftmaxLoss,
};

use super::Equality::Close;
use super::{Adapter, Outcome, adapter, pair, with};
use crate::arguments::{Argument, Arguments, EvalError};
use crate::case::Value;

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("QualityFocalLoss", &["papers.quality_focal_loss"],
        &["input", "target", "beta", "reduction"], Close, quality_focal),
    adapter("DistributionFocalLoss", &["papers.distribution_focal_loss"],
        &["input", "target", "reduction"], Close, distribution_focal),
    adapter("VarifocalLoss", &["papers.varifocal_loss"],
        &["input", "target", "alpha", "gamma", "reduction"], Close, varifocal),
    adapter("SigmoidFocalLoss (formula)", &["papers.sigmoid_focal_loss"], &["input", "target"], Close, sigmoid_focal),
    adapter("SoftmaxFocalLoss (formula)", &["papers.softmax_focal_loss"], &["input", "target"], Close, softmax_focal),
    adapter("OneVsRestFocalLoss", &["papers.one_vs_rest_focal_loss"], &["input", "target"], Close, one_vs_rest_focal),
    adapter("HingeLoss", &["papers.hinge_loss"], &["input", "target", "reduction"], Close, hinge),
    adapter("HingeLoss (squared)", &["papers.squared_hinge_loss"], &["input", "target", "reduction"], Close, squared_hinge),
    adapter("CategoricalHingeLoss", &["papers.categorical_hinge_loss"], &["input", "target", "reduction"],
        Close, categorical_hinge),
    adapter("FocalTverskyLoss", &["papers.focal_tversky_loss"], &["input", "target"], Close, focal_tversky),
    adapter("HausdorffDtLoss (formula)", &["papers.hausdorff_dt_loss"], &["input", "target"], Close, hausdorff_dt),
    adapter("DiceFocalLoss (formula)", &["papers.dice_focal_loss"], &["input", "target"], Close, dice_focal),
    adapter("LovaszHingeLoss (formula)", &["papers.lovasz_hinge_loss"],
        &["input", "target"], Close, lovasz_hinge),
    adapter("LovaszSoftmaxLoss (formula)", &["papers.lovasz_softmax_loss"],
        &["input", "target"], Close, lovasz_softmax),
    adapter("LinearCrossEntropy (formula)", &["papers.linear_cross_entropy", "papers.chunked_linear_cross_entropy"],
        &["input", "linear_weight", "target"], Close, linear_cross_entropy),
];

/// `chunk` is the formula's own word for rows per chunk.
fn linear_cross_entropy(arguments: &mut Arguments) -> Outcome {
    let chunking = arguments.optional_integer("chunk")?.map(Chunking::Rows);
    language_model(arguments, chunking)
}

/// The options have Liger's names.
pub(super) fn language_model(arguments: &mut Arguments, chunking: Option<Chunking>) -> Outcome {
    let loss = LinearCrossEntropy::new()
        .ignore_index(arguments.optional_integer("ignore_index")?)
        .label_smoothing(arguments.number("label_smoothing", 0.0)?)
        .z_loss(arguments.number("lse_square_scale", 0.0)?)
        .reduction(arguments.reduction()?);
    let loss = with(loss, arguments.optional_tensor("weight")?, LinearCrossEntropy::weight);
    let loss = with(loss, arguments.number_or_none("softcap", None)?, LinearCrossEntropy::soft_cap);
    let loss = with(loss, chunking, LinearCrossEntropy::chunking);
    let (input, linear_weight) = (arguments.tensor("input")?, arguments.tensor("linear_weight")?);
    let linear_bias = arguments.optional_tensor("linear_bias")?;
    Ok(loss.f_forward(&input, &linear_weight, &arguments.tensor("target")?, linear_bias.as_ref())?.into())
}

fn quality_focal(arguments: &mut Arguments) -> Outcome {
    let loss = QualityFocalLoss::new().beta(arguments.number("beta", 2.0)?).reduction(arguments.reduction()?);
    pair(&loss, arguments)
}

fn distribution_focal(arguments: &mut Arguments) -> Outcome {
    pair(&DistributionFocalLoss::new().reduction(arguments.reduction()?), arguments)
}

fn varifocal(arguments: &mut Arguments) -> Outcome {
    let loss = VarifocalLoss::new().alpha(arguments.number("alpha", 0.75)?).gamma(arguments.number("gamma", 2.0)?);
    pair(&loss.reduction(arguments.reduction()?), arguments)
}

/// α: a number, a tensor of one for each class, or none.
fn focal_alpha(arguments: &mut Arguments, default: FocalAlpha) -> Result<FocalAlpha, EvalError> {
    let given = arguments.contains("alpha");
    Ok(match arguments.take("alpha") {
        Some(Argument::Tensor(alpha)) => alpha.into(),
        Some(Argument::Plain(Value::Float(alpha))) => alpha.into(),
        Some(other) => return Err(EvalError::Unsupported(format!("alpha {other:?}"))),
        None if given => FocalAlpha::None,
        None => default,
    })
}

fn focal_normalization(arguments: &mut Arguments) -> Result<FocalNormalization, EvalError> {
    match arguments.text("normalization")?.as_deref() {
        None => Ok(FocalNormalization::None),
        Some("all") => Ok(FocalNormalization::All),
        Some("classes") => Ok(FocalNormalization::PerClass),
        Some(other) => Err(EvalError::Unsupported(format!("normalization {other:?}"))),
    }
}

fn sigmoid_focal(arguments: &mut Arguments) -> Outcome {
    let soft_targets = match arguments.text("soft_targets")?.as_deref() {
        None | Some("expectation") => FocalSoftTargets::Expectation,
        Some("terms") => FocalSoftTargets::Terms,
        Some("margin") => FocalSoftTargets::Margin,
        Some("likelihood") => FocalSoftTargets::Likelihood,
        Some(other) => return Err(EvalError::Unsupported(format!("soft_targets {other:?}"))),
    };
    let loss = SigmoidFocalLoss::new()
        .alpha(focal_alpha(arguments, 0.25.into())?)
        .gamma(arguments.number("gamma", 2.0)?)
        .soft_targets(soft_targets)
        .normalization(focal_normalization(arguments)?)
        .reduction(arguments.reduction()?);
    let threshold = arguments.number_or_none("reduced_threshold", None)?;
    let loss = with(loss, threshold, SigmoidFocalLoss::reduced_threshold);
    let loss = with(loss, arguments.optional_integer("ignore_index")?, SigmoidFocalLoss::ignore_index);
    let loss = with(loss, arguments.optional_tensor("mask")?, SigmoidFocalLoss::mask);
    pair(&with(loss, arguments.optional_tensor("weight")?, SigmoidFocalLoss::weight), arguments)
}

fn softmax_focal(arguments: &mut Arguments) -> Outcome {
    let loss = SoftmaxFocalLoss::new()
        .alpha(focal_alpha(arguments, FocalAlpha::None)?)
        .gamma(arguments.number("gamma", 2.0)?)
        .label_smoothing(arguments.number("label_smoothing", 0.0)?)
        .reduction(arguments.reduction()?);
    pair(&with(loss, arguments.optional_tensor("weight")?, SoftmaxFocalLoss::weight), arguments)
}

fn one_vs_rest_focal(arguments: &mut Arguments) -> Outcome {
    let loss = OneVsRestFocalLoss::new()
        .alpha(focal_alpha(arguments, 0.25.into())?)
        .gamma(arguments.number("gamma", 2.0)?)
        .normalization(focal_normalization(arguments)?)
        .ignore_index(-100)
        .reduction(arguments.reduction()?);
    pair(&with(loss, arguments.optional_tensor("weight")?, OneVsRestFocalLoss::weight), arguments)
}

fn hinge(arguments: &mut Arguments) -> Outcome {
    hinge_of_power(arguments, 1)
}

fn squared_hinge(arguments: &mut Arguments) -> Outcome {
    hinge_of_power(arguments, 2)
}

/// Keras takes the mean over the last dimension before it reduces.
fn hinge_of_power(arguments: &mut Arguments, p: i64) -> Outcome {
    let reduction = arguments.reduction()?;
    let (input, target) = (arguments.tensor("input")?, arguments.tensor("target")?);
    let loss = HingeLoss::new().p(p);
    if reduction == Reduction::Mean {
        return Ok(loss.f_forward(&input, &target)?.into());
    }
    let means = loss.reduction(Reduction::None).f_forward(&input, &target)?.f_mean_dim(-1, false, None)?;
    Ok(if reduction == Reduction::Sum { means.f_sum(None)? } else { means }.into())
}

/// The classes are the last dimension.
fn categorical_hinge(arguments: &mut Arguments) -> Outcome {
    let reduction = arguments.reduction()?;
    let (input, target) = (arguments.tensor("input")?, arguments.tensor("target")?);
    let dense = target.size() == input.size();
    let second = |tensor: Tensor| if tensor.dim() > 2 { tensor.f_movedim_int(-1, 1) } else { Ok(tensor) };
    let target = if dense { second(target)? } else { target };
    Ok(CategoricalHingeLoss::new().reduction(reduction).f_forward(&second(input)?, &target)?.into())
}

/// The paper's α is for false negatives, its β for false positives, and its power is 1/γ.
fn focal_tversky(arguments: &mut Arguments) -> Outcome {
    let eps = arguments.number("eps", 1e-5)?;
    let loss = FocalTverskyLoss::new()
        .alpha(arguments.number("beta", 0.3)?)
        .beta(arguments.number("alpha", 0.7)?)
        .gamma(1.0 / arguments.number("gamma", 4.0 / 3.0)?)
        .smooth_nr(eps)
        .smooth_dr(eps)
        .reduction(arguments.reduction()?);
    pair(&loss, arguments)
}

fn hausdorff_dt(arguments: &mut Arguments) -> Outcome {
    let batch = arguments.boolean("batch", false)?;
    let loss = HausdorffDtLoss::new()
        .alpha(arguments.number("alpha", 2.0)?)
        .log(arguments.boolean("log", false)?)
        .grouping(if batch { Grouping::Class } else { Grouping::SampleAndClass })
        .reduction(arguments.reduction()?);
    pair(&loss, arguments)
}

fn dice_focal(arguments: &mut Arguments) -> Outcome {
    let (softmax, gamma) = (arguments.boolean("softmax", false)?, arguments.number("gamma", 2.0)?);
    let reduction = arguments.reduction()?;
    let activation = if softmax { Activation::Softmax } else { Activation::Sigmoid };
    let loss = DiceFocalLoss::new()
        .overlap(DiceLoss::new().activation(activation).reduction(reduction))
        .lambda_dice(arguments.number("lambda_dice", 1.0)?)
        .lambda_focal(arguments.number("lambda_focal", 1.0)?);
    let loss = if softmax {
        loss.focal(SoftmaxFocalLoss::new().gamma(gamma).reduction(reduction))
    } else {
        loss.focal(SigmoidFocalLoss::new().alpha(FocalAlpha::None).gamma(gamma).reduction(reduction))
    };
    pair(&loss, arguments)
}

fn lovasz_hinge(arguments: &mut Arguments) -> Outcome {
    let loss = LovaszHingeLoss::new().per_image(arguments.boolean("per_image", false)?);
    pair(&with(loss, arguments.optional_integer("ignore_index")?, LovaszHingeLoss::ignore_index), arguments)
}

fn lovasz_softmax(arguments: &mut Arguments) -> Outcome {
    let loss =
        LovaszSoftmaxLoss::new().classes(lovasz_classes(arguments)?).per_image(arguments.boolean("per_image", false)?);
    pair(&with(loss, arguments.optional_integer("ignore_index")?, LovaszSoftmaxLoss::ignore_index), arguments)
}

/// The classes of the mean: `"present"`, `"all"` or a list.
pub(super) fn lovasz_classes(arguments: &mut Arguments) -> Result<LovaszClasses, EvalError> {
    match arguments.take("classes") {
        None => Ok(LovaszClasses::Present),
        Some(Argument::Plain(Value::Text(text))) if text == "present" => Ok(LovaszClasses::Present),
        Some(Argument::Plain(Value::Text(text))) if text == "all" => Ok(LovaszClasses::All),
        Some(list) => {
            arguments.insert("classes", list);
            Ok(LovaszClasses::Only(arguments.integers("classes")?))
        }
    }
}
