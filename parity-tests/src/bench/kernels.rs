//! How many kernels a GPU runs for a loss that is computed by tensor operations, beside those of its reference.
//!
//! No GPU is needed to count them: the losses compute on the CPU by the operations that those on CUDA are computed by,
//! and kernels.cpp counts these. Python loads the same library, so that both sides are counted by one rule.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch_losses::like_cuda;

use super::ours::Ours;
use super::report::table;
use super::workloads::{Dtype, Size, Workload, workloads};
use super::{Bench, write};
use crate::progress;

/// The kinds that are counted: in half precision a loss is computed in single precision, and what converts it counts.
pub const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

const LEGEND: &str = "Kernels: operations of libtorch for which a GPU runs a kernel, without views and memory; an operation in which \
libtorch calls several kernels, such as a sort, counts as one, on both sides. ours: the tensor operations by which the loss is \
computed on CUDA without the feature `cuda`, in second derivatives, and where no engine takes the call. Marked with ✗: more than \
the reference.";

/// The operations of a call, and how often each was called.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Operations(BTreeMap<String, usize>);

impl Operations {
    fn parse(lines: &str) -> Operations {
        let mut operations = Operations::default();
        for name in lines.lines() {
            *operations.0.entry(name.trim_start_matches("aten::").to_owned()).or_default() += 1;
        }
        operations
    }

    /// How many kernels that are.
    pub fn count(&self) -> usize {
        self.0.values().sum()
    }
}

/// The kernels of a loss and of its gradients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Kernels {
    /// Those of the call.
    pub forward: Operations,
    /// Those of the backward pass.
    pub backward: Operations,
}

impl Kernels {
    /// All of them.
    pub fn count(&self) -> usize {
        self.forward.count() + self.backward.count()
    }

    /// How many of them are copies, which conversions are.
    pub fn copies(&self) -> usize {
        [&self.forward, &self.backward].iter().filter_map(|operations| operations.0.get("copy_")).sum()
    }
}

/// The kernels of the references by kind and loss, as a file has them.
pub type Counts = BTreeMap<String, BTreeMap<String, Kernels>>;

/// What counts the kernels of this process.
#[derive(Debug)]
pub struct Counter {
    library: PathBuf,
    start: unsafe extern "C" fn(),
    stop: unsafe extern "C" fn() -> *const c_char,
}

impl Counter {
    /// Compiles kernels.cpp against the libtorch that this program was built with, into `dir`, and loads it.
    pub fn new(dir: &Path) -> Result<Counter> {
        let libtorch = option_env!("PARITY_LIBTORCH").context("this program was built without libtorch")?;
        let (source, library) = (dir.join("kernels.cpp"), dir.join("libkernels.so"));
        std::fs::write(&source, include_str!("kernels.cpp"))?;
        let headers = Path::new(libtorch).join("../include");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let mut command = Command::new(&compiler);
        command.args(["-shared", "-fPIC", "-O1", "-std=c++17", "-isystem"]).arg(headers);
        command.arg(&source).arg("-o").arg(&library).arg("-L").arg(libtorch).args(["-lc10", "-ltorch_cpu"]);
        let done = command.output().with_context(|| format!("cannot run {compiler}"))?;
        ensure!(done.status.success(), "{compiler} failed: {}", String::from_utf8_lossy(&done.stderr));
        let path = CString::new(library.as_os_str().as_encoded_bytes())?;
        // SAFETY: the library has no initialisers but those of C++'s standard library.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        if handle.is_null() {
            // SAFETY: after a failure it is a C string.
            bail!(
                "cannot load {}: {}",
                library.display(),
                unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy()
            );
        }
        let function = |name: &CStr| -> Result<*mut c_void> {
            // SAFETY: a look for a name in an open library.
            let function = unsafe { libc::dlsym(handle, name.as_ptr()) };
            ensure!(!function.is_null(), "{} has no {name:?}", library.display());
            Ok(function)
        };
        // SAFETY: the functions of these names have these signatures, and the library is never closed.
        let (start, stop) = unsafe {
            (
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(function(c"kernels_start")?),
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(function(c"kernels_stop")?),
            )
        };
        Ok(Counter { library, start, stop })
    }

    /// The kernels of `call`, and its result.
    pub fn count<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<(Operations, T)> {
        // SAFETY: it takes nothing.
        unsafe { (self.start)() };
        let result = call();
        // SAFETY: the string lives until the next call of this function.
        let lines = unsafe { CStr::from_ptr((self.stop)()) }.to_string_lossy().into_owned();
        Ok((Operations::parse(&lines), result?))
    }

    /// Those of a workload as CUDA computes it without engines.
    pub fn of_workload(&self, workload: &Workload) -> Result<Kernels> {
        let ours = Ours::new(workload, &workload.inputs()?)?;
        like_cuda(|| {
            // What is done once, such as the place of a note, is no part of a call.
            ours.step()?;
            let (forward, loss) = self.count(|| ours.loss())?;
            let (backward, _) = self.count(|| ours.gradients(&loss))?;
            Ok(Kernels { forward, backward })
        })
    }
}

/// The smallest size of each loss.
pub fn smallest(filter: Option<&str>, dtype: Dtype) -> Vec<Workload> {
    let mut seen = std::collections::HashSet::new();
    let all = workloads(filter, Size::value_variants(), dtype).into_iter();
    all.filter(|workload| seen.insert(workload.name)).collect()
}

/// Counts on both sides. Whether the crate has nowhere more kernels than its reference.
pub(super) fn run(bench: &Bench) -> Result<bool> {
    let counter = Counter::new(bench.dir.path())?;
    let mut rows = table(&["loss", "f32 ours", "reference", "bf16 ours", "reference"], 1);
    let (mut counts, mut more, mut notes) = (Counts::new(), 0, Vec::new());
    let filter = bench.options.filter.as_deref();
    let [single, half] = DTYPES.map(|dtype| smallest(filter, dtype));
    let bar = progress::bar("starting", Some(single.len()));
    for (single, half) in single.iter().zip(&half) {
        bar.set_message(single.name.to_owned());
        let mut cells = vec![single.name.to_owned()];
        for (dtype, workload) in DTYPES.into_iter().zip([single, half]) {
            match bench.kernels(&counter, workload) {
                Ok([ours, reference]) => {
                    let is_more = ours.count() > reference.count();
                    more += usize::from(is_more);
                    cells.push(cell(&ours, is_more));
                    cells.push(cell(&reference, false));
                    counts.entry(dtype.name().into()).or_default().insert(workload.name.into(), reference);
                }
                Err(error) => {
                    cells.extend(["n/a".to_owned(), "n/a".to_owned()]);
                    notes.push(format!("* {} {}: {error:#}", workload.name, dtype.name()));
                }
            }
        }
        rows.add_row(cells);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let versions = format!("Forward + backward. PyTorch {}", bench.report.machine.python.torch);
    let mut parts = vec![versions, rows.to_string(), LEGEND.to_owned()];
    if !notes.is_empty() {
        parts.push(format!("Not counted:\n\n{}", notes.join("\n")));
    }
    parts.push(format!("{more} of {} have more kernels than the reference", 2 * rows.row_count()));
    let text = parts.join("\n\n");
    println!("{text}");
    write(bench.options.report.as_deref(), text + "\n")?;
    write(bench.options.json.as_deref(), serde_json::to_string_pretty(&counts)? + "\n")?;
    Ok(more == 0)
}

fn cell(kernels: &Kernels, is_more: bool) -> String {
    let mark = if is_more { "✗ " } else { "" };
    format!("{mark}{} + {}", kernels.forward.count(), kernels.backward.count())
}

impl Bench<'_> {
    /// The kernels of the crate and of the reference.
    fn kernels(&self, counter: &Counter, workload: &Workload) -> Result<[Kernels; 2]> {
        let inputs = workload.inputs()?;
        self.load(workload, &inputs)?;
        let lines = self.peer.kernels(&counter.library)?;
        let [forward, backward] = lines.map(|lines| Operations::parse(&lines));
        Ok([counter.of_workload(workload)?, Kernels { forward, backward }])
    }
}
