//! What holds for the losses of views, of images and texts, and of embeddings and classes whatever their arguments are.

mod common;

use tch::{Device, Kind, Tensor, nn};
use tch_losses::*;

use common::random::{rand, randint, randn, randperm};

const ROUNDS: i64 = 20;

/// Each round with two views of a batch, and an order of its rows.
fn for_views(check: impl Fn(&Tensor, &Tensor, &Tensor)) {
    for _ in 0..ROUNDS {
        let view = randn([8, 5]);
        let other = &view + randn([8, 5]) * 0.5;
        check(&view, &other, &randperm(8));
    }
}

/// The losses of two views that ask the same of both.
fn symmetric_losses() -> [Box<dyn Loss>; 3] {
    [Box::new(BarlowTwinsLoss::new()), Box::new(VicRegLoss::new()), Box::new(NegativeCosineSimilarity::new())]
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    a.allclose(b, 1e-9, 1e-12, false)
}

fn rows(tensor: &Tensor, order: &Tensor) -> Tensor {
    tensor.index_select(0, order)
}

#[test]
fn neither_the_order_of_the_samples_nor_that_of_the_views_matters() {
    for_views(|a, b, order| {
        for loss in symmetric_losses() {
            let value = loss.forward(a, b);
            assert!(close(&value, &loss.forward(b, a)));
            assert!(close(&value, &loss.forward(&rows(a, order), &rows(b, order))));
        }
    });
}

#[test]
fn neither_the_order_nor_the_sign_of_the_features_matters() {
    for_views(|a, b, _| {
        let order = randperm(5);
        let signs = Tensor::from_slice(&[1.0, -1.0, -1.0, 1.0, -1.0]);
        let changed = |view: &Tensor| (view * &signs).index_select(1, &order);
        for loss in symmetric_losses() {
            assert!(close(&loss.forward(a, b), &loss.forward(&changed(a), &changed(b))));
        }
    });
}

#[test]
fn barlow_twins_sees_neither_scale_nor_offset_of_a_feature() {
    for_views(|a, b, _| {
        // Up to the 10⁻⁵ that is added to the variances.
        let (scale, offset) = (rand([5]) * 10.0 + 10.0, randn([5]));
        let moved = BarlowTwinsLoss::new().forward(&(a * 10.0), &(b * &scale + offset));
        assert!(moved.allclose(&BarlowTwinsLoss::new().forward(&(a * 10.0), &(b * 10.0)), 1e-4, 1e-5, false));
    });
}

#[test]
fn vicreg_sees_no_offset_of_both_views_and_is_the_sum_of_its_terms() {
    for_views(|a, b, _| {
        let offset = randn([5]);
        let value = VicRegLoss::new().forward(a, b);
        assert!(close(&value, &VicRegLoss::new().forward(&(a + &offset), &(b + &offset))));
        let term = |lambda, mu, nu| VicRegLoss::new().lambda_param(lambda).mu_param(mu).nu_param(nu).forward(a, b);
        assert!(close(&value, &(term(25.0, 0.0, 0.0) + term(0.0, 25.0, 0.0) + term(0.0, 0.0, 1.0))));
        assert!(close(&term(1.0, 0.0, 0.0), &MseLoss::new().forward(a, b)));
    });
}

#[test]
fn negative_cosines_are_bounded_and_see_no_length() {
    for_views(|a, b, _| {
        let loss = NegativeCosineSimilarity::new().reduction(Reduction::None);
        let cosines = loss.forward(a, b);
        assert!(bool::try_from(cosines.abs().le(1.0 + 1e-12).all()).unwrap());
        assert!(close(&cosines, &loss.forward(&(a * 7.0), &(b * 0.1))));
        assert!(close(&loss.forward(a, &-a), &cosines.ones_like()));
    });
}

#[test]
fn dino_sees_only_differences_to_the_centre_and_pairs_of_different_views() {
    for_views(|a, b, order| {
        let store = nn::VarStore::new(Device::Cpu);
        let mut criterion = DinoLoss::new(store.root(), 5, DinoConfig::new().teacher_temp(0.5));
        criterion.update_center(&[a, b]);
        let value = criterion.forward(&[a, b], &[b, a]);
        let permuted = [&rows(a, order), &rows(b, order)];
        assert!(close(&value, &criterion.forward(&permuted, &[permuted[1], permuted[0]])));
        assert!(close(&value, &criterion.forward(&[b, a], &[a, b])));
        // A view is not compared with itself.
        let [first, second] = [(a, b), (b, a)].map(|(a, b)| criterion.forward(&[a], &[b, a]));
        let both = criterion.forward(&[a, b], &[a, b]);
        assert!(close(&both, &((criterion.forward(&[a], &[a, b]) + criterion.forward(&[b], &[b, a])) / 2.0)));
        assert!(close(&value, &((first + second) / 2.0)));
    });
}

#[test]
fn the_centre_moves_towards_the_mean() {
    for_views(|a, b, _| {
        let mut store = nn::VarStore::new(Device::Cpu);
        let mut criterion = DinoLoss::new(store.root(), 5, DinoConfig::new().center_momentum(0.75));
        store.double();
        let mean = (a + b).mean_dim(0, false, None) / 2.0;
        for expected in [0.25, 0.4375] {
            criterion.update_center(&[a, b]);
            assert!(close(&criterion.center().view(-1), &(&mean * expected)));
        }
    });
}

#[test]
fn images_and_texts_are_symmetric() {
    for_views(|image, text, order| {
        let clip = ClipLoss::new().forward(image, text, 5.0);
        let siglip = SigLipLoss::new().forward(image, text, 5.0, -3.0);
        for (image, text) in [(text, image), (&rows(image, order), &rows(text, order))] {
            assert!(close(&clip, &ClipLoss::new().forward(image, text, 5.0)));
            assert!(close(&siglip, &SigLipLoss::new().forward(image, text, 5.0, -3.0)));
        }
        let (image, text) = (image * 100.0, text * 0.01);
        assert!(close(&clip, &ClipLoss::new().forward(&image, &text, 5.0)));
        assert!(close(&siglip, &SigLipLoss::new().forward(&image, &text, 5.0, -3.0)));
    });
}

#[test]
fn without_a_scale_only_the_size_of_the_batch_and_the_bias_are_left() {
    for_views(|image, text, _| {
        let of = |value: f64| Tensor::from(value);
        assert!(close(&ClipLoss::new().forward(image, text, 0.0), &of(8_f64.ln())));
        assert!(close(&SigLipLoss::new().forward(image, text, 0.0, 0.0), &of(8.0 * 2_f64.ln())));
    });
}

/// Each round with embeddings, their classes, and a vector for each of six classes.
fn for_classes(check: impl Fn(&Tensor, &Tensor, &Tensor)) {
    for_views(|embeddings, _, _| {
        let classes = randint(6, [8]);
        check(embeddings, &randn([6, 5]), &classes);
    });
}

type ClassLoss = Box<dyn Fn(&Tensor, &Tensor, &Tensor) -> Tensor>;

/// The losses of embeddings, a vector for each class and classes.
fn class_losses() -> [ClassLoss; 4] {
    [
        Box::new(|x, vectors, y| ArcFace::new().scale(4.0).forward(x, &vectors.transpose(0, 1), y)),
        Box::new(|x, vectors, y| CosFace::new().scale(4.0).forward(x, &vectors.transpose(0, 1), y)),
        Box::new(|x, vectors, y| ProxyAnchor::new().alpha(4.0).forward(x, vectors, y)),
        Box::new(|x, vectors, y| ProxyNca::new().softmax_scale(4.0).forward(x, vectors, y)),
    ]
}

#[test]
fn names_of_classes_order_of_samples_and_lengths_do_not_matter() {
    for_classes(|embeddings, vectors, classes| {
        let order = randperm(8);
        let names = randperm(6);
        for loss in class_losses() {
            let value = loss(embeddings, vectors, classes);
            assert!(close(&value, &loss(&rows(embeddings, &order), vectors, &rows(classes, &order))));
            // The class k is called names⁻¹(k), and its vector is found there.
            let renamed = rows(&names.argsort(0, false), classes);
            assert!(close(&value, &loss(embeddings, &rows(vectors, &names), &renamed)));
            assert!(close(&value, &loss(&(embeddings * 3.0), &(vectors * 0.2), classes)));
        }
    });
}

#[test]
fn a_margin_costs() {
    for_classes(|embeddings, vectors, classes| {
        let weight = vectors.transpose(0, 1);
        let arc = |margin| f64::try_from(ArcFace::new().margin(margin).forward(embeddings, &weight, classes)).unwrap();
        let cos = |margin| f64::try_from(CosFace::new().margin(margin).forward(embeddings, &weight, classes)).unwrap();
        assert!(arc(0.0) <= arc(10.0) && arc(10.0) <= arc(30.0));
        assert!(cos(0.0) <= cos(0.1) && cos(0.1) <= cos(0.5));
    });
}

#[test]
fn equal_sub_centers_are_one_center() {
    for_classes(|embeddings, vectors, classes| {
        let repeated = vectors.repeat_interleave_self_int(3, 0, None).transpose(0, 1);
        let one = ArcFace::new().forward(embeddings, &vectors.transpose(0, 1), classes);
        assert!(close(&one, &ArcFace::new().sub_centers(3).forward(embeddings, &repeated, classes)));
    });
}

const BACKENDS: [Backend; 2] = [Backend::Auto, Backend::Composite];
const KINDS: [Kind; 4] = [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16];

/// A loss of two tensors.
type Function = Box<dyn Fn(&Tensor, &Tensor) -> Tensor>;

/// The losses of vectors that are scaled to length 1, of two batches of rows.
fn normalising_losses() -> Vec<(&'static str, Function)> {
    fn classes() -> Tensor {
        Tensor::from_slice(&[0_i64, 1, 2, 3, 0])
    }
    vec![
        ("CLIP", Box::new(|a, b| ClipLoss::new().forward(a, b, 5.0))),
        ("SigLIP", Box::new(|a, b| SigLipLoss::new().forward(a, b, 5.0, -3.0))),
        ("negative cosine", Box::new(|a, b| NegativeCosineSimilarity::new().forward(a, b))),
        (
            "negative cosine, columns",
            Box::new(|a, b| NegativeCosineSimilarity::new().dim(0).forward(&a.transpose(0, 1), &b.transpose(0, 1))),
        ),
        ("ArcFace", Box::new(|a, b| ArcFace::new().scale(4.0).forward(a, &b.transpose(0, 1), &classes()))),
        ("CosFace", Box::new(|a, b| CosFace::new().scale(4.0).forward(a, &b.transpose(0, 1), &classes()))),
        ("proxy anchor", Box::new(|a, b| ProxyAnchor::new().alpha(4.0).forward(a, b, &classes()))),
        ("proxy NCA", Box::new(|a, b| ProxyNca::new().softmax_scale(4.0).forward(a, b, &classes()))),
    ]
}

fn is_finite(tensor: &Tensor) -> bool {
    bool::try_from(tensor.isfinite().all()).unwrap()
}

fn furthest(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

#[test]
fn a_vector_of_zeros_has_no_slope() {
    let (a, b) = (randn([5, 4]), randn([5, 4]));
    let _ = (a.get(2).zero_(), b.get(4).zero_());
    for (name, loss) in normalising_losses() {
        for (backend, kind) in BACKENDS.into_iter().flat_map(|backend| KINDS.map(|kind| (backend, kind))) {
            with_backend(backend, || {
                let [a, b] = [&a, &b].map(|rows| rows.to_kind(kind).set_requires_grad(true));
                let what = format!("{name} {backend:?} {kind:?}");
                let value = loss(&a, &b);
                let first = Tensor::run_backward(&[&value], &[&a, &b], true, true);
                assert!(is_finite(&value) && first.iter().all(is_finite), "{what}: {first:?}");
                let no_slope = |gradients: &[Tensor]| {
                    [gradients[0].get(2), gradients[1].get(4)]
                        .iter()
                        .all(|row| row.abs().max().double_value(&[]) == 0.0)
                };
                assert!(no_slope(&first), "{what}");
                if kind == Kind::Double {
                    let square = first.iter().map(|gradient| gradient.square().sum(Kind::Double)).sum::<Tensor>();
                    let second = Tensor::run_backward(&[square], &[&a, &b], false, false);
                    assert!(second.iter().all(is_finite) && no_slope(&second), "{what}: the second derivative");
                }
            });
        }
    }
}

#[test]
fn cosine_embeddings_of_zeros_are_finite_in_half_precision() {
    let labels = Tensor::from_slice(&[1_i64, -1, 1]);
    for (margin, expected) in [(0.0, [1.0, 0.0, 0.0]), (-0.5, [1.0, 0.5, 0.0])] {
        for backend in BACKENDS {
            let a = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0, 3.0, 4.0]).view([3, 2]).to_kind(Kind::Half);
            let b = Tensor::from_slice(&[3.0, 4.0, 3.0, 4.0, 3.0, 4.0]).view([3, 2]).to_kind(Kind::Half);
            let [a, b] = [a, b].map(|rows| rows.set_requires_grad(true));
            let loss = CosineEmbeddingLoss::new().margin(margin).reduction(Reduction::None);
            with_backend(backend, || {
                let losses = loss.forward(&a, &b, &labels);
                assert_eq!(Vec::<f64>::try_from(losses.to_kind(Kind::Double)).unwrap(), expected, "{backend:?}");
                let gradients = Tensor::run_backward(&[losses.sum(Kind::Half)], &[&a, &b], true, true);
                assert!(gradients.iter().all(is_finite), "{backend:?}: {gradients:?}");
            });
        }
    }
}

#[test]
fn nan_vectors_make_losses_nan() {
    for (name, loss) in normalising_losses() {
        for backend in BACKENDS {
            let (a, b) = (randn([5, 4]), randn([5, 4]));
            let _ = a.get(1).get(2).fill_(f64::NAN);
            let [a, b] = [a, b].map(|rows| rows.set_requires_grad(true));
            let value = with_backend(backend, || loss(&a, &b));
            assert!(value.double_value(&[]).is_nan(), "{name} {backend:?}");
            let gradient = with_backend(backend, || Tensor::run_backward(&[&value], &[&a], false, false)).remove(0);
            assert!(bool::try_from(gradient.get(1).isnan().any()).unwrap(), "{name} {backend:?}");
        }
    }
}

#[test]
fn proxies_of_single_precision_serve_embeddings_of_half() {
    for (name, loss) in normalising_losses().into_iter().skip(4) {
        for (backend, kind) in BACKENDS.into_iter().flat_map(|backend| KINDS.map(|kind| (backend, kind))) {
            let x = randn([5, 4]).to_kind(kind);
            let proxies = randn([5, 4]).to_kind(Kind::Float);
            let [leaf, vectors] = [&x, &proxies].map(|rows| rows.copy().set_requires_grad(true));
            let value = with_backend(backend, || loss(&leaf, &vectors));
            value.backward();
            assert_eq!((value.kind(), leaf.grad().kind(), vectors.grad().kind()), (kind, kind, Kind::Float), "{name}");
            let expected = loss(&x.to_kind(Kind::Double), &proxies.to_kind(Kind::Double));
            let tolerance = if kind == Kind::BFloat16 { 8e-3 } else { 1e-3 };
            assert!(furthest(&value, &expected) <= tolerance * expected.double_value(&[]).abs(), "{name} {kind:?}");
        }
    }
}

#[test]
fn embeddings_count_as_often_as_pairs_name_them() {
    let (x, vectors, classes) = (randn([5, 4]), randn([4, 4]), Tensor::from_slice(&[0_i64, 1, 2, 3, 0]));
    let weight = vectors.transpose(0, 1);
    let positions = |of: &[i64]| Tensor::from_slice(of);
    // 0 three times, 4 twice, 1 once, the others never.
    let pairs = EmbeddingPairs::pairs(&positions(&[0, 4]), &positions(&[4, 0]), &positions(&[0]), &positions(&[1]));
    let shares = Tensor::from_slice(&[1.0, 1.0 / 3.0, 0.0, 0.0, 2.0 / 3.0]);
    let none = EmbeddingReduction::None;
    for backend in BACKENDS {
        with_backend(backend, || {
            let arc = ArcFace::new().scale(4.0).reduction(none);
            let expected = arc.forward(&x, &weight, &classes) * &shares;
            assert!(close(&arc.forward_pairs(&x, &weight, &classes, &pairs), &expected));
            let cos = CosFace::new().scale(4.0).reduction(none);
            let expected = cos.forward(&x, &weight, &classes) * &shares;
            assert!(close(&cos.forward_pairs(&x, &weight, &classes, &pairs), &expected));
            let nca = ProxyNca::new().reduction(none);
            // As an anchor 0 twice, and 4 once.
            let shares = Tensor::from_slice(&[1.0, 0.0, 0.0, 0.0, 0.5]);
            let expected = nca.forward(&x, &vectors, &classes) * &shares;
            assert!(close(&nca.forward_pairs(&x, &vectors, &classes, &pairs), &expected));
        });
    }
}

#[test]
fn a_scale_beyond_the_kind_is_named() {
    let x = randn([3, 4]).to_kind(Kind::Float);
    let error = ClipLoss::new().f_forward(&x, &x, 1e39).unwrap_err().to_string();
    assert!(error.starts_with("option logit_scale is 1000000000000000"), "{error}");
    let error = SigLipLoss::new().f_forward(&x, &x, 1.0, -1e39).unwrap_err().to_string();
    assert!(error.starts_with("option logit_bias is -100000000000000"), "{error}");
    assert!(is_finite(&ClipLoss::new().forward(&x.to_kind(Kind::Double), &x.to_kind(Kind::Double), 1e39)));
}
