//! The engines of the CPU: loops in vector instructions over the memory of tensors, on libtorch's threads.
//!
//! The words used here (kernel, lane, block, task, wide, plain, dense) are explained in [`kernels`](super).

mod boxes;
mod class_terms;
mod distances;
pub(super) mod elements;
mod embedding;
mod kinds;
mod label_margin;
mod lane;
mod logits;
mod map;
mod margin;
mod memory;
mod narrow;
mod neighbours;
pub(super) mod output;
mod pair_labels;
mod pairs;
mod parallel;
mod picked;
pub(super) mod pointwise;
mod positions;
mod positives;
mod ranks;
mod region;
mod rows;
mod scan;
pub(super) mod simd;
mod softmax;
mod triplets;
mod unit;
mod variation;
mod views;
mod window;

pub(crate) use boxes::f_boxes;
pub(crate) use class_terms::f_class_terms;
pub(crate) use distances::{f_distance_slopes, f_distances};
pub(crate) use embedding::f_embedding;
pub(crate) use label_margin::f_label_margin;
pub(crate) use logits::{LogitRows, f_logits};
pub(crate) use map::f_map;
pub(crate) use margin::{Hinges, Margin, f_margin};
pub use memory::set_gradient_cache;
pub(crate) use neighbours::{Neighbours, f_neighbours};
pub(crate) use pair_labels::PairLabels;
pub(crate) use pairs::{Counted, Hard, PairPlan, Soft, f_pairs, f_pairs_on};
pub(crate) use parallel::small_work;
pub(crate) use picked::f_picked;
pub(crate) use pointwise::f_pointwise_of_planes;
pub(crate) use positions::f_softmax_of_positions;
pub(crate) use positives::Each;
pub(crate) use ranks::{Ranks, f_ranks};
pub(crate) use region::{Entropy, Regional, Sums, f_region, takes_region};
pub(crate) use rows::{RowReduction, Rows};
pub(crate) use scan::{scan_classes, scan_range};
pub(crate) use softmax::{f_softmax, f_softmax_of_shares};
pub(crate) use triplets::{Triplets, f_triplets};
pub(crate) use unit::f_unit;
pub(crate) use variation::f_variation;
pub(crate) use views::{Views, f_views};
pub(crate) use window::{Beyond, f_slide};

/// How many elements a block has. A few arrays of so many numbers fit the first-level cache.
const BLOCK: usize = 1024;
