//! Random tensors: kinds, values, strides, and how they are written down.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::random::Random;

/// How a call is meant.
#[derive(Debug, Clone, Copy)]
pub struct Intent {
    /// Whether all is as the loss wants it, apart from the values that options and tensors have; otherwise anything.
    pub sensible: bool,
}

/// The kinds that losses are computed in.
pub const FLOATING: [Kind; 4] = [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16];
/// The kinds of class indices.
pub const INTEGERS: [Kind; 5] = [Kind::Int64, Kind::Int, Kind::Int16, Kind::Int8, Kind::Uint8];
const ALL: [Kind; 13] = [
    Kind::Uint8,
    Kind::Int8,
    Kind::Int16,
    Kind::Int,
    Kind::Int64,
    Kind::Half,
    Kind::BFloat16,
    Kind::Float,
    Kind::Double,
    Kind::Bool,
    Kind::ComplexHalf,
    Kind::ComplexFloat,
    Kind::ComplexDouble,
];

/// Where values come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values {
    /// Any real number.
    Real,
    /// Between 0 and 1.
    Unit,
    /// Above 0.
    Positive,
    /// Below 0.
    Negative,
    /// 0 or 1.
    Binary,
    /// −1 or 1.
    Signs,
    /// 0 or 1 most of the time, in between otherwise.
    Soft,
    /// Integers from 0 to below a number.
    Classes(i64),
    /// Classes, from the front of a row, and −1 after them.
    Labels(i64),
    /// Numbers of `[0, n]`.
    Bins(i64),
    /// Sums to 1 along a dimension.
    Probabilities(usize),
    /// The logarithms of these.
    LogProbabilities(usize),
    /// Corners x₁, y₁, x₂, y₂.
    Boxes,
}

/// Which values are put among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// None.
    None,
    /// Finite ones at the edge.
    Finite,
    /// Any, also NaN and the infinities.
    Any,
}

const FINITE: [f64; 22] = [
    0.0, -0.0, 1.0, -1.0, 0.5, 17.5, -17.5, 30.5, -40.0, 88.8, -104.0, 255.0, 1e-7, 1e-12, 1e-40, 1e-45, 600.0,
    -60000.0, 65504.0, 1e-4, 3.0, 37.43,
];
const NON_FINITE: [f64; 9] = [
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f32::MIN as f64,
    f32::MAX as f64,
    -8.6e37,
    1e20,
    -1e20,
    f64::MIN_POSITIVE,
];
const ODD_CLASSES: [f64; 9] = [-1.0, -100.0, 255.0, 1e3, -7.0, 127.0, 2147483647.0, i64::MIN as f64, 4294967296.0];

/// One of the kinds that losses are computed in.
pub fn floating(random: &mut Random) -> Kind {
    match random.below(20) {
        0..9 => Kind::Float,
        9..14 => Kind::Double,
        14..17 => Kind::Half,
        _ => Kind::BFloat16,
    }
}

/// One of the kinds of class indices.
pub fn integer(random: &mut Random) -> Kind {
    if random.chance(0.6) { Kind::Int64 } else { *random.pick(&INTEGERS) }
}

/// Any kind.
pub fn any_kind(random: &mut Random) -> Kind {
    *random.pick(&ALL)
}

/// Whether a kind is one of real floating numbers.
pub fn is_floating(kind: Kind) -> bool {
    FLOATING.contains(&kind)
}

/// A shape of up to `most` dimensions, small most of the time, now and then with a dimension of 0.
pub fn shape(least: usize, most: usize, random: &mut Random) -> Vec<i64> {
    let dims = least + random.below(most - least + 1);
    (0..dims).map(|_| size(random)).collect()
}

fn size(random: &mut Random) -> i64 {
    match random.below(40) {
        0 => 0,
        1..5 => 1,
        5 => random.between(6, 20),
        _ => random.between(2, 5),
    }
}

/// A tensor of a sensible call has values of the edge now and then.
pub fn special(intent: Intent, random: &mut Random) -> Special {
    match random.below(20) {
        0..3 => Special::Finite,
        3 => Special::Any,
        4..10 if !intent.sensible => Special::Any,
        _ => Special::None,
    }
}

/// A tensor with random values of a random layout.
pub fn tensor(shape: &[i64], kind: Kind, values: Values, special: Special, random: &mut Random) -> Result<Tensor> {
    let mut numbers = numbers(shape, values, random);
    put_special(&mut numbers, values, special, random);
    let tensor = Tensor::f_from_slice(&numbers)?.f_reshape(shape)?;
    let tensor = if kind == Kind::Double { tensor } else { tensor.f_to_kind(kind)? };
    // Not every operation takes every kind.
    Ok(laid_out(&tensor, random).unwrap_or(tensor))
}

fn numbers(shape: &[i64], values: Values, random: &mut Random) -> Vec<f64> {
    let count = shape.iter().product::<i64>().max(0) as usize;
    // Values that are few produce ties.
    let (scale, coarse) = (*random.pick(&[1.0, 1.0, 0.3, 4.0]), random.chance(0.15));
    let rounded = move |x: f64| if coarse { (x * 2.0).round() / 2.0 } else { x };
    let mut numbers: Vec<f64> = match values {
        Values::Boxes => return boxes(count, random),
        Values::Labels(classes) => return labels(shape, classes, random),
        _ => (0..count).map(|_| rounded(number(values, scale, random))).collect(),
    };
    if let Values::Probabilities(dim) | Values::LogProbabilities(dim) = values {
        normalize(&mut numbers, shape, dim, matches!(values, Values::LogProbabilities(_)));
    }
    numbers
}

fn number(values: Values, scale: f64, random: &mut Random) -> f64 {
    match values {
        Values::Unit => random.uniform(0.0, 1.0),
        Values::Positive => random.uniform(0.01, 1.0) * scale,
        Values::Negative => -random.uniform(0.01, 1.0) * scale,
        Values::Binary => f64::from(random.chance(0.5)),
        Values::Signs => {
            if random.chance(0.5) {
                1.0
            } else {
                -1.0
            }
        }
        Values::Soft => match random.below(4) {
            0 => random.uniform(0.0, 1.0),
            1 => 1.0,
            _ => 0.0,
        },
        Values::Classes(classes) => random.below(classes.max(1) as usize) as f64,
        Values::Bins(bins) => random.uniform(0.0, bins as f64),
        _ => random.normal() * scale,
    }
}

/// Makes the numbers along a dimension sum to 1.
fn normalize(numbers: &mut [f64], shape: &[i64], dim: usize, logarithm: bool) {
    let Some(classes) = shape.get(dim).map(|classes| *classes as usize) else { return };
    let inner = shape[dim + 1..].iter().product::<i64>() as usize;
    if classes == 0 || numbers.is_empty() {
        return;
    }
    for start in (0..numbers.len()).filter(|position| (position / inner).is_multiple_of(classes)) {
        let positions = (0..classes).map(|class| start + class * inner);
        let sum: f64 = positions.clone().map(|position| numbers[position].exp()).sum();
        for position in positions {
            let share = numbers[position] - sum.ln();
            numbers[position] = if logarithm { share } else { share.exp() };
        }
    }
}

fn boxes(count: usize, random: &mut Random) -> Vec<f64> {
    let mut numbers = Vec::with_capacity(count);
    while numbers.len() < count {
        let (x, y) = (random.uniform(0.0, 4.0), random.uniform(0.0, 4.0));
        numbers.extend([x, y, x + random.uniform(0.1, 3.0), y + random.uniform(0.1, 3.0)]);
    }
    numbers.truncate(count);
    numbers
}

fn labels(shape: &[i64], classes: i64, random: &mut Random) -> Vec<f64> {
    let row = shape.last().map_or(1, |size| *size as usize);
    let count = shape.iter().product::<i64>().max(0) as usize;
    let mut numbers = Vec::with_capacity(count);
    while numbers.len() < count {
        let given = random.below(row + 1);
        numbers.extend(
            (0..row).map(|position| if position < given { random.below(classes.max(1) as usize) as f64 } else { -1.0 }),
        );
    }
    numbers
}

fn put_special(numbers: &mut [f64], values: Values, special: Special, random: &mut Random) {
    if special == Special::None || numbers.is_empty() {
        return;
    }
    for _ in 0..=random.below(3) {
        let number = match (special, values) {
            (Special::Finite, Values::Unit | Values::Binary | Values::Soft) => {
                *random.pick(&[0.0, -0.0, 1.0, 0.5, 1e-40])
            }
            (Special::Finite, Values::Real) => *random.pick(&FINITE),
            (Special::Finite, Values::Negative) => -random.pick(&FINITE).abs(),
            (Special::Finite, Values::Positive) => random.pick(&FINITE).abs().max(1e-30),
            (Special::Finite, _) => return,
            (_, Values::Classes(_) | Values::Labels(_)) => *random.pick(&ODD_CLASSES),
            _ if random.chance(0.5) => *random.pick(&NON_FINITE),
            _ => *random.pick(&FINITE),
        };
        let position = random.below(numbers.len());
        numbers[position] = number;
    }
}

/// The same values, with other strides.
fn laid_out(tensor: &Tensor, random: &mut Random) -> Result<Tensor> {
    let dims = tensor.dim() as i64;
    if dims == 0 || random.chance(0.5) {
        return Ok(tensor.shallow_clone());
    }
    let dim = random.between(0, dims - 1);
    Ok(match random.below(7) {
        // Stored in another order of dimensions, as channels last is.
        0 | 1 => {
            let mut order: Vec<i64> = (0..dims).collect();
            random.shuffle(&mut order);
            let mut back = vec![0; order.len()];
            for (position, dim) in order.iter().enumerate() {
                back[*dim as usize] = position as i64;
            }
            tensor.f_permute(order.as_slice())?.f_contiguous()?.f_permute(back.as_slice())?
        }
        // One row for all.
        2 if tensor.size()[dim as usize] > 0 => {
            let shape = tensor.size();
            tensor.f_narrow(dim, 0, 1)?.f_expand(shape.as_slice(), false)?
        }
        // Every other one of more, behind an offset.
        3 | 4 => {
            let doubled = Tensor::f_repeat_interleave_self_int(tensor, 2, dim, None)?;
            let size = doubled.size()[dim as usize];
            doubled.f_slice(dim, 1.min(size), size, 2)?
        }
        // A part of a larger tensor.
        5 => {
            let padded = Tensor::f_cat(&[tensor, tensor], dim)?;
            padded.f_narrow(dim, tensor.size()[dim as usize], tensor.size()[dim as usize])?
        }
        _ => tensor.f_flip([dim])?,
    })
}

/// Kind, shape, strides where they are others than those of the shape, and the values where they are few.
pub fn describe(tensor: &Tensor) -> String {
    const FEW: usize = 40;
    if !tensor.defined() {
        return "undefined".into();
    }
    let mut text = format!("{:?}{:?}", tensor.kind(), tensor.size());
    if tensor.requires_grad() {
        text += " with gradient";
    }
    if !is_plain(tensor) {
        return text + " not plain";
    }
    if !tensor.is_contiguous() {
        text += &format!(" strides {:?}", tensor.stride());
    }
    if tensor.numel() > FEW {
        return text;
    }
    match values(tensor) {
        Ok(values) => {
            let values: Vec<String> = values.iter().map(|value| short(*value)).collect();
            format!("{text} [{}]", values.join(", "))
        }
        Err(_) => text,
    }
}

fn short(value: f64) -> String {
    let plain = format!("{value}");
    if plain.len() > 12 { format!("{value:e}") } else { plain }
}

/// Whether a tensor has its elements in memory as PyTorch's tensors mostly do.
pub fn is_plain(tensor: &Tensor) -> bool {
    tensor.defined() && !tensor.is_sparse() && !tensor.is_mkldnn()
}

/// The elements as doubles, also of tensors without memory.
pub fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    let mut copy = Tensor::f_zeros(tensor.size(), (Kind::Double, Device::Cpu))?;
    let detached = tensor.f_detach()?;
    copy.f_copy_(&if detached.is_complex() { detached.f_abs()? } else { detached })?;
    let mut values = vec![0.0; copy.numel()];
    copy.f_copy_data(&mut values, copy.numel())?;
    Ok(values)
}
