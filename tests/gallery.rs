//! Every loss has a picture in the gallery, and holds it on its page.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::list;

const GALLERY: &str = "docs/book/src/gallery";
/// A page holds its picture.
const LARGEST: u64 = 15_000;

/// The types whose pages hold a picture, each with its name.
fn on_pages() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (_, source) in list::sources(&list::root().join("src")) {
        let mut end_of_last = 0;
        for (at, keyword) in source.match_indices("\npub struct ") {
            // What stands between this type and the item before it.
            let before = &source[end_of_last..at];
            let page = before.rsplit("\n}\n").next().unwrap();
            let name: String = source[at + keyword.len()..].chars().take_while(|c| c.is_alphanumeric()).collect();
            found.extend(pictures(page).map(|picture| (name.clone(), picture)));
            end_of_last = at;
        }
    }
    found
}

/// The names of the pictures in a page.
fn pictures(page: &str) -> impl Iterator<Item = String> {
    let paths = page.split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let names = paths.filter_map(|path| path.split_once("docs/book/src/gallery/")?.1.strip_suffix(".svg"));
    names.map(str::to_owned)
}

#[test]
fn every_loss_has_a_picture_on_its_page() {
    let pages = on_pages();
    let shown: BTreeSet<&str> = pages.iter().map(|(loss, _)| loss.as_str()).collect();
    let missing: Vec<String> = list::losses().into_iter().filter(|loss| !shown.contains(loss.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?} have no picture on their pages: see examples/gallery");
}

#[test]
fn every_picture_is_shown_and_small() {
    let shown: BTreeSet<String> = on_pages().into_iter().map(|(_, picture)| picture).collect();
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(list::root().join(GALLERY)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        assert!(entry.metadata().unwrap().len() <= LARGEST, "{name} is larger than {LARGEST} bytes");
        // What Markdown asks for, to take it as one piece of HTML.
        assert!(!text.contains("\n\n") && text.lines().next().unwrap().ends_with('>'), "{name}");
        files.insert(name.strip_suffix(".svg").unwrap_or(&name).to_owned());
    }
    assert_eq!(shown, files, "the pictures on pages, and those in {GALLERY}");
    let chapter = list::text("docs/book/src/gallery.md");
    let missing: Vec<&String> =
        files.iter().filter(|name| !chapter.contains(&format!("gallery/{name}.svg)"))).collect();
    assert!(missing.is_empty(), "{missing:?} are not in the chapter");
}
