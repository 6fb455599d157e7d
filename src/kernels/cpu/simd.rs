//! Kernels: loops that are compiled for the vector instructions of today's processors, while the program around them is
//! compiled for any processor of the architecture. Every engine of the CPU is built of them.

use std::mem::MaybeUninit;
use std::ops::Range;
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

use super::BLOCK;
use crate::kernels::cpu::lane::LaneOf;
use crate::kernels::cpu::lane::Scalar;
use crate::kernels::number::Real;

/// A loop over slices of numbers, with what it reads and writes as fields. The function [`run`](run()) runs it.
pub(super) trait Kernel<W: Scalar>: Sized {
    type Result;
    /// Whether the kernel is compiled a second time, for vectors of 512 bits, in single precision. It is where a
    /// measurement has shown a gain that is worth the code.
    #[cfg_attr(not(all(target_arch = "x86_64", feature = "avx512")), allow(dead_code))]
    const LONG: bool = false;

    /// The loop. Implementations are `#[inline(always)]`, and so is all that they call, so that all of it is compiled
    /// with the vector instructions.
    ///
    /// Loops in it are `for` loops. The closure of an adapter such as `map` or `sum` may be compiled as a function of
    /// its own, without the vector instructions. `tests/kernel_loops.rs` looks for such closures.
    fn run<R: LaneOf<W>>(self) -> Self::Result;

    /// [`run`](Self::run), compiled for AVX2 and FMA. A method and no free function, so that each kernel is a unit of
    /// its own for the compiler, and several cores compile them.
    ///
    /// # Safety
    /// The processor has these instructions.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
    unsafe fn run_in_vectors(self) -> Self::Result {
        self.run::<W::Lane>()
    }

    /// [`run`](Self::run), compiled for vectors of 512 bits.
    ///
    /// # Safety
    /// The processor has these instructions.
    #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
    unsafe fn run_in_long_vectors(self) -> Self::Result {
        self.run::<W::Lane>()
    }
}

/// Whether the processor has the instructions that kernels are compiled for, and the build has kernels at all (see
/// build.rs). Where not, tensor operations compute the losses.
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
    // Every processor of this architecture has vector instructions and a fused multiply-add.
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

/// Whether kernels are left out of this build. Code behind a check of this constant is not compiled then.
pub(super) const WITHOUT_LOOPS: bool = cfg!(all(tch_losses_no_loops, not(test)));

/// Runs `kernel` in the widest vector instructions it is compiled for. The processor [has](has_vectors) some.
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

/// Panics where the processor has no vector instructions. Engines are not called there, so this is never reached.
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

/// Asks the processor to load memory into its cache that is needed soon: the elements `range`, counted from `start`.
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

/// Copies numbers to memory past the caches, where the processor can. [`fence`] makes them visible to other threads.
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

/// Copies numbers to places; both slices have the same length.
pub(super) fn copy<W: Copy>(numbers: &[W], places: &mut [MaybeUninit<W>]) {
    assert_eq!(numbers.len(), places.len());
    // SAFETY: both are of this length, and apart, since one of them is borrowed for writing.
    unsafe { std::ptr::copy_nonoverlapping(numbers.as_ptr(), places.as_mut_ptr().cast(), numbers.len()) };
}

/// Makes what [`stream`] has written in this thread visible to threads that synchronise with it.
#[inline]
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has it.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// The bytes of a line of the cache, which the processor loads at a time.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Numbers that begin at the start of a cache line. Elsewhere each vector of 512 bits would span two lines, which takes
/// twice as long.
#[repr(align(64))]
pub(super) struct Aligned<T>(pub(super) T);

/// How many partial sums a kernel keeps side by side. Number i of a group is added to sum i, so that the compiler can
/// use vectors, and no addition waits for the one before.
pub(super) const LANES: usize = 32;

/// The kernel of a sum in a fixed order, with partial sums in the precision of the numbers: for a block.
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

/// The sum of any number of numbers, in a fixed order: block by block, and the blocks' sums in double precision.
#[inline(always)]
pub(super) fn sum<W: Scalar, R: LaneOf<W>>(numbers: &[W]) -> f64 {
    let mut sum = 0.0;
    for block in numbers.chunks(BLOCK) {
        sum += Sum(block).run::<R>();
    }
    sum
}

/// Folds arrays of one length into `S` accumulators for each lane, which begin as `start`: `add` is given the numbers
/// at one place and the accumulators of the place's lane, and returns the new accumulators.
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

/// [`fold`] into accumulators that exist already.
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
            // The compiler knows the length of this loop.
            LANES.. => fold_group(part(group, 0..LANES), lanes, LANES, &add),
            length => fold_group(group, lanes, length, &add),
        }
    }
}

/// Folds the first `length` places, at most [`LANES`] of them, each into its lane.
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

/// The range `places` of each array.
#[inline(always)]
pub(super) fn part<W, const N: usize>(mut arrays: [&[W]; N], places: Range<usize>) -> [&[W]; N] {
    for k in 0..N {
        arrays[k] = &arrays[k][places.start..places.end];
    }
    arrays
}

/// The first `length` numbers of each of the first `N` arrays.
#[inline(always)]
pub(super) fn first<'a, W, const N: usize>(arrays: &[&'a [W]], length: usize) -> [&'a [W]; N] {
    let mut first = [&[][..]; N];
    for k in 0..N {
        first[k] = &arrays[k][..length];
    }
    first
}

/// Pointers to the first `N` arrays. Panics where one has fewer than `length` numbers.
#[inline(always)]
pub(super) fn starts<W, const N: usize>(arrays: &[&[W]], length: usize) -> [*const W; N] {
    let mut starts = [std::ptr::null(); N];
    for k in 0..N {
        starts[k] = arrays[k][..length].as_ptr();
    }
    starts
}

/// [`starts`] of arrays that are written.
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

#[inline(always)]
pub(super) fn lanes_of<R: Real, const N: usize>(numbers: [f64; N]) -> [R; N] {
    let mut lanes = [R::of(0.0); N];
    for k in 0..N {
        lanes[k] = R::of(numbers[k]);
    }
    lanes
}

/// The largest of the lanes and of `least`.
#[inline(always)]
pub(super) fn largest_lane<R: Real>(lanes: [R; LANES], least: R) -> R {
    let mut largest = least;
    for lane in 0..LANES {
        largest = largest.max(lanes[lane]);
    }
    largest
}

/// The sum of the partial sums of all lanes, in double precision.
#[inline(always)]
pub(super) fn total<R: LaneOf<W>, W: Scalar>(sums: [R; LANES]) -> f64 {
    let mut doubles = [0.0; LANES];
    for lane in 0..LANES {
        doubles[lane] = sums[lane].get().into();
    }
    total_of(doubles)
}

/// The sum of the lanes, added up in pairs, so that no addition waits for all before it.
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
