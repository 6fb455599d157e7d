use tch::{Kind, Tensor};

use super::Divisor;
use super::reducing::loss_of;
use crate::check::{self, Validity};
use crate::kernels::{Note, NumberOperations, RowReduction, Rows, f_softmax_of_positions, is_on_cuda};
use crate::numeric::{f_reals, result_kind, wide_kind};
use crate::{InvalidValues, Loss, LossError, Reduction};

crate::options::options! {
/// Distribution focal loss: cross entropy of the two bins next to a continuous target.
///
/// For a model that predicts a number, such as the distance from a point to a side of its box, as a distribution over
/// the bins 0, 1, …, n, of which the expectation is the number. The usual companion of
/// [`QualityFocalLoss`](crate::QualityFocalLoss) and of the box losses in dense detectors.
///
/// # Formula
///
/// ℓ = −((i + 1 − y) log Sᵢ + (y − i) log Sᵢ₊₁), i = ⌊y⌋
///
/// where S = softmax(x) over the bins and y is the target in \[0, n\]. At y = n only the last bin counts.
///
#[doc = include_str!("../../docs/book/src/gallery/distribution_focal.svg")]
///
/// # Shapes
///
/// * `input`: `[*, n + 1]`, logits of at least two bins
/// * `target`: `[*]`, of any kind of real numbers
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// Li et al., Generalized Focal Loss, <https://arxiv.org/abs/2006.04388>, equation 6, with bins of width 1.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a target outside \[0, n\].
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{DistributionFocalLoss, Loss};
///
/// // Four bins of which the second and the third are ¼ and ½ likely; 1.5 lies between them.
/// let probabilities = [0.125_f64, 0.25, 0.5, 0.125];
/// let logits = Tensor::from_slice(&probabilities.map(f64::ln)).view([1, 4]).set_requires_grad(true);
///
/// let loss = DistributionFocalLoss::new().f_forward(&logits, &Tensor::from_slice(&[1.5]))?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - 1.5 * 2_f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "DFL")]
#[doc(alias = "distribution_focal_loss")]
pub struct DistributionFocalLoss: "distribution_focal" | "DFL";

/// Distribution focal loss.
new {
    /// a weight for each target, broadcast to the target's shape. It is on the device of the input, in any floating
    /// kind.
    weight: Option<Tensor> = None,
    /// what the mean divides by.
    divisor: Divisor = Divisor::Losses => into,
    /// how a target outside the bins is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl Loss for DistributionFocalLoss {
    loss_of!(Targets, f_check);
}

impl DistributionFocalLoss {
    /// The loss before the weight and the divisor.
    fn f_reduced(&self, input: &Tensor, target: &Tensor, reduction: Reduction) -> Result<Tensor, LossError> {
        let (shape, class_dim) = (input.size(), target.dim());
        // Logits and positions of one kind are not converted.
        let kind = if target.f_kind()? == input.f_kind()? { input.f_kind()? } else { wide_kind(input)? };
        let (target, last) = (f_reals(("target", target), kind)?, shape[class_dim] - 1);
        let rows = |target, note| Rows { input, class_dim, target, ignore_index: None, weight: None, note };
        if is_on_cuda(input) && self.invalid_values != InvalidValues::ErrorAtOnce {
            // There the kernels check the positions.
            let note = self.invalid_values.is_error().then(|| Note { argument: "target", expected: expected(last) });
            let loss = self.clone();
            let composite = move |input: &Tensor, target: &Tensor| loss.f_checked(input, target, last, reduction);
            let reduced = RowReduction::over_all(reduction);
            return match f_softmax_of_positions(&rows(&target, note.as_ref()), reduced, composite)? {
                Some(loss) => Ok(loss),
                None => self.f_checked(input, &target, last, reduction),
            };
        }
        let mut validity = self.f_validity(&target, last)?;
        let positions = validity.f_replace(&target, 0.0)?;
        let rows = rows(&positions, None);
        let composite = move |input: &Tensor, positions: &Tensor| f_composite(input, positions, reduction);
        let loss = match f_softmax_of_positions(&rows, RowReduction::over_all(reduction), composite)? {
            Some(loss) => loss,
            None => f_composite(input, &positions, reduction)?,
        };
        validity.f_poison(&loss, reduction == Reduction::None)
    }

    fn f_validity(&self, target: &Tensor, last: i64) -> Result<Validity, LossError> {
        check::f_in_range(("target", target), 0.0..=last as f64, &expected(last), self.invalid_values)
    }

    /// The loss by tensor operations, which see no position outside the bins.
    fn f_checked(&self, input: &Tensor, target: &Tensor, last: i64, reduction: Reduction) -> Result<Tensor, LossError> {
        let mut validity = self.f_validity(target, last)?;
        let loss = f_composite(input, &validity.f_replace(target, 0.0)?, reduction)?;
        validity.f_poison(&loss, reduction == Reduction::None)
    }
}

fn expected(last: i64) -> String {
    format!("positions in [0, {last}]")
}

fn f_check(input: &Tensor, target: &Tensor) -> Result<(), LossError> {
    check::arguments(input, target)?;
    let shape = input.size();
    let Some((_, outer)) = shape.split_last().filter(|(bins, _)| **bins > 1) else {
        return Err(check::shape_error(("input", input), "[*, n + 1], at least two bins"));
    };
    let fits = target.size() == outer;
    check::shape(("target", target), fits, format_args!("{outer:?}, the shape of input without its bins"))
}

fn f_composite(input: &Tensor, positions: &Tensor, reduction: Reduction) -> Result<Tensor, LossError> {
    let (kind, bins) = (wide_kind(input)?, input.size().last().copied().unwrap_or(0));
    let (logits, target) = (input.f_to_kind(kind)?, positions.f_to_kind(kind)?.f_unsqueeze(-1)?);
    let left = target.f_detach()?.f_floor()?.f_clamp_max_number(bins - 2)?;
    let towards_right = target.f_sub(&left)?;
    let weights = Tensor::f_cat(&[towards_right.f_rsub_number(1)?, towards_right], -1)?;
    let left = left.f_to_kind(Kind::Int64)?;
    let beside = Tensor::f_cat(&[left.shallow_clone(), left.f_add_number(1)?], -1)?;
    let log_probabilities = logits.f_log_softmax(-1, None)?.f_gather(-1, &beside, false)?;
    let losses = log_probabilities.f_mul(&weights)?.f_sum_dim_intlist(-1, false, None)?.f_neg()?;
    Ok(reduction.f_apply(&losses)?.f_to_kind(result_kind(input)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CrossEntropyLoss;

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -1.0, 2.0, 0.0, 1.0, -0.5, 0.25, 1.5, -2.0]).view([3, 3])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (logits(), Tensor::from_slice(&[0.0, 0.5, 2.0]));
        let message = |input: &Tensor, target: &Tensor| {
            DistributionFocalLoss::new().f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (message(&input, &(&target + 0.5)), "target holds 2.5, expected positions in [0, 2]"),
            (message(&input, &(&target - 0.25)), "target holds -0.25, expected positions in [0, 2]"),
            (message(&input, &(&target * f64::NAN)), "target holds NaN, expected positions in [0, 2]"),
            (
                message(&input, &target.view([3, 1])),
                "target has shape [3, 1], expected [3], the shape of input without its bins",
            ),
            (
                message(&input.narrow(1, 0, 1), &target),
                "input has shape [3, 1], expected [*, n + 1], at least two bins",
            ),
            (message(&input.to_kind(Kind::Int64), &target), "input has kind Int64, expected a floating kind"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn whole_numbers_are_cross_entropy() {
        let target = Tensor::from_slice(&[0_i64, 1, 2]);
        let expected = CrossEntropyLoss::new().forward(&logits(), &target);
        for kind in [Kind::Int64, Kind::Uint8, Kind::Double, Kind::Float] {
            let loss = DistributionFocalLoss::new().forward(&logits(), &target.to_kind(kind));
            assert!((loss - &expected).abs().double_value(&[]) < 1e-15);
        }
    }

    #[test]
    fn targets_outside_the_bins_can_make_the_loss_nan() {
        let input = logits().set_requires_grad(true);
        let criterion = DistributionFocalLoss::new().invalid_values(InvalidValues::Nan).reduction(Reduction::None);
        let loss = criterion.forward(&input, &Tensor::from_slice(&[-1.0, 0.5, f64::NAN]));
        loss.sum(None).backward();
        let nan: Vec<bool> = loss.isnan().try_into().unwrap();
        assert_eq!(nan, [true, false, true]);
        assert_eq!(input.grad().get(0).abs().sum(None).double_value(&[]), 0.0);
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let input = Tensor::from_slice(&[1e4_f32, -1e4, 0.0]).set_requires_grad(true);
        let loss = DistributionFocalLoss::new().forward(&input, &Tensor::from(0.5));
        loss.backward();
        assert_eq!(f64::try_from(&loss).unwrap(), 1e4);
        assert_eq!(Vec::<f32>::try_from(input.grad()).unwrap(), [0.5, -0.5, 0.0]);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let target = Tensor::from_slice(&[0.25, 1.5, 1.75]);
        let loss = DistributionFocalLoss::new();
        crate::numeric::assert_gradient(&logits(), |input| loss.forward(input, &target));
        crate::numeric::assert_gradient(&target, |target| loss.forward(&logits(), target));
    }
}
