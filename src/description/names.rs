//! Names of losses and options: their spellings, and which come nearest to one that is none.

/// Losses that are none of an input and a target alone, and those that have parameters.
pub(crate) const OTHERS: &[(&str, &str)] = &[
    ("ctc", "CtcLoss"),
    ("gaussian_nll", "GaussianNllLoss"),
    ("cosine_embedding", "CosineEmbeddingLoss"),
    ("margin_ranking", "MarginRankingLoss"),
    ("triplet_margin", "TripletMarginLoss"),
    ("triplet_margin_with_distance", "TripletMarginWithDistanceLoss"),
    ("linear_cross_entropy", "LinearCrossEntropyLoss"),
    ("fused_linear_cross_entropy", "LinearCrossEntropy"),
    ("adaptive_log_softmax_with_loss", "AdaptiveLogSoftmaxWithLoss"),
    ("arc_face", "ArcFaceLoss"),
    ("cos_face", "CosFaceLoss"),
    ("proxy_anchor", "ProxyAnchorLoss"),
    ("proxy_nca", "ProxyNcaLoss"),
    ("clip", "ClipLoss"),
    ("siglip", "SigLipLoss"),
    ("dino", "DinoLoss"),
    ("total_variation", "TotalVariationLoss"),
    ("dpo", "DpoLoss"),
    ("ipo", "IpoLoss"),
    ("cpo", "CpoLoss"),
    ("orpo", "OrpoLoss"),
    ("simpo", "SimpoLoss"),
    ("kto", "KtoLoss"),
    ("distillation", "DistillationLoss"),
];

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

/// The end of a message: which names there are or, of many, the ones that come nearest to `name`, each by the nearest of
/// its spellings.
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
