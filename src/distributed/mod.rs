//! Losses over many processes, on one machine or many: PyTorch's own c10d, which is part of libtorch.
//!
//! [`Group`] is a group of processes, as `torch.distributed` has it; torchrun starts them, and Python ranks may be among
//! them. With it come
//!
//! | what | where |
//! |---|---|
//! | collectives: sums, gathers, broadcasts, barriers, shifts to a neighbour | [`Group`] |
//! | sums, gathers and shifts with a gradient | [`Group::f_sum_data_parallel`], [`Group::f_gather_data_parallel`], … |
//! | the mean over the batches of all ranks | [`Loss::f_mean_over_ranks`](crate::Loss::f_mean_over_ranks), [`MeanParts::f_over_ranks`](crate::MeanParts::f_over_ranks) |
//! | every other loss of the batches of all ranks | [`Loss::f_whole_over_ranks`](crate::Loss::f_whole_over_ranks) |
//! | losses of pairs of all ranks | `EmbeddingLoss::f_forward_over_ranks`; with own anchors alone `EmbeddingPairs::f_over_ranks` |
//! | CLIP and SigLIP over all ranks | `ClipLoss::f_forward_over_ranks`, `SigLipLoss::f_forward_over_ranks` |
//! | SigLIP with the texts of one rank at a time | `SigLipLoss::f_forward_over_neighbours` |
//! | Barlow Twins and VICReg, with statistics over ranks, and DINO with its centre | `BarlowTwinsLoss::f_forward_over_ranks`, … |
//! | cross entropy whose classes are spread over ranks | [`VocabParallelCrossEntropy`] |
//!
//! # Two conventions of gradients
//!
//! *Data parallel*: each rank has a part of the batch and a copy of the parameters; their gradients are averaged over
//! ranks after the backward pass, as `DistributedDataParallel` does. What ends in `_data_parallel` or `_over_ranks` has
//! the gradient whose average is that of one process with the whole batch.
//!
//! *Replicated*: all ranks have the whole batch and compute the same loss, and each has a part of the parameters, as with
//! tensor parallelism; nothing is averaged. That is what ends in `_replicated`, and [`VocabParallelCrossEntropy`].
//!
//! # Ranks that disagree, are late or die
//!
//! c10d ends the process or returns wrong numbers where ranks bring tensors of different shapes or kinds. Here, ranks
//! exchange what they are about to do before each collective, and for which loss and options, and all of them get
//! [`LossError::Ranks`](crate::LossError::Ranks) where it differs. A rank that is late or dies is
//! [`LossError::Group`](crate::LossError::Group) on the others, within the timeout of the group.

// This module calls C++ (`group.cpp`).
#![allow(unsafe_code)]

mod collective;
mod exchange;
mod ffi;
#[cfg(feature = "self-supervised")]
mod global_batch;
mod gradient;
mod group;
mod mean;
#[cfg(feature = "metric")]
mod own_pairs;
mod purpose;
mod record;
mod rendezvous;
mod traffic;
mod vocab_parallel;

pub use collective::Reduce;
#[cfg(feature = "self-supervised")]
pub use global_batch::GlobalBatch;
#[cfg(feature = "self-supervised")]
pub(crate) use global_batch::f_reduce_own;
pub(crate) use gradient::Shards;
pub use group::Group;
pub use vocab_parallel::VocabParallelCrossEntropy;
