//! What holds of the overlap losses whatever the tensors.

mod common;

use tch::{Kind, Tensor};
use tch_losses::*;

use common::random::{randint, randn};

const SHAPES: [[i64; 4]; 4] = [[1, 2, 3, 3], [2, 3, 4, 5], [3, 2, 1, 7], [2, 5, 8, 8]];
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

const BACKENDS: [Backend; 2] = [Backend::Auto, Backend::Composite];

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).contiguous().view(-1)).unwrap()
}

#[track_caller]
fn assert_near(actual: &Tensor, expected: &[f64], within: f64) {
    let actual = numbers(actual);
    assert_eq!(actual.len(), expected.len());
    let near = |(a, e): (&f64, &f64)| (a - e).abs() <= within || a == e || a.is_nan() && e.is_nan();
    assert!(actual.iter().zip(expected).all(near), "{actual:?}, not {expected:?}");
}

/// The loss and the gradient of its input, by a backend.
fn run(backend: Backend, loss: &dyn Loss, input: &Tensor, target: &Tensor) -> (Tensor, Tensor) {
    let input = input.detach().copy().set_requires_grad(true);
    let value = with_backend(backend, || loss.forward(&input, target));
    value.sum(None).backward();
    (value.detach(), input.grad())
}

#[track_caller]
fn assert_message(loss: &dyn Loss, input: &Tensor, target: &Tensor, expected: &str) {
    for backend in BACKENDS {
        let error = with_backend(backend, || loss.f_forward(input, target)).unwrap_err().to_string();
        assert_eq!(error, expected, "{backend:?} {:?} {:?}", input.size(), target.kind());
    }
}

/// Images of few pixels, which no engine takes, and of some.
const SIZES: [[i64; 2]; 2] = [[2, 2], [5, 7]];

/// segmentation-models-pytorch 0.6: `JaccardLoss("multiclass", from_logits=False)`, and `DiceLoss` and `TverskyLoss` of
/// the same.
#[test]
fn a_probability_that_equals_the_target_has_half_of_the_gradient() {
    let input = Tensor::from_slice(&[1.0, 0.25, 0.0, 0.75]).view([1, 2, 2]);
    let target = Tensor::from_slice(&[0_i64, 1]).view([1, 2]);
    let (minimum, class, zero) = (OverlapMeasure::Minimum, Grouping::Class, EmptyMask::Zero);
    let jaccard = JaccardLoss::new().smooth_nr(0.0).smooth_dr(0.0);
    let dice = DiceLoss::new().smooth_nr(0.0).smooth_dr(0.0);
    let tversky = TverskyLoss::new().smooth_nr(0.0).smooth_dr(0.0);
    let of_dice = [-0.02469135820865631, 0.1975308656692505, -0.04081633687019348, -0.3265306353569031];
    let cases: [(Box<dyn Loss>, [f64; 4]); 3] = [
        (Box::new(jaccard.measure(minimum).grouping(class).empty_mask(zero)), [-0.04, 0.32, -0.0625, -0.5]),
        (Box::new(dice.measure(minimum).grouping(class).empty_mask(zero)), of_dice),
        (Box::new(tversky.measure(minimum).grouping(class).empty_mask(zero)), of_dice),
    ];
    for backend in BACKENDS {
        for (loss, expected) in &cases {
            assert_near(&run(backend, loss, &input, &target).1, expected, 1e-6);
            // Ten times as many pixels, which the engine takes, have a tenth of the gradient each.
            let (_, gradient) = run(backend, loss, &input.repeat([1, 1, 10]), &target.repeat([1, 10]));
            let tenth: Vec<f64> = expected.iter().map(|slope| slope / 10.0).collect();
            assert_near(&gradient.narrow(2, 4, 2), &tenth, 1e-6);
        }
    }
}

#[test]
fn class_indices_have_the_gradient_of_one_hot_masks_at_ties_too() {
    for [height, width] in SIZES {
        let classes = randint(3, [2, height, width]);
        let hidden = classes.masked_fill(&randint(4, [2, height, width]).eq(0), 255);
        let input = randint(5, [2, 3, height, width]).to_kind(Kind::Double) / 4.0;
        let masks = one_hot(&classes, 3);
        for loss in scores(Grouping::SampleAndClass, OverlapMeasure::Minimum, Activation::None) {
            for backend in BACKENDS {
                let (value, gradient) = run(backend, &loss, &input, &classes);
                let (expected, expected_gradient) = run(Backend::Composite, &loss, &input, &masks);
                assert_near(&value, &numbers(&expected), 1e-12);
                assert_near(&gradient, &numbers(&expected_gradient), 1e-12);
            }
        }
        let loss = DiceLoss::new().measure(OverlapMeasure::Minimum).ignore_index(255);
        let [auto, composite] = BACKENDS.map(|backend| run(backend, &loss, &input, &hidden));
        assert_near(&auto.1, &numbers(&composite.1), 1e-12);
    }
}

/// All losses of masks, of which most are told to take a sigmoid.
fn losses_of_masks() -> Vec<Box<dyn Loss>> {
    let sigmoid = Activation::Sigmoid;
    vec![
        Box::new(DiceLoss::new().activation(sigmoid)),
        Box::new(JaccardLoss::new().activation(sigmoid)),
        Box::new(TverskyLoss::new().activation(sigmoid)),
        Box::new(FocalTverskyLoss::new().activation(sigmoid)),
        Box::new(GeneralizedDiceLoss::new().activation(sigmoid)),
        Box::new(DiceLoss::new().activation(sigmoid).measure(OverlapMeasure::Minimum)),
        Box::new(SoftClDiceLoss::new().activation(sigmoid)),
        Box::new(SoftDiceClDiceLoss::new().activation(sigmoid)),
        Box::new(HausdorffDtLoss::new().activation(sigmoid)),
        Box::new(MccLoss::new().activation(sigmoid)),
    ]
}

#[test]
fn a_mask_of_0_and_255_is_an_error() {
    for [height, width] in SIZES {
        let shape = [2, 2, height, width];
        let (logits, mask) = (randn(shape), randint(2, shape));
        let _ = mask.get(1).get(0).get(1).get(1).fill_(1);
        let bytes = &mask * 255;
        for kind in [Kind::Uint8, Kind::Int, Kind::Int64, Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double] {
            for input in [logits.shallow_clone(), logits.to_kind(Kind::Float), logits.to_kind(Kind::Half)] {
                for loss in losses_of_masks() {
                    let expected = "target holds 255, expected values in [0, 1]";
                    assert_message(&loss, &input, &bytes.to_kind(kind), expected);
                    assert!(loss.f_forward(&input, &mask.to_kind(kind)).is_ok());
                }
            }
        }
        for outside in [-0.5, 1.5, f64::INFINITY] {
            let wrong = mask.to_kind(Kind::Double).masked_fill(&mask.eq(1), outside);
            for loss in losses_of_masks() {
                assert_message(&loss, &logits, &wrong, &format!("target holds {outside}, expected values in [0, 1]"));
            }
        }
        let masks = bytes.to_kind(Kind::Double);
        let expected = "target holds 255, expected 0 or 1";
        assert_message(&LovaszHingeLoss::new(), &logits, &masks, expected);
        let expected = "term overlap: target holds 255, expected values in [0, 1]";
        assert_message(&DiceCrossEntropyLoss::new(), &logits, &masks, expected);
        let binary = DiceCrossEntropyLoss::new().cross_entropy(BceWithLogitsLoss::new());
        assert_message(&binary, &logits, &masks, expected);
        let ignoring = DiceLoss::new().activation(Activation::Sigmoid).ignore_index(255);
        assert!(ignoring.f_forward(&logits, &bytes).is_ok());
        let expected = "target holds 2, expected values in [0, 1], or ignore_index 255";
        assert_message(&ignoring, &logits, &(&mask * 2), expected);
    }
}

#[test]
fn masks_out_of_range_make_the_loss_nan_where_that_was_asked_for() {
    let nan = InvalidValues::Nan;
    for [height, width] in SIZES {
        let logits = randn([2, 2, height, width]);
        let mask = randint(2, logits.size()).to_kind(Kind::Double);
        let wrong = mask.copy();
        let _ = wrong.get(0).get(1).get(1).get(0).fill_(7);
        let sigmoid = Activation::Sigmoid;
        let losses: [Box<dyn Loss>; 7] = [
            Box::new(DiceLoss::new().activation(sigmoid).invalid_values(nan)),
            Box::new(TverskyLoss::new().activation(sigmoid).invalid_values(nan)),
            Box::new(GeneralizedDiceLoss::new().activation(sigmoid).invalid_values(nan)),
            Box::new(SoftClDiceLoss::new().activation(sigmoid).invalid_values(nan)),
            Box::new(SoftDiceClDiceLoss::new().activation(sigmoid).invalid_values(nan)),
            Box::new(HausdorffDtLoss::new().activation(sigmoid).invalid_values(nan)),
            Box::new(MccLoss::new().activation(sigmoid).invalid_values(nan)),
        ];
        for loss in &losses {
            for backend in BACKENDS {
                assert!(run(backend, loss, &logits, &wrong).0.double_value(&[]).is_nan());
                assert!(run(backend, loss, &logits, &mask).0.double_value(&[]).is_finite());
            }
        }
        let raw: [Box<dyn Loss>; 2] =
            [Box::new(DiceLoss::new().invalid_values(nan)), Box::new(MccLoss::new().invalid_values(nan))];
        for loss in &raw {
            for backend in BACKENDS {
                assert!(run(backend, loss, &(&logits * 9), &mask).0.double_value(&[]).is_nan());
                assert!(run(backend, loss, &logits.sigmoid(), &mask).0.double_value(&[]).is_finite());
            }
        }
    }
}

#[test]
fn logits_without_an_activation_are_an_error() {
    for [height, width] in SIZES {
        let shape = [2, 2, height, width];
        let probabilities = randn(shape).sigmoid();
        let (logits, masks) = (probabilities.masked_fill(&randint(2, shape).eq(0), -3.5), randint(2, shape));
        let _ = logits.get(0).get(0).get(0).get(0).fill_(-3.5);
        let losses: [Box<dyn Loss>; 9] = [
            Box::new(DiceLoss::new()),
            Box::new(JaccardLoss::new()),
            Box::new(TverskyLoss::new()),
            Box::new(FocalTverskyLoss::new()),
            Box::new(GeneralizedDiceLoss::new()),
            Box::new(SoftClDiceLoss::new()),
            Box::new(SoftDiceClDiceLoss::new()),
            Box::new(HausdorffDtLoss::new()),
            Box::new(MccLoss::new()),
        ];
        let expected = "input holds -3.5, expected probabilities in [0, 1], or an activation";
        for loss in &losses {
            for kind in [Kind::Double, Kind::Float, Kind::BFloat16, Kind::Half] {
                assert_message(loss, &logits.to_kind(kind), &masks, expected);
                // Rounded or interpolated probabilities are some.
                assert!(loss.f_forward(&(&probabilities * 1.02 - 0.005).to_kind(kind), &masks).is_ok());
            }
        }
        for loss in &losses[..5] {
            assert_message(loss, &logits, &masks.select(1, 0), expected);
        }
        for loss in scores(Grouping::Class, OverlapMeasure::Product, Activation::None) {
            assert!(loss.f_forward(&logits, &masks).is_ok(), "what was asked for is done");
        }
        let hidden = masks.masked_fill(&logits.lt(0), 255);
        let counted = DiceLoss::new().ignore_index(255);
        assert!(BACKENDS.iter().all(|backend| with_backend(*backend, || counted.f_forward(&logits, &hidden)).is_ok()));
    }
}

#[test]
fn a_softmax_of_a_single_class_is_an_error() {
    for [height, width] in SIZES {
        let (logits, mask) = (randn([2, 1, height, width]), randint(2, [2, 1, height, width]).to_kind(Kind::Double));
        let softmax = Activation::Softmax;
        let mut losses = scores(Grouping::Class, OverlapMeasure::Product, softmax);
        losses.extend::<[Box<dyn Loss>; 4]>([
            Box::new(SoftClDiceLoss::new().activation(softmax)),
            Box::new(SoftDiceClDiceLoss::new().activation(softmax)),
            Box::new(HausdorffDtLoss::new().activation(softmax)),
            Box::new(MccLoss::new().activation(softmax)),
        ]);
        let expected = "option activation is Softmax, expected Sigmoid for an input of a single class";
        for loss in &losses {
            assert_message(loss, &logits, &mask, expected);
        }
        assert_message(&LovaszSoftmaxLoss::new(), &logits, &mask.squeeze_dim(1).to_kind(Kind::Int64), expected);
        let shape = logits.size();
        let expected = format!(
            "input has shape {shape:?}, expected at least two classes for a softmax; for a single one take \
             cross_entropy(BceWithLogitsLoss::new()) and with it a Sigmoid in the overlap"
        );
        assert_message(&DiceCrossEntropyLoss::new(), &logits, &mask, &expected);
        let expected = expected.replace("cross_entropy(BceWithLogitsLoss", "focal(SigmoidFocalLoss");
        assert_message(&DiceFocalLoss::new(), &logits, &mask, &expected);
        // What the messages say works.
        let losses: [Box<dyn Loss>; 2] = [
            Box::new(DiceCrossEntropyLoss::new().cross_entropy(BceWithLogitsLoss::new())),
            Box::new(DiceFocalLoss::new().focal(SigmoidFocalLoss::new())),
        ];
        let sigmoid = || DiceLoss::new().activation(Activation::Sigmoid);
        let said: [Box<dyn Loss>; 2] = [
            Box::new(DiceCrossEntropyLoss::new().cross_entropy(BceWithLogitsLoss::new()).overlap(sigmoid())),
            Box::new(DiceFocalLoss::new().focal(SigmoidFocalLoss::new()).overlap(sigmoid())),
        ];
        for (loss, said) in losses.iter().zip(&said) {
            for backend in BACKENDS {
                let (value, gradient) = run(backend, loss, &logits, &mask);
                assert!(largest(gradient.shallow_clone()) > 1e-4);
                let (expected, expected_gradient) = run(backend, said, &logits, &mask);
                assert_eq!((value, gradient), (expected, expected_gradient));
            }
        }
    }
}

#[test]
fn a_loss_in_a_sum_has_the_activation_of_the_other_one() {
    for [height, width] in SIZES {
        let (logits, classes) = (randn([2, 3, height, width]), randint(3, [2, height, width]));
        let softmax = || JaccardLoss::new().activation(Activation::Softmax).smooth_nr(0.5);
        for backend in BACKENDS {
            let sum = DiceCrossEntropyLoss::new().overlap(JaccardLoss::new().smooth_nr(0.5));
            let (value, gradient) = run(backend, &sum, &logits, &classes);
            let (overlap, of_overlap) = run(backend, &softmax(), &logits, &classes);
            let (entropy, of_entropy) = run(backend, &CrossEntropyLoss::new(), &logits, &classes);
            assert_near(&value, &numbers(&(overlap + entropy)), 1e-12);
            assert_near(&gradient, &numbers(&(of_overlap + of_entropy)), 1e-12);
            // Unless it was said.
            let raw = JaccardLoss::new().activation(Activation::None);
            let (value, _) = run(backend, &DiceCrossEntropyLoss::new().overlap(raw), &logits, &classes);
            let (overlap, _) = run(backend, &JaccardLoss::new().activation(Activation::None), &logits, &classes);
            let (entropy, _) = run(backend, &CrossEntropyLoss::new(), &logits, &classes);
            assert_near(&value, &numbers(&(overlap + entropy)), 1e-12);
        }
    }
}

#[test]
fn both_parts_of_a_sum_ignore_the_same_targets() {
    for [height, width] in SIZES {
        let (logits, classes) = (randn([2, 3, height, width]), randint(3, [2, height, width]));
        let _ = classes.narrow(2, 0, 1).fill_(255);
        let spoiled = logits.copy();
        let _ = spoiled.narrow(3, 0, 1).fill_(f64::NAN);
        let (inside, kept) = (logits.narrow(3, 1, width - 1), classes.narrow(2, 1, width - 1));
        let masks = |classes: &Tensor| {
            let hidden = classes.eq(255).unsqueeze(1);
            one_hot(&classes.masked_fill(&classes.eq(255), 0), 3).masked_fill(&hidden, 255)
        };
        let sigmoids = || SigmoidFocalLoss::new().gamma(1.5);
        let bce = || BceWithLogitsLoss::new().pos_weight(Tensor::from_slice(&[2.0, 3.0, 0.5]).view([3, 1, 1]));
        let with = |ignore: bool| if ignore { 255 } else { -7 };
        type Build = Box<dyn Fn(bool) -> Box<dyn Loss>>;
        let cases: Vec<(Build, bool)> = vec![
            (Box::new(move |on| Box::new(DiceCrossEntropyLoss::new().ignore_index(with(on)))), false),
            (Box::new(move |on| Box::new(DiceFocalLoss::new().ignore_index(with(on)))), false),
            (
                Box::new(move |on| {
                    let loss = DiceFocalLoss::new().focal(OneVsRestFocalLoss::new());
                    Box::new(loss.overlap(TverskyLoss::new()).ignore_index(with(on)))
                }),
                false,
            ),
            (Box::new(move |on| Box::new(DiceFocalLoss::new().focal(sigmoids()).ignore_index(with(on)))), true),
            (
                Box::new(move |on| Box::new(DiceCrossEntropyLoss::new().cross_entropy(bce()).ignore_index(with(on)))),
                true,
            ),
        ];
        for (loss, of_masks) in &cases {
            let shape = |classes: &Tensor| if *of_masks { masks(classes) } else { classes.shallow_clone() };
            for backend in BACKENDS {
                let (value, gradient) = run(backend, &loss(true), &spoiled, &shape(&classes));
                let (expected, expected_gradient) = run(backend, &loss(false), &inside, &shape(&kept));
                assert_near(&value, &numbers(&expected), 1e-12);
                assert_near(&gradient.narrow(3, 1, width - 1), &numbers(&expected_gradient), 1e-12);
                assert_eq!(largest(gradient.narrow(3, 0, 1)), 0.0);
            }
        }
    }
}

#[test]
fn an_error_in_a_sum_says_which_part_it_is_of() {
    let (logits, classes) = (randn([2, 3, 5, 7]), randint(3, [2, 5, 7]));
    let _ = classes.get(0).get(0).narrow(0, 0, 1).fill_(255);
    let new = DiceCrossEntropyLoss::new;
    let ignoring = || CrossEntropyLoss::new().ignore_index(255);
    let expected = "term overlap: target holds 255, expected classes in [0, 3)";
    assert_message(&new().cross_entropy(ignoring()), &logits, &classes, expected);
    let ignoring = DiceLoss::new().ignore_index(255);
    let expected = "term cross_entropy: target holds 255, expected classes in [0, 3), or ignore_index -100";
    assert_message(&new().overlap(ignoring), &logits, &classes, expected);
    assert_message(&DiceFocalLoss::new(), &logits, &classes, &expected.replace("cross_entropy", "focal"));
    let expected = "term overlap: option alpha is -1, expected a finite number of at least 0";
    assert_message(&new().overlap(TverskyLoss::new().alpha(-1.0)).ignore_index(255), &logits, &classes, expected);
    let masks = logits.softmax(1, Kind::Double);
    let expected =
        "term cross_entropy: option ignore_index is 255, expected negative with class probabilities as target";
    let error = new().ignore_index(255).f_forward(&logits, &masks).unwrap_err().to_string();
    assert_eq!(error.split(',').next(), expected.split(',').next());
}

/// segmentation-models-pytorch's `LovaszLoss` in the modes binary and multilabel, and kornia's `lovasz_hinge_loss`.
#[test]
fn a_floating_target_of_the_lovasz_hinge_has_a_gradient() {
    type Numbers = &'static [f64];
    let cases: [(Numbers, Numbers, f64, Numbers, Numbers); 2] = [
        (&[0.5, -0.25], &[1.0, 0.0], 0.625, &[-0.5, 0.5], &[-0.5625, 0.25]),
        (
            &[0.5, -0.25, 2.0, 0.7],
            &[1.0, 0.0, 1.0, 0.0],
            0.8166666626930237,
            &[-0.25, 0.1666666865348816, 0.0, 0.3333333134651184],
            &[-0.38680559396743774, -0.022222250699996948, -0.23055559396743774, -0.46666663885116577],
        ),
    ];
    for (x, t, value, of_x, of_t) in cases {
        for kind in [Kind::Float, Kind::Double] {
            for (backend, per_image) in BACKENDS.into_iter().flat_map(|backend| [(backend, false), (backend, true)]) {
                let leaf =
                    |values: &[f64]| Tensor::from_slice(values).view([1, -1]).to_kind(kind).set_requires_grad(true);
                let (x, t) = (leaf(x), leaf(t));
                let loss = with_backend(backend, || LovaszHingeLoss::new().per_image(per_image).forward(&x, &t));
                loss.backward();
                assert_near(&loss, &[value], 1e-6);
                assert_near(&x.grad(), of_x, 1e-6);
                assert_near(&t.grad(), of_t, 1e-6);
            }
        }
    }
    // smp with ignore_index=1, whose pixels have no gradient.
    let leaf = |values: [f64; 4]| Tensor::from_slice(&values).view([1, -1]).set_requires_grad(true);
    let (x, t) = (leaf([0.5, -0.25, 2.0, 0.7]), leaf([1.0, 0.0, 1.0, 0.0]));
    let loss = LovaszHingeLoss::new().ignore_index(1).forward(&x, &t);
    loss.backward();
    assert_near(&loss, &[1.7], 1e-6);
    assert_near(&x.grad(), &[0.0, 0.0, 0.0, 1.0], 1e-6);
    assert_near(&t.grad(), &[0.0, -0.95, 0.0, -1.4], 1e-6);
    // With a target that has no gradient the logits have the same one, whatever the order of many pixels is.
    let (x, t) = (randn([3, 200]), randint(2, [3, 200]).to_kind(Kind::Double));
    let (expected, gradient) = run(Backend::Auto, &LovaszHingeLoss::new().per_image(true), &x, &t);
    let (actual, of_x) = run(Backend::Auto, &LovaszHingeLoss::new().per_image(true), &x, &t.set_requires_grad(true));
    assert_near(&actual, &numbers(&expected), 1e-12);
    assert_near(&of_x, &numbers(&gradient), 1e-12);
}

#[test]
fn a_function_of_ones_own_makes_probabilities() {
    let tanh = |input: &Tensor| Ok::<_, LossError>((input.f_tanh()? + 1.0) / 2.0);
    for [height, width] in SIZES {
        let (logits, classes) = (randn([2, 3, height, width]), randint(3, [2, height, width]));
        let losses: [(Box<dyn Loss>, Box<dyn Loss>); 7] = [
            (Box::new(DiceLoss::new().other_act(tanh)), Box::new(DiceLoss::new())),
            (Box::new(JaccardLoss::new().other_act(tanh)), Box::new(JaccardLoss::new())),
            (Box::new(TverskyLoss::new().other_act(tanh)), Box::new(TverskyLoss::new())),
            (Box::new(GeneralizedDiceLoss::new().other_act(tanh)), Box::new(GeneralizedDiceLoss::new())),
            (Box::new(HausdorffDtLoss::new().other_act(tanh)), Box::new(HausdorffDtLoss::new())),
            (Box::new(SoftClDiceLoss::new().other_act(tanh)), Box::new(SoftClDiceLoss::new())),
            (Box::new(SoftDiceClDiceLoss::new().other_act(tanh)), Box::new(SoftDiceClDiceLoss::new())),
        ];
        for (other, plain) in &losses {
            for backend in BACKENDS {
                let (value, gradient) = run(backend, other, &logits, &classes);
                let input = logits.copy().set_requires_grad(true);
                let expected = with_backend(backend, || plain.forward(&tanh(&input).unwrap(), &classes));
                expected.backward();
                assert_near(&value, &numbers(&expected), 1e-12);
                assert_near(&gradient, &numbers(&input.grad()), 1e-12);
                assert_eq!(run(backend, other, &logits.to_kind(Kind::Half), &classes).0.kind(), Kind::Half);
            }
        }
        let sum = DiceCrossEntropyLoss::new().overlap(DiceLoss::new().other_act(tanh));
        let parts = [&losses[0].0 as &dyn Loss, &CrossEntropyLoss::new()];
        for backend in BACKENDS {
            let [dice, entropy] = parts.map(|part| run(backend, part, &logits, &classes));
            let (value, gradient) = run(backend, &sum, &logits, &classes);
            assert_near(&value, &numbers(&(dice.0 + entropy.0)), 1e-12);
            assert_near(&gradient, &numbers(&(dice.1 + entropy.1)), 1e-12);
        }
        let wrong = DiceLoss::new().other_act(|input| Ok(input.f_sum(None)?));
        let expected = format!("other_act(input) has shape [], expected {:?}, the shape of input", logits.size());
        assert_message(&wrong, &logits, &classes, &expected);
    }
}

#[test]
fn the_worst_prediction_costs_something_with_the_option_that_the_page_names() {
    let (full, empty) = (
        Tensor::ones([1, 1, 6, 7], (Kind::Double, tch::Device::Cpu)),
        Tensor::zeros([1, 1, 6, 7], (Kind::Double, tch::Device::Cpu)),
    );
    let value = |loss: &dyn Loss, input: &Tensor, target: &Tensor| loss.forward(input, target).double_value(&[]);
    // MONAI 1.6.1: 0, 1, 0 and 4.9949e-05.
    assert_eq!(value(&GeneralizedDiceLoss::new(), &full, &empty), 0.0);
    let uniform = GeneralizedDiceLoss::new().weighting(VolumeWeight::Uniform);
    assert!(value(&uniform, &full, &empty) > 0.999);
    assert_eq!(value(&HausdorffDtLoss::new(), &full, &empty), 0.0);
    let diagonal = || HausdorffDtLoss::new().no_boundary(NoBoundary::Diagonal);
    assert_eq!(value(&diagonal(), &full, &empty), 2.0 * (36.0 + 49.0));
    assert_eq!(value(&diagonal().alpha(0.0), &full, &empty), 2.0);
    assert_eq!(value(&diagonal(), &empty, &empty), 0.0);
    assert!((value(&SoftClDiceLoss::new(), &empty, &full) - 4.9949e-5).abs() < 1e-7);
    assert!(value(&SoftDiceClDiceLoss::new(), &empty, &full) > 0.4);
}

/// Whatever comes, both backends say the same.
#[test]
fn the_backends_agree_on_odd_inputs() {
    let (none, softmax, sigmoid) = (Reduction::None, Activation::Softmax, Activation::Sigmoid);
    let nan_at = |input: &Tensor| {
        let input = input.copy();
        let _ = input.get(0).get(1).get(1).get(2).fill_(f64::NAN);
        input
    };
    let masked = |input: &Tensor, by: f64| {
        let input = input.copy();
        let _ = input.narrow(1, 2, 1).fill_(by);
        input
    };
    for kind in [Kind::Double, Kind::Half] {
        let lowest = match kind {
            Kind::Half => -65504.0,
            _ => f64::from(f32::MIN),
        };
        let few = kind == Kind::Half;
        let logits = randn([2, 3, 4, 6]).to_kind(kind);
        let classes = randint(2, [2, 4, 6]);
        let ends = (logits.sign() * f64::INFINITY).to_kind(kind);
        let targets = [classes.shallow_clone(), logits.zeros_like(), logits.neg().sigmoid()];
        let inputs = [
            (logits.shallow_clone(), true),
            (nan_at(&logits), true),
            (masked(&logits, f64::NEG_INFINITY), true),
            (masked(&logits, lowest), true),
            (&logits * 100, true),
            (ends, false),
        ];
        for (input, softmaxes) in &inputs {
            for target in &targets {
                for activation in if *softmaxes { vec![softmax, sigmoid] } else { vec![sigmoid] } {
                    for measure in if few { &MEASURES[2..] } else { &MEASURES } {
                        let measure = *measure;
                        for smooth in [if few { 1e-5 } else { 0.0 }] {
                            let dice = || {
                                DiceLoss::new()
                                    .activation(activation)
                                    .measure(measure)
                                    .smooth_nr(smooth)
                                    .smooth_dr(smooth)
                            };
                            let tversky = FocalTverskyLoss::new().activation(activation).measure(measure);
                            let general = GeneralizedDiceLoss::new().activation(activation).measure(measure);
                            let losses: [Box<dyn Loss>; 6] = [
                                Box::new(dice().reduction(none)),
                                Box::new(dice().eps(0.0)),
                                Box::new(dice().log_loss(true).empty_mask(EmptyMask::Zero)),
                                Box::new(dice().empty_mask(EmptyMask::Skip)),
                                Box::new(tversky.smooth_nr(smooth).smooth_dr(smooth)),
                                Box::new(general.smooth_nr(smooth).smooth_dr(smooth)),
                            ];
                            for (which, loss) in losses.iter().enumerate() {
                                let [auto, composite] = BACKENDS.map(|backend| run(backend, loss, input, target));
                                let within = match kind {
                                    Kind::Double => 1e-12,
                                    Kind::Float => 1e-5,
                                    _ => 1e-2,
                                };
                                for (auto, composite) in [(&auto.0, &composite.0), (&auto.1, &composite.1)] {
                                    let same = auto.to_kind(Kind::Double).allclose(
                                        &composite.to_kind(Kind::Double),
                                        1e-2,
                                        within,
                                        true,
                                    );
                                    assert!(
                                        same,
                                        "{which} {kind:?} {activation:?} {measure:?} {smooth}\n{input}\n{target}\n{auto}\n{composite}"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn weights_may_be_of_another_kind_than_the_logits() {
    for [height, width] in SIZES {
        let (logits, classes) = (randn([2, 3, height, width]), randint(3, [2, height, width]));
        for (kind, of_weight) in [
            (Kind::BFloat16, Kind::Float),
            (Kind::Half, Kind::Float),
            (Kind::Half, Kind::Double),
            (Kind::Float, Kind::Double),
            (Kind::Float, Kind::Half),
        ] {
            let weight = |kind| Tensor::from_slice(&[0.5, 1.0, 2.0]).to_kind(kind);
            let loss = |kind| {
                let overlap = DiceLoss::new().weight(weight(kind));
                let new = DiceCrossEntropyLoss::new().overlap(overlap);
                new.cross_entropy(CrossEntropyLoss::new().weight(weight(kind)))
            };
            let wide = if kind == Kind::Float { Kind::Double } else { Kind::Float };
            let input = logits.to_kind(kind);
            for backend in BACKENDS {
                let (value, gradient) = run(backend, &loss(of_weight), &input, &classes);
                let (expected, expected_gradient) = run(backend, &loss(wide), &input.to_kind(wide), &classes);
                assert_eq!((value.kind(), gradient.kind()), (kind, kind));
                let within = if kind == Kind::Float { 1e-6 } else { 1e-2 };
                assert_near(&value, &numbers(&expected), within);
                assert_near(&gradient, &numbers(&expected_gradient), within);
            }
        }
    }
}
