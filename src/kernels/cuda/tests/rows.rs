//! The engines of rows of classes, emulated, against the tensor operations that define the losses.

use tch::{Device, Kind, Tensor};

use super::compare::Guarded;
use super::compiled::{assert_compile, installed_nvrtc};
use super::{ORDER, SOURCES, assert_caught, assert_near, emulated, excess, sources_of};
use crate::kernels::{LogitRows, Real, RowLoss, RowReduction, Rows, f_label_margin, f_logits, f_softmax};
use crate::random::{rand, randn};
use crate::{
    AsymmetricSingleLabelLoss, Backend, CategoricalHingeLoss, Chunking, CrossEntropyLoss, DistributionFocalLoss,
    InvalidValues, JsdCrossEntropyLoss, LinearCrossEntropy, Loss, MeanOver, MultiLabelMarginLoss, MultiMarginLoss,
    NllLoss, PolyCrossEntropyLoss, Reduction, SoftmaxFocalLoss, with_backend,
};

const IGNORED: i64 = -100;
const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];
const KINDS: [Kind; 4] = [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16];

/// What a loss's target is.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Target {
    Classes,
    /// Some of them are ignored.
    SomeClasses,
    Shares,
    Positions,
}

struct Case {
    name: &'static str,
    loss: Box<dyn Loss>,
    target: Target,
    /// Whether the engine takes classes that are not the last dimension.
    strided: bool,
}

fn weights(classes: i64) -> Tensor {
    rand([classes]) + 0.25
}

fn cases(reduction: Reduction, classes: i64) -> Vec<Case> {
    let mut cases = vec![];
    macro_rules! case {
        ($name:literal, $target:ident, $strided:literal, $loss:expr) => {
            cases.push(Case {
                name: $name,
                loss: Box::new($loss.reduction(reduction)),
                target: Target::$target,
                strided: $strided,
            })
        };
    }
    let entropy = CrossEntropyLoss::new;
    case!("cross entropy", SomeClasses, true, entropy());
    case!("cross entropy, weight", SomeClasses, true, entropy().weight(weights(classes)));
    case!("cross entropy, smoothing", SomeClasses, true, entropy().label_smoothing(0.1));
    case!("cross entropy, both", SomeClasses, true, entropy().label_smoothing(0.3).weight(weights(classes)));
    case!("cross entropy, mean over all", SomeClasses, true, entropy().mean_over(MeanOver::All));
    case!("shares", Shares, true, entropy());
    case!("shares, both", Shares, true, entropy().label_smoothing(0.3).weight(weights(classes)));
    case!("focal", SomeClasses, true, SoftmaxFocalLoss::new());
    case!("focal, alpha", SomeClasses, true, SoftmaxFocalLoss::new().gamma(1.7).alpha(0.3));
    case!("focal, weight", SomeClasses, true, SoftmaxFocalLoss::new().gamma(1.7).weight(weights(classes)));
    case!("poly", Classes, true, PolyCrossEntropyLoss::new());
    case!("poly, smoothing", Classes, true, PolyCrossEntropyLoss::new().label_smoothing(0.2).epsilon(0.7));
    case!("nll", SomeClasses, true, NllLoss::new());
    case!("nll, weight", SomeClasses, true, NllLoss::new().weight(weights(classes)));
    case!("asymmetric", Classes, true, AsymmetricSingleLabelLoss::new());
    case!("asymmetric, powers", Classes, true, AsymmetricSingleLabelLoss::new().gamma_pos(0.7).gamma_neg(1.3));
    case!("hinges", Classes, false, MultiMarginLoss::new());
    case!("squared hinges", Classes, false, MultiMarginLoss::new().p(2).margin(0.6).weight(weights(classes)));
    case!("strongest hinge", Classes, false, CategoricalHingeLoss::new());
    if classes > 1 {
        case!("positions", Positions, false, DistributionFocalLoss::new());
    }
    cases
}

/// The shape of an input, and its kind. The classes are the second dimension.
struct Form<'a> {
    size: &'a [i64],
    kind: Kind,
}

/// An input and a target for it.
fn draw(form: &Form, target: Target) -> [Tensor; 2] {
    let Form { size, kind } = *form;
    let input = (randn(size) * 3).to_kind(kind);
    let rows = [&size[..1], &size[2..]].concat();
    let uniform = |size: &[i64]| rand(size);
    let target = match target {
        Target::Shares => randn(size).softmax(1, Kind::Double).to_kind(kind),
        Target::Positions => (uniform(&rows) * (size[1] - 1)).to_kind(kind),
        Target::Classes | Target::SomeClasses => {
            let classes = (uniform(&rows) * size[1]).floor().to_kind(Kind::Int64).clamp(0, size[1] - 1);
            // Not the first one, so that at least one is left.
            let ignored = uniform(&rows).lt(if target == Target::Classes { 0.0 } else { 0.2 });
            let _ = ignored.flatten(0, -1).narrow(0, 0, 1).fill_(0);
            classes.masked_fill(&ignored, IGNORED)
        }
    };
    [input, target]
}

/// The loss and the gradient of the input, in double precision, given a gradient of the loss that is not 1.
fn results(loss: &dyn Loss, [input, target]: [&Tensor; 2]) -> [Tensor; 2] {
    let input = input.detach().set_requires_grad(true);
    let loss = loss.f_forward(&input, target).unwrap();
    let grad = (Tensor::linspace(0.5, 1.25, loss.numel() as i64, (Kind::Float, Device::Cpu)))
        .view_as(&loss)
        .to_kind(loss.kind());
    let gradient = Tensor::run_backward(&[(&loss * grad).sum(None)], &[&input], false, false).remove(0);
    [loss, gradient].map(|tensor| tensor.detach().to_kind(Kind::Double))
}

/// The results of the emulated engine. It has taken the call.
fn by_engine(name: &str, loss: &dyn Loss, arguments: [&Tensor; 2]) -> [Tensor; 2] {
    let before = SOURCES.with_borrow(Vec::len);
    let results = emulated(|| results(loss, arguments));
    let taken = SOURCES.with_borrow(|sources| sources[before..].iter().any(|source| source.contains("row_loss")));
    assert!(taken, "{name} is not computed by an engine");
    results
}

fn check(name: &str, loss: &dyn Loss, [input, target]: [&Tensor; 2]) {
    let kind = input.kind();
    let [value, gradient] = by_engine(name, loss, [input, target]);
    let [expected, of_input] = with_backend(Backend::Composite, || results(loss, [input, target]));
    assert_near(name, &value, &expected, kind);
    assert_near(&format!("{name}, gradient"), &gradient, &of_input, kind);
}

fn check_case(case: &Case, reduction: Reduction, form: &Form) {
    let name = format!("{}, {reduction:?} of {:?}", case.name, form.size);
    let [input, target] = draw(form, case.target);
    check(&name, &*case.loss, [&input, &target]);
}

#[test]
fn rows_give_what_the_composites_do() {
    for reduction in REDUCTIONS {
        for case in cases(reduction, 10) {
            check_case(&case, reduction, &Form { size: &[37, 10], kind: Kind::Float });
            if case.strided {
                check_case(&case, reduction, &Form { size: &[2, 10, 3, 5], kind: Kind::Float });
            }
        }
    }
}

#[test]
fn rows_of_every_kind() {
    for kind in KINDS {
        for reduction in REDUCTIONS {
            for case in cases(reduction, 16) {
                if ["cross entropy, both", "shares, both", "focal, alpha", "nll, weight", "positions"]
                    .contains(&case.name)
                {
                    check_case(&case, reduction, &Form { size: &[21, 16], kind });
                }
            }
        }
    }
}

/// Numbers of classes for each way to go through rows: a power of two of threads, one and more packs for each, the last
/// one not full; a block for each row; and rows that no block keeps.
const CLASSES: [i64; 12] = [1, 2, 5, 8, 33, 767, 1000, 1025, 3000, 6145, 8192, 9000];

#[test]
fn rows_of_any_number_of_classes() {
    for classes in CLASSES {
        for case in cases(Reduction::Mean, classes) {
            let names =
                ["cross entropy, both", "shares, both", "asymmetric", "nll", "squared hinges", "strongest hinge"];
            if names.contains(&case.name) {
                check_case(&case, Reduction::Mean, &Form { size: &[9, classes], kind: Kind::Float });
            }
        }
    }
}

#[test]
fn rows_of_a_vocabulary() {
    for kind in KINDS {
        let [input, target] = draw(&Form { size: &[3, 128_256], kind }, Target::SomeClasses);
        for loss in [CrossEntropyLoss::new(), CrossEntropyLoss::new().label_smoothing(0.1)] {
            check("128256 classes", &loss, [&input, &target]);
        }
    }
}

#[test]
fn pixels_of_any_number_of_classes() {
    for classes in [1, 2, 5, 24, 25, 70] {
        for case in cases(Reduction::Mean, classes) {
            if ["cross entropy, both", "shares, both", "nll"].contains(&case.name) {
                for size in [&[2, classes, 7][..], &[3, classes, 5, 67]] {
                    check_case(&case, Reduction::Mean, &Form { size, kind: Kind::Float });
                }
            }
        }
    }
}

#[test]
fn more_rows_than_the_blocks_take_at_once() {
    let loss = CrossEntropyLoss::new();
    let [input, target] = draw(&Form { size: &[1, 2, 300_000], kind: Kind::Float }, Target::SomeClasses);
    check("300000 pixels", &loss, [&input, &target]);
    let [input, target] = draw(&Form { size: &[9001, 33], kind: Kind::Float }, Target::SomeClasses);
    check("9001 rows", &loss, [&input, &target]);
    let [input, target] = draw(&Form { size: &[1030, 1100], kind: Kind::Float }, Target::SomeClasses);
    check("1030 rows of a block each", &loss, [&input, &target]);
}

#[test]
fn rows_in_any_layout() {
    let case = || CrossEntropyLoss::new().label_smoothing(0.1);
    for kind in [Kind::Float, Kind::BFloat16] {
        let [input, target] = draw(&Form { size: &[4, 16, 3, 5], kind }, Target::SomeClasses);
        let last = input.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        check("channels last", &case(), [&last, &target]);
        let apart = Tensor::stack(&[&input, &input], -1).select(-1, 0);
        check("with gaps", &case(), [&apart, &target]);
        let [input, target] = draw(&Form { size: &[9, 16], kind }, Target::SomeClasses);
        // Rows that begin within a pack, and targets in a view.
        let flat = Tensor::cat(&[randn([1]).to_kind(kind), input.flatten(0, -1)], 0);
        check("unaligned", &case(), [&flat.narrow(0, 1, 144).view([9, 16]), &target]);
        let twice = Tensor::stack(&[&target, &target], 1).select(1, 0);
        check("target apart", &case(), [&input, &twice]);
        check("transposed", &case(), [&input.transpose(0, 1).contiguous().transpose(0, 1), &target]);
    }
}

#[test]
fn masked_and_extreme_logits() {
    let infinite = f64::NEG_INFINITY;
    let rows = [
        [infinite, 1.0, 2.0, infinite, 0.5],
        [infinite, infinite, infinite, infinite, 3.0],
        [1e4, -1e4, 0.0, 5.0, infinite],
        [88.0, 88.0, -88.0, infinite, 1.0],
    ];
    let input = Tensor::from_slice2(&rows).to_kind(Kind::Float);
    let target = Tensor::from_slice(&[1_i64, 4, 0, 1]);
    for reduction in REDUCTIONS {
        check("masked", &CrossEntropyLoss::new().reduction(reduction), [&input, &target]);
        check("masked focal", &SoftmaxFocalLoss::new().reduction(reduction), [&input, &target]);
        let shares = target.one_hot(5).to_kind(Kind::Float);
        check("masked shares", &CrossEntropyLoss::new().reduction(reduction), [&input, &shares]);
    }
    // Rows without a softmax: all masked, infinite, NaN.
    for number in [infinite, f64::INFINITY, f64::NAN] {
        let input = randn([3, 5]).to_kind(Kind::Float);
        let _ = if number == infinite { input.get(1).fill_(number) } else { input.get(1).get(2).fill_(number) };
        let target = Tensor::from_slice(&[1_i64, 4, 0]);
        let shares = target.one_hot(5).to_kind(Kind::Float) * 0.5 + 0.1;
        let loss = CrossEntropyLoss::new().reduction(Reduction::None);
        check("no softmax", &loss, [&input, &target]);
        check("no softmax of shares", &loss, [&input, &shares]);
    }
}

#[test]
fn a_mean_over_nothing() {
    let input = randn([4, 5]).to_kind(Kind::Float);
    let ignored = Tensor::full([4], IGNORED, (Kind::Int64, Device::Cpu));
    let weightless =
        CrossEntropyLoss::new().weight(Tensor::from_slice(&[0.0_f32, 1.0, 1.0, 1.0, 1.0])).label_smoothing(0.1);
    let first = Tensor::zeros([4], (Kind::Int64, Device::Cpu));
    for (loss, target) in [(CrossEntropyLoss::new(), &ignored), (weightless, &first)] {
        let [value, gradient] = by_engine("a mean over nothing", &loss, [&input, target]);
        let [expected, of_input] = with_backend(Backend::Composite, || results(&loss, [&input, target]));
        assert!(value.double_value(&[]).is_nan() && expected.double_value(&[]).is_nan());
        assert_near("gradient of a mean over nothing", &gradient, &of_input, Kind::Float);
    }
}

#[test]
fn the_order_of_the_threads_does_not_show() {
    let names = ["cross entropy, both", "shares, both", "asymmetric", "hinges", "strongest hinge"];
    for classes in [5, 33, 1100, 9000] {
        let form = Form { size: &[19, classes], kind: Kind::Float };
        for case in cases(Reduction::Mean, classes).iter().filter(|case| names.contains(&case.name)) {
            let [input, target] = draw(&form, case.target);
            let in_order = |order| {
                ORDER.set(order);
                let results = by_engine(case.name, &*case.loss, [&input, &target]);
                ORDER.set(1);
                results
            };
            let first = in_order(0);
            for order in [1, 2, 3] {
                assert_eq!(in_order(order), first, "{} of {classes}", case.name);
            }
        }
    }
}

#[test]
fn second_derivatives_are_those_of_the_composites() {
    for reduction in [Reduction::None, Reduction::Mean] {
        let names =
            ["cross entropy, both", "shares", "focal, alpha", "nll", "asymmetric", "strongest hinge", "positions"];
        for case in cases(reduction, 6).iter().filter(|case| names.contains(&case.name)) {
            let [input, target] = draw(&Form { size: &[5, 6], kind: Kind::Double }, case.target);
            let second = || {
                let input = input.detach().set_requires_grad(true);
                let loss = case.loss.f_forward(&input, &target).unwrap();
                let first = Tensor::run_backward(&[loss.sum(None)], &[&input], true, true).remove(0);
                let product =
                    (&first * Tensor::linspace(0.5, 1.5, 30, (Kind::Double, Device::Cpu)).view([5, 6])).sum(None);
                Tensor::run_backward(&[product], &[&input], false, false).remove(0)
            };
            assert_near(case.name, &emulated(second), &with_backend(Backend::Composite, second), Kind::Double);
        }
    }
}

#[test]
fn a_class_out_of_range_can_make_the_loss_nan() {
    let input = randn([4, 6]).to_kind(Kind::Float);
    let target = Tensor::from_slice(&[1_i64, 6, 0, -7]);
    macro_rules! losses {
        ($($loss:expr),+ $(,)?) => {
            |reduction| {
                vec![$(Box::new($loss.invalid_values(InvalidValues::Nan).reduction(reduction)) as Box<dyn Loss>),+]
            }
        };
    }
    let losses: fn(Reduction) -> Vec<Box<dyn Loss>> = losses![
        CrossEntropyLoss::new(),
        NllLoss::new(),
        SoftmaxFocalLoss::new(),
        PolyCrossEntropyLoss::new(),
        AsymmetricSingleLabelLoss::new(),
        MultiMarginLoss::new(),
        CategoricalHingeLoss::new(),
    ];
    for reduction in REDUCTIONS {
        for loss in losses(reduction) {
            check("classes out of range", &*loss, [&input, &target]);
        }
    }
}

/// A formula that needs no loss file, which would check the classes.
#[derive(Clone, Copy)]
struct Log;

impl RowLoss for Log {
    fn evaluate<R: Real>(self, log_p: R, _: R) -> (R, [R; 2]) {
        (-log_p, [R::of(-1.0), R::of(0.0)])
    }
}

#[test]
fn classes_out_of_range_are_nan_and_read_nothing() {
    // Of these the first three are classes or ignored.
    for (classes, size) in [(4, vec![8, 4]), (1100, vec![8, 1100]), (9001, vec![8, 9001]), (4, vec![2, 4, 4])] {
        let targets = [0, classes - 1, IGNORED, classes, -1, i64::MAX, i64::MIN, 1 << 32];
        let input = Guarded::new(&randn(&size[..]).to_kind(Kind::Float));
        let rows_size = [&size[..1], &size[2..]].concat();
        let target = Guarded::new(&Tensor::from_slice(&targets).view(&rows_size[..]));
        let weight = Guarded::new(&weights(classes).to_kind(Kind::Float));
        let losses = |reduction| {
            let input = input.tensor.detach().set_requires_grad(true);
            let rows = Rows {
                input: &input,
                class_dim: 1,
                target: &target.tensor,
                ignore_index: Some(IGNORED),
                weight: Some(&weight.tensor),
                note: None,
            };
            let never = |_: &Tensor, _: &Tensor| panic!("no composite");
            let loss =
                emulated(|| f_softmax(Log, 0.1, &rows, reduction, never)).unwrap().expect("the engine takes this");
            emulated(|| loss.sum(None).backward());
            let gradient = input.grad().transpose(1, -1).reshape([8, classes]);
            [loss.reshape([-1]), gradient.abs().sum_dim_intlist(1, false, None)]
                .map(|tensor| Vec::<f32>::try_from(tensor).unwrap())
        };
        let [values, gradients] = losses(RowReduction::None);
        for numbers in [&values, &gradients] {
            assert!(numbers[0] > 0.0 && numbers[1] > 0.0 && numbers[2] == 0.0, "{classes}: {numbers:?}");
        }
        assert!(values[3..].iter().all(|number| number.is_nan()), "{classes}: {values:?}");
        assert!(gradients[3..].iter().all(|number| *number == 0.0), "{classes}: {gradients:?}");
        for reduction in [RowReduction::Sum, RowReduction::Mean, RowReduction::WeightedMean, RowReduction::CountedMean]
        {
            let [values, gradients] = losses(reduction);
            assert!(values[0].is_nan(), "{reduction:?} of {classes}");
            assert!(gradients.iter().all(|number| *number == 0.0), "{reduction:?} of {classes}: {gradients:?}");
        }
    }
}

fn logit_rows<'a>(logits: &'a Tensor, target: &'a Tensor, derivatives: Option<[&'a Tensor; 2]>) -> LogitRows<'a> {
    LogitRows {
        logits,
        target,
        unchecked: None,
        weight: None,
        smoothing: 0.0,
        z_loss: 0.0,
        soft_cap: None,
        derivatives,
    }
}

#[test]
fn logits_are_overwritten_by_their_gradient() {
    for kind in KINDS {
        let all: &[i64] = &[1, 5, 16, 33, 1000, 1100, 9000, 9001];
        for &classes in if kind == Kind::Float { all } else { &[16, 9001] } {
            for (weighted, smoothing, z_loss, soft_cap) in [
                (false, 0.0, 0.0, None),
                (true, 0.2, 1e-2, Some(4.0)),
                (false, 0.2, 1e-2, None),
                (true, 0.0, 0.0, None),
            ] {
                let [logits, target] = draw(&Form { size: &[7, classes], kind }, Target::SomeClasses);
                let target = target.clamp(-1, classes);
                let wide = if kind == Kind::Double { Kind::Double } else { Kind::Float };
                let derivatives = [rand([7]).to_kind(wide), rand([7]).to_kind(wide)];
                let weight = weighted.then(|| weights(classes));
                let run = |logits: &Tensor, device: fn(&dyn Fn() -> [Tensor; 2]) -> [Tensor; 2]| {
                    let rows = LogitRows {
                        weight: weight.as_ref(),
                        smoothing,
                        z_loss,
                        soft_cap,
                        ..logit_rows(logits, &target, Some([&derivatives[0], &derivatives[1]]))
                    };
                    device(&|| f_logits(&rows).unwrap().expect("the engine takes this"))
                };
                let gradient = logits.copy();
                let losses = run(&gradient, |work| emulated(work));
                let reference =
                    reference_of_logits(&logits, &target, weight.as_ref(), [smoothing, z_loss], soft_cap, &derivatives);
                let name = format!("logits of {classes}, smoothing {smoothing}, cap {soft_cap:?}");
                for (actual, expected) in losses.iter().chain([&gradient]).zip(&reference) {
                    let loose = if actual.kind() == kind { kind } else { Kind::Float };
                    assert_near(&name, &actual.to_kind(Kind::Double), expected, loose);
                }
            }
        }
    }
}

/// The two losses and the gradient of logits, by libtorch in double precision.
fn reference_of_logits(
    logits: &Tensor,
    target: &Tensor,
    weight: Option<&Tensor>,
    [smoothing, z_loss]: [f64; 2],
    soft_cap: Option<f64>,
    derivatives: &[Tensor; 2],
) -> [Tensor; 3] {
    let input = logits.to_kind(Kind::Double).set_requires_grad(true);
    let weight = weight.map(|weight| weight.to_kind(Kind::Double));
    let x = match soft_cap {
        Some(cap) => (&input / cap).tanh() * cap,
        None => input.shallow_clone(),
    };
    let entropy = x.cross_entropy_loss(target, weight.as_ref(), tch::Reduction::None, -1, smoothing);
    let z = (x.logsumexp([1], false).square() * z_loss).masked_fill(&target.eq(-1), 0.0);
    let sum = (&entropy * &derivatives[0]).sum(None) + (&z * &derivatives[1]).sum(None);
    let gradient = Tensor::run_backward(&[sum], &[&input], false, false).remove(0);
    [entropy.detach(), z.detach(), gradient]
}

#[test]
fn logits_without_a_class_are_nan() {
    let logits = Guarded::new(&randn([5, 9]).to_kind(Kind::Float));
    let target = Tensor::from_slice(&[0_i64, -1, 9, -7, i64::MAX]);
    let ones = Tensor::ones([5], (Kind::Float, Device::Cpu));
    let rows = logit_rows(&logits.tensor, &target, Some([&ones, &ones]));
    let [entropy, z] = emulated(|| f_logits(&rows)).unwrap().expect("the engine takes this");
    for numbers in [entropy, z] {
        let nan: Vec<bool> = numbers.isnan().try_into().unwrap();
        assert_eq!(nan, [false, false, true, true, true]);
    }
    let slopes = Vec::<f32>::try_from(logits.tensor.abs().sum_dim_intlist(1, false, None)).unwrap();
    assert!(slopes[0] > 0.0 && slopes[1..] == [0.0; 4], "{slopes:?}");
}

#[test]
fn linear_cross_entropy_takes_the_engine() {
    let (input, weight) = (randn([40, 6]).to_kind(Kind::Float), randn([11, 6]).to_kind(Kind::Float));
    let [_, target] = draw(&Form { size: &[40, 11], kind: Kind::Float }, Target::SomeClasses);
    for reduction in REDUCTIONS {
        let loss = LinearCrossEntropy::new().reduction(reduction).label_smoothing(0.1).ignore_index(Some(IGNORED));
        let loss = loss.chunking(Chunking::AspectRatio(4));
        let results = || {
            let (input, weight) = (input.detach().set_requires_grad(true), weight.detach().set_requires_grad(true));
            let loss = loss.f_forward(&input, &weight, &target, None).unwrap();
            let mut all = Tensor::run_backward(&[(&loss * 0.75).sum(None)], &[&input, &weight], false, false);
            all.push(loss);
            all.into_iter().map(|tensor| tensor.detach().to_kind(Kind::Double)).collect::<Vec<_>>()
        };
        let before = SOURCES.with_borrow(Vec::len);
        let actual = emulated(results);
        assert!(SOURCES.with_borrow(|sources| sources[before..].iter().any(|source| source.contains("LogitCall"))));
        for (actual, expected) in actual.iter().zip(with_backend(Backend::Composite, results)) {
            assert_near("linear cross entropy", actual, &expected, Kind::Float);
        }
    }
}

#[test]
fn labels_of_rows() {
    for kind in KINDS {
        for classes in [2, 5, 33, 200, 512] {
            for reduction in REDUCTIONS {
                let scores = (randn([5, classes]) * 2).to_kind(kind);
                // Lists of labels that may repeat, of any length, with more numbers behind their end.
                let labels = (rand([5, classes]) * (classes + 1)).floor().to_kind(Kind::Int64) - 1;
                let labels = if classes < 9 {
                    labels
                } else {
                    labels.slice_scatter(&labels.narrow(1, 3, 1).full_like(-1), 1, 6, 7, 1)
                };
                let loss = MultiLabelMarginLoss::new().reduction(reduction);
                check(&format!("labels of {classes}, {reduction:?}"), &loss, [&scores, &labels]);
                check("labels of one row", &loss, [&scores.get(1), &labels.get(1)]);
            }
        }
    }
    let scores = Tensor::from_slice(&[0.0_f32, f32::NAN, 0.5, 1.0, f32::INFINITY, f32::NEG_INFINITY]);
    check(
        "labels of numbers that are not finite",
        &MultiLabelMarginLoss::new(),
        [&scores, &Tensor::from_slice(&[3_i64, 0, -1, 1, 2, 2])],
    );
    // Without a check before, an entry out of range is NaN wherever it stands.
    let input = Guarded::new(&randn([4, 3]).to_kind(Kind::Float));
    let target = Guarded::new(&Tensor::from_slice(&[0_i64, -1, 1, 3, 0, 0, -1, 0, -2, i64::MAX, 1, 1]).view([4, 3]));
    let never = |_: [&Tensor; 2]| panic!("no composite");
    let losses = emulated(|| f_label_margin([&input.tensor, &target.tensor], Reduction::None, None, never)).unwrap();
    assert_eq!(Vec::<bool>::try_from(losses.isnan()).unwrap(), [false, true, true, true]);
}

#[test]
fn views_of_samples() {
    for kind in KINDS {
        for (splits, size) in
            [(3, vec![15, 10]), (2, vec![6, 1000]), (1, vec![4, 5]), (4, vec![8, 33]), (3, vec![6, 4, 3])]
        {
            let [input, target] = draw(&Form { size: &size, kind }, Target::SomeClasses);
            let target = target.narrow(0, 0, size[0] / splits).contiguous();
            for smoothing in [0.0, 0.1] {
                let loss = JsdCrossEntropyLoss::new().num_splits(splits).label_smoothing(smoothing);
                check(&format!("{splits} views of {size:?}, {smoothing}"), &loss, [&input, &target]);
            }
        }
    }
    let input = randn([6, 5]).to_kind(Kind::Float);
    let ignored = Tensor::full([2], IGNORED, (Kind::Int64, Device::Cpu));
    let [value, gradient] = by_engine("views without a class", &JsdCrossEntropyLoss::new(), [&input, &ignored]);
    assert!(value.double_value(&[]).is_nan() && gradient.isfinite().all().int64_value(&[]) == 1);
}

/// Whether the results of an emulated engine are those of the composite.
fn is_right(loss: &dyn Loss, [input, target]: [&Tensor; 2]) -> bool {
    let expected = with_backend(Backend::Composite, || results(loss, [input, target]));
    let actual = by_engine("a mutation", loss, [input, target]);
    actual.iter().zip(&expected).all(|(actual, expected)| excess(actual, expected, Kind::Float) <= 0.0)
}

#[test]
fn mutations_of_the_kernels_are_caught() {
    let [short, long, streamed] = [&[3000, 40][..], &[30, 1100], &[5, 9001]];
    // What stands in the kernels, what takes its place, and rows by which that shows.
    let mutations: [(&str, &str, &[i64]); 15] = [
        // A barrier that is left out.
        ("  if (lane == 0) warps[warp] = number;\n  __syncthreads();", "  if (lane == 0) warps[warp] = number;", long),
        ("    if (lane == 0) all = number;\n  }\n  __syncthreads();", "    if (lane == 0) all = number;\n  }", long),
        // One element too many, and too few.
        ("const bool within = c < classes;", "const bool within = c <= classes;", long),
        ("const bool within = c < classes;", "const bool within = c + WIDTH < classes;", short),
        ("  if (parts) scale *=", "  if (parts > 1) scale *=", long),
        // Half a warp, half a block, and half of the rows.
        ("for (int distance = LANES / 2;", "for (int distance = LANES / 4;", short),
        (
            "const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, count = blockDim.x / WARP;",
            "const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, count = blockDim.x / WARP / 2;",
            long,
        ),
        ("const int at_once = THREADS / Group::SIZE;", "const int at_once = 2 * THREADS / Group::SIZE;", short),
        ("first < call.rows; first += gridDim.x * (long long)at_once", "first < call.rows; first += at_once", short),
        // What a thread does for its own part.
        ("class_at(first, j) == target ? Real(0) : numbers[j];", "numbers[j];", short),
        ("of_p / of.sum * of.shift", "of_p / of.sum", long),
        ("known->others * exp(known->max - base)", "known->others", streamed),
        ("known->weights * (base - known->max)", "Real(0)", streamed),
        ("if (target == -1) continue;", "", short),
        (
            "const Real own = target < 0 || !call.weights ? Real(1) : call.weights[target];",
            "const Real own = 1;",
            short,
        ),
    ];
    for (text, other, size) in mutations {
        let loss = CrossEntropyLoss::new().weight(weights(size[1])).label_smoothing(0.1);
        let [input, target] = draw(&Form { size, kind: Kind::Float }, Target::SomeClasses);
        assert_caught(text, other, || is_right(&loss, [&input, &target]));
    }
}

#[test]
fn row_sources_compile_for_gpus() {
    let Some(nvrtc) = installed_nvrtc() else {
        println!("left out: this libtorch came without NVRTC");
        return;
    };
    let sources: Vec<String> = sources_of(row_calls).into_iter().collect();
    assert!(sources.len() > 40, "{} sources", sources.len());
    assert_compile(&nvrtc, sources);
}

/// Calls with rows of a part of a warp, of a warp and of a block with all that their threads can keep, and longer ones.
fn row_calls() {
    let call = |case: &Case, form: &Form| {
        let [input, target] = draw(form, case.target);
        let refused = case.loss.f_forward(&input, &target).unwrap();
        let expected = with_backend(Backend::Composite, || case.loss.f_forward(&input, &target)).unwrap();
        assert_eq!(refused, expected, "{} is not computed by tensor operations", case.name);
    };
    for (kind, sizes) in [
        (Kind::Float, [5, 1024, 8192, 8200]),
        (Kind::Double, [5, 192, 1536, 8200]),
        (Kind::BFloat16, [5, 1024, 8192, 8200]),
    ] {
        for (place, classes) in sizes.into_iter().enumerate() {
            let names = ["shares", "focal, alpha", "nll", "asymmetric", "squared hinges", "strongest hinge"];
            for case in cases(Reduction::Mean, classes) {
                let other = names.contains(&case.name) && place % 2 == 1 && kind != Kind::BFloat16;
                if case.name == "cross entropy" || other {
                    call(&case, &Form { size: &[1, classes], kind });
                }
                if ["cross entropy", "shares"].contains(&case.name) && place == 0 {
                    for classes in [4, 12, 24, 70] {
                        call(&case, &Form { size: &[1, classes, 2], kind });
                    }
                }
            }
            let (logits, target) = (randn([1, classes]).to_kind(kind), Tensor::from_slice(&[0_i64]));
            let rows = LogitRows { soft_cap: Some(3.0), ..logit_rows(&logits, &target, None) };
            assert!(f_logits(&rows).unwrap().is_none());
        }
        let views = |splits| Box::new(JsdCrossEntropyLoss::new().num_splits(splits)) as Box<dyn Loss>;
        let (scores, labels) = (randn([1, 512]).to_kind(kind), Tensor::full([1, 512], -1, (Kind::Int64, Device::Cpu)));
        let _ = MultiLabelMarginLoss::new().f_forward(&scores, &labels).unwrap();
        for splits in [3, 4] {
            let (input, target) = (randn([splits, 40]).to_kind(kind), Tensor::from_slice(&[1_i64]));
            let _ = views(splits).f_forward(&input, &target).unwrap();
        }
    }
}
