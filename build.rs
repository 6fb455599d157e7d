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
    build(&headers(libtorch)).file(together("tch_losses.cpp", &SOURCES)).compile("tch_losses_cpp");
}

/// A file that includes these: to read libtorch's headers takes the compiler much longer than what stands behind them.
fn together(name: &str, sources: &[&str]) -> PathBuf {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let include = |source: &&str| format!("#include {:?}\n", root.join(source).display().to_string());
    let file = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join(name);
    std::fs::write(&file, sources.iter().map(include).collect::<String>()).expect("cargo's folder can be written");
    file
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
    let mut groups = build(&headers);
    groups.include(GLOO);
    let mut sources = vec![SOURCE];
    if env::var_os("CARGO_FEATURE_NCCL").is_some() {
        sources.push(add_nccl(&mut groups, libtorch));
    }
    groups.file(together("tch_losses_c10d.cpp", &sources)).compile("tch_losses_c10d");
}

/// The headers have to be those of the NCCL that libtorch was built with, which a group compares when it first meets a
/// tensor on a GPU. Returns the source.
fn add_nccl(groups: &mut cc::Build, libtorch: &Path) -> &'static str {
    const SOURCE: &str = "src/distributed/nccl.cpp";
    for path in [SOURCE, "src/distributed/nccl.hpp"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let folders = cuda_headers(libtorch);
    for needed in ["nccl.h", "cuda_runtime_api.h", "crt/host_defines.h", "nv/target"] {
        let there = folders.iter().any(|folder| folder.join(needed).exists());
        assert!(
            there,
            "the feature nccl needs the headers of NCCL and CUDA, and there is no {needed} in {folders:?}; install them \
             (pip install nvidia-cuda-crt nvidia-cuda-cccl completes those of PyTorch's wheels for CUDA 13, \
             nvidia-cuda-nvcc-cu12 nvidia-cuda-cccl-cu12 for CUDA 12), or set CUDA_HOME and NCCL_HOME"
        );
    }
    let cuda = libtorch.join("libtorch_cuda.so");
    assert!(cuda.exists(), "the feature nccl needs a libtorch for CUDA: no {}", cuda.display());
    groups.includes(folders).define("TCH_LOSSES_NCCL", None);
    println!("cargo:rustc-link-lib=dylib=torch_cuda");
    SOURCE
}

/// Folders of headers: what the environment names, those of the wheels beside PyTorch's, those of a system.
fn cuda_headers(libtorch: &Path) -> Vec<PathBuf> {
    let mut roots = vec![];
    for name in ["NCCL_HOME", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
        roots.extend(env::var_os(name).map(PathBuf::from));
    }
    // …/site-packages/torch/lib beside …/site-packages/nvidia/*/include.
    let packages = libtorch.canonicalize().ok().and_then(|lib| Some(lib.parent()?.parent()?.join("nvidia")));
    let wheels = packages.and_then(|packages| packages.read_dir().ok()).into_iter().flatten().flatten();
    let mut wheels: Vec<PathBuf> = wheels.map(|entry| entry.path()).collect();
    wheels.sort();
    roots.extend(wheels);
    roots.extend(["/usr/local/cuda".into(), "/usr".into()]);
    let folders = roots.iter().flat_map(|root| [root.join("include"), root.join("include/cccl")]);
    folders.filter(|folder| folder.is_dir()).collect()
}
