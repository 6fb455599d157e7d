//! From a pass of an engine over memory to a loss with a graph.

use half::{bf16, f16};
use tch::{Kind, Tensor};

use super::element::{Element, f_keeps_digits, f_numbers, f_plain, f_scalar_of};
use crate::autograd::{self, Context, Function, StoredGradients};
use crate::{LossError, Reduction};

/// What computes losses of `N` arguments, for each kind of elements.
pub(super) trait Engine<const N: usize>: Copy + Send + 'static {
    /// Whether some arguments have no loss. It is NaN there, and the composite is asked for the error.
    const PARTIAL: bool = false;
    /// How many of the arguments, the first ones, have a gradient.
    const DIFFERENTIABLE: usize = N;

    /// How many losses the arguments have.
    fn count(self, arguments: [&Tensor; N]) -> usize;

    /// Each loss, and their sum.
    fn f_losses<T: Element>(self, arguments: [&Tensor; N]) -> Result<(f64, Tensor), LossError>;

    /// The sum of the losses, and those derivatives that are wanted, times `factor`.
    fn f_sum<T: Element>(
        self,
        arguments: [&Tensor; N],
        factor: Factor,
        wanted: [bool; N],
    ) -> Result<(f64, Vec<Tensor>), LossError>;
}

/// What the derivatives are multiplied by.
#[derive(Clone, Copy)]
pub(super) enum Factor<'a> {
    /// The same number for all losses.
    Number(f64),
    /// A number for each loss.
    Tensor(&'a Tensor),
}

/// How long the rows of a tensor are, along its last dimension.
pub(super) fn row_length(rows: &Tensor) -> usize {
    rows.size().last().map_or(1, |length| *length as usize)
}

/// What the derivatives of the losses of rows are multiplied by.
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

    pub(super) fn of_row(&self, row: usize) -> f64 {
        match self {
            Self::Number(number) => *number,
            Self::Rows(factors) => factors[row],
        }
    }
}

/// What becomes of the losses.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Reduce {
    /// They are returned.
    No,
    /// Their mean.
    Mean,
    /// Their sum times a number.
    Sum(f64),
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

/// The reduced losses of `arguments`, plain tensors of which the first tells the kind, by `engine`; by the `composite` where
/// the kind is not one of an engine.
pub(super) fn f_dispatch<const N: usize, E, C>(
    engine: E,
    arguments: [&Tensor; N],
    reduce: Reduce,
    composite: C,
) -> Result<Tensor, LossError>
where
    E: Engine<N>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    let kind = arguments[0].f_kind()?;
    f_dispatch_to(kind, engine, arguments, reduce, composite)
}

/// The same, of which a reduced loss has this floating `kind`, as that of the `composite` has.
pub(super) fn f_dispatch_to<const N: usize, E, C>(
    kind: Kind,
    engine: E,
    arguments: [&Tensor; N],
    reduce: Reduce,
    composite: C,
) -> Result<Tensor, LossError>
where
    E: Engine<N>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    match arguments[0].f_kind()? {
        Kind::Float => f_run::<f32, N, E, C>(kind, engine, arguments, reduce, composite),
        Kind::Double => f_run::<f64, N, E, C>(kind, engine, arguments, reduce, composite),
        Kind::Half => f_run::<f16, N, E, C>(kind, engine, arguments, reduce, composite),
        Kind::BFloat16 => f_run::<bf16, N, E, C>(kind, engine, arguments, reduce, composite),
        _ => composite(arguments),
    }
}

fn f_run<T, const N: usize, E, C>(
    kind: Kind,
    engine: E,
    arguments: [&Tensor; N],
    reduce: Reduce,
    composite: C,
) -> Result<Tensor, LossError>
where
    T: Element,
    E: Engine<N>,
    C: Fn([&Tensor; N]) -> Result<Tensor, LossError> + Send + 'static,
{
    let graph = autograd::grad_enabled();
    let needed: [bool; N] =
        std::array::from_fn(|position| graph && position < E::DIFFERENTIABLE && arguments[position].requires_grad());
    let scale = match reduce {
        Reduce::No => 1.0,
        Reduce::Mean => 1.0 / engine.count(arguments) as f64,
        Reduce::Sum(scale) => scale,
    };
    let at_once = reduce != Reduce::No && T::STORED;
    let wanted = needed.map(|needed| needed && at_once);
    let (sum, loss, gradients) = match reduce {
        Reduce::No => {
            let (sum, losses) = engine.f_losses::<T>(arguments)?;
            (sum, losses, Vec::new())
        }
        _ => {
            let (sum, gradients) = engine.f_sum::<T>(arguments, Factor::Number(scale), wanted)?;
            (sum, f_scalar_of(kind, sum * scale)?, gradients)
        }
    };
    if E::PARTIAL && sum.is_nan() {
        return composite(arguments);
    }
    if !needed.contains(&true) {
        return Ok(loss);
    }
    let store = || StoredGradients::f_of_own_kind(autograd::spread(gradients, &needed));
    let stored = at_once.then(store).transpose()?;
    let backward = move |context: Context| -> autograd::Gradients {
        let Some(grad) = context.grad(0) else { return Ok(autograd::spread(vec![], &needed)) };
        let fused = || {
            let grad = f_plain(&grad)?;
            if let Some(stored) = &stored
                && f_keeps_digits::<T>(&grad)?
            {
                return stored.f_scaled(&context, &grad);
            }
            let factor = match reduce {
                Reduce::No => Factor::Tensor(&grad),
                _ => Factor::Number(grad.f_double_value(&[])? * scale),
            };
            let arguments = std::array::from_fn(|position| &context.saved()[position]);
            Ok(autograd::spread(engine.f_sum::<T>(arguments, factor, needed)?.1, &needed))
        };
        let loss = |inputs: &[Tensor]| composite(std::array::from_fn(|position| &inputs[position]));
        context.f_gradients(fused, || autograd::f_gradients_of(loss, &grad, context.saved(), &needed))
    };
    Ok(Function::new(&arguments).save(&arguments).f_attach_own(vec![loss], backward)?.remove(0))
}
