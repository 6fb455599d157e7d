//! Where values are not valid, and what becomes of the loss there.

use tch::Tensor;

use super::{InvalidValues, Named};
use crate::LossError;
use crate::autograd::{self, Function};
use crate::kernels::{Number, NumberOperations};

/// Where the values of an argument are not valid, and what to do there.
///
/// Only needed where they make the loss NaN: then `invalid` says which elements are not valid.
pub(crate) struct Validity {
    invalid: Option<Tensor>,
    /// Whether any is, on their device, if it is known already.
    any: Option<Tensor>,
    /// A copy of the values, of which this may change those that are not valid.
    own: Option<Tensor>,
}

impl Validity {
    /// All values are valid, or an error was returned.
    pub(crate) const CHECKED: Validity = Validity { invalid: None, any: None, own: None };

    /// Decides by `mode` about what a kernel has found of the values of `argument`: a Boolean scalar on its device, or
    /// nothing where all are known to be valid.
    #[cfg(feature = "segmentation")]
    pub(crate) fn f_found(
        argument: &'static str,
        valid: Option<Tensor>,
        expected: &str,
        mode: InvalidValues,
    ) -> Result<Validity, LossError> {
        let Some(valid) = valid else { return Ok(Validity::CHECKED) };
        let invalid = valid.f_logical_not()?;
        match mode {
            InvalidValues::Nan => {}
            InvalidValues::Error => InvalidValues::f_note(valid.device(), argument, expected.to_owned(), &invalid)?,
            InvalidValues::ErrorAtOnce if valid.f_int64_value(&[])? == 0 => {
                return Err(LossError::Value {
                    argument,
                    expected: expected.to_owned(),
                    actual: "another value".into(),
                });
            }
            InvalidValues::ErrorAtOnce => return Ok(Validity::CHECKED),
        }
        Ok(Validity { any: Some(invalid.shallow_clone()), invalid: Some(invalid), own: None })
    }

    /// Decides by `mode` about the values of `argument`, given a Boolean tensor of those that are not valid.
    pub(crate) fn f_new(
        (argument, tensor): Named,
        invalid: Tensor,
        expected: impl FnOnce() -> String,
        mode: InvalidValues,
    ) -> Result<Validity, LossError> {
        #[cfg(test)]
        super::CHECKS.set(super::CHECKS.get() + 1);
        if mode.defers(tensor) {
            let any = invalid.f_any()?;
            InvalidValues::f_note(tensor.device(), argument, expected(), &any)?;
            return Ok(Validity { invalid: Some(invalid), any: Some(any), own: None });
        }
        if !mode.is_error() {
            return Ok(Validity { invalid: Some(invalid), any: None, own: None });
        }
        if invalid.f_any()?.f_int64_value(&[])? == 0 {
            return Ok(Validity::CHECKED);
        }
        let first = invalid.f_flatten(0, -1)?.f_nonzero()?.f_int64_value(&[0, 0])?;
        let actual = tensor.f_flatten(0, -1)?.f_double_value(&[first])?.to_string();
        Err(LossError::Value { argument, expected: expected(), actual })
    }

    /// The same with a copy of the values, which may be changed where they are not valid.
    pub(super) fn with(self, own: Tensor) -> Validity {
        Validity { own: Some(own), ..self }
    }

    /// Whether all values are known to be valid.
    pub(crate) fn is_checked(&self) -> bool {
        self.invalid.is_none()
    }

    /// Where whole rows are valid: all of their elements, along the last dimension.
    pub(crate) fn f_rows(self) -> Result<Validity, LossError> {
        self.f_all_along(-1)
    }

    /// Where all elements along `dim` are.
    pub(crate) fn f_all_along(self, dim: i64) -> Result<Validity, LossError> {
        let invalid = self.invalid.map(|invalid| invalid.f_any_dim(dim, false)).transpose()?;
        Ok(Validity { invalid, any: self.any, own: None })
    }

    /// With a dimension of size 1 at `dim`, over which the validity is the same.
    pub(crate) fn f_unsqueeze(self, dim: i64) -> Result<Validity, LossError> {
        let invalid = self.invalid.map(|invalid| invalid.f_unsqueeze(dim)).transpose()?;
        Ok(Validity { invalid, any: self.any, own: None })
    }

    /// The values with a harmless one in place of those that are not valid. What is computed of them has to be
    /// [poisoned](Self::f_poison), which keeps the gradient of the harmless ones at 0.
    pub(crate) fn f_replace(&mut self, tensor: &Tensor, harmless: impl Into<Number>) -> Result<Tensor, LossError> {
        if self.is_checked() {
            return Ok(tensor.shallow_clone());
        }
        let mut values = match self.own.take() {
            Some(own) => own,
            None => tensor.f_detach()?.f_to_dtype(tensor.f_kind()?, false, true)?,
        };
        self.f_fill(&mut values, harmless)?;
        let through = |context: autograd::Context| Ok(vec![context.grad(0)]);
        Ok(Function::new(&[tensor]).f_attach_own(vec![values], through)?.remove(0))
    }

    /// The values, of which those that are not valid are the nearest ones that are; nothing where no copy was made. For
    /// integers, of which none is NaN, that is as good as [`f_replace`](Self::f_replace).
    pub(crate) fn take_nearest(&mut self) -> Option<Tensor> {
        self.own.take()
    }

    /// Writes a harmless value over those that are not valid.
    pub(crate) fn f_fill(&self, values: &mut Tensor, harmless: impl Into<Number>) -> Result<(), LossError> {
        if let Some(invalid) = &self.invalid {
            let _ = values.f_masked_fill_number_(invalid, harmless)?;
        }
        Ok(())
    }

    /// [`f_poison`](Self::f_poison) of the loss of an engine that has taken the call.
    pub(crate) fn f_poison_fused(&self, loss: Option<Tensor>, unreduced: bool) -> Result<Option<Tensor>, LossError> {
        if self.is_checked() {
            return Ok(loss);
        }
        loss.map(|loss| self.f_poison(&loss, unreduced)).transpose()
    }

    /// The loss, NaN where an invalid value went into it, and with a gradient of 0 there.
    pub(crate) fn f_poison(&self, loss: &Tensor, unreduced: bool) -> Result<Tensor, LossError> {
        match self.f_invalid(unreduced)? {
            None => Ok(loss.shallow_clone()),
            Some(invalid) => f_poisoned(loss, loss.f_detach()?.f_masked_fill_number(&invalid, f64::NAN)?, &invalid),
        }
    }

    /// The same of a loss that this call has made and nothing else reads, not even its graph, as the result of a mean
    /// or a sum. It is changed in place, which spares a copy.
    pub(crate) fn f_poison_own(&self, loss: Tensor, unreduced: bool) -> Result<Tensor, LossError> {
        if unreduced {
            return self.f_poison(&loss, true);
        }
        match self.f_invalid(false)? {
            None => Ok(loss),
            Some(invalid) => f_poisoned(&loss, loss.f_detach()?.f_masked_fill_number_(&invalid, f64::NAN)?, &invalid),
        }
    }

    /// The validity of a loss of which this and another argument are part. Of a reduced one it is known only whether any
    /// value is not valid, and not which.
    pub(crate) fn f_and(&self, other: &Validity, unreduced: bool) -> Result<Validity, LossError> {
        let invalid = match (self.f_invalid(unreduced)?, other.f_invalid(unreduced)?) {
            (Some(a), Some(b)) => Some(a.f_logical_or(&b)?),
            (one, None) | (None, one) => one,
        };
        let any = if unreduced { None } else { invalid.as_ref().map(Tensor::shallow_clone) };
        Ok(Validity { invalid, any, own: None })
    }

    /// Where the loss is not valid: each of the losses, or the reduced one.
    pub(super) fn f_invalid(&self, unreduced: bool) -> Result<Option<Tensor>, LossError> {
        let Some(invalid) = &self.invalid else { return Ok(None) };
        Ok(Some(match &self.any {
            _ if unreduced => invalid.shallow_clone(),
            Some(any) => any.shallow_clone(),
            None => invalid.f_any()?,
        }))
    }
}

/// The `value` of a loss that is NaN where it is `invalid`, with the gradient of `loss` elsewhere.
fn f_poisoned(loss: &Tensor, value: Tensor, invalid: &Tensor) -> Result<Tensor, LossError> {
    let backward = |context: autograd::Context| {
        let (Some(grad), [invalid]) = (context.grad(0), context.saved()) else { return Ok(vec![None]) };
        Ok(vec![Some(grad.f_zeros_where(invalid)?)])
    };
    Ok(Function::new(&[loss]).save(&[invalid]).f_attach_own(vec![value], backward)?.remove(0))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::check::f_in_range;

    #[test]
    fn a_poisoned_loss_is_nan_and_has_no_gradient_whatever_comes_back() {
        let target = Tensor::from_slice(&[0.5, 2.0, f64::NAN, 1.0]);
        for unreduced in [false, true] {
            for own in [false, true] {
                let x = Tensor::ones(4, (Kind::Double, Device::Cpu)).set_requires_grad(true);
                let mut validity = f_in_range(("target", &target), 0.0..=1.0, "shares", InvalidValues::Nan).unwrap();
                let harmless = validity.f_replace(&target, 0.25).unwrap();
                assert_eq!(Vec::<f64>::try_from(&harmless).unwrap(), [0.5, 0.25, 0.25, 1.0]);
                let losses = x.square() * harmless;
                let loss = if unreduced { losses } else { losses.sum(None) };
                let loss = match own {
                    true => validity.f_poison_own(loss, unreduced).unwrap(),
                    false => validity.f_poison(&loss, unreduced).unwrap(),
                };
                let is_nan = Vec::<bool>::try_from(loss.isnan().view(-1)).unwrap();
                assert_eq!(is_nan, if unreduced { vec![false, true, true, false] } else { vec![true] });
                // The gradient that comes back is NaN, too.
                let first = Tensor::run_backward(&[loss.square().sum(None)], &[&x], true, true).remove(0);
                let valid = if unreduced { [0.5, 0.0, 0.0, 1.0] } else { [0.0; 4] };
                let gradient = valid.map(|share: f64| 4.0 * share * share);
                assert_eq!(Vec::<f64>::try_from(first.detach()).unwrap(), gradient);
                let second = Tensor::run_backward(&[first.sum(None)], &[&x], false, false).remove(0);
                assert_eq!(Vec::<f64>::try_from(second).unwrap(), gradient.map(|gradient| 3.0 * gradient));
            }
        }
    }

    #[test]
    fn a_loss_of_two_arguments_is_poisoned_by_each() {
        let check = |values: &[f64]| {
            let values = Tensor::from_slice(values);
            f_in_range(("argument", &values), 0.0..=1.0, "shares", InvalidValues::Nan).unwrap()
        };
        for (values, expected) in [([0.5, 2.0], true), ([0.5, 0.5], false)] {
            for both in
                [check(&values).f_and(&check(&[0.0, 1.0]), false), check(&[0.0, 1.0]).f_and(&check(&values), false)]
            {
                let loss = both.unwrap().f_poison_own(Tensor::from(1.0), false).unwrap();
                assert_eq!(loss.double_value(&[]).is_nan(), expected);
            }
        }
        let one = Validity::CHECKED.f_and(&check(&[2.0]), true).unwrap();
        assert!(one.f_poison(&Tensor::from(1.0), false).unwrap().double_value(&[]).is_nan());
    }
}
