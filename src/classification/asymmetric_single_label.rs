use tch::Tensor;

use crate::autograd::{Function, f_gradients_of};
use crate::check::{self, ClassIndices};
use crate::kernels::{
    self, ANY, ClassTerms, Note, NumberOperations, Real, RowReduction, Rows, choose, f_class_terms, powers,
};
use crate::numeric::{f_power, result_kind, wide_kind};
use crate::{InvalidValues, Loss, LossError, Reduction};

crate::options::options! {
/// The asymmetric loss of one label: a focal cross entropy in which the classes that label smoothing adds have a
/// focusing exponent of their own.
///
/// For classes of which some are rare, where [`CrossEntropyLoss`](crate::CrossEntropyLoss) is dominated by the easy
/// samples. Where several labels may be right choose [`AsymmetricMultiLabelLoss`](crate::AsymmetricMultiLabelLoss).
///
/// # Formula
///
/// ℓₙ = −(1 − ε + ε/C) (1 − p_y)^γ₊ log p_y − ε/C · Σ_{c ≠ y} p_c^γ₋ log p_c
///
/// where p = softmax(x) over the classes, y is the target, ε the label smoothing, C the number of classes, and γ₊ and
/// γ₋ are the focusing exponents. Without smoothing only the first term is left.
///
#[doc = include_str!("../../docs/book/src/gallery/asymmetric_single_label.svg")]
///
/// # Shapes
///
/// * `input`: `[C]`, `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[]`, `[N]` or `[N, d₁, …, dₖ]`, of any integer kind
/// * result: scalar, or `[]`, `[N]` or `[N, d₁, …, dₖ]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `timm.loss.AsymmetricLossSingleLabel` of timm 1.0.31; Ridnik et al., Asymmetric Loss for Multi-Label Classification,
/// <https://arxiv.org/abs/2009.14119>.
///
/// # Differences from timm
///
/// * timm's `eps` is the label smoothing here.
/// * A class that is masked, by −∞ or by a huge negative number, and is not the target adds 0 to the loss; timm's loss
///   is NaN.
/// * Exponents below 1 have finite gradients; timm's are NaN where a probability rounds to 0 or 1.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a negative exponent or a smoothing outside
/// \[0, 1\].
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{AsymmetricSingleLabelLoss, Loss};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0]).view([1, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64]);
///
/// let loss = AsymmetricSingleLabelLoss::new().label_smoothing(0.0).f_forward(&logits, &target)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - 0.5 * 2_f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "AsymmetricLossSingleLabel")]
pub struct AsymmetricSingleLabelLoss: "asymmetric_single_label" | "AsymmetricLossSingleLabel";

/// Asymmetric loss with timm's defaults.
new {
    /// the focusing exponent of the target.
    gamma_pos: f64 = 1.0,
    /// the focusing exponent of the other classes, which have a part in the loss only with label smoothing.
    gamma_neg: f64 = 4.0,
    /// the share of the target, in \[0, 1\], that is spread over all classes.
    label_smoothing: f64 = 0.1,
    /// how a class out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl AsymmetricSingleLabelLoss {
    /// The share of each class in a smoothed target.
    fn spread(&self, classes: i64) -> f64 {
        self.label_smoothing / classes.max(1) as f64
    }

    /// The losses of `logits` with classes along `dim`; `target` has that dimension, of size 1.
    fn f_losses(&self, logits: &Tensor, target: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        let log_p = logits.f_log_softmax(dim, None)?;
        let own = log_p.f_gather(dim, target, false)?.f_squeeze_dim(dim)?;
        // A target that is masked by −∞ has the factor 1 with derivative 0.
        let possible = own.f_threshold_number(MASKED, MASKED)?;
        let mut losses = own.f_mul(&f_power(&possible.f_expm1()?.f_neg()?, self.gamma_pos)?)?;
        let spread = self.spread(logits.size()[dim as usize]);
        losses = losses.f_mul_number(self.label_smoothing - 1.0 - spread)?;
        if self.label_smoothing == 0.0 {
            return Ok(losses);
        }
        let others = self.f_others(&log_p)?.f_scatter_number(dim, target, 0)?;
        Ok(losses.f_sub(&others.f_sum_dim_intlist(dim, false, None)?.f_mul_number(spread)?)?)
    }

    /// p^γ₋ log p, 0 for a class that is masked, by −∞ or by a huge number: there 0 · ∞ would be NaN.
    fn f_others(&self, log_p: &Tensor) -> Result<Tensor, LossError> {
        if self.gamma_neg == 0.0 {
            return Ok(log_p.shallow_clone());
        }
        f_weighted_log(&log_p.f_threshold_number(MASKED, 0)?, self.gamma_neg)
    }

    /// The reduced loss by tensor operations, of logits with classes along `dim` and of classes in range.
    fn f_composite(&self, input: &Tensor, target: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        let logits = input.f_to_kind(wide_kind(input)?)?;
        let losses = self.f_losses(&logits, &target.f_unsqueeze(dim)?, dim)?;
        Ok(self.reduction.f_apply(&losses)?.f_to_kind(result_kind(input)?)?)
    }

    /// The same with a check of the classes.
    fn f_checked(&self, input: &Tensor, target: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        let target = ClassIndices::f_new(target, input.size()[dim as usize], None, self.invalid_values)?;
        let loss = self.f_composite(input, &target.indices, dim)?;
        target.validity.f_poison_own(loss, self.reduction == Reduction::None)
    }

    /// The same by the engine, or `None` where the engine does not take the call.
    fn f_fused(
        &self,
        input: &Tensor,
        target: &Tensor,
        dim: i64,
        note: Option<&Note>,
    ) -> Result<Option<Tensor>, LossError> {
        if !kernels::takes_rows(input) {
            return Ok(None);
        }
        let last = input.dim() - 1;
        let input = if dim as usize == last { input.shallow_clone() } else { input.f_movedim_int(dim, -1)? };
        let spread = self.spread(input.size()[last]);
        let own = 1.0 - self.label_smoothing + spread;
        let formula = Formula { own, spread, gamma_pos: self.gamma_pos, gamma_neg: self.gamma_neg };
        let rows = Rows { input: &input, class_dim: last, target, ignore_index: None, weight: None, note };
        let (loss, reduction) = (*self, RowReduction::over_all(self.reduction));
        f_class_terms(formula, &rows, reduction, move |input, target| loss.f_checked(input, target, last as i64))
    }
}

/// x exp(γ x), with its derivative as a formula.
fn f_weighted_log(x: &Tensor, gamma: f64) -> Result<Tensor, LossError> {
    let f_power = move |x: &Tensor| x.f_mul_number(gamma)?.f_exp();
    let power = f_power(&x.f_detach()?)?;
    let product = power.f_mul(&x.f_detach()?)?;
    let saved = [x, &power, &product];
    Function::new(&[x]).save(&saved).f_attach_one(product.shallow_clone(), move |context| {
        let (Some(grad), [x, power, product]) = (context.grad(0), context.saved()) else { return Ok(vec![None]) };
        let fused = || Ok(vec![Some(product.f_mul_number(gamma)?.f_add_(power)?.f_mul_(&grad)?)]);
        let again = |inputs: &[Tensor]| Ok(inputs[0].f_mul(&f_power(&inputs[0])?)?);
        context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &[x.shallow_clone()], &[true]))
    })
}

/// A class with a log-probability below this is masked: every power of its probability is 0.
const MASKED: f64 = -1e30;

impl Loss for AsymmetricSingleLabelLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(unreduced);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite_not_negative("gamma_pos", self.gamma_pos)?;
        check::finite_not_negative("gamma_neg", self.gamma_neg)?;
        check::share("label_smoothing", self.label_smoothing)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        self.f_check_options()?;
        let dim = check::class_dim(input)?;
        let found = (self.invalid_values, self.reduction == Reduction::None);
        let engine = |target: &Tensor, note: Option<&Note>| self.f_fused(input, target, dim as i64, note);
        match ClassIndices::f_fused_of(target, (input, dim), "", None, found, engine)? {
            Ok(loss) => Ok(loss),
            Err(target) => {
                let loss = self.f_composite(input, &target.indices, dim as i64)?;
                target.validity.f_poison_own(loss, self.reduction == Reduction::None)
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Formula {
    /// The shares that the target's class and each other class have in the smoothed target.
    own: f64,
    spread: f64,
    gamma_pos: f64,
    gamma_neg: f64,
}

impl ClassTerms for Formula {
    #[inline(always)]
    fn of_target<R: Real>(self, log_p: R, p: R) -> (R, R) {
        let (focus, slope) = powers::<R, ANY>(-log_p.exp_m1(), self.gamma_pos);
        let (own, zero) = (R::of(-self.own), R::of(0.0));
        // The product is 0 for p = 0, where 0 · ∞ would be NaN.
        let product = choose(p.equal(zero), zero, p * log_p);
        (own * focus * log_p, own * (focus - slope * product))
    }

    #[inline(always)]
    fn of_other<R: Real>(self, log_p: R) -> (R, R) {
        let exponent = R::of(self.gamma_neg);
        let zero = R::of(0.0);
        let power = choose(exponent.equal(zero), R::of(1.0), (exponent * log_p).exp_of_negative());
        let share = R::of(-self.spread) * power;
        // A class that is masked, by a finite number or by −∞, has a loss of 0, where 0 · ∞ would be NaN.
        let none = share.equal(zero);
        let slope = choose(exponent.equal(zero), R::of(1.0), exponent.mul_add(log_p, R::of(1.0)));
        (choose(none, zero, share * log_p), choose(none, zero, share * slope))
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::CrossEntropyLoss;

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -2.0, 1.5, -1.0, 3.0, 0.1]).view([2, 3])
    }

    fn unfocused() -> AsymmetricSingleLabelLoss {
        AsymmetricSingleLabelLoss::new().gamma_pos(0.0).gamma_neg(0.0)
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (logits(), Tensor::from_slice(&[1_i64, 2]));
        let new = AsymmetricSingleLabelLoss::new;
        let message = |criterion: AsymmetricSingleLabelLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (message(new(), &input, &(&target + 1)), "target holds 3, expected classes in [0, 3)"),
            (
                message(new(), &input, &target.view([2, 1])),
                "target has shape [2, 1], expected [2], the shape of input without its classes",
            ),
            (message(new(), &input, &target.to_kind(Kind::Double)), "target has kind Double, expected an integer kind"),
            (
                message(new().gamma_pos(-1.0), &input, &target),
                "option gamma_pos is -1, expected a finite number of at least 0",
            ),
            (
                message(new().label_smoothing(2.0), &input, &target),
                "option label_smoothing is 2, expected a number in [0, 1]",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn without_focus_it_is_cross_entropy() {
        let target = Tensor::from_slice(&[1_i64, 2]);
        for smoothing in [0.0, 0.1, 1.0] {
            let loss = unfocused().label_smoothing(smoothing).forward(&logits(), &target);
            let expected = CrossEntropyLoss::new().label_smoothing(smoothing).forward(&logits(), &target);
            assert!((loss - expected).abs().double_value(&[]) < 1e-14);
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for (gamma_pos, gamma_neg) in [(1.0, 4.0), (0.3, 0.3), (0.0, 0.0)] {
            let input = Tensor::from_slice(&[1e4_f32, -1e4, -1e4, 1e4]).view([2, 2]).set_requires_grad(true);
            let criterion = AsymmetricSingleLabelLoss::new().gamma_pos(gamma_pos).gamma_neg(gamma_neg);
            let loss = criterion.reduction(Reduction::Sum).forward(&input, &Tensor::from_slice(&[0_i64, 0]));
            loss.backward();
            let finite = loss.isfinite().logical_and(&input.grad().isfinite().all());
            assert!(bool::try_from(finite).unwrap(), "{gamma_pos} {gamma_neg}: {loss}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let target = Tensor::from_slice(&[1_i64, 1]);
        for (gamma_pos, gamma_neg) in [(1.0, 4.0), (0.5, 0.3), (2.0, 0.0)] {
            let loss = AsymmetricSingleLabelLoss::new().gamma_pos(gamma_pos).gamma_neg(gamma_neg);
            crate::numeric::assert_gradient(&logits(), |input| loss.forward(input, &target));
        }
    }

    #[test]
    fn images_have_a_loss_per_pixel() {
        let image = logits().view([1, 2, 3]).permute([0, 2, 1]).contiguous();
        let target = Tensor::from_slice(&[1_i64, 2]);
        let loss = AsymmetricSingleLabelLoss::new().forward(&image, &target.view([1, 2]));
        assert_eq!(loss, AsymmetricSingleLabelLoss::new().forward(&logits(), &target));
    }

    #[test]
    fn classes_out_of_range_can_make_the_loss_nan() {
        let criterion = AsymmetricSingleLabelLoss::new().invalid_values(InvalidValues::Nan).reduction(Reduction::None);
        let loss = criterion.forward(&logits(), &Tensor::from_slice(&[1_i64, 7]));
        assert!(loss.double_value(&[0]).is_finite() && loss.double_value(&[1]).is_nan());
    }
}
