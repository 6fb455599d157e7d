//! The threads of libtorch's OpenMP.

use std::any::Any;
use std::ffi::{c_uint, c_void};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crate::autograd::drop_payload;
use crate::kernels::library::loaded;

/// `GOMP_parallel`, the function that compilers call for a parallel region. LLVM's OpenMP has it as well.
type Parallel = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// What the threads of a region share: the tasks, the next one, and what comes back to the caller.
struct Region<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    count: usize,
    threads: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    caller: ThreadId,
    /// When the calling thread found no further task, and how many it had done.
    end: OnceLock<(Instant, usize)>,
}

/// How the time of a region went for the thread that started it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course {
    /// How long the thread worked on tasks, and on how many.
    pub(super) worked: Duration,
    pub(super) tasks: usize,
    /// How long it then waited for the other threads.
    pub(super) waited: Duration,
}

/// How many tasks a thread takes at once, at most. Tasks beside each other are memory beside each other, which the
/// processor loads ahead: the forward pass of MSE over 16.8 million elements takes a twentieth longer without.
const RUN: usize = 16;

impl Region<'_> {
    /// The next tasks of a thread, fewer towards the end, so that the threads end at about the same time.
    fn take(&self) -> Option<Range<usize>> {
        let mut start = self.next.load(Ordering::Relaxed);
        loop {
            let left = self.count.checked_sub(start).filter(|left| *left > 0)?;
            let run = (left / (4 * self.threads)).clamp(1, RUN);
            match self.next.compare_exchange_weak(start, start + run, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(start..start + run),
                Err(taken) => start = taken,
            }
        }
    }
}

/// Calls `task` for each of `0..count` on this number of `threads`. `None`, without a call of `task`, where libtorch's
/// OpenMP is not found.
pub(super) fn each(threads: usize, count: usize, task: &(dyn Fn(usize) + Sync)) -> Option<Course> {
    let parallel = find()?;
    let (next, panic, end) = (AtomicUsize::new(0), Mutex::new(None), OnceLock::new());
    let region = Region { task, count, threads, next, panic, caller: thread::current().id(), end };
    let start = Instant::now();
    // SAFETY: `run` gets the region, which outlives the call: it returns when all threads are done.
    unsafe { parallel(run, std::ptr::from_ref(&region).cast_mut().cast(), threads as c_uint, 0) };
    if let Some(panic) = region.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
    let (end, tasks) = region.end.into_inner().unwrap_or((start, 0));
    Some(Course { worked: end - start, tasks, waited: end.elapsed() })
}

/// What each thread of a region does: takes the next task until none is left.
///
/// # Safety
/// `region` is a `Region`.
unsafe extern "C" fn run(region: *mut c_void) {
    // SAFETY: see above; threads share it for reading.
    let region = unsafe { &*region.cast::<Region>() };
    let tasks = || {
        let mut done = 0;
        while let Some(run) = region.take() {
            done += run.len();
            run.for_each(region.task);
        }
        if thread::current().id() == region.caller {
            region.end.get_or_init(|| (Instant::now(), done));
        }
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(tasks)) {
        // The caller resumes the last panic. Those before it are dropped here, where nothing may unwind into C.
        let before = region.panic.lock().unwrap_or_else(PoisonError::into_inner).replace(panic);
        if let Some(before) = before {
            drop_payload(before);
        }
    }
}

/// libtorch's own, which the lookup finds in the order in which libtorch's is resolved.
fn find() -> Option<Parallel> {
    static FOUND: OnceLock<Option<Parallel>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let symbol = loaded(c"GOMP_parallel")?;
        // SAFETY: the function of this name has this signature wherever it is.
        Some(unsafe { std::mem::transmute::<*mut c_void, Parallel>(symbol) })
    })
}
