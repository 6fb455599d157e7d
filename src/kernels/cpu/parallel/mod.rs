//! Work on several threads: those of libtorch's OpenMP where they can be found, otherwise a pool of as many. Every
//! engine cuts its work into tasks and gives them to [`sum`], [`rows`], [`results`] or [`each`].
//!
//! OpenMP's threads spin for some milliseconds after each operation of libtorch, waiting for the next. Threads of our
//! own would share the cores with them.

mod alone;
mod contention;
mod openmp;
mod pool;

use std::ops::Range;
use std::sync::OnceLock;

pub(crate) use alone::small_work;

use super::simd;

/// How many elements one task has. Work of one task stays on the calling thread. Tasks depend on the size of the work
/// alone and never on the number of threads, so results do not depend on that either.
pub(super) const TASK: usize = 1 << 15;

/// The sum of what `work` returns for each task, a part of `0..length`, added up in the order of the parts. The parts
/// begin at multiples of `unit`.
pub(super) fn sum(length: usize, unit: usize, work: impl Fn(Range<usize>) -> f64 + Sync) -> f64 {
    sum_of(length, unit, &work)
}

/// [`sum`], compiled once for all kinds of work.
fn sum_of(length: usize, unit: usize, work: &(dyn Fn(Range<usize>) -> f64 + Sync)) -> f64 {
    let task = TASK.next_multiple_of(unit);
    let part = |index: usize| work(index * task..length.min((index + 1) * task));
    let tasks = length.div_ceil(task);
    if tasks <= 1 {
        return (0..tasks).map(part).sum();
    }
    results(tasks, length, part).into_iter().sum()
}

/// What `task` returns for each of `0..count`, in this order. `elements` is how many the tasks have together.
pub(super) fn results<T: Send + Sync>(count: usize, elements: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let results: Vec<OnceLock<T>> = (0..count).map(|_| OnceLock::new()).collect();
    each(count, elements, &|index| {
        results[index].get_or_init(|| task(index));
    });
    results.into_iter().filter_map(OnceLock::into_inner).collect()
}

/// [`sum`] for `count` rows of `width` elements: `work` gets ranges of rows.
pub(super) fn rows(count: usize, width: usize, work: impl Fn(Range<usize>) -> f64 + Sync) -> f64 {
    sum(count * width, width, |range| work(range.start / width..range.end / width))
}

/// Calls `task` for each of `0..count`. `elements` is how many the tasks have together. Uses as many threads as
/// libtorch does, but no more than there are tasks, and no more than one for each [`TASK`] elements.
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
