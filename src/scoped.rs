//! A value of a thread that is another one for the time of a call.

use std::cell::Cell;
use std::thread::LocalKey;

/// Calls `work` while a value of this thread is another one. It is set back after a panic, too.
pub(crate) fn replaced<V: Copy + 'static, T>(
    cell: &'static LocalKey<Cell<V>>,
    value: V,
    work: impl FnOnce() -> T,
) -> T {
    struct Restore<V: Copy + 'static>(&'static LocalKey<Cell<V>>, V);
    impl<V: Copy> Drop for Restore<V> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(cell, cell.replace(value));
    work()
}
