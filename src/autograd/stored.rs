//! Gradients that the forward pass has computed and that the backward pass scales.

use std::sync::{Mutex, PoisonError};

use tch::{Kind, TchError, Tensor};

use super::{Context, Gradients};
use crate::LossError;
use crate::kernels::waits;

/// The gradients of a scalar loss, kept from the forward pass to the backward pass.
///
/// They may be in a wider kind than the inputs, so that numbers too small for half precision still exist when they are
/// scaled. The last backward pass returns the kept tensors themselves, scaled in place: libtorch uses a tensor that
/// nobody else holds as the gradient of a variable, and copies any other.
#[derive(Debug)]
pub(crate) struct StoredGradients(Mutex<Option<Vec<Option<Stored>>>>);

/// The gradient of one input.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) gradient: Tensor,
    /// The kind of the input, to which the gradient is converted.
    pub(crate) kind: Kind,
}

impl StoredGradients {
    pub(crate) fn new(gradients: Vec<Option<Stored>>) -> Self {
        Self(Mutex::new(Some(gradients)))
    }

    /// Gradients of the kind of their inputs.
    pub(crate) fn f_of_own_kind(gradients: impl IntoIterator<Item = Option<Tensor>>) -> Result<Self, LossError> {
        let store = |gradient: Tensor| Ok(Stored { kind: gradient.f_kind()?, gradient });
        let stored = gradients.into_iter().map(|gradient| gradient.map(store).transpose());
        Ok(Self::new(stored.collect::<Result<_, LossError>>()?))
    }

    /// The gradients times `grad`, the gradient of the loss.
    pub(crate) fn f_scaled(&self, context: &Context, grad: &Tensor) -> Gradients {
        // On the CPU a look at the usual gradient of 1 is cheaper than a pass over all others.
        let one = !waits(grad) && grad.f_double_value(&[])? == 1.0;
        self.f_scaled_by(context, grad, &|gradient, grad| {
            if !one {
                let _ = gradient.f_mul_(grad)?;
            }
            Ok(())
        })
    }

    /// [`f_scaled`](Self::f_scaled), where `scale` multiplies a gradient by that of the loss in place.
    pub(crate) fn f_scaled_by(
        &self,
        context: &Context,
        grad: &Tensor,
        scale: &dyn Fn(&mut Tensor, &Tensor) -> Result<(), LossError>,
    ) -> Gradients {
        let mut stored = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if context.keep_graph() {
            let scale = |stored: &Option<Stored>| {
                let product = |stored: &Stored| stored.gradient.f_mul(grad)?.f_to_kind(stored.kind);
                Ok(stored.as_ref().map(product).transpose()?)
            };
            return stored.as_ref().ok_or_else(used_up)?.iter().map(scale).collect();
        }
        let gradients = stored.take().ok_or_else(used_up)?;
        let scaled = |stored: Stored| -> Result<Tensor, LossError> {
            let Stored { mut gradient, kind } = stored;
            scale(&mut gradient, grad)?;
            Ok(gradient.f_to_kind(kind)?)
        };
        gradients.into_iter().map(|stored| stored.map(scaled).transpose()).collect()
    }
}

/// The error of a second backward pass after one without `keep_graph`. libtorch reports that itself, so this happens
/// only where the first one has failed after it took the gradients.
fn used_up() -> LossError {
    TchError::Torch("the gradients of the forward pass were used by an earlier backward pass".into()).into()
}
