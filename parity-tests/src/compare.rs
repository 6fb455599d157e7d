//! Holds the results of two sides beside each other.
//!
//! The rule of equality: bit by bit where the adapter says so, the run is on the CPU and nothing has half precision,
//! which the crate computes in single precision; otherwise within the tolerance that `torch.testing.assert_close` gives
//! the dtype, or closer to the result in double precision than the reference is.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor};
use tch_losses::Backend;

use crate::adapters;
use crate::case::{Autocast, Case, Expect};
use crate::differences::{self, Difference, Rule};
use crate::numbers::{Elements, rounded, tolerance};
use crate::results::{CaseResult, Results, Status};

/// What a comparison rests on.
#[derive(Debug, Clone, Copy)]
pub struct Sides<'a> {
    /// The oracle's results.
    pub expected: &'a Results,
    /// The crate's results.
    pub actual: &'a Results,
    /// The oracle's results in double precision, where they are at hand.
    pub truth: Option<&'a Results>,
    /// Whether bitwise equality is asked for where an adapter promises it.
    pub bitwise: bool,
    /// What computed the crate's results.
    pub backend: Backend,
}

/// What the comparison of one case found.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// The results are equal.
    Equal(Measure),
    /// Both sides reject the call, as they should.
    Rejected,
    /// The sides differ as the table of deliberate differences says.
    Different(&'static Difference),
    /// The reference cannot run the case here, and says why.
    NotChecked(String),
    /// The sides differ.
    Failed(String),
}

/// How close equal results are.
#[derive(Debug, Clone, Default)]
pub struct Measure {
    /// The kind of the first output.
    pub kind: Option<Kind>,
    /// Whether all tensors are equal bit by bit.
    pub bitwise: bool,
    /// The largest distance in units in the last place.
    pub ulps: u64,
    /// The largest absolute distance.
    pub absolute: f64,
    /// The largest distance in units of what the tolerance allows, of elements within it.
    pub of_tolerance: f64,
    /// How many gradients were compared.
    pub gradients: usize,
    /// How many second derivatives were compared.
    pub second_order: usize,
    /// Whether the tolerance was met only with the help of the result in double precision.
    pub by_truth: bool,
}

/// Compares one case.
pub fn compare_case(case: &Case, sides: Sides) -> Verdict {
    let verdict = compare_strictly(case, sides);
    let Verdict::Failed(_) = &verdict else { return verdict };
    match differences::find(&case.id) {
        Some(difference) if holds(difference.rule, case, sides) => Verdict::Different(difference),
        _ => verdict,
    }
}

fn compare_strictly(case: &Case, sides: Sides) -> Verdict {
    let (Some(expected), Some(actual)) = (sides.expected.cases.get(&case.id), sides.actual.cases.get(&case.id)) else {
        return Verdict::Failed("a side has no result for it".into());
    };
    let (said, answered) = (message(expected), message(actual));
    match (case.expect, expected.status, actual.status) {
        (_, _, Status::Panic) => Verdict::Failed(format!("the crate panics: {answered}")),
        (_, Status::Unsupported, _) => Verdict::NotChecked(said.into()),
        (_, _, Status::Unsupported) => Verdict::Failed(format!("not supported: {answered}")),
        (Expect::Error, Status::Error, Status::Error) => Verdict::Rejected,
        (Expect::Error, Status::Error, _) => {
            Verdict::Failed(format!("accepted, though the reference rejects it: {said}"))
        }
        (Expect::Error, _, _) => Verdict::Failed("the reference accepts it, though the case expects an error".into()),
        (Expect::Ok, Status::Error, _) if said.contains("not implemented for") => Verdict::NotChecked(said.into()),
        (Expect::Ok, Status::Ok, Status::Ok) => match compare_tensors(case, expected, actual, sides) {
            Ok(measure) => Verdict::Equal(measure),
            Err(error) => Verdict::Failed(format!("{error:#}")),
        },
        (Expect::Ok, Status::Ok, _) => Verdict::Failed(format!("rejected: {answered}")),
        (Expect::Ok, _, _) => Verdict::Failed(format!("the reference fails: {said}")),
    }
}

fn message(result: &CaseResult) -> &str {
    result.message.as_deref().unwrap_or_default()
}

/// The names of the tensors of a case on both sides.
fn tensor_names<'a>(case: &Case, sides: Sides<'a>) -> BTreeSet<&'a str> {
    let prefix = format!("{}:", case.id);
    let of = |results: &'a Results| {
        let from = results.tensors.range(prefix.clone()..);
        from.map_while(|(key, _)| key.strip_prefix(&prefix)).collect::<Vec<_>>()
    };
    of(sides.expected).into_iter().chain(of(sides.actual)).collect()
}

fn compare_tensors(case: &Case, expected: &CaseResult, actual: &CaseResult, sides: Sides) -> Result<Measure> {
    ensure!(
        expected.outputs == actual.outputs,
        "{:?} outputs, expected {:?}",
        actual.outputs.unwrap_or(0),
        expected.outputs.unwrap_or(0)
    );
    let adapter = adapters::find(&case.reference);
    let names = tensor_names(case, sides);
    // The crate computes half precision in single precision and rounds once, and so nearer to the truth than the
    // reference.
    let is_half = |name: &&str| {
        let tensor = sides.expected.tensors.get(&format!("{}:{name}", case.id));
        tensor.is_some_and(|tensor| matches!(tensor.kind(), Kind::Half | Kind::BFloat16))
    };
    let exact = sides.bitwise
        && adapter.is_some_and(|adapter| adapter.equality.is_bitwise(sides.backend))
        && !names.iter().any(is_half);
    let mut measure = Measure { bitwise: true, ..Measure::default() };
    for name in names {
        // A reference without a second derivative leaves nothing to compare.
        if name.starts_with("grad2/") && expected.second_order.is_some() {
            continue;
        }
        compare_tensor(case, name, exact, sides, &mut measure).with_context(|| name.to_owned())?;
    }
    if let (Some(reason), None) = (&actual.second_order, &expected.second_order) {
        anyhow::bail!("no second derivative: {reason}");
    }
    Ok(measure)
}

fn compare_tensor(case: &Case, name: &str, exact: bool, sides: Sides, measure: &mut Measure) -> Result<()> {
    let key = format!("{}:{name}", case.id);
    let (expected, actual) = (sides.expected.tensors.get(&key), sides.actual.tensors.get(&key));
    let (expected, actual) = match (expected, actual) {
        (Some(expected), Some(actual)) => (expected, actual),
        (Some(_), None) => anyhow::bail!("missing"),
        // No gradient and a gradient of zeros say the same.
        (None, Some(actual)) => {
            ensure!(is_zero(actual)?, "not zero, where the reference has no gradient at all");
            return Ok(());
        }
        (None, None) => return Ok(()),
    };
    ensure!(actual.size() == expected.size(), "shape {:?}, expected {:?}", actual.size(), expected.size());
    ensure!(actual.kind() == expected.kind(), "kind {:?}, expected {:?}", actual.kind(), expected.kind());
    count(name, expected, measure);

    let (expected, actual) = (Elements::new(expected)?, Elements::new(actual)?);
    let truth = sides.truth.and_then(|truth| truth.tensors.get(&key)).map(Elements::new).transpose()?;
    let tolerance = tolerance(expected.kind());
    for position in 0..expected.len() {
        if actual.same_bits(&expected, position) {
            continue;
        }
        let (e, a) = (expected.value(position), actual.value(position));
        let differs = || format!("element {position} is {a:e}, expected {e:e}");
        ensure!(!exact, "{}; the same ATen operations give the same bits", differs());
        measure.bitwise = false;
        if !tolerance.accepts(a, e) {
            let truth = truth.as_ref().map(|truth| truth.value(position));
            // What is out of the dtype's range is an infinity, whatever the reference makes of it.
            let overflows = |truth| a.is_infinite() && a == rounded(truth, expected.kind());
            let closer = truth.is_some_and(|truth| (a - truth).abs() <= (e - truth).abs() || overflows(truth));
            ensure!(closer, "{}{}", differs(), truth.map_or(String::new(), |t| format!("; in double precision {t:e}")));
            measure.by_truth = true;
            continue;
        }
        if a.is_finite() && e.is_finite() {
            measure.absolute = measure.absolute.max((a - e).abs());
            measure.of_tolerance = measure.of_tolerance.max((a - e).abs() / tolerance.allowed(e));
            // Around zero units in the last place say nothing.
            if e.abs() > tolerance.absolute {
                measure.ulps = measure.ulps.max(actual.ulps(&expected, position));
            }
        }
    }
    Ok(())
}

fn count(name: &str, expected: &Tensor, measure: &mut Measure) {
    if name == "output/0" {
        measure.kind = Some(expected.kind());
    } else if name.starts_with("grad2/") {
        measure.second_order += 1;
    } else if name.starts_with("grad") {
        measure.gradients += 1;
    }
}

fn is_zero(tensor: &Tensor) -> Result<bool> {
    let elements = Elements::new(tensor)?;
    Ok((0..elements.len()).all(|position| elements.value(position) == 0.0))
}

/// Whether the sides differ in no other way than the rule says.
fn holds(rule: Rule, case: &Case, sides: Sides) -> bool {
    let status = |results: &Results| results.cases.get(&case.id).map(|result| result.status);
    match (rule, status(sides.expected), status(sides.actual)) {
        (Rule::Accepts, Some(Status::Error), Some(Status::Ok)) => true,
        (Rule::Rejects, Some(Status::Ok), Some(Status::Error)) => true,
        (Rule::RejectsOnCuda, Some(Status::Ok), Some(Status::Error)) => !sides.bitwise,
        (Rule::Finite, Some(Status::Ok), Some(Status::Ok)) => all_elements(case, sides, |e, a, truth, kind| {
            let tolerance = tolerance(kind);
            // A number beyond those of the kind is infinite in it.
            let beyond = truth.is_some_and(|truth| a.is_infinite() && a == rounded(truth, kind));
            let right = a.is_finite() && truth.is_none_or(|truth| tolerance.accepts(a, truth));
            let truer = truth.is_some_and(|truth| (a - truth).abs() <= (e - truth).abs());
            tolerance.accepts(a, e) || if e.is_finite() { truer } else { right || beyond }
        }),
        (Rule::Zero, Some(Status::Ok), Some(Status::Ok)) => all_elements(case, sides, |e, a, truth, kind| {
            const BEYOND: f64 = 1e4;
            // NaN is beyond, too.
            let large = e.is_nan() || e.abs() > BEYOND;
            let truer = || truth.is_some_and(|truth| (a - truth).abs() <= (e - truth).abs());
            let right = || truth.is_some_and(|truth| tolerance(kind).accepts(a, truth));
            if large { a == 0.0 || right() } else { tolerance(kind).accepts(a, e) || truer() }
        }),
        (Rule::Wider, Some(Status::Ok), Some(Status::Ok)) => all_elements(case, sides, |e, a, truth, kind| {
            let truer = truth.is_some_and(|truth| (a - truth).abs() <= (e - truth).abs());
            tolerance(kind).accepts(a, e) || truer
        }),
        (Rule::Rounded, Some(Status::Ok), Some(Status::Ok)) => {
            all_tensors(case, sides, |name, expected, actual, _| is_rounded_alike(case, name, [expected, actual]))
        }
        (Rule::RoundedOnCuda, Some(Status::Ok), Some(Status::Ok)) if !sides.bitwise => {
            all_tensors(case, sides, |_, expected, actual, truth| {
                truth.is_some_and(|truth| is_as_exact([expected, actual, truth]))
            })
        }
        (Rule::Nan, Some(Status::Ok), Some(Status::Ok)) => {
            all_elements(case, sides, |e, a, _, kind| a.is_nan() || tolerance(kind).accepts(a, e))
        }
        _ => false,
    }
}

/// Whether no element is much farther from the result in double precision than the farthest one of the reference.
fn is_as_exact([expected, actual, truth]: [&Elements; 3]) -> bool {
    const FARTHER: f64 = 8.0;
    let far = |side: &Elements, position: usize| (side.value(position) - truth.value(position)).abs();
    let distances = (0..expected.len()).map(|position| far(expected, position));
    let farthest = distances.filter(|distance| distance.is_finite()).fold(0.0, f64::max);
    let is_near = |position: usize| {
        tolerance(expected.kind()).accepts(actual.value(position), expected.value(position))
            || far(actual, position) <= FARTHER * farthest
    };
    (0..actual.len()).all(is_near)
}

/// Whether an output is equal, or a gradient up to the rounding of the products that it is made of.
fn is_rounded_alike(case: &Case, name: &str, [expected, actual]: [&Elements; 2]) -> bool {
    let positions = || 0..expected.len();
    let largest = positions().map(|position| expected.value(position).abs()).fold(0.0, f64::max);
    let near = |position: usize| match case.autocast {
        Autocast::To(kind) if name.starts_with("grad") => {
            (actual.value(position) - expected.value(position)).abs() <= tolerance(kind).allowed(largest)
        }
        _ => tolerance(expected.kind()).accepts(actual.value(position), expected.value(position)),
    };
    expected.kind() == actual.kind() && positions().all(near)
}

/// Whether `accepts` holds for the expected, actual and true value of each element of all tensors, and their kind.
fn all_elements(case: &Case, sides: Sides, accepts: impl Fn(f64, f64, Option<f64>, Kind) -> bool) -> bool {
    all_tensors(case, sides, |_, expected, actual, truth| {
        (0..expected.len()).all(|position| {
            let truth = truth.map(|truth| truth.value(position)).filter(|truth| truth.is_finite());
            accepts(expected.value(position), actual.value(position), truth, expected.kind())
        })
    })
}

/// Whether `accepts` holds for the name of each tensor and its expected, actual and true elements, which are as many.
fn all_tensors(
    case: &Case,
    sides: Sides,
    accepts: impl Fn(&str, &Elements, &Elements, Option<&Elements>) -> bool,
) -> bool {
    let holds_for = |name: &str| -> Result<bool> {
        let key = format!("{}:{name}", case.id);
        let elements = |results: &Results| results.tensors.get(&key).map(Elements::new).transpose();
        let (expected, actual) = match (elements(sides.expected)?, elements(sides.actual)?) {
            (Some(expected), Some(actual)) => (expected, actual),
            // As everywhere, no gradient and a gradient of zeros say the same.
            (None, Some(_)) => return is_zero(&sides.actual.tensors[&key]),
            _ => return Ok(false),
        };
        let truth = sides.truth.map(elements).transpose()?.flatten();
        let alike = expected.len() == actual.len() && truth.as_ref().is_none_or(|truth| truth.len() == actual.len());
        Ok(alike && accepts(name, &expected, &actual, truth.as_ref()))
    };
    tensor_names(case, sides).into_iter().all(|name| holds_for(name).unwrap_or(false))
}
