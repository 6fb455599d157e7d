//! Work on several threads: those of libtorch's OpenMP where they can be had, otherwise a pool of as many.
//!
//! OpenMP's threads spin for some milliseconds after each operation of libtorch, waiting for the next. Threads of our own
//! would share the processor with them.

use std::ops::Range;
use std::sync::OnceLock;

use super::simd;

/// How many elements one task has. Small work stays on the calling thread, and results do not depend on the number of
/// threads, since the tasks do not.
pub(super) const TASK: usize = 1 << 15;

/// The sum, in the order of the elements, of what `work` returns for each part of `0..length`. The parts are a multiple of
/// `unit` long.
pub(super) fn sum(length: usize, unit: usize, work: impl Fn(Range<usize>) -> f64 + Sync) -> f64 {
    sum_of(length, unit, &work)
}

/// The same, compiled once for all kinds of work.
fn sum_of(length: usize, unit: usize, work: &(dyn Fn(Range<usize>) -> f64 + Sync)) -> f64 {
    let task = TASK.next_multiple_of(unit);
    let part = |index: usize| work(index * task..length.min((index + 1) * task));
    let tasks = length.div_ceil(task);
    if tasks <= 1 {
        return (0..tasks).map(part).sum();
    }
    results(tasks, length, part).into_iter().sum()
}

/// What `task` returns for each of `0..count`, which together have so many `elements`.
pub(super) fn results<T: Send + Sync>(count: usize, elements: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let results: Vec<OnceLock<T>> = (0..count).map(|_| OnceLock::new()).collect();
    each(count, elements, &|index| {
        results[index].get_or_init(|| task(index));
    });
    results.into_iter().filter_map(OnceLock::into_inner).collect()
}

/// The same for `count` rows of `width` elements.
pub(super) fn rows(count: usize, width: usize, work: impl Fn(Range<usize>) -> f64 + Sync) -> f64 {
    sum(count * width, width, |range| work(range.start / width..range.end / width))
}

/// Calls `task` for each of `0..count`, on as many threads as libtorch uses, or fewer where all tasks together have less than that
/// many times the `elements` of one.
pub(super) fn each(count: usize, elements: usize, task: &(dyn Fn(usize) + Sync)) {
    let task = &|index| {
        task(index);
        simd::fence();
    };
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).min(count).min(elements.div_ceil(TASK));
    if threads < 2 {
        (0..count).for_each(task);
    } else if !openmp::each(threads, count, task) {
        pool::each(threads, count, task);
    }
}

mod openmp {
    use std::any::Any;
    use std::ffi::{c_uint, c_void};
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError};

    use crate::autograd::drop_payload;

    /// `GOMP_parallel`, the function that compilers call for a parallel region; LLVM's OpenMP has it as well.
    type Parallel = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

    struct Region<'a> {
        task: &'a (dyn Fn(usize) + Sync),
        count: usize,
        next: AtomicUsize,
        panic: Mutex<Option<Box<dyn Any + Send>>>,
    }

    /// Calls `task` for each of `0..count`; `false` where libtorch's OpenMP cannot be found.
    pub(super) fn each(threads: usize, count: usize, task: &(dyn Fn(usize) + Sync)) -> bool {
        let Some(parallel) = find() else { return false };
        let region = Region { task, count, next: AtomicUsize::new(0), panic: Mutex::new(None) };
        // SAFETY: `run` gets the region, which outlives the call: it returns when all threads are done.
        unsafe { parallel(run, std::ptr::from_ref(&region).cast_mut().cast(), threads as c_uint, 0) };
        if let Some(panic) = region.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
        true
    }

    /// # Safety
    /// `region` is a `Region`.
    unsafe extern "C" fn run(region: *mut c_void) {
        // SAFETY: see above; threads share it for reading.
        let region = unsafe { &*region.cast::<Region>() };
        let tasks = || {
            loop {
                let index = region.next.fetch_add(1, Ordering::Relaxed);
                if index >= region.count {
                    return;
                }
                (region.task)(index);
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(tasks)) {
            // The last one is told of; those before it are dropped here, where nothing may unwind.
            let before = region.panic.lock().unwrap_or_else(PoisonError::into_inner).replace(panic);
            if let Some(before) = before {
                drop_payload(before);
            }
        }
    }

    #[cfg(unix)]
    fn find() -> Option<Parallel> {
        static FOUND: OnceLock<Option<Parallel>> = OnceLock::new();
        *FOUND.get_or_init(|| {
            // SAFETY: looks a name up among the libraries of the process, in the order in which libtorch's own is resolved;
            // the function of this name has this signature wherever it is.
            unsafe {
                let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr());
                (!symbol.is_null()).then(|| std::mem::transmute::<*mut c_void, Parallel>(symbol))
            }
        })
    }

    #[cfg(not(unix))]
    fn find() -> Option<Parallel> {
        None
    }
}

mod pool {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex, OnceLock, PoisonError};

    use rayon::prelude::*;
    use rayon::{ThreadPool, ThreadPoolBuilder};

    pub(super) fn each(threads: usize, count: usize, task: &(dyn Fn(usize) + Sync)) {
        match of(threads) {
            Some(pool) => pool.install(|| (0..count).into_par_iter().for_each(task)),
            None => (0..count).for_each(task),
        }
    }

    /// A pool of so many threads; none where the system has no threads to give.
    fn of(threads: usize) -> Option<Arc<ThreadPool>> {
        static POOLS: OnceLock<Mutex<HashMap<usize, Arc<ThreadPool>>>> = OnceLock::new();
        let mut pools = POOLS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&threads) {
            return Some(pool.clone());
        }
        let named = ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("tch-losses-{index}"));
        let pool = Arc::new(named.build().ok()?);
        pools.insert(threads, pool.clone());
        Some(pool)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    type Task<'a> = &'a (dyn Fn(usize) + Sync);

    /// Enough for all threads.
    const MANY: usize = usize::MAX;

    fn all(each: impl Fn(usize, Task)) {
        let seen = Mutex::new(Vec::new());
        each(100, &|index| seen.lock().unwrap().push(index));
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn each_task_runs_once() {
        all(|count, task| each(count, MANY, task));
        all(|count, task| each(count, 1, task));
        all(|count, task| assert!(openmp::each(3, count, task), "no OpenMP in this libtorch"));
        all(|count, task| pool::each(3, count, task));
    }

    #[test]
    fn a_panic_comes_out() {
        let panics = |each: &dyn Fn(Task)| {
            let work = || each(&|index| assert!(index != 7, "seven"));
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err()
        };
        assert!(panics(&|task| {
            openmp::each(3, 20, task);
        }));
        assert!(panics(&|task| pool::each(3, 20, task)));
        all(|count, task| each(count, MANY, task));
    }

    #[test]
    fn the_sum_is_that_of_the_parts() {
        let numbers = |range: Range<usize>| range.map(|i| i as f64).sum::<f64>();
        for length in [0, 1, TASK, TASK + 1, 5 * TASK + 17] {
            assert_eq!(sum(length, 1024, numbers), numbers(0..length));
        }
    }
}
