//! The engines of CUDA: the formulas of the losses, recorded, written out as CUDA C++ and compiled by NVRTC when they
//! are first called.
//!
//! A call goes the same way as on the CPU, and nothing in it waits for the device: sums, factors and the loss stay
//! there. Whatever keeps an engine from a call (no NVRTC, no driver, another kind) leaves it to tensor operations.

pub(super) mod arguments;
#[cfg(feature = "detection")]
pub(super) mod boxes;
#[cfg(feature = "classification")]
pub(super) mod class_terms;
mod disk;
#[cfg(feature = "metric")]
pub(super) mod distances;
mod driver;
pub(super) mod embedding;
#[cfg(any(test, feature = "emulation"))]
pub(super) mod emulation;
mod engine;
pub(super) mod label_margin;
mod launch;
pub(super) mod logits;
#[cfg(feature = "image")]
pub(super) mod map;
pub(super) mod margin;
mod modules;
#[cfg(feature = "segmentation")]
pub(super) mod neighbours;
mod nvrtc;
#[cfg(any(feature = "metric", feature = "self-supervised"))]
pub(super) mod pair_labels;
#[cfg(any(feature = "metric", feature = "self-supervised"))]
pub(super) mod pairs;
pub(super) mod picked;
#[cfg(feature = "image")]
pub(super) mod planes;
pub(super) mod pointwise;
#[cfg(feature = "segmentation")]
pub(super) mod region;
pub(super) mod rows;
pub(super) mod softmax;
mod source;
#[cfg(test)]
mod tests;
#[cfg(feature = "metric")]
pub(super) mod triplets;
#[cfg(feature = "metric")]
pub(super) mod unit;
#[cfg(feature = "image")]
pub(super) mod variation;
#[cfg(feature = "classification")]
pub(super) mod views;
#[cfg(feature = "image")]
pub(super) mod window;

use tch::{Device, Tensor};

use super::backend;
use crate::autograd;
use crate::numeric::is_half;

/// Whether the loss of this tensor has another kind than the tensor: single precision, of half precision under autocast.
fn is_autocast(first: &Tensor) -> bool {
    first.f_kind().is_ok_and(is_half) && autograd::autocasts(first.device())
}

/// Whether the engines of CUDA are asked for a call with this first argument, those that have results of its kind alone
/// among them.
pub(super) fn is_asked(first: &Tensor) -> bool {
    is_asked_for_any_result(first) && !is_autocast(first)
}

/// The same of engines that have results of another kind as well, which go through [`engine::f_fused`].
pub(super) fn is_asked_for_any_result(first: &Tensor) -> bool {
    #[cfg(any(test, feature = "emulation"))]
    if emulation::is_emulated() {
        return backend::is_auto();
    }
    backend::is_auto() && matches!(first.device(), Device::Cuda(_))
}
