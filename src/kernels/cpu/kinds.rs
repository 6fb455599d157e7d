//! The kinds that the elements of floating tensors are stored as, and those that engines compute in.

use std::mem::MaybeUninit;

use half::{bf16, f16};
use tch::Kind;

use super::lane::Scalar;
use super::narrow::Narrow;

/// A type that the elements of a floating tensor are stored as.
pub(super) trait Stored: Copy + Send + Sync + 'static {
    const KIND: Kind;
}

impl Stored for f32 {
    const KIND: Kind = Kind::Float;
}
impl Stored for f64 {
    const KIND: Kind = Kind::Double;
}
impl Stored for f16 {
    const KIND: Kind = Kind::Half;
}
impl Stored for bf16 {
    const KIND: Kind = Kind::BFloat16;
}

/// A number type that engines compute in, `f32` or `f64`. Half precision is widened to it.
pub(super) trait Wide: Scalar + Stored {
    /// Converts elements of half precision into numbers; both slices have the same length.
    fn widen<H: Narrow>(elements: &[H], numbers: &mut [Self]);
    /// Converts numbers into elements of half precision; both slices have the same length.
    fn narrow<H: Narrow>(numbers: &[Self], elements: &mut [MaybeUninit<H>]);
    /// Sorts numbers, each with an index beside it, in ascending order. Equal numbers keep their order.
    fn sort(numbers: &mut [(Self, u32)]);
}

impl Wide for f32 {
    fn widen<H: Narrow>(elements: &[H], numbers: &mut [Self]) {
        H::widen_all(elements, numbers);
    }

    fn narrow<H: Narrow>(numbers: &[Self], elements: &mut [MaybeUninit<H>]) {
        H::narrow_all(numbers, elements);
    }

    fn sort(numbers: &mut [(Self, u32)]) {
        radsort::sort_by_key(numbers, |(number, _)| *number);
    }
}

impl Wide for f64 {
    fn widen<H: Narrow>(elements: &[H], numbers: &mut [Self]) {
        for (number, element) in numbers.iter_mut().zip(elements) {
            *number = element.widen().into();
        }
    }

    fn narrow<H: Narrow>(numbers: &[Self], elements: &mut [MaybeUninit<H>]) {
        for (element, number) in elements.iter_mut().zip(numbers) {
            element.write(H::narrow(*number as f32));
        }
    }

    fn sort(numbers: &mut [(Self, u32)]) {
        radsort::sort_by_key(numbers, |(number, _)| *number);
    }
}
