//! The engine of losses that are a function of each element.

use std::fmt::Write;

use tch::{Kind, Tensor};

use super::arguments::{self, Argument};
use super::engine::{self, Ends, Engine, Finish, Forward, Sum};
use super::launch::{Block, Kernel, Launch};
use super::modules;
use super::source::{self, Body, Recipe};
use crate::autograd::Header;
use crate::kernels::engine::{Composite, Reduce};
use crate::kernels::formulas::{Expected, Pointwise, Typed};
use crate::kernels::graph::{self, Recording};
use crate::kernels::number::{Real, choose};
use crate::numeric::is_floating;
use crate::{InvalidValues, LossError};

const POINTWISE: Kernel = Kernel { name: c"pointwise", types: &["Call"] };

/// A formula without its type, as a graph of operations.
pub(in crate::kernels) trait Recorded: Send + Sync {
    fn partial(&self) -> Option<Expected>;

    /// The loss, and its derivatives. Of a [partial](Self::partial) formula also whether there is a loss: 1, or 0.
    fn record(&self) -> Recording;
}

impl<P: Pointwise<N>, const N: usize> Recorded for Typed<P, N> {
    fn partial(&self) -> Option<Expected> {
        self.0.partial()
    }

    fn record(&self) -> Recording {
        graph::record::<N>(|arguments| {
            let (loss, derivatives) = self.0.evaluate(arguments);
            let is_defined = || choose(self.0.is_defined(arguments), Real::of(1.0), Real::of(0.0));
            let is_defined = self.0.partial().map(|_| is_defined());
            std::iter::once(loss).chain(derivatives).chain(is_defined).collect()
        })
    }
}

/// The reduced losses of `arguments`; see [`f_pointwise_to`](crate::kernels::pointwise::f_pointwise_to). The composite
/// takes half precision as it is.
pub(in crate::kernels) fn f_elements(
    result: Kind,
    formula: Box<dyn Recorded>,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = arguments[0].f_kind()?;
    if !takes(arguments, kind)? {
        return composite(arguments);
    }
    engine::f_dispatch_to(result, Box::new(Elements::new(&*formula, kind)), arguments, reduce, composite)
}

fn takes(arguments: &[&Tensor], kind: Kind) -> Result<bool, LossError> {
    let first = Header::of(arguments[0]);
    if !is_floating(kind) || first.elements() == 0 {
        return Ok(false);
    }
    for argument in arguments {
        let (header, own) = (Header::of(argument), argument.f_kind()?);
        let alike = header.is_on_device_of(&first) && header.size() == first.size();
        if !alike || !arguments::takes_beside(arguments[0], argument)? || !header.is_numbers_of(own) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A formula, for tensors of a kind.
pub(super) struct Elements {
    recording: Recording,
    /// What is expected where some elements have no loss. Theirs is NaN, without a gradient.
    partial: Option<Expected>,
    kind: Kind,
}

impl Engine for Elements {
    fn count(&self, arguments: &[&Tensor]) -> usize {
        Header::of(arguments[0]).elements()
    }

    fn f_forward(
        &self,
        arguments: &[&Tensor],
        wanted: &[bool],
        sum: Option<Sum>,
    ) -> Result<Option<Forward>, LossError> {
        let first = arguments::f_first(arguments)?;
        let gradients = engine::f_gradients(&first, wanted)?;
        self.f_forward_to(&with_first(&first, arguments), gradients, wanted, sum)
    }

    fn f_backward(
        &self,
        arguments: &[&Tensor],
        grad: &Tensor,
        wanted: &[bool],
        scale: Option<f64>,
    ) -> Result<Option<Vec<Tensor>>, LossError> {
        let first = arguments::f_first(arguments)?;
        let gradients = engine::f_gradients(&first, wanted)?;
        let arguments = &with_first(&first, arguments);
        Ok(self.f_backward_to(arguments, &gradients, grad, wanted, scale)?.then_some(gradients))
    }
}

/// The arguments, with this one in place of the first.
fn with_first<'a>(first: &'a Tensor, arguments: &[&'a Tensor]) -> Vec<&'a Tensor> {
    std::iter::once(first).chain(arguments[1..].iter().copied()).collect()
}

impl Elements {
    pub(super) fn new(formula: &dyn Recorded, kind: Kind) -> Self {
        Self { recording: formula.record(), partial: formula.partial(), kind }
    }

    /// [`Engine::f_forward`] into these `gradients`, which lie in memory as the first argument does.
    pub(super) fn f_forward_to(
        &self,
        arguments: &[&Tensor],
        gradients: Vec<Tensor>,
        wanted: &[bool],
        sum: Option<Sum>,
    ) -> Result<Option<Forward>, LossError> {
        let arguments = arguments::f_arrange(arguments)?;
        let Some(kernels) = self.kernels(&arguments, None, wanted, sum.is_none()) else { return Ok(None) };
        let first = &arguments[0].tensor;
        let note = self.partial.map(|(argument, expected)| InvalidValues::f_memory(first.device(), argument, expected));
        let note = note.transpose()?;
        let finish = Finish { partial: note.is_some(), ..Finish::default() };
        let f_losses = || Ok(first.f_detach()?.f_empty_like()?);
        let f_run = |Ends { losses, sums, scale }: Ends| {
            let outputs = Outputs { losses, sums, note: note.as_ref(), factor: scale, ..Outputs::of(&gradients) };
            Ok(kernels.run(outputs))
        };
        let ended = engine::f_end(first.device(), sum, (engine::grid(first), finish), f_losses, f_run)?;
        Ok(ended.map(|(loss, valid)| Forward { loss, gradients, valid }))
    }

    /// [`Engine::f_backward`] into these `gradients`. Whether that could be launched.
    pub(super) fn f_backward_to(
        &self,
        arguments: &[&Tensor],
        gradients: &[Tensor],
        grad: &Tensor,
        wanted: &[bool],
        scale: Option<f64>,
    ) -> Result<bool, LossError> {
        let arguments = arguments::f_arrange(arguments)?;
        let factors = arguments::f_beside(&arguments[0].tensor, grad)?;
        let Some(kernels) = self.kernels(&arguments, Some(&factors), wanted, false) else { return Ok(false) };
        Ok(kernels.run(Outputs { factor: scale.unwrap_or(1.0), ..Outputs::of(gradients) }))
    }

    /// The kernels that store these gradients, times the `factors` where there are some, and the losses or not.
    fn kernels<'a>(
        &'a self,
        arguments: &'a [Argument],
        factors: Option<&'a Argument>,
        wanted: &[bool],
        losses: bool,
    ) -> Option<Kernels<'a>> {
        let mut wanted = wanted.to_vec();
        // Whether there is a loss.
        wanted.extend(self.partial.map(|_| true));
        let formula = self.recording.with_wanted(&wanted);
        let partial = usize::from(self.partial.is_some());
        let mut definitions = format!(
            "#define ARGUMENTS {}\n#define GRADIENTS {}\n#define LOSSES {}\n#define PARTIAL {partial}\n",
            arguments.len(),
            formula.outputs.len() - 1 - partial,
            usize::from(losses),
        );
        arguments::write_reads(&mut definitions, arguments, factors);
        let (kind, parameters) = (self.kind, self.recording.parameters.len());
        let recipe = Recipe { kind, parameters, definitions, formulas: vec![formula], write };
        let launcher = modules::launcher_of(arguments[0].tensor.device(), recipe, &[POINTWISE])?;
        Some(Kernels { call: self, arguments, factors, launcher })
    }
}

fn write(recipe: &Recipe) -> String {
    [&recipe.head(), &evaluate(&recipe.formulas[0]), include_str!("source/pointwise.cu")].concat()
}

/// A formula as the C++ function `evaluate`, which returns the first output and stores the others.
pub(super) fn evaluate(formula: &Recording) -> String {
    let names = source::numbered("a", formula.arguments());
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let Body { statements, outputs } = source::body(formula, &formula.outputs, &names);
    let mut text = "DEVICE Real evaluate(const Real* a, const Real* p, Real* g) {\n".to_owned();
    text.push_str(&statements);
    for (position, output) in outputs[1..].iter().enumerate() {
        _ = writeln!(text, "  g[{position}] = {output};");
    }
    _ = writeln!(text, "  return {};\n}}", outputs[0]);
    text
}

/// The kernels of a call, loaded.
struct Kernels<'a> {
    call: &'a Elements,
    arguments: &'a [Argument],
    factors: Option<&'a Argument>,
    launcher: Box<dyn Launch>,
}

/// What the kernel writes, and a number that it multiplies derivatives by.
struct Outputs<'a> {
    gradients: &'a [Tensor],
    losses: Option<&'a Tensor>,
    sums: Option<&'a Tensor>,
    note: Option<&'a Tensor>,
    factor: f64,
}

impl<'a> Outputs<'a> {
    fn of(gradients: &'a [Tensor]) -> Self {
        Self { gradients, losses: None, sums: None, note: None, factor: 1.0 }
    }
}

impl Kernels<'_> {
    /// Runs over all elements, as `Call` in pointwise.cu says. Whether that could be launched.
    fn run(&self, Outputs { gradients, losses, sums, note, factor }: Outputs) -> bool {
        let kind = self.call.kind;
        let first = &self.arguments[0].tensor;
        let length = Header::of(first).elements();
        let mut read = self.arguments.iter().chain(self.factors);
        let aligned =
            read.all(|argument| argument.is_aligned(kind)) && engine::are_aligned(gradients.iter().chain(losses));
        let mut block = Block::default();
        block.tensors(self.arguments.iter().map(|argument| &argument.tensor).chain(gradients));
        // The array of gradients has one place more than there are, since C++ has no empty ones.
        block.tensors([None, losses, self.factors.map(|factors| &factors.tensor), sums, note]);
        block.longs([length as i64]);
        arguments::write_steps(&mut block, self.arguments, self.factors);
        block.flags([aligned, i32::try_from(length).is_ok()]);
        block.reals(kind, [factor]);
        block.array(kind, &self.call.recording.parameters);
        // SAFETY: the block has the layout of `Call`; all tensors are on the device and as large as the steps say, and
        // their memory is freed on the same stream, behind the kernel.
        unsafe { block.launch(&*self.launcher, POINTWISE, engine::grid(first)) }
    }
}
