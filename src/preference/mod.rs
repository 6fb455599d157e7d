//! Losses that align a language model with preferences between answers.
//!
//! [`DpoLoss`] where there is a reference model, [`SimpoLoss`] or [`OrpoLoss`] where there is none, [`KtoLoss`] where
//! answers are marked good or bad one by one. They take log-probabilities of answers, which [`SequenceLogProbs`]
//! computes; [`LinearPreference`] and [`LinearKto`] take hidden states, in chunks, without the logits of a whole batch.
//!
//! # Preferences of language models
//!
//! These need the feature `preference`.
//!
//! | loss | for | original | arguments |
//! |---|---|---|---|
//! | [`DpoLoss`] | pairs of answers, and a reference model | `liger_kernel.chunked_loss.LigerFusedLinearDPOLoss` | `policy, reference` |
//! | [`IpoLoss`] | the same, up to a margin | IPO (paper) | `policy, reference` |
//! | [`OrpoLoss`] | pairs of answers while the model is tuned to them | `liger_kernel.chunked_loss.LigerFusedLinearORPOLoss` | `policy, reference` |
//! | [`SimpoLoss`] | pairs of answers of different lengths | `liger_kernel.chunked_loss.LigerFusedLinearSimPOLoss` | `policy, reference` |
//! | [`CpoLoss`] | pairs of answers, such as translations | `liger_kernel.chunked_loss.LigerFusedLinearCPOLoss` | `policy, reference` |
//! | [`KtoLoss`] | single answers, good or bad | `liger_kernel.chunked_loss.LigerFusedLinearKTOLoss` | `policy, reference, labels, kl` |
//! | [`LinearPreference`] | any loss of pairs, of hidden states | the same | `policy, target, reference` |
//! | [`LinearKto`] | [`KtoLoss`] of hidden states | the same | `policy, target, labels, reference, kl` |

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
    /// The log-probabilities of the chosen answers, one per pair.
    pub chosen: &'a Tensor,
    /// The log-probabilities of the rejected answers, of the same shape.
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
/// [`LinearPreference`] computes any of them from the hidden states of a model.
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
    /// Computes the loss of the log-probabilities of pairs by the policy, the model that is trained, and by the
    /// reference model, if the loss has one.
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

    /// The factor β of the rewards, which are β log π, or β (log π − log π₀) with a reference model.
    fn reward_scale(&self) -> f64;

    /// Whether the log-probability of an answer is the sum or the mean over its tokens, where [`LinearPreference`] has
    /// no option for it. The sum by default.
    fn token_reduction(&self) -> TokenReduction {
        TokenReduction::Sum
    }

    /// The weight of the negative log-likelihood of the chosen answers, where [`LinearPreference`] has no option for
    /// it. 0 by default.
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

    /// The log-ratios for a loss without a reference model.
    fn f_of_policy(policy: PairLogProbs, reference: Option<PairLogProbs>) -> Result<LogRatios, LossError> {
        check::option("reference", "given", reference.is_none(), "none, for a loss without a reference model")?;
        Self::f_new(policy, None)
    }

    /// By how much the policy prefers the chosen answer.
    fn f_margin(&self) -> Result<Tensor, LossError> {
        Ok(self.chosen.f_sub(&self.rejected)?)
    }

    /// The reduced losses of the pairs, in the kind of the result.
    fn f_reduce(&self, losses: &Tensor, reduction: Reduction) -> Result<Tensor, LossError> {
        Ok(reduction.f_apply(losses)?.f_to_kind(self.own)?)
    }
}

/// Checks that there is one log-probability per answer, and not one per token.
fn per_answer(log_probs: check::Named) -> Result<(), LossError> {
    match log_probs.1.dim() {
        0 | 1 => Ok(()),
        _ => Err(check::shape_error(log_probs, "[N], one log-probability per answer: the sum over its tokens")),
    }
}

fn check_beta(beta: f64) -> Result<(), LossError> {
    check::option("beta", beta, beta.is_finite() && beta > 0.0, "a number > 0")
}

/// −(1 − ε) log σ(z) − ε log σ(−z) for margins z, where the share ε of the preferences is assumed to be wrong.
fn f_smoothed(margin: &Tensor, label_smoothing: f64) -> Result<Tensor, LossError> {
    let right = margin.f_log_sigmoid()?;
    if label_smoothing == 0.0 {
        return Ok(right.f_neg()?);
    }
    let wrong = margin.f_neg()?.f_log_sigmoid()?;
    Ok(right.f_mul_number(label_smoothing - 1.0)?.f_sub(&wrong.f_mul_number(label_smoothing)?)?)
}

/// The methods of a [`PreferenceLoss`] with the factor `beta` except its calculation. Given are the reduction of the
/// tokens of an answer and the weight of the negative log-likelihood.
macro_rules! by_beta {
    ($tokens:ident, $nll_weight:literal) => {
        fn reward_scale(&self) -> f64 {
            self.beta
        }

        fn token_reduction(&self) -> crate::TokenReduction {
            crate::TokenReduction::$tokens
        }

        fn nll_weight(&self) -> f64 {
            $nll_weight
        }
    };
}
use by_beta;
