//! What holds for every loss of classes: half precision, masked classes, confident predictions, weights of another kind, and
//! arguments that mean nothing.

use tch::{Device, Kind, Tensor};
use tch_losses::*;

/// A loss of one tensor.
type Function = Box<LossOf<'static>>;
type LossOf<'a> = dyn Fn(&Tensor) -> Tensor + 'a;

const BACKENDS: [Backend; 2] = [Backend::Auto, Backend::Composite];

type Call<'a> = &'a dyn Fn(&Tensor) -> Tensor;

/// The loss of a leaf and its gradient, and once more with a graph of the gradient, which must not change it.
fn value_and_gradient(what: &str, backend: Backend, input: &Tensor, loss: Call) -> (f64, Vec<f64>) {
    let of = |create: bool| {
        let leaf = input.detach().copy().set_requires_grad(true);
        let value = with_backend(backend, || loss(&leaf));
        let gradient = Tensor::run_backward(&[value.sum(None)], &[&leaf], create, create).remove(0);
        (value.sum(Kind::Double).double_value(&[]), numbers(&gradient))
    };
    let (first, with_graph) = (of(false), of(true));
    assert_eq!(first.0.to_bits(), with_graph.0.to_bits(), "{backend:?}");
    for (a, b) in first.1.iter().zip(&with_graph.1) {
        let near = (a - b).abs() <= 1e-2 * a.abs() + 1e-7 || a == b || (a.is_nan() && b.is_nan());
        assert!(near, "{what}, {backend:?}: {a:e} without a graph, {b:e} with one");
    }
    first
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.detach().to_kind(Kind::Double).reshape([-1])).unwrap()
}

fn tensor(numbers: &[f64], kind: Kind) -> Tensor {
    Tensor::from_slice(numbers).to_kind(kind)
}

fn assert_near(actual: f64, expected: f64, relative: f64, what: &str) {
    let near = (actual - expected).abs() <= relative * expected.abs() || actual == expected;
    assert!(near, "{what}: {actual:e}, expected {expected:e}");
}

fn zeros() -> Tensor {
    Tensor::zeros(65_520, (Kind::Int64, Device::Cpu))
}

/// f16 ends at 65504, and below 6e-8 there is nothing.
#[test]
fn sums_and_means_of_half_precision_are_formed_in_single_precision() {
    const N: i64 = 65_520;
    let rows = |value: f64, columns: i64| Tensor::full([N, columns], value, (Kind::Half, Device::Cpu));
    let least = 1.0 / N as f64;
    let ln_2 = 2_f64.ln();
    let cases: Vec<(&str, Tensor, Function, f64, f64)> = vec![
        ("NLL", rows(-0.5, 1), Box::new(|x| NllLoss::new().forward(x, &zeros())), 0.5, -least),
        (
            "NLL, weighted",
            rows(-0.5, 1),
            Box::new(|x| NllLoss::new().weight(tensor(&[2.0], Kind::Float)).forward(x, &zeros())),
            0.5,
            -least,
        ),
        ("cross entropy", rows(1.0, 2), Box::new(|x| CrossEntropyLoss::new().forward(x, &zeros())), ln_2, -0.5 * least),
        (
            "cross entropy, smoothed",
            rows(1.0, 2),
            Box::new(|x| CrossEntropyLoss::new().label_smoothing(0.5).forward(x, &zeros())),
            ln_2,
            -0.25 * least,
        ),
        (
            "cross entropy, weighted",
            rows(1.0, 2),
            Box::new(|x| CrossEntropyLoss::new().weight(tensor(&[2.0, 1.0], Kind::Half)).forward(x, &zeros())),
            ln_2,
            -0.5 * least,
        ),
        (
            "cross entropy of probabilities",
            rows(1.0, 2),
            Box::new(|x| CrossEntropyLoss::new().forward(x, &tensor(&[1.0, 0.0], Kind::Half).expand_as(x))),
            ln_2,
            -0.5 * least,
        ),
        (
            "cross entropy, NaN for classes out of range",
            rows(1.0, 2),
            Box::new(|x| CrossEntropyLoss::new().invalid_values(InvalidValues::Nan).forward(x, &zeros())),
            ln_2,
            -0.5 * least,
        ),
        (
            "softmax focal",
            rows(1.0, 2),
            Box::new(|x| SoftmaxFocalLoss::new().gamma(0.0).forward(x, &zeros())),
            ln_2,
            -0.5 * least,
        ),
        ("Poisson", rows(0.0, 1), Box::new(|x| PoissonNllLoss::new().forward(x, &x.detach().ones_like())), 1.0, 0.0),
        (
            "Poisson of rates",
            rows(1.0, 1),
            Box::new(|x| PoissonNllLoss::new().log_input(false).full(true).forward(x, &x.detach().zeros_like())),
            1.0,
            least,
        ),
        (
            "KL, mean",
            rows(-0.5, 1),
            Box::new(|x| KlDivLoss::new().reduction(KlDivReduction::BatchMean).forward(x, &x.detach().ones_like())),
            0.5,
            -least,
        ),
        (
            "Gaussian, one variance per row",
            rows(1.0, 1),
            Box::new(|x| {
                let var = tensor(&[1.0], Kind::Half).expand([N], true);
                GaussianNllLoss::new().forward(x, &x.detach().zeros_like(), &var)
            }),
            0.5,
            least,
        ),
        ("MSE", rows(1.0, 1), Box::new(|x| MseLoss::new().forward(x, &x.detach().zeros_like())), 1.0, 2.0 * least),
        (
            "BCE with logits",
            rows(0.0, 1),
            Box::new(|x| BceWithLogitsLoss::new().forward(x, &x.detach().ones_like())),
            ln_2,
            -0.5 * least,
        ),
        ("BCE", rows(0.5, 1), Box::new(|x| BceLoss::new().forward(x, &x.detach().ones_like())), ln_2, -2.0 * least),
        (
            "margin ranking",
            rows(0.0, 1),
            Box::new(|x| MarginRankingLoss::new().margin(1.0).forward(x, &x.detach(), &x.detach().ones_like())),
            1.0,
            -least,
        ),
        ("multi-margin", rows(0.0, 2), Box::new(|x| MultiMarginLoss::new().forward(x, &zeros())), 0.5, -0.5 * least),
        (
            "multi-label margin",
            rows(0.0, 2),
            Box::new(|x| {
                MultiLabelMarginLoss::new()
                    .forward(x, &(x.detach().to_kind(Kind::Int64) + tensor(&[0.0, -1.0], Kind::Int64)))
            }),
            0.5,
            -0.5 * least,
        ),
    ];
    for (name, input, loss, value, gradient) in &cases {
        for backend in BACKENDS {
            let (actual, gradients) = value_and_gradient(name, backend, input, &**loss);
            assert_near(actual, *value, 1e-3, &format!("{name}, {backend:?}"));
            // f16 has multiples of 6e-8 here.
            let distance = (gradients[0] - gradient).abs();
            assert!(distance <= 3.1e-8, "{name}, {backend:?}: {:e}, expected {gradient:e}", gradients[0]);
        }
    }
}

#[test]
fn large_losses_of_half_precision_have_a_mean() {
    for backend in BACKENDS {
        let input = tensor(&[-40000.0, 0.0, -40000.0, 0.0], Kind::Half).reshape([2, 2]);
        let target = Tensor::from_slice(&[0_i64, 0]);
        let loss = |x: &Tensor| CrossEntropyLoss::new().forward(x, &target);
        let (value, gradients) = value_and_gradient("", backend, &input, &loss);
        assert_eq!((value, gradients), (40000.0, vec![-0.5, 0.5, -0.5, 0.5]), "{backend:?}");

        let input = Tensor::zeros([8, 50, 3000], (Kind::Half, Device::Cpu));
        let target = Tensor::zeros([8, 3000], (Kind::Int64, Device::Cpu));
        let loss = with_backend(backend, || CrossEntropyLoss::new().forward(&input, &target));
        assert_near(loss.double_value(&[]), 50_f64.ln(), 1e-3, "24000 targets");

        // The layer of a linear cross entropy: logits beyond f16.
        let input = tensor(&[300.0, 0.0], Kind::Half).reshape([2, 1]);
        let weight = tensor(&[-300.0, 0.0], Kind::Half).reshape([2, 1]);
        let target = Tensor::from_slice(&[0_i64, 0]);
        let criterion = || LinearCrossEntropy::new();
        let loss = with_backend(backend, || criterion().forward(&input, &weight, &target, None));
        assert_near(loss.double_value(&[]), (90000.0 + 2_f64.ln()) / 2.0, 1e-3, "linear cross entropy");
        let parts = with_backend(backend, || criterion().f_parts(&input, &weight, &target, None)).unwrap();
        assert_near(parts.numerator().double_value(&[]), 90000.0 + 2_f64.ln(), 1e-6, "its sum");
    }
}

/// The gradient is the operations' own, also where it is to be differentiated.
#[test]
fn the_gradient_of_half_precision_has_the_least_denominators_of_single_precision() {
    for backend in BACKENDS {
        let target = tensor(&[0.0, 1.0, 1.0], Kind::Half);
        let loss = |x: &Tensor| BceLoss::new().forward(x, &target);
        let (_, gradients) = value_and_gradient("", backend, &tensor(&[0.0, 1.0, 0.5], Kind::Half), &loss);
        assert_eq!(&gradients[..2], [0.0, 0.0], "{backend:?}");
        assert_near(gradients[2], -2.0 / 3.0, 1e-3, "BCE");
    }
}

/// A loss of one row of three classes, of which the last is masked and the first is the target.
fn losses_of_masked_rows() -> Vec<(&'static str, Function)> {
    fn row(x: &Tensor) -> Tensor {
        x.reshape([1, 3])
    }
    fn class() -> Tensor {
        Tensor::from_slice(&[0_i64])
    }
    fn shares(x: &Tensor) -> Tensor {
        Tensor::from_slice(&[0.75, 0.25, 0.0]).to_kind(x.kind()).reshape([1, 3])
    }
    let single = |smoothing: f64, gamma: f64| {
        let loss = AsymmetricSingleLabelLoss::new().label_smoothing(smoothing).gamma_neg(gamma);
        move |x: &Tensor| loss.forward(&row(x), &class())
    };
    let distilled = |soft: SoftLoss| {
        let loss = DistillationLoss::new().soft_loss(soft).hard_weight(0.0);
        move |x: &Tensor| {
            let teacher = Tensor::from_slice(&[0.5, 1.0, f64::NEG_INFINITY]).to_kind(x.kind()).reshape([1, 3]);
            loss.forward(&row(x), &teacher, None)
        }
    };
    vec![
        ("cross entropy", Box::new(|x| CrossEntropyLoss::new().forward(&row(x), &class()))),
        ("probabilities", Box::new(|x| CrossEntropyLoss::new().forward(&row(x), &shares(x)))),
        (
            "probabilities of pixels",
            Box::new(|x| {
                let pixels = |row: Tensor| row.reshape([1, 3, 1]).expand([1, 3, 2], true).contiguous();
                CrossEntropyLoss::new().forward(&pixels(row(x)), &pixels(shares(x)))
            }),
        ),
        (
            "smoothed, masked class without a weight",
            Box::new(|x| {
                let weight = tensor(&[1.0, 2.0, 0.0], x.kind());
                CrossEntropyLoss::new().label_smoothing(0.1).weight(weight).forward(&row(x), &class())
            }),
        ),
        ("poly", Box::new(|x| PolyCrossEntropyLoss::new().forward(&row(x), &class()))),
        ("poly of probabilities", Box::new(|x| PolyCrossEntropyLoss::new().forward(&row(x), &shares(x)))),
        ("softmax focal", Box::new(|x| SoftmaxFocalLoss::new().forward(&row(x), &class()))),
        ("softmax focal of probabilities", Box::new(|x| SoftmaxFocalLoss::new().forward(&row(x), &shares(x)))),
        ("softmax focal, γ = 0.5", Box::new(|x| SoftmaxFocalLoss::new().gamma(0.5).forward(&row(x), &shares(x)))),
        ("asymmetric", Box::new(single(0.1, 4.0))),
        ("asymmetric, γ = 0.5", Box::new(single(0.1, 0.5))),
        ("asymmetric, not smoothed", Box::new(single(0.0, 4.0))),
        (
            "JSD cross entropy",
            Box::new(|x| {
                let views = Tensor::cat(&[row(x), row(x) * 0.5], 0);
                JsdCrossEntropyLoss::new().num_splits(2).label_smoothing(0.0).forward(&views, &class())
            }),
        ),
        ("KL", Box::new(|x| KlDivLoss::new().forward(&row(x).log_softmax(1, x.kind()), &shares(x)))),
        (
            "KL of logarithms",
            Box::new(|x| {
                let target = shares(x).log();
                KlDivLoss::new().log_target(true).forward(&row(x).log_softmax(1, x.kind()), &target)
            }),
        ),
        ("forward KL", Box::new(distilled(SoftLoss::ForwardKl))),
        ("reverse KL", Box::new(distilled(SoftLoss::ReverseKl))),
        ("Jensen-Shannon", Box::new(distilled(SoftLoss::JensenShannon(0.3)))),
        (
            "categorical hinge of vectors",
            Box::new(|x| {
                CategoricalHingeLoss::new().forward(&row(x), &tensor(&[1.0, 0.0, 0.0], x.kind()).reshape([1, 3]))
            }),
        ),
        (
            "linear cross entropy of probabilities",
            Box::new(|x| {
                let input = Tensor::ones([1, 1], (x.kind(), Device::Cpu));
                LinearCrossEntropy::new().forward(&input, &x.reshape([3, 1]), &shares(x), None)
            }),
        ),
        (
            "DINO",
            Box::new(|x| {
                let store = tch::nn::VarStore::new(Device::Cpu);
                let loss = DinoLoss::new(store.root(), 3, DinoConfig::new());
                let teacher = row(&x.detach()).to_kind(x.kind());
                loss.forward(&[teacher.shallow_clone(), teacher], &[row(x), row(x) * 0.5])
            }),
        ),
    ]
}

/// The limit is the loss of the other two classes, where the third is far below them.
#[test]
fn a_masked_class_without_a_share_costs_nothing() {
    let minimum = f64::from(f32::MIN);
    for (name, loss) in losses_of_masked_rows() {
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16, Kind::Half] {
            let tolerance = match kind {
                Kind::Double => 1e-9,
                Kind::Float => 1e-5,
                _ => 2e-2,
            };
            // So far below that it has no probability left, which the distance in a linear loss shows, too.
            let limit = match name {
                "forward KL" | "reverse KL" | "Jensen-Shannon" => f64::NEG_INFINITY,
                _ => -1000.0,
            };
            for mask in [f64::NEG_INFINITY, minimum, -8.6e37, -2e38] {
                if !Kind::eq(&kind, &Kind::Half) || mask == f64::NEG_INFINITY {
                    for backend in BACKENDS {
                        let what = format!("{name}, {kind:?}, {mask:e}, {backend:?}");
                        let of =
                            |mask: f64| value_and_gradient(&what, backend, &tensor(&[1.0, 2.0, mask], kind), &*loss);
                        let expected = with_backend(Backend::Composite, || {
                            value_and_gradient(
                                &what,
                                Backend::Composite,
                                &tensor(&[1.0, 2.0, limit], Kind::Double),
                                &*loss,
                            )
                        });
                        let (value, gradients) = of(mask);
                        assert_near(value, expected.0, tolerance, &what);
                        for (a, b) in gradients.iter().zip(&expected.1) {
                            assert!((a - b).abs() <= tolerance, "{what}: {gradients:?}, expected {:?}", expected.1);
                        }
                        let second = second_derivatives(backend, &tensor(&[1.0, 2.0, mask], kind), &*loss);
                        assert!(second.iter().all(|number| number.is_finite()), "{what}: second {second:?}");
                    }
                }
            }
        }
    }
}

/// The gradient of the sum of the squares of the gradient.
fn second_derivatives(backend: Backend, input: &Tensor, loss: Call) -> Vec<f64> {
    let leaf = input.detach().copy().set_requires_grad(true);
    let value = with_backend(backend, || loss(&leaf));
    let gradient = Tensor::run_backward(&[value.sum(None)], &[&leaf], true, true).remove(0);
    if !gradient.requires_grad() {
        return vec![];
    }
    numbers(&Tensor::run_backward(&[gradient.square().sum(None)], &[&leaf], false, false).remove(0))
}

#[test]
fn the_issue_s_numbers_of_masked_classes() {
    for backend in BACKENDS {
        for mask in [f64::from(f32::MIN), f64::NEG_INFINITY] {
            let loss = |x: &Tensor| {
                AsymmetricSingleLabelLoss::new().forward(&x.reshape([1, 3]), &Tensor::from_slice(&[0_i64]))
            };
            let (_, gradients) = value_and_gradient("", backend, &tensor(&[1.0, 2.0, mask], Kind::Float), &loss);
            for (actual, expected) in gradients.iter().zip([-0.74045, 0.74045, 0.0]) {
                assert!((actual - expected).abs() < 1e-5, "{backend:?} {mask:e} {gradients:?}");
            }
        }
        let zero = tensor(&[0.0], Kind::Float);
        let loss = |x: &Tensor| KlDivLoss::new().forward(x, &zero);
        let (value, gradients) = value_and_gradient("", backend, &tensor(&[f64::NEG_INFINITY], Kind::Float), &loss);
        assert_eq!((value, gradients[0]), (0.0, 0.0), "{backend:?}");
        // The directions of logits with the same masks are the same.
        for mask in [f64::from(f32::MIN), f64::NEG_INFINITY] {
            let teacher = tensor(&[0.5, -1.0, mask], Kind::Float).reshape([1, 3]);
            let criterion = DistillationLoss::new().soft_loss(SoftLoss::Cosine).hard_weight(0.0).soft_weight(1.0);
            let loss = |x: &Tensor| criterion.forward(&x.reshape([1, 3]), &teacher, None);
            let (value, gradients) = value_and_gradient("", backend, &tensor(&[1.0, 2.0, mask], Kind::Float), &loss);
            assert!(value.abs() < 1e-6 && gradients.iter().all(|g| g.abs() < 1e-6), "{value} {gradients:?}");
        }
    }
}

#[test]
fn a_share_on_a_masked_class_is_infinite() {
    let class = Tensor::from_slice(&[2_i64]);
    let shares = tensor(&[0.5, 0.0, 0.5], Kind::Float).reshape([1, 3]);
    let masked = tensor(&[1.0, 2.0, f64::NEG_INFINITY], Kind::Float).reshape([1, 3]);
    let nothing = tensor(&[f64::NEG_INFINITY; 3], Kind::Float).reshape([1, 3]);
    for backend in BACKENDS {
        with_backend(backend, || {
            for (input, expected) in [(&masked, f64::INFINITY), (&nothing, f64::NAN)] {
                let losses = [
                    CrossEntropyLoss::new().forward(input, &class),
                    CrossEntropyLoss::new().forward(input, &shares),
                    CrossEntropyLoss::new().label_smoothing(0.1).forward(input, &class),
                    SoftmaxFocalLoss::new().forward(input, &class),
                    SoftmaxFocalLoss::new().forward(input, &shares),
                    PolyCrossEntropyLoss::new().forward(input, &class),
                    PolyCrossEntropyLoss::new().forward(input, &shares),
                    AsymmetricSingleLabelLoss::new().forward(input, &class),
                    JsdCrossEntropyLoss::new().num_splits(1).label_smoothing(0.0).forward(input, &class),
                ];
                for (position, loss) in losses.iter().enumerate() {
                    let actual = loss.double_value(&[]);
                    assert!(
                        actual == expected || actual.is_nan() && expected.is_nan(),
                        "{position}, {backend:?}: {actual}"
                    );
                }
            }
        });
    }
}

/// −log p and p − 1 of a p near 1, in double precision: log(1 + exp(−15)) and −exp(−15) / (1 + exp(−15)).
#[test]
fn engines_keep_the_digits_of_confident_predictions() {
    for (kind, gaps, tolerance) in [(Kind::Float, [15.0_f64, 40.0], 1e-6), (Kind::Double, [34.0, 300.0], 1e-14)] {
        for gap in gaps {
            let other = (-gap).exp();
            let (value, slope) = (other.ln_1p(), -other / (1.0 + other));
            let class = || Tensor::from_slice(&[0_i64]);
            let losses: Vec<(&str, Box<LossOf<'_>>, f64, f64)> = vec![
                (
                    "cross entropy",
                    Box::new(|x| CrossEntropyLoss::new().forward(&x.reshape([1, 2]), &class())),
                    value,
                    slope,
                ),
                (
                    "cross entropy of pixels",
                    Box::new(|x| {
                        let pixels = x.reshape([1, 2, 1]).expand([1, 2, 3], true).contiguous();
                        CrossEntropyLoss::new().forward(&pixels, &Tensor::zeros([1, 3], (Kind::Int64, Device::Cpu)))
                    }),
                    value,
                    slope,
                ),
                (
                    "probabilities",
                    Box::new(|x| {
                        CrossEntropyLoss::new()
                            .forward(&x.reshape([1, 2]), &tensor(&[1.0, 0.0], x.kind()).reshape([1, 2]))
                    }),
                    value,
                    slope,
                ),
                (
                    "probabilities of pixels",
                    Box::new(|x| {
                        let pixels = |x: &Tensor| x.reshape([1, 2, 1]).expand([1, 2, 3], true).contiguous();
                        CrossEntropyLoss::new().forward(&pixels(x), &pixels(&tensor(&[1.0, 0.0], x.kind())))
                    }),
                    value,
                    slope,
                ),
                (
                    "linear cross entropy",
                    Box::new(|x| {
                        let input = Tensor::ones([1, 1], (x.kind(), Device::Cpu));
                        let criterion = LinearCrossEntropy::new().chunking(Chunking::Rows(1)).z_loss(1e-300);
                        criterion.forward(&input, &x.reshape([2, 1]), &class(), None)
                    }),
                    value,
                    slope,
                ),
                (
                    "distribution focal",
                    Box::new(|x| DistributionFocalLoss::new().forward(&x.reshape([1, 2]), &tensor(&[0.0], x.kind()))),
                    value,
                    slope,
                ),
                (
                    "asymmetric, without focus",
                    Box::new(|x| {
                        let loss = AsymmetricSingleLabelLoss::new().gamma_pos(0.0).label_smoothing(0.0);
                        loss.forward(&x.reshape([1, 2]), &class())
                    }),
                    value,
                    slope,
                ),
                (
                    "softmax focal, γ = 1",
                    Box::new(|x| SoftmaxFocalLoss::new().gamma(1.0).forward(&x.reshape([1, 2]), &class())),
                    -slope * value,
                    // d/dx of (1 − p) (−log p)
                    slope * (other / (1.0 + other) + value / (1.0 + other)),
                ),
                (
                    "JSD cross entropy of one view",
                    Box::new(|x| {
                        JsdCrossEntropyLoss::new()
                            .num_splits(1)
                            .alpha(0.0)
                            .label_smoothing(0.0)
                            .forward(&x.reshape([1, 2]), &class())
                    }),
                    value,
                    slope,
                ),
            ];
            for (name, loss, value, slope) in &losses {
                // Also where the logits are shifted to be far from 0.
                for shift in [0.0, 64.0] {
                    let leaf = tensor(&[gap + shift, shift], kind).set_requires_grad(true);
                    let actual = with_backend(Backend::Auto, || loss(&leaf));
                    let gradient = numbers(&Tensor::run_backward(&[&actual], &[&leaf], false, false).remove(0));
                    let what = format!("{name}, {kind:?}, {gap} + {shift}");
                    assert_near(actual.double_value(&[]), *value, tolerance, &what);
                    assert_near(gradient[0], *slope, 2.0 * tolerance, &what);
                    assert_near(gradient[1], -slope, 2.0 * tolerance, &what);
                }
            }
        }
    }
}

#[test]
fn weights_of_any_floating_kind_are_converted() {
    let class = Tensor::from_slice(&[0_i64, 2, 1, 1]);
    let logits = Tensor::from_slice(&[0.5, -1.0, 2.0, 0.25, 0.75, -0.5, 1.0, 0.0, -2.0, 3.0, 1.5, 0.5]).reshape([4, 3]);
    let weights = [0.5, 1.0, 2.0];
    for input_kind in [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double] {
        for kind in [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double] {
            for backend in BACKENDS {
                let x = logits.to_kind(input_kind);
                let of = |kind: Kind, x: &Tensor| -> Vec<f64> {
                    let w = || tensor(&weights, kind);
                    let shares = x.softmax(1, x.kind());
                    let image = x.reshape([1, 3, 2, 2]);
                    let labels = Tensor::from_slice(&[0_i64, 1, 2, 1]).reshape([1, 2, 2]);
                    with_backend(backend, || {
                        [
                            CrossEntropyLoss::new().weight(w()).forward(x, &class),
                            CrossEntropyLoss::new().weight(w()).label_smoothing(0.1).forward(x, &class),
                            CrossEntropyLoss::new().weight(w()).forward(x, &shares),
                            NllLoss::new().weight(w()).forward(&x.log_softmax(1, x.kind()), &class),
                            MultiMarginLoss::new().weight(w()).forward(x, &class),
                            SoftmaxFocalLoss::new().weight(w()).forward(x, &class),
                            OneVsRestFocalLoss::new().weight(w()).forward(x, &class),
                            DiceLoss::new().activation(Activation::Softmax).weight(w()).forward(&image, &labels),
                            DiceCrossEntropyLoss::new()
                                .cross_entropy(CrossEntropyLoss::new().weight(w()))
                                .forward(&image, &labels),
                            LinearCrossEntropy::new().weight(w()).forward(
                                x,
                                &Tensor::eye(3, (x.kind(), Device::Cpu)),
                                &class,
                                None,
                            ),
                        ]
                        .map(|loss| loss.double_value(&[]))
                        .to_vec()
                    })
                };
                let (actual, expected) = (of(kind, &x), of(Kind::Double, &x.to_kind(Kind::Double)));
                for (position, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                    assert_near(
                        *actual,
                        *expected,
                        3e-2,
                        &format!("{position}, {input_kind:?}, {kind:?}, {backend:?}"),
                    );
                }
            }
        }
    }
}

#[test]
fn arguments_of_linear_losses_are_named() {
    let (input, weight) =
        (Tensor::ones([2, 3], (Kind::Float, Device::Cpu)), Tensor::ones([4, 3], (Kind::Float, Device::Cpu)));
    let target = Tensor::from_slice(&[0_i64, 3]);
    for chunking in [None, Some(Chunking::Rows(1))] {
        let message = |input: &Tensor, weight: &Tensor, target: &Tensor| {
            let criterion = LinearCrossEntropy::new();
            let criterion = match chunking {
                Some(chunking) => criterion.chunking(chunking),
                None => criterion,
            };
            criterion.f_forward(input, weight, target, None).unwrap_err().to_string()
        };
        assert_eq!(
            message(&input, &weight.to_kind(Kind::Double), &target),
            "linear_weight has kind Double, expected Float, the kind of input"
        );
        assert_eq!(
            message(&input, &weight.to_kind(Kind::Int64), &target),
            "linear_weight has kind Int64, expected a floating kind"
        );
        assert_eq!(
            message(&input, &weight, &target.to_kind(Kind::Float)),
            "target has kind Float, expected an integer kind"
        );
    }
    let store = tch::nn::VarStore::new(Device::Cpu);
    let adaptive = AdaptiveLogSoftmaxWithLoss::new(store.root(), 3, 4, &[2], AdaptiveLogSoftmaxConfig::new());
    let double = input.to_kind(Kind::Double);
    let expected = "input has kind Double, expected Float, the kind of head.weight";
    assert_eq!(adaptive.f_forward(&double, &target).unwrap_err().to_string(), expected);
    assert_eq!(adaptive.f_log_prob(&double).unwrap_err().to_string(), expected);
    assert_eq!(adaptive.f_predict(&double).unwrap_err().to_string(), expected);
}

#[test]
fn regression_takes_real_numbers() {
    let numbers = Tensor::from_slice(&[1.0_f32, 2.0]);
    let losses: Vec<(&str, Box<dyn Loss>)> = vec![
        ("MSE", Box::new(MseLoss::new())),
        ("MSE, weighted", Box::new(MseLoss::new().weight(numbers.shallow_clone()))),
        ("smooth L1", Box::new(SmoothL1Loss::new())),
        ("smooth L1, β = 0", Box::new(SmoothL1Loss::new().beta(0.0))),
        ("Huber", Box::new(HuberLoss::new())),
        ("Poisson", Box::new(PoissonNllLoss::new())),
    ];
    for (name, loss) in &losses {
        for backend in BACKENDS {
            let message =
                |a: &Tensor, b: &Tensor| with_backend(backend, || loss.f_forward(a, b)).unwrap_err().to_string();
            let complex = numbers.to_kind(Kind::ComplexFloat);
            assert_eq!(
                message(&complex, &numbers),
                "input has kind ComplexFloat, expected a kind of real numbers",
                "{name}"
            );
            assert_eq!(
                message(&numbers, &complex),
                "target has kind ComplexFloat, expected a kind of real numbers",
                "{name}"
            );
            let booleans = numbers.to_kind(Kind::Bool);
            assert!(message(&booleans, &booleans).starts_with("input has kind Bool, expected a"), "{name}");
            // Targets of every real kind have a loss and a gradient, that of the same numbers.
            for kind in [Kind::Bool, Kind::Uint8, Kind::Int64, Kind::Half, Kind::Double] {
                let target = numbers.ones_like();
                let of = |target: &Tensor| {
                    let leaf = numbers.copy().set_requires_grad(true);
                    let value = with_backend(backend, || loss.forward(&leaf, target));
                    value.backward();
                    [vec![value.to_kind(Kind::Double).double_value(&[])], self::numbers(&leaf.grad())].concat()
                };
                for (actual, expected) in of(&target.to_kind(kind)).iter().zip(of(&target)) {
                    assert_near(*actual, expected, 1e-6, &format!("{name}, {kind:?}, {backend:?}"));
                }
            }
        }
    }
    let var = numbers.ones_like();
    let complex = numbers.to_kind(Kind::ComplexFloat);
    let error = GaussianNllLoss::new().f_forward(&complex, &numbers, &var).unwrap_err().to_string();
    assert_eq!(error, "input has kind ComplexFloat, expected a kind of real numbers");
    let booleans = numbers.to_kind(Kind::Bool);
    assert!(GaussianNllLoss::new().f_forward(&numbers, &booleans, &var).is_ok());
    // A variance of no element is none of an input of three.
    let (x, none) =
        (Tensor::zeros([1, 3], (Kind::Float, Device::Cpu)), Tensor::zeros([0, 1], (Kind::Float, Device::Cpu)));
    for backend in BACKENDS {
        let error = with_backend(backend, || GaussianNllLoss::new().f_forward(&x, &x, &none)).unwrap_err();
        assert!(error.to_string().starts_with("var has shape [0, 1]"), "{error}");
    }
}

/// A weight that no target asks for: whatever it is, it must stay out of a loss that spreads nothing over the classes.
#[test]
fn weights_of_other_classes_stay_out_of_the_loss() {
    let target = || Tensor::from_slice(&[1_i64, 1]);
    let eye = Tensor::eye(3, (Kind::Double, Device::Cpu));
    for number in [f64::INFINITY, f64::NAN] {
        let weight = tensor(&[number, 0.5, 0.0], Kind::Double);
        let usual = tensor(&[7.0, 0.5, 0.0], Kind::Double);
        type OfTwo<'a> = Box<dyn Fn(&Tensor, &Tensor) -> Tensor + 'a>;
        let losses: Vec<(&str, OfTwo<'_>)> = vec![
            ("cross entropy", Box::new(|x, w| CrossEntropyLoss::new().weight(w.shallow_clone()).forward(x, &target()))),
            ("softmax focal", Box::new(|x, w| SoftmaxFocalLoss::new().weight(w.shallow_clone()).forward(x, &target()))),
            (
                "linear, in chunks",
                Box::new(|x, w| {
                    let criterion = LinearCrossEntropy::new().weight(w.shallow_clone()).chunking(Chunking::Rows(1));
                    criterion.forward(x, &eye, &target(), None)
                }),
            ),
            (
                "linear, in chunks with a cap",
                Box::new(|x, w| {
                    let criterion = LinearCrossEntropy::new().weight(w.shallow_clone()).soft_cap(3.0);
                    criterion.chunking(Chunking::Rows(1)).forward(x, &eye, &target(), None)
                }),
            ),
        ];
        for (name, loss) in &losses {
            // Numbers above 30 take another way through the engine.
            for largest in [2.0, 40.0] {
                let input = tensor(&[0.5, -1.0, largest, 0.25, 1.0, -0.5], Kind::Double).view([2, 3]);
                for backend in BACKENDS {
                    let what = format!("{name}, {number}, {backend:?}");
                    let actual = value_and_gradient(&what, backend, &input, &|x| loss(x, &weight));
                    let expected = value_and_gradient(&what, backend, &input, &|x| loss(x, &usual));
                    assert_eq!(actual, expected, "{what}");
                }
            }
        }
    }
}

/// PyTorch: 0 / 0, and what is spread over the other classes does not change it.
#[test]
fn a_mean_over_weights_of_0_is_nan() {
    let weight = || tensor(&[0.0, 1.5], Kind::Double);
    let input = tensor(&[0.1, -1.1], Kind::Double).view([1, 2]);
    let target = Tensor::from_slice(&[0_i64]);
    for backend in BACKENDS {
        let smoothed = || CrossEntropyLoss::new().weight(weight()).label_smoothing(0.5);
        assert!(with_backend(backend, || smoothed().forward(&input, &target)).double_value(&[]).is_nan());
        let focal = SoftmaxFocalLoss::new().weight(weight());
        let (value, gradient) = value_and_gradient("focal", backend, &input, &|x| focal.forward(x, &target));
        assert!(value.is_nan() && gradient.iter().all(|number| number.is_nan()), "{backend:?} {gradient:?}");
        let eye = Tensor::eye(2, (Kind::Double, Device::Cpu));
        let linear = LinearCrossEntropy::new().weight(weight()).label_smoothing(0.5).chunking(Chunking::Rows(1));
        let input = Tensor::cat(&[&input, &input], 0);
        let value = with_backend(backend, || linear.forward(&input, &eye, &Tensor::from_slice(&[0_i64, 0]), None));
        assert!(value.double_value(&[]).is_nan());
    }
}

/// As in cross entropy the gradient of −log p is p − 1 = −1 at p = 0: there the modulating factor is 1.
#[test]
fn a_masked_target_has_a_finite_gradient() {
    let target = Tensor::from_slice(&[0_i64]);
    let input = tensor(&[f64::NEG_INFINITY, 1.0], Kind::Double).view([1, 2]);
    for backend in BACKENDS {
        let criterion = AsymmetricSingleLabelLoss::new().label_smoothing(0.0).gamma_pos(2.0);
        let (value, gradient) = value_and_gradient("masked", backend, &input, &|x| criterion.forward(x, &target));
        assert_eq!((value, gradient), (f64::INFINITY, vec![-1.0, 1.0]), "{backend:?}");
        for least in [f64::NEG_INFINITY, f64::from(f32::MIN)] {
            let input = tensor(&[least, 1.0], Kind::Float).view([1, 2]);
            let focal = SoftmaxFocalLoss::new();
            let (value, gradient) = value_and_gradient("focal", backend, &input, &|x| focal.forward(x, &target));
            assert_eq!((value, gradient), (-least, vec![-1.0, 1.0]), "{backend:?}");
        }
        // A masked class whose weight is 0 gets nothing of what is spread.
        let input = tensor(&[0.0, 0.0, f64::NEG_INFINITY], Kind::Double).view([1, 3]);
        let focal = SoftmaxFocalLoss::new().label_smoothing(0.3).weight(tensor(&[1.0, 1.0, 0.0], Kind::Double));
        let (value, _) = value_and_gradient("smoothed", backend, &input, &|x| focal.forward(x, &target));
        assert_near(value, (0.7 + 0.2) * 0.25 * 2_f64.ln(), 1e-12, "smoothed");
    }
}

#[test]
fn views_that_agree_do_not_diverge() {
    // 5 equal classes cost ln 5, and their divergence, which the pixels multiply, is 0.
    let input = Tensor::ones([12, 5, 2, 3, 4], (Kind::Float, Device::Cpu));
    let target = Tensor::zeros([4, 2, 3, 4], (Kind::Int64, Device::Cpu));
    for backend in BACKENDS {
        let loss = with_backend(backend, || JsdCrossEntropyLoss::new().forward(&input, &target));
        assert_near(loss.double_value(&[]), 5_f64.ln(), 1e-6, &format!("{backend:?}"));
    }
}

#[test]
fn parts_of_half_precision_are_formed_in_single_precision() {
    let logits = Tensor::from_slice(&[0.1, 2.3, -1.7, 0.9, 60.0, -3.3]).view([2, 3]).to_kind(Kind::Half);
    let indices = Tensor::from_slice(&[2_i64, 1]);
    let labels = Tensor::from_slice(&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0]).view([2, 3]).to_kind(Kind::Half);
    let listed = Tensor::from_slice(&[2_i64, -1, -1, 0, 2, -1]).view([2, 3]);
    let losses: Vec<(&str, Box<dyn Loss>, &Tensor)> = vec![
        ("asymmetric, one label", Box::new(AsymmetricSingleLabelLoss::new()), &indices),
        ("categorical hinge", Box::new(CategoricalHingeLoss::new()), &indices),
        ("hinge", Box::new(HingeLoss::new()), &labels),
        ("multi-label margin", Box::new(MultiLabelMarginLoss::new()), &listed),
        ("multi-label soft margin", Box::new(MultiLabelSoftMarginLoss::new()), &labels),
        ("multi margin", Box::new(MultiMarginLoss::new()), &indices),
        ("poly", Box::new(PolyCrossEntropyLoss::new()), &indices),
        ("poly BCE", Box::new(PolyBceWithLogitsLoss::new()), &labels),
        ("asymmetric", Box::new(AsymmetricMultiLabelLoss::new()), &labels),
        ("soft BCE", Box::new(SoftBceWithLogitsLoss::new()), &labels),
    ];
    for (name, loss, target) in &losses {
        let of = |kind: Kind| {
            let target = if target.is_floating_point() { target.to_kind(kind) } else { target.shallow_clone() };
            loss.f_parts(&logits.to_kind(kind), &target).unwrap().f_value().unwrap()
        };
        assert_eq!(of(Kind::Half).kind(), Kind::Float, "{name}");
        assert_near(of(Kind::Half).double_value(&[]), of(Kind::Double).double_value(&[]), 1e-5, name);
    }
}

#[test]
fn what_no_loss_can_be_of_is_named() {
    let none = Tensor::zeros([2, 0], (Kind::Float, Device::Cpu));
    let target = Tensor::from_slice(&[-100_i64, -100]);
    let losses: Vec<Box<dyn Loss>> = vec![
        Box::new(AsymmetricSingleLabelLoss::new().invalid_values(InvalidValues::Nan)),
        Box::new(PolyCrossEntropyLoss::new().invalid_values(InvalidValues::Nan)),
        Box::new(SoftmaxFocalLoss::new()),
        Box::new(SoftmaxFocalLoss::new().invalid_values(InvalidValues::Nan)),
    ];
    for loss in &losses {
        let error = loss.f_forward(&none, &target).unwrap_err().to_string();
        assert_eq!(error, "input has shape [2, 0], expected at least one class");
    }
    for backend in BACKENDS {
        let loss = || JsdCrossEntropyLoss::new().num_splits(2).f_forward(&none, &target.narrow(0, 0, 1).zeros_like());
        let error = with_backend(backend, loss).unwrap_err().to_string();
        assert_eq!(error, "target holds 0, expected classes in [0, 0), or ignore_index -100");
    }
    // In single precision such a cap is 0.
    let (input, weight) =
        (Tensor::ones([2, 3], (Kind::Float, Device::Cpu)), Tensor::ones([4, 3], (Kind::Float, Device::Cpu)));
    let error =
        LinearCrossEntropy::new().soft_cap(1e-300).f_forward(&input, &weight, &target.zeros_like(), None).unwrap_err();
    assert!(error.to_string().ends_with("expected a number > 0 in Float"), "{error}");
}

#[test]
fn chunks_of_no_features_have_equal_logits() {
    let of = |shape: &[i64]| Tensor::zeros(shape, (Kind::Double, Device::Cpu));
    let target = Tensor::from_slice(&[1_i64, 0, 2, 2, 1]);
    for chunking in [Chunking::Rows(2), Chunking::AspectRatio(2)] {
        let loss = LinearCrossEntropy::new().chunking(chunking);
        let value = loss.forward(&of(&[5, 0]), &of(&[3, 0]), &target, None);
        assert_near(value.double_value(&[]), 3_f64.ln(), 1e-15, "chunks");
    }
}

/// The slope of a cap is 4 e^−2u / (1 + e^−2u)², of which 1 − tanh² loses the digits.
#[test]
fn a_cap_that_is_reached_has_a_slope() {
    let (input, target) = (Tensor::from_slice(&[30_f32, 0.0, 0.0, 30.0]).view([2, 2]), Tensor::from_slice(&[1_i64, 0]));
    let eye = Tensor::eye(2, (Kind::Float, Device::Cpu));
    let criterion = LinearCrossEntropy::new().soft_cap(5.0).chunking(Chunking::Rows(1)).reduction(Reduction::Sum);
    let (_, gradient) =
        value_and_gradient("cap", Backend::Auto, &input, &|x| criterion.forward(x, &eye, &target, None));
    let e = (-12_f64).exp();
    let slope = 4.0 * e / (1.0 + e).powi(2);
    let p = 1.0 / (1.0 + (-5.0 * 6_f64.tanh()).exp());
    assert_near(gradient[0], p * slope, 1e-5, "slope");
}

/// Where all weights of the targets are 0 the mean is NaN, and so is its gradient: one of 0 would hide it.
#[test]
fn a_mean_over_no_weight_has_a_gradient_of_nan_as_libtorchs() {
    let input = Tensor::from_slice(&[0.5, -1.0, 2.0, 1.0, 0.0, 0.25]).view([2, 3]);
    let eye = Tensor::eye(3, (Kind::Double, Device::Cpu));
    let target = Tensor::from_slice(&[0_i64, 1]);
    // With a class that has a weight, and without.
    for weight in [[0.0, 0.0, 2.0], [0.0; 3]] {
        for smoothing in [0.0, 0.1] {
            let weight = || Tensor::from_slice(&weight);
            let alone = CrossEntropyLoss::new().label_smoothing(smoothing).weight(weight());
            let whole = || LinearCrossEntropy::new().label_smoothing(smoothing).weight(weight());
            let chunked = whole().chunking(Chunking::Rows(1));
            let losses: [Call; 4] = [
                &|x| x.cross_entropy_loss(&target, Some(weight()), tch::Reduction::Mean, -100, smoothing),
                &|x| alone.forward(x, &target),
                &|x| whole().forward(x, &eye, &target, None),
                &|x| chunked.forward(x, &eye, &target, None),
            ];
            for (place, loss) in losses.iter().enumerate() {
                let ways = BACKENDS.map(|backend| value_and_gradient("no weight", backend, &input, loss));
                let as_on_a_gpu = like_cuda(|| value_and_gradient("no weight", Backend::Composite, &input, loss));
                for (value, gradient) in ways.iter().chain([&as_on_a_gpu]) {
                    let all_nan = value.is_nan() && gradient.iter().all(|number| number.is_nan());
                    assert!(all_nan, "loss {place}, smoothing {smoothing}: {value} {gradient:?}");
                }
            }
        }
    }
}
