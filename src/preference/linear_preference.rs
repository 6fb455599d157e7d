use tch::Tensor;

use super::sequence_log_probs::{NAMES, Scores, f_logits_means};
use super::{PairLogProbs, PreferenceLoss, ReferenceModel, SequenceLogProbs, TokenReduction};
use crate::kernels::NumberOperations;
use crate::numeric::f_ratio;
use crate::{LinearHead, LossError, check};

/// A preference loss of hidden states: the last layer of a language model, the log-probabilities of its answers and a
/// loss of them in one.
///
/// For alignment with a vocabulary so large that the logits of a batch do not fit into memory: the logits are computed
/// chunk by chunk, and only one chunk is in memory at a time. The loss is a [`DpoLoss`](crate::DpoLoss),
/// [`IpoLoss`](crate::IpoLoss), [`OrpoLoss`](crate::OrpoLoss), [`SimpoLoss`](crate::SimpoLoss),
/// [`CpoLoss`](crate::CpoLoss) or one of your own. For answers without pairs choose [`LinearKto`](crate::LinearKto).
///
/// # Formula
///
/// loss = ℓ(log π, log π₀) + α · NLL, NLL = −Σ log π(token) / n over the n tokens of the chosen answers that are not
/// ignored
///
/// where ℓ is the preference loss of the log-probabilities that [`SequenceLogProbs`] computes for policy and reference
/// model, and α is the weight of the negative log-likelihood.
///
#[doc = include_str!("../../docs/book/src/gallery/dpo.svg")]
///
/// # Shapes
///
/// * `policy`: an input `[2·P, T, D]`, the chosen answers of P pairs and then the rejected ones in the same order, a
///   weight `[V, D]` and a bias `[V]`
/// * `target`: `[2·P, T]`, of any integer kind
/// * `reference`: an input `[2·P, T, D′]`, a weight `[V′, D′]` and a bias `[V′]`; or log-probabilities `[2·P]`
/// * `nll_target`: `[P, T]`, of any integer kind
/// * result: scalar for `loss`, or `[P]` with [`Reduction::None`](crate::Reduction::None), where the α · NLL is added
///   to each
///
/// # Reference
///
/// `LigerFusedLinearDPOLoss`, `LigerFusedLinearORPOLoss`, `LigerFusedLinearSimPOLoss` and `LigerFusedLinearCPOLoss` of
/// `liger_kernel.chunked_loss`, liger-kernel 0.8.5.
///
/// # Differences from Liger
///
/// * Those of the loss and of [`SequenceLogProbs`].
/// * The input is checked to hold as many rejected answers as chosen ones; Liger broadcasts them.
/// * Where all tokens of the chosen answers are ignored the negative log-likelihood is 0; Liger's is NaN.
/// * Rows are chunked by tokens and not by pairs; the gradient computes the logits once more.
///
/// # Errors
///
/// Those of the loss and of [`SequenceLogProbs`]; [`LossError::Option`] for an α that is not finite.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{DpoLoss, LinearHead, LinearPreference, ReferenceModel};
///
/// // Two pairs of three tokens: the chosen answers first. Of the last answer one token is padding.
/// let hidden = Tensor::randn([4, 3, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let weight = Tensor::randn([16, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let target = Tensor::from_slice(&[3_i64, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, -100]).view([4, 3]);
///
/// // The reference model is a copy of the policy, as at the beginning of the training.
/// let (reference_hidden, reference_weight) = (hidden.detach(), weight.detach());
/// let reference = ReferenceModel::Head(LinearHead::new(&reference_hidden, &reference_weight));
///
/// let criterion = LinearPreference::new(DpoLoss::new().beta(0.1));
/// let output = criterion.f_forward(LinearHead::new(&hidden, &weight), &target, Some(reference))?;
/// output.loss.f_backward()?;
///
/// assert!((f64::try_from(&output.loss)? - 2_f64.ln()).abs() < 1e-6);
/// assert_eq!(output.chosen_rewards.size(), [2]);
/// assert_eq!(weight.grad().size(), [16, 8]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[doc(alias = "LigerFusedLinearPreferenceBase")]
#[doc(alias = "LigerFusedLinearDPOLoss")]
#[doc(alias = "LigerFusedLinearORPOLoss")]
#[doc(alias = "LigerFusedLinearSimPOLoss")]
#[doc(alias = "LigerFusedLinearCPOLoss")]
#[must_use]
pub struct LinearPreference<L> {
    preference: L,
    log_probs: SequenceLogProbs,
    alpha: Option<f64>,
}

/// What [`LinearPreference`] computes. All but the loss is without a graph, of single precision at least.
#[derive(Debug)]
#[non_exhaustive]
pub struct LinearPreferenceOutput {
    /// The loss.
    pub loss: Tensor,
    /// The log-probabilities of the chosen answers, `[P]`.
    pub chosen_log_probs: Tensor,
    /// The log-probabilities of the rejected answers, `[P]`.
    pub rejected_log_probs: Tensor,
    /// The mean of the logits of all tokens of the chosen answers, before a soft cap.
    pub chosen_logits_mean: Tensor,
    /// The mean of the logits of all tokens of the rejected answers, before a soft cap.
    pub rejected_logits_mean: Tensor,
    /// The negative log-likelihood of the chosen answers, without its weight.
    pub nll: Tensor,
    /// β (log π − log π₀) of the chosen answers, `[P]`.
    pub chosen_rewards: Tensor,
    /// β (log π − log π₀) of the rejected answers, `[P]`.
    pub rejected_rewards: Tensor,
}

impl<L: PreferenceLoss> LinearPreference<L> {
    /// The loss of hidden states, with the defaults of `preference`.
    pub fn new(preference: L) -> Self {
        Self { preference, log_probs: SequenceLogProbs::new(), alpha: None }
    }

    /// Sets how the log-probabilities of the answers are computed. [`SequenceLogProbs::new`] by default.
    pub fn log_probs(mut self, log_probs: SequenceLogProbs) -> Self {
        self.log_probs = log_probs;
        self
    }

    /// Sets the weight α of the negative log-likelihood of the chosen answers. By default it is that of the
    /// [loss](PreferenceLoss::nll_weight).
    #[doc(alias = "compute_nll_loss")]
    pub fn alpha(mut self, alpha: f64) -> Self {
        self.alpha = Some(alpha);
        self
    }

    /// Computes the loss, with a graph where an argument of the policy requires a gradient, and its metrics.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(
        &self,
        policy: LinearHead,
        target: &Tensor,
        reference: Option<ReferenceModel>,
    ) -> Result<LinearPreferenceOutput, LossError> {
        self.f_compute(policy, target, None, reference)
    }

    crate::loss::or_panic! {
        forward as f_forward(
            policy: LinearHead, target: &Tensor, reference: Option<ReferenceModel>
        ) -> LinearPreferenceOutput
    }

    /// Computes the same loss with other tokens for the negative log-likelihood: those of the prompt as well, for
    /// example. The logits of the chosen answers are computed a second time.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward_with_nll_target(
        &self,
        policy: LinearHead,
        target: &Tensor,
        nll_target: &Tensor,
        reference: Option<ReferenceModel>,
    ) -> Result<LinearPreferenceOutput, LossError> {
        self.f_compute(policy, target, Some(nll_target), reference)
    }

    fn f_compute(
        &self,
        policy: LinearHead,
        target: &Tensor,
        nll_target: Option<&Tensor>,
        reference: Option<ReferenceModel>,
    ) -> Result<LinearPreferenceOutput, LossError> {
        let default = self.preference.token_reduction();
        let alpha = self.alpha.unwrap_or_else(|| self.preference.nll_weight());
        check::finite("alpha", alpha)?;
        policy.f_vocabulary(NAMES, &["B", "T"])?;
        let policy = policy.f_widen()?;
        let policy = policy.view();
        let scores = self.log_probs.f_scores(policy, NAMES, target, default)?;
        let pairs = f_pairs(policy.input)?;
        let reference = reference.map(|model| self.log_probs.f_reference(model, target, default)).transpose()?;
        let policy_halves = f_halves(&scores.sequences, pairs)?;
        let reference = reference.map(|reference| f_halves(&reference, pairs)).transpose()?;
        let preference = self.preference.f_forward(of(&policy_halves), reference.as_ref().map(of))?;

        let chosen = Scores {
            tokens: scores.tokens.f_narrow(0, 0, pairs)?,
            counted: scores.counted.f_narrow(0, 0, pairs)?,
            sequences: policy_halves[0].shallow_clone(),
        };
        let nll = match nll_target {
            Some(nll_target) => f_nll(&self.f_nll_scores(policy, nll_target, pairs)?)?,
            None => f_nll(&chosen)?,
        };
        let loss = if alpha == 0.0 { preference } else { preference.f_add(&nll.f_mul_number(alpha)?)? };
        let logits = f_halves(&f_logits_means(policy)?, pairs)?;
        let reward = |half: usize| {
            let policy = policy_halves[half].f_detach()?;
            let ratio = match &reference {
                Some(reference) => policy.f_sub(&reference[half])?,
                None => policy,
            };
            ratio.f_mul_number(self.preference.reward_scale())
        };
        Ok(LinearPreferenceOutput {
            loss,
            chosen_log_probs: policy_halves[0].f_detach()?,
            rejected_log_probs: policy_halves[1].f_detach()?,
            chosen_logits_mean: logits[0].f_mean(None)?,
            rejected_logits_mean: logits[1].f_mean(None)?,
            nll: nll.f_detach()?,
            chosen_rewards: reward(0)?,
            rejected_rewards: reward(1)?,
        })
    }

    fn f_nll_scores(&self, policy: LinearHead, nll_target: &Tensor, pairs: i64) -> Result<Scores, LossError> {
        let chosen = policy.input.f_narrow(0, 0, pairs)?;
        let mut shape = chosen.size();
        shape.pop();
        check::dense(("nll_target", nll_target))?;
        if nll_target.size() != shape {
            let expected = format!("{shape:?}, one token per row of the chosen answers");
            return Err(check::shape_error(("nll_target", nll_target), expected));
        }
        let chosen = LinearHead { input: &chosen, ..policy };
        self.log_probs.f_scores(chosen, NAMES, nll_target, TokenReduction::Sum)
    }
}

/// The number of pairs in the input.
fn f_pairs(input: &Tensor) -> Result<i64, LossError> {
    match input.size()[0] {
        answers if answers % 2 == 0 => Ok(answers / 2),
        _ => Err(check::shape_error(
            ("input", input),
            "an even number of answers, the chosen and then the rejected ones",
        )),
    }
}

/// The rows of the chosen and those of the rejected answers.
fn f_halves(tensor: &Tensor, pairs: i64) -> Result<[Tensor; 2], LossError> {
    Ok([tensor.f_narrow(0, 0, pairs)?, tensor.f_narrow(0, pairs, pairs)?])
}

fn of([chosen, rejected]: &[Tensor; 2]) -> PairLogProbs<'_> {
    PairLogProbs { chosen, rejected }
}

/// −Σ log π(token) / n
fn f_nll(chosen: &Scores) -> Result<Tensor, LossError> {
    let count = chosen.counted.f_sum(chosen.tokens.f_kind()?)?;
    f_ratio(&chosen.tokens.f_sum(None)?.f_neg()?, &count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;
    use crate::random::randn;
    use crate::{Chunking, CpoLoss, DpoLoss, IpoLoss, OrpoLoss, Reduction, SimpoLoss};

    fn target() -> Tensor {
        Tensor::from_slice(&[0_i64, 1, 2, 3, 4, -100, -100, 2, 1, 0, -100, -100]).view([4, 3])
    }

    fn losses() -> Vec<Box<dyn PreferenceLoss>> {
        vec![
            Box::new(DpoLoss::new()),
            Box::new(IpoLoss::new()),
            Box::new(OrpoLoss::new()),
            Box::new(SimpoLoss::new().beta(2.0)),
            Box::new(CpoLoss::new()),
        ]
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let (hidden, weight, bias) = (randn([4, 3, 2]), randn([5, 2]), randn([5]));
        for loss in losses() {
            let chunks = SequenceLogProbs::new().chunking(Chunking::Rows(5)).soft_cap(3.0);
            let loss = LinearPreference::new(loss).log_probs(chunks).alpha(0.7);
            let of = |head: LinearHead| loss.forward(head, &target(), None).loss;
            assert_gradient(&hidden, |hidden| of(LinearHead::new(hidden, &weight).bias(&bias)));
            assert_gradient(&weight, |weight| of(LinearHead::new(&hidden, weight).bias(&bias)));
            assert_gradient(&bias, |bias| of(LinearHead::new(&hidden, &weight).bias(bias)));
        }
    }

    #[test]
    fn sequences_without_tokens_are_finite() {
        let (hidden, weight) = (randn([4, 3, 2]).set_requires_grad(true), randn([5, 2]));
        let ignored = target().full_like(-100);
        for (target, loss) in losses().into_iter().flat_map(|loss| [(ignored.shallow_clone(), loss)]) {
            let output = LinearPreference::new(loss).forward(LinearHead::new(&hidden, &weight), &target, None);
            let gradient = Tensor::run_backward(&[&output.loss], &[&hidden], false, false).remove(0);
            assert!(f64::try_from(output.loss).unwrap().is_finite());
            assert_eq!(f64::try_from(output.nll).unwrap(), 0.0);
            assert_eq!(gradient, gradient.zeros_like());
        }
    }

    #[test]
    fn a_reference_is_a_model_or_its_log_probs() {
        let (hidden, weight) = (randn([4, 3, 2]), randn([5, 2]));
        let (other, wider) = (randn([4, 3, 7]), randn([9, 7]).set_requires_grad(true));
        let loss = LinearPreference::new(DpoLoss::new());
        let (policy, model) = (LinearHead::new(&hidden, &weight), LinearHead::new(&other, &wider));
        let log_probs = SequenceLogProbs::new().forward(model, &target());
        let first = loss.forward(policy, &target(), Some(ReferenceModel::Head(model)));
        let second = loss.forward(policy, &target(), Some(ReferenceModel::LogProbs(&log_probs)));
        assert_eq!(first.loss, second.loss);
        assert_eq!(first.rejected_rewards, second.rejected_rewards);
        assert!(!first.loss.requires_grad() && !second.loss.requires_grad());
    }

    #[test]
    fn the_nll_may_have_tokens_of_its_own() {
        let (hidden, weight) = (randn([4, 3, 2]), randn([5, 2]));
        let (policy, loss) = (LinearHead::new(&hidden, &weight), LinearPreference::new(OrpoLoss::new()));
        let same = target().narrow(0, 0, 2);
        let plain = loss.forward(policy, &target(), None);
        let given = loss.f_forward_with_nll_target(policy, &target(), &same, None).unwrap();
        assert!(plain.loss.allclose(&given.loss, 1e-12, 1e-12, false));
        let none = loss.f_forward_with_nll_target(policy, &target(), &same.full_like(-100), None).unwrap();
        assert!((plain.loss - plain.nll).allclose(&none.loss, 1e-12, 1e-12, false));
    }

    #[test]
    fn an_unreduced_loss_has_one_number_per_pair() {
        let (hidden, weight) = (randn([4, 3, 2]), randn([5, 2]));
        let of = |reduction| {
            let loss = LinearPreference::new(CpoLoss::new().reduction(reduction));
            loss.forward(LinearHead::new(&hidden, &weight), &target(), None).loss
        };
        let each = of(Reduction::None);
        assert_eq!(each.size(), [2]);
        assert!(each.mean(None).allclose(&of(Reduction::Mean), 1e-12, 1e-12, false));
    }

    #[test]
    fn wrong_calls_are_named() {
        let (odd, hidden, weight) = (randn([3, 3, 2]), randn([4, 3, 2]), randn([5, 2]));
        let (three, log_probs) = (target().narrow(0, 0, 3), randn([2]));
        let loss = LinearPreference::new(DpoLoss::new());
        let policy = LinearHead::new(&hidden, &weight);
        let narrow = randn([5, 3]);
        let model = ReferenceModel::Head(LinearHead::new(&hidden, &narrow));
        for (result, message) in [
            (
                loss.f_forward(LinearHead::new(&odd, &weight), &three, None),
                "input has shape [3, 3, 2], expected an even number of answers, the chosen and then the rejected ones",
            ),
            (
                loss.f_forward(policy, &target(), Some(ReferenceModel::LogProbs(&log_probs))),
                "reference has shape [2], expected [4], one log-probability per sequence",
            ),
            (
                loss.f_forward(policy, &target(), Some(model)),
                "reference input has shape [4, 3, 2], expected [B, T, 3], for the 3 features of reference weight",
            ),
            (
                loss.f_forward_with_nll_target(policy, &target(), &three, None),
                "nll_target has shape [3, 3], expected [2, 3], one token per row of the chosen answers",
            ),
            (loss.alpha(f64::NAN).f_forward(policy, &target(), None), "option alpha is NaN, expected a finite number"),
        ] {
            assert_eq!(result.unwrap_err().to_string(), message);
        }
    }
}
