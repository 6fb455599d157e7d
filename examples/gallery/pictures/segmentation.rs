//! Losses of masks, over a disc that is moved past the one that is to be found, or that grows.

use tch::{Device, Kind, Tensor};
use tch_losses::{
    Activation, DiceCrossEntropyLoss, DiceFocalLoss, DiceLoss, FocalTverskyLoss, GeneralizedDiceLoss, HausdorffDtLoss,
    JaccardLoss, Loss, LovaszHingeLoss, LovaszSoftmaxLoss, MccLoss, OverlapMeasure, SoftClDiceLoss, SoftDiceClDiceLoss,
    TverskyLoss,
};

use crate::picture::Picture;
use crate::scene::{Role, Scene, Shape};

/// Pixels on a side of the image, which is the square from −1 to 1.
const SIDE: i64 = 40;
/// The radius of the disc that is to be found.
const RADIUS: f64 = 0.4;
/// How fast the logits rise at the edge of the predicted disc.
const STEEPNESS: f64 = 12.0;
/// Half the height of the line that is to be found.
const THIN: f64 = 0.075;

pub fn pictures() -> Vec<Picture> {
    let probabilities: Form = |loss, logits| loss.forward(&logits.sigmoid(), &disc());
    let scores: Form = |loss, logits| loss.forward(&logits, &disc());
    let softmax: Form = |loss, logits| loss.forward(&classes(&logits), &class_indices());
    vec![
        moving("dice", &["DiceLoss"])
            .curve("Dice", over(shifted, probabilities, DiceLoss::new()))
            .curve("of squares", over(shifted, probabilities, DiceLoss::new().measure(OverlapMeasure::Squared))),
        moving("jaccard", &["JaccardLoss"])
            .curve("Jaccard", over(shifted, probabilities, JaccardLoss::new()))
            .curve("Dice", over(shifted, probabilities, DiceLoss::new())),
        growing("tversky", &["TverskyLoss"])
            .curve("α = β = 0.5", over(grown, probabilities, TverskyLoss::new().alpha(0.5).beta(0.5)))
            .curve("α 0.3, β 0.7", over(grown, probabilities, TverskyLoss::new().alpha(0.3).beta(0.7)))
            .curve("α 0.1, β 0.9", over(grown, probabilities, TverskyLoss::new().alpha(0.1).beta(0.9))),
        growing("focal_tversky", &["FocalTverskyLoss"])
            .curve("γ = 0.75", over(grown, probabilities, FocalTverskyLoss::new()))
            .curve("γ = 1", over(grown, probabilities, FocalTverskyLoss::new().gamma(1.0)))
            .curve("γ = 2", over(grown, probabilities, FocalTverskyLoss::new().gamma(2.0))),
        growing("generalized_dice", &["GeneralizedDiceLoss"])
            .curve("generalised", over(grown, softmax, GeneralizedDiceLoss::new().activation(Activation::Softmax)))
            .curve("DiceLoss", over(grown, softmax, DiceLoss::new().activation(Activation::Softmax))),
        moving("lovasz_hinge", &["LovaszHingeLoss"])
            .curve("Lovász hinge", over(shifted, scores, LovaszHingeLoss::new())),
        moving("lovasz_softmax", &["LovaszSoftmaxLoss"])
            .curve("Lovász softmax", over(shifted, softmax, LovaszSoftmaxLoss::new()))
            .curve("JaccardLoss", over(shifted, softmax, JaccardLoss::new().activation(Activation::Softmax))),
        moving("mcc", &["MccLoss"])
            .curve("MCC", over(shifted, probabilities, MccLoss::new()))
            .curve("DiceLoss", over(shifted, probabilities, DiceLoss::new())),
        moving("hausdorff_dt", &["HausdorffDtLoss"])
            .curve("α = 2", over(shifted, probabilities, HausdorffDtLoss::new()))
            .curve("α = 1", over(shifted, probabilities, HausdorffDtLoss::new().alpha(1.0))),
        broken("soft_cldice", &["SoftClDiceLoss"])
            .curve("soft clDice", broken_line(SoftClDiceLoss::new()))
            .curve("DiceLoss", broken_line(DiceLoss::new())),
        broken("soft_dice_cldice", &["SoftDiceClDiceLoss"])
            .curve("α = 0.5", broken_line(SoftDiceClDiceLoss::new()))
            .curve("α = 0.1", broken_line(SoftDiceClDiceLoss::new().alpha(0.1))),
        moving("dice_cross_entropy", &["DiceCrossEntropyLoss"])
            .curve("both", over(shifted, softmax, DiceCrossEntropyLoss::new()))
            .curve("Dice alone", over(shifted, softmax, DiceCrossEntropyLoss::new().lambda_ce(0.0)))
            .curve("entropy alone", over(shifted, softmax, DiceCrossEntropyLoss::new().lambda_dice(0.0))),
        moving("dice_focal", &["DiceFocalLoss"])
            .curve("both", over(shifted, softmax, DiceFocalLoss::new()))
            .curve("Dice alone", over(shifted, softmax, DiceFocalLoss::new().lambda_focal(0.0)))
            .curve("focal alone", over(shifted, softmax, DiceFocalLoss::new().lambda_dice(0.0))),
    ]
}

/// Calls a loss with the logits of the disc in the form that it takes.
type Form = fn(&dyn Loss, Tensor) -> Tensor;

fn over(logits: fn(&Tensor) -> Tensor, form: Form, loss: impl Loss + 'static) -> impl Fn(&Tensor) -> Tensor {
    move |x| form(&loss, logits(x))
}

/// The predicted disc moves to the right.
fn moving(name: &'static str, losses: &'static [&'static str]) -> Picture {
    let scene = || {
        Scene::new("a mask that moves", -1.0..1.0)
            .with(Shape::Circle([0.0, 0.0], RADIUS, Role::Target))
            .with(Shape::Circle([0.5, 0.0], RADIUS, Role::Moved))
            .with(Shape::Arrow([0.0, 0.0], [0.5, 0.0]))
    };
    Picture::new(name, losses, "shift of the mask", -1.2..1.2).scene(scene)
}

/// The radius of the predicted disc changes.
fn growing(name: &'static str, losses: &'static [&'static str]) -> Picture {
    let scene = || {
        Scene::new("a mask that grows", -1.0..1.0)
            .with(Shape::Circle([0.0, 0.0], RADIUS, Role::Target))
            .with(Shape::Circle([0.0, 0.0], 0.15, Role::Trace))
            .with(Shape::Circle([0.0, 0.0], 0.7, Role::Moved))
    };
    Picture::new(name, losses, "radius, the right one is 0.4", 0.02..0.9).scene(scene)
}

/// A gap in a thin line opens.
fn broken(name: &'static str, losses: &'static [&'static str]) -> Picture {
    let scene = || {
        Scene::new("a line that breaks", -1.0..1.0)
            .with(Shape::Box([-0.9, -THIN, 0.9, THIN], Role::Target))
            .with(Shape::Box([-0.9, -THIN, -0.2, THIN], Role::Moved))
            .with(Shape::Box([0.2, -THIN, 0.9, THIN], Role::Moved))
    };
    Picture::new(name, losses, "width of the gap", 0.0..1.0).scene(scene)
}

/// The places of the pixels in one direction.
fn places() -> Tensor {
    Tensor::linspace(-1.0, 1.0, SIDE, (Kind::Double, Device::Cpu))
}

/// How far the pixels are from a place on the horizontal axis, `[1, 1, SIDE, SIDE]`.
fn distances(x: &Tensor) -> Tensor {
    let squares = (places() - x).square().view([1, SIDE]) + places().square().view([SIDE, 1]);
    // The root has no slope in 0.
    (squares + 1e-9).sqrt().view([1, 1, SIDE, SIDE])
}

/// The logits of a disc.
fn logits(x: &Tensor, radius: &Tensor) -> Tensor {
    (radius - distances(x)) * STEEPNESS
}

fn shifted(x: &Tensor) -> Tensor {
    logits(x, &Tensor::from(RADIUS))
}

fn grown(radius: &Tensor) -> Tensor {
    logits(&Tensor::from(0.0), radius)
}

/// The mask that is to be found.
fn disc() -> Tensor {
    distances(&Tensor::from(0.0)).lt(RADIUS).to_kind(Kind::Double)
}

fn class_indices() -> Tensor {
    disc().squeeze_dim(1).to_kind(Kind::Int64)
}

/// Logits of the background and of the disc.
fn classes(logits: &Tensor) -> Tensor {
    Tensor::cat(&[logits.zeros_like(), logits.shallow_clone()], 1)
}

/// The loss of a thin line with a gap of a width in the middle.
fn broken_line(loss: impl Loss + 'static) -> impl Fn(&Tensor) -> Tensor {
    let inside = |outside: Tensor| (-outside * 4.0 * STEEPNESS).sigmoid();
    let size = || places().abs();
    let line = move || inside(size() - THIN).view([SIDE, 1]) * inside(size() - 0.9).view([1, SIDE]);
    move |gap: &Tensor| {
        let target = line().gt(0.5).to_kind(Kind::Double).view([1, 1, SIDE, SIDE]);
        let predicted = line() * (1_f64 - inside(size() - gap / 2.0)).view([1, SIDE]);
        loss.forward(&predicted.view([1, 1, SIDE, SIDE]), &target)
    }
}
