//! The fused engines against the tensor operations that define the losses.

mod common;

use tch::{Device, Kind, Tensor};
use tch_losses::*;

use common::random::{rand, randint, randn};

/// How the targets of a loss are made.
#[derive(Clone, Copy)]
enum Target {
    Normal,
    Uniform,
    Signs,
    Classes,
    /// Class probabilities without a gradient.
    Shares,
}

/// A loss, given a reduction, a weight for each element and one for each class.
type Build = fn(Reduction, Tensor, Tensor) -> Box<dyn Loss>;

const LOSSES: &[(&str, Target, Build)] = &[
    ("MSE", Target::Normal, |r, _, _| Box::new(MseLoss::new().reduction(r))),
    ("MSE, weighted", Target::Normal, |r, w, _| Box::new(MseLoss::new().weight(w).reduction(r))),
    ("L1", Target::Normal, |r, _, _| Box::new(L1Loss::new().reduction(r))),
    ("L1, weighted", Target::Normal, |r, w, _| Box::new(L1Loss::new().weight(w).reduction(r))),
    ("smooth L1", Target::Normal, |r, _, _| Box::new(SmoothL1Loss::new().beta(0.7).reduction(r))),
    ("Huber", Target::Normal, |r, _, _| Box::new(HuberLoss::new().delta(1.3).reduction(r))),
    ("Huber, weighted", Target::Normal, |r, w, _| Box::new(HuberLoss::new().weight(w).reduction(r))),
    ("log-cosh", Target::Normal, |r, _, _| Box::new(LogCoshLoss::new().reduction(r))),
    ("log-cosh, weighted", Target::Normal, |r, w, _| Box::new(LogCoshLoss::new().weight(w).reduction(r))),
    ("quantile", Target::Normal, |r, _, _| Box::new(QuantileLoss::new().quantiles(0.8).reduction(r))),
    ("Charbonnier", Target::Normal, |r, _, _| Box::new(CharbonnierLoss::new().eps(0.7).reduction(r))),
    ("Charbonnier, weighted", Target::Normal, |r, w, _| {
        Box::new(CharbonnierLoss::new().minimum(CharbonnierMinimum::Eps).weight(w).reduction(r))
    }),
    ("Cauchy", Target::Normal, |r, _, _| Box::new(CauchyLoss::new().scale(0.7).reduction(r))),
    ("Geman-McClure", Target::Normal, |r, _, _| Box::new(GemanMcClureLoss::new().scale(0.7).reduction(r))),
    ("Welsch", Target::Normal, |r, _, _| Box::new(WelschLoss::new().scale(1.5).reduction(r))),
    ("Welsch, weighted", Target::Normal, |r, w, _| Box::new(WelschLoss::new().weight(w).reduction(r))),
    ("MSLE", Target::Uniform, |r, _, _| Box::new(MsleLoss::new().eps(0.1).reduction(r))),
    ("MAPE", Target::Uniform, |r, _, _| Box::new(MapeLoss::new().eps(0.3).reduction(r))),
    ("Poisson", Target::Uniform, |r, _, _| Box::new(PoissonNllLoss::new().reduction(r))),
    ("BCE with logits", Target::Uniform, |r, _, _| Box::new(BceWithLogitsLoss::new().reduction(r))),
    ("BCE with logits, weighted", Target::Uniform, |r, w, _| Box::new(BceWithLogitsLoss::new().weight(w).reduction(r))),
    ("BCE with logits, both weights", Target::Uniform, |r, w, _| {
        Box::new(BceWithLogitsLoss::new().weight(&w + 0.5).pos_weight(w).reduction(r))
    }),
    ("BCE, all gradients", Target::Uniform, |r, _, _| {
        // Not by a sigmoid of libtorch's, whose last digits depend on the number of threads.
        let probabilities = |x: &Tensor| x.square() / (x.square() + 1) * 0.9 + 0.05;
        of(move |x, y| BceLoss::new().reduction(r).f_forward(&probabilities(x), y))
    }),
    ("KL divergence", Target::Uniform, |r, _, _| {
        let reduction = match r {
            Reduction::None => KlDivReduction::None,
            Reduction::Mean => KlDivReduction::Mean,
            Reduction::Sum => KlDivReduction::Sum,
        };
        Box::new(KlDivLoss::new().reduction(reduction))
    }),
    ("soft margin", Target::Signs, |r, _, _| Box::new(SoftMarginLoss::new().reduction(r))),
    ("hinge embedding", Target::Signs, |r, _, _| Box::new(HingeEmbeddingLoss::new().reduction(r))),
    ("sigmoid focal", Target::Uniform, |r, _, _| Box::new(SigmoidFocalLoss::new().reduction(r))),
    ("sigmoid focal, ignored", Target::Uniform, |r, w, _| {
        let mask = w.ge_tensor(&(w.max() * 0.4));
        Box::new(SigmoidFocalLoss::new().mask(mask).weight(w).reduction(r))
    }),
    ("sigmoid focal, γ = 0.5, weighted", Target::Uniform, |r, w, _| {
        Box::new(SigmoidFocalLoss::new().gamma(0.5).alpha(FocalAlpha::None).weight(w).reduction(r))
    }),
    ("sigmoid focal of margins", Target::Uniform, |r, _, _| {
        Box::new(SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Margin).reduction(r))
    }),
    ("sigmoid focal of margins, γ = 0.5, weighted", Target::Uniform, |r, w, _| {
        let loss = SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Margin).alpha(FocalAlpha::None);
        Box::new(loss.gamma(0.5).weight(w).reduction(r))
    }),
    ("sigmoid focal of terms", Target::Uniform, |r, _, _| {
        Box::new(SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Terms).reduction(r))
    }),
    ("sigmoid focal of terms, γ = 0.5, weighted", Target::Uniform, |r, w, _| {
        let loss = SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Terms).alpha(FocalAlpha::None);
        Box::new(loss.gamma(0.5).weight(w).reduction(r))
    }),
    ("sigmoid focal of the likelihood", Target::Uniform, |r, _, _| {
        Box::new(SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Likelihood).reduction(r))
    }),
    ("sigmoid focal of the likelihood, γ = 0.5, weighted", Target::Uniform, |r, w, _| {
        let loss = SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Likelihood).alpha(FocalAlpha::None);
        Box::new(loss.gamma(0.5).weight(w).reduction(r))
    }),
    ("Gaussian", Target::Normal, |r, w, _| {
        of(move |x, y| GaussianNllLoss::new().reduction(r).f_forward(x, y, &(&w + 0.1).to_kind(x.kind())))
    }),
    ("Gaussian, full, one variance", Target::Normal, |r, _, _| {
        of(move |x, y| GaussianNllLoss::new().full(true).reduction(r).f_forward(x, y, 0.3))
    }),
    ("Gaussian, broadcast", Target::Normal, |r, w, _| {
        of(move |x, y| GaussianNllLoss::new().reduction(r).f_forward(x, y, &(&w + 0.1).select(-1, 0).to_kind(x.kind())))
    }),
    ("Gaussian, all gradients", Target::Normal, |r, _, _| {
        of(move |x, y| GaussianNllLoss::new().eps(0.5).reduction(r).f_forward(x, y, &(x * y).square()))
    }),
    ("margin ranking", Target::Normal, |r, w, _| {
        let labels = w.gt(0.5).to_kind(w.kind()) * 2 - 1;
        of(move |x, y| MarginRankingLoss::new().margin(0.3).reduction(r).f_forward(x, y, &labels.to_kind(x.kind())))
    }),
    ("margin ranking, all gradients", Target::Normal, |r, _, _| {
        of(move |x, y| MarginRankingLoss::new().margin(0.3).reduction(r).f_forward(x, y, &(x + y)))
    }),
    ("cosine embedding", Target::Normal, |r, _, _| {
        of(move |x, y| {
            let rows = x.size()[0];
            let labels = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(3) - 1;
            CosineEmbeddingLoss::new().margin(0.1).reduction(r).f_forward(&vectors(x), &vectors(y), &labels)
        })
    }),
    ("triplet", Target::Normal, |r, w, _| {
        of(move |x, y| TripletMarginLoss::new().margin(2.0).reduction(r).f_forward(x, y, &w.to_kind(x.kind())))
    }),
    ("triplet, swap, all gradients", Target::Normal, |r, _, _| {
        of(move |x, y| TripletMarginLoss::new().margin(9.0).swap(true).reduction(r).f_forward(x, y, &(x * 0.4 - y)))
    }),
    ("triplet, p = 1, all gradients", Target::Normal, |r, _, _| {
        of(move |x, y| TripletMarginLoss::new().margin(50.0).p(1.0).reduction(r).f_forward(x, y, &(x * 0.4 - y)))
    }),
    ("triplet, p = 2.5, all gradients", Target::Normal, |r, _, _| {
        of(move |x, y| {
            TripletMarginLoss::new().margin(9.0).p(2.5).swap(true).reduction(r).f_forward(x, y, &(x * 0.4 - y))
        })
    }),
    ("triplet with distance, all gradients", Target::Normal, |r, _, _| {
        of(move |x, y| TripletMarginWithDistanceLoss::new().margin(9.0).reduction(r).f_forward(x, y, &(x * 0.4 - y)))
    }),
    ("GIoU, all gradients", Target::Normal, |r, _, _| {
        of(move |x, y| of_boxes(&GeneralizedBoxIouLoss::new().reduction(r), x, y))
    }),
    ("DIoU, all gradients", Target::Normal, |r, _, _| {
        of(move |x, y| of_boxes(&DistanceBoxIouLoss::new().reduction(r), x, y))
    }),
    ("CIoU, all gradients", Target::Normal, |r, _, _| {
        of(move |x, y| of_boxes(&CompleteBoxIouLoss::new().reduction(r), x, y))
    }),
    ("MCC, all gradients", Target::Uniform, |_, _, _| of(|x, y| MccLoss::new().f_forward(&shares(x), y))),
    ("negative cosine similarity, all gradients", Target::Normal, |r, _, _| {
        of(move |x, y| NegativeCosineSimilarity::new().reduction(r).f_forward(&vectors(x), &vectors(y)))
    }),
    ("poly BCE", Target::Uniform, |r, _, _| {
        Box::new(PolyBceWithLogitsLoss::new().label_smoothing(0.1).reduction(multi_label(r)))
    }),
    ("poly BCE, focal", Target::Uniform, |r, _, _| {
        Box::new(PolyBceWithLogitsLoss::new().gamma(1.7).alpha(0.3).reduction(multi_label(r)))
    }),
    ("soft BCE", Target::Uniform, |r, _, _| {
        Box::new(SoftBceWithLogitsLoss::new().label_smoothing(0.1).reduction(multi_label(r)))
    }),
    ("soft BCE, both weights", Target::Uniform, |r, w, _| {
        Box::new(SoftBceWithLogitsLoss::new().weight(&w + 0.5).pos_weight(w).reduction(multi_label(r)))
    }),
    ("soft BCE, some ignored", Target::Signs, |r, _, _| {
        Box::new(SoftBceWithLogitsLoss::new().ignore_index(-1).reduction(multi_label(r)))
    }),
    ("asymmetric", Target::Uniform, |r, _, _| {
        Box::new(AsymmetricMultiLabelLoss::new().label_smoothing(0.1).reduction(multi_label(r)))
    }),
    ("asymmetric, weighted, other options", Target::Uniform, |r, w, _| {
        let loss = AsymmetricMultiLabelLoss::new().gamma_neg(1.5).gamma_pos(0.5).clip(0.0).eps(0.1);
        Box::new(loss.weight(&w + 0.5).pos_weight(w).reduction(multi_label(r)))
    }),
    ("asymmetric, detached", Target::Uniform, |r, _, _| {
        let reduction = if r == Reduction::Mean { MultiLabelReduction::BatchMean } else { multi_label(r) };
        Box::new(AsymmetricMultiLabelLoss::new().detach_focus(true).reduction(reduction))
    }),
    ("asymmetric, without focus", Target::Uniform, |r, _, _| {
        Box::new(AsymmetricMultiLabelLoss::new().gamma_neg(0.0).gamma_pos(0.0).reduction(multi_label(r)))
    }),
    ("multi-label soft margin", Target::Uniform, |r, _, _| Box::new(MultiLabelSoftMarginLoss::new().reduction(r))),
    ("multi-label soft margin, weighted", Target::Uniform, |r, w, _| {
        Box::new(MultiLabelSoftMarginLoss::new().weight(w).reduction(r))
    }),
    ("hinge", Target::Signs, |r, _, _| Box::new(HingeLoss::new().reduction(r))),
    ("squared hinge", Target::Uniform, |r, _, _| {
        Box::new(HingeLoss::new().p(2).margin(0.7).targets(HingeTargets::Binary).reduction(r))
    }),
    ("quality focal", Target::Uniform, |r, _, _| Box::new(QualityFocalLoss::new().reduction(r))),
    ("quality focal, β = 0.5", Target::Uniform, |r, _, _| {
        // Where the sigmoid is the target, the gradient is infinite, and near that it has few digits.
        of(move |x, y| QualityFocalLoss::new().beta(0.5).reduction(r).f_forward(&(x.abs() + 0.5), &(y * 0.5)))
    }),
    ("varifocal", Target::Uniform, |r, _, _| Box::new(VarifocalLoss::new().gamma(1.5).reduction(r))),
    ("varifocal, negatives", Target::Signs, |r, _, _| {
        of(move |x, y| VarifocalLoss::new().reduction(r).f_forward(x, &y.clamp(0.0, 1.0)))
    }),
    ("one-vs-rest focal", Target::Classes, |r, _, _| Box::new(OneVsRestFocalLoss::new().reduction(r))),
    ("one-vs-rest focal, ignored", Target::Classes, |r, _, _| {
        Box::new(OneVsRestFocalLoss::new().ignore_index(1).reduction(r))
    }),
    ("one-vs-rest focal, balanced", Target::Classes, |r, _, _| {
        Box::new(OneVsRestFocalLoss::new().alpha(0.3).gamma(1.5).reduction(r))
    }),
    ("cross entropy", Target::Classes, |r, _, _| Box::new(CrossEntropyLoss::new().ignore_index(1).reduction(r))),
    ("cross entropy, smoothed, weighted", Target::Classes, |r, _, c| {
        Box::new(CrossEntropyLoss::new().label_smoothing(0.2).weight(c).reduction(r))
    }),
    ("cross entropy, mean over all", Target::Classes, |r, _, _| {
        Box::new(CrossEntropyLoss::new().ignore_index(0).mean_over(MeanOver::All).reduction(r))
    }),
    ("class probabilities", Target::Shares, |r, _, _| constant(CrossEntropyLoss::new().reduction(r))),
    ("class probabilities, smoothed, weighted", Target::Shares, |r, _, c| {
        constant(CrossEntropyLoss::new().label_smoothing(0.2).weight(c).reduction(r))
    }),
    ("poly cross entropy", Target::Classes, |r, _, _| Box::new(PolyCrossEntropyLoss::new().reduction(r))),
    ("poly cross entropy, smoothed", Target::Classes, |r, _, _| {
        Box::new(PolyCrossEntropyLoss::new().epsilon(-0.7).label_smoothing(0.3).reduction(r))
    }),
    ("asymmetric, one label", Target::Classes, |r, _, _| Box::new(AsymmetricSingleLabelLoss::new().reduction(r))),
    ("asymmetric, one label, other options", Target::Classes, |r, _, _| {
        Box::new(AsymmetricSingleLabelLoss::new().gamma_pos(0.5).gamma_neg(0.3).label_smoothing(0.4).reduction(r))
    }),
    ("asymmetric, one label, without focus", Target::Classes, |r, _, _| {
        Box::new(AsymmetricSingleLabelLoss::new().gamma_pos(0.0).gamma_neg(0.0).label_smoothing(0.0).reduction(r))
    }),
    ("JSD", Target::Classes, |_, _, _| {
        of(|x, y| JsdCrossEntropyLoss::new().num_splits(2).f_forward(&Tensor::cat(&[x, &(x * 0.5)], 0), y))
    }),
    ("JSD, three views, none smoothed, some ignored", Target::Classes, |_, _, _| {
        let loss = JsdCrossEntropyLoss::new().label_smoothing(0.0).alpha(2.0);
        of(move |x, y| loss.f_forward(&Tensor::cat(&[x, &(x * 0.5), &(x * -2.0)], 0), &y.masked_fill(&y.eq(1), -100)))
    }),
    ("total variation", Target::Normal, |r, _, _| of(move |x, _| TotalVariationLoss::new().reduction(r).f_forward(x))),
    ("mean total variation", Target::Normal, |r, _, _| {
        of(move |x, _| TotalVariationLoss::new().pixels(PixelReduction::Mean).reduction(r).f_forward(x))
    }),
    ("distribution focal", Target::Uniform, |r, _, _| {
        of(move |x, y| {
            // Quarters between the first or the last two bins, which half precision has as well.
            let bins = Tensor::cat(&[x, &(x * 0.5)], 1).movedim_int(1, -1);
            let positions = (y.detach().select(1, 0) * 4).floor() / 4 + (bins.size()[bins.dim() - 1] - 2).min(9) as f64;
            DistributionFocalLoss::new().reduction(r).f_forward(&bins, &positions)
        })
    }),
    ("softmax focal", Target::Classes, |r, _, _| Box::new(SoftmaxFocalLoss::new().ignore_index(1).reduction(r))),
    ("softmax focal, γ = 0", Target::Classes, |r, _, _| Box::new(SoftmaxFocalLoss::new().gamma(0.0).reduction(r))),
    ("softmax focal, balanced", Target::Classes, |r, _, c| {
        Box::new(SoftmaxFocalLoss::new().gamma(1.5).alpha(c / 3.0).reduction(r))
    }),
    ("Lovász hinge", Target::Signs, |r, _, _| {
        of(move |x, y| LovaszHingeLoss::new().per_image(true).reduction(r).f_forward(x, &y.gt(0.0)))
    }),
];

/// Losses of which an engine computes a part, and operations of libtorch the rest: their sums may depend on the number of threads.
const PARTLY: &[(&str, Target, Build)] = &[
    ("Lovász softmax", Target::Classes, |r, _, _| {
        Box::new(LovaszSoftmaxLoss::new().ignore_index(1).per_image(true).reduction(r))
    }),
    ("Tversky, absent classes cost nothing", Target::Classes, |r, _, _| {
        Box::new(TverskyLoss::new().activation(Activation::Softmax).empty_mask(EmptyMask::Zero).reduction(r))
    }),
    ("focal Tversky, reduced", Target::Classes, |r, _, _| {
        let loss = FocalTverskyLoss::new().activation(Activation::Softmax).power(FocalPower::Reduced);
        Box::new(loss.empty_mask(EmptyMask::Zero).gamma(1.5).reduction(r))
    }),
    ("focal Tversky", Target::Classes, |r, _, _| {
        Box::new(FocalTverskyLoss::new().activation(Activation::Softmax).reduction(r))
    }),
    ("contrastive, by distances", Target::Normal, |_, _, _| {
        of(|x, _| {
            let rows = x.reshape([x.size()[0], -1]);
            let labels = Tensor::arange(rows.size()[0], (Kind::Int64, Device::Cpu)).remainder(2);
            let distance = EmbeddingDistance::lp().normalize_embeddings(false);
            ContrastiveLoss::new().distance(distance).neg_margin(50.0).f_forward(&rows, &labels)
        })
    }),
];

/// A loss of other arguments, which it makes of input and target.
struct Of<F>(F);

impl<F: Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send> Loss for Of<F> {
    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        (self.0)(input, target)
    }
}

fn of(loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static) -> Box<dyn Loss> {
    Box::new(Of(loss))
}

/// A vector of two dimensions at least for each row. The angle of those of one is constant, and its gradient nothing but
/// rounding. What is added is the same in every kind.
fn vectors(x: &Tensor) -> Tensor {
    let rows = x.size()[0];
    Tensor::cat(&[x.reshape([rows, -1]), x.ones_like().reshape([rows, -1])], 1)
}

/// The loss of boxes of which many overlap and some are inverted.
fn of_boxes(loss: &dyn Loss, x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
    let boxes = |x: &Tensor, y: &Tensor| Tensor::stack(&[x * 1.0, y * 0.5, x + 1.5, y + 0.7], -1);
    loss.f_forward(&boxes(x, y), &boxes(y, &(x * 0.9)))
}

fn multi_label(reduction: Reduction) -> MultiLabelReduction {
    match reduction {
        Reduction::None => MultiLabelReduction::None,
        Reduction::Mean => MultiLabelReduction::Mean,
        Reduction::Sum => MultiLabelReduction::Sum,
    }
}

/// The loss without a gradient of its target.
fn constant(loss: impl Loss + 'static) -> Box<dyn Loss> {
    of(move |input, target| loss.f_forward(input, &target.f_detach()?))
}

const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];

/// One element, odd sizes, more than a block, more than a task, many classes.
const SHAPES: [&[i64]; 8] =
    [&[1, 1], &[7, 3], &[2, 5, 3, 2], &[3, 1500], &[1300, 3], &[2, 40, 700], &[1, 2, 41000], &[9, 4100]];

/// The ways in which the same numbers lie in memory.
const LAYOUTS: [fn(&Tensor) -> Tensor; 4] = [
    |tensor| tensor.contiguous(),
    // Classes last.
    |tensor| tensor.movedim_int(1, -1).contiguous().movedim_int(-1, 1),
    // With gaps.
    |tensor| Tensor::stack(&[tensor, tensor], -1).select(-1, 0),
    // Dimensions in reverse order.
    |tensor| reversed(&reversed(tensor).contiguous()),
];

fn reversed(tensor: &Tensor) -> Tensor {
    let dims: Vec<i64> = (0..tensor.dim() as i64).rev().collect();
    tensor.permute(dims)
}

fn random(shape: &[i64]) -> Tensor {
    rand(shape)
}

fn normal(shape: &[i64]) -> Tensor {
    randn(shape) * 2.0
}

fn target(kind: Target, shape: &[i64]) -> Tensor {
    match kind {
        Target::Normal => normal(shape),
        Target::Uniform => random(shape),
        Target::Signs => random(shape).gt(0.5).to_kind(Kind::Double) * 2.0 - 1.0,
        Target::Shares => normal(shape).softmax(1, Kind::Double),
        Target::Classes => {
            let mut rows = shape.to_vec();
            let classes = rows.remove(1);
            randint(classes, rows)
        }
    }
}

/// The value and the gradients of three times the loss, of the arguments that have one.
fn results(backend: Backend, loss: &dyn Loss, input: &Tensor, target: &Tensor) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = [input, target].into_iter().filter(|t| t.is_floating_point()).map(leaf).collect();
    let target = leaves.get(1).unwrap_or(target);
    let value = with_backend(backend, || loss.forward(&leaves[0], target));
    let weights = Tensor::linspace(1.0, 3.0, value.numel() as i64, (Kind::Double, Device::Cpu));
    let weights = weights.view_as(&value).to_kind(value.kind());
    let sum = (&value * weights * 3.0).sum(None);
    let gradients = Tensor::run_backward(&[sum], &leaves, false, false);
    // No gradient and a gradient of zeros say the same.
    let gradients = gradients
        .into_iter()
        .zip(&leaves)
        .map(|(gradient, leaf)| if gradient.defined() { gradient.detach() } else { leaf.detach().zeros_like() });
    std::iter::once(value.detach()).chain(gradients).collect()
}

/// Probabilities by operations that round alike on any number of threads, as libtorch's sigmoid does not.
fn shares(x: &Tensor) -> Tensor {
    (x * 0.1 + 0.5).clamp(0.0, 1.0)
}

/// A leaf in the same layout.
fn leaf(tensor: &Tensor) -> Tensor {
    tensor.detach().set_requires_grad(true)
}

fn assert_close(actual: &[Tensor], expected: &[Tensor], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (position, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert_eq!((actual.size(), actual.kind()), (expected.size(), expected.kind()), "{what}, {position}");
        if expected.numel() == 0 {
            continue;
        }
        let step = match expected.kind() {
            Kind::Double => 1e-15,
            // Half precision is computed in single precision, which is how exact a difference is that cancels; nine is
            // the largest incoming gradient, and a mean shares it out. The least numbers of f16 are 2⁻²⁴ apart.
            kind => {
                let least = if kind == Kind::Half { 2_f64.powi(-24) } else { 0.0 };
                (9.0 * f64::from(f32::EPSILON) / expected.numel().max(1) as f64).max(least)
            }
        };
        let (actual, expected) = (actual.to_kind(Kind::Double), expected.to_kind(Kind::Double));
        // A sum beyond the kind is infinite on both sides.
        let same = actual.eq_tensor(&expected);
        let scale = expected.masked_fill(&expected.isinf(), 0.0).abs().max().double_value(&[]);
        let distance = (&actual - &expected).masked_fill(&same, 0.0).abs().max().double_value(&[]);
        assert!(distance <= tolerance * scale + step, "{what}, {position}: {distance:e} of {scale:e}");
    }
}

/// Calls `property` with every one of the `losses`, its name, and arguments of every shape.
fn for_all(
    losses: &[(&str, Target, Build)],
    kind: Kind,
    property: impl Fn(&str, &dyn Fn(Reduction) -> Box<dyn Loss>, &Tensor, &Tensor),
) {
    for (name, of_target, build) in losses {
        // The softmax of a single class is an error in the losses of regions.
        let several = ["Lovász softmax", "Tversky", "focal Tversky"].iter().any(|regions| name.starts_with(regions));
        for shape in SHAPES.into_iter().filter(|shape| shape[1] > 1 || !several) {
            let (input, target, weight, classes) =
                (normal(shape), target(*of_target, shape), random(shape), random(&shape[1..2]) + 0.1);
            let target = if target.is_floating_point() { target.to_kind(kind) } else { target };
            let [input, weight, classes] = [input, weight, classes].map(|tensor| tensor.to_kind(kind));
            let build = |reduction| build(reduction, weight.shallow_clone(), classes.shallow_clone());
            property(&format!("{name} {shape:?}"), &build, &input, &target);
        }
    }
}

#[test]
fn engines_compute_what_tensor_operations_do() {
    for_all(&[LOSSES, PARTLY].concat(), Kind::Double, |name, build, input, target| {
        for (layout, arrange) in LAYOUTS.iter().enumerate() {
            let target = if target.is_floating_point() { arrange(target) } else { target.shallow_clone() };
            for reduction in REDUCTIONS {
                let results = |backend| results(backend, build(reduction).as_ref(), &arrange(input), &target);
                let what = format!("{name}, layout {layout}, {reduction:?}");
                assert_close(&results(Backend::Auto), &results(Backend::Composite), 1e-11, &what);
            }
        }
    });
}

#[test]
fn hinges_are_those_of_tensor_operations() {
    for shape in SHAPES.iter().filter(|shape| shape.len() == 2) {
        let (input, target, weight) = (normal(shape), target(Target::Classes, shape), random(&shape[1..]));
        for (p, reduction) in REDUCTIONS.into_iter().flat_map(|reduction| [(1, reduction), (2, reduction)]) {
            let weight = weight.shallow_clone();
            let weighted = MultiMarginLoss::new().weight(weight).margin(0.3);
            let losses: [Box<dyn Loss>; 3] = [
                Box::new(MultiMarginLoss::new().p(p).reduction(reduction)),
                Box::new(weighted.p(p).reduction(reduction)),
                Box::new(CategoricalHingeLoss::new().margin(p as f64).reduction(reduction)),
            ];
            for loss in losses {
                for (layout, arrange) in LAYOUTS.iter().enumerate() {
                    let results = |backend| results(backend, loss.as_ref(), &arrange(&input), &target);
                    let what = format!("{shape:?}, p = {p}, layout {layout}, {reduction:?}");
                    assert_close(&results(Backend::Auto), &results(Backend::Composite), 1e-11, &what);
                }
            }
        }
    }
}

#[test]
fn hinges_of_labels_are_those_of_tensor_operations() {
    let whole = |tensor: &Tensor| (tensor * 4.0).round() / 4.0;
    for shape in SHAPES.iter().filter(|shape| shape.len() == 2) {
        let (input, labels) = (normal(shape), random(shape));
        // Lists of all lengths, with labels twice; scores with equal distances, and one that is NaN.
        let labels = (labels * (shape[1] + 1)).floor().to_kind(Kind::Int64).clamp_max(shape[1]) - 1;
        let input = whole(&input);
        let _ = input.get(0).get(0).fill_(f64::NAN);
        for reduction in REDUCTIONS {
            let loss = MultiLabelMarginLoss::new().reduction(reduction);
            for (layout, arrange) in LAYOUTS.iter().enumerate() {
                let results = |backend| results(backend, &loss, &arrange(&input), &labels);
                let [actual, expected] = [Backend::Auto, Backend::Composite].map(results);
                assert_close(&actual, &expected, 1e-11, &format!("{shape:?}, layout {layout}, {reduction:?}"));
            }
        }
    }
}

#[test]
fn chunks_of_logits_are_those_of_tensor_operations() {
    let (rows, features, classes) = (37, 5, 2100);
    let shapes: [&[i64]; 3] = [&[rows, features], &[classes, features], &[classes]];
    let (target, arguments, weight) =
        (target(Target::Classes, &[rows, classes]), shapes.map(normal), random(&[classes]) + 0.1);
    let _ = target.get(3).fill_(7);
    let new = || LinearCrossEntropy::new().chunking(Chunking::Rows(16)).ignore_index(Some(7));
    let losses: [&dyn Fn() -> LinearCrossEntropy; 5] = [
        &new,
        &|| new().label_smoothing(0.2),
        &|| new().label_smoothing(0.2).z_loss(0.1),
        &|| new().soft_cap(2.5).z_loss(1e-3),
        &|| new().soft_cap(1.5),
    ];
    for (position, build) in losses.iter().enumerate() {
        let kinds = [(Kind::Double, 1e-11), (Kind::Float, 1e-5), (Kind::BFloat16, 1.6e-2), (Kind::Half, 2e-3)];
        for (kind, tolerance) in kinds {
            for reduction in REDUCTIONS {
                let results = |backend| {
                    let leaves = arguments.each_ref().map(|argument| leaf(&argument.to_kind(kind)));
                    let loss = build().acc_dtype(kind).reduction(reduction);
                    let loss = if position == 2 || position == 4 { loss.weight(weight.to_kind(kind)) } else { loss };
                    let forward = || loss.forward(&leaves[0], &leaves[1], &target, Some(&leaves[2]));
                    let value = with_backend(backend, forward);
                    let gradients = Tensor::run_backward(&[(&value * 3.0).sum(None)], &leaves, false, false);
                    std::iter::once(value.detach()).chain(gradients).collect::<Vec<_>>()
                };
                let what = format!("{position}, {kind:?}, {reduction:?}");
                assert_close(&results(Backend::Auto), &results(Backend::Composite), tolerance, &what);
            }
        }
    }
}

#[test]
fn half_precision_is_computed_in_single_precision() {
    for (kind, tolerance) in [(Kind::Half, 2e-3), (Kind::BFloat16, 2e-2)] {
        for_all(LOSSES, kind, |name, build, input, target| {
            // Other arguments are made of the input, and rounded.
            if name.contains("all gradients") || name.starts_with("JSD") {
                return;
            }
            let wide =
                |tensor: &Tensor| if tensor.is_floating_point() { tensor.to_kind(Kind::Float) } else { tensor.copy() };
            for reduction in [Reduction::None, Reduction::Mean] {
                let loss = build(reduction);
                let actual = results(Backend::Auto, loss.as_ref(), input, target);
                let exact = results(Backend::Composite, loss.as_ref(), &wide(input), &wide(target));
                let exact: Vec<Tensor> = exact.iter().map(|tensor| tensor.to_kind(kind)).collect();
                assert_close(&actual, &exact, tolerance, &format!("{name}, {kind:?}, {reduction:?}"));
                if input.numel() > 5000 {
                    continue;
                }
                let composite = results(Backend::Composite, loss.as_ref(), input, target);
                assert_close(&composite, &exact, tolerance, &format!("composite {name}, {kind:?}, {reduction:?}"));
            }
        });
    }
}

/// Whether the forward pass has computed them, for a loss whose gradient is a power of two, or the backward pass does.
#[test]
fn gradients_of_bf16_are_rounded_once() {
    let (input, target) = (normal(&[40, 300]), normal(&[40, 300]));
    let (input, target) = (input.to_kind(Kind::BFloat16), target.to_kind(Kind::BFloat16));
    let classes = target.abs().argmax(1, false);
    let losses: [(Box<dyn Loss>, &Tensor); 2] =
        [(Box::new(MseLoss::new()), &target), (Box::new(CrossEntropyLoss::new()), &classes)];
    for (position, (loss, target)) in losses.iter().enumerate() {
        for factor in [1.0, -0.25, 3.0, 0.699_218_75] {
            let gradients = |kind: Kind, keep: bool| {
                let input = leaf(&input.to_kind(kind));
                let target = if target.is_floating_point() { target.to_kind(kind) } else { target.shallow_clone() };
                let value = with_backend(Backend::Auto, || loss.forward(&input, &target));
                let scaled = value * factor;
                if keep {
                    let _ = Tensor::run_backward(&[&scaled], &[&input], true, false);
                }
                Tensor::run_backward(&[&scaled], &[&input], false, false).remove(0).to_kind(Kind::Double)
            };
            let exact = gradients(Kind::Double, false);
            for keep in [false, true] {
                let bound = exact.abs() * (2_f64.powi(-8) + 2_f64.powi(-16));
                let beyond = ((gradients(Kind::BFloat16, keep) - &exact).abs() - bound).max().double_value(&[]);
                assert!(beyond <= 0.0, "{position}, times {factor}, kept: {keep}: {beyond:e} too far");
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let before = tch::get_num_threads();
    for_all(LOSSES, Kind::Float, |name, build, input, target| {
        // The mean over the sum of the weights has that sum from libtorch.
        let results = |threads| {
            tch::set_num_threads(threads);
            results(Backend::Auto, build(Reduction::Sum).as_ref(), input, target)
        };
        let one = results(1);
        for threads in [2, 3, 8] {
            assert_eq!(results(threads), one, "{name}, {threads} threads");
        }
    });
    tch::set_num_threads(before);
}

/// Threads share a row that is longer than that of any other test.
#[test]
fn rows_of_many_tasks_are_those_of_tensor_operations() {
    let losses: [Box<dyn Loss>; 2] = [
        of(|x, y| MccLoss::new().f_forward(&shares(x), y)),
        Box::new(NegativeCosineSimilarity::new().reduction(Reduction::None)),
    ];
    let before = tch::get_num_threads();
    for (position, loss) in losses.iter().enumerate() {
        let shape = [3, 90_001];
        let (input, target) = (random(&shape), random(&shape));
        let results = |backend, threads| {
            tch::set_num_threads(threads);
            results(backend, loss.as_ref(), &input, &target)
        };
        let one = results(Backend::Auto, 1);
        assert_close(&one, &results(Backend::Composite, 1), 1e-11, &format!("{position}"));
        for threads in [2, 3, 8] {
            assert_eq!(results(Backend::Auto, threads), one, "{position}, {threads} threads");
        }
    }
    tch::set_num_threads(before);
}

#[test]
fn gradients_written_past_the_caches_are_those_of_tensor_operations() {
    // Gradients of 16 MiB and more, in rows of an odd length, and in pixels.
    let (rows, pixels): (&[i64], &[i64]) = (&[1501, 2801], &[2, 3, 840, 841]);
    let losses: [(Target, &[i64], Box<dyn Loss>); 9] = [
        (Target::Normal, rows, Box::new(MseLoss::new())),
        (Target::Normal, rows, of(|x, y| TripletMarginLoss::new().margin(90.0).f_forward(x, y, &(x * 0.4 - y)))),
        (Target::Normal, &[1049, 1001], of(|x, y| of_boxes(&GeneralizedBoxIouLoss::new(), x, y))),
        (Target::Classes, rows, Box::new(CrossEntropyLoss::new().ignore_index(1).label_smoothing(0.1))),
        (Target::Classes, rows, Box::new(MultiMarginLoss::new())),
        (Target::Classes, rows, Box::new(CategoricalHingeLoss::new())),
        (Target::Shares, rows, constant(CrossEntropyLoss::new())),
        (Target::Classes, pixels, Box::new(CrossEntropyLoss::new())),
        (Target::Classes, pixels, Box::new(DiceLoss::new().activation(Activation::Softmax))),
    ];
    for (position, (kind, shape, loss)) in losses.iter().enumerate() {
        let (input, target) = (normal(shape), target(*kind, shape));
        let results = |backend| results(backend, loss.as_ref(), &input, &target);
        assert_close(&results(Backend::Auto), &results(Backend::Composite), 1e-11, &format!("{position}"));
    }
}

/// Makes a loss of a reduction.
type OfReduction<'a> = &'a dyn Fn(Reduction) -> Box<dyn Loss>;

#[test]
fn losses_of_images_are_those_of_tensor_operations() {
    let ssim = || SsimLoss::new().window_size(&[5]);
    let losses: [(&str, &[&[i64]], OfReduction); 7] = [
        ("SSIM of lines", &[&[2, 3, 9]], &|r| Box::new(ssim().spatial_dims(1).reduction(r))),
        ("SSIM", &[&[2, 3, 12, 17], &[1, 2, 40, 71], &[1, 1, 7, 6, 8]], &|r| Box::new(ssim().reduction(r))),
        ("SSIM, reflected, with ε", &[&[2, 3, 12, 17]], &|r| {
            Box::new(ssim().padding(SsimPadding::Reflect).eps(0.01).form(SsimForm::Dissimilarity).reduction(r))
        }),
        ("SSIM of samples", &[&[2, 3, 12, 17]], &|r| Box::new(ssim().scope(SsimScope::Sample).reduction(r))),
        ("MS-SSIM", &[&[2, 2, 24, 23]], &|r| {
            Box::new(MsSsimLoss::new().weights(&[0.3, 0.7]).window_size(&[5]).reduction(r))
        }),
        ("MS-SSIM and L1", &[&[2, 3, 12, 17], &[1, 1, 50, 40]], &|r| Box::new(MsSsimL1Loss::new().reduction(r))),
        ("MS-SSIM and L1, one scale", &[&[1, 2, 3, 4]], &|r| {
            Box::new(MsSsimL1Loss::new().sigmas(&[1.5]).alpha(0.6).reduction(r))
        }),
    ];
    for (name, shapes, build) in losses.iter() {
        for (shape, reduction) in shapes.iter().flat_map(|shape| REDUCTIONS.map(|reduction| (*shape, reduction))) {
            let (x, y) = (random(shape), random(shape));
            let loss = build(reduction);
            for ((layout, arrange), kind) in
                LAYOUTS.iter().enumerate().flat_map(|layout| [Kind::Double, Kind::Float].map(|kind| (layout, kind)))
            {
                let (x, y) = (arrange(&x.to_kind(kind)), arrange(&y.to_kind(kind)));
                let results = |backend| results(backend, loss.as_ref(), &x, &y);
                let tolerance = if kind == Kind::Double { 1e-11 } else { 1e-6 };
                let what = format!("{name} {shape:?}, layout {layout}, {kind:?}, {reduction:?}");
                assert_close(&results(Backend::Auto), &results(Backend::Composite), tolerance, &what);
            }
            let derivatives = |backend| derivatives(backend, loss.as_ref(), &x, &y);
            let (actual, expected) = (derivatives(Backend::Auto), derivatives(Backend::Composite));
            assert_close(&actual, &expected, 1e-10, &format!("{name} {shape:?}, {reduction:?}"));
        }
    }
}

/// Makes a loss of pairs of a reduction.
type OfPairs<'a> = &'a dyn Fn(EmbeddingReduction) -> Box<dyn EmbeddingLoss>;

#[test]
fn losses_of_pairs_are_those_of_tensor_operations() {
    use EmbeddingReduction::{Mean, MeanNonZero, None, Sum, Threshold};
    let cosine = EmbeddingDistance::cosine;
    let losses: [(&str, OfPairs); 14] = [
        ("contrastive", &|r| Box::new(ContrastiveLoss::new().pos_margin(0.3).reduction(r))),
        ("contrastive, by cosines", &|r| {
            Box::new(ContrastiveLoss::new().pos_margin(0.8).neg_margin(0.1).distance(cosine()).reduction(r))
        }),
        ("SupCon", &|r| Box::new(SupConLoss::new().reduction(r))),
        ("NCA", &|r| Box::new(NcaLoss::new().softmax_scale(3.0).reduction(r))),
        ("SupCon, by distances", &|r| Box::new(SupConLoss::new().distance(EmbeddingDistance::lp()).reduction(r))),
        ("multi-similarity", &|r| Box::new(MultiSimilarityLoss::new().reduction(r))),
        ("multi-similarity, by distances", &|r| {
            Box::new(MultiSimilarityLoss::new().distance(EmbeddingDistance::lp()).reduction(r))
        }),
        ("NT-Xent", &|r| Box::new(NtXentLoss::new().temperature(0.5).reduction(r))),
        ("NT-Xent, by distances", &|r| {
            Box::new(NtXentLoss::new().temperature(0.5).distance(EmbeddingDistance::lp()).reduction(r))
        }),
        ("circle", &|r| Box::new(CircleLoss::new().gamma(20.0).reduction(r))),
        ("generalised lifted structure", &|r| Box::new(GeneralizedLiftedStructureLoss::new().reduction(r))),
        ("generalised lifted structure, by cosines", &|r| {
            Box::new(GeneralizedLiftedStructureLoss::new().distance(cosine()).neg_margin(-0.5).reduction(r))
        }),
        ("triplets", &|r| Box::new(BatchTripletMarginLoss::new().margin(0.4).reduction(not_listed(r)))),
        ("semi-hard triplets, by cosines", &|r| {
            let loss = BatchTripletMarginLoss::new().margin(0.4).mining(TripletMining::SemiHard);
            Box::new(loss.distance(cosine()).reduction(not_listed(r)))
        }),
    ];
    let some = [Threshold { low: Some(0.1), high: Some(0.9) }, Threshold { low: Option::None, high: Some(1.0) }];
    let reductions = [[None, Mean, MeanNonZero, Sum].as_slice(), &some].concat();
    // Embeddings, references and labels: beyond a block, more than one task, of one label, and without pairs of one label.
    let sizes = [(1, 1, 3), (7, 5, 3), (40, 1100, 4), (300, 290, 7), (6, 4, 1), (9, 8, 1000)];
    for ((name, build), (rows, others, labels)) in losses.iter().flat_map(|loss| sizes.map(|size| (loss, size))) {
        let [(x, x_labels), (y, y_labels)] = [rows, others].map(|rows| (normal(&[rows, 8]), random(&[rows])));
        let [x_labels, y_labels] = [x_labels, y_labels].map(|random| (random * labels).to_kind(Kind::Int64) - 1);
        for reduction in reductions.iter().copied() {
            let loss = build(reduction);
            let among = of_pairs(build(reduction), x_labels.shallow_clone(), Option::None);
            let between = of_pairs(loss, x_labels.shallow_clone(), Some(y_labels.shallow_clone()));
            for (loss, what) in [(among, "among"), (between, "between")] {
                let what = format!("{name}, {rows} and {others}, {what}, {reduction:?}");
                assert_pairs(loss.as_ref(), &x, &y, &what);
            }
        }
    }
}

#[test]
fn losses_of_one_batch_are_those_of_tensor_operations() {
    use EmbeddingReduction::{Mean, MeanNonZero, None, Sum, Threshold};
    type Build<'a> = &'a dyn Fn(EmbeddingReduction) -> Box<dyn Loss>;
    let losses: [(&str, Build); 4] = [
        ("lifted structure", &|r| Box::new(LiftedStructureLoss::new().neg_margin(0.5).reduction(r))),
        ("lifted structure, by cosines", &|r| {
            let loss = LiftedStructureLoss::new().distance(EmbeddingDistance::cosine());
            Box::new(loss.pos_margin(0.9).neg_margin(-0.5).reduction(r))
        }),
        ("N-pairs", &|r| Box::new(NPairsLoss::new().reduction(r))),
        ("N-pairs, by distances", &|r| Box::new(NPairsLoss::new().distance(EmbeddingDistance::lp()).reduction(r))),
    ];
    let reductions = [None, Mean, MeanNonZero, Sum, Threshold { low: Some(0.1), high: Some(2.0) }];
    // As above: two of one label, beyond a block, of one label, and without pairs of one label.
    for ((name, build), (rows, labels)) in
        losses.iter().flat_map(|loss| [(2, 1), (7, 3), (9, 5), (1100, 600), (6, 1), (9, 1000)].map(|size| (loss, size)))
    {
        let (x, classes) = (normal(&[rows, 8]), randint(labels, [rows]));
        for reduction in reductions {
            let (loss, classes) = (build(reduction), classes.shallow_clone());
            let loss = of(move |x, _| loss.f_forward(x, &classes));
            assert_pairs(loss.as_ref(), &x, &x, &format!("{name}, {rows} of {labels}, {reduction:?}"));
        }
    }
}

/// That both backends agree on a loss of pairs.
fn assert_pairs(loss: &dyn Loss, x: &Tensor, y: &Tensor, what: &str) {
    // Slopes of distances nearly cancel, of which single precision leaves few digits.
    for (kind, tolerance) in [(Kind::Double, 1e-11), (Kind::Float, 1e-3)] {
        let (x, y) = (x.to_kind(kind), y.to_kind(kind));
        let results = |backend| results(backend, loss, &x, &y);
        assert_close(&results(Backend::Auto), &results(Backend::Composite), tolerance, what);
    }
    if x.size()[0] <= 10 {
        let derivatives = |backend| derivatives(backend, loss, x, y);
        assert_close(&derivatives(Backend::Auto), &derivatives(Backend::Composite), 1e-10, what);
    }
}

/// Makes a loss of embeddings, vectors of classes and classes.
type OfVectors = fn(EmbeddingReduction, &Tensor, &Tensor, &Tensor) -> Result<Tensor, LossError>;

#[test]
fn losses_with_vectors_of_classes_are_those_of_tensor_operations() {
    use EmbeddingReduction::{Mean, MeanNonZero, None, Sum, Threshold};
    let losses: [(&str, OfVectors); 8] = [
        ("ArcFace", |r, x, w, y| ArcFace::new().scale(3.0).reduction(r).f_forward(x, &w.transpose(0, 1), y)),
        ("ArcFace beyond π", |r, x, w, y| {
            ArcFace::new().margin(150.0).scale(3.0).reduction(r).f_forward(x, &w.transpose(0, 1), y)
        }),
        ("ArcFace of sub-centres", |r, x, w, y| {
            let weight = Tensor::cat(&[w, &(w * 0.5 + 1.0)], 1).reshape([-1, w.size()[1]]).transpose(0, 1);
            ArcFace::new().sub_centers(2).scale(3.0).reduction(r).f_forward(x, &weight, y)
        }),
        ("CosFace", |r, x, w, y| CosFace::new().scale(3.0).reduction(r).f_forward(x, &w.transpose(0, 1), y)),
        ("proxy anchor", |r, x, w, y| ProxyAnchor::new().alpha(3.0).reduction(r).f_forward(x, w, y)),
        ("proxy anchor by distances", |r, x, w, y| {
            ProxyAnchor::new().alpha(3.0).distance(EmbeddingDistance::lp()).reduction(r).f_forward(x, w, y)
        }),
        ("proxy NCA", |r, x, w, y| ProxyNca::new().softmax_scale(3.0).reduction(r).f_forward(x, w, y)),
        ("proxy NCA by noise", |r, x, w, y| {
            ProxyNca::new().distance(EmbeddingDistance::signal_to_noise()).reduction(r).f_forward(x, w, y)
        }),
    ];
    let threshold = Threshold { low: Some(0.5), high: Some(2.0) };
    for ((name, loss), (rows, classes)) in
        losses.iter().flat_map(|loss| [(1, 1), (7, 5), (300, 290), (5, 1100)].map(|size| (loss, size)))
    {
        let (x, vectors, labels) = (normal(&[rows, 8]), normal(&[classes, 8]), random(&[rows]));
        let labels = (labels * classes).to_kind(Kind::Int64);
        for reduction in [None, Mean, MeanNonZero, Sum, threshold] {
            let loss = of_vectors(*loss, reduction, labels.shallow_clone());
            let what = format!("{name}, {rows} and {classes}, {reduction:?}");
            for (kind, tolerance) in [(Kind::Double, 1e-11), (Kind::Float, 1e-4)] {
                let (x, vectors) = (x.to_kind(kind), vectors.to_kind(kind));
                let results = |backend| results(backend, &loss, &x, &vectors);
                assert_close(&results(Backend::Auto), &results(Backend::Composite), tolerance, &what);
            }
            if rows < 10 && classes < 10 {
                let derivatives = |backend| derivatives(backend, &loss, &x, &vectors);
                assert_close(&derivatives(Backend::Auto), &derivatives(Backend::Composite), 1e-10, &what);
            }
        }
    }
}

/// The loss of embeddings and vectors, given classes.
fn of_vectors(loss: OfVectors, reduction: EmbeddingReduction, labels: Tensor) -> impl Loss {
    Of(move |x: &Tensor, vectors: &Tensor| loss(reduction, x, vectors, &labels))
}

/// Triplets are too many to be listed.
fn not_listed(reduction: EmbeddingReduction) -> EmbeddingReduction {
    if reduction == EmbeddingReduction::None { EmbeddingReduction::Sum } else { reduction }
}

/// The loss of the input's rows among themselves, or with those of the target.
fn of_pairs(loss: Box<dyn EmbeddingLoss>, labels: Tensor, others: Option<Tensor>) -> Box<dyn Loss> {
    of(move |x, y| match &others {
        Some(others) => loss.f_forward_with(x, &labels, y, others),
        None => loss.f_forward(x, &labels),
    })
}

#[test]
fn losses_of_two_views_are_those_of_tensor_operations() {
    let losses: [(&str, Box<dyn Loss>); 2] =
        [("Barlow twins", Box::new(BarlowTwinsLoss::new().lambda_param(0.3))), ("VICReg", Box::new(VicRegLoss::new()))];
    // VICReg alone takes more dimensions than two.
    let shapes: [&[i64]; 4] = [&[2, 1], &[7, 5], &[30, 1100], &[4, 3, 5]];
    for (position, (name, loss)) in losses.iter().enumerate() {
        for shape in shapes.iter().filter(|shape| position == 1 || shape.len() == 2) {
            let (x, y) = (normal(shape), normal(shape));
            for (kind, tolerance) in [(Kind::Double, 1e-10), (Kind::Float, 1e-4)] {
                let (x, y) = (x.to_kind(kind), y.to_kind(kind));
                let results = |backend| results(backend, loss.as_ref(), &x, &y);
                let what = format!("{name} {shape:?} {kind:?}");
                assert_close(&results(Backend::Auto), &results(Backend::Composite), tolerance, &what);
            }
            if shape[shape.len() - 1] < 10 {
                let derivatives = |backend| derivatives(backend, loss.as_ref(), &x, &y);
                let (actual, expected) = (derivatives(Backend::Auto), derivatives(Backend::Composite));
                assert_close(&actual, &expected, 1e-9, &format!("{name} {shape:?}"));
            }
        }
    }
}

/// The first and the second derivative of the square of the loss, so that the first one depends on the input itself.
fn derivatives(backend: Backend, loss: &dyn Loss, input: &Tensor, target: &Tensor) -> [Tensor; 2] {
    let x = leaf(input);
    let value = with_backend(backend, || loss.forward(&x, target)).square().sum(None);
    let first = Tensor::run_backward(&[value], &[&x], true, true).remove(0);
    let second = Tensor::run_backward(&[first.square().sum(None)], &[&x], false, false).remove(0);
    [first.detach(), if second.defined() { second.copy() } else { first.zeros_like() }]
}

#[test]
fn second_derivatives_are_those_of_tensor_operations() {
    for (name, kind, build) in LOSSES {
        let shape = [4, 3];
        let (input, target, weight, classes) =
            (normal(&shape), target(*kind, &shape), random(&shape), random(&[3]) + 0.1);
        for reduction in REDUCTIONS {
            let loss = build(reduction, weight.shallow_clone(), classes.shallow_clone());
            let derivatives = |backend| derivatives(backend, loss.as_ref(), &input, &target);
            let (actual, expected) = (derivatives(Backend::Auto), derivatives(Backend::Composite));
            assert_close(&actual, &expected, 1e-10, &format!("{name}, {reduction:?}"));
        }
    }
}

#[test]
fn a_graph_can_be_kept_and_is_used_up_otherwise() {
    let (x, y) = (leaf(&normal(&[5, 3])), normal(&[5, 3]));
    for reduction in REDUCTIONS {
        let loss = with_backend(Backend::Auto, || MseLoss::new().reduction(reduction).forward(&x, &y)).sum(None);
        let first = Tensor::run_backward(&[&loss], &[&x], true, false).remove(0);
        let again = Tensor::run_backward(&[&loss], &[&x], false, false).remove(0);
        assert_eq!(first, again);
        assert!(Tensor::f_run_backward(&[&loss], &[&x], false, false).is_err());
    }
}

#[test]
fn a_change_in_place_is_noticed() {
    let (x, mut y) = (leaf(&normal(&[5, 3])), normal(&[5, 3]));
    let loss = with_backend(Backend::Auto, || MseLoss::new().forward(&x, &y));
    let _ = y.g_add_scalar_(1.0);
    let error = loss.f_backward().unwrap_err().to_string();
    assert!(error.contains("modified by an inplace operation"), "{error}");
}

/// Losses whose engine is tested beside it, in `src/kernels` or in the file of the loss.
const TESTED_BESIDE_THE_ENGINE: [&str; 8] = [
    "JaccardLoss",
    "GeneralizedDiceLoss",
    "DiceCrossEntropyLoss",
    "DiceFocalLoss",
    "SoftClDiceLoss",
    "SoftDiceClDiceLoss",
    "PsnrLoss",
    "LinearDistillation",
];

/// Losses that call one that is tried here, with parameters of their own.
const WITH_PARAMETERS: [&str; 5] =
    ["ArcFaceLoss", "CosFaceLoss", "ProxyAnchorLoss", "ProxyNcaLoss", "LinearCrossEntropyLoss"];

/// Losses of tensor operations alone.
const WITHOUT_ENGINE: [&str; 15] = [
    "DistillationLoss",
    "HausdorffDtLoss",
    "DinoLoss",
    "ClipLoss",
    "SigLipLoss",
    "DpoLoss",
    "IpoLoss",
    "OrpoLoss",
    "SimpoLoss",
    "CpoLoss",
    "KtoLoss",
    "LinearPreference",
    "LinearKto",
    "CtcLoss",
    "AdaptiveLogSoftmaxWithLoss",
];

#[test]
fn no_loss_is_forgotten() {
    let left_out = [&TESTED_BESIDE_THE_ENGINE[..], &WITH_PARAMETERS, &WITHOUT_ENGINE].concat();
    common::list::assert_complete("tests/engines.rs", include_str!("engines.rs"), &left_out);
}
