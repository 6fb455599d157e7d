//! Arithmetic that losses share.

use tch::{Device, Kind, TchError, Tensor};

use crate::LossError;
use crate::argument::Named;
use crate::autograd::{self, Function, f_alias, f_gradients_of};
use crate::kernels::{Number, NumberOperations, small_work};

/// The product of two matrices. A small one stays on this thread: see [`small_work`].
pub(crate) fn f_matrix_product(left: &Tensor, right: &Tensor) -> Result<Tensor, LossError> {
    // Autocast would compute it in half precision, which the losses do not take it for.
    autograd::without_autocast(left.device(), || small_work(multiplications(left, right), || Ok(left.f_matmul(right)?)))
}

/// How many multiplications the product of two matrices takes.
pub(crate) fn multiplications(left: &Tensor, right: &Tensor) -> i64 {
    (left.numel() as i64).saturating_mul(right.size().last().copied().unwrap_or(1))
}

/// What a linear layer makes of its input. A small one stays on this thread: see [`small_work`].
pub(crate) fn f_linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, LossError> {
    let outputs = weight.size().first().copied().unwrap_or(1);
    small_work((input.numel() as i64).saturating_mul(outputs), || Ok(input.f_linear(weight, bias)?))
}

/// The parts of a tensor that these `positions` along `dim` name. A tensor of the positions would be copied to the
/// device, for which the host waits.
#[cfg(feature = "segmentation")]
pub(crate) fn f_parts_at(tensor: &Tensor, dim: i64, positions: &[i64]) -> Result<Tensor, LossError> {
    let parts = positions.iter().map(|position| tensor.f_narrow(dim, *position, 1));
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    if parts.is_empty() { Ok(tensor.f_narrow(dim, 0, 0)?) } else { Ok(Tensor::f_cat(&parts, dim)?) }
}

/// The rows of a matrix that `indices` name. The sum that is its gradient stays on this thread where it is small, which
/// that of libtorch does not.
pub(crate) fn f_selected_rows(matrix: &Tensor, indices: &Tensor) -> Result<Tensor, LossError> {
    let rows = matrix.f_detach()?.f_index_select(0, indices)?;
    let (size, indices) = (matrix.size(), indices.shallow_clone());
    Function::new(&[matrix]).f_attach_one(rows, move |context| {
        let of_matrix = |grad: Tensor| f_added_rows(&size, &indices, &grad);
        Ok(vec![context.grad(0).map(of_matrix).transpose()?])
    })
}

/// A matrix of this size that is the sum of the `rows` that `indices` name; what [`f_selected_rows`] undoes.
pub(crate) fn f_added_rows(size: &[i64], indices: &Tensor, rows: &Tensor) -> Result<Tensor, LossError> {
    let nothing = Tensor::f_zeros(size, (rows.f_kind()?, rows.device()))?;
    f_of_elements(rows, |rows| Ok(nothing.f_index_add(0, indices, rows)?))
}

/// Calls an operation that takes some time for each element of a tensor; for a small one it stays on this thread.
pub(crate) fn f_of_elements(
    tensor: &Tensor,
    operation: impl FnOnce(&Tensor) -> Result<Tensor, LossError>,
) -> Result<Tensor, LossError> {
    /// A softmax or a normalisation takes about as long as so many multiplications an element.
    const OF_ELEMENT: i64 = 16;
    small_work((tensor.numel() as i64).saturating_mul(OF_ELEMENT), || operation(tensor))
}

/// The smallest base that a power below 1 is differentiated at; below it the power is 0, and so is its gradient.
pub(crate) const SMALLEST_BASE: f64 = f32::MIN_POSITIVE as f64;

/// Whether `kind` is one that losses are computed in.
pub(crate) fn is_floating(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
}

/// Whether `kind` is one of half precision.
pub(crate) fn is_half(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16)
}
/// Below these bases, in single and in double precision, the second derivative of a power below 2 may not be a number
/// of the kind.
const STEEP_BASES: [f64; 2] = [1e-19, 1e-154];

/// The kind in which a loss of `tensor` is computed: at least single precision.
pub(crate) fn wide_kind(tensor: &Tensor) -> Result<Kind, LossError> {
    let kind = tensor.f_kind()?;
    Ok(if is_half(kind) { Kind::Float } else { kind })
}

/// The kind of a loss of `tensor`: its own, but for half precision under autocast single precision, as PyTorch's.
pub(crate) fn result_kind(tensor: &Tensor) -> Result<Kind, LossError> {
    let kind = tensor.f_kind()?;
    Ok(if is_half(kind) && autograd::autocasts(tensor.device()) { Kind::Float } else { kind })
}

/// What `compute` makes of `tensors`, of which it gets those of half precision in single precision. The result is
/// rounded once, to the kind that libtorch's operations on the tensors themselves would give it.
///
/// Sums, means and their gradients overflow or vanish in half precision: f16 ends at 65504.
pub(crate) fn f_widely<const N: usize>(
    tensors: [&Tensor; N],
    compute: impl FnOnce([&Tensor; N]) -> Result<Tensor, LossError>,
) -> Result<Tensor, LossError> {
    match f_half_of(&tensors)? {
        None => compute(tensors),
        Some(half) => {
            let wide = f_widened(&tensors)?;
            half.f_narrowed(compute(references(&wide))?)
        }
    }
}

/// The first of the tensors.
pub(crate) fn references<const N: usize>(tensors: &[Tensor]) -> [&Tensor; N] {
    std::array::from_fn(|position| &tensors[position])
}

/// The same where the floating tensors are of one kind, as an engine has them; with others `compute` gets them as they
/// are.
pub(crate) fn f_widely_alike(
    tensors: &[&Tensor],
    compute: &dyn Fn(&[&Tensor]) -> Result<Tensor, LossError>,
) -> Result<Tensor, LossError> {
    let alike = f_floating_kinds(tensors)?.windows(2).all(|pair| pair[0].0 == pair[1].0);
    match if alike { f_half_of(tensors)? } else { None } {
        None => compute(tensors),
        Some(half) => {
            let wide = f_widened(tensors)?;
            half.f_narrowed(compute(&wide.iter().collect::<Vec<_>>())?)
        }
    }
}

/// The kind that a result of tensors of half precision is rounded to, if libtorch's operations on them would round it.
struct Half(Option<Kind>);

impl Half {
    fn f_narrowed(&self, result: Tensor) -> Result<Tensor, LossError> {
        Ok(match self.0 {
            Some(kind) => result.f_to_kind(kind)?,
            None => result,
        })
    }
}

/// None where no tensor is of half precision.
fn f_half_of(tensors: &[&Tensor]) -> Result<Option<Half>, LossError> {
    let kinds = f_floating_kinds(tensors)?;
    if !kinds.iter().any(|(kind, _)| is_half(*kind)) {
        return Ok(None);
    }
    if autograd::autocasts(tensors[0].device()) {
        return Ok(Some(Half(None)));
    }
    // Tensors with dimensions decide the kind of a result, and scalars only where there are no others.
    let scalars = kinds.iter().all(|(_, scalar)| *scalar);
    let mut promoting = kinds.iter().filter(|(_, scalar)| scalars || !scalar).map(|(kind, _)| *kind);
    Ok(Some(Half(promoting.next().filter(|first| is_half(*first) && promoting.all(|kind| kind == *first)))))
}

/// The tensors, those of half precision in single precision.
fn f_widened(tensors: &[&Tensor]) -> Result<Vec<Tensor>, LossError> {
    let wide = |tensor: &&Tensor| {
        Ok(if is_half(tensor.f_kind()?) { tensor.f_to_kind(Kind::Float)? } else { tensor.shallow_clone() })
    };
    tensors.iter().map(wide).collect()
}

/// The kinds of the floating tensors, and whether they are scalars.
fn f_floating_kinds(tensors: &[&Tensor]) -> Result<Vec<(Kind, bool)>, LossError> {
    let mut kinds = Vec::with_capacity(tensors.len());
    for tensor in tensors.iter().filter(|tensor| tensor.is_floating_point()) {
        kinds.push((tensor.f_kind()?, tensor.dim() == 0));
    }
    Ok(kinds)
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

/// A target that libtorch can subtract: Booleans become numbers of the input's kind.
pub(crate) fn f_subtractable(target: &Tensor, input: &Tensor) -> Result<Tensor, LossError> {
    Ok(if target.f_kind()? == Kind::Bool { target.f_to_kind(input.f_kind()?)? } else { target.shallow_clone() })
}

/// `share` · `number`, which is 0 for a share of 0 of −∞, with gradient 0: that of a class that is masked.
pub(crate) fn f_share_of(share: &Tensor, number: &Tensor) -> Result<Tensor, LossError> {
    let none = share.f_eq_number(0)?.f_logical_and(&number.f_eq_number(f64::NEG_INFINITY)?)?;
    Ok(share.f_mul(&number.f_masked_fill_number(&none, 0)?)?)
}

/// `tensor` times the `factor`, where there is one.
pub(crate) fn f_times(tensor: &Tensor, factor: Option<&Tensor>) -> Result<Tensor, LossError> {
    Ok(match factor {
        Some(factor) => tensor.f_mul(factor)?,
        None => tensor.shallow_clone(),
    })
}

/// `tensor` with `number` where the `mask` is true, if there is a mask.
pub(crate) fn f_filled(tensor: &Tensor, mask: Option<&Tensor>, number: impl Into<Number>) -> Result<Tensor, LossError> {
    Ok(match mask {
        Some(mask) => tensor.f_masked_fill_number(mask, number)?,
        None => tensor.shallow_clone(),
    })
}

/// The absolute value of x. libtorch's second derivative of it is a zero tensor without memory, and to read that
/// crashes the process; here it has memory.
pub(crate) fn f_abs(x: &Tensor) -> Result<Tensor, LossError> {
    Ok(f_alias(x)?.f_abs()?)
}

/// `tensor`, with a gradient of 0 where `mask` of it is true, whatever comes back there.
pub(crate) fn f_without_gradients(
    tensor: &Tensor,
    mask: fn(&Tensor) -> Result<Tensor, TchError>,
) -> Result<Tensor, LossError> {
    Function::new(&[tensor]).save(&[tensor]).f_attach_one(tensor.shallow_clone(), move |context| {
        let (Some(grad), [tensor]) = (context.grad(0), context.saved()) else { return Ok(vec![None]) };
        Ok(vec![Some(grad.f_zeros_where(&mask(&tensor.f_detach()?)?)?)])
    })
}

/// `base` to the power of `exponent`, both at least 0, with gradient 0 where the power has a vertical tangent. The
/// second derivative is a number, too.
pub(crate) fn f_power(base: &Tensor, exponent: f64) -> Result<Tensor, LossError> {
    if exponent == 1.0 {
        return Ok(base.shallow_clone());
    }
    if exponent == 2.0 {
        return Ok(base.f_square()?);
    }
    if exponent == 0.0 || exponent > 2.0 {
        return Ok(base.f_pow_number(exponent)?);
    }
    let power = base.f_detach()?.f_pow_number(exponent)?;
    Function::new(&[base]).save(&[base]).f_attach_one(power, move |context| {
        let (Some(grad), [base]) = (context.grad(0), context.saved()) else { return Ok(vec![None]) };
        let fused = || {
            let smallest = smallest_base(base)?;
            let slope = base.f_clamp_min_number(smallest)?.f_pow_number(exponent - 1.0)?.f_mul_number_(exponent)?;
            Ok(vec![Some(slope.f_zeros_where(&base.f_lt_number(smallest)?)?.f_mul_(&grad)?)])
        };
        let again = |inputs: &[Tensor]| {
            let exponent = Tensor::f_full_number(&[], exponent, (inputs[0].f_kind()?, inputs[0].device()))?;
            f_powers(&inputs[0], &exponent)
        };
        context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &[base.shallow_clone()], &[true]))
    })
}

/// The smallest base that has a derivative, in its kind.
fn smallest_base(base: &Tensor) -> Result<f64, LossError> {
    Ok(if base.f_kind()? == Kind::Double { f64::MIN_POSITIVE } else { SMALLEST_BASE })
}

/// [`f_power`] with an exponent for each element.
///
/// Near 0 the power is replaced by its tangent, which has the value and the first derivatives of the power, and no
/// infinite second derivative.
pub(crate) fn f_powers(base: &Tensor, exponent: &Tensor) -> Result<Tensor, LossError> {
    if !autograd::grad_enabled() || !(base.requires_grad() || exponent.requires_grad()) {
        return Ok(base.f_pow(exponent)?);
    }
    let (double, at) = (base.f_kind()? == Kind::Double, base.f_detach()?);
    let steep = at.f_lt_number(STEEP_BASES[usize::from(double)])?;
    let power = base.f_masked_fill_number(&steep, 1)?.f_pow(exponent)?;
    let smallest = smallest_base(base)?;
    let vertical = at.f_lt_number(smallest)?;
    let at = at.f_masked_fill_number(&steep.f_logical_not()?, 1)?.f_clamp_min_number(0)?;
    let constant = exponent.f_detach()?;
    let slope = at.f_clamp_min_number(smallest)?.f_pow(&constant.f_sub_number(1)?)?.f_mul(&constant)?;
    let along = base.f_sub(&base.f_detach()?)?.f_mul(&slope.f_masked_fill_number(&vertical, 0)?)?;
    Ok(at.f_pow(exponent)?.f_add(&along)?.f_where_self(&steep, &power)?)
}

/// `losses` whose gradient is NaN where they are NaN. libtorch's gradients of an absolute value and of a maximum are
/// numbers there.
pub(crate) fn f_with_nan_slopes(losses: &Tensor) -> Result<Tensor, LossError> {
    let factors = losses.f_detach()?.f_ones_like()?.f_masked_fill_number(&losses.f_isnan()?, f64::NAN)?;
    Ok(losses.f_mul(&factors)?)
}

/// The sign of each number, NaN of NaN.
pub(crate) fn f_sign_or_nan(x: &Tensor) -> Result<Tensor, LossError> {
    Ok(x.f_sgn()?.f_masked_fill_number_(&x.f_isnan()?, f64::NAN)?)
}

/// `number / tensor`. The number stays on the host, in the kind of the tensor, which makes it one operation where
/// libtorch's own takes two.
pub(crate) fn f_number_over(number: f64, tensor: &Tensor) -> Result<Tensor, LossError> {
    let number = match tensor.f_kind()? {
        Kind::Double => Tensor::f_from_slice(&[number])?,
        _ => Tensor::f_from_slice(&[number as f32])?,
    };
    Ok(number.f_view([0_i64; 0])?.f_div(tensor)?)
}

/// The numbers 0, 1, … below `count`.
pub(crate) fn f_positions(count: i64, options: (Kind, Device)) -> Result<Tensor, LossError> {
    Ok(Tensor::f_arange_numbers(0, count, options)?)
}

/// `numerator / denominator`, 0 where the denominator is 0.
pub(crate) fn f_ratio(numerator: &Tensor, denominator: &Tensor) -> Result<Tensor, LossError> {
    if numerator.size() != denominator.size() || numerator.f_kind()? != denominator.f_kind()? {
        return f_ratio_of_operations(numerator, denominator);
    }
    let zero = denominator.f_detach()?.f_eq_number(0)?;
    let ratio = numerator.f_detach()?.f_div(&denominator.f_detach()?)?.f_zeros_where(&zero)?;
    let arguments = [numerator, denominator];
    let (needed, saved) = (autograd::needed(&arguments), [numerator, denominator, &ratio, &zero]);
    Function::new(&arguments).save(&saved).f_attach_one(ratio.shallow_clone(), move |context| {
        let (Some(grad), [numerator, denominator, ratio, zero]) = (context.grad(0), context.saved()) else {
            return Ok(vec![None, None]);
        };
        let fused = || {
            let of_numerator = grad.f_div(denominator)?.f_zeros_where(zero)?;
            let of_denominator = needed[1].then(|| of_numerator.f_mul(ratio)?.f_neg()).transpose()?;
            Ok(vec![Some(of_numerator), of_denominator])
        };
        let again = |inputs: &[Tensor]| f_ratio_of_operations(&inputs[0], &inputs[1]);
        let arguments = [numerator.shallow_clone(), denominator.shallow_clone()];
        context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &arguments, &needed))
    })
}

/// The same by operations that can be differentiated again.
fn f_ratio_of_operations(numerator: &Tensor, denominator: &Tensor) -> Result<Tensor, LossError> {
    let zero = denominator.f_eq_number(0)?;
    Ok(numerator.f_masked_fill_number(&zero, 0)?.f_div(&denominator.f_masked_fill_number(&zero, 1)?)?)
}

/// The rows `[N, D]` divided by their p-norms, or by `least` where these are shorter. A row of zeros has no direction:
/// it stays what it is, with first and second derivatives of 0.
///
/// Rows are divided by their largest element first, so that squares do not overflow. It also gives rows of one
/// direction exactly the same unit vector: a rounded quotient depends only on the exact quotient.
pub(crate) fn f_unit_rows(rows: &Tensor, p: f64, least: f64) -> Result<Tensor, LossError> {
    if p == 2.0 {
        return f_euclidean_unit_rows(rows, least);
    }
    f_unit_rows_of_operations(rows, p, least)
}

/// The same by operations that can be differentiated again.
fn f_unit_rows_of_operations(rows: &Tensor, p: f64, least: f64) -> Result<Tensor, LossError> {
    let largest = rows.f_detach()?.f_abs()?.f_amax([1_i64].as_slice(), true)?;
    let zero = largest.f_eq_number(0)?;
    let scale = largest.f_masked_fill_number(&largest.f_le_number(least)?, 1)?;
    let scaled = rows.f_masked_fill_number(&zero, 1)?.f_div(&scale)?;
    let length = scaled.f_norm_number(p, &[1], true)?.f_clamp_min_number(least)?;
    Ok(scaled.f_div(&length)?.f_masked_fill_number(&zero, 0)?)
}

/// The same with the gradient as a formula, which is a third of the operations: (g − u (u · g)) / ‖x‖ for a gradient g
/// of the unit vector u of x.
fn f_euclidean_unit_rows(rows: &Tensor, least: f64) -> Result<Tensor, LossError> {
    let largest = rows.f_detach()?.f_norm_number(f64::INFINITY, &[1], true)?;
    let scale = largest.f_threshold_number(least, 1)?;
    let unit = rows.f_detach()?.f_div(&scale)?;
    let mut length = unit.f_norm_number(2, &[1], true)?;
    // A row of zeros stays one, whatever it is divided by.
    let _ = length.f_clamp_min_number_(least.max(SMALLEST_BASE))?;
    let unit = unit.f_div(&length)?;
    let saved = [rows, &unit, &length.f_mul_(&scale)?, &largest];
    Function::new(&[rows]).save(&saved).f_attach_one(unit.shallow_clone(), move |context| {
        let (Some(grad), [rows, unit, length, largest]) = (context.grad(0), context.saved()) else {
            return Ok(vec![None]);
        };
        let fused = || {
            let along = grad.f_mul(unit)?.f_sum_dim_intlist([1_i64].as_slice(), true, None)?;
            // Up to the least length the divisor is a constant.
            let across = grad.f_addcmul(unit, &along.f_neg()?.f_zeros_up_to(least, length)?)?;
            Ok(vec![Some(across.f_div(length)?.f_zeros_up_to(0, largest)?)])
        };
        let operations = |rows: &[Tensor]| f_unit_rows_of_operations(&rows[0], 2.0, least);
        context.f_gradients(&fused, &|| f_gradients_of(&operations, &grad, &[rows.shallow_clone()], &[true]))
    })
}

/// The numbers, at least `least`. Unlike libtorch's clamp it has a NaN gradient where a number is NaN.
pub(crate) fn f_at_least(numbers: &Tensor, least: f64) -> Result<Tensor, LossError> {
    Function::new(&[numbers]).save(&[numbers]).f_attach_one(
        numbers.f_detach()?.f_clamp_min_number(least)?,
        move |context| {
            let (Some(grad), [numbers]) = (context.grad(0), context.saved()) else { return Ok(vec![None]) };
            Ok(vec![Some(grad.f_zeros_where(&numbers.f_lt_number(least)?)?)])
        },
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Value, gradient and second derivative of `loss` at `at`.
    fn derivatives(at: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor) -> [Tensor; 3] {
        let leaf = at.copy().set_requires_grad(true);
        let value = loss(&leaf);
        let factors = Tensor::linspace(-1.0, 2.0, value.numel() as i64, (at.kind(), at.device())).view_as(&value);
        let first = Tensor::run_backward(&[(&value * factors).sum(None)], &[&leaf], true, true).remove(0);
        let second = Tensor::run_backward(&[first.square().sum(None)], &[&leaf], false, false).remove(0);
        [value, first, second].map(|tensor| tensor.detach())
    }

    fn assert_alike(at: &Tensor, formula: &dyn Fn(&Tensor) -> Tensor, operations: &dyn Fn(&Tensor) -> Tensor) {
        let pairs = derivatives(at, formula).into_iter().zip(derivatives(at, operations));
        for (name, (actual, expected)) in ["value", "gradient", "second derivative"].iter().zip(pairs) {
            assert!(actual.allclose(&expected, 1e-9, 1e-12, true), "{name}: {actual} and not {expected}");
        }
    }

    #[test]
    fn formulas_of_derivatives_are_those_of_the_operations() {
        // Rows of zeros, below and just above the least length, of huge numbers and of no number.
        let rows = Tensor::from_slice(&[
            3.0,
            -4.0,
            1.0,
            0.0,
            0.0,
            0.0,
            1e-9,
            2e-9,
            0.0,
            8e-9,
            2e-9,
            7e-9,
            1e200,
            -1e200,
            3e199,
            f64::NAN,
            1.0,
            2.0,
        ]);
        let rows = rows.view([6, 3]);
        for least in [0.0, 1e-8] {
            assert_alike(&rows, &|rows| f_unit_rows(rows, 2.0, least).unwrap(), &|rows| {
                f_unit_rows_of_operations(rows, 2.0, least).unwrap()
            });
        }
        let denominators = Tensor::from_slice(&[2.0, 0.0, -0.5, f64::NAN, f64::INFINITY]);
        let numerators = Tensor::from_slice(&[0.0, 3.0, 1.0, 0.5, f64::INFINITY]);
        for ratio in
            [f_ratio, f_ratio_of_operations].map(|f_ratio| move |a: &Tensor, b: &Tensor| f_ratio(a, b).unwrap())
        {
            assert_eq!(ratio(&numerators, &denominators).double_value(&[1]), 0.0);
        }
        assert_alike(&denominators, &|x| f_ratio(&(x.square() + 1.0), x).unwrap(), &|x| {
            f_ratio_of_operations(&(x.square() + 1.0), x).unwrap()
        });
        assert_alike(&numerators, &|x| f_ratio(&x.square(), &denominators).unwrap(), &|x| {
            f_ratio_of_operations(&x.square(), &denominators).unwrap()
        });
        let bases = Tensor::from_slice(&[0.0, f64::MIN_POSITIVE / 4.0, 1e-300, 1e-5, 0.5, 2.0]);
        for exponent in [0.5, 0.75, 1.5] {
            let powers = |bases: &Tensor| f_powers(bases, &Tensor::from(exponent)).unwrap();
            assert_alike(&bases, &|bases| f_power(bases, exponent).unwrap(), &powers);
        }
        let filled = |x: &Tensor| x.masked_fill(&x.lt(0.25), 0.25).square();
        assert_alike(&bases, &|x| f_at_least(x, 0.25).unwrap().square(), &filled);
    }
}
