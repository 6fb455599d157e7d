//! What the tests of all robust losses have in common.

use tch::Tensor;

use crate::{Backend, Loss, Reduction, numeric, with_backend};

/// A loss with a scale, with or without a weight for each element.
pub(super) type Build = fn(f64, Option<Tensor>, Reduction) -> Box<dyn Loss>;

pub(super) fn assert_scale_is_positive(option: &str, build: Build) {
    let x = Tensor::from_slice(&[1.0]);
    for (scale, actual) in [(0.0, "0"), (-1.0, "-1"), (f64::NAN, "NaN")] {
        let error = build(scale, None, Reduction::Mean).f_forward(&x, &x).unwrap_err();
        let expected = format!("option {option} is {actual}, expected a number in [1e-37, 1e37]");
        assert_eq!(error.to_string(), expected);
    }
}

/// The loss of differences of 10²⁵ and −10²⁵, and the size of its derivative, at a scale of 1.
pub(super) fn assert_of_huge_differences(build: Build, loss: f32, slope: f32) {
    let target = Tensor::from_slice(&[0_f32, 0.0]);
    for backend in [Backend::Auto, Backend::Composite] {
        let input = Tensor::from_slice(&[1e25_f32, -1e25]).set_requires_grad(true);
        let losses = with_backend(backend, || build(1.0, None, Reduction::None).forward(&input, &target));
        losses.sum(None).backward();
        assert_eq!(Vec::<f32>::try_from(losses).unwrap(), [loss, loss], "{backend:?}");
        assert_eq!(Vec::<f32>::try_from(input.grad()).unwrap(), [slope, -slope], "{backend:?}");
    }
}

pub(super) fn assert_gradients(build: Build) {
    let (input, target) = (Tensor::from_slice(&[0.5, -2.0, 3.0, 9.0]), Tensor::from_slice(&[0.4, -2.0, 1.0, -1.0]));
    let loss = build(0.7, Some(Tensor::from_slice(&[1.0, 2.0, 0.5, 0.1])), Reduction::Mean);
    numeric::assert_gradient(&input, |input| loss.forward(input, &target));
    numeric::assert_gradient(&target, |target| loss.forward(&input, target));
}
