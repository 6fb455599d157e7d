//! NVRTC, the compiler of CUDA sources that libtorch brings with it. It needs neither a GPU nor a driver.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use crate::kernels::library::{self, functions};

type Program = *mut c_void;

functions! {
    /// The functions of nvrtc.h that are called.
    pub(super) struct Nvrtc {
        create: c"nvrtcCreateProgram" as unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int,
        compile: c"nvrtcCompileProgram" as unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
        destroy: c"nvrtcDestroyProgram" as unsafe extern "C" fn(*mut Program) -> c_int,
        log_size: c"nvrtcGetProgramLogSize" as unsafe extern "C" fn(Program, *mut usize) -> c_int,
        log: c"nvrtcGetProgramLog" as unsafe extern "C" fn(Program, *mut c_char) -> c_int,
        cubin_size: c"nvrtcGetCUBINSize" as unsafe extern "C" fn(Program, *mut usize) -> c_int,
        cubin: c"nvrtcGetCUBIN" as unsafe extern "C" fn(Program, *mut c_char) -> c_int,
        ptx_size: c"nvrtcGetPTXSize" as unsafe extern "C" fn(Program, *mut usize) -> c_int,
        ptx: c"nvrtcGetPTX" as unsafe extern "C" fn(Program, *mut c_char) -> c_int,
        architecture_count: c"nvrtcGetNumSupportedArchs" as unsafe extern "C" fn(*mut c_int) -> c_int,
        architectures: c"nvrtcGetSupportedArchs" as unsafe extern "C" fn(*mut c_int) -> c_int,
        version: c"nvrtcVersion" as unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    }
}

/// What a function of this library returns where it has done what it was asked for.
const SUCCESS: c_int = 0;

/// The library of this process, which libtorch has loaded or would load; none where there is none.
pub(super) fn nvrtc() -> Option<&'static Nvrtc> {
    static FOUND: OnceLock<Option<Nvrtc>> = OnceLock::new();
    let find = || {
        let loaded = Nvrtc::find(library::PROCESS);
        // The first one is libtorch's, and knows where the compiler is, which may have another name in its packages.
        let others = [c"libcaffe2_nvrtc.so", c"libnvrtc.so.13", c"libnvrtc.so.12"];
        loaded.or_else(|| others.into_iter().find_map(|name| Nvrtc::find(library::open(name)?)))
    };
    FOUND.get_or_init(find).as_ref()
}

impl Nvrtc {
    /// The machine code of a source for GPUs of a compute capability such as 90, or where it knows none such, the code
    /// of the newest virtual machine that it knows, which the driver translates. Where it fails, what it says.
    pub(super) fn compile(&self, source: &str, capability: c_int) -> Result<Vec<u8>, String> {
        let known = self.architectures();
        if known.contains(&capability) {
            return Ok(self.compile_for(source, &format!("sm_{capability}"), &[])?.0);
        }
        let newest = known.into_iter().filter(|known| *known < capability).max();
        match newest {
            Some(newest) => Ok(self.compile_for(source, &format!("compute_{newest}"), &[])?.0),
            None => Err(format!("NVRTC does not know GPUs of compute capability {capability}")),
        }
    }

    /// The compute capabilities that it makes machine code for.
    pub(super) fn architectures(&self) -> Vec<c_int> {
        let mut count = 0;
        // SAFETY: the first call says how many numbers the second one writes.
        unsafe {
            (self.architecture_count)(&mut count);
            let mut known = vec![0; usize::try_from(count).unwrap_or_default()];
            (self.architectures)(known.as_mut_ptr());
            known
        }
    }

    /// Its version, the major and the minor number.
    pub(super) fn version(&self) -> (c_int, c_int) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes both numbers.
        unsafe { (self.version)(&mut major, &mut minor) };
        (major, minor)
    }

    /// The code for an architecture, and what the compiler says. Where it fails, that alone.
    pub(super) fn compile_for(
        &self,
        source: &str,
        architecture: &str,
        others: &[&CStr],
    ) -> Result<(Vec<u8>, String), String> {
        let source = CString::new(source).map_err(|error| error.to_string())?;
        let architecture_option =
            CString::new(format!("--gpu-architecture={architecture}")).map_err(|error| error.to_string())?;
        // Products are not contracted with sums, so that a formula rounds as it does on the CPU.
        let mut options = vec![architecture_option.as_ptr(), c"--std=c++17".as_ptr(), c"--fmad=false".as_ptr()];
        options.extend(others.iter().map(|option| option.as_ptr()));
        let mut program = std::ptr::null_mut();
        // SAFETY: as nvrtc.h says; what is pointed to outlives the calls, and buffers are as large as was said.
        unsafe {
            let none = std::ptr::null();
            if (self.create)(&mut program, source.as_ptr(), c"loss.cu".as_ptr(), 0, none, none) != SUCCESS {
                return Err("nvrtcCreateProgram failed".into());
            }
            let compiled = (self.compile)(program, options.len() as c_int, options.as_ptr()) == SUCCESS;
            let log = text(Self::read(program, self.log_size, self.log));
            let code = match compiled {
                false => vec![],
                true if architecture.starts_with("sm_") => Self::read(program, self.cubin_size, self.cubin),
                true => Self::read(program, self.ptx_size, self.ptx),
            };
            (self.destroy)(&mut program);
            if compiled { Ok((code, log)) } else { Err(log) }
        }
    }

    /// # Safety
    /// The program is one that `create` has made, and `read` writes as many bytes as `size` says.
    unsafe fn read(
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        read: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Vec<u8> {
        let mut length = 0;
        // SAFETY: the caller's promise.
        unsafe { size(program, &mut length) };
        let mut bytes = vec![0_u8; length];
        // SAFETY: the caller's promise.
        unsafe { read(program, bytes.as_mut_ptr().cast()) };
        bytes
    }
}

/// The text before a zero.
fn text(bytes: Vec<u8>) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
