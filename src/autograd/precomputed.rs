//! Scalar losses that compute their gradient in the forward pass.

use tch::{Tensor, no_grad, with_grad};

use super::{Function, Gradients, needed};
use crate::LossError;

/// Computes a scalar loss of `inputs`, given as a composition of tensor operations, and its gradient at once.
///
/// The graph of the composition, with all that it keeps, is gone when this returns; what stays until the backward pass are
/// the gradients, one tensor of the size of each input that needs one. Where they are to be differentiated themselves, the
/// composition is computed once more with its graph.
///
/// All that `loss` depends on and that may need a gradient is in `inputs`.
///
/// # Errors
/// Those of `loss`; [`LossError::Torch`] where its result is not a scalar or cannot be differentiated.
///
/// # Example
///
/// ```
/// use tch::{Kind, Tensor};
/// use tch_losses::autograd::f_precomputed;
///
/// // Its graph would keep three tensors of the input's size; this keeps one.
/// let energy = |inputs: &[Tensor]| Ok(inputs[0].f_sigmoid()?.f_square()?.f_log1p()?.f_exp()?.f_sum(Kind::Double)?);
///
/// let input = Tensor::from_slice(&[0.0, 0.0]).set_requires_grad(true);
/// let loss = f_precomputed(&[&input], energy)?;
/// loss.f_backward()?;
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [0.25, 0.25]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn f_precomputed<F>(inputs: &[&Tensor], loss: F) -> Result<Tensor, LossError>
where
    F: Fn(&[Tensor]) -> Result<Tensor, LossError> + Send + 'static,
{
    let needed = needed(inputs);
    if !needed.contains(&true) {
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.shallow_clone()).collect();
        return loss(&inputs);
    }
    let leaf = |(input, needed): (&&Tensor, &bool)| input.f_detach()?.f_set_requires_grad(*needed);
    let leaves = inputs.iter().zip(&needed).map(leaf).collect::<Result<Vec<_>, _>>()?;
    let value = loss(&leaves)?;
    if !value.requires_grad() {
        return Ok(value);
    }
    let gradients = f_gradients(&value, &leaves, &needed, false)?;
    let value = value.f_detach()?;

    let count = inputs.len();
    let saved: Vec<&Tensor> = inputs.iter().copied().chain(&gradients).collect();
    Function::new(inputs).save(&saved).f_attach_one(value, move |context| {
        let Some(grad) = context.grad(0) else { return Ok(spread(vec![], &needed)) };
        let (inputs, gradients) = context.saved().split_at(count);
        if context.create_graph() {
            return f_gradients_of(&loss, &grad, inputs, &needed);
        }
        let scaled = gradients.iter().map(|gradient| gradient.f_mul(&grad)).collect::<Result<_, _>>()?;
        Ok(spread(scaled, &needed))
    })
}

/// The gradients, with a graph of their own, of `loss` with respect to those inputs that need one. `needed` may end before
/// the inputs do.
pub(crate) fn f_gradients_of(
    loss: impl Fn(&[Tensor]) -> Result<Tensor, LossError>,
    grad: &Tensor,
    inputs: &[Tensor],
    needed: &[bool],
) -> Gradients {
    let inputs = f_aliases(inputs)?;
    let value = loss(&inputs)?.f_mul(grad)?.f_sum(None)?;
    Ok(spread(f_gradients(&value, &inputs, needed, true)?, needed))
}

/// The inputs under another name. The incoming gradient may depend on the inputs, too, and a gradient with respect to the
/// aliases leaves that part to whoever computed it.
fn f_aliases(inputs: &[Tensor]) -> Result<Vec<Tensor>, LossError> {
    Ok(inputs.iter().map(|input| input.f_view_as(input)).collect::<Result<_, _>>()?)
}

/// The gradients of `value` with respect to those inputs that need one.
fn f_gradients(value: &Tensor, inputs: &[Tensor], needed: &[bool], create: bool) -> Result<Vec<Tensor>, LossError> {
    let inputs: Vec<&Tensor> =
        inputs.iter().zip(needed).filter(|(_, needed)| **needed).map(|(input, _)| input).collect();
    let compute = || Tensor::f_run_backward(&[value], &inputs, create, create);
    let gradients = if create { with_grad(compute)? } else { no_grad(compute)? };
    let zero = |(gradient, input): (Tensor, &&Tensor)| {
        if gradient.defined() { Ok(gradient) } else { input.f_zeros_like() }
    };
    Ok(gradients.into_iter().zip(&inputs).map(zero).collect::<Result<_, _>>()?)
}

/// One entry per input again.
pub(crate) fn spread(gradients: Vec<Tensor>, needed: &[bool]) -> Vec<Option<Tensor>> {
    let mut gradients = gradients.into_iter();
    needed.iter().map(|needed| if *needed { gradients.next() } else { None }).collect()
}
