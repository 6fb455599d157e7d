use tch::{Kind, Tensor};

use super::{check_beta, per_answer};
use crate::kernels::NumberOperations;
use crate::numeric::{result_kind, wide_kind};
use crate::{LossError, Reduction, check};

crate::options::options! {
/// Kahneman-Tversky optimisation (KTO): good answers should become likelier than a reference model makes them, bad ones
/// less likely.
///
/// For answers that are good or bad by themselves, thumbs up or down, without pairs. For pairs choose
/// [`DpoLoss`](crate::DpoLoss). [`LinearKto`](crate::LinearKto) computes it from hidden states.
///
/// # Formula
///
/// ℓ = λ⁺ (1 − σ(β (r − z))) for a desirable answer, λ⁻ (1 − σ(β (z − r))) for an undesirable one, r = log π(y|x) − log
/// π₀(y|x)
///
/// where π is the policy, π₀ the reference model (1 without one), z the divergence of the policy from the reference
/// model, σ is the sigmoid, and λ⁺ and λ⁻ are the weights. z is a constant for the gradient, usually estimated from
/// answers to other prompts of the batch: max(0, mean of r over them).
///
#[doc = include_str!("../../docs/book/src/gallery/kto.svg")]
///
/// # Shapes
///
/// * `policy`, `reference`, `labels`: `[B]`, one number per answer, or `[]` for a single answer
/// * `kl`: scalar, or a shape that broadcasts to `[B]`
/// * result: scalar, or `[B]` or `[]` with [`Reduction::None`]
///
/// # Reference
///
/// `liger_kernel.chunked_loss.LigerFusedLinearKTOLoss` of liger-kernel 0.8.5, by [`LinearKto`](crate::LinearKto), which
/// has no weights; Ethayarajh et al., <https://arxiv.org/abs/2402.01306>.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a β that is not above 0 or a weight that is not a number ≥ 0.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::KtoLoss;
///
/// let policy = Tensor::from_slice(&[-10.0, -12.0]).set_requires_grad(true);
/// let reference = Tensor::from_slice(&[-10.0, -12.0]);
/// let labels = Tensor::from_slice(&[true, false]);
///
/// let loss = KtoLoss::new().f_forward(&policy, Some(&reference), &labels, None)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 0.5);
/// assert_eq!(Vec::<f64>::try_from(policy.grad())?, [-0.0125, 0.0125]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "LigerFusedLinearKTOLoss")]
pub struct KtoLoss;

/// Kahneman-Tversky optimisation with Liger's defaults.
new {
    /// the factor β of the log-ratios.
    beta: f64 = 0.1,
    /// the weight λ⁺ of desirable answers.
    desirable_weight: f64 = 1.0,
    /// the weight λ⁻ of undesirable answers.
    undesirable_weight: f64 = 1.0,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl KtoLoss {
    /// Computes the loss of the log-probabilities of answers, `labels` being true for the desirable ones, with a graph
    /// where one of them requires a gradient. `kl` is z; without it z is 0.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(
        &self,
        policy: &Tensor,
        reference: Option<&Tensor>,
        labels: &Tensor,
        kl: Option<&Tensor>,
    ) -> Result<Tensor, LossError> {
        self.f_check(policy, reference, labels, kl)?;
        let kind = wide_kind(policy)?;
        let wide = |tensor: &Tensor| tensor.f_to_kind(kind);
        let mut gain = wide(policy)?;
        if let Some(reference) = reference {
            gain = gain.f_sub(&wide(reference)?)?;
        }
        if let Some(kl) = kl {
            gain = gain.f_sub(&wide(&kl.f_detach()?)?)?;
        }
        let gain = gain.f_mul_number(self.beta)?;
        // 1 − σ(x) is computed as σ(−x), which has all digits where σ(x) is nearly 1.
        let argument = gain.f_neg()?.f_where_self(labels, &gain)?;
        // Converted with an operation, because libtorch creates no tensor with a number that its kind cannot represent.
        let double = (Kind::Double, policy.device());
        let weight = |weight: f64| Ok::<_, LossError>(Tensor::f_full_number(&[], weight, double)?.f_to_kind(kind)?);
        let weights = weight(self.desirable_weight)?.f_where_self(labels, &weight(self.undesirable_weight)?)?;
        let losses = argument.f_sigmoid()?.f_mul(&weights)?;
        Ok(self.reduction.f_apply(&losses)?.f_to_kind(result_kind(policy)?)?)
    }

    crate::loss::or_panic! {
        forward as f_forward(
            policy: &Tensor, reference: Option<&Tensor>, labels: &Tensor, kl: Option<&Tensor>
        ) -> Tensor
    }

    /// The factor of the rewards.
    pub(super) fn reward_scale(&self) -> f64 {
        self.beta
    }

    fn f_check(
        &self,
        policy: &Tensor,
        reference: Option<&Tensor>,
        labels: &Tensor,
        kl: Option<&Tensor>,
    ) -> Result<(), LossError> {
        let policy = ("policy", policy);
        let reference = reference.map(|reference| ("reference", reference));
        let kl = kl.map(|kl| ("kl", kl));
        let numbers = [&[policy][..], reference.as_slice(), kl.as_slice()].concat();
        check::devices(&[&numbers[..], &[("labels", labels)]].concat())?;
        per_answer(policy)?;
        numbers.into_iter().try_for_each(check::floating)?;
        reference.map_or(Ok(()), |reference| check::same_shape(reference, policy))?;
        check::same_shape(("labels", labels), policy)?;
        kl.map_or(Ok(()), |kl| check::broadcasts_to(kl, policy))?;
        let actual = labels.f_kind()?;
        if actual != Kind::Bool {
            let expected = "Bool, true for desirable answers".into();
            return Err(LossError::Kind { argument: "labels", expected, actual });
        }
        check_beta(self.beta)?;
        let weights = [("desirable_weight", self.desirable_weight), ("undesirable_weight", self.undesirable_weight)];
        let valid = |weight: f64| weight.is_finite() && weight >= 0.0;
        weights.into_iter().try_for_each(|(name, weight)| check::option(name, weight, valid(weight), "a number >= 0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;

    #[test]
    fn the_gradient_is_that_of_differences() {
        let (reference, kl) = (Tensor::from_slice(&[-1.0, -2.0, -3.0]), Tensor::from(0.3));
        let labels = Tensor::from_slice(&[true, false, true]);
        let loss = KtoLoss::new().desirable_weight(1.5).undesirable_weight(0.5).beta(0.7);
        let of = |policy: &Tensor| loss.forward(policy, Some(&reference), &labels, Some(&kl));
        assert_gradient(&Tensor::from_slice(&[-1.5, -1.0, -3.5]), of);
    }

    #[test]
    fn the_divergence_is_a_constant() {
        let (policy, kl) = (Tensor::from_slice(&[-1.0]), Tensor::from(0.3).set_requires_grad(true));
        assert!(!KtoLoss::new().forward(&policy, None, &Tensor::from_slice(&[true]), Some(&kl)).requires_grad());
    }

    #[test]
    fn a_satisfied_answer_keeps_its_digits() {
        let (policy, labels) = (Tensor::from_slice(&[30.0_f32]), Tensor::from_slice(&[true]));
        let loss = f64::try_from(KtoLoss::new().beta(1.0).forward(&policy, None, &labels, None)).unwrap();
        assert!((loss / (-30_f64).exp() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn wrong_calls_are_named() {
        let (policy, labels) = (Tensor::from_slice(&[-1.0, -2.0]), Tensor::from_slice(&[true, false]));
        let loss = KtoLoss::new();
        let (three, integers) = (Tensor::from_slice(&[0.0; 3]), Tensor::from_slice(&[1_i64, 0]));
        for (result, message) in [
            (
                loss.f_forward(&policy, Some(&three), &labels, None),
                "reference has shape [3], expected [2], the shape of policy",
            ),
            (
                loss.f_forward(&policy, None, &integers, None),
                "labels has kind Int64, expected Bool, true for desirable answers",
            ),
            (
                loss.f_forward(&policy, None, &labels, Some(&three)),
                "kl has shape [3], expected a shape that broadcasts to [2], that of policy",
            ),
            (loss.beta(-0.1).f_forward(&policy, None, &labels, None), "option beta is -0.1, expected a number > 0"),
            (
                loss.undesirable_weight(-1.0).f_forward(&policy, None, &labels, None),
                "option undesirable_weight is -1, expected a number >= 0",
            ),
        ] {
            assert_eq!(result.unwrap_err().to_string(), message);
        }
    }
}
