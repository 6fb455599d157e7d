//! What happens to values for which no loss is defined, and what GPUs have found of them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::{LossError, kernels};

/// What happens to values for which no loss is defined: a class index out of range, a probability outside \[0, 1\], a
/// negative variance.
///
/// On the CPU the check costs next to nothing, and such a value is an error of the call. On CUDA the host would have to
/// read the result of the check, and so to wait for all work that was queued before it. So the call succeeds there, the
/// loss is NaN, and the GPU remembers what it has found, until [`f_check`](Self::f_check) asks for it. Without any check
/// such a value would trigger a device-side assertion, after which no CUDA work of the process succeeds.
///
/// ```
/// use tch::Device;
/// use tch_losses::InvalidValues;
///
/// // In a training on CUDA, at the end of each epoch, where the host reads the mean of the losses anyway:
/// InvalidValues::f_check(Device::cuda_if_available())?;
/// # Ok::<(), tch_losses::LossError>(())
/// ```
///
/// # The default of the process
///
/// A loss that is made without its option `invalid_values` has [`InvalidValues::default`] of that moment: an error, or
/// what a program has [set](InvalidValues::set_default) for all losses that it makes from then on. A loss that exists
/// keeps what it has. Data that describe a loss mean the same in every process: where they are silent, values are an
/// error, and a loss is written with the option where it is another one.
///
/// ```
/// use tch_losses::InvalidValues;
///
/// // While looking for the batch that has wrong labels, on CUDA:
/// InvalidValues::set_default(InvalidValues::ErrorAtOnce);
/// assert_eq!(InvalidValues::default(), InvalidValues::ErrorAtOnce);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum InvalidValues {
    /// They are a [`LossError::Value`]: on the CPU of the call, on CUDA of the next [`f_check`](Self::f_check), and make
    /// the loss NaN until then. The default, where the program has set no other.
    Error,
    /// They are a [`LossError::Value`] of the call on CUDA, too, which waits for the GPU in each call.
    ErrorAtOnce,
    /// They make the loss NaN and its gradient 0, without an error and without waiting for the device.
    Nan,
}

/// The place in [`ALL`] of the default of the process.
static DEFAULT: AtomicU8 = AtomicU8::new(0);
const ALL: [InvalidValues; 3] = [InvalidValues::Error, InvalidValues::ErrorAtOnce, InvalidValues::Nan];

thread_local! {
    /// Whether this thread makes a loss whose defaults are those of the documentation, whatever the process has set.
    static DOCUMENTED: Cell<bool> = const { Cell::new(false) };
}

/// What an argument is expected to hold: its name, and its range.
type Expectation = (&'static str, String);

/// For each expectation that GPU `n` has looked at, a Boolean on that GPU: whether all values were valid so far. The
/// CPU counts as a GPU where a test [asks](kernels::like_cuda) for that.
static VALID: Mutex<BTreeMap<(Option<usize>, Expectation), Tensor>> = Mutex::new(BTreeMap::new());

impl InvalidValues {
    /// Sets the default of all losses that this process makes from now on, on any thread.
    pub fn set_default(default: InvalidValues) {
        let place = ALL.iter().position(|mode| *mode == default).unwrap_or(0);
        DEFAULT.store(place as u8, Ordering::Relaxed);
    }

    /// An error if losses on `device` have met an invalid value since the last call of this function, with
    /// [`InvalidValues::Error`] in force. It waits for the device, as a look at a loss does. On the CPU there is nothing
    /// to ask for.
    ///
    /// Calls that a CUDA graph has recorded tell of its last replay.
    ///
    /// # Errors
    /// A [`LossError::Value`] that names the argument and the range of its values.
    pub fn f_check(device: Device) -> Result<(), LossError> {
        let index = index_of(device);
        let (expectations, found): (Vec<_>, Vec<_>) = {
            let valid = valid();
            let of_device = valid.iter().filter(|((of, _), _)| *of == index);
            of_device.map(|((_, expectation), valid)| (expectation.clone(), valid.shallow_clone())).unzip()
        };
        if found.is_empty() {
            return Ok(());
        }
        let mut are_valid = vec![0_u8; found.len()];
        let read = Tensor::f_stack(&found, 0)?.f_to_kind(Kind::Uint8)?.f_to_device(Device::Cpu)?;
        read.f_copy_data(&mut are_valid, found.len())?;
        let Some(first) = are_valid.iter().position(|valid| *valid == 0) else { return Ok(()) };
        valid().retain(|(of, _), _| *of != index);
        let (argument, expected) = expectations[first].clone();
        Err(LossError::Value { argument, expected, actual: "another value in an earlier call".into() })
    }

    /// Takes note of values on a GPU, given a Boolean tensor of those that are valid.
    pub(crate) fn f_note(
        device: Device,
        argument: &'static str,
        expected: String,
        are_valid: &Tensor,
    ) -> Result<(), LossError> {
        let all = are_valid.f_all()?;
        match valid().entry((index_of(device), (argument, expected))) {
            Entry::Vacant(place) => drop(place.insert(all)),
            Entry::Occupied(mut place) => drop(place.get_mut().f_logical_and_(&all)?),
        }
        Ok(())
    }

    /// Whether they are an error, now or later.
    pub(crate) fn is_error(self) -> bool {
        self != InvalidValues::Nan
    }

    /// Whether invalid values of this tensor are an error that the host finds, without a wait.
    pub(crate) fn is_error_of_host(self, tensor: &Tensor) -> bool {
        self.is_error() && !kernels::waits(tensor)
    }

    /// Whether invalid values of this tensor are an error of a later call.
    pub(crate) fn defers(self, tensor: &Tensor) -> bool {
        self == InvalidValues::Error && kernels::waits(tensor)
    }

    /// Whether the values of this tensor are looked at, and invalid ones are an error of this call.
    pub(crate) fn looks(self, tensor: &Tensor) -> bool {
        self.is_error() && !self.defers(tensor)
    }
}

/// That of the process: an error, unless [`set_default`](InvalidValues::set_default) has been called.
impl Default for InvalidValues {
    fn default() -> Self {
        if DOCUMENTED.get() { InvalidValues::Error } else { ALL[usize::from(DEFAULT.load(Ordering::Relaxed))] }
    }
}

/// What `make` makes, with the defaults of the documentation: the same in every process.
#[cfg(feature = "serde")]
pub(crate) fn with_documented_defaults<T>(make: impl FnOnce() -> T) -> T {
    crate::scoped::replaced(&DOCUMENTED, true, make)
}

crate::options::words!(InvalidValues);

fn valid() -> MutexGuard<'static, BTreeMap<(Option<usize>, Expectation), Tensor>> {
    VALID.lock().unwrap_or_else(PoisonError::into_inner)
}

fn index_of(device: Device) -> Option<usize> {
    match device {
        Device::Cuda(index) => Some(index),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tch::Device::Cpu;

    use super::*;
    use crate::kernels::like_cuda;
    use crate::{BceLoss, CosFaceLoss, CrossEntropyLoss, Loss};

    /// The loss and the largest gradient of three rows.
    fn results(loss: &dyn Loss, input: &Tensor, target: &Tensor) -> (f64, f64) {
        let input = input.detach().set_requires_grad(true);
        let loss = loss.f_forward(&input, target).unwrap();
        loss.backward();
        (loss.double_value(&[]), input.grad().abs().max().double_value(&[]))
    }

    #[test]
    fn on_cuda_an_invalid_value_is_an_error_of_a_later_question() {
        let (input, target) = (Tensor::zeros([3, 4], (Kind::Float, Cpu)), Tensor::from_slice(&[0_i64, 4, 1]));
        let valid = Tensor::from_slice(&[0_i64, 3, 1]);
        like_cuda(|| {
            InvalidValues::f_check(Cpu).unwrap();
            let loss = CrossEntropyLoss::new();
            assert!(results(&loss, &input, &valid).0 > 0.0);
            InvalidValues::f_check(Cpu).unwrap();
            let (value, gradient) = results(&loss, &input, &target);
            assert!(value.is_nan() && gradient == 0.0, "{value} {gradient}");
            assert!(results(&loss, &input, &valid).0 > 0.0, "later calls are not changed");
            let message = InvalidValues::f_check(Cpu).unwrap_err().to_string();
            let expected = "classes in [0, 4), or ignore_index -100";
            assert_eq!(message, format!("target holds another value in an earlier call, expected {expected}"));
            InvalidValues::f_check(Cpu).expect("it was told once");

            let at_once = loss.invalid_values(InvalidValues::ErrorAtOnce);
            let message = at_once.f_forward(&input, &target).unwrap_err().to_string();
            assert_eq!(message, format!("target holds 4, expected {expected}"));
            let silent = CrossEntropyLoss::new().invalid_values(InvalidValues::Nan);
            assert!(results(&silent, &input, &target).0.is_nan());
            InvalidValues::f_check(Cpu).unwrap();

            let share = Tensor::from_slice(&[0.5, 1.5]);
            assert!(BceLoss::new().f_forward(&share, &share).unwrap().double_value(&[]).is_nan());
            let message = InvalidValues::f_check(Cpu).unwrap_err().to_string();
            assert!(message.starts_with("input holds another value"), "{message}");

            let vectors = tch::nn::VarStore::new(Cpu);
            let loss = CosFaceLoss::new(vectors.root(), 4, 4, Default::default());
            assert!(loss.f_forward(&input.ones_like(), &target).unwrap().double_value(&[]).is_nan());
            InvalidValues::f_check(Cpu).unwrap_err();
        });
    }

    #[test]
    fn on_the_cpu_an_invalid_value_is_an_error_of_the_call() {
        let (input, target) = (Tensor::zeros([3, 4], (Kind::Float, Cpu)), Tensor::from_slice(&[0_i64, 4, 1]));
        for mode in [InvalidValues::Error, InvalidValues::ErrorAtOnce] {
            let error = CrossEntropyLoss::new().invalid_values(mode).f_forward(&input, &target).unwrap_err();
            assert!(error.to_string().starts_with("target holds 4"), "{error}");
        }
    }
}
