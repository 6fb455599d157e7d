//! CUDA C++ of losses of rows of classes.

use std::fmt::Write;

use super::{Recipe, body};
use crate::kernels::cuda::launch::WARP;
use crate::kernels::graph::{Id, Recording};

/// How a kernel goes through rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::kernels::cuda) struct Plan {
    /// How many threads share a row: a power of two of a warp's, or all of a block.
    pub(in crate::kernels::cuda) threads: usize,
    /// How many packs of how many numbers of a row a thread has at a time.
    pub(in crate::kernels::cuda) packs: usize,
    pub(in crate::kernels::cuda) width: usize,
    /// Whether that is all of the row.
    pub(in crate::kernels::cuda) held: bool,
    /// Whether the classes of a row lie apart in memory.
    pub(in crate::kernels::cuda) strided: bool,
}

impl Plan {
    /// What the kernels are told of it.
    pub(in crate::kernels::cuda) fn definitions(self) -> String {
        let Plan { threads, packs, width, held, strided } = self;
        let group = if threads > WARP { "Whole".to_owned() } else { format!("Lanes<{threads}>") };
        let [held, strided] = [held, strided].map(i32::from);
        format!(
            "#define GROUP {group}\n#define PACKS {packs}\n#define WIDTH {width}\n#define HELD {held}\n#define STRIDED \
             {strided}\n"
        )
    }
}

/// The text of kernels of rows, with these parts behind what all share.
pub(in crate::kernels::cuda) fn rows(recipe: &Recipe, parts: &[&str]) -> String {
    let mut text = recipe.head();
    text.push_str(include_str!("rows.cu"));
    parts.iter().for_each(|part| text.push_str(part));
    text
}

/// [`rows`] of a `row_loss` that these parts have, with the kernels around it.
pub(in crate::kernels::cuda) fn around_row_loss(recipe: &Recipe, parts: &[&str]) -> String {
    rows(recipe, parts) + include_str!("row_kernels.cu")
}

/// A C++ function `name` of a formula's numbers: it returns the first output, and stores each of the others, its
/// derivatives, where a pointer of this name points.
pub(in crate::kernels::cuda) fn function(
    name: &str,
    arguments: &[&str],
    derivatives: &[&str],
    recording: &Recording,
) -> String {
    let outputs: Vec<Id> = recording.outputs[..=derivatives.len()].to_vec();
    let body = body(recording, &outputs, arguments);
    let mut text = format!("DEVICE Real {name}(");
    arguments.iter().for_each(|argument| _ = write!(text, "Real {argument}, "));
    text.push_str("const Real* p");
    derivatives.iter().for_each(|derivative| _ = write!(text, ", Real* {derivative}"));
    text.push_str(") {\n");
    text.push_str(&body.statements);
    for (derivative, output) in derivatives.iter().zip(&body.outputs[1..]) {
        _ = writeln!(text, "  *{derivative} = {output};");
    }
    _ = writeln!(text, "  return {};\n}}", body.outputs[0]);
    text
}
