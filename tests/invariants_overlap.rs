//! What holds of the overlap losses whatever the tensors.

mod common;

use tch::{Kind, Tensor};
use tch_losses::*;

use common::random::{randint, randn};

const SHAPES: [[i64; 4]; 4] = [[1, 1, 3, 3], [2, 3, 4, 5], [3, 2, 1, 7], [2, 5, 8, 8]];
const GROUPINGS: [Grouping; 4] = [Grouping::SampleAndClass, Grouping::Class, Grouping::Sample, Grouping::All];
const MEASURES: [OverlapMeasure; 3] = [OverlapMeasure::Product, OverlapMeasure::Squared, OverlapMeasure::Minimum];

/// Logits and classes, several times for each shape.
fn draws() -> impl Iterator<Item = (Tensor, Tensor)> {
    (0..5).flat_map(|_| SHAPES).map(|shape| {
        let logits = randn(shape) * 3;
        let classes = randint(shape[1], [shape[0], shape[2], shape[3]]);
        (logits, classes)
    })
}

fn one_hot(classes: &Tensor, count: i64) -> Tensor {
    classes.one_hot(count).movedim_int(-1, 1).to_kind(Kind::Double)
}

fn largest(tensor: Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

/// Dice, Jaccard, Tversky and focal Tversky with the same options, unreduced.
fn scores(grouping: Grouping, measure: OverlapMeasure, activation: Activation) -> Vec<Box<dyn Loss>> {
    let none = Reduction::None;
    vec![
        Box::new(DiceLoss::new().grouping(grouping).measure(measure).activation(activation).reduction(none)),
        Box::new(JaccardLoss::new().grouping(grouping).measure(measure).activation(activation).reduction(none)),
        Box::new(TverskyLoss::new().grouping(grouping).measure(measure).activation(activation).reduction(none)),
        Box::new(FocalTverskyLoss::new().grouping(grouping).measure(measure).activation(activation).reduction(none)),
        Box::new(GeneralizedDiceLoss::new().measure(measure).activation(activation).reduction(none)),
    ]
}

#[test]
fn a_perfect_prediction_has_no_loss_and_all_losses_are_in_0_to_1() {
    for (logits, classes) in draws() {
        let target = one_hot(&classes, logits.size()[1]);
        for (grouping, measure) in
            GROUPINGS.into_iter().flat_map(|grouping| MEASURES.map(|measure| (grouping, measure)))
        {
            for loss in scores(grouping, measure, Activation::None) {
                assert!(largest(loss.forward(&target, &classes)) < 1e-12);
                assert!(largest(loss.forward(&target, &target)) < 1e-12);
            }
            for loss in scores(grouping, measure, Activation::Softmax) {
                let values = loss.forward(&logits, &classes);
                assert!(values.min().double_value(&[]) >= -1e-12 && values.max().double_value(&[]) <= 1.0 + 1e-12);
            }
        }
    }
}

#[test]
fn a_soft_target_is_best_met_by_itself_where_the_minimum_is_measured() {
    for (logits, _) in draws() {
        let target = logits.sigmoid();
        for loss in scores(Grouping::SampleAndClass, OverlapMeasure::Minimum, Activation::None) {
            assert!(largest(loss.forward(&target, &target)) < 1e-12);
        }
    }
}

#[test]
fn class_indices_are_one_hot_masks() {
    for (logits, classes) in draws() {
        let target = one_hot(&classes, logits.size()[1]);
        for (grouping, measure) in
            GROUPINGS.into_iter().flat_map(|grouping| MEASURES.map(|measure| (grouping, measure)))
        {
            for loss in scores(grouping, measure, Activation::Softmax) {
                assert!(largest(loss.forward(&logits, &classes) - loss.forward(&logits, &target)) < 1e-12);
            }
        }
    }
}

#[test]
fn tversky_is_dice_with_halves_and_jaccard_with_ones() {
    for (logits, classes) in draws() {
        for grouping in GROUPINGS {
            let tversky = |weight| {
                let loss = TverskyLoss::new().alpha(weight).beta(weight).smooth_nr(0.0).smooth_dr(0.0);
                loss.grouping(grouping).activation(Activation::Softmax).reduction(Reduction::None)
            };
            let dice = DiceLoss::new().smooth_nr(0.0).smooth_dr(0.0).grouping(grouping);
            let dice = dice.activation(Activation::Softmax).reduction(Reduction::None).forward(&logits, &classes);
            let jaccard = JaccardLoss::new().smooth_nr(0.0).smooth_dr(0.0).grouping(grouping);
            let jaccard = jaccard.activation(Activation::Softmax).reduction(Reduction::None).forward(&logits, &classes);
            assert!(largest(tversky(0.5).forward(&logits, &classes) - &dice) < 1e-12);
            assert!(largest(tversky(1.0).forward(&logits, &classes) - &jaccard) < 1e-12);
            // J = D / (2 - D), so with the losses j and d: j = 2 d / (1 + d).
            let from_dice: Tensor = &dice * 2.0 / (&dice + 1.0);
            assert!(largest(from_dice - jaccard) < 1e-12);
        }
    }
}

#[test]
fn ignored_pixels_are_as_good_as_absent() {
    for (logits, classes) in draws() {
        let width = classes.size()[2];
        if width < 2 {
            continue;
        }
        let marked = classes.copy();
        let _ = marked.narrow(2, 0, 1).fill_(255);
        let (inside, kept) = (logits.narrow(3, 1, width - 1), classes.narrow(2, 1, width - 1));
        for grouping in GROUPINGS {
            let loss = || DiceLoss::new().activation(Activation::Softmax).grouping(grouping);
            let ignored = loss().ignore_index(255).forward(&logits, &marked);
            assert!(largest(ignored - loss().forward(&inside, &kept)) < 1e-12);
        }
    }
}

#[test]
fn saturated_logits_have_finite_values_and_gradients() {
    for (logits, classes) in draws() {
        for activation in [Activation::Sigmoid, Activation::Softmax] {
            for (kind, scale) in [(Kind::Double, 1e4), (Kind::Float, 1e4), (Kind::Half, 1e4), (Kind::BFloat16, 1e4)] {
                for loss in scores(Grouping::SampleAndClass, OverlapMeasure::Product, activation) {
                    let input = (logits.sign() * scale).to_kind(kind).set_requires_grad(true);
                    let value = loss.forward(&input, &classes).sum(None);
                    value.backward();
                    assert_eq!(value.isfinite().all().int64_value(&[]), 1);
                    assert_eq!(input.grad().isfinite().all().int64_value(&[]), 1);
                }
            }
        }
    }
}
