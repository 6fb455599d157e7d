//! Weights that PyTorch saved load into the losses with parameters, and give PyTorch's loss.

use std::path::{Path, PathBuf};

use parity::case::read_tensors;
use tch::{Device, Tensor, nn};
use tch_losses::{
    AdaptiveLogSoftmaxConfig, AdaptiveLogSoftmaxWithLoss, LinearCrossEntropyConfig, LinearCrossEntropyLoss, Loss,
};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/modules").join(format!("{name}.safetensors"))
}

/// Builds a module, loads it and compares its loss with PyTorch's.
fn assert_same_loss<M>(name: &str, build: impl Fn(&nn::Path) -> M, loss: impl Fn(&M, &Tensor, &Tensor) -> Tensor) {
    let mut store = nn::VarStore::new(Device::Cpu);
    let module = build(&store.root());
    store.load(file(name)).unwrap();
    let call = read_tensors(&file(&format!("{name}.call"))).unwrap();
    let loss = loss(&module, &call["input"], &call["target"]);
    assert!(loss.allclose(&call["loss"], 1.3e-6, 1e-5, false), "{loss:?}, expected {:?}", call["loss"]);
}

#[test]
fn adaptive_log_softmax() {
    let config = AdaptiveLogSoftmaxConfig::new().div_value(2.0).head_bias(true);
    assert_same_loss(
        "adaptive_log_softmax",
        |path| AdaptiveLogSoftmaxWithLoss::new(path, 8, 20, &[4, 10], config),
        |module, input, target| module.forward(input, target).loss,
    );
}

#[test]
fn linear_cross_entropy() {
    assert_same_loss(
        "linear_cross_entropy",
        |path| LinearCrossEntropyLoss::new(path, 8, 20, LinearCrossEntropyConfig::new().bias(true)),
        |module, input, target| module.forward(input, target),
    );
}
