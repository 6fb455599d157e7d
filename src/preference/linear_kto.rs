use tch::Tensor;

use super::sequence_log_probs::{NAMES, f_logits_means};
use super::{KtoLoss, ReferenceModel, SequenceLogProbs, TokenReduction};
use crate::kernels::NumberOperations;
use crate::{LinearHead, LossError, check};

/// Kahneman-Tversky optimisation of hidden states: the last layer of a language model, the log-probabilities of its
/// answers and [`KtoLoss`] in one.
///
/// For answers that are good or bad by themselves, with a vocabulary so large that the logits of a batch do not fit
/// into memory: the logits are computed chunk by chunk, and only one chunk is in memory at a time. For pairs of answers
/// choose [`LinearPreference`](crate::LinearPreference).
///
/// # Formula
///
/// loss = [`KtoLoss`](log π, log π₀, labels, z)
///
/// where log π and log π₀ are what [`SequenceLogProbs`] computes for policy and reference model, and z is the
/// divergence.
///
#[doc = include_str!("../../docs/book/src/gallery/kto.svg")]
///
/// # Shapes
///
/// * `policy`: an input `[B, T, D]` of B answers of T tokens, a weight `[V, D]` and a bias `[V]`
/// * `target`: `[B, T]`, of any integer kind
/// * `labels`: `[B]`, Booleans, true for desirable answers
/// * `reference`: an input `[B, T, D′]`, a weight `[V′, D′]` and a bias `[V′]`; or log-probabilities `[B]`
/// * `kl`: scalar, or `[B]`
/// * result: scalar for `loss`, or `[B]` with [`Reduction::None`](crate::Reduction::None)
///
/// # Reference
///
/// `liger_kernel.chunked_loss.LigerFusedLinearKTOLoss` of liger-kernel 0.8.5.
///
/// # Differences from Liger
///
/// * Those of [`SequenceLogProbs`].
/// * The metrics are per answer; Liger's are their sums over the desirable and over the undesirable ones.
/// * With one divergence per answer each answer has its own; Liger gives all of them to each chunk.
///
/// # Errors
///
/// Those of [`KtoLoss`] and [`SequenceLogProbs`].
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{KtoLoss, LinearHead, LinearKto, ReferenceModel, SequenceLogProbs};
///
/// let hidden = Tensor::randn([2, 3, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let weight = Tensor::randn([16, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let target = Tensor::from_slice(&[3_i64, 1, 4, 1, 5, -100]).view([2, 3]);
/// let labels = Tensor::from_slice(&[true, false]);
///
/// // The log-probabilities of a reference model can be computed before training. Here the policy itself is the
/// // reference.
/// let policy = LinearHead::new(&hidden, &weight);
/// let log_probs = tch::no_grad(|| SequenceLogProbs::new().f_forward(policy, &target))?;
///
/// let criterion = LinearKto::new(KtoLoss::new());
/// let output = criterion.f_forward(policy, &target, &labels, Some(ReferenceModel::LogProbs(&log_probs)), None)?;
/// output.loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&output.loss)?, 0.5);
/// assert_eq!(Vec::<f64>::try_from(output.rewards)?, [0.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[doc(alias = "LigerFusedLinearKTOLoss")]
#[must_use]
pub struct LinearKto {
    kto: KtoLoss,
    log_probs: SequenceLogProbs,
}

/// What [`LinearKto`] computes. All but the loss is without a graph, of single precision at least.
#[derive(Debug)]
#[non_exhaustive]
pub struct LinearKtoOutput {
    /// The loss.
    pub loss: Tensor,
    /// The log-probabilities of the answers, `[B]`.
    pub log_probs: Tensor,
    /// The means of the logits of all tokens of an answer, before a soft cap, `[B]`.
    pub logits_means: Tensor,
    /// β (log π − log π₀) of the answers, `[B]`.
    pub rewards: Tensor,
}

impl LinearKto {
    /// The loss of hidden states.
    pub fn new(kto: KtoLoss) -> Self {
        Self { kto, log_probs: SequenceLogProbs::new() }
    }

    /// Sets how the log-probabilities of the answers are computed. [`SequenceLogProbs::new`] by default.
    pub fn log_probs(mut self, log_probs: SequenceLogProbs) -> Self {
        self.log_probs = log_probs;
        self
    }

    /// Computes the loss, with a graph where an argument of the policy requires a gradient, and its metrics. `kl` is z;
    /// without it z is 0.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(
        &self,
        policy: LinearHead,
        target: &Tensor,
        labels: &Tensor,
        reference: Option<ReferenceModel>,
        kl: Option<&Tensor>,
    ) -> Result<LinearKtoOutput, LossError> {
        let default = TokenReduction::Sum;
        let scores = self.log_probs.f_scores(policy, NAMES, target, default)?;
        check::devices(&[("input", policy.input), ("labels", labels)])?;
        let reference = reference.map(|model| self.log_probs.f_reference(model, target, default)).transpose()?;
        let loss = self.kto.f_forward(&scores.sequences, reference.as_ref(), labels, kl)?;
        let log_probs = scores.sequences.f_detach()?;
        let ratios = match &reference {
            Some(reference) => log_probs.f_sub(reference)?,
            None => log_probs.shallow_clone(),
        };
        let rewards = ratios.f_mul_number(self.kto.reward_scale())?;
        Ok(LinearKtoOutput { loss, log_probs, logits_means: f_logits_means(policy)?, rewards })
    }

    crate::loss::or_panic! {
        forward as f_forward(
            policy: LinearHead, target: &Tensor, labels: &Tensor, reference: Option<ReferenceModel>, kl:
            Option<&Tensor>
        ) -> LinearKtoOutput
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::Chunking;
    use crate::numeric::assert_gradient;
    use crate::random::randn;

    #[test]
    fn gradients_are_those_of_differences() {
        let (hidden, weight, bias) = (randn([3, 2, 2]), randn([4, 2]), randn([4]));
        let target = Tensor::from_slice(&[0_i64, 1, 3, -100, -100, -100]).view([3, 2]);
        let (labels, reference) = (Tensor::from_slice(&[true, false, true]), randn([3]));
        let log_probs = SequenceLogProbs::new().chunking(Chunking::Rows(4)).token_reduction(TokenReduction::Mean);
        let loss = LinearKto::new(KtoLoss::new()).log_probs(log_probs);
        let reference = Some(ReferenceModel::LogProbs(&reference));
        let of = |head: LinearHead| loss.forward(head, &target, &labels, reference, Some(&Tensor::from(0.2))).loss;
        assert_gradient(&hidden, |hidden| of(LinearHead::new(hidden, &weight).bias(&bias)));
        assert_gradient(&weight, |weight| of(LinearHead::new(&hidden, weight).bias(&bias)));
        assert_gradient(&bias, |bias| of(LinearHead::new(&hidden, &weight).bias(bias)));
    }

    #[test]
    fn wrong_labels_are_named() {
        let (hidden, weight) =
            (Tensor::zeros([2, 3, 4], (Kind::Float, Device::Cpu)), Tensor::zeros([5, 4], (Kind::Float, Device::Cpu)));
        let target = Tensor::zeros([2, 3], (Kind::Int64, Device::Cpu));
        let labels = Tensor::from_slice(&[true, false, true]);
        let error = LinearKto::new(KtoLoss::new())
            .f_forward(LinearHead::new(&hidden, &weight), &target, &labels, None, None)
            .unwrap_err();
        assert_eq!(error.to_string(), "labels has shape [3], expected [2], the shape of policy");
    }
}
