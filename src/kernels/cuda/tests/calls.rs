//! How a call finds its kernels, and what that costs.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::time::Instant;

use tch::{Kind, Tensor};

use super::compare::assert_as_composite;
use super::{emulated, sources_of};
use crate::kernels::cuda::launch::{Kernel, Launch};
use crate::kernels::cuda::modules;
use crate::kernels::cuda::source::Recipe;
use crate::kernels::graph::{Recording, record};
use crate::kernels::number::Real;
use crate::random::{rand, randint, randn};
use crate::scoped::replaced;
use crate::{
    AsymmetricSingleLabelLoss, CosineEmbeddingLoss, CrossEntropyLoss, DiceLoss, GeneralizedBoxIouLoss, HuberLoss, Loss,
    MseLoss, MultiMarginLoss, Reduction, SigmoidFocalLoss, SoftmaxFocalLoss,
};

/// A loss of some tensors, with an option that is a number.
type Optional = (&'static str, Vec<Tensor>, fn(f64, &[Tensor]) -> Tensor);

fn optional() -> Vec<Optional> {
    let float = |tensor: Tensor| tensor.to_kind(Kind::Float);
    let rows = || vec![float(randn([7, 12])), randint(12, [7])];
    fn of(loss: impl Loss, tensors: &[Tensor]) -> Tensor {
        loss.f_forward(&tensors[0], &tensors[1]).unwrap()
    }
    let pair = || vec![float(randn([33])), float(randn([33]))];
    vec![
        ("huber", pair(), |delta, tensors| of(HuberLoss::new().delta(delta), tensors)),
        ("focal", vec![float(randn([33])), float(rand([33]))], |alpha, tensors| {
            of(SigmoidFocalLoss::new().alpha(alpha), tensors)
        }),
        ("softmax focal", rows(), |gamma, tensors| of(SoftmaxFocalLoss::new().gamma(gamma), tensors)),
        ("asymmetric", rows(), |gamma, tensors| of(AsymmetricSingleLabelLoss::new().gamma_neg(gamma), tensors)),
        ("cosine", vec![float(randn([7, 12])), float(randn([7, 12])), randint(2, [7]) * 2 - 1], |margin, tensors| {
            let loss = CosineEmbeddingLoss::new().margin(margin);
            loss.f_forward(&tensors[0], &tensors[1], &tensors[2]).unwrap()
        }),
    ]
}

#[test]
fn options_that_are_parameters_share_a_source() {
    for (name, tensors, compute) in optional() {
        let sources = |option: f64| sources_of(|| drop(compute(option, &tensors)));
        let first = sources(0.31);
        assert!(!first.is_empty() && first == sources(0.37), "{name}");
        // These stand in the text.
        let literals: BTreeSet<_> = [0.5, 1.0].into_iter().map(sources).collect();
        assert!(literals.len() == 2 && !literals.contains(&first), "{name}");
        // Whatever was computed before, a call has its own option.
        for option in [0.31, 0.37, 0.5, 1.0, 0.31] {
            assert_as_composite(&format!("{name} {option}"), &tensors, &[0], &|tensors| compute(option, tensors));
        }
    }
    // A number that the kernels of rows are handed besides those of a formula.
    let (scores, target) = (randn([7, 12]).to_kind(Kind::Float), randint(12, [7]));
    let sources =
        |margin: f64| sources_of(|| drop(MultiMarginLoss::new().margin(margin).f_forward(&scores, &target).unwrap()));
    assert_eq!(sources(0.31), sources(0.37));
}

#[test]
fn recipes_that_differ_anywhere_are_others() {
    fn scaled(factor: f64) -> Recording {
        record::<1>(|[x]| vec![x * Real::of(factor), x + Real::of(factor)])
    }
    fn one(_: &Recipe) -> String {
        "one".into()
    }
    fn two(_: &Recipe) -> String {
        "two".into()
    }
    let formula = scaled(3.5);
    let recipe = |kind, parameters, definitions: &str, formulas: Vec<Recording>, write| Recipe {
        kind,
        parameters,
        definitions: definitions.into(),
        formulas,
        write,
    };
    let recipes = [
        recipe(Kind::Float, 1, "", vec![scaled(3.5)], one),
        recipe(Kind::Half, 1, "", vec![scaled(3.5)], one),
        recipe(Kind::Float, 2, "", vec![scaled(3.5)], one),
        recipe(Kind::Float, 1, "#define A", vec![scaled(3.5)], one),
        recipe(Kind::Float, 1, "", vec![scaled(2.0)], one),
        recipe(Kind::Float, 1, "", vec![scaled(f64::NAN)], one),
        recipe(Kind::Float, 1, "", vec![scaled(f64::INFINITY)], one),
        recipe(Kind::Float, 1, "", vec![formula.wanted(&[true, false])], one),
        recipe(Kind::Float, 1, "", vec![formula.wanted(&[false, true])], one),
        recipe(Kind::Float, 1, "", vec![scaled(3.5), scaled(3.5)], one),
        recipe(Kind::Float, 1, "", vec![], one),
        recipe(Kind::Float, 1, "", vec![scaled(3.5)], two),
    ];
    for (i, first) in recipes.iter().enumerate() {
        for (j, second) in recipes.iter().enumerate() {
            assert_eq!(first == second, i == j, "{i} {j}");
        }
        assert_eq!(modules::text_of(first.clone()), first.text());
    }
    assert!(recipes[0] == recipe(Kind::Float, 1, "", vec![scaled(4.5)], one), "a parameter is not in the text");
    // Two parameters that happen to be equal are one, which is another formula.
    let both = |a, b| record::<1>(|[x]| vec![x * Real::of(a) + Real::of(b)]);
    assert!(both(3.5, 4.5) == both(4.5, 3.5) && both(3.5, 3.5) != both(3.5, 4.5));
    assert_eq!((both(3.5, 4.5).parameters, both(3.5, 3.5).parameters), (vec![3.5, 4.5], vec![3.5]));
}

/// How kernels are found: by what their source is made of, or by the source, which is written for that.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Way {
    Recipe,
    Text,
}

thread_local! {
    static TIMED: Cell<Option<Way>> = const { Cell::new(None) };
}

/// How kernels that do nothing are found, where that is timed.
pub(super) fn timed() -> Option<Way> {
    TIMED.get()
}

/// A GPU that takes no time.
struct Nothing;

impl Launch for Nothing {
    unsafe fn launch(&self, _: Kernel, _: u32, _: &mut [*mut c_void]) -> Result<(), String> {
        Ok(())
    }
}

pub(super) fn nothing(way: Way, recipe: Recipe) -> Box<dyn Launch> {
    match way {
        Way::Recipe => _ = modules::text_of(recipe),
        Way::Text => modules::find_by_text(&recipe.text()),
    }
    Box::new(Nothing)
}

/// Microseconds of a call, forward and backward, on the host: the median of some hundred calls.
fn microseconds(way: Way, call: &dyn Fn()) -> f64 {
    let time = || {
        let begin = Instant::now();
        call();
        begin.elapsed().as_secs_f64() * 1e6
    };
    replaced(&TIMED, Some(way), || {
        emulated(|| {
            let mut times: Vec<f64> = (0..900).map(|_| time()).skip(200).collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        })
    })
}

/// What the host does for a call of each engine, with kernels that take no time. Run it alone, with optimisation:
/// `cargo test --release --lib the_host_side -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn the_host_side_of_a_call() {
    let float = |tensor: Tensor| tensor.to_kind(Kind::Float);
    let rows = || [float(randn([64, 100])), randint(100, [64])];
    let losses: Vec<(&str, Box<dyn Loss>, [Tensor; 2])> = vec![
        ("pointwise: MSE", Box::new(MseLoss::new()), [float(randn([64])), float(randn([64]))]),
        (
            "pointwise: sigmoid focal",
            Box::new(SigmoidFocalLoss::new().gamma(1.7)),
            [float(randn([64])), float(rand([64]))],
        ),
        (
            "boxes: GIoU",
            Box::new(GeneralizedBoxIouLoss::new().reduction(Reduction::Mean)),
            [0, 1].map(|_| {
                let corner = randn([64, 2]);
                float(Tensor::cat(&[&corner, &(&corner + 1.5)], 1))
            }),
        ),
        ("rows: cross entropy", Box::new(CrossEntropyLoss::new()), rows()),
        ("rows: softmax focal", Box::new(SoftmaxFocalLoss::new().gamma(1.7)), rows()),
        ("rows: asymmetric", Box::new(AsymmetricSingleLabelLoss::new()), rows()),
        ("region: Dice", Box::new(DiceLoss::new()), [float(rand([2, 3, 16, 16])), randint(3, [2, 16, 16])]),
    ];
    println!("| call | by its text | by its recipe |\n|---|---|---|");
    let print = |name: &str, call: &dyn Fn()| {
        let [text, recipe] = [Way::Text, Way::Recipe].map(|way| microseconds(way, call));
        println!("| {name} | {text:.1} us | {recipe:.1} us |");
    };
    for (name, loss, [input, target]) in &losses {
        let input = input.detach().set_requires_grad(true);
        print(name, &|| loss.f_forward(&input, target).unwrap().f_backward().unwrap());
    }
    let (x, y) = (float(randn([64, 32])).set_requires_grad(true), float(randn([64, 32])));
    let labels = randint(2, [64]) * 2 - 1;
    let loss = CosineEmbeddingLoss::new().margin(0.1);
    print("embedding: cosine", &|| loss.f_forward(&x, &y, &labels).unwrap().f_backward().unwrap());
}
