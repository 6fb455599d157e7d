//! Which loss a collective is for. Ranks compare it, because options that differ between ranks show in no shape.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::Group;
use crate::option_tensors::{OptionTensors, Replace};

/// How many 64-bit integers the name of a loss takes in a record.
const NAME: usize = 4;
/// How many 64-bit integers a purpose takes in a record.
pub(super) const LENGTH: usize = NAME + 1;

/// The loss that a collective is for; by default it is not said.
#[derive(Debug, Clone, Default)]
pub(super) struct Purpose {
    /// What [`words`](Self::words) reads: the name, and a number that differs for other options. All are 0 where it is
    /// not said.
    pub(super) numbers: [i64; LENGTH],
    /// The loss with its options.
    pub(super) text: Option<Arc<str>>,
}

impl Purpose {
    /// `text` begins with the name of the loss; `tensors` are those among its options.
    fn new(text: String, tensors: &[Tensor]) -> Self {
        let mut hash = Fingerprint::new();
        hash.add(text.as_bytes());
        for tensor in tensors {
            hash.add_tensor(tensor);
        }
        let mut numbers = [0; LENGTH];
        let name = text.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default();
        for (number, bytes) in numbers.iter_mut().zip(name.as_bytes().chunks(8)).take(NAME) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            *number = i64::from_le_bytes(padded);
        }
        // 0 says that there is no purpose.
        numbers[NAME] = hash.value().max(1);
        Self { numbers, text: Some(text.into()) }
    }
}

/// Whether all ranks that say which loss they compute have the same one.
pub(super) fn agree<'a>(purposes: impl Iterator<Item = &'a [i64]>) -> bool {
    let mut said = purposes.filter(|purpose| purpose[NAME] != 0);
    let first = said.next();
    said.all(|purpose| Some(purpose) == first)
}

/// The name of the loss in a purpose; none where it is not said.
pub(super) fn name(purpose: &[i64]) -> Option<String> {
    let bytes: Vec<u8> = purpose[..NAME].iter().flat_map(|number| number.to_le_bytes()).collect();
    let name = String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned();
    (purpose[NAME] != 0).then_some(name)
}

/// A purpose in words.
pub(super) fn words(purpose: &[i64]) -> String {
    match name(purpose) {
        Some(name) => format!("{name} with the options {:08x}", purpose[NAME] as u32),
        None => "no loss that is told".into(),
    }
}

impl Group {
    /// The same group, whose calls are for the loss that `text` describes, such as its `Debug` text. It begins with the
    /// name of the loss. Where ranks describe different losses, or one with other options, their calls are
    /// [`LossError::Ranks`](crate::LossError::Ranks) on all of them. The losses of this crate do it themselves.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tch::Tensor;
    /// # use tch_losses::distributed::{Group, Reduce};
    /// # let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    /// # let group = Group::new(&format!("127.0.0.1:{free}"), 0, 1, Duration::from_secs(30))?;
    /// #[derive(Debug)]
    /// struct Spread {
    ///     margin: f64,
    /// }
    ///
    /// let loss = Spread { margin: 0.2 };
    /// let group = group.for_loss(&format!("{loss:?}"));
    /// let sum = group.f_sum_data_parallel(&Tensor::from(loss.margin))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_loss(&self, text: &str) -> Group {
        self.with_purpose(Purpose::new(text.to_owned(), &[]))
    }

    /// The same group for a loss with these options, and what else there is to compare.
    pub(crate) fn of_options<L: OptionTensors + std::fmt::Debug>(&self, loss: &L, more: &str) -> Group {
        self.of_loss(Some(format!("{loss:?}{more}")), |replace| drop(loss.map_tensors(replace)))
    }

    /// The same group for a loss of this description, if it has one, with the tensors that `visit` shows.
    pub(crate) fn of_loss(&self, text: Option<String>, visit: impl FnOnce(&mut Replace)) -> Group {
        // One rank has nobody to compare it with.
        let Some(text) = text.filter(|_| self.world_size() > 1) else { return self.clone() };
        let mut tensors = vec![];
        visit(&mut |tensor| {
            tensors.push(tensor.shallow_clone());
            tensor.shallow_clone()
        });
        self.with_purpose(Purpose::new(text, &tensors))
    }
}

/// A number that differs for other bytes, but by rare chance: FNV-1a of 64 bits.
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Adds the numbers of a tensor on the CPU. Those on another device would have to be waited for; their shape and
    /// kind are in the description of the loss.
    fn add_tensor(&mut self, tensor: &Tensor) {
        if !tensor.defined() || tensor.device() != Device::Cpu {
            return;
        }
        // A tensor that cannot be read is reported by the loss itself.
        let numbers = tensor.f_detach().and_then(|numbers| numbers.f_to_kind(Kind::Double)?.f_flatten(0, -1));
        for number in numbers.and_then(Vec::<f64>::try_from).unwrap_or_default() {
            self.add(&number.to_le_bytes());
        }
    }

    /// Never negative.
    pub(super) fn value(&self) -> i64 {
        (self.0 >> 1) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purpose(text: &str) -> [i64; LENGTH] {
        Purpose::new(text.to_owned(), &[]).numbers
    }

    #[test]
    fn options_and_tensors_tell_losses_apart() {
        let (narrow, wide) = (purpose("Margin { margin: 0.2 }"), purpose("Margin { margin: 0.3 }"));
        assert!(agree([narrow, narrow].iter().map(|numbers| &numbers[..])));
        assert!(!agree([narrow, wide].iter().map(|numbers| &numbers[..])));
        let of = |weight: [f32; 2]| Purpose::new("Weighted".into(), &[Tensor::from_slice(&weight)]).numbers;
        assert_eq!(of([1.0, 2.0]), of([1.0, 2.0]));
        assert_ne!(of([1.0, 2.0]), of([1.0, 3.0]));
        // A rank that does not say it, such as one of Python, agrees with all others.
        let unsaid = Purpose::default().numbers;
        assert!(agree([unsaid, narrow, unsaid].iter().map(|numbers| &numbers[..])));
        assert!(!agree([unsaid, narrow, wide].iter().map(|numbers| &numbers[..])));
    }

    #[test]
    fn names_are_read_again() {
        assert_eq!(name(&purpose("GeneralizedLiftedStructureLoss { margin: 1.0 }")).as_deref(), {
            Some("GeneralizedLiftedStructureLoss")
        });
        assert_eq!(name(&Purpose::default().numbers), None);
    }
}
