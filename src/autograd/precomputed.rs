//! Scalar losses that compute their gradient in the forward pass.

use tch::{Tensor, no_grad, with_grad};

use super::{Function, Gradients, f_alias, f_with_zero_gradients, grad_enabled, needed};
use crate::{LossError, check};

/// Computes a scalar loss of `inputs`, given as a composition of tensor operations, and its gradient at once.
///
/// The graph of the composition, with all that it keeps, is gone when this returns; what stays until the backward pass
/// are the gradients, one tensor of the size of each input that needs one. Where they are to be differentiated
/// themselves, the composition is computed once more with its graph, and the gradients keep their numbers.
///
/// All that `loss` depends on and that may need a gradient is in `inputs`. An input that it turns out not to depend on
/// has a gradient of zeros. Threads that run backward passes through the result at the same time enter `loss` one after
/// the other.
///
/// # Errors
/// Those of `loss`; [`LossError::Shape`] and [`LossError::Kind`] where its result, named `loss`, is to be
/// differentiated and is not a scalar of a floating kind; [`LossError::Undefined`] for an undefined tensor,
/// [`LossError::Torch`] where libtorch cannot differentiate it.
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
    inputs.iter().try_for_each(|input| check::defined(("input", input)))?;
    let needed = needed(inputs);
    if !needed.contains(&true) {
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.shallow_clone()).collect();
        return loss(&inputs);
    }
    let leaf = |(input, needed): (&&Tensor, &bool)| input.f_detach()?.f_set_requires_grad(*needed);
    let leaves = inputs.iter().zip(&needed).map(leaf).collect::<Result<Vec<_>, _>>()?;
    let value = loss(&leaves)?;
    check::defined(("loss", &value))?;
    if !value.requires_grad() {
        return Ok(value);
    }
    check::floating(("loss", &value))?;
    if value.numel() != 1 {
        return Err(check::shape_error(("loss", &value), "[], a scalar"));
    }
    let gradients = f_gradients(&value, &leaves, &needed, false)?;
    let value = value.f_detach()?;

    let count = inputs.len();
    let saved: Vec<&Tensor> = inputs.iter().copied().chain(&gradients).collect();
    Function::new(inputs).save(&saved).f_attach_one(value, move |context| {
        let Some(grad) = context.grad(0) else { return Ok(spread(vec![], &needed)) };
        let (inputs, gradients) = context.saved().split_at(count);
        let scaled = || {
            let factor = grad.f_reshape([0_i64; 0])?;
            let scaled = gradients.iter().map(|gradient| gradient.f_mul(&factor)).collect::<Result<_, _>>()?;
            Ok(spread(scaled, &needed))
        };
        context.f_gradients(&scaled, &|| f_gradients_of(&loss, &grad, inputs, &needed))
    })
}

/// The gradients of `loss`, times `grad`, with respect to those inputs that need one; with a graph of their own where
/// gradients are enabled. `needed` may be shorter than `inputs`.
///
/// `grad` may depend on the inputs as well. Because the gradients are those with respect to aliases of the inputs, they
/// leave that part to whoever computed `grad`.
pub(crate) fn f_gradients_of(
    loss: &dyn Fn(&[Tensor]) -> Result<Tensor, LossError>,
    grad: &Tensor,
    inputs: &[Tensor],
    needed: &[bool],
) -> Gradients {
    let create = grad_enabled();
    // A backward pass that is not to be differentiated itself runs without gradients.
    let (aliases, value) = with_grad(|| {
        let aliases = inputs.iter().map(f_alias).collect::<Result<Vec<_>, _>>()?;
        let value = loss(&aliases)?.f_mul(grad)?.f_sum(None)?;
        Ok::<_, LossError>((aliases, value))
    })?;
    Ok(spread(f_gradients(&value, &aliases, needed, create)?, needed))
}

/// The gradients of `value` with respect to those inputs that need one: zeros where it does not depend on them. With
/// `create` the gradients have a graph, and each depends on its input, if only with a derivative of zero.
fn f_gradients(value: &Tensor, inputs: &[Tensor], needed: &[bool], create: bool) -> Result<Vec<Tensor>, LossError> {
    let inputs: Vec<&Tensor> =
        inputs.iter().zip(needed).filter(|(_, needed)| **needed).map(|(input, _)| input).collect();
    // tch ends the process where a backward pass starts from a tensor without a graph.
    let sources: Vec<&Tensor> =
        inputs.iter().copied().filter(|input| value.requires_grad() && input.requires_grad()).collect();
    let compute = || match sources[..] {
        [] => Ok(vec![]),
        _ => Tensor::f_run_backward(&[value], &sources, create, create),
    };
    let mut gradients = if create { with_grad(compute)? } else { no_grad(compute)? }.into_iter();
    let gradient = |input: &Tensor| {
        let gradient = if value.requires_grad() && input.requires_grad() { gradients.next() } else { None };
        let gradient = match gradient.filter(Tensor::defined) {
            Some(gradient) => gradient,
            None => input.f_detach()?.f_zeros_like()?,
        };
        if create && !gradient.requires_grad() { f_with_zero_gradients(gradient, &[input]) } else { Ok(gradient) }
    };
    inputs.into_iter().map(gradient).collect()
}

/// The gradients of the inputs that need one, with `None` at the places of the others.
pub(crate) fn spread(gradients: Vec<Tensor>, needed: &[bool]) -> Vec<Option<Tensor>> {
    let mut gradients = gradients.into_iter();
    needed.iter().map(|needed| if *needed { gradients.next() } else { None }).collect()
}
