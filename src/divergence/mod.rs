//! Divergences between distributions.
//!
//! [`KlDivLoss`] of distributions that are given; [`DistillationLoss`] of the logits of a student and of a teacher.
//!
//! # Of torch.nn
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`KlDivLoss`] | a target that is a distribution | `nn.KLDivLoss` | `input, target` |
//!
//! # Distillation
//!
//! These need the feature `distillation`.
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`DistillationLoss`] | a student's logits and a teacher's | `liger_kernel.chunked_loss.LigerFusedLinearJSDLoss`, `LigerFusedLinearCosineSimilarityLoss`, knowledge distillation | `input, teacher, target` |
//! | [`LinearDistillation`] | the same of hidden states, in chunks | the same | `student, teacher, target` |

#[cfg(feature = "distillation")]
mod distillation;
mod kl_div;
#[cfg(feature = "distillation")]
mod linear_distillation;

#[cfg(feature = "distillation")]
pub use self::{
    distillation::{DistillationLoss, SoftLoss},
    linear_distillation::{LinearDistillation, LinearDistillationOutput},
};
pub use kl_div::{KlDivLoss, KlDivReduction};
