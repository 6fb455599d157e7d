//! Hinges of all triplets of a batch.

use tch::{Device, Kind, Tensor};

use super::compare::{Guarded, KINDS, assert_as_composite, assert_sources_compile, assert_without, results};
use super::compiled::{assert_compile, installed_nvrtc};
use super::pairs::assert_as_near;
use super::{ORDER, assert_caught, emulated, excess, randn};
use crate::random::randint;
use crate::{
    Backend, BatchTripletMarginLoss, EmbeddingDistance, EmbeddingLoss, EmbeddingReduction, Loss, TripletMining,
    with_backend,
};

const MININGS: [TripletMining; 3] = [TripletMining::All, TripletMining::SemiHard, TripletMining::Hard];
const REDUCTIONS: [EmbeddingReduction; 5] = [
    EmbeddingReduction::Mean,
    EmbeddingReduction::MeanNonZero,
    EmbeddingReduction::Sum,
    EmbeddingReduction::Threshold { low: Some(0.2), high: Some(0.6) },
    EmbeddingReduction::Threshold { low: Some(-0.2), high: None },
];

fn loss(mining: TripletMining, reduction: EmbeddingReduction) -> BatchTripletMarginLoss {
    BatchTripletMarginLoss::new().margin(0.3).mining(mining).reduction(reduction)
}

fn of_batch(loss: BatchTripletMarginLoss) -> impl Fn(&[Tensor]) -> Tensor {
    move |tensors| match tensors {
        [embeddings, labels] => loss.f_forward(embeddings, labels).unwrap(),
        [embeddings, ref_emb, labels, ref_labels] => {
            loss.f_forward_with(embeddings, labels, ref_emb, ref_labels).unwrap()
        }
        _ => panic!("arguments"),
    }
}

#[test]
fn every_mining_and_reduction_is_that_of_tensor_operations() {
    for mining in MININGS {
        for reduction in REDUCTIONS {
            let compute = of_batch(loss(mining, reduction));
            let name = format!("{mining:?} {reduction:?}");
            for rows in [1, 2, 7, 40] {
                let tensors = [randn([rows, 3]), randint(4, [rows])];
                assert_as_composite(&name, &tensors, &[0], &compute);
            }
            for (rows, others) in [(5, 1), (3, 33), (2, 600)] {
                let tensors = [randn([rows, 3]), randn([others, 3]), randint(3, [rows]), randint(3, [others])];
                assert_as_composite(&format!("{name} with references"), &tensors, &[0, 1], &compute);
            }
        }
    }
    assert_sources_compile();
}

#[test]
fn many_positives_are_taken_some_at_a_time() {
    // More positives than fit, all of them, and none.
    for labels in [1, 2, 1000] {
        for mining in MININGS {
            let compute = of_batch(loss(mining, EmbeddingReduction::MeanNonZero));
            let tensors = [randn([2, 3]), randn([1301, 3]), randint(labels, [2]), randint(labels, [1301])];
            assert_as_composite("many references", &tensors, &[0, 1], &compute);
        }
    }
    let compute = of_batch(loss(TripletMining::All, EmbeddingReduction::MeanNonZero));
    for kind in KINDS {
        let tensors = [randn([24, 3]).to_kind(kind), randint(3, [24])];
        assert_as_composite("kinds", &tensors, &[0], &compute);
    }
    // Distances that single precision has, of which none is at a bound.
    let tensors = [(randint(40, [260, 1]).to_kind(Kind::Float)) / 8.0, randint(60, [260])];
    let distance = EmbeddingDistance::lp().normalize_embeddings(false);
    let exact = of_batch(loss(TripletMining::All, EmbeddingReduction::MeanNonZero).distance(distance));
    assert_as_near("a matrix of single precision", &tensors, &[0], &exact);
    // More anchors than blocks.
    let tensors = [randn([1100, 2]), randn([5, 2]), randint(3, [1100]), randint(3, [5])];
    assert_as_composite("many anchors", &tensors, &[0, 1], &compute);
}

#[test]
fn equal_distances_and_those_at_a_bound_are_as_in_tensor_operations() {
    let distance = EmbeddingDistance::lp().normalize_embeddings(false);
    // Distances that are multiples of a quarter, which is the margin: many hinges are 0.
    for kind in [Kind::Double, Kind::Float] {
        let rows = if kind == Kind::Double { 30 } else { 260 };
        let embeddings = (Tensor::arange(rows, (kind, Device::Cpu)).remainder(7) * 0.25).unsqueeze(1);
        for mining in MININGS {
            for reduction in REDUCTIONS {
                let loss = loss(mining, reduction).margin(0.25).distance(distance);
                let tensors = [embeddings.copy(), randint(5, [rows])];
                assert_as_composite(&format!("ties {mining:?} {reduction:?}"), &tensors, &[0], &of_batch(loss));
            }
        }
    }
    let none = loss(TripletMining::All, EmbeddingReduction::Threshold { low: None, high: Some(0.0) });
    assert_without("triplets_finish", "no hinge counts", &[randn([5, 2]), randint(2, [5])], &[0], &of_batch(none));
}

#[test]
fn distances_that_are_nan_make_the_loss_nan() {
    let embeddings = randn([8, 3]);
    let _ = embeddings.get(3).fill_(f64::NAN);
    let compute = of_batch(loss(TripletMining::All, EmbeddingReduction::Mean));
    for labels in [randint(3, [8]), Tensor::zeros([8], (Kind::Int64, Device::Cpu))] {
        let tensors = [embeddings.copy(), labels];
        let actual = emulated(|| compute(&tensors)).double_value(&[]);
        let expected = with_backend(Backend::Composite, || compute(&tensors)).double_value(&[]);
        assert!(actual == expected || actual.is_nan() && expected.is_nan(), "{actual} {expected}");
    }
}

#[test]
fn labels_at_the_end_of_memory_are_read() {
    for order in [1, 7] {
        ORDER.set(order);
        for rows in [1, 5, 300] {
            let (embeddings, labels) = (randn([rows, 2]), Guarded::new(&randint(3, [rows])));
            let tensors = [embeddings, labels.tensor.shallow_clone()];
            let compute = of_batch(loss(TripletMining::All, EmbeddingReduction::Sum));
            assert_as_composite("guarded", &tensors, &[0], &compute);
        }
    }
    ORDER.set(1);
}

/// Whether the emulated kernels give what tensor operations do.
fn is_as_composite(tensors: &[Tensor], compute: &dyn Fn(&[Tensor]) -> Tensor) -> bool {
    let actual = emulated(|| results(tensors, &[0], compute));
    let expected = with_backend(Backend::Composite, || results(tensors, &[0], compute));
    let near = |(actual, expected): (&Tensor, &Tensor)| excess(actual, expected, tensors[0].kind()) <= 0.0;
    actual.iter().zip(&expected).all(near)
}

#[test]
fn mutations_of_triplets_are_caught() {
    let semi_hard = loss(TripletMining::SemiHard, EmbeddingReduction::MeanNonZero);
    let threshold = loss(TripletMining::All, EmbeddingReduction::Threshold { low: Some(0.1), high: Some(0.7) });
    let mean = loss(TripletMining::All, EmbeddingReduction::Mean);
    // Distances of a few values, of which many are at a bound.
    let few = |loss: BatchTripletMarginLoss| loss.distance(EmbeddingDistance::lp().normalize_embeddings(false));
    // What stands in the kernels, what takes its place, a loss, and a size of the matrix.
    let mutations: [(&str, &str, BatchTripletMarginLoss, [i64; 2]); 13] = [
        (
            "double(near) > number ? before(near) : near",
            "near",
            few(semi_hard.reduction(EmbeddingReduction::Mean)),
            [260, 260],
        ),
        ("double(near) >= number ? before(near) : near", "near", few(mean), [260, 260]),
        ("call.high > 0 ? at_most(limit - call.high) : NAN_REAL", "NAN_REAL", threshold, [20, 20]),
        ("call.low >= 0 ? below(limit - call.low) : NAN_REAL", "NAN_REAL", threshold, [20, 20]),
        ("&& !(n > positives.up_to[k])", "", semi_hard, [20, 20]),
        ("&& !(n > positives.costly[k])", "", mean, [20, 20]),
        ("same && !(call.own && column == row)", "same", mean, [20, 20]),
        ("if (i < warp) place += positives.found[i];", "", mean, [2, 600]),
        ("place += __popc(of_warp & ((1u << lane) - 1));", "", mean, [20, 20]),
        ("positives.costs[warp][k] += __popc(all);", "positives.costs[warp][k] = __popc(all);", mean, [2, 600]),
        ("for (int i = 0; i < WARPS; i++) costs", "for (int i = 1; i < WARPS; i++) costs", mean, [20, 20]),
        ("narrowed(widened(*gradient) - Real(costs))", "narrowed(-Real(costs))", mean, [2, 1400]),
        ("row += gridDim.x", "row += 2 * gridDim.x", mean, [1100, 4]),
    ];
    for (text, other, loss, [rows, columns]) in mutations {
        let wide = rows * columns <= 1 << 16;
        let (kind, labels) = if wide { (Kind::Double, 2) } else { (Kind::Float, 60) };
        let draw = |rows| match wide {
            true => randn([rows, 3]),
            false => (Tensor::arange(rows, (kind, Device::Cpu)).remainder(9) * 0.1).unsqueeze(1),
        };
        let labels = |rows| randint(labels, [rows]);
        let tensors = match rows == columns {
            true => vec![draw(rows), labels(rows)],
            false => vec![draw(rows), draw(columns), labels(rows), labels(columns)],
        };
        let compute = of_batch(loss);
        assert_caught(text, other, || is_as_composite(&tensors, &compute));
    }
}

#[test]
fn sources_of_triplets_compile_for_gpus() {
    let Some(nvrtc) = installed_nvrtc() else {
        println!("left out: this libtorch came without NVRTC");
        return;
    };
    let compute = of_batch(loss(TripletMining::All, EmbeddingReduction::Mean));
    let sources = super::sources_of(|| {
        for (kind, rows) in [(Kind::Double, 4), (Kind::Float, 260)] {
            let _ = compute(&[randn([rows, 3]).to_kind(kind), randint(3, [rows])]);
        }
    });
    assert!(sources.iter().filter(|source| source.contains("triplets_finish")).count() == 2);
    assert_compile(&nvrtc, sources);
}
