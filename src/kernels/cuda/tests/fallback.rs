//! Kernels that cannot be had: no NVRTC, a GPU that launches nothing more, a CUDA graph that is recorded before a kernel
//! is there. Whichever step of a call fails, tensor operations compute the loss and its gradient.

use std::cell::Cell;

use tch::{Kind, Tensor};

use super::compare::{Compute, results};
use super::{assert_near, emulated, rand, randn};
use crate::random::randint;
use crate::scoped::replaced;
use crate::{
    Activation, Backend, BatchTripletMarginLoss, BceLoss, Chunking, ContrastiveLoss, CosineEmbeddingLoss,
    CrossEntropyLoss, DiceCrossEntropyLoss, DiceLoss, DistributionFocalLoss, GeneralizedBoxIouLoss, InvalidValues,
    JsdCrossEntropyLoss, LiftedStructureLoss, LinearCrossEntropy, Loss, MseLoss, MultiLabelMarginLoss, MultiMarginLoss,
    NllLoss, NtXentLoss, Reduction, SoftClDiceLoss, SsimLoss, SupConLoss, TotalVariationLoss, with_backend,
};

/// Whether one step fails alone, or all that follow, too.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Once,
    ForGood,
}

thread_local! {
    /// How many steps go well before one fails; none where none does.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    static FAILURE: Cell<Failure> = const { Cell::new(Failure::Once) };
    static FAILED: Cell<bool> = const { Cell::new(false) };
}

/// Takes a step: a look for kernels or a launch. Whether it fails.
pub(super) fn fails() -> bool {
    let Some(left) = LEFT.get() else { return false };
    if left > 0 {
        LEFT.set(Some(left - 1));
        return false;
    }
    FAILED.set(true);
    if let Failure::Once = FAILURE.get() {
        LEFT.set(None);
    }
    true
}

/// A call of which the step of this number fails, and whether it has so many.
fn failing<T>(step: usize, failure: Failure, call: impl FnOnce() -> T) -> (T, bool) {
    FAILED.set(false);
    let result = replaced(&FAILURE, failure, || replaced(&LEFT, Some(step), call));
    (result, FAILED.get())
}

#[track_caller]
fn assert_falls_back(name: &str, tensors: &[Tensor], wanted: &[usize], compute: Compute) {
    let expected = with_backend(Backend::Composite, || results(tensors, wanted, compute));
    for failure in [Failure::Once, Failure::ForGood] {
        for step in 0.. {
            let (actual, failed) = failing(step, failure, || emulated(|| results(tensors, wanted, compute)));
            for (position, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                let name = format!("{name}, {failure:?} at step {step}, result {position}");
                let (actual, expected) = (actual.to_kind(Kind::Double), expected.to_kind(Kind::Double));
                assert_near(&name, &actual, &expected, tensors[0].kind());
            }
            if !failed {
                assert!(step > 1, "{name} has {step} steps");
                break;
            }
        }
    }
}

#[test]
fn whichever_step_fails_tensor_operations_compute_the_loss() {
    let classes = Tensor::from_slice(&[1_i64, 4, 0, 2]);
    let labels = Tensor::from_slice(&[1_i64, 1, 0, 0]);
    let (rows, pairs) = (randn([4, 5]), randn([4, 3]));
    let signs = Tensor::from_slice(&[1.0_f32, -1.0, 1.0, 1.0]);
    let (images, others) = (rand([1, 1, 12, 12]), rand([1, 1, 12, 12]));
    macro_rules! check {
        ($($loss:expr, $input:expr, $target:expr;)+) => {$(
            let (loss, input, target): (_, Tensor, Tensor) = ($loss, $input.shallow_clone(), $target.shallow_clone());
            let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &target).unwrap();
            assert_falls_back(stringify!($loss), &[input.to_kind(Kind::Float)], &[0], &compute);
        )+};
    }
    check! {
        MseLoss::new(), rows, randn([4, 5]).to_kind(Kind::Float);
        MseLoss::new().reduction(Reduction::None), rows, randn([4, 5]).to_kind(Kind::Float);
        BceLoss::new(), rand([4, 5]), rand([4, 5]).to_kind(Kind::Float);
        CrossEntropyLoss::new().weight(rand([5]).to_kind(Kind::Float)), rows, classes;
        CrossEntropyLoss::new().label_smoothing(0.1), rows, classes;
        CrossEntropyLoss::new(), rows, rows.softmax(1, Kind::Float).detach();
        NllLoss::new(), rows.log_softmax(1, Kind::Float), classes;
        MultiMarginLoss::new(), rows, classes;
        MultiLabelMarginLoss::new(), rows, Tensor::from_slice(&[1_i64, 3, -1, 0, 0]).repeat([4, 1]);
        JsdCrossEntropyLoss::new().num_splits(2), rows, Tensor::from_slice(&[1_i64, 4]);
        DistributionFocalLoss::new(), rows, Tensor::from_slice(&[0.5_f32, 3.25, 1.0, 2.75]);
        DiceLoss::new().activation(Activation::Sigmoid), randn([2, 1, 2, 4]), randint(2, [2, 1, 2, 4]);
        DiceCrossEntropyLoss::new(), randn([2, 3, 2, 4]), randint(3, [2, 2, 4]);
        GeneralizedBoxIouLoss::new(),
            Tensor::from_slice(&[0.0_f32, 0.0, 2.0, 2.0, 1.0, 1.0, 4.0, 3.0]).view([2, 4]),
            Tensor::from_slice(&[1.0_f32, 1.0, 3.0, 2.5, 0.0, 0.0, 2.0, 2.0]).view([2, 4]);
        ContrastiveLoss::new(), pairs, labels;
        SupConLoss::new(), pairs, labels;
        NtXentLoss::new(), pairs, labels;
        LiftedStructureLoss::new(), pairs, labels;
        BatchTripletMarginLoss::new(), pairs, labels;
        SsimLoss::new(), images, others.to_kind(Kind::Float);
        SoftClDiceLoss::new(), images, others.ge(0.5).to_kind(Kind::Float);
    }
    let half = [randn([7]), randn([7])].map(|tensor| tensor.to_kind(Kind::Half));
    assert_falls_back("mse of half precision", &half, &[0, 1], &|tensors| {
        MseLoss::new().forward(&tensors[0], &tensors[1])
    });
    let [first, second] = [randn([4, 3]), randn([4, 3])].map(|tensor| tensor.to_kind(Kind::Float));
    assert_falls_back("cosine embedding", &[first, second], &[0, 1], &|tensors| {
        CosineEmbeddingLoss::new().f_forward(&tensors[0], &tensors[1], &signs).unwrap()
    });
    assert_falls_back("total variation", &[images.to_kind(Kind::Float)], &[0], &|tensors| {
        TotalVariationLoss::new().f_forward(&tensors[0]).unwrap()
    });
    let [hidden, matrix] = [randn([4, 3]), randn([5, 3])].map(|tensor| tensor.to_kind(Kind::Float));
    let layer = [hidden, matrix];
    assert_falls_back("linear cross entropy", &layer, &[0, 1], &|tensors| {
        LinearCrossEntropy::new().f_forward(&tensors[0], &tensors[1], &classes, None::<&Tensor>).unwrap()
    });
    assert_falls_back("chunks", &layer, &[0, 1], &|tensors| {
        let loss = LinearCrossEntropy::new().chunking(Chunking::Rows(3)).z_loss(0.1);
        loss.f_forward(&tensors[0], &tensors[1], &classes, None::<&Tensor>).unwrap()
    });
    // Two that are no classes, and an ignored one.
    let others = Tensor::from_slice(&[1_i64, 5, -100, -1]);
    assert_falls_back("chunks of any targets", &layer, &[0, 1], &|tensors| {
        let loss = LinearCrossEntropy::new().chunking(Chunking::Rows(3)).reduction(Reduction::None);
        let loss = loss.invalid_values(InvalidValues::Nan).weight(rand([5]).ones_like());
        let losses = loss.f_forward(&tensors[0], &tensors[1], &others, None::<&Tensor>).unwrap();
        assert_eq!(Vec::<bool>::try_from(losses.isnan()).unwrap(), [false, true, false, true]);
        losses.nan_to_num(7.0, None, None)
    });
}
