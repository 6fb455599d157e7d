use tch::{Kind, Tensor};

use super::Elementwise;
use super::few::Few;
use crate::kernels::{NumberOperations, Pointwise, Real, choose};
use crate::mean_parts::{f_wide, f_wide_option};
use crate::numeric::{f_reals, f_sign_or_nan, f_with_nan_slopes, result_kind, wide_kind};
use crate::{Loss, LossError, MeanParts, Reduction, check};

crate::options::options! {
/// The quantile loss, or pinball: the distance of each element to its target, weighed by the side on which it lies.
///
/// For predictions that are to be exceeded in a given share of cases: stocks, loads, arrival times. A model that
/// minimises it predicts the quantile q of the target's distribution; several quantiles make an interval. With q = ½
/// it is half of [`L1Loss`](crate::L1Loss).
///
/// # Formula
///
/// ℓᵢ = wᵢ max(q (yᵢ − xᵢ), (q − 1) (yᵢ − xᵢ))
///
/// where x is the input, y the target, q the quantile and w the weight, 1 where there is none. The mean is Σ ℓᵢ / Σ wᵢ;
/// with several quantiles it is the mean of their means. The gradient at xᵢ = yᵢ is ½ − q, half way between both sides.
///
#[doc = include_str!("../../docs/book/src/gallery/quantile.svg")]
///
/// # Shapes
///
/// * `input`: any shape, `[*]`; `[*, Q]` for a list of Q quantiles
/// * `target`, `weight`: `[*]`
/// * result: scalar, or `[*]` or `[*, Q]` with [`Reduction::None`]
///
/// The mean over no elements is NaN; [`when_empty`](Loss::when_empty) makes it 0 or an error.
///
/// # Reference
///
/// Koenker and Bassett, *Regression Quantiles*, 1978.
///
/// # Errors
///
/// [`LossError::Shape`] where shapes do not fit, [`LossError::Device`] where devices differ, [`LossError::Kind`] for an
/// input that is not floating, [`LossError::Option`] for a quantile outside (0, 1) or none at all.
///
/// # Example
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{Loss, QuantileLoss};
///
/// let input = Tensor::from_slice(&[0.0, 0.0]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[10.0, -10.0]);
///
/// let loss = QuantileLoss::new().quantiles(0.75).f_forward(&input, &target)?;
/// loss.f_backward()?;
/// assert_eq!(f64::try_from(&loss)?, (7.5 + 2.5) / 2.0);
/// assert_eq!(Vec::<f64>::try_from(input.grad())?, [-0.375, 0.125]);
///
/// let interval = Tensor::from_slice(&[-1.0, 0.0, 1.0, -1.0, 0.0, 1.0]).view([2, 3]);
/// let loss = QuantileLoss::new().quantiles([0.1, 0.5, 0.9]).f_forward(&interval, &target)?;
/// // For either target 0.1 · 11 + 0.5 · 10 + 0.9 · 9 or the same with 0.9 · 9 + 0.5 · 10 + 0.1 · 11.
/// assert!((f64::try_from(&loss)? - 14.2 / 3.0).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "PinballLoss")]
#[doc(alias = "mean_pinball_loss")]
#[doc(alias = "pinball")]
#[doc(alias = "quantile_regression")]
pub struct QuantileLoss: "quantile" | "pinball";

/// The quantile loss of the median.
new {
    /// the quantile, in (0, 1), or a list of them.
    quantiles: Quantiles = Quantiles::One(0.5) => into,
    /// a weight for each target. It is on the device of the input, in any floating kind.
    weight: Option<Tensor> = None,
    /// whether input and target may differ in shape and are broadcast against each other.
    broadcast: bool = false,
    /// the reduction.
    reduction: Reduction = Reduction::Mean,
}
}

/// What a [`QuantileLoss`] predicts.
#[derive(Debug, Clone, PartialEq)]
pub enum Quantiles {
    /// One quantile: the input has the target's shape.
    One(f64),
    /// Several quantiles: the last dimension of the input.
    Many(Vec<f64>),
}

crate::option_tensors::without_tensors!(Quantiles);

crate::options::from_variants!(Quantiles: f64 => One, Vec<f64> => Many);

impl<const N: usize> From<[f64; N]> for Quantiles {
    fn from(quantiles: [f64; N]) -> Self {
        Self::Many(quantiles.into())
    }
}

impl From<&[f64]> for Quantiles {
    fn from(quantiles: &[f64]) -> Self {
        Self::Many(quantiles.into())
    }
}

impl QuantileLoss {
    fn f_one(&self, input: &Tensor, target: &Tensor, quantile: f64) -> Result<Tensor, LossError> {
        let elements =
            Elementwise { weight: self.weight.as_ref(), broadcast: self.broadcast, reduction: self.reduction };
        elements.f_forward(Pinball { quantile }, input, target, f_losses, Some(FEW))
    }

    /// Each column of the input is one quantile.
    fn f_many(&self, input: &Tensor, target: &Tensor, quantiles: &[f64]) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        let (size, count) = (input.size(), quantiles.len() as i64);
        let fits = size.last() == Some(&count) && (self.broadcast || size[..size.len() - 1] == target.size());
        if !fits {
            let of = if self.broadcast { "a last dimension".into() } else { format!("{:?}", target.size()) };
            let expected = format!("{of}, and {count} quantiles as the last dimension");
            return Err(check::shape_error(("input", input), expected));
        }
        // In the kind of the computation, because losses that are rounded before they are added up are rounded twice.
        let kind = result_kind(input)?;
        let columns = input.f_to_kind(wide_kind(input)?)?.f_unbind(-1)?;
        let target = f_reals(("target", target), wide_kind(input)?)?;
        let losses = columns.iter().zip(quantiles).map(|(column, quantile)| self.f_one(column, &target, *quantile));
        let losses = Tensor::f_stack(&losses.collect::<Result<Vec<_>, _>>()?, -1)?;
        Ok(self.reduction.f_apply(&losses)?.f_to_kind(kind)?)
    }
}

impl Loss for QuantileLoss {
    crate::option_tensors::with_tensors!();

    fn f_check_options(&self) -> Result<(), LossError> {
        let quantiles = match &self.quantiles {
            Quantiles::One(quantile) => std::slice::from_ref(quantile),
            Quantiles::Many(quantiles) => quantiles,
        };
        check::option("quantiles", "empty", !quantiles.is_empty(), "at least one quantile")?;
        quantiles.iter().try_for_each(|&quantile| {
            let valid = quantile > 0.0 && quantile < 1.0;
            check::option("quantiles", quantile, valid, "numbers between 0 and 1")
        })
    }

    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.f_check_options()?;
        match &self.quantiles {
            Quantiles::One(quantile) => self.f_one(input, target, *quantile),
            Quantiles::Many(quantiles) => self.f_many(input, target, quantiles),
        }
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let reduction = if self.weight.is_some() { Reduction::Sum } else { Reduction::None };
        let weight = f_wide_option(&self.weight)?;
        let wide = Self { quantiles: self.quantiles.clone(), weight, broadcast: self.broadcast, reduction };
        let losses = wide.f_forward(&f_wide(input)?, &f_wide(target)?)?;
        match &wide.weight {
            Some(weight) => {
                let count = if let Quantiles::Many(quantiles) = &self.quantiles { quantiles.len() } else { 1 };
                MeanParts::f_new(losses, weight.f_sum(Kind::Double)?.f_mul_number(count as i64)?)
            }
            None => MeanParts::f_of_losses(&losses),
        }
    }
}

#[derive(Clone, Copy)]
struct Pinball {
    quantile: f64,
}

impl Pointwise<2> for Pinball {
    #[inline(always)]
    fn evaluate<R: Real>(self, [x, y]: [R; 2]) -> (R, [R; 2]) {
        let (zero, half) = (R::of(0.0), R::of(0.5));
        let (below, above) = (R::of(self.quantile), R::of(self.quantile - 1.0));
        let difference = y - x;
        let loss = choose(difference.less(zero), above, below) * difference;
        let slope = half * difference.sign_or_nan() + (below - half);
        (loss, [-slope, slope])
    }
}

fn f_losses(Pinball { quantile }: Pinball, x: &Tensor, y: &Tensor) -> Result<Tensor, LossError> {
    let difference = y.f_sub(x)?;
    let losses = difference.f_mul_number(quantile)?.f_maximum(&difference.f_mul_number(quantile - 1.0)?)?;
    f_with_nan_slopes(&losses)
}

/// The same, and the slope ½ − q − ½ sign(y − x), which is NaN where the loss is.
const FEW: Few<Pinball> = Few {
    f_losses: |Pinball { quantile }, x, y| {
        let difference = y.f_sub(x)?;
        let losses = difference.f_mul_number(quantile)?.f_maximum(&difference.f_mul_number(quantile - 1.0)?)?;
        Ok((losses, vec![difference]))
    },
    f_slopes: |Pinball { quantile }, kept, factor, number| {
        let signs = f_sign_or_nan(&kept[0])?.f_mul_number(-0.5)?.f_add_number(0.5 - quantile)?;
        Ok(signs.f_mul(&factor.f_mul_number(number)?)?)
    },
    of_difference: true,
};

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn quantiles_are_between_0_and_1() {
        let x = Tensor::from_slice(&[1.0]);
        for (quantile, actual) in [(0.0, "0"), (1.0, "1"), (f64::NAN, "NaN")] {
            let error = QuantileLoss::new().quantiles(quantile).f_forward(&x, &x).unwrap_err();
            let expected = format!("option quantiles is {actual}, expected numbers between 0 and 1");
            assert_eq!(error.to_string(), expected);
        }
        let error = QuantileLoss::new().quantiles([]).f_forward(&x, &x).unwrap_err();
        assert_eq!(error.to_string(), "option quantiles is empty, expected at least one quantile");
    }

    #[test]
    fn several_quantiles_are_the_last_dimension() {
        let (input, target) = (Tensor::from_slice(&[1.0, 2.0]), Tensor::from_slice(&[1.0, 1.0]));
        let error = QuantileLoss::new().quantiles([0.1, 0.9]).f_forward(&input, &target).unwrap_err();
        let expected = "input has shape [2], expected [2], and 2 quantiles as the last dimension";
        assert_eq!(error.to_string(), expected);
        let loss = QuantileLoss::new().quantiles([0.1, 0.9]).broadcast(true).reduction(Reduction::None);
        assert_eq!(loss.forward(&input, &target).size(), [2, 2]);
    }

    #[test]
    fn half_kinds_are_computed_in_single_precision() {
        let input = Tensor::from_slice(&[0.5, 3.0]).view([1, 2]).to_kind(Kind::Half);
        let loss = QuantileLoss::new().quantiles([0.25, 0.5]).forward(&input, &Tensor::from_slice(&[2_i64]));
        assert_eq!((loss.kind(), loss.double_value(&[])), (Kind::Half, 0.4375));
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let input = Tensor::from_slice(&[0.5, -2.0, 3.0, 9.0]).view([2, 2]);
        let target = Tensor::from_slice(&[0.4, 5.0]);
        let loss = QuantileLoss::new().quantiles([0.2, 0.7]).weight(Tensor::from_slice(&[1.0, 3.0]));
        crate::numeric::assert_gradient(&input, |input| loss.forward(input, &target));
        crate::numeric::assert_gradient(&target, |target| loss.forward(&input, target));
    }
}
