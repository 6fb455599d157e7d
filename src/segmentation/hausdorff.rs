use tch::{Device, Kind, Tensor};

use super::activation::{activation, activation_option, f_check_masks, f_poison};
use super::distance_transform::squared_distances;
use super::mask::{check_background, f_drop_background, group_dims};
use super::region::Grouping;
use crate::check::{self, ClassIndices, Validity};
use crate::kernels::NumberOperations;
use crate::numeric::{f_reals, result_kind, wide_kind};
use crate::{InvalidValues, Loss, LossError, Reduction};

crate::options::options! {
/// The Hausdorff loss by distance transforms: an error counts more the farther it is from the boundaries.
///
/// A smooth stand-in for the Hausdorff distance, the largest distance between two boundaries. Choose it, added to a
/// loss of overlap such as [`DiceLoss`](crate::DiceLoss), where a few pixels far off are worse than many near the
/// boundary.
///
/// # Formula
///
/// ℓ = 1/P · Σᵢ (pᵢ − tᵢ)² (dₚ\[i\]^α + dₜ\[i\]^α)
///
/// where p is the probability and t the target, in the P pixels i of a class of a sample, and d the Euclidean distance
/// of a pixel to the nearest one on the other side of the boundary; p and t are inside where they are above 1/2. A mask
/// without a boundary has d = 0, unless [`no_boundary`](HausdorffDtLoss::no_boundary) says otherwise. The distances
/// have no gradient. With [`log`](HausdorffDtLoss::log) the result is log(1 + ℓ), after the reduction.
///
#[doc = include_str!("../../docs/book/src/gallery/hausdorff_dt.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C, d₁, …, dₖ]`; probabilities, or logits with an [`activation`](HausdorffDtLoss::activation)
/// * `target`: `[N, C, d₁, …, dₖ]`, masks of any kind of numbers or Booleans; or `[N, d₁, …, dₖ]`, of any integer kind,
///   for class indices
/// * result: scalar; with [`Reduction::None`] one loss for each group: `[N, C]`, without the background `[N, C − 1]`
///
/// # Reference
///
/// `monai.losses.HausdorffDTLoss` and `monai.losses.LogHausdorffDTLoss` 1.6. Davood Karimi, Septimiu E. Salcudean:
/// *Reducing the Hausdorff Distance in Medical Image Segmentation with Convolutional Neural Networks*, IEEE
/// Transactions on Medical Imaging 2019.
///
/// # An empty target
///
/// An empty target has no boundary, and a prediction that is inside everywhere has none either: as in MONAI the loss of
/// the worst prediction is then 0. With [`NoBoundary::Diagonal`] it is not; or add a loss of overlap.
///
/// # Differences from MONAI
///
/// * With [`Reduction::None`] MONAI keeps the dimensions of the pixels, of size 1.
/// * An image may have any number of dimensions; MONAI takes two and three.
/// * MONAI rounds the distances to `f32` for `f64` too.
/// * MONAI returns `f32` for `f16` and `bf16`; here the loss has the kind of the input, and is computed in `f32`.
/// * The background counts by default, as in the other losses; MONAI's default leaves it out. Leaving out the
///   background of a single class is an error, where MONAI warns and keeps it.
///
/// The distances are computed on the CPU, in time linear in the number of pixels; for tensors on other devices that
/// means a copy of the masks there and one of the distances back.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, or a mask or an input without an activation that is not in \[0, 1\],
/// [`LossError::Option`] for an α that is negative or not finite, and for a softmax of a single class.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{HausdorffDtLoss, Loss};
///
/// let target = Tensor::from_slice(&[1.0, 0.0, 0.0, 0.0]).view([1, 1, 1, 4]);
/// let near = Tensor::from_slice(&[1.0, 1.0, 0.0, 0.0]).view([1, 1, 1, 4]);
/// let far = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0]).view([1, 1, 1, 4]);
///
/// // One wrong pixel of four. The nearer one is 1 pixel away from either boundary, the farther one 1 from the boundary
/// // of the prediction and 3 from that of the target.
/// let criterion = HausdorffDtLoss::new();
/// assert_eq!(f64::try_from(criterion.f_forward(&near, &target)?)?, (1.0 + 1.0) / 4.0);
/// assert_eq!(f64::try_from(criterion.f_forward(&far, &target)?)?, (1.0 + 9.0) / 4.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "HausdorffDTLoss")]
#[doc(alias = "LogHausdorffDTLoss")]
#[doc(alias = "boundary_loss")]
pub struct HausdorffDtLoss: "hausdorff_dt" | "hausdorff";

/// The loss with MONAI's defaults, but with the background.
new {
    /// the exponent of the distances, at least 0.
    alpha: f64 = 2.0,
    /// whether class 0 counts.
    include_background: bool = true,
    /// over which pixels one mean is taken.
    grouping: Grouping = Grouping::SampleAndClass,
    /// how far the pixels of a mask without a boundary, all inside or all outside, are from it.
    no_boundary: NoBoundary = NoBoundary::Zero,
    /// whether the result is log(1 + ℓ).
    log: bool = false,
    /// what a class does that is out of range, or a mask or an input without activation that is not in \[0, 1\].
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction over the groups.
    reduction: Reduction = Reduction::Mean,
    ..activation_option,
}
}

/// How far the pixels of a mask without a boundary are from it, in a [`HausdorffDtLoss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum NoBoundary {
    /// 0: only the boundary of the other mask counts. The default, as in MONAI. With an empty target the loss is 0
    /// where the prediction is inside everywhere.
    #[default]
    Zero,
    /// The length of the image's diagonal. With an empty target every pixel that is predicted to be inside has a loss.
    Diagonal,
}

crate::options::words!(NoBoundary);

/// The target as it is compared with probabilities.
enum Target {
    /// A mask for each class.
    Masks(Tensor),
    /// A class index for each pixel, 64-bit.
    Indices(Tensor),
}

impl HausdorffDtLoss {
    fn f_target(&self, target: &Tensor, input: &Tensor) -> Result<(Target, Validity), LossError> {
        if target.size() == input.size() {
            let masks = f_reals(("target", target), input.f_kind()?)?;
            let validity = f_check_masks(&masks, None, self.invalid_values)?;
            return Ok((Target::Masks(masks), validity));
        }
        let (classes, target) = check::class_target(target, input, 1, ", or that of input for masks")?;
        let target = ClassIndices::f_new(&target, classes, None, self.invalid_values)?;
        Ok((Target::Indices(target.indices), target.validity))
    }

    /// dₚ^α + dₜ^α of every pixel of the classes that count, in the shape and kind of `probabilities`.
    fn f_distances(&self, probabilities: &Tensor, target: &Target) -> Result<Tensor, LossError> {
        let skipped = i64::from(!self.include_background);
        let f_kept = |tensor: &Tensor| f_drop_background("include_background", tensor, self.include_background);
        let kept = f_kept(&probabilities.f_detach()?)?;
        let shape = kept.size();
        let predicted = f_inside(&kept)?;
        let actual = match target {
            Target::Masks(masks) => f_inside(&f_kept(&masks.f_detach()?)?)?,
            Target::Indices(indices) => one_hot(&check::host_integers(indices)?, skipped..skipped + shape[1], shape[0]),
        };
        let pixels: Vec<usize> = shape[2..].iter().map(|&length| length as usize).collect();
        let region = pixels.iter().product::<usize>().max(1);
        let powers = |mask: &[bool]| {
            let squares = self.squared_distances(mask, &pixels);
            squares.into_iter().map(|square| square.powf(0.5 * self.alpha))
        };
        let regions = predicted.chunks(region).zip(actual.chunks(region));
        let sums = regions.flat_map(|(predicted, actual)| powers(predicted).zip(powers(actual)).map(|(p, t)| p + t));
        let distances = Tensor::f_from_slice(&sums.collect::<Vec<f64>>())?;
        Ok(distances.f_to_kind(kept.f_kind()?)?.f_to_device(kept.device())?.f_reshape(&shape)?)
    }

    /// The squared distances of the pixels of a mask from its boundary.
    fn squared_distances(&self, mask: &[bool], pixels: &[usize]) -> Vec<f64> {
        let bounded = mask.iter().any(|inside| *inside != mask[0]);
        if bounded || self.no_boundary == NoBoundary::Zero {
            return squared_distances(mask, pixels);
        }
        vec![pixels.iter().map(|length| (length * length) as f64).sum(); mask.len()]
    }
}

/// Which values are above 1/2, on the host.
fn f_inside(tensor: &Tensor) -> Result<Vec<bool>, LossError> {
    let inside = tensor.f_gt_number(0.5)?.f_to_kind(Kind::Uint8)?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = check::f_room(inside.numel())?;
    bytes.resize(inside.numel(), 0_u8);
    inside.f_copy_data(&mut bytes, inside.numel())?;
    Ok(bytes.into_iter().map(|byte| byte != 0).collect())
}

/// The masks of the `classes`, of each of the samples in turn.
fn one_hot(indices: &[i64], classes: std::ops::Range<i64>, samples: i64) -> Vec<bool> {
    let pixels = indices.len() / samples.max(1) as usize;
    let masks = |sample: &[i64]| -> Vec<bool> {
        classes.clone().flat_map(|class| sample.iter().map(move |index| *index == class)).collect()
    };
    indices.chunks(pixels.max(1)).flat_map(masks).collect()
}

/// The distance of each probability from the target.
fn f_errors(probabilities: &Tensor, target: &Target) -> Result<Tensor, LossError> {
    match target {
        Target::Masks(masks) => Ok(probabilities.f_sub(masks)?),
        Target::Indices(indices) => {
            let own = indices.f_unsqueeze(1)?;
            let errors = probabilities.f_gather(1, &own, false)?.f_rsub_number(1)?;
            Ok(probabilities.f_scatter(1, &own, &errors)?)
        }
    }
}

impl Loss for HausdorffDtLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        check::option("alpha", self.alpha, self.alpha >= 0.0 && self.alpha.is_finite(), "a number of at least 0")
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        self.f_check_options()?;
        let shape = input.size();
        check::shape(("input", input), shape.len() >= 3 && shape[1] != 0, "[N, C, d1, ...], with at least one class")?;
        check_background("include_background", input, self.include_background)?;
        let wide = input.f_to_kind(wide_kind(input)?)?;
        let (target, valid_target) = self.f_target(target, &wide)?;
        let (probabilities, valid_input) = self.activation.f_probabilities(&wide, self.invalid_values)?;
        let distances = self.f_distances(&probabilities, &target)?;
        let errors =
            f_drop_background("include_background", &f_errors(&probabilities, &target)?, self.include_background)?;
        let dims = group_dims(self.grouping, shape.len());
        let losses = errors.f_square()?.f_mul(&distances)?.f_mean_dim(dims, false, None)?;
        let loss = self.reduction.f_apply(&losses)?;
        let loss = if self.log { loss.f_log1p()? } else { loss };
        f_poison(loss.f_to_kind(result_kind(input)?)?, &[valid_input, valid_target])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Activation;

    fn logits() -> Tensor {
        let values: Vec<f64> = (0..60).map(|i| f64::from(i * 37 % 41) / 10.0 - 2.0).collect();
        Tensor::from_slice(&values).view([2, 3, 5, 2])
    }

    fn indices() -> Tensor {
        let values: Vec<i64> = (0..20).map(|i| i * 7 % 11 % 3).collect();
        Tensor::from_slice(&values).view([2, 5, 2])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let new = HausdorffDtLoss::new;
        let message = |criterion: HausdorffDtLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (
                message(new(), &logits(), &indices().view([2, 2, 5])),
                "target has shape [2, 2, 5], expected [2, 5, 2], the shape of input without its classes, or that of \
                 input for masks",
            ),
            (
                message(new(), &logits().view([6, 10]), &indices()),
                "input has shape [6, 10], expected [N, C, d1, ...], with at least one class",
            ),
            (message(new(), &logits(), &(indices() + 1)), "target holds 3, expected classes in [0, 3)"),
            (message(new().alpha(-1.0), &logits(), &indices()), "option alpha is -1, expected a number of at least 0"),
            (
                message(new().include_background(false), &logits().view([6, 1, 5, 2]), &logits().view([6, 1, 5, 2])),
                "option include_background is false, expected true with a single class",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn class_indices_are_their_masks() {
        let masks = indices().one_hot(3).movedim_int(-1, 1);
        for background in [true, false] {
            let criterion = HausdorffDtLoss::new().activation(Activation::Softmax).include_background(background);
            let expected = criterion.forward(&logits(), &masks).double_value(&[]);
            assert!((criterion.forward(&logits(), &indices()).double_value(&[]) - expected).abs() < 1e-12 * expected);
        }
    }

    #[test]
    fn a_perfect_prediction_is_zero() {
        let masks = indices().one_hot(3).movedim_int(-1, 1);
        let loss = HausdorffDtLoss::new().forward(&masks.to_kind(Kind::Double), &masks);
        assert_eq!(loss.double_value(&[]), 0.0);
    }

    #[test]
    fn the_groups_are_means_of_the_finest_ones() {
        let criterion = |grouping| {
            let criterion = HausdorffDtLoss::new().activation(Activation::Softmax).grouping(grouping);
            criterion.reduction(Reduction::None).forward(&logits(), &indices())
        };
        let finest = criterion(Grouping::SampleAndClass);
        assert_eq!(finest.size(), [2, 3]);
        assert!(criterion(Grouping::Class).allclose(&finest.mean_dim(0, false, None), 1e-12, 0.0, false));
        assert!(criterion(Grouping::Sample).allclose(&finest.mean_dim(1, false, None), 1e-12, 0.0, false));
        assert!(criterion(Grouping::All).allclose(&finest.mean(None), 1e-12, 0.0, false));
    }

    #[test]
    fn its_gradient_is_that_of_finite_differences() {
        let criterion = HausdorffDtLoss::new().activation(Activation::Softmax).alpha(1.5).log(true);
        let input = logits().set_requires_grad(true);
        criterion.forward(&input, &indices()).backward();
        let value = |index: i64, step: f64| {
            let moved = logits();
            let _ = moved.view(-1).get(index).g_add_scalar_(step);
            criterion.forward(&moved, &indices()).double_value(&[])
        };
        for index in 0..60 {
            let expected = (value(index, 1e-5) - value(index, -1e-5)) / 2e-5;
            assert!((input.grad().view(-1).double_value(&[index]) - expected).abs() < 1e-8);
        }
    }
}
