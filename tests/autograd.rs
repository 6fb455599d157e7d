//! Functions with a backward of their own, on every device: libtorch runs the backward of each GPU on a thread of its own.

#![allow(clippy::disallowed_methods)] // Functions of users call what they like.

mod common;

use std::cell::RefCell;
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

/// A closure need not be `Sync`: what it owns is one thread's at a time.
#[test]
fn a_closure_is_entered_by_one_thread_at_a_time() {
    for device in devices() {
        let x = leaf(&[1.0, 2.0], device);
        let (inside, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, most) = (calls.clone(), inside.clone());
        let lines = RefCell::new(Vec::new());
        let backward = move |context: Context| {
            let together = most.fetch_add(1, Ordering::SeqCst);
            let mut lines = lines.borrow_mut();
            for line in 0..50 {
                lines.push(format!("a line on the heap, and another one: {line}"));
            }
            lines.clear();
            thread::yield_now();
            counted.fetch_add(1, Ordering::SeqCst);
            most.fetch_sub(1, Ordering::SeqCst);
            if together > 0 { Err(LossError::custom("together")) } else { Ok(vec![context.grad(0)]) }
        };
        let output = Function::new(&[&x]).f_attach_one(x.detach(), backward).unwrap().sum(None);
        let precomputed = {
            let log = RefCell::new(Vec::new());
            let loss = move |inputs: &[Tensor]| {
                let mut log = log.borrow_mut();
                log.push(format!("{:?}", inputs[0]));
                Ok(inputs[0].f_pow_tensor_scalar(3)?.f_sum(None)?)
            };
            f_precomputed(&[&x], loss).unwrap()
        };
        thread::scope(|scope| {
            for _ in 0..2 {
                let (output, precomputed, x) = (output.shallow_clone(), precomputed.shallow_clone(), x.shallow_clone());
                scope.spawn(move || {
                    for _ in 0..200 {
                        let gradient = Tensor::run_backward(&[&output], &[&x], true, false).remove(0);
                        assert_eq!(values(&gradient), [1.0, 1.0]);
                        let gradient = Tensor::run_backward(&[&precomputed], &[&x], true, true).remove(0);
                        assert_eq!(values(&gradient.detach()), [3.0, 12.0]);
                    }
                });
            }
        });
        assert_eq!((calls.load(Ordering::SeqCst), inside.load(Ordering::SeqCst)), (400, 0));
    }
}

/// Its thread may come back to it.
#[test]
fn a_closure_may_run_a_backward_pass_through_itself() {
    let x = leaf(&[2.0], Device::Cpu);
    let depth = Arc::new(AtomicUsize::new(0));
    let again: Arc<std::sync::Mutex<Option<Tensor>>> = Arc::default();
    let (output, reached) = (again.clone(), depth.clone());
    let backward = move |context: Context| {
        if reached.fetch_add(1, Ordering::SeqCst) < 3 {
            let inner = output.lock().unwrap().as_ref().unwrap().shallow_clone();
            let x = context.saved()[0].shallow_clone();
            let gradient = Tensor::f_run_backward(&[inner], &[&x], true, false)?.remove(0);
            return Ok(vec![Some(gradient.f_add(&context.grad(0).unwrap())?)]);
        }
        Ok(vec![context.grad(0)])
    };
    let output = Function::new(&[&x]).save(&[&x]).f_attach_one(x.detach(), backward).unwrap();
    *again.lock().unwrap() = Some(output.shallow_clone());
    assert_eq!(values(&Tensor::run_backward(&[&output], &[&x], true, false)[0]), [4.0]);
    // The tensor holds the closure, and that the tensor.
    again.lock().unwrap().take();
}

/// Panics when it is dropped, as often as that happens.
struct Bomb(u32);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 > 0 {
            std::panic::panic_any(Bomb(self.0 - 1));
        }
    }
}

#[test]
fn what_a_panic_throws_may_panic_when_it_is_dropped() {
    for device in devices() {
        let x = leaf(&[1.0], device);
        for depth in 0..4 {
            let output = Function::new(&[&x]).f_attach_one(x.detach(), move |_| std::panic::panic_any(Bomb(depth)));
            let error = output.unwrap().sum(None).f_backward().unwrap_err().to_string();
            assert!(error.contains("panic in a backward function: without a message"), "{error}");
            // And so may what the closure owns.
            let owned = Bomb(depth);
            let backward = move |context: Context| {
                let _ = &owned;
                Ok(vec![context.grad(0)])
            };
            drop(Function::new(&[&x]).f_attach_one(x.detach(), backward).unwrap());
        }
    }
}

#[test]
fn what_can_be_differentiated_once_says_so() {
    for device in devices() {
        let (x, factor) = (leaf(&[1.0, -3.0], device), leaf(&[2.0], device));
        let cube = || {
            let function = Function::new(&[&x]).save(&[&x]).once_differentiable();
            let attached = function.f_attach_one(no_grad(|| x.pow_tensor_scalar(3)), |context| {
                assert!(!context.create_graph());
                let slope = context.saved()[0].f_square()?.f_mul_scalar(3.0)?;
                Ok(vec![context.grad(0).map(|grad| grad.f_mul(&slope)).transpose()?])
            });
            attached.unwrap()
        };
        assert_eq!(values(&Tensor::run_backward(&[cube().sum(None)], &[&x], false, false)[0]), [3.0, 27.0]);
        // The incoming gradient depends on a factor.
        let first = Tensor::run_backward(&[(cube() * &factor).sum(None)], &[&x], true, true).remove(0);
        assert_eq!(values(&first.detach()), [6.0, 54.0]);
        for input in [&x, &factor] {
            let error = Tensor::f_run_backward(&[first.sum(None)], &[input], true, false).unwrap_err().to_string();
            assert!(error.contains("once_differentiable"), "{error}");
        }
        // What does not go through it is differentiated.
        let other = Tensor::run_backward(&[(first.detach() * &x).sum(None)], &[&x], false, false).remove(0);
        assert_eq!(values(&other), [6.0, 54.0]);
    }
}

/// Zeros without memory, which libtorch makes, and views that are negated when they are read.
#[test]
fn gradients_have_memory_of_their_own() {
    for device in devices() {
        let x = leaf(&[1.0, 2.0], device);
        let pass = |x: &Tensor| {
            let backward = |context: Context| {
                let grad = context.grad(0).unwrap();
                assert!(!grad.f_internal_is_zerotensor()? && !grad.f_is_neg()? && !grad.f_is_conj()?);
                Ok(vec![Some(grad)])
            };
            Function::new(&[x]).f_attach_one(x.detach(), backward).unwrap()
        };
        // The derivative of sign(y).
        let y = pass(&x);
        let first = Tensor::run_backward(&[y.abs().sum(None)], &[&y], true, true).remove(0);
        let second = Tensor::run_backward(&[first.sum(None)], &[&x], true, false).remove(0);
        assert_eq!(values(&second), [0.0, 0.0]);
        // A closure that returns such a tensor.
        let output = Function::new(&[&x]).f_attach_one(x.detach(), |context| {
            let grad = context.grad(0).unwrap();
            Ok(vec![Some(Tensor::f_internal_efficientzerotensor(grad.size(), (grad.kind(), grad.device()))?)])
        });
        let gradient = Tensor::run_backward(&[output.unwrap().sum(None)], &[&x], false, false).remove(0);
        assert_eq!(values(&gradient), [0.0, 0.0]);
        // The imaginary part of a conjugate is a negated view.
        let complex = pass(&x);
        let turned = Tensor::complex(&complex, &complex).conj().imag() * 3.0;
        assert_eq!(values(&Tensor::run_backward(&[turned.sum(None)], &[&x], false, false)[0]), [-3.0, -3.0]);
    }
}
