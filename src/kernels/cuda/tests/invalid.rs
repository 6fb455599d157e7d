//! Values without a loss, which the kernels find.

use tch::{Device, Kind, Tensor};

use super::compare::{KINDS, REDUCTIONS, results};
use super::{LAUNCHED, assert_near, emulated, rand, randn};
use crate::check::CHECKS;
use crate::kernels::like_cuda;
use crate::{
    AsymmetricSingleLabelLoss, BceLoss, CategoricalHingeLoss, Chunking, CrossEntropyLoss, DistributionFocalLoss,
    GaussianNllLoss, InvalidValues, JsdCrossEntropyLoss, LinearCrossEntropy, Loss, MultiLabelMarginLoss,
    MultiMarginLoss, NllLoss, PoissonNllLoss, PolyCrossEntropyLoss, Reduction, SigmoidFocalLoss, SoftmaxFocalLoss,
};

type New = fn(InvalidValues, Reduction) -> Box<dyn Loss>;

/// Losses of rows, and whether their mean counts.
fn of_rows() -> Vec<(&'static str, New, bool)> {
    macro_rules! losses {
        ($(($name:literal, $loss:expr, $counts:literal)),+ $(,)?) => {
            vec![$((
                $name,
                |mode, reduction| Box::new($loss.invalid_values(mode).reduction(reduction)) as Box<dyn Loss>,
                $counts,
            )),+]
        };
    }
    losses![
        ("cross entropy", CrossEntropyLoss::new(), true),
        ("smoothing", CrossEntropyLoss::new().label_smoothing(0.1), true),
        ("nll", NllLoss::new(), true),
        ("focal", SoftmaxFocalLoss::new(), true),
        ("poly", PolyCrossEntropyLoss::new(), false),
        ("asymmetric", AsymmetricSingleLabelLoss::new(), false),
        ("hinges", MultiMarginLoss::new(), false),
        ("strongest hinge", CategoricalHingeLoss::new(), false),
    ]
}

fn assert_message(expected: &str) {
    let message = InvalidValues::f_check(Device::Cpu).unwrap_err().to_string();
    assert_eq!(message, format!("target holds another value in an earlier call, expected {expected}"));
    InvalidValues::f_check(Device::Cpu).expect("it was told once");
}

#[test]
fn the_kernel_of_linear_cross_entropy_checks_its_classes_itself() {
    let valid = Tensor::from_slice(&[1_i64, 5, 0, 2, -100]);
    // The kernel has −1 for targets that are ignored, where others have checked them.
    let invalid = Tensor::from_slice(&[1_i64, 6, -1, 2, -100]);
    for (reduction, kind) in REDUCTIONS.into_iter().flat_map(|reduction| KINDS.map(|kind| (reduction, kind))) {
        for weighted in [false, true] {
            let name = format!("{reduction:?} {kind:?}, weights: {weighted}");
            let tensors = [randn([5, 3]).to_kind(kind), randn([6, 3]).to_kind(kind)];
            let weight = rand([6]) + 0.5;
            let call = |mode, target: &Tensor| {
                let loss = LinearCrossEntropy::new().chunking(Chunking::Rows(2)).z_loss(0.1).reduction(reduction);
                let loss = if weighted { loss.weight(weight.shallow_clone()) } else { loss }.invalid_values(mode);
                let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], &tensors[1], target, None).unwrap();
                results(&tensors, &[0, 1], &compute)
            };
            let near = |actual: &[Tensor], expected: &[Tensor]| {
                for (actual, expected) in actual.iter().zip(expected) {
                    assert_eq!(actual.isnan(), expected.isnan(), "{name}");
                    let [actual, expected] =
                        [actual, expected].map(|all| all.to_kind(Kind::Double).nan_to_num(0.0, 0.0, 0.0));
                    assert_near(&name, &actual, &expected, kind);
                }
            };
            let checks = CHECKS.get();
            let right = emulated(|| call(InvalidValues::Error, &valid));
            assert!(right[0].isfinite().all().int64_value(&[]) != 0, "{name}");
            InvalidValues::f_check(Device::Cpu).unwrap();
            let noted = emulated(|| call(InvalidValues::Error, &invalid));
            assert_message("classes in [0, 6), or ignore_index -100");
            let silent = emulated(|| call(InvalidValues::Nan, &invalid));
            InvalidValues::f_check(Device::Cpu).unwrap();
            assert_eq!(CHECKS.get(), checks, "{name} is checked by tensor operations");
            near(&right, &like_cuda(|| call(InvalidValues::Error, &valid)));
            let expected = like_cuda(|| call(InvalidValues::Nan, &invalid));
            near(&noted, &expected);
            near(&silent, &expected);
            if reduction != Reduction::None {
                assert!(expected[0].isnan().int64_value(&[]) != 0 && noted[2].abs().max().double_value(&[]) == 0.0);
            }
        }
    }
    let loss = LinearCrossEntropy::new().chunking(Chunking::Rows(2)).invalid_values(InvalidValues::ErrorAtOnce);
    let error = emulated(|| loss.f_forward(&randn([5, 3]), &randn([6, 3]), &invalid, None)).unwrap_err().to_string();
    assert_eq!(error, "target holds 6, expected classes in [0, 6), or ignore_index -100");
}

#[test]
fn the_kernels_of_rows_check_their_classes_themselves() {
    let valid = Tensor::from_slice(&[1_i64, 5, 0, 2]);
    let invalid = Tensor::from_slice(&[1_i64, 6, 0, -7]);
    for (name, new, counts) in of_rows() {
        for (reduction, kind) in REDUCTIONS.into_iter().flat_map(|reduction| KINDS.map(|kind| (reduction, kind))) {
            let name = format!("{name} {reduction:?} {kind:?}");
            let input = randn([4, 6]).to_kind(kind);
            let call = |mode, target: &Tensor| {
                let loss = new(mode, reduction);
                let compute = |tensors: &[Tensor]| loss.f_forward(&tensors[0], target).unwrap();
                results(std::slice::from_ref(&input), &[0], &compute)
            };
            let checks = CHECKS.get();
            LAUNCHED.take();
            let [right, _] = &emulated(|| call(InvalidValues::Error, &valid))[..] else { panic!() };
            assert!(right.isfinite().all().int64_value(&[]) != 0, "{name}");
            let launched = LAUNCHED.take();
            let is_stored = reduction != Reduction::None && !matches!(kind, Kind::Half | Kind::BFloat16);
            let counted = counts && reduction == Reduction::Mean;
            // Forward: count, rows, finish. Backward: a scale, or what rows and their counts are again.
            let forward = usize::from(counted) + 1 + usize::from(reduction != Reduction::None);
            let backward = if is_stored { 1 } else { 1 + usize::from(counted) };
            assert_eq!(launched.len(), forward + backward, "{name}: {launched:?}");
            InvalidValues::f_check(Device::Cpu).unwrap();

            let actual = emulated(|| call(InvalidValues::Error, &invalid));
            assert_eq!(CHECKS.get(), checks, "{name} is checked by tensor operations");
            let ignoring = ["cross entropy", "smoothing", "nll", "focal"].iter().any(|loss| name.starts_with(loss));
            assert_message(if ignoring { "classes in [0, 6), or ignore_index -100" } else { "classes in [0, 6)" });
            let silent = emulated(|| call(InvalidValues::Nan, &invalid));
            InvalidValues::f_check(Device::Cpu).unwrap();
            let expected = like_cuda(|| call(InvalidValues::Nan, &invalid));
            for results in [&actual, &silent] {
                assert_eq!(results[0].isnan(), expected[0].isnan(), "{name}");
                assert_eq!(results[1].eq(0.0), expected[1].eq(0.0), "{name}");
                assert!(results[1].isfinite().all().int64_value(&[]) != 0, "{name}");
            }
            // The host looks, and says what it has found.
            let error = emulated(|| new(InvalidValues::ErrorAtOnce, reduction).f_forward(&input, &invalid));
            assert!(error.unwrap_err().to_string().starts_with("target holds 6, expected classes in [0, 6)"), "{name}");
        }
    }
}

#[test]
fn gradients_are_zero_in_each_backward_pass() {
    let invalid = Tensor::from_slice(&[1_i64, 6, 0, -7]);
    let input = randn([4, 6]).to_kind(Kind::Float);
    // Not even where a slope is no number.
    let _ = input.get(0).get(3).fill_(f64::NAN);
    let input = input.set_requires_grad(true);
    emulated(|| {
        for first in [randn([4, 6]).to_kind(Kind::Float).set_requires_grad(true), input.shallow_clone()] {
            let loss = CrossEntropyLoss::new().invalid_values(InvalidValues::Nan).f_forward(&first, &invalid).unwrap();
            let backward = |keep| Tensor::run_backward(&[&loss], &[&first], keep, false).remove(0);
            let finite = first.isfinite().all().int64_value(&[]) != 0;
            // A pass that keeps the graph multiplies by 0.
            assert!(!finite || backward(true).eq(0.0).all().int64_value(&[]) != 0);
            assert!(backward(false).eq(0.0).all().int64_value(&[]) != 0);
        }
    });
}

#[test]
fn second_derivatives_never_see_a_class_out_of_range() {
    let invalid = Tensor::from_slice(&[1_i64, 6, 0, -7]);
    for (name, new, _) in of_rows() {
        for reduction in REDUCTIONS {
            let second = || {
                let input = randn([4, 6]).set_requires_grad(true);
                let loss = new(InvalidValues::Nan, reduction).f_forward(&input, &invalid).unwrap();
                let first = Tensor::run_backward(&[loss.sum(None)], &[&input], true, true).remove(0);
                Tensor::run_backward(&[first.square().sum(None)], &[&input], false, false).remove(0)
            };
            assert!(emulated(second).isfinite().all().int64_value(&[]) != 0, "{name} {reduction:?}");
        }
    }
}

#[test]
fn positions_labels_and_views_are_checked_by_their_kernels() {
    let positions = Tensor::from_slice(&[0.5, 7.5, 2.0]);
    let labels = Tensor::from_slice(&[0_i64, -1, 9, 1, 9, -1, 2, 1, -1]).view([3, 3]);
    type Call = Box<dyn Fn(&Tensor) -> Tensor>;
    let calls: Vec<(&str, Call, Tensor, &str)> = vec![
        (
            "positions",
            Box::new(move |input| DistributionFocalLoss::new().f_forward(input, &positions).unwrap()),
            randn([3, 6]),
            "positions in [0, 5]",
        ),
        (
            "labels",
            Box::new(move |input| MultiLabelMarginLoss::new().f_forward(input, &labels).unwrap()),
            randn([3, 3]),
            "classes in [0, 3), or -1 to end the list",
        ),
        (
            "views",
            Box::new(|input| JsdCrossEntropyLoss::new().f_forward(input, &Tensor::from_slice(&[0_i64, 9])).unwrap()),
            randn([6, 5]),
            "classes in [0, 5), or ignore_index -100",
        ),
    ];
    for (name, compute, input, expected) in calls {
        let checks = CHECKS.get();
        LAUNCHED.take();
        let compute = |tensors: &[Tensor]| compute(&tensors[0]);
        let [loss, gradient] = &emulated(|| results(&[input], &[0], &compute))[..] else { panic!() };
        assert!(loss.double_value(&[]).is_nan(), "{name}");
        assert!(gradient.eq(0.0).all().int64_value(&[]) != 0, "{name}");
        assert!(LAUNCHED.take().contains(&c"rows") && CHECKS.get() == checks, "{name}");
        assert_message(expected);
    }
}

#[test]
fn only_what_is_not_expected_is_noted() {
    let inf = f64::INFINITY;
    let of = |numbers: &[f64]| Tensor::from_slice(numbers).to_kind(Kind::Float);
    let f_noted = |loss: &dyn Loss, input: &[f64], target: &[f64]| {
        let _ = emulated(|| loss.f_forward(&of(input), &of(target)).unwrap());
        InvalidValues::f_check(Device::Cpu).err().map(|error| error.to_string())
    };
    let logarithms = PoissonNllLoss::new();
    assert_eq!(f_noted(&logarithms, &[inf, -inf, f64::NAN], &[0.0, 1.0, 1.0]), None);
    let rates = PoissonNllLoss::new().log_input(false);
    // ∞ − y ∞ is no number, and the rate is one.
    assert_eq!(f_noted(&rates, &[inf, 1.0, f64::NAN], &[2.0, f64::NAN, 1.0]), None);
    let message = "input holds another value in an earlier call, expected rates ≥ 0";
    assert_eq!(f_noted(&rates, &[-1.0, 1.0, 1.0], &[1.0; 3]).as_deref(), Some(message));
    // A weight or a logit that is none is not a label that is none.
    let weighted = BceLoss::new().weight(of(&[f64::NAN, 1.0, 1.0]));
    assert_eq!(f_noted(&weighted, &[0.5; 3], &[1.0; 3]), None);
    assert!(f_noted(&weighted, &[0.5; 3], &[1.0, 2.0, f64::NAN]).is_some());
    assert_eq!(f_noted(&SigmoidFocalLoss::new(), &[f64::NAN, inf, -inf], &[1.0, 0.0, 0.5]), None);
    assert!(f_noted(&SigmoidFocalLoss::new(), &[0.0; 3], &[1.0, 0.0, f64::NAN]).is_some());
    let gaussian = |input: &[f64], variance: &[f64]| {
        let target = of(&vec![inf; input.len()]);
        let _ = emulated(|| GaussianNllLoss::new().f_forward(&of(input), &target, &of(variance)).unwrap());
        InvalidValues::f_check(Device::Cpu).is_err()
    };
    assert!(!gaussian(&[inf, 0.0, f64::NAN], &[1.0, f64::NAN, 0.0]));
    assert!(gaussian(&[0.0], &[-1.0]));
}

#[test]
fn what_a_gpu_remembers_stays_where_it_is() {
    let place = || InvalidValues::f_memory(Device::Cpu, "target", "what a graph has recorded").unwrap();
    let mut first = place();
    InvalidValues::f_check(Device::Cpu).unwrap();
    // As a replayed kernel writes it.
    let _ = first.zero_();
    assert!(InvalidValues::f_check(Device::Cpu).is_err());
    assert_eq!(place().data_ptr(), first.data_ptr());
    InvalidValues::f_check(Device::Cpu).unwrap();
    let _ = first.zero_();
    assert!(InvalidValues::f_check(Device::Cpu).is_err());
}
