use tch::{Kind, Tensor};

use super::batch::{f_log_sum_exp, f_softplus, softplus};
use super::class_vectors::{Classified, check_proxies, owned, passed_in};
use super::pairs::CountedAs;
use super::{EmbeddingDistance, EmbeddingPairs, EmbeddingReduction};
use crate::autograd::{Backward, Place, Tape, f_taped};
use crate::kernels::{
    NumberOperations, OTHER, PairLabels, PairSlopes, PairSums, PairTerms, Real, SAME, Soft, SoftPairs, f_pairs,
    f_pairs_on, scaled,
};
use crate::numeric::f_positions;
use crate::{LossError, check};

crate::options::options! {
/// Proxy anchor with proxies that are passed in: [`ProxyAnchorLoss`] without parameters of its own, and its options.
///
/// For proxies that are shared, kept elsewhere or partly frozen. Where the loss may own them choose
/// [`ProxyAnchorLoss`].
///
/// # Formula
///
/// L = R(log(1 + Σₙ∈c exp(−α (s(xₙ, p_c) − δ))) over the classes c of the batch)
///   \+ R(log(1 + Σₙ∉c exp(α (s(xₙ, p_c) + δ))) over all classes c)
///
/// where x are the embeddings, p_c is the proxy of the class c, s the similarity, α the scale, δ the margin and R the
/// reduction, a mean in the paper. With a distance d the losses are those of exp(α (d − δ)) and exp(−α (d + δ)).
///
#[doc = include_str!("../../docs/book/src/gallery/proxy_anchor.svg")]
///
/// # Shapes
///
/// * `input`: embeddings `[N, D]`
/// * `proxies`: `[C, D]`
/// * `target`: classes `[N]`, of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses of the classes of the batch, and then those of all
///   classes
///
/// # Reference
///
/// `pytorch_metric_learning.losses.ProxyAnchorLoss` 2.9.0; Kim et al., Proxy Anchor Loss,
/// <https://arxiv.org/abs/2003.13911>.
///
/// # Differences from pytorch-metric-learning
///
/// * Those of [`EmbeddingDistance`].
/// * A class without an embedding in the batch has no loss in the first term. There its loss is 0, which the default
///   `DivisorReducer` does not count, but `MeanReducer` and `ThresholdReducer(high)` do.
/// * Classes may be of any integer kind.
///
/// With [`EmbeddingPairs`], the weight of an embedding less 1 is added to its terms, before their soft maximum.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a margin or α that is not finite or a
/// distance out of range.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::ProxyAnchor;
///
/// let embeddings = Tensor::from_slice(&[2.0, 0.0]).view([1, 2]).set_requires_grad(true);
/// let proxies = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0]).view([2, 2]).set_requires_grad(true);
/// let classes = Tensor::from_slice(&[0_i64]);
///
/// let criterion = ProxyAnchor::new().alpha(1.0).margin(0.0);
/// let loss = criterion.f_forward(&embeddings, &proxies, &classes)?;
/// loss.f_backward()?;
/// // The own proxy is met; the other one, of two, is at a right angle.
/// assert!((f64::try_from(&loss)? - ((-1_f64).exp().ln_1p() + 2_f64.ln() / 2.0)).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
pub struct ProxyAnchor;

/// The defaults of pytorch-metric-learning.
new {
    /// the margin δ.
    margin: f64 = 0.1,
    /// the scale α.
    alpha: f64 = 32.0,
    /// the distance.
    distance: EmbeddingDistance = EmbeddingDistance::cosine(),
    /// the reduction.
    reduction: EmbeddingReduction = EmbeddingReduction::Mean,
}
}

impl ProxyAnchor {
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
        let batch = Classified::f_new(input, ("proxies", proxies), target, 1)?.f_weighted(pairs, CountedAs::Any)?;
        let (labels, counted) = (
            batch.f_numbered(proxies.size()[0])?.map(PairLabels::transposed),
            self.reduction.of_anchors().f_counted()?,
        );
        let steps = |tape: &mut Tape, places: &[Place]| {
            if labels.is_none() || counted.is_none() || !self.distance.is_symmetric() {
                return Ok(None);
            }
            // The proxies are the anchors: one row for each.
            let Some(matrix) = self.distance.f_matrix_on(tape, &[places[1], places[0]], batch.wide)? else {
                return Ok(None);
            };
            let mut f_part =
                |of| f_pairs_on(tape, Soft(self.maximum(of)), &[matrix], labels.as_ref(), counted, batch.wide);
            let (Some(same), Some(other)) = (f_part(SAME)?, f_part(OTHER)?) else { return Ok(None) };
            let sum = tape.value(same).f_add(tape.value(other))?.f_to_kind(batch.kind)?;
            let wide = batch.wide;
            let pull = move |of: Backward| (0..2).map(|_| Ok(Some(of.grad.f_to_kind(wide)?))).collect();
            Ok(Some(tape.add(sum, &[same, other], pull)))
        };
        let (loss, same) = (*self, batch.with([input, proxies]));
        f_taped(&[input, proxies], steps, move |inputs| loss.f_with_nodes(&same.with([&inputs[0], &inputs[1]])))
    }

    /// The same by a function for each step.
    fn f_with_nodes(&self, batch: &Classified) -> Result<Tensor, LossError> {
        let matrix = batch.f_matrix_of_vectors(self.distance)?;
        let (labels, counted) =
            (batch.f_numbered(matrix.size()[0])?.map(PairLabels::transposed), self.reduction.of_anchors().f_counted()?);
        let of = |of: usize| {
            let (loss, classes) = (*self, batch.classes.shallow_clone());
            let weights = batch.weights.as_ref().map(Tensor::shallow_clone);
            let composite = move |[matrix]: [&Tensor; 1]| loss.f_composite(matrix, &classes, weights.as_ref(), of);
            f_pairs(Soft(self.maximum(of)), [&matrix], labels.as_ref(), counted, matrix.f_kind()?, composite)
        };
        match self.reduction.of_anchors() {
            EmbeddingReduction::None => batch.f_narrow(&Tensor::f_cat(&[of(SAME)?, of(OTHER)?], 0)?),
            _ => batch.f_narrow(&of(SAME)?.f_add(&of(OTHER)?)?),
        }
    }

    fn maximum(&self, of: usize) -> Maximum {
        let sign = if of == SAME { self.distance.sign() } else { -self.distance.sign() };
        let margin = if of == SAME { self.margin } else { -self.margin };
        Maximum { of, margin, scale: sign * self.alpha }
    }

    /// The losses of the proxies by the embeddings of their class, or by the others, reduced.
    fn f_composite(
        &self,
        matrix: &Tensor,
        classes: &Tensor,
        weights: Option<&Tensor>,
        of: usize,
    ) -> Result<Tensor, LossError> {
        let numbers = f_positions(matrix.size()[0], (Kind::Int64, matrix.device()))?;
        let positive = numbers.f_unsqueeze(1)?.f_eq_tensor(&classes.f_unsqueeze(0)?)?;
        let losses = |mut terms: Tensor, mask: &Tensor| {
            if let Some(weights) = weights {
                terms = terms.f_add(&weights.f_sub_number(1)?)?;
            }
            f_softplus(&f_log_sum_exp(&terms, mask)?.f_squeeze_dim(1)?)
        };
        if of == SAME {
            let too_far = self.distance.f_beyond(matrix, self.margin)?.f_mul_number(self.alpha)?;
            return self
                .reduction
                .of_anchors()
                .f_apply(&losses(too_far, &positive)?, Some(&positive.f_any_dim(1, false)?));
        }
        let too_near = self.distance.f_beyond(matrix, -self.margin)?.f_mul_number(-self.alpha)?;
        self.reduction.of_anchors().f_apply(&losses(too_near, &positive.f_logical_not()?)?, None)
    }

    fn f_check(&self) -> Result<(), LossError> {
        check::finite("margin", self.margin)?;
        check::finite("alpha", self.alpha)?;
        self.distance.check()
    }
}

/// The soft maximum of the pairs of one kind.
#[derive(Clone, Copy)]
struct Maximum {
    /// The kind.
    of: usize,
    margin: f64,
    scale: f64,
}

impl PairTerms for Maximum {
    #[inline(always)]
    fn same<R: Real>(self, x: R) -> (R, R) {
        scaled(x, self.margin, self.scale)
    }

    #[inline(always)]
    fn other<R: Real>(self, x: R) -> (R, R) {
        self.same(x)
    }
}

impl SoftPairs for Maximum {
    fn loss<R: Real>(self, sums: &PairSums<R>) -> (R, PairSlopes<R>) {
        let (loss, slope) = softplus(sums.log_sum_exp[self.of]);
        let mut slopes = PairSlopes::of_log_sum_exp([R::of(0.0); 2]);
        slopes.log_sum_exp[self.of] = slope;
        (loss, slopes)
    }

    /// A proxy without embeddings of its class has no loss in the first term.
    fn exists<R: Real>(self, sums: &PairSums<R>) -> R::Mask {
        R::Mask::from(self.of == OTHER) | sums.counts[SAME].greater(R::of(0.0))
    }
}

owned! {
/// Proxy anchor: each class has a proxy, which pulls the embeddings of its class and pushes all others.
///
/// For metric learning with labels where losses of pairs converge slowly: there are as many proxies as classes, and no
/// need to mine pairs. For each proxy the hardest embeddings count most; in [`ProxyNcaLoss`](crate::ProxyNcaLoss) for
/// each embedding the nearest proxies. Where the classes at test time are those of the training choose
/// [`ArcFaceLoss`](crate::ArcFaceLoss).
///
/// # Formula
///
/// loss = [`ProxyAnchor`](x, P, y)
///
/// where x is the input, y the target and P the proxies.
///
#[doc = include_str!("../../docs/book/src/gallery/proxy_anchor.svg")]
///
/// # Shapes
///
/// * `input`: embeddings `[N, D]`
/// * `target`: classes `[N]`, of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses of the classes of the batch, and then those of all
///   classes
///
/// The variable on the path is `proxies`, `[C, D]`, the name of the state dict of pytorch-metric-learning. Its initial
/// values are normal with variance 2/C.
///
/// # Reference
///
/// `pytorch_metric_learning.losses.ProxyAnchorLoss` 2.9.0.
///
/// # Differences from pytorch-metric-learning
///
/// Those of [`ProxyAnchor`].
///
/// # Errors
///
/// Those of [`ProxyAnchor`], and [`LossError::Option`] for a number of classes or features that is not positive.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor, nn};
/// use tch_losses::{Loss, ProxyAnchor, ProxyAnchorLoss};
///
/// let vs = nn::VarStore::new(Device::Cpu);
/// let criterion = ProxyAnchorLoss::f_new(vs.root() / "head", 10, 16, ProxyAnchor::new().margin(0.2))?;
/// assert_eq!(vs.variables()["head.proxies"].size(), [10, 16]);
///
/// let embeddings = Tensor::randn([4, 16], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let loss = criterion.f_forward(&embeddings, &Tensor::from_slice(&[0_i64, 9, 3, 3]))?;
/// loss.f_backward()?;
/// assert!(criterion.proxies().grad().defined());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ProxyAnchorLoss of proxy_anchor: ProxyAnchor;

/// The proxies of the classes.
proxies: "proxies", |[classes, features]| ([classes, features], (2.0 / classes as f64).sqrt());
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::random::randn;

    #[test]
    fn wrong_calls_are_named() {
        let (x, proxies, classes) = (randn([2, 4]), randn([6, 4]), Tensor::from_slice(&[0_i64, 6]));
        for (loss, proxies, message) in [
            (ProxyAnchor::new(), &proxies, "target holds 6, expected classes in [0, 6)"),
            (ProxyAnchor::new(), &randn([6, 3]), "proxies has shape [6, 3], expected [C, 4], one row for each class"),
            (ProxyAnchor::new().alpha(f64::NAN), &proxies, "option alpha is NaN, expected a finite number"),
        ] {
            assert_eq!(loss.f_forward(&x, proxies, &classes).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn unreduced_losses_are_those_of_the_means() {
        let (x, proxies, classes) = (randn([5, 4]), randn([6, 4]), Tensor::from_slice(&[0_i64, 2, 2, 5, 0]));
        let losses = ProxyAnchor::new().reduction(EmbeddingReduction::None).forward(&x, &proxies, &classes);
        assert_eq!(losses.size(), [3 + 6]);
        let sum = losses.narrow(0, 0, 3).mean(None) + losses.narrow(0, 3, 6).mean(None);
        assert!(f64::try_from(sum - ProxyAnchor::new().forward(&x, &proxies, &classes)).unwrap().abs() < 1e-12);
    }

    #[test]
    fn an_empty_batch_has_its_proxies_alone() {
        let classes = Tensor::zeros([0], (Kind::Int64, Device::Cpu));
        let loss = ProxyAnchor::new().forward(&randn([0, 4]), &randn([6, 4]), &classes);
        assert_eq!(f64::try_from(loss).unwrap(), 0.0);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (x, proxies, classes) = (randn([4, 3]), randn([5, 3]), Tensor::from_slice(&[0_i64, 2, 2, 4]));
        for distance in [EmbeddingDistance::cosine(), EmbeddingDistance::lp().power(2.0)] {
            let loss = ProxyAnchor::new().alpha(4.0).distance(distance);
            crate::numeric::assert_gradient(&x, |x| loss.forward(x, &proxies, &classes));
            crate::numeric::assert_gradient(&proxies, |proxies| loss.forward(&x, proxies, &classes));
        }
    }
}
