//! Draws the gallery: value and gradient of the losses, each computed by calling the crate.
//!
//! ```sh
//! cargo run --release --example gallery                          # all pictures, into docs/book/src/gallery
//! cargo run --release --example gallery -- --list                # their names, and the losses that they show
//! cargo run --release --example gallery -- --only huber,dice     # two of them
//! cargo run --release --example gallery -- --out target/gallery  # into another folder
//! cargo run --release --example gallery -- --check               # fails where a committed picture is stale
//! ```
//!
//! A picture is in `pictures/`, one file for each family: which loss, over what, with which options. `picture.rs` calls the
//! loss and takes its gradient, `scene.rs` is the drawing beside the curves, `draw.rs` draws.

mod chapter;
mod contour;
mod draw;
mod picture;
mod pictures;
mod scene;
mod svg;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use picture::Picture;

/// Where the pictures are committed: the book shows them, and the pages of the losses hold them.
const GALLERY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/book/src/gallery");
/// A page holds its picture, so that it is to be small.
const LARGEST: usize = 15_000;

/// Draws value and gradient of the losses as SVG files
#[derive(Parser)]
#[command(after_help = "Examples:
  cargo run --release --example gallery                          all pictures, into docs/book/src/gallery
  cargo run --release --example gallery -- --only huber,dice     two of them
  cargo run --release --example gallery -- --out target/gallery  into another folder
  cargo run --release --example gallery -- --check               whether the committed ones are what would be drawn

Status: 0 when all is well, 1 where a picture is stale or could not be drawn, 2 for a wrong call.")]
struct Args {
    /// Print the names of the pictures and the losses that they show
    #[arg(long, conflicts_with_all = ["check", "out"])]
    list: bool,
    /// Only these pictures
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// The folder to write to
    #[arg(long, value_name = "FOLDER", default_value = GALLERY, hide_default_value = true)]
    out: PathBuf,
    /// Write nothing, and fail where a picture in the folder is not what would be drawn
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    // A picture is a few thousand calls with a number or two each.
    tch::set_num_threads(1);
    let families = pictures::families();
    let all = || families.iter().flat_map(|family| &family.pictures);
    if let Some(unknown) = args.only.iter().find(|name| !all().any(|picture| picture.name == *name)) {
        bail!("there is no picture {unknown:?}; --list names them");
    }
    let chosen = all().filter(|picture| args.only.is_empty() || args.only.iter().any(|name| name == picture.name));
    if args.list {
        chosen.for_each(|picture| println!("{:<32} {}", picture.name, picture.losses.join(", ")));
        return Ok(());
    }
    let mut files = Vec::new();
    for picture in chosen {
        files.push((args.out.join(format!("{}.svg", picture.name)), drawn(picture)?));
    }
    if args.only.is_empty() {
        files.push((args.out.with_extension("md"), chapter::text(&families)));
    }
    if !args.check {
        return files.iter().try_for_each(|(file, text)| write(file, text));
    }
    let is_stale = |(file, text): &&(PathBuf, String)| fs::read_to_string(file).ok().as_ref() != Some(text);
    let stale: Vec<String> = files.iter().filter(is_stale).map(|(file, _)| file.display().to_string()).collect();
    ensure!(stale.is_empty(), "stale, so run it without --check: {}", stale.join(", "));
    Ok(())
}

fn drawn(picture: &Picture) -> Result<String> {
    let drawn = draw::draw(picture)?;
    ensure!(drawn.len() <= LARGEST, "{} has {} bytes, more than {LARGEST}", picture.name, drawn.len());
    ensure!(!drawn.contains("\n\n"), "{} has a blank line, which would end it in Markdown", picture.name);
    Ok(drawn)
}

fn write(file: &Path, text: &str) -> Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
