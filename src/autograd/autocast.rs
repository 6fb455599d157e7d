//! Autocast, in which operations of libtorch choose the kind that they compute in: products take half precision, losses
//! single precision. tch can set it and cannot ask for it.

use std::ffi::c_int;

use tch::Device;

unsafe extern "C" {
    fn tch_losses_autocasts(device: c_int) -> bool;
    fn tch_losses_set_autocast(device: c_int, enabled: bool);
}

/// libtorch's number for the type of a device; none of those that have no autocast.
fn code(device: Device) -> Option<c_int> {
    match device {
        Device::Cpu => Some(0),
        Device::Cuda(_) => Some(1),
        _ => None,
    }
}

/// Whether this thread is under autocast for such a device.
pub(crate) fn autocasts(device: Device) -> bool {
    // SAFETY: reads a number of this thread.
    code(device).is_some_and(|code| unsafe { tch_losses_autocasts(code) })
}

/// Calls `work` without autocast for such a device.
pub(crate) fn without_autocast<T>(device: Device, work: impl FnOnce() -> T) -> T {
    if !autocasts(device) {
        return work();
    }
    with_autocast(device, false, work)
}

/// Calls `work` with autocast for such a device, or without.
#[doc(hidden)]
pub fn with_autocast<T>(device: Device, enabled: bool, work: impl FnOnce() -> T) -> T {
    struct Restore(c_int, bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: sets a number of this thread.
            unsafe { tch_losses_set_autocast(self.0, self.1) };
        }
    }
    let Some(code) = code(device) else { return work() };
    let _restore = Restore(code, autocasts(device));
    // SAFETY: as above.
    unsafe { tch_losses_set_autocast(code, enabled) };
    work()
}
