//! Losses of single elements by few tensor operations, each of which is a pass over memory and a kernel on a GPU.
//!
//! The composite of a loss with branches computes all of them, and its graph derives all of them. Here the derivative is
//! a formula, too, so that neither is needed; the composite is left for second derivatives.

use tch::Tensor;

use crate::autograd::{self, Context, Function, f_gradients_of};
use crate::{LossError, Reduction};

/// The losses, and what their derivatives are computed of.
pub(super) type Losses = (Tensor, Vec<Tensor>);

/// The loss of an element as tensor operations, without a graph, and its derivative.
pub(super) struct Few<P> {
    /// The losses of input and target, and what `f_slopes` is given of them.
    pub(super) f_losses: fn(P, &Tensor, &Tensor) -> Result<Losses, LossError>,
    /// The derivatives with respect to the input, times a tensor and a number.
    pub(super) f_slopes: fn(P, &[Tensor], &Tensor, f64) -> Result<Tensor, LossError>,
    /// Whether those with respect to the target are the same ones with the other sign. Otherwise the composite has them.
    pub(super) of_difference: bool,
}

impl<P> Clone for Few<P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Few<P> {}

impl<P: Copy + Send + 'static> Few<P> {
    /// The reduced losses of arguments of one kind. `composite` are the operations that define the unreduced ones.
    pub(super) fn f_reduced(
        self,
        formula: P,
        [x, y]: [&Tensor; 2],
        reduction: Reduction,
        composite: fn(P, &Tensor, &Tensor) -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        let f_composite = move |x: &Tensor, y: &Tensor| reduction.f_apply(&composite(formula, x, y)?);
        let needed = autograd::needed(&[x, y]);
        if needed[1] && !self.of_difference || x.f_kind()? != y.f_kind()? {
            return f_composite(x, y);
        }
        let (losses, kept) = (self.f_losses)(formula, &x.f_detach()?, &y.f_detach()?)?;
        let loss = reduction.f_apply(&losses)?;
        let scale = if reduction == Reduction::Mean { 1.0 / losses.numel() as f64 } else { 1.0 };
        let saved: Vec<&Tensor> = [x, y].into_iter().chain(&kept).collect();
        let backward = move |context: Context| -> autograd::Gradients {
            let Some(grad) = context.grad(0) else { return Ok(vec![None, None]) };
            let (arguments, kept) = context.saved().split_at(2);
            let fused = || {
                let slopes = (self.f_slopes)(formula, kept, &grad, scale)?;
                let of_target = needed[1].then(|| slopes.f_neg()).transpose()?;
                Ok(vec![needed[0].then_some(slopes), of_target])
            };
            let loss = |inputs: &[Tensor]| f_composite(&inputs[0], &inputs[1]);
            context.f_gradients(&fused, &|| f_gradients_of(&loss, &grad, arguments, &needed))
        };
        Ok(Function::new(&[x, y]).save(&saved).f_attach_own(vec![loss], backward)?.remove(0))
    }
}
