//! The kernels that have been compiled: one module for each source and GPU.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, OnceLock, PoisonError};

use tch::Device;

use super::disk::{Origin, Store};
use super::driver::{Gpu, Module, OnStream};
use super::launch::{Kernel, Launch};
use super::nvrtc::nvrtc;

/// A module is never unloaded, as a kernel of it may run at any time.
type Loaded = OnceLock<Result<Module, String>>;

/// Launches kernels of a source on libtorch's current stream of a device. None where something keeps it from that,
/// which the log tells once: tensor operations compute the loss then.
pub(super) fn launcher(device: Device, source: &str, kernels: &[Kernel]) -> Option<Box<dyn Launch>> {
    #[cfg(test)]
    if device == Device::Cpu {
        return Some(super::tests::launcher(source, kernels));
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
        let origin = Origin { source, capability: gpu.capability, compiler: nvrtc.version() };
        let compile = || nvrtc.compile(source, gpu.capability);
        let store = Store::of_user();
        gpu.load(&store.code(&origin, compile)?, kernels).or_else(|_| {
            store.remove(&origin);
            gpu.load(&compile()?, kernels)
        })
    });
    match module {
        Ok(module) => Ok(Some(Box::new(OnStream { module, stream }))),
        Err(error) => Err(error.clone()),
    }
}

/// The place of the module of a source.
fn entry(index: usize, source: &str) -> &'static Loaded {
    static MODULES: Mutex<BTreeMap<usize, HashMap<String, &'static Loaded>>> = Mutex::new(BTreeMap::new());
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    let of_gpu = modules.entry(index).or_default();
    if let Some(entry) = of_gpu.get(source) {
        return entry;
    }
    let entry: &'static Loaded = Box::leak(Box::default());
    of_gpu.insert(source.to_owned(), entry);
    entry
}
