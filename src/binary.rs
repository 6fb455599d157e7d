//! What the losses of logits of yes or no have in common, as tensor operations.

use tch::{Device, Kind, Tensor};

use crate::check::{self, Validity};
use crate::kernels::{self, NumberOperations};
use crate::{InvalidValues, LossError};

/// Looks whether the targets are in \[0, 1\], and decides by `mode` about those that are not.
pub(crate) fn f_shares(target: &Tensor, mode: InvalidValues) -> Result<Validity, LossError> {
    check::f_in_range(("target", target), 0.0..=1.0, "values in [0, 1]", mode)
}

/// The greatest quality. An intersection over union is rounded, and may come out a little above 1.
pub(crate) const ROUNDED_ONE: f64 = 1.0001;

/// [`f_shares`] of qualities.
pub(crate) fn f_qualities(target: &Tensor, mode: InvalidValues) -> Result<Validity, LossError> {
    check::f_in_range(("target", target), 0.0..=ROUNDED_ONE, "values in [0, 1]", mode)
}

/// Logits, and whether some of them may be infinite.
///
/// Those need more operations, as an infinite logarithm that counts nothing is to leave nothing behind. To look for them costs
/// little on the CPU. On CUDA it would take a wait, so that there infinite logits are what tensor operations make of them: NaN
/// where ∞ meets 0.
pub(crate) struct Logits<'a> {
    logits: &'a Tensor,
    infinite: bool,
}

impl<'a> Logits<'a> {
    pub(crate) fn f_new(logits: &'a Tensor) -> Result<Self, LossError> {
        Ok(Self { logits, infinite: f_any_infinite(logits)? })
    }

    /// Whether some of them are.
    pub(crate) fn are_infinite(&self) -> bool {
        self.infinite
    }

    /// The logits with a number in place of an infinite one, through which no gradient goes: for what is flat there.
    pub(crate) fn f_finite(&self) -> Result<Tensor, LossError> {
        if !self.infinite {
            return Ok(self.logits.shallow_clone());
        }
        let most = f_largest(self.logits.f_kind()?);
        Ok(self.logits.f_clamp_number(-most, most)?)
    }

    /// The binary cross entropy of each element, without a reduction.
    pub(crate) fn f_entropy(&self, target: &Tensor, pos_weight: Option<&Tensor>) -> Result<Tensor, LossError> {
        if !self.infinite {
            let (none, reduction) = (None::<&Tensor>, tch::Reduction::None);
            return Ok(self.logits.f_binary_cross_entropy_with_logits(target, none, pos_weight, reduction)?);
        }
        let (log_p, log_q) = (self.logits.f_log_sigmoid()?, self.logits.f_neg()?.f_log_sigmoid()?);
        let positive = match pos_weight {
            Some(weight) => target.f_mul(weight)?,
            None => target.shallow_clone(),
        };
        Ok(self.f_part(&positive, &log_p)?.f_add(&self.f_part(&target.f_rsub_number(1)?, &log_q)?)?.f_neg()?)
    }

    /// `share` times what is shared, which counts nothing where the share is 0, and is still the slope of the share.
    pub(crate) fn f_part(&self, share: &Tensor, whole: &Tensor) -> Result<Tensor, LossError> {
        if !self.infinite {
            return Ok(share.f_mul(whole)?);
        }
        // Twice the number of greatest size is infinite in the gradient of the share, and 0 in the value.
        let most = f_largest(whole.f_kind()?);
        let nothing = share.f_eq_number(0)?.f_logical_and(&whole.f_isinf()?)?;
        let bound = whole.f_detach()?.f_clamp_number(-most, most)?;
        let again = bound.f_masked_fill_number(&nothing.f_logical_not()?, 0)?;
        Ok(share.f_mul(&bound.f_where_self(&nothing, whole)?)?.f_add(&share.f_mul(&again)?)?)
    }
}

fn f_largest(kind: Kind) -> f64 {
    if kind == Kind::Double { f64::MAX } else { f32::MAX.into() }
}

/// Whether a tensor on the CPU holds an infinite number.
fn f_any_infinite(tensor: &Tensor) -> Result<bool, LossError> {
    if tensor.device() != Device::Cpu {
        return Ok(false);
    }
    let most = f_largest(tensor.f_kind()?);
    if kernels::scan_range(&tensor.f_detach()?, -most..=most) == Some(true) {
        return Ok(false);
    }
    Ok(tensor.f_isinf()?.f_any()?.f_int64_value(&[])? != 0)
}
