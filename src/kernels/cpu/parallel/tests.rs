use std::sync::Mutex;

use super::*;

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// A number of elements that is worth all threads.
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
    all(|count, task| assert!(openmp::each(3, count, task).is_some(), "no OpenMP in this libtorch"));
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
