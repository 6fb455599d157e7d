//! A tape: a computation of several steps, each with the gradient of its arguments, that is one node of libtorch.
//! Losses of pairs put their steps on it (unit vectors, their products or distances, the terms of the pairs).
//!
//! A node for each step would cost some microseconds in each direction, as much as the step of a small batch.

use tch::Tensor;

use super::{Context, Function, Gradients, f_gradients_of, needed, spread};
use crate::LossError;

/// What the gradients of a step's arguments are computed from.
pub(crate) struct Backward<'a> {
    pub(crate) arguments: &'a [&'a Tensor],
    pub(crate) result: &'a Tensor,
    /// The gradient of the result.
    pub(crate) grad: &'a Tensor,
    /// Which arguments need a gradient.
    pub(crate) needed: &'a [bool],
}

/// The gradients of some tensors, none for those that need none; or none at all where tensor operations are to compute
/// them.
type Pulled = Result<Option<Vec<Option<Tensor>>>, LossError>;

/// Computes the gradients of a step's arguments.
type Pull = dyn Fn(Backward) -> Pulled + Send;

/// The result of `steps` of the `inputs` on a tape, as one node. By `otherwise`, a function with a graph, where the
/// steps return `None` because an engine does not take the call, and where the gradient is to be differentiated itself.
pub(crate) fn f_taped<S, C>(inputs: &[&Tensor], steps: S, otherwise: C) -> Result<Tensor, LossError>
where
    S: FnOnce(&mut Tape, &[Place]) -> Result<Option<Place>, LossError>,
    C: Fn(&[Tensor]) -> Result<Tensor, LossError> + Send + 'static,
{
    let (mut tape, places) = Tape::f_new(inputs)?;
    match steps(&mut tape, &places)? {
        Some(result) => tape.f_attach(inputs, result, Box::new(otherwise)),
        None => otherwise(&copies(inputs)),
    }
}

fn copies(inputs: &[&Tensor]) -> Vec<Tensor> {
    inputs.iter().map(|input| input.shallow_clone()).collect()
}

type Composite = dyn Fn(&[Tensor]) -> Result<Tensor, LossError> + Send;

/// A computation of tensors without a graph, step by step.
pub(crate) struct Tape {
    inputs: usize,
    /// The inputs, then the results of the steps.
    values: Vec<Tensor>,
    /// Whether each of the values needs a gradient.
    needed: Vec<bool>,
    steps: Vec<Step>,
}

/// A step: its arguments, and the gradients of these.
struct Step {
    arguments: Vec<Place>,
    pull: Box<Pull>,
}

/// The index of a tensor on a tape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(usize);

impl Tape {
    fn f_new(inputs: &[&Tensor]) -> Result<(Self, Vec<Place>), LossError> {
        let values = inputs.iter().map(|input| input.f_detach()).collect::<Result<_, _>>()?;
        let tape = Self { inputs: inputs.len(), values, needed: needed(inputs), steps: Vec::new() };
        Ok((tape, (0..inputs.len()).map(Place).collect()))
    }

    pub(crate) fn value(&self, place: Place) -> &Tensor {
        &self.values[place.0]
    }

    /// Adds a `value` that was computed from `arguments`, and how their gradients are computed.
    pub(crate) fn add<F>(&mut self, value: Tensor, arguments: &[Place], pull: F) -> Place
    where
        F: Fn(Backward) -> Gradients + Send + 'static,
    {
        self.add_step(value, arguments, Box::new(move |of: Backward| pull(of).map(Some)))
    }

    /// The same, where `pull` may leave the gradients of all steps to the tensor operations of the whole computation.
    #[cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))]
    pub(crate) fn add_fused<F>(&mut self, value: Tensor, arguments: &[Place], pull: F) -> Place
    where
        F: Fn(Backward) -> Pulled + Send + 'static,
    {
        self.add_step(value, arguments, Box::new(pull))
    }

    fn add_step(&mut self, value: Tensor, arguments: &[Place], pull: Box<Pull>) -> Place {
        self.needed.push(arguments.iter().any(|place| self.needed[place.0]));
        self.values.push(value);
        self.steps.push(Step { arguments: arguments.to_vec(), pull });
        Place(self.values.len() - 1)
    }

    fn f_attach(self, inputs: &[&Tensor], result: Place, composite: Box<Composite>) -> Result<Tensor, LossError> {
        // Another tensor of the same memory. The closure keeps the tape: if the result on it had the node, the node
        // would keep itself alive.
        let value = self.value(result).f_detach()?;
        let backward = move |context: Context| {
            let needed = &self.needed[..self.inputs];
            let Some(grad) = context.grad(0) else { return Ok(spread(vec![], &vec![false; self.inputs])) };
            let of_composite = || f_gradients_of(&composite, &grad, context.saved(), needed);
            let of_steps = || match self.f_gradients(context.saved(), result, grad.f_detach()?)? {
                Some(gradients) => Ok(gradients),
                None => of_composite(),
            };
            context.f_gradients(&of_steps, &of_composite)
        };
        Ok(Function::new(inputs).save(inputs).f_attach_own(vec![value], backward)?.remove(0))
    }

    /// The gradients of the inputs, given `grad`, that of `result`: goes through the steps in reverse order and adds up
    /// the gradients of all uses of a value.
    fn f_gradients(&self, inputs: &[Tensor], result: Place, grad: Tensor) -> Pulled {
        let values: Vec<&Tensor> = inputs.iter().chain(&self.values[self.inputs..]).collect();
        let mut gradients: Vec<Option<Tensor>> = values.iter().map(|_| None).collect();
        gradients[result.0] = Some(grad);
        for (step, place) in self.steps.iter().zip(self.inputs..values.len()).rev() {
            let Some(grad) = gradients[place].take().filter(|_| self.needed[place]) else { continue };
            let arguments: Vec<&Tensor> = step.arguments.iter().map(|place| values[place.0]).collect();
            let needed: Vec<bool> = step.arguments.iter().map(|place| self.needed[place.0]).collect();
            let pulled =
                (step.pull)(Backward { arguments: &arguments, result: values[place], grad: &grad, needed: &needed })?;
            let Some(pulled) = pulled else { return Ok(None) };
            for ((place, gradient), needed) in step.arguments.iter().zip(pulled).zip(needed) {
                let Some(gradient) = gradient.filter(|_| needed) else { continue };
                gradients[place.0] = Some(match gradients[place.0].take() {
                    Some(so_far) => so_far.f_add(&gradient)?,
                    None => gradient,
                });
            }
        }
        gradients.truncate(self.inputs);
        Ok(Some(gradients))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tch::Kind;

    use super::*;
    use crate::kernels::NumberOperations;

    /// Σ x² y in two steps, each of which uses x.
    fn f_taped_product(x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
        let steps = |tape: &mut Tape, places: &[Place]| {
            let [x, y] = [places[0], places[1]];
            let product = tape.value(x).f_mul(tape.value(y))?;
            let product = tape.add(product, &[x, y], |of| {
                let gradient =
                    |other: usize| of.needed[1 - other].then(|| of.grad.f_mul(of.arguments[other])).transpose();
                Ok(vec![gradient(1)?, gradient(0)?])
            });
            let sum = tape.value(product).f_mul(tape.value(x))?.f_sum(Kind::Double)?;
            let pull =
                |of: Backward| Ok(vec![Some(of.grad.f_mul(of.arguments[1])?), Some(of.grad.f_mul(of.arguments[0])?)]);
            Ok(Some(tape.add(sum, &[product, x], pull)))
        };
        f_taped(&[x, y], steps, |inputs| Ok(inputs[0].f_square()?.f_mul(&inputs[1])?.f_sum(Kind::Double)?))
    }

    fn leaf(numbers: &[f64], needed: bool) -> Tensor {
        Tensor::from_slice(numbers).set_requires_grad(needed)
    }

    fn gradients(of: &Tensor, inputs: &[&Tensor]) -> Vec<Vec<f64>> {
        let gradients = Tensor::run_backward(&[of], inputs, true, false);
        gradients.into_iter().map(|gradient| Vec::try_from(gradient).unwrap()).collect()
    }

    #[test]
    fn gradients_of_all_uses_are_added_up() {
        let (x, y) = (leaf(&[2.0, 3.0], true), leaf(&[5.0, 7.0], true));
        let sum = f_taped_product(&x, &y).unwrap();
        assert_eq!(sum.double_value(&[]), 83.0);
        assert_eq!(gradients(&sum, &[&x, &y]), [[20.0, 42.0], [4.0, 9.0]]);
        assert_eq!(gradients(&(sum * 2.0), &[&y]), [[8.0, 18.0]]);
    }

    #[test]
    fn what_needs_no_gradient_gets_none() {
        for (of_x, of_y) in [(true, false), (false, true)] {
            let (x, y) = (leaf(&[2.0], of_x), leaf(&[5.0], of_y));
            f_taped_product(&x, &y).unwrap().backward();
            assert_eq!((x.grad().defined(), y.grad().defined()), (of_x, of_y));
        }
        let sum = f_taped_product(&leaf(&[2.0], false), &leaf(&[5.0], false)).unwrap();
        assert!(!sum.requires_grad());
    }

    #[test]
    fn second_derivatives_are_those_of_the_other_way() {
        let (x, y) = (leaf(&[2.0], true), leaf(&[5.0], true));
        let first = Tensor::run_backward(&[f_taped_product(&x, &y).unwrap()], &[&x], true, true).remove(0);
        assert_eq!(gradients(&first.sum(Kind::Double), &[&x, &y]), [[10.0], [4.0]]);
    }

    #[test]
    fn a_changed_input_is_noticed() {
        let x = leaf(&[2.0], true);
        let inner = &x * 1.0;
        let sum = f_taped_product(&inner, &leaf(&[5.0], false)).unwrap();
        let _ = tch::no_grad(|| inner.shallow_clone().g_add_scalar_(1.0));
        assert!(sum.f_backward().unwrap_err().to_string().contains("modified by an inplace operation"));
    }

    #[test]
    fn nothing_is_held_once_the_result_is_dropped() {
        let x = leaf(&[2.0], true);
        let held = Arc::new(());
        let double = || {
            let held = held.clone();
            let steps = move |tape: &mut Tape, places: &[Place]| {
                let twice = tape.value(places[0]).f_mul_number(2)?;
                let pull = move |of: Backward| {
                    let _ = &held;
                    Ok(vec![Some(of.grad.f_mul_number(2)?)])
                };
                Ok(Some(tape.add(twice, places, pull)))
            };
            f_taped(&[&x], steps, |inputs| Ok(inputs[0].f_mul_number(2)?)).unwrap()
        };
        drop(double());
        assert_eq!(Arc::strong_count(&held), 1);
        let twice = double();
        assert_eq!(gradients(&twice, &[&x]), [[2.0]]);
        assert_eq!(Arc::strong_count(&held), 2);
        drop(twice);
        assert_eq!(Arc::strong_count(&held), 1);
        let twice = double();
        twice.backward();
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn without_a_result_the_other_way_is_taken() {
        let x = leaf(&[2.0], true);
        let twice = f_taped(&[&x], |_, _| Ok(None), |inputs| Ok(inputs[0].f_mul_number(2)?)).unwrap();
        assert_eq!(gradients(&twice, &[&x]), [[2.0]]);
    }
}
