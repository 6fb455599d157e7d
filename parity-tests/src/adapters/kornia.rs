//! The losses of kornia.

use tch::{Kind, Tensor};
use tch_losses::{
    Activation, DiceLoss, EmptyMask, FocalAlpha, FocalSoftTargets, Grouping, Loss, MeanOver, Reduction,
    SigmoidFocalLoss, SoftmaxFocalLoss, TverskyLoss, WeightedMean,
};

use tch_losses::{
    CauchyLoss, CharbonnierLoss, GemanMcClureLoss, LovaszClasses, LovaszHingeLoss, LovaszSoftmaxLoss, MsSsimL1Loss,
    PixelReduction, PsnrLoss, SsimForm, SsimLoss, SsimPadding, TotalVariationLoss, WelschLoss,
};

use super::Equality::Close;
use super::{Adapter, Outcome, adapter, with};
use crate::arguments::{Arguments, EvalError, Numbers};

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("SoftmaxFocalLoss (kornia)", &["kornia.losses.FocalLoss", "kornia.losses.focal_loss"],
        &["pred", "target", "alpha", "gamma", "reduction", "weight", "ignore_index"], Close, softmax_focal),
    adapter("SigmoidFocalLoss (kornia's class)", &["kornia.losses.BinaryFocalLossWithLogits"],
        &["pred", "target"], Close, |arguments| sigmoid_focal(arguments, None)),
    adapter("SigmoidFocalLoss (kornia)", &["kornia.losses.binary_focal_loss_with_logits"],
        &["pred", "target", "alpha", "gamma", "reduction", "pos_weight", "weight", "ignore_index"], Close,
        |arguments| sigmoid_focal(arguments, Some(0.25))),
    adapter("DiceLoss (kornia)", &["kornia.losses.DiceLoss", "kornia.losses.dice_loss"],
        &["pred", "target", "average", "eps", "weight", "ignore_index"], Close, dice),
    adapter("TverskyLoss (kornia)", &["kornia.losses.TverskyLoss", "kornia.losses.tversky_loss"],
        &["pred", "target", "alpha", "beta", "eps", "ignore_index"], Close, tversky),
    adapter("LovaszHingeLoss (kornia)", &["kornia.losses.LovaszHingeLoss", "kornia.losses.lovasz_hinge_loss"],
        &["pred", "target"], Close, lovasz_hinge),
    adapter("LovaszSoftmaxLoss (kornia)", &["kornia.losses.LovaszSoftmaxLoss", "kornia.losses.lovasz_softmax_loss"],
        &["pred", "target", "weight"], Close, lovasz_softmax),
    adapter("CharbonnierLoss (kornia)", &["kornia.losses.CharbonnierLoss", "kornia.losses.charbonnier_loss"],
        &["img1", "img2", "reduction"], Close,
        |arguments| robust(arguments, |reduction| Box::new(CharbonnierLoss::new().reduction(reduction)))),
    adapter("CauchyLoss (kornia)", &["kornia.losses.CauchyLoss", "kornia.losses.cauchy_loss"],
        &["img1", "img2", "reduction"], Close,
        |arguments| robust(arguments, |reduction| Box::new(CauchyLoss::new().reduction(reduction)))),
    adapter("GemanMcClureLoss (kornia)", &["kornia.losses.GemanMcclureLoss", "kornia.losses.geman_mcclure_loss"],
        &["img1", "img2", "reduction"], Close,
        |arguments| robust(arguments, |reduction| Box::new(GemanMcClureLoss::new().reduction(reduction)))),
    adapter("WelschLoss (kornia)", &["kornia.losses.WelschLoss", "kornia.losses.welsch_loss"],
        &["img1", "img2", "reduction"], Close,
        |arguments| {
            let loss = WelschLoss::new().reduction(unreduced_by_default(arguments)?);
            run_robust(arguments, &loss)
        }),
    adapter("SsimLoss (kornia)", &["kornia.losses.SSIMLoss", "kornia.losses.ssim_loss"],
        &["img1", "img2", "window_size", "max_val", "eps", "reduction", "padding"], Close, |arguments| ssim(arguments, 2)),
    adapter("SsimLoss (kornia, 3-D)", &["kornia.losses.SSIM3DLoss", "kornia.losses.ssim3d_loss"],
        &["img1", "img2", "window_size", "max_val", "eps", "reduction", "padding"], Close, |arguments| ssim(arguments, 3)),
    adapter("MsSsimL1Loss (kornia)", &["kornia.losses.MS_SSIMLoss"], &["img1", "img2"], Close, ms_ssim_l1),
    adapter("PsnrLoss (kornia)", &["kornia.losses.PSNRLoss", "kornia.losses.psnr_loss"],
        &["image", "target", "max_val"], Close, psnr),
    adapter("TotalVariationLoss (kornia)", &["kornia.losses.TotalVariation", "kornia.losses.total_variation"],
        &["img", "reduction"], Close, total_variation),
];

/// The reduction, which is none by default, though not for `None`.
fn unreduced_by_default(arguments: &mut Arguments) -> Result<Reduction, EvalError> {
    if arguments.contains("reduction") { arguments.reduction_by_name() } else { Ok(Reduction::None) }
}

/// The label that is ignored: -100 by default, and `None` for none.
fn ignore_index(arguments: &mut Arguments) -> Result<Option<i64>, EvalError> {
    if arguments.contains("ignore_index") { arguments.optional_integer("ignore_index") } else { Ok(Some(-100)) }
}

/// kornia has a value for each class, 0 but for the target's, and its mean is over all of them.
fn softmax_focal(arguments: &mut Arguments) -> Outcome {
    let alpha = arguments.number_or_none("alpha", None)?.map_or(FocalAlpha::None, FocalAlpha::from);
    let reduction = unreduced_by_default(arguments)?;
    let ignored = ignore_index(arguments)?;
    let loss = SoftmaxFocalLoss::new()
        .alpha(alpha)
        .gamma(arguments.number("gamma", 2.0)?)
        .ignore_index(ignored)
        .mean_over(MeanOver::All)
        .reduction(reduction);
    let weight = arguments.optional_tensor("weight")?;
    let (pred, target) = (arguments.tensor("pred")?, arguments.tensor("target")?);
    let loss = with(loss, of_classes(weight, &pred)?, SoftmaxFocalLoss::weight);
    if pred.dim() < 2 {
        return Err(EvalError::Rejected("pred has no classes".into()));
    }
    let losses = loss.f_forward(&pred, &target)?;
    match reduction {
        Reduction::Sum => Ok(losses.into()),
        Reduction::Mean => Ok(losses.f_div_scalar(pred.size()[1])?.into()),
        Reduction::None => {
            let own = target.f_to_kind(Kind::Int64)?.f_clamp(0, pred.size()[1] - 1)?;
            Ok(pred.f_zeros_like()?.f_scatter(1, &own.f_unsqueeze(1)?, &losses.f_unsqueeze(1)?)?.into())
        }
    }
}

/// kornia counts ignored elements in its mean.
fn sigmoid_focal(arguments: &mut Arguments, default_alpha: Option<f64>) -> Outcome {
    let alpha = arguments.number_or_none("alpha", default_alpha)?.map_or(FocalAlpha::None, FocalAlpha::from);
    let loss = SigmoidFocalLoss::new()
        .alpha(alpha)
        .gamma(arguments.number("gamma", 2.0)?)
        .soft_targets(FocalSoftTargets::Terms)
        .mean_over(MeanOver::All)
        .reduction(unreduced_by_default(arguments)?);
    let loss = with(loss, ignore_index(arguments)?, SigmoidFocalLoss::ignore_index);
    let (pos_weight, weight) = (arguments.optional_tensor("pos_weight")?, arguments.optional_tensor("weight")?);
    let (pred, target) = (arguments.tensor("pred")?, arguments.tensor("target")?);
    // One minus an integer target is f32 in PyTorch, and so are the losses.
    let widen = !target.is_floating_point() && pred.f_kind()? != Kind::Double;
    let pred = if widen { pred.f_to_kind(Kind::Float)? } else { pred };
    let loss = with(loss, along_classes(pos_weight, &pred)?, SigmoidFocalLoss::pos_weight);
    let loss = with(loss, along_classes(weight, &pred)?, SigmoidFocalLoss::weight);
    if pred.dim() < 2 {
        return Err(EvalError::Rejected("pred has no classes".into()));
    }
    Ok(loss.f_forward(&pred, &target)?.into())
}

/// One value per class, `[C]`; kornia also takes `[C, 1, …]`.
fn of_classes(values: Option<Tensor>, pred: &Tensor) -> Result<Option<Tensor>, EvalError> {
    let Some(values) = values else { return Ok(None) };
    let one_for_each = pred.size().get(1).is_some_and(|classes| values.size().first() == Some(classes));
    if !one_for_each || values.numel() as i64 != pred.size()[1] {
        return Err(EvalError::Rejected("one weight for each class is expected".into()));
    }
    Ok(Some(values.f_flatten(0, -1)?))
}

/// The same in a shape that broadcasts along dimension 1.
fn along_classes(values: Option<Tensor>, pred: &Tensor) -> Result<Option<Tensor>, EvalError> {
    let Some(values) = of_classes(values, pred)? else { return Ok(None) };
    let mut shape = vec![1; pred.dim()];
    shape[1] = -1;
    Ok(Some(values.f_reshape(shape)?))
}

/// Arguments of the losses over regions: logits `[B, C, H, W]` and classes `[B, H, W]`.
fn images(arguments: &mut Arguments) -> Result<(Tensor, Tensor), EvalError> {
    let (input, target) = (arguments.tensor("pred")?, arguments.tensor("target")?);
    if input.dim() != 4 || target.dim() != 3 {
        let shapes = format!("pred of shape {:?} and target of shape {:?}", input.size(), target.size());
        return Err(EvalError::Rejected(shapes));
    }
    Ok((input, target))
}

fn dice(arguments: &mut Arguments) -> Outcome {
    let (input, target) = images(arguments)?;
    let loss = DiceLoss::new()
        .activation(Activation::Softmax)
        .weighted_mean(WeightedMean::Weight)
        .smooth_nr(0.0)
        .smooth_dr(arguments.number("eps", 1e-8)?)
        .eps(0.0);
    let loss = match arguments.text("average")?.as_deref() {
        None | Some("micro") => loss.grouping(Grouping::Sample),
        Some("macro") => loss.grouping(Grouping::SampleAndClass).empty_mask(EmptyMask::Skip),
        Some(other) => return Err(EvalError::Rejected(format!("there is no average {other:?}"))),
    };
    let loss = with(loss, ignore_index(arguments)?, DiceLoss::ignore_index);
    let Some(weight) = arguments.optional_tensor("weight")? else {
        return Ok(loss.f_forward(&input, &target)?.into());
    };
    let kind = promoted(&input, &weight)?;
    Ok(loss.weight(weight).f_forward(&input.f_to_kind(kind)?, &target)?.into())
}

fn tversky(arguments: &mut Arguments) -> Outcome {
    let (input, target) = images(arguments)?;
    let loss = TverskyLoss::new()
        .activation(Activation::Softmax)
        .empty_mask(EmptyMask::Skip)
        .alpha(arguments.number("alpha", f64::NAN)?)
        .beta(arguments.number("beta", f64::NAN)?)
        .smooth_nr(0.0)
        .smooth_dr(arguments.number("eps", 1e-8)?)
        .eps(0.0);
    let loss = with(loss, ignore_index(arguments)?, TverskyLoss::ignore_index);
    Ok(loss.f_forward(&input, &target)?.into())
}

fn lovasz_hinge(arguments: &mut Arguments) -> Outcome {
    let (input, target) = images(arguments)?;
    if input.size()[1] != 1 {
        return Err(EvalError::Rejected("pred of several channels".into()));
    }
    Ok(LovaszHingeLoss::new().per_image(true).f_forward(&input, &target)?.into())
}

fn lovasz_softmax(arguments: &mut Arguments) -> Outcome {
    let (input, target) = images(arguments)?;
    if input.size()[1] < 2 {
        return Err(EvalError::Rejected("pred of a single class".into()));
    }
    let loss = LovaszSoftmaxLoss::new().per_image(true).classes(LovaszClasses::All);
    let Some(weight) = arguments.optional_tensor("weight")? else {
        return Ok(loss.f_forward(&input, &target)?.into());
    };
    let kind = promoted(&input, &weight)?;
    Ok(loss.weight(weight).f_forward(&input.f_to_kind(kind)?, &target)?.into())
}

/// Two images in their common kind.
fn image_pair(arguments: &mut Arguments) -> Result<[Tensor; 2], EvalError> {
    let (first, second) = (arguments.tensor("img1")?, arguments.tensor("img2")?);
    let kind = promoted(&first, &second)?;
    Ok([first.f_to_kind(kind)?, second.f_to_kind(kind)?])
}

/// Where kornia names the reduction `None` it is none.
fn unreduced_for_none(arguments: &mut Arguments) -> Result<Reduction, EvalError> {
    if arguments.is_none("reduction") { Ok(Reduction::None) } else { unreduced_by_default(arguments) }
}

fn robust(arguments: &mut Arguments, loss: fn(Reduction) -> Box<dyn Loss>) -> Outcome {
    let reduction = unreduced_for_none(arguments)?;
    run_robust(arguments, &*loss(reduction))
}

fn run_robust(arguments: &mut Arguments, loss: &dyn Loss) -> Outcome {
    let [first, second] = image_pair(arguments)?;
    Ok(loss.f_forward(&first, &second)?.into())
}

/// kornia's window reaches over a mirrored border, or it leaves the places out where it would.
fn ssim(arguments: &mut Arguments, dims: usize) -> Outcome {
    let padding = match arguments.text("padding")?.map(|text| text.to_lowercase()).as_deref() {
        None | Some("same") => SsimPadding::Reflect,
        Some("valid") => SsimPadding::Valid,
        Some(other) => return Err(EvalError::Rejected(format!("there is no padding {other:?}"))),
    };
    let window = arguments.integer("window_size", 0)?;
    if window % 2 == 0 {
        return Err(EvalError::Rejected(format!("a window of {window} pixels has no middle")));
    }
    let loss = SsimLoss::new()
        .spatial_dims(dims)
        .window_size(&[window])
        .data_range(arguments.number("max_val", 1.0)?)
        .eps(arguments.number("eps", 1e-12)?)
        .padding(padding)
        .form(SsimForm::Dissimilarity)
        .reduction(arguments.reduction_by_name()?);
    let [first, second] = image_pair(arguments)?;
    if first.dim() != dims + 2 {
        return Err(EvalError::Rejected(format!("images of shape {:?}", first.size())));
    }
    Ok(loss.f_forward(&first, &second)?.into())
}

fn ms_ssim_l1(arguments: &mut Arguments) -> Outcome {
    let mut numbers = |name| match arguments.numbers(name)? {
        None => Ok(None),
        Some(Numbers::Many(numbers)) => Ok(Some(numbers)),
        Some(Numbers::One(_)) => Err(EvalError::Rejected(format!("{name} is no list"))),
    };
    let loss = MsSsimL1Loss::new();
    let loss = with(loss, numbers("sigmas")?, |loss, sigmas| loss.sigmas(&sigmas));
    let loss = with(loss, numbers("K")?, |loss, k| loss.k1(k[0]).k2(k[1]));
    let loss = loss
        .data_range(arguments.number("data_range", 1.0)?)
        .alpha(arguments.number("alpha", 0.025)?)
        .compensation(arguments.number("compensation", 200.0)?)
        .reduction(arguments.reduction_by_name()?);
    let [first, second] = image_pair(arguments)?;
    Ok(loss.f_forward(&first, &second)?.into())
}

fn psnr(arguments: &mut Arguments) -> Outcome {
    let loss = PsnrLoss::new().data_range(arguments.number("max_val", f64::NAN)?);
    let (image, target) = (arguments.tensor("image")?, arguments.tensor("target")?);
    let kind = promoted(&image, &target)?;
    Ok(loss.f_forward(&image.f_to_kind(kind)?, &target.f_to_kind(kind)?)?.into())
}

/// kornia's reduction is that of the pixels; it keeps the images apart.
fn total_variation(arguments: &mut Arguments) -> Outcome {
    if arguments.is_none("reduction") {
        return Err(EvalError::Rejected("there is no reduction None".into()));
    }
    let pixels = match arguments.text("reduction")?.as_deref() {
        None | Some("sum") => PixelReduction::Sum,
        Some("mean") => PixelReduction::Mean,
        Some(other) => return Err(EvalError::Rejected(format!("there is no reduction {other:?}"))),
    };
    let loss = TotalVariationLoss::new().pixels(pixels).reduction(Reduction::None);
    Ok(loss.f_forward(&arguments.tensor("img")?)?.into())
}

/// The kind of a result of two tensors: the wider of the two, and a floating one where one of them is.
fn promoted(input: &Tensor, other: &Tensor) -> Result<Kind, EvalError> {
    Ok(match (input.f_kind()?, other.f_kind()?) {
        (_, other) if !input.is_floating_point() => other,
        (kind, _) if !other.is_floating_point() => kind,
        (_, Kind::Double) => Kind::Double,
        (Kind::Half | Kind::BFloat16, Kind::Float) => Kind::Float,
        (kind, _) => kind,
    })
}
