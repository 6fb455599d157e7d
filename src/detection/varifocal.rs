use tch::{TchError, Tensor};

use super::reducing::loss_of;
use super::{Divisor, ScoreFormula, check_scores, of_scores};
use crate::binary::{self, Logits, Parts, PointwiseOfShare};
use crate::kernels::{Logit, NumberOperations, Real, choose, part};
use crate::numeric::references;
use crate::{InvalidValues, Loss, LossError, Reduction, autograd, check};

crate::options::options! {
/// Varifocal loss of logits: binary cross entropy in which positives are weighted by their quality and negatives by a
/// power of their probability.
///
/// For the score of a dense detector that ranks boxes by how well they fit: the target is the IoU of the predicted box
/// for the class of its object, and 0 for all others. Unlike [`QualityFocalLoss`](crate::QualityFocalLoss) it makes
/// only the loss of easy negatives small, because positives are few.
///
/// # Formula
///
/// ℓᵢ = −qᵢ (qᵢ log pᵢ + (1 − qᵢ) log(1 − pᵢ)) where qᵢ > 0, and −α pᵢ^γ log(1 − pᵢ) where qᵢ = 0
///
/// where p = σ(x) is the sigmoid of the input, q the target in \[0, 1\], α the weight of the negatives and γ their
/// focusing exponent. The paper divides the sum by the number of positives.
///
#[doc = include_str!("../../docs/book/src/gallery/varifocal.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`, of logits
/// * `target`: `[*]`, the same shape, of any kind of real numbers
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// Zhang et al., VarifocalNet, <https://arxiv.org/abs/2008.13367>, equation 2.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a target outside \[0, 1\], [`LossError::Option`] for a γ that is negative or an α that is
/// not finite.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, Reduction, VarifocalLoss};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0]).set_requires_grad(true);
/// let quality = Tensor::from_slice(&[0.8, 0.0]);
///
/// // With p = ½ the positive has the loss 0.8 log 2, the negative 0.75 · ¼ log 2.
/// let loss = VarifocalLoss::new().reduction(Reduction::Sum).f_forward(&logits, &quality)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (0.8 + 0.75 / 4.0) * 2_f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "VFL")]
#[doc(alias = "varifocal_loss")]
pub struct VarifocalLoss: "varifocal" | "VFL";

/// Varifocal loss with the paper's α = 0.75 and γ = 2.
new {
    /// the weight of the negatives.
    alpha: f64 = 0.75,
    /// γ: the greater it is, the smaller is the loss of a negative that is nearly right.
    gamma: f64 = 2.0,
    ..of_scores,
}
}

impl Loss for VarifocalLoss {
    loss_of!(Scores, check_scores);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite("alpha", self.alpha)?;
        check::finite_not_negative("gamma", self.gamma)?;
        self.divisor.check()
    }
}

impl VarifocalLoss {
    /// The loss before the weight and the divisor.
    fn f_reduced(&self, input: &Tensor, target: &Tensor, reduction: Reduction) -> Result<Tensor, LossError> {
        let formula = Formula { alpha: self.alpha, gamma: self.gamma };
        formula.f_reduced([input, target], self.invalid_values, reduction)
    }
}

#[derive(Clone, Copy)]
struct Formula {
    alpha: f64,
    gamma: f64,
}

impl ScoreFormula for Formula {
    fn f_losses(self, logits: &Logits, target: &Tensor) -> Result<Tensor, LossError> {
        if let Some(parts) = Parts::f_new(logits, target)? {
            return self.f_with_formula(parts, logits, target);
        }
        let negative = target.f_eq_number(0)?;
        // A target of 0 gets no gradient, because the formula changes there.
        let target = match autograd::grad_enabled() && target.requires_grad() {
            true => target.f_masked_fill_number(&negative, 0)?,
            false => target.shallow_clone(),
        };
        let entropy = logits.f_entropy(&target, None)?;
        Ok(self.f_weight(&logits.f_finite()?, &target, &negative)?.f_mul(&entropy)?)
    }
}

impl Formula {
    /// y, and α p^γ where the target is `negative`.
    fn f_weight(self, logits: &Tensor, target: &Tensor, negative: &Tensor) -> Result<Tensor, TchError> {
        // p^γ is computed from log p, and so has a finite gradient for every p and γ.
        let power = logits.f_log_sigmoid()?.f_mul_number(self.gamma)?.f_exp()?;
        power.f_mul_number(self.alpha)?.f_where_self(negative, target)
    }

    /// The losses with their derivative as a formula: with the weight w and the entropy H, that of w H is w H′, and
    /// γ σ(−x) w H more where the target is 0.
    fn f_with_formula(self, parts: Parts, logits: &Logits, target: &Tensor) -> Result<Tensor, LossError> {
        let negative = target.f_eq_number(0)?;
        let weight = self.f_weight(&logits.f_finite()?.f_detach()?, target, &negative)?;
        let losses = weight.f_mul(&parts.entropy)?;
        let slope = move |parts: &Parts, others: &[Tensor]| {
            let [weight, negative, losses] = references(others);
            let of_weight = parts.q.f_mul(losses)?.f_mul_number_(self.gamma)?.f_zeros_unless(negative)?;
            of_weight.f_addcmul(weight, &parts.f_excess()?)
        };
        parts.f_attach(losses.shallow_clone(), &[&weight, &negative, &losses], slope, move |x, y| {
            Ok(self.f_weight(x, y, &y.f_eq_number(0)?)?.f_mul(&binary::f_entropy_of_operations(x, y)?)?)
        })
    }
}

impl PointwiseOfShare<2> for Formula {
    const WHOLE: f64 = binary::ROUNDED_ONE;

    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (zero, one, gamma) = (R::of(0.0), R::of(1.0), R::of(self.gamma));
        let logit = Logit::new(x);
        let (entropy, negative) = (logit.entropy(y), y.equal(zero));
        // p^γ is computed from log p.
        let focus = R::of(self.alpha) * (-part(gamma, logit.of_yes)).exp();
        let weight = choose(negative, focus, y);
        let of_weight = choose(negative, part(gamma * focus * logit.q, entropy), zero);
        let of_y = part(y + y, logit.of_yes) + part(one - (y + y), logit.of_no);
        (part(weight, entropy), [of_weight + weight * logit.slope(y), choose(negative, zero, of_y)])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (Tensor::from_slice(&[0.0, 1.0]), Tensor::from_slice(&[1.0, 0.0]));
        let message = |criterion: VarifocalLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let new = VarifocalLoss::new;
        let cases = [
            (message(new(), &input, &target.view([2, 1])), "target has shape [2, 1], expected [2], the shape of input"),
            (message(new(), &input.to_kind(Kind::Int64), &target), "input has kind Int64, expected a floating kind"),
            (message(new().gamma(-1.0), &input, &target), "option gamma is -1, expected a finite number of at least 0"),
            (message(new().alpha(f64::INFINITY), &input, &target), "option alpha is inf, expected a finite number"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for gamma in [0.0, 0.3, 2.0] {
            let input = Tensor::from_slice(&[1e4_f32, -1e4, 1e4, -1e4]).set_requires_grad(true);
            let target = Tensor::from_slice(&[0_f32, 0.5, 1.0, 0.0]);
            let criterion = VarifocalLoss::new().alpha(1.0).gamma(gamma).reduction(Reduction::None);
            let loss = criterion.forward(&input, &target);
            loss.sum(None).backward();
            assert_eq!(Vec::<f32>::try_from(&loss).unwrap(), [1e4, 0.5 * 5e3, 0.0, 0.0]);
            assert_eq!(Vec::<f32>::try_from(input.grad()).unwrap(), [1.0, -0.25, 0.0, 0.0], "γ = {gamma}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let input = Tensor::from_slice(&[0.5, -2.0, 1.5, 3.0]);
        let target = Tensor::from_slice(&[1.0, 0.0, 0.3, 0.9]);
        for gamma in [0.0, 0.5, 1.0, 2.0] {
            let loss = VarifocalLoss::new().gamma(gamma);
            crate::numeric::assert_gradient(&input, |input| loss.forward(input, &target));
        }
        let positive = Tensor::from_slice(&[0.9, 0.2, 0.3, 0.9]);
        crate::numeric::assert_gradient(&positive, |target| VarifocalLoss::new().forward(&input, target));
    }

    #[test]
    fn half_kinds_are_computed_in_single_precision() {
        let (input, target) = (Tensor::from_slice(&[0.5, -2.0]), Tensor::from_slice(&[1.0, 0.0]));
        let expected = VarifocalLoss::new().forward(&input.to_kind(Kind::Float), &target);
        for kind in [Kind::Half, Kind::BFloat16] {
            assert_eq!(VarifocalLoss::new().forward(&input.to_kind(kind), &target), expected.to_kind(kind));
        }
    }
}
