//! Keeps small operations of libtorch on the calling thread.
//!
//! Some operations, and the matrix products of MKL, share even the smallest work among all threads, which then wait for
//! each other at the end. That takes microseconds on a quiet machine, and milliseconds where other processes use the
//! cores.

use std::ffi::c_int;

use super::contention;

/// From how many multiplications on a second thread is worth it.
const MANY: i64 = 1 << 20;

/// Up to how many multiplications stay on this thread while other processes use the cores. More of them take longer
/// alone than the others can be waited for.
const MANY_IN_CONTENTION: i64 = 1 << 28;
/// So many multiplications take as long as the loss of an element.
const OF_ELEMENT: i64 = 1 << 6;

/// Calls `compute`, whose libtorch operations do this number of `multiplications` altogether. They stay on this thread
/// where that is less than [`MANY`], and less than [`MANY_IN_CONTENTION`] where the engines' threads have been late.
pub(crate) fn small_work<T>(multiplications: i64, compute: impl FnOnce() -> T) -> T {
    let _guard = is_small(multiplications).then(Guard::new);
    compute()
}

fn is_small(multiplications: i64) -> bool {
    multiplications < MANY
        || multiplications < MANY_IN_CONTENTION && contention::is_high((multiplications / OF_ELEMENT) as usize)
}

/// Sets the number of threads of this thread's operations to one, and back when it is dropped. Holds the numbers
/// before.
struct Guard {
    omp: Option<c_int>,
    mkl: Option<c_int>,
}

impl Guard {
    fn new() -> Self {
        let threads = find::threads();
        // SAFETY: both functions set a number of this thread. OpenMP's is read before; MKL's is what its function
        // returns.
        unsafe {
            let omp = threads.omp.map(|(get, set)| {
                let before = get();
                set(1);
                before
            });
            Self { omp, mkl: threads.mkl.map(|set| set(1)) }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let threads = find::threads();
        // SAFETY: as above.
        unsafe {
            if let (Some((_, set)), Some(before)) = (threads.omp, self.omp) {
                set(before);
            }
            if let (Some(set), Some(before)) = (threads.mkl, self.mkl) {
                set(before);
            }
        }
    }
}

mod find {
    use std::ffi::{c_int, c_void};
    use std::sync::OnceLock;

    use crate::kernels::library::loaded;

    type Get = unsafe extern "C" fn() -> c_int;
    type Set = unsafe extern "C" fn(c_int);
    type Exchange = unsafe extern "C" fn(c_int) -> c_int;

    /// The functions with which libtorch's OpenMP and MKL get and set the number of threads of the calling thread.
    #[derive(Clone, Copy)]
    pub(super) struct Threads {
        pub(super) omp: Option<(Get, Set)>,
        pub(super) mkl: Option<Exchange>,
    }

    pub(super) fn threads() -> Threads {
        static FOUND: OnceLock<Threads> = OnceLock::new();
        *FOUND.get_or_init(|| {
            // SAFETY: functions of these names have these signatures wherever they are.
            unsafe {
                let (get, set) = (loaded(c"omp_get_max_threads"), loaded(c"omp_set_num_threads"));
                let get = get.map(|get| std::mem::transmute::<*mut c_void, Get>(get));
                let set = set.map(|set| std::mem::transmute::<*mut c_void, Set>(set));
                let mkl = loaded(c"MKL_Set_Num_Threads_Local");
                let mkl = mkl.map(|mkl| std::mem::transmute::<*mut c_void, Exchange>(mkl));
                Threads { omp: get.zip(set), mkl }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_threads_comes_back() {
        let threads = tch::get_num_threads();
        assert_eq!(small_work(1, tch::get_num_threads), 1);
        assert_eq!(small_work(MANY_IN_CONTENTION, tch::get_num_threads), threads);
        let _ = std::panic::catch_unwind(|| small_work(1, || panic!("on the way")));
        assert_eq!(tch::get_num_threads(), threads);
    }
}
