//! The losses of MONAI.

use super::Adapter;

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
];
