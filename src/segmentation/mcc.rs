use tch::{TchError, Tensor};

use super::activation::{Activating, Activation, f_check_masks, f_poison};
use super::mask::f_one_channel;
use crate::autograd::{self, Function, f_gradients_of};
use crate::kernels::{Embedding, NumberOperations, Real, f_embedding};
use crate::numeric::wide_kind;
use crate::{InvalidValues, Loss, LossError, Reduction, check};

crate::options::options! {
/// The MCC loss of a binary mask: 1 minus the Matthews correlation coefficient of prediction and target.
///
/// Unlike [`DiceLoss`](crate::DiceLoss) it also counts the background that is found right, and so treats both sides of
/// the mask alike. Choose it where foreground and background are of different size, and both matter.
///
/// # Formula
///
/// ℓ = 1 − (TP · TN − FP · FN) / √((TP + FP) (TP + FN) (TN + FP) (TN + FN))
///
/// where TP = Σ p t + ε, TN = Σ (1 − p)(1 − t) + ε, FP = Σ p (1 − t) + ε, FN = Σ (1 − p) t + ε over all elements, with
/// p the probability and t the target. It is 0 for a perfect prediction, 1 for a constant one and 2 for the opposite of
/// the target.
///
#[doc = include_str!("../../docs/book/src/gallery/mcc.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`; probabilities, or logits with an [`activation`](MccLoss::activation)
/// * `target`: `[*]`, the same shape, or `[N, d₁, …, dₖ]` for an input `[N, 1, d₁, …, dₖ]`; of any kind of real numbers
///   or Booleans
/// * result: scalar
///
/// # Reference
///
/// `segmentation_models_pytorch.losses.MCCLoss` 0.6. Kumar Abhishek, Ghassan Hamarneh: *Matthews Correlation
/// Coefficient Loss for Deep Convolutional Networks*, ISBI 2021.
///
/// # Differences from smp
///
/// * The target may be of Booleans, which smp cannot subtract.
/// * A mask that is not in \[0, 1\], such as one of 0 and 255, is an error; and without an activation an input far from
///   it.
/// * `f16` and `bf16` are computed in `f32`; in `f16` smp's product of four counts overflows from a few dozen pixels
///   on.
/// * The root is taken of two products of two counts, so that it does not overflow in `f32` either.
///
/// In both, the loss of a mask without any foreground or without any background is at least 1/2, because three of the
/// four counts are no more than ε.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a mask, or an input without an activation, that is not in \[0, 1\], [`LossError::Option`]
/// for an ε that is not above 0 and for a softmax of a single class.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, MccLoss};
///
/// let mask = Tensor::from_slice(&[1.0, 1.0, 0.0, 0.0]);
/// let unsure = Tensor::from_slice(&[0.5, 0.5, 0.5, 0.5]);
///
/// let criterion = MccLoss::new();
/// assert!(f64::try_from(criterion.f_forward(&mask, &mask)?)? < 1e-4);
/// assert_eq!(f64::try_from(criterion.f_forward(&unsure, &mask)?)?, 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "MCCLoss")]
#[doc(alias = "matthews")]
pub struct MccLoss: "mcc";

/// The loss with smp's defaults.
new {
    /// how the input becomes probabilities. Without an activation the input holds them, and a number far from \[0, 1\]
    /// is an error. With [`Activation::None`] all numbers are taken as they are.
    activation: Option<Activation> = None,
    /// what is added to each of the four counts, above 0.
    eps: f64 = 1e-5,
    /// what a mask or an input without activation does that is not in \[0, 1\].
    invalid_values: InvalidValues = InvalidValues::default(),
}
}

impl MccLoss {
    /// The loss by tensor operations, of a row of probabilities and a row of targets, `[1, P]` each. Its derivatives
    /// are a formula: those of the operations would be some for each of the counts.
    fn f_composite(self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let arguments = [input, target];
        let needed = autograd::needed(&arguments);
        let parts = self.f_parts(&input.f_detach()?, &target.f_detach()?)?;
        let loss = parts.correlation.f_rsub_number(1)?;
        let Parts { predicted, actual, root, correlation } = &parts;
        let function = Function::new(&arguments).save(&[input, target, predicted, actual, root, correlation]);
        function.f_attach_one(loss, move |context| {
            let (Some(grad), [input, target, predicted, actual, root, correlation]) =
                (context.grad(0), context.saved())
            else {
                return Ok(vec![None, None]);
            };
            let fused = || {
                let of_input = || f_slopes(target, predicted, actual, [root, correlation])?.f_mul(&grad);
                let of_target = || f_slopes(input, actual, predicted, [root, correlation])?.f_mul(&grad);
                Ok(vec![needed[0].then(of_input).transpose()?, needed[1].then(of_target).transpose()?])
            };
            let again = |inputs: &[Tensor]| Ok(self.f_parts(&inputs[0], &inputs[1])?.correlation.f_rsub_number(1)?);
            let arguments = [input.shallow_clone(), target.shallow_clone()];
            context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &arguments, &needed))
        })
    }

    fn f_parts(self, input: &Tensor, target: &Tensor) -> Result<Parts, TchError> {
        // [[TP, FP], [FN, TN]]
        let products = f_sides(input)?.f_unsqueeze(1)?.f_mul(&f_sides(target)?)?;
        let counts = products.f_sum_dim_intlist(-1, false, None)?.f_add_number(self.eps)?;
        let count = |predicted, actual| counts.f_select(0, predicted)?.f_select(0, actual);
        let hits = count(0, 0)?.f_mul(&count(1, 1)?)?;
        let covariance = hits.f_sub(&count(0, 1)?.f_mul(&count(1, 0)?)?)?;
        let (predicted, actual) =
            (counts.f_sum_dim_intlist(1, false, None)?, counts.f_sum_dim_intlist(0, false, None)?);
        let f_root = |sums: &Tensor| sums.f_select(0, 0)?.f_mul(&sums.f_select(0, 1)?)?.f_sqrt();
        let root = f_root(&predicted)?.f_mul(&f_root(&actual)?)?;
        let correlation = covariance.f_div(&root)?;
        Ok(Parts { predicted, actual, root, correlation })
    }
}

/// What the correlation is made of.
struct Parts {
    /// TP + FP and FN + TN
    predicted: Tensor,
    /// TP + FN and FP + TN
    actual: Tensor,
    /// The root of the product of these four.
    root: Tensor,
    correlation: Tensor,
}

/// The numbers of a row and what they are less than 1: `[2, P]`.
fn f_sides(row: &Tensor) -> Result<Tensor, TchError> {
    Tensor::f_cat(&[row, &row.f_rsub_number(1)?], 0)
}

/// The derivatives of the loss by the numbers of one row, given the `others`: `own` are the two sums of that row, and
/// `rest` those of the others.
fn f_slopes(
    others: &Tensor,
    own: &Tensor,
    rest: &Tensor,
    [root, correlation]: [&Tensor; 2],
) -> Result<Tensor, TchError> {
    let inverse = own.f_reciprocal()?;
    let of_root = inverse.f_select(0, 0)?.f_sub(&inverse.f_select(0, 1)?)?.f_mul(correlation)?.f_mul_number(0.5)?;
    let of_covariance = rest.f_div(root)?;
    let of_ones = of_root.f_sub(&of_covariance.f_select(0, 1)?)?;
    let of_zeros = of_root.f_add(&of_covariance.f_select(0, 0)?)?;
    of_zeros.f_lerp_tensor(&of_ones, others)
}

impl Loss for MccLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        check::option("eps", self.eps, self.eps > 0.0 && self.eps.is_finite(), "a number above 0")
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        self.f_check_options()?;
        let (input_kind, wide) = (input.f_kind()?, wide_kind(input)?);
        // Probabilities and targets of one kind are not converted.
        let activating = self.activation.map_or(Activating::Unset, Activating::Known);
        let as_they_are = activating.activation() == Activation::None && target.f_kind()? == input_kind;
        let kind = if as_they_are { input_kind } else { wide };
        let fits = activating.activation() != Activation::Softmax || input.dim() >= 2;
        check::shape(("input", input), fits, "[N, C, ...] for a softmax over the classes")?;
        let target = f_one_channel(("target", target), input, kind)?;
        let mode = self.invalid_values;
        let valid_target = f_check_masks(&target, None, mode)?;
        let (input, valid_input) = activating.f_probabilities(&input.f_to_kind(kind)?, mode)?;
        let loss = *self;
        // All pixels are one row.
        let rows = [&input.f_reshape([1, -1])?, &target.f_reshape([1, -1])?];
        let composite =
            move |[input, target]: [&Tensor; 2]| loss.f_composite(&input.f_to_kind(wide)?, &target.f_to_kind(wide)?);
        let loss = f_embedding(Formula { eps: self.eps }, rows, Reduction::Sum, composite)?;
        f_poison(loss.f_to_kind(input_kind)?, &[valid_input, valid_target])
    }
}

#[derive(Clone, Copy)]
struct Formula {
    eps: f64,
}

/// The sums are the true positives and negatives, and the false positives and negatives.
impl Embedding<2, 4> for Formula {
    #[inline(always)]
    fn add<R: Real>(self, [p, t]: [R; 2], [tp, tn, fp, fn_]: [R; 4]) -> [R; 4] {
        let (not_p, not_t) = (R::of(1.0) - p, R::of(1.0) - t);
        [p.mul_add(t, tp), not_p.mul_add(not_t, tn), p.mul_add(not_t, fp), not_p.mul_add(t, fn_)]
    }

    fn loss<R: Real>(self, sums: [R; 4], _: R) -> (R, [R; 4]) {
        let (half, one) = (R::of(0.5), R::of(1.0));
        let [tp, tn, fp, fn_] = sums.map(|sum| sum + R::of(self.eps));
        let [a, b, c, d] = [tp + fp, tn + fn_, tp + fn_, tn + fp];
        let (covariance, root) = (tp * tn - fp * fn_, (a * b * c * d).sqrt());
        let correlation = covariance / root;
        // The derivatives of the logarithm of the product, by its factors.
        let [predicted, not_predicted, actual, not_actual] = [a, b, c, d].map(|factor| one / factor);
        let slope = |of_covariance: R, of_logarithm: R| half * correlation * of_logarithm - of_covariance / root;
        let slopes = [
            slope(tn, predicted + actual),
            slope(tp, not_predicted + not_actual),
            slope(-fn_, predicted + not_actual),
            slope(-fp, not_predicted + actual),
        ];
        (one - correlation, slopes)
    }

    #[inline(always)]
    fn derive<R: Real>(self, [p, t]: [R; 2], [tp, tn, fp, fn_]: [R; 4]) -> [R; 2] {
        let (not_p, not_t) = (R::of(1.0) - p, R::of(1.0) - t);
        [(tp - fn_) * t + (fp - tn) * not_t, (tp - fp) * p + (fn_ - tn) * not_p]
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn mask() -> Tensor {
        Tensor::from_slice(&[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]).view([2, 3])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let new = MccLoss::new;
        let message = |criterion: MccLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let integers = mask().to_kind(Kind::Int64);
        let cases = [
            (
                message(new(), &mask(), &mask().view([3, 2])),
                "target has shape [3, 2], expected [2, 3], the shape of input",
            ),
            (message(new(), &integers, &mask()), "input has kind Int64, expected a floating kind"),
            (message(new().eps(0.0), &mask(), &mask()), "option eps is 0, expected a number above 0"),
            (
                message(new().activation(Activation::Softmax), &mask().view([6]), &mask().view([6])),
                "input has shape [6], expected [N, C, ...] for a softmax over the classes",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn the_opposite_of_the_target_is_two() {
        let loss = MccLoss::new().eps(1e-12).forward(&(1.0 - mask()), &mask());
        assert!((loss.double_value(&[]) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn every_kind_is_a_mask() {
        let logits = mask() * 4.0 - 1.0;
        let criterion = MccLoss::new().activation(Activation::Sigmoid);
        let expected = criterion.forward(&logits, &mask());
        for kind in [Kind::Bool, Kind::Uint8, Kind::Int64, Kind::Float] {
            assert_eq!(criterion.forward(&logits, &mask().to_kind(kind)), expected, "{kind:?}");
        }
    }

    #[test]
    fn a_mask_of_one_side_only_stays_finite() {
        for target in [mask() * 0.0, mask() * 0.0 + 1.0] {
            for logits in [1e4, -1e4, 0.0] {
                let input = (mask() * 0.0 + logits).set_requires_grad(true);
                let loss = MccLoss::new().activation(Activation::Sigmoid).forward(&input, &target);
                loss.backward();
                assert!(loss.double_value(&[]).is_finite());
                assert!(input.grad().isfinite().all().int64_value(&[]) != 0);
            }
        }
    }

    #[test]
    fn many_pixels_do_not_overflow() {
        let mask = Tensor::cat(
            &[
                Tensor::ones([300], (Kind::Half, tch::Device::Cpu)),
                Tensor::zeros([300], (Kind::Half, tch::Device::Cpu)),
            ],
            0,
        );
        // 2ε / 300 is what ε leaves.
        let loss = MccLoss::new().forward(&mask, &mask).double_value(&[]);
        assert!((0.0..1e-7).contains(&loss), "{loss:e}");
    }
}
