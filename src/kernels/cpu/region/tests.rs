use tch::Device;

use super::*;
use crate::kernels::region::{Total, f_region};
use crate::random::{rand, randint, randn};
use crate::{
    Backend, CrossEntropyLoss, DiceCrossEntropyLoss, DiceLoss, GeneralizedDiceLoss, JaccardLoss, Loss, MeanOver,
    Reduction, TverskyLoss, with_backend,
};

const MEASURES: [OverlapMeasure; 3] = [OverlapMeasure::Product, OverlapMeasure::Squared, OverlapMeasure::Minimum];
const ANYWHERE: RangeInclusive<f64> = f64::NEG_INFINITY..=f64::INFINITY;
const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Sigmoid, Activation::Softmax];
/// One pixel, one class, blocks with and without a rest, several tasks, more classes than fit a block.
const SHAPES: [[i64; 4]; 9] = [
    [1, 1, 1, 1],
    [2, 3, 1, 1],
    [1, 1, 5, 7],
    [2, 4, 3, 11],
    [3, 2, 32, 32],
    [1, 5, 41, 101],
    [2, 3, 180, 190],
    [1, 150, 20, 20],
    [1, 9000, 1, 3],
];

fn uniform(size: &[i64], kind: Kind) -> Tensor {
    rand(size).to_kind(kind)
}

/// An input that fits the activation.
fn input(size: &[i64], activation: Activation) -> Tensor {
    match activation {
        Activation::None => uniform(size, Kind::Double),
        Activation::Sigmoid | Activation::Softmax => randn(size) * 3,
    }
}

fn classes(size: &[i64]) -> Tensor {
    randint(size[1], [size[0], size[2], size[3]])
}

fn one_hot(classes: &Tensor, count: i64, kind: Kind) -> Tensor {
    classes.one_hot(count).movedim_int(-1, 1).to_kind(kind).contiguous()
}

/// The sums by the engine, and their gradient for factors of the sums.
fn fused(formula: &Regional, input: &Tensor, target: &Tensor) -> Option<(Vec<Tensor>, Tensor)> {
    let input = input.detach().set_requires_grad(true);
    let sums = f_region(formula.clone(), &input, target, |_, _| panic!("no second order here")).unwrap()?;
    let [intersection, size, of_target] = sums.regions;
    let gradient = gradient(&[&intersection, &size], sums.entropy.as_ref(), &input);
    let mut all = vec![intersection.detach(), size.detach(), of_target];
    all.extend(sums.entropy.map(|entropy| entropy.detach()));
    let Total::Number(weight) = sums.weight else { panic!("a number on the host") };
    all.push(Tensor::from_slice(&[weight]));
    Some((all, gradient))
}

fn gradient(regions: &[&Tensor], entropy: Option<&Tensor>, input: &Tensor) -> Tensor {
    let mut value = Tensor::zeros([0_i64; 0], (regions[0].kind(), Device::Cpu));
    for (position, sums) in regions.iter().enumerate() {
        let count = sums.numel() as i64;
        let factors = (Tensor::arange(count, (sums.kind(), Device::Cpu)) + (position + 1) as f64).sin();
        value += (factors.view_as(sums) * *sums).sum(None);
    }
    if let Some(entropy) = entropy {
        value += entropy * 0.75;
    }
    Tensor::run_backward(&[value], &[input], false, false).remove(0)
}

/// The sums and their gradient by tensor operations, in which class indices are converted to masks.
fn defined(formula: &Regional, input: &Tensor, target: &Tensor) -> (Vec<Tensor>, Tensor) {
    let input = input.detach().set_requires_grad(true);
    let count = input.size()[1];
    let (mask, counts) = if target.size() == input.size() {
        let ignored = formula.ignored.map(|ignored| target.eq(ignored));
        let counts = ignored.map_or_else(|| target.ones_like(), |ignored| ignored.logical_not().to_kind(input.kind()));
        (target * &counts, counts)
    } else {
        let ignored = target.eq(formula.ignored.unwrap_or(i64::MIN));
        let counts = ignored.logical_not().unsqueeze(1).to_kind(input.kind());
        (one_hot(&target.masked_fill(&ignored, 0), count, input.kind()) * &counts, counts)
    };
    let p = match formula.activation {
        Activation::None => input.shallow_clone(),
        Activation::Sigmoid => input.sigmoid(),
        Activation::Softmax => input.softmax(1, input.kind()),
    } * &counts;
    let pixels = |tensor: &Tensor| tensor.flatten(2, -1).sum_dim_intlist(-1, false, None);
    let (intersection, size, of_target) = match formula.measure {
        OverlapMeasure::Product => (pixels(&(&p * &mask)), pixels(&p), pixels(&mask)),
        OverlapMeasure::Squared => (pixels(&(&p * &mask)), pixels(&p.square()), pixels(&mask.square())),
        OverlapMeasure::Minimum => (pixels(&p.minimum(&mask)), pixels(&p), pixels(&mask)),
    };
    let mut all = vec![intersection.detach(), size.detach(), of_target];
    let entropy = formula.entropy.as_ref().map(|entropy| {
        let weight = entropy.clone().weight.unwrap_or_else(|| Tensor::ones([count], (Kind::Double, Device::Cpu)));
        let weights = &mask * weight.view([1, -1, 1, 1]);
        all.push(weights.sum(None));
        -(input.log_softmax(1, input.kind()) * weights).sum(None)
    });
    let weight = if entropy.is_some() { all.remove(3) } else { Tensor::from(0.0) };
    let gradient = gradient(&[&intersection, &size], entropy.as_ref(), &input);
    all.extend(entropy.map(|entropy| entropy.detach()));
    all.push(weight.view(1));
    (all, gradient)
}

#[track_caller]
fn assert_close(actual: &Tensor, expected: &Tensor, relative: f64, absolute: f64, name: &str) {
    assert_eq!((actual.size(), actual.kind()), (expected.size(), expected.kind()), "{name}");
    let largest = (actual - expected).abs().max().double_value(&[]);
    assert!(actual.allclose(expected, relative, absolute, false), "{name}: {largest:e}");
}

#[track_caller]
fn assert_as_defined(formula: &Regional, input: &Tensor, target: &Tensor) {
    let name = format!("{formula:?} {:?} {:?}", input.size(), target.kind());
    let (sums, gradient) = fused(formula, input, target).unwrap_or_else(|| panic!("{name} is not taken"));
    let (expected, expected_gradient) = defined(formula, input, target);
    assert_eq!(sums.len(), expected.len());
    for (actual, expected) in sums.iter().zip(&expected) {
        assert_close(actual, expected, 1e-12, 1e-12, &name);
    }
    assert_close(&gradient, &expected_gradient, 1e-10, 1e-14, &name);
}

/// Each form of a target, with what is ignored in it.
fn targets(size: &[i64]) -> Vec<(Tensor, Option<i64>)> {
    let classes = classes(size);
    let hidden = rand(classes.size()).lt(0.3);
    let soft = uniform(size, Kind::Double);
    let some = rand(size).lt(0.3);
    vec![
        (classes.masked_fill(&hidden, 255), Some(255)),
        (classes.masked_fill(&hidden, -100), Some(-100)),
        (classes.shallow_clone(), Some(0)),
        (one_hot(&classes, size[1], Kind::Double), None),
        (soft.masked_fill(&some, 255), Some(255)),
        (soft, None),
        (classes, None),
    ]
}

#[test]
fn the_sums_and_their_gradient_are_as_defined() {
    for size in SHAPES {
        for (target, ignored) in targets(&size) {
            for activation in ACTIVATIONS {
                // `Regions::f_fused` leaves this case to the composite.
                let single = size[1] == 1 && activation == Activation::Softmax;
                let input = input(&size, activation);
                for measure in MEASURES.into_iter().filter(|_| !single || ignored.is_none()) {
                    let formula = Regional { activation, measure, ignored, expected: ANYWHERE, entropy: None };
                    assert_as_defined(&formula, &input, &target);
                }
            }
        }
    }
}

#[test]
fn so_is_the_cross_entropy() {
    for size in SHAPES {
        for (target, ignored) in targets(&size) {
            if target.size() == size && ignored.is_some() {
                continue;
            }
            let input = input(&size, Activation::Softmax);
            for weight in [None, Some(uniform(&size[1..2], Kind::Double))] {
                let entropy = Some(Entropy { weight });
                let (activation, measure) = (Activation::Softmax, OverlapMeasure::Product);
                assert_as_defined(
                    &Regional { activation, measure, ignored, expected: ANYWHERE, entropy },
                    &input,
                    &target,
                );
            }
        }
    }
}

#[test]
fn any_layout_is_taken() {
    let size = [2, 4, 6, 5];
    for (target, ignored) in targets(&size) {
        let formula = Regional {
            activation: Activation::Softmax,
            measure: OverlapMeasure::Product,
            ignored,
            expected: ANYWHERE,
            entropy: None,
        };
        let layouts = [
            randn([2, 4, 5, 6]).transpose(2, 3),
            randn([2, 6, 5, 4]).permute([0, 3, 1, 2]),
            randn([4, 2, 6, 5]).transpose(0, 1),
            randn([2, 4, 6, 10]).slice(3, 1, 10, 2),
            randn([2, 1, 6, 5]).expand(size, false),
        ];
        for input in layouts {
            assert_as_defined(&formula, &input, &target);
            let strided = Tensor::stack(&[&target, &target], -1).select(-1, 1);
            assert_as_defined(&formula, &input, &strided);
        }
    }
}

#[test]
fn equal_probabilities_and_shares_divide_the_gradient_as_in_pytorch() {
    let size = [1, 2, 4, 5];
    let masks = randint(2, size).to_kind(Kind::Double);
    let (activation, measure) = (Activation::None, OverlapMeasure::Minimum);
    let formula = Regional { activation, measure, ignored: None, expected: ANYWHERE, entropy: None };
    assert_as_defined(&formula, &masks, &masks.copy());
}

#[test]
fn a_result_does_not_depend_on_the_number_of_threads() {
    let size = [3, 5, 90, 111];
    let threads = tch::get_num_threads();
    for (target, ignored) in [(classes(&size), None), (uniform(&size, Kind::Float), None)] {
        let input = input(&size, Activation::Softmax).to_kind(Kind::Float);
        let entropy = Some(Entropy { weight: None });
        let formula = Regional {
            activation: Activation::Softmax,
            measure: OverlapMeasure::Product,
            ignored,
            expected: ANYWHERE,
            entropy,
        };
        let results = [1, 2, 3, 8].map(|threads| {
            tch::set_num_threads(threads);
            fused(&formula, &input, &target).unwrap()
        });
        tch::set_num_threads(threads);
        let [first, others @ ..] = &results;
        for (sums, gradient) in others {
            assert_eq!((sums, gradient), (&first.0, &first.1));
        }
    }
}

#[test]
fn a_class_out_of_range_is_not_taken() {
    let size = [1, 3, 4, 5];
    for wrong in [-1, 3, i64::MIN, i64::MAX, 1 << 32] {
        let target = classes(&size);
        let _ = target.get(0).get(2).get(3).fill_(wrong);
        for ignored in [None, Some(255)] {
            let formula = Regional {
                activation: Activation::None,
                measure: OverlapMeasure::Product,
                ignored,
                expected: ANYWHERE,
                entropy: None,
            };
            let sums = f_region(formula, &uniform(&size, Kind::Float), &target, |_, _| Ok(vec![])).unwrap();
            assert!(sums.is_none(), "{wrong}");
        }
    }
}

/// Losses that the engine serves: with class indices, and with masks.
fn losses() -> Vec<Box<dyn Loss>> {
    let softmax = Activation::Softmax;
    let dice = || DiceLoss::new().activation(softmax);
    let weight = Tensor::from_slice(&[0.5, 1.0, 2.0]);
    let all = CrossEntropyLoss::new().mean_over(MeanOver::All);
    let sum = CrossEntropyLoss::new().reduction(Reduction::Sum);
    vec![
        Box::new(dice()),
        Box::new(dice().measure(OverlapMeasure::Squared).include_background(false)),
        Box::new(DiceLoss::new().activation(Activation::Sigmoid).measure(OverlapMeasure::Minimum)),
        Box::new(JaccardLoss::new().activation(softmax).log_loss(true)),
        Box::new(TverskyLoss::new().activation(Activation::Sigmoid).alpha(0.3)),
        Box::new(GeneralizedDiceLoss::new().activation(softmax)),
        Box::new(DiceCrossEntropyLoss::new()),
        Box::new(DiceCrossEntropyLoss::new().cross_entropy(CrossEntropyLoss::new().weight(weight)).lambda_ce(0.5)),
        Box::new(DiceCrossEntropyLoss::new().cross_entropy(all).overlap(dice().reduction(Reduction::None))),
        Box::new(
            DiceCrossEntropyLoss::new().cross_entropy(sum).overlap(GeneralizedDiceLoss::new().activation(softmax)),
        ),
    ]
}

/// The loss, its gradient, and the gradient of a sum over that.
fn orders(forward: &dyn Fn(&Tensor) -> Tensor, input: &Tensor) -> [Tensor; 3] {
    let leaf = input.detach().copy().set_requires_grad(true);
    let value = forward(&leaf);
    // Squared, so that the gradient of the loss depends on the input as well.
    let gradient = Tensor::run_backward(&[value.square().sum(None)], &[&leaf], true, true).remove(0);
    let direction = Tensor::arange(leaf.numel() as i64, (leaf.kind(), Device::Cpu)).sin().view_as(&leaf);
    let second = Tensor::run_backward(&[(&gradient * direction).sum(None)], &[&leaf], false, false).remove(0);
    [value.detach(), gradient.detach(), second]
}

#[track_caller]
fn assert_orders(actual: &dyn Fn(&Tensor) -> Tensor, expected: &dyn Fn(&Tensor) -> Tensor, name: &str) {
    let logits = input(&[2, 3, 6, 7], Activation::Softmax);
    let actual = with_backend(Backend::Auto, || orders(actual, &logits));
    let expected = with_backend(Backend::Composite, || orders(expected, &logits));
    for (order, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        assert_close(actual, expected, 1e-10, 1e-12, &format!("{name}, order {order}"));
    }
}

#[test]
fn losses_are_those_of_tensor_operations_to_second_order() {
    let size = [2, 3, 6, 7];
    let weight = || Tensor::from_slice(&[0.5, 1.0, 2.0]);
    for target in [classes(&size), uniform(&size, Kind::Double), classes(&size).to_kind(Kind::Int)] {
        for (position, loss) in losses().iter().enumerate().take(6) {
            let forward = |input: &Tensor| loss.forward(input, &target);
            assert_orders(&forward, &forward, &format!("loss {position}"));
        }
        let both = DiceCrossEntropyLoss::new().cross_entropy(CrossEntropyLoss::new().weight(weight()));
        let dice = DiceLoss::new().activation(Activation::Softmax);
        let entropy = CrossEntropyLoss::new().weight(weight());
        let sum = |input: &Tensor| dice.forward(input, &target) + entropy.forward(input, &target);
        assert_orders(&|input| both.forward(input, &target), &sum, "Dice and cross entropy");
    }
}

#[test]
fn lower_precision_is_computed_in_single() {
    let size = [2, 3, 40, 41];
    for (kind, tolerance) in [(Kind::Float, 1.3e-6), (Kind::Half, 1e-3), (Kind::BFloat16, 1.6e-2)] {
        let logits = input(&size, Activation::Softmax).to_kind(kind);
        for target in [classes(&size), uniform(&size, kind)] {
            for (position, loss) in losses().iter().enumerate().filter(|(position, _)| *position != 7) {
                let of = |backend, kind: Kind| {
                    let target = if target.kind() == Kind::Int64 { target.copy() } else { target.to_kind(kind) };
                    let leaf = logits.to_kind(kind).detach().set_requires_grad(true);
                    let value = with_backend(backend, || loss.forward(&leaf, &target));
                    let gradient = Tensor::run_backward(&[value.sum(None)], &[&leaf], false, false).remove(0);
                    [value.detach(), gradient]
                };
                let expected = of(Backend::Composite, Kind::Double).map(|tensor| tensor.to_kind(kind));
                for (actual, expected) in of(Backend::Auto, kind).iter().zip(&expected) {
                    let scale = expected.abs().max().double_value(&[]);
                    let name = format!("{kind:?}, loss {position}");
                    assert_close(actual, expected, tolerance, tolerance * scale, &name);
                }
            }
        }
    }
}

#[test]
fn large_logits_have_a_finite_loss() {
    let size = [1, 3, 5, 6];
    let logits = (randint(3, size) - 1).to_kind(Kind::Float) * 1e4;
    let target = classes(&size);
    for loss in losses().iter().take(7) {
        let leaf = logits.copy().set_requires_grad(true);
        let value = with_backend(Backend::Auto, || loss.forward(&leaf, &target));
        value.backward();
        assert!(value.double_value(&[]).is_finite());
        assert_eq!(leaf.grad().isfinite().all().int64_value(&[]), 1);
    }
}

#[test]
fn a_gradient_is_computed_for_what_needs_one() {
    let size = [1, 3, 5, 6];
    let (logits, masks) = (input(&size, Activation::Softmax), uniform(&size, Kind::Double));
    for loss in losses() {
        for [of_input, of_target] in [[false, false], [true, false], [false, true], [true, true]] {
            let results = [Backend::Auto, Backend::Composite].map(|backend| {
                let input = logits.copy().set_requires_grad(of_input);
                let target = masks.copy().set_requires_grad(of_target);
                let value = with_backend(backend, || loss.forward(&input, &target)).sum(None);
                assert_eq!(value.requires_grad(), of_input || of_target);
                if value.requires_grad() {
                    value.backward();
                }
                [input.grad(), target.grad()]
            });
            let [actual, expected] = &results;
            for ((actual, expected), needed) in actual.iter().zip(expected).zip([of_input, of_target]) {
                assert_eq!((actual.defined(), expected.defined()), (needed, needed));
                if needed {
                    assert_close(actual, expected, 1e-10, 1e-14, "gradient");
                }
            }
        }
    }
}

#[test]
fn a_target_changed_before_the_backward_pass_is_an_error() {
    let size = [1, 2, 5, 6];
    let (input, mut target) = (input(&size, Activation::Softmax).set_requires_grad(true), classes(&size));
    let loss = with_backend(Backend::Auto, || DiceLoss::new().activation(Activation::Softmax).forward(&input, &target));
    let _ = target.fill_(0);
    assert!(loss.f_backward().is_err());
}
