//! Fused engines: a loss and its gradient in one pass over memory.
//!
//! An engine takes a formula and does the rest: threads, vector instructions, reduction, kinds, layouts, the graph. What it
//! does not take, and second derivatives, go to the composite of tensor operations that defines the loss.

// Engines read and write the memory of tensors.
#![allow(unsafe_code)]
// Several arrays with one index are what the compiler makes vector instructions of.
#![allow(clippy::needless_range_loop)]

use tch::{Device, Tensor};

mod backend;
mod element;
mod memory;
mod number;
mod parallel;
mod pointwise;
mod region;
mod simd;
mod softmax;
mod window;

pub use backend::{Backend, with_backend};
pub use memory::set_gradient_cache;
pub(crate) use number::{Real, choose, sigmoids};
pub(crate) use pointwise::{Pointwise, Weighted, f_pointwise};
pub(crate) use region::{Entropy, Regional, Sums, f_region, takes_region};
pub(crate) use softmax::{RowLoss, RowReduction, Rows, f_softmax};
pub(crate) use window::f_slide;

/// How many elements are worked on at a time; a few arrays of so many numbers fit the first cache.
const BLOCK: usize = 1024;

/// Whether engines are used for this input.
pub(crate) fn takes(input: &Tensor) -> bool {
    backend::fused() && input.device() == Device::Cpu
}
