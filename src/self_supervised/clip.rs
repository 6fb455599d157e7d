#[cfg(feature = "distributed")]
mod over_ranks;

use tch::{Kind, Tensor};

use super::logits::{LogitParameter, f_similarities, pairs};
use crate::kernels::NumberOperations;
use crate::numeric::{f_positions, result_kind};
use crate::{CrossEntropyLoss, Loss, LossError, Reduction, check};

crate::options::options! {
/// The CLIP loss: cross entropy of finding, among the batch, the text of each image and the image of each text.
///
/// For models that embed images and texts, or any two modalities, in one space. Its softmax over the batch needs large
/// batches; [`SigLipLoss`](crate::SigLipLoss), which decides about each pair by itself, works with smaller ones.
///
/// # Formula
///
/// ℓₙ = ½ (CE(L\[n, ·\], n) + CE(L\[·, n\], n)), L\[i, j\] = s · cos(xᵢ, yⱼ)
///
/// where x are the embeddings of the images, y those of the texts, s is the scale of the logits, the inverse of a
/// temperature, and CE(l, n) = log Σⱼ exp(lⱼ) − lₙ. Label smoothing is that of
/// [`CrossEntropyLoss`](crate::CrossEntropyLoss).
///
#[doc = include_str!("../../docs/book/src/gallery/clip.svg")]
///
/// # Shapes
///
/// * `image`: `[N, D]`
/// * `text`: `[N, D]`; row n is the text of the image n
/// * `logit_scale`: a tensor of one element, or a number
/// * result: scalar, or `[N]` with [`Reduction::None`]
///
/// # Reference
///
/// `open_clip.loss.ClipLoss` of open_clip 3.3.0; Figure 3 of Radford et al., CLIP, <https://arxiv.org/abs/2103.00020>.
/// There, as in most models, the parameter is the logarithm of the scale, from ln(1/0.07) on: pass its exponential,
/// clamped to at most 100.
///
/// # Differences from open_clip
///
/// * Embeddings are divided by their norms; open_clip's models do that before their loss. `.normalize(false)` is its loss.
/// * An embedding of zeros has no direction: all its cosines are 0, and so are their first and second derivatives.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a scale that is not finite or a smoothing outside \[0, 1\].
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::ClipLoss;
///
/// let image = Tensor::from_slice(&[2.0, 0.0, 0.0, 1.0]).view([2, 2]).set_requires_grad(true);
/// let text = Tensor::from_slice(&[1.0, 0.0, 0.0, 3.0]).view([2, 2]).set_requires_grad(true);
/// let log_scale = Tensor::from((1.0 / 0.07_f64).ln()).set_requires_grad(true);
///
/// let loss = ClipLoss::new().f_forward(&image, &text, &log_scale.exp().clamp_max(100.0))?;
/// loss.f_backward()?;
/// assert!(log_scale.grad().defined());
///
/// // Each logit is 1/0.07 for the own text, and 0 for the other one.
/// assert!((f64::try_from(&loss)? - (-1.0 / 0.07_f64).exp().ln_1p()).abs() < 1e-12);
/// // A fixed temperature.
/// ClipLoss::new().f_forward(&image, &text, 1.0 / 0.07)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "CLIP")]
#[doc(alias = "InfoNCE")]
#[doc(alias = "contrastive language image")]
pub struct ClipLoss;

/// The loss of the paper.
new {
    /// whether the embeddings are divided by their norms; false for those that have norm 1.
    normalize: bool = true,
    /// the share of the target, in \[0, 1\], that is spread over all texts or images of the batch.
    label_smoothing: f64 = 0.0,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl ClipLoss {
    /// Computes the loss, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward<'a>(
        &self,
        image: &Tensor,
        text: &Tensor,
        logit_scale: impl Into<LogitParameter<'a>>,
    ) -> Result<Tensor, LossError> {
        pairs(image, text)?;
        check::share("label_smoothing", self.label_smoothing)?;
        let similarities = f_similarities(image, text, self.normalize)?;
        let logits = similarities.f_mul(&logit_scale.into().f_like("logit_scale", &similarities)?)?;
        let own = f_positions(image.size()[0], (Kind::Int64, image.device()))?;
        let entropy = CrossEntropyLoss::new().label_smoothing(self.label_smoothing).reduction(self.reduction);
        let of_images = entropy.f_forward(&logits, &own)?;
        let of_texts = entropy.f_forward(&logits.f_transpose(0, 1)?, &own)?;
        Ok(of_images.f_add(&of_texts)?.f_mul_number(0.5)?.f_to_kind(result_kind(image)?)?)
    }

    crate::loss::or_panic! { "Computes the loss", forward['a] as f_forward(
        image: &Tensor, text: &Tensor, logit_scale: impl Into<LogitParameter<'a>>
    ) -> Tensor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::randn;

    #[test]
    fn wrong_calls_are_named() {
        let (x, scale) = (randn([3, 4]), Tensor::from(2.0));
        let message = |image: &Tensor, text: &Tensor, scale: LogitParameter| {
            ClipLoss::new().f_forward(image, text, scale).unwrap_err().to_string()
        };
        let scale = LogitParameter::from(&scale);
        let shape = "text has shape [2, 4], expected [3, 4], the shape of image";
        assert_eq!(message(&x, &randn([2, 4]), scale), shape);
        assert_eq!(message(&randn([4]), &randn([4]), scale), "image has shape [4], expected [N, D] with D > 0");
        let scale = "logit_scale has shape [3, 4], expected one element";
        assert_eq!(message(&x, &x, LogitParameter::Tensor(&x)), scale);
        let scale = "option logit_scale is NaN, expected a finite number";
        assert_eq!(message(&x, &x, LogitParameter::Number(f64::NAN)), scale);
        let (single, large) = (x.to_kind(Kind::Float), Tensor::from(1e39));
        let scale = "logit_scale holds 1000000000000000000000000000000000000000, \
                     expected a number that single precision holds, as the embeddings";
        assert_eq!(message(&single, &single, LogitParameter::Tensor(&large)), scale);
        let error = ClipLoss::new().label_smoothing(2.0).f_forward(&x, &x, 1.0).unwrap_err();
        assert_eq!(error.to_string(), "option label_smoothing is 2, expected a number in [0, 1]");
    }

    #[test]
    fn no_embedding_overflows() {
        let (image, text) = (randn([3, 4]), randn([3, 4]));
        let expected = ClipLoss::new().forward(&image, &text, 10.0);
        let loss = ClipLoss::new().forward(&(image * 1e200), &(text * 1e-200), 10.0);
        assert!((f64::try_from(loss - expected).unwrap()).abs() < 1e-12);
    }

    #[test]
    fn large_scales_stay_finite() {
        let (image, text) = (randn([3, 4]).set_requires_grad(true), randn([3, 4]));
        let loss = ClipLoss::new().forward(&image, &text, 1e6);
        loss.backward();
        assert!(bool::try_from(loss.isfinite()).unwrap() && bool::try_from(image.grad().isfinite().all()).unwrap());
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (image, text, scale) = (randn([3, 4]), randn([3, 4]), Tensor::from(3.0));
        for loss in [ClipLoss::new(), ClipLoss::new().label_smoothing(0.1).normalize(false)] {
            crate::numeric::assert_gradient(&image, |image| loss.forward(image, &text, &scale));
            crate::numeric::assert_gradient(&text, |text| loss.forward(&image, text, &scale));
            crate::numeric::assert_gradient(&scale, |scale| loss.forward(&image, &text, scale));
        }
    }
}
