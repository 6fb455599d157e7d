//! The collectives of a group, without gradients.

use tch::{Device, Kind, Tensor};

use super::Group;
use super::group::State;
use super::record::{self, LENGTH, Operation, Record, Request};
use super::traffic;
use crate::argument::Named;
use crate::{LossError, check, kernels, numeric};

/// What [`Group::f_all_reduce`] makes of the tensors of all ranks, element by element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias = "ReduceOp")]
pub enum Reduce {
    /// Their sum.
    Sum,
    /// Their product.
    Product,
    /// The least of them.
    Min,
    /// The greatest of them.
    Max,
}

impl Reduce {
    const ALL: [(Reduce, &'static str); 4] =
        [(Reduce::Sum, "sum"), (Reduce::Product, "product"), (Reduce::Min, "min"), (Reduce::Max, "max")];

    /// Its number in `c10d::ReduceOp`.
    pub(super) fn code(self) -> i32 {
        match self {
            Reduce::Sum => 0,
            Reduce::Product => 2,
            Reduce::Min => 3,
            Reduce::Max => 4,
        }
    }

    /// The name of a number.
    pub(super) fn named(code: i64) -> &'static str {
        Self::ALL.iter().find(|(reduce, _)| i64::from(reduce.code()) == code).map_or("unknown", |(_, name)| name)
    }
}

/// The parts of a gathered tensor, one for each rank.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) parts: Vec<Tensor>,
    /// The number of the call.
    pub(super) call: u64,
}

impl Group {
    /// The reduction of the tensors of all ranks, which have one shape and kind; every rank gets the same numbers. The
    /// result has no graph; [`f_sum_data_parallel`](Self::f_sum_data_parallel) is one with a gradient.
    ///
    /// Half precision is reduced in single precision. Tensors on GPUs go through the memory of the host, or by NCCL with
    /// the feature `nccl`; the host waits for it either way. A NaN may be lost by `Min` and `Max`, as in PyTorch.
    ///
    /// # Errors
    /// [`LossError::Ranks`] on all ranks where they disagree, [`LossError::Group`] where one is late or dead,
    /// [`LossError::Kind`] for booleans and complex numbers.
    #[doc(alias = "all_reduce")]
    pub fn f_all_reduce(&self, tensor: &Tensor, reduce: Reduce) -> Result<Tensor, LossError> {
        Ok(self.f_reduced(tensor, reduce, false, None)?.0)
    }

    /// The same, and the number of the call.
    pub(super) fn f_reduced(
        &self,
        tensor: &Tensor,
        reduce: Reduce,
        differentiable: bool,
        backward_of: Option<u64>,
    ) -> Result<(Tensor, u64), LossError> {
        let (own, kind) = self.f_or_refuse(f_copy_to_send(("tensor", tensor), false))?;
        let operation = Operation::AllReduce(reduce);
        let on_gpu = is_on_gpu(&own);
        let request = Request { operation, kind, size: own.size(), differentiable, on_gpu, backward_of };
        let mut reduced = if numeric::is_half(kind) { own.f_to_kind(Kind::Float)? } else { own };
        let call = self.f_collective(&request, |state, records| {
            reduced = f_placed(&reduced, records)?;
            match reduced.numel() {
                0 => Ok(()),
                _ => state.processes.f_all_reduce(&mut reduced, reduce.code()),
            }
        })?;
        self.count_sent(traffic::all_reduce(self.world_size(), traffic::bytes(&reduced)));
        Ok((reduced.f_to_kind(kind)?.f_to_device(tensor.device())?, call))
    }

    /// The tensors of all ranks one after the other, along the first dimension, which may be another one on each rank.
    /// The result has no graph; [`f_gather_data_parallel`](Self::f_gather_data_parallel) is one with a gradient.
    ///
    /// # Errors
    /// [`LossError::Shape`] for a scalar, and those of [`f_all_reduce`](Self::f_all_reduce) except that booleans are
    /// taken.
    #[doc(alias = "all_gather")]
    pub fn f_all_gather(&self, tensor: &Tensor) -> Result<Tensor, LossError> {
        Ok(Tensor::f_cat(&self.f_gathered(tensor, false)?.parts, 0)?)
    }

    /// The tensors of all ranks.
    pub(super) fn f_gathered(&self, tensor: &Tensor, differentiable: bool) -> Result<Gathered, LossError> {
        let (own, kind) = self.f_or_refuse(f_to_gather(tensor))?;
        let (size, on_gpu) = (own.size(), is_on_gpu(&own));
        let request = Request { kind, size, differentiable, on_gpu, ..Request::bare(Operation::AllGather) };
        let mut parts = Vec::new();
        let call = self.f_collective(&request, |state, records| {
            parts = f_gather(state, records, &f_placed(&own, records)?)?;
            Ok(())
        })?;
        // Each part travels in the length of the longest.
        let longest = parts.iter().map(traffic::bytes).max().unwrap_or(0);
        self.count_sent(traffic::all_gather(self.world_size(), longest));
        let back = |part: Tensor| Ok(part.f_to_kind(kind)?.f_to_device(tensor.device())?);
        Ok(Gathered { parts: parts.into_iter().map(back).collect::<Result<_, LossError>>()?, call })
    }

    /// The tensor of the rank `root`, on all ranks. The others bring one of the same shape and kind, whose numbers do
    /// not matter.
    ///
    /// # Errors
    /// [`LossError::Option`] for a root that is no rank, and those of [`f_all_reduce`](Self::f_all_reduce) except that
    /// booleans are taken.
    #[doc(alias = "broadcast")]
    pub fn f_broadcast(&self, tensor: &Tensor, root: usize) -> Result<Tensor, LossError> {
        let valid = root < self.world_size();
        let checked = check::option("root", root, valid, "a rank of the group");
        let (mut own, kind) = self.f_or_refuse(checked.and_then(|()| f_copy_to_send(("tensor", tensor), true)))?;
        let operation = Operation::Broadcast { root };
        let request = Request { kind, size: own.size(), on_gpu: is_on_gpu(&own), ..Request::bare(operation) };
        self.f_collective(&request, |state, records| {
            own = f_placed(&own, records)?;
            match own.numel() {
                0 => Ok(()),
                _ => state.processes.f_broadcast(&mut own, root),
            }
        })?;
        let place = (self.rank() + self.world_size() - root) % self.world_size();
        self.count_sent(traffic::broadcast(self.world_size(), place, traffic::bytes(&own)));
        Ok(own.f_to_kind(kind)?.f_to_device(tensor.device())?)
    }

    /// Waits until all ranks have come here.
    ///
    /// # Errors
    /// [`LossError::Group`], which names the ranks that have not come within the timeout, and [`LossError::Ranks`] where
    /// one of them is in another call.
    #[doc(alias = "barrier")]
    #[doc(alias = "monitored_barrier")]
    pub fn f_barrier(&self) -> Result<(), LossError> {
        self.f_collective(&Request::bare(Operation::Barrier), |_, _| Ok(()))?;
        Ok(())
    }

    /// Exchanges the request, and does `payload` where all ranks agree, with the records of all of them. Returns the
    /// number of the call.
    pub(super) fn f_collective(
        &self,
        request: &Request,
        payload: impl FnOnce(&State, &[Record]) -> Result<(), String>,
    ) -> Result<u64, LossError> {
        let operation = request.operation;
        let mut state = self.f_lock(operation)?;
        let call = state.calls;
        state.calls += 1;
        let (own, refused) = match request.f_record(call, self.purpose()) {
            Ok(record) => (record, None),
            // The others are told before this rank has its error.
            Err(error) => (Request::bare(Operation::Refuse).f_record(call, self.purpose())?, Some(error)),
        };
        let records = match f_exchange(&state, self.world_size(), &own) {
            Ok(records) => records,
            Err(message) => return Err(self.broken(&mut state, operation, &message)),
        };
        self.count_sent(traffic::all_gather(self.world_size(), size_of::<Record>()));
        if let Some(error) = refused {
            return Err(error);
        }
        if !record::agree(&records) {
            return Err(LossError::Ranks { asked: record::describe(&records, self.purpose()) });
        }
        match payload(&state, &records) {
            Ok(()) => Ok(call),
            Err(message) => Err(self.broken(&mut state, operation, &message)),
        }
    }
}

/// The records of all ranks.
fn f_exchange(state: &State, world: usize, own: &Record) -> Result<Vec<Record>, String> {
    if world == 1 {
        return Ok(vec![*own]);
    }
    let text = |error: tch::TchError| error.to_string();
    let mut input = Tensor::f_from_slice(own).map_err(text)?;
    let mut outputs = f_places(world, &[LENGTH as i64], &input)?;
    state.processes.f_all_gather(&mut outputs, &mut input)?;
    let read = |output: &Tensor| {
        let mut record = [0; LENGTH];
        output.f_copy_data(&mut record, LENGTH).map_err(text)?;
        Ok(record)
    };
    outputs.iter().map(read).collect()
}

/// Gathers tensors of one kind that differ in their first dimension at most, filled up to the longest of them.
fn f_gather(state: &State, records: &[Record], own: &Tensor) -> Result<Vec<Tensor>, String> {
    let text = |error: tch::TchError| error.to_string();
    let lengths: Vec<i64> = records.iter().map(record::first_size).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut size = own.size();
    let length = std::mem::replace(&mut size[0], longest);
    let mut parts = f_places(records.len(), &size, own)?;
    if parts[0].numel() > 0 {
        let mut filled = own.shallow_clone();
        if length < longest {
            filled = own.f_new_zeros(&size, (parts[0].kind(), own.device())).map_err(text)?;
            filled.f_narrow(0, 0, length).and_then(|mut part| part.f_copy_(own)).map_err(text)?;
        }
        state.processes.f_all_gather(&mut parts, &mut filled)?;
    }
    let cut = |(part, &length): (&Tensor, &i64)| part.f_narrow(0, 0, length).map_err(text);
    parts.iter().zip(&lengths).map(cut).collect()
}

/// Places for the tensors of all ranks, in the kind and on the device of this one.
fn f_places(world: usize, size: &[i64], like: &Tensor) -> Result<Vec<Tensor>, String> {
    let place = |_| like.f_new_empty(size, (like.f_kind()?, like.device()));
    (0..world).map(place).collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// Whether the tensor is on a GPU and can be sent from there.
pub(super) fn is_on_gpu(tensor: &Tensor) -> bool {
    cfg!(feature = "nccl") && matches!(tensor.device(), Device::Cuda(_))
}

/// The tensor on the device that all ranks send from.
pub(super) fn f_placed(own: &Tensor, records: &[Record]) -> Result<Tensor, String> {
    if record::all_on_gpus(records) {
        return Ok(own.shallow_clone());
    }
    own.f_to_device(Device::Cpu).map_err(|error| error.to_string())
}

pub(super) fn f_to_gather(tensor: &Tensor) -> Result<(Tensor, Kind), LossError> {
    let sent = f_copy_to_send(("tensor", tensor), true)?;
    check::shape(("tensor", tensor), tensor.dim() > 0, "at least one dimension, along which ranks are put together")?;
    Ok(sent)
}

/// A plain copy of the tensor, in a kind that Gloo and NCCL take, and the kind that it had. A collective would write
/// into the memory of the caller otherwise.
pub(super) fn f_copy_to_send(named: Named, booleans: bool) -> Result<(Tensor, Kind), LossError> {
    let (kind, sent) = f_kinds_to_send(named, booleans)?;
    Ok((kernels::f_own(named.1)?.f_to_kind(sent)?, kind))
}

/// The kind of a tensor that can be sent, and the one in which it is.
pub(super) fn f_kinds_to_send(named: Named, booleans: bool) -> Result<(Kind, Kind), LossError> {
    check::dense(named)?;
    let (argument, tensor) = named;
    let kind = tensor.f_kind()?;
    let sent = match kind {
        Kind::Bool if booleans => Kind::Uint8,
        Kind::Int16 => Kind::Int,
        Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16 => kind,
        Kind::Uint8 | Kind::Int8 | Kind::Int | Kind::Int64 => kind,
        actual => {
            let expected = "a kind of real numbers".to_owned();
            return Err(LossError::Kind { argument, expected, actual });
        }
    };
    Ok((kind, sent))
}
