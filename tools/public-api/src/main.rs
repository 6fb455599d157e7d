//! Lists what is public in a crate, one item a line, of the JSON that rustdoc makes: `list-public-api target/doc/NAME.json`.

use std::collections::HashSet;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let json = std::env::args().nth(1).context("a path of rustdoc's JSON is missing")?;
    let api = public_api::Builder::from_rustdoc_json(json)
        // Of Send, Sync and the like, and of what derives make alike everywhere.
        .omit_auto_trait_impls(true)
        .omit_blanket_impls(true)
        .omit_auto_derived_impls(true)
        .build()?;
    // What a family exports is a name of the crate, too; its methods are listed once.
    let mut listed = HashSet::new();
    for line in api.items().map(ToString::to_string) {
        if listed.insert(line.clone()) {
            println!("{line}");
        }
    }
    Ok(())
}
