use tch::Tensor;

use super::multi_label::{self, MultiLabelReduction};
use crate::binary::{self, Logits, Parts, PointwiseOfShare};
use crate::kernels::{self, ANY, Logit, NumberOperations, Real, f_pointwise, part, powers};
use crate::mean_parts::f_wide;
use crate::numeric::{f_power, f_reals, result_kind, wide_kind};
use crate::{InvalidValues, Loss, LossError, MeanParts, check};

crate::options::options! {
/// Binary cross entropy or focal loss of logits with another weight for the first term of its expansion: Poly-1.
///
/// For several labels at once, and with γ and α for detection: a positive ε makes predictions more confident, a
/// negative one less. With ε = 0 and γ = 0 it is [`BceWithLogitsLoss`](crate::BceWithLogitsLoss), with ε = 0 and hard
/// labels [`SigmoidFocalLoss`](crate::SigmoidFocalLoss). For one label out of many choose
/// [`PolyCrossEntropyLoss`](crate::PolyCrossEntropyLoss).
///
/// # Formula
///
/// ℓᵢ = aᵢ (uᵢ^γ · BCE(xᵢ, yᵢ) + ε uᵢ^(γ + 1)), uᵢ = yᵢ (1 − pᵢ) + (1 − yᵢ) pᵢ
///
/// where p = σ(x) is the sigmoid of the input, y the target in \[0, 1\], γ the focusing exponent, ε what is added to
/// the weight of the first term, and a = α y + (1 − α)(1 − y), or 1 without an α.
///
#[doc = include_str!("../../docs/book/src/gallery/poly_bce_with_logits.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`, of logits; usually `[N, C]`
/// * `target`: `[*]`, the same shape, of any kind of real numbers
/// * result: scalar, or `[*]` with [`MultiLabelReduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `timm.loss.PolyBinaryCrossEntropy` of timm 1.0.31; Leng et al., PolyLoss, <https://arxiv.org/abs/2204.12511>.
///
/// # Differences from timm
///
/// * `f64` is computed in `f64`, and the result has the input's kind; timm computes and returns `f32`.
/// * Exponents below 1 have finite gradients; timm's are NaN where a probability rounds to 0 or 1.
/// * A target outside \[0, 1\], such as that of a mask of 0 and 255, is an error.
/// * On the CPU the loss of an infinite logit is its limit, 0 or ∞, where timm's is NaN.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a target outside \[0, 1\], [`LossError::Option`] for a negative γ, an α or a smoothing
/// outside \[0, 1\] or an ε that is not finite.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, PolyBceWithLogitsLoss};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0]).view([1, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64, 0]).view([1, 2]);
///
/// let loss = PolyBceWithLogitsLoss::new().f_forward(&logits, &target)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (2_f64.ln() + 2.0 * 0.5)).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "PolyBinaryCrossEntropy")]
#[doc(alias = "PolyLoss")]
pub struct PolyBceWithLogitsLoss: "poly_bce_with_logits" | "PolyBinaryCrossEntropy";

/// Poly-1 binary cross entropy with timm's ε = 2.
new {
    /// what is added to the weight of the first term.
    epsilon: f64 = 2.0,
    /// the focusing exponent γ; with 0 there is no focusing.
    gamma: f64 = 0.0,
    /// the share α of the positives, in \[0, 1\]; the negatives have 1 − α.
    alpha: Option<f64> = None,
    /// the share of each label, in \[0, 1\], that is moved to ½.
    label_smoothing: f64 = 0.0,
    /// how a target outside \[0, 1\] is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: MultiLabelReduction = MultiLabelReduction::Mean,
}
}

impl PolyBceWithLogitsLoss {
    fn f_by_engine<const GAMMA: usize>(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let loss = *self;
        let composite = move |[input, target]: [&Tensor; 2]| loss.f_composite(input, target);
        let partial = kernels::takes_partial(input, loss.invalid_values);
        match kernels::f_beside(input, target)?.filter(|_| partial) {
            Some(target) => {
                f_pointwise(Formula::<GAMMA>(loss), [input, &target], loss.reduction.for_engine(input), composite)
            }
            None => composite([input, target]),
        }
    }

    fn f_composite(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let kind = wide_kind(input)?;
        let target = f_reals(("target", target), kind)?;
        let mut validity = binary::f_shares(&target, self.invalid_values)?;
        let target = multi_label::f_smooth(validity.f_replace(&target, 0.0)?, self.label_smoothing)?;
        let losses = self.f_losses(&input.f_to_kind(kind)?, &target)?;
        let loss = self.reduction.f_apply(&losses)?.f_to_kind(result_kind(input)?)?;
        validity.f_poison_own(loss, self.reduction == MultiLabelReduction::None)
    }

    /// The losses without focus and balance, with their derivative as a formula.
    fn f_plain_losses(&self, parts: Parts) -> Result<Tensor, LossError> {
        let (epsilon, missing) = (self.epsilon, parts.f_missing()?);
        let losses = missing.f_mul_number(epsilon)?.f_add_(&parts.entropy)?;
        let slope = move |parts: &Parts, _: &[Tensor]| {
            parts.f_excess()?.f_addcmul(&parts.p.f_mul(&parts.q)?, &parts.f_sides(epsilon)?)
        };
        parts.f_attach(losses, &[], slope, move |x, y| {
            let missing = binary::f_missing_of_operations(x, y)?;
            Ok(binary::f_entropy_of_operations(x, y)?.f_add(&missing.f_mul_number(epsilon)?)?)
        })
    }

    fn f_losses(&self, logits: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let logits = Logits::f_new(logits)?;
        if self.gamma == 0.0
            && self.alpha.is_none()
            && let Some(parts) = Parts::f_new(&logits, target)?
        {
            return self.f_plain_losses(parts);
        }
        let (entropy, logits) = (logits.f_entropy(target, None)?, logits.f_finite()?);
        let missing = binary::f_missing(&logits, target)?;
        let mut losses = entropy.f_add(&missing.f_mul_number(self.epsilon)?)?;
        if self.gamma > 0.0 {
            losses = losses.f_mul(&f_power(&missing, self.gamma)?)?;
        }
        let Some(alpha) = self.alpha else { return Ok(losses) };
        let share = target.f_mul_number(alpha)?.f_add(&target.f_rsub_number(1)?.f_mul_number(1.0 - alpha)?)?;
        Ok(losses.f_mul(&share)?)
    }
}

impl Loss for PolyBceWithLogitsLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite("epsilon", self.epsilon)?;
        check::finite_not_negative("gamma", self.gamma)?;
        check::share("label_smoothing", self.label_smoothing)?;
        let Some(alpha) = self.alpha else { return Ok(()) };
        check::share("alpha", alpha)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::alike(input, target)?;
        self.f_check_options()?;
        if self.gamma == 0.0 { self.f_by_engine::<0>(input, target) } else { self.f_by_engine::<ANY>(input, target) }
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let unreduced = Self { reduction: MultiLabelReduction::None, ..*self };
        self.reduction.f_parts(&unreduced.f_forward(&f_wide(input)?, &f_wide(target)?)?)
    }
}

#[derive(Clone, Copy)]
struct Formula<const GAMMA: usize>(PolyBceWithLogitsLoss);

impl<const GAMMA: usize> PointwiseOfShare<2> for Formula<GAMMA> {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (one, epsilon) = (R::of(1.0), R::of(self.0.epsilon));
        let (y, of_label) = multi_label::smooth(y, self.0.label_smoothing);
        let logit = Logit::new(x);
        let missing = logit.missing(y);
        let missing_of_x = logit.p * logit.q * (one - y - y);
        let missing_of_y = logit.q - logit.p;
        let poly = logit.entropy(y) + epsilon * missing;
        let (focus, slope) = powers::<R, GAMMA>(missing, self.0.gamma);
        let (share, share_of_y) = match self.0.alpha {
            Some(alpha) => (R::of(alpha) * y + R::of(1.0 - alpha) * (one - y), R::of(2.0 * alpha - 1.0)),
            None => (one, R::of(0.0)),
        };
        let of_x = share * (focus * (logit.slope(y) + epsilon * missing_of_x) + part(slope * missing_of_x, poly));
        let of_y = share * (part(focus, epsilon * missing_of_y - x) + part(slope * missing_of_y, poly))
            + part(share_of_y * focus, poly);
        (part(share * focus, poly), [of_x, of_label * of_y])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::BceWithLogitsLoss;
    use crate::SoftBceWithLogitsLoss;
    use crate::{Backend, with_backend};

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -2.0, 1.5, -6.0, 3.0, 0.1]).view([2, 3])
    }

    fn labels() -> Tensor {
        Tensor::from_slice(&[1.0, 0.0, 0.0, 0.0, 1.0, 1.0]).view([2, 3])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (logits(), labels());
        let new = PolyBceWithLogitsLoss::new;
        let message = |criterion: PolyBceWithLogitsLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (
                message(new(), &input, &target.view([3, 2])),
                "target has shape [3, 2], expected [2, 3], the shape of input",
            ),
            (message(new(), &input.to_kind(Kind::Bool), &target), "input has kind Bool, expected a floating kind"),
            (message(new().alpha(1.5), &input, &target), "option alpha is 1.5, expected a number in [0, 1]"),
            (message(new().gamma(-1.0), &input, &target), "option gamma is -1, expected a finite number of at least 0"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn without_epsilon_and_focus_it_is_binary_cross_entropy() {
        let loss = PolyBceWithLogitsLoss::new().epsilon(0.0).forward(&logits(), &labels());
        assert_eq!(loss, BceWithLogitsLoss::new().forward(&logits(), &labels()));
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for gamma in [0.0, 0.3, 2.0] {
            let input = Tensor::from_slice(&[1e4_f32, -1e4, 1e4, -1e4]).set_requires_grad(true);
            let criterion = PolyBceWithLogitsLoss::new().gamma(gamma).reduction(MultiLabelReduction::None);
            let loss = criterion.forward(&input, &Tensor::from_slice(&[0_i64, 1, 1, 0]));
            loss.sum(None).backward();
            assert_eq!(Vec::<f32>::try_from(&loss).unwrap(), [10002.0, 10002.0, 0.0, 0.0]);
            assert_eq!(Vec::<f32>::try_from(input.grad()).unwrap(), [1.0, -1.0, 0.0, 0.0], "γ = {gamma}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for gamma in [0.0, 0.5, 1.0, 2.0] {
            let loss = PolyBceWithLogitsLoss::new().gamma(gamma).alpha(0.3).label_smoothing(0.1);
            crate::numeric::assert_gradient(&logits(), |input| loss.forward(input, &labels()));
            crate::numeric::assert_gradient(&(labels() * 0.8 + 0.1), |target| loss.forward(&logits(), target));
        }
    }

    #[test]
    fn a_confident_prediction_keeps_its_digits() {
        let (x, y) = (Tensor::from_slice(&[-40_f32, 40.0]), Tensor::from_slice(&[0_f32, 1.0]));
        for backend in [Backend::Auto, Backend::Composite] {
            let poly = || PolyBceWithLogitsLoss::new().reduction(MultiLabelReduction::None).forward(&x, &y);
            let soft = || SoftBceWithLogitsLoss::new().reduction(MultiLabelReduction::None).forward(&x, &y);
            // ε is 2.
            for (losses, factor) in [(with_backend(backend, poly), 3.0), (with_backend(backend, soft), 1.0)] {
                let losses = Vec::<f64>::try_from(losses.to_kind(Kind::Double)).unwrap();
                let expected = factor * (-40_f64).exp();
                assert!(losses.iter().all(|loss| (loss / expected - 1.0).abs() < 1e-5), "{backend:?}: {losses:?}");
            }
        }
    }

    #[test]
    fn an_infinite_logit_has_an_infinite_slope_of_the_label() {
        for backend in [Backend::Auto, Backend::Composite] {
            let x = Tensor::from_slice(&[f64::NEG_INFINITY, 0.5, -0.5, 1.0]);
            let y = Tensor::from_slice(&[0.0, 1.0, 0.5, 0.0]).set_requires_grad(true);
            with_backend(backend, || PolyBceWithLogitsLoss::new().epsilon(0.9).forward(&x, &y).backward());
            assert_eq!(y.grad().double_value(&[0]), f64::INFINITY, "{backend:?}");
        }
    }
}
