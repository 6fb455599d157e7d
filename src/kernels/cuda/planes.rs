//! The engine of elements where the first numbers of each are planes of one tensor.

use tch::{Kind, Tensor};

use super::engine::{self, Engine, Forward, Sum};
use super::map::f_split;
use super::pointwise::{Elements, Recorded};
use crate::LossError;
use crate::autograd::Header;
use crate::kernels::engine::{Composite, Reduce};
use crate::kernels::tensors::f_contiguous;

/// The reduced losses of planes; see [`f_pointwise_of_planes`](crate::kernels::f_pointwise_of_planes).
pub(in crate::kernels) fn f_elements(
    formula: Box<dyn Recorded>,
    planes: usize,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = arguments[0].f_kind()?;
    let first = Header::of(arguments[0]);
    let of_kind = |header: &Header| header.is_numbers_of(kind) && header.is_on_device_of(&first);
    let fits = |header: Header| of_kind(&header) && header.size() == &first.size()[1..];
    let taken = matches!(kind, Kind::Float | Kind::Double)
        && first.size().first() == Some(&(planes as i64))
        && first.elements() > 0
        && of_kind(&first)
        && arguments[1..].iter().all(|argument| fits(Header::of(argument)))
        && formula.partial().is_none();
    if !taken {
        return composite(arguments);
    }
    let engine = Planes { elements: Elements::new(&*formula, kind), planes };
    engine::f_dispatch_to(kind, Box::new(engine), arguments, reduce, composite)
}

struct Planes {
    elements: Elements,
    /// How many planes the first argument has.
    planes: usize,
}

impl Engine for Planes {
    fn count(&self, arguments: &[&Tensor]) -> usize {
        Header::of(arguments[0]).elements() / self.planes
    }

    fn f_forward(
        &self,
        arguments: &[&Tensor],
        wanted: &[bool],
        sum: Option<Sum>,
    ) -> Result<Option<Forward>, LossError> {
        let (parts, gradients) = (f_parts(arguments)?, f_gradients(arguments, wanted)?);
        let parts: Vec<&Tensor> = parts.iter().collect();
        let forward = self.elements.f_forward_to(&parts, f_parts_of(&gradients, wanted)?, &self.spread(wanted), sum)?;
        Ok(forward.map(|forward| Forward { gradients, ..forward }))
    }

    fn f_backward(
        &self,
        arguments: &[&Tensor],
        grad: &Tensor,
        wanted: &[bool],
        scale: Option<f64>,
    ) -> Result<Option<Vec<Tensor>>, LossError> {
        let (parts, gradients) = (f_parts(arguments)?, f_gradients(arguments, wanted)?);
        let parts: Vec<&Tensor> = parts.iter().collect();
        let of_parts = f_parts_of(&gradients, wanted)?;
        let launched = self.elements.f_backward_to(&parts, &of_parts, grad, &self.spread(wanted), scale)?;
        Ok(launched.then_some(gradients))
    }
}

impl Planes {
    /// Whether the gradient of each part is wanted, given that of each argument.
    fn spread(&self, wanted: &[bool]) -> Vec<bool> {
        std::iter::repeat_n(wanted[0], self.planes).chain(wanted[1..].iter().copied()).collect()
    }
}

/// The planes of the first argument, then the others, all of them contiguous.
fn f_parts(arguments: &[&Tensor]) -> Result<Vec<Tensor>, LossError> {
    let mut parts = f_split(&f_contiguous(arguments[0])?)?;
    for argument in &arguments[1..] {
        parts.push(f_contiguous(argument)?);
    }
    Ok(parts)
}

/// New contiguous tensors for the gradients that are wanted.
fn f_gradients(arguments: &[&Tensor], wanted: &[bool]) -> Result<Vec<Tensor>, LossError> {
    let wanted = arguments.iter().zip(wanted).filter(|(_, wanted)| **wanted);
    wanted.map(|(argument, _)| Ok(Tensor::f_empty(argument.size(), (argument.f_kind()?, argument.device()))?)).collect()
}

/// The parts of these gradients: the planes of the first argument's, if that is wanted, then the others.
fn f_parts_of(gradients: &[Tensor], wanted: &[bool]) -> Result<Vec<Tensor>, LossError> {
    if !wanted.first().is_some_and(|wanted| *wanted) {
        return Ok(gradients.iter().map(Tensor::shallow_clone).collect());
    }
    let mut parts = f_split(&gradients[0])?;
    parts.extend(gradients[1..].iter().map(Tensor::shallow_clone));
    Ok(parts)
}
