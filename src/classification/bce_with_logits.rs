use tch::Tensor;

use super::multi_label::{self, f_weighted};
use crate::binary::Logits;
use crate::kernels::{Logit, Pointwise, Real, part};
use crate::mean_parts::f_wide_option;
use crate::numeric::{f_times, f_widely};
use crate::{Loss, LossError, MeanParts, Reduction, check};
#[cfg(feature = "segmentation")]
use crate::{MeanOver, MultiLabelReduction, SoftBceWithLogitsLoss};

crate::options::options! {
/// Binary cross entropy of logits: how unlikely a sigmoid of the input makes each yes or no of the target.
///
/// The usual loss of binary classification, of several labels at once and of segmentation with a mask per class. It
/// takes logits: do not apply a sigmoid before it. Where exactly one class is right, choose
/// [`CrossEntropyLoss`](crate::CrossEntropyLoss).
///
/// # Formula
///
/// ℓᵢ = −wᵢ (pᵢ yᵢ log σ(xᵢ) + (1 − yᵢ) log(1 − σ(xᵢ)))
///
/// where x is the input, y the target, w the weight and p the positive weight, each 1 where there is none. The mean
/// divides by the number of elements, whatever the weights are.
///
#[doc = include_str!("../../docs/book/src/gallery/bce_with_logits.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`
/// * `target`: `[*]`, the same shape
/// * `weight`, `pos_weight`: any shape that broadcasts to `[*]`; `[C]` is one weight per label for `[N, C]`
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.BCEWithLogitsLoss` and `torch.nn.functional.binary_cross_entropy_with_logits` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// * On the CPU the loss of an infinite logit is its limit, 0 or ∞; PyTorch's is NaN where it multiplies ∞ by 0.
/// * Weights may be of any kind of real numbers, and are used in the input's; PyTorch computes 2 − 1 + 1 in that of
///   `pos_weight`, which for `uint8` wraps around below 1.
///
/// A target may be any number, as in PyTorch, so that masks of 0 and 255 are no error: with
/// [`SoftBceWithLogitsLoss`](crate::SoftBceWithLogitsLoss) they are.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a weight that requires a gradient, which PyTorch's operation does not have.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{BceWithLogitsLoss, Loss};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1.0, 0.0]);
///
/// let loss = BceWithLogitsLoss::new().pos_weight(Tensor::from(3.0)).f_forward(&logits, &target)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 2.0 * 2_f64.ln()).abs() < 1e-12);
/// assert_eq!(Vec::<f64>::try_from(logits.grad())?, [-0.75, 0.25]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.BCEWithLogitsLoss")]
#[doc(alias = "binary_cross_entropy_with_logits")]
#[doc(alias = "binary_crossentropy")]
#[doc(alias = "sigmoid_cross_entropy")]
#[doc(alias = "log_loss")]
pub struct BceWithLogitsLoss: "bce_with_logits" | "binary_cross_entropy_with_logits";

/// Binary cross entropy of logits with PyTorch's defaults.
new {
    /// a weight for each element, broadcast to the input's shape. It is on the device of the input, in any floating
    /// kind.
    weight: Option<Tensor> = None,
    /// a weight for the positive part of the loss, broadcast to the input's shape. It is on the device of the input, in
    /// any floating kind.
    ///
    /// A weight above 1 raises recall, one below 1 precision.
    pos_weight: Option<Tensor> = None,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

#[cfg(feature = "segmentation")]
impl BceWithLogitsLoss {
    /// The same loss with an ignored target value, whose elements do not count in the mean either.
    pub(crate) fn ignoring(&self, ignore_index: i64) -> SoftBceWithLogitsLoss {
        let reduction = match self.reduction {
            Reduction::None => MultiLabelReduction::None,
            Reduction::Mean => MultiLabelReduction::Mean,
            Reduction::Sum => MultiLabelReduction::Sum,
        };
        let loss = SoftBceWithLogitsLoss::new().ignore_index(ignore_index).mean_over(MeanOver::Counted);
        let loss = loss.invalid_values(crate::InvalidValues::Error);
        loss.with_weights([self.weight.as_ref(), self.pos_weight.as_ref()]).reduction(reduction)
    }
}

impl Loss for BceWithLogitsLoss {
    crate::option_tensors::with_tensors!();

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        check::floating(("target", target))?;
        check::same_shape(("target", target), ("input", input))?;
        let weight = multi_label::f_constant_weight(("weight", &self.weight), input)?;
        let pos_weight = multi_label::f_constant_weight(("pos_weight", &self.pos_weight), input)?;
        let reduction = self.reduction;
        let weights = [weight.as_ref(), pos_weight.as_ref()];
        f_weighted(Formula, [input, target], weights, reduction.into(), move |[x, y], [weight, pos_weight]| {
            // In place of a weight that is not given stands the input, which is then not used.
            let all = [x, y, weight.unwrap_or(x), pos_weight.unwrap_or(x)];
            f_widely(all, |[x, y, w, p]| f_composite([x, y], [weight.map(|_| w), pos_weight.map(|_| p)], reduction))
        })
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let sum = Self {
            weight: f_wide_option(&self.weight)?,
            pos_weight: f_wide_option(&self.pos_weight)?,
            reduction: Reduction::Sum,
        };
        MeanParts::f_of_sum(&sum, input, target, None)
    }
}

fn f_composite(
    [input, target]: [&Tensor; 2],
    [weight, pos_weight]: [Option<&Tensor>; 2],
    reduction: Reduction,
) -> Result<Tensor, LossError> {
    let logits = Logits::f_new(input)?;
    if !logits.are_infinite() {
        return Ok(input.f_binary_cross_entropy_with_logits(target, weight, pos_weight, reduction.into())?);
    }
    let losses = f_times(&logits.f_entropy_of_any(target, pos_weight)?, weight)?;
    // libtorch's operation has the kind of the target.
    reduction.f_apply(&losses.f_to_kind(target.f_kind()?)?)
}

/// The loss without weights; with a third argument the one with a weight of the positive part.
#[derive(Clone, Copy)]
pub(super) struct Formula;

impl Pointwise<2> for Formula {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let logit = Logit::new(x);
        (logit.entropy(y), [logit.slope(y), -x])
    }
}

impl Pointwise<3> for Formula {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y, pos_weight]: [R; 3]) -> (R, [R; 3]) {
        let logit = Logit::new(x);
        let (loss, of_x) = logit.weighted(y, pos_weight);
        (loss, [of_x, part(pos_weight, logit.of_yes) - logit.of_no, part(y, logit.of_yes)])
    }
}

crate::precomputed::precomputed!(BceWithLogitsLoss);

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::{Backend, MultiLabelSoftMarginLoss, with_backend};

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (Tensor::from_slice(&[0.0, 1.0]), Tensor::from_slice(&[1.0, 0.0]));
        let three = || Tensor::from_slice(&[1.0, 2.0, 3.0]);
        let new = BceWithLogitsLoss::new;
        let message = |criterion: BceWithLogitsLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (message(new(), &input, &target.view([2, 1])), "target has shape [2, 1], expected [2], the shape of input"),
            (message(new(), &input, &target.to_kind(Kind::Int64)), "target has kind Int64, expected a floating kind"),
            (message(new(), &input.to_kind(Kind::Bool), &target), "input has kind Bool, expected a floating kind"),
            (
                message(new().weight(three()), &input, &target),
                "weight has shape [3], expected a shape that broadcasts to [2], that of input",
            ),
            (
                message(new().pos_weight(three()), &input, &target),
                "pos_weight has shape [3], expected a shape that broadcasts to [2], that of input",
            ),
            (message(new().weight(Tensor::new()), &input, &target), "weight is an undefined tensor"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn an_infinite_logit_does_not_change_the_kind() {
        let target = Tensor::from_slice(&[0.25_f32, 1.0]);
        for (logits, expected) in [([0.5, 2.0], Kind::Float), ([0.5, f64::INFINITY], Kind::Float)] {
            for backend in [Backend::Auto, Backend::Composite] {
                let loss =
                    with_backend(backend, || BceWithLogitsLoss::new().forward(&Tensor::from_slice(&logits), &target));
                assert_eq!(loss.kind(), expected, "{logits:?} {backend:?}");
            }
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let input = Tensor::from_slice(&[1000.0, -1000.0, 1000.0]).set_requires_grad(true);
        let target = Tensor::from_slice(&[0.0, 1.0, 1.0]);
        let loss = BceWithLogitsLoss::new().reduction(Reduction::None).f_forward(&input, &target).unwrap();
        loss.sum(None).backward();
        assert_eq!(Vec::<f64>::try_from(&loss).unwrap(), [1000.0, 1000.0, 0.0]);
        assert_eq!(Vec::<f64>::try_from(input.grad()).unwrap(), [1.0, -1.0, 0.0]);
    }

    #[test]
    fn labels_far_outside_do_not_cancel() {
        let (x, y) = (Tensor::from_slice(&[-0.0, 0.0, 2.0, -2.0]), Tensor::from_slice(&[1e20, -1e20, 0.0, 1.0]));
        let tail = 2.0 + (-2_f64).exp().ln_1p();
        for backend in [Backend::Auto, Backend::Composite] {
            let none = BceWithLogitsLoss::new().reduction(Reduction::None);
            let weighted = none.clone().pos_weight(Tensor::from(1.0));
            let of_labels = MultiLabelSoftMarginLoss::new().reduction(Reduction::None);
            let losses = with_backend(backend, || {
                [none.forward(&x, &y), weighted.forward(&x, &y), of_labels.forward(&x.view([4, 1]), &y.view([4, 1]))]
            });
            for losses in losses.map(|losses| Vec::<f64>::try_from(losses).unwrap()) {
                let expected = [2_f64.ln(), 2_f64.ln(), tail, tail];
                let close =
                    losses.iter().zip(expected).all(|(loss, expected)| (loss - expected).abs() < 1e-15 * expected);
                assert!(close, "{backend:?}: {losses:?}");
            }
        }
    }

    #[test]
    fn a_small_weight_of_the_positive_part_keeps_its_digits() {
        // libtorch's operation, which the composite is, subtracts 1 from it.
        let x = Tensor::from_slice(&[0.0, 3.0]).set_requires_grad(true);
        let loss = BceWithLogitsLoss::new().pos_weight(Tensor::from(1e-20)).reduction(Reduction::None);
        let losses = with_backend(Backend::Auto, || loss.forward(&x, &Tensor::from_slice(&[1.0, 1.0])));
        losses.sum(None).backward();
        let (losses, slopes) = (Vec::<f64>::try_from(losses).unwrap(), Vec::<f64>::try_from(x.grad()).unwrap());
        assert!(
            (losses[0] / 1e-20 - 2_f64.ln()).abs() < 1e-15
                && (losses[1] / 1e-20 - (-3_f64).exp().ln_1p()).abs() < 1e-15
        );
        assert!(
            (slopes[0] / 1e-20 + 0.5).abs() < 1e-15 && (slopes[1] / 1e-20 + 1.0 / (1.0 + 3_f64.exp())).abs() < 1e-15
        );
    }

    #[test]
    fn an_infinite_logit_has_an_infinite_slope_of_the_label() {
        for backend in [Backend::Auto, Backend::Composite] {
            let x = Tensor::from_slice(&[0.5, f64::INFINITY, f64::NEG_INFINITY]).set_requires_grad(true);
            let y = Tensor::from_slice(&[0.0, 1.0, 0.0]).set_requires_grad(true);
            with_backend(backend, || BceWithLogitsLoss::new().forward(&x, &y).backward());
            let slopes = Vec::<f64>::try_from(y.grad()).unwrap();
            assert_eq!(slopes[1..], [f64::NEG_INFINITY, f64::INFINITY], "{backend:?}");
            assert_eq!(Vec::<f64>::try_from(x.grad()).unwrap()[1..], [0.0, 0.0]);
        }
    }
}
