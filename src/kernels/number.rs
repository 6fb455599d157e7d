//! Arithmetic of formulas, written so that the compiler makes vector instructions of a loop over it.
//!
//! Each function is free of branches and calls. They are inlined into loops that are compiled for vector instructions
//! (see `cpu::simd`), or executed once on symbols, which record what is done with them.

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

/// A number as a formula sees it: `f32` or `f64`, or the record of what is done with one.
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

    /// The larger one, the other one where one is NaN. Kept in an array this is written always; what `choose` keeps there
    /// is written under a mask, which is slow.
    fn max(self, other: Self) -> Self;

    /// The larger one, NaN where `self` is.
    #[inline(always)]
    fn at_least(self, other: Self) -> Self {
        choose(self.less(other), other, self)
    }

    /// The smaller one, NaN where `self` is.
    #[inline(always)]
    fn at_most(self, other: Self) -> Self {
        choose(self.greater(other), other, self)
    }

    /// Whether it is not NaN, which is the one that differs from itself.
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

    /// The same, NaN for NaN.
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

/// `yes` where the condition holds, else `no`. Both are computed, so that no branch is needed.
#[inline(always)]
pub(crate) fn choose<T, M: Mask<T>>(condition: M, yes: T, no: T) -> T {
    condition.choose(yes, no)
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
    let small = choose(e.greater(R::of(0.5)), one - large, e * large);
    let positive = x.greater_equal(R::of(0.0));
    (choose(positive, large, small), choose(positive, small, large), e.ln_1p_unit())
}

/// `share · whole`, 0 where the share is 0: a share of nothing is nothing, also of what is infinite. A sum over all shares is NaN
/// where what is shared is.
#[inline(always)]
pub(crate) fn part<R: Real>(share: R, whole: R) -> R {
    choose(share.equal(R::of(0.0)), R::of(0.0), share * whole)
}

/// `y` where it is a share, from 0 to the `whole`, and NaN elsewhere.
#[inline(always)]
pub(crate) fn share_or_nan<R: Real>(y: R, whole: f64) -> R {
    choose(y.greater_equal(R::of(0.0)) & y.less_equal(R::of(whole)), y, R::of(f64::NAN))
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
        choose(self.p.greater_equal(self.q), R::of(1.0) - y - self.q, self.p - y)
    }

    /// The cross entropy of which the part of a yes has a weight, and its derivative with respect to the logit.
    #[inline(always)]
    pub(crate) fn weighted(self, y: R, pos_weight: R) -> (R, R) {
        let (one, yes) = (R::of(1.0), pos_weight * y);
        let no = one - y;
        // The sum is exact for a label in [0, 1] whatever the weight, and cancels for others.
        let inside = y.greater_equal(R::of(0.0)) & y.less_equal(one);
        let both = choose(inside, no + yes, one + (pos_weight - one) * y);
        // Not of `yes`, which may be infinite where nothing is below.
        let loss = self.log * both + part(pos_weight, part(y, self.below)) + part(no, self.above);
        (loss, choose(self.p.greater_equal(self.q), no - self.q * both, self.p * both - yes))
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
            let vertical = R::of(exponent).less(one) & base.less(R::smallest());
            (power, choose(vertical, zero, slope))
        }
    }
}

/// Stands for an exponent that is known at run time only.
pub(crate) const ANY: usize = usize::MAX;
