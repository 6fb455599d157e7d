//! Loops compiled for the vector instructions of today's processors, beside a program that is compiled for any.

use std::mem::MaybeUninit;
use std::ops::Range;
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

use super::BLOCK;
use crate::kernels::cpu::lane::LaneOf;
use crate::kernels::cpu::lane::Scalar;
use crate::kernels::number::Real;

/// A loop over lanes of numbers.
pub(super) trait Kernel<W: Scalar>: Sized {
    type Result;
    /// Whether it is compiled for vectors of 512 bits as well, for single precision: where that has been measured to
    /// earn the code that it takes.
    #[cfg_attr(not(all(target_arch = "x86_64", feature = "avx512")), allow(dead_code))]
    const LONG: bool = false;

    /// Runs it; implementations are `#[inline(always)]`, and so is all that they call.
    ///
    /// Loops in it are `for` loops: what a closure does in an adapter's `map` and `sum` may be compiled apart, without the vector
    /// instructions. `tests/kernel_loops.rs` looks for such.
    fn run<R: LaneOf<W>>(self) -> Self::Result;

    /// The same in vector instructions. A method, so that it is compiled beside the type that it is of: one function
    /// for all would be one unit of code, which one core compiles.
    ///
    /// # Safety
    /// The processor has these instructions.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
    unsafe fn run_in_vectors(self) -> Self::Result {
        self.run::<W::Lane>()
    }

    /// The same in vectors of 512 bits.
    ///
    /// # Safety
    /// The processor has these instructions.
    #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
    unsafe fn run_in_long_vectors(self) -> Self::Result {
        self.run::<W::Lane>()
    }
}

/// Whether the processor has the instructions that kernels are compiled for. Where it has not, tensor operations
/// compute the losses; so they do in a build without kernels, see build.rs.
pub(in crate::kernels) fn has_vectors() -> bool {
    if WITHOUT_LOOPS {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    {
        static HAS: LazyLock<bool> = LazyLock::new(|| {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt")
        });
        *HAS
    }
    // The vector instructions and the fused multiply-add that every processor of the architecture has.
    #[cfg(not(target_arch = "x86_64"))]
    cfg!(target_arch = "aarch64")
}

/// Whether the processor has vectors of 512 bits.
#[cfg(all(target_arch = "x86_64", feature = "avx512"))]
#[inline]
pub(super) fn has_long_vectors() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(|| {
        has_vectors()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
    });
    *HAS
}

/// Whether kernels are left out of this build. What follows a look at it is not compiled then.
pub(super) const WITHOUT_LOOPS: bool = cfg!(all(tch_losses_no_loops, not(test)));

/// Runs `kernel` in vector instructions, which the processor [has](has_vectors).
#[inline]
pub(super) fn run<W: Scalar, K: Kernel<W>>(kernel: K) -> K::Result {
    check_vectors();
    if WITHOUT_LOOPS {
        unreachable!();
    }
    #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
    if const { K::LONG && W::LONG } && has_long_vectors() {
        // SAFETY: just checked.
        return unsafe { kernel.run_in_long_vectors() };
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: just checked.
    unsafe {
        kernel.run_in_vectors()
    }
    #[cfg(not(target_arch = "x86_64"))]
    kernel.run::<W::Lane>()
}

/// Panics where the processor has no vector instructions, so that no engine is to be asked.
#[inline]
pub(super) fn check_vectors() {
    #[cold]
    fn without() -> ! {
        unreachable!("a fused engine takes no call on a processor without vector instructions")
    }
    if !has_vectors() {
        without();
    }
}

/// Asks the processor to fetch memory that is needed soon: the elements `range` from `start` on.
#[inline(always)]
pub(super) fn fetch<T>(start: *const T, range: Range<usize>) {
    #[cfg(target_arch = "x86_64")]
    for index in range.step_by(LINE / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which may be given for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(index).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (start, range);
}

/// Copies numbers past the caches where the processor can. Other threads see them after [`fence`].
pub(super) fn stream<W: Scalar>(numbers: &[W], elements: &mut [MaybeUninit<W>]) {
    assert_eq!(numbers.len(), elements.len());
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        // SAFETY: every bit pattern is one of both types.
        let (start, groups, end) = unsafe { elements.align_to_mut::<MaybeUninit<__m128i>>() };
        let (first, rest) = numbers.split_at(start.len());
        let lanes = size_of::<__m128i>() / size_of::<W>();
        copy(first, start);
        let whole = rest.chunks_exact(lanes);
        copy(whole.remainder(), end);
        for (group, numbers) in groups.iter_mut().zip(whole) {
            // SAFETY: reads as many bytes as the chunk has, and writes an aligned place of as many.
            unsafe { _mm_stream_si128(group.as_mut_ptr(), _mm_loadu_si128(numbers.as_ptr().cast())) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    copy(numbers, elements);
}

/// Copies numbers to places, as many.
pub(super) fn copy<W: Copy>(numbers: &[W], places: &mut [MaybeUninit<W>]) {
    assert_eq!(numbers.len(), places.len());
    // SAFETY: both are of this length, and apart, since one of them is borrowed for writing.
    unsafe { std::ptr::copy_nonoverlapping(numbers.as_ptr(), places.as_mut_ptr().cast(), numbers.len()) };
}

/// Makes what [`stream`] has written in this thread visible to those that synchronise with it.
#[inline]
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has it.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// The bytes that are fetched at a time.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Numbers that begin where a line of the cache does. Of others each long vector would be in two lines, which takes
/// twice as long.
#[repr(align(64))]
pub(super) struct Aligned<T>(pub(super) T);

/// How many sums of numbers are kept beside each other.
pub(super) const LANES: usize = 32;

/// The sum of numbers, in a fixed order.
pub(super) struct Sum<'a, W>(pub(super) &'a [W]);

impl<W: Scalar> Kernel<W> for Sum<'_, W> {
    const LONG: bool = true;
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> f64 {
        let mut sums = [R::of(0.0); LANES];
        let groups = self.0.chunks_exact(LANES);
        let rest = groups.remainder();
        for group in groups {
            for (sum, number) in sums.iter_mut().zip(group) {
                *sum = *sum + R::new(*number);
            }
        }
        for (sum, number) in sums.iter_mut().zip(rest) {
            *sum = *sum + R::new(*number);
        }
        total(sums)
    }
}

/// The sum of any number of numbers, in a fixed order.
#[inline(always)]
pub(super) fn sum<W: Scalar, R: LaneOf<W>>(numbers: &[W]) -> f64 {
    let mut sum = 0.0;
    for block in numbers.chunks(BLOCK) {
        sum += Sum(block).run::<R>();
    }
    sum
}

/// Folds places of arrays of one length into numbers for each lane, which begin as `start`.
#[inline(always)]
pub(super) fn fold<R: LaneOf<W>, W: Scalar, const N: usize, const S: usize>(
    arrays: [&[W]; N],
    start: [R; S],
    add: impl Fn([R; N], [R; S]) -> [R; S],
) -> [[R; LANES]; S] {
    let mut lanes = [[R::of(0.0); LANES]; S];
    for k in 0..S {
        lanes[k] = [start[k]; LANES];
    }
    fold_into(&mut lanes, arrays, add);
    lanes
}

/// The same, into lanes that there are.
#[inline(always)]
pub(super) fn fold_into<R: LaneOf<W>, W: Scalar, const N: usize, const S: usize>(
    lanes: &mut [[R; LANES]; S],
    arrays: [&[W]; N],
    add: impl Fn([R; N], [R; S]) -> [R; S],
) {
    let length = arrays[0].len();
    for start in (0..length).step_by(LANES) {
        let group = part(arrays, start..length.min(start + LANES));
        match length - start {
            // A loop of a length that the compiler knows.
            LANES.. => fold_group(part(group, 0..LANES), lanes, LANES, &add),
            length => fold_group(group, lanes, length, &add),
        }
    }
}

/// Folds `length` places into as many of the first lanes.
#[inline(always)]
fn fold_group<R: LaneOf<W>, W: Scalar, const N: usize, const S: usize>(
    arrays: [&[W]; N],
    lanes: &mut [[R; LANES]; S],
    length: usize,
    add: &impl Fn([R; N], [R; S]) -> [R; S],
) {
    for lane in 0..length {
        let mut so_far = [R::of(0.0); S];
        for k in 0..S {
            so_far[k] = lanes[k][lane];
        }
        let added = add(at(&arrays, lane), so_far);
        for k in 0..S {
            lanes[k][lane] = added[k];
        }
    }
}

/// The same places of all arrays.
#[inline(always)]
pub(super) fn part<W, const N: usize>(mut arrays: [&[W]; N], places: Range<usize>) -> [&[W]; N] {
    for k in 0..N {
        arrays[k] = &arrays[k][places.start..places.end];
    }
    arrays
}

/// The first numbers of each of the first `N` arrays.
#[inline(always)]
pub(super) fn first<'a, W, const N: usize>(arrays: &[&'a [W]], length: usize) -> [&'a [W]; N] {
    let mut first = [&[][..]; N];
    for k in 0..N {
        first[k] = &arrays[k][..length];
    }
    first
}

/// Where the first of the `length` numbers of each of the first `N` arrays is.
#[inline(always)]
pub(super) fn starts<W, const N: usize>(arrays: &[&[W]], length: usize) -> [*const W; N] {
    let mut starts = [std::ptr::null(); N];
    for k in 0..N {
        starts[k] = arrays[k][..length].as_ptr();
    }
    starts
}

/// The same of places.
#[inline(always)]
pub(super) fn starts_mut<W, const N: usize>(arrays: &mut [&mut [W]], length: usize) -> [*mut W; N] {
    let mut starts = [std::ptr::null_mut(); N];
    for k in 0..N {
        starts[k] = arrays[k][..length].as_mut_ptr();
    }
    starts
}

/// The numbers of all arrays at one place.
#[inline(always)]
pub(super) fn at<R: LaneOf<W>, W: Scalar, const N: usize>(arrays: &[&[W]; N], place: usize) -> [R; N] {
    let mut numbers = [R::of(0.0); N];
    for k in 0..N {
        numbers[k] = R::new(arrays[k][place]);
    }
    numbers
}

/// Numbers as lanes.
#[inline(always)]
pub(super) fn lanes_of<R: Real, const N: usize>(numbers: [f64; N]) -> [R; N] {
    let mut lanes = [R::of(0.0); N];
    for k in 0..N {
        lanes[k] = R::of(numbers[k]);
    }
    lanes
}

/// The largest of the lanes and `least`.
#[inline(always)]
pub(super) fn largest_lane<R: Real>(lanes: [R; LANES], least: R) -> R {
    let mut largest = least;
    for lane in 0..LANES {
        largest = largest.max(lanes[lane]);
    }
    largest
}

/// The sum of the few sums of a block, in double precision, in pairs, so that none waits for all before it.
#[inline(always)]
pub(super) fn total<R: LaneOf<W>, W: Scalar>(sums: [R; LANES]) -> f64 {
    let mut doubles = [0.0; LANES];
    for lane in 0..LANES {
        doubles[lane] = sums[lane].get().into();
    }
    total_of(doubles)
}

#[inline(always)]
pub(super) fn total_of(mut sums: [f64; LANES]) -> f64 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}
