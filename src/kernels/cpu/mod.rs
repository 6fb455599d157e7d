//! The engines of the CPU: loops in vector instructions over the memory of tensors, on libtorch's threads.
//!
//! The words used here (kernel, lane, block, task, wide, plain, dense) are explained in [`kernels`](super).

#[cfg(feature = "detection")]
pub(super) mod boxes;
#[cfg(feature = "classification")]
pub(super) mod class_terms;
#[cfg(feature = "metric")]
pub(super) mod distances;
pub(super) mod elements;
pub(super) mod embedding;
mod kinds;
pub(super) mod label_margin;
mod lane;
pub(super) mod logits;
#[cfg(feature = "image")]
pub(super) mod map;
pub(super) mod margin;
mod memory;
mod narrow;
#[cfg(feature = "segmentation")]
pub(super) mod neighbours;
pub(super) mod output;
#[cfg(any(feature = "metric", feature = "self-supervised"))]
mod pair_labels;
#[cfg(any(feature = "metric", feature = "self-supervised"))]
pub(super) mod pairs;
mod parallel;
pub(super) mod picked;
#[cfg(feature = "image")]
pub(super) mod planes;
pub(super) mod pointwise;
#[cfg(feature = "detection")]
pub(super) mod positions;
#[cfg(feature = "metric")]
mod positives;
#[cfg(feature = "segmentation")]
mod ranks;
#[cfg(feature = "segmentation")]
pub(super) mod region;
pub(super) mod rows;
mod scan;
pub(super) mod simd;
pub(super) mod softmax;
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

pub use memory::set_gradient_cache;
#[cfg(any(feature = "metric", feature = "self-supervised"))]
pub(super) use pair_labels::HostLabels;
pub(crate) use parallel::small_work;
#[cfg(feature = "segmentation")]
pub(crate) use ranks::{Ranks, f_ranks};
pub(crate) use scan::{scan_classes, scan_range};

/// How many elements a block has. A few arrays of so many numbers fit the first-level cache.
const BLOCK: usize = 1024;
