//! What a run has shown.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};

use super::child::Report;
use super::class::Class;
use super::references::has_reference;

/// The calls of one loss.
#[derive(Debug, Default)]
pub struct Calls {
    /// Computed ones.
    pub accepted: u64,
    /// The others.
    pub rejected: u64,
    /// Why they were rejected, without the numbers.
    pub reasons: BTreeMap<String, u64>,
}

/// Findings of one class and one loss.
#[derive(Debug)]
pub struct Findings {
    /// How many.
    pub count: u64,
    /// The seed of the call with the fewest elements.
    pub seed: u64,
    elements: usize,
    /// The first ones.
    pub seeds: Vec<u64>,
    /// What is wrong with that one.
    pub detail: String,
}

/// All calls of a run.
#[derive(Debug, Default)]
pub struct Summary {
    /// By loss.
    pub losses: BTreeMap<String, Calls>,
    /// Calls without a finding, of losses that have a reference in Python.
    pub comparable: Vec<u64>,
    /// By class and loss.
    pub findings: BTreeMap<(Class, String), Findings>,
}

impl Summary {
    /// Counts a call.
    pub fn call(&mut self, seed: u64, report: &Report) {
        let calls = self.losses.entry(report.loss.clone()).or_default();
        *if report.accepted { &mut calls.accepted } else { &mut calls.rejected } += 1;
        if report.accepted && report.findings.is_empty() && has_reference(&report.loss) {
            self.comparable.push(seed);
        }
        if let Some(reason) = &report.reason {
            *calls.reasons.entry(without_numbers(reason)).or_default() += 1;
        }
        for (name, detail) in &report.findings {
            if let Some(class) = Class::ALL.into_iter().find(|class| class.name() == name) {
                self.finding(class, &report.loss, seed, report.elements, detail);
            }
        }
    }

    /// Counts a finding that is not of the process of its call, or has ended it.
    pub fn end(&mut self, loss: &str, seed: u64, class: Class, detail: &str) {
        self.losses.entry(loss.to_owned()).or_default();
        self.finding(class, loss, seed, usize::MAX, detail);
    }

    fn finding(&mut self, class: Class, loss: &str, seed: u64, elements: usize, detail: &str) {
        const FIRST: usize = 20;
        let new = || Findings { count: 0, seed, elements: usize::MAX, seeds: Vec::new(), detail: detail.to_owned() };
        let findings = self.findings.entry((class, loss.to_owned())).or_insert_with(new);
        findings.count += 1;
        if findings.seeds.len() < FIRST {
            findings.seeds.push(seed);
        }
        if elements < findings.elements {
            (findings.seed, findings.elements, findings.detail) = (seed, elements, detail.to_owned());
        }
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        let ended: u64 = self.of_processes().map(|(_, findings)| findings.count).sum();
        self.losses.values().map(|calls| calls.accepted + calls.rejected).sum::<u64>() + ended
    }

    fn of_processes(&self) -> impl Iterator<Item = (&(Class, String), &Findings)> {
        self.findings.iter().filter(|((class, _), _)| matches!(class, Class::Crash | Class::Hang))
    }

    /// How many of them were computed.
    pub fn accepted(&self) -> u64 {
        self.losses.values().map(|calls| calls.accepted).sum()
    }

    /// How many findings of these classes there are.
    pub fn count(&self, classes: &[Class]) -> u64 {
        let counted = self.findings.iter().filter(|((class, _), _)| classes.contains(class));
        counted.map(|(_, findings)| findings.count).sum()
    }

    /// The findings, one row for each class and loss.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["finding", "loss", "calls", "smallest", "what"]);
        for ((class, loss), findings) in &self.findings {
            let (count, seed) = (findings.count.to_string(), findings.seed.to_string());
            table.add_row([class.name(), loss, &count, &seed, &findings.detail]);
        }
        table
    }

    /// The seeds of the findings: up to 20 of each class and loss.
    pub fn seeds(&self) -> String {
        let line = |((class, loss), findings): (&(Class, String), &Findings)| {
            let seeds = findings.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
            format!("{} {loss}: {seeds}\n", class.name())
        };
        self.findings.iter().map(line).collect()
    }

    /// How often each loss was computed.
    pub fn coverage(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["loss", "accepted", "rejected", "share", "most often because"]);
        for (loss, calls) in &self.losses {
            let share = 100.0 * calls.accepted as f64 / (calls.accepted + calls.rejected).max(1) as f64;
            let (accepted, rejected) = (calls.accepted.to_string(), calls.rejected.to_string());
            let reason = calls.reasons.iter().max_by_key(|(_, count)| **count);
            let reason = reason.map_or(String::new(), |(reason, count)| format!("{count}: {reason}"));
            table.add_row([loss, &accepted, &rejected, &format!("{share:.0} %"), &reason]);
        }
        table
    }
}

/// The same for all calls that are rejected for one reason, and not too long.
fn without_numbers(reason: &str) -> String {
    const LONGEST: usize = 90;
    let mut text = String::new();
    for letter in reason.chars().take(2 * LONGEST) {
        let letter = if letter.is_ascii_digit() { '#' } else { letter };
        if !(letter == '#' && text.ends_with('#')) {
            text.push(letter);
        }
    }
    text.chars().take(LONGEST).collect()
}
