//! A wrong loss is caught: each test breaks the losses in one way and expects the comparison to fail.

mod common;

use std::collections::BTreeMap;

use common::Golden;
use parity::adapters::{self, Outputs};
use parity::arguments::{Argument, Arguments, EvalError};
use parity::case::Value;
use parity::compare::{Sides, Verdict, compare_case};
use parity::eval::{Runner, run_adapter};
use tch::Tensor;

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
    let expected = golden.evaluate(&run_adapter);
    let next = |loss: &Tensor| loss * (1.0 + f64::from(f32::EPSILON));
    let actual = golden.evaluate(&with_outputs(next));
    let sides = Sides { expected: &expected, actual: &actual, truth: None, bitwise: true, backend: Backend::Auto };
    for adapter in adapters::all().filter(|adapter| adapter.equality == adapters::Equality::Bitwise) {
        let mut cases = golden.cases.iter().filter(|case| adapter.references.contains(&case.reference.as_str()));
        let caught = cases.any(|case| matches!(compare_case(case, sides), Verdict::Failed(_)));
        assert!(caught, "{}: a changed bit was not noticed", adapter.name);
    }
}
