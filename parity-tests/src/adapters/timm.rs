//! The losses of timm.

use super::Adapter;

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
];
