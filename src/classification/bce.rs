use tch::Tensor;

use crate::binary;
use crate::check::{self, Validity};
use crate::kernels::{self, Expected, Pointwise, Real, Weighted, choose, f_pointwise, is_share};
use crate::numeric::{f_widely, wide_kind};
use crate::{InvalidValues, Loss, LossError, Reduction};

crate::options::options! {
/// Binary cross entropy of probabilities: how unlikely the input makes each yes or no of the target.
///
/// For a model whose output is a probability already. Where it is a logit, choose
/// [`BceWithLogitsLoss`](crate::BceWithLogitsLoss), which stays accurate near 0 and 1.
///
/// # Formula
///
/// ℓᵢ = −wᵢ (yᵢ log xᵢ + (1 − yᵢ) log(1 − xᵢ))
///
/// where x is the input, y the target and w the weight, 1 where there is none. The logarithms are clamped at −100, and
/// the gradient wᵢ (xᵢ − yᵢ) / (xᵢ (1 − xᵢ)) divides by at least 10⁻¹². The mean divides by the number of elements,
/// whatever the weights are.
///
#[doc = include_str!("../../docs/book/src/gallery/bce.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`, with values in \[0, 1\]
/// * `target`: `[*]`, the same shape, of its kind, with values in \[0, 1\]
/// * `weight`: any shape that broadcasts to `[*]`
/// * result: scalar, or `[*]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.BCELoss` and `torch.nn.functional.binary_cross_entropy` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// * A value outside \[0, 1\] is an error, on CUDA a [later one](crate::InvalidValues::f_check)
///   and NaN until then, where PyTorch's makes every later CUDA call of the process fail.
/// * On the CPU libtorch checks the values, and before 2.13 only those of the input: a target outside \[0, 1\] is then
///   no error.
///
/// # Errors
///
/// [`LossError::Shape`], [`LossError::Kind`] or [`LossError::Device`] for arguments that do not fit together,
/// [`LossError::Value`] for an input or a target outside \[0, 1\], NaN among them.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{BceLoss, Loss};
///
/// let input = Tensor::from_slice(&[0.5, 0.5]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[1.0, 0.0]);
///
/// let loss = BceLoss::new().f_forward(&input, &target)?;
/// loss.f_backward()?;
///
/// assert!((f64::try_from(&loss)? - 2_f64.ln()).abs() < 1e-12);
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [-1.0, 1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.BCELoss")]
#[doc(alias = "binary_cross_entropy")]
#[doc(alias = "binary_crossentropy")]
#[doc(alias = "log_loss")]
pub struct BceLoss: "bce" | "binary_cross_entropy";

/// Binary cross entropy with PyTorch's defaults.
new {
    /// a weight for each element, broadcast to the input's shape. It is on the device of the input, in any floating
    /// kind.
    weight: Option<Tensor> = None,
    /// how a value outside \[0, 1\] is handled.
    invalid_values: InvalidValues = InvalidValues::default(),
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

impl Loss for BceLoss {
    crate::option_tensors::with_tensors!();
    crate::mean_parts::parts!(weighted sum over elements);

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        check::same_kind(("target", target), ("input", input))?;
        check::same_shape(("target", target), ("input", input))?;
        let weight = self.weight.as_ref().map(|weight| f_expanded(weight, input)).transpose()?;
        let (mode, reduction) = (self.invalid_values, self.reduction);
        let composite = move |[x, y]: [&Tensor; 2], weight: Option<&Tensor>| {
            if mode.is_error_of_host(x) {
                return f_checked(x, y, weight, reduction);
            }
            f_of_valid([x, y], weight, mode, reduction)
        };
        // PyTorch's operation rejects a weight that requires a gradient.
        let differentiated = weight.as_ref().is_some_and(Tensor::requires_grad);
        if differentiated || !kernels::takes_partial(input, mode) {
            return composite([input, target], weight.as_ref());
        }
        let Some(weight) = &weight else {
            return f_pointwise(Formula, [input, target], reduction, move |arguments| composite(arguments, None));
        };
        f_pointwise(Weighted(Formula), [input, target, weight], reduction, move |[x, y, weight]| {
            composite([x, y], Some(weight))
        })
    }
}

/// The loss by the operation of libtorch, which sees no value outside [0, 1].
fn f_of_valid(
    [input, target]: [&Tensor; 2],
    weight: Option<&Tensor>,
    mode: InvalidValues,
    reduction: Reduction,
) -> Result<Tensor, LossError> {
    let mut inputs = f_validity(("input", input), mode)?;
    let mut targets = f_validity(("target", target), mode)?;
    let (input, target) = (inputs.f_replace(input, 0.5)?, targets.f_replace(target, 0.5)?);
    let loss = f_aten(&input, &target, weight, reduction)?;
    let unreduced = reduction == Reduction::None;
    inputs.f_and(&targets, unreduced)?.f_poison_own(loss, unreduced)
}

fn f_expanded(weight: &Tensor, input: &Tensor) -> Result<Tensor, LossError> {
    check::devices(&[("input", input), ("weight", weight)])?;
    check::broadcasts_to(("weight", weight), ("input", input))?;
    Ok(weight.f_expand_as(input)?)
}

/// On the CPU the operation itself checks the values. They are checked again only to name the wrong one in the error.
fn f_checked(
    input: &Tensor,
    target: &Tensor,
    weight: Option<&Tensor>,
    reduction: Reduction,
) -> Result<Tensor, LossError> {
    f_aten(input, target, weight, reduction).or_else(|error| {
        f_validity(("input", input), InvalidValues::Error)?;
        f_validity(("target", target), InvalidValues::Error)?;
        Err(error)
    })
}

fn f_aten(input: &Tensor, target: &Tensor, weight: Option<&Tensor>, reduction: Reduction) -> Result<Tensor, LossError> {
    let kind = wide_kind(input)?;
    let weight = weight.map(|weight| weight.f_to_kind(kind)).transpose()?;
    f_widely([input, target], |[x, y]| Ok(x.f_binary_cross_entropy(y, weight, reduction.into())?))
}

fn f_validity(argument: check::Named, mode: InvalidValues) -> Result<Validity, LossError> {
    check::f_in_range(argument, 0.0..=1.0, "probabilities in [0, 1]", mode)
}

#[derive(Clone, Copy)]
struct Formula;

impl Pointwise<2> for Formula {
    fn partial(self) -> Option<Expected> {
        Some(("input or target", binary::SHARES.1))
    }

    #[inline(always)]
    fn is_defined<R: Real>(self, [x, y]: [R; 2]) -> R::Mask {
        is_share(x, 1.0) & is_share(y, 1.0)
    }

    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (one, least) = (R::of(1.0), R::of(-100.0));
        let (log_p, log_q) = (x.ln(), (-x).ln_1p());
        let loss = choose(
            self.is_defined([x, y]),
            -(y * log_p.at_least(least) + (one - y) * log_q.at_least(least)),
            R::of(f64::NAN),
        );
        let slope = (x - y) / (x * (one - x)).at_least(R::of(1e-12));
        (loss, [slope, log_q - log_p])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn message(criterion: BceLoss, input: &Tensor, target: &Tensor) -> String {
        criterion.f_forward(input, target).unwrap_err().to_string()
    }

    #[test]
    fn wrong_calls_name_the_argument() {
        let (input, target) = (Tensor::from_slice(&[0.5, 0.25]), Tensor::from_slice(&[1.0, 0.0]));
        let weight = |shape: &[i64]| BceLoss::new().weight(Tensor::ones(shape, (Kind::Double, tch::Device::Cpu)));
        let cases = [
            (message(BceLoss::new(), &(&input + 1.0), &target), "input holds 1.5, expected probabilities in [0, 1]"),
            (
                message(BceLoss::new(), &(&input * f64::NAN), &target),
                "input holds NaN, expected probabilities in [0, 1]",
            ),
            (message(BceLoss::new(), &input, &(&target - 1.0)), "target holds -1, expected probabilities in [0, 1]"),
            (
                message(BceLoss::new(), &input, &target.to_kind(Kind::Float)),
                "target has kind Float, expected Double, the kind of input",
            ),
            (
                message(BceLoss::new(), &input, &target.view([2, 1])),
                "target has shape [2, 1], expected [2], the shape of input",
            ),
            (
                message(weight(&[3]), &input, &target),
                "weight has shape [3], expected a shape that broadcasts to [2], that of input",
            ),
            (
                message(weight(&[1, 2]), &input, &target),
                "weight has shape [1, 2], expected a shape that broadcasts to [2], that of input",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn a_weight_that_requires_a_gradient_is_an_error_as_in_pytorch() {
        let (input, target) = (Tensor::from_slice(&[0.5, 0.25]), Tensor::from_slice(&[1.0, 0.0]));
        let weight = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
        assert!(message(BceLoss::new().weight(weight), &input, &target).contains("not differentiable"));
    }

    #[test]
    fn values_outside_their_range_can_make_the_loss_nan() {
        let target = Tensor::from_slice(&[1.0, 1.0, -1.0]);
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            let input = Tensor::from_slice(&[0.5, f64::NAN, 0.5]).set_requires_grad(true);
            let criterion = BceLoss::new().invalid_values(InvalidValues::Nan).reduction(reduction);
            let loss = criterion.f_forward(&input, &target).unwrap();
            let unreduced = reduction == Reduction::None;
            let is_nan = Vec::<bool>::try_from(loss.isnan().view(-1)).unwrap();
            assert_eq!(is_nan, if unreduced { vec![false, true, true] } else { vec![true] });
            loss.sum(None).backward();
            let used = if unreduced { -2.0 } else { 0.0 };
            assert_eq!(Vec::<f64>::try_from(input.grad()).unwrap(), [used, 0.0, 0.0]);
        }
    }

    #[test]
    fn the_ends_of_the_range_are_finite() {
        let input = Tensor::from_slice(&[0.0, 1.0, -0.0]).set_requires_grad(true);
        let target = Tensor::from_slice(&[1.0, 0.0, 0.0]);
        for invalid_values in [InvalidValues::Error, InvalidValues::Nan] {
            let criterion = BceLoss::new().invalid_values(invalid_values).reduction(Reduction::None);
            let loss = criterion.f_forward(&input, &target).unwrap();
            assert_eq!(Vec::<f64>::try_from(&loss).unwrap(), [100.0, 100.0, 0.0]);
        }
    }
}
