#[cfg(feature = "distributed")]
mod over_ranks;

use tch::{Tensor, no_grad};

use super::{f_diagonal_and_others, f_without_diagonal, views};
use crate::autograd::Function;
use crate::kernels::{NumberOperations, PairTerms, Pointwise, Real, choose, f_pointwise, small_work};
use crate::numeric::wide_kind;
use crate::numeric::{multiplications, result_kind};
use crate::{Loss, LossError, MseLoss, Reduction, check};

crate::options::options! {
/// The VICReg loss (variance, invariance, covariance): two views should agree, each feature should vary over the batch,
/// and no two features should be correlated.
///
/// For self-supervised learning without negative examples. As the second and third term take each view by itself, the
/// two may come from different networks, or even modalities; [`BarlowTwinsLoss`](crate::BarlowTwinsLoss) needs features
/// that correspond.
///
/// # Formula
///
/// ℓ = λ · 1/(ND) Σ (A − B)² + μ/2 · (v(A) + v(B)) + ν · (c(A) + c(B))
///
/// v(A) = 1/D Σᵢ max(0, 1 − √(Cov(A)ᵢᵢ + ε)), c(A) = 1/D Σᵢ Σⱼ≠ᵢ Cov(A)ᵢⱼ²
///
/// where A and B are the views, Cov is the covariance of the features over the batch, divided by N − 1, and λ, μ and ν
/// are the weights of the terms. Views of more dimensions have a loss for each position in the dimensions between batch
/// and features; the result is the mean over these. It makes no difference which view is the input.
///
#[doc = include_str!("../../docs/book/src/gallery/vicreg.svg")]
///
/// # Shapes
///
/// * `input`: `[N, D]` or `[N, d₁, …, dₖ, D]`, of at least two samples
/// * `target`: `[N, D]` or `[N, d₁, …, dₖ, D]`, the same shape
/// * result: scalar
///
/// # Reference
///
/// `lightly.loss.VICRegLoss` of lightly 1.6.0; Bardes et al., VICReg, <https://arxiv.org/abs/2105.04906>.
///
/// # Differences from lightly
///
/// * Half precision is computed in single precision, the products of features too: lightly's gradient in bf16 is some
///   percent off.
/// * An ε of 0 is an error, because the gradient of a constant feature would be NaN.
/// * Views of other processes count with `f_forward_over_ranks` of the feature `distributed`.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a weight that is not finite or an ε that is not positive.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, VicRegLoss};
///
/// let varied = Tensor::from_slice(&[2.0, 2.0, 2.0, -2.0, -2.0, 2.0, -2.0, -2.0]).view([4, 2]);
/// let collapsed = Tensor::ones_like(&varied).set_requires_grad(true);
///
/// // Views that agree, of features that vary and are uncorrelated, have a loss of 0.
/// assert_eq!(f64::try_from(VicRegLoss::new().f_forward(&varied, &varied)?)?, 0.0);
/// // Views that agree because all samples are the same have the loss μ · (1 − √ε).
/// let loss = VicRegLoss::new().f_forward(&collapsed, &collapsed)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - 25.0 * 0.99).abs() < 1e-9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "VICReg")]
#[doc(alias = "vicreg")]
pub struct VicRegLoss: "vicreg";

/// The loss with lightly's defaults, which are the paper's.
new {
    /// λ, the weight of the invariance.
    lambda_param: f64 = 25.0,
    /// μ, the weight of the variance.
    mu_param: f64 = 25.0,
    /// ν, the weight of the covariance.
    nu_param: f64 = 1.0,
    /// ε, > 0, which is added to variances.
    eps: f64 = 1e-4,
}
}

impl VicRegLoss {
    /// The terms of the variance and of the covariance of one view.
    fn f_spread(&self, view: &Tensor) -> Result<[Tensor; 2], LossError> {
        let shape = view.size();
        let features = shape[shape.len() - 1];
        let (loss, kind) = (*self, view.f_kind()?);
        let hinges = move |[variances]: [&Tensor; 1]| loss.f_hinges(variances);
        let variances = view.f_var_dim(0, true, false)?;
        let variance = f_pointwise(SmallDeviation { eps: self.eps }, [&variances], Reduction::Mean, hinges)?;
        let centred = view.f_sub(&view.f_mean_dim(0, true, None)?)?;
        let products = f_products(&centred)?;
        let degrees = shape[0] - 1;
        // The sum of the squares is divided by the number of features and by the number of matrices.
        let matrices = shape[1..shape.len() - 1].iter().product::<i64>();
        let squares = Squares { degrees: degrees as f64, share: 1.0 / (features * matrices) as f64 };
        let composite = move |products: &Tensor| f_squares(&products.f_div_number(degrees)?, features);
        Ok([variance, f_diagonal_and_others(squares, &products, kind, composite)?])
    }

    fn f_hinges(&self, variances: &Tensor) -> Result<Tensor, LossError> {
        Ok(variances.f_add_number(self.eps)?.f_sqrt()?.f_rsub_number(1)?.f_relu()?.f_mean(None)?)
    }
}

/// The products of each two features, summed over the batch: `[…, D, D]` of `[N, …, D]`.
fn f_products(features: &Tensor) -> Result<Tensor, LossError> {
    let work = multiplications(features, features);
    let einsum = move |equation, a: &Tensor, b: &Tensor| {
        small_work(work, || Tensor::f_einsum(equation, &[a, b], None::<&[i64]>))
    };
    // The same product as lightly's: for large features its rounding is visible in the gradients.
    let products = no_grad(|| einsum("b...c,b...d->...cd", features, features))?;
    // Both factors are the same tensor, so that one product gives the gradient, where autograd computes two.
    Function::new(&[features]).save(&[features]).f_attach_one(products, move |context| {
        let [features] = context.saved() else { return Ok(vec![None]) };
        let gradient = |grad: Tensor| {
            let both = grad.f_add(&grad.f_transpose(-2, -1)?)?;
            Ok::<_, LossError>(einsum("b...c,...cd->b...d", features, &both)?)
        };
        Ok(vec![context.grad(0).map(gradient).transpose()?])
    })
}

/// max(0, 1 − √(v + ε))
#[derive(Clone, Copy)]
struct SmallDeviation {
    eps: f64,
}

impl Pointwise<1> for SmallDeviation {
    #[inline(always)]
    fn evaluate<R: Real>(self, [variance]: [R; 1]) -> (R, [R; 1]) {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let deviation = (variance + R::of(self.eps)).sqrt();
        let missing = one - deviation;
        (missing.at_least(zero), [choose(missing.greater(zero), R::of(-0.5) / deviation, zero)])
    }
}

/// The sums of the squares outside the diagonals, divided by the number of features, and their mean over the matrices.
fn f_squares(covariances: &Tensor, features: i64) -> Result<Tensor, LossError> {
    let squares = f_without_diagonal(covariances)?.f_square()?;
    let sums = squares.f_sum_dim_intlist([-2_i64, -1].as_slice(), false, None)?;
    Ok(sums.f_div_number(features)?.f_mean(None)?)
}

/// The same squares, of products that are not yet divided by the degrees of freedom.
#[derive(Clone, Copy)]
struct Squares {
    degrees: f64,
    share: f64,
}

impl PairTerms for Squares {
    #[inline(always)]
    fn same<R: Real>(self, _: R) -> (R, R) {
        (R::of(0.0), R::of(0.0))
    }

    #[inline(always)]
    fn other<R: Real>(self, product: R) -> (R, R) {
        // Divided in this order, as lightly does, for the same reason as the product.
        let covariance = product / R::of(self.degrees);
        let slope = R::of(2.0) * covariance * R::of(self.share) / R::of(self.degrees);
        (covariance * covariance * R::of(self.share), slope)
    }
}

impl Loss for VicRegLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        let (lambda, mu, nu) = (self.lambda_param, self.mu_param, self.nu_param);
        for (option, value) in [("lambda_param", lambda), ("mu_param", mu), ("nu_param", nu)] {
            check::option(option, value, value.is_finite(), "a finite number")?;
        }
        check::option("eps", self.eps, self.eps > 0.0 && self.eps.is_finite(), "a number > 0")
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        views(("input", input), ("target", target))?;
        let fits = matches!(input.size()[..], [samples, .., _] if samples >= 2);
        check::shape(("input", input), fits, "[N, D] or [N, d1, ..., D] with at least two samples")?;
        let (lambda, mu, nu) = (self.lambda_param, self.mu_param, self.nu_param);
        self.f_check_options()?;
        let kind = wide_kind(input)?;
        let (a, b) = (input.f_to_kind(kind)?, target.f_to_kind(kind)?);
        let invariance = MseLoss::new().f_forward(&a, &b)?;
        let ([a_variance, a_covariance], [b_variance, b_covariance]) = (self.f_spread(&a)?, self.f_spread(&b)?);
        let variance = a_variance.f_add(&b_variance)?.f_mul_number(0.5 * mu)?;
        let covariance = a_covariance.f_add(&b_covariance)?.f_mul_number(nu)?;
        let loss = invariance.f_mul_number(lambda)?.f_add(&variance)?.f_add(&covariance)?;
        Ok(loss.f_to_kind(result_kind(input)?)?)
    }
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
        let (x, new) = (ones(&[4, 3]), VicRegLoss::new);
        let rows = "expected [N, D] or [N, d1, ..., D] with at least two samples";
        for (loss, input, target, message) in [
            (new(), ones(&[1, 3]), ones(&[1, 3]), format!("input has shape [1, 3], {rows}")),
            (new(), ones(&[4]), ones(&[4]), format!("input has shape [4], {rows}")),
            (new(), x.copy(), ones(&[4]), "target has shape [4], expected [4, 3], the shape of input".into()),
            (new().eps(0.0), x.copy(), x.copy(), "option eps is 0, expected a number > 0".into()),
            (new().mu_param(f64::NAN), x.copy(), x.copy(), "option mu_param is NaN, expected a finite number".into()),
        ] {
            assert_eq!(loss.f_forward(&input, &target).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn constant_features_have_a_finite_gradient() {
        let input = ones(&[4, 3]).set_requires_grad(true);
        VicRegLoss::new().forward(&input, &ones(&[4, 3])).backward();
        assert_eq!(f64::try_from(input.grad().abs().max()).unwrap(), 0.0);
    }
}
