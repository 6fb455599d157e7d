//! Compiles the C++ sides of `autograd`, `kernels` and `distributed` against the libtorch that torch-sys found, and links
//! the tests, examples and binaries of this package so that they find that libtorch.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(tch_losses_unoptimised, tch_losses_no_loops)");
    println!("cargo:rerun-if-env-changed=TCH_LOSSES_BACKEND");
    // The loops of `kernels` are only faster than libtorch once they are made of vector instructions.
    if matches!(env::var("OPT_LEVEL").as_deref(), Ok("0" | "1")) {
        println!("cargo:rustc-cfg=tch_losses_unoptimised");
        // And so they are left out, unless this build asks for them.
        if env::var("TCH_LOSSES_BACKEND").as_deref() != Ok("auto") {
            println!("cargo:rustc-cfg=tch_losses_no_loops");
        }
    }
    // Set by torch-sys; absent with the feature `doc-only`.
    let Ok(libtorch) = env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    // Seen by our users' build scripts as DEP_TCH_LOSSES_LIBTORCH_LIB.
    println!("cargo:libtorch_lib={libtorch}");
    compile(Path::new(&libtorch));
    if env::var_os("CARGO_FEATURE_DISTRIBUTED").is_some() {
        compile_groups(Path::new(&libtorch));
    }
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath={libtorch}");
    // Without these two the linker drops libtorch_cuda, and `tch::Cuda::is_available()` is false on every machine.
    println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
    println!("cargo:rustc-link-arg=-ltorch");
}

/// The headers are beside the libraries, or where torch-sys was told that they are.
fn headers(libtorch: &Path) -> PathBuf {
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    let root = env::var("LIBTORCH_INCLUDE").map_or_else(|_| libtorch.join(".."), PathBuf::from);
    root.join("include")
}

fn build(headers: &Path) -> cc::Build {
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .include(headers)
        .include(headers.join("torch/csrc/api/include"));
    build
}

fn compile(libtorch: &Path) {
    const SOURCES: [&str; 3] = ["src/autograd/header.cpp", "src/autograd/node.cpp", "src/kernels/cpu/memory.cpp"];
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    build(&headers(libtorch)).files(SOURCES).compile("tch_losses_cpp");
}

/// Elsewhere than on Linux the crate itself says that there are no groups.
fn compile_groups(libtorch: &Path) {
    const SOURCE: &str = "src/distributed/group.cpp";
    const GLOO: &str = "src/distributed/gloo_headers";
    for path in [SOURCE, GLOO] {
        println!("cargo:rerun-if-changed={path}");
    }
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    let headers = headers(libtorch);
    let needed = headers.join("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp");
    assert!(
        needed.exists(),
        "the feature distributed needs a libtorch with c10d and Gloo, as PyTorch's own builds are: no {}",
        needed.display()
    );
    build(&headers).include(GLOO).file(SOURCE).compile("tch_losses_c10d");
}
