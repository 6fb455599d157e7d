//! Arguments with their names, which errors tell.

use tch::Tensor;

use crate::LossError;

/// A tensor argument and its name.
pub(crate) type Named<'a> = (&'static str, &'a Tensor);

/// `tensor` is defined.
pub(crate) fn defined((argument, tensor): Named) -> Result<(), LossError> {
    if tensor.defined() { Ok(()) } else { Err(LossError::Undefined { argument }) }
}
