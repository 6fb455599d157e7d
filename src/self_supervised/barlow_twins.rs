#[cfg(feature = "distributed")]
mod over_ranks;

use tch::Tensor;

use super::{f_diagonal_and_others, f_without_diagonal, views};
use crate::kernels::{NumberOperations, PairTerms, Real};
use crate::numeric::wide_kind;
use crate::numeric::{f_matrix_product, f_of_elements, result_kind};
use crate::{Loss, LossError, check};

crate::options::options! {
/// The Barlow Twins loss: each feature should be the same in two views of a batch, and no two features should be
/// correlated.
///
/// For self-supervised learning without negative examples, momentum encoders or stopped gradients: what keeps the
/// representation from collapsing is that its features are decorrelated. It works best with many features.
/// [`VicRegLoss`](crate::VicRegLoss) asks the same of the views separately, without a batch normalisation.
///
/// # Formula
///
/// ℓ = Σᵢ (Cᵢᵢ − 1)² + λ Σᵢ Σⱼ≠ᵢ Cᵢⱼ², C = 1/N · Âᵀ B̂
///
/// where A and B are the views, Â and B̂ are the views with each feature normalised over the batch, (a − mean a) /
/// √(var a + 10⁻⁵), and λ is the weight of the redundancy. It makes no difference which view is the input.
///
#[doc = include_str!("../../docs/book/src/gallery/barlow_twins.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]`, of at least two rows
/// * `target`: `[N, D]`
/// * result: scalar
///
/// # Reference
///
/// `lightly.loss.BarlowTwinsLoss` of lightly 1.6.0; Zbontar et al., Barlow Twins, <https://arxiv.org/abs/2103.03230>.
///
/// # Differences from lightly
///
/// * Half precision is computed in single precision, the product of the views too, which takes twice the time:
///   lightly's gradient in bf16 is some percent off.
/// * An empty batch is an error, as a single row is; lightly's loss of an empty batch is NaN.
/// * Views of other processes count with `f_forward_over_ranks` of the feature `distributed`, which normalises features
///   over the batches of all ranks; lightly's `gather_distributed` does it over each rank's own.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a λ that is not finite.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{BarlowTwinsLoss, Loss};
///
/// // Two features that are independent over the batch and equal in both views.
/// let view = Tensor::from_slice(&[1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0]).view([4, 2]);
/// let same = BarlowTwinsLoss::new().f_forward(&view, &view)?;
/// assert!(f64::try_from(same)? < 1e-9);
///
/// // With the features of one view swapped, each feature is equal to the other one: 2 · (0 − 1)² + 2 · λ · 1².
/// let swapped = view.flip([1]).set_requires_grad(true);
/// let loss = BarlowTwinsLoss::new().lambda_param(0.5).f_forward(&view, &swapped)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - 3.0).abs() < 1e-4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "Barlow Twins")]
#[doc(alias = "redundancy reduction")]
pub struct BarlowTwinsLoss: "barlow_twins";

/// The loss with lightly's defaults, which are the paper's.
new {
    /// λ, the weight of the redundancy.
    lambda_param: f64 = 5e-3,
}
}

impl Loss for BarlowTwinsLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite("lambda_param", self.lambda_param)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        views(("input", input), ("target", target))?;
        let fits = matches!(input.size()[..], [rows, _] if rows >= 2);
        check::shape(("input", input), fits, "[N, D] with at least two rows")?;
        self.f_check_options()?;
        let (a, b) = (f_normalized(input)?, f_normalized(target)?);
        let product = f_matrix_product(&a.f_transpose(0, 1)?, &b)?;
        let (loss, rows, kind) = (*self, input.size()[0], result_kind(input)?);
        let composite = move |product: &Tensor| Ok(loss.f_of_product(product, rows)?.f_to_kind(kind)?);
        let formula = Deviations { scale: 1.0 / rows as f64, lambda: self.lambda_param };
        f_diagonal_and_others(formula, &product, kind, composite)
    }
}

impl BarlowTwinsLoss {
    fn f_of_product(&self, product: &Tensor, rows: i64) -> Result<Tensor, LossError> {
        let correlation = product.f_div_number(rows)?;
        let invariance = correlation.f_diagonal(0, 0, 1)?.f_sub_number(1)?.f_square()?.f_sum(None)?;
        let redundancy = f_without_diagonal(&correlation)?.f_square()?.f_sum(None)?;
        Ok(invariance.f_add(&redundancy.f_mul_number(self.lambda_param)?)?)
    }
}

/// The squared differences of the correlations from 1 on the diagonal and from 0 elsewhere.
#[derive(Clone, Copy)]
struct Deviations {
    /// The number that products are divided by to become correlations.
    scale: f64,
    lambda: f64,
}

impl PairTerms for Deviations {
    #[inline(always)]
    fn same<R: Real>(self, product: R) -> (R, R) {
        let scale = R::of(self.scale);
        let deviation = product * scale - R::of(1.0);
        (deviation * deviation, R::of(2.0) * deviation * scale)
    }

    #[inline(always)]
    fn other<R: Real>(self, product: R) -> (R, R) {
        let (scale, lambda) = (R::of(self.scale), R::of(self.lambda));
        let correlation = product * scale;
        (correlation * correlation * lambda, R::of(2.0) * correlation * scale * lambda)
    }
}

/// Each feature with mean 0 and variance 1 over the batch.
fn f_normalized(view: &Tensor) -> Result<Tensor, LossError> {
    const NONE: Option<&Tensor> = None;
    let view = view.f_to_kind(wide_kind(view)?)?;
    f_of_elements(&view, |view| Ok(view.f_batch_norm(NONE, NONE, NONE, NONE, true, 0.1, 1e-5, true)?))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn ones(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn wrong_calls_are_named() {
        let rows = "expected [N, D] with at least two rows";
        for (input, target, message) in [
            (ones(&[1, 3]), ones(&[1, 3]), format!("input has shape [1, 3], {rows}")),
            (ones(&[4, 3, 2]), ones(&[4, 3, 2]), format!("input has shape [4, 3, 2], {rows}")),
            (ones(&[4]), ones(&[4]), format!("input has shape [4], {rows}")),
            (ones(&[4, 3]), ones(&[4, 2]), "target has shape [4, 2], expected [4, 3], the shape of input".into()),
            (
                ones(&[4, 3]),
                ones(&[4, 3]).to_kind(Kind::Double),
                "target has kind Double, expected Float, the kind of input".into(),
            ),
        ] {
            assert_eq!(BarlowTwinsLoss::new().f_forward(&input, &target).unwrap_err().to_string(), message);
        }
        let error = BarlowTwinsLoss::new().lambda_param(f64::NAN).f_forward(&ones(&[4, 3]), &ones(&[4, 3]));
        assert_eq!(error.unwrap_err().to_string(), "option lambda_param is NaN, expected a finite number");
    }

    #[test]
    fn constant_features_have_a_finite_gradient() {
        let input = ones(&[4, 3]).set_requires_grad(true);
        let loss = BarlowTwinsLoss::new().forward(&input, &ones(&[4, 3]));
        loss.backward();
        assert_eq!(f64::try_from(loss).unwrap(), 3.0);
        assert_eq!(f64::try_from(input.grad().abs().max()).unwrap(), 0.0);
    }
}
