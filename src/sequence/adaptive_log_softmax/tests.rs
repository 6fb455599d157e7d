use std::collections::BTreeMap;

use tch::{Device, Kind};

use super::*;
use crate::random;

fn criterion(vs: &nn::VarStore, config: AdaptiveLogSoftmaxConfig) -> AdaptiveLogSoftmaxWithLoss {
    AdaptiveLogSoftmaxWithLoss::new(vs.root(), 8, 10, &[3, 6], config)
}

fn randn(shape: &[i64]) -> Tensor {
    random::randn(shape).to_kind(Kind::Float)
}

#[test]
fn a_saved_file_has_pytorchs_names_and_loads() {
    let config = AdaptiveLogSoftmaxConfig::new().div_value(2.0).head_bias(true);
    let mut vs = nn::VarStore::new(Device::Cpu);
    let first = criterion(&vs, config);
    let file = std::env::temp_dir().join(format!("adaptive-{}.safetensors", std::process::id()));
    vs.save(&file).unwrap();
    let input = randn(&[4, 8]);
    let before = first.log_prob(&input);
    let saved: BTreeMap<_, _> = Tensor::read_safetensors(&file).unwrap().into_iter().collect();
    let shapes: Vec<_> = saved.iter().map(|(name, tensor)| (name.as_str(), tensor.size())).collect();
    let expected = [
        ("head.bias", vec![5]),
        ("head.weight", vec![5, 8]),
        ("tail.0.0.weight", vec![4, 8]),
        ("tail.0.1.weight", vec![3, 4]),
        ("tail.1.0.weight", vec![2, 8]),
        ("tail.1.1.weight", vec![4, 2]),
    ];
    assert_eq!(shapes, expected);
    tch::no_grad(|| vs.trainable_variables().iter_mut().for_each(|variable| _ = variable.zero_()));
    assert_ne!(first.log_prob(&input), before);
    vs.load(&file).unwrap();
    assert_eq!(first.log_prob(&input), before);
    std::fs::remove_file(file).unwrap();
}

#[test]
fn the_initial_values_are_those_of_a_linear_layer() {
    let vs = nn::VarStore::new(Device::Cpu);
    let config = AdaptiveLogSoftmaxConfig::new().head_bias(true);
    let _loss = AdaptiveLogSoftmaxWithLoss::new(vs.root(), 64, 2000, &[1000], config);
    for (name, bound) in [("head.weight", 0.125), ("head.bias", 0.125), ("tail.0.1.weight", 0.25)] {
        let largest = f64::try_from(vs.variables()[name].abs().max()).unwrap();
        assert!((0.95 * bound..=bound).contains(&largest), "{name}: {largest}");
    }
}

#[test]
fn probabilities_sum_to_one_and_agree_with_the_loss_and_the_prediction() {
    let vs = nn::VarStore::new(Device::Cpu);
    let criterion = criterion(&vs, AdaptiveLogSoftmaxConfig::new());
    let input = randn(&[40, 8]) * 20;
    let log_prob = criterion.log_prob(&input);
    let sums = log_prob.exp().sum_dim_intlist(1, false, None);
    assert!(sums.allclose(&sums.ones_like(), 1e-5, 1e-5, false));
    let target = Tensor::arange(40, (Kind::Int64, Device::Cpu)).remainder(10);
    for kind in [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64] {
        let AdaptiveLogSoftmaxOutput { output, loss } = criterion.forward(&input, &target.to_kind(kind));
        let picked = log_prob.gather(1, &target.unsqueeze(1), false).squeeze_dim(1);
        assert!(output.allclose(&picked, 1e-5, 1e-5, false));
        assert!(loss.allclose(&-picked.mean(None), 1e-5, 1e-5, false));
    }
    assert_eq!(criterion.predict(&input), log_prob.argmax(1, false));
}

#[test]
fn single_rows_and_empty_batches_work() {
    let vs = nn::VarStore::new(Device::Cpu);
    let criterion = criterion(&vs, AdaptiveLogSoftmaxConfig::new());
    let input = randn(&[1, 8]);
    for class in [0_i64, 4, 9] {
        let batch = criterion.forward(&input, &Tensor::from_slice(&[class]));
        let single = criterion.forward(&input.squeeze_dim(0), &Tensor::from(class));
        assert_eq!((batch.output.size(), single.output.size()), (vec![1], vec![]));
        assert_eq!(batch.output.squeeze_dim(0), single.output);
        assert_eq!(batch.loss, single.loss);
    }
    let (input, target) = (randn(&[0, 8]), Tensor::zeros([0], (Kind::Int64, Device::Cpu)));
    let empty = criterion.forward(&input, &target);
    assert_eq!(empty.output.size(), [0]);
    assert!(f64::try_from(empty.loss).unwrap().is_nan());
    assert_eq!(criterion.log_prob(&input).size(), [0, 10]);
    assert_eq!(criterion.predict(&input).size(), [0]);
}

#[test]
fn wrong_calls_are_named() {
    let vs = nn::VarStore::new(Device::Cpu);
    let criterion = criterion(&vs, AdaptiveLogSoftmaxConfig::new());
    let class = Tensor::from_slice(&[1_i64, 10]);
    for (input, target, message) in [
        (&[2, 8][..], &class, "target holds 10, expected classes in [0, 10)"),
        (&[2, 7], &class, "input has shape [2, 7], expected [N, 8] or [8]"),
        (&[2, 1, 8], &class, "input has shape [2, 1, 8], expected [N, 8] or [8]"),
        (&[3, 8], &class, "target has shape [2], expected [3], one class per row of input"),
        (&[8], &class, "target has shape [2], expected [], one class per row of input"),
        (&[2, 8], &class.to_kind(Kind::Float), "target has kind Float, expected an integer kind"),
    ] {
        assert_eq!(criterion.f_forward(&randn(input), target).unwrap_err().to_string(), message);
    }
    let error = criterion.f_log_prob(&randn(&[8])).unwrap_err();
    assert_eq!(error.to_string(), "input has shape [8], expected [N, 8]");
    criterion.f_predict(&randn(&[2, 3, 8])).unwrap_err();
}

#[test]
fn wrong_options_are_named() {
    let vs = nn::VarStore::new(Device::Cpu);
    let config = AdaptiveLogSoftmaxConfig::new();
    for cutoffs in [&[][..], &[0], &[10], &[3, 3], &[6, 3]] {
        let error = AdaptiveLogSoftmaxWithLoss::f_new(vs.root(), 8, 10, cutoffs, config).unwrap_err();
        let expected = "expected at least one number, increasing, each in [1, n_classes - 1] = [1, 9]";
        assert_eq!(error.to_string(), format!("option cutoffs is {cutoffs:?}, {expected}"));
    }
    for div_value in [0.0, -2.0, f64::NAN, 1e-300] {
        let config = config.div_value(div_value);
        let error = AdaptiveLogSoftmaxWithLoss::f_new(vs.root(), 8, 10, &[3, 6], config).unwrap_err();
        assert!(error.to_string().starts_with("option div_value is "), "{error}");
    }
    assert_eq!(hidden_features(8, 0.5, 1).unwrap(), 32);
    assert_eq!(hidden_features(8, f64::INFINITY, 0).unwrap(), 0);
    assert_eq!(hidden_features(1000, 4.0, 2).unwrap(), 15);
}
