//! Functions with a backward of their own, on every device: libtorch runs the backward of each GPU on a thread of its own.

#![allow(clippy::disallowed_methods)] // Functions of users call what they like.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tch::{Device, Tensor, no_grad};
use tch_losses::LossError;
use tch_losses::autograd::{Context, Function, Gradients, f_precomputed};

use common::devices;
use common::random::rand;

fn leaf(values: &[f64], device: Device) -> Tensor {
    Tensor::from_slice(values).to_device(device).set_requires_grad(true)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_device(Device::Cpu)).unwrap()
}

/// x² with its gradient written by hand, differentiable as often as one likes.
fn square(x: &Tensor) -> Tensor {
    let value = no_grad(|| x.square());
    let attached = Function::new(&[x]).save(&[x]).f_attach_one(value, |context| {
        let (x, grad) = (&context.saved()[0], context.grad(0).unwrap());
        Ok(vec![Some(x.f_mul(&grad)?.f_mul_scalar(2.0)?)])
    });
    attached.unwrap()
}

#[test]
fn values_and_gradients() {
    for device in devices() {
        let x = leaf(&[1.0, -3.0], device);
        let y = square(&x);
        assert_eq!(values(&y), [1.0, 9.0]);
        (y * Tensor::from_slice(&[1.0, 10.0]).to_device(device)).sum(None).backward();
        assert_eq!(values(&x.grad()), [2.0, -60.0]);
    }
}

#[test]
fn a_gradient_can_be_differentiated() {
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
fn several_inputs_and_outputs() {
    for device in devices() {
        let (a, b, c) = (leaf(&[2.0], device), leaf(&[5.0], device), Tensor::from_slice(&[7.0]).to_device(device));
        let outputs = no_grad(|| vec![&a * &b, &a + &c]);
        let attached = Function::new(&[&a, &b, &c]).save(&[&a, &b]).f_attach(outputs, |context| {
            let (a, b) = (&context.saved()[0], &context.saved()[1]);
            let product = context.grad(0);
            let sum = context.grad(1);
            let mut grad_a = sum;
            let mut grad_b = None;
            if let Some(grad) = product {
                let through_product = grad.f_mul(b)?;
                grad_a = Some(match grad_a {
                    Some(grad) => grad.f_add(&through_product)?,
                    None => through_product,
                });
                grad_b = Some(grad.f_mul(a)?);
            }
            Ok(vec![grad_a, grad_b, None])
        });
        let outputs = attached.unwrap();
        let only_first = Tensor::run_backward(&[&outputs[0]], &[&a, &b], true, false);
        assert_eq!((values(&only_first[0]), values(&only_first[1])), (vec![5.0], vec![2.0]));
        let both = Tensor::run_backward(&[&outputs[0] + &outputs[1]], &[&a, &b], true, false);
        assert_eq!((values(&both[0]), values(&both[1])), (vec![6.0], vec![2.0]));
    }
}

#[test]
fn errors_and_panics_come_out_as_errors() {
    for device in devices() {
        let x = leaf(&[1.0, 2.0], device);
        let attach = |backward: fn(Context) -> Gradients| {
            Function::new(&[&x]).f_attach_one(x.detach(), backward).unwrap().sum(None)
        };
        let message = |output: Tensor| LossError::from(output.f_backward().unwrap_err()).to_string();

        let error = attach(|_| Err(LossError::Undefined { argument: "grad" }));
        assert!(message(error).contains("error in a backward function: grad is an undefined tensor"));
        let panic = attach(|_| panic!("at the {}", "disco"));
        assert!(message(panic).contains("panic in a backward function: at the disco"));
        let few = attach(|_| Ok(vec![]));
        assert!(message(few).contains("returned 0 gradients, expected 1"));
        let shape = attach(|context| Ok(vec![context.grad(0).map(|grad| grad.repeat([2]))]));
        assert!(message(shape).contains("invalid gradient at index 0"));
        // The device serves on.
        square(&x).sum(None).backward();
        assert_eq!(values(&x.grad()), [2.0, 4.0]);
    }
}

#[test]
fn a_saved_tensor_must_not_change() {
    for device in devices() {
        let x = leaf(&[1.0], device);
        let inner = &x * 1.0;
        let y = square(&inner);
        let _ = no_grad(|| inner.shallow_clone().g_add_scalar_(1.0));
        let error = y.sum(None).f_backward().unwrap_err().to_string();
        assert!(error.contains("modified by an inplace operation"), "{error}");
    }
}

#[test]
fn the_graph_can_be_kept() {
    for device in devices() {
        let x = leaf(&[3.0], device);
        let y = square(&x).sum(None);
        for _ in 0..2 {
            assert_eq!(values(&Tensor::run_backward(&[&y], &[&x], true, false)[0]), [6.0]);
        }
        Tensor::run_backward(&[&y], &[&x], false, false);
        let error = Tensor::f_run_backward(&[&y], &[&x], false, false).unwrap_err().to_string();
        assert!(error.contains("backward through the graph a second time"), "{error}");
    }
}

/// Counts how many of it are alive.
struct Guard(Arc<AtomicUsize>);

impl Guard {
    fn new(alive: &Arc<AtomicUsize>) -> Guard {
        alive.fetch_add(1, Ordering::SeqCst);
        Guard(alive.clone())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn closures_are_dropped() {
    for device in devices() {
        let alive = Arc::new(AtomicUsize::new(0));
        let x = leaf(&[1.0], device);
        let attach = |input: &Tensor| {
            let guard = Guard::new(&alive);
            let backward = move |context: Context| {
                let _ = &guard;
                Ok(vec![context.grad(0)])
            };
            Function::new(&[input]).f_attach_one(input.detach(), backward).unwrap()
        };
        // With the graph, without a backward pass.
        drop(attach(&x));
        assert_eq!(alive.load(Ordering::SeqCst), 0);
        // After a backward pass, though the output lives on.
        let output = attach(&x);
        assert_eq!(alive.load(Ordering::SeqCst), 1);
        output.sum(None).backward();
        assert_eq!(alive.load(Ordering::SeqCst), 0);
        // Where no graph is wanted.
        let plain = attach(&x.detach());
        let off = no_grad(|| attach(&x));
        assert!(!plain.requires_grad() && !off.requires_grad());
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn undefined_tensors_are_errors() {
    let error = Function::new(&[&Tensor::new()]).f_attach_one(Tensor::from(1.0), |_| Ok(vec![None])).unwrap_err();
    assert_eq!(error.to_string(), "input is an undefined tensor");
}

#[test]
fn a_constant_has_no_gradient_to_precompute() {
    let x = Tensor::from(1.0).set_requires_grad(true);
    let constant = f_precomputed(&[&x], |inputs| Ok(inputs[0].f_detach()?)).unwrap();
    assert!(!constant.requires_grad());
}

#[test]
fn a_precomputed_gradient_is_that_of_the_composition() {
    for device in devices() {
        let composition = |inputs: &[Tensor]| -> Result<Tensor, LossError> {
            Ok(inputs[0].f_sigmoid()?.f_mul(&inputs[1])?.f_mean(None)?)
        };
        let random = || rand([20]).to_device(device).set_requires_grad(true);
        let (x, y) = (random(), random());
        let direction = rand([20]).to_device(device);
        // The square makes the incoming gradient depend on the inputs.
        let both = |value: Tensor| {
            let first = Tensor::run_backward(&[value.square() * 3.0], &[&x, &y], true, true);
            let second = Tensor::run_backward(&[(&first[0] * &direction).sum(None)], &[&x, &y], true, false);
            first.into_iter().chain(second).map(|tensor| tensor.detach().copy()).collect::<Vec<_>>()
        };
        let precomputed = both(f_precomputed(&[&x, &y], composition).unwrap());
        let plain = both(composition(&[x.shallow_clone(), y.shallow_clone()]).unwrap());
        for (precomputed, plain) in precomputed.iter().zip(&plain) {
            assert!(precomputed.allclose(plain, 1e-12, 1e-14, false));
        }
    }
}

/// What a closure holds is dropped after the backward pass, on whichever thread that ran.
#[test]
fn closures_run_on_the_thread_of_the_device_and_are_dropped() {
    for device in devices() {
        let held = Arc::new(AtomicUsize::new(0));
        let (kept, (sender, receiver)) = (held.clone(), std::sync::mpsc::channel());
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
