//! Fused engines: a loss and its gradient in one pass over memory.
//!
//! An engine takes a formula from a loss file and does the rest: threads, vector instructions, reduction, kinds,
//! layouts, the graph. An engine knows no loss. What it does not take, and second derivatives, go to the composite.
//!
//! # The way of a call
//!
//! 1. A loss file checks the arguments and calls an engine's entry (`f_pointwise`, `f_softmax`, …) with its formula,
//!    the tensors, the reduction and its composite.
//! 2. The entry looks whether the engine takes the call: [`takes`], the kinds, the layouts. If not, the composite
//!    computes the loss, or the entry returns `None` and the loss file calls the composite.
//! 3. The engine makes the outputs (`cpu/output.rs`): the losses, where they are not reduced, and the gradient, where
//!    one is needed and can be computed in the forward pass.
//! 4. It cuts the elements, rows or pixels into tasks and gives these to the threads (`cpu/parallel`).
//! 5. A task goes through its part block by block. Half precision is widened into a buffer; a kernel computes the block
//!    in vector instructions (`cpu/simd.rs`) with the formula inlined, and writes losses and gradients to the outputs.
//! 6. The sums of the tasks are added up in their order, in double precision.
//! 7. The loss becomes a tensor with one node of libtorch's graph (`autograd::Function`). Its backward scales the
//!    gradient that the forward pass has computed, or runs the engine again. A second derivative comes from the
//!    composite.
//!
//! # Words
//!
//! * **formula**: the loss of an element, row or pair and its derivatives, as a trait of `formulas.rs`; from a loss
//!   file.
//! * **composite**: the tensor operations that define a loss.
//! * **kernel**: a loop over slices that is compiled for vector instructions (`cpu/simd.rs`).
//! * **lane**: one number of a vector register. `Lane` is its type in formulas; sums have one accumulator per lane.
//! * **block**: the elements that a kernel works on at a time; a few arrays of them fit the first-level cache.
//! * **task**: the part of a call that one thread takes at a time. Tasks depend on the size of the call alone.
//! * **wide**: `f32` or `f64`, the types that kernels compute in. Half precision is widened to `f32`.
//! * **plain**, of a tensor: strided, on the CPU, of the expected kind, with memory that holds its values.
//! * **dense**, of a tensor: without gaps and overlaps in memory, though its dimensions may be permuted.
//! * **row**: the numbers that one loss is computed from, such as the scores of one sample for all classes.
//! * **pixel**: a row whose classes are not the last dimension. The numbers of a class lie beside each other for
//!   pixels.

// Engines read and write the memory of tensors.
#![allow(unsafe_code)]
// The compiler vectorises loops that read several arrays by one index.
#![allow(clippy::needless_range_loop)]
// The closure of an adapter may be compiled as a function without a kernel's instructions; see `simd::Kernel`.
#![allow(clippy::manual_find, clippy::manual_map)]

use tch::{Device, Kind, Tensor};

use crate::{InvalidValues, LossError};

mod backend;
#[cfg(feature = "detection")]
mod boxes;
mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
#[cfg(feature = "metric")]
mod distances;
mod embedding;
mod engine;
mod formulas;
#[cfg(any(test, feature = "cuda"))]
mod graph;
mod library;
#[cfg(feature = "image")]
mod map;
#[cfg(feature = "segmentation")]
mod measure;
#[cfg(feature = "segmentation")]
mod neighbours;
mod number;
mod number_operations;
#[cfg(any(feature = "metric", feature = "self-supervised"))]
mod pair_labels;
#[cfg(any(feature = "metric", feature = "self-supervised"))]
mod pairs;
#[cfg(feature = "image")]
mod planes;
mod pointwise;
#[cfg(any(test, feature = "cuda"))]
mod quick_hash;
#[cfg(feature = "segmentation")]
mod region;
mod rows;
mod tensors;
#[cfg(feature = "metric")]
mod triplets;
#[cfg(feature = "metric")]
mod unit;
#[cfg(feature = "image")]
mod variation;
#[cfg(feature = "image")]
mod window;

pub(crate) use backend::waits;
pub use backend::{Backend, like_cuda, with_backend};
#[cfg(feature = "detection")]
pub(crate) use boxes::f_boxes;
pub use cpu::set_gradient_cache;
pub(crate) use cpu::*;
#[cfg(feature = "emulation")]
pub use cuda::emulation::{emulated_cuda, emulated_launches};
#[cfg(feature = "metric")]
pub(crate) use distances::{f_distance_slopes, f_distances};
pub(crate) use embedding::f_embedding;
pub(crate) use engine::{Reduce, composite_of, widely};
pub(crate) use formulas::{
    ClassTerms, Embedding, Expected, Map, OTHER, PairSlopes, PairSums, PairTerms, Pointwise, Positives, Ranked,
    RowLoss, SAME, SoftPairs, Weighted, scaled,
};
#[cfg(feature = "image")]
pub(crate) use map::f_map;
#[cfg(feature = "segmentation")]
pub(crate) use neighbours::{Neighbours, f_neighbours};
pub(crate) use number::{ANY, Logit, Real, choose, is_not_negative, is_share, part, powers, share_or_nan, sigmoids};
pub(crate) use number_operations::{Number, NumberOperations};
#[cfg(any(feature = "metric", feature = "self-supervised"))]
pub(crate) use pair_labels::PairLabels;
#[cfg(any(feature = "metric", feature = "self-supervised"))]
pub(crate) use pairs::{Counted, Hard, PairPlan, Soft, f_pairs};
#[cfg(feature = "metric")]
pub(crate) use pairs::{Each, f_pairs_on};
#[cfg(feature = "image")]
pub(crate) use planes::f_pointwise_of_planes;
pub(crate) use pointwise::{f_pointwise, f_pointwise_to};
#[cfg(feature = "segmentation")]
pub(crate) use region::{Entropy, Regional, Sums, Total, f_region, takes_region};
#[cfg(feature = "detection")]
pub(crate) use rows::f_softmax_of_positions;
pub(crate) use rows::{
    Hinges, LogitRows, Margin, Note, RowReduction, Rows, Unchecked, f_label_margin, f_logits, f_margin, f_picked,
    f_softmax, f_softmax_of_shares, takes_rows,
};
#[cfg(feature = "classification")]
pub(crate) use rows::{Views, f_class_terms, f_views};
pub(crate) use tensors::{f_own, f_plain};
#[cfg(feature = "metric")]
pub(crate) use triplets::{Triplets, f_triplets};
#[cfg(feature = "metric")]
pub(crate) use unit::f_unit;
#[cfg(feature = "image")]
pub(crate) use variation::f_variation;
#[cfg(feature = "image")]
pub(crate) use window::{Beyond, f_convolution, f_kept_taps, f_slide};

/// Whether an engine may be used for this input: it is on the CPU, and the [backend](backend::fused) has engines.
pub(crate) fn takes(input: &Tensor) -> bool {
    backend::fused() && input.device() == Device::Cpu
}

/// Whether the engine of elements may be used for this input, on the CPU or on CUDA.
pub(crate) fn takes_elements(input: &Tensor) -> bool {
    is_on_cuda(input) || takes(input)
}

/// [`takes_elements`] for a loss that some values of the arguments do not have ([`Pointwise::partial`]). On the CPU an
/// engine that comes upon one leaves the call to the composite; it is asked only where that returns an error. On CUDA,
/// where nobody looks at the values, their loss is NaN and their gradient 0, and the GPU takes a note.
pub(crate) fn takes_partial(input: &Tensor, mode: InvalidValues) -> bool {
    if is_on_cuda(input) { !leaves_partial(input, mode) } else { takes(input) && mode.is_error() }
}

/// Whether the engines of CUDA leave such a loss to the composite: they take a note, and the `mode` asks for something
/// else.
pub(crate) fn leaves_partial(input: &Tensor, mode: InvalidValues) -> bool {
    is_on_cuda(input) && mode != InvalidValues::Error
}

/// Whether the engines of CUDA are asked for a call with this first argument.
#[cfg_attr(not(any(test, feature = "cuda")), allow(unused_variables))]
pub(crate) fn is_on_cuda(input: &Tensor) -> bool {
    #[cfg(any(test, feature = "cuda"))]
    if cuda::is_asked_for_any_result(input) {
        return true;
    }
    false
}

/// `tensor` in a kind that an engine reads beside `input`: on the CPU that of `input`, on CUDA as it is. `None` where
/// no engine takes both, or where the kind of `input` cannot hold the numbers of `tensor`.
pub(crate) fn f_beside(input: &Tensor, tensor: &Tensor) -> Result<Option<Tensor>, LossError> {
    let (kind, own) = (input.f_kind()?, tensor.f_kind()?);
    #[cfg(any(test, feature = "cuda"))]
    if cuda::is_asked_for_any_result(input) {
        return Ok(cuda::arguments::takes_beside(input, tensor)?.then(|| tensor.shallow_clone()));
    }
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
