//! The formula of the softmax focal loss for the engine.

use crate::kernels::{Real, RowLoss, choose};

/// The loss, for the engine.
#[derive(Clone, Copy)]
pub(super) struct Formula<M>(pub(super) M);

/// The modulating factor, for the engine.
pub(super) trait Modulate: Copy + Send + Sync + 'static {
    /// γ, and `rest` to the power of γ.
    fn power<R: Real>(self, rest: R) -> (R, R);
}

/// γ = 2, the usual one, without logarithm and exponential.
#[derive(Clone, Copy)]
pub(super) struct Square;

impl Modulate for Square {
    #[inline(always)]
    fn power<R: Real>(self, rest: R) -> (R, R) {
        (R::of(2.0), rest * rest)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Power {
    pub(super) gamma: f64,
}

impl Modulate for Power {
    #[inline(always)]
    fn power<R: Real>(self, rest: R) -> (R, R) {
        let gamma = R::of(self.gamma);
        (gamma, rest.power(gamma))
    }
}

impl<M: Modulate> RowLoss for Formula<M> {
    #[inline(always)]
    fn evaluate<R: Real>(self, log_p: R, _: R) -> (R, [R; 2]) {
        let rest = -log_p.exp_m1();
        let (gamma, factor) = self.0.power(rest);
        let (zero, one) = (R::of(0.0), R::of(1.0));
        // A small p is the exponential of its logarithm, because 1 − `rest` has few of its digits.
        let p = choose(rest.greater(R::of(0.5)), log_p.exp_of_negative(), one - rest);
        // p log p / (1 − p), which is −1 at p = 1 and 0 at p = 0.
        let ratio = choose(rest.equal(zero), -one, choose(p.equal(zero), zero, p * log_p / rest));
        let slope = factor * (gamma * ratio - one);
        (-(factor * log_p), [slope, zero])
    }
}
