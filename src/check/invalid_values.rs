//! What happens to values for which no loss is defined, and what GPUs have found of them.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use tch::{Device, Kind, Tensor};

use crate::kernels::NumberOperations;
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

/// What has looked at values: a GPU, or where a test [asks](kernels::like_cuda) for that, a thread on the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Gpu(usize),
    Cpu(ThreadId),
}

/// For each expectation that a GPU has looked at, a Boolean on that GPU: whether all values were valid so far. It stays
/// where it is for the life of the process, since a CUDA graph may have recorded a kernel that writes it.
static VALID: LazyLock<Mutex<HashMap<(Place, Expectation), Tensor>>> = LazyLock::new(Default::default);

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
    /// Calls that a CUDA graph has recorded tell of all its replays, where the same loss has been called before the
    /// capture, as a warm-up does; else of the last replay.
    ///
    /// # Errors
    /// A [`LossError::Value`] that names the argument and the range of its values.
    pub fn f_check(device: Device) -> Result<(), LossError> {
        let place = place_of(device);
        let mut all: Vec<(Expectation, Tensor)> = {
            let valid = valid();
            let of_place = valid.iter().filter(|((of, _), _)| *of == place);
            of_place.map(|((_, expectation), valid)| (expectation.clone(), valid.shallow_clone())).collect()
        };
        if all.is_empty() {
            return Ok(());
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        let found: Vec<&Tensor> = all.iter().map(|(_, valid)| valid).collect();
        let mut are_valid = vec![0_u8; found.len()];
        let read = Tensor::f_stack(&found, 0)?.f_to_kind(Kind::Uint8)?.f_to_device(Device::Cpu)?;
        read.f_copy_data(&mut are_valid, found.len())?;
        let Some(first) = are_valid.iter().position(|valid| *valid == 0) else { return Ok(()) };
        for (_, valid) in &mut all {
            let _ = valid.f_logical_or_(&valid.f_logical_not()?)?;
        }
        let (argument, expected) = all.swap_remove(first).0;
        Err(LossError::Value { argument, expected, actual: "another value in an earlier call".into() })
    }

    /// Takes note of values on a GPU, given a Boolean scalar there: whether any is not valid.
    pub(crate) fn f_note(
        device: Device,
        argument: &'static str,
        expected: String,
        any_invalid: &Tensor,
    ) -> Result<(), LossError> {
        let _ = Self::f_memory(device, argument, &expected)?.f_masked_fill_number_(any_invalid, 0)?;
        Ok(())
    }

    /// Where a GPU remembers whether all values were valid so far: a Boolean on it. A kernel that comes upon another
    /// value sets it to false.
    pub(crate) fn f_memory(device: Device, argument: &'static str, expected: &str) -> Result<Tensor, LossError> {
        let key = (place_of(device), (argument, expected.to_owned()));
        if let Some(known) = valid().get(&key) {
            return Ok(known.shallow_clone());
        }
        let new = Tensor::f_ones([0_i64; 0], (Kind::Bool, device))?;
        Ok(valid().entry(key).or_insert(new).shallow_clone())
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

fn valid() -> MutexGuard<'static, HashMap<(Place, Expectation), Tensor>> {
    VALID.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place_of(device: Device) -> Place {
    match device {
        Device::Cuda(index) => Place::Gpu(index),
        _ => Place::Cpu(thread::current().id()),
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
