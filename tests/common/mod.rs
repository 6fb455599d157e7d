//! What tests share.

use tch::{Cuda, Device};

/// The CPU, and the GPU where there is one.
pub fn devices() -> Vec<Device> {
    let gpu = Cuda::is_available().then_some(Device::Cuda(0));
    [Device::Cpu].into_iter().chain(gpu).collect()
}
