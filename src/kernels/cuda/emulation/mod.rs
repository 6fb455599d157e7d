//! The CUDA sources run on the CPU, for tests: compiled by the host's C++ compiler with `host.h` in front of them, and
//! linked to `host.cpp`, which is compiled once.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, OsStr, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tempfile::TempDir;

use super::launch::{Kernel, Launch, THREADS};
#[cfg(not(test))]
use super::modules;
use super::source::Recipe;
use crate::kernels::{Backend, library, with_backend};
use crate::scoped::replaced;

thread_local! {
    static EMULATED: Cell<bool> = const { Cell::new(false) };
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
}

/// Calls `work`, in which losses of tensors on the CPU are computed by the engines of CUDA, whose kernels run on the CPU.
/// A GPU's way is taken in all else, too: invalid values are an error of a later
/// [`f_check`](crate::InvalidValues::f_check).
///
/// # Panics
/// Where there is no C++ compiler for the kernels; the environment variable `CXX` names it, by default `c++`.
pub fn emulated_cuda<T>(work: impl FnOnce() -> T) -> T {
    replaced(&EMULATED, true, || with_backend(Backend::Auto, work))
}

/// How many kernels [`emulated_cuda`] has run on this thread.
#[cfg(feature = "emulation")]
pub fn emulated_launches() -> usize {
    LAUNCHES.get()
}

/// Whether calls on this thread are computed by the engines of CUDA.
pub(in crate::kernels) fn is_emulated() -> bool {
    EMULATED.get()
}

/// What the kernels of the source that is made of this are run by.
pub(super) fn launcher_of(recipe: Recipe, kernels: &[Kernel]) -> Option<Box<dyn Launch>> {
    #[cfg(test)]
    return super::tests::launcher_of(recipe, kernels);
    #[cfg(not(test))]
    Some(Box::new(InOrder(Emulated::or_panic(modules::text_of(recipe), kernels), 1)))
}

type Launcher = unsafe extern "C" fn(c_uint, c_uint, c_uint, *mut *mut c_void, *mut u128);

/// A source compiled for the CPU.
pub(super) struct Emulated {
    library: *mut c_void,
    /// The blocks of its kernels share static memory, which other libraries do not see.
    running: Mutex<()>,
}

// SAFETY: the library is never unloaded, and its kernels run one at a time.
unsafe impl Send for Emulated {}
// SAFETY: as above.
unsafe impl Sync for Emulated {}

impl Emulated {
    /// The same source is compiled once.
    fn of(source: &str, kernels: &[Kernel]) -> Result<Arc<Self>, String> {
        type Compiled = Arc<OnceLock<Result<Arc<Emulated>, String>>>;
        static KNOWN: Mutex<Option<HashMap<String, Compiled>>> = Mutex::new(None);
        let place = {
            let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
            known.get_or_insert_default().entry(source.to_owned()).or_default().clone()
        };
        // Other sources are compiled meanwhile.
        place.get_or_init(|| Self::new(source, kernels).map(Arc::new)).clone()
    }

    /// The tests are of what the kernels give: tensor operations must not stand in for them.
    pub(super) fn or_panic(source: &str, kernels: &[Kernel]) -> Arc<Self> {
        Self::of(source, kernels).unwrap_or_else(|error| panic!("a kernel cannot be emulated: {error}"))
    }

    fn new(source: &str, kernels: &[Kernel]) -> Result<Self, String> {
        let mut text = format!("#include \"host.h\"\n{source}\n");
        for Kernel { name, types } in kernels {
            let name = name.to_string_lossy();
            let argument = |(i, kind): (usize, &&str)| format!("*({kind}*)parameters[{i}]");
            let arguments: Vec<String> = types.iter().enumerate().map(argument).collect();
            text += &format!(
                "static void run_{name}(void** parameters) {{ {name}({}); }}\n\
                 extern \"C\" __attribute__((visibility(\"default\"))) void launch_{name}(\n    \
                 unsigned grid, unsigned threads, unsigned order, void** parameters, char* stacks) {{\n  \
                 emulation::launch(run_{name}, grid, threads, order, parameters, stacks);\n}}\n",
                arguments.join(", ")
            );
        }
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (cpp, so) = (folder.path().join("kernel.cpp"), folder.path().join("kernel.so"));
        std::fs::write(&cpp, text).map_err(|error| error.to_string())?;
        let host = Host::known()?;
        let mut options = vec![OsStr::new("-shared"), OsStr::new("-I"), host.folder.path().as_os_str()];
        options.extend([cpp.as_os_str(), host.object.as_os_str()]);
        if cfg!(target_os = "linux") {
            // The process has the C library; to look through it takes the linker as long as the compiler takes.
            options.extend(["-nostdlib", "-lgcc"].map(OsStr::new));
        }
        compile(&options, &so)?;
        let path = CString::new(so.to_string_lossy().into_owned()).map_err(|error| error.to_string())?;
        let library = library::open_apart(&path).ok_or("the emulated kernel cannot be loaded")?;
        Ok(Self { library, running: Mutex::new(()) })
    }
}

/// What all kernels are made with.
struct Host {
    /// That of `host.h`, and of what the compiler has made of it: otherwise a source takes twice as long.
    folder: TempDir,
    object: PathBuf,
}

impl Host {
    /// Made once.
    fn known() -> Result<&'static Self, String> {
        static KNOWN: OnceLock<Result<Host, String>> = OnceLock::new();
        KNOWN.get_or_init(Self::new).as_ref().map_err(String::clone)
    }

    fn new() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let [header, cpp, object] = ["host.h", "host.cpp", "host.o"].map(|name| folder.path().join(name));
        for (path, text) in [(&header, include_str!("host.h")), (&cpp, include_str!("host.cpp"))] {
            std::fs::write(path, text).map_err(|error| error.to_string())?;
        }
        compile(&[OsStr::new("-xc++-header"), header.as_os_str()], &folder.path().join("host.h.gch"))?;
        compile(&[OsStr::new("-c"), cpp.as_os_str()], &object)?;
        Ok(Self { folder, object })
    }
}

/// Calls the C++ compiler with these arguments besides the options of all files.
fn compile(others: &[&OsStr], to: &Path) -> Result<(), String> {
    let options = [
        ["-std=c++17", "-O1", "-w", "-fPIC"],
        // Some systems ask for checks of jumps, which take those between fibers for mistakes.
        ["-ffp-contract=off", "-fno-gnu-unique", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"],
    ];
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let output = Command::new(&compiler).args(options.as_flattened()).arg("-o").arg(to).args(others).output();
    let output = output.map_err(|error| format!("{compiler}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Memory for the stacks of the threads of a block, which launches use by turns.
struct Stacks(Vec<u128>);

impl Stacks {
    /// Bytes for each thread: `STACK` in host.cpp.
    const OF_THREAD: usize = 64 << 10;

    /// Calls `work` with some that nobody else uses meanwhile.
    fn with(work: impl FnOnce(*mut u128)) {
        static FREE: Mutex<Vec<Stacks>> = Mutex::new(vec![]);
        let free = || FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let known = free().pop();
        let size = THREADS as usize * Self::OF_THREAD / size_of::<u128>();
        let mut stacks = known.unwrap_or_else(|| Self(Vec::with_capacity(size)));
        work(stacks.0.as_mut_ptr());
        free().push(stacks);
    }
}

/// Runs the threads of a block in an order that this number shuffles; 0 leaves them as they are.
pub(super) struct InOrder(pub(super) Arc<Emulated>, pub(super) u32);

impl Launch for InOrder {
    unsafe fn launch(&self, kernel: Kernel, grid: u32, parameters: &mut [*mut c_void]) -> Result<(), String> {
        let Self(emulated, order) = self;
        let name =
            CString::new(format!("launch_{}", kernel.name.to_string_lossy())).map_err(|error| error.to_string())?;
        let symbol = library::symbol(emulated.library, &name).ok_or_else(|| format!("no kernel {name:?}"))?;
        let _running = emulated.running.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the function was compiled with this signature; the rest is the caller's promise.
        Stacks::with(|stacks| unsafe {
            let launch = std::mem::transmute::<*mut c_void, Launcher>(symbol);
            launch(grid, THREADS, *order, parameters.as_mut_ptr(), stacks);
        });
        LAUNCHES.set(LAUNCHES.get() + 1);
        Ok(())
    }
}
