use tch::Tensor;

use crate::check::ClassIndices;
use crate::kernels::{self, Note, NumberOperations, Rows, Views, f_views};
use crate::loss::composite;
use crate::mean_parts::f_wide;
use crate::numeric::{result_kind, wide_kind};
use crate::{CrossEntropyLoss, InvalidValues, Loss, LossError, MeanParts, check};

crate::options::options! {
/// Cross entropy with a Jensen-Shannon divergence: the cross entropy of clean samples, plus how far the predictions for
/// their augmented copies differ.
///
/// The loss of AugMix and similar augmentations: the batch holds the clean samples first, then one or more augmented
/// copies of them in the same order, and a model should predict the same for all of them. Without augmented copies
/// choose [`CrossEntropyLoss`](crate::CrossEntropyLoss).
///
/// # Formula
///
/// ℓ = CE(x⁽¹⁾, y) + α/K · Σₖ KL(p⁽ᵏ⁾ ‖ m), m = min(max(1/K · Σₖ p⁽ᵏ⁾, 10⁻⁷), 1)
///
/// where x⁽¹⁾, …, x⁽ᴷ⁾ are the K splits of the input, p⁽ᵏ⁾ = softmax(x⁽ᵏ⁾), y is the target and α the weight of the
/// divergence, which is summed over the classes and averaged over the samples.
///
#[doc = include_str!("../../docs/book/src/gallery/jsd_cross_entropy.svg")]
///
/// # Shapes
///
/// * `input`: `[K·N, C]` or `[K·N, C, d₁, …, dₖ]`
/// * `target`: `[N]` or `[N, d₁, …, dₖ]`, of any integer kind, for class indices; or `[K·N, C]` or
///   `[K·N, C, d₁, …, dₖ]`, of a floating kind, for class probabilities. Class indices may have K·N rows, too; in
///   either case only the first N rows are used
/// * result: scalar
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `timm.loss.JsdCrossEntropy` of timm 1.0.31; Hendrycks et al., AugMix, <https://arxiv.org/abs/1912.02781>.
///
/// # Differences from timm
///
/// * A probability that underflows has a finite gradient; timm's is NaN.
/// * Targets of the class index −100 are ignored with smoothing, too; timm rejects them there.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for no splits, a smoothing outside \[0, 1\] or
/// an α that is not finite.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{JsdCrossEntropyLoss, Loss};
///
/// // Two views of one sample. The clean one costs log 2; the augmented one agrees with it, or does not.
/// let agreeing = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0]).view([2, 2]);
/// let other = Tensor::from_slice(&[0.0, 0.0, 5.0, 0.0]).view([2, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0_i64]);
///
/// let criterion = JsdCrossEntropyLoss::new().num_splits(2);
/// assert!((f64::try_from(criterion.f_forward(&agreeing, &target)?)? - 2_f64.ln()).abs() < 1e-12);
/// let loss = criterion.f_forward(&other, &target)?;
/// loss.f_backward()?;
/// assert!(f64::try_from(&loss)? > 2_f64.ln());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "JsdCrossEntropy")]
#[doc(alias = "AugMix")]
pub struct JsdCrossEntropyLoss: "jsd_cross_entropy";

/// The loss with timm's defaults.
new {
    /// how many views of each sample the batch holds, the clean one included.
    num_splits: i64 = 3,
    /// the weight of the divergence.
    alpha: f64 = 12.0,
    /// the share of the target, in \[0, 1\], that is spread over all classes.
    label_smoothing: f64 = 0.1,
    /// how a class out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
}
}

impl JsdCrossEntropyLoss {
    /// The divergence of the splits from their mixture, for log-probabilities `[K, N, C, …]`.
    fn f_divergence(&self, log_p: &Tensor) -> Result<Tensor, LossError> {
        let p = log_p.f_exp()?;
        let mixture = p.f_mean_dim(0, false, None)?.f_clamp_number(FLOOR, 1.0)?.f_log()?;
        let samples = log_p.size()[1] * self.num_splits;
        // A class that is masked, by −∞ or by a huge number, adds 0, where 0 · ∞ would be NaN.
        let log_p = log_p.f_masked_fill_number(&p.f_detach()?.f_eq_number(0)?, 0)?;
        Ok(p.f_mul(&log_p.f_sub(&mixture)?)?.f_sum(None)?.f_div_number(samples)?)
    }

    /// The loss of class indices by the engine, or `None` where the engine does not take the call. `target` is that of
    /// the clean samples.
    fn f_fused(&self, input: &Tensor, target: &Tensor) -> Result<Option<Tensor>, LossError> {
        let shape = input.size();
        let (classes, pixels) = (shape[1], shape[2..].iter().product::<i64>());
        if !kernels::takes_rows(input) || target.size() != [&[shape[0] / self.num_splits], &shape[2..]].concat() {
            return Ok(None);
        }
        // Then only the cross entropy becomes NaN, so that the divergence keeps its gradient.
        if self.invalid_values == InvalidValues::Nan {
            return Ok(None);
        }
        // The divergence is averaged over the samples, not over their pixels.
        let of_rows = Self { alpha: self.alpha * pixels as f64, ..*self };
        let views = Views {
            count: self.num_splits as usize,
            smoothing: self.label_smoothing,
            weight: of_rows.alpha,
            floor: FLOOR,
        };
        let input = &input.f_movedim_int(1, -1)?.f_reshape([shape[0] * pixels, classes])?;
        let engine = |target: &Tensor, note: Option<&Note>| {
            let rows = Rows { input, class_dim: 1, target, ignore_index: Some(IGNORED), weight: None, note };
            f_views(views, &rows, composite(of_rows))
        };
        let found = (self.invalid_values, false);
        Ok(ClassIndices::f_fused(&target.f_flatten(0, -1)?, classes, Some(IGNORED), found, engine)?.ok())
    }
}

/// The least probability in a mixture.
const FLOOR: f64 = 1e-7;

/// The class that is ignored.
const IGNORED: i64 = -100;

impl Loss for JsdCrossEntropyLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        check::option("num_splits", self.num_splits, self.num_splits > 0, "at least 1")?;
        check::finite("alpha", self.alpha)?;
        check::share("label_smoothing", self.label_smoothing)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        let splits = self.num_splits;
        self.f_check_options()?;
        let shape = input.size();
        if shape.len() < 2 || shape[0] % splits != 0 {
            let expected = format!("[N, C] or [N, C, d1, ...], with N a multiple of {splits}, the number of splits");
            return Err(check::shape_error(("input", input), expected));
        }
        let samples = shape[0] / splits;
        let rows = target.size().first().copied();
        if rows != Some(shape[0]) && rows != Some(samples) {
            let expected = format!("{samples} or {} rows, those of the clean samples or of all", shape[0]);
            return Err(check::shape_error(("target", target), expected));
        }
        let target = target.f_narrow(0, 0, samples)?;
        if let Some(loss) = self.f_fused(input, &target)? {
            return Ok(loss);
        }
        let logits = input.f_to_kind(wide_kind(input)?)?;
        let clean = logits.f_narrow(0, 0, samples)?;
        let entropy = CrossEntropyLoss::new().label_smoothing(self.label_smoothing).invalid_values(self.invalid_values);
        let entropy = entropy.f_forward(&clean, &target)?;
        let views = [&[splits, samples], &shape[1..]].concat();
        let divergence = self.f_divergence(&logits.f_log_softmax(1, None)?.f_reshape(&views)?)?;
        Ok(entropy.f_add(&divergence.f_mul_number(self.alpha)?)?.f_to_kind(result_kind(input)?)?)
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let mean = self.f_forward(&f_wide(input)?, &f_wide(target)?)?;
        let samples = input.size()[0] / self.num_splits;
        MeanParts::f_over(mean.f_mul_number(samples)?, samples)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -2.0, 1.5, -1.0, 3.0, 0.1, 0.7, -1.5, 1.0, 0.0, 2.5, -0.1]).view([4, 3])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (logits(), Tensor::from_slice(&[1_i64, 2]));
        let two = || JsdCrossEntropyLoss::new().num_splits(2);
        let message = |criterion: JsdCrossEntropyLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (
                message(JsdCrossEntropyLoss::new(), &input, &target),
                "input has shape [4, 3], expected [N, C] or [N, C, d1, ...], with N a multiple of 3, the number of \
                 splits",
            ),
            (
                message(two(), &input, &target.narrow(0, 0, 1)),
                "target has shape [1], expected 2 or 4 rows, those of the clean samples or of all",
            ),
            (
                message(two(), &input, &(&target + 1)),
                "target holds 3, expected classes in [0, 3), or ignore_index -100",
            ),
            (message(two().num_splits(0), &input, &target), "option num_splits is 0, expected at least 1"),
            (message(two().alpha(f64::NAN), &input, &target), "option alpha is NaN, expected a finite number"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn equal_views_cost_no_more_than_the_clean_one() {
        let (clean, target) = (logits().narrow(0, 0, 2), Tensor::from_slice(&[1_i64, 2]));
        let loss = JsdCrossEntropyLoss::new().forward(&Tensor::cat(&[&clean, &clean, &clean], 0), &target);
        let expected = CrossEntropyLoss::new().label_smoothing(0.1).forward(&clean, &target);
        assert!((loss - expected).abs().double_value(&[]) < 1e-14);
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let input = Tensor::from_slice(&[1e4_f32, -1e4, -1e4, 1e4]).view([2, 2]).set_requires_grad(true);
        let loss = JsdCrossEntropyLoss::new().num_splits(2).forward(&input, &Tensor::from_slice(&[0_i64]));
        loss.backward();
        let finite = loss.isfinite().logical_and(&input.grad().isfinite().all());
        assert!(bool::try_from(finite).unwrap(), "{loss}");
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let target = Tensor::from_slice(&[1_i64, 2]);
        let loss = JsdCrossEntropyLoss::new().num_splits(2);
        crate::numeric::assert_gradient(&logits(), |input| loss.forward(input, &target));
    }

    #[test]
    fn half_kinds_are_computed_in_single_precision() {
        let target = Tensor::from_slice(&[1_i64, 2, 1, 2]);
        for kind in [Kind::Half, Kind::BFloat16] {
            let (input, loss) = (logits().to_kind(kind), JsdCrossEntropyLoss::new().num_splits(2));
            let expected = loss.forward(&input.to_kind(Kind::Float), &target);
            assert_eq!(loss.forward(&input, &target), expected.to_kind(kind));
        }
    }
}
