//! What was measured, as text, Markdown and JSON.

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::measure::{Pass, Quartiles, geometric_mean};
use super::memory::Memory;
use super::peer::Hello;
use super::workloads::{Dtype, Size};

/// What it was measured on.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Its cores, as the system offers them.
    pub cores: usize,
    /// The threads of both sides.
    pub threads: i32,
    /// The kind of the floating arguments.
    pub dtype: Dtype,
    /// The value of `TCH_LOSSES_BACKEND`.
    pub backend: Option<String>,
    /// Bytes per second of a copy, read and written.
    pub bandwidth: f64,
    /// How many cores other processes took during the run, on average.
    pub others: Option<f64>,
    /// How many processes of the run itself kept cores busy.
    pub busy: usize,
    /// The other side.
    pub python: Hello,
}

impl Machine {
    /// This machine.
    pub fn new(python: Hello, threads: i32, dtype: Dtype) -> Result<Machine> {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Ok(Machine {
            cpu: model.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads,
            dtype,
            backend: std::env::var("TCH_LOSSES_BACKEND").ok(),
            bandwidth: 0.0,
            others: None,
            busy: 0,
            python,
        })
    }

    /// The machine in a paragraph.
    pub fn describe(&self) -> String {
        self.lines().join("  \n")
    }

    /// The machine by what is known of it.
    pub fn facts(&self) -> Vec<(String, String)> {
        let Machine { cpu, cores, threads, python, .. } = self;
        let facts = [
            ("tch-losses", Some(env!("CARGO_PKG_VERSION").to_owned())),
            ("PyTorch", Some(python.torch.clone())),
            ("Python", Some(python.python.clone())),
            ("compiler", python.compiler.clone()),
            ("GPU", python.gpu.clone()),
            ("processor", Some(format!("{cpu}, {cores} cores"))),
            ("threads", Some(threads.to_string())),
            ("arguments", Some(self.dtype.name().to_owned())),
            ("TCH_LOSSES_BACKEND", self.backend.clone()),
            ("copy of 64 MiB", Some(format!("{:.1} GB/s", self.bandwidth / 1e9))),
            ("cores that others took", self.others.map(|others| format!("{others:.2}"))),
        ];
        facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    fn lines(&self) -> Vec<String> {
        let Machine { cpu, cores, threads, python, .. } = self;
        let backend = self.backend.as_ref().map(|backend| format!("; TCH_LOSSES_BACKEND={backend}"));
        let compiler = python.compiler.as_ref().map(|compiler| format!(", {compiler}"));
        let gpu = python.gpu.as_ref().map(|gpu| format!("{gpu}; "));
        let mut lines = vec![
            format!(
                "{}{cpu}, {cores} cores; threads on both sides: {threads}; arguments: {}{}",
                gpu.unwrap_or_default(),
                self.dtype.name(),
                backend.unwrap_or_default()
            ),
            format!("PyTorch {}, Python {}{}", python.torch, python.python, compiler.unwrap_or_default()),
            format!("copy of 64 MiB: {:.1} GB/s read and written", self.bandwidth / 1e9),
        ];
        if self.busy > 0 {
            lines.push(format!("{} processes of the run kept a core busy each, but for the quiet times", self.busy));
        }
        lines.extend(self.others.map(|others| format!("other processes took {others:.2} of {cores} cores meanwhile")));
        lines
    }
}

/// One pass of one workload.
#[derive(Debug, Serialize)]
pub struct Record {
    /// The loss.
    pub loss: &'static str,
    /// The Python call.
    pub reference: &'static str,
    /// The class of the size.
    pub size: Size,
    /// The dimensions.
    pub shape: String,
    /// What was timed.
    pub pass: Pass,
    /// How often.
    pub rounds: usize,
    /// Seconds per call of the crate.
    pub ours: Quartiles,
    /// The same without the processes that keep cores busy.
    pub quiet: Option<Quartiles>,
    /// Seconds per call of PyTorch eager.
    pub eager: Quartiles,
    /// Seconds per call of `torch.compile`.
    pub compile: Option<Quartiles>,
    /// Eager's time over the crate's, round by round.
    pub eager_ratio: Quartiles,
    /// The compiled call's time over the crate's, round by round.
    pub compile_ratio: Option<Quartiles>,
    /// The time of the least memory traffic at the speed of a copy, over the crate's time; the copy takes turns, too.
    pub of_copy: Option<f64>,
}

/// The memory of a training step.
#[derive(Debug, Serialize)]
pub struct MemoryRecord {
    /// The loss.
    pub loss: &'static str,
    /// The dimensions.
    pub shape: String,
    /// The bytes of the tensors with a gradient.
    pub input_bytes: usize,
    /// The crate's.
    pub ours: Memory,
    /// PyTorch's.
    pub eager: Memory,
    /// That of the compiled call.
    pub compile: Option<Memory>,
}

/// Everything measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What it was measured on.
    pub machine: Machine,
    /// Whether `torch.compile` takes part.
    pub compile: bool,
    /// Times.
    pub records: Vec<Record>,
    /// Memory.
    pub memory: Vec<MemoryRecord>,
    /// What is missing, and why.
    pub notes: Vec<String>,
    /// Workloads that could not be measured, and why.
    pub failures: Vec<String>,
}

impl Report {
    /// A report without measurements.
    pub fn new(machine: Machine, compile: bool) -> Report {
        let (records, memory, notes, failures) = Default::default();
        Report { machine, compile, records, memory, notes, failures }
    }

    /// All as JSON.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// For the terminal.
    pub fn to_text(&self) -> String {
        self.sections(|title| title.to_owned())
    }

    /// For a file.
    pub fn to_markdown(&self) -> String {
        self.sections(|title| format!("## {title}")) + "\n"
    }

    fn sections(&self, heading: impl Fn(&str) -> String) -> String {
        let mut parts = vec![self.machine.describe()];
        let mut section = |title: &str, body: String| parts.push(format!("{}\n\n{body}", heading(title)));
        if !self.records.is_empty() {
            section("Time of a call", format!("{}\n\n{LEGEND}", self.times()));
        }
        if !self.memory.is_empty() {
            section("Memory of a training step", format!("{}\n\n{MEMORY_LEGEND}", self.memory_table()));
        }
        if let Some(means) = self.means() {
            section("Geometric means over medium and large sizes", format!("{means}\n\n{MEANS_LEGEND}"));
        }
        if !self.notes.is_empty() {
            section("Not available", bullets(&self.notes));
        }
        if !self.failures.is_empty() {
            section("FAILED", bullets(&self.failures));
        }
        parts.join("\n\n")
    }

    fn times(&self) -> Table {
        let mut header =
            vec!["loss", "shape", "pass", "ours", "eager", "compile", "eager/ours", "compile/ours", "of copy"];
        if self.machine.busy > 0 {
            header.push("of quiet");
        }
        let mut table = table(&header, 3);
        for record in &self.records {
            let of_quiet = record.quiet.map(|quiet| format!("{:.2}", record.ours.median / quiet.median));
            let cells = [
                record.loss.to_owned(),
                record.shape.clone(),
                record.pass.title().to_owned(),
                time(record.ours.median),
                time(record.eager.median),
                or_na(record.compile.map(|compile| time(compile.median))),
                ratio(record.eager_ratio),
                or_na(record.compile_ratio.map(ratio)),
                record.of_copy.map_or(String::new(), |fraction| format!("{:.0} %", fraction * 100.0)),
            ];
            table.add_row(cells.into_iter().chain(of_quiet));
        }
        table
    }

    fn memory_table(&self) -> Table {
        let header = ["loss", "shape", "input", "kept ours", "eager", "compile", "peak ours", "eager", "compile"];
        let mut table = table(&header, 2);
        for record in &self.memory {
            let multiple = |bytes: u64| format!("{:.2}", bytes as f64 / record.input_bytes as f64);
            let compile = |field: fn(Memory) -> u64| or_na(record.compile.map(field).map(multiple));
            table.add_row([
                record.loss.to_owned(),
                record.shape.clone(),
                format!("{:.1} MiB", record.input_bytes as f64 / f64::from(1 << 20)),
                multiple(record.ours.kept),
                multiple(record.eager.kept),
                compile(|memory| memory.kept),
                multiple(record.ours.peak),
                multiple(record.eager.peak),
                compile(|memory| memory.peak),
            ]);
        }
        table
    }

    /// The means per loss, or nothing where no size counts.
    fn means(&self) -> Option<Table> {
        let counted: Vec<&Record> = self.records.iter().filter(|record| record.size >= Size::Medium).collect();
        let mut losses: Vec<&str> = counted.iter().map(|record| record.loss).collect();
        losses.dedup();
        let header = ["loss", "fwd eager/ours", "fwd compile/ours", "fwd+bwd eager/ours", "fwd+bwd compile/ours"];
        let mut table = table(&header, 1);
        let cells = |loss: Option<&str>| {
            let of = |pass: Pass, ratio: fn(&Record) -> Option<Quartiles>| {
                let chosen =
                    counted.iter().filter(|record| record.pass == pass && loss.is_none_or(|l| l == record.loss));
                let ratios: Vec<f64> = chosen.filter_map(|record| Some(ratio(record)?.median)).collect();
                or_na(geometric_mean(&ratios).map(|mean| format!("{mean:.2}")))
            };
            let passes = [Pass::Forward, Pass::Backward].into_iter();
            let ratios = passes.flat_map(|pass| [of(pass, |r| Some(r.eager_ratio)), of(pass, |r| r.compile_ratio)]);
            std::iter::once(loss.unwrap_or("all").to_owned()).chain(ratios).collect::<Vec<_>>()
        };
        for loss in &losses {
            table.add_row(cells(Some(loss)));
        }
        table.add_row(cells(None));
        (!losses.is_empty()).then_some(table)
    }
}

const LEGEND: &str = "ours, eager, compile: median time of a call, in rounds in which the sides take turns. eager/ours and \
compile/ours: median of the ratios of the rounds, with their quartiles; above 1 this crate is faster. of copy: the time of \
the least memory traffic (each argument read once, each gradient written once) at the speed of the copy, over ours. of quiet: \
ours over its time without the busy processes. fwd: \
inputs without gradient. fwd+bwd: the loss and its gradients by torch.autograd.grad. Values and gradients of both sides \
were compared first.";
const MEMORY_LEGEND: &str = "in multiples of the inputs that get a gradient. kept: what the result of forward holds for \
backward. peak: the most at a time, gradients included. Growth of resident memory, each side in a process that maps each \
tensor by itself.";
const MEANS_LEGEND: &str = "above 1 this crate is faster.";

fn bullets(lines: &[String]) -> String {
    lines.iter().map(|line| format!("* {line}")).collect::<Vec<_>>().join("\n")
}

/// A table whose first columns are words.
pub fn table(header: &[&str], words: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(words) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn or_na(text: Option<String>) -> String {
    text.unwrap_or_else(|| "n/a".to_owned())
}

/// Three digits with the unit that fits.
pub fn time(seconds: f64) -> String {
    let (number, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if number < 10.0 { 2 } else { usize::from(number < 100.0) };
    format!("{number:.digits$} {unit}")
}

fn ratio(Quartiles { lower, median, upper }: Quartiles) -> String {
    format!("{median:.2} [{lower:.2}–{upper:.2}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        assert_eq!(time(1.234e-6), "1.23 µs");
        assert_eq!(time(0.01234), "12.3 ms");
        assert_eq!(time(123.4e-6), "123 µs");
        assert_eq!(time(2.5), "2.50 s");
    }
}
