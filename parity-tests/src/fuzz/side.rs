//! One call on one backend: the value, the gradients with and without a graph of their own, the second derivatives.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Device, Kind, TchError, Tensor};
use tch_losses::{Backend, InvalidValues, LossError, with_backend};

use super::call::{Call, Order};
use super::random::Random;

/// What computes a call: the crate, or in a test something that is broken.
pub type Runner<'a> = dyn Fn(Backend, &Call, &[Tensor], Kind) -> Result<Vec<Tensor>, LossError> + 'a;

/// The crate.
pub fn crate_itself(backend: Backend, call: &Call, arguments: &[Tensor], kind: Kind) -> Result<Vec<Tensor>, LossError> {
    within(backend, call, || {
        let outputs = (call.compute)(arguments, kind);
        // Engines of CUDA have found invalid values, of which the call has not told.
        let found = InvalidValues::f_check(Device::Cpu);
        outputs.and_then(|outputs| found.map(|()| outputs))
    })
}

/// Calls `work`, in which this computes the losses: tensor operations, or the engines of the call.
pub fn within<T>(backend: Backend, call: &Call, work: impl FnOnce() -> T) -> T {
    match backend {
        Backend::Composite => with_backend(backend, work),
        _ => call.engines.within(work),
    }
}

/// Why there is no result.
#[derive(Debug, Clone)]
pub enum Failure {
    /// An error of the crate.
    Rejected(String),
    /// A panic.
    Panic(String),
}

/// Derivatives, or why there are none.
pub type Derivatives = Result<Vec<Tensor>, Failure>;

/// What a backend makes of a call.
#[derive(Debug)]
pub struct Side {
    /// The outputs.
    pub outputs: Vec<Tensor>,
    /// The gradients of the arguments that require one.
    pub gradients: Derivatives,
    /// The same under `create_graph`, where that is asked for.
    pub differentiable: Option<Derivatives>,
    /// The second derivatives, where they are asked for.
    pub second: Option<Derivatives>,
}

/// Computes a call.
pub fn compute(
    runner: &Runner,
    backend: Backend,
    call: &Call,
    arguments: &[Tensor],
    options: Kind,
) -> Result<Side, Failure> {
    let forward = || guarded(|| runner(backend, call, arguments, options));
    let outputs = forward()?;
    let leaves: Vec<&Tensor> = arguments.iter().filter(|tensor| tensor.defined() && tensor.requires_grad()).collect();
    let derive = |outputs: &[Tensor], keep_graph, create_graph| {
        guarded(|| within(backend, call, || Ok(f_gradients(outputs, &leaves, call.seed, keep_graph, create_graph)?)))
    };
    let gradients = derive(&outputs, call.keep_graph, false);
    if call.order == Order::First {
        return Ok(Side { outputs, gradients, differentiable: None, second: None });
    }
    let again = if call.keep_graph { None } else { Some(forward()?) };
    let differentiable = derive(again.as_deref().unwrap_or(&outputs), true, true);
    let second = match (&differentiable, call.order) {
        (Ok(gradients), Order::Second) => Some(derive(gradients, false, false)),
        _ => None,
    };
    Ok(Side { outputs, gradients, differentiable: Some(differentiable), second })
}

/// The gradients of Σ ⟨outputᵢ, vectorᵢ⟩, of vectors that are random but for the seed.
fn f_gradients(
    outputs: &[Tensor],
    leaves: &[&Tensor],
    seed: u64,
    keep_graph: bool,
    create_graph: bool,
) -> Result<Vec<Tensor>, TchError> {
    let mut random = Random::new(seed);
    let mut products = Vec::new();
    for output in outputs.iter().filter(|output| output.defined() && !output.is_complex() && output.requires_grad()) {
        if output.dim() == 0 && random.chance(0.5) {
            products.push(output.shallow_clone());
            continue;
        }
        // Numbers that every kind has.
        let number = |random: &mut Random| (random.uniform(0.5, 1.5) * 64.0).round() / 64.0;
        let numbers: Vec<f64> = (0..output.numel()).map(|_| number(&mut random)).collect();
        let vector = Tensor::f_from_slice(&numbers)?.f_reshape(output.size())?.f_to_kind(output.kind())?;
        products.push(output.f_mul(&vector)?.f_sum(None)?);
    }
    if products.is_empty() || leaves.is_empty() {
        return Ok(leaves.iter().map(|_| Tensor::new()).collect());
    }
    Tensor::f_run_backward(&products, leaves, keep_graph, create_graph)
}

/// The result of `work`; a panic is a failure like an error.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, LossError>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::Rejected(error.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            Err(Failure::Panic(text.lines().next().unwrap_or_default().to_owned()))
        }
    }
}
