use tch::{Kind, Tensor};

use super::focal::{self, Counted, FocalAlpha, FocalNormalization, Modulation};
use crate::binary::{self, Logits};
use crate::detection::{Divisor, f_positives};
use crate::kernels::{
    self, Logit, NumberOperations, Pointwise, Real, Weighted, choose, f_pointwise, part, share_or_nan, sigmoids,
};
use crate::mean_parts::f_wide;
use crate::precomputed::Precomputed;
use crate::{InvalidValues, Loss, LossError, MeanOver, MeanParts, Reduction, check, numeric};

/// What the modulating factor of a target between 0 and 1 is. For targets of 0 and 1 all are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum FocalSoftTargets {
    /// (1 − pₜ)^γ with the expected probability pₜ = p y + (1 − p)(1 − y): torchvision's. The default.
    #[default]
    Expectation,
    /// The positive and the negative term have a factor each, (1 − p)^γ and p^γ: kornia's.
    Terms,
    /// σ(−(2y − 1) x)^γ, from the logit scaled by how sure the target is: MONAI's.
    Margin,
    /// (1 − pₜ)^γ with the likelihood pₜ = p^y (1 − p)^(1 − y), the exponential of minus the cross entropy:
    /// segmentation-models-pytorch's.
    Likelihood,
}

crate::options::words!(FocalSoftTargets);

crate::options::options! {
/// The focal loss of logits: binary cross entropy in which what is easy counts little.
///
/// The loss of dense detection and of segmentation with a mask per class, where the negatives are many and easy. γ says
/// how little the easy elements count, α how much the positives do against the negatives. It takes logits: do not apply
/// a sigmoid before it. Where exactly one class is right, choose [`SoftmaxFocalLoss`](crate::SoftmaxFocalLoss), or
/// [`OneVsRestFocalLoss`](crate::OneVsRestFocalLoss) for class indices with independent sigmoids; without focus
/// [`BceWithLogitsLoss`](crate::BceWithLogitsLoss).
///
/// # Formula
///
/// ℓᵢ = −wᵢ αₜ (1 − pₜ)^γ (vᵢ yᵢ log pᵢ + (1 − yᵢ) log(1 − pᵢ))
///
/// where p = σ(x) of the input x, y is the target, pₜ = p y + (1 − p)(1 − y) the probability of the target,
/// αₜ = α y + (1 − α)(1 − y), w the weight and v the positive weight; αₜ, w and v are 1 where there is none. For y
/// other than 0 and 1 [`FocalSoftTargets`] has other factors; with `Terms`
///
/// ℓᵢ = −wᵢ (α (1 − p)^γ vᵢ yᵢ log pᵢ + (1 − α) p^γ (1 − yᵢ) log(1 − pᵢ))
///
/// With a reduced threshold t the factor is ((1 − pₜ) / t)^γ, and 1 where pₜ < t. The mean is over the elements that
/// are not ignored, whatever the weights.
///
/// # Shapes
///
/// * `input`: any, `[*]`
/// * `target`: that of `input`; of a floating kind, or of an integer or Boolean one
/// * `alpha` for each class: `[C]`, for an input `[C]` or `[N, C, …]`
/// * `weight`, `pos_weight`, `mask`: any that broadcasts to that of `input`; `[C, 1, 1]` is one per class for
///   `[N, C, H, W]`
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// Over nothing the mean is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torchvision.ops.sigmoid_focal_loss` of torchvision 0.28, `kornia.losses.BinaryFocalLossWithLogits` and
/// `binary_focal_loss_with_logits` of kornia 0.9, `monai.losses.FocalLoss` of MONAI 1.6 and
/// `segmentation_models_pytorch.losses.FocalLoss`, binary and multilabel, of segmentation-models-pytorch 0.6.
/// Lin et al., *Focal Loss for Dense Object Detection*, 2017. The reduced threshold: Sergievskiy and Ponamarev,
/// *Reduced Focal Loss*, 2019; the normalisation: arXiv 1909.07829.
///
/// # Differences from the references
///
/// * The defaults are torchvision's, α = 0.25 and γ = 2, but for the reduction, which is the mean as everywhere in this
///   crate; torchvision's and kornia's is none. MONAI and segmentation-models-pytorch have no α by default:
///   [`FocalAlpha::None`], torchvision's −1.
/// * MONAI's α of each class is for the positives alone: that is `pos_weight`.
/// * Ignored elements have no part in the mean; in kornia's they count, which is [`MeanOver::All`]. MONAI divides by
///   the number of pixels that are not ignored, and its sum is that of the means over each image.
/// * The class weights of segmentation-models-pytorch divide by their sum: pass w · C / Σ w.
/// * The gradient is finite for 0 < γ < 1 and saturated logits, where torchvision's and segmentation-models-pytorch's
///   is NaN; a mean over nothing but ignored elements is NaN with gradient 0.
/// * A target outside \[0, 1\] that is not ignored, such as that of a mask of 0 and 255, is an error.
/// * On the CPU an infinite logit has its limit as its loss, 0 or infinite, where the references' is NaN.
/// * An α outside \[0, 1\], which makes losses negative, is an error; of the references it is one in torchvision alone.
/// * Half precision is computed in `f32`.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a target outside \[0, 1\] that is not ignored, [`LossError::Option`] for an α outside \[0, 1\], a
/// γ below 0 or a reduced threshold outside (0, 1\].
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, Reduction, SigmoidFocalLoss};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64, 0]);
///
/// let loss = SigmoidFocalLoss::new().alpha(0.75).reduction(Reduction::Sum).f_forward(&logits, &target)?;
/// loss.f_backward()?;
///
/// // 0.75 of the positive and 0.25 of the negative, each (1 − ½)² · log 2.
/// assert!((f64::try_from(&loss)? - 0.25 * 2_f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "sigmoid_focal_loss")]
#[doc(alias = "BinaryFocalLossWithLogits")]
#[doc(alias = "binary_focal_loss_with_logits")]
#[doc(alias = "FocalLoss")]
pub struct SigmoidFocalLoss: "sigmoid_focal" | "BinaryFocalLossWithLogits";

/// The focal loss with α = 0.25 and γ = 2.
new {
    /// the balance of positives and negatives: a number, a tensor of one for each class, or [`FocalAlpha::None`]. A
    /// tensor is on the device of the input, in any floating kind.
    alpha: FocalAlpha = FocalAlpha::Balance(0.25) => into,
    /// the power γ of the modulating factor, at least 0; 0 is binary cross entropy.
    gamma: f64 = 2.0,
    /// the factor of targets between 0 and 1.
    soft_targets: FocalSoftTargets = FocalSoftTargets::Expectation,
    /// the probability in (0, 1\] below which an element counts in full.
    reduced_threshold: Option<f64> = None,
    /// by what the losses are divided.
    normalization: FocalNormalization = FocalNormalization::None,
    /// a weight for each element, broadcast to the input's shape. It is on the device of the input, in any floating
    /// kind.
    weight: Option<Tensor> = None,
    /// a weight for the positive part of the loss, broadcast to the input's shape. It is on the device of the input, in
    /// any floating kind.
    pos_weight: Option<Tensor> = None,
    /// the target value whose elements count nothing.
    ignore_index: Option<i64> = None,
    /// which elements count: a Boolean tensor, broadcast to the input's shape, false where an element counts nothing.
    /// It is on the device of the input.
    mask: Option<Tensor> = None,
    /// what a target outside \[0, 1\] does.
    invalid_values: InvalidValues = InvalidValues::Error,
    /// what the mean divides by.
    mean_over: MeanOver = MeanOver::Counted,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
    /// what the mean divides by in place of [`mean_over`](Self::mean_over), such as the number of positives of a dense
    /// detector, [`Divisor::Positives`].
    divisor: Divisor = Divisor::Losses => into,
}
}

impl SigmoidFocalLoss {
    fn f_check(&self, input: &Tensor, target: &Tensor) -> Result<(), LossError> {
        check::devices(&[("input", input), ("target", target)])?;
        check::floating(("input", input))?;
        check::same_shape(("target", target), ("input", input))?;
        self.f_check_options()?;
        self.alpha.f_check(input)?;
        if self.normalization == FocalNormalization::PerClass {
            check::class_dim(input)?;
        }
        for (name, weight) in [("weight", &self.weight), ("pos_weight", &self.pos_weight)] {
            let Some(weight) = weight else { continue };
            check::devices(&[("input", input), (name, weight)])?;
            check::floating((name, weight))?;
            check::broadcasts_to((name, weight), ("input", input))?;
        }
        let Some(mask) = &self.mask else { return Ok(()) };
        check::devices(&[("input", input), ("mask", mask)])?;
        check::broadcasts_to(("mask", mask), ("input", input))?;
        match mask.f_kind()? {
            Kind::Bool => Ok(()),
            actual => Err(LossError::Kind { argument: "mask", expected: "Bool".into(), actual }),
        }
    }

    /// The reduced loss of arguments that were checked.
    fn f_compute(&self, x: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let kind = x.f_kind()?;
        let y = numeric::f_reals(("target", target), kind)?;
        let counted = self.f_counted(&y)?;
        let (x, y) = (counted.f_mask(x)?, counted.f_mask(&y)?);
        let validity = binary::f_shares(&y, self.invalid_values)?;
        let losses = self.f_losses(&x, &validity.f_replace(&y, 0.0)?, &counted)?;
        let losses = match &self.weight {
            Some(weight) => losses.f_mul(&weight.f_to_kind(kind)?)?,
            None => losses,
        };
        let loss = counted.f_reduce(&counted.f_mask(&losses)?, self.reduction, self.mean_over)?;
        validity.f_poison(&loss, self.reduction == Reduction::None)
    }

    /// The elements that neither the target nor the mask leaves out.
    fn f_counted(&self, y: &Tensor) -> Result<Counted, LossError> {
        let marked = self.ignore_index.map(|ignored| y.f_eq_number(ignored)).transpose()?;
        let masked = self.mask.as_ref().map(Tensor::f_logical_not).transpose()?;
        let ignored = match (marked, masked) {
            (Some(marked), Some(masked)) => Some(marked.f_logical_or(&masked)?),
            (marked, masked) => marked.or(masked),
        };
        Ok(Counted { ignored })
    }

    /// The losses, without the weight.
    fn f_losses(&self, x: &Tensor, y: &Tensor, counted: &Counted) -> Result<Tensor, LossError> {
        let logits = Logits::f_new(x)?;
        // Two logarithms, because one from the other would cancel.
        let (log_p, log_q) = (x.f_log_sigmoid()?, x.f_neg()?.f_log_sigmoid()?);
        // What the factors are made of is finite.
        let x = logits.f_finite()?;
        let finite = match logits.are_infinite() {
            true => [x.f_log_sigmoid()?, x.f_neg()?.f_log_sigmoid()?],
            false => [log_p.shallow_clone(), log_q.shallow_clone()],
        };
        if self.soft_targets == FocalSoftTargets::Terms {
            return self.f_terms(y, [log_p, log_q], finite, &logits, counted);
        }
        let z = y.f_rsub_number(1)?;
        let negative = logits.f_part(&z, &log_q)?;
        let entropy = logits.f_part(&self.f_positive(y)?, &log_p)?.f_add(&negative)?.f_neg()?;
        let balanced = match &self.alpha {
            FocalAlpha::None => entropy,
            alpha => {
                let (positive, negative) = alpha.f_split(y, &z)?;
                logits.f_part(&positive.f_add(&negative)?, &entropy)?
            }
        };
        let [log_p, log_q] = finite;
        let log_rest = || match self.soft_targets {
            FocalSoftTargets::Margin => Ok(x.f_mul(&z.f_sub(y)?)?.f_log_sigmoid()?),
            FocalSoftTargets::Likelihood => focal::f_log_rest(&y.f_mul(&log_p)?.f_add(&z.f_mul(&log_q)?)?),
            _ => focal::f_log(&z.f_mul(&log_p.f_exp()?)?.f_add(&y.f_mul(&log_q.f_exp()?)?)?),
        };
        if self.normalization == FocalNormalization::None {
            return self.modulation().f_apply(&balanced, log_rest);
        }
        let factor = self.modulation().f_factor(&log_rest()?)?;
        counted.f_normalize(&balanced.f_mul(&factor)?, &factor, self.normalization)
    }

    /// The losses in which the positive and the negative term have a factor each.
    fn f_terms(
        &self,
        y: &Tensor,
        [log_p, log_q]: [Tensor; 2],
        finite: [Tensor; 2],
        logits: &Logits,
        counted: &Counted,
    ) -> Result<Tensor, LossError> {
        let z = y.f_rsub_number(1)?;
        let (positive, negative) = self.alpha.f_split(y, &z)?;
        let positive = logits.f_part(&self.f_positive(&positive)?, &log_p)?;
        let negative = logits.f_part(&negative, &log_q)?;
        let [log_p, log_q] = &finite;
        let positive = self.modulation().f_apply(&positive, || Ok(log_q.shallow_clone()))?;
        let negative = self.modulation().f_apply(&negative, || Ok(log_p.shallow_clone()))?;
        let losses = positive.f_add(&negative)?.f_neg()?;
        if self.normalization == FocalNormalization::None {
            return Ok(losses);
        }
        let factor =
            y.f_mul(&self.modulation().f_factor(log_q)?)?.f_add(&z.f_mul(&self.modulation().f_factor(log_p)?)?)?;
        counted.f_normalize(&losses, &factor, self.normalization)
    }

    /// Whether the engine takes these options and kinds. A wider target keeps its digits in the composite.
    fn is_fused(&self, input: &Tensor, target: &Tensor) -> Result<bool, LossError> {
        let (kind, target_kind) = (input.f_kind()?, target.f_kind()?);
        let narrowed = kind != numeric::wide_kind(input)? && target.is_floating_point() && target_kind != kind;
        let plain = matches!(self.soft_targets, FocalSoftTargets::Expectation | FocalSoftTargets::Margin)
            && self.normalization == FocalNormalization::None
            && !matches!(self.alpha, FocalAlpha::Classes(_))
            && self.reduced_threshold.is_none()
            && self.pos_weight.is_none()
            && self.ignore_index.is_none()
            && self.mask.is_none()
            && self.invalid_values == InvalidValues::Error;
        Ok(plain && !narrowed && kernels::takes(input))
    }

    /// The loss by the engine, where it takes the arguments.
    fn f_fused<P: Pointwise<2>>(&self, formula: P, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let own = self.clone();
        let f_composite = move |input: &Tensor, target: &Tensor, weight: Option<&Tensor>| {
            let weight = weight.map(Tensor::shallow_clone);
            Self { weight, ..own.clone() }.f_composite(input, target)
        };
        let Some(weight) = &self.weight else {
            return f_pointwise(formula, [input, target], self.reduction, move |[x, y]| f_composite(x, y, None));
        };
        let arguments = [input, target, &weight.f_expand_as(input)?];
        f_pointwise(Weighted(formula), arguments, self.reduction, move |[x, y, weight]| f_composite(x, y, Some(weight)))
    }

    fn f_composite(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let wide = input.f_to_kind(numeric::wide_kind(input)?)?;
        Ok(self.f_precomputed(&wide, target, Self::f_compute)?.f_to_kind(input.f_kind()?)?)
    }

    /// The share of the positive term with its weight.
    fn f_positive(&self, term: &Tensor) -> Result<Tensor, LossError> {
        Ok(match &self.pos_weight {
            Some(weight) => term.f_mul(&weight.f_to_kind(term.f_kind()?)?)?,
            None => term.shallow_clone(),
        })
    }

    fn modulation(&self) -> Modulation {
        Modulation { gamma: self.gamma, reduced_threshold: self.reduced_threshold }
    }
}

impl Loss for SigmoidFocalLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        self.modulation().check()?;
        self.divisor.check()?;
        self.alpha.check_number()
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.f_check(input, target)?;
        if self.divisor != Divisor::Losses && self.reduction == Reduction::Mean {
            // A sum may be beyond half precision.
            let sum = self.f_sum(input, target)?;
            let parts = self.divisor.f_parts(sum, self.f_count(input, target)?)?;
            return Ok(parts.f_value()?.f_to_kind(input.f_kind()?)?);
        }
        if !self.is_fused(input, target)? {
            return self.f_composite(input, target);
        }
        let target = numeric::f_reals(("target", target), input.f_kind()?)?;
        let (gamma, alpha) = (self.gamma, self.alpha.number());
        match (self.soft_targets == FocalSoftTargets::Margin, gamma == 2.0) {
            (false, true) => self.f_fused(Formula::<true> { gamma, alpha }, input, &target),
            (false, false) => self.f_fused(Formula::<false> { gamma, alpha }, input, &target),
            (true, true) => self.f_fused(MarginFormula::<true> { gamma, alpha }, input, &target),
            (true, false) => self.f_fused(MarginFormula::<false> { gamma, alpha }, input, &target),
        }
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        focal::check_mean::<Self>(self.normalization)?;
        let numerator = self.f_sum(input, target)?;
        if self.divisor != Divisor::Losses {
            return self.divisor.f_parts(numerator, self.f_count(input, target)?);
        }
        self.f_counted(&target.f_to_kind(Kind::Double)?)?.f_parts(numerator, input, self.mean_over)
    }
}

impl SigmoidFocalLoss {
    /// The sum of the losses, in single precision at least.
    fn f_sum(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let sum = Self { reduction: Reduction::Sum, ..self.clone() };
        sum.f_forward(&f_wide(input)?, &f_wide(target)?)
    }

    /// The divisor, without its bound, over the elements that count.
    fn f_count(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let labels = target.f_detach()?.f_to_kind(Kind::Double)?;
        let counted = self.f_counted(&labels)?;
        let ones = Tensor::f_ones(input.size(), (Kind::Double, input.device()))?;
        let weight = match (&self.weight, &counted.ignored) {
            (None, None) => None,
            (Some(weight), _) => Some(counted.f_mask(&weight.f_detach()?.f_to_kind(Kind::Double)?.f_mul(&ones)?)?),
            (None, Some(_)) => Some(counted.f_mask(&ones)?),
        };
        let positives = || f_positives(&counted.f_mask(&labels)?);
        self.divisor.f_count(&input.size(), weight.as_ref(), input, positives)
    }
}

impl Precomputed for SigmoidFocalLoss {
    fn reduction(&self) -> Reduction {
        self.reduction
    }
}

/// The loss without options; for γ = 2 (`SQUARE`) without a power.
#[derive(Clone, Copy)]
pub(super) struct Formula<const SQUARE: bool> {
    pub(super) gamma: f64,
    pub(super) alpha: Option<f64>,
}

impl<const SQUARE: bool> Pointwise<2> for Formula<SQUARE> {
    const PARTIAL: bool = true;

    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (zero, one, two, gamma) = (R::of(0.0), R::of(1.0), R::of(2.0), R::of(self.gamma));
        let y = share_or_nan(y, 1.0);
        let logit = Logit::new(x);
        let (entropy, rest) = (logit.entropy(y), logit.missing(y));
        let rest_of_x = logit.p * logit.q * (one - two * y);
        let (factor, of_x, slope) = if SQUARE {
            let slope = two * rest;
            (rest * rest, part(slope * rest_of_x, entropy), slope)
        } else {
            let factor = rest.power(gamma);
            // A power below 1 has a vertical tangent at 0, where the sigmoid is flat: their product has none.
            let steepness = gamma * choose(rest.equal(zero), zero, rest_of_x / rest);
            let vertical = rest.less(R::smallest());
            (factor, part(factor * steepness, entropy), choose(vertical, zero, gamma * factor / rest))
        };
        let (balance, of_balance) = balance(self.alpha, y);
        let of_x = balance * (of_x + factor * logit.slope(y));
        let of_rest = part(slope * (logit.q - logit.p), entropy);
        let of_y = part(of_balance * factor, entropy) + balance * (of_rest - part(factor, x));
        (part(balance * factor, entropy), [of_x, of_y])
    }
}

/// How much a target counts, and the derivative.
#[inline(always)]
fn balance<R: Real>(alpha: Option<f64>, y: R) -> (R, R) {
    match alpha {
        Some(alpha) => (R::of(alpha) * y + R::of(1.0 - alpha) * (R::of(1.0) - y), R::of(2.0 * alpha - 1.0)),
        None => (R::of(1.0), R::of(0.0)),
    }
}

/// The loss that is modulated by the sigmoid of the margin x (1 − 2y).
#[derive(Clone, Copy)]
struct MarginFormula<const SQUARE: bool> {
    gamma: f64,
    alpha: Option<f64>,
}

impl<const SQUARE: bool> Pointwise<2> for MarginFormula<SQUARE> {
    const PARTIAL: bool = true;

    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (one, two, gamma) = (R::of(1.0), R::of(2.0), R::of(self.gamma));
        let y = share_or_nan(y, 1.0);
        let sign = one - two * y;
        let logit = Logit::new(x);
        let entropy = logit.entropy(y);
        let (rest, own, _) = sigmoids(part(sign, x));
        let factor = if SQUARE { rest * rest } else { rest.power(gamma) };
        let slope = gamma * factor * own;
        let (balance, of_balance) = balance(self.alpha, y);
        let of_x = balance * (part(slope * sign, entropy) + factor * logit.slope(y));
        let of_margin = balance * (two * part(slope, entropy) + factor);
        (part(balance * factor, entropy), [of_x, part(of_balance * factor, entropy) - part(of_margin, x)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, with_backend};

    const SOFT_TARGETS: [FocalSoftTargets; 4] = [
        FocalSoftTargets::Expectation,
        FocalSoftTargets::Terms,
        FocalSoftTargets::Margin,
        FocalSoftTargets::Likelihood,
    ];

    fn none() -> SigmoidFocalLoss {
        SigmoidFocalLoss::new().reduction(Reduction::None)
    }

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.view(-1).to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn a_soft_target_keeps_its_digits_beside_a_half_precision_input() {
        let (input, target) = (Tensor::from_slice(&[0.5_f32, -2.0, 3.0]), Tensor::from_slice(&[0.3_f32, 0.101, 0.7]));
        for kind in [Kind::Half, Kind::BFloat16] {
            for backend in [Backend::Auto, Backend::Composite] {
                let narrow = input.to_kind(kind).set_requires_grad(true);
                let loss = with_backend(backend, || none().forward(&narrow, &target));
                loss.sum(Kind::Float).backward();
                let wide = input.detach().copy().set_requires_grad(true);
                let expected = with_backend(Backend::Composite, || none().forward(&wide, &target));
                expected.sum(Kind::Float).backward();
                assert_eq!(loss, expected.to_kind(kind), "{kind:?}, {backend:?}");
                assert_eq!(narrow.grad(), wide.grad().to_kind(kind), "{kind:?}, {backend:?}");
            }
        }
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (Tensor::from_slice(&[0.0, 1.0]), Tensor::from_slice(&[1.0, 0.0]));
        let three = || Tensor::from_slice(&[1.0, 2.0, 3.0]);
        let new = SigmoidFocalLoss::new;
        let message = |criterion: SigmoidFocalLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (message(new(), &input, &target.view([2, 1])), "target has shape [2, 1], expected [2], the shape of input"),
            (message(new(), &input.to_kind(Kind::Int64), &target), "input has kind Int64, expected a floating kind"),
            (
                message(new(), &input, &target.to_kind(Kind::ComplexDouble)),
                "target has kind ComplexDouble, expected a kind of real numbers",
            ),
            (
                message(new().alpha(1.5), &input, &target),
                "option alpha is 1.5, expected a number in [0, 1], one for each class, or FocalAlpha::None",
            ),
            (message(new().alpha(three()), &input, &target), "alpha has shape [3], expected [2], one value per class"),
            (message(new().gamma(-1.0), &input, &target), "option gamma is -1, expected a finite number of at least 0"),
            (
                message(new().gamma(f64::NAN), &input, &target),
                "option gamma is NaN, expected a finite number of at least 0",
            ),
            (
                message(new().reduced_threshold(0.0), &input, &target),
                "option reduced_threshold is 0, expected a number in (0, 1]",
            ),
            (
                message(new().weight(three()), &input, &target),
                "weight has shape [3], expected a shape that broadcasts to [2], that of input",
            ),
            (
                message(new().pos_weight(three()), &input, &target),
                "pos_weight has shape [3], expected a shape that broadcasts to [2], that of input",
            ),
            (message(new().mask(three().gt(0.0)), &input, &target), {
                "mask has shape [3], expected a shape that broadcasts to [2], that of input"
            }),
            (message(new().mask(input.shallow_clone()), &input, &target), "mask has kind Double, expected Bool"),
            (
                message(new().normalization(FocalNormalization::PerClass), &input.sum(None), &target.sum(None)),
                "input has shape [], expected [C], [N, C] or [N, C, d1, ...]",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for (kind, gamma) in
            [Kind::Double, Kind::Float].into_iter().flat_map(|kind| [0.0, 0.1, 0.5, 2.0].map(|g| (kind, g)))
        {
            for soft_targets in SOFT_TARGETS {
                let logits = [1e4, -1e4, 1e4, -1e4, 100.0, -100.0, 1e4];
                let input = Tensor::from_slice(&logits).to_kind(kind).set_requires_grad(true);
                let target =
                    Tensor::from_slice(&[0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.5]).to_kind(kind).set_requires_grad(true);
                let loss = none().gamma(gamma).alpha(0.5).soft_targets(soft_targets).forward(&input, &target);
                loss.sum(None).backward();
                let [loss, slope, target_slope] = [&loss, &input.grad(), &target.grad()].map(numbers);
                let all = [&loss[..], &slope, &target_slope].concat();
                assert!(all.iter().all(|value| value.is_finite()), "{soft_targets:?}, {gamma}: {all:?}");
                assert_eq!((&loss[..4], &slope[..4]), (&[5e3, 5e3, 0.0, 0.0][..], &[0.5, -0.5, 0.0, 0.0][..]));
            }
        }
    }

    #[test]
    fn soft_targets_matter_only_between_0_and_1() {
        let input = Tensor::from_slice(&[-2.0, -0.5, 0.5, 2.0]);
        let hard = Tensor::from_slice(&[0.0, 1.0, 0.0, 1.0]);
        let expected = none().forward(&input, &hard);
        for soft_targets in SOFT_TARGETS {
            let loss = none().soft_targets(soft_targets).forward(&input, &hard);
            assert!(loss.allclose(&expected, 1e-12, 0.0, false), "{soft_targets:?}");
        }
        for kind in [Kind::Bool, Kind::Uint8, Kind::Int64, Kind::Float] {
            assert_eq!(none().forward(&input, &hard.to_kind(kind)), expected, "{kind:?}");
        }
    }

    #[test]
    fn what_is_ignored_leaves_value_and_gradient_alone() {
        let input = Tensor::from_slice(&[0.0, f64::NAN, 0.0, f64::INFINITY]).set_requires_grad(true);
        let target = Tensor::from_slice(&[1_i64, 255, 0, 1]);
        let mask = Tensor::from_slice(&[true, true, true, false]);
        let criterion = SigmoidFocalLoss::new().alpha(0.5).gamma(1.0).ignore_index(255).mask(mask);
        let loss = criterion.forward(&input, &target);
        loss.backward();
        assert!((loss.double_value(&[]) - 0.25 * 2_f64.ln()).abs() < 1e-15);
        let slope = (1.0 + 2_f64.ln()) / 16.0;
        for (actual, expected) in numbers(&input.grad()).into_iter().zip([-slope, 0.0, slope, 0.0]) {
            assert!((actual - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn a_mean_over_nothing_is_nan_with_gradient_0() {
        let input = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
        let loss = SigmoidFocalLoss::new().ignore_index(-1).forward(&input, &Tensor::from_slice(&[-1_i64, -1]));
        loss.backward();
        assert!(loss.double_value(&[]).is_nan());
        assert_eq!(numbers(&input.grad()), [0.0, 0.0]);
    }

    #[test]
    fn half_precision_is_computed_in_single() {
        let target = Tensor::from_slice(&[0_i64, 1, 1, 0]);
        for kind in [Kind::Half, Kind::BFloat16] {
            let input = Tensor::from_slice(&[8.0, 8.0, -8.0, -8.0]).to_kind(kind);
            let expected = none().forward(&input.to_kind(Kind::Float), &target).to_kind(kind);
            assert_eq!(none().forward(&input, &target), expected);
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let input = Tensor::from_slice(&[-3.0, -1.0, 0.5, 2.0, 0.1, -0.2]).view([2, 3]);
        let target = Tensor::from_slice(&[0.9, 0.2, 0.5, 0.3, 0.7, 0.1]).view([2, 3]);
        for soft_targets in SOFT_TARGETS {
            let criterion = SigmoidFocalLoss::new()
                .alpha(Tensor::from_slice(&[0.2, 0.5, 0.9]))
                .gamma(0.5)
                .soft_targets(soft_targets)
                .normalization(FocalNormalization::PerClass)
                .pos_weight(Tensor::from_slice(&[1.0, 2.0, 0.5]));
            numeric::assert_gradient(&input, |input| criterion.forward(input, &target));
            numeric::assert_gradient(&target, |target| criterion.forward(&input, target));
        }
    }
}
