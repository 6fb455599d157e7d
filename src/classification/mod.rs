//! Losses of classification.
//!
//! [`CrossEntropyLoss`] where a sample has one class, [`BceWithLogitsLoss`] where it may have several labels, or none.
//! Where easy samples are so many that they hide the hard ones, take a focal loss: [`SoftmaxFocalLoss`] or
//! [`SigmoidFocalLoss`]. The hinge losses want margins between scores and give no probabilities.
//!
//! # Of torch.nn
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`CrossEntropyLoss`] | one class for each sample: logits | `nn.CrossEntropyLoss` | `input, target` |
//! | [`NllLoss`] | one class for each sample: log-probabilities | `nn.NLLLoss`, `nn.NLLLoss2d` | `input, target` |
//! | [`BceLoss`] | several labels for each sample: probabilities | `nn.BCELoss` | `input, target` |
//! | [`BceWithLogitsLoss`] | several labels for each sample: logits | `nn.BCEWithLogitsLoss` | `input, target` |
//! | [`SoftMarginLoss`] | labels of 1 and −1: logits | `nn.SoftMarginLoss` | `input, target` |
//! | [`MultiMarginLoss`] | one class, by a margin over the others | `nn.MultiMarginLoss` | `input, target` |
//! | [`MultiLabelMarginLoss`] | several labels, by a margin over the other classes | `nn.MultiLabelMarginLoss` | `input, target` |
//! | [`MultiLabelSoftMarginLoss`] | several labels, averaged over the classes | `nn.MultiLabelSoftMarginLoss` | `input, target` |
//!
//! # Focal and other losses of classification
//!
//! All but the last need the feature `classification`.
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`SigmoidFocalLoss`] | labels of which nearly all are negative, as in detection | `torchvision.ops.sigmoid_focal_loss`, kornia `BinaryFocalLossWithLogits`, `monai.losses.FocalLoss`, smp `FocalLoss` | `input, target` |
//! | [`SoftmaxFocalLoss`] | one class, where easy samples are many | kornia `FocalLoss`, `monai.losses.FocalLoss(use_softmax=True)` | `input, target` |
//! | [`OneVsRestFocalLoss`] | one class, by a sigmoid for each | smp `FocalLoss` (multiclass) | `input, target` |
//! | [`AsymmetricMultiLabelLoss`] | several labels out of many, most of them absent | `timm.loss.AsymmetricLossMultiLabel` | `input, target` |
//! | [`AsymmetricSingleLabelLoss`] | the same of one label | `timm.loss.AsymmetricLossSingleLabel` | `input, target` |
//! | [`JsdCrossEntropyLoss`] | samples beside their augmentations (AugMix) | `timm.loss.JsdCrossEntropy` | `input, target` |
//! | [`PolyCrossEntropyLoss`] | cross entropy with another first term | `timm.loss.PolyCrossEntropy` | `input, target` |
//! | [`PolyBceWithLogitsLoss`] | binary cross entropy with another first term | `timm.loss.PolyBinaryCrossEntropy` | `input, target` |
//! | [`SoftBceWithLogitsLoss`] | labels that are smoothed, thresholded or ignored | smp `SoftBCEWithLogitsLoss`, `timm.loss.BinaryCrossEntropy` | `input, target` |
//! | [`HingeLoss`] | yes or no, by a margin | Keras `Hinge`, `SquaredHinge` | `input, target` |
//! | [`CategoricalHingeLoss`] | one class, by a margin over the best other one | Keras `CategoricalHinge` | `input, target` |
//! | [`CrossEntropyLoss`] | class probabilities as targets, smoothed labels | `timm.loss.SoftTargetCrossEntropy`, `LabelSmoothingCrossEntropy`, smp `SoftCrossEntropyLoss` | `input, target` |

#[cfg(feature = "classification")]
mod asymmetric_multi_label;
#[cfg(feature = "classification")]
mod asymmetric_single_label;
mod bce;
mod bce_with_logits;
#[cfg(feature = "classification")]
mod categorical_hinge;
mod cross_entropy;
#[cfg(feature = "classification")]
mod focal;
#[cfg(feature = "classification")]
mod hinge;
#[cfg(feature = "classification")]
mod jsd_cross_entropy;
mod mean_over;
mod multi_label;
mod multi_label_margin;
mod multi_label_soft_margin;
mod multi_margin;
mod nll;
#[cfg(feature = "classification")]
mod one_vs_rest_focal;
#[cfg(feature = "classification")]
mod poly_bce_with_logits;
#[cfg(feature = "classification")]
mod poly_cross_entropy;
#[cfg(feature = "classification")]
mod sigmoid_focal;
#[cfg(feature = "classification")]
mod soft_bce_with_logits;
mod soft_margin;
#[cfg(feature = "classification")]
mod softmax_focal;

#[cfg(feature = "classification")]
pub use self::{
    asymmetric_multi_label::AsymmetricMultiLabelLoss,
    asymmetric_single_label::AsymmetricSingleLabelLoss,
    categorical_hinge::CategoricalHingeLoss,
    focal::{FocalAlpha, FocalNormalization},
    hinge::{HingeLoss, HingeTargets},
    jsd_cross_entropy::JsdCrossEntropyLoss,
    one_vs_rest_focal::OneVsRestFocalLoss,
    poly_bce_with_logits::PolyBceWithLogitsLoss,
    poly_cross_entropy::PolyCrossEntropyLoss,
    sigmoid_focal::{FocalSoftTargets, SigmoidFocalLoss},
    soft_bce_with_logits::SoftBceWithLogitsLoss,
    softmax_focal::SoftmaxFocalLoss,
};
pub use bce::BceLoss;
pub use bce_with_logits::BceWithLogitsLoss;
pub use cross_entropy::CrossEntropyLoss;
pub use mean_over::MeanOver;
pub use multi_label::MultiLabelReduction;
pub use multi_label_margin::MultiLabelMarginLoss;
pub use multi_label_soft_margin::MultiLabelSoftMarginLoss;
pub use multi_margin::MultiMarginLoss;
pub use nll::NllLoss;
pub use soft_margin::SoftMarginLoss;
