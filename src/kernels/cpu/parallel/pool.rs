//! A pool of our own threads (rayon's), for a libtorch without OpenMP.

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

/// The pool of this number of threads, which is made once. `None` where the system gives no threads.
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
