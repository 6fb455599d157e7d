//! Erosion and dilation, on the device of the regions: the smallest or the largest number around each element of a plane
//! or a volume. Soft clDice uses it.
//!
//! The gradient of a result goes to the element that it was taken from; where several are equal, to the first one, as
//! in libtorch's pooling.

use tch::{Kind, Tensor};

use super::tensors::{f_contiguous, f_plain};
use super::{backend, cpu};
use crate::LossError;
use crate::autograd::{self, Context, Function, Header};

/// What is computed for each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Neighbours {
    /// The smallest of it and its direct neighbours: the minimum of the minima along each dimension.
    Erode,
    /// The largest of it and all its neighbours, diagonal ones as well.
    Dilate,
}

/// The erosion or dilation of `regions` `[N, C, H, W]` or `[N, C, D, H, W]`; by the `composite` of tensor operations
/// where the engine does not take the call.
pub(crate) fn f_neighbours<C>(neighbours: Neighbours, regions: &Tensor, composite: C) -> Result<Tensor, LossError>
where
    C: Fn(&Tensor) -> Result<Tensor, LossError> + Send + 'static,
{
    let kind = regions.f_kind()?;
    let fits = matches!(regions.dim(), 4 | 5) && matches!(kind, Kind::Float | Kind::Double) && regions.numel() != 0;
    let Some(device) = Engines::of(regions, kind).filter(|_| fits) else { return composite(regions) };
    let extremes = device.f_extremes(neighbours, &f_contiguous(regions)?)?;
    let Some(extremes) = extremes else { return composite(regions) };
    let backward = move |context: Context| -> autograd::Gradients {
        let Some(grad) = context.grad(0) else { return Ok(vec![None]) };
        let [regions, extremes] = context.saved() else { return Ok(vec![None]) };
        let again = |inputs: &[Tensor]| composite(&inputs[0]);
        let differentiable = || autograd::f_gradients_of(&again, &grad, &[regions.shallow_clone()], &[true]);
        let fused = || {
            let input = f_contiguous(regions)?;
            let grad = f_contiguous(&f_plain(&grad)?)?;
            let gradient = device.f_slopes(neighbours, [&input, extremes, &grad])?;
            gradient.map_or_else(differentiable, |gradient| Ok(vec![Some(gradient)]))
        };
        context.f_gradients(&fused, &differentiable)
    };
    // An output is saved as a detached tensor of the same memory; see `Function::save`.
    let saved = extremes.f_detach()?;
    Ok(Function::new(&[regions]).save(&[regions, &saved]).f_attach_own(vec![extremes], backward)?.remove(0))
}

/// The engines that take a call. All their tensors are contiguous and of one kind.
#[derive(Clone, Copy)]
enum Engines {
    Cpu,
    #[cfg(any(test, feature = "cuda"))]
    Cuda,
}

impl Engines {
    fn of(regions: &Tensor, kind: Kind) -> Option<Self> {
        let header = Header::of(regions);
        #[cfg(any(test, feature = "cuda"))]
        if super::cuda::is_asked(regions) {
            return header.is_numbers_of(kind).then_some(Self::Cuda);
        }
        (backend::fused() && header.is_plain(kind)).then_some(Self::Cpu)
    }

    /// The extremes; none where tensor operations are to compute them.
    fn f_extremes(self, neighbours: Neighbours, input: &Tensor) -> Result<Option<Tensor>, LossError> {
        match self {
            Self::Cpu => cpu::neighbours::f_extremes(neighbours, input),
            #[cfg(any(test, feature = "cuda"))]
            Self::Cuda => super::cuda::neighbours::f_extremes(neighbours, input),
        }
    }

    /// The gradient of the input, given input, extremes and the gradient of these.
    fn f_slopes(self, neighbours: Neighbours, tensors: [&Tensor; 3]) -> Result<Option<Tensor>, LossError> {
        match self {
            Self::Cpu => cpu::neighbours::f_slopes(neighbours, tensors).map(Some),
            #[cfg(any(test, feature = "cuda"))]
            Self::Cuda => super::cuda::neighbours::f_slopes(neighbours, tensors),
        }
    }
}
