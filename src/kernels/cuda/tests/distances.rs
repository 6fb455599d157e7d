//! Euclidean distances of all pairs of rows.

use tch::{Kind, Tensor};

use super::compare::Guarded;
use super::compiled::{assert_compile, installed_nvrtc};
use super::{ORDER, assert_caught, assert_near, emulated, excess, randn, sources_of};
use crate::kernels::{f_distance_slopes, f_distances};

/// The distances and the gradient of `a` by kernels, and by tensor operations in double precision.
fn both([a, b, grad]: [&Tensor; 3]) -> [[Tensor; 2]; 2] {
    let actual = emulated(|| {
        let distances = f_distances(a, b).unwrap().expect("kernels take this");
        let slopes = f_distance_slopes(grad, a, b, &distances).unwrap().expect("kernels take this");
        [distances, slopes].map(|tensor| tensor.to_kind(Kind::Double))
    });
    let [a, b, grad] = [a, b, grad].map(|tensor| tensor.to_kind(Kind::Double));
    let differences = a.unsqueeze(1) - b.unsqueeze(0);
    let distances = differences.square().sum_dim_intlist(2, false, None).sqrt();
    let weights = (grad / &distances).masked_fill(&distances.eq(0.0), 0.0);
    let slopes = (weights.unsqueeze(2) * differences).sum_dim_intlist(1, false, None);
    [actual, [distances, slopes]]
}

fn draw(rows: i64, columns: i64, length: i64, kind: Kind) -> [Tensor; 3] {
    let b = randn([columns, length]).to_kind(kind);
    let a = randn([rows, length]).to_kind(kind);
    // A pair of equal rows.
    a.get(rows - 1).copy_(&b.get(0));
    [a, b, randn([rows, columns]).to_kind(kind)]
}

/// Whether the sums of so many terms are those of double precision.
fn is_near(actual: &Tensor, expected: &Tensor, kind: Kind, terms: i64) -> bool {
    // The terms of a gradient cancel.
    let scale = (terms as f64).sqrt();
    excess(&(actual / scale), &(expected / scale), kind) <= 0.0
}

#[test]
fn matrices_of_any_size_have_their_distances() {
    for order in [1, 4] {
        ORDER.set(order);
        for kind in [Kind::Double, Kind::Float] {
            // Tiles of one, two and four results a thread in each direction, with and without a rest.
            for (rows, columns, length) in
                [(1, 1, 1), (2, 17, 5), (16, 16, 16), (33, 15, 40), (300, 420, 3), (700, 705, 9), (5, 3, 600)]
            {
                if order > 1 && rows > 300 {
                    continue;
                }
                let tensors = draw(rows, columns, length, kind);
                let guarded = tensors.each_ref().map(Guarded::new);
                let [[distances, slopes], [of_distances, of_slopes]] = both(guarded.each_ref().map(|of| &of.tensor));
                let name = format!("distances {rows} {columns} {length}");
                assert_near(&name, &distances, &of_distances, kind);
                assert!(is_near(&slopes, &of_slopes, kind, columns), "{name}: {slopes:?} {of_slopes:?} {kind:?}");
            }
        }
    }
    ORDER.set(1);
    let [a, b, grad] =
        [randn([9, 5]).transpose(0, 1), randn([7, 18]).slice(1, 0, 18, 2), randn([7, 5]).transpose(0, 1)];
    let [[distances, slopes], [of_distances, of_slopes]] = both([&a, &b, &grad]);
    assert_near("distances of strides", &distances, &of_distances, Kind::Double);
    assert_near("slopes of strides", &slopes, &of_slopes, Kind::Double);
    let half = a.to_kind(Kind::Half);
    assert!(emulated(|| f_distances(&half, &half)).unwrap().is_none());
    let empty = Tensor::zeros([0, 9], (Kind::Double, tch::Device::Cpu));
    assert!(emulated(|| f_distances(&a, &empty)).unwrap().is_none());
}

#[test]
fn numbers_that_are_not_finite_stay_in_their_rows() {
    let [a, b, grad] = draw(20, 18, 4, Kind::Float);
    let _ = a.get(3).get(1).fill_(f64::NAN);
    let _ = b.get(5).get(0).fill_(f64::INFINITY);
    let [[distances, slopes], [of_distances, of_slopes]] = both([&a, &b, &grad]);
    assert_near("distances", &distances, &of_distances, Kind::Float);
    assert_near("slopes", &slopes, &of_slopes, Kind::Float);
}

#[test]
fn mutations_of_distances_are_caught() {
    for (text, other) in [
        ("      __syncthreads();\n      for (int k", "      for (int k"),
        ("      __syncthreads();\n      Real some", "      Real some"),
        ("distance == 0 ? Real(0) :", ""),
        (
            "first_row + place < call.rows && start + term < terms",
            "first_row + place < call.rows && start + term + 1 < terms",
        ),
        (
            "tile / across * TILE, first_column = tile % across * TILE",
            "tile % across * TILE, first_column = tile / across * TILE",
        ),
        ("start += TERMS", "start += 2 * TERMS"),
        ("own - of_column", "of_column"),
        ("sums[i][j] += some[i][j]", "sums[i][j] = some[i][j]"),
    ] {
        let tensors = draw(40, 70, 35, Kind::Float);
        let is_right = || {
            let [[distances, slopes], [of_distances, of_slopes]] = both(tensors.each_ref());
            is_near(&distances, &of_distances, Kind::Float, 1) && is_near(&slopes, &of_slopes, Kind::Float, 70)
        };
        assert_caught(text, other, is_right);
    }
}

#[test]
fn sources_of_distances_compile_for_gpus() {
    let Some(nvrtc) = installed_nvrtc() else {
        println!("left out: this libtorch came without NVRTC");
        return;
    };
    let sources = sources_of(|| {
        for kind in [Kind::Double, Kind::Float] {
            for rows in [9, 400, 800] {
                let a = randn([rows, 2]).to_kind(kind);
                assert!(f_distances(&a, &a).unwrap().is_none());
            }
        }
    });
    assert_eq!(sources.len(), 6);
    assert_compile(&nvrtc, sources);
}
