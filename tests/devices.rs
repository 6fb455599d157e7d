//! Functions with a backward of their own on every device: libtorch runs the backward of each GPU on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ThreadId};

use tch::{Cuda, Device, Kind, Tensor, no_grad};
use tch_losses::LossError;
use tch_losses::autograd::{Context, Function, Gradients};

/// The CPU, and the GPU where there is one.
fn devices() -> Vec<Device> {
    let gpu = Cuda::is_available().then_some(Device::Cuda(0));
    [Device::Cpu].into_iter().chain(gpu).collect()
}

fn leaf(values: &[f64], device: Device) -> Tensor {
    Tensor::from_slice(values).to_device(device).set_requires_grad(true)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_device(Device::Cpu)).unwrap()
}

/// x² with its gradient written by hand.
fn square(x: &Tensor) -> Tensor {
    let value = no_grad(|| x.square());
    let attached = Function::new(&[x]).save(&[x]).f_attach_one(value, |context| {
        let (x, grad) = (&context.saved()[0], context.grad(0).unwrap());
        Ok(vec![Some(x.f_mul(&grad)?.f_mul_scalar(2.0)?)])
    });
    attached.unwrap()
}

#[test]
fn gradients_of_first_and_second_order() {
    for device in devices() {
        let x = leaf(&[1.0, -3.0], device);
        let cube = (square(&x) * &x).sum(None);
        let first = Tensor::run_backward(&[cube], &[&x], true, true).remove(0);
        assert_eq!((first.device(), values(&first.detach())), (device, vec![3.0, 27.0]));
        let second = Tensor::run_backward(&[first.sum(None)], &[&x], false, false).remove(0);
        assert_eq!((second.device(), values(&second)), (device, vec![6.0, -18.0]));
    }
}

#[test]
fn errors_and_panics_come_out_as_errors() {
    for device in devices() {
        let x = leaf(&[1.0, 2.0], device);
        let message = |backward: fn(Context) -> Gradients| {
            let output = Function::new(&[&x]).f_attach_one(x.detach(), backward).unwrap();
            output.sum(None).f_backward().unwrap_err().to_string()
        };
        let error = message(|_| Err(LossError::Undefined { argument: "grad" }));
        assert!(error.contains("error in a backward function: grad is an undefined tensor"), "{error}");
        let error = message(|_| panic!("at the {}", "disco"));
        assert!(error.contains("panic in a backward function: at the disco"), "{error}");
        let error = message(|_| Ok(vec![]));
        assert!(error.contains("returned 0 gradients, expected 1"), "{error}");
        // The device serves on.
        square(&x).sum(None).backward();
        assert_eq!(values(&x.grad()), [2.0, 4.0]);
    }
}

#[test]
fn a_saved_tensor_must_not_change() {
    for device in devices() {
        let inner = leaf(&[1.0], device) * 1.0;
        let output = square(&inner);
        let _ = no_grad(|| inner.shallow_clone().g_add_scalar_(1.0));
        let error = output.sum(None).f_backward().unwrap_err().to_string();
        assert!(error.contains("modified by an inplace operation"), "{error}");
    }
}

/// What a closure holds is dropped after the backward pass, on whichever thread that ran.
#[test]
fn closures_run_on_the_thread_of_the_device_and_are_dropped() {
    for device in devices() {
        let held = Arc::new(AtomicUsize::new(0));
        let (kept, (sender, receiver)) = (held.clone(), std::sync::mpsc::channel::<ThreadId>());
        let x = leaf(&[1.0], device);
        let backward = move |context: Context| {
            kept.fetch_add(1, Ordering::SeqCst);
            let _ = sender.send(thread::current().id());
            Ok(vec![context.grad(0)])
        };
        let output = Function::new(&[&x]).f_attach_one(x.detach(), backward).unwrap();
        assert_eq!(Arc::strong_count(&held), 2);
        output.sum(None).backward();
        assert_eq!((held.load(Ordering::SeqCst), Arc::strong_count(&held)), (1, 1));
        let here = receiver.recv().unwrap() == thread::current().id();
        assert_eq!(here, device == Device::Cpu, "the thread of the backward pass on {device:?}");
    }
}

/// Backward passes that several threads start at a time do not disturb each other.
#[test]
fn threads_may_run_backward_at_the_same_time() {
    for device in devices() {
        thread::scope(|scope| {
            for seed in 0..4 {
                scope.spawn(move || {
                    for step in 0..200 {
                        let number = f64::from(seed * 1000 + step);
                        let x = leaf(&[number, 1.0], device);
                        square(&x).sum(None).backward();
                        assert_eq!(values(&x.grad()), [2.0 * number, 2.0]);
                    }
                });
            }
        });
    }
}

/// Class indices out of range would stop all CUDA work of the process with an assertion of the device.
#[test]
fn a_device_survives_values_out_of_range() {
    use tch_losses::{CrossEntropyLoss, InvalidValues, Loss, MultiMarginLoss, NllLoss};
    for device in devices() {
        let input = Tensor::zeros([2, 3], (Kind::Float, device)).set_requires_grad(true);
        let target = Tensor::from_slice(&[1_i64, 3]).to_device(device);
        let losses = |mode| -> [Box<dyn Loss>; 3] {
            [
                Box::new(CrossEntropyLoss::new().invalid_values(mode)),
                Box::new(NllLoss::new().invalid_values(mode)),
                Box::new(MultiMarginLoss::new().invalid_values(mode)),
            ]
        };
        for loss in losses(InvalidValues::Error) {
            let error = loss.f_forward(&input, &target).unwrap_err().to_string();
            assert!(error.contains('3'), "{error}");
        }
        for loss in losses(InvalidValues::Nan) {
            let value = loss.f_forward(&input, &target).unwrap();
            assert!(f64::try_from(&value).unwrap().is_nan());
            assert_eq!(
                f64::try_from(Tensor::run_backward(&[value], &[&input], false, false)[0].abs().sum(None)).unwrap(),
                0.0
            );
        }
        assert_eq!(f64::try_from(Tensor::ones([2], (Kind::Float, device)).sum(None)).unwrap(), 2.0);
    }
}
