//! What the losses of logits of two classes have in common: tensor operations, and what targets are for an engine.

use tch::{Kind, TchError, Tensor};

use crate::autograd::{self, Function, f_gradients_of};
use crate::check::{self, Validity};
use crate::kernels::{self, Expected, NumberOperations, Pointwise, Real, is_share, share_or_nan, waits};
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

/// The loss of one element, of a logit, a target that is a share, and what stands behind these: [`Pointwise`] that is
/// undefined for other targets.
pub(crate) trait PointwiseOfShare<const N: usize>: Copy + Send + Sync + 'static {
    /// The greatest target.
    const WHOLE: f64 = 1.0;

    /// The loss and its derivatives, as [`Pointwise::evaluate`] has them. A target that is no share is NaN. To be
    /// `#[inline(always)]`.
    fn evaluate<R: Real>(self, arguments: [R; N]) -> (R, [R; N]);
}

impl<F: PointwiseOfShare<N>, const N: usize> Pointwise<N> for F {
    fn partial(self) -> Option<Expected> {
        Some(SHARES)
    }

    #[inline(always)]
    fn is_defined<R: Real>(self, arguments: [R; N]) -> R::Mask {
        is_share(arguments[1], F::WHOLE)
    }

    #[inline(always)]
    fn evaluate<R: Real>(self, mut arguments: [R; N]) -> (R, [R; N]) {
        arguments[1] = share_or_nan(arguments[1], F::WHOLE);
        PointwiseOfShare::evaluate(self, arguments)
    }
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
        if pos_weight.is_none() && !self.infinite && f_are_alike(self.logits, target)? {
            return f_finite_entropy(self.logits, target);
        }
        self.f_entropy_of_parts(target, pos_weight)
    }

    /// The same by PyTorch's operations.
    fn f_entropy_of_parts(&self, target: &Tensor, pos_weight: Option<&Tensor>) -> Result<Tensor, LossError> {
        let (log_p, log_q) = (self.logits.f_log_sigmoid()?, self.logits.f_neg()?.f_log_sigmoid()?);
        let positive = match pos_weight {
            Some(weight) => target.f_mul(weight)?,
            None => target.shallow_clone(),
        };
        Ok(self.f_part(&positive, &log_p)?.f_add(&self.f_part(&target.f_rsub_number(1)?, &log_q)?)?.f_neg()?)
    }

    /// The same with any targets, where these are shares bit by bit as PyTorch's operations are. For a target outside of
    /// \[0, 1\] the two parts nearly cancel, and libtorch's operation is more exact.
    pub(crate) fn f_entropy_of_any(&self, target: &Tensor, pos_weight: Option<&Tensor>) -> Result<Tensor, LossError> {
        if waits(self.logits) && pos_weight.is_none() && f_are_alike(self.logits, target)? {
            return f_exact_elsewhere(self.logits, target);
        }
        let of_shares = self.f_entropy_of_parts(target, pos_weight)?;
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

/// Whether they have one shape and one kind, as the derivatives that are formulas want them.
fn f_are_alike(logits: &Tensor, target: &Tensor) -> Result<bool, TchError> {
    Ok(logits.size() == target.size() && logits.f_kind()? == target.f_kind()?)
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

/// The binary cross entropy of finite logits, with its derivative as a formula: of x it is σ(x) − y, as
/// (1 − y) σ(x) − y σ(−x), which keeps its digits, and of y it is −x.
///
/// Each sum of shares y and 1 − y is one operation. As in libtorch's, an end that has the share 1 is met exactly.
fn f_finite_entropy(logits: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    let (x, y) = (logits.f_detach()?, target.f_detach()?);
    let (log_p, log_q) = (x.f_log_sigmoid()?, x.f_neg()?.f_log_sigmoid()?);
    let losses = log_q.f_lerp_tensor(&log_p, &y)?.f_neg()?;
    f_with_slopes([logits, target], losses, f_entropy_of_operations, |grad, [x, y], needed| {
        let of_input = || {
            let superfluous = x.f_sigmoid()?;
            let missing = x.f_neg()?.f_sigmoid()?.f_neg()?;
            superfluous.f_lerp_tensor(&missing, y)?.f_mul(grad)
        };
        let of_target = || grad.f_mul(x)?.f_neg();
        Ok([needed[0].then(of_input).transpose()?, needed[1].then(of_target).transpose()?])
    })
}

/// The entropy by PyTorch's operations, with another value where a target is no share: (1 − y) x − log σ(x), which loses
/// no digits. The derivatives are the same.
fn f_exact_elsewhere(logits: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    let (log_p, log_q, rest) = (logits.f_log_sigmoid()?, logits.f_neg()?.f_log_sigmoid()?, target.f_rsub_number(1)?);
    let of_shares = target.f_mul(&log_p)?.f_add(&rest.f_mul(&log_q)?)?.f_neg()?;
    let (x, y) = (logits.f_detach()?, target.f_detach()?);
    let others = rest.f_detach()?.f_mul(&x)?.f_sub(&log_p.f_detach()?)?;
    let is_share = y.f_clamp_number(0, 1)?.f_eq_tensor(&y)?;
    // An infinite logit may have made it NaN.
    let kept = is_share.f_logical_or(&others.f_isnan()?)?;
    let value = of_shares.f_detach()?.f_where_self(&kept, &others)?;
    Function::new(&[&of_shares]).f_attach_one(value, |context| Ok(vec![context.grad(0)]))
}

/// The binary cross entropy by operations that can be differentiated again.
pub(crate) fn f_entropy_of_operations(logits: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    let (log_p, log_q) = (logits.f_log_sigmoid()?, logits.f_neg()?.f_log_sigmoid()?);
    Ok(target.f_mul(&log_p)?.f_add(&target.f_rsub_number(1)?.f_mul(&log_q)?)?.f_neg()?)
}

/// y σ(−x) + (1 − y) σ(x) of finite logits: by how much the probability of the target is less than 1.
pub(crate) fn f_missing(logits: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    if !f_are_alike(logits, target)? {
        return f_missing_of_operations(logits, target);
    }
    let (x, y) = (logits.f_detach()?, target.f_detach()?);
    let (p, q) = (x.f_sigmoid()?, x.f_neg()?.f_sigmoid()?);
    let missing = p.f_lerp_tensor(&q, &y)?;
    f_with_slopes([logits, target], missing, f_missing_of_operations, |grad, [x, y], needed| {
        let (p, q) = (x.f_sigmoid()?, x.f_neg()?.f_sigmoid()?);
        let of_input = || p.f_mul(&q)?.f_mul(&y.f_mul_number(-2.0)?.f_add_number(1)?)?.f_mul(grad);
        let of_target = || q.f_sub(&p)?.f_mul(grad);
        Ok([needed[0].then(of_input).transpose()?, needed[1].then(of_target).transpose()?])
    })
}

pub(crate) fn f_missing_of_operations(logits: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    let superfluous = target.f_rsub_number(1)?.f_mul(&logits.f_sigmoid()?)?;
    Ok(target.f_mul(&logits.f_neg()?.f_sigmoid()?)?.f_add(&superfluous)?)
}

/// Finite logits, shares of their kind and shape, and what losses of them are made of, without a graph.
pub(crate) struct Parts {
    logits: Tensor,
    shares: Tensor,
    /// The binary cross entropy.
    pub(crate) entropy: Tensor,
    /// σ(x) and σ(−x)
    pub(crate) p: Tensor,
    pub(crate) q: Tensor,
}

impl Parts {
    /// None where the shares get a gradient, or an infinite logit needs more care.
    pub(crate) fn f_new(logits: &Logits, shares: &Tensor) -> Result<Option<Parts>, LossError> {
        let x = logits.logits;
        let differentiated = autograd::grad_enabled() && shares.requires_grad();
        if logits.infinite || differentiated || !f_are_alike(x, shares)? {
            return Ok(None);
        }
        let (bare, y) = (x.f_detach()?, shares.f_detach()?);
        let opposite = bare.f_neg()?;
        let entropy = opposite.f_log_sigmoid()?.f_lerp_tensor(&bare.f_log_sigmoid()?, &y)?.f_neg()?;
        let (p, q) = (bare.f_sigmoid()?, opposite.f_sigmoid()?);
        Ok(Some(Parts { logits: x.shallow_clone(), shares: y, entropy, p, q }))
    }

    /// y σ(−x) + (1 − y) σ(x)
    pub(crate) fn f_missing(&self) -> Result<Tensor, TchError> {
        self.p.f_lerp_tensor(&self.q, &self.shares)
    }

    /// σ(x) − y, with its digits: the derivative of the entropy.
    pub(crate) fn f_excess(&self) -> Result<Tensor, TchError> {
        self.p.f_lerp_tensor(&self.q.f_neg()?, &self.shares)
    }

    /// 1 − 2 y times a number. With σ(x) σ(−x) it is the derivative of what is missing.
    pub(crate) fn f_sides(&self, number: f64) -> Result<Tensor, TchError> {
        self.shares.f_mul_number(-2.0 * number)?.f_add_number(number)
    }

    /// The `losses` with a `slope` of the parts and of other tensors; `operations` have the second derivative.
    pub(crate) fn f_attach(
        self,
        losses: Tensor,
        others: &[&Tensor],
        slope: impl Fn(&Parts, &[Tensor]) -> Result<Tensor, TchError> + Send + 'static,
        operations: impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
    ) -> Result<Tensor, LossError> {
        let Parts { logits, shares, entropy, p, q } = &self;
        let saved = [&[logits, shares, entropy, p, q], others].concat();
        let function = Function::new(&[logits]).save(&saved);
        function.f_attach_one(losses, move |context| {
            let (Some(grad), [logits, shares, entropy, p, q, others @ ..]) = (context.grad(0), context.saved()) else {
                return Ok(vec![None]);
            };
            let fused = || {
                let [logits, shares, entropy, p, q] = [logits, shares, entropy, p, q].map(Tensor::shallow_clone);
                let slope = slope(&Parts { logits, shares, entropy, p, q }, others)?;
                Ok(vec![Some(slope.f_mul(&grad)?)])
            };
            let again = |inputs: &[Tensor]| operations(&inputs[0], shares);
            context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &[logits.shallow_clone()], &[true]))
        })
    }
}

/// The derivatives of the arguments that need one, times the gradient of the result.
type Slopes = fn(&Tensor, [&Tensor; 2], [bool; 2]) -> Result<[Option<Tensor>; 2], TchError>;

/// The `value` of two arguments with its derivatives; `operations` have the second ones.
fn f_with_slopes(
    arguments: [&Tensor; 2],
    value: Tensor,
    operations: fn(&Tensor, &Tensor) -> Result<Tensor, LossError>,
    slopes: Slopes,
) -> Result<Tensor, LossError> {
    let needed = autograd::needed(&arguments);
    Function::new(&arguments).save(&arguments).f_attach_one(value, move |context| {
        let (Some(grad), [x, y]) = (context.grad(0), context.saved()) else { return Ok(vec![None, None]) };
        let fused = || Ok(slopes(&grad, [x, y], [needed[0], needed[1]])?.into());
        let again = |inputs: &[Tensor]| operations(&inputs[0], &inputs[1]);
        context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, context.saved(), &needed))
    })
}

/// σ(`logits`) with the gradient σ(x) σ(−x), which keeps its digits where σ is near 1.
pub(crate) fn f_sigmoid(logits: &Tensor) -> Result<Tensor, LossError> {
    Function::new(&[logits]).save(&[logits]).f_attach_one(logits.f_detach()?.f_sigmoid()?, |context| {
        let (Some(grad), [x]) = (context.grad(0), context.saved()) else { return Ok(vec![None]) };
        let fused = || Ok(vec![Some(x.f_neg()?.f_sigmoid()?.f_mul(&x.f_sigmoid()?)?.f_mul(&grad)?)]);
        let again = |inputs: &[Tensor]| f_sigmoid_of_operations(&inputs[0]);
        context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &[x.shallow_clone()], &[true]))
    })
}

/// The same by operations that can be differentiated again: 1 − σ(−x) above 0.
fn f_sigmoid_of_operations(logits: &Tensor) -> Result<Tensor, LossError> {
    let of_rest = logits.f_neg()?.f_sigmoid()?.f_rsub_number(1)?;
    Ok(of_rest.f_where_self(&logits.f_gt_number(0)?, &logits.f_sigmoid()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derivatives(loss: &dyn Fn(&Tensor, &Tensor) -> Tensor, x: &Tensor, y: &Tensor, of_y: bool) -> Vec<Tensor> {
        let (x, y) = (x.copy().set_requires_grad(true), y.copy().set_requires_grad(of_y));
        let leaves = if of_y { vec![&x, &y] } else { vec![&x] };
        let value = loss(&x, &y);
        let factors = Tensor::linspace(-1.0, 2.0, value.numel() as i64, (value.kind(), value.device()));
        let first = Tensor::run_backward(&[(&value * factors).sum(None)], &leaves, true, true);
        let sum = first.iter().map(|first| first.square().sum(None)).reduce(|a, b| a + b).unwrap();
        let second = Tensor::run_backward(&[sum], &leaves, false, false);
        [value].into_iter().chain(first).chain(second).map(|tensor| tensor.detach()).collect()
    }

    /// The operations' derivative of a sigmoid has lost so much where the sigmoid is near 1.
    const ROUNDING: f64 = 1e-15;

    #[test]
    fn formulas_of_derivatives_are_those_of_the_operations() {
        let x = Tensor::from_slice(&[-700.0, -40.0, -3.0, -0.5, 0.0, 0.25, 2.0, 40.0, 700.0, 1.0, -1.0, 5.0]);
        let y = Tensor::from_slice(&[0.0, 1.0, 0.25, 0.0, 0.5, 1.0, 0.75, 1.0, 0.0, 0.0, 1.0, 0.125]);
        type Loss = fn(&Tensor, &Tensor) -> Result<Tensor, LossError>;
        let elsewhere: Loss = |x, y| f_exact_elsewhere(x, y);
        let pairs: [(Loss, Loss); 3] = [
            (f_finite_entropy, f_entropy_of_operations),
            (elsewhere, f_entropy_of_operations),
            (f_missing, f_missing_of_operations),
        ];
        for (formula, operations) in pairs {
            for of_y in [false, true] {
                let actual = derivatives(&|x, y| formula(x, y).unwrap(), &x, &y, of_y);
                let expected = derivatives(&|x, y| operations(x, y).unwrap(), &x, &y, of_y);
                for (actual, expected) in actual.iter().zip(&expected) {
                    assert!(actual.allclose(expected, 1e-12, ROUNDING, false), "{actual} and not {expected}");
                }
            }
        }
        let sigmoid = |f: fn(&Tensor) -> Result<Tensor, LossError>| derivatives(&|x, _| f(x).unwrap(), &x, &y, false);
        for (actual, expected) in sigmoid(f_sigmoid).iter().zip(&sigmoid(f_sigmoid_of_operations)) {
            assert!(actual.allclose(expected, 1e-12, ROUNDING, false), "{actual} and not {expected}");
        }
    }

    #[test]
    fn an_entropy_keeps_its_digits_with_any_target() {
        // By hand: (1 − y) x + log(1 + exp(−x)) in double precision.
        let (xs, ys) = ([-30.0_f64, 30.0, 1e-3, 1e-3, 5.0], [0.0_f64, 1.0, 1e6, -1e6, 2.0]);
        let [x, y] = [xs, ys].map(|numbers| Tensor::from_slice(&numbers).to_kind(Kind::Float));
        let losses = f_exact_elsewhere(&x, &y);
        let losses = Vec::<f32>::try_from(losses.unwrap()).unwrap();
        let exact = [(-30.0_f64).exp().ln_1p(), (-30.0_f64).exp().ln_1p()];
        let rest = (2..5).map(|i| (1.0 - ys[i]) * xs[i] + (-xs[i]).exp().ln_1p());
        for (loss, exact) in losses.into_iter().zip(exact.into_iter().chain(rest)) {
            assert!((f64::from(loss) - exact).abs() <= 1e-6 * exact.abs(), "{loss} and not {exact}");
        }
    }
}
