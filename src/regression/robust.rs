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

mod tests {
    use tch::{Kind, Tensor};

    use crate::*;

    /// All losses of differences, with scales that are next to nothing, too.
    fn losses() -> Vec<(&'static str, Box<dyn Loss>)> {
        vec![
            ("L1", Box::new(L1Loss::new())),
            ("MSE", Box::new(MseLoss::new())),
            ("smooth L1", Box::new(SmoothL1Loss::new())),
            ("smooth L1, β = 1e-50", Box::new(SmoothL1Loss::new().beta(1e-50))),
            ("smooth L1, β = 1e-42", Box::new(SmoothL1Loss::new().beta(1e-42))),
            ("Huber", Box::new(HuberLoss::new())),
            ("log-cosh", Box::new(LogCoshLoss::new())),
            ("quantile", Box::new(QuantileLoss::new().quantiles(0.7))),
            ("Charbonnier", Box::new(CharbonnierLoss::new())),
            ("Charbonnier, ε = 1e-37", Box::new(CharbonnierLoss::new().eps(1e-37))),
            ("Charbonnier, from ε", Box::new(CharbonnierLoss::new().minimum(CharbonnierMinimum::Eps))),
            ("Cauchy", Box::new(CauchyLoss::new())),
            ("Cauchy, c = 1e-37", Box::new(CauchyLoss::new().scale(1e-37))),
            ("Geman-McClure", Box::new(GemanMcClureLoss::new())),
            ("Geman-McClure, c = 1e-37", Box::new(GemanMcClureLoss::new().scale(1e-37))),
            ("Welsch", Box::new(WelschLoss::new())),
            ("MSLE", Box::new(MsleLoss::new())),
            ("MAPE", Box::new(MapeLoss::new())),
            ("hinge", Box::new(HingeLoss::new().targets(HingeTargets::Signs))),
            ("squared hinge", Box::new(HingeLoss::new().p(2).targets(HingeTargets::Signs))),
            ("hinge embedding", Box::new(HingeEmbeddingLoss::new())),
            ("soft margin", Box::new(SoftMarginLoss::new())),
        ]
    }

    /// The loss of one number, and its derivatives.
    fn of(loss: &dyn Loss, x: f64, y: f64, kind: Kind, backend: Backend) -> [f64; 3] {
        let [x, y] = [x, y].map(|number| Tensor::from_slice(&[number]).to_kind(kind).set_requires_grad(true));
        let loss = with_backend(backend, || loss.forward(&x, &y));
        loss.backward();
        let slope = |leaf: &Tensor| if leaf.grad().defined() { leaf.grad().double_value(&[0]) } else { 0.0 };
        [loss.double_value(&[]), slope(&x), slope(&y)]
    }

    #[test]
    fn nan_and_infinities_are_the_same_in_both_backends() {
        let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, 1.0, -1.0];
        for (name, loss) in losses() {
            for (kind, x) in [Kind::Float, Kind::Double].into_iter().flat_map(|kind| numbers.map(|x| (kind, x))) {
                for y in numbers {
                    let engine = of(&*loss, x, y, kind, Backend::Auto);
                    let composite = of(&*loss, x, y, kind, Backend::Composite);
                    let same =
                        |(a, b): (f64, f64)| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-5 * b.abs();
                    let all = engine.into_iter().zip(composite).all(same);
                    assert!(all, "{name}, {kind:?}, {x}, {y}: {engine:?}, not {composite:?}");
                    assert!(!(x.is_nan() || y.is_nan()) || engine[0].is_nan() || name == "hinge embedding", "{name}");
                }
            }
        }
    }

    #[test]
    fn nan_has_a_slope_of_nan() {
        for (name, loss) in losses() {
            // Those of PyTorch whose slope does not depend on how large the difference is.
            if ["L1", "hinge", "hinge embedding"].contains(&name) || name.contains("β = 1e-50") {
                continue;
            }
            for (x, y) in [(f64::NAN, 1.0), (1.0, f64::NAN)] {
                let [_, slope, _] = of(&*loss, x, y, Kind::Double, Backend::Composite);
                assert!(slope.is_nan(), "{name}, {x}, {y}: {slope}");
            }
        }
    }

    #[test]
    fn the_slope_at_the_target_is_a_number() {
        for backend in [Backend::Auto, Backend::Composite] {
            for beta in [1e-50, 1e-42, 1e-37] {
                let loss = SmoothL1Loss::new().beta(beta);
                assert_eq!(of(&loss, 2.0, 2.0, Kind::Float, backend), [0.0, 0.0, 0.0], "{backend:?}, β = {beta}");
                assert_eq!(of(&loss, 3.0, 2.0, Kind::Float, backend)[1..], [1.0, -1.0]);
            }
            // Infinite differences have the limit.
            let limits: [(Box<dyn Loss>, [f64; 2]); 5] = [
                (Box::new(CharbonnierLoss::new()), [f64::INFINITY, 1.0]),
                (Box::new(CauchyLoss::new()), [f64::INFINITY, 0.0]),
                (Box::new(GemanMcClureLoss::new()), [2.0, 0.0]),
                (Box::new(WelschLoss::new()), [1.0, 0.0]),
                (Box::new(LogCoshLoss::new()), [f64::INFINITY, 1.0]),
            ];
            for (loss, expected) in limits {
                assert_eq!(of(&*loss, f64::INFINITY, 0.0, Kind::Double, backend)[..2], expected);
            }
        }
    }
}
