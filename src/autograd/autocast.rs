//! Autocast, in which operations of libtorch choose the kind that they compute in: products take half precision, losses
//! single precision. tch can set it and cannot ask for it.

use std::ffi::c_int;

use tch::{Device, Kind, Tensor};

use super::header;
use crate::LossError;

unsafe extern "C" {
    fn tch_losses_autocast(device: c_int, kind: *mut c_int) -> bool;
    fn tch_losses_set_autocast(device: c_int, enabled: bool, kind: c_int);
}

/// libtorch's number for the type of a device; none of those that have no autocast.
fn code(device: Device) -> Option<c_int> {
    match device {
        Device::Cpu => Some(0),
        Device::Cuda(_) => Some(1),
        _ => None,
    }
}

/// Autocast of a thread for a type of device.
#[derive(Clone, Copy)]
struct State {
    enabled: bool,
    /// libtorch's number for the kind that products are computed in.
    kind: c_int,
}

impl State {
    fn of(device: c_int) -> Self {
        let mut kind = 0;
        // SAFETY: reads two numbers of this thread, and writes one to `kind`.
        let enabled = unsafe { tch_losses_autocast(device, &raw mut kind) };
        Self { enabled, kind }
    }

    fn set(self, device: c_int) {
        // SAFETY: sets two numbers of this thread; the kind is one that libtorch has named, or of `header::code`.
        unsafe { tch_losses_set_autocast(device, self.enabled, self.kind) };
    }
}

/// Whether this thread is under autocast for such a device.
pub(crate) fn autocasts(device: Device) -> bool {
    code(device).is_some_and(|code| State::of(code).enabled)
}

/// The kind that this thread computes products of such tensors in, where it is under autocast, which leaves double
/// precision alone.
pub(crate) fn autocast_kind(tensor: &Tensor) -> Result<Option<Kind>, LossError> {
    let state = code(tensor.device()).map(State::of).filter(|state| state.enabled);
    let is = |kind: &Kind| state.is_some_and(|state| header::code(*kind) == Some(state.kind));
    let kind = [Kind::Half, Kind::BFloat16, Kind::Float].into_iter().find(is);
    Ok(if kind.is_some() && tensor.f_kind()? != Kind::Double { kind } else { None })
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
    with_state(device, |state| State { enabled, ..state }, work)
}

/// Calls `work` with autocast for such a device, whose products are computed in this kind, or without.
#[doc(hidden)]
pub fn with_autocast_to<T>(device: Device, kind: Option<Kind>, work: impl FnOnce() -> T) -> T {
    let kind = kind.and_then(header::code);
    with_state(device, |state| State { enabled: kind.is_some(), kind: kind.unwrap_or(state.kind) }, work)
}

fn with_state<T>(device: Device, change: impl FnOnce(State) -> State, work: impl FnOnce() -> T) -> T {
    struct Restore(c_int, State);
    impl Drop for Restore {
        fn drop(&mut self) {
            self.1.set(self.0);
        }
    }
    let Some(code) = code(device) else { return work() };
    let restore = Restore(code, State::of(code));
    change(restore.1).set(code);
    work()
}
