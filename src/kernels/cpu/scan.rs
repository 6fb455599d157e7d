//! Checks of the values of a tensor in its memory, for the losses' argument checks. They need no temporary tensors, as
//! the same checks by tensor operations would.

use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};
use tch::{Kind, Tensor};

use super::elements::{elements, integers, is_plain};
use super::kinds::Stored;
use super::parallel;
use crate::kernels::waits;

/// Whether all `indices`, 64-bit integers, are classes or the ignored index, and whether any is the ignored one. `None`
/// where the tensor is not plain and contiguous.
pub(crate) fn scan_classes(indices: &Tensor, classes: i64, ignored: Option<i64>) -> Option<(bool, bool)> {
    if waits(indices) || !is_plain(indices, Kind::Int64) || !indices.is_contiguous() {
        return None;
    }
    let indices = integers(indices);
    let any_ignored = AtomicBool::new(false);
    let invalid = parallel::sum(indices.len(), 1, |range| {
        let (mut ignores, mut invalid) = (false, false);
        for &class in &indices[range] {
            let ignore = Some(class) == ignored;
            ignores |= ignore;
            invalid |= !ignore & ((class as u64) >= classes as u64);
        }
        any_ignored.fetch_or(ignores, Ordering::Relaxed);
        f64::from(u8::from(invalid))
    });
    Some((invalid == 0.0, any_ignored.into_inner()))
}

/// Whether all numbers of a tensor are in the range, in which NaN is not. `None` where the tensor is not plain and
/// contiguous, or of another kind than floats and 64-bit integers.
pub(crate) fn scan_range(tensor: &Tensor, range: RangeInclusive<f64>) -> Option<bool> {
    fn all<T: Stored + Into<f64>>(tensor: &Tensor, range: RangeInclusive<f64>) -> bool {
        all_in(elements::<T>(tensor), |number| range.contains(&(*number).into()))
    }
    let kind = tensor.f_kind().ok()?;
    if waits(tensor) || !is_plain(tensor, kind) || !tensor.is_contiguous() {
        return None;
    }
    Some(match kind {
        Kind::Float => all::<f32>(tensor, range),
        Kind::Double => all::<f64>(tensor, range),
        Kind::Half => all::<f16>(tensor, range),
        Kind::BFloat16 => all::<bf16>(tensor, range),
        Kind::Int64 => all_in(integers(tensor), |number| range.contains(&(*number as f64))),
        _ => return None,
    })
}

fn all_in<E: Sync>(elements: &[E], inside: impl Fn(&E) -> bool + Sync) -> bool {
    let outside = |part: Range<usize>| elements[part].iter().filter(|element| !inside(element)).count();
    parallel::sum(elements.len(), 1, |part| outside(part) as f64) == 0.0
}
