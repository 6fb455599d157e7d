//! The engine [`pointwise`](super::pointwise) where the first numbers of each element are planes of one tensor, as the sums
//! under the windows of SSIM are.

use tch::Tensor;

use super::elements::{Numbers, is_plain};
use super::kinds::Wide;
use super::output::Output;
use super::pointwise::{Factors, Formula, OfBlock, run};
use crate::LossError;
use crate::kernels::backend;
use crate::kernels::engine::{Composite, Engine, Factor, Reduce, by_width, f_dispatch_to};

/// The reduced losses of planes; see [`f_pointwise_of_planes`](crate::kernels::f_pointwise_of_planes).
pub(in crate::kernels) fn f_elements(
    formula: Box<dyn Formula>,
    planes: usize,
    arguments: &[&Tensor],
    reduce: Reduce,
    composite: Composite,
) -> Result<Tensor, LossError> {
    let kind = arguments[0].f_kind()?;
    let size = arguments[0].size();
    let fits = |argument: &&Tensor| is_plain(argument, kind) && argument.size() == size[1..];
    let taken = size.first() == Some(&(planes as i64)) && is_plain(arguments[0], kind);
    if !backend::fused() || !taken || !arguments[1..].iter().all(fits) {
        return composite(arguments);
    }
    f_dispatch_to(kind, Box::new(Planes { formula, count: planes }), arguments, reduce, composite)
}

/// The engine of a formula whose first numbers are planes of the first argument.
struct Planes {
    formula: Box<dyn Formula>,
    /// How many planes the first argument has.
    count: usize,
}

impl Engine for Planes {
    fn is_partial(&self) -> bool {
        self.formula.is_partial()
    }

    fn count(&self, arguments: &[&Tensor]) -> usize {
        arguments[0].numel() / self.count
    }

    fn f_losses(&self, arguments: &[&Tensor]) -> Result<(f64, Tensor), LossError> {
        by_width!(arguments[0].f_kind()?, f_losses_of_planes(&*self.formula, arguments))
    }

    fn f_sum(&self, arguments: &[&Tensor], factor: Factor, wanted: &[bool]) -> Result<(f64, Vec<Tensor>), LossError> {
        by_width!(arguments[0].f_kind()?, f_sum_of_planes(&*self.formula, self.count, arguments, factor, wanted))
    }
}

fn f_losses_of_planes<W: Wide>(formula: &dyn OfBlock<W>, arguments: &[&Tensor]) -> Result<(f64, Tensor), LossError> {
    let losses = Output::<W>::f_of_kind(&arguments[0].size()[1..], arguments[0].f_kind()?)?;
    let planes = f_split(arguments)?;
    let gradients: Vec<Option<Output<W>>> = planes.iter().map(|_| None).collect();
    let sum =
        run(formula, &planes.iter().collect::<Vec<_>>(), Factors::Number(W::default()), Some(&losses), &gradients);
    Ok((sum, losses.into_tensor()))
}

fn f_sum_of_planes<W: Wide>(
    formula: &dyn OfBlock<W>,
    count: usize,
    arguments: &[&Tensor],
    factor: Factor,
    wanted: &[bool],
) -> Result<(f64, Vec<Tensor>), LossError> {
    let (mut outputs, mut gradients) = (Vec::new(), Vec::new());
    for (position, (argument, wanted)) in arguments.iter().zip(wanted).enumerate() {
        let parts = if position == 0 { count } else { 1 };
        if !wanted {
            gradients.extend((0..parts).map(|_| None));
            continue;
        }
        let output = Output::<W>::f_of_kind(&argument.size(), argument.f_kind()?)?;
        gradients.extend(output.parts(parts).into_iter().map(Some));
        outputs.push(output);
    }
    let planes = f_split(arguments)?;
    let sum = match factor {
        Factor::Number(number) => {
            run(formula, &planes.iter().collect::<Vec<_>>(), Factors::Number(W::from_f64(number)), None, &gradients)
        }
        Factor::Tensor(factors) => {
            let factors = factors.f_detach()?.f_contiguous()?;
            run(formula, &planes.iter().collect::<Vec<_>>(), Factors::Elements(Numbers::of(&factors)), None, &gradients)
        }
    };
    Ok((sum, outputs.into_iter().map(Output::into_tensor).collect()))
}

/// The planes of the first argument, then the other arguments, all of them contiguous.
fn f_split(arguments: &[&Tensor]) -> Result<Vec<Tensor>, LossError> {
    let planes = arguments[0].f_detach()?.f_contiguous()?;
    let mut all = Vec::new();
    for plane in 0..planes.size()[0] {
        all.push(planes.f_select(0, plane)?);
    }
    for argument in &arguments[1..] {
        all.push(argument.f_detach()?.f_contiguous()?);
    }
    Ok(all)
}
