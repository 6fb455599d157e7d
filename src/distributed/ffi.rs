//! The Rust side of `group.cpp`: a group of processes, without a guard against ranks that disagree.

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

/// The group of C++.
#[repr(C)]
struct RawGroup {
    _private: [u8; 0],
}

/// Takes an error text from C++; see [`report`].
type Report = unsafe extern "C" fn(*mut c_void, *const c_char, usize);

unsafe extern "C" {
    fn tch_losses_group_connect(
        host: *const c_char,
        port: u16,
        serves: bool,
        world: c_int,
        timeout_ms: i64,
        group: *mut *mut RawGroup,
        report: Report,
        context: *mut c_void,
    ) -> bool;
    fn tch_losses_group_join(
        group: *mut RawGroup,
        name: *const c_char,
        rank: c_int,
        world: c_int,
        timeout_ms: i64,
        report: Report,
        context: *mut c_void,
    ) -> bool;
    fn tch_losses_group_close(group: *mut RawGroup, report: Report, context: *mut c_void) -> bool;
    fn tch_losses_group_drop(group: *mut RawGroup);
    fn tch_losses_group_sign(group: *mut RawGroup, key: *const c_char, report: Report, context: *mut c_void) -> bool;
    fn tch_losses_group_has_sign(
        group: *mut RawGroup,
        key: *const c_char,
        there: *mut bool,
        report: Report,
        context: *mut c_void,
    ) -> bool;
    fn tch_losses_group_claim(
        group: *mut RawGroup,
        key: *const c_char,
        value: *const c_char,
        take: Report,
        there: *mut c_void,
        report: Report,
        context: *mut c_void,
    ) -> bool;
    fn tch_losses_group_all_reduce(
        group: *mut RawGroup,
        tensor: *mut C_tensor,
        operation: c_int,
        report: Report,
        context: *mut c_void,
    ) -> bool;
    fn tch_losses_group_all_gather(
        group: *mut RawGroup,
        outputs: *const *mut C_tensor,
        count: usize,
        input: *mut C_tensor,
        report: Report,
        context: *mut c_void,
    ) -> bool;
    fn tch_losses_group_broadcast(
        group: *mut RawGroup,
        tensor: *mut C_tensor,
        root: i64,
        report: Report,
        context: *mut c_void,
    ) -> bool;
    fn tch_losses_group_exchange(
        group: *mut RawGroup,
        own: *mut C_tensor,
        to: c_int,
        other: *mut C_tensor,
        from: c_int,
        report: Report,
        context: *mut c_void,
    ) -> bool;
}

/// What C++ said of a call that failed.
type Outcome<T> = Result<T, String>;

/// The group of C++, which this owns, or null, of which C++ says that it is closed. Its methods are called by one thread
/// at a time.
#[derive(Debug)]
pub(super) struct Processes(*mut RawGroup);

// SAFETY: the group of C++ belongs to no thread: c10d's groups and stores are reference-counted atomically, and each of
// their calls may come from another thread.
unsafe impl Send for Processes {}

impl Processes {
    /// Connects to the store of rank 0, or is it.
    pub(super) fn f_connect((host, port): (&str, u16), serves: bool, world: usize, timeout: Duration) -> Outcome<Self> {
        let (host, world, timeout) = (f_text(host)?, f_int(world)?, millis(timeout));
        let mut group = std::ptr::null_mut();
        f_call(|report, context| {
            // SAFETY: the text ends with 0 and outlives the call, which writes a group that the caller owns.
            unsafe {
                tch_losses_group_connect(host.as_ptr(), port, serves, world, timeout, &raw mut group, report, context)
            }
        })?;
        Ok(Self(group))
    }

    /// No group: every call is an error.
    pub(super) fn closed() -> Self {
        Self(std::ptr::null_mut())
    }

    /// Connects to all other ranks, in the group of this name.
    pub(super) fn f_join(&self, name: &str, rank: usize, world: usize, timeout: Duration) -> Outcome<()> {
        let (name, rank, world, timeout) = (f_text(name)?, f_int(rank)?, f_int(world)?, millis(timeout));
        f_call(|report, context| {
            // SAFETY: the group is that of `f_connect`, and the text ends with 0.
            unsafe { tch_losses_group_join(self.0, name.as_ptr(), rank, world, timeout, report, context) }
        })
    }

    /// Closes the connections to the other ranks.
    pub(super) fn f_close(&self) -> Outcome<()> {
        // SAFETY: the group is that of `f_connect`. What is called after this finds it closed.
        f_call(|report, context| unsafe { tch_losses_group_close(self.0, report, context) })
    }

    /// Leaves a sign for the other ranks.
    pub(super) fn f_sign(&self, key: &str) -> Outcome<()> {
        let key = f_text(key)?;
        // SAFETY: the group is that of `f_connect`, and the text ends with 0.
        f_call(|report, context| unsafe { tch_losses_group_sign(self.0, key.as_ptr(), report, context) })
    }

    /// Whether another rank has left this sign.
    pub(super) fn f_has_sign(&self, key: &str) -> Outcome<bool> {
        let (key, mut there) = (f_text(key)?, false);
        f_call(|report, context| {
            // SAFETY: as in `f_sign`; `there` outlives the call.
            unsafe { tch_losses_group_has_sign(self.0, key.as_ptr(), &raw mut there, report, context) }
        })?;
        Ok(there)
    }

    /// Writes `value` where no rank has written one at this key. Returns the value that is there.
    pub(super) fn f_claim(&self, key: &str, value: &str) -> Outcome<String> {
        let (key, value, mut there) = (f_text(key)?, f_text(value)?, String::new());
        let place = (&raw mut there).cast();
        f_call(|text, context| {
            // SAFETY: as in `f_sign`; `there` outlives the call, which writes to it by `report`, as to the error.
            unsafe { tch_losses_group_claim(self.0, key.as_ptr(), value.as_ptr(), report, place, text, context) }
        })?;
        Ok(there)
    }

    /// Reduces `tensor` in place. It is a plain contiguous one of the same shape and kind on all ranks, on the CPU
    /// or, with NCCL, on a GPU of each.
    pub(super) fn f_all_reduce(&self, tensor: &mut Tensor, operation: c_int) -> Outcome<()> {
        let tensor = tensor.as_mut_ptr();
        // SAFETY: the group is that of `f_connect`, and the tensor is borrowed for the call, which waits for its end.
        f_call(|report, context| unsafe { tch_losses_group_all_reduce(self.0, tensor, operation, report, context) })
    }

    /// Writes the `input` of each rank into the output of its place. All are plain contiguous tensors on one device, of the
    /// same shape and kind on all ranks.
    pub(super) fn f_all_gather(&self, outputs: &mut [Tensor], input: &mut Tensor) -> Outcome<()> {
        let outputs: Vec<*mut C_tensor> = outputs.iter_mut().map(Tensor::as_mut_ptr).collect();
        let input = input.as_mut_ptr();
        // SAFETY: as in `f_all_reduce`; the pointers are those of so many tensors.
        f_call(|report, context| unsafe {
            tch_losses_group_all_gather(self.0, outputs.as_ptr(), outputs.len(), input, report, context)
        })
    }

    /// Writes the tensor of the rank `root` into those of all others, under the conditions of `f_all_reduce`.
    pub(super) fn f_broadcast(&self, tensor: &mut Tensor, root: usize) -> Outcome<()> {
        let (tensor, root) = (tensor.as_mut_ptr(), i64::from(f_int(root)?));
        // SAFETY: as in `f_all_reduce`.
        f_call(|report, context| unsafe { tch_losses_group_broadcast(self.0, tensor, root, report, context) })
    }

    /// Sends `own` to the rank `to`, and writes what the rank `from` sends into `other`, which has its size; one of no
    /// elements is not sent. Both are plain contiguous tensors on one device.
    pub(super) fn f_exchange(
        &self,
        (own, to): (&mut Tensor, usize),
        (other, from): (&mut Tensor, usize),
    ) -> Outcome<()> {
        let (to, from) = (f_int(to)?, f_int(from)?);
        let pointer = |tensor: &mut Tensor| match tensor.numel() {
            0 => std::ptr::null_mut(),
            _ => tensor.as_mut_ptr(),
        };
        let (own, other) = (pointer(own), pointer(other));
        // SAFETY: as in `f_all_reduce`; a null pointer is a tensor of nothing.
        f_call(|report, context| unsafe { tch_losses_group_exchange(self.0, own, to, other, from, report, context) })
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // SAFETY: the group is that of `f_connect`, and this is the last use of it.
        unsafe { tch_losses_group_drop(self.0) };
    }
}

/// Calls C++, which reports why it returns false.
fn f_call(call: impl FnOnce(Report, *mut c_void) -> bool) -> Outcome<()> {
    let mut message = String::new();
    // `message` outlives the call, and `report` is only called during it.
    if call(report, (&raw mut message).cast()) { Ok(()) } else { Err(message) }
}

/// Takes an error text from C++.
///
/// # Safety
/// `message` is a `String`, that of `f_call` or of `f_claim`, and `bytes` are `length` readable bytes.
unsafe extern "C" fn report(message: *mut c_void, bytes: *const c_char, length: usize) {
    // SAFETY: see above.
    let (message, bytes) =
        unsafe { (&mut *message.cast::<String>(), std::slice::from_raw_parts(bytes.cast(), length)) };
    *message = String::from_utf8_lossy(bytes).into_owned();
}

fn f_text(text: &str) -> Outcome<CString> {
    CString::new(text).map_err(|_| format!("{text:?} has a zero byte"))
}

fn f_int(number: usize) -> Outcome<c_int> {
    c_int::try_from(number).map_err(|_| format!("{number} ranks are too many"))
}

fn millis(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX)
}
