//! The arithmetic of formulas: the trait [`Real`], and functions that several losses share, such as sigmoids and
//! powers.
//!
//! Each function is free of branches and calls, and is inlined into a kernel, so that the compiler makes vector
//! instructions of the loop around it. The functions take any [`Real`]: in kernels of the CPU that is a `Lane`, and a
//! `Symbol` where the formula is recorded for another device.

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Sub};

/// Whether something holds for a number: a `bool`, or the record of a comparison.
pub(crate) trait Mask<T>:
    Copy + From<bool> + BitAnd<Output = Self> + BitOr<Output = Self> + BitXor<Output = Self>
{
    /// `yes` where it holds, else `no`. Both are computed, so that no branch is needed.
    fn choose(self, yes: T, no: T) -> T;
}

impl<T> Mask<T> for bool {
    #[inline(always)]
    fn choose(self, yes: T, no: T) -> T {
        if self { yes } else { no }
    }
}

/// A number as a formula sees it: `f32` or `f64` in a kernel, an `f64` of the host, or the record of what is done with
/// one.
///
/// `exp`, `exp_m1`, `ln`, `ln_1p`, `ln_1p_unit` and `atan` are within 2 units in the last place of the exact result.
pub(crate) trait Real:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// What a comparison gives.
    type Mask: Mask<Self>;

    fn less(self, other: Self) -> Self::Mask;
    fn less_equal(self, other: Self) -> Self::Mask;
    fn equal(self, other: Self) -> Self::Mask;
    fn unequal(self, other: Self) -> Self::Mask;

    #[inline(always)]
    fn greater(self, other: Self) -> Self::Mask {
        other.less(self)
    }

    #[inline(always)]
    fn greater_equal(self, other: Self) -> Self::Mask {
        other.less_equal(self)
    }

    /// The number nearest to `value`.
    fn of(value: f64) -> Self;
    /// The smallest normal number above 0.
    fn smallest() -> Self;
    /// `self · factor + summand`, rounded once where the hardware can.
    fn mul_add(self, factor: Self, summand: Self) -> Self;
    fn abs(self) -> Self;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    /// exp(`self`) of a number ≤ 0, at less cost than [`exp`](Self::exp): 0 where the result is not a normal number.
    fn exp_of_negative(self) -> Self;
    /// exp(`self`) of a number up to 80, at the cost of [`exp_of_negative`](Self::exp_of_negative).
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
        // The rounding error of the sum is added back: log(s + e) is log s + e / s for a small e.
        let lost = self - (sum - one);
        let exact = lost.equal(Self::of(0.0)) | sum.equal(Self::of(f64::INFINITY));
        sum.ln() + choose(exact, Self::of(0.0), lost / sum)
    }

    /// The hyperbolic tangent.
    #[inline(always)]
    fn tanh(self) -> Self {
        let rest = (Self::of(-2.0) * self.abs()).exp_m1();
        let tanh = -rest / (rest + Self::of(2.0));
        choose(self.less(Self::of(0.0)), -tanh, tanh)
    }

    /// The larger one; where one is NaN, the other one. For a running maximum in an array: this is stored
    /// unconditionally, while a `choose` becomes a store under a mask, which is slow.
    fn max(self, other: Self) -> Self;

    /// The larger of `self` and `other`; NaN where `self` is NaN.
    #[inline(always)]
    fn at_least(self, other: Self) -> Self {
        choose(self.less(other), other, self)
    }

    /// The smaller of `self` and `other`; NaN where `self` is NaN.
    #[inline(always)]
    fn at_most(self, other: Self) -> Self {
        choose(self.greater(other), other, self)
    }

    /// Whether it is not NaN. NaN alone differs from itself.
    #[inline(always)]
    fn is_number(self) -> Self::Mask {
        self.equal(self)
    }

    /// −1, 0 or 1; 0 for NaN, as in PyTorch.
    #[inline(always)]
    fn sign(self) -> Self {
        let (zero, one) = (Self::of(0.0), Self::of(1.0));
        choose(self.greater(zero), one, choose(self.less(zero), -one, zero))
    }

    /// −1, 0 or 1; NaN for NaN.
    #[inline(always)]
    fn sign_or_nan(self) -> Self {
        let zero = Self::of(0.0);
        choose(self.less(zero) | self.greater_equal(zero), self.sign(), self)
    }

    /// `self` to the power of `exponent`, for a base of at least 0.
    #[inline(always)]
    fn power(self, exponent: Self) -> Self {
        let power = (exponent * self.ln()).exp();
        choose(exponent.equal(Self::of(0.0)), Self::of(1.0), power)
    }
}

/// A number of the host, by the functions of the standard library: for formulas that are evaluated once for many
/// numbers, such as the loss of a row.
impl Real for f64 {
    type Mask = bool;

    fn less(self, other: Self) -> bool {
        self < other
    }

    fn less_equal(self, other: Self) -> bool {
        self <= other
    }

    fn equal(self, other: Self) -> bool {
        self == other
    }

    fn unequal(self, other: Self) -> bool {
        self != other
    }

    fn of(value: f64) -> Self {
        value
    }

    fn smallest() -> Self {
        f64::MIN_POSITIVE
    }

    // Not the library's, which is slow where the program around it is compiled for processors without one.
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        self * factor + summand
    }

    fn abs(self) -> Self {
        f64::abs(self)
    }

    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    fn exp(self) -> Self {
        f64::exp(self)
    }

    fn exp_of_negative(self) -> Self {
        f64::exp(self)
    }

    fn exp_m1(self) -> Self {
        f64::exp_m1(self)
    }

    fn ln(self) -> Self {
        f64::ln(self)
    }

    fn ln_1p_unit(self) -> Self {
        f64::ln_1p(self)
    }

    fn ln_1p(self) -> Self {
        f64::ln_1p(self)
    }

    fn atan(self) -> Self {
        f64::atan(self)
    }

    fn tanh(self) -> Self {
        f64::tanh(self)
    }

    fn max(self, other: Self) -> Self {
        f64::max(self, other)
    }
}

/// `yes` where the condition holds, else `no`. Both are computed, so that the compiler needs no branch.
#[inline(always)]
pub(crate) fn choose<T, M: Mask<T>>(condition: M, yes: T, no: T) -> T {
    condition.choose(yes, no)
}

/// σ(x), σ(−x) and log(1 + exp(−|x|)), from one exponential.
#[inline(always)]
pub(crate) fn sigmoids<R: Real>(x: R) -> (R, R, R) {
    let one = R::of(1.0);
    let e = (-x.abs()).exp();
    let sum = one + e;
    let rounded = one / sum;
    // The rounding errors of the sum and of the quotient are put back: losses take powers of these sigmoids, which
    // multiply their error.
    let lost = (-rounded).mul_add(e - (sum - one), (-rounded).mul_add(sum, one));
    let large = rounded.mul_add(lost, rounded);
    let small = choose(e.greater(R::of(0.5)), one - large, e * large);
    let positive = x.greater_equal(R::of(0.0));
    (choose(positive, large, small), choose(positive, small, large), e.ln_1p_unit())
}

/// `share · whole`, and 0 where the share is 0, even of an infinite or NaN `whole`. Where several shares of a NaN add
/// up to more than 0, one of them is not 0, so that the sum of the parts is NaN.
#[inline(always)]
pub(crate) fn part<R: Real>(share: R, whole: R) -> R {
    choose(share.equal(R::of(0.0)), R::of(0.0), share * whole)
}

/// Whether `y` is from 0 to `whole`.
#[inline(always)]
pub(crate) fn is_share<R: Real>(y: R, whole: f64) -> R::Mask {
    y.greater_equal(R::of(0.0)) & y.less_equal(R::of(whole))
}

/// `y` where it is from 0 to `whole`, and NaN elsewhere.
#[inline(always)]
pub(crate) fn share_or_nan<R: Real>(y: R, whole: f64) -> R {
    choose(is_share(y, whole), y, R::of(f64::NAN))
}

/// Whether `y` is at least 0 or NaN.
#[inline(always)]
pub(crate) fn is_not_negative<R: Real>(y: R) -> R::Mask {
    y.greater_equal(R::of(0.0)) | y.unequal(y)
}

/// What losses of a logit x are made of. Each number is accurate for every logit, and has its limit for an infinite
/// one.
#[derive(Clone, Copy)]
pub(crate) struct Logit<R> {
    /// The probabilities σ(x) of the label 1 and σ(−x) of the label 0.
    pub(crate) p: R,
    pub(crate) q: R,
    /// The cross entropy with the label 1, −log σ(x), and with the label 0, −log σ(−x).
    pub(crate) of_yes: R,
    pub(crate) of_no: R,
    /// The part that both have in common, log(1 + exp(−|x|)); what the label 0 costs beside it, max(x, 0); and what the
    /// label 1 does, max(−x, 0).
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

    /// The cross entropy with a label y. The common part is added once: y `of_yes` + (1 − y) `of_no` would cancel for a
    /// label far outside \[0, 1\].
    #[inline(always)]
    pub(crate) fn entropy(self, y: R) -> R {
        self.log + part(y, self.below) + part(R::of(1.0) - y, self.above)
    }

    /// The derivative of [`entropy`](Self::entropy) with respect to the logit, σ(x) − y. For x > 0 it is computed from
    /// σ(−x), since σ(x) near 1 has lost the digits of 1 − σ(x).
    #[inline(always)]
    pub(crate) fn slope(self, y: R) -> R {
        choose(self.p.greater_equal(self.q), R::of(1.0) - y - self.q, self.p - y)
    }

    /// The cross entropy whose term of the label 1 is multiplied by `pos_weight`, and its derivative with respect to
    /// the logit.
    #[inline(always)]
    pub(crate) fn weighted(self, y: R, pos_weight: R) -> (R, R) {
        let (one, yes) = (R::of(1.0), pos_weight * y);
        let no = one - y;
        // The sum does not cancel for a label in [0, 1], whatever the weight; for other labels the second form does
        // not.
        let inside = y.greater_equal(R::of(0.0)) & y.less_equal(one);
        let both = choose(inside, no + yes, one + (pos_weight - one) * y);
        // Not of `yes`: that may be infinite, and `below` 0.
        let loss = self.log * both + part(pos_weight, part(y, self.below)) + part(no, self.above);
        (loss, choose(self.p.greater_equal(self.q), no - self.q * both, self.p * both - yes))
    }

    /// The probability of the wrong label, for a soft label y: y σ(−x) + (1 − y) σ(x).
    #[inline(always)]
    pub(crate) fn missing(self, y: R) -> R {
        y * self.q + (R::of(1.0) - y) * self.p
    }
}

/// `base` to the power of an exponent, both at least 0, and the derivative of it with respect to the base. The exponent
/// is the constant `WHOLE`, which saves the logarithm, or the argument `exponent` where `WHOLE` is [`ANY`].
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
            // With an exponent below 1 the derivative at 0 is infinite; 0 is returned instead.
            let vertical = R::of(exponent).less(one) & base.less(R::smallest());
            (power, choose(vertical, zero, slope))
        }
    }
}

/// Stands for an exponent that is known at run time only.
pub(crate) const ANY: usize = usize::MAX;
