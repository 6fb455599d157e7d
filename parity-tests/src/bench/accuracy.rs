//! How far results in single precision are from those in double precision: the crate's, and PyTorch's.

use anyhow::{Context, Result};
use comfy_table::Table;
use tch::{Kind, Tensor};

use super::ours::Ours;
use super::report::table;
use super::workloads::{Inputs, Workload};
use super::{Bench, write};
use crate::progress;
use crate::results::{Results, Status};

/// What the first argument is multiplied by.
const MAGNITUDES: [f64; 3] = [0.01, 1.0, 30.0];

/// A relative distance of one unit in the last place: nearer than that single precision cannot tell who is right.
const UNIT: f64 = f32::EPSILON as f64;
/// So much more than PyTorch's distance is the luck of rounding.
const LUCK: f64 = 1.1;

const LEGEND: &str = "Relative distance from the same reference computed in double precision: that of the value, and that of all \
gradients together (the norm of the difference over the norm). input ×: what the first argument is multiplied by. Marked \
with ✗: more than one unit in the last place (1.2e-7) away, and a tenth further than PyTorch, in the median of three draws of \
the arguments.";

/// How often a result that is further than PyTorch's is looked at: once is the luck of a sum, or of a number at a step.
const DRAWS: i64 = 3;

/// The relative distances of a result from the one in double precision.
#[derive(Debug, Clone, Copy)]
struct Distance {
    value: f64,
    gradient: f64,
}

/// The crate's and PyTorch's.
#[derive(Debug, Clone, Copy)]
struct Distances {
    ours: Distance,
    eager: Distance,
}

impl Distances {
    /// Whether the crate's value and gradient are as near as PyTorch's.
    fn near(&self) -> [bool; 2] {
        // PyTorch's may be NaN.
        let is_near =
            |ours: f64, eager: f64| ours <= UNIT || ours <= eager * LUCK || (eager.is_nan() && !ours.is_nan());
        [is_near(self.ours.value, self.eager.value), is_near(self.ours.gradient, self.eager.gradient)]
    }
}

/// Measures all workloads. Whether the crate is nowhere further away than PyTorch.
pub fn run(mut bench: Bench) -> Result<bool> {
    let workloads = std::mem::take(&mut bench.workloads);
    let mut rows = table(&["loss", "shape", "input ×", "value ours", "eager", "gradient ours", "eager"], 2);
    let (mut further, mut notes) = (0, Vec::new());
    let bar = progress::bar("starting", Some(workloads.len()));
    for workload in workloads {
        bar.set_message(format!("{} {}", workload.name, workload.shape()));
        for magnitude in MAGNITUDES {
            match bench.distances(&workload, magnitude) {
                Ok(distances) => further += usize::from(!add(&mut rows, &workload, magnitude, distances)),
                Err(error) => notes.push(format!("* {} {} × {magnitude}: {error:#}", workload.name, workload.shape())),
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut parts = vec![bench.report.machine.describe(), rows.to_string(), LEGEND.to_owned()];
    if !notes.is_empty() {
        parts.push(format!("Not compared:\n\n{}", notes.join("\n")));
    }
    parts.push(format!("{further} of {} further away than PyTorch", rows.row_count()));
    let text = parts.join("\n\n");
    println!("{text}");
    write(bench.options.report.as_deref(), text + "\n")?;
    Ok(further == 0)
}

/// Adds a row. Whether the crate is as near as PyTorch.
fn add(rows: &mut Table, workload: &Workload, magnitude: f64, distances: Distances) -> bool {
    let (near, Distances { ours, eager }) = (distances.near(), distances);
    let cell = |distance: f64, near: bool| format!("{}{distance:.1e}", if near { "" } else { "✗ " });
    rows.add_row([
        workload.name.to_owned(),
        workload.shape(),
        magnitude.to_string(),
        cell(ours.value, near[0]),
        cell(eager.value, true),
        cell(ours.gradient, near[1]),
        cell(eager.gradient, true),
    ]);
    near == [true, true]
}

impl Bench<'_> {
    /// The distances of the crate's and of PyTorch's result.
    fn distances(&self, workload: &Workload, magnitude: f64) -> Result<Distances> {
        let first = self.drawn_distances(workload, magnitude, 0)?;
        if first.near() == [true, true] {
            return Ok(first);
        }
        let others = (1..DRAWS).map(|seed| self.drawn_distances(workload, magnitude, seed));
        let all: Vec<Distances> = std::iter::once(Ok(first)).chain(others).collect::<Result<_>>()?;
        let middle = |of: fn(&Distances) -> f64| median(all.iter().map(of).collect());
        Ok(Distances {
            ours: Distance { value: middle(|d| d.ours.value), gradient: middle(|d| d.ours.gradient) },
            eager: Distance { value: middle(|d| d.eager.value), gradient: middle(|d| d.eager.gradient) },
        })
    }

    fn drawn_distances(&self, workload: &Workload, magnitude: f64, seed: i64) -> Result<Distances> {
        let mut inputs = workload.drawn_inputs(seed)?;
        inputs.arguments[0] = inputs.arguments[0].f_mul_scalar(magnitude)?;
        self.load(workload, &inputs)?;
        let id = workload.id();
        let values = |upcast, file: &str| self.peer.values(&id, upcast, &self.dir.path().join(file));
        let (eager, truth) = (values(false, "values.safetensors")?, values(true, "truth.safetensors")?);
        for side in [&eager, &truth] {
            let result = &side.cases[&id];
            let message = || result.message.clone().unwrap_or_default();
            anyhow::ensure!(result.status == Status::Ok, "the reference rejects it: {}", message());
        }
        let kind = truth.tensors.get(&format!("{id}:output/0")).map(Tensor::kind);
        anyhow::ensure!(kind == Some(Kind::Double), "the reference computes all precisions in a lower one: {kind:?}");
        let ours = Ours::new(workload, &inputs.f_to_device(self.options.device.0)?)?.results(&id, &inputs)?;
        Ok(Distances { ours: distance(&ours, &truth, &id, &inputs)?, eager: distance(&eager, &truth, &id, &inputs)? })
    }
}

/// The middle one of an odd number of numbers.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn distance(side: &Results, truth: &Results, id: &str, inputs: &Inputs) -> Result<Distance> {
    let gradients: Vec<String> = inputs.differentiated().iter().map(|(_, name)| format!("{id}:{name}")).collect();
    Ok(Distance {
        value: relative(side, truth, &[format!("{id}:output/0")])?,
        gradient: relative(side, truth, &gradients)?,
    })
}

/// The norm of the difference of those tensors over the norm of the truth.
fn relative(side: &Results, truth: &Results, names: &[String]) -> Result<f64> {
    let of = |results: &Results, name: &String| -> Result<Tensor> {
        let tensor = results.tensors.get(name).with_context(|| format!("there is no {name}"))?;
        Ok(tensor.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)
    };
    let square = |tensor: Tensor| -> Result<f64> { Ok(tensor.f_dot(&tensor)?.f_double_value(&[])?) };
    let (mut difference, mut norm) = (0.0, 0.0);
    for name in names {
        let truth = of(truth, name)?;
        difference += square(of(side, name)?.f_sub(&truth)?)?;
        norm += square(truth)?;
    }
    anyhow::ensure!(norm.is_finite(), "not finite in double precision");
    Ok(if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_is_more_than_a_unit_and_more_than_pytorch() {
        let near = |ours, eager| {
            let of = |distance| Distance { value: distance, gradient: distance };
            Distances { ours: of(ours), eager: of(eager) }.near()
        };
        assert_eq!(near(1e-7, 0.0), [true; 2]);
        assert_eq!(near(2e-7, 1e-7), [false; 2]);
        assert_eq!(near(2e-7, 1.9e-7), [true; 2]);
        assert_eq!(near(2e-7, f64::NAN), [true; 2]);
        assert_eq!(near(f64::NAN, f64::NAN), [false; 2]);
        assert_eq!(median(vec![3.0, 1.0, f64::NAN]), 3.0);
    }

    fn results(values: &[f64]) -> Results {
        let mut results = Results::default();
        results.tensors.insert("x".to_owned(), Tensor::from_slice(values));
        results
    }

    #[test]
    fn distances_are_relative() {
        let of = |side: &[f64], truth: &[f64]| relative(&results(side), &results(truth), &["x".to_owned()]);
        assert_eq!(of(&[3.0, 4.0], &[3.0, 4.0]).unwrap(), 0.0);
        assert_eq!(of(&[0.0, 0.0], &[0.0, 0.0]).unwrap(), 0.0);
        assert_eq!(of(&[3.0, 5.0], &[3.0, 4.0]).unwrap(), 0.2);
        assert!(of(&[f64::NAN, 4.0], &[3.0, 4.0]).unwrap().is_nan());
        assert!(of(&[3.0, 4.0], &[3.0, f64::INFINITY]).is_err());
    }
}
