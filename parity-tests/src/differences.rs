//! Where this crate differs from a reference on purpose: the one table of it.

/// A deliberate difference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// The cases it is about: those whose id begins with one of these.
    pub cases: &'static [&'static str],
    /// In which way the sides differ there.
    pub rule: Rule,
    /// Why.
    pub reason: &'static str,
}

/// In which way the sides differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The reference rejects what this crate computes.
    Accepts,
    /// The reference computes what this crate rejects.
    Rejects,
    /// The same on CUDA, where the reference does not look at the values. No check on the CPU shows it.
    RejectsOnCuda,
    /// Both round in single precision, in another order: each number is equal, or at most three bits farther from
    /// the result in double precision than the farthest number of the reference. On the CPU, where this crate has double
    /// precision there, no check shows it.
    RoundedOnCuda,
    /// The reference is infinite or NaN where this crate is finite, equal everywhere else, and right where the result
    /// in double precision tells.
    Finite,
    /// The reference has a number where this crate says NaN.
    Nan,
    /// The reference is beyond 10⁴, infinite or NaN where this crate is 0 or right, and equal everywhere else.
    Zero,
    /// The reference rounds to half precision where this crate has single precision, and is equal up to that or farther
    /// from the result in double precision.
    Wider,
    /// Both round products to half precision under autocast, at other places. Outputs are equal, and gradients are as
    /// near as that precision is to the largest number of the gradient.
    Rounded,
}

impl Rule {
    /// The rule in a few words.
    pub fn describe(self) -> &'static str {
        match self {
            Rule::Accepts => "computed, where the reference rejects",
            Rule::Rejects => "rejected, where the reference computes",
            Rule::RejectsOnCuda => "rejected, where the reference computes on CUDA",
            Rule::RoundedOnCuda => "rounded in single precision in another order on CUDA",
            Rule::Finite => "finite, where the reference is infinite or NaN",
            Rule::Nan => "NaN, where the reference has a number",
            Rule::Wider => "in single precision, where the reference is in half precision",
            Rule::Rounded => "gradients are products of half precision, which are rounded at other places",
            Rule::Zero => "0, where the reference is beyond 10^4, infinite or NaN",
        }
    }

    /// Whether only a check on CUDA can show it.
    pub fn is_of_cuda(self) -> bool {
        matches!(self, Rule::RejectsOnCuda | Rule::RoundedOnCuda)
    }
}

/// Why numbers differ that are [rounded](Rule::RoundedOnCuda) on CUDA.
pub const SUMS_ON_CUDA: &str = "variances under a window, and regions of signed numbers, are small differences of sums; \
     on CUDA the sums are in single precision, as in the reference";

/// All of them. Only a case that fails is looked up here, so that a row can hide nothing that is equal.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        cases: &[
            "torch.nn.GaussianNLLLoss/autocast/",
            "torch.nn.functional.gaussian_nll_loss/autocast/",
            "torch.nn.MultiLabelSoftMarginLoss/autocast/",
            "torch.nn.functional.multilabel_soft_margin_loss/autocast/",
            "torch.nn.TripletMarginWithDistanceLoss/autocast/",
            "torch.nn.functional.triplet_margin_with_distance_loss/autocast/",
        ],
        rule: Rule::Wider,
        reason: "under autocast every loss is in single precision, also those that PyTorch makes of other operations",
    },
    Difference {
        cases: &["papers.chunked_linear_cross_entropy/autocast"],
        rule: Rule::Rounded,
        reason: "the gradients of chunks are rounded to half precision before they are added up in single precision; \
                 PyTorch rounds those of all rows",
    },
    Difference {
        cases: &[
            "torch.nn.SoftMarginLoss/overflow/",
            "torch.nn.functional.soft_margin_loss/overflow/",
            "torch.nn.functional.soft_margin_loss/fuzz/",
        ],
        rule: Rule::Finite,
        reason: "log(1 + exp(z)) overflows for large z; here it is computed as -logsigmoid(-z)",
    },
    Difference {
        cases: &[
            "torch.nn.BCELoss/saturated/f16/",
            "torch.nn.functional.binary_cross_entropy/saturated/f16/",
            "torch.nn.functional.binary_cross_entropy/fuzz/half/",
        ],
        rule: Rule::Finite,
        reason: "the least denominator of the gradient, 1e-12, is 0 in f16; the engine computes in f32",
    },
    Difference {
        cases: &[
            "papers.images.ssim_loss/",
            "papers.images.ms_ssim_l1_loss/",
            "kornia.losses.MS_SSIMLoss/",
            "monai.losses.DiceCELoss/no_activation/",
        ],
        rule: Rule::RoundedOnCuda,
        reason: SUMS_ON_CUDA,
    },
    Difference {
        cases: &["torch.nn.CrossEntropyLoss/better_ignored/"],
        rule: Rule::Finite,
        reason: "an ignored row of logits that are all -inf has no part in the loss, so its gradient is 0",
    },
    Difference {
        cases: &["torch.nn.CrossEntropyLoss/better_smoothing/"],
        rule: Rule::Rejects,
        reason: "a negative label smoothing means nothing",
    },
    Difference {
        cases: &[
            "torch.nn.CrossEntropyLoss/better_integers/",
            "torch.nn.NLLLoss/better_integers/",
            "torch.nn.MultiMarginLoss/better_integers/",
            "torch.nn.MultiLabelMarginLoss/better_integers/",
        ],
        rule: Rule::Accepts,
        reason: "class indices may be of any integer kind",
    },
    Difference {
        cases: &[
            "torch.nn.CrossEntropyLoss/better_weights/",
            "torch.nn.NLLLoss/better_weights/",
            "torch.nn.NLLLoss/module_db_reject/",
            "torch.nn.MultiMarginLoss/better_weights/",
        ],
        rule: Rule::Accepts,
        reason: "class weights may be of any floating kind",
    },
    Difference {
        cases: &["torch.nn.CrossEntropyLoss/better_masks/", "torch.nn.KLDivLoss/better_masks/"],
        rule: Rule::Finite,
        reason: "a class that is masked by -inf and has no share of the target costs nothing, and not 0 * inf",
    },
    Difference {
        cases: &["torch.nn.MultiLabelMarginLoss/reject/", "torch.nn.functional.multilabel_margin_loss/reject/"],
        rule: Rule::RejectsOnCuda,
        reason: "for a class out of range PyTorch reads and writes beside the scores",
    },
    Difference {
        cases: &["torch.nn.CosineEmbeddingLoss/extreme/f16/"],
        rule: Rule::Finite,
        reason: "the 1e-12 beside the squares is 0 in f16; here half precision is computed in f32",
    },
    Difference {
        cases: &["torch.nn.CosineEmbeddingLoss/zeros/f16/"],
        rule: Rule::Zero,
        reason: "an embedding of zeros has no slope in f16, whose range its slope exceeds",
    },
    Difference {
        cases: &["torch.nn.MultiMarginLoss/better_nan/"],
        rule: Rule::Nan,
        reason: "a NaN score is not a satisfied hinge",
    },
    Difference {
        cases: &["torch.nn.CTCLoss/better_labels/"],
        rule: Rule::Rejects,
        reason: "labels are integers; fractions would be cut off without a word",
    },
    Difference {
        cases: &["torchvision.ops.complete_box_iou_loss/degenerate/", "torchvision.ops.complete_box_iou_loss/fuzz/"],
        rule: Rule::Finite,
        reason: "a box without a height divides by 0; here its angle is that of its width and height, and a point has none",
    },
    Difference {
        cases: &[
            "torchvision.ops.sigmoid_focal_loss/better_saturated/",
            "segmentation_models_pytorch.losses.FocalLoss/better_saturated/",
            "monai.losses.FocalLoss/better_saturated/",
        ],
        rule: Rule::Finite,
        reason: "a power below 1 of 1 - p has a vertical tangent at 0, though the loss has none; here it is computed in \
                 log space",
    },
    Difference {
        cases: &["torchvision.ops.sigmoid_focal_loss/better_integers/"],
        rule: Rule::Accepts,
        reason: "targets of 0 and 1 may be integers",
    },
    Difference {
        cases: &["kornia.losses.FocalLoss/better_integers/", "kornia.losses.focal_loss/better_integers/"],
        rule: Rule::Accepts,
        reason: "class indices may be of any integer kind",
    },
    Difference {
        cases: &[
            "kornia.losses.FocalLoss/better_alpha/",
            "kornia.losses.BinaryFocalLossWithLogits/better_alpha/",
            "segmentation_models_pytorch.losses.FocalLoss/better_alpha/",
            "monai.losses.FocalLoss/better_alpha/",
        ],
        rule: Rule::Rejects,
        reason: "a balance outside [0, 1] makes losses negative",
    },
    Difference {
        cases: &["segmentation_models_pytorch.losses.FocalLoss/better_classes/"],
        rule: Rule::Rejects,
        reason: "a class out of range is a mistake, not a target that is negative for all classes",
    },
    Difference {
        cases: &["segmentation_models_pytorch.losses.FocalLoss/better_ignored/"],
        rule: Rule::Accepts,
        reason: "smp takes the targets of one class by a mask of all classes, which cannot work",
    },
    Difference {
        cases: &[
            "segmentation_models_pytorch.losses.DiceLoss/multiclass_better_single/",
            "segmentation_models_pytorch.losses.JaccardLoss/multiclass_better_single/",
            "segmentation_models_pytorch.losses.TverskyLoss/multiclass_better_single/",
            "kornia.losses.DiceLoss/better_single/",
            "kornia.losses.dice_loss/better_single/",
            "kornia.losses.TverskyLoss/better_single/",
            "kornia.losses.tversky_loss/better_single/",
        ],
        rule: Rule::Rejects,
        reason: "the softmax of a single class is 1 whatever the logits are, and nothing is learnt from it",
    },
    Difference {
        cases: &["monai.losses.DiceLoss/better_empty/", "monai.losses.TverskyLoss/better_empty/"],
        rule: Rule::Finite,
        reason: "a region that is empty in input and target alike, without smoothing, has score 0 and not 0 / 0",
    },
    Difference {
        cases: &[
            "segmentation_models_pytorch.losses.TverskyLoss/binary_better_empty/",
            "segmentation_models_pytorch.losses.TverskyLoss/multiclass_better_empty/",
            "segmentation_models_pytorch.losses.TverskyLoss/multilabel_better_empty/",
        ],
        rule: Rule::Finite,
        reason: "a loss of 0 to a power below 1 has gradient 0 and not 0 / 0",
    },
    Difference {
        cases: &[
            "timm.loss.AsymmetricLossMultiLabel/steep",
            "timm.loss.AsymmetricLossSingleLabel/steep",
            "timm.loss.PolyBinaryCrossEntropy/steep",
        ],
        rule: Rule::Finite,
        reason: "a power below 1 has a vertical tangent at 0, where its gradient becomes infinite or NaN; here it is finite",
    },
    Difference {
        cases: &["timm.loss.JsdCrossEntropy/better_"],
        rule: Rule::Finite,
        reason: "the logarithm of a probability that underflows is infinite; here it is the log-softmax",
    },
    Difference {
        cases: &["monai.losses.FocalLoss/sigmoid_single_shape/"],
        rule: Rule::Rejects,
        reason: "a mask of 255 is no mask of 1",
    },
    Difference {
        cases: &["timm.loss.AsymmetricLossMultiLabel/options/"],
        rule: Rule::Finite,
        reason: "the second derivative of a power below 2 is 0 where its base is, and not 0 * inf",
    },
    Difference {
        cases: &["segmentation_models_pytorch.losses.LovaszLoss/better_masks/"],
        rule: Rule::Accepts,
        reason: "a mask may be of Booleans",
    },
    Difference {
        cases: &[
            "segmentation_models_pytorch.losses.LovaszLoss/better_values/",
            "kornia.losses.LovaszHingeLoss/better_values/",
            "kornia.losses.lovasz_hinge_loss/better_values/",
        ],
        rule: Rule::Rejects,
        reason: "a target that is neither 0 nor 1 has no Jaccard loss",
    },
    Difference {
        cases: &[
            "segmentation_models_pytorch.losses.LovaszLoss/binary_better_double/",
            "segmentation_models_pytorch.losses.LovaszLoss/multilabel_better_double/",
            "segmentation_models_pytorch.losses.LovaszLoss/multiclass_better_dtype/",
        ],
        rule: Rule::Accepts,
        reason: "smp mixes its single precision with the input's dtype",
    },
    Difference {
        cases: &["segmentation_models_pytorch.losses.LovaszLoss/multiclass_better_line/"],
        rule: Rule::Accepts,
        reason: "smp takes an input of three dimensions for images of one class, here it is classes of lines",
    },
    Difference {
        cases: &["segmentation_models_pytorch.losses.LovaszLoss/multiclass_better_classes/"],
        rule: Rule::Rejects,
        reason: "a class out of range is a mistake, not a pixel that belongs to no class",
    },
    Difference {
        cases: &[
            "kornia.losses.LovaszSoftmaxLoss/better_broadcast/",
            "kornia.losses.lovasz_softmax_loss/better_broadcast/",
        ],
        rule: Rule::Rejects,
        reason: "one image is not broadcast over the targets of several",
    },
    Difference {
        cases: &["segmentation_models_pytorch.losses.MCCLoss/better_half/"],
        rule: Rule::Finite,
        reason: "in f16 smp's product of four counts overflows from a few dozen pixels on",
    },
    Difference {
        cases: &["segmentation_models_pytorch.losses.MCCLoss/better_booleans/"],
        rule: Rule::Accepts,
        reason: "a mask may be of Booleans",
    },
    Difference {
        cases: &["segmentation_models_pytorch.losses.MCCLoss/better_eps/"],
        rule: Rule::Rejects,
        reason: "without an epsilon the loss of a mask of one side is NaN",
    },
    Difference {
        cases: &["monai.losses.SoftclDiceLoss/better_empty/"],
        rule: Rule::Finite,
        reason: "without smoothing a share of an empty centre line is 0, and not 0 / 0",
    },
    Difference {
        cases: &["monai.losses.SoftDiceclDiceLoss/better_none/"],
        rule: Rule::Rejects,
        reason: "unreduced the two losses have different shapes, which MONAI broadcasts against each other",
    },
    Difference {
        cases: &[
            "pytorch_metric_learning.losses.ContrastiveLoss/better_labels/",
            "pytorch_metric_learning.losses.NTXentLoss/better_labels/",
            "pytorch_metric_learning.losses.SupConLoss/better_labels/",
            "pytorch_metric_learning.losses.NCALoss/better_labels/",
            "pytorch_metric_learning.losses.MultiSimilarityLoss/better_labels/",
            "pytorch_metric_learning.losses.CircleLoss/better_labels/",
            "pytorch_metric_learning.losses.NPairsLoss/better_labels/",
            "pytorch_metric_learning.losses.LiftedStructureLoss/better_labels/",
            "pytorch_metric_learning.losses.GeneralizedLiftedStructureLoss/better_labels/",
        ],
        rule: Rule::Rejects,
        reason: "labels are integers",
    },
    Difference {
        cases: &["pytorch_metric_learning.losses.TripletMarginLoss/better_swap/"],
        rule: Rule::Rejects,
        reason: "a position among the references is taken for one in the batch",
    },
    Difference {
        cases: &[
            "pytorch_metric_learning.losses.ContrastiveLoss/options/f16/",
            "pytorch_metric_learning.losses.NTXentLoss/options/f16/",
            "pytorch_metric_learning.losses.SupConLoss/options/f16/",
            "pytorch_metric_learning.losses.NCALoss/options/f16/",
            "pytorch_metric_learning.losses.MultiSimilarityLoss/options/f16/",
            "pytorch_metric_learning.losses.LiftedStructureLoss/options/f16/",
            "pytorch_metric_learning.losses.GeneralizedLiftedStructureLoss/options/f16/",
            "pytorch_metric_learning.losses.TripletMarginLoss/options/f16/",
        ],
        rule: Rule::Finite,
        reason: "in f16 the square of an embedding's distance to itself is 0, and the gradient of a p-norm divides by it",
    },
    Difference {
        cases: &[
            "liger_kernel.chunked_loss.LigerFusedLinearDPOLoss/better_empty/",
            "liger_kernel.chunked_loss.LigerFusedLinearORPOLoss/better_empty/",
            "liger_kernel.chunked_loss.LigerFusedLinearSimPOLoss/better_empty/",
            "liger_kernel.chunked_loss.LigerFusedLinearCPOLoss/better_empty/",
            "liger_kernel.chunked_loss.LigerFusedLinearKTOLoss/better_empty/",
        ],
        rule: Rule::Finite,
        reason: "the mean over an answer without tokens is 0 and not 0 / 0, which would make all gradients of the batch NaN",
    },
    Difference {
        cases: &["liger_kernel.chunked_loss.LigerFusedLinearORPOLoss/better_certain/"],
        rule: Rule::Finite,
        reason: "an answer that is certain in single precision has finite odds",
    },
    Difference {
        cases: &["liger_kernel.chunked_loss.LigerFusedLinearDPOLoss/better_overflow/"],
        rule: Rule::Finite,
        reason: "exp(-z) overflows where its factor underflows; here they are one power",
    },
    Difference {
        cases: &[
            "liger_kernel.chunked_loss.LigerFusedLinearDPOLoss/better_odd/",
            "liger_kernel.chunked_loss.LigerFusedLinearORPOLoss/better_odd/",
            "liger_kernel.chunked_loss.LigerFusedLinearSimPOLoss/better_odd/",
            "liger_kernel.chunked_loss.LigerFusedLinearCPOLoss/better_odd/",
        ],
        rule: Rule::Rejects,
        reason: "an odd number of answers makes no pairs; Liger broadcasts the chosen against the rejected ones",
    },
    Difference {
        cases: &["liger_kernel.chunked_loss.LigerFusedLinearDPOLoss/better_target/"],
        rule: Rule::Rejects,
        reason: "each token has a target; Liger drops those at the end that have none",
    },
    Difference {
        cases: &[
            "liger_kernel.chunked_loss.LigerFusedLinearDPOLoss/better_beta/",
            "liger_kernel.chunked_loss.LigerFusedLinearORPOLoss/better_beta/",
            "liger_kernel.chunked_loss.LigerFusedLinearSimPOLoss/better_beta/",
            "liger_kernel.chunked_loss.LigerFusedLinearCPOLoss/better_beta/",
            "liger_kernel.chunked_loss.LigerFusedLinearKTOLoss/better_beta/",
        ],
        rule: Rule::Rejects,
        reason: "a beta below 0 prefers the rejected answers",
    },
    Difference {
        cases: &[
            "liger_kernel.chunked_loss.LigerFusedLinearJSDLoss/better_vocabulary/",
            "liger_kernel.chunked_loss.LigerFusedLinearCosineSimilarityLoss/better_vocabulary/",
        ],
        rule: Rule::Rejects,
        reason: "classes that the student does not have are no classes of logit 0",
    },
    Difference {
        cases: &[
            "liger_kernel.chunked_loss.LigerFusedLinearJSDLoss/better_temperature/",
            "liger_kernel.chunked_loss.LigerFusedLinearCosineSimilarityLoss/better_temperature/",
        ],
        rule: Rule::Rejects,
        reason: "a temperature below 0 makes the unlikely likely",
    },
    Difference {
        cases: &["lightly.loss.BarlowTwinsLoss/better_empty/"],
        rule: Rule::Rejects,
        reason: "an empty batch has no statistics, as one of a single row has none",
    },
    Difference {
        cases: &["lightly.loss.VICRegLoss/better_eps/"],
        rule: Rule::Rejects,
        reason: "without an epsilon the gradient of a constant feature is NaN",
    },
    Difference {
        cases: &[
            "pytorch_metric_learning.losses.ArcFaceLoss/better_saturated/",
            "pytorch_metric_learning.losses.SubCenterArcFaceLoss/better_saturated/",
            "pytorch_metric_learning.losses.SubCenterArcFaceLoss/shape/bf16/",
            "pytorch_metric_learning.losses.SubCenterArcFaceLoss/shape/f16/",
        ],
        rule: Rule::Finite,
        reason: "the arc cosine has an infinite gradient at 1 and -1, but the angle of two vectors has none there; here it is \
                 computed from their difference and sum",
    },
    Difference {
        cases: &[
            "pytorch_metric_learning.losses.ArcFaceLoss/better_integers/",
            "pytorch_metric_learning.losses.SubCenterArcFaceLoss/better_integers/",
            "pytorch_metric_learning.losses.CosFaceLoss/better_integers/",
            "pytorch_metric_learning.losses.ProxyAnchorLoss/better_integers/",
        ],
        rule: Rule::Accepts,
        reason: "classes may be of any integer kind",
    },
    Difference {
        cases: &[
            "pytorch_metric_learning.losses.ArcFaceLoss/better_empty/",
            "pytorch_metric_learning.losses.SubCenterArcFaceLoss/better_empty/",
            "pytorch_metric_learning.losses.CosFaceLoss/better_empty/",
            "pytorch_metric_learning.losses.ProxyNCALoss/better_empty/",
        ],
        rule: Rule::Finite,
        reason: "an empty batch of embeddings costs nothing, as in the losses of their pairs",
    },
    Difference {
        cases: &["pytorch_metric_learning.losses.NCALoss/shape/", "pytorch_metric_learning.losses.NCALoss/singletons/"],
        rule: Rule::Finite,
        reason: "a batch without two embeddings of one label costs nothing, where the mean over no losses is NaN; \
                 in f16 the square of a small distance is 0, and the gradient of a p-norm divides by it",
    },
    Difference {
        cases: &[
            "pytorch_metric_learning.losses.ProxyNCALoss/shape/f16/",
            "pytorch_metric_learning.losses.ProxyNCALoss/opposite/f16/",
        ],
        rule: Rule::Finite,
        reason: "in f16 the square of a small distance is 0, and the gradient of a p-norm divides by it",
    },
    Difference {
        cases: &["pytorch_metric_learning.losses.ProxyNCALoss/better_classes/"],
        rule: Rule::Rejects,
        reason: "a class without a proxy is a mistake, not an embedding that does not count",
    },
    Difference {
        cases: &[
            "kornia.losses.CharbonnierLoss/better_huge_",
            "kornia.losses.charbonnier_loss/better_huge_",
            "kornia.losses.CauchyLoss/better_huge_",
            "kornia.losses.cauchy_loss/better_huge_",
            "kornia.losses.GemanMcclureLoss/better_huge_",
            "kornia.losses.geman_mcclure_loss/better_huge_",
        ],
        rule: Rule::Finite,
        reason: "the square of a huge difference overflows, though the loss does not",
    },
    Difference {
        cases: &["kornia.losses.PSNRLoss/better_equal_", "kornia.losses.psnr_loss/better_equal_"],
        rule: Rule::Finite,
        reason: "equal images have no error to learn from: the gradient is 0, and not 0 / 0",
    },
    Difference {
        cases: &[
            "pytorch_metric_learning.losses.ContrastiveLoss/better_root/",
            "pytorch_metric_learning.losses.NTXentLoss/better_root/",
            "pytorch_metric_learning.losses.SupConLoss/better_root/",
            "pytorch_metric_learning.losses.NCALoss/better_root/",
            "pytorch_metric_learning.losses.MultiSimilarityLoss/better_root/",
            "pytorch_metric_learning.losses.LiftedStructureLoss/better_root/",
            "pytorch_metric_learning.losses.GeneralizedLiftedStructureLoss/better_root/",
        ],
        rule: Rule::Finite,
        reason: "the root of an embedding's distance to itself, 0, has a vertical tangent; here its gradient is 0",
    },
    Difference {
        cases: &[
            "pytorch_metric_learning.losses.NTXentLoss/zero/f16/",
            "pytorch_metric_learning.losses.NCALoss/zero/f16/",
            "pytorch_metric_learning.losses.MultiSimilarityLoss/zero/f16/",
            "pytorch_metric_learning.losses.NPairsLoss/zero/f16/",
            "pytorch_metric_learning.losses.LiftedStructureLoss/zero/f16/",
            "pytorch_metric_learning.losses.GeneralizedLiftedStructureLoss/zero/f16/",
        ],
        rule: Rule::Finite,
        reason: "in f16 the least norm of an embedding, 1e-12, is 0, and 0 / 0 is NaN",
    },
    Difference {
        cases: &[
            "pytorch_metric_learning.losses.ContrastiveLoss/better_zero/",
            "pytorch_metric_learning.losses.NTXentLoss/better_zero/",
            "pytorch_metric_learning.losses.SupConLoss/better_zero/",
            "pytorch_metric_learning.losses.NCALoss/better_zero/",
            "pytorch_metric_learning.losses.MultiSimilarityLoss/better_zero/",
            "pytorch_metric_learning.losses.CircleLoss/better_zero/",
            "pytorch_metric_learning.losses.NPairsLoss/better_zero/",
            "pytorch_metric_learning.losses.LiftedStructureLoss/better_zero/",
            "pytorch_metric_learning.losses.GeneralizedLiftedStructureLoss/better_zero/",
            "pytorch_metric_learning.losses.TripletMarginLoss/better_zero/",
            "lightly.loss.NegativeCosineSimilarity/better_zeros/",
        ],
        rule: Rule::Zero,
        reason: "an embedding of length 0 has no direction and no slope; there its gradient is over the least norm",
    },
];

/// The difference that a case is about.
pub fn find(id: &str) -> Option<&'static Difference> {
    DIFFERENCES.iter().find(|difference| difference.cases.iter().any(|cases| id.starts_with(cases)))
}
