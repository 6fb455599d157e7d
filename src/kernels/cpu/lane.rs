//! The numbers that formulas compute with inside kernels: `f32` and `f64` with arithmetic, exponentials and logarithms
//! that have no branches and no calls, so that a loop over them vectorises.

use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::kernels::number::{Real, choose};

/// A number type that kernels are compiled for: `f32` or `f64`.
pub(super) trait Scalar: Copy + Send + Sync + Default + PartialEq + Into<f64> + 'static {
    /// The type of these numbers inside a kernel.
    #[doc(hidden)]
    type Lane: LaneOf<Self>;
    /// Whether kernels of this type are also compiled for vectors of 512 bits; see
    /// [`Kernel::LONG`](super::simd::Kernel::LONG).
    #[cfg_attr(not(all(target_arch = "x86_64", feature = "avx512")), allow(dead_code))]
    const LONG: bool;

    fn from_f64(value: f64) -> Self;

    fn to_f64(self) -> f64 {
        self.into()
    }
}

/// The type of a number `W` inside a kernel.
pub(super) trait LaneOf<W>: Real<Mask = bool> + PartialOrd {
    fn new(number: W) -> Self;
    fn get(self) -> W;
}

macro_rules! scalar {
    ($number:ty, $long:literal) => {
        impl Scalar for $number {
            type Lane = Lane<$number>;
            const LONG: bool = $long;

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $number
            }
        }

        impl LaneOf<$number> for Lane<$number> {
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
scalar!(f32, true);
scalar!(f64, false);

/// An `f32` or `f64` inside a kernel: a loop that is compiled for a processor with a fused multiply-add. Elsewhere
/// `mul_add` would be a slow library call, which is why formulas are not written for `f32` and `f64` themselves.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
#[repr(transparent)]
pub(super) struct Lane<T>(pub(super) T);

macro_rules! operators {
    ($number:ty: $($operator:ident $function:ident),+) => {
        $(
            impl $operator for Lane<$number> {
                type Output = Self;
                #[inline(always)]
                fn $function(self, other: Self) -> Self {
                    Lane(self.0.$function(other.0))
                }
            }
        )+
        impl Neg for Lane<$number> {
            type Output = Self;
            #[inline(always)]
            fn neg(self) -> Self {
                Lane(-self.0)
            }
        }

        impl Lane<$number> {
            /// The value of a polynomial whose first coefficient is that of the highest power, by Horner's rule.
            #[inline(always)]
            fn polynomial<const N: usize>(self, coefficients: [$number; N]) -> Self {
                let mut sum = Lane(coefficients[0]);
                for k in 1..N {
                    sum = sum.mul_add(self, Lane(coefficients[k]));
                }
                sum
            }
        }
    };
}
operators!(f32: Add add, Sub sub, Mul mul, Div div);
operators!(f64: Add add, Sub sub, Mul mul, Div div);

/// The functions that both widths implement alike.
macro_rules! common {
    ($number:ty) => {
        type Mask = bool;

        #[inline(always)]
        fn less(self, other: Self) -> bool {
            self.0 < other.0
        }

        #[inline(always)]
        fn less_equal(self, other: Self) -> bool {
            self.0 <= other.0
        }

        #[inline(always)]
        fn equal(self, other: Self) -> bool {
            self.0 == other.0
        }

        #[inline(always)]
        fn unequal(self, other: Self) -> bool {
            self.0 != other.0
        }

        #[inline(always)]
        fn greater(self, other: Self) -> bool {
            self.0 > other.0
        }

        #[inline(always)]
        fn greater_equal(self, other: Self) -> bool {
            self.0 >= other.0
        }

        #[inline(always)]
        fn of(value: f64) -> Self {
            Lane(value as $number)
        }

        #[inline(always)]
        fn smallest() -> Self {
            Lane(<$number>::MIN_POSITIVE)
        }

        #[inline(always)]
        fn mul_add(self, factor: Self, summand: Self) -> Self {
            Lane(self.0.mul_add(factor.0, summand.0))
        }

        #[inline(always)]
        fn abs(self) -> Self {
            Lane(self.0.abs())
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            Lane(self.0.max(other.0))
        }

        #[inline(always)]
        fn sqrt(self) -> Self {
            Lane(self.0.sqrt())
        }
    };
}

/// log 2 as the sum of two numbers. The first has so few digits that its products with small integers are exact.
const LN_2_F32: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
const LN_2_F64: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];

impl Lane<f32> {
    /// Splits x into n log 2 + r with |r| ≤ log(2)/2. Returns n and exp(r) − 1, the latter by a polynomial with an
    /// error of 1e-8.
    #[inline(always)]
    fn exp_parts(self) -> (i32, Self) {
        /// A number so large that its units are 1: a small number added to it is rounded to an integer, which stands in
        /// the last bits of the sum.
        const ROUND: f32 = 12_582_912.0;
        let rounded = self.mul_add(Lane(std::f32::consts::LOG2_E), Lane(ROUND));
        let n = rounded - Lane(ROUND);
        let r = n.mul_add(Lane(-LN_2_F32[0]), self);
        let r = n.mul_add(Lane(-LN_2_F32[1]), r);
        let p = r.polynomial([1.393_368_8e-3, 8.363_205e-3, 4.166_646_5e-2, 0.166_665_77, 0.5]);
        ((rounded.0.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32), (p * r).mul_add(r, r))
    }

    /// 2ⁿ for n in [−126, 127], and 0 for −127.
    #[inline(always)]
    fn power_of_two(n: i32) -> Self {
        Lane(f32::from_bits((n.wrapping_add(127) << 23) as u32))
    }

    /// Two numbers whose product is 2ⁿ, which may be out of range itself.
    #[inline(always)]
    fn powers_of_two(n: i32) -> [Self; 2] {
        let half = n >> 1;
        [Self::power_of_two(half), Self::power_of_two(n.wrapping_sub(half))]
    }
}

impl Real for Lane<f32> {
    common!(f32);

    #[inline(always)]
    fn exp(self) -> Self {
        // Beyond these bounds the result is 0 or ∞; NaN stays NaN.
        let (n, rest) = Lane(self.0.clamp(-104.0, 89.0)).exp_parts();
        let [low, high] = Self::powers_of_two(n);
        (rest + Lane(1.0)) * low * high
    }

    #[inline(always)]
    fn exp_of_negative(self) -> Self {
        // At the bound 2ⁿ is 0.
        let (n, rest) = self.at_least(Lane(-88.0)).exp_parts();
        (rest + Lane(1.0)) * Self::power_of_two(n)
    }

    #[inline(always)]
    fn exp_m1(self) -> Self {
        let (n, rest) = Lane(self.0.clamp(-30.0, 89.0)).exp_parts();
        let [low, high] = Self::powers_of_two(n);
        let (one, power) = (Lane(1.0), low * high);
        choose(n > 1, (rest + one) * low * high - one, rest.mul_add(power, power - one))
    }

    /// log(x) = n log 2 + log(1 + f) with 1 + f in [√½, √2). log(1 + f) is the polynomial of Cephes' `logf`.
    #[inline(always)]
    fn ln(self) -> Self {
        const SQRT_HALF: u32 = 0x3f35_04f3;
        const SCALE: f32 = 8_388_608.0;
        // A subnormal number is made normal first.
        let small = self.0 < f32::MIN_POSITIVE;
        let bits = choose(small, self.0 * SCALE, self.0).to_bits().wrapping_sub(SQRT_HALF);
        let n = Lane(((bits as i32) >> 23) as f32) - choose(small, Lane(23.0), Lane(0.0));
        let f = Lane(f32::from_bits((bits & 0x007f_ffff).wrapping_add(SQRT_HALF))) - Lane(1.0);
        let square = f * f;
        let p = f.polynomial([
            7.037_683_6e-2,
            -0.115_146_1,
            0.116_769_99,
            -0.124_201_41,
            0.142_493_23,
            -0.166_680_58,
            0.200_007_15,
            -0.249_999_94,
            0.333_333_3,
        ]);
        let p = n.mul_add(Lane(LN_2_F32[1]), p * f * square);
        let y = n.mul_add(Lane(LN_2_F32[0]), f + square.mul_add(Lane(-0.5), p));
        let y = choose(self.0 > 0.0, y, choose(self.0 == 0.0, Lane(f32::NEG_INFINITY), Lane(f32::NAN)));
        choose(self.0 == f32::INFINITY, self, y)
    }

    /// log(1 + x) = 2 artanh(s) = x − s (x − r) with s = x / (2 + x) in [0, ⅓] and r = 2 (artanh(s) / s − 1). r is a
    /// minimax polynomial in s².
    #[inline(always)]
    fn ln_1p_unit(self) -> Self {
        let s = self / (self + Lane(2.0));
        let z = s * s;
        let p = z.polynomial([0.116_121_65, 0.108_532_876, 0.142_961_78, 0.199_998_53, 0.333_333_34]);
        ((z + z) * p - self).mul_add(s, self)
    }

    /// atan(x) = θ + atan(f) with |f| ≤ tan(π/8) and θ one of 0, π/4, π/2. atan(f) is the polynomial of Cephes'
    /// `atanf`.
    #[inline(always)]
    fn atan(self) -> Self {
        /// By how much the `f32` nearest to π/2 exceeds π/2.
        const REST: f32 = 4.371_139e-8;
        let (steep, middle) = (self.0 > 2.414_213_7, self.0 > 0.414_213_57);
        let one = Lane(1.0);
        let numerator = choose(steep, -one, choose(middle, self - one, self));
        let f = numerator / choose(steep, self, choose(middle, self + one, one));
        let z = f * f;
        let p = z.polynomial([8.053_744_5e-2, -0.138_776_86, 0.199_777_11, -0.333_329_5]);
        let rest = choose(steep, Lane(-REST), choose(middle, Lane(-0.5 * REST), Lane(0.0)));
        let y = f + (p * z).mul_add(f, rest);
        choose(steep, Lane(std::f32::consts::FRAC_PI_2), choose(middle, Lane(std::f32::consts::FRAC_PI_4), Lane(0.0)))
            + y
    }
}

impl Lane<f64> {
    /// Splits x into n log 2 + r with |r| ≤ log(2)/2. Returns n and exp(r) − 1, the latter by the rational function of
    /// FreeBSD's `e_exp.c`.
    #[inline(always)]
    fn exp_parts(self) -> (i64, Self) {
        /// A number so large that its units are 1: a small number added to it is rounded to an integer, which stands in
        /// the last bits of the sum.
        const ROUND: f64 = 6_755_399_441_055_744.0;
        let rounded = self.mul_add(Lane(std::f64::consts::LOG2_E), Lane(ROUND));
        let n = rounded - Lane(ROUND);
        let high = n.mul_add(Lane(-LN_2_F64[0]), self);
        let low = n * Lane(LN_2_F64[1]);
        let r = high - low;
        let square = r * r;
        let p = square.polynomial([
            4.138_136_797_057_238_5e-8,
            -1.653_390_220_546_525_2e-6,
            6.613_756_321_437_934e-5,
            -2.777_777_777_701_559_3e-3,
            1.666_666_666_666_660_2e-1,
        ]);
        let c = r - square * p;
        let rest = high - (low - (r * c) / (Lane(2.0) - c));
        ((rounded.0.to_bits() as i64).wrapping_sub(ROUND.to_bits() as i64), rest)
    }

    /// 2ⁿ for n in [−1022, 1023], and 0 for −1023.
    #[inline(always)]
    fn power_of_two(n: i64) -> Self {
        Lane(f64::from_bits((n.wrapping_add(1023) << 52) as u64))
    }

    /// Two numbers whose product is 2ⁿ, which may be out of range itself.
    #[inline(always)]
    fn powers_of_two(n: i64) -> [Self; 2] {
        let half = n >> 1;
        [Self::power_of_two(half), Self::power_of_two(n.wrapping_sub(half))]
    }
}

impl Real for Lane<f64> {
    common!(f64);

    #[inline(always)]
    fn exp(self) -> Self {
        let (n, rest) = Lane(self.0.clamp(-746.0, 710.0)).exp_parts();
        let [low, high] = Self::powers_of_two(n);
        (rest + Lane(1.0)) * low * high
    }

    #[inline(always)]
    fn exp_of_negative(self) -> Self {
        let (n, rest) = self.at_least(Lane(-709.0)).exp_parts();
        (rest + Lane(1.0)) * Self::power_of_two(n)
    }

    #[inline(always)]
    fn exp_m1(self) -> Self {
        let (n, rest) = Lane(self.0.clamp(-50.0, 710.0)).exp_parts();
        let [low, high] = Self::powers_of_two(n);
        let (one, power) = (Lane(1.0), low * high);
        choose(n > 1, (rest + one) * low * high - one, rest.mul_add(power, power - one))
    }

    /// log(x) = n log 2 + log(1 + f) with 1 + f in [√½, √2). log(1 + f) is the series of FreeBSD's `e_log.c`.
    #[inline(always)]
    fn ln(self) -> Self {
        const SQRT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
        const SCALE: f64 = 18_014_398_509_481_984.0;
        let small = self.0 < f64::MIN_POSITIVE;
        let bits = choose(small, self.0 * SCALE, self.0).to_bits().wrapping_sub(SQRT_HALF);
        // AVX2 has no conversion of 64-bit integers, so the small integer is added to the last bits of a large number,
        // which is then subtracted.
        const LARGE: f64 = 6_755_399_441_055_744.0;
        let n = f64::from_bits(LARGE.to_bits().wrapping_add(((bits as i64) >> 52) as u64));
        let n = Lane(n) - Lane(LARGE) - choose(small, Lane(54.0), Lane(0.0));
        let f = Lane(f64::from_bits((bits & 0x000f_ffff_ffff_ffff).wrapping_add(SQRT_HALF))) - Lane(1.0);
        let s = f / (Lane(2.0) + f);
        let z = s * s;
        let r = z * z.polynomial([
            1.479_819_860_511_658_6e-1,
            1.531_383_769_920_937_3e-1,
            1.818_357_216_161_805e-1,
            2.222_219_843_214_978_4e-1,
            2.857_142_874_366_239e-1,
            3.999_999_999_940_942e-1,
            6.666_666_666_666_735e-1,
        ]);
        let half_square = Lane(0.5) * f * f;
        let y = half_square - (s * (half_square + r) + n * Lane(LN_2_F64[1])) - f;
        let y = n.mul_add(Lane(LN_2_F64[0]), -y);
        let y = choose(self.0 > 0.0, y, choose(self.0 == 0.0, Lane(f64::NEG_INFINITY), Lane(f64::NAN)));
        choose(self.0 == f64::INFINITY, self, y)
    }

    /// log(1 + x) = 2 artanh(s) = x − s (x − r) with s = x / (2 + x) in [0, ⅓] and r = 2 (artanh(s) / s − 1). r is a
    /// minimax polynomial in s².
    #[inline(always)]
    fn ln_1p_unit(self) -> Self {
        let s = self / (self + Lane(2.0));
        let z = s * s;
        let p = z.polynomial([
            0.078_152_889_004_614_26,
            0.037_460_718_977_753_83,
            0.054_225_891_974_400_07,
            0.058_671_395_306_515_99,
            0.066_675_893_157_246_29,
            0.076_922_719_824_302_75,
            0.090_909_099_489_813_57,
            0.111_111_110_991_183_86,
            0.142_857_142_858_000_5,
            0.199_999_999_999_997_62,
            0.333_333_333_333_333_3,
        ]);
        ((z + z) * p - self).mul_add(s, self)
    }

    /// atan(x) = θ + atan(f) with |f| ≤ 0.66 and θ one of 0, π/4, π/2. atan(f) is the rational function of Cephes'
    /// `atan`.
    #[inline(always)]
    fn atan(self) -> Self {
        /// By how much π/2 exceeds the `f64` nearest to it.
        const REST: f64 = 6.123_233_995_736_766e-17;
        let (steep, middle) = (self.0 > 2.414_213_562_373_095, self.0 > 0.66);
        let one = Lane(1.0);
        let numerator = choose(steep, -one, choose(middle, self - one, self));
        let f = numerator / choose(steep, self, choose(middle, self + one, one));
        let z = f * f;
        let p = z.polynomial([
            -0.875_060_860_003_190_4,
            -16.157_537_187_333_652,
            -75.008_557_923_147_05,
            -122.886_668_449_013_62,
            -64.850_219_049_420_25,
        ]);
        let q = z.polynomial([
            1.0,
            24.858_464_901_423_062,
            165.027_009_831_698_85,
            432.881_060_491_290_27,
            485.390_399_635_913_7,
            194.550_657_148_261_4,
        ]);
        let y = (z * p / q).mul_add(f, f);
        let y = y + choose(steep, Lane(REST), choose(middle, Lane(0.5 * REST), Lane(0.0)));
        choose(steep, Lane(std::f64::consts::FRAC_PI_2), choose(middle, Lane(std::f64::consts::FRAC_PI_4), Lane(0.0)))
            + y
    }
}

#[cfg(test)]
mod tests;
