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
        ("NCA", make(|distance| NcaLoss::new().distance(distance))),
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

/// All losses of pairs, with the distance that is their own or the cosine.
fn losses_of_pairs() -> Vec<(&'static str, Box<dyn EmbeddingLoss>)> {
    let cosine = EmbeddingDistance::cosine;
    vec![
        ("contrastive", Box::new(ContrastiveLoss::new())),
        (
            "contrastive, by cosines",
            Box::new(ContrastiveLoss::new().pos_margin(1.0).neg_margin(0.0).distance(cosine())),
        ),
        ("NT-Xent", Box::new(NtXentLoss::new().temperature(0.5))),
        ("supervised contrastive", Box::new(SupConLoss::new().temperature(0.5))),
        ("NCA", Box::new(NcaLoss::new())),
        ("multi-similarity", Box::new(MultiSimilarityLoss::new().beta(5.0))),
        ("circle", Box::new(CircleLoss::new().gamma(4.0))),
        ("lifted structure", Box::new(LiftedStructureLoss::new())),
        ("generalised lifted structure", Box::new(GeneralizedLiftedStructureLoss::new())),
        ("all triplets", Box::new(BatchTripletMarginLoss::new().margin(0.3))),
        ("smooth triplets", Box::new(BatchTripletMarginLoss::new().smooth_loss(true))),
        ("semi-hard triplets", Box::new(BatchTripletMarginLoss::new().mining(TripletMining::SemiHard))),
        ("hard triplets", Box::new(BatchTripletMarginLoss::new().mining(TripletMining::Hard))),
        ("hardest triplets", Box::new(BatchTripletMarginLoss::new().mining(TripletMining::BatchHard))),
        (
            "hard triplets, by cosines",
            Box::new(BatchTripletMarginLoss::new().margin(0.0).mining(TripletMining::Hard).distance(cosine())),
        ),
        ("triplets without a margin", Box::new(BatchTripletMarginLoss::new().margin(0.0))),
    ]
}

const BACKENDS: [Backend; 2] = [Backend::Auto, Backend::Composite];

/// Value and gradient of a loss.
fn value_and_gradient(loss: &dyn Fn(&Tensor) -> Tensor, embeddings: &Tensor) -> [Tensor; 2] {
    let leaf = embeddings.detach().copy().set_requires_grad(true);
    let value = loss(&leaf);
    let gradient = Tensor::run_backward(&[&value], &[&leaf], false, false).remove(0);
    [value.detach(), gradient].map(|tensor| tensor.to_kind(Kind::Double))
}

/// The gradient of the squared gradient.
fn second_derivative(loss: &dyn Fn(&Tensor) -> Tensor, embeddings: &Tensor) -> Tensor {
    let leaf = embeddings.detach().copy().set_requires_grad(true);
    let first = Tensor::run_backward(&[loss(&leaf)], &[&leaf], true, true).remove(0);
    let square = first.square().sum(Kind::Double);
    // A slope that does not change has no graph.
    if !square.requires_grad() {
        return leaf.zeros_like();
    }
    Tensor::run_backward(&[square], &[&leaf], false, false).remove(0)
}

fn is_finite(tensor: &Tensor) -> bool {
    bool::try_from(tensor.isfinite().all()).unwrap()
}

#[test]
fn a_unit_vector_is_one() {
    // pytorch-metric-learning's hard triplets; 49 · (1 / 49) is not 1.
    let embeddings = Tensor::from_slice(&[1.0, 0.0, 0.0, 49.0, 0.0, 1.0]).view([3, 2]);
    let labels = Tensor::from_slice(&[0_i64, 0, 1]);
    let loss = BatchTripletMarginLoss::new().mining(TripletMining::Hard);
    for (backend, kind) in BACKENDS.into_iter().flat_map(|backend| [(backend, Kind::Double), (backend, Kind::Float)]) {
        let value = with_backend(backend, || value(&loss, &embeddings.to_kind(kind), &labels));
        assert!((value - 0.757_106_781_186_547_6).abs() < 1e-6, "{backend:?} {kind:?}: {value}");
    }
}

/// Small integers have many equal distances, and vectors of one direction.
#[test]
fn backends_agree_on_ties() {
    for round in 0..200 {
        let count = 6 + round % 5;
        let embeddings = randint(7, [count, 2 + round % 2]).to_kind(Kind::Double) - 3.0;
        embeddings.get(0).copy_(&embeddings.get(1));
        embeddings.get(2).copy_(&(embeddings.get(3) * 7.0));
        let labels = randint(3, [count]);
        for (name, loss) in losses_of_pairs() {
            let kinds = [Kind::Double, Kind::Float];
            for kind in kinds.into_iter().filter(|kind| *kind == Kind::Double || round < 40) {
                let x = embeddings.to_kind(kind);
                let of = |x: &Tensor| loss.forward(x, &labels);
                let [engine, composite] = BACKENDS.map(|backend| with_backend(backend, || value_and_gradient(&of, &x)));
                let tolerance = if kind == Kind::Double { 1e-9 } else { 1e-4 };
                for (engine, composite) in engine.iter().zip(&composite) {
                    let furthest = (engine - composite).abs().max().double_value(&[]);
                    let scale = composite.abs().max().double_value(&[]).max(1.0);
                    assert!(furthest <= tolerance * scale, "{name}, {kind:?}, round {round}: {furthest:e}");
                }
            }
        }
    }
}

#[test]
fn an_embedding_of_zeros_has_no_slope() {
    let embeddings = randn([6, 4]);
    let _ = embeddings.get(2).zero_();
    let labels = Tensor::from_slice(&[0_i64, 1, 0, 1, 2, 2]);
    for (name, loss) in losses_of_pairs() {
        let of = |x: &Tensor| loss.forward(x, &labels);
        for backend in BACKENDS {
            with_backend(backend, || {
                for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16] {
                    let [value, gradient] = value_and_gradient(&of, &embeddings.to_kind(kind));
                    assert!(is_finite(&value) && is_finite(&gradient), "{name} {backend:?} {kind:?}");
                    assert_eq!(gradient.get(2).abs().max().double_value(&[]), 0.0, "{name} {backend:?} {kind:?}");
                }
                let second = second_derivative(&of, &embeddings);
                assert!(is_finite(&second), "{name} {backend:?}: {second}");
                assert_eq!(second.get(2).abs().max().double_value(&[]), 0.0, "{name} {backend:?}");
            });
        }
    }
}

#[test]
fn second_derivatives_of_both_backends_are_finite_and_the_same() {
    let embeddings = randn([7, 4]);
    let _ = (embeddings.get(1).copy_(&embeddings.get(0)), embeddings.get(2).copy_(&(embeddings.get(0) * 4.0)));
    let labels = Tensor::from_slice(&[0_i64, 0, 1, 1, 2, 2, 0]);
    for (name, loss) in losses_of_pairs() {
        let of = |x: &Tensor| loss.forward(x, &labels);
        let [engine, composite] = BACKENDS.map(|backend| with_backend(backend, || second_derivative(&of, &embeddings)));
        assert!(is_finite(&engine) && is_finite(&composite), "{name}");
        let furthest = (&engine - &composite).abs().max().double_value(&[]);
        assert!(furthest <= 1e-8 * composite.abs().max().double_value(&[]).max(1.0), "{name}: {furthest:e}");
    }
}

#[test]
fn an_embedding_that_is_nan_makes_the_loss_nan() {
    let labels = Tensor::from_slice(&[0_i64, 1, 0, 1, 2, 2, 3]);
    for (name, loss) in losses_of_pairs() {
        for (row, backend) in [0, 3, 6].into_iter().flat_map(|row| BACKENDS.map(|backend| (row, backend))) {
            let embeddings = randn([7, 4]);
            let _ = embeddings.get(row).get(1).fill_(f64::NAN);
            for kind in [Kind::Double, Kind::Float, Kind::Half] {
                let of = |x: &Tensor| loss.forward(x, &labels);
                let [value, gradient] = with_backend(backend, || value_and_gradient(&of, &embeddings.to_kind(kind)));
                assert!(value.double_value(&[]).is_nan(), "{name} {backend:?} {kind:?}, {row}: {value}");
                assert!(bool::try_from(gradient.get(row).isnan().any()).unwrap(), "{name} {backend:?} {kind:?}, {row}");
            }
        }
    }
}

/// All pairs and triplets that labels tell, in place of labels.
#[test]
fn pairs_that_are_named_are_those_of_labels() {
    for _ in 0..ROUNDS {
        let (embeddings, labels) = batch();
        let (memory, of_memory) = (randn([11, 6]), randint(4, [11]));
        for with_memory in [false, true] {
            let others = if with_memory { &of_memory } else { &labels };
            let same = labels.unsqueeze(1).eq_tensor(&others.unsqueeze(0));
            let mut positive = same.copy();
            if !with_memory {
                let _ = positive.fill_diagonal_(0, false);
            }
            let negative = same.logical_not();
            let of_mask = |mask: &Tensor| [0, 1].map(|column| mask.nonzero().select(1, column));
            let ([a, p], [b, n]) = (of_mask(&positive), of_mask(&negative));
            let pairs = EmbeddingPairs::pairs(&a, &p, &b, &n);
            let triplets = (positive.unsqueeze(2)).logical_and(&negative.unsqueeze(1)).nonzero();
            let [a, p, n] = [0, 1, 2].map(|column| triplets.select(1, column));
            let triplets = EmbeddingPairs::triplets(&a, &p, &n);
            for (name, loss) in losses_of_pairs() {
                // Named triplets are not mined.
                if name.starts_with("semi") || name.starts_with("hard") {
                    continue;
                }
                let memory = with_memory.then_some(&memory);
                let expected = match memory {
                    Some(memory) => loss.forward_with(&embeddings, &labels, memory, &of_memory),
                    None => loss.forward(&embeddings, &labels),
                };
                let actual = loss.forward_pairs(&embeddings, &pairs, memory).double_value(&[]);
                assert_close(name, actual, expected.double_value(&[]));
                if name.contains("triplets") {
                    let actual = loss.forward_pairs(&embeddings, &triplets, memory).double_value(&[]);
                    assert_close(name, actual, expected.double_value(&[]));
                }
            }
        }
    }
}

#[test]
fn a_memory_of_single_precision_serves_embeddings_of_half() {
    let (embeddings, labels) = batch();
    let embeddings = embeddings.to_kind(Kind::BFloat16);
    let (memory, of_memory) = (randn([11, 6]).to_kind(Kind::Float), randint(4, [11]).to_kind(Kind::Uint8));
    for (name, loss) in losses_of_pairs() {
        for backend in BACKENDS {
            let leaf = embeddings.copy().set_requires_grad(true);
            let value = with_backend(backend, || {
                let value = loss.forward_with(&leaf, &labels, &memory, &of_memory);
                value.backward();
                value
            });
            assert_eq!((value.kind(), leaf.grad().kind()), (Kind::BFloat16, Kind::BFloat16), "{name} {backend:?}");
            let exact = embeddings.to_kind(Kind::Double);
            let expected = loss.forward_with(&exact, &labels, &memory.to_kind(Kind::Double), &of_memory);
            let expected = expected.double_value(&[]);
            let error = (value.double_value(&[]) - expected).abs();
            assert!(error <= 8e-3 * expected.abs(), "{name} {backend:?}: {error:e}");
        }
    }
}

/// By pytorch-metric-learning 2.9.0: losses of the pairs (0, 1), (0, 3), (1, 2) and the negatives (0, 2), (1, 3), twice, (2, 0).
#[test]
fn pairs_that_are_named_twice_count_twice() {
    let embeddings = Tensor::from_slice(&[1.0, 2.0, -1.0, 0.5, 0.5, -2.0, 3.0, 1.0]).view([4, 2]);
    let positions = |of: &[i64]| Tensor::from_slice(of);
    let [a, p] = [positions(&[0, 0, 1]), positions(&[1, 3, 2])];
    let [b, n] = [positions(&[0, 1, 1, 2]), positions(&[2, 3, 3, 0])];
    let pairs = EmbeddingPairs::pairs(&a, &p, &b, &n);
    let expected = [
        ("contrastive", 1.3322020746963634),
        ("NT-Xent", 0.42496511844926826),
        ("supervised contrastive", 0.802545111249541),
        ("multi-similarity", 0.4845332153682011),
        ("circle", 6.839635089285884),
        ("lifted structure", 1.163280343890808),
        ("generalised lifted structure", 0.48204033018948833),
        ("all triplets", 0.2692667319632415),
        ("smooth triplets", 0.5528548790172223),
    ];
    for (name, expected) in expected {
        let (_, loss) = losses_of_pairs().into_iter().find(|(other, _)| *other == name).unwrap();
        assert_close(name, loss.forward_pairs(&embeddings, &pairs, None).double_value(&[]), expected);
    }
}

/// A mean over no pairs, or over no triplets, is over nothing; one over pairs that all cost nothing is not.
#[test]
fn batches_without_pairs_are_empty() {
    let losses: Vec<(&str, bool, Box<dyn Loss>)> = vec![
        ("contrastive", false, Box::new(ContrastiveLoss::new())),
        ("multi-similarity", false, Box::new(MultiSimilarityLoss::new())),
        ("generalised lifted structure", false, Box::new(GeneralizedLiftedStructureLoss::new())),
        ("NT-Xent", true, Box::new(NtXentLoss::new())),
        ("supervised contrastive", true, Box::new(SupConLoss::new())),
        ("circle", true, Box::new(CircleLoss::new())),
        ("lifted structure", true, Box::new(LiftedStructureLoss::new())),
        ("triplets", true, Box::new(BatchTripletMarginLoss::new())),
        ("n-pairs", true, Box::new(NPairsLoss::new())),
    ];
    for (name, of_triplets, loss) in losses {
        let empty = |labels: &[i64]| {
            let embeddings = randn([labels.len() as i64, 3]);
            let empty = loss.f_is_empty(&embeddings, &Tensor::from_slice(labels)).unwrap();
            bool::try_from(empty).unwrap()
        };
        assert!(empty(&[]) && empty(&[4]), "{name}");
        assert_eq!((empty(&[4, 4]), empty(&[4, 5])), (of_triplets, of_triplets), "{name}");
        assert!(!empty(&[4, 5, 4]) && !empty(&[1, 2, 3, 0, 2]), "{name}");
        let wrong = loss.f_is_empty(&randn([2, 3]), &Tensor::from_slice(&[1_i64])).unwrap_err();
        assert_eq!(wrong.to_string(), "target has shape [1], expected [2], one label for each of input", "{name}");
    }
    // Two of one label are all that this one needs.
    let neighbours = |labels: &[i64]| {
        let embeddings = randn([labels.len() as i64, 3]);
        bool::try_from(NcaLoss::new().f_is_empty(&embeddings, &Tensor::from_slice(labels)).unwrap()).unwrap()
    };
    assert!(neighbours(&[4]) && neighbours(&[4, 5]) && !neighbours(&[4, 4]) && !neighbours(&[4, 5, 4]));
    let (near, far) = (Tensor::from_slice(&[1.0, 0.0, 1.0, 0.0, -1.0, 0.0]).view([3, 2]), randn([2, 2]));
    let error = |loss: OverNothing<BatchTripletMarginLoss>, x: &Tensor, labels: &[i64]| {
        loss.f_forward(x, &Tensor::from_slice(labels)).map(|loss| loss.double_value(&[]))
    };
    let loss = || BatchTripletMarginLoss::new().when_empty(WhenEmpty::Error);
    assert_eq!(error(loss(), &near, &[0, 0, 1]).unwrap(), 0.0);
    assert!(matches!(error(loss(), &far, &[0, 1]), Err(LossError::Empty)));
}
