//! Divergences between distributions.

mod kl_div;

pub use kl_div::{KlDivLoss, KlDivReduction};
