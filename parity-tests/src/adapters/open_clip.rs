//! The losses of open_clip, which takes embeddings that have norm 1.

use tch_losses::{ClipLoss, SigLipLoss};

use super::Equality::Close;
use super::{Adapter, Outcome, adapter};
use crate::arguments::Arguments;

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("ClipLoss (open_clip)", &["open_clip.loss.ClipLoss"], &["image_features", "text_features", "logit_scale"],
        Close, clip),
    adapter("SigLipLoss (open_clip)", &["open_clip.loss.SigLipLoss"],
        &["image_features", "text_features", "logit_scale", "logit_bias"], Close, siglip),
];

fn clip(arguments: &mut Arguments) -> Outcome {
    let (image, text) = (arguments.tensor("image_features")?, arguments.tensor("text_features")?);
    let scale = arguments.tensor("logit_scale")?;
    Ok(ClipLoss::new().normalize(false).f_forward(&image, &text, &scale)?.into())
}

fn siglip(arguments: &mut Arguments) -> Outcome {
    let (image, text) = (arguments.tensor("image_features")?, arguments.tensor("text_features")?);
    let (scale, bias) = (arguments.tensor("logit_scale")?, arguments.tensor("logit_bias")?);
    Ok(SigLipLoss::new().normalize(false).f_forward(&image, &text, &scale, &bias)?.into())
}
