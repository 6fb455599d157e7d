//! What losses of the angle between two vectors give the engine of embeddings.

use tch::Tensor;

use crate::kernels::{Embedding, Real, composite_of, f_embedding, widely};
use crate::{LossError, Reduction};

/// A loss of the cosine of an angle, by Σ aᵢbᵢ, Σ aᵢ² and Σ bᵢ².
pub(crate) trait AngleLoss: Copy + Send + Sync + 'static {
    /// The loss of the sums, and its derivatives with respect to them.
    fn loss<R: Real>(self, sums: [R; 3], label: R) -> (R, [R; 3]);
}

/// Such a loss as one of two embeddings.
#[derive(Clone, Copy)]
pub(crate) struct Angle<L>(pub(crate) L);

impl<L: AngleLoss> Angle<L> {
    /// The loss of two embeddings and what goes with them, by the engine, or by `composite`.
    pub(crate) fn f_loss<const M: usize, C>(
        self,
        arguments: [&Tensor; M],
        reduction: Reduction,
        composite: C,
    ) -> Result<Tensor, LossError>
    where
        C: Fn([&Tensor; M]) -> Result<Tensor, LossError> + Send + 'static,
    {
        // Embeddings of a single number have the cosine 1 or −1, and so the gradient 0. The engine adds up terms of the
        // gradient that cancel here, and would return what rounding leaves of them. Tensor operations return 0.
        if arguments[..2].iter().any(|embedding| embedding.size().last() == Some(&1)) {
            return widely(composite_of(composite))(&arguments);
        }
        f_embedding(self, arguments, reduction, composite)
    }
}

impl<L: AngleLoss> Embedding<2, 3> for Angle<L> {
    #[inline(always)]
    fn add<R: Real>(self, [a, b]: [R; 2], [product, square_a, square_b]: [R; 3]) -> [R; 3] {
        [a.mul_add(b, product), a.mul_add(a, square_a), b.mul_add(b, square_b)]
    }

    fn loss<R: Real>(self, sums: [R; 3], label: R) -> (R, [R; 3]) {
        self.0.loss(sums, label)
    }

    #[inline(always)]
    fn derive<R: Real>(self, [a, b]: [R; 2], [of_product, of_square_a, of_square_b]: [R; 3]) -> [R; 2] {
        let two = R::of(2.0);
        [of_product * b + two * of_square_a * a, of_product * a + two * of_square_b * b]
    }
}
