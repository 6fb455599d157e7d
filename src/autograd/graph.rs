//! Tensors whose value is given and whose derivatives are those of others.

use tch::Tensor;

use super::{Context, Function, Gradients, grad_enabled};
use crate::LossError;

/// The identity: a tensor of the same memory, with a node of its own.
///
/// A gradient with respect to it leaves out what depends on the original tensor in other ways. And gradients that come
/// back through it are plain, while libtorch's derivative of sign(x), which is that of |x|, is zeros without memory,
/// and reading those through tch ends the process.
pub(crate) fn f_alias(tensor: &Tensor) -> Result<Tensor, LossError> {
    if !grad_enabled() || !tensor.requires_grad() {
        return Ok(tensor.shallow_clone());
    }
    Function::new(&[tensor]).f_attach_one(tensor.shallow_clone(), |context| Ok(vec![context.grad(0)]))
}

/// The `values`, each on the graph of the gradient at its place in `gradients`.
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

/// `value`, which depends on each of the `inputs` that requires a gradient, with a derivative of zero beside those that
/// it has.
///
/// tch ends the process where a backward pass starts from a tensor that depends on nothing. So a gradient that is
/// constant depends on its input in this way. Integers have no graph, as everywhere in libtorch.
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
