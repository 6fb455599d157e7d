//! Pictures of images, as PNG files.

use std::path::Path;

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

/// Red, green and blue, from 0 to 1.
pub type Colour = [f32; 3];

pub const GREEN: Colour = [0.2, 0.85, 0.35];
pub const RED: Colour = [1.0, 0.3, 0.25];

/// The colours of classes: black for none, then one for each digit.
const PALETTE: [Colour; 11] = [
    [0.0, 0.0, 0.0],
    [0.12, 0.47, 0.71],
    [1.0, 0.5, 0.05],
    [0.17, 0.63, 0.17],
    [0.84, 0.15, 0.16],
    [0.58, 0.4, 0.74],
    [0.55, 0.34, 0.29],
    [0.89, 0.47, 0.76],
    [0.6, 0.6, 0.6],
    [0.74, 0.74, 0.13],
    [0.09, 0.75, 0.81],
];
/// The pixels between two tiles.
const GAP: i64 = 2;

/// An image `[height, width]` from 0 to 1 as a grey one, `[3, height, width]`. Sixteen greys keep the files small.
pub fn grey(image: &Tensor) -> Tensor {
    let image = image.detach().to_device(Device::Cpu).to_kind(Kind::Float).clamp(0.0, 1.0);
    ((image * 15.0).round() / 15.0).unsqueeze(0).repeat([3, 1, 1])
}

/// A map of classes `[height, width]`, 0 for none, in colours.
pub fn colours(classes: &Tensor) -> Tensor {
    let palette = Tensor::from_slice(PALETTE.as_flattened()).view([-1, 3]);
    let flat = palette.index_select(0, &classes.to_device(Device::Cpu).flatten(0, 1));
    flat.view([classes.size()[0], classes.size()[1], 3]).permute([2, 0, 1])
}

/// Each pixel as a square.
pub fn enlarged(image: &Tensor, factor: i64) -> Tensor {
    image.repeat_interleave_self_int(factor, 1, None).repeat_interleave_self_int(factor, 2, None)
}

/// The image in another colour: white becomes that colour.
pub fn tinted(image: &Tensor, colour: Colour) -> Tensor {
    image * Tensor::from_slice(&colour).view([3, 1, 1])
}

/// Draws the outline of a box with the corners x₁, y₁, x₂, y₂ into an image, in place.
pub fn outline(image: &Tensor, corners: [f64; 4], colour: Colour) {
    let (height, width) = (image.size()[1], image.size()[2]);
    let inside = |at: f64, size: i64| (at.round() as i64).clamp(0, size - 1);
    let [left, right] = [inside(corners[0], width), inside(corners[2] - 1.0, width)];
    let [top, bottom] = [inside(corners[1], height), inside(corners[3] - 1.0, height)];
    let (across, down) = ((right - left + 1).max(1), (bottom - top + 1).max(1));
    let colour = Tensor::from_slice(&colour).view([3, 1, 1]);
    for (y, x, height, width) in
        [(top, left, 1, across), (bottom, left, 1, across), (top, left, down, 1), (top, right, down, 1)]
    {
        image.narrow(1, y, height).narrow(2, x, width).copy_(&colour);
    }
}

/// Writes tiles of one size, row by row, as a PNG file.
pub fn save_tiles(rows: &[Vec<Tensor>], file: &Path) -> Result<()> {
    let rows: Vec<Tensor> = rows.iter().map(|row| Tensor::cat(&framed(row, 2), 2)).collect();
    save(&Tensor::cat(&framed(&rows, 1), 1), file)
}

/// The images, with white behind each but the last along that dimension.
fn framed(images: &[Tensor], dim: usize) -> Vec<Tensor> {
    let pad = if dim == 2 { [0, GAP, 0, 0] } else { [0, 0, 0, GAP] };
    let framed = images.iter().enumerate().map(|(at, image)| match at + 1 == images.len() {
        true => image.shallow_clone(),
        false => image.pad(pad, "constant", 1.0),
    });
    framed.collect()
}

/// Writes an image `[3, height, width]` from 0 to 1 as a PNG file.
pub fn save(image: &Tensor, file: &Path) -> Result<()> {
    let bytes = (image.clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8);
    tch::vision::image::save(&bytes, file).with_context(|| format!("cannot write {}", file.display()))?;
    println!("picture {}", file.display());
    Ok(())
}
