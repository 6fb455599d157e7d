//! Makes of the SVG of `plotters` one that is small and readable on every page.

/// The colour that stands for that of the text around the picture.
pub const INK: plotters::style::RGBColor = plotters::style::RGBColor(0x10, 0x10, 0x10);

/// Where the picture is a file of its own it has two colours of text. Inside a page it takes the page's: there `:root` is
/// the page, and no svg.
const STYLE: &str = "<style>svg:root{color:#24292f}@media(prefers-color-scheme:dark){svg:root{color:#d0d7de}}</style>";

/// What plotters writes and no picture needs.
const REDUNDANT: [(&str, &str); 7] = [
    (" opacity=\"1\"", ""),
    (" stroke=\"none\"", ""),
    (" font-family=\"sans-serif\"", ""),
    (" text-anchor=\"start\"", ""),
    (" \"", "\""),
    (">\n", ">"),
    ("\n<", "<"),
];

/// The picture of `width` times `height` pixels, drawn in `scale` times as many, with what it says to those who do not
/// see it.
pub fn finished(drawn: &str, (width, height): (u32, u32), scale: u32, description: &str) -> String {
    let elements = drawn.split_once(">\n").map_or(drawn, |(_, rest)| rest);
    let mut body = elements.replace("#101010", "currentColor");
    for (long, short) in REDUNDANT {
        body = body.replace(long, short);
    }
    // One element on a line: a change is a small diff, and no line is blank, which would end the picture in Markdown.
    let body = body.replace("/><", "/>\n<").replace("</text><", "</text>\n<");
    // In Markdown the first line has to be the whole tag.
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" viewBox=\"0 0 {} {}\" \
         style=\"max-width:100%;height:auto\" font-family=\"sans-serif\" role=\"img\" aria-label=\"{}\">\n\
         {STYLE}\n{}\n",
        width * scale,
        height * scale,
        escaped(description),
        body.trim_end(),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
