use super::*;

fn logits() -> Tensor {
    Tensor::from_slice(&[0.5, -1.0, 2.0, 1.0, 0.0, 0.25]).view([2, 3])
}

fn message(criterion: SoftmaxFocalLoss, input: &Tensor, target: &Tensor) -> String {
    criterion.f_forward(input, target).unwrap_err().to_string()
}

#[test]
fn wrong_calls_name_the_argument() {
    let (input, target) = (logits(), Tensor::from_slice(&[0_i64, 2]));
    let new = SoftmaxFocalLoss::new;
    let pair = || Tensor::from_slice(&[1.0, 2.0]);
    let cases = [
        (message(new(), &input, &(&target + 1)), "target holds 3, expected classes in [0, 3), or ignore_index -100"),
        (message(new().ignore_index(None), &input, &(&target - 1)), "target holds -1, expected classes in [0, 3)"),
        (message(new(), &input, &target.to_kind(Kind::Double)), "target has kind Double, expected an integer kind"),
        (message(new(), &input, &input.to_kind(Kind::Int64)), "target has kind Int64, expected a floating kind"),
        (
            message(new(), &input, &target.view([2, 1])),
            "target has shape [2, 1], expected [2], the shape of input without its classes, or that of input for \
             class probabilities",
        ),
        (message(new(), &input.sum(None), &target), "input has shape [], expected [C], [N, C] or [N, C, d1, ...]"),
        (message(new().weight(pair()), &input, &target), "weight has shape [2], expected [3], one value per class"),
        (message(new().alpha(pair()), &input, &target), "alpha has shape [2], expected [3], one value per class"),
        (
            message(new().alpha(-1.0), &input, &target),
            "option alpha is -1, expected a number in [0, 1], one for each class, or FocalAlpha::None",
        ),
        (
            message(new().gamma(f64::INFINITY), &input, &target),
            "option gamma is inf, expected a finite number of at least 0",
        ),
        (
            message(new().label_smoothing(1.5), &input, &target),
            "option label_smoothing is 1.5, expected a number in [0, 1]",
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
fn extreme_logits_stay_finite() {
    let rows = [1e4, -1e4, 0.0, -1e4, 1e4, 1e4, 1e4, 1e4, 1e4];
    for (gamma, smoothing) in [0.0, 0.1, 0.5, 2.0].into_iter().flat_map(|gamma| [0.0, 0.1].map(|s| (gamma, s))) {
        for kind in [Kind::Double, Kind::Float] {
            let input = Tensor::from_slice(&rows).view([3, 3]).to_kind(kind).set_requires_grad(true);
            let criterion = SoftmaxFocalLoss::new().gamma(gamma).label_smoothing(smoothing);
            let indices = criterion.forward(&input, &Tensor::from_slice(&[0_i64, 0, 1]));
            let shares = criterion.forward(&input, &Tensor::full([3, 3], 1.0 / 3.0, (kind, input.device())));
            let sum = &indices + &shares;
            sum.backward();
            assert!(sum.double_value(&[]).is_finite(), "{gamma}");
            assert!(input.grad().isfinite().all().int64_value(&[]) != 0, "{gamma}");
        }
    }
}

#[test]
fn an_ignored_row_leaves_value_and_gradient_alone() {
    let masked = [0.0, 0.0, f64::NEG_INFINITY, f64::NAN];
    for smoothing in [0.0, 0.5] {
        let input = Tensor::from_slice(&masked).view([2, 2]).set_requires_grad(true);
        let target = Tensor::from_slice(&[1_i64, 255]).to_kind(Kind::Uint8);
        let criterion = SoftmaxFocalLoss::new().ignore_index(255).label_smoothing(smoothing);
        let loss = criterion.forward(&input, &target);
        loss.backward();
        assert!((loss.double_value(&[]) - 0.25 * 2_f64.ln()).abs() < 1e-15);
        assert_eq!(Vec::<f64>::try_from(input.grad().get(1)).unwrap(), [0.0, 0.0]);
        assert!(input.grad().isfinite().all().int64_value(&[]) != 0);
    }
}

#[test]
fn a_mean_over_nothing_is_nan_with_gradient_0() {
    let input = logits().set_requires_grad(true);
    let loss = SoftmaxFocalLoss::new().forward(&input, &Tensor::from_slice(&[-100_i64, -100]));
    loss.backward();
    assert!(loss.double_value(&[]).is_nan());
    assert_eq!(Vec::<f64>::try_from(input.grad().view(-1)).unwrap(), [0.0; 6]);
}

#[test]
fn classes_out_of_range_can_make_the_loss_nan() {
    for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
        let input = logits().set_requires_grad(true);
        let criterion = SoftmaxFocalLoss::new().invalid_values(InvalidValues::Nan).reduction(reduction);
        let loss = criterion.forward(&input, &Tensor::from_slice(&[1_i64, 3]));
        loss.sum(None).backward();
        assert!(loss.view(-1).double_value(&[-1]).is_nan());
        assert!(input.grad().isfinite().all().int64_value(&[]) != 0);
    }
}

#[test]
fn gradients_are_those_of_differences() {
    let (input, target) = (logits(), Tensor::from_slice(&[2_i64, 0]));
    let criterion =
        SoftmaxFocalLoss::new().alpha(0.3).gamma(0.5).weight(Tensor::from_slice(&[0.5, 1.0, 2.0])).label_smoothing(0.1);
    numeric::assert_gradient(&input, |input| criterion.forward(input, &target));
    let shares = logits().softmax(1, Kind::Double);
    numeric::assert_gradient(&input, |input| criterion.forward(input, &shares));
    numeric::assert_gradient(&shares, |shares| criterion.forward(&input, shares));
}
