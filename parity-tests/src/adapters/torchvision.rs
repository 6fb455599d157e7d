//! The losses of torchvision.

use super::Adapter;

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
];
