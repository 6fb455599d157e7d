use tch::{Device, nn};

use super::*;
use crate::random::{randint, randn};
use crate::{Backend, Loss, with_autocast_to, with_backend};

fn ones(shape: &[i64]) -> Tensor {
    Tensor::ones(shape, (Kind::Int64, Device::Cpu))
}

/// The loss and the gradients of input, weight and bias.
fn run(criterion: &LinearCrossEntropy, arguments: &[Tensor; 3], target: &Tensor) -> [Tensor; 4] {
    let [input, weight, bias] = arguments.each_ref().map(|x| x.detach().copy().set_requires_grad(true));
    let loss = criterion.forward(&input, &weight, target, Some(&bias));
    (&loss * Tensor::arange(loss.numel() as i64, (Kind::Double, Device::Cpu)).view_as(&loss).cos())
        .sum(None)
        .backward();
    [loss.detach(), input.grad(), weight.grad(), bias.grad()]
}

/// Weighted, smoothed, capped or not, with a z-loss or not.
fn variants(weight: &Tensor) -> impl Iterator<Item = LinearCrossEntropy> {
    (0..16).map(move |bits| {
        let mut criterion = LinearCrossEntropy::new();
        if bits & 1 != 0 {
            criterion = criterion.weight(weight.shallow_clone());
        }
        if bits & 2 != 0 {
            criterion = criterion.label_smoothing(0.2);
        }
        if bits & 4 != 0 {
            criterion = criterion.z_loss(0.3);
        }
        if bits & 8 != 0 {
            criterion = criterion.soft_cap(1.5);
        }
        criterion
    })
}

const REDUCTIONS: [Reduction; 3] = [Reduction::None, Reduction::Mean, Reduction::Sum];

/// Chunks of several sizes against the definition, for each variant and reduction.
fn assert_chunks_equal_the_definition(arguments: &[Tensor; 3], target: &Tensor, classes: i64) {
    let weight = randn([classes]).abs();
    for reduction in REDUCTIONS {
        for whole in variants(&weight).map(|criterion| criterion.reduction(reduction)) {
            let expected = run(&whole, arguments, target);
            for chunking in [1, 2, 3, 7, 8].map(Chunking::Rows).into_iter().chain([Chunking::default()]) {
                let actual = run(&whole.clone().chunking(chunking), arguments, target);
                for (actual, expected) in actual.iter().zip(&expected) {
                    assert!(actual.allclose(expected, 1e-12, 1e-12, false), "{chunking:?} {whole:?}");
                }
            }
        }
    }
}

#[test]
fn chunks_change_neither_value_nor_gradient() {
    let arguments = [randn([7, 3]), randn([5, 3]), randn([5])];
    let target = Tensor::from_slice(&[0_i64, 4, -100, 2, -100, -100, 1]);
    assert_chunks_equal_the_definition(&arguments, &target, 5);
    assert_chunks_equal_the_definition(&arguments, &randn([7, 5]).softmax(1, None), 5);
}

#[test]
fn chunks_of_several_places_change_neither_value_nor_gradient() {
    let arguments = [randn([7, 3]), randn([5, 2, 2, 3]), randn([5, 2, 2])];
    let target = Tensor::arange(28, (Kind::Int64, Device::Cpu)).remainder(5).view([7, 2, 2]);
    let ignored = target.fmod(3).eq(1);
    assert_chunks_equal_the_definition(&arguments, &target.masked_fill(&ignored, -100), 5);
    assert_chunks_equal_the_definition(&arguments, &randn([7, 5, 2, 2]).softmax(1, None), 5);
}

/// More rows than are computed at once within a chunk.
#[test]
fn blocks_within_a_chunk_change_neither_value_nor_gradient() {
    let classes = 100_000;
    let arguments = [randn([5, 2]), randn([classes, 2]), randn([classes])];
    let target = Tensor::from_slice(&[0_i64, 99_999, -100, 17, 5]);
    let whole = || LinearCrossEntropy::new().z_loss(0.1).soft_cap(2.0).label_smoothing(0.1);
    let expected = run(&whole(), &arguments, &target);
    let actual = run(&whole().chunking(Chunking::Rows(5)), &arguments, &target);
    for (actual, expected) in actual.iter().zip(&expected) {
        assert!(actual.allclose(expected, 1e-12, 1e-12, false));
    }
}

#[test]
fn only_what_requires_a_gradient_gets_one() {
    let target = Tensor::from_slice(&[0_i64, 4, 2]);
    for reduction in REDUCTIONS {
        for needed in 0..8 {
            let mut arguments = [randn([3, 3]), randn([5, 3]), randn([5])];
            for (position, argument) in arguments.iter_mut().enumerate() {
                *argument = argument.set_requires_grad(needed & (1 << position) != 0);
            }
            let [input, weight, bias] = &arguments;
            let of = |criterion: LinearCrossEntropy| criterion.forward(input, weight, &target, Some(bias)).sum(None);
            let whole = of(LinearCrossEntropy::new().reduction(reduction));
            let loss = of(LinearCrossEntropy::new().reduction(reduction).chunking(Chunking::Rows(2)));
            assert!(loss.allclose(&whole, 1e-12, 1e-12, false));
            assert_eq!(loss.requires_grad(), needed != 0);
            if needed == 0 {
                continue;
            }
            let wanted: Vec<&Tensor> = arguments.iter().filter(|argument| argument.requires_grad()).collect();
            let expected = Tensor::run_backward(&[whole], &wanted, false, false);
            for (actual, expected) in Tensor::run_backward(&[loss], &wanted, false, false).iter().zip(&expected) {
                assert!(actual.allclose(expected, 1e-12, 1e-12, false));
            }
        }
    }
}

#[test]
fn a_kept_graph_gives_the_gradient_again() {
    let (input, weight) = (randn([4, 3]).set_requires_grad(true), randn([5, 3]).set_requires_grad(true));
    for reduction in REDUCTIONS {
        let criterion = LinearCrossEntropy::new().reduction(reduction).chunking(Chunking::Rows(3));
        let loss = criterion.forward(&input, &weight, &ones(&[4]), None).sum(None) * 3.0;
        let of = |keep| Tensor::run_backward(&[&loss], &[&input, &weight], keep, false);
        let first: Vec<Tensor> = of(true).iter().map(Tensor::copy).collect();
        assert_eq!(of(true), first);
        let last = of(false);
        assert!(last.iter().zip(&first).all(|(last, first)| last.allclose(first, 1e-12, 1e-12, false)));
        let error = Tensor::f_run_backward(&[&loss], &[&input], false, false).unwrap_err();
        assert!(error.to_string().contains("a second time"), "{error}");
    }
}

#[test]
fn chunks_can_be_differentiated_twice() {
    let target = Tensor::from_slice(&[0_i64, -100, 2, 1]);
    let (input, weight, direction) = (randn([4, 3]), randn([5, 3]), randn([4, 3]));
    for reduction in REDUCTIONS {
        let second = |criterion: LinearCrossEntropy| {
            let criterion = criterion.z_loss(0.2).soft_cap(2.0).reduction(reduction);
            let input = input.copy().set_requires_grad(true);
            let loss = criterion.forward(&input, &weight, &target, None).square().sum(None);
            let gradient = Tensor::run_backward(&[loss], &[&input], true, true).remove(0);
            Tensor::run_backward(&[(gradient * &direction).sum(None)], &[&input], false, false).remove(0).copy()
        };
        let expected = second(LinearCrossEntropy::new());
        let actual = second(LinearCrossEntropy::new().chunking(Chunking::Rows(3)));
        assert!(actual.allclose(&expected, 1e-12, 1e-12, false));
    }
}

#[test]
fn an_ignored_row_of_any_logits_stays_out_of_value_and_gradient() {
    let target = Tensor::from_slice(&[1_i64, -100]);
    let input = Tensor::from_slice(&[1.0, f64::NAN]).view([2, 1]).set_requires_grad(true);
    let weight = Tensor::from_slice(&[0.0, 0.0]).view([2, 1]);
    for reduction in [Reduction::Mean, Reduction::Sum] {
        let criterion = LinearCrossEntropy::new().z_loss(1.0).reduction(reduction).chunking(Chunking::Rows(2));
        let loss = criterion.forward(&input, &weight, &target, None);
        assert!((loss.double_value(&[]) - 2_f64.ln() - 2_f64.ln().powi(2)).abs() < 1e-12);
        let gradient = Tensor::run_backward(&[loss], &[&input], false, false).remove(0);
        assert_eq!(Vec::<f64>::try_from(gradient.view(-1)).unwrap(), [0.0, 0.0]);
    }
}

#[test]
fn chunks_of_ignored_targets_have_no_gradient() {
    let arguments = [randn([4, 3]), randn([5, 3]), randn([5])];
    let [loss, gradients @ ..] =
        run(&LinearCrossEntropy::new().chunking(Chunking::Rows(2)), &arguments, &(ones(&[4]) * -100));
    assert!(f64::try_from(loss).unwrap().is_nan());
    for gradient in gradients {
        assert_eq!(gradient, gradient.zeros_like());
    }
}

#[test]
fn chunks_of_half_precision_are_computed_in_single_precision() {
    let input = Tensor::full([3000, 2], 10.0, (Kind::Half, Device::Cpu));
    let weight = Tensor::from_slice(&[0.0, 0.0, 3.0, 3.0]).view([2, 2]).to_kind(Kind::Half);
    let target = Tensor::zeros([3000], (Kind::Uint8, Device::Cpu));
    for size in [1000, 3000] {
        let criterion = LinearCrossEntropy::new().chunking(Chunking::Rows(size));
        let loss = criterion.forward(&input, &weight, &target, None);
        assert_eq!((loss.kind(), f64::try_from(loss).unwrap()), (Kind::Half, 60.0));
    }
    let criterion = LinearCrossEntropy::new().chunking(Chunking::Rows(1000)).acc_dtype(Kind::Half);
    let losses = criterion.reduction(Reduction::None).forward(&input, &weight, &target, None);
    assert_eq!((losses.kind(), losses.size()), (Kind::Half, vec![3000]));
}

#[test]
fn a_gradient_too_small_for_half_precision_can_be_scaled() {
    let of = |kind: Kind, acc_dtype: Option<Kind>| {
        let (input, weight) = (randn([3000, 2]).ones_like(), Tensor::from_slice(&[0.0, 0.0, 3.0, 3.0]).view([2, 2]));
        let [input, weight] = [input, weight].map(|tensor| tensor.to_kind(kind).set_requires_grad(true));
        let criterion = LinearCrossEntropy::new().chunking(Chunking::Rows(1000));
        let criterion = if let Some(kind) = acc_dtype { criterion.acc_dtype(kind) } else { criterion };
        // A class that is almost certain.
        let loss = criterion.forward(&input, &weight, &ones(&[3000]), None).to_kind(Kind::Float) * 32_768.0;
        Tensor::run_backward(&[loss], &[input], false, false).remove(0).to_kind(Kind::Double)
    };
    let expected = of(Kind::Double, None);
    assert!(of(Kind::Half, Some(Kind::Float)).allclose(&expected, 1e-3, 0.0, false));
    // These are computed in half precision.
    assert!(of(Kind::Half, Some(Kind::Half)).allclose(&expected, 2e-3, 0.0, false));
    let under_autocast = with_autocast_to(Device::Cpu, Some(Kind::Half), || of(Kind::Float, None));
    assert!(under_autocast.allclose(&expected, 2e-3, 0.0, false));
}

#[test]
fn chunks_can_be_computed_in_half_precision() {
    let (input, weight) = (randn([7, 3]), randn([5, 3]));
    let target = Tensor::from_slice(&[0_i64, 4, -100, 2, 3, 1, 1]);
    for reduction in REDUCTIONS {
        let of = |kind: Kind, acc_dtype: Kind| {
            let [input, weight] = [&input, &weight].map(|tensor| tensor.copy().to_kind(kind).set_requires_grad(true));
            let criterion = LinearCrossEntropy::new().chunking(Chunking::Rows(3)).acc_dtype(acc_dtype);
            criterion.reduction(reduction).forward(&input, &weight, &target, None).sum(None).backward();
            [input.grad(), weight.grad()]
        };
        let expected = of(Kind::Double, Kind::Double);
        for kind in [Kind::Half, Kind::BFloat16] {
            for (actual, expected) in of(kind, kind).iter().zip(&expected) {
                assert_eq!(actual.kind(), kind);
                // A few roundings of numbers around 1.
                assert!(actual.to_kind(Kind::Double).allclose(expected, 0.0, 0.06, false), "{kind:?} {reduction:?}");
            }
        }
    }
}

#[test]
fn chunks_of_another_kind_than_the_layer_are_rejected() {
    let (input, weight) = (randn([2, 3]).to_kind(Kind::Float), randn([5, 3]));
    let criterion = LinearCrossEntropy::new().chunking(Chunking::Rows(1));
    let error = criterion.f_forward(&input, &weight, &ones(&[2]), None).unwrap_err();
    assert_eq!(error.to_string(), "linear_weight has kind Double, expected Float, the kind of input");
}

#[test]
fn a_single_row_is_one_chunk() {
    let (input, weight) = (randn([3]).to_kind(Kind::BFloat16), randn([5, 3]).to_kind(Kind::BFloat16));
    for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
        let criterion = LinearCrossEntropy::new().weight(randn([5]).abs()).reduction(reduction);
        let loss = criterion.chunking(Chunking::default()).forward(&input, &weight, &ones(&[]), None);
        assert_eq!((loss.kind(), loss.dim()), (Kind::BFloat16, 0));
    }
}

#[test]
fn the_aspect_ratio_is_pytorchs() {
    for (factor, rows, features, classes, expected) in
        [(1, 8192, 4096, 128_256, 256), (2, 8192, 4096, 128_256, 128), (1, 1000, 10, 100, 128), (8, 3, 4, 100, 1)]
    {
        assert_eq!(Chunking::AspectRatio(factor).f_rows(rows, features, classes).unwrap(), expected);
    }
    assert_eq!(Chunking::AspectRatio(1).f_rows(0, 0, 0).unwrap(), 1);
}

#[test]
fn what_cannot_be_chunked_is_computed_at_once() {
    let (input, weight, target) = (randn([6, 3]), randn([5, 3]), randn([6, 5]).softmax(1, None));
    let gradient = |criterion: LinearCrossEntropy| {
        let target = target.copy().set_requires_grad(true);
        criterion.forward(&input, &weight, &target, None).backward();
        target.grad()
    };
    let chunked = || LinearCrossEntropy::new().chunking(Chunking::Rows(2));
    assert_eq!(gradient(chunked()), gradient(LinearCrossEntropy::new()));
    let empty = chunked().forward(&randn([0, 3]), &weight, &ones(&[0]), None);
    assert!(f64::try_from(empty).unwrap().is_nan());
}

#[test]
fn invalid_classes_are_found_or_poison() {
    let (input, weight, target) = (randn([4, 3]).set_requires_grad(true), randn([5, 3]), ones(&[4]) * 5);
    let criterion = || LinearCrossEntropy::new().chunking(Chunking::Rows(3)).weight(randn([5]).abs());
    let error = criterion().f_forward(&input, &weight, &target, None).unwrap_err();
    assert_eq!(error.to_string(), "target holds 5, expected classes in [0, 5), or ignore_index -100");
    let loss = criterion().invalid_values(InvalidValues::Nan).forward(&input, &weight, &target, None);
    loss.backward();
    assert!(f64::try_from(loss).unwrap().is_nan());
    assert_eq!(input.grad(), input.zeros_like());
}

#[test]
fn an_undefined_input_is_named() {
    let x = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
    let error = LinearCrossEntropy::new().f_forward(&Tensor::new(), &x, &x, None).unwrap_err();
    assert_eq!(error.to_string(), "input is an undefined tensor");
    let error = LinearCrossEntropy::new().f_parts(&Tensor::new(), &x, &x, None).unwrap_err();
    assert_eq!(error.to_string(), "input is an undefined tensor");
}

#[test]
fn wrong_calls_are_named() {
    type Shape = &'static [i64];
    let cases: [(Shape, Shape, Shape, Option<Shape>, &str); 9] = [
        (&[], &[5, 3], &[], None, "input has shape [], expected [N, 3] or [3], for the 3 features of linear_weight"),
        (
            &[2, 4],
            &[5, 3],
            &[2],
            None,
            "input has shape [2, 4], expected [N, 3] or [3], for the 3 features of linear_weight",
        ),
        (
            &[2, 2, 3],
            &[5, 3],
            &[2],
            None,
            "input has shape [2, 2, 3], expected [N, 3] or [3], for the 3 features of linear_weight",
        ),
        (&[3], &[5, 4, 3], &[4], None, "input has shape [3], expected [N, 3], for the 3 features of linear_weight"),
        (&[2, 3], &[3], &[2], None, "linear_weight has shape [3], expected [C, D] or [C, d1, ..., dk, D]"),
        (
            &[2, 3],
            &[5, 3],
            &[3],
            None,
            "target has shape [3], expected [2] for class indices, or [2, 5] for class probabilities",
        ),
        (
            &[3],
            &[5, 3],
            &[1],
            None,
            "target has shape [1], expected [] for class indices, or [5] for class probabilities",
        ),
        (
            &[2, 3],
            &[5, 3],
            &[2],
            Some(&[4]),
            "linear_bias has shape [4], expected [5], that of linear_weight without its features",
        ),
        (
            &[2, 3],
            &[5, 4, 3],
            &[2, 4],
            Some(&[5]),
            "linear_bias has shape [5], expected [5, 4], that of linear_weight without its features",
        ),
    ];
    for (input, weight, target, bias, message) in cases {
        let bias = bias.map(randn);
        let result = LinearCrossEntropy::new().f_forward(&randn(input), &randn(weight), &ones(target), bias.as_ref());
        assert_eq!(result.unwrap_err().to_string(), message);
    }
}

#[test]
fn wrong_options_are_named() {
    let (input, weight) = (randn([2, 3]), randn([5, 3]));
    for (criterion, target, message) in [
        (
            LinearCrossEntropy::new().ignore_index(Some(-1)),
            randn([2, 5]),
            "option ignore_index is -1, expected none with class probabilities as target",
        ),
        (
            LinearCrossEntropy::new().chunking(Chunking::Rows(0)),
            ones(&[2]),
            "option chunking is Rows(0), expected a number of rows >= 1",
        ),
        (
            LinearCrossEntropy::new().chunking(Chunking::AspectRatio(-1)),
            ones(&[2]),
            "option chunking is AspectRatio(-1), expected a factor >= 1",
        ),
        (
            LinearCrossEntropy::new().chunking(Chunking::Rows(1)).acc_dtype(Kind::Float),
            ones(&[2]),
            "option acc_dtype is Float, expected Double, the kind of input, or Float for half precision",
        ),
        (
            LinearCrossEntropy::new().label_smoothing(1.5),
            ones(&[2]),
            "option label_smoothing is 1.5, expected a number in [0, 1]",
        ),
    ] {
        assert_eq!(criterion.f_forward(&input, &weight, &target, None).unwrap_err().to_string(), message);
    }
    let vs = nn::VarStore::new(Device::Cpu);
    for config in [
        LinearCrossEntropyConfig::new().out_features(&[4, -3]),
        LinearCrossEntropyConfig::new().out_features(&[i64::MAX, 3]),
        LinearCrossEntropyConfig::new().cross_entropy(LinearCrossEntropy::new().weight(randn([4]))),
        LinearCrossEntropyConfig::new().cross_entropy(LinearCrossEntropy::new().label_smoothing(-0.5)),
    ] {
        LinearCrossEntropyLoss::f_new(vs.root(), 3, 5, config).unwrap_err();
    }
    assert!(vs.is_empty());
}

#[test]
fn the_module_is_the_function_on_pytorchs_variables() {
    let mut vs = nn::VarStore::new(Device::Cpu);
    let config = LinearCrossEntropyConfig::new().out_features(&[4, 2]).bias(true);
    let module = LinearCrossEntropyLoss::new(vs.root(), 3, 5, config);
    let file = std::env::temp_dir().join(format!("linear-{}.safetensors", std::process::id()));
    vs.save(&file).unwrap();
    let mut saved = Tensor::read_safetensors(&file).unwrap();
    saved.sort_by(|a, b| a.0.cmp(&b.0));
    vs.load(&file).unwrap();
    std::fs::remove_file(file).unwrap();
    let [(bias_name, bias), (weight_name, weight)] = &saved[..] else { panic!("{saved:?}") };
    assert_eq!((bias_name.as_str(), bias.size()), ("linear.bias", vec![40]));
    assert_eq!((weight_name.as_str(), weight.size()), ("linear.weight", vec![40, 3]));
    let (input, target) = (randn([6, 3]).to_kind(Kind::Float), ones(&[6, 4, 2]));
    let (weight, bias) = (weight.view([5, 4, 2, 3]), bias.view([5, 4, 2]));
    let expected = LinearCrossEntropy::new().forward(&input, &weight, &target, Some(&bias));
    assert_eq!(module.forward(&input, &target), expected);
}

/// How far the peak of this process's memory rises above what it has now, in bytes.
#[cfg(target_os = "linux")]
fn peak_growth(work: impl FnOnce()) -> i64 {
    let read = |field: &str| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap() * 1024
    };
    // Resets the peak.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = read("VmRSS:");
    work();
    read("VmHWM:") - before
}

/// In a process of its own, because other tests take memory at the same time.
#[cfg(target_os = "linux")]
#[test]
fn memory_grows_with_the_chunk() {
    const ALONE: &str = "TCH_LOSSES_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let path = std::env::current_exe().unwrap();
        let name = std::thread::current().name().unwrap().to_owned();
        let child = std::process::Command::new(path).args(["--exact", &name, "--nocapture"]).env(ALONE, "1").output();
        let child = child.unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
        return;
    }
    let (rows, features, classes) = (2048, 64, 32_000);
    let randn = |shape: [i64; 2]| (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.1).set_requires_grad(true);
    for reduction in REDUCTIONS {
        let step = |rows: i64, classes: i64| {
            let (input, weight) = (randn([rows, features]), randn([classes, features]));
            let target = randint(classes, [rows]);
            let criterion = LinearCrossEntropy::new().z_loss(1e-4).chunking(Chunking::Rows(128)).reduction(reduction);
            criterion.forward(&input, &weight, &target, None).sum(None).backward();
        };
        // What libtorch sets up once; small, so that next to nothing of it is left for the other to use.
        step(300, 1000);
        let arguments = 2 * 4 * (rows + classes) * features;
        let growth = peak_growth(|| step(rows, classes)) - arguments;
        assert!(growth <= rows * classes * 4 / 8, "{reduction:?}: {growth} bytes");
    }
}

/// What libtorch's own layer and cross entropy give under autocast.
fn under_autocast(kind: Kind, of: impl Fn(&[Tensor]) -> Tensor, leaves: &[Tensor]) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = leaves.iter().map(|leaf| leaf.detach().set_requires_grad(true)).collect();
    let loss = with_autocast_to(Device::Cpu, Some(kind), || of(&leaves));
    let scaled = (&loss * 24.0).sum(None);
    let gradients = Tensor::run_backward(&[scaled], &leaves, false, false);
    std::iter::once(loss.detach()).chain(gradients).collect()
}

#[test]
fn chunks_under_autocast_are_libtorchs_layer() {
    let (rows, features, classes) = (40, 24, 90);
    let target = randint(classes, [rows]);
    let _ = target.get(5).fill_(-100);
    for (kind, digits) in [(Kind::BFloat16, 8), (Kind::Half, 11)] {
        let ulp = 0.5_f64.powi(digits);
        for (hidden, layer) in [
            (Kind::Float, Kind::Float),
            (Kind::BFloat16, Kind::Float),
            (Kind::Half, Kind::Float),
            (kind, kind),
            (Kind::Float, kind),
        ] {
            let leaves = [
                randn([rows, features]).to_kind(hidden),
                randn([classes, features]).to_kind(layer),
                randn([classes]).to_kind(layer),
            ];
            for (reduction, number) in REDUCTIONS.into_iter().zip([0, 1, 2]) {
                let name = format!("{kind:?} {hidden:?} {layer:?} {reduction:?}");
                let of_libtorch = |leaves: &[Tensor]| {
                    let logits = leaves[0].linear(&leaves[1], Some(&leaves[2]));
                    assert_eq!(logits.kind(), kind);
                    logits.cross_entropy_loss::<Tensor>(&target, None, tch::Reduction::Other(number), -100, 0.0)
                };
                let expected = under_autocast(kind, of_libtorch, &leaves);
                for (backend, size) in [(Backend::Auto, 16), (Backend::Composite, 16), (Backend::Auto, 40)] {
                    let criterion = LinearCrossEntropy::new().reduction(reduction).chunking(Chunking::Rows(size));
                    // A z-loss of nothing leaves the loss alone, and the chunks on.
                    let criterion = criterion.z_loss(f64::MIN_POSITIVE);
                    let ours = |leaves: &[Tensor]| criterion.forward(&leaves[0], &leaves[1], &target, Some(&leaves[2]));
                    let actual = with_backend(backend, || under_autocast(kind, ours, &leaves));
                    for (position, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                        assert_eq!((actual.kind(), actual.size()), (expected.kind(), expected.size()), "{name}");
                        let [actual, expected] = [actual, expected].map(|tensor| tensor.to_kind(Kind::Double));
                        let largest = expected.abs().max().double_value(&[]);
                        let far = (actual - expected).abs().max().double_value(&[]) / largest;
                        // The logits are the same. A gradient is a product of what is rounded to half precision.
                        let most = if position == 0 { 2e-6 } else { 4.0 * ulp };
                        assert!(far <= most, "{name} {backend:?} {size}, result {position}: {far:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn second_derivatives_of_chunks_are_those_of_the_definition_under_autocast() {
    let (input, weight) = (randn([6, 3]).to_kind(Kind::Float), randn([5, 3]).to_kind(Kind::Float));
    let second = |criterion: LinearCrossEntropy| {
        let leaves = [&input, &weight].map(|leaf| leaf.detach().set_requires_grad(true));
        let loss = with_autocast_to(Device::Cpu, Some(Kind::BFloat16), || {
            criterion.forward(&leaves[0], &leaves[1], &ones(&[6]), None)
        });
        let first = Tensor::run_backward(&[loss], &leaves, true, true);
        let of_first = first[0].square().sum(None) + first[1].square().sum(None);
        Tensor::run_backward(&[of_first], &leaves, false, false)
    };
    let (actual, expected) =
        (second(LinearCrossEntropy::new().chunking(Chunking::Rows(4))), second(LinearCrossEntropy::new()));
    for (actual, expected) in actual.iter().zip(&expected) {
        assert!(actual.allclose(expected, 3e-2, 1e-2, false), "{actual:?} {expected:?}");
    }
}

/// A z-loss whose slope is far more than that of the cross entropy leaves the latter alone where it counts nothing.
#[test]
fn an_impossible_target_keeps_its_slope_beside_a_z_loss() {
    for (backend, z_loss) in [Backend::Auto, Backend::Composite].into_iter().flat_map(|b| [(b, 0.0), (b, 0.05)]) {
        let weight = Tensor::from_slice(&[1e20, -1e20]).view([2, 1]).set_requires_grad(true);
        let input = Tensor::from_slice(&[1.0]).view([1, 1]);
        let criterion = LinearCrossEntropy::new().z_loss(z_loss).label_smoothing(0.5).chunking(Chunking::Rows(1));
        let loss = || criterion.forward(&input, &weight, &Tensor::from_slice(&[1_i64]), None);
        with_backend(backend, loss).backward();
        assert_eq!(weight.grad().double_value(&[1, 0]), -0.75, "{backend:?}, {z_loss}");
    }
}

/// `cargo test --release linear_cross_entropy::tests::time -- --ignored --nocapture`
#[test]
#[ignore = "measures and asserts nothing"]
fn time() {
    let number = |name: &str, default: i64| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (rows, features, classes) = (number("ROWS", 512), number("FEATURES", 256), number("CLASSES", 8192));
    let (size, rounds) = (number("CHUNK", 0), number("ROUNDS", 5));
    let chunking = if size == 0 { Chunking::default() } else { Chunking::Rows(size) };
    let randn = |shape: [i64; 2]| (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.03).set_requires_grad(true);
    let (mut input, mut weight) = (randn([rows, features]), randn([classes, features]));
    let target = randint(classes, [rows]);
    let criterion = LinearCrossEntropy::new().chunking(chunking);
    let mut times: Vec<f64> = (0..=rounds)
        .map(|_| {
            let start = std::time::Instant::now();
            criterion.forward(&input, &weight, &target, None).backward();
            let time = start.elapsed().as_secs_f64();
            input.zero_grad();
            weight.zero_grad();
            time
        })
        .skip(1)
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{chunking:?}: min {:.4} s, median {:.4} s", times[0], times[times.len() / 2]);
}
