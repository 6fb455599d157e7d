//! Makes a module of each chapter, for its code blocks, and a function of each piece of code in a column "Rust" of a
//! table. Lets the tests find libtorch, as the README tells every user.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// What the code in tables may use.
const NAMES: &str = "\
    use tch::{Device, Kind, Tensor, nn, nn::OptimizerConfig};
    use tch_losses::{autograd::Function, *};
    type Outcome = Result<(), Box<dyn std::error::Error>>;
";

/// The arguments of such a function.
const ARGUMENTS: &str = "\
    input: Tensor, target: Tensor, logits: Tensor, weight: Tensor, loss: Tensor, anchor: Tensor, positive: Tensor, \
    negative: Tensor, criterion: CrossEntropyLoss, mut vs: nn::VarStore, mut optimizer: nn::Optimizer, \
    device: Device";

fn main() {
    link();
    let chapters = Path::new(&env::var("CARGO_MANIFEST_DIR").unwrap()).join("../src");
    println!("cargo:rerun-if-changed={}", chapters.display());
    let mut files: Vec<PathBuf> = fs::read_dir(chapters).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    files.sort();

    let (mut modules, mut functions) = (String::new(), NAMES.to_owned());
    for file in &files {
        let name = file.file_stem().unwrap().to_str().unwrap().replace('-', "_");
        writeln!(modules, "#[doc = include_str!({:?})]\nmod {name} {{}}", file.canonicalize().unwrap()).unwrap();
        for (number, (line, code)) in code_in_tables(&fs::read_to_string(file).unwrap()).iter().enumerate() {
            writeln!(functions, "{}", function(&format!("{name}_{line}_{number}"), code)).unwrap();
        }
    }
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    fs::write(out.join("chapters.rs"), modules).unwrap();
    fs::write(out.join("tables.rs"), functions).unwrap();
}

fn link() {
    if let Ok(libtorch) = env::var("DEP_TCH_LOSSES_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath={libtorch}");
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo:rustc-link-arg=-ltorch");
    }
}

/// The code in columns "Rust", each with the number of its line.
fn code_in_tables(chapter: &str) -> Vec<(usize, String)> {
    let (mut column, mut in_block, mut found) = (None, false, vec![]);
    let mut in_table = false;
    for (number, line) in chapter.lines().enumerate() {
        in_block ^= line.trim_start().starts_with("```");
        if in_block || !line.starts_with('|') {
            in_table = false;
            continue;
        }
        // A bar that is code is written \| in a table.
        let line = line.replace("\\|", "\0");
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if !in_table {
            in_table = true;
            column = cells.iter().position(|&cell| cell == "Rust");
            continue;
        }
        let Some(cell) = column.and_then(|column| cells.get(column)) else { continue };
        let code = cell.split('`').skip(1).step_by(2);
        found.extend(code.filter(|code| !code.is_empty()).map(|code| (number + 1, code.replace('\0', "|"))));
    }
    found
}

/// A function that is compiled and never called.
fn function(name: &str, code: &str) -> String {
    let statement = if code.ends_with(['}', ';']) { code.to_owned() } else { format!("let _ = {code};") };
    format!("#[allow(unused, clippy::all)]\nfn line_{name}({ARGUMENTS}) -> Outcome {{ {statement} Ok(()) }}")
}
