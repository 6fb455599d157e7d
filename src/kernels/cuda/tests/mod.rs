//! The engines of CUDA, emulated on the CPU, against the tensor operations that define the losses.

mod autocast;
mod boxes;
mod calls;
mod compare;
mod compiled;
mod distances;
mod embedding;
mod fallback;
mod images;
mod invalid;
mod pairs;
mod partial;
mod region;
mod rows;
mod triplets;
mod unit;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::{CStr, c_void};

use tch::{Kind, Tensor};

use self::compiled::{assert_compile, installed_nvrtc};
use super::emulation::{Emulated, InOrder, emulated_cuda as emulated};
use super::launch::{Kernel, Launch};
use super::modules;
use super::source::Recipe;
use crate::random::{rand, randn};
use crate::scoped::replaced;
use crate::{
    Backend, BceWithLogitsLoss, CauchyLoss, CharbonnierLoss, GemanMcClureLoss, HingeEmbeddingLoss, HuberLoss, L1Loss,
    LogCoshLoss, Loss, MapeLoss, MseLoss, MsleLoss, PoissonNllLoss, QuantileLoss, Reduction, SigmoidFocalLoss,
    SmoothL1Loss, SoftMarginLoss, WelschLoss, with_backend,
};

thread_local! {
    /// The order of the threads of a block.
    static ORDER: Cell<u32> = const { Cell::new(1) };
    /// Whether sources are noted, but not compiled.
    static NOTED_ALONE: Cell<bool> = const { Cell::new(false) };
    /// A text of the sources, and what stands in its place.
    static MUTATION: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
    /// The sources whose kernels this thread has asked for.
    static SOURCES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// The kernels that this thread has launched.
    static LAUNCHED: RefCell<Vec<&'static CStr>> = const { RefCell::new(Vec::new()) };
}

/// What the kernels of a source are run by. Takes note of the source.
pub(super) fn launcher(source: &str, kernels: &[Kernel]) -> Box<dyn Launch> {
    let source = MUTATION.with_borrow(|mutation| match mutation {
        Some((text, other)) => source.replace(text, other),
        None => source.to_owned(),
    });
    if NOTED_ALONE.get() {
        SOURCES.with_borrow_mut(|sources| sources.push(source));
        return Box::new(Refusal);
    }
    let emulated = Emulated::or_panic(&source, kernels);
    SOURCES.with_borrow_mut(|sources| sources.push(source));
    Box::new(Noted(InOrder(emulated, ORDER.get())))
}

/// Takes note of what is launched.
struct Noted(InOrder);

impl Launch for Noted {
    unsafe fn launch(&self, kernel: Kernel, grid: u32, parameters: &mut [*mut c_void]) -> Result<(), String> {
        LAUNCHED.with_borrow_mut(|launched| launched.push(kernel.name));
        if fallback::fails() {
            return Err("refused".into());
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.launch(kernel, grid, parameters) }
    }
}

/// The same of what a source is made of. Its text is the one that was found for it, which has to be the one that it has
/// now: with other options, which are parameters, and where something that is not in the recipe is another one.
pub(super) fn launcher_of(recipe: Recipe, kernels: &[Kernel]) -> Option<Box<dyn Launch>> {
    if let Some(way) = calls::timed() {
        return Some(calls::nothing(way, recipe));
    }
    if fallback::fails() {
        return None;
    }
    let text = recipe.text();
    let known = modules::text_of(recipe);
    assert_eq!(known, text, "one recipe has two texts");
    Some(launcher(known, kernels))
}

/// A GPU that launches nothing.
struct Refusal;

impl Launch for Refusal {
    unsafe fn launch(&self, _: Kernel, _: u32, _: &mut [*mut c_void]) -> Result<(), String> {
        Err("refused".into())
    }
}

/// Calls `work` with a GPU that launches nothing, so that tensor operations compute what it asks for. Returns the
/// sources of the kernels that it would have launched.
fn sources_of(work: impl FnOnce()) -> BTreeSet<String> {
    SOURCES.take();
    replaced(&NOTED_ALONE, true, || emulated(work));
    SOURCES.take().into_iter().collect()
}

/// Calls `work` with kernels that have `other` in place of the `text` in their source.
fn mutated<T>(text: &str, other: &str, work: impl FnOnce() -> T) -> T {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            MUTATION.set(None);
        }
    }
    MUTATION.set(Some((text.to_owned(), other.to_owned())));
    let _restore = Restore;
    work()
}

/// Fails unless results are right, by kernels that have this `text`, and are not with `other` in its place. The wrong kernel
/// runs first: the results of the right one may be in the memory that it leaves as it is.
#[track_caller]
fn assert_caught(text: &str, other: &str, is_right: impl Fn() -> bool) {
    assert!(mutated(text, other, || !is_right()), "{text} can be {other}");
    SOURCES.take();
    assert!(is_right(), "{text}");
    assert!(SOURCES.take().iter().any(|source| source.contains(text)), "no kernel has {text}");
}

/// A loss, and what draws its input and target.
type Row = (&'static str, Box<dyn Loss>, fn(i64) -> [Tensor; 2]);

fn reals(length: i64) -> [Tensor; 2] {
    [randn([length]), randn([length])]
}

fn positive(length: i64) -> [Tensor; 2] {
    [rand([length]), rand([length])]
}

fn logits(length: i64) -> [Tensor; 2] {
    [randn([length]) * 5, rand([length])]
}

fn signs(length: i64) -> [Tensor; 2] {
    [randn([length]), randn([length]).sign()]
}

fn rows(reduction: Reduction) -> Vec<Row> {
    macro_rules! loss {
        ($loss:expr) => {
            Box::new($loss.reduction(reduction))
        };
    }
    vec![
        ("mse", loss!(MseLoss::new()), reals),
        ("l1", loss!(L1Loss::new()), reals),
        ("smooth l1", loss!(SmoothL1Loss::new().beta(0.7)), reals),
        ("huber", loss!(HuberLoss::new().delta(1.3)), reals),
        ("charbonnier", loss!(CharbonnierLoss::new()), reals),
        ("cauchy", loss!(CauchyLoss::new().scale(0.3)), reals),
        ("geman-mcclure", loss!(GemanMcClureLoss::new()), reals),
        ("welsch", loss!(WelschLoss::new()), reals),
        ("log-cosh", loss!(LogCoshLoss::new()), reals),
        ("quantile", loss!(QuantileLoss::new().quantiles(0.2)), reals),
        ("msle", loss!(MsleLoss::new()), positive),
        ("mape", loss!(MapeLoss::new()), positive),
        ("bce with logits", loss!(BceWithLogitsLoss::new()), logits),
        ("sigmoid focal", loss!(SigmoidFocalLoss::new().gamma(1.7)), logits),
        ("poisson", loss!(PoissonNllLoss::new()), logits),
        ("soft margin", loss!(SoftMarginLoss::new()), signs),
        ("hinge embedding", loss!(HingeEmbeddingLoss::new()), signs),
    ]
}

/// The loss and the gradient of the input, in double precision, given a gradient of the loss that is not 1.
fn results(loss: &dyn Loss, [input, target]: [&Tensor; 2]) -> [Tensor; 2] {
    let input = input.detach().set_requires_grad(true);
    let loss = loss.f_forward(&input, target).unwrap();
    let grad = loss.ones_like() * 0.75;
    let gradient = Tensor::run_backward(&[(&loss * grad).sum(None)], &[&input], false, false).remove(0);
    [loss, gradient].map(|tensor| tensor.detach().to_kind(Kind::Double))
}

/// How far the numbers are at most from the expected ones, less what is allowed.
fn excess(actual: &Tensor, expected: &Tensor, kind: Kind) -> f64 {
    let (relative, absolute) = match kind {
        Kind::Double => (1e-12, 1e-12),
        Kind::Float => (2e-5, 1e-6),
        Kind::Half => (2e-3, 1e-5),
        _ => (1e-2, 1e-4),
    };
    let far = (actual - expected).abs() - (expected.abs() * relative + absolute);
    // Infinities are equal and have no difference.
    let equal = actual.eq_tensor(expected).logical_or(&actual.isnan().logical_and(&expected.isnan()));
    far.masked_fill(&equal, 0.0).max().double_value(&[])
}

fn assert_near(name: &str, actual: &Tensor, expected: &Tensor, kind: Kind) {
    let excess = excess(actual, expected, kind);
    // Neither does NaN pass.
    assert!(excess <= 0.0, "{name} {kind:?}: {excess:e} too far: {actual:?} {expected:?}");
}

fn check(reduction: Reduction, kind: Kind, (name, loss, draw): &Row) {
    for length in [1, 1000, 4099] {
        let [input, target] = draw(length).map(|tensor| tensor.to_kind(kind));
        let arguments = [&input, &target];
        let [value, gradient] = emulated(|| results(&**loss, arguments));
        let [expected, of_input] = with_backend(Backend::Composite, || results(&**loss, arguments));
        assert_near(&format!("{name}, {reduction:?} of {length}"), &value, &expected, kind);
        assert_near(&format!("{name}, {reduction:?} of {length}, gradient"), &gradient, &of_input, kind);
    }
}

#[test]
fn emulated_formulas_give_what_the_composites_do() {
    rows(Reduction::Mean).iter().for_each(|row| check(Reduction::Mean, Kind::Float, row));
}

#[test]
fn emulated_kernels_take_every_kind_and_reduction() {
    for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
        for row in rows(reduction).iter().filter(|(name, ..)| ["mse", "sigmoid focal"].contains(name)) {
            [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16]
                .iter()
                .for_each(|kind| check(reduction, *kind, row));
        }
    }
}

#[test]
fn sources_compile_for_gpus() {
    let Some(nvrtc) = installed_nvrtc() else {
        println!("left out: this libtorch came without NVRTC");
        return;
    };
    for (_, loss, draw) in rows(Reduction::Mean) {
        let [input, target] = draw(5).map(|tensor| tensor.to_kind(Kind::Float));
        let _ = emulated(|| results(&*loss, [&input, &target]));
    }
    let newest = nvrtc.architectures().iter().max().copied().unwrap();
    assert_compile(&nvrtc, SOURCES.take());
    // A GPU that is newer than the compiler gets what its driver translates.
    let kernel = "extern \"C\" __global__ void kernel() {}";
    assert!(String::from_utf8_lossy(&nvrtc.compile(kernel, newest + 1).unwrap()).contains(".target"));
    assert!(nvrtc.compile("not C++", 90).is_err_and(|log| log.contains("error")));
}
