//! What the losses of box overlap share.

use tch::Tensor;

use crate::kernels::{NumberOperations, Pointwise, Real, choose, f_boxes};
use crate::numeric::{f_ratio, f_reals, result_kind, wide_kind};
use crate::{LossError, Reduction, check};

/// Checks that both arguments are boxes, and of the same number.
pub(super) fn check(input: &Tensor, target: &Tensor) -> Result<(), LossError> {
    check::arguments(input, target)?;
    check::not_boolean(("target", target))?;
    check::shape(("input", input), input.size().last() == Some(&4), "[*, 4], the corners x1, y1, x2, y2 of boxes")?;
    check::same_shape(("target", target), ("input", input))
}

/// Pairs of boxes `[*, 4]` as corners `(x1, y1, x2, y2)`, and what all losses compute of them.
pub(super) struct Boxes {
    /// The corners of the input's boxes with the least coordinates, `[*, 2]`.
    input_low: Tensor,
    /// The corners of the input's boxes with the greatest coordinates.
    input_high: Tensor,
    target_low: Tensor,
    target_high: Tensor,
    /// The area of the intersection, `[*]`.
    intersection: Tensor,
    /// The area of the union.
    pub(super) union: Tensor,
}

impl Boxes {
    /// The boxes of checked arguments.
    pub(super) fn f_new(input: &Tensor, target: &Tensor) -> Result<Boxes, LossError> {
        let kind = wide_kind(input)?;
        let (input, target) = (input.f_to_kind(kind)?, f_reals(("target", target), kind)?);
        let (input_low, input_high) = (input.f_narrow(-1, 0, 2)?, input.f_narrow(-1, 2, 2)?);
        let (target_low, target_high) = (target.f_narrow(-1, 0, 2)?, target.f_narrow(-1, 2, 2)?);

        let overlap = input_high.f_minimum(&target_high)?.f_sub(&input_low.f_maximum(&target_low)?)?.f_relu()?;
        let intersection = f_area(&overlap)?;
        let input_area = f_area(&input_high.f_sub(&input_low)?)?;
        let target_area = f_area(&target_high.f_sub(&target_low)?)?;
        let union = input_area.f_add(&target_area)?.f_sub(&intersection)?;
        Ok(Boxes { input_low, input_high, target_low, target_high, intersection, union })
    }

    /// Intersection over union, 0 for boxes without an area.
    pub(super) fn f_iou(&self, eps: f64) -> Result<Tensor, LossError> {
        f_ratio(&self.intersection, &self.union.f_add_number(eps)?)
    }

    /// The widths and heights of the smallest boxes that contain both, `[*, 2]`.
    fn f_enclosing(&self) -> Result<Tensor, LossError> {
        let high = self.input_high.f_maximum(&self.target_high)?;
        Ok(high.f_sub(&self.input_low.f_minimum(&self.target_low)?)?)
    }

    /// The areas of the smallest boxes that contain both.
    pub(super) fn f_enclosing_area(&self) -> Result<Tensor, LossError> {
        f_area(&self.f_enclosing()?)
    }

    /// 1 − IoU + ρ² / c², where ρ is the distance of the centres and c the diagonal of the enclosing box.
    pub(super) fn f_distance_loss(&self, iou: &Tensor, eps: f64) -> Result<Tensor, LossError> {
        let diagonal = f_squared_length(&self.f_enclosing()?)?.f_add_number(eps)?;
        let input_centre = self.input_high.f_add(&self.input_low)?.f_div_number(2)?;
        let target_centre = self.target_high.f_add(&self.target_low)?.f_div_number(2)?;
        let distance = f_squared_length(&input_centre.f_sub(&target_centre)?)?;
        Ok(iou.f_rsub_number(1)?.f_add(&f_ratio(&distance, &diagonal)?)?)
    }

    /// 4/π² (θ − θ')², where θ = arctan(width / height) of either box; 0 where a box is a single point.
    pub(super) fn f_aspect(&self) -> Result<Tensor, LossError> {
        let input = self.input_high.f_sub(&self.input_low)?;
        let target = self.target_high.f_sub(&self.target_low)?;
        let is_point = |size: &Tensor| size.f_eq_number(0)?.f_all_dim(-1, true);
        // A point has no aspect ratio. Both boxes are replaced by squares, so that value and gradient are 0.
        let points = is_point(&input)?.f_logical_or(&is_point(&target)?)?;
        let input_angle = f_angle(&input.f_masked_fill_number(&points, 1)?)?;
        let target_angle = f_angle(&target.f_masked_fill_number(&points, 1)?)?;
        let factor = 4.0 / std::f64::consts::PI.powi(2);
        Ok(target_angle.f_sub(&input_angle)?.f_square()?.f_mul_number(factor)?)
    }
}

/// The coordinates of a pair of boxes, the input's and the target's, along one axis, for the formulas of the engine.
#[derive(Clone, Copy)]
pub(super) struct Axis<R> {
    low: [R; 2],
    high: [R; 2],
}

/// Lengths along one axis, or the derivatives with respect to them.
#[derive(Clone, Copy)]
pub(super) struct Lengths<R> {
    /// The length of the intersection.
    pub(super) overlap: R,
    /// The length of the box around both.
    pub(super) enclosing: R,
    pub(super) input: R,
    pub(super) target: R,
    /// From the target's centre to that of the input.
    pub(super) distance: R,
}

impl<R: Real> Axis<R> {
    /// Both axes of the corners of the input and the target.
    #[inline(always)]
    pub(super) fn both([a, b, c, d, e, f, g, h]: [R; 8]) -> [Self; 2] {
        [Self { low: [a, e], high: [c, g] }, Self { low: [b, f], high: [d, h] }]
    }

    #[inline(always)]
    pub(super) fn lengths(self) -> Lengths<R> {
        let Self { low: [a, b], high: [c, d] } = self;
        let half = R::of(0.5);
        Lengths {
            overlap: (smaller(c, d) - larger(a, b)).at_least(R::of(0.0)),
            enclosing: larger(c, d) - smaller(a, b),
            input: c - a,
            target: d - b,
            distance: half * (c + a) - half * (d + b),
        }
    }

    /// Turns derivatives with respect to the lengths into those with respect to the low and high coordinates, of the
    /// input and then of the target.
    #[inline(always)]
    fn derive(self, of: Lengths<R>) -> [[R; 2]; 2] {
        let Self { low: [a, b], high: [c, d] } = self;
        let (zero, half, one) = (R::of(0.0), R::of(0.5), R::of(1.0));
        let open = choose(smaller(c, d).greater(larger(a, b)), of.overlap, zero);
        let (low, high) = (share(a, b), share(c, d));
        let (other_low, other_high) = (one - low, one - high);
        let centre = half * of.distance;
        [
            [
                centre - of.input - open * low - of.enclosing * other_low,
                centre + of.input + open * other_high + of.enclosing * high,
            ],
            [
                -centre - of.target - open * other_low - of.enclosing * low,
                of.target - centre + open * high + of.enclosing * other_high,
            ],
        ]
    }

    /// The derivatives with respect to the corners of the input and the target.
    #[inline(always)]
    pub(super) fn derive_both([x, y]: [Self; 2], [of_x, of_y]: [Lengths<R>; 2]) -> [R; 8] {
        let ([[a, c], [e, g]], [[b, d], [f, h]]) = (x.derive(of_x), y.derive(of_y));
        [a, b, c, d, e, f, g, h]
    }
}

/// NaN where either is.
#[inline(always)]
fn larger<R: Real>(a: R, b: R) -> R {
    choose(a.greater(b) | is_nan(a), a, b)
}

/// NaN where either is.
#[inline(always)]
fn smaller<R: Real>(a: R, b: R) -> R {
    choose(a.less(b) | is_nan(a), a, b)
}

#[inline(always)]
fn is_nan<R: Real>(x: R) -> R::Mask {
    x.unequal(x)
}

/// The derivative of the larger of `a` and `b` with respect to `a`: 1/2 where both are equal.
#[inline(always)]
fn share<R: Real>(a: R, b: R) -> R {
    choose(a.greater(b), R::of(1.0), choose(a.equal(b), R::of(0.5), R::of(0.0)))
}

/// A quotient with its derivatives, all 0 where the divisor is 0.
#[derive(Clone, Copy)]
pub(super) struct Quotient<R> {
    pub(super) value: R,
    pub(super) of_dividend: R,
    pub(super) of_divisor: R,
}

impl<R: Real> Quotient<R> {
    #[inline(always)]
    pub(super) fn new(dividend: R, divisor: R) -> Self {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let none = divisor.equal(zero);
        let divisor = choose(none, one, divisor);
        let of_dividend = choose(none, zero, one / divisor);
        let value = choose(none, zero, dividend / divisor);
        Self { value, of_dividend, of_divisor: -value * of_dividend }
    }
}

/// Intersection over union for the formulas of the engine.
#[derive(Clone, Copy)]
pub(super) struct Overlap<R> {
    pub(super) union: R,
    pub(super) iou: Quotient<R>,
}

impl<R: Real> Overlap<R> {
    #[inline(always)]
    pub(super) fn new([x, y]: [Lengths<R>; 2], eps: f64) -> Self {
        let intersection = x.overlap * y.overlap;
        let union = x.input * y.input + x.target * y.target - intersection;
        Self { union, iou: Quotient::new(intersection, union + R::of(eps)) }
    }

    /// The derivatives, with respect to the lengths, of minus the quotient and of `of_union` times the union.
    #[inline(always)]
    pub(super) fn derive(self, [x, y]: [Lengths<R>; 2], of_union: R) -> [Lengths<R>; 2] {
        let of_union = of_union - self.iou.of_divisor;
        let of_intersection = -self.iou.of_dividend - of_union;
        let of = |other: Lengths<R>| Lengths {
            overlap: of_intersection * other.overlap,
            enclosing: R::of(0.0),
            input: of_union * other.input,
            target: of_union * other.target,
            distance: R::of(0.0),
        };
        [of(y), of(x)]
    }
}

/// 1 − IoU + ρ² / c² and its derivatives with respect to the lengths, for the formulas of the engine.
#[inline(always)]
pub(super) fn distance_loss<R: Real>(lengths: [Lengths<R>; 2], overlap: Overlap<R>, eps: f64) -> (R, [Lengths<R>; 2]) {
    let [x, y] = lengths;
    let diagonal = x.enclosing * x.enclosing + y.enclosing * y.enclosing + R::of(eps);
    let distance = Quotient::new(x.distance * x.distance + y.distance * y.distance, diagonal);
    let two = R::of(2.0);
    let [of_x, of_y] = overlap.derive(lengths, R::of(0.0));
    let with = |of: Lengths<R>, along: Lengths<R>| Lengths {
        enclosing: two * distance.of_divisor * along.enclosing,
        distance: two * distance.of_dividend * along.distance,
        ..of
    };
    (R::of(1.0) - overlap.iou.value + distance.value, [with(of_x, x), with(of_y, y)])
}

/// arctan(width / height) of a box and its derivatives, 0 for a box that is a single point.
#[inline(always)]
pub(super) fn angle<R: Real>(width: R, height: R) -> (R, R, R) {
    let zero = R::of(0.0);
    let square = width * width + height * height;
    let none = square.equal(zero);
    let inverse = choose(none, zero, R::of(1.0) / choose(none, R::of(1.0), square));
    let size = (width.abs() / height.abs()).atan();
    let left = width.less(zero) ^ height.less(zero);
    (choose(left, -size, size), height * inverse, -width * inverse)
}

/// The area of widths and heights `[*, 2]`.
fn f_area(size: &Tensor) -> Result<Tensor, LossError> {
    Ok(size.f_select(-1, 0)?.f_mul(&size.f_select(-1, 1)?)?)
}

fn f_squared_length(vector: &Tensor) -> Result<Tensor, LossError> {
    Ok(vector.f_square()?.f_sum_dim_intlist(-1, false, None)?)
}

/// arctan(width / height), whose value and gradient are finite for a height of 0, too.
fn f_angle(size: &Tensor) -> Result<Tensor, LossError> {
    let upright = size.f_narrow(-1, 1, 1)?.f_ge_number(0)?;
    let size = size.f_where_self(&upright, &size.f_neg()?)?;
    Ok(size.f_select(-1, 0)?.f_atan2(&size.f_select(-1, 1)?)?)
}

/// A loss of box overlap as a formula of the corners of two boxes.
pub(super) trait BoxFormula: Pointwise<8> {
    /// The losses by tensor operations.
    fn f_losses(self, boxes: &Boxes) -> Result<Tensor, LossError>;

    /// The reduced loss without a weight.
    fn f_reduced(self, input: &Tensor, target: &Tensor, reduction: Reduction) -> Result<Tensor, LossError> {
        f_boxes(self, [input, target], reduction, move |[input, target]| {
            f_reduce(&self.f_losses(&Boxes::f_new(input, target)?)?, reduction, input)
        })
    }
}

/// The reduced losses in the kind of `input`; the mean over no boxes is 0.
fn f_reduce(losses: &Tensor, reduction: Reduction, input: &Tensor) -> Result<Tensor, LossError> {
    let reduction = match reduction {
        Reduction::Mean if losses.numel() == 0 => Reduction::Sum,
        reduction => reduction,
    };
    Ok(reduction.f_apply(losses)?.f_to_kind(result_kind(input)?)?)
}

/// What holds for every loss of box overlap, given as a function of ε and the reduction.
#[cfg(test)]
pub(super) fn assert_loss_of_boxes(loss: impl Fn(f64, Reduction) -> Box<dyn crate::Loss>) {
    tests::assert_wrong_calls_name_the_argument(&loss);
    tests::assert_no_boxes_have_a_mean_of_zero(&loss);
    tests::assert_half_kinds_are_computed_in_single_precision(&loss);
    tests::assert_degenerate_boxes_have_finite_values_and_gradients(&loss);
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::Loss;

    type New<'a> = &'a dyn Fn(f64, Reduction) -> Box<dyn Loss>;

    const EPS: f64 = 1e-7;

    fn boxes() -> (Tensor, Tensor) {
        let input = Tensor::from_slice(&[0.0, 0.0, 2.0, 2.0, 1.0, 1.0, 4.0, 3.0]).view([2, 4]);
        let target = Tensor::from_slice(&[1.0, 0.0, 3.0, 2.0, 1.5, 0.5, 3.0, 5.0]).view([2, 4]);
        (input, target)
    }

    pub(super) fn assert_wrong_calls_name_the_argument(new: New) {
        let (input, target) = boxes();
        let message = |eps, input: &Tensor, target: &Tensor| {
            new(eps, Reduction::None).f_forward(input, target).unwrap_err().to_string()
        };
        let cases = [
            (
                message(EPS, &input.view([4, 2]), &target),
                "input has shape [4, 2], expected [*, 4], the corners x1, y1, x2, y2 of boxes",
            ),
            (message(EPS, &input, &target.get(0)), "target has shape [4], expected [2, 4], the shape of input"),
            (message(EPS, &input.to_kind(Kind::Int64), &target), "input has kind Int64, expected a floating kind"),
            (message(EPS, &input, &target.to_kind(Kind::Bool)), "target has kind Bool, expected a kind of numbers"),
            (message(-1.0, &input, &target), "option eps is -1, expected a finite number of at least 0"),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, expected);
        }
    }

    pub(super) fn assert_no_boxes_have_a_mean_of_zero(new: New) {
        let none = Tensor::zeros([0, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let loss = new(EPS, Reduction::Mean).forward(&none, &none.detach());
        loss.backward();
        assert_eq!((f64::try_from(&loss).unwrap(), none.grad().size()), (0.0, vec![0, 4]));
    }

    pub(super) fn assert_half_kinds_are_computed_in_single_precision(new: New) {
        let (input, target) = boxes();
        let criterion = new(EPS, Reduction::None);
        let expected = criterion.forward(&input.to_kind(Kind::Float), &target);
        for kind in [Kind::Half, Kind::BFloat16] {
            let loss = criterion.forward(&input.to_kind(kind), &target.to_kind(kind));
            assert_eq!(loss, expected.to_kind(kind));
        }
    }

    /// Without an ε, too.
    pub(super) fn assert_degenerate_boxes_have_finite_values_and_gradients(new: New) {
        for (eps, kind) in [EPS, 0.0].into_iter().flat_map(|eps| [(eps, Kind::Float), (eps, Kind::Double)]) {
            let criterion = new(eps, Reduction::Sum);
            for (a, b) in degenerate() {
                let input = Tensor::from_slice(&a).to_kind(kind).set_requires_grad(true);
                let loss = criterion.forward(&input, &Tensor::from_slice(&b));
                loss.backward();
                let finite = loss.isfinite().all().logical_and(&input.grad().isfinite().all());
                assert!(bool::try_from(finite).unwrap(), "{a:?} {b:?}: {loss} {}", input.grad());
            }
        }
    }

    /// Pairs of boxes without an area, equal, far apart and inverted.
    fn degenerate() -> Vec<([f64; 4], [f64; 4])> {
        let boxes = [
            [0.0, 0.0, 0.0, 0.0],
            [1.0, 1.0, 1.0, 1.0],
            [1.0, 1.0, 1.0, 3.0],
            [1.0, 1.0, 3.0, 1.0],
            [0.0, 0.0, 2.0, 2.0],
            [3.0, 3.0, 1.0, 1.0],
            [3.0, 1.0, 1.0, 3.0],
            [-1e4, -1e4, 1e4, 1e4],
            [1e4, 1e4, 1e4 + 1.0, 1e4 + 1.0],
            [-1e8, -1e8, -1e8, 1e8],
        ];
        boxes.iter().flat_map(|a| boxes.iter().map(|b| (*a, *b))).collect()
    }
}
