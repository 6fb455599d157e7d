//! What a mean divides by where targets are ignored.

/// What the mean divides by where targets are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum MeanOver {
    /// The targets that are not ignored; with class weights the sum of theirs. The convention of PyTorch.
    Counted,
    /// All targets, so that ignored ones make the loss smaller. The convention of segmentation-models-pytorch.
    All,
}

crate::options::words!(MeanOver);
