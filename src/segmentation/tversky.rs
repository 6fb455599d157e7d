use tch::Tensor;

use super::activation::activation;
use super::region::{RegionLoss, Regions, Score, loss_of_regions, region_options, score_options, with_regions};
use crate::{Loss, LossError};

crate::options::options! {
/// The Tversky loss: a Dice loss that weighs false positives and false negatives differently.
///
/// Choose it where missing a pixel of a region is worse than predicting one too many, as with lesions: β > α. With
/// α = β = ½ it is [`DiceLoss`](crate::DiceLoss), with α = β = 1 [`JaccardLoss`](crate::JaccardLoss). To weigh bad
/// regions more than good ones choose [`FocalTverskyLoss`](crate::FocalTverskyLoss).
///
/// # Formula
///
/// For each region r, which is a class in a sample unless [`grouping`](Self::grouping) says otherwise,
///
/// Tᵣ = (I + sₙ) / max(I + α (Σ p − I) + β (Σ t − I) + s_d, ε) with I = Σ p·t, and ℓᵣ = w\[r\] · (1 − Tᵣ), or
/// w\[r\] · (−log max(Tᵣ, ε)) with `log_loss`
///
/// where Σ p − I are the false positives, Σ t − I the false negatives, and the other letters and the options are those
/// of [`DiceLoss`](crate::DiceLoss).
///
#[doc = include_str!("../../docs/book/src/gallery/tversky.svg")]
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
/// `monai.losses.TverskyLoss` of MONAI 1.6, `segmentation_models_pytorch.losses.TverskyLoss` of
/// segmentation-models-pytorch 0.6 (with `gamma` it is [`FocalTverskyLoss`](crate::FocalTverskyLoss)),
/// `kornia.losses.TverskyLoss` and `tversky_loss` of kornia 0.9. Salehi, Erdogmus and Gholipour, Tversky loss function
/// for image segmentation using 3D fully convolutional deep networks, 2017.
///
/// # Differences between the references
///
/// The defaults are MONAI's. The page of [`DiceLoss`](crate::DiceLoss) lists the options of segmentation-models-pytorch
/// and kornia's `macro`; their `smooth` and `eps` are `smooth_nr` and `smooth_dr` here without a factor of 2.
///
/// # Errors
///
/// Those of [`DiceLoss`](crate::DiceLoss): [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for
/// arguments that do not fit together, [`LossError::Value`] for a class index, a mask or an input out of range or a
/// weight below 0, [`LossError::Option`] for an option out of its range, such as an α below 0.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, TverskyLoss};
///
/// let input = Tensor::from_slice(&[1.0, 0.5, 0.5, 0.0]).view([1, 1, 4]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64, 1, 0, 1]).view([1, 1, 4]);
///
/// let criterion = TverskyLoss::new().alpha(0.25).beta(0.75).smooth_nr(0.0).smooth_dr(0.0);
/// let loss = criterion.f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// // Intersection 1.5, false positives 0.5, false negatives 1.5.
/// assert_eq!(f64::try_from(&loss)?, 1.0 - 1.5 / (1.5 + 0.25 * 0.5 + 0.75 * 1.5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "tversky_loss")]
#[doc(alias = "tversky_index")]
pub struct TverskyLoss: "tversky";

/// The Tversky loss with MONAI's defaults.
new {
    inner regions: Regions = Regions::new();
    /// the weight of false positives.
    alpha: f64 = 0.5,
    /// the weight of false negatives.
    beta: f64 = 0.5,
    ..region_options in regions,
    ..score_options in regions,
}
}

impl RegionLoss for TverskyLoss {
    with_regions!();

    fn f_score(&self) -> Result<Score, LossError> {
        Score::f_tversky(self.alpha, self.beta)
    }
}

impl Loss for TverskyLoss {
    loss_of_regions!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;
    use crate::{Activation, DiceLoss, JaccardLoss, Reduction};

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -1.0, 2.0, 1.0, 0.0, 0.25, -0.5, 1.5]).view([2, 2, 2])
    }

    fn classes() -> Tensor {
        Tensor::from_slice(&[0_i64, 1, 1, 1]).view([2, 2])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        for (criterion, option) in [
            (TverskyLoss::new().alpha(-0.5), "option alpha is -0.5, expected a finite number of at least 0"),
            (TverskyLoss::new().beta(f64::INFINITY), "option beta is inf, expected a finite number of at least 0"),
        ] {
            assert_eq!(criterion.f_forward(&logits(), &classes()).unwrap_err().to_string(), option);
        }
    }

    #[test]
    fn dice_and_jaccard_are_special_cases() {
        let tversky = |weight| {
            let criterion = TverskyLoss::new().alpha(weight).beta(weight).activation(Activation::Sigmoid);
            criterion.smooth_nr(0.5).smooth_dr(0.5).reduction(Reduction::None).forward(&logits(), &classes())
        };
        let dice = DiceLoss::new().activation(Activation::Sigmoid).smooth_nr(1.0).smooth_dr(1.0);
        let jaccard = JaccardLoss::new().activation(Activation::Sigmoid).smooth_nr(0.5).smooth_dr(0.5);
        for (expected, weight) in [
            (dice.reduction(Reduction::None).forward(&logits(), &classes()), 0.5),
            (jaccard.reduction(Reduction::None).forward(&logits(), &classes()), 1.0),
        ] {
            assert!((tversky(weight) - expected).abs().max().double_value(&[]) < 1e-15);
        }
    }

    #[test]
    fn the_gradient_is_that_of_differences() {
        let criterion = TverskyLoss::new().alpha(0.2).beta(1.5).activation(Activation::Softmax);
        assert_gradient(&logits(), |input| criterion.forward(input, &classes()));
    }
}
