//! Properties of the losses over a batch of embeddings.

mod common;

use tch::{Device, Kind, Tensor};
use tch_losses::*;

use common::random::{rand, randint, randn, randperm};

const ROUNDS: i64 = 10;

/// A loss by the distance that it is given.
type Make = Box<dyn Fn(EmbeddingDistance) -> Box<dyn Loss>>;

/// All of them but the one that knows no distance other than the cosine.
fn losses() -> Vec<(&'static str, Make)> {
    fn make<L: Loss + 'static>(loss: impl Fn(EmbeddingDistance) -> L + 'static) -> Make {
        Box::new(move |distance| Box::new(loss(distance)))
    }
    let triplets = |mining, smooth: bool| {
        make(move |distance| {
            let loss = BatchTripletMarginLoss::new().margin(0.3).mining(mining);
            loss.smooth_loss(smooth).swap(smooth).distance(distance)
        })
    };
    vec![
        ("contrastive", make(|distance| ContrastiveLoss::new().distance(distance))),
        ("NT-Xent", make(|distance| NtXentLoss::new().temperature(0.5).distance(distance))),
        ("supervised contrastive", make(|distance| SupConLoss::new().temperature(0.5).distance(distance))),
        ("multi-similarity", make(|distance| MultiSimilarityLoss::new().beta(5.0).distance(distance))),
        ("lifted structure", make(|distance| LiftedStructureLoss::new().distance(distance))),
        ("generalised lifted structure", make(|distance| GeneralizedLiftedStructureLoss::new().distance(distance))),
        ("all triplets", triplets(TripletMining::All, false)),
        ("smooth triplets", triplets(TripletMining::All, true)),
        ("semi-hard triplets", triplets(TripletMining::SemiHard, false)),
        ("hard triplets", triplets(TripletMining::Hard, false)),
        ("hardest triplets", triplets(TripletMining::BatchHard, false)),
    ]
}

fn batch() -> (Tensor, Tensor) {
    (randn([17, 6]), randint(4, [17]))
}

fn value(loss: &dyn Loss, embeddings: &Tensor, labels: &Tensor) -> f64 {
    loss.forward(embeddings, labels).double_value(&[])
}

#[track_caller]
fn assert_close(name: &str, actual: f64, expected: f64) {
    assert!((actual - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{name}: {actual}, not {expected}");
}

#[test]
fn the_order_of_a_batch_does_not_matter() {
    for _ in 0..ROUNDS {
        let (embeddings, labels) = batch();
        let order = randperm(17);
        let (shuffled, their_labels) = (embeddings.index_select(0, &order), labels.index_select(0, &order));
        for (name, loss) in losses() {
            for distance in [EmbeddingDistance::lp(), EmbeddingDistance::cosine()] {
                let loss = loss(distance);
                let expected = value(&*loss, &embeddings, &labels);
                assert_close(name, value(&*loss, &shuffled, &their_labels), expected);
            }
        }
        let circle = CircleLoss::new().gamma(8.0);
        assert_close("circle", value(&circle, &shuffled, &their_labels), value(&circle, &embeddings, &labels));
    }
}

#[test]
fn the_names_of_labels_do_not_matter() {
    for _ in 0..ROUNDS {
        let (embeddings, labels) = batch();
        let renamed = &labels * -1_000_000_007 + 5;
        for (name, loss) in losses() {
            let loss = loss(EmbeddingDistance::lp());
            assert_close(name, value(&*loss, &embeddings, &renamed), value(&*loss, &embeddings, &labels));
            let narrow = labels.to_kind(Kind::Int8);
            assert_eq!(value(&*loss, &embeddings, &narrow), value(&*loss, &embeddings, &labels), "{name}");
        }
    }
}

#[test]
fn lengths_do_not_matter_where_embeddings_are_normalised() {
    for _ in 0..ROUNDS {
        let (embeddings, labels) = batch();
        let lengths = rand([17, 1]) * 9.0 + 0.1;
        let distances =
            [EmbeddingDistance::lp(), EmbeddingDistance::cosine(), EmbeddingDistance::signal_to_noise().p(1.0)];
        for (name, loss) in losses() {
            for loss in distances.map(&loss) {
                let expected = value(&*loss, &embeddings, &labels);
                assert_close(name, value(&*loss, &(&embeddings * &lengths), &labels), expected);
            }
        }
    }
}

#[test]
fn a_rotation_does_not_matter() {
    for _ in 0..ROUNDS {
        let (embeddings, labels) = batch();
        let (rotation, _) = Tensor::linalg_qr(&randn([6, 6]), "reduced");
        let rotated = embeddings.matmul(&rotation);
        for (name, loss) in losses() {
            for distance in [EmbeddingDistance::lp(), EmbeddingDistance::dot_product()] {
                let loss = loss(distance.normalize_embeddings(false));
                assert_close(name, value(&*loss, &rotated, &labels), value(&*loss, &embeddings, &labels));
            }
        }
    }
}

#[test]
fn a_batch_among_itself_is_one_with_references_less_the_diagonal() {
    // As references embeddings are their own partners, at distance 0, which costs nothing.
    let loss = ContrastiveLoss::new().reduction(EmbeddingReduction::Sum);
    for _ in 0..ROUNDS {
        let (embeddings, labels) = batch();
        let with = loss.forward_with(&embeddings, &labels, &embeddings, &labels).double_value(&[]);
        assert_close("contrastive", with, value(&loss, &embeddings, &labels));
    }
}

#[test]
fn chunks_of_triplets_add_up() {
    // 89 400 pairs with 600 embeddings each take several chunks.
    let embeddings = randn([600, 4]).set_requires_grad(true);
    let labels = Tensor::arange(600, (Kind::Int64, Device::Cpu)).remainder(4);
    let smooth = BatchTripletMarginLoss::new().smooth_loss(true).reduction(EmbeddingReduction::Mean);
    let loss = smooth.forward(&embeddings, &labels);
    loss.backward();
    let unit = &embeddings / embeddings.norm_scalaropt_dim(2, 1, true);
    let far = Tensor::cdist(&unit, &unit, 2.0, 2).detach();
    let mut total = 0.0;
    for anchor in 0..600 {
        let row = far.get(anchor);
        let same = labels.eq_tensor(&labels.get(anchor));
        let strangers = row.masked_select(&same.logical_not());
        let _ = same.get(anchor).fill_(0);
        let partners = row.masked_select(&same);
        total += ((partners.unsqueeze(1) - strangers + 0.05).exp().log1p()).sum(Kind::Double).double_value(&[]);
    }
    assert_close("smooth", loss.double_value(&[]), total / (600.0 * 149.0 * 450.0));
    assert!(bool::try_from(embeddings.grad().isfinite().all()).unwrap());
}

#[test]
fn a_batch_without_pairs_has_a_finite_loss_and_gradient() {
    for (name, loss) in losses() {
        for distance in [EmbeddingDistance::lp(), EmbeddingDistance::cosine()] {
            for (count, labels) in [(0, vec![]), (1, vec![3_i64]), (3, vec![1, 2, 3]), (3, vec![5, 5, 5])] {
                let embeddings = Tensor::ones([count, 2], (Kind::Double, Device::Cpu)).set_requires_grad(true);
                let value = loss(distance).forward(&embeddings, &Tensor::from_slice(&labels));
                let gradient = Tensor::run_backward(&[&value], &[&embeddings], false, false).remove(0);
                assert!(value.double_value(&[]).is_finite(), "{name} of {labels:?}");
                assert!(bool::try_from(gradient.isfinite().all()).unwrap(), "{name} of {labels:?}");
            }
        }
    }
}

/// More than 2²⁰ pairs are compared in the kind of the embeddings, fewer in double precision.
#[test]
fn large_batches_lose_few_digits() {
    let embeddings = randn([1100, 16]).to_kind(Kind::Float);
    let labels = Tensor::arange(1100, (Kind::Int64, Device::Cpu)).remainder(275);
    let value_and_gradient = |loss: &dyn Loss, kind| {
        let leaf = embeddings.to_kind(kind).set_requires_grad(true);
        let value = loss.forward(&leaf, &labels);
        assert_eq!(value.kind(), kind);
        let gradient = Tensor::run_backward(&[&value], &[&leaf], false, false).remove(0);
        (value.double_value(&[]), gradient.to_kind(Kind::Double))
    };
    for (name, loss) in losses() {
        for distance in [EmbeddingDistance::lp(), EmbeddingDistance::cosine()] {
            let loss = loss(distance);
            let (value, gradient) = value_and_gradient(&*loss, Kind::Float);
            let (expected, expected_gradient) = value_and_gradient(&*loss, Kind::Double);
            assert!((value - expected).abs() < 1e-5 * expected.abs(), "{name}: {value}, not {expected}");
            let error = (gradient - &expected_gradient).abs().max() / expected_gradient.abs().max();
            // A single triplet that rounding moves across a kink is worth 3·10⁻⁴ of the largest.
            assert!(error.double_value(&[]) < 1e-3, "{name}: a gradient is {error:?} of the largest away");
        }
    }
}
