//! Loops compiled once for each instruction set, of which the best that the processor has is chosen at run time.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

use pulp::{Arch, Simd, WithSimd};

use super::BLOCK;
use super::number::{Lane, Real};

/// A loop over lanes of numbers.
pub(super) trait Kernel<W: Wide> {
    type Result;
    /// Runs it; implementations are `#[inline(always)]`, and so is all that they call.
    ///
    /// Loops in it are `for` loops: what a closure does in an adapter's `map` and `sum` may be compiled apart, without the vector
    /// instructions.
    fn run<R: LaneOf<W>>(self) -> Self::Result;
}

/// A number type that engines compute in.
pub(super) trait Wide: super::element::Element<Wide = Self> + Default + PartialEq + Into<f64> {
    #[doc(hidden)]
    type Fused: LaneOf<Self>;
    #[doc(hidden)]
    type Plain: LaneOf<Self>;

    /// Sorts numbers, with something beside each, in ascending order; equal ones stay as they are.
    fn sort(numbers: &mut [(Self, u32)]);
}

/// The lane of a number type.
pub(super) trait LaneOf<W>: Real {
    fn new(number: W) -> Self;
    fn get(self) -> W;
}

macro_rules! wide {
    ($number:ty) => {
        impl Wide for $number {
            type Fused = Lane<$number, true>;
            type Plain = Lane<$number, false>;

            fn sort(numbers: &mut [(Self, u32)]) {
                radsort::sort_by_key(numbers, |(number, _)| *number);
            }
        }

        impl<const FMA: bool> LaneOf<$number> for Lane<$number, FMA> {
            #[inline(always)]
            fn new(number: $number) -> Self {
                Lane(number)
            }
            #[inline(always)]
            fn get(self) -> $number {
                self.0
            }
        }
    };
}
wide!(f32);
wide!(f64);

/// Runs `kernel` on the best instruction set there is.
pub(super) fn run<W: Wide, K: Kernel<W>>(kernel: K) -> K::Result {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    ARCH.get_or_init(Arch::new).dispatch(Dispatched(kernel, std::marker::PhantomData::<W>))
}

struct Dispatched<K, W>(K, std::marker::PhantomData<W>);

impl<W: Wide, K: Kernel<W>> WithSimd for Dispatched<K, W> {
    type Output = K::Result;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> K::Result {
        // All but the scalar fallback have a fused multiply-add.
        if S::IS_SCALAR { self.0.run::<W::Plain>() } else { self.0.run::<W::Fused>() }
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
pub(super) fn stream<W: Wide>(numbers: &[W], elements: &mut [MaybeUninit<W>]) {
    assert_eq!(numbers.len(), elements.len());
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        // SAFETY: every bit pattern is one of both types.
        let (start, groups, end) = unsafe { elements.align_to_mut::<MaybeUninit<__m128i>>() };
        let (first, rest) = numbers.split_at(start.len());
        let lanes = size_of::<__m128i>() / size_of::<W>();
        W::write(first, start);
        let whole = rest.chunks_exact(lanes);
        W::write(whole.remainder(), end);
        for (group, numbers) in groups.iter_mut().zip(whole) {
            // SAFETY: reads as many bytes as the chunk has, and writes an aligned place of as many.
            unsafe { _mm_stream_si128(group.as_mut_ptr(), _mm_loadu_si128(numbers.as_ptr().cast())) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    W::write(numbers, elements);
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

/// How many sums of numbers are kept beside each other.
pub(super) const LANES: usize = 32;

/// The sum of numbers, in a fixed order.
pub(super) struct Sum<'a, W>(pub(super) &'a [W]);

impl<W: Wide> Kernel<W> for Sum<'_, W> {
    type Result = f64;

    #[inline(always)]
    fn run<R: LaneOf<W>>(self) -> f64 {
        let mut sums = [W::default(); LANES];
        let groups = self.0.chunks_exact(LANES);
        let rest = groups.remainder();
        for group in groups {
            for (sum, number) in sums.iter_mut().zip(group) {
                *sum = (R::new(*sum) + R::new(*number)).get();
            }
        }
        for (sum, number) in sums.iter_mut().zip(rest) {
            *sum = (R::new(*sum) + R::new(*number)).get();
        }
        total(sums)
    }
}

/// The sum of any number of numbers, in a fixed order.
#[inline(always)]
pub(super) fn sum<W: Wide, R: LaneOf<W>>(numbers: &[W]) -> f64 {
    let mut sum = 0.0;
    for block in numbers.chunks(BLOCK) {
        sum += Sum(block).run::<R>();
    }
    sum
}

/// Folds places of arrays of one length into numbers for each lane, which begin as `start`.
#[inline(always)]
pub(super) fn fold<R: LaneOf<W>, W: Wide, const N: usize, const S: usize>(
    arrays: [&[W]; N],
    start: [R; S],
    add: impl Fn([R; N], [R; S]) -> [R; S],
) -> [[R; LANES]; S] {
    let mut lanes = start.map(|start| [start; LANES]);
    fold_into(&mut lanes, arrays, add);
    lanes
}

/// The same, into lanes that there are.
#[inline(always)]
pub(super) fn fold_into<R: LaneOf<W>, W: Wide, const N: usize, const S: usize>(
    lanes: &mut [[R; LANES]; S],
    arrays: [&[W]; N],
    add: impl Fn([R; N], [R; S]) -> [R; S],
) {
    let length = arrays[0].len();
    for start in (0..length).step_by(LANES) {
        let group = arrays.map(|array| &array[start..length.min(start + LANES)]);
        match length - start {
            // So many are a loop without a rest.
            LANES.. => fold_group(group.map(|array| &array[..LANES]), lanes, LANES, &add),
            length => fold_group(group, lanes, length, &add),
        }
    }
}

/// Folds `length` places into as many of the first lanes.
#[inline(always)]
fn fold_group<R: LaneOf<W>, W: Wide, const N: usize, const S: usize>(
    arrays: [&[W]; N],
    lanes: &mut [[R; LANES]; S],
    length: usize,
    add: &impl Fn([R; N], [R; S]) -> [R; S],
) {
    for lane in 0..length {
        // By index: `map` would copy the numbers of all lanes each time.
        let so_far = std::array::from_fn(|k| lanes[k][lane]);
        let added = add(arrays.map(|array| R::new(array[lane])), so_far);
        for k in 0..S {
            lanes[k][lane] = added[k];
        }
    }
}

/// The sum of the few sums of a block, in double precision, in pairs, so that none waits for all before it.
#[inline(always)]
pub(super) fn total<W: Wide>(sums: [W; LANES]) -> f64 {
    let mut doubles = [0.0; LANES];
    for lane in 0..LANES {
        doubles[lane] = sums[lane].into();
    }
    let mut sums = doubles;
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}
