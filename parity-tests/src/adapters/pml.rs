//! The losses of pytorch-metric-learning.

use std::collections::BTreeMap;

use tch_losses::{
    AnchorReduction, BatchTripletMarginLoss, CircleLoss, ContrastiveLoss, EmbeddingDistance, EmbeddingLoss,
    EmbeddingPairs, EmbeddingReduction, GeneralizedLiftedStructureLoss, LiftedStructureLoss, Loss, MultiSimilarityLoss,
    NPairsLoss, NcaLoss, NtXentLoss, SupConLoss, TripletMining,
};

use super::Equality::Close;
use super::{Adapter, Outcome, adapter};
use crate::arguments::{Argument, Arguments, EvalError};
use crate::case::Value;

/// The arguments of a call.
const EMBEDDINGS: &[&str] = &["embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels"];

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("ContrastiveLoss", &["pytorch_metric_learning.losses.ContrastiveLoss"], EMBEDDINGS, Close,
        |arguments| call("ContrastiveLoss", arguments)),
    adapter("NtXentLoss", &["pytorch_metric_learning.losses.NTXentLoss"], EMBEDDINGS, Close,
        |arguments| call("NTXentLoss", arguments)),
    adapter("SupConLoss", &["pytorch_metric_learning.losses.SupConLoss"], EMBEDDINGS, Close,
        |arguments| call("SupConLoss", arguments)),
    adapter("MultiSimilarityLoss", &["pytorch_metric_learning.losses.MultiSimilarityLoss"], EMBEDDINGS, Close,
        |arguments| call("MultiSimilarityLoss", arguments)),
    adapter("CircleLoss", &["pytorch_metric_learning.losses.CircleLoss"], EMBEDDINGS, Close,
        |arguments| call("CircleLoss", arguments)),
    adapter("NPairsLoss", &["pytorch_metric_learning.losses.NPairsLoss"], EMBEDDINGS, Close,
        |arguments| call("NPairsLoss", arguments)),
    adapter("NcaLoss", &["pytorch_metric_learning.losses.NCALoss"], EMBEDDINGS, Close,
        |arguments| call("NCALoss", arguments)),
    adapter("LiftedStructureLoss", &["pytorch_metric_learning.losses.LiftedStructureLoss"], EMBEDDINGS, Close,
        |arguments| call("LiftedStructureLoss", arguments)),
    adapter("GeneralizedLiftedStructureLoss", &["pytorch_metric_learning.losses.GeneralizedLiftedStructureLoss"],
        EMBEDDINGS, Close, |arguments| call("GeneralizedLiftedStructureLoss", arguments)),
    adapter("BatchTripletMarginLoss", &["pytorch_metric_learning.losses.TripletMarginLoss"], EMBEDDINGS, Close,
        |arguments| call("TripletMarginLoss", arguments)),
    adapter("BatchTripletMarginLoss (mined)", &["pml.mined_triplet_margin_loss"], &["embeddings", "labels"], Close,
        |arguments| call("TripletMarginLoss", arguments)),
    adapter("unreduced losses (pytorch-metric-learning)", &["pml.unreduced"], &["embeddings", "labels"], Close,
        unreduced),
];

/// A loss that takes references, or the one that does not.
enum Criterion {
    Any(Box<dyn EmbeddingLoss>),
    OfBatches(NPairsLoss),
}

fn call(name: &str, arguments: &mut Arguments) -> Outcome {
    let criterion = criterion(name, arguments)?;
    let embeddings = arguments.tensor("embeddings")?;
    let (labels, pairs) = (arguments.optional_tensor("labels")?, pairs(arguments)?);
    let (ref_emb, ref_labels) = (arguments.optional_tensor("ref_emb")?, arguments.optional_tensor("ref_labels")?);
    let missing = |what: &str| EvalError::Rejected(format!("without {what}"));
    let loss = match (criterion, pairs, ref_emb) {
        (Criterion::Any(loss), Some(pairs), ref_emb) => loss.f_forward_pairs(&embeddings, &pairs, ref_emb.as_ref())?,
        (Criterion::Any(loss), None, None) => loss.f_forward(&embeddings, &labels.ok_or_else(|| missing("labels"))?)?,
        (Criterion::Any(loss), None, Some(ref_emb)) => {
            let (Some(labels), Some(ref_labels)) = (labels, ref_labels) else { return Err(missing("labels")) };
            loss.f_forward_with(&embeddings, &labels, &ref_emb, &ref_labels)?
        }
        (Criterion::OfBatches(loss), pairs, None) => {
            let labels = labels.ok_or_else(|| missing("labels"))?;
            match pairs {
                Some(pairs) => loss.f_forward_pairs(&embeddings, &labels, &pairs)?,
                None => loss.f_forward(&embeddings, &labels)?,
            }
        }
        (Criterion::OfBatches(_), ..) => return Err(EvalError::Rejected("references where there are none".into())),
    };
    Ok(loss.into())
}

/// The pairs or triplets of a call.
pub(super) fn pairs(arguments: &mut Arguments) -> Result<Option<EmbeddingPairs>, EvalError> {
    let Some(tuple) = arguments.optional_tensors("indices_tuple")? else { return Ok(None) };
    match &tuple[..] {
        [a, p, n] => Ok(Some(EmbeddingPairs::triplets(a, p, n))),
        [a, p, b, n] => Ok(Some(EmbeddingPairs::pairs(a, p, b, n))),
        other => Err(EvalError::Rejected(format!("a tuple of {}", other.len()))),
    }
}

/// The losses themselves, without a reducer.
fn unreduced(arguments: &mut Arguments) -> Outcome {
    let name = arguments.text("loss")?.unwrap_or_default();
    let nothing = Value::Object("pytorch_metric_learning.reducers.DoNothingReducer".into(), Some(BTreeMap::new()));
    arguments.insert("reducer", Argument::Plain(nothing));
    call(&name, arguments)
}

fn criterion(name: &str, arguments: &mut Arguments) -> Result<Criterion, EvalError> {
    use Criterion::{Any, OfBatches};
    use EmbeddingReduction::{Mean, MeanNonZero};
    let reduction = |arguments: &mut Arguments, default| reduction(arguments, default);
    Ok(match name {
        "ContrastiveLoss" => Any(Box::new(
            ContrastiveLoss::new()
                .pos_margin(arguments.number("pos_margin", 0.0)?)
                .neg_margin(arguments.number("neg_margin", 1.0)?)
                .distance(distance(arguments, EmbeddingDistance::lp())?)
                .reduction(reduction(arguments, MeanNonZero)?),
        )),
        "NTXentLoss" => Any(Box::new(
            NtXentLoss::new()
                .temperature(arguments.number("temperature", 0.07)?)
                .distance(distance(arguments, EmbeddingDistance::cosine())?)
                .reduction(reduction(arguments, Mean)?),
        )),
        "SupConLoss" => Any(Box::new(
            SupConLoss::new()
                .temperature(arguments.number("temperature", 0.1)?)
                .distance(distance(arguments, EmbeddingDistance::cosine())?)
                .reduction(reduction(arguments, MeanNonZero)?),
        )),
        "NCALoss" => Any(Box::new(
            NcaLoss::new()
                .softmax_scale(arguments.number("softmax_scale", 1.0)?)
                .distance(distance(arguments, EmbeddingDistance::lp().power(2.0))?)
                .reduction(reduction(arguments, Mean)?),
        )),
        "MultiSimilarityLoss" => Any(Box::new(
            MultiSimilarityLoss::new()
                .alpha(arguments.number("alpha", 2.0)?)
                .beta(arguments.number("beta", 50.0)?)
                .base(arguments.number("base", 0.5)?)
                .distance(distance(arguments, EmbeddingDistance::cosine())?)
                .reduction(reduction(arguments, Mean)?),
        )),
        "CircleLoss" => Any(Box::new(circle(arguments)?)),
        "NPairsLoss" => OfBatches(
            NPairsLoss::new()
                .distance(distance(arguments, EmbeddingDistance::dot_product())?)
                .reduction(reduction(arguments, Mean)?),
        ),
        "LiftedStructureLoss" => Any(Box::new(
            LiftedStructureLoss::new()
                .neg_margin(arguments.number("neg_margin", 1.0)?)
                .pos_margin(arguments.number("pos_margin", 0.0)?)
                .distance(distance(arguments, EmbeddingDistance::lp())?)
                .reduction(reduction(arguments, Mean)?),
        )),
        "GeneralizedLiftedStructureLoss" => Any(Box::new(
            GeneralizedLiftedStructureLoss::new()
                .neg_margin(arguments.number("neg_margin", 1.0)?)
                .pos_margin(arguments.number("pos_margin", 0.0)?)
                .distance(distance(arguments, EmbeddingDistance::lp())?)
                .reduction(reduction(arguments, Mean)?),
        )),
        "TripletMarginLoss" => Any(Box::new(triplet_margin(arguments)?)),
        other => return Err(EvalError::Unsupported(format!("loss {other}"))),
    })
}

/// The circle loss is one of cosines.
fn circle(arguments: &mut Arguments) -> Result<CircleLoss, EvalError> {
    if distance(arguments, EmbeddingDistance::cosine())? != EmbeddingDistance::cosine() {
        return Err(EvalError::Rejected("the circle loss needs the cosine".into()));
    }
    Ok(CircleLoss::new()
        .margin(arguments.number("m", 0.4)?)
        .gamma(arguments.number("gamma", 80.0)?)
        .reduction(reduction(arguments, EmbeddingReduction::MeanNonZero)?))
}

/// The triplet margin loss behind a miner of the same margin and distance, or of all triplets.
fn triplet_margin(arguments: &mut Arguments) -> Result<BatchTripletMarginLoss, EvalError> {
    let margin = arguments.number("margin", 0.05)?;
    let distance = distance(arguments, EmbeddingDistance::lp())?;
    match arguments.text("triplets_per_anchor")?.as_deref() {
        None | Some("all") => {}
        Some(other) => return Err(EvalError::Unsupported(format!("{other} triplets of an anchor"))),
    }
    Ok(BatchTripletMarginLoss::new()
        .margin(margin)
        .swap(arguments.boolean("swap", false)?)
        .smooth_loss(arguments.boolean("smooth_loss", false)?)
        .mining(mining(arguments, margin, distance)?)
        .distance(distance)
        .reduction(reduction(arguments, EmbeddingReduction::MeanNonZero)?))
}

fn mining(
    arguments: &mut Arguments,
    margin: f64,
    distance_of_loss: EmbeddingDistance,
) -> Result<TripletMining, EvalError> {
    let Some((name, mut options)) = object(arguments, "miner", "pytorch_metric_learning.miners.")? else {
        return Ok(TripletMining::All);
    };
    let mining = match (name.as_str(), options.text("type_of_triplets")?.as_deref()) {
        ("BatchHardMiner", None) => TripletMining::BatchHard,
        ("TripletMarginMiner", Some("semihard")) => TripletMining::SemiHard,
        ("TripletMarginMiner", Some("hard")) => TripletMining::Hard,
        (name, triplets) => return Err(EvalError::Unsupported(format!("miner {name} of triplets {triplets:?}"))),
    };
    let same_distance = distance(&mut options, EmbeddingDistance::lp())? == distance_of_loss;
    if !same_distance || options.number("margin", margin)? != margin {
        return Err(EvalError::Unsupported("a miner of another margin or distance".into()));
    }
    options.finish()?;
    Ok(mining)
}

/// An object of pytorch-metric-learning: what follows `module` in its path, and its options.
fn object(arguments: &mut Arguments, argument: &str, module: &str) -> Result<Option<(String, Arguments)>, EvalError> {
    let (path, options) = match arguments.take(argument) {
        None => return Ok(None),
        Some(Argument::Plain(Value::Object(path, options))) => (path, options.unwrap_or_default()),
        Some(other) => return Err(EvalError::Unsupported(format!("{argument} {other:?}"))),
    };
    let name = path.strip_prefix(module).ok_or_else(|| EvalError::Unsupported(format!("{argument} {path}")))?;
    let mut values = Arguments::default();
    for (option, value) in options {
        values.insert(&option, Argument::Plain(value));
    }
    Ok(Some((name.to_owned(), values)))
}

/// The distance of a loss.
pub(super) fn distance(arguments: &mut Arguments, default: EmbeddingDistance) -> Result<EmbeddingDistance, EvalError> {
    let Some((name, mut options)) = object(arguments, "distance", "pytorch_metric_learning.distances.")? else {
        return Ok(default);
    };
    let distance = match name.as_str() {
        "LpDistance" => EmbeddingDistance::lp(),
        "CosineSimilarity" => EmbeddingDistance::cosine(),
        "DotProductSimilarity" => EmbeddingDistance::dot_product(),
        "SNRDistance" => EmbeddingDistance::signal_to_noise(),
        other => return Err(EvalError::Unsupported(format!("distance {other}"))),
    };
    let distance = distance
        .normalize_embeddings(options.boolean("normalize_embeddings", true)?)
        .p(options.number("p", 2.0)?)
        .power(options.number("power", 1.0)?);
    options.finish()?;
    Ok(distance)
}

/// The reducer of a loss.
pub(super) fn reduction(
    arguments: &mut Arguments,
    default: EmbeddingReduction,
) -> Result<EmbeddingReduction, EvalError> {
    let Some((name, mut options)) = object(arguments, "reducer", "pytorch_metric_learning.reducers.")? else {
        return Ok(default);
    };
    let reduction = match name.as_str() {
        "MeanReducer" => EmbeddingReduction::Mean,
        "AvgNonZeroReducer" => EmbeddingReduction::MeanNonZero,
        "SumReducer" => EmbeddingReduction::Sum,
        "DoNothingReducer" => EmbeddingReduction::None,
        "ThresholdReducer" => EmbeddingReduction::Threshold {
            low: options.number_or_none("low", None)?,
            high: options.number_or_none("high", None)?,
        },
        "PerAnchorReducer" => {
            EmbeddingReduction::PerAnchor(match self::reduction(&mut options, EmbeddingReduction::Mean)? {
                EmbeddingReduction::None => AnchorReduction::None,
                EmbeddingReduction::MeanNonZero => AnchorReduction::MeanNonZero,
                EmbeddingReduction::Sum => AnchorReduction::Sum,
                EmbeddingReduction::Threshold { low, high } => AnchorReduction::Threshold { low, high },
                _ => AnchorReduction::Mean,
            })
        }
        other => return Err(EvalError::Unsupported(format!("reducer {other}"))),
    };
    options.finish()?;
    Ok(reduction)
}
