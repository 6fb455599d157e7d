//! Losses of two views, and of images and texts.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor, nn};
use tch_losses::{
    BarlowTwinsLoss, ClipLoss, DinoConfig, DinoLoss, Loss, NegativeCosineSimilarity, SigLipLoss, VicRegLoss,
};

use super::{numbers, unit, unit_at};
use crate::picture::Picture;

pub fn pictures() -> Vec<Picture> {
    let apart = |loss: fn() -> Box<dyn Loss>| move |x: &Tensor| loss().forward(&view(), &(view() + x * other_view()));
    let matched = |x: &Tensor| (Tensor::stack(&[unit_at(0.0), unit_at(1.5)], 0), pair_of_texts(x));
    vec![
        Picture::new("negative_cosine_similarity", &["NegativeCosineSimilarity"], "angle in radians", 0.0..PI)
            .curve("−cos", |x: &Tensor| {
                NegativeCosineSimilarity::new().forward(&unit(x).unsqueeze(0), &unit_at(0.0).unsqueeze(0))
            }),
        Picture::new("barlow_twins", &["BarlowTwinsLoss"], "how far the views are apart", 0.0..2.0)
            .curve("Barlow twins", apart(|| Box::new(BarlowTwinsLoss::new()))),
        Picture::new("vicreg", &["VicRegLoss"], "how far the views are apart", 0.0..2.0)
            .curve("VICReg", apart(|| Box::new(VicRegLoss::new()))),
        Picture::new("dino", &["DinoLoss"], "student's logit", -0.6..0.6).each(
            "student's temperature",
            &[0.1, 0.2],
            |temperature| move |x: &Tensor| dino(x, temperature),
        ),
        Picture::new("clip", &["ClipLoss"], "angle of a text from its image", 0.0..PI).each(
            "logit scale",
            &[2.0, 5.0, 10.0],
            |scale| {
                move |x: &Tensor| {
                    let (images, texts) = matched(x);
                    ClipLoss::new().forward(&images, &texts, scale)
                }
            },
        ),
        Picture::new("siglip", &["SigLipLoss"], "angle of a text from its image", 0.0..PI).each(
            "bias −5, logit scale",
            &[5.0, 10.0],
            |scale| {
                move |x: &Tensor| {
                    let (images, texts) = matched(x);
                    SigLipLoss::new().forward(&images, &texts, scale, -5.0)
                }
            },
        ),
    ]
}

/// The texts of two images at the angles 0 and 1.5, of which the first one turns.
fn pair_of_texts(x: &Tensor) -> Tensor {
    Tensor::stack(&[unit(x), unit_at(1.5)], 0)
}

/// Eight samples of three features.
fn view() -> Tensor {
    waves(1.0)
}

fn other_view() -> Tensor {
    waves(2.3)
}

fn waves(frequency: f64) -> Tensor {
    let steps = Tensor::arange(8, (Kind::Double, Device::Cpu)) + 1.0;
    let columns = [1.0, 1.7, 2.9].map(|factor| (&steps * (frequency * factor)).sin());
    Tensor::stack(&columns, 1)
}

/// Two views of a teacher that is sure of the first of three features.
fn dino(x: &Tensor, temperature: f64) -> Tensor {
    let mut store = nn::VarStore::new(Device::Cpu);
    let loss = DinoLoss::new(store.root(), 3, DinoConfig::new().student_temp(temperature));
    store.double();
    let teacher = numbers(&[0.2, 0.0, 0.0]).view([1, 3]);
    let zero = Tensor::from(0.0);
    let student = Tensor::stack(&[x, &zero, &zero], 0).unsqueeze(0);
    loss.forward(&[&teacher, &teacher], &[&student, &student])
}
