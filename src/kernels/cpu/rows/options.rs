//! The options that losses over rows of classes share.

use tch::Tensor;

use crate::kernels::cpu::elements::f_numbers;
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::rows::Rows;
use crate::{LossError, check};

/// The options of a call, in the type that it is computed in.
pub(in crate::kernels::cpu) struct Options<W> {
    /// The index of targets that are ignored; −1, which no target is, where none are.
    pub(in crate::kernels::cpu) ignored: i64,
    /// A weight for each class.
    pub(in crate::kernels::cpu) weight: Option<Vec<W>>,
}

impl<W: Wide> Options<W> {
    pub(in crate::kernels::cpu) fn f_new(rows: &Rows) -> Result<Self, LossError> {
        Ok(Self { ignored: rows.ignore_index.unwrap_or(-1), weight: rows.weight.map(f_wide_numbers).transpose()? })
    }

    /// The sum of the weights of all classes, which smoothing spreads the target over; 0 without smoothing, where it is
    /// not needed.
    pub(in crate::kernels::cpu) fn total_of_spread(&self, smoothing: f64, classes: usize) -> f64 {
        total_of_spread(self.weight.as_deref(), smoothing, classes)
    }

    pub(in crate::kernels::cpu) fn weight_of(&self, class: usize) -> f64 {
        self.weight.as_ref().map_or(1.0, |weight| weight[class].to_f64())
    }
}

/// See [`Options::total_of_spread`].
pub(in crate::kernels::cpu) fn total_of_spread<W: Wide>(weight: Option<&[W]>, smoothing: f64, classes: usize) -> f64 {
    match weight {
        _ if smoothing == 0.0 => 0.0,
        None => classes as f64,
        Some(weight) => weight.iter().map(|&weight| weight.to_f64()).sum(),
    }
}

/// The elements of a tensor, in the type that a call is computed in.
pub(in crate::kernels::cpu) fn f_wide_numbers<W: Wide>(tensor: &Tensor) -> Result<Vec<W>, LossError> {
    let numbers = f_numbers(tensor)?;
    let mut wide = check::f_room(numbers.len())?;
    wide.extend(numbers.into_iter().map(W::from_f64));
    Ok(wide)
}
