//! Tensors put on the graph of others.

use tch::Tensor;

use super::{Context, Function, Gradients, grad_enabled};
use crate::LossError;

/// The same tensor under another name.
///
/// A gradient with respect to it leaves out what else depends on the tensor. And what comes back through it has memory of its
/// own, where libtorch's derivative of sign(x), that of |x|, is zeros without memory, which kill who reads them.
pub(crate) fn f_alias(tensor: &Tensor) -> Result<Tensor, LossError> {
    if !grad_enabled() || !tensor.requires_grad() {
        return Ok(tensor.shallow_clone());
    }
    Function::new(&[tensor]).f_attach_one(tensor.shallow_clone(), |context| Ok(vec![context.grad(0)]))
}

/// The numbers of `values`, each with the derivatives of its one of `gradients`.
pub(super) fn f_on_graph_of(values: Vec<Option<Tensor>>, gradients: Vec<Option<Tensor>>) -> Gradients {
    let put = |(value, gradient): (Option<Tensor>, Option<Tensor>)| match (value, gradient) {
        (Some(value), Some(gradient)) => {
            let value = Function::new(&[&gradient]).f_attach_one(value, |context| Ok(vec![context.grad(0)]))?;
            Ok(Some(value))
        }
        (value, _) => Ok(value),
    };
    values.into_iter().zip(gradients).map(put).collect()
}

/// `value`, with a derivative of zero for each of `inputs` that requires one, beside those that it has.
///
/// A backward pass may start from a tensor that depends on something, whatever the derivative: tch ends the process where it
/// starts from one that depends on nothing. Integers have no graph, as everywhere in libtorch.
pub(crate) fn f_with_zero_gradients(value: Tensor, inputs: &[&Tensor]) -> Result<Tensor, LossError> {
    let inputs: Vec<&Tensor> = inputs.iter().copied().filter(|input| input.requires_grad()).collect();
    if inputs.is_empty() || !grad_enabled() || !value.is_floating_point() {
        return Ok(value);
    }
    let all: Vec<&Tensor> = [&value].into_iter().chain(inputs.iter().copied()).collect();
    let backward = |context: Context| {
        let zeros = |input: &Tensor| {
            let zeros = input.f_detach()?.f_zeros_like()?;
            if context.create_graph() { f_with_zero_gradients(zeros, &[input]) } else { Ok(zeros) }
        };
        let zeros = context.saved().iter().map(|input| zeros(input).map(Some));
        [Ok(context.grad(0))].into_iter().chain(zeros).collect()
    };
    Function::new(&all).save(&inputs).f_attach_one(value.shallow_clone(), backward)
}
