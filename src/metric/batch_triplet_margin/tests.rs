use tch::Device;

use super::*;
use crate::numeric::assert_gradient;
use crate::random::randn;
use crate::{Backend, with_backend};

const MINING: [TripletMining; 3] = [TripletMining::All, TripletMining::SemiHard, TripletMining::Hard];

fn batch() -> (Tensor, Tensor) {
    let embeddings = randn([14, 3]);
    (embeddings, Tensor::arange(14, (Kind::Int64, Device::Cpu)).remainder(4))
}

fn distance() -> EmbeddingDistance {
    EmbeddingDistance::lp().normalize_embeddings(false)
}

#[test]
fn sorting_finds_what_a_list_of_triplets_does() {
    let reductions = [
        EmbeddingReduction::Mean,
        EmbeddingReduction::MeanNonZero,
        EmbeddingReduction::Sum,
        EmbeddingReduction::Threshold { low: Some(0.3), high: Some(0.9) },
        EmbeddingReduction::Threshold { low: Some(-1.0), high: Some(0.5) },
        EmbeddingReduction::Threshold { low: None, high: Some(0.0) },
    ];
    let (embeddings, labels) = batch();
    for (mining, reduction) in MINING.into_iter().flat_map(|mining| reductions.map(|reduction| (mining, reduction))) {
        let loss = BatchTripletMarginLoss::new().margin(0.4).mining(mining).reduction(reduction);
        let value_and_slope = |way: fn(Mined, &Tensor, Pairs) -> Result<Tensor, LossError>| {
            let leaf = embeddings.copy().set_requires_grad(true);
            let batch = with_backend(Backend::Auto, || Batch::f_new(&leaf, &labels)).unwrap();
            let far = batch.f_matrix(distance()).unwrap();
            let value = with_backend(Backend::Auto, || way(Mined { loss, noise: 0.0 }, &far, batch.pairs)).unwrap();
            value.backward();
            Tensor::cat(&[value.view(1), leaf.grad().flatten(0, -1)], 0)
        };
        let listed = value_and_slope(|loss, far, pairs| loss.f_one_by_one(far, &pairs));
        let sorted = value_and_slope(|loss, far, pairs| loss.f_sorted(far, &pairs));
        for other in [sorted, value_and_slope(Mined::f_all)] {
            let difference = (other - &listed).abs().max().double_value(&[]);
            assert!(difference < 1e-12, "{mining:?}, {reduction:?}: {difference:e}");
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (embeddings, labels) = batch();
    for mining in MINING.into_iter().chain([TripletMining::BatchHard]) {
        for (swap, smooth_loss) in [(false, false), (true, false), (false, true), (true, true)] {
            let loss = BatchTripletMarginLoss::new().margin(0.3).mining(mining).distance(distance());
            let loss = loss.swap(swap).smooth_loss(smooth_loss).reduction(EmbeddingReduction::Mean);
            assert_gradient(&embeddings, |embeddings| loss.forward(embeddings, &labels));
        }
    }
}

#[test]
fn nan_is_not_a_satisfied_hinge() {
    let (embeddings, labels) = batch();
    // One with positives, and one that is nothing but a negative of the others.
    for label in [labels.int64_value(&[3]), 77] {
        let _ = (embeddings.get(3).fill_(f64::NAN), labels.get(3).fill_(label));
        for mining in MINING.into_iter().chain([TripletMining::BatchHard]) {
            let loss = BatchTripletMarginLoss::new().mining(mining).forward(&embeddings, &labels);
            assert!(loss.double_value(&[]).is_nan(), "{mining:?}");
        }
    }
}

#[test]
fn options_that_exclude_each_other_are_named() {
    let (embeddings, labels) = batch();
    let loss = BatchTripletMarginLoss::new().reduction(EmbeddingReduction::None);
    assert_eq!(
        loss.f_forward(&embeddings, &labels).unwrap_err().to_string(),
        "option reduction is None, expected a sum or a mean, since the triplets are too many to be listed"
    );
    let loss = BatchTripletMarginLoss::new().swap(true);
    assert_eq!(
        loss.f_forward_with(&embeddings, &labels, &embeddings, &labels).unwrap_err().to_string(),
        "option swap is true, expected false with references, which are not compared with each other"
    );
}
