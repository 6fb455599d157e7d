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
use crate::kernels::{Counted, Hard, NumberOperations, PairLabels, PairTerms, f_pairs};

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
    Ok(matrices.f_masked_fill_number(&diagonal, 0)?)
}

/// The sum of the terms of the elements of `matrices` `[…, D, D]`, of one formula on their diagonals and of another beside them, by
/// the engine with both or by the `composite`, whose result is of this `kind`.
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
    let labels = PairLabels::of_diagonal((rows.size()[0] / size) as usize, size as usize);
    let composite = move |[rows]: [&Tensor; 1]| composite(&rows.f_reshape(&shape)?);
    f_pairs(Hard(formula), [&rows], labels.as_ref(), Some(Counted::SUM), kind, composite)
}
