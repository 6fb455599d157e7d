//! What turns an engine into a loss with a graph: the trait that most engines implement, and [`f_dispatch`], which
//! calls them.
//!
//! `f_dispatch` decides what is computed when: where the reduction allows it, the engine computes the loss and its
//! gradient in one pass, in the forward call. The backward closure then multiplies the stored gradient by that of the
//! loss. Otherwise it runs the engine again.

use tch::{Kind, Tensor};

use super::cpu::elements::f_numbers;
use super::cpu::output::f_scalar_of;
use super::tensors::{f_keeps_digits, f_plain, is_stored};
use crate::autograd::{self, Context, Function, StoredGradients};
use crate::numeric::{f_widely_alike, is_floating};
use crate::{LossError, Reduction};

/// An engine with its formula: computes the losses of some tensors, its arguments. The first one has the kind of all,
/// which is a floating kind.
pub(super) trait Engine: Send + 'static {
    /// Whether the losses are undefined for some values of the arguments, such as an invalid label. They are NaN there,
    /// and the composite is then called, because it returns the error.
    fn is_partial(&self) -> bool {
        false
    }

    /// How many of the arguments can have a gradient. They are the first ones.
    fn differentiable(&self) -> usize {
        usize::MAX
    }

    /// How many losses the arguments have, by which a mean divides.
    fn count(&self, arguments: &[&Tensor]) -> usize;

    /// The sum of the losses, and the tensor of all of them.
    fn f_losses(&self, arguments: &[&Tensor]) -> Result<(f64, Tensor), LossError>;

    /// The sum of the losses, and for each argument that is `wanted` the derivative of the losses times `factor`. The
    /// sum itself is not multiplied by the factor.
    fn f_sum(&self, arguments: &[&Tensor], factor: Factor, wanted: &[bool]) -> Result<(f64, Vec<Tensor>), LossError>;
}

/// The tensor operations that define a loss, called with the same arguments as its engine.
pub(crate) type Composite = Box<dyn Fn(&[&Tensor]) -> Result<Tensor, LossError> + Send>;

/// A `composite` of `N` arguments.
pub(crate) fn composite_of<const N: usize, C>(composite: C) -> Composite
where
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    Box::new(move |arguments| composite(first(arguments)))
}

/// The first `N` arguments, as an array.
pub(super) fn first<'a, const N: usize>(arguments: &[&'a Tensor]) -> [&'a Tensor; N] {
    std::array::from_fn(|position| arguments[position])
}

/// A composite that computes half precision in single precision, as the engines do; see [`f_widely_alike`].
pub(crate) fn widely(composite: Composite) -> Composite {
    Box::new(move |arguments| f_widely_alike(arguments, &composite))
}

/// Calls a function with the number type that engines compute this kind in: `f64` for double precision, else `f32`.
macro_rules! by_width {
    ($kind:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $kind {
            tch::Kind::Double => $function::<f64>($($argument),*),
            _ => $function::<f32>($($argument),*),
        }
    };
}
pub(super) use by_width;

/// What the derivatives are multiplied by: the gradient that comes in from what follows the loss, and the reduction's
/// scale.
#[derive(Clone, Copy)]
pub(super) enum Factor<'a> {
    /// The same number for all losses.
    Number(f64),
    /// A tensor with a number for each loss, for losses that are not reduced.
    Tensor(&'a Tensor),
}

/// The length of the rows of a tensor: the size of its last dimension, 1 for a scalar.
pub(super) fn row_length(rows: &Tensor) -> usize {
    rows.size().last().map_or(1, |length| *length as usize)
}

/// [`Factor`] for engines of one loss per row, with the numbers of a tensor read out.
pub(super) enum RowFactors {
    Number(f64),
    Rows(Vec<f64>),
}

impl RowFactors {
    pub(super) fn f_new(factor: Factor) -> Result<Self, LossError> {
        Ok(match factor {
            Factor::Number(number) => Self::Number(number),
            Factor::Tensor(factors) => Self::Rows(f_numbers(factors)?),
        })
    }

    /// The factor of the loss of this row.
    pub(super) fn of_row(&self, row: usize) -> f64 {
        match self {
            Self::Number(number) => *number,
            Self::Rows(factors) => factors[row],
        }
    }
}

/// How the losses are reduced.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Reduce {
    /// Not at all: the tensor of all losses is returned.
    No,
    /// Their mean.
    Mean,
    /// Their sum, times this number.
    Sum(f64),
}

impl Reduce {
    /// What the sum of so many losses is multiplied by; none where they are not reduced.
    pub(super) fn scale(self, count: impl FnOnce() -> usize) -> Option<f64> {
        match self {
            Self::No => None,
            Self::Mean => Some(1.0 / count() as f64),
            Self::Sum(scale) => Some(scale),
        }
    }
}

impl From<Reduction> for Reduce {
    fn from(reduction: Reduction) -> Self {
        match reduction {
            Reduction::None => Self::No,
            Reduction::Mean => Self::Mean,
            Reduction::Sum => Self::Sum(1.0),
        }
    }
}

/// The losses of `arguments`, reduced, with a graph: by `engine`, or by the `composite` where the kind is no floating
/// kind that engines compute. The arguments are plain tensors, and the first one has the kind of the result.
pub(super) fn f_dispatch(
    engine: Box<dyn Engine>,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = arguments[0].f_kind()?;
    f_dispatch_to(kind, engine, arguments, reduce, composite)
}

/// [`f_dispatch`] with another kind of the result: a reduced loss has the floating kind `result`, which is that of the
/// `composite`'s result.
pub(super) fn f_dispatch_to(
    result: Kind,
    engine: Box<dyn Engine>,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = arguments[0].f_kind()?;
    if !is_floating(kind) {
        return composite(arguments);
    }
    let graph = autograd::grad_enabled();
    let needs = |(position, argument): (usize, &&Tensor)| {
        graph && position < engine.differentiable() && argument.requires_grad()
    };
    let needed: Vec<bool> = arguments.iter().enumerate().map(needs).collect();
    let scale = reduce.scale(|| engine.count(arguments)).unwrap_or(1.0);
    let at_once = reduce != Reduce::No && is_stored(kind);
    let (sum, loss, gradients) = match reduce {
        Reduce::No => {
            let (sum, losses) = engine.f_losses(arguments)?;
            (sum, losses, Vec::new())
        }
        _ => {
            let wanted: Vec<bool> = needed.iter().map(|needed| *needed && at_once).collect();
            let (sum, gradients) = engine.f_sum(arguments, Factor::Number(scale), &wanted)?;
            (sum, f_scalar_of(result, sum * scale)?, gradients)
        }
    };
    if engine.is_partial() && sum.is_nan() {
        return composite(arguments);
    }
    if !needed.contains(&true) {
        return Ok(loss);
    }
    let store = || StoredGradients::f_of_own_kind(autograd::spread(gradients, &needed));
    let stored = at_once.then(store).transpose()?;
    let fused = move |context: &Context, grad: &Tensor, needed: &[bool]| {
        if let Some(stored) = &stored
            && f_keeps_digits(kind, grad)?
        {
            return stored.f_scaled(context, grad).map(Some);
        }
        let factor = match reduce {
            Reduce::No => Factor::Tensor(grad),
            _ => Factor::Number(grad.f_double_value(&[])? * scale),
        };
        let arguments: Vec<&Tensor> = context.saved().iter().collect();
        Ok(Some(autograd::spread(engine.f_sum(&arguments, factor, needed)?.1, needed)))
    };
    f_with_graph(loss, arguments, needed, composite, Box::new(fused))
}

/// The gradients of the arguments that need one, given that of the loss, which is plain; none where tensor operations
/// are to compute them.
type Fused = dyn Fn(&Context, &Tensor, &[bool]) -> Result<Option<Vec<Option<Tensor>>>, LossError> + Send;

/// The loss that an engine of any device has computed, with a graph: a backward pass calls `fused`, and derives the
/// `composite` where the gradients are to be differentiated themselves.
pub(super) fn f_with_graph(
    loss: Tensor,
    arguments: &[&Tensor],
    needed: Vec<bool>,
    composite: Composite,
    fused: Box<Fused>,
) -> Result<Tensor, LossError> {
    let backward = move |context: Context| -> autograd::Gradients {
        let Some(grad) = context.grad(0) else { return Ok(autograd::spread(vec![], &needed)) };
        let loss = |inputs: &[Tensor]| composite(&inputs.iter().collect::<Vec<_>>());
        let differentiable = || autograd::f_gradients_of(&loss, &grad, context.saved(), &needed);
        let gradients = || match fused(&context, &f_plain(&grad)?, &needed)? {
            Some(gradients) => Ok(gradients),
            None => differentiable(),
        };
        context.f_gradients(&gradients, &differentiable)
    };
    Ok(Function::new(arguments).save(arguments).f_attach_own(vec![loss], backward)?.remove(0))
}
