use tch::Tensor;

use super::activation::activation;
use super::region::{RegionLoss, Regions, Score, loss_of_regions, region_options, score_options, with_regions};
use crate::{Loss, LossError};

crate::options::options! {
/// The Dice loss: how little the predicted region and the target's region overlap, relative to their sizes.
///
/// The usual loss of segmentation where regions are small against the image, because it weighs a region by its own size
/// and not by the number of pixels. Often used together with a cross entropy, whose gradient is steadier. To weigh
/// false positives and false negatives differently choose [`TverskyLoss`](crate::TverskyLoss), for one minus the metric
/// "IoU" [`JaccardLoss`](crate::JaccardLoss), for many classes of very different sizes
/// [`GeneralizedDiceLoss`](crate::GeneralizedDiceLoss).
///
/// # Formula
///
/// For each region r, which is a class in a sample unless [`grouping`](Self::grouping) says otherwise,
///
/// Dᵣ = (2 Σ p·t + sₙ) / max(Σ p + Σ t + s_d, 2ε), and ℓᵣ = w\[r\] · (1 − Dᵣ), or w\[r\] · (−log max(Dᵣ, ε)) with
/// `log_loss`
///
/// where p is the input after its activation, t the target (1 where the pixel is of the class, else 0), the sums are
/// over the pixels of the region that are not ignored, sₙ is `smooth_nr`, s_d is `smooth_dr`, ε is `eps` and w the
/// weight of the region's class (1 where there is none). [`measure`](Self::measure) can replace Σp + Σt by Σp² + Σt²,
/// or p·t by min(p, t). 0 / 0 is 0.
///
#[doc = include_str!("../../docs/book/src/gallery/dice.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[N]` or `[N, d₁, …, dₖ]`, of any integer kind, for class indices; or `[N, C]` or `[N, C, d₁, …, dₖ]`,
///   of any real kind or Boolean, for masks or probabilities
/// * `weight`: `[C]`
/// * result: scalar, or with [`Reduction::None`](crate::Reduction::None) one value for each region: `[N, C]`, `[C]`,
///   `[N]` or `[]`, without the classes that do not count
///
/// # Reference
///
/// `monai.losses.DiceLoss` of MONAI 1.6 (with `jaccard` it is [`JaccardLoss`](crate::JaccardLoss)),
/// `segmentation_models_pytorch.losses.DiceLoss` of segmentation-models-pytorch 0.6, `kornia.losses.DiceLoss` and
/// `dice_loss` of kornia 0.9. Milletari, Navab and Ahmadi, V-Net, 2016.
///
/// # Differences between the references
///
/// The defaults are MONAI's. The same with the options of the others, where s is segmentation-models-pytorch's `smooth`
/// and e is kornia's `eps`:
///
/// | option | segmentation-models-pytorch | kornia, `micro` | kornia, `macro` |
/// |---|---|---|---|
/// | `activation` | `Softmax` (multiclass), else `Sigmoid` | `Softmax` | `Softmax` |
/// | `grouping` | `Class` | `Sample` | `SampleAndClass` |
/// | `measure` | `Minimum` | `Product` | `Product` |
/// | `smooth_nr`, `smooth_dr` | 2s, 2s (s = 0) | 0, e (e = 1e−8) | 0, e |
/// | `eps` | 1e−7 | 0 | 0 |
/// | `empty_mask` | `Zero` | | `Skip` |
/// | `weighted_mean` | `Weight` | | `Weight` |
/// | `ignore_index` | | −100 | −100 |
///
/// # Differences from the references
///
/// * It is finite with no smoothing at all and an empty region, where MONAI's is NaN.
/// * The value of an ignored pixel of the input has no influence, even where it is NaN.
/// * `f16` and `bf16` are computed in `f32`.
/// * An input `[N, C]` without pixels' dimensions has a region for each sample and class; MONAI sums over all.
/// * A weight below 0, or a smoothing below 0, is an error.
/// * So is a mask that is not in \[0, 1\], such as one of 0 and 255; and, where no [`activation`](Self::activation) was
///   set, an input that is far from \[0, 1\], which holds logits.
/// * A softmax of a single class is an error: it is 1 whatever the logits are. MONAI warns and takes no activation.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class index or a mask out of range, an input without activation that is far from \[0,
/// 1\], or a weight below 0, [`LossError::Option`] for a softmax of a single class, for a class that the input does not
/// have, for no class at all, for a smoothing or an `eps` below 0, and for an `eps` of 0 with `log_loss`.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Activation, DiceLoss, Grouping, Loss};
///
/// // Two classes, two pixels: the softmax is one half everywhere.
/// let logits = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0]).view([1, 2, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0_i64, 1]).view([1, 2]);
///
/// let criterion = DiceLoss::new().activation(Activation::Softmax).grouping(Grouping::Class);
/// let loss = criterion.smooth_nr(0.0).smooth_dr(0.0).f_forward(&logits, &target)?;
/// loss.f_backward()?;
///
/// // Each class: intersection 0.5, sizes 1 and 1.
/// assert_eq!(f64::try_from(&loss)?, 1.0 - 2.0 * 0.5 / (1.0 + 1.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "dice_loss")]
#[doc(alias = "dice_coefficient")]
#[doc(alias = "soft_dice")]
#[doc(alias = "F1")]
#[doc(alias = "dice_score")]
pub struct DiceLoss: "dice";

/// The Dice loss with MONAI's defaults.
new {
    inner regions: Regions = Regions::new();
    ..region_options in regions,
    ..score_options in regions,
}
}

impl RegionLoss for DiceLoss {
    with_regions!();

    fn f_score(&self) -> Result<Score, LossError> {
        Ok(Score::Dice)
    }
}

impl Loss for DiceLoss {
    loss_of_regions!();
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::numeric::assert_gradient;
    use crate::{Activation, EmptyMask, Grouping, IgnoreScope, InvalidValues, OverlapMeasure, Reduction, WeightedMean};

    /// Three classes, two samples, two pixels.
    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -1.0, 2.0, 1.0, 0.0, 0.25, -0.5, 1.5, 1.0, 0.75, -2.0, 0.1]).view([2, 3, 2])
    }

    fn classes() -> Tensor {
        Tensor::from_slice(&[0_i64, 2, 1, 1]).view([2, 2])
    }

    fn one_hot() -> Tensor {
        classes().one_hot(3).movedim_int(-1, 1).to_kind(Kind::Double)
    }

    fn softmax() -> DiceLoss {
        DiceLoss::new().activation(Activation::Softmax)
    }

    fn message(criterion: DiceLoss, input: &Tensor, target: &Tensor) -> String {
        criterion.f_forward(input, target).unwrap_err().to_string()
    }

    fn value(criterion: &DiceLoss, input: &Tensor, target: &Tensor) -> f64 {
        criterion.forward(input, target).double_value(&[])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target, new) = (logits(), classes(), DiceLoss::new);
        let cases = [
            (message(new(), &input, &(&target + 1)), "target holds 3, expected classes in [0, 3)"),
            (
                message(new().ignore_index(255), &input, &(&target + 1)),
                "target holds 3, expected classes in [0, 3), or ignore_index 255",
            ),
            (message(new(), &target, &input), "input has kind Int64, expected a floating kind"),
            (message(new(), &input, &target.to_kind(Kind::Double)), "target has kind Double, expected an integer kind"),
            (
                message(new(), &input, &input.to_kind(Kind::ComplexDouble)),
                "target has kind ComplexDouble, expected a kind of real numbers",
            ),
            (
                message(new(), &input, &target.unsqueeze(1)),
                "target has shape [2, 1, 2], expected [2, 2], the shape of input without its classes, or that of input \
                 for masks",
            ),
            (
                message(new(), &input.view(-1), &target),
                "input has shape [12], expected [N, C] or [N, C, d1, ...], with at least one class",
            ),
            (message(new(), &input, &Tensor::new()), "target is an undefined tensor"),
            (
                message(new().weight(input.shallow_clone()), &input, &target),
                "weight has shape [2, 3, 2], expected [3], one weight per class",
            ),
            (
                message(new().weight(Tensor::from_slice(&[1.0, -2.0, 1.0])), &input, &target),
                "weight holds -2, expected weights of at least 0",
            ),
            (message(new().classes(&[0, 3]), &input, &target), "option classes is 3, expected classes in [0, 3)"),
            (
                message(new().classes(&[0]).include_background(false), &input, &target),
                "option classes is empty, expected at least one class, besides a background that is excluded",
            ),
            (
                message(new().include_background(false), &input.narrow(1, 0, 1), &target),
                "option include_background is false, expected true with a single class",
            ),
            (
                message(new().smooth_nr(-1.0), &input, &target),
                "option smooth_nr is -1, expected a finite number of at least 0",
            ),
            (
                message(new().smooth_dr(f64::NAN), &input, &target),
                "option smooth_dr is NaN, expected a finite number of at least 0",
            ),
            (
                message(new().log_loss(true).eps(0.0), &input, &target),
                "option eps is 0, expected more than 0 with log_loss",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn class_indices_are_one_hot_masks() {
        for measure in [OverlapMeasure::Product, OverlapMeasure::Squared, OverlapMeasure::Minimum] {
            for activation in [Activation::None, Activation::Sigmoid, Activation::Softmax] {
                let criterion = DiceLoss::new().activation(activation).measure(measure).reduction(Reduction::None);
                let input = if activation == Activation::None { logits().sigmoid() } else { logits() };
                let difference = criterion.forward(&input, &classes()) - criterion.forward(&input, &one_hot());
                assert!(difference.abs().max().double_value(&[]) < 1e-15, "{measure:?} {activation:?}");
            }
        }
    }

    #[test]
    fn every_kind_of_mask_and_index_is_taken() {
        let (expected, masks) = (value(&softmax(), &logits(), &classes()), one_hot());
        for kind in [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64] {
            assert_eq!(value(&softmax(), &logits(), &classes().to_kind(kind)), expected, "{kind:?}");
        }
        for kind in [Kind::Bool, Kind::Uint8, Kind::Half, Kind::Float] {
            assert!((value(&softmax(), &logits(), &masks.to_kind(kind)) - expected).abs() < 1e-15, "{kind:?}");
        }
    }

    #[test]
    fn a_region_is_what_the_grouping_says() {
        let shape = |grouping| {
            let criterion = softmax().grouping(grouping).reduction(Reduction::None);
            criterion.forward(&logits(), &classes()).size()
        };
        assert_eq!(shape(Grouping::SampleAndClass), [2, 3]);
        assert_eq!(shape(Grouping::Class), [3]);
        assert_eq!(shape(Grouping::Sample), [2]);
        assert_eq!(shape(Grouping::All), [0_i64; 0]);
    }

    #[test]
    fn the_background_and_other_classes_can_be_left_out() {
        let none = || softmax().reduction(Reduction::None);
        let all = none().forward(&logits(), &classes());
        assert_eq!(none().include_background(false).forward(&logits(), &classes()), all.narrow(1, 1, 2));
        assert_eq!(none().classes(&[2]).forward(&logits(), &classes()), all.narrow(1, 2, 1));
        let chosen = none().classes(&[0, 2]).include_background(false);
        assert_eq!(chosen.forward(&logits(), &classes()), all.narrow(1, 2, 1));
    }

    #[test]
    fn an_empty_mask_gives_what_was_chosen() {
        // Class 0 has p = (1, 0) against (1, 0), class 1 has p = (0, 1) against nothing.
        let input = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0]).view([1, 2, 2]);
        let target = Tensor::from_slice(&[1.0, 0.0, 0.0, 0.0]).view([1, 2, 2]);
        let mean = |empty_mask| {
            let criterion = DiceLoss::new().smooth_nr(0.0).smooth_dr(0.0).empty_mask(empty_mask);
            value(&criterion, &input, &target)
        };
        assert_eq!(mean(EmptyMask::Formula), 0.5);
        assert_eq!(mean(EmptyMask::Zero), 0.0);
        assert_eq!(mean(EmptyMask::Skip), 0.0);
        let nothing = DiceLoss::new().empty_mask(EmptyMask::Skip);
        assert_eq!(value(&nothing, &input, &target.zeros_like()), 1.0);
        let agreed = DiceLoss::new();
        assert_eq!(value(&agreed, &input.zeros_like(), &target.zeros_like()), 0.0);
    }

    #[test]
    fn nothing_divided_by_nothing_is_no_overlap() {
        for eps in [0.0, 1e-7] {
            let input = Tensor::zeros([1, 2, 3], (Kind::Double, Device::Cpu)).set_requires_grad(true);
            let criterion = DiceLoss::new().smooth_nr(0.0).smooth_dr(0.0).eps(eps);
            let loss = criterion.forward(&input, &input.zeros_like());
            loss.backward();
            assert_eq!(loss.double_value(&[]), 1.0);
            assert_eq!(input.grad().abs().sum(None).double_value(&[]), 0.0);
        }
    }

    #[test]
    fn what_an_ignored_pixel_holds_does_not_matter() {
        let target = Tensor::from_slice(&[0_i64, 255, 1, 255]).view([2, 2]);
        let spoiled = logits().masked_fill(&target.eq(255).unsqueeze(1), f64::NAN);
        for activation in [Activation::None, Activation::Sigmoid, Activation::Softmax] {
            let criterion = || DiceLoss::new().activation(activation).ignore_index(255);
            let input = spoiled.copy().set_requires_grad(true);
            let loss = criterion().forward(&input, &target);
            loss.backward();
            assert_eq!(loss.double_value(&[]), value(&criterion(), &logits(), &target));
            assert_eq!(input.grad().isfinite().all().int64_value(&[]), 1, "{activation:?}");
        }
    }

    #[test]
    fn nor_does_it_in_a_mask() {
        let ignored = one_hot().narrow(1, 2, 1).to_kind(Kind::Bool);
        let spoiled = logits().masked_fill(&ignored, f64::NAN);
        for activation in [Activation::None, Activation::Sigmoid, Activation::Softmax] {
            let criterion = DiceLoss::new().activation(activation).ignore_index(2).ignore_scope(IgnoreScope::Pixel);
            let input = spoiled.copy().set_requires_grad(true);
            let loss = criterion.forward(&input, &one_hot());
            loss.backward();
            assert_eq!(loss.double_value(&[]), value(&criterion, &logits(), &one_hot()));
            assert_eq!(input.grad().isfinite().all().int64_value(&[]), 1, "{activation:?}");
        }
    }

    #[test]
    fn ignored_elements_and_ignored_pixels_differ() {
        let target = one_hot();
        let sigmoid = || DiceLoss::new().activation(Activation::Sigmoid).ignore_index(0);
        let ones = value(&sigmoid(), &logits(), &target);
        let expected = DiceLoss::new().forward(&(logits().sigmoid() * &target), &target);
        assert!((ones - expected.double_value(&[])).abs() < 1e-15);
        let pixels = value(&sigmoid().ignore_scope(IgnoreScope::Pixel), &logits(), &target);
        let indices = value(&sigmoid(), &logits(), &classes());
        assert!((pixels - indices).abs() < 1e-15);
    }

    #[test]
    fn the_mean_of_weighted_losses_divides_by_what_was_chosen() {
        let weight = || Tensor::from_slice(&[1.0, 0.0, 3.0]);
        let losses = softmax().reduction(Reduction::None).forward(&logits(), &classes());
        let sum = (losses * weight()).sum(None).double_value(&[]);
        let criterion = || softmax().weight(weight());
        assert!((value(&criterion(), &logits(), &classes()) - sum / 6.0).abs() < 1e-15);
        let by_weight = criterion().weighted_mean(WeightedMean::Weight);
        assert!((value(&by_weight, &logits(), &classes()) - sum / 8.0).abs() < 1e-15);
    }

    #[test]
    fn probabilities_need_no_second_softmax() {
        let none = super::super::activation::Activating::Known(Activation::None);
        let loss = softmax().f_of(&logits().softmax(1, Kind::Double), &classes(), &none).unwrap();
        assert_eq!(loss.double_value(&[]), value(&softmax(), &logits(), &classes()));
    }

    #[test]
    fn the_gradients_are_those_of_differences() {
        let soft = logits().sigmoid().flip([1]) * 0.9 + 0.01;
        for log_loss in [false, true] {
            for grouping in [Grouping::SampleAndClass, Grouping::Class, Grouping::Sample, Grouping::All] {
                let criterion =
                    || softmax().grouping(grouping).log_loss(log_loss).weight(Tensor::from_slice(&[0.5, 1.0, 2.0]));
                assert_gradient(&logits(), |input| criterion().forward(input, &classes()));
                let minimum = criterion().measure(OverlapMeasure::Minimum);
                assert_gradient(&soft, |target| minimum.forward(&logits(), target));
            }
        }
    }

    #[test]
    fn half_kinds_are_computed_in_single_precision() {
        for kind in [Kind::Half, Kind::BFloat16] {
            let input = logits().to_kind(kind);
            let loss = softmax().forward(&input, &classes());
            let expected = softmax().forward(&input.to_kind(Kind::Float), &classes()).to_kind(kind);
            assert_eq!(loss, expected);
        }
    }

    #[test]
    fn an_empty_batch_is_defined() {
        let (input, target) = (logits().narrow(0, 0, 0), classes().narrow(0, 0, 0));
        assert!(value(&softmax(), &input, &target).is_nan());
        assert_eq!(value(&softmax().reduction(Reduction::Sum), &input, &target), 0.0);
        assert!(value(&softmax().empty_mask(EmptyMask::Skip), &input, &target).is_nan());
    }

    #[test]
    fn invalid_values_can_make_the_loss_nan() {
        let criterion = || softmax().invalid_values(InvalidValues::Nan);
        assert!(value(&criterion(), &logits(), &(classes() + 1)).is_nan());
        assert!(value(&criterion().weight(Tensor::from_slice(&[1.0, 1.0, -1.0])), &logits(), &classes()).is_nan());
        assert_eq!(value(&criterion(), &logits(), &classes()), value(&softmax(), &logits(), &classes()));
    }
}
