use tch::Tensor;

use super::{LogRatios, PairLogProbs, PreferenceLoss, by_beta, check_beta};
use crate::kernels::NumberOperations;
use crate::{LossError, Reduction};

crate::options::options! {
/// Identity preference optimisation (IPO): the chosen answer should become likelier against the rejected one by a fixed
/// margin, and by no more.
///
/// For preferences that are nearly certain, with which [`DpoLoss`](crate::DpoLoss) moves the policy further and further
/// from the reference model. [`LinearPreference`](crate::LinearPreference) computes it from hidden states.
///
/// # Formula
///
/// ℓ = (h − 1/(2β))², h = log (π(y⁺|x) / π₀(y⁺|x)) − log (π(y⁻|x) / π₀(y⁻|x))
///
/// where π is the policy, π₀ the reference model (1 without one), y⁺ and y⁻ are the chosen and the rejected answer to
/// the prompt x, and β is the paper's τ.
///
#[doc = include_str!("../../docs/book/src/gallery/ipo.svg")]
///
/// # Shapes
///
/// * `policy`, `reference`: each `[N]` for the chosen and `[N]` for the rejected answers, one log-probability per
///   answer
/// * result: scalar, or `[N]` with [`Reduction::None`]
///
/// # Reference
///
/// Azar et al., <https://arxiv.org/abs/2310.12036>, equation 17. As in the usual implementations, the log-probability
/// of an answer is by default the mean over its tokens in [`LinearPreference`](crate::LinearPreference).
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a β that is not above 0.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{IpoLoss, PairLogProbs, PreferenceLoss};
///
/// let chosen = Tensor::from_slice(&[-1.0]).set_requires_grad(true);
/// let rejected = Tensor::from_slice(&[-3.0]);
///
/// // The log-probabilities differ by 2, where a margin of 1 / (2 · 0.5) = 1 is asked for.
/// let loss = IpoLoss::new().beta(0.5).f_forward(PairLogProbs::new(&chosen, &rejected), None)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 1.0);
/// assert_eq!(f64::try_from(chosen.grad())?, 2.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "ipo")]
pub struct IpoLoss;

/// Identity preference optimisation with β = 0.1.
new {
    /// β: the margin that is asked for is 1/(2β).
    beta: f64 = 0.1,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl PreferenceLoss for IpoLoss {
    by_beta!(Mean, 0.0);

    fn f_forward(&self, policy: PairLogProbs, reference: Option<PairLogProbs>) -> Result<Tensor, LossError> {
        let ratios = LogRatios::f_new(policy, reference)?;
        check_beta(self.beta)?;
        let losses = ratios.f_margin()?.f_sub_number(0.5 / self.beta)?.f_square()?;
        ratios.f_reduce(&losses, self.reduction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;

    #[test]
    fn the_gradient_is_that_of_differences() {
        let chosen = Tensor::from_slice(&[-1.0, -2.0]);
        let of = |rejected: &Tensor| IpoLoss::new().forward(PairLogProbs::new(&chosen, rejected), None);
        assert_gradient(&Tensor::from_slice(&[-3.0, -0.5]), of);
    }

    #[test]
    fn a_wrong_beta_is_named() {
        let log_probs = Tensor::from_slice(&[-1.0]);
        let error = IpoLoss::new().beta(-1.0).f_forward(PairLogProbs::new(&log_probs, &log_probs), None).unwrap_err();
        assert_eq!(error.to_string(), "option beta is -1, expected a number > 0");
    }
}
