use tch::{Kind, Tensor};

use super::Group;
use crate::{LossError, MeanParts};

impl MeanParts {
    /// The parts of the mean over what all ranks have: their numerators and denominators are summed up. Its value is
    /// that of one process with the whole batch, on every rank, however unevenly ignored targets and weights are spread.
    ///
    /// Gradients are those of data parallelism, where the gradients of the parameters are averaged over ranks
    /// afterwards: W times that of the mean, of which the average over W ranks is the gradient of one process. See
    /// [`Group::f_sum_data_parallel`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tch::{Device, Kind, Tensor};
    /// # use tch_losses::distributed::Group;
    /// # use tch_losses::{CrossEntropyLoss, Loss};
    /// # let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    /// # let group = Group::new(&format!("127.0.0.1:{free}"), 0, 1, Duration::from_secs(30))?;
    /// # let (logits, target) = (Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)), Tensor::from_slice(&[1_i64, -100]));
    /// let parts = CrossEntropyLoss::new().f_parts(&logits, &target);
    /// // Where this rank's call is an error, the others are told, and do not wait for it.
    /// let loss = group.f_or_refuse(parts)?.f_over_ranks(&group)?.f_value()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Group::f_sum_data_parallel`].
    pub fn f_over_ranks(&self, group: &Group) -> Result<Self, LossError> {
        let kind = self.numerator().f_kind()?;
        // In one call, and in double precision, so that ranks agree in any case.
        let both = [self.numerator().f_to_kind(Kind::Double)?, self.denominator().f_to_kind(Kind::Double)?];
        let sums = group.f_sum_data_parallel(&Tensor::f_stack(&both, 0)?)?;
        self.f_over_others(sums.f_select(0, 0)?.f_to_kind(kind)?, sums.f_select(0, 1)?)
    }
}
