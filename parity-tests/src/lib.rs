//! Proves the losses of `tch-losses` equal to their Python originals.
//!
//! A [`case`] says which reference to run on which tensors. The oracle (Python) and [`eval`] (this crate) run the same
//! cases; [`compare`] holds their [`results`] beside each other. `README.md` describes the format and the rule of
//! equality.

pub mod adapters;
pub mod arguments;
pub mod bench;
pub mod case;
pub mod check;
pub mod compare;
pub mod differences;
pub mod eval;
pub mod fuzz;
pub mod jobs;
pub mod numbers;
pub mod oracle;
pub mod page;
pub mod progress;
pub mod report;
pub mod results;
pub mod table;
