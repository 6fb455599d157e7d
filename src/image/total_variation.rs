use tch::{Kind, Tensor};

use crate::kernels::f_variation;
use crate::numeric::{f_abs, real, result_kind, wide_kind};
use crate::{LossError, Reduction, check};

crate::options::options! {
/// The total variation loss of an image: the sum of the differences between neighbouring pixels.
///
/// A penalty in addition to another loss, for images that should be smooth and have sharp edges: denoising, style
/// transfer, masks, displacement fields.
///
/// # Formula
///
/// ℓ = Σᵢⱼ |xᵢ₊₁,ⱼ − xᵢⱼ| + Σᵢⱼ |xᵢ,ⱼ₊₁ − xᵢⱼ|
///
/// where x is the input, an image for each of its leading dimensions. With [`PixelReduction::Mean`] each of the two
/// sums is divided by the number of its terms.
///
#[doc = include_str!("../../docs/book/src/gallery/total_variation.svg")]
///
/// # Shapes
///
/// * `input`: `[*, H, W]`; of a floating kind, or integers, whose sums are 64-bit integers and whose means are `f32`
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// # Reference
///
/// `kornia.losses.TotalVariation` and `total_variation` of kornia 0.9.0, which keep the leading dimensions; Rudin,
/// Osher and Fatemi, *Nonlinear Total Variation Based Noise Removal Algorithms*, 1992.
///
/// # Errors
///
/// [`LossError::Shape`] for an input of fewer than two dimensions, [`LossError::Kind`] for Booleans and
/// complex numbers.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::TotalVariationLoss;
///
/// let image = Tensor::from_slice(&[0.0, 1.0, 0.0, 3.0]).view([1, 1, 2, 2]).set_requires_grad(true);
///
/// let loss = TotalVariationLoss::new().f_forward(&image)?;
/// loss.f_backward()?;
///
/// assert_eq!(f64::try_from(&loss)?, 1.0 + 3.0 + 2.0);
/// assert_eq!(Vec::<f64>::try_from(image.grad().view(-1))?, [-1.0, 0.0, -1.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "TotalVariation")]
#[doc(alias = "total_variation")]
#[doc(alias = "tv_loss")]
pub struct TotalVariationLoss;

/// The sum of the differences within each image, and the mean over the images.
new {
    /// how the differences within an image become one number.
    pixels: PixelReduction = PixelReduction::Sum,
    /// the reduction over the images.
    reduction: Reduction = Reduction::Mean,
}
}

/// How the differences within an image become one number, in a [`TotalVariationLoss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum PixelReduction {
    /// Their sum. The default.
    #[default]
    Sum,
    /// The mean of those along each dimension, so that the size of the image does not count.
    Mean,
}

crate::options::words!(PixelReduction);

impl TotalVariationLoss {
    /// The differences along `dim`, one number for each image.
    fn f_along(&self, image: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        let size = image.size();
        let last = (size[(size.len() as i64 + dim) as usize] - 1).max(0);
        let from = if last > 0 { 1 } else { 0 };
        let sizes = f_abs(&image.f_narrow(dim, from, last)?.f_sub(&image.f_narrow(dim, 0, last)?)?)?;
        let pixels = size[size.len() - 2..].iter().product::<i64>();
        // Without neighbours the sum of the differences is 0, and so is the loss, where a mean over no differences
        // would be NaN.
        if self.pixels == PixelReduction::Sum || last == 0 || pixels == 0 {
            return Ok(sizes.f_sum_dim_intlist(&[-2, -1][..], false, None)?);
        }
        // The mean of integers is not an integer.
        if check::floating(("input", image)).is_err() {
            return Ok(sizes.f_mean_dim(&[-2, -1][..], false, Kind::Double)?.f_to_kind(Kind::Float)?);
        }
        Ok(sizes.f_mean_dim(&[-2, -1][..], false, None)?)
    }

    /// Computes the loss, with a graph where the input requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument at fault.
    pub fn f_forward(&self, input: &Tensor) -> Result<Tensor, LossError> {
        check::dense(("input", input))?;
        check::not_boolean(("input", input))?;
        real(("input", input))?;
        check::shape(("input", input), input.dim() >= 2, "[*, H, W]")?;
        if check::floating(("input", input)).is_err() {
            return self.f_of_integers(&input.f_to_kind(Kind::Int64)?);
        }
        let loss = *self;
        f_variation(self.factors(&input.size()), input, self.reduction, move |[input]| loss.f_composite(input))
    }

    fn f_composite(&self, input: &Tensor) -> Result<Tensor, LossError> {
        let image = input.f_to_kind(wide_kind(input)?)?;
        let variations = self.f_along(&image, -2)?.f_add(&self.f_along(&image, -1)?)?;
        Ok(self.reduction.f_apply(&variations)?.f_to_kind(result_kind(input)?)?)
    }

    /// The loss of 64-bit integers: sums are 64-bit integers, means are in single precision.
    fn f_of_integers(&self, image: &Tensor) -> Result<Tensor, LossError> {
        let [down, across] = [self.f_along(image, -2)?, self.f_along(image, -1)?];
        let mut variations = down.f_add(&across)?;
        if self.pixels == PixelReduction::Mean {
            // The result without neighbours is an integer, and has to be converted as well.
            variations = variations.f_to_kind(Kind::Float)?;
        }
        match self.reduction {
            Reduction::Mean => Ok(variations.f_mean(Kind::Double)?.f_to_kind(Kind::Float)?),
            reduction => reduction.f_apply(&variations),
        }
    }

    /// The factors of the sums of the differences along the last two dimensions.
    fn factors(&self, size: &[i64]) -> [f64; 2] {
        let [height, width] = [2, 1].map(|from_end| size[size.len() - from_end]);
        let counts = [(height - 1) * width, height * (width - 1)];
        counts.map(|count| if self.pixels == PixelReduction::Mean { 1.0 / count.max(1) as f64 } else { 1.0 })
    }

    crate::loss::or_panic!(forward as f_forward(input: &Tensor) -> Tensor);
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::random::randn;
    use crate::{Backend, with_backend};

    #[test]
    fn an_image_has_two_dimensions() {
        let error = TotalVariationLoss::new().f_forward(&Tensor::from_slice(&[1.0])).unwrap_err();
        assert_eq!(error.to_string(), "input has shape [1], expected [*, H, W]");
        let error = TotalVariationLoss::new().f_forward(&Tensor::from_slice(&[true]).view([1, 1])).unwrap_err();
        assert_eq!(error.to_string(), "input has kind Bool, expected a kind of numbers");
    }

    #[test]
    fn equal_neighbours_have_no_slope() {
        let image = randn([2, 3, 9, 8]).round();
        let slopes = |backend| {
            let leaf = image.detach().set_requires_grad(true);
            with_backend(backend, || TotalVariationLoss::new().reduction(Reduction::Sum).forward(&leaf)).backward();
            leaf.grad()
        };
        assert_eq!(slopes(Backend::Auto), slopes(Backend::Composite));
    }

    #[test]
    fn a_line_has_differences_along_one_dimension() {
        let line = Tensor::arange(5, (Kind::Double, Device::Cpu));
        for (pixels, expected) in [(PixelReduction::Sum, 4.0), (PixelReduction::Mean, 1.0)] {
            let loss = TotalVariationLoss::new().pixels(pixels);
            assert_eq!(loss.forward(&line.view([1, 5])).double_value(&[]), expected);
            assert_eq!(loss.forward(&line.view([5, 1])).double_value(&[]), expected);
            assert_eq!(loss.forward(&line.narrow(0, 0, 1).view([1, 1])).double_value(&[]), 0.0);
        }
    }
}
