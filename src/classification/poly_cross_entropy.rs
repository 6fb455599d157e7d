use tch::Tensor;

use crate::check::{self, ClassIndices};
use crate::kernels::{Note, NumberOperations, Real, RowLoss, RowReduction, Rows, f_softmax};
use crate::loss::composite;
use crate::numeric::{f_reals, f_share_of, result_kind, wide_kind};
use crate::{InvalidValues, Loss, LossError, Reduction};

crate::options::options! {
/// Cross entropy with another weight for the first term of its expansion: Poly-1.
///
/// Cross entropy is the series Σⱼ (1 − p)ʲ / j in the probability p of the target; this loss adds ε to the weight of
/// its first term. A positive ε makes predictions more confident, which helps on balanced data sets; with ε = 0 it is
/// [`CrossEntropyLoss`](crate::CrossEntropyLoss).
///
/// # Formula
///
/// ℓₙ = −Σ_c t\[n, c\] log p\[n, c\] + ε (1 − Σ_c t\[n, c\] p\[n, c\])
///
/// where p = softmax(x) over the classes and t is the target: class probabilities, or 1 for the class of an index and 0
/// for the others, in either case smoothed to (1 − s) t + s/C with the label smoothing s and the number of classes C.
///
#[doc = include_str!("../../docs/book/src/gallery/poly_cross_entropy.svg")]
///
/// # Shapes
///
/// * `input`: `[C]`, `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[]`, `[N]` or `[N, d₁, …, dₖ]`, of any integer kind, for class indices; or `[C]`, `[N, C]` or
///   `[N, C, d₁, …, dₖ]`, of a floating kind, for class probabilities
/// * result: scalar, or `[]`, `[N]` or `[N, d₁, …, dₖ]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `timm.loss.PolyCrossEntropy` of timm 1.0.31; Leng et al., PolyLoss, <https://arxiv.org/abs/2204.12511>.
///
/// # Differences from timm
///
/// * `f64` is computed in `f64`, and the result has the input's kind; timm computes and returns `f32`.
/// * Label smoothing smooths class probabilities, too; timm leaves them alone.
/// * The classes are the second dimension, as in PyTorch; in timm they are the last.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a smoothing outside \[0, 1\] or an ε that
/// is not finite.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, PolyCrossEntropyLoss};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0]).view([1, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64]);
///
/// let loss = PolyCrossEntropyLoss::new().f_forward(&logits, &target)?;
/// loss.f_backward()?;
/// assert!((f64::try_from(&loss)? - (2_f64.ln() + 2.0 * 0.5)).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "PolyLoss")]
#[doc(alias = "PolyCrossEntropy")]
pub struct PolyCrossEntropyLoss: "poly_cross_entropy";

/// Poly-1 cross entropy with timm's ε = 2.
new {
    /// what is added to the weight of the first term.
    epsilon: f64 = 2.0,
    /// the share of the target, in \[0, 1\], that is spread over all classes.
    label_smoothing: f64 = 0.0,
    /// how a class out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl PolyCrossEntropyLoss {
    /// The losses, given −Σ t log p and 1 − Σ t p of the target before smoothing.
    fn f_losses(&self, log_p: &Tensor, dim: i64, entropy: &Tensor, missing: &Tensor) -> Result<Tensor, LossError> {
        let smoothing = self.label_smoothing;
        if smoothing == 0.0 {
            return Ok(entropy.f_add(&missing.f_mul_number(self.epsilon)?)?);
        }
        let spread = log_p.f_mean_dim(dim, false, None)?.f_mul_number(-smoothing)?;
        let entropy = entropy.f_mul_number(1.0 - smoothing)?.f_add(&spread)?;
        // The smoothed target's part of s/C per class adds s (1 − 1/C), whatever is predicted.
        let always_missing = smoothing * (1.0 - 1.0 / log_p.size()[dim as usize] as f64);
        let missing = missing.f_mul_number(1.0 - smoothing)?.f_add_number(always_missing)?;
        Ok(entropy.f_add(&missing.f_mul_number(self.epsilon)?)?)
    }

    fn f_probabilities(&self, log_p: &Tensor, target: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        check::floating(("target", target))?;
        let target = f_reals(("target", target), log_p.f_kind()?)?;
        let entropy = f_share_of(&target, log_p)?.f_sum_dim_intlist(dim, false, None)?.f_neg()?;
        let missing = target.f_mul(&log_p.f_exp()?)?.f_sum_dim_intlist(dim, false, None)?.f_rsub_number(1)?;
        self.reduction.f_apply(&self.f_losses(log_p, dim, &entropy, &missing)?)
    }

    fn f_indices(&self, log_p: &Tensor, target: &ClassIndices, dim: i64) -> Result<Tensor, LossError> {
        let own = log_p.f_gather(dim, &target.indices.f_unsqueeze(dim)?, false)?.f_squeeze_dim(dim)?;
        let losses = self.f_losses(log_p, dim, &own.f_neg()?, &own.f_expm1()?.f_neg()?)?;
        target.validity.f_poison_own(self.reduction.f_apply(&losses)?, self.reduction == Reduction::None)
    }

    /// The loss of class indices by the engine, or `None` where the engine does not take the call.
    fn f_fused(
        &self,
        input: &Tensor,
        class_dim: usize,
        target: &Tensor,
        note: Option<&Note>,
    ) -> Result<Option<Tensor>, LossError> {
        let (smoothing, epsilon) = (self.label_smoothing, self.epsilon);
        if smoothing == 1.0 {
            return Ok(None);
        }
        let reduction = RowReduction::over_all(self.reduction);
        let rows = Rows { input, class_dim, target, ignore_index: None, weight: None, note };
        // The engine multiplies this by 1 − s, the share of the target that is not spread.
        let missing = smoothing / (1.0 - smoothing) * (1.0 - 1.0 / input.size()[class_dim] as f64);
        f_softmax(Poly { epsilon, missing }, smoothing, &rows, reduction, composite(*self))
    }
}

/// The loss, for the engine.
#[derive(Clone, Copy)]
struct Poly {
    epsilon: f64,
    /// The constant that the smoothing adds to 1 − Σ t p.
    missing: f64,
}

impl RowLoss for Poly {
    #[inline(always)]
    fn evaluate<R: Real>(self, log_p: R, _: R) -> (R, [R; 2]) {
        let (epsilon, missing) = (R::of(self.epsilon), -log_p.exp_m1());
        let loss = epsilon * (missing + R::of(self.missing)) - log_p;
        (loss, [epsilon * (missing - R::of(1.0)) - R::of(1.0), R::of(0.0)])
    }
}

impl Loss for PolyCrossEntropyLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(unreduced);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite("epsilon", self.epsilon)?;
        check::share("label_smoothing", self.label_smoothing)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        self.f_check_options()?;
        let dim = check::class_dim(input)?;
        let log_p = |input: &Tensor| Ok::<_, LossError>(input.f_log_softmax(dim as i64, wide_kind(input)?)?);
        let loss = if target.size() == input.size() {
            self.f_probabilities(&log_p(input)?, target, dim as i64)?
        } else {
            let or = ", or that of input for class probabilities";
            let found = (self.invalid_values, self.reduction == Reduction::None);
            let engine = |target: &Tensor, note: Option<&Note>| self.f_fused(input, dim, target, note);
            match ClassIndices::f_fused_of(target, (input, dim), or, None, found, engine)? {
                Ok(loss) => return Ok(loss),
                Err(target) => self.f_indices(&log_p(input)?, &target, dim as i64)?,
            }
        };
        Ok(loss.f_to_kind(result_kind(input)?)?)
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

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (logits(), Tensor::from_slice(&[1_i64, 2]));
        let new = PolyCrossEntropyLoss::new;
        let message = |criterion: PolyCrossEntropyLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (message(new(), &input, &(&target + 1)), "target holds 3, expected classes in [0, 3)"),
            (
                message(new(), &input, &target.view([2, 1])),
                "target has shape [2, 1], expected [2], the shape of input without its classes, or that of input for \
                 class probabilities",
            ),
            (message(new(), &input, &input.to_kind(Kind::Int64)), "target has kind Int64, expected a floating kind"),
            (message(new().epsilon(f64::NAN), &input, &target), "option epsilon is NaN, expected a finite number"),
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
    fn without_epsilon_it_is_cross_entropy() {
        let target = Tensor::from_slice(&[1_i64, 2]);
        let probabilities = logits().flip([1]).softmax(1, Kind::Double);
        for smoothing in [0.0, 0.1, 1.0] {
            for target in [&target, &probabilities] {
                let loss = PolyCrossEntropyLoss::new().epsilon(0.0).label_smoothing(smoothing);
                let expected = CrossEntropyLoss::new().label_smoothing(smoothing).forward(&logits(), target);
                assert!((loss.forward(&logits(), target) - expected).abs().double_value(&[]) < 1e-14);
            }
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let input = Tensor::from_slice(&[1e4_f32, -1e4, -1e4, 1e4]).view([2, 2]).set_requires_grad(true);
        let loss = PolyCrossEntropyLoss::new().reduction(Reduction::Sum);
        let loss = loss.forward(&input, &Tensor::from_slice(&[0_i64, 0]));
        loss.backward();
        assert_eq!(f64::try_from(&loss).unwrap(), 20002.0);
        assert_eq!(Vec::<f32>::try_from(input.grad().view(-1)).unwrap(), [0.0, 0.0, -1.0, 1.0]);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let target = Tensor::from_slice(&[1_i64, 1]);
        let loss = PolyCrossEntropyLoss::new().label_smoothing(0.2);
        crate::numeric::assert_gradient(&logits(), |input| loss.forward(input, &target));
        let probabilities = logits().flip([1]).softmax(1, Kind::Double);
        crate::numeric::assert_gradient(&logits(), |input| loss.forward(input, &probabilities));
        crate::numeric::assert_gradient(&probabilities, |target| loss.forward(&logits(), target));
    }

    #[test]
    fn classes_out_of_range_can_make_the_loss_nan() {
        let criterion = PolyCrossEntropyLoss::new().invalid_values(InvalidValues::Nan).reduction(Reduction::None);
        let loss = criterion.forward(&logits(), &Tensor::from_slice(&[1_i64, 7]));
        assert!(loss.double_value(&[0]).is_finite() && loss.double_value(&[1]).is_nan());
    }
}
