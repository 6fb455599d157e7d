//! The handwritten digits of `examples/data/README.md`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::MultiGzDecoder;
use tch::{Device, Kind, Tensor};

/// The digits 0 to 9.
pub const CLASSES: i64 = 10;
/// The images are 8 × 8.
pub const SIDE: i64 = 8;
/// The pixels of an image, which are the fields of a line before its label.
const PIXELS: usize = (SIDE * SIDE) as usize;
/// The darkest pixel.
const INK: u8 = 16;
/// Draws the held-out images. It is not `--seed`, so that runs with different seeds are judged by the same images.
const SPLIT_SEED: i64 = 0;

/// Images of digits, and which digit each one is.
pub struct Digits {
    /// Shape `[n, 1, 8, 8]`, from 0 (no ink) to 1.
    pub images: Tensor,
    /// Shape `[n]`, from 0 to 9.
    pub classes: Tensor,
}

impl Digits {
    /// Reads the format that `examples/data/README.md` describes.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path)
            .with_context(|| format!("cannot open the data file {} (--data names another)", path.display()))?;
        let mut text = String::new();
        MultiGzDecoder::new(file)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read {} as text compressed with gzip", path.display()))?;
        Self::parse(&text).with_context(|| format!("the data file {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut pixels = Vec::new();
        let mut classes = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let (image, class) = parse_line(line).with_context(|| format!("line {}", index + 1))?;
            pixels.extend(image.iter().map(|&pixel| f32::from(pixel) / f32::from(INK)));
            classes.push(i64::from(class));
        }
        let images = Tensor::from_slice(&pixels).view([-1, 1, SIDE, SIDE]);
        Ok(Self { images, classes: Tensor::from_slice(&classes) })
    }

    pub fn len(&self) -> i64 {
        self.classes.size()[0]
    }

    pub fn to_device(&self, device: Device) -> Self {
        Self { images: self.images.to_device(device), classes: self.classes.to_device(device) }
    }

    pub fn select(&self, indices: &Tensor) -> Self {
        Self { images: self.images.index_select(0, indices), classes: self.classes.index_select(0, indices) }
    }

    /// The digits whose class is one of these.
    pub fn of_classes(&self, classes: &[i64]) -> Self {
        let wanted = Tensor::from_slice(classes).to_device(self.classes.device());
        let indices = self.classes.unsqueeze(1).eq_tensor(&wanted).any_dim(1, false).nonzero().squeeze_dim(1);
        self.select(&indices)
    }

    /// Divides the images into four fifths to learn from and a fifth to be judged by.
    pub fn split(&self) -> Result<(Self, Self)> {
        let held_out = self.len() / 5;
        ensure!(held_out > 0, "there are {} images, at least 5 are needed to hold some out", self.len());
        tch::manual_seed(SPLIT_SEED);
        // Drawn on the CPU: the images are the same ones on every device.
        let shuffled = Tensor::randperm(self.len(), (Kind::Int64, Device::Cpu)).to_device(self.classes.device());
        let parts = shuffled.split_with_sizes([self.len() - held_out, held_out], 0);
        Ok((self.select(&parts[0]), self.select(&parts[1])))
    }
}

/// The pixels and the class of one line.
fn parse_line(line: &str) -> Result<(Vec<u8>, u8)> {
    let fields: Vec<&str> = line.split(',').collect();
    ensure!(fields.len() == PIXELS + 1, "expected {PIXELS} pixels and a class, got {} fields", fields.len());
    let pixels = fields[..PIXELS].iter().enumerate();
    let pixels: Result<Vec<u8>> = pixels
        .map(|(index, field)| parse_number(field, INK).with_context(|| format!("field {}, a pixel", index + 1)))
        .collect();
    let class = parse_number(fields[PIXELS], CLASSES as u8 - 1).context("the last field, the class")?;
    Ok((pixels?, class))
}

fn parse_number(field: &str, most: u8) -> Result<u8> {
    match field.trim().parse() {
        Ok(number) if number <= most => Ok(number),
        _ => bail!("expected a whole number from 0 to {most}, got {field:?}"),
    }
}
