//! The losses that can be described.

use crate::description::{Described, Fields, Place, Problem};
use crate::*;

/// Reads a loss, and which of its options are not the default.
type Reader = fn(Fields, Place) -> Result<(Box<dyn Loss>, Vec<String>), Problem>;

/// A loss in the list of all.
pub(super) struct Entry {
    pub(super) names: &'static [&'static str],
    pub(super) options: &'static [&'static str],
    pub(super) read: Reader,
    /// What `Debug` says of the described loss, and of `new()`.
    #[cfg(test)]
    pub(super) debug: fn(Fields) -> Result<[String; 2], Problem>,
    /// Writes and reads it.
    #[cfg(test)]
    pub(super) round_trip: fn(Fields),
}

impl Entry {
    const fn of<L: Described + std::fmt::Debug>() -> Self {
        Self {
            names: L::NAMES,
            options: L::OPTIONS,
            read: |fields, place| {
                let loss = L::f_read(fields, place)?;
                let said = loss.f_write()?.into_iter().map(|(option, _)| option).collect();
                Ok((Box::new(loss), said))
            },
            #[cfg(test)]
            debug: |fields| {
                let loss = L::f_read(fields, Place::DEFAULT)?;
                Ok([format!("{loss:?}"), format!("{:?}", L::default())])
            },
            #[cfg(test)]
            round_trip: super::tests::round_trip::<L>,
        }
    }
}

/// All losses that can be described.
pub(super) const LOSSES: &[Entry] = &[
    // Made by scripts/tables.
    Entry::of::<L1Loss>(),
    Entry::of::<MseLoss>(),
    Entry::of::<SmoothL1Loss>(),
    Entry::of::<HuberLoss>(),
    Entry::of::<PoissonNllLoss>(),
    #[cfg(feature = "regression")]
    Entry::of::<CharbonnierLoss>(),
    #[cfg(feature = "regression")]
    Entry::of::<LogCoshLoss>(),
    #[cfg(feature = "regression")]
    Entry::of::<CauchyLoss>(),
    #[cfg(feature = "regression")]
    Entry::of::<GemanMcClureLoss>(),
    #[cfg(feature = "regression")]
    Entry::of::<WelschLoss>(),
    #[cfg(feature = "regression")]
    Entry::of::<MsleLoss>(),
    #[cfg(feature = "regression")]
    Entry::of::<MapeLoss>(),
    #[cfg(feature = "regression")]
    Entry::of::<QuantileLoss>(),
    Entry::of::<CrossEntropyLoss>(),
    Entry::of::<NllLoss>(),
    Entry::of::<BceLoss>(),
    Entry::of::<BceWithLogitsLoss>(),
    Entry::of::<SoftMarginLoss>(),
    Entry::of::<MultiMarginLoss>(),
    Entry::of::<MultiLabelMarginLoss>(),
    Entry::of::<MultiLabelSoftMarginLoss>(),
    #[cfg(feature = "classification")]
    Entry::of::<SigmoidFocalLoss>(),
    #[cfg(feature = "classification")]
    Entry::of::<SoftmaxFocalLoss>(),
    #[cfg(feature = "classification")]
    Entry::of::<OneVsRestFocalLoss>(),
    #[cfg(feature = "classification")]
    Entry::of::<AsymmetricMultiLabelLoss>(),
    #[cfg(feature = "classification")]
    Entry::of::<AsymmetricSingleLabelLoss>(),
    #[cfg(feature = "classification")]
    Entry::of::<JsdCrossEntropyLoss>(),
    #[cfg(feature = "classification")]
    Entry::of::<PolyCrossEntropyLoss>(),
    #[cfg(feature = "classification")]
    Entry::of::<PolyBceWithLogitsLoss>(),
    #[cfg(feature = "classification")]
    Entry::of::<SoftBceWithLogitsLoss>(),
    #[cfg(feature = "classification")]
    Entry::of::<HingeLoss>(),
    #[cfg(feature = "classification")]
    Entry::of::<CategoricalHingeLoss>(),
    Entry::of::<KlDivLoss>(),
    Entry::of::<HingeEmbeddingLoss>(),
    #[cfg(feature = "metric")]
    Entry::of::<ContrastiveLoss>(),
    #[cfg(feature = "metric")]
    Entry::of::<NtXentLoss>(),
    #[cfg(feature = "metric")]
    Entry::of::<SupConLoss>(),
    #[cfg(feature = "metric")]
    Entry::of::<MultiSimilarityLoss>(),
    #[cfg(feature = "metric")]
    Entry::of::<CircleLoss>(),
    #[cfg(feature = "metric")]
    Entry::of::<NPairsLoss>(),
    #[cfg(feature = "metric")]
    Entry::of::<NcaLoss>(),
    #[cfg(feature = "metric")]
    Entry::of::<LiftedStructureLoss>(),
    #[cfg(feature = "metric")]
    Entry::of::<GeneralizedLiftedStructureLoss>(),
    #[cfg(feature = "metric")]
    Entry::of::<BatchTripletMarginLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<DiceLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<JaccardLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<TverskyLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<FocalTverskyLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<GeneralizedDiceLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<LovaszHingeLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<LovaszSoftmaxLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<MccLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<HausdorffDtLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<SoftClDiceLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<SoftDiceClDiceLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<DiceCrossEntropyLoss>(),
    #[cfg(feature = "segmentation")]
    Entry::of::<DiceFocalLoss>(),
    #[cfg(feature = "detection")]
    Entry::of::<GeneralizedBoxIouLoss>(),
    #[cfg(feature = "detection")]
    Entry::of::<DistanceBoxIouLoss>(),
    #[cfg(feature = "detection")]
    Entry::of::<CompleteBoxIouLoss>(),
    #[cfg(feature = "detection")]
    Entry::of::<QualityFocalLoss>(),
    #[cfg(feature = "detection")]
    Entry::of::<DistributionFocalLoss>(),
    #[cfg(feature = "detection")]
    Entry::of::<VarifocalLoss>(),
    #[cfg(feature = "image")]
    Entry::of::<SsimLoss>(),
    #[cfg(feature = "image")]
    Entry::of::<MsSsimLoss>(),
    #[cfg(feature = "image")]
    Entry::of::<MsSsimL1Loss>(),
    #[cfg(feature = "image")]
    Entry::of::<PsnrLoss>(),
    #[cfg(feature = "self-supervised")]
    Entry::of::<BarlowTwinsLoss>(),
    #[cfg(feature = "self-supervised")]
    Entry::of::<VicRegLoss>(),
    #[cfg(feature = "self-supervised")]
    Entry::of::<NegativeCosineSimilarity>(),
    // End of what is made.
];
