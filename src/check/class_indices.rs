//! The checks of class indices, which libtorch must never see out of range.

use tch::{Kind, Tensor};

use super::{InvalidValues, Validity, class_target, f_without_repetitions, host_integers, integers, shape_error};
use crate::LossError;
use crate::autograd;
use crate::kernels::{self, Note, NumberOperations};

/// There is at least one class where there are targets: even for an ignored or invalid target a number of some class is
/// looked up.
fn some_class(input: &Tensor, classes: i64, target: &Tensor) -> Result<(), LossError> {
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
    /// Where they are that, if it is known already.
    are_ignored: Option<Tensor>,
    /// Which of the indices are valid.
    pub(crate) validity: Validity,
}

impl ClassIndices {
    /// Those of a `target` that has the shape of `input` without its classes, which are along `class_dim`. `or` names
    /// what else the target could have been.
    pub(crate) fn f_of(
        target: &Tensor,
        (input, class_dim): (&Tensor, usize),
        or: &str,
        ignore_index: Option<i64>,
        mode: InvalidValues,
    ) -> Result<ClassIndices, LossError> {
        let (classes, target) = class_target(target, input, class_dim, or)?;
        some_class(input, classes, &target)?;
        Self::f_new(&target, classes, ignore_index, mode)
    }

    /// Checks that each element of `target` is in `[0, classes)` or `ignore_index`.
    pub(crate) fn f_new(
        target: &Tensor,
        classes: i64,
        ignore_index: Option<i64>,
        mode: InvalidValues,
    ) -> Result<ClassIndices, LossError> {
        let indices = integers(("target", target))?;
        if mode.is_error_of_host(&indices) {
            // libtorch's graph keeps the indices, and its backward pass does not check them again. Until then the caller
            // may write to them without libtorch noticing, through `data()` for example. So they are copied, unless an
            // engine takes them, which checks them again.
            let shared = target.f_kind()? == Kind::Int64 && autograd::grad_enabled() && !kernels::takes(&indices);
            return Self::f_on_host(if shared { kernels::f_own(&indices)? } else { indices }, classes, ignore_index);
        }
        // A class out of range becomes one that there is. These are new tensors, to which nobody else writes.
        let within = indices.f_clamp_number(0, (classes - 1).max(0))?;
        let are_ignored = ignore_index.map(|ignored| indices.f_eq_number(ignored)).transpose()?;
        let (mut valid, mut known) = (within.f_eq_tensor(&indices)?, within);
        if let Some(are_ignored) = &are_ignored {
            valid = valid.f_logical_or(are_ignored)?;
            known = indices.f_where_self(are_ignored, &known)?;
        }
        let expected = || expected_class(classes, ignore_index);
        let validity = Validity::f_new(("target", &indices), valid, expected, mode)?;
        Ok(ClassIndices { indices: known, ignored: ignore_index, are_ignored, validity })
    }

    /// [`f_fused`](Self::f_fused) of a target that is [`f_of`](Self::f_of) an input.
    pub(crate) fn f_fused_of(
        target: &Tensor,
        (input, class_dim): (&Tensor, usize),
        or: &str,
        ignore_index: Option<i64>,
        found: (InvalidValues, bool),
        engine: impl FnOnce(&Tensor, Option<&Note>) -> Result<Option<Tensor>, LossError>,
    ) -> Result<Result<Tensor, ClassIndices>, LossError> {
        let (classes, target) = class_target(target, input, class_dim, or)?;
        some_class(input, classes, &target)?;
        Self::f_fused(&target, classes, ignore_index, found, engine)
    }

    /// The loss by an `engine` of rows, or where it does not take the call, the indices, checked. On CUDA the kernels
    /// check them: that costs nothing there, while the tensor operations of a check are a kernel each. What they are to
    /// take note of is the second argument of `engine`.
    pub(crate) fn f_fused(
        target: &Tensor,
        classes: i64,
        ignore_index: Option<i64>,
        (mode, unreduced): (InvalidValues, bool),
        engine: impl FnOnce(&Tensor, Option<&Note>) -> Result<Option<Tensor>, LossError>,
    ) -> Result<Result<Tensor, ClassIndices>, LossError> {
        let f_checked = || Self::f_new(target, classes, ignore_index, mode);
        if let Some(note) = Self::checked_by_kernels(target, classes, ignore_index, mode) {
            let fused = engine(&integers(("target", target))?, note.as_ref())?;
            return fused.map_or_else(|| f_checked().map(Err), |loss| Ok(Ok(loss)));
        }
        let checked = f_checked()?;
        let fused = engine(&checked.indices, None)?;
        Ok(checked.validity.f_poison_fused(fused, unreduced)?.ok_or(checked))
    }

    /// What kernels are to take note of where they come upon another class, if anything; nothing where kernels are not
    /// what checks these classes.
    pub(crate) fn checked_by_kernels(
        target: &Tensor,
        classes: i64,
        ignore_index: Option<i64>,
        mode: InvalidValues,
    ) -> Option<Option<Note>> {
        let expected = || expected_class(classes, ignore_index);
        let note = || mode.is_error().then(|| Note { argument: "target", expected: expected() });
        (kernels::is_on_cuda(target) && mode != InvalidValues::ErrorAtOnce).then(note)
    }

    /// One pass over the values beats four tensor operations on the CPU.
    fn f_on_host(indices: Tensor, classes: i64, ignore_index: Option<i64>) -> Result<ClassIndices, LossError> {
        let values = f_without_repetitions(&indices)?;
        if let Some((true, any_ignored)) = kernels::scan_classes(&values, classes, ignore_index) {
            let ignored = ignore_index.filter(|_| any_ignored);
            return Ok(ClassIndices { indices, ignored, are_ignored: None, validity: Validity::CHECKED });
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
        Ok(ClassIndices { indices, ignored, are_ignored: None, validity: Validity::CHECKED })
    }

    /// The indices for an operation of libtorch that does not check them in its backward pass: a copy, so that nobody
    /// can write to them in between.
    pub(crate) fn f_kept(&self, input: &Tensor) -> Result<Tensor, LossError> {
        let shared = autograd::grad_enabled() && input.requires_grad() && kernels::takes(&self.indices);
        if shared { kernels::f_own(&self.indices) } else { Ok(self.indices.shallow_clone()) }
    }

    /// Where the target is ignored; nothing where none is known to be.
    pub(crate) fn f_ignored(&self) -> Result<Option<Tensor>, LossError> {
        match &self.are_ignored {
            Some(are_ignored) => Ok(Some(are_ignored.shallow_clone())),
            None => Ok(self.ignored.map(|ignored| self.indices.f_eq_number(ignored)).transpose()?),
        }
    }

    /// `input` with 0 in place of the rows whose target is ignored, which keeps what they hold out of the gradient.
    pub(crate) fn f_mask_ignored(&self, input: &Tensor, class_dim: usize) -> Result<Tensor, LossError> {
        if !input.requires_grad() {
            return Ok(input.shallow_clone());
        }
        let Some(ignored) = self.f_ignored()? else { return Ok(input.shallow_clone()) };
        let rows = ignored.f_unsqueeze(class_dim as i64)?;
        // The check has waited for the device already. To wait once more is cheaper than a copy of the input.
        if self.validity.is_checked() && rows.f_any()?.f_int64_value(&[])? == 0 {
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
