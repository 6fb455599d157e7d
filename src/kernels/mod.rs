//! Fused engines: a loss and its gradient in one pass over memory.
//!
//! An engine takes a formula and does the rest: threads, vector instructions, reduction, kinds, layouts, the graph. What it
//! does not take, and second derivatives, go to the composite of tensor operations that defines the loss.

// Engines read and write the memory of tensors.
#![allow(unsafe_code)]

use tch::Tensor;

use crate::LossError;

mod backend;
mod element;
mod memory;
mod number;
mod parallel;
mod pointwise;
mod simd;
mod softmax;

use element::{Element, elements};

pub use backend::{Backend, with_backend};
pub use memory::set_gradient_cache;
pub(crate) use number::{Real, choose, sigmoids};
pub(crate) use pointwise::{Pointwise, Weighted, f_pointwise};
pub(crate) use softmax::{RowLoss, RowReduction, Rows, f_softmax};

/// How many elements are worked on at a time; a few arrays of so many numbers fit the first cache.
const BLOCK: usize = 1024;

/// A gradient that was computed for a gradient of one, times `grad`; in place where nobody else has it.
fn f_scaled<T: Element>(mut gradient: Tensor, grad: &Tensor, own: bool) -> Result<Tensor, LossError> {
    if elements::<T>(grad)[0].to_f64() == 1.0 {
        return Ok(gradient);
    }
    Ok(if own { gradient.f_mul_(grad)? } else { gradient.f_mul(grad)? })
}
