//! What all losses share at their surface: they can be copied, moved, and told what a mean over nothing is.

use std::thread;

use tch::{Device, Kind, Tensor, nn};
use tch_losses::*;

mod common;

use common::random::{rand, randn};

/// A loss whose tensors are of the kind, its input and its target.
type Case = (&'static str, fn(Kind) -> Box<dyn Loss>, fn() -> [Tensor; 2]);

/// Numbers that every kind can hold.
fn weights(kind: Kind) -> Tensor {
    Tensor::from_slice(&[0.5, 1.0, 2.0]).to_kind(kind)
}

/// The same as a row for each element.
fn element_weights(kind: Kind) -> Tensor {
    weights(kind).expand([4, 3], false)
}

fn numbers() -> [Tensor; 2] {
    [randn([4, 3]), rand([4, 3])]
}

fn probabilities() -> [Tensor; 2] {
    [rand([4, 3]), rand([4, 3]).gt(0.5).to_kind(Kind::Double)]
}

fn labels() -> [Tensor; 2] {
    [randn([4, 3]), rand([4, 3]).gt(0.5).to_kind(Kind::Double)]
}

fn classes() -> [Tensor; 2] {
    [randn([4, 3]).log_softmax(1, None), Tensor::from_slice(&[0_i64, 2, 1, 1])]
}

fn pixels() -> [Tensor; 2] {
    [randn([2, 3, 4, 4]), (rand([2, 4, 4]) * 3).to_kind(Kind::Int64)]
}

/// Every loss of `(input, target)` that has tensors among its options.
const WITH_TENSORS: &[Case] = &[
    ("mse", |kind| Box::new(MseLoss::new().weight(element_weights(kind))), numbers),
    ("l1", |kind| Box::new(L1Loss::new().weight(element_weights(kind))), numbers),
    ("huber", |kind| Box::new(HuberLoss::new().weight(element_weights(kind))), numbers),
    ("charbonnier", |kind| Box::new(CharbonnierLoss::new().weight(element_weights(kind))), numbers),
    ("cauchy", |kind| Box::new(CauchyLoss::new().weight(element_weights(kind))), numbers),
    ("geman-mcclure", |kind| Box::new(GemanMcClureLoss::new().weight(element_weights(kind))), numbers),
    ("welsch", |kind| Box::new(WelschLoss::new().weight(element_weights(kind))), numbers),
    ("log-cosh", |kind| Box::new(LogCoshLoss::new().weight(element_weights(kind))), numbers),
    ("mape", |kind| Box::new(MapeLoss::new().weight(element_weights(kind))), numbers),
    ("msle", |kind| Box::new(MsleLoss::new().weight(element_weights(kind))), || numbers().map(|x| x.abs())),
    ("quantile", |kind| Box::new(QuantileLoss::new().weight(element_weights(kind))), numbers),
    ("bce", |kind| Box::new(BceLoss::new().weight(weights(kind))), probabilities),
    (
        "bce with logits",
        |kind| Box::new(BceWithLogitsLoss::new().weight(weights(kind)).pos_weight(weights(kind))),
        labels,
    ),
    (
        "soft bce with logits",
        |kind| Box::new(SoftBceWithLogitsLoss::new().weight(weights(kind)).pos_weight(weights(kind))),
        labels,
    ),
    (
        "sigmoid focal",
        |kind| {
            let mask = Tensor::from_slice(&[true, false, true]);
            let loss = SigmoidFocalLoss::new().alpha(weights(kind) / 2).weight(weights(kind));
            Box::new(loss.pos_weight(weights(kind)).mask(mask))
        },
        labels,
    ),
    (
        "asymmetric multi-label",
        |kind| Box::new(AsymmetricMultiLabelLoss::new().weight(weights(kind)).pos_weight(weights(kind))),
        labels,
    ),
    ("multi-label soft margin", |kind| Box::new(MultiLabelSoftMarginLoss::new().weight(weights(kind))), labels),
    ("multi-margin", |kind| Box::new(MultiMarginLoss::new().weight(weights(kind))), classes),
    ("nll", |kind| Box::new(NllLoss::new().weight(weights(kind))), classes),
    ("cross entropy", |kind| Box::new(CrossEntropyLoss::new().weight(weights(kind))), classes),
    ("softmax focal", |kind| Box::new(SoftmaxFocalLoss::new().weight(weights(kind)).alpha(weights(kind))), classes),
    (
        "one-vs-rest focal",
        |kind| Box::new(OneVsRestFocalLoss::new().weight(weights(kind)).alpha(weights(kind) / 2)),
        classes,
    ),
    ("lovasz softmax", |kind| Box::new(LovaszSoftmaxLoss::new().weight(weights(kind))), pixels),
    ("dice", |kind| Box::new(DiceLoss::new().activation(Activation::Softmax).weight(weights(kind))), pixels),
    ("jaccard", |kind| Box::new(JaccardLoss::new().activation(Activation::Softmax).weight(weights(kind))), pixels),
    ("tversky", |kind| Box::new(TverskyLoss::new().activation(Activation::Softmax).weight(weights(kind))), pixels),
    (
        "focal tversky",
        |kind| Box::new(FocalTverskyLoss::new().activation(Activation::Softmax).weight(weights(kind))),
        pixels,
    ),
    (
        "dice and cross entropy",
        |kind| {
            let dice = DiceLoss::new().activation(Activation::Softmax).weight(weights(kind));
            let entropy = CrossEntropyLoss::new().weight(weights(kind));
            Box::new(DiceCrossEntropyLoss::new().overlap(dice).cross_entropy(entropy))
        },
        pixels,
    ),
    (
        "dice and focal",
        |kind| {
            let dice = DiceLoss::new().activation(Activation::Softmax).weight(weights(kind));
            Box::new(DiceFocalLoss::new().overlap(dice).focal(SoftmaxFocalLoss::new().alpha(weights(kind))))
        },
        pixels,
    ),
    (
        "sum",
        |kind| {
            let sum = WeightedSum::new().term("mse", 0.5, MseLoss::new().weight(element_weights(kind)));
            Box::new(sum.term("l1", 2.0, L1Loss::new()))
        },
        numbers,
    ),
];

/// Of a floating kind in `kind`.
fn to(tensor: &Tensor, kind: Kind) -> Tensor {
    if tensor.is_floating_point() { tensor.to_kind(kind) } else { tensor.shallow_clone() }
}

#[test]
fn a_loss_moves_with_its_tensors() {
    for (name, make, arguments) in WITH_TENSORS {
        let [input, target] = arguments();
        for kind in [Kind::Double, Kind::Float] {
            let (input, target) = (to(&input, kind), to(&target, kind));
            let expected = make(kind).forward(&input, &target);
            let moved = make(Kind::BFloat16).f_to(Device::Cpu, kind).unwrap();
            assert!(moved.forward(&input, &target).equal(&expected), "{name} in {kind:?}");
            let mut tensors = Vec::new();
            moved.with_tensors(&mut |tensor| {
                tensors.push(tensor.kind());
                tensor.shallow_clone()
            });
            assert!(!tensors.is_empty(), "{name} has tensors");
            assert!(tensors.iter().all(|of| [kind, Kind::Bool].contains(of)), "{name}: {tensors:?}");
        }
        let error = make(Kind::Float).f_to(Device::Cpu, Kind::Int64).err().map(|error| error.to_string());
        let expected = "kind has kind Int64, expected a floating kind";
        assert!(error.is_some_and(|error| error.ends_with(expected)), "{name}");
    }
}

#[test]
fn a_copy_shares_the_tensors() {
    for (name, make, arguments) in WITH_TENSORS {
        let [input, target] = arguments();
        let loss = make(Kind::Double);
        let copy = loss.f_clone().unwrap();
        assert!(copy.forward(&input, &target).equal(&loss.forward(&input, &target)), "{name}");
        let addresses = |loss: &dyn Loss| {
            let mut addresses = Vec::new();
            loss.with_tensors(&mut |tensor| {
                addresses.push(tensor.data_ptr() as usize);
                tensor.shallow_clone()
            });
            addresses
        };
        assert_eq!(addresses(&*copy), addresses(&*loss), "{name}");
    }
}

/// A weight that requires a gradient still gets it from a copy.
#[test]
fn a_copy_is_on_the_graph_of_the_tensors() {
    let weight = Tensor::from_slice(&[0.5, 1.0, 2.0]).set_requires_grad(true);
    let loss = SigmoidFocalLoss::new().weight(weight.shallow_clone());
    let [input, target] = labels();
    loss.clone().f_to(Device::Cpu, Kind::Double).unwrap().forward(&input, &target).backward();
    assert!(weight.grad().abs().sum(None).double_value(&[]) > 0.0);
}

fn is_clone<T: Clone + Send>() {}

#[test]
fn every_loss_can_be_copied() {
    is_clone::<CtcLoss>();
    is_clone::<GaussianNllLoss>();
    is_clone::<MarginRankingLoss>();
    is_clone::<CosineEmbeddingLoss>();
    is_clone::<TripletMarginLoss>();
    is_clone::<TripletMarginWithDistanceLoss>();
    is_clone::<LinearCrossEntropy>();
    is_clone::<LinearCrossEntropyConfig>();
    is_clone::<LinearCrossEntropyLoss>();
    is_clone::<AdaptiveLogSoftmaxWithLoss>();
    is_clone::<ArcFaceLoss>();
    is_clone::<CosFaceLoss>();
    is_clone::<ProxyAnchorLoss>();
    is_clone::<ProxyNcaLoss>();
    is_clone::<DinoLoss>();
    is_clone::<ClipLoss>();
    is_clone::<SigLipLoss>();
    is_clone::<TotalVariationLoss>();
    is_clone::<LinearDistillation>();
    is_clone::<LinearPreference<DpoLoss>>();
    is_clone::<LinearKto>();
    is_clone::<WeightedSum>();
    is_clone::<AnyLoss>();
    is_clone::<FocalAlpha>();
    is_clone::<Overlap>();
    is_clone::<CrossEntropyPart>();
    is_clone::<FocalPart>();
    let any: AnyLoss =
        serde_json::from_str(r#"{"loss": "sum", "terms": [{"loss": "nll", "weight": [1, 2]}]}"#).unwrap();
    let [input, target] = [randn([4, 2]).to_kind(Kind::Float), Tensor::from_slice(&[0_i64, 1, 1, 0])];
    assert_eq!(any.clone().forward(&input, &target), any.forward(&input, &target));
}

#[test]
fn parameters_are_shared_and_move_with_their_store() {
    let mut store = nn::VarStore::new(Device::Cpu);
    let config = LinearCrossEntropyConfig::new().cross_entropy(LinearCrossEntropy::new().weight(weights(Kind::Float)));
    let loss = LinearCrossEntropyLoss::new(store.root() / "linear", 5, 3, config);
    let arc_face = ArcFaceLoss::new(store.root() / "arc", 3, 5, ArcFace::new());
    let (copy, arc_copy) = (loss.clone(), arc_face.clone());
    let moved = loss.f_to(Device::Cpu, Kind::Double).unwrap();
    store.double();
    let [input, target] = [randn([4, 5]), Tensor::from_slice(&[0_i64, 2, 1, 1])];
    let expected = input.linear(loss.linear_weight(), loss.linear_bias()).cross_entropy_loss(
        &target,
        Some(weights(Kind::Double)),
        tch::Reduction::Mean,
        -100,
        0.0,
    );
    assert!(moved.forward(&input, &target).allclose(&expected, 1e-12, 1e-12, false));
    assert_eq!(copy.linear_weight().kind(), Kind::Double);
    assert_eq!(arc_copy.forward(&input, &target), arc_face.forward(&input, &target));
}

/// A loss of a user that says nothing of its tensors.
struct Custom(Tensor);

impl Loss for Custom {
    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        MseLoss::new().f_forward(&input.f_mul(&self.0)?, target)
    }
}

#[test]
fn a_sum_is_copied_and_moved_with_its_terms() {
    let [input, target] = numbers();
    let boxed: Box<dyn Loss> = Box::new(Custom(Tensor::from(2.0)));
    let sum = WeightedSum::new().term("custom", 1.0, boxed).term("mse", 0.5, MseLoss::new());
    let copy = sum.clone();
    let value = thread::scope(|scope| {
        let (input, target) = (input.shallow_clone(), target.shallow_clone());
        scope.spawn(move || copy.forward(&input, &target)).join().unwrap()
    });
    assert_eq!(value, sum.forward(&input, &target));
    let error = sum.f_to(Device::Cpu, Kind::Float).unwrap_err().to_string();
    let expected = "term custom: the loss does not say which tensors it holds: it has no Loss::with_tensors";
    assert_eq!(error, expected);
}

#[test]
fn copies_of_a_distance_function_are_one() {
    let scale = Tensor::from(3.0);
    let loss = TripletMarginWithDistanceLoss::new()
        .distance_function(move |a, b| Ok(a.f_sub(b)?.f_abs()?.f_sum_dim_intlist(-1, false, None)?.f_mul(&scale)?));
    let [a, b] = numbers();
    let c = randn([4, 3]);
    let copy = loss.clone();
    assert_eq!(copy.forward(&a, &b, &c), loss.forward(&a, &b, &c));
}
