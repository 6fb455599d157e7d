use tch::Tensor;

use super::DiceLoss;
use super::compound::{Compound, Overlap, described_variants, loss_of_parts};
use crate::{Loss, LossError, OneVsRestFocalLoss, SigmoidFocalLoss, SoftmaxFocalLoss};

/// The focal loss in a [`DiceFocalLoss`].
///
/// Each of these losses can be passed as it is, such as `.focal(SigmoidFocalLoss::new())`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum FocalPart {
    /// The focal loss of a softmax: each pixel belongs to one class.
    Softmax(SoftmaxFocalLoss),
    /// The focal loss of sigmoids, over masks: classes may overlap, or there is only one.
    Sigmoid(SigmoidFocalLoss),
    /// The focal loss of sigmoids, over class indices.
    OneVsRest(OneVsRestFocalLoss),
}

described_variants!(FocalPart: Softmax(SoftmaxFocalLoss), Sigmoid(SigmoidFocalLoss), OneVsRest(OneVsRestFocalLoss));

crate::options::options! {
/// Dice loss plus focal loss: the overlap of regions, and the hard pixels.
///
/// Choose it over [`DiceCrossEntropyLoss`](crate::DiceCrossEntropyLoss) where most pixels are easy background. Where
/// both parts take a softmax it is computed once.
///
/// # Formula
///
/// ℓ = λ_d · Dice + λ_f · FL
///
/// where Dice is the [`DiceLoss`](crate::DiceLoss) of softmax(x), or another [`Overlap`] with its own options, and FL
/// is the [`SoftmaxFocalLoss`](crate::SoftmaxFocalLoss) of the logits x, or the
/// [`SigmoidFocalLoss`](crate::SigmoidFocalLoss) or [`OneVsRestFocalLoss`](crate::OneVsRestFocalLoss), with which the
/// overlap is one of σ(x). Each part has its own reduction and weights.
///
#[doc = include_str!("../../docs/book/src/gallery/dice_focal.svg")]
///
/// # Shapes
///
/// * `input`: logits `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[N]` or `[N, d₁, …, dₖ]`, of any integer kind, for class indices; or `[N, C]` or `[N, C, d₁, …, dₖ]`,
///   for masks, of a floating kind where the focal loss is of a softmax
/// * result: scalar, or with an unreduced focal loss `[N, d₁, …, dₖ]` or `[N, C, d₁, …, dₖ]`: the loss of each pixel
///   plus that of its region
///
/// # Reference
///
/// `monai.losses.DiceFocalLoss` 1.6, and with the overlap [`GeneralizedDiceLoss`](crate::GeneralizedDiceLoss)
/// `monai.losses.GeneralizedDiceFocalLoss`. Wentao Zhu et al.: *AnatomyNet*, Medical Physics 2019.
///
/// # Differences from MONAI
///
/// * Both parts have a softmax by default. MONAI's focal loss always has sigmoids, and its Dice loss no activation by
///   default.
/// * MONAI's sum is that of the focal loss's means over the pixels: divide λ_f by the number of pixels of an image.
/// * MONAI's `include_background` and `weight` are those of both parts.
/// * MONAI's focal loss is computed in `f32` for `f64` too.
/// * `f16` and `bf16` are computed in `f32`.
///
/// # Errors
///
/// Those of the parts, as [`LossError::Term`] with the name of the option, `overlap` or `focal`; [`LossError::Shape`]
/// for a softmax of a single class, [`LossError::Option`] for a λ below 0 or for unreduced losses whose shapes do not
/// fit.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{DiceFocalLoss, Loss};
///
/// // Two classes, two pixels: the softmax is one half everywhere.
/// let logits = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0]).view([1, 2, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0_i64, 1]).view([1, 2]);
///
/// let loss = DiceFocalLoss::new().lambda_focal(4.0).f_forward(&logits, &target)?;
/// loss.f_backward()?;
///
/// // Each class has the intersection 0.5 and the sizes 1 and 1; each pixel has (1 − ½)² · log 2.
/// assert!((f64::try_from(&loss)? - (0.5 + 4.0 * 0.25 * 2_f64.ln())).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "GeneralizedDiceFocalLoss")]
pub struct DiceFocalLoss: "dice_focal";

/// The Dice loss of a softmax and the focal loss of the same, one to one.
new {
    /// the loss over regions with its options. Where it is not given an activation it has that of the focal loss: a
    /// softmax, or a sigmoid.
    overlap: Overlap = Overlap::Dice(DiceLoss::new()) => into,
    /// the focal loss with its options.
    focal: FocalPart = FocalPart::Softmax(SoftmaxFocalLoss::new()) => into,
    /// the class index, or the value of masks, that both parts ignore, whatever their own options are. Without it each
    /// part has its own.
    ignore_index: Option<i64> = None,
    /// the factor of the loss over regions, at least 0.
    #[doc(alias = "lambda_gdl")]
    lambda_dice: f64 = 1.0,
    /// whether a [`SigmoidFocalLoss`](crate::SigmoidFocalLoss) counts class 0; its weights then are those of the other
    /// classes.
    #[doc(alias = "include_background")]
    focal_background: bool = true,
    /// the factor of the focal loss, at least 0.
    lambda_focal: f64 = 1.0,
}
}

impl DiceFocalLoss {
    fn parts(&self) -> Compound {
        Compound {
            overlap: self.overlap.clone(),
            pixelwise: match self.focal.clone() {
                FocalPart::Softmax(loss) => loss.into(),
                FocalPart::Sigmoid(loss) => loss.into(),
                FocalPart::OneVsRest(loss) => loss.into(),
            },
            pixelwise_option: ("focal", "focal(SigmoidFocalLoss::new()) and with it a Sigmoid in the overlap"),
            ignore_index: self.ignore_index,
            lambda_overlap: ("lambda_dice", self.lambda_dice),
            lambda_pixelwise: ("lambda_focal", self.lambda_focal),
            focal_background: self.focal_background,
        }
    }
}

impl Loss for DiceFocalLoss {
    loss_of_parts!();
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::{Activation, FocalAlpha, Reduction};

    fn logits() -> Tensor {
        (Tensor::arange(120, (Kind::Double, Device::Cpu)) * 12.9898).sin().view([2, 3, 5, 4]) * 3.0
    }

    fn indices() -> Tensor {
        let values: Vec<i64> = (0..40).map(|i| i * 7 % 11 % 3).collect();
        Tensor::from_slice(&values).view([2, 5, 4])
    }

    fn masks() -> Tensor {
        indices().one_hot(3).movedim_int(-1, 1)
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let message =
            |criterion: DiceFocalLoss, target: &Tensor| criterion.f_forward(&logits(), target).unwrap_err().to_string();
        let new = DiceFocalLoss::new;
        assert_eq!(
            message(new().lambda_focal(-1.0), &indices()),
            "option lambda_focal is -1, expected a finite number of at least 0",
        );
        assert_eq!(
            message(new().focal(SigmoidFocalLoss::new()), &indices()),
            "term focal: target has shape [2, 5, 4], expected [2, 3, 5, 4], the shape of input",
        );
        assert_eq!(
            message(new().focal_background(false), &indices()),
            "option focal_background is false, expected true, but for a focal loss of sigmoids over masks",
        );
        assert_eq!(
            message(new().focal(SoftmaxFocalLoss::new().gamma(-1.0)), &indices()).split(' ').nth(3),
            Some("gamma")
        );
    }

    #[test]
    fn one_softmax_is_as_good_as_two() {
        let (dice, focal) = (|| DiceLoss::new().activation(Activation::Softmax), || SoftmaxFocalLoss::new().gamma(1.5));
        let input = logits().set_requires_grad(true);
        let sum = DiceFocalLoss::new().overlap(dice()).focal(focal()).lambda_dice(2.0).forward(&input, &indices());
        let parts = 2.0 * dice().forward(&input, &indices()) + focal().forward(&input, &indices());
        let gradient = |loss: &Tensor| Tensor::run_backward(&[loss], &[&input], true, false).remove(0);
        assert!(sum.allclose(&parts, 1e-12, 0.0, false));
        assert!(gradient(&sum).allclose(&gradient(&parts), 1e-10, 1e-15, false));
    }

    #[test]
    fn class_indices_are_their_masks() {
        let dice = || DiceLoss::new().activation(Activation::Softmax);
        let of_indices =
            DiceFocalLoss::new().overlap(dice()).focal(OneVsRestFocalLoss::new().alpha(0.25).reduction(Reduction::Sum));
        let of_masks = DiceFocalLoss::new().overlap(dice()).focal(SigmoidFocalLoss::new().reduction(Reduction::Sum));
        let (a, b) = (of_indices.forward(&logits(), &indices()), of_masks.forward(&logits(), &masks()));
        assert!(a.allclose(&b, 1e-12, 0.0, false), "{a} {b}");
    }

    #[test]
    fn unreduced_each_element_has_the_loss_of_its_region() {
        let dice = || DiceLoss::new().activation(Activation::Sigmoid).reduction(Reduction::None);
        let focal = || SigmoidFocalLoss::new().alpha(FocalAlpha::None).reduction(Reduction::None);
        let sum = DiceFocalLoss::new().overlap(dice()).focal(focal()).forward(&logits(), &masks());
        let regions = dice().forward(&logits(), &masks()).view([2, 3, 1, 1]);
        assert!(sum.allclose(&(regions + focal().forward(&logits(), &masks())), 1e-12, 0.0, false));
    }
}
