//! The losses of pytorch-metric-learning that have parameters.

use tch::{Tensor, nn};
use tch_losses::{
    ArcFace, ArcFaceLoss, CosFace, CosFaceLoss, EmbeddingDistance, EmbeddingPairs, EmbeddingReduction, Loss, LossError,
    ProxyAnchor, ProxyAnchorLoss, ProxyNca, ProxyNcaLoss,
};

use super::Equality::Close;
use super::pml::{distance, pairs, reduction};
use super::torch_nn::module;
use super::{Adapter, Outcome, Outputs, adapter};
use crate::arguments::Arguments;

const EMBEDDINGS: &[&str] = &["embeddings", "labels", "indices_tuple"];

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("ArcFaceLoss", &["pytorch_metric_learning.losses.ArcFaceLoss"], EMBEDDINGS, Close,
        |arguments| arc_face(arguments, 1)),
    adapter("ArcFaceLoss (sub-centres)", &["pytorch_metric_learning.losses.SubCenterArcFaceLoss"], EMBEDDINGS, Close,
        |arguments| arc_face(arguments, 3)),
    adapter("CosFaceLoss", &["pytorch_metric_learning.losses.CosFaceLoss"], EMBEDDINGS, Close, cos_face),
    adapter("ProxyAnchorLoss", &["pytorch_metric_learning.losses.ProxyAnchorLoss"], EMBEDDINGS, Close, proxy_anchor),
    adapter("ProxyNcaLoss", &["pytorch_metric_learning.losses.ProxyNCALoss"], EMBEDDINGS, Close, proxy_nca),
];

/// Calls a loss that is built on a path for a number of classes and features, with the parameters of the case.
fn call<M: Loss>(
    arguments: &mut Arguments,
    build: impl FnOnce(&nn::Path, i64, i64) -> Result<M, LossError>,
    of_pairs: impl FnOnce(&M, &Tensor, &Tensor, &EmbeddingPairs) -> Result<Tensor, LossError>,
) -> Outcome {
    let (classes, features) = (arguments.integer("num_classes", 0)?, arguments.integer("embedding_size", 0)?);
    let (loss, state): (M, Vec<(String, Tensor)>) = module(arguments, |path| build(path, classes, features))?;
    let (embeddings, labels) = (arguments.tensor("embeddings")?, arguments.tensor("labels")?);
    let value = match pairs(arguments)? {
        Some(pairs) => of_pairs(&loss, &embeddings, &labels, &pairs)?,
        None => loss.f_forward(&embeddings, &labels)?,
    };
    Ok(Outputs { tensors: vec![value], state })
}

fn arc_face(arguments: &mut Arguments, sub_centers: i64) -> Outcome {
    let loss = ArcFace::new()
        .margin(arguments.number("margin", 28.6)?)
        .scale(arguments.number("scale", 64.0)?)
        .sub_centers(arguments.integer("sub_centers", sub_centers)?)
        .reduction(reduction(arguments, EmbeddingReduction::Mean)?);
    call(
        arguments,
        |path, classes, features| ArcFaceLoss::f_new(path, classes, features, loss),
        ArcFaceLoss::f_forward_pairs,
    )
}

fn cos_face(arguments: &mut Arguments) -> Outcome {
    let loss = CosFace::new()
        .margin(arguments.number("margin", 0.35)?)
        .scale(arguments.number("scale", 64.0)?)
        .reduction(reduction(arguments, EmbeddingReduction::Mean)?);
    call(
        arguments,
        |path, classes, features| CosFaceLoss::f_new(path, classes, features, loss),
        CosFaceLoss::f_forward_pairs,
    )
}

fn proxy_anchor(arguments: &mut Arguments) -> Outcome {
    let loss = ProxyAnchor::new()
        .margin(arguments.number("margin", 0.1)?)
        .alpha(arguments.number("alpha", 32.0)?)
        .distance(distance(arguments, EmbeddingDistance::cosine())?)
        .reduction(reduction(arguments, EmbeddingReduction::Mean)?);
    call(
        arguments,
        |path, classes, features| ProxyAnchorLoss::f_new(path, classes, features, loss),
        ProxyAnchorLoss::f_forward_pairs,
    )
}

fn proxy_nca(arguments: &mut Arguments) -> Outcome {
    let loss = ProxyNca::new()
        .softmax_scale(arguments.number("softmax_scale", 1.0)?)
        .distance(distance(arguments, EmbeddingDistance::lp().power(2.0))?)
        .reduction(reduction(arguments, EmbeddingReduction::Mean)?);
    call(
        arguments,
        |path, classes, features| ProxyNcaLoss::f_new(path, classes, features, loss),
        ProxyNcaLoss::f_forward_pairs,
    )
}
