//! Losses of segmentation: overlap of regions and distance of boundaries.
//!
//! [`DiceCrossEntropyLoss`] is where to begin. [`DiceLoss`] alone where the foreground is small, [`TverskyLoss`] where
//! a missed pixel costs more than a wrong one, [`LovaszSoftmaxLoss`] to end a training for the IoU, [`SoftClDiceLoss`]
//! beside another loss where vessels or roads must not break, [`HausdorffDtLoss`] beside another loss where the
//! boundary counts.
//!
//! # Segmentation
//!
//! These need the feature `segmentation`.
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`DiceLoss`] | overlap, also of a small foreground | `monai.losses.DiceLoss`, smp `DiceLoss`, kornia `DiceLoss` | `input, target` |
//! | [`JaccardLoss`] | the IoU itself | smp `JaccardLoss`, `monai.losses.DiceLoss(jaccard=True)` | `input, target` |
//! | [`TverskyLoss`] | misses that cost more than false alarms, or less | `monai.losses.TverskyLoss`, smp `TverskyLoss`, kornia `TverskyLoss` | `input, target` |
//! | [`FocalTverskyLoss`] | the same, with more for regions that are hard | smp `TverskyLoss(gamma)`, the focal Tversky paper | `input, target` |
//! | [`GeneralizedDiceLoss`] | classes of very different sizes | `monai.losses.GeneralizedDiceLoss` | `input, target` |
//! | [`LovaszHingeLoss`] | the IoU of a binary mask, convexly | smp `LovaszLoss`, kornia `lovasz_hinge_loss` | `input, target` |
//! | [`LovaszSoftmaxLoss`] | the mean IoU of classes | smp `LovaszLoss`, kornia `lovasz_softmax_loss` | `input, target` |
//! | [`MccLoss`] | a binary mask whose classes are unbalanced | smp `MCCLoss` | `input, target` |
//! | [`HausdorffDtLoss`] | how far boundaries are apart | `monai.losses.HausdorffDTLoss`, `LogHausdorffDTLoss` | `input, target` |
//! | [`SoftClDiceLoss`] | tubes that must not break | `monai.losses.SoftclDiceLoss` | `input, target` |
//! | [`SoftDiceClDiceLoss`] | the same beside overlap | `monai.losses.SoftDiceclDiceLoss` | `input, target` |
//! | [`DiceCrossEntropyLoss`] | overlap and each pixel: where to begin | `monai.losses.DiceCELoss` | `input, target` |
//! | [`DiceFocalLoss`] | the same, where most pixels are easy | `monai.losses.DiceFocalLoss`, `GeneralizedDiceFocalLoss` | `input, target` |

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
