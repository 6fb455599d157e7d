//! What the losses of logits of two classes have in common, as tensor operations.

use tch::{Kind, Tensor};

use crate::check::{self, Validity};
use crate::kernels::{self, Expected, NumberOperations, waits};
use crate::{InvalidValues, LossError};

/// What targets of a binary loss are.
pub(crate) const SHARES: Expected = ("target", "values in [0, 1]");

/// Looks whether the targets are in \[0, 1\], and decides by `mode` about those that are not.
pub(crate) fn f_shares(target: &Tensor, mode: InvalidValues) -> Result<Validity, LossError> {
    check::f_in_range(("target", target), 0.0..=1.0, SHARES.1, mode)
}

/// The greatest quality. An intersection over union is rounded, and may come out a little above 1.
pub(crate) const ROUNDED_ONE: f64 = 1.0001;

/// [`f_shares`] of qualities.
pub(crate) fn f_qualities(target: &Tensor, mode: InvalidValues) -> Result<Validity, LossError> {
    check::f_in_range(("target", target), 0.0..=ROUNDED_ONE, SHARES.1, mode)
}

/// Logits, and whether some of them may be infinite.
///
/// Infinite logits need more operations, because an infinite logarithm times a share of 0 has to be 0. To look for them
/// costs little on the CPU. On CUDA it would wait for the device; there infinite logits have the loss that tensor
/// operations give them, NaN for 0 · ∞.
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
    /// libtorch's operation is not used: it subtracts and adds numbers of the size of the logit x, so that the small
    /// loss of a confident prediction is lost to rounding.
    pub(crate) fn f_entropy(&self, target: &Tensor, pos_weight: Option<&Tensor>) -> Result<Tensor, LossError> {
        let (log_p, log_q) = (self.logits.f_log_sigmoid()?, self.logits.f_neg()?.f_log_sigmoid()?);
        let positive = match pos_weight {
            Some(weight) => target.f_mul(weight)?,
            None => target.shallow_clone(),
        };
        Ok(self.f_part(&positive, &log_p)?.f_add(&self.f_part(&target.f_rsub_number(1)?, &log_q)?)?.f_neg()?)
    }

    /// The same with any targets. For a target outside of \[0, 1\] the two parts nearly cancel, and libtorch's
    /// operation is more exact.
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

    /// `share` · `whole`. Where the share is 0 the value is 0 even if `whole` is infinite, while the gradient of the
    /// share is still `whole`.
    pub(crate) fn f_part(&self, share: &Tensor, whole: &Tensor) -> Result<Tensor, LossError> {
        if !self.infinite {
            return Ok(share.f_mul(whole)?);
        }
        let most = f_largest(whole.f_kind()?);
        let nothing = share.f_eq_number(0)?.f_logical_and(&whole.f_isinf()?)?;
        let bound = whole.f_detach()?.f_clamp_number(-most, most)?;
        let parts = share.f_mul(&bound.f_where_self(&nothing, whole)?)?;
        // The value is 0 times the greatest number, twice, and so 0. The gradient of the share is the greatest number,
        // twice, and so infinite however small the gradient from above is.
        let steep = share.f_mul(&bound)?.f_mul_number(most)?.f_mul_number(most)?;
        Ok(steep.f_where_self(&nothing, &parts)?)
    }
}

fn f_largest(kind: Kind) -> f64 {
    if kind == Kind::Double { f64::MAX } else { f32::MAX.into() }
}

/// Whether a tensor on the CPU holds an infinite number.
fn f_any_infinite(tensor: &Tensor) -> Result<bool, LossError> {
    if waits(tensor) {
        return Ok(false);
    }
    let most = f_largest(tensor.f_kind()?);
    if kernels::scan_range(&tensor.f_detach()?, -most..=most) == Some(true) {
        return Ok(false);
    }
    Ok(tensor.f_isinf()?.f_any()?.f_int64_value(&[])? != 0)
}

/// σ(`logits`), computed as 1 − σ(−x) above 0, so that the gradient keeps its digits where σ is near 1.
pub(crate) fn f_sigmoid(logits: &Tensor) -> Result<Tensor, LossError> {
    let of_rest = logits.f_neg()?.f_sigmoid()?.f_rsub_number(1)?;
    Ok(of_rest.f_where_self(&logits.f_gt_number(0)?, &logits.f_sigmoid()?)?)
}
