//! What the losses with a vector for each class share: its variable on a path, and angles to it.

use tch::{Kind, Tensor, nn};

use super::batch::{f_kind_of_pairs, f_labels};
use super::{EmbeddingDistance, EmbeddingReduction};
use crate::check::{self, ClassIndices, Named};
use crate::{CrossEntropyLoss, InvalidValues, Loss, LossError, Reduction};

/// A variable of normal values with this deviation.
pub(super) fn f_variable(
    path: &nn::Path,
    name: &str,
    options: [(&'static str, i64); 2],
    shape: impl FnOnce([i64; 2]) -> [i64; 2],
    stdev: f64,
) -> Result<Tensor, LossError> {
    for (option, size) in options {
        check::option(option, size, size > 0, "a number > 0")?;
    }
    let shape = shape(options.map(|(_, size)| size));
    Ok(path.f_var(name, &shape, nn::Init::Randn { mean: 0.0, stdev })?)
}

/// The proxies are a row of the embeddings' features for each class.
pub(super) fn check_proxies(input: &Tensor, proxies: &Tensor, target: &Tensor) -> Result<(), LossError> {
    check::devices(&[("input", input), ("proxies", proxies), ("target", target)])?;
    let features = input.size().get(1).copied().unwrap_or(0);
    if matches!(proxies.size()[..], [classes, columns] if classes > 0 && columns == features) {
        return Ok(());
    }
    Err(check::shape_error(("proxies", proxies), format!("[C, {features}], one row for each class")))
}

/// Embeddings `[N, D]`, a vector for each class, `[C, D]`, and the classes `[N]` of the embeddings.
pub(super) struct Classified {
    pub(super) embeddings: Tensor,
    pub(super) vectors: Tensor,
    /// As 64-bit integers.
    pub(super) classes: Tensor,
    /// In which they are compared.
    wide: Kind,
    kind: Kind,
}

impl Classified {
    /// `vectors` has one row for each class, or `per_class` rows for each.
    pub(super) fn f_new(
        input: &Tensor,
        (name, vectors): Named,
        target: &Tensor,
        per_class: i64,
    ) -> Result<Classified, LossError> {
        let classes = f_labels(("input", input), ("target", target))?;
        check::floating((name, vectors))?;
        let classes = ClassIndices::f_new(&classes, vectors.size()[0] / per_class, None, InvalidValues::Error)?;
        let wide = f_kind_of_pairs(input, vectors)?;
        let (embeddings, vectors) = (input.shallow_clone(), vectors.shallow_clone());
        Ok(Classified { embeddings, vectors, classes: classes.indices, wide, kind: input.f_kind()? })
    }

    /// The distances or similarities of the embeddings to the vectors, `[N, C]`.
    pub(super) fn f_matrix(&self, distance: EmbeddingDistance) -> Result<Tensor, LossError> {
        distance.f_matrix(&self.embeddings, Some(&self.vectors), self.wide)
    }

    /// Of each row the element of its class.
    pub(super) fn f_own(&self, rows: &Tensor) -> Result<Tensor, LossError> {
        Ok(rows.f_gather(1, &self.classes.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?)
    }

    /// The result in the kind of the embeddings.
    pub(super) fn f_narrow(&self, loss: &Tensor) -> Result<Tensor, LossError> {
        Ok(loss.f_to_kind(self.kind)?)
    }
}

/// The cosines of embeddings with weights of classes, of which the nearest of several may count.
pub(super) struct Angles {
    classified: Classified,
    /// `[N, C]`
    cosines: Tensor,
    /// Of the nearest weight of each class, `[N, C]`, where there are several.
    nearest: Option<Tensor>,
    sub_centers: i64,
}

impl Angles {
    /// `weight` is `[D, C · sub_centers]`, the weights of a class side by side.
    pub(super) fn f_new(
        input: &Tensor,
        weight: &Tensor,
        target: &Tensor,
        sub_centers: i64,
    ) -> Result<Angles, LossError> {
        check::devices(&[("input", input), ("weight", weight), ("target", target)])?;
        check::option("sub_centers", sub_centers, sub_centers > 0, "a number > 0")?;
        let features = input.size().get(1).copied().unwrap_or(0);
        match weight.size()[..] {
            [rows, columns] if rows == features && columns > 0 && columns % sub_centers == 0 => (),
            _ => {
                let expected = match sub_centers {
                    1 => format!("[{features}, C], one column for each class"),
                    _ => format!("[{features}, {sub_centers} C], {sub_centers} columns for each class"),
                };
                return Err(check::shape_error(("weight", weight), expected));
            }
        }
        let rows = weight.f_transpose(0, 1)?;
        let mut classified = Classified::f_new(input, ("weight", &rows), target, sub_centers)?;
        let cosine = EmbeddingDistance::cosine();
        classified.embeddings = cosine.f_prepared(&classified.embeddings, classified.wide)?;
        classified.vectors = cosine.f_prepared(&classified.vectors, classified.wide)?;
        let cosines = classified.embeddings.f_matmul(&classified.vectors.f_transpose(0, 1)?)?;
        if sub_centers == 1 {
            return Ok(Angles { classified, cosines, nearest: None, sub_centers });
        }
        let classes = rows.size()[0] / sub_centers;
        let (cosines, nearest) = cosines.f_view([-1, classes, sub_centers])?.f_max_dim(2, false)?;
        Ok(Angles { classified, cosines, nearest: Some(nearest), sub_centers })
    }

    /// The cosine of each embedding with the weight of its class.
    pub(super) fn f_own_cosines(&self) -> Result<Tensor, LossError> {
        self.classified.f_own(&self.cosines)
    }

    /// The angle of each embedding to the weight of its class, 2 atan2(‖a − b‖, ‖a + b‖): near 0 and π it keeps the digits
    /// that the cosine has lost, and its gradient is finite.
    pub(super) fn f_own_angles(&self) -> Result<Tensor, LossError> {
        let Classified { embeddings, vectors, classes, .. } = &self.classified;
        let rows = match &self.nearest {
            Some(nearest) => classes.f_mul_scalar(self.sub_centers)?.f_add(&self.classified.f_own(nearest)?)?,
            None => classes.shallow_clone(),
        };
        let own = vectors.f_index_select(0, &rows)?;
        let norm = |rows: Tensor| rows.f_norm_scalaropt_dim(2, [1_i64].as_slice(), false);
        let (apart, together) = (norm(embeddings.f_sub(&own)?)?, norm(embeddings.f_add(&own)?)?);
        Ok(apart.f_atan2(&together)?.f_mul_scalar(2)?)
    }

    /// Cross entropy of the scaled cosines, with `own` in place of those of the embeddings' own classes.
    pub(super) fn f_loss(&self, own: &Tensor, scale: f64, reduction: EmbeddingReduction) -> Result<Tensor, LossError> {
        let classes = &self.classified.classes;
        let logits = self.cosines.f_scatter(1, &classes.f_unsqueeze(1)?, &own.f_unsqueeze(1)?)?.f_mul_scalar(scale)?;
        let losses = CrossEntropyLoss::new().reduction(Reduction::None).f_forward(&logits, classes)?;
        self.classified.f_narrow(&reduction.f_apply(&losses, None)?)
    }
}
