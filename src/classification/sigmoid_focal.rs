mod formula;
#[cfg(test)]
mod tests;

use tch::{Kind, TchError, Tensor};

use super::focal::{self, Counted, FocalAlpha, FocalNormalization, Modulation};
use crate::binary::{self, Logits, Parts};
use crate::divisor::{Divisor, f_positives};
use crate::kernels::{self, NumberOperations, Pointwise, Weighted, f_pointwise};
use crate::mean_parts::f_wide;
use crate::precomputed::Precomputed;
use crate::{InvalidValues, Loss, LossError, MeanOver, MeanParts, Reduction, check, numeric};

pub(super) use formula::Formula;
use formula::{LikelihoodFormula, MarginFormula, TermsFormula};

/// The modulating factor of a target between 0 and 1. For targets of 0 and 1 all variants are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
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
/// The sigmoid focal loss, of logits: binary cross entropy with a factor that makes the loss of easy elements small.
///
/// The loss of dense detection and of segmentation with a mask per class, where the negatives are many and easy. The
/// larger γ is, the smaller is the loss of easy elements; α weighs positives against negatives. It takes logits: do not
/// apply a sigmoid before it. Where exactly one class is right, choose [`SoftmaxFocalLoss`](crate::SoftmaxFocalLoss),
/// or [`OneVsRestFocalLoss`](crate::OneVsRestFocalLoss) for class indices with independent sigmoids; without focus
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
/// are not ignored, whatever the weights are.
///
#[doc = include_str!("../../docs/book/src/gallery/sigmoid_focal.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`
/// * `target`: `[*]`, the same shape; of a floating kind, or of an integer or Boolean one
/// * `alpha` for each class: `[C]`, for an input `[C]` or `[N, C, …]`
/// * `weight`, `pos_weight`, `mask`: any shape that broadcasts to `[*]`; `[C, 1, 1]` is one per class for
///   `[N, C, H, W]`
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
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
///   is NaN; where all elements are ignored the mean is NaN with gradient 0.
/// * A target outside \[0, 1\] that is not ignored, such as that of a mask of 0 and 255, is an error.
/// * On the CPU the loss of an infinite logit is its limit, 0 or ∞, where the references' is NaN.
/// * An α outside \[0, 1\], which makes losses negative, is an error; of the references it is one in torchvision alone.
/// * Half precision is computed in `f32`.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a target outside \[0, 1\] that is not ignored, [`LossError::Option`] for an α outside \[0,
/// 1\], a γ below 0 or a reduced threshold outside (0, 1\].
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
#[doc(alias = "focal_loss")]
#[doc(alias = "RetinaNet")]
#[doc(alias = "binary_focal")]
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
    /// the probability in (0, 1\] below which the modulating factor is 1.
    reduced_threshold: Option<f64> = None,
    /// what the losses are divided by.
    normalization: FocalNormalization = FocalNormalization::None,
    /// a weight for each element, broadcast to the input's shape. It is on the device of the input, in any floating
    /// kind.
    weight: Option<Tensor> = None,
    /// a weight for the positive part of the loss, broadcast to the input's shape. It is on the device of the input, in
    /// any floating kind.
    pos_weight: Option<Tensor> = None,
    /// the target value whose elements are ignored.
    ignore_index: Option<i64> = None,
    /// which elements count: a Boolean tensor, broadcast to the input's shape, false for the elements that are ignored.
    /// It is on the device of the input.
    mask: Option<Tensor> = None,
    /// how a target outside \[0, 1\] is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
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
        check::alike(input, target)?;
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
        let mut validity = binary::f_shares(&y, self.invalid_values)?;
        let losses = self.f_losses(&x, &validity.f_replace(&y, 0.0)?, &counted)?;
        let weight = self.weight.as_ref().map(|weight| weight.f_to_kind(kind)).transpose()?;
        let losses = numeric::f_times(&losses, weight.as_ref())?;
        let loss = counted.f_reduce(&counted.f_mask(&losses)?, self.reduction, self.mean_over)?;
        validity.f_poison_own(loss, self.reduction == Reduction::None)
    }

    /// The elements that are ignored neither by their target nor by the mask.
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
        if let Some(losses) = self.f_plain_losses(&logits, x, y)? {
            return Ok(losses);
        }
        // Each logarithm is computed by itself, because to compute one from the other loses digits.
        let (log_p, log_q) = (x.f_log_sigmoid()?, x.f_neg()?.f_log_sigmoid()?);
        // The modulating factors are made of finite logits.
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

    /// The same of finite logits, where the factor is a power of 1 − pₜ that has two derivatives.
    fn f_plain_losses(&self, logits: &Logits, x: &Tensor, y: &Tensor) -> Result<Option<Tensor>, LossError> {
        let plain = matches!(self.soft_targets, FocalSoftTargets::Expectation | FocalSoftTargets::Margin)
            && self.normalization == FocalNormalization::None
            && self.pos_weight.is_none()
            && !logits.are_infinite();
        let (FocalAlpha::None | FocalAlpha::Balance(_), Some(gamma), true) =
            (&self.alpha, self.modulation().plain_power(), plain)
        else {
            return Ok(None);
        };
        let of_margin = self.soft_targets == FocalSoftTargets::Margin;
        if gamma > 0.0
            && let Some(parts) = Parts::f_new(logits, y)?
        {
            return f_with_formula(parts, [x, y], of_margin, gamma, self.alpha.number()).map(Some);
        }
        let mut losses = logits.f_entropy(y, None)?;
        if gamma > 0.0 {
            let rest = match self.soft_targets {
                FocalSoftTargets::Margin => binary::f_sigmoid(&f_margin(x, y)?)?,
                _ => binary::f_missing(x, y)?,
            };
            losses = losses.f_mul(&numeric::f_power(&rest, gamma)?)?;
        }
        Ok(Some(match self.alpha.number() {
            Some(alpha) => losses.f_mul(&f_balance(y, alpha)?)?,
            None => losses,
        }))
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

    /// Whether the engine takes these options and kinds. It would round a target of a wider kind than the input's,
    /// which tensor operations do not.
    fn is_fused(&self, input: &Tensor, target: &Tensor) -> Result<bool, LossError> {
        let (kind, target_kind) = (input.f_kind()?, target.f_kind()?);
        let narrowed = kind != numeric::wide_kind(input)? && target.is_floating_point() && target_kind != kind;
        let plain = self.normalization == FocalNormalization::None
            && !matches!(self.alpha, FocalAlpha::Classes(_))
            && self.reduced_threshold.is_none()
            && self.pos_weight.is_none();
        Ok(plain && !narrowed && kernels::takes_partial(input, self.invalid_values))
    }

    /// The loss by the engine, where it takes the arguments. `SQUARE` is whether γ is 2.
    fn f_by_engine<const SQUARE: bool>(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let (gamma, alpha) = (self.gamma, self.alpha.number());
        match self.soft_targets {
            FocalSoftTargets::Expectation => self.f_fused(Formula::<SQUARE> { gamma, alpha }, input, target),
            FocalSoftTargets::Terms => self.f_fused(TermsFormula::<SQUARE> { gamma, alpha }, input, target),
            FocalSoftTargets::Margin => self.f_fused(MarginFormula::<SQUARE> { gamma, alpha }, input, target),
            FocalSoftTargets::Likelihood => self.f_fused(LikelihoodFormula::<SQUARE> { gamma, alpha }, input, target),
        }
    }

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

    /// The loss by the engine where elements are ignored: those have no loss there.
    fn f_fused_counted(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let counted = self.f_counted(&numeric::f_reals(("target", target), numeric::wide_kind(input)?)?)?;
        let (x, y) = (counted.f_without_losses(input)?, counted.f_mask(target)?);
        let weight = self.weight.as_ref().map(|weight| counted.f_mask(&weight.f_expand_as(input)?)).transpose()?;
        let bare = Self { ignore_index: None, mask: None, weight, ..self.clone() };
        let loss = counted.f_reduce_by(self.reduction, self.mean_over, &x, |x, reduction| {
            Self { reduction, ..bare }.f_forward(x, &y)
        })?;
        Ok(loss.f_to_kind(numeric::result_kind(input)?)?)
    }

    fn f_composite(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let wide = input.f_to_kind(numeric::wide_kind(input)?)?;
        Ok(self.f_precomputed(&wide, target, Self::f_compute)?.f_to_kind(numeric::result_kind(input)?)?)
    }

    /// The share of the positive term with its weight.
    fn f_positive(&self, term: &Tensor) -> Result<Tensor, LossError> {
        let weight = self.pos_weight.as_ref().map(|weight| weight.f_to_kind(term.f_kind()?)).transpose()?;
        numeric::f_times(term, weight.as_ref())
    }

    fn modulation(&self) -> Modulation {
        Modulation { gamma: self.gamma, reduced_threshold: self.reduced_threshold }
    }

    /// The sum of the losses, in single precision at least.
    fn f_sum(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let sum = Self { reduction: Reduction::Sum, ..self.clone() };
        sum.f_forward(&f_wide(input)?, &f_wide(target)?)
    }

    /// The divisor over the elements that are not ignored, before the bound of at least 1.
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
            // A sum may be too large for half precision.
            let sum = self.f_sum(input, target)?;
            let parts = self.divisor.f_parts(sum, self.f_count(input, target)?)?;
            return Ok(parts.f_value()?.f_to_kind(numeric::result_kind(input)?)?);
        }
        if !self.is_fused(input, target)? {
            return self.f_composite(input, target);
        }
        if self.ignore_index.is_some() || self.mask.is_some() {
            return self.f_fused_counted(input, target);
        }
        let target = numeric::f_reals(("target", target), input.f_kind()?)?;
        match self.gamma == 2.0 {
            true => self.f_by_engine::<true>(input, &target),
            false => self.f_by_engine::<false>(input, &target),
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

/// αₜ of the targets.
fn f_balance(y: &Tensor, alpha: f64) -> Result<Tensor, TchError> {
    y.f_mul_number(2.0 * alpha - 1.0)?.f_add_number(1.0 - alpha)
}

/// σ(m) and σ(−m) of the margin m = (1 − 2 y) x.
fn f_of_margin(x: &Tensor, y: &Tensor) -> Result<Vec<Tensor>, TchError> {
    let margin = f_margin(&x.f_detach()?, &y.f_detach()?)?;
    Ok(vec![margin.f_sigmoid()?, margin.f_neg()?.f_sigmoid()?])
}

fn f_margin(x: &Tensor, y: &Tensor) -> Result<Tensor, TchError> {
    x.f_mul(&y.f_mul_number(-2.0)?.f_add_number(1)?)
}

/// The losses with their derivative as a formula: with m = 1 − pₜ and the entropy H, that of m^γ H is
/// m^(γ − 1) (m H′ + γ H m′). `of_margin` is whether m is a sigmoid of the margin.
fn f_with_formula(
    parts: Parts,
    [x, y]: [&Tensor; 2],
    of_margin: bool,
    gamma: f64,
    alpha: Option<f64>,
) -> Result<Tensor, LossError> {
    let factor = if of_margin { f_of_margin(x, y)? } else { vec![parts.f_missing()?] };
    let mut losses = factor[0].f_pow_number(gamma)?.f_mul_(&parts.entropy)?;
    let balance = alpha.map(|alpha| f_balance(&y.f_detach()?, alpha)).transpose()?;
    if let Some(balance) = &balance {
        let _ = losses.f_mul_(balance)?;
    }
    let slope = move |parts: &Parts, factor: &[Tensor]| {
        let missing = &factor[0];
        let mut of_missing = if of_margin { missing.f_mul(&factor[1])? } else { parts.p.f_mul(&parts.q)? };
        let _ = of_missing.f_mul_(&parts.entropy)?;
        let mut slope = parts.f_excess()?.f_mul_(missing)?.f_addcmul(&of_missing, &parts.f_sides(gamma)?)?;
        if gamma == 2.0 {
            let _ = slope.f_mul_(missing)?;
        } else if gamma != 1.0 {
            let _ = slope.f_mul_(&missing.f_pow_number(gamma - 1.0)?)?;
        }
        balance.as_ref().map_or_else(|| Ok(slope.shallow_clone()), |balance| slope.f_mul(balance))
    };
    parts.f_attach(losses, &factor.iter().collect::<Vec<_>>(), slope, move |x, y| {
        let missing = match of_margin {
            true => binary::f_sigmoid(&f_margin(x, y)?)?,
            false => binary::f_missing_of_operations(x, y)?,
        };
        let losses = binary::f_entropy_of_operations(x, y)?.f_mul(&numeric::f_power(&missing, gamma)?)?;
        Ok(match alpha {
            Some(alpha) => losses.f_mul(&f_balance(y, alpha)?)?,
            None => losses,
        })
    })
}

crate::precomputed::precomputed!(SigmoidFocalLoss);
