//! New tensors for gradients, in memory that a gradient before them had.
//!
//! The allocator of the C library gives blocks of 32 MiB and more back to the system at once. Getting them anew, page by
//! page, takes longer than to compute a gradient into them.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::LossError;

/// From this size on the allocator of the C library keeps nothing.
const LARGE: usize = 32 << 20;

unsafe extern "C" {
    fn tch_losses_empty_like(like: *const C_tensor) -> *mut C_tensor;
    fn tch_losses_set_cache_limit(bytes: usize);
}

/// Sets how much memory of freed gradients is kept on the CPU for the next ones, in bytes. 256 MiB by default; 0 keeps none
/// and frees what is kept.
///
/// Only gradients of 32 MiB and more are kept, of losses computed by a fused engine.
pub fn set_gradient_cache(bytes: usize) {
    // SAFETY: takes a number.
    unsafe { tch_losses_set_cache_limit(bytes) }
}

/// A new tensor like `tensor`, which is on the CPU and has neither gaps nor overlaps.
pub(super) fn f_empty_like(tensor: &Tensor) -> Result<Tensor, LossError> {
    let bytes = tensor.numel() * tensor.f_kind()?.elt_size_in_bytes();
    if bytes >= LARGE {
        // SAFETY: the tensor is borrowed for the call; what comes back is owned by nobody else.
        unsafe {
            let pointer = tch_losses_empty_like(tensor.as_ptr());
            if !pointer.is_null() {
                return Ok(Tensor::from_ptr(pointer));
            }
        }
    }
    Ok(tensor.f_empty_like()?)
}
