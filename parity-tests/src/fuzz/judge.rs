//! What is wrong with a call: both backends beside each other, and beside double precision.

use tch::{Kind, Tensor};
use tch_losses::Backend;

use super::call::Call;
use super::class::{Class, Finding};
use super::expected;
use super::families::takes_elements;
use super::side::{Derivatives, Failure, Runner, Side, compute, guarded, within};
use super::tensors::{is_floating, is_plain, values};
use super::truth::{Truth, Which};
use crate::numbers::{rounded, tolerance};

/// What became of a call.
#[derive(Debug)]
pub struct Verdict {
    /// Whether the loss was computed.
    pub accepted: bool,
    /// Why not.
    pub reason: Option<String>,
    /// What is wrong, the first thing of each sort.
    pub findings: Vec<Finding>,
    /// Why more differs.
    pub expected: Vec<&'static str>,
    /// What both backends made of it, in words.
    pub results: [String; 2],
}

/// How often the truth is asked although both backends agree.
const ONE_IN: u64 = 16;

/// Judges a call.
pub fn judge(call: &Call, runner: &Runner) -> Verdict {
    let arguments: Vec<Tensor> = call.arguments.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
    let side = |backend| compute(runner, backend, call, &arguments, call.options);
    let (auto, composite) = (side(Backend::Auto), side(Backend::Composite));
    let mut judge =
        Judge { call, runner, truth: None, findings: Vec::new(), expected: Vec::new(), values_differ: false };
    match (&auto, &composite) {
        (Ok(auto), Ok(composite)) => judge.both(auto, composite),
        (Err(auto), Err(composite)) => {
            judge.failure("auto", auto);
            judge.failure("composite", composite);
        }
        (Ok(_), Err(failure)) => judge.one("composite", failure),
        (Err(failure), Ok(_)) => judge.one("auto", failure),
    }
    let reason = match &auto {
        Err(Failure::Rejected(message)) => Some(message.clone()),
        _ => None,
    };
    let results = [&auto, &composite].map(|side| if call.shown { describe(side) } else { String::new() });
    Verdict {
        accepted: auto.is_ok() && composite.is_ok(),
        reason,
        findings: judge.findings,
        expected: judge.expected,
        results,
    }
}

struct Judge<'a> {
    call: &'a Call,
    runner: &'a Runner<'a>,
    /// Computed where something differs.
    truth: Option<Option<Truth<'a>>>,
    findings: Vec<Finding>,
    expected: Vec<&'static str>,
    /// Whether the values differ in a way that is expected.
    values_differ: bool,
}

impl<'a> Judge<'a> {
    fn add(&mut self, class: Class, detail: String) {
        if self.findings.iter().all(|finding| finding.class != class) {
            self.findings.push(Finding { class, detail });
        }
    }

    fn truth(&mut self) -> Option<&Truth<'a>> {
        let (call, runner) = (self.call, self.runner);
        self.truth.get_or_insert_with(|| Truth::new(runner, call)).as_ref()
    }

    /// A call that is not computed: by a panic, or by an error that is not the crate's own.
    fn failure(&mut self, side: &str, failure: &Failure) {
        match failure {
            Failure::Panic(message) => self.add(Class::Panic, format!("{side}: {message}")),
            Failure::Rejected(message) if is_raw(message) && self.is_plain() => {
                self.add(Class::Raw, format!("{side}: {message}"));
            }
            Failure::Rejected(_) => {}
        }
    }

    /// One backend computes the call.
    fn one(&mut self, side: &str, failure: &Failure) {
        self.failure(side, failure);
        if let Failure::Rejected(message) = failure
            && !is_exhausted(message)
        {
            self.add(Class::Accepts, format!("{side} rejects: {message}"));
        }
    }

    fn is_plain(&self) -> bool {
        self.call.arguments.iter().all(|(_, tensor)| is_plain(tensor))
    }

    fn both(&mut self, auto: &Side, composite: &Side) {
        self.tensors(Class::Value, Which::Output, &auto.outputs, &composite.outputs);
        self.derivatives(Class::Gradient, Which::Gradient, &auto.gradients, &composite.gradients);
        if let (Some(auto), Some(composite)) = (&auto.second, &composite.second) {
            self.derivatives(Class::Second, Which::Second, auto, composite);
        }
        for (name, side) in [("auto", auto), ("composite", composite)] {
            self.create_graph(name, side);
        }
        self.parts(auto);
        if self.findings.is_empty() {
            self.wrong(auto);
        }
    }

    fn derivatives(&mut self, class: Class, which: Which, auto: &Derivatives, composite: &Derivatives) {
        match (auto, composite) {
            (Ok(auto), Ok(composite)) => self.tensors(class, which, auto, composite),
            (Err(failure), Ok(_)) => self.one_derivative(class, "auto", failure),
            // On CUDA they are tensor operations where libtorch's operation has none.
            (Ok(_), Err(Failure::Rejected(message)))
                if self.call.engines.is_of_cuda() && message.contains("not implemented") => {}
            (Ok(_), Err(failure)) => self.one_derivative(class, "composite", failure),
            (Err(auto), Err(composite)) => {
                for (side, failure) in [("auto", auto), ("composite", composite)] {
                    match (failure, which) {
                        (Failure::Panic(message), _) => {
                            self.add(Class::Panic, format!("{side}, derivative: {message}"))
                        }
                        // There may be no second derivative, but a value without a gradient is an error that comes
                        // too late.
                        (Failure::Rejected(message), Which::Gradient) => self.add(Class::Backward, message.clone()),
                        (Failure::Rejected(message), Which::Second)
                            if is_raw(message) && !message.contains("not implemented") =>
                        {
                            self.add(Class::Raw, format!("{side}, second derivative: {message}"));
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn one_derivative(&mut self, class: Class, side: &str, failure: &Failure) {
        match failure {
            Failure::Panic(message) => self.add(Class::Panic, format!("{side}, derivative: {message}")),
            Failure::Rejected(message) => self.add(class, format!("{side} has none: {message}")),
        }
    }

    fn tensors(&mut self, class: Class, which: Which, auto: &[Tensor], composite: &[Tensor]) {
        let largest = largest_of_all(composite);
        for (index, (auto, composite)) in auto.iter().zip(composite).enumerate() {
            if let Err(detail) = self.tensor((which, index, largest), auto, composite) {
                self.add(class, format!("{which:?} {index}: {detail}"));
            }
        }
        if auto.len() != composite.len() {
            self.add(class, format!("{} outputs, composite has {}", auto.len(), composite.len()));
        }
    }

    fn tensor(
        &mut self,
        (which, index, largest): (Which, usize, f64),
        auto: &Tensor,
        composite: &Tensor,
    ) -> Result<(), String> {
        if !auto.defined() || !composite.defined() {
            let other = if auto.defined() { auto } else { composite };
            let zero = !other.defined() || values(other).is_ok_and(|values| values.iter().all(|value| *value == 0.0));
            // No derivative and one of zeros say the same.
            return if zero { Ok(()) } else { Err("one backend has none, the other one is not 0".into()) };
        }
        if auto.size() != composite.size() {
            return Err(format!("shape {:?}, composite {:?}", auto.size(), composite.size()));
        }
        if auto.kind() != composite.kind() {
            return Err(format!("kind {:?}, composite {:?}", auto.kind(), composite.kind()));
        }
        if which == Which::Output && auto.requires_grad() != composite.requires_grad() {
            return Err(format!(
                "requires a gradient: {}, composite {}",
                auto.requires_grad(),
                composite.requires_grad()
            ));
        }
        let kind = self.precision(auto.kind());
        let read = |tensor| values(tensor).map_err(|error| format!("cannot be read: {error}"));
        let (auto, composite) = (read(auto)?, read(composite)?);
        for (position, (a, c)) in auto.iter().zip(&composite).enumerate() {
            let place = Place { which, index, position, largest };
            if same(*a, *c, kind) {
                if self.asks_for_digits() && self.lacks_digits(place, *a, *c, kind) && !self.is_expected(which, *a, *c)
                {
                    let truth = self.truth().and_then(|truth| truth.composite.at(which, index, position));
                    let truth = truth.unwrap_or(f64::NAN);
                    return Err(format!("element {position} is {a:e}, composite {c:e}, in double precision {truth:e}"));
                }
                continue;
            }
            if !self.is_expected(which, *a, *c) && !self.explained(place, *a, *c, kind) {
                let truth = self.truth().and_then(|truth| truth.composite.at(which, index, position));
                let truth = truth.map_or(String::new(), |truth| format!(", in double precision {truth:e}"));
                return Err(format!("element {position} is {a:e}, composite {c:e}{truth}"));
            }
        }
        Ok(())
    }

    /// The coarsest kind of a result and the floating arguments: where one has fewer digits, so has the result.
    fn precision(&self, kind: Kind) -> Kind {
        if kind != Kind::Double {
            return kind;
        }
        let kinds = self.call.arguments.iter().filter(|(_, tensor)| tensor.defined()).map(|(_, tensor)| tensor.kind());
        let coarse =
            |kind: &Kind| [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16].iter().position(|k| k == kind);
        kinds.chain([kind]).filter(|kind| is_floating(*kind)).max_by_key(coarse).unwrap_or(kind)
    }

    /// Whether a difference between the backends is one of the table. Derivatives may differ where the values do.
    fn is_expected(&mut self, which: Which, own: f64, other: f64) -> bool {
        let tables = [expected::BETWEEN_BACKENDS, expected::ON_CUDA];
        let tables = if self.call.engines.is_of_cuda() { &tables[..] } else { &tables[..1] };
        let found = tables.iter().find_map(|rows| expected::find(rows, self.call, which, own, other));
        if !self.expected.iter().any(|reason| Some(*reason) == found) {
            self.expected.extend(found);
        }
        self.values_differ |= found.is_some() && which == Which::Output;
        found.is_some() || (which != Which::Output && self.values_differ)
    }

    /// Whether a difference is one of rounding: the engine is nearer to the result in double precision, or no further
    /// from it than rounding makes.
    fn explained(&mut self, place: Place, auto: f64, composite: f64, kind: Kind) -> bool {
        let Place { which, index, position, largest } = place;
        let Some(truth) = self.truth() else { return false };
        let Some(right) = truth.composite.at(which, index, position) else { return false };
        if auto.is_nan() || composite.is_nan() {
            return false;
        }
        if kind == Kind::Double {
            let spread = truth.spread(which, index, position);
            let is_noise = truth.is_smooth(which, index, position) || spread <= 1e-9 * largest;
            let between = (auto - composite).abs();
            return is_noise && between <= 64.0 * spread || between <= self.of_others(place, kind);
        }
        // What is out of the range of the kind is an infinity on one side and a large number on the other.
        let overflows = auto.is_infinite() && auto == rounded(right, kind);
        let nearer = (auto - right).abs() <= (composite - right).abs() || tolerance(kind).accepts(auto, right);
        if overflows || nearer {
            return true;
        }
        let agree = truth.auto(which, index, position);
        let slack = truth.spread(which, index, position) + 1e-7 * right.abs() + 1e-12;
        let slack = slack + self.of_others(place, Kind::Double);
        agree.is_some_and(|agree| (agree - right).abs() <= slack) && self.is_rounding(place, auto, kind)
    }

    /// Whether a number is no further from the result in double precision than rounding makes: that of the arguments,
    /// that on the way, and that of larger numbers which it is the rest of.
    fn is_rounding(&mut self, place: Place, number: f64, kind: Kind) -> bool {
        let Place { which, index, position, .. } = place;
        let Some(truth) = self.truth() else { return false };
        let Some(right) = truth.composite.at(which, index, position) else { return false };
        let (spread, noise) = (truth.spread(which, index, position), truth.noise(which, index, position));
        // What cancels on the way has the last digit of the arguments, in single precision. The slope of a linear layer
        // is made of its weights, that of a teacher of the logits over its temperature.
        let of_arguments = match self.call.loss {
            "dino" => 25.0,
            loss if loss.starts_with("linear_") || loss.starts_with("sequence_") => 1.0,
            _ => f64::from(which == Which::Output),
        };
        let cancelled = of_arguments * 8.0 * f64::from(f32::EPSILON) * self.call.largest;
        (number - right).abs() <= 8.0 * spread + 4.0 * noise + self.of_others(place, kind) + cancelled
    }

    /// The rounding of the other derivatives, which one of a loss that takes its numbers together is computed with, as
    /// often as an option multiplies them. A second derivative is a sum of terms as large as the others.
    fn of_others(&self, Place { which, largest, .. }: Place, kind: Kind) -> f64 {
        let epsilon = if kind == Kind::Double { f64::EPSILON } else { f32::EPSILON.into() };
        match which {
            Which::Output => 0.0,
            Which::Second if kind != Kind::Double => 0.2 * unit(kind) * largest,
            _ if takes_elements(self.call.loss) => 0.0,
            _ => 4.0 * epsilon * largest * self.call.largest_option().max(1.0),
        }
    }

    /// Digits of small numbers are looked at in some calls: double precision is asked often.
    fn asks_for_digits(&self) -> bool {
        self.call.seed % 4 == 1
    }

    /// Whether a small number, which the tolerance lets pass, is right in the composite and not in the engine.
    ///
    /// Where a loss takes its numbers together, double precision forms p − y itself, and has no digits of less than
    /// 10⁻¹⁶.
    fn lacks_digits(&mut self, place: Place, auto: f64, composite: f64, kind: Kind) -> bool {
        let Place { which, index, position, .. } = place;
        let least = if takes_elements(self.call.loss) { 1e-30 } else { 1e-13 };
        let normal = composite.abs() > least && (auto - composite).abs() > 1e-3 * composite.abs();
        if kind != Kind::Float || !normal || which == Which::Second {
            return false;
        }
        let Some(truth) = self.truth() else { return false };
        let Some(right) = truth.composite.at(which, index, position) else { return false };
        let error = |number: f64| (number - right).abs();
        error(composite) <= 1e-4 * right.abs()
            && error(auto) > 1e-2 * right.abs()
            && error(auto) > 16.0 * truth.spread(which, index, position)
    }

    /// The first gradient is the same number whatever is asked for next.
    fn create_graph(&mut self, name: &str, side: &Side) {
        let Some(differentiable) = &side.differentiable else { return };
        let (Ok(plain), Ok(graph)) = (&side.gradients, differentiable) else {
            if let (Ok(_), Err(failure)) = (&side.gradients, differentiable) {
                match failure {
                    Failure::Panic(message) => self.add(Class::Panic, format!("{name}, create_graph: {message}")),
                    // It says that there is no second derivative.
                    Failure::Rejected(_) => {}
                }
            }
            return;
        };
        for (index, (plain, graph)) in plain.iter().zip(graph).enumerate() {
            if !plain.defined() || !graph.defined() {
                continue;
            }
            let (Ok(first), Ok(second)) = (values(plain), values(graph)) else { continue };
            let differs = first.iter().zip(&second).position(|(a, b)| !same(*a, *b, plain.kind()));
            if let Some(position) = differs {
                let (a, b) = (first[position], second[position]);
                let place = Place { which: Which::Gradient, index, position, largest: largest_of(&first) };
                if !self.explained(place, b, a, plain.kind()) {
                    let detail =
                        format!("{name}, gradient {index}: element {position} is {a:e}, under create_graph {b:e}");
                    self.add(Class::CreateGraph, detail);
                }
            }
        }
    }

    fn parts(&mut self, auto: &Side) {
        let Some(parts) = &self.call.parts else { return };
        let arguments: Vec<Tensor> = self.call.arguments.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        let both = guarded(|| {
            let parts = within(Backend::Auto, self.call, || parts(&arguments, self.call.options))?;
            // Over nothing the mean is what its loss says: that of no boxes is 0.
            let nothing = [parts.numerator(), parts.denominator()].iter().all(|part| is_zero(part));
            let count = f64::try_from(parts.denominator())?;
            Ok((parts.f_value()?, nothing, count))
        });
        let (value, nothing, count) = match both {
            Ok(both) => both,
            Err(Failure::Rejected(message)) if message.contains("has no numerator and denominator") => return,
            Err(failure) => {
                self.failure("parts", &failure);
                if let Failure::Rejected(message) = failure {
                    self.add(Class::Parts, message);
                }
                return;
            }
        };
        let (Ok(value), Ok(mean)) = (values(&value), values(&auto.outputs[0])) else { return };
        let kind = auto.outputs[0].kind();
        if let ([value], [mean]) = (&value[..], &mean[..])
            && !same(rounded(*value, kind), *mean, kind)
            && !(nothing && *mean == 0.0)
        {
            let place = Place { which: Which::Output, index: 0, position: 0, largest: mean.abs() };
            // A sum may be out of the range of the kind where the mean is not.
            let overflows = value.is_infinite() && mean.abs() * count > largest(kind);
            let is_expected = self.is_expected(Which::Output, *value, *mean);
            if !overflows && !is_expected && !self.explained(place, *value, *mean, kind) {
                self.add(Class::Parts, format!("numerator / denominator is {value:e}, the mean {mean:e}"));
            }
        }
    }

    /// Both backends agree: now and then, and where there is a NaN, double precision is asked whether they are right.
    fn wrong(&mut self, side: &Side) {
        if !self.is_plain() {
            return;
        }
        let empty = Vec::new();
        let gradients = side.gradients.as_ref().unwrap_or(&empty);
        let all = [(Which::Output, &side.outputs), (Which::Gradient, gradients)];
        let always = self.call.seed.is_multiple_of(ONE_IN);
        let scale = largest_of_all(gradients);
        for (which, tensors) in all {
            for (index, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| tensor.defined()) {
                let kind = tensor.kind();
                let Ok(elements) = values(tensor) else { continue };
                for (position, element) in elements.iter().enumerate() {
                    if !(always || element.is_nan()) || !is_floating(kind) {
                        continue;
                    }
                    let Some(truth) = self.truth() else { return };
                    let Some(right) = truth.composite.at(which, index, position) else { continue };
                    if right.is_nan() || element == &rounded(right, kind) {
                        continue;
                    }
                    let close = tolerance(kind).accepts(*element, right) || kind == Kind::Double;
                    let scale = if which == Which::Gradient { scale } else { right.abs() };
                    let near = (element - right).abs()
                        <= 4.0 * (1e-5 + unit(kind) * scale) + 16.0 * truth.spread(which, index, position);
                    let beyond = right.abs() > largest(kind);
                    let place = Place { which, index, position, largest: scale };
                    if !close && !near && !beyond && !self.is_rounding(place, *element, kind) {
                        let found = expected::find(expected::BESIDE_DOUBLE, self.call, which, *element, right);
                        self.expected.extend(found);
                        if found.is_some() {
                            continue;
                        }
                        let detail = format!(
                            "{which:?} {index}: element {position} is {element:e}, in double precision {right:e}"
                        );
                        self.add(Class::Wrong, detail);
                        return;
                    }
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Place {
    which: Which,
    index: usize,
    position: usize,
    /// The largest element of the derivatives of one order.
    largest: f64,
}

/// Whether a part of a mean is 0.
fn is_zero(part: &Tensor) -> bool {
    values(part).is_ok_and(|values| values == [0.0])
}

fn largest_of(values: &[f64]) -> f64 {
    values.iter().map(|value| value.abs()).filter(|value| value.is_finite()).fold(0.0, f64::max)
}

fn largest_of_all(tensors: &[Tensor]) -> f64 {
    let all = tensors.iter().filter(|tensor| tensor.defined()).filter_map(|tensor| values(tensor).ok());
    all.map(|values| largest_of(&values)).fold(0.0, f64::max)
}

fn unit(kind: Kind) -> f64 {
    match kind {
        Kind::Half => 1e-3,
        Kind::BFloat16 => 1.6e-2,
        _ => 1e-5,
    }
}

fn largest(kind: Kind) -> f64 {
    match kind {
        Kind::Half => 65000.0,
        Kind::Double => f64::MAX,
        _ => f32::MAX.into(),
    }
}

/// Whether the numbers are equal by the rule of equality.
fn same(actual: f64, expected: f64, kind: Kind) -> bool {
    actual.to_bits() == expected.to_bits() || tolerance(kind).accepts(actual, expected)
}

fn is_raw(message: &str) -> bool {
    message.contains("libtorch: ") && !is_exhausted(message)
}

/// Memory that is not there is not the fault of the crate.
fn is_exhausted(message: &str) -> bool {
    ["can't allocate memory", "not enough memory", "Storage size calculation overflowed", "bad_alloc"]
        .iter()
        .any(|text| message.contains(text))
}

fn describe(side: &Result<Side, Failure>) -> String {
    match side {
        Err(Failure::Rejected(message)) => format!("rejected: {message}"),
        Err(Failure::Panic(message)) => format!("panic: {message}"),
        Ok(side) => {
            let all = |tensors: &[Tensor]| tensors.iter().map(super::tensors::describe).collect::<Vec<_>>().join("; ");
            let derivatives = |derivatives: &Derivatives| match derivatives {
                Ok(tensors) => all(tensors),
                Err(Failure::Rejected(message)) => format!("rejected: {message}"),
                Err(Failure::Panic(message)) => format!("panic: {message}"),
            };
            let mut text = format!("value {}\n    gradient {}", all(&side.outputs), derivatives(&side.gradients));
            if let Some(gradients) = &side.differentiable {
                text += &format!("\n    under create_graph {}", derivatives(gradients));
            }
            if let Some(second) = &side.second {
                text += &format!("\n    second {}", derivatives(second));
            }
            text
        }
    }
}
