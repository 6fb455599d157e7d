//! The losses of segmentation-models-pytorch.

use super::Adapter;

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
];
