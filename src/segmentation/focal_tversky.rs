use tch::Tensor;

use super::activation::activation;
use super::region::{RegionLoss, Regions, Score, Sizes, loss_of_regions, region_options, score_options, with_regions};
use crate::kernels::{Pointwise, Real, choose, f_pointwise};
use crate::{Loss, LossError, Reduction, check, numeric};

/// What [`FocalTverskyLoss`] raises to a power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum FocalPower {
    /// The loss of each region, as in the paper. The default.
    #[default]
    Region,
    /// The reduced loss, as in segmentation-models-pytorch.
    Reduced,
}

crate::options::words!(FocalPower);

crate::options::options! {
/// The focal Tversky loss: a Tversky loss to a power, which shifts the weight between bad and good regions.
///
/// Choose it for small regions that training keeps missing. A power γ above 1 lets regions that are good already count
/// less, one below 1 (the paper's) keeps the gradient up for regions that are nearly right.
///
/// # Formula
///
/// ℓᵣ = w\[r\] · (1 − Tᵣ)^γ
///
/// where Tᵣ, w and the options are those of [`TverskyLoss`](crate::TverskyLoss): α weighs the false positives and β the
/// false negatives. With [`FocalPower::Reduced`] the loss is (mean of w\[r\] · (1 − Tᵣ))^γ. Where 1 − Tᵣ is 0 or, by
/// rounding, less, the power is 0 and so is its gradient.
///
#[doc = include_str!("../../docs/book/src/gallery/focal_tversky.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[N]` or `[N, d₁, …, dₖ]`, of any integer kind, for class indices; or `[N, C]` or `[N, C, d₁, …, dₖ]`,
///   of any real kind or Boolean, for masks or probabilities
/// * `weight`: `[C]`
/// * result: scalar, or one value for each region with [`Reduction::None`](crate::Reduction::None)
///
/// # Reference
///
/// `segmentation_models_pytorch.losses.TverskyLoss` of segmentation-models-pytorch 0.6 with `gamma`. Abraham and Khan,
/// A novel focal Tversky loss function with improved attention U-Net for lesion segmentation, 2018.
///
/// # Differences between the references
///
/// * The defaults α = 0.3, β = 0.7, γ = 0.75 are the paper's best ones. It writes the power as 1/γ, so that its γ = 4/3
///   is 0.75 here, and gives the letters α and β to the false negatives and the false positives.
/// * segmentation-models-pytorch raises the mean to the power, not the region's loss: [`FocalPower::Reduced`].
/// * Its gradient is NaN or infinite for γ < 1 and a loss of 0; here it is 0.
///
/// # Errors
///
/// Those of [`DiceLoss`](crate::DiceLoss): [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for
/// arguments that do not fit together, [`LossError::Value`] for a class index, a mask or an input out of range or a
/// weight below 0, [`LossError::Option`] for an option out of its range, such as a γ that is not above 0.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{FocalTverskyLoss, Loss};
///
/// let input = Tensor::from_slice(&[1.0, 0.5, 0.5, 0.0]).view([1, 1, 4]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64, 1, 0, 1]).view([1, 1, 4]);
///
/// let criterion = FocalTverskyLoss::new().alpha(0.25).beta(0.75).gamma(2.0).smooth_nr(0.0).smooth_dr(0.0);
/// let loss = criterion.f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// // Intersection 1.5, false positives 0.5, false negatives 1.5.
/// let tversky: f64 = 1.0 - 1.5 / (1.5 + 0.25 * 0.5 + 0.75 * 1.5);
/// assert_eq!(f64::try_from(&loss)?, tversky * tversky);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FocalTverskyLoss: "focal_tversky";

/// The focal Tversky loss with the paper's α, β and γ.
new {
    inner regions: Regions = Regions::new();
    /// the weight of false positives.
    alpha: f64 = 0.3,
    /// the weight of false negatives.
    beta: f64 = 0.7,
    /// the power, above 0.
    gamma: f64 = 0.75,
    /// what is raised to the power.
    power: FocalPower = FocalPower::Region,
    ..region_options in regions,
    ..score_options in regions,
}
}

impl FocalTverskyLoss {
    fn f_power(&self, losses: &Tensor) -> Result<Tensor, LossError> {
        if self.gamma == 1.0 {
            return Ok(losses.shallow_clone());
        }
        let gamma = self.gamma;
        let composite = move |[losses]: [&Tensor; 1]| numeric::f_power(&losses.f_relu()?, gamma);
        f_pointwise(Power { gamma }, [losses], Reduction::None, composite)
    }
}

/// max(0, x)^γ
#[derive(Clone, Copy)]
struct Power {
    gamma: f64,
}

impl Pointwise<1> for Power {
    #[inline(always)]
    fn evaluate<R: Real>(self, [loss]: [R; 1]) -> (R, [R; 1]) {
        let (zero, gamma) = (R::of(0.0), R::of(self.gamma));
        // As in `numeric::f_power`, the power of a number near 0 and its derivative are 0.
        let vanishes = loss.less(R::of(numeric::SMALLEST_BASE));
        let base = choose(vanishes, R::of(1.0), loss);
        let power = (gamma * base.ln()).exp();
        (choose(vanishes, zero, power), [choose(vanishes, zero, gamma * power / base)])
    }
}

impl RegionLoss for FocalTverskyLoss {
    with_regions!();

    fn f_score(&self) -> Result<Score, LossError> {
        let gamma = self.gamma;
        let valid = gamma > 0.0 && gamma <= f64::from(f32::MAX);
        check::option("gamma", gamma, valid, "a finite number above 0")?;
        Score::f_tversky(self.alpha, self.beta)
    }

    fn f_of_sizes(&self, sizes: &Sizes) -> Result<Tensor, LossError> {
        let score = self.f_score()?;
        let loss = match self.power {
            FocalPower::Region => {
                let losses = self.regions.f_losses_of(sizes, score)?;
                self.regions.f_reduce(&self.f_power(&losses)?, sizes)?
            }
            FocalPower::Reduced => {
                self.f_power(&self.regions.f_loss_of(sizes, score, sizes.intersection.f_kind()?)?)?
            }
        };
        self.regions.f_finish(&loss, sizes)
    }
}

impl Loss for FocalTverskyLoss {
    loss_of_regions!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;
    use crate::{Activation, EmptyMask, TverskyLoss};

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -1.0, 2.0, 1.0, 0.0, 0.25, -0.5, 1.5]).view([2, 2, 2])
    }

    fn classes() -> Tensor {
        Tensor::from_slice(&[0_i64, 1, 1, 1]).view([2, 2])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        for (gamma, given) in [(0.0, "0"), (-1.0, "-1"), (f64::NAN, "NaN")] {
            let error = FocalTverskyLoss::new().gamma(gamma).f_forward(&logits(), &classes()).unwrap_err();
            assert_eq!(error.to_string(), format!("option gamma is {given}, expected a finite number above 0"));
        }
    }

    #[test]
    fn a_power_of_one_is_the_tversky_loss() {
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let focal = FocalTverskyLoss::new().gamma(1.0).activation(Activation::Softmax).reduction(reduction);
            let tversky = TverskyLoss::new().alpha(0.3).beta(0.7).activation(Activation::Softmax).reduction(reduction);
            assert_eq!(focal.forward(&logits(), &classes()), tversky.forward(&logits(), &classes()));
        }
    }

    #[test]
    fn the_power_is_of_each_region_or_of_the_mean() {
        let criterion = |gamma| FocalTverskyLoss::new().gamma(gamma).activation(Activation::Softmax);
        let losses = criterion(1.0).reduction(Reduction::None).forward(&logits(), &classes());
        let regions = criterion(2.0).forward(&logits(), &classes()) - losses.square().mean(None);
        let reduced = criterion(2.0).power(FocalPower::Reduced).forward(&logits(), &classes());
        assert!(regions.double_value(&[]).abs() < 1e-15);
        assert!((reduced - losses.mean(None).square()).double_value(&[]).abs() < 1e-15);
    }

    #[test]
    fn a_perfect_prediction_has_no_gradient() {
        for power in [FocalPower::Region, FocalPower::Reduced] {
            for gamma in [0.5, 1.5] {
                let target = Tensor::from_slice(&[1.0, 0.0, 0.0, 0.0]).view([1, 2, 2]);
                let input = target.copy().set_requires_grad(true);
                let criterion = FocalTverskyLoss::new().gamma(gamma).power(power).empty_mask(EmptyMask::Zero);
                let loss = criterion.forward(&input, &target);
                loss.backward();
                assert_eq!(loss.double_value(&[]), 0.0);
                assert_eq!(input.grad().abs().sum(None).double_value(&[]), 0.0);
            }
        }
    }

    #[test]
    fn the_gradient_is_that_of_differences() {
        for power in [FocalPower::Region, FocalPower::Reduced] {
            for gamma in [0.75, 1.0, 2.5] {
                let criterion = FocalTverskyLoss::new().gamma(gamma).power(power).activation(Activation::Softmax);
                assert_gradient(&logits(), |input| criterion.forward(input, &classes()));
            }
        }
    }
}
