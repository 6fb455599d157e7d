//! Whether other processes keep the threads of this one from running.
//!
//! At the end of a region its threads wait for each other. Where a data loader or a compiler has the core of one, that
//! one comes milliseconds later, which is many times what a loss of some thousand elements takes. So for a while after
//! such a wait, calls of that size stay on their own thread. Results do not depend on it, as tasks are cut by size alone.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::openmp::Course;

/// Threads that end together differ by so many tasks, and by the time that it takes to wake them.
const TASKS: u32 = 4;
const WAKING: Duration = Duration::from_micros(100);
/// How many times as long as the wait calls stay on their thread: what the next try costs is a small share of that.
const PAUSE: u32 = 20;
const LONGEST: Duration = Duration::from_millis(500);
/// Calls of more than so many times the elements are tried all the same: their waits are a smaller share of them.
const LARGER: usize = 8;

/// In nanoseconds after the first look.
static UNTIL: AtomicU64 = AtomicU64::new(0);
static ELEMENTS: AtomicUsize = AtomicUsize::new(0);

/// Whether a call of so many elements stays on its thread.
pub(super) fn is_high(elements: usize) -> bool {
    let until = UNTIL.load(Ordering::Relaxed);
    until != 0 && elements <= ELEMENTS.load(Ordering::Relaxed).saturating_mul(LARGER) && now() < until
}

/// Takes note of how long a call of so many elements waited for its threads.
pub(super) fn note(elements: usize, course: Course) {
    if !is_late(course) {
        return;
    }
    let pause = (course.waited * PAUSE).min(LONGEST);
    ELEMENTS.store(elements, Ordering::Relaxed);
    UNTIL.store(now() + pause.as_nanos() as u64, Ordering::Relaxed);
}

/// Whether the wait was longer than that for a last task, and a large share of the call.
fn is_late(Course { worked, tasks, waited }: Course) -> bool {
    let of_one = worked / u32::try_from(tasks.max(1)).unwrap_or(u32::MAX);
    waited > (of_one * TASKS + WAKING).max(worked / 2)
}

fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(worked: u64, tasks: usize, waited: u64) -> Course {
        Course { worked: Duration::from_micros(worked), tasks, waited: Duration::from_micros(waited) }
    }

    #[test]
    fn a_wait_is_late_beside_the_work() {
        assert!(is_late(course(100, 10, 4000)));
        assert!(!is_late(course(100, 10, 100)), "as long as it takes to wake a thread");
        assert!(!is_late(course(3000, 1, 4000)), "the last task of another thread");
        assert!(!is_late(course(20_000, 100, 4000)), "a small share of the call");
        assert!(is_late(course(0, 0, 1000)), "the caller had no task");
    }
}
