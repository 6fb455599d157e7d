//! Exchanges between neighbours: each rank sends to one other rank, and receives from one.

use tch::Tensor;

use super::Group;
use super::collective::{f_placed, f_to_gather, is_on_gpu};
use super::record::{self, Operation, Request};
use super::traffic;
use crate::LossError;
use crate::autograd::{Function, needed};

/// What came from a neighbour.
pub(crate) struct Shifted {
    pub(crate) tensor: Tensor,
    /// The number of the call.
    pub(crate) call: u64,
}

impl Group {
    /// The tensor of the rank that stands `by` places before this one, while this rank's own goes to the rank `by`
    /// places after it. After the last rank comes the first one. The first dimension may be another one on each rank.
    ///
    /// W − 1 shifts by 1 bring the tensors of all ranks here, one at a time. The result has no graph;
    /// [`f_shift_data_parallel`](Self::f_shift_data_parallel) is one with a gradient.
    ///
    /// # Errors
    /// Those of [`f_all_gather`](Self::f_all_gather).
    #[doc(alias = "neighbour_exchange")]
    #[doc(alias = "batch_isend_irecv")]
    #[doc(alias = "ppermute")]
    pub fn f_shift(&self, tensor: &Tensor, by: i64) -> Result<Tensor, LossError> {
        Ok(self.f_shifted(tensor, by, false, None)?.tensor)
    }

    /// The same with a gradient, for **data parallelism**: the gradient of what came from a rank goes back to it.
    ///
    /// # Errors
    /// Those of [`f_shift`](Self::f_shift), in the forward and in the backward pass, and [`LossError::Ranks`] where the
    /// tensor requires a gradient on some ranks only.
    #[doc(alias = "NeighbourExchange")]
    pub fn f_shift_data_parallel(&self, tensor: &Tensor, by: i64) -> Result<Tensor, LossError> {
        self.f_shift_of(tensor, by, None)
    }

    fn f_shift_of(&self, tensor: &Tensor, by: i64, backward_of: Option<u64>) -> Result<Tensor, LossError> {
        let needed = tensor.defined() && needed(&[tensor])[0];
        let Shifted { tensor: shifted, call } = self.f_shifted(tensor, by, needed, backward_of)?;
        let (group, back_by) = (self.clone(), -(by % self.world_size() as i64));
        // The gradient is a shift itself, and so can be differentiated.
        Function::new(&[tensor]).f_attach_one(shifted, move |context| {
            let back = |grad: Tensor| group.f_shift_of(&grad, back_by, Some(call));
            Ok(vec![context.grad(0).map(back).transpose()?])
        })
    }

    /// The same without a graph. `differentiable` tells the other ranks whether a gradient will come back.
    pub(crate) fn f_shifted(
        &self,
        tensor: &Tensor,
        by: i64,
        differentiable: bool,
        backward_of: Option<u64>,
    ) -> Result<Shifted, LossError> {
        let (mut own, kind) = self.f_or_refuse(f_to_gather(tensor))?;
        let operation = Operation::Shift { by };
        let on_gpu = is_on_gpu(&own);
        let request = Request { operation, kind, size: own.size(), differentiable, on_gpu, backward_of };
        let (rank, world) = (self.rank() as i64, self.world_size() as i64);
        let step = by % world;
        let [to, from] = [step, -step].map(|step| (rank + step).rem_euclid(world));
        let mut other = None;
        let call = self.f_collective(&request, |state, records| {
            if to == rank {
                return Ok(());
            }
            own = f_placed(&own, records)?;
            let mut size = own.size();
            size[0] = record::first_size(&records[from as usize]);
            let place = own.f_new_empty(&size, (own.kind(), own.device())).map_err(|error| error.to_string())?;
            let place = other.insert(place);
            state.processes.f_exchange((&mut own, to as usize), (place, from as usize))
        })?;
        if other.is_some() {
            self.count_sent(traffic::bytes(&own));
        }
        let tensor = other.unwrap_or(own).f_to_kind(kind)?.f_to_device(tensor.device())?;
        Ok(Shifted { tensor, call })
    }
}
