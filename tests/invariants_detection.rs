//! What holds for losses of detection and of several labels whatever their arguments are.

mod common;

use tch::{Device, Kind, Tensor};
use tch_losses::*;

use common::random::{rand, randn};

type Boxed = Box<dyn Loss>;

const ROUNDS: i64 = 40;

/// Boxes with an area, many of which overlap.
fn boxes() -> Tensor {
    let corner = randn([25, 2]);
    let size = rand([25, 2]) * 2.0 + 0.1;
    Tensor::cat(&[&corner, &(&corner + size)], 1)
}

/// Each round with two sets of boxes.
fn for_boxes(check: impl Fn(&Tensor, &Tensor)) {
    for _ in 0..ROUNDS {
        check(&boxes(), &boxes());
    }
}

/// The losses of boxes, exact ones for the invariants of scale.
fn box_losses() -> [Box<dyn Loss>; 3] {
    [
        Box::new(GeneralizedBoxIouLoss::new().eps(0.0)),
        Box::new(DistanceBoxIouLoss::new().eps(0.0)),
        Box::new(CompleteBoxIouLoss::new().eps(0.0).alpha_eps(0.0)),
    ]
}

/// One minus intersection over union.
fn overlap_loss(a: &Tensor, b: &Tensor) -> Tensor {
    let area = |size: &Tensor| size.select(1, 0) * size.select(1, 1);
    let corners = |boxes: &Tensor| (boxes.narrow(1, 0, 2), boxes.narrow(1, 2, 2));
    let ((a_low, a_high), (b_low, b_high)) = (corners(a), corners(b));
    let common = area(&(a_high.minimum(&b_high) - a_low.maximum(&b_low)).clamp_min(0.0));
    let union = area(&(a_high - a_low)) + area(&(b_high - b_low)) - &common;
    1.0 - common / union
}

fn all(condition: Tensor) -> bool {
    condition.all().try_into().unwrap()
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    a.allclose(b, 1e-9, 1e-12, false)
}

#[test]
fn equal_boxes_cost_nothing() {
    for_boxes(|a, _| {
        for loss in box_losses() {
            assert!(all(loss.forward(a, a).abs().le(1e-12)));
        }
    });
}

#[test]
fn losses_of_boxes_are_bounded_and_symmetric() {
    for_boxes(|a, b| {
        for (loss, most) in box_losses().into_iter().zip([2.0, 2.0, 3.0]) {
            let losses = loss.forward(a, b);
            assert!(all(losses.ge(0.0)) && all(losses.le(most)));
            assert!(close(&losses, &loss.forward(b, a)));
        }
    });
}

#[test]
fn they_are_ordered() {
    for_boxes(|a, b| {
        let [generalized, distance, complete] = box_losses().map(|loss| loss.forward(a, b) + 1e-12);
        let overlap = overlap_loss(a, b);
        assert!(all(generalized.ge_tensor(&overlap)));
        assert!(all(distance.ge_tensor(&overlap)));
        assert!(all((complete + 1e-12).ge_tensor(&distance)));
    });
}

#[test]
fn neither_the_place_nor_the_scale_of_a_pair_of_boxes_matters() {
    for_boxes(|a, b| {
        let by = Tensor::from_slice(&[3.0, -7.0, 3.0, -7.0]);
        for loss in box_losses() {
            let losses = loss.forward(a, b);
            assert!(close(&losses, &loss.forward(&(a + &by), &(b + &by))));
            assert!(close(&losses, &loss.forward(&(a * 8.0), &(b * 8.0))));
        }
    });
}

/// Each round with logits and qualities.
fn for_scores(check: impl Fn(&Tensor, &Tensor)) {
    for _ in 0..ROUNDS {
        check(&(randn([6, 5]) * 3.0), &rand([6, 5]));
    }
}

#[test]
fn a_score_that_is_the_quality_costs_nothing_in_quality_focal_loss() {
    for_scores(|logits, qualities| {
        let loss = QualityFocalLoss::new().reduction(Reduction::None);
        assert!(all(loss.forward(logits, &logits.sigmoid()).abs().le(1e-12)));
        assert!(all(loss.forward(logits, qualities).ge(0.0)));
        let unfocused = QualityFocalLoss::new().beta(0.0).forward(logits, qualities);
        assert!(close(&unfocused, &BceWithLogitsLoss::new().forward(logits, qualities)));
    });
}

#[test]
fn varifocal_loss_is_cross_entropy_for_what_certainly_is_there() {
    for_scores(|logits, _| {
        let ones = logits.ones_like();
        assert!(close(&VarifocalLoss::new().forward(logits, &ones), &BceWithLogitsLoss::new().forward(logits, &ones)));
        let zeros = logits.zeros_like();
        let unfocused = VarifocalLoss::new().alpha(1.0).gamma(0.0).forward(logits, &zeros);
        assert!(close(&unfocused, &BceWithLogitsLoss::new().forward(logits, &zeros)));
    });
}

#[test]
fn distribution_focal_loss_is_linear_between_bins() {
    for_scores(|logits, shares| {
        let loss = DistributionFocalLoss::new().reduction(Reduction::None);
        let share = shares.select(1, 0);
        for bin in 0..4 {
            let left = CrossEntropyLoss::new().reduction(Reduction::None);
            let of = |class: i64| left.forward(logits, &Tensor::full([6], class, (Kind::Int64, Device::Cpu)));
            let expected = (1.0 - &share) * of(bin) + &share * of(bin + 1);
            assert!(close(&loss.forward(logits, &(&share + bin)), &expected));
        }
    });
}

#[test]
fn losses_of_labels_are_not_negative() {
    for_scores(|logits, qualities| {
        let labels = qualities.gt(0.5).to_kind(Kind::Double);
        assert!(all(AsymmetricMultiLabelLoss::new().forward(logits, &labels).ge(0.0)));
        assert!(all(HingeLoss::new().forward(logits, &labels).ge(0.0)));
        let signs = HingeLoss::new().targets(HingeTargets::Signs).forward(logits, &(&labels * 2.0 - 1.0));
        assert!(close(&signs, &HingeLoss::new().targets(HingeTargets::Binary).forward(logits, &labels)));
    });
}

#[test]
fn the_divergence_of_views_does_not_depend_on_their_order() {
    for_scores(|logits, _| {
        let target = Tensor::from_slice(&[1_i64, 4]);
        let views = logits.split(2, 0);
        let loss = JsdCrossEntropyLoss::new().forward(logits, &target);
        let swapped = Tensor::cat(&[&views[0], &views[2], &views[1]], 0);
        assert!(close(&loss, &JsdCrossEntropyLoss::new().forward(&swapped, &target)));
        let entropy = CrossEntropyLoss::new().label_smoothing(0.1).forward(&views[0], &target);
        assert!(all((loss + 1e-9).ge_tensor(&entropy)));
    });
}

#[test]
fn poly_loss_grows_with_its_epsilon() {
    for_scores(|logits, _| {
        let target = logits.argmin(1, false);
        let of = |epsilon: f64| PolyCrossEntropyLoss::new().epsilon(epsilon).forward(logits, &target);
        assert!(close(&of(0.0), &CrossEntropyLoss::new().forward(logits, &target)));
        assert!(all(of(2.0).ge_tensor(&of(1.0))) && all(of(1.0).ge_tensor(&of(0.0))));
        assert!(close(&(of(2.0) - of(1.0)), &(of(1.0) - of(0.0))));
    });
}

/// How a loss of logits depends on one logit x and its label y: the value and the slope.
type Truth = fn(f64, f64) -> [f64; 2];

/// σ(x), σ(−x), −log σ(x) and −log σ(−x).
fn parts(x: f64) -> [f64; 4] {
    let e = (-x.abs()).exp();
    let (large, small) = (1.0 / (1.0 + e), e / (1.0 + e));
    let (p, q) = if x >= 0.0 { (large, small) } else { (small, large) };
    [p, q, e.ln_1p() + (-x).max(0.0), e.ln_1p() + x.max(0.0)]
}

/// A share of nothing is nothing.
fn part(share: f64, whole: f64) -> f64 {
    if share == 0.0 { 0.0 } else { share * whole }
}

fn entropy(x: f64, y: f64) -> [f64; 2] {
    let [p, q, yes, no] = parts(x);
    [part(y, yes) + part(1.0 - y, no), (1.0 - y) * p - y * q]
}

/// a u^γ H with u = y σ(−x) + (1 − y) σ(x).
fn focal(x: f64, y: f64, gamma: f64) -> [f64; 2] {
    let ([p, q, ..], [entropy, slope]) = (parts(x), entropy(x, y));
    let rest = y * q + (1.0 - y) * p;
    let of_rest = if rest == 0.0 { 0.0 } else { gamma * rest.powf(gamma - 1.0) * p * q * (1.0 - 2.0 * y) };
    [part(rest.powf(gamma), entropy), part(of_rest, entropy) + rest.powf(gamma) * slope]
}

fn quality(x: f64, y: f64) -> [f64; 2] {
    let ([p, q, ..], [entropy, slope]) = (parts(x), entropy(x, y));
    [part(slope * slope, entropy), part(2.0 * slope * p * q, entropy) + slope * slope * slope]
}

fn varifocal(x: f64, y: f64) -> [f64; 2] {
    if y > 0.0 {
        return entropy(x, y).map(|number| y * number);
    }
    let ([p, q, ..], [entropy, _]) = (parts(x), entropy(x, y));
    [part(p * p, entropy), part(2.0 * p * p * q, entropy) + p * p * p].map(|number| 0.75 * number)
}

/// BCE + 2 u.
fn poly(x: f64, y: f64) -> [f64; 2] {
    let ([p, q, ..], [entropy, slope]) = (parts(x), entropy(x, y));
    [entropy + 2.0 * (y * q + (1.0 - y) * p), slope + 2.0 * p * q * (1.0 - 2.0 * y)]
}

/// Every loss of logits of yes or no, of an unreduced or reduced single logit.
fn losses_of_logits() -> Vec<(&'static str, Box<dyn Loss>, Truth)> {
    let one = || Tensor::from_slice(&[1.0]);
    let focal_loss = || SigmoidFocalLoss::new().alpha(FocalAlpha::None);
    let asymmetric = || AsymmetricMultiLabelLoss::new().clip(0.0).eps(0.0).gamma_neg(2.0).gamma_pos(2.0);
    vec![
        ("bce", Box::new(BceWithLogitsLoss::new()), entropy),
        ("bce, weights", Box::new(BceWithLogitsLoss::new().weight(one()).pos_weight(one())), entropy),
        ("soft bce", Box::new(SoftBceWithLogitsLoss::new()), entropy),
        ("soft bce, weights", Box::new(SoftBceWithLogitsLoss::new().weight(one()).pos_weight(one())), entropy),
        ("multi-label soft margin", Box::new(MultiLabelSoftMarginLoss::new()), entropy),
        ("multi-label soft margin, weight", Box::new(MultiLabelSoftMarginLoss::new().weight(one())), entropy),
        ("poly bce", Box::new(PolyBceWithLogitsLoss::new()), poly),
        ("poly bce, focus", Box::new(PolyBceWithLogitsLoss::new().epsilon(0.0).gamma(1.5)), |x, y| focal(x, y, 1.5)),
        ("focal 0", Box::new(focal_loss().gamma(0.0)), entropy),
        ("focal 0.5", Box::new(focal_loss().gamma(0.5)), |x, y| focal(x, y, 0.5)),
        ("focal 2", Box::new(focal_loss()), |x, y| focal(x, y, 2.0)),
        ("focal 2, pos_weight", Box::new(focal_loss().pos_weight(one())), |x, y| focal(x, y, 2.0)),
        ("focal, terms", Box::new(focal_loss().gamma(0.0).soft_targets(FocalSoftTargets::Terms)), entropy),
        ("focal, margin", Box::new(focal_loss().gamma(0.0).soft_targets(FocalSoftTargets::Margin)), entropy),
        ("focal, likelihood", Box::new(focal_loss().gamma(0.0).soft_targets(FocalSoftTargets::Likelihood)), entropy),
        ("quality focal", Box::new(QualityFocalLoss::new()), quality),
        ("quality focal 0", Box::new(QualityFocalLoss::new().beta(0.0)), entropy),
        ("varifocal", Box::new(VarifocalLoss::new()), varifocal),
        ("asymmetric", Box::new(asymmetric()), |x, y| focal(x, y, 2.0)),
        ("asymmetric 0", Box::new(asymmetric().gamma_neg(0.0).gamma_pos(0.0)), entropy),
    ]
}

const BACKENDS: [Backend; 2] = [Backend::Auto, Backend::Composite];

/// The loss of one logit and its slope.
fn of_logit(loss: &dyn Loss, x: f64, y: f64, kind: Kind, backend: Backend) -> [f64; 2] {
    with_backend(backend, || {
        let input = Tensor::from_slice(&[x]).to_kind(kind).set_requires_grad(true);
        let loss = loss.forward(&input, &Tensor::from_slice(&[y]).to_kind(kind));
        loss.backward();
        [loss.double_value(&[]), input.grad().double_value(&[0])]
    })
}

#[test]
fn infinite_logits_have_the_limit() {
    for (name, loss, truth) in losses_of_logits() {
        for (kind, backend) in [Kind::Float, Kind::Double].into_iter().flat_map(|kind| BACKENDS.map(|b| (kind, b))) {
            for (x, y) in [f64::INFINITY, f64::NEG_INFINITY].into_iter().flat_map(|x| [0.0, 0.5, 1.0].map(|y| (x, y))) {
                let actual = of_logit(&*loss, x, y, kind, backend);
                let same = |(a, b): (f64, f64)| a == b || (a - b).abs() <= 1e-6 * b.abs();
                let all = actual.into_iter().zip(truth(x, y)).all(same);
                assert!(all, "{name}, {kind:?}, {backend:?}, x = {x}, y = {y}: {actual:?}, not {:?}", truth(x, y));
            }
        }
    }
}

#[test]
fn confident_logits_keep_their_digits() {
    let logits = [1e-8, 1e-3, 1.0, 5.0, 17.5, 37.43];
    for (name, loss, truth) in losses_of_logits() {
        for (kind, x) in [Kind::Float, Kind::Double].into_iter().flat_map(|kind| logits.map(|x| (kind, x))) {
            for (x, y) in [x, -x].into_iter().flat_map(|x| [0.0, 0.25, 1.0].map(|y| (x, y))) {
                let x = if kind == Kind::Float { f64::from(x as f32) } else { x };
                let (actual, expected) = (of_logit(&*loss, x, y, kind, Backend::Auto), truth(x, y));
                let digits = if kind == Kind::Float { 2e-5 } else { 1e-13 };
                for (actual, expected) in actual.into_iter().zip(expected) {
                    let smallest = if kind == Kind::Float { 1e-37 } else { 0.0 };
                    let close = (actual - expected).abs() <= digits * expected.abs() + smallest;
                    assert!(close, "{name}, {kind:?}, x = {x}, y = {y}: {actual:e}, not {expected:e}");
                }
            }
        }
    }
    // By mpmath with 50 digits.
    let bce = of_logit(&BceWithLogitsLoss::new(), 37.43, 1.0, Kind::Double, Backend::Auto);
    assert!((bce[1] / -5.550_825_086e-17 - 1.0).abs() < 1e-9, "{bce:?}");
    let soft_margin = of_logit(&MultiLabelSoftMarginLoss::new(), 17.5, 1.0, Kind::Float, Backend::Auto);
    assert!((soft_margin[1] / -2.511e-8 - 1.0).abs() < 1e-3, "{soft_margin:?}");
    let focal = of_logit(&SigmoidFocalLoss::new(), 17.5, 1.0, Kind::Float, Backend::Auto);
    assert!((focal[1] / -1.187e-23 - 1.0).abs() < 1e-3, "{focal:?}");
}

#[test]
fn one_against_the_rest_has_limits_and_digits_too() {
    for (gamma, backend) in [0.0, 0.5, 2.0].into_iter().flat_map(|gamma| BACKENDS.map(|backend| (gamma, backend))) {
        let loss = |x: [f64; 2]| {
            with_backend(backend, || {
                let input = Tensor::from_slice(&x).view([1, 2]).set_requires_grad(true);
                let criterion = OneVsRestFocalLoss::new().gamma(gamma).reduction(Reduction::Sum);
                let loss = criterion.forward(&input, &Tensor::from_slice(&[0_i64]));
                loss.backward();
                (loss.double_value(&[]), Vec::<f64>::try_from(input.grad().view(-1)).unwrap())
            })
        };
        assert_eq!(loss([f64::INFINITY, f64::NEG_INFINITY]), (0.0, vec![0.0, 0.0]), "{gamma} {backend:?}");
        let wrong = loss([f64::NEG_INFINITY, f64::INFINITY]);
        assert_eq!(wrong, (f64::INFINITY, vec![-1.0, 1.0]), "{gamma} {backend:?}");
    }
}

#[test]
fn soft_margin_has_limits() {
    for backend in BACKENDS {
        let inf = f64::INFINITY;
        for (x, y, value, slope) in [(inf, 1.0, 0.0, 0.0), (-inf, 1.0, inf, -1.0), (inf, -1.0, inf, 1.0)] {
            assert_eq!(of_logit(&SoftMarginLoss::new(), x, y, Kind::Double, backend), [value, slope]);
        }
    }
}

#[test]
fn targets_are_shares() {
    let losses: Vec<(&str, Boxed, Boxed)> = vec![
        (
            "quality focal",
            Box::new(QualityFocalLoss::new()),
            Box::new(QualityFocalLoss::new().invalid_values(InvalidValues::Nan)),
        ),
        (
            "varifocal",
            Box::new(VarifocalLoss::new()),
            Box::new(VarifocalLoss::new().invalid_values(InvalidValues::Nan)),
        ),
        (
            "soft bce",
            Box::new(SoftBceWithLogitsLoss::new()),
            Box::new(SoftBceWithLogitsLoss::new().invalid_values(InvalidValues::Nan)),
        ),
        (
            "poly bce",
            Box::new(PolyBceWithLogitsLoss::new()),
            Box::new(PolyBceWithLogitsLoss::new().invalid_values(InvalidValues::Nan)),
        ),
        (
            "sigmoid focal",
            Box::new(SigmoidFocalLoss::new()),
            Box::new(SigmoidFocalLoss::new().invalid_values(InvalidValues::Nan)),
        ),
        (
            "sigmoid focal, margin",
            Box::new(SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Margin)),
            Box::new(SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Terms).invalid_values(InvalidValues::Nan)),
        ),
        (
            "asymmetric",
            Box::new(AsymmetricMultiLabelLoss::new()),
            Box::new(AsymmetricMultiLabelLoss::new().invalid_values(InvalidValues::Nan)),
        ),
    ];
    let input = Tensor::from_slice(&[0.5_f32, -1.0, 2.0]);
    for (name, error, nan) in &losses {
        for (backend, kind) in
            BACKENDS.into_iter().flat_map(|b| [Kind::Float, Kind::Uint8, Kind::Int64].map(|k| (b, k)))
        {
            let mask = Tensor::from_slice(&[0_i64, 255, 0]).to_kind(kind);
            let message = with_backend(backend, || error.f_forward(&input, &mask).unwrap_err().to_string());
            assert_eq!(message, "target holds 255, expected values in [0, 1]", "{name}, {backend:?}, {kind:?}");
            let good = mask.clamp(0, 1);
            with_backend(backend, || {
                assert!(all(error.forward(&input, &good).isfinite()), "{name}");
                let leaf = input.detach().copy().set_requires_grad(true);
                let loss = nan.forward(&leaf, &mask);
                loss.sum(None).backward();
                assert!(all(loss.isnan()) && all(leaf.grad().isfinite()), "{name}, {backend:?}, {kind:?}: {loss}");
                assert!(all(nan.forward(&input, &good).isfinite()), "{name}");
            });
        }
        let negative = Tensor::from_slice(&[0_f32, -0.5, 1.0]);
        let message = error.f_forward(&input, &negative).unwrap_err().to_string();
        assert_eq!(message, "target holds -0.5, expected values in [0, 1]", "{name}");
    }
    // What is ignored, or cut off by a threshold, may be any number.
    let mask = Tensor::from_slice(&[0_i64, 255, 1]);
    for backend in BACKENDS {
        with_backend(backend, || {
            assert!(all(SoftBceWithLogitsLoss::new().ignore_index(255).forward(&input, &mask).isfinite()));
            assert!(all(SoftBceWithLogitsLoss::new().target_threshold(127.0).forward(&input, &mask).isfinite()));
            assert!(all(SigmoidFocalLoss::new().ignore_index(255).forward(&input, &mask).isfinite()));
            let counted = Tensor::from_slice(&[true, false, true]);
            assert!(all(SigmoidFocalLoss::new().mask(counted).forward(&input, &mask).isfinite()));
        });
    }
}

#[test]
fn an_image_without_positives_costs_what_its_negatives_do() {
    let none = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let positives = || Divisor::Positives;
    let cases: Vec<(&str, Boxed, Boxed, Tensor, Tensor)> = vec![
        (
            "quality",
            Box::new(QualityFocalLoss::new().divisor(positives())),
            Box::new(QualityFocalLoss::new().reduction(Reduction::Sum)),
            none(&[4, 3]),
            none(&[0, 3]),
        ),
        (
            "varifocal",
            Box::new(VarifocalLoss::new().divisor(positives())),
            Box::new(VarifocalLoss::new().reduction(Reduction::Sum)),
            none(&[4, 3]),
            none(&[0, 3]),
        ),
        (
            "sigmoid focal",
            Box::new(SigmoidFocalLoss::new().divisor(positives())),
            Box::new(SigmoidFocalLoss::new().reduction(Reduction::Sum)),
            none(&[4, 3]),
            none(&[0, 3]),
        ),
    ];
    for (name, mean, sum, negatives, empty) in cases {
        for backend in BACKENDS {
            with_backend(backend, || {
                let loss = mean.forward(&negatives, &negatives.detach());
                assert_eq!(loss, sum.forward(&negatives, &negatives.detach()), "{name}");
                let loss = mean.forward(&empty, &empty.detach());
                loss.backward();
                assert_eq!(loss.double_value(&[]), 0.0, "{name}");
                // Two of twelve are positive.
                let target = negatives.detach().copy();
                let _ = target.view(-1).narrow(0, 3, 2).fill_(0.5);
                let expected = sum.forward(&negatives, &target) / 2.0;
                assert!(close(&mean.forward(&negatives, &target), &expected), "{name}");
                // The bound of 1 is that of all calls together.
                let none = mean.f_parts(&negatives, &negatives.detach()).unwrap();
                assert_eq!(none.f_value().unwrap(), sum.forward(&negatives, &negatives.detach()), "{name}");
                let both = none.f_add(&mean.f_parts(&negatives, &target).unwrap()).unwrap();
                let expected_of_both = &expected + sum.forward(&negatives, &negatives.detach()) / 2.0;
                assert!(close(&both.f_value().unwrap(), &expected_of_both), "{name}");
                let half = mean.forward(&negatives.to_kind(Kind::Half), &target.to_kind(Kind::Half));
                assert!(half.kind() == Kind::Half && half.allclose(&expected.to_kind(Kind::Half), 1e-3, 1e-3, false));
            });
        }
    }
    let (bins, places) = (none(&[0, 17]), none(&[0]).detach());
    let loss = DistributionFocalLoss::new().divisor(Divisor::Positives).forward(&bins, &places);
    loss.backward();
    assert_eq!(loss.double_value(&[]), 0.0);
    assert!(DistributionFocalLoss::new().forward(&bins, &places).double_value(&[]).is_nan());
    let boxes: [Box<dyn Loss>; 3] = [
        Box::new(GeneralizedBoxIouLoss::new().reduction(Reduction::Mean).divisor(Divisor::Weights)),
        Box::new(DistanceBoxIouLoss::new().reduction(Reduction::Mean).divisor(Divisor::Positives)),
        Box::new(CompleteBoxIouLoss::new().reduction(Reduction::Mean).divisor(7.0)),
    ];
    for loss in boxes {
        assert_eq!(loss.forward(&none(&[0, 4]), &none(&[0, 4]).detach()).double_value(&[]), 0.0);
    }
}

#[test]
fn weights_and_divisors_of_detection() {
    for_boxes(|a, b| {
        let weight = rand([25]);
        let losses = GeneralizedBoxIouLoss::new().forward(a, b);
        let mean = || GeneralizedBoxIouLoss::new().reduction(Reduction::Mean).weight(weight.copy());
        let weighted = (&losses * &weight).sum(None);
        assert!(close(&mean().forward(a, b), &(&weighted / 25.0)));
        assert!(close(&mean().divisor(Divisor::Weights).forward(a, b), &(&weighted / weight.sum(None))));
        assert!(close(&mean().divisor(Divisor::Positives).forward(a, b), &(&weighted / 25.0)));
        assert!(close(&mean().divisor(8.0).forward(a, b), &(&weighted / 8.0)));
        assert!(close(&mean().reduction(Reduction::None).forward(a, b), &(&losses * &weight)));
        let parts = mean().divisor(Divisor::Weights).f_parts(a, b).unwrap();
        assert!(close(&parts.f_value().unwrap(), &(&weighted / weight.sum(None))));
    });
    for_scores(|logits, qualities| {
        let weight = rand([6, 1]);
        let losses = QualityFocalLoss::new().reduction(Reduction::None).forward(logits, qualities);
        let weighted = QualityFocalLoss::new().weight(weight.copy()).divisor(Divisor::Positives);
        assert!(close(&weighted.forward(logits, qualities), &((&losses * &weight).sum(None) / 30.0)));
        let losses = VarifocalLoss::new().reduction(Reduction::None).forward(logits, qualities);
        let weighted = VarifocalLoss::new().weight(weight.copy()).reduction(Reduction::Sum);
        assert!(close(&weighted.forward(logits, qualities), &(&losses * &weight).sum(None)));
    });
    let wrong = QualityFocalLoss::new().weight(rand([5])).f_forward(&rand([2, 3]), &rand([2, 3])).unwrap_err();
    assert_eq!(wrong.to_string(), "weight has shape [5], expected a shape that broadcasts to [2, 3], that of input");
    let wrong = VarifocalLoss::new().divisor(0.0).f_forward(&rand([2]), &rand([2])).unwrap_err();
    assert_eq!(wrong.to_string(), "option divisor is 0, expected a finite number > 0");
}

/// The first and second derivative of a loss of one logit.
fn derivatives(loss: &dyn Loss, x: f64, y: f64, kind: Kind) -> [f64; 2] {
    let input = Tensor::from_slice(&[x]).to_kind(kind).set_requires_grad(true);
    let value = loss.forward(&input, &Tensor::from_slice(&[y]).to_kind(kind));
    let first = Tensor::run_backward(&[value], &[&input], true, true).remove(0);
    let second = Tensor::run_backward(&[&first], &[&input], false, false).remove(0);
    [first.double_value(&[0]), second.double_value(&[0])]
}

#[test]
fn second_derivatives_are_numbers() {
    for (backend, kind) in BACKENDS.into_iter().flat_map(|b| [Kind::Float, Kind::Double].map(|kind| (b, kind))) {
        with_backend(backend, || {
            let asymmetric = |gamma_neg| AsymmetricMultiLabelLoss::new().gamma_neg(gamma_neg);
            for gamma in [0.5, 1.0, 1.5, 1.9] {
                // Below the clip a negative costs nothing.
                assert_eq!(derivatives(&asymmetric(gamma), -4.0, 0.0, kind), [0.0, 0.0], "γ = {gamma}");
                for (x, y) in [(200.0, 1.0), (-200.0, 0.0), (1000.0, 1.0), (f64::INFINITY, 1.0), (60.0, 1.0)] {
                    let losses: [Box<dyn Loss>; 3] = [
                        Box::new(QualityFocalLoss::new().beta(gamma)),
                        Box::new(PolyBceWithLogitsLoss::new().gamma(gamma)),
                        Box::new(AsymmetricMultiLabelLoss::new().clip(0.0).gamma_neg(gamma).gamma_pos(gamma)),
                    ];
                    for loss in losses {
                        let both = derivatives(&*loss, x, y, kind);
                        assert!(both.iter().all(|d| d.abs() < 1e-15), "γ = {gamma}, {x}, {y}: {both:?}");
                    }
                }
            }
            // |σ − y|² H has the curvature 2 (σ')² H where σ = y.
            let [first, second] = derivatives(&QualityFocalLoss::new(), 0.0, 0.5, kind);
            assert!(first == 0.0 && (second - 2.0 / 16.0 * 2_f64.ln()).abs() < 1e-6, "{second}");
        });
    }
}

#[test]
fn weights_of_binary_cross_entropy_are_what_both_backends_take() {
    let (input, target) = (Tensor::from_slice(&[0.5_f32, -1.0]), Tensor::from_slice(&[1_f32, 0.0]));
    for backend in BACKENDS {
        with_backend(backend, || {
            // The half of 2 · 0.474077 and 0.313262; PyTorch's integer has 2 − 1 = 1, and 0 − 1 = 255 in uint8.
            for (number, expected) in [(0_i64, 0.156_630_85), (2, 0.630_707_84)] {
                for kind in [Kind::Uint8, Kind::Int64, Kind::Float, Kind::Double, Kind::Half] {
                    let weight = Tensor::from_slice(&[number]).to_kind(kind);
                    let loss = BceWithLogitsLoss::new().pos_weight(weight).forward(&input, &target);
                    assert_eq!(loss.kind(), Kind::Float);
                    assert!((loss.double_value(&[]) - expected).abs() < 1e-6, "{kind:?} {number}: {loss}");
                }
            }
            let learnt = || Tensor::from_slice(&[2_f32]).set_requires_grad(true);
            let message = BceWithLogitsLoss::new().pos_weight(learnt()).f_forward(&input, &target).unwrap_err();
            let expected = "option pos_weight is a tensor that requires a gradient, expected one that requires none";
            assert_eq!(message.to_string(), expected);
            let message = SoftBceWithLogitsLoss::new().pos_weight(learnt()).f_forward(&input, &target).unwrap_err();
            assert_eq!(message.to_string(), expected);
            let complex = Tensor::from_slice(&[2_f32]).to_kind(Kind::ComplexFloat);
            let message = BceWithLogitsLoss::new().weight(complex).f_forward(&input, &target).unwrap_err();
            assert_eq!(message.to_string(), "weight has kind ComplexFloat, expected a kind of real numbers");
        });
    }
}

#[test]
fn no_class_is_an_error() {
    let (input, target) = (Tensor::zeros([2, 0], (Kind::Float, Device::Cpu)), Tensor::from_slice(&[0_i64, 0]));
    for ignored in [None, Some(0), Some(-100)] {
        let error = SoftBceWithLogitsLoss::new().ignore_index(ignored).f_forward(&input, &target).unwrap_err();
        assert_eq!(error.to_string(), "input has shape [2, 0], expected at least one class");
        let error = OneVsRestFocalLoss::new().ignore_index(ignored).f_forward(&input, &target).unwrap_err();
        assert_eq!(error.to_string(), "input has shape [2, 0], expected at least one class");
    }
}

#[test]
fn margin_ranking_has_the_gradients_of_pytorch() {
    let nan = f64::NAN;
    for backend in BACKENDS {
        with_backend(backend, || {
            // x1, x2, target, and PyTorch's gradients of them.
            for (arguments, expected) in [
                ([nan, 0.0, 1.0], [0.0, 0.0, nan]),
                ([f64::INFINITY, 0.0, 1.0], [0.0, 0.0, nan]),
                ([0.0, 1.0, 1.0], [-1.0, 1.0, 1.0]),
                ([0.0, f64::INFINITY, 1.0], [-1.0, 1.0, f64::INFINITY]),
            ] {
                let leaves = arguments.map(|number| Tensor::from_slice(&[number]).set_requires_grad(true));
                let loss = MarginRankingLoss::new().f_forward(&leaves[0], &leaves[1], &leaves[2]).unwrap();
                loss.backward();
                for (leaf, expected) in leaves.iter().zip(expected) {
                    let actual = leaf.grad().double_value(&[0]);
                    assert!(actual == expected || (actual.is_nan() && expected.is_nan()), "{arguments:?}: {actual}");
                }
            }
            let (x, yes) = (Tensor::from_slice(&[1.0]), Tensor::from_slice(&[true]));
            let error = MarginRankingLoss::new().f_forward(&x, &x, &yes).unwrap_err();
            assert_eq!(error.to_string(), "target has kind Bool, expected a kind of numbers");
        });
    }
}
