//! Losses made of losses, and losses described in data.

#[cfg(feature = "serde")]
mod described;
mod weighted_sum;
mod when_empty;

#[cfg(feature = "serde")]
pub use described::AnyLoss;
pub use weighted_sum::{Term, TermParts, WeightedSum, WeightedSumOutput};
pub use when_empty::{OverNothing, WhenEmpty};
