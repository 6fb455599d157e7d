//! Losses that keep their gradient have the gradients of the same loss that keeps its graph.

mod common;

use tch::{Device, Kind, Tensor};
use tch_losses::*;

use common::random::{rand, randint};

/// A loss as a function of its input, its target and the tensors among its options.
type Composition<'a> = &'a dyn Fn(&[Tensor]) -> Tensor;

fn random(shape: &[i64]) -> Tensor {
    rand(shape) * 0.8 + 0.1
}

fn indices() -> Tensor {
    randint(3, [2, 4])
}

/// The value, the gradients, and the gradients of a product with the first gradient, of three times the loss.
fn derivatives(loss: Composition, arguments: &[Tensor]) -> Vec<Tensor> {
    let arguments: Vec<Tensor> = arguments.iter().map(Tensor::copy).collect();
    let leaves: Vec<Tensor> = arguments.iter().filter(|tensor| tensor.is_floating_point()).map(leaf).collect();
    let value = loss(&arguments) * 3.0;
    let first = Tensor::run_backward(&[&value], &leaves, true, true);
    let direction = Tensor::linspace(-1.0, 1.0, first[0].numel() as i64, (Kind::Double, Device::Cpu));
    let product = (first[0].reshape(-1) * direction).sum(None);
    let second = Tensor::run_backward(&[product], &leaves, true, false);
    let all = [value].into_iter().chain(first).chain(second);
    all.map(|tensor| if tensor.defined() { tensor.detach().copy() } else { Tensor::from(0.0) }).collect()
}

fn leaf(tensor: &Tensor) -> Tensor {
    tensor.set_requires_grad(true)
}

fn assert_same(name: &str, precomputed: Composition, plain: Composition, arguments: &[Tensor]) {
    let (actual, expected) = (derivatives(precomputed, arguments), derivatives(plain, arguments));
    for (position, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        assert!(actual.allclose(expected, 1e-10, 1e-13, false), "{name}, {position}: {actual}, not {expected}");
    }
}

#[test]
fn focal_losses_have_gradients_for_all_tensors() {
    let classes = || random(&[3]);
    let sigmoid = |t: &[Tensor], reduction| {
        let [input, target, alpha, weight, pos_weight] = t else { unreachable!() };
        let loss = SigmoidFocalLoss::new().alpha(alpha.shallow_clone()).weight(weight.view([3, 1]));
        let loss = loss.pos_weight(pos_weight.view([3, 1])).normalization(FocalNormalization::PerClass);
        loss.mask(input.detach().gt(0.3)).reduction(reduction).forward(input, target)
    };
    let softmax = |t: &[Tensor], reduction| {
        let [input, target, alpha, weight] = t else { unreachable!() };
        let loss = SoftmaxFocalLoss::new().alpha(alpha.shallow_clone()).weight(weight.shallow_clone());
        loss.label_smoothing(0.1).reduction(reduction).forward(input, target)
    };
    let one_vs_rest = |t: &[Tensor], reduction| {
        let [input, target, alpha, weight] = t else { unreachable!() };
        let loss = OneVsRestFocalLoss::new().alpha(alpha.shallow_clone()).weight(weight.shallow_clone());
        loss.ignore_index(1).reduction(reduction).forward(input, target)
    };
    let shape = [2, 3, 4];
    let of_masks = [random(&shape), random(&shape), classes(), classes(), classes()];
    let of_indices = [random(&shape), indices(), classes(), classes()];
    let (sum, none) = (Reduction::Sum, Reduction::None);
    assert_same("sigmoid", &|t| sigmoid(t, sum), &|t| sigmoid(t, none).sum(None), &of_masks);
    assert_same("softmax", &|t| softmax(t, sum), &|t| softmax(t, none).sum(None), &of_indices);
    assert_same("one-vs-rest", &|t| one_vs_rest(t, sum), &|t| one_vs_rest(t, none).sum(None), &of_indices);
}

#[test]
fn sums_with_dice_have_gradients_for_all_tensors() {
    let shape = [2, 3, 4];
    let sigmoid = Activation::Sigmoid;
    let dice = |weight: &Tensor| DiceLoss::new().activation(sigmoid).weight(weight.shallow_clone());
    // libtorch has no gradient for the weights of this part.
    let entropy = || BceWithLogitsLoss::new().pos_weight(Tensor::from(0.5));
    let sum = |t: &[Tensor]| {
        let loss = DiceCrossEntropyLoss::new().overlap(dice(&t[2])).cross_entropy(entropy());
        loss.lambda_dice(0.5).forward(&t[0], &t[1])
    };
    let parts = |t: &[Tensor]| dice(&t[2]).forward(&t[0], &t[1]) * 0.5 + entropy().forward(&t[0], &t[1]);
    assert_same("Dice and BCE", &sum, &parts, &[random(&shape), random(&shape), random(&[3])]);

    let tversky = |weight: &Tensor| {
        TverskyLoss::new().alpha(0.2).beta(0.7).activation(Activation::Softmax).weight(weight.shallow_clone())
    };
    let focal = |weight: &Tensor| SoftmaxFocalLoss::new().weight(weight.shallow_clone()).reduction(Reduction::None);
    let sum = |t: &[Tensor]| {
        let focal = focal(&t[3]).reduction(Reduction::Sum);
        DiceFocalLoss::new().overlap(tversky(&t[2])).focal(focal).forward(&t[0], &t[1])
    };
    let parts = |t: &[Tensor]| tversky(&t[2]).forward(&t[0], &t[1]) + focal(&t[3]).forward(&t[0], &t[1]).sum(None);
    assert_same("Tversky and focal", &sum, &parts, &[random(&shape), indices(), random(&[3]), random(&[3])]);
}

/// The gradient of a mean over many elements underflows in half precision; that is what its scale is for.
#[test]
fn in_half_precision_a_scale_keeps_the_gradient() {
    const SCALE: f64 = 16384.0;
    let gradient = |loss: &dyn Loss, kind, target: &Tensor| {
        let input = Tensor::linspace(-2.0, 2.0, 1 << 18, (Kind::Float, Device::Cpu)).to_kind(Kind::Half).to_kind(kind);
        let input = input.view([1, 2, -1]).set_requires_grad(true);
        // In double precision, because the scaled loss itself may not fit.
        (loss.forward(&input, target).to_kind(Kind::Double) * SCALE).backward();
        input.grad().to_kind(Kind::Float)
    };
    let masks = Tensor::ones([1, 2, 1 << 17], (Kind::Bool, Device::Cpu));
    let indices = Tensor::zeros([1, 1 << 17], (Kind::Int64, Device::Cpu));
    let losses: [(&dyn Loss, &Tensor); 4] = [
        (&SigmoidFocalLoss::new(), &masks),
        (&SoftmaxFocalLoss::new(), &indices),
        (&OneVsRestFocalLoss::new(), &indices),
        (&DiceCrossEntropyLoss::new(), &indices),
    ];
    for (loss, target) in losses {
        let (half, single) = (gradient(loss, Kind::Half, target), gradient(loss, Kind::Float, target));
        assert!(half.allclose(&single, 1e-3, 1e-6, false), "{half} {single}");
        let lost = half.eq(0).logical_and(&single.abs().gt(1e-6)).any();
        assert_eq!(lost.int64_value(&[]), 0, "a gradient underflowed");
    }
}

/// libtorch does not survive a backward pass from a tensor without a graph.
#[test]
fn a_composition_without_a_graph_has_gradients_of_zero() {
    use tch_losses::autograd::f_precomputed;
    let numbers = |tensor: &Tensor| Vec::<f64>::try_from(tensor.detach()).unwrap();
    let x = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
    // The second time there is no graph.
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let forgetful = move |inputs: &[Tensor]| {
        let first = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        let sum = inputs[0].f_square()?.f_sum(Kind::Double)?;
        if first { Ok(sum) } else { Ok(sum.f_detach()?) }
    };
    let value = f_precomputed(&[&x], forgetful).unwrap();
    let first = Tensor::run_backward(&[&value], &[&x], true, true).remove(0);
    assert_eq!(numbers(&first), [2.0, 4.0]);
    assert_eq!(numbers(&Tensor::run_backward(&[first.sum(None)], &[&x], true, true)[0]), [0.0, 0.0]);

    // An input that the value does not depend on.
    let other = Tensor::from_slice(&[3.0, 4.0]).set_requires_grad(true);
    let value = f_precomputed(&[&x, &other], |inputs| Ok(inputs[0].f_square()?.f_sum(Kind::Double)?)).unwrap();
    let first = Tensor::run_backward(&[&value], &[&x, &other], true, true);
    assert_eq!(first.iter().map(numbers).collect::<Vec<_>>(), [[2.0, 4.0], [0.0, 0.0]]);
    for ((gradient, input), expected) in first.iter().zip([&x, &other]).zip([[2.0, 2.0], [0.0, 0.0]]) {
        assert_eq!(numbers(&Tensor::run_backward(&[gradient.sum(None)], &[input], true, false)[0]), expected);
    }
}

#[test]
fn what_is_no_scalar_cannot_be_precomputed() {
    use tch_losses::autograd::f_precomputed;
    let x = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
    let message =
        |loss: fn(&[Tensor]) -> Result<Tensor, LossError>| f_precomputed(&[&x], loss).unwrap_err().to_string();
    assert_eq!(message(|inputs| Ok(inputs[0].f_square()?)), "loss has shape [2], expected [], a scalar");
    assert_eq!(message(|inputs| Ok(inputs[0].f_narrow(0, 0, 0)?)), "loss has shape [0], expected [], a scalar");
    assert_eq!(message(|_| Ok(Tensor::new())), "loss is an undefined tensor");
    assert_eq!(message(|_| Err(LossError::custom("not today"))), "not today");
    let complex = |inputs: &[Tensor]| Ok(Tensor::f_complex(&inputs[0], &inputs[0])?.f_sum(None)?);
    assert!(message(complex).contains("expected a floating kind"));
    let none = f_precomputed(&[&x, &Tensor::new()], |inputs| Ok(inputs[0].f_sum(None)?)).unwrap_err();
    assert_eq!(none.to_string(), "input is an undefined tensor");
    // One number is a scalar in any shape.
    let value =
        f_precomputed(&[&x], |inputs| Ok(inputs[0].f_square()?.f_sum(Kind::Double)?.f_reshape([1, 1])?)).unwrap();
    (&value * 3.0).sum(None).backward();
    assert_eq!((value.size(), Vec::<f64>::try_from(x.grad()).unwrap()), (vec![1, 1], vec![6.0, 12.0]));
}
