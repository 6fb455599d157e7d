//! The losses of MONAI.

use tch::{Kind, Tensor};
use tch_losses::{
    Activation, DiceLoss, FocalAlpha, FocalSoftTargets, GeneralizedDiceLoss, Grouping, IgnoreScope, JaccardLoss, Loss,
    OverlapMeasure, Reduction, SigmoidFocalLoss, SoftmaxFocalLoss, TverskyLoss, VolumeWeight,
};

use tch_losses::{
    BceWithLogitsLoss, CrossEntropyLoss, DiceCrossEntropyLoss, DiceFocalLoss, HausdorffDtLoss, LossError, Overlap,
    SoftClDiceLoss, SoftDiceClDiceLoss, SsimScope,
};

use super::Equality::Close;
use super::papers::robust::{ms_ssim_options, ssim_options};
use super::{Adapter, Outcome, adapter, with};
use crate::arguments::{Argument, Arguments, EvalError, Numbers};
use crate::case::Value;

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("SigmoidFocalLoss, SoftmaxFocalLoss (MONAI)", &["monai.losses.FocalLoss"],
        &["input", "target"], Close, focal),
    adapter("DiceLoss, JaccardLoss (MONAI)", &["monai.losses.DiceLoss"], &["input", "target"], Close, dice),
    adapter("TverskyLoss (MONAI)", &["monai.losses.TverskyLoss"], &["input", "target"], Close, tversky),
    adapter("GeneralizedDiceLoss (MONAI)", &["monai.losses.GeneralizedDiceLoss"], &["input", "target"],
        Close, generalized_dice),
    adapter("HausdorffDtLoss", &["monai.losses.HausdorffDTLoss"], &["input", "target"], Close, hausdorff),
    adapter("HausdorffDtLoss (log)", &["monai.losses.LogHausdorffDTLoss"], &["input", "target"], Close, log_hausdorff),
    adapter("SoftClDiceLoss", &["monai.losses.SoftclDiceLoss"], &["input", "target"], Close, soft_cldice),
    adapter("SoftDiceClDiceLoss", &["monai.losses.SoftDiceclDiceLoss"], &["input", "target"], Close, soft_dice_cldice),
    adapter("DiceCrossEntropyLoss", &["monai.losses.DiceCELoss"], &["input", "target"], Close, dice_cross_entropy),
    adapter("DiceFocalLoss", &["monai.losses.DiceFocalLoss"], &["input", "target"], Close, dice_focal),
    adapter("DiceFocalLoss (generalised)", &["monai.losses.GeneralizedDiceFocalLoss"], &["input", "target"],
        Close, generalized_dice_focal),
    adapter("MsSsimLoss (MONAI)", &["chains.one_minus_ms_ssim"], &["input", "target"], Close, ms_ssim),
    adapter("SsimLoss (MONAI)", &["monai.losses.SSIMLoss"], &["input", "target"], Close, ssim),
];

/// MONAI's focal loss has a value for each class; it computes in f32 whatever comes.
fn focal(arguments: &mut Arguments) -> Outcome {
    let (input, target) = (arguments.tensor("input")?, arguments.tensor("target")?);
    let include_background = arguments.boolean("include_background", true)?;
    let to_onehot = arguments.boolean("to_onehot_y", false)?;
    let gamma = arguments.number("gamma", 2.0)?;
    let alpha = arguments.numbers("alpha")?;
    let weight = arguments.numbers("weight")?;
    let softmax = arguments.boolean("use_softmax", false)?;
    let ignored = arguments.optional_integer("ignore_index")?;
    let reduction = arguments.reduction_by_name()?;
    let Some(&classes) = input.size().get(1) else {
        return Err(EvalError::Rejected("input has no classes".into()));
    };
    let mask = ignored.map(|ignored| counted(&target, ignored)).transpose()?;
    let target = if to_onehot && classes > 1 { one_hot(&target, classes, ignored)? } else { target };
    let background = i64::from(!include_background && classes > 1);
    let without_background = |tensor: &Tensor| {
        let size = tensor.size().get(1).map_or(0, |size| size - background);
        tensor.f_narrow(1, background, size)
    };
    let (input, target) = (without_background(&input)?.f_to_kind(Kind::Float)?, without_background(&target)?);
    let target = target.f_to_kind(Kind::Float)?;
    let classes = classes - background;
    if target.size() != input.size() {
        return Err(EvalError::Rejected("the shapes of input and target differ".into()));
    }

    let weight = weight.map(|weight| class_weight(weight, classes, &input)).transpose()?;
    let losses = if softmax {
        let alpha = match alpha {
            Some(Numbers::One(_)) if !include_background => None,
            alpha => alpha,
        };
        softmax_focal(&input, &target, gamma, alpha, weight, mask.as_ref())?
    } else {
        sigmoid_focal(&input, &target, gamma, alpha, weight, mask.as_ref())?
    };
    reduce(&losses, mask.as_ref(), reduction)
}

/// Where the target counts: true for all pixels but those of the ignored class, `[B, 1, …]`.
fn counted(target: &Tensor, ignored: i64) -> Result<Tensor, EvalError> {
    let labels = target.f_to_kind(Kind::Float)?;
    let Some(&channels) = target.size().get(1) else {
        return Err(EvalError::Rejected("target has no classes".into()));
    };
    Ok(match channels {
        1 => labels.f_ne(ignored)?,
        _ if (0..channels).contains(&ignored) => labels.f_narrow(1, ignored, 1)?.f_eq(0)?,
        _ => labels.f_sum_dim_intlist(1, true, None)?.f_gt(0)?,
    })
}

/// Labels `[B, 1, …]` as one channel per class; those that are ignored and no class become class 0.
fn one_hot(target: &Tensor, classes: i64, ignored: Option<i64>) -> Result<Tensor, EvalError> {
    let labels = target.f_to_kind(Kind::Int64)?;
    let labels = match ignored {
        Some(ignored) if !(0..classes).contains(&ignored) => labels.f_masked_fill(&labels.f_eq(ignored)?, 0)?,
        _ => labels,
    };
    let outside = labels.f_lt(0)?.f_logical_or(&labels.f_ge(classes)?)?;
    if labels.size().get(1) != Some(&1) || outside.f_any()?.f_int64_value(&[])? != 0 {
        return Err(EvalError::Rejected("target is not one channel of classes".into()));
    }
    let mut shape = labels.size();
    shape[1] = classes;
    Ok(Tensor::f_zeros(shape, (Kind::Float, target.device()))?.f_scatter_value(1, &labels, 1)?)
}

fn class_weight(weight: Numbers, classes: i64, input: &Tensor) -> Result<Tensor, EvalError> {
    let weights = match weight {
        Numbers::One(weight) => vec![weight; classes as usize],
        Numbers::Many(weights) => weights,
    };
    let listed = matches!(weights.len() as i64, length if length == classes);
    if !listed || weights.iter().any(|weight| *weight < 0.0) {
        return Err(EvalError::Rejected("weight is not one number of at least 0 for each class".into()));
    }
    Ok(Tensor::f_from_slice(&weights)?.f_to_kind(Kind::Float)?.f_to_device(input.device())?)
}

/// One value per class in a shape that broadcasts along dimension 1.
fn along_classes(values: &Tensor, input: &Tensor) -> Result<Tensor, EvalError> {
    let mut shape = vec![1; input.dim()];
    shape[1] = -1;
    Ok(values.f_reshape(shape)?)
}

fn sigmoid_focal(
    input: &Tensor,
    target: &Tensor,
    gamma: f64,
    alpha: Option<Numbers>,
    weight: Option<Tensor>,
    mask: Option<&Tensor>,
) -> Result<Tensor, EvalError> {
    let loss = SigmoidFocalLoss::new().gamma(gamma).soft_targets(FocalSoftTargets::Margin).reduction(Reduction::None);
    let loss = with(loss, mask.map(Tensor::shallow_clone), SigmoidFocalLoss::mask);
    let weight = weight.map(|weight| along_classes(&weight, input)).transpose()?;
    let loss = with(loss, weight, SigmoidFocalLoss::weight);
    let loss = match alpha {
        None => loss.alpha(FocalAlpha::None),
        Some(Numbers::One(alpha)) => loss.alpha(alpha),
        // An α for each class is for its positives alone.
        Some(Numbers::Many(alphas)) => {
            let alpha = Tensor::f_from_slice(&alphas)?.f_to_kind(Kind::Float)?.f_to_device(input.device())?;
            if alpha.size() != input.size()[1..2] {
                return Err(EvalError::Rejected("alpha is not one number for each class".into()));
            }
            loss.alpha(FocalAlpha::None).pos_weight(along_classes(&alpha, input)?)
        }
    };
    Ok(loss.f_forward(input, target)?)
}

/// The losses of the crate are those of the pixels. That of a class is the loss of a target that has no other class.
fn softmax_focal(
    input: &Tensor,
    target: &Tensor,
    gamma: f64,
    alpha: Option<Numbers>,
    weight: Option<Tensor>,
    mask: Option<&Tensor>,
) -> Result<Tensor, EvalError> {
    let loss = SoftmaxFocalLoss::new().gamma(gamma).reduction(Reduction::None);
    let loss = with(loss, weight, SoftmaxFocalLoss::weight);
    let loss = match alpha {
        None => loss,
        Some(Numbers::One(alpha)) => loss.alpha(alpha),
        Some(Numbers::Many(alphas)) => {
            loss.alpha(Tensor::f_from_slice(&alphas)?.f_to_kind(Kind::Float)?.f_to_device(input.device())?)
        }
    };
    let (input, target) = match mask {
        Some(mask) => {
            let ignored = mask.f_logical_not()?;
            (input.f_masked_fill(&ignored, 0)?, target.f_masked_fill(&ignored, 0)?)
        }
        None => (input.shallow_clone(), target.shallow_clone()),
    };
    let hard = target.f_sum_dim_intlist(1, false, None)?.f_eq(1)?.f_all()?.f_int64_value(&[])? != 0
        && target.f_eq(0)?.f_logical_or(&target.f_eq(1)?)?.f_all()?.f_int64_value(&[])? != 0;
    if hard && target.numel() > 0 && !target.requires_grad() {
        let own = target.f_argmax(1, true)?;
        let losses = loss.f_forward(&input, &own.f_squeeze_dim(1)?)?;
        return Ok(input.f_zeros_like()?.f_scatter(1, &own, &losses.f_unsqueeze(1)?)?);
    }
    let class = |class: i64| -> Result<Tensor, EvalError> {
        let classes = Tensor::f_arange(input.size()[1], (Kind::Int64, input.device()))?;
        let others = along_classes(&classes, &input)?.f_ne(class)?;
        Ok(loss.f_forward(&input, &target.f_masked_fill(&others, 0)?)?)
    };
    let losses = (0..input.size()[1]).map(class).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::f_stack(&losses, 1)?)
}

/// MONAI's sum is that of the means over the pixels of an image; without pixels it is a mean over everything.
fn reduce(losses: &Tensor, mask: Option<&Tensor>, reduction: Reduction) -> Outcome {
    let pixels: Vec<i64> = (if losses.dim() > 2 { 2 } else { 0 }..losses.dim() as i64).collect();
    let count = |mask: &Tensor| mask.f_to_kind(Kind::Float)?.f_clamp_min(f64::from(f32::EPSILON));
    Ok(match (reduction, mask) {
        (Reduction::None, _) => losses.shallow_clone(),
        (Reduction::Mean, None) => losses.f_mean(None)?,
        (Reduction::Mean, Some(mask)) => losses.f_sum(None)?.f_div(&count(&mask.f_sum(None)?)?)?,
        (Reduction::Sum, None) => losses.f_mean_dim(pixels, false, None)?.f_sum(None)?,
        (Reduction::Sum, Some(mask)) => {
            let counts = count(&mask.f_sum_dim_intlist(&pixels[..], true, None)?)?;
            losses.f_sum_dim_intlist(pixels, true, None)?.f_div(&counts)?.f_sum(None)?
        }
    }
    .into())
}

/// A function of PyTorch that may be an activation.
type Function = fn(&Tensor) -> Result<Tensor, LossError>;

/// MONAI's `other_act`.
fn other_act(arguments: &mut Arguments) -> Result<Option<Function>, EvalError> {
    let path = match arguments.take("other_act") {
        None => return Ok(None),
        Some(Argument::Plain(Value::Object(path, None))) => path,
        Some(other) => return Err(EvalError::Rejected(format!("other_act is {other:?}"))),
    };
    Ok(Some(match path.as_str() {
        "torch.sigmoid" => |input| Ok(input.f_sigmoid()?),
        "torch.tanh" => |input| Ok(input.f_tanh()?),
        "torch.nn.functional.softplus" => |input| Ok(input.f_softplus()?),
        other => return Err(EvalError::Unsupported(format!("other_act {other}"))),
    }))
}

/// What the losses over regions share: the arguments as the crate takes them, and what the result looks like.
struct Regions {
    input: Tensor,
    target: Tensor,
    activation: Activation,
    other_act: Option<Function>,
    include_background: bool,
    measure: OverlapMeasure,
    ignore_index: Option<i64>,
    smooth_nr: f64,
    smooth_dr: f64,
    batch: bool,
    reduction: Reduction,
}

impl Regions {
    fn new(arguments: &mut Arguments) -> Result<Self, EvalError> {
        let (input, target) = (arguments.tensor("input")?, arguments.tensor("target")?);
        // With a single class MONAI ignores these options and says so in a warning.
        let several = input.size().get(1).is_some_and(|&classes| classes > 1);
        let activation = match (arguments.boolean("sigmoid", false)?, arguments.boolean("softmax", false)?) {
            (true, true) => return Err(EvalError::Rejected("sigmoid and softmax".into())),
            (true, false) => Activation::Sigmoid,
            (false, true) if several => Activation::Softmax,
            (false, _) => Activation::None,
        };
        let other_act = other_act(arguments)?;
        if other_act.is_some() && activation != Activation::None {
            return Err(EvalError::Rejected("two activations".into()));
        }
        let one_hot = arguments.boolean("to_onehot_y", false)? && several;
        let target = if one_hot { labels(&target)? } else { target };
        let squared = arguments.boolean("squared_pred", false)?;
        let soft_label = arguments.boolean("soft_label", false)?;
        let measure = match (squared, soft_label) {
            (true, _) => OverlapMeasure::Squared,
            (false, true) => OverlapMeasure::Minimum,
            (false, false) => OverlapMeasure::Product,
        };
        let ignore_index = arguments.optional_integer("ignore_index")?;
        // MONAI's one-hot masks and its masks of ignored pixels are in single precision.
        let wide = one_hot || ignore_index.is_some();
        Ok(Regions {
            input: if wide { promoted(&input, Kind::Float)? } else { promoted(&input, target.f_kind()?)? },
            target,
            activation,
            other_act,
            include_background: arguments.boolean("include_background", true)? || !several,
            measure,
            ignore_index,
            smooth_nr: arguments.number("smooth_nr", 1e-5)?,
            smooth_dr: arguments.number("smooth_dr", 1e-5)?,
            batch: arguments.boolean("batch", false)?,
            reduction: arguments.reduction_by_name()?,
        })
    }

    fn grouping(&self) -> Grouping {
        if self.batch { Grouping::Class } else { Grouping::SampleAndClass }
    }

    /// A weight for each class of the input; MONAI's leave out a background that does not count.
    fn weight(&self, arguments: &mut Arguments) -> Result<Option<Tensor>, EvalError> {
        let classes = self.input.size().get(1).copied().unwrap_or(0);
        let counted = if self.include_background { classes } else { classes - 1 };
        let weights = match arguments.numbers("weight")? {
            None => return Ok(None),
            Some(Numbers::One(weight)) => vec![weight; counted as usize],
            Some(Numbers::Many(weights)) => weights,
        };
        if counted == 1 {
            return Ok(None);
        }
        let background = (!self.include_background).then_some(1.0);
        let weights: Vec<f32> = background.into_iter().chain(weights).map(|weight| weight as f32).collect();
        Ok(Some(Tensor::from_slice(&weights).f_to_device(self.input.device())?))
    }

    /// The result; unreduced, with `more` dimensions of size 1 that MONAI has at the end.
    fn run(&self, loss: &dyn Loss, more: usize) -> Outcome {
        let result = loss.f_forward(&self.input, &self.target)?;
        if self.reduction != Reduction::None {
            return Ok(result.into());
        }
        let shape = [result.size(), vec![1; more]].concat();
        Ok(result.f_reshape(shape)?.into())
    }

    /// How many dimensions the pixels have.
    fn pixels(&self) -> usize {
        self.input.dim().saturating_sub(2)
    }
}

/// Sets the options that all losses over regions have.
macro_rules! regions {
    ($loss:expr, $regions:expr) => {{
        let (loss, regions) = ($loss, &$regions);
        let loss = loss
            .activation(regions.activation)
            .include_background(regions.include_background)
            .measure(regions.measure)
            .ignore_scope(IgnoreScope::Pixel)
            .smooth_nr(regions.smooth_nr)
            .smooth_dr(regions.smooth_dr)
            .reduction(regions.reduction);
        let loss = with(loss, regions.other_act, |loss, function| loss.other_act(function));
        with(loss, regions.ignore_index, |loss, ignore_index| loss.ignore_index(ignore_index))
    }};
}

/// The class indices in a target `[N, 1, …]`.
fn labels(target: &Tensor) -> Result<Tensor, EvalError> {
    if target.size().get(1) != Some(&1) {
        return Err(EvalError::Rejected(format!("labels of shape {:?}", target.size())));
    }
    Ok(target.f_squeeze_dim(1)?.f_to_kind(Kind::Int64)?)
}

/// `input` in the kind that it has after an operation with `other`.
fn promoted(input: &Tensor, other: Kind) -> Result<Tensor, EvalError> {
    use Kind::{BFloat16, Double, Float, Half};
    let kind = match (input.f_kind()?, other) {
        (_, Double) => Double,
        (Half | BFloat16, Float) | (Half, BFloat16) | (BFloat16, Half) => Float,
        (kind, _) => kind,
    };
    Ok(input.f_to_kind(kind)?)
}

fn dice(arguments: &mut Arguments) -> Outcome {
    let mut regions = Regions::new(arguments)?;
    let weight = regions.weight(arguments)?;
    match overlap(&mut regions, arguments, weight)? {
        Overlap::Jaccard(loss) => regions.run(&loss, regions.pixels()),
        Overlap::Dice(loss) => regions.run(&loss, regions.pixels()),
        other => Err(EvalError::Unsupported(format!("{other:?}"))),
    }
}

/// MONAI's Dice loss, or with `jaccard` its Jaccard loss.
fn overlap(regions: &mut Regions, arguments: &mut Arguments, weight: Option<Tensor>) -> Result<Overlap, EvalError> {
    if !arguments.boolean("jaccard", false)? {
        let loss = regions!(DiceLoss::new(), regions).grouping(regions.grouping()).eps(0.0);
        return Ok(with(loss, weight, DiceLoss::weight).into());
    }
    // MONAI's Jaccard index is 2I / 2U, with the smoothing added to that.
    (regions.smooth_nr, regions.smooth_dr) = (regions.smooth_nr / 2.0, regions.smooth_dr / 2.0);
    let loss = regions!(JaccardLoss::new(), regions).grouping(regions.grouping()).eps(0.0);
    Ok(with(loss, weight, JaccardLoss::weight).into())
}

fn tversky(arguments: &mut Arguments) -> Outcome {
    let regions = Regions::new(arguments)?;
    let loss = regions!(TverskyLoss::new(), regions).grouping(regions.grouping()).eps(0.0);
    let loss = loss.alpha(arguments.number("alpha", 0.5)?).beta(arguments.number("beta", 0.5)?);
    regions.run(&loss, 0)
}

fn generalized_dice(arguments: &mut Arguments) -> Outcome {
    let mut regions = Regions::new(arguments)?;
    // MONAI's weights are in single precision.
    regions.input = promoted(&regions.input, Kind::Float)?;
    let loss = generalized(&regions, arguments)?;
    regions.run(&loss, regions.pixels() + 1)
}

fn generalized(regions: &Regions, arguments: &mut Arguments) -> Result<GeneralizedDiceLoss, EvalError> {
    let weighting = match arguments.text("w_type")?.as_deref() {
        None | Some("square") => VolumeWeight::Square,
        Some("simple") => VolumeWeight::Simple,
        Some("uniform") => VolumeWeight::Uniform,
        Some(other) => return Err(EvalError::Rejected(format!("there is no weighting {other:?}"))),
    };
    Ok(regions!(GeneralizedDiceLoss::new(), regions).weighting(weighting).batch(regions.batch))
}

/// Gives an argument that was not given a value.
fn default_to(arguments: &mut Arguments, name: &str, value: Value) {
    if !arguments.contains(name) {
        arguments.insert(name, Argument::Plain(value));
    }
}

fn hausdorff(arguments: &mut Arguments) -> Outcome {
    hausdorff_or_log(arguments, false)
}

fn log_hausdorff(arguments: &mut Arguments) -> Outcome {
    hausdorff_or_log(arguments, true)
}

fn hausdorff_or_log(arguments: &mut Arguments, log: bool) -> Outcome {
    default_to(arguments, "include_background", Value::Bool(false));
    let mut regions = Regions::new(arguments)?;
    // MONAI's distances are in single precision.
    regions.input = promoted(&regions.input, Kind::Float)?;
    if !matches!(regions.pixels(), 2 | 3) {
        return Err(EvalError::Rejected("images of neither two nor three dimensions".into()));
    }
    let loss = HausdorffDtLoss::new()
        .alpha(arguments.number("alpha", 2.0)?)
        .activation(regions.activation)
        .include_background(regions.include_background)
        .grouping(regions.grouping())
        .log(log)
        .reduction(regions.reduction);
    let loss = with(loss, regions.other_act, |loss, function| loss.other_act(function));
    let result = loss.f_forward(&regions.input, &regions.target)?;
    if regions.reduction != Reduction::None {
        return Ok(result.into());
    }
    let samples = if regions.batch { 1 } else { regions.input.size()[0] };
    let shape = [vec![samples, -1], vec![1; regions.pixels()]].concat();
    Ok(result.f_reshape(shape)?.into())
}

fn iterations(arguments: &mut Arguments) -> Result<usize, EvalError> {
    let iterations = arguments.integer("iter_", 3)?;
    usize::try_from(iterations).map_err(|_| EvalError::Rejected(format!("{iterations} iterations")))
}

/// What the losses with clDice share: their smoothing is 1.
fn centre_lines(arguments: &mut Arguments) -> Result<Regions, EvalError> {
    default_to(arguments, "smooth_nr", Value::Float(1.0));
    default_to(arguments, "smooth_dr", Value::Float(1.0));
    Regions::new(arguments)
}

fn soft_cldice(arguments: &mut Arguments) -> Outcome {
    let regions = centre_lines(arguments)?;
    let loss = SoftClDiceLoss::new()
        .iterations(iterations(arguments)?)
        .smooth(arguments.number("smooth", 1e-4)?)
        .smooth_nr(regions.smooth_nr)
        .smooth_dr(regions.smooth_dr)
        .activation(regions.activation)
        .include_background(regions.include_background)
        .reduction(regions.reduction);
    let loss = with(loss, regions.other_act, |loss, function| loss.other_act(function));
    regions.run(&loss, 0)
}

fn soft_dice_cldice(arguments: &mut Arguments) -> Outcome {
    let regions = centre_lines(arguments)?;
    let loss = SoftDiceClDiceLoss::new()
        .alpha(arguments.number("alpha", 0.5)?)
        .iterations(iterations(arguments)?)
        .smooth(arguments.number("smooth", 1e-4)?)
        .smooth_nr(regions.smooth_nr)
        .smooth_dr(regions.smooth_dr)
        .activation(regions.activation)
        .include_background(regions.include_background)
        .reduction(regions.reduction);
    let loss = with(loss, regions.other_act, |loss, function| loss.other_act(function));
    regions.run(&loss, 0)
}

fn dice_cross_entropy(arguments: &mut Arguments) -> Outcome {
    let mut regions = Regions::new(arguments)?;
    let kind = regions.input.f_kind()?;
    let classes = regions.input.size().get(1).copied().unwrap_or(0);
    let smoothing = arguments.number("label_smoothing", 0.0)?;
    let lambda_dice = arguments.number("lambda_dice", 1.0)?;
    let lambda_ce = arguments.number("lambda_ce", 1.0)?;
    let weight = arguments.optional_tensor("weight")?.map(|weight| weight.f_to_kind(kind)).transpose()?;
    // MONAI's Dice loss has no weight for a single class.
    let counted = if regions.include_background { classes } else { classes - 1 };
    let dice_weight = weight.as_ref().filter(|_| counted > 1).map(Tensor::shallow_clone);
    let overlap = overlap(&mut regions, arguments, dice_weight)?;
    let loss = DiceCrossEntropyLoss::new().overlap(overlap).lambda_dice(lambda_dice).lambda_ce(lambda_ce);
    if regions.reduction == Reduction::None {
        return Err(EvalError::Rejected("neither a mean nor a sum".into()));
    }
    let loss = if classes == 1 {
        let entropy = BceWithLogitsLoss::new().reduction(regions.reduction);
        loss.cross_entropy(with(entropy, weight, BceWithLogitsLoss::pos_weight))
    } else {
        let entropy = CrossEntropyLoss::new().label_smoothing(smoothing).reduction(regions.reduction);
        if regions.target.size() == regions.input.size() {
            regions.target = regions.target.f_to_kind(kind)?;
        }
        loss.cross_entropy(with(entropy, weight, CrossEntropyLoss::weight))
    };
    regions.run(&loss, 0)
}

/// The focal loss of sigmoids over masks that MONAI adds to a loss over regions, and the factor that makes MONAI's of
/// its reduction.
fn focal_part(
    regions: &mut Regions,
    arguments: &mut Arguments,
    alpha: Option<Numbers>,
) -> Result<(SigmoidFocalLoss, f64), EvalError> {
    // It is computed in f32, whatever comes.
    regions.input = promoted(&regions.input, Kind::Float)?;
    let classes = regions.input.size().get(1).copied().unwrap_or(0);
    if regions.target.dim() + 1 == regions.input.dim() {
        regions.target = one_hot(&regions.target.f_unsqueeze(1)?, classes, None)?;
    }
    let counted = if regions.include_background { classes } else { classes - 1 };
    let loss = SigmoidFocalLoss::new()
        .alpha(FocalAlpha::None)
        .gamma(arguments.number("gamma", 2.0)?)
        .soft_targets(FocalSoftTargets::Margin)
        .reduction(regions.reduction);
    let loss = match alpha {
        None => loss,
        Some(Numbers::One(alpha)) => loss.alpha(alpha),
        Some(Numbers::Many(_)) => return Err(EvalError::Unsupported("alpha for each class".into())),
    };
    let weight = match arguments.numbers("weight")? {
        None => None,
        Some(Numbers::Many(_)) if counted == 1 => return Err(EvalError::Rejected("a weight of a single class".into())),
        Some(weight) => Some(class_weight(weight, counted, &regions.input)?),
    };
    let weight = weight.map(|weight| along_classes(&weight, &regions.input)).transpose()?;
    let pixels: i64 = regions.input.size()[2..].iter().product();
    let factor = if regions.reduction == Reduction::Sum { 1.0 / pixels as f64 } else { 1.0 };
    Ok((with(loss, weight, SigmoidFocalLoss::weight), factor))
}

fn dice_focal(arguments: &mut Arguments) -> Outcome {
    let mut regions = Regions::new(arguments)?;
    // The Dice loss has the same weights, and none for a single class.
    let weights = arguments.take("weight");
    let copy = |argument: &Argument| match argument {
        Argument::Plain(value) => Argument::Plain(value.clone()),
        Argument::Tensor(tensor) => Argument::Tensor(tensor.shallow_clone()),
        Argument::Tensors(tensors) => Argument::Tensors(tensors.iter().map(Tensor::shallow_clone).collect()),
    };
    if let Some(weights) = &weights {
        arguments.insert("weight", copy(weights));
    }
    let dice_weight = regions.weight(arguments)?;
    if let Some(weights) = weights {
        arguments.insert("weight", weights);
    }
    let alpha = arguments.numbers("alpha")?;
    let (focal, factor) = focal_part(&mut regions, arguments, alpha)?;
    let overlap = overlap(&mut regions, arguments, dice_weight)?;
    let loss = DiceFocalLoss::new()
        .overlap(overlap)
        .focal(focal)
        .focal_background(regions.include_background)
        .lambda_dice(arguments.number("lambda_dice", 1.0)?)
        .lambda_focal(arguments.number("lambda_focal", 1.0)? * factor);
    regions.run(&loss, 0)
}

fn generalized_dice_focal(arguments: &mut Arguments) -> Outcome {
    let mut regions = Regions::new(arguments)?;
    let (focal, factor) = focal_part(&mut regions, arguments, None)?;
    let loss = DiceFocalLoss::new()
        .overlap(generalized(&regions, arguments)?)
        .focal(focal)
        .focal_background(regions.include_background)
        .lambda_dice(arguments.number("lambda_gdl", 1.0)?)
        .lambda_focal(arguments.number("lambda_focal", 1.0)? * factor);
    regions.run(&loss, 0)
}

fn ms_ssim(arguments: &mut Arguments) -> Outcome {
    let dims = arguments.integer("spatial_dims", 0)?;
    let loss = ms_ssim_options(arguments, "kernel_size")?.spatial_dims(dims as usize);
    let (input, target) = (arguments.tensor("input")?, arguments.tensor("target")?);
    if input.dim() as i64 != dims + 2 {
        return Err(EvalError::Rejected(format!("images of shape {:?}", input.size())));
    }
    Ok(loss.f_forward(&input, &target)?.into())
}

/// MONAI computes in single precision and returns it; unreduced, the losses of the samples are a column.
fn ssim(arguments: &mut Arguments) -> Outcome {
    let dims = arguments.integer("spatial_dims", 0)?;
    let loss = ssim_options(arguments)?.spatial_dims(dims as usize).scope(SsimScope::Sample);
    let (input, target) = (arguments.tensor("input")?, arguments.tensor("target")?);
    if input.dim() as i64 != dims + 2 {
        return Err(EvalError::Rejected(format!("images of shape {:?}", input.size())));
    }
    let losses = loss.f_forward(&input.f_to_kind(Kind::Float)?, &target.f_to_kind(Kind::Float)?)?;
    Ok(if losses.dim() == 1 { losses.f_unsqueeze(1)? } else { losses }.into())
}
