//! What the engines of losses over rows of classes share (softmax, margin, picked, views, …): the arguments of a call,
//! layouts, reductions, kinds, the graph. An engine gives a [`RowFormula`] to [`f_rows`].

pub(super) mod job;
pub(super) mod options;
mod pass;

use tch::{Kind, Tensor};

use super::scan::scan_classes;
use crate::LossError;
use crate::autograd::{self, Context, Function, StoredGradients};
use crate::kernels::backend;
use crate::kernels::cpu::elements::{Numbers, is_plain};
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::output::{Output, f_scalar_of};
use crate::kernels::cpu::rows::job::Factors;
use crate::kernels::cpu::rows::job::Job;
use crate::kernels::cpu::rows::options::Options;
use crate::kernels::engine::Composite;
use crate::kernels::rows::{Layout, RowReduction, Rows};
use crate::kernels::tensors::{f_keeps_digits, f_own, f_plain, is_stored};
use crate::numeric::is_floating;

/// An engine's losses of rows of classes.
pub(super) trait RowFormula: Send + Sync + 'static {
    /// Computes all rows of the job: writes the losses and the gradient where the job has outputs for them, returns the
    /// sum of the losses.
    fn run<W: Wide>(&self, job: &Job<W>) -> f64;
}

/// A [`RowFormula`] without its type.
pub(in crate::kernels) struct Formula(Box<dyn AnyFormula>);

impl<F: RowFormula> From<F> for Formula {
    fn from(formula: F) -> Self {
        Self(Box::new(formula))
    }
}

trait AnyFormula: OfWidth<f32> + OfWidth<f64> + Send {}
impl<F: RowFormula> AnyFormula for F {}

/// A [`RowFormula`] for one type of numbers.
trait OfWidth<W: Wide>: Sync {
    fn run(&self, job: &Job<W>) -> f64;
}
impl<W: Wide, F: RowFormula> OfWidth<W> for F {
    fn run(&self, job: &Job<W>) -> f64 {
        RowFormula::run(self, job)
    }
}

/// The losses of `rows`, reduced, with a graph. `None` where the engine does not take the call. Second derivatives are
/// those of the `composite` of input and target.
pub(in crate::kernels) fn f_rows(
    formula: impl Into<Formula>,
    rows: &Rows,
    reduction: RowReduction,
    composite: Composite,
) -> Result<Option<Tensor>, LossError> {
    if !takes(rows)? {
        return Ok(None);
    }
    f_engine(formula.into().0, rows, reduction, composite).map(Some)
}

/// Whether the engines of rows take the call.
fn takes(rows: &Rows) -> Result<bool, LossError> {
    let kind = rows.input.f_kind()?;
    let target = rows.target.f_kind()?;
    Ok(backend::fused()
        && is_floating(kind)
        && rows.input.numel() != 0
        && rows.input.size()[rows.class_dim] < CLASSES
        && is_plain(rows.input, kind)
        && (target == Kind::Int64 || target == kind)
        && is_plain(rows.target, target)
        && !rows.target.requires_grad()
        && rows.weight.is_none_or(|weight| !weight.requires_grad()))
}

/// The number of classes is below this: larger indices are not exact in `f32`, in which pixels compare them.
const CLASSES: i64 = 1 << 24;

fn f_engine(
    formula: Box<dyn AnyFormula>,
    rows: &Rows,
    reduction: RowReduction,
    composite: Composite,
) -> Result<Tensor, LossError> {
    match rows.input.f_kind()? {
        Kind::Double => f_run::<f64>(formula, |formula| formula, rows, reduction, composite),
        _ => f_run::<f32>(formula, |formula| formula, rows, reduction, composite),
    }
}

fn f_run<W: Wide>(
    formula: Box<dyn AnyFormula>,
    of_width: fn(&dyn AnyFormula) -> &dyn OfWidth<W>,
    rows: &Rows,
    reduction: RowReduction,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = rows.input.f_kind()?;
    let options = Options::<W>::f_new(rows)?;
    let pass = Layout::f_new(rows.input, rows.class_dim, rows.target)?;
    let needed = autograd::grad_enabled() && rows.input.requires_grad();
    let unreduced = reduction == RowReduction::None;
    let at_once = !unreduced && is_stored(kind);
    let scale = pass.scale(&options, reduction);
    let (loss, gradient) = if unreduced {
        let mut size = rows.input.size();
        size.remove(rows.class_dim);
        let losses = Output::f_of_kind(&size, kind)?;
        of_width(&*formula).run(&pass.job(&options, Factors::Number(1.0), Some(&losses), None));
        (losses.into_tensor(), None)
    } else {
        let gradient = (needed && at_once).then(|| Output::f_like(&pass.input)).transpose()?;
        let sum = of_width(&*formula).run(&pass.job(&options, Factors::Number(scale), None, gradient.as_ref()));
        (f_scalar_of(kind, sum * scale)?, gradient.map(Output::into_tensor))
    };
    if !needed {
        return Ok(loss);
    }
    let class_dim = rows.class_dim;
    let stored = at_once.then(|| StoredGradients::f_of_own_kind([gradient])).transpose()?;
    let backward = move |context: Context| -> autograd::Gradients {
        let Some(grad) = context.grad(0) else { return Ok(vec![None]) };
        let [input, target] = context.saved() else { return Ok(vec![None]) };
        let fused = || {
            let grad = f_plain(&grad)?.f_contiguous()?;
            if let Some(stored) = &stored
                && f_keeps_digits(kind, &grad)?
            {
                return stored.f_scaled(&context, &grad);
            }
            let pass = Layout::f_new(input, class_dim, target)?;
            f_unchanged(&pass.target, pass.classes, options.ignored)?;
            let gradient = Output::f_like(&pass.input)?;
            let factors = match unreduced {
                true => Factors::Rows(Numbers::of(&grad)),
                false => Factors::Number(grad.f_double_value(&[])? * scale),
            };
            of_width(&*formula).run(&pass.job(&options, factors, None, Some(&gradient)));
            Ok(vec![Some(gradient.into_tensor())])
        };
        context.f_gradients(&fused, &|| {
            let target = f_own(target)?;
            f_unchanged(&target, input.size()[class_dim] as usize, options.ignored)?;
            let loss = |inputs: &[Tensor]| composite(&[&inputs[0], &target]);
            autograd::f_gradients_of(&loss, &grad, std::slice::from_ref(input), &[true])
        })
    };
    Ok(Function::new(&[rows.input]).save(&[rows.input, rows.target]).f_attach_own(vec![loss], backward)?.remove(0))
}

/// Checks class indices again before a backward pass uses them. They may have been written to since the forward pass,
/// through a tensor whose changes libtorch does not notice, such as `data()`.
fn f_unchanged(target: &Tensor, classes: usize, ignored: i64) -> Result<(), LossError> {
    if target.f_kind()? == Kind::Int64
        && !matches!(scan_classes(target, classes as i64, Some(ignored)), Some((true, _)))
    {
        let expected = format!("classes in [0, {classes}), as in the forward pass");
        return Err(LossError::Value { argument: "target", expected, actual: "others".into() });
    }
    Ok(())
}
