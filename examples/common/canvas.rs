//! Real digits on noisy canvases, made on the CPU.

use tch::{Device, Kind, Tensor};

/// The brightest noise, where ink is 1.
const NOISE: f64 = 0.4;

/// Canvases of noise, `[n, 1, height, width]`: a grain for each pixel, and clouds that are as large as a stroke.
pub fn noise([count, height, width]: [i64; 3]) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    let grain = Tensor::rand([count, 1, height, width], options);
    let clouds = Tensor::rand([count, 1, height / 4, width / 4], options);
    let clouds = clouds.upsample_bilinear2d([height, width], false, None, None);
    (grain + clouds) * (0.5 * NOISE)
}

/// An image of a digit, `[1, 8, 8]`, in another size: `[height, width]`.
pub fn resized(digit: &Tensor, [height, width]: [i64; 2]) -> Tensor {
    digit.unsqueeze(0).upsample_bilinear2d([height, width], false, None, None).view([height, width])
}

/// Draws a digit on a canvas `[height, width]`, in place: ink covers noise.
pub fn paste(canvas: &Tensor, digit: &Tensor, [top, left]: [i64; 2]) {
    let mut place = window(canvas, digit, [top, left]);
    let inked = place.maximum(digit);
    place.copy_(&inked);
}

/// The part of a canvas under a digit: a view, not a copy.
pub fn window(canvas: &Tensor, digit: &Tensor, [top, left]: [i64; 2]) -> Tensor {
    let (height, width) = (digit.size()[0], digit.size()[1]);
    canvas.narrow(0, top, height).narrow(1, left, width)
}
