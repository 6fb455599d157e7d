//! What holds for the focal losses whatever the arguments.

mod common;

use tch::{Device, Kind, Tensor};
use tch_losses::*;

use common::random::{rand, randint, randn};

const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];
const SHAPES: [&[i64]; 5] = [&[6, 4], &[3], &[2, 3, 5], &[2, 5, 3, 3], &[1, 2, 2, 2, 2]];

fn normal(shape: &[i64]) -> Tensor {
    randn(shape) * 2.0
}

fn uniform(shape: &[i64]) -> Tensor {
    rand(shape)
}

fn classes(shape: &[i64]) -> i64 {
    shape[shape.len().min(2) - 1]
}

/// Class indices for an input of this shape.
fn indices(shape: &[i64]) -> Tensor {
    let mut rows = shape.to_vec();
    rows.remove(shape.len().min(2) - 1);
    randint(classes(shape), rows)
}

fn one_hot(shape: &[i64], target: &Tensor) -> Tensor {
    let dim = shape.len().min(2) as i64 - 1;
    Tensor::zeros(shape, (Kind::Double, Device::Cpu)).scatter_value(dim, &target.unsqueeze(dim), 1.0)
}

fn assert_close(actual: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(actual.size(), expected.size(), "{what}");
    assert!(actual.allclose(expected, 1e-12, 1e-12, true), "{what}: {actual}, not {expected}");
}

/// Runs a property on every shape, for some seeds.
fn for_shapes(property: impl Fn(&[i64])) {
    for _ in 0..5 {
        SHAPES.iter().for_each(|shape| property(shape));
    }
}

#[test]
fn without_focus_and_balance_it_is_binary_cross_entropy() {
    for_shapes(|shape| {
        let (input, target) = (normal(shape), uniform(shape));
        let (weight, pos_weight) = (uniform(shape), uniform(&[1]));
        for reduction in REDUCTIONS {
            let expected =
                BceWithLogitsLoss::new().reduction(reduction).weight(weight.copy()).pos_weight(pos_weight.copy());
            let focal = SigmoidFocalLoss::new().alpha(FocalAlpha::None).gamma(0.0).reduction(reduction);
            let focal = focal.weight(weight.copy()).pos_weight(pos_weight.copy());
            assert_close(&focal.forward(&input, &target), &expected.forward(&input, &target), "BCE");
        }
    });
}

#[test]
fn without_focus_and_balance_it_is_cross_entropy() {
    for_shapes(|shape| {
        let (input, target, weight) = (normal(shape), indices(shape), uniform(&[classes(shape)]) + 0.1);
        let shares = normal(shape).softmax(shape.len().min(2) as i64 - 1, Kind::Double);
        for (reduction, smoothing) in REDUCTIONS.into_iter().flat_map(|reduction| [0.0, 0.2].map(|s| (reduction, s))) {
            let entropy =
                || CrossEntropyLoss::new().reduction(reduction).label_smoothing(smoothing).weight(weight.copy());
            let focal = || {
                let loss = SoftmaxFocalLoss::new().reduction(reduction).label_smoothing(smoothing);
                loss.gamma(0.0).weight(weight.copy())
            };
            assert_close(&focal().forward(&input, &shares), &entropy().forward(&input, &shares), "CE of shares");
            let (focal, entropy) = (focal().ignore_index(1), entropy().ignore_index(1));
            assert_close(&focal.forward(&input, &target), &entropy.forward(&input, &target), "CE of indices");
        }
    });
}

#[test]
fn one_vs_rest_is_sigmoid_of_one_hot() {
    for_shapes(|shape| {
        let (input, target, alpha) = (normal(shape), indices(shape), uniform(&[classes(shape)]));
        for reduction in REDUCTIONS {
            let rest = OneVsRestFocalLoss::new().alpha(alpha.copy()).gamma(1.5).reduction(reduction);
            let sigmoid = SigmoidFocalLoss::new().alpha(alpha.copy()).gamma(1.5).reduction(reduction);
            let expected = sigmoid.forward(&input, &one_hot(shape, &target));
            assert_close(&rest.forward(&input, &target), &expected, "one against the rest");
        }
    });
}

#[test]
fn indices_are_one_hot_probabilities() {
    for_shapes(|shape| {
        let (input, target) = (normal(shape), indices(shape));
        for (reduction, smoothing) in REDUCTIONS.into_iter().flat_map(|reduction| [0.0, 0.2].map(|s| (reduction, s))) {
            let loss = SoftmaxFocalLoss::new().alpha(0.3).label_smoothing(smoothing).reduction(reduction);
            assert_close(&loss.forward(&input, &target), &loss.forward(&input, &one_hot(shape, &target)), "one-hot");
        }
    });
}

#[test]
fn a_softmax_of_two_classes_is_a_sigmoid_of_the_difference() {
    for _ in 0..20 {
        let (input, target) = (normal(&[4, 2, 3]), indices(&[4, 2, 3]));
        let difference = input.select(1, 1) - input.select(1, 0);
        let softmax = SoftmaxFocalLoss::new().alpha(0.3).gamma(1.5).forward(&input, &target);
        let sigmoid = SigmoidFocalLoss::new().alpha(0.3).gamma(1.5).forward(&difference, &target);
        assert_close(&softmax, &sigmoid, "two classes");
    }
}

#[test]
fn more_focus_is_less_loss_and_never_below_0() {
    for_shapes(|shape| {
        let (input, labels, target) = (normal(shape), uniform(shape).round(), indices(shape));
        let losses = |gamma| {
            let sigmoid = SigmoidFocalLoss::new().gamma(gamma).reduction(Reduction::None).forward(&input, &labels);
            let softmax = SoftmaxFocalLoss::new().gamma(gamma).reduction(Reduction::None).forward(&input, &target);
            Tensor::cat(&[sigmoid.view(-1), softmax.view(-1)], 0)
        };
        let gammas = [0.0, 0.3, 1.0, 2.0, 5.0];
        for pair in gammas.windows(2) {
            let (less, more) = (losses(pair[0]), losses(pair[1]));
            assert!(more.le_tensor(&less).all().int64_value(&[]) != 0, "{pair:?}");
            assert!(more.ge(0.0).all().int64_value(&[]) != 0, "{pair:?}");
        }
    });
}

#[test]
fn normalised_factors_are_those_of_a_weighted_mean() {
    // Where every cross entropy is the same, the normalised sum is that cross entropy.
    let (input, target) =
        (Tensor::full([3, 4], 0.7, (Kind::Double, Device::Cpu)), Tensor::ones([3, 4], (Kind::Double, Device::Cpu)));
    let entropy = BceWithLogitsLoss::new().forward(&input, &target);
    let loss = SigmoidFocalLoss::new().alpha(FocalAlpha::None).normalization(FocalNormalization::All);
    assert_close(&loss.reduction(Reduction::Sum).forward(&input, &target), &entropy, "all");
    let loss = SigmoidFocalLoss::new().alpha(FocalAlpha::None).normalization(FocalNormalization::PerClass);
    assert_close(&loss.reduction(Reduction::Sum).forward(&input, &target), &(entropy * 4.0), "per class");
}
