use tch::Tensor;

use super::{LogRatios, PairLogProbs, PreferenceLoss, by_beta, check_beta, f_smoothed};
use crate::kernels::NumberOperations;
use crate::{LossError, Reduction, check};

crate::options::options! {
/// Direct preference optimisation (DPO): the chosen answer should become likelier against the rejected one, compared
/// with a reference model.
///
/// The usual way to align a language model with pairs of answers without a reward model: the reference model is the
/// policy as it was before, and β says how far the policy may move away from it. Where the preferences are nearly
/// certain and the policy moves too far choose [`IpoLoss`](crate::IpoLoss), without memory for a reference model
/// [`SimpoLoss`](crate::SimpoLoss), [`OrpoLoss`](crate::OrpoLoss) or [`CpoLoss`](crate::CpoLoss), and for answers
/// without pairs [`KtoLoss`](crate::KtoLoss). [`LinearPreference`](crate::LinearPreference) computes it from hidden
/// states.
///
/// # Formula
///
/// ℓ = −(1 − ε) log σ(z) − ε log σ(−z), z = r⁺ − r⁻, r = β (log π(y|x) − log π₀(y|x))
///
/// where π is the policy, π₀ the reference model (1 without one), r⁺ and r⁻ are the rewards of the chosen and the
/// rejected answer y to the prompt x, σ is the sigmoid and ε the label smoothing. [`DpoVariant`] has the other losses
/// of the family.
///
#[doc = include_str!("../../docs/book/src/gallery/dpo.svg")]
///
/// # Shapes
///
/// * `policy`, `reference`: each `[N]` for the chosen and `[N]` for the rejected answers, one log-probability per
///   answer
/// * result: scalar, or `[N]` with [`Reduction::None`]
///
/// # Reference
///
/// `liger_kernel.chunked_loss.LigerFusedLinearDPOLoss` of liger-kernel 0.8.5, by
/// [`LinearPreference`](crate::LinearPreference); Rafailov et al., <https://arxiv.org/abs/2305.18290>; Mitchell, *A
/// note on DPO with noisy preferences*, for ε.
///
/// # Differences from Liger
///
/// * The label smoothing is used by [`DpoVariant::Sigmoid`], too, where Liger ignores it; for a variant without one it
///   is an error.
/// * [`DpoVariant::DiscoPop`] is finite for wide negative margins; Liger's is NaN.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a β or τ that is not above 0, or a label smoothing with a variant that has none.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{DpoLoss, PairLogProbs, PreferenceLoss};
///
/// let chosen = Tensor::from_slice(&[-10.0, -12.0]).set_requires_grad(true);
/// let rejected = Tensor::from_slice(&[-11.0, -12.0]);
/// let (reference_chosen, reference_rejected) = (&chosen.detach() - 1.0, &rejected.detach() - 1.0);
///
/// // The policy's differences are those of the reference model, so that the reward difference is 0.
/// let policy = PairLogProbs::new(&chosen, &rejected);
/// let reference = PairLogProbs::new(&reference_chosen, &reference_rejected);
/// let loss = DpoLoss::new().beta(0.5).f_forward(policy, Some(reference))?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 2_f64.ln()).abs() < 1e-12);
/// assert_eq!(Vec::<f64>::try_from(chosen.grad())?, [-0.125, -0.125]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "LigerFusedLinearDPOLoss")]
#[doc(alias = "DPOTrainer")]
#[doc(alias = "direct preference optimization")]
#[doc(alias = "RLHF")]
pub struct DpoLoss;

/// Direct preference optimisation with Liger's defaults.
new {
    /// β: the larger it is, the nearer the policy stays to the reference model.
    beta: f64 = 0.1,
    /// the loss of the rewards.
    #[doc(alias = "loss_type")]
    variant: DpoVariant = DpoVariant::Sigmoid,
    /// the share ε of the preferences that is assumed to be wrong, for the variants that have it.
    label_smoothing: f64 = 0.0,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

/// The loss that [`DpoLoss`] makes of the rewards r⁺ and r⁻ of a pair and of their difference z.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[doc(alias = "loss_type")]
#[non_exhaustive]
pub enum DpoVariant {
    /// −(1 − ε) log σ(z) − ε log σ(−z). With ε > 0 it is conservative DPO, for preferences of which some are wrong.
    #[default]
    #[doc(alias = "cDPO")]
    Sigmoid,
    /// max(0, 1 − z): a pair whose rewards are far enough apart has a loss of 0. <https://arxiv.org/abs/2305.10425>
    Hinge,
    /// KL of (σ(z), σ(−z)) from (1 − ε, ε), for 0 < ε < 1. <https://arxiv.org/abs/2402.00856>
    ExoPair,
    /// −log σ(r⁺) − ½ log σ(−r⁺) − ½ log σ(−r⁻), which keeps the chosen answer likely.
    /// <https://arxiv.org/abs/2402.05369>
    NcaPair,
    /// (−(1 − ε) log σ(z) + ε log σ(−z)) / (1 − 2ε), for ε < ½: unbiased where the share ε of the preferences is wrong.
    /// <https://arxiv.org/abs/2403.00409>
    Robust,
    /// −log σ(r⁺) − log σ(−r⁻): each answer is classified for itself. <https://arxiv.org/abs/2404.04656>
    BcoPair,
    /// (r⁺/β − 1/(2β))² + (r⁻/β + 1/(2β))². <https://arxiv.org/abs/2405.00675>
    SppoHard,
    /// 1 − σ(r⁺) + σ(r⁻), for chosen answers that are better than the policy's own. <https://arxiv.org/abs/2408.06266>
    ApoZero,
    /// σ(r⁺) + 1 − σ(z), for chosen answers that are worse than the policy's own. <https://arxiv.org/abs/2408.06266>
    ApoDown,
    /// −(1 − m) log σ(z) + m exp(−z), m = σ(z/τ), for the temperature τ > 0, usually 0.05.
    /// <https://arxiv.org/abs/2406.08414>
    DiscoPop(f64),
}

crate::options::words_or_fields!(DpoVariant
    {
        "sigmoid" => Sigmoid, "hinge" => Hinge, "exo_pair" => ExoPair, "nca_pair" => NcaPair, "robust" => Robust,
        "bco_pair" => BcoPair, "sppo_hard" => SppoHard, "apo_zero" => ApoZero, "apo_down" => ApoDown
    }
    { "disco_pop" => DiscoPop }
);

impl DpoLoss {
    fn f_check_options(&self) -> Result<(), LossError> {
        check_beta(self.beta)?;
        let smoothing = self.label_smoothing;
        let (valid, expected) = match self.variant {
            DpoVariant::Sigmoid => ((0.0..=1.0).contains(&smoothing), "a number in [0, 1]"),
            DpoVariant::Robust => ((0.0..0.5).contains(&smoothing), "a number in [0, 0.5)"),
            DpoVariant::ExoPair => (smoothing > 0.0 && smoothing < 1.0, "a number in (0, 1)"),
            _ => (smoothing == 0.0, "0, for a variant without label smoothing"),
        };
        check::option("label_smoothing", smoothing, valid, expected)?;
        if let DpoVariant::DiscoPop(tau) = self.variant {
            check::option("variant", tau, tau.is_finite() && tau > 0.0, "a temperature > 0")?;
        }
        Ok(())
    }

    fn f_losses(&self, ratios: &LogRatios) -> Result<Tensor, LossError> {
        let (beta, smoothing) = (self.beta, self.label_smoothing);
        let chosen = ratios.chosen.f_mul_number(beta)?;
        let rejected = ratios.rejected.f_mul_number(beta)?;
        let z = ratios.f_margin()?.f_mul_number(beta)?;
        Ok(match self.variant {
            DpoVariant::Sigmoid => f_smoothed(&z, smoothing)?,
            DpoVariant::Hinge => z.f_neg()?.f_add_number(1)?.f_relu()?,
            DpoVariant::ExoPair => {
                let term = |z: &Tensor, share: f64| z.f_sigmoid()?.f_mul(&z.f_log_sigmoid()?.f_sub_number(share)?);
                term(&z, (-smoothing).ln_1p())?.f_add(&term(&z.f_neg()?, smoothing.ln())?)?
            }
            DpoVariant::NcaPair => {
                let unlikely = f_log_rest(&chosen)?.f_add(&f_log_rest(&rejected)?)?;
                chosen.f_log_sigmoid()?.f_neg()?.f_sub(&unlikely.f_mul_number(0.5)?)?
            }
            DpoVariant::Robust => {
                let right = z.f_log_sigmoid()?.f_mul_number(smoothing - 1.0)?;
                right.f_add(&f_log_rest(&z)?.f_mul_number(smoothing)?)?.f_div_number(1.0 - 2.0 * smoothing)?
            }
            DpoVariant::BcoPair => chosen.f_log_sigmoid()?.f_add(&f_log_rest(&rejected)?)?.f_neg()?,
            DpoVariant::SppoHard => {
                let half = 0.5 / beta;
                let chosen = ratios.chosen.f_sub_number(half)?.f_square()?;
                chosen.f_add(&ratios.rejected.f_add_number(half)?.f_square()?)?
            }
            DpoVariant::ApoZero => chosen.f_neg()?.f_sigmoid()?.f_add(&rejected.f_sigmoid()?)?,
            DpoVariant::ApoDown => chosen.f_sigmoid()?.f_add(&z.f_neg()?.f_sigmoid()?)?,
            DpoVariant::DiscoPop(tau) => f_disco_pop(&z, tau)?,
        })
    }
}

/// log (1 − σ(x))
fn f_log_rest(x: &Tensor) -> Result<Tensor, LossError> {
    Ok(x.f_neg()?.f_log_sigmoid()?)
}

fn f_disco_pop(z: &Tensor, tau: f64) -> Result<Tensor, LossError> {
    let scaled = z.f_div_number(tau)?;
    let logistic = z.f_log_sigmoid()?.f_mul(&scaled.f_neg()?.f_sigmoid()?)?;
    // The logarithms of m and exp(−z) are added before the exponential, because exp(−z) overflows where m underflows.
    let exponential = scaled.f_log_sigmoid()?.f_sub(z)?.f_exp()?;
    Ok(exponential.f_sub(&logistic)?)
}

impl PreferenceLoss for DpoLoss {
    by_beta!(Sum, 0.0);

    fn f_forward(&self, policy: PairLogProbs, reference: Option<PairLogProbs>) -> Result<Tensor, LossError> {
        let ratios = LogRatios::f_new(policy, reference)?;
        self.f_check_options()?;
        ratios.f_reduce(&self.f_losses(&ratios)?, self.reduction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;

    const VARIANTS: [DpoVariant; 10] = [
        DpoVariant::Sigmoid,
        DpoVariant::Hinge,
        DpoVariant::ExoPair,
        DpoVariant::NcaPair,
        DpoVariant::Robust,
        DpoVariant::BcoPair,
        DpoVariant::SppoHard,
        DpoVariant::ApoZero,
        DpoVariant::ApoDown,
        DpoVariant::DiscoPop(0.05),
    ];

    fn smoothing(variant: DpoVariant) -> f64 {
        match variant {
            DpoVariant::Sigmoid | DpoVariant::ExoPair | DpoVariant::Robust => 0.1,
            _ => 0.0,
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let rejected = Tensor::from_slice(&[-2.0, -1.0, -4.5]);
        for variant in VARIANTS {
            let loss = DpoLoss::new().variant(variant).label_smoothing(smoothing(variant)).beta(0.3);
            let of = |chosen: &Tensor| loss.forward(PairLogProbs::new(chosen, &rejected), None);
            assert_gradient(&Tensor::from_slice(&[-1.0, -2.5, -3.0]), of);
        }
    }

    #[test]
    fn huge_margins_are_finite() {
        let chosen = Tensor::from_slice(&[-1e4_f32, -1.0, -1e4]).set_requires_grad(true);
        let rejected = Tensor::from_slice(&[-1.0_f32, -1e4, -1e4]);
        for variant in VARIANTS {
            let loss = DpoLoss::new().variant(variant).label_smoothing(smoothing(variant)).beta(1.0);
            let loss = loss.forward(PairLogProbs::new(&chosen, &rejected), None);
            let gradient = Tensor::run_backward(&[&loss], &[&chosen], false, false).remove(0);
            assert!(f64::try_from(loss).unwrap().is_finite(), "{variant:?}");
            assert!(bool::try_from(gradient.isfinite().all()).unwrap(), "{variant:?}");
        }
    }

    #[test]
    fn wrong_options_are_named() {
        let log_probs = Tensor::from_slice(&[-1.0]);
        for (loss, message) in [
            (DpoLoss::new().beta(0.0), "option beta is 0, expected a number > 0"),
            (DpoLoss::new().beta(f64::NAN), "option beta is NaN, expected a number > 0"),
            (DpoLoss::new().label_smoothing(1.5), "option label_smoothing is 1.5, expected a number in [0, 1]"),
            (
                DpoLoss::new().variant(DpoVariant::Robust).label_smoothing(0.5),
                "option label_smoothing is 0.5, expected a number in [0, 0.5)",
            ),
            (DpoLoss::new().variant(DpoVariant::ExoPair), "option label_smoothing is 0, expected a number in (0, 1)"),
            (
                DpoLoss::new().variant(DpoVariant::Hinge).label_smoothing(0.1),
                "option label_smoothing is 0.1, expected 0, for a variant without label smoothing",
            ),
            (DpoLoss::new().variant(DpoVariant::DiscoPop(0.0)), "option variant is 0, expected a temperature > 0"),
        ] {
            let error = loss.f_forward(PairLogProbs::new(&log_probs, &log_probs), None).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        let (two, three) = (Tensor::from_slice(&[-1.0, -2.0]), Tensor::from_slice(&[-1.0, -2.0, -3.0]));
        let loss = DpoLoss::new();
        let error = loss.f_forward(PairLogProbs::new(&two, &three), None).unwrap_err();
        assert_eq!(error.to_string(), "policy rejected has shape [3], expected [2], the shape of policy chosen");
        let error = loss.f_forward(PairLogProbs::new(&two, &two), Some(PairLogProbs::new(&two, &three))).unwrap_err();
        assert_eq!(error.to_string(), "reference rejected has shape [3], expected [2], the shape of policy chosen");
        let tokens = Tensor::from_slice(&[-1.0, -2.0, -3.0, -4.0]).reshape([2, 2]);
        let error = loss.f_forward(PairLogProbs::new(&tokens, &tokens), None).unwrap_err();
        let expected = "[N], one log-probability per answer: the sum over its tokens";
        assert_eq!(error.to_string(), format!("policy chosen has shape [2, 2], expected {expected}"));
        let integers = Tensor::from_slice(&[1_i64]);
        let error = loss.f_forward(PairLogProbs::new(&integers, &integers), None).unwrap_err();
        assert_eq!(error.to_string(), "policy chosen has kind Int64, expected a floating kind");
    }
}
