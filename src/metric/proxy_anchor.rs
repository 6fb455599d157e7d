use std::borrow::Borrow;

use tch::{Kind, Tensor, nn};

use super::batch::{f_log_sum_exp, f_softplus, softplus};
use super::class_vectors::{Classified, check_proxies, f_variable};
use super::pairs::CountedAs;
use super::{EmbeddingDistance, EmbeddingPairs, EmbeddingReduction};
use crate::autograd::{Backward, Place, Tape, f_taped};
use crate::kernels::{
    NumberOperations, OTHER, PairLabels, PairSlopes, PairSums, PairTerms, Real, SAME, Soft, SoftPairs, f_pairs,
    f_pairs_on, scaled,
};
use crate::numeric::f_positions;
use crate::{Loss, LossError, check};

crate::options::options! {
/// Proxy anchor with proxies that are passed in: [`ProxyAnchorLoss`] without parameters of its own, and its options.
///
/// For proxies that are shared, kept elsewhere or partly frozen. Where the loss may own them choose [`ProxyAnchorLoss`].
///
/// # Formula
///
/// L = R(log(1 + Σₙ∈c exp(−α (s(xₙ, p_c) − δ))) over the classes c of the batch)
///   \+ R(log(1 + Σₙ∉c exp(α (s(xₙ, p_c) + δ))) over all classes c)
///
/// where x are the embeddings, p_c is the proxy of the class c, s the similarity, α the scale, δ the margin and R the
/// reduction, a mean in the paper. With a distance d the losses are those of exp(α (d − δ)) and exp(−α (d + δ)).
///
/// # Shapes
///
/// * `input`: embeddings `[N, D]`
/// * `proxies`: `[C, D]`
/// * `target`: classes `[N]`, of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses of the classes of the batch, and then those of all classes
///
/// # Reference
///
/// `pytorch_metric_learning.losses.ProxyAnchorLoss` 2.9.0; Kim et al., Proxy Anchor Loss,
/// <https://arxiv.org/abs/2003.13911>.
///
/// # Differences from pytorch-metric-learning
///
/// * Those of [`EmbeddingDistance`].
/// * Classes that the batch has none of have no first loss. There they have one of 0, which the default `DivisorReducer` does
///   not count, but `MeanReducer` and `ThresholdReducer(high)` do.
/// * Classes may be of any integer kind.
///
/// With [`EmbeddingPairs`], the weight of an embedding less 1 is added to its terms, before their soft maximum.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a margin or α that is not finite or a distance out
/// of range.
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
    /// Computes the loss, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(&self, input: &Tensor, proxies: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.f_loss(input, proxies, target, None)
    }

    /// Computes the loss where the embeddings count as often as the `pairs` of a miner name them: see [`EmbeddingPairs`].
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward_pairs(
        &self,
        input: &Tensor,
        proxies: &Tensor,
        target: &Tensor,
        pairs: &EmbeddingPairs,
    ) -> Result<Tensor, LossError> {
        self.f_loss(input, proxies, target, Some(pairs))
    }

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

    crate::loss::or_panic!(forward as f_forward(input: &Tensor, proxies: &Tensor, target: &Tensor) -> Tensor);

    crate::loss::or_panic! {
        forward_pairs as f_forward_pairs(
            input: &Tensor, proxies: &Tensor, target: &Tensor, pairs: &EmbeddingPairs
        ) -> Tensor
    }

    fn f_check(&self) -> Result<(), LossError> {
        check::option("margin", self.margin, self.margin.is_finite(), "a finite number")?;
        check::option("alpha", self.alpha, self.alpha.is_finite(), "a finite number")?;
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
    fn loss(self, sums: &PairSums) -> (f64, PairSlopes) {
        let (loss, slope) = softplus(sums.log_sum_exp()[self.of]);
        let mut slopes = PairSlopes::default();
        slopes.log_sum_exp[self.of] = slope;
        (loss, slopes)
    }

    /// A proxy without embeddings of its class has no loss by them.
    fn exists(self, sums: &PairSums) -> bool {
        self.of == OTHER || sums.counts[SAME] > 0.0
    }
}

/// Proxy anchor: each class has a proxy, which pulls the embeddings of its class and pushes all others.
///
/// For metric learning with labels where losses of pairs converge slowly: there are as many proxies as classes, and no need to
/// mine pairs. The hardest embeddings of a proxy count most; in [`ProxyNcaLoss`](crate::ProxyNcaLoss) it is the nearest proxies
/// of an embedding. Where the classes at test time are those of the training choose [`ArcFaceLoss`](crate::ArcFaceLoss).
///
/// # Formula
///
/// loss = [`ProxyAnchor`](x, P, y)
///
/// where x is the input, y the target and P the proxies.
///
/// # Shapes
///
/// * `input`: embeddings `[N, D]`
/// * `target`: classes `[N]`, of any integer kind
/// * result: scalar; with [`EmbeddingReduction::None`] the losses of the classes of the batch, and then those of all classes
///
/// The variable on the path is `proxies`, `[C, D]`, the name of the state dict of pytorch-metric-learning. Its initial values
/// are normal with variance 2/C.
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
#[derive(Debug)]
#[must_use]
pub struct ProxyAnchorLoss {
    proxies: Tensor,
    proxy_anchor: ProxyAnchor,
}

crate::option_tensors::shared_parameters!(ProxyAnchorLoss { proxies });

impl ProxyAnchorLoss {
    /// Creates the variable on `path`.
    ///
    /// # Errors
    /// A [`LossError`] that names the option at fault.
    pub fn f_new<'a>(
        path: impl Borrow<nn::Path<'a>>,
        num_classes: i64,
        embedding_size: i64,
        proxy_anchor: ProxyAnchor,
    ) -> Result<Self, LossError> {
        proxy_anchor.f_check()?;
        let options = [("num_classes", num_classes), ("embedding_size", embedding_size)];
        let stdev = (2.0 / num_classes as f64).sqrt();
        let proxies = f_variable(path.borrow(), "proxies", options, |shape| shape, stdev)?;
        Ok(Self { proxies, proxy_anchor })
    }

    /// Creates the variable on `path` as [`f_new`](Self::f_new) does.
    ///
    /// # Panics
    /// Where `f_new` returns an error, with its message.
    #[track_caller]
    pub fn new<'a>(
        path: impl Borrow<nn::Path<'a>>,
        num_classes: i64,
        embedding_size: i64,
        proxy_anchor: ProxyAnchor,
    ) -> Self {
        crate::loss::expect(Self::f_new(path, num_classes, embedding_size, proxy_anchor))
    }

    /// Computes the loss where the embeddings count as often as the `pairs` of a miner name them: see [`EmbeddingPairs`].
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward_pairs(
        &self,
        input: &Tensor,
        target: &Tensor,
        pairs: &EmbeddingPairs,
    ) -> Result<Tensor, LossError> {
        self.proxy_anchor.f_forward_pairs(input, &self.proxies, target, pairs)
    }

    crate::loss::or_panic! {
        forward_pairs as f_forward_pairs(input: &Tensor, target: &Tensor, pairs: &EmbeddingPairs) -> Tensor
    }

    /// The proxies of the classes.
    pub fn proxies(&self) -> &Tensor {
        &self.proxies
    }
}

impl Loss for ProxyAnchorLoss {
    crate::option_tensors::with_tensors!(shared);

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.proxy_anchor.f_forward(input, &self.proxies, target)
    }
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
