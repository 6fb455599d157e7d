//! Which described losses the Python originals are asked about, and with which options.

/// A described loss, its reference, and the options that both have by one name. A call with another option is not
/// checked.
pub const REFERENCES: &[(&str, &str, &[&str])] = &[
    ("l1", "torch.nn.functional.l1_loss", &["reduction", "weight"]),
    ("mse", "torch.nn.functional.mse_loss", &["reduction", "weight"]),
    ("smooth_l1", "torch.nn.functional.smooth_l1_loss", &["reduction", "beta"]),
    ("huber", "torch.nn.functional.huber_loss", &["reduction", "delta", "weight"]),
    ("poisson_nll", "torch.nn.functional.poisson_nll_loss", &["reduction", "log_input", "full", "eps"]),
    ("cross_entropy", "torch.nn.functional.cross_entropy", &["reduction", "weight", "ignore_index", "label_smoothing"]),
    ("nll", "torch.nn.functional.nll_loss", &["reduction", "weight", "ignore_index"]),
    ("bce", "torch.nn.functional.binary_cross_entropy", &["reduction", "weight"]),
    ("bce_with_logits", "torch.nn.functional.binary_cross_entropy_with_logits", &["reduction", "weight", "pos_weight"]),
    ("soft_margin", "torch.nn.functional.soft_margin_loss", &["reduction"]),
    ("multi_margin", "torch.nn.functional.multi_margin_loss", &["reduction", "p", "margin", "weight"]),
    ("multi_label_margin", "torch.nn.functional.multilabel_margin_loss", &["reduction"]),
    ("multi_label_soft_margin", "torch.nn.functional.multilabel_soft_margin_loss", &["reduction", "weight"]),
    ("kl_div", "torch.nn.functional.kl_div", &["reduction", "log_target"]),
    ("hinge_embedding", "torch.nn.functional.hinge_embedding_loss", &["reduction", "margin"]),
    ("sigmoid_focal", "torchvision.ops.sigmoid_focal_loss", &["reduction", "alpha", "gamma"]),
    ("generalized_box_iou", "torchvision.ops.generalized_box_iou_loss", &["reduction", "eps"]),
    ("distance_box_iou", "torchvision.ops.distance_box_iou_loss", &["reduction", "eps"]),
    ("complete_box_iou", "torchvision.ops.complete_box_iou_loss", &["reduction", "eps"]),
];

/// Options that change nothing in a call that is computed.
pub const WITHOUT_EFFECT: [&str; 2] = ["broadcast", "invalid_values"];

/// Whether a loss has a reference here.
pub fn has_reference(loss: &str) -> bool {
    REFERENCES.iter().any(|(name, ..)| *name == loss)
}
