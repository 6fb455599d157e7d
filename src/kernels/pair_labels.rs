//! Which rows and columns of a matrix have the same label, for the engines of pairs and triplets.

use tch::Tensor;

use super::cpu::HostLabels;
#[cfg(any(test, feature = "cuda"))]
use super::cuda::pair_labels::DeviceLabels;
#[cfg(any(test, feature = "cuda"))]
use super::is_on_cuda;
use crate::LossError;

/// The labels of the rows and columns of a matrix, where its device has engines: numbered on the host for those of the
/// CPU, and on CUDA as they are, since the host would wait for them.
#[derive(Debug, Clone)]
pub(crate) enum PairLabels {
    Host(HostLabels),
    #[cfg(any(test, feature = "cuda"))]
    Device(DeviceLabels),
}

impl PairLabels {
    /// The labels of the pairs of all samples with each other, given their `labels` as 64-bit integers, or of all
    /// samples with the `others`. `None` where no engine takes them.
    pub(crate) fn f_new(labels: &Tensor, others: Option<&Tensor>) -> Result<Option<Self>, LossError> {
        #[cfg(any(test, feature = "cuda"))]
        if is_on_cuda(labels) {
            return Ok(DeviceLabels::f_new(labels, others)?.map(Self::Device));
        }
        Ok(HostLabels::f_new(labels, others)?.map(Self::Host))
    }

    /// The labels of square matrices of `size` rows that lie below each other, on the device of `like`, where the pairs
    /// on the diagonals alone have the same label. `None` where there is no engine, or `size` is too large.
    #[cfg_attr(not(any(test, feature = "cuda")), allow(unused_variables))]
    pub(crate) fn of_diagonal(like: &Tensor, matrices: usize, size: usize) -> Option<Self> {
        #[cfg(any(test, feature = "cuda"))]
        if is_on_cuda(like) {
            return Some(Self::Device(DeviceLabels::of_diagonal(matrices as i64, size as i64)));
        }
        HostLabels::of_diagonal(matrices, size).map(Self::Host)
    }

    /// The labels of rows with these classes, 64-bit integers below `count`, and of a column for each class. `None`
    /// where no engine takes them.
    #[cfg(feature = "metric")]
    pub(crate) fn f_of_classes(classes: &Tensor, count: i64) -> Result<Option<Self>, LossError> {
        #[cfg(any(test, feature = "cuda"))]
        if is_on_cuda(classes) {
            return Ok(DeviceLabels::f_of_classes(classes, count)?.map(Self::Device));
        }
        Ok(HostLabels::f_of_classes(classes, count)?.map(Self::Host))
    }

    /// The labels of the transposed matrix.
    #[cfg(feature = "metric")]
    pub(crate) fn transposed(self) -> Self {
        match self {
            Self::Host(labels) => Self::Host(labels.transposed()),
            #[cfg(any(test, feature = "cuda"))]
            Self::Device(labels) => Self::Device(labels.transposed()),
        }
    }
}
