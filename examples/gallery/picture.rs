//! What a picture shows: curves of a loss over one number, and beside them a scene that says what the number is.

use anyhow::{Context, Result, ensure};
use std::ops::Range;
use tch::Tensor;

use crate::scene::Scene;

/// A loss as a function of one number: a scalar tensor in double precision that requires a gradient.
pub type Function = Box<dyn Fn(&Tensor) -> Tensor>;

/// How many places of the axis a curve is computed at.
const SAMPLES: u32 = 161;
/// What numbers are rounded to.
const PLACES: f64 = 1e9;

/// A number without the digits that may differ between processors, and with them a pixel.
pub fn rounded(number: f64) -> f64 {
    (number * PLACES).round() / PLACES
}

/// A picture of one loss.
pub struct Picture {
    /// The name of its file, which is that of the loss in data where it has one.
    pub name: &'static str,
    /// The types on whose pages it is shown; the first one is its title.
    pub losses: &'static [&'static str],
    /// What the curves are drawn over.
    pub axis: &'static str,
    /// From where to where.
    pub range: Range<f64>,
    /// The lines, each with what makes it differ from the others.
    pub curves: Vec<(String, Function)>,
    /// What stands beside the curves.
    pub scene: Option<Box<dyn Fn() -> Scene>>,
}

impl Picture {
    /// A picture without curves.
    pub fn new(name: &'static str, losses: &'static [&'static str], axis: &'static str, range: Range<f64>) -> Self {
        Picture { name, losses, axis, range, curves: Vec::new(), scene: None }
    }

    /// Adds a line.
    pub fn curve(mut self, label: impl Into<String>, loss: impl Fn(&Tensor) -> Tensor + 'static) -> Self {
        self.curves.push((label.into(), Box::new(loss)));
        self
    }

    /// Adds a line for each of some numbers.
    pub fn each<F: Fn(&Tensor) -> Tensor + 'static>(
        self,
        symbol: &str,
        numbers: &[f64],
        loss: impl Fn(f64) -> F,
    ) -> Self {
        numbers.iter().fold(self, |picture, number| picture.curve(format!("{symbol} {number}"), loss(*number)))
    }

    /// Puts a scene beside the curves.
    pub fn scene(mut self, scene: impl Fn() -> Scene + 'static) -> Self {
        self.scene = Some(Box::new(scene));
        self
    }

    /// Computes the lines.
    pub fn trace(&self) -> Result<Vec<Trace>> {
        let trace = |(label, loss): &(String, Function)| {
            let steps = f64::from(SAMPLES - 1);
            let at = |step: u32| self.range.start + (self.range.end - self.range.start) * f64::from(step) / steps;
            let samples = (0..SAMPLES).map(|step| sample(loss, at(step)));
            samples.collect::<Result<Trace>>().with_context(|| format!("{}, {label}", self.name))
        };
        self.curves.iter().map(trace).collect()
    }
}

/// A computed line.
pub type Trace = Vec<Sample>;

/// A loss and its gradient at one place.
#[derive(Clone, Copy)]
pub struct Sample {
    pub at: f64,
    pub value: f64,
    pub slope: f64,
}

/// Calls the loss as a training would: forward, then the gradient by autograd.
fn sample(loss: &Function, at: f64) -> Result<Sample> {
    let x = Tensor::from(at).set_requires_grad(true);
    let value = loss(&x);
    ensure!(value.numel() == 1, "the loss has the shape {:?}", value.size());
    value.f_backward()?;
    let gradient = x.grad();
    ensure!(gradient.defined(), "the loss has no gradient");
    Ok(Sample { at, value: rounded(value.double_value(&[])), slope: rounded(gradient.double_value(&[])) })
}
