use tch::Tensor;

use super::multi_label::{self, MultiLabelReduction, f_weighted};
use crate::autograd::{self, Function, f_gradients_of};
use crate::binary::{self, Logits, PointwiseOfShare};
use crate::kernels::{self, Logit, NumberOperations, Real, choose, part};
use crate::mean_parts::f_wide;
use crate::numeric::{f_power, f_powers, f_reals, f_times, references, result_kind, wide_kind};
use crate::{InvalidValues, Loss, LossError, MeanParts, check};

crate::options::options! {
/// The asymmetric loss of several labels: a focal loss that reduces easy negatives more than easy positives.
///
/// For images with a few labels out of many, where nearly all of the binary cross entropy comes from labels that are
/// plainly absent. Where the labels are balanced choose [`BceWithLogitsLoss`](crate::BceWithLogitsLoss), where exactly
/// one is right [`AsymmetricSingleLabelLoss`](crate::AsymmetricSingleLabelLoss).
///
/// # Formula
///
/// ℓ = −w (r y log max(p, ε) + (1 − y) log max(1 − pₘ, ε)) (y (1 − p) + (1 − y) pₘ)^(γ₊ y + γ₋ (1 − y))
///
/// pₘ = max(p − m, 0)
///
/// where p = σ(x) is the sigmoid of the input, y the target in \[0, 1\], m the clip, γ₊ and γ₋ are the focusing
/// exponents, w is the weight and r the positive weight, 1 where there is none.
///
#[doc = include_str!("../../docs/book/src/gallery/asymmetric_multi_label.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`, of logits; usually `[N, C]`
/// * `target`: `[*]`, the same shape, of any kind of real numbers
/// * `weight`, `pos_weight`: any shape that broadcasts to `[*]`; `[C]` is one weight per label for `[N, C]`
/// * result: scalar, or `[*]` with [`MultiLabelReduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `timm.loss.AsymmetricLossMultiLabel` of timm 1.0.31; Ridnik et al., Asymmetric Loss for Multi-Label Classification,
/// <https://arxiv.org/abs/2009.14119>.
///
/// # Differences from timm
///
/// * `f64` is computed in `f64`, and the result has the input's kind; timm computes and returns `f32`.
/// * Without a clip and an ε the logarithms are those of the logits, so that no probability underflows.
/// * Exponents below 1 have finite gradients; timm's are NaN where a probability is below the clip or rounds to 0 or 1.
/// * A target outside \[0, 1\], such as that of a mask of 0 and 255, is an error.
/// * The paper sums the losses: [`MultiLabelReduction::Sum`]. timm's default, which is the default here, divides the
///   sum by the batch.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for a target outside \[0, 1\], [`LossError::Option`] for a negative exponent, or a clip, ε or
/// smoothing outside \[0, 1\].
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{AsymmetricMultiLabelLoss, Loss, MultiLabelReduction};
///
/// let logits = Tensor::from_slice(&[0.0, 0.0]).view([1, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1_i64, 0]).view([1, 2]);
///
/// let loss = AsymmetricMultiLabelLoss::new().reduction(MultiLabelReduction::None).f_forward(&logits, &target)?;
/// loss.sum(None).f_backward()?;
///
/// // The positive has p = ½; the negative has pₘ = 0.45, whose fourth power is the focusing factor.
/// assert!((loss.double_value(&[0, 0]) - 0.5 * 2_f64.ln()).abs() < 1e-12);
/// assert!((loss.double_value(&[0, 1]) + 0.45_f64.powi(4) * 0.55_f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "AsymmetricLossMultiLabel")]
#[doc(alias = "ASL")]
pub struct AsymmetricMultiLabelLoss: "asymmetric_multi_label" | "AsymmetricLossMultiLabel";

/// Asymmetric loss with timm's defaults.
new {
    /// the focusing exponent of the negatives.
    gamma_neg: f64 = 4.0,
    /// the focusing exponent of the positives.
    gamma_pos: f64 = 1.0,
    /// the clip m, in \[0, 1\]: a negative whose probability is below it has a loss of 0.
    clip: f64 = 0.05,
    /// the least probability ε, in \[0, 1\]: the logarithm of a smaller one is log ε.
    ///
    /// Below it the logarithm has no gradient. With 0 a label that is predicted far wrong has a gradient, too.
    eps: f64 = 1e-8,
    /// whether the focusing factor is a constant, through which no gradient goes.
    detach_focus: bool = false,
    /// the share of each label, in \[0, 1\], that is moved to ½.
    label_smoothing: f64 = 0.0,
    /// a weight for each element, broadcast to the input's shape. It is on the device of the input, in any floating
    /// kind.
    weight: Option<Tensor> = None,
    /// a weight for the logarithm of the positives, broadcast to the input's shape. It is on the device of the input,
    /// in any floating kind.
    pos_weight: Option<Tensor> = None,
    /// how a target outside \[0, 1\] is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: MultiLabelReduction = MultiLabelReduction::BatchMean,
}
}

impl AsymmetricMultiLabelLoss {
    /// log max(σ(`logits`), ε).
    fn f_log_sigmoid(&self, logits: &Tensor) -> Result<Tensor, LossError> {
        let log = logits.f_log_sigmoid()?;
        Ok(if self.eps > 0.0 { log.f_clamp_min_number(self.eps.ln())? } else { log })
    }

    /// log max(1 − pₘ, ε), given the logits of 1 − p and their sigmoids.
    fn f_log_negative(&self, logits: &Tensor, q: &Tensor) -> Result<Tensor, LossError> {
        if self.clip == 0.0 {
            return self.f_log_sigmoid(logits);
        }
        Ok(q.f_add_number(self.clip)?.f_clamp_number(self.eps, 1.0)?.f_log()?)
    }

    /// The focusing factor: one minus the probability of the right answer, to the power of γ₊ or γ₋.
    fn f_focus(&self, logits: &Tensor, q: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let mut surplus = binary::f_sigmoid(logits)?;
        if self.clip > 0.0 {
            surplus = surplus.f_sub_number(self.clip)?.f_relu()?;
        }
        let missing = surplus.f_lerp_tensor(q, target)?;
        if self.gamma_pos == self.gamma_neg {
            return f_power(&missing, self.gamma_pos);
        }
        let exponent = target.f_mul_number(self.gamma_pos - self.gamma_neg)?.f_add_number(self.gamma_neg)?;
        if [self.gamma_pos, self.gamma_neg].iter().any(|gamma| *gamma < 2.0 && *gamma != 1.0) {
            return f_powers(&missing, &exponent);
        }
        Ok(missing.f_pow(&exponent)?)
    }

    fn f_losses(&self, logits: &Tensor, target: &Tensor, pos_weight: Option<Tensor>) -> Result<Tensor, LossError> {
        let is_plain = |gamma: f64| gamma == 1.0 || gamma >= 2.0;
        let plain = self.clip > 0.0 && self.eps > 0.0 && is_plain(self.gamma_pos) && is_plain(self.gamma_neg);
        let differentiated = autograd::grad_enabled() && target.requires_grad();
        if pos_weight.is_none() && plain && !differentiated && !Logits::f_new(logits)?.are_infinite() {
            return self.f_plain_losses(logits, target);
        }
        self.f_losses_of_operations(logits, target, pos_weight)
    }

    /// The losses of finite logits with their derivative as a formula, where no power is vertical.
    fn f_plain_losses(&self, logits: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let (x, y) = (logits.f_detach()?, target.f_detach()?);
        let opposite = x.f_neg()?;
        let (p, q, log_p) = (x.f_sigmoid()?, opposite.f_sigmoid()?, x.f_log_sigmoid()?);
        let shifted = q.f_add_number(self.clip)?;
        let entropy = shifted.f_clamp_number(self.eps, 1.0)?.f_log()?;
        let entropy = entropy.f_lerp_tensor(&log_p.f_clamp_min_number(self.eps.ln())?, &y)?.f_neg()?;
        let missing = p.f_sub_number(self.clip)?.f_relu()?.f_lerp_tensor(&q, &y)?;
        let exponent = y.f_mul_number(self.gamma_pos - self.gamma_neg)?.f_add_number_(self.gamma_neg)?;
        let focus = missing.f_pow(&exponent)?;
        let losses = entropy.f_mul(&focus)?;
        let saved = [logits, &y, &p, &q, &log_p, &shifted, &entropy, &missing, &exponent, &focus];
        let own = self.with_weights([None, None]);
        Function::new(&[logits]).save(&saved).f_attach_one(losses, move |context| {
            let (Some(grad), [logits, parts @ ..]) = (context.grad(0), context.saved()) else { return Ok(vec![None]) };
            let fused = || Ok(vec![Some(own.f_plain_slopes(parts)?.f_mul(&grad)?)]);
            let again = |inputs: &[Tensor]| own.f_losses_of_operations(&inputs[0], &parts[0], None);
            context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &[logits.shallow_clone()], &[true]))
        })
    }

    /// The derivatives of the losses, given their parts.
    fn f_plain_slopes(&self, parts: &[Tensor]) -> Result<Tensor, LossError> {
        let [y, p, q, log_p, shifted, entropy, missing, exponent, focus] = references(parts);
        let steep = p.f_mul(q)?;
        // What is clamped does not change.
        let of_negative = steep.f_div(shifted)?.f_zeros_beyond(shifted, [self.eps, 1.0])?;
        let of_positive = q.f_zeros_up_to(self.eps.ln(), log_p)?.f_neg()?;
        let slopes = of_negative.f_lerp_tensor(&of_positive, y)?.f_mul_(focus)?;
        if self.detach_focus {
            return Ok(slopes);
        }
        let of_missing = steep.f_zeros_up_to(self.clip, p)?.f_lerp_tensor(&steep.f_neg()?, y)?;
        let of_focus = missing.f_pow(&exponent.f_sub_number(1)?)?.f_mul_(exponent)?.f_mul_(&of_missing)?;
        Ok(slopes.f_addcmul(entropy, &of_focus)?)
    }

    fn f_losses_of_operations(
        &self,
        logits: &Tensor,
        target: &Tensor,
        pos_weight: Option<Tensor>,
    ) -> Result<Tensor, LossError> {
        let parts = Logits::f_new(logits)?;
        let opposite = logits.f_neg()?;
        let q = binary::f_sigmoid(&opposite)?;
        let (log_p, log_q) = (self.f_log_sigmoid(logits)?, self.f_log_negative(&opposite, &q)?);
        let entropy = if pos_weight.is_none() && !parts.are_infinite() {
            log_q.f_lerp_tensor(&log_p, target)?.f_neg()?
        } else {
            let positive = parts.f_part(&f_times(target, pos_weight.as_ref())?, &log_p)?;
            positive.f_add(&parts.f_part(&target.f_rsub_number(1)?, &log_q)?)?.f_neg()?
        };
        if self.gamma_neg == 0.0 && self.gamma_pos == 0.0 {
            return Ok(entropy);
        }
        let logits = parts.f_finite()?;
        let q = if parts.are_infinite() { binary::f_sigmoid(&logits.f_neg()?)? } else { q };
        let focus = self.f_focus(&logits, &q, target)?;
        Ok(entropy.f_mul(&if self.detach_focus { focus.f_detach()? } else { focus })?)
    }

    fn with_weights(&self, weights: [Option<&Tensor>; 2]) -> Self {
        let [weight, pos_weight] = weights.map(|weight| weight.map(Tensor::shallow_clone));
        Self { weight, pos_weight, ..*self }
    }

    fn formula(&self) -> Formula {
        Formula {
            gamma_neg: self.gamma_neg,
            gamma_pos: self.gamma_pos,
            clip: self.clip,
            eps: self.eps,
            detach_focus: self.detach_focus,
            label_smoothing: self.label_smoothing,
        }
    }

    fn f_composite(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let kind = wide_kind(input)?;
        let weight = multi_label::f_weight(("weight", &self.weight), input, kind)?;
        let pos_weight = multi_label::f_weight(("pos_weight", &self.pos_weight), input, kind)?;
        let target = f_reals(("target", target), kind)?;
        let mut validity = binary::f_shares(&target, self.invalid_values)?;
        let target = multi_label::f_smooth(validity.f_replace(&target, 0.0)?, self.label_smoothing)?;
        let losses = f_times(&self.f_losses(&input.f_to_kind(kind)?, &target, pos_weight)?, weight.as_ref())?;
        let loss = self.reduction.f_apply(&losses)?.f_to_kind(result_kind(input)?)?;
        validity.f_poison_own(loss, self.reduction == MultiLabelReduction::None)
    }
}

impl Loss for AsymmetricMultiLabelLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        check::finite_not_negative("gamma_neg", self.gamma_neg)?;
        check::finite_not_negative("gamma_pos", self.gamma_pos)?;
        check::share("label_smoothing", self.label_smoothing)?;
        check::share("clip", self.clip)?;
        check::share("eps", self.eps)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::alike(input, target)?;
        self.f_check_options()?;
        multi_label::check_weight(("weight", &self.weight), input)?;
        multi_label::check_weight(("pos_weight", &self.pos_weight), input)?;
        if !kernels::takes_partial(input, self.invalid_values) {
            return self.f_composite(input, target);
        }
        let formula = self.formula();
        let weights = [self.weight.as_ref(), self.pos_weight.as_ref()];
        let (reduce, bare) = (self.reduction.for_engine(input), self.with_weights([None, None]));
        f_weighted(formula, [input, target], weights, reduce, move |[input, target], weights| {
            bare.with_weights(weights).f_composite(input, target)
        })
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let unreduced = Self { reduction: MultiLabelReduction::None, ..self.clone() };
        self.reduction.f_parts(&unreduced.f_forward(&f_wide(input)?, &f_wide(target)?)?)
    }
}

#[derive(Clone, Copy)]
struct Formula {
    gamma_neg: f64,
    gamma_pos: f64,
    clip: f64,
    eps: f64,
    detach_focus: bool,
    label_smoothing: f64,
}

impl Formula {
    /// The cross entropy and its derivatives, given the sigmoids.
    #[inline(always)]
    fn entropy<R: Real>(self, [y, pos_weight]: [R; 2], Logit { p, q, of_yes, of_no, .. }: Logit<R>) -> (R, [R; 3]) {
        let (zero, one, least) = (R::of(0.0), R::of(1.0), R::of(self.eps.ln()));
        let log_p = -of_yes;
        let (log_p, log_p_of_x) = (log_p.at_least(least), choose(log_p.less(least), zero, q));
        let (log_n, log_n_of_x) = if self.clip == 0.0 {
            let log_q = -of_no;
            (log_q.at_least(least), choose(log_q.less(least), zero, -p))
        } else {
            let shifted = q + R::of(self.clip);
            let outside = shifted.greater(one) | shifted.less(R::of(self.eps));
            let clamped = shifted.at_least(R::of(self.eps)).at_most(one);
            (clamped.ln(), choose(outside, zero, -(p * q) / clamped))
        };
        let positive = y * pos_weight;
        let of_x = -(positive * log_p_of_x) - (one - y) * log_n_of_x;
        (-part(positive, log_p) - part(one - y, log_n), [of_x, log_n - part(pos_weight, log_p), -part(y, log_p)])
    }

    /// The focus and its derivatives.
    #[inline(always)]
    fn focus<R: Real>(self, y: R, Logit { p, q, .. }: Logit<R>) -> (R, [R; 2]) {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let surplus = p - R::of(self.clip);
        let open = surplus.greater(zero);
        let surplus = surplus.at_least(zero);
        let missing = y * q + (one - y) * surplus;
        let difference = R::of(self.gamma_pos - self.gamma_neg);
        let exponent = y * difference + R::of(self.gamma_neg);
        let flat = exponent.greater(zero) & exponent.less(one) & missing.less(R::smallest());
        let focus = choose(flat, zero, missing.power(exponent));
        let slope = choose(flat, zero, exponent * missing.power(exponent - one));
        let slope = choose(exponent.equal(zero), zero, slope);
        let of_exponent = choose(missing.equal(zero), zero, focus * missing.ln());
        let missing_of_x = p * q * (choose(open, one - y, zero) - y);
        (focus, [slope * missing_of_x, slope * (q - surplus) + of_exponent * difference])
    }
}

impl PointwiseOfShare<2> for Formula {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (loss, [of_x, of_y, _]) = self.evaluate([x, y, R::of(1.0)]);
        (loss, [of_x, of_y])
    }
}

/// The same with a weight of the positive part as third argument.
impl PointwiseOfShare<3> for Formula {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y, pos_weight]: [R; 3]) -> (R, [R; 3]) {
        let (y, of_label) = multi_label::smooth(y, self.label_smoothing);
        let logit = Logit::new(x);
        let (entropy, [of_x, of_y, of_weight]) = self.entropy([y, pos_weight], logit);
        let (focus, [focus_of_x, focus_of_y]) = self.focus(y, logit);
        let kept = choose(self.detach_focus, R::of(0.0), entropy);
        let of_y = of_label * (part(focus, of_y) + part(focus_of_y, kept));
        (part(focus, entropy), [focus * of_x + part(focus_of_x, kept), of_y, part(focus, of_weight)])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::BceWithLogitsLoss;
    use crate::{Backend, with_backend};

    fn logits() -> Tensor {
        Tensor::from_slice(&[0.5, -2.0, 1.5, -6.0, 3.0, 0.1]).view([2, 3])
    }

    fn labels() -> Tensor {
        Tensor::from_slice(&[1.0, 0.0, 0.0, 0.0, 1.0, 1.0]).view([2, 3])
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (logits(), labels());
        let new = AsymmetricMultiLabelLoss::new;
        let message = |criterion: AsymmetricMultiLabelLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let share = "a number in [0, 1]";
        let cases = [
            (
                message(new(), &input, &target.view([3, 2])),
                "target has shape [3, 2], expected [2, 3], the shape of input".to_owned(),
            ),
            (
                message(new(), &input.to_kind(Kind::Int64), &target),
                "input has kind Int64, expected a floating kind".to_owned(),
            ),
            (
                message(new().gamma_neg(-1.0), &input, &target),
                "option gamma_neg is -1, expected a finite number of at least 0".to_owned(),
            ),
            (message(new().clip(1.5), &input, &target), format!("option clip is 1.5, expected {share}")),
            (message(new().eps(f64::NAN), &input, &target), format!("option eps is NaN, expected {share}")),
            (
                message(new().label_smoothing(-0.1), &input, &target),
                format!("option label_smoothing is -0.1, expected {share}"),
            ),
            (
                message(new().pos_weight(Tensor::from_slice(&[1.0, 2.0])), &input, &target),
                "pos_weight has shape [2], expected a shape that broadcasts to [2, 3], that of input".to_owned(),
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn without_focus_and_clip_it_is_binary_cross_entropy() {
        let loss = AsymmetricMultiLabelLoss::new().gamma_neg(0.0).gamma_pos(0.0).clip(0.0).eps(0.0);
        let loss = loss.reduction(MultiLabelReduction::Mean).forward(&logits(), &labels());
        let expected = BceWithLogitsLoss::new().forward(&logits(), &labels());
        assert!((loss - expected).abs().double_value(&[]) < 1e-15);
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for (gamma_pos, gamma_neg) in [(1.0, 4.0), (0.3, 0.3), (0.0, 0.5), (0.0, 0.0)] {
            for (clip, eps) in [(0.05, 1e-8), (0.0, 1e-8), (0.0, 0.0), (0.05, 0.0)] {
                let input = Tensor::from_slice(&[1e4_f32, -1e4, 1e4, -1e4]).set_requires_grad(true);
                let criterion = AsymmetricMultiLabelLoss::new().gamma_pos(gamma_pos).gamma_neg(gamma_neg);
                let loss = criterion.clip(clip).eps(eps).forward(&input, &Tensor::from_slice(&[0_i64, 1, 1, 0]));
                loss.backward();
                let finite = loss.isfinite().logical_and(&input.grad().isfinite().all());
                assert!(bool::try_from(finite).unwrap(), "{gamma_pos} {gamma_neg} {clip} {eps}: {loss}");
            }
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let soft = Tensor::from_slice(&[0.9, 0.1, 0.2, 0.3, 0.8, 0.5]).view([2, 3]);
        for (gamma_pos, gamma_neg, clip) in [(1.0, 4.0, 0.05), (0.5, 0.5, 0.0), (0.0, 0.7, 0.02), (0.0, 0.0, 0.05)] {
            let loss = || AsymmetricMultiLabelLoss::new().gamma_pos(gamma_pos).gamma_neg(gamma_neg).clip(clip);
            for target in [labels(), soft.shallow_clone()] {
                crate::numeric::assert_gradient(&logits(), |input| loss().forward(input, &target));
            }
            crate::numeric::assert_gradient(&soft, |target| loss().forward(&logits(), target));
        }
    }

    #[test]
    fn a_detached_focus_is_a_constant() {
        let input = logits().set_requires_grad(true);
        let loss = |detached| AsymmetricMultiLabelLoss::new().detach_focus(detached).forward(&input, &labels());
        assert_eq!(loss(true), loss(false));
        loss(true).backward();
        // The gradient of the first label, log σ(x), is σ(x) − 1, times the constant 1 − σ(x).
        let missing = 1.0 / (1.0 + 0.5_f64.exp());
        assert!((input.grad().double_value(&[0, 0]) + missing * missing / 2.0).abs() < 1e-12);
    }

    #[test]
    fn half_kinds_are_computed_in_single_precision() {
        for kind in [Kind::Half, Kind::BFloat16] {
            let input = logits().to_kind(kind);
            let loss = AsymmetricMultiLabelLoss::new().forward(&input, &labels().to_kind(Kind::Bool));
            let expected = AsymmetricMultiLabelLoss::new().forward(&input.to_kind(Kind::Float), &labels());
            assert_eq!(loss, expected.to_kind(kind));
        }
    }

    #[test]
    fn a_wrong_prediction_keeps_the_slope_of_its_focus() {
        let (q, clip) = ((-37.43_f64).exp(), 0.05_f64);
        let surplus = 1.0 - clip;
        let expected = q * (surplus.powi(4) / clip - 4.0 * surplus.powi(3) * clip.ln());
        for (backend, kind) in
            [Backend::Auto, Backend::Composite].into_iter().flat_map(|b| [(b, Kind::Float), (b, Kind::Double)])
        {
            let x = Tensor::from_slice(&[37.43]).to_kind(kind).set_requires_grad(true);
            let loss = || AsymmetricMultiLabelLoss::new().forward(&x, &Tensor::from_slice(&[0_i64]));
            with_backend(backend, loss).backward();
            let slope = x.grad().double_value(&[0]);
            assert!((slope / expected - 1.0).abs() < 1e-5, "{backend:?}, {kind:?}: {slope}, not {expected}");
        }
    }
}
