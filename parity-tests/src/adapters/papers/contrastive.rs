//! The losses of images and texts: `pytorch/papers/contrastive.py`.

use tch_losses::{ClipLoss, LogitParameter, SigLipLoss};

use super::super::Equality::Close;
use super::super::{Adapter, Outcome, adapter};
use crate::arguments::{Argument, Arguments, EvalError};
use crate::case::Value;

#[rustfmt::skip]
pub(in super::super) const ADAPTERS: &[Adapter] = &[
    adapter("ClipLoss", &["papers.contrastive.clip_loss"], &["image", "text", "logit_scale"], Close, clip),
    adapter("SigLipLoss", &["papers.contrastive.siglip_loss"], &["image", "text", "logit_scale", "logit_bias"], Close,
        siglip),
];

/// A tensor or a number, as an argument that can be borrowed.
fn parameter(arguments: &mut Arguments, name: &str) -> Result<Argument, EvalError> {
    arguments.take(name).ok_or_else(|| EvalError::Rejected(format!("argument {name} is missing")))
}

fn borrowed(argument: &Argument) -> Result<LogitParameter<'_>, EvalError> {
    match argument {
        Argument::Tensor(tensor) => Ok(tensor.into()),
        Argument::Plain(Value::Float(number)) => Ok((*number).into()),
        other => Err(EvalError::Rejected(format!("{other:?} is neither a tensor nor a number"))),
    }
}

fn clip(arguments: &mut Arguments) -> Outcome {
    let loss = ClipLoss::new()
        .normalize(arguments.boolean("normalize", true)?)
        .label_smoothing(arguments.number("label_smoothing", 0.0)?)
        .reduction(arguments.reduction()?);
    let scale = parameter(arguments, "logit_scale")?;
    Ok(loss.f_forward(&arguments.tensor("image")?, &arguments.tensor("text")?, borrowed(&scale)?)?.into())
}

fn siglip(arguments: &mut Arguments) -> Outcome {
    let loss = SigLipLoss::new().normalize(arguments.boolean("normalize", true)?).reduction(arguments.reduction()?);
    let (scale, bias) = (parameter(arguments, "logit_scale")?, parameter(arguments, "logit_bias")?);
    let (image, text) = (arguments.tensor("image")?, arguments.tensor("text")?);
    Ok(loss.f_forward(&image, &text, borrowed(&scale)?, borrowed(&bias)?)?.into())
}
