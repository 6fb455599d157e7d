use tch::Tensor;

use super::{LogRatios, PairLogProbs, PreferenceLoss, by_beta, check_beta, f_smoothed};
use crate::kernels::NumberOperations;
use crate::{LossError, Reduction, check};

crate::options::options! {
/// Contrastive preference optimisation (CPO): the chosen answer should become likelier against the rejected one,
/// without a reference model.
///
/// It is [`DpoLoss`](crate::DpoLoss) with a reference model for which all answers are equally likely. For pairs of
/// answers of about the same length, of translations for example, where a reference model does not fit into memory; the
/// negative log-likelihood of the chosen answers, which [`LinearPreference`](crate::LinearPreference) adds, keeps the
/// policy near to the chosen answers. For answers of different lengths choose [`SimpoLoss`](crate::SimpoLoss), with a
/// reference model [`DpoLoss`](crate::DpoLoss).
///
/// # Formula
///
/// ℓ = −(1 − ε) log σ(z) − ε log σ(−z), z = β (log π(y⁺|x) − log π(y⁻|x))
///
/// where π is the policy, y⁺ and y⁻ are the chosen and the rejected answer to the prompt x, σ is the sigmoid and ε the
/// label smoothing.
///
#[doc = include_str!("../../docs/book/src/gallery/cpo.svg")]
///
/// # Shapes
///
/// * `policy`: `[N]` for the chosen and `[N]` for the rejected answers, one log-probability per answer
/// * `reference`: none
/// * result: scalar, or `[N]` with [`Reduction::None`]
///
/// # Reference
///
/// `liger_kernel.chunked_loss.LigerFusedLinearCPOLoss` of liger-kernel 0.8.5, by
/// [`LinearPreference`](crate::LinearPreference); Xu et al., <https://arxiv.org/abs/2401.08417>.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a β that is not above 0, a label smoothing outside \[0, 1\], or where a reference is
/// given.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{CpoLoss, PairLogProbs, PreferenceLoss};
///
/// let chosen = Tensor::from_slice(&[-7.0]).set_requires_grad(true);
/// let rejected = Tensor::from_slice(&[-7.0]);
///
/// let loss = CpoLoss::new().f_forward(PairLogProbs::new(&chosen, &rejected), None)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 2_f64.ln()).abs() < 1e-12);
/// assert_eq!(f64::try_from(chosen.grad())?, -0.05);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "LigerFusedLinearCPOLoss")]
pub struct CpoLoss;

/// Contrastive preference optimisation with Liger's defaults.
new {
    /// the factor β of the log-probabilities.
    beta: f64 = 0.1,
    /// the share ε of the preferences that is assumed to be wrong.
    label_smoothing: f64 = 0.0,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl PreferenceLoss for CpoLoss {
    by_beta!(Sum, 1.0);

    fn f_forward(&self, policy: PairLogProbs, reference: Option<PairLogProbs>) -> Result<Tensor, LossError> {
        let ratios = LogRatios::f_of_policy(policy, reference)?;
        check_beta(self.beta)?;
        check::share("label_smoothing", self.label_smoothing)?;
        let margin = ratios.f_margin()?.f_mul_number(self.beta)?;
        ratios.f_reduce(&f_smoothed(&margin, self.label_smoothing)?, self.reduction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;

    #[test]
    fn the_gradient_is_that_of_differences() {
        let chosen = Tensor::from_slice(&[-1.0, -2.0]);
        let loss = CpoLoss::new().label_smoothing(0.2);
        let of = |rejected: &Tensor| loss.forward(PairLogProbs::new(&chosen, rejected), None);
        assert_gradient(&Tensor::from_slice(&[-3.0, -0.5]), of);
    }

    #[test]
    fn without_a_margin_simpo_is_the_same() {
        let (chosen, rejected) = (Tensor::from_slice(&[-1.0, -2.0]), Tensor::from_slice(&[-3.0, -0.5]));
        let pair = PairLogProbs::new(&chosen, &rejected);
        assert_eq!(CpoLoss::new().forward(pair, None), crate::SimpoLoss::new().gamma(0.0).forward(pair, None));
    }
}
