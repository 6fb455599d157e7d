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
    Entry::of::<HuberLoss>(),
    Entry::of::<L1Loss>(),
    Entry::of::<MseLoss>(),
    Entry::of::<PoissonNllLoss>(),
    Entry::of::<SmoothL1Loss>(),
    Entry::of::<CauchyLoss>(),
    Entry::of::<CharbonnierLoss>(),
    Entry::of::<GemanMcClureLoss>(),
    Entry::of::<LogCoshLoss>(),
    Entry::of::<MapeLoss>(),
    Entry::of::<MsleLoss>(),
    Entry::of::<QuantileLoss>(),
    Entry::of::<WelschLoss>(),
    Entry::of::<AsymmetricMultiLabelLoss>(),
    Entry::of::<AsymmetricSingleLabelLoss>(),
    Entry::of::<BceLoss>(),
    Entry::of::<BceWithLogitsLoss>(),
    Entry::of::<CategoricalHingeLoss>(),
    Entry::of::<CrossEntropyLoss>(),
    Entry::of::<HingeLoss>(),
    Entry::of::<JsdCrossEntropyLoss>(),
    Entry::of::<MultiLabelMarginLoss>(),
    Entry::of::<MultiLabelSoftMarginLoss>(),
    Entry::of::<MultiMarginLoss>(),
    Entry::of::<NllLoss>(),
    Entry::of::<OneVsRestFocalLoss>(),
    Entry::of::<PolyBceWithLogitsLoss>(),
    Entry::of::<PolyCrossEntropyLoss>(),
    Entry::of::<SigmoidFocalLoss>(),
    Entry::of::<SoftBceWithLogitsLoss>(),
    Entry::of::<SoftMarginLoss>(),
    Entry::of::<SoftmaxFocalLoss>(),
    Entry::of::<KlDivLoss>(),
    Entry::of::<HingeEmbeddingLoss>(),
    Entry::of::<ContrastiveLoss>(),
    Entry::of::<BatchTripletMarginLoss>(),
    Entry::of::<LiftedStructureLoss>(),
    Entry::of::<GeneralizedLiftedStructureLoss>(),
    Entry::of::<MultiSimilarityLoss>(),
    Entry::of::<NtXentLoss>(),
    Entry::of::<SupConLoss>(),
    Entry::of::<CircleLoss>(),
    Entry::of::<NPairsLoss>(),
    Entry::of::<DiceLoss>(),
    Entry::of::<DiceCrossEntropyLoss>(),
    Entry::of::<DiceFocalLoss>(),
    Entry::of::<FocalTverskyLoss>(),
    Entry::of::<GeneralizedDiceLoss>(),
    Entry::of::<HausdorffDtLoss>(),
    Entry::of::<JaccardLoss>(),
    Entry::of::<LovaszHingeLoss>(),
    Entry::of::<LovaszSoftmaxLoss>(),
    Entry::of::<MccLoss>(),
    Entry::of::<SoftClDiceLoss>(),
    Entry::of::<SoftDiceClDiceLoss>(),
    Entry::of::<TverskyLoss>(),
    Entry::of::<BarlowTwinsLoss>(),
    Entry::of::<NegativeCosineSimilarity>(),
    Entry::of::<VicRegLoss>(),
    Entry::of::<SsimLoss>(),
    Entry::of::<MsSsimLoss>(),
    Entry::of::<MsSsimL1Loss>(),
    Entry::of::<PsnrLoss>(),
    Entry::of::<CompleteBoxIouLoss>(),
    Entry::of::<DistanceBoxIouLoss>(),
    Entry::of::<DistributionFocalLoss>(),
    Entry::of::<GeneralizedBoxIouLoss>(),
    Entry::of::<QualityFocalLoss>(),
    Entry::of::<VarifocalLoss>(),
];
