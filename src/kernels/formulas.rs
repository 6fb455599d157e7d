//! What a loss gives to an engine: its formula, as Rust that is the same for all numbers.

use std::array::from_fn;

use super::number::Real;

/// A loss of one element, given `N` numbers for it.
pub(crate) trait Pointwise<const N: usize>: Copy + Send + Sync + 'static {
    /// Whether some arguments have no loss. It is NaN there, and the composite is asked for the error.
    const PARTIAL: bool = false;

    /// The loss and its partial derivatives. To be `#[inline(always)]`.
    fn evaluate<R: Real>(self, arguments: [R; N]) -> (R, [R; N]);
}

/// A formula of `N` numbers, so that what follows from its type can be implemented for all formulas.
pub(super) struct Typed<P, const N: usize>(pub(super) P);

/// A formula whose losses are multiplied by a last argument.
#[derive(Clone, Copy)]
pub(crate) struct Weighted<P>(pub(crate) P);

impl<P: Pointwise<2>> Pointwise<3> for Weighted<P> {
    const PARTIAL: bool = P::PARTIAL;

    #[inline(always)]
    fn evaluate<R: Real>(self, [a, b, weight]: [R; 3]) -> (R, [R; 3]) {
        let (loss, [of_a, of_b]) = self.0.evaluate([a, b]);
        (loss * weight, [of_a * weight, of_b * weight, loss])
    }
}

impl<P: Pointwise<3>> Pointwise<4> for Weighted<P> {
    const PARTIAL: bool = P::PARTIAL;

    #[inline(always)]
    fn evaluate<R: Real>(self, [a, b, c, weight]: [R; 4]) -> (R, [R; 4]) {
        let (loss, [of_a, of_b, of_c]) = self.0.evaluate([a, b, c]);
        (loss * weight, [of_a * weight, of_b * weight, of_c * weight, loss])
    }
}

/// `M` numbers made of `N`.
pub(crate) trait Map<const N: usize, const M: usize>: Copy + Send + Sync + 'static {
    /// The numbers. To be `#[inline(always)]`.
    fn evaluate<R: Real>(self, arguments: [R; N]) -> [R; M];

    /// The derivatives with respect to the arguments, given those with respect to the numbers. To be `#[inline(always)]`.
    fn derive<R: Real>(self, arguments: [R; N], of_numbers: [R; M]) -> [R; N];
}

/// A loss of one row.
pub(crate) trait RowLoss: Copy + Send + Sync + 'static {
    /// The loss, given log p\[t\] and log Σ exp(x), and its derivatives with respect to both. To be `#[inline(always)]`.
    fn evaluate<R: Real>(self, log_p: R, log_sum: R) -> (R, [R; 2]);
}

/// The terms of a loss, each of the probability p of one class, and their derivatives with respect to log p. To be
/// `#[inline(always)]`.
pub(crate) trait ClassTerms: Copy + Send + Sync + 'static {
    /// The term of the target's class, also of a p of 0 with a log p of −∞.
    fn of_target<R: Real>(self, log_p: R, p: R) -> (R, R);
    /// The term of any other class, likewise.
    fn of_other<R: Real>(self, log_p: R) -> (R, R);
}

/// A loss of `N` embeddings and a label, by `S` sums over their numbers.
pub(crate) trait Embedding<const N: usize, const S: usize>: Copy + Send + Sync + 'static {
    /// The sums with the terms of one place of the embeddings added. To be `#[inline(always)]`.
    fn add<R: Real>(self, numbers: [R; N], sums: [R; S]) -> [R; S];

    /// The loss of the sums, and its derivatives with respect to them.
    fn loss(self, sums: [f64; S], label: f64) -> (f64, [f64; S]);

    /// The derivatives with respect to the numbers of one place, given those with respect to the sums. To be
    /// `#[inline(always)]`.
    fn derive<R: Real>(self, numbers: [R; N], of_sums: [R; S]) -> [R; N];
}

/// The errors of the elements of a class and of others, and their weights.
pub(crate) trait Ranked: Copy + Send + Sync + 'static {
    /// By what a number is ranked: its error, or what has the same order; what its weight is multiplied by; and the derivative of
    /// that.
    fn error<R: Real>(self, x: R, own: bool) -> [R; 3];

    /// The weights of the errors in descending order, one after the other, given whether each is of the class, of which there are
    /// `total`.
    fn weights(self, total: usize) -> impl FnMut(bool) -> f64;
}

/// Where the numbers of the pairs of one label are in an array of two.
pub(crate) const SAME: usize = 0;
/// Where those of the pairs of two labels are.
pub(crate) const OTHER: usize = 1;

/// The terms of pairs.
pub(crate) trait PairTerms: Copy + Send + Sync + 'static {
    /// The term of a pair of one label, and its derivative. To be `#[inline(always)]`.
    fn same<R: Real>(self, x: R) -> (R, R);

    /// The same of a pair of two labels.
    fn other<R: Real>(self, x: R) -> (R, R);
}

/// The term (x − `margin`) · `scale`, and its derivative.
#[inline(always)]
pub(crate) fn scaled<R: Real>(x: R, margin: f64, scale: f64) -> (R, R) {
    let scale = R::of(scale);
    ((x - R::of(margin)) * scale, scale)
}

/// A loss of each row, of the soft maxima of its terms.
pub(crate) trait SoftPairs: PairTerms {
    /// The loss of what the terms of a row sum up to, and its derivatives.
    fn loss(self, sums: &PairSums) -> (f64, PairSlopes);

    /// Whether a row has a loss at all.
    fn exists(self, _: &PairSums) -> bool {
        true
    }
}

/// What the terms of a row sum up to, those of one label and those of two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PairSums {
    /// The greatest terms, −∞ where there are none.
    pub(super) most: [f64; 2],
    /// Σ exp(t − the greatest)
    pub(super) exponentials: [f64; 2],
    /// Σ t
    pub(crate) sums: [f64; 2],
    /// How many they are.
    pub(crate) counts: [f64; 2],
    /// The row's number beside the matrix, where there is one.
    pub(crate) own: Option<f64>,
}

impl PairSums {
    pub(super) const NOTHING: Self =
        Self { most: [f64::NEG_INFINITY; 2], exponentials: [0.0; 2], sums: [0.0; 2], counts: [0.0; 2], own: None };

    /// log Σ exp(t), −∞ where there are no terms.
    pub(crate) fn log_sum_exp(&self) -> [f64; 2] {
        from_fn(|k| self.most[k] + self.exponentials[k].ln())
    }
}

/// Derivatives with respect to sums.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct PairSlopes {
    pub(crate) log_sum_exp: [f64; 2],
    pub(crate) sums: [f64; 2],
    pub(crate) own: f64,
}

/// A loss of a pair of one label.
pub(crate) trait Positives: Copy + Send + Sync + 'static {
    /// Whether the negatives of the column count beside those of the row; the matrix is square then.
    const BOTH: bool;

    /// The term of a pair of two labels, and its derivative. To be `#[inline(always)]`.
    fn negative<R: Real>(self, x: R) -> (R, R);

    /// The loss, given log Σ exp of the terms of the row and of the column, −∞ where there are none; and its derivatives with
    /// respect to all three.
    fn loss(self, x: f64, negatives: [f64; 2]) -> (f64, [f64; 3]);
}
