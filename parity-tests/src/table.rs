//! From the verdicts of the cases to one row per loss.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use tch::Kind;

use crate::adapters;
use crate::case::Case;
use crate::compare::{Measure, Verdict};
use crate::differences::DIFFERENCES;

/// The sums over the cases of one loss.
#[derive(Debug, Default)]
pub struct Row {
    pub(crate) cases: usize,
    by_kind: [usize; 4],
    bitwise: usize,
    pub(crate) ulps: u64,
    absolute: f64,
    by_truth: usize,
    pub(crate) gradients: usize,
    pub(crate) second_order: usize,
    pub(crate) rejected: usize,
    pub(crate) different: usize,
    pub(crate) not_checked: usize,
    pub(crate) failed: usize,
}

const KINDS: [Kind; 4] = [Kind::Double, Kind::Float, Kind::BFloat16, Kind::Half];

impl Row {
    pub(crate) fn add(&mut self, verdict: &Verdict) {
        self.cases += 1;
        match verdict {
            Verdict::Equal(measure) => self.add_measure(measure),
            Verdict::Rejected => self.rejected += 1,
            Verdict::Different(_) => self.different += 1,
            Verdict::NotChecked(_) => self.not_checked += 1,
            Verdict::Failed(_) => self.failed += 1,
        }
    }

    fn add_measure(&mut self, measure: &Measure) {
        if let Some(position) = KINDS.iter().position(|kind| Some(*kind) == measure.kind) {
            self.by_kind[position] += 1;
        }
        self.bitwise += usize::from(measure.bitwise);
        self.by_truth += usize::from(measure.by_truth);
        self.ulps = self.ulps.max(measure.ulps);
        self.absolute = self.absolute.max(measure.absolute);
        self.gradients += measure.gradients;
        self.second_order += measure.second_order;
    }

    fn passed(&self) -> usize {
        self.cases - self.failed - self.not_checked
    }

    pub(crate) fn verdict(&self) -> &'static str {
        match (self.failed, self.passed()) {
            (0, 0) => "not checked",
            (0, _) => "equal",
            _ => "FAILED",
        }
    }

    fn cells(&self, name: &str) -> Vec<String> {
        let mut cells = vec![name.to_owned(), self.cases.to_string()];
        cells.extend(self.by_kind.iter().map(usize::to_string));
        cells.push(self.bitwise.to_string());
        cells.push(self.ulps.to_string());
        cells.push(format!("{:.1e}", self.absolute));
        let rest = [
            self.by_truth,
            self.gradients,
            self.second_order,
            self.rejected,
            self.different,
            self.not_checked,
            self.failed,
        ];
        cells.extend(rest.iter().map(usize::to_string));
        cells.push(self.verdict().to_owned());
        cells
    }

    fn merge(&mut self, other: &Row) {
        self.cases += other.cases;
        for (sum, count) in self.by_kind.iter_mut().zip(other.by_kind) {
            *sum += count;
        }
        self.bitwise += other.bitwise;
        self.by_truth += other.by_truth;
        self.ulps = self.ulps.max(other.ulps);
        self.absolute = self.absolute.max(other.absolute);
        self.gradients += other.gradients;
        self.second_order += other.second_order;
        self.rejected += other.rejected;
        self.different += other.different;
        self.not_checked += other.not_checked;
        self.failed += other.failed;
    }
}

/// The columns, and what they count.
pub const COLUMNS: [(&str, &str); 17] = [
    ("loss", "the Python class; its function counts here too"),
    ("cases", "calls of the reference"),
    ("f64", "compared in this dtype"),
    ("f32", "compared in this dtype"),
    ("bf16", "compared in this dtype"),
    ("f16", "compared in this dtype"),
    ("bitwise", "of the compared cases, those with all outputs and gradients equal bit by bit"),
    ("ULPs", "the largest distance in units in the last place, of elements above the absolute tolerance"),
    ("abs", "the largest absolute distance"),
    ("truer", "compared cases beyond the tolerance, closer to the f64 result than the reference is"),
    ("grads", "gradients compared"),
    ("2nd", "second derivatives compared"),
    ("rejected", "calls that both sides reject"),
    ("better", "deliberate differences; listed below the table"),
    ("n/a", "calls that the reference cannot run here; listed below the table"),
    ("failed", "cases that differ"),
    ("verdict", ""),
];

/// All verdicts of a run.
#[derive(Debug)]
pub struct Summary {
    rows: BTreeMap<&'static str, Row>,
    total: Row,
    failures: Vec<(String, String)>,
    not_checked: BTreeMap<String, usize>,
    different: Vec<usize>,
}

/// One line for machines and people.
pub fn closing_line(summaries: &[&Summary]) -> String {
    let count = |of: fn(&Row) -> usize| summaries.iter().map(|summary| of(&summary.total)).sum::<usize>();
    let (passed, failed) = (count(Row::passed), count(|row| row.failed));
    format!("parity: {passed} passed, {failed} failed, {} not checked", count(|row| row.not_checked))
}

impl Summary {
    /// Sums up the verdicts of cases.
    pub fn new(cases: &[Case], verdicts: &[Verdict]) -> Summary {
        let mut summary = Summary {
            rows: BTreeMap::new(),
            total: Row::default(),
            failures: Vec::new(),
            not_checked: BTreeMap::new(),
            different: vec![0; DIFFERENCES.len()],
        };
        for (case, verdict) in cases.iter().zip(verdicts) {
            let name = adapters::find(&case.reference).map_or("(no adapter)", |adapter| adapter.name);
            summary.rows.entry(name).or_default().add(verdict);
            match verdict {
                Verdict::Failed(reason) => summary.failures.push((case.id.clone(), reason.clone())),
                Verdict::NotChecked(reason) => *summary.not_checked.entry(reason.clone()).or_default() += 1,
                Verdict::Different(difference) => {
                    let position = DIFFERENCES.iter().position(|row| row == *difference);
                    summary.different[position.unwrap_or(0)] += 1;
                }
                Verdict::Equal(_) | Verdict::Rejected => {}
            }
        }
        let mut total = Row::default();
        summary.rows.values().for_each(|row| total.merge(row));
        summary.total = total;
        summary
    }

    /// The cases that differ, and how.
    pub fn failures(&self) -> &[(String, String)] {
        &self.failures
    }

    /// The table of losses, readable in a terminal and as Markdown.
    pub fn losses(&self) -> String {
        let mut table = markdown(COLUMNS.iter().map(|(name, _)| (*name).to_owned()).collect());
        for adapter in adapters::all() {
            if let Some(row) = self.rows.get(adapter.name).filter(|_| is_first_of_its_name(adapter)) {
                table.add_row(row.cells(adapter.name));
            }
        }
        if let Some(row) = self.rows.get("(no adapter)") {
            table.add_row(row.cells("(no adapter)"));
        }
        table.add_row(self.total.cells("all"));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }

    /// The deliberate differences that were seen, or nothing.
    pub fn differences(&self) -> Option<String> {
        let mut table = markdown(vec!["cases".into(), "of".into(), "what differs".into(), "why".into()]);
        for (difference, count) in DIFFERENCES.iter().zip(&self.different).filter(|(_, count)| **count > 0) {
            let ids = difference.cases.join(" ");
            table.add_row([&count.to_string(), &ids, difference.rule.describe(), difference.reason]);
        }
        (!table.is_empty()).then(|| table.to_string())
    }

    /// Deliberate differences that no case showed.
    pub fn unseen_differences(&self) -> impl Iterator<Item = &'static str> {
        let rows = DIFFERENCES.iter().zip(&self.different);
        rows.filter(|(row, count)| **count == 0 && !row.rule.is_of_cuda()).map(|(row, _)| row.reason)
    }

    /// What the reference cannot run here, or nothing.
    pub fn not_checked(&self) -> Option<String> {
        let mut table = markdown(vec!["cases".into(), "the reference says".into()]);
        for (reason, count) in &self.not_checked {
            table.add_row([&count.to_string(), reason]);
        }
        (!table.is_empty()).then(|| table.to_string())
    }
}

fn is_first_of_its_name(adapter: &adapters::Adapter) -> bool {
    adapters::all().find(|other| other.name == adapter.name).is_some_and(|first| std::ptr::eq(first, adapter))
}

fn markdown(header: Vec<String>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    table
}
