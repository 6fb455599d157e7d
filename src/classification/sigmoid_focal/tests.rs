use super::*;
use crate::{Backend, with_backend};

const SOFT_TARGETS: [FocalSoftTargets; 4] =
    [FocalSoftTargets::Expectation, FocalSoftTargets::Terms, FocalSoftTargets::Margin, FocalSoftTargets::Likelihood];

fn none() -> SigmoidFocalLoss {
    SigmoidFocalLoss::new().reduction(Reduction::None)
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.view(-1).to_kind(Kind::Double)).unwrap()
}

#[test]
fn a_soft_target_keeps_its_digits_beside_a_half_precision_input() {
    let (input, target) = (Tensor::from_slice(&[0.5_f32, -2.0, 3.0]), Tensor::from_slice(&[0.3_f32, 0.101, 0.7]));
    for kind in [Kind::Half, Kind::BFloat16] {
        for backend in [Backend::Auto, Backend::Composite] {
            let narrow = input.to_kind(kind).set_requires_grad(true);
            let loss = with_backend(backend, || none().forward(&narrow, &target));
            loss.sum(Kind::Float).backward();
            let wide = input.detach().copy().set_requires_grad(true);
            let expected = with_backend(Backend::Composite, || none().forward(&wide, &target));
            expected.sum(Kind::Float).backward();
            assert_eq!(loss, expected.to_kind(kind), "{kind:?}, {backend:?}");
            assert_eq!(narrow.grad(), wide.grad().to_kind(kind), "{kind:?}, {backend:?}");
        }
    }
}

#[test]
fn wrong_calls_name_the_argument() {
    let (input, target) = (Tensor::from_slice(&[0.0, 1.0]), Tensor::from_slice(&[1.0, 0.0]));
    let three = || Tensor::from_slice(&[1.0, 2.0, 3.0]);
    let new = SigmoidFocalLoss::new;
    let message = |criterion: SigmoidFocalLoss, input: &Tensor, target: &Tensor| {
        criterion.f_forward(input, target).unwrap_err().to_string()
    };
    let cases = [
        (message(new(), &input, &target.view([2, 1])), "target has shape [2, 1], expected [2], the shape of input"),
        (message(new(), &input.to_kind(Kind::Int64), &target), "input has kind Int64, expected a floating kind"),
        (
            message(new(), &input, &target.to_kind(Kind::ComplexDouble)),
            "target has kind ComplexDouble, expected a kind of real numbers",
        ),
        (
            message(new().alpha(1.5), &input, &target),
            "option alpha is 1.5, expected a number in [0, 1], one for each class, or FocalAlpha::None",
        ),
        (message(new().alpha(three()), &input, &target), "alpha has shape [3], expected [2], one value per class"),
        (message(new().gamma(-1.0), &input, &target), "option gamma is -1, expected a finite number of at least 0"),
        (
            message(new().gamma(f64::NAN), &input, &target),
            "option gamma is NaN, expected a finite number of at least 0",
        ),
        (
            message(new().reduced_threshold(0.0), &input, &target),
            "option reduced_threshold is 0, expected a number in (0, 1]",
        ),
        (
            message(new().weight(three()), &input, &target),
            "weight has shape [3], expected a shape that broadcasts to [2], that of input",
        ),
        (
            message(new().pos_weight(three()), &input, &target),
            "pos_weight has shape [3], expected a shape that broadcasts to [2], that of input",
        ),
        (message(new().mask(three().gt(0.0)), &input, &target), {
            "mask has shape [3], expected a shape that broadcasts to [2], that of input"
        }),
        (message(new().mask(input.shallow_clone()), &input, &target), "mask has kind Double, expected Bool"),
        (
            message(new().normalization(FocalNormalization::PerClass), &input.sum(None), &target.sum(None)),
            "input has shape [], expected [C], [N, C] or [N, C, d1, ...]",
        ),
    ];
    for (actual, expected) in cases {
        assert_eq!(actual, expected);
    }
}

#[test]
fn extreme_logits_stay_finite() {
    for (kind, gamma) in
        [Kind::Double, Kind::Float].into_iter().flat_map(|kind| [0.0, 0.1, 0.5, 2.0].map(|g| (kind, g)))
    {
        for soft_targets in SOFT_TARGETS {
            let logits = [1e4, -1e4, 1e4, -1e4, 100.0, -100.0, 1e4];
            let input = Tensor::from_slice(&logits).to_kind(kind).set_requires_grad(true);
            let target = Tensor::from_slice(&[0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.5]).to_kind(kind).set_requires_grad(true);
            let loss = none().gamma(gamma).alpha(0.5).soft_targets(soft_targets).forward(&input, &target);
            loss.sum(None).backward();
            let [loss, slope, target_slope] = [&loss, &input.grad(), &target.grad()].map(numbers);
            let all = [&loss[..], &slope, &target_slope].concat();
            assert!(all.iter().all(|value| value.is_finite()), "{soft_targets:?}, {gamma}: {all:?}");
            assert_eq!((&loss[..4], &slope[..4]), (&[5e3, 5e3, 0.0, 0.0][..], &[0.5, -0.5, 0.0, 0.0][..]));
        }
    }
}

#[test]
fn soft_targets_matter_only_between_0_and_1() {
    let input = Tensor::from_slice(&[-2.0, -0.5, 0.5, 2.0]);
    let hard = Tensor::from_slice(&[0.0, 1.0, 0.0, 1.0]);
    let expected = none().forward(&input, &hard);
    for soft_targets in SOFT_TARGETS {
        let loss = none().soft_targets(soft_targets).forward(&input, &hard);
        assert!(loss.allclose(&expected, 1e-12, 0.0, false), "{soft_targets:?}");
    }
    for kind in [Kind::Bool, Kind::Uint8, Kind::Int64, Kind::Float] {
        assert_eq!(none().forward(&input, &hard.to_kind(kind)), expected, "{kind:?}");
    }
}

#[test]
fn what_is_ignored_leaves_value_and_gradient_alone() {
    let input = Tensor::from_slice(&[0.0, f64::NAN, 0.0, f64::INFINITY]).set_requires_grad(true);
    let target = Tensor::from_slice(&[1_i64, 255, 0, 1]);
    let mask = Tensor::from_slice(&[true, true, true, false]);
    let criterion = SigmoidFocalLoss::new().alpha(0.5).gamma(1.0).ignore_index(255).mask(mask);
    let loss = criterion.forward(&input, &target);
    loss.backward();
    assert!((loss.double_value(&[]) - 0.25 * 2_f64.ln()).abs() < 1e-15);
    let slope = (1.0 + 2_f64.ln()) / 16.0;
    for (actual, expected) in numbers(&input.grad()).into_iter().zip([-slope, 0.0, slope, 0.0]) {
        assert!((actual - expected).abs() < 1e-15);
    }
}

#[test]
fn a_mean_over_nothing_is_nan_with_gradient_0() {
    let input = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
    let loss = SigmoidFocalLoss::new().ignore_index(-1).forward(&input, &Tensor::from_slice(&[-1_i64, -1]));
    loss.backward();
    assert!(loss.double_value(&[]).is_nan());
    assert_eq!(numbers(&input.grad()), [0.0, 0.0]);
}

#[test]
fn half_precision_is_computed_in_single() {
    let target = Tensor::from_slice(&[0_i64, 1, 1, 0]);
    for kind in [Kind::Half, Kind::BFloat16] {
        let input = Tensor::from_slice(&[8.0, 8.0, -8.0, -8.0]).to_kind(kind);
        let expected = none().forward(&input.to_kind(Kind::Float), &target).to_kind(kind);
        assert_eq!(none().forward(&input, &target), expected);
    }
}

#[test]
fn gradients_are_those_of_differences() {
    let input = Tensor::from_slice(&[-3.0, -1.0, 0.5, 2.0, 0.1, -0.2]).view([2, 3]);
    let target = Tensor::from_slice(&[0.9, 0.2, 0.5, 0.3, 0.7, 0.1]).view([2, 3]);
    for soft_targets in SOFT_TARGETS {
        let criterion = SigmoidFocalLoss::new()
            .alpha(Tensor::from_slice(&[0.2, 0.5, 0.9]))
            .gamma(0.5)
            .soft_targets(soft_targets)
            .normalization(FocalNormalization::PerClass)
            .pos_weight(Tensor::from_slice(&[1.0, 2.0, 0.5]));
        numeric::assert_gradient(&input, |input| criterion.forward(input, &target));
        numeric::assert_gradient(&target, |target| criterion.forward(&input, target));
    }
}
