//! The checks of shapes, kinds, devices and ranges that losses share.
//!
//! A named argument is a pair `(name, tensor)`; the names are those of PyTorch's signatures.

mod class_indices;
mod invalid_values;
mod validity;

use std::fmt::Display;
use std::ops::RangeInclusive;

use tch::{Kind, Tensor};

pub(crate) use crate::argument::{Named, defined};
use crate::autograd::{self, Form, Header};
use crate::kernels::{Number, NumberOperations};
use crate::numeric::{is_floating, wide_kind};
use crate::{LossError, kernels};

pub(crate) use class_indices::{ClassIndices, f_kept};
pub use invalid_values::InvalidValues;
#[cfg(feature = "serde")]
pub(crate) use invalid_values::with_documented_defaults;
pub(crate) use validity::Validity;

/// All arguments are defined, dense and on the device of the first.
pub(crate) fn devices(arguments: &[Named]) -> Result<(), LossError> {
    arguments.iter().try_for_each(|argument| dense(*argument))?;
    let (of, first) = arguments[0];
    let expected = Header::of(first);
    for &(argument, tensor) in &arguments[1..] {
        if !Header::of(tensor).is_on_device_of(&expected) {
            let (expected, actual) = (first.device(), tensor.device());
            return Err(LossError::Device { argument, of, expected, actual });
        }
    }
    Ok(())
}

/// Input and target are on one device, and the input is of a floating kind.
pub(crate) fn arguments(input: &Tensor, target: &Tensor) -> Result<(), LossError> {
    devices(&[("input", input), ("target", target)])?;
    floating(("input", input))
}

/// The same, and both have one shape.
pub(crate) fn alike(input: &Tensor, target: &Tensor) -> Result<(), LossError> {
    arguments(input, target)?;
    same_shape(("target", target), ("input", input))
}

/// `tensor` is defined and dense. Before this check nothing may ask for its sizes and strides, which others do not
/// have.
///
/// Its memory may still hold something else than its numbers, as of a tensor that is conjugated or negated lazily.
/// Operations take care of that; code that reads the memory makes it [plain](kernels::f_plain) first.
pub(crate) fn dense((argument, tensor): Named) -> Result<(), LossError> {
    let form = Form::of(tensor);
    if form.is_plain() {
        return Ok(());
    }
    if !form.is_defined() {
        return Err(LossError::Undefined { argument });
    }
    if form.is_sparse() {
        return Err(LossError::Sparse { argument });
    }
    match form.other_layout() {
        Some(layout) => Err(LossError::Layout { argument, layout }),
        None => Ok(()),
    }
}

/// Whether two dense tensors have one shape.
pub(crate) fn sizes_are_equal(tensor: &Tensor, other: &Tensor) -> bool {
    Header::of(tensor).size() == Header::of(other).size()
}

/// `tensor` has the shape of `other`.
pub(crate) fn same_shape((argument, tensor): Named, (of, other): Named) -> Result<(), LossError> {
    if sizes_are_equal(tensor, other) {
        return Ok(());
    }
    let (actual, expected) = (tensor.size(), other.size());
    Err(LossError::Shape { argument, expected: format!("{expected:?}, the shape of {of}"), actual })
}

/// `tensor` has the shape of `other`, or is broadcast against it where that is allowed.
pub(crate) fn same_shape_or_broadcast(tensor: Named, other: Named, broadcast: bool) -> Result<(), LossError> {
    if !broadcast {
        return same_shape(tensor, other);
    }
    let ((argument, tensor), (of, other)) = (tensor, other);
    let (actual, expected) = (tensor.size(), other.size());
    let fits = |(a, b): (&i64, &i64)| a == b || *a == 1 || *b == 1;
    if actual.iter().rev().zip(expected.iter().rev()).all(fits) {
        return Ok(());
    }
    Err(LossError::Shape {
        argument,
        expected: format!("a shape that broadcasts against {expected:?}, that of {of}"),
        actual,
    })
}

/// `tensor` can be expanded to the shape of `other`.
pub(crate) fn broadcasts_to((argument, tensor): Named, (of, other): Named) -> Result<(), LossError> {
    let (actual, expected) = (tensor.size(), other.size());
    let fits = |(a, b): (&i64, &i64)| a == b || *a == 1;
    if actual.len() <= expected.len() && actual.iter().rev().zip(expected.iter().rev()).all(fits) {
        return Ok(());
    }
    let expected = format!("a shape that broadcasts to {expected:?}, that of {of}");
    Err(LossError::Shape { argument, expected, actual })
}

/// The shape of `tensor` fits: it is what is `expected`.
pub(crate) fn shape(tensor: Named, fits: bool, expected: impl Display) -> Result<(), LossError> {
    if fits { Ok(()) } else { Err(shape_error(tensor, expected.to_string())) }
}

/// The error for a `tensor` whose shape does not fit.
pub(crate) fn shape_error((argument, tensor): Named, expected: impl Into<String>) -> LossError {
    LossError::Shape { argument, expected: expected.into(), actual: tensor.size() }
}

/// `tensor` has one of the floating kinds.
pub(crate) fn floating((argument, tensor): Named) -> Result<(), LossError> {
    let actual = tensor.f_kind()?;
    if is_floating(actual) {
        return Ok(());
    }
    Err(LossError::Kind { argument, expected: "a floating kind".into(), actual })
}

/// `tensor` holds numbers; libtorch does not subtract booleans.
pub(crate) fn not_boolean((argument, tensor): Named) -> Result<(), LossError> {
    match tensor.f_kind()? {
        actual @ Kind::Bool => Err(LossError::Kind { argument, expected: "a kind of numbers".into(), actual }),
        _ => Ok(()),
    }
}

/// `tensor` has the kind of `other`.
pub(crate) fn same_kind((argument, tensor): Named, (of, other): Named) -> Result<(), LossError> {
    let (actual, expected) = (tensor.f_kind()?, other.f_kind()?);
    if actual == expected {
        return Ok(());
    }
    Err(LossError::Kind { argument, expected: format!("{expected:?}, the kind of {of}"), actual })
}

/// `weight` holds one value per element of `input`, on the same device.
pub(crate) fn element_weight(weight: &Tensor, input: &Tensor) -> Result<(), LossError> {
    devices(&[("input", input), ("weight", weight)])?;
    same_shape(("weight", weight), ("input", input))
}

/// `weight`, where there is one, holds one value of any floating kind per class, on the device of `input`. It is to be
/// converted to the kind that the loss is computed in.
pub(crate) fn class_weight(weight: Option<&Tensor>, input: &Tensor, classes: i64) -> Result<(), LossError> {
    let Some(weight) = weight else { return Ok(()) };
    devices(&[("input", input), ("weight", weight)])?;
    floating(("weight", weight))?;
    shape(("weight", weight), weight.size() == [classes], format_args!("[{classes}], one weight per class"))
}

/// `weight`, checked by [`class_weight`], in the kind that a loss of `input` is computed in. It must not require a
/// gradient, because libtorch's operations on class indices have no gradient of the weight.
pub(crate) fn f_class_weight(
    weight: Option<&Tensor>,
    input: &Tensor,
    classes: i64,
) -> Result<Option<Tensor>, LossError> {
    class_weight(weight, input, classes)?;
    let Some(weight) = weight else { return Ok(None) };
    without_gradient(("weight", weight))?;
    Ok(Some(weight.f_to_kind(wide_kind(input)?)?))
}

/// The tensor of an option must not require a gradient, which it does not get with class indices.
pub(crate) fn without_gradient((option, tensor): Named) -> Result<(), LossError> {
    let needed = autograd::grad_enabled() && tensor.requires_grad();
    self::option(option, "a tensor that requires a gradient", !needed, "one that requires none, for class indices")
}

/// The option `option` has a value for which `valid` holds.
pub(crate) fn option(option: &'static str, value: impl Display, valid: bool, expected: &str) -> Result<(), LossError> {
    if valid {
        return Ok(());
    }
    Err(LossError::Option { option, expected: expected.into(), actual: value.to_string() })
}

/// The option is a number > 0. Far from the bounds of single precision, in which libtorch has to take it.
pub(crate) fn positive(name: &'static str, value: f64) -> Result<(), LossError> {
    option(name, value, (1e-37..=1e37).contains(&value), "a number in [1e-37, 1e37]")
}

/// The option is a number ≥ 0, not near the bound of single precision.
pub(crate) fn not_negative(name: &'static str, value: f64) -> Result<(), LossError> {
    option(name, value, (0.0..=1e37).contains(&value), "a number in [0, 1e37]")
}

/// The option is a finite number.
pub(crate) fn finite(name: &'static str, value: f64) -> Result<(), LossError> {
    option(name, value, value.is_finite(), "a finite number")
}

/// The option is a finite number of at least 0.
pub(crate) fn finite_not_negative(name: &'static str, value: f64) -> Result<(), LossError> {
    option(name, value, value.is_finite() && value >= 0.0, "a finite number of at least 0")
}

/// The option is a share: a number in \[0, 1\].
pub(crate) fn share(name: &'static str, value: f64) -> Result<(), LossError> {
    option(name, value, (0.0..=1.0).contains(&value), "a number in [0, 1]")
}

/// The option is a number, which may be infinite, and not NaN: with that nothing could be computed.
pub(crate) fn number(name: &'static str, value: f64) -> Result<(), LossError> {
    option(name, value, !value.is_nan(), "a number")
}

/// The option is a number of the kind that a loss of `input` is computed in, at least single precision: libtorch takes
/// no other. Infinity is such a number, NaN is not. With integers it is a number that their kind holds.
pub(crate) fn fits(name: &'static str, value: f64, input: &Tensor) -> Result<(), LossError> {
    number(name, value)?;
    let kind = input.f_kind()?;
    if !input.is_floating_point() {
        let bits = 8 * kind.elt_size_in_bytes() as i32 - i32::from(kind != Kind::Uint8);
        return option(name, value, value.abs() < 2_f64.powi(bits), &format!("a number that {kind:?} holds"));
    }
    let fits = value.is_infinite() || value.abs() <= f64::from(f32::MAX) || kind == Kind::Double;
    option(name, value, fits, "a number that single precision holds")
}

/// The dimension of the classes: the only one, or the second.
pub(crate) fn class_dim(input: &Tensor) -> Result<usize, LossError> {
    match input.dim() {
        0 => Err(shape_error(("input", input), "[C], [N, C] or [N, C, d1, ...]")),
        1 => Ok(0),
        _ => Ok(1),
    }
}

/// The number of classes of `input`, and `target` in the shape that class indices have: that of `input` without its
/// classes. For a single row `target` may be `[1]`, too. `or` names what else it could have been.
pub(crate) fn class_target(
    target: &Tensor,
    input: &Tensor,
    class_dim: usize,
    or: &str,
) -> Result<(i64, Tensor), LossError> {
    let (shape, mut expected) = (target.size(), input.size());
    let classes = expected.remove(class_dim);
    if shape == expected {
        return Ok((classes, target.shallow_clone()));
    }
    if expected.is_empty() && shape == [1] {
        return Ok((classes, target.f_reshape(&expected)?));
    }
    Err(shape_error(("target", target), format!("{expected:?}, the shape of input without its classes{or}")))
}

/// The numbers of rows and classes of an input `[N, C]`, or of a single row `[C]` or `[]`.
pub(crate) fn rows_and_classes(input: &Tensor) -> Result<(i64, i64), LossError> {
    match input.size()[..] {
        [] => Ok((1, 1)),
        [classes] if classes > 0 => Ok((1, classes)),
        [rows, classes] if classes > 0 => Ok((rows, classes)),
        _ => Err(shape_error(("input", input), "[C] or [N, C], with at least one class")),
    }
}

/// `tensor`, of any integer kind, as 64-bit integers.
pub(crate) fn integers((argument, tensor): Named) -> Result<Tensor, LossError> {
    match tensor.f_kind()? {
        Kind::Int64 => Ok(tensor.shallow_clone()),
        Kind::Uint8 | Kind::Int8 | Kind::Int16 | Kind::Int => Ok(tensor.f_to_kind(Kind::Int64)?),
        actual => Err(LossError::Kind { argument, expected: "an integer kind".into(), actual }),
    }
}

/// An empty vector with room for `length` elements. A tensor of the caller may be expanded to any size, so that too
/// little memory is an error and no abort.
pub(crate) fn f_room<T>(length: usize) -> Result<Vec<T>, LossError> {
    let mut room = Vec::new();
    match room.try_reserve_exact(length) {
        Ok(()) => Ok(room),
        Err(_) => Err(LossError::Memory { bytes: length as u128 * size_of::<T>() as u128 }),
    }
}

/// The elements of a tensor of 64-bit integers, on the host.
pub(crate) fn host_integers(tensor: &Tensor) -> Result<Vec<i64>, LossError> {
    let mut values = f_room(tensor.numel())?;
    values.resize(tensor.numel(), 0);
    kernels::f_plain(tensor)?.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

/// `tensor` without the repetitions of a dimension that it was expanded along, plain and contiguous: the same values,
/// each as often as it is in memory.
pub(crate) fn f_without_repetitions(tensor: &Tensor) -> Result<Tensor, LossError> {
    let mut once = kernels::f_plain(tensor)?;
    for dim in 0..tensor.dim() {
        if once.stride()[dim] == 0 && once.size()[dim] > 1 {
            once = once.f_narrow(dim as i64, 0, 1)?;
        }
    }
    Ok(once.f_contiguous()?)
}

/// Looks whether all values of an argument are in `range`, of which NaN never is, and decides by `mode` about those
/// that are not. `expected` says what they are, such as "values in [0, 1]".
pub(crate) fn f_in_range(
    (argument, tensor): Named,
    range: RangeInclusive<f64>,
    expected: &str,
    mode: InvalidValues,
) -> Result<Validity, LossError> {
    let boolean = tensor.f_kind()? == Kind::Bool && range.contains(&0.0) && range.contains(&1.0);
    // The scan is one pass over memory; the tensor operations below are three.
    if boolean || (mode.is_error() && kernels::scan_range(tensor, range.clone()) == Some(true)) {
        return Ok(Validity::CHECKED);
    }
    f_between((argument, tensor), [*range.start(), *range.end()], || expected.to_owned(), mode)
}

/// The same by tensor operations.
pub(crate) fn f_between(
    (argument, tensor): Named,
    [least, most]: [impl Into<Number>; 2],
    expected: impl FnOnce() -> String,
    mode: InvalidValues,
) -> Result<Validity, LossError> {
    let tensor = tensor.f_detach()?;
    let within = tensor.f_clamp_number(least, most)?;
    let invalid = within.f_ne_tensor(&tensor)?;
    Ok(Validity::f_new((argument, &tensor), invalid, expected, mode)?.with(within))
}

/// Log-probabilities are at most 0, up to rounding.
const LARGEST_LOG_PROB: f64 = 1e-3;

/// Looks for numbers that are no log-probabilities because they are above 0, as raw logits are. NaN is none of them.
pub(crate) fn f_log_probs((argument, tensor): Named, mode: InvalidValues) -> Result<Validity, LossError> {
    let range = f64::NEG_INFINITY..=LARGEST_LOG_PROB;
    if mode.is_error() && kernels::scan_range(tensor, range) == Some(true) {
        return Ok(Validity::CHECKED);
    }
    let tensor = tensor.f_detach()?;
    let above = tensor.f_gt_number(LARGEST_LOG_PROB)?;
    let expected = || "log-probabilities, which are at most 0: apply log_softmax before".to_owned();
    Validity::f_new((argument, &tensor), above, expected, mode)
}

#[cfg(test)]
thread_local! {
    /// How often this thread has looked at values by tensor operations.
    pub(crate) static CHECKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}
