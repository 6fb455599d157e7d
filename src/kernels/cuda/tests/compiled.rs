//! The sources compiled for GPUs, each of them once in a run of the tests, whichever tests ask for it.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::SOURCES;
use crate::kernels::cuda::nvrtc::Nvrtc;
use crate::kernels::library;

/// NVRTC beside the libtorch of these tests; none where that is one for the CPU alone.
pub(super) fn installed_nvrtc() -> Option<Nvrtc> {
    let libtorch = std::fs::canonicalize(std::env::var_os("LIBTORCH")?).ok()?;
    let folders = std::fs::read_dir(libtorch.parent()?.join("nvidia")).ok()?;
    let files = folders.flatten().filter_map(|folder| std::fs::read_dir(folder.path().join("lib")).ok()).flatten();
    let mut paths: Vec<_> = files.flatten().map(|file| file.path()).collect();
    // It looks for its other part by the bare name, which is found where that is loaded.
    paths.sort_by_key(|path| !path.to_string_lossy().contains("libnvrtc-builtins"));
    let is_nvrtc = |path: &&std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("libnvrtc") && !name.contains(".alt.")
    };
    let open = |path: &std::path::PathBuf| library::open(&CString::new(path.to_str()?).ok()?);
    let libraries: Vec<_> = paths.iter().filter(is_nvrtc).filter_map(open).collect();
    libraries.into_iter().find_map(Nvrtc::find)
}

/// The code of a source and what the compiler says, or why it fails.
type Compiled = Result<(Vec<u8>, String), String>;

/// That of an architecture; compiled by the first one who asks.
fn compiled(nvrtc: &Nvrtc, source: &str, architecture: &str) -> Arc<OnceLock<Compiled>> {
    type Known = HashMap<(String, String), Arc<OnceLock<Compiled>>>;
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let key = (architecture.to_owned(), source.to_owned());
    let place = {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_or_insert_default().entry(key).or_default().clone()
    };
    place.get_or_init(|| nvrtc.compile_for(source, architecture, &[c"--ptxas-options=-v"]));
    place
}

/// Whether the sources compile for all generations of GPUs that NVRTC knows, to kernels that keep all in registers: a
/// stack is slower than the memory that the kernels read.
pub(super) fn assert_compile(nvrtc: &Nvrtc, sources: impl IntoIterator<Item = String>) {
    let sources: Vec<String> = sources.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    assert!(!sources.is_empty());
    let known = nvrtc.architectures();
    let architectures = [75, 80, 86, 90, 100, 120].into_iter().filter(|capability| known.contains(capability));
    let architectures: Vec<String> = architectures.map(|capability| format!("sm_{capability}")).collect();
    // The code of a virtual machine is that of which NVRTC makes machine code; so one source shows that it is handed out.
    assert_compiles_for(nvrtc, &sources[0], "compute_75");
    let (next, threads) = (AtomicUsize::new(0), std::thread::available_parallelism().map_or(1, usize::from));
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(source) = sources.get(index / architectures.len()) else { return };
            assert_compiles_for(nvrtc, source, &architectures[index % architectures.len()]);
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
}

fn assert_compiles_for(nvrtc: &Nvrtc, source: &str, architecture: &str) {
    let compiled = compiled(nvrtc, source, architecture);
    let (code, log) = match compiled.get().expect("it has been compiled") {
        Ok(compiled) => compiled,
        Err(log) => panic!("{architecture}: {log}\n{source}"),
    };
    if let Some(virtual_machine) = architecture.strip_prefix("compute_") {
        assert!(String::from_utf8_lossy(code).contains(&format!(".target sm_{virtual_machine}")));
        return;
    }
    assert_without_stack(code, log, architecture, source);
}

/// Whether machine code has no kernel with a stack.
fn assert_without_stack(code: &[u8], log: &str, architecture: &str, source: &str) {
    assert!(code.starts_with(b"\x7fELF"), "no machine code for {architecture}");
    let (kernels, stacks) = (log.matches("Compiling entry function"), log.matches("bytes stack frame"));
    let without = log.matches(" 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads").count();
    let counts = (kernels.count(), stacks.count());
    assert!(without > 0 && counts == (without, without), "{architecture} has a stack: {log}\n{source}");
}

/// Compiles the sources that this thread has asked for, where NVRTC came with libtorch.
pub(super) fn assert_sources_compile() {
    let Some(nvrtc) = installed_nvrtc() else {
        println!("left out: this libtorch came without NVRTC");
        return;
    };
    let sources: BTreeSet<String> = SOURCES.take().into_iter().collect();
    assert!(!sources.is_empty());
    for source in sources {
        let compiled = compiled(&nvrtc, &source, "sm_80");
        let compiled = compiled.get().expect("it has been compiled");
        let (code, log) = compiled.as_ref().unwrap_or_else(|log| panic!("{log}\n{source}"));
        assert_without_stack(code, log, "sm_80", &source);
    }
}
