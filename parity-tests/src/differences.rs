//! Where this crate differs from a reference on purpose: the one table of it.

/// A deliberate difference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// The cases it is about: those whose id contains this.
    pub cases: &'static str,
    /// In which way the sides differ there.
    pub rule: Rule,
    /// Why.
    pub reason: &'static str,
}

/// In which way the sides differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The reference rejects what this crate computes.
    Accepts,
    /// The reference computes what this crate rejects.
    Rejects,
    /// The reference is infinite or NaN where this crate is finite, and equal everywhere else.
    Finite,
}

/// All of them. Only a case that fails is looked up here, so that a row can hide nothing that is equal.
pub const DIFFERENCES: &[Difference] = &[];

/// The difference that a case is about.
pub fn find(id: &str) -> Option<&'static Difference> {
    DIFFERENCES.iter().find(|difference| id.contains(difference.cases))
}

impl Rule {
    /// The rule in a few words.
    pub fn describe(self) -> &'static str {
        match self {
            Rule::Accepts => "computed, where the reference rejects",
            Rule::Rejects => "rejected, where the reference computes",
            Rule::Finite => "finite, where the reference is infinite or NaN",
        }
    }
}
