//! Losses of sums over the pixels of each class.

use tch::{Kind, Tensor};

use super::compare::{KINDS, assert_as_composite, assert_sources_compile, results, unaligned};
use super::{LAUNCHED, emulated, rand, randn};
use crate::random::randint;
use crate::{
    Activation, Backend, CrossEntropyLoss, DiceCrossEntropyLoss, DiceLoss, FocalTverskyLoss, GeneralizedDiceLoss,
    Grouping, InvalidValues, JaccardLoss, Loss, MeanOver, OverlapMeasure, Reduction, TverskyLoss, with_backend,
};

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Sigmoid, Activation::Softmax];

fn of_pair(loss: impl Loss) -> impl Fn(&[Tensor]) -> Tensor {
    move |tensors| loss.f_forward(&tensors[0], &tensors[1]).unwrap()
}

fn input(shape: &[i64], activation: Activation) -> Tensor {
    if activation == Activation::None { rand(shape) } else { randn(shape) * 3.0 }
}

/// Class indices, soft masks, and masks of integers, for an input of this shape.
fn targets(shape: &[i64]) -> [Tensor; 3] {
    let indices = randint(shape[1], [&shape[..1], &shape[2..]].concat());
    [indices, rand(shape), randint(2, shape).to_kind(Kind::Uint8)]
}

#[test]
fn every_measure_and_activation_is_taken() {
    for shape in [&[2, 3, 5, 7][..], &[1, 2, 1100], &[1, 1, 4, 4]] {
        for activation in ACTIVATIONS {
            if activation == Activation::Softmax && shape[1] == 1 {
                continue;
            }
            for measure in [OverlapMeasure::Product, OverlapMeasure::Squared, OverlapMeasure::Minimum] {
                for target in targets(shape).into_iter().take(if measure == OverlapMeasure::Product { 3 } else { 2 }) {
                    let name = format!("{measure:?} {activation:?} {:?}", target.kind());
                    let tensors = [input(shape, activation), target];
                    let loss = DiceLoss::new().measure(measure).activation(activation);
                    assert_as_composite(&name, &tensors, &[0], &of_pair(loss));
                }
            }
        }
    }
    assert_sources_compile();
}

/// libtorch runs the backward pass of a GPU on a thread of its own, where nobody has chosen a backend.
#[test]
fn a_backward_pass_stays_on_the_device_of_its_forward_pass() {
    let (input, target) = (randn([1, 2, 4, 5]).set_requires_grad(true), randint(2, [1, 4, 5]));
    let loss = emulated(|| DiceLoss::new().activation(Activation::Softmax).f_forward(&input, &target).unwrap());
    LAUNCHED.take();
    with_backend(Backend::Composite, || loss.backward());
    assert_eq!(LAUNCHED.take().last(), Some(&c"region_gradient"));
}

#[test]
fn every_kind_and_place_is_taken() {
    for kind in KINDS {
        for (activation, reduction) in ACTIVATIONS.into_iter().zip([Reduction::Mean, Reduction::None, Reduction::Sum]) {
            let shape = [2, 3, 9, 5];
            for target in targets(&shape).into_iter().take(2) {
                let target = if target.is_floating_point() { target.to_kind(kind) } else { target };
                let tensors = [input(&shape, activation).to_kind(kind), target];
                let loss = || of_pair(JaccardLoss::new().activation(activation).reduction(reduction));
                let name = format!("jaccard {activation:?} {reduction:?} {:?}", tensors[1].kind());
                assert_as_composite(&name, &tensors, &[0], &loss());
                assert_as_composite(&name, &tensors.each_ref().map(unaligned), &[0], &loss());
            }
        }
    }
    let strided = randn([2, 9, 5, 3]).permute([0, 3, 1, 2]);
    let indices = randint(3, [2, 5, 9]).transpose(1, 2);
    let loss = || of_pair(DiceLoss::new().activation(Activation::Softmax));
    for own in [Kind::Uint8, Kind::Int, Kind::Int64] {
        let tensors = [strided.copy(), indices.to_kind(own)];
        assert_as_composite(&format!("strides of {own:?}"), &tensors, &[0], &loss());
    }
    assert_sources_compile();
}

#[test]
fn options_of_regions_are_taken() {
    let shape = [2, 4, 6, 9];
    let [indices, masks, _] = targets(&shape);
    let with_ignored = indices.where_self(&rand([2, 6, 9]).lt(0.8), &(indices.zeros_like() + 255));
    let logits = randn(shape) * 3.0;
    for activation in [Activation::Sigmoid, Activation::Softmax] {
        let tensors = [logits.copy(), with_ignored.copy()];
        let loss = DiceLoss::new().activation(activation).ignore_index(255);
        assert_as_composite("ignored indices", &tensors, &[0], &of_pair(loss));
        let ignored = masks.where_self(&rand(shape).lt(0.8), &(masks.zeros_like() - 1.0));
        let tensors = [logits.copy(), ignored];
        let loss = DiceLoss::new().activation(activation).ignore_index(-1);
        assert_as_composite("ignored masks", &tensors, &[0], &of_pair(loss));
    }
    let softmax = Activation::Softmax;
    for grouping in [Grouping::SampleAndClass, Grouping::Class, Grouping::Sample, Grouping::All] {
        let tensors = [logits.copy(), indices.copy()];
        let loss = TverskyLoss::new().alpha(0.3).beta(0.6).activation(softmax).grouping(grouping);
        assert_as_composite(&format!("tversky {grouping:?}"), &tensors, &[0], &of_pair(loss));
        let loss = DiceLoss::new().activation(softmax).grouping(grouping).include_background(false).log_loss(true);
        assert_as_composite(&format!("logarithm {grouping:?}"), &tensors, &[0], &of_pair(loss));
    }
    for tensors in [[logits.copy(), indices.copy()], [logits.copy(), masks.copy()]] {
        let loss = FocalTverskyLoss::new().activation(softmax);
        assert_as_composite("focal tversky", &tensors, &[0], &of_pair(loss));
        let loss = GeneralizedDiceLoss::new().activation(softmax);
        assert_as_composite("generalized dice", &tensors, &[0], &of_pair(loss));
    }
    assert_sources_compile();
}

#[test]
fn the_cross_entropy_is_summed_up_along() {
    let shape = [2, 4, 31, 37];
    let [indices, masks, _] = targets(&shape);
    let ignored = indices.where_self(&rand([2, 31, 37]).lt(0.8), &(indices.zeros_like() - 100));
    for kind in [Kind::Double, Kind::BFloat16] {
        for weight in [None, Some(rand([4]))] {
            for mean_over in [MeanOver::Counted, MeanOver::All] {
                for target in [&indices, &masks, &ignored] {
                    let target = if target.is_floating_point() { target.to_kind(kind) } else { target.copy() };
                    let ignores = target.size() != shape
                        && target.eq_tensor(&(target.zeros_like() - 100)).any().int64_value(&[]) != 0;
                    let mut entropy = CrossEntropyLoss::new().mean_over(mean_over);
                    if let Some(weight) = &weight {
                        entropy = entropy.weight(weight.to_kind(kind));
                    }
                    let mut loss = DiceCrossEntropyLoss::new().cross_entropy(entropy).lambda_ce(0.7);
                    if ignores {
                        loss = loss.ignore_index(-100);
                    }
                    let name = format!("dice and cross entropy, {kind:?} {mean_over:?} {ignores}");
                    let tensors = [(randn(shape) * 3.0).to_kind(kind), target];
                    assert_as_composite(&name, &tensors, &[0], &of_pair(loss));
                }
            }
        }
    }
    assert_sources_compile();
}

/// Weights whose memory does not hold them one beside the other, or with the other sign.
#[test]
fn weights_are_read_as_they_are_meant() {
    let weights = [
        rand([8]).slice(0, None, None, 2),
        (rand([1]) + 0.5).expand([4], false),
        rand([4]).neg().internal_neg_view(),
        Tensor::internal_efficientzerotensor([4], (Kind::Double, rand([1]).device())),
    ];
    for weight in weights {
        let cross_entropy = CrossEntropyLoss::new().weight(weight.shallow_clone());
        let tensors = [randn([2, 4, 5, 7]), randint(4, [2, 5, 7])];
        let name = format!("{:?}", weight.stride());
        // Zeros alone have no mean.
        let sum = cross_entropy.clone().reduction(Reduction::Sum);
        assert_as_composite(&name, &tensors, &[0], &of_pair(sum));
        let loss = DiceCrossEntropyLoss::new().cross_entropy(cross_entropy);
        if !weight.internal_is_zerotensor() {
            assert_as_composite(&name, &tensors, &[0], &of_pair(loss));
        }
    }
}

#[test]
fn a_backward_pass_has_the_weights_of_its_forward_pass() {
    let target = randint(4, [2, 5, 7]);
    let logits = randn([2, 4, 5, 7]);
    let gradient = |is_emulated: bool, factor: f64| {
        let weight = Tensor::from_slice(&[0.5, 2.0, 1.0, 0.25]);
        let loss = DiceCrossEntropyLoss::new().cross_entropy(CrossEntropyLoss::new().weight(weight.shallow_clone()));
        let input = logits.detach().set_requires_grad(true);
        let compute = || loss.f_forward(&input, &target).unwrap();
        let loss = if is_emulated { emulated(compute) } else { with_backend(Backend::Auto, compute) };
        let _ = weight.shallow_clone().g_mul_scalar_(factor);
        Tensor::run_backward(&[loss], &[&input], false, false).remove(0)
    };
    for is_emulated in [false, true] {
        let [expected, actual] = [1.0, 3.0].map(|factor| gradient(is_emulated, factor));
        assert!(actual.equal(&expected), "emulated: {is_emulated}");
    }
}

/// A class index, a mask or a probability out of its range makes the loss NaN and its gradient 0.
#[test]
fn a_value_out_of_its_range_makes_the_loss_nan() {
    let shape = [2, 3, 5, 7];
    let [indices, masks, _] = targets(&shape);
    let _ = indices.get(1).get(2).get(3).fill_(3);
    let _ = masks.get(1).get(2).get(3).get(0).fill_(1.5);
    let probabilities = rand(shape);
    let _ = probabilities.get(0).get(0).get(0).get(0).fill_(-0.5);
    let logits = || randn(shape);
    for mode in [InvalidValues::Error, InvalidValues::Nan] {
        for reduction in [Reduction::None, Reduction::Mean] {
            let dice = |activation| DiceLoss::new().activation(activation).invalid_values(mode).reduction(reduction);
            let none = || DiceLoss::new().invalid_values(mode).reduction(reduction);
            let calls: [(&str, [Tensor; 2], DiceLoss); 3] = [
                ("index", [logits(), indices.copy()], dice(Activation::Softmax)),
                ("mask", [logits(), masks.copy()], dice(Activation::Sigmoid)),
                ("probability", [probabilities.copy(), rand(shape)], none()),
            ];
            for (name, tensors, loss) in calls {
                let all = emulated(|| results(&tensors, &[0], &|tensors| loss.forward(&tensors[0], &tensors[1])));
                assert!(all[0].isnan().all().int64_value(&[]) != 0, "{name} {mode:?} {reduction:?}");
                assert_eq!(all[1].abs().max().double_value(&[]), 0.0, "{name} {mode:?} {reduction:?}");
            }
        }
    }
    let loss = DiceCrossEntropyLoss::new();
    let tensors = [logits(), indices];
    let all = emulated(|| results(&tensors, &[0], &|tensors| loss.forward(&tensors[0], &tensors[1])));
    assert!(all[0].isnan().all().int64_value(&[]) != 0);
    assert_eq!(all[1].abs().max().double_value(&[]), 0.0);
}

#[test]
fn infinite_logits_and_ignored_ones_are_as_in_tensor_operations() {
    let shape = [1, 3, 4, 8];
    let target = randint(3, [1, 4, 8]);
    let _ = target.get(0).get(0).get(0).fill_(255);
    let logits = randn(shape);
    // What an ignored pixel holds does not matter; a class may be impossible.
    let _ = logits.get(0).get(1).get(0).get(0).fill_(f64::NAN);
    let _ = logits.get(0).get(0).get(2).get(2).fill_(f64::NEG_INFINITY);
    let _ = target.get(0).get(2).get(2).fill_(1);
    let loss = || DiceLoss::new().activation(Activation::Softmax).ignore_index(255);
    let compute = of_pair(loss());
    assert_as_composite("infinite", &[logits.copy(), target.copy()], &[0], &compute);
    let sum = of_pair(DiceCrossEntropyLoss::new().overlap(loss()).ignore_index(255));
    assert_as_composite("infinite, with cross entropy", &[logits, target], &[0], &sum);
    let second = with_backend(Backend::Auto, || emulated(|| second_derivative(&of_pair(loss()))));
    let expected = with_backend(Backend::Composite, || second_derivative(&of_pair(loss())));
    assert!(second.allclose(&expected, 1e-10, 1e-12, false));
}

/// The gradient of the gradient's length, which comes from tensor operations.
fn second_derivative(compute: &dyn Fn(&[Tensor]) -> Tensor) -> Tensor {
    let logits = (Tensor::arange(96, (Kind::Double, tch::Device::Cpu)) * 1.7).sin().view([1, 3, 4, 8]);
    let logits = logits.set_requires_grad(true);
    let target = (Tensor::arange(32, (Kind::Int64, tch::Device::Cpu)) * 5).remainder(3).view([1, 4, 8]);
    let loss = compute(&[logits.shallow_clone(), target]);
    let gradient = Tensor::run_backward(&[loss], &[&logits], true, true).remove(0);
    Tensor::run_backward(&[gradient.square().sum(None)], &[&logits], false, false).remove(0)
}
