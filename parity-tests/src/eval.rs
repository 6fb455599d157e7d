//! Runs cases through the crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use tch::{Device, Tensor};
use tch_losses::{InvalidValues, with_autocast, with_autocast_to};

use crate::adapters::{self, Outputs};
use crate::arguments::{Argument, Arguments, EvalError};
use crate::case::{ArgumentKey, Autocast, Case, TensorRef, Tensors, Value};
use crate::results::{CaseResult, Results, Status};

/// What stands between the arguments of a case and its outputs: the adapters, or a broken copy of them in a test.
pub type Runner<'a> = dyn Fn(&str, &mut Arguments) -> Result<Outputs, EvalError> + 'a;

/// Runs the adapter of `reference`.
pub fn run_adapter(reference: &str, arguments: &mut Arguments) -> Result<Outputs, EvalError> {
    let adapter = adapters::find(reference);
    let adapter = adapter.ok_or_else(|| EvalError::Unsupported(format!("no adapter for {reference}")))?;
    let outputs = (adapter.run)(arguments)?;
    arguments.finish()?;
    Ok(outputs)
}

/// Runs all cases. An error is one of the case file; a case that fails is a result.
pub fn evaluate<'a>(
    cases: impl IntoIterator<Item = &'a Case>,
    tensors: &Tensors,
    device: Device,
    runner: &Runner,
    mut progress: impl FnMut(),
) -> Result<Results> {
    let mut results = Results::default();
    for case in cases {
        let computed = alone_on_gpu(device, || evaluate_case(case, tensors, device, runner));
        let computed = computed.with_context(|| format!("case {}", case.id))?;
        results.cases.insert(case.id.clone(), computed.result);
        for (key, tensor) in computed.tensors {
            results.tensors.insert(format!("{}:{key}", case.id), tensor);
        }
        progress();
    }
    results.versions.insert("tch-losses".into(), env!("CARGO_PKG_VERSION").into());
    Ok(results)
}

/// Calls `work` while no other thread computes on a GPU: what a GPU has found of invalid values is asked for after each
/// case, and belongs to it.
fn alone_on_gpu<T>(device: Device, work: impl FnOnce() -> T) -> T {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = device.is_cuda().then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner));
    work()
}

struct Computed {
    result: CaseResult,
    tensors: Vec<(String, Tensor)>,
}

/// The tensors of a case, in place.
struct Resolved {
    arguments: Arguments,
    /// The leaves to differentiate with respect to, one per entry of `grad`.
    leaves: Vec<Tensor>,
    grad_output: Option<Vec<Tensor>>,
    second_order: Option<Vec<Tensor>>,
}

fn evaluate_case(case: &Case, tensors: &Tensors, device: Device, runner: &Runner) -> Result<Computed> {
    let mut resolved = resolve(case, tensors, device)?;
    let attempt = catch_unwind(AssertUnwindSafe(|| compute(case, &mut resolved, device, runner)));
    // On CUDA an invalid value is an error of this question, on the CPU of the call.
    let found = InvalidValues::f_check(device);
    let attempt = attempt.map(|result| result.and_then(|computed| found.map(|()| computed).map_err(Into::into)));
    let result = |status, message| CaseResult { status, outputs: None, message: Some(message), second_order: None };
    let failed = |result| Computed { result, tensors: Vec::new() };
    Ok(match attempt {
        Ok(Ok(computed)) => computed,
        Ok(Err(EvalError::Rejected(message))) => failed(result(Status::Error, message)),
        Ok(Err(EvalError::Unsupported(message))) => failed(result(Status::Unsupported, message)),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            failed(result(Status::Panic, message.to_owned()))
        }
    })
}

fn resolve(case: &Case, tensors: &Tensors, device: Device) -> Result<Resolved> {
    let all = |references: &Option<Vec<TensorRef>>, field: &'static str| {
        let resolve = |list: &Vec<TensorRef>| list.iter().map(|tensor| tensor.resolve(tensors, device)).collect();
        references.as_ref().map(resolve).transpose().context(field)
    };
    let mut leaves: Vec<Option<Tensor>> = case.grad.iter().map(|_| None).collect();
    let mut argument = |key: Option<ArgumentKey>, value: &Value| -> Result<Argument> {
        if let Some(list) = tensors_of(value) {
            let list = list.iter().map(|reference| reference.resolve(tensors, device)).collect::<Result<_>>()?;
            return Ok(Argument::Tensors(list));
        }
        let Value::Tensor(reference) = value else { return Ok(Argument::Plain(value.clone())) };
        let tensor = reference.resolve(tensors, device)?;
        let Some(position) = key.and_then(|key| case.grad.iter().position(|entry| *entry == key)) else {
            return Ok(Argument::Tensor(tensor));
        };
        let leaf = tensor.f_detach()?.f_set_requires_grad(true)?;
        leaves[position] = Some(leaf.shallow_clone());
        Ok(Argument::Tensor(leaf))
    };

    let names = adapters::find(&case.reference).map_or(&[][..], |adapter| adapter.parameters);
    let mut arguments = Arguments::default();
    arguments.device = Some(device);
    for (position, value) in case.args.iter().enumerate() {
        // A position beyond the known parameters gets a name that no adapter takes.
        let name = names.get(position).map_or_else(|| format!("argument {position}"), |name| (*name).to_owned());
        arguments.insert(&name, argument(Some(ArgumentKey::Position(position)), value).context("inputs")?);
    }
    for (name, value) in &case.kwargs {
        arguments.insert(name, argument(Some(ArgumentKey::Name(name.clone())), value).context("inputs")?);
    }
    for (name, value) in &case.options {
        arguments.insert(name, argument(None, value).context("options")?);
    }
    for (name, reference) in &case.state {
        arguments.state.insert(name.clone(), reference.resolve(tensors, device).context("state")?);
    }
    Ok(Resolved {
        arguments,
        leaves: leaves.into_iter().flatten().collect(),
        grad_output: all(&case.grad_output, "grad_output")?,
        second_order: all(&case.second_order, "second_order")?,
    })
}

/// What a list of tensors, and of nothing else, refers to.
fn tensors_of(value: &Value) -> Option<Vec<&TensorRef>> {
    let Value::List(items) = value else { return None };
    let references: Option<Vec<_>> = items
        .iter()
        .map(|item| match item {
            Value::Tensor(reference) => Some(reference),
            _ => None,
        })
        .collect();
    references.filter(|references| !references.is_empty())
}

fn compute(case: &Case, resolved: &mut Resolved, device: Device, runner: &Runner) -> Result<Computed, EvalError> {
    let mut call = || runner(&case.reference, &mut resolved.arguments);
    let outputs = match case.autocast {
        Autocast::Off => call()?,
        Autocast::Default => with_autocast(device, true, call)?,
        Autocast::To(kind) => with_autocast_to(device, Some(kind), call)?,
    };
    let mut tensors = Vec::new();
    for (position, output) in outputs.tensors.iter().enumerate() {
        tensors.push((format!("output/{position}"), stored(output)?));
    }
    let mut result =
        CaseResult { status: Status::Ok, outputs: Some(outputs.tensors.len()), message: None, second_order: None };

    let parameters = outputs.state.iter().map(|(_, parameter)| parameter);
    let inputs: Vec<&Tensor> = resolved.leaves.iter().chain(parameters).collect();
    let gradients = vector_jacobian(&outputs.tensors, resolved.grad_output.as_deref(), &inputs, case)?;
    let names = case.grad.iter().map(|key| format!("grad/{key}"));
    let names = names.chain(outputs.state.iter().map(|(name, _)| format!("grad_state/{name}")));
    for (name, gradient) in names.zip(&gradients) {
        if gradient.defined() {
            tensors.push((name, stored(gradient)?));
        }
    }

    if let Some(directions) = &resolved.second_order {
        match second_order(&gradients, directions, &resolved.leaves) {
            Ok(gradients) => {
                for (key, gradient) in case.grad.iter().zip(&gradients).filter(|(_, gradient)| gradient.defined()) {
                    tensors.push((format!("grad2/{key}"), stored(gradient)?));
                }
            }
            Err(EvalError::Rejected(message) | EvalError::Unsupported(message)) => {
                result.second_order = Some(format!("unavailable: {message}"));
            }
        }
    }
    Ok(Computed { result, tensors })
}

/// The gradients of Σ ⟨outputᵢ, vectorᵢ⟩, whose backward hands exactly the vectors to the outputs.
fn vector_jacobian(
    outputs: &[Tensor],
    vectors: Option<&[Tensor]>,
    inputs: &[&Tensor],
    case: &Case,
) -> Result<Vec<Tensor>, EvalError> {
    let mut products = Vec::new();
    for (position, output) in outputs.iter().enumerate().filter(|(_, output)| output.requires_grad()) {
        let product = match vectors.and_then(|vectors| vectors.get(position)) {
            Some(vector) => output.f_mul(vector)?,
            None => output.shallow_clone(),
        };
        products.push(product.f_sum(None)?);
    }
    f_gradients(&products, inputs, case.second_order.is_some())
}

/// The gradients of Σ ⟨gᵢ, uᵢ⟩.
fn second_order(gradients: &[Tensor], directions: &[Tensor], inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
    let mut products = Vec::new();
    for (gradient, direction) in gradients.iter().zip(directions) {
        if gradient.defined() && gradient.requires_grad() {
            products.push(gradient.f_mul(direction)?.f_sum(None)?);
        }
    }
    f_gradients(&products, &inputs.iter().collect::<Vec<_>>(), false)
}

fn f_gradients(outputs: &[Tensor], inputs: &[&Tensor], create_graph: bool) -> Result<Vec<Tensor>, EvalError> {
    if outputs.is_empty() || inputs.is_empty() {
        return Ok(inputs.iter().map(|_| Tensor::new()).collect());
    }
    Ok(Tensor::f_run_backward(outputs, inputs, create_graph, create_graph)?)
}

/// The tensor as the result file stores it. A copy, because second derivatives may be zeros without memory.
fn stored(tensor: &Tensor) -> Result<Tensor, EvalError> {
    let mut copy = Tensor::f_zeros(tensor.size(), (tensor.f_kind()?, Device::Cpu))?;
    copy.f_copy_(&tensor.f_detach()?)?;
    Ok(copy)
}
