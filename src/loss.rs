//! The trait that the losses of `(input, target)` share.

use tch::Tensor;

use crate::{LossError, MeanParts};

/// A loss of an input and a target.
///
/// Losses of other arguments (`anchor, positive, negative`, …) have methods of the same two names.
///
/// # Example: choose a loss at run time
///
/// ```
/// use tch::Tensor;
/// use tch_losses::{HuberLoss, Loss, MseLoss};
///
/// fn by_name(name: &str) -> Option<Box<dyn Loss>> {
///     match name {
///         "mse" => Some(Box::new(MseLoss::new())),
///         "huber" => Some(Box::new(HuberLoss::new().delta(2.0))),
///         _ => None,
///     }
/// }
///
/// let criterion = by_name("mse").ok_or("no such loss")?;
/// let input = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
/// let loss = criterion.f_forward(&input, &Tensor::from_slice(&[1.0, 4.0]))?;
/// loss.backward();
/// assert_eq!(f64::try_from(loss)?, 2.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Loss {
    /// Computes the loss, with a graph where an argument requires a gradient.
    ///
    /// # Errors
    /// A [`LossError`] that names the argument or option at fault.
    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError>;

    /// The numerator and the denominator of the mean, for means over several calls: gradient accumulation, sequences of
    /// several lengths, data-parallel workers. [`MeanParts`] says what they are, and shows the two ways to use them.
    ///
    /// They are those of the mean also where the option `reduction` is another one.
    ///
    /// # Errors
    /// Those of [`f_forward`](Loss::f_forward), and [`LossError::NoMean`] for a loss that is no mean, such as Dice.
    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let _ = (input, target);
        Err(LossError::no_mean::<Self>("it is no mean over samples or elements"))
    }

    /// Computes the loss as [`f_forward`](Loss::f_forward) does.
    ///
    /// # Panics
    /// Where `f_forward` returns an error, with its message.
    #[track_caller]
    fn forward(&self, input: &Tensor, target: &Tensor) -> Tensor {
        expect(self.f_forward(input, target))
    }
}

impl<L: Loss + ?Sized> Loss for &L {
    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        (**self).f_forward(input, target)
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        (**self).f_parts(input, target)
    }
}

impl<L: Loss + ?Sized> Loss for Box<L> {
    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        (**self).f_forward(input, target)
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        (**self).f_parts(input, target)
    }
}

/// The value, or a panic with the error's one line at the caller's line.
#[track_caller]
pub(crate) fn expect<T>(result: Result<T, LossError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
