//! Divergences between distributions.

mod distillation;
mod kl_div;
mod linear_distillation;

pub use distillation::{DistillationLoss, SoftLoss};
pub use kl_div::{KlDivLoss, KlDivReduction};
pub use linear_distillation::{LinearDistillation, LinearDistillationOutput};
