//! How often a call looks at numbers in tensors, for which the host waits where they are on a GPU.
//!
//! A GPU computes behind the host, which queues work for it. A loss that looks at a number stops the queue until all
//! work before it is done. No GPU is needed to count that: the losses compute here on the CPU by the operations that
//! those on CUDA are computed by.

mod common;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_void};
use std::sync::OnceLock;

use common::Golden;
use parity::adapters;
use parity::compare::Verdict;
use parity::eval::{evaluate, run_adapter};
use tch::Device;
use tch_losses::{InvalidValues, like_cuda};

thread_local! {
    static LOOKS: Cell<usize> = const { Cell::new(0) };
}

/// The function of libtorch that one of this name stands in front of.
fn next(found: &'static OnceLock<usize>, name: &CStr) -> usize {
    LOOKS.set(LOOKS.get() + 1);
    *found.get_or_init(|| {
        // SAFETY: a look for a name.
        let symbol = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        assert!(!symbol.is_null(), "this libtorch has no {name:?}");
        symbol as usize
    })
}

/// Stands in front of operations that return an object, whose place is the first argument of the machine's call.
macro_rules! counted {
    ($($name:ident($($argument:ident),*) -> $result:ty;)*) => {
        $(
            /// # Safety
            /// As for the function of this name.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: *const c_void),*) -> $result {
                type Call = unsafe extern "C" fn($(counted!(@pointer $argument)),*) -> $result;
                static NEXT: OnceLock<usize> = OnceLock::new();
                const NAME: &str = concat!(stringify!($name), "\0");
                let name = CStr::from_bytes_with_nul(NAME.as_bytes()).unwrap();
                // SAFETY: the function of this name has this signature.
                let call = unsafe { std::mem::transmute::<usize, Call>(next(&NEXT, name)) };
                // SAFETY: as the caller has it.
                unsafe { call($($argument),*) }
            }
        )*
    };
    (@pointer $argument:ident) => { *const c_void };
}

counted! {
    // item, and what it calls.
    _ZN2at4_ops4item4callERKNS_6TensorE(result, tensor) -> *const c_void;
    _ZN2at4_ops19_local_scalar_dense4callERKNS_6TensorE(result, tensor) -> *const c_void;
    // Results whose size depends on the numbers.
    _ZN2at4_ops7nonzero4callERKNS_6TensorE(result, tensor) -> *const c_void;
    _ZN2at4_ops13masked_select4callERKNS_6TensorES4_(result, tensor, mask) -> *const c_void;
    // Comparisons whose result is on the host.
    _ZN2at4_ops10is_nonzero4callERKNS_6TensorE(tensor) -> bool;
    _ZN2at4_ops5equal4callERKNS_6TensorES4_(tensor, other) -> bool;
}

/// How often `call` looks at numbers.
fn looks<T>(call: impl FnOnce() -> T) -> usize {
    let before = LOOKS.get();
    like_cuda(call);
    LOOKS.get() - before
}

/// Losses that look at numbers, by their name, and why. A copy of a whole tensor to the host is not counted; CTC, N-pairs
/// and the Hausdorff loss make one, and say so on their pages.
const LOOKING: &[(&str, &str)] = &[
    ("AdaptiveLogSoftmaxWithLoss", "the rows of a cluster are chosen, as in PyTorch"),
    ("DiceFocalLoss", "not the loss, but its adapter, which makes one mask for each class"),
    ("DiceFocalLoss (generalised)", "as above"),
    ("MultiLabelMarginLoss", "libtorch's operation for the CPU looks for the largest class; that for CUDA does not"),
    ("unreduced losses (pytorch-metric-learning)", "how many losses there are depends on the labels"),
];

/// One test, since the default for invalid values is one of the process.
#[test]
fn losses_on_cuda_do_not_wait_and_equal_the_golden_results() {
    let golden = Golden::read();
    let mut looking = BTreeMap::<&str, (usize, &str)>::new();
    for case in &golden.cases {
        let name = adapters::find(&case.reference).map_or("", |adapter| adapter.name);
        let count = looks(|| evaluate([case], &golden.tensors, Device::Cpu, &run_adapter, || ()).unwrap());
        if count > 0 {
            looking.entry(name).or_insert((0, &case.id)).0 += 1;
        }
    }
    let listed: BTreeSet<&str> = LOOKING.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = looking.keys().copied().collect();
    assert_eq!(found, listed, "cases that look, of each loss, and one of them: {looking:#?}");

    // An invalid value is an error that is asked for, or one of the call.
    for mode in [InvalidValues::Error, InvalidValues::ErrorAtOnce] {
        InvalidValues::set_default(mode);
        let verdicts = like_cuda(|| golden.verdicts(&run_adapter));
        let failed: Vec<_> = verdicts.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Failed(_))).collect();
        assert!(failed.is_empty(), "{mode:?}: {} of {} cases differ: {failed:#?}", failed.len(), golden.cases.len());
    }
}

#[test]
fn a_look_is_counted() {
    let tensor = tch::Tensor::from_slice(&[1.0, 0.0]);
    assert!(looks(|| tensor.double_value(&[0])) > 0);
    assert!(looks(|| tensor.nonzero()) > 0);
    assert!(looks(|| tensor.masked_select(&tensor.gt(0.0))) > 0);
    assert!(looks(|| tensor.equal(&tensor)) > 0);
}
