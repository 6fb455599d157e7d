use tch::Tensor;

use super::DiceLoss;
use super::compound::{Compound, Overlap, described_variants, loss_of_parts};
use crate::{BceWithLogitsLoss, CrossEntropyLoss, Loss, LossError};

/// The cross entropy in a [`DiceCrossEntropyLoss`].
///
/// Each of these losses can be passed as it is, such as `.cross_entropy(BceWithLogitsLoss::new())`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum CrossEntropyPart {
    /// Cross entropy of a softmax: each pixel belongs to one class.
    Softmax(CrossEntropyLoss),
    /// Binary cross entropy of a sigmoid: classes may overlap, or there is only one.
    Sigmoid(BceWithLogitsLoss),
}

described_variants!(CrossEntropyPart: Softmax(CrossEntropyLoss), Sigmoid(BceWithLogitsLoss));

crate::options::options! {
/// Dice loss plus cross entropy: the overlap of regions, and the classes of pixels.
///
/// The usual loss of medical segmentation: cross entropy has the steadier gradient, Dice finds small regions. For very
/// rare classes try [`DiceFocalLoss`](crate::DiceFocalLoss). Where both parts take a softmax it is computed once.
///
/// # Formula
///
/// ℓ = λ_d · Dice + λ_c · CE
///
/// where Dice is the [`DiceLoss`](crate::DiceLoss) of softmax(x), or another [`Overlap`] with its own options, and CE
/// is the [`CrossEntropyLoss`](crate::CrossEntropyLoss) of the logits x, or the
/// [`BceWithLogitsLoss`](crate::BceWithLogitsLoss), with which the overlap is one of σ(x). Each part has its own
/// reduction and weights.
///
#[doc = include_str!("../../docs/book/src/gallery/dice_cross_entropy.svg")]
///
/// # Shapes
///
/// * `input`: logits `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[N]` or `[N, d₁, …, dₖ]`, of any integer kind, for class indices; or `[N, C]` or `[N, C, d₁, …, dₖ]`,
///   for masks, of a floating kind where the cross entropy is of a softmax
/// * result: scalar, or with an unreduced cross entropy `[N, d₁, …, dₖ]` or `[N, C, d₁, …, dₖ]`: the loss of each pixel
///   plus that of its region
///
/// # Reference
///
/// `monai.losses.DiceCELoss` 1.6. Saeid Asgari Taghanaki et al.: *Combo Loss*, Computerized Medical Imaging and
/// Graphics 2019; Fabian Isensee et al.: *nnU-Net*, Nature Methods 2021.
///
/// # Differences from MONAI
///
/// * The softmax is the default of the Dice part too; MONAI's default is no activation, and its cross entropy always
///   has a softmax.
/// * A single class needs [`BceWithLogitsLoss`](crate::BceWithLogitsLoss) to be named, without which it is an error;
///   MONAI takes it by itself.
/// * MONAI's `weight` is the weight of both parts, with one class the `pos_weight`.
/// * `f16` and `bf16` are computed in `f32`.
///
/// # Errors
///
/// Those of the parts, as [`LossError::Term`] with the name of the option, `overlap` or `cross_entropy`;
/// [`LossError::Shape`] for a softmax of a single class, [`LossError::Option`] for a λ below 0 or for unreduced losses
/// whose shapes do not fit.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{DiceCrossEntropyLoss, Loss};
///
/// // Two classes, two pixels: the softmax is one half everywhere.
/// let logits = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0]).view([1, 2, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0_i64, 1]).view([1, 2]);
///
/// let loss = DiceCrossEntropyLoss::new().lambda_ce(2.0).f_forward(&logits, &target)?;
/// loss.f_backward()?;
///
/// // Each class has the intersection 0.5 and the sizes 1 and 1.
/// assert!((f64::try_from(&loss)? - (0.5 + 2.0 * 2_f64.ln())).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Example: masks that may overlap
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{BceWithLogitsLoss, DiceCrossEntropyLoss, Loss};
///
/// let criterion = DiceCrossEntropyLoss::new().cross_entropy(BceWithLogitsLoss::new());
///
/// let logits = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0]).view([1, 2, 2]);
/// let masks = Tensor::from_slice(&[true, true, true, false]).view([1, 2, 2]);
/// // Dice: intersections 1 and 0.5, sizes 1 and 2, 1 and 1.
/// let dice = (1.0 - 2.0 / 3.0 + 1.0 - 1.0 / 2.0) / 2.0;
/// assert!((f64::try_from(criterion.f_forward(&logits, &masks)?)? - (dice + 2_f64.ln())).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "DiceCELoss")]
#[doc(alias = "DC_and_CE_loss")]
#[doc(alias = "DiceBCE")]
#[doc(alias = "BCEDice")]
#[doc(alias = "DiceCE")]
#[doc(alias = "bce_dice")]
#[doc(alias = "dice_bce")]
pub struct DiceCrossEntropyLoss: "dice_cross_entropy" | "DiceCELoss";

/// The Dice loss of a softmax and the cross entropy of the same, one to one.
new {
    /// the loss over regions with its options. Where it is not given an activation it has that of the cross entropy: a
    /// softmax, or with [`BceWithLogitsLoss`](crate::BceWithLogitsLoss) a sigmoid.
    overlap: Overlap = Overlap::Dice(DiceLoss::new()) => into,
    /// the cross entropy with its options.
    cross_entropy: CrossEntropyPart = CrossEntropyPart::Softmax(CrossEntropyLoss::new()) => into,
    /// the class index, or the value of masks, that both parts ignore, whatever their own options are; the mean of a
    /// binary cross entropy is then over the elements that are not ignored. Without it each part has its own.
    ignore_index: Option<i64> = None,
    /// the factor of the loss over regions, at least 0.
    lambda_dice: f64 = 1.0,
    /// the factor of the cross entropy, at least 0.
    lambda_ce: f64 = 1.0,
}
}

impl DiceCrossEntropyLoss {
    fn parts(&self) -> Compound {
        Compound {
            overlap: self.overlap.clone(),
            pixelwise: match self.cross_entropy.clone() {
                CrossEntropyPart::Softmax(loss) => loss.into(),
                CrossEntropyPart::Sigmoid(loss) => loss.into(),
            },
            pixelwise_option: (
                "cross_entropy",
                "cross_entropy(BceWithLogitsLoss::new()) and with it a Sigmoid in the overlap",
            ),
            ignore_index: self.ignore_index,
            lambda_overlap: ("lambda_dice", self.lambda_dice),
            lambda_pixelwise: ("lambda_ce", self.lambda_ce),
            focal_background: true,
        }
    }
}

impl Loss for DiceCrossEntropyLoss {
    loss_of_parts!();
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::{Activation, JaccardLoss, Reduction};

    /// A loss over regions, as a part and on its own.
    type Parts = fn() -> (Overlap, Box<dyn Loss>);

    fn logits() -> Tensor {
        (Tensor::arange(120, (Kind::Double, Device::Cpu)) * 12.9898).sin().view([2, 3, 5, 4]) * 3.0
    }

    fn indices() -> Tensor {
        let values: Vec<i64> = (0..40).map(|i| i * 7 % 11 % 3).collect();
        Tensor::from_slice(&values).view([2, 5, 4])
    }

    fn value_and_gradient(criterion: &dyn Loss, target: &Tensor) -> (Tensor, Tensor) {
        let input = logits().set_requires_grad(true);
        let loss = criterion.forward(&input, target);
        loss.backward();
        (loss, input.grad())
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let new = DiceCrossEntropyLoss::new;
        let message = |criterion: DiceCrossEntropyLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let unreduced = || CrossEntropyLoss::new().reduction(Reduction::None);
        let regions = || DiceLoss::new().activation(Activation::Softmax).reduction(Reduction::None);
        let cases = [
            (
                message(new().lambda_ce(-1.0), &logits(), &indices()),
                "option lambda_ce is -1, expected a finite number of at least 0",
            ),
            (
                message(new().lambda_dice(f64::NAN), &logits(), &indices()),
                "option lambda_dice is NaN, expected a finite number of at least 0",
            ),
            (
                message(new(), &logits(), &(indices() + 1)),
                "term cross_entropy: target holds 3, expected classes in [0, 3), or ignore_index -100",
            ),
            (
                message(new().cross_entropy(BceWithLogitsLoss::new()), &logits(), &indices()),
                "term cross_entropy: target has shape [2, 5, 4], expected [2, 3, 5, 4], the shape of input",
            ),
            (
                message(new().overlap(regions()).cross_entropy(unreduced()), &logits(), &indices()),
                "option reduction is None, with losses of shape [2, 3] and [2, 5, 4], expected losses that add up",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn one_softmax_is_as_good_as_two() {
        let overlaps: [Parts; 2] = [
            || {
                let loss = || DiceLoss::new().activation(Activation::Softmax).include_background(false);
                (loss().into(), Box::new(loss()))
            },
            || {
                let loss = || JaccardLoss::new().activation(Activation::Softmax).smooth_nr(0.5);
                (loss().into(), Box::new(loss()))
            },
        ];
        let weight = || Tensor::from_slice(&[0.5, 1.0, 2.0]);
        let targets = [indices(), logits().neg().softmax(1, Kind::Double)];
        for target in &targets {
            for smoothing in [0.0, 0.25] {
                for overlap in overlaps {
                    let cross_entropy = || CrossEntropyLoss::new().weight(weight()).label_smoothing(smoothing);
                    let (part, alone) = overlap();
                    let sum = DiceCrossEntropyLoss::new().overlap(part).cross_entropy(cross_entropy()).lambda_ce(0.5);
                    let (loss, grad) = value_and_gradient(&sum, target);
                    let (overlap, overlap_grad) = value_and_gradient(alone.as_ref(), target);
                    let (entropy, entropy_grad) = value_and_gradient(&cross_entropy(), target);
                    assert!(loss.allclose(&(overlap + 0.5 * entropy), 1e-12, 0.0, false));
                    assert!(grad.allclose(&(overlap_grad + 0.5 * entropy_grad), 1e-10, 1e-15, false));
                }
            }
        }
    }

    #[test]
    fn an_ignored_pixel_may_hold_anything() {
        let target = indices();
        let _ = target.get(0).get(0).fill_(255);
        let input = logits();
        for (class, hidden) in [f64::NAN, f64::INFINITY, -1e4].into_iter().enumerate() {
            let _ = input.get(0).get(class as i64).get(0).fill_(hidden);
        }
        let input = input.set_requires_grad(true);
        let dice = DiceLoss::new().activation(Activation::Softmax).ignore_index(255);
        let criterion =
            DiceCrossEntropyLoss::new().overlap(dice).cross_entropy(CrossEntropyLoss::new().ignore_index(255));
        let loss = criterion.forward(&input, &target);
        loss.backward();
        assert!(loss.double_value(&[]).is_finite());
        assert!(input.grad().isfinite().all().int64_value(&[]) != 0);
        assert_eq!(input.grad().get(0).select(1, 0).abs().max().double_value(&[]), 0.0);
    }

    #[test]
    fn half_kinds_are_computed_in_single_precision() {
        for kind in [Kind::Half, Kind::BFloat16] {
            let (input, target) = (logits().to_kind(kind), indices());
            let expected = DiceCrossEntropyLoss::new().forward(&input.to_kind(Kind::Float), &target);
            assert_eq!(DiceCrossEntropyLoss::new().forward(&input, &target), expected.to_kind(kind));
        }
    }
}
