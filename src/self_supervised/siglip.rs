#[cfg(feature = "distributed")]
mod neighbours;
#[cfg(feature = "distributed")]
mod over_ranks;

use tch::{Kind, Tensor};

use super::logits::{LogitParameter, f_similarities, pairs};
use crate::numeric::result_kind;
use crate::{LossError, Reduction};

crate::options::options! {
/// The SigLIP loss: for each pair of an image and a text of the batch, a binary decision whether they belong together.
///
/// For models that embed images and texts in one space, as [`ClipLoss`](crate::ClipLoss), but with a sigmoid for each
/// pair in place of a softmax over the batch: it works with smaller batches, and a batch can be computed in pieces.
/// Almost all pairs do not belong together, which the bias expresses: it begins far below 0.
///
/// # Formula
///
/// ℓₙ = −Σⱼ log σ(zₙⱼ (s · cos(xₙ, yⱼ) + b)), zₙⱼ = 1 for j = n, and −1 otherwise
///
/// where x are the embeddings of the images, y those of the texts, s is the scale of the logits, b their bias and
/// σ(u) = 1 / (1 + e⁻ᵘ). The mean is over the images.
///
#[doc = include_str!("../../docs/book/src/gallery/siglip.svg")]
///
/// # Shapes
///
/// * `image`: `[N, D]`
/// * `text`: `[N, D]`; row n is the text of the image n
/// * `logit_scale`, `logit_bias`: tensors of one element, or numbers
/// * result: scalar, or `[N]` with [`Reduction::None`]
///
/// # Reference
///
/// `open_clip.loss.SigLipLoss` of open_clip 3.3.0; Algorithm 1 of Zhai et al., SigLIP, <https://arxiv.org/abs/2303.15343>.
/// There the parameter is the logarithm of the scale, from ln 10 on: pass its exponential. The bias begins at −10.
///
/// # Differences from open_clip
///
/// * Embeddings are divided by their norms; open_clip's models do that before their loss. `.normalize(false)` is its loss.
/// * An embedding of zeros has no direction: all its cosines are 0, and so are their first and second derivatives.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a scale or bias that is not finite.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::SigLipLoss;
///
/// let image = Tensor::from_slice(&[2.0, 0.0, 0.0, 1.0]).view([2, 2]).set_requires_grad(true);
/// let text = Tensor::from_slice(&[1.0, 0.0, 0.0, 3.0]).view([2, 2]).set_requires_grad(true);
/// let log_scale = Tensor::from(10_f64.ln()).set_requires_grad(true);
/// let bias = Tensor::from(-10.0).set_requires_grad(true);
///
/// let loss = SigLipLoss::new().f_forward(&image, &text, &log_scale.exp(), &bias)?;
/// loss.f_backward()?;
/// assert!(log_scale.grad().defined() && bias.grad().defined());
///
/// // The logit is 0 for the own text, and −10 for the other one.
/// assert!((f64::try_from(&loss)? - (2_f64.ln() + (-10_f64).exp().ln_1p())).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "SigLIP")]
pub struct SigLipLoss;

/// The loss of the paper.
new {
    /// whether the embeddings are divided by their norms; false for those that have norm 1.
    normalize: bool = true,
    /// the reduction of the losses of the images.
    reduction: Reduction = Reduction::Mean,
}
}

impl SigLipLoss {
    /// Computes the loss, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward<'a, 'b>(
        &self,
        image: &Tensor,
        text: &Tensor,
        logit_scale: impl Into<LogitParameter<'a>>,
        logit_bias: impl Into<LogitParameter<'b>>,
    ) -> Result<Tensor, LossError> {
        pairs(image, text)?;
        let similarities = f_similarities(image, text, self.normalize)?;
        let logit_scale = logit_scale.into().f_like("logit_scale", &similarities)?;
        let logit_bias = logit_bias.into().f_like("logit_bias", &similarities)?;
        let together = Tensor::f_eye(image.size()[0], (Kind::Bool, image.device()))?;
        let losses = f_losses(&similarities, &logit_scale, &logit_bias, Some(&together))?;
        Ok(self.reduction.f_apply(&losses)?.f_to_kind(result_kind(image)?)?)
    }

    crate::loss::or_panic! { "Computes the loss", forward['a, 'b] as f_forward(
        image: &Tensor, text: &Tensor, logit_scale: impl Into<LogitParameter<'a>>,
        logit_bias: impl Into<LogitParameter<'b>>
    ) -> Tensor }
}

/// The losses of the images, the rows of `similarities`, with the texts, its columns. Those of the pairs that belong
/// `together` count as such; without it none do.
fn f_losses(
    similarities: &Tensor,
    logit_scale: &Tensor,
    logit_bias: &Tensor,
    together: Option<&Tensor>,
) -> Result<Tensor, LossError> {
    let logits = similarities.f_mul(logit_scale)?.f_add(logit_bias)?;
    let margins = match together {
        Some(together) => logits.f_where_self(together, &logits.f_neg()?)?,
        None => logits.f_neg()?,
    };
    Ok(margins.f_log_sigmoid()?.f_sum_dim_intlist(1, false, None)?.f_neg()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::randn;

    #[test]
    fn wrong_calls_are_named() {
        let x = randn([3, 4]);
        let error = SigLipLoss::new().f_forward(&x, &x, 1.0, &x).unwrap_err();
        assert_eq!(error.to_string(), "logit_bias has shape [3, 4], expected one element");
        let error = SigLipLoss::new().f_forward(&x, &x, &x.sum(None).to_kind(Kind::Int64), 0.0).unwrap_err();
        assert_eq!(error.to_string(), "logit_scale has kind Int64, expected a floating kind");
        let error = SigLipLoss::new().f_forward(&x, &x.to_kind(Kind::Float), 1.0, 0.0).unwrap_err();
        assert_eq!(error.to_string(), "text has kind Float, expected Double, the kind of image");
    }

    #[test]
    fn large_scales_stay_finite() {
        let (image, text) = (randn([3, 4]).set_requires_grad(true), randn([3, 4]));
        let loss = SigLipLoss::new().forward(&image, &text, 1e6, -10.0);
        loss.backward();
        assert!(bool::try_from(loss.isfinite()).unwrap() && bool::try_from(image.grad().isfinite().all()).unwrap());
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (image, text, scale, bias) = (randn([3, 4]), randn([3, 4]), Tensor::from(3.0), Tensor::from(-2.0));
        for loss in [SigLipLoss::new(), SigLipLoss::new().normalize(false)] {
            crate::numeric::assert_gradient(&image, |image| loss.forward(image, &text, &scale, &bias));
            crate::numeric::assert_gradient(&text, |text| loss.forward(&image, text, &scale, &bias));
            crate::numeric::assert_gradient(&scale, |scale| loss.forward(&image, &text, scale, &bias));
            crate::numeric::assert_gradient(&bias, |bias| loss.forward(&image, &text, &scale, bias));
        }
    }
}
