//! Losses between images, over how much one of them is spoilt.

use tch::{Device, Kind, Tensor};
use tch_losses::{Loss, MsSsimL1Loss, MsSsimLoss, PsnrLoss, SsimLoss, TotalVariationLoss};

use super::numbers;
use crate::picture::Picture;

/// Pixels on a side; the smallest of the five scales of MS-SSIM has to hold its window.
const SIDE: i64 = 176;
const SMALL: i64 = 32;

pub fn pictures() -> Vec<Picture> {
    fn spoilt(name: &'static str, losses: &'static [&'static str], side: i64, loss: fn() -> Box<dyn Loss>) -> Picture {
        let with = move |pattern: fn(i64) -> Tensor| {
            let (loss, image, pattern) = (loss(), image(side), pattern(side));
            move |x: &Tensor| loss.forward(&(&image + x * &pattern), &image)
        };
        Picture::new(name, losses, "strength", 0.01..0.25)
            .curve("noise", with(noise))
            .curve("stripes", with(stripes))
            .curve("brightness", with(brightness))
    }
    vec![
        spoilt("ssim", &["SsimLoss"], SMALL, || Box::new(SsimLoss::new())),
        spoilt("ms_ssim", &["MsSsimLoss"], SIDE, || Box::new(MsSsimLoss::new())),
        spoilt("ms_ssim_l1", &["MsSsimL1Loss"], SMALL, || Box::new(MsSsimL1Loss::new())),
        // It sees how much is spoilt, and not how.
        Picture::new("psnr", &["PsnrLoss"], "strength of noise", 0.01..0.25).each("range", &[1.0, 2.0], |range| {
            let loss = PsnrLoss::new().data_range(range);
            move |x: &Tensor| loss.forward(&(image(SMALL) + x * noise(SMALL)), &image(SMALL))
        }),
        Picture::new("total_variation", &["TotalVariationLoss"], "strength", 0.0..0.25)
            .curve("noise", variation(noise))
            .curve("stripes", variation(stripes))
            .curve("brightness", variation(brightness)),
    ]
}

fn variation(pattern: fn(i64) -> Tensor) -> impl Fn(&Tensor) -> Tensor {
    move |x| TotalVariationLoss::new().forward(&(image(SMALL) + x * pattern(SMALL))).sum(None)
}

/// Soft hills, between 0.25 and 0.75.
fn image(side: i64) -> Tensor {
    let wave = |length: f64| (positions(side) / length).sin();
    let hills = wave(3.0).view([side, 1]) * wave(4.0).view([1, side]);
    (hills * 0.25 + 0.5).view([1, 1, side, side])
}

fn positions(side: i64) -> Tensor {
    Tensor::arange(side, (Kind::Double, Device::Cpu))
}

/// The same noise on every machine, of mean square about 1.
fn noise(side: i64) -> Tensor {
    // The linear congruential generator of Numerical Recipes.
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 24) - 0.5
    };
    let values: Vec<f64> = (0..side * side).map(|_| next() * 12_f64.sqrt()).collect();
    numbers(&values).view([1, 1, side, side])
}

fn stripes(side: i64) -> Tensor {
    let stripe = (positions(side) * 0.7).sin() * 2_f64.sqrt();
    stripe.view([1, 1, 1, side]).expand([1, 1, side, side], false)
}

fn brightness(side: i64) -> Tensor {
    Tensor::ones([1, 1, side, side], (Kind::Double, Device::Cpu))
}
