//! The kernels that have been compiled: one module for each source and GPU. A call finds its kernels by what their
//! source is made of, which takes a fraction of what it would take to write the source.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::{Mutex, OnceLock, PoisonError};

use tch::Device;

use super::disk::{Origin, Store};
use super::driver::{Gpu, Module, OnStream};
use super::launch::{Kernel, Launch};
use super::nvrtc::nvrtc;
use super::source::Recipe;
use crate::kernels::quick_hash::QuickHasher;

/// A module is never unloaded, as a kernel of it may run at any time.
type Loaded = OnceLock<Result<Module, String>>;

/// A source that has been written, and its module.
struct Known {
    text: String,
    module: &'static Loaded,
}

/// What is known on each device, by what it is made of.
type ByRecipe = BTreeMap<Option<usize>, HashMap<Recipe, &'static Known, BuildHasherDefault<QuickHasher>>>;

/// Launches kernels of the source that is made of this on libtorch's current stream of a device. None where something
/// keeps it from that, which the log tells once: tensor operations compute the loss then.
pub(super) fn launcher_of(device: Device, recipe: Recipe, kernels: &[Kernel]) -> Option<Box<dyn Launch>> {
    #[cfg(any(test, feature = "emulation"))]
    if device == Device::Cpu {
        return super::emulation::launcher_of(recipe, kernels);
    }
    let Device::Cuda(index) = device else { return None };
    let Known { text, module } = known(Some(index), recipe);
    told(on_gpu(index, text, module, kernels))
}

fn told(found: Result<Option<Box<dyn Launch>>, String>) -> Option<Box<dyn Launch>> {
    found.unwrap_or_else(|error| {
        tell(&error);
        None
    })
}

/// Tells the log once what keeps kernels from a call.
pub(super) fn tell(error: &str) {
    static TOLD: OnceLock<()> = OnceLock::new();
    TOLD.get_or_init(|| log::warn!("losses on CUDA are computed by tensor operations: {error}"));
}

/// None while a CUDA graph is recorded and the module is not there yet.
fn on_gpu(
    index: usize,
    source: &str,
    module: &'static Loaded,
    kernels: &[Kernel],
) -> Result<Option<Box<dyn Launch>>, String> {
    let gpu = Gpu::of(index)?;
    let stream = gpu.stream()?;
    if module.get().is_none() && stream.is_capturing() {
        return Ok(None);
    }
    // Others wait for this source alone while it is compiled.
    let module = module.get_or_init(|| {
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

/// What is made of this on a GPU; written where it is new.
fn known(index: Option<usize>, recipe: Recipe) -> &'static Known {
    static KNOWN: Mutex<ByRecipe> = Mutex::new(BTreeMap::new());
    let of_device = |known: &ByRecipe| known.get(&index).and_then(|known| known.get(&recipe)).copied();
    let found = of_device(&KNOWN.lock().unwrap_or_else(PoisonError::into_inner));
    if let Some(found) = found {
        return found;
    }
    // Two threads may write the same text; they find the same module.
    let text = recipe.text();
    let module = entry(index, &text);
    let new: &'static Known = Box::leak(Box::new(Known { text, module }));
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).entry(index).or_default().insert(recipe, new);
    new
}

/// The text that a recipe has been found to have.
#[cfg(any(test, feature = "emulation"))]
pub(super) fn text_of(recipe: Recipe) -> &'static str {
    &known(None, recipe).text
}

/// Finds the place of a module by its source, as a call did before there were recipes.
#[cfg(test)]
pub(super) fn find_by_text(source: &str) {
    entry(None, source);
}

/// The place of the module of a source.
fn entry(index: Option<usize>, source: &str) -> &'static Loaded {
    static MODULES: Mutex<BTreeMap<Option<usize>, HashMap<String, &'static Loaded>>> = Mutex::new(BTreeMap::new());
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    let of_gpu = modules.entry(index).or_default();
    if let Some(entry) = of_gpu.get(source) {
        return entry;
    }
    let entry: &'static Loaded = Box::leak(Box::default());
    of_gpu.insert(source.to_owned(), entry);
    entry
}
