//! A wrong loss is caught: each test breaks the losses in one way and expects the comparison to fail.

mod common;

use std::collections::BTreeMap;

use common::Golden;
use parity::adapters::{self, Outputs};
use parity::arguments::{Argument, Arguments, EvalError};
use parity::case::Value;
use parity::compare::{Sides, Verdict, compare_case};
use parity::eval::{Runner, run_adapter};
use parity::fuzz::call::Call;
use parity::fuzz::chance::{call, losses};
use parity::fuzz::class::Class;
use parity::fuzz::judge::judge;
use parity::fuzz::side::crate_itself;
use tch::{Device, Kind, Tensor};
use tch_losses::{Backend, LossError};

/// How many cases of each loss fail with a broken runner.
fn failures(runner: &Runner) -> BTreeMap<&'static str, usize> {
    let golden = Golden::read();
    let mut failures = BTreeMap::new();
    for (case, verdict) in golden.verdicts(runner) {
        let name = adapters::find(&case.reference).map_or("none", |adapter| adapter.name);
        *failures.entry(name).or_default() += usize::from(matches!(verdict, Verdict::Failed(_)));
    }
    failures
}

/// Every one of the losses fails.
fn assert_caught(runner: &Runner, losses: impl IntoIterator<Item = &'static str>) {
    let failures = failures(runner);
    for loss in losses {
        assert!(failures[loss] > 0, "{loss}: the mutation was not noticed");
    }
}

/// The losses of torch.nn, each of which has cases of every sort among the golden files.
fn every_loss() -> impl Iterator<Item = &'static str> {
    adapters::all().filter(|adapter| adapter.references[0].starts_with("torch.nn.")).map(|adapter| adapter.name)
}

/// All but the one whose result is always a mean.
fn losses_with_a_reduction() -> impl Iterator<Item = &'static str> {
    every_loss().filter(|name| *name != "AdaptiveLogSoftmaxWithLoss")
}

/// The adapters with something done to their outputs.
fn with_outputs(change: impl Fn(&Tensor) -> Tensor) -> impl Fn(&str, &mut Arguments) -> Result<Outputs, EvalError> {
    move |reference, arguments| {
        let outputs = run_adapter(reference, arguments)?;
        Ok(Outputs { tensors: outputs.tensors.iter().map(&change).collect(), state: outputs.state })
    }
}

#[test]
fn a_wrong_sign_is_caught() {
    assert_caught(&with_outputs(|loss| -loss), every_loss());
}

#[test]
fn a_detached_gradient_is_caught() {
    assert_caught(&with_outputs(Tensor::detach), every_loss());
}

#[test]
fn a_wrong_gradient_of_a_right_value_is_caught() {
    let stretched = |loss: &Tensor| loss.detach() + (loss - loss.detach()) * 1.05;
    assert_caught(&with_outputs(stretched), every_loss());
}

#[test]
fn a_dropped_weight_is_caught() {
    let runner = |reference: &str, arguments: &mut Arguments| {
        arguments.take("weight");
        run_adapter(reference, arguments)
    };
    let weighted = ["MSELoss", "L1Loss", "HuberLoss", "CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss"];
    assert_caught(&runner, weighted.into_iter().chain(["MultiMarginLoss", "MultiLabelSoftMarginLoss"]));
}

#[test]
fn a_swapped_mean_and_sum_is_caught() {
    let runner = |reference: &str, arguments: &mut Arguments| {
        let swapped = match arguments.reduction_name()?.as_str() {
            "mean" => "sum",
            "sum" => "mean",
            other => other,
        }
        .to_owned();
        arguments.insert("reduction", Argument::Plain(Value::Text(swapped)));
        run_adapter(reference, arguments)
    };
    assert_caught(&runner, losses_with_a_reduction());
}

#[test]
fn an_accepted_bad_call_is_caught() {
    let runner = |reference: &str, arguments: &mut Arguments| {
        run_adapter(reference, arguments).or_else(|_| Ok(Tensor::from(0.0).into()))
    };
    assert_caught(&runner, every_loss());
}

#[test]
fn a_rejected_good_call_is_caught() {
    let runner = |_: &str, _: &mut Arguments| Err(EvalError::Rejected("no".into()));
    assert_caught(&runner, every_loss());
}

#[test]
fn a_panic_is_caught_even_where_an_error_is_expected() {
    let runner = |_: &str, _: &mut Arguments| panic!("at once");
    let golden = Golden::read();
    assert!(golden.verdicts(&runner).iter().all(|(_, verdict)| matches!(verdict, Verdict::Failed(_))));
}

#[test]
fn a_wrong_second_derivative_is_caught() {
    // Right value, right gradient, but a gradient that is a constant.
    let runner = |_: &str, arguments: &mut Arguments| {
        let (input, target) = (arguments.tensor("input")?, arguments.tensor("target")?);
        let distance = &input - &target;
        let value = distance.square().mean(None).detach();
        let slope = (distance * 2.0 / input.numel() as f64).detach();
        let moved = (&input - input.detach()) - (&target - target.detach());
        Ok((value + (moved * slope).sum(None)).into())
    };
    let golden = Golden::read();
    let caught = golden.verdicts(&runner).into_iter().any(|(case, verdict)| {
        let is_plain = case.reference == "torch.nn.MSELoss" && case.second_order.is_some() && case.options.is_empty();
        is_plain && matches!(verdict, Verdict::Failed(reason) if reason.starts_with("grad2/"))
    });
    assert!(caught, "no second derivative of MSELoss was compared");
}

#[test]
fn a_single_bit_is_caught_where_bitwise_equality_is_promised() {
    let golden = Golden::read();
    let expected = golden.evaluate(Device::Cpu, &run_adapter);
    let next = |loss: &Tensor| loss * (1.0 + f64::from(f32::EPSILON));
    let actual = golden.evaluate(Device::Cpu, &with_outputs(next));
    let sides =
        Sides { expected: &expected, actual: &actual, truth: None, bitwise: true, backend: tch_losses::Backend::Auto };
    for adapter in adapters::all().filter(|adapter| adapter.equality == adapters::Equality::Bitwise) {
        let mut cases = golden.cases.iter().filter(|case| adapter.references.contains(&case.reference.as_str()));
        let caught = cases.any(|case| matches!(compare_case(case, sides), Verdict::Failed(_)));
        assert!(caught, "{}: a changed bit was not noticed", adapter.name);
    }
}

/// With its arguments changed so, some case of the loss is computed and differs.
fn assert_changed_arguments_are_caught(reference: &str, change: impl Fn(&mut Arguments) -> Result<(), EvalError>) {
    let runner = |name: &str, arguments: &mut Arguments| {
        if name == reference {
            change(arguments)?;
        }
        run_adapter(name, arguments)
    };
    let golden = Golden::read();
    let caught = golden.verdicts(&runner).iter().any(|(case, verdict)| case.reference == reference && differs(verdict));
    assert!(caught, "{reference}: the mutation was not noticed");
}

/// A loss of this formula equals the reference in the case, and the broken one does not.
fn assert_a_broken_formula_is_caught(id: &str, formula: impl Fn(&mut Arguments, bool) -> Result<Tensor, EvalError>) {
    let golden = Golden::read();
    let verdict = |broken| {
        let runner = |_: &str, arguments: &mut Arguments| Ok(formula(arguments, broken)?.into());
        golden.verdicts(&runner).into_iter().find(|(case, _)| case.id == id).expect("a golden case").1
    };
    assert!(matches!(verdict(false), Verdict::Equal(_)), "{id}: {:?}", verdict(false));
    assert!(differs(&verdict(true)), "{id}: the mutation was not noticed");
}

/// A value or a gradient is another one; a call that was rejected shows nothing.
fn differs(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Failed(reason) if ["output/", "grad/"].iter().any(|place| reason.starts_with(place)))
}

fn insert_number(arguments: &mut Arguments, name: &str, number: f64) {
    arguments.insert(name, Argument::Plain(Value::Float(number)));
}

#[test]
fn a_focal_loss_with_another_power_is_caught() {
    for reference in ["torchvision.ops.sigmoid_focal_loss", "kornia.losses.FocalLoss", "monai.losses.FocalLoss"] {
        assert_changed_arguments_are_caught(reference, |arguments| {
            let gamma = arguments.number("gamma", 2.0)?;
            insert_number(arguments, "gamma", gamma + 0.01);
            Ok(())
        });
    }
}

#[test]
fn a_focal_loss_that_swaps_its_balance_is_caught() {
    assert_changed_arguments_are_caught("torchvision.ops.sigmoid_focal_loss", |arguments| {
        let alpha = arguments.number("alpha", 0.25)?;
        insert_number(arguments, "alpha", if alpha < 0.0 { alpha } else { 1.0 - alpha });
        Ok(())
    });
}

#[test]
fn a_dice_loss_smoothed_in_the_wrong_place_is_caught() {
    for (from, to) in [("smooth_nr", "smooth_dr"), ("smooth_dr", "smooth_nr")] {
        assert_changed_arguments_are_caught("monai.losses.DiceLoss", |arguments| {
            let (moved, other) = (arguments.number(from, 1e-5)?, arguments.number(to, 1e-5)?);
            insert_number(arguments, from, 0.0);
            insert_number(arguments, to, moved + other);
            Ok(())
        });
    }
}

#[test]
fn an_asymmetric_loss_without_its_clip_is_caught() {
    assert_changed_arguments_are_caught("timm.loss.AsymmetricLossMultiLabel", |arguments| {
        insert_number(arguments, "clip", 0.0);
        Ok(())
    });
}

#[test]
fn a_jaccard_index_over_the_sum_instead_of_the_union_is_caught() {
    let id = "segmentation_models_pytorch.losses.JaccardLoss/binary_options/f64/0";
    assert_a_broken_formula_is_caught(id, |arguments, broken| {
        let (input, target) = (arguments.tensor("y_pred")?.sigmoid(), arguments.tensor("y_true")?);
        let intersection = (&input * &target).sum(None);
        let both = input.sum(None) + target.sum(None);
        let union = if broken { both } else { both - &intersection };
        Ok(1.0 - intersection / union)
    });
}

#[test]
fn a_generalized_iou_without_the_enclosing_box_is_caught() {
    let id = "torchvision.ops.generalized_box_iou_loss/options/f64/0";
    assert_a_broken_formula_is_caught(id, |arguments, broken| {
        let (input, target) = (arguments.tensor("boxes1")?, arguments.tensor("boxes2")?);
        let corners = |boxes: &Tensor| (boxes.narrow(-1, 0, 2), boxes.narrow(-1, 2, 2));
        let ((input_low, input_high), (target_low, target_high)) = (corners(&input), corners(&target));
        let area = |size: Tensor| size.prod_dim_int(-1, false, None);
        let intersection = area((input_high.minimum(&target_high) - input_low.maximum(&target_low)).relu());
        let union = area(&input_high - &input_low) + area(&target_high - &target_low) - &intersection;
        let hull = area(input_high.maximum(&target_high) - input_low.minimum(&target_low));
        let overlap = intersection / (&union + 1e-7);
        let empty = (&hull - union) / (hull + 1e-7);
        let losses = overlap.f_rsub_scalar(1)?;
        Ok(if broken { losses } else { losses + empty }.mean(None))
    });
}

/// The fuzzer finds a broken engine within a few thousand calls, and nothing of the kind with the crate as it is.
fn assert_the_fuzzer_finds(
    class: Class,
    engine: impl Fn(Result<Vec<Tensor>, LossError>) -> Result<Vec<Tensor>, LossError>,
) {
    const CALLS: u64 = 3000;
    let losses = losses();
    let broken = |backend: Backend, call: &Call, arguments: &[Tensor], kind: Kind| {
        let outputs = crate_itself(backend, call, arguments, kind);
        if backend == Backend::Auto { engine(outputs) } else { outputs }
    };
    let found = (0..CALLS).any(|seed| {
        let call = call(seed, &losses).unwrap();
        let has = |verdict: parity::fuzz::judge::Verdict| verdict.findings.iter().any(|finding| finding.class == class);
        has(judge(&call, &broken)) && !has(judge(&call, &crate_itself))
    });
    assert!(found, "{class:?}: the mutation was not noticed");
}

fn map(outputs: Result<Vec<Tensor>, LossError>, change: impl Fn(&Tensor) -> Tensor) -> Result<Vec<Tensor>, LossError> {
    outputs.map(|tensors| tensors.iter().map(change).collect())
}

#[test]
fn the_fuzzer_finds_broken_engines() {
    std::panic::set_hook(Box::new(|_| {}));
    let stretched = |by: f64| move |loss: &Tensor| loss.detach() + (loss - loss.detach()) * by;
    assert_the_fuzzer_finds(Class::Value, |outputs| map(outputs, |loss| loss * 1.001));
    // Little, but always the same, as rounding is not.
    assert_the_fuzzer_finds(Class::Value, |outputs| map(outputs, |loss| loss * 1.00002));
    assert_the_fuzzer_finds(Class::Gradient, |outputs| map(outputs, stretched(1.0002)));
    assert_the_fuzzer_finds(Class::Value, |outputs| map(outputs, |loss| loss.nan_to_num(0.0, None, None)));
    assert_the_fuzzer_finds(Class::Value, |outputs| map(outputs, Tensor::detach));
    assert_the_fuzzer_finds(Class::Gradient, |outputs| map(outputs, stretched(1.05)));
    assert_the_fuzzer_finds(Class::Accepts, |outputs| outputs.or_else(|_| Ok(vec![Tensor::from(0.0)])));
    assert_the_fuzzer_finds(Class::Accepts, |_| Err(LossError::Undefined { argument: "input" }));
    assert_the_fuzzer_finds(Class::Panic, |_| panic!("at once"));
    assert_the_fuzzer_finds(Class::Raw, |outputs| {
        outputs.map_err(|_| tch::TchError::Torch("an internal assertion".into()).into())
    });
}
