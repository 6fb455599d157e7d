use tch::Tensor;

use crate::kernels::NumberOperations;
use crate::mean_parts::f_wide;
use crate::numeric::f_widely;
use crate::{InvalidValues, LossError, MeanParts, Reduction, check, kernels};

crate::options::options! {
/// Connectionist temporal classification: the negative log-likelihood of a sequence of labels, given a longer sequence
/// of outputs.
///
/// For speech and handwriting, where the order of the labels is known and not their positions: it sums over all
/// alignments of the labels with the outputs, in which blanks and repeats are dropped. It takes log-probabilities:
/// apply `log_softmax` before it.
///
/// # Formula
///
/// ℓₙ = −log Σ_π Π_t p\[t, n, π_t\]
///
/// where p = exp(log-probabilities), t runs over the first `input_lengths[n]` steps and π over all paths of that length
/// that become the target once repeats are merged and blanks removed. The mean divides each ℓₙ by its target length, at
/// least 1, before it averages. Where there is no such path, ℓₙ is ∞.
///
#[doc = include_str!("../../docs/book/src/gallery/ctc.svg")]
///
/// # Shapes
///
/// * `log_probs`: `[T, N, C]`, or `[T, C]` for a single sequence
/// * `targets`: `[N, S]`, padded with anything, or all labels concatenated, `[Σ target_lengths]`; of any integer kind
/// * `input_lengths`, `target_lengths`: N numbers, 1 for a single sequence
/// * result: scalar, or `[N]` (scalar for a single sequence) with [`Reduction::None`]
///
/// # Reference
///
/// `torch.nn.CTCLoss` and `torch.nn.functional.ctc_loss` of PyTorch 2.13; Graves et al., *Connectionist temporal
/// classification*, 2006.
///
/// As in PyTorch, the gradient is the one with respect to the logits before `log_softmax`: it is right after the
/// backward pass of `log_softmax`, and wrong as the gradient with respect to the log-probabilities themselves. There is
/// no second derivative. The blank is accepted as a label, as PyTorch accepts it, though the value then means nothing.
///
/// # Differences from PyTorch
///
/// * Labels, lengths and shapes are always checked. PyTorch writes out of bounds for a label outside \[0, C). Padding
///   is not checked. With targets on CUDA the check copies them to the host and so waits for the device; targets may
///   stay on the CPU instead.
/// * Numbers above 0 are no log-probabilities and an error, see [`invalid_values`](Self::invalid_values); PyTorch
///   computes a number without a meaning of raw logits.
/// * Half precision is computed in single precision; PyTorch has no kernel for it.
/// * Targets are integers; PyTorch takes other kinds too and truncates them.
/// * Targets may be views with gaps in memory; of those of one dimension PyTorch reads others, also beside their memory.
/// * cuDNN's implementation, which PyTorch takes for some calls on CUDA, is never used.
///
/// # Errors
///
/// [`LossError::Shape`] or [`LossError::Kind`] for tensors that do not fit, [`LossError::Value`] for a label or a
/// length out of range or a number above 0 as log-probability, [`LossError::Option`] for a blank outside \[0, C).
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::CtcLoss;
///
/// // Two steps, one sequence, two classes: the blank and label 1, each with probability 1/2.
/// let logits = Tensor::zeros([2, 1, 2], (Kind::Double, Device::Cpu)).set_requires_grad(true);
/// let targets = Tensor::from_slice(&[1_i64]);
///
/// // "11", "-1" and "1-" are the label 1, each with probability 1/4.
/// let loss = CtcLoss::new().f_forward(&logits.log_softmax(2, None), &targets, [2], [1])?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? + 0.75_f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.CTCLoss")]
#[doc(alias = "ctc_loss")]
#[doc(alias = "connectionist temporal classification")]
pub struct CtcLoss;

/// The CTC loss with PyTorch's defaults.
new {
    /// the class that stands for no label.
    blank: i64 = 0,
    /// whether an infinite loss, and its gradient, is 0 instead. It is infinite where the input is too short for its
    /// target.
    zero_infinity: bool = false,
    /// how a number above 0 among the log-probabilities is handled: no log-probability is above 0, and raw logits are.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl CtcLoss {
    /// Computes the loss, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(
        &self,
        log_probs: &Tensor,
        targets: &Tensor,
        input_lengths: impl AsRef<[i64]>,
        target_lengths: impl AsRef<[i64]>,
    ) -> Result<Tensor, LossError> {
        let (input_lengths, target_lengths) = (input_lengths.as_ref(), target_lengths.as_ref());
        let targets = self.f_check(log_probs, targets, input_lengths, target_lengths)?;
        let validity = check::f_log_probs(("log_probs", log_probs), self.invalid_values)?;
        let unreduced = self.reduction == Reduction::None;
        // For each sequence, where there is one loss for each: over their steps and classes.
        let validity = if unreduced { validity.f_rows()?.f_all_along(0)? } else { validity };
        let (blank, reduction, zero_infinity) = (self.blank, self.reduction.into(), self.zero_infinity);
        f_widely([log_probs], |[log_probs]| {
            let lengths = (input_lengths, target_lengths);
            let loss = Tensor::f_ctc_loss(log_probs, &targets, lengths.0, lengths.1, blank, reduction, zero_infinity)?;
            validity.f_poison_own(loss, unreduced)
        })
    }

    /// The numerator and the denominator of the mean, for means over several calls: see [`MeanParts`].
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward).
    pub fn f_parts(
        &self,
        log_probs: &Tensor,
        targets: &Tensor,
        input_lengths: impl AsRef<[i64]>,
        target_lengths: impl AsRef<[i64]>,
    ) -> Result<MeanParts, LossError> {
        let target_lengths = target_lengths.as_ref();
        let unreduced = Self { reduction: Reduction::None, ..*self };
        let losses = unreduced.f_forward(&f_wide(log_probs)?, targets, input_lengths, target_lengths)?;
        let lengths = Tensor::f_from_slice(target_lengths)?.f_clamp_min_number(1)?.f_to_device(losses.device())?;
        MeanParts::f_of_losses(&losses.f_div(&lengths.f_reshape(losses.size())?)?)
    }

    crate::loss::or_panic! {
        forward as f_forward(
            log_probs: &Tensor, targets: &Tensor, input_lengths: impl AsRef<[i64]>,
            target_lengths: impl AsRef<[i64]>
        ) -> Tensor
    }

    /// Checks all that could make libtorch read or write out of bounds, and returns the targets as 64-bit integers.
    fn f_check(
        &self,
        log_probs: &Tensor,
        targets: &Tensor,
        input_lengths: &[i64],
        target_lengths: &[i64],
    ) -> Result<Tensor, LossError> {
        check::dense(("log_probs", log_probs))?;
        check::dense(("targets", targets))?;
        check::floating(("log_probs", log_probs))?;
        let (steps, sequences, classes) = match log_probs.size()[..] {
            [t, n, c] if t > 0 && n > 0 && c > 0 => (t, n, c),
            [t, c] if t > 0 && c > 0 => (t, 1, c),
            _ => return Err(check::shape_error(("log_probs", log_probs), "[T, N, C] or [T, C], none of them 0")),
        };
        let in_range = (0..classes).contains(&self.blank);
        check::option("blank", self.blank, in_range, &format!("a class in [0, {classes})"))?;
        let read = if log_probs.dim() == 3 { " of log_probs, read as [T, N, C]" } else { "" };
        lengths("input_lengths", input_lengths, sequences, steps, read)?;
        let targets = check::integers(("targets", targets))?;
        let total = target_lengths.iter().fold(0_i64, |total, &length| total.saturating_add(length));
        let (longest, row) = match targets.size()[..] {
            [_] => (i64::MAX, None),
            [n, s] if n == sequences => (s, Some(s)),
            _ => return Err(targets_error(&targets, sequences, total)),
        };
        lengths("target_lengths", target_lengths, sequences, longest, "")?;
        if row.is_none() && targets.size() != [total] {
            return Err(targets_error(&targets, sequences, total));
        }
        let labels = check::host_integers(&targets)?;
        let mut start = 0;
        for &length in target_lengths {
            let read = labels.iter().skip(start).take(length as usize);
            if let Some(label) = read.copied().find(|label| !(0..classes).contains(label)) {
                let expected = format!("labels in [0, {classes})");
                return Err(LossError::Value { argument: "targets", expected, actual: label.to_string() });
            }
            start += row.unwrap_or(length) as usize;
        }
        // Copied, because libtorch reads them again in the backward pass, without a check. Of targets of one dimension that
        // have gaps it reads others, also beside their memory.
        if log_probs.requires_grad() { kernels::f_own(&targets) } else { Ok(targets.f_contiguous()?) }
    }
}

/// Checks that there is one length per sequence, each in `[0, longest]`.
fn lengths(argument: &'static str, lengths: &[i64], sequences: i64, longest: i64, read: &str) -> Result<(), LossError> {
    let count = lengths.len() as i64;
    if count != sequences {
        let expected = format!("[{sequences}], one length per sequence{read}");
        return Err(LossError::Shape { argument, expected, actual: vec![count] });
    }
    match lengths.iter().find(|length| !(0..=longest).contains(*length)) {
        None => Ok(()),
        Some(length) => {
            let expected = match longest {
                i64::MAX => "lengths >= 0".into(),
                _ if read.is_empty() => format!("lengths in [0, {longest}]"),
                _ => format!("lengths in [0, {longest}], the steps{read}"),
            };
            Err(LossError::Value { argument, expected, actual: length.to_string() })
        }
    }
}

fn targets_error(targets: &Tensor, sequences: i64, total: i64) -> LossError {
    let expected = format!("[{sequences}, S], or [{total}], the sum of target_lengths");
    check::shape_error(("targets", targets), expected)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::random::randn;

    fn log_probs(shape: &[i64]) -> Tensor {
        randn(shape).log_softmax(-1, None)
    }

    fn labels(shape: &[i64], values: &[i64]) -> Tensor {
        Tensor::from_slice(values).view(shape)
    }

    #[test]
    fn raw_logits_are_no_log_probabilities() {
        let logits = Tensor::from_slice(&[0.5, 1.5, -1.0, 0.25]).reshape([2, 1, 2]);
        let targets = Tensor::from_slice(&[1_i64]);
        let error = CtcLoss::new().f_forward(&logits, &targets, [2], [1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "log_probs holds 0.5, expected log-probabilities, which are at most 0: apply log_softmax before"
        );
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let criterion = CtcLoss::new().invalid_values(InvalidValues::Nan).reduction(reduction);
            assert!(criterion.forward(&logits, &targets, [2], [1]).sum(None).double_value(&[]).is_nan());
            let right = criterion.forward(&logits.log_softmax(2, None), &targets, [2], [1]);
            assert!(right.sum(None).double_value(&[]).is_finite());
        }
    }

    /// libtorch reads others, without a gradient as with one, and beside the memory of expanded ones.
    #[test]
    fn targets_with_gaps_are_read_as_they_are() {
        let x = log_probs(&[5, 3, 4]);
        let with_others = labels(&[12], &[2, 0, 3, 0, 1, 0, 3, 0, 2, 0, 1, 0]);
        let views = [with_others.slice(0, 0, 12, 2), Tensor::from_slice(&[2_i64]).expand([6], false)];
        for targets in views {
            let of = |targets: &Tensor, x: &Tensor| {
                CtcLoss::new().reduction(Reduction::None).forward(x, targets, [5, 5, 5], [3, 1, 2])
            };
            let expected = of(&targets.contiguous(), &x);
            assert_eq!(of(&targets, &x), expected);
            assert_eq!(of(&targets, &x.set_requires_grad(true)).detach(), expected);
        }
    }

    #[test]
    fn what_libtorch_would_not_survive_is_named() {
        let x = log_probs(&[5, 2, 4]);
        let (rows, all) = (labels(&[2, 2], &[1, 2, 3, 1]), labels(&[3], &[1, 2, 3]));
        for (targets, input_lengths, target_lengths, message) in [
            (&labels(&[2, 2], &[1, 4, 3, 1]), &[5, 4][..], &[2, 1][..], "targets holds 4, expected labels in [0, 4)"),
            (&labels(&[3], &[1, -1, 3]), &[5, 4], &[2, 1], "targets holds -1, expected labels in [0, 4)"),
            (
                &rows,
                &[6, 4],
                &[2, 1],
                "input_lengths holds 6, expected lengths in [0, 5], the steps of log_probs, read as [T, N, C]",
            ),
            (
                &rows,
                &[-1, 4],
                &[2, 1],
                "input_lengths holds -1, expected lengths in [0, 5], the steps of log_probs, read as [T, N, C]",
            ),
            (&rows, &[5, 4], &[2, 3], "target_lengths holds 3, expected lengths in [0, 2]"),
            (&rows, &[5, 4], &[2, -1], "target_lengths holds -1, expected lengths in [0, 2]"),
            (&all, &[5, 4], &[4, -1], "target_lengths holds -1, expected lengths >= 0"),
            (
                &rows,
                &[5],
                &[2, 1],
                "input_lengths has shape [1], expected [2], one length per sequence of log_probs, read as [T, N, C]",
            ),
            (&rows, &[5, 4], &[2, 1, 0], "target_lengths has shape [3], expected [2], one length per sequence"),
            (&all, &[5, 4], &[2, 2], "targets has shape [3], expected [2, S], or [4], the sum of target_lengths"),
            (&all, &[5, 4], &[1, 1], "targets has shape [3], expected [2, S], or [2], the sum of target_lengths"),
            (
                &labels(&[3, 1], &[1, 1, 1]),
                &[5, 4],
                &[1, 1],
                "targets has shape [3, 1], expected [2, S], or [2], the sum of target_lengths",
            ),
            (
                &all,
                &[5, 4],
                &[i64::MAX, i64::MAX],
                "targets has shape [3], expected [2, S], or [9223372036854775807], the sum of target_lengths",
            ),
        ] {
            let error = CtcLoss::new().f_forward(&x, targets, input_lengths, target_lengths).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn options_and_log_probs_are_named() {
        let (x, targets) = (log_probs(&[5, 4]), labels(&[1], &[1]));
        for blank in [-1, 4] {
            let error = CtcLoss::new().blank(blank).f_forward(&x, &targets, [5], [1]).unwrap_err();
            assert_eq!(error.to_string(), format!("option blank is {blank}, expected a class in [0, 4)"));
        }
        for shape in [&[4][..], &[0, 2, 4], &[5, 0, 4], &[5, 2, 0], &[1, 5, 2, 4]] {
            let error = CtcLoss::new().f_forward(&log_probs(shape), &targets, [5], [1]).unwrap_err();
            let expected = format!("log_probs has shape {shape:?}, expected [T, N, C] or [T, C], none of them 0");
            assert_eq!(error.to_string(), expected);
        }
        let error = CtcLoss::new().f_forward(&x, &Tensor::from_slice(&[1.0]), [5], [1]).unwrap_err();
        assert_eq!(error.to_string(), "targets has kind Double, expected an integer kind");
        let error = CtcLoss::new().f_forward(&Tensor::new(), &targets, [5], [1]).unwrap_err();
        assert_eq!(error.to_string(), "log_probs is an undefined tensor");
    }

    #[test]
    fn padding_may_be_anything_and_both_forms_agree() {
        let x = log_probs(&[5, 3, 4]).set_requires_grad(true);
        let padded = labels(&[3, 2], &[1, 2, 3, i64::MAX, i64::MIN, -7]);
        let ctc = CtcLoss::new().reduction(Reduction::None);
        let losses = ctc.forward(&x, &padded, [5, 4, 3], [2, 1, 0]);
        for kind in [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64] {
            let concatenated = labels(&[3], &[1, 2, 3]).to_kind(kind);
            assert_eq!(losses, ctc.forward(&x, &concatenated, [5, 4, 3], [2, 1, 0]));
        }
        losses.sum(Kind::Double).backward();
        assert!(bool::try_from(x.grad().isfinite().all()).unwrap());
    }

    #[test]
    fn targets_of_any_layout_are_read_right() {
        let x = log_probs(&[5, 2, 4]);
        let rows = labels(&[2, 2], &[1, 9, 3, 9]);
        let columns = rows.tr().contiguous().tr();
        let loss = CtcLoss::new().forward(&x, &rows, [5, 5], [1, 1]);
        assert_eq!(loss, CtcLoss::new().forward(&x, &columns, [5, 5], [1, 1]));
    }

    #[test]
    fn empty_targets_and_single_sequences_work() {
        let x = log_probs(&[5, 2, 4]);
        let ctc = CtcLoss::new().reduction(Reduction::None);
        let all_blank = -x.narrow(2, 0, 1).sum_dim_intlist([0, 2].as_slice(), false, None);
        for shape in [&[0][..], &[2, 0], &[2, 3]] {
            let unread = Tensor::full(shape, -1, (Kind::Int64, Device::Cpu));
            assert!(ctc.forward(&x, &unread, [5, 5], [0, 0]).allclose(&all_blank, 1e-12, 0.0, false));
        }
        let single = ctc.forward(&x.select(1, 0), &labels(&[2], &[1, 2]), vec![5], vec![2]);
        assert_eq!(single.size(), [0_i64; 0]);
        assert_eq!(single, ctc.forward(&x, &labels(&[2, 2], &[1, 2, 1, 2]), [5, 5], [2, 2]).select(0, 0));
    }
}
