//! A call in double precision, and how much its results depend on the last digits of its arguments.

use std::cell::OnceCell;

use tch::{Kind, Tensor};
use tch_losses::Backend;

use super::call::Call;
use super::random::Random;
use super::side::{Runner, Side, compute};
use super::tensors::{is_floating, values};

/// The results of a call, each as its elements; none where it has none.
#[derive(Debug, Clone, Default)]
pub struct Numbers {
    /// The outputs.
    pub outputs: Vec<Option<Vec<f64>>>,
    /// The gradients.
    pub gradients: Vec<Option<Vec<f64>>>,
    /// The second derivatives.
    pub second: Vec<Option<Vec<f64>>>,
}

/// The results in double precision. What is seldom asked for is computed when it is.
pub struct Truth<'a> {
    call: &'a Call,
    runner: &'a Runner<'a>,
    /// Those of tensor operations.
    pub composite: Numbers,
    auto: OnceCell<Option<Numbers>>,
    near: OnceCell<Vec<Numbers>>,
    far: OnceCell<Vec<Numbers>>,
}

/// Which results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The outputs.
    Output,
    /// The gradients.
    Gradient,
    /// The second derivatives.
    Second,
}

impl Numbers {
    fn of(side: &Side) -> Numbers {
        let all = |tensors: &[Tensor]| {
            tensors.iter().map(|tensor| if tensor.defined() { values(tensor).ok() } else { None }).collect()
        };
        Numbers {
            outputs: all(&side.outputs),
            gradients: side.gradients.as_ref().map_or(Vec::new(), |tensors| all(tensors)),
            second: side
                .second
                .as_ref()
                .and_then(|second| second.as_ref().ok())
                .map_or(Vec::new(), |tensors| all(tensors)),
        }
    }

    /// An element of the results.
    pub fn at(&self, which: Which, index: usize, position: usize) -> Option<f64> {
        let list = match which {
            Which::Output => &self.outputs,
            Which::Gradient => &self.gradients,
            Which::Second => &self.second,
        };
        list.get(index)?.as_ref()?.get(position).copied()
    }
}

const NEIGHBOURS: u64 = 3;

impl<'a> Truth<'a> {
    /// The truth of a call, where double precision takes it.
    pub fn new(runner: &'a Runner<'a>, call: &'a Call) -> Option<Truth<'a>> {
        let composite = numbers(runner, call, Backend::Composite, 0.0, 0)?;
        Some(Truth { call, runner, composite, auto: OnceCell::new(), near: OnceCell::new(), far: OnceCell::new() })
    }

    /// An element as the engines compute it in double precision.
    pub fn auto(&self, which: Which, index: usize, position: usize) -> Option<f64> {
        let auto = self.auto.get_or_init(|| numbers(self.runner, self.call, Backend::Auto, 0.0, 0));
        auto.as_ref()?.at(which, index, position)
    }

    /// By how much an element moves where the arguments change in their last digit.
    pub fn spread(&self, which: Which, index: usize, position: usize) -> f64 {
        self.movement(self.near.get_or_init(|| self.around(1.0)), which, index, position)
    }

    /// Whether it moves as a smooth function does, and does not jump.
    pub fn is_smooth(&self, which: Which, index: usize, position: usize) -> bool {
        let near = self.spread(which, index, position);
        let far = self.movement(self.far.get_or_init(|| self.around(16.0)), which, index, position);
        far > 0.0 && near < 0.5 * far
    }

    /// The results for arguments that are changed a little, several times.
    fn around(&self, scale: f64) -> Vec<Numbers> {
        (0..NEIGHBOURS).filter_map(|n| numbers(self.runner, self.call, Backend::Composite, scale, n)).collect()
    }

    fn movement(&self, others: &[Numbers], which: Which, index: usize, position: usize) -> f64 {
        let Some(own) = self.composite.at(which, index, position) else { return 0.0 };
        let moved = others.iter().filter_map(|other| other.at(which, index, position)).map(|other| (other - own).abs());
        moved.filter(|distance| distance.is_finite()).fold(0.0, f64::max)
    }
}

fn numbers(runner: &Runner, call: &Call, backend: Backend, scale: f64, seed: u64) -> Option<Numbers> {
    let arguments = widened(call, scale, seed)?;
    compute(runner, backend, call, &arguments, Kind::Double).ok().map(|side| Numbers::of(&side))
}

/// The arguments in double precision, each element changed by about `scale` units in the last place of its kind.
fn widened(call: &Call, scale: f64, seed: u64) -> Option<Vec<Tensor>> {
    let mut random = Random::new(call.seed ^ (seed + 1));
    let mut all: Vec<Tensor> = Vec::new();
    for (position, (_, tensor)) in call.arguments.iter().enumerate() {
        if position == 1 && call.same {
            all.push(all[0].shallow_clone());
            continue;
        }
        if !tensor.defined() || !is_floating(tensor.kind()) {
            all.push(tensor.shallow_clone());
            continue;
        }
        let mut numbers = values(tensor).ok()?;
        if scale > 0.0 {
            let unit = scale * unit_roundoff(tensor.kind());
            for number in &mut numbers {
                *number *= 1.0 + unit * random.uniform(-1.0, 1.0);
            }
        }
        let wide = Tensor::f_from_slice(&numbers).ok()?.f_reshape(tensor.size()).ok()?;
        all.push(wide.f_set_requires_grad(tensor.requires_grad()).ok()?);
    }
    Some(all)
}

fn unit_roundoff(kind: Kind) -> f64 {
    match kind {
        Kind::Half => 2_f64.powi(-11),
        Kind::BFloat16 => 2_f64.powi(-8),
        Kind::Float => 2_f64.powi(-24),
        _ => 2_f64.powi(-52),
    }
}
