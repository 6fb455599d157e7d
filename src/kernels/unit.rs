//! Rows that are scaled to length 1, on their device.

use tch::Kind;

use super::cpu;
use crate::LossError;
use crate::autograd::{Place, Tape};

/// The `rows` `[N, D]` of a tape, each divided by its length, or by `least` if it is shorter. The result is of this
/// `kind`, single or double precision. `None` where no engine takes the call.
pub(crate) fn f_unit(tape: &mut Tape, rows: Place, kind: Kind, least: f64) -> Result<Option<Place>, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if super::is_on_cuda(tape.value(rows)) {
        return super::cuda::unit::f_on(tape, rows, kind, least);
    }
    cpu::unit::f_unit(tape, rows, kind, least)
}
