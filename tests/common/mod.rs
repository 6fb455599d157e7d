//! What tests share.
#![allow(dead_code, reason = "no test needs all of it")]

pub mod list;
pub mod random;

use tch::{Cuda, Device};

/// The CPU, and the GPU where there is one.
pub fn devices() -> Vec<Device> {
    let gpu = Cuda::is_available().then_some(Device::Cuda(0));
    [Device::Cpu].into_iter().chain(gpu).collect()
}

/// The named line of this process's status in bytes: `VmRSS:` is its resident memory, `VmHWM:` the peak of that.
pub fn status(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kibibytes = status.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB")).unwrap();
    kibibytes.trim().parse::<f64>().unwrap() * 1024.0
}
