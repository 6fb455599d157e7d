//! Whatever is passed to an `f_forward`, it answers with a value or an error: it never panics.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Device, Kind, Tensor};
use tch_losses::*;

use common::devices;

/// A loss as a function of three tensors; those of fewer arguments ignore the rest.
type Call = Box<dyn Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor, LossError>>;

fn pair(loss: impl Loss + 'static) -> Call {
    Box::new(move |a, b, _| {
        let _ = loss.f_parts(a, b);
        loss.f_forward(a, b)
    })
}

/// The third tensor is the references, of the labels of the batch.
fn with_references(loss: impl EmbeddingLoss + 'static) -> Call {
    Box::new(move |a, b, c| loss.f_forward_with(a, b, c, b))
}

/// Every loss; where an option switches to another computation, both.
fn losses(weight: &Tensor, invalid: InvalidValues) -> Vec<(&'static str, Call)> {
    let w = || weight.shallow_clone();
    let store = || tch::nn::VarStore::new(weight.device());
    vec![
        ("l1", pair(L1Loss::new().broadcast(true))),
        ("l1 weighted", pair(L1Loss::new().weight(w()))),
        ("mse", pair(MseLoss::new().broadcast(true))),
        ("mse weighted", pair(MseLoss::new().weight(w()))),
        ("smooth l1", pair(SmoothL1Loss::new())),
        ("smooth l1 without a parabola", pair(SmoothL1Loss::new().beta(0.0))),
        ("huber", pair(HuberLoss::new())),
        ("huber weighted", pair(HuberLoss::new().weight(w()).broadcast(true))),
        ("log-cosh", pair(LogCoshLoss::new().broadcast(true))),
        ("log-cosh weighted", pair(LogCoshLoss::new().weight(w()))),
        ("quantile", pair(QuantileLoss::new().quantiles(0.9))),
        ("quantiles", pair(QuantileLoss::new().quantiles([0.1, 0.5, 0.9]).weight(w()).broadcast(true))),
        ("charbonnier", pair(CharbonnierLoss::new())),
        ("charbonnier weighted", pair(CharbonnierLoss::new().minimum(CharbonnierMinimum::Eps).weight(w()))),
        ("cauchy", pair(CauchyLoss::new().broadcast(true))),
        ("geman-mcclure", pair(GemanMcClureLoss::new().weight(w()))),
        ("welsch", pair(WelschLoss::new().weight(w()).reduction(Reduction::Sum))),
        ("msle", pair(MsleLoss::new().broadcast(true))),
        ("mape", pair(MapeLoss::new())),
        ("mape weighted", pair(MapeLoss::new().weight(w()))),
        ("ssim", pair(SsimLoss::new().window_size(&[1]))),
        ("ssim over the border", {
            let loss = SsimLoss::new().window_size(&[3]).padding(SsimPadding::Reflect).eps(1e-12);
            pair(loss.scope(SsimScope::Sample).form(SsimForm::Dissimilarity).window(SsimWindow::Uniform))
        }),
        ("ssim of two dimensions", pair(SsimLoss::new().window_size(&[1, 2]).sigma(&[1.0, 2.0]))),
        ("ms-ssim", pair(MsSsimLoss::new().weights(&[0.5, 0.5]).window_size(&[1]).scope(MsSsimScope::Channel))),
        ("ms-ssim and l1", pair(MsSsimL1Loss::new().sigmas(&[0.5, 1.0]))),
        ("psnr", pair(PsnrLoss::new())),
        ("psnr of samples", pair(PsnrLoss::new().scope(PsnrScope::Sample).eps(1e-8))),
        ("total variation", Box::new(|a, _, _| TotalVariationLoss::new().f_forward(a))),
        ("total variation of means", {
            let loss = TotalVariationLoss::new().pixels(PixelReduction::Mean).reduction(Reduction::None);
            Box::new(move |a, _, _| loss.f_forward(a))
        }),
        ("poisson", pair(PoissonNllLoss::new().full(true))),
        ("poisson of rates", pair(PoissonNllLoss::new().log_input(false).broadcast(true))),
        ("cross entropy", pair(CrossEntropyLoss::new().invalid_values(invalid))),
        ("cross entropy weighted", pair(CrossEntropyLoss::new().weight(w()).label_smoothing(0.1).ignore_index(1))),
        ("nll", pair(NllLoss::new().invalid_values(invalid))),
        ("nll weighted", pair(NllLoss::new().weight(w()))),
        ("bce", pair(BceLoss::new().invalid_values(invalid))),
        ("bce weighted", pair(BceLoss::new().weight(w()))),
        ("bce with logits", pair(BceWithLogitsLoss::new())),
        ("bce with logits weighted", pair(BceWithLogitsLoss::new().weight(w()).pos_weight(w()))),
        ("soft margin", pair(SoftMarginLoss::new().broadcast(true))),
        ("multi margin", pair(MultiMarginLoss::new().invalid_values(invalid))),
        ("multi margin weighted", pair(MultiMarginLoss::new().p(2).weight(w()))),
        ("multi-label margin", pair(MultiLabelMarginLoss::new().invalid_values(invalid))),
        ("multi-label soft margin", pair(MultiLabelSoftMarginLoss::new())),
        ("multi-label soft margin weighted", pair(MultiLabelSoftMarginLoss::new().weight(w()).broadcast(true))),
        ("kl div", pair(KlDivLoss::new().reduction(KlDivReduction::BatchMean).broadcast(true))),
        ("kl div of logs", pair(KlDivLoss::new().log_target(true))),
        ("hinge embedding", pair(HingeEmbeddingLoss::new().broadcast(true))),
        ("generalized box iou", pair(GeneralizedBoxIouLoss::new())),
        ("distance box iou", pair(DistanceBoxIouLoss::new().eps(0.0))),
        ("complete box iou", pair(CompleteBoxIouLoss::new())),
        ("quality focal", pair(QualityFocalLoss::new().beta(0.5))),
        ("distribution focal", pair(DistributionFocalLoss::new().invalid_values(invalid))),
        ("varifocal", pair(VarifocalLoss::new())),
        ("asymmetric multi-label", pair(AsymmetricMultiLabelLoss::new())),
        ("asymmetric multi-label weighted", {
            pair(AsymmetricMultiLabelLoss::new().gamma_pos(0.5).weight(w()).pos_weight(w()))
        }),
        ("asymmetric single-label", pair(AsymmetricSingleLabelLoss::new().invalid_values(invalid))),
        ("jsd cross entropy", pair(JsdCrossEntropyLoss::new().num_splits(2).invalid_values(invalid))),
        ("poly cross entropy", pair(PolyCrossEntropyLoss::new().invalid_values(invalid).label_smoothing(0.1))),
        ("poly bce", pair(PolyBceWithLogitsLoss::new().gamma(0.5).alpha(0.25))),
        ("soft bce", pair(SoftBceWithLogitsLoss::new().invalid_values(invalid).mean_over(MeanOver::Counted))),
        ("soft bce weighted", pair(SoftBceWithLogitsLoss::new().weight(w()).target_threshold(0.5))),
        ("cross entropy over all", pair(CrossEntropyLoss::new().ignore_index(1).mean_over(MeanOver::All))),
        ("hinge", pair(HingeLoss::new().p(2))),
        ("categorical hinge", pair(CategoricalHingeLoss::new().invalid_values(invalid))),
        ("lovasz hinge", pair(LovaszHingeLoss::new().ignore_index(1).invalid_values(invalid))),
        ("lovasz hinge per image", pair(LovaszHingeLoss::new().per_image(true).reduction(Reduction::None))),
        ("lovasz softmax", pair(LovaszSoftmaxLoss::new().ignore_index(1).invalid_values(invalid))),
        ("lovasz softmax per image", {
            let classes = LovaszClasses::Only(vec![0, 2]);
            pair(LovaszSoftmaxLoss::new().per_image(true).classes(classes).weight(w()).activation(Activation::None))
        }),
        ("mcc", pair(MccLoss::new())),
        ("mcc of logits", pair(MccLoss::new().activation(Activation::Softmax))),
        ("hausdorff", pair(HausdorffDtLoss::new().invalid_values(invalid))),
        ("hausdorff of logits", {
            let loss = HausdorffDtLoss::new().activation(Activation::Softmax).include_background(false);
            pair(loss.log(true).alpha(0.5).reduction(Reduction::None))
        }),
        ("soft cldice", pair(SoftClDiceLoss::new().invalid_values(invalid))),
        ("dice and soft cldice", pair(SoftDiceClDiceLoss::new().activation(Activation::Sigmoid))),
        ("dice and cross entropy", pair(DiceCrossEntropyLoss::new())),
        ("dice and weighted cross entropy", {
            let entropy = CrossEntropyLoss::new().weight(w()).label_smoothing(0.1).invalid_values(invalid);
            pair(DiceCrossEntropyLoss::new().overlap(JaccardLoss::new()).cross_entropy(entropy))
        }),
        ("dice and binary cross entropy", {
            pair(DiceCrossEntropyLoss::new().cross_entropy(BceWithLogitsLoss::new().weight(w())))
        }),
        ("dice and focal", pair(DiceFocalLoss::new())),
        ("dice and focal of sigmoids", {
            pair(DiceFocalLoss::new().focal(SigmoidFocalLoss::new().weight(w())).focal_background(false))
        }),
        ("dice and one-vs-rest focal", pair(DiceFocalLoss::new().focal(OneVsRestFocalLoss::new()))),
        ("weighted sum", {
            let sum = WeightedSum::new().term("mse", -1.0, MseLoss::new()).term("focal", 0.5, SigmoidFocalLoss::new());
            pair(sum.term("watched", 0.0, BceWithLogitsLoss::new().weight(w())))
        }),
        ("gaussian", {
            let loss = GaussianNllLoss::new().full(true).invalid_values(invalid);
            Box::new(move |a, b, c| loss.f_forward(a, b, c))
        }),
        ("gaussian of a number", Box::new(|a, b, _| GaussianNllLoss::new().broadcast(true).f_forward(a, b, 0.5))),
        ("cosine embedding", Box::new(|a, b, c| CosineEmbeddingLoss::new().f_forward(a, b, c))),
        ("margin ranking", Box::new(|a, b, c| MarginRankingLoss::new().broadcast(true).f_forward(a, b, c))),
        ("triplet", Box::new(|a, b, c| TripletMarginLoss::new().swap(true).broadcast(true).f_forward(a, b, c))),
        ("triplet of absolute differences", { Box::new(|a, b, c| TripletMarginLoss::new().p(1.0).f_forward(a, b, c)) }),
        ("contrastive", pair(ContrastiveLoss::new())),
        ("contrastive of absolute differences", {
            pair(ContrastiveLoss::new().distance(EmbeddingDistance::lp().p(1.0).normalize_embeddings(false)))
        }),
        ("contrastive with references", with_references(ContrastiveLoss::new())),
        ("contrastive of pairs", {
            let loss = ContrastiveLoss::new();
            Box::new(move |a, b, c| loss.f_forward_pairs(a, &EmbeddingPairs::pairs(b, c, c, b), None))
        }),
        ("nt-xent per anchor", pair(NtXentLoss::new().reduction(EmbeddingReduction::PerAnchor(Default::default())))),
        ("triplets that are named", {
            let loss = BatchTripletMarginLoss::new().swap(true);
            Box::new(move |a, b, c| loss.f_forward_pairs(a, &EmbeddingPairs::triplets(b, c, b), None))
        }),
        ("supervised contrastive of triplets and references", {
            let loss = SupConLoss::new();
            Box::new(move |a, b, c| loss.f_forward_pairs(a, &EmbeddingPairs::triplets(b, c, b), Some(a)))
        }),
        ("lifted structure with references", with_references(LiftedStructureLoss::new())),
        ("nt-xent", pair(NtXentLoss::new().distance(EmbeddingDistance::signal_to_noise()))),
        ("nt-xent with references", with_references(NtXentLoss::new())),
        ("supervised contrastive", pair(SupConLoss::new().distance(EmbeddingDistance::lp().p(3.0)))),
        ("nca", pair(NcaLoss::new().softmax_scale(2.0))),
        ("nca with references", with_references(NcaLoss::new())),
        ("supervised contrastive with references", with_references(SupConLoss::new())),
        ("multi-similarity", pair(MultiSimilarityLoss::new().reduction(EmbeddingReduction::None))),
        ("multi-similarity with references", with_references(MultiSimilarityLoss::new())),
        ("circle", pair(CircleLoss::new())),
        ("circle with references", with_references(CircleLoss::new())),
        ("n-pairs", pair(NPairsLoss::new().distance(EmbeddingDistance::lp().normalize_embeddings(false)))),
        ("lifted structure", pair(LiftedStructureLoss::new().reduction(EmbeddingReduction::None))),
        ("generalized lifted structure", pair(GeneralizedLiftedStructureLoss::new())),
        ("generalized lifted structure with references", with_references(GeneralizedLiftedStructureLoss::new())),
        ("all triplets", pair(BatchTripletMarginLoss::new())),
        ("all triplets with references", with_references(BatchTripletMarginLoss::new())),
        ("hardest triplets", pair(BatchTripletMarginLoss::new().swap(true).mining(TripletMining::BatchHard))),
        ("smooth triplets", pair(BatchTripletMarginLoss::new().smooth_loss(true).mining(TripletMining::SemiHard))),
        ("triplet with distance", Box::new(|a, b, c| TripletMarginWithDistanceLoss::new().f_forward(a, b, c))),
        ("triplet with a distance of its own", {
            let loss =
                TripletMarginWithDistanceLoss::new().broadcast(true).distance_function(|a, b| Ok(a.f_eq_tensor(b)?));
            Box::new(move |a, b, c| loss.f_forward(a, b, c))
        }),
        ("dice", pair(DiceLoss::new().activation(Activation::Softmax).invalid_values(invalid).ignore_index(2))),
        ("dice weighted", {
            let loss = DiceLoss::new().activation(Activation::Sigmoid).grouping(Grouping::Sample).weight(w());
            pair(loss.ignore_index(1).log_loss(true).invalid_values(invalid))
        }),
        ("dice of pixels", {
            let loss = DiceLoss::new().ignore_index(1).ignore_scope(IgnoreScope::Pixel).grouping(Grouping::All);
            pair(loss.measure(OverlapMeasure::Minimum).smooth_nr(0.0).smooth_dr(0.0).eps(0.0))
        }),
        ("jaccard", pair(JaccardLoss::new().classes(&[0, 1]).include_background(false).weight(w()))),
        ("tversky", pair(TverskyLoss::new().alpha(0.0).beta(2.0).empty_mask(EmptyMask::Skip).weight(w()))),
        ("focal tversky", pair(FocalTverskyLoss::new().measure(OverlapMeasure::Squared).invalid_values(invalid))),
        ("focal tversky reduced", {
            let loss = FocalTverskyLoss::new().power(FocalPower::Reduced).gamma(3.0).grouping(Grouping::Class);
            pair(loss.empty_mask(EmptyMask::Zero).weight(w()).weighted_mean(WeightedMean::Weight))
        }),
        ("generalized dice", pair(GeneralizedDiceLoss::new().invalid_values(invalid))),
        ("generalized dice of a batch", pair(GeneralizedDiceLoss::new().batch(true).weighting(VolumeWeight::Simple))),
        ("sigmoid focal", pair(SigmoidFocalLoss::new().gamma(0.5).ignore_index(-7))),
        ("sigmoid focal weighted", pair(SigmoidFocalLoss::new().weight(w()).pos_weight(w()).mask(w()))),
        ("sigmoid focal of classes", {
            let loss = SigmoidFocalLoss::new().alpha(w()).normalization(FocalNormalization::PerClass);
            pair(loss.soft_targets(FocalSoftTargets::Terms).reduced_threshold(0.5).mask(w()))
        }),
        ("sigmoid focal normalised", {
            let loss = SigmoidFocalLoss::new().normalization(FocalNormalization::PerClass).ignore_index(1);
            pair(loss.soft_targets(FocalSoftTargets::Likelihood).reduced_threshold(1.0))
        }),
        ("softmax focal", pair(SoftmaxFocalLoss::new().alpha(0.3).invalid_values(invalid))),
        ("softmax focal weighted", {
            let loss = SoftmaxFocalLoss::new().alpha(w()).weight(w()).label_smoothing(0.1).ignore_index(1);
            pair(loss.gamma(0.0).invalid_values(invalid))
        }),
        ("one-vs-rest focal", pair(OneVsRestFocalLoss::new().alpha(0.3).ignore_index(1).invalid_values(invalid))),
        ("one-vs-rest focal weighted", {
            let loss = OneVsRestFocalLoss::new().weight(w()).normalization(FocalNormalization::PerClass);
            pair(loss.invalid_values(invalid).reduction(Reduction::None))
        }),
        ("ctc", Box::new(|a, b, _| CtcLoss::new().f_forward(a, b, [2, 2], [1, 2]))),
        ("linear cross entropy", {
            let loss = LinearCrossEntropy::new().invalid_values(invalid);
            Box::new(move |a, b, c| loss.f_forward(a, b, c, None))
        }),
        ("linear cross entropy's module", {
            pair(LinearCrossEntropyLoss::new(store().root(), 4, 3, LinearCrossEntropyConfig::new()))
        }),
        ("linear cross entropy in chunks", {
            let loss = LinearCrossEntropy::new().chunking(Chunking::Rows(1)).weight(w());
            Box::new(move |a, b, c| loss.f_forward(a, b, c, Some(c)))
        }),
        ("dpo", Box::new(|a, b, c| DpoLoss::new().f_forward(PairLogProbs::new(a, b), Some(PairLogProbs::new(c, b))))),
        ("dpo of a variant", {
            let loss = DpoLoss::new().variant(DpoVariant::DiscoPop(0.05));
            Box::new(move |a, b, _| loss.f_forward(PairLogProbs::new(a, b), None))
        }),
        ("ipo", Box::new(|a, b, _| IpoLoss::new().f_forward(PairLogProbs::new(a, b), None))),
        ("orpo", Box::new(|a, b, _| OrpoLoss::new().f_forward(PairLogProbs::new(a, b), None))),
        ("simpo", Box::new(|a, b, _| SimpoLoss::new().f_forward(PairLogProbs::new(a, b), None))),
        ("cpo", Box::new(|a, b, _| CpoLoss::new().f_forward(PairLogProbs::new(a, b), None))),
        ("kto", Box::new(|a, b, c| KtoLoss::new().f_forward(a, Some(a), b, Some(c)))),
        ("sequence log-probs", {
            let of = SequenceLogProbs::new().invalid_values(invalid).chunking(Chunking::Rows(1));
            Box::new(move |a, b, c| of.f_forward(LinearHead::new(a, b), c))
        }),
        ("linear preference", {
            let loss =
                LinearPreference::new(OrpoLoss::new()).log_probs(SequenceLogProbs::new().invalid_values(invalid));
            Box::new(move |a, b, c| Ok(loss.f_forward_with_nll_target(LinearHead::new(a, b), c, c, None)?.loss))
        }),
        ("linear preference with a reference", {
            let loss = LinearPreference::new(DpoLoss::new());
            Box::new(move |a, b, c| {
                let policy = LinearHead::new(a, b).bias(c);
                Ok(loss.f_forward(policy, c, Some(ReferenceModel::LogProbs(c)))?.loss)
            })
        }),
        ("linear kto", {
            let loss = LinearKto::new(KtoLoss::new());
            Box::new(move |a, b, c| {
                let policy = LinearHead::new(a, b);
                Ok(loss.f_forward(policy, c, c, Some(ReferenceModel::Head(policy)), Some(b))?.loss)
            })
        }),
        ("distillation", {
            let loss = DistillationLoss::new().invalid_values(invalid);
            Box::new(move |a, b, c| loss.f_forward(a, b, Some(c)))
        }),
        ("distillation without labels", {
            let loss = DistillationLoss::new().soft_loss(SoftLoss::Cosine).hard_weight(0.0).reduction(Reduction::None);
            Box::new(move |a, b, _| loss.f_forward(a, b, None))
        }),
        ("linear distillation", {
            let loss = LinearDistillation::new(DistillationLoss::new().invalid_values(invalid));
            let loss = loss.chunking(Chunking::Rows(1));
            Box::new(move |a, b, c| {
                let head = LinearHead::new(a, b);
                Ok(loss.f_forward(head, head.bias(c), Some(c))?.loss)
            })
        }),
        ("adaptive log softmax", {
            let store = tch::nn::VarStore::new(Device::Cpu);
            let config = AdaptiveLogSoftmaxConfig::new();
            let loss = AdaptiveLogSoftmaxWithLoss::new(store.root(), 3, 7, &[2, 4], config);
            Box::new(move |a, b, _| Ok(loss.f_forward(a, b)?.loss))
        }),
        ("barlow twins", pair(BarlowTwinsLoss::new())),
        ("vicreg", pair(VicRegLoss::new())),
        ("negative cosine similarity", pair(NegativeCosineSimilarity::new())),
        ("negative cosine similarity of the last dimension", {
            pair(NegativeCosineSimilarity::new().dim(-1).reduction(Reduction::None))
        }),
        ("dino", {
            let loss = std::cell::RefCell::new(DinoLoss::new(store().root(), 3, DinoConfig::new()));
            Box::new(move |a, b, c| {
                let updated = loss.borrow_mut().f_update_center(&[a, b]);
                updated.and(loss.borrow().f_forward(&[a, b], &[b, c]))
            })
        }),
        ("clip", Box::new(|a, b, c| ClipLoss::new().f_forward(a, b, c))),
        ("clip of a number", Box::new(|a, b, _| ClipLoss::new().label_smoothing(0.1).f_forward(a, b, 5.0))),
        ("siglip", Box::new(|a, b, c| SigLipLoss::new().f_forward(a, b, c, c))),
        ("siglip of numbers", Box::new(|a, b, _| SigLipLoss::new().normalize(false).f_forward(a, b, 5.0, -3.0))),
        ("arcface", Box::new(|a, b, c| ArcFace::new().f_forward(a, c, b))),
        ("arcface of sub-centres", pair(ArcFaceLoss::new(store().root(), 4, 3, ArcFace::new().sub_centers(2)))),
        ("cosface", Box::new(|a, b, c| CosFace::new().f_forward(a, c, b))),
        ("cosface's module", pair(CosFaceLoss::new(store().root(), 4, 3, CosFace::new()))),
        ("proxy anchor", Box::new(|a, b, c| ProxyAnchor::new().f_forward(a, c, b))),
        ("proxy anchor's module", pair(ProxyAnchorLoss::new(store().root(), 4, 3, ProxyAnchor::new()))),
        ("proxy nca", Box::new(|a, b, c| ProxyNca::new().f_forward(a, c, b))),
        ("proxy nca's module", pair(ProxyNcaLoss::new(store().root(), 4, 3, ProxyNca::new()))),
        ("adaptive log softmax's prediction", {
            let store = tch::nn::VarStore::new(Device::Cpu);
            let config = AdaptiveLogSoftmaxConfig::new();
            let loss = AdaptiveLogSoftmaxWithLoss::new(store.root(), 3, 7, &[2, 4], config);
            Box::new(move |a, _, _| loss.f_log_prob(a).and(loss.f_predict(a)))
        }),
    ]
}

const KINDS: [Kind; 8] =
    [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64, Kind::Uint8, Kind::Bool, Kind::ComplexFloat, Kind::Int];

fn arguments(device: Device) -> Vec<Tensor> {
    let of = |shape: &[i64], kind| Tensor::ones(shape, (Kind::Float, device)).to_kind(kind);
    let mut arguments: Vec<Tensor> = KINDS.iter().map(|kind| of(&[2, 3], *kind)).collect();
    for shape in [&[2][..], &[], &[0, 3], &[2, 2, 3], &[1, 2, 2, 2]] {
        arguments.extend([Kind::Float, Kind::Int64, Kind::Bool].map(|kind| of(shape, kind)));
    }
    let dense = &arguments[0];
    let odd = [
        Tensor::new(),
        dense.to_sparse(None::<tch::Layout>, None::<i64>, None::<i64>),
        dense * f64::NAN,
        dense * f64::INFINITY,
        dense * -7,
        (dense * -7).to_kind(Kind::Int64),
        dense.copy().set_requires_grad(true),
    ];
    arguments.extend(odd);
    arguments
}

/// Whether the device still computes: an assertion on a GPU ends all its work for this process.
fn lives(device: Device) -> bool {
    Tensor::f_ones([2], (Kind::Float, device)).and_then(|ones| ones.f_sum(None)?.f_double_value(&[])).is_ok()
}

#[test]
fn no_loss_is_forgotten() {
    common::list::assert_complete("tests/no_panic.rs", include_str!("no_panic.rs"), &[]);
}

/// Tries every pair of arguments, with a third one that changes with the pair: a call panics never, and its error names what is
/// wrong.
#[test]
fn no_call_panics() {
    std::panic::set_hook(Box::new(|_| {}));
    let faults: Vec<String> = devices().into_iter().flat_map(faults_on).collect();
    drop(std::panic::take_hook());
    assert!(faults.is_empty(), "{} kinds of calls fail:\n{}", faults.len(), faults.join("\n"));
}

fn faults_on(device: Device) -> Vec<String> {
    let arguments = arguments(device);
    let weights = [Tensor::ones([2, 3], (Kind::Float, device)), Tensor::ones([3], (Kind::Bool, device))];
    let mut faults: Vec<(&str, String, String)> = Vec::new();
    for (invalid, weight) in [InvalidValues::Error, InvalidValues::Nan].into_iter().zip(&weights) {
        for (name, call) in losses(weight, invalid) {
            for (a, first) in arguments.iter().enumerate() {
                for (b, second) in arguments.iter().enumerate() {
                    let third = &arguments[(a * 5 + b * 3) % arguments.len()];
                    let fault = match catch_unwind(AssertUnwindSafe(|| call(first, second, third).map(drop))) {
                        Err(_) => "panics".to_owned(),
                        // A text of libtorch's names no argument.
                        Ok(Err(error @ LossError::Torch { .. })) if device == Device::Cpu => error.to_string(),
                        Ok(_) => continue,
                    };
                    if faults.iter().any(|(of, known, _)| *of == name && *known == fault) {
                        continue;
                    }
                    let [a, b, c] = [first, second, third].map(describe);
                    faults.push((name, fault, format!("{name} on {device:?}: {a}, {b}, {c}")));
                }
                assert!(lives(device), "{name} has stopped {device:?}, with {}, {invalid:?}", describe(first));
            }
        }
    }
    faults.into_iter().map(|(_, fault, of)| format!("{of}: {fault}")).collect()
}

fn describe(tensor: &Tensor) -> String {
    if !tensor.defined() {
        return "undefined".into();
    }
    let layout = if tensor.is_sparse() { ", sparse" } else { "" };
    format!("{:?}{:?}{layout}", tensor.kind(), tensor.size())
}

/// Every option that is a number, set to `x`, and the shape of the target that its loss takes.
fn with_number(x: f64) -> Vec<(&'static str, bool, Box<dyn Loss>)> {
    let softmax = || DiceLoss::new().activation(Activation::Softmax);
    macro_rules! options {
        ($indices:literal, $($name:ident: $loss:expr),+ $(,)?) => {
            vec![$((
                concat!(stringify!($loss), ".", stringify!($name)),
                $indices,
                Box::new($loss.$name(x)) as Box<dyn Loss>,
            )),+]
        };
    }
    let mut losses = options![
        false,
        alpha: SigmoidFocalLoss::new(),
        gamma: SigmoidFocalLoss::new(),
        gamma: SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Terms),
        gamma: SigmoidFocalLoss::new().normalization(FocalNormalization::All),
        gamma: SigmoidFocalLoss::new().reduced_threshold(0.5),
        reduced_threshold: SigmoidFocalLoss::new(),
        gamma_neg: AsymmetricMultiLabelLoss::new(),
        gamma_pos: AsymmetricMultiLabelLoss::new(),
        gamma_pos: AsymmetricMultiLabelLoss::new().gamma_neg(0.5),
        clip: AsymmetricMultiLabelLoss::new(),
        eps: AsymmetricMultiLabelLoss::new(),
        eps: AsymmetricMultiLabelLoss::new().clip(0.0),
        label_smoothing: AsymmetricMultiLabelLoss::new(),
        epsilon: PolyBceWithLogitsLoss::new(),
        gamma: PolyBceWithLogitsLoss::new(),
        alpha: PolyBceWithLogitsLoss::new(),
        label_smoothing: SoftBceWithLogitsLoss::new(),
        target_threshold: SoftBceWithLogitsLoss::new(),
        margin: HingeLoss::new(),
        margin: HingeLoss::new().p(2),
        beta: QualityFocalLoss::new(),
        alpha: VarifocalLoss::new(),
        gamma: VarifocalLoss::new(),
        eps: CharbonnierLoss::new(),
        scale: CauchyLoss::new(),
        scale: GemanMcClureLoss::new(),
        scale: WelschLoss::new(),
        eps: MsleLoss::new(),
        eps: MapeLoss::new(),
        data_range: SsimLoss::new().window_size(&[3]),
        k1: SsimLoss::new().window_size(&[3]),
        k2: SsimLoss::new().window_size(&[3]),
        eps: SsimLoss::new().window_size(&[3]),
        data_range: MsSsimLoss::new().weights(&[1.0]).window_size(&[3]),
        k1: MsSsimLoss::new().weights(&[1.0]).window_size(&[3]),
        k2: MsSsimLoss::new().weights(&[1.0]).window_size(&[3]),
        data_range: MsSsimL1Loss::new(),
        k1: MsSsimL1Loss::new(),
        k2: MsSsimL1Loss::new(),
        alpha: MsSsimL1Loss::new(),
        compensation: MsSsimL1Loss::new(),
        data_range: PsnrLoss::new(),
        eps: PsnrLoss::new(),
        eps: MccLoss::new(),
        alpha: HausdorffDtLoss::new(),
        smooth: SoftClDiceLoss::new(),
        smooth_nr: SoftClDiceLoss::new(),
        smooth_dr: SoftClDiceLoss::new(),
        alpha: SoftDiceClDiceLoss::new(),
        smooth_nr: SoftDiceClDiceLoss::new(),
        eps: NegativeCosineSimilarity::new(),
        lambda_param: VicRegLoss::new(),
        mu_param: VicRegLoss::new(),
        nu_param: VicRegLoss::new(),
        eps: VicRegLoss::new(),
        smooth_nr: DiceLoss::new(),
        smooth_dr: DiceLoss::new(),
        eps: DiceLoss::new(),
        eps: DiceLoss::new().log_loss(true),
        smooth_nr: GeneralizedDiceLoss::new(),
        smooth_dr: GeneralizedDiceLoss::new(),
        alpha: TverskyLoss::new(),
        beta: TverskyLoss::new(),
        gamma: FocalTverskyLoss::new(),
        gamma: FocalTverskyLoss::new().power(FocalPower::Reduced),
        lambda_dice: DiceFocalLoss::new().focal(SigmoidFocalLoss::new()),
        eps: GeneralizedBoxIouLoss::new(),
        eps: DistanceBoxIouLoss::new(),
        eps: CompleteBoxIouLoss::new(),
        alpha_eps: CompleteBoxIouLoss::new(),
    ];
    losses.extend(options![
        true,
        alpha: SoftmaxFocalLoss::new(),
        gamma: SoftmaxFocalLoss::new(),
        label_smoothing: SoftmaxFocalLoss::new(),
        gamma: OneVsRestFocalLoss::new(),
        reduced_threshold: OneVsRestFocalLoss::new(),
        gamma_neg: AsymmetricSingleLabelLoss::new(),
        gamma_pos: AsymmetricSingleLabelLoss::new(),
        label_smoothing: AsymmetricSingleLabelLoss::new(),
        epsilon: PolyCrossEntropyLoss::new(),
        epsilon: PolyCrossEntropyLoss::new().label_smoothing(0.1),
        alpha: JsdCrossEntropyLoss::new().num_splits(2),
        margin: CategoricalHingeLoss::new(),
        target_threshold: SoftBceWithLogitsLoss::new(),
        smooth_nr: softmax(),
        lambda_ce: DiceCrossEntropyLoss::new(),
        lambda_focal: DiceFocalLoss::new(),
    ]);
    losses
}

const NUMBERS: [f64; 11] =
    [0.0, 1.0, -1.0, 1e-300, 1e39, -1e39, f64::MAX, f64::MIN, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

#[test]
fn no_number_as_an_option_panics() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut panics = Vec::new();
    for (number, kind) in NUMBERS.into_iter().flat_map(|number| [Kind::Float, Kind::Half].map(|kind| (number, kind))) {
        let input = Tensor::rand([2, 2, 3, 4], (Kind::Float, Device::Cpu)).to_kind(kind);
        let (masks, indices) = (input.round(), Tensor::ones([2, 3, 4], (Kind::Int64, Device::Cpu)));
        for (name, of_indices, loss) in with_number(number) {
            let input = input.copy().set_requires_grad(true);
            let target = if of_indices { &indices } else { &masks };
            panics.extend(attempt(name, number, kind, &|| loss.f_forward(&input, target)));
        }
        let (input, labels) = (input.view([6, 8]), Tensor::from_slice(&[0_i64, 0, 1, 1, 2, 2]));
        for (name, loss) in embedding_losses_with_number(number) {
            let input = input.copy().set_requires_grad(true);
            panics.extend(attempt(name, number, kind, &|| loss.f_forward(&input, &labels)));
        }
    }
    assert!(panics.is_empty(), "{} calls panic:\n{}", panics.len(), panics.join("\n"));
}

type Attempt<'a> = &'a dyn Fn() -> Result<Tensor, LossError>;

/// The loss and its gradient, of which a panic is remembered.
fn attempt(name: &str, number: f64, kind: Kind, loss: Attempt) -> Option<String> {
    let call = || loss().and_then(|loss| Ok(loss.f_sum(Kind::Double)?.f_backward()?));
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => assert!(result.is_ok() || number != 1.0, "{name}(1): {result:?}"),
        Err(_) => return Some(format!("{name}({number:e}) in {kind:?}")),
    }
    None
}

/// The same for losses of embeddings and labels.
fn embedding_losses_with_number(x: f64) -> Vec<(&'static str, Box<dyn Loss>)> {
    let distances = || [EmbeddingDistance::lp(), EmbeddingDistance::cosine(), EmbeddingDistance::signal_to_noise()];
    let of_distance = |distance: EmbeddingDistance| -> Box<dyn Loss> {
        Box::new(ContrastiveLoss::new().distance(distance.normalize_embeddings(false)))
    };
    let threshold = |low, high| {
        let reduction = EmbeddingReduction::Threshold { low, high };
        (ContrastiveLoss::new().reduction(reduction), BatchTripletMarginLoss::new().reduction(reduction))
    };
    let (low, high) = (threshold(Some(x), None), threshold(None, Some(x)));
    let triplets = |mining| BatchTripletMarginLoss::new().mining(mining).margin(x);
    let mut losses: Vec<(&'static str, Box<dyn Loss>)> = vec![
        ("low", Box::new(low.0)),
        ("low of triplets", Box::new(low.1)),
        ("high", Box::new(high.0)),
        ("high of triplets", Box::new(high.1)),
        ("pos_margin", Box::new(ContrastiveLoss::new().pos_margin(x))),
        ("neg_margin", Box::new(ContrastiveLoss::new().neg_margin(x))),
        ("temperature of NT-Xent", Box::new(NtXentLoss::new().temperature(x))),
        ("temperature", Box::new(SupConLoss::new().temperature(x))),
        ("softmax_scale", Box::new(NcaLoss::new().softmax_scale(x))),
        ("alpha", Box::new(MultiSimilarityLoss::new().alpha(x))),
        ("beta", Box::new(MultiSimilarityLoss::new().beta(x))),
        ("base", Box::new(MultiSimilarityLoss::new().base(x))),
        ("margin of circles", Box::new(CircleLoss::new().margin(x))),
        ("gamma", Box::new(CircleLoss::new().gamma(x))),
        ("neg_margin of lifted structure", Box::new(LiftedStructureLoss::new().neg_margin(x).pos_margin(x))),
        ("neg_margin, generalized", Box::new(GeneralizedLiftedStructureLoss::new().neg_margin(x).pos_margin(x))),
        ("margin", Box::new(triplets(TripletMining::All))),
        ("margin of semi-hard triplets", Box::new(triplets(TripletMining::SemiHard))),
        ("margin of hardest triplets", Box::new(triplets(TripletMining::BatchHard))),
        ("margin of smooth triplets", Box::new(triplets(TripletMining::SemiHard).smooth_loss(true))),
    ];
    losses.extend(distances().map(|distance| ("p", of_distance(distance.p(x)))));
    losses.extend(distances().map(|distance| ("power", of_distance(distance.power(x)))));
    losses
}

/// Every option of a loss of language models that is a number, set to `x`.
fn of_language_models(x: f64, log_probs: &Tensor) -> Vec<Result<Tensor, LossError>> {
    let pair = PairLogProbs::new(log_probs, log_probs);
    let preferences: Vec<Box<dyn PreferenceLoss>> = vec![
        Box::new(DpoLoss::new().beta(x)),
        Box::new(DpoLoss::new().beta(x).variant(DpoVariant::SppoHard)),
        Box::new(DpoLoss::new().label_smoothing(x)),
        Box::new(DpoLoss::new().variant(DpoVariant::Robust).label_smoothing(x)),
        Box::new(DpoLoss::new().variant(DpoVariant::ExoPair).label_smoothing(x)),
        Box::new(DpoLoss::new().variant(DpoVariant::DiscoPop(x))),
        Box::new(IpoLoss::new().beta(x)),
        Box::new(OrpoLoss::new().beta(x)),
        Box::new(SimpoLoss::new().beta(x)),
        Box::new(SimpoLoss::new().gamma(x)),
        Box::new(CpoLoss::new().beta(x)),
        Box::new(CpoLoss::new().label_smoothing(x)),
    ];
    let labels = Tensor::from_slice(&[true, false]);
    let kto = |loss: KtoLoss| loss.f_forward(log_probs, None, &labels, None);
    let distillation = |loss: DistillationLoss| loss.f_forward(log_probs, log_probs, Some(&Tensor::from(1_i64)));
    let mut results: Vec<_> = preferences.iter().map(|loss| loss.f_forward(pair, None)).collect();
    results.extend([
        kto(KtoLoss::new().beta(x)),
        kto(KtoLoss::new().desirable_weight(x)),
        kto(KtoLoss::new().undesirable_weight(x)),
        distillation(DistillationLoss::new().temperature(x).temperature_squared(true)),
        distillation(DistillationLoss::new().soft_loss(SoftLoss::JensenShannon(x))),
        distillation(DistillationLoss::new().soft_weight(x)),
        distillation(DistillationLoss::new().hard_weight(x)),
    ]);
    let (head, target) = (log_probs.view([2, 1, 1]), Tensor::from_slice(&[0_i64, 1]).view([2, 1]));
    let (weight, log_probs) = (log_probs.view([2, 1]), SequenceLogProbs::new());
    let policy = LinearHead::new(&head, &weight);
    let alpha = LinearPreference::new(DpoLoss::new()).alpha(x).f_forward(policy, &target, None);
    results.extend([alpha.map(|output| output.loss), log_probs.soft_cap(x).f_forward(policy, &target)]);
    results
}

#[test]
fn no_number_as_an_option_of_language_models_panics() {
    let numbers = [0.0, 1.0, -1.0, 1e-300, 1e39, -1e39, f64::MAX, f64::MIN, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    for (number, kind) in numbers.into_iter().flat_map(|number| [Kind::Float, Kind::Half].map(|kind| (number, kind))) {
        let log_probs = Tensor::from_slice(&[-1.0, -2.0]).to_kind(kind).set_requires_grad(true);
        for loss in of_language_models(number, &log_probs).into_iter().flatten() {
            loss.f_sum(Kind::Double).unwrap().f_backward().unwrap();
        }
    }
}

/// The same of losses whose arguments are embeddings `[N, D]`, with a vector for each of N classes or texts.
#[test]
fn no_number_as_an_option_of_embeddings_panics() {
    std::panic::set_hook(Box::new(|_| {}));
    let classes = Tensor::from_slice(&[0_i64, 2, 1]);
    let mut panics = Vec::new();
    for (number, kind) in NUMBERS.into_iter().flat_map(|number| [Kind::Float, Kind::Half].map(|kind| (number, kind))) {
        let embeddings = Tensor::rand([3, 3], (Kind::Float, Device::Cpu)).to_kind(kind).set_requires_grad(true);
        let (x, y, v) = (&embeddings, &classes, &embeddings.detach().flip([0]));
        let calls: [(_, Attempt); 12] = [
            ("barlow twins, lambda_param", &|| BarlowTwinsLoss::new().lambda_param(number).f_forward(x, v)),
            ("clip, logit_scale", &|| ClipLoss::new().f_forward(x, v, number)),
            ("clip, label_smoothing", &|| ClipLoss::new().label_smoothing(number).f_forward(x, v, 1.0)),
            ("siglip, logit_scale", &|| SigLipLoss::new().f_forward(x, v, number, 0.0)),
            ("siglip, logit_bias", &|| SigLipLoss::new().f_forward(x, v, 1.0, number)),
            ("arcface, margin", &|| ArcFace::new().margin(number).f_forward(x, v, y)),
            ("arcface, scale", &|| ArcFace::new().scale(number).f_forward(x, v, y)),
            ("cosface, margin", &|| CosFace::new().margin(number).f_forward(x, v, y)),
            ("cosface, scale", &|| CosFace::new().scale(number).f_forward(x, v, y)),
            ("proxy anchor, margin", &|| ProxyAnchor::new().margin(number).f_forward(x, v, y)),
            ("proxy anchor, alpha", &|| ProxyAnchor::new().alpha(number).f_forward(x, v, y)),
            ("proxy nca, softmax_scale", &|| ProxyNca::new().softmax_scale(number).f_forward(x, v, y)),
        ];
        for (name, call) in calls {
            panics.extend(attempt(name, number, kind, call));
        }
    }
    assert!(panics.is_empty(), "{} calls panic:\n{}", panics.len(), panics.join("\n"));
}

/// Class indices out of range would stop all CUDA work of the process with an assertion of the device.
#[test]
fn a_device_survives_values_out_of_range() {
    for device in devices() {
        let input = Tensor::zeros([2, 3], (Kind::Float, device)).set_requires_grad(true);
        let target = Tensor::from_slice(&[1_i64, 3]).to_device(device);
        let losses = |mode| -> [Box<dyn Loss>; 3] {
            [
                Box::new(CrossEntropyLoss::new().invalid_values(mode)),
                Box::new(NllLoss::new().invalid_values(mode)),
                Box::new(MultiMarginLoss::new().invalid_values(mode)),
            ]
        };
        for loss in losses(InvalidValues::Error) {
            let error = loss.f_forward(&input, &target).unwrap_err().to_string();
            assert!(error.contains('3'), "{error}");
        }
        for loss in losses(InvalidValues::Nan) {
            let value = loss.f_forward(&input, &target).unwrap();
            assert!(f64::try_from(&value).unwrap().is_nan());
            assert_eq!(
                f64::try_from(Tensor::run_backward(&[value], &[&input], false, false)[0].abs().sum(None)).unwrap(),
                0.0
            );
        }
        assert_eq!(f64::try_from(Tensor::ones([2], (Kind::Float, device)).sum(None)).unwrap(), 2.0);
    }
}

/// Plain arguments, among which each loss finds some that it takes.
fn plain_arguments(kind: Kind) -> Vec<Tensor> {
    let random = |shape: &[i64]| common::random::rand(shape).to_kind(kind);
    let signs = || Tensor::from_slice(&[1.0, -1.0]).to_kind(kind);
    let classes = |numbers: &[i64], shape: &[i64]| Tensor::from_slice(numbers).view(shape);
    vec![
        random(&[2, 3]) * 0.8 + 0.1,
        random(&[2, 3]) * 0.8 + 0.1,
        random(&[2, 3]).log_softmax(-1, None),
        classes(&[0, 1], &[2]),
        classes(&[1, 0, 1, 1, -1, 0], &[2, 3]),
        random(&[3, 3]) - 0.5,
        signs(),
        random(&[2]) - 2.0,
        random(&[4, 4]).abs().cumsum(1, kind),
        random(&[4, 4]).abs().cumsum(1, kind),
        classes(&[0, 1, 1, 0], &[4]),
        random(&[1, 3, 4, 6]),
        random(&[1, 3, 4, 6]).round(),
        classes(&[0, 1, 2, 0, 1, 2, 1, 1, 0, 0, 0, 2, 0, 1, 2, 0, 1, 2, 1, 1, 0, 0, 0, 2], &[1, 4, 6]),
        random(&[5, 2, 3]).log_softmax(-1, None),
        random(&[]) + 1.0,
        classes(&[1, 2, 1, 1], &[2, 2]),
        Tensor::from_slice(&[true, false]),
        random(&[2, 2, 3]),
    ]
}

/// The positions of arguments that a loss takes.
type Positions = [usize; 3];

/// The table calls these with one tensor for two arguments that are not alike, or with other shapes than are tried. The centre of DINO moves with each call.
const NOT_TAKEN: [&str; 11] = [
    "dino",
    "dice and focal of sigmoids",
    "supervised contrastive of triplets and references",
    "triplet with a distance of its own",
    "sigmoid focal weighted",
    "sigmoid focal of classes",
    "linear cross entropy in chunks",
    "linear preference",
    "linear preference with a reference",
    "linear kto",
    "linear distillation",
];

/// So many calls of each loss are tried.
const CALLS: usize = 6;

/// For each loss, those of the arguments that it takes: pairs of a first and a second one, with some third one. The weight of
/// the table that it took them with comes first: one for each class, or one for each element.
fn taken() -> Vec<(&'static str, usize, Vec<Positions>)> {
    const THIRD: [usize; 9] = [0, 3, 5, 7, 8, 10, 13, 15, 16];
    let arguments = plain_arguments(Kind::Float);
    let weights = weights(&arguments);
    std::panic::set_hook(Box::new(|_| {}));
    let mut all: Vec<(&'static str, usize, Vec<Positions>)> = Vec::new();
    for (position, weight) in weights.iter().enumerate() {
        for (name, call) in losses(weight, InvalidValues::Error) {
            if NOT_TAKEN.contains(&name) || all.iter().any(|(seen, ..)| *seen == name) {
                continue;
            }
            let works = |[a, b, c]: &Positions| {
                let [a, b, c] = [*a, *b, *c].map(|position| &arguments[position]);
                matches!(catch_unwind(AssertUnwindSafe(|| call(a, b, c))), Ok(Ok(_)))
            };
            let pairs = (0..arguments.len()).flat_map(|a| (0..arguments.len()).map(move |b| (a, b)));
            // An input and a target that are one tensor are no call that anybody makes.
            let different = pairs.filter(|(a, b)| a != b);
            let found = different.filter_map(|(a, b)| THIRD.map(|c| [a, b, c]).into_iter().find(works));
            let found: Vec<Positions> = found.take(CALLS).collect();
            if !found.is_empty() {
                all.push((name, position, found));
            }
        }
    }
    drop(std::panic::take_hook());
    let names = losses(&weights[0], InvalidValues::Error).into_iter().map(|(name, _)| name);
    let missed: Vec<_> =
        names.filter(|name| !NOT_TAKEN.contains(name) && !all.iter().any(|(found, ..)| found == name)).collect();
    assert!(missed.is_empty(), "nothing is tried of {missed:?}");
    all
}

fn weights(arguments: &[Tensor]) -> [Tensor; 2] {
    [Tensor::from_slice(&[0.5, 1.5, 1.0]).to_kind(arguments[0].kind()), &arguments[0] * 2.0]
}

/// Calls `work` with a name, a loss, and arguments that it takes, for some of each loss.
fn each_call(kind: Kind, most: usize, mut work: impl FnMut(String, &Call, &dyn Fn() -> Vec<Tensor>)) {
    let (taken, arguments) = (taken(), plain_arguments(kind));
    let tables = weights(&arguments).map(|weight| losses(&weight, InvalidValues::Error));
    for (name, table, calls) in taken {
        let call = tables[table].iter().find(|(other, _)| *other == name).map(|(_, call)| call).unwrap();
        for positions in calls.into_iter().take(most) {
            let copies = || positions.iter().map(|position| arguments[*position].copy()).collect();
            work(format!("{name}, {kind:?}, {positions:?}"), call, &copies);
        }
    }
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    let numbers = |tensor: &Tensor| Vec::<f64>::try_from(tensor.detach().to_kind(Kind::Double).reshape(-1)).unwrap();
    let bits = |tensor: &Tensor| numbers(tensor).into_iter().map(f64::to_bits).collect::<Vec<_>>();
    a.size() == b.size() && a.kind() == b.kind() && bits(a) == bits(b)
}

/// The gradients of the sum of what a call returns with respect to `leaves`; nothing where it depends on none of them.
fn gradients(
    call: &Call,
    tensors: &[Tensor],
    leaves: &[&Tensor],
    create_graph: bool,
) -> Result<Option<Vec<Tensor>>, LossError> {
    let sum = call(&tensors[0], &tensors[1], &tensors[2])?.f_sum(Kind::Double)?;
    if !sum.requires_grad() {
        return Ok(None);
    }
    Ok(Some(Tensor::f_run_backward(&[sum], leaves, create_graph, create_graph)?))
}

/// What depends on what, in the current backend; faults of the gradients are added to `faults`.
fn dependencies(at: &str, call: &Call, copies: &dyn Fn() -> Vec<Tensor>, faults: &mut Vec<String>) -> Vec<bool> {
    let mut depends = Vec::new();
    for position in 0..3 {
        let tensors = copies();
        if tensors[position].is_floating_point() {
            let _ = tensors[position].set_requires_grad(true);
            let value = call(&tensors[0], &tensors[1], &tensors[2]);
            depends.push(value.is_ok_and(|value| value.requires_grad()));
        }
    }
    let tensors = copies();
    let floating = tensors.iter().filter(|tensor| tensor.is_floating_point());
    let leaves: Vec<Tensor> = floating.map(|tensor| tensor.set_requires_grad(true)).collect();
    let leaves: Vec<&Tensor> = leaves.iter().collect();
    let (first, again) = (gradients(call, &tensors, &leaves, false), gradients(call, &tensors, &leaves, true));
    let (Ok(Some(first)), Ok(Some(again))) = (&first, &again) else {
        if first.is_ok() != again.is_ok() {
            faults.push(format!("{at}: {:?}, {:?}", first.map(|_| ()), again.map(|_| ())));
        }
        return depends;
    };
    depends.extend(first.iter().map(Tensor::defined));
    for (first, again) in first.iter().zip(again) {
        if first.defined() != again.defined() || first.defined() && !same_bits(first, again) {
            faults.push(format!("{at}: {first}, with a graph {again}"));
        }
        // tch ends the process where a backward pass starts from a tensor without a graph.
        if !again.defined() || !again.requires_grad() {
            continue;
        }
        match Tensor::f_run_backward(&[again.sum(Kind::Double)], &leaves, true, false) {
            Ok(second) if second.iter().any(|second| second.defined() && second.internal_is_zerotensor()) => {
                faults.push(format!("{at}: a second derivative without memory"));
            }
            Ok(_) => {}
            // libtorch has none of these.
            Err(error) if error.to_string().contains("not implemented") => {}
            Err(error) => faults.push(format!("{at}: {}", LossError::from(error))),
        }
    }
    depends
}

/// What is asked for next does not change a gradient, and what comes of one that is differentiated has memory. Both backends
/// have gradients for the same arguments.
#[test]
fn gradients_do_not_depend_on_what_follows() {
    let mut faults = Vec::new();
    for kind in [Kind::Float, Kind::Half] {
        each_call(kind, CALLS, |at, call, copies| {
            let [auto, composite] = [Backend::Auto, Backend::Composite].map(|backend| {
                with_backend(backend, || dependencies(&format!("{at}, {backend:?}"), call, copies, &mut faults))
            });
            if auto != composite {
                faults.push(format!("{at}: what has a gradient, {auto:?}, {composite:?}"));
            }
        });
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Tensors of the numbers of `tensor` that are not plain, in words: what is no dense tensor, and what libtorch has yet to make
/// the numbers of.
fn odd_forms(tensor: &Tensor) -> Vec<(&'static str, Tensor)> {
    let layouts = || -> Vec<Result<(&'static str, Tensor), tch::TchError>> {
        let kind = tensor.kind();
        let nested = || {
            let of = |numbers: Vec<i64>| Tensor::f_from_slice(&numbers)?.f_reshape([1, -1]);
            let (sizes, strides) = (of(tensor.size())?, of(tensor.contiguous().stride())?);
            let offsets = Tensor::f_from_slice(&[0_i64])?;
            tensor.f_reshape(-1)?.f_internal_nested_view_from_buffer(&sizes, &strides, &offsets)
        };
        let complex = || Tensor::f_complex(&tensor.f_zeros_like()?, &tensor.f_neg()?);
        vec![
            tensor.f_to_sparse(None::<tch::Layout>, None::<i64>, None::<i64>).map(|odd| ("sparse", odd)),
            tensor.f_to_sparse_csr(None::<i64>).map(|odd| ("CSR", odd)),
            tensor.f_to_sparse_csc(None::<i64>).map(|odd| ("CSC", odd)),
            tensor.f_to_sparse_bsr([1, 1], None::<i64>).map(|odd| ("BSR", odd)),
            tensor.f_to_sparse_bsc([1, 1], None::<i64>).map(|odd| ("BSC", odd)),
            tensor.f_to_mkldnn(None::<Kind>).map(|odd| ("mkldnn", odd)),
            tensor.f_quantize_per_tensor(0.1, 0, Kind::QInt8).map(|odd| ("quantized", odd)),
            nested().map(|odd| ("nested", odd)),
            complex().and_then(|complex| complex.f_conj()?.f_imag()).map(|odd| ("negated", odd)),
            tensor
                .f_to_kind(Kind::Bool)
                .and_then(|flags| flags.f_internal_neg_view())
                .map(|odd| ("negated flags", odd)),
            Tensor::f_internal_efficientzerotensor(tensor.size(), (kind, tensor.device())).map(|odd| ("zeros", odd)),
        ]
    };
    layouts().into_iter().flatten().collect()
}

/// In place of any argument of any loss, and of its weight.
#[test]
fn odd_forms_of_tensors_are_errors_or_taken() {
    const TAKEN: [&str; 2] = ["negated", "zeros"];
    let mut faults = Vec::new();
    let mut check = |at: String, odd: &str, call: &dyn Fn() -> Result<Tensor, LossError>| {
        let both = || {
            let value = call()?;
            let sum = value.f_sum(Kind::Double)?;
            if sum.requires_grad() {
                sum.f_backward()?;
            }
            Ok::<_, LossError>(value)
        };
        match catch_unwind(AssertUnwindSafe(both)) {
            Err(_) => faults.push(format!("{at}: panics with {odd}")),
            // Kinds that do not fit are another matter.
            Ok(Err(LossError::Torch { message, .. })) if !message.contains("dtype") => {
                faults.push(format!("{at}: with {odd}: {message}"))
            }
            Ok(Ok(_)) if !TAKEN.contains(&odd) => faults.push(format!("{at}: takes {odd}")),
            Ok(_) => {}
        }
    };
    each_call(Kind::Float, 2, |at, call, copies| {
        for backend in [Backend::Auto, Backend::Composite] {
            for position in 0..3 {
                for (odd, tensor) in odd_forms(&copies()[position]) {
                    let mut tensors = copies();
                    let used = {
                        // An argument that the loss does not look at may be anything.
                        let before = std::mem::replace(&mut tensors[position], Tensor::new());
                        let used = call(&tensors[0], &tensors[1], &tensors[2]).is_err();
                        drop(before);
                        used
                    };
                    if !used {
                        continue;
                    }
                    tensors[position] = tensor;
                    for tensor in tensors.iter().filter(|tensor| tensor.is_floating_point()) {
                        let _ = tensor.f_set_requires_grad(true);
                    }
                    let call = || with_backend(backend, || call(&tensors[0], &tensors[1], &tensors[2]));
                    check(format!("{at}, {backend:?}, argument {position}"), odd, &call);
                }
            }
        }
    });
    let arguments = plain_arguments(Kind::Float);
    let plain = weights(&arguments);
    let taken = taken();
    for (table, weight) in plain.iter().enumerate() {
        for (odd, weight) in odd_forms(weight) {
            std::panic::set_hook(Box::new(|_| {}));
            let losses = catch_unwind(AssertUnwindSafe(|| losses(&weight, InvalidValues::Error)));
            drop(std::panic::take_hook());
            let Ok(losses) = losses else { continue };
            for (name, call) in losses.iter().filter(|(name, _)| name.contains("weighted")) {
                let Some((.., calls)) = taken.iter().find(|(found, of, _)| found == name && *of == table) else {
                    continue;
                };
                for [a, b, c] in
                    calls.iter().take(2).map(|positions| positions.map(|position| arguments[position].copy()))
                {
                    let a = a.set_requires_grad(true);
                    check(format!("{name}, weight"), odd, &|| call(&a, &b, &c));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Losses of class indices, one for each way that their targets reach an operation or an engine.
fn losses_of_indices(reduction: Reduction) -> Vec<(&'static str, Call)> {
    let smoothed = || CrossEntropyLoss::new().label_smoothing(0.1);
    let weight = || Tensor::from_slice(&[0.5_f32, 1.0, 2.0]);
    let learned = || weight().set_requires_grad(true);
    vec![
        ("cross entropy", pair(CrossEntropyLoss::new().reduction(reduction))),
        ("cross entropy smoothed", pair(smoothed().reduction(reduction))),
        ("cross entropy weighted", pair(CrossEntropyLoss::new().weight(weight()).reduction(reduction))),
        ("cross entropy over all", pair(CrossEntropyLoss::new().mean_over(MeanOver::All).reduction(reduction))),
        ("cross entropy with NaN", {
            pair(CrossEntropyLoss::new().invalid_values(InvalidValues::Nan).reduction(reduction))
        }),
        ("nll", pair(NllLoss::new().reduction(reduction))),
        ("nll weighted", pair(NllLoss::new().weight(weight()).reduction(reduction))),
        ("nll with NaN", pair(NllLoss::new().invalid_values(InvalidValues::Nan).reduction(reduction))),
        ("multi margin", pair(MultiMarginLoss::new().reduction(reduction))),
        ("multi margin weighted", pair(MultiMarginLoss::new().p(2).weight(weight()).reduction(reduction))),
        ("categorical hinge", pair(CategoricalHingeLoss::new().reduction(reduction))),
        ("softmax focal", pair(SoftmaxFocalLoss::new().reduction(reduction))),
        ("softmax focal learned", pair(SoftmaxFocalLoss::new().weight(learned()).reduction(reduction))),
        ("one-vs-rest focal", pair(OneVsRestFocalLoss::new().reduction(reduction))),
        ("poly", pair(PolyCrossEntropyLoss::new().reduction(reduction))),
        ("asymmetric", pair(AsymmetricSingleLabelLoss::new().reduction(reduction))),
        ("jsd", pair(JsdCrossEntropyLoss::new().num_splits(2))),
        ("soft bce", pair(SoftBceWithLogitsLoss::new())),
        ("distillation", {
            let loss = DistillationLoss::new().reduction(reduction);
            Box::new(move |a, b, _| loss.f_forward(a, &a.detach(), Some(b)))
        }),
        ("linear cross entropy", {
            let loss = LinearCrossEntropy::new().reduction(reduction);
            Box::new(move |a, b, _| {
                loss.f_forward(a, &Tensor::eye(3, (Kind::Float, Device::Cpu)).to_kind(a.kind()), b, None)
            })
        }),
        ("linear cross entropy in chunks", {
            let loss = LinearCrossEntropy::new().chunking(Chunking::Rows(1)).reduction(reduction);
            Box::new(move |a, b, _| {
                loss.f_forward(a, &Tensor::eye(3, (Kind::Float, Device::Cpu)).to_kind(a.kind()), b, None)
            })
        }),
        ("arcface", {
            let loss = ArcFace::new();
            Box::new(move |a, b, _| loss.f_forward(a, &Tensor::eye(3, (Kind::Float, Device::Cpu)).to_kind(a.kind()), b))
        }),
        ("proxy nca", {
            let loss = ProxyNca::new();
            Box::new(move |a, b, _| loss.f_forward(a, &Tensor::eye(3, (Kind::Float, Device::Cpu)).to_kind(a.kind()), b))
        }),
        ("proxy anchor", {
            let loss = ProxyAnchor::new();
            Box::new(move |a, b, _| loss.f_forward(a, &Tensor::eye(3, (Kind::Float, Device::Cpu)).to_kind(a.kind()), b))
        }),
        ("contrastive", pair(ContrastiveLoss::new())),
        ("n-pairs", pair(NPairsLoss::new())),
        ("all triplets", pair(BatchTripletMarginLoss::new())),
        ("semi-hard triplets", pair(BatchTripletMarginLoss::new().mining(TripletMining::SemiHard))),
        ("sequence log-probs", {
            let of = SequenceLogProbs::new();
            let weight = |a: &Tensor| Tensor::eye(3, (Kind::Float, Device::Cpu)).to_kind(a.kind());
            Box::new(move |a, b, _| of.f_forward(LinearHead::new(&a.unsqueeze(0), &weight(a)), &b.unsqueeze(0)))
        }),
        ("adaptive log softmax", {
            let store = tch::nn::VarStore::new(Device::Cpu);
            let config = AdaptiveLogSoftmaxConfig::new();
            let loss = AdaptiveLogSoftmaxWithLoss::new(store.root(), 3, 7, &[2, 4], config);
            Box::new(move |a, b, _| Ok(loss.f_forward(a, b)?.loss))
        }),
    ]
}

/// The same of pixels, and of labels that are no classes of rows.
fn losses_of_pixels(reduction: Reduction) -> Vec<(&'static str, Call)> {
    vec![
        ("cross entropy", pair(CrossEntropyLoss::new().reduction(reduction))),
        ("nll", pair(NllLoss::new().reduction(reduction))),
        ("softmax focal", pair(SoftmaxFocalLoss::new().reduction(reduction))),
        ("one-vs-rest focal", pair(OneVsRestFocalLoss::new().reduction(reduction))),
        ("soft bce", pair(SoftBceWithLogitsLoss::new())),
        ("dice", pair(DiceLoss::new().activation(Activation::Softmax).reduction(reduction))),
        ("dice of sigmoids", pair(DiceLoss::new().activation(Activation::Sigmoid))),
        ("dice and cross entropy", pair(DiceCrossEntropyLoss::new())),
        ("dice and focal", pair(DiceFocalLoss::new())),
        ("lovasz softmax", pair(LovaszSoftmaxLoss::new().per_image(true).reduction(reduction))),
        ("soft cldice", pair(SoftClDiceLoss::new().activation(Activation::Softmax))),
        ("hausdorff", pair(HausdorffDtLoss::new().activation(Activation::Softmax))),
        ("generalized dice", pair(GeneralizedDiceLoss::new().activation(Activation::Softmax))),
    ]
}

fn losses_of_lists(reduction: Reduction) -> Vec<(&'static str, Call)> {
    vec![
        ("multi-label margin", pair(MultiLabelMarginLoss::new().reduction(reduction))),
        (
            "ctc",
            Box::new(move |a, b, _| {
                let log_probs = a.unsqueeze(0).repeat([4, 1, 1]);
                CtcLoss::new().reduction(reduction).f_forward(&log_probs, b, vec![4; 4], vec![1; 4])
            }),
        ),
        (
            "ctc of rows",
            Box::new(move |a, b, _| {
                let log_probs = a.unsqueeze(0).repeat([4, 1, 1]);
                CtcLoss::new().reduction(reduction).f_forward(&log_probs, &b.view([4, -1]), vec![4; 4], vec![1; 4])
            }),
        ),
    ]
}

/// `data()` is a name of a tensor's memory that libtorch does not watch.
#[test]
fn targets_may_change_before_the_backward_pass() {
    let mut tried = 0;
    let (none, mean) = (Reduction::None, Reduction::Mean);
    for (kind, reduction) in [(Kind::Float, none), (Kind::Float, mean), (Kind::Half, none)] {
        let random = |shape: &[i64]| common::random::rand(shape).to_kind(kind);
        let (rows, pixels) = (random(&[4, 3]), random(&[1, 3, 4, 6]));
        let classes = Tensor::from_slice(&[0_i64, 1, 1, 0]);
        let planes = Tensor::from_slice(&[0_i64, 1, 2, 0, 1, 2, 1, 1, 0, 0, 0, 2].repeat(2)).view([1, 4, 6]);
        let lists = Tensor::from_slice(&[0_i64, 1, -1, 2, -1, 0, 1, 2, 0, 2, 1, -1]).view([4, 3]);
        let cases = [
            (losses_of_indices(reduction), &rows, &classes),
            (losses_of_pixels(reduction), &pixels, &planes),
            (losses_of_lists(reduction), &rows, &lists),
            (losses_of_lists(reduction), &rows, &(&classes + 1)),
        ];
        let backends = [Backend::Auto, Backend::Composite];
        for (losses, input, target) in &cases {
            for ((name, call), backend) in losses.iter().flat_map(|loss| backends.map(|backend| (loss, backend))) {
                for (value, create_graph) in [100_000_000_i64, -7].map(|value| [(value, false), (value, true)]).concat()
                {
                    let (x, y) = (input.copy().set_requires_grad(true), target.copy());
                    let spoil = || drop(y.data().fill_(value));
                    let Ok(loss) = with_backend(backend, || call(&x, &y, &y)) else {
                        continue;
                    };
                    let sum = loss.sum(Kind::Double);
                    tried += 1;
                    // Spoilt before the first gradient, or before the second.
                    if !create_graph {
                        spoil();
                    }
                    let first = Tensor::f_run_backward(&[&sum], &[&x], true, create_graph);
                    let Ok(first) = first else { continue };
                    assert!(first[0].size() == x.size(), "{name}");
                    spoil();
                    if create_graph && first[0].requires_grad() {
                        drop(Tensor::f_run_backward(&[first[0].sum(Kind::Double)], &[&x], true, true));
                    }
                    // From the start, with a graph.
                    drop(Tensor::f_run_backward(&[&sum], &[&x], true, true));
                }
            }
        }
    }
    assert!(tried > 500, "{tried}");
}

/// Expanded tensors are larger than any memory.
#[test]
fn what_no_memory_holds_is_an_error() {
    const MANY: i64 = 1 << 36;
    let expand = |tensor: Tensor| {
        let mut shape = tensor.size();
        shape[0] = MANY;
        tensor.expand(shape, false)
    };
    let rows = || expand(Tensor::zeros([1, 3], (Kind::Float, Device::Cpu)));
    let indices = || expand(Tensor::zeros([1], (Kind::Int64, Device::Cpu)));
    let masks = || expand(Tensor::ones([1, 3], (Kind::Float, Device::Cpu)));
    let weights = [Tensor::from_slice(&[0.5_f32, 1.5, 1.0]), rows()];
    for weight in &weights {
        for (name, call) in losses(weight, InvalidValues::Error) {
            // What takes the numbers of its rows for labels or for scores has no limit but the machine's.
            for (a, b) in [(rows(), indices()), (rows(), masks()), (rows(), rows())] {
                let result = catch_unwind(AssertUnwindSafe(|| call(&a, &b, &b).map(|_| ())));
                match result {
                    Ok(Err(_)) => {}
                    other => panic!("{name} with {:?}: {other:?}", b.kind()),
                }
            }
        }
    }
}

/// A number that the kind of the computation cannot hold is taken, or the error names it, in both backends.
#[test]
fn a_number_beyond_the_kind_is_named() {
    let mut faults = Vec::new();
    for (number, kind) in
        [1e5, 1e39, -1e39, 1e-300].into_iter().flat_map(|number| [Kind::Float, Kind::Half].map(|kind| (number, kind)))
    {
        let input = common::random::rand([2, 2, 3, 4]).to_kind(kind);
        let (masks, indices) = (input.round(), Tensor::ones([2, 3, 4], (Kind::Int64, Device::Cpu)));
        let mut compare = |name: &str, call: &dyn Fn() -> Result<Tensor, LossError>| {
            let results = [Backend::Auto, Backend::Composite].map(|backend| with_backend(backend, call));
            let texts = results.each_ref().map(|result| result.as_ref().err().map(ToString::to_string));
            if results.iter().any(|result| matches!(result, Err(LossError::Torch { .. }))) || texts[0] != texts[1] {
                faults.push(format!("{name} = {number:e}, {kind:?}: {texts:?}"));
            }
        };
        for (name, of_indices, loss) in with_number(number) {
            compare(name, &|| loss.f_forward(&input, if of_indices { &indices } else { &masks }));
        }
        let loss = GaussianNllLoss::new().eps(number);
        compare("eps of Gaussian", &|| loss.f_forward(&input, &masks, &input));
        compare("beta of smooth l1", &|| SmoothL1Loss::new().beta(number).f_forward(&input, &masks));
        compare("delta", &|| HuberLoss::new().delta(number).f_forward(&input, &masks));
        compare("margin of hinges", &|| HingeEmbeddingLoss::new().margin(number).f_forward(&input, &masks));
        compare("eps of Poisson", &|| PoissonNllLoss::new().log_input(false).eps(number).f_forward(&input, &masks));
        let (input, labels) = (input.view([6, 8]), Tensor::from_slice(&[0_i64, 0, 1, 1, 2, 2]));
        let other = input.flip([0]);
        for (name, loss) in embedding_losses_with_number(number) {
            compare(name, &|| loss.f_forward(&input, &labels));
        }
        let signs = (&labels.remainder(2) * 2 - 1).to_kind(kind);
        compare("margin of cosines", &|| CosineEmbeddingLoss::new().margin(number).f_forward(&input, &other, &signs));
        compare("margin of ranks", &|| {
            MarginRankingLoss::new().margin(number).f_forward(&input.select(1, 0), &other.select(1, 0), &signs)
        });
        compare("margin of scores", &|| MultiMarginLoss::new().margin(number).f_forward(&input, &labels));
        compare("margin of triplets", &|| TripletMarginLoss::new().margin(number).f_forward(&input, &other, &input));
        compare("eps of triplets", &|| TripletMarginLoss::new().eps(number).f_forward(&input, &other, &input));
        compare("p of triplets", &|| TripletMarginLoss::new().p(number).f_forward(&input, &other, &input));
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// What a loss does not depend on has a gradient of zeros that can be differentiated, in both backends: tch ends the process
/// where a backward pass starts from a tensor without a graph.
#[test]
fn a_target_without_a_slope_has_gradients_of_zero() {
    let numbers = |tensor: &Tensor| Vec::<f64>::try_from(tensor.detach()).unwrap();
    for (backend, of_input) in [Backend::Auto, Backend::Composite].into_iter().flat_map(|b| [(b, false), (b, true)]) {
        with_backend(backend, || {
            let x = Tensor::from_slice(&[0.3]).set_requires_grad(of_input);
            let t = Tensor::from_slice(&[1.0]).set_requires_grad(true);
            let loss = HingeEmbeddingLoss::new().f_forward(&x, &t).unwrap();
            let first = Tensor::f_run_backward(&[loss], &[&t], true, true).unwrap().remove(0);
            assert_eq!(numbers(&first), [0.0]);
            let second = Tensor::f_run_backward(&[first.sum(Kind::Double)], &[&t], true, true).unwrap().remove(0);
            assert_eq!(numbers(&second), [0.0]);
        });
    }
}

/// An integer that went through a floating number would be another one.
#[test]
fn any_integer_may_be_the_ignored_one() {
    const MOST: i64 = i64::MAX;
    let (input, pixels) = (common::random::rand([2, 3]), common::random::rand([2, 3, 1, 1]));
    let eye = Tensor::eye(3, (Kind::Double, Device::Cpu));
    for (target, is_nan) in [([0, MOST], false), ([0, 127], true)] {
        let target = Tensor::from_slice(&target);
        let regions = |loss: DiceLoss| {
            let loss = loss.ignore_index(MOST).invalid_values(InvalidValues::Nan).activation(Activation::Softmax);
            loss.f_forward(&pixels, &target.view([2, 1, 1]))
        };
        let of_tokens = SequenceLogProbs::new().ignore_index(MOST).invalid_values(InvalidValues::Nan);
        let of_rows = LinearCrossEntropy::new().ignore_index(Some(MOST)).invalid_values(InvalidValues::Nan);
        let entropy = CrossEntropyLoss::new().ignore_index(MOST).invalid_values(InvalidValues::Nan);
        let likelihood = NllLoss::new().ignore_index(MOST).invalid_values(InvalidValues::Nan);
        let focal = SoftmaxFocalLoss::new().ignore_index(MOST).invalid_values(InvalidValues::Nan);
        let of_labels = SoftBceWithLogitsLoss::new().ignore_index(Some(MOST)).invalid_values(InvalidValues::Nan);
        let distillation = DistillationLoss::new().ignore_index(MOST).invalid_values(InvalidValues::Nan);
        let row = &target.view([1, 2]);
        let calls: [(_, Attempt); 9] = [
            ("dice", &|| regions(DiceLoss::new())),
            ("dice of all", &|| regions(DiceLoss::new().grouping(Grouping::All).measure(OverlapMeasure::Minimum))),
            ("tokens", &|| of_tokens.f_forward(LinearHead::new(&input.unsqueeze(0), &eye), row)),
            ("rows", &|| of_rows.f_forward(&input, &eye, &target, None)),
            ("cross entropy", &|| entropy.f_forward(&input, &target)),
            ("nll", &|| likelihood.f_forward(&input, &target)),
            ("softmax focal", &|| focal.f_forward(&input, &target)),
            ("soft bce", &|| of_labels.f_forward(&input, &target)),
            ("distillation", &|| distillation.f_forward(&input, &input.flip([0]), Some(&target))),
        ];
        for ((name, call), backend) in
            calls.iter().flat_map(|call| [Backend::Auto, Backend::Composite].map(|b| (call, b)))
        {
            match with_backend(backend, call) {
                Ok(loss) => assert_eq!(bool::try_from(loss.isnan().any()).unwrap(), is_nan, "{name}, {backend:?}"),
                Err(error) => panic!("{name}, {backend:?}: {error}"),
            }
        }
    }
}

/// With an option that is NaN nothing can be computed, whatever the loss and the backend.
#[test]
fn nan_is_no_option() {
    const NAN: f64 = f64::NAN;
    let pixels = common::random::rand([2, 2, 3, 4]);
    let (masks, indices) = (pixels.round(), Tensor::ones([2, 3, 4], (Kind::Int64, Device::Cpu)));
    let (rows, labels) = (pixels.view([6, 8]), Tensor::from_slice(&[0_i64, 0, 1, 1, 2, 2]));
    let (other, signs) = (rows.flip([0]), labels.remainder(2) * 2 - 1);
    let (x, y, of_one) = (&rows.select(1, 0), &other.select(1, 0), &signs.to_kind(Kind::Double));
    let mut faults = Vec::new();
    for backend in [Backend::Auto, Backend::Composite] {
        let mut check = |name: &str, call: &dyn Fn() -> Result<Tensor, LossError>| match with_backend(backend, call) {
            Err(LossError::Option { .. }) => {}
            result => faults.push(format!("{name}, {backend:?}: {result:?}")),
        };
        for (name, of_indices, loss) in with_number(NAN) {
            check(name, &|| loss.f_forward(&pixels, if of_indices { &indices } else { &masks }));
        }
        for (name, loss) in embedding_losses_with_number(NAN) {
            check(name, &|| loss.f_forward(&rows, &labels));
        }
        let calls: [(_, Attempt); 16] = [
            ("eps of Gaussian", &|| GaussianNllLoss::new().eps(NAN).f_forward(&pixels, &masks, &pixels)),
            ("eps of Gaussian, number", &|| GaussianNllLoss::new().eps(NAN).f_forward(&pixels, &masks, 1.0)),
            ("eps of Poisson", &|| PoissonNllLoss::new().eps(NAN).f_forward(&pixels, &masks)),
            ("beta", &|| SmoothL1Loss::new().beta(NAN).f_forward(&pixels, &masks)),
            ("delta", &|| HuberLoss::new().delta(NAN).f_forward(&pixels, &masks)),
            ("margin of hinges", &|| HingeEmbeddingLoss::new().margin(NAN).f_forward(&pixels, &masks)),
            ("margin of cosines", &|| CosineEmbeddingLoss::new().margin(NAN).f_forward(&rows, &other, &signs)),
            ("margin of ranks", &|| MarginRankingLoss::new().margin(NAN).f_forward(x, y, of_one)),
            ("margin of scores", &|| MultiMarginLoss::new().margin(NAN).f_forward(&rows, &labels)),
            ("margin of triplets", &|| TripletMarginLoss::new().margin(NAN).f_forward(&rows, &other, &rows)),
            ("eps of triplets", &|| TripletMarginLoss::new().eps(NAN).f_forward(&rows, &other, &rows)),
            ("p of triplets", &|| TripletMarginLoss::new().p(NAN).f_forward(&rows, &other, &rows)),
            ("margin with distance", &|| {
                TripletMarginWithDistanceLoss::new().margin(NAN).f_forward(&rows, &other, &rows)
            }),
            ("label smoothing", &|| CrossEntropyLoss::new().label_smoothing(NAN).f_forward(&rows, &labels)),
            ("z-loss", &|| LinearCrossEntropy::new().z_loss(NAN).f_forward(&rows, &rows, &labels, None)),
            ("soft cap", &|| LinearCrossEntropy::new().soft_cap(NAN).f_forward(&rows, &rows, &labels, None)),
        ];
        for (name, call) in calls {
            check(name, call);
        }
    }
    let log_probs = Tensor::from_slice(&[-1.0, -2.0]);
    for (position, result) in of_language_models(NAN, &log_probs).into_iter().enumerate() {
        if !matches!(result, Err(LossError::Option { .. })) {
            faults.push(format!("language models, {position}: {result:?}"));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
