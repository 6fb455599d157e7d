//! The statistics of the batches of all ranks.

use tch::Tensor;

use crate::LossError;
use crate::distributed::{Group, Reduce};
use crate::kernels::NumberOperations;

/// `samples`, `[N, …]`, of this rank without the mean over those of all ranks, and how many these are.
pub(super) fn f_centred(samples: &Tensor, group: &Group) -> Result<(Tensor, i64), LossError> {
    let own = Tensor::f_from_slice(&samples.size()[..1])?;
    let count = group.f_all_reduce(&own, Reduce::Sum)?.f_int64_value(&[0])?;
    let sum = group.f_sum_data_parallel(&samples.f_sum_dim_intlist(0, true, None)?)?;
    Ok((samples.f_sub(&sum.f_div_number(count)?)?, count))
}
