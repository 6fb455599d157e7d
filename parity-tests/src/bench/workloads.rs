//! The table of what is measured: a loss of the crate, the Python call that it is held against, and the sizes.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value as Json, json};
use tch::{Device, Kind, Tensor};
use tch_losses::{
    Activation, ArcFace, AsymmetricMultiLabelLoss, AsymmetricSingleLabelLoss, BarlowTwinsLoss, BatchTripletMarginLoss,
    BceLoss, BceWithLogitsLoss, CategoricalHingeLoss, CauchyLoss, CharbonnierLoss, Chunking, CircleLoss,
    CompleteBoxIouLoss, ContrastiveLoss, CosFace, CosineEmbeddingLoss, CrossEntropyLoss, CtcLoss, DiceCrossEntropyLoss,
    DiceFocalLoss, DiceLoss, DistanceBoxIouLoss, DistributionFocalLoss, EmptyMask, FocalAlpha, FocalPower,
    FocalSoftTargets, FocalTverskyLoss, GaussianNllLoss, GemanMcClureLoss, GeneralizedBoxIouLoss, GeneralizedDiceLoss,
    GeneralizedLiftedStructureLoss, Grouping, HausdorffDtLoss, HingeEmbeddingLoss, HingeLoss, HuberLoss, JaccardLoss,
    JsdCrossEntropyLoss, KlDivLoss, L1Loss, LiftedStructureLoss, LinearCrossEntropy, LogCoshLoss, Loss, LossError,
    LovaszClasses, LovaszHingeLoss, LovaszSoftmaxLoss, MapeLoss, MarginRankingLoss, MccLoss, MsSsimL1Loss, MsSsimLoss,
    MseLoss, MsleLoss, MultiLabelMarginLoss, MultiLabelSoftMarginLoss, MultiMarginLoss, MultiSimilarityLoss,
    NPairsLoss, NegativeCosineSimilarity, NllLoss, NtXentLoss, OneVsRestFocalLoss, OverlapMeasure, PixelReduction,
    PoissonNllLoss, PolyBceWithLogitsLoss, PolyCrossEntropyLoss, ProxyAnchor, ProxyNca, PsnrLoss, QualityFocalLoss,
    QuantileLoss, Reduction, SigmoidFocalLoss, SmoothL1Loss, SoftBceWithLogitsLoss, SoftClDiceLoss, SoftMarginLoss,
    SoftmaxFocalLoss, SsimForm, SsimLoss, SsimPadding, SupConLoss, TotalVariationLoss, TripletMarginLoss,
    TripletMarginWithDistanceLoss, TverskyLoss, VarifocalLoss, VicRegLoss, WeightedMean, WelschLoss,
};

use crate::case::{Case, Tensors, parse_cases};

/// A class of sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// The cost of a call
    Tiny,
    /// Within the first caches
    Small,
    /// About a million elements
    Medium,
    /// Ten million elements and more
    Large,
}

use Size::{Large, Medium, Small, Tiny};

/// The kind of the floating arguments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Single precision
    #[default]
    F32,
    /// Double precision
    F64,
    /// Half precision with the range of single precision
    Bf16,
    /// Half precision
    F16,
}

impl Dtype {
    fn kind(self) -> Kind {
        match self {
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            Dtype::Bf16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F64 => "f64",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
        }
    }

    fn f_convert(self, tensor: &Tensor) -> Result<Tensor> {
        Ok(if tensor.is_floating_point() { tensor.f_to_kind(self.kind())? } else { tensor.shallow_clone() })
    }
}

/// What is called and timed: the loss is built, the arguments come.
pub type Call = Box<dyn Fn(&[Tensor]) -> Result<Tensor, LossError>>;

type Sizes = &'static [(Size, &'static [i64])];

/// The tensors of a workload.
#[derive(Debug)]
pub struct Inputs {
    /// The positional arguments.
    pub arguments: Vec<Tensor>,
    /// The positions of those to differentiate with respect to.
    pub grad: &'static [usize],
    /// Positional lists of integers behind the tensors; on the Rust side the call holds them.
    lists: Vec<Vec<i64>>,
    /// Tensors that `options` names.
    options: BTreeMap<&'static str, Tensor>,
    /// Parameters of the reference by state-dict name; the call gets them behind the arguments, and they have gradients
    /// as well.
    pub state: Vec<(&'static str, Tensor)>,
    /// Options of the reference that follow from the dimensions.
    numbers: Vec<(&'static str, i64)>,
}

/// A row of the table.
struct Row {
    name: &'static str,
    reference: &'static str,
    options: Json,
    sizes: Sizes,
    inputs: fn(&[i64]) -> Result<Inputs>,
    call: fn(&Inputs) -> Result<Call>,
}

const POINTWISE: Sizes = &[(Tiny, &[1 << 8]), (Small, &[1 << 12]), (Medium, &[1 << 20]), (Large, &[1 << 24])];
const LOGITS: Sizes = &[
    (Tiny, &[16, 16]),
    (Small, &[64, 64]),
    (Medium, &[4, 21, 256, 256]),
    (Large, &[8192, 1000]),
    (Large, &[512, 32000]),
];
const ROWS: Sizes = &[(Tiny, &[16, 16]), (Small, &[64, 64]), (Medium, &[1024, 1000]), (Large, &[8192, 1000])];
/// Samples, labels.
const LABELS: Sizes = &[(Tiny, &[16, 16]), (Small, &[64, 64]), (Medium, &[8192, 128]), (Large, &[65536, 256])];
const REGIONS: Sizes =
    &[(Tiny, &[1, 4, 8, 8]), (Small, &[2, 4, 32, 16]), (Medium, &[8, 21, 256, 256]), (Large, &[4, 4, 96, 96, 96])];
const IMAGES: Sizes =
    &[(Tiny, &[1, 1, 16, 16]), (Small, &[2, 3, 64, 64]), (Medium, &[4, 3, 256, 256]), (Large, &[16, 3, 512, 512])];
const VECTORS: Sizes = &[(Tiny, &[4, 64]), (Small, &[64, 64]), (Medium, &[4096, 256]), (Large, &[65536, 256])];
const BOXES: Sizes = &[(Tiny, &[64, 4]), (Small, &[1024, 4]), (Medium, &[1 << 18, 4]), (Large, &[1 << 22, 4])];
/// Samples, classes, height, width: losses whose reference sorts or erodes.
const PLANES: Sizes = &[(Tiny, &[1, 4, 16, 16]), (Small, &[2, 4, 32, 32]), (Medium, &[4, 4, 256, 256])];
/// One channel of one image, since the reference has a loss for each.
const PICTURE: Sizes =
    &[(Tiny, &[1, 1, 16, 16]), (Small, &[1, 1, 64, 64]), (Medium, &[1, 1, 1024, 1024]), (Large, &[1, 1, 4096, 4096])];
/// Embeddings of a batch, of which all pairs are compared.
const BATCHES: Sizes = &[(Tiny, &[16, 16]), (Small, &[64, 64]), (Medium, &[512, 128]), (Large, &[2048, 256])];
/// The same where the reference compares all triplets.
const TRIPLETS: Sizes = &[(Tiny, &[16, 16]), (Small, &[64, 64]), (Medium, &[128, 128])];
/// Samples, features.
const VIEWS: Sizes = &[(Tiny, &[16, 16]), (Small, &[64, 64]), (Medium, &[1024, 1024])];
/// Sides of a box, bins.
const BINS: Sizes = &[(Tiny, &[16, 17]), (Small, &[256, 17]), (Medium, &[65536, 17]), (Large, &[1 << 20, 17])];
/// Samples, features, classes.
const CLASSIFIED: Sizes =
    &[(Tiny, &[16, 16, 10]), (Small, &[64, 64, 100]), (Medium, &[1024, 128, 1000]), (Large, &[2048, 256, 10000])];
/// Steps, samples, symbols.
const SEQUENCES: Sizes = &[(Medium, &[256, 16, 64])];
/// Rows, features, classes.
const LINEAR: Sizes = &[(Tiny, &[16, 32, 64]), (Medium, &[1024, 512, 8000]), (Large, &[2048, 1024, 32000])];

/// A loss over regions with MONAI's conventions.
macro_rules! monai {
    ($loss:ident, $activation:ident) => {
        $loss::new()
            .activation(Activation::$activation)
            .grouping(Grouping::SampleAndClass)
            .smooth_nr(1e-5)
            .smooth_dr(1e-5)
            .eps(0.0)
    };
}

/// All rows. A new loss is a new row: its name, the reference with its keyword arguments, the sizes, the arguments, the
/// call.
#[rustfmt::skip]
fn rows() -> Vec<Row> {
    let row = |name, reference, options, sizes, inputs, call| Row { name, reference, options, sizes, inputs, call };
    vec![
        row("MseLoss", "torch.nn.MSELoss", json!({}), POINTWISE, reals, |_| pair(MseLoss::new())),
        row("L1Loss", "torch.nn.L1Loss", json!({}), POINTWISE, reals, |_| pair(L1Loss::new())),
        row("SmoothL1Loss", "torch.nn.SmoothL1Loss", json!({}), POINTWISE, reals, |_| pair(SmoothL1Loss::new())),
        row("HuberLoss", "torch.nn.HuberLoss", json!({}), POINTWISE, reals, |_| pair(HuberLoss::new())),
        row("BceWithLogitsLoss", "torch.nn.BCEWithLogitsLoss", json!({}), POINTWISE,
            |n| on_first([normal(n)?, unit(n)?]), |_| pair(BceWithLogitsLoss::new())),
        row("BceLoss", "torch.nn.BCELoss", json!({}), POINTWISE,
            |n| on_first([unit(n)?, unit(n)?]), |_| pair(BceLoss::new())),
        row("KlDivLoss", "torch.nn.KLDivLoss", json!({}), POINTWISE,
            |n| on_first([unit(n)?.f_log()?, unit(n)?]), |_| pair(KlDivLoss::new())),
        row("PoissonNllLoss", "torch.nn.PoissonNLLLoss", json!({}), POINTWISE,
            |n| on_first([normal(n)?, (unit(n)?.f_mul_scalar(5.0)?).f_floor()?]), |_| pair(PoissonNllLoss::new())),
        row("GaussianNllLoss", "torch.nn.GaussianNLLLoss", json!({}), POINTWISE,
            |n| on(&[0, 2], [normal(n)?, normal(n)?, unit(n)?]), |_| triple(GaussianNllLoss::new(),
            |loss, mean, target, var| loss.f_forward(mean, target, var))),
        row("SoftMarginLoss", "torch.nn.SoftMarginLoss", json!({}), POINTWISE, signed,
            |_| pair(SoftMarginLoss::new())),
        row("HingeEmbeddingLoss", "torch.nn.HingeEmbeddingLoss", json!({}), POINTWISE, signed,
            |_| pair(HingeEmbeddingLoss::new())),
        row("SigmoidFocalLoss", "torchvision.ops.sigmoid_focal_loss", json!({"reduction": "mean"}), POINTWISE,
            |n| on_first([normal(n)?, bits(n)?]), |_| pair(SigmoidFocalLoss::new().alpha(0.25).gamma(2.0))),
        row("CharbonnierLoss", "kornia.losses.CharbonnierLoss", json!({"reduction": "mean"}), POINTWISE, reals,
            |_| pair(CharbonnierLoss::new())),
        row("CauchyLoss", "kornia.losses.CauchyLoss", json!({"reduction": "mean"}), POINTWISE, reals,
            |_| pair(CauchyLoss::new())),
        row("GemanMcClureLoss", "kornia.losses.GemanMcclureLoss", json!({"reduction": "mean"}), POINTWISE, reals,
            |_| pair(GemanMcClureLoss::new())),
        row("WelschLoss", "kornia.losses.WelschLoss", json!({"reduction": "mean"}), POINTWISE, reals,
            |_| pair(WelschLoss::new())),
        row("LogCoshLoss", "papers.robust.log_cosh_loss", json!({}), POINTWISE, reals, |_| pair(LogCoshLoss::new())),
        row("QuantileLoss", "papers.robust.quantile_loss", json!({"quantiles": 0.9}), POINTWISE, reals,
            |_| pair(QuantileLoss::new().quantiles(0.9))),
        row("MsleLoss", "papers.robust.squared_logarithmic_error", json!({}), POINTWISE,
            |n| on_first([unit(n)?, unit(n)?]), |_| pair(MsleLoss::new())),
        row("MapeLoss", "papers.robust.percentage_error", json!({}), POINTWISE,
            |n| on_first([unit(n)?, unit(n)?]), |_| pair(MapeLoss::new())),

        row("CrossEntropyLoss", "torch.nn.CrossEntropyLoss", json!({}), LOGITS, indices,
            |_| pair(CrossEntropyLoss::new())),
        row("CrossEntropyLoss, smoothing and weight", "torch.nn.CrossEntropyLoss",
            json!({"label_smoothing": 0.1, "weight": {"tensor": "weight"}}), LOGITS,
            |n| Ok(Inputs { options: BTreeMap::from([("weight", unit(&n[1..2])?)]), ..indices(n)? }),
            |inputs| pair(CrossEntropyLoss::new().label_smoothing(0.1).weight(inputs.options["weight"].shallow_clone()))),
        row("CrossEntropyLoss, probabilities", "torch.nn.CrossEntropyLoss", json!({}), ROWS,
            |n| on_first([normal(n)?, normal(n)?.f_softmax(1, None)?]), |_| pair(CrossEntropyLoss::new())),
        row("NllLoss", "torch.nn.NLLLoss", json!({}), ROWS,
            |n| on_first([normal(n)?.f_log_softmax(1, None)?, classes(n)?]), |_| pair(NllLoss::new())),
        row("MultiMarginLoss", "torch.nn.MultiMarginLoss", json!({}), ROWS, indices, |_| pair(MultiMarginLoss::new())),
        row("MultiLabelMarginLoss", "torch.nn.MultiLabelMarginLoss", json!({}), ROWS, lists_of_classes,
            |_| pair(MultiLabelMarginLoss::new())),
        row("CategoricalHingeLoss", "papers.categorical_hinge_loss", json!({}), ROWS, indices,
            |_| pair(CategoricalHingeLoss::new())),
        row("DistributionFocalLoss", "papers.distribution_focal_loss", json!({}), BINS,
            |n| on_first([normal(n)?, unit(&n[..1])?.f_mul_scalar((n[1] - 1) as f64)?]),
            |_| pair(DistributionFocalLoss::new())),
        row("SoftmaxFocalLoss", "kornia.losses.FocalLoss",
            json!({"alpha": 0.25, "gamma": 2.0, "reduction": "sum", "ignore_index": null}), LOGITS, indices,
            |_| pair(SoftmaxFocalLoss::new().alpha(0.25).gamma(2.0).reduction(Reduction::Sum))),

        row("PolyCrossEntropyLoss", "timm.loss.PolyCrossEntropy", json!({}), ROWS, indices,
            |_| pair(PolyCrossEntropyLoss::new())),
        row("AsymmetricSingleLabelLoss", "timm.loss.AsymmetricLossSingleLabel", json!({}), ROWS, indices,
            |_| pair(AsymmetricSingleLabelLoss::new())),
        row("JsdCrossEntropyLoss", "timm.loss.JsdCrossEntropy", json!({"num_splits": 2}), ROWS, indices,
            |_| pair(JsdCrossEntropyLoss::new().num_splits(2))),

        row("CosineEmbeddingLoss", "torch.nn.CosineEmbeddingLoss", json!({}), VECTORS,
            |n| on(&[0, 1], [normal(n)?, normal(n)?, signs(&n[..1])?]), |_| triple(CosineEmbeddingLoss::new(),
            |loss, first, second, target| loss.f_forward(first, second, target))),
        row("TripletMarginLoss", "torch.nn.TripletMarginLoss", json!({}), VECTORS,
            |n| on(&[0, 1, 2], [normal(n)?, normal(n)?, normal(n)?]), |_| triple(TripletMarginLoss::new(),
            |loss, anchor, positive, negative| loss.f_forward(anchor, positive, negative))),
        row("TripletMarginWithDistanceLoss", "torch.nn.TripletMarginWithDistanceLoss", json!({}), VECTORS,
            |n| on(&[0, 1, 2], [normal(n)?, normal(n)?, normal(n)?]), |_| triple(TripletMarginWithDistanceLoss::new(),
            |loss, anchor, positive, negative| loss.f_forward(anchor, positive, negative))),
        row("MarginRankingLoss", "torch.nn.MarginRankingLoss", json!({}), POINTWISE,
            |n| on(&[0, 1], [normal(n)?, normal(n)?, signs(n)?]), |_| triple(MarginRankingLoss::new(),
            |loss, first, second, target| loss.f_forward(first, second, target))),
        row("CtcLoss", "torch.nn.CTCLoss", json!({}), SEQUENCES, sequences, |inputs| {
            let lengths = inputs.lists.clone();
            let loss = CtcLoss::new();
            Ok(Box::new(move |of| loss.f_forward(&of[0], &of[1], &lengths[0], &lengths[1])))
        }),

        row("DiceLoss, softmax", "monai.losses.DiceLoss", json!({"softmax": true, "to_onehot_y": true}), REGIONS, labels,
            |inputs| labelled(monai!(DiceLoss, Softmax), inputs)),
        row("DiceLoss, sigmoid", "monai.losses.DiceLoss", json!({"sigmoid": true}), REGIONS, masks,
            |_| pair(monai!(DiceLoss, Sigmoid))),
        row("DiceCrossEntropyLoss", "monai.losses.DiceCELoss", json!({"softmax": true, "to_onehot_y": true}), REGIONS,
            labels, |inputs| labelled(DiceCrossEntropyLoss::new().overlap(monai!(DiceLoss, Softmax)), inputs)),
        row("TverskyLoss", "monai.losses.TverskyLoss",
            json!({"softmax": true, "to_onehot_y": true, "alpha": 0.3, "beta": 0.7}), REGIONS, labels,
            |inputs| labelled(monai!(TverskyLoss, Softmax).alpha(0.3).beta(0.7), inputs)),
        row("JaccardLoss", "monai.losses.DiceLoss",
            json!({"softmax": true, "to_onehot_y": true, "jaccard": true, "smooth_nr": 2e-5, "smooth_dr": 2e-5}), REGIONS,
            labels, |inputs| labelled(monai!(JaccardLoss, Softmax), inputs)),
        row("GeneralizedDiceLoss", "monai.losses.GeneralizedDiceLoss", json!({"softmax": true, "to_onehot_y": true}), REGIONS,
            labels, |inputs| labelled(GeneralizedDiceLoss::new().activation(Activation::Softmax).smooth_nr(1e-5)
            .smooth_dr(1e-5), inputs)),
        row("DiceFocalLoss", "monai.losses.DiceFocalLoss", json!({"sigmoid": true}), REGIONS, masks, |_| {
            let focal = SigmoidFocalLoss::new().alpha(FocalAlpha::None).soft_targets(FocalSoftTargets::Margin);
            pair(DiceFocalLoss::new().overlap(monai!(DiceLoss, Sigmoid)).focal(focal))
        }),
        row("FocalTverskyLoss", "segmentation_models_pytorch.losses.TverskyLoss",
            json!({"mode": "multiclass", "alpha": 0.3, "beta": 0.7, "gamma": 1.5}), PLANES, indices, |_| {
            let loss = FocalTverskyLoss::new().activation(Activation::Softmax).grouping(Grouping::Class);
            let loss = loss.measure(OverlapMeasure::Minimum).weighted_mean(WeightedMean::Weight);
            let loss = loss.empty_mask(EmptyMask::Zero).smooth_nr(0.0).smooth_dr(0.0).eps(1e-7);
            pair(loss.alpha(0.3).beta(0.7).gamma(1.5).power(FocalPower::Reduced))
        }),
        row("MccLoss", "segmentation_models_pytorch.losses.MCCLoss", json!({}), POINTWISE,
            |n| on_first([unit(&[1, 1, 1, n[0]])?, bits(&[1, 1, 1, n[0]])?]), |_| pair(MccLoss::new())),
        row("LovaszHingeLoss", "kornia.losses.LovaszHingeLoss", json!({}), PLANES,
            |n| on_first([normal(&[n[0], 1, n[2], n[3]])?, Tensor::f_randint(2, [n[0], n[2], n[3]], INDEX)?]),
            |_| pair(LovaszHingeLoss::new().per_image(true))),
        row("LovaszSoftmaxLoss", "kornia.losses.LovaszSoftmaxLoss", json!({}), PLANES, indices,
            |_| pair(LovaszSoftmaxLoss::new().per_image(true).classes(LovaszClasses::All))),
        row("SoftClDiceLoss", "monai.losses.SoftclDiceLoss", json!({"smooth": 1.0}), PLANES,
            |n| on_first([unit(n)?, bits(n)?]), |_| pair(SoftClDiceLoss::new().smooth(1.0))),
        row("HausdorffDtLoss", "monai.losses.HausdorffDTLoss", json!({"sigmoid": true}), PLANES, masks,
            |_| pair(HausdorffDtLoss::new().activation(Activation::Sigmoid).include_background(false)
            .grouping(Grouping::SampleAndClass))),
        row("GeneralizedBoxIouLoss", "torchvision.ops.generalized_box_iou_loss", json!({"reduction": "mean"}), BOXES,
            |n| on_first([boxes(n)?, boxes(n)?]), |_| pair(GeneralizedBoxIouLoss::new().reduction(Reduction::Mean))),
        row("DistanceBoxIouLoss", "torchvision.ops.distance_box_iou_loss", json!({"reduction": "mean"}), BOXES,
            |n| on_first([boxes(n)?, boxes(n)?]), |_| pair(DistanceBoxIouLoss::new().reduction(Reduction::Mean))),
        row("CompleteBoxIouLoss", "torchvision.ops.complete_box_iou_loss", json!({"reduction": "mean"}), BOXES,
            |n| on_first([boxes(n)?, boxes(n)?]), |_| pair(CompleteBoxIouLoss::new().reduction(Reduction::Mean))),

        row("MultiLabelSoftMarginLoss", "torch.nn.MultiLabelSoftMarginLoss", json!({}), LABELS, masks,
            |_| pair(MultiLabelSoftMarginLoss::new())),
        row("AsymmetricMultiLabelLoss", "timm.loss.AsymmetricLossMultiLabel", json!({}), LABELS, masks,
            |_| pair(AsymmetricMultiLabelLoss::new())),
        row("PolyBceWithLogitsLoss", "timm.loss.PolyBinaryCrossEntropy", json!({}), LABELS, masks,
            |_| pair(PolyBceWithLogitsLoss::new())),
        row("SoftBceWithLogitsLoss", "segmentation_models_pytorch.losses.SoftBCEWithLogitsLoss", json!({}), LABELS, masks,
            |_| pair(SoftBceWithLogitsLoss::new())),
        row("OneVsRestFocalLoss", "segmentation_models_pytorch.losses.FocalLoss", json!({"mode": "multiclass"}), REGIONS,
            indices, |_| pair(OneVsRestFocalLoss::new())),
        row("QualityFocalLoss", "papers.quality_focal_loss", json!({}), LABELS,
            |n| on_first([normal(n)?, unit(n)?]), |_| pair(QualityFocalLoss::new())),
        row("VarifocalLoss", "papers.varifocal_loss", json!({}), LABELS,
            |n| on_first([normal(n)?, unit(n)?.f_mul(&bits(n)?)?]), |_| pair(VarifocalLoss::new())),
        row("HingeLoss", "papers.hinge_loss", json!({}), LABELS, masks, |_| pair(HingeLoss::new())),

        row("SsimLoss", "kornia.losses.SSIMLoss", json!({"window_size": 11}), IMAGES, images, |_| {
            let loss = SsimLoss::new().padding(SsimPadding::Reflect).eps(1e-12).form(SsimForm::Dissimilarity);
            pair(loss)
        }),
        row("SsimLoss, MONAI's", "monai.losses.SSIMLoss", json!({"spatial_dims": 2}), IMAGES, images,
            |_| pair(SsimLoss::new())),
        row("MsSsimL1Loss", "kornia.losses.MS_SSIMLoss", json!({}), &IMAGES[..3], images, |_| pair(MsSsimL1Loss::new())),
        row("MsSsimLoss", "chains.one_minus_ms_ssim", json!({"spatial_dims": 2}), &[(Medium, &[4, 3, 256, 256])], images,
            |_| pair(MsSsimLoss::new())),
        row("TotalVariationLoss", "kornia.losses.TotalVariation", json!({}), PICTURE, |n| on_first([unit(n)?]),
            |_| {
            let loss = TotalVariationLoss::new().pixels(PixelReduction::Sum).reduction(Reduction::None);
            Ok(Box::new(move |of| loss.f_forward(&of[0])))
        }),
        row("PsnrLoss", "kornia.losses.PSNRLoss", json!({"max_val": 1.0}), IMAGES, images, |_| pair(PsnrLoss::new())),

        row("ContrastiveLoss", "pytorch_metric_learning.losses.ContrastiveLoss", json!({}), BATCHES, batch,
            |_| pair(ContrastiveLoss::new())),
        row("NtXentLoss", "pytorch_metric_learning.losses.NTXentLoss", json!({}), TRIPLETS, batch, |_| pair(NtXentLoss::new())),
        row("SupConLoss", "pytorch_metric_learning.losses.SupConLoss", json!({}), BATCHES, batch, |_| pair(SupConLoss::new())),
        row("MultiSimilarityLoss", "pytorch_metric_learning.losses.MultiSimilarityLoss", json!({}), BATCHES, batch,
            |_| pair(MultiSimilarityLoss::new())),
        row("CircleLoss", "pytorch_metric_learning.losses.CircleLoss", json!({}), BATCHES, batch, |_| pair(CircleLoss::new())),
        row("NPairsLoss", "pytorch_metric_learning.losses.NPairsLoss", json!({}), BATCHES, batch, |_| pair(NPairsLoss::new())),
        row("LiftedStructureLoss", "pytorch_metric_learning.losses.LiftedStructureLoss", json!({}), TRIPLETS, batch,
            |_| pair(LiftedStructureLoss::new())),
        row("GeneralizedLiftedStructureLoss", "pytorch_metric_learning.losses.GeneralizedLiftedStructureLoss", json!({}), BATCHES, batch,
            |_| pair(GeneralizedLiftedStructureLoss::new())),
        row("BatchTripletMarginLoss", "pytorch_metric_learning.losses.TripletMarginLoss", json!({}), TRIPLETS, batch,
            |_| pair(BatchTripletMarginLoss::new())),
        row("ArcFaceLoss", "pytorch_metric_learning.losses.ArcFaceLoss", json!({}), CLASSIFIED,
            |n| classified(n, "W", false), |_| with_vectors(ArcFace::new(), ArcFace::f_forward)),
        row("CosFaceLoss", "pytorch_metric_learning.losses.CosFaceLoss", json!({}), CLASSIFIED,
            |n| classified(n, "W", false), |_| with_vectors(CosFace::new(), CosFace::f_forward)),
        row("ProxyAnchorLoss", "pytorch_metric_learning.losses.ProxyAnchorLoss", json!({}), CLASSIFIED,
            |n| classified(n, "proxies", true), |_| with_vectors(ProxyAnchor::new(), ProxyAnchor::f_forward)),
        row("ProxyNcaLoss", "pytorch_metric_learning.losses.ProxyNCALoss", json!({}), CLASSIFIED,
            |n| classified(n, "proxies", true), |_| with_vectors(ProxyNca::new(), ProxyNca::f_forward)),
        row("BarlowTwinsLoss", "lightly.loss.BarlowTwinsLoss", json!({}), VIEWS, pair_of_views,
            |_| pair(BarlowTwinsLoss::new())),
        row("VicRegLoss", "lightly.loss.VICRegLoss", json!({}), VIEWS, pair_of_views, |_| pair(VicRegLoss::new())),
        row("NegativeCosineSimilarity", "lightly.loss.NegativeCosineSimilarity", json!({}), VECTORS, pair_of_views,
            |_| pair(NegativeCosineSimilarity::new())),

        row("LinearCrossEntropy", "chains.linear_then_cross_entropy", json!({}), LINEAR, linear,
            |inputs| triple(in_chunks(inputs.arguments[0].kind()),
            |loss, x, weight, target| loss.f_forward(x, weight, target, None))),
        row("LinearCrossEntropy, PyTorch's own", "torch.nn.functional.linear_cross_entropy", json!({}), &LINEAR[..2],
            linear, |_| triple(LinearCrossEntropy::new(), |loss, x, weight, target| loss.f_forward(x, weight, target, None))),
    ]
}

/// A loss with its reference at one size.
pub struct Workload {
    /// The loss.
    pub name: &'static str,
    /// The class of the size.
    pub size: Size,
    /// The dimensions.
    pub dims: &'static [i64],
    /// The kind of the floating arguments.
    pub dtype: Dtype,
    row: Rc<Row>,
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id())
    }
}

/// The workloads whose name or reference contains a text of `filter`, a list with commas, regardless of case, at the
/// sizes and of the kind asked for.
pub fn workloads(filter: Option<&str>, sizes: &[Size], dtype: Dtype) -> Vec<Workload> {
    let filter = filter.unwrap_or_default().to_lowercase();
    let contains = |text: &str| filter.split(',').any(|part| text.to_lowercase().contains(part));
    let rows = rows().into_iter().filter(|row| contains(row.name) || contains(row.reference)).map(Rc::new);
    let at_sizes = |row: Rc<Row>| {
        let asked = row.sizes.iter().filter(|(size, _)| sizes.contains(size));
        asked.map(|&(size, dims)| Workload { name: row.name, size, dims, dtype, row: row.clone() }).collect::<Vec<_>>()
    };
    rows.flat_map(at_sizes).collect()
}

impl Workload {
    /// A unique name, which begins with the reference as that of a case does.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.row.reference, self.name, self.shape())
    }

    /// The import path of the Python side.
    pub fn reference(&self) -> &'static str {
        self.row.reference
    }

    /// The dimensions as people write them; elements where there is one dimension.
    pub fn shape(&self) -> String {
        self.dims.iter().map(i64::to_string).collect::<Vec<_>>().join("×")
    }

    /// Whether every element stands for itself, so that memory traffic is the limit.
    pub fn is_pointwise(&self) -> bool {
        self.row.sizes == POINTWISE
    }

    /// The same tensors each time.
    pub fn inputs(&self) -> Result<Inputs> {
        self.drawn_inputs(0)
    }

    /// Others of the same kind for each `seed`.
    pub fn drawn_inputs(&self, seed: i64) -> Result<Inputs> {
        tch::manual_seed(seed);
        let mut inputs = (self.row.inputs)(self.dims)?;
        let state = inputs.state.iter_mut().map(|(_, parameter)| parameter);
        for tensor in inputs.arguments.iter_mut().chain(inputs.options.values_mut()).chain(state) {
            *tensor = self.dtype.f_convert(tensor)?;
        }
        Ok(inputs)
    }

    /// The loss of the crate, ready to be called with the arguments.
    pub fn call(&self, inputs: &Inputs) -> Result<Call> {
        (self.row.call)(inputs)
    }

    /// The workload as a case of the parity format, for the Python side.
    pub fn case_json(&self, inputs: &Inputs) -> Json {
        let tensors = (0..inputs.arguments.len()).map(|position| json!({"tensor": argument_name(position)}));
        let lists = inputs.lists.iter().map(|list| json!(list));
        let mut options = self.row.options.clone();
        inputs.numbers.iter().for_each(|(name, number)| options[*name] = json!(number));
        let state: BTreeMap<_, _> =
            inputs.state.iter().map(|(name, _)| (*name, json!({"tensor": state_name(name)}))).collect();
        json!({
            "id": self.id(),
            "reference": self.row.reference,
            "options": options,
            "inputs": tensors.chain(lists).collect::<Vec<_>>(),
            "grad": inputs.grad,
            "state": state,
        })
    }

    /// The same case for the comparer.
    pub fn case(&self, inputs: &Inputs) -> Result<Case> {
        let document = json!({"format": crate::case::FORMAT, "cases": [self.case_json(inputs)]});
        Ok(parse_cases(&document.to_string())?.swap_remove(0))
    }
}

fn argument_name(position: usize) -> String {
    format!("argument/{position}")
}

fn state_name(name: &str) -> String {
    format!("state/{name}")
}

impl Inputs {
    /// All tensors by their names in the case.
    pub fn tensors(&self) -> Tensors {
        let arguments = self.arguments.iter().enumerate();
        let arguments = arguments.map(|(position, tensor)| (argument_name(position), tensor.shallow_clone()));
        let options = self.options.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone()));
        let state = self.state.iter().map(|(name, parameter)| (state_name(name), parameter.shallow_clone()));
        arguments.chain(options).chain(state).collect()
    }

    /// What the call gets: the positional arguments, and behind them the parameters.
    pub fn all(&self) -> Vec<Tensor> {
        let state = self.state.iter().map(|(_, parameter)| parameter);
        self.arguments.iter().chain(state).map(Tensor::shallow_clone).collect()
    }

    /// The positions in that of what has a gradient, and the names of these gradients in the results.
    pub fn differentiated(&self) -> Vec<(usize, String)> {
        let arguments = self.grad.iter().map(|position| (*position, format!("grad/{position}")));
        let state = self.state.iter().zip(self.arguments.len()..);
        arguments.chain(state.map(|((name, _), position)| (position, format!("grad_state/{name}")))).collect()
    }

    /// The same with leaves in place of those to differentiate with respect to.
    pub fn with_leaves(&self) -> Result<Vec<Tensor>> {
        let mut all = self.all();
        for (position, _) in self.differentiated() {
            all[position] = all[position].f_detach()?.f_set_requires_grad(true)?;
        }
        Ok(all)
    }

    /// The same on another device.
    pub fn f_to_device(&self, device: Device) -> Result<Inputs> {
        self.f_map(|tensor| Ok(tensor.f_to_device(device)?))
    }

    /// The same in double precision.
    pub fn f_to_double(&self) -> Result<Inputs> {
        self.f_map(|tensor| Dtype::F64.f_convert(tensor))
    }

    fn f_map(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Inputs> {
        let arguments = self.arguments.iter().map(&change).collect::<Result<_>>()?;
        let options = self.options.iter().map(|(name, tensor)| Ok((*name, change(tensor)?)));
        let state = self.state.iter().map(|(name, tensor)| Ok((*name, change(tensor)?)));
        let (lists, numbers) = (self.lists.clone(), self.numbers.clone());
        let (options, state) = (options.collect::<Result<_>>()?, state.collect::<Result<_>>()?);
        Ok(Inputs { arguments, grad: self.grad, lists, options, state, numbers })
    }

    /// The bytes of all arguments, and of those to differentiate with respect to.
    pub fn bytes(&self) -> (usize, usize) {
        let of = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        let all = self.all();
        let leaves = self.differentiated().iter().map(|(position, _)| of(&all[*position])).sum();
        (all.iter().map(of).sum(), leaves)
    }
}

// The calls.

fn pair(loss: impl Loss + 'static) -> Result<Call> {
    Ok(Box::new(move |of| loss.f_forward(&of[0], &of[1])))
}

fn triple<L: 'static>(loss: L, call: fn(&L, &Tensor, &Tensor, &Tensor) -> Result<Tensor, LossError>) -> Result<Call> {
    Ok(Box::new(move |of| call(&loss, &of[0], &of[1], &of[2])))
}

/// A loss of embeddings, vectors of classes and classes, in this order; the vectors are the parameter of the reference.
fn with_vectors<L: 'static>(
    loss: L,
    call: fn(&L, &Tensor, &Tensor, &Tensor) -> Result<Tensor, LossError>,
) -> Result<Call> {
    Ok(Box::new(move |of| call(&loss, &of[0], &of[2], &of[1])))
}

/// The linear cross entropy in chunks. As the reference's, the products of `bf16` are of this kind; in `f16` they are
/// much slower on a CPU than the default ones of single precision.
fn in_chunks(kind: Kind) -> LinearCrossEntropy {
    let loss = LinearCrossEntropy::new().chunking(Chunking::default());
    if kind == Kind::BFloat16 { loss.acc_dtype(kind) } else { loss }
}

/// MONAI's labels have a channel of their own, `[N, 1, …]`; the crate's have not.
fn labelled(loss: impl Loss + 'static, inputs: &Inputs) -> Result<Call> {
    let target = inputs.arguments[1].f_squeeze_dim(1)?;
    Ok(Box::new(move |of| loss.f_forward(&of[0], &target)))
}

// The arguments.

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
const INDEX: (Kind, Device) = (Kind::Int64, Device::Cpu);

fn on<const N: usize>(grad: &'static [usize], arguments: [Tensor; N]) -> Result<Inputs> {
    let (lists, options, state, numbers) = (Vec::new(), BTreeMap::new(), Vec::new(), Vec::new());
    Ok(Inputs { arguments: arguments.into(), grad, lists, options, state, numbers })
}

fn on_first<const N: usize>(arguments: [Tensor; N]) -> Result<Inputs> {
    on(&[0], arguments)
}

fn normal(dims: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_randn(dims, FLOAT)?)
}

/// Numbers between 0.05 and 0.95.
fn unit(dims: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_rand(dims, FLOAT)?.f_mul_scalar(0.9)?.f_add_scalar(0.05)?)
}

/// Zeros and ones.
fn bits(dims: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_randint(2, dims, FLOAT)?)
}

/// Minus and plus one.
fn signs(dims: &[i64]) -> Result<Tensor> {
    Ok(bits(dims)?.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?)
}

/// An index of a class for `[N, C, …]`: `[N, …]`.
fn classes(dims: &[i64]) -> Result<Tensor> {
    let shape = [&dims[..1], &dims[2..]].concat();
    Ok(Tensor::f_randint(dims[1], shape, INDEX)?)
}

/// Corners `x1, y1, x2, y2` of boxes of which many overlap.
fn boxes(dims: &[i64]) -> Result<Tensor> {
    let corner = unit(&[dims[0], 2])?;
    let far = corner.f_add(&unit(&[dims[0], 2])?)?;
    Ok(Tensor::f_cat(&[corner, far], 1)?)
}

fn reals(dims: &[i64]) -> Result<Inputs> {
    on_first([normal(dims)?, normal(dims)?])
}

/// Images of which one is the other with noise.
fn images(dims: &[i64]) -> Result<Inputs> {
    let target = unit(dims)?;
    on_first([target.f_add(&normal(dims)?.f_mul_scalar(0.1)?)?, target])
}

fn signed(dims: &[i64]) -> Result<Inputs> {
    on_first([normal(dims)?, signs(dims)?])
}

fn indices(dims: &[i64]) -> Result<Inputs> {
    on_first([normal(dims)?, classes(dims)?])
}

fn labels(dims: &[i64]) -> Result<Inputs> {
    on_first([normal(dims)?, classes(dims)?.f_unsqueeze(1)?])
}

fn masks(dims: &[i64]) -> Result<Inputs> {
    on_first([normal(dims)?, bits(dims)?])
}

/// Classes of samples, in no order, up to the first −1.
fn lists_of_classes(dims: &[i64]) -> Result<Inputs> {
    let order = normal(dims)?.f_argsort(1, false)?;
    let outside = Tensor::f_arange(dims[1], INDEX)?.f_ge(dims[1] / 8)?;
    on_first([normal(dims)?, order.f_masked_fill(&outside, -1)?])
}

/// Embeddings and their classes, of each of which there are some.
fn batch(dims: &[i64]) -> Result<Inputs> {
    on_first([normal(dims)?, Tensor::f_arange(dims[0], INDEX)?.f_remainder(dims[0] / 4)?])
}

/// Two views of samples that are alike.
fn pair_of_views(dims: &[i64]) -> Result<Inputs> {
    let view = normal(dims)?;
    let other = view.f_add(&normal(dims)?)?;
    on(&[0, 1], [view, other])
}

/// Embeddings, their classes, and a vector for each class, a row of the parameter of this name, or a column.
fn classified(dims: &[i64], name: &'static str, rows: bool) -> Result<Inputs> {
    let &[samples, features, classes] = dims else { anyhow::bail!("embeddings of classes have three dimensions") };
    let vectors = normal(&if rows { [classes, features] } else { [features, classes] })?;
    let arguments = [normal(&[samples, features])?, Tensor::f_randint(classes, [samples], INDEX)?];
    let numbers = vec![("num_classes", classes), ("embedding_size", features)];
    Ok(Inputs { state: vec![(name, vectors)], numbers, ..on_first(arguments)? })
}

fn sequences(dims: &[i64]) -> Result<Inputs> {
    let &[steps, samples, symbols] = dims else { anyhow::bail!("a sequence has three dimensions") };
    let labels = steps / 8;
    let targets = Tensor::f_randint_low(1, symbols, [samples, labels], INDEX)?;
    let lists = vec![vec![steps; samples as usize], vec![labels; samples as usize]];
    Ok(Inputs { lists, ..on_first([normal(dims)?.f_log_softmax(2, None)?, targets])? })
}

fn linear(dims: &[i64]) -> Result<Inputs> {
    let &[rows, features, classes] = dims else { anyhow::bail!("a linear layer has three dimensions") };
    let weight = normal(&[classes, features])?.f_div_scalar((features as f64).sqrt())?;
    let target = Tensor::f_randint(classes, [rows], INDEX)?;
    on(&[0, 1], [normal(&[rows, features])?, weight, target])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters;
    use crate::bench::ours::Ours;
    use crate::compare::{Sides, Verdict, compare_case};
    use crate::eval::{evaluate, run_adapter};

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let all = workloads(None, Size::value_variants(), Dtype::F32);
        let ids: std::collections::HashSet<String> = all.iter().map(Workload::id).collect();
        assert_eq!(ids.len(), all.len());
    }

    #[test]
    fn a_filter_finds_names_and_references() {
        assert!(
            workloads(Some("gaussiannll"), &[Tiny], Dtype::F32)
                .iter()
                .all(|workload| workload.name == "GaussianNllLoss")
        );
        assert!(workloads(Some("monai.losses.DiceCE"), &[Tiny], Dtype::F32).len() == 1);
        assert!(workloads(Some("monai.losses.DiceCE,psnr"), &[Tiny], Dtype::F32).len() == 2);
        assert!(workloads(Some("no such loss"), Size::value_variants(), Dtype::F32).is_empty());
    }

    #[test]
    fn the_calls_are_what_the_adapters_make_of_the_options() {
        let mut compared = 0;
        for workload in workloads(None, &[Tiny], Dtype::F32).iter().filter(|w| adapters::find(w.reference()).is_some())
        {
            let inputs = workload.inputs().unwrap();
            let case = workload.case(&inputs).unwrap();
            let cases = std::slice::from_ref(&case);
            let expected = evaluate(cases, &inputs.tensors(), Device::Cpu, &run_adapter, || ()).unwrap();
            let actual = Ours::new(workload, &inputs).unwrap().results(&workload.id(), &inputs).unwrap();
            let sides = Sides {
                expected: &expected,
                actual: &actual,
                truth: None,
                bitwise: false,
                backend: tch_losses::Backend::Auto,
            };
            let verdict = compare_case(&case, sides);
            assert!(matches!(verdict, Verdict::Equal(_)), "{workload:?}: {verdict:?}");
            compared += 1;
        }
        assert!(compared > 20, "{compared}");
    }
}
