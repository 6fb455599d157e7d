//! Losses of classes and labels, over a score.

use tch::Tensor;
use tch_losses::{
    AsymmetricMultiLabelLoss, AsymmetricSingleLabelLoss, BceLoss, BceWithLogitsLoss, CategoricalHingeLoss,
    CrossEntropyLoss, FocalAlpha, HingeLoss, JsdCrossEntropyLoss, LinearCrossEntropy, Loss, MultiLabelMarginLoss,
    MultiLabelSoftMarginLoss, MultiMarginLoss, NllLoss, OneVsRestFocalLoss, PolyBceWithLogitsLoss,
    PolyCrossEntropyLoss, SigmoidFocalLoss, SoftBceWithLogitsLoss, SoftMarginLoss, SoftmaxFocalLoss,
};

use super::{element, labels, numbers, right_score, row};
use crate::picture::Picture;
use crate::scene::Scene;

const RIGHT: &str = "score of the right class";
const LOGIT: &str = "logit";
const GAMMAS: [f64; 4] = [0.0, 1.0, 2.0, 5.0];

pub fn pictures() -> Vec<Picture> {
    let mut all = of_one_class();
    all.extend(of_labels());
    all.extend(of_margins());
    all
}

fn of_one_class() -> Vec<Picture> {
    let over_right = |name, losses| Picture::new(name, losses, RIGHT, -4.0..7.0);
    let linear = |options: fn() -> LinearCrossEntropy| {
        // The weight of the layer makes the score of the first class of the input, and 0 of the others.
        let weight = numbers(&[1.0, 0.0, 0.0]).view([3, 1]);
        move |x: &Tensor| options().forward(&x.view([1, 1]), &weight, &labels(&[0]), None)
    };
    vec![
        over_right("cross_entropy", &["CrossEntropyLoss"])
            .each("smoothing", &[0.0, 0.1, 0.3], |share| right_score(CrossEntropyLoss::new().label_smoothing(share))),
        Picture::new("nll", &["NllLoss"], "log-probability of the right class", -5.0..0.0).each(
            "class weight",
            &[0.5, 1.0, 2.0],
            |weight| {
                // A mean is divided by the weights, so that one sample alone shows none.
                let loss = NllLoss::new().weight(numbers(&[weight, 1.0])).reduction(tch_losses::Reduction::Sum);
                move |x: &Tensor| loss.forward(&row(&[x, &Tensor::from(-1.0)]), &labels(&[0]))
            },
        ),
        over_right("softmax_focal", &["SoftmaxFocalLoss"])
            .each("γ =", &GAMMAS, |gamma| right_score(SoftmaxFocalLoss::new().gamma(gamma))),
        over_right("one_vs_rest_focal", &["OneVsRestFocalLoss"])
            .each("γ =", &GAMMAS, |gamma| right_score(OneVsRestFocalLoss::new().gamma(gamma))),
        over_right("asymmetric_single_label", &["AsymmetricSingleLabelLoss"]).each(
            "smoothing",
            &[0.0, 0.1, 0.3],
            |share| right_score(AsymmetricSingleLabelLoss::new().label_smoothing(share)),
        ),
        over_right("poly_cross_entropy", &["PolyCrossEntropyLoss"])
            .each("ε =", &[0.0, 1.0, 2.0, 4.0], |epsilon| right_score(PolyCrossEntropyLoss::new().epsilon(epsilon))),
        Picture::new("jsd_cross_entropy", &["JsdCrossEntropyLoss"], "score that two augmented copies lose", 0.0..6.0)
            .each("α =", &[0.0, 4.0, 12.0], |alpha| {
                let loss = JsdCrossEntropyLoss::new().alpha(alpha).label_smoothing(0.0);
                move |x: &Tensor| loss.forward(&copies(x), &labels(&[0]))
            }),
        over_right("linear_cross_entropy", &["LinearCrossEntropy", "LinearCrossEntropyLoss"])
            .curve("as cross entropy", linear(LinearCrossEntropy::new))
            .curve("z-loss 0.05", linear(|| LinearCrossEntropy::new().z_loss(0.05)))
            .curve("soft cap 3", linear(|| LinearCrossEntropy::new().soft_cap(3.0))),
    ]
}

/// Three copies of a sample of three classes: the clean one, and two whose right score is less by x and by half of it.
fn copies(x: &Tensor) -> Tensor {
    let zero = Tensor::from(0.0);
    let scores = [Tensor::from(3.0), 3.0 - x, 3.0 - x / 2.0];
    let rows: Vec<Tensor> = scores.iter().map(|score| row(&[score, &zero, &zero])).collect();
    Tensor::cat(&rows, 0)
}

/// One label of one sample.
fn label(loss: impl Loss + 'static, target: f64) -> impl Fn(&Tensor) -> Tensor {
    let target = numbers(&[target]).view([1, 1]);
    move |x| loss.forward(&x.view([1, 1]), &target)
}

fn of_labels() -> Vec<Picture> {
    let over_logit = |name, losses| Picture::new(name, losses, LOGIT, -5.0..5.0);
    let over_target = |name, losses| Picture::new(name, losses, "logit, the target is 1", -5.0..5.0);
    let weighted = || BceWithLogitsLoss::new().pos_weight(numbers(&[3.0]));
    let focal = |gamma| SigmoidFocalLoss::new().alpha(FocalAlpha::None).gamma(gamma);
    let shifted = |clip| AsymmetricMultiLabelLoss::new().clip(clip);
    vec![
        Picture::new("bce", &["BceLoss"], "probability", 0.02..0.98)
            .curve("target 1", element(BceLoss::new(), 1.0))
            .curve("target 0.5", element(BceLoss::new(), 0.5))
            .curve("target 0", element(BceLoss::new(), 0.0)),
        over_logit("bce_with_logits", &["BceWithLogitsLoss"])
            .curve("target 1", element(BceWithLogitsLoss::new(), 1.0))
            .curve("target 1, positive weight 3", element(weighted(), 1.0))
            .curve("target 0", element(BceWithLogitsLoss::new(), 0.0)),
        over_logit("soft_bce_with_logits", &["SoftBceWithLogitsLoss"]).each(
            "target 1, smoothing",
            &[0.0, 0.1, 0.3],
            |share| element(SoftBceWithLogitsLoss::new().label_smoothing(share), 1.0),
        ),
        over_logit("multi_label_soft_margin", &["MultiLabelSoftMarginLoss"])
            .curve("label present", label(MultiLabelSoftMarginLoss::new(), 1.0))
            .curve("label absent", label(MultiLabelSoftMarginLoss::new(), 0.0)),
        over_target("sigmoid_focal", &["SigmoidFocalLoss"]).each("γ =", &GAMMAS, |gamma| element(focal(gamma), 1.0)),
        over_logit("asymmetric_multi_label", &["AsymmetricMultiLabelLoss"])
            .curve("label present", label(shifted(0.05), 1.0))
            .curve("absent", label(shifted(0.05), 0.0))
            .curve("absent, clip 0", label(shifted(0.0), 0.0))
            .curve("absent, clip 0.2", label(shifted(0.2), 0.0)),
        over_target("poly_bce_with_logits", &["PolyBceWithLogitsLoss"])
            .each("ε =", &[0.0, 1.0, 2.0, 4.0], |epsilon| element(PolyBceWithLogitsLoss::new().epsilon(epsilon), 1.0)),
    ]
}

fn of_margins() -> Vec<Picture> {
    let over_right = |name, losses| Picture::new(name, losses, RIGHT, -2.0..3.0);
    vec![
        Picture::new("hinge", &["HingeLoss"], "score", -2.0..2.0)
            .curve("target 1", element(HingeLoss::new(), 1.0))
            .curve("target 1, squared", element(HingeLoss::new().p(2), 1.0))
            .curve("target −1", element(HingeLoss::new(), -1.0)),
        Picture::new("soft_margin", &["SoftMarginLoss"], "score", -4.0..4.0)
            .curve("target 1", element(SoftMarginLoss::new(), 1.0))
            .curve("target −1", element(SoftMarginLoss::new(), -1.0)),
        over_right("multi_margin", &["MultiMarginLoss"])
            .curve("margin 1", right_score(MultiMarginLoss::new()))
            .curve("margin 0.5", right_score(MultiMarginLoss::new().margin(0.5)))
            .curve("margin 1, p = 2", right_score(MultiMarginLoss::new().p(2)))
            .scene(|| region(&MultiMarginLoss::new())),
        over_right("categorical_hinge", &["CategoricalHingeLoss"])
            .each("margin", &[0.5, 1.0, 2.0], |margin| right_score(CategoricalHingeLoss::new().margin(margin)))
            .scene(|| region(&CategoricalHingeLoss::new())),
        Picture::new("multi_label_margin", &["MultiLabelMarginLoss"], "score of the label", -2.0..3.0)
            .curve("others at 0 and −1", move |x: &Tensor| {
                let scores = row(&[x, &Tensor::from(0.0), &Tensor::from(-1.0)]);
                MultiLabelMarginLoss::new().forward(&scores, &labels(&[0, -1, -1]).view([1, 3]))
            })
            .curve("others at 0 and 1", move |x: &Tensor| {
                let scores = row(&[x, &Tensor::from(0.0), &Tensor::from(1.0)]);
                MultiLabelMarginLoss::new().forward(&scores, &labels(&[0, -1, -1]).view([1, 3]))
            }),
    ]
}

/// The scores of the right class and of one rival, in the plane.
fn region(loss: &dyn Loss) -> Scene {
    Scene::new("hatched: no loss", -2.0..2.0)
        .axes("right score", "score of the rival")
        .region(&[0.5, 1.0, 2.0], &|plane| loss.forward(&plane.view([1, 2]), &labels(&[0])))
}
