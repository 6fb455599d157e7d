//! Losses made of losses, and losses described in data. They need no feature but `serde` for the latter.
//!
//! [`WeightedSum`] for several losses of one output, and for the log of what each of them was. Where an empty batch, or
//! one of which all is ignored, must not make a training NaN, [`Loss::when_empty`](crate::Loss::when_empty) of any
//! loss.
//!
//! | what | for |
//! |---|---|
//! | [`WeightedSum`] | a sum of losses with factors, its [terms](WeightedSumOutput) and their [means apart](TermParts) |
//! | [`OverNothing`] | a loss that says what its mean over nothing is: [`WhenEmpty`] |
//! | `AnyLoss` | a loss that TOML, JSON or another format describes |

#[cfg(feature = "serde")]
mod described;
mod weighted_sum;
mod when_empty;

#[cfg(feature = "serde")]
pub use described::AnyLoss;
pub use weighted_sum::{Term, TermParts, WeightedSum, WeightedSumOutput};
pub use when_empty::{OverNothing, WhenEmpty};
