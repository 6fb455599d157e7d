//! Losses between real numbers.

mod mse;

pub use mse::MseLoss;
