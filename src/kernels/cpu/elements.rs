//! The elements of CPU tensors as slices, as engines read them, and what engines require of a tensor's memory.

use std::ops::Range;

use half::{bf16, f16};
use tch::{Kind, Tensor};

use super::BLOCK;
use super::kinds::{Stored, Wide};
use super::simd;
use crate::autograd::Header;
use crate::kernels::tensors::f_plain;
use crate::{LossError, check};

pub(super) type Block<W> = [W; BLOCK];

/// The elements of a tensor, which an engine reads as wide numbers (`f32` or `f64`): as they are, or converted from
/// half precision a block at a time.
#[derive(Clone, Copy)]
pub(super) enum Numbers<'a, W> {
    Wide(&'a [W]),
    Half(&'a [f16]),
    BFloat16(&'a [bf16]),
}

impl<'a, W: Wide> Numbers<'a, W> {
    pub(super) const NONE: Self = Self::Wide(&[]);

    /// The elements of a dense tensor, in the order of its memory. Its kind is half precision, or that of `W`.
    pub(super) fn of(tensor: &'a Tensor) -> Self {
        match tensor.f_kind() {
            Ok(Kind::Half) => Self::Half(elements(tensor)),
            Ok(Kind::BFloat16) => Self::BFloat16(elements(tensor)),
            _ => Self::Wide(elements(tensor)),
        }
    }

    #[inline(always)]
    pub(super) fn len(self) -> usize {
        match self {
            Self::Wide(numbers) => numbers.len(),
            Self::Half(elements) => elements.len(),
            Self::BFloat16(elements) => elements.len(),
        }
    }

    /// A buffer for [`read`](Self::read) of up to `length` elements: empty where they need no conversion.
    pub(super) fn room(self, length: usize) -> Vec<W> {
        vec![W::default(); if matches!(self, Self::Wide(_)) { 0 } else { length }]
    }

    /// The numbers in `range`: a part of the memory itself, or converted into `room`.
    #[inline(always)]
    pub(super) fn read<'b>(self, range: Range<usize>, room: &'b mut [W]) -> &'b [W]
    where
        'a: 'b,
    {
        match self {
            Self::Wide(numbers) => &numbers[range],
            _ => {
                let room = &mut room[..range.len()];
                self.widen(range, room);
                room
            }
        }
    }

    /// Copies the numbers in `range` to `places`, which has the length of the range.
    #[inline(always)]
    pub(super) fn copy(self, range: Range<usize>, places: &mut [W]) {
        match self {
            Self::Wide(numbers) => places.copy_from_slice(&numbers[range]),
            _ => self.widen(range, places),
        }
    }

    /// Out of line, so that the conversions are not compiled into every kernel.
    #[inline(never)]
    fn widen(self, range: Range<usize>, places: &mut [W]) {
        match self {
            Self::Wide(numbers) => places.copy_from_slice(&numbers[range]),
            Self::Half(elements) => W::widen(&elements[range], places),
            Self::BFloat16(elements) => W::widen(&elements[range], places),
        }
    }

    #[inline(always)]
    pub(super) fn wide(self, position: usize) -> W {
        match self {
            Self::Wide(numbers) => numbers[position],
            _ => W::from_f64(self.get(position)),
        }
    }

    pub(super) fn get(self, position: usize) -> f64 {
        match self {
            Self::Wide(numbers) => numbers[position].into(),
            Self::Half(elements) => elements[position].to_f64(),
            Self::BFloat16(elements) => elements[position].to_f64(),
        }
    }

    /// Asks the processor to load the memory of `range` into its cache, because it is read soon.
    #[inline(always)]
    pub(super) fn fetch(self, range: Range<usize>) {
        match self {
            Self::Wide(numbers) => simd::fetch(numbers.as_ptr(), range),
            Self::Half(elements) => simd::fetch(elements.as_ptr(), range),
            Self::BFloat16(elements) => simd::fetch(elements.as_ptr(), range),
        }
    }
}

/// Whether `tensor` is plain and of this kind; see [`Header::is_plain`].
pub(super) fn is_plain(tensor: &Tensor, kind: Kind) -> bool {
    Header::of(tensor).is_plain(kind)
}

/// Whether all tensors are plain, of this kind and of one shape.
pub(super) fn are_alike(tensors: &[&Tensor], kind: Kind) -> bool {
    let size = Header::of(tensors[0]).size();
    let is_alike = |header: Header| header.is_plain(kind) && header.size() == size;
    tensors.iter().all(|tensor| is_alike(Header::of(tensor)))
}

/// The elements of a plain and dense tensor, in the order of its memory. Panics for any other tensor.
pub(super) fn elements<T: Stored>(tensor: &Tensor) -> &[T] {
    let header = Header::of(tensor);
    assert!(header.is_plain(T::KIND) && header.is_dense());
    // SAFETY: just checked.
    unsafe { memory_of(header) }
}

/// The elements of a plain and contiguous tensor of 64-bit integers. Panics for any other tensor.
pub(super) fn integers(tensor: &Tensor) -> &[i64] {
    let header = Header::of(tensor);
    assert!(header.is_plain(Kind::Int64) && header.is_contiguous());
    // SAFETY: just checked.
    unsafe { memory_of(header) }
}

/// The elements of a tensor in the order of its memory.
///
/// # Safety
/// It is plain and dense, and its elements are stored as this type.
unsafe fn memory_of<E>(header: Header<'_>) -> &[E] {
    if header.elements() == 0 {
        return &[];
    }
    // SAFETY: a plain and dense tensor has its elements side by side from its data pointer on, and the caller promises
    // their type. They live as long as the tensor. That nobody writes to them meanwhile is what every operation of
    // libtorch relies on.
    unsafe { std::slice::from_raw_parts(header.data().cast(), header.elements()) }
}

/// A copy of the elements of a CPU tensor of real numbers of any kind and layout, in the order of its indices.
pub(in crate::kernels) fn f_numbers(tensor: &Tensor) -> Result<Vec<f64>, LossError> {
    let tensor = &f_plain(tensor)?;
    let mut numbers = check::f_room(tensor.numel())?;
    match tensor.f_kind()? {
        Kind::Float if tensor.is_contiguous() => numbers.extend(elements::<f32>(tensor).iter().map(|n| f64::from(*n))),
        Kind::Int64 if tensor.is_contiguous() => numbers.extend(integers(tensor).iter().map(|n| *n as f64)),
        _ => {
            let wide = tensor.f_detach()?.f_to_kind(Kind::Double)?.f_contiguous()?;
            numbers.extend_from_slice(elements::<f64>(&wide));
        }
    }
    Ok(numbers)
}
