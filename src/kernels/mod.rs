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
mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod engine;
mod formulas;
#[cfg(any(test, feature = "cuda"))]
mod graph;
mod number;
mod number_operations;
mod pointwise;
mod tensors;

pub use backend::{Backend, with_backend};
pub use cpu::set_gradient_cache;
pub(crate) use cpu::{
    Beyond, Counted, Each, Entropy, Hard, Hinges, LogitRows, Margin, Neighbours, PairLabels, PairPlan, Ranks, Regional,
    RowReduction, Rows, Soft, Sums, Triplets, Views, f_boxes, f_class_terms, f_distance_slopes, f_distances,
    f_embedding, f_label_margin, f_logits, f_map, f_margin, f_neighbours, f_pairs, f_pairs_on, f_picked,
    f_pointwise_of_planes, f_ranks, f_region, f_slide, f_softmax, f_softmax_of_positions, f_softmax_of_shares,
    f_triplets, f_unit, f_variation, f_views, scan_classes, scan_range, small_work, takes_region,
};
pub(crate) use engine::{Reduce, composite_of, widely};
pub(crate) use formulas::{
    ClassTerms, Embedding, Map, OTHER, PairSlopes, PairSums, PairTerms, Pointwise, Positives, Ranked, RowLoss, SAME,
    SoftPairs, Weighted, scaled,
};
pub(crate) use number::{ANY, Logit, Real, choose, part, powers, share_or_nan, sigmoids};
pub(crate) use number_operations::{Number, NumberOperations};
pub(crate) use pointwise::{f_pointwise, f_pointwise_to};
pub(crate) use tensors::{f_own, f_plain};

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
