//! Links the tests, examples and binaries of this package so that they find libtorch where it was built against.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Set by torch-sys; absent with the feature `doc-only`.
    let Ok(libtorch) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    // Seen by our users' build scripts as DEP_TCH_LOSSES_LIBTORCH_LIB.
    println!("cargo:libtorch_lib={libtorch}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath={libtorch}");
    // Without these two the linker drops libtorch_cuda, and `tch::Cuda::is_available()` is false on every machine.
    println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
    println!("cargo:rustc-link-arg=-ltorch");
}
