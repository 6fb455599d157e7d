//! Losses of representations that are learnt without labels, and of pairs of images and texts.

mod barlow_twins;
mod clip;
mod dino;
mod logits;
mod negative_cosine_similarity;
mod siglip;
mod vicreg;

pub use barlow_twins::BarlowTwinsLoss;
pub use clip::ClipLoss;
pub use dino::{DinoConfig, DinoLoss};
pub use logits::LogitParameter;
pub use negative_cosine_similarity::NegativeCosineSimilarity;
pub use siglip::SigLipLoss;
pub use vicreg::VicRegLoss;

use tch::{Kind, Tensor};

use crate::LossError;
use crate::check::{self, Named};

/// The two views are of one shape and of one floating kind.
fn views(input: Named, target: Named) -> Result<(), LossError> {
    check::devices(&[input, target])?;
    check::floating(input)?;
    check::same_kind(target, input)?;
    check::same_shape(target, input)
}

/// `matrices`, `[…, D, D]`, with 0 on their diagonals.
fn f_without_diagonal(matrices: &Tensor) -> Result<Tensor, LossError> {
    let shape = matrices.size();
    let [.., rows, columns] = shape[..] else {
        return Ok(matrices.shallow_clone());
    };
    let diagonal = Tensor::f_eye_m(rows, columns, (Kind::Bool, matrices.device()))?;
    Ok(matrices.f_masked_fill(&diagonal, 0)?)
}
