//! Losses between real numbers, over how far the prediction is off.

use tch::Tensor;
use tch_losses::{
    CauchyLoss, CharbonnierLoss, GaussianNllLoss, GemanMcClureLoss, HuberLoss, L1Loss, LogCoshLoss, MapeLoss, MseLoss,
    MsleLoss, PoissonNllLoss, QuantileLoss, SmoothL1Loss, WelschLoss,
};

use super::{element, numbers};
use crate::picture::Picture;

const ERROR: &str = "input − target";

pub fn pictures() -> Vec<Picture> {
    let over_error = |name, losses| Picture::new(name, losses, ERROR, -3.0..3.0);
    vec![
        over_error("l1", &["L1Loss"]).curve("|x − y|", element(L1Loss::new(), 0.0)),
        over_error("mse", &["MseLoss"])
            .curve("(x − y)²", element(MseLoss::new(), 0.0))
            .curve("L1Loss", element(L1Loss::new(), 0.0)),
        over_error("smooth_l1", &["SmoothL1Loss"])
            .each("β =", &[0.5, 1.0, 2.0], |beta| element(SmoothL1Loss::new().beta(beta), 0.0)),
        over_error("huber", &["HuberLoss"])
            .each("δ =", &[0.5, 1.0, 2.0], |delta| element(HuberLoss::new().delta(delta), 0.0)),
        Picture::new("poisson_nll", &["PoissonNllLoss"], "input, the logarithm of the rate", -2.0..2.5).each(
            "target",
            &[0.0, 1.0, 3.0, 6.0],
            |count| element(PoissonNllLoss::new(), count),
        ),
        over_error("gaussian_nll", &["GaussianNllLoss"]).each("var =", &[0.25, 1.0, 4.0], |variance| {
            move |x: &Tensor| GaussianNllLoss::new().forward(&x.view([1]), &numbers(&[0.0]), variance)
        }),
        over_error("charbonnier", &["CharbonnierLoss"])
            .each("ε =", &[0.1, 0.5, 1.0], |eps| element(CharbonnierLoss::new().eps(eps), 0.0)),
        over_error("log_cosh", &["LogCoshLoss"])
            .curve("log cosh(x − y)", element(LogCoshLoss::new(), 0.0))
            .curve("HuberLoss", element(HuberLoss::new(), 0.0)),
        Picture::new("cauchy", &["CauchyLoss"], ERROR, -6.0..6.0)
            .each("scale", &[0.5, 1.0, 2.0], |scale| element(CauchyLoss::new().scale(scale), 0.0)),
        Picture::new("geman_mcclure", &["GemanMcClureLoss"], ERROR, -6.0..6.0).each(
            "scale",
            &[0.5, 1.0, 2.0],
            |scale| element(GemanMcClureLoss::new().scale(scale), 0.0),
        ),
        Picture::new("welsch", &["WelschLoss"], ERROR, -6.0..6.0)
            .each("scale", &[0.5, 1.0, 2.0], |scale| element(WelschLoss::new().scale(scale), 0.0)),
        Picture::new("msle", &["MsleLoss"], "input", 0.0..10.0)
            .each("target", &[1.0, 3.0, 6.0], |target| element(MsleLoss::new(), target)),
        Picture::new("mape", &["MapeLoss"], "input", 0.0..10.0)
            .each("target", &[1.0, 3.0, 6.0], |target| element(MapeLoss::new(), target)),
        over_error("quantile", &["QuantileLoss"])
            .each("q =", &[0.1, 0.5, 0.9], |quantile| element(QuantileLoss::new().quantiles(quantile), 0.0)),
    ]
}
