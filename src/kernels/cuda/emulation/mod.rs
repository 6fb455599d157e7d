//! The CUDA sources run on the CPU, for tests: compiled by the host's C++ compiler with `host.h` in front of them.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tempfile::TempDir;

use super::launch::{Kernel, Launch, THREADS};
use crate::kernels::library;

type Launcher = unsafe extern "C" fn(c_uint, c_uint, c_uint, *mut *mut c_void);

/// A source compiled for the CPU.
pub(super) struct Emulated {
    library: *mut c_void,
}

// SAFETY: the library is never unloaded, and its kernels run one at a time.
unsafe impl Send for Emulated {}
// SAFETY: as above.
unsafe impl Sync for Emulated {}

impl Emulated {
    /// The same source is compiled once.
    pub(super) fn of(source: &str, kernels: &[Kernel]) -> Result<Arc<Self>, String> {
        type Compiled = Arc<OnceLock<Result<Arc<Emulated>, String>>>;
        static KNOWN: Mutex<Option<HashMap<String, Compiled>>> = Mutex::new(None);
        let place = {
            let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
            known.get_or_insert_default().entry(source.to_owned()).or_default().clone()
        };
        // Other sources are compiled meanwhile.
        place.get_or_init(|| Self::new(source, kernels).map(Arc::new)).clone()
    }

    fn new(source: &str, kernels: &[Kernel]) -> Result<Self, String> {
        let mut text = format!("#include \"host.h\"\n{source}\n");
        for Kernel { name, types } in kernels {
            let name = name.to_string_lossy();
            let argument = |(i, kind): (usize, &&str)| format!("*({kind}*)parameters[{i}]");
            let arguments: Vec<String> = types.iter().enumerate().map(argument).collect();
            text += &format!(
                "static void run_{name}(void** parameters) {{ {name}({}); }}\n\
                 extern \"C\" void launch_{name}(unsigned grid, unsigned threads, unsigned order, void** parameters) {{\n  \
                 emulation::launch(run_{name}, grid, threads, order, parameters);\n}}\n",
                arguments.join(", ")
            );
        }
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (cpp, so) = (folder.path().join("kernel.cpp"), folder.path().join("kernel.so"));
        std::fs::write(&cpp, text).map_err(|error| error.to_string())?;
        compile(&[OsStr::new("-I"), headers()?.as_os_str(), OsStr::new("-shared")], &cpp, &so)?;
        let path = CString::new(so.to_string_lossy().into_owned()).map_err(|error| error.to_string())?;
        let library = library::open_apart(&path).ok_or("the emulated kernel cannot be loaded")?;
        Ok(Self { library })
    }
}

/// The folder of `host.h`, and of what the compiler has made of it once: most of the time that a source takes is that of
/// its headers.
fn headers() -> Result<&'static Path, String> {
    static HEADERS: OnceLock<Result<TempDir, String>> = OnceLock::new();
    let made = HEADERS.get_or_init(|| {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let header = folder.path().join("host.h");
        std::fs::write(&header, include_str!("host.h")).map_err(|error| error.to_string())?;
        compile(&["-x", "c++-header"].map(OsStr::new), &header, &folder.path().join("host.h.gch"))?;
        Ok(folder)
    });
    made.as_ref().map(TempDir::path).map_err(String::clone)
}

/// Calls the C++ compiler with these options besides those of all files.
fn compile(others: &[&OsStr], from: &Path, to: &Path) -> Result<(), String> {
    let options = ["-std=c++17", "-O1", "-w", "-fPIC", "-ffp-contract=off", "-fno-gnu-unique"];
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let output = Command::new(&compiler).args(options).args(others).arg("-o").args([to, from]).output();
    let output = output.map_err(|error| format!("{compiler}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Runs the threads of a block in an order that this number shuffles; 0 leaves them as they are.
pub(super) struct InOrder(pub(super) Arc<Emulated>, pub(super) u32);

impl Launch for InOrder {
    unsafe fn launch(&self, kernel: Kernel, grid: u32, parameters: &mut [*mut c_void]) -> Result<(), String> {
        let Self(emulated, order) = self;
        let name =
            CString::new(format!("launch_{}", kernel.name.to_string_lossy())).map_err(|error| error.to_string())?;
        let symbol = library::symbol(emulated.library, &name).ok_or_else(|| format!("no kernel {name:?}"))?;
        // The blocks of a kernel share static memory, and so may kernels of different libraries.
        static RUNNING: Mutex<()> = Mutex::new(());
        let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the function was compiled with this signature; the rest is the caller's promise.
        unsafe {
            let launch = std::mem::transmute::<*mut c_void, Launcher>(symbol);
            launch(grid, THREADS, *order, parameters.as_mut_ptr());
        }
        Ok(())
    }
}
