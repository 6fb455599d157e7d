//! Losses of pairs and triplets that are passed in.

use std::f64::consts::PI;

use tch::Tensor;
use tch_losses::{
    CosineEmbeddingLoss, HingeEmbeddingLoss, MarginRankingLoss, TripletMarginLoss, TripletMarginWithDistanceLoss,
};

use super::{element, numbers, unit};
use crate::picture::Picture;
use crate::scene::{Role, Scene, Shape};

pub fn pictures() -> Vec<Picture> {
    vec![
        Picture::new("hinge_embedding", &["HingeEmbeddingLoss"], "distance", 0.0..2.5)
            .curve("alike (1)", element(HingeEmbeddingLoss::new(), 1.0))
            .curve("unlike (−1), margin 1", element(HingeEmbeddingLoss::new(), -1.0))
            .curve("unlike (−1), margin 2", element(HingeEmbeddingLoss::new().margin(2.0), -1.0)),
        Picture::new("cosine_embedding", &["CosineEmbeddingLoss"], "angle between the two, in radians", 0.0..PI)
            .curve("alike (1)", |x: &Tensor| cosine(x, 1.0, 0.0))
            .curve("unlike (−1), margin 0", |x: &Tensor| cosine(x, -1.0, 0.0))
            .curve("unlike (−1), margin 0.5", |x: &Tensor| cosine(x, -1.0, 0.5)),
        Picture::new("margin_ranking", &["MarginRankingLoss"], "first score − second score", -2.0..2.0)
            .each("target 1, margin", &[0.0, 0.5, 1.0], |margin| {
                move |x: &Tensor| ranking(&x.view([1]), &numbers(&[0.0]), margin)
            })
            .scene(|| {
                Scene::new("margin 0.5, hatched: no loss", -2.0..2.0)
                    .axes("first score", "second score")
                    .region(&[0.5, 1.0, 2.0], &|plane| ranking(&plane.narrow(0, 0, 1), &plane.narrow(0, 1, 1), 0.5))
            }),
        Picture::new("triplet_margin", &["TripletMarginLoss"], "distance from anchor to negative", 0.05..3.0)
            .each("positive 1 away, margin", &[0.2, 0.5, 1.0], |margin| {
                move |x: &Tensor| triplet(&Tensor::stack(&[x, &Tensor::from(0.0)], 0), margin)
            })
            .scene(|| {
                Scene::new("margin 0.5, hatched: no loss", -2.0..2.0)
                    .axes("place of the negative", "")
                    .region(&[0.25, 0.75, 1.25], &|negative| triplet(negative, 0.5))
                    .with(Shape::Dot([0.0, 0.0], "a", Role::Other))
                    .with(Shape::Dot([0.0, 1.0], "p", Role::Target))
            }),
        Picture::new(
            "triplet_margin_with_distance",
            &["TripletMarginWithDistanceLoss"],
            "angle from anchor to negative",
            0.0..PI,
        )
        .each("1 − cosine, positive at 0.5, margin", &[0.2, 0.5, 1.0], |margin| {
            let loss = TripletMarginWithDistanceLoss::new()
                .margin(margin)
                .distance_function(|a, b| Ok(1.0 - Tensor::f_cosine_similarity(a, b, -1, 1e-8)?));
            let at = |angle: &Tensor| unit(angle).unsqueeze(0);
            move |x: &Tensor| loss.forward(&at(&Tensor::from(0.0)), &at(&Tensor::from(0.5)), &at(x))
        }),
    ]
}

fn cosine(angle: &Tensor, target: f64, margin: f64) -> Tensor {
    let first = numbers(&[1.0, 0.0]).view([1, 2]);
    CosineEmbeddingLoss::new().margin(margin).forward(&first, &unit(angle).unsqueeze(0), &numbers(&[target]))
}

fn ranking(first: &Tensor, second: &Tensor, margin: f64) -> Tensor {
    MarginRankingLoss::new().margin(margin).forward(first, second, &numbers(&[1.0]))
}

/// The anchor is in the origin, and the positive one above it.
fn triplet(negative: &Tensor, margin: f64) -> Tensor {
    let at = |place: [f64; 2]| numbers(&place).view([1, 2]);
    TripletMarginLoss::new().margin(margin).forward(&at([0.0, 0.0]), &at([0.0, 1.0]), &negative.view([1, 2]))
}
