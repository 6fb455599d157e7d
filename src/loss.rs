//! The trait that the losses of `(input, target)` share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor, no_grad_guard};

use crate::kernels::{Backend, NumberOperations, with_backend};
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
    /// They are those of the mean also if the option `reduction` is the sum or none.
    ///
    /// # Errors
    /// Those of [`f_forward`](Loss::f_forward), and [`LossError::NoMean`] for a loss that is not a mean, such as Dice.
    fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<MeanParts, LossError> {
        let _ = (input, target);
        Err(LossError::no_mean::<Self>("it is no mean over samples or elements"))
    }

    /// Whether there is nothing to average over, as a Boolean scalar on the device of the input: the denominator of
    /// [`f_parts`](Loss::f_parts) is 0, or, for a loss that is not a mean, the input has no elements.
    ///
    /// # Errors
    /// Those of [`f_forward`](Loss::f_forward).
    fn f_is_empty(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let _guard = no_grad_guard();
        f_is_mean_of_nothing(self.f_parts(input, target), input)
    }

    /// The same loss with a value of your choice where there is nothing to average over: for an empty batch, or if all
    /// targets are ignored. Without it the loss is what the reference implementation returns, NaN for most.
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

    /// Checks the options that can be checked without an input: a label smoothing of 2 is wrong for every input. The
    /// first step of [`f_forward`](Loss::f_forward); a program that reads options from a file calls it at the start.
    ///
    /// # Errors
    /// [`LossError::Option`] for the option at fault.
    fn f_check_options(&self) -> Result<(), LossError> {
        Ok(())
    }

    /// The same loss with each tensor among its options replaced, such as the weights of classes; parameters are not
    /// replaced. The default is `None`: the loss does not support it.
    ///
    /// With this method a loss of your own can be moved and copied as a `Box<dyn Loss>` and in a
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

    /// The loss and its options in words, which ranks compare before a call over all of them. A loss whose ranks have
    /// other options is [`LossError::Ranks`] then. The default is `None`: nothing is compared. The `Debug` text will do.
    #[cfg(feature = "distributed")]
    fn described(&self) -> Option<String> {
        None
    }

    /// The mean over the batches of all ranks of a group, which may be of different sizes, on every rank: the
    /// [parts](Loss::f_parts) of all ranks [together](MeanParts::f_over_ranks).
    ///
    /// Its value is that of one process with the whole batch, and the average of the gradients over ranks is that of one
    /// process. A rank whose call is an error tells the others.
    ///
    /// # Errors
    /// Those of [`f_parts`](Loss::f_parts) and [`MeanParts::f_over_ranks`], and [`LossError::Ranks`] where the
    /// [options](Loss::described) of ranks differ.
    #[cfg(feature = "distributed")]
    fn f_mean_over_ranks(
        &self,
        input: &Tensor,
        target: &Tensor,
        group: &crate::distributed::Group,
    ) -> Result<Tensor, LossError> {
        let group = group.of_loss(self.described(), |replace| drop(self.with_tensors(replace)));
        let parts = group.f_or_refuse(self.f_parts(input, target))?;
        Ok(parts.f_over_ranks(&group)?.f_value()?.f_to_kind(crate::numeric::result_kind(input)?)?)
    }

    /// The loss of the batches of all ranks of a group, one after the other, on every rank. Their first dimensions are
    /// the samples, whose number may be another one on each rank.
    ///
    /// For a loss that is no mean over samples, such as Dice of a whole batch, N-pairs or one of proxies. Every rank
    /// gathers what all have, and computes the whole loss: where there is a mean choose
    /// [`f_mean_over_ranks`](Loss::f_mean_over_ranks), which sends two numbers. Its value is that of one process with
    /// the whole batch, and the average of the gradients over ranks is that of one process.
    ///
    /// # Errors
    /// Those of [`f_forward`](Loss::f_forward), [`LossError::Shape`] for an input and a target of different numbers of
    /// samples, and those of [`Group::f_all_gather`](crate::distributed::Group::f_all_gather).
    #[cfg(feature = "distributed")]
    fn f_whole_over_ranks(
        &self,
        input: &Tensor,
        target: &Tensor,
        group: &crate::distributed::Group,
    ) -> Result<Tensor, LossError> {
        let group = group.of_loss(self.described(), |replace| drop(self.with_tensors(replace)));
        group.f_or_refuse(f_same_samples(input, target))?;
        self.f_forward(&group.f_gather_for_same_loss(input)?, &group.f_gather_for_same_loss(target)?)
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

/// The methods of a pointer to a loss: those of the loss.
macro_rules! of_the_inner {
    () => {
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

        #[cfg(feature = "distributed")]
        fn described(&self) -> Option<String> {
            (**self).described()
        }
    };
}

impl<L: Loss + Sync + ?Sized> Loss for &L {
    of_the_inner!();
}

impl<L: Loss + ?Sized> Loss for Box<L> {
    of_the_inner!();
}

/// Checks that there is a target for each sample of the input, along the first dimensions.
#[cfg(feature = "distributed")]
fn f_same_samples(input: &Tensor, target: &Tensor) -> Result<(), LossError> {
    use crate::check;

    check::arguments(input, target)?;
    check::shape(("input", input), input.dim() > 0, "at least one dimension, that of the samples")?;
    let samples = input.size()[0];
    let fits = target.size().first() == Some(&samples);
    check::shape(("target", target), fits, format_args!("[{samples}, …], as many samples as input"))
}

/// Whether the denominator of a mean is 0; for a loss that is not a mean, whether its input has no elements.
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

/// The methods `f_to` and `f_clone` of losses, for a loss that was chosen at run time.
impl dyn Loss {
    /// The same loss with the tensors among its options on `device` and in `kind`, such as those of the input. Boolean
    /// tensors and integers keep their kind. Parameters stay where they are: they move with the `nn::VarStore` that
    /// they were created in.
    ///
    /// # Errors
    /// [`LossError::Kind`] for a kind that is not floating, [`LossError::NoTensors`] for a loss of another crate that
    /// has no [`with_tensors`](Loss::with_tensors), [`LossError::Torch`] where libtorch cannot make the tensors.
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

    /// The loss, in a mutex because losses are not `Sync`.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Box<dyn Loss>> {
        // A panic does not change a loss, so that a poisoned mutex can be ignored.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A loss that cannot be copied is shared.
impl Clone for Part {
    fn clone(&self) -> Self {
        self.lock().f_clone().map_or_else(|_| Part(Arc::clone(&self.0)), Part::new)
    }
}

/// The closure that computes a loss by tensor operations alone, which the engine needs for second derivatives.
pub(crate) fn composite(loss: impl Loss + 'static) -> impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send {
    move |input, target| with_backend(Backend::Composite, || loss.f_forward(input, target))
}

/// The method that panics where another one returns an error.
///
/// ```text
/// or_panic!(forward as f_forward(input: &Tensor) -> Tensor);
/// or_panic!("Finds the most probable classes", predict['a] as f_predict(input: &'a Tensor) -> Tensor);
/// or_panic!("Creates the variables on `path`", new['a] as new f_new(path: nn::Path<'a>) -> Self);
/// ```
///
/// A text before the name is the documentation of a method that does not compute the loss. In brackets are its
/// generics. `new` before the second name marks a constructor.
macro_rules! or_panic {
    ($forward:ident as $($method:tt)+) => {
        $crate::loss::or_panic! { "Computes the loss", $forward[] as $($method)+ }
    };
    ($does:literal, $new:ident[$($generic:tt)*] as
        new $f_new:ident($($argument:ident: $type:ty),+ $(,)?) -> $of:ty
    ) => {
        $crate::loss::or_panic! { @ $does $new [$($generic)*] $f_new [] [Self::] [$($argument: $type,)+] [$of] }
    };
    ($does:literal, $forward:ident[$($generic:tt)*] as
        $f_forward:ident($($argument:ident: $type:ty),+ $(,)?) -> $of:ty
    ) => {
        $crate::loss::or_panic! { @ $does $forward [$($generic)*] $f_forward
            [&self,] [self.] [$($argument: $type,)+] [$of]
        }
    };
    (@ $does:literal $method:ident [$($generic:tt)*] $f_method:ident [$($this:tt)*] [$($of:tt)+]
        [$($argument:ident: $type:ty,)+] [$result:ty]
    ) => {
        #[doc = concat!($does, " as [`", stringify!($f_method), "`](Self::", stringify!($f_method), ") does.")]
        ///
        /// # Panics
        #[doc = concat!("Where `", stringify!($f_method), "` returns an error, with its message.")]
        #[track_caller]
        pub fn $method<$($generic)*>($($this)* $($argument: $type),+) -> $result {
            $crate::loss::expect($($of)+ $f_method($($argument),+))
        }
    };
}
pub(crate) use or_panic;

/// The value, or a panic at the caller's line with the error as its message.
#[track_caller]
pub(crate) fn expect<T>(result: Result<T, LossError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
