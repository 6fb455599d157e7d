//! Arithmetic that losses share.

use tch::{Device, Kind, Tensor};

use crate::LossError;
use crate::check::Named;
use crate::kernels::NumberOperations;

/// The smallest base that a power below 1 is differentiated at; below it the power is 0, and so is its gradient.
pub(crate) const SMALLEST_BASE: f64 = f32::MIN_POSITIVE as f64;

/// The kind in which a loss of `tensor` is computed: at least single precision.
pub(crate) fn wide_kind(tensor: &Tensor) -> Result<Kind, LossError> {
    Ok(match tensor.f_kind()? {
        Kind::Half | Kind::BFloat16 => Kind::Float,
        kind => kind,
    })
}

/// `tensor` holds real numbers of any kind, booleans included.
pub(crate) fn real((argument, tensor): Named) -> Result<(), LossError> {
    let actual = tensor.f_kind()?;
    if matches!(actual, Kind::ComplexHalf | Kind::ComplexFloat | Kind::ComplexDouble) {
        return Err(LossError::Kind { argument, expected: "a kind of real numbers".into(), actual });
    }
    Ok(())
}

/// `tensor`, which holds real numbers of any kind, as `kind`.
pub(crate) fn f_reals((argument, tensor): Named, kind: Kind) -> Result<Tensor, LossError> {
    real((argument, tensor))?;
    Ok(tensor.f_to_kind(kind)?)
}

/// `base` to the power of `exponent`, both at least 0, with gradient 0 where the power has a vertical tangent.
pub(crate) fn f_power(base: &Tensor, exponent: f64) -> Result<Tensor, LossError> {
    if exponent == 2.0 {
        return Ok(base.f_square()?);
    }
    if exponent == 0.0 || exponent >= 1.0 {
        return Ok(base.f_pow_number(exponent)?);
    }
    let vertical = base.f_lt_number(SMALLEST_BASE)?;
    Ok(base.f_masked_fill_number(&vertical, 1)?.f_pow_number(exponent)?.f_masked_fill_number(&vertical, 0)?)
}

/// [`f_power`] with an exponent for each element.
pub(crate) fn f_powers(base: &Tensor, exponent: &Tensor) -> Result<Tensor, LossError> {
    let steep = exponent.f_gt_number(0)?.f_logical_and(&exponent.f_lt_number(1)?)?;
    let vertical = base.f_lt_number(SMALLEST_BASE)?.f_logical_and(&steep)?;
    Ok(base.f_masked_fill_number(&vertical, 1)?.f_pow(exponent)?.f_masked_fill_number(&vertical, 0)?)
}

/// The numbers 0, 1, … below `count`.
pub(crate) fn f_positions(count: i64, options: (Kind, Device)) -> Result<Tensor, LossError> {
    Ok(Tensor::f_ones(count, options)?.f_cumsum(0, options.0)?.f_sub_number(1)?)
}

/// `numerator / denominator`, 0 where the denominator is 0.
pub(crate) fn f_ratio(numerator: &Tensor, denominator: &Tensor) -> Result<Tensor, LossError> {
    let zero = denominator.f_eq_number(0)?;
    Ok(numerator.f_masked_fill_number(&zero, 0)?.f_div(&denominator.f_masked_fill_number(&zero, 1)?)?)
}

/// Asserts that the gradient of a scalar `loss` at `at` is that of central differences.
#[cfg(test)]
pub(crate) fn assert_gradient(at: &Tensor, loss: impl Fn(&Tensor) -> Tensor) {
    const STEP: f64 = 1e-6;
    let leaf = at.detach().copy().set_requires_grad(true);
    loss(&leaf).backward();
    let gradient = leaf.grad().view(-1);
    for element in 0..at.numel() as i64 {
        let moved = |step: f64| {
            let moved = at.detach().copy();
            let _ = moved.view(-1).get(element).g_add_scalar_(step);
            loss(&moved).double_value(&[])
        };
        let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let actual = gradient.double_value(&[element]);
        assert!(
            (actual - expected).abs() < 1e-7 * (1.0 + expected.abs()),
            "element {element}: {actual}, not {expected}"
        );
    }
}
