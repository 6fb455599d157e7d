//! What the triplet losses share: their checks, and their formula for the engine of embeddings.

use tch::Tensor;

use super::same_shape_or_broadcast_in_rank;
use crate::check::{self, Named};
use crate::kernels::{Embedding, Real, choose, f_embedding};
use crate::numeric::f_widely;
use crate::{LossError, Reduction};

/// A triplet has one shape, or shapes that are broadcast where that is allowed, and a positive margin.
pub(super) fn check([anchor, positive, negative]: [Named; 3], margin: f64, broadcast: bool) -> Result<(), LossError> {
    check::option("margin", margin, margin > 0.0, "a number > 0")?;
    check::devices(&[anchor, positive, negative])?;
    [anchor, positive, negative].into_iter().try_for_each(check::not_boolean)?;
    same_shape_or_broadcast_in_rank(positive, anchor, broadcast)?;
    same_shape_or_broadcast_in_rank(negative, anchor, broadcast)
}

/// The options of a triplet loss of a p-norm distance.
#[derive(Clone, Copy)]
pub(super) struct Triplet {
    pub(super) margin: f64,
    pub(super) p: f64,
    pub(super) eps: f64,
    pub(super) swap: bool,
}

impl Triplet {
    /// The reduced losses of anchor, positive and negative, by an engine where there is one for the norm, else by
    /// `composite`.
    pub(super) fn f_loss<C>(self, of: [&Tensor; 3], reduction: Reduction, composite: C) -> Result<Tensor, LossError>
    where
        C: Fn([&Tensor; 3]) -> Result<Tensor, LossError> + Send + 'static,
    {
        if self.p == 2.0 {
            self.f_of_norm(Euclidean, of, reduction, composite)
        } else if self.p == 1.0 {
            self.f_of_norm(Manhattan, of, reduction, composite)
        } else {
            // Powers that are computed by an exponential and a logarithm have fewer digits than libtorch's.
            f_widely(of, composite)
        }
    }

    fn f_of_norm<N: Norm, C>(
        self,
        norm: N,
        of: [&Tensor; 3],
        reduction: Reduction,
        composite: C,
    ) -> Result<Tensor, LossError>
    where
        C: Fn([&Tensor; 3]) -> Result<Tensor, LossError> + Send + 'static,
    {
        let formula = Formula { norm, margin: self.margin, eps: self.eps };
        if self.swap {
            return f_embedding::<3, 3, _, _, _>(formula, of, reduction, composite);
        }
        f_embedding::<3, 2, _, _, _>(formula, of, reduction, composite)
    }
}

#[derive(Clone, Copy)]
struct Formula<N> {
    norm: N,
    margin: f64,
    eps: f64,
}

impl<N: Norm> Formula<N> {
    #[inline(always)]
    fn difference<R: Real>(self, u: R, v: R) -> R {
        u - v + R::of(self.eps)
    }

    /// The loss of two distances, and its derivative by the first. As of PyTorch's maximum it is 1 at 0.
    #[inline(always)]
    fn hinge<R: Real>(self, to_positive: R, to_negative: R) -> (R, R) {
        let zero = R::of(0.0);
        let short = R::of(self.margin) + to_positive - to_negative;
        (short.at_least(zero), choose(short.greater_equal(zero), R::of(1.0), zero))
    }
}

/// The sums are those of the distances from the anchor to the positive and the negative.
impl<N: Norm> Embedding<3, 2> for Formula<N> {
    #[inline(always)]
    fn add<R: Real>(self, [anchor, positive, negative]: [R; 3], [to_positive, to_negative]: [R; 2]) -> [R; 2] {
        [
            self.norm.add(self.difference(anchor, positive), to_positive),
            self.norm.add(self.difference(anchor, negative), to_negative),
        ]
    }

    #[inline(always)]
    fn loss<R: Real>(self, [positive, negative]: [R; 2], _: R) -> (R, [R; 2]) {
        let (to_positive, of_positive) = self.norm.root(positive);
        let (to_negative, of_negative) = self.norm.root(negative);
        let (loss, slope) = self.hinge(to_positive, to_negative);
        (loss, [slope * of_positive, -slope * of_negative])
    }

    #[inline(always)]
    fn derive<R: Real>(self, [anchor, positive, negative]: [R; 3], [of_positive, of_negative]: [R; 2]) -> [R; 3] {
        let of_positive = of_positive * self.norm.slope(self.difference(anchor, positive));
        let of_negative = of_negative * self.norm.slope(self.difference(anchor, negative));
        [of_positive + of_negative, -of_positive, -of_negative]
    }
}

/// With a swap, the third sum is that of the distance from the positive to the negative.
impl<N: Norm> Embedding<3, 3> for Formula<N> {
    #[inline(always)]
    fn add<R: Real>(self, numbers: [R; 3], [to_positive, to_negative, swapped]: [R; 3]) -> [R; 3] {
        let [to_positive, to_negative] = self.add(numbers, [to_positive, to_negative]);
        [to_positive, to_negative, self.norm.add(self.difference(numbers[1], numbers[2]), swapped)]
    }

    #[inline(always)]
    fn loss<R: Real>(self, [positive, negative, across]: [R; 3], _: R) -> (R, [R; 3]) {
        let (zero, half, one) = (R::of(0.0), R::of(0.5), R::of(1.0));
        let (to_positive, of_positive) = self.norm.root(positive);
        let (to_negative, of_negative) = self.norm.root(negative);
        let (swapped, of_swapped) = self.norm.root(across);
        let nearer = to_negative.less(swapped);
        let (loss, slope) = self.hinge(to_positive, choose(nearer, to_negative, swapped));
        // Equal distances share the gradient.
        let share = choose(to_negative.equal(swapped), half, choose(nearer, one, zero));
        (loss, [slope * of_positive, -slope * share * of_negative, -slope * (one - share) * of_swapped])
    }

    #[inline(always)]
    fn derive<R: Real>(self, numbers: [R; 3], [of_positive, of_negative, of_swapped]: [R; 3]) -> [R; 3] {
        let [anchor, positive, negative] = self.derive(numbers, [of_positive, of_negative]);
        let of_swapped = of_swapped * self.norm.slope(self.difference(numbers[1], numbers[2]));
        [anchor, positive + of_swapped, negative - of_swapped]
    }
}

/// A root of a sum of powers.
trait Norm: Copy + Send + Sync + 'static {
    /// The sum with the power of `difference` added.
    fn add<R: Real>(self, difference: R, sum: R) -> R;
    /// The derivative of the power.
    fn slope<R: Real>(self, difference: R) -> R;
    /// The root of the sum and its derivative, 0 where the sum is 0.
    fn root<R: Real>(self, sum: R) -> (R, R);
}

#[derive(Clone, Copy)]
struct Euclidean;

impl Norm for Euclidean {
    #[inline(always)]
    fn add<R: Real>(self, difference: R, sum: R) -> R {
        difference.mul_add(difference, sum)
    }

    #[inline(always)]
    fn slope<R: Real>(self, difference: R) -> R {
        R::of(2.0) * difference
    }

    #[inline(always)]
    fn root<R: Real>(self, sum: R) -> (R, R) {
        let (zero, root) = (R::of(0.0), sum.sqrt());
        (root, choose(root.equal(zero), zero, R::of(0.5) / root))
    }
}

#[derive(Clone, Copy)]
struct Manhattan;

impl Norm for Manhattan {
    #[inline(always)]
    fn add<R: Real>(self, difference: R, sum: R) -> R {
        sum + difference.abs()
    }

    #[inline(always)]
    fn slope<R: Real>(self, difference: R) -> R {
        difference.sign()
    }

    #[inline(always)]
    fn root<R: Real>(self, sum: R) -> (R, R) {
        (sum, R::of(1.0))
    }
}
