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
//! <!-- made by scripts/tables: torch.nn -->
//! | original | here | arguments |
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
//! | **sequence** | | |
//! | `nn.CTCLoss` | [`CtcLoss`] | `log_probs, targets, input_lengths, target_lengths` |
//! | `nn.LinearCrossEntropyLoss` | [`LinearCrossEntropyLoss`] | `input, target` |
//! | `F.linear_cross_entropy` | [`LinearCrossEntropy`] | `input, linear_weight, target, linear_bias` |
//! | `nn.AdaptiveLogSoftmaxWithLoss` | [`AdaptiveLogSoftmaxWithLoss`] | `input, target` |
//! <!-- end -->
//!
//! # Losses of other packages
//!
//! pml is pytorch-metric-learning, smp segmentation-models-pytorch. Each loss has its [family](#modules), a module
//! whose page says which loss to take for what, and is a name of the crate, too: `tch_losses::DiceLoss` is
//! `tch_losses::segmentation::DiceLoss`.
//!
//! <!-- made by scripts/tables: others -->
//! | original | here | arguments |
//! |---|---|---|
//! | **robust regression**, feature `regression` | | |
//! | kornia `CharbonnierLoss` | [`CharbonnierLoss`] | `input, target` |
//! | Keras `LogCosh` | [`LogCoshLoss`] | `input, target` |
//! | kornia `CauchyLoss` | [`CauchyLoss`] | `input, target` |
//! | kornia `GemanMcclureLoss` | [`GemanMcClureLoss`] | `input, target` |
//! | kornia `WelschLoss` | [`WelschLoss`] | `input, target` |
//! | Keras `MeanSquaredLogarithmicError` | [`MsleLoss`] | `input, target` |
//! | Keras `MeanAbsolutePercentageError` | [`MapeLoss`] | `input, target` |
//! | quantile or pinball loss (Koenker and Bassett) | [`QuantileLoss`] | `input, target` |
//! | **focal and other losses of classification**, feature `classification` | | |
//! | `torchvision.ops.sigmoid_focal_loss`, kornia `BinaryFocalLossWithLogits`, `monai.losses.FocalLoss`, smp `FocalLoss` | [`SigmoidFocalLoss`] | `input, target` |
//! | kornia `FocalLoss`, `monai.losses.FocalLoss(use_softmax=True)` | [`SoftmaxFocalLoss`] | `input, target` |
//! | smp `FocalLoss` (multiclass) | [`OneVsRestFocalLoss`] | `input, target` |
//! | `timm.loss.AsymmetricLossMultiLabel` | [`AsymmetricMultiLabelLoss`] | `input, target` |
//! | `timm.loss.AsymmetricLossSingleLabel` | [`AsymmetricSingleLabelLoss`] | `input, target` |
//! | `timm.loss.JsdCrossEntropy` | [`JsdCrossEntropyLoss`] | `input, target` |
//! | `timm.loss.PolyCrossEntropy` | [`PolyCrossEntropyLoss`] | `input, target` |
//! | `timm.loss.PolyBinaryCrossEntropy` | [`PolyBceWithLogitsLoss`] | `input, target` |
//! | smp `SoftBCEWithLogitsLoss`, `timm.loss.BinaryCrossEntropy` | [`SoftBceWithLogitsLoss`] | `input, target` |
//! | Keras `Hinge`, `SquaredHinge` | [`HingeLoss`] | `input, target` |
//! | Keras `CategoricalHinge` | [`CategoricalHingeLoss`] | `input, target` |
//! | `timm.loss.SoftTargetCrossEntropy`, `LabelSmoothingCrossEntropy`, smp `SoftCrossEntropyLoss` | [`CrossEntropyLoss`] | `input, target` |
//! | **distillation**, feature `distillation` | | |
//! | `liger_kernel.chunked_loss.LigerFusedLinearJSDLoss`, `LigerFusedLinearCosineSimilarityLoss`, knowledge distillation | [`DistillationLoss`] | `input, teacher, target` |
//! | the same | [`LinearDistillation`] | `student, teacher, target` |
//! | **embeddings of a batch, by their labels**, feature `metric` | | |
//! | pml `ContrastiveLoss` | [`ContrastiveLoss`] | `input, target` |
//! | pml `NTXentLoss` | [`NtXentLoss`] | `input, target` |
//! | pml `SupConLoss` | [`SupConLoss`] | `input, target` |
//! | pml `MultiSimilarityLoss` | [`MultiSimilarityLoss`] | `input, target` |
//! | pml `CircleLoss` | [`CircleLoss`] | `input, target` |
//! | pml `NPairsLoss` | [`NPairsLoss`] | `input, target` |
//! | pml `NCALoss` | [`NcaLoss`] | `input, target` |
//! | pml `LiftedStructureLoss` | [`LiftedStructureLoss`] | `input, target` |
//! | pml `GeneralizedLiftedStructureLoss` | [`GeneralizedLiftedStructureLoss`] | `input, target` |
//! | pml `TripletMarginLoss`, `BatchHardMiner`, `TripletMarginMiner` | [`BatchTripletMarginLoss`] | `input, target` |
//! | **embeddings, with a vector for each class**, feature `metric` | | |
//! | pml `ArcFaceLoss`, `SubCenterArcFaceLoss` | [`ArcFaceLoss`] | `input, target` |
//! | the same | [`ArcFace`] | `input, weight, target` |
//! | pml `CosFaceLoss` | [`CosFaceLoss`] | `input, target` |
//! | the same | [`CosFace`] | `input, weight, target` |
//! | pml `ProxyAnchorLoss` | [`ProxyAnchorLoss`] | `input, target` |
//! | the same | [`ProxyAnchor`] | `input, proxies, target` |
//! | pml `ProxyNCALoss` | [`ProxyNcaLoss`] | `input, target` |
//! | the same | [`ProxyNca`] | `input, proxies, target` |
//! | **segmentation**, feature `segmentation` | | |
//! | `monai.losses.DiceLoss`, smp `DiceLoss`, kornia `DiceLoss` | [`DiceLoss`] | `input, target` |
//! | smp `JaccardLoss`, `monai.losses.DiceLoss(jaccard=True)` | [`JaccardLoss`] | `input, target` |
//! | `monai.losses.TverskyLoss`, smp `TverskyLoss`, kornia `TverskyLoss` | [`TverskyLoss`] | `input, target` |
//! | smp `TverskyLoss(gamma)`, the focal Tversky paper | [`FocalTverskyLoss`] | `input, target` |
//! | `monai.losses.GeneralizedDiceLoss` | [`GeneralizedDiceLoss`] | `input, target` |
//! | smp `LovaszLoss`, kornia `lovasz_hinge_loss` | [`LovaszHingeLoss`] | `input, target` |
//! | smp `LovaszLoss`, kornia `lovasz_softmax_loss` | [`LovaszSoftmaxLoss`] | `input, target` |
//! | smp `MCCLoss` | [`MccLoss`] | `input, target` |
//! | `monai.losses.HausdorffDTLoss`, `LogHausdorffDTLoss` | [`HausdorffDtLoss`] | `input, target` |
//! | `monai.losses.SoftclDiceLoss` | [`SoftClDiceLoss`] | `input, target` |
//! | `monai.losses.SoftDiceclDiceLoss` | [`SoftDiceClDiceLoss`] | `input, target` |
//! | `monai.losses.DiceCELoss` | [`DiceCrossEntropyLoss`] | `input, target` |
//! | `monai.losses.DiceFocalLoss`, `GeneralizedDiceFocalLoss` | [`DiceFocalLoss`] | `input, target` |
//! | **detection**, feature `detection` | | |
//! | `torchvision.ops.generalized_box_iou_loss` | [`GeneralizedBoxIouLoss`] | `input, target` |
//! | `torchvision.ops.distance_box_iou_loss` | [`DistanceBoxIouLoss`] | `input, target` |
//! | `torchvision.ops.complete_box_iou_loss` | [`CompleteBoxIouLoss`] | `input, target` |
//! | quality focal loss (GFL paper) | [`QualityFocalLoss`] | `input, target` |
//! | distribution focal loss (GFL paper) | [`DistributionFocalLoss`] | `input, target` |
//! | varifocal loss (VFNet paper) | [`VarifocalLoss`] | `input, target` |
//! | **images**, feature `image` | | |
//! | `monai.losses.SSIMLoss`, kornia `SSIMLoss`, `SSIM3DLoss` | [`SsimLoss`] | `input, target` |
//! | `monai.metrics.MultiScaleSSIMMetric` | [`MsSsimLoss`] | `input, target` |
//! | kornia `MS_SSIMLoss` | [`MsSsimL1Loss`] | `input, target` |
//! | kornia `PSNRLoss` | [`PsnrLoss`] | `input, target` |
//! | kornia `TotalVariation` | [`TotalVariationLoss`] | `input` |
//! | **self-supervised, images and texts**, feature `self-supervised` | | |
//! | `lightly.loss.BarlowTwinsLoss` | [`BarlowTwinsLoss`] | `input, target` |
//! | `lightly.loss.VICRegLoss` | [`VicRegLoss`] | `input, target` |
//! | `lightly.loss.NegativeCosineSimilarity` | [`NegativeCosineSimilarity`] | `input, target` |
//! | `lightly.loss.DINOLoss` | [`DinoLoss`] | lists of views |
//! | `open_clip.loss.ClipLoss` | [`ClipLoss`] | `image, text, logit_scale` |
//! | `open_clip.loss.SigLipLoss` | [`SigLipLoss`] | `image, text, logit_scale, logit_bias` |
//! | **preferences of language models**, feature `preference` | | |
//! | `liger_kernel.chunked_loss.LigerFusedLinearDPOLoss` | [`DpoLoss`] | `policy, reference` |
//! | IPO (paper) | [`IpoLoss`] | `policy, reference` |
//! | `liger_kernel.chunked_loss.LigerFusedLinearORPOLoss` | [`OrpoLoss`] | `policy, reference` |
//! | `liger_kernel.chunked_loss.LigerFusedLinearSimPOLoss` | [`SimpoLoss`] | `policy, reference` |
//! | `liger_kernel.chunked_loss.LigerFusedLinearCPOLoss` | [`CpoLoss`] | `policy, reference` |
//! | `liger_kernel.chunked_loss.LigerFusedLinearKTOLoss` | [`KtoLoss`] | `policy, reference, labels, kl` |
//! | the same | [`LinearPreference`] | `policy, target, reference` |
//! | the same | [`LinearKto`] | `policy, target, labels, reference, kl` |
//! | **large vocabularies** | | |
//! | `liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss` | [`LinearCrossEntropy`] | `input, linear_weight, target, linear_bias` |
//! <!-- end -->
//!
//! Those of `input, target` implement [`Loss`], so that they can be boxed and chosen at run time. [`WeightedSum`]
//! adds several up. With the feature `serde`, `AnyLoss` is one that is described in data such as TOML or JSON. The
//! losses that are means have a method `f_parts`, which gives numerator and denominator apart: [`MeanParts`].
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `full` | yes | every family below; the losses of torch.nn, `WeightedSum` and `autograd` need no feature |
//! | `classification` | by `full` | focal losses, asymmetric, poly and hinge losses, binary cross entropy with soft labels |
//! | `detection` | by `full` | losses of boxes and of the scores of a detector |
//! | `distillation` | by `full` | distillation from a teacher's logits |
//! | `image` | by `full` | SSIM and others between images, total variation |
//! | `metric` | by `full` | losses of the pairs and triplets of a batch, and of vectors for classes |
//! | `preference` | by `full` | DPO and its kin, of the answers of language models |
//! | `regression` | by `full` | robust losses, and those of logarithms, percentages and quantiles |
//! | `segmentation` | by `full` | overlap and boundaries of masks; with it `classification`, for the sums of Dice and focal |
//! | `self-supervised` | by `full` | representations that are learnt without labels, and pairs of images and texts |
//! | `avx512` | yes | the engines' longest loops a second time, for AVX-512: docs/reports/build-cost.md |
//! | `cuda` | no | engines for the losses of elements, rows of classes, boxes, embeddings, pairs and regions on CUDA, compiled when they are first called; no GPU has run them yet |
//! | `emulation` | no | for tests: the kernels of `cuda` run on the CPU, slowly, by a C++ compiler |
//! | `distributed` | no | losses over many processes, on libtorch's own c10d: `distributed`; on Linux |
//! | `nccl` | no | the same, with tensors that stay on GPUs; needs headers of NCCL and CUDA, and no GPU has run it yet |
//! | `serde` | no | losses described in data: `AnyLoss`, and `Deserialize` and `Serialize` of the losses and their options |
//! | `doc-only` | no | documentation on a machine without libtorch |
//!
//! With `default-features = false` the crate has the losses of torch.nn, and builds faster: list `avx512` and the
//! families that you use.
//!
//! # What is different from PyTorch in every loss
//!
//! A page says under "Differences from PyTorch" what its loss does differently. What holds for all of them is said
//! here, once:
//!
//! | | PyTorch | here |
//! |---|---|---|
//! | half precision | sums and exponentials in `f16` and `bf16` where the operation has such a kernel: they overflow and lose digits | computed in `f32` and rounded once, in value and gradient |
//! | weights of another floating kind | an error, or a promotion of the loss | converted to the kind that the loss is computed in |
//! | targets of class indices | `i64` and `u8` | every integer kind; one that is out of range is an error, on CUDA NaN and a [later error](InvalidValues::f_check), by [`InvalidValues`] of one loss or the [default](InvalidValues::set_default) |
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
//! On the CPU many of them are computed by a fused engine, value and gradient in one pass over memory. [`Backend`] says
//! how to have PyTorch's tensor operations instead, and that a build without optimisation (`opt-level` 0 or 1) has them
//! by default.
//!
//! [`autograd`] is for losses and layers of your own: functions with a backward written in Rust.
//!
//! [tch]: https://docs.rs/tch

// The page of a loss names its feature.
#![cfg_attr(docsrs, feature(doc_cfg))]
// What several families share is used by none where these are left out; a build with all of them looks for dead code.
#![cfg_attr(not(feature = "full"), allow(dead_code, unused_imports, unused_macros))]

#[cfg(all(feature = "distributed", not(target_os = "linux"), not(feature = "doc-only")))]
compile_error!("the feature distributed needs Linux");

mod argument;
pub mod autograd;
mod binary;
mod check;
pub mod classification;
pub mod combine;
#[cfg(feature = "serde")]
mod description;
#[cfg(feature = "detection")]
pub mod detection;
#[cfg(feature = "distributed")]
pub mod distributed;
pub mod divergence;
#[cfg(any(feature = "classification", feature = "detection"))]
mod divisor;
mod error;
#[cfg(feature = "image")]
pub mod image;
mod kernels;
mod loss;
mod mean_parts;
pub mod metric;
mod numeric;
mod option_tensors;
mod options;
mod precomputed;
#[cfg(feature = "preference")]
pub mod preference;
#[cfg(test)]
#[path = "../tests/common/random.rs"]
mod random;
mod reduction;
pub mod regression;
mod scoped;
#[cfg(feature = "segmentation")]
pub mod segmentation;
#[cfg(feature = "self-supervised")]
pub mod self_supervised;
pub mod sequence;

#[doc(hidden)]
pub use autograd::{with_autocast, with_autocast_to};
pub use check::InvalidValues;
pub use classification::*;
pub use combine::*;
#[cfg(feature = "detection")]
pub use detection::*;
pub use divergence::*;
#[cfg(any(feature = "classification", feature = "detection"))]
pub use divisor::Divisor;
pub use error::LossError;
#[cfg(feature = "image")]
pub use image::*;
#[doc(hidden)]
pub use kernels::like_cuda;
pub use kernels::{Backend, set_gradient_cache, with_backend};
#[cfg(feature = "emulation")]
#[doc(hidden)]
pub use kernels::{emulated_cuda, emulated_launches};
pub use loss::Loss;
pub use mean_parts::MeanParts;
pub use metric::*;
#[cfg(feature = "preference")]
pub use preference::*;
pub use reduction::Reduction;
pub use regression::*;
#[cfg(feature = "segmentation")]
pub use segmentation::*;
#[cfg(feature = "self-supervised")]
pub use self_supervised::*;
pub use sequence::*;

/// Every code block of the README is compiled, and run where it can be.
#[cfg(all(doctest, feature = "full", feature = "serde"))]
#[doc = include_str!("../README.md")]
struct Readme;
