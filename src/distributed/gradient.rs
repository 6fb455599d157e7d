//! Sums and gathers with a gradient. The backward pass is a collective, too.

use tch::Tensor;

use super::collective::f_kinds_to_send;
use super::record::{Operation, Request};
use super::{Group, Reduce};
use crate::LossError;
use crate::autograd::{Function, needed};
use crate::kernels::NumberOperations;

/// How the gradient of a sum over ranks comes back.
#[derive(Debug, Clone, Copy)]
enum Back {
    /// As the sum of the gradients of all ranks.
    Sum,
    /// All ranks have the same gradient: each takes its own, times this.
    Same(f64),
}

/// The rows of all ranks, and which of them are those of this one.
#[derive(Debug)]
pub(crate) struct Shards {
    pub(crate) all: Tensor,
    /// The first row of this rank.
    pub(crate) first: i64,
    pub(crate) rows: i64,
}

impl Shards {
    /// The number of rows of all ranks.
    pub(crate) fn total(&self) -> i64 {
        self.all.size()[0]
    }
}

impl Group {
    /// The sum of the tensors of all ranks, for **data parallelism**: each rank has a loss of its own, and gradients of
    /// the parameters are averaged over ranks, as by `DistributedDataParallel`.
    ///
    /// The gradient that comes back is the sum of those of all ranks, because every rank's loss depends on the sum.
    /// So a loss that is the same on all ranks has W times its gradient, which the average over W ranks undoes.
    ///
    /// # Errors
    /// Those of [`f_all_reduce`](Self::f_all_reduce), in the forward and in the backward pass, and
    /// [`LossError::Ranks`] where the tensor requires a gradient on some ranks only.
    #[doc(alias = "all_reduce")]
    pub fn f_sum_data_parallel(&self, tensor: &Tensor) -> Result<Tensor, LossError> {
        self.f_sum(tensor, None, Back::Sum)
    }

    /// The sum of the tensors of all ranks, for a loss that is **replicated**: all ranks compute the same loss of it,
    /// which counts once, and gradients are not averaged, as with tensor parallelism.
    ///
    /// The gradient that comes back is that of this rank, which is that of all of them; nothing is sent. It cannot be
    /// differentiated itself.
    ///
    /// # Errors
    /// Those of [`f_all_reduce`](Self::f_all_reduce), and [`LossError::Ranks`] where the tensor requires a gradient on
    /// some ranks only.
    #[doc(alias = "reduce_from_tensor_model_parallel_region")]
    pub fn f_sum_replicated(&self, tensor: &Tensor) -> Result<Tensor, LossError> {
        self.f_sum(tensor, None, Back::Same(1.0))
    }

    /// [`f_sum_data_parallel`](Self::f_sum_data_parallel) for a loss that is the same on all ranks: its gradient need
    /// not be sent.
    pub(crate) fn f_sum_of_same_loss(&self, tensor: &Tensor) -> Result<Tensor, LossError> {
        self.f_sum(tensor, None, Back::Same(self.ranks()))
    }

    /// The tensor itself, which all ranks have, for a **replicated** loss of which each rank computes a part from it. The
    /// gradient that comes back is the sum of those of all ranks.
    ///
    /// Nothing of the tensor is sent; ranks tell each other its shape and kind, and whether it requires a gradient.
    ///
    /// # Errors
    /// [`LossError::Undefined`] for an undefined tensor, and those of [`f_all_reduce`](Self::f_all_reduce), in the
    /// forward and in the backward pass; [`LossError::Ranks`] where the tensor requires a gradient on some ranks only.
    #[doc(alias = "copy_to_tensor_model_parallel_region")]
    pub fn f_copy_replicated(&self, tensor: &Tensor) -> Result<Tensor, LossError> {
        let (kind, _) = self.f_or_refuse(f_kinds_to_send(("tensor", tensor), true))?;
        let (size, differentiable) = (tensor.size(), needed(&[tensor])[0]);
        let request = Request { kind, size, differentiable, ..Request::bare(Operation::Copy) };
        let call = self.f_collective(&request, |_, _| Ok(()))?;
        self.f_copy_of(tensor, call)
    }

    /// The same in the call of this number, in which all ranks have said whether it requires a gradient.
    pub(super) fn f_copy_of(&self, tensor: &Tensor, call: u64) -> Result<Tensor, LossError> {
        let group = self.clone();
        let function = Function::new(&[tensor]).once_differentiable();
        function.f_attach_one(tensor.f_detach()?, move |context| {
            let sum = |grad: Tensor| Ok::<_, LossError>(group.f_reduced(&grad, Reduce::Sum, false, Some(call))?.0);
            Ok(vec![context.grad(0).map(sum).transpose()?])
        })
    }

    fn f_sum(&self, tensor: &Tensor, backward_of: Option<u64>, back: Back) -> Result<Tensor, LossError> {
        let needed = tensor.defined() && needed(&[tensor])[0];
        let (sum, call) = self.f_reduced(tensor, Reduce::Sum, needed, backward_of)?;
        let (group, function) = (self.clone(), Function::new(&[tensor]));
        match back {
            // The gradient is such a sum itself, and so can be differentiated.
            Back::Sum => function.f_attach_one(sum, move |context| {
                let gradient = |grad: Tensor| group.f_sum(&grad, Some(call), Back::Sum);
                Ok(vec![context.grad(0).map(gradient).transpose()?])
            }),
            Back::Same(factor) => function.once_differentiable().f_attach_one(sum, move |context| {
                let gradient = |grad: Tensor| Ok::<_, LossError>(grad.f_mul_number(factor)?);
                Ok(vec![context.grad(0).map(gradient).transpose()?])
            }),
        }
    }

    /// The tensors of all ranks one after the other, along the first dimension, for **data parallelism**: each rank has a
    /// loss of its own, and gradients of the parameters are averaged over ranks, as by `DistributedDataParallel`.
    ///
    /// The gradient that comes back is the part of this rank in the sum of the gradients of all ranks, because every
    /// rank's loss depends on all parts.
    ///
    /// # Errors
    /// Those of [`f_all_gather`](Self::f_all_gather), in the forward and in the backward pass, and
    /// [`LossError::Ranks`] where the tensor requires a gradient on some ranks only.
    #[doc(alias = "all_gather")]
    #[doc(alias = "GatherLayer")]
    pub fn f_gather_data_parallel(&self, tensor: &Tensor) -> Result<Tensor, LossError> {
        Ok(self.f_gather(tensor, Back::Sum)?.all)
    }

    /// The tensors of all ranks one after the other, for a loss that is **replicated**: all ranks compute the same loss of
    /// them, which counts once, and gradients are not averaged.
    ///
    /// The gradient that comes back is the part of this rank in its own gradient; nothing is sent. It cannot be
    /// differentiated itself.
    ///
    /// # Errors
    /// Those of [`f_all_gather`](Self::f_all_gather), and [`LossError::Ranks`] where the tensor requires a gradient on
    /// some ranks only.
    #[doc(alias = "gather_from_tensor_model_parallel_region")]
    pub fn f_gather_replicated(&self, tensor: &Tensor) -> Result<Tensor, LossError> {
        Ok(self.f_gather(tensor, Back::Same(1.0))?.all)
    }

    /// [`f_gather_data_parallel`](Self::f_gather_data_parallel) for a loss that is the same on all ranks: its gradient
    /// need not be sent.
    pub(crate) fn f_gather_for_same_loss(&self, tensor: &Tensor) -> Result<Tensor, LossError> {
        Ok(self.f_gather(tensor, Back::Same(self.ranks()))?.all)
    }

    /// The same as [`f_gather_data_parallel`](Self::f_gather_data_parallel), with the place of the own rows.
    pub(crate) fn f_shards(&self, tensor: &Tensor) -> Result<Shards, LossError> {
        self.f_gather(tensor, Back::Sum)
    }

    /// The same without a gradient.
    pub(crate) fn f_shards_detached(&self, tensor: &Tensor) -> Result<Shards, LossError> {
        crate::argument::defined(("tensor", tensor))?;
        self.f_gather(&tensor.f_detach()?, Back::Sum)
    }

    fn f_gather(&self, tensor: &Tensor, back: Back) -> Result<Shards, LossError> {
        let needed = tensor.defined() && needed(&[tensor])[0];
        let gathered = self.f_gathered(tensor, needed)?;
        let lengths: Vec<i64> = gathered.parts.iter().map(|part| part.size()[0]).collect();
        let (first, rows) = (lengths[..self.rank()].iter().sum(), lengths[self.rank()]);
        let all = Tensor::f_cat(&gathered.parts, 0)?;
        let (group, call, function) = (self.clone(), gathered.call, Function::new(&[tensor]));
        let all = match back {
            Back::Sum => function.f_attach_one(all, move |context| {
                let gradient = |grad: Tensor| {
                    Ok::<_, LossError>(group.f_sum(&grad, Some(call), Back::Sum)?.f_narrow(0, first, rows)?)
                };
                Ok(vec![context.grad(0).map(gradient).transpose()?])
            })?,
            Back::Same(factor) => function.once_differentiable().f_attach_one(all, move |context| {
                let gradient = |grad: Tensor| Ok::<_, LossError>(grad.f_narrow(0, first, rows)?.f_mul_number(factor)?);
                Ok(vec![context.grad(0).map(gradient).transpose()?])
            })?,
        };
        Ok(Shards { all, first, rows })
    }
}
