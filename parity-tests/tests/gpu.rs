//! The crate on a GPU against stored results of PyTorch: the engines, the tensor operations, and each of them twice.

mod common;

use common::Golden;
use parity::compare::Verdict;
use parity::eval::run_adapter;
use parity::results::{Results, Status};
use tch::{Cuda, Device};
use tch_losses::{Backend, with_backend};

/// Losses in which libtorch adds with atomic operations on CUDA, so that a second run may add in another order.
fn is_repeatable(reference: &str) -> bool {
    const ATOMIC: &[&str] = &["CTC", "ctc", "pytorch_metric_learning", "pml", "NLLLoss2d"];
    !ATOMIC.iter().any(|part| reference.contains(part))
}

fn check(backend: Backend) {
    if !Cuda::is_available() {
        println!("left out: there is no GPU");
        return;
    }
    let device = Device::Cuda(0);
    let golden = Golden::read();
    let results = with_backend(backend, || golden.evaluate(device, &run_adapter));
    let failed: Vec<_> = golden
        .compare(&results)
        .into_iter()
        .filter_map(|(case, verdict)| match verdict {
            Verdict::Failed(reason) => Some((&case.id, reason)),
            _ => None,
        })
        .collect();
    assert!(failed.is_empty(), "{} of {} cases differ: {failed:#?}", failed.len(), golden.cases.len());
    let again = with_backend(backend, || golden.evaluate(device, &run_adapter));
    let changed: Vec<&String> = results.tensors.keys().filter(|key| !is_same(&results, &again, key)).collect();
    assert!(changed.is_empty(), "{} results are others in a second run: {changed:#?}", changed.len());
}

/// Whether a tensor has the same bits in two results.
fn is_same(results: &Results, again: &Results, key: &str) -> bool {
    let [first, second] = [results, again].map(|results| &results.tensors[key]);
    let bits = |tensor: &tch::Tensor| tensor.to_device(Device::Cpu).nan_to_num(0.25, None, None);
    !is_repeatable(key) || bits(first).equal(&bits(second))
}

#[test]
fn tensor_operations_on_a_gpu_equal_the_golden_results() {
    check(Backend::Composite);
}

#[test]
fn engines_on_a_gpu_equal_the_golden_results_every_time() {
    check(Backend::Auto);
}

#[test]
fn results_are_compared() {
    let golden = Golden::read();
    let results = golden.evaluate(Device::Cpu, &run_adapter);
    assert!(results.cases.values().any(|case| case.status == Status::Ok));
    let mut other = golden.evaluate(Device::Cpu, &run_adapter);
    let key = results.tensors.keys().find(|key| key.contains("MSELoss") && key.ends_with("output/0")).unwrap();
    assert!(is_same(&results, &other, key));
    let moved = &other.tensors[key] + 1e-3;
    other.tensors.insert(key.clone(), moved);
    assert!(!is_same(&results, &other, key));
}
