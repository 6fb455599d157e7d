use tch::{Kind, Tensor};

use super::{SigLipLoss, f_losses};
use crate::LossError;
use crate::distributed::{Group, f_reduce_own};
use crate::kernels::NumberOperations;
use crate::numeric::{f_matrix_product, f_positions, result_kind, wide_kind};
use crate::self_supervised::logits::{LogitParameter, f_rows, pairs};

/// What is checked before ranks meet.
pub(super) struct Rows {
    pub(super) images: Tensor,
    pub(super) texts: Tensor,
    pub(super) logit_scale: Tensor,
    pub(super) logit_bias: Tensor,
}

impl SigLipLoss {
    /// Computes the loss of the batches of all ranks of a group, which may be of different sizes: each image of this
    /// rank with the texts of all ranks, which are gathered. open_clip's loss is this one with `dist_impl="gather"`; its
    /// exchanges of neighbours give the same numbers, and are
    /// [`f_forward_over_neighbours`](Self::f_forward_over_neighbours).
    ///
    /// The average of the results over ranks is the loss of one process with the whole batch, and so is the average of
    /// the gradients. With [`Reduction::None`](crate::Reduction::None) a rank has the losses of its own images.
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward), and those of
    /// [`Group::f_gather_data_parallel`](Group::f_gather_data_parallel).
    pub fn f_forward_over_ranks<'a, 'b>(
        &self,
        image: &Tensor,
        text: &Tensor,
        logit_scale: impl Into<LogitParameter<'a>>,
        logit_bias: impl Into<LogitParameter<'b>>,
        group: &Group,
    ) -> Result<Tensor, LossError> {
        let group = &group.of_options(self, "");
        let checked = self.f_checked_rows(image, text, logit_scale.into(), logit_bias.into());
        let (losses, total) = group.f_or_refuse(checked)?.f_gathered_losses(group)?;
        Ok(f_reduce_own(self.reduction, &losses, group, total)?.f_to_kind(result_kind(image)?)?)
    }

    pub(super) fn f_checked_rows(
        &self,
        image: &Tensor,
        text: &Tensor,
        logit_scale: LogitParameter,
        logit_bias: LogitParameter,
    ) -> Result<Rows, LossError> {
        pairs(image, text)?;
        let kind = wide_kind(image)?;
        let [images, texts] = [f_rows(image, kind, self.normalize)?, f_rows(text, kind, self.normalize)?];
        let logit_scale = logit_scale.f_like("logit_scale", &images)?;
        let logit_bias = logit_bias.f_like("logit_bias", &images)?;
        Ok(Rows { images, texts, logit_scale, logit_bias })
    }
}

impl Rows {
    /// The losses of the own images with the texts of all ranks, and how many images all ranks have.
    pub(super) fn f_gathered_losses(&self, group: &Group) -> Result<(Tensor, i64), LossError> {
        let texts = group.f_shards(&self.texts)?;
        let positions = |count| f_positions(count, (Kind::Int64, self.images.device()));
        let own_texts = positions(texts.rows)?.f_add_number(texts.first)?.f_unsqueeze(1)?;
        let together = own_texts.f_eq_tensor(&positions(texts.total())?)?;
        let similarities = f_matrix_product(&self.images, &texts.all.f_transpose(0, 1)?)?;
        let losses = f_losses(&similarities, &self.logit_scale, &self.logit_bias, Some(&together))?;
        Ok((losses, texts.total()))
    }
}
