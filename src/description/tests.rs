use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use tch::Kind;

use super::Table;
use crate::*;

/// The loss with these options, written as JSON and as TOML and read again: the name of the loss.
fn round_trip<L: Table + Serialize + DeserializeOwned + Debug>(options: Json) -> &'static str {
    let loss: L = serde_json::from_value(options.clone()).unwrap();
    let json = serde_json::to_string(&loss).unwrap();
    assert_eq!(serde_json::from_str::<Json>(&json).unwrap(), options);
    let toml = toml::to_string(&loss).unwrap();
    for again in [serde_json::from_str::<L>(&json).unwrap(), toml::from_str::<L>(&toml).unwrap()] {
        assert_eq!(format!("{again:?}"), format!("{loss:?}"));
    }

    assert_eq!(serde_json::to_string(&L::default()).unwrap(), "{}");
    for option in L::OPTIONS {
        let wrong = serde_json::from_value::<L>(json!({*option: {"no": "value"}})).unwrap_err().to_string();
        assert!(wrong.starts_with(&format!("loss {}: option {option}", L::NAME)), "{wrong}");
    }
    let unknown = serde_json::from_value::<L>(json!({"no_option": 1})).unwrap_err().to_string();
    assert!(unknown.starts_with(&format!("loss {} has no option no_option", L::NAME)), "{unknown}");
    let all: BTreeSet<&str> = L::OPTIONS.iter().copied().filter(|option| *option != "distance_function").collect();
    let tried: BTreeSet<&str> = options.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(tried, all, "{}", L::NAME);
    L::NAME
}

/// The losses and other options that are declared without a name in data.
fn declared(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            declared(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).unwrap();
            for rest in source.split("\npub struct ").skip(1) {
                if let Some((name, _)) = rest.split_once(";\n\n/// ")
                    && name.chars().all(char::is_alphanumeric)
                {
                    names.insert(name.to_owned());
                }
            }
        }
    }
}

#[test]
fn every_loss_without_a_name_in_data_is_written_and_read_again() {
    let linear = json!({
        "weight": [0.5, 1.0], "ignore_index": 1, "label_smoothing": 0.1, "invalid_values": "nan", "z_loss": 0.5,
        "soft_cap": 2.0, "chunking": {"rows": 8}, "acc_dtype": "double", "reduction": "sum"
    });
    let proxies = |scale: &str| json!({scale: 2.0, "distance": {"measure": "lp", "normalize_embeddings": false}, "reduction": "sum"});
    let done = [
        round_trip::<GaussianNllLoss>(json!({
            "full": true, "eps": 1e-3, "broadcast": true, "invalid_values": "nan", "reduction": "sum"
        })),
        round_trip::<DistillationLoss>(json!({
            "soft_loss": {"jensen_shannon": 0.25}, "temperature": 2.0, "temperature_squared": true, "soft_weight": 1.0,
            "hard_weight": 0.25, "ignore_index": 3, "invalid_values": "nan", "reduction": "none"
        })),
        round_trip::<ArcFace>(json!({"margin": 20.0, "scale": 30.0, "sub_centers": 2, "reduction": "sum"})),
        round_trip::<CosFace>(json!({"margin": 0.5, "scale": 30.0, "reduction": "per_anchor"})),
        round_trip::<ProxyAnchor>({
            let mut options = proxies("alpha");
            options["margin"] = json!(0.5);
            options
        }),
        round_trip::<ProxyNca>(proxies("softmax_scale")),
        round_trip::<CosineEmbeddingLoss>(json!({"margin": 0.5, "broadcast": true, "reduction": "sum"})),
        round_trip::<MarginRankingLoss>(json!({"margin": 0.5, "broadcast": true, "reduction": "sum"})),
        round_trip::<TripletMarginLoss>(json!({
            "margin": 2.0, "p": 1.0, "eps": 1e-3, "swap": true, "broadcast": true, "reduction": "sum"
        })),
        round_trip::<TripletMarginWithDistanceLoss>(json!({
            "margin": 2.0, "swap": true, "broadcast": true, "reduction": "sum"
        })),
        round_trip::<TotalVariationLoss>(json!({"pixels": "mean", "reduction": "sum"})),
        round_trip::<ClipLoss>(json!({"normalize": false, "label_smoothing": 0.1, "reduction": "sum"})),
        round_trip::<SigLipLoss>(json!({"normalize": false, "reduction": "sum"})),
        round_trip::<DinoConfig>(json!({
            "warmup_teacher_temp": 0.05, "teacher_temp": 0.06, "warmup_teacher_temp_epochs": 3, "student_temp": 0.2,
            "center_momentum": 0.5
        })),
        round_trip::<DpoLoss>(json!({
            "beta": 0.5, "variant": {"disco_pop": 0.05}, "label_smoothing": 0.1, "reduction": "sum"
        })),
        round_trip::<IpoLoss>(json!({"beta": 0.5, "reduction": "sum"})),
        round_trip::<CpoLoss>(json!({"beta": 0.5, "label_smoothing": 0.1, "reduction": "sum"})),
        round_trip::<OrpoLoss>(json!({"beta": 0.5, "reduction": "sum"})),
        round_trip::<SimpoLoss>(json!({"beta": 0.5, "gamma": 1.0, "label_smoothing": 0.1, "reduction": "sum"})),
        round_trip::<KtoLoss>(json!({
            "beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 0.5, "reduction": "sum"
        })),
        round_trip::<SequenceLogProbs>(json!({
            "ignore_index": 1, "token_reduction": "mean", "invalid_values": "nan",
            "chunking": {"aspect_ratio": 2}, "soft_cap": 2.0
        })),
        round_trip::<CtcLoss>(json!({
            "blank": 1, "zero_infinity": true, "invalid_values": "nan", "reduction": "sum"
        })),
        round_trip::<LinearCrossEntropy>(linear.clone()),
        round_trip::<LinearCrossEntropyConfig>(json!({"out_features": [2], "bias": true, "cross_entropy": linear})),
        round_trip::<AdaptiveLogSoftmaxConfig>(json!({"div_value": 2.0, "head_bias": true})),
    ];

    let mut names = BTreeSet::new();
    declared(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    assert_eq!(done.map(str::to_owned).into_iter().collect::<BTreeSet<_>>(), names);
}

#[test]
fn what_cannot_be_said_is_an_error() {
    let own = TripletMarginWithDistanceLoss::new().distance_function(|a, b| Ok((a - b).f_abs()?));
    let error = serde_json::to_string(&own).unwrap_err().to_string();
    let expected = "loss TripletMarginWithDistanceLoss: option distance_function: data cannot say a function";
    assert_eq!(error, expected);
    let error = serde_json::to_string(&LinearCrossEntropy::new().acc_dtype(Kind::Int64)).unwrap_err().to_string();
    assert_eq!(error, "loss LinearCrossEntropy: option acc_dtype: Int64 has no name in data");

    let error = serde_json::from_value::<DpoLoss>(json!({"variant": "disco_pop"})).unwrap_err().to_string();
    assert!(error.contains("a number in one of the fields [\"disco_pop\"]"), "{error}");
    let error = serde_json::from_value::<DpoLoss>(json!("dpo")).unwrap_err().to_string();
    assert_eq!(error, "\"dpo\" is no loss DpoLoss, expected its options");
}
