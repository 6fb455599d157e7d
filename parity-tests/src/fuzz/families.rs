//! What each described loss takes.

use tch_losses::AnyLoss;

use super::tensors::Values;

/// What a loss takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Family {
    /// Two tensors of one shape.
    Elements { input: Values, target: Values },
    /// Logits of classes in the second dimension; the target has indices, or where it may the probabilities.
    Classes { probabilities: bool, spatial: bool, input: Values },
    /// Logits and the labels of each row.
    Labels,
    /// Logits of quantiles, one for each of the last dimension.
    Quantiles,
    /// Images split into augmented copies.
    Splits,
    /// Embeddings and their labels.
    Embeddings,
    /// Two tensors `[N, D]`.
    Views,
    /// Regions of classes, of `least` dimensions and more.
    Regions { least: usize },
    /// One channel, or any shape.
    Binary,
    /// Images.
    Images,
    /// Boxes.
    Boxes,
    /// Bins along the last dimension.
    Bins,
    /// A sum of losses of elements or of classes.
    Sum,
}

/// What a loss takes, by its name.
pub fn family(loss: &str) -> Option<Family> {
    let elements = |input, target| Some(Family::Elements { input, target });
    let classes = |probabilities, spatial, input| Some(Family::Classes { probabilities, spatial, input });
    match loss {
        "huber" | "l1" | "mse" | "smooth_l1" | "cauchy" | "charbonnier" | "geman_mcclure" | "log_cosh" | "mape"
        | "welsch" | "psnr" => elements(Values::Real, Values::Real),
        "msle" => elements(Values::Positive, Values::Positive),
        "poisson_nll" => elements(Values::Positive, Values::Positive),
        "bce" => elements(Values::Unit, Values::Soft),
        "asymmetric_multi_label"
        | "bce_with_logits"
        | "poly_bce_with_logits"
        | "sigmoid_focal"
        | "quality_focal"
        | "varifocal"
        | "multi_label_soft_margin" => elements(Values::Real, Values::Soft),
        "hinge" | "soft_margin" | "hinge_embedding" => elements(Values::Real, Values::Signs),
        "kl_div" => elements(Values::Negative, Values::Unit),
        "quantile" => Some(Family::Quantiles),
        "asymmetric_single_label" | "one_vs_rest_focal" => classes(false, true, Values::Real),
        "categorical_hinge" | "cross_entropy" | "poly_cross_entropy" | "softmax_focal" => {
            classes(true, true, Values::Real)
        }
        "nll" => classes(false, true, Values::LogProbabilities(1)),
        "soft_bce_with_logits" => classes(true, true, Values::Real),
        "multi_margin" => classes(false, false, Values::Real),
        "jsd_cross_entropy" => Some(Family::Splits),
        "multi_label_margin" => Some(Family::Labels),
        "contrastive"
        | "batch_triplet_margin"
        | "lifted_structure"
        | "generalized_lifted_structure"
        | "multi_similarity"
        | "nt_xent"
        | "sup_con"
        | "nca"
        | "circle"
        | "n_pairs" => Some(Family::Embeddings),
        "dice" | "dice_cross_entropy" | "dice_focal" | "focal_tversky" | "generalized_dice" | "jaccard" | "tversky" => {
            Some(Family::Regions { least: 2 })
        }
        "lovasz_softmax" => classes(false, true, Values::Probabilities(1)),
        "hausdorff_dt" | "soft_cldice" | "soft_dice_cldice" => Some(Family::Regions { least: 4 }),
        "lovasz_hinge" | "mcc" => Some(Family::Binary),
        "barlow_twins" | "negative_cosine_similarity" | "vicreg" => Some(Family::Views),
        "ssim" | "ms_ssim" | "ms_ssim_l1" => Some(Family::Images),
        "complete_box_iou" | "distance_box_iou" | "generalized_box_iou" => Some(Family::Boxes),
        "distribution_focal" => Some(Family::Bins),
        "sum" => Some(Family::Sum),
        _ => None,
    }
}

/// Whether each element has a loss of its own, which the numbers of others do not change.
pub fn takes_elements(loss: &str) -> bool {
    matches!(family(loss), Some(Family::Elements { .. }))
}

/// Whether the arguments are embeddings.
pub fn takes_embeddings(loss: &str) -> bool {
    matches!(family(loss), Some(Family::Embeddings | Family::Views))
}

/// The names of the losses that can be described.
pub fn losses() -> impl Iterator<Item = &'static str> {
    AnyLoss::names()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_has_a_family() {
        let missing: Vec<_> = losses().filter(|loss| family(loss).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
