//! The tensors among the options of a loss, such as the weights of classes: to copy the loss, and to move it.

use tch::{Device, Kind, Tensor};

use crate::LossError;
use crate::numeric::is_floating;

/// The function that replaces a tensor among the options of a loss.
pub(crate) type Replace<'a> = dyn FnMut(&Tensor) -> Tensor + 'a;

/// A loss, or options of one, that can be copied with other tensors.
pub(crate) trait OptionTensors: Sized {
    /// A copy with each tensor replaced. The order of the tensors is always the same.
    fn map_tensors(&self, replace: &mut Replace) -> Self;
}

impl OptionTensors for Tensor {
    fn map_tensors(&self, replace: &mut Replace) -> Self {
        replace(self)
    }
}

impl<T: OptionTensors> OptionTensors for Option<T> {
    fn map_tensors(&self, replace: &mut Replace) -> Self {
        self.as_ref().map(|options| options.map_tensors(replace))
    }
}

impl<T: OptionTensors> OptionTensors for Vec<T> {
    fn map_tensors(&self, replace: &mut Replace) -> Self {
        self.iter().map(|options| options.map_tensors(replace)).collect()
    }
}

impl<T: OptionTensors> OptionTensors for [T; 2] {
    fn map_tensors(&self, replace: &mut Replace) -> Self {
        self.each_ref().map(|options| options.map_tensors(replace))
    }
}

/// Options that hold no tensors.
macro_rules! without_tensors {
    ($($type:ty),+) => {
        $(
            impl $crate::option_tensors::OptionTensors for $type {
                fn map_tensors(&self, _: &mut $crate::option_tensors::Replace) -> Self {
                    Clone::clone(self)
                }
            }
        )+
    };
}
pub(crate) use without_tensors;

without_tensors!(bool, i64, usize, f64, Kind);

/// The same options with their tensors on `device`, those of a floating kind in `kind`.
pub(crate) fn f_to<T: OptionTensors>(options: &T, device: Device, kind: Kind) -> Result<T, LossError> {
    f_with(device, kind, |replace| options.map_tensors(replace))
}

/// Moves a tensor, for `map_tensors`.
pub(crate) fn f_with<T>(
    device: Device,
    kind: Kind,
    map_tensors: impl FnOnce(&mut Replace) -> T,
) -> Result<T, LossError> {
    f_floating(kind)?;
    let mut failed = None;
    let moved = map_tensors(&mut |tensor| {
        f_tensor_to(tensor, device, kind).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            tensor.shallow_clone()
        })
    });
    failed.map_or(Ok(moved), Err)
}

/// Checks that the kind is floating, because losses are computed in floating kinds.
pub(crate) fn f_floating(kind: Kind) -> Result<(), LossError> {
    if is_floating(kind) {
        return Ok(());
    }
    Err(LossError::Kind { argument: "kind", expected: "a floating kind".into(), actual: kind })
}

/// An undefined tensor is not moved; the first call reports it.
pub(crate) fn f_tensor_to(tensor: &Tensor, device: Device, kind: Kind) -> Result<Tensor, LossError> {
    if !tensor.defined() {
        return Ok(tensor.shallow_clone());
    }
    let moved = tensor.f_to_device(device)?;
    if f_floating(moved.f_kind()?).is_err() {
        return Ok(moved);
    }
    Ok(moved.f_to_kind(kind)?)
}

/// Implements `Clone` by a copy that shares the parameters. Fields after the semicolon are cloned.
macro_rules! shared_parameters {
    ($loss:ident { $($field:ident),+ $(; $($other:ident),+)? }) => {
        /// A copy shares the parameters.
        impl Clone for $loss {
            #[allow(clippy::needless_update)]
            fn clone(&self) -> Self {
                let share = &mut tch::Tensor::shallow_clone;
                Self {
                    $($field: $crate::option_tensors::OptionTensors::map_tensors(&self.$field, share),)+
                    $($($other: self.$other.clone(),)+)?
                    ..*self
                }
            }
        }
    };
}
pub(crate) use shared_parameters;

/// The methods `with_tensors` and `described` of a [`Loss`](crate::Loss), or `shared` of one that has parameters alone.
macro_rules! with_tensors {
    (shared) => {
        fn with_tensors(&self, _: &mut dyn FnMut(&tch::Tensor) -> tch::Tensor) -> Option<Box<dyn $crate::Loss>> {
            Some(Box::new(Self::clone(self)))
        }

        $crate::option_tensors::with_tensors!(described);
    };
    (described) => {
        #[cfg(feature = "distributed")]
        fn described(&self) -> Option<String> {
            Some(format!("{self:?}"))
        }
    };
    () => {
        fn with_tensors(&self, replace: &mut dyn FnMut(&tch::Tensor) -> tch::Tensor) -> Option<Box<dyn $crate::Loss>> {
            Some(Box::new($crate::option_tensors::OptionTensors::map_tensors(self, replace)))
        }

        $crate::option_tensors::with_tensors!(described);
    };
}
pub(crate) use with_tensors;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CrossEntropyLoss, FocalAlpha, SigmoidFocalLoss};

    #[test]
    fn kinds_that_are_not_floating_stay() {
        let mask = Tensor::from_slice(&[true, false]);
        let loss = SigmoidFocalLoss::new().alpha(FocalAlpha::Classes(Tensor::from_slice(&[0.5_f32, 0.25]))).mask(mask);
        let moved = loss.f_to(Device::Cpu, Kind::Double).unwrap();
        let mut kinds = Vec::new();
        let _ = moved.map_tensors(&mut |tensor| {
            kinds.push(tensor.kind());
            tensor.shallow_clone()
        });
        assert_eq!(kinds, [Kind::Double, Kind::Bool]);
        let error = loss.f_to(Device::Cpu, Kind::Int).unwrap_err().to_string();
        assert_eq!(error, "kind has kind Int, expected a floating kind");
        // An undefined tensor can be copied and moved; the call says what is wrong.
        let undefined = CrossEntropyLoss::new().weight(Tensor::new());
        assert!(undefined.clone().f_to(Device::Cpu, Kind::Half).is_ok());
    }
}
