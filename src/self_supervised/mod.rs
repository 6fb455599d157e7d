//! Losses of representations that are learnt without labels, and of pairs of images and texts.
//!
//! Of two views of a sample: [`BarlowTwinsLoss`] and [`VicRegLoss`] need neither negatives nor a teacher,
//! [`NegativeCosineSimilarity`] is that of SimSiam and BYOL, [`DinoLoss`] has a teacher. SimCLR's is `NtXentLoss` of
//! the family `metric`. [`SigLipLoss`] of images and texts is better than [`ClipLoss`] with small batches.
//!
//! # Self-supervised, images and texts
//!
//! These need the feature `self-supervised`.
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`BarlowTwinsLoss`] | two views, by the correlation of features | `lightly.loss.BarlowTwinsLoss` | `input, target` |
//! | [`VicRegLoss`] | two views, whose features vary | `lightly.loss.VICRegLoss` | `input, target` |
//! | [`NegativeCosineSimilarity`] | a prediction of the other view: SimSiam, BYOL | `lightly.loss.NegativeCosineSimilarity` | `input, target` |
//! | [`DinoLoss`] | a student and a teacher of several views | `lightly.loss.DINOLoss` | lists of views |
//! | [`ClipLoss`] | images and texts, by a softmax | `open_clip.loss.ClipLoss` | `image, text, logit_scale` |
//! | [`SigLipLoss`] | images and texts, by a sigmoid for each pair | `open_clip.loss.SigLipLoss` | `image, text, logit_scale, logit_bias` |

mod barlow_twins;
mod clip;
mod dino;
mod logits;
#[cfg(feature = "distributed")]
mod moments;
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
use crate::kernels::{Counted, Hard, NumberOperations, PairLabels, PairTerms, f_pairs};

/// Checks that the two views have one shape and one floating kind.
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
    Ok(matrices.f_masked_fill_number(&diagonal, 0)?)
}

/// The sum of the terms of the elements of `matrices` `[…, D, D]`, where the diagonals have a term of their own. It is
/// computed by the engine with the `formula`, or by the `composite`, whose result is converted to this `kind`.
fn f_diagonal_and_others<F, C>(formula: F, matrices: &Tensor, kind: Kind, composite: C) -> Result<Tensor, LossError>
where
    F: PairTerms,
    C: Fn(&Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    let shape = matrices.size();
    let size = shape[shape.len() - 1];
    if size == 0 {
        return composite(matrices);
    }
    let rows = matrices.f_reshape([-1, size])?;
    let labels = PairLabels::of_diagonal(&rows, (rows.size()[0] / size) as usize, size as usize);
    let composite = move |[rows]: [&Tensor; 1]| composite(&rows.f_reshape(&shape)?);
    f_pairs(Hard(formula), [&rows], labels.as_ref(), Some(Counted::SUM), kind, composite)
}
