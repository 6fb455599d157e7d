//! Losses of sums over embeddings.

use tch::{Device, Kind, Tensor};

use super::compare::{KINDS, REDUCTIONS, assert_as_composite, assert_sources_compile, unaligned};
use super::{rand, randn};
use crate::random::randint;
use crate::{
    Activation, ArcFace, CosineEmbeddingLoss, EmbeddingReduction, Loss, MccLoss, NegativeCosineSimilarity, Reduction,
    TripletMarginLoss,
};

/// One number, a warp's rows without and with whole packs, a block's, and those of several blocks.
const COLUMNS: [i64; 7] = [2, 31, 64, 1000, 1028, 2049, 40_000];

fn signs(rows: i64) -> Tensor {
    randint(2, [rows]) * 2 - 1
}

fn cosine(reduction: Reduction) -> impl Fn(&[Tensor]) -> Tensor {
    let loss = CosineEmbeddingLoss::new().margin(0.1).reduction(reduction);
    move |tensors| loss.f_forward(&tensors[0], &tensors[1], &tensors[2]).unwrap()
}

fn triplet(p: f64, swap: bool, reduction: Reduction) -> impl Fn(&[Tensor]) -> Tensor {
    let loss = TripletMarginLoss::new().margin(1.3).p(p).swap(swap).reduction(reduction);
    move |tensors| loss.f_forward(&tensors[0], &tensors[1], &tensors[2]).unwrap()
}

#[test]
fn rows_of_any_length_have_the_loss_of_tensor_operations() {
    for columns in COLUMNS {
        for rows in if columns < 10_000 { vec![1, 3, 19] } else { vec![1, 2] } {
            let draw = || randn([rows, columns]);
            for reduction in REDUCTIONS {
                let tensors = [draw(), draw(), signs(rows)];
                let name = format!("cosine {reduction:?}");
                assert_as_composite(&name, &tensors, &[0, 1], &cosine(reduction));
                if reduction != Reduction::Mean {
                    continue;
                }
                let anchor = draw();
                let near = || &anchor + draw() * 0.9;
                let tensors = [anchor.copy(), near(), near()];
                let name = format!("triplet {reduction:?}");
                assert_as_composite(&name, &tensors, &[0, 1, 2], &triplet(2.0, false, reduction));
            }
        }
    }
    assert_sources_compile();
}

#[test]
fn embeddings_are_taken_in_every_kind_and_place() {
    for kind in KINDS {
        for reduction in REDUCTIONS {
            let draw = || randn([9, 40]).to_kind(kind);
            for labels in [signs(9), signs(9).to_kind(kind)] {
                let tensors = [draw(), draw(), labels];
                assert_as_composite("cosine", &tensors, &[0, 1], &cosine(reduction));
                let views = [unaligned(&tensors[0]), unaligned(&tensors[1]), unaligned(&tensors[2])];
                assert_as_composite("cosine of views", &views, &[0, 1], &cosine(reduction));
            }
        }
    }
    let strided = [randn([40, 9]).transpose(0, 1), randn([9, 80]).slice(1, 0, 80, 2), signs(9)];
    assert_as_composite("cosine of strides", &strided, &[0, 1], &cosine(Reduction::Mean));
    assert_sources_compile();
}

#[test]
fn all_formulas_of_embeddings_are_taken() {
    let anchor = randn([21, 33]);
    let near = || &anchor + randn([21, 33]) * 0.7;
    for p in [1.0, 2.0] {
        for swap in [false, true] {
            let tensors = [anchor.copy(), near(), near()];
            let name = format!("triplet {p} {swap}");
            assert_as_composite(&name, &tensors, &[0, 1, 2], &triplet(p, swap, Reduction::Mean));
            // Distances of 0, and equal ones.
            let tensors = [anchor.copy(), anchor.copy(), anchor.copy()];
            let loss = TripletMarginLoss::new().p(p).swap(swap).eps(0.0);
            let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1], &tensors[2]).unwrap();
            assert_as_composite(&format!("{name} of equal embeddings"), &tensors, &[0], &compute);
        }
    }
    let similarity = NegativeCosineSimilarity::new();
    let zeros = randn([21, 33]);
    let _ = zeros.get(3).zero_();
    let tensors = [zeros, randn([21, 33])];
    let compute = |tensors: &[Tensor]| similarity.f_forward(&tensors[0], &tensors[1]).unwrap();
    assert_as_composite("similarity", &tensors, &[0], &compute);
    let vectors = |rows: i64| randn([rows, 16]);
    for margin in [0.0, 28.6, 170.0] {
        let arc = ArcFace::new().margin(margin).scale(3.0).reduction(EmbeddingReduction::Mean);
        let tensors = [vectors(12), vectors(5).transpose(0, 1), randint(5, [12])];
        let compute = |tensors: &[Tensor]| arc.f_forward(&tensors[0], &tensors[1], &tensors[2]).unwrap();
        assert_as_composite(&format!("ArcFace {margin}"), &tensors, &[0, 1], &compute);
    }
    assert_sources_compile();
}

#[test]
fn all_pixels_are_one_row() {
    for shape in [&[1, 1, 1, 2][..], &[2, 1, 9, 9], &[2, 1, 200, 190]] {
        let tensors = [randn(shape), randint(2, shape).to_kind(Kind::Double)];
        let loss = MccLoss::new().activation(Activation::Sigmoid);
        let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1]).unwrap();
        assert_as_composite("mcc", &tensors, &[0], &compute);
        let tensors = [rand(shape), rand(shape)];
        let loss = MccLoss::new();
        let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1]).unwrap();
        assert_as_composite("mcc of probabilities", &tensors, &[0, 1], &compute);
    }
    // Nothing to sum up is the business of tensor operations.
    let empty = Tensor::zeros([0, 4], (Kind::Double, Device::Cpu));
    let loss = super::emulated(|| CosineEmbeddingLoss::new().f_forward(&empty, &empty, &signs(0)).unwrap());
    assert!(loss.double_value(&[]).is_nan());
    assert_sources_compile();
}
