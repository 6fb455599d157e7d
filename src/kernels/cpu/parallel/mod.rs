//! Work on several threads: those of libtorch's OpenMP where they can be had, otherwise a pool of as many.
//!
//! OpenMP's threads spin for some milliseconds after each operation of libtorch, waiting for the next. Threads of our own
//! would share the processor with them.

mod alone;
mod contention;
mod openmp;
mod pool;

use std::ops::Range;
use std::sync::OnceLock;

pub(crate) use alone::small_work;

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
    if threads < 2 || contention::is_high(elements) {
        (0..count).for_each(task);
        return;
    }
    match openmp::each(threads, count, task) {
        Some(course) => contention::note(elements, course),
        None => pool::each(threads, count, task),
    }
}

#[cfg(test)]
mod tests;
