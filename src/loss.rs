//! The trait that the losses of `(input, target)` share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor, no_grad_guard};

use crate::kernels::NumberOperations;
use crate::{LossError, MeanParts, OverNothing, WhenEmpty, option_tensors};

/// A loss of an input and a target.
///
/// Losses of other arguments (`anchor, positive, negative`, …) have methods of the same two names.
///
/// A loss can go to another thread, and so can a `Box<dyn Loss>`, which is a loss itself: a term of a
/// [`WeightedSum`](crate::WeightedSum), for example. A reference to one is a loss where threads may share it (`Sync`),
/// which a loss that owns tensors is not.
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
pub trait Loss: Send {
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

    /// Whether the mean is over nothing: a Boolean scalar on the device of the input. So it is where the denominator of
    /// [`f_parts`](Loss::f_parts) is 0, or for a loss that is no mean, where the input has no elements.
    ///
    /// # Errors
    /// Those of [`f_forward`](Loss::f_forward).
    fn f_is_empty(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let _guard = no_grad_guard();
        f_is_mean_of_nothing(self.f_parts(input, target), input)
    }

    /// The same loss with what it is where the mean is over nothing: an empty batch, or targets that are all ignored.
    /// By default that is what the reference of the loss has, NaN for most.
    ///
    /// ```
    /// use tch::Tensor;
    /// use tch_losses::{CrossEntropyLoss, Loss, WhenEmpty};
    ///
    /// let logits = Tensor::from_slice(&[1.0, 2.0]).view([1, 2]).set_requires_grad(true);
    /// let ignored = Tensor::from_slice(&[-100_i64]);
    /// let criterion = CrossEntropyLoss::new();
    /// assert!(f64::try_from(criterion.f_forward(&logits, &ignored)?)?.is_nan());
    ///
    /// let criterion = criterion.when_empty(WhenEmpty::Zero);
    /// let loss = criterion.f_forward(&logits, &ignored)?;
    /// loss.f_backward()?;
    /// assert_eq!(f64::try_from(&loss)?, 0.0);
    /// assert_eq!(Vec::<f64>::try_from(logits.grad().view(-1))?, [0.0, 0.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn when_empty(self, when_empty: WhenEmpty) -> OverNothing<Self>
    where
        Self: Sized,
    {
        OverNothing::new(self, when_empty)
    }

    /// Checks the options that need no input to be looked at: a label smoothing of 2 is wrong for every input. The first
    /// step of [`f_forward`](Loss::f_forward); a program that reads options from a file calls it at the start.
    ///
    /// # Errors
    /// [`LossError::Option`] for the option at fault.
    fn f_check_options(&self) -> Result<(), LossError> {
        Ok(())
    }

    /// The same loss with each tensor among its options replaced, such as the weights of classes; parameters stay. `None`
    /// where the loss does not say how, which is the default.
    ///
    /// A loss of your own that has it can be moved and copied where it is a `Box<dyn Loss>`, and in a
    /// [`WeightedSum`](crate::WeightedSum). One without tensors returns a copy of itself.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor, no_grad_guard};
    /// use tch_losses::{Loss, LossError, MseLoss};
    ///
    /// struct Scaled {
    ///     scale: Tensor,
    /// }
    ///
    /// impl Loss for Scaled {
    ///     fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    ///         MseLoss::new().f_forward(&input.f_mul(&self.scale)?, target)
    ///     }
    ///
    ///     fn with_tensors(&self, replace: &mut dyn FnMut(&Tensor) -> Tensor) -> Option<Box<dyn Loss>> {
    ///         Some(Box::new(Scaled { scale: replace(&self.scale) }))
    ///     }
    /// }
    ///
    /// let boxed: Box<dyn Loss> = Box::new(Scaled { scale: Tensor::from(2_f32) });
    /// let moved = boxed.f_to(Device::cuda_if_available(), Kind::Double)?;
    /// # let _ = moved;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn with_tensors(&self, replace: &mut dyn FnMut(&Tensor) -> Tensor) -> Option<Box<dyn Loss>> {
        let _ = replace;
        None
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

impl<L: Loss + Sync + ?Sized> Loss for &L {
    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        (**self).f_forward(input, target)
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        (**self).f_parts(input, target)
    }

    fn f_is_empty(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        (**self).f_is_empty(input, target)
    }

    fn f_check_options(&self) -> Result<(), LossError> {
        (**self).f_check_options()
    }

    fn with_tensors(&self, replace: &mut dyn FnMut(&Tensor) -> Tensor) -> Option<Box<dyn Loss>> {
        (**self).with_tensors(replace)
    }
}

impl<L: Loss + ?Sized> Loss for Box<L> {
    fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        (**self).f_forward(input, target)
    }

    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        (**self).f_parts(input, target)
    }

    fn f_is_empty(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        (**self).f_is_empty(input, target)
    }

    fn f_check_options(&self) -> Result<(), LossError> {
        (**self).f_check_options()
    }

    fn with_tensors(&self, replace: &mut dyn FnMut(&Tensor) -> Tensor) -> Option<Box<dyn Loss>> {
        (**self).with_tensors(replace)
    }
}

/// Whether the denominator of a mean is 0; for a loss that is none, whether its input has no elements.
fn f_is_mean_of_nothing(parts: Result<MeanParts, LossError>, input: &Tensor) -> Result<Tensor, LossError> {
    match parts {
        Ok(parts) => Ok(parts.denominator().f_eq_number(0)?),
        Err(LossError::NoMean { .. }) => f_has_no_elements(input),
        Err(error) => Err(error),
    }
}

/// Whether a tensor has no elements, as a Boolean scalar on its device.
pub(crate) fn f_has_no_elements(input: &Tensor) -> Result<Tensor, LossError> {
    Ok(Tensor::f_full_number(&[], i64::from(input.numel() == 0), (Kind::Bool, input.device()))?)
}

/// What all losses of this crate have, for one that was chosen at run time.
impl dyn Loss {
    /// The same loss with the tensors among its options on `device` and in `kind`, such as those of the input. Boolean
    /// tensors and integers keep their kind. Parameters stay where they are: they move with the `nn::VarStore` that they
    /// were created in.
    ///
    /// # Errors
    /// [`LossError::Kind`] for a kind that is not floating, [`LossError::NoTensors`] for a loss of another crate that has
    /// no [`with_tensors`](Loss::with_tensors), [`LossError::Torch`] where libtorch cannot make the tensors.
    pub fn f_to(&self, device: Device, kind: Kind) -> Result<Box<dyn Loss>, LossError> {
        let moved = option_tensors::f_with(device, kind, |replace| self.with_tensors(replace))?;
        moved.ok_or(LossError::NoTensors)
    }

    /// A copy of the loss, which shares its tensors.
    ///
    /// # Errors
    /// [`LossError::NoTensors`] for a loss of another crate that has no [`with_tensors`](Loss::with_tensors).
    pub fn f_clone(&self) -> Result<Box<dyn Loss>, LossError> {
        self.with_tensors(&mut Tensor::shallow_clone).ok_or(LossError::NoTensors)
    }
}

/// A loss that is part of another one, and can be copied with it.
pub(crate) struct Part(Arc<Mutex<Box<dyn Loss>>>);

impl Part {
    pub(crate) fn new(loss: Box<dyn Loss>) -> Self {
        Part(Arc::new(Mutex::new(loss)))
    }

    /// The loss; one thread has it at a time.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Box<dyn Loss>> {
        // A loss that panicked is what it was before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A loss that does not say how it is copied is shared.
impl Clone for Part {
    fn clone(&self) -> Self {
        self.lock().f_clone().map_or_else(|_| Part(Arc::clone(&self.0)), Part::new)
    }
}

/// The method that panics where another one of the loss returns an error.
macro_rules! or_panic {
    ($forward:ident as $f_forward:ident($($argument:ident: $type:ty),+) -> $result:ty) => {
        #[doc = concat!("Computes the loss as [`", stringify!($f_forward), "`](Self::", stringify!($f_forward), ") does.")]
        ///
        /// # Panics
        #[doc = concat!("Where `", stringify!($f_forward), "` returns an error, with its message.")]
        #[track_caller]
        pub fn $forward(&self, $($argument: $type),+) -> $result {
            $crate::loss::expect(self.$f_forward($($argument),+))
        }
    };
}
pub(crate) use or_panic;

/// The value, or a panic with the error's one line at the caller's line.
#[track_caller]
pub(crate) fn expect<T>(result: Result<T, LossError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
