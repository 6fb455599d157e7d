//! Losses of distances between embeddings, and of rankings.

pub(crate) mod angle;
mod arc_face;
mod batch;
mod batch_triplet_margin;
mod circle;
mod class_vectors;
mod contrastive;
mod cos_face;
mod cosine_embedding;
mod distance;
mod generalized_lifted_structure;
mod hinge_embedding;
mod lifted_structure;
mod margin_ranking;
mod multi_similarity;
mod n_pairs;
mod nt_xent;
mod pairs;
mod proxy_anchor;
mod proxy_nca;
mod reducer;
mod sup_con;
mod triplet;
mod triplet_margin;
mod triplet_margin_with_distance;

pub use arc_face::{ArcFace, ArcFaceLoss};
pub use batch::EmbeddingLoss;
pub use batch_triplet_margin::{BatchTripletMarginLoss, TripletMining};
pub use circle::CircleLoss;
pub use contrastive::ContrastiveLoss;
pub use cos_face::{CosFace, CosFaceLoss};
pub use cosine_embedding::CosineEmbeddingLoss;
pub use distance::EmbeddingDistance;
pub use generalized_lifted_structure::GeneralizedLiftedStructureLoss;
pub use hinge_embedding::HingeEmbeddingLoss;
pub use lifted_structure::LiftedStructureLoss;
pub use margin_ranking::MarginRankingLoss;
pub use multi_similarity::MultiSimilarityLoss;
pub use n_pairs::NPairsLoss;
pub use nt_xent::NtXentLoss;
pub use pairs::EmbeddingPairs;
pub use proxy_anchor::{ProxyAnchor, ProxyAnchorLoss};
pub use proxy_nca::{ProxyNca, ProxyNcaLoss};
pub use reducer::{AnchorReduction, EmbeddingReduction};
pub use sup_con::SupConLoss;
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
