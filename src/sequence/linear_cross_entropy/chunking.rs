use crate::{LossError, check};

/// The number of rows in a chunk of [`LinearCrossEntropy`](crate::LinearCrossEntropy).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(alias = "LinearCrossEntropyOptions")]
#[doc(alias = "chunking_method")]
#[non_exhaustive]
pub enum Chunking {
    /// This number of rows, ≥ 1. Chunks of few rows are slow, because each adds to the whole gradient of the linear
    /// weight.
    #[doc(alias = "batch_chunk_size")]
    Rows(i64),
    /// As many rows as make the logits of a chunk about as large as the input, divided by the factor, ≥ 1: 2^⌈log₂ ⌈N /
    /// ⌈C / D⌉⌉⌉ / factor for N rows of D features and C classes. PyTorch's rule; its default is the factor 2.
    #[doc(alias = "aspect_ratio")]
    AspectRatio(i64),
}

crate::options::words_or_fields!(Chunking {} { "rows" => Rows, "aspect_ratio" => AspectRatio });

#[cfg(feature = "serde")]
crate::description::none_is_null!(Chunking);

impl Chunking {
    /// The number of rows per chunk, at least 1.
    pub(crate) fn f_rows(self, rows: i64, features: i64, classes: i64) -> Result<i64, LossError> {
        match self {
            Chunking::Rows(size) => {
                check::option("chunking", format!("{self:?}"), size > 0, "a number of rows >= 1")?;
                Ok(size)
            }
            Chunking::AspectRatio(factor) => {
                check::option("chunking", format!("{self:?}"), factor > 0, "a factor >= 1")?;
                let ceil_div = |a: i64, b: i64| (a.max(1) as u64).div_ceil(b.max(1) as u64);
                let target = ceil_div(rows, ceil_div(classes, features) as i64);
                Ok((target.next_power_of_two() as i64 / factor).max(1))
            }
        }
    }
}

impl Default for Chunking {
    /// 512 rows, which are enough for matrix products to run at full speed.
    fn default() -> Self {
        Chunking::Rows(512)
    }
}
