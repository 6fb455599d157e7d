//! What a CUDA graph cannot record is in few places.
//!
//! A copy between the host and a GPU makes the host wait, which ends the capture of a graph. The looks at numbers that
//! make it wait are counted by parity-tests/tests/waits.rs; here the sources are looked through for tensors that are made
//! of numbers of the host, and for tensors that are moved.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What makes a tensor of numbers of the host, or moves one.
const COPIES: [&str; 4] = ["from_slice(&", "f_from_slice(", "f_to_device(", "f_to_device_("];

/// The files in which there are some, and why they are in no capture, or why the losses there say on their page
/// that they copy to the host.
const KNOWN: &[(&str, &str)] = &[
    ("check/invalid_values.rs", "f_check, which is asked for what a GPU has found"),
    ("description/option_value.rs", "options in data"),
    ("distributed/collective.rs", "Gloo sends memory of the host"),
    ("distributed/exchange.rs", "as above"),
    ("distributed/vocab_parallel.rs", "as above"),
    ("kernels/cpu/ranks.rs", "an engine of the CPU"),
    ("kernels/cpu/region/mod.rs", "as above"),
    ("kernels/window.rs", "the taps of a window, which a warm-up call brings to the GPU"),
    ("metric/n_pairs.rs", "chooses pairs on the host, and says so"),
    ("numeric.rs", "a number of the host, which a kernel gets as an argument"),
    ("option_tensors.rs", "moves a loss to a device"),
    ("regression/robust.rs", "tests of several losses"),
    ("segmentation/hausdorff.rs", "computes distances on the host, and says so"),
    ("self_supervised/dino/over_ranks.rs", "sent by Gloo"),
    ("self_supervised/moments.rs", "sent by Gloo"),
    ("sequence/ctc.rs", "lengths, which PyTorch has on the host, too"),
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    entries.flat_map(of).filter(is_source).collect()
}

/// How many lines of code copy. Comments, examples and tests are left out.
fn copies(source: &str) -> usize {
    let code = source.lines().take_while(|line| !line.starts_with("mod tests {"));
    let code = code.map(|line| line.split("//").next().unwrap_or_default());
    code.filter(|line| line.contains("Tensor::") || line.contains("f_to_device"))
        .filter(|line| COPIES.iter().any(|copy| line.contains(copy)))
        .count()
}

#[test]
fn tensors_of_the_host_are_copied_in_known_places_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let is_test = |path: &Path| path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
    let copying = sources(&root).into_iter().filter(|path| !is_test(path));
    let copying = copying.filter(|path| copies(&fs::read_to_string(path).unwrap()) > 0);
    let name = |path: PathBuf| path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
    let found: BTreeSet<String> = copying.map(name).collect();
    let known: BTreeSet<String> = KNOWN.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(found, known, "a loss that is captured as a CUDA graph may copy nothing between host and GPU");
}

#[test]
fn a_copy_is_found() {
    assert_eq!(copies("let a = Tensor::f_from_slice(&numbers)?;\n// Tensor::f_from_slice(&numbers)\nlet b = a;"), 1);
    assert_eq!(copies("a.f_to_device(device)?\n#[cfg(test)]\nmod tests {\nTensor::from_slice(&[1.0])"), 1);
}
