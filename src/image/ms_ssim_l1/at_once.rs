//! The similarities of all scales at once, by tensor operations with the derivative as a formula: for a GPU without
//! engines, where each scale for itself is a chain of kernels.

use tch::Tensor;

use crate::LossError;
use crate::autograd::{self, Function, f_gradients_of};
use crate::image::Taps;
use crate::kernels::{NumberOperations, f_convolution, f_kept_taps};

/// The weights under the windows of S scales.
struct Windows {
    /// Along the rows of an image, `[S, 1, 1, W]`, and along its columns, `[S, 1, H, 1]`.
    along: [Tensor; 2],
}

impl Windows {
    /// `windows` has those along columns and along rows of each scale.
    fn f_new(windows: &[Vec<Taps>], like: &Tensor) -> Result<Windows, LossError> {
        let scales = windows.len() as i64;
        let f_along = |dim: usize, shape: [i64; 4]| -> Result<Tensor, LossError> {
            let taps: Taps = windows.iter().flat_map(|window| window[dim].iter().copied()).collect();
            Ok(f_kept_taps(&taps, like)?.f_view(shape)?)
        };
        Ok(Windows { along: [f_along(1, [scales, 1, 1, -1])?, f_along(0, [scales, 1, -1, 1])?] })
    }

    /// The means of images `[M, 1, H, W]` at all scales, `[M, S, H, W]`.
    fn f_means(&self, images: &Tensor) -> Result<Tensor, LossError> {
        let [along_rows, _] = &self.along;
        self.f_along_columns(&f_convolution(images, along_rows, [0, along_rows.size()[3] / 2], 1)?)
    }

    /// What comes back of the means. The windows are symmetric, so that their transposes are they themselves.
    fn f_transposed(&self, of_means: &Tensor) -> Result<Tensor, LossError> {
        let along_rows = self.along[0].f_transpose(0, 1)?.f_contiguous()?;
        f_convolution(&self.f_along_columns(of_means)?, &along_rows, [0, along_rows.size()[3] / 2], 1)
    }

    fn f_along_columns(&self, images: &Tensor) -> Result<Tensor, LossError> {
        let along_columns = &self.along[1];
        f_convolution(images, along_columns, [along_columns.size()[2] / 2, 0], along_columns.size()[0])
    }
}

/// What the loss and its derivatives are made of. M is the number of images and their channels; the sum of two images
/// is before their difference.
struct Parts {
    /// `[2, N, C, H, W]`
    images: Tensor,
    /// Their means, `[2, M, S, H, W]`.
    means: Tensor,
    /// One minus contrast and structure of each scale, its divisor, and the rest to 1: `[M, S, H, W]`.
    lacking: Tensor,
    structure: Tensor,
    rest: Tensor,
    /// One minus the luminance, and what that is with the scales before each one, `[M, S, H, W]`.
    so_far: Tensor,
    /// The divisor of the luminance, `[M, H, W]`.
    luminance: Tensor,
}

/// One minus the product of the luminance of the last scale and of contrast and structure of all scales: the formula of
/// [`Unlikeness`](crate::image::Unlikeness). `composite` are the operations that have its second derivatives.
pub(super) fn f_lacking(
    [x, y]: [&Tensor; 2],
    windows: Vec<Vec<Taps>>,
    constants: [f64; 2],
    composite: impl Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send + 'static,
) -> Result<Tensor, LossError> {
    let size = x.size();
    let (lacking, parts) = f_forward([&x.f_detach()?, &y.f_detach()?], &windows, constants)?;
    let Parts { images, means, lacking: of_scales, structure, rest, so_far, luminance } = &parts;
    let saved = [x, y, images, means, of_scales, structure, rest, so_far, luminance];
    let needed = autograd::needed(&[x, y]);
    Function::new(&[x, y]).save(&saved).f_attach_one(lacking.f_reshape(&size)?, move |context| {
        let (Some(grad), [x, y, parts @ ..]) = (context.grad(0), context.saved()) else {
            return Ok(vec![None, None]);
        };
        let fused = || {
            let [images, means, lacking, structure, rest, so_far, luminance] =
                std::array::from_fn(|part| parts[part].shallow_clone());
            let parts = Parts { images, means, lacking, structure, rest, so_far, luminance };
            f_backward(&parts, &grad, &windows, &needed)
        };
        let again = |inputs: &[Tensor]| composite(&inputs[0], &inputs[1]);
        let inputs = [x.shallow_clone(), y.shallow_clone()];
        context.f_gradients(&fused, &|| f_gradients_of(&again, &grad, &inputs, &needed))
    })
}

fn f_forward([x, y]: [&Tensor; 2], windows: &[Vec<Taps>], [c1, c2]: [f64; 2]) -> Result<(Tensor, Parts), LossError> {
    let (scales, [height, width]) = (windows.len() as i64, [2, 3].map(|dim| x.size()[dim]));
    // The sum and the difference of the images, and their squares.
    let products = Tensor::f_empty([&[4][..], &x.size()].concat(), (x.f_kind()?, x.device()))?;
    let _ = x.f_add_out(&products.f_get(0)?, y)?;
    let _ = x.f_sub_out(&products.f_get(1)?, y)?;
    let images = products.f_narrow(0, 0, 2)?;
    let _ = images.f_square_out(&products.f_narrow(0, 2, 2)?)?;
    let moments = Windows::f_new(windows, x)?.f_means(&products.f_view([-1, 1, height, width])?)?;
    let moments = moments.f_reshape([2, 2, -1, scales, height, width])?;

    let means = moments.f_get(0)?;
    let squares = means.f_square()?;
    let variances = moments.f_get(1)?.f_sub(&squares)?;
    let f_halved = |of: &Tensor, c: f64| of.f_get(0)?.f_lerp_number(&of.f_get(1)?, 0.5)?.f_add_number_(c);
    let structure = f_halved(&variances, c2)?;
    let lacking = variances.f_get(1)?.f_div(&structure)?;
    let rest = lacking.f_rsub_number(1)?;
    let last = squares.f_select(2, scales - 1)?;
    let luminance = f_halved(&last, c1)?;

    // 1 − (1 − a) (1 − b) = a + (1 − a) b
    let so_far = lacking.f_empty_like()?;
    let mut all = last.f_get(1)?.f_div_out(&so_far.f_select(1, 0)?, &luminance)?;
    for scale in 0..scales {
        let (own, rest) = (lacking.f_select(1, scale)?, rest.f_select(1, scale)?);
        all = match scale + 1 < scales {
            true => own.f_addcmul_out(&so_far.f_select(1, scale + 1)?, &rest, &all)?,
            false => own.f_addcmul(&rest, &all)?,
        };
    }
    Ok((all, Parts { images, means, lacking, structure, rest, so_far, luminance }))
}

fn f_backward(parts: &Parts, grad: &Tensor, windows: &[Vec<Taps>], needed: &[bool]) -> autograd::Gradients {
    let Parts { images, means, lacking, structure, rest, so_far, luminance } = parts;
    let (scales, size) = (windows.len() as i64, grad.size());
    // What comes back to each scale is what all others leave of the gradient.
    let mut of_scales = lacking.f_empty_like()?;
    let mut before = of_scales.f_select(1, scales - 1)?;
    before.f_copy_(&grad.f_reshape(before.size())?)?;
    for scale in (0..scales).rev() {
        let rest = rest.f_select(1, scale)?;
        before = match scale {
            0 => before.f_mul(&rest)?,
            _ => before.f_mul_out(&of_scales.f_select(1, scale - 1)?, &rest)?,
        };
    }
    let of_loose = of_scales.f_mul_(&so_far.f_rsub_number(1)?)?.f_div_(structure)?;
    let of_moments = Tensor::f_empty([&[2][..], &means.size()].concat(), (grad.f_kind()?, grad.device()))?;
    let of_squares = of_moments.f_get(1)?;
    let of_varied = of_loose.f_mul_out(&of_squares.f_get(0)?, lacking)?.f_mul_number_(-0.5)?;
    let _ = of_loose.f_add_out(&of_squares.f_get(1)?, &of_varied)?;

    // A variance is the mean of a square less the square of the mean, which luminance depends on as well.
    let of_dark = before.f_div_(luminance)?;
    let last = of_squares.f_select(2, 0)?.f_empty_like()?;
    let of_bright = of_dark.f_mul_out(&last.f_get(0)?, &so_far.f_select(1, 0)?)?.f_mul_number_(0.5)?;
    let _ = of_bright.f_sub_out(&last.f_get(1)?, &of_dark)?;
    let mut of_means = means.f_mul_out(&of_moments.f_get(0)?, &of_squares)?;
    let _ = of_means.f_select(2, scales - 1)?.f_addcmul_(&means.f_select(2, scales - 1)?, &last)?;
    let _ = of_means.f_mul_number_(-2)?;

    let of_moments = of_moments.f_view([-1, scales, size[2], size[3]])?;
    let of_products = Windows::f_new(windows, grad)?.f_transposed(&of_moments)?;
    let of_products = of_products.f_reshape([&[2, 2][..], &size].concat())?;
    let twice = of_products.f_get(1)?.f_mul_number_(2)?;
    let of_images = of_products.f_get(0)?.f_addcmul_(images, &twice)?;
    let (of_sum, of_difference) = (of_images.f_get(0)?, of_images.f_get(1)?);
    let of_x = needed[0].then(|| of_sum.f_add(&of_difference)).transpose()?;
    let of_y = needed[1].then(|| of_sum.f_sub(&of_difference)).transpose()?;
    Ok(vec![of_x, of_y])
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::random::rand;
    use crate::{Backend, Loss, MsSsimL1Loss, Reduction, like_cuda, with_backend};

    /// The loss, its gradients and their second derivatives.
    fn derivatives(loss: &MsSsimL1Loss, x: &Tensor, y: &Tensor, leaves: &[usize]) -> Vec<Tensor> {
        let arguments = [x, y].map(|image| image.copy());
        let arguments: Vec<Tensor> = arguments.into_iter().collect();
        let leaves: Vec<Tensor> =
            leaves.iter().map(|leaf| arguments[*leaf].shallow_clone().set_requires_grad(true)).collect();
        let value = loss.forward(&arguments[0], &arguments[1]);
        let factors = Tensor::linspace(0.5, 2.0, value.numel() as i64, (Kind::Double, x.device())).view_as(&value);
        let first = Tensor::run_backward(&[(&value * factors).sum(None)], &leaves, true, true);
        let sum = first.iter().map(|first| first.square().sum(None)).reduce(|a, b| a + b).unwrap();
        let second = Tensor::run_backward(&[sum], &leaves, false, false);
        [value].into_iter().chain(first).chain(second).map(|tensor| tensor.detach()).collect()
    }

    #[test]
    fn all_scales_at_once_are_those_one_by_one() {
        let image = || rand([2, 3, 9, 7]);
        let (x, y) = (image(), image());
        for sigmas in [&[0.5, 1.0, 2.0][..], &[1.5], &[0.5, 8.0]] {
            for (reduction, leaves) in [(Reduction::Mean, &[0][..]), (Reduction::None, &[1]), (Reduction::Sum, &[0, 1])]
            {
                let loss = MsSsimL1Loss::new().sigmas(sigmas).alpha(0.6).compensation(2.0).reduction(reduction);
                let one_by_one = with_backend(Backend::Composite, || derivatives(&loss, &x, &y, leaves));
                let at_once = like_cuda(|| derivatives(&loss, &x, &y, leaves));
                for (actual, expected) in at_once.iter().zip(&one_by_one) {
                    assert!(actual.allclose(expected, 1e-9, 1e-11, false), "{sigmas:?} {reduction:?}");
                }
                let same = like_cuda(|| loss.forward(&x, &x).abs().max().double_value(&[]));
                assert_eq!(same, 0.0, "equal images have no loss");
            }
        }
    }
}
