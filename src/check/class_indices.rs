//! The checks of class indices, which libtorch must never see out of range.

use tch::{Kind, TchError, Tensor};

use super::{InvalidValues, Validity, class_target, f_without_repetitions, host_integers, integers, shape_error};
use crate::LossError;
use crate::autograd::{self, Function};
use crate::kernels::{self, Note, NumberOperations};
use crate::numeric::f_filled;

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
        let expected = || expected_class(classes, ignore_index);
        if classes <= 0 && indices.numel() > 0 {
            // There is no index that libtorch could look up in place of an invalid one.
            let actual = format!("{} indices", indices.numel());
            return Err(LossError::Value { argument: "target", expected: expected(), actual });
        }
        let known = f_known(&indices, (classes - 1).max(0), ignore_index)?;
        let invalid = known.f_ne_tensor(&indices)?;
        let validity = Validity::f_new(("target", &indices), invalid, expected, mode)?;
        Ok(ClassIndices { indices: known, ignored: ignore_index, validity })
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

    /// The indices for a mean over those that are not ignored. Where any is not valid all are ignored: the mean over
    /// none is NaN, and has no gradient.
    pub(crate) fn f_ignoring_all(self) -> Result<ClassIndices, LossError> {
        let (Some(ignored), Some(any)) = (self.ignored, self.validity.f_invalid(false)?) else { return Ok(self) };
        let mut indices = self.indices;
        let _ = indices.f_masked_fill_number_(&any, ignored)?;
        Ok(ClassIndices { indices, ignored: self.ignored, validity: Validity::CHECKED })
    }

    /// The indices for an operation of libtorch that does not check them in its backward pass: a copy, so that nobody
    /// can write to them in between.
    pub(crate) fn f_kept(&self, input: &Tensor) -> Result<Tensor, LossError> {
        f_kept(&self.indices, input)
    }

    /// Where the target is ignored; nothing where none is known to be.
    pub(crate) fn f_ignored(&self) -> Result<Option<Tensor>, LossError> {
        Ok(self.ignored.map(|ignored| self.indices.f_eq_number(ignored)).transpose()?)
    }

    /// `numbers`, and 0 where the target is ignored.
    pub(crate) fn f_zeros_at_ignored(&self, numbers: &Tensor) -> Result<Tensor, TchError> {
        match self.ignored {
            Some(index) => f_zeros_at_ignored(numbers, &self.indices, index),
            None => Ok(numbers.shallow_clone()),
        }
    }

    /// The indices, and in place of an ignored one a class: any, since nothing is to be computed of it. `ignored` is what
    /// [`f_ignored`](Self::f_ignored) returned, where it was asked.
    pub(crate) fn f_classes(&self, ignored: Option<&Tensor>) -> Result<Tensor, LossError> {
        match (self.ignored, ignored) {
            (Some(index), _) if index < 0 => Ok(self.indices.f_clamp_min_number(0)?),
            (Some(index), None) => f_filled(&self.indices, Some(&self.indices.f_eq_number(index)?), 0),
            _ => f_filled(&self.indices, ignored, 0),
        }
    }

    /// `input`, of which the rows whose target is ignored get no gradient, whatever they hold: for a loss that does not
    /// read what is computed of them.
    pub(crate) fn f_without_ignored(&self, input: &Tensor, class_dim: usize) -> Result<Tensor, LossError> {
        let Some(ignored) = self.ignored.filter(|_| autograd::grad_enabled() && input.requires_grad()) else {
            return Ok(input.shallow_clone());
        };
        let function = Function::new(&[input]).save(&[&self.indices]);
        function.f_attach_one(input.shallow_clone(), move |context| {
            let (Some(grad), [indices]) = (context.grad(0), context.saved()) else { return Ok(vec![None]) };
            Ok(vec![Some(f_zeros_at_ignored(&grad, &indices.f_unsqueeze(class_dim as i64)?, ignored)?)])
        })
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

/// `numbers`, and 0 where one of the `indices`, which are classes or `ignored`, is ignored.
fn f_zeros_at_ignored(numbers: &Tensor, indices: &Tensor, ignored: i64) -> Result<Tensor, TchError> {
    // No class is below 0, and a comparison is a kernel of its own.
    if ignored < 0 {
        return numbers.f_zeros_up_to(-1, indices);
    }
    numbers.f_zeros_where(&indices.f_eq_number(ignored)?)
}

/// See [`ClassIndices::f_kept`].
pub(crate) fn f_kept(indices: &Tensor, input: &Tensor) -> Result<Tensor, LossError> {
    let shared = autograd::grad_enabled() && input.requires_grad() && kernels::takes(indices);
    if shared { kernels::f_own(indices) } else { Ok(indices.shallow_clone()) }
}

/// The indices, and where they are neither a class up to the `last` one nor ignored another index that is. New tensors,
/// to which nobody else writes.
fn f_known(indices: &Tensor, last: i64, ignored: Option<i64>) -> Result<Tensor, LossError> {
    let (least, most) =
        (ignored.map_or(0, |ignored| ignored.min(0)), ignored.map_or(last, |ignored| ignored.max(last)));
    // The ignored one is a class, or next to the classes.
    if least >= -1 && most - last <= 1 {
        return Ok(indices.f_clamp_number(least, most)?);
    }
    if least < 0 {
        let mut known = indices.f_threshold_number(-1, least)?;
        return Ok(known.f_clamp_max_number_(last)?);
    }
    let mut known = indices.f_clamp_number(0, last)?;
    Ok(known.f_masked_fill_number_(&indices.f_eq_number(most)?, most)?)
}

fn expected_class(classes: i64, ignore_index: Option<i64>) -> String {
    match ignore_index {
        Some(ignored) => format!("classes in [0, {classes}), or ignore_index {ignored}"),
        None => format!("classes in [0, {classes})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::like_cuda;
    use crate::{CrossEntropyLoss, Loss, NllLoss, Reduction};

    #[test]
    fn without_classes_nothing_is_looked_up() {
        let input = Tensor::zeros([2, 0, 3], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let target = Tensor::zeros([2, 3], (Kind::Int64, tch::Device::Cpu));
        let none = [input.narrow(0, 0, 0), target.narrow(0, 0, 0)];
        let error = like_cuda(|| NllLoss::new().f_forward(&input, &target)).unwrap_err();
        assert_eq!(error.to_string(), "target holds 6 indices, expected classes in [0, 0), or ignore_index -100");
        assert!(like_cuda(|| NllLoss::new().f_forward(&none[0], &none[1])).is_ok());
    }

    #[test]
    fn an_invalid_class_is_nan_without_a_gradient_beside_ignored_ones() {
        let input = Tensor::from_slice(&[0.5, -1.0, f64::NAN, 2.0, 1.0, 0.25, -0.5, 3.0]).view([4, 2]);
        let weight = Tensor::from_slice(&[0.5, 2.0]);
        for ignored in [-100_i64, 1] {
            let targets = [7, ignored].map(|class| Tensor::from_slice(&[0, ignored, 0, class]));
            let nll = NllLoss::new().ignore_index(ignored).invalid_values(InvalidValues::Nan);
            let entropy = CrossEntropyLoss::new().ignore_index(ignored).invalid_values(InvalidValues::Nan);
            let smooth = entropy.clone().label_smoothing(0.1);
            for reduction in [Reduction::Mean, Reduction::Sum] {
                let losses: [Box<dyn Loss>; 4] = [
                    Box::new(nll.clone().reduction(reduction)),
                    Box::new(entropy.clone().reduction(reduction)),
                    Box::new(smooth.clone().reduction(reduction)),
                    Box::new(smooth.clone().weight(weight.shallow_clone()).reduction(reduction)),
                ];
                for (place, loss) in losses.iter().enumerate() {
                    let results = |target: &Tensor| {
                        let input = input.copy().set_requires_grad(true);
                        let loss = like_cuda(|| loss.f_forward(&input, target)).unwrap();
                        loss.backward();
                        (loss.double_value(&[]), Vec::<f64>::try_from(input.grad().view(-1)).unwrap())
                    };
                    let (value, gradient) = results(&targets[0]);
                    assert!(value.is_nan(), "{place}: {value}");
                    assert_eq!(gradient, [0.0; 8], "{place}");
                    let (value, gradient) = results(&targets[1]);
                    assert!(value.is_finite(), "{place}: {value}");
                    assert_eq!(gradient[2..4], [0.0; 2], "{place}");
                    assert!(gradient.iter().any(|slope| *slope != 0.0), "{place}");
                }
            }
        }
    }

    #[test]
    fn known_indices_are_equal_where_they_are_valid_and_elsewhere_classes_or_ignored() {
        let values = [i64::MIN, -101, -100, -99, -2, -1, 0, 1, 4, 5, 6, 254, 255, 256, i64::MAX];
        for ignored in [None].into_iter().chain(values.map(Some)) {
            let known = f_known(&Tensor::from_slice(&values), 4, ignored).unwrap();
            for (value, known) in values.into_iter().zip(Vec::<i64>::try_from(known).unwrap()) {
                let is_valid = |index: i64| (0..=4).contains(&index) || Some(index) == ignored;
                assert_eq!(known == value, is_valid(value), "{value} beside {ignored:?}");
                assert!(is_valid(known), "{value} beside {ignored:?} becomes {known}");
            }
        }
    }
}
