//! The kernels that have been compiled: one module for each source and GPU.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tch::Device;

use super::driver::{Gpu, Module, OnStream};
use super::launch::{Kernel, Launch};
use super::nvrtc::nvrtc;

type Loaded = Arc<OnceLock<Result<Module, String>>>;

/// Launches kernels of a source on libtorch's current stream of a device. What keeps it from that is told once in the
/// log, and is none: tensor operations compute the loss.
pub(super) fn launcher(device: Device, source: &str, kernels: &[Kernel]) -> Option<Box<dyn Launch>> {
    #[cfg(test)]
    if device == Device::Cpu {
        super::tests::note(source);
        let emulated = super::emulation::Emulated::of(source, kernels);
        return Some(Box::new(super::emulation::InOrder(emulated.unwrap_or_else(|error| panic!("{error}")), 1)));
    }
    let Device::Cuda(index) = device else { return None };
    match on_gpu(index, source, kernels) {
        Ok(launcher) => launcher,
        Err(error) => {
            static TOLD: OnceLock<()> = OnceLock::new();
            TOLD.get_or_init(|| log::warn!("losses on CUDA are computed by tensor operations: {error}"));
            None
        }
    }
}

/// None while a CUDA graph is recorded and the module is not there yet.
fn on_gpu(index: usize, source: &str, kernels: &[Kernel]) -> Result<Option<Box<dyn Launch>>, String> {
    let gpu = Gpu::of(index)?;
    let stream = gpu.stream()?;
    let entry = entry(index, source);
    if entry.get().is_none() && stream.is_capturing() {
        return Ok(None);
    }
    // Others wait for this source alone while it is compiled.
    let module = entry.get_or_init(|| {
        let nvrtc = nvrtc().ok_or("there is no NVRTC")?;
        gpu.load(&nvrtc.compile(source, gpu.capability)?, kernels)
    });
    if let Err(error) = module {
        return Err(error.clone());
    }
    Ok(Some(Box::new(OnGpu { entry, stream })))
}

/// The place of the module of a source.
fn entry(index: usize, source: &str) -> Loaded {
    static MODULES: Mutex<Option<HashMap<(usize, String), Loaded>>> = Mutex::new(None);
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    modules.get_or_insert_default().entry((index, source.to_owned())).or_default().clone()
}

struct OnGpu {
    entry: Loaded,
    stream: super::driver::Stream,
}

impl Launch for OnGpu {
    unsafe fn launch(&self, kernel: Kernel, grid: u32, parameters: &mut [*mut std::ffi::c_void]) -> Result<(), String> {
        match self.entry.get() {
            // SAFETY: the caller's promise.
            Some(Ok(module)) => unsafe { OnStream { module, stream: self.stream }.launch(kernel, grid, parameters) },
            _ => Err("the module is not loaded".into()),
        }
    }
}
