//! Tables and lists of losses are made of the tables on the pages of the families, `src/<family>/mod.rs`.
//!
//! This test fails where they are not what it would write; `scripts/tables` writes them.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use common::list::{self, Row, declared, rows, text};

/// What is between two lines, and what it is to be.
struct Made {
    path: &'static str,
    begin: &'static str,
    end: &'static str,
    lines: Vec<String>,
}

/// Where a table of losses stands, and so how it leads to them.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// The front page, where rustdoc knows the names.
    FrontPage,
    /// The book, where the page of a loss is its source.
    Book,
}

impl Place {
    fn link(self, loss: &str, sources: &BTreeMap<String, String>) -> String {
        match self {
            Place::FrontPage => format!("[`{loss}`]"),
            Place::Book => format!("[`{loss}`](../../../{})", sources[loss]),
        }
    }
}

/// The path of the file in which each loss is, by its type.
fn sources_of_losses() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (path, source) in list::sources(&list::root().join("src")) {
        let path = path.strip_prefix(list::root()).unwrap().display().to_string();
        for rest in source.split("\npub struct ").skip(1) {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
            found.entry(name).or_insert_with(|| path.clone());
        }
    }
    found
}

/// A table of rows, with a bold row above each group.
fn table(rows: &[Row], place: Place, of_torch: bool) -> Vec<String> {
    let sources = sources_of_losses();
    let prefix = if place == Place::FrontPage { "//! " } else { "" };
    let mut lines = vec!["| original | here | arguments |".to_owned(), "|---|---|---|".to_owned()];
    let mut group = String::new();
    for row in rows.iter().filter(|row| row.is_of_torch() == of_torch) {
        let own = if of_torch { row.family } else { row.section.as_str() };
        if own != group {
            own.clone_into(&mut group);
            let features: BTreeSet<&str> = rows
                .iter()
                .filter(|other| !of_torch && other.section == row.section)
                .filter_map(|row| row.feature.as_deref())
                .collect();
            let feature: Vec<String> = features.iter().map(|feature| format!(", feature `{feature}`")).collect();
            lines.push(format!("| **{}**{} | | |", own.to_lowercase(), feature.concat()));
        }
        let here = place.link(&row.loss, &sources);
        let originals = match place {
            Place::FrontPage => row.originals.clone(),
            Place::Book => row.originals.replace("[`", "`").replace("`]", "`"),
        };
        lines.push(format!("| {originals} | {here} | {} |", row.arguments));
    }
    lines.into_iter().map(|line| format!("{prefix}{line}")).collect()
}

/// The losses that data can describe, in the order of the tables, and the others.
fn by_data(rows: &[Row]) -> [Vec<&Row>; 2] {
    let in_data: BTreeSet<String> = declared().into_iter().filter(|loss| loss.in_data).map(|loss| loss.name).collect();
    let mut seen = BTreeSet::new();
    rows.iter().filter(|row| seen.insert(&row.loss)).partition::<Vec<_>, _>(|row| in_data.contains(&row.loss)).into()
}

fn registry(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in &by_data(rows)[0] {
        lines.extend(row.feature.iter().map(|feature| format!("    #[cfg(feature = \"{feature}\")]")));
        lines.push(format!("    Entry::of::<{}>(),", row.loss));
    }
    lines
}

fn left_out(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in &by_data(rows)[0] {
        let Some(feature) = &row.feature else { continue };
        lines.push(format!("    #[cfg(not(feature = \"{feature}\"))]"));
        lines.push(format!("    (\"{}\", \"{feature}\"),", row.loss));
    }
    lines
}

fn others(rows: &[Row]) -> Vec<String> {
    by_data(rows)[1].iter().map(|row| format!("    \"{}\",", row.loss)).collect()
}

fn all_made() -> Vec<Made> {
    const END: &str = "<!-- end -->";
    const DOC_END: &str = "//! <!-- end -->";
    const NAMES: &str = "src/description/names.rs";
    const BOOK: &str = "docs/book/src/losses.md";
    let rows = rows();
    let made = |path, begin, end, lines| Made { path, begin, end, lines };
    vec![
        made(BOOK, "<!-- made by scripts/tables: torch.nn -->", END, table(&rows, Place::Book, true)),
        made(BOOK, "<!-- made by scripts/tables: others -->", END, table(&rows, Place::Book, false)),
        made(
            "src/lib.rs",
            "//! <!-- made by scripts/tables: torch.nn -->",
            DOC_END,
            table(&rows, Place::FrontPage, true),
        ),
        made(
            "src/lib.rs",
            "//! <!-- made by scripts/tables: others -->",
            DOC_END,
            table(&rows, Place::FrontPage, false),
        ),
        made(
            "src/combine/described/registry.rs",
            "    // Made by scripts/tables.",
            "    // End of what is made.",
            registry(&rows),
        ),
        made(NAMES, "    // Made by scripts/tables: others.", "    // End of what is made.", others(&rows)),
        made(NAMES, "    // Made by scripts/tables: left out.", "    // End of what is made.", left_out(&rows)),
    ]
}

impl Made {
    /// The file before the lines, the lines, and what follows.
    fn parts<'a>(&self, text: &'a str) -> [&'a str; 3] {
        let missing = || panic!("{} has no line {:?}", self.path, self.begin);
        let begin = text.find(self.begin).map_or_else(missing, |start| start + self.begin.len() + 1);
        let end = begin + text[begin..].find(self.end).unwrap_or_else(|| panic!("{}: no {:?}", self.path, self.end));
        [&text[..begin], &text[begin..end], &text[end..]]
    }
}

#[test]
fn tables_are_those_of_the_families() {
    let write = std::env::var_os("TABLES").is_some_and(|value| value == "write");
    let mut stale = Vec::new();
    for made in all_made() {
        let file = text(made.path);
        let [before, current, after] = made.parts(&file);
        let lines: String = made.lines.iter().map(|line| format!("{line}\n")).collect();
        if current == lines {
            continue;
        }
        if write {
            fs::write(list::root().join(made.path), [before, &lines, after].concat()).unwrap();
        } else {
            stale.push(format!("{} after {:?}", made.path, made.begin.trim()));
        }
    }
    assert!(stale.is_empty(), "these tables are stale, run scripts/tables: {stale:#?}");
}

#[test]
fn every_loss_is_in_the_table_of_its_family() {
    let listed: BTreeSet<String> = list::losses().into_iter().collect();
    let declared: BTreeSet<String> = declared().into_iter().map(|loss| loss.name).collect();
    let missing: Vec<_> = declared.difference(&listed).filter(|name| !NO_LOSSES.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?} are in no table of src/<family>/mod.rs");
    let unknown: Vec<_> = listed.difference(&declared).collect();
    assert!(unknown.is_empty(), "{unknown:?} are in a table of src/<family>/mod.rs and no losses");
}

/// What computes what losses take.
const NO_LOSSES: [&str; 1] = ["SequenceLogProbs"];

/// The features of Cargo.toml are told of in the book and on the front page.
#[test]
fn every_feature_is_documented() {
    let manifest = text("Cargo.toml");
    let section = manifest.split("\n[features]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let features: Vec<&str> =
        section.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).filter(|line| !line.contains('#')).collect();
    assert!(features.len() > 10, "{features:?}");
    let full = section.split("full = [").nth(1).unwrap().split(']').next().unwrap();
    for row in rows().iter().filter_map(|row| row.feature.as_ref()) {
        assert!(full.contains(&format!("\"{row}\"")), "feature {row} is not in full");
    }
    for feature in features.iter().filter(|feature| **feature != "default") {
        for path in ["docs/book/src/getting-started.md", "src/lib.rs"] {
            assert!(text(path).contains(&format!("| `{feature}` |")), "{path} does not tell of the feature {feature}");
        }
    }
}

/// Every loss is held against its reference: an adapter of `parity-tests` makes it.
#[test]
fn every_loss_has_an_adapter() {
    let adapters = list::root().join("parity-tests/src/adapters");
    // Not in the package.
    if !adapters.exists() {
        return;
    }
    let text: String = list::sources(&adapters).into_iter().map(|(_, text)| text).collect();
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_alphanumeric()).collect();
    let missing: Vec<String> = list::losses().into_iter().filter(|loss| !words.contains(loss.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?} are in no adapter of parity-tests/src/adapters");
}
