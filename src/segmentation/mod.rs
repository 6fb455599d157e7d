//! Losses of segmentation: overlap of regions and distance of boundaries.

mod activation;
mod compound;
mod dice;
mod dice_cross_entropy;
mod dice_focal;
mod distance_transform;
mod focal_tversky;
mod generalized_dice;
mod hausdorff;
mod jaccard;
mod lovasz;
mod lovasz_hinge;
mod lovasz_softmax;
mod mask;
mod mcc;
mod region;
mod soft_cldice;
mod soft_dice_cldice;
mod tversky;

pub use activation::Activation;
pub use compound::Overlap;
pub use dice::DiceLoss;
pub use dice_cross_entropy::{CrossEntropyPart, DiceCrossEntropyLoss};
pub use dice_focal::{DiceFocalLoss, FocalPart};
pub use focal_tversky::{FocalPower, FocalTverskyLoss};
pub use generalized_dice::{GeneralizedDiceLoss, VolumeWeight};
pub use hausdorff::{HausdorffDtLoss, NoBoundary};
pub use jaccard::JaccardLoss;
pub use lovasz_hinge::LovaszHingeLoss;
pub use lovasz_softmax::{LovaszClasses, LovaszSoftmaxLoss};
pub use mcc::MccLoss;
pub use region::{EmptyMask, Grouping, IgnoreScope, OverlapMeasure, WeightedMean};
pub use soft_cldice::SoftClDiceLoss;
pub use soft_dice_cldice::SoftDiceClDiceLoss;
pub use tversky::TverskyLoss;
