//! What the losses of images and texts over all ranks share.

use tch::Tensor;

use super::{Group, Shards};
use crate::kernels::NumberOperations;
use crate::{LossError, Reduction};

/// How [`ClipLoss`](crate::ClipLoss) is computed over the batches of all ranks: open_clip's options.
///
/// open_clip's defaults are `local_loss(false).gather_with_grad(false)`. The defaults here have the right gradient, with
/// the least work.
///
/// | `local_loss` | `gather_with_grad` | each rank computes | gradient, averaged over W ranks |
/// |---|---|---|---|
/// | true | true | the rows of its own batch | that of one process |
/// | false | true | all rows | that of one process |
/// | true | false | the rows of its own batch | without the part that its rows have as others' candidates |
/// | false | false | all rows | 1/W of that of one process |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GlobalBatch {
    pub(crate) local_loss: bool,
    pub(crate) gather_with_grad: bool,
}

impl Default for GlobalBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl GlobalBatch {
    /// The rows of the own batch, with the gradient of one process.
    pub fn new() -> Self {
        Self { local_loss: true, gather_with_grad: true }
    }

    /// Sets whether a rank computes the rows of its own batch alone, N·n of N² logits. Default: true.
    pub fn local_loss(mut self, local_loss: bool) -> Self {
        self.local_loss = local_loss;
        self
    }

    /// Sets whether the embeddings of other ranks get a gradient from this one. Default: true.
    pub fn gather_with_grad(mut self, gather_with_grad: bool) -> Self {
        self.gather_with_grad = gather_with_grad;
        self
    }

    /// The rows of all ranks.
    pub(crate) fn f_shards(self, rows: &Tensor, group: &Group) -> Result<Shards, LossError> {
        if self.gather_with_grad {
            return group.f_shards(rows);
        }
        let shards = group.f_shards_detached(rows)?;
        if self.local_loss {
            return Ok(shards);
        }
        // The own rows have their graph, as in open_clip.
        let end = shards.first + shards.rows;
        let before = shards.all.f_narrow(0, 0, shards.first)?;
        let after = shards.all.f_narrow(0, end, shards.total() - end)?;
        Ok(Shards { all: Tensor::f_cat(&[&before, rows, &after], 0)?, ..shards })
    }
}

/// The reduction of the losses of this rank, of `total` on all ranks, whose average over ranks is that of one process.
pub(crate) fn f_reduce_own(
    reduction: Reduction,
    losses: &Tensor,
    group: &Group,
    total: i64,
) -> Result<Tensor, LossError> {
    let ranks = group.world_size() as f64;
    match reduction {
        Reduction::None => Ok(losses.shallow_clone()),
        Reduction::Sum => Ok(losses.f_sum(None)?.f_mul_number(ranks)?),
        Reduction::Mean => Ok(losses.f_sum(None)?.f_mul_number(ranks / total as f64)?),
    }
}
