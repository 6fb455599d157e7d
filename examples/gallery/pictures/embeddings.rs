//! Losses of a batch of embeddings with labels, and of vectors for classes, over the angle at which one of them stands.

use std::f64::consts::PI;

use tch::Tensor;
use tch_losses::{
    ArcFace, BatchTripletMarginLoss, CircleLoss, ContrastiveLoss, CosFace, EmbeddingDistance, EmbeddingReduction,
    GeneralizedLiftedStructureLoss, LiftedStructureLoss, Loss, MultiSimilarityLoss, NPairsLoss, NcaLoss, NtXentLoss,
    ProxyAnchor, ProxyNca, SupConLoss,
};

use super::{labels, unit, unit_at};
use crate::picture::Picture;
use crate::scene::{Role, Scene, Shape};

/// Where the anchor, and the two embeddings of the other class stand.
const ANCHOR: f64 = 0.0;
const OTHERS: [f64; 2] = [1.8, 2.2];
/// Between the classes that have a vector each.
const BETWEEN_CLASSES: f64 = 2.0;

pub fn pictures() -> Vec<Picture> {
    let mut all = of_batches();
    all.extend(of_class_vectors());
    all
}

/// The loss of a batch of four on the circle, in which one moves that belongs to the anchor, or does not.
fn moved(loss: impl Loss + Clone + 'static, label: i64) -> impl Fn(&Tensor) -> Tensor {
    move |x| {
        let fixed = [ANCHOR, OTHERS[0], OTHERS[1]].map(unit_at);
        let batch = Tensor::stack(&[&fixed[0], &unit(x), &fixed[1], &fixed[2]], 0);
        // One that does not belong to the anchor leaves it a partner.
        match label {
            0 => loss.forward(&batch, &labels(&[0, 0, 1, 1])),
            _ => {
                let batch = Tensor::cat(&[batch, unit_at(-0.4).unsqueeze(0)], 0);
                loss.forward(&batch, &labels(&[0, 1, 1, 1, 0]))
            }
        }
    }
}

fn circle() -> Scene {
    let at = |angle: f64| [angle.cos(), angle.sin()];
    Scene::new("x moves on the circle", -1.5..1.5)
        .with(Shape::Circle([0.0, 0.0], 1.0, Role::Other))
        .with(Shape::Dot(at(ANCHOR), "A", Role::Target))
        .with(Shape::Dot(at(0.8), "x", Role::Moved))
        .with(Shape::Dot(at(OTHERS[0]), "B", Role::Other))
        .with(Shape::Dot(at(OTHERS[1]), "B", Role::Other))
}

fn of_batches() -> Vec<Picture> {
    fn on_circle(name: &'static str, losses: &'static [&'static str], loss: impl Loss + Clone + 'static) -> Picture {
        Picture::new(name, losses, "angle of x from A, in radians", 0.05..PI)
            .curve("x is an A", moved(loss.clone(), 0))
            .curve("x is a B", moved(loss, 1))
            .scene(circle)
    }
    // Two embeddings on a line, whose distance is x.
    let apart = |label: i64, margin: f64| {
        move |x: &Tensor| {
            let plain = EmbeddingDistance::lp().normalize_embeddings(false);
            let loss = ContrastiveLoss::new().neg_margin(margin).distance(plain);
            loss.forward(&Tensor::stack(&[&x.zeros_like(), x], 0).unsqueeze(1), &labels(&[0, label]))
        }
    };
    vec![
        Picture::new("contrastive", &["ContrastiveLoss"], "distance of two embeddings", 0.02..2.5)
            .curve("alike", apart(0, 1.0))
            .curve("unlike, margin 1", apart(1, 1.0))
            .curve("unlike, margin 2", apart(1, 2.0)),
        on_circle("nt_xent", &["NtXentLoss"], NtXentLoss::new().temperature(0.3)),
        on_circle("sup_con", &["SupConLoss"], SupConLoss::new().temperature(0.3)),
        on_circle("multi_similarity", &["MultiSimilarityLoss"], MultiSimilarityLoss::new()),
        on_circle("circle", &["CircleLoss"], CircleLoss::new().gamma(8.0)),
        on_circle("n_pairs", &["NPairsLoss"], NPairsLoss::new()),
        on_circle("nca", &["NcaLoss"], NcaLoss::new()),
        on_circle("lifted_structure", &["LiftedStructureLoss"], LiftedStructureLoss::new()),
        on_circle(
            "generalized_lifted_structure",
            &["GeneralizedLiftedStructureLoss"],
            GeneralizedLiftedStructureLoss::new(),
        ),
        on_circle("batch_triplet_margin", &["BatchTripletMarginLoss"], loss_of_triplets()),
    ]
}

/// Over all triplets. The default is over those that cost something, whose number jumps.
fn loss_of_triplets() -> BatchTripletMarginLoss {
    BatchTripletMarginLoss::new().margin(0.5).reduction(EmbeddingReduction::Mean)
}

/// The vectors of two classes, as rows.
fn vectors() -> Tensor {
    Tensor::stack(&[unit_at(0.0), unit_at(BETWEEN_CLASSES)], 0)
}

fn of_class_vectors() -> Vec<Picture> {
    let scene = || {
        let at = |angle: f64| [angle.cos(), angle.sin()];
        Scene::new("x belongs to class A", -1.5..1.5)
            .with(Shape::Circle([0.0, 0.0], 1.0, Role::Other))
            .with(Shape::Arrow([0.0, 0.0], at(0.0)))
            .with(Shape::Arrow([0.0, 0.0], at(BETWEEN_CLASSES)))
            .with(Shape::Dot(at(0.0), "A", Role::Target))
            .with(Shape::Dot(at(BETWEEN_CLASSES), "B", Role::Other))
            .with(Shape::Dot(at(0.8), "x", Role::Moved))
    };
    let over_angle = |name, losses| {
        Picture::new(name, losses, "angle of x from its class, in radians", 0.02..BETWEEN_CLASSES).scene(scene)
    };
    let class = || labels(&[0]);
    let columns = || vectors().transpose(0, 1).contiguous();
    let embedding = |x: &Tensor| unit(x).unsqueeze(0);
    vec![
        over_angle("arc_face", &["ArcFaceLoss", "ArcFace"]).each("margin, degrees:", &[0.0, 28.6, 45.0], |margin| {
            move |x: &Tensor| ArcFace::new().scale(16.0).margin(margin).forward(&embedding(x), &columns(), &class())
        }),
        over_angle("cos_face", &["CosFaceLoss", "CosFace"]).each("margin", &[0.0, 0.35, 0.7], |margin| {
            move |x: &Tensor| CosFace::new().scale(16.0).margin(margin).forward(&embedding(x), &columns(), &class())
        }),
        over_angle("proxy_anchor", &["ProxyAnchorLoss", "ProxyAnchor"]).each("α =", &[8.0, 32.0], |alpha| {
            move |x: &Tensor| ProxyAnchor::new().alpha(alpha).forward(&embedding(x), &vectors(), &class())
        }),
        over_angle("proxy_nca", &["ProxyNcaLoss", "ProxyNca"]).each("scale", &[1.0, 3.0, 9.0], |scale| {
            move |x: &Tensor| ProxyNca::new().softmax_scale(scale).forward(&embedding(x), &vectors(), &class())
        }),
    ]
}
