//! The cross entropy that the engine of regions computes along with the sizes.

use tch::Tensor;

use crate::{CrossEntropyLoss, Loss, LossError, Reduction};

/// A cross entropy that is nothing but a sum of weighted logarithms, divided by a number afterwards.
pub(in crate::segmentation) struct PlainCrossEntropy {
    /// In double precision, on the device of the input, without a gradient.
    pub(in crate::segmentation) weight: Option<Tensor>,
    pub(in crate::segmentation) ignore_index: i64,
}

impl PlainCrossEntropy {
    /// The sum for `wide`, in single precision at least, by differentiable tensor operations.
    pub(super) fn f_sum(&self, wide: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let mut loss = CrossEntropyLoss::new().ignore_index(self.ignore_index).reduction(Reduction::Sum);
        if let Some(weight) = &self.weight {
            loss = loss.weight(weight.f_to_kind(wide.f_kind()?)?);
        }
        if target.size() == wide.size() {
            return loss.f_forward(wide, &target.f_to_kind(wide.f_kind()?)?);
        }
        loss.f_forward(wide, target)
    }
}
