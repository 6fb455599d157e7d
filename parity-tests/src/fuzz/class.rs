//! The classes of findings.

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The process ended.
    Crash,
    /// The call did not end.
    Hang,
    /// A panic.
    Panic,
    /// The error is libtorch's raw text.
    Raw,
    /// One backend takes what the other rejects.
    Accepts,
    /// The value is computed, and its gradient is an error.
    Backward,
    /// The values differ.
    Value,
    /// The gradients differ.
    Gradient,
    /// The gradient is another one where a second derivative is asked for.
    CreateGraph,
    /// The second derivatives differ.
    Second,
    /// Numerator and denominator are not those of the mean.
    Parts,
    /// Both backends agree, and double precision says something else.
    Wrong,
    /// A result of the Python reference is another one.
    Oracle,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 13] = [
        Class::Crash,
        Class::Hang,
        Class::Panic,
        Class::Raw,
        Class::Accepts,
        Class::Backward,
        Class::Value,
        Class::Gradient,
        Class::CreateGraph,
        Class::Second,
        Class::Parts,
        Class::Wrong,
        Class::Oracle,
    ];

    /// The name in tables and in what a child process says.
    pub fn name(self) -> &'static str {
        match self {
            Class::Crash => "crash",
            Class::Hang => "hang",
            Class::Panic => "panic",
            Class::Raw => "raw",
            Class::Accepts => "accepts",
            Class::Backward => "backward",
            Class::Value => "value",
            Class::Gradient => "gradient",
            Class::CreateGraph => "create_graph",
            Class::Second => "second",
            Class::Parts => "parts",
            Class::Wrong => "wrong",
            Class::Oracle => "oracle",
        }
    }

    /// What it means, in a line.
    pub fn meaning(self) -> &'static str {
        match self {
            Class::Crash => "the process ended",
            Class::Hang => "the call did not end",
            Class::Panic => "a panic",
            Class::Raw => "the error is libtorch's raw text",
            Class::Accepts => "one backend takes what the other rejects",
            Class::Backward => "the value is computed, and its gradient is an error",
            Class::Value => "the values of the backends differ",
            Class::Gradient => "their gradients differ",
            Class::CreateGraph => "the gradient is another one under create_graph",
            Class::Second => "their second derivatives differ",
            Class::Parts => "numerator and denominator are not those of the mean",
            Class::Wrong => "both agree, and double precision says something else",
            Class::Oracle => "the Python reference says something else",
        }
    }
}

/// Something wrong with a call.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What sort of thing.
    pub class: Class,
    /// In words, in a line.
    pub detail: String,
}
