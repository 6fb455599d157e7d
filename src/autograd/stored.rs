//! Gradients that the forward pass has computed already.

use std::sync::{Mutex, PoisonError};

use tch::{Device, TchError, Tensor};

use super::{Context, Gradients};
use crate::LossError;

/// The gradients of a scalar, kept from the forward pass to the backward pass.
///
/// The last backward pass gets the tensors themselves, scaled in place: libtorch makes the gradient of a variable of a tensor
/// that nobody else holds, and copies any other.
#[derive(Debug)]
pub(crate) struct StoredGradients(Mutex<Option<Vec<Option<Tensor>>>>);

impl StoredGradients {
    pub(crate) fn new(gradients: Vec<Option<Tensor>>) -> Self {
        Self(Mutex::new(Some(gradients)))
    }

    /// The gradients, times that of the scalar.
    pub(crate) fn f_scaled(&self, context: &Context, grad: &Tensor) -> Gradients {
        let mut stored = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if context.keep_graph() {
            let gradients = stored.as_ref().ok_or_else(used_up)?;
            let scale = |gradient: &Option<Tensor>| Ok(gradient.as_ref().map(|kept| kept.f_mul(grad)).transpose()?);
            return gradients.iter().map(scale).collect();
        }
        let mut gradients = stored.take().ok_or_else(used_up)?;
        // On the CPU a look at the usual gradient of 1 is cheaper than a pass over all others.
        if grad.device() == Device::Cpu && grad.f_double_value(&[])? == 1.0 {
            return Ok(gradients);
        }
        for gradient in gradients.iter_mut().flatten() {
            let _ = gradient.f_mul_(grad)?;
        }
        Ok(gradients)
    }
}

/// Only where the first backward pass has failed after it took the gradients.
fn used_up() -> LossError {
    TchError::Torch("the gradients of the forward pass were used by an earlier backward pass".into()).into()
}
