//! The choice between fused engines and tensor operations: by process, by thread, by what the processor can.

use std::cell::Cell;
use std::sync::OnceLock;

use tch::{Device, Tensor};

use super::cpu::simd::has_vectors;
use crate::autograd;
use crate::scoped::replaced;

/// What computes the losses that have a fused engine: the engine, or libtorch's tensor operations.
///
/// The environment variable `TCH_LOSSES_BACKEND` chooses it for the whole process: `auto`, the default, or `composite`.
/// [`with_backend`] overrides that for a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Backend {
    /// An engine where one takes the call, otherwise tensor operations. The default, except where this crate was
    /// compiled without optimisation: an engine would be slower than libtorch there, so none is compiled in, unless
    /// `TCH_LOSSES_BACKEND` was `auto` in the environment of the build.
    ///
    /// An engine takes no call on a processor without its vector instructions: on x86-64 those of 2013, AVX2 and FMA.
    #[default]
    Auto,
    /// Tensor operations, always: those of PyTorch, with results equal bit by bit.
    Composite,
}

thread_local! {
    static CHOSEN: Cell<Option<Backend>> = const { Cell::new(None) };
    static LIKE_CUDA: Cell<bool> = const { Cell::new(false) };
}

/// Calls `work` with a backend for the losses that it computes on this thread.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Backend, Loss, MseLoss, with_backend};
///
/// let (input, target) = (Tensor::from_slice(&[1.0, 2.0]), Tensor::from_slice(&[1.0, 4.0]));
/// let loss = with_backend(Backend::Composite, || MseLoss::new().forward(&input, &target));
/// assert_eq!(f64::try_from(loss)?, 2.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn with_backend<T>(backend: Backend, work: impl FnOnce() -> T) -> T {
    replaced(&CHOSEN, Some(backend), work)
}

/// Calls `work`, in which losses of tensors on the CPU are computed by the tensor operations that those on CUDA are
/// computed by. For tests on a machine without a GPU.
#[doc(hidden)]
pub fn like_cuda<T>(work: impl FnOnce() -> T) -> T {
    with_backend(Backend::Composite, || replaced(&LIKE_CUDA, true, work))
}

/// Whether the host has to wait for a device to look at the numbers of a tensor.
pub(crate) fn waits(tensor: &Tensor) -> bool {
    #[cfg(any(test, feature = "emulation"))]
    if super::cuda::emulation::is_emulated() {
        return true;
    }
    tensor.device() != Device::Cpu || LIKE_CUDA.get()
}

/// Whether the CPU's engines are to be used on this thread: the backend is `Auto`, and the processor has the vector
/// instructions.
pub(super) fn fused() -> bool {
    // Under autocast libtorch's operations choose the kind of a loss.
    is_auto() && has_vectors() && !autograd::autocasts(Device::Cpu)
}

/// Whether engines are to be used on this thread, where the device has them.
pub(super) fn is_auto() -> bool {
    CHOSEN.get().unwrap_or_else(of_process) == Backend::Auto
}

/// The backend that the environment chooses, read once.
fn of_process() -> Backend {
    static BACKEND: OnceLock<Backend> = OnceLock::new();
    *BACKEND.get_or_init(|| match std::env::var("TCH_LOSSES_BACKEND").as_deref() {
        Ok("composite") => Backend::Composite,
        Ok("auto") => Backend::Auto,
        Ok(other) => {
            log::warn!("TCH_LOSSES_BACKEND is '{other}', expected 'auto' or 'composite'; taken for 'auto'");
            default()
        }
        Err(_) => default(),
    })
}

/// The backend where the environment names none. `build.rs` sets `tch_losses_unoptimised`.
fn default() -> Backend {
    if cfg!(tch_losses_unoptimised) { Backend::Composite } else { Backend::Auto }
}
