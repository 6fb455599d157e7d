//! What runs in vector instructions is written in loops.
//!
//! The closure of an adapter, of `map` or `fold`, may be compiled apart from the function that it is in, and then
//! without the vector instructions of that function and with a library call for each fused multiply-add. A third of
//! the instructions of one loss were such. Functions that kernels are made of are `#[inline(always)]`; here their
//! sources are looked through.

use std::fs;
use std::path::{Path, PathBuf};

/// Adapters that take a closure.
const ADAPTERS: [&str; 14] = [
    ".all(",
    ".and_then(",
    ".any(",
    ".filter(",
    ".flat_map(",
    ".fold(",
    ".for_each(",
    ".map(",
    ".map_or(",
    ".position(",
    ".sum()",
    ".sum::<f64>",
    ".unwrap_or_else(",
    "from_fn(",
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: PathBuf| match path.is_dir() {
        true => sources(&path),
        false => vec![path],
    };
    entries.flat_map(of).filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The lines of functions that are always inlined in which there is an adapter, with their numbers. What follows `mod
/// tests` is left out.
fn adapters(source: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut lines = source.lines().enumerate().take_while(|(_, line)| !line.starts_with("mod tests"));
    while let Some((_, attribute)) = lines.next() {
        if attribute.trim() != "#[inline(always)]" {
            continue;
        }
        let indent = attribute.len() - attribute.trim_start().len();
        let ends = [format!("{}}}", " ".repeat(indent)), format!("{}) -> Self;", " ".repeat(indent))];
        for (number, line) in lines.by_ref() {
            let code = line.split("//").next().unwrap_or_default();
            if ADAPTERS.iter().any(|adapter| code.contains(adapter)) {
                found.push((number + 1, line.trim()));
            }
            let whole = line.starts_with(&" ".repeat(indent)) && line.trim_end().ends_with('}') && line.contains("fn ");
            if ends.iter().any(|end| line == end) || whole && line.matches('{').count() == line.matches('}').count() {
                break;
            }
        }
    }
    found
}

#[test]
fn kernels_are_loops() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for path in sources(&root.join("src")) {
        let source = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display();
        found.extend(adapters(&source).iter().map(|(number, line)| format!("{name}:{number}: {line}")));
    }
    assert!(found.is_empty(), "adapters in functions that are always inlined, write loops:\n{}", found.join("\n"));
}

#[test]
fn an_adapter_is_found() {
    let source = "
    #[inline(always)]
    fn run(self) -> f64 {
        let lanes = self.lanes.map(|lane| lane * 2.0);
        lanes.into_iter().sum()
    }

    fn outside(&self) -> f64 {
        self.lanes.iter().sum()
    }

    #[inline(always)]
    fn short() -> f64 { std::array::from_fn(|_| 0.0)[0] }

    fn after() { (0..3).for_each(drop) }

mod tests {
    #[inline(always)]
    fn inside() { (0..3).for_each(drop) }
";
    let numbers: Vec<usize> = adapters(source).iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [4, 5, 13]);
}
