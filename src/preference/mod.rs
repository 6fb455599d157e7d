//! Losses that align a language model with preferences between answers.

mod cpo;
mod dpo;
mod ipo;
mod kto;
mod linear_kto;
mod linear_preference;
mod orpo;
mod sequence_log_probs;
mod simpo;

use tch::{Kind, Tensor};

pub use cpo::CpoLoss;
pub use dpo::{DpoLoss, DpoVariant};
pub use ipo::IpoLoss;
pub use kto::KtoLoss;
pub use linear_kto::{LinearKto, LinearKtoOutput};
pub use linear_preference::{LinearPreference, LinearPreferenceOutput};
pub use orpo::OrpoLoss;
pub use sequence_log_probs::{ReferenceModel, SequenceLogProbs, TokenReduction};
pub use simpo::SimpoLoss;

use crate::kernels::NumberOperations;
use crate::numeric::wide_kind;
use crate::{LossError, Reduction, check};

/// The log-probabilities that a model gives to pairs of answers: log π(y|x) of the answers that were chosen, and of
/// those that were rejected.
///
/// [`SequenceLogProbs`] computes them.
#[derive(Debug, Clone, Copy)]
pub struct PairLogProbs<'a> {
    /// Those of the chosen answers, one per pair.
    pub chosen: &'a Tensor,
    /// Those of the rejected answers, of the same shape.
    pub rejected: &'a Tensor,
}

impl<'a> PairLogProbs<'a> {
    /// The log-probabilities of chosen and of rejected answers.
    pub fn new(chosen: &'a Tensor, rejected: &'a Tensor) -> Self {
        Self { chosen, rejected }
    }
}

/// A loss of the log-probabilities of pairs of answers.
///
/// [`LinearPreference`] takes any of them to the hidden states of a model.
///
/// # Example: choose a loss at run time
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{DpoLoss, PairLogProbs, PreferenceLoss, SimpoLoss};
///
/// fn by_name(name: &str) -> Option<Box<dyn PreferenceLoss>> {
///     match name {
///         "dpo" => Some(Box::new(DpoLoss::new())),
///         "simpo" => Some(Box::new(SimpoLoss::new().beta(2.0).gamma(0.0))),
///         _ => None,
///     }
/// }
///
/// let criterion = by_name("simpo").ok_or("no such loss")?;
/// let (chosen, rejected) = (Tensor::from_slice(&[-1.0]), Tensor::from_slice(&[-1.0]));
/// let loss = criterion.f_forward(PairLogProbs::new(&chosen, &rejected), None)?;
/// assert!((f64::try_from(loss)? - 2_f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait PreferenceLoss: Send {
    /// Computes the loss of what the policy gives to the pairs, the model that is trained, compared with what the
    /// reference model gives to them where the loss has one.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    fn f_forward(&self, policy: PairLogProbs, reference: Option<PairLogProbs>) -> Result<Tensor, LossError>;

    /// Computes the loss as [`f_forward`](PreferenceLoss::f_forward) does.
    ///
    /// # Panics
    /// Where `f_forward` returns an error, with its message.
    #[track_caller]
    fn forward(&self, policy: PairLogProbs, reference: Option<PairLogProbs>) -> Tensor {
        crate::loss::expect(self.f_forward(policy, reference))
    }

    /// The factor β that makes rewards of log-probabilities or of their differences to those of the reference model.
    fn reward_scale(&self) -> f64;

    /// Whether the log-probability of an answer is the sum or the mean over its tokens, where
    /// [`LinearPreference`] is not told. The sum by default.
    fn token_reduction(&self) -> TokenReduction {
        TokenReduction::Sum
    }

    /// The weight of the negative log-likelihood of the chosen answers, where [`LinearPreference`] is not told. 0 by
    /// default.
    fn nll_weight(&self) -> f64 {
        0.0
    }
}

impl<L: PreferenceLoss + ?Sized> PreferenceLoss for Box<L> {
    fn f_forward(&self, policy: PairLogProbs, reference: Option<PairLogProbs>) -> Result<Tensor, LossError> {
        (**self).f_forward(policy, reference)
    }

    fn reward_scale(&self) -> f64 {
        (**self).reward_scale()
    }

    fn token_reduction(&self) -> TokenReduction {
        (**self).token_reduction()
    }

    fn nll_weight(&self) -> f64 {
        (**self).nll_weight()
    }
}

/// log π(y|x) − log π₀(y|x) of pairs of answers, in single precision at least; without a reference π₀ it is log π(y|x).
struct LogRatios {
    chosen: Tensor,
    rejected: Tensor,
    /// The kind of the result.
    own: Kind,
}

impl LogRatios {
    fn f_new(policy: PairLogProbs, reference: Option<PairLogProbs>) -> Result<LogRatios, LossError> {
        let chosen = ("policy chosen", policy.chosen);
        let mut arguments = vec![chosen, ("policy rejected", policy.rejected)];
        if let Some(reference) = reference {
            arguments.extend([("reference chosen", reference.chosen), ("reference rejected", reference.rejected)]);
        }
        check::devices(&arguments)?;
        per_answer(chosen)?;
        for argument in arguments {
            check::floating(argument)?;
            check::same_shape(argument, chosen)?;
        }
        let kind = wide_kind(policy.chosen)?;
        let ratio = |policy: &Tensor, reference: Option<&Tensor>| {
            let policy = policy.f_to_kind(kind)?;
            match reference {
                Some(reference) => policy.f_sub(&reference.f_to_kind(kind)?),
                None => Ok(policy),
            }
        };
        Ok(LogRatios {
            chosen: ratio(policy.chosen, reference.map(|reference| reference.chosen))?,
            rejected: ratio(policy.rejected, reference.map(|reference| reference.rejected))?,
            own: policy.chosen.f_kind()?,
        })
    }

    /// Those of a loss that knows no reference model.
    fn f_of_policy(policy: PairLogProbs, reference: Option<PairLogProbs>) -> Result<LogRatios, LossError> {
        check::option("reference", "given", reference.is_none(), "none, for a loss without a reference model")?;
        Self::f_new(policy, None)
    }

    /// By how much the policy prefers the chosen answer.
    fn f_margin(&self) -> Result<Tensor, LossError> {
        Ok(self.chosen.f_sub(&self.rejected)?)
    }

    /// The loss of the losses of the pairs.
    fn f_reduce(&self, losses: &Tensor, reduction: Reduction) -> Result<Tensor, LossError> {
        Ok(reduction.f_apply(losses)?.f_to_kind(self.own)?)
    }
}

/// There is one log-probability per answer, not one per token.
fn per_answer(log_probs: check::Named) -> Result<(), LossError> {
    match log_probs.1.dim() {
        0 | 1 => Ok(()),
        _ => Err(check::shape_error(log_probs, "[N], one log-probability per answer: the sum over its tokens")),
    }
}

fn check_beta(beta: f64) -> Result<(), LossError> {
    check::option("beta", beta, beta.is_finite() && beta > 0.0, "a number > 0")
}

/// −(1 − ε) log σ(z) − ε log σ(−z) for margins z, of whose signs the share ε is wrong.
fn f_smoothed(margin: &Tensor, label_smoothing: f64) -> Result<Tensor, LossError> {
    let right = margin.f_log_sigmoid()?;
    if label_smoothing == 0.0 {
        return Ok(right.f_neg()?);
    }
    let wrong = margin.f_neg()?.f_log_sigmoid()?;
    Ok(right.f_mul_number(label_smoothing - 1.0)?.f_sub(&wrong.f_mul_number(label_smoothing)?)?)
}

fn check_smoothing(label_smoothing: f64) -> Result<(), LossError> {
    let valid = (0.0..=1.0).contains(&label_smoothing);
    check::option("label_smoothing", label_smoothing, valid, "a number in [0, 1]")
}
