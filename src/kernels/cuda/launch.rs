//! Launches of kernels, and the parameter blocks that they are given, laid out as C++ does it.

use std::ffi::{CStr, c_void};

use tch::{Kind, Tensor};

use super::engine::address_of;

/// The threads of a block: `THREADS` in prelude.cu.
pub(super) const THREADS: u32 = 256;

/// The threads of a warp.
pub(super) const WARP: usize = 32;

/// A row of more numbers than this has a block of threads, of fewer a warp.
pub(super) const OF_WARP: usize = 1024;

/// A row of more numbers than this has a block for each part.
pub(super) const OF_BLOCK: usize = 1 << 15;

/// The name of a kernel, and the C++ types of its parameters.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    pub(super) name: &'static CStr,
    #[cfg_attr(not(any(test, feature = "emulation")), allow(dead_code))]
    pub(super) types: &'static [&'static str],
}

/// What kernels are launched on.
pub(super) trait Launch {
    /// Launches a kernel of so many blocks. The parameters are handed over as `cuLaunchKernel` takes them.
    ///
    /// # Safety
    /// The parameters are those of the kernel, and what they point to is there until it has run.
    unsafe fn launch(&self, kernel: Kernel, grid: u32, parameters: &mut [*mut c_void]) -> Result<(), String>;
}

/// Bytes of a C++ structure whose members are in the order of their size, the largest first.
#[derive(Default)]
pub(super) struct Block(Vec<u8>);

impl Block {
    /// Where tensors lie in memory: null for none.
    pub(super) fn tensors<'a, T: Into<Option<&'a Tensor>>>(&mut self, tensors: impl IntoIterator<Item = T>) {
        let addresses = tensors.into_iter().map(|tensor| address_of(tensor.into()) as usize);
        addresses.for_each(|address| self.0.extend(address.to_ne_bytes()));
    }

    pub(super) fn longs(&mut self, numbers: impl IntoIterator<Item = i64>) {
        numbers.into_iter().for_each(|number| self.0.extend(number.to_ne_bytes()));
    }

    pub(super) fn int(&mut self, number: i32) {
        self.0.extend(number.to_ne_bytes());
    }

    pub(super) fn flags(&mut self, flags: impl IntoIterator<Item = bool>) {
        flags.into_iter().for_each(|flag| self.int(flag.into()));
    }

    /// Numbers of the type that a kernel of tensors of this kind computes in.
    pub(super) fn reals(&mut self, kind: Kind, numbers: impl IntoIterator<Item = f64>) {
        numbers.into_iter().for_each(|number| match kind {
            Kind::Double => self.0.extend(number.to_ne_bytes()),
            _ => self.0.extend((number as f32).to_ne_bytes()),
        });
    }

    /// The same as an array that has one place more, since C++ has no empty ones.
    pub(super) fn array(&mut self, kind: Kind, numbers: &[f64]) {
        self.reals(kind, numbers.iter().copied().chain([0.0]));
    }

    /// Launches a kernel of so many blocks whose parameter is this structure. Whether that could be done.
    ///
    /// # Safety
    /// The kernel's parameter has this layout, and what it points to is there until the kernel has run.
    pub(super) unsafe fn launch(self, launcher: &dyn Launch, kernel: Kernel, grid: u32) -> bool {
        // SAFETY: the caller's promise.
        unsafe { launcher.launch(kernel, grid, &mut [self.finish().as_mut_ptr().cast()]) }.is_ok()
    }

    /// The structure, whose size is a multiple of its alignment.
    pub(super) fn finish(mut self) -> Vec<u64> {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            u64::from_ne_bytes(word)
        };
        self.0.chunks_exact(8).map(word).collect()
    }
}
