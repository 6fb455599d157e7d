use tch::Tensor;

use super::activation::activation;
use super::region::{RegionLoss, Regions, Score, loss_of_regions, region_options, score_options, with_regions};
use crate::{Loss, LossError};

crate::options::options! {
/// The Jaccard loss: 1 − IoU, the intersection of the predicted and the target's region over their union.
///
/// Choose it where the IoU is what the model will be judged by. It ranks single predictions as
/// [`DiceLoss`](crate::DiceLoss) does, since J = D / (2 − D), but weighs bad regions more in a mean.
///
/// # Formula
///
/// For each region r, which is a class in a sample unless [`grouping`](Self::grouping) says otherwise,
///
/// Jᵣ = (Σ p·t + sₙ) / max(Σ p + Σ t − Σ p·t + s_d, ε), and ℓᵣ = w\[r\] · (1 − Jᵣ), or w\[r\] · (−log max(Jᵣ, ε)) with
/// `log_loss`
///
/// where the letters and the options are those of [`DiceLoss`](crate::DiceLoss).
///
#[doc = include_str!("../../docs/book/src/gallery/jaccard.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[N]` or `[N, d₁, …, dₖ]`, of any integer kind, for class indices; or `[N, C]` or `[N, C, d₁, …, dₖ]`,
///   of any real kind or Boolean, for masks or probabilities
/// * `weight`: `[C]`
/// * result: scalar, or one value for each region with [`Reduction::None`](crate::Reduction::None)
///
/// # Reference
///
/// `segmentation_models_pytorch.losses.JaccardLoss` of segmentation-models-pytorch 0.6, `monai.losses.DiceLoss` of
/// MONAI 1.6 with `jaccard`. Rahman and Wang, Optimizing intersection-over-union in deep neural networks for image
/// segmentation, 2016; Wang et al., Jaccard metric losses, 2023.
///
/// # Differences between the references
///
/// The defaults are those of [`DiceLoss`](crate::DiceLoss), whose page lists the options of
/// segmentation-models-pytorch; its `smooth` is both `smooth_nr` and `smooth_dr` here. MONAI writes J with twice the
/// sums, so that its smoothing is twice that of the same loss here.
///
/// # Errors
///
/// Those of [`DiceLoss`](crate::DiceLoss): [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for
/// arguments that do not fit together, [`LossError::Value`] for a class index, a mask or an input out of range or a
/// weight below 0, [`LossError::Option`] for an option out of its range.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{JaccardLoss, Loss};
///
/// let input = Tensor::from_slice(&[1.0, 0.5, 0.5, 0.0]).view([1, 1, 4]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[true, true, false, false]).view([1, 1, 4]);
///
/// let loss = JaccardLoss::new().smooth_nr(0.0).smooth_dr(0.0).f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// // Intersection 1.5, sizes 2 and 2, union 2.5.
/// assert_eq!(f64::try_from(&loss)?, 1.0 - 1.5 / 2.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "IoU")]
#[doc(alias = "iou")]
#[doc(alias = "IoULoss")]
#[doc(alias = "soft_iou")]
#[doc(alias = "intersection over union")]
pub struct JaccardLoss: "jaccard";

/// The Jaccard loss with the defaults of [`DiceLoss`](crate::DiceLoss).
new {
    inner regions: Regions = Regions::new();
    ..region_options in regions,
    ..score_options in regions,
}
}

impl RegionLoss for JaccardLoss {
    with_regions!();

    fn f_score(&self) -> Result<Score, LossError> {
        Ok(Score::Jaccard)
    }
}

impl Loss for JaccardLoss {
    loss_of_regions!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;
    use crate::{Activation, DiceLoss, Reduction};

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -1.0, 2.0, 1.0, 0.0, 0.25, -0.5, 1.5]).view([2, 2, 2])
    }

    fn classes() -> Tensor {
        Tensor::from_slice(&[0_i64, 1, 1, 1]).view([2, 2])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let error = JaccardLoss::new().f_forward(&logits(), &(classes() - 1)).unwrap_err();
        assert_eq!(error.to_string(), "target holds -1, expected classes in [0, 2)");
        let error = JaccardLoss::new().eps(-1.0).f_forward(&logits(), &classes()).unwrap_err();
        assert_eq!(error.to_string(), "option eps is -1, expected a finite number of at least 0");
    }

    #[test]
    fn it_is_dice_over_two_minus_dice() {
        let dice = DiceLoss::new().smooth_nr(0.0).smooth_dr(0.0).activation(Activation::Softmax);
        let jaccard = JaccardLoss::new().smooth_nr(0.0).smooth_dr(0.0).activation(Activation::Softmax);
        let dice: Tensor = 1.0 - dice.reduction(Reduction::None).forward(&logits(), &classes());
        let jaccard: Tensor = 1.0 - jaccard.reduction(Reduction::None).forward(&logits(), &classes());
        let twice: Tensor = 2.0 - &dice;
        assert!((jaccard - dice / twice).abs().max().double_value(&[]) < 1e-15);
    }

    #[test]
    fn the_gradient_is_that_of_differences() {
        for log_loss in [false, true] {
            let criterion = JaccardLoss::new().activation(Activation::Softmax).log_loss(log_loss);
            assert_gradient(&logits(), |input| criterion.forward(input, &classes()));
        }
    }
}
