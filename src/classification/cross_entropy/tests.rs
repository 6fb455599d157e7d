use super::*;
use crate::kernels::like_cuda;
use crate::{Backend, with_backend};

fn logits() -> Tensor {
    Tensor::from_slice(&[0.0, 0.0, 1.0, 1.0]).view([2, 2])
}

fn message(criterion: CrossEntropyLoss, input: &Tensor, target: &Tensor) -> String {
    criterion.f_forward(input, target).unwrap_err().to_string()
}

#[test]
fn wrong_calls_name_the_argument() {
    let (input, target) = (logits(), Tensor::from_slice(&[0_i64, 1]));
    let new = CrossEntropyLoss::new;
    let cases = [
        (message(new(), &input, &(&target + 1)), "target holds 2, expected classes in [0, 2), or ignore_index -100"),
        (message(new(), &input, &(&target - 1)), "target holds -1, expected classes in [0, 2), or ignore_index -100"),
        (message(new(), &target, &input), "input has kind Int64, expected a floating kind"),
        (message(new(), &input, &target.to_kind(Kind::Double)), "target has kind Double, expected an integer kind"),
        (message(new(), &input, &target.to_kind(Kind::Bool)), "target has kind Bool, expected an integer kind"),
        (message(new(), &input, &input.to_kind(Kind::Int64)), "target has kind Int64, expected a floating kind"),
        (
            message(new(), &input, &target.view([2, 1])),
            "target has shape [2, 1], expected [2], the shape of input without its classes, or that of input for \
             class probabilities",
        ),
        (message(new(), &input.sum(None), &target), "input has shape [], expected [C], [N, C] or [N, C, d1, ...]"),
        (message(new(), &input, &Tensor::new()), "target is an undefined tensor"),
        (
            message(new().label_smoothing(1.5), &input, &target),
            "option label_smoothing is 1.5, expected a number in [0, 1]",
        ),
        (
            message(new().label_smoothing(f64::NAN), &input, &target),
            "option label_smoothing is NaN, expected a number in [0, 1]",
        ),
        (
            message(new().weight(input.shallow_clone()), &input, &target),
            "weight has shape [2, 2], expected [2], one weight per class",
        ),
        (
            message(new().weight(Tensor::from_slice(&[1_i64; 2])), &input, &target),
            "weight has kind Int64, expected a floating kind",
        ),
        (
            message(new().weight(Tensor::from_slice(&[1.0; 2]).set_requires_grad(true)), &input, &target),
            "option weight is a tensor that requires a gradient, expected one that requires none, for class indices",
        ),
        (
            message(new().ignore_index(0), &input, &input),
            "option ignore_index is 0, expected negative with class probabilities as target",
        ),
    ];
    for (actual, expected) in cases {
        assert_eq!(actual, expected);
    }
}

#[test]
fn every_integer_kind_is_a_class_index() {
    let input = Tensor::from_slice(&[0.5, -1.0, 2.0, 1.0]).view([2, 2]);
    let target = Tensor::from_slice(&[1_i64, 0]);
    let expected = CrossEntropyLoss::new().forward(&input, &target);
    for kind in [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64] {
        assert_eq!(CrossEntropyLoss::new().forward(&input, &target.to_kind(kind)), expected, "{kind:?}");
    }
}

#[test]
fn an_ignored_row_of_masked_logits_leaves_value_and_gradient_alone() {
    let masked = [0.0, 0.0, f64::NEG_INFINITY, f64::NEG_INFINITY];
    for smoothing in [0.0, 0.5] {
        let input = Tensor::from_slice(&masked).view([2, 2]).set_requires_grad(true);
        let target = Tensor::from_slice(&[1_i64, 255]).to_kind(Kind::Uint8);
        let criterion = CrossEntropyLoss::new().ignore_index(255).label_smoothing(smoothing);
        let loss = criterion.forward(&input, &target);
        loss.backward();
        assert_eq!(loss.double_value(&[]), 2_f64.ln());
        let used = 0.5 * (1.0 - smoothing);
        assert_eq!(Vec::<f64>::try_from(input.grad().view(-1)).unwrap(), [used, -used, 0.0, 0.0]);
    }
}

#[test]
fn the_mean_can_count_what_is_ignored() {
    let (input, target) = (Tensor::zeros([2, 2], (Kind::Double, tch::Device::Cpu)), Tensor::from_slice(&[1_i64, -100]));
    let of = |over| CrossEntropyLoss::new().mean_over(over).forward(&input, &target);
    assert_eq!(of(MeanOver::Counted).double_value(&[]), 2_f64.ln());
    assert_eq!(of(MeanOver::All).double_value(&[]), 2_f64.ln() / 2.0);
}

#[test]
fn classes_out_of_range_can_make_the_loss_nan() {
    let target = Tensor::from_slice(&[1_i64, 2]);
    for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
        let input = logits().set_requires_grad(true);
        let criterion = CrossEntropyLoss::new().invalid_values(InvalidValues::Nan).reduction(reduction);
        let loss = criterion.forward(&input, &target);
        loss.sum(None).backward();
        assert!(loss.view(-1).double_value(&[-1]).is_nan());
        let used = if reduction == Reduction::None { 0.5 } else { 0.0 };
        assert_eq!(Vec::<f64>::try_from(input.grad().view(-1)).unwrap(), [used, -used, 0.0, 0.0]);
    }
}

#[test]
fn an_impossible_target_has_the_slope_of_pytorch() {
    let weight = || Tensor::from_slice(&[0.5, 2.0]);
    for (weight, smoothing, class, slope) in [
        (None, 0.0, 0, 1.0),
        (None, 0.0, 1, 0.0),
        (None, 0.35, 0, 0.825),
        (None, 0.35, 1, 0.175),
        (Some(weight()), 0.0, 0, 0.5),
        (Some(weight()), 0.35, 0, 0.4125),
        (Some(weight()), 0.35, 1, 0.0875),
    ] {
        for backend in [Backend::Auto, Backend::Composite] {
            let x = Tensor::from_slice(&[f64::NEG_INFINITY, 0.0]).view([1, 2]).set_requires_grad(true);
            let mut criterion = CrossEntropyLoss::new().label_smoothing(smoothing).reduction(Reduction::Sum);
            if let Some(weight) = &weight {
                criterion = criterion.weight(weight.shallow_clone());
            }
            let loss = with_backend(backend, || criterion.forward(&x, &Tensor::from_slice(&[class])));
            loss.backward();
            assert_eq!(loss.double_value(&[]), if slope == 0.0 { 0.0 } else { f64::INFINITY });
            let slopes = Vec::<f64>::try_from(x.grad().view(-1)).unwrap();
            let close = (slopes[0] + slope).abs() < 1e-15 && (slopes[1] - slope).abs() < 1e-15;
            assert!(close, "{backend:?}, {smoothing}, {class}: {slopes:?}");
        }
    }
}

/// As on CUDA, where no number is looked at, a loss is that of the CPU, also of masked classes and of targets without
/// weight.
#[test]
fn weights_mean_the_same_where_nobody_looks() {
    let x = Tensor::from_slice(&[0.5, -1.0, f64::NEG_INFINITY, 2.0, 0.25, 1.0]).view([2, 3]);
    let targets =
        [Tensor::from_slice(&[0_i64, 1]), Tensor::from_slice(&[1_i64, -100]), Tensor::from_slice(&[1_i64, 1])];
    for (target, smoothing) in targets.iter().flat_map(|target| [(target, 0.0), (target, 0.1)]) {
        for weight in [[1.0, 2.0, 3.0], [1.0, 2.0, 0.0], [1.0, 0.0, 0.0]] {
            for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
                let loss = CrossEntropyLoss::new().weight(Tensor::from_slice(&weight)).label_smoothing(smoothing);
                let loss = loss.reduction(reduction);
                let results = || {
                    let x = x.copy().set_requires_grad(true);
                    let loss = loss.forward(&x, target);
                    loss.sum(None).backward();
                    // Where the loss is no number the gradient is none either, NaN or infinite.
                    let gradient = x.grad().masked_fill(&loss.isnan().any(), 0.0);
                    [loss.detach(), gradient].map(|tensor| tensor.nan_to_num(1e9, 1e8, -1e8))
                };
                let (own, expected) = (like_cuda(results), with_backend(Backend::Composite, results));
                for (own, expected) in own.iter().zip(&expected) {
                    let off = (own - expected).abs().max().double_value(&[]);
                    assert!(off < 1e-12, "{weight:?}, ε = {smoothing}, {reduction:?} of {target:?}: {own} {expected}");
                }
            }
        }
    }
}
