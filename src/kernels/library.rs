//! Functions of libraries that are looked up when the program runs, so that it also runs where they are missing.

#[cfg(all(unix, any(test, feature = "cuda")))]
use std::ffi::c_int;
use std::ffi::{CStr, c_void};

/// Declares a table of functions, and `find`, which looks them up by their names in a library.
#[cfg(any(test, feature = "cuda"))]
macro_rules! functions {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $table:ident {
            $($field:ident: $name:literal as $function:ty,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy)]
        $visibility struct $table {
            $($field: $function,)+
        }

        impl $table {
            /// The functions of this library; none where it lacks one.
            $visibility fn find(library: *mut std::ffi::c_void) -> Option<Self> {
                Some(Self {
                    $($field: {
                        let symbol = crate::kernels::library::symbol(library, $name)?;
                        // SAFETY: the function of this name has this signature wherever it is.
                        unsafe { std::mem::transmute::<*mut std::ffi::c_void, $function>(symbol) }
                    },)+
                })
            }
        }
    };
}
#[cfg(any(test, feature = "cuda"))]
pub(super) use functions;

/// Stands for all libraries that the process has loaded.
#[cfg(unix)]
pub(super) const PROCESS: *mut c_void = libc::RTLD_DEFAULT;
#[cfg(not(unix))]
pub(super) const PROCESS: *mut c_void = std::ptr::null_mut();

/// A function of the libraries that the process has loaded, libtorch's among them.
pub(super) fn loaded(name: &CStr) -> Option<*mut c_void> {
    symbol(PROCESS, name)
}

#[cfg(not(unix))]
pub(super) fn symbol(_: *mut c_void, _: &CStr) -> Option<*mut c_void> {
    None
}

#[cfg(all(not(unix), feature = "cuda"))]
pub(super) fn open(_: &CStr) -> Option<*mut c_void> {
    None
}

/// A function or a variable of a library.
#[cfg(unix)]
pub(super) fn symbol(library: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the library is one that `open` has loaded, or stands for all of the process.
    let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!symbol.is_null()).then_some(symbol)
}

/// Loads a library for the life of the process; none where there is none of this name.
#[cfg(all(unix, any(test, feature = "cuda")))]
pub(super) fn open(name: &CStr) -> Option<*mut c_void> {
    open_with(name, libc::RTLD_GLOBAL)
}

/// Loads a library whose names other libraries do not see.
#[cfg(all(unix, any(test, feature = "emulation")))]
pub(super) fn open_apart(name: &CStr) -> Option<*mut c_void> {
    open_with(name, libc::RTLD_LOCAL)
}

#[cfg(all(unix, any(test, feature = "cuda")))]
fn open_with(name: &CStr, visibility: c_int) -> Option<*mut c_void> {
    // SAFETY: a library of CUDA, or one that this crate has made, whose code may run when it is loaded.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | visibility) };
    (!library.is_null()).then_some(library)
}
