//! Losses that compute their gradient in the forward pass and keep it for the backward pass, instead of the tensors of
//! a graph.

use tch::{Kind, Tensor};

use crate::option_tensors::OptionTensors;
use crate::{LossError, Reduction, autograd};

/// A loss, or options of one, that keeps only its gradient.
pub(crate) trait Precomputed: OptionTensors + Send + 'static {
    /// The reduction. Unreduced losses have one gradient per element, which is not kept.
    fn reduction(&self) -> Reduction;

    /// The result of `f_compute`. Where a reduced loss needs a gradient it is computed at once, and nothing else is
    /// kept.
    fn f_precomputed(
        &self,
        input: &Tensor,
        target: &Tensor,
        f_compute: fn(&Self, &Tensor, &Tensor) -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        if self.reduction() == Reduction::None {
            return f_compute(self, input, target);
        }
        let mut tensors = vec![input.shallow_clone(), target.shallow_clone()];
        // The closure of the backward pass owns a copy of the loss without tensors. It gets the tensors as inputs, as
        // autograd saved them.
        let bare = self.map_tensors(&mut |tensor| {
            tensors.push(tensor.shallow_clone());
            Tensor::new()
        });
        let differentiated = tensors.iter().any(Tensor::requires_grad);
        if !differentiated || tensors.iter().any(|tensor| !tensor.defined() || is_rounded_early(tensor)) {
            return f_compute(self, input, target);
        }
        let inputs: Vec<&Tensor> = tensors.iter().collect();
        autograd::f_precomputed(&inputs, move |inputs| {
            let mut options = inputs[2..].iter();
            let loss = bare.map_tensors(&mut |none| options.next().unwrap_or(none).shallow_clone());
            f_compute(&loss, &inputs[0], &inputs[1])
        })
    }
}

/// In half precision the gradient would be rounded before the backward pass multiplies it by the scale of the loss,
/// which is there to keep it from underflow.
fn is_rounded_early(tensor: &Tensor) -> bool {
    tensor.requires_grad() && matches!(tensor.f_kind(), Ok(Kind::Half | Kind::BFloat16))
}

/// Makes a loss with a `reduction` one that keeps only its gradient.
macro_rules! precomputed {
    ($loss:ident) => {
        impl $crate::precomputed::Precomputed for $loss {
            fn reduction(&self) -> $crate::Reduction {
                self.reduction
            }
        }
    };
}
pub(crate) use precomputed;
