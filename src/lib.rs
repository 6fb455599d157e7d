//! All losses of PyTorch for Rust on libtorch ([tch]), with values and gradients proved equal to PyTorch's.
//!
//! ```
//! use tch::Tensor;
//! use tch_losses::{CrossEntropyLoss, Loss};
//!
//! let criterion = CrossEntropyLoss::new().label_smoothing(0.1).ignore_index(255);
//!
//! let logits = Tensor::from_slice(&[2.0_f32, 0.5, -1.0, 0.0, 0.0, 3.0]).view([2, 3]).set_requires_grad(true);
//! let target = Tensor::from_slice(&[0_i64, 255]);
//!
//! let loss = criterion.forward(&logits, &target); // panics with one clear line, at this line
//! let same = criterion.f_forward(&logits, &target)?; // the same, as a Result
//! loss.backward();
//! # assert_eq!(f64::try_from(&loss)?, f64::try_from(&same)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Names are PyTorch's in Rust's casing, options are PyTorch's keyword arguments with PyTorch's defaults, and what
//! PyTorch rejects is a [`LossError`] here. A loss differs from its original only where that is safer; its page says so
//! under "Differences from PyTorch".
//!
//! # The losses
//!
//! | PyTorch | here | arguments |
//! |---|---|---|
//! | **regression** | | |
//! | `nn.L1Loss` | [`L1Loss`] | `input, target` |
//! | `nn.MSELoss` | [`MseLoss`] | `input, target` |
//! | `nn.SmoothL1Loss` | [`SmoothL1Loss`] | `input, target` |
//! | `nn.HuberLoss` | [`HuberLoss`] | `input, target` |
//! | `nn.PoissonNLLLoss` | [`PoissonNllLoss`] | `input, target` |
//! | `nn.GaussianNLLLoss` | [`GaussianNllLoss`] | `input, target, var` |
//! | **classification** | | |
//! | `nn.CrossEntropyLoss` | [`CrossEntropyLoss`] | `input, target` |
//! | `nn.NLLLoss`, `nn.NLLLoss2d` | [`NllLoss`] | `input, target` |
//! | `nn.BCELoss` | [`BceLoss`] | `input, target` |
//! | `nn.BCEWithLogitsLoss` | [`BceWithLogitsLoss`] | `input, target` |
//! | `nn.SoftMarginLoss` | [`SoftMarginLoss`] | `input, target` |
//! | `nn.MultiMarginLoss` | [`MultiMarginLoss`] | `input, target` |
//! | `nn.MultiLabelMarginLoss` | [`MultiLabelMarginLoss`] | `input, target` |
//! | `nn.MultiLabelSoftMarginLoss` | [`MultiLabelSoftMarginLoss`] | `input, target` |
//! | **divergence** | | |
//! | `nn.KLDivLoss` | [`KlDivLoss`] | `input, target` |
//! | **metric** | | |
//! | `nn.HingeEmbeddingLoss` | [`HingeEmbeddingLoss`] | `input, target` |
//! | `nn.CosineEmbeddingLoss` | [`CosineEmbeddingLoss`] | `input1, input2, target` |
//! | `nn.MarginRankingLoss` | [`MarginRankingLoss`] | `input1, input2, target` |
//! | `nn.TripletMarginLoss` | [`TripletMarginLoss`] | `anchor, positive, negative` |
//! | `nn.TripletMarginWithDistanceLoss` | [`TripletMarginWithDistanceLoss`] | `anchor, positive, negative` |
//! | **sequence and large vocabularies** | | |
//! | `nn.CTCLoss` | [`CtcLoss`] | `log_probs, targets, input_lengths, target_lengths` |
//! | `nn.LinearCrossEntropyLoss` | [`LinearCrossEntropyLoss`] | `input, target` |
//! | `F.linear_cross_entropy` | [`LinearCrossEntropy`] | `input, linear_weight, target, linear_bias` |
//! | `nn.AdaptiveLogSoftmaxWithLoss` | [`AdaptiveLogSoftmaxWithLoss`] | `input, target` |
//!
//! # Losses of other packages
//!
//! All of them take `input, target`, except [`LinearCrossEntropy`], the losses of language models, [`TotalVariationLoss`],
//! which takes `input`, and where the table says so. pml is pytorch-metric-learning; its losses of pairs share
//! [`EmbeddingLoss`], too, and take an [`EmbeddingDistance`] and an [`EmbeddingReduction`].
//!
//! | original | here |
//! |---|---|
//! | **segmentation** | |
//! | `monai.losses.DiceLoss`, smp `DiceLoss`, kornia `DiceLoss` | [`DiceLoss`] |
//! | smp `JaccardLoss`, `monai.losses.DiceLoss(jaccard=True)` | [`JaccardLoss`] |
//! | `monai.losses.TverskyLoss`, smp `TverskyLoss`, kornia `TverskyLoss` | [`TverskyLoss`] |
//! | smp `TverskyLoss(gamma)`, the focal Tversky paper | [`FocalTverskyLoss`] |
//! | `monai.losses.GeneralizedDiceLoss` | [`GeneralizedDiceLoss`] |
//! | smp `LovaszLoss`, kornia `lovasz_hinge_loss` | [`LovaszHingeLoss`] |
//! | smp `LovaszLoss`, kornia `lovasz_softmax_loss` | [`LovaszSoftmaxLoss`] |
//! | smp `MCCLoss` | [`MccLoss`] |
//! | `monai.losses.HausdorffDTLoss`, `LogHausdorffDTLoss` | [`HausdorffDtLoss`] |
//! | `monai.losses.SoftclDiceLoss` | [`SoftClDiceLoss`] |
//! | `monai.losses.SoftDiceclDiceLoss` | [`SoftDiceClDiceLoss`] |
//! | `monai.losses.DiceCELoss` | [`DiceCrossEntropyLoss`] |
//! | `monai.losses.DiceFocalLoss`, `GeneralizedDiceFocalLoss` | [`DiceFocalLoss`] |
//! | **focal and other losses of classification** | |
//! | `torchvision.ops.sigmoid_focal_loss`, kornia `BinaryFocalLossWithLogits`, `monai.losses.FocalLoss`, smp `FocalLoss` | [`SigmoidFocalLoss`] |
//! | kornia `FocalLoss`, `monai.losses.FocalLoss(use_softmax=True)` | [`SoftmaxFocalLoss`] |
//! | smp `FocalLoss` (multiclass) | [`OneVsRestFocalLoss`] |
//! | `timm.loss.AsymmetricLossMultiLabel` | [`AsymmetricMultiLabelLoss`] |
//! | `timm.loss.AsymmetricLossSingleLabel` | [`AsymmetricSingleLabelLoss`] |
//! | `timm.loss.JsdCrossEntropy` | [`JsdCrossEntropyLoss`] |
//! | `timm.loss.PolyCrossEntropy` | [`PolyCrossEntropyLoss`] |
//! | `timm.loss.PolyBinaryCrossEntropy` | [`PolyBceWithLogitsLoss`] |
//! | smp `SoftBCEWithLogitsLoss`, `timm.loss.BinaryCrossEntropy` | [`SoftBceWithLogitsLoss`] |
//! | `timm.loss.SoftTargetCrossEntropy`, `LabelSmoothingCrossEntropy`, smp `SoftCrossEntropyLoss` | [`CrossEntropyLoss`] |
//! | Keras `Hinge`, `SquaredHinge` | [`HingeLoss`] |
//! | Keras `CategoricalHinge` | [`CategoricalHingeLoss`] |
//! | **detection** | |
//! | `torchvision.ops.generalized_box_iou_loss` | [`GeneralizedBoxIouLoss`] |
//! | `torchvision.ops.distance_box_iou_loss` | [`DistanceBoxIouLoss`] |
//! | `torchvision.ops.complete_box_iou_loss` | [`CompleteBoxIouLoss`] |
//! | quality focal loss (GFL paper) | [`QualityFocalLoss`] |
//! | distribution focal loss (GFL paper) | [`DistributionFocalLoss`] |
//! | varifocal loss (VFNet paper) | [`VarifocalLoss`] |
//! | **large vocabularies** | |
//! | `liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss` | [`LinearCrossEntropy`] |
//! | **embeddings of a batch, by their labels** | |
//! | pml `ContrastiveLoss` | [`ContrastiveLoss`] |
//! | pml `NTXentLoss` | [`NtXentLoss`] |
//! | pml `SupConLoss` | [`SupConLoss`] |
//! | pml `MultiSimilarityLoss` | [`MultiSimilarityLoss`] |
//! | pml `CircleLoss` | [`CircleLoss`] |
//! | pml `NPairsLoss` | [`NPairsLoss`] |
//! | pml `LiftedStructureLoss` | [`LiftedStructureLoss`] |
//! | pml `GeneralizedLiftedStructureLoss` | [`GeneralizedLiftedStructureLoss`] |
//! | pml `TripletMarginLoss`, `BatchHardMiner`, `TripletMarginMiner` | [`BatchTripletMarginLoss`] |
//! | **embeddings, with a vector for each class** | |
//! | pml `ArcFaceLoss`, `SubCenterArcFaceLoss` | [`ArcFaceLoss`], or [`ArcFace`] of `input, weight, target` |
//! | pml `CosFaceLoss` | [`CosFaceLoss`], or [`CosFace`] of `input, weight, target` |
//! | pml `ProxyAnchorLoss` | [`ProxyAnchorLoss`], or [`ProxyAnchor`] of `input, proxies, target` |
//! | pml `ProxyNCALoss` | [`ProxyNcaLoss`], or [`ProxyNca`] of `input, proxies, target` |
//! | **preferences and distillation of language models** | |
//! | `liger_kernel.chunked_loss.LigerFusedLinearDPOLoss` | [`DpoLoss`], [`LinearPreference`] |
//! | IPO (paper) | [`IpoLoss`], [`LinearPreference`] |
//! | `liger_kernel.chunked_loss.LigerFusedLinearORPOLoss` | [`OrpoLoss`], [`LinearPreference`] |
//! | `liger_kernel.chunked_loss.LigerFusedLinearSimPOLoss` | [`SimpoLoss`], [`LinearPreference`] |
//! | `liger_kernel.chunked_loss.LigerFusedLinearCPOLoss` | [`CpoLoss`], [`LinearPreference`] |
//! | `liger_kernel.chunked_loss.LigerFusedLinearKTOLoss` | [`KtoLoss`], [`LinearKto`] |
//! | `liger_kernel.chunked_loss.LigerFusedLinearJSDLoss`, `LigerFusedLinearCosineSimilarityLoss`, knowledge distillation | [`DistillationLoss`], [`LinearDistillation`] |
//! | **self-supervised, images and texts** | |
//! | `lightly.loss.BarlowTwinsLoss` | [`BarlowTwinsLoss`] |
//! | `lightly.loss.VICRegLoss` | [`VicRegLoss`] |
//! | `lightly.loss.NegativeCosineSimilarity` | [`NegativeCosineSimilarity`] |
//! | `lightly.loss.DINOLoss` | [`DinoLoss`], of lists of views |
//! | CLIP paper | [`ClipLoss`], of `image, text, logit_scale` |
//! | SigLIP paper | [`SigLipLoss`], of `image, text, logit_scale, logit_bias` |
//! | **robust regression** | |
//! | kornia `CharbonnierLoss` | [`CharbonnierLoss`] |
//! | kornia `CauchyLoss` | [`CauchyLoss`] |
//! | kornia `GemanMcclureLoss` | [`GemanMcClureLoss`] |
//! | kornia `WelschLoss` | [`WelschLoss`] |
//! | Keras `LogCosh` | [`LogCoshLoss`] |
//! | Keras `MeanSquaredLogarithmicError` | [`MsleLoss`] |
//! | Keras `MeanAbsolutePercentageError` | [`MapeLoss`] |
//! | quantile or pinball loss (Koenker and Bassett) | [`QuantileLoss`] |
//! | **images** | |
//! | `monai.losses.SSIMLoss`, kornia `SSIMLoss`, `SSIM3DLoss` | [`SsimLoss`] |
//! | `monai.metrics.MultiScaleSSIMMetric` | [`MsSsimLoss`] |
//! | kornia `MS_SSIMLoss` | [`MsSsimL1Loss`] |
//! | kornia `PSNRLoss` | [`PsnrLoss`] |
//! | kornia `TotalVariation` | [`TotalVariationLoss`] |
//!
//! Those of `input, target` implement [`Loss`], so that they can be boxed and chosen at run time. [`WeightedSum`]
//! adds several up. With the feature `serde`, `AnyLoss` is one that is described in data such as TOML or JSON. The
//! losses that are means have a method `f_parts`, which gives numerator and denominator apart: [`MeanParts`].
//!
//! # What is different from PyTorch in every loss
//!
//! A page says under "Differences from PyTorch" what its loss does differently. What holds for all of them is said here, once:
//!
//! | | PyTorch | here |
//! |---|---|---|
//! | half precision | sums and exponentials in `f16` and `bf16` where the operation has such a kernel: they overflow and lose digits | computed in `f32` and rounded once, in value and gradient |
//! | weights of another floating kind | an error, or a promotion of the loss | converted to the kind that the loss is computed in |
//! | targets of class indices | `i64` and `u8` | every integer kind; one that is out of range is an error on CUDA too, or NaN with [`InvalidValues::Nan`] |
//! | masks and soft targets | any number | outside \[0, 1\] an error, where a formula needs that: a mask of 0 and 255 is no mask of 0 and 1 |
//! | classes masked by −∞ or by the least number of the kind | NaN where 0 · ∞ is met | without a share in the target they cost 0, with gradient 0 |
//! | confident predictions | 1 − p loses digits | an engine computes them from the other classes, or from the sigmoid of the other sign |
//! | NaN in an argument | may vanish in a comparison | NaN in the loss, and in its gradient but for losses of absolute values and hinges, whose slope at NaN is PyTorch's 0 |
//! | an embedding of zeros that is scaled to length 1 | slopes of up to 10¹² | slope 0; [`CosineEmbeddingLoss`] keeps PyTorch's in single and double precision |
//! | `create_graph` | may take another path, with other rounding | the first gradient is the same number, whatever is asked for next |
//! | sparse, nested and opaque tensors | sometimes computed | an error that names the argument |
//! | targets that are changed after the forward pass, past autograd's eyes | read and written beside the memory | the gradient is that of the targets that were checked |
//! | shapes that broadcast by accident | a warning or silence | an error, unless `broadcast(true)` |
//!
//! On the CPU many of them are computed by a fused engine, value and gradient in one pass over memory. [`Backend`] says how to
//! have PyTorch's tensor operations instead, and that a build without optimisation (`opt-level` 0 or 1) has them by default.
//!
//! [`autograd`] is for losses and layers of your own: functions with a backward written in Rust.
//!
//! [tch]: https://docs.rs/tch

mod argument;
pub mod autograd;
mod binary;
mod check;
mod classification;
mod combine;
#[cfg(feature = "serde")]
mod description;
mod detection;
mod divergence;
mod error;
mod image;
mod kernels;
mod loss;
mod mean_parts;
mod metric;
mod numeric;
mod option_tensors;
mod options;
mod precomputed;
mod preference;
#[cfg(test)]
#[path = "../tests/common/random.rs"]
mod random;
mod reduction;
mod regression;
mod segmentation;
mod self_supervised;
mod sequence;

pub use check::InvalidValues;
pub use classification::*;
pub use combine::*;
pub use detection::*;
pub use divergence::*;
pub use error::LossError;
pub use image::*;
pub use kernels::{Backend, set_gradient_cache, with_backend};
pub use loss::Loss;
pub use mean_parts::MeanParts;
pub use metric::*;
pub use preference::*;
pub use reduction::Reduction;
pub use regression::*;
pub use segmentation::*;
pub use self_supervised::*;
pub use sequence::*;

/// Every code block of the README is compiled, and run where it can be.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
