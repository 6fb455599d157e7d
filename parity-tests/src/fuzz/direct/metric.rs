//! Losses of embeddings: pairs, triplets, references, vectors of classes.

use anyhow::{Result, anyhow};
use serde::Deserialize;
use tch::{Kind, Tensor};
use tch_losses::{
    ArcFace, BatchTripletMarginLoss, CircleLoss, ContrastiveLoss, CosFace, CosineEmbeddingLoss, EmbeddingDistance,
    EmbeddingLoss, EmbeddingPairs, GeneralizedLiftedStructureLoss, LiftedStructureLoss, LossError, MarginRankingLoss,
    MultiSimilarityLoss, NcaLoss, NtXentLoss, ProxyAnchor, ProxyNca, SupConLoss, TripletMarginLoss,
    TripletMarginWithDistanceLoss,
};

use super::super::call::Compute;
use super::super::data::Data;
use super::super::options::{self, Facts};
use super::super::tensors::Values;
use super::super::tensors::shape;
use super::{Maker, one};

pub const LOSSES: &[&str] = &[
    "cosine_embedding",
    "margin_ranking",
    "triplet_margin",
    "triplet_margin_with_distance",
    "contrastive.with_references",
    "batch_triplet_margin.with_references",
    "generalized_lifted_structure.with_references",
    "multi_similarity.with_references",
    "nt_xent.with_references",
    "sup_con.with_references",
    "nca.with_references",
    "circle.with_references",
    "lifted_structure.with_references",
    "contrastive.of_pairs",
    "batch_triplet_margin.of_pairs",
    "generalized_lifted_structure.of_pairs",
    "multi_similarity.of_pairs",
    "nt_xent.of_pairs",
    "sup_con.of_pairs",
    "nca.of_pairs",
    "circle.of_pairs",
    "lifted_structure.of_pairs",
    "arc_face",
    "cos_face",
    "proxy_anchor",
    "proxy_nca",
];

pub fn make(loss: &str, maker: &mut Maker) -> Result<Compute> {
    match loss {
        "cosine_embedding" => cosine_embedding(maker),
        "margin_ranking" => margin_ranking(maker),
        "triplet_margin" => triplet_margin(maker),
        "triplet_margin_with_distance" => triplet_margin_with_distance(maker),
        "arc_face" | "cos_face" | "proxy_anchor" | "proxy_nca" => class_vectors(loss, maker),
        _ if loss.ends_with(".of_pairs") => of_pairs(loss, maker),
        _ => with_references(loss, maker),
    }
}

fn cosine_embedding(maker: &mut Maker) -> Result<Compute> {
    let shape = shape(1, 2, maker.random);
    let loss = CosineEmbeddingLoss::new().margin(maker.number("margin", 0.0, -1.0, 1.0)).reduction(maker.reduction());
    maker.argument("input1", &shape, Values::Real)?;
    maker.argument("input2", &shape, Values::Real)?;
    maker.argument("target", &shape[..shape.len() - 1], Values::Signs)?;
    Ok(Box::new(move |tensors, _| one(loss.f_forward(&tensors[0], &tensors[1], &tensors[2]))))
}

fn margin_ranking(maker: &mut Maker) -> Result<Compute> {
    let shape = shape(0, 4, maker.random);
    let loss = MarginRankingLoss::new().margin(maker.number("margin", 0.0, 0.0, 2.0)).reduction(maker.reduction());
    maker.argument("input1", &shape, Values::Real)?;
    maker.argument("input2", &shape, Values::Real)?;
    maker.argument("target", &shape, Values::Signs)?;
    Ok(Box::new(move |tensors, _| one(loss.f_forward(&tensors[0], &tensors[1], &tensors[2]))))
}

fn triplet(maker: &mut Maker) -> Result<()> {
    let shape = shape(1, 3, maker.random);
    ["anchor", "positive", "negative"].into_iter().try_for_each(|name| maker.argument(name, &shape, Values::Real))
}

fn triplet_margin(maker: &mut Maker) -> Result<Compute> {
    let p = if maker.is_absurd() {
        maker.random.absurd()
    } else {
        *maker.random.pick(&[2.0, 1.0, 3.0, 1.5, f64::INFINITY])
    };
    maker.say("p", p);
    let loss = TripletMarginLoss::new().margin(maker.number("margin", 1.0, 0.1, 3.0)).p(p).swap(maker.flag("swap"));
    let loss = loss.eps(maker.number("eps", 1e-6, 1e-8, 0.1)).reduction(maker.reduction());
    triplet(maker)?;
    Ok(Box::new(move |tensors, _| one(loss.f_forward(&tensors[0], &tensors[1], &tensors[2]))))
}

fn triplet_margin_with_distance(maker: &mut Maker) -> Result<Compute> {
    let loss = TripletMarginWithDistanceLoss::new().margin(maker.number("margin", 1.0, 0.1, 3.0));
    let mut loss = loss.swap(maker.flag("swap")).reduction(maker.reduction());
    if maker.flag("distance_function") {
        loss = loss.distance_function(|a, b| {
            let distances = a.f_sub(b)?.f_abs()?;
            // A sum in half precision would overflow.
            let wide = if distances.kind() == Kind::Double { Kind::Double } else { Kind::Float };
            Ok(distances.f_sum_dim_intlist(-1_i64, false, wide)?)
        });
    }
    triplet(maker)?;
    Ok(Box::new(move |tensors, _| one(loss.f_forward(&tensors[0], &tensors[1], &tensors[2]))))
}

/// The loss of the embeddings of a batch, read from its options.
fn read<L: EmbeddingLoss + for<'de> Deserialize<'de> + 'static>(
    options: &Data,
) -> Result<Box<dyn EmbeddingLoss>, String> {
    L::deserialize(options.clone()).map(|loss| Box::new(loss) as _).map_err(|error| error.to_string())
}

/// A loss of embeddings with random options, by the first part of its name.
fn of_embeddings(loss: &str, maker: &mut Maker) -> Result<Result<Box<dyn EmbeddingLoss>, String>> {
    let name = loss.split('.').next().unwrap_or_default().to_owned();
    let facts = Facts {
        shape: vec![2, 2],
        classes: 3,
        class_weights: false,
        kind: maker.kind,
        often: 0.3,
        absurd: if maker.intent.sensible { 0.02 } else { 0.3 },
    };
    // That loss is one of triplets, which have no mean per anchor.
    let fixed = [("reduction", Some(Data::text(*maker.random.pick(&["mean", "sum", "mean_non_zero"]))))];
    let fixed = if name == "batch_triplet_margin" && maker.intent.sensible { &fixed[..] } else { &[] };
    let Data::Map(mut fields) = options::describe(&name, &facts, fixed, maker.random) else {
        return Err(anyhow!("a description has fields"));
    };
    fields.retain(|(field, _)| field != "loss");
    let options = Data::Map(fields);
    maker.words.push(options.to_string());
    Ok(match name.as_str() {
        "contrastive" => read::<ContrastiveLoss>(&options),
        "batch_triplet_margin" => read::<BatchTripletMarginLoss>(&options),
        "generalized_lifted_structure" => read::<GeneralizedLiftedStructureLoss>(&options),
        "lifted_structure" => read::<LiftedStructureLoss>(&options),
        "multi_similarity" => read::<MultiSimilarityLoss>(&options),
        "nt_xent" => read::<NtXentLoss>(&options),
        "sup_con" => read::<SupConLoss>(&options),
        "nca" => read::<NcaLoss>(&options),
        _ => read::<CircleLoss>(&options),
    })
}

fn with_references(loss: &str, maker: &mut Maker) -> Result<Compute> {
    let built = of_embeddings(loss, maker)?;
    let (rows, references, features) =
        (maker.random.between(1, 6), maker.random.between(1, 6), maker.random.between(1, 5));
    maker.argument("embeddings", &[rows, features], Values::Real)?;
    maker.classes("labels", &[rows], 3)?;
    maker.argument("ref_emb", &[references, features], Values::Real)?;
    maker.classes("ref_labels", &[references], 3)?;
    Ok(Box::new(move |tensors, _| match &built {
        Ok(loss) => one(loss.f_forward_with(&tensors[0], &tensors[1], &tensors[2], &tensors[3])),
        Err(message) => Err(unreadable(message)),
    }))
}

/// Of pairs or triplets that are named, with references or without.
fn of_pairs(loss: &str, maker: &mut Maker) -> Result<Compute> {
    let built = of_embeddings(loss, maker)?;
    let (rows, features) = (maker.random.between(1, 6), maker.random.between(2, 5));
    let (references, triplets) = (maker.flag("references"), maker.flag("triplets"));
    let others = if references { maker.random.between(1, 6) } else { rows };
    let (positives, negatives) = (maker.random.between(0, 5), maker.random.between(0, 5));
    maker.argument("embeddings", &[rows, features], Values::Real)?;
    maker.classes("anchors", &[positives], rows)?;
    maker.classes("positives", &[positives], others)?;
    let negatives = if triplets { positives } else { negatives };
    maker.classes("anchors of negatives", &[negatives], rows)?;
    maker.classes("negatives", &[negatives], others)?;
    if maker.intent.sensible && others > 1 {
        // No positive is a negative.
        let half = others / 2;
        maker.arguments[2].1 = maker.arguments[2].1.f_remainder(half)?;
        maker.arguments[4].1 = maker.arguments[4].1.f_remainder(others - half)?.f_add_scalar(half)?;
    }
    if references {
        maker.argument("ref_emb", &[others, features], Values::Real)?;
    }
    Ok(Box::new(move |t, _| {
        let pairs = match triplets {
            true => EmbeddingPairs::triplets(&t[1], &t[2], &t[4]),
            false => EmbeddingPairs::pairs(&t[1], &t[2], &t[3], &t[4]),
        };
        match &built {
            Ok(loss) => one(loss.f_forward_pairs(&t[0], &pairs, references.then(|| &t[5]))),
            Err(message) => Err(unreadable(message)),
        }
    }))
}

fn unreadable(message: &str) -> LossError {
    LossError::NoMean { loss: message.to_owned(), reason: "it could not be read" }
}

fn class_vectors(loss: &str, maker: &mut Maker) -> Result<Compute> {
    let (rows, features, classes) =
        (maker.random.between(1, 6), maker.random.between(2, 5), maker.random.between(1, 5));
    let margin = maker.number("margin", 0.4, 0.0, 1.0);
    let scale = maker.number("scale", 8.0, 0.5, 64.0);
    let reduction = maker.embedding_reduction();
    maker.argument("input", &[rows, features], Values::Real)?;
    let vectors: fn(&[Tensor]) -> [&Tensor; 3] = |tensors| [&tensors[0], &tensors[1], &tensors[2]];
    let compute: Compute = match loss {
        "arc_face" => {
            let sub_centers = maker.integer("sub_centers", 1, 1, 3);
            let columns = classes * sub_centers.clamp(0, 9);
            maker.argument("weight", &[features, columns], Values::Real)?;
            let loss = ArcFace::new().margin(margin * 20.0).scale(scale).sub_centers(sub_centers).reduction(reduction);
            Box::new(move |tensors, _| {
                let [x, w, y] = vectors(tensors);
                one(loss.f_forward(x, w, y))
            })
        }
        "cos_face" => {
            maker.argument("weight", &[features, classes], Values::Real)?;
            let loss = CosFace::new().margin(margin).scale(scale).reduction(reduction);
            Box::new(move |tensors, _| {
                let [x, w, y] = vectors(tensors);
                one(loss.f_forward(x, w, y))
            })
        }
        "proxy_anchor" => {
            maker.argument("proxies", &[classes, features], Values::Real)?;
            let loss = ProxyAnchor::new().margin(margin).alpha(scale).reduction(reduction).distance(distance(maker));
            Box::new(move |tensors, _| {
                let [x, w, y] = vectors(tensors);
                one(loss.f_forward(x, w, y))
            })
        }
        _ => {
            maker.argument("proxies", &[classes, features], Values::Real)?;
            let loss = ProxyNca::new().softmax_scale(scale).reduction(reduction).distance(distance(maker));
            Box::new(move |tensors, _| {
                let [x, w, y] = vectors(tensors);
                one(loss.f_forward(x, w, y))
            })
        }
    };
    maker.classes("target", &[rows], classes)?;
    Ok(compute)
}

fn distance(maker: &mut Maker) -> EmbeddingDistance {
    let (name, distance) = match maker.random.below(4) {
        0 => ("lp", EmbeddingDistance::lp()),
        1 => ("dot_product", EmbeddingDistance::dot_product()),
        2 => ("signal_to_noise", EmbeddingDistance::signal_to_noise()),
        _ => ("cosine", EmbeddingDistance::cosine()),
    };
    maker.say("distance", name);
    let normalize = !maker.flag("not normalized");
    distance.normalize_embeddings(normalize)
}
