//! A mean whose numerator and denominator are still apart.

use tch::{Kind, Tensor};

use crate::kernels::NumberOperations;
use crate::{Loss, LossError, WhenEmpty};

/// The numerator and the denominator of a loss that is a mean, for means over several calls.
///
/// A mean of means is wrong wherever the parts of a batch count differently: micro-batches with different numbers of
/// ignored targets, sequences of different lengths, classes of different weights, workers with a shorter last batch.
/// The right mean is the sum of the numerators divided by the sum of the denominators: what one call with the whole
/// batch returns.
///
/// The losses that are means have a method `f_parts` which returns them, whatever their option `reduction`:
///
/// | mean of | numerator | denominator |
/// |---|---|---|
/// | most losses | Σ ℓ | the number of unreduced losses |
/// | cross entropy, NLL, softmax focal loss of class indices | Σ ℓ | Σ w\[y\] of the counted targets, or their number |
/// | the same with [`MeanOver::All`](crate::MeanOver::All), or of class probabilities | Σ ℓ | the number of targets |
/// | MSE and L1 with weights | Σ w ℓ | Σ w |
/// | the focal losses of sigmoids | Σ ℓ | the number of elements that are not ignored |
/// | KL divergence and multi-label losses with a batch mean | Σ ℓ | the size of the first dimension |
/// | CTC | Σ ℓ / target length | the number of sequences |
///
/// A loss that is no mean, such as Dice, has no parts: [`LossError::NoMean`].
///
/// The numerator has the graph; it is a scalar in the kind of the input, and in `Float` for half precision, because a
/// sum in `f16` overflows at 65504. The denominator is a `Double` scalar on the same device.
///
/// # Example: gradient accumulation, with a denominator that is known before
///
/// Here it is the number of targets that are not ignored. Each micro-batch is divided by that of all of them at once.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_losses::{CrossEntropyLoss, Loss};
///
/// let input = Tensor::randn([4, 3], (Kind::Double, Device::Cpu)).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0_i64, -100, 2, 1]);
/// let criterion = CrossEntropyLoss::new();
///
/// let total = target.ne(-100).sum(Kind::Double);
/// for (input, target) in input.split(3, 0).iter().zip(target.split(3, 0)) {
///     let parts = criterion.f_parts(input, &target)?;
///     (parts.numerator() / &total).f_backward()?;
/// }
/// let accumulated = input.grad().copy();
///
/// input.grad().zero_();
/// criterion.f_forward(&input, &target)?.f_backward()?; // one big batch
/// assert!(accumulated.allclose(&input.grad(), 1e-12, 1e-12, false));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Example: gradient accumulation, with a denominator that is known at the end
///
/// The gradients of the numerators add up, and are scaled before the optimizer's step (and before they are clipped).
///
/// ```
/// use tch::{Device, Kind, Tensor, nn, nn::OptimizerConfig};
/// use tch_losses::{CrossEntropyLoss, Loss, MeanParts};
///
/// let store = nn::VarStore::new(Device::Cpu);
/// let layer = nn::linear(store.root(), 5, 3, Default::default());
/// let mut optimizer = nn::Sgd::default().build(&store, 0.1)?;
/// let criterion = CrossEntropyLoss::new().weight(Tensor::from_slice(&[0.5_f32, 1.0, 2.0]));
///
/// let batches = [3, 1].map(|n| (Tensor::randn([n, 5], (Kind::Float, Device::Cpu)), Tensor::ones(n, (Kind::Int64,
/// Device::Cpu))));
///
/// optimizer.zero_grad();
/// let mut sum: Option<MeanParts> = None;
/// for (input, target) in &batches {
///     let parts = criterion.f_parts(&input.apply(&layer), target)?;
///     parts.numerator().f_backward()?;
///     let parts = parts.f_detach()?; // the graph of this micro-batch ends here
///     sum = Some(match sum {
///         Some(sum) => sum.f_add(&parts)?,
///         None => parts,
///     });
/// }
/// let sum = sum.ok_or("no batch")?;
/// for variable in store.trainable_variables() {
///     let _ = variable.grad().f_div_(sum.denominator())?;
/// }
/// optimizer.step();
/// println!("loss {}", f64::try_from(sum.f_value()?)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Data-parallel workers sum up both tensors over all workers (an all-reduce) in place of `f_add`; with the feature
/// `distributed` that is `f_over_ranks`.
#[derive(Debug)]
pub struct MeanParts {
    numerator: Tensor,
    denominator: Tensor,
    /// The least that the denominator counts as: 1 for a number of positives that may be 0.
    least: f64,
    /// What the mean over nothing is; none is 0 / 0.
    when_empty: Option<WhenEmpty>,
}

impl MeanParts {
    /// The parts of a mean of your own. They are scalars.
    ///
    /// # Errors
    /// [`LossError::Shape`] for a tensor that is no scalar.
    pub fn f_new(numerator: Tensor, denominator: Tensor) -> Result<Self, LossError> {
        for named in [("numerator", &numerator), ("denominator", &denominator)] {
            crate::check::defined(named)?;
            if named.1.dim() != 0 {
                return Err(crate::check::shape_error(named, "[], a scalar"));
            }
        }
        Ok(Self { numerator, denominator, least: 0.0, when_empty: None })
    }

    /// The same of a mean whose denominator, that of all calls together, counts as `least` where it is smaller.
    pub(crate) fn at_least(self, least: f64) -> Self {
        Self { least, ..self }
    }

    /// The same of a mean that is something else over nothing.
    pub(crate) fn when_empty(self, when_empty: WhenEmpty) -> Self {
        Self { when_empty: Some(when_empty), ..self }
    }

    /// The parts of the same mean over something else.
    #[cfg(feature = "distributed")]
    pub(crate) fn f_over_others(&self, numerator: Tensor, denominator: Tensor) -> Result<Self, LossError> {
        Ok(Self { least: self.least, when_empty: self.when_empty, ..Self::f_new(numerator, denominator)? })
    }

    /// The sum of the losses, with its graph.
    pub fn numerator(&self) -> &Tensor {
        &self.numerator
    }

    /// What the sum is to be divided by. A number of positives, or a sum of weights, of a [`Divisor`](crate::Divisor)
    /// is at least 1 in the mean, and is here what it is, so that those of several calls can be added up.
    pub fn denominator(&self) -> &Tensor {
        &self.denominator
    }

    /// The mean, in the kind of the numerator. Where the denominator is 0 it is NaN, or what
    /// [`Loss::when_empty`] has set; for the losses of boxes it is 0, as their own mean over no boxes is.
    ///
    /// # Errors
    /// [`LossError::Torch`] where libtorch cannot divide them, [`LossError::Empty`] where that was asked for.
    pub fn f_value(&self) -> Result<Tensor, LossError> {
        if let Some(when_empty) = self.when_empty {
            return self.f_value_when_empty(when_empty);
        }
        Ok(self.numerator.f_div(&self.f_divisor()?)?.f_to_kind(self.numerator.f_kind()?)?)
    }

    /// The denominator with its bound.
    fn f_divisor(&self) -> Result<Tensor, LossError> {
        match self.least {
            0.0 => Ok(self.denominator.shallow_clone()),
            least => Ok(self.denominator.f_clamp_min_number(least)?),
        }
    }

    /// The mean, in the kind of the numerator; where the denominator is 0, what `when_empty` says.
    ///
    /// ```
    /// use tch::{Kind, Tensor};
    /// use tch_losses::{TripletMarginLoss, WhenEmpty};
    ///
    /// let none = Tensor::zeros([0, 4], (Kind::Float, tch::Device::Cpu));
    /// let parts = TripletMarginLoss::new().f_parts(&none, &none, &none)?;
    /// assert_eq!(f64::try_from(parts.f_value_when_empty(WhenEmpty::Zero)?)?, 0.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`LossError::Empty`] where that was asked for, [`LossError::Torch`] where libtorch cannot divide them.
    pub fn f_value_when_empty(&self, when_empty: WhenEmpty) -> Result<Tensor, LossError> {
        let divisor = self.f_divisor()?;
        let empty = divisor.f_eq_number(0)?;
        // 0 / 0 would have a gradient of NaN.
        let mean = self.numerator.f_div(&divisor.f_masked_fill_number(&empty, 1)?)?;
        when_empty.f_choose(&mean.f_to_kind(self.numerator.f_kind()?)?, &empty)
    }

    /// The parts of the mean over what both are means of.
    ///
    /// # Errors
    /// [`LossError::Torch`] where libtorch cannot add them, such as those of two devices.
    pub fn f_add(&self, other: &Self) -> Result<Self, LossError> {
        let numerator = self.numerator.f_add(&other.numerator)?;
        let (denominator, least) = (self.denominator.f_add(&other.denominator)?, self.least.max(other.least));
        Ok(Self { numerator, denominator, least, when_empty: self.when_empty.or(other.when_empty) })
    }

    /// The same without the graph: to add up means over an epoch without keeping what computed them.
    ///
    /// # Errors
    /// [`LossError::Torch`] where libtorch fails.
    pub fn f_detach(&self) -> Result<Self, LossError> {
        Ok(Self { numerator: self.numerator.f_detach()?, denominator: self.denominator.f_detach()?, ..*self })
    }

    /// The parts of a mean over `count` losses.
    pub(crate) fn f_over(numerator: Tensor, count: i64) -> Result<Self, LossError> {
        let denominator = Tensor::f_full_number(&[], count, (Kind::Double, numerator.device()))?;
        Self::f_new(numerator, denominator)
    }

    /// The parts of the mean of what the `unreduced` loss gives. Half precision becomes single precision before, so
    /// that no loss is rounded to it, and none too large for it.
    pub(crate) fn f_of_unreduced(unreduced: &impl Loss, input: &Tensor, target: &Tensor) -> Result<Self, LossError> {
        Self::f_of_losses(&unreduced.f_forward(&f_wide(input)?, &f_wide(target)?)?)
    }

    /// The parts of the mean of unreduced losses.
    pub(crate) fn f_of_losses(losses: &Tensor) -> Result<Self, LossError> {
        Self::f_over(f_wide_sum(losses)?, losses.numel() as i64)
    }

    /// The same numerator over `count`.
    pub(crate) fn f_with_count(self, count: i64) -> Result<Self, LossError> {
        Self::f_over(self.numerator, count)
    }

    /// The parts of a mean whose losses have the shape of `input` and `target`, broadcast against each other; with
    /// `weight` it is over the sum of that.
    pub(crate) fn f_of_elements(
        numerator: Tensor,
        input: &Tensor,
        target: &Tensor,
        weight: Option<&Tensor>,
    ) -> Result<Self, LossError> {
        match weight {
            Some(weight) => Self::f_new(numerator, weight.f_sum(Kind::Double)?),
            None => Self::f_over(numerator, broadcast_shape(input, target).iter().product()),
        }
    }

    /// The same of a loss that is the sum, computed in single precision at least.
    pub(crate) fn f_of_sum(
        sum: &impl Loss,
        input: &Tensor,
        target: &Tensor,
        weight: Option<&Tensor>,
    ) -> Result<Self, LossError> {
        let numerator = sum.f_forward(&f_wide(input)?, &f_wide(target)?)?;
        Self::f_of_elements(numerator, input, target, weight)
    }

    /// The parts of a mean over rows of `classes`, of which the ignored ones do not count, each with the weight of its
    /// target's class.
    pub(crate) fn f_of_counted(
        numerator: Tensor,
        target: &Tensor,
        classes: i64,
        ignore_index: Option<i64>,
        weight: Option<&Tensor>,
    ) -> Result<Self, LossError> {
        let target = target.f_to_kind(Kind::Int64)?;
        let mut counts = match weight {
            // A class out of range, which made the numerator NaN, must not be looked up.
            Some(weight) if target.numel() > 0 => {
                weight.f_to_kind(Kind::Double)?.f_take(&target.f_clamp_number(0, (classes - 1).max(0))?)?
            }
            _ => target.f_ones_like()?.f_to_kind(Kind::Double)?,
        };
        if let Some(ignored) = ignore_index {
            counts = counts.f_masked_fill_number(&target.f_eq_number(ignored)?, 0)?;
        }
        Self::f_new(numerator, counts.f_sum(None)?)
    }
}

/// The method `f_parts` of a [`Loss`] that is a mean over its elements, by the same loss with another reduction:
/// `unreduced`; `sum`; `weighted sum over elements`, whose mean does not divide by the weights; or
/// `weighted sum over weights`, whose mean does. The weights of half precision become those of single precision before.
macro_rules! parts {
    (unreduced) => {
        $crate::mean_parts::parts! { @with loss [Reduction::None] => f_of_unreduced() }
    };
    (sum) => {
        $crate::mean_parts::parts! { @with loss [Reduction::Sum] => f_of_sum(None) }
    };
    (weighted sum over elements) => {
        $crate::mean_parts::parts! { @weighted loss => None }
    };
    (weighted sum over weights) => {
        $crate::mean_parts::parts! { @weighted loss => loss.weight.as_ref() }
    };
    (@weighted $loss:ident => $weight:expr) => {
        $crate::mean_parts::parts! { @with $loss
            [Reduction::Sum, weight: $crate::mean_parts::f_wide_option] => f_of_sum($weight)
        }
    };
    (@with $loss:ident
        [Reduction::$reduction:ident $(, $weight:ident: $f_wide:path)?] => $f_of:ident($($of:expr)?)
    ) => {
        fn f_parts(&self, input: &tch::Tensor, target: &tch::Tensor) -> Result<$crate::MeanParts, $crate::LossError> {
            let $loss = Self {
                reduction: $crate::Reduction::$reduction,
                $($weight: $f_wide(&self.$weight)?,)?
                ..Self::clone(self)
            };
            $crate::MeanParts::$f_of(&$loss, input, target $(, $of)?)
        }
    };
}
pub(crate) use parts;

/// `tensor`, in single precision where it has half of it.
pub(crate) fn f_wide(tensor: &Tensor) -> Result<Tensor, LossError> {
    match tensor.f_kind() {
        Ok(Kind::Half | Kind::BFloat16) => Ok(tensor.f_to_kind(Kind::Float)?),
        _ => Ok(tensor.shallow_clone()),
    }
}

/// An optional tensor, as [`f_wide`].
pub(crate) fn f_wide_option(tensor: &Option<Tensor>) -> Result<Option<Tensor>, LossError> {
    tensor.as_ref().map(f_wide).transpose()
}

/// The sum of all elements, in single precision at least.
fn f_wide_sum(losses: &Tensor) -> Result<Tensor, LossError> {
    Ok(losses.f_sum(crate::numeric::wide_kind(losses)?)?)
}

/// The number of rows of an input without its classes, where `class_dim` are those.
pub(crate) fn rows(input: &Tensor, class_dim: usize) -> i64 {
    let sizes = input.size().into_iter().enumerate();
    sizes.filter(|(dim, _)| *dim != class_dim).map(|(_, size)| size).product()
}

/// The shape of two tensors that broadcast against each other.
pub(crate) fn broadcast_shape(a: &Tensor, b: &Tensor) -> Vec<i64> {
    let (mut long, mut short) = (a.size(), b.size());
    if long.len() < short.len() {
        std::mem::swap(&mut long, &mut short);
    }
    let offset = long.len() - short.len();
    for (size, &other) in long[offset..].iter_mut().zip(&short) {
        if *size == 1 {
            *size = other;
        }
    }
    long
}
