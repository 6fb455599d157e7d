use tch::Tensor;

use crate::kernels::{self, NumberOperations, Pointwise, Real, choose, f_pointwise};
use crate::numeric::{f_reals, result_kind, wide_kind};
use crate::{Loss, LossError, Reduction, check};

crate::options::options! {
/// The hinge loss of two classes: a score should be on the right side of 0, by a margin.
///
/// The loss of a support vector machine with two classes, and of the discriminators of many GANs. Choose it where only
/// the decision matters; for probabilities choose [`BceWithLogitsLoss`](crate::BceWithLogitsLoss), for several classes
/// [`MultiMarginLoss`](crate::MultiMarginLoss) or [`CategoricalHingeLoss`](crate::CategoricalHingeLoss).
///
/// # Formula
///
/// ℓᵢ = max(0, m − yᵢ xᵢ)ᵖ
///
/// where x is the input, y the target, −1 or 1, m the margin and p the power: 1, or 2 for the squared hinge loss.
///
#[doc = include_str!("../../docs/book/src/gallery/hinge.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`
/// * `target`: `[*]`, the same shape, of any kind of real numbers
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// The definitions of `keras.losses.Hinge` and, with `p(2)`, `keras.losses.SquaredHinge` of Keras 3.
///
/// # Differences from Keras
///
/// Unreduced it is one loss per element; Keras takes their mean over the last dimension first.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Option`] for a `p` other than 1 and 2 or a margin that is not finite.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{HingeLoss, Loss};
///
/// let scores = Tensor::from_slice(&[0.5, -2.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[true, false]);
///
/// let loss = HingeLoss::new().f_forward(&scores, &target)?;
/// loss.f_backward()?;
/// assert_eq!(f64::try_from(&loss)?, 0.25);
/// assert_eq!(Vec::<f64>::try_from(scores.grad())?, [-0.5, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, PartialEq)]
#[doc(alias = "squared_hinge")]
#[doc(alias = "SquaredHinge")]
pub struct HingeLoss: "hinge";

/// The hinge loss with Keras' conventions.
new {
    /// the power of the hinges: 1, or 2 for squared hinges.
    p: i64 = 1,
    /// the margin between a score and 0.
    margin: f64 = 1.0,
    /// what the targets mean.
    targets: HingeTargets = HingeTargets::Detect,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

/// What the targets of a [`HingeLoss`] mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum HingeTargets {
    /// 0 and 1 where the targets have no other value, −1 and 1 otherwise. The rule of Keras, and the default.
    #[default]
    Detect,
    /// −1 is no and 1 is yes; other values are taken as they are.
    Signs,
    /// 0 is no and 1 is yes; values between them are in between.
    Binary,
}

crate::options::words!(HingeTargets);

impl HingeLoss {
    /// The targets as −1 and 1.
    fn f_signs(&self, target: Tensor) -> Result<Tensor, LossError> {
        if self.targets == HingeTargets::Signs {
            return Ok(target);
        }
        let signs = target.f_mul_number(2)?.f_sub_number(1)?;
        if self.targets == HingeTargets::Binary {
            return Ok(signs);
        }
        let binary = f_are_binary(&target)?.f_all()?;
        Ok(signs.f_where_self(&binary, &target)?)
    }

    fn f_composite(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let kind = wide_kind(input)?;
        let signs = self.f_signs(f_reals(("target", target), kind)?)?;
        let hinges = input.f_to_kind(kind)?.f_mul(&signs)?.f_rsub_number(self.margin)?.f_relu()?;
        let losses = if self.p == 1 { hinges } else { hinges.f_square()? };
        Ok(self.reduction.f_apply(&losses)?.f_to_kind(result_kind(input)?)?)
    }
}

impl Loss for HingeLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(unreduced);

    fn f_check_options(&self) -> Result<(), LossError> {
        check::option("p", self.p, matches!(self.p, 1 | 2), "1 or 2")?;
        check::finite("margin", self.margin)
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::alike(input, target)?;
        self.f_check_options()?;
        let loss = *self;
        let composite = move |[input, target]: [&Tensor; 2]| loss.f_composite(input, target);
        let Some(labels) = kernels::f_beside(input, target)? else { return composite([input, target]) };
        let binary = match self.targets {
            HingeTargets::Signs => false,
            HingeTargets::Binary => true,
            HingeTargets::Detect if kernels::is_on_cuda(input) => {
                // Which formula it is stays on the device: a look at it would wait.
                let binary = f_are_binary(&labels)?.f_all()?.f_expand_as(input)?;
                let formula = Detected { square: self.p == 2, margin: self.margin };
                let composite = move |[input, target, _]: [&Tensor; 3]| composite([input, target]);
                return f_pointwise(formula, [input, &labels, &binary], self.reduction, composite);
            }
            HingeTargets::Detect => f_is_binary(&labels)?,
        };
        let formula = Formula { square: self.p == 2, margin: self.margin, binary };
        f_pointwise(formula, [input, &labels], self.reduction, composite)
    }
}

#[derive(Clone, Copy)]
struct Formula {
    square: bool,
    margin: f64,
    binary: bool,
}

impl Pointwise<2> for Formula {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (zero, one, two) = (R::of(0.0), R::of(1.0), R::of(2.0));
        let (scale, shift) = if self.binary { (two, one) } else { (one, zero) };
        let sign = scale * y - shift;
        let short = R::of(self.margin) - x * sign;
        let hinge = short.at_least(zero);
        let slope = choose(self.square, two * hinge, choose(short.less_equal(zero), zero, one));
        (choose(self.square, hinge * hinge, hinge), [-(slope * sign), -(slope * scale * x)])
    }
}

/// The loss of labels of either kind, where the third argument tells whether they are 0 and 1.
#[derive(Clone, Copy)]
struct Detected {
    square: bool,
    margin: f64,
}

impl Pointwise<3> for Detected {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y, binary]: [R; 3]) -> (R, [R; 3]) {
        let Self { square, margin } = self;
        let (of_signs, slopes) = Formula { square, margin, binary: false }.evaluate([x, y]);
        let (of_binary, binary_slopes) = Formula { square, margin, binary: true }.evaluate([x, y]);
        let chosen = |binary_one: R, sign: R| choose(binary.equal(R::of(1.0)), binary_one, sign);
        let [of_x, of_y] = [chosen(binary_slopes[0], slopes[0]), chosen(binary_slopes[1], slopes[1])];
        (chosen(of_binary, of_signs), [of_x, of_y, R::of(0.0)])
    }
}

/// Which labels are 0 or 1.
fn f_are_binary(labels: &Tensor) -> Result<Tensor, LossError> {
    Ok(labels.f_eq_number(0)?.f_logical_or(&labels.f_eq_number(1)?)?)
}

/// Whether all labels are 0 or 1.
fn f_is_binary(labels: &Tensor) -> Result<bool, LossError> {
    let count = |[labels]: [&Tensor; 1]| Ok(f_are_binary(labels)?.f_logical_not()?.f_sum(labels.f_kind()?)?);
    Ok(f_pointwise(NotBinary, [&labels.f_detach()?], Reduction::Sum, count)?.f_double_value(&[])? == 0.0)
}

/// Is 1 for a label other than 0 and 1, and 0 for these: the sum counts the others.
#[derive(Clone, Copy)]
struct NotBinary;

impl Pointwise<1> for NotBinary {
    #[inline(always)]
    fn evaluate<R: Real>(self, [label]: [R; 1]) -> (R, [R; 1]) {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        (choose(label.equal(zero) | label.equal(one), zero, one), [zero])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn values(tensor: Tensor) -> Vec<f64> {
        tensor.try_into().unwrap()
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (Tensor::from_slice(&[0.5, -2.0]), Tensor::from_slice(&[1_i64, 0]));
        let message = |criterion: HingeLoss, input: &Tensor, target: &Tensor| {
            criterion.f_forward(input, target).unwrap_err().to_string()
        };
        let new = HingeLoss::new;
        let cases = [
            (message(new(), &input, &target.view([2, 1])), "target has shape [2, 1], expected [2], the shape of input"),
            (message(new(), &target, &input), "input has kind Int64, expected a floating kind"),
            (message(new().p(3), &input, &target), "option p is 3, expected 1 or 2"),
            (message(new().margin(f64::NAN), &input, &target), "option margin is NaN, expected a finite number"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn targets_mean_what_is_said() {
        let input = Tensor::from_slice(&[0.5, 0.5]);
        let losses = |targets, target: [f64; 2]| {
            let criterion = HingeLoss::new().targets(targets).reduction(Reduction::None);
            values(criterion.forward(&input, &Tensor::from_slice(&target)))
        };
        assert_eq!(losses(HingeTargets::Detect, [0.0, 1.0]), [1.5, 0.5]);
        assert_eq!(losses(HingeTargets::Detect, [-1.0, 1.0]), [1.5, 0.5]);
        assert_eq!(losses(HingeTargets::Detect, [-1.0, 0.0]), [1.5, 1.0]);
        assert_eq!(losses(HingeTargets::Signs, [0.0, 1.0]), [1.0, 0.5]);
        assert_eq!(losses(HingeTargets::Binary, [0.0, 0.5]), [1.5, 1.0]);
    }

    #[test]
    fn half_kinds_are_computed_in_single_precision() {
        for kind in [Kind::Half, Kind::BFloat16] {
            let input = Tensor::from_slice(&[0.5, -2.0]).to_kind(kind);
            let loss = HingeLoss::new().p(2).forward(&input, &Tensor::from_slice(&[true, true]));
            assert_eq!((loss.kind(), loss.double_value(&[])), (kind, 4.625));
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (input, target) = (Tensor::from_slice(&[0.5, -2.0, 3.0]), Tensor::from_slice(&[1.0, -1.0, 0.5]));
        for p in [1, 2] {
            crate::numeric::assert_gradient(&input, |input| HingeLoss::new().p(p).forward(input, &target));
            crate::numeric::assert_gradient(&target, |target| HingeLoss::new().p(p).forward(&input, target));
        }
    }
}
