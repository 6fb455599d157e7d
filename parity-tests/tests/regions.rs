//! How many parallel regions of OpenMP a call starts.
//!
//! At the end of a region all its threads wait for each other. Beside a busy process one of them may have no core for
//! milliseconds, so that a small loss must not start any, and a large one few.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use parity::bench::ours::Ours;
use parity::bench::workloads::{Dtype, Size, workloads};

static REGIONS: AtomicUsize = AtomicUsize::new(0);

type Parallel = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// Stands in front of the function of this name in libgomp, which libtorch calls for each of its regions.
///
/// # Safety
/// As for that one.
#[unsafe(no_mangle)]
unsafe extern "C" fn GOMP_parallel(
    run: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
    threads: c_uint,
    flags: c_uint,
) {
    static REAL: OnceLock<Parallel> = OnceLock::new();
    let real = REAL.get_or_init(|| {
        // SAFETY: the next function of this name is that of libgomp.
        unsafe {
            let symbol = libc::dlsym(libc::RTLD_NEXT, c"GOMP_parallel".as_ptr());
            assert!(!symbol.is_null(), "this libtorch has no OpenMP");
            std::mem::transmute::<*mut c_void, Parallel>(symbol)
        }
    });
    if threads_of(threads) > 1 {
        REGIONS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: as the caller has it.
    unsafe { real(run, data, threads, flags) };
}

/// How many threads a region has that asks for this number; 0 asks for as many as there may be. A region of one has
/// nobody to wait for.
fn threads_of(asked: c_uint) -> c_uint {
    static MOST: OnceLock<unsafe extern "C" fn() -> c_int> = OnceLock::new();
    if asked != 0 {
        return asked;
    }
    let most = MOST.get_or_init(|| {
        // SAFETY: libgomp has the function of this name and signature.
        unsafe {
            let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"omp_get_max_threads".as_ptr());
            assert!(!symbol.is_null(), "this libtorch has no OpenMP");
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(symbol)
        }
    });
    // SAFETY: it reads a number of this thread.
    unsafe { most() }.unsigned_abs()
}

/// How many regions of several threads `call` starts.
fn regions<T>(call: impl Fn() -> Result<T>) -> Result<usize> {
    call()?;
    let before = REGIONS.load(Ordering::Relaxed);
    call()?;
    Ok(REGIONS.load(Ordering::Relaxed) - before)
}

/// Losses of the table whose backward pass starts regions for small work: the part of the name that tells them, and why.
const STARTED: &[(&str, &str)] = &[
    ("BarlowTwinsLoss", "the backward function of libtorch's batch normalisation"),
    ("LinearCrossEntropy", "the backward function of libtorch's linear layer"),
];

#[test]
fn small_work_stays_on_its_thread() -> Result<()> {
    tch::set_num_threads(2);
    let mut wrong = Vec::new();
    let mut seen = vec![false; STARTED.len()];
    for workload in workloads(None, &[Size::Tiny], Dtype::F32) {
        let ours = Ours::new(&workload, &workload.inputs()?)?;
        let (forward, step) = (regions(|| ours.loss())?, regions(|| ours.step())?);
        println!("{forward} {step} {}", workload.id());
        let known = STARTED.iter().position(|(name, ..)| workload.id().contains(name));
        if step > 0
            && let Some(position) = known
        {
            seen[position] = true;
        }
        if forward > 0 || step > 0 && known.is_none() {
            wrong.push(format!("{}: {forward} forward, {step} with backward", workload.id()));
        }
    }
    assert!(wrong.is_empty(), "small losses start parallel regions:\n{}", wrong.join("\n"));
    let unseen: Vec<&str> = STARTED.iter().zip(seen).filter(|(_, seen)| !seen).map(|((name, ..), _)| *name).collect();
    assert!(unseen.is_empty(), "these start none any more: {unseen:?}");
    Ok(())
}
