//! The labels of the rows and columns of a matrix, numbered on the host.

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::elements::{integers, is_plain};
use crate::LossError;
use crate::kernels::backend;

/// The labels of the rows and columns of a matrix.
#[derive(Debug, Clone)]
pub(crate) struct HostLabels {
    /// The label of each row, as an index that is counted from 0.
    pub(super) rows: Arc<[u32]>,
    /// The label of each column, as such an index.
    pub(super) columns: Arc<[u32]>,
    /// Whether row i and column i are the same sample, so that they form no pair.
    pub(super) own: bool,
}

/// How many labels there are at most: the engines compare them as floats, and this many are exact in single precision.
const MOST_LABELS: usize = 1 << f32::MANTISSA_DIGITS;

impl HostLabels {
    /// The labels of the pairs of all samples with each other, given their `labels` as 64-bit integers, or of all
    /// samples with the `others`. `None` where the engine does not take them.
    pub(crate) fn f_new(labels: &Tensor, others: Option<&Tensor>) -> Result<Option<Self>, LossError> {
        let all: Vec<&Tensor> = [Some(labels), others].into_iter().flatten().collect();
        if !backend::fused() || !all.iter().all(|labels| is_plain(labels, Kind::Int64)) {
            return Ok(None);
        }
        let mut numbers = HashMap::new();
        let mut number = |labels: &Tensor| -> Result<Arc<[u32]>, LossError> {
            let labels = labels.f_contiguous()?;
            let number = |label: &i64| {
                let next = numbers.len() as u32;
                *numbers.entry(*label).or_insert(next)
            };
            Ok(integers(&labels).iter().map(number).collect())
        };
        let rows = number(labels)?;
        let columns = others.map_or_else(|| Ok(rows.clone()), number)?;
        Ok((numbers.len() <= MOST_LABELS).then_some(Self { rows, columns, own: others.is_none() }))
    }

    /// The labels of square matrices of `size` rows that lie below each other, where the pairs on the diagonals alone
    /// have the same label. `None` where there is no engine, or `size` is too large.
    pub(crate) fn of_diagonal(matrices: usize, size: usize) -> Option<Self> {
        let numbers = || 0..size as u32;
        let taken = backend::fused() && size <= MOST_LABELS;
        taken.then(|| Self {
            rows: (0..matrices).flat_map(|_| numbers()).collect(),
            columns: numbers().collect(),
            own: false,
        })
    }

    /// The size of the matrix that they belong to.
    pub(super) fn size(&self) -> [i64; 2] {
        [self.rows.len() as i64, self.columns.len() as i64]
    }

    /// The labels of rows with these classes, 64-bit integers below `count`, and of a column for each class. `None`
    /// where the engine does not take them.
    pub(crate) fn f_of_classes(classes: &Tensor, count: i64) -> Result<Option<Self>, LossError> {
        if !backend::fused() || !is_plain(classes, Kind::Int64) || count as usize > MOST_LABELS {
            return Ok(None);
        }
        let classes = classes.f_contiguous()?;
        let rows = integers(&classes).iter().map(|class| *class as u32).collect();
        Ok(Some(Self { rows, columns: (0..count as u32).collect(), own: false }))
    }

    /// The labels of the transposed matrix.
    pub(crate) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, own: self.own }
    }
}
