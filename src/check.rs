//! The checks of shapes, kinds, devices and ranges that losses share.
//!
//! A named argument is a pair `(name, tensor)`; the names are those of PyTorch's signatures.

use std::fmt::Display;
use std::ops::RangeInclusive;

use tch::{Kind, Tensor};

pub(crate) use crate::argument::{Named, defined};
use crate::autograd::{self, Form, Header};
use crate::kernels::{Number, NumberOperations};
use crate::numeric::wide_kind;
use crate::{LossError, kernels};

/// What happens to values that have no loss: a class index out of range, a probability that is none, a negative
/// variance.
///
/// On the CPU finding them costs nothing worth mentioning. On CUDA it needs a look at the result on the host, which
/// waits for all work queued before it. Left unfound they would stop the whole CUDA context with a device-side
/// assertion, so they are never just passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum InvalidValues {
    /// They are a [`LossError::Value`]. The default.
    #[default]
    Error,
    /// They make the loss NaN and its gradient 0, without waiting for the device.
    Nan,
}

crate::options::words!(InvalidValues);

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

/// `tensor` is defined and dense: it has sizes and strides, which nothing may ask for before.
///
/// It may still be one whose numbers libtorch has yet to make. Operations take it as any other; who reads its memory makes it
/// [plain](kernels::f_plain).
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

/// The error for a `tensor` whose shape does not fit.
pub(crate) fn shape_error((argument, tensor): Named, expected: impl Into<String>) -> LossError {
    LossError::Shape { argument, expected: expected.into(), actual: tensor.size() }
}

/// `tensor` has one of the floating kinds.
pub(crate) fn floating((argument, tensor): Named) -> Result<(), LossError> {
    let actual = tensor.f_kind()?;
    if matches!(actual, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
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

/// `weight` holds one value of any floating kind per class, on the device of `input`. It is to be converted to the kind that the
/// loss is computed in.
pub(crate) fn class_weight(weight: &Tensor, input: &Tensor, classes: i64) -> Result<(), LossError> {
    devices(&[("input", input), ("weight", weight)])?;
    floating(("weight", weight))?;
    if weight.size() == [classes] {
        return Ok(());
    }
    Err(shape_error(("weight", weight), format!("[{classes}], one weight per class")))
}

/// `weight`, checked by [`class_weight`], in the kind that a loss of `input` is computed in; without a gradient, because libtorch's
/// operations on class indices have none of it.
pub(crate) fn f_class_weight(
    weight: Option<&Tensor>,
    input: &Tensor,
    classes: i64,
) -> Result<Option<Tensor>, LossError> {
    let Some(weight) = weight else { return Ok(None) };
    class_weight(weight, input, classes)?;
    without_gradient(("weight", weight))?;
    Ok(Some(weight.f_to_kind(wide_kind(input)?)?))
}

/// The tensor of an option that has no gradient for class indices needs none.
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

/// The option is a number, which may be infinite, and not NaN: with that nothing could be computed.
pub(crate) fn number(name: &'static str, value: f64) -> Result<(), LossError> {
    option(name, value, !value.is_nan(), "a number")
}

/// The option is a number of the kind that a loss of `input` is computed in, at least single precision: libtorch takes no
/// other. Infinity is such a number, NaN is none. With integers it is a number that their kind holds.
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

/// An empty vector with room for so many elements: as many as a tensor of the caller's, which may be expanded to any size.
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

/// `tensor` without the repetitions of a dimension that it was expanded along, plain and contiguous: the same values, each as
/// often as it is in memory.
pub(crate) fn f_without_repetitions(tensor: &Tensor) -> Result<Tensor, LossError> {
    let mut once = kernels::f_plain(tensor)?;
    for dim in 0..tensor.dim() {
        if once.stride()[dim] == 0 && once.size()[dim] > 1 {
            once = once.f_narrow(dim as i64, 0, 1)?;
        }
    }
    Ok(once.f_contiguous()?)
}

/// Looks whether all values of an argument are in `range`, of which NaN never is, and decides by `mode` about those that are
/// not. `expected` says what they are, such as "values in [0, 1]".
pub(crate) fn f_in_range(
    (argument, tensor): Named,
    range: RangeInclusive<f64>,
    expected: &str,
    mode: InvalidValues,
) -> Result<Validity, LossError> {
    let boolean = tensor.f_kind()? == Kind::Bool && range.contains(&0.0) && range.contains(&1.0);
    // The scan is one pass over memory; the tensor operations below are three.
    if boolean || (mode == InvalidValues::Error && kernels::scan_range(tensor, range.clone()) == Some(true)) {
        return Ok(Validity::CHECKED);
    }
    let tensor = tensor.f_detach()?;
    let valid = tensor.f_clamp_number(*range.start(), *range.end())?.f_eq_tensor(&tensor)?;
    Validity::f_new((argument, &tensor), valid, || expected.to_owned(), mode)
}

/// Log-probabilities are at most 0, up to rounding.
const LARGEST_LOG_PROB: f64 = 1e-3;

/// Looks for numbers that are no log-probabilities because they are above 0, as raw logits are. NaN is none of them.
pub(crate) fn f_log_probs((argument, tensor): Named, mode: InvalidValues) -> Result<Validity, LossError> {
    let range = f64::NEG_INFINITY..=LARGEST_LOG_PROB;
    if mode == InvalidValues::Error && kernels::scan_range(tensor, range) == Some(true) {
        return Ok(Validity::CHECKED);
    }
    let tensor = tensor.f_detach()?;
    let valid = tensor.f_gt_number(LARGEST_LOG_PROB)?.f_logical_not()?;
    let expected = || "log-probabilities, which are at most 0: apply log_softmax before".to_owned();
    Validity::f_new((argument, &tensor), valid, expected, mode)
}

/// Where the values of an argument are valid, and what to do where they are not.
///
/// Only needed where [`InvalidValues::Nan`] was asked for: then `valid` says which elements to trust.
pub(crate) struct Validity {
    valid: Option<Tensor>,
}

impl Validity {
    /// Nothing left to look after.
    pub(crate) const CHECKED: Validity = Validity { valid: None };

    /// Decides by `mode` about the values of `argument`, given a Boolean tensor of those that are valid.
    pub(crate) fn f_new(
        (argument, tensor): Named,
        valid: Tensor,
        expected: impl FnOnce() -> String,
        mode: InvalidValues,
    ) -> Result<Validity, LossError> {
        if mode == InvalidValues::Nan {
            return Ok(Validity { valid: Some(valid) });
        }
        if valid.f_all()?.f_int64_value(&[])? != 0 {
            return Ok(Validity::CHECKED);
        }
        let first = valid.f_flatten(0, -1)?.f_logical_not()?.f_nonzero()?.f_int64_value(&[0, 0])?;
        let actual = tensor.f_flatten(0, -1)?.f_double_value(&[first])?.to_string();
        Err(LossError::Value { argument, expected: expected(), actual })
    }

    /// Whether there is nothing left to look after.
    pub(crate) fn is_checked(&self) -> bool {
        self.valid.is_none()
    }

    /// Where whole rows are valid: all of their elements, along the last dimension.
    pub(crate) fn f_rows(self) -> Result<Validity, LossError> {
        let valid = self.valid.map(|valid| valid.f_all_dim(-1, false)).transpose()?;
        Ok(Validity { valid })
    }

    /// Where all elements along `dim` are.
    pub(crate) fn f_all_along(self, dim: i64) -> Result<Validity, LossError> {
        let valid = self.valid.map(|valid| valid.f_all_dim(dim, false)).transpose()?;
        Ok(Validity { valid })
    }

    /// With a dimension of size 1 at `dim`, over which the validity is the same.
    pub(crate) fn f_unsqueeze(self, dim: i64) -> Result<Validity, LossError> {
        let valid = self.valid.map(|valid| valid.f_unsqueeze(dim)).transpose()?;
        Ok(Validity { valid })
    }

    /// `tensor` with a harmless value in place of the invalid ones.
    pub(crate) fn f_replace(&self, tensor: &Tensor, harmless: impl Into<Number>) -> Result<Tensor, LossError> {
        let Some(valid) = &self.valid else {
            return Ok(tensor.shallow_clone());
        };
        let harmless = tensor.f_full_like_number(harmless)?;
        Ok(tensor.f_where_self(valid, &harmless)?)
    }

    /// The loss, NaN where an invalid value went into it.
    pub(crate) fn f_poison(&self, loss: &Tensor, unreduced: bool) -> Result<Tensor, LossError> {
        let Some(valid) = &self.valid else {
            return Ok(loss.shallow_clone());
        };
        let valid = if unreduced { valid.shallow_clone() } else { valid.f_all()? };
        Ok(loss.f_where_self(&valid, &loss.f_full_like_number(f64::NAN)?)?)
    }
}

/// There is a class for the targets to be, even for those that are ignored or invalid: the logarithm of one is looked up.
pub(crate) fn some_class(input: &Tensor, classes: i64, target: &Tensor) -> Result<(), LossError> {
    if classes > 0 || target.numel() == 0 {
        return Ok(());
    }
    Err(shape_error(("input", input), "at least one class"))
}

/// Class indices that libtorch can take.
pub(crate) struct ClassIndices {
    /// 64-bit, each in `[0, classes)` or the ignored one.
    pub(crate) indices: Tensor,
    /// The ignored one, where some may be it.
    ignored: Option<i64>,
    /// What to do with the loss of those that were neither.
    pub(crate) validity: Validity,
}

impl ClassIndices {
    /// Checks that each element of `target` is in `[0, classes)` or `ignore_index`.
    pub(crate) fn f_new(
        target: &Tensor,
        classes: i64,
        ignore_index: Option<i64>,
        mode: InvalidValues,
    ) -> Result<ClassIndices, LossError> {
        let mut indices = integers(("target", target))?;
        // A graph of libtorch's keeps the indices, and its backward pass does not look at them again. They may be written to in
        // between through a name that libtorch does not watch, such as `data()`. Engines do look again.
        if target.f_kind()? == Kind::Int64 && autograd::grad_enabled() && !kernels::takes(&indices) {
            indices = kernels::f_own(&indices)?;
        }
        if !indices.device().is_cuda() && mode == InvalidValues::Error {
            return Self::f_on_host(indices, classes, ignore_index);
        }
        let mut valid = indices.f_ge_number(0)?.f_logical_and(&indices.f_lt_number(classes)?)?;
        if let Some(ignored) = ignore_index {
            valid = valid.f_logical_or(&indices.f_eq_number(ignored)?)?;
        }
        let expected = || expected_class(classes, ignore_index);
        let validity = Validity::f_new(("target", &indices), valid, expected, mode)?;
        let indices = validity.f_replace(&indices, ignore_index.unwrap_or(0))?;
        Ok(ClassIndices { indices, ignored: ignore_index, validity })
    }

    /// One pass over the values beats four tensor operations on the CPU.
    fn f_on_host(indices: Tensor, classes: i64, ignore_index: Option<i64>) -> Result<ClassIndices, LossError> {
        let values = f_without_repetitions(&indices)?;
        if let Some((true, any_ignored)) = kernels::scan_classes(&values, classes, ignore_index) {
            let ignored = ignore_index.filter(|_| any_ignored);
            return Ok(ClassIndices { indices, ignored, validity: Validity::CHECKED });
        }
        let values = host_integers(&values)?;
        let mut ignored = None;
        for class in values {
            if Some(class) == ignore_index {
                ignored = ignore_index;
            } else if !(0..classes).contains(&class) {
                let expected = expected_class(classes, ignore_index);
                return Err(LossError::Value { argument: "target", expected, actual: class.to_string() });
            }
        }
        Ok(ClassIndices { indices, ignored, validity: Validity::CHECKED })
    }

    /// The indices for an operation of libtorch's that does not check them in its backward pass, where nobody can write to them
    /// in between.
    pub(crate) fn f_kept(&self, input: &Tensor) -> Result<Tensor, LossError> {
        let shared = autograd::grad_enabled() && input.requires_grad() && kernels::takes(&self.indices);
        if shared { kernels::f_own(&self.indices) } else { Ok(self.indices.shallow_clone()) }
    }

    /// Where the target is ignored; nothing where none is known to be.
    pub(crate) fn f_ignored(&self) -> Result<Option<Tensor>, LossError> {
        Ok(self.ignored.map(|ignored| self.indices.f_eq_number(ignored)).transpose()?)
    }

    /// `input` with 0 in place of the rows whose target is ignored, which keeps what they hold out of the gradient.
    pub(crate) fn f_mask_ignored(&self, input: &Tensor, class_dim: usize) -> Result<Tensor, LossError> {
        let Some(ignored) = self.ignored.filter(|_| input.requires_grad()) else {
            return Ok(input.shallow_clone());
        };
        let rows = self.indices.f_eq_number(ignored)?.f_unsqueeze(class_dim as i64)?;
        // Where the check has waited for the device anyway, one more look saves a copy of the input.
        if self.validity.valid.is_none() && rows.f_any()?.f_int64_value(&[])? == 0 {
            return Ok(input.shallow_clone());
        }
        Ok(input.f_masked_fill_number(&rows, 0)?)
    }
}

fn expected_class(classes: i64, ignore_index: Option<i64>) -> String {
    match ignore_index {
        Some(ignored) => format!("classes in [0, {classes}), or ignore_index {ignored}"),
        None => format!("classes in [0, {classes})"),
    }
}
