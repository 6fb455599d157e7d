//! The chapter of the book that shows all pictures.

use std::fmt::Write as _;

use crate::pictures::Family;

const INTRODUCTION: &str = "\
<!-- Written by the example gallery. Change that, and run it again. -->

# Gallery

Each picture has the loss on the left and its gradient on the right, both over the number below them: a prediction, a shift,
an angle. A drawing before them says what moves: green is what is to be reached, blue what is moved. Every point was
computed by calling the crate, its gradient by autograd; the options are the defaults where no other is named.

`cargo run --release --example gallery` draws them anew, and its `--help` says more. What the losses are for is in
[Choosing a loss](choosing.md).
";

/// The chapter, in Markdown.
pub fn text(families: &[Family]) -> String {
    let mut text = INTRODUCTION.to_owned();
    for family in families {
        let _ = write!(text, "\n## {}\n", family.title);
        for picture in &family.pictures {
            let (title, name) = (picture.losses.join(", "), picture.name);
            let _ = write!(text, "\n### {title}\n\n![{title}: the loss and its gradient](gallery/{name}.svg)\n");
        }
    }
    text
}
