use tch::{Kind, Tensor, no_grad};

use super::distillation::{DistillationLoss, Terms};
use crate::autograd::{Function, Stored, StoredGradients, f_gradients_of, needed, spread};
use crate::check::{self, ClassIndices};
use crate::sequence::Linear;
use crate::{Chunking, LinearHead, LossError, Reduction};

/// Knowledge distillation of hidden states: the last layers of student and teacher and a [`DistillationLoss`] of their
/// logits in one.
///
/// For language models whose vocabulary is so large that two sets of logits of a batch do not fit into memory: the
/// logits are computed chunk by chunk, and only one chunk is in memory at a time. Where all fit, [`DistillationLoss`]
/// of them is the same.
///
/// # Formula
///
/// loss = [`DistillationLoss`](W x + b, V z + c, y)
///
/// where x are the student's hidden states, W and b the weight and bias of its last layer, z, V and c those of the
/// teacher, and y is the target.
///
#[doc = include_str!("../../docs/book/src/gallery/distillation.svg")]
///
/// # Shapes
///
/// * `student`: an input `[N, D]` of N tokens, a weight `[C, D]` and a bias `[C]`
/// * `teacher`: an input `[N, D′]`, a weight `[C, D′]` and a bias `[C]`; it gets no gradient
/// * `target`: `[N]`, of any integer kind
/// * result: three scalars
///
/// # Memory
///
/// The gradient is computed in the forward pass, chunk by chunk, and kept until the backward pass. Second derivatives
/// need the memory of all logits.
///
/// # Reference
///
/// `liger_kernel.chunked_loss.LigerFusedLinearJSDLoss` and `LigerFusedLinearCosineSimilarityLoss` of liger-kernel
/// 0.8.5.
///
/// # Differences from Liger
///
/// * Those of [`DistillationLoss`].
/// * Student and teacher have the same vocabulary; Liger gives a student of a smaller one logits of 0 for the rest,
///   which are as likely as any other.
/// * Double precision is computed in double precision; Liger's sums are in single precision.
///
/// # Errors
///
/// Those of [`DistillationLoss`]; [`LossError::Option`] for a chunking of less than one row, or for
/// [`Reduction::None`](crate::Reduction::None).
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{DistillationLoss, LinearDistillation, LinearHead};
///
/// // The teacher is twice as wide.
/// let student = Tensor::randn([6, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let weight = Tensor::randn([32, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let teacher = Tensor::randn([6, 16], (Kind::Float, Device::Cpu));
/// let teacher_weight = Tensor::randn([32, 16], (Kind::Float, Device::Cpu));
/// let target = Tensor::from_slice(&[3_i64, 1, 4, 1, 5, -100]);
///
/// let criterion = LinearDistillation::new(DistillationLoss::new().temperature(2.0));
/// let (student, teacher) = (LinearHead::new(&student, &weight), LinearHead::new(&teacher, &teacher_weight));
/// let output = criterion.f_forward(student, teacher, Some(&target))?;
/// output.loss.f_backward()?;
///
/// assert!(f64::try_from(&output.soft_loss)? > 0.0);
/// assert_eq!(weight.grad().size(), [32, 8]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[doc(alias = "LigerFusedLinearJSDLoss")]
#[doc(alias = "LigerFusedLinearCosineSimilarityLoss")]
#[must_use]
#[doc(alias = "knowledge_distillation")]
pub struct LinearDistillation {
    distillation: DistillationLoss,
    chunking: Chunking,
}

/// What [`LinearDistillation`] computes, of the student's kind, single precision at least.
#[derive(Debug)]
#[non_exhaustive]
pub struct LinearDistillationOutput {
    /// The loss.
    pub loss: Tensor,
    /// The soft loss in it, without its weight and without a graph.
    pub soft_loss: Tensor,
    /// The cross entropy of the labels in it, without its weight and without a graph; 0 where there are none.
    pub hard_loss: Tensor,
}

impl LinearDistillation {
    /// The loss of hidden states.
    pub fn new(distillation: DistillationLoss) -> Self {
        Self { distillation, chunking: Chunking::default() }
    }

    /// Sets how many tokens are taken at once. [`Chunking::default`] by default.
    pub fn chunking(mut self, chunking: Chunking) -> Self {
        self.chunking = chunking;
        self
    }

    /// Computes the loss, with a graph where an argument of the student requires a gradient, and its two parts.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    pub fn f_forward(
        &self,
        student: LinearHead,
        teacher: LinearHead,
        target: Option<&Tensor>,
    ) -> Result<LinearDistillationOutput, LossError> {
        let classes = self.f_check(student, teacher, target)?;
        let (rows, features) = student.input.size2()?;
        let size = self.chunking.f_rows(rows, features, classes)?;
        let Some(target) = target else { return self.f_compute(student, teacher, None, size) };
        let (ignored, mode) = self.distillation.targets();
        let target = ClassIndices::f_new(target, classes, Some(ignored), mode)?;
        let mut output = self.f_compute(student, teacher, Some(&target.indices), size)?;
        output.loss = target.validity.f_poison(&output.loss, false)?;
        Ok(output)
    }

    crate::loss::or_panic! {
        forward as f_forward(
            student: LinearHead, teacher: LinearHead, target: Option<&Tensor>
        ) -> LinearDistillationOutput
    }

    /// Checks that the arguments fit together, and returns the number of classes.
    fn f_check(&self, student: LinearHead, teacher: LinearHead, target: Option<&Tensor>) -> Result<i64, LossError> {
        let classes = student.f_vocabulary(["input", "weight", "bias"], &["N"])?;
        let names = ["teacher input", "teacher weight", "teacher bias"];
        let teacher_classes = teacher.f_vocabulary(names, &["N"])?;
        check::devices(&[("input", student.input), (names[0], teacher.input)])?;
        let rows = student.input.size()[0];
        let fits = teacher.input.size()[0] == rows;
        check::shape((names[0], teacher.input), fits, format_args!("{rows} rows, as many as input"))?;
        if teacher_classes != classes {
            let expected = format!("{classes} rows, as many as weight, one per class");
            return Err(check::shape_error((names[1], teacher.weight), expected));
        }
        if let Some(target) = target {
            check::devices(&[("input", student.input), ("target", target)])?;
            let fits = target.size() == [rows];
            check::shape(("target", target), fits, format_args!("[{rows}], one class per row of input"))?;
        }
        let reduced = self.distillation.reduced() != Reduction::None;
        check::option("reduction", "None", reduced, "a mean or a sum")?;
        self.distillation.f_check_options(target.is_some())?;
        Ok(classes)
    }

    /// The loss of valid arguments.
    fn f_compute(
        &self,
        student: LinearHead,
        teacher: LinearHead,
        target: Option<&Tensor>,
        size: i64,
    ) -> Result<LinearDistillationOutput, LossError> {
        let inputs: Vec<&Tensor> = [student.input, student.weight].into_iter().chain(student.bias).collect();
        let needed = needed(&inputs);
        let run = Run::f_new(self.distillation, student, teacher, target, size)?;
        let (terms, gradients) = no_grad(|| run.f_chunks(&needed))?;
        let loss = self.distillation.f_total(&terms)?;
        let hard_loss = match terms.hard {
            Some(hard) => hard,
            None => terms.soft.f_zeros_like()?,
        };
        let output = |loss| LinearDistillationOutput { loss, soft_loss: terms.soft, hard_loss };
        if !needed.contains(&true) {
            return Ok(output(loss));
        }
        let stored = StoredGradients::new(gradients);
        let saved: Vec<&Tensor> =
            inputs.iter().copied().chain([teacher.input, teacher.weight]).chain(teacher.bias).chain(target).collect();
        let form = Form { bias: student.bias.is_some(), teacher_bias: teacher.bias.is_some() };
        let distillation = self.distillation;
        let loss = Function::new(&inputs).save(&saved).f_attach_one(loss, move |context| {
            let Some(grad) = context.grad(0) else { return Ok(spread(vec![], &needed)) };
            let whole = |saved: &[Tensor]| {
                let (student, teacher, target) = form.of(saved);
                Run::f_new(distillation, student, teacher, target, i64::MAX)?.f_whole()
            };
            let chunked = || stored.f_scaled(&context, &grad);
            context.f_gradients(&chunked, &|| f_gradients_of(&whole, &grad, context.saved(), &needed))
        })?;
        Ok(output(loss))
    }
}

/// Which of the optional tensors are among the saved ones.
#[derive(Clone, Copy)]
struct Form {
    bias: bool,
    teacher_bias: bool,
}

impl Form {
    fn of(self, saved: &[Tensor]) -> (LinearHead<'_>, LinearHead<'_>, Option<&Tensor>) {
        let (student, saved) = saved.split_at(2 + usize::from(self.bias));
        let (teacher, rest) = saved.split_at(2 + usize::from(self.teacher_bias));
        (head(student), head(teacher), rest.first())
    }
}

fn head(saved: &[Tensor]) -> LinearHead<'_> {
    LinearHead { input: &saved[0], weight: &saved[1], bias: saved.get(2) }
}

/// Everything that the chunks share.
struct Run<'a> {
    distillation: DistillationLoss,
    student: LinearHead<'a>,
    teacher: LinearHead<'a>,
    target: Option<&'a Tensor>,
    size: i64,
    kind: Kind,
    /// What the sums are divided by.
    divisor: Tensor,
}

impl<'a> Run<'a> {
    fn f_new(
        distillation: DistillationLoss,
        student: LinearHead<'a>,
        teacher: LinearHead<'a>,
        target: Option<&'a Tensor>,
        size: i64,
    ) -> Result<Run<'a>, LossError> {
        let kind = student.f_wide_kind()?;
        let rows = student.input.size()[0];
        let divisor = distillation.f_divisor(student.input, target, rows)?;
        Ok(Run { distillation, student, teacher, target, size: size.min(rows).max(1), kind, divisor })
    }

    /// The loss by its definition, with all logits at once.
    fn f_whole(&self) -> Result<Tensor, LossError> {
        let (student, teacher) = (self.student.f_layer(self.kind)?, self.teacher.f_layer(self.kind)?);
        let logits = student.f_forward(&self.student.input.f_to_kind(self.kind)?)?;
        let teacher_logits = teacher.f_forward(&self.teacher.input.f_to_kind(self.kind)?)?.f_detach()?;
        let terms = self.distillation.f_terms(&logits, &teacher_logits, self.target, 1)?;
        Ok(self.distillation.f_total(&terms)?.f_div(&self.divisor)?)
    }

    /// The two losses, and the gradients of those arguments of the student that need one, chunk by chunk.
    fn f_chunks(&self, needed: &[bool]) -> Result<(Terms, Vec<Option<Stored>>), LossError> {
        let (student, teacher) = (self.student.f_layer(self.kind)?, self.teacher.f_layer(self.kind)?);
        let device = self.student.input.device();
        let zero = || Tensor::f_zeros([], (self.kind, device));
        let (mut soft, mut hard) = (zero()?, self.target.map(|_| zero()).transpose()?);
        let mut sums = Sums::f_new(self, needed)?;
        let rows = self.student.input.size()[0];
        for start in (0..rows).step_by(self.size as usize) {
            let length = self.size.min(rows - start);
            let narrow = |tensor: &Tensor| tensor.f_detach()?.f_narrow(0, start, length);
            let input = narrow(self.student.input)?.f_to_kind(self.kind)?;
            let logits = student.f_forward(&input)?.f_set_requires_grad(needed.contains(&true))?;
            let teacher_logits = teacher.f_forward(&narrow(self.teacher.input)?.f_to_kind(self.kind)?)?;
            let target = self.target.map(narrow).transpose()?;
            let of_logits = || self.distillation.f_terms(&logits, &teacher_logits, target.as_ref(), 1);
            let terms = if logits.requires_grad() { tch::with_grad(of_logits)? } else { of_logits()? };
            let _ = soft.f_add_(&terms.soft.f_detach()?)?;
            if let (Some(sum), Some(hard)) = (&mut hard, &terms.hard) {
                let _ = sum.f_add_(&hard.f_detach()?)?;
            }
            if logits.requires_grad() {
                let total = tch::with_grad(|| self.distillation.f_total(&terms))?;
                let gradient = Tensor::f_run_backward(&[total], &[&logits], false, false)?.remove(0);
                sums.f_add(&student, &gradient.f_div(&self.divisor)?, &input, start)?;
            }
        }
        let mean = |sum: Tensor| sum.f_div(&self.divisor);
        let terms = Terms { soft: mean(soft)?, hard: hard.map(mean).transpose()? };
        Ok((terms, sums.f_finish(self)?))
    }
}

/// The gradients of the student's input, weight and bias, summed over the chunks so far.
struct Sums([Option<Tensor>; 3]);

impl Sums {
    fn f_new(run: &Run, needed: &[bool]) -> Result<Sums, LossError> {
        let of = |position: usize, tensor: Option<&Tensor>| {
            let needed = tensor.filter(|_| needed.get(position) == Some(&true));
            needed.map(|tensor| Tensor::f_zeros(tensor.size(), (run.kind, tensor.device()))).transpose()
        };
        let head = run.student;
        Ok(Sums([of(0, Some(head.input))?, of(1, Some(head.weight))?, of(2, head.bias)?]))
    }

    /// Adds the gradients that follow from the gradient of a chunk's logits.
    fn f_add(&mut self, layer: &Linear, logits: &Tensor, input: &Tensor, start: i64) -> Result<(), LossError> {
        let [of_input, of_weight, of_bias] = &mut self.0;
        if let Some(sum) = of_input {
            let _ = logits.f_mm_out(&sum.f_narrow(0, start, input.size()[0])?, &layer.weight.f_detach()?)?;
        }
        if let Some(sum) = of_weight {
            let _ = sum.f_addmm_(&logits.f_transpose(0, 1)?, input)?;
        }
        if let Some(sum) = of_bias {
            let _ = sum.f_add_(&logits.f_sum_dim_intlist(0, false, None)?)?;
        }
        Ok(())
    }

    /// The gradients, which become of the kinds of the arguments.
    fn f_finish(self, run: &Run) -> Result<Vec<Option<Stored>>, LossError> {
        let kind = run.student.input.f_kind()?;
        let stored = |gradient: Option<Tensor>| gradient.map(|gradient| Stored { gradient, kind });
        let gradients = self.0.into_iter().map(stored);
        Ok(gradients.take(if run.student.bias.is_some() { 3 } else { 2 }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SoftLoss;
    use crate::numeric::assert_gradient;
    use crate::random::randn;

    #[test]
    fn gradients_are_those_of_differences() {
        let (x, w, b) = (randn([5, 2]), randn([4, 2]), randn([4]));
        let (z, v, c) = (randn([5, 3]), randn([4, 3]), randn([4]));
        let teacher = LinearHead::new(&z, &v).bias(&c);
        let target = Tensor::from_slice(&[0_i64, 3, -100, 2, 2]);
        for soft_loss in [SoftLoss::ForwardKl, SoftLoss::JensenShannon(0.3), SoftLoss::Cosine] {
            let loss = DistillationLoss::new().soft_loss(soft_loss).temperature(1.5);
            let loss = LinearDistillation::new(loss).chunking(Chunking::Rows(2));
            let of = |student: LinearHead| loss.forward(student, teacher, Some(&target)).loss;
            assert_gradient(&x, |x| of(LinearHead::new(x, &w).bias(&b)));
            assert_gradient(&w, |w| of(LinearHead::new(&x, w).bias(&b)));
            assert_gradient(&b, |b| of(LinearHead::new(&x, &w).bias(b)));
        }
    }

    #[test]
    fn chunks_do_not_change_the_loss() {
        let (x, w, z, v) = (randn([5, 2]), randn([4, 2]), randn([5, 3]), randn([4, 3]));
        let (student, teacher) = (LinearHead::new(&x, &w), LinearHead::new(&z, &v));
        let target = Tensor::from_slice(&[0_i64, 3, -100, 2, 2]);
        for reduction in [Reduction::Mean, Reduction::Sum] {
            let plain = DistillationLoss::new().reduction(reduction);
            let expected = plain.forward(&x.mm(&w.tr()), &z.mm(&v.tr()), Some(&target));
            for rows in [1, 2, 5, 9] {
                let loss = LinearDistillation::new(plain).chunking(Chunking::Rows(rows));
                let output = loss.forward(student, teacher, Some(&target));
                assert!(output.loss.allclose(&expected, 1e-12, 1e-12, false));
            }
        }
    }

    #[test]
    fn half_precision_is_added_up_in_single_precision() {
        let half = |shape: &[i64]| randn(shape).to_kind(Kind::BFloat16).set_requires_grad(true);
        let (x, w, z, v) = (half(&[5, 2]), half(&[4, 2]), half(&[5, 3]), half(&[4, 3]));
        let loss = LinearDistillation::new(DistillationLoss::new().hard_weight(0.0)).chunking(Chunking::Rows(2));
        let output = loss.forward(LinearHead::new(&x, &w), LinearHead::new(&z, &v), None);
        output.loss.backward();
        assert_eq!((output.loss.kind(), output.hard_loss.kind()), (Kind::Float, Kind::Float));
        assert_eq!((x.grad().kind(), w.grad().kind()), (Kind::BFloat16, Kind::BFloat16));
        assert!(!z.grad().defined() && !v.grad().defined());
    }

    #[test]
    fn wrong_calls_are_named() {
        let (x, w, z, v) = (randn([5, 2]), randn([4, 2]), randn([5, 3]), randn([6, 3]));
        let target = Tensor::from_slice(&[0_i64; 5]);
        let (short, few) = (target.narrow(0, 0, 4), z.narrow(0, 0, 4));
        let same = randn([4, 3]);
        let (student, teacher) = (LinearHead::new(&x, &w), LinearHead::new(&z, &same));
        let loss = LinearDistillation::new(DistillationLoss::new());
        let unreduced = LinearDistillation::new(DistillationLoss::new().reduction(Reduction::None));
        for (result, message) in [
            (
                loss.f_forward(student, LinearHead::new(&z, &v), Some(&target)),
                "teacher weight has shape [6, 3], expected 4 rows, as many as weight, one per class",
            ),
            (
                loss.f_forward(student, LinearHead::new(&few, &same), Some(&target)),
                "teacher input has shape [4, 3], expected 5 rows, as many as input",
            ),
            (
                loss.f_forward(student, teacher, Some(&short)),
                "target has shape [4], expected [5], one class per row of input",
            ),
            (loss.f_forward(student, teacher, None), "option hard_weight is 0.5, expected 0, where there is no target"),
            (
                loss.chunking(Chunking::Rows(0)).f_forward(student, teacher, Some(&target)),
                "option chunking is Rows(0), expected a number of rows >= 1",
            ),
            (
                unreduced.f_forward(student, teacher, Some(&target)),
                "option reduction is None, expected a mean or a sum",
            ),
        ] {
            assert_eq!(result.unwrap_err().to_string(), message);
        }
    }
}
