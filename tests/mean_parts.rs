//! Σ numerators / Σ denominators of parts of a batch is the mean of the batch, in value and gradient, for every loss
//! that is a mean.

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tch_losses::{
    AdaptiveLogSoftmaxConfig, AdaptiveLogSoftmaxWithLoss, AnyLoss, Backend, Chunking, CosineEmbeddingLoss,
    CrossEntropyLoss, CtcLoss, GaussianNllLoss, HuberLoss, L1Loss, LinearCrossEntropy, LinearCrossEntropyConfig,
    LinearCrossEntropyLoss, LogCoshLoss, Loss, LossError, MarginRankingLoss, MeanParts, MseLoss, QuantileLoss,
    Reduction, TripletMarginLoss, TripletMarginWithDistanceLoss, WhenEmpty, with_backend,
};

/// The sizes of the parts of a batch of six.
const SIZES: [i64; 3] = [1, 3, 2];

type Whole<'a> = dyn Fn(&Tensor) -> Result<Tensor, LossError> + 'a;
/// Of a part of the leaf, where it starts and how long it is.
type Part<'a> = dyn Fn(&Tensor, i64, i64) -> Result<MeanParts, LossError> + 'a;

/// Compares the mean of the whole batch, which `leaf` is along `dim`, with that of its parts.
fn check(name: &str, leaf: &Tensor, dim: i64, whole: &Whole, part: &Part) {
    let (all, apart) = (leaf.detach().copy().set_requires_grad(true), leaf.detach().copy().set_requires_grad(true));
    let mean = whole(&all).unwrap();
    mean.backward();
    let mut start = 0;
    let mut sum: Option<MeanParts> = None;
    for size in SIZES {
        let parts = part(&apart.narrow(dim, start, size), start, size).unwrap();
        assert_eq!((parts.numerator().dim(), parts.denominator().kind()), (0, Kind::Double), "{name}");
        sum = Some(match sum {
            Some(sum) => sum.f_add(&parts).unwrap(),
            None => parts,
        });
        start += size;
    }
    let value = sum.unwrap().f_value().unwrap();
    value.backward();
    let tolerance = match leaf.kind() {
        Kind::Double => 1e-10,
        Kind::Float => 1e-5,
        Kind::Half => 2e-3,
        _ => 2e-2,
    };
    let wide = |tensor: &Tensor| tensor.to_kind(Kind::Double);
    let close = |a: &Tensor, b: &Tensor| wide(a).allclose(&wide(b), tolerance, tolerance, false);
    assert!(close(&value, &mean), "{name}: {value} is not the mean {mean}");
    assert!(close(&apart.grad(), &all.grad()), "{name}: {} is not the gradient {}", apart.grad(), all.grad());
}

/// Numbers that look random.
fn numbers(shape: &[i64], seed: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    ((Tensor::arange(count, (Kind::Double, Device::Cpu)) + seed) * 12.9898).sin().view(shape) * 2.0
}

fn integers(shape: &[i64], values: &[i64]) -> Tensor {
    Tensor::from_slice(values).view(shape)
}

/// Class indices of which many are 1 or −100 in the last rows.
fn classes() -> Tensor {
    integers(&[6, 2], &[0, 2, 2, 0, 1, 0, 1, -100, -100, -100, 1, -100])
}

/// The descriptions of losses, their input and their target.
fn cases() -> Vec<(Vec<Value>, Tensor, Tensor)> {
    let logits = || numbers(&[6, 3, 2], 0.0);
    let masks = || numbers(&[6, 4], 5.0).gt(0).to_kind(Kind::Double);
    let boxes = |seed| {
        let corner = numbers(&[6, 2], seed);
        Tensor::cat(&[&corner, &(&corner + 1.0 + numbers(&[6, 2], seed + 0.5).abs())], 1)
    };
    let regression = vec![
        json!("mse"),
        json!({"loss": "mse", "reduction": "none"}),
        json!("l1"),
        json!("smooth_l1"),
        json!({"loss": "smooth_l1", "beta": 0}),
        json!("huber"),
        json!("poisson_nll"),
        json!("log_cosh"),
        json!("quantile"),
        json!({"loss": "charbonnier", "reduction": "mean"}),
        json!({"loss": "cauchy", "reduction": "mean"}),
        json!({"loss": "geman_mcclure", "reduction": "mean"}),
        json!({"loss": "welsch", "reduction": "mean"}),
        json!("msle"),
        json!("mape"),
    ];
    let binary = vec![
        json!("bce_with_logits"),
        json!({"loss": "bce_with_logits", "weight": [1, 2, 3, 4], "pos_weight": [2, 1, 1, 0.5]}),
        json!("sigmoid_focal"),
        json!({"loss": "sigmoid_focal", "alpha": [0.1, 0.2, 0.3, 0.4], "weight": [1, 2, 3, 4], "mean_over": "all"}),
        json!({"loss": "sigmoid_focal", "gamma": 1.5, "mask": [[true, false, true, true]]}),
        json!("asymmetric_multi_label"),
        json!({"loss": "asymmetric_multi_label", "reduction": "batch_mean", "weight": [1, 2, 3, 4]}),
        json!("poly_bce_with_logits"),
        json!({"loss": "soft_bce_with_logits", "reduction": "batch_mean", "label_smoothing": 0.1}),
        json!("hinge"),
        json!("multi_label_soft_margin"),
        json!({"loss": "multi_label_soft_margin", "weight": [1, 2, 3, 4]}),
        json!("quality_focal"),
        json!("varifocal"),
    ];
    let ignored = vec![
        json!({"loss": "sigmoid_focal", "ignore_index": 255}),
        json!({"loss": "soft_bce_with_logits", "ignore_index": 255}),
        json!({"loss": "soft_bce_with_logits", "ignore_index": 255, "mean_over": "counted"}),
    ];
    let indices = vec![
        json!("cross_entropy"),
        json!({"loss": "cross_entropy", "weight": [0.5, 1, 4], "label_smoothing": 0.1}),
        json!({"loss": "cross_entropy", "weight": [0.5, 1, 4], "mean_over": "all"}),
        json!("nll"),
        json!({"loss": "nll", "weight": [0.5, 1, 4]}),
        json!("softmax_focal"),
        json!({"loss": "softmax_focal", "weight": [0.5, 1, 4], "alpha": 0.3}),
        json!({"loss": "softmax_focal", "weight": [0.5, 1, 4], "label_smoothing": 0.2}),
        json!({"loss": "softmax_focal", "mean_over": "all"}),
        json!({"loss": "one_vs_rest_focal", "ignore_index": -100}),
        json!({"loss": "one_vs_rest_focal", "ignore_index": -100, "mean_over": "all", "weight": [0.5, 1, 4]}),
        json!({"loss": "soft_bce_with_logits", "ignore_index": -100, "mean_over": "counted"}),
    ];
    let counted = vec![
        json!("poly_cross_entropy"),
        json!("asymmetric_single_label"),
        json!("categorical_hinge"),
        json!({"loss": "one_vs_rest_focal"}),
    ];
    let shares = vec![
        json!({"loss": "cross_entropy", "weight": [0.5, 1, 4]}),
        json!("softmax_focal"),
        json!("poly_cross_entropy"),
        json!("categorical_hinge"),
    ];
    let divergences = vec![json!("kl_div"), json!({"loss": "kl_div", "reduction": "batch_mean"})];
    let margins = vec![json!("multi_margin"), json!({"loss": "multi_margin", "weight": [1, 2, 3, 4], "p": 2})];
    let images = vec![
        json!({"loss": "ssim", "window_size": [3]}),
        json!({"loss": "ssim", "window_size": [3], "padding": "reflect", "form": "dissimilarity", "scope": "sample"}),
        json!({"loss": "ms_ssim", "window_size": [3], "weights": [0.4, 0.6]}),
        json!({"loss": "ms_ssim", "window_size": [3], "weights": [0.4, 0.6], "scope": "channel"}),
        json!({"loss": "ms_ssim_l1", "sigmas": [0.5, 1.0], "compensation": 1}),
        json!({"loss": "psnr", "scope": "sample"}),
    ];
    let pixels = || numbers(&[6, 2, 6, 7], 0.0);
    let spoiled = masks().masked_fill(&integers(&[6, 1], &[0, 0, 0, 1, 1, 0]).gt(0), 255.0);
    let signs = masks() * 2 - 1;
    let labels = integers(&[6, 4], &[0, -1, 0, 0, 1, 2, -1, 0, 3, 0, 1, -1, -1, 0, 0, 0, 2, -1, 0, 0, 0, 1, 2, 3]);
    vec![
        (regression, numbers(&[6, 4], 0.0), numbers(&[6, 4], 9.0).abs()),
        (vec![json!("bce"), json!({"loss": "bce", "weight": [1, 2, 3, 4]})], numbers(&[6, 4], 0.0).sigmoid(), masks()),
        (binary, numbers(&[6, 4], 0.0), masks()),
        (ignored, numbers(&[6, 4], 0.0), spoiled),
        (indices, logits().log_softmax(1, None), classes()),
        (counted, logits(), classes().clamp(0, 2)),
        (shares, logits(), numbers(&[6, 3, 2], 3.0).softmax(1, None)),
        (divergences, numbers(&[6, 4], 0.0).log_softmax(1, None), numbers(&[6, 4], 2.0).softmax(1, None)),
        (vec![json!("soft_margin"), json!("hinge_embedding")], numbers(&[6, 4], 0.0), signs),
        (margins, numbers(&[6, 4], 0.0), integers(&[6], &[0, 1, 3, 2, 1, 0])),
        (vec![json!("multi_label_margin")], numbers(&[6, 4], 0.0), labels),
        (images, pixels() * 0.9 + numbers(&[6, 2, 6, 7], 7.0) * 0.1, pixels()),
        (vec![json!("negative_cosine_similarity")], numbers(&[6, 4], 0.0), numbers(&[6, 4], 3.0)),
        (vec![json!("distribution_focal")], numbers(&[6, 4], 0.0), numbers(&[6], 1.0).abs()),
        (
            ["generalized_box_iou", "distance_box_iou", "complete_box_iou"]
                .map(|name| json!({"loss": name, "reduction": "mean"}))
                .to_vec(),
            boxes(0.0),
            boxes(1.0),
        ),
    ]
}

fn read(description: &Value, kind: Kind) -> AnyLoss {
    let loss: AnyLoss = serde_json::from_value(description.clone()).unwrap();
    loss.f_to(Device::Cpu, kind).unwrap()
}

/// The description with the reduction that is the mean of it.
fn of_mean(description: &Value) -> Value {
    let mut mean = description.clone();
    if mean["reduction"] == "none" {
        mean["reduction"] = "mean".into();
    }
    mean
}

#[test]
fn losses_of_input_and_target() {
    for (descriptions, input, target) in cases() {
        for description in descriptions {
            for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16] {
                // libtorch has it for wide kinds alone.
                if description == "multi_label_margin" && !matches!(kind, Kind::Double | Kind::Float) {
                    continue;
                }
                let (loss, mean) = (read(&description, kind), read(&of_mean(&description), kind));
                let target = if target.is_floating_point() { target.to_kind(kind) } else { target.shallow_clone() };
                let input = input.to_kind(kind);
                for backend in [Backend::Auto, Backend::Composite] {
                    with_backend(backend, || {
                        check(
                            &format!("{description} in {kind:?}"),
                            &input,
                            0,
                            &|input| mean.f_forward(input, &target),
                            &|part, start, size| loss.f_parts(part, &target.narrow(0, start, size)),
                        );
                    });
                }
            }
        }
    }
}

#[test]
fn every_loss_is_tested_or_is_no_mean() {
    let tested: Vec<Value> = cases().into_iter().flat_map(|(descriptions, ..)| descriptions).collect();
    let name_of = |description: &Value| description.get("loss").unwrap_or(description).clone();
    let (input, target) = (numbers(&[6, 4], 0.0), numbers(&[6, 4], 1.0).gt(0));
    for name in AnyLoss::names().filter(|name| *name != "sum" && *name != "jsd_cross_entropy") {
        if tested.iter().any(|description| name_of(description) == name) {
            continue;
        }
        let result = read(&json!(name), Kind::Double).f_parts(&input, &target);
        assert!(matches!(result, Err(LossError::NoMean { .. })), "{name} is a mean, and not tested here");
    }
}

#[test]
fn losses_with_a_weight_for_each_element() {
    let (input, target, weight) = (numbers(&[6, 4], 0.0), numbers(&[6, 4], 9.0), numbers(&[6, 4], 4.0).abs());
    type WithWeight = fn(Tensor) -> Box<dyn Loss>;
    let losses: [(&str, WithWeight); 5] = [
        ("mse", |weight| Box::new(MseLoss::new().weight(weight))),
        ("l1", |weight| Box::new(L1Loss::new().weight(weight))),
        ("huber", |weight| Box::new(HuberLoss::new().weight(weight))),
        ("log-cosh", |weight| Box::new(LogCoshLoss::new().weight(weight))),
        ("quantile", |weight| Box::new(QuantileLoss::new().weight(weight))),
    ];
    for (name, with_weight) in losses {
        check(
            name,
            &input,
            0,
            &|input| with_weight(weight.shallow_clone()).f_forward(input, &target),
            &|part, start, size| {
                with_weight(weight.narrow(0, start, size)).f_parts(part, &target.narrow(0, start, size))
            },
        );
    }
}

#[test]
fn jsd_of_views_of_the_same_samples() {
    // Two views of six samples: a part has both views of its samples.
    let (views, target) = (numbers(&[6, 2, 3], 0.0), integers(&[6], &[0, 1, 2, 1, 0, 0]));
    let loss = read(&json!({"loss": "jsd_cross_entropy", "num_splits": 2}), Kind::Double);
    let apart = |views: &Tensor| views.transpose(0, 1).reshape([-1, 3]);
    check("jsd", &views, 0, &|views| loss.f_forward(&apart(views), &target), &|part, start, size| {
        loss.f_parts(&apart(part), &target.narrow(0, start, size))
    });
}

#[test]
fn losses_of_other_arguments() {
    let (a, b, c) = (numbers(&[6, 4], 0.0), numbers(&[6, 4], 1.0), numbers(&[6, 4], 2.0));
    let of = |tensor: &Tensor, start, size| tensor.narrow(0, start, size);
    let gaussian = GaussianNllLoss::new();
    let var = c.abs() + 0.1;
    check("gaussian", &a, 0, &|a| gaussian.f_forward(a, &b, &var), &|a, start, size| {
        gaussian.f_parts(a, &of(&b, start, size), &of(&var, start, size))
    });
    let signs = integers(&[6], &[1, -1, -1, 1, 1, -1]);
    let cosine = CosineEmbeddingLoss::new().reduction(Reduction::Sum);
    let mean = CosineEmbeddingLoss::new();
    check("cosine", &a, 0, &|a| mean.f_forward(a, &b, &signs), &|a, start, size| {
        cosine.f_parts(a, &of(&b, start, size), &of(&signs, start, size))
    });
    let ranking = MarginRankingLoss::new().margin(0.5);
    let order = b.sign();
    check("ranking", &a, 0, &|a| ranking.f_forward(a, &c, &order), &|a, start, size| {
        ranking.f_parts(a, &of(&c, start, size), &of(&order, start, size))
    });
    let triplet = TripletMarginLoss::new().swap(true);
    check("triplet", &a, 0, &|a| triplet.f_forward(a, &b, &c), &|a, start, size| {
        triplet.f_parts(a, &of(&b, start, size), &of(&c, start, size))
    });
    let triplet = TripletMarginWithDistanceLoss::new().margin(2.0);
    check("triplet with distance", &a, 0, &|a| triplet.f_forward(a, &b, &c), &|a, start, size| {
        triplet.f_parts(a, &of(&b, start, size), &of(&c, start, size))
    });
}

#[test]
fn ctc_is_a_mean_over_sequences() {
    let log_probs = numbers(&[7, 6, 4], 0.0).log_softmax(2, None);
    let targets = integers(&[6, 3], &[1, 2, 3, 1, 1, 2, 3, 2, 1, 2, 2, 2, 1, 3, 1, 3, 3, 1]);
    let (inputs, lengths) = ([7, 6, 5, 7, 7, 4], [3, 2, 0, 1, 3, 2]);
    let ctc = CtcLoss::new();
    check(
        "ctc",
        &log_probs,
        1,
        &|log_probs| ctc.f_forward(log_probs, &targets, inputs, lengths),
        &|part, start, size| {
            let range = start as usize..(start + size) as usize;
            ctc.f_parts(part, &targets.narrow(0, start, size), &inputs[range.clone()], &lengths[range])
        },
    );
}

#[test]
fn losses_over_large_vocabularies() {
    let (weight, bias) = (numbers(&[3, 5], 3.0), numbers(&[3], 4.0));
    let target = integers(&[6], &[0, 2, 1, -100, -100, 1]);
    let shares = numbers(&[6, 3], 1.0).softmax(1, None);
    let weighted = || LinearCrossEntropy::new().weight(Tensor::from_slice(&[0.5, 1.0, 4.0]));
    let losses = [
        LinearCrossEntropy::new(),
        weighted(),
        LinearCrossEntropy::new().chunking(Chunking::Rows(2)).z_loss(0.1),
        weighted().chunking(Chunking::Rows(2)).label_smoothing(0.1),
    ];
    for (index, loss) in losses.iter().enumerate() {
        for kind in [Kind::Double, Kind::BFloat16] {
            let (weight, bias) = (weight.to_kind(kind), bias.to_kind(kind));
            let targets = [target.shallow_clone(), shares.to_kind(kind)];
            for target in &targets {
                // Class weights have the kind of the input.
                if kind != Kind::Double && index % 2 == 1 {
                    continue;
                }
                let name = format!("linear cross entropy {index} in {kind:?}");
                let input = numbers(&[6, 5], 0.0).to_kind(kind);
                check(
                    &name,
                    &input,
                    0,
                    &|input| loss.f_forward(input, &weight, target, Some(&bias)),
                    &|part, start, size| loss.f_parts(part, &weight, &target.narrow(0, start, size), Some(&bias)),
                );
            }
        }
    }
    let error = weighted().z_loss(0.1).f_parts(&numbers(&[6, 5], 0.0), &weight, &target, None).unwrap_err();
    assert!(matches!(error, LossError::NoMean { .. }), "{error}");

    let store = tch::nn::VarStore::new(Device::Cpu);
    let input = numbers(&[6, 5], 0.0).to_kind(Kind::Float);
    let linear = LinearCrossEntropyLoss::new(store.root() / "linear", 5, 3, LinearCrossEntropyConfig::new());
    check("linear module", &input, 0, &|input| linear.f_forward(input, &target), &|part, start, size| {
        linear.f_parts(part, &target.narrow(0, start, size))
    });
    let softmax = AdaptiveLogSoftmaxWithLoss::new(store.root(), 5, 7, &[2, 4], AdaptiveLogSoftmaxConfig::new());
    let target = integers(&[6], &[0, 6, 3, 2, 1, 5]);
    check("adaptive", &input, 0, &|input| Ok(softmax.f_forward(input, &target)?.loss), &|part, start, size| {
        softmax.f_parts(part, &target.narrow(0, start, size))
    });
}

#[test]
fn a_sum_in_half_precision_does_not_overflow() {
    let logits = Tensor::zeros([40_000, 8], (Kind::Half, Device::Cpu));
    let target = Tensor::zeros(40_000, (Kind::Int64, Device::Cpu));
    let parts = CrossEntropyLoss::new().f_parts(&logits, &target).unwrap();
    assert_eq!(parts.numerator().kind(), Kind::Float);
    assert!((parts.numerator().double_value(&[]) / 40_000.0 - 8_f64.ln()).abs() < 1e-5);
}

#[test]
fn what_is_no_mean_says_so() {
    let (input, target) = (numbers(&[6, 4], 0.0), numbers(&[6, 4], 1.0).gt(0));
    let message = |description| {
        let loss: AnyLoss = serde_json::from_value(description).unwrap();
        loss.f_parts(&input, &target).unwrap_err().to_string()
    };
    assert_eq!(
        message(json!("dice")),
        "DiceLoss has no numerator and denominator: it is no mean over samples or elements"
    );
    assert_eq!(
        message(json!({"loss": "sigmoid_focal", "normalization": "all"})),
        "SigmoidFocalLoss has no numerator and denominator: with a normalization it is divided by a sum over the whole batch"
    );
    let error = HuberLoss::new().delta(-1.0).f_parts(&input, &target).unwrap_err().to_string();
    assert_eq!(error, "option delta is -1, expected a number > 0");
    let pair = MeanParts::f_new(Tensor::from_slice(&[1.0]), Tensor::from_slice(&[1.0]));
    assert_eq!(pair.unwrap_err().to_string(), "numerator has shape [1], expected [], a scalar");
}

/// A leaf that requires a gradient.
fn leaf(tensor: &Tensor, kind: Kind) -> Tensor {
    tensor.detach().to_kind(kind).copy().set_requires_grad(true)
}

/// The loss over nothing is what `when_empty` says, and its gradient is 0.
fn check_nothing(name: &str, loss: impl Fn(WhenEmpty, &Tensor) -> Result<Tensor, LossError>, input: &Tensor) {
    for (when_empty, value) in [(WhenEmpty::Zero, 0.0), (WhenEmpty::Nan, f64::NAN)] {
        let input = leaf(input, input.kind());
        let result = loss(when_empty, &input).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(result.double_value(&[]).to_bits() << 1, value.to_bits() << 1, "{name}: {result}");
        result.f_backward().unwrap_or_else(|error| panic!("{name} has no graph: {error}"));
        let gradient = input.grad().to_kind(Kind::Double);
        assert!(gradient.equal(&gradient.zeros_like()), "{name}, {when_empty:?}: {gradient}");
    }
    let error = loss(WhenEmpty::Error, input).err();
    assert!(matches!(error, Some(LossError::Empty)), "{name}: {error:?}");
}

#[test]
fn a_mean_over_no_batch_is_what_was_asked_for() {
    for (descriptions, input, target) in cases() {
        for description in descriptions {
            for kind in [Kind::Double, Kind::Float, Kind::Half] {
                if description == "multi_label_margin" && kind == Kind::Half {
                    continue;
                }
                let target = if target.is_floating_point() { target.to_kind(kind) } else { target.shallow_clone() };
                let (input, mean) = (input.to_kind(kind), read(&of_mean(&description), kind));
                let (no_input, no_target) = (input.narrow(0, 0, 0), target.narrow(0, 0, 0));
                for backend in [Backend::Auto, Backend::Composite] {
                    with_backend(backend, || {
                        let name = format!("{description} in {kind:?}, {backend:?}");
                        let default = mean.f_forward(&no_input, &no_target).unwrap().double_value(&[]);
                        let zero = name.contains("_box_iou");
                        assert!(if zero { default == 0.0 } else { default.is_nan() }, "{name}: {default} by default");
                        check_nothing(&name, |rule, input| mean.when_empty_of(rule, input, &no_target), &no_input);
                        let plain = mean.f_forward(&input, &target).unwrap();
                        for rule in [WhenEmpty::Zero, WhenEmpty::Error] {
                            let value = mean.when_empty_of(rule, &input, &target).unwrap();
                            assert_eq!(value, plain, "{name}: what is over something stays");
                        }
                    });
                }
            }
        }
    }
}

/// A loss that is not given away.
trait WhenEmptyOf {
    fn when_empty_of(&self, rule: WhenEmpty, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError>;
}

impl WhenEmptyOf for AnyLoss {
    fn when_empty_of(&self, rule: WhenEmpty, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.clone().when_empty(rule).f_forward(input, target)
    }
}

#[test]
fn a_mean_over_ignored_targets_is_what_was_asked_for() {
    let (logits, logs) = (numbers(&[6, 3, 2], 0.0), numbers(&[6, 3, 2], 0.0).log_softmax(1, None));
    let (elements, classes) = (numbers(&[6, 4], 0.0), integers(&[6, 2], &[-100; 12]));
    let spoiled = elements.full_like(255);
    let overlap = json!({"loss": "dice", "activation": "softmax", "ignore_index": -100});
    let cases = [
        (json!("cross_entropy"), &logits, &classes),
        (json!({"loss": "cross_entropy", "weight": [0.5, 1, 4], "label_smoothing": 0.1}), &logits, &classes),
        (json!("nll"), &logs, &classes),
        (json!("softmax_focal"), &logits, &classes),
        (json!({"loss": "softmax_focal", "weight": [0.5, 1, 4]}), &logits, &classes),
        (json!({"loss": "one_vs_rest_focal", "ignore_index": -100}), &logits, &classes),
        (json!({"loss": "soft_bce_with_logits", "mean_over": "counted"}), &logits, &classes),
        (json!({"loss": "sigmoid_focal", "ignore_index": 255}), &elements, &spoiled),
        (json!({"loss": "sigmoid_focal", "mask": [[false, false, false, false]]}), &elements, &elements.sigmoid()),
        (json!({"loss": "soft_bce_with_logits", "ignore_index": 255, "mean_over": "counted"}), &elements, &spoiled),
        (json!({"loss": "dice_cross_entropy", "overlap": overlap}), &logits, &classes),
        (json!({"loss": "dice_focal", "overlap": overlap}), &logits, &classes),
    ];
    for (description, input, target) in cases {
        for backend in [Backend::Auto, Backend::Composite] {
            with_backend(backend, || {
                let loss = read(&description, Kind::Double);
                let f_loss = |rule, input: &Tensor| loss.when_empty_of(rule, input, target);
                check_nothing(&format!("{description}, {backend:?}"), f_loss, input);
            });
        }
    }
    // A sum of weights of 0 is nothing, too, and no mean over all targets is.
    let none = MseLoss::new().weight(elements.zeros_like());
    check_nothing("weights of 0", |rule, input| none.clone().when_empty(rule).f_forward(input, &spoiled), &elements);
    let all = read(&json!({"loss": "cross_entropy", "mean_over": "all"}), Kind::Double);
    assert_eq!(all.when_empty_of(WhenEmpty::Error, &logits, &classes).unwrap().double_value(&[]), 0.0);
}

#[test]
fn other_arguments_have_the_mean_of_their_parts() {
    let none = numbers(&[6, 4], 0.0).narrow(0, 0, 0);
    let signs = integers(&[0], &[]);
    let value = |parts: Result<MeanParts, LossError>, rule| parts?.f_value_when_empty(rule);
    let gaussian = GaussianNllLoss::new();
    check_nothing("gaussian", |rule, a| value(gaussian.f_parts(a, &none, &none), rule), &none);
    let cosine = CosineEmbeddingLoss::new();
    check_nothing("cosine", |rule, a| value(cosine.f_parts(a, &none, &signs), rule), &none);
    let ranking = MarginRankingLoss::new();
    check_nothing("ranking", |rule, a| value(ranking.f_parts(a, &none, &none), rule), &none);
    let triplet = TripletMarginLoss::new();
    check_nothing("triplet", |rule, a| value(triplet.f_parts(a, &none, &none), rule), &none);
    let (weight, ignored) = (numbers(&[3, 4], 1.0), integers(&[6], &[-100; 6]));
    let linear = LinearCrossEntropy::new();
    let input = numbers(&[6, 4], 0.0);
    check_nothing("linear", |rule, a| value(linear.f_parts(a, &weight, &ignored, None), rule), &input);
}

/// Without a word, too, as ranks have it, and after they were added up.
#[test]
fn parts_know_what_their_mean_over_nothing_is() {
    let value = |description: Value, input: &Tensor, target: &Tensor| {
        let loss: AnyLoss = serde_json::from_value(description).unwrap();
        let parts = loss.f_parts(input, target).unwrap();
        parts.f_add(&parts).unwrap().f_value().map(|value| value.double_value(&[]))
    };
    let (logits, ignored) = (numbers(&[2, 3], 0.0), integers(&[2], &[-100, -100]));
    let entropy = |rule: &str| value(json!({"loss": "cross_entropy", "when_empty": rule}), &logits, &ignored);
    assert_eq!(entropy("zero").unwrap(), 0.0);
    assert!(entropy("nan").unwrap().is_nan() && matches!(entropy("error"), Err(LossError::Empty)));
    assert!(value(json!("cross_entropy"), &logits, &ignored).unwrap().is_nan());
    // Torchvision's mean over no boxes is 0.
    let boxes = numbers(&[0, 4], 0.0);
    let mean = |when_empty| json!({"loss": "generalized_box_iou", "reduction": "mean", "when_empty": when_empty});
    assert_eq!(value(json!({"loss": "generalized_box_iou"}), &boxes, &boxes).unwrap(), 0.0);
    assert!(value(mean("nan"), &boxes, &boxes).unwrap().is_nan());
}

/// An image without an object: the scores of its anchors count, and there is no box.
#[test]
fn detectors_learn_from_an_image_without_objects() {
    let (scores, qualities) = (numbers(&[6, 4], 0.0), Tensor::zeros([6, 4], (Kind::Double, Device::Cpu)));
    let (boxes, bins) = (numbers(&[0, 4], 0.0), numbers(&[0, 8], 0.0));
    let positions = numbers(&[0], 0.0);
    let read = |description: Value| -> AnyLoss { serde_json::from_value(description).unwrap() };
    let of_scores = ["quality_focal", "varifocal"].map(|name| read(json!({"loss": name, "divisor": "positives"})));
    let of_bins = read(json!({"loss": "distribution_focal", "when_empty": "zero"}));
    let of_boxes = read(json!({"loss": "generalized_box_iou", "reduction": "mean", "when_empty": "zero"}));
    for (loss, name) in of_scores.iter().zip(["quality_focal", "varifocal"]) {
        let input = leaf(&scores, Kind::Double);
        let total = loss.forward(&input, &qualities) + of_bins.forward(&bins, &positions);
        let total = total + of_boxes.forward(&boxes, &boxes);
        total.backward();
        // No positive counts as one.
        let sum = read(json!({"loss": name, "reduction": "sum"})).forward(&scores, &qualities);
        assert!((total.double_value(&[]) - sum.double_value(&[])).abs() < 1e-12, "{name}");
        assert!(
            input.grad().isfinite().all().int64_value(&[]) != 0 && input.grad().abs().max().double_value(&[]) > 0.0
        );

        let targets = numbers(&[6, 4], 5.0).sigmoid() * numbers(&[6, 4], 5.0).gt(0);
        let positives = targets.gt(0).sum(Kind::Double);
        assert!(positives.double_value(&[]) > 1.0);
        let expected = read(json!({"loss": name, "reduction": "sum"})).forward(&scores, &targets) / positives;
        assert!((loss.forward(&scores, &targets) - expected).abs().double_value(&[]) < 1e-12, "{name}");
        // A sum in half precision overflows.
        let many = Tensor::full([400, 400], 8.0, (Kind::Half, Device::Cpu));
        let quality = many.zeros_like();
        let _ = quality.narrow(0, 0, 200).fill_(1e-3);
        let mean = loss.forward(&many, &quality);
        assert_eq!((mean.kind(), mean.isfinite().int64_value(&[])), (Kind::Half, 1), "{name}");
    }
}
