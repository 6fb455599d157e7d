//! Losses of boxes, over a box that is moved past its target, and of the scores of boxes.

use tch::Tensor;
use tch_losses::{
    CompleteBoxIouLoss, DistanceBoxIouLoss, DistributionFocalLoss, GeneralizedBoxIouLoss, Loss, QualityFocalLoss,
    Reduction, VarifocalLoss,
};

use super::{element, numbers};
use crate::picture::Picture;
use crate::scene::{Role, Scene, Shape};

/// A square, and a box of another shape in the same place.
const TARGET: [f64; 4] = [-0.5, -0.5, 0.5, 0.5];
const FLAT: [f64; 4] = [-0.8, -0.2, 0.8, 0.2];
const SHIFT: f64 = 1.1;

pub fn pictures() -> Vec<Picture> {
    let generalized = || GeneralizedBoxIouLoss::new().reduction(Reduction::Mean);
    let distance = || DistanceBoxIouLoss::new().reduction(Reduction::Mean);
    let complete = || CompleteBoxIouLoss::new().reduction(Reduction::Mean);
    let over_logit = |name, losses| Picture::new(name, losses, "logit", -5.0..5.0);
    vec![
        moving("generalized_box_iou", &["GeneralizedBoxIouLoss"])
            .curve("GIoU, same shape", moved(generalized(), TARGET))
            .curve("GIoU, flat box", moved(generalized(), FLAT)),
        moving("distance_box_iou", &["DistanceBoxIouLoss"])
            .curve("DIoU, flat box", moved(distance(), FLAT))
            .curve("GIoU, flat box", moved(generalized(), FLAT)),
        moving("complete_box_iou", &["CompleteBoxIouLoss"])
            .curve("CIoU, flat box", moved(complete(), FLAT))
            .curve("DIoU", moved(distance(), FLAT))
            .curve("GIoU", moved(generalized(), FLAT)),
        over_logit("quality_focal", &["QualityFocalLoss"])
            .each("quality", &[0.0, 0.5, 0.8, 1.0], |quality| element(QualityFocalLoss::new(), quality)),
        over_logit("varifocal", &["VarifocalLoss"])
            .each("quality", &[0.0, 0.5, 0.8, 1.0], |quality| element(VarifocalLoss::new(), quality)),
        Picture::new(
            "distribution_focal",
            &["DistributionFocalLoss"],
            "centre of the predicted distribution",
            0.0..7.0,
        )
        .each("target", &[2.0, 3.5, 5.0], |target| {
            move |x: &Tensor| DistributionFocalLoss::new().forward(&bell(x), &Tensor::from(target))
        }),
    ]
}

fn moving(name: &'static str, losses: &'static [&'static str]) -> Picture {
    let [x0, y0, x1, y1] = FLAT;
    let scene = move || {
        Scene::new("a box that moves", -2.0..2.0)
            .with(Shape::Box(TARGET, Role::Target))
            .with(Shape::Box([x0 + SHIFT, y0, x1 + SHIFT, y1], Role::Moved))
            .with(Shape::Arrow([0.0, 0.0], [SHIFT, 0.0]))
    };
    Picture::new(name, losses, "shift of the box", -2.5..2.5).scene(scene)
}

/// The loss of a box that is shifted along the first axis.
fn moved(loss: impl Loss + 'static, corners: [f64; 4]) -> impl Fn(&Tensor) -> Tensor {
    move |x| loss.forward(&(numbers(&corners) + x * numbers(&[1.0, 0.0, 1.0, 0.0])), &numbers(&TARGET))
}

/// The logits of a bell around x in eight bins.
fn bell(x: &Tensor) -> Tensor {
    let bins: Vec<f64> = (0..8).map(f64::from).collect();
    -(numbers(&bins) - x).square() / 2.0
}
