//! The page of a check, opened: in a browser without a window, and its program in Node with a few lines in place of one.
//!
//! A machine that has neither leaves these tests out, and says so.

mod common;

use std::process::Command;
use std::sync::LazyLock;

use clap::Parser;
use common::Golden;
use parity::check::{BackendName, CheckOptions};
use parity::compare::Verdict;
use parity::eval::run_adapter;
use parity::report;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: CheckOptions,
}

/// The page of the golden cases, of which one is made to fail with a reason that is no HTML.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    let golden = Golden::read();
    let mut verdicts: Vec<Verdict> = golden.verdicts(&run_adapter).into_iter().map(|(_, verdict)| verdict).collect();
    verdicts[0] = Verdict::Failed("</script><b>element 7</b>".into());
    let options = Cli::parse_from(["page", "--seed", "7"]).options;
    let summary = "a page of golden cases".to_owned();
    report::page(&golden.cases, &[(BackendName::Auto, &verdicts)], &golden.expected.versions, &options, summary)
        .html()
        .unwrap()
});

/// What the page shows for a filter, or nothing where no browser is here.
fn in_browser(query: &str) -> Option<String> {
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let browser = names.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok())?;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.html");
    std::fs::write(&file, &*PAGE).unwrap();
    let address = format!("file://{}#{}", file.display(), query.replace(' ', "%20"));
    let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom", &profile])
        .arg(address)
        .output()
        .unwrap();
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !page.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(page)
}

/// The same by Node. What the page would be is printed.
fn in_node(query: &str) -> Option<String> {
    const DOCUMENT: &str = r##"
        const fs = require("fs");
        const html = fs.readFileSync(process.argv[2], "utf8");
        const scripts = [...html.matchAll(/<script[^>]*>([^]*?)<\/script>/g)].map((match) => match[1]);
        const elements = {};
        const element = (id) => (elements[id] ??= { value: "", textContent: id === "data" ? scripts[0] : "", addEventListener() {} });
        globalThis.document = { getElementById: element, addEventListener() {} };
        globalThis.location = { hash: "#" + encodeURIComponent(process.argv[3]) };
        globalThis.history = { replaceState() {} };
        new Function(scripts[1])();
        console.log(["head", "choices", "tables"].map((id) => elements[id].innerHTML).join("\n"));
    "##;
    Command::new("node").arg("--version").output().ok()?;
    let folder = tempfile::tempdir().unwrap();
    let (file, program) = (folder.path().join("page.html"), folder.path().join("page.js"));
    std::fs::write(&file, &*PAGE).unwrap();
    std::fs::write(&program, DOCUMENT).unwrap();
    let output = Command::new("node").arg(program).arg(file).arg(query).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The rows of the first table, each as its HTML.
fn rows(page: &str) -> Vec<&str> {
    let table = page.split("<tbody>").nth(1).unwrap().split("</tbody>").next().unwrap();
    table.split("<tr>").skip(1).collect()
}

fn check(opened: impl Fn(&str) -> Option<String>, name: &str) {
    let Some(all) = opened("") else {
        println!("left out: there is no {name} on this machine");
        return;
    };
    assert!(all.contains("a page of golden cases") && rows(&all).len() > 50, "{} rows", rows(&all).len());

    let found = opened("CrossEntropyLoss f32").unwrap();
    let found = rows(&found);
    assert!(!found.is_empty() && found.len() < rows(&all).len());
    assert!(found.iter().all(|row| row.contains("CrossEntropyLoss") && row.contains(">f32<")), "{found:#?}");
    let again = "./scripts/parity --seed 7 --device cpu --backend auto --filter &#39;torch.nn.CrossEntropyLoss/&#39;";
    assert!(found.iter().any(|row| row.contains(again) || row.contains(&again.replace("&#39;", "'"))), "{found:#?}");

    let failed = opened("FAILED").unwrap();
    assert_eq!(rows(&failed).len(), 1);
    assert!(rows(&failed)[0].contains("L1Loss"));
    // What differs is shown as words, and is no part of the page.
    assert!(all.contains("/script&gt;&lt;b&gt;element 7") || all.contains("&#60;b&#62;element 7"));

    assert!(rows(&opened("nothing is called so").unwrap()).is_empty());
}

#[test]
fn a_browser_finds_a_row_by_its_filter() {
    check(in_browser, "Chromium or Chrome");
}

#[test]
fn the_program_finds_a_row_by_its_filter() {
    check(in_node, "Node");
}
