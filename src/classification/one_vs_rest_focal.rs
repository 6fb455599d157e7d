use tch::{Kind, Tensor};

use super::focal::{self, Counted, FocalAlpha, FocalNormalization, Modulation};
use super::sigmoid_focal::Formula;
use crate::binary::Logits;
use crate::check::{self, ClassIndices};
use crate::kernels::{self, NumberOperations, f_pointwise};
use crate::mean_parts::f_wide;
use crate::precomputed::Precomputed;
use crate::{InvalidValues, Loss, LossError, MeanOver, MeanParts, Reduction, numeric};

crate::options::options! {
/// The focal loss of one sigmoid per class: the target's class against each other one.
///
/// For class indices where the classes are scored independently of each other, as in dense detection, where a place
/// without an object has low scores for all classes. It takes logits: do not apply a sigmoid before it. Where exactly
/// one class is right choose [`SoftmaxFocalLoss`](crate::SoftmaxFocalLoss), for targets of the input's shape
/// [`SigmoidFocalLoss`](crate::SigmoidFocalLoss), of which this is the value for one-hot targets.
///
/// # Formula
///
/// ℓ\[n, c\] = −w\[c\] α (1 − p)^γ log p for c = yₙ, and −w\[c\] (1 − α) p^γ log(1 − p) for every other class
///
/// where p = σ(x\[n, c\]) of the input x, y is the target and w the weight; α, 1 − α and w are 1 where there is none.
/// With a reduced threshold t the factor of a probability pₜ is ((1 − pₜ) / t)^γ, and 1 where pₜ < t. An ignored target
/// has losses of 0. The mean is over the values, classes included, whose target is not ignored, whatever the weights
/// are.
///
#[doc = include_str!("../../docs/book/src/gallery/one_vs_rest_focal.svg")]
///
/// # Shapes
///
/// * `input`: `[C]`, `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[]`, `[N]` or `[N, d₁, …, dₖ]`, of any integer kind
/// * `alpha` for each class, `weight`: `[C]`
/// * result: scalar, or `[C]`, `[N, C]` or `[N, C, d₁, …, dₖ]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `segmentation_models_pytorch.losses.FocalLoss`, multiclass, of segmentation-models-pytorch 0.6. Lin et al., *Focal
/// Loss for Dense Object Detection*, 2017.
///
/// # Differences from the reference
///
/// * Its class weights divide by their sum: pass w · C / Σ w. Its sum is divided by the number of classes.
/// * Its normalisation is [`FocalNormalization::PerClass`].
/// * A class out of range is an error; there it makes all classes negative. For that use
///   [`SigmoidFocalLoss`](crate::SigmoidFocalLoss) with a target of zeros.
/// * The gradient is finite for 0 < γ < 1 and saturated logits, where the reference's is NaN.
/// * Half precision is computed in `f32`.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for an α outside \[0, 1\], a γ below 0 or a
/// reduced threshold outside (0, 1\].
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, OneVsRestFocalLoss};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0, 0.0]).view([1, 3]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[2_i64]);
///
/// let loss = OneVsRestFocalLoss::new().f_forward(&logits, &target)?;
/// loss.f_backward()?;
///
/// // (1 − ½)² · log 2 for every class.
/// assert!((f64::try_from(&loss)? - 0.25 * 2_f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "FocalLoss")]
pub struct OneVsRestFocalLoss: "one_vs_rest_focal";

/// The focal loss with γ = 2 and without α.
new {
    /// the balance of a class against the rest: a number, or a tensor of one for each class. A tensor is on the device
    /// of the input, in any floating kind.
    alpha: FocalAlpha = FocalAlpha::None => into,
    /// the power γ of the modulating factor, at least 0.
    gamma: f64 = 2.0,
    /// the probability in (0, 1\] below which the modulating factor is 1.
    reduced_threshold: Option<f64> = None,
    /// what the losses are divided by.
    normalization: FocalNormalization = FocalNormalization::None,
    /// a weight for each class. It is on the device of the input, in any floating kind.
    weight: Option<Tensor> = None,
    /// the class index whose targets are ignored, or none.
    ignore_index: Option<i64> = None => into,
    /// how a class out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// what the mean divides by.
    mean_over: MeanOver = MeanOver::Counted,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl OneVsRestFocalLoss {
    /// The reduced loss of options that were checked.
    fn f_compute(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let class_dim = check::class_dim(input)?;
        let target = ClassIndices::f_of(target, (input, class_dim), "", self.ignore_index, self.invalid_values)?;

        let dim = class_dim as i64;
        let ignored = target.f_ignored()?.map(|ignored| ignored.f_unsqueeze(dim)).transpose()?;
        let counted = Counted { ignored };
        let own = counted.f_mask(&target.indices.f_unsqueeze(dim)?)?;
        let losses = self.f_losses(&counted.f_mask(input)?, &own, dim, &counted)?;
        let weight = self.weight.as_ref().map(|weight| focal::f_per_class(weight, &losses)).transpose()?;
        let losses = numeric::f_times(&losses, weight.as_ref())?;
        let loss = counted.f_reduce(&counted.f_mask(&losses)?, self.reduction, self.mean_over)?;
        target.validity.f_unsqueeze(dim)?.f_poison_own(loss, self.reduction == Reduction::None)
    }

    /// The losses, without the weight, of the logits `x` and the classes `own` of the targets.
    ///
    /// They are first computed as if every class were negative, and then replaced for the target's class.
    fn f_losses(&self, x: &Tensor, own: &Tensor, dim: i64, counted: &Counted) -> Result<Tensor, LossError> {
        let logits = Logits::f_new(x)?;
        let (negative, negative_factor) = self.f_wrong_by(x, &logits.f_finite()?)?;
        let gathered = |x: &Tensor| x.f_gather(dim, own, false)?.f_neg();
        let (positive, positive_factor) = self.f_wrong_by(&gathered(x)?, &gathered(&logits.f_finite()?)?)?;
        let (positive_share, negative_share) = self.f_balance(&positive_factor, &negative_factor, own, dim)?;
        let (positive, negative) =
            (logits.f_part(&positive_share, &positive)?, logits.f_part(&negative_share, &negative)?);
        let losses = negative.f_scatter(dim, own, &positive)?;
        if self.normalization == FocalNormalization::None {
            return Ok(losses);
        }
        let factors = negative_factor.f_scatter(dim, own, &positive_factor)?;
        counted.f_normalize(&losses, &factors, self.normalization)
    }

    /// The cross entropy −log σ(−u) and its modulating factor, which is made of the finite logits.
    fn f_wrong_by(&self, u: &Tensor, finite: &Tensor) -> Result<(Tensor, Tensor), LossError> {
        let factor = self.modulation().f_factor(&finite.f_log_sigmoid()?)?;
        Ok((u.f_neg()?.f_log_sigmoid()?.f_neg()?, factor))
    }

    /// The factors of the targets' classes times α and those of all classes times 1 − α.
    fn f_balance(
        &self,
        positive: &Tensor,
        negative: &Tensor,
        own: &Tensor,
        dim: i64,
    ) -> Result<(Tensor, Tensor), LossError> {
        let FocalAlpha::Classes(alpha) = &self.alpha else {
            return self.alpha.f_split(positive, negative);
        };
        let alpha = focal::f_per_class(alpha, negative)?;
        let chosen = alpha.f_expand_as(negative)?.f_gather(dim, own, false)?;
        Ok((positive.f_mul(&chosen)?, negative.f_mul(&alpha.f_rsub_number(1)?)?))
    }

    fn modulation(&self) -> Modulation {
        Modulation { gamma: self.gamma, reduced_threshold: self.reduced_threshold }
    }

    /// Whether these options are one formula of a logit and of whether its class is the target, which the engine can
    /// compute.
    fn is_fused(&self, input: &Tensor) -> bool {
        self.normalization == FocalNormalization::None
            && !matches!(self.alpha, FocalAlpha::Classes(_))
            && self.reduced_threshold.is_none()
            && self.weight.is_none()
            && input.numel() > 0
            && kernels::takes_elements(input)
    }

    fn f_by_engine<const SQUARE: bool>(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let class_dim = check::class_dim(input)?;
        let target = ClassIndices::f_of(target, (input, class_dim), "", self.ignore_index, self.invalid_values)?;
        let dim = class_dim as i64;
        let ignored = target.f_ignored()?.map(|ignored| ignored.f_unsqueeze(dim)).transpose()?;
        let counted = Counted { ignored };
        let mut labels = input.f_detach()?.f_zeros_like()?;
        let _ = labels.f_scatter_number_(dim, &counted.f_mask(&target.indices.f_unsqueeze(dim)?)?, 1.0)?;
        let (x, labels) = (counted.f_without_losses(input)?, counted.f_mask(&labels)?);
        let formula = Formula::<SQUARE> { gamma: self.gamma, alpha: self.alpha.number() };
        let own = self.clone();
        let loss = counted.f_reduce_by(self.reduction, self.mean_over, &x, |x, reduction| {
            f_pointwise(formula, [x, &labels.f_to_kind(x.f_kind()?)?], reduction, move |[x, labels]| {
                Self { reduction, ..own.clone() }.f_composite(x, &own.f_target(labels, dim)?)
            })
        })?;
        let loss = loss.f_to_kind(numeric::result_kind(input)?)?;
        target.validity.f_unsqueeze(dim)?.f_poison_own(loss, self.reduction == Reduction::None)
    }

    /// The class indices of one-hot labels; without a label the one that is ignored.
    fn f_target(&self, labels: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        let (label, class) = labels.f_max_dim(dim, false)?;
        let Some(ignored) = self.ignore_index else { return Ok(class) };
        Ok(class.f_masked_fill_number(&label.f_eq_number(0)?, ignored)?)
    }

    fn f_composite(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let wide = input.f_to_kind(numeric::wide_kind(input)?)?;
        Ok(self.f_precomputed(&wide, target, Self::f_compute)?.f_to_kind(numeric::result_kind(input)?)?)
    }
}

impl Loss for OneVsRestFocalLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        self.modulation().check()?;
        self.alpha.check_number()
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        check::class_dim(input)?;
        self.f_check_options()?;
        self.alpha.f_check(input)?;
        if let Some(weight) = &self.weight {
            focal::f_check_classes(("weight", weight), input)?;
        }
        if !self.is_fused(input) {
            return self.f_composite(input, target);
        }
        // The gradient is computed at once, so that the one-hot labels need not be kept for the backward pass.
        self.f_precomputed(input, target, |loss, input, target| match loss.gamma == 2.0 {
            true => loss.f_by_engine::<true>(input, target),
            false => loss.f_by_engine::<false>(input, target),
        })
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        focal::check_mean::<Self>(self.normalization)?;
        let sum = Self { reduction: Reduction::Sum, ..self.clone() };
        let numerator = sum.f_forward(&f_wide(input)?, target)?;
        let (dim, target) = (check::class_dim(input)? as i64, target.f_to_kind(Kind::Int64)?);
        let ignored = self.ignore_index.map(|ignored| target.f_eq_number(ignored)?.f_unsqueeze(dim)).transpose()?;
        Counted { ignored }.f_parts(numerator, input, self.mean_over)
    }
}

crate::precomputed::precomputed!(OneVsRestFocalLoss);

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -1.0, 2.0, 1.0, 0.0, 0.25]).view([2, 3])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (logits(), Tensor::from_slice(&[0_i64, 2]));
        let new = OneVsRestFocalLoss::new;
        let message = |criterion: OneVsRestFocalLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (message(new(), &input, &(&target + 1)), "target holds 3, expected classes in [0, 3)"),
            (
                message(new().ignore_index(255), &input, &(&target - 1)),
                "target holds -1, expected classes in [0, 3), or ignore_index 255",
            ),
            (message(new(), &input, &target.to_kind(Kind::Float)), "target has kind Float, expected an integer kind"),
            (
                message(new(), &input, &input.to_kind(Kind::Int64)),
                "target has shape [2, 3], expected [2], the shape of input without its classes",
            ),
            (
                message(new().weight(Tensor::from_slice(&[1.0])), &input, &target),
                "weight has shape [1], expected [3], one value per class",
            ),
            (
                message(new().alpha(2.0), &input, &target),
                "option alpha is 2, expected a number in [0, 1], one for each class, or FocalAlpha::None",
            ),
            (message(new().gamma(-1.0), &input, &target), "option gamma is -1, expected a finite number of at least 0"),
            (
                message(new().reduced_threshold(2.0), &input, &target),
                "option reduced_threshold is 2, expected a number in (0, 1]",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for gamma in [0.0, 0.1, 0.5, 2.0] {
            let input = Tensor::from_slice(&[1e4, -1e4, 1e4, -1e4]).view([2, 2]).set_requires_grad(true);
            let criterion = OneVsRestFocalLoss::new().gamma(gamma).reduction(Reduction::None);
            let loss = criterion.forward(&input, &Tensor::from_slice(&[0_i64, 1]));
            loss.sum(None).backward();
            assert_eq!(Vec::<f64>::try_from(loss.view(-1)).unwrap(), [0.0, 0.0, 1e4, 1e4]);
            assert_eq!(Vec::<f64>::try_from(input.grad().view(-1)).unwrap(), [0.0, 0.0, 1.0, -1.0]);
        }
    }

    #[test]
    fn classes_out_of_range_can_make_the_loss_nan() {
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let input = logits().set_requires_grad(true);
            let criterion = OneVsRestFocalLoss::new().invalid_values(InvalidValues::Nan).reduction(reduction);
            let loss = criterion.forward(&input, &Tensor::from_slice(&[1_i64, 3]));
            loss.sum(None).backward();
            assert!(loss.view(-1).double_value(&[-1]).is_nan());
            assert!(input.grad().isfinite().all().int64_value(&[]) != 0);
        }
    }

    #[test]
    fn a_mean_over_nothing_is_nan_with_gradient_0() {
        let input = logits().set_requires_grad(true);
        let loss = OneVsRestFocalLoss::new().ignore_index(7).forward(&input, &Tensor::from_slice(&[7_i64, 7]));
        loss.backward();
        assert!(loss.double_value(&[]).is_nan());
        assert_eq!(Vec::<f64>::try_from(input.grad().view(-1)).unwrap(), [0.0; 6]);
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let target = Tensor::from_slice(&[2_i64, 0]);
        for normalization in [FocalNormalization::None, FocalNormalization::All, FocalNormalization::PerClass] {
            let criterion = OneVsRestFocalLoss::new()
                .alpha(Tensor::from_slice(&[0.2, 0.5, 0.9]))
                .gamma(0.5)
                .normalization(normalization)
                .weight(Tensor::from_slice(&[0.5, 1.0, 2.0]));
            numeric::assert_gradient(&logits(), |input| criterion.forward(input, &target));
        }
    }
}
