#[cfg(feature = "distributed")]
mod over_ranks;

use std::borrow::Borrow;

use tch::{Kind, Tensor, nn, no_grad_guard};

use super::f_without_diagonal;
use crate::kernels::{NumberOperations, waits};
use crate::numeric::wide_kind;
use crate::numeric::{f_matrix_product, result_kind};
use crate::{LossError, check};

crate::options::options! {
/// The options of [`DinoLoss`].
#[derive(Copy, PartialEq)]
pub struct DinoConfig;

/// lightly's defaults.
new {
    /// the temperature of the teacher, > 0, in the first epoch of the warm-up.
    warmup_teacher_temp: f64 = 0.04,
    /// the temperature of the teacher, > 0.
    teacher_temp: f64 = 0.04,
    /// the number of epochs in which the temperature of the teacher goes, in equal steps, from that of the warm-up to
    /// the final one.
    warmup_teacher_temp_epochs: i64 = 30,
    /// the temperature of the student, > 0.
    student_temp: f64 = 0.1,
    /// the share of the old centre in the new one, in \[0, 1\], when it is updated.
    center_momentum: f64 = 0.9,
}
}

impl DinoConfig {
    /// The temperature of the teacher in an epoch.
    fn temperature(&self, epoch: i64) -> f64 {
        let (first, last) = (self.warmup_teacher_temp, self.teacher_temp);
        let steps = self.warmup_teacher_temp_epochs - 1;
        match epoch {
            epoch if epoch > steps => last,
            0 => first,
            epoch => first + (last - first) * (epoch as f64 / steps as f64),
        }
    }
}

/// The DINO loss: a student predicts, from each view of an image, what its teacher predicts for the other views.
///
/// For self-supervised learning by distillation, mostly of vision transformers: the teacher is a moving average of the
/// student and sees the large crops alone, the student sees all. The teacher's outputs are sharpened, by a low
/// temperature, and centred, which keeps the two from collapsing. Without a teacher that is a copy of the student
/// choose [`BarlowTwinsLoss`](crate::BarlowTwinsLoss) or [`VicRegLoss`](crate::VicRegLoss).
///
/// # Formula
///
/// ℓ = 1/(K·B) Σₜ Σₛ≠ₜ Σₙ −⟨softmax((Tₜₙ − c) / τₜ), log softmax(Sₛₙ / τₛ)⟩
///
/// where Tₜ and Sₛ are the outputs of teacher and student for the views t and s, of B images each, K is the number of
/// pairs of different views, τₜ and τₛ are the temperatures and c is the centre. An update makes it m c + (1 − m) mean
/// T, over views and images, with the momentum m.
///
/// The centre is a state of the loss, which a call does not change: call [`update_center`](Self::update_center) once
/// for each step of the training, after the loss. Over many processes it is `f_update_center_over_ranks`.
///
#[doc = include_str!("../../docs/book/src/gallery/dino.svg")]
///
/// # Shapes
///
/// * `teacher_out`: one `[B, D]` for each view of the teacher, the large crops
/// * `student_out`: one `[B, D]` for each view of the student; the first ones are those of the teacher, in the same
///   order
/// * result: scalar
///
/// The one variable on the path is `center`, `[1, 1, D]`, the name of lightly's state dict; it is saved and loaded and
/// not trained. It is 0 in the beginning.
///
/// # Reference
///
/// `lightly.loss.DINOLoss` of lightly 1.6.0; Caron et al., DINO, <https://arxiv.org/abs/2104.14294>.
///
/// # Differences from lightly
///
/// * Half precision is computed in single precision, and temperatures are in double precision; lightly rounds them to
///   single.
/// * A call does not change the centre; lightly's updates it, in an evaluation, too.
/// * Outputs of an empty batch do not update the centre, but are an error; lightly's centre becomes NaN.
/// * Other processes count with `f_forward_over_ranks` and `f_update_center_over_ranks` of the feature `distributed`,
///   each image as much as another; lightly's centre is the mean of the ranks' means where there is a process group.
///
/// As in lightly, a gradient flows to the teacher unless its outputs have no graph: compute them under `tch::no_grad`.
///
/// # Errors
///
/// [`LossError::Option`] for a temperature that is not positive or a momentum outside \[0, 1\], [`LossError::Shape`],
/// [`LossError::Kind`] or [`LossError::Device`] for views that do not fit together or if there is no pair of different
/// views.
///
/// # Example
///
/// ```
/// use tch::{Device, Kind, Tensor, nn};
/// use tch_losses::{DinoConfig, DinoLoss};
///
/// let vs = nn::VarStore::new(Device::Cpu);
/// let config = DinoConfig::new().warmup_teacher_temp(0.04).teacher_temp(0.07);
/// let mut criterion = DinoLoss::f_new(vs.root() / "dino", 16, config)?;
/// assert!(vs.variables().contains_key("dino.center"));
///
/// for epoch in 0..2 {
///     criterion.set_epoch(epoch);
///     // Two large crops for both, and two small ones for the student.
///     let crop = || Tensor::randn([8, 16], (Kind::Float, Device::Cpu));
///     let teacher_out = [crop(), crop()];
///     let student_out = [crop(), crop(), crop(), crop()].map(|output| output.set_requires_grad(true));
///
///     let loss = criterion.f_forward(&teacher_out, &student_out)?;
///     loss.f_backward()?;
///     criterion.f_update_center(&teacher_out)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[doc(alias = "DINO")]
#[must_use]
pub struct DinoLoss {
    /// In place, because it is a variable on the path.
    center: Tensor,
    teacher_temp: f64,
    config: DinoConfig,
}

crate::option_tensors::shared_parameters!(DinoLoss { center });

/// The losses of so many pairs of views and so many images, summed up.
struct Sum {
    sum: Tensor,
    pairs: i64,
    batch: i64,
}

impl DinoLoss {
    /// Creates the centre on `path`, for outputs of `output_dim` features.
    ///
    /// # Errors
    /// A [`LossError`] that names the option at fault.
    pub fn f_new<'a>(path: impl Borrow<nn::Path<'a>>, output_dim: i64, config: DinoConfig) -> Result<Self, LossError> {
        check::option("output_dim", output_dim, output_dim >= 0, "a number >= 0")?;
        for (option, temperature) in [
            ("warmup_teacher_temp", config.warmup_teacher_temp),
            ("teacher_temp", config.teacher_temp),
            ("student_temp", config.student_temp),
        ] {
            check_temperature(option, temperature)?;
        }
        let momentum = config.center_momentum;
        check::share("center_momentum", momentum)?;
        let center = path.borrow().f_zeros_no_train("center", &[1, 1, output_dim])?;
        Ok(Self { center, teacher_temp: config.teacher_temp, config })
    }

    crate::loss::or_panic! { "Creates the centre on `path`", new['a] as new f_new(
        path: impl Borrow<nn::Path<'a>>, output_dim: i64, config: DinoConfig
    ) -> Self }

    /// The centre of the teacher's outputs, `[1, 1, D]`.
    pub fn center(&self) -> &Tensor {
        &self.center
    }

    /// Sets the temperature of the teacher to that of an epoch, the first of which is 0. Until then it is the final
    /// one.
    pub fn set_epoch(&mut self, epoch: i64) {
        self.teacher_temp = self.config.temperature(epoch.max(0));
    }

    /// Sets the temperature of the teacher, > 0, for a schedule of your own.
    ///
    /// # Errors
    /// [`LossError::Option`] for one that is not positive.
    pub fn f_set_teacher_temp(&mut self, teacher_temp: f64) -> Result<(), LossError> {
        check_temperature("teacher_temp", teacher_temp)?;
        self.teacher_temp = teacher_temp;
        Ok(())
    }

    /// Sets the temperature of the teacher as [`f_set_teacher_temp`](Self::f_set_teacher_temp) does.
    ///
    /// # Panics
    /// Where `f_set_teacher_temp` returns an error, with its message.
    #[track_caller]
    pub fn set_teacher_temp(&mut self, teacher_temp: f64) {
        crate::loss::expect(self.f_set_teacher_temp(teacher_temp));
    }

    /// Computes the loss, with a graph where an argument requires a gradient. The centre does not change.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument at fault.
    pub fn f_forward<T: Borrow<Tensor>, S: Borrow<Tensor>>(
        &self,
        teacher_out: &[T],
        student_out: &[S],
    ) -> Result<Tensor, LossError> {
        let Sum { sum, pairs, batch } = self.f_sum(teacher_out, student_out)?;
        Ok(sum.f_div_number(pairs * batch)?.f_to_kind(result_kind(teacher_out[0].borrow())?)?)
    }

    crate::loss::or_panic! { "Computes the loss", forward[T: Borrow<Tensor>, S: Borrow<Tensor>] as
    f_forward(teacher_out: &[T], student_out: &[S]) -> Tensor }

    /// The losses of all pairs of views and all images, summed up.
    fn f_sum<T: Borrow<Tensor>, S: Borrow<Tensor>>(
        &self,
        teacher_out: &[T],
        student_out: &[S],
    ) -> Result<Sum, LossError> {
        let teacher = self.f_stack("teacher_out", teacher_out)?;
        let student = self.f_stack("student_out", student_out)?;
        check::devices(&[("teacher_out", &teacher), ("student_out", &student)])?;
        check::same_kind(("student_out", &student), ("teacher_out", &teacher))?;
        let (views, batch) = (teacher.size()[0], teacher.size()[1]);
        if student.size()[1] != batch {
            let expected = format!("{:?} for each view, the shape of teacher_out", &teacher.size()[1..]);
            return Err(check::shape_error(("student_out", student_out[0].borrow()), expected));
        }
        let pairs = views * student.size()[0] - views.min(student.size()[0]);
        if pairs == 0 {
            let expected = "at least two views of teacher or student".into();
            return Err(LossError::Shape { argument: "student_out", expected, actual: student.size() });
        }
        let kind = wide_kind(&teacher)?;
        let centred = teacher.f_to_kind(kind)?.f_sub(&self.center.f_to_kind(kind)?)?;
        let p = centred.f_div_number(self.teacher_temp)?.f_softmax(-1, None)?;
        let log_q = student.f_to_kind(kind)?.f_div_number(self.config.student_temp)?.f_log_softmax(-1, None)?;
        let by_view = |outputs: Tensor| outputs.f_flatten(1, 2);
        let agreement = f_agreement(&by_view(p)?, &by_view(log_q)?)?;
        let sum = f_without_diagonal(&agreement)?.f_sum(None)?.f_neg()?;
        Ok(Sum { sum, pairs, batch })
    }

    /// Moves the centre towards the mean of the teacher's outputs.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument at fault; then the centre does not change.
    pub fn f_update_center<T: Borrow<Tensor>>(&mut self, teacher_out: &[T]) -> Result<(), LossError> {
        let _guard = no_grad_guard();
        let teacher = self.f_stack("teacher_out", teacher_out)?;
        check::shape(("teacher_out", teacher_out[0].borrow()), teacher.size()[1] != 0, "a batch that is not empty")?;
        let kind = wide_kind(&teacher)?;
        self.f_move_center(&teacher.f_mean_dim([0_i64, 1].as_slice(), true, kind)?, kind)
    }

    /// Moves the centre towards `mean`, `[1, 1, D]`, computed in `kind`.
    fn f_move_center(&mut self, mean: &Tensor, kind: Kind) -> Result<(), LossError> {
        let _guard = no_grad_guard();
        let momentum = self.config.center_momentum;
        let kept = self.center.f_to_kind(kind)?.f_mul_number(momentum)?;
        let center = kept.f_add(&mean.f_mul_number(1.0 - momentum)?)?;
        self.center.f_copy_(&center)?;
        Ok(())
    }

    /// Moves the centre as [`f_update_center`](Self::f_update_center) does.
    ///
    /// # Panics
    /// Where `f_update_center` returns an error, with its message.
    #[track_caller]
    pub fn update_center<T: Borrow<Tensor>>(&mut self, teacher_out: &[T]) {
        crate::loss::expect(self.f_update_center(teacher_out));
    }

    /// The views, once they are checked, as one tensor `[views, B, D]`.
    fn f_stack<T: Borrow<Tensor>>(&self, argument: &'static str, views: &[T]) -> Result<Tensor, LossError> {
        let Some(first) = views.first() else {
            let expected = "at least one view".into();
            return Err(LossError::Shape { argument, expected, actual: vec![0] });
        };
        let (first, features) = (first.borrow(), self.center.size()[2]);
        for view in views {
            let view = (argument, view.borrow());
            check::devices(&[("center", &self.center), view])?;
            check::floating(view)?;
            check::same_kind(view, (argument, first))?;
            match view.1.size()[..] {
                [rows, columns] if columns == features && rows == first.size()[0] => (),
                _ => return Err(check::shape_error(view, format!("[B, {features}] with one B for all views"))),
            }
        }
        Ok(Tensor::f_stack(views, 0)?)
    }
}

/// Σ p log q for each row of `p` with each row of `log_q`. Masked features, with p = 0 and log q = −∞, add 0.
fn f_agreement(p: &Tensor, log_q: &Tensor) -> Result<Tensor, LossError> {
    let impossible = log_q.f_eq_number(f64::NEG_INFINITY)?;
    // On the CPU a test saves the second product.
    if !waits(log_q) && impossible.f_any()?.f_int64_value(&[])? == 0 {
        return f_matrix_product(p, &log_q.f_transpose(0, 1)?);
    }
    let agreement = f_matrix_product(p, &log_q.f_masked_fill_number(&impossible, 0)?.f_transpose(0, 1)?)?;
    let shares = f_matrix_product(&p.f_detach()?, &impossible.f_to_kind(p.f_kind()?)?.f_transpose(0, 1)?)?;
    let infinite = shares.f_zeros_like()?.f_masked_fill_number(&shares.f_gt_number(0)?, f64::NEG_INFINITY)?;
    Ok(agreement.f_add(&infinite)?)
}

fn check_temperature(option: &'static str, temperature: f64) -> Result<(), LossError> {
    check::option(option, temperature, temperature > 0.0 && temperature.is_finite(), "a number > 0")
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::random::randn;

    fn criterion(vs: &nn::VarStore) -> DinoLoss {
        DinoLoss::new(vs.root(), 3, DinoConfig::new())
    }

    #[test]
    fn wrong_calls_are_named() {
        let vs = nn::VarStore::new(Device::Cpu);
        let mut criterion = criterion(&vs);
        let view = || randn([4, 3]);
        let one = "[B, 3] with one B for all views";
        for (teacher, student, message) in [
            (vec![], vec![view()], "teacher_out has shape [0], expected at least one view".into()),
            (vec![view()], vec![view()], {
                "student_out has shape [1, 4, 3], expected at least two views of teacher or student".into()
            }),
            (vec![view(), randn([4, 2])], vec![view()], format!("teacher_out has shape [4, 2], expected {one}")),
            (vec![view()], vec![view(), randn([5, 3])], format!("student_out has shape [5, 3], expected {one}")),
            (vec![randn([3])], vec![view()], format!("teacher_out has shape [3], expected {one}")),
            (vec![view()], vec![randn([5, 3])], {
                "student_out has shape [5, 3], expected [4, 3] for each view, the shape of teacher_out".into()
            }),
            (vec![view()], vec![view().to_kind(Kind::Float)], {
                "student_out has kind Float, expected Double, the kind of teacher_out".into()
            }),
        ] {
            assert_eq!(criterion.f_forward(&teacher, &student).unwrap_err().to_string(), message);
        }
        let error = criterion.f_update_center(&[randn([0, 3])]).unwrap_err().to_string();
        assert_eq!(error, "teacher_out has shape [0, 3], expected a batch that is not empty");
        let error = criterion.f_set_teacher_temp(0.0).unwrap_err().to_string();
        assert_eq!(error, "option teacher_temp is 0, expected a number > 0");
        let error = DinoLoss::f_new(vs.root(), 3, DinoConfig::new().center_momentum(2.0)).unwrap_err().to_string();
        assert_eq!(error, "option center_momentum is 2, expected a number in [0, 1]");
    }

    #[test]
    fn the_temperature_warms_up() {
        let config = DinoConfig::new().warmup_teacher_temp(0.25).teacher_temp(0.5).warmup_teacher_temp_epochs(5);
        let temperatures = [0, 1, 2, 3, 4, 5, 100].map(|epoch| config.temperature(epoch));
        assert_eq!(temperatures, [0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5, 0.5]);
        assert_eq!(config.warmup_teacher_temp_epochs(1).temperature(0), 0.25);
        assert_eq!(config.warmup_teacher_temp_epochs(0).temperature(0), 0.5);
    }

    #[test]
    fn an_update_before_the_backward_pass_does_no_harm() {
        let vs = nn::VarStore::new(Device::Cpu);
        let mut criterion = criterion(&vs);
        let (teacher, student) = ([randn([4, 3])], [randn([4, 3]), randn([4, 3]).set_requires_grad(true)]);
        let gradient = |criterion: &mut DinoLoss, update: bool| {
            let loss = criterion.forward(&teacher, &student);
            if update {
                criterion.update_center(&teacher);
            }
            Tensor::run_backward(&[loss], &[&student[1]], false, false).remove(0)
        };
        let before = gradient(&mut criterion, false);
        assert_eq!(gradient(&mut criterion, true), before);
        assert_eq!(vs.variables()["center"], *criterion.center());
        assert_ne!(f64::try_from(criterion.center().abs().max()).unwrap(), 0.0);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut vs = nn::VarStore::new(Device::Cpu);
        let config = DinoConfig::new().teacher_temp(0.5).student_temp(0.7);
        let mut criterion = DinoLoss::new(vs.root(), 3, config);
        vs.double();
        criterion.update_center(&[randn([4, 3])]);
        let (teacher, other) = (randn([4, 3]), randn([4, 3]));
        crate::numeric::assert_gradient(&other, |view| criterion.forward(&[&teacher, &other], &[&teacher, view]));
        crate::numeric::assert_gradient(&teacher, |view| criterion.forward(&[&other, view], &[&teacher, &other]));
    }
}
