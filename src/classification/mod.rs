//! Losses of classification.

mod bce;
mod bce_with_logits;
mod cross_entropy;
mod multi_label_margin;
mod multi_label_soft_margin;
mod multi_margin;
mod nll;
mod soft_margin;

pub use bce::BceLoss;
pub use bce_with_logits::BceWithLogitsLoss;
pub use cross_entropy::CrossEntropyLoss;
pub use multi_label_margin::MultiLabelMarginLoss;
pub use multi_label_soft_margin::MultiLabelSoftMarginLoss;
pub use multi_margin::MultiMarginLoss;
pub use nll::NllLoss;
pub use soft_margin::SoftMarginLoss;
