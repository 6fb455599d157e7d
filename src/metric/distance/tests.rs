use super::*;
use crate::numeric::assert_gradient;
use crate::random::rand;

fn embeddings() -> Tensor {
    Tensor::from_slice(&[0.5, -2.0, 1.5, -1.0, 3.0, 0.1, 0.7, 0.2, -0.4, 1.1, -0.6, 0.9]).view([4, 3])
}

fn distances() -> Vec<EmbeddingDistance> {
    let of = |distance: EmbeddingDistance| {
        [distance, distance.normalize_embeddings(false), distance.power(2.0), distance.p(1.0).power(3.0)]
    };
    let measures = [EmbeddingDistance::lp(), EmbeddingDistance::dot_product(), EmbeddingDistance::signal_to_noise()];
    measures.into_iter().flat_map(of).collect()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (weights, reference) = (rand([4, 4]), embeddings().flip([0]) * 1.3 + 0.37);
    for distance in distances() {
        let matrix = |a: &Tensor, b: Option<&Tensor>| distance.f_matrix(a, b, a.kind()).unwrap();
        // The distance of an embedding to itself has no gradient.
        let among = |a: &Tensor| (matrix(a, None) * &weights).triu(1).sum(Kind::Double);
        assert_gradient(&embeddings(), among);
        assert_gradient(&embeddings(), |a| (matrix(a, Some(&reference)) * &weights).sum(Kind::Double));
        assert_gradient(&reference, |b| (matrix(&embeddings(), Some(b)) * &weights).sum(Kind::Double));
    }
}

#[test]
fn second_derivatives_are_those_of_finite_differences() {
    let others = [3.0, 2.5].map(|p| EmbeddingDistance::lp().p(p));
    for distance in distances().into_iter().chain(others) {
        let slope = |x: &Tensor, create: bool| {
            let leaf = if x.requires_grad() { x.shallow_clone() } else { x.copy().set_requires_grad(true) };
            let sum = distance.f_matrix(&leaf, None, leaf.kind()).unwrap().triu(1).sum(Kind::Double);
            Tensor::run_backward(&[sum], &[&leaf], create, create).remove(0).square().sum(Kind::Double)
        };
        assert_gradient(&embeddings(), |x| slope(x, x.requires_grad()));
    }
}

#[test]
fn near_and_equal_embeddings_keep_their_distance() {
    let near = Tensor::from_slice(&[1.0_f32, 100.0, 1.0 + 1e-4, 100.0, 1.0, 100.0]).view([3, 2]);
    let leaf = near.set_requires_grad(true);
    let matrix = EmbeddingDistance::lp().normalize_embeddings(false).f_matrix(&leaf, None, leaf.kind()).unwrap();
    assert!((matrix.double_value(&[0, 1]) - 1e-4).abs() < 1e-7);
    assert_eq!(matrix.double_value(&[0, 2]), 0.0);
    matrix.sum(Kind::Float).backward();
    assert_eq!(Vec::<f32>::try_from(leaf.grad().view(-1)).unwrap(), [-2.0, 0.0, 4.0, 0.0, -2.0, 0.0]);
}

#[test]
fn large_embeddings_do_not_overflow() {
    let large = (embeddings() * 1e30).to_kind(Kind::Float);
    for distance in [EmbeddingDistance::lp(), EmbeddingDistance::cosine(), EmbeddingDistance::signal_to_noise()] {
        for normalize in [true, distance.is_similarity()] {
            let distance = distance.normalize_embeddings(normalize);
            let leaf = large.copy().set_requires_grad(true);
            let matrix = distance.f_matrix(&leaf, None, leaf.kind()).unwrap();
            let factor = if distance == EmbeddingDistance::lp().normalize_embeddings(false) { 1e30 } else { 1.0 };
            let expected = distance.f_matrix(&embeddings(), None, Kind::Double).unwrap();
            assert!((&matrix / factor - expected).abs().max().double_value(&[]) < 1e-5, "{distance:?}");
            matrix.sum(Kind::Float).backward();
            assert!(bool::try_from(leaf.grad().isfinite().all()).unwrap());
        }
    }
}

#[test]
fn options_out_of_range_are_named() {
    let message = |distance: EmbeddingDistance| distance.check().unwrap_err().to_string();
    assert_eq!(message(EmbeddingDistance::lp().p(0.5)), "option p is 0.5, expected a number ≥ 1");
    assert_eq!(message(EmbeddingDistance::cosine().power(0.0)), "option power is 0, expected a finite number > 0");
}
