//! A call in double precision, and how much its results depend on the last digits of its arguments.

use std::cell::OnceCell;

use tch::{Kind, Tensor};
use tch_losses::Backend;

use super::call::Call;
use super::random::Random;
use super::side::{Runner, Side, compute};
use super::tensors::{is_floating, values};
use crate::numbers::rounded;

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
    rounded: OnceCell<Vec<[Numbers; 2]>>,
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
/// How many neighbours are rounded.
const ROUNDED: u64 = 6;

impl<'a> Truth<'a> {
    /// The truth of a call, where double precision takes it.
    pub fn new(runner: &'a Runner<'a>, call: &'a Call) -> Option<Truth<'a>> {
        let composite = numbers(runner, call, Backend::Composite, 0.0, 0)?;
        let (auto, near, far, rounded) = (OnceCell::new(), OnceCell::new(), OnceCell::new(), OnceCell::new());
        Some(Truth { call, runner, composite, auto, near, far, rounded })
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

    /// By how much rounding on the way moves an element: how far the errors of tensor operations in the kinds of the
    /// call lie apart, for these arguments and for some beside them. An error that is none of rounding is the same for
    /// all of them.
    pub fn noise(&self, which: Which, index: usize, position: usize) -> f64 {
        let pairs = self.rounded.get_or_init(|| (0..=ROUNDED).filter_map(|seed| self.rounded_pair(seed)).collect());
        let errors = pairs.iter().filter_map(|[own, wide]| {
            Some(own.at(which, index, position)? - wide.at(which, index, position)?).filter(|error| error.is_finite())
        });
        let (least, most) = errors.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), e| (a.min(e), b.max(e)));
        (most - least).max(0.0)
    }

    /// The results of tensor operations in the kinds of the call and in double precision, of the same arguments: those
    /// of the call, some in whose last digits others round, and some that are a little smaller, in which all is rounded
    /// anew.
    fn rounded_pair(&self, seed: u64) -> Option<[Numbers; 2]> {
        let (call, runner) = (self.call, self.runner);
        let change = |random: &mut Random, number: f64, kind: Kind| {
            let by = match seed {
                0 => 0.0,
                1..=3 => 64.0 * unit_roundoff(kind) * random.uniform(-1.0, 1.0),
                _ => -0.005 * random.uniform(0.0, 1.0),
            };
            rounded(number * (1.0 + by), kind)
        };
        let [own, wide] = [false, true].map(|wide| changed(call, seed, change, wide));
        let side = |arguments: &[Tensor], kind| compute(runner, Backend::Composite, call, arguments, kind).ok();
        Some([Numbers::of(&side(&own?, call.options)?), Numbers::of(&side(&wide?, Kind::Double)?)])
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
    let change = |random: &mut Random, number: f64, kind: Kind| match scale {
        0.0 => number,
        scale => number * (1.0 + scale * unit_roundoff(kind) * random.uniform(-1.0, 1.0)),
    };
    let arguments = changed(call, seed, change, true)?;
    compute(runner, backend, call, &arguments, Kind::Double).ok().map(|side| Numbers::of(&side))
}

/// The arguments with each floating element changed; in double precision where they are `wide`.
fn changed(call: &Call, seed: u64, change: impl Fn(&mut Random, f64, Kind) -> f64, wide: bool) -> Option<Vec<Tensor>> {
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
        let numbers: Vec<f64> =
            values(tensor).ok()?.into_iter().map(|number| change(&mut random, number, tensor.kind())).collect();
        let kind = if wide { Kind::Double } else { tensor.kind() };
        let made = Tensor::f_from_slice(&numbers).ok()?.f_reshape(tensor.size()).ok()?.f_to_kind(kind).ok()?;
        all.push(made.f_set_requires_grad(tensor.requires_grad()).ok()?);
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
