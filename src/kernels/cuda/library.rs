//! Functions of libraries that are looked up when the program runs: one without CUDA runs where there are none.

use std::ffi::{CStr, c_void};

/// Declares a table of functions, and `find`, which looks them up by their names in a library.
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
                        let symbol = crate::kernels::cuda::library::symbol(library, $name)?;
                        // SAFETY: the function of this name has this signature wherever it is.
                        unsafe { std::mem::transmute::<*mut std::ffi::c_void, $function>(symbol) }
                    },)+
                })
            }
        }
    };
}
pub(super) use functions;

/// Loads a library for the life of the process; none where there is none of this name.
pub(super) fn open(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a library of CUDA, or one that this crate has made, whose code may run when it is loaded.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    (!library.is_null()).then_some(library)
}

/// A function or a variable of a library.
pub(super) fn symbol(library: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the library is one that `open` has loaded, or stands for all of the process.
    let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!symbol.is_null()).then_some(symbol)
}

/// The same, whose names others do not see.
#[cfg(test)]
pub(super) fn open_apart(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: as above.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    (!library.is_null()).then_some(library)
}
