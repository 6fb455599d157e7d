//! Losses of elements whose arguments are broadcast or integers, and those that some values do not have.

use tch::{Kind, Tensor};

use super::compare::{
    KINDS, REDUCTIONS, assert_as_composite, assert_not_taken, assert_sources_compile, results, unaligned,
};
use super::{Row, emulated, rand, randn};
use crate::random::randint;
use crate::{
    AsymmetricMultiLabelLoss, Backend, BceLoss, BceWithLogitsLoss, FocalSoftTargets, GaussianNllLoss,
    HingeEmbeddingLoss, HingeLoss, HingeTargets, HuberLoss, InvalidValues, KlDivLoss, KlDivReduction, L1Loss, Loss,
    MseLoss, MultiLabelReduction, MultiLabelSoftMarginLoss, OneVsRestFocalLoss, PoissonNllLoss, PolyBceWithLogitsLoss,
    PsnrLoss, QualityFocalLoss, Reduction, SigmoidFocalLoss, SmoothL1Loss, SoftBceWithLogitsLoss, SoftMarginLoss,
    VarifocalLoss, with_backend,
};

fn of_pair(loss: impl Loss) -> impl Fn(&[Tensor]) -> Tensor {
    move |tensors| loss.f_forward(&tensors[0], &tensors[1]).unwrap()
}

fn multi(reduction: Reduction) -> MultiLabelReduction {
    match reduction {
        Reduction::None => MultiLabelReduction::None,
        Reduction::Mean => MultiLabelReduction::Mean,
        Reduction::Sum => MultiLabelReduction::Sum,
    }
}

#[test]
fn integer_targets_are_read_as_they_are() {
    for own in [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64] {
        let tensors = [randn([1031]).to_kind(Kind::Float), randint(3, [1031]).to_kind(own)];
        assert_as_composite(&format!("mse of {own:?}"), &tensors, &[0], &of_pair(MseLoss::new()));
        let views = tensors.each_ref().map(unaligned);
        assert_as_composite(&format!("mse of views of {own:?}"), &views, &[0], &of_pair(MseLoss::new()));
    }
    for kind in [Kind::Double, Kind::Half] {
        let tensors = [randn([3, 7]).to_kind(kind), randint(3, [3, 7])];
        assert_as_composite("mse", &tensors, &[0], &of_pair(MseLoss::new()));
    }
    let tensors = [randn([41]).to_kind(Kind::Float), randint(3, [41])];
    assert_as_composite("huber", &tensors, &[0], &of_pair(HuberLoss::new()));
    assert_as_composite("smooth l1", &tensors, &[0], &of_pair(SmoothL1Loss::new()));
    assert_as_composite("poisson", &tensors, &[0], &of_pair(PoissonNllLoss::new()));
    let signs = [randn([41]).to_kind(Kind::Float), randint(2, [41]) * 2 - 1];
    assert_as_composite("soft margin", &signs, &[0], &of_pair(SoftMarginLoss::new()));
    let labels = [randn([1031]), randint(2, [1031])].map(|tensor| tensor.to_kind(Kind::Float));
    for own in [Kind::Bool, Kind::Int64] {
        let tensors = [labels[0].shallow_clone(), labels[1].to_kind(own)];
        let hinge = || of_pair(HingeLoss::new().targets(HingeTargets::Binary));
        assert_as_composite(&format!("hinge of {own:?}"), &tensors, &[0], &hinge());
        let bce = || of_pair(SoftBceWithLogitsLoss::new());
        assert_as_composite(&format!("soft bce of {own:?}"), &tensors, &[0], &bce());
    }
    // Whether all labels are 0 or 1 is looked at on the device.
    assert_as_composite("hinge of 0 and 1", &labels, &[0], &of_pair(HingeLoss::new()));
    let _ = labels[1].get(7).fill_(-1.0);
    assert_as_composite("hinge of others", &labels, &[0, 1], &of_pair(HingeLoss::new().p(2)));
    // Two floating kinds are the business of tensor operations.
    let mixed = [labels[0].to_kind(Kind::Half), labels[1].shallow_clone()];
    assert_not_taken("soft margin of two kinds", &mixed, &[0], &of_pair(SoftMarginLoss::new()));
    assert_sources_compile();
}

#[test]
fn broadcast_weights_are_read_as_they_are() {
    let shapes: [&[i64]; 7] = [&[], &[1], &[5], &[3, 1, 1], &[2, 1, 4, 5], &[2, 3, 4, 1], &[2, 3, 4, 5]];
    let shares = |tensor: Tensor| tensor.sigmoid();
    let input = || randn([2, 3, 4, 5]).to_kind(Kind::Float);
    for shape in shapes {
        let weight = || rand(shape).to_kind(Kind::Float);
        let loss = BceWithLogitsLoss::new().weight(weight()).pos_weight(weight());
        assert_as_composite(&format!("weights {shape:?}"), &[input(), shares(input())], &[0], &of_pair(loss));
    }
    // The second one has its channels last, as has the target of the third one but not the input.
    let last = || randn([2, 4, 5, 3]).to_kind(Kind::Float).permute([0, 3, 1, 2]);
    for [x, y] in [[last(), last()], [input(), last()], [last(), input()]] {
        let loss = BceWithLogitsLoss::new().weight(rand([3, 1, 1]).to_kind(Kind::Float));
        assert_as_composite("layouts", &[x, shares(y)], &[0, 1], &of_pair(loss));
    }
    for kind in KINDS {
        let loss = BceLoss::new().weight(rand([5]).to_kind(kind)).reduction(Reduction::None);
        let tensors = [input(), input()].map(|tensor| shares(tensor).to_kind(kind));
        assert_as_composite("unreduced", &tensors, &[0], &of_pair(loss));
    }
    let tensors = [randn([41, 30]), randint(2, [41, 30])];
    let loss = MultiLabelSoftMarginLoss::new().weight(rand([30]));
    assert_as_composite("multi-label", &tensors, &[0], &of_pair(loss));
    let (one, all) = (randn([1, 30]), randn([41, 30]));
    let losses = [of_pair(MseLoss::new().broadcast(true))];
    for loss in &losses {
        assert_as_composite("a broadcast target", &[all.copy(), one.copy()], &[0, 1], loss);
        assert_as_composite("a broadcast input", &[one.copy(), all.copy()], &[0, 1], loss);
    }
    // In a dimension for each, so that none is a view of another.
    let strided = randn([9, 4, 6]).permute([2, 0, 1]);
    assert_as_composite("other strides", &[randn([6, 9, 4]), strided], &[0, 1], &of_pair(L1Loss::new()));
    assert_sources_compile();
}

/// Losses that some values do not have, with arguments that all have one.
fn partial(reduction: Reduction) -> Vec<Row> {
    fn probabilities(length: i64) -> [Tensor; 2] {
        [rand([length]), rand([length])]
    }
    fn logits(length: i64) -> [Tensor; 2] {
        [randn([length]) * 4, rand([length])]
    }
    fn labels(length: i64) -> [Tensor; 2] {
        [randn([length]) * 4, randint(2, [length]).to_kind(Kind::Double)]
    }
    let all = multi(reduction);
    vec![
        ("bce", Box::new(BceLoss::new().reduction(reduction)), probabilities),
        ("poisson", Box::new(PoissonNllLoss::new().log_input(false).full(true).reduction(reduction)), probabilities),
        ("focal", Box::new(SigmoidFocalLoss::new().gamma(1.5).alpha(0.3).reduction(reduction)), logits),
        ("squared focal", Box::new(SigmoidFocalLoss::new().reduction(reduction)), logits),
        (
            "focal of the margin",
            Box::new(SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Margin).reduction(reduction)),
            labels,
        ),
        (
            "focal of terms",
            Box::new(SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Terms).reduction(reduction)),
            logits,
        ),
        (
            "focal of the likelihood",
            Box::new(
                SigmoidFocalLoss::new().soft_targets(FocalSoftTargets::Likelihood).gamma(1.5).reduction(reduction),
            ),
            logits,
        ),
        ("quality focal", Box::new(QualityFocalLoss::new().reduction(reduction)), logits),
        ("varifocal", Box::new(VarifocalLoss::new().reduction(reduction)), logits),
        ("soft bce", Box::new(SoftBceWithLogitsLoss::new().label_smoothing(0.1).reduction(all)), logits),
        ("asymmetric", Box::new(AsymmetricMultiLabelLoss::new().reduction(all)), labels),
        ("poly", Box::new(PolyBceWithLogitsLoss::new().gamma(1.5).reduction(all)), logits),
    ]
}

#[test]
fn partial_losses_are_those_of_tensor_operations() {
    for reduction in [Reduction::Mean, Reduction::Sum] {
        for (name, loss, draw) in partial(reduction) {
            for length in [1, 1027] {
                let tensors = draw(length).map(|tensor| tensor.to_kind(Kind::Float));
                let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1]).unwrap();
                assert_as_composite(&format!("{name}, {reduction:?}"), &tensors, &[0], &compute);
            }
        }
    }
    assert_sources_compile();
}

#[test]
fn partial_losses_take_every_kind_and_address() {
    for kind in KINDS {
        for reduction in REDUCTIONS {
            let tensors = [rand([2051]), rand([2051])].map(|tensor| tensor.to_kind(kind));
            let bce = || of_pair(BceLoss::new().reduction(reduction));
            assert_as_composite("bce", &tensors, &[0], &bce());
            assert_as_composite("bce of views", &tensors.each_ref().map(unaligned), &[0], &bce());
            let mixed = [unaligned(&tensors[0]), tensors[1].shallow_clone()];
            assert_as_composite("bce of a view", &mixed, &[0], &bce());
        }
    }
    // So many that a block goes through several places.
    let tensors = [rand([1_100_003]), rand([1_100_003])].map(|tensor| tensor.to_kind(Kind::Float));
    assert_as_composite("many", &tensors, &[0], &of_pair(BceLoss::new()));
    assert_sources_compile();
}

/// To libtorch the byte 255 is −1.
#[test]
fn bytes_are_signs() {
    let bytes = (randint(2, [41]) * 254 + 1).to_kind(Kind::Uint8);
    let tensors = [randn([41]).to_kind(Kind::Float), bytes];
    for reduction in REDUCTIONS {
        let loss = HingeEmbeddingLoss::new().reduction(reduction);
        assert_as_composite("hinge embedding", &tensors, &[0], &of_pair(loss));
    }
}

#[test]
fn layouts_with_gaps_are_read_as_they_are() {
    let owns = [Kind::Uint8, Kind::Int64].into_iter().cycle();
    for ((kind, reduction), own) in KINDS.into_iter().zip(REDUCTIONS.into_iter().cycle()).zip(owns) {
        let input = || randn([5, 3, 3, 4]).to_kind(kind).narrow(3, 0, 2);
        let labels = randint(3, [5, 3, 3, 2]).to_kind(own);
        let loss = of_pair(HingeEmbeddingLoss::new().reduction(reduction));
        assert_as_composite("hinge embedding", &[input(), labels.shallow_clone()], &[0], &loss);
        assert_as_composite("its value", &[input(), labels], &[], &loss);
    }
}

#[test]
fn classes_against_the_rest_are_labels() {
    for (kind, reduction) in KINDS.into_iter().zip(REDUCTIONS.into_iter().cycle()) {
        let tensors = [randn([2, 5, 7, 3]).to_kind(kind), randint(5, [2, 7, 3])];
        for loss in [OneVsRestFocalLoss::new(), OneVsRestFocalLoss::new().gamma(1.5).alpha(0.3)] {
            assert_as_composite("one-vs-rest focal", &tensors, &[0], &of_pair(loss.reduction(reduction)));
        }
        let _ = tensors[1].view(-1).get(4).fill_(5);
        let loss = OneVsRestFocalLoss::new().invalid_values(InvalidValues::Nan).reduction(reduction);
        assert_as_composite("a class out of range", &tensors, &[0], &of_pair(loss));
    }
    assert_sources_compile();
}

#[test]
fn variances_may_be_shared() {
    for reduction in REDUCTIONS {
        for shape in [&[13, 6][..], &[13, 1], &[13]] {
            let tensors = [randn([13, 6]), randn([13, 6]), rand(shape) + 0.1].map(|tensor| tensor.to_kind(Kind::Float));
            let loss = GaussianNllLoss::new().full(true).reduction(reduction);
            let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1], &tensors[2]).unwrap();
            assert_as_composite(&format!("variances {shape:?}, {reduction:?}"), &tensors, &[0, 1, 2], &compute);
        }
        let tensors = [randn([13, 6]), randn([13, 6])].map(|tensor| tensor.to_kind(Kind::Float));
        let loss = GaussianNllLoss::new().reduction(reduction);
        let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1], 0.7).unwrap();
        assert_as_composite("one variance", &tensors, &[0, 1], &compute);
    }
    assert_sources_compile();
}

#[test]
fn divergences_and_results_of_another_kind_are_computed() {
    for reduction in [KlDivReduction::None, KlDivReduction::Mean, KlDivReduction::Sum, KlDivReduction::BatchMean] {
        for log_target in [false, true] {
            let target = if log_target { rand([5, 9]).log() } else { rand([5, 9]) };
            let tensors = [rand([5, 9]).log(), target].map(|tensor| tensor.to_kind(Kind::Float));
            let loss = KlDivLoss::new().log_target(log_target).reduction(reduction);
            assert_as_composite(&format!("kl {reduction:?} {log_target}"), &tensors, &[0], &of_pair(loss));
        }
    }
    for kind in KINDS {
        let tensors = [rand([2, 3, 8, 9]), rand([2, 3, 8, 9])].map(|tensor| tensor.to_kind(kind));
        assert_as_composite("psnr", &tensors, &[0], &of_pair(PsnrLoss::new()));
    }
    assert_sources_compile();
}

/// The loss and the gradient for a value that has no loss are those of [`InvalidValues::Nan`], whatever is asked for.
#[test]
fn a_value_without_a_loss_makes_it_nan() {
    type New = fn(InvalidValues, Reduction) -> Box<dyn Loss>;
    let losses: [(&str, New); 4] = [
        ("bce", |mode, reduction| Box::new(BceLoss::new().invalid_values(mode).reduction(reduction))),
        ("focal", |mode, reduction| Box::new(SigmoidFocalLoss::new().invalid_values(mode).reduction(reduction))),
        ("quality", |mode, reduction| Box::new(QualityFocalLoss::new().invalid_values(mode).reduction(reduction))),
        ("soft bce", |mode, reduction| {
            Box::new(SoftBceWithLogitsLoss::new().invalid_values(mode).reduction(multi(reduction)))
        }),
    ];
    for (name, new) in losses {
        let kinds = if name == "bce" { &KINDS[..] } else { &KINDS[1..2] };
        for (reduction, kind) in
            REDUCTIONS.into_iter().flat_map(|reduction| kinds.iter().map(move |kind| (reduction, *kind)))
        {
            let tensors = [rand([700]), rand([700])].map(|tensor| tensor.to_kind(kind));
            let _ = tensors[1].get(17).fill_(-0.5);
            let _ = tensors[1].get(699).fill_(f64::NAN);
            let expected = with_backend(Backend::Composite, || {
                let loss = new(InvalidValues::Nan, reduction);
                results(&tensors, &[0], &|tensors| loss.f_forward(&tensors[0], &tensors[1]).unwrap())
            });
            assert!(expected[0].isnan().any().int64_value(&[]) != 0);
            for mode in [InvalidValues::Nan, InvalidValues::Error] {
                let loss = new(mode, reduction);
                let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1]).unwrap();
                let actual = emulated(|| results(&tensors, &[0], &compute));
                let name = format!("{name} {reduction:?} {kind:?} {mode:?}");
                let [nan, expected_nan] = [&actual[0], &expected[0]].map(Tensor::isnan);
                assert_eq!(nan, expected_nan, "{name}");
                assert_eq!(actual[1].isnan().any().int64_value(&[]), 0, "{name}");
                // Reduced, there is no gradient at all; else none of these two.
                let zeros = [&actual[1], &expected[1]].map(|gradient| gradient.eq(0.0));
                assert_eq!(zeros[0], zeros[1], "{name}");
            }
        }
    }
}

#[test]
fn a_nan_of_the_input_goes_through() {
    let tensors = [randn([40]), rand([40])].map(|tensor| tensor.to_kind(Kind::Float));
    let _ = tensors[0].get(3).fill_(f64::NAN);
    let loss = SigmoidFocalLoss::new();
    let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1]).unwrap();
    let [actual, expected] = [
        emulated(|| results(&tensors, &[0], &compute)),
        with_backend(Backend::Composite, || results(&tensors, &[0], &compute)),
    ];
    assert!(actual[0].isnan().all().int64_value(&[]) != 0);
    assert_eq!(actual[1].isnan(), expected[1].isnan());
    let kept = actual[1].isnan().logical_not();
    assert!(actual[1].masked_select(&kept).allclose(&expected[1].masked_select(&kept), 1e-5, 1e-7, false));
}
