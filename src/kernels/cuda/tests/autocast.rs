//! Half precision under autocast, where a loss is of single precision.

use tch::{Device, Kind, Tensor};

use super::compare::{Compute, REDUCTIONS, results};
use super::{LAUNCHED, assert_near, emulated, rand, randn};
use crate::autograd::{with_autocast, with_autocast_to};
use crate::random::randint;
use crate::{
    Backend, BceLoss, BceWithLogitsLoss, CauchyLoss, Chunking, CosineEmbeddingLoss, CrossEntropyLoss, DiceLoss,
    GeneralizedBoxIouLoss, HuberLoss, L1Loss, LinearCrossEntropy, Loss, MseLoss, MultiMarginLoss, NllLoss, Reduction,
    SmoothL1Loss, SoftmaxFocalLoss, TripletMarginLoss, with_backend,
};

/// What is computed under autocast; the backward pass is not under it, as PyTorch recommends.
fn cast<'a>(compute: Compute<'a>) -> impl Fn(&[Tensor]) -> Tensor + 'a {
    move |tensors| with_autocast(Device::Cpu, true, || compute(tensors))
}

#[track_caller]
fn check(name: &str, tensors: &[Tensor], taken: bool, compute: Compute) {
    LAUNCHED.take();
    let actual = emulated(|| results(tensors, &[0], &cast(compute)));
    assert_eq!(!LAUNCHED.take().is_empty(), taken, "{name}");
    let expected = with_backend(Backend::Composite, || results(tensors, &[0], &cast(compute)));
    for (actual, expected) in actual.iter().zip(&expected) {
        let kind = actual.kind();
        assert_eq!((actual.size(), kind), (expected.size(), expected.kind()), "{name}");
        assert_near(name, &actual.to_kind(Kind::Double), &expected.to_kind(Kind::Double), kind);
    }
    assert_eq!(actual[0].kind(), Kind::Float, "{name}");
}

fn of(loss: impl Loss) -> impl Fn(&[Tensor]) -> Tensor {
    move |tensors| loss.f_forward(&tensors[0], &tensors[1]).unwrap()
}

#[test]
fn reduced_losses_of_half_precision_are_of_single_precision() {
    for kind in [Kind::Half, Kind::BFloat16] {
        for reduction in [Reduction::Mean, Reduction::Sum] {
            let half = |tensor: Tensor| tensor.to_kind(kind);
            // The target of a regression is of single precision as a rule.
            for own in [kind, Kind::Float] {
                let pair = [half(randn([9, 13])), randn([9, 13]).to_kind(own)];
                check("mse", &pair, true, &of(MseLoss::new().reduction(reduction)));
                check("cauchy", &pair, true, &of(CauchyLoss::new().reduction(reduction)));
                check("l1", &pair, true, &of(L1Loss::new().reduction(reduction)));
                check("huber", &pair, true, &of(HuberLoss::new().delta(0.7).reduction(reduction)));
                check("smooth l1", &pair, true, &of(SmoothL1Loss::new().reduction(reduction)));
                let labels = [half(randn([9, 13])), rand([9, 13]).to_kind(own)];
                check("bce with logits", &labels, true, &of(BceWithLogitsLoss::new().reduction(reduction)));
            }
            let shares = [rand([9, 13]), rand([9, 13])].map(half);
            check("bce", &shares, true, &of(BceLoss::new().reduction(reduction)));
            for shape in [&[9, 13][..], &[2, 13, 3, 5]] {
                let rows = [half(randn(shape)), randint(13, [&shape[..1], &shape[2..]].concat())];
                let weight = rand([13]).to_kind(Kind::Float);
                check("cross entropy", &rows, true, &of(CrossEntropyLoss::new().reduction(reduction)));
                let weighted = CrossEntropyLoss::new().weight(weight).label_smoothing(0.1).reduction(reduction);
                check("weighted cross entropy", &rows, true, &of(weighted));
                check("nll", &rows, true, &of(NllLoss::new().reduction(reduction)));
                check("focal", &rows, true, &of(SoftmaxFocalLoss::new().reduction(reduction)));
            }
            let rows = [half(randn([9, 13])), randint(13, [9])];
            check("hinges", &rows, true, &of(MultiMarginLoss::new().reduction(reduction)));
            let three = [0, 1, 2].map(|_| half(randn([9, 13])));
            check("triplet", &three, true, &|tensors| {
                let loss = TripletMarginLoss::new().reduction(reduction);
                loss.f_forward(&tensors[0], &tensors[1], &tensors[2]).unwrap()
            });
            let cosine = [half(randn([9, 13])), half(randn([9, 13])), randint(2, [9]) * 2 - 1];
            check("cosine", &cosine, true, &|tensors| {
                let loss = CosineEmbeddingLoss::new().reduction(reduction);
                loss.f_forward(&tensors[0], &tensors[1], &tensors[2]).unwrap()
            });
            let boxes = [0, 1].map(|_| {
                let corner = randn([9, 2]);
                half(Tensor::cat(&[&corner, &(&corner + 1.5)], 1))
            });
            check("boxes", &boxes, true, &of(GeneralizedBoxIouLoss::new().reduction(reduction)));
            for masks in [rand([2, 3, 5, 7]).to_kind(Kind::Float), half(rand([2, 3, 5, 7])), randint(3, [2, 5, 7])] {
                let pair = [half(rand([2, 3, 5, 7])), masks];
                check("dice", &pair, true, &of(DiceLoss::new().reduction(reduction)));
            }
        }
    }
}

#[test]
fn others_are_tensor_operations_under_autocast() {
    let pair = [randn([9, 13]), randn([9, 13])].map(|tensor| tensor.to_kind(Kind::Half));
    check("unreduced", &pair, false, &of(MseLoss::new().reduction(Reduction::None)));
    // The gradient of a target of single precision would be of that, too.
    let target = randn([9, 13]).to_kind(Kind::Float).set_requires_grad(true);
    let loss = CauchyLoss::new();
    check("a target with a gradient", &pair[..1], false, &|tensors| loss.f_forward(&tensors[0], &target).unwrap());
}

#[test]
fn chunks_of_linear_cross_entropy_take_the_engine() {
    let classes = randint(11, [20]);
    for (kind, reduction) in [Kind::Half, Kind::BFloat16].into_iter().flat_map(|kind| REDUCTIONS.map(|of| (kind, of))) {
        for hidden in [Kind::Float, Kind::BFloat16] {
            let tensors = [randn([20, 6]).to_kind(hidden), randn([11, 6]).to_kind(Kind::Float)];
            let loss = LinearCrossEntropy::new().reduction(reduction).chunking(Chunking::Rows(8));
            let compute = |tensors: &[Tensor]| {
                let call = || loss.f_forward(&tensors[0], &tensors[1], &classes, None).unwrap();
                with_autocast_to(Device::Cpu, Some(kind), call)
            };
            LAUNCHED.take();
            let actual = emulated(|| results(&tensors, &[0, 1], &compute));
            let launched = LAUNCHED.take();
            // Half precision of a small range, and losses of their own, are derived in the backward pass.
            let passes = if kind == Kind::Half || reduction == Reduction::None { 2 } else { 1 };
            assert_eq!(launched, vec![c"logits"; 3 * passes], "{kind:?} {reduction:?}");
            let expected = with_backend(Backend::Composite, || results(&tensors, &[0, 1], &compute));
            for (actual, expected) in actual.iter().zip(&expected) {
                assert_eq!(actual.kind(), expected.kind());
                assert_near(
                    "linear cross entropy",
                    &actual.to_kind(Kind::Double),
                    &expected.to_kind(Kind::Double),
                    kind,
                );
            }
            assert_eq!((actual[0].kind(), actual[1].kind(), actual[2].kind()), (Kind::Float, hidden, Kind::Float));
        }
    }
}

#[test]
fn second_derivatives_are_those_of_autocast() {
    let rows = [randn([5, 6]).to_kind(Kind::BFloat16), randint(6, [5])];
    let second = || {
        let input = rows[0].detach().set_requires_grad(true);
        let loss = with_autocast(Device::Cpu, true, || CrossEntropyLoss::new().f_forward(&input, &rows[1])).unwrap();
        let first = Tensor::run_backward(&[loss], &[&input], true, true).remove(0);
        let of_first = first.to_kind(Kind::Float).square().sum(None);
        let second = Tensor::run_backward(&[of_first], &[&input], false, false).remove(0);
        [first, second].map(|tensor| tensor.detach().to_kind(Kind::Double))
    };
    let (actual, expected) = (emulated(second), with_backend(Backend::Composite, second));
    for (actual, expected) in actual.iter().zip(&expected) {
        assert_near("cross entropy", actual, expected, Kind::BFloat16);
    }
}
