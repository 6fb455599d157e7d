use tch::{Kind, Tensor};

use super::{LogRatios, PairLogProbs, PreferenceLoss, by_beta, check_beta};
use crate::kernels::NumberOperations;
use crate::{LossError, Reduction};

crate::options::options! {
/// Odds-ratio preference optimisation (ORPO): the chosen answer should have the higher odds.
///
/// For fine-tuning and alignment in one: it is a mild penalty of the rejected answers, to which
/// [`LinearPreference`](crate::LinearPreference) adds the negative log-likelihood of the chosen ones. It needs no
/// reference model. For a policy that is fine-tuned already choose [`DpoLoss`](crate::DpoLoss).
///
/// # Formula
///
/// ℓ = −β log σ(log (o⁺ / o⁻)), o = P / (1 − P), log P = log π(y|x) / |y|
///
/// where π is the policy, o⁺ and o⁻ are the odds of the chosen and the rejected answer y to the prompt x, σ is the
/// sigmoid, and β is the paper's λ.
///
#[doc = include_str!("../../docs/book/src/gallery/orpo.svg")]
///
/// # Shapes
///
/// * `policy`: `[N]` for the chosen and `[N]` for the rejected answers, the means of the log-probabilities over the
///   tokens of an answer
/// * `reference`: none
/// * result: scalar, or `[N]` with [`Reduction::None`]
///
/// # Reference
///
/// `liger_kernel.chunked_loss.LigerFusedLinearORPOLoss` of liger-kernel 0.8.5, by
/// [`LinearPreference`](crate::LinearPreference); Hong et al., <https://arxiv.org/abs/2403.07691>.
///
/// # Differences from Liger
///
/// An answer that is certain has finite odds, and a finite gradient; Liger's are infinite or NaN.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a β that is not above 0, or where a reference is given.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{OrpoLoss, PairLogProbs, PreferenceLoss};
///
/// // Odds of 3 to 1 and of 1 to 1.
/// let chosen = Tensor::from_slice(&[0.75]).log().set_requires_grad(true);
/// let rejected = Tensor::from_slice(&[0.5]).log();
///
/// let loss = OrpoLoss::new().beta(1.0).f_forward(PairLogProbs::new(&chosen, &rejected), None)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? + 0.75_f64.ln()).abs() < 1e-12);
/// assert!((f64::try_from(chosen.grad())? + 1.0).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "LigerFusedLinearORPOLoss")]
pub struct OrpoLoss;

/// Odds-ratio preference optimisation with Liger's defaults.
new {
    /// the weight β of the loss.
    beta: f64 = 0.1,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl OrpoLoss {
    /// Computes log (o⁺ / o⁻), which is also useful as a metric.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument at fault.
    #[doc(alias = "log_odds_chosen")]
    pub fn f_log_odds_ratio(policy: PairLogProbs) -> Result<Tensor, LossError> {
        let ratios = LogRatios::f_new(policy, None)?;
        Ok(f_log_odds_ratio(&ratios)?.f_to_kind(ratios.own)?)
    }
}

fn f_log_odds_ratio(policy: &LogRatios) -> Result<Tensor, LossError> {
    let rest = f_log_rest(&policy.chosen)?.f_sub(&f_log_rest(&policy.rejected)?)?;
    Ok(policy.f_margin()?.f_sub(&rest)?)
}

/// log (1 − exp x) for x ≤ 0, accurate for every x.
fn f_log_rest(x: &Tensor) -> Result<Tensor, LossError> {
    // The probability 1 is replaced by the largest number below it, so that the odds are finite.
    let tiny = if x.f_kind()? == Kind::Double { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
    let x = x.f_clamp_max_number(-tiny)?;
    let near = x.f_gt_number(-std::f64::consts::LN_2)?;
    // Each of the two formulas gets −1 where the other one is used, because its infinite derivative times 0 would be
    // NaN.
    let likely = x.f_masked_fill_number(&near.f_logical_not()?, -1)?.f_expm1()?.f_neg()?.f_log()?;
    let unlikely = x.f_masked_fill_number(&near, -1)?.f_exp()?.f_neg()?.f_log1p()?;
    Ok(likely.f_where_self(&near, &unlikely)?)
}

impl PreferenceLoss for OrpoLoss {
    by_beta!(Mean, 1.0);

    fn f_forward(&self, policy: PairLogProbs, reference: Option<PairLogProbs>) -> Result<Tensor, LossError> {
        let policy = LogRatios::f_of_policy(policy, reference)?;
        check_beta(self.beta)?;
        let losses = f_log_odds_ratio(&policy)?.f_log_sigmoid()?.f_mul_number(-self.beta)?;
        policy.f_reduce(&losses, self.reduction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;

    #[test]
    fn the_gradient_is_that_of_differences() {
        let chosen = Tensor::from_slice(&[-0.1, -2.0, -0.9]);
        let of = |rejected: &Tensor| OrpoLoss::new().forward(PairLogProbs::new(&chosen, rejected), None);
        assert_gradient(&Tensor::from_slice(&[-3.0, -0.5, -0.01]), of);
    }

    #[test]
    fn certain_answers_are_finite() {
        let certain = Tensor::from_slice(&[0.0_f32, -1e-3, 0.0]).set_requires_grad(true);
        let other = Tensor::from_slice(&[-1.0_f32, 0.0, 0.0]).set_requires_grad(true);
        for pair in [PairLogProbs::new(&certain, &other), PairLogProbs::new(&other, &certain)] {
            let loss = OrpoLoss::new().forward(pair, None);
            let gradients = Tensor::run_backward(&[&loss], &[&certain, &other], false, false);
            assert!(f64::try_from(loss).unwrap().is_finite());
            assert!(gradients.iter().all(|gradient| bool::try_from(gradient.isfinite().all()).unwrap()));
        }
    }

    #[test]
    fn a_likely_answer_keeps_its_digits() {
        let (likely, half) = (Tensor::from_slice(&[-1e-6_f32]), Tensor::from_slice(&[0.5_f32]).log());
        let log_odds = OrpoLoss::f_log_odds_ratio(PairLogProbs::new(&likely, &half)).unwrap();
        let expected = -1e-6 - (-f64::exp_m1(-1e-6)).ln();
        assert!((log_odds.double_value(&[0]) - expected).abs() < 1e-5);
    }
}
