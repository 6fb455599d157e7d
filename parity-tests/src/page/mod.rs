//! A report as one file of HTML that needs nothing else: tables to sort and to filter, and commands to copy.
//!
//! [`Page`] says what is in it. It is written into the page as JSON; `page.js` makes the tables of that, `page.css` is
//! the look.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A report.
#[derive(Debug, Serialize)]
pub struct Page {
    /// Its heading.
    pub title: String,
    /// The result in a sentence.
    pub summary: String,
    /// Whether the result is good.
    pub good: bool,
    /// What the result holds for: versions, the machine, the seed.
    pub facts: Vec<(String, String)>,
    /// The tables, the main one first.
    pub tables: Vec<Table>,
}

/// A table of a report.
#[derive(Debug, Serialize)]
pub struct Table {
    /// Its heading.
    pub title: String,
    /// What there is to know about it.
    pub note: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows, with a cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

/// A column of a table.
#[derive(Debug, Clone, Serialize)]
pub struct Column {
    /// Its heading.
    pub name: String,
    /// What it says, shown on demand.
    pub meaning: String,
    /// How its cells are shown.
    pub kind: Kind,
}

/// How the cells of a column are shown.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// As words.
    Text,
    /// As words of which there are few, so that one of them can be chosen.
    Choice,
    /// As a number.
    Number,
    /// As counts beside each other, each a bar.
    Bars,
    /// As a command with a button that copies it.
    Command,
}

/// A cell of a table.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A number, by which rows are sorted, and how it is written.
    Number(f64, String),
    /// Counts, of which the names stand in the meaning of the column.
    Bars(Vec<usize>),
    /// Nothing.
    Empty,
}

impl Column {
    /// A column with its explanation.
    pub fn new(name: &str, kind: Kind, meaning: &str) -> Self {
        Column { name: name.to_owned(), meaning: meaning.to_owned(), kind }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell::Text(text)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Cell::Number(count as f64, count.to_string())
    }
}

impl Page {
    /// The text of the file.
    pub fn html(&self) -> Result<String> {
        // No element of the page ends inside of its data, whatever is in these.
        let data = serde_json::to_string(self)?.replace('<', "\\u003c");
        let title = self.title.replace('&', "&amp;").replace('<', "&lt;");
        let parts = [("{{title}}", title.as_str()), ("{{style}}", STYLE), ("{{script}}", SCRIPT), ("{{data}}", &data)];
        // The data come last, since they may hold anything.
        Ok(parts.into_iter().fold(HTML.to_owned(), |page, (place, text)| page.replace(place, text)))
    }

    /// Writes the file.
    pub fn write(&self, file: &Path) -> Result<()> {
        std::fs::write(file, self.html()?).with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_cannot_end_the_script() {
        let evil = "</script><script>alert(1)</script><!-- {{data}} {{script}}";
        let column = Column::new("text", Kind::Text, "");
        let table =
            Table { title: evil.into(), note: evil.into(), columns: vec![column], rows: vec![vec![evil.into()]] };
        let page = Page {
            title: evil.into(),
            summary: evil.into(),
            good: true,
            facts: vec![(evil.into(), evil.into())],
            tables: vec![table],
        };
        let html = page.html().unwrap();
        assert_eq!(html.matches("</script>").count(), 2, "the data, and the program");
        assert!(!html.contains("<script>alert"));
        let data = html.split("type=\"application/json\">").nth(1).unwrap().split("</script>").next().unwrap();
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["tables"][0]["rows"][0][0], evil);
    }
}
