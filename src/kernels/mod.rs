//! Fused engines: a loss and its gradient in one pass over memory.
//!
//! An engine takes a formula and does the rest: threads, vector instructions, reduction, kinds, layouts, the graph. What it
//! does not take, and second derivatives, go to the composite of tensor operations that defines the loss.

// Engines read and write the memory of tensors.
#![allow(unsafe_code)]
// Several arrays with one index are what the compiler makes vector instructions of.
#![allow(clippy::needless_range_loop)]
// Adapters' closures may be compiled apart from a kernel, without its instructions; see `simd::Kernel`.
#![allow(clippy::manual_find, clippy::manual_map)]

use tch::{Device, Kind, Tensor};

use crate::LossError;

mod backend;
mod boxes;
mod class_terms;
mod distances;
mod element;
mod embedding;
mod engine;
mod label_margin;
mod logits;
mod map;
mod margin;
mod memory;
mod narrow;
mod neighbours;
mod number;
mod number_operations;
mod pair_labels;
mod pairs;
mod parallel;
mod pointwise;
mod positions;
mod positives;
mod ranks;
mod region;
mod rows;
mod simd;
mod softmax;
mod triplets;
mod unit;
mod variation;
mod views;
mod window;

pub use backend::{Backend, with_backend};
pub(crate) use boxes::f_boxes;
pub(crate) use class_terms::{ClassTerms, f_class_terms};
pub(crate) use distances::{f_distance_slopes, f_distances};
pub(crate) use element::{f_own, f_plain};
pub(crate) use embedding::{Embedding, f_embedding};
pub(crate) use engine::{Reduce, composite_of, widely};
pub(crate) use label_margin::f_label_margin;
pub(crate) use logits::{LogitRows, f_logits};
pub(crate) use map::{Map, f_map};
pub(crate) use margin::{Hinges, Margin, f_margin};
pub use memory::set_gradient_cache;
pub(crate) use neighbours::{Neighbours, f_neighbours};
pub(crate) use number::{ANY, Logit, Real, choose, part, powers, share_or_nan, sigmoids};
pub(crate) use number_operations::{Number, NumberOperations};
pub(crate) use pair_labels::PairLabels;
pub(crate) use pairs::{
    Counted, Hard, OTHER, PairPlan, PairSlopes, PairSums, PairTerms, SAME, Soft, SoftPairs, f_pairs, f_pairs_on, scaled,
};
pub(crate) use pointwise::{Pointwise, Weighted, f_pointwise, f_pointwise_of_planes, f_pointwise_to};
pub(crate) use positions::f_softmax_of_positions;
pub(crate) use positives::{Each, Positives};
pub(crate) use ranks::{Ranked, Ranks, f_ranks};
pub(crate) use region::{Entropy, Regional, Sums, f_region, takes_region};
pub(crate) use rows::{RowReduction, Rows, scan_classes, scan_range};
pub(crate) use softmax::{RowLoss, f_softmax, f_softmax_of_shares};
pub(crate) use triplets::{Triplets, f_triplets};
pub(crate) use unit::f_unit;
pub(crate) use variation::f_variation;
pub(crate) use views::{Views, f_views};
pub(crate) use window::{Beyond, f_slide};

/// How many elements are worked on at a time; a few arrays of so many numbers fit the first cache.
const BLOCK: usize = 1024;

/// Whether engines are used for this input.
pub(crate) fn takes(input: &Tensor) -> bool {
    backend::fused() && input.device() == Device::Cpu
}

/// `tensor` in the kind of `input`, to be read by an engine beside it; none where no engine takes both, or where that kind
/// cannot hold its numbers.
pub(crate) fn f_beside(input: &Tensor, tensor: &Tensor) -> Result<Option<Tensor>, LossError> {
    let (kind, own) = (input.f_kind()?, tensor.f_kind()?);
    if !takes(input) || tensor.device() != Device::Cpu {
        return Ok(None);
    }
    let small = matches!(own, Kind::Bool | Kind::Uint8 | Kind::Int8);
    let integers = small || matches!(own, Kind::Int16 | Kind::Int | Kind::Int64);
    let kept = match kind {
        _ if own == kind => return Ok(Some(tensor.shallow_clone())),
        Kind::Float | Kind::Double => integers,
        Kind::Half | Kind::BFloat16 => small,
        _ => false,
    };
    Ok(kept.then(|| tensor.f_to_kind(kind)).transpose()?)
}
