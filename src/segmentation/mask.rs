//! The shapes of masks, and of their groups.

use tch::{Kind, Tensor};

use super::region::Grouping;
use crate::check::{self, Named};
use crate::{LossError, numeric};

/// `target`, a mask of any kind of real numbers, as `kind` and in the shape of `input`. Where the input has one channel
/// the target may lack that dimension.
pub(super) fn f_one_channel((argument, target): Named, input: &Tensor, kind: Kind) -> Result<Tensor, LossError> {
    let (shape, values) = (input.size(), numeric::f_reals((argument, target), kind)?);
    if shape.get(1) == Some(&1) && target.size() == [&shape[..1], &shape[2..]].concat() {
        return Ok(values.f_unsqueeze(1)?);
    }
    check::same_shape((argument, target), ("input", input))?;
    Ok(values)
}

/// `tensor` without the class 0, where that does not count.
pub(super) fn f_drop_background(option: &'static str, tensor: &Tensor, include: bool) -> Result<Tensor, LossError> {
    if include {
        return Ok(tensor.shallow_clone());
    }
    check_background(option, tensor, include)?;
    Ok(tensor.f_narrow(1, 1, tensor.size()[1] - 1)?)
}

/// Whether there is a class besides the background, where that does not count.
pub(super) fn check_background(option: &'static str, tensor: &Tensor, include: bool) -> Result<(), LossError> {
    let classes = tensor.size().get(1).copied().unwrap_or(0);
    check::option(option, include, include || classes > 1, "true with a single class")
}

/// The dimensions, of as many as `rank`, that make up one group.
pub(super) fn group_dims(grouping: Grouping, rank: usize) -> Vec<i64> {
    let pixels = 2..rank as i64;
    match grouping {
        Grouping::SampleAndClass => pixels.collect(),
        Grouping::Class => [0].into_iter().chain(pixels).collect(),
        Grouping::Sample => (1..rank as i64).collect(),
        Grouping::All => (0..rank as i64).collect(),
    }
}
