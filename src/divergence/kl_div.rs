use tch::Tensor;

use crate::kernels::{NumberOperations, Pointwise, Real, Reduce, choose, f_pointwise, waits};
use crate::mean_parts::f_wide;
use crate::numeric::f_widely;
use crate::{Loss, LossError, MeanParts, Reduction, check};

crate::options::options! {
/// The Kullback-Leibler divergence of a target distribution from a predicted one.
///
/// For distillation, variational models and soft labels. The input is log-probabilities, as of a `log_softmax`. Set
/// [`KlDivReduction::BatchMean`] to get the divergence itself: PyTorch's default divides it by the number of classes as
/// well. For logits choose [`CrossEntropyLoss`](crate::CrossEntropyLoss), which differs only by the entropy of the
/// target.
///
/// # Formula
///
/// ℓᵢ = yᵢ (log yᵢ − xᵢ), and 0 where yᵢ = 0
///
/// where x is the input and y the target. With log-probabilities z as target, ℓᵢ = exp(zᵢ) (zᵢ − xᵢ). Summed over the
/// elements of one distribution it is the divergence KL(y ‖ exp x).
///
#[doc = include_str!("../../docs/book/src/gallery/kl_div.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`; with [`KlDivReduction::BatchMean`] the first dimension is the batch
/// * `target`: `[*]`, the same shape
/// * result: scalar, or `[*]` with [`KlDivReduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// `torch.nn.KLDivLoss` and `torch.nn.functional.kl_div` of PyTorch 2.13.
///
/// # Differences from PyTorch
///
/// * A target of another shape is an error, unless [`broadcast`](Self::broadcast) allows it; PyTorch broadcasts
///   silently.
/// * Where the target's probability is 0, an input of −∞ has a loss of 0, which is the limit; PyTorch's is NaN there.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes differ, [`LossError::Device`] where devices do, [`LossError::Kind`] for an
/// argument that is not of a floating kind.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{KlDivLoss, KlDivReduction, Loss};
///
/// let log_p = Tensor::from_slice(&[0.25, 0.75, 0.5, 0.5]).view([2, 2]).log().set_requires_grad(true);
/// let q = Tensor::from_slice(&[0.25, 0.75, 1.0, 0.0]).view([2, 2]);
///
/// let loss = KlDivLoss::new().reduction(KlDivReduction::BatchMean).f_forward(&log_p, &q)?;
/// loss.f_backward()?;
///
/// // The first prediction is the target, the second is off by one bit.
/// assert!((f64::try_from(&loss)? - 2_f64.ln() / 2.0).abs() < 1e-15);
/// assert_eq!(Vec::<f64>::try_from(log_p.grad().view([-1]))?, [-0.125, -0.375, -0.5, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "nn.KLDivLoss")]
#[doc(alias = "kl_div")]
#[doc(alias = "relative entropy")]
#[doc(alias = "kl_divergence")]
pub struct KlDivLoss: "kl_div" | "kullback_leibler_divergence";

/// The Kullback-Leibler divergence with PyTorch's defaults.
new {
    /// whether the target is log-probabilities too, which avoids taking the logarithm of it.
    log_target: bool = false,
    /// whether input and target may differ in shape and are broadcast against each other.
    broadcast: bool = false,
    /// the reduction.
    reduction: KlDivReduction = KlDivReduction::Mean,
}
}

/// How the terms of a [`KlDivLoss`] become the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[doc(alias = "batchmean")]
pub enum KlDivReduction {
    /// One term per element, without a reduction.
    None,
    /// Their mean over all elements. PyTorch's default. It is not the divergence, which is a sum over the elements of a
    /// distribution: here it is also divided by their number.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// Their sum divided by the size of the input's first dimension, the mean of the divergences in a batch of
    /// distributions. For an input without dimensions it is the sum.
    BatchMean,
}

crate::options::words!(KlDivReduction);

impl KlDivReduction {
    /// The reduction of the operation, before the sum is divided by the batch.
    fn of_operation(self) -> Reduction {
        match self {
            KlDivReduction::None => Reduction::None,
            KlDivReduction::Mean => Reduction::Mean,
            KlDivReduction::Sum | KlDivReduction::BatchMean => Reduction::Sum,
        }
    }
}

impl Loss for KlDivLoss {
    crate::option_tensors::with_tensors!();

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        check::floating(("target", target))?;
        check::same_shape_or_broadcast(("target", target), ("input", input), self.broadcast)?;
        let (log_target, reduction) = (self.log_target, self.reduction.of_operation());
        let batch = match input.size().first() {
            Some(&batch) if self.reduction == KlDivReduction::BatchMean => Some(batch),
            _ => None,
        };
        let f_aten = move |[input, target]: [&Tensor; 2]| {
            f_widely([input, target], |[input, target]| {
                let [input, target] = f_possible(input, target, log_target)?;
                let loss = input.f_kl_div(&target, reduction.into(), log_target)?;
                Ok(if let Some(batch) = batch { loss.f_div_number(batch)? } else { loss })
            })
        };
        // PyTorch's operations give the derivative with respect to a target of 0 that a user of PyTorch expects.
        if target.requires_grad() {
            return f_aten([input, target]);
        }
        let reduce = batch.map_or(reduction.into(), |batch| Reduce::Sum(1.0 / batch as f64));
        f_pointwise(Formula { log_target }, [input, target], reduce, f_aten)
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let sum = Self { reduction: KlDivReduction::Sum, ..*self };
        let numerator = sum.f_forward(&f_wide(input)?, &f_wide(target)?)?;
        match self.reduction {
            KlDivReduction::BatchMean => MeanParts::f_over(numerator, input.size().first().copied().unwrap_or(1)),
            _ => MeanParts::f_of_elements(numerator, input, target, None),
        }
    }
}

/// Input and target, with finite numbers where the target's probability is 0 and 0 · ∞ would be NaN.
fn f_possible(input: &Tensor, target: &Tensor, log_target: bool) -> Result<[Tensor; 2], LossError> {
    let impossible = match log_target {
        true => target.f_eq_number(f64::NEG_INFINITY)?,
        false => target.f_eq_number(0)?.f_logical_and(&input.f_eq_number(f64::NEG_INFINITY)?)?,
    };
    // Without such elements nothing is copied, because a copy may have another layout in memory and so another order of
    // the sum. On CUDA this is not tested, because it would wait for the device.
    if !waits(&impossible) && impossible.f_any()?.f_int64_value(&[])? == 0 {
        return Ok([input.shallow_clone(), target.shallow_clone()]);
    }
    if log_target {
        return Ok([input.f_masked_fill_number(&impossible, 0)?, target.f_masked_fill_number(&impossible, 0)?]);
    }
    Ok([input.f_masked_fill_number(&impossible, 0)?, target.shallow_clone()])
}

#[derive(Clone, Copy)]
struct Formula {
    log_target: bool,
}

impl Pointwise<2> for Formula {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let zero = R::of(0.0);
        if self.log_target {
            let share = y.exp();
            // A target of probability 0 has a loss of 0, where 0 · ∞ would be NaN.
            let loss = choose(y.equal(R::of(f64::NEG_INFINITY)), zero, share * (y - x));
            return (loss, [-share, loss + share]);
        }
        let log = y.ln();
        // 0 · log 0 and 0 · ∞ are taken to be 0, and would be NaN.
        let impossible = y.equal(zero) & x.equal(R::of(f64::NEG_INFINITY));
        let loss = choose(y.equal(zero), zero, y * log) - choose(impossible, zero, y * x);
        (loss, [-y, log + R::of(1.0) - x])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch_mean() -> KlDivLoss {
        KlDivLoss::new().reduction(KlDivReduction::BatchMean)
    }

    #[test]
    fn wrong_arguments_are_named() {
        let (floats, integers) = (Tensor::from_slice(&[0.5, 0.5]), Tensor::from_slice(&[1_i64, 0]));
        let error = KlDivLoss::new().f_forward(&floats, &integers).unwrap_err();
        assert_eq!(error.to_string(), "target has kind Int64, expected a floating kind");
        let error = KlDivLoss::new().f_forward(&floats.unsqueeze(0), &floats).unwrap_err();
        assert_eq!(error.to_string(), "target has shape [2], expected [1, 2], the shape of input");
    }

    #[test]
    fn the_batch_mean_without_a_batch_is_the_sum() {
        let (input, target) = (Tensor::from(-1.0), Tensor::from(1.0));
        assert_eq!(f64::try_from(batch_mean().forward(&input, &target)).unwrap(), 1.0);
    }

    #[test]
    fn the_batch_is_that_of_the_input() {
        let (input, target) =
            (Tensor::from_slice(&[-1.0, -2.0]), Tensor::from_slice(&[1.0, 1.0, 1.0, 1.0]).view([2, 2]));
        assert_eq!(f64::try_from(batch_mean().broadcast(true).forward(&input.unsqueeze(0), &target)).unwrap(), 6.0);
    }
}
