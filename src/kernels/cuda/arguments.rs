//! How kernels read the arguments of a formula of elements: as they are, whatever their integer kind, and where they
//! are expanded or in another layout than the first one, without a copy.

use std::fmt::Write;

use tch::{Kind, Tensor};

use super::engine::PACK;
use super::is_autocast;
use super::launch::Block;
use crate::LossError;
use crate::autograd::{self, Header};
use crate::kernels::tensors::{f_contiguous, f_one_layout};

/// The kinds besides that of the first argument that kernels read, and their types in C++.
const INTEGERS: [(Kind, &str); 6] = [
    (Kind::Bool, "bool"),
    (Kind::Uint8, "unsigned char"),
    (Kind::Int8, "signed char"),
    (Kind::Int16, "short"),
    (Kind::Int, "int"),
    (Kind::Int64, "long long"),
];

/// Whether a formula of elements of this kind takes arguments of kind `other`.
pub(in crate::kernels) fn takes_kind(kind: Kind, other: Kind) -> bool {
    other == kind || INTEGERS.iter().any(|(integer, _)| *integer == other)
}

/// The same, of two tensors. Under autocast single precision is read beside half precision, where it gets no gradient.
pub(in crate::kernels) fn takes_beside(first: &Tensor, tensor: &Tensor) -> Result<bool, LossError> {
    let own = tensor.f_kind()?;
    let is_wide = || own == Kind::Float && is_autocast(first) && !(autograd::grad_enabled() && tensor.requires_grad());
    Ok(takes_kind(first.f_kind()?, own) || is_wide())
}

/// The type of elements of kind `own` in C++, in kernels of `kind`: one that they take, or the one that they compute in.
pub(super) fn name_of(own: Kind, kind: Kind) -> &'static str {
    let integer = INTEGERS.iter().find(|(integer, _)| *integer == own);
    integer.map_or(if own == kind { "Element" } else { "Real" }, |(_, name)| name)
}

/// The same of what derivatives are multiplied by, where there is something.
pub(super) fn name_of_factors(factors: Option<&Tensor>, kind: Kind) -> &'static str {
    factors.map_or("Element", |factors| name_of(factors.kind(), kind))
}

/// A tensor, and where its elements are.
pub(super) struct Argument {
    pub(super) tensor: Tensor,
    /// Its type in C++.
    name: &'static str,
    /// None where each is at the place of that of the first argument.
    steps: Option<Vec<Step>>,
}

/// One of the summands of an element's place, `i / inner % size · stride`, where `i` is the place of the first
/// argument's element.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    inner: i64,
    size: i64,
    stride: i64,
}

/// An argument of more steps than this is copied.
const MOST_STEPS: usize = 4;

/// The arguments, of one size. The first one, which is contiguous but for the order of its dimensions, says what the
/// others' places are counted by.
pub(super) fn f_arrange(arguments: &[&Tensor]) -> Result<Vec<Argument>, LossError> {
    let mut all = vec![Argument { tensor: f_first(arguments)?, name: "Element", steps: None }];
    for argument in &arguments[1..] {
        let argument = f_beside(&all[0].tensor, argument)?;
        all.push(argument);
    }
    Ok(all)
}

/// The first argument, or a copy of it without gaps.
pub(super) fn f_first(arguments: &[&Tensor]) -> Result<Tensor, LossError> {
    Ok(match Header::of(arguments[0]).is_dense() {
        true => arguments[0].shallow_clone(),
        false => f_contiguous(arguments[0])?,
    })
}

/// A tensor of the size of `first`, or of one number.
pub(super) fn f_beside(first: &Tensor, tensor: &Tensor) -> Result<Argument, LossError> {
    let (name, own) = (name_of(tensor.f_kind()?, first.f_kind()?), tensor.shallow_clone());
    if tensor.dim() == 0 {
        return Ok(Argument { tensor: own, name, steps: Some(vec![]) });
    }
    let steps = steps(&Header::of(first), &Header::of(tensor));
    Ok(match steps.len() {
        1 if steps[0].stride == 1 && steps[0].inner == 1 && steps[0].size == first.numel() as i64 => {
            Argument { tensor: own, name, steps: None }
        }
        0..=MOST_STEPS => Argument { tensor: own, name, steps: Some(steps) },
        _ => Argument { tensor: f_one_layout(&[first, tensor])?.remove(1), name, steps: None },
    })
}

/// The steps of a tensor. `first` has the same size and is dense.
fn steps(first: &Header, header: &Header) -> Vec<Step> {
    let mut dims: Vec<usize> = (0..first.size().len()).filter(|dim| first.size()[*dim] != 1).collect();
    dims.sort_by_key(|dim| first.stride()[*dim]);
    let (mut steps, mut inner) = (Vec::<Step>::new(), 1);
    for dim in dims {
        let (size, stride) = (first.size()[dim], header.stride()[dim]);
        match steps.last_mut() {
            // Two dimensions are one where the outer one goes on where the inner one ends.
            Some(last) if stride == last.stride * last.size => last.size *= size,
            _ => steps.push(Step { inner, size, stride }),
        }
        inner *= size;
    }
    steps.retain(|step| step.stride != 0);
    steps
}

impl Argument {
    /// Whether a pack of elements can be read at once.
    pub(super) fn is_aligned(&self, kind: Kind) -> bool {
        let own = self.tensor.kind().elt_size_in_bytes() * (PACK / kind.elt_size_in_bytes());
        self.steps.is_some() || (self.tensor.data_ptr() as usize).is_multiple_of(own.min(PACK))
    }
}

/// Writes the macro `READ_ARGUMENTS`, which reads all of them, and what `factors` are.
pub(super) fn write_reads(text: &mut String, arguments: &[Argument], factors: Option<&Argument>) {
    let (mut count, mut reads) = (0, String::new());
    for (position, Argument { name, steps, .. }) in arguments.iter().enumerate() {
        let own = steps.as_ref().map_or("ALIKE".to_owned(), |steps| steps.len().to_string());
        _ = write!(reads, " READ({position}, {name}, {own}, {count})");
        count += steps.as_ref().map_or(0, Vec::len);
    }
    let own = match factors {
        None => "NO_FACTORS".to_owned(),
        Some(Argument { steps: None, .. }) => "ALIKE".to_owned(),
        Some(Argument { steps: Some(steps), .. }) => steps.len().to_string(),
    };
    let factor = factors.map_or("Element", |factors| factors.name);
    _ = write!(
        text,
        "typedef {factor} Factor;\n#define READ_ARGUMENTS{reads}\n#define FACTOR_STEPS {own}\n#define FIRST_OF_FACTORS {count}\n"
    );
    count += factors.and_then(|factors| factors.steps.as_ref()).map_or(0, Vec::len);
    _ = writeln!(text, "#define STEPS {count}");
}

/// The steps of all of them, as an array that has one more, since C++ has no empty ones.
pub(super) fn write_steps(block: &mut Block, arguments: &[Argument], factors: Option<&Argument>) {
    let all = arguments.iter().chain(factors).filter_map(|argument| argument.steps.as_ref()).flatten();
    let end = Step { inner: 1, size: 1, stride: 0 };
    for step in all.chain([&end]) {
        block.longs([step.inner, step.size, step.stride]);
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    fn of(first: &Tensor, tensor: &Tensor) -> Vec<[i64; 3]> {
        let steps = steps(&Header::of(first), &Header::of(tensor));
        steps.iter().map(|step| [step.inner, step.size, step.stride]).collect()
    }

    #[test]
    fn places_are_told_by_the_fewest_steps() {
        let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        let first = zeros(&[2, 3, 4, 5]);
        assert_eq!(of(&first, &zeros(&[2, 3, 4, 5])), [[1, 120, 1]]);
        assert_eq!(of(&first, &zeros(&[]).expand_as(&first)), [[0; 3]; 0]);
        assert_eq!(of(&first, &zeros(&[5]).expand_as(&first)), [[1, 5, 1]]);
        assert_eq!(of(&first, &zeros(&[3, 1, 1]).expand_as(&first)), [[20, 3, 1]]);
        assert_eq!(of(&first, &zeros(&[2, 1, 4, 5]).expand_as(&first)), [[1, 20, 1], [60, 2, 20]]);
        assert_eq!(of(&first, &zeros(&[2, 4, 3, 5]).transpose(1, 2)), [[1, 5, 1], [5, 4, 15], [20, 3, 5], [60, 2, 60]]);
        // Both in the same other layout.
        let last = zeros(&[2, 4, 5, 3]).permute([0, 3, 1, 2]);
        assert_eq!(of(&last, &zeros(&[2, 4, 5, 3]).permute([0, 3, 1, 2])), [[1, 120, 1]]);
        assert_eq!(of(&last, &zeros(&[3, 1, 1]).expand_as(&last)), [[1, 3, 1]]);
    }
}
