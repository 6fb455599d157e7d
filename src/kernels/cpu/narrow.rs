//! Conversion of half precision to single precision and back, for [`Numbers`](super::elements::Numbers) and
//! [`Output`](super::output::Output). The loops have no branches, so that they vectorise.

use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::lane::LaneOf;
use super::simd::{self, Kernel};

/// A kind of half precision.
pub(super) trait Narrow: Copy {
    fn widen(self) -> f32;
    /// The nearest number of this kind; of two equally near ones the one with an even last bit.
    fn narrow(number: f32) -> Self;

    /// Converts elements into numbers; both slices have the same length.
    fn widen_all(elements: &[Self], numbers: &mut [f32]) {
        simd::run(Widening(elements, numbers));
    }

    /// Converts numbers into elements; both slices have the same length.
    fn narrow_all(numbers: &[f32], elements: &mut [MaybeUninit<Self>]) {
        simd::run(Narrowing(numbers, elements));
    }
}

/// How many bits of an f32 are below those that bf16 keeps.
const BELOW_BF16: u32 = 16;
/// How many bits the fraction of f32 has more than that of f16.
const BELOW_F16: u32 = 13;
/// How many bits the fraction of f32 has.
const FRACTION: u32 = 23;
/// The difference of the exponents' biases of f32 and f16, at the place of the exponent of f32.
const BIAS: u32 = (127 - 15) << FRACTION;
const SIGN: u32 = 1 << 31;

impl Narrow for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << BELOW_BF16)
    }

    #[inline(always)]
    fn narrow(number: f32) -> Self {
        let bits = number.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> BELOW_BF16 & 1));
        // A NaN gets its quiet bit instead of being rounded, which could make an infinity of it.
        let bits = if number.is_nan() { bits | 1 << (FRACTION - 1) } else { rounded };
        Self::from_bits((bits >> BELOW_BF16) as u16)
    }
}

impl Narrow for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        const SMALLEST_NORMAL: u32 = BIAS + (1 << FRACTION);
        const INFINITY: u32 = 0x1f << FRACTION;
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << BELOW_F16;
        // A subnormal number is computed as a normal one with the same fraction, less the smallest normal one.
        let subnormal = f32::from_bits(magnitude + SMALLEST_NORMAL) - f32::from_bits(SMALLEST_NORMAL);
        let normal = magnitude + BIAS;
        let finite = if magnitude < 1 << FRACTION { subnormal.to_bits() } else { normal };
        let number = if magnitude < INFINITY { finite } else { normal + BIAS };
        f32::from_bits(number | bits << 16 & SIGN)
    }

    #[inline(always)]
    fn narrow(number: f32) -> Self {
        /// The number (½) at which the unit in the last place of f32 is the smallest number of f16. Adding it rounds a
        /// number to a multiple of that, which stands in the last bits of the sum.
        const UNIT: u32 = BIAS + ((FRACTION - 10 + 1) << FRACTION);
        const SMALLEST_NORMAL: u32 = BIAS + (1 << FRACTION);
        /// From this f32 on all numbers are rounded to infinity.
        const OVERFLOW: u32 = BIAS + (0x1f << FRACTION) - (1 << (BELOW_F16 - 1));
        let sign = number.to_bits() & SIGN;
        let magnitude = number.to_bits() ^ sign;
        let subnormal = (f32::from_bits(magnitude) + f32::from_bits(UNIT)).to_bits().wrapping_sub(UNIT);
        let rounding = (1 << (BELOW_F16 - 1)) - 1 + (magnitude >> BELOW_F16 & 1);
        let normal = magnitude.wrapping_sub(BIAS).wrapping_add(rounding) >> BELOW_F16;
        let finite = if magnitude < SMALLEST_NORMAL { subnormal } else { normal };
        let number = if magnitude < OVERFLOW { finite } else { 0x7c00 };
        let number = if f32::from_bits(magnitude).is_nan() { 0x7e00 } else { number };
        Self::from_bits((number | sign >> 16) as u16)
    }

    #[cfg(target_arch = "x86_64")]
    fn widen_all(elements: &[Self], numbers: &mut [f32]) {
        match is_x86_feature_detected!("f16c") {
            // SAFETY: the processor has the instructions.
            true => unsafe { f16c::widen(elements, numbers) },
            false => simd::run(Widening(elements, numbers)),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn narrow_all(numbers: &[f32], elements: &mut [MaybeUninit<Self>]) {
        match is_x86_feature_detected!("f16c") {
            // SAFETY: the processor has the instructions.
            true => unsafe { f16c::narrow(numbers, elements) },
            false => simd::run(Narrowing(numbers, elements)),
        }
    }
}

/// The conversions of `f16` in the instructions of x86-64 processors with F16C, eight numbers at a time.
#[cfg(target_arch = "x86_64")]
mod f16c {
    use std::arch::x86_64::{
        _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm_storeu_si128, _mm256_cvtph_ps, _mm256_cvtps_ph,
        _mm256_loadu_ps, _mm256_storeu_ps,
    };

    use super::*;

    const AT_ONCE: usize = 8;

    #[target_feature(enable = "f16c")]
    pub(super) fn widen(elements: &[f16], numbers: &mut [f32]) {
        assert_eq!(elements.len(), numbers.len());
        let (from, to) = (elements.chunks_exact(AT_ONCE), numbers.chunks_exact_mut(AT_ONCE));
        let rest = from.remainder();
        for (from, to) in from.zip(to) {
            // SAFETY: both have as many numbers as are read and written.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()))) };
        }
        let start = elements.len() - rest.len();
        for (element, number) in rest.iter().zip(&mut numbers[start..]) {
            *number = element.widen();
        }
    }

    #[target_feature(enable = "f16c")]
    pub(super) fn narrow(numbers: &[f32], elements: &mut [MaybeUninit<f16>]) {
        assert_eq!(elements.len(), numbers.len());
        let (from, to) = (numbers.chunks_exact(AT_ONCE), elements.chunks_exact_mut(AT_ONCE));
        let rest = from.remainder();
        for (from, to) in from.zip(to) {
            // SAFETY: both have as many numbers as are read and written.
            unsafe {
                let narrow = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(from.as_ptr()));
                _mm_storeu_si128(to.as_mut_ptr().cast(), narrow);
            }
        }
        let start = numbers.len() - rest.len();
        for (number, element) in rest.iter().zip(&mut elements[start..]) {
            element.write(f16::narrow(*number));
        }
    }
}

/// The kernel of [`Narrow::widen_all`].
struct Widening<'a, T>(&'a [T], &'a mut [f32]);

impl<T: Narrow> Kernel<f32> for Widening<'_, T> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<f32>>(self) {
        assert_eq!(self.0.len(), self.1.len());
        for (number, element) in self.1.iter_mut().zip(self.0) {
            *number = element.widen();
        }
    }
}

/// The kernel of [`Narrow::narrow_all`].
struct Narrowing<'a, T>(&'a [f32], &'a mut [MaybeUninit<T>]);

impl<T: Narrow> Kernel<f32> for Narrowing<'_, T> {
    type Result = ();

    #[inline(always)]
    fn run<R: LaneOf<f32>>(self) {
        assert_eq!(self.0.len(), self.1.len());
        for (element, number) in self.1.iter_mut().zip(self.0) {
            element.write(T::narrow(*number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The conversion of numbers one by one, by `narrow_all`, and by the loop for processors without conversion
    /// instructions.
    fn narrowed<T: Narrow>(numbers: &[f32]) -> [Vec<T>; 3] {
        let all = |narrow: &dyn Fn(&mut [MaybeUninit<T>])| {
            let mut elements = vec![MaybeUninit::uninit(); numbers.len()];
            narrow(&mut elements);
            // SAFETY: all have been written.
            elements.into_iter().map(|element| unsafe { element.assume_init() }).collect()
        };
        [
            numbers.iter().map(|number| T::narrow(*number)).collect(),
            all(&|elements| T::narrow_all(numbers, elements)),
            all(&|elements| simd::run(Narrowing(numbers, elements))),
        ]
    }

    /// The conversion of elements one by one, by `widen_all`, and by the loop for processors without conversion
    /// instructions.
    fn widened<T: Narrow>(elements: &[T]) -> [Vec<f32>; 3] {
        let all = |widen: &dyn Fn(&mut [f32])| {
            let mut numbers = vec![0.0; elements.len()];
            widen(&mut numbers);
            numbers
        };
        [
            elements.iter().map(|element| element.widen()).collect(),
            all(&|numbers| T::widen_all(elements, numbers)),
            all(&|numbers| simd::run(Widening(elements, numbers))),
        ]
    }

    /// Every number of half precision is converted as the `half` crate converts it.
    #[test]
    fn all_numbers_are_widened() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let all: Vec<f16> = bits.iter().map(|bits| f16::from_bits(*bits)).collect();
        for numbers in widened(&all) {
            for (number, element) in numbers.iter().zip(&all) {
                let expected = element.to_f32();
                assert!(same(*number, expected), "f16 {:#x} is {number:e}, expected {expected:e}", element.to_bits());
            }
        }
        let all: Vec<bf16> = bits.iter().map(|bits| bf16::from_bits(*bits)).collect();
        for numbers in widened(&all) {
            for (number, element) in numbers.iter().zip(&all) {
                let expected = element.to_f32();
                assert!(same(*number, expected), "bf16 {:#x} is {number:e}, expected {expected:e}", element.to_bits());
            }
        }
    }

    /// Single precision is rounded as the `half` crate rounds it, in particular numbers beside or midway between two
    /// numbers of half precision.
    #[test]
    fn numbers_are_rounded() {
        let mut numbers = Vec::new();
        for step in 0..1_u32 << 20 {
            let around = step << 12;
            let bits = [around, around + 1, around.wrapping_sub(1), around ^ 0x5a5];
            numbers.extend(bits.map(f32::from_bits));
        }
        for bits in 0..=u16::MAX {
            let number = f16::from_bits(bits).to_f32();
            let half_of_the_smallest = 2.0_f32.powi(-25);
            numbers.extend([number, number + half_of_the_smallest, number - half_of_the_smallest, number * 1.5]);
        }
        for elements in narrowed::<f16>(&numbers) {
            for (element, number) in elements.iter().zip(&numbers) {
                let expected = f16::from_f32_const(*number);
                assert!(same(element.to_f32(), expected.to_f32()), "f16 of {number:e}: {element}, expected {expected}");
            }
        }
        for elements in narrowed::<bf16>(&numbers) {
            for (element, number) in elements.iter().zip(&numbers) {
                let expected = bf16::from_f32_const(*number);
                assert!(
                    same(element.to_f32(), expected.to_f32()),
                    "bf16 of {number:e}: {element}, expected {expected}"
                );
            }
        }
    }

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }
}
