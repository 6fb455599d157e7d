//! Losses of distances between embeddings, and of rankings.

mod cosine_embedding;
mod hinge_embedding;
mod margin_ranking;
mod triplet;
mod triplet_margin;
mod triplet_margin_with_distance;

pub use cosine_embedding::CosineEmbeddingLoss;
pub use hinge_embedding::HingeEmbeddingLoss;
pub use margin_ranking::MarginRankingLoss;
pub use triplet_margin::TripletMarginLoss;
pub use triplet_margin_with_distance::TripletMarginWithDistanceLoss;

use crate::LossError;
use crate::check::{self, Named};

/// `tensor` has the shape of `other`, or is broadcast against it where that is allowed, in as many dimensions.
fn same_shape_or_broadcast_in_rank(tensor: Named, other: Named, broadcast: bool) -> Result<(), LossError> {
    let rank = other.1.dim();
    if broadcast && tensor.1.dim() != rank {
        let expected = format!("{rank} dimensions, as many as {}", other.0);
        return Err(check::shape_error(tensor, expected));
    }
    check::same_shape_or_broadcast(tensor, other, broadcast)
}
