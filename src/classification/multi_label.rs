//! What the losses of several labels share.

use tch::{Kind, Tensor};

use crate::kernels::{NumberOperations, Pointwise, Real, Reduce, Weighted, f_beside, f_pointwise};
use crate::numeric::{f_reals, wide_kind};
use crate::{LossError, MeanParts, autograd, check};

/// How the losses of the single labels become the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[doc(alias = "batchmean")]
pub enum MultiLabelReduction {
    /// One loss per label, without a reduction.
    None,
    /// Their mean over samples and labels.
    #[default]
    Mean,
    /// Their sum divided by the size of the input's first dimension: a sum over the labels, a mean over the samples.
    /// For an input without dimensions it is the sum.
    BatchMean,
    /// Their sum.
    Sum,
}

crate::options::words!(MultiLabelReduction);

impl MultiLabelReduction {
    /// The same for an engine, given the input.
    pub(super) fn for_engine(self, input: &Tensor) -> Reduce {
        match self {
            MultiLabelReduction::None => Reduce::No,
            MultiLabelReduction::Mean => Reduce::Mean,
            MultiLabelReduction::BatchMean => Reduce::Sum(1.0 / input.size().first().copied().unwrap_or(1) as f64),
            MultiLabelReduction::Sum => Reduce::Sum(1.0),
        }
    }

    /// Reduces the losses of the single labels.
    pub(super) fn f_apply(self, losses: &Tensor) -> Result<Tensor, LossError> {
        let samples = losses.size().first().copied().unwrap_or(1);
        Ok(match self {
            MultiLabelReduction::None => losses.shallow_clone(),
            MultiLabelReduction::Mean => losses.f_mean(None)?,
            MultiLabelReduction::BatchMean => losses.f_sum(None)?.f_div_number(samples)?,
            MultiLabelReduction::Sum => losses.f_sum(None)?,
        })
    }

    /// The parts of the mean: of the batch mean where it is that.
    pub(super) fn f_parts(self, losses: &Tensor) -> Result<MeanParts, LossError> {
        let parts = MeanParts::f_of_losses(losses)?;
        match self {
            MultiLabelReduction::BatchMean => parts.f_with_count(losses.size().first().copied().unwrap_or(1)),
            _ => Ok(parts),
        }
    }
}

/// A weight that broadcasts to `input`, as `kind`.
pub(super) fn f_weight(
    (name, weight): (&'static str, &Option<Tensor>),
    input: &Tensor,
    kind: Kind,
) -> Result<Option<Tensor>, LossError> {
    check_weight((name, weight), input)?;
    weight.as_ref().map(|weight| f_reals((name, weight), kind)).transpose()
}

/// The same for an operation that has no gradient for it, in the kind of `input` or wider.
pub(super) fn f_constant_weight(
    (name, weight): (&'static str, &Option<Tensor>),
    input: &Tensor,
) -> Result<Option<Tensor>, LossError> {
    check_weight((name, weight), input)?;
    let Some(weight) = weight else { return Ok(None) };
    let needed = autograd::grad_enabled() && weight.requires_grad();
    check::option(name, "a tensor that requires a gradient", !needed, "one that requires none")?;
    let kind = input.f_kind()?;
    let kind = if weight.f_kind()? == kind { kind } else { wide_kind(input)? };
    Ok(Some(f_reals((name, weight), kind)?))
}

/// A weight, where there is one, broadcasts to the input.
pub(super) fn check_weight((name, weight): (&'static str, &Option<Tensor>), input: &Tensor) -> Result<(), LossError> {
    let Some(weight) = weight else { return Ok(()) };
    check::devices(&[("input", input), (name, weight)])?;
    check::broadcasts_to((name, weight), ("input", input))
}

/// The reduced losses by `formula`, of input and target or of these and `pos_weight`, times `weight`; by `composite`
/// where no engine takes one of them. The weights broadcast to the input.
pub(super) fn f_weighted<F, C>(
    formula: F,
    [input, target]: [&Tensor; 2],
    [weight, pos_weight]: [Option<&Tensor>; 2],
    reduce: Reduce,
    composite: C,
) -> Result<Tensor, LossError>
where
    F: Pointwise<2> + Pointwise<3>,
    C: Fn([&Tensor; 2], [Option<&Tensor>; 2]) -> Result<Tensor, LossError> + Send + 'static,
{
    let mut beside = [None, None, None];
    for (tensor, beside) in [Some(target), pos_weight, weight].into_iter().zip(&mut beside) {
        let Some(tensor) = tensor else { continue };
        let Some(taken) = f_beside(input, tensor)? else {
            return composite([input, target], [weight, pos_weight]);
        };
        *beside = Some(if taken.size() == input.size() { taken } else { taken.f_expand_as(input)? });
    }
    match beside.each_ref().map(Option::as_ref) {
        [Some(y), None, None] => f_pointwise(formula, [input, y], reduce, move |of| composite(of, [None, None])),
        [Some(y), None, Some(w)] => {
            f_pointwise(Weighted(formula), [input, y, w], reduce, move |[x, y, w]| composite([x, y], [Some(w), None]))
        }
        [Some(y), Some(p), None] => {
            f_pointwise(formula, [input, y, p], reduce, move |[x, y, p]| composite([x, y], [None, Some(p)]))
        }
        [Some(y), Some(p), Some(w)] => f_pointwise(Weighted(formula), [input, y, p, w], reduce, move |[x, y, p, w]| {
            composite([x, y], [Some(w), Some(p)])
        }),
        [None, _, _] => composite([input, target], [weight, pos_weight]),
    }
}

/// The share `smoothing` of each label moved to ½.
pub(super) fn f_smooth(labels: Tensor, smoothing: f64) -> Result<Tensor, LossError> {
    if smoothing == 0.0 {
        return Ok(labels);
    }
    Ok(labels.f_mul_number(1.0 - smoothing)?.f_add_number(0.5 * smoothing)?)
}

/// [`f_smooth`] for a formula: the smoothed label and its derivative.
#[inline(always)]
pub(super) fn smooth<R: Real>(label: R, smoothing: f64) -> (R, R) {
    let kept = R::of(1.0 - smoothing);
    (kept * label + R::of(0.5 * smoothing), kept)
}
