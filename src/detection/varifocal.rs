use tch::Tensor;

use super::divisor::{Divisor, Reducing, f_positives};
use super::{check_scores, of_scores};
use crate::binary::{self, Logits};
use crate::kernels::{self, Logit, NumberOperations, Pointwise, Real, choose, f_pointwise, part, share_or_nan};
use crate::numeric::{f_reals, wide_kind};
use crate::{InvalidValues, Loss, LossError, MeanParts, Reduction, check};

crate::options::options! {
/// Varifocal loss of logits: positives weigh by their quality, negatives by how sure the model is of them.
///
/// The score of a dense detector that ranks boxes by how well they fit: the target is the IoU of the predicted box at
/// the class it holds and 0 elsewhere. Unlike [`QualityFocalLoss`](crate::QualityFocalLoss) it plays down easy
/// negatives alone, because positives are few.
///
/// # Formula
///
/// ℓᵢ = −qᵢ (qᵢ log pᵢ + (1 − qᵢ) log(1 − pᵢ)) where qᵢ > 0, and −α pᵢ^γ log(1 − pᵢ) where qᵢ = 0
///
/// where p = σ(x) is the sigmoid of the input, q the target in \[0, 1\], α the weight of the negatives and γ their
/// focusing exponent. The paper divides the sum by the number of positives.
///
/// # Shapes
///
/// * `input`: any, `[*]`, of logits
/// * `target`: that of `input`, of any kind of real numbers
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// Over nothing the mean is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// Zhang et al., VarifocalNet, <https://arxiv.org/abs/2008.13367>, equation 2.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a target outside \[0, 1\], [`LossError::Option`] for a γ that is negative or an α that is not finite.
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
/// // With p = ½ the positive costs 0.8 log 2, the negative 0.75 · ¼ log 2.
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
    /// γ: the greater, the less a negative counts that is nearly right.
    gamma: f64 = 2.0,
    ..of_scores,
}
}

impl Loss for VarifocalLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        check::option("alpha", self.alpha, self.alpha.is_finite(), "a finite number")?;
        let valid = self.gamma.is_finite() && self.gamma >= 0.0;
        check::option("gamma", self.gamma, valid, "a finite number of at least 0")?;
        self.divisor.check()
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.f_check(input, target)?;
        let positives = || f_positives(target);
        self.reducing(&input.size()).f_apply(input, positives, |x, reduction| self.f_reduced(x, target, reduction))
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        self.f_check(input, target)?;
        let positives = || f_positives(target);
        self.reducing(&input.size()).f_parts(input, positives, |x, reduction| self.f_reduced(x, target, reduction))
    }
}

impl VarifocalLoss {
    fn f_check(&self, input: &Tensor, target: &Tensor) -> Result<(), LossError> {
        check_scores(input, target)?;
        self.f_check_options()
    }

    fn reducing<'a>(&'a self, shape: &'a [i64]) -> Reducing<'a> {
        let (weight, divisor, reduction) = (self.weight.as_ref(), self.divisor, self.reduction);
        Reducing { weight, divisor, reduction, shape, of: "input" }
    }

    /// The loss without the weight and the divisor.
    fn f_reduced(&self, input: &Tensor, target: &Tensor, reduction: Reduction) -> Result<Tensor, LossError> {
        let (formula, mode) = (Formula { alpha: self.alpha, gamma: self.gamma }, self.invalid_values);
        let composite = move |[input, target]: [&Tensor; 2]| formula.f_composite(input, target, mode, reduction);
        match kernels::f_beside(input, target)?.filter(|_| mode == InvalidValues::Error) {
            Some(target) => f_pointwise(formula, [input, &target], reduction, composite),
            None => composite([input, target]),
        }
    }
}

#[derive(Clone, Copy)]
struct Formula {
    alpha: f64,
    gamma: f64,
}

impl Formula {
    fn f_composite(
        self,
        input: &Tensor,
        target: &Tensor,
        mode: InvalidValues,
        reduction: Reduction,
    ) -> Result<Tensor, LossError> {
        let kind = wide_kind(input)?;
        let (logits, target) = (input.f_to_kind(kind)?, f_reals(("target", target), kind)?);

        let validity = binary::f_qualities(&target, mode)?;
        let target = validity.f_replace(&target, 0.0)?;
        let negative = target.f_eq_number(0)?;
        // Whoever learns the qualities as well has no gradient at a negative.
        let target = target.f_masked_fill_number(&negative, 0)?;
        let logits = Logits::f_new(&logits)?;
        let entropy = logits.f_entropy(&target, None)?;
        // p^γ by its logarithm has a gradient for every p and γ.
        let log_p = logits.f_finite()?.f_log_sigmoid()?;
        let focus = log_p.f_mul_number(self.gamma)?.f_exp()?.f_mul_number(self.alpha)?;
        let weight = focus.f_where_self(&negative, &target)?;
        let loss = reduction.f_apply(&weight.f_mul(&entropy)?)?.f_to_kind(input.f_kind()?)?;
        validity.f_poison(&loss, reduction == Reduction::None)
    }
}

impl Pointwise<2> for Formula {
    const PARTIAL: bool = true;

    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (zero, one, gamma) = (R::of(0.0), R::of(1.0), R::of(self.gamma));
        let y = share_or_nan(y, binary::ROUNDED_ONE);
        let logit = Logit::new(x);
        let (entropy, negative) = (logit.entropy(y), y.equal(zero));
        // p^γ by its logarithm.
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
