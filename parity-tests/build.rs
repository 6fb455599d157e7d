//! Lets the binary find libtorch where it was built against; the README gives these lines to every user.

fn main() {
    if let Ok(libtorch) = std::env::var("DEP_TCH_LOSSES_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath={libtorch}");
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo:rustc-link-arg=-ltorch");
        // What counts the kernels of a loss is compiled against it, too, when it is asked for.
        println!("cargo:rustc-env=PARITY_LIBTORCH={libtorch}");
    }
}
