//! The engine of sums over the pixels of each class; see [`region`](crate::kernels::region) for what is made of them.

use std::fmt::Write;

use tch::{Kind, Tensor};

use super::launch::{Block, Kernel, Launch, THREADS, WARP};
use super::source::{self, Body, Recipe};
use super::{arguments, modules};
use crate::autograd::Header;
use crate::kernels::graph::{Recording, Symbol, record};
use crate::kernels::measure::{Measure, Minimum, PixelShare, Product, Squared, by_probability};
use crate::kernels::region::{Regional, Total, Totals};
use crate::kernels::tensors::{f_contiguous, f_plain};
use crate::numeric::is_half;
use crate::{Activation, LossError, OverlapMeasure};

const SUMS: Kernel = Kernel { name: c"region_sums", types: &["Call"] };
const TOTALS: Kernel = Kernel { name: c"region_totals", types: &["Call"] };
const SCALARS: Kernel = Kernel { name: c"region_scalars", types: &["Call"] };
const GRADIENT: Kernel = Kernel { name: c"region_gradient", types: &["Call"] };

/// How many pixels a thread has at once, and a block.
const PIXELS: usize = 4;
const TILE: usize = PIXELS * THREADS as usize;
const WARPS: usize = THREADS as usize / WARP;

pub(in crate::kernels) fn takes(input: &Tensor, target: &Tensor, kind: Kind) -> Result<bool, LossError> {
    let (first, second, own) = (Header::of(input), Header::of(target), target.f_kind()?);
    let masks = first.size() == second.size();
    let wide_masks = masks && own == Kind::Float && is_half(kind);
    let known = wide_masks || arguments::takes_kind(kind, own) && (masks || own != kind && own != Kind::Bool);
    Ok(known && first.is_numbers_of(kind) && second.is_numbers_of(own) && second.is_on_device_of(&first))
}

/// The sums; `None` where the kernels cannot be had. What is out of its range counts as ignored, and the sums are not
/// `valid`.
pub(in crate::kernels) fn f_sums(
    formula: &Regional,
    input: &Tensor,
    target: &Tensor,
) -> Result<Option<Totals>, LossError> {
    let Some(call) = Call::f_new(formula, input, target)? else { return Ok(None) };
    let device = input.device();
    let f_numbers = |size: &[i64]| Tensor::f_empty(size, (Kind::Double, device));
    let Shape { samples, classes, tiles, .. } = call.shape;
    let parts = samples * tiles * WARPS;
    let room = f_numbers(&[(3 * (parts * (classes + 1) + samples)) as i64])?;
    let size = input.size();
    let regions = [f_numbers(&size[..2])?, f_numbers(&size[..2])?, f_numbers(&size[..2])?];
    let (entropy, weight) = (f_numbers(&[])?, f_numbers(&[])?);
    let valid = Tensor::f_empty([0_i64; 0], (Kind::Bool, device))?;
    let Ok(of_regions) = i32::try_from(samples * classes) else { return Ok(None) };
    let pointers = Pointers {
        room: Some(&room),
        regions: regions.each_ref().map(Some),
        scalars: [Some(&entropy), Some(&weight)],
        valid: Some(&valid),
        ..Pointers::default()
    };
    let launched = call.launch(SUMS, call.shape.grid(), &pointers)
        && call.launch(TOTALS, of_regions as u32, &pointers)
        && call.launch(SCALARS, 1, &pointers);
    let totals = Totals { regions, entropy, weight: Total::Tensor(weight), valid: Some(valid) };
    Ok(launched.then_some(totals))
}

/// The gradient of the input, given those of the sums; `None` where the kernels cannot be had.
pub(in crate::kernels) fn f_gradient(
    formula: &Regional,
    input: &Tensor,
    target: &Tensor,
    grads: &[Option<Tensor>],
) -> Result<Option<Tensor>, LossError> {
    let Some(call) = Call::f_new(formula, input, target)? else { return Ok(None) };
    let f_of = |position: usize| {
        let grad = grads.get(position).and_then(Option::as_ref);
        grad.map(|grad| f_contiguous(&f_plain(grad)?)).transpose()
    };
    let grads = [f_of(0)?, f_of(1)?, f_of(2)?];
    let gradient = call.input.f_empty_like()?;
    let pointers =
        Pointers { gradient: Some(&gradient), grads: grads.each_ref().map(Option::as_ref), ..Pointers::default() };
    Ok(call.launch(GRADIENT, call.shape.grid(), &pointers).then_some(gradient))
}

/// The sizes of the input, and of the tiles that it is cut into.
#[derive(Clone, Copy)]
struct Shape {
    samples: usize,
    classes: usize,
    pixels: usize,
    /// How many blocks a sample has.
    tiles: usize,
}

impl Shape {
    /// None where there are more blocks than can be launched.
    fn new(size: &[i64], alone: bool) -> Option<Self> {
        let (mut samples, mut classes) = (size[0] as usize, size[1] as usize);
        let pixels = size[2..].iter().product::<i64>() as usize;
        // Classes that do not depend on each other are samples of one class.
        if alone {
            (samples, classes) = (samples * classes, 1);
        }
        let tiles = pixels.div_ceil(TILE);
        (samples * tiles <= i32::MAX as usize).then_some(Self { samples, classes, pixels, tiles })
    }

    fn grid(self) -> u32 {
        (self.samples * self.tiles) as u32
    }
}

/// A call, with its kernels loaded.
struct Call<'a> {
    formula: &'a Regional,
    shape: Shape,
    /// Contiguous.
    input: Tensor,
    target: Tensor,
    parameters: Vec<f64>,
    launcher: Box<dyn Launch>,
}

/// What kernels are given besides the input and the target; null where a kernel does not need it.
#[derive(Default)]
struct Pointers<'a> {
    gradient: Option<&'a Tensor>,
    room: Option<&'a Tensor>,
    regions: [Option<&'a Tensor>; 3],
    scalars: [Option<&'a Tensor>; 2],
    valid: Option<&'a Tensor>,
    grads: [Option<&'a Tensor>; 3],
}

impl<'a> Call<'a> {
    fn f_new(formula: &'a Regional, input: &Tensor, target: &Tensor) -> Result<Option<Self>, LossError> {
        let (kind, own) = (input.f_kind()?, target.f_kind()?);
        let hard = target.size() != input.size();
        let softmax = formula.activation == Activation::Softmax;
        let Some(shape) = Shape::new(&input.size(), !hard && !softmax) else { return Ok(None) };
        let recording = recording(formula.measure, hard);
        let flag = |holds: bool| usize::from(holds);
        let definitions = format!(
            "#define HARD {}\n#define SOFTMAX {}\n#define SIGMOID {}\n#define ENTROPY {}\ntypedef {} Target;\n",
            flag(hard),
            flag(softmax),
            flag(formula.activation == Activation::Sigmoid),
            flag(formula.entropy.is_some()),
            arguments::name_of(own, kind),
        );
        let parameters = recording.parameters.clone();
        let recipe = Recipe { kind, parameters: parameters.len(), definitions, formulas: vec![recording], write };
        let kernels = &[SUMS, TOTALS, SCALARS, GRADIENT];
        let Some(launcher) = modules::launcher_of(input.device(), recipe, kernels) else { return Ok(None) };
        let (input, target) = (f_contiguous(input)?, f_contiguous(target)?);
        Ok(Some(Self { formula, shape, input, target, parameters, launcher }))
    }

    /// Whether that could be launched.
    fn launch(&self, kernel: Kernel, grid: u32, pointers: &Pointers) -> bool {
        let block = self.block(pointers);
        // SAFETY: the block has the layout of `Call` in region.cu; all tensors are contiguous, on the device and as large
        // as it says, and their memory is freed on the same stream, behind the kernels.
        unsafe { block.launch(&*self.launcher, kernel, grid) }
    }

    fn block(&self, pointers: &Pointers) -> Block {
        let Shape { samples, classes, pixels, tiles } = self.shape;
        let Pointers { gradient, room, regions, scalars, valid, grads } = pointers;
        let kind = self.input.kind();
        let weight = self.formula.entropy.as_ref().and_then(|entropy| entropy.weight.as_ref());
        let mut block = Block::default();
        let tensors = [Some(&self.input), Some(&self.target), *gradient, *room].into_iter();
        block.tensors(tensors.chain(*regions).chain(*scalars).chain([*valid, weight]).chain(*grads));
        block.longs([samples, classes, pixels, tiles].map(|number| number as i64));
        let (ignored, expected) = (self.formula.ignored, &self.formula.expected);
        block.longs([ignored.unwrap_or(-1)]);
        block.flags([ignored.is_some(), false]);
        let ignored = ignored.map_or(f64::NAN, |ignored| ignored as f64);
        block.reals(kind, [ignored, *expected.start(), *expected.end()]);
        block.array(kind, &self.parameters);
        block
    }
}

/// The text of the kernels of a formula, whose last output is the derivative.
fn write(recipe: &Recipe) -> String {
    let formula = &recipe.formulas[0];
    let (terms, slope) = formula.outputs.split_at(formula.outputs.len() - 1);
    let terms = source::body(formula, terms, &["probability", "number", "key", "none", "none"]);
    let slope = source::body(formula, slope, &["probability", "number", "key", "of_intersection", "of_size"]);
    let mut text = recipe.head();
    write_functions(&mut text, &terms, &slope);
    text.push_str(include_str!("source/region.cu"));
    text
}

fn write_functions(text: &mut String, terms: &Body, slope: &Body) {
    let of_pixel = "Real probability, Real number, Real key";
    _ = write!(text, "DEVICE void add_terms({of_pixel}, const Real* p, Real* sums) {{\n{}", terms.statements);
    for (position, output) in terms.outputs.iter().enumerate() {
        _ = writeln!(text, "  sums[{position}] += {output};");
    }
    _ = write!(
        text,
        "}}\nDEVICE Real slope_of({of_pixel}, Real of_intersection, Real of_size, const Real* p) {{\n{}  return {};\n}}\n",
        slope.statements, slope.outputs[0]
    );
}

/// What a pixel adds to the three sums, and the derivative with respect to its probability, of its probability, the
/// number and the key of its share, and the derivatives with respect to the intersection and the size.
fn recording(measure: OverlapMeasure, hard: bool) -> Recording {
    match (measure, hard) {
        (OverlapMeasure::Product, true) => recorded::<Product, true>(),
        (OverlapMeasure::Product, false) => recorded::<Product, false>(),
        (OverlapMeasure::Squared, true) => recorded::<Squared, true>(),
        (OverlapMeasure::Squared, false) => recorded::<Squared, false>(),
        (OverlapMeasure::Minimum, true) => recorded::<Minimum, true>(),
        (OverlapMeasure::Minimum, false) => recorded::<Minimum, false>(),
    }
}

fn recorded<M: Measure, const HARD: bool>() -> Recording {
    record::<5>(|[p, number, key, of_intersection, of_size]| {
        let share = PixelShare::<Symbol, HARD>::new(number, key);
        let sums = [M::intersection(p, share).0, M::size(p).0, M::size(share.value).0];
        let slope = by_probability::<Symbol, M, HARD>(p, share, [of_intersection, of_size]);
        sums.into_iter().chain([slope]).collect()
    })
}
