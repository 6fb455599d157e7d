use tch::{Kind, Tensor};

use super::bce_with_logits;
use super::mean_over::MeanOver;
use super::multi_label::{self, MultiLabelReduction, f_weighted};
use crate::binary::{self, Logits};
use crate::check::{self, ClassIndices, Validity};
use crate::kernels::{self, Expected, NumberOperations, Pointwise, Real, choose, is_share, share_or_nan};
use crate::mean_parts::f_wide;
use crate::numeric::{f_filled, f_reals, f_times, result_kind, wide_kind};
use crate::{InvalidValues, Loss, LossError, MeanParts};

crate::options::options! {
/// Binary cross entropy of logits whose targets are smoothed, thresholded, ignored, or class indices.
///
/// For masks in which some pixels are not labelled, and for training a classifier of one label out of many with a
/// sigmoid per class, as strong ImageNet recipes do. Where no label is missing or changed choose
/// [`BceWithLogitsLoss`](crate::BceWithLogitsLoss).
///
/// # Formula
///
/// ℓᵢ = −wᵢ (rᵢ tᵢ log σ(xᵢ) + (1 − tᵢ) log(1 − σ(xᵢ))), t = (1 − s) y + s/2
///
/// where x is the input, y the target, s the label smoothing, w the weight and r the positive weight, each 1 where
/// there is none. For class indices t is 1 − s + s/C for the class and s/C for the C − 1 others. With a threshold t is
/// then replaced by 1 where it is above it and by 0 elsewhere. An ignored target has ℓᵢ = 0.
///
#[doc = include_str!("../../docs/book/src/gallery/soft_bce_with_logits.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`, of logits
/// * `target`: `[*]`, the same shape, of any kind of real numbers; or for an input `[N, C]` or `[N, C, d₁, …, dₖ]`
///   class indices `[N]` or `[N, d₁, …, dₖ]`, of any integer kind
/// * `weight`, `pos_weight`: any shape that broadcasts to `[*]`
/// * result: scalar, or `[*]` with [`MultiLabelReduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `segmentation_models_pytorch.losses.SoftBCEWithLogitsLoss` of segmentation-models-pytorch 0.6.0 and
/// `timm.loss.BinaryCrossEntropy` of timm 1.0.31.
///
/// # Differences from segmentation-models-pytorch and timm
///
/// * smp's `smooth_factor` f turns the targets 0 and 1 into f and 1 − f: it is a label smoothing of 2 f.
/// * smp's mean divides by all elements, which is the default here; [`MeanOver::Counted`] leaves the ignored ones out.
/// * timm's `sum_classes` is [`MultiLabelReduction::BatchMean`]. timm smooths targets of the input's shape only with
///   `smooth_dense`.
/// * A class index out of range is an error. So is a target of the input's shape outside \[0, 1\], such as
///   that of a mask of 0 and 255, unless it is ignored or there is a threshold.
/// * On the CPU the loss of an infinite logit is its limit, 0 or ∞, where the references' is NaN.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range or a target outside \[0, 1\], [`LossError::Option`] for a smoothing
/// outside \[0, 1\] or a weight that requires a gradient.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, MeanOver, SoftBceWithLogitsLoss};
///
/// let logits = Tensor::from_slice(&[0.0, 5.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64, 255]);
///
/// let criterion = SoftBceWithLogitsLoss::new().ignore_index(255);
/// assert!((f64::try_from(criterion.f_forward(&logits, &target)?)? - 2_f64.ln() / 2.0).abs() < 1e-12);
///
/// let loss = criterion.mean_over(MeanOver::Counted).f_forward(&logits, &target)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - 2_f64.ln()).abs() < 1e-12);
/// assert_eq!(Vec::<f64>::try_from(logits.grad())?, [-0.5, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "SoftBCEWithLogitsLoss")]
#[doc(alias = "BinaryCrossEntropy")]
pub struct SoftBceWithLogitsLoss: "soft_bce_with_logits";

/// Binary cross entropy with the defaults of segmentation-models-pytorch.
new {
    /// a weight for each element, broadcast to the input's shape. It is on the device of the input, in any floating
    /// kind.
    weight: Option<Tensor> = None,
    /// a weight for the positive part of the loss, broadcast to the input's shape. It is on the device of the input, in
    /// any floating kind.
    pos_weight: Option<Tensor> = None,
    /// the value, or the class index, whose targets are ignored; with `None` all count.
    ignore_index: Option<i64> = Some(-100) => into,
    /// the share of each label, in \[0, 1\], that is moved to ½, or of a class index that is spread over all classes.
    label_smoothing: f64 = 0.0,
    /// the value above which a target, smoothed, is 1; all others are 0.
    target_threshold: Option<f64> = None,
    /// how a target outside \[0, 1\] or a class index out of range is handled. With a
    /// [`target_threshold`](Self::target_threshold) a target may be any number.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// what the mean divides by where targets are ignored.
    mean_over: MeanOver = MeanOver::All,
    /// the reduction.
    reduction: MultiLabelReduction = MultiLabelReduction::Mean,
}
}

/// The targets as they enter the cross entropy.
struct Labels {
    /// One for each element of the input.
    labels: Tensor,
    /// Which of them are ignored, in a shape that broadcasts to theirs.
    ignored: Option<Tensor>,
    /// Which class indices are out of range, where these are no error.
    validity: Validity,
}

impl SoftBceWithLogitsLoss {
    /// The labels of targets that are given element by element.
    fn f_dense(&self, target: &Tensor, kind: Kind) -> Result<Labels, LossError> {
        let labels = f_reals(("target", target), kind)?;
        let ignored = self.ignore_index.map(|ignored| labels.f_eq_number(ignored)).transpose()?;
        let labels = f_filled(&labels, ignored.as_ref(), 0)?;
        let mut validity = match self.target_threshold {
            Some(_) => Validity::CHECKED,
            None => binary::f_shares(&labels, self.invalid_values)?,
        };
        let labels = multi_label::f_smooth(validity.f_replace(&labels, 0.0)?, self.label_smoothing)?;
        Ok(Labels { labels, ignored, validity })
    }

    /// The labels of class indices.
    fn f_indices(&self, input: &Tensor, target: &Tensor, kind: Kind) -> Result<Labels, LossError> {
        let dim = check::class_dim(input)?;
        let (or, ignored) = (", or that of input", self.ignore_index);
        let target = ClassIndices::f_of(target, (input, dim), or, ignored, self.invalid_values)?;
        let ignored = target.f_ignored()?.map(|ignored| ignored.f_unsqueeze(dim as i64)).transpose()?;
        let indices = f_filled(&target.indices.f_unsqueeze(dim as i64)?, ignored.as_ref(), 0)?;
        let off = self.label_smoothing / input.size()[dim].max(1) as f64;
        let labels = Tensor::f_full_number(&input.size(), off, (kind, input.device()))?;
        let labels = labels.f_scatter_number(dim as i64, &indices, 1.0 - self.label_smoothing + off)?;
        Ok(Labels { labels, ignored, validity: target.validity.f_unsqueeze(dim as i64)? })
    }

    fn f_reduce(&self, losses: &Tensor, ignored: Option<&Tensor>) -> Result<Tensor, LossError> {
        let counted = match (self.reduction, self.mean_over, ignored) {
            (MultiLabelReduction::Mean, MeanOver::Counted, Some(ignored)) => {
                ignored.f_expand_as(losses)?.f_logical_not()?.f_sum(losses.f_kind()?)?
            }
            _ => return self.reduction.f_apply(losses),
        };
        Ok(losses.f_sum(None)?.f_div(&counted)?)
    }

    /// The same loss with the weights of the elements and of their positive parts.
    pub(super) fn with_weights(&self, weights: [Option<&Tensor>; 2]) -> Self {
        let [weight, pos_weight] = weights.map(|weight| weight.map(Tensor::shallow_clone));
        Self { weight, pos_weight, ..*self }
    }

    /// Whether each loss depends on its own logit and label alone, so that the engine can compute it.
    fn is_fused(&self, input: &Tensor, target: &Tensor) -> bool {
        let counts = self.reduction == MultiLabelReduction::Mean && self.mean_over == MeanOver::Counted;
        input.size() == target.size()
            && self.target_threshold.is_none()
            && !(counts && self.ignore_index.is_some())
            && kernels::takes_partial(input, self.invalid_values)
    }

    fn f_composite(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let kind = wide_kind(input)?;
        let weight = multi_label::f_weight(("weight", &self.weight), input, kind)?;
        let pos_weight = multi_label::f_weight(("pos_weight", &self.pos_weight), input, kind)?;
        let Labels { mut labels, ignored, validity } = match target.size() == input.size() {
            true => self.f_dense(target, kind)?,
            false => self.f_indices(input, target, kind)?,
        };
        if let Some(threshold) = self.target_threshold {
            labels = labels.f_gt_number(threshold)?.f_to_kind(kind)?;
        }
        let logits = input.f_to_kind(kind)?;
        let losses = f_times(&Logits::f_new(&logits)?.f_entropy(&labels, pos_weight.as_ref())?, weight.as_ref())?;
        let losses = f_filled(&losses, ignored.as_ref(), 0)?;
        let loss = self.f_reduce(&losses, ignored.as_ref())?.f_to_kind(result_kind(input)?)?;
        validity.f_poison_own(loss, self.reduction == MultiLabelReduction::None)
    }
}

impl Loss for SoftBceWithLogitsLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        self.target_threshold.map_or(Ok(()), |threshold| check::number("target_threshold", threshold))?;
        check::share("label_smoothing", self.label_smoothing)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        self.f_check_options()?;
        let weight = multi_label::f_constant_weight(("weight", &self.weight), input)?;
        let pos_weight = multi_label::f_constant_weight(("pos_weight", &self.pos_weight), input)?;
        if !self.is_fused(input, target) {
            return self.f_composite(input, target);
        }
        let formula = Formula { label_smoothing: self.label_smoothing, ignored: self.ignore_index.map(|i| i as f64) };
        let weights = [weight.as_ref(), pos_weight.as_ref()];
        let (reduce, bare) = (self.reduction.for_engine(input), self.with_weights([None, None]));
        f_weighted(formula, [input, target], weights, reduce, move |[input, target], weights| {
            bare.with_weights(weights).f_composite(input, target)
        })
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let unreduced = Self { reduction: MultiLabelReduction::None, ..self.clone() };
        let losses = unreduced.f_forward(&f_wide(input)?, &f_wide(target)?)?;
        let parts = self.reduction.f_parts(&losses)?;
        let (Some(ignored), MeanOver::Counted) = (self.ignore_index, self.mean_over) else { return Ok(parts) };
        if self.reduction == MultiLabelReduction::BatchMean {
            return Ok(parts);
        }
        // An ignored class index leaves out all classes of its row.
        let labels = losses.numel().checked_div(target.numel()).unwrap_or(0) as f64;
        let counted =
            target.f_to_kind(Kind::Double)?.f_ne_number(ignored)?.f_sum(Kind::Double)?.f_mul_number(labels)?;
        MeanParts::f_new(parts.numerator().shallow_clone(), counted)
    }
}

#[derive(Clone, Copy)]
struct Formula {
    label_smoothing: f64,
    ignored: Option<f64>,
}

impl Formula {
    /// The label, 0 where it is ignored, and whether it counts.
    #[inline(always)]
    fn counted<R: Real>(self, label: R) -> (R, R::Mask) {
        // Without an ignored value it is compared with NaN, which no label is equal to.
        let counted = label.unequal(R::of(self.ignored.unwrap_or(f64::NAN)));
        (choose(counted, label, R::of(0.0)), counted)
    }
}

/// With a third argument the one with a weight of the positive part, as the formula without smoothing.
impl<const N: usize> Pointwise<N> for Formula
where
    bce_with_logits::Formula: Pointwise<N>,
{
    fn partial(self) -> Option<Expected> {
        Some(binary::SHARES)
    }

    #[inline(always)]
    fn is_defined<R: Real>(self, arguments: [R; N]) -> R::Mask {
        is_share(self.counted(arguments[1]).0, 1.0)
    }

    #[inline(always)]
    fn evaluate<R: Real>(self, mut arguments: [R; N]) -> (R, [R; N]) {
        let (label, counted) = self.counted(arguments[1]);
        let (label, of_label) = multi_label::smooth(share_or_nan(label, 1.0), self.label_smoothing);
        arguments[1] = label;
        let (loss, mut slopes) = bce_with_logits::Formula.evaluate(arguments);
        slopes[1] = of_label * slopes[1];
        let count = |number: R| choose(counted, number, R::of(0.0));
        for slope in &mut slopes {
            *slope = count(*slope);
        }
        (count(loss), slopes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BceWithLogitsLoss;

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -2.0, 1.5, -6.0, 3.0, 0.1]).view([2, 3])
    }

    fn labels() -> Tensor {
        Tensor::from_slice(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).view([2, 3])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (logits(), Tensor::from_slice(&[1_i64, 2]));
        let new = SoftBceWithLogitsLoss::new;
        let message = |criterion: SoftBceWithLogitsLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (
                message(new(), &input, &(&target + 1)),
                "target holds 3, expected classes in [0, 3), or ignore_index -100",
            ),
            (
                message(new(), &input, &target.view([2, 1])),
                "target has shape [2, 1], expected [2], the shape of input without its classes, or that of input",
            ),
            (message(new(), &input, &target.to_kind(Kind::Double)), "target has kind Double, expected an integer kind"),
            (
                message(new().label_smoothing(2.0), &input, &target),
                "option label_smoothing is 2, expected a number in [0, 1]",
            ),
            (
                message(new().weight(Tensor::from_slice(&[1.0, 2.0])), &input, &target),
                "weight has shape [2], expected a shape that broadcasts to [2, 3], that of input",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn plain_labels_and_class_indices_are_binary_cross_entropy() {
        let expected = BceWithLogitsLoss::new().forward(&logits(), &labels());
        let indices = Tensor::from_slice(&[0_i64, 1]);
        for target in [labels(), labels().to_kind(Kind::Bool), indices.shallow_clone(), indices.to_kind(Kind::Uint8)] {
            assert_eq!(SoftBceWithLogitsLoss::new().forward(&logits(), &target), expected);
        }
    }

    #[test]
    fn nothing_counts_of_what_is_ignored() {
        let target = Tensor::from_slice(&[255_i64, 255]);
        for over in [MeanOver::All, MeanOver::Counted] {
            let input = logits().set_requires_grad(true);
            let loss = SoftBceWithLogitsLoss::new().ignore_index(255).mean_over(over).forward(&input, &target);
            loss.backward();
            assert_eq!(loss.double_value(&[]).is_nan(), over == MeanOver::Counted);
            assert_eq!(input.grad().abs().sum(None).double_value(&[]), 0.0);
        }
    }

    #[test]
    fn classes_out_of_range_can_make_the_loss_nan() {
        let criterion = SoftBceWithLogitsLoss::new().invalid_values(InvalidValues::Nan);
        for reduction in [MultiLabelReduction::None, MultiLabelReduction::Mean] {
            let loss = SoftBceWithLogitsLoss { weight: None, pos_weight: None, ..criterion }.reduction(reduction);
            let loss = loss.forward(&logits(), &Tensor::from_slice(&[0_i64, 7])).view(-1);
            assert!(loss.double_value(&[-1]).is_nan());
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let loss =
            || SoftBceWithLogitsLoss::new().label_smoothing(0.1).pos_weight(Tensor::from_slice(&[1.0, 2.0, 3.0]));
        crate::numeric::assert_gradient(&logits(), |input| loss().forward(input, &labels()));
        crate::numeric::assert_gradient(&(labels() * 0.8 + 0.1), |target| loss().forward(&logits(), target));
    }
}
