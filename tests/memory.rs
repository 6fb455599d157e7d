//! What a loss keeps for its backward pass, as growth of the process's resident memory over the forward pass.
//!
//! There is one test, because resident memory is of the process and not of a test.
#![cfg(target_os = "linux")]

mod common;

use std::process::Command;

use tch::{Device, Kind, Tensor};
use tch_losses::*;

use common::status;

/// So many that a tensor of one number for each has pages of its own, which go back to the system when it is freed:
/// malloc does that above 32 MiB.
const PIXELS: i64 = 9 << 20;
const CLASSES: i64 = 2;

/// The bytes that a result holds, besides its arguments, in those of `input`.
fn kept(forward: impl Fn(&Tensor) -> Tensor, input: &Tensor) -> f64 {
    // The first call starts threads and fills caches.
    drop(forward(&input.narrow(2, 0, 8)));
    let before = status("VmRSS:");
    let result = forward(input);
    let growth = status("VmRSS:") - before;
    drop(result);
    growth / (input.numel() * size_of::<f32>()) as f64
}

/// Whether this is a process in which malloc gives back what is freed. Elsewhere the test is run in such a process: malloc keeps
/// blocks below a threshold, which grows with what is freed.
fn frees_at_once() -> bool {
    const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";
    if std::env::var_os(THRESHOLD).is_some() {
        return true;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    assert!(again.args(std::env::args().skip(1)).env(THRESHOLD, "65536").status().unwrap().success());
    false
}

#[test]
fn losses_keep_little_more_than_their_gradient() {
    if !frees_at_once() {
        return;
    }
    // What is kept for the next gradient is not kept by a loss.
    set_gradient_cache(0);
    let shape = [1, CLASSES, PIXELS];
    let input = Tensor::rand(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let masks = Tensor::ones(shape, (Kind::Float, Device::Cpu));
    let indices = Tensor::ones([1, PIXELS], (Kind::Int64, Device::Cpu));
    let of_masks = |loss: &dyn Loss, input: &Tensor| loss.forward(input, &masks.narrow(2, 0, input.size()[2]));
    let of_indices = |loss: &dyn Loss, input: &Tensor| loss.forward(input, &indices.narrow(1, 0, input.size()[2]));

    // The measure sees what a graph keeps: here the results of all operations but the logarithm and the sum.
    let energy = |input: &Tensor| input.sigmoid().square().log1p().exp().sum(Kind::Float);
    let plain = kept(energy, &input);
    assert!((2.9..3.5).contains(&plain), "a graph that keeps three tensors keeps {plain:.2} times its input");
    // And that nothing is kept where no gradient is needed.
    let none = kept(|input| of_masks(&SigmoidFocalLoss::new(), input), &input.detach());
    assert!(none < 0.1, "without a gradient {none:.2} times the input is kept");

    // An engine computes the gradient of regions from the arguments.
    let dice = || DiceLoss::new().activation(Activation::Softmax);
    let fused = |forward: &dyn Fn() -> f64| with_backend(Backend::Auto, forward);
    let engines = [
        ("DiceLoss", fused(&|| kept(|input| of_indices(&dice(), input), &input))),
        ("DiceLoss of masks", fused(&|| kept(|input| of_masks(&dice(), input), &input))),
        ("DiceCrossEntropyLoss", fused(&|| kept(|input| of_indices(&DiceCrossEntropyLoss::new(), input), &input))),
    ];
    for (loss, times) in engines {
        assert!(times < 0.1, "{loss} keeps {times:.2} times its input, but its engine needs nothing");
    }

    let background = || DiceLoss::new().activation(Activation::Softmax).include_background(false);
    let composite = |forward: &dyn Fn(&Tensor) -> Tensor| with_backend(Backend::Composite, || kept(forward, &input));
    let measured = [
        ("SigmoidFocalLoss", 2.0, kept(|input| of_masks(&SigmoidFocalLoss::new(), input), &input)),
        ("SoftmaxFocalLoss", 2.0, kept(|input| of_indices(&SoftmaxFocalLoss::new(), input), &input)),
        ("OneVsRestFocalLoss", 2.0, kept(|input| of_indices(&OneVsRestFocalLoss::new(), input), &input)),
        ("DiceCrossEntropyLoss", 2.5, composite(&|input| of_indices(&DiceCrossEntropyLoss::new(), input))),
        ("DiceCrossEntropyLoss of masks", 2.5, composite(&|input| of_masks(&DiceCrossEntropyLoss::new(), input))),
        ("DiceFocalLoss", 2.5, kept(|input| of_masks(&DiceFocalLoss::new().overlap(background()), input), &input)),
    ];
    for (loss, limit, times) in measured {
        println!("{loss} keeps {times:.2} times its input");
        assert!(times <= limit, "{loss} keeps {times:.2} times its input, more than {limit}");
        assert!(times >= 0.9, "{loss} keeps {times:.2} times its input, less than its gradient");
    }
}
