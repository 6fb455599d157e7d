mod formula;
#[cfg(test)]
mod tests;

use tch::{Device, Kind, Tensor};

use super::focal::{self, FocalAlpha, Modulation};
use crate::autograd::{Function, f_gradients_of};
use crate::check::{self, ClassIndices};
use crate::kernels::{self, Note, NumberOperations, RowReduction, Rows, f_softmax};
use crate::loss::composite;
use crate::mean_parts::{self, f_wide, f_wide_option};
use crate::numeric::SMALLEST_BASE;
use crate::precomputed::Precomputed;
use crate::{InvalidValues, Loss, LossError, MeanOver, MeanParts, Reduction, numeric};

use formula::{Formula, Power, Square};

crate::options::options! {
/// The softmax focal loss: cross entropy with a factor that makes the loss of easy targets small.
///
/// The loss of classification and segmentation with classes of very different size. The larger γ is, the smaller is the
/// loss of easy targets; α weighs the classes. It takes logits: do not apply a softmax before it. For several labels at
/// once choose [`SigmoidFocalLoss`](crate::SigmoidFocalLoss), without focus
/// [`CrossEntropyLoss`](crate::CrossEntropyLoss).
///
/// # Formula
///
/// With p = softmax(x) over the classes, each class has
///
/// f\[n, c\] = w\[c\] · α\[c\] · (1 − p\[n, c\])^γ · (−log p\[n, c\])
///
/// For class indices
///
/// ℓₙ = (1 − ε) · f\[n, yₙ\] + ε/C · Σ_c f\[n, c\]
///
/// where x is the input, y the target, w the weight and α the balance (1 where there is none), ε the label smoothing
/// and C the number of classes. An ignored target has ℓₙ = 0. The mean is Σ ℓₙ / Σ w\[yₙ\] over the targets that are
/// not ignored: as in cross entropy the weight divides, and α does not.
///
/// For class probabilities q, first smoothed to (1 − ε) q + ε/C,
///
/// ℓₙ = Σ_c q\[n, c\] · f\[n, c\]
///
/// and the mean divides by the number of targets, whatever the weights are.
///
#[doc = include_str!("../../docs/book/src/gallery/softmax_focal.svg")]
///
/// # Shapes
///
/// * `input`: `[C]`, `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[]`, `[N]` or `[N, d₁, …, dₖ]`, of any integer kind, for class indices; or `[C]`, `[N, C]` or
///   `[N, C, d₁, …, dₖ]`, of a floating kind, for class probabilities
/// * `alpha` for each class, `weight`: `[C]`
/// * result: scalar, or `[]`, `[N]` or `[N, d₁, …, dₖ]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `kornia.losses.FocalLoss` and `focal_loss` of kornia 0.9, and `monai.losses.FocalLoss` with `use_softmax` of
/// MONAI 1.6. Lin et al., *Focal Loss for Dense Object Detection*, 2017.
///
/// # Differences from the references
///
/// * With γ = 0 and without α this is [`CrossEntropyLoss`](crate::CrossEntropyLoss), its means included. kornia and
///   MONAI return one value per class, 0 for all but the target's, and their means are over all of these values,
///   ignored ones included: divide that of [`MeanOver::All`] by the number of classes. With an ignored class MONAI's
///   mean divides by the number of pixels that count, and its sum is always that of the means over each image.
/// * Their class weights do not divide the mean, nor do they here with [`MeanOver::All`] or as α.
/// * Class indices may be of any integer kind, a class out of range is an error, and so is an α outside
///   \[0, 1\], which makes losses negative.
/// * The gradient is finite for 0 < γ < 1 and saturated logits, where MONAI's is NaN; where all targets are ignored the
///   mean is NaN with gradient 0.
/// * Half precision is computed in `f32`.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for an α or a smoothing outside \[0, 1\], a γ
/// below 0, or an `ignore_index` ≥ 0 with class probabilities.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, SoftmaxFocalLoss};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0]).view([2, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0_i64, 1]);
///
/// let loss = SoftmaxFocalLoss::new().alpha(0.75).f_forward(&logits, &target)?;
/// loss.f_backward()?;
///
/// // 0.25 of the background and 0.75 of the other class, each (1 − ½)² · log 2.
/// assert!((f64::try_from(&loss)? - 0.125 * 2_f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "focal_loss")]
#[doc(alias = "FocalLoss")]
#[doc(alias = "multiclass_focal")]
pub struct SoftmaxFocalLoss: "softmax_focal";

/// The focal loss with γ = 2 and without α.
new {
    /// the weights of the classes: a number α for \[1 − α, α, α, …\], or a tensor of one for each class. A tensor is on
    /// the device of the input, in any floating kind.
    alpha: FocalAlpha = FocalAlpha::None => into,
    /// the power γ of the modulating factor, at least 0; 0 is cross entropy.
    gamma: f64 = 2.0,
    /// a weight for each class, which divides the mean, too. It is on the device of the input, in any floating kind.
    weight: Option<Tensor> = None,
    /// the class index whose targets are ignored, or none.
    ignore_index: Option<i64> = Some(-100) => into,
    /// the share of the target, in \[0, 1\], that is spread over all classes.
    label_smoothing: f64 = 0.0,
    /// how a class out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// what the mean divides by; with [`MeanOver::All`] it is the number of targets, whatever the weights.
    mean_over: MeanOver = MeanOver::Counted,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl SoftmaxFocalLoss {
    fn f_check(&self, input: &Tensor, target: &Tensor) -> Result<(), LossError> {
        check::arguments(input, target)?;
        check::class_dim(input)?;
        self.f_check_options()?;
        self.alpha.f_check(input)?;
        match &self.weight {
            Some(weight) => focal::f_check_classes(("weight", weight), input),
            None => Ok(()),
        }
    }

    /// w\[c\] · α\[c\], `[C]`, in the kind and on the device of `like`.
    fn f_factors(&self, classes: i64, kind: Kind, device: Device) -> Result<Option<Tensor>, LossError> {
        let alpha = match &self.alpha {
            FocalAlpha::None => None,
            FocalAlpha::Balance(alpha) => {
                let alphas = Tensor::f_full_number(&[classes], *alpha, (kind, device))?;
                let _ = alphas.f_narrow(0, 0, classes.min(1))?.f_fill_number_(1.0 - alpha)?;
                Some(alphas)
            }
            FocalAlpha::Classes(alpha) => Some(alpha.f_to_kind(kind)?),
        };
        let weight = self.weight.as_ref().map(|weight| weight.f_to_kind(kind)).transpose()?;
        Ok(match (alpha, weight) {
            (Some(alpha), Some(weight)) => Some(alpha.f_mul(&weight)?),
            (alpha, weight) => alpha.or(weight),
        })
    }

    /// (1 − p)^γ · log p, with its derivative (1 − p)^(γ − 1) (1 − p − γ p log p).
    fn f_modulated(&self, log_p: &Tensor) -> Result<Tensor, LossError> {
        if self.gamma == 0.0 {
            return Ok(log_p.shallow_clone());
        }
        let (gamma, modulation) = (self.gamma, self.modulation());
        let rest = log_p.f_detach()?.f_expm1()?.f_neg()?;
        let modulated = rest.f_pow_number(gamma)?.f_mul(&log_p.f_detach()?)?;
        Function::new(&[log_p]).save(&[log_p, &rest]).f_attach_one(modulated, move |context| {
            let (Some(grad), [log_p, rest]) = (context.grad(0), context.saved()) else { return Ok(vec![None]) };
            let fused = || {
                let share = log_p.f_exp()?.f_mul_number_(-gamma)?;
                let slope = rest.f_addcmul(&share, &log_p.f_clamp_min_number(MASKED)?)?;
                // Below γ = 1 the power may be infinite where the rest of the slope is 0.
                let power = match gamma {
                    2.0 => rest.shallow_clone(),
                    1.0 => return Ok(vec![Some(slope.f_mul(&grad)?)]),
                    gamma => rest.f_clamp_min_number(SMALLEST_BASE)?.f_pow_number(gamma - 1.0)?,
                };
                Ok(vec![Some(slope.f_mul(&power)?.f_mul(&grad)?)])
            };
            let again = |inputs: &[Tensor]| f_modulated_of_operations(modulation, &inputs[0]);
            context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &[log_p.shallow_clone()], &[true]))
        })
    }

    /// −f\[n, c\] of all classes.
    fn f_every_class(&self, log_p: &Tensor, factors: Option<&Tensor>) -> Result<Tensor, LossError> {
        let terms = self.f_modulated(log_p)?;
        Ok(match factors {
            Some(factors) => numeric::f_share_of(&focal::f_per_class(factors, &terms)?, &terms)?,
            None => terms,
        })
    }

    /// The loss of class indices by the engine, or `None` where the engine does not take the call.
    fn f_fused(&self, input: &Tensor, target: &Tensor) -> Result<Option<Tensor>, LossError> {
        let reduction = match (self.reduction, self.mean_over, &self.alpha, &self.weight) {
            (Reduction::None, ..) => RowReduction::None,
            (Reduction::Sum, ..) => RowReduction::Sum,
            (Reduction::Mean, MeanOver::All, ..) => RowReduction::Mean,
            (_, _, _, None) => RowReduction::CountedMean,
            (_, _, FocalAlpha::None, _) => RowReduction::WeightedMean,
            // The mean is over the weights without α.
            _ => return Ok(None),
        };
        let class_dim = check::class_dim(input)?;
        let is_of_indices = target.size() != input.size() && input.size()[class_dim] > 0;
        if !kernels::takes_rows(input) || !is_of_indices || self.label_smoothing != 0.0 {
            return Ok(None);
        }
        let (classes, target) = check::class_target(target, input, class_dim, OR_SHARES)?;
        let factors = self.f_factors(classes, numeric::wide_kind(input)?, input.device())?;
        let engine = |target: &Tensor, note: Option<&Note>| {
            let (ignore_index, weight) = (self.ignore_index, factors.as_ref());
            let rows = Rows { input, class_dim, target, ignore_index, weight, note };
            match self.gamma {
                2.0 => f_softmax(Formula(Square), 0.0, &rows, reduction, composite(self.clone())),
                gamma => f_softmax(Formula(Power { gamma }), 0.0, &rows, reduction, composite(self.clone())),
            }
        };
        let found = (self.invalid_values, self.reduction == Reduction::None);
        Ok(ClassIndices::f_fused(&target, classes, self.ignore_index, found, engine)?.ok())
    }

    /// The log-probabilities of `input`, in single precision at least, and their loss: for a loss that needs both.
    pub(crate) fn f_with_log_probabilities(
        &self,
        input: &Tensor,
        target: &Tensor,
    ) -> Result<(Tensor, Tensor), LossError> {
        self.f_check(input, target)?;
        let kind = numeric::wide_kind(input)?;
        if target.size() == input.size() {
            return self.f_probabilities(input, target, kind);
        }
        self.f_indices(input, target, kind)
    }

    fn f_compute(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        Ok(self.f_with_log_probabilities(input, target)?.1)
    }

    fn f_probabilities(&self, input: &Tensor, target: &Tensor, kind: Kind) -> Result<(Tensor, Tensor), LossError> {
        check::floating(("target", target))?;
        if let Some(ignored) = self.ignore_index {
            check::option("ignore_index", ignored, ignored < 0, "negative with class probabilities as target")?;
        }
        let dim = check::class_dim(input)?;
        let classes = input.size()[dim];
        let log_p = input.f_log_softmax(dim as i64, kind)?;
        let factors = self.f_factors(classes, kind, log_p.device())?;
        let (target, smoothing) = (target.f_to_kind(kind)?, self.label_smoothing);
        let target = match smoothing {
            0.0 => target,
            _ => target.f_mul_number(1.0 - smoothing)?.f_add_number(smoothing / classes as f64)?,
        };
        // A class that is masked by −∞ and has the probability 0 in the target adds 0, where 0 · ∞ would be NaN.
        let masked = log_p.f_eq_number(f64::NEG_INFINITY)?.f_logical_and(&target.f_eq_number(0)?)?;
        let possible = log_p.f_masked_fill_number(&masked, 0)?;
        let terms = self.f_every_class(&possible, factors.as_ref())?.f_mul(&target)?;
        let loss = self.reduction.f_apply(&terms.f_sum_dim_intlist(dim as i64, false, None)?.f_neg()?)?;
        Ok((log_p, loss))
    }

    fn f_indices(&self, input: &Tensor, target: &Tensor, kind: Kind) -> Result<(Tensor, Tensor), LossError> {
        let dim = check::class_dim(input)?;
        let target = ClassIndices::f_of(target, (input, dim), OR_SHARES, self.ignore_index, self.invalid_values)?;
        let ignored = target.f_ignored()?;
        let own = target.f_classes(ignored.as_ref())?;
        let log_p = target.f_mask_ignored(input, dim)?.f_log_softmax(dim as i64, kind)?;
        let losses = numeric::f_filled(&self.f_index_losses(&log_p, &own, dim as i64)?, ignored.as_ref(), 0)?;
        let loss = match self.reduction {
            Reduction::Mean if self.mean_over == MeanOver::Counted => self.f_mean(&losses, &own, ignored.as_ref())?,
            reduction => reduction.f_apply(&losses)?,
        };
        let loss = target.validity.f_poison_own(loss, self.reduction == Reduction::None)?;
        Ok((log_p, loss))
    }

    /// The losses of the targets `own`, all of them in \[0, C).
    fn f_index_losses(&self, log_p: &Tensor, own: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        let classes = log_p.size()[dim as usize];
        let factors = self.f_factors(classes, log_p.f_kind()?, log_p.device())?;
        let chosen = log_p.f_gather(dim, &own.f_unsqueeze(dim)?, false)?.f_squeeze_dim(dim)?;
        let of_targets = factors.as_ref().map(|factors| factors.f_take(own)).transpose()?;
        let terms = numeric::f_times(&self.f_modulated(&chosen)?, of_targets.as_ref())?;
        let smoothing = self.label_smoothing;
        if smoothing == 0.0 {
            return Ok(terms.f_neg()?);
        }
        let every = self.f_every_class(log_p, factors.as_ref())?.f_sum_dim_intlist(dim, false, None)?;
        let spread = every.f_mul_number(-smoothing / classes as f64)?;
        Ok(terms.f_mul_number(smoothing - 1.0)?.f_add(&spread)?)
    }

    /// Σ ℓₙ / Σ w\[yₙ\] over the targets that are not ignored.
    fn f_mean(&self, losses: &Tensor, own: &Tensor, ignored: Option<&Tensor>) -> Result<Tensor, LossError> {
        let Some(weight) = &self.weight else {
            let Some(ignored) = ignored else { return Ok(losses.f_mean(None)?) };
            return focal::f_mean(&losses.f_sum(None)?, &ignored.f_logical_not()?.f_sum(None)?);
        };
        let weights = weight.f_to_kind(losses.f_kind()?)?.f_take(own)?;
        let weights = numeric::f_filled(&weights, ignored, 0)?;
        // As in cross entropy, the gradient is NaN where the weights of all targets are 0, and 0 where all targets are
        // ignored.
        Ok(losses.f_sum(None)?.f_div(&weights.f_sum(None)?)?)
    }

    fn modulation(&self) -> Modulation {
        Modulation { gamma: self.gamma, reduced_threshold: None }
    }
}

/// (1 − p)^γ · log p by operations that can be differentiated again.
fn f_modulated_of_operations(modulation: Modulation, log_p: &Tensor) -> Result<Tensor, LossError> {
    modulation.f_apply(log_p, || {
        // A class that is masked, by −∞ or by a huge number, has the factor 1 with derivative 0.
        let masked = log_p.f_lt_number(MASKED)?;
        focal::f_log_rest(&log_p.f_masked_fill_number(&masked, MASKED)?)
    })
}

/// What a target can be that has no class indices: class probabilities.
const OR_SHARES: &str = ", or that of input for class probabilities";
/// A class with a log-probability below this is masked.
const MASKED: f64 = -1e30;

impl Loss for SoftmaxFocalLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        self.modulation().check()?;
        self.alpha.check_number()?;
        check::share("label_smoothing", self.label_smoothing)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.f_check(input, target)?;
        if let Some(loss) = self.f_fused(input, target)? {
            return Ok(loss);
        }
        let wide = input.f_to_kind(numeric::wide_kind(input)?)?;
        Ok(self.f_precomputed(&wide, target, Self::f_compute)?.f_to_kind(numeric::result_kind(input)?)?)
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let (alpha, weight) = (self.alpha.clone(), f_wide_option(&self.weight)?);
        let sum = Self { alpha, weight, reduction: Reduction::Sum, ..*self };
        let numerator = sum.f_forward(&f_wide(input)?, &f_wide(target)?)?;
        let class_dim = check::class_dim(input)?;
        if self.mean_over == MeanOver::All || target.size() == input.size() {
            return MeanParts::f_over(numerator, mean_parts::rows(input, class_dim));
        }
        MeanParts::f_of_counted(numerator, target, input.size()[class_dim], self.ignore_index, self.weight.as_ref())
    }
}

crate::precomputed::precomputed!(SoftmaxFocalLoss);
