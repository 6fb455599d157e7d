#![doc = "placeholder"]

mod check;
mod classification;
mod divergence;
mod error;
mod loss;
mod metric;
mod reduction;
mod regression;
mod sequence;

pub use check::InvalidValues;
pub use classification::*;
pub use divergence::*;
pub use error::LossError;
pub use loss::Loss;
pub use metric::*;
pub use reduction::Reduction;
pub use regression::*;
pub use sequence::*;
