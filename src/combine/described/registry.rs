//! The losses that can be described: one entry each, with the names of their options.

use serde::de::{Deserialize, Deserializer, Error};

use super::read::{Mismatch, Place, Problem, Read};
use super::value::Value;
use crate::*;

/// The field that names the loss.
const LOSS: &str = "loss";

/// The fields of a description that are not read yet, and the loss that reads them.
pub(super) struct Fields<'a> {
    pub(super) loss: &'static str,
    pub(super) fields: Vec<&'a (String, Value)>,
}

impl<'a> Fields<'a> {
    /// The value of a field, where it is given.
    pub(super) fn take(&mut self, name: &str) -> Option<&'a Value> {
        let index = self.fields.iter().position(|(field, _)| field == name)?;
        Some(&self.fields.remove(index).1)
    }

    /// The value of an option, where it is given. Where the option may be `none`, null stands for that, its default.
    pub(super) fn f_option<T: Read>(&mut self, option: &str, none: bool, place: Place) -> Result<Option<T>, Problem> {
        let loss = self.loss;
        let Some(value) = self.take(option).filter(|value| !(none && **value == Value::Null)) else { return Ok(None) };
        T::read(value, place).map(Some).map_err(|mismatch| match mismatch {
            Mismatch::Expected(expected) => format!("loss {loss}: option {option} is {value}, expected {expected}"),
            Mismatch::Inside(problem) => format!("loss {loss}: option {option}: {problem}"),
        })
    }

    /// All fields have been read.
    pub(super) fn f_end(&self, options: &[&'static str]) -> Result<(), Problem> {
        let Some((name, _)) = self.fields.first() else { return Ok(()) };
        let names: Vec<&[&str]> = options.iter().map(std::slice::from_ref).collect();
        Err(format!("loss {} has no option {name}{}", self.loss, nearest(name, &names)))
    }
}

/// The name of the loss that `value` describes, which is one of several with their aliases, and the fields of its
/// options.
pub(super) fn f_one_of<'a>(
    value: &'a Value,
    losses: &[&[&'static str]],
) -> Result<(&'static str, Fields<'a>), Problem> {
    let every = || losses.iter().map(|names| names[0]).collect::<Vec<_>>().join(", ");
    let (name, fields) = match value {
        Value::Text(name) => (name, vec![]),
        Value::Map(fields) => {
            let rest = fields.iter().filter(|(field, _)| field != LOSS).collect();
            match fields.iter().find(|(field, _)| field == LOSS) {
                Some((_, Value::Text(name))) => (name, rest),
                Some((_, other)) => return Err(format!("field {LOSS} is {other}, expected one of {}", every())),
                None => return Err(format!("field {LOSS} is missing, expected one of {}", every())),
            }
        }
        other => return Err(format!("{other} is no loss, expected one of {}, or fields with one as {LOSS}", every())),
    };
    let spelling = spelling(name);
    if let Some(names) = losses.iter().find(|names| names.iter().any(|known| self::spelling(known) == spelling)) {
        return Ok((names[0], Fields { loss: names[0], fields }));
    }
    if let Some((_, loss)) =
        OTHERS.iter().find(|(known, loss)| [self::spelling(known), self::spelling(loss)].contains(&spelling))
    {
        return Err(format!("loss {name:?} takes other arguments: use {loss} in Rust"));
    }
    Err(format!("there is no loss {name:?}{}", nearest(name, losses)))
}

/// Losses that are none of an input and a target alone, and those that have parameters.
const OTHERS: &[(&str, &str)] = &[
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
pub(super) fn spelling(name: &str) -> String {
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
pub(super) fn nearest(name: &str, names: &[&[&'static str]]) -> String {
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

/// A loss that can be described.
pub(super) trait Described: Loss + Sized + 'static {
    /// Its name in data, and other ones.
    const NAMES: &'static [&'static str];

    /// Reads its options.
    fn f_read(fields: Fields, place: Place) -> Result<Self, Problem>;
}

/// Reads one of the losses.
pub(super) type Reader = fn(Fields, Place) -> Result<Box<dyn Loss>, Problem>;

/// A loss in the list of all.
pub(super) struct Entry {
    pub(super) names: &'static [&'static str],
    pub(super) options: &'static [&'static str],
    pub(super) read: Reader,
    /// What `Debug` says of the described loss, and of `new()`.
    #[cfg(test)]
    pub(super) debug: fn(Fields) -> Result<[String; 2], Problem>,
}

/// The options of a loss are called as methods. An option that is none by default is marked with `or none`, so that
/// null stands for that; one whose method is generic has the type that is read.
macro_rules! described {
    ($($name:literal $(| $alias:literal)* => $loss:ident {
        $($option:ident $(or $none:ident)? $(: $type:ty $(=> $borrow:ident)?)?),+ $(,)?
    })+) => {
        $(
            impl Described for $loss {
                const NAMES: &'static [&'static str] = &[$name, stringify!($loss) $(, $alias)*];

                fn f_read(mut fields: Fields, place: Place) -> Result<Self, Problem> {
                    let mut loss = <$loss>::new();
                    $(
                        let none = [$(stringify!($none))?].contains(&"none");
                        let value = fields.f_option(stringify!($option), none, place)?;
                        if let Some(value) = value {
                            $(let value: $type = value;)?
                            loss = loss.$option(value$($(.$borrow())?)?);
                        }
                    )+
                    fields.f_end(&[$(stringify!($option)),+])?;
                    loss.f_check_options().map_err(|error| format!("loss {}: {error}", $name))?;
                    Ok(loss)
                }
            }

            /// From its options, each a field of its name.
            impl<'de> Deserialize<'de> for $loss {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    let value = Value::deserialize(deserializer)?;
                    let Value::Map(fields) = &value else {
                        return Err(D::Error::custom(format!("{value} is no loss {}, expected its options", $name)));
                    };
                    let fields = Fields { loss: $name, fields: fields.iter().collect() };
                    <$loss>::f_read(fields, Place::DEFAULT).map_err(D::Error::custom)
                }
            }
        )+

        /// All losses that can be described.
        pub(super) const LOSSES: &[Entry] = &[$(
            Entry {
                names: <$loss>::NAMES,
                options: &[$(stringify!($option)),+],
                read: |fields, place| Ok(Box::new(<$loss>::f_read(fields, place)?)),
                #[cfg(test)]
                debug: |fields| {
                    let loss = <$loss>::f_read(fields, Place::DEFAULT)?;
                    Ok([format!("{loss:?}"), format!("{:?}", <$loss>::new())])
                },
            },
        )+];
    };
}

described! {
    "huber" => HuberLoss { delta, weight or none, broadcast, reduction }
    "l1" | "mae" | "mean_absolute_error" => L1Loss { weight or none, broadcast, reduction }
    "mse" | "mean_squared_error" => MseLoss { weight or none, broadcast, reduction }
    "poisson_nll" => PoissonNllLoss { log_input, full, eps, broadcast, invalid_values, reduction }
    "smooth_l1" => SmoothL1Loss { beta, broadcast, reduction }
    "cauchy" => CauchyLoss { scale, weight or none, broadcast, reduction }
    "charbonnier" => CharbonnierLoss { eps, minimum, weight or none, broadcast, reduction }
    "geman_mcclure" => GemanMcClureLoss { scale, weight or none, broadcast, reduction }
    "log_cosh" => LogCoshLoss { weight or none, broadcast, reduction }
    "mape" | "mean_absolute_percentage_error" => MapeLoss { eps, weight or none, broadcast, reduction }
    "msle" | "mean_squared_logarithmic_error" => MsleLoss { eps, weight or none, broadcast, reduction }
    "quantile" | "pinball" => QuantileLoss { quantiles: Quantiles, weight or none, broadcast, reduction }
    "welsch" => WelschLoss { scale, weight or none, broadcast, reduction }
    "asymmetric_multi_label" | "AsymmetricLossMultiLabel" => AsymmetricMultiLabelLoss {
        gamma_neg, gamma_pos, clip, eps, detach_focus, label_smoothing, weight or none, pos_weight or none,
        invalid_values, reduction,
    }
    "asymmetric_single_label" | "AsymmetricLossSingleLabel" => AsymmetricSingleLabelLoss {
        gamma_pos, gamma_neg, label_smoothing, invalid_values, reduction,
    }
    "bce" | "binary_cross_entropy" => BceLoss { weight or none, invalid_values, reduction }
    "bce_with_logits" | "binary_cross_entropy_with_logits" => BceWithLogitsLoss { weight or none, pos_weight or none, reduction }
    "categorical_hinge" => CategoricalHingeLoss { margin, invalid_values, reduction }
    "cross_entropy" => CrossEntropyLoss {
        weight or none, ignore_index, label_smoothing, invalid_values, mean_over, reduction,
    }
    "hinge" => HingeLoss { p, margin, targets, reduction }
    "jsd_cross_entropy" => JsdCrossEntropyLoss { num_splits, alpha, label_smoothing, invalid_values }
    "multi_label_margin" => MultiLabelMarginLoss { invalid_values, reduction }
    "multi_label_soft_margin" => MultiLabelSoftMarginLoss { weight or none, broadcast, reduction }
    "multi_margin" => MultiMarginLoss { p, margin, weight or none, invalid_values, reduction }
    "nll" => NllLoss { weight or none, ignore_index, invalid_values, check_log_probs, reduction }
    "one_vs_rest_focal" => OneVsRestFocalLoss {
        alpha: FocalAlpha, gamma, reduced_threshold or none, normalization, weight or none,
        ignore_index: Option<i64>, invalid_values, mean_over, reduction,
    }
    "poly_bce_with_logits" | "PolyBinaryCrossEntropy" => PolyBceWithLogitsLoss {
        epsilon, gamma, alpha or none, label_smoothing, invalid_values, reduction,
    }
    "poly_cross_entropy" => PolyCrossEntropyLoss { epsilon, label_smoothing, invalid_values, reduction }
    "sigmoid_focal" | "BinaryFocalLossWithLogits" => SigmoidFocalLoss {
        alpha: FocalAlpha, gamma, soft_targets, reduced_threshold or none, normalization, weight or none,
        pos_weight or none, ignore_index or none, mask or none, invalid_values, mean_over, divisor: Divisor, reduction,
    }
    "soft_bce_with_logits" => SoftBceWithLogitsLoss {
        weight or none, pos_weight or none, ignore_index: Option<i64>, label_smoothing, target_threshold or none,
        invalid_values, mean_over, reduction,
    }
    "soft_margin" => SoftMarginLoss { broadcast, reduction }
    "softmax_focal" => SoftmaxFocalLoss {
        alpha: FocalAlpha, gamma, weight or none, ignore_index: Option<i64>, label_smoothing, invalid_values,
        mean_over, reduction,
    }
    "kl_div" | "kullback_leibler_divergence" => KlDivLoss { log_target, broadcast, reduction }
    "hinge_embedding" => HingeEmbeddingLoss { margin, broadcast, reduction }
    "contrastive" => ContrastiveLoss { pos_margin, neg_margin, distance, reduction }
    "batch_triplet_margin" | "batch_triplet" => BatchTripletMarginLoss { margin, swap, smooth_loss, mining, distance, reduction }
    "lifted_structure" => LiftedStructureLoss { pos_margin, neg_margin, distance, reduction }
    "generalized_lifted_structure" => GeneralizedLiftedStructureLoss { pos_margin, neg_margin, distance, reduction }
    "multi_similarity" => MultiSimilarityLoss { alpha, beta, base, distance, reduction }
    "nt_xent" | "info_nce" => NtXentLoss { temperature, distance, reduction }
    "sup_con" => SupConLoss { temperature, distance, reduction }
    "circle" => CircleLoss { margin, gamma, reduction }
    "n_pairs" => NPairsLoss { distance, reduction }
    "dice" => DiceLoss {
        activation, measure, include_background,
        classes or none: Vec<i64> => as_slice, ignore_index or none, ignore_scope,
        smooth_nr, smooth_dr, invalid_values, reduction, grouping, weight or none, weighted_mean, empty_mask, eps,
        log_loss,
    }
    "dice_cross_entropy" | "DiceCELoss" => DiceCrossEntropyLoss {
        overlap: Overlap, cross_entropy: CrossEntropyPart, ignore_index or none, lambda_dice, lambda_ce,
    }
    "dice_focal" => DiceFocalLoss {
        overlap: Overlap, focal: FocalPart, ignore_index or none, lambda_dice, focal_background, lambda_focal,
    }
    "focal_tversky" => FocalTverskyLoss {
        alpha, beta, gamma, power, activation, measure, include_background, classes or none: Vec<i64> => as_slice,
        ignore_index or none, ignore_scope, smooth_nr, smooth_dr, invalid_values, reduction, grouping,
        weight or none, weighted_mean, empty_mask, eps, log_loss,
    }
    "generalized_dice" => GeneralizedDiceLoss {
        weighting, batch, activation, measure, include_background,
        classes or none: Vec<i64> => as_slice, ignore_index or none,
        ignore_scope, smooth_nr, smooth_dr, invalid_values, reduction,
    }
    "hausdorff_dt" | "hausdorff" => HausdorffDtLoss {
        alpha, activation, include_background, grouping, no_boundary, log, invalid_values, reduction,
    }
    "jaccard" => JaccardLoss {
        activation, measure, include_background,
        classes or none: Vec<i64> => as_slice, ignore_index or none, ignore_scope,
        smooth_nr, smooth_dr, invalid_values, reduction, grouping, weight or none, weighted_mean, empty_mask, eps,
        log_loss,
    }
    "lovasz_hinge" => LovaszHingeLoss { per_image, ignore_index or none, invalid_values, reduction }
    "lovasz_softmax" => LovaszSoftmaxLoss {
        activation, per_image, classes, weight or none, ignore_index or none, invalid_values, reduction,
    }
    "mcc" => MccLoss { activation, eps, invalid_values }
    "soft_cldice" => SoftClDiceLoss {
        iterations, smooth_nr, smooth_dr, smooth, activation, include_background, grouping, invalid_values,
        reduction,
    }
    "soft_dice_cldice" => SoftDiceClDiceLoss {
        alpha, iterations, smooth_nr, smooth_dr, smooth, activation, include_background, invalid_values, reduction,
    }
    "tversky" => TverskyLoss {
        alpha, beta, activation, measure, include_background,
        classes or none: Vec<i64> => as_slice, ignore_index or none,
        ignore_scope, smooth_nr, smooth_dr, invalid_values, reduction, grouping, weight or none, weighted_mean,
        empty_mask, eps, log_loss,
    }
    "barlow_twins" => BarlowTwinsLoss { lambda_param }
    "negative_cosine_similarity" => NegativeCosineSimilarity { dim, eps, reduction }
    "vicreg" => VicRegLoss { lambda_param, mu_param, nu_param, eps }
    "ssim" => SsimLoss {
        spatial_dims or none, window, window_size: Vec<i64> => as_slice, sigma: Vec<f64> => as_slice, data_range, k1, k2, eps, padding,
        form, scope, reduction,
    }
    "ms_ssim" => MsSsimLoss {
        spatial_dims or none, weights: Vec<f64> => as_slice, window, window_size: Vec<i64> => as_slice, sigma: Vec<f64> => as_slice,
        data_range, k1, k2, scope, reduction,
    }
    "ms_ssim_l1" => MsSsimL1Loss { sigmas: Vec<f64> => as_slice, data_range, k1, k2, alpha, compensation, reduction }
    "psnr" => PsnrLoss { data_range, eps, scope, reduction }
    "complete_box_iou" | "CIoU" => CompleteBoxIouLoss { eps, alpha_eps, weight or none, divisor: Divisor, reduction }
    "distance_box_iou" | "DIoU" => DistanceBoxIouLoss { eps, weight or none, divisor: Divisor, reduction }
    "distribution_focal" | "DFL" => DistributionFocalLoss { weight or none, divisor: Divisor, invalid_values, reduction }
    "generalized_box_iou" | "GIoU" => GeneralizedBoxIouLoss { eps, weight or none, divisor: Divisor, reduction }
    "quality_focal" | "QFL" => QualityFocalLoss { beta, weight or none, divisor: Divisor, invalid_values, reduction }
    "varifocal" | "VFL" => VarifocalLoss { alpha, gamma, weight or none, divisor: Divisor, invalid_values, reduction }
}
