//! Gaussian, total variation, and losses of two views or of images and texts.

use anyhow::Result;
use tch_losses::{ClipLoss, DinoConfig, DinoLoss, GaussianNllLoss, PixelReduction, SigLipLoss, TotalVariationLoss};

use super::super::call::Compute;
use super::super::tensors::Values;
use super::super::tensors::shape;
use super::{Maker, one};

pub const LOSSES: &[&str] = &["gaussian_nll", "total_variation", "clip", "siglip", "dino"];

pub fn make(loss: &str, maker: &mut Maker) -> Result<Compute> {
    match loss {
        "gaussian_nll" => gaussian_nll(maker),
        "total_variation" => total_variation(maker),
        "dino" => dino(maker),
        _ => images_and_texts(loss, maker),
    }
}

fn gaussian_nll(maker: &mut Maker) -> Result<Compute> {
    let shape = shape(0, 4, maker.random);
    let loss = GaussianNllLoss::new().full(maker.flag("full")).eps(maker.number("eps", 1e-6, 1e-6, 0.5));
    let loss = loss.invalid_values(maker.invalid_values()).reduction(maker.reduction());
    maker.argument("input", &shape, Values::Real)?;
    maker.argument("target", &shape, Values::Real)?;
    if maker.random.chance(0.2) {
        let variance = maker.number("var", 0.5, 0.01, 2.0);
        return Ok(Box::new(move |t, _| one(loss.f_forward(&t[0], &t[1], variance))));
    }
    let mut of_variance = shape.clone();
    match maker.random.below(4) {
        0 if !shape.is_empty() => {
            of_variance.pop();
        }
        1 if !shape.is_empty() => {
            let dim = maker.random.below(shape.len());
            of_variance[dim] = 1;
        }
        _ => {}
    }
    maker.argument("var", &of_variance, Values::Positive)?;
    Ok(Box::new(move |t, _| one(loss.f_forward(&t[0], &t[1], &t[2]))))
}

fn total_variation(maker: &mut Maker) -> Result<Compute> {
    let loss = TotalVariationLoss::new().reduction(maker.reduction());
    let loss = loss.pixels(maker.one_of("pixels", &[PixelReduction::Sum, PixelReduction::Mean]));
    let shape = shape(2, 5, maker.random);
    maker.argument("input", &shape, Values::Real)?;
    Ok(Box::new(move |t, _| one(loss.f_forward(&t[0]))))
}

fn images_and_texts(loss: &str, maker: &mut Maker) -> Result<Compute> {
    let (rows, features) = (maker.random.between(1, 6), maker.random.between(1, 5));
    let (normalize, reduction) = (!maker.flag("not normalized"), maker.reduction());
    maker.argument("image", &[rows, features], Values::Real)?;
    maker.argument("text", &[rows, features], Values::Real)?;
    let of_tensors = maker.flag("parameters are tensors");
    if of_tensors {
        let shape: &[i64] = if maker.random.chance(0.5) { &[] } else { &[1] };
        maker.argument("logit_scale", shape, Values::Positive)?;
        maker.argument("logit_bias", shape, Values::Real)?;
    }
    let (scale, bias) = (maker.number("logit_scale", 5.0, 0.1, 20.0), maker.number("logit_bias", -1.0, -5.0, 5.0));
    if loss == "clip" {
        let loss = ClipLoss::new().normalize(normalize).reduction(reduction);
        let loss = loss.label_smoothing(maker.number("label_smoothing", 0.0, 0.0, 0.5));
        return Ok(Box::new(move |t, _| match of_tensors {
            true => one(loss.f_forward(&t[0], &t[1], &t[2])),
            false => one(loss.f_forward(&t[0], &t[1], scale)),
        }));
    }
    let loss = SigLipLoss::new().normalize(normalize).reduction(reduction);
    Ok(Box::new(move |t, _| match of_tensors {
        true => one(loss.f_forward(&t[0], &t[1], &t[2], &t[3])),
        false => one(loss.f_forward(&t[0], &t[1], scale, bias)),
    }))
}

fn dino(maker: &mut Maker) -> Result<Compute> {
    let (rows, features) = (maker.random.between(1, 4), maker.random.between(1, 5));
    let student_temp = maker.number("student_temp", 0.1, 0.05, 1.0);
    let teacher_temp = maker.number("teacher_temp", 0.04, 0.05, 1.0);
    let own = maker.kind;
    for name in ["teacher 1", "teacher 2", "student 1", "student 2", "student 3"] {
        maker.argument(name, &[rows, features], Values::Real)?;
    }
    Ok(Box::new(move |t, kind| {
        let mut store = tch::nn::VarStore::new(tch::Device::Cpu);
        let config = DinoConfig::new().student_temp(student_temp).teacher_temp(teacher_temp);
        let mut loss = DinoLoss::f_new(store.root(), features, config)?;
        store.set_kind(if kind == own { own } else { kind });
        loss.f_update_center(&t[..2])?;
        one(loss.f_forward(&t[..2], &t[2..]))
    }))
}
