use tch::Tensor;

use super::{LogRatios, PairLogProbs, PreferenceLoss, by_beta, check_beta, f_smoothed};
use crate::kernels::NumberOperations;
use crate::{LossError, Reduction, check};

crate::options::options! {
/// Simple preference optimisation (SimPO): the chosen answer should be likelier per token than the rejected one, by a
/// margin.
///
/// For pairs of answers of different lengths, and where a reference model does not fit into memory: it needs none. With
/// a reference model choose [`DpoLoss`](crate::DpoLoss). [`LinearPreference`](crate::LinearPreference) computes it from
/// hidden states, and by default averages over the tokens of an answer, as the paper does, and adds their negative
/// log-likelihood, as Liger does.
///
/// # Formula
///
/// ℓ = −(1 − ε) log σ(z) − ε log σ(−z), z = β (log π(y⁺|x) / |y⁺| − log π(y⁻|x) / |y⁻|) − γ
///
/// where π is the policy, y⁺ and y⁻ are the chosen and the rejected answer to the prompt x, σ is the sigmoid, γ the
/// margin and ε the label smoothing.
///
#[doc = include_str!("../../docs/book/src/gallery/simpo.svg")]
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
/// `liger_kernel.chunked_loss.LigerFusedLinearSimPOLoss` of liger-kernel 0.8.5, by
/// [`LinearPreference`](crate::LinearPreference); Meng et al., <https://arxiv.org/abs/2405.14734>.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a β that is not above 0, a γ that is not finite, a label smoothing outside \[0, 1\], or
/// where a reference is given.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{PairLogProbs, PreferenceLoss, SimpoLoss};
///
/// let chosen = Tensor::from_slice(&[-1.0]).set_requires_grad(true);
/// let rejected = Tensor::from_slice(&[-1.5]);
///
/// let loss = SimpoLoss::new().beta(2.0).gamma(1.0).f_forward(PairLogProbs::new(&chosen, &rejected), None)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 2_f64.ln()).abs() < 1e-12);
/// assert_eq!(f64::try_from(chosen.grad())?, -1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "LigerFusedLinearSimPOLoss")]
pub struct SimpoLoss;

/// Simple preference optimisation with Liger's defaults.
new {
    /// the factor β of the log-probabilities; the paper has 2 to 2.5.
    beta: f64 = 0.1,
    /// the margin γ.
    gamma: f64 = 0.5,
    /// the share ε of the preferences that is assumed to be wrong.
    label_smoothing: f64 = 0.0,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl PreferenceLoss for SimpoLoss {
    by_beta!(Mean, 1.0);

    fn f_forward(&self, policy: PairLogProbs, reference: Option<PairLogProbs>) -> Result<Tensor, LossError> {
        let ratios = LogRatios::f_of_policy(policy, reference)?;
        check_beta(self.beta)?;
        check::share("label_smoothing", self.label_smoothing)?;
        check::finite("gamma", self.gamma)?;
        let margin = ratios.f_margin()?.f_mul_number(self.beta)?.f_sub_number(self.gamma)?;
        ratios.f_reduce(&f_smoothed(&margin, self.label_smoothing)?, self.reduction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;

    #[test]
    fn the_gradient_is_that_of_differences() {
        let rejected = Tensor::from_slice(&[-1.0, -2.0]);
        let loss = SimpoLoss::new().beta(2.0).label_smoothing(0.1);
        let of = |chosen: &Tensor| loss.forward(PairLogProbs::new(chosen, &rejected), None);
        assert_gradient(&Tensor::from_slice(&[-3.0, -0.5]), of);
    }

    #[test]
    fn wrong_calls_are_named() {
        let log_probs = Tensor::from_slice(&[-1.0]);
        let pair = PairLogProbs::new(&log_probs, &log_probs);
        for (loss, reference, message) in [
            (SimpoLoss::new().beta(0.0), None, "option beta is 0, expected a number > 0"),
            (SimpoLoss::new().gamma(f64::INFINITY), None, "option gamma is inf, expected a finite number"),
            (
                SimpoLoss::new().label_smoothing(-0.1),
                None,
                "option label_smoothing is -0.1, expected a number in [0, 1]",
            ),
            (
                SimpoLoss::new(),
                Some(pair),
                "option reference is given, expected none, for a loss without a reference model",
            ),
        ] {
            assert_eq!(loss.f_forward(pair, reference).unwrap_err().to_string(), message);
        }
    }
}
