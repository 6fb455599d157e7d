//! Losses made of losses, and losses described in data.

#[cfg(feature = "serde")]
mod described;
mod weighted_sum;

#[cfg(feature = "serde")]
pub use described::AnyLoss;
pub use weighted_sum::{Term, TermParts, WeightedSum, WeightedSumOutput};
