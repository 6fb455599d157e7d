use tch::Tensor;

use super::activation::{Activation, activation, activation_option, f_poison};
use super::{DiceLoss, SoftClDiceLoss};
use crate::kernels::NumberOperations;
use crate::numeric::result_kind;
use crate::{InvalidValues, Loss, LossError, Reduction, check};

crate::options::options! {
/// Dice loss plus soft clDice loss: the overlap of regions, and the connection of thin structures.
///
/// The usual way to use [`SoftClDiceLoss`]: the Dice loss finds the region, clDice keeps thin structures connected.
/// Both share one activation.
///
/// # Formula
///
/// ℓ = (1 − α) Dice + α clDice
///
/// where Dice is the [`DiceLoss`] of each class of each sample and clDice the [`SoftClDiceLoss`] of each sample.
///
#[doc = include_str!("../../docs/book/src/gallery/soft_dice_cldice.svg")]
///
/// # Shapes
///
/// * `input`: `[N, C, d₁, d₂]` or `[N, C, d₁, d₂, d₃]`; probabilities, or logits with an
///   [`activation`](SoftDiceClDiceLoss::activation)
/// * `target`: `[N, C, d₁, d₂]` or `[N, C, d₁, d₂, d₃]`, masks of any kind of real numbers or Booleans; or
///   `[N, d₁, d₂]` or `[N, d₁, d₂, d₃]`, of any integer kind, for class indices
/// * result: scalar
///
/// # Reference
///
/// `monai.losses.SoftDiceclDiceLoss` 1.6. Suprosanna Shit et al.: *clDice – a Novel Topology-Preserving Loss Function
/// for Tubular Structure Segmentation*, CVPR 2021.
///
/// # Differences from MONAI
///
/// Those of [`SoftClDiceLoss`]. A call without a reduction is an error: the two losses have different shapes, which
/// MONAI broadcasts against each other.
///
/// # Errors
///
/// Those of [`SoftClDiceLoss`], and [`LossError::Option`] for an α outside \[0, 1\] or for [`Reduction::None`].
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, SoftDiceClDiceLoss};
///
/// let line = Tensor::from_slice(&[0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]).view([1, 1, 3, 3]);
/// let gap = Tensor::from_slice(&[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]).view([1, 1, 3, 3]);
///
/// let loss = SoftDiceClDiceLoss::new().smooth(1e-12).f_forward(&gap, &line)?;
///
/// // Dice: intersection 2, sizes 2 and 3. The shares of the centre lines are 1 and 3/4.
/// let (dice, cldice) = (1.0 - (2.0 * 2.0 + 1.0) / (2.0 + 3.0 + 1.0), 1.0 - 2.0 * 0.75 / 1.75);
/// assert!((f64::try_from(loss)? - (dice + cldice) / 2.0).abs() < 1e-9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "SoftDiceclDiceLoss")]
pub struct SoftDiceClDiceLoss: "soft_dice_cldice";

/// The sum with MONAI's defaults.
new {
    /// the share of clDice, in \[0, 1\].
    alpha: f64 = 0.5,
    /// how many times the masks are eroded: at least half the width of the widest structure.
    #[doc(alias = "iter_")]
    iterations: usize = 3,
    /// what is added to the numerators of both losses, at least 0.
    smooth_nr: f64 = 1.0,
    /// what is added to the denominators of both losses, at least 0.
    smooth_dr: f64 = 1.0,
    /// what is added to the denominator of clDice's harmonic mean, above 0.
    smooth: f64 = 1e-4,
    /// whether class 0 counts.
    include_background: bool = true,
    /// what a class does that is out of range, or a mask or an input without activation that is not in \[0, 1\].
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction of both losses, not [`Reduction::None`].
    reduction: Reduction = Reduction::Mean,
    ..activation_option,
}
}

impl SoftDiceClDiceLoss {
    fn cldice(&self) -> SoftClDiceLoss {
        let mut cldice = SoftClDiceLoss::new().iterations(self.iterations).smooth(self.smooth);
        cldice.activation = self.activation.clone();
        let cldice = cldice.smooth_nr(self.smooth_nr).smooth_dr(self.smooth_dr);
        let cldice = cldice.include_background(self.include_background).invalid_values(self.invalid_values);
        cldice.reduction(self.reduction)
    }
}

impl Loss for SoftDiceClDiceLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        check::share("alpha", self.alpha)?;
        check::option("reduction", "None", self.reduction != Reduction::None, "Mean or Sum")?;
        self.cldice().f_check_options()
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.f_check_options()?;
        let cldice = self.cldice();
        let (probabilities, masks, validity) = cldice.f_masks(input, target)?;
        let dice = DiceLoss::new().smooth_nr(self.smooth_nr).smooth_dr(self.smooth_dr).reduction(self.reduction);
        // Masks and probabilities were checked before.
        let dice = dice.activation(Activation::None).invalid_values(self.invalid_values);
        let dice = dice.f_forward(&probabilities, &masks)?.f_mul_number(1.0 - self.alpha)?;
        let loss = dice.f_add(&cldice.f_of_masks(&probabilities, &masks)?.f_mul_number(self.alpha)?)?;
        f_poison(loss.f_to_kind(result_kind(input)?)?, &validity)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn wrong_options_are_named() {
        let input = Tensor::zeros([1, 1, 3, 3], (Kind::Double, Device::Cpu));
        let new = SoftDiceClDiceLoss::new;
        let message = |criterion: SoftDiceClDiceLoss| criterion.f_forward(&input, &input).unwrap_err().to_string();
        assert_eq!(message(new().alpha(1.5)), "option alpha is 1.5, expected a number in [0, 1]");
        assert_eq!(message(new().reduction(Reduction::None)), "option reduction is None, expected Mean or Sum");
        assert_eq!(message(new().smooth(0.0)), "option smooth is 0, expected a number above 0");
    }

    #[test]
    fn alpha_chooses_between_the_two() {
        let input = (Tensor::arange(80, (Kind::Double, Device::Cpu)) * 12.9898).sin().view([2, 2, 5, 4]);
        let target = input.select(1, 0).gt_tensor(&input.select(1, 1)).to_kind(Kind::Int64);
        let of =
            |alpha| SoftDiceClDiceLoss::new().activation(Activation::Softmax).alpha(alpha).forward(&input, &target);
        let dice = DiceLoss::new().activation(Activation::Softmax).smooth_nr(1.0).smooth_dr(1.0);
        let cldice = SoftClDiceLoss::new().activation(Activation::Softmax);
        assert!(of(0.0).allclose(&dice.forward(&input, &target), 1e-12, 0.0, false));
        assert!(of(1.0).allclose(&cldice.forward(&input, &target), 1e-12, 0.0, false));
    }
}
