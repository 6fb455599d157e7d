//! Where this crate differs from a reference on purpose: the one table of it.

/// A deliberate difference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// The cases it is about: those whose id begins with one of these.
    pub cases: &'static [&'static str],
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
    /// The reference is infinite or NaN where this crate is finite, equal everywhere else, and right where the result in
    /// double precision tells.
    Finite,
    /// The reference has a number where this crate says NaN.
    Nan,
}

impl Rule {
    /// The rule in a few words.
    pub fn describe(self) -> &'static str {
        match self {
            Rule::Accepts => "computed, where the reference rejects",
            Rule::Rejects => "rejected, where the reference computes",
            Rule::Finite => "finite, where the reference is infinite or NaN",
            Rule::Nan => "NaN, where the reference has a number",
        }
    }
}

/// All of them. Only a case that fails is looked up here, so that a row can hide nothing that is equal.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        cases: &["torch.nn.SoftMarginLoss/overflow/", "torch.nn.functional.soft_margin_loss/overflow/"],
        rule: Rule::Finite,
        reason: "log(1 + exp(z)) overflows for large z; here it is computed as -logsigmoid(-z)",
    },
    Difference {
        cases: &["torch.nn.CrossEntropyLoss/better_ignored/"],
        rule: Rule::Finite,
        reason: "an ignored row of logits that are all -inf has no part in the loss, so its gradient is 0",
    },
    Difference {
        cases: &["torch.nn.CrossEntropyLoss/better_smoothing/"],
        rule: Rule::Rejects,
        reason: "a negative label smoothing means nothing",
    },
    Difference {
        cases: &[
            "torch.nn.CrossEntropyLoss/better_integers/",
            "torch.nn.NLLLoss/better_integers/",
            "torch.nn.MultiMarginLoss/better_integers/",
            "torch.nn.MultiLabelMarginLoss/better_integers/",
        ],
        rule: Rule::Accepts,
        reason: "class indices may be of any integer kind",
    },
    Difference {
        cases: &["torch.nn.MultiMarginLoss/better_nan/"],
        rule: Rule::Nan,
        reason: "a NaN score is not a satisfied hinge",
    },
    Difference {
        cases: &["torch.nn.CTCLoss/better_labels/"],
        rule: Rule::Rejects,
        reason: "labels are integers; fractions would be cut off without a word",
    },
];

/// The difference that a case is about.
pub fn find(id: &str) -> Option<&'static Difference> {
    DIFFERENCES.iter().find(|difference| difference.cases.iter().any(|cases| id.starts_with(cases)))
}
