//! The losses of torchvision.

use tch::{Kind, Tensor};
use tch_losses::{
    CompleteBoxIouLoss, DistanceBoxIouLoss, FocalAlpha, GeneralizedBoxIouLoss, Loss, Reduction, SigmoidFocalLoss,
};

use super::Equality::Close;
use super::{Adapter, Outcome, adapter};
use crate::arguments::{Arguments, EvalError};

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("GeneralizedBoxIouLoss", &["torchvision.ops.generalized_box_iou_loss"],
        &["boxes1", "boxes2", "reduction", "eps"], Close, generalized_box_iou),
    adapter("DistanceBoxIouLoss", &["torchvision.ops.distance_box_iou_loss"],
        &["boxes1", "boxes2", "reduction", "eps"], Close, distance_box_iou),
    adapter("CompleteBoxIouLoss", &["torchvision.ops.complete_box_iou_loss"],
        &["boxes1", "boxes2", "reduction", "eps"], Close, complete_box_iou),
    adapter("SigmoidFocalLoss", &["torchvision.ops.sigmoid_focal_loss"],
        &["inputs", "targets", "alpha", "gamma", "reduction"], Close, sigmoid_focal),
];

fn sigmoid_focal(arguments: &mut Arguments) -> Outcome {
    // An α of -1 is none.
    let alpha = match arguments.number("alpha", 0.25)? {
        -1.0 => FocalAlpha::None,
        alpha => alpha.into(),
    };
    let loss = SigmoidFocalLoss::new().alpha(alpha).gamma(arguments.number("gamma", 2.0)?);
    let loss = loss.reduction(reduction(arguments)?);
    let (inputs, targets) = (arguments.tensor("inputs")?, arguments.tensor("targets")?);
    Ok(loss.f_forward(&inputs, &targets)?.into())
}

fn generalized_box_iou(arguments: &mut Arguments) -> Outcome {
    let loss = GeneralizedBoxIouLoss::new().eps(arguments.number("eps", 1e-7)?).reduction(reduction(arguments)?);
    boxes(&loss, arguments)
}

fn distance_box_iou(arguments: &mut Arguments) -> Outcome {
    let loss = DistanceBoxIouLoss::new().eps(arguments.number("eps", 1e-7)?).reduction(reduction(arguments)?);
    boxes(&loss, arguments)
}

/// The `eps` of torchvision is that of α alone.
fn complete_box_iou(arguments: &mut Arguments) -> Outcome {
    let loss = CompleteBoxIouLoss::new().alpha_eps(arguments.number("eps", 1e-7)?).reduction(reduction(arguments)?);
    boxes(&loss, arguments)
}

/// The reduction, by default none.
fn reduction(arguments: &mut Arguments) -> Result<Reduction, EvalError> {
    if arguments.contains("reduction") { arguments.reduction() } else { Ok(Reduction::None) }
}

/// Calls a loss of boxes; torchvision returns single precision for half.
fn boxes(loss: &dyn Loss, arguments: &mut Arguments) -> Outcome {
    let (boxes1, boxes2) = (single(arguments.tensor("boxes1")?)?, single(arguments.tensor("boxes2")?)?);
    Ok(loss.f_forward(&boxes1, &boxes2)?.into())
}

fn single(tensor: Tensor) -> Result<Tensor, EvalError> {
    match tensor.f_kind()? {
        Kind::Half | Kind::BFloat16 => Ok(tensor.f_to_kind(Kind::Float)?),
        _ => Ok(tensor),
    }
}
