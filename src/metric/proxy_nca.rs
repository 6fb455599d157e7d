use tch::Tensor;

use super::class_vectors::{Classified, OwnSoftmax, check_proxies, owned, passed_in};
use super::pairs::CountedAs;
use super::{EmbeddingDistance, EmbeddingPairs, EmbeddingReduction};
use crate::{LossError, check};

crate::options::options! {
/// Proxy NCA with proxies that are passed in: [`ProxyNcaLoss`] without parameters of its own, and its options.
///
/// For proxies that are shared, kept elsewhere or partly frozen. Where the loss may own them choose [`ProxyNcaLoss`].
///
/// # Formula
///
/// ℓₙ = −log (exp(−s d(xₙ, pᵧ)) / Σ_c exp(−s d(xₙ, p_c)))
///
/// where x are the embeddings, p_c is the proxy of the class c, y the class of the embedding, d the distance, squared
/// and of unit vectors by default, and s the scale. A similarity counts as −d.
///
#[doc = include_str!("../../docs/book/src/gallery/proxy_nca.svg")]
///
/// # Shapes
///
/// * `input`: embeddings `[N, D]`
/// * `proxies`: `[C, D]`
/// * `target`: classes `[N]`, of any integer kind
/// * result: scalar, or `[N]` with [`EmbeddingReduction::None`]
///
/// # Reference
///
/// `pytorch_metric_learning.losses.ProxyNCALoss` 2.9.0; Movshovitz-Attias et al., No Fuss Distance Metric Learning
/// using Proxies, <https://arxiv.org/abs/1703.07464>, whose sum is over the other classes alone.
///
/// # Differences from pytorch-metric-learning
///
/// * Those of [`EmbeddingDistance`], but that the default distance, the squared one of unit vectors, is computed from
///   products: small distances lose digits by that, which makes no difference in the softmax.
/// * An embedding whose probability underflows, because it is far from its proxy, has its exact, large loss; there it
///   is left out.
/// * Classes are in \[0, C), of any integer kind; there an embedding of another class is left out.
/// * Over no embeddings at all the mean is 0; there it is NaN.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a scale that is not finite or a distance
/// out of range.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::ProxyNca;
///
/// let embeddings = Tensor::from_slice(&[2.0, 0.0]).view([1, 2]).set_requires_grad(true);
/// let proxies = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0]).view([2, 2]).set_requires_grad(true);
/// let classes = Tensor::from_slice(&[1_i64]);
///
/// // The squared distances are 0 from the other proxy, and 2 from its own.
/// let loss = ProxyNca::new().f_forward(&embeddings, &proxies, &classes)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - 2_f64.exp().ln_1p()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
pub struct ProxyNca;

/// The defaults of pytorch-metric-learning.
new {
    /// the scale of the logits, the inverse of a temperature.
    softmax_scale: f64 = 1.0,
    /// the distance. [`EmbeddingDistance::lp`] with power
    distance: EmbeddingDistance = EmbeddingDistance::lp().power(2.0),
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::Mean,
}
}

impl ProxyNca {
    passed_in!(proxies);

    fn f_loss(
        &self,
        input: &Tensor,
        proxies: &Tensor,
        target: &Tensor,
        pairs: Option<&EmbeddingPairs>,
    ) -> Result<Tensor, LossError> {
        self.f_check()?;
        check_proxies(input, proxies, target)?;
        let batch = Classified::f_new(input, ("proxies", proxies), target, 1)?.f_weighted(pairs, CountedAs::Anchors)?;
        let softmax = OwnSoftmax { scale: self.softmax_scale, margin: 0.0 };
        batch.f_cross_entropy_of(self.distance, softmax, self.reduction)
    }

    fn f_check(&self) -> Result<(), LossError> {
        check::finite("softmax_scale", self.softmax_scale)?;
        self.distance.check()
    }
}

owned! {
/// Proxy NCA: each class has a proxy, and each embedding is classified by its distances from them.
///
/// For metric learning with labels where losses of pairs converge slowly, and the simplest of the losses with proxies.
/// [`ProxyAnchorLoss`](crate::ProxyAnchorLoss) weighs the embeddings of a batch against each other and mostly does
/// better.
///
/// # Formula
///
/// loss = [`ProxyNca`](x, P, y)
///
/// where x is the input, y the target and P the proxies.
///
#[doc = include_str!("../../docs/book/src/gallery/proxy_nca.svg")]
///
/// # Shapes
///
/// * `input`: embeddings `[N, D]`
/// * `target`: classes `[N]`, of any integer kind
/// * result: scalar, or `[N]` with [`EmbeddingReduction::None`]
///
/// The variable on the path is `proxies`, `[C, D]`, the name of the state dict of pytorch-metric-learning. Its initial
/// values are normal.
///
/// # Reference
///
/// `pytorch_metric_learning.losses.ProxyNCALoss` 2.9.0.
///
/// # Differences from pytorch-metric-learning
///
/// Those of [`ProxyNca`].
///
/// # Errors
///
/// Those of [`ProxyNca`], and [`LossError::Option`] for a number of classes or features that is not positive.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor, nn};
/// use tch_losses::{Loss, ProxyNca, ProxyNcaLoss};
///
/// let vs = nn::VarStore::new(Device::Cpu);
/// let criterion = ProxyNcaLoss::f_new(vs.root() / "head", 10, 16, ProxyNca::new().softmax_scale(8.0))?;
/// assert_eq!(vs.variables()["head.proxies"].size(), [10, 16]);
///
/// let embeddings = Tensor::randn([4, 16], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let loss = criterion.f_forward(&embeddings, &Tensor::from_slice(&[0_i64, 9, 3, 3]))?;
/// loss.f_backward()?;
/// assert!(criterion.proxies().grad().defined());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ProxyNcaLoss of proxy_nca: ProxyNca;

/// The proxies of the classes.
proxies: "proxies", |sizes| (sizes, 1.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::randn;

    #[test]
    fn wrong_calls_are_named() {
        let (x, proxies, classes) = (randn([2, 4]), randn([6, 4]), Tensor::from_slice(&[0_i64, 6]));
        let error = ProxyNca::new().f_forward(&x, &proxies, &classes).unwrap_err();
        assert_eq!(error.to_string(), "target holds 6, expected classes in [0, 6)");
        let error = ProxyNca::new().softmax_scale(f64::INFINITY).f_forward(&x, &proxies, &classes).unwrap_err();
        assert_eq!(error.to_string(), "option softmax_scale is inf, expected a finite number");
    }

    #[test]
    fn a_probability_that_underflows_has_its_loss() {
        let embeddings = Tensor::from_slice(&[1.0_f32, 0.0]).view([1, 2]).set_requires_grad(true);
        let proxies = Tensor::from_slice(&[1.0_f32, 0.0, -1.0, 0.0]).view([2, 2]);
        let loss = ProxyNca::new().softmax_scale(100.0).forward(&embeddings, &proxies, &Tensor::from_slice(&[1_i64]));
        loss.backward();
        assert_eq!(f64::try_from(loss).unwrap(), 400.0);
        assert!(bool::try_from(embeddings.grad().isfinite().all()).unwrap());
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (x, proxies, classes) = (randn([4, 3]), randn([5, 3]), Tensor::from_slice(&[0_i64, 2, 2, 4]));
        for distance in [EmbeddingDistance::lp().power(2.0), EmbeddingDistance::cosine(), EmbeddingDistance::lp()] {
            let loss = ProxyNca::new().softmax_scale(3.0).distance(distance);
            crate::numeric::assert_gradient(&x, |x| loss.forward(x, &proxies, &classes));
            crate::numeric::assert_gradient(&proxies, |proxies| loss.forward(&x, proxies, &classes));
        }
    }
}
