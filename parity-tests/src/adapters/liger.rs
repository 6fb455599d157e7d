//! Liger-Kernel: `pytorch/liger.py` runs its Triton kernel on the CPU.

use tch_losses::Chunking;

use super::Equality::Close;
use super::papers::language_model;
use super::{Adapter, Outcome, adapter};
use crate::arguments::Arguments;

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("LinearCrossEntropy (Liger)", &["liger.fused_linear_cross_entropy"],
        &["input", "linear_weight", "target"], Close, linear_cross_entropy),
];

fn linear_cross_entropy(arguments: &mut Arguments) -> Outcome {
    language_model(arguments, Some(Chunking::Rows(4)))
}
