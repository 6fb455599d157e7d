//! Losses of embeddings, and of rankings.
//!
//! With labels for a batch, [`SupConLoss`], [`MultiSimilarityLoss`] or [`BatchTripletMarginLoss`] with semi-hard mining
//! are where to begin; with pairs alone, [`NtXentLoss`]. Where the classes are known while training, as of faces, a
//! vector for each class converges faster: [`ArcFaceLoss`], [`ProxyAnchorLoss`]. The losses of torch.nn take pairs and
//! triplets that you have made yourself.
//!
//! # Of torch.nn
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`HingeEmbeddingLoss`] | distances of pairs that are alike or not | `nn.HingeEmbeddingLoss` | `input, target` |
//! | [`CosineEmbeddingLoss`] | pairs of embeddings that are alike or not, by their angle | `nn.CosineEmbeddingLoss` | `input1, input2, target` |
//! | [`MarginRankingLoss`] | pairs of scores of which one shall be higher | `nn.MarginRankingLoss` | `input1, input2, target` |
//! | [`TripletMarginLoss`] | triplets of embeddings | `nn.TripletMarginLoss` | `anchor, positive, negative` |
//! | [`TripletMarginWithDistanceLoss`] | triplets, by a distance of your own | `nn.TripletMarginWithDistanceLoss` | `anchor, positive, negative` |
//!
//! # Embeddings of a batch, by their labels
//!
//! These need the feature `metric`. They share [`EmbeddingLoss`], and take an [`EmbeddingDistance`] and an
//! [`EmbeddingReduction`].
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`ContrastiveLoss`] | a first baseline; distances that mean something | pml `ContrastiveLoss` | `input, target` |
//! | [`NtXentLoss`] | two views of each sample: SimCLR, InfoNCE | pml `NTXentLoss` | `input, target` |
//! | [`SupConLoss`] | several samples of each class | pml `SupConLoss` | `input, target` |
//! | [`MultiSimilarityLoss`] | retrieval of images | pml `MultiSimilarityLoss` | `input, target` |
//! | [`CircleLoss`] | pairs that count by how far they are from where they should be | pml `CircleLoss` | `input, target` |
//! | [`NPairsLoss`] | two samples of each class, and many classes | pml `NPairsLoss` | `input, target` |
//! | [`NcaLoss`] | nearest neighbours, also of classes in several clusters | pml `NCALoss` | `input, target` |
//! | [`LiftedStructureLoss`] | each positive pair against all its negatives | pml `LiftedStructureLoss` | `input, target` |
//! | [`GeneralizedLiftedStructureLoss`] | all positives of an anchor at once, as in re-identification | pml `GeneralizedLiftedStructureLoss` | `input, target` |
//! | [`BatchTripletMarginLoss`] | triplets that are mined in the batch | pml `TripletMarginLoss`, `BatchHardMiner`, `TripletMarginMiner` | `input, target` |
//!
//! # Embeddings, with a vector for each class
//!
//! These need the feature `metric`.
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`ArcFaceLoss`] | faces; classes apart by an angle | pml `ArcFaceLoss`, `SubCenterArcFaceLoss` | `input, target` |
//! | [`ArcFace`] | the same with weights that are passed in | the same | `input, weight, target` |
//! | [`CosFaceLoss`] | the same by a cosine | pml `CosFaceLoss` | `input, target` |
//! | [`CosFace`] | the same with weights that are passed in | the same | `input, weight, target` |
//! | [`ProxyAnchorLoss`] | retrieval: each class against the whole batch | pml `ProxyAnchorLoss` | `input, target` |
//! | [`ProxyAnchor`] | the same with proxies that are passed in | the same | `input, proxies, target` |
//! | [`ProxyNcaLoss`] | each embedding against the proxies of all classes | pml `ProxyNCALoss` | `input, target` |
//! | [`ProxyNca`] | the same with proxies that are passed in | the same | `input, proxies, target` |

pub(crate) mod angle;
#[cfg(feature = "metric")]
mod arc_face;
#[cfg(feature = "metric")]
mod batch;
#[cfg(feature = "metric")]
mod batch_triplet_margin;
#[cfg(feature = "metric")]
mod circle;
#[cfg(feature = "metric")]
mod class_vectors;
#[cfg(feature = "metric")]
mod contrastive;
#[cfg(feature = "metric")]
mod cos_face;
mod cosine_embedding;
#[cfg(feature = "metric")]
mod distance;
#[cfg(feature = "metric")]
mod generalized_lifted_structure;
mod hinge_embedding;
#[cfg(feature = "metric")]
mod lifted_structure;
mod margin_ranking;
#[cfg(feature = "metric")]
mod multi_similarity;
#[cfg(feature = "metric")]
mod n_pairs;
#[cfg(feature = "metric")]
mod nca;
#[cfg(feature = "metric")]
mod nt_xent;
#[cfg(feature = "metric")]
mod pairs;
#[cfg(feature = "metric")]
mod proxy_anchor;
#[cfg(feature = "metric")]
mod proxy_nca;
#[cfg(feature = "metric")]
mod reducer;
#[cfg(feature = "metric")]
mod sup_con;
mod triplet;
mod triplet_margin;
mod triplet_margin_with_distance;

#[cfg(feature = "metric")]
pub use self::{
    arc_face::{ArcFace, ArcFaceLoss},
    batch::EmbeddingLoss,
    batch_triplet_margin::{BatchTripletMarginLoss, TripletMining},
    circle::CircleLoss,
    contrastive::ContrastiveLoss,
    cos_face::{CosFace, CosFaceLoss},
    distance::EmbeddingDistance,
    generalized_lifted_structure::GeneralizedLiftedStructureLoss,
    lifted_structure::LiftedStructureLoss,
    multi_similarity::MultiSimilarityLoss,
    n_pairs::NPairsLoss,
    nca::NcaLoss,
    nt_xent::NtXentLoss,
    pairs::EmbeddingPairs,
    proxy_anchor::{ProxyAnchor, ProxyAnchorLoss},
    proxy_nca::{ProxyNca, ProxyNcaLoss},
    reducer::{AnchorReduction, EmbeddingReduction},
    sup_con::SupConLoss,
};
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
    let fits = !broadcast || tensor.1.dim() == rank;
    check::shape(tensor, fits, format_args!("{rank} dimensions, as many as {}", other.0))?;
    check::same_shape_or_broadcast(tensor, other, broadcast)
}
