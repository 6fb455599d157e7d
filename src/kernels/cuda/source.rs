//! CUDA C++ of a recorded formula, and of the kernels around it.

pub(super) mod rows;

use std::fmt::Write;
use std::hash::{Hash, Hasher};

use tch::Kind;

use crate::kernels::graph::{Binary, Comparison, Id, Logic, Node, Recording, Unary};

/// What a source is made of, and all of it, so that the kernels of a call are found without its text: `write` is a
/// function without a state, so that equal recipes have equal texts.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) kind: Kind,
    /// How many numbers the kernels are given.
    pub(super) parameters: usize,
    /// The macros and types that differ from call to call.
    pub(super) definitions: String,
    pub(super) formulas: Vec<Recording>,
    /// The whole text. It begins with the [`head`](Self::head).
    pub(super) write: fn(&Recipe) -> String,
}

impl Recipe {
    /// One without parameters, definitions and formulas.
    pub(super) fn plain(kind: Kind, write: fn(&Recipe) -> String) -> Self {
        Self { kind, parameters: 0, definitions: String::new(), formulas: vec![], write }
    }

    pub(super) fn text(&self) -> String {
        (self.write)(self)
    }

    /// The prelude and the definitions.
    pub(super) fn head(&self) -> String {
        head(self.kind, self.parameters) + &self.definitions
    }

    /// Two functions of one address have the same code. One may have two addresses, whose recipes are two then.
    fn identity(&self) -> (Kind, usize, &str, &[Recording], usize) {
        (self.kind, self.parameters, &self.definitions, &self.formulas, self.write as usize)
    }
}

impl PartialEq for Recipe {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Recipe {}

impl Hash for Recipe {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

/// The body of a C++ function that computes some outputs of a formula: its statements, and the names of the outputs. `p`
/// holds the parameters of the whole formula.
pub(super) struct Body {
    pub(super) statements: String,
    pub(super) outputs: Vec<String>,
}

/// `arguments` names the numbers that the formula is given.
pub(super) fn body(recording: &Recording, outputs: &[Id], arguments: &[&str]) -> Body {
    let mut names = vec![String::new(); recording.nodes.len()];
    let mut statements = String::new();
    for id in recording.needed(outputs) {
        let node = recording.nodes[id.index()];
        let name = |id: Id| names[id.index()].as_str();
        let value = match node {
            Node::Argument(position) => {
                names[id.index()] = arguments[position as usize].to_owned();
                continue;
            }
            Node::Literal(bits) => {
                names[id.index()] = literal(f64::from_bits(bits));
                continue;
            }
            Node::Always(holds) => {
                names[id.index()] = holds.to_string();
                continue;
            }
            Node::Smallest => {
                names[id.index()] = "SMALLEST_REAL".to_owned();
                continue;
            }
            Node::Parameter(position) => {
                names[id.index()] = format!("p[{position}]");
                continue;
            }
            Node::Unary(unary, a) => {
                let a = name(a);
                match unary {
                    Unary::Negate => format!("-{a}"),
                    Unary::Abs => format!("fabs({a})"),
                    Unary::Sqrt => format!("sqrt({a})"),
                    Unary::Exp | Unary::ExpOfNegative | Unary::ExpOfModerate => format!("exp({a})"),
                    Unary::ExpM1 => format!("expm1({a})"),
                    Unary::Ln => format!("log({a})"),
                    Unary::Ln1p | Unary::Ln1pUnit => format!("log1p({a})"),
                    Unary::Atan => format!("atan({a})"),
                    Unary::Tanh => format!("tanh({a})"),
                }
            }
            Node::Binary(binary, a, b) => {
                let (a, b) = (name(a), name(b));
                match binary {
                    Binary::Add => format!("{a} + {b}"),
                    Binary::Subtract => format!("{a} - {b}"),
                    Binary::Multiply => format!("{a} * {b}"),
                    Binary::Divide => format!("{a} / {b}"),
                    Binary::Max => format!("fmax({a}, {b})"),
                }
            }
            Node::MulAdd(a, b, c) => format!("fma({}, {}, {})", name(a), name(b), name(c)),
            Node::Choose(mask, yes, no) => format!("{} ? {} : {}", name(mask), name(yes), name(no)),
            Node::Compare(comparison, a, b) => {
                let operator = match comparison {
                    Comparison::Less => "<",
                    Comparison::LessEqual => "<=",
                    Comparison::Equal => "==",
                    Comparison::Unequal => "!=",
                };
                format!("{} {operator} {}", name(a), name(b))
            }
            Node::Logic(logic, a, b) => {
                let operator = match logic {
                    Logic::And => "&",
                    Logic::Or => "|",
                    Logic::Xor => "^",
                };
                format!("{} {operator} {}", name(a), name(b))
            }
        };
        let (kind, letter) = if node.is_mask() { ("bool", 'm') } else { ("Real", 'v') };
        let name = format!("{letter}{}", id.index());
        _ = writeln!(statements, "  const {kind} {name} = {value};");
        names[id.index()] = name;
    }
    let outputs = outputs.iter().map(|id| names[id.index()].clone()).collect();
    Body { statements, outputs }
}

/// The statements of a C++ function of these arguments that computes a formula and writes its outputs to the array `to`.
pub(super) fn function(formula: &Recording, arguments: &[String], to: &str) -> String {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Body { statements: mut text, outputs } = body(formula, &formula.outputs, &arguments);
    for (position, output) in outputs.iter().enumerate() {
        _ = writeln!(text, "  {to}[{position}] = {output};");
    }
    text
}

/// The names of the first elements of an array.
pub(super) fn numbered(array: &str, count: usize) -> Vec<String> {
    (0..count).map(|position| format!("{array}[{position}]")).collect()
}

/// A number in C++. It is in brackets, since a sign may follow an operator.
fn literal(value: f64) -> String {
    match value {
        _ if value.is_nan() => "NAN_REAL".into(),
        f64::INFINITY => "INFINITE_REAL".into(),
        f64::NEG_INFINITY => "(-INFINITE_REAL)".into(),
        _ => format!("Real({value:?})"),
    }
}

/// The name by which the sources know the kind of the elements.
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "DOUBLE",
        Kind::Half => "HALF",
        Kind::BFloat16 => "BFLOAT16",
        _ => "FLOAT",
    }
}

/// What all sources begin with.
pub(super) fn head(kind: Kind, parameters: usize) -> String {
    format!("#define {} 1\n#define PARAMETERS {parameters}\n{}", name(kind), include_str!("source/prelude.cu"))
}
