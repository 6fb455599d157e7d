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

    /// The binary cross entropy of each element with targets in \[0, 1\], without a reduction.
    ///
    /// Not by libtorch's operation, which takes log(1 + exp(x)) from a logit x and adds it again: nothing is left of what a
    /// confident prediction costs.
    pub(crate) fn f_entropy(&self, target: &Tensor, pos_weight: Option<&Tensor>) -> Result<Tensor, LossError> {
        let (log_p, log_q) = (self.logits.f_log_sigmoid()?, self.logits.f_neg()?.f_log_sigmoid()?);
        let positive = match pos_weight {
            Some(weight) => target.f_mul(weight)?,
            None => target.shallow_clone(),
        };
        Ok(self.f_part(&positive, &log_p)?.f_add(&self.f_part(&target.f_rsub_number(1)?, &log_q)?)?.f_neg()?)
    }

    /// The same with any targets. Outside of \[0, 1\] the parts cancel, and libtorch's operation does not.
    pub(crate) fn f_entropy_of_any(&self, target: &Tensor, pos_weight: Option<&Tensor>) -> Result<Tensor, LossError> {
        let of_shares = self.f_entropy(target, pos_weight)?;
        if kernels::scan_range(&target.f_detach()?, 0.0..=1.0) == Some(true) {
            return Ok(of_shares);
        }
        let infinite = self.logits.f_isinf()?;
        let share = target.f_ge_number(0)?.f_logical_and(&target.f_le_number(1)?)?;
        let kind = if target.f_kind()? == Kind::Double { Kind::Double } else { self.logits.f_kind()? };
        let (x, y) = (self.logits.f_masked_fill_number(&infinite, 0)?.f_to_kind(kind)?, target.f_to_kind(kind)?);
        let (none, reduction) = (None::<&Tensor>, tch::Reduction::None);
        let alike = Tensor::f_broadcast_tensors(&[x, y])?;
        let of_any = alike[0].f_binary_cross_entropy_with_logits(&alike[1], none, pos_weight, reduction)?;
        Ok(of_shares.f_where_self(&share.f_logical_or(&infinite)?, &of_any)?)
    }

    /// `share` times what is shared, which counts nothing where the share is 0, and is still the slope of the share.
    pub(crate) fn f_part(&self, share: &Tensor, whole: &Tensor) -> Result<Tensor, LossError> {
        if !self.infinite {
            return Ok(share.f_mul(whole)?);
        }
        let most = f_largest(whole.f_kind()?);
        let nothing = share.f_eq_number(0)?.f_logical_and(&whole.f_isinf()?)?;
        let bound = whole.f_detach()?.f_clamp_number(-most, most)?;
        let parts = share.f_mul(&bound.f_where_self(&nothing, whole)?)?;
        // The greatest number several times is infinite in the gradient of the share, however small what it is multiplied by
        // is, and 0 in the value.
        let steep = share.f_mul(&bound)?.f_mul_number(most)?.f_mul_number(most)?;
        Ok(steep.f_where_self(&nothing, &parts)?)
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

/// σ(`logits`), of which the slope keeps its digits: near 1 it is that of 1 − σ(−x).
pub(crate) fn f_sigmoid(logits: &Tensor) -> Result<Tensor, LossError> {
    let of_rest = logits.f_neg()?.f_sigmoid()?.f_rsub_number(1)?;
    Ok(of_rest.f_where_self(&logits.f_gt_number(0)?, &logits.f_sigmoid()?)?)
}
