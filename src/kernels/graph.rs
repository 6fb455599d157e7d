//! A formula as a graph of its operations, for devices that are given its text instead of machine code.
//!
//! The formula is executed once on symbols instead of numbers, which write down what is done with them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Sub};
use std::sync::Arc;

use super::number::{Mask, Real};
use super::quick_hash::QuickHasher;

/// The place of a number or of a mask in the graph that this thread records.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Id(u32);

impl Id {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Unary {
    Negate,
    Abs,
    Sqrt,
    Exp,
    ExpOfNegative,
    ExpOfModerate,
    ExpM1,
    Ln,
    Ln1p,
    Ln1pUnit,
    Atan,
    Tanh,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    Max,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Comparison {
    Less,
    LessEqual,
    Equal,
    Unequal,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Logic {
    And,
    Or,
    Xor,
}

/// One operation, with the places of what it is done to. Those that give a mask come last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Node {
    Argument(u32),
    /// The bits of a number that stands in the formula.
    Literal(u64),
    /// The smallest normal number above 0, which depends on what the kernel computes in.
    Smallest,
    /// The position of a number that is handed to the kernel, so that another one needs no compilation.
    Parameter(u32),
    Unary(Unary, Id),
    Binary(Binary, Id, Id),
    MulAdd(Id, Id, Id),
    Choose(Id, Id, Id),
    Compare(Comparison, Id, Id),
    Logic(Logic, Id, Id),
    Always(bool),
}

impl Node {
    pub(super) fn is_mask(self) -> bool {
        matches!(self, Node::Compare(..) | Node::Logic(..) | Node::Always(_))
    }

    pub(super) fn inputs(self) -> Vec<Id> {
        match self {
            Node::Argument(_) | Node::Literal(_) | Node::Smallest | Node::Parameter(_) | Node::Always(_) => vec![],
            Node::Unary(_, a) => vec![a],
            Node::Binary(_, a, b) | Node::Compare(_, a, b) | Node::Logic(_, a, b) => vec![a, b],
            Node::MulAdd(a, b, c) | Node::Choose(a, b, c) => vec![a, b, c],
        }
    }
}

/// What is being recorded. Equal operations are one node, which is what removes common subexpressions.
#[derive(Default)]
struct Graph {
    nodes: Vec<Node>,
    places: HashMap<Node, Id, BuildHasherDefault<QuickHasher>>,
    parameters: Vec<f64>,
}

thread_local! {
    static GRAPH: RefCell<Option<Graph>> = const { RefCell::new(None) };
}

impl Graph {
    fn push(&mut self, node: Node) -> Id {
        *self.places.entry(node).or_insert_with(|| {
            self.nodes.push(node);
            Id(self.nodes.len() as u32 - 1)
        })
    }

    /// Two of the same bits are one parameter.
    fn parameter(&mut self, value: f64) -> Node {
        let known = self.parameters.iter().position(|known| known.to_bits() == value.to_bits());
        let position = known.unwrap_or_else(|| {
            self.parameters.push(value);
            self.parameters.len() - 1
        });
        Node::Parameter(position as u32)
    }
}

/// Calls `work` with what this thread records.
fn recorded<T>(work: impl FnOnce(&mut Graph) -> T) -> T {
    GRAPH.with_borrow_mut(|graph| work(graph.as_mut().expect("symbols exist while a formula is recorded")))
}

fn push(node: Node) -> Id {
    recorded(|graph| graph.push(node))
}

fn node(id: Id) -> Node {
    recorded(|graph| graph.nodes[id.index()])
}

/// A number of a formula that is recorded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol(Id);

/// Whether something holds for such a number.
#[derive(Clone, Copy, Debug)]
pub(super) struct SymbolMask(Id);

/// A recorded formula. Two are equal where they are but for the values of the parameters: their text is the same.
#[derive(Clone)]
pub(super) struct Recording {
    pub(super) nodes: Arc<[Node]>,
    /// What the formula returned.
    pub(super) outputs: Vec<Id>,
    /// The numbers that the kernel is handed.
    pub(super) parameters: Vec<f64>,
}

impl PartialEq for Recording {
    fn eq(&self, other: &Self) -> bool {
        (&self.nodes, &self.outputs) == (&other.nodes, &other.outputs)
    }
}

impl Eq for Recording {}

impl Hash for Recording {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.nodes, &self.outputs).hash(state);
    }
}

/// Records what `formula` does with `N` numbers.
pub(super) fn record<const N: usize>(formula: impl FnOnce([Symbol; N]) -> Vec<Symbol>) -> Recording {
    record_two(|numbers, []| formula(numbers))
}

/// Records what `formula` does with `N` numbers and `M` more, the arguments behind them.
pub(super) fn record_two<const N: usize, const M: usize>(
    formula: impl FnOnce([Symbol; N], [Symbol; M]) -> Vec<Symbol>,
) -> Recording {
    let outer = GRAPH.replace(Some(Graph::default()));
    let argument = |position: usize| Symbol(push(Node::Argument(position as u32)));
    let outputs = formula(std::array::from_fn(argument), std::array::from_fn(|position| argument(N + position)));
    let graph = GRAPH.replace(outer).unwrap_or_default();
    let outputs = outputs.into_iter().map(|Symbol(id)| id).collect();
    Recording { nodes: graph.nodes.into(), outputs, parameters: graph.parameters }
}

/// The simple numbers that stand in the code. Every other one is a parameter: whether it is an option of the loss or a
/// constant of the formula makes no difference for a kernel, which has its parameters in the constant cache.
fn is_literal(value: f64) -> bool {
    !value.is_finite() || [0.0, 0.5, 1.0, 2.0].contains(&value.abs())
}

impl Recording {
    /// How many numbers the formula is given.
    pub(super) fn arguments(&self) -> usize {
        self.nodes.iter().filter(|node| matches!(node, Node::Argument(_))).count()
    }

    /// The formula of these outputs alone.
    pub(super) fn of(&self, outputs: impl IntoIterator<Item = Id>) -> Self {
        Self { outputs: outputs.into_iter().collect(), ..self.clone() }
    }

    /// The formula of the first output and those behind it that are `wanted`: of a loss and some of its derivatives.
    pub(super) fn with_wanted(&self, wanted: &[bool]) -> Self {
        let (loss, derivatives) = self.outputs.split_at(1);
        self.of(loss.iter().chain(chosen(derivatives, wanted)).copied())
    }

    /// The formula of those outputs that are `wanted`.
    pub(super) fn wanted(&self, wanted: &[bool]) -> Self {
        self.of(chosen(&self.outputs, wanted).copied())
    }

    /// The operations that these outputs need, in order.
    pub(super) fn needed(&self, outputs: &[Id]) -> Vec<Id> {
        let mut needed = vec![false; self.nodes.len()];
        outputs.iter().for_each(|id| needed[id.index()] = true);
        for index in (0..self.nodes.len()).rev() {
            if needed[index] {
                self.nodes[index].inputs().iter().for_each(|id| needed[id.index()] = true);
            }
        }
        (0..self.nodes.len()).filter(|index| needed[*index]).map(|index| Id(index as u32)).collect()
    }
}

fn chosen<'a>(outputs: &'a [Id], wanted: &'a [bool]) -> impl Iterator<Item = &'a Id> {
    outputs.iter().zip(wanted).filter(|(_, wanted)| **wanted).map(|(id, _)| id)
}

impl Symbol {
    fn unary(self, unary: Unary) -> Self {
        Self(push(Node::Unary(unary, self.0)))
    }

    fn compare(self, comparison: Comparison, other: Self) -> SymbolMask {
        SymbolMask(push(Node::Compare(comparison, self.0, other.0)))
    }
}

macro_rules! operators {
    ($($operator:ident $function:ident $binary:ident),+) => {
        $(
            impl $operator for Symbol {
                type Output = Self;
                fn $function(self, other: Self) -> Self {
                    Self(push(Node::Binary(Binary::$binary, self.0, other.0)))
                }
            }
        )+
    };
}
operators!(Add add Add, Sub sub Subtract, Mul mul Multiply, Div div Divide);

impl Neg for Symbol {
    type Output = Self;

    fn neg(self) -> Self {
        match node(self.0) {
            Node::Literal(bits) => Self::of(-f64::from_bits(bits)),
            _ => self.unary(Unary::Negate),
        }
    }
}

macro_rules! logic {
    ($($operator:ident $function:ident $logic:ident),+) => {
        $(
            impl $operator for SymbolMask {
                type Output = Self;
                fn $function(self, other: Self) -> Self {
                    Self(push(Node::Logic(Logic::$logic, self.0, other.0)))
                }
            }
        )+
    };
}
logic!(BitAnd bitand And, BitOr bitor Or, BitXor bitxor Xor);

impl From<bool> for SymbolMask {
    fn from(holds: bool) -> Self {
        Self(push(Node::Always(holds)))
    }
}

impl Mask<Symbol> for SymbolMask {
    fn choose(self, yes: Symbol, no: Symbol) -> Symbol {
        match node(self.0) {
            Node::Always(true) => yes,
            Node::Always(false) => no,
            _ => Symbol(push(Node::Choose(self.0, yes.0, no.0))),
        }
    }
}

impl Real for Symbol {
    type Mask = SymbolMask;

    fn of(value: f64) -> Self {
        Self(recorded(|graph| {
            let node = if is_literal(value) { Node::Literal(value.to_bits()) } else { graph.parameter(value) };
            graph.push(node)
        }))
    }

    fn smallest() -> Self {
        Self(push(Node::Smallest))
    }

    fn less(self, other: Self) -> SymbolMask {
        self.compare(Comparison::Less, other)
    }

    fn less_equal(self, other: Self) -> SymbolMask {
        self.compare(Comparison::LessEqual, other)
    }

    fn equal(self, other: Self) -> SymbolMask {
        self.compare(Comparison::Equal, other)
    }

    fn unequal(self, other: Self) -> SymbolMask {
        self.compare(Comparison::Unequal, other)
    }

    fn mul_add(self, factor: Self, summand: Self) -> Self {
        Self(push(Node::MulAdd(self.0, factor.0, summand.0)))
    }

    fn max(self, other: Self) -> Self {
        Self(push(Node::Binary(Binary::Max, self.0, other.0)))
    }

    fn abs(self) -> Self {
        self.unary(Unary::Abs)
    }

    fn sqrt(self) -> Self {
        self.unary(Unary::Sqrt)
    }

    fn exp(self) -> Self {
        self.unary(Unary::Exp)
    }

    fn exp_of_negative(self) -> Self {
        self.unary(Unary::ExpOfNegative)
    }

    fn exp_of_moderate(self) -> Self {
        self.unary(Unary::ExpOfModerate)
    }

    fn exp_m1(self) -> Self {
        self.unary(Unary::ExpM1)
    }

    fn ln(self) -> Self {
        self.unary(Unary::Ln)
    }

    fn ln_1p_unit(self) -> Self {
        self.unary(Unary::Ln1pUnit)
    }

    // CUDA has these; on the CPU they are made of the others.
    fn ln_1p(self) -> Self {
        self.unary(Unary::Ln1p)
    }

    fn atan(self) -> Self {
        self.unary(Unary::Atan)
    }

    fn tanh(self) -> Self {
        self.unary(Unary::Tanh)
    }
}
