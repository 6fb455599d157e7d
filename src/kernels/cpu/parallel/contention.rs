//! Whether other processes keep the threads of this one from running.
//!
//! At the end of a parallel region its threads wait for each other. Where a data loader or a compiler occupies the core
//! of one of them, that one comes milliseconds late, which is many times what a loss of some thousand elements takes.
//! So after such waits the next calls of about that size stay on their own thread. Results do not depend on it, since
//! tasks are cut by size alone.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::openmp::Course;

/// A wait is normal up to the time that this many tasks take, plus this time.
const TASKS: u32 = 4;
const SHORT: Duration = Duration::from_millis(1);
/// Threads that rest since the last call have to be woken first, which takes up to milliseconds on a virtual machine.
const WAKING: Duration = Duration::from_millis(4);
/// For so long after a call its threads are awake.
const AWAKE: Duration = Duration::from_millis(1);
/// A late wait adds this to the score, and each call takes an eighth of the score away. One late wait may be chance; two
/// in about six calls are above the limit, and tell of another process.
const LATE: u32 = 1 << 10;
const LIMIT: u32 = LATE + LATE / 2;
/// How many times as long as the wait the calls then stay on their thread, and how many calls do at least. So the waits
/// of later tries take a small share of the time.
const PAUSE: u32 = 8;
const CALLS: u32 = 32;
/// Calls of more than this many times the elements of the call that waited use several threads nevertheless: a wait is
/// a smaller share of their time.
const LARGER: usize = 8;

/// How many calls are to stay on their thread at least, and until when they do, in nanoseconds after the first call of
/// [`now`].
static LEFT: AtomicU32 = AtomicU32::new(0);
static UNTIL: AtomicU64 = AtomicU64::new(0);
/// How many elements the call had that waited.
static ELEMENTS: AtomicUsize = AtomicUsize::new(0);
/// How many calls of late were late, see [`LATE`].
static SCORE: AtomicU32 = AtomicU32::new(0);
/// When the last call on several threads ended, in the same time.
static ENDED: AtomicU64 = AtomicU64::new(0);

/// Whether a call of this number of elements stays on its thread. The numbers are read one by one: where threads call at
/// a time, one more or fewer of them stays.
pub(super) fn is_high(elements: usize) -> bool {
    let left = LEFT.load(Ordering::Relaxed);
    let until = UNTIL.load(Ordering::Relaxed);
    let paused = left > 0 || until != 0 && now() < until;
    if !paused || elements > ELEMENTS.load(Ordering::Relaxed).saturating_mul(LARGER) {
        return false;
    }
    LEFT.store(left.saturating_sub(1), Ordering::Relaxed);
    true
}

/// Records how long a call of this number of elements waited for its threads.
pub(super) fn note(elements: usize, course: Course) {
    let now = now();
    let rested = since(ENDED.swap(now, Ordering::Relaxed), now).saturating_sub(course.worked + course.waited);
    let late = is_late(course, rested);
    let score = next_score(SCORE.load(Ordering::Relaxed), late);
    SCORE.store(score, Ordering::Relaxed);
    if !late || score < LIMIT {
        return;
    }
    ELEMENTS.store(elements, Ordering::Relaxed);
    UNTIL.store(now + (course.waited * PAUSE).as_nanos() as u64, Ordering::Relaxed);
    LEFT.store(CALLS, Ordering::Relaxed);
}

/// The score after one more call. It has a bound, so that it falls below the limit soon after the waits end.
fn next_score(score: u32, late: bool) -> u32 {
    let kept = score - score.div_ceil(8);
    if late { (kept + LATE).min(2 * LIMIT) } else { kept }
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
    fn two_late_calls_among_few_tell_of_another_process() {
        let after = |calls: &[bool]| calls.iter().fold(0, |score, late| next_score(score, *late));
        assert!(after(&[true]) < LIMIT, "one may be chance");
        assert!(after(&[true, true]) >= LIMIT);
        assert!(after(&[true, false, false, false, true]) >= LIMIT);
        assert!(after(&[true, false, false, false, false, false, false, false, true]) < LIMIT);
        let (many, none) = (after(&[true; 100]), [false; 16]);
        assert!(none.iter().fold(many, |score, late| next_score(score, *late)) < LIMIT / 2);
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
