//! The tensors that engines fill: losses and gradients, in the kind of the arguments.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use half::{bf16, f16};
use tch::{Kind, Tensor};

use super::elements::Numbers;
use super::kinds::{Stored, Wide};
use super::{memory, simd};
use crate::LossError;
use crate::autograd::Header;

/// Outputs of this many bytes and more are written past the caches. These would not keep such an output for its next
/// reader: it and an input of its size fill the 32 MiB that a third-level cache usually has.
const STREAMED: usize = 16 << 20;

/// A tensor whose elements an engine overwrites, all of them, from several threads. Its kind is half precision, to
/// which numbers are converted when they are written, or that of `W`.
pub(super) struct Output<W> {
    tensor: Tensor,
    /// The first element.
    start: *mut u8,
    /// How many elements it has.
    length: usize,
    /// The kind of half precision in which the elements are stored; none where they are stored as `W`.
    half: Option<Half>,
    /// Whether it is written past the caches; see [`STREAMED`].
    streamed: bool,
    numbers: PhantomData<W>,
}

/// A kind of half precision.
#[derive(Clone, Copy, PartialEq)]
enum Half {
    F16,
    BF16,
}

// SAFETY: the pointer is that of memory which the tensor keeps, and is used through `part` alone.
unsafe impl<W: Send> Send for Output<W> {}
// SAFETY: see above; `part` demands that no two threads ask for the same elements.
unsafe impl<W: Send> Sync for Output<W> {}

impl<W: Wide> Output<W> {
    /// A new tensor of the size, layout and kind of `like`, which is dense.
    pub(super) fn f_like(like: &Tensor) -> Result<Self, LossError> {
        Self::f_of(memory::f_empty_like(like)?)
    }

    /// A new contiguous tensor of the kind of `W`.
    pub(super) fn f_of_size(size: &[i64]) -> Result<Self, LossError> {
        Self::f_of_kind(size, W::KIND)
    }

    /// A new contiguous tensor of this kind.
    pub(super) fn f_of_kind(size: &[i64], kind: Kind) -> Result<Self, LossError> {
        Self::f_of(memory::f_empty(size, kind)?)
    }

    fn f_of(tensor: Tensor) -> Result<Self, LossError> {
        let bytes = Header::of(&tensor).elements() * tensor.f_kind()?.elt_size_in_bytes();
        Ok(Self { streamed: bytes >= STREAMED, ..Self::f_over(tensor)? })
    }

    /// A dense tensor that exists already, whose elements are overwritten. Nobody else uses its memory meanwhile.
    pub(super) fn f_over(tensor: Tensor) -> Result<Self, LossError> {
        let kind = tensor.f_kind()?;
        let half = match kind {
            Kind::Half => Some(Half::F16),
            Kind::BFloat16 => Some(Half::BF16),
            _ => None,
        };
        let header = Header::of(&tensor);
        assert!((half.is_some() || kind == W::KIND) && header.is_plain(kind) && header.is_dense());
        let (start, length) = (tensor.data_ptr().cast(), header.elements());
        Ok(Self { start, length, half, streamed: false, tensor, numbers: PhantomData })
    }

    fn element_size(&self) -> usize {
        if self.half.is_some() { size_of::<f16>() } else { size_of::<W>() }
    }

    /// Cuts it into `count` parts of the same length, one after the other in memory.
    pub(super) fn parts(&self, count: usize) -> Vec<Self> {
        let length = self.length / count;
        let part = |index: usize| Self {
            tensor: self.tensor.shallow_clone(),
            // Stays within the tensor's memory, or at its end.
            start: self.start.wrapping_add(index * length * self.element_size()),
            length,
            half: self.half,
            streamed: self.streamed,
            numbers: PhantomData,
        };
        (0..count).map(part).collect()
    }

    /// Writes numbers to the elements in `range`, converted to their kind. To be called in a task of
    /// [`parallel`](super::parallel), after which other threads see them.
    ///
    /// # Safety
    /// No other call has a part of the range at the same time, neither of this output nor of what `parts` has returned.
    pub(super) unsafe fn write(&self, range: Range<usize>, numbers: &[W]) {
        if self.streamed && self.half.is_none() {
            // SAFETY: the caller's promise.
            simd::stream(numbers, unsafe { self.part(range) });
            return;
        }
        // SAFETY: the caller's promise.
        unsafe { self.write_cached(range, numbers) };
    }

    /// [`write`](Self::write) through the caches in any case, for few numbers.
    ///
    /// # Safety
    /// As for [`write`](Self::write).
    #[inline(always)]
    pub(super) unsafe fn write_cached(&self, range: Range<usize>, numbers: &[W]) {
        // SAFETY: the caller's promise; elements are of this type.
        unsafe {
            match self.half {
                None => simd::copy(numbers, self.part(range)),
                Some(half) => self.narrow(half, range, numbers),
            }
        }
    }

    /// Writes numbers in half precision. Out of line, so that the conversions are not compiled into every kernel.
    ///
    /// # Safety
    /// As for [`write`](Self::write).
    #[inline(never)]
    unsafe fn narrow(&self, half: Half, range: Range<usize>, numbers: &[W]) {
        // SAFETY: the caller's promise; elements are of this type.
        unsafe {
            match half {
                Half::F16 => W::narrow::<f16>(numbers, self.part(range)),
                Half::BF16 => W::narrow::<bf16>(numbers, self.part(range)),
            }
        }
    }

    /// Writes zeros to the elements in `range`.
    ///
    /// # Safety
    /// As for [`write`](Self::write).
    pub(super) unsafe fn write_zeros(&self, range: Range<usize>) {
        let size = self.element_size();
        assert!(range.start <= range.end && range.end <= self.length);
        // SAFETY: within the tensor's memory; zero has no bits in any of the kinds.
        unsafe { self.start.add(range.start * size).write_bytes(0, range.len() * size) };
    }

    /// The elements in `range` as places of the type `T`, which is the one they are stored as.
    ///
    /// # Safety
    /// As for [`write`](Self::write).
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part<T: Stored>(&self, range: Range<usize>) -> &mut [MaybeUninit<T>] {
        assert!(range.start <= range.end && range.end <= self.length && size_of::<T>() == self.element_size());
        if range.is_empty() {
            return &mut [];
        }
        // SAFETY: the range is within the tensor's memory, which nobody else knows of until `into_tensor`.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast::<MaybeUninit<T>>().add(range.start), range.len()) }
    }

    /// The elements in `range` as places that a kernel writes its numbers to directly. `None` where
    /// [`write`](Self::write) converts the numbers or goes past the caches.
    ///
    /// # Safety
    /// As for [`write`](Self::write).
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(super) unsafe fn places(&self, range: Range<usize>) -> Option<&mut [MaybeUninit<W>]> {
        if !self.has_places() {
            return None;
        }
        // SAFETY: the caller's promise.
        Some(unsafe { self.part(range) })
    }

    /// Whether [`places`](Self::places) returns some.
    pub(super) fn has_places(&self) -> bool {
        !self.streamed && self.half.is_none()
    }

    /// The elements in `range`, to be read again.
    ///
    /// # Safety
    /// No call writes to the range as long as they are read.
    pub(super) unsafe fn numbers(&self, range: Range<usize>) -> Numbers<'_, W> {
        assert!(range.start <= range.end && range.end <= self.length);
        let length = range.len();
        if length == 0 {
            return Numbers::NONE;
        }
        // SAFETY: the range is within the tensor's memory, whose elements are of these types.
        unsafe {
            let start = self.start.add(range.start * self.element_size());
            match self.half {
                None => Numbers::Wide(std::slice::from_raw_parts(start.cast(), length)),
                Some(Half::F16) => Numbers::Half(std::slice::from_raw_parts(start.cast(), length)),
                Some(Half::BF16) => Numbers::BFloat16(std::slice::from_raw_parts(start.cast(), length)),
            }
        }
    }

    /// Asks the processor to load the memory of `range` into its cache, because it is written soon; does nothing where
    /// it is written past the caches.
    #[inline(always)]
    pub(super) fn fetch(&self, range: Range<usize>) {
        if self.streamed {
            return;
        }
        match self.half {
            None => simd::fetch(self.start.cast::<W>(), range),
            Some(_) => simd::fetch(self.start.cast::<f16>(), range),
        }
    }

    /// Writes `map(position, number)` of each number to the elements in `range`; see [`write`](Self::write). The
    /// `numbers` may be overwritten. `other` is a position and the number that is written there instead.
    ///
    /// # Safety
    /// As for [`write`](Self::write).
    #[inline(always)]
    pub(super) unsafe fn write_mapped(
        &self,
        range: Range<usize>,
        numbers: &mut [W],
        map: impl Fn(usize, W) -> W,
        other: Option<(usize, W)>,
    ) {
        // SAFETY: the caller's promise.
        if let Some(places) = unsafe { self.places(range.clone()) } {
            assert_eq!(numbers.len(), places.len());
            let numbers = &numbers[..places.len()];
            for position in 0..places.len() {
                places[position] = MaybeUninit::new(map(position, numbers[position]));
            }
            if let Some((position, number)) = other {
                places[position].write(number);
            }
            return;
        }
        for position in 0..numbers.len() {
            numbers[position] = map(position, numbers[position]);
        }
        if let Some((position, number)) = other {
            numbers[position] = number;
        }
        // SAFETY: the caller's promise.
        unsafe { self.write(range, numbers) };
    }

    /// The tensor, filled.
    pub(super) fn into_tensor(self) -> Tensor {
        self.tensor
    }
}

/// A scalar tensor of a floating kind.
pub(in crate::kernels) fn f_scalar_of(kind: Kind, value: f64) -> Result<Tensor, LossError> {
    match kind {
        // Rounded to f32 first, as libtorch does.
        Kind::Float | Kind::Half | Kind::BFloat16 => f_scalar::<f32>(kind, value),
        _ => f_scalar::<f64>(Kind::Double, value),
    }
}

fn f_scalar<W: Wide>(kind: Kind, value: f64) -> Result<Tensor, LossError> {
    let output = Output::<W>::f_of_kind(&[], kind)?;
    // SAFETY: nobody else has a part of it.
    unsafe { output.write_cached(0..1, &[W::from_f64(value)]) };
    Ok(output.into_tensor())
}
