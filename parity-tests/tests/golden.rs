//! The crate against stored results of PyTorch.

mod common;

use std::collections::BTreeSet;

use common::Golden;
use parity::adapters;
use parity::case::Case;
use parity::compare::Verdict;
use parity::eval::run_adapter;
use tch_losses::{Backend, with_backend};

/// The cases that differ, with the reason.
fn failed(golden: &Golden, backend: Backend) -> Vec<(&Case, String)> {
    let verdicts = with_backend(backend, || golden.verdicts(&run_adapter));
    let failed = verdicts.into_iter().filter_map(|(case, verdict)| match verdict {
        Verdict::Failed(reason) => Some((case, reason)),
        _ => None,
    });
    failed.collect()
}

#[test]
fn the_crate_equals_the_golden_results() {
    let golden = Golden::read();
    let failed = failed(&golden, Backend::Composite);
    assert!(failed.is_empty(), "{} of {} cases differ: {failed:#?}", failed.len(), golden.cases.len());
}

#[test]
fn the_engines_equal_the_golden_results() {
    let golden = Golden::read();
    let failed = failed(&golden, Backend::Auto);
    assert!(failed.is_empty(), "{} of {} cases differ: {failed:#?}", failed.len(), golden.cases.len());
}

#[test]
fn the_golden_results_cover_every_loss() {
    let golden = Golden::read();
    let seen: BTreeSet<&str> = golden
        .verdicts(&run_adapter)
        .iter()
        .filter(|(_, verdict)| matches!(verdict, Verdict::Equal(_)))
        .filter_map(|(case, _)| adapters::find(&case.reference).map(|adapter| adapter.name))
        .collect();
    let all: BTreeSet<&str> = adapters::all().map(|adapter| adapter.name).collect();
    assert_eq!(seen, all);
}

#[test]
fn the_golden_files_stay_small() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let size =
        |dir| -> u64 { std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum() };
    let bytes = size(golden.join("modules")) + size(golden.join("truth")) + size(golden);
    assert!(bytes < 3_000_000, "{bytes} bytes");
}
