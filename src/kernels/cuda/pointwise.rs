//! The engine of losses that are a function of each element.

use std::ffi::c_void;
use std::fmt::Write;

use tch::{Kind, Tensor};

use super::arguments::{self, Argument};
use super::engine::{self, Engine, FINISH, Forward, Sum, address};
use super::launch::{Block, Kernel, Launch};
use super::modules;
use super::source::{self, Body, Source};
use crate::autograd::Header;
use crate::kernels::engine::{Composite, Reduce};
use crate::kernels::formulas::{Expected, Pointwise, Typed};
use crate::kernels::graph::{self, Id, Recording};
use crate::{InvalidValues, LossError};

const POINTWISE: Kernel = Kernel { name: c"pointwise", types: &["Call"] };
const FINISH_PARTIAL: Kernel =
    Kernel { name: c"finish_partial", types: &["const double*", "int", "double", "Element*", "Element*"] };

/// A formula without its type, as a graph of operations.
pub(in crate::kernels) trait Recorded: Send + Sync {
    fn partial(&self) -> Option<Expected>;

    /// The loss, and its derivatives.
    fn record(&self) -> Recording;
}

impl<P: Pointwise<N>, const N: usize> Recorded for Typed<P, N> {
    fn partial(&self) -> Option<Expected> {
        P::PARTIAL
    }

    fn record(&self) -> Recording {
        graph::record::<N>(|arguments| {
            let (loss, derivatives) = self.0.evaluate(arguments);
            std::iter::once(loss).chain(derivatives).collect()
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
    let partial = formula.partial();
    if !takes(arguments, kind)? || partial.is_some() && result != kind {
        return composite(arguments);
    }
    let engine = Elements { recording: formula.record(), partial, kind };
    engine::f_dispatch_to(result, Box::new(engine), arguments, reduce, composite)
}

fn takes(arguments: &[&Tensor], kind: Kind) -> Result<bool, LossError> {
    let first = Header::of(arguments[0]);
    if !is_floating(kind) || first.elements() == 0 {
        return Ok(false);
    }
    for argument in arguments {
        let (header, own) = (Header::of(argument), argument.f_kind()?);
        let alike = header.is_on_device_of(&first) && header.size() == first.size();
        if !alike || !arguments::takes_kind(kind, own) || !header.is_numbers_of(own) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether kernels compute losses of this kind.
pub(super) fn is_floating(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
}

/// A formula, for tensors of a kind.
struct Elements {
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
        let arguments = arguments::f_arrange(arguments)?;
        let Some(kernels) = self.kernels(&arguments, None, wanted, sum.is_none()) else { return Ok(None) };
        let first = &arguments[0].tensor;
        let gradients = engine::f_gradients(first, wanted)?;
        let grid = engine::grid(first);
        // Behind the sums of partial losses come the counts of elements without a loss.
        let length = i64::from(grid) * if self.partial.is_some() { 2 } else { 1 };
        let sums = Tensor::f_empty([length], (Kind::Double, first.device()))?;
        let Some(sum) = sum else {
            let losses = first.f_detach()?.f_empty_like()?;
            if !kernels.run(&gradients, 1.0, Some(&losses), self.partial.map(|_| &sums)) {
                return Ok(None);
            }
            if self.partial.is_some() {
                kernels.f_noted(&sums, grid, Sum { scale: 1.0, kind: self.kind })?;
            }
            return Ok(Some(Forward { loss: losses, gradients, valid: None }));
        };
        if !kernels.run(&gradients, sum.scale, None, Some(&sums)) {
            return Ok(None);
        }
        if self.partial.is_some() {
            let finished = kernels.f_noted(&sums, grid, sum)?;
            return Ok(finished.map(|(loss, valid)| Forward { loss, gradients, valid: Some(valid) }));
        }
        let loss = engine::f_finish(&*kernels.launcher, self.kind, &sums, grid, sum)?;
        Ok(loss.map(|loss| Forward { loss, gradients, valid: None }))
    }

    fn f_backward(
        &self,
        arguments: &[&Tensor],
        grad: &Tensor,
        wanted: &[bool],
        scale: Option<f64>,
    ) -> Result<Option<Vec<Tensor>>, LossError> {
        let arguments = arguments::f_arrange(arguments)?;
        let factors = arguments::f_beside(&arguments[0].tensor, grad)?;
        let Some(kernels) = self.kernels(&arguments, Some(&factors), wanted, false) else { return Ok(None) };
        let gradients = engine::f_gradients(&arguments[0].tensor, wanted)?;
        Ok(kernels.run(&gradients, scale.unwrap_or(1.0), None, None).then_some(gradients))
    }
}

impl Elements {
    /// The kernels that store these gradients, times the `factors` where there are some, and the losses or not.
    fn kernels<'a>(
        &'a self,
        arguments: &'a [Argument],
        factors: Option<&'a Argument>,
        wanted: &[bool],
        losses: bool,
    ) -> Option<Kernels<'a>> {
        let Source { text, parameters } = evaluate(&self.recording, wanted);
        let mut source = source::head(self.kind, parameters.len());
        let gradients = wanted.iter().filter(|wanted| **wanted).count();
        let (count, stored, partial) = (arguments.len(), usize::from(losses), usize::from(self.partial.is_some()));
        _ = write!(source, "#define ARGUMENTS {count}\n#define GRADIENTS {gradients}\n");
        _ = write!(source, "#define LOSSES {stored}\n#define PARTIAL {partial}\n");
        arguments::write_reads(&mut source, arguments, factors);
        source.push_str(&text);
        source.push_str(include_str!("source/pointwise.cu"));
        let names: &[Kernel] =
            if self.partial.is_some() { &[POINTWISE, FINISH, FINISH_PARTIAL] } else { &[POINTWISE, FINISH] };
        let launcher = modules::launcher(arguments[0].tensor.device(), &source, names)?;
        Some(Kernels { call: self, arguments, factors, parameters, launcher })
    }
}

/// A formula as the C++ function `evaluate`. `wanted` tells which of the derivatives it stores.
pub(super) fn evaluate(recording: &Recording, wanted: &[bool]) -> Source {
    let arguments = recording.outputs.len() - 1;
    assert_eq!(wanted.len(), arguments);
    let slopes = recording.outputs[1..].iter().zip(wanted).filter(|(_, wanted)| **wanted).map(|(id, _)| *id);
    let outputs: Vec<Id> = recording.outputs[..1].iter().copied().chain(slopes).collect();
    let names: Vec<String> = (0..arguments).map(|position| format!("a[{position}]")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let Body { statements, outputs, parameters } = source::body(recording, &outputs, &names);
    let mut text = "DEVICE Real evaluate(const Real* a, const Real* p, Real* g) {\n".to_owned();
    text.push_str(&statements);
    for (position, output) in outputs[1..].iter().enumerate() {
        _ = writeln!(text, "  g[{position}] = {output};");
    }
    _ = writeln!(text, "  return {};\n}}", outputs[0]);
    Source { text, parameters }
}

/// The kernels of a call, loaded.
struct Kernels<'a> {
    call: &'a Elements,
    arguments: &'a [Argument],
    factors: Option<&'a Argument>,
    parameters: Vec<f64>,
    launcher: Box<dyn Launch>,
}

impl Kernels<'_> {
    /// Runs over all elements, as `Call` in pointwise.cu says. Whether that could be launched.
    fn run(&self, gradients: &[Tensor], factor: f64, losses: Option<&Tensor>, sums: Option<&Tensor>) -> bool {
        let kind = self.call.kind;
        let first = &self.arguments[0].tensor;
        let length = Header::of(first).elements();
        let address_of = |tensor: Option<&Tensor>| tensor.map_or(std::ptr::null(), address);
        let mut read = self.arguments.iter().chain(self.factors);
        let mut written = gradients.iter().chain(losses);
        let aligned = read.all(|argument| argument.is_aligned(kind))
            && written.all(|tensor| (address(tensor) as usize).is_multiple_of(engine::PACK));
        let mut block = Block::default();
        self.arguments.iter().for_each(|argument| block.pointer(address(&argument.tensor)));
        gradients.iter().for_each(|gradient| block.pointer(address(gradient)));
        // The array of gradients has one place more than there are, since C++ has no empty ones.
        let factors = address_of(self.factors.map(|factors| &factors.tensor));
        let others = [std::ptr::null(), address_of(losses), factors, address_of(sums)];
        others.into_iter().for_each(|address| block.pointer(address));
        block.long(length as i64);
        arguments::write_steps(&mut block, self.arguments, self.factors);
        block.int(aligned.into());
        block.int(i32::try_from(length).is_ok().into());
        block.real(kind, factor);
        self.parameters.iter().for_each(|parameter| block.real(kind, *parameter));
        block.real(kind, 0.0);
        let mut call = block.finish();
        // SAFETY: the block has the layout of `Call`; all tensors are on the device and as large as the steps say, and
        // their memory is freed on the same stream, behind the kernel.
        unsafe { self.launcher.launch(POINTWISE, engine::grid(first), &mut [call.as_mut_ptr().cast()]) }.is_ok()
    }

    /// [`f_finish_partial`](Self::f_finish_partial), of which the GPU takes a note.
    fn f_noted(&self, sums: &Tensor, grid: u32, sum: Sum) -> Result<Option<(Tensor, Tensor)>, LossError> {
        let finished = self.f_finish_partial(sums, grid, sum)?;
        if let (Some((_, valid)), Some((argument, expected))) = (&finished, self.call.partial) {
            InvalidValues::f_note(valid.device(), argument, expected.into(), &valid.f_to_kind(Kind::Bool)?)?;
        }
        Ok(finished)
    }

    /// The loss, and 1 where all elements had one, else 0; none where that could not be launched.
    fn f_finish_partial(&self, sums: &Tensor, grid: u32, sum: Sum) -> Result<Option<(Tensor, Tensor)>, LossError> {
        let f_number = || Tensor::f_empty([0_i64; 0], (self.call.kind, sums.device()));
        let (loss, valid) = (f_number()?, f_number()?);
        let (mut from, mut count, mut scale) = (address(sums), grid as i32, sum.scale);
        let (mut to, mut flag) = (loss.data_ptr(), valid.data_ptr());
        let parameters: &mut [*mut c_void] = &mut [
            (&raw mut from).cast(),
            (&raw mut count).cast(),
            (&raw mut scale).cast(),
            (&raw mut to).cast(),
            (&raw mut flag).cast(),
        ];
        // SAFETY: the types are those of the kernel; the kernels of a stream run one after the other.
        let launched = unsafe { self.launcher.launch(FINISH_PARTIAL, 1, parameters) }.is_ok();
        Ok(launched.then_some((loss, valid)))
    }
}
