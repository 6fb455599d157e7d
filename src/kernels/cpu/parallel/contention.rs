//! Whether other processes keep the threads of this one from running. If so, small calls stay on their own thread for a
//! while.
//!
//! At the end of an OpenMP region all its threads wait for each other. Where a data loader or a compiler occupies the
//! core of one of them, that one comes milliseconds late, which is many times what a loss of some thousand elements
//! takes. So after such a wait, calls of that size use one thread for a time. Results do not depend on it, because the
//! tasks do not.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::openmp::Course;

/// A wait is normal up to the time that this many tasks take, plus this time.
const TASKS: u32 = 4;
const SHORT: Duration = Duration::from_millis(1);
/// Threads that rest since the last call have to be woken first, which takes up to milliseconds on a virtual machine.
const WAKING: Duration = Duration::from_millis(4);
/// For so long after a call its threads are awake.
const AWAKE: Duration = Duration::from_millis(1);
/// One late wait may be chance, or two; three within this time tell of another process.
const WINDOW: Duration = Duration::from_millis(50);
/// How many times as long as the wait the calls then stay on their thread. So the waits of later tries take a small
/// share of the time.
const PAUSE: u32 = 8;
/// The longest time that calls stay on their thread.
const LONGEST: Duration = Duration::from_millis(100);
/// Calls of more than this many times the elements of the call that waited use several threads nevertheless: a wait is
/// a smaller share of their time.
const LARGER: usize = 8;

/// Until when calls stay on their thread, in nanoseconds after the first call of [`now`]; 0 before any late wait.
static UNTIL: AtomicU64 = AtomicU64::new(0);
/// When the last call on several threads ended, and when the last late wait did, in the same time.
static ENDED: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);
/// When the one before that did.
static BEFORE: AtomicU64 = AtomicU64::new(0);
/// How many elements the call had that waited.
static ELEMENTS: AtomicUsize = AtomicUsize::new(0);

/// Whether a call of this number of elements stays on its thread.
pub(super) fn is_high(elements: usize) -> bool {
    let until = UNTIL.load(Ordering::Relaxed);
    until != 0 && elements <= ELEMENTS.load(Ordering::Relaxed).saturating_mul(LARGER) && now() < until
}

/// Records how long a call of this number of elements waited for its threads.
pub(super) fn note(elements: usize, course: Course) {
    let now = now();
    let rested = since(ENDED.swap(now, Ordering::Relaxed), now).saturating_sub(course.worked + course.waited);
    if !is_late(course, rested) {
        return;
    }
    let before = BEFORE.swap(LAST.swap(now, Ordering::Relaxed), Ordering::Relaxed);
    if since(before, now) > WINDOW {
        return;
    }
    let pause = (course.waited * PAUSE).min(LONGEST);
    ELEMENTS.store(elements, Ordering::Relaxed);
    UNTIL.store(now + pause.as_nanos() as u64, Ordering::Relaxed);
}

/// How long ago a moment is; without end where it is 0, since there was none.
fn since(moment: u64, now: u64) -> Duration {
    if moment == 0 { Duration::MAX } else { Duration::from_nanos(now.saturating_sub(moment)) }
}

/// Whether the wait was longer than a wait for last tasks and threads that had `rested` for this long, and more than
/// half as long as the work of the caller.
fn is_late(Course { worked, tasks, waited }: Course, rested: Duration) -> bool {
    let of_one = worked / u32::try_from(tasks.max(1)).unwrap_or(u32::MAX);
    let waking = if rested < AWAKE { SHORT } else { WAKING };
    waited > (of_one * TASKS + waking).max(worked / 2)
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
        let (awake, asleep) = (Duration::ZERO, Duration::from_secs(1));
        assert!(is_late(course(100, 10, 2000), awake));
        assert!(!is_late(course(100, 10, 900), awake), "a short one");
        assert!(!is_late(course(100, 10, 2000), asleep), "as long as it takes to wake a thread");
        assert!(is_late(course(100, 10, 6000), asleep));
        assert!(!is_late(course(3000, 1, 4000), awake), "the last task of another thread");
        assert!(!is_late(course(20_000, 100, 4000), awake), "a small share of the call");
        assert!(is_late(course(0, 0, 2000), awake), "the caller had no task");
    }
}
