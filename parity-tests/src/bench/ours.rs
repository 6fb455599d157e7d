//! The crate's side of a workload.

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::measure::{Pass, Side};
use super::workloads::{Call, Inputs, Workload};
use crate::results::{CaseResult, Results, Status};

/// How long the threads of the other side get to fall asleep.
const SETTLE: Duration = Duration::from_millis(5);

/// A loss of the crate with its arguments.
pub struct Ours {
    call: Call,
    plain: Vec<Tensor>,
    arguments: Vec<Tensor>,
    leaves: Vec<Tensor>,
    device: Device,
}

impl Ours {
    /// The loss of a workload on these inputs.
    pub fn new(workload: &Workload, inputs: &Inputs) -> Result<Ours> {
        let arguments = inputs.with_leaves()?;
        let differentiated = inputs.differentiated();
        let leaves = differentiated.iter().map(|(position, _)| arguments[*position].shallow_clone()).collect();
        let (call, plain) = (workload.call(inputs)?, inputs.all());
        let device = plain[0].device();
        Ok(Ours { call, plain, arguments, leaves, device })
    }

    /// The loss, with a graph.
    pub fn loss(&self) -> Result<Tensor> {
        Ok((self.call)(&self.arguments)?)
    }

    /// The gradients of the loss.
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<Tensor>> {
        Ok(Tensor::f_run_backward(&[loss], &self.leaves, false, false)?)
    }

    /// The loss and its gradients.
    pub fn step(&self) -> Result<Vec<Tensor>> {
        self.gradients(&self.loss()?)
    }

    /// The value and the gradients as a result of the parity format.
    pub fn results(&self, id: &str, inputs: &Inputs) -> Result<Results> {
        let mut results = Results::default();
        let ok = CaseResult { status: Status::Ok, outputs: Some(1), message: None, second_order: None };
        results.cases.insert(id.to_owned(), ok);
        let loss = self.loss()?;
        results.tensors.insert(format!("{id}:output/0"), loss.f_detach()?.f_to_device(Device::Cpu)?);
        for ((_, name), gradient) in inputs.differentiated().iter().zip(self.gradients(&loss)?) {
            results.tensors.insert(format!("{id}:{name}"), gradient.f_contiguous()?.f_to_device(Device::Cpu)?);
        }
        Ok(results)
    }
}

impl Side for Ours {
    fn time(&self, pass: Pass, warm: u64, count: u64) -> Result<f64> {
        match pass {
            Pass::Forward => time(self.device, warm, count, || Ok((self.call)(&self.plain)?)),
            Pass::Backward => time(self.device, warm, count, || self.step()),
        }
    }
}

/// Seconds of `count` calls, after a pause and `warm` calls that are not timed.
fn time<T>(device: Device, warm: u64, count: u64, call: impl Fn() -> Result<T>) -> Result<f64> {
    std::thread::sleep(SETTLE);
    for _ in 0..warm {
        drop(black_box(call()?));
    }
    wait_for(device);
    let start = Instant::now();
    for _ in 0..count {
        drop(black_box(call()?));
    }
    wait_for(device);
    Ok(start.elapsed().as_secs_f64())
}

/// Waits until the device has done what it was given.
fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// Elements of the tensors whose copy tells the bandwidth: as many as a large workload has.
const COPIED_ELEMENTS: i64 = 1 << 24;

/// libtorch's copy into memory that is already there, the measure of the memory's bandwidth.
pub struct Copy {
    from: Tensor,
    to: RefCell<Tensor>,
}

impl Copy {
    /// The bytes that a copy reads and writes.
    pub const BYTES: usize = 2 * 4 * COPIED_ELEMENTS as usize;

    /// The two tensors.
    pub fn new(device: Device) -> Result<Copy> {
        let from = Tensor::f_rand([COPIED_ELEMENTS], (Kind::Float, device))?;
        let to = from.f_zeros_like()?.into();
        Ok(Copy { from, to })
    }
}

impl Side for Copy {
    fn time(&self, _: Pass, warm: u64, count: u64) -> Result<f64> {
        time(self.from.device(), warm, count, || Ok(self.to.borrow_mut().f_copy_(&self.from)?))
    }
}
