//! What the focal losses share: the balance α, the modulating factor, its normalisation, and the mean without ignored
//! elements.

use tch::{Kind, Tensor};

use crate::kernels::NumberOperations;
use crate::mean_parts::f_wide;
use crate::numeric::f_filled;
use crate::option_tensors::{OptionTensors, Replace};
use crate::{LossError, MeanOver, MeanParts, Reduction, check};

/// How much the classes count in a focal loss: the α of the paper.
///
/// A number becomes a [`Balance`](FocalAlpha::Balance), a tensor becomes [`Classes`](FocalAlpha::Classes).
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum FocalAlpha {
    /// All classes have the factor 1.
    #[default]
    None,
    /// α for the positives and 1 − α for the negatives, with α in \[0, 1\].
    ///
    /// In a softmax the first class, the background, is the negative one, and all others are positive.
    Balance(f64),
    /// One value for each class, `[C]`.
    ///
    /// With sigmoids α\[c\] is for the positives of class c and 1 − α\[c\] for its negatives; in a softmax α\[c\] is
    /// for the targets of class c.
    Classes(Tensor),
}

crate::options::from_variants!(FocalAlpha: f64 => Balance, Tensor => Classes);

/// What a focal loss is divided by before its reduction, so that it stays of the same size while the modulating factors
/// become smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum FocalNormalization {
    /// 1: it is not divided. The default.
    #[default]
    None,
    /// The sum of the modulating factors of all elements.
    All,
    /// For each class the sum of its own modulating factors.
    PerClass,
}

crate::options::words!(FocalNormalization);

/// A loss that is divided by a sum over the batch is no mean.
pub(super) fn check_mean<L>(normalization: FocalNormalization) -> Result<(), LossError> {
    match normalization {
        FocalNormalization::None => Ok(()),
        _ => Err(LossError::no_mean::<L>("with a normalization it is divided by a sum over the whole batch")),
    }
}

/// The least divisor: a smaller sum of factors is replaced by it.
const SMALLEST_NORM: f64 = 1e-6;

/// A logit whose probability is exactly 0 in every kind. It is finite, since derivatives of infinite ones are special cases.
const FAR: f64 = -1e4;

impl OptionTensors for FocalAlpha {
    fn map_tensors(&self, replace: &mut Replace) -> Self {
        match self {
            FocalAlpha::None => FocalAlpha::None,
            FocalAlpha::Balance(alpha) => FocalAlpha::Balance(*alpha),
            FocalAlpha::Classes(alpha) => FocalAlpha::Classes(replace(alpha)),
        }
    }
}

/// A copy shares the tensor.
impl Clone for FocalAlpha {
    fn clone(&self) -> Self {
        self.map_tensors(&mut Tensor::shallow_clone)
    }
}

impl FocalAlpha {
    /// The balance, where it is one for all classes.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            FocalAlpha::Balance(alpha) => Some(*alpha),
            _ => None,
        }
    }

    /// The part of [`f_check`](Self::f_check) that needs no input.
    pub(super) fn check_number(&self) -> Result<(), LossError> {
        match self {
            FocalAlpha::Classes(_) => Ok(()),
            number => number.f_check(&Tensor::new()),
        }
    }

    /// Checks that a balance is in \[0, 1\], and that a tensor has one value for each class of `input`.
    pub(super) fn f_check(&self, input: &Tensor) -> Result<(), LossError> {
        match self {
            FocalAlpha::None => Ok(()),
            FocalAlpha::Balance(alpha) => check::option(
                "alpha",
                alpha,
                (0.0..=1.0).contains(alpha),
                "a number in [0, 1], one for each class, or FocalAlpha::None",
            ),
            FocalAlpha::Classes(alpha) => f_check_classes(("alpha", alpha), input),
        }
    }

    /// The share α·`positive` of the positives and (1 − α)·`negative` of the negatives.
    pub(super) fn f_split(&self, positive: &Tensor, negative: &Tensor) -> Result<(Tensor, Tensor), LossError> {
        Ok(match self {
            FocalAlpha::None => (positive.shallow_clone(), negative.shallow_clone()),
            FocalAlpha::Balance(alpha) => (positive.f_mul_number(*alpha)?, negative.f_mul_number(1.0 - alpha)?),
            FocalAlpha::Classes(alpha) => {
                let alpha = f_per_class(alpha, positive)?;
                (positive.f_mul(&alpha)?, negative.f_mul(&alpha.f_rsub_number(1)?)?)
            }
        })
    }
}

/// `values` holds one value per class of `input`, on the same device.
pub(super) fn f_check_classes((argument, values): check::Named, input: &Tensor) -> Result<(), LossError> {
    check::devices(&[("input", input), (argument, values)])?;
    check::floating((argument, values))?;
    let classes = input.size()[check::class_dim(input)?];
    check::shape((argument, values), values.size() == [classes], format_args!("[{classes}], one value per class"))
}

/// One value per class, in the kind of `like` and in a shape that broadcasts along its classes.
pub(super) fn f_per_class(values: &Tensor, like: &Tensor) -> Result<Tensor, LossError> {
    let mut shape = vec![1; like.dim()];
    shape[check::class_dim(like)?] = -1;
    Ok(values.f_to_kind(like.f_kind()?)?.f_reshape(&shape)?)
}

/// log x, of a probability x that may have underflowed. There its gradient is 0 and not infinite.
pub(super) fn f_log(x: &Tensor) -> Result<Tensor, LossError> {
    let smallest = if x.f_kind()? == Kind::Double { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
    Ok(x.f_clamp_min_number(smallest)?.f_log()?)
}

/// log(1 − exp(`log_p`)), of a `log_p` ≤ 0.
pub(super) fn f_log_rest(log_p: &Tensor) -> Result<Tensor, LossError> {
    f_log(&log_p.f_expm1()?.f_neg()?)
}

/// The modulating factor (1 − pₜ)^γ.
#[derive(Debug, Clone, Copy)]
pub(super) struct Modulation {
    pub(super) gamma: f64,
    pub(super) reduced_threshold: Option<f64>,
}

impl Modulation {
    pub(super) fn check(&self) -> Result<(), LossError> {
        check::finite_not_negative("gamma", self.gamma)?;
        let Some(threshold) = self.reduced_threshold else { return Ok(()) };
        check::option("reduced_threshold", threshold, 0.0 < threshold && threshold <= 1.0, "a number in (0, 1]")
    }

    /// The power of 1 − pₜ that the factor is, if its derivatives are finite without a logarithm.
    pub(super) fn plain_power(&self) -> Option<f64> {
        let plain = self.reduced_threshold.is_none() && (self.gamma >= 2.0 || [0.0, 1.0].contains(&self.gamma));
        plain.then_some(self.gamma)
    }

    /// The factor, from log(1 − pₜ).
    ///
    /// It is an exponential of a logarithm, whose gradient is bounded for every γ. A power with an exponent below 1 has
    /// an infinite derivative at 0.
    pub(super) fn f_factor(&self, log_rest: &Tensor) -> Result<Tensor, LossError> {
        let Some(threshold) = self.reduced_threshold else {
            return Ok(log_rest.f_mul_number(self.gamma)?.f_exp()?);
        };
        let powers = log_rest.f_sub_number(threshold.ln())?.f_mul_number(self.gamma)?.f_exp()?;
        let hard = log_rest.f_gt_number((-threshold).ln_1p())?;
        Ok(powers.f_masked_fill_number(&hard, 1)?)
    }

    /// `losses` times the factor.
    pub(super) fn f_apply(
        &self,
        losses: &Tensor,
        log_rest: impl FnOnce() -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        if self.gamma == 0.0 {
            return Ok(losses.shallow_clone());
        }
        Ok(losses.f_mul(&self.f_factor(&log_rest()?)?)?)
    }
}

/// The elements of a loss that count: all but the ignored ones.
pub(super) struct Counted {
    /// Where an element is ignored, in a shape that broadcasts to that of the losses.
    pub(super) ignored: Option<Tensor>,
}

impl Counted {
    /// `tensor` with 0 in place of the ignored elements, which keeps what they hold out of value and gradient.
    pub(super) fn f_mask(&self, tensor: &Tensor) -> Result<Tensor, LossError> {
        f_filled(tensor, self.ignored.as_ref(), 0)
    }

    /// Logits whose ignored elements have neither a loss nor a gradient where the label is 0.
    pub(super) fn f_without_losses(&self, x: &Tensor) -> Result<Tensor, LossError> {
        f_filled(x, self.ignored.as_ref(), FAR)
    }

    /// The losses, divided by the sum of the `factors`.
    pub(super) fn f_normalize(
        &self,
        losses: &Tensor,
        factors: &Tensor,
        normalization: FocalNormalization,
    ) -> Result<Tensor, LossError> {
        let factors = self.f_mask(factors)?;
        let norm = match normalization {
            FocalNormalization::None => return Ok(losses.shallow_clone()),
            FocalNormalization::All => factors.f_sum(None)?,
            FocalNormalization::PerClass => {
                let classes = check::class_dim(losses)?;
                let others: Vec<i64> = (0..losses.dim()).filter(|dim| *dim != classes).map(|dim| dim as i64).collect();
                if others.is_empty() { factors } else { factors.f_sum_dim_intlist(others, true, None)? }
            }
        };
        Ok(losses.f_div(&norm.f_clamp_min_number(SMALLEST_NORM)?)?)
    }

    /// Reduces losses that are 0 where ignored.
    pub(super) fn f_reduce(
        &self,
        losses: &Tensor,
        reduction: Reduction,
        mean_over: MeanOver,
    ) -> Result<Tensor, LossError> {
        self.f_reduce_by(reduction, mean_over, losses, |losses, reduction| reduction.f_apply(losses))
    }

    /// The same of losses that `reduced` computes of `x` and reduces.
    pub(super) fn f_reduce_by(
        &self,
        reduction: Reduction,
        mean_over: MeanOver,
        x: &Tensor,
        reduced: impl FnOnce(&Tensor, Reduction) -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        let (Some(ignored), Reduction::Mean, MeanOver::Counted) = (&self.ignored, reduction, mean_over) else {
            return reduced(x, reduction);
        };
        let count = ignored.f_expand_as(x)?.f_logical_not()?.f_sum(None)?;
        // A sum may be too large for half precision.
        f_mean(&reduced(&f_wide(x)?, Reduction::Sum)?, &count)
    }

    /// The parts of the mean over the elements of `input`.
    pub(super) fn f_parts(
        &self,
        numerator: Tensor,
        input: &Tensor,
        mean_over: MeanOver,
    ) -> Result<MeanParts, LossError> {
        let (Some(ignored), MeanOver::Counted) = (&self.ignored, mean_over) else {
            return MeanParts::f_over(numerator, input.numel() as i64);
        };
        MeanParts::f_new(numerator, ignored.f_expand_as(input)?.f_logical_not()?.f_sum(Kind::Double)?)
    }
}

/// `total / count`, of losses that are 0 where they do not count. For a count of 0 it is 0 / 0, as a mean over no
/// elements is, and what was set to 0 has the gradient 0.
pub(super) fn f_mean(total: &Tensor, count: &Tensor) -> Result<Tensor, LossError> {
    Ok(total.f_div(count)?)
}
