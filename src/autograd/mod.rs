//! Functions with a backward of their own, written in Rust: the `torch.autograd.Function` that tch lacks.
//!
//! [`Function`] attaches a Rust closure to tensors as their backward. The values are computed by whatever means,
//! without a graph; when a backward pass reaches them, the closure gets the gradients of the outputs and returns those
//! of the inputs.
//!
//! * An error or a panic in the closure comes out of `f_backward` as an error; nothing unwinds through C++.
//! * Tensors that the backward needs are [saved](Function::save): a change in place between forward and backward is an
//!   error, and their memory is freed after the backward pass, unless it keeps the graph.
//! * Where the backward pass itself is to be differentiated, [`Context::create_graph`] is true, and the closure must
//!   compute with differentiable operations on the saved inputs, or return an error. A function that cannot be
//!   differentiated twice [says so](Function::once_differentiable).
//! * Backward passes run on libtorch's own threads, one per CUDA device, so the closure is `Send`. It may be called
//!   several times, so it is an `Fn`. It need not be `Sync`: threads that run backward passes through one graph at the
//!   same time enter it one after the other. So a closure does not wait for another thread that has to go through the
//!   same closure. One that runs a backward pass of its own through the same graph comes back to itself on its own
//!   thread, as a recursive function.
//! * Incoming gradients have memory of their own: libtorch's zeros without memory, and views that are negated when they
//!   are read, come as plain tensors. So do the gradients that the closure returns.
//!
//! # Example: a straight-through estimator
//!
//! Rounds in the forward pass and lets the gradient through as if it had not.
//!
//! ```
//! use tch::{Tensor, no_grad};
//! use tch_losses::LossError;
//! use tch_losses::autograd::Function;
//!
//! fn round_straight_through(input: &Tensor) -> Result<Tensor, LossError> {
//!     let rounded = no_grad(|| input.f_round())?;
//!     Function::new(&[input]).f_attach_one(rounded, |context| Ok(vec![context.grad(0)]))
//! }
//!
//! let input = Tensor::from_slice(&[0.2, 0.7]).set_requires_grad(true);
//! let output = round_straight_through(&input)?;
//! (&output * 3.0).sum(None).backward();
//! assert_eq!(Vec::<f64>::try_from(&output)?, [0.0, 1.0]);
//! assert_eq!(Vec::<f64>::try_from(input.grad())?, [3.0, 3.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Example: a gradient-reversal layer
//!
//! The identity whose gradient is reversed, for domain-adversarial training.
//!
//! ```
//! use tch::Tensor;
//! use tch_losses::LossError;
//! use tch_losses::autograd::Function;
//!
//! fn reverse_gradient(input: &Tensor, strength: f64) -> Result<Tensor, LossError> {
//!     Function::new(&[input]).f_attach_one(input.f_detach()?, move |context| {
//!         let reversed = context.grad(0).map(|grad| grad.f_mul_scalar(-strength)).transpose()?;
//!         Ok(vec![reversed])
//!     })
//! }
//!
//! let features = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
//! reverse_gradient(&features, 0.5)?.sum(None).backward();
//! assert_eq!(Vec::<f64>::try_from(features.grad())?, [-0.5, -0.5]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// This module calls C++ (`node.cpp`, `header.cpp`).
#![allow(unsafe_code)]

mod autocast;
mod ffi;
mod graph;
mod header;
mod precomputed;
mod stored;
mod tape;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Tensor, no_grad_guard};

pub(crate) use autocast::{autocast_kind, autocasts, without_autocast};
#[doc(hidden)]
pub use autocast::{with_autocast, with_autocast_to};
pub(crate) use ffi::{drop_payload, grad_enabled};
pub(crate) use graph::{f_alias, f_with_zero_gradients};
pub(crate) use header::{Form, Header, code as kind_code};
pub use precomputed::f_precomputed;
pub(crate) use precomputed::{f_gradients_of, spread};
pub(crate) use stored::{Stored, StoredGradients};
pub(crate) use tape::{Backward, Place, Tape, f_taped};

use crate::{LossError, argument};

/// What the backward closure of a [`Function`] returns: the gradient of each input, `None` where there is none.
pub type Gradients = Result<Vec<Option<Tensor>>, LossError>;

type Closure = dyn Fn(Context) -> Gradients + Send;

/// A function of tensors whose backward is a Rust closure.
#[derive(Debug)]
#[doc(alias = "torch.autograd.Function")]
pub struct Function<'a> {
    inputs: Vec<&'a Tensor>,
    saved: Vec<&'a Tensor>,
    once: bool,
}

/// What a backward closure is called with.
#[derive(Debug)]
pub struct Context {
    grads: Vec<Option<Tensor>>,
    saved: Vec<Tensor>,
}

impl Context {
    /// The gradient of output `position`, or `None` where nothing after it needs one.
    pub fn grad(&self, position: usize) -> Option<Tensor> {
        self.grads.get(position)?.as_ref().map(Tensor::shallow_clone)
    }

    /// The saved tensors, in their order. Saved inputs are the inputs themselves, with their graph.
    pub fn saved(&self) -> &[Tensor] {
        &self.saved
    }

    /// Whether the gradients are to be differentiated themselves.
    pub fn create_graph(&self) -> bool {
        ffi::grad_enabled()
    }

    /// Whether another backward pass may follow through the same graph. Where none does, this is the last call of the
    /// closure.
    pub fn keep_graph(&self) -> bool {
        ffi::keep_graph()
    }

    /// The gradients that `fused` computes. Where they are to be differentiated themselves, they stand on the graph of
    /// those that `differentiable` computes: their values are the same, and their derivatives are those of the
    /// composite. So a gradient does not depend on whether a second one is asked for.
    pub(crate) fn f_gradients(
        &self,
        fused: &dyn Fn() -> Gradients,
        differentiable: &dyn Fn() -> Gradients,
    ) -> Gradients {
        if !self.create_graph() {
            return fused();
        }
        let values = {
            let _off = no_grad_guard();
            fused()?
        };
        graph::f_on_graph_of(values, differentiable()?)
    }
}

/// Whether each of the `inputs` needs a gradient.
pub(crate) fn needed(inputs: &[&Tensor]) -> Vec<bool> {
    let enabled = ffi::grad_enabled();
    inputs.iter().map(|input| enabled && input.requires_grad()).collect()
}

impl<'a> Function<'a> {
    /// A function of these inputs.
    pub fn new(inputs: &[&'a Tensor]) -> Self {
        Self { inputs: inputs.to_vec(), saved: Vec::new(), once: false }
    }

    /// Says that the gradients cannot be differentiated themselves: a backward pass through them is an error that says
    /// so. The closure is then always called with gradients off, and need not care about [`Context::create_graph`].
    ///
    /// Without this, the gradients of a closure that computes them without a graph are constants, of which libtorch has
    /// no derivative. tch does not check that: `run_backward` on a tensor without a graph ends the process.
    ///
    /// # Example
    ///
    /// ```
    /// use tch::{Kind, Tensor, no_grad};
    /// use tch_losses::autograd::Function;
    ///
    /// let x = Tensor::from_slice(&[1.0, 3.0]).set_requires_grad(true);
    /// let square = no_grad(|| x.square());
    /// let square = Function::new(&[&x]).save(&[&x]).once_differentiable().f_attach_one(square, |context| {
    ///     // As another program would compute it, which knows nothing of libtorch's graphs.
    ///     let numbers = Vec::<f64>::try_from(&context.saved()[0].detach())?;
    ///     let slope: Vec<f64> = numbers.iter().map(|x| 2.0 * x).collect();
    ///     Ok(vec![context.grad(0).map(|grad| grad.f_mul(&Tensor::from_slice(&slope))).transpose()?])
    /// })?;
    ///
    /// let gradient = Tensor::f_run_backward(&[square.sum(Kind::Double)], &[&x], true, true)?.remove(0);
    /// assert_eq!(Vec::<f64>::try_from(gradient.detach())?, [2.0, 6.0]);
    /// let error = Tensor::f_run_backward(&[gradient.sum(Kind::Double)], &[&x], false, false).unwrap_err();
    /// assert!(error.to_string().contains("once_differentiable"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn once_differentiable(mut self) -> Self {
        self.once = true;
        self
    }

    /// Sets the tensors that the backward closure will find in [`Context::saved`]: inputs, or tensors without a graph
    /// that the forward pass computed. An output may be saved as a detached copy of itself, which shares its memory.
    pub fn save(mut self, saved: &[&'a Tensor]) -> Self {
        self.saved = saved.to_vec();
        self
    }

    /// Returns the outputs with `backward` attached to them. Where gradients are off or no input requires one, the
    /// outputs have no graph and the closure is dropped.
    ///
    /// # Errors
    /// [`LossError::Undefined`] for an undefined tensor, [`LossError::Torch`] where libtorch cannot attach the closure.
    pub fn f_attach<F>(self, outputs: Vec<Tensor>, backward: F) -> Result<Vec<Tensor>, LossError>
    where
        F: Fn(Context) -> Gradients + Send + 'static,
    {
        self.f_attach_closure(outputs, Box::new(backward))
    }

    fn f_attach_closure(self, outputs: Vec<Tensor>, backward: Box<Closure>) -> Result<Vec<Tensor>, LossError> {
        let named =
            |argument, tensors: &[&Tensor]| tensors.iter().try_for_each(|tensor| argument::defined((argument, tensor)));
        named("input", &self.inputs)?;
        named("saved", &self.saved)?;
        named("output", &outputs.iter().collect::<Vec<_>>())?;
        // Detached, so that the node is attached neither to a tensor with a graph of the caller's nor to an input that
        // is returned as an output.
        let outputs = outputs.iter().map(Tensor::f_detach).collect::<Result<Vec<_>, _>>()?;
        self.f_attach_own_closure(outputs, backward)
    }

    /// [`f_attach`](Self::f_attach) for outputs that are new tensors without a graph, so that they need not be
    /// detached.
    pub(crate) fn f_attach_own<F>(self, outputs: Vec<Tensor>, backward: F) -> Result<Vec<Tensor>, LossError>
    where
        F: Fn(Context) -> Gradients + Send + 'static,
    {
        self.f_attach_own_closure(outputs, Box::new(backward))
    }

    /// [`f_attach_own`](Self::f_attach_own), compiled once for all closures.
    fn f_attach_own_closure(self, mut outputs: Vec<Tensor>, backward: Box<Closure>) -> Result<Vec<Tensor>, LossError> {
        if !ffi::grad_enabled() || !self.inputs.iter().any(|input| input.requires_grad()) {
            return Ok(outputs);
        }
        ffi::f_attach(&mut outputs, &self.inputs, &self.saved, self.once, backward)?;
        Ok(outputs)
    }

    /// [`f_attach`](Self::f_attach) for a function of one output.
    ///
    /// # Errors
    /// As [`f_attach`](Self::f_attach).
    pub fn f_attach_one<F>(self, output: Tensor, backward: F) -> Result<Tensor, LossError>
    where
        F: Fn(Context) -> Gradients + Send + 'static,
    {
        Ok(self.f_attach(vec![output], backward)?.remove(0))
    }
}

/// Calls the closure, which has to return a gradient for each of so many `inputs`. An error or a panic becomes its
/// text.
fn call(closure: &Closure, context: Context, inputs: usize) -> Result<Vec<Option<Tensor>>, String> {
    let gradients = catch_unwind(AssertUnwindSafe(|| closure(context))).map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a message");
        let text = format!("panic in a backward function: {text}");
        drop_payload(payload);
        text
    })?;
    let gradients = gradients.map_err(|error| format!("error in a backward function: {error}"))?;
    if gradients.len() != inputs {
        return Err(format!("a backward function returned {} gradients, expected {inputs}", gradients.len()));
    }
    Ok(gradients)
}
