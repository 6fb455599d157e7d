//! The Rust side of `node.cpp`: the functions that it exports, and the callbacks that it calls.

use std::any::Any;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::{Closure, Context, call};
use crate::LossError;

/// A `std::string` of C++.
#[repr(C)]
struct Text {
    _private: [u8; 0],
}

/// The callback of a backward pass; see [`run`].
type Backward = unsafe extern "C" fn(
    *const c_void,
    *mut *mut C_tensor,
    usize,
    *mut *mut C_tensor,
    usize,
    *mut *mut C_tensor,
    usize,
    *mut Text,
) -> bool;

unsafe extern "C" {
    fn tch_losses_set_text(text: *mut Text, bytes: *const c_char, length: usize);
    fn tch_losses_grad_enabled() -> bool;
    fn tch_losses_keep_graph() -> bool;
    fn tch_losses_attach(
        outputs: *mut *mut C_tensor,
        output_count: usize,
        inputs: *const *const C_tensor,
        input_count: usize,
        saved: *const *const C_tensor,
        saved_count: usize,
        once: bool,
        closure: *mut c_void,
        backward: Backward,
        drop: unsafe extern "C" fn(*mut c_void),
        report: unsafe extern "C" fn(*mut c_void, *const c_char, usize),
        report_context: *mut c_void,
    ) -> bool;
}

/// Whether operations build a graph on this thread.
pub(crate) fn grad_enabled() -> bool {
    // SAFETY: reads a thread-local flag of libtorch.
    unsafe { tch_losses_grad_enabled() }
}

/// Whether the backward pass that runs on this thread keeps its graph.
pub(super) fn keep_graph() -> bool {
    // SAFETY: reads a flag of the backward pass that this thread works on; libtorch answers true where there is none.
    unsafe { tch_losses_keep_graph() }
}

/// Drops the payload of a panic. The destructor of the payload may panic itself.
pub(crate) fn drop_payload(payload: Box<dyn Any + Send>) {
    if let Err(next) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // The payload of that panic may panic when it is dropped, and so on. To leak it ends the chain.
        std::mem::forget(next);
    }
}

/// Attaches `closure` to `outputs`, which have no graph. `once` says that its gradients cannot be differentiated.
pub(super) fn f_attach(
    outputs: &mut [Tensor],
    inputs: &[&Tensor],
    saved: &[&Tensor],
    once: bool,
    closure: Box<Closure>,
) -> Result<(), LossError> {
    let mut outputs: Vec<*mut C_tensor> = outputs.iter_mut().map(Tensor::as_mut_ptr).collect();
    let pointers = |tensors: &[&Tensor]| tensors.iter().map(|tensor| tensor.as_ptr()).collect::<Vec<_>>();
    let (inputs, saved) = (pointers(inputs), pointers(saved));
    // Boxed twice, because a pointer to a `dyn` is two words, and C++ holds one.
    let closure = Box::into_raw(Box::new(closure)).cast();
    let mut message = String::new();
    // SAFETY: the pointers are those of tensors that are borrowed for the call, with their true counts. The closure's
    // pointer comes from `Box::into_raw` of the type that `run` and `release` take it for; C++ owns it from here on and
    // releases it once. `message` outlives the call, and `report` is only called during it.
    let attached = unsafe {
        tch_losses_attach(
            outputs.as_mut_ptr(),
            outputs.len(),
            inputs.as_ptr(),
            inputs.len(),
            saved.as_ptr(),
            saved.len(),
            once,
            closure,
            run,
            release,
            report,
            (&raw mut message).cast(),
        )
    };
    if attached { Ok(()) } else { Err(TchError::Torch(message).into()) }
}

/// Calls the closure for C++.
///
/// # Safety
/// `closure` is that of `f_attach`. `grads` and `saved` are heap-allocated tensors that the callee owns, null for an
/// undefined gradient; `results` are places for such tensors; `error` is a string.
unsafe extern "C" fn run(
    closure: *const c_void,
    grads: *mut *mut C_tensor,
    grad_count: usize,
    saved: *mut *mut C_tensor,
    saved_count: usize,
    results: *mut *mut C_tensor,
    result_count: usize,
    error: *mut Text,
) -> bool {
    // SAFETY: see above; each tensor is taken over exactly once, and a null pointer is not made into a tensor.
    let (closure, grads, saved) = unsafe {
        let take = |pointers: *mut *mut C_tensor, position: usize| {
            let pointer = *pointers.add(position);
            (!pointer.is_null()).then(|| Tensor::from_ptr(pointer))
        };
        let grads: Vec<Option<Tensor>> = (0..grad_count).map(|position| take(grads, position)).collect();
        let saved: Vec<Tensor> = (0..saved_count).filter_map(|position| take(saved, position)).collect();
        (&*closure.cast::<Box<Closure>>(), grads, saved)
    };
    match call(closure, Context { grads, saved }, result_count) {
        Ok(gradients) => {
            for (position, gradient) in gradients.into_iter().enumerate() {
                if let Some(mut gradient) = gradient.filter(Tensor::defined) {
                    // SAFETY: `call` returns `result_count` gradients; C++ owns what is put there.
                    unsafe { *results.add(position) = gradient.as_mut_ptr() };
                    std::mem::forget(gradient);
                }
            }
            true
        }
        Err(message) => {
            // SAFETY: the bytes are copied during the call.
            unsafe { tch_losses_set_text(error, message.as_ptr().cast(), message.len()) };
            false
        }
    }
}

/// Drops the closure for C++.
///
/// # Safety
/// `closure` is that of `f_attach`, and this is the last use of it.
unsafe extern "C" fn release(closure: *mut c_void) {
    // SAFETY: see above. A panic of a destructor must not unwind into C++.
    let closure = unsafe { Box::from_raw(closure.cast::<Box<Closure>>()) };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(closure))) {
        drop_payload(payload);
    }
}

/// Takes an error text from C++.
///
/// # Safety
/// `message` is the `String` of `f_attach`, and `bytes` are `length` readable bytes.
unsafe extern "C" fn report(message: *mut c_void, bytes: *const c_char, length: usize) {
    // SAFETY: see above.
    let (message, bytes) =
        unsafe { (&mut *message.cast::<String>(), std::slice::from_raw_parts(bytes.cast(), length)) };
    *message = String::from_utf8_lossy(bytes).into_owned();
}
