//! The crate on a GPU against stored results of PyTorch: the engines, the tensor operations, and each of them twice.

mod common;

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use common::Golden;
use parity::bench::ours::Ours;
use parity::bench::workloads::{Dtype, Size, Workload, workloads};
use parity::compare::{Sides, Verdict, compare_case};
use parity::eval::{evaluate, run_adapter};
use parity::results::{Results, Status};
use tch::{Cuda, Device, Kind, Tensor};
use tch_losses::{Backend, with_backend};

/// Losses in which libtorch adds with atomic operations on CUDA, so that a second run may add in another order.
fn is_repeatable(reference: &str) -> bool {
    const ATOMIC: &[&str] = &["CTC", "ctc", "pytorch_metric_learning", "pml", "NLLLoss2d"];
    !ATOMIC.iter().any(|part| reference.contains(part))
}

/// What has been told the log, and by what.
static TOLD: Mutex<Vec<[String; 2]>> = Mutex::new(Vec::new());

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        let told = [record.target().to_owned(), record.args().to_string()];
        TOLD.lock().unwrap_or_else(PoisonError::into_inner).push(told);
    }

    fn flush(&self) {}
}

/// Listens to the log from now on.
fn listen() {
    log::set_max_level(log::LevelFilter::Warn);
    // Another test may be the first one.
    let _ = log::set_logger(&Logger);
}

fn told_by(name: &str) -> Vec<String> {
    let told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    told.iter().filter(|[by, _]| by.starts_with(name)).map(|[_, text]| text.clone()).collect()
}

/// The results on a GPU. Each case is named before it is computed: one that does not end is the last one.
fn results_of(golden: &Golden, backend: Backend) -> Results {
    let name = |place: usize| {
        if let Some(case) = golden.cases.get(place) {
            println!("{backend:?}: {}", case.id);
        }
    };
    let mut done = 0;
    name(done);
    let next = || {
        done += 1;
        name(done);
    };
    with_backend(backend, || evaluate(&golden.cases, &golden.tensors, Device::Cuda(0), &run_adapter, next)).unwrap()
}

fn check(backend: Backend) {
    if !Cuda::is_available() {
        println!("left out: there is no GPU");
        return;
    }
    listen();
    let golden = Golden::read();
    let results = results_of(&golden, backend);
    let failed: Vec<_> = golden
        .compare(&results)
        .into_iter()
        .filter_map(|(case, verdict)| match verdict {
            Verdict::Failed(reason) => Some((&case.id, reason)),
            _ => None,
        })
        .collect();
    assert!(failed.is_empty(), "{} of {} cases differ: {failed:#?}", failed.len(), golden.cases.len());
    let again = results_of(&golden, backend);
    let changed: Vec<&String> = results.tensors.keys().filter(|key| !is_same(&results, &again, key)).collect();
    assert!(changed.is_empty(), "{} results are others in a second run: {changed:#?}", changed.len());
    // Tensor operations compute what no kernel does, and so the results are right without any.
    let told = told_by("tch_losses");
    assert!(told.is_empty(), "kernels were not used: {told:?}");
}

/// Whether a tensor has the same bits in two results.
fn is_same(results: &Results, again: &Results, key: &str) -> bool {
    let [first, second] = [results, again].map(|results| &results.tensors[key]);
    let bits = |tensor: &Tensor| tensor.to_device(Device::Cpu).nan_to_num(0.25, None, None);
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

/// An element that is not what it is in double precision, by the scale of all of them: the gradients of a mean over a
/// million elements are below any fixed tolerance. What tensor operations are off as far may be so.
fn wrong_element(actual: &Tensor, expected: &Tensor, truth: &Tensor) -> Option<String> {
    let relative = match expected.kind() {
        Kind::Double => 1e-9,
        Kind::Float => 2e-5,
        _ => 1.6e-2,
    };
    let [a, e, t] = [actual, expected, truth].map(|tensor| tensor.to_kind(Kind::Double).flatten(0, -1));
    // Infinities are equal and have no difference.
    let far = |x: &Tensor| (x - &t).abs().masked_fill(&x.eq_tensor(&t), 0.0);
    let size = t.nan_to_num(0.0, 0.0, 0.0).abs();
    let scale = size.square().mean(Kind::Double).sqrt();
    let allowed = ((size + scale) * relative).maximum(&(far(&e) * 2.0).nan_to_num(0.0, None, None));
    let [a_is, e_is, t_is] = [&a, &e, &t].map(|tensor| tensor.isnan());
    let other_nan = a_is.logical_xor(&e_is).logical_and(&a_is.logical_xor(&t_is));
    let wrong = far(&a).gt_tensor(&allowed).logical_or(&other_nan);
    let place = wrong.to_kind(Kind::Uint8).argmax(0, false).int64_value(&[]);
    let [a, e, t] = [a, e, t].map(|tensor| tensor.double_value(&[place]));
    (wrong.int64_value(&[place]) != 0).then(|| format!("element {place} is {a:e}, by tensor operations {e:e}, {t:e}"))
}

/// The results of the engines beside those of tensor operations on the same device, which may be less near to those in
/// double precision.
fn of_both(workload: &Workload, device: Device) -> Result<Verdict> {
    let inputs = workload.inputs()?.f_to_device(device)?;
    let (case, id, wide) = (workload.case(&inputs)?, workload.id(), inputs.f_to_double()?);
    let by = |backend, inputs| with_backend(backend, || Ours::new(workload, inputs)?.results(&id, inputs));
    let (expected, actual) = (by(Backend::Composite, &inputs)?, by(Backend::Auto, &inputs)?);
    let truth = by(Backend::Composite, &wide)?;
    for (key, actual) in &actual.tensors {
        if let Some(wrong) = wrong_element(actual, &expected.tensors[key], &truth.tensors[key]) {
            return Ok(Verdict::Failed(format!("{key}: {wrong}")));
        }
    }
    let (expected, actual, truth) = (&expected, &actual, Some(&truth));
    Ok(compare_case(&case, Sides { expected, actual, truth, bitwise: false, backend: Backend::Auto }))
}

/// Those of all losses. Each is named before it is computed, and a failure is told at once.
fn assert_of_both(sizes: &[Size], dtype: Dtype, device: Device) {
    let mut failed = 0;
    for workload in workloads(None, sizes, dtype) {
        println!("{} {} {}", dtype.name(), workload.name, workload.shape());
        match of_both(&workload, device) {
            Ok(Verdict::Equal(_)) => {}
            other => {
                failed += 1;
                println!("FAILED: {other:?}");
            }
        }
    }
    assert_eq!(failed, 0, "{} losses differ", dtype.name());
}

#[test]
fn engines_equal_tensor_operations_in_all_sizes() {
    if !Cuda::is_available() {
        return assert_of_both(&[Size::Small], Dtype::F32, Device::Cpu);
    }
    listen();
    let device = Device::Cuda(0);
    // What takes longest comes last.
    for (sizes, dtype) in [
        (&[Size::Tiny, Size::Small][..], Dtype::F32),
        (&[Size::Medium], Dtype::Bf16),
        (&[Size::Medium], Dtype::F64),
        (&[Size::Large], Dtype::F32),
    ] {
        assert_of_both(sizes, dtype, device);
    }
    let told = told_by("tch_losses");
    assert!(told.is_empty(), "kernels were not used: {told:?}");
}

#[test]
fn a_wrong_element_is_found() {
    let truth = Tensor::from_slice(&[1e-7, -2e-7, f64::INFINITY, f64::NAN]);
    let single = truth.to_kind(Kind::Float);
    assert_eq!(wrong_element(&single, &single, &truth), None);
    for (place, other) in [(0, 1.001e-7), (1, 0.0), (2, 1e30), (3, 0.0), (0, f64::NAN)] {
        let actual = single.copy();
        let _ = actual.get(place).fill_(other);
        let found = wrong_element(&actual, &single, &truth).expect("it is wrong");
        assert!(found.starts_with(&format!("element {place} ")), "{found}");
    }
    let less_near = Tensor::from_slice(&[1.002e-7_f32, -2e-7, f32::INFINITY, f32::NAN]);
    let nearer = Tensor::from_slice(&[1.001e-7_f32, -2e-7, f32::INFINITY, f32::NAN]);
    assert_eq!(wrong_element(&nearer, &less_near, &truth), None);
}

#[test]
fn what_the_crate_tells_is_heard() {
    listen();
    log::warn!("heard");
    assert_eq!(told_by(module_path!()), ["heard"]);
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
