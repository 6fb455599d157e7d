//! New tensors for losses and gradients, in memory that freed ones have left.
//!
//! The allocator of the C library gives large blocks back to the system. Getting them anew, page by page, takes as long
//! as to compute a gradient into them. So `memory.cpp` keeps them for the next tensor of the same size.

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::LossError;
use crate::autograd::Header;

/// Memory of this many bytes and more is kept: from about this size on the allocator of the C library may give it back
/// to the system.
const LARGE: usize = 1 << 20;

unsafe extern "C" {
    fn tch_losses_empty(like: *const C_tensor, sizes: *const i64, strides: *const i64, dims: usize) -> *mut C_tensor;
    fn tch_losses_set_cache_limit(bytes: usize);
}

/// Sets how much memory of freed gradients is kept on the CPU for the next ones, in bytes: 256 MiB by default. 0 keeps
/// none and frees what is kept.
///
/// Only the memory of tensors of 1 MiB and more is kept, which fused engines have made.
pub fn set_gradient_cache(bytes: usize) {
    // SAFETY: takes a number.
    unsafe { tch_losses_set_cache_limit(bytes) }
}

/// A new tensor of the size, layout and kind of `tensor`, which is dense and on the CPU. Its elements have no values
/// yet.
pub(super) fn f_empty_like(tensor: &Tensor) -> Result<Tensor, LossError> {
    if is_large(Header::of(tensor).elements(), tensor.f_kind()?)
        && let Some(empty) = kept(tensor, &tensor.size(), &tensor.stride())
    {
        return Ok(empty);
    }
    Ok(tensor.f_empty_like()?)
}

/// A new contiguous tensor, whose elements have no values yet.
pub(super) fn f_empty(size: &[i64], kind: Kind) -> Result<Tensor, LossError> {
    let options = (kind, Device::Cpu);
    // A count that overflows is left to libtorch, which returns an error.
    let count = size.iter().try_fold(1_i64, |count, size| count.checked_mul(*size));
    if let Some(mut step) = count.filter(|count| is_large(*count as usize, kind)) {
        let strides = size.iter().map(|size| {
            step /= size;
            step
        });
        if let Some(empty) = kept(&Tensor::f_empty(0, options)?, size, &strides.collect::<Vec<_>>()) {
            return Ok(empty);
        }
    }
    Ok(Tensor::f_empty(size, options)?)
}

fn is_large(count: usize, kind: Kind) -> bool {
    count >= LARGE.div_ceil(kind.elt_size_in_bytes())
}

/// A new tensor of the kind of `like`, in kept memory where a block of its size is there, else in new memory. `None`
/// where the system has no memory.
fn kept(like: &Tensor, size: &[i64], strides: &[i64]) -> Option<Tensor> {
    assert_eq!(size.len(), strides.len());
    // SAFETY: all is borrowed for the call, both slices are of that length; what comes back is owned by nobody else.
    let pointer = unsafe { tch_losses_empty(like.as_ptr(), size.as_ptr(), strides.as_ptr(), size.len()) };
    // SAFETY: see above.
    (!pointer.is_null()).then(|| unsafe { Tensor::from_ptr(pointer) })
}
