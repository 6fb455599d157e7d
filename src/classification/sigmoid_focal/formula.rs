//! The formulas of the sigmoid focal loss for the engine.

use crate::binary::PointwiseOfShare;
use crate::kernels::{Logit, Real, choose, part, sigmoids};

/// The loss with γ and α as its only options; for γ = 2 (`SQUARE`) the power is a product.
#[derive(Clone, Copy)]
pub(in crate::classification) struct Formula<const SQUARE: bool> {
    pub(in crate::classification) gamma: f64,
    pub(in crate::classification) alpha: Option<f64>,
}

impl<const SQUARE: bool> PointwiseOfShare<2> for Formula<SQUARE> {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (zero, one, two, gamma) = (R::of(0.0), R::of(1.0), R::of(2.0), R::of(self.gamma));
        let logit = Logit::new(x);
        let (entropy, rest) = (logit.entropy(y), logit.missing(y));
        let rest_of_x = logit.p * logit.q * (one - two * y);
        let (factor, of_x, slope) = if SQUARE {
            let slope = two * rest;
            (rest * rest, part(slope * rest_of_x, entropy), slope)
        } else {
            let factor = rest.power(gamma);
            // A power with an exponent below 1 has an infinite derivative at 0. There the derivative of the sigmoid is
            // 0, and their product is finite.
            let steepness = gamma * choose(rest.equal(zero), zero, rest_of_x / rest);
            let vertical = rest.less(R::smallest());
            (factor, part(factor * steepness, entropy), choose(vertical, zero, gamma * factor / rest))
        };
        let (balance, of_balance) = balance(self.alpha, y);
        let of_x = balance * (of_x + factor * logit.slope(y));
        let of_rest = part(slope * (logit.q - logit.p), entropy);
        let of_y = part(of_balance * factor, entropy) + balance * (of_rest - part(factor, x));
        (part(balance * factor, entropy), [of_x, of_y])
    }
}

/// αₜ, the factor of a target, and its derivative.
#[inline(always)]
fn balance<R: Real>(alpha: Option<f64>, y: R) -> (R, R) {
    match alpha {
        Some(alpha) => (R::of(alpha) * y + R::of(1.0 - alpha) * (R::of(1.0) - y), R::of(2.0 * alpha - 1.0)),
        None => (R::of(1.0), R::of(0.0)),
    }
}

/// The loss whose modulating factor is a power of the sigmoid of the margin x (1 − 2y).
#[derive(Clone, Copy)]
pub(super) struct MarginFormula<const SQUARE: bool> {
    pub(super) gamma: f64,
    pub(super) alpha: Option<f64>,
}

impl<const SQUARE: bool> PointwiseOfShare<2> for MarginFormula<SQUARE> {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (one, two, gamma) = (R::of(1.0), R::of(2.0), R::of(self.gamma));
        let sign = one - two * y;
        let logit = Logit::new(x);
        let entropy = logit.entropy(y);
        let (rest, own, _) = sigmoids(part(sign, x));
        let factor = if SQUARE { rest * rest } else { rest.power(gamma) };
        let slope = gamma * factor * own;
        let (balance, of_balance) = balance(self.alpha, y);
        let of_x = balance * (part(slope * sign, entropy) + factor * logit.slope(y));
        let of_margin = balance * (two * part(slope, entropy) + factor);
        (part(balance * factor, entropy), [of_x, part(of_balance * factor, entropy) - part(of_margin, x)])
    }
}

/// The loss whose positive and negative term have a factor each.
#[derive(Clone, Copy)]
pub(super) struct TermsFormula<const SQUARE: bool> {
    pub(super) gamma: f64,
    pub(super) alpha: Option<f64>,
}

impl<const SQUARE: bool> PointwiseOfShare<2> for TermsFormula<SQUARE> {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (one, gamma) = (R::of(1.0), R::of(self.gamma));
        let logit = Logit::new(x);
        // The term of a label whose probability is `p`, and its derivative with respect to the logit of the label.
        let term = |p: R, q: R, entropy: R| {
            let factor = if SQUARE { q * q } else { q.power(gamma) };
            (part(factor, entropy), -(factor * (q + part(gamma * p, entropy))))
        };
        let (yes, slope_of_yes) = term(logit.p, logit.q, logit.of_yes);
        let (no, slope_of_no) = term(logit.q, logit.p, logit.of_no);
        let (of_yes, of_no) = match self.alpha {
            Some(alpha) => (R::of(alpha), R::of(1.0 - alpha)),
            None => (one, one),
        };
        let (positive, negative) = (of_yes * y, of_no * (one - y));
        let of_x = positive * slope_of_yes - negative * slope_of_no;
        (part(positive, yes) + part(negative, no), [of_x, part(of_yes, yes) - part(of_no, no)])
    }
}

/// The loss whose modulating factor is made of the likelihood, the exponential of minus the cross entropy.
#[derive(Clone, Copy)]
pub(super) struct LikelihoodFormula<const SQUARE: bool> {
    pub(super) gamma: f64,
    pub(super) alpha: Option<f64>,
}

impl<const SQUARE: bool> PointwiseOfShare<2> for LikelihoodFormula<SQUARE> {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (zero, one, gamma) = (R::of(0.0), R::of(1.0), R::of(self.gamma));
        let logit = Logit::new(x);
        let entropy = logit.entropy(y);
        let (likelihood, rest) = ((-entropy).exp(), -(-entropy).exp_m1());
        let factor = if SQUARE { rest * rest } else { rest.power(gamma) };
        // The quotient of the entropy and the rest is 1 where both are 0.
        let quotient = choose(rest.equal(zero), one, entropy / rest);
        let of_entropy = factor * (one + gamma * part(likelihood, quotient));
        let (balance, of_balance) = balance(self.alpha, y);
        let of_y = part(of_balance * factor, entropy) - balance * part(of_entropy, x);
        (part(balance * factor, entropy), [balance * of_entropy * logit.slope(y), of_y])
    }
}
