//! Names of losses and options: their spellings, and which come nearest to one that is none.

/// Losses that are none of an input and a target alone, and those that have parameters.
pub(crate) const OTHERS: &[&str] = &[
    // Made by scripts/tables: others.
    "GaussianNllLoss",
    "DistillationLoss",
    "LinearDistillation",
    "CosineEmbeddingLoss",
    "MarginRankingLoss",
    "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
    "ArcFaceLoss",
    "ArcFace",
    "CosFaceLoss",
    "CosFace",
    "ProxyAnchorLoss",
    "ProxyAnchor",
    "ProxyNcaLoss",
    "ProxyNca",
    "TotalVariationLoss",
    "DinoLoss",
    "ClipLoss",
    "SigLipLoss",
    "DpoLoss",
    "IpoLoss",
    "OrpoLoss",
    "SimpoLoss",
    "CpoLoss",
    "KtoLoss",
    "LinearPreference",
    "LinearKto",
    "CtcLoss",
    "LinearCrossEntropyLoss",
    "LinearCrossEntropy",
    "AdaptiveLogSoftmaxWithLoss",
    // End of what is made.
];

/// Names of these that are not the type's.
const NAMES_OF_OTHERS: [(&str, &str); 1] = [("fused_linear_cross_entropy", "LinearCrossEntropy")];

/// The losses of families that are not built, and their features.
const LEFT_OUT: &[(&str, &str)] = &[
    // Made by scripts/tables: left out.
    #[cfg(not(feature = "regression"))]
    ("CharbonnierLoss", "regression"),
    #[cfg(not(feature = "regression"))]
    ("LogCoshLoss", "regression"),
    #[cfg(not(feature = "regression"))]
    ("CauchyLoss", "regression"),
    #[cfg(not(feature = "regression"))]
    ("GemanMcClureLoss", "regression"),
    #[cfg(not(feature = "regression"))]
    ("WelschLoss", "regression"),
    #[cfg(not(feature = "regression"))]
    ("MsleLoss", "regression"),
    #[cfg(not(feature = "regression"))]
    ("MapeLoss", "regression"),
    #[cfg(not(feature = "regression"))]
    ("QuantileLoss", "regression"),
    #[cfg(not(feature = "classification"))]
    ("SigmoidFocalLoss", "classification"),
    #[cfg(not(feature = "classification"))]
    ("SoftmaxFocalLoss", "classification"),
    #[cfg(not(feature = "classification"))]
    ("OneVsRestFocalLoss", "classification"),
    #[cfg(not(feature = "classification"))]
    ("AsymmetricMultiLabelLoss", "classification"),
    #[cfg(not(feature = "classification"))]
    ("AsymmetricSingleLabelLoss", "classification"),
    #[cfg(not(feature = "classification"))]
    ("JsdCrossEntropyLoss", "classification"),
    #[cfg(not(feature = "classification"))]
    ("PolyCrossEntropyLoss", "classification"),
    #[cfg(not(feature = "classification"))]
    ("PolyBceWithLogitsLoss", "classification"),
    #[cfg(not(feature = "classification"))]
    ("SoftBceWithLogitsLoss", "classification"),
    #[cfg(not(feature = "classification"))]
    ("HingeLoss", "classification"),
    #[cfg(not(feature = "classification"))]
    ("CategoricalHingeLoss", "classification"),
    #[cfg(not(feature = "metric"))]
    ("ContrastiveLoss", "metric"),
    #[cfg(not(feature = "metric"))]
    ("NtXentLoss", "metric"),
    #[cfg(not(feature = "metric"))]
    ("SupConLoss", "metric"),
    #[cfg(not(feature = "metric"))]
    ("MultiSimilarityLoss", "metric"),
    #[cfg(not(feature = "metric"))]
    ("CircleLoss", "metric"),
    #[cfg(not(feature = "metric"))]
    ("NPairsLoss", "metric"),
    #[cfg(not(feature = "metric"))]
    ("NcaLoss", "metric"),
    #[cfg(not(feature = "metric"))]
    ("LiftedStructureLoss", "metric"),
    #[cfg(not(feature = "metric"))]
    ("GeneralizedLiftedStructureLoss", "metric"),
    #[cfg(not(feature = "metric"))]
    ("BatchTripletMarginLoss", "metric"),
    #[cfg(not(feature = "segmentation"))]
    ("DiceLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("JaccardLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("TverskyLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("FocalTverskyLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("GeneralizedDiceLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("LovaszHingeLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("LovaszSoftmaxLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("MccLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("HausdorffDtLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("SoftClDiceLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("SoftDiceClDiceLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("DiceCrossEntropyLoss", "segmentation"),
    #[cfg(not(feature = "segmentation"))]
    ("DiceFocalLoss", "segmentation"),
    #[cfg(not(feature = "detection"))]
    ("GeneralizedBoxIouLoss", "detection"),
    #[cfg(not(feature = "detection"))]
    ("DistanceBoxIouLoss", "detection"),
    #[cfg(not(feature = "detection"))]
    ("CompleteBoxIouLoss", "detection"),
    #[cfg(not(feature = "detection"))]
    ("QualityFocalLoss", "detection"),
    #[cfg(not(feature = "detection"))]
    ("DistributionFocalLoss", "detection"),
    #[cfg(not(feature = "detection"))]
    ("VarifocalLoss", "detection"),
    #[cfg(not(feature = "image"))]
    ("SsimLoss", "image"),
    #[cfg(not(feature = "image"))]
    ("MsSsimLoss", "image"),
    #[cfg(not(feature = "image"))]
    ("MsSsimL1Loss", "image"),
    #[cfg(not(feature = "image"))]
    ("PsnrLoss", "image"),
    #[cfg(not(feature = "self-supervised"))]
    ("BarlowTwinsLoss", "self-supervised"),
    #[cfg(not(feature = "self-supervised"))]
    ("VicRegLoss", "self-supervised"),
    #[cfg(not(feature = "self-supervised"))]
    ("NegativeCosineSimilarity", "self-supervised"),
    // End of what is made.
];

/// Why there is no loss of this name, where it is known: it takes other arguments, or its feature is off.
pub(crate) fn other(name: &str) -> Option<String> {
    let asked = spelling(name);
    let of_name = NAMES_OF_OTHERS.iter().find(|(known, _)| spelling(known) == asked).map(|(_, loss)| *loss);
    if let Some(loss) = of_name.or_else(|| OTHERS.iter().copied().find(|loss| spelling(loss) == asked)) {
        return Some(format!("loss {name:?} takes other arguments: use {loss} in Rust"));
    }
    left_out(name, LEFT_OUT)
}

/// That a loss needs a feature, where it is one of those.
fn left_out(name: &str, losses: &[(&str, &str)]) -> Option<String> {
    let asked = spelling(name);
    let (_, feature) = losses.iter().find(|(loss, _)| spelling(loss) == asked)?;
    Some(format!("loss {name:?} needs the feature {feature} of tch-losses"))
}

/// A name without what libraries spell in different ways: the module before it, capitals, underscores and "loss".
pub(crate) fn spelling(name: &str) -> String {
    let last = name.rsplit('.').next().unwrap_or(name);
    let letters: String = last.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    match letters.strip_suffix("loss") {
        Some(rest) if !rest.is_empty() => rest.to_owned(),
        _ => letters,
    }
}

/// How many names are few enough to be listed.
const FEW: usize = 6;
/// How many are proposed.
const PROPOSED: usize = 3;

/// The end of a message: which names there are or, of many, the ones that come nearest to `name`, each by the nearest
/// of its spellings.
pub(crate) fn nearest(name: &str, names: &[&[&'static str]]) -> String {
    let mut first: Vec<&str> = names.iter().map(|names| names[0]).collect();
    if first.len() <= FEW {
        return format!(", only {}", first.join(", "));
    }
    let spelling = spelling(name);
    let away = |known: &&[&str]| known.iter().map(|known| distance(&spelling, &self::spelling(known))).min();
    let mut sorted: Vec<&&[&str]> = names.iter().collect();
    sorted.sort_by_cached_key(|names| away(names));
    first = sorted.iter().take(PROPOSED).map(|names| names[0]).collect();
    format!("; did you mean {}?", first.join(", "))
}

/// Twice the number of letters to be put in, taken out or changed; little where one name is a part of the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let contained =
        |long: &[char], short: &[char]| short.len() > 2 && long.windows(short.len()).any(|part| part == short);
    if contained(&a, &b) || contained(&b, &a) {
        return a.len().abs_diff(b.len()).min(2) + usize::from(a.len() != b.len());
    }
    let mut row: Vec<usize> = (0..=b.len()).map(|i| 2 * i).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], 2 * (i + 1));
        for (j, y) in b.iter().enumerate() {
            let changed = corner + if x == y { 0 } else { 2 };
            corner = row[j + 1];
            row[j + 1] = changed.min(row[j] + 2).min(corner + 2);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_of_a_family_that_is_not_built_names_the_feature() {
        let message = left_out("dice", &[("MccLoss", "segmentation"), ("DiceLoss", "segmentation")]);
        assert_eq!(message.unwrap(), "loss \"dice\" needs the feature segmentation of tch-losses");
        assert_eq!(left_out("mse", &[("DiceLoss", "segmentation")]), None);
        assert!(LEFT_OUT.is_empty(), "tests are built with all families");
        assert_eq!(other("CtcLoss").unwrap(), "loss \"CtcLoss\" takes other arguments: use CtcLoss in Rust");
    }
}
