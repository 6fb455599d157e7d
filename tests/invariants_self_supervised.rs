//! What holds for the losses of views, of images and texts, and of embeddings and classes whatever their arguments are.

mod common;

use tch::{Device, Tensor, nn};
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
