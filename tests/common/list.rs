//! The list of all losses: the tables on the pages of the families. All other lists are made of it or compared with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The families in the order of the documentation.
const FAMILIES: [&str; 10] = [
    "regression",
    "classification",
    "divergence",
    "metric",
    "segmentation",
    "detection",
    "image",
    "self_supervised",
    "preference",
    "sequence",
];

/// A row of the table of a family. A loss with originals in torch.nn and elsewhere has two.
pub struct Row {
    pub family: &'static str,
    /// The heading above the table.
    pub section: String,
    /// The type.
    pub loss: String,
    pub originals: String,
    pub arguments: String,
    /// The feature without which the crate lacks the loss.
    pub feature: Option<String>,
}

impl Row {
    pub fn is_of_torch(&self) -> bool {
        self.originals.starts_with("`nn.") || self.originals.starts_with("`F.")
    }
}

/// The text of a file of the repository.
pub fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All rows of all families.
pub fn rows() -> Vec<Row> {
    let root = text("src/lib.rs");
    let modules: Vec<&str> = root.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    for module in modules {
        let known = FAMILIES.contains(&module) || ["autograd", "combine", "distributed"].contains(&module);
        assert!(known, "{module} is not in the order of families of tests/common/list.rs");
    }
    FAMILIES
        .into_iter()
        .flat_map(|family| rows_of(family, feature_above(&root, &format!("pub mod {family};"))))
        .collect()
}

/// The types of all losses, each once.
pub fn losses() -> Vec<String> {
    let mut losses: Vec<String> = Vec::new();
    for row in rows() {
        if !losses.contains(&row.loss) {
            losses.push(row.loss);
        }
    }
    losses
}

fn rows_of(family: &'static str, feature: Option<String>) -> Vec<Row> {
    let page = text(&format!("src/{family}/mod.rs"));
    let features = features_of_types(&page);
    let mut section = String::new();
    let mut rows = Vec::new();
    for line in page.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim) {
        if let Some(heading) = line.strip_prefix("# ") {
            section = heading.to_owned();
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, loss, _, originals, arguments, _] = cells[..] else { continue };
        let Some(loss) = loss.strip_prefix("[`").and_then(|loss| loss.strip_suffix("`]")) else { continue };
        rows.push(Row {
            family,
            section: section.clone(),
            loss: loss.to_owned(),
            originals: originals.to_owned(),
            arguments: arguments.to_owned(),
            feature: feature.clone().or_else(|| features.get(loss)?.clone()),
        });
    }
    assert!(!rows.is_empty(), "the page of {family} has no table of its losses");
    rows
}

/// The features above the `pub use` of a family, by the names that it exports.
fn features_of_types(page: &str) -> BTreeMap<String, Option<String>> {
    let mut features = BTreeMap::new();
    for (start, _) in page.match_indices("pub use ") {
        let statement = &page[start..start + page[start..].find(';').unwrap()];
        let feature = feature_above(page, statement);
        let names = statement.split(|c: char| !c.is_alphanumeric() && c != '_');
        for name in names.filter(|name| name.starts_with(char::is_uppercase)) {
            features.insert(name.to_owned(), feature.clone());
        }
    }
    features
}

fn feature_above(page: &str, item: &str) -> Option<String> {
    let before = page[..page.find(item).unwrap_or(0)].trim_end();
    let line = before.lines().next_back()?;
    Some(line.strip_prefix("#[cfg(feature = \"")?.strip_suffix("\")]")?.to_owned())
}

/// The sources below a folder, with their text, in the order of their paths.
pub fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        if path.is_dir() {
            all.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push((path.clone(), fs::read_to_string(path).unwrap()));
        }
    }
    all
}

/// The losses that are declared in the sources of the families: by `options!`, or by hand with an `f_forward`.
pub fn declared() -> Vec<Declared> {
    let folders = FAMILIES.iter().map(|family| root().join("src").join(family));
    let mut all: Vec<Declared> = Vec::new();
    for (_, source) in folders.flat_map(|folder| sources(&folder)) {
        for rest in source.split("\npub struct ").skip(1) {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
            let header = rest.split(['\n', '{']).next().unwrap();
            let by_options = header.trim_end().ends_with(';') && !header.contains('(');
            let computes = computes(&source, &name);
            if computes || (by_options && !name.ends_with("Config")) {
                all.push(Declared { in_data: by_options && header.contains(": \""), name });
            }
        }
    }
    all
}

/// A loss in the sources.
pub struct Declared {
    pub name: String,
    /// It has a name in data.
    pub in_data: bool,
}

/// Whether a type has an `f_forward` of its own, or one by a trait.
fn computes(source: &str, name: &str) -> bool {
    let by_trait = ["Loss", "PreferenceLoss", "EmbeddingLoss"].iter();
    let mut by_trait = by_trait.map(|of| format!("\nimpl {of} for {name} "));
    let own = source.split("\nimpl").skip(1).any(|block| {
        let (header, body) = block.split_once('{').unwrap_or_default();
        // Of `impl<L: PreferenceLoss> LinearPreference<L>` the last word.
        let is_own = header.split_whitespace().last().is_some_and(|last| last.split('<').next() == Some(name));
        let body = body.split("\n}\n").next().unwrap_or_default();
        is_own && body.contains("pub fn f_forward")
    });
    own || by_trait.any(|header| source.contains(&header))
}

/// Of a list of all losses in the text of a test: what it neither names nor leaves out on purpose.
pub fn assert_complete(test: &str, text: &str, left_out: &[&str]) {
    let named = |loss: &str| text.contains(&format!("{loss}::"));
    let all = losses();
    let missing: Vec<&String> = all.iter().filter(|loss| !left_out.contains(&loss.as_str()) && !named(loss)).collect();
    assert!(missing.is_empty(), "{test} does not try {missing:?}");
    let tried: Vec<&&str> = left_out.iter().filter(|loss| named(loss) || !all.iter().any(|of| of == *loss)).collect();
    assert!(tried.is_empty(), "{test} leaves {tried:?} out, which are tried or no losses");
}
