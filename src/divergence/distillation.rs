use tch::Tensor;

use crate::check::{self, ClassIndices};
use crate::kernels::NumberOperations;
use crate::numeric::wide_kind;
use crate::{CrossEntropyLoss, InvalidValues, Loss, LossError, Reduction, autograd};

crate::options::options! {
/// The loss of knowledge distillation: how far a student's predictions are from a teacher's, plus the cross entropy of
/// the labels.
///
/// For a small model that learns what a large one predicts, with or without labels. Of the soft losses
/// [`SoftLoss::ForwardKl`] is the classic; a small student that cannot follow the teacher everywhere does better with
/// [`SoftLoss::ReverseKl`] or [`SoftLoss::JensenShannon`] between them. For hidden states with a large vocabulary
/// choose [`LinearDistillation`](crate::LinearDistillation), for distributions instead of logits
/// [`KlDivLoss`](crate::KlDivLoss).
///
/// # Formula
///
/// ℓₙ = w_soft · D(softmax(zₙ/τ), softmax(xₙ/τ)) + w_hard · CE(xₙ, yₙ)
///
/// where x are the student's logits, z the teacher's, y is the target, D the [`SoftLoss`], τ the temperature, and
/// w_soft and w_hard are the weights. With [`temperature_squared`](DistillationLoss::temperature_squared) D is
/// multiplied by τ², so that its gradient is of the same size at any temperature. Ignored targets have ℓₙ = 0 and do
/// not count in the mean. Where all are ignored the mean is 0.
///
#[doc = include_str!("../../docs/book/src/gallery/distillation.svg")]
///
/// # Shapes
///
/// * `input`, `teacher`: `[C]`, `[N, C]` or `[N, C, d₁, …, dₖ]`
/// * `target`: `[]`, `[N]` or `[N, d₁, …, dₖ]`, of any integer kind
/// * result: scalar, or `[]`, `[N]` or `[N, d₁, …, dₖ]` with [`Reduction::None`]
///
/// # Reference
///
/// `liger_kernel.chunked_loss.LigerFusedLinearJSDLoss` and `LigerFusedLinearCosineSimilarityLoss` of liger-kernel
/// 0.8.5, by [`LinearDistillation`](crate::LinearDistillation); Hinton et al., <https://arxiv.org/abs/1503.02531>, for
/// τ²; Agarwal et al., <https://arxiv.org/abs/2306.13649>, for the generalised Jensen-Shannon divergence.
///
/// # Differences from Liger
///
/// * Classes whose logit is −∞ in both models add 0 to the loss; Liger's is NaN. Those whose logit is −∞ in one of the
///   models add 0 or the loss is infinite, depending on the divergence.
/// * Half precision is computed in single precision.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a class out of range, [`LossError::Option`] for a temperature that is not above 0, a
/// mixture outside \[0, 1\], a weight that is not finite, or a `hard_weight` other than 0 without labels.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{DistillationLoss, SoftLoss};
///
/// let student = Tensor::from_slice(&[0.0, 0.0]).view([1, 2]).set_requires_grad(true);
/// let teacher = Tensor::from_slice(&[0.0, 3_f64.ln()]).view([1, 2]);
///
/// // KL((1/4, 3/4) ‖ (1/2, 1/2)), without labels.
/// let criterion = DistillationLoss::new().soft_loss(SoftLoss::ForwardKl).soft_weight(1.0).hard_weight(0.0);
/// let loss = criterion.f_forward(&student, &teacher, None)?;
/// loss.f_backward()?;
///
/// let expected = 0.25 * 0.5_f64.ln() + 0.75 * 1.5_f64.ln();
/// assert!((f64::try_from(&loss)? - expected).abs() < 1e-12);
/// assert!((student.grad().double_value(&[0, 1]) + 0.25).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "LigerFusedLinearJSDLoss")]
#[doc(alias = "knowledge distillation")]
#[doc(alias = "knowledge_distillation")]
#[doc(alias = "KD")]
#[doc(alias = "teacher student")]
pub struct DistillationLoss;

/// The distillation loss with Liger's defaults.
new {
    /// the loss of the two distributions.
    soft_loss: SoftLoss = SoftLoss::JensenShannon(0.5),
    /// the temperature τ, which makes both distributions flatter where it is above 1.
    temperature: f64 = 1.0,
    /// whether the soft loss is multiplied by τ², as Hinton et al. do.
    temperature_squared: bool = false,
    /// the weight of the soft loss.
    #[doc(alias = "weight_soft_loss")]
    soft_weight: f64 = 0.5,
    /// the weight of the cross entropy of the labels; it must be 0 where there are no labels.
    #[doc(alias = "weight_hard_loss")]
    hard_weight: f64 = 0.5,
    /// the class index whose targets are ignored, in the soft loss too.
    ignore_index: i64 = -100,
    /// how a class out of range is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

/// How far the student's distribution q is from the teacher's distribution p.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum SoftLoss {
    /// KL(p ‖ q): large where the student gives a low probability to a class that the teacher finds likely.
    ForwardKl,
    /// KL(q ‖ p): large where the student gives a high probability to a class that the teacher finds unlikely.
    ReverseKl,
    /// β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q, for β in \[0, 1\]: symmetric and bounded for ½. As in
    /// Liger and the paper, 0 is the forward and 1 the reverse divergence, which are the limits of the loss divided by
    /// β and by 1 − β.
    #[doc(alias = "JSD")]
    JensenShannon(f64),
    /// 1 − cos(z, x) of the logits themselves.
    #[doc(alias = "LigerFusedLinearCosineSimilarityLoss")]
    Cosine,
}

crate::options::words_or_fields!(SoftLoss
    { "forward_kl" => ForwardKl, "reverse_kl" => ReverseKl, "cosine" => Cosine }
    { "jensen_shannon" => JensenShannon }
);

/// The sums of the two losses over the rows that count, or one number for each row.
pub(super) struct Terms {
    /// The soft loss, times τ² with `temperature_squared`.
    pub(super) soft: Tensor,
    pub(super) hard: Option<Tensor>,
}

impl DistillationLoss {
    /// Computes the loss, with a graph where student or teacher requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(&self, input: &Tensor, teacher: &Tensor, target: Option<&Tensor>) -> Result<Tensor, LossError> {
        check::devices(
            &[&[("input", input), ("teacher", teacher)][..], target.map(|t| ("target", t)).as_slice()].concat(),
        )?;
        check::floating(("input", input))?;
        check::floating(("teacher", teacher))?;
        check::same_shape(("teacher", teacher), ("input", input))?;
        self.f_check_options(target.is_some())?;
        let class_dim = check::class_dim(input)?;
        let classes = input.size()[class_dim];
        let own = input.f_kind()?;
        let Some(target) = target else {
            return Ok(self.f_precomputed(input, teacher, None, class_dim)?.f_to_kind(own)?);
        };
        let (_, target) = check::class_target(target, input, class_dim, "")?;
        let target = ClassIndices::f_new(&target, classes, Some(self.ignore_index), self.invalid_values)?;
        let loss = self.f_precomputed(input, teacher, Some(&target.indices), class_dim)?;
        Ok(target.validity.f_poison(&loss, self.reduction == Reduction::None)?.f_to_kind(own)?)
    }

    crate::loss::or_panic!(forward as f_forward(input: &Tensor, teacher: &Tensor, target: Option<&Tensor>) -> Tensor);

    /// The ignored class, and how a class out of range is handled.
    pub(super) fn targets(&self) -> (i64, InvalidValues) {
        (self.ignore_index, self.invalid_values)
    }

    /// How the rows are reduced.
    pub(super) fn reduced(&self) -> Reduction {
        self.reduction
    }

    pub(super) fn f_check_options(&self, labels: bool) -> Result<(), LossError> {
        let temperature = self.temperature;
        let valid = temperature.is_finite() && temperature > 0.0;
        check::option("temperature", temperature, valid, "a number > 0")?;
        if let SoftLoss::JensenShannon(beta) = self.soft_loss {
            check::option("soft_loss", beta, (0.0..=1.0).contains(&beta), "a mixture in [0, 1]")?;
        }
        let (soft, hard) = (self.soft_weight, self.hard_weight);
        check::finite("soft_weight", soft)?;
        check::finite("hard_weight", hard)?;
        check::option("hard_weight", hard, labels || hard == 0.0, "0, where there is no target")
    }

    /// The loss of valid arguments. For the backward pass of a reduced one only the gradient is kept.
    fn f_precomputed(
        &self,
        input: &Tensor,
        teacher: &Tensor,
        target: Option<&Tensor>,
        class_dim: usize,
    ) -> Result<Tensor, LossError> {
        let (loss, labels) = (*self, target.is_some());
        let tensors: Vec<Tensor> = [input, teacher].into_iter().chain(target).map(Tensor::shallow_clone).collect();
        let compute = move |tensors: &[Tensor]| {
            let kind = wide_kind(&tensors[0])?;
            let target = labels.then(|| &tensors[2]);
            let wide = |tensor: &Tensor| tensor.f_to_kind(kind);
            let (input, teacher) = (wide(&tensors[0])?, wide(&tensors[1])?);
            let total = loss.f_total(&loss.f_terms(&input, &teacher, target, class_dim)?)?;
            if loss.reduction == Reduction::None {
                return Ok(total);
            }
            let rows = input.numel() as i64 / input.size()[class_dim].max(1);
            Ok(total.f_div(&loss.f_divisor(&input, target, rows)?)?)
        };
        // In half precision the gradient would be rounded before the backward pass multiplies it, and a small one would
        // be 0.
        let half = wide_kind(input)? != input.f_kind()?;
        if self.reduction == Reduction::None || half {
            return compute(&tensors);
        }
        autograd::f_precomputed(&tensors.iter().collect::<Vec<_>>(), compute)
    }

    /// What the sum over the rows is divided by: in a mean the number of those that are not ignored, and at least 1.
    pub(super) fn f_divisor(&self, input: &Tensor, target: Option<&Tensor>, rows: i64) -> Result<Tensor, LossError> {
        let kind = wide_kind(input)?;
        Ok(match (self.reduction, target) {
            (Reduction::Mean, Some(target)) => {
                target.f_ne_number(self.ignore_index)?.f_sum(kind)?.f_clamp_min_number(1)?
            }
            (Reduction::Mean, None) => Tensor::f_full_number(&[], rows.max(1) as f64, (kind, input.device()))?,
            _ => Tensor::f_ones([], (kind, input.device()))?,
        })
    }

    /// w_soft · soft + w_hard · hard
    pub(super) fn f_total(&self, terms: &Terms) -> Result<Tensor, LossError> {
        let soft = terms.soft.f_mul_number(self.soft_weight)?;
        match &terms.hard {
            Some(hard) if self.hard_weight != 0.0 => Ok(soft.f_add(&hard.f_mul_number(self.hard_weight)?)?),
            _ => Ok(soft),
        }
    }

    /// The two losses of logits in single precision at least, with targets that are valid.
    pub(super) fn f_terms(
        &self,
        input: &Tensor,
        teacher: &Tensor,
        target: Option<&Tensor>,
        class_dim: usize,
    ) -> Result<Terms, LossError> {
        let reduction = if self.reduction == Reduction::None { Reduction::None } else { Reduction::Sum };
        let Some(target) = target else {
            let soft = reduction.f_apply(&self.f_soft(input, teacher, class_dim as i64)?)?;
            return Ok(Terms { soft, hard: None });
        };
        let ignored = target.f_eq_number(self.ignore_index)?;
        // Ignored rows are replaced by zeros, so that an infinite or NaN logit in them does not get into the gradient.
        let rows = ignored.f_unsqueeze(class_dim as i64)?;
        let (student, teacher) = (input.f_masked_fill_number(&rows, 0)?, teacher.f_masked_fill_number(&rows, 0)?);
        let soft = self.f_soft(&student, &teacher, class_dim as i64)?.f_masked_fill_number(&ignored, 0)?;
        let cross_entropy = CrossEntropyLoss::new().ignore_index(self.ignore_index).reduction(reduction);
        Ok(Terms { soft: reduction.f_apply(&soft)?, hard: Some(cross_entropy.f_forward(&student, target)?) })
    }

    /// The soft loss of each row.
    fn f_soft(&self, input: &Tensor, teacher: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        if self.soft_loss == SoftLoss::Cosine {
            let cosine =
                Tensor::f_cosine_similarity(&f_direction(input, dim)?, &f_direction(teacher, dim)?, dim, 1e-8)?;
            return Ok(cosine.f_neg()?.f_add_number(1)?.f_mul_number(self.scale())?);
        }
        let log_softmax = |logits: &Tensor| {
            let scaled =
                if self.temperature == 1.0 { logits.shallow_clone() } else { logits.f_div_number(self.temperature)? };
            scaled.f_log_softmax(dim, None)
        };
        let (q, p) = (LogProbs::f_new(log_softmax(input)?)?, LogProbs::f_new(log_softmax(teacher)?)?);
        let soft = match self.soft_loss {
            SoftLoss::ReverseKl | SoftLoss::JensenShannon(1.0) => q.f_kl(&p.logs, dim)?,
            SoftLoss::JensenShannon(beta) if beta != 0.0 => {
                let mixture = f_log_mixture(&p.logs, &q.logs, beta)?;
                let (of_p, of_q) = (p.f_kl(&mixture, dim)?, q.f_kl(&mixture, dim)?);
                of_p.f_mul_number(beta)?.f_add(&of_q.f_mul_number(1.0 - beta)?)?
            }
            _ => p.f_kl(&q.logs, dim)?,
        };
        Ok(if self.scale() == 1.0 { soft } else { soft.f_mul_number(self.scale())? })
    }

    fn scale(&self) -> f64 {
        if self.temperature_squared { self.temperature * self.temperature } else { 1.0 }
    }
}

/// Log-probabilities, and where the probability is 0.
struct LogProbs {
    logs: Tensor,
    impossible: Tensor,
}

impl LogProbs {
    fn f_new(logs: Tensor) -> Result<LogProbs, LossError> {
        let impossible = logs.f_detach()?.f_exp()?.f_eq_number(0)?;
        Ok(LogProbs { logs, impossible })
    }

    /// The divergence KL(self ‖ other) of each row. Classes of probability 0 in `self` add 0, because 0 · log 0 = 0.
    fn f_kl(&self, other: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        let mask = |logs: &Tensor| logs.f_masked_fill_number(&self.impossible, 0);
        let difference = mask(&self.logs)?.f_sub(&mask(other)?)?;
        Ok(self.logs.f_exp()?.f_mul(&difference)?.f_sum_dim_intlist(dim, false, None)?)
    }
}

/// log (β p + (1 − β) q), of log p and log q.
fn f_log_mixture(p: &Tensor, q: &Tensor, beta: f64) -> Result<Tensor, LossError> {
    // Where both probabilities are 0 they are replaced, because the derivative of the logarithm of their sum is NaN.
    let none = p.f_maximum(q)?.f_eq_number(f64::NEG_INFINITY)?;
    let part = |logs: &Tensor, share: f64| logs.f_masked_fill_number(&none, 0)?.f_add_number(share.ln());
    Ok(part(p, beta)?.f_logaddexp(&part(q, 1.0 - beta)?)?)
}

/// Logits of a larger size are taken for masks: their squares may be infinite in single precision.
const HUGE: f64 = 1e15;

/// Logits with the direction of `logits`, whose squares are finite. Where classes are masked by −∞ or by a huge number,
/// these become −1 and all others 0, which is the limit.
fn f_direction(logits: &Tensor, dim: i64) -> Result<Tensor, LossError> {
    if logits.numel() == 0 {
        return Ok(logits.shallow_clone());
    }
    let largest = logits.f_detach()?.f_abs()?.f_amax([dim].as_slice(), true)?;
    let scale = largest.f_masked_fill_number(&largest.f_gt_number(HUGE)?.f_logical_not()?, 1)?;
    let [low, high] = [f64::NEG_INFINITY, f64::INFINITY].map(|infinite| logits.f_eq_number(infinite));
    let (low, high) = (low?, high?);
    let scaled = logits.f_masked_fill_number(&low.f_logical_or(&high)?, 0)?.f_div(&scale)?;
    Ok(scaled.f_masked_fill_number(&low, -1)?.f_masked_fill_number(&high, 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::assert_gradient;
    use crate::random::randn;

    const SOFT_LOSSES: [SoftLoss; 6] = [
        SoftLoss::ForwardKl,
        SoftLoss::ReverseKl,
        SoftLoss::JensenShannon(0.0),
        SoftLoss::JensenShannon(0.3),
        SoftLoss::JensenShannon(1.0),
        SoftLoss::Cosine,
    ];

    #[test]
    fn gradients_are_those_of_differences() {
        let (student, teacher, target) = (randn([3, 4]), randn([3, 4]), Tensor::from_slice(&[3_i64, -100, 0]));
        for soft_loss in SOFT_LOSSES {
            let loss = DistillationLoss::new().soft_loss(soft_loss).temperature(2.0).temperature_squared(true);
            assert_gradient(&student, |student| loss.forward(student, &teacher, Some(&target)));
            assert_gradient(&teacher, |teacher| loss.forward(&student, teacher, Some(&target)));
        }
    }

    #[test]
    fn impossible_classes_are_finite() {
        let masked = |at: i64| {
            let logits = randn([2, 4]);
            let _ = logits.narrow(1, at, 1).fill_(f64::NEG_INFINITY);
            logits.set_requires_grad(true)
        };
        for (soft_loss, student, teacher) in [
            (SoftLoss::ForwardKl, masked(1), masked(1)),
            (SoftLoss::ReverseKl, masked(1), masked(1)),
            (SoftLoss::JensenShannon(0.5), masked(1), masked(1)),
            (SoftLoss::JensenShannon(0.5), masked(1), masked(2)),
        ] {
            let loss = DistillationLoss::new().soft_loss(soft_loss).hard_weight(0.0).reduction(Reduction::Sum);
            let loss = loss.forward(&student, &teacher, None);
            let gradients = Tensor::run_backward(&[&loss], &[&student, &teacher], false, false);
            assert!(f64::try_from(loss).unwrap().is_finite(), "{soft_loss:?}");
            let finite = |gradient: &Tensor| bool::try_from(gradient.isfinite().all()).unwrap();
            assert!(gradients.iter().all(finite), "{soft_loss:?}");
        }
    }

    #[test]
    fn ignored_rows_may_hold_anything() {
        let student = Tensor::from_slice(&[1.0, f64::NAN]).view([2, 1]).expand([2, 3], false).contiguous();
        let (student, teacher) = (student.set_requires_grad(true), randn([2, 3]));
        let loss = DistillationLoss::new().forward(&student, &teacher, Some(&Tensor::from_slice(&[1_i64, -100])));
        loss.backward();
        assert!(f64::try_from(loss).unwrap().is_finite());
        assert_eq!(student.grad().get(1), student.grad().get(1).zeros_like());
        let none = DistillationLoss::new().forward(&student, &teacher, Some(&Tensor::from_slice(&[-100_i64, -100])));
        assert_eq!(f64::try_from(none).unwrap(), 0.0);
    }

    #[test]
    fn the_mixture_tends_to_the_divergences() {
        let (student, teacher) = (randn([2, 5]), randn([2, 5]));
        let of = |soft_loss| {
            let loss = DistillationLoss::new().soft_loss(soft_loss).hard_weight(0.0).soft_weight(1.0);
            f64::try_from(loss.forward(&student, &teacher, None)).unwrap()
        };
        let near = 1e-6;
        assert!((of(SoftLoss::JensenShannon(near)) / near / of(SoftLoss::ForwardKl) - 1.0).abs() < 1e-4);
        assert!((of(SoftLoss::JensenShannon(1.0 - near)) / near / of(SoftLoss::ReverseKl) - 1.0).abs() < 1e-4);
        assert_eq!(of(SoftLoss::JensenShannon(0.0)), of(SoftLoss::ForwardKl));
        assert_eq!(of(SoftLoss::JensenShannon(1.0)), of(SoftLoss::ReverseKl));
    }

    #[test]
    fn wrong_calls_are_named() {
        let (student, other, target) = (randn([2, 3]), randn([2, 4]), Tensor::from_slice(&[3_i64, 0]));
        let loss = DistillationLoss::new();
        for (result, message) in [
            (loss.f_forward(&student, &other, None), "teacher has shape [2, 4], expected [2, 3], the shape of input"),
            (
                loss.f_forward(&student, &student, None),
                "option hard_weight is 0.5, expected 0, where there is no target",
            ),
            (
                loss.f_forward(&student, &student, Some(&target)),
                "target holds 3, expected classes in [0, 3), or ignore_index -100",
            ),
            (
                loss.temperature(0.0).f_forward(&student, &student, Some(&target)),
                "option temperature is 0, expected a number > 0",
            ),
            (
                loss.soft_loss(SoftLoss::JensenShannon(1.5)).f_forward(&student, &student, Some(&target)),
                "option soft_loss is 1.5, expected a mixture in [0, 1]",
            ),
        ] {
            assert_eq!(result.unwrap_err().to_string(), message);
        }
    }
}
