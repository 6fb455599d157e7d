//! The formulas that a loss file gives to an engine, as traits: one for each family of engines.
//!
//! A formula is written once for all number types ([`Real`]), and returns the loss together with its derivatives.
//! Engines inline it into their innermost loop. That is why the methods called there are to be `#[inline(always)]`.

use super::number::Real;

/// The name of an argument and the range of its values, for messages.
pub(crate) type Expected = (&'static str, &'static str);

/// The loss of one element, a function of `N` numbers: the formula of the engine `pointwise`.
pub(crate) trait Pointwise<const N: usize>: Copy + Send + Sync + 'static {
    /// What is expected, where the loss is undefined for some values of the arguments, such as a target out of range. It
    /// is NaN there; on the CPU the composite is then called, because it returns the error.
    fn partial(self) -> Option<Expected> {
        None
    }

    /// Whether these arguments have a loss, for a formula that is partial: they are as expected. It may be NaN for
    /// others, too, such as NaN itself. To be `#[inline(always)]`.
    #[inline(always)]
    fn is_defined<R: Real>(self, _: [R; N]) -> R::Mask {
        true.into()
    }

    /// The loss and its partial derivatives with respect to the arguments. To be `#[inline(always)]`.
    fn evaluate<R: Real>(self, arguments: [R; N]) -> (R, [R; N]);
}

/// A formula of `N` numbers, so that what follows from its type can be implemented for all formulas.
pub(super) struct Typed<P, const N: usize>(pub(super) P);

/// The same for a formula of `N` embeddings and `S` sums.
pub(super) struct TypedRows<E, const N: usize, const S: usize>(pub(super) E);

/// The same for a formula of `N` numbers with `M` results.
pub(super) struct TypedMap<F, const N: usize, const M: usize>(pub(super) F);

/// A formula whose loss is multiplied by one more argument, the weight, which is the last one.
#[derive(Clone, Copy)]
pub(crate) struct Weighted<P>(pub(crate) P);

impl<P: Pointwise<2>> Pointwise<3> for Weighted<P> {
    fn partial(self) -> Option<Expected> {
        self.0.partial()
    }

    #[inline(always)]
    fn is_defined<R: Real>(self, [a, b, _]: [R; 3]) -> R::Mask {
        self.0.is_defined([a, b])
    }

    #[inline(always)]
    fn evaluate<R: Real>(self, [a, b, weight]: [R; 3]) -> (R, [R; 3]) {
        let (loss, [of_a, of_b]) = self.0.evaluate([a, b]);
        (loss * weight, [of_a * weight, of_b * weight, loss])
    }
}

impl<P: Pointwise<3>> Pointwise<4> for Weighted<P> {
    fn partial(self) -> Option<Expected> {
        self.0.partial()
    }

    #[inline(always)]
    fn is_defined<R: Real>(self, [a, b, c, _]: [R; 4]) -> R::Mask {
        self.0.is_defined([a, b, c])
    }

    #[inline(always)]
    fn evaluate<R: Real>(self, [a, b, c, weight]: [R; 4]) -> (R, [R; 4]) {
        let (loss, [of_a, of_b, of_c]) = self.0.evaluate([a, b, c]);
        (loss * weight, [of_a * weight, of_b * weight, of_c * weight, loss])
    }
}

/// `M` numbers of one element, functions of `N` others: the formula of the engine `map`.
pub(crate) trait Map<const N: usize, const M: usize>: Copy + Send + Sync + 'static {
    /// The `M` numbers. To be `#[inline(always)]`.
    fn evaluate<R: Real>(self, arguments: [R; N]) -> [R; M];

    /// The derivatives of a loss with respect to the arguments, given `of_numbers`, its derivatives with respect to the
    /// `M` numbers. To be `#[inline(always)]`.
    fn derive<R: Real>(self, arguments: [R; N], of_numbers: [R; M]) -> [R; N];
}

/// The loss of one row of logits x with the target class t: the formula of the engine `softmax`.
pub(crate) trait RowLoss: Copy + Send + Sync + 'static {
    /// The loss, given log p\[t\] and log Σ exp(x), and its derivatives with respect to these two. To be
    /// `#[inline(always)]`.
    fn evaluate<R: Real>(self, log_p: R, log_sum: R) -> (R, [R; 2]);
}

/// The terms of a loss that is a sum over the classes: the formula of the engine `class_terms`. Each term is a function
/// of the probability p of one class, and comes with its derivative with respect to log p. To be `#[inline(always)]`.
pub(crate) trait ClassTerms: Copy + Send + Sync + 'static {
    /// The term of the target's class. It has to be right for p = 0 with log p = −∞ too.
    fn of_target<R: Real>(self, log_p: R, p: R) -> (R, R);
    /// The term of any other class. It has to be right for log p = −∞ too.
    fn of_other<R: Real>(self, log_p: R) -> (R, R);
}

/// The loss of `N` embeddings and a label, a function of `S` sums over the embeddings' numbers (such as a dot product):
/// the formula of the engine `embedding`.
pub(crate) trait Embedding<const N: usize, const S: usize>: Copy + Send + Sync + 'static {
    /// The sums after the terms of one place of the embeddings have been added to them. To be `#[inline(always)]`.
    fn add<R: Real>(self, numbers: [R; N], sums: [R; S]) -> [R; S];

    /// The loss, and its derivatives with respect to the sums. In double precision.
    fn loss<R: Real>(self, sums: [R; S], label: R) -> (R, [R; S]);

    /// The derivatives of the loss with respect to the embeddings' numbers at one place, given `of_sums`, those with
    /// respect to the sums. To be `#[inline(always)]`.
    fn derive<R: Real>(self, numbers: [R; N], of_sums: [R; S]) -> [R; N];
}

/// The errors that are sorted and the weights that they get: the formula of the engine `ranks` (the Lovász losses).
pub(crate) trait Ranked: Copy + Send + Sync + 'static {
    /// Three numbers of an element x, which is in the class or not (`own`): the key by which it is sorted (its error,
    /// or what has the same order); what its weight is multiplied by; and the derivative of the latter.
    fn error<R: Real>(self, x: R, own: bool) -> [R; 3];

    /// A function that is called for each error in descending order and returns its weight. It is told whether the
    /// element is in the class, of which there are `total` elements.
    fn weights(self, total: usize) -> impl FnMut(bool) -> f64;
}

/// Index into arrays of two: the numbers of pairs with the same label (positives).
pub(crate) const SAME: usize = 0;
/// Index into arrays of two: the numbers of pairs with different labels (negatives).
pub(crate) const OTHER: usize = 1;

/// The terms of pairs, functions of the matrix element x of the pair (a similarity or a distance): the formula of the
/// engines `pairs` and `triplets`.
pub(crate) trait PairTerms: Copy + Send + Sync + 'static {
    /// The term of a pair with the same label, and its derivative. To be `#[inline(always)]`.
    fn same<R: Real>(self, x: R) -> (R, R);

    /// The term of a pair with different labels, and its derivative. To be `#[inline(always)]`.
    fn other<R: Real>(self, x: R) -> (R, R);
}

/// The term (x − `margin`) · `scale`, and its derivative.
#[inline(always)]
pub(crate) fn scaled<R: Real>(x: R, margin: f64, scale: f64) -> (R, R) {
    let scale = R::of(scale);
    ((x - R::of(margin)) * scale, scale)
}

/// A loss of each row of the matrix, a function of the sums and of log Σ exp (the soft maximum) of its terms.
pub(crate) trait SoftPairs: PairTerms {
    /// Whether no row has a loss where no two samples have different labels.
    const NEEDS_NEGATIVES: bool = false;

    /// The loss of a row, and its derivatives with respect to these sums. In double precision.
    fn loss<R: Real>(self, sums: &PairSums<R>) -> (R, PairSlopes<R>);

    /// Whether a row has a loss at all. Others count neither in the sum nor in the mean.
    fn exists<R: Real>(self, _: &PairSums<R>) -> R::Mask {
        R::Mask::from(true)
    }
}

/// The sums of a row's terms. The arrays have those of pairs with the same label at [`SAME`], the others at [`OTHER`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PairSums<R> {
    /// log Σ exp(t) over the terms t. Without any it is −∞, or on CUDA so small that its exponential is 0.
    pub(crate) log_sum_exp: [R; 2],
    /// Σ t over the terms t
    pub(crate) sums: [R; 2],
    /// How many they are.
    pub(crate) counts: [R; 2],
    /// A number of the row that is not in the matrix, where the engine is given one.
    pub(crate) own: Option<R>,
}

/// The derivatives of a row's loss with respect to log Σ exp(t), Σ t and the `own` number of [`PairSums`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PairSlopes<R> {
    pub(crate) log_sum_exp: [R; 2],
    pub(crate) sums: [R; 2],
    pub(crate) own: R,
}

impl<R: Real> PairSlopes<R> {
    /// Those with respect to log Σ exp(t), where the loss depends on nothing else.
    pub(crate) fn of_log_sum_exp(log_sum_exp: [R; 2]) -> Self {
        let zero = R::of(0.0);
        Self { log_sum_exp, sums: [zero; 2], own: zero }
    }
}

/// The loss of each pair with the same label, given the negatives of its row (NT-Xent, lifted structure): the formula
/// of the engine `positives`.
pub(crate) trait Positives: Copy + Send + Sync + 'static {
    /// Whether the negatives of the pair's column count as well as those of its row. The matrix is square then.
    const BOTH: bool;

    /// Whether no pair has a loss where no two samples have different labels.
    const NEEDS_NEGATIVES: bool = false;

    /// The term of a pair with different labels, and its derivative. To be `#[inline(always)]`.
    fn negative<R: Real>(self, x: R) -> (R, R);

    /// The loss of the pair with the matrix element `x`, given log Σ exp over the `negatives` of its row and of its
    /// column, without any as in [`PairSums`]; and its derivatives with respect to these three numbers. In double
    /// precision.
    fn loss<R: Real>(self, x: R, negatives: [R; 2]) -> (R, [R; 3]);
}
