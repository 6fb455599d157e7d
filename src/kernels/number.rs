//! Arithmetic of formulas, written so that the compiler makes vector instructions of a loop over it.
//!
//! Each function is free of branches and calls. They are inlined into loops that are compiled for vector instructions
//! (see `simd`). Elsewhere there may be no fused multiply-add in hardware, and `f32::mul_add` is a slow library call,
//! which is what [`Lane`]'s parameter is for.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// A number as a formula sees it: `f32` or `f64`.
///
/// `exp`, `exp_m1`, `ln`, `ln_1p`, `ln_1p_unit` and `atan` are within 2 units in the last place of the exact result.
pub(crate) trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// The number nearest to `value`.
    fn of(value: f64) -> Self;
    /// The smallest normal number above 0.
    fn smallest() -> Self;
    /// `self · factor + summand`, rounded once where the hardware can.
    fn mul_add(self, factor: Self, summand: Self) -> Self;
    fn abs(self) -> Self;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    /// exp(`self`) of a number ≤ 0, at less cost: 0 where the result is not a normal number.
    fn exp_of_negative(self) -> Self;
    /// exp(`self`) of a number up to 80, at the same cost.
    #[inline(always)]
    fn exp_of_moderate(self) -> Self {
        self.exp_of_negative()
    }

    /// exp(`self`) − 1, exact to the last places for `self` near 0 too.
    fn exp_m1(self) -> Self;
    /// The natural logarithm: −∞ of 0, NaN below.
    fn ln(self) -> Self;
    /// log(1 + `self`) of a number in [0, 1], faster than `ln_1p`.
    fn ln_1p_unit(self) -> Self;
    /// The angle of a tangent of at least 0.
    fn atan(self) -> Self;

    /// log(1 + `self`), exact to the last places for `self` near 0 too.
    #[inline(always)]
    fn ln_1p(self) -> Self {
        let one = Self::of(1.0);
        let sum = one + self;
        // What the sum has lost is put back, divided by the derivative's denominator.
        let lost = self - (sum - one);
        let exact = (lost == Self::of(0.0)) | (sum == Self::of(f64::INFINITY));
        sum.ln() + choose(exact, Self::of(0.0), lost / sum)
    }

    /// The hyperbolic tangent.
    #[inline(always)]
    fn tanh(self) -> Self {
        let rest = (Self::of(-2.0) * self.abs()).exp_m1();
        let tanh = -rest / (rest + Self::of(2.0));
        choose(self < Self::of(0.0), -tanh, tanh)
    }

    /// The larger one, the other one where one is NaN. Kept in an array this is written always; what `choose` keeps there
    /// is written under a mask, which is slow.
    fn max(self, other: Self) -> Self;

    /// The larger one, NaN where `self` is.
    #[inline(always)]
    fn at_least(self, other: Self) -> Self {
        choose(self < other, other, self)
    }

    /// The smaller one, NaN where `self` is.
    #[inline(always)]
    fn at_most(self, other: Self) -> Self {
        choose(self > other, other, self)
    }

    /// Whether it is not NaN, which is the one that differs from itself.
    #[inline(always)]
    #[allow(clippy::eq_op)]
    fn is_number(self) -> bool {
        self == self
    }

    /// −1, 0 or 1; 0 for NaN, as in PyTorch.
    #[inline(always)]
    fn sign(self) -> Self {
        let (zero, one) = (Self::of(0.0), Self::of(1.0));
        choose(self > zero, one, choose(self < zero, -one, zero))
    }

    /// The same, NaN for NaN.
    #[inline(always)]
    fn sign_or_nan(self) -> Self {
        let zero = Self::of(0.0);
        choose((self < zero) | (self >= zero), self.sign(), self)
    }

    /// `self` to the power of `exponent`, for a base of at least 0.
    #[inline(always)]
    fn power(self, exponent: Self) -> Self {
        let power = (exponent * self.ln()).exp();
        choose(exponent == Self::of(0.0), Self::of(1.0), power)
    }
}

/// `yes` where the condition holds, else `no`. Both are computed, so that no branch is needed.
#[inline(always)]
pub(crate) fn choose<T>(condition: bool, yes: T, no: T) -> T {
    if condition { yes } else { no }
}

/// The sigmoid of `x`, that of −x, and log(1 + exp(−|x|)), of one exponential.
#[inline(always)]
pub(crate) fn sigmoids<R: Real>(x: R) -> (R, R, R) {
    let one = R::of(1.0);
    let e = (-x.abs()).exp();
    let sum = one + e;
    let rounded = one / sum;
    // What the sum and the quotient have lost is put back: losses have powers of these, which multiply their error.
    let lost = (-rounded).mul_add(e - (sum - one), (-rounded).mul_add(sum, one));
    let large = rounded.mul_add(lost, rounded);
    let small = choose(e > R::of(0.5), one - large, e * large);
    let positive = x >= R::of(0.0);
    (choose(positive, large, small), choose(positive, small, large), e.ln_1p_unit())
}

/// `share · whole`, 0 where the share is 0: a share of nothing is nothing, also of what is infinite. A sum over all shares is NaN
/// where what is shared is.
#[inline(always)]
pub(crate) fn part<R: Real>(share: R, whole: R) -> R {
    choose(share == R::of(0.0), R::of(0.0), share * whole)
}

/// `y` where it is a share, from 0 to the `whole`, and NaN elsewhere.
#[inline(always)]
pub(crate) fn share_or_nan<R: Real>(y: R, whole: f64) -> R {
    choose((y >= R::of(0.0)) & (y <= R::of(whole)), y, R::of(f64::NAN))
}

/// What the losses of a logit x are made of. All of it has its digits for every logit, and its limit for an infinite one.
#[derive(Clone, Copy)]
pub(crate) struct Logit<R> {
    /// The probabilities σ(x) of yes and σ(−x) of no.
    pub(crate) p: R,
    pub(crate) q: R,
    /// −log σ(x), which a yes costs, and −log σ(−x), which a no does.
    pub(crate) of_yes: R,
    pub(crate) of_no: R,
    /// What both cost, log(1 + exp(−|x|)), and what a no and a yes cost beside it, max(x, 0) and max(−x, 0).
    log: R,
    above: R,
    below: R,
}

impl<R: Real> Logit<R> {
    #[inline(always)]
    pub(crate) fn new(x: R) -> Self {
        let (p, q, log) = sigmoids(x);
        let (above, below) = (x.at_least(R::of(0.0)), (-x).at_least(R::of(0.0)));
        Self { p, q, of_yes: log + below, of_no: log + above, log, above, below }
    }

    /// The cross entropy with a label y. What a yes and a no have in common is no difference of the two, which would cancel
    /// for a label far outside \[0, 1\].
    #[inline(always)]
    pub(crate) fn entropy(self, y: R) -> R {
        self.log + part(y, self.below) + part(R::of(1.0) - y, self.above)
    }

    /// Its derivative σ(x) − y with respect to the logit. For x > 0 it is of 1 − σ(x), since the difference would lose the
    /// digits of a confident one.
    #[inline(always)]
    pub(crate) fn slope(self, y: R) -> R {
        choose(self.p >= self.q, R::of(1.0) - y - self.q, self.p - y)
    }

    /// The cross entropy of which the part of a yes has a weight, and its derivative with respect to the logit.
    #[inline(always)]
    pub(crate) fn weighted(self, y: R, pos_weight: R) -> (R, R) {
        let (one, yes) = (R::of(1.0), pos_weight * y);
        let no = one - y;
        // The sum is exact for a label in [0, 1] whatever the weight, and cancels for others.
        let inside = (y >= R::of(0.0)) & (y <= one);
        let both = choose(inside, no + yes, one + (pos_weight - one) * y);
        // Not of `yes`, which may be infinite where nothing is below.
        let loss = self.log * both + part(pos_weight, part(y, self.below)) + part(no, self.above);
        (loss, choose(self.p >= self.q, no - self.q * both, self.p * both - yes))
    }

    /// How far the sigmoid is from the wrong answer to y: y σ(−x) + (1 − y) σ(x).
    #[inline(always)]
    pub(crate) fn missing(self, y: R) -> R {
        y * self.q + (R::of(1.0) - y) * self.p
    }
}

/// `base` to the power of an exponent, both at least 0, and its derivative. The exponent is `WHOLE`, or `exponent` where that is
/// [`ANY`].
#[inline(always)]
pub(crate) fn powers<R: Real, const WHOLE: usize>(base: R, exponent: f64) -> (R, R) {
    let (zero, one, two) = (R::of(0.0), R::of(1.0), R::of(2.0));
    match WHOLE {
        0 => (one, zero),
        1 => (base, one),
        2 => (base * base, two * base),
        _ => {
            let power = base.power(R::of(exponent));
            let slope = R::of(exponent) * base.power(R::of(exponent - 1.0));
            // A power below 1 has a vertical tangent at 0.
            let vertical = (R::of(exponent) < one) & (base < R::smallest());
            (power, choose(vertical, zero, slope))
        }
    }
}

/// Stands for an exponent that is known at run time only.
pub(crate) const ANY: usize = usize::MAX;

/// An `f32` or `f64` on hardware with (`FMA`) or without a fused multiply-add.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
#[repr(transparent)]
pub(super) struct Lane<T, const FMA: bool>(pub(super) T);

macro_rules! operators {
    ($number:ty: $($operator:ident $function:ident),+) => {
        $(
            impl<const FMA: bool> $operator for Lane<$number, FMA> {
                type Output = Self;
                #[inline(always)]
                fn $function(self, other: Self) -> Self {
                    Lane(self.0.$function(other.0))
                }
            }
        )+
        impl<const FMA: bool> Neg for Lane<$number, FMA> {
            type Output = Self;
            #[inline(always)]
            fn neg(self) -> Self {
                Lane(-self.0)
            }
        }

        impl<const FMA: bool> Lane<$number, FMA> {
            /// A polynomial with the first coefficient in front of the highest power.
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

/// What both widths share.
macro_rules! common {
    ($number:ty) => {
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
            if FMA { Lane(self.0.mul_add(factor.0, summand.0)) } else { self * factor + summand }
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

/// log 2 in two parts, of which the first has so few digits that its small multiples are exact.
const LN_2_F32: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
const LN_2_F64: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];

impl<const FMA: bool> Lane<f32, FMA> {
    /// n and exp(r) − 1 of x = n log 2 + r with |r| ≤ log(2)/2, the latter by a polynomial with an error of 1e-8.
    #[inline(always)]
    fn exp_parts(self) -> (i32, Self) {
        /// Added to a small number, it leaves that number rounded to an integer in the last bits.
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

    /// 2ⁿ as a product, since it may be out of range itself.
    #[inline(always)]
    fn powers_of_two(n: i32) -> [Self; 2] {
        let half = n >> 1;
        [Self::power_of_two(half), Self::power_of_two(n.wrapping_sub(half))]
    }
}

impl<const FMA: bool> Real for Lane<f32, FMA> {
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

    /// log(x) = n log 2 + log(1 + f) with 1 + f in [√½, √2), the latter by the polynomial of Cephes' `logf`.
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

    /// log(1 + x) = 2 artanh(s) = x − s (x − r) with s = x / (2 + x) in [0, ⅓] and r = 2 (artanh(s) / s − 1), the latter by a
    /// polynomial of least deviation in s².
    #[inline(always)]
    fn ln_1p_unit(self) -> Self {
        let s = self / (self + Lane(2.0));
        let z = s * s;
        let p = z.polynomial([0.116_121_65, 0.108_532_876, 0.142_961_78, 0.199_998_53, 0.333_333_34]);
        ((z + z) * p - self).mul_add(s, self)
    }

    /// atan(x) = θ + atan(f) with |f| ≤ tan(π/8), the latter by the polynomial of Cephes' `atanf`.
    #[inline(always)]
    fn atan(self) -> Self {
        /// What π/2 has too much.
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

impl<const FMA: bool> Lane<f64, FMA> {
    /// n and exp(r) − 1 of x = n log 2 + r with |r| ≤ log(2)/2, the latter by the rational function of FreeBSD's `e_exp.c`.
    #[inline(always)]
    fn exp_parts(self) -> (i64, Self) {
        /// Added to a small number, it leaves that number rounded to an integer in the last bits.
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

    /// 2ⁿ as a product, since it may be out of range itself.
    #[inline(always)]
    fn powers_of_two(n: i64) -> [Self; 2] {
        let half = n >> 1;
        [Self::power_of_two(half), Self::power_of_two(n.wrapping_sub(half))]
    }
}

impl<const FMA: bool> Real for Lane<f64, FMA> {
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

    /// log(x) = n log 2 + log(1 + f) with 1 + f in [√½, √2), the latter by the series of FreeBSD's `e_log.c`.
    #[inline(always)]
    fn ln(self) -> Self {
        const SQRT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
        const SCALE: f64 = 18_014_398_509_481_984.0;
        let small = self.0 < f64::MIN_POSITIVE;
        let bits = choose(small, self.0 * SCALE, self.0).to_bits().wrapping_sub(SQRT_HALF);
        // Small integers become numbers through the last bits of a large one; AVX2 has no conversion.
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

    /// log(1 + x) = 2 artanh(s) = x − s (x − r) with s = x / (2 + x) in [0, ⅓] and r = 2 (artanh(s) / s − 1), the latter by a
    /// polynomial of least deviation in s².
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

    /// atan(x) = θ + atan(f) with |f| ≤ 0.66, the latter by the rational function of Cephes' `atan`.
    #[inline(always)]
    fn atan(self) -> Self {
        /// What π/2 lacks.
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
mod tests {
    use super::*;

    /// The distance of `actual` from `expected` in units in the last place of an `f32`.
    fn ulps_f32(actual: f32, expected: f64) -> f64 {
        if f64::from(actual) == expected {
            return 0.0;
        }
        let spacing = (expected as f32).abs().max(f32::MIN_POSITIVE);
        let spacing = f64::from(f32::from_bits(spacing.to_bits() + 1)) - f64::from(spacing);
        (f64::from(actual) - expected).abs() / spacing
    }

    fn ulps_f64(actual: f64, expected: f64) -> f64 {
        if actual == expected {
            return 0.0;
        }
        let spacing = expected.abs().max(f64::MIN_POSITIVE);
        (actual - expected).abs() / (f64::from_bits(spacing.to_bits() + 1) - spacing)
    }

    /// All magnitudes of positive numbers.
    fn sweep(bits: impl Iterator<Item = u32>) -> impl Iterator<Item = f32> {
        bits.map(f32::from_bits)
    }

    fn single<const FMA: bool>() {
        let lane = |x: f32| Lane::<f32, FMA>(x);
        for x in sweep((0..f32::INFINITY.to_bits()).step_by(9973)) {
            let wide = f64::from(x);
            assert!(ulps_f32(lane(x).ln().0, wide.ln()) <= 2.0, "ln {x}");
            assert!(ulps_f32(lane(x).ln_1p().0, wide.ln_1p()) <= 2.0, "ln_1p {x}");
            if x <= 1.0 {
                assert!(ulps_f32(lane(x).ln_1p_unit().0, wide.ln_1p()) <= 2.0, "ln_1p_unit {x}");
            }
            assert!(ulps_f32(lane(x).atan().0, wide.atan()) <= 2.0, "atan {x}");
            for x in [x, -x] {
                let expected = f64::from(x).exp();
                if expected < f64::from(f32::MAX) {
                    assert!(ulps_f32(lane(x).exp().0, expected) <= 2.0, "exp {x}");
                    assert!(ulps_f32(lane(x).exp_m1().0, f64::from(x).exp_m1()) <= 2.0, "exp_m1 {x}");
                }
            }
            let expected = if wide < 87.3 { (-wide).exp() } else { lane(-x).exp_of_negative().0.into() };
            assert!(ulps_f32(lane(-x).exp_of_negative().0, expected) <= 2.0, "exp -{x}");
            assert!(ulps_f32(lane(-x).tanh().0, (-wide).tanh()) <= 4.0, "tanh -{x}");
            assert!(lane(-x).exp_of_negative().0 <= 1.0 && (wide < 88.0 || lane(-x).exp_of_negative().0 == 0.0));
        }
    }

    fn double<const FMA: bool>() {
        let lane = |x: f64| Lane::<f64, FMA>(x);
        for x in sweep((0..f32::INFINITY.to_bits()).step_by(9973)) {
            // Odd last digits, and twice the range of exponents.
            let x = f64::from(x) * 1.1;
            for x in [x, x * x] {
                assert!(ulps_f64(lane(x).ln().0, x.ln()) <= 2.0, "ln {x}");
                assert!(ulps_f64(lane(x).ln_1p().0, x.ln_1p()) <= 2.0, "ln_1p {x}");
                if x <= 1.0 {
                    assert!(ulps_f64(lane(x).ln_1p_unit().0, x.ln_1p()) <= 2.0, "ln_1p_unit {x}");
                }
                assert!(ulps_f64(lane(x).atan().0, x.atan()) <= 2.0, "atan {x}");
                for x in [x, -x] {
                    if x.exp() < f64::MAX {
                        assert!(ulps_f64(lane(x).exp().0, x.exp()) <= 2.0, "exp {x}: {}", lane(x).exp().0);
                        assert!(ulps_f64(lane(x).exp_m1().0, x.exp_m1()) <= 2.0, "exp_m1 {x}");
                    }
                }
                let fast = lane(-x).exp_of_negative().0;
                let expected = if x < 708.0 { (-x).exp() } else { fast };
                assert!(ulps_f64(fast, expected) <= 2.0 && fast <= 1.0 && (x < 709.0 || fast == 0.0), "exp -{x}");
            }
        }
    }

    #[test]
    fn functions_are_within_two_units_in_the_last_place() {
        single::<true>();
        single::<false>();
        double::<true>();
        double::<false>();
    }

    #[test]
    fn special_values() {
        fn check<R: Real + std::fmt::Debug>() {
            let (inf, nan) = (R::of(f64::INFINITY), R::of(f64::NAN));
            let (zero, one) = (R::of(0.0), R::of(1.0));
            let is_nan = |x: R| x.partial_cmp(&x).is_none();
            assert_eq!((inf.exp(), (-inf).exp(), zero.exp()), (inf, zero, one));
            assert_eq!((inf.ln(), zero.ln(), one.ln()), (inf, -inf, zero));
            assert_eq!((inf.ln_1p(), (-one).ln_1p(), zero.ln_1p()), (inf, -inf, zero));
            assert_eq!(((-inf).exp_of_negative(), zero.exp_of_negative()), (zero, one));
            assert_eq!((inf.exp_m1(), (-inf).exp_m1(), zero.exp_m1()), (inf, -one, zero));
            assert_eq!((inf.tanh(), (-inf).tanh(), zero.tanh()), (one, -one, zero));
            let of_nan =
                [nan.tanh(), nan.exp(), nan.exp_of_negative(), nan.exp_m1(), nan.ln(), nan.ln_1p(), (-one).ln()];
            assert!(of_nan.into_iter().all(is_nan));
            assert_eq!((inf.atan(), zero.atan()), (R::of(std::f64::consts::FRAC_PI_2), zero));
            assert!(is_nan(nan.atan()));
            assert_eq!((R::of(-3.0).sign(), zero.sign(), R::of(3.0).sign(), nan.sign()), (-one, zero, one, zero));
            assert_eq!((nan.max(zero), zero.max(nan), one.max(zero)), (zero, zero, one));
            assert!(is_nan(nan.at_least(zero)) && is_nan(nan.at_most(zero)));
            assert_eq!((zero.power(R::of(0.5)), zero.power(zero)), (zero, one));
            for x in [1e4, 1e30, f64::INFINITY] {
                let (large, small, log) = sigmoids(R::of(x));
                assert_eq!((large, small, log), (one, zero, zero));
                let (large, small, log) = sigmoids(R::of(-x));
                assert_eq!((large, small, log), (zero, one, zero));
            }
        }
        check::<Lane<f32, true>>();
        check::<Lane<f32, false>>();
        check::<Lane<f64, true>>();
        check::<Lane<f64, false>>();
    }
}
