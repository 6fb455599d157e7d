//! Sums under a window that slides along one dimension, on the device of the input: the blur of SSIM and MS-SSIM. The
//! gradient is such a sum with the taps in reverse order.

use std::sync::{Arc, Mutex, PoisonError};

use tch::{Kind, Tensor};

use super::tensors::f_plain;
use super::{cpu, takes, waits};
use crate::LossError;
use crate::autograd::{self, Context, Function};

/// What the window reads beyond the border of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// Nothing: the window has only those places where all of it fits.
    Nothing,
    /// Zeros: the window, of an odd number of taps, has its middle at each element.
    Zeros,
}

/// The sums under a window at each of its places: `out[i] = Σₜ taps[t] · input[i + t − lead]` along `dim`. With
/// [`Beyond::Zeros`] `lead` is half the window. With [`Beyond::Nothing`] it is 0, and `dim` is at least as long as the
/// window. The result can be differentiated any number of times.
pub(crate) fn f_slide(input: &Tensor, dim: usize, taps: &Arc<[f64]>, beyond: Beyond) -> Result<Tensor, LossError> {
    let (length, reach) = (input.size()[dim] as usize, taps.len() - 1);
    let (lead, places) = match beyond {
        Beyond::Nothing => (0, length - reach),
        Beyond::Zeros => (reach / 2, length),
    };
    Slide { dim, taps: taps.clone(), lead, places }.f_of(input)
}

/// A window along one dimension.
#[derive(Debug, Clone)]
pub(super) struct Slide {
    pub(super) dim: usize,
    pub(super) taps: Arc<[f64]>,
    /// How many taps are before the first element when the window is at its first place, and behind the last one at its
    /// last place.
    pub(super) lead: usize,
    /// How many places the window has.
    pub(super) places: usize,
}

impl Slide {
    /// The window that makes the gradient of the input, whose length is given, of the gradient of the sums.
    fn transposed(&self, length: usize) -> Self {
        let taps: Arc<[f64]> = self.taps.iter().rev().copied().collect();
        Self { dim: self.dim, lead: taps.len() - 1 - self.lead, taps, places: length }
    }

    /// The sums, with a graph.
    fn f_of(&self, input: &Tensor) -> Result<Tensor, LossError> {
        let sums = self.f_sums(&f_plain(&input.f_detach()?)?.f_contiguous()?)?;
        let (slide, length) = (self.clone(), input.size()[self.dim] as usize);
        let backward = move |context: Context| -> autograd::Gradients {
            let of_input = |grad: Tensor| slide.transposed(length).f_of(&grad);
            Ok(vec![context.grad(0).map(of_input).transpose()?])
        };
        Ok(Function::new(&[input]).f_attach_own(vec![sums], backward)?.remove(0))
    }

    /// The sums of a contiguous tensor without a graph.
    fn f_sums(&self, input: &Tensor) -> Result<Tensor, LossError> {
        let kind = input.f_kind()?;
        let has_engine = matches!(kind, Kind::Float | Kind::Double);
        #[cfg(any(test, feature = "cuda"))]
        if super::cuda::is_asked(input) {
            let sums = if has_engine { super::cuda::window::f_sums(input, self)? } else { None };
            return sums.map_or_else(|| self.f_convolution(input), Ok);
        }
        if takes(input) && has_engine { cpu::window::f_sums(input, self) } else { self.f_convolution(input) }
    }

    /// The size of the sums.
    pub(super) fn size(&self, input: &Tensor) -> Vec<i64> {
        let mut size = input.size();
        size[self.dim] = self.places as i64;
        size
    }

    /// How many elements of the input lie between one tap and the next.
    pub(super) fn step(&self, input: &Tensor) -> usize {
        input.size()[self.dim + 1..].iter().product::<i64>() as usize
    }

    /// The composite: libtorch's convolution, without TF32, which would leave three digits of a variance.
    fn f_convolution(&self, input: &Tensor) -> Result<Tensor, LossError> {
        if input.numel() == 0 {
            return Ok(Tensor::f_zeros(self.size(input), (input.f_kind()?, input.device()))?);
        }
        let (count, lead) = (self.taps.len() as i64, self.lead as i64);
        let (length, step) = (input.size()[self.dim], self.step(input) as i64);
        // Lines that lie side by side are rows of one image.
        let (shape, window, padding) = match step {
            1 => ([1, 1, -1, length], [1, 1, 1, count], [0, lead]),
            _ => ([-1, 1, length, step], [1, 1, count, 1], [lead, 0]),
        };
        let (image, taps) = (input.f_view(shape)?, f_kept_taps(&self.taps, input)?.f_view(window)?);
        let sums = f_convolution(&image, &taps, padding, 1)?;
        Ok(sums.f_reshape(self.size(input))?)
    }
}

/// libtorch's convolution without strides, and without TF32, which would leave three digits of a variance. With
/// several `groups` each channel has its window.
pub(crate) fn f_convolution(
    images: &Tensor,
    windows: &Tensor,
    padding: [i64; 2],
    groups: i64,
) -> Result<Tensor, LossError> {
    let (none, ones, zeros) = (None::<Tensor>, [1_i64, 1], [0_i64, 0]);
    autograd::without_autocast(images.device(), || {
        Ok(images.f_internal_convolution(
            windows, none, ones, padding, ones, false, zeros, groups, false, true, true, false,
        )?)
    })
}

/// The taps in the kind and on the device of `like`.
pub(crate) fn f_kept_taps(taps: &Arc<[f64]>, like: &Tensor) -> Result<Tensor, LossError> {
    let (kind, device) = (like.f_kind()?, like.device());
    let f_new = || Ok(Tensor::f_from_slice(taps)?.f_to_kind(kind)?.f_to_device(device)?);
    if !waits(like) {
        return f_new();
    }
    // The host waits for a copy to a device, and so each is made once.
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let is_it = |(own, of): &(Arc<[f64]>, Tensor)| own == taps && of.kind() == kind && of.device() == device;
    if let Some((_, kept)) = kept.iter().find(|entry| is_it(entry)) {
        return Ok(kept.shallow_clone());
    }
    let new: Tensor = f_new()?;
    if kept.len() == MOST_KEPT {
        drop(kept.remove(0));
    }
    kept.push((taps.clone(), new.shallow_clone()));
    Ok(new)
}

/// Taps on devices: as many as losses of some scales have, in some sizes of images.
static KEPT: Mutex<Vec<(Arc<[f64]>, Tensor)>> = Mutex::new(Vec::new());
const MOST_KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::randn;
    use crate::{Backend, with_backend};

    /// The definition, tap by tap.
    fn tap_by_tap(input: &Tensor, dim: usize, taps: &[f64], beyond: Beyond) -> Tensor {
        let (length, reach) = (input.size()[dim], taps.len() as i64 - 1);
        let (lead, places) = match beyond {
            Beyond::Nothing => (0, length - reach),
            Beyond::Zeros => (reach / 2, length),
        };
        let mut padding = vec![0; 2 * (input.dim() - dim)];
        padding[2 * (input.dim() - dim) - 2..].fill(lead);
        let padded = input.constant_pad_nd(padding);
        let terms = taps.iter().zip(0..).map(|(tap, at)| padded.narrow(dim as i64, at, places) * *tap);
        terms.reduce(|sum, term| sum + term).unwrap()
    }

    fn gradients(input: &Tensor, slide: &dyn Fn(&Tensor) -> Tensor) -> [Tensor; 3] {
        let leaf = input.detach().set_requires_grad(true);
        let output = slide(&leaf);
        let value = (&output * output.square()).sum(None);
        let first = Tensor::run_backward(&[value], &[&leaf], true, true).remove(0);
        let second = Tensor::run_backward(&[first.square().sum(None)], &[&leaf], false, false).remove(0);
        [output.detach(), first.detach(), second]
    }

    #[test]
    fn it_computes_what_tensor_operations_do() {
        for shape in [&[5, 7, 11][..], &[1, 40, 3], &[3, 2, 90], &[2, 3000, 1], &[1, 3, 41000], &[0, 4, 5], &[2, 5, 0]]
        {
            for (dim, size) in shape.iter().enumerate() {
                let inside = [1, 2, 5, 11].into_iter().filter(|count| count <= size);
                let inside = inside.map(|count| (count, Beyond::Nothing));
                for (count, beyond) in inside.chain([1, 3, 11, 33].map(|count| (count, Beyond::Zeros))) {
                    // The sums are about 1. Rounding errors of larger ones would exceed the absolute tolerance.
                    let taps: Arc<[f64]> = (0..count).map(|tap| (0.1 + tap as f64) / (count * count) as f64).collect();
                    let input = randn(shape);
                    let expected = gradients(&input, &|input| tap_by_tap(input, dim, &taps, beyond));
                    for backend in [Backend::Auto, Backend::Composite] {
                        let slide = |input: &Tensor| f_slide(input, dim, &taps, beyond).unwrap();
                        let actual = with_backend(backend, || gradients(&input, &slide));
                        for (actual, expected) in actual.iter().zip(&expected) {
                            let name = format!("{backend:?}, {shape:?}, {dim}, {count}, {beyond:?}");
                            assert_eq!(actual.size(), expected.size(), "{name}");
                            assert!(actual.allclose(expected, 1e-9, 1e-9, false), "{name}");
                        }
                    }
                }
            }
        }
    }
}
