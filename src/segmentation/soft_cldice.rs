use tch::Tensor;

use super::activation::{activation, activation_option, f_check_masks, f_poison};
use super::mask::{check_background, f_drop_background, group_dims};
use super::region::{Grouping, not_negative};
use crate::check::{self, ClassIndices, Validity};
use crate::kernels::{Neighbours, NumberOperations, f_neighbours};
use crate::numeric::{f_ratio, f_reals, result_kind, wide_kind};
use crate::{InvalidValues, Loss, LossError, Reduction};

crate::options::options! {
/// The soft clDice loss: how little of the centre line of the prediction lies within the target, and the other way
/// round.
///
/// It rewards the connection of thin structures such as vessels, roads and nerves, in which a gap of one pixel hardly
/// changes a loss of overlap. The centre lines are soft skeletons, made by repeated erosion. Use it with a loss of
/// overlap, as [`SoftDiceClDiceLoss`](crate::SoftDiceClDiceLoss) does.
///
/// # Formula
///
/// ℓ = 1 − 2 P S / (P + S + s)
///
/// P = (Σ skel(p) t + sₙ) / (Σ skel(p) + s_d), S = (Σ skel(t) p + sₙ) / (Σ skel(t) + s_d)
///
/// where p is the probability, t the target, P the topological precision and S the topological sensitivity, summed over
/// the pixels and classes of a sample. With erosion by a cross, opening by erosion and dilation by a square, and p⁰ =
/// p,
///
/// pⁱ⁺¹ = erode(pⁱ), δⁱ = max(0, pⁱ − open(pⁱ)), skel⁰ = δ⁰, skelⁱ = skelⁱ⁻¹ + max(0, δⁱ − skelⁱ⁻¹ δⁱ)
///
/// and skel is that after the last iteration.
///
#[doc = include_str!("../../docs/book/src/gallery/soft_cldice.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C, d₁, d₂]` or `[N, C, d₁, d₂, d₃]`; probabilities, or logits with an
///   [`activation`](SoftClDiceLoss::activation)
/// * `target`: `[N, C, d₁, d₂]` or `[N, C, d₁, d₂, d₃]`, masks of any kind of real numbers or Booleans; or
///   `[N, d₁, d₂]` or `[N, d₁, d₂, d₃]`, of any integer kind, for class indices
/// * result: scalar; with [`Reduction::None`] one loss for each group, `[N]`
///
/// # Reference
///
/// `monai.losses.SoftclDiceLoss` 1.6. Suprosanna Shit et al.: *clDice – a Novel Topology-Preserving Loss Function for
/// Tubular Structure Segmentation*, CVPR 2021.
///
/// # A full target
///
/// A target that fills the whole image has no edge that could be eroded, and so no centre line. As in MONAI, an empty
/// prediction then has a loss near 0, because both ratios are the smoothing divided by itself.
/// [`SoftDiceClDiceLoss`](crate::SoftDiceClDiceLoss) with an α below 1 avoids that.
///
/// # Differences from MONAI
///
/// * `f16` and `bf16` are computed in `f32`.
/// * Where smoothing is 0 and a skeleton is empty the ratio is 0; MONAI's is NaN.
/// * Leaving out the background of a single class is an error; MONAI warns and keeps it.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class, a mask or an input out of range, [`LossError::Option`] for an option out of its
/// range and for a softmax of a single class.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, SoftClDiceLoss};
///
/// // A line of one pixel's width is its own skeleton.
/// let line = Tensor::from_slice(&[0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]).view([1, 1, 3, 3]);
/// let gap = Tensor::from_slice(&[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]).view([1, 1, 3, 3]);
///
/// let criterion = SoftClDiceLoss::new().smooth(1e-12);
/// assert!(f64::try_from(criterion.f_forward(&line, &line)?)?.abs() < 1e-9);
///
/// // The skeleton of the gap lies within the line: P = (2 + 1) / (2 + 1), and S = (2 + 1) / (3 + 1).
/// let (precision, sensitivity) = (1.0, 0.75);
/// let expected = 1.0 - 2.0 * precision * sensitivity / (precision + sensitivity);
/// assert!((f64::try_from(criterion.f_forward(&gap, &line)?)? - expected).abs() < 1e-9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "SoftclDiceLoss")]
#[doc(alias = "clDice")]
#[doc(alias = "centerline dice")]
pub struct SoftClDiceLoss: "soft_cldice";

/// The loss with MONAI's defaults.
new {
    /// how many times the masks are eroded: at least half the width of the widest structure.
    #[doc(alias = "iter_")]
    iterations: usize = 3,
    /// what is added to the numerators of precision and sensitivity, at least 0.
    smooth_nr: f64 = 1.0,
    /// what is added to the denominators of precision and sensitivity, at least 0.
    smooth_dr: f64 = 1.0,
    /// what is added to the denominator of their harmonic mean, above 0.
    smooth: f64 = 1e-4,
    /// whether class 0 counts.
    include_background: bool = true,
    /// which pixels and classes are summed into one loss.
    grouping: Grouping = Grouping::Sample,
    /// what a class does that is out of range, or a mask or an input without activation that is not in \[0, 1\].
    pub(super) invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction over the groups.
    reduction: Reduction = Reduction::Mean,
    ..activation_option,
}
}

impl SoftClDiceLoss {
    /// Checks the call; the probabilities and the masks of the classes that count.
    pub(super) fn f_masks(
        &self,
        input: &Tensor,
        target: &Tensor,
    ) -> Result<(Tensor, Tensor, [Validity; 2]), LossError> {
        check::arguments(input, target)?;
        self.f_check_options()?;
        let shape = input.size();
        if !matches!(shape.len(), 4 | 5) || shape[1..].contains(&0) {
            return Err(check::shape_error(
                ("input", input),
                "[N, C, d1, d2] or [N, C, d1, d2, d3], none of C and d 0",
            ));
        }
        check_background("include_background", input, self.include_background)?;
        let kind = wide_kind(input)?;
        let (masks, valid_target) = if target.size() == shape {
            let masks = f_reals(("target", target), kind)?;
            let validity = f_check_masks(&masks, None, self.invalid_values)?;
            (masks, validity)
        } else {
            let (classes, target) = check::class_target(target, input, 1, ", or that of input for masks")?;
            let target = ClassIndices::f_new(&target, classes, None, self.invalid_values)?;
            let masks = Tensor::f_zeros(&shape, (kind, input.device()))?;
            (masks.f_scatter_number(1, &target.indices.f_unsqueeze(1)?, 1)?, target.validity)
        };
        let (probabilities, valid_input) =
            self.activation.f_probabilities(&input.f_to_kind(kind)?, self.invalid_values)?;
        let f_kept = |tensor: &Tensor| f_drop_background("include_background", tensor, self.include_background);
        Ok((f_kept(&probabilities)?, f_kept(&masks)?, [valid_input, valid_target]))
    }

    /// The loss of probabilities and masks.
    pub(super) fn f_of_masks(&self, probabilities: &Tensor, masks: &Tensor) -> Result<Tensor, LossError> {
        let precision = self.f_share(&self.f_skeleton(probabilities)?, masks)?;
        let sensitivity = self.f_share(&self.f_skeleton(masks)?, probabilities)?;
        let sum = precision.f_add(&sensitivity)?.f_add_number(self.smooth)?;
        let losses = precision.f_mul(&sensitivity)?.f_mul_number(2)?.f_div(&sum)?.f_rsub_number(1)?;
        self.reduction.f_apply(&losses)
    }

    /// The share of a skeleton that lies within a region.
    fn f_share(&self, skeleton: &Tensor, region: &Tensor) -> Result<Tensor, LossError> {
        let dims = group_dims(self.grouping, region.dim());
        let inside = skeleton.f_mul(region)?.f_sum_dim_intlist(&dims[..], false, None)?.f_add_number(self.smooth_nr)?;
        f_ratio(&inside, &skeleton.f_sum_dim_intlist(&dims[..], false, None)?.f_add_number(self.smooth_dr)?)
    }

    fn f_skeleton(&self, region: &Tensor) -> Result<Tensor, LossError> {
        let mut region = region.shallow_clone();
        let mut eroded = f_erode(&region)?;
        let mut skeleton = f_lost(&region, &eroded)?;
        for _ in 0..self.iterations {
            region = eroded;
            eroded = f_erode(&region)?;
            let lost = f_lost(&region, &eroded)?;
            skeleton = skeleton.f_add(&lost.f_sub(&skeleton.f_mul(&lost)?)?.f_relu()?)?;
        }
        Ok(skeleton)
    }
}

/// What an opening removes from a region, given its erosion.
fn f_lost(region: &Tensor, eroded: &Tensor) -> Result<Tensor, LossError> {
    let dilated = f_neighbours(Neighbours::Dilate, eroded, |eroded| f_max_pool(eroded, &vec![3; eroded.dim() - 2]))?;
    Ok(region.f_sub(&dilated)?.f_relu()?)
}

/// The least value of each pixel and its direct neighbours.
fn f_erode(region: &Tensor) -> Result<Tensor, LossError> {
    f_neighbours(Neighbours::Erode, region, f_least)
}

fn f_least(region: &Tensor) -> Result<Tensor, LossError> {
    let (negative, axes) = (region.f_neg()?, region.dim() - 2);
    let along = |axis: usize| (0..axes).map(|other| if other == axis { 3 } else { 1 }).collect::<Vec<i64>>();
    let mut least = f_max_pool(&negative, &along(0))?.f_neg()?;
    for axis in 1..axes {
        least = least.f_minimum(&f_max_pool(&negative, &along(axis))?.f_neg()?)?;
    }
    Ok(least)
}

/// The largest value within a window of odd lengths around each pixel.
fn f_max_pool(region: &Tensor, window: &[i64]) -> Result<Tensor, LossError> {
    let ones = vec![1; window.len()];
    let padding: Vec<i64> = window.iter().map(|length| length / 2).collect();
    Ok(match window.len() {
        2 => region.f_max_pool2d(window, &ones[..], &padding[..], &ones[..], false)?,
        _ => region.f_max_pool3d(window, &ones[..], &padding[..], &ones[..], false)?,
    })
}

impl Loss for SoftClDiceLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        not_negative("smooth_nr", self.smooth_nr)?;
        not_negative("smooth_dr", self.smooth_dr)?;
        check::option("smooth", self.smooth, self.smooth > 0.0 && self.smooth.is_finite(), "a number above 0")
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let (probabilities, masks, validity) = self.f_masks(input, target)?;
        let loss = self.f_of_masks(&probabilities, &masks)?;
        f_poison(loss.f_to_kind(result_kind(input)?)?, &validity)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::Activation;

    fn logits() -> Tensor {
        (Tensor::arange(120, (Kind::Double, Device::Cpu)) * 12.9898).sin().view([2, 3, 5, 4]) * 3.0
    }

    fn indices() -> Tensor {
        let values: Vec<i64> = (0..40).map(|i| i * 7 % 11 % 3).collect();
        Tensor::from_slice(&values).view([2, 5, 4])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let new = SoftClDiceLoss::new;
        let message = |criterion: SoftClDiceLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (
                message(new(), &logits().view([2, 3, 20]), &indices().view([2, 20])),
                "input has shape [2, 3, 20], expected [N, C, d1, d2] or [N, C, d1, d2, d3], none of C and d 0",
            ),
            (message(new(), &logits(), &(indices() - 1)), "target holds -1, expected classes in [0, 3)"),
            (message(new().smooth(0.0), &logits(), &indices()), "option smooth is 0, expected a number above 0"),
            (
                message(new().smooth_dr(-1.0), &logits(), &indices()),
                "option smooth_dr is -1, expected a finite number of at least 0",
            ),
            (
                message(new().include_background(false), &logits().view([6, 1, 5, 4]), &logits().view([6, 1, 5, 4])),
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
            let criterion = SoftClDiceLoss::new().activation(Activation::Softmax).include_background(background);
            assert_eq!(criterion.forward(&logits(), &indices()), criterion.forward(&logits(), &masks));
        }
    }

    #[test]
    fn empty_regions_without_smoothing_stay_finite() {
        let input = Tensor::zeros([1, 1, 4, 4], (Kind::Double, Device::Cpu)).set_requires_grad(true);
        let loss = SoftClDiceLoss::new().smooth_nr(0.0).smooth_dr(0.0).forward(&input, &input.zeros_like());
        loss.backward();
        assert_eq!(loss.double_value(&[]), 1.0);
        assert_eq!(input.grad(), input.zeros_like());
    }

    #[test]
    fn its_gradient_is_that_of_finite_differences() {
        let criterion = SoftClDiceLoss::new().activation(Activation::Softmax);
        let input = logits().set_requires_grad(true);
        criterion.forward(&input, &indices()).backward();
        let value = |index: i64, step: f64| {
            let moved = logits();
            let _ = moved.view(-1).get(index).g_add_scalar_(step);
            criterion.forward(&moved, &indices()).double_value(&[])
        };
        for index in 0..120 {
            let expected = (value(index, 1e-6) - value(index, -1e-6)) / 2e-6;
            assert!((input.grad().view(-1).double_value(&[index]) - expected).abs() < 1e-7);
        }
    }
}
