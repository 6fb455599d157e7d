use super::*;
use crate::kernels::number::sigmoids;

/// The distance of `actual` from `expected` in units in the last place of an `f32`.
fn ulps_f32(actual: f32, expected: f64) -> f64 {
    if f64::from(actual) == expected {
        return 0.0;
    }
    let spacing = (expected as f32).abs().max(f32::MIN_POSITIVE);
    let spacing = f64::from(f32::from_bits(spacing.to_bits() + 1)) - f64::from(spacing);
    (f64::from(actual) - expected).abs() / spacing
}

/// The distance of `actual` from `expected` in units in the last place of an `f64`.
fn ulps_f64(actual: f64, expected: f64) -> f64 {
    if actual == expected {
        return 0.0;
    }
    let spacing = expected.abs().max(f64::MIN_POSITIVE);
    (actual - expected).abs() / (f64::from_bits(spacing.to_bits() + 1) - spacing)
}

/// Positive numbers of all magnitudes.
fn sweep(bits: impl Iterator<Item = u32>) -> impl Iterator<Item = f32> {
    bits.map(f32::from_bits)
}

fn single() {
    let lane = |x: f32| Lane(x);
    for x in sweep((0..f32::INFINITY.to_bits()).step_by(9973)) {
        let wide = f64::from(x);
        assert!(ulps_f32(lane(x).ln().0, wide.ln()) <= 2.0, "ln {x}");
        assert!(ulps_f32(lane(x).ln_1p().0, wide.ln_1p()) <= 2.0, "ln_1p {x}");
        if x <= 1.0 {
            assert!(ulps_f32(lane(x).ln_1p_unit().0, wide.ln_1p()) <= 2.0, "ln_1p_unit {x}");
        }
        assert!(ulps_f32(lane(x).atan().0, wide.atan()) <= 2.0, "atan {x}");
        for x in [x, -x] {
            let expected = f64::from(x).exp();
            if expected < f64::from(f32::MAX) {
                assert!(ulps_f32(lane(x).exp().0, expected) <= 2.0, "exp {x}");
                assert!(ulps_f32(lane(x).exp_m1().0, f64::from(x).exp_m1()) <= 2.0, "exp_m1 {x}");
            }
        }
        let expected = if wide < 87.3 { (-wide).exp() } else { lane(-x).exp_of_negative().0.into() };
        assert!(ulps_f32(lane(-x).exp_of_negative().0, expected) <= 2.0, "exp -{x}");
        assert!(ulps_f32(lane(-x).tanh().0, (-wide).tanh()) <= 4.0, "tanh -{x}");
        assert!(lane(-x).exp_of_negative().0 <= 1.0 && (wide < 88.0 || lane(-x).exp_of_negative().0 == 0.0));
    }
}

fn double() {
    let lane = |x: f64| Lane(x);
    for x in sweep((0..f32::INFINITY.to_bits()).step_by(9973)) {
        // Numbers that are not exact in `f32`, and squares for twice the range of exponents.
        let x = f64::from(x) * 1.1;
        for x in [x, x * x] {
            assert!(ulps_f64(lane(x).ln().0, x.ln()) <= 2.0, "ln {x}");
            assert!(ulps_f64(lane(x).ln_1p().0, x.ln_1p()) <= 2.0, "ln_1p {x}");
            if x <= 1.0 {
                assert!(ulps_f64(lane(x).ln_1p_unit().0, x.ln_1p()) <= 2.0, "ln_1p_unit {x}");
            }
            assert!(ulps_f64(lane(x).atan().0, x.atan()) <= 2.0, "atan {x}");
            for x in [x, -x] {
                if x.exp() < f64::MAX {
                    assert!(ulps_f64(lane(x).exp().0, x.exp()) <= 2.0, "exp {x}: {}", lane(x).exp().0);
                    assert!(ulps_f64(lane(x).exp_m1().0, x.exp_m1()) <= 2.0, "exp_m1 {x}");
                }
            }
            let fast = lane(-x).exp_of_negative().0;
            let expected = if x < 708.0 { (-x).exp() } else { fast };
            assert!(ulps_f64(fast, expected) <= 2.0 && fast <= 1.0 && (x < 709.0 || fast == 0.0), "exp -{x}");
        }
    }
}

#[test]
fn functions_are_within_two_units_in_the_last_place() {
    single();
    double();
}

#[test]
fn special_values() {
    fn check<R: Real<Mask = bool> + PartialOrd + std::fmt::Debug>() {
        let (inf, nan) = (R::of(f64::INFINITY), R::of(f64::NAN));
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let is_nan = |x: R| x.partial_cmp(&x).is_none();
        assert_eq!((inf.exp(), (-inf).exp(), zero.exp()), (inf, zero, one));
        assert_eq!((inf.ln(), zero.ln(), one.ln()), (inf, -inf, zero));
        assert_eq!((inf.ln_1p(), (-one).ln_1p(), zero.ln_1p()), (inf, -inf, zero));
        assert_eq!(((-inf).exp_of_negative(), zero.exp_of_negative()), (zero, one));
        assert_eq!((inf.exp_m1(), (-inf).exp_m1(), zero.exp_m1()), (inf, -one, zero));
        assert_eq!((inf.tanh(), (-inf).tanh(), zero.tanh()), (one, -one, zero));
        let of_nan = [nan.tanh(), nan.exp(), nan.exp_of_negative(), nan.exp_m1(), nan.ln(), nan.ln_1p(), (-one).ln()];
        assert!(of_nan.into_iter().all(is_nan));
        assert_eq!((inf.atan(), zero.atan()), (R::of(std::f64::consts::FRAC_PI_2), zero));
        assert!(is_nan(nan.atan()));
        assert_eq!((R::of(-3.0).sign(), zero.sign(), R::of(3.0).sign(), nan.sign()), (-one, zero, one, zero));
        assert_eq!((nan.max(zero), zero.max(nan), one.max(zero)), (zero, zero, one));
        assert!(is_nan(nan.at_least(zero)) && is_nan(nan.at_most(zero)));
        assert_eq!((zero.power(R::of(0.5)), zero.power(zero)), (zero, one));
        for x in [1e4, 1e30, f64::INFINITY] {
            let (large, small, log) = sigmoids(R::of(x));
            assert_eq!((large, small, log), (one, zero, zero));
            let (large, small, log) = sigmoids(R::of(-x));
            assert_eq!((large, small, log), (zero, one, zero));
        }
    }
    check::<Lane<f32>>();
    check::<Lane<f64>>();
}
