//! Losses that keep their gradient for the backward pass, instead of all that their graph would.

use tch::{Kind, Tensor};

use crate::option_tensors::OptionTensors;
use crate::{LossError, Reduction, autograd};

/// A loss, or the options of one, that keeps its gradient alone.
pub(crate) trait Precomputed: OptionTensors + Send + 'static {
    /// The reduction; unreduced losses have no single gradient to be kept.
    fn reduction(&self) -> Reduction;

    /// What `f_compute` returns, of which the gradient alone is kept where there is one to keep.
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
        // What the backward closure owns has no tensors: those come to it as inputs, as autograd saved them.
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

/// A gradient in half precision would be rounded before the backward pass scales it, which is too early: the factor is
/// there to keep it from underflow.
fn is_rounded_early(tensor: &Tensor) -> bool {
    tensor.requires_grad() && matches!(tensor.f_kind(), Ok(Kind::Half | Kind::BFloat16))
}
