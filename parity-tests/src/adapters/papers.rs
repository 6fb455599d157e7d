//! Losses that no installable package has: `pytorch/papers.py` is an implementation of the papers' formulas.

use super::Adapter;

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
];
