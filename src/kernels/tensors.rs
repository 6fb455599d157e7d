//! What engines ask of tensors, whatever the device.

use tch::{Kind, Tensor};

use crate::LossError;
use crate::autograd::{Form, Header};
use crate::numeric::is_half;

/// Whether gradients of this kind are computed in the forward pass and kept, to be multiplied by the gradient of the
/// loss in the backward pass. Not in `f16`: they could underflow there before a loss scale multiplies them.
pub(super) fn is_stored(kind: Kind) -> bool {
    kind != Kind::Half
}

/// Whether a stored gradient of this kind can be multiplied by `grad`, the gradient of the loss, without a second
/// rounding. In half precision that needs a power of two, as the usual 1 is.
pub(super) fn f_keeps_digits(kind: Kind, grad: &Tensor) -> Result<bool, LossError> {
    if !is_half(kind) {
        return Ok(true);
    }
    let factor = grad.f_double_value(&[])?;
    let fraction = factor.to_bits() << (u64::BITS - (f64::MANTISSA_DIGITS - 1));
    Ok(factor.is_normal() && fraction == 0)
}

/// `tensor`, which is dense, as one whose memory holds its values: itself, or a copy without a graph where libtorch
/// negates or conjugates it lazily, or keeps its zeros without memory.
pub(crate) fn f_plain(tensor: &Tensor) -> Result<Tensor, LossError> {
    if Form::of(tensor).is_lazy() { f_own(tensor) } else { Ok(tensor.shallow_clone()) }
}

/// A contiguous copy of `tensor` without a graph. It shares no memory, so nobody else can write to it.
pub(crate) fn f_own(tensor: &Tensor) -> Result<Tensor, LossError> {
    let mut copy = Tensor::f_empty(tensor.size(), (tensor.f_kind()?, tensor.device()))?;
    copy.f_copy_(&tensor.f_detach()?)?;
    Ok(copy)
}

/// `tensor` without gaps in memory and without a graph: a copy only where it has gaps.
pub(super) fn f_contiguous(tensor: &Tensor) -> Result<Tensor, LossError> {
    Ok(tensor.f_detach()?.f_contiguous()?)
}

/// The same of each of these tensors.
pub(super) fn f_all_contiguous(tensors: &[&Tensor]) -> Result<Vec<Tensor>, LossError> {
    tensors.iter().map(|tensor| f_contiguous(tensor)).collect()
}

/// Calls `work` with these tensors in [one memory layout](f_one_layout).
pub(super) fn f_in_one_layout<T>(
    tensors: &[&Tensor],
    work: impl FnOnce(&[&Tensor]) -> Result<T, LossError>,
) -> Result<T, LossError> {
    if are_contiguous(tensors) {
        return work(tensors);
    }
    work(&f_one_layout(tensors)?.iter().collect::<Vec<_>>())
}

fn are_contiguous(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| Header::of(tensor).is_contiguous())
}

/// `tensors` with one memory layout, so that one index finds the same element in all of them: the layout of the first
/// one where that is dense, else the contiguous one. Those of another layout are copied without a graph.
pub(super) fn f_one_layout(tensors: &[&Tensor]) -> Result<Vec<Tensor>, LossError> {
    if are_contiguous(tensors) {
        return Ok(tensors.iter().map(|tensor| tensor.shallow_clone()).collect());
    }
    let first = if Header::of(tensors[0]).is_dense() { tensors[0].shallow_clone() } else { f_contiguous(tensors[0])? };
    let (size, stride, device) = (first.size(), first.stride(), first.device());
    let mut all = vec![first];
    for tensor in &tensors[1..] {
        if tensor.stride() == stride {
            all.push(tensor.shallow_clone());
            continue;
        }
        let mut copy = Tensor::f_empty_strided(&size, &stride, (tensor.f_kind()?, device))?;
        copy.f_copy_(&tensor.f_detach()?)?;
        all.push(copy);
    }
    Ok(all)
}
