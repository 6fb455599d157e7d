use tch::{Kind, Tensor};

use super::ClipLoss;
use crate::distributed::{GlobalBatch, Group, f_reduce_own};
use crate::kernels::NumberOperations;
use crate::numeric::{f_matrix_product, f_positions, result_kind, wide_kind};
use crate::self_supervised::logits::{LogitParameter, f_rows, pairs};
use crate::{CrossEntropyLoss, Loss, LossError, Reduction, check};

/// What is checked before ranks meet.
struct Rows {
    /// The rows of images and texts side by side, so that they are gathered at once.
    both: Tensor,
    logit_scale: Tensor,
}

impl ClipLoss {
    /// Computes the loss of the batches of all ranks of a group, which may be of different sizes: among the texts of all
    /// ranks, the one of each image, and the other way round. Options are open_clip's.
    ///
    /// The average of the results over ranks is the loss of one process with the whole batch, and so is the average of
    /// the gradients, unless the [options](GlobalBatch) say otherwise. With [`Reduction::None`] a rank has the losses of
    /// its own images, or of all where the loss is not local.
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward), and those of
    /// [`Group::f_gather_data_parallel`](Group::f_gather_data_parallel).
    pub fn f_forward_over_ranks<'a>(
        &self,
        image: &Tensor,
        text: &Tensor,
        logit_scale: impl Into<LogitParameter<'a>>,
        group: &Group,
        options: GlobalBatch,
    ) -> Result<Tensor, LossError> {
        let group = &group.of_options(self, &format!(" over {options:?}"));
        let own = group.f_or_refuse(self.f_checked_rows(image, text, logit_scale.into()))?;
        let shards = options.f_shards(&own.both, group)?;
        let entropy = CrossEntropyLoss::new().label_smoothing(self.label_smoothing).reduction(Reduction::None);
        let [images, texts] = f_halves(&shards.all)?;
        let (rows, first) =
            if options.local_loss { (f_halves(&own.both)?, shards.first) } else { (f_halves(&shards.all)?, 0) };
        let target = f_positions(rows[0].size()[0], (Kind::Int64, image.device()))?.f_add_number(first)?;
        let losses = |rows: &Tensor, candidates: &Tensor| {
            let logits = f_matrix_product(rows, &candidates.f_transpose(0, 1)?)?.f_mul(&own.logit_scale)?;
            entropy.f_forward(&logits, &target)
        };
        let losses = losses(&rows[0], &texts)?.f_add(&losses(&rows[1], &images)?)?.f_mul_number(0.5)?;
        let loss = match options.local_loss {
            true => f_reduce_own(self.reduction, &losses, group, shards.total())?,
            false => self.reduction.f_apply(&losses)?,
        };
        Ok(loss.f_to_kind(result_kind(image)?)?)
    }

    fn f_checked_rows(&self, image: &Tensor, text: &Tensor, logit_scale: LogitParameter) -> Result<Rows, LossError> {
        pairs(image, text)?;
        check::share("label_smoothing", self.label_smoothing)?;
        let kind = wide_kind(image)?;
        let rows = |embeddings: &Tensor| f_rows(embeddings, kind, self.normalize);
        let both = Tensor::f_cat(&[rows(image)?, rows(text)?], 1)?;
        let logit_scale = logit_scale.f_like("logit_scale", &both)?;
        Ok(Rows { both, logit_scale })
    }
}

/// Images and texts that stand side by side.
fn f_halves(both: &Tensor) -> Result<[Tensor; 2], LossError> {
    let features = both.size()[1] / 2;
    Ok([both.f_narrow(1, 0, features)?, both.f_narrow(1, features, features)?])
}
