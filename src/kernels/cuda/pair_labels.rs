//! The labels of the rows and columns of a matrix, which stay on the device.

use tch::{Kind, Tensor};

use super::engine::are_aligned;
use super::launch::Block;
use crate::LossError;
use crate::autograd::{self, Header};
use crate::kernels::tensors::f_own;

/// The labels of the rows and columns of a matrix.
#[derive(Debug)]
pub(crate) struct DeviceLabels {
    rows: Labels,
    columns: Labels,
    /// Whether row i and column i are the same sample, so that they form no pair.
    own: bool,
}

/// The labels of rows, or of columns.
#[derive(Debug)]
enum Labels {
    /// These, contiguous 64-bit integers.
    Given(Tensor),
    /// Of so many rows the number of each, counted from 0 again after `period` of them.
    Counted { rows: i64, period: i64 },
}

impl Labels {
    /// None where they are no plain 64-bit integers.
    fn f_new(labels: &Tensor) -> Result<Option<Self>, LossError> {
        if !Header::of(labels).is_numbers_of(Kind::Int64) {
            return Ok(None);
        }
        // A backward pass reads them again, when others may have written to them.
        let labels = if autograd::grad_enabled() { f_own(labels)? } else { labels.f_contiguous()? };
        Ok(Some(Self::Given(labels)))
    }

    fn count(&self) -> i64 {
        match self {
            Self::Given(labels) => labels.size()[0],
            Self::Counted { rows, .. } => *rows,
        }
    }

    fn given(&self) -> Option<&Tensor> {
        match self {
            Self::Given(labels) => Some(labels),
            Self::Counted { .. } => None,
        }
    }

    fn period(&self) -> i64 {
        match self {
            Self::Given(_) => 1,
            Self::Counted { period, .. } => *period,
        }
    }
}

impl Clone for Labels {
    fn clone(&self) -> Self {
        match self {
            Self::Given(labels) => Self::Given(labels.shallow_clone()),
            Self::Counted { rows, period } => Self::Counted { rows: *rows, period: *period },
        }
    }
}

impl Clone for DeviceLabels {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone(), columns: self.columns.clone(), own: self.own }
    }
}

impl DeviceLabels {
    pub(in crate::kernels) fn f_new(labels: &Tensor, others: Option<&Tensor>) -> Result<Option<Self>, LossError> {
        let Some(rows) = Labels::f_new(labels)? else { return Ok(None) };
        let Some(others) = others else {
            return Ok(Some(Self { columns: rows.clone(), rows, own: true }));
        };
        Ok(Labels::f_new(others)?.map(|columns| Self { rows, columns, own: false }))
    }

    pub(in crate::kernels) fn of_diagonal(matrices: i64, size: i64) -> Self {
        let counted = |rows| Labels::Counted { rows, period: size };
        Self { rows: counted(matrices * size), columns: counted(size), own: false }
    }

    #[cfg(feature = "metric")]
    pub(in crate::kernels) fn f_of_classes(classes: &Tensor, count: i64) -> Result<Option<Self>, LossError> {
        let columns = Labels::Counted { rows: count, period: count };
        Ok(Labels::f_new(classes)?.map(|rows| Self { rows, columns, own: false }))
    }

    #[cfg(feature = "metric")]
    pub(in crate::kernels) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, own: self.own }
    }

    /// Whether they are those of this matrix, which has elements.
    pub(super) fn are_of(&self, matrix: &Header) -> bool {
        let here = |labels: &Labels| labels.given().is_none_or(|labels| Header::of(labels).is_on_device_of(matrix));
        matrix.elements() > 0
            && matrix.size() == [self.rows.count(), self.columns.count()]
            && here(&self.rows)
            && here(&self.columns)
    }

    /// The rows and columns of the matrix.
    pub(super) fn size(&self) -> [usize; 2] {
        [&self.rows, &self.columns].map(|labels| labels.count() as usize)
    }

    /// Whether the labels of columns can be read 16 bytes at a time.
    pub(super) fn are_aligned(&self) -> bool {
        are_aligned(self.columns.given())
    }

    /// Hands the labels of rows and columns to a kernel: null where they are counted.
    pub(super) fn put_pointers(&self, block: &mut Block) {
        block.tensors([self.rows.given(), self.columns.given()]);
    }

    /// Hands over how many rows and columns there are, and the period of the rows' labels.
    pub(super) fn put_numbers(&self, block: &mut Block) {
        block.longs([self.rows.count(), self.columns.count(), self.rows.period()]);
    }

    pub(super) fn own(&self) -> bool {
        self.own
    }
}
