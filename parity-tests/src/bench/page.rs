//! What was measured, as a page to look at in a browser.

use clap::ValueEnum;

use super::measure::Quartiles;
use super::report::{MemoryRecord, Record, Report, time};
use crate::page::{Cell, Column, Kind, Page, Table};

/// The page of a run.
pub fn page(report: &Report) -> Page {
    let slower = report.records.iter().filter(|record| record.eager_ratio.median < 1.0).count();
    let (rows, failed) = (report.records.len(), report.failures.len());
    let summary = format!("{rows} measurements, {slower} slower than the reference, {failed} failed");
    let tables =
        [Some(times(report)), memory(report), lines("Not available", &report.notes), lines("FAILED", &report.failures)];
    Page {
        title: "Speed of tch-losses beside PyTorch".into(),
        summary,
        good: report.failures.is_empty(),
        facts: report.machine.facts(),
        tables: tables.into_iter().flatten().collect(),
    }
}

fn times(report: &Report) -> Table {
    let columns = vec![
        Column::new("loss", Kind::Text, ""),
        Column::new("size", Kind::Choice, ""),
        Column::new("shape", Kind::Text, ""),
        Column::new("pass", Kind::Choice, "fwd: inputs without gradient; fwd+bwd: the loss and its gradients"),
        Column::new("ours", Kind::Number, "median time of a call"),
        Column::new("eager", Kind::Number, "the same of the reference as it is"),
        Column::new("compile", Kind::Number, "the same under torch.compile"),
        Column::new("eager/ours", Kind::Number, "median of the ratios of the rounds; above 1 this crate is faster"),
        Column::new("quartiles", Kind::Text, "of that ratio"),
        Column::new("compile/ours", Kind::Number, "the same for torch.compile"),
        Column::new("of copy", Kind::Number, "the time of the least memory traffic at the speed of a copy, over ours"),
        Column::new("run it again", Kind::Command, "in a clone of the repository"),
        Column::new("reference", Kind::Text, ""),
    ];
    let row = |record: &Record| {
        let size = record.size.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
        let again = format!(
            "./scripts/bench --dtype {} --threads {} --sizes {size} --filter '{}'",
            report.machine.dtype.name(),
            report.machine.threads,
            // A comma would end the name.
            record.loss.split(',').next().unwrap_or_default()
        );
        let Quartiles { lower, upper, .. } = record.eager_ratio;
        vec![
            record.loss.into(),
            size.into(),
            record.shape.as_str().into(),
            record.pass.title().into(),
            seconds(record.ours),
            seconds(record.eager),
            record.compile.map_or(Cell::Empty, seconds),
            times_as_fast(record.eager_ratio),
            format!("{lower:.2}–{upper:.2}").into(),
            record.compile_ratio.map_or(Cell::Empty, times_as_fast),
            record.of_copy.map_or(Cell::Empty, |share| Cell::Number(share, format!("{:.0} %", 100.0 * share))),
            again.into(),
            record.reference.into(),
        ]
    };
    let note = "The sides take turns in one run, after their values and gradients were compared.";
    Table { title: "Time of a call".into(), note: note.into(), columns, rows: report.records.iter().map(row).collect() }
}

fn seconds(quartiles: Quartiles) -> Cell {
    Cell::Number(quartiles.median, time(quartiles.median))
}

fn times_as_fast(ratio: Quartiles) -> Cell {
    Cell::Number(ratio.median, format!("{:.2}", ratio.median))
}

fn memory(report: &Report) -> Option<Table> {
    let columns = vec![
        Column::new("loss", Kind::Text, ""),
        Column::new("shape", Kind::Text, ""),
        Column::new("kept, ours", Kind::Number, "what the result of forward holds for backward"),
        Column::new("kept, eager", Kind::Number, ""),
        Column::new("peak, ours", Kind::Number, "the most at a time, gradients included"),
        Column::new("peak, eager", Kind::Number, ""),
    ];
    let row = |record: &MemoryRecord| {
        let multiple = |bytes: u64| {
            let times = bytes as f64 / record.input_bytes as f64;
            Cell::Number(times, format!("{times:.2}"))
        };
        vec![
            record.loss.into(),
            record.shape.as_str().into(),
            multiple(record.ours.kept),
            multiple(record.eager.kept),
            multiple(record.ours.peak),
            multiple(record.eager.peak),
        ]
    };
    let rows: Vec<Vec<Cell>> = report.memory.iter().map(row).collect();
    let note = "In multiples of the inputs that get a gradient.";
    (!rows.is_empty()).then(|| Table { title: "Memory of a training step".into(), note: note.into(), columns, rows })
}

fn lines(title: &str, lines: &[String]) -> Option<Table> {
    let rows: Vec<Vec<Cell>> = lines.iter().map(|line| vec![line.as_str().into()]).collect();
    let columns = vec![Column::new("what", Kind::Text, "")];
    (!rows.is_empty()).then(|| Table { title: title.into(), note: String::new(), columns, rows })
}
