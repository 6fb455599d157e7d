use std::borrow::Borrow;

use tch::{Device, Kind, Tensor, no_grad_guard};

use super::DinoLoss;
use crate::distributed::{Group, Reduce};
use crate::kernels::NumberOperations;
use crate::numeric::{result_kind, wide_kind};
use crate::{LossError, check};

impl DinoLoss {
    /// Computes the loss of the batches of all ranks of a group, which may be of different sizes. Each rank has as many
    /// views.
    ///
    /// The average of the results over ranks is the loss of one process with the whole batch, and so is the average of
    /// the gradients. The images of different ranks do not meet in the loss itself, only in the centre: call
    /// [`f_update_center_over_ranks`](Self::f_update_center_over_ranks) once for each step.
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward), [`LossError::Ranks`] for ranks with other numbers of views, and those of
    /// [`Group::f_all_gather`](Group::f_all_gather).
    pub fn f_forward_over_ranks<T: Borrow<Tensor>, S: Borrow<Tensor>>(
        &self,
        teacher_out: &[T],
        student_out: &[S],
        group: &Group,
    ) -> Result<Tensor, LossError> {
        let group = self.group(group);
        let own = group.f_or_refuse(self.f_sum(teacher_out, student_out))?;
        let known = [own.batch, teacher_out.len() as i64, student_out.len() as i64];
        let known = group.f_all_gather(&Tensor::f_from_slice(&known)?.f_unsqueeze(0)?)?;
        let known = check::host_integers(&known)?;
        let (batches, views): (Vec<i64>, Vec<&[i64]>) = known.chunks_exact(3).map(|of| (of[0], &of[1..])).unzip();
        if views.iter().any(|of_rank| *of_rank != views[0]) {
            let asked = format!("views of teacher and student, rank by rank: {views:?}");
            return Err(LossError::Ranks { asked });
        }
        let factor = group.world_size() as f64 / (own.pairs * batches.iter().sum::<i64>()) as f64;
        Ok(own.sum.f_mul_number(factor)?.f_to_kind(result_kind(teacher_out[0].borrow())?)?)
    }

    /// Moves the centre towards the mean of the teacher's outputs on all ranks, each of which counts the same. The
    /// centre stays the same on all ranks.
    ///
    /// # Errors
    /// Those of [`f_update_center`](Self::f_update_center), where the whole batch must not be empty, and those of
    /// [`Group::f_all_reduce`](Group::f_all_reduce); then the centre does not change.
    pub fn f_update_center_over_ranks<T: Borrow<Tensor>>(
        &mut self,
        teacher_out: &[T],
        group: &Group,
    ) -> Result<(), LossError> {
        let _guard = no_grad_guard();
        let group = self.group(group);
        let (sum, kind) = group.f_or_refuse(self.f_sum_and_count(teacher_out))?;
        let sum = group.f_all_reduce(&sum, Reduce::Sum)?;
        let features = sum.size()[0] - 1;
        let count = sum.f_double_value(&[features])?;
        check::shape(("teacher_out", teacher_out[0].borrow()), count > 0.0, "a batch that is not empty on all ranks")?;
        let mean = sum.f_narrow(0, 0, features)?.f_div_number(count)?.f_view([1, 1, features])?;
        self.f_move_center(&mean.f_to_kind(kind)?.f_to_device(self.center.device())?, kind)
    }

    /// The sum of the outputs and how many there are, side by side in double precision, and the kind of their mean.
    fn f_sum_and_count<T: Borrow<Tensor>>(&self, teacher_out: &[T]) -> Result<(Tensor, Kind), LossError> {
        let teacher = self.f_stack("teacher_out", teacher_out)?;
        let count = Tensor::f_from_slice(&[(teacher.size()[0] * teacher.size()[1]) as f64])?;
        let sum = teacher.f_sum_dim_intlist([0_i64, 1].as_slice(), false, Kind::Double)?;
        Ok((Tensor::f_cat(&[sum.f_to_device(Device::Cpu)?, count], 0)?, wide_kind(&teacher)?))
    }

    /// The group for this loss. The centre is not among its options.
    fn group(&self, group: &Group) -> Group {
        group.of_loss(Some(format!("DinoLoss {{ teacher_temp: {}, {:?} }}", self.teacher_temp, self.config)), |_| ())
    }
}
