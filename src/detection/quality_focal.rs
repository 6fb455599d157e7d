use tch::{TchError, Tensor};

use super::reducing::loss_of;
use super::{Divisor, ScoreFormula, check_scores, of_scores};
use crate::binary::{self, Logits, Parts, PointwiseOfShare};
use crate::kernels::{ANY, Logit, NumberOperations, Real, part, powers};
use crate::numeric::{f_abs, f_power, references};
use crate::{InvalidValues, Loss, LossError, Reduction, check};

crate::options::options! {
/// Quality focal loss of logits: focal loss whose targets are qualities between 0 and 1 instead of labels.
///
/// For the score of a dense detector that says both what is in a box and how well the box fits: the target is the IoU
/// of the predicted box for the class of its object, and 0 for all others. [`VarifocalLoss`](crate::VarifocalLoss) has
/// a focusing factor for the negatives alone.
///
/// # Formula
///
/// ℓᵢ = −|yᵢ − σ(xᵢ)|^β ((1 − yᵢ) log(1 − σ(xᵢ)) + yᵢ log σ(xᵢ))
///
/// where x is the input, y the target in \[0, 1\], σ the sigmoid and β the focusing exponent. With β = 0 it is
/// [`BceWithLogitsLoss`](crate::BceWithLogitsLoss). The papers divide the sum by the number of positives:
/// [`Divisor::Positives`].
///
#[doc = include_str!("../../docs/book/src/gallery/quality_focal.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`, of logits
/// * `target`: `[*]`, the same shape, of any kind of real numbers
/// * `weight`: any shape that broadcasts to `[*]`
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// Li et al., Generalized Focal Loss, <https://arxiv.org/abs/2006.04388>, equation 5.
///
/// # Differences from the paper
///
/// * Where σ(x) = y and 0 < β < 1 the loss has a vertical tangent; its gradient is 0 there.
/// * A target outside \[0, 1\] is an error, except one that is greater than 1 by up to 10⁻⁴, as rounding makes it.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a target outside \[0, 1\], [`LossError::Option`] for a negative β.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, QualityFocalLoss};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0]).set_requires_grad(true);
/// let quality = Tensor::from_slice(&[1.0, 0.5]);
///
/// // For a quality of ½ a probability of ½ is right; for a quality of 1 its loss is ¼ log 2.
/// let loss = QualityFocalLoss::new().f_forward(&logits, &quality)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - 2_f64.ln() / 8.0).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "QFL")]
#[doc(alias = "quality_focal_loss")]
pub struct QualityFocalLoss: "quality_focal" | "QFL";

/// Quality focal loss with the paper's β = 2.
new {
    /// β: the greater it is, the smaller is the loss of a score that is nearly right.
    beta: f64 = 2.0,
    ..of_scores,
}
}

impl Loss for QualityFocalLoss {
    loss_of!(Scores, check_scores);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite_not_negative("beta", self.beta)?;
        self.divisor.check()
    }
}

impl QualityFocalLoss {
    /// The loss before the weight and the divisor.
    fn f_reduced(&self, input: &Tensor, target: &Tensor, reduction: Reduction) -> Result<Tensor, LossError> {
        let (arguments, mode, beta) = ([input, target], self.invalid_values, self.beta);
        match beta == 2.0 {
            true => Formula::<2> { beta }.f_reduced(arguments, mode, reduction),
            false => Formula::<ANY> { beta }.f_reduced(arguments, mode, reduction),
        }
    }
}

#[derive(Clone, Copy)]
struct Formula<const BETA: usize> {
    beta: f64,
}

impl<const BETA: usize> ScoreFormula for Formula<BETA> {
    fn f_losses(self, logits: &Logits, target: &Tensor) -> Result<Tensor, LossError> {
        if self.beta == 2.0
            && let Some(parts) = Parts::f_new(logits, target)?
        {
            return f_squared(parts);
        }
        let (entropy, logits) = (logits.f_entropy(target, None)?, logits.f_finite()?);
        let missing = f_missing(&logits, target)?;
        // For β = 2 the difference itself is squared: the second derivative of the square of an absolute value is wrong
        // at 0.
        let focus = if self.beta == 2.0 { missing.f_square()? } else { f_power(&f_abs(&missing)?, self.beta)? };
        Ok(focus.f_mul(&entropy)?)
    }
}

/// The losses for β = 2 with their derivative as a formula: with the excess e = σ(x) − y and the entropy H, that of
/// e² H is e (2 σ(x) σ(−x) H + e²).
fn f_squared(parts: Parts) -> Result<Tensor, LossError> {
    let excess = parts.f_excess()?;
    let losses = excess.f_square()?.f_mul_(&parts.entropy)?;
    let slope = |parts: &Parts, excess: &[Tensor]| {
        let [excess] = references(excess);
        let of_excess = parts.p.f_mul(&parts.q)?.f_mul_(&parts.entropy)?.f_mul_number_(2)?;
        of_excess.f_addcmul(excess, excess)?.f_mul_(excess)
    };
    parts.f_attach(losses, &[&excess], slope, |x, y| {
        Ok(f_missing(x, y)?.f_square()?.f_mul(&binary::f_entropy_of_operations(x, y)?)?)
    })
}

/// y − σ(x) = y σ(−x) − (1 − y) σ(x), which is accurate where σ(x) is nearly 1, too.
fn f_missing(logits: &Tensor, target: &Tensor) -> Result<Tensor, TchError> {
    let superfluous = target.f_rsub_number(1)?.f_mul(&logits.f_sigmoid()?)?;
    target.f_mul(&logits.f_neg()?.f_sigmoid()?)?.f_sub(&superfluous)
}

impl<const BETA: usize> PointwiseOfShare<2> for Formula<BETA> {
    const WHOLE: f64 = binary::ROUNDED_ONE;

    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let logit = Logit::new(x);
        let (entropy, excess) = (logit.entropy(y), logit.slope(y));
        let (focus, slope) = powers::<R, BETA>(excess.abs(), self.beta);
        let slope = slope * excess.sign();
        let of_x = focus * excess + part(slope * logit.p * logit.q, entropy);
        (part(focus, entropy), [of_x, -part(slope, entropy) - part(focus, x)])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::BceWithLogitsLoss;

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (Tensor::from_slice(&[0.0, 1.0]), Tensor::from_slice(&[1.0, 0.0]));
        let message = |criterion: QualityFocalLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let new = QualityFocalLoss::new;
        let cases = [
            (message(new(), &input, &target.view([2, 1])), "target has shape [2, 1], expected [2], the shape of input"),
            (message(new(), &input.to_kind(Kind::Int64), &target), "input has kind Int64, expected a floating kind"),
            (
                message(new(), &input, &target.to_kind(Kind::ComplexFloat)),
                "target has kind ComplexFloat, expected a kind of real numbers",
            ),
            (message(new().beta(-1.0), &input, &target), "option beta is -1, expected a finite number of at least 0"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn extreme_logits_and_exact_scores_stay_finite() {
        for beta in [0.0, 0.3, 1.0, 2.0] {
            let input = Tensor::from_slice(&[1e4_f32, -1e4, 1e4, -1e4, 0.0]).set_requires_grad(true);
            let target = Tensor::from_slice(&[0_f32, 1.0, 1.0, 0.0, 0.5]);
            let loss = QualityFocalLoss::new().beta(beta).reduction(Reduction::None).forward(&input, &target);
            loss.sum(None).backward();
            let exact = if beta == 0.0 { 2_f32.ln() } else { 0.0 };
            assert_eq!(Vec::<f32>::try_from(&loss).unwrap(), [1e4, 1e4, 0.0, 0.0, exact]);
            assert_eq!(Vec::<f32>::try_from(input.grad()).unwrap(), [1.0, -1.0, 0.0, 0.0, 0.0], "β = {beta}");
        }
    }

    #[test]
    fn labels_of_any_kind_are_qualities() {
        let (input, target) = (Tensor::from_slice(&[0.5, -2.0]), Tensor::from_slice(&[1.0, 0.0]));
        let expected = QualityFocalLoss::new().forward(&input, &target);
        for kind in [Kind::Bool, Kind::Uint8, Kind::Int64, Kind::Float, Kind::Half] {
            // An engine takes labels of the input's kind alone, and rounds in its own way.
            let loss = QualityFocalLoss::new().forward(&input, &target.to_kind(kind));
            assert!(loss.allclose(&expected, 1e-14, 0.0, false), "{kind:?}: {loss} is not {expected}");
        }
        let unfocused = QualityFocalLoss::new().beta(0.0).forward(&input, &target);
        assert!(unfocused.allclose(&BceWithLogitsLoss::new().forward(&input, &target), 1e-14, 0.0, false));
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let input = Tensor::from_slice(&[0.5, -2.0, 1.5, 3.0]);
        let target = Tensor::from_slice(&[0.95, 0.1, 0.3, 0.9]);
        for beta in [0.5, 1.0, 1.7, 2.0] {
            let loss = QualityFocalLoss::new().beta(beta);
            crate::numeric::assert_gradient(&input, |input| loss.forward(input, &target));
            crate::numeric::assert_gradient(&target, |target| loss.forward(&input, target));
        }
    }
}
