//! The elements of CPU tensors as slices.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use half::{bf16, f16};
use tch::{Device, Kind, Tensor};

use super::narrow::Narrow;
use super::simd::{self, Wide};
use super::{BLOCK, memory};
use crate::autograd::Form;
use crate::{LossError, check};

/// Room for the elements of one block.
pub(super) type Block<W> = [W; BLOCK];

/// A kind of elements that an engine reads and writes, a block at a time, and computes in [`Wide`] numbers.
pub(super) trait Element: Copy + Send + Sync + 'static {
    const KIND: Kind;
    /// Whether gradients are computed in the forward pass, to be multiplied by the one of the loss in the backward pass. In `f16`
    /// they could underflow, where that one is a scale against it.
    const STORED: bool;
    /// What it is computed in.
    type Wide: Wide;

    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn wide(self) -> Self::Wide;
    /// The elements as wide numbers: themselves, or converted into `room`.
    fn read<'a>(elements: &'a [Self], room: &'a mut [Self::Wide]) -> &'a [Self::Wide];
    /// Writes the elements to `numbers`, as many.
    fn copy(elements: &[Self], numbers: &mut [Self::Wide]);
    /// The elements as places for wide numbers, where they are such themselves.
    fn places(elements: &mut [MaybeUninit<Self>]) -> Option<&mut [MaybeUninit<Self::Wide>]>;
    /// Converts numbers into elements.
    fn write(numbers: &[Self::Wide], elements: &mut [MaybeUninit<Self>]);
    /// Does so past the caches, where there is a way: other threads see it after [`simd::fence`](super::simd::fence).
    fn stream(numbers: &[Self::Wide], elements: &mut [MaybeUninit<Self>]) {
        Self::write(numbers, elements);
    }
    /// Converts what `map` makes of each number, given its position, into elements. The numbers may be lost.
    fn write_mapped(
        numbers: &mut [Self::Wide],
        elements: &mut [MaybeUninit<Self>],
        map: impl Fn(usize, Self::Wide) -> Self::Wide,
    );
}

macro_rules! wide {
    ($number:ty, $kind:expr) => {
        impl Element for $number {
            const KIND: Kind = $kind;
            const STORED: bool = true;
            type Wide = Self;

            fn from_f64(value: f64) -> Self {
                value as $number
            }

            fn to_f64(self) -> f64 {
                self.into()
            }

            #[inline(always)]
            fn wide(self) -> Self {
                self
            }

            fn read<'a>(elements: &'a [Self], _: &'a mut [Self]) -> &'a [Self] {
                elements
            }

            fn copy(elements: &[Self], numbers: &mut [Self]) {
                numbers.copy_from_slice(elements);
            }

            fn places(elements: &mut [MaybeUninit<Self>]) -> Option<&mut [MaybeUninit<Self>]> {
                Some(elements)
            }

            fn write(numbers: &[Self], elements: &mut [MaybeUninit<Self>]) {
                assert_eq!(numbers.len(), elements.len());
                // SAFETY: both are of this length, and apart, since one of them is borrowed for writing.
                unsafe { std::ptr::copy_nonoverlapping(numbers.as_ptr(), elements.as_mut_ptr().cast(), numbers.len()) };
            }

            fn stream(numbers: &[Self], elements: &mut [MaybeUninit<Self>]) {
                simd::stream(numbers, elements);
            }

            #[inline(always)]
            fn write_mapped(
                numbers: &mut [Self],
                elements: &mut [MaybeUninit<Self>],
                map: impl Fn(usize, Self) -> Self,
            ) {
                assert_eq!(numbers.len(), elements.len());
                let numbers = &numbers[..elements.len()];
                for position in 0..elements.len() {
                    elements[position] = MaybeUninit::new(map(position, numbers[position]));
                }
            }
        }
    };
}
wide!(f32, Kind::Float);
wide!(f64, Kind::Double);

macro_rules! half {
    ($number:ty, $kind:expr, $stored:expr) => {
        impl Element for $number {
            const KIND: Kind = $kind;
            const STORED: bool = $stored;
            type Wide = f32;

            fn from_f64(value: f64) -> Self {
                // By way of f32, as libtorch rounds.
                <$number>::from_f32(value as f32)
            }

            fn to_f64(self) -> f64 {
                <$number>::to_f64(self)
            }

            #[inline(always)]
            fn wide(self) -> f32 {
                self.widen()
            }

            fn read<'a>(elements: &'a [Self], room: &'a mut [f32]) -> &'a [f32] {
                let numbers = &mut room[..elements.len()];
                <$number>::widen_all(elements, numbers);
                numbers
            }

            fn copy(elements: &[Self], numbers: &mut [f32]) {
                <$number>::widen_all(elements, numbers);
            }

            fn places(_: &mut [MaybeUninit<Self>]) -> Option<&mut [MaybeUninit<f32>]> {
                None
            }

            fn write(numbers: &[f32], elements: &mut [MaybeUninit<Self>]) {
                <$number>::narrow_all(numbers, elements);
            }

            #[inline(always)]
            fn write_mapped(numbers: &mut [f32], elements: &mut [MaybeUninit<Self>], map: impl Fn(usize, f32) -> f32) {
                for position in 0..numbers.len() {
                    numbers[position] = map(position, numbers[position]);
                }
                Self::write(numbers, elements);
            }
        }
    };
}
half!(f16, Kind::Half, false);
half!(bf16, Kind::BFloat16, true);

/// Whether a stored gradient can be multiplied by `grad`, that of the loss. In half precision it loses digits unless this is a
/// power of two, as the usual 1 is.
pub(super) fn f_keeps_digits<T: Element>(grad: &Tensor) -> Result<bool, LossError> {
    if size_of::<T>() >= size_of::<f32>() {
        return Ok(true);
    }
    let factor = grad.f_double_value(&[])?;
    let fraction = factor.to_bits() << (u64::BITS - (f64::MANTISSA_DIGITS - 1));
    Ok(factor.is_normal() && fraction == 0)
}

/// Whether `tensor` is one whose elements [`elements`] gives.
pub(super) fn is_plain(tensor: &Tensor, kind: Kind) -> bool {
    Form::of(tensor).is_plain()
        && tensor.device() == Device::Cpu
        && tensor.f_kind().is_ok_and(|actual| actual == kind)
        && (tensor.numel() == 0 || !tensor.data_ptr().is_null())
}

/// `tensor`, which is dense, as one whose memory holds its numbers: itself, or a copy without a graph where libtorch has yet to
/// make them.
pub(crate) fn f_plain(tensor: &Tensor) -> Result<Tensor, LossError> {
    if Form::of(tensor).is_lazy() { f_own(tensor) } else { Ok(tensor.shallow_clone()) }
}

/// A contiguous copy of `tensor` without a graph, which nobody else can write to.
pub(crate) fn f_own(tensor: &Tensor) -> Result<Tensor, LossError> {
    let mut copy = Tensor::f_empty(tensor.size(), (tensor.f_kind()?, tensor.device()))?;
    copy.f_copy_(&tensor.f_detach()?)?;
    Ok(copy)
}

/// The elements of a tensor without gaps and overlaps, in the order of its memory.
pub(super) fn elements<T: Element>(tensor: &Tensor) -> &[T] {
    assert!(is_plain(tensor, T::KIND) && is_dense(tensor));
    // SAFETY: just checked.
    unsafe { memory_of(tensor) }
}

/// The elements of a contiguous CPU tensor of 64-bit integers.
pub(super) fn integers(tensor: &Tensor) -> &[i64] {
    assert!(is_plain(tensor, Kind::Int64) && tensor.is_contiguous());
    // SAFETY: just checked.
    unsafe { memory_of(tensor) }
}

/// The elements of a tensor in the order of its memory.
///
/// # Safety
/// It is plain and dense, and its elements are stored as this type.
unsafe fn memory_of<E>(tensor: &Tensor) -> &[E] {
    let length = tensor.numel();
    if length == 0 {
        return &[];
    }
    // SAFETY: a dense CPU tensor has its elements side by side from its data pointer on, of this type. They live as long as
    // the tensor. That nobody writes to them meanwhile is what every operation of libtorch relies on.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), length) }
}

/// The elements of a CPU tensor of real numbers of any kind.
pub(super) fn f_numbers(tensor: &Tensor) -> Result<Vec<f64>, LossError> {
    let tensor = &f_plain(tensor)?;
    let mut numbers = check::f_room(tensor.numel())?;
    match tensor.f_kind()? {
        Kind::Float if tensor.is_contiguous() => numbers.extend(elements::<f32>(tensor).iter().map(|n| n.to_f64())),
        Kind::Int64 if tensor.is_contiguous() => numbers.extend(integers(tensor).iter().map(|n| *n as f64)),
        _ => {
            let wide = tensor.f_detach()?.f_to_kind(Kind::Double)?.f_contiguous()?;
            numbers.extend_from_slice(elements::<f64>(&wide));
        }
    }
    Ok(numbers)
}

/// The strides that a tensor without gaps and overlaps has are a permutation of those of a contiguous one.
pub(super) fn is_dense(tensor: &Tensor) -> bool {
    if tensor.is_contiguous() {
        return true;
    }
    let mut dims: Vec<(i64, i64)> = tensor.stride().into_iter().zip(tensor.size()).collect();
    dims.retain(|(_, size)| *size != 1);
    dims.sort_unstable();
    let mut expected = 1;
    for (stride, size) in dims {
        if stride != expected {
            return false;
        }
        expected *= size;
    }
    true
}

/// `tensors` with one memory layout, that of the first where it has no gaps: themselves, or copies without a graph.
pub(super) fn f_one_layout<const N: usize>(tensors: [&Tensor; N]) -> Result<[Tensor; N], LossError> {
    if tensors.iter().all(|tensor| tensor.is_contiguous()) {
        return Ok(tensors.map(Tensor::shallow_clone));
    }
    let first =
        if is_dense(tensors[0]) { tensors[0].shallow_clone() } else { tensors[0].f_detach()?.f_contiguous()? };
    let (size, stride) = (first.size(), first.stride());
    let mut same = Vec::with_capacity(N);
    for tensor in &tensors[1..] {
        if tensor.stride() == stride {
            same.push(tensor.shallow_clone());
            continue;
        }
        let mut copy = Tensor::f_empty_strided(&size, &stride, (tensor.f_kind()?, Device::Cpu))?;
        copy.f_copy_(&tensor.f_detach()?)?;
        same.push(copy);
    }
    let mut all = std::iter::once(first).chain(same);
    Ok(std::array::from_fn(|_| all.next().unwrap_or_default()))
}

/// From how many bytes on an output is written past the caches, which would not keep it for who reads it next: it and an input of
/// its size fill the 32 MiB that a third cache usually has.
const STREAMED: usize = 16 << 20;

/// A new tensor that an engine fills, all of it, from several threads.
pub(super) struct Output<T> {
    tensor: Tensor,
    start: *mut MaybeUninit<T>,
    length: usize,
    /// Whether it is written past the caches.
    streamed: bool,
}

// SAFETY: the pointer is that of memory which the tensor keeps, and is used through `range` alone.
unsafe impl<T: Send> Send for Output<T> {}
// SAFETY: see above; `range` demands that no two threads ask for the same elements.
unsafe impl<T: Send> Sync for Output<T> {}

impl<T: Element> Output<T> {
    /// A tensor of the size and layout of `like`, which is dense.
    pub(super) fn f_like(like: &Tensor) -> Result<Self, LossError> {
        Self::f_new(memory::f_empty_like(like)?)
    }

    /// A contiguous tensor.
    pub(super) fn f_of_size(size: &[i64]) -> Result<Self, LossError> {
        Self::f_new(memory::f_empty(size, T::KIND)?)
    }

    fn f_new(tensor: Tensor) -> Result<Self, LossError> {
        assert!(is_plain(&tensor, T::KIND) && is_dense(&tensor));
        let length = tensor.numel();
        let streamed = length * size_of::<T>() >= STREAMED;
        Ok(Self { start: tensor.data_ptr().cast(), length, streamed, tensor })
    }

    /// The parts of it, as many of the same length, one after the other in memory.
    pub(super) fn parts(&self, count: usize) -> Vec<Self> {
        let length = self.length / count;
        let part = |index: usize| Self {
            tensor: self.tensor.shallow_clone(),
            // Stays within the tensor's memory, or at its end.
            start: self.start.wrapping_add(index * length),
            length,
            streamed: self.streamed,
        };
        (0..count).map(part).collect()
    }

    /// Converts numbers into the elements in `range`, as many. To be called in a task of [`parallel`](super::parallel), after
    /// which other threads see them.
    ///
    /// # Safety
    /// As for [`range`](Self::range).
    pub(super) unsafe fn write(&self, range: Range<usize>, numbers: &[T::Wide]) {
        // SAFETY: the caller's promise.
        let elements = unsafe { self.range(range) };
        match self.streamed {
            true => T::stream(numbers, elements),
            false => T::write(numbers, elements),
        }
    }

    /// The elements in `range`.
    ///
    /// # Safety
    /// No other call has a part of it at the same time, neither of this nor of what `parts` has returned.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn range(&self, range: Range<usize>) -> &mut [MaybeUninit<T>] {
        assert!(range.start <= range.end && range.end <= self.length);
        if range.is_empty() {
            return &mut [];
        }
        // SAFETY: the range is within the tensor's memory, which nobody else knows of until `into_tensor`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The elements in `range` as places for the numbers that they are computed as, where [`write`](Self::write) would but copy these.
    ///
    /// # Safety
    /// As for [`range`](Self::range).
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn place(&self, range: Range<usize>) -> Option<&mut [MaybeUninit<T::Wide>]> {
        if self.streamed {
            return None;
        }
        // SAFETY: the caller's promise.
        T::places(unsafe { self.range(range) })
    }

    /// Whether there are such places.
    pub(super) fn has_places(&self) -> bool {
        !self.streamed && T::places(&mut []).is_some()
    }

    /// Where the elements are, to have their memory fetched; nowhere where they are written past the caches.
    pub(super) fn address(&self) -> Option<*const T> {
        (!self.streamed).then_some(self.start.cast_const().cast())
    }

    /// Converts what `map` makes of each number, given its position, into the elements in `range`; see [`write`](Self::write).
    /// The numbers may be lost. `other` is a position and what is written there instead.
    ///
    /// # Safety
    /// As for [`range`](Self::range).
    #[inline(always)]
    pub(super) unsafe fn write_mapped(
        &self,
        range: Range<usize>,
        numbers: &mut [T::Wide],
        map: impl Fn(usize, T::Wide) -> T::Wide,
        other: Option<(usize, T::Wide)>,
    ) {
        if !self.streamed {
            // SAFETY: the caller's promise.
            let elements = unsafe { self.range(range) };
            T::write_mapped(numbers, elements, map);
            if let Some((position, number)) = other {
                T::write(&[number], &mut elements[position..=position]);
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

/// The elements of a contiguous tensor that an engine overwrites, from several threads.
pub(super) struct InPlace<'a, T> {
    start: *mut T,
    length: usize,
    tensor: PhantomData<&'a Tensor>,
}

// SAFETY: the elements are used through `range` alone, which demands that no two threads ask for the same ones.
unsafe impl<T: Send> Sync for InPlace<'_, T> {}

impl<'a, T: Element> InPlace<'a, T> {
    pub(super) fn new(tensor: &'a Tensor) -> Self {
        assert!(is_plain(tensor, T::KIND) && tensor.is_contiguous());
        Self { start: tensor.data_ptr().cast(), length: tensor.numel(), tensor: PhantomData }
    }

    /// The elements in `range`.
    ///
    /// # Safety
    /// No other call has a part of it at the same time, and nobody else uses the tensor's memory.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.length);
        if range.is_empty() {
            return &mut [];
        }
        // SAFETY: the range is within the memory of the tensor, which is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// A scalar tensor of a floating kind.
pub(super) fn f_scalar_of(kind: Kind, value: f64) -> Result<Tensor, LossError> {
    match kind {
        Kind::Float => f_scalar::<f32>(value),
        Kind::Half => f_scalar::<f16>(value),
        Kind::BFloat16 => f_scalar::<bf16>(value),
        _ => f_scalar::<f64>(value),
    }
}

/// A scalar tensor.
pub(super) fn f_scalar<T: Element>(value: f64) -> Result<Tensor, LossError> {
    let output = Output::<T>::f_of_size(&[])?;
    // SAFETY: nobody else has a part of it.
    let element = unsafe { output.range(0..1) };
    element[0].write(T::from_f64(value));
    Ok(output.into_tensor())
}
