//! The page of a check: a row for each loss, dtype and backend, and what differs on purpose, with the commands that repeat
//! it.

use std::collections::{BTreeMap, BTreeSet};

use crate::adapters;
use crate::case::Case;
use crate::check::{BackendName, CheckOptions};
use crate::compare::{Measure, Verdict};
use crate::differences::{DIFFERENCES, Difference};
use crate::page::{Cell, Column, Kind, Page, Table};
use crate::results::Versions;
use crate::table;

/// Upper ends of the bins of errors, in units of the tolerance; below the first one are results equal bit by bit, and
/// beyond the last one those that are nearer to double precision than the reference.
const BINS: [f64; 5] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0];
const BINS_MEANING: &str = "cases by their largest error in units of the tolerance; from the left: equal bit by bit, \
    below 0.0001, 0.001, 0.01, 0.1, 1, and beyond, but nearer to double precision than the reference";
const DTYPES: [&str; 4] = ["f64", "f32", "bf16", "f16"];

/// One backend of the crate, with the verdict of each case.
pub type Side<'a> = (BackendName, &'a [Verdict]);

/// The page of a check.
pub fn page(cases: &[Case], sides: &[Side], versions: &Versions, options: &CheckOptions, summary: String) -> Page {
    let verdicts = || sides.iter().flat_map(|(_, verdicts)| verdicts.iter());
    let good = !verdicts().any(|verdict| matches!(verdict, Verdict::Failed(_)));
    let tables = [
        Some(losses(cases, sides, options)),
        failures(cases, sides, options),
        differences(sides),
        not_checked(cases, sides),
    ];
    Page {
        title: "Parity of tch-losses with its references".into(),
        summary,
        good,
        facts: facts(versions, options),
        tables: tables.into_iter().flatten().collect(),
    }
}

fn facts(versions: &Versions, options: &CheckOptions) -> Vec<(String, String)> {
    let mut facts = vec![
        ("tch-losses".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("device".to_owned(), options.device.to_string()),
        ("processor".to_owned(), crate::check::processor()),
        ("threads".to_owned(), options.threads.to_string()),
        ("seed".to_owned(), options.seed.to_string()),
    ];
    facts.extend(options.filter.iter().map(|filter| ("only cases with".to_owned(), filter.clone())));
    let others = versions.iter().filter(|(name, _)| *name != "device");
    facts.extend(others.map(|(name, version)| (name.clone(), version.clone())));
    facts
}

/// What the cases of a loss in a dtype have shown.
#[derive(Default)]
struct Row<'a> {
    references: BTreeSet<&'a str>,
    counts: table::Row,
    bins: [usize; BINS.len() + 2],
    worst: f64,
}

impl<'a> Row<'a> {
    fn add(&mut self, case: &'a Case, verdict: &Verdict) {
        self.references.insert(&case.reference);
        self.counts.add(verdict);
        if let Verdict::Equal(measure) = verdict {
            self.bins[bin(measure)] += 1;
            self.worst = self.worst.max(measure.of_tolerance);
        }
    }
}

/// The place of a case among the bars.
fn bin(measure: &Measure) -> usize {
    match measure {
        Measure { bitwise: true, .. } => 0,
        Measure { by_truth: true, .. } => BINS.len() + 1,
        _ => 1 + BINS.iter().position(|end| measure.of_tolerance < *end).unwrap_or(BINS.len() - 1),
    }
}

fn losses(cases: &[Case], sides: &[Side], options: &CheckOptions) -> Table {
    let columns = vec![
        Column::new("loss", Kind::Text, "the Python class; its function counts here, too"),
        Column::new("dtype", Kind::Choice, ""),
        Column::new("device", Kind::Choice, ""),
        Column::new("computed by", Kind::Choice, "fused engines where there is one, or tensor operations alone"),
        Column::new("verdict", Kind::Choice, ""),
        Column::new("cases", Kind::Number, "calls of the reference"),
        Column::new("errors", Kind::Bars, BINS_MEANING),
        Column::new("worst", Kind::Number, "the largest error of an element, in units of the tolerance of its dtype"),
        Column::new("run it again", Kind::Command, "in a clone of the repository; other dtypes of the loss run, too"),
        Column::new("ULPs", Kind::Number, "the largest error in units in the last place"),
        Column::new("gradients", Kind::Number, "gradients compared"),
        Column::new("second", Kind::Number, "second derivatives compared"),
        Column::new("rejected", Kind::Number, "calls that both sides reject"),
        Column::new("better", Kind::Number, "deliberate differences, listed below"),
        Column::new("n/a", Kind::Number, "calls that the reference cannot run here, listed below"),
        Column::new("failed", Kind::Number, "cases that differ"),
        Column::new("references", Kind::Text, ""),
    ];
    let mut rows = Vec::new();
    for (backend, verdicts) in sides {
        let mut found: BTreeMap<(usize, usize), (&str, Row)> = BTreeMap::new();
        for (case, verdict) in cases.iter().zip(*verdicts) {
            let (place, name) = loss_of(case);
            found.entry((place, dtype_of(case))).or_insert((name, Row::default())).1.add(case, verdict);
        }
        rows.extend(found.iter().map(|((_, dtype), (name, row))| cells(name, *dtype, *backend, row, options)));
    }
    let note = "Within the tolerance, which is that of torch.testing.assert_close, results are equal. Where both sides \
        are the same ATen operations in the same order, they are equal bit by bit.";
    Table { title: "Losses".into(), note: note.into(), columns, rows }
}

/// The name of a loss, and its place in the order of the adapters.
fn loss_of(case: &Case) -> (usize, &'static str) {
    let name = adapters::find(&case.reference).map_or("(no adapter)", |adapter| adapter.name);
    (adapters::all().position(|adapter| adapter.name == name).unwrap_or(usize::MAX), name)
}

/// The place of the dtype in the id of a case.
fn dtype_of(case: &Case) -> usize {
    let named = |dtype: &&str| case.id.split('/').any(|part| part == *dtype);
    DTYPES.iter().position(named).unwrap_or(DTYPES.len())
}

fn cells(name: &str, dtype: usize, backend: BackendName, row: &Row, options: &CheckOptions) -> Vec<Cell> {
    let references: Vec<&str> = row.references.iter().copied().collect();
    let commands: Vec<String> =
        references.iter().map(|reference| command(backend, &format!("{reference}/"), options)).collect();
    let counts = &row.counts;
    vec![
        name.into(),
        DTYPES.get(dtype).copied().unwrap_or("several").into(),
        options.device.to_string().into(),
        backend.describe().into(),
        counts.verdict().into(),
        counts.cases.into(),
        Cell::Bars(row.bins.to_vec()),
        Cell::Number(row.worst, if row.worst > 0.0 { format!("{:.1e}", row.worst) } else { "0".into() }),
        commands.join(" && ").into(),
        (counts.ulps as usize).into(),
        counts.gradients.into(),
        counts.second_order.into(),
        counts.rejected.into(),
        counts.different.into(),
        counts.not_checked.into(),
        counts.failed.into(),
        references.join(", ").into(),
    ]
}

/// What repeats the cases whose id contains `filter`.
fn command(backend: BackendName, filter: &str, options: &CheckOptions) -> String {
    let (seed, device) = (options.seed, options.device);
    let quoted = filter.replace('\'', r"'\''");
    format!("./scripts/parity --seed {seed} --device {device} --backend {} --filter '{quoted}'", backend.name())
}

fn failures(cases: &[Case], sides: &[Side], options: &CheckOptions) -> Option<Table> {
    let mut rows = Vec::new();
    for (backend, verdicts) in sides {
        for (case, verdict) in cases.iter().zip(*verdicts) {
            let Verdict::Failed(reason) = verdict else { continue };
            let again = command(*backend, &case.id, options);
            let cells: [Cell; 4] =
                [case.id.as_str().into(), backend.describe().into(), reason.as_str().into(), again.into()];
            rows.push(cells.to_vec());
        }
    }
    let columns = vec![
        Column::new("case", Kind::Text, ""),
        Column::new("computed by", Kind::Choice, ""),
        Column::new("what differs", Kind::Text, ""),
        Column::new("run it again", Kind::Command, "in a clone of the repository"),
    ];
    filled("Failures", "", columns, rows)
}

fn differences(sides: &[Side]) -> Option<Table> {
    let mut rows = Vec::new();
    for (backend, verdicts) in sides {
        let shown = |row: &Difference| {
            let by_row = |verdict: &&Verdict| matches!(verdict, Verdict::Different(difference) if *difference == row);
            verdicts.iter().filter(by_row).count()
        };
        for (row, count) in DIFFERENCES.iter().map(|row| (row, shown(row))).filter(|(_, count)| *count > 0) {
            let cells: [Cell; 5] = [
                row.cases.join(" ").into(),
                row.rule.describe().into(),
                row.reason.into(),
                backend.describe().into(),
                count.into(),
            ];
            rows.push(cells.to_vec());
        }
    }
    let columns = vec![
        Column::new("of", Kind::Text, "the cases whose id begins so"),
        Column::new("what differs", Kind::Text, ""),
        Column::new("why", Kind::Text, ""),
        Column::new("computed by", Kind::Choice, ""),
        Column::new("cases", Kind::Number, ""),
    ];
    let note = "Where the crate differs from a reference on purpose. These cases run, and differ in no other way.";
    filled("Deliberate differences", note, columns, rows)
}

fn not_checked(cases: &[Case], sides: &[Side]) -> Option<Table> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (_, verdicts) in sides {
        for (case, verdict) in cases.iter().zip(*verdicts) {
            let Verdict::NotChecked(reason) = verdict else { continue };
            *counts.entry((&case.reference, reason)).or_default() += 1;
        }
    }
    let rows =
        counts.into_iter().map(|((reference, reason), count)| vec![reference.into(), reason.into(), count.into()]);
    let columns = vec![
        Column::new("reference", Kind::Text, ""),
        Column::new("it says", Kind::Text, ""),
        Column::new("cases", Kind::Number, ""),
    ];
    filled("Not checked, because the reference cannot run it here", "", columns, rows.collect())
}

/// A table, or nothing where it has no rows.
fn filled(title: &str, note: &str, columns: Vec<Column>, rows: Vec<Vec<Cell>>) -> Option<Table> {
    (!rows.is_empty()).then(|| Table { title: title.into(), note: note.into(), columns, rows })
}
