use tch::{Kind, Tensor};

use super::activation::{Activation, f_activate, f_check_softmax};
use super::lovasz::{self, Errors};
use crate::check::{self, ClassIndices};
use crate::kernels::{NumberOperations, Ranked, Ranks, Real};
use crate::numeric::{f_abs, f_filled, f_parts_at, f_positions, wide_kind};
use crate::{InvalidValues, Loss, LossError, Reduction};

/// Over which classes [`LovaszSoftmaxLoss`] takes the mean.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum LovaszClasses {
    /// Those present in the target: of the batch, or of the image where the loss is per image. The default.
    #[default]
    Present,
    /// All; a class that is absent contributes its largest probability.
    All,
    /// The listed ones, absent or not.
    Only(Vec<i64>),
}

crate::option_tensors::without_tensors!(LovaszClasses);

crate::options::options! {
/// The Lovász-softmax loss: a surrogate of the Jaccard loss of classes that exclude each other.
///
/// It optimises the mean intersection over union itself, where [`CrossEntropyLoss`](crate::CrossEntropyLoss) optimises
/// the pixels, so that small objects and rare classes count as much as large ones. It takes logits and is usually added
/// to cross entropy, or follows a training with it. For masks that may overlap choose
/// [`LovaszHingeLoss`](crate::LovaszHingeLoss).
///
/// # Formula
///
/// ℓ_c = Σₖ m\[πₖ\] · (Δₖ − Δₖ₋₁), where m = 1 − p_c in the pixels of class c and p_c in the others
///
/// where p = softmax(x) over the classes, π sorts the errors m of the class in descending order, and Δₖ = 1 − IoU is
/// the Jaccard loss of a prediction that is wrong in exactly the pixels π₁ … πₖ, Δ₀ = 0. For a class without pixels ℓ_c
/// is its largest probability. The loss is the mean over the classes of w_c ℓ_c, where w is the weight (1 where there
/// is none), which does not change what the mean divides by. It is computed over the whole batch at once, or per image.
///
#[doc = include_str!("../../docs/book/src/gallery/lovasz_softmax.svg")]
///
/// # Shapes
///
/// * `input`: logits `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[N]` or `[N, d₁, …, dₖ]`, of any integer kind
/// * `weight`: `[C]`
/// * result: scalar, or `[N]` per image with [`Reduction::None`]
///
/// # Reference
///
/// `segmentation_models_pytorch.losses.LovaszLoss` 0.6 in the mode `multiclass`; `kornia.losses.lovasz_softmax_loss`
/// 0.9. Maxim Berman, Amal Rannen Triki, Matthew B. Blaschko: *The Lovász-Softmax loss*, CVPR 2018.
///
/// # Differences from the references
///
/// * kornia computes per image over [`LovaszClasses::All`]; smp, as here by default, over the batch and the classes
///   present. The paper's code takes probabilities, here [`Activation::None`].
/// * smp takes an input `[N, C, d]` for `[N, H, W]` of one class; kornia takes images `[N, C, H, W]` alone.
/// * kornia broadcasts a batch of one over the target, which is an error here.
/// * smp returns an empty tensor where every pixel is ignored; here the loss is 0, with a gradient of 0.
/// * smp fails for `f16` and `bf16`; here they are computed in `f32`.
/// * The differences Δₖ − Δₖ₋₁ are computed in closed form: in `f32` they cancel where there are many pixels.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for such a class among those of
/// [`LovaszClasses::Only`], for none there, and for a softmax of a single class.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, LovaszSoftmaxLoss};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0]).view([2, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64, 1]);
///
/// let loss = LovaszSoftmaxLoss::new().f_forward(&logits, &target)?;
/// loss.f_backward()?;
///
/// // Class 1 alone is present. Each of its two pixels is wrong by 1/2 and takes the Jaccard loss on by 1/2.
/// assert_eq!(f64::try_from(&loss)?, 0.5);
/// assert_eq!(Vec::<f64>::try_from(logits.grad().view(-1))?, [0.125, -0.125, 0.125, -0.125]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "LovaszLoss")]
#[doc(alias = "lovasz_softmax")]
#[doc(alias = "lovasz_softmax_loss")]
#[doc(alias = "lovasz")]
pub struct LovaszSoftmaxLoss: "lovasz_softmax";

/// The Lovász-softmax loss with smp's defaults: over the whole batch at once, and the classes present.
new {
    /// what makes probabilities of the input.
    activation: Activation = Activation::Softmax,
    /// whether the loss is computed for each image.
    per_image: bool = false,
    /// over which classes the mean is.
    classes: LovaszClasses = LovaszClasses::Present,
    /// a weight for each class. It is on the device of the input, in any floating kind.
    weight: Option<Tensor> = None,
    /// the class index whose pixels are ignored.
    ignore_index: Option<i64> = None,
    /// how a class out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction over the images; without `per_image` there is only one loss.
    reduction: Reduction = Reduction::Mean,
}
}

impl LovaszSoftmaxLoss {
    fn f_check_options(&self, input: &Tensor, classes: i64) -> Result<(), LossError> {
        Loss::f_check_options(self)?;
        f_check_softmax(self.activation, input)?;
        if let LovaszClasses::Only(listed) = &self.classes {
            let outside = listed.iter().find(|class| !(0..classes).contains(*class));
            let expected = format!("classes in [0, {classes})");
            check::option("classes", outside.unwrap_or(&0), outside.is_none(), &expected)?;
        }
        check::class_weight(self.weight.as_ref(), input, classes)
    }

    /// The reduced losses `[R]` of an input `[R, C, P]`. The target `[R, P]` is −1 where it is ignored.
    fn f_reduced(&self, input: &Tensor, target: &Tensor, reduction: Reduction) -> Result<Tensor, LossError> {
        let ignored = self.ignore_index.map(|_| target.f_unsqueeze(1)?.f_lt_number(0)).transpose()?;
        let mut probabilities = f_activate(input, self.activation, ignored.as_ref())?;
        let mut classes = f_positions(input.size()[1], (Kind::Int64, input.device()))?;
        let mut weight = self.weight.as_ref().map(Tensor::shallow_clone);
        if let LovaszClasses::Only(listed) = &self.classes {
            classes = f_parts_at(&classes, 0, listed)?;
            probabilities = f_parts_at(&probabilities, 1, listed)?;
            weight = weight.map(|weight| f_parts_at(&weight, 0, listed)).transpose()?;
        }
        let ranks = Ranks {
            numbers: &probabilities,
            labels: target,
            classes: &classes,
            weight: weight.as_ref(),
            present: self.classes == LovaszClasses::Present,
        };
        let distances = Distances { beyond: self.activation == Activation::None };
        lovasz::f_loss(distances, &ranks, self.ignore_index.is_some(), reduction)
    }
}

/// How far the probability of a class is from 1 in the pixels of the class, and from 0 in the others.
#[derive(Clone, Copy)]
struct Distances {
    /// Whether there are probabilities beyond 0 and 1.
    beyond: bool,
}

impl Ranked for Distances {
    #[inline(always)]
    fn error<R: Real>(self, p: R, own: bool) -> [R; 3] {
        let one = R::of(1.0);
        let (error, slope) = if own { (one - p, -one) } else { (p, one) };
        match self.beyond {
            true => [error.abs(), error.abs(), slope * error.sign()],
            false => [error, error, slope],
        }
    }

    fn weights(self, total: usize) -> impl FnMut(bool) -> f64 {
        lovasz::growths(total)
    }
}

impl Errors for Distances {
    fn f_errors(self, probabilities: &Tensor, own: &Tensor) -> Result<[Tensor; 2], LossError> {
        let errors = probabilities.f_mul(&lovasz::f_signs(own)?)?.f_add(own)?;
        let errors = if self.beyond { f_abs(&errors)? } else { errors };
        Ok([errors.shallow_clone(), errors])
    }
}

impl Loss for LovaszSoftmaxLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        let listed = !matches!(&self.classes, LovaszClasses::Only(listed) if listed.is_empty());
        check::option("classes", "empty", listed, "at least one class")
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        let shape = input.size();
        let fits = shape.len() >= 2 && shape[1] != 0;
        check::shape(("input", input), fits, "[N, C] or [N, C, d1, ...], with at least one class")?;
        let (images, pixels) = (shape[0], shape[2..].iter().product::<i64>());
        let (classes, target) = check::class_target(target, input, 1, "")?;
        self.f_check_options(input, classes)?;
        let target = target.f_reshape([images, pixels])?;
        let target = ClassIndices::f_new(&target, classes, self.ignore_index, self.invalid_values)?;
        let mut labels = f_filled(&target.indices, target.f_ignored()?.as_ref(), -1)?;
        let mut logits = input.f_to_kind(wide_kind(input)?)?.f_reshape([images, classes, pixels])?;
        if !self.per_image {
            logits = logits.f_transpose(0, 1)?.f_reshape([1, classes, images * pixels])?;
            labels = labels.f_reshape([1, images * pixels])?;
        }
        // Without `per_image` there is a single loss, which a sum leaves as it is.
        let reduction = if self.per_image { self.reduction } else { Reduction::Sum };
        lovasz::f_finish(&self.f_reduced(&logits, &labels, reduction)?, input, target.validity, reduction)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn logits() -> Tensor {
        Tensor::from_slice(&[2.0, 0.5, -1.0, 0.0, 0.25, 3.0, -0.5, 1.0, 0.0, 1.5, -2.0, 0.75]).view([2, 3, 2])
    }

    fn target() -> Tensor {
        Tensor::from_slice(&[0_i64, 2, 1, 1]).view([2, 2])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let new = LovaszSoftmaxLoss::new;
        let message = |criterion: LovaszSoftmaxLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let only = |classes: &[i64]| new().classes(LovaszClasses::Only(classes.to_vec()));
        let cases = [
            (message(new(), &logits(), &(target() + 1)), "target holds 3, expected classes in [0, 3)"),
            (
                message(new().ignore_index(255), &logits(), &(target() - 1)),
                "target holds -1, expected classes in [0, 3), or ignore_index 255",
            ),
            (
                message(new(), &logits(), &target().view([4])),
                "target has shape [4], expected [2, 2], the shape of input without its classes",
            ),
            (
                message(new(), &logits().view([12]), &target()),
                "input has shape [12], expected [N, C] or [N, C, d1, ...], with at least one class",
            ),
            (
                message(new(), &logits(), &target().to_kind(Kind::Double)),
                "target has kind Double, expected an integer kind",
            ),
            (message(new(), &target(), &target()), "input has kind Int64, expected a floating kind"),
            (
                message(new().weight(Tensor::from_slice(&[1.0])), &logits(), &target()),
                "weight has shape [1], expected [3], one weight per class",
            ),
            (message(only(&[]), &logits(), &target()), "option classes is empty, expected at least one class"),
            (message(only(&[0, 3]), &logits(), &target()), "option classes is 3, expected classes in [0, 3)"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn an_ignored_pixel_is_as_good_as_absent() {
        for (index, hidden) in [(255, f64::NAN), (-1, 1e4), (0, f64::NEG_INFINITY), (1, -1e4)] {
            let labels = Tensor::from_slice(&[2_i64, 2, index]).view([1, 3]);
            let shown = Tensor::from_slice(&[0.5, 1.0, -1.0, 0.25, 2.0, 0.125]).view([1, 3, 2]);
            let input = Tensor::cat(
                &[shown.shallow_clone(), Tensor::full([1, 3, 1], hidden, (Kind::Double, shown.device()))],
                2,
            );
            let input = input.set_requires_grad(true);
            for classes in [LovaszClasses::Present, LovaszClasses::All] {
                let criterion = LovaszSoftmaxLoss::new().ignore_index(index).classes(classes.clone());
                let loss = criterion.forward(&input, &labels);
                let grad = Tensor::run_backward(&[&loss], &[&input], false, false).remove(0);
                let expected = LovaszSoftmaxLoss::new().classes(classes).forward(&shown, &labels.narrow(1, 0, 2));
                assert_eq!(loss, expected);
                assert_eq!(grad.narrow(2, 2, 1), Tensor::zeros([1, 3, 1], (Kind::Double, shown.device())));
            }
        }
    }

    #[test]
    fn nothing_left_is_zero_with_a_zero_gradient() {
        for per_image in [false, true] {
            let input = logits().set_requires_grad(true);
            let criterion = LovaszSoftmaxLoss::new().ignore_index(255).per_image(per_image);
            let loss = criterion.forward(&input, &target().full_like(255));
            loss.backward();
            assert_eq!(loss.double_value(&[]), 0.0);
            assert_eq!(input.grad(), input.zeros_like());
        }
    }

    #[test]
    fn per_image_is_each_image_alone() {
        let losses = LovaszSoftmaxLoss::new().per_image(true).reduction(Reduction::None).forward(&logits(), &target());
        for image in 0..2 {
            let (logits, target) = (logits().narrow(0, image, 1), target().narrow(0, image, 1));
            assert_eq!(losses.get(image), LovaszSoftmaxLoss::new().forward(&logits, &target));
        }
    }

    #[test]
    fn classes_out_of_range_can_make_the_loss_nan() {
        let target = Tensor::from_slice(&[0_i64, 2, 1, 7]).view([2, 2]);
        let criterion = || LovaszSoftmaxLoss::new().invalid_values(InvalidValues::Nan).per_image(true);
        let losses = criterion().reduction(Reduction::None).forward(&logits(), &target);
        assert!(!losses.double_value(&[0]).is_nan() && losses.double_value(&[1]).is_nan());
        assert!(criterion().forward(&logits(), &target).double_value(&[]).is_nan());
    }

    #[test]
    fn half_kinds_are_computed_in_single_precision() {
        let expected = LovaszSoftmaxLoss::new().forward(&logits().to_kind(Kind::Float), &target());
        for kind in [Kind::Half, Kind::BFloat16] {
            let loss = LovaszSoftmaxLoss::new().forward(&logits().to_kind(kind), &target());
            assert_eq!(loss, expected.to_kind(kind));
        }
    }
}
