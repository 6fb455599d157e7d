//! The CUDA driver: contexts, modules, and launches on libtorch's streams.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::launch::{Kernel, Launch, THREADS};
use super::modules::tell;
use crate::kernels::library::{self, functions};

/// A context, a module, a function or a stream of the driver.
type Handle = *mut c_void;

functions! {
    /// The functions of cuda.h that are called.
    struct Driver {
        device_get: c"cuDeviceGet" as unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
        attribute: c"cuDeviceGetAttribute" as unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
        retain_context: c"cuDevicePrimaryCtxRetain" as unsafe extern "C" fn(*mut Handle, c_int) -> c_int,
        push_context: c"cuCtxPushCurrent_v2" as unsafe extern "C" fn(Handle) -> c_int,
        pop_context: c"cuCtxPopCurrent_v2" as unsafe extern "C" fn(*mut Handle) -> c_int,
        load: c"cuModuleLoadData" as unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int,
        function: c"cuModuleGetFunction" as unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int,
        is_capturing: c"cuStreamIsCapturing" as unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
        exchange_mode: c"cuThreadExchangeStreamCaptureMode" as unsafe extern "C" fn(*mut c_int) -> c_int,
        launch: c"cuLaunchKernel" as unsafe extern "C" fn(
            Handle,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            Handle,
            *mut *mut c_void,
            *mut *mut c_void,
        ) -> c_int,
        error_name: c"cuGetErrorName" as unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    }
}

const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
/// The mode of a thread in which it may do anything while another one records a CUDA graph.
const RELAXED: c_int = 2;

fn driver() -> Option<&'static Driver> {
    static FOUND: OnceLock<Option<Driver>> = OnceLock::new();
    FOUND.get_or_init(|| Driver::find(library::open(c"libcuda.so.1")?)).as_ref()
}

impl Driver {
    fn check(&self, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: writes a pointer to a name of the driver's, or null.
        let name = unsafe {
            (self.error_name)(code, &mut name);
            if name.is_null() { "unknown".into() } else { CStr::from_ptr(name).to_string_lossy() }
        };
        Err(format!("{name} ({code})"))
    }
}

/// A GPU, by the index that libtorch has for it.
pub(super) struct Gpu {
    driver: &'static Driver,
    index: c_int,
    /// The primary context, the one that libtorch uses. It is kept for the life of the process.
    context: Handle,
    /// Ten times the major number plus the minor one.
    pub(super) capability: c_int,
}

// SAFETY: handles of the driver may be used by any thread.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// The GPU of this index.
    pub(super) fn of(index: usize) -> Result<&'static Self, String> {
        static GPUS: Mutex<Vec<(usize, &'static Gpu)>> = Mutex::new(Vec::new());
        let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, gpu)) = gpus.iter().find(|(known, _)| *known == index) {
            return Ok(gpu);
        }
        let gpu: &'static Gpu = Box::leak(Box::new(Self::new(index)?));
        gpus.push((index, gpu));
        Ok(gpu)
    }

    fn new(index: usize) -> Result<Self, String> {
        let driver = driver().ok_or("there is no CUDA driver")?;
        let index = c_int::try_from(index).map_err(|error| error.to_string())?;
        let (mut device, mut context, mut version) = (0, std::ptr::null_mut(), [0; 2]);
        // SAFETY: all places are written before they are read.
        unsafe {
            driver.check((driver.device_get)(&mut device, index))?;
            driver.check((driver.attribute)(&mut version[0], CAPABILITY_MAJOR, device))?;
            driver.check((driver.attribute)(&mut version[1], CAPABILITY_MINOR, device))?;
            driver.check((driver.retain_context)(&mut context, device))?;
        }
        Ok(Self { driver, index, context, capability: 10 * version[0] + version[1] })
    }

    /// Calls `work` with the context of this GPU as that of the thread.
    fn within<T>(&self, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        let mut popped = std::ptr::null_mut();
        // SAFETY: the context is there for the life of the process.
        self.driver.check(unsafe { (self.driver.push_context)(self.context) })?;
        let result = work();
        // SAFETY: it is popped by the thread that has pushed it.
        self.driver.check(unsafe { (self.driver.pop_context)(&mut popped) })?;
        result
    }

    /// Calls `work`, which changes nothing of what other threads record for CUDA graphs. By default it would fail
    /// meanwhile, and end their records.
    fn beside_captures<T>(&self, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        let mut mode = RELAXED;
        // SAFETY: the mode of the thread and this one change places.
        self.driver.check(unsafe { (self.driver.exchange_mode)(&mut mode) })?;
        let result = work();
        // SAFETY: as above.
        self.driver.check(unsafe { (self.driver.exchange_mode)(&mut mode) })?;
        result
    }

    /// libtorch's current stream of this GPU.
    pub(super) fn stream(&'static self) -> Result<Stream, String> {
        type Get = unsafe extern "C" fn(i32, *mut Handle) -> i32;
        static GET: OnceLock<Option<Get>> = OnceLock::new();
        let find = || {
            let symbol = library::loaded(c"aoti_torch_get_current_cuda_stream")?;
            // SAFETY: the function that libtorch's shim.h declares.
            Some(unsafe { std::mem::transmute::<*mut c_void, Get>(symbol) })
        };
        let get = GET.get_or_init(find).ok_or("this libtorch does not tell its stream")?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes a handle.
        match unsafe { get(self.index, &mut handle) } {
            0 => Ok(Stream { gpu: self, handle }),
            code => Err(format!("libtorch does not tell its stream ({code})")),
        }
    }

    /// Code that NVRTC has made for this GPU, with these kernels.
    pub(super) fn load(&'static self, code: &[u8], kernels: &[Kernel]) -> Result<Module, String> {
        self.within(|| self.beside_captures(|| self.load_here(code, kernels)))
    }

    /// The same where the context is that of the thread.
    fn load_here(&self, code: &[u8], kernels: &[Kernel]) -> Result<Module, String> {
        let mut module = std::ptr::null_mut();
        // SAFETY: the code is a whole cubin, or PTX with a zero at its end.
        self.driver.check(unsafe { (self.driver.load)(&mut module, code.as_ptr().cast()) })?;
        let mut functions = Vec::new();
        for kernel in kernels {
            let mut function = std::ptr::null_mut();
            // SAFETY: the module has just been loaded, and is never unloaded.
            let code = unsafe { (self.driver.function)(&mut function, module, kernel.name.as_ptr()) };
            self.driver.check(code)?;
            functions.push((kernel.name, function));
        }
        Ok(Module { functions })
    }
}

/// The kernels of a source, loaded.
pub(super) struct Module {
    functions: Vec<(&'static CStr, Handle)>,
}

// SAFETY: handles of the driver may be used by any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A stream of libtorch's.
#[derive(Clone, Copy)]
pub(super) struct Stream {
    gpu: &'static Gpu,
    handle: Handle,
}

impl Stream {
    /// Whether its work is recorded for a CUDA graph, when no module may be loaded.
    pub(super) fn is_capturing(self) -> bool {
        let (Self { gpu, handle }, mut status) = (self, 0);
        // The default stream is one of the thread's context, which a thread of the caller's may lack.
        // SAFETY: the stream is libtorch's; writes a number.
        let asked = gpu.within(|| gpu.driver.check(unsafe { (gpu.driver.is_capturing)(handle, &mut status) }));
        asked.is_err() || status != 0
    }
}

/// A module whose kernels run on a stream.
pub(super) struct OnStream {
    pub(super) module: &'static Module,
    pub(super) stream: Stream,
}

impl Launch for OnStream {
    unsafe fn launch(&self, kernel: Kernel, grid: u32, parameters: &mut [*mut c_void]) -> Result<(), String> {
        let Stream { gpu, handle } = self.stream;
        let found = self.module.functions.iter().find(|(name, _)| *name == kernel.name);
        let (_, function) = found.ok_or_else(|| format!("no kernel {:?}", kernel.name))?;
        let none = std::ptr::null_mut();
        let launched = gpu.within(|| {
            // SAFETY: the caller's promise.
            let code = unsafe {
                (gpu.driver.launch)(*function, grid, 1, 1, THREADS, 1, 1, 0, handle, parameters.as_mut_ptr(), none)
            };
            gpu.driver.check(code)
        });
        launched.inspect_err(|error| tell(error))
    }
}
