use tch::Tensor;

use super::activation::activation;
use super::region::{RegionLoss, Regions, Score, Sizes, loss_of_regions, region_options, with_regions};
use crate::kernels::NumberOperations;
use crate::{Loss, LossError, autograd};

/// How [`GeneralizedDiceLoss`] weighs a class by its volume, the size of its region in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum VolumeWeight {
    /// 1 / volume². The default, as in the paper.
    #[default]
    Square,
    /// 1 / volume.
    Simple,
    /// 1: the volume has no influence.
    Uniform,
}

crate::options::words!(VolumeWeight);

crate::options::options! {
/// The generalised Dice loss: one Dice score over all classes, each weighed by how rare it is.
///
/// Choose it for several classes of very different sizes. For a mean of one score for each class choose
/// [`DiceLoss`](crate::DiceLoss).
///
/// # Formula
///
/// For each sample, or for the whole [`batch`](Self::batch),
///
/// ℓ = 1 − (2 Σ_c v_c Σ p·t + sₙ) / (Σ_c v_c (Σ p + Σ t) + s_d) with v_c = 1 / (Σ t)²
///
/// where the inner sums are over the pixels of the class c that are not ignored, p is the input after its activation, t
/// the target, v the weight of the class by its volume ([`weighting`](Self::weighting)), sₙ is `smooth_nr` and s_d is
/// `smooth_dr`. A class that is absent from the target has the greatest weight of the classes that are present. 0 / 0
/// is 0.
///
#[doc = include_str!("../../docs/book/src/gallery/generalized_dice.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[N]` or `[N, d₁, …, dₖ]`, of any integer kind, for class indices; or `[N, C]` or `[N, C, d₁, …, dₖ]`,
///   of any real kind or Boolean, for masks or probabilities
/// * result: scalar, or with [`Reduction::None`](crate::Reduction::None) `[N]`, `[]` over the batch
///
/// # Reference
///
/// `monai.losses.GeneralizedDiceLoss` of MONAI 1.6. Sudre et al., Generalised Dice overlap as a deep learning loss
/// function for highly unbalanced segmentations, 2017.
///
/// # An empty target
///
/// Where the target has no pixel of any class every weight is 0, and as in MONAI the loss is 0 for any prediction. With
/// [`VolumeWeight::Uniform`] it is not; and with the background as one of the classes no target is empty.
///
/// # Differences from MONAI
///
/// * It has a gradient for the target with every weighting; MONAI's backward fails there, except for `Uniform`.
/// * It is finite with no smoothing at all and empty regions, where MONAI's is NaN.
/// * The weights of an `f64` loss are computed in `f64`; MONAI's are in `f32`.
/// * `f16` and `bf16` are computed in `f32` and give a result of the input's kind; MONAI's is `f32`.
/// * Ignored pixels and a choice of classes are options here too.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class index, a mask or an input out of range, [`LossError::Option`] for a class that the
/// input does not have, for no class at all, and for a smoothing below 0.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{GeneralizedDiceLoss, Loss};
///
/// // Three pixels of class 0 and one of class 1, which weighs nine times as much.
/// let input = Tensor::from_slice(&[1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.5]).view([1, 2, 4]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0_i64, 0, 0, 1]).view([1, 4]);
///
/// let loss = GeneralizedDiceLoss::new().smooth_nr(0.0).smooth_dr(0.0).f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// let (intersections, sizes) = (3.0 / 9.0 + 0.5, (3.5 + 3.0) / 9.0 + (0.5 + 1.0));
/// assert!((f64::try_from(&loss)? - (1.0 - 2.0 * intersections / sizes)).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct GeneralizedDiceLoss: "generalized_dice";

/// The generalised Dice loss with MONAI's defaults.
new {
    // The denominator is kept away from 0 by its smoothing alone.
    inner regions: Regions = Regions { eps: 0.0, ..Regions::new() };
    /// how a class is weighed by its volume.
    weighting: VolumeWeight = VolumeWeight::Square,
    /// whether there is one score for the whole batch instead of one for each sample.
    batch: bool = false,
    ..region_options in regions,
}
}

impl GeneralizedDiceLoss {
    /// The weight of each region. The weight of an empty region would be infinite; it gets the greatest one of the
    /// others.
    fn f_weights(&self, volumes: &Tensor) -> Result<Tensor, LossError> {
        let f_inverse = |volumes: &Tensor| match self.weighting {
            VolumeWeight::Square => volumes.f_square()?.f_reciprocal(),
            VolumeWeight::Simple => volumes.f_reciprocal(),
            VolumeWeight::Uniform => volumes.f_ones_like(),
        };
        let inverse = f_inverse(&volumes.f_detach()?)?;
        let empty = inverse.f_eq_number(f64::INFINITY)?;
        let inverse = match autograd::grad_enabled() && volumes.requires_grad() {
            true => f_inverse(&volumes.f_masked_fill_number(&empty, 1)?)?,
            false => inverse,
        };
        let weights = inverse.f_masked_fill_number(&empty, 0)?;
        let greatest = weights.f_amax(-1, true)?.f_expand_as(&weights)?;
        Ok(greatest.f_where_self(&empty, &weights)?)
    }
}

impl RegionLoss for GeneralizedDiceLoss {
    with_regions!();

    fn f_score(&self) -> Result<Score, LossError> {
        Ok(Score::Dice)
    }

    fn f_of_sizes(&self, sizes: &Sizes) -> Result<Tensor, LossError> {
        let f_group = |sizes: &Tensor| match self.batch {
            true => Ok(sizes.f_sum_dim_intlist(0, false, None)?),
            false => Ok(sizes.shallow_clone()),
        };
        let grouped = sizes.f_map(f_group)?;
        let weights = self.f_weights(&grouped.target)?;
        let weighted = grouped.f_map(|sizes| Ok(sizes.f_mul(&weights)?.f_sum_dim_intlist(-1, false, None)?))?;
        self.regions.f_finish(&self.regions.f_loss_of(&weighted, Score::Dice, sizes.kind)?, sizes)
    }
}

impl Loss for GeneralizedDiceLoss {
    loss_of_regions!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;
    use crate::{Activation, DiceLoss, Grouping, Reduction};

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -1.0, 2.0, 1.0, 0.0, 0.25, -0.5, 1.5]).view([2, 2, 2])
    }

    fn classes() -> Tensor {
        Tensor::from_slice(&[0_i64, 1, 1, 1]).view([2, 2])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let error = GeneralizedDiceLoss::new().f_forward(&logits(), &(classes() + 1)).unwrap_err();
        assert_eq!(error.to_string(), "target holds 2, expected classes in [0, 2)");
        let error = GeneralizedDiceLoss::new().classes(&[2]).f_forward(&logits(), &classes()).unwrap_err();
        assert_eq!(error.to_string(), "option classes is 2, expected classes in [0, 2)");
    }

    #[test]
    fn uniform_weights_are_the_dice_of_all_classes() {
        let criterion = GeneralizedDiceLoss::new().weighting(VolumeWeight::Uniform).activation(Activation::Softmax);
        let dice = DiceLoss::new().grouping(Grouping::Sample).activation(Activation::Softmax);
        let difference = criterion.forward(&logits(), &classes()) - dice.forward(&logits(), &classes());
        assert!(difference.double_value(&[]).abs() < 1e-15);
    }

    #[test]
    fn there_is_one_score_for_a_sample_or_for_the_batch() {
        let criterion = || GeneralizedDiceLoss::new().activation(Activation::Softmax).reduction(Reduction::None);
        assert_eq!(criterion().forward(&logits(), &classes()).size(), [2]);
        assert_eq!(criterion().batch(true).forward(&logits(), &classes()).size(), [0_i64; 0]);
    }

    #[test]
    fn a_target_without_a_class_has_a_finite_gradient() {
        for weighting in [VolumeWeight::Square, VolumeWeight::Simple, VolumeWeight::Uniform] {
            for value in [0.0, 1.0] {
                let input = logits().sigmoid().set_requires_grad(true);
                let target = (input.detach().zeros_like() + value).masked_fill(&input.detach().lt(0.5), 0.0);
                let target = target.set_requires_grad(true);
                let criterion = GeneralizedDiceLoss::new().weighting(weighting).smooth_nr(0.0).smooth_dr(0.0);
                let loss = criterion.forward(&input, &target);
                loss.backward();
                for tensor in [loss, input.grad(), target.grad()] {
                    assert_eq!(tensor.isfinite().all().int64_value(&[]), 1, "{weighting:?} {value}");
                }
            }
        }
    }

    #[test]
    fn the_gradients_are_those_of_differences() {
        let soft = logits().sigmoid();
        for weighting in [VolumeWeight::Square, VolumeWeight::Simple, VolumeWeight::Uniform] {
            for batch in [false, true] {
                let criterion =
                    GeneralizedDiceLoss::new().weighting(weighting).batch(batch).activation(Activation::Softmax);
                assert_gradient(&logits(), |input| criterion.forward(input, &classes()));
                assert_gradient(&soft, |target| criterion.forward(&logits(), target));
            }
        }
    }
}
