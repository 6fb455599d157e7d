use tch::{Kind, Tensor};

use super::lovasz::{self, Errors};
use super::mask::f_one_channel;
use crate::check::{self, Validity};
use crate::kernels::{NumberOperations, Ranked, Ranks, Real, choose};
use crate::numeric::{f_filled, wide_kind};
use crate::{InvalidValues, Loss, LossError, Reduction, autograd};

crate::options::options! {
/// The Lovász hinge: a convex surrogate of the Jaccard loss of a binary mask.
///
/// It optimises the intersection over union of the mask itself, where pixelwise losses optimise the pixels, so that
/// small objects count as much as large ones. It takes logits and is usually added to, or follows, a training with
/// [`BceWithLogitsLoss`](crate::BceWithLogitsLoss). For classes that exclude each other choose
/// [`LovaszSoftmaxLoss`](crate::LovaszSoftmaxLoss).
///
/// # Formula
///
/// ℓ = Σₖ max(0, m\[πₖ\]) · (Δₖ − Δₖ₋₁), where m = 1 − x for the foreground and 1 + x for the background
///
/// where x is the input, π sorts the margin errors m in descending order, and Δₖ = 1 − IoU is the Jaccard loss of a
/// prediction that is wrong in exactly the pixels π₁ … πₖ, Δ₀ = 0. Without any foreground ℓ is the largest error. It is
/// computed over all pixels of the batch at once, or per image.
///
#[doc = include_str!("../../docs/book/src/gallery/lovasz_hinge.svg")]
///
/// # Shapes
///
/// * `input`: logits `[N, *]`, or any shape where the batch is one region
/// * `target`: `[N, *]`, the same shape, or `[N, d₁, …, dₖ]` for an input `[N, 1, d₁, …, dₖ]`; 0, 1 or the ignored
///   value, of any kind of real numbers or Booleans
/// * result: scalar, or `[N]` per image with [`Reduction::None`]
///
/// # Reference
///
/// `segmentation_models_pytorch.losses.LovaszLoss` 0.6 in the modes `binary` and `multilabel`;
/// `kornia.losses.lovasz_hinge_loss` 0.9. Maxim Berman, Amal Rannen Triki, Matthew B. Blaschko: *The Lovász-Softmax
/// loss*, CVPR 2018; Jiaqian Yu, Matthew B. Blaschko: *Learning submodular losses with the Lovász hinge*, ICML 2015.
///
/// # Differences from the references
///
/// * kornia always computes per image; smp, as here by default, over the batch.
/// * kornia ignores nothing; its result for a target of neither 0 nor 1 is meaningless, and so is smp's. Here it is an
///   error.
/// * A target of a floating kind has a gradient, as in both: that of the loss continued to masks between 0 and 1.
/// * The differences Δₖ − Δₖ₋₁ are computed in closed form: in `f32` they cancel where there are many pixels.
/// * smp returns `f32` for `f16` and `bf16`; here the loss has the kind of the input, and is computed in `f32`.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a target that is neither 0 nor 1 nor ignored.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, LovaszHingeLoss};
///
/// let logits = Tensor::from_slice(&[3.0, 0.0, -2.0, 1.0]).view([1, 4]).set_requires_grad(true);
/// let mask = Tensor::from_slice(&[1_i64, 1, 0, 0]).view([1, 4]);
///
/// let loss = LovaszHingeLoss::new().f_forward(&logits, &mask)?;
/// loss.f_backward()?;
///
/// // The false positive is wrong by 2 and takes the Jaccard loss from 0 to 1/3; the second pixel, wrong by 1, takes it
/// // on to 2/3. The other two are right by more than the margin.
/// assert!((f64::try_from(&loss)? - (2.0 / 3.0 + 1.0 / 3.0)).abs() < 1e-12);
/// assert_eq!(Vec::<f64>::try_from(logits.grad().view(-1))?, [0.0, -1.0 / 3.0, 0.0, 1.0 / 3.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "LovaszLoss")]
#[doc(alias = "lovasz_hinge")]
#[doc(alias = "lovasz_hinge_loss")]
#[doc(alias = "lovasz")]
pub struct LovaszHingeLoss: "lovasz_hinge";

/// The Lovász hinge with smp's defaults: over the whole batch at once.
new {
    /// whether each image, with all of its channels, is a region of its own.
    per_image: bool = false,
    /// the value of the target whose pixels are ignored.
    ignore_index: Option<i64> = None,
    /// what a target does that is neither 0 nor 1 nor ignored.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction over the images; without `per_image` there is only one loss.
    reduction: Reduction = Reduction::Mean,
}
}

impl LovaszHingeLoss {
    /// The numbers of regions and of the pixels of each.
    fn regions(&self, input: &Tensor) -> Result<[i64; 2], LossError> {
        let shape = input.size();
        match shape.split_first() {
            None if self.per_image => Err(check::shape_error(("input", input), "[N, ...], one image per row")),
            Some((images, pixels)) if self.per_image => Ok([*images, pixels.iter().product()]),
            _ => Ok([1, shape.iter().product()]),
        }
    }

    /// The labels, 1 of the foreground and −1 where it is ignored; where that is; and whether all are one of 0, 1 and
    /// ignored.
    fn f_pixels(&self, target: &Tensor) -> Result<(Tensor, Option<Tensor>, Validity), LossError> {
        let mut labels = target.f_to_kind(Kind::Int64)?.f_clamp_number(0, 1)?;
        // What is not an integer is not its integer part.
        let mut invalid = labels.f_ne_tensor(target)?;
        let ignored = self.ignore_index.map(|index| target.f_eq_number(index)).transpose()?;
        if let Some(ignored) = &ignored {
            let _ = invalid.f_masked_fill_number_(ignored, 0)?;
            let _ = labels.f_masked_fill_number_(ignored, -1)?;
        }
        let expected = || match self.ignore_index {
            Some(index) => format!("0, 1 or ignore_index {index}"),
            None => "0 or 1".into(),
        };
        let validity = Validity::f_new(("target", target), invalid, expected, self.invalid_values)?;
        Ok((labels, ignored, validity))
    }
}

impl Loss for LovaszHingeLoss {
    crate::option_tensors::with_tensors!();

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        let regions = self.regions(input)?;
        let kind = wide_kind(input)?;
        // Labels need no conversion.
        let of_target = if target.f_kind()? == Kind::Int64 { Kind::Int64 } else { kind };
        let target = f_one_channel(("target", target), input, of_target)?.f_reshape(regions)?;
        let (labels, ignored, validity) = self.f_pixels(&target.f_detach()?)?;
        let logits = input.f_to_kind(kind)?.f_reshape(regions)?;
        // Without `per_image` there is a single loss, which a sum leaves as it is.
        let reduction = if self.per_image { self.reduction } else { Reduction::Sum };
        let loss = if autograd::grad_enabled() && target.requires_grad() {
            reduction.f_apply(&f_of_differentiable_target(&logits, &target, ignored.as_ref())?)?
        } else {
            let (numbers, classes) = (logits.f_unsqueeze(1)?, Tensor::f_ones([1], (Kind::Int64, input.device()))?);
            let ranks = Ranks { numbers: &numbers, labels: &labels, classes: &classes, weight: None, present: false };
            lovasz::f_loss(Hinges, &ranks, ignored.is_some(), reduction)?
        };
        lovasz::f_finish(&loss, input, validity, reduction)
    }
}

/// The losses `[R]` of logits and a target `[R, P]` that has a gradient itself: with s = 2 t − 1 the errors are 1 − x
/// s, and the weights are those of a Jaccard loss of shares.
fn f_of_differentiable_target(logits: &Tensor, target: &Tensor, ignored: Option<&Tensor>) -> Result<Tensor, LossError> {
    let f_without = |tensor: &Tensor, number: f64| f_filled(tensor, ignored, number);
    let (logits, target) = (f_without(logits, 0.0)?, f_without(target, 0.0)?);
    let ranks = logits.f_mul(&target.f_mul_number(2)?.f_rsub_number(1)?)?;
    let terms = f_without(&ranks.f_add_number(1)?.f_relu()?, 0.0)?;
    if terms.numel() == 0 {
        return Ok(terms.f_sum_dim_intlist(1, false, None)?);
    }
    let order = f_without(&ranks.f_detach()?, f64::NEG_INFINITY)?.f_argsort_stable(true, 1, true)?;
    let weights = lovasz::f_growths_of_shares(&target.f_gather(1, &order, false)?)?;
    Ok(terms.f_gather(1, &order, false)?.f_mul(&weights)?.f_sum_dim_intlist(1, false, None)?)
}

/// The errors 1 + x of the background and 1 − x of the foreground, of which those above 0 count.
#[derive(Clone, Copy)]
struct Hinges;

impl Ranked for Hinges {
    #[inline(always)]
    fn error<R: Real>(self, x: R, own: bool) -> [R; 3] {
        let (zero, sign) = (R::of(0.0), R::of(if own { -1.0 } else { 1.0 }));
        // Pixels are ranked before 1 is added, because the sum is rounded and may make different numbers equal.
        let rank = sign * x;
        let error = rank + R::of(1.0);
        [rank, error.at_least(zero), choose(error.less_equal(zero), zero, sign)]
    }

    fn weights(self, total: usize) -> impl FnMut(bool) -> f64 {
        lovasz::growths(total)
    }
}

impl Errors for Hinges {
    fn f_errors(self, logits: &Tensor, own: &Tensor) -> Result<[Tensor; 2], LossError> {
        let ranks = logits.f_mul(&lovasz::f_signs(own)?)?;
        let terms = ranks.f_add_number(1)?.f_relu()?;
        Ok([ranks, terms])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn logits() -> Tensor {
        Tensor::from_slice(&[3.0, 0.0, -2.0, 1.0]).view([2, 2])
    }

    fn mask() -> Tensor {
        Tensor::from_slice(&[1_i64, 1, 0, 0]).view([2, 2])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let new = LovaszHingeLoss::new;
        let message = |criterion: LovaszHingeLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (message(new(), &logits(), &(mask() + 1)), "target holds 2, expected 0 or 1"),
            (
                message(new().ignore_index(255), &logits(), &(mask() * 3)),
                "target holds 3, expected 0, 1 or ignore_index 255",
            ),
            (message(new(), &logits(), &(mask().to_kind(Kind::Double) * 0.5)), "target holds 0.5, expected 0 or 1"),
            (message(new(), &logits(), &mask().view([4])), "target has shape [4], expected [2, 2], the shape of input"),
            (message(new(), &mask(), &mask()), "input has kind Int64, expected a floating kind"),
            (
                message(new(), &logits(), &mask().to_kind(Kind::ComplexFloat)),
                "target has kind ComplexFloat, expected a kind of real numbers",
            ),
            (
                message(new().per_image(true), &Tensor::from(1.0), &Tensor::from(1.0)),
                "input has shape [], expected [N, ...], one image per row",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn the_channel_may_be_missing_in_the_target() {
        let expected = LovaszHingeLoss::new().forward(&logits(), &mask());
        let loss = LovaszHingeLoss::new().forward(&logits().view([2, 1, 2]), &mask());
        assert_eq!(loss, expected);
    }

    #[test]
    fn an_ignored_pixel_is_as_good_as_absent() {
        for hidden in [1e4, -1e4, f64::INFINITY, f64::NEG_INFINITY] {
            let input = Tensor::from_slice(&[3.0, 0.0, -2.0, 1.0, hidden]).set_requires_grad(true);
            for kind in [Kind::Uint8, Kind::Int64, Kind::Double] {
                let target = Tensor::from_slice(&[1_i64, 1, 0, 0, 255]).to_kind(kind);
                let loss = LovaszHingeLoss::new().ignore_index(255).forward(&input, &target);
                loss.backward();
                assert_eq!(loss, LovaszHingeLoss::new().forward(&logits(), &mask()));
                assert_eq!(input.grad().double_value(&[4]), 0.0);
            }
        }
    }

    #[test]
    fn nothing_left_is_zero_with_a_zero_gradient() {
        let input = logits().set_requires_grad(true);
        let criterion = LovaszHingeLoss::new().ignore_index(255).per_image(true);
        let loss = criterion.forward(&input, &mask().full_like(255));
        loss.backward();
        assert_eq!(loss.double_value(&[]), 0.0);
        assert_eq!(input.grad(), input.zeros_like());
        let empty = LovaszHingeLoss::new().forward(&input.narrow(0, 0, 0), &mask().narrow(0, 0, 0));
        assert_eq!(empty.double_value(&[]), 0.0);
    }

    #[test]
    fn without_foreground_it_is_the_largest_error() {
        let loss =
            LovaszHingeLoss::new().per_image(true).reduction(Reduction::None).forward(&logits(), &mask().zeros_like());
        assert_eq!(Vec::<f64>::try_from(loss).unwrap(), [4.0, 2.0]);
    }

    #[test]
    fn invalid_values_can_make_the_loss_nan() {
        let target = Tensor::from_slice(&[1_i64, 1, 0, 7]).view([2, 2]);
        let criterion = || LovaszHingeLoss::new().invalid_values(InvalidValues::Nan).per_image(true);
        let losses = criterion().reduction(Reduction::None).forward(&logits(), &target);
        assert!(losses.double_value(&[0]) == 0.5 && losses.double_value(&[1]).is_nan());
        assert!(criterion().forward(&logits(), &target).double_value(&[]).is_nan());
    }

    #[test]
    fn many_pixels_do_not_cancel() {
        // Δₖ − Δₖ₋₁ of the last of these background pixels is 1 / (P (P − 1)), far below the resolution of Δ near 1.
        let pixels = 100_000;
        let errors = Tensor::arange(pixels, (Kind::Float, tch::Device::Cpu)).neg();
        let input = errors.set_requires_grad(true);
        let target = Tensor::zeros([pixels], (Kind::Int64, tch::Device::Cpu));
        let _ = target.get(0).fill_(1);
        let loss = LovaszHingeLoss::new().forward(&(&input + 2.0 * pixels as f64), &target);
        loss.backward();
        let (actual, expected) = (input.grad().double_value(&[pixels - 1]), 1.0 / (pixels * (pixels - 1)) as f64);
        assert!((actual / expected - 1.0).abs() < 1e-5, "{actual} {expected}");
    }
}
