//! The losses of segmentation-models-pytorch.

use tch::{Kind, Tensor};
use tch_losses::{
    Activation, DiceLoss, EmptyMask, FocalAlpha, FocalNormalization, FocalPower, FocalSoftTargets, FocalTverskyLoss,
    Grouping, JaccardLoss, Loss, OneVsRestFocalLoss, OverlapMeasure, Reduction, SigmoidFocalLoss, TverskyLoss,
    WeightedMean,
};
use tch_losses::{CrossEntropyLoss, MeanOver, MultiLabelReduction, SoftBceWithLogitsLoss};

use tch_losses::{LovaszHingeLoss, LovaszSoftmaxLoss, MccLoss};

use super::Equality::Close;
use super::papers::lovasz_classes;
use super::{Adapter, Outcome, adapter, with};
use crate::arguments::{Arguments, EvalError, Numbers};

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("SigmoidFocalLoss, OneVsRestFocalLoss (smp)", &["segmentation_models_pytorch.losses.FocalLoss"],
        &["y_pred", "y_true"], Close, focal),
    adapter("DiceLoss (smp)", &["segmentation_models_pytorch.losses.DiceLoss"], &["y_pred", "y_true"], Close, dice),
    adapter("JaccardLoss (smp)", &["segmentation_models_pytorch.losses.JaccardLoss"], &["y_pred", "y_true"],
        Close, jaccard),
    adapter("TverskyLoss, FocalTverskyLoss (smp)", &["segmentation_models_pytorch.losses.TverskyLoss"],
        &["y_pred", "y_true"], Close, tversky),
    adapter("SoftBceWithLogitsLoss (smp)", &["segmentation_models_pytorch.losses.SoftBCEWithLogitsLoss"],
        &["y_pred", "y_true"], Close, soft_bce_with_logits),
    adapter("CrossEntropyLoss (smp)", &["segmentation_models_pytorch.losses.SoftCrossEntropyLoss"],
        &["y_pred", "y_true"], Close, soft_cross_entropy),
    adapter("LovaszHingeLoss, LovaszSoftmaxLoss (smp)", &["segmentation_models_pytorch.losses.LovaszLoss"],
        &["y_pred", "y_true"], Close, lovasz),
    adapter("LovaszSoftmaxLoss (probabilities, smp)", &["segmentation_models_pytorch.losses.lovasz._lovasz_softmax"],
        &["probas", "labels", "classes", "per_image", "ignore"], Close, lovasz_softmax_of_probabilities),
    adapter("MccLoss", &["segmentation_models_pytorch.losses.MCCLoss"], &["y_pred", "y_true"], Close, mcc),
];

/// What the modes of smp's focal loss share.
struct Focal {
    alpha: Option<f64>,
    gamma: f64,
    reduced_threshold: Option<f64>,
    ignore_index: Option<i64>,
    reduction: String,
    normalized: bool,
    class_weights: Option<Vec<f64>>,
}

fn focal(arguments: &mut Arguments) -> Outcome {
    let mode = arguments.text("mode")?.unwrap_or_default();
    let from_logits = arguments.boolean("from_logits", true)?;
    let eps = arguments.number("eps", 1e-7)?;
    let class_weights = match arguments.numbers("class_weights")? {
        None => None,
        Some(Numbers::Many(weights)) => Some(weights),
        Some(Numbers::One(_)) => return Err(EvalError::Rejected("class_weights is a list".into())),
    };
    let focal = Focal {
        alpha: arguments.number_or_none("alpha", None)?,
        gamma: arguments.number("gamma", 2.0)?,
        reduced_threshold: arguments.number_or_none("reduced_threshold", None)?,
        ignore_index: arguments.optional_integer("ignore_index")?,
        reduction: arguments.text("reduction")?.unwrap_or_else(|| "mean".into()),
        normalized: arguments.boolean("normalized", false)?,
        class_weights,
    };
    let (y_pred, y_true) = (arguments.tensor("y_pred")?, arguments.tensor("y_true")?);
    let kind = y_pred.f_kind()?;
    if !from_logits {
        // The logarithms, too, are taken in f32.
        let wide = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        let probabilities = y_pred.f_to_kind(wide)?.f_clamp(eps, 1.0 - eps)?;
        let logits = if mode == "multiclass" { probabilities.f_log()? } else { probabilities.f_logit(None)? };
        let outputs = focal.run(&mode, &logits, &y_true)?;
        return Ok(outputs.tensors[0].f_to_kind(kind)?.into());
    }
    focal.run(&mode, &y_pred, &y_true)
}

impl Focal {
    fn run(&self, mode: &str, y_pred: &Tensor, y_true: &Tensor) -> Outcome {
        match mode {
            "binary" if self.class_weights.is_some() => {
                Err(EvalError::Rejected("class_weights are not for mode binary".into()))
            }
            "binary" => self.binary(y_pred, y_true),
            "multilabel" | "multiclass" => self.classes(y_pred, y_true, mode == "multiclass"),
            other => Err(EvalError::Rejected(format!("there is no mode {other:?}"))),
        }
    }

    fn alpha(&self) -> FocalAlpha {
        self.alpha.map_or(FocalAlpha::None, FocalAlpha::from)
    }

    fn normalization(&self, normalization: FocalNormalization) -> FocalNormalization {
        if self.normalized { normalization } else { FocalNormalization::None }
    }

    fn sigmoid(&self, normalization: FocalNormalization) -> SigmoidFocalLoss {
        let loss = SigmoidFocalLoss::new()
            .alpha(self.alpha())
            .gamma(self.gamma)
            .soft_targets(FocalSoftTargets::Likelihood)
            .normalization(self.normalization(normalization));
        let loss = with(loss, self.reduced_threshold, SigmoidFocalLoss::reduced_threshold);
        with(loss, self.ignore_index, SigmoidFocalLoss::ignore_index)
    }

    fn one_vs_rest(&self) -> OneVsRestFocalLoss {
        let loss = OneVsRestFocalLoss::new()
            .alpha(self.alpha())
            .gamma(self.gamma)
            .normalization(self.normalization(FocalNormalization::PerClass))
            .ignore_index(self.ignore_index);
        with(loss, self.reduced_threshold, OneVsRestFocalLoss::reduced_threshold)
    }

    /// One class: all elements are in one row, those that are ignored left out.
    fn binary(&self, y_pred: &Tensor, y_true: &Tensor) -> Outcome {
        let (y_pred, y_true) = (y_pred.f_reshape([-1])?, y_true.f_reshape([-1])?);
        let loss = self.sigmoid(FocalNormalization::All);
        let reduction = match self.reduction.as_str() {
            "mean" => Reduction::Mean,
            "sum" | "batchwise_mean" => Reduction::Sum,
            _ => Reduction::None,
        };
        let losses = loss.reduction(reduction).f_forward(&y_pred, &y_true)?;
        match (reduction, self.ignore_index) {
            (Reduction::None, Some(ignored)) => {
                let counted = y_true.f_to_kind(Kind::Double)?.f_ne(ignored)?;
                Ok(losses.f_masked_select(&counted)?.into())
            }
            _ => Ok(losses.into()),
        }
    }

    /// Several classes: each is reduced by itself, and the result is the mean over the classes.
    fn classes(&self, y_pred: &Tensor, y_true: &Tensor, multiclass: bool) -> Outcome {
        let shape = y_pred.size();
        if shape.len() < 2 {
            return Err(EvalError::Rejected("y_pred has no classes".into()));
        }
        // A weight is a tensor of f32, with which half precision becomes f32.
        let widen = self.class_weights.is_some() && y_pred.f_kind()? != Kind::Double;
        let y_pred = if widen { y_pred.f_to_kind(Kind::Float)? } else { y_pred.shallow_clone() };
        let reduction =
            if matches!(self.reduction.as_str(), "sum" | "batchwise_mean") { Reduction::Sum } else { Reduction::Mean };
        let per_class: i64 = match self.reduction.as_str() {
            // The sum is over the samples alone, unless ignoring has flattened them.
            "batchwise_mean" if self.ignore_index.is_none() => shape[2..].iter().product(),
            _ => 1,
        };
        let weight = self.class_weight(&y_pred)?;
        let loss = if multiclass {
            let loss = with(self.one_vs_rest(), weight, OneVsRestFocalLoss::weight).reduction(reduction);
            loss.f_forward(&y_pred, y_true)?
        } else {
            let mut along = vec![1; shape.len()];
            along[1] = shape[1];
            let weight = weight.map(|weight| weight.f_reshape(&along)).transpose()?;
            let loss = with(self.sigmoid(FocalNormalization::PerClass), weight, SigmoidFocalLoss::weight);
            loss.reduction(reduction).f_forward(&y_pred, y_true)?
        };
        if reduction == Reduction::Mean {
            return Ok(loss.into());
        }
        Ok(loss.f_div_scalar((shape[1] * per_class) as f64)?.into())
    }

    /// The weights of the classes, which smp divides by their sum.
    fn class_weight(&self, y_pred: &Tensor) -> Result<Option<Tensor>, EvalError> {
        let Some(weights) = &self.class_weights else { return Ok(None) };
        if !matches!(self.reduction.as_str(), "mean" | "sum") {
            // The weights meet the last dimension of the unreduced losses, whatever that is.
            return Err(EvalError::Unsupported("class_weights of unreduced losses".into()));
        }
        let weights = Tensor::f_from_slice(weights)?.f_to_kind(Kind::Float)?.f_to_device(y_pred.device())?;
        let total = weights.f_sum(None)?;
        Ok(Some(weights.f_to_kind(y_pred.f_kind()?)?.f_mul_scalar(weights.numel() as f64)?.f_div(&total)?))
    }
}

/// What the losses over regions share: the arguments as the crate takes them.
struct Regions {
    input: Tensor,
    target: Tensor,
    activation: Activation,
    classes: Option<Vec<i64>>,
    weight: Option<Tensor>,
    ignore_index: Option<i64>,
    log_loss: bool,
    smooth: f64,
    eps: f64,
}

impl Regions {
    fn new(arguments: &mut Arguments) -> Result<Self, EvalError> {
        let (input, target) = (arguments.tensor("y_pred")?, arguments.tensor("y_true")?);
        let mode = arguments.text("mode")?.unwrap_or_default();
        let classes = arguments.contains("classes").then(|| arguments.integers("classes")).transpose()?;
        let weight = arguments.numbers("class_weights")?;
        if mode == "binary" && (classes.is_some() || weight.is_some()) {
            return Err(EvalError::Rejected("classes and class_weights with mode binary".into()));
        }
        let shape = input.size();
        let (samples, channels) = match (mode.as_str(), &shape[..]) {
            ("binary", [samples, ..]) => (*samples, 1),
            ("multiclass" | "multilabel", [samples, channels, ..]) => (*samples, *channels),
            _ => return Err(EvalError::Rejected(format!("mode {mode:?} with an input of shape {shape:?}"))),
        };
        let multiclass = mode == "multiclass";
        let target =
            if multiclass { target.f_reshape([samples, -1])? } else { target.f_reshape([samples, channels, -1])? };
        // The class weights are in single precision, and so is a result that they went into.
        let wide = weight.is_some() && matches!(input.f_kind()?, Kind::Half | Kind::BFloat16);
        let input = input.f_reshape([samples, channels, -1])?;
        let weight = match weight {
            None => None,
            Some(Numbers::Many(weights)) => {
                let weights: Vec<f32> = weights.into_iter().map(|weight| weight as f32).collect();
                Some(Tensor::from_slice(&weights).f_to_device(input.device())?)
            }
            Some(Numbers::One(_)) => return Err(EvalError::Rejected("class_weights is a list".into())),
        };
        let activation = match (arguments.boolean("from_logits", true)?, multiclass) {
            (true, true) => Activation::Softmax,
            (true, false) => Activation::Sigmoid,
            (false, _) => Activation::None,
        };
        Ok(Regions {
            input: if wide { input.f_to_kind(Kind::Float)? } else { input },
            target,
            activation,
            classes,
            weight,
            ignore_index: arguments.optional_integer("ignore_index")?,
            log_loss: arguments.boolean("log_loss", false)?,
            smooth: arguments.number("smooth", 0.0)?,
            eps: arguments.number("eps", 1e-7)?,
        })
    }

    fn run(&self, loss: &dyn Loss) -> Outcome {
        Ok(loss.f_forward(&self.input, &self.target)?.into())
    }
}

/// Sets the options that the losses over regions have; the smoothing is `factor` times smp's.
macro_rules! regions {
    ($loss:expr, $regions:expr, $factor:expr) => {{
        let (loss, regions, factor) = ($loss, &$regions, $factor);
        let loss = loss
            .activation(regions.activation)
            .grouping(Grouping::Class)
            .measure(OverlapMeasure::Minimum)
            .weighted_mean(WeightedMean::Weight)
            .empty_mask(EmptyMask::Zero)
            .log_loss(regions.log_loss)
            .smooth_nr(factor * regions.smooth)
            .smooth_dr(factor * regions.smooth)
            .eps(regions.eps);
        let loss = with(loss, regions.classes.as_deref(), |loss, classes| loss.classes(classes));
        let loss = with(loss, regions.ignore_index, |loss, ignore_index| loss.ignore_index(ignore_index));
        with(loss, regions.weight.as_ref(), |loss, weight| loss.weight(weight.shallow_clone()))
    }};
}

fn dice(arguments: &mut Arguments) -> Outcome {
    let regions = Regions::new(arguments)?;
    regions.run(&regions!(DiceLoss::new(), regions, 2.0))
}

fn jaccard(arguments: &mut Arguments) -> Outcome {
    let regions = Regions::new(arguments)?;
    regions.run(&regions!(JaccardLoss::new(), regions, 1.0))
}

fn tversky(arguments: &mut Arguments) -> Outcome {
    let regions = Regions::new(arguments)?;
    let (alpha, beta) = (arguments.number("alpha", 0.5)?, arguments.number("beta", 0.5)?);
    if !arguments.contains("gamma") {
        return regions.run(&regions!(TverskyLoss::new().alpha(alpha).beta(beta), regions, 1.0));
    }
    let loss = FocalTverskyLoss::new().alpha(alpha).beta(beta).power(FocalPower::Reduced);
    regions.run(&regions!(loss.gamma(arguments.number("gamma", 1.0)?), regions, 1.0))
}

fn soft_bce_with_logits(arguments: &mut Arguments) -> Outcome {
    let ignore_index = arguments.integer_or_none("ignore_index", Some(-100))?;
    let smooth_factor = arguments.number("smooth_factor", 0.0)?;
    let loss = SoftBceWithLogitsLoss::new()
        .ignore_index(ignore_index)
        .label_smoothing(2.0 * smooth_factor)
        .mean_over(MeanOver::All)
        .reduction(match arguments.text("reduction")?.as_deref() {
            None | Some("mean") => MultiLabelReduction::Mean,
            Some("sum") => MultiLabelReduction::Sum,
            Some(_) => MultiLabelReduction::None,
        });
    let loss = with(loss, arguments.optional_tensor("weight")?, SoftBceWithLogitsLoss::weight);
    let loss = with(loss, arguments.optional_tensor("pos_weight")?, SoftBceWithLogitsLoss::pos_weight);
    let (y_pred, y_true) = (arguments.tensor("y_pred")?, arguments.tensor("y_true")?);
    if y_true.size() != y_pred.size() {
        return Err(EvalError::Rejected("y_true has not the shape of y_pred".into()));
    }
    Ok(loss.f_forward(&y_pred, &y_true)?.into())
}

/// With a class to ignore the unreduced losses keep a dimension for the classes.
fn soft_cross_entropy(arguments: &mut Arguments) -> Outcome {
    let ignore_index = arguments.integer_or_none("ignore_index", Some(-100))?;
    let dim = arguments.integer("dim", 1)?;
    let reduction = match arguments.text("reduction")?.as_deref() {
        None | Some("mean") => Reduction::Mean,
        Some("sum") => Reduction::Sum,
        Some(_) => Reduction::None,
    };
    let loss = CrossEntropyLoss::new()
        .label_smoothing(arguments.number("smooth_factor", 0.0)?)
        .ignore_index(ignore_index.unwrap_or(i64::MIN))
        .mean_over(MeanOver::All)
        .reduction(reduction);
    // In single precision, as autocast does: PyTorch's sums overflow in half.
    let y_pred = arguments.tensor("y_pred")?.f_movedim_int(dim, 1)?;
    let kind = y_pred.f_kind()?;
    let wide = if kind == Kind::Double { kind } else { Kind::Float };
    let y_true = arguments.tensor("y_true")?;
    let y_true = if y_true.dim() == y_pred.dim() { y_true.f_squeeze_dim(dim)? } else { y_true };
    let loss = loss.f_forward(&y_pred.f_to_kind(wide)?, &y_true)?.f_to_kind(kind)?;
    let keeps_dim = reduction == Reduction::None && ignore_index.is_some();
    Ok(if keeps_dim { loss.f_unsqueeze(dim)? } else { loss }.into())
}

/// Arguments of the same number of elements, which smp flattens, as arguments of one shape.
fn flattened(arguments: &mut Arguments) -> Result<(Tensor, Tensor), EvalError> {
    let (input, target) = (arguments.tensor("y_pred")?, arguments.tensor("y_true")?);
    if input.numel() != target.numel() || input.size().first() != target.size().first() {
        return Err(EvalError::Rejected("y_pred and y_true of different sizes".into()));
    }
    let target = target.f_reshape(input.size())?;
    Ok((input, target))
}

fn lovasz(arguments: &mut Arguments) -> Outcome {
    let mode = arguments.text("mode")?.unwrap_or_default();
    arguments.boolean("from_logits", true)?;
    let (per_image, ignored) = (arguments.boolean("per_image", false)?, arguments.optional_integer("ignore_index")?);
    match mode.as_str() {
        "binary" | "multilabel" => {
            let loss = with(LovaszHingeLoss::new().per_image(per_image), ignored, LovaszHingeLoss::ignore_index);
            let (input, target) = flattened(arguments)?;
            // smp's signs are in single precision.
            let half = matches!(input.f_kind()?, Kind::Half | Kind::BFloat16);
            let input = if half { input.f_to_kind(Kind::Float)? } else { input };
            Ok(loss.f_forward(&input, &target)?.into())
        }
        "multiclass" => {
            let loss = with(LovaszSoftmaxLoss::new().per_image(per_image), ignored, LovaszSoftmaxLoss::ignore_index);
            Ok(loss.f_forward(&arguments.tensor("y_pred")?, &arguments.tensor("y_true")?)?.into())
        }
        other => Err(EvalError::Rejected(format!("there is no mode {other:?}"))),
    }
}

fn lovasz_softmax_of_probabilities(arguments: &mut Arguments) -> Outcome {
    let loss = LovaszSoftmaxLoss::new()
        .activation(Activation::None)
        .classes(lovasz_classes(arguments)?)
        .per_image(arguments.boolean("per_image", false)?);
    let loss = with(loss, arguments.optional_integer("ignore")?, LovaszSoftmaxLoss::ignore_index);
    Ok(loss.f_forward(&arguments.tensor("probas")?, &arguments.tensor("labels")?)?.into())
}

fn mcc(arguments: &mut Arguments) -> Outcome {
    // smp takes any numbers for probabilities.
    let loss = MccLoss::new().activation(Activation::None).eps(arguments.number("eps", 1e-5)?);
    let (input, target) = flattened(arguments)?;
    Ok(loss.f_forward(&input, &target)?.into())
}
