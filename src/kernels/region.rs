//! Losses that are a function of sums over the pixels of each class: Dice, Jaccard, Tversky, and their sum with cross
//! entropy. The graph of the sums, on the device of the input.

use std::ops::RangeInclusive;

use tch::{Kind, Tensor};

use super::{cpu, is_on_cuda, takes};
use crate::autograd::{self, Context, Function};
use crate::kernels::number_operations::NumberOperations;
use crate::numeric::is_floating;
use crate::{Activation, LossError, OverlapMeasure};

/// The engine takes no planes of fewer pixels: a class of them is not worth the calls of its kernels.
const FEW_PIXELS: i64 = 16;
/// Classes are compared as floats. Indices up to here are exact in single precision.
const MOST_CLASSES: i64 = 1 << 24;

/// Which sums are computed.
#[derive(Debug, Clone)]
pub(crate) struct Regional {
    pub(crate) activation: Activation,
    pub(crate) measure: OverlapMeasure,
    /// The class index whose pixels are left out of all sums; for masks, the value whose elements are left out.
    pub(crate) ignored: Option<i64>,
    /// The range in which an input without an activation is expected.
    pub(crate) expected: RangeInclusive<f64>,
    /// A cross entropy of the same softmax, which is summed up as well.
    pub(crate) entropy: Option<Entropy>,
}

/// The options of the cross entropy.
#[derive(Debug)]
pub(crate) struct Entropy {
    /// The weight of each class, in double precision on the device of the input; 1 for each where absent.
    pub(crate) weight: Option<Tensor>,
}

impl Clone for Entropy {
    fn clone(&self) -> Self {
        Self { weight: self.weight.as_ref().map(Tensor::shallow_clone) }
    }
}

/// The sums, in double precision.
pub(crate) struct Sums {
    /// The intersections, the input's regions and the target's regions, `[N, C]` each.
    pub(crate) regions: [Tensor; 3],
    /// The sum of the cross entropies, a scalar.
    pub(crate) entropy: Option<Tensor>,
    /// The sum of the weights in the cross entropies.
    pub(crate) weight: Total,
    /// On CUDA, a Boolean scalar: whether all class indices, masks and probabilities were in their range. Others count
    /// as ignored.
    pub(crate) valid: Option<Tensor>,
}

/// A number that is on the host or on the device.
pub(crate) enum Total {
    Number(f64),
    #[cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))]
    Tensor(Tensor),
}

impl Total {
    /// `dividend` over this number.
    pub(crate) fn f_divide(&self, dividend: &Tensor) -> Result<Tensor, LossError> {
        match self {
            Self::Number(number) => Ok(dividend.f_div_number(*number)?),
            Self::Tensor(number) => Ok(dividend.f_div(number)?),
        }
    }
}

/// What an engine computes in the forward pass, without a graph; see [`Sums`].
pub(super) struct Totals {
    pub(super) regions: [Tensor; 3],
    pub(super) entropy: Tensor,
    pub(super) weight: Total,
    pub(super) valid: Option<Tensor>,
}

/// Whether the engine may take this input: its device has one, and its planes have enough pixels.
pub(crate) fn takes_region(input: &Tensor) -> bool {
    let size = input.size();
    let enough = size.len() >= 3 && size[2..].iter().product::<i64>() >= FEW_PIXELS;
    enough && (is_on_cuda(input) || takes(input))
}

/// The sums of `input`, `[N, C, d1, ...]`, and `target`, which holds class indices, 64-bit on the CPU, or masks. `None`
/// where the engine does not take the call. On the CPU that includes class indices out of range, masks that are not in
/// \[0, 1\], and inputs without an activation that are not in their expected range.
///
/// `composite` computes, with differentiable operations, those sums that have a gradient: the intersections, the
/// input's regions, and the cross entropy where there is one.
pub(crate) fn f_region<C>(
    formula: Regional,
    input: &Tensor,
    target: &Tensor,
    composite: C,
) -> Result<Option<Sums>, LossError>
where
    C: Fn(&Tensor, &Tensor) -> Result<Vec<Tensor>, LossError> + Send + 'static,
{
    f_engine(formula, input, target, Box::new(composite))
}

/// The tensor operations that define the sums.
type Composite = Box<dyn Fn(&Tensor, &Tensor) -> Result<Vec<Tensor>, LossError> + Send>;

fn f_engine(
    formula: Regional,
    input: &Tensor,
    target: &Tensor,
    composite: Composite,
) -> Result<Option<Sums>, LossError> {
    if input.dim() < 3 || input.numel() == 0 || input.size()[1] > MOST_CLASSES {
        return Ok(None);
    }
    let kind = input.f_kind()?;
    let differentiated = autograd::grad_enabled() && target.requires_grad();
    if !is_floating(kind) || differentiated || !f_takes(input, target, kind)? {
        return Ok(None);
    }
    let on_cuda = is_on_cuda(input);
    let Some(Totals { regions, entropy, weight, valid }) = f_sums(&formula, input, target)? else {
        return Ok(None);
    };
    let [intersection, of_input, of_target] = regions;
    let with_entropy = formula.entropy.is_some();
    let differentiable = [intersection, of_input].into_iter().chain(with_entropy.then_some(entropy)).collect();
    let backward = move |context: Context| -> autograd::Gradients {
        let [input, target] = context.saved() else { return Ok(vec![None, None]) };
        let grads: Vec<Option<Tensor>> =
            (0..2 + usize::from(with_entropy)).map(|output| context.grad(output)).collect();
        let differentiable = || {
            let loss = |inputs: &[Tensor]| f_weighted(&composite(&inputs[0], target)?, &grads);
            let one = Tensor::f_ones([], (Kind::Double, input.device()))?;
            autograd::f_gradients_of(&loss, &one, std::slice::from_ref(input), &[true])
        };
        let fused = || match f_gradient(on_cuda, &formula, input, target, &grads)? {
            Some(gradient) => Ok(vec![Some(gradient)]),
            None => differentiable(),
        };
        context.f_gradients(&fused, &differentiable)
    };
    let outputs = Function::new(&[input]).save(&[input, target]).f_attach_own(differentiable, backward)?;
    let mut outputs = outputs.into_iter();
    let mut next = || outputs.next().unwrap_or_default();
    Ok(Some(Sums { regions: [next(), next(), of_target], entropy: with_entropy.then(next), weight, valid }))
}

fn f_takes(input: &Tensor, target: &Tensor, kind: Kind) -> Result<bool, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if super::cuda::is_asked_for_any_result(input) {
        return super::cuda::region::takes(input, target, kind);
    }
    cpu::region::takes(input, target, kind)
}

fn f_sums(formula: &Regional, input: &Tensor, target: &Tensor) -> Result<Option<Totals>, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if super::cuda::is_asked_for_any_result(input) {
        return super::cuda::region::f_sums(formula, input, target);
    }
    cpu::region::f_sums(formula, input, target)
}

/// The gradient of the input, given those of the sums, by the device whose engine computed these: a backward pass may
/// run on a thread with another backend. `None` where tensor operations are to compute it.
#[cfg_attr(not(any(test, feature = "cuda")), allow(unused_variables))]
fn f_gradient(
    on_cuda: bool,
    formula: &Regional,
    input: &Tensor,
    target: &Tensor,
    grads: &[Option<Tensor>],
) -> Result<Option<Tensor>, LossError> {
    #[cfg(any(test, feature = "cuda"))]
    if on_cuda {
        return super::cuda::region::f_gradient(formula, input, target, grads);
    }
    cpu::region::f_gradient(formula, input, target, grads).map(Some)
}

/// The sums times their gradients, added up: a scalar whose gradient is that of the loss.
fn f_weighted(sums: &[Tensor], grads: &[Option<Tensor>]) -> Result<Tensor, LossError> {
    let mut value = Tensor::f_zeros([0_i64; 0], (Kind::Double, sums[0].device()))?;
    for (sum, grad) in sums.iter().zip(grads) {
        let Some(grad) = grad else { continue };
        value = value.f_add(&sum.f_mul(grad)?.f_sum(None)?)?;
    }
    Ok(value)
}
