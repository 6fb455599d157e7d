use tch::{Kind, Tensor};

use super::Group;
use crate::kernels::NumberOperations;
use crate::numeric::f_positions;
use crate::{EmbeddingPairs, LossError, check};

impl EmbeddingPairs {
    /// The pairs of each embedding of this rank with those of all ranks but itself, by their `labels` `[N]`, of which
    /// each rank brings its own. The others are positions among the embeddings of all ranks, one rank after the other.
    ///
    /// With them a rank computes the losses of its own embeddings alone, n·N of the N² pairs that
    /// [`f_forward_over_ranks`](crate::EmbeddingLoss::f_forward_over_ranks) has on each rank. The average of their sums,
    /// times the number of ranks, is the sum of one process, with its gradient; so are those of means over embeddings
    /// where each rank has as many. A mean over what costs something, which is the default of most losses, is another
    /// one on each rank. pytorch-metric-learning has that as `DistributedLossWrapper(efficient=True)`, whose references
    /// have no gradient.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use tch::Tensor;
    /// use tch_losses::distributed::Group;
    /// use tch_losses::{EmbeddingLoss, EmbeddingPairs, EmbeddingReduction, Loss, SupConLoss};
    ///
    /// # let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    /// # let group = Group::new(&format!("127.0.0.1:{free}"), 0, 1, Duration::from_secs(30))?;
    /// # let embeddings = Tensor::from_slice(&[1.0, 0.0, 1.0, 0.2, 0.0, 1.0]).view([3, 2]).set_requires_grad(true);
    /// # let labels = Tensor::from_slice(&[0_i64, 0, 1]);
    /// let all = group.f_gather_data_parallel(&embeddings)?;
    /// let pairs = EmbeddingPairs::f_over_ranks(&labels, &group)?;
    /// let loss = SupConLoss::new().reduction(EmbeddingReduction::Mean);
    /// let own = loss.f_forward_pairs(&embeddings, &pairs, Some(&all))?;
    /// # let (own, whole) = (f64::try_from(own)?, f64::try_from(loss.f_forward(&embeddings, &labels)?)?);
    /// # assert!((own - whole).abs() <= 1e-12 * whole, "{own} {whole}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`LossError::Shape`] or [`LossError::Kind`] for labels that do not fit, and those of
    /// [`Group::f_all_gather`].
    pub fn f_over_ranks(labels: &Tensor, group: &Group) -> Result<Self, LossError> {
        let checked = check::devices(&[("labels", labels)])
            .and_then(|()| check::shape(("labels", labels), labels.dim() == 1, "[N], one label for each embedding"))
            .and_then(|()| check::integers(("labels", labels)));
        let all = group.f_shards_detached(&group.f_or_refuse(checked)?)?;
        let options = (Kind::Int64, labels.device());
        let own = f_positions(all.rows, options)?.f_add_number(all.first)?.f_unsqueeze(1)?;
        let itself = own.f_eq_tensor(&f_positions(all.total(), options)?)?;
        let own_labels = all.all.f_narrow(0, all.first, all.rows)?;
        let same = own_labels.f_unsqueeze(1)?.f_eq_tensor(&all.all)?;
        let places = |mask: &Tensor| {
            let places = mask.f_nonzero()?;
            Ok::<_, LossError>([places.f_select(1, 0)?, places.f_select(1, 1)?])
        };
        let [anchors, positives] = places(&same.f_logical_and(&itself.f_logical_not()?)?)?;
        let [negative_anchors, negatives] = places(&same.f_logical_not()?)?;
        Ok(Self::pairs(&anchors, &positives, &negative_anchors, &negatives))
    }
}
