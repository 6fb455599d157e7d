//! What the losses of box overlap share.

use tch::Tensor;

use crate::numeric::{f_ratio, f_reals, wide_kind};
use crate::{LossError, Reduction, check};

/// Pairs of boxes `[*, 4]` as corners `(x1, y1, x2, y2)`, and what all losses compute of them.
pub(super) struct Boxes {
    /// The corners of the input of least coordinates, `[*, 2]`.
    input_low: Tensor,
    /// The corners of the input of greatest coordinates.
    input_high: Tensor,
    target_low: Tensor,
    target_high: Tensor,
    /// The area of the intersection, `[*]`.
    intersection: Tensor,
    /// The area of the union.
    pub(super) union: Tensor,
}

impl Boxes {
    pub(super) fn f_new(input: &Tensor, target: &Tensor) -> Result<Boxes, LossError> {
        check::devices(&[("input", input), ("target", target)])?;
        check::floating(("input", input))?;
        check::not_boolean(("target", target))?;
        if input.size().last() != Some(&4) {
            return Err(check::shape_error(("input", input), "[*, 4], the corners x1, y1, x2, y2 of boxes"));
        }
        check::same_shape(("target", target), ("input", input))?;
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
        f_ratio(&self.intersection, &self.union.f_add_scalar(eps)?)
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
        let diagonal = f_squared_length(&self.f_enclosing()?)?.f_add_scalar(eps)?;
        let input_centre = self.input_high.f_add(&self.input_low)?.f_div_scalar(2)?;
        let target_centre = self.target_high.f_add(&self.target_low)?.f_div_scalar(2)?;
        let distance = f_squared_length(&input_centre.f_sub(&target_centre)?)?;
        Ok(iou.f_rsub_scalar(1)?.f_add(&f_ratio(&distance, &diagonal)?)?)
    }

    /// 4/π² (θ − θ')², where θ = arctan(width / height) of either box; 0 where a box is a single point.
    pub(super) fn f_aspect(&self) -> Result<Tensor, LossError> {
        let input = self.input_high.f_sub(&self.input_low)?;
        let target = self.target_high.f_sub(&self.target_low)?;
        let is_point = |size: &Tensor| size.f_eq(0)?.f_all_dim(-1, true);
        // A point has no aspect: as a square beside another square it leaves neither value nor gradient.
        let points = is_point(&input)?.f_logical_or(&is_point(&target)?)?;
        let input_angle = f_angle(&input.f_masked_fill(&points, 1)?)?;
        let target_angle = f_angle(&target.f_masked_fill(&points, 1)?)?;
        let factor = 4.0 / std::f64::consts::PI.powi(2);
        Ok(target_angle.f_sub(&input_angle)?.f_square()?.f_mul_scalar(factor)?)
    }
}

/// The area of widths and heights `[*, 2]`.
fn f_area(size: &Tensor) -> Result<Tensor, LossError> {
    Ok(size.f_select(-1, 0)?.f_mul(&size.f_select(-1, 1)?)?)
}

fn f_squared_length(vector: &Tensor) -> Result<Tensor, LossError> {
    Ok(vector.f_square()?.f_sum_dim_intlist(-1, false, None)?)
}

/// arctan(width / height), which has a value and a gradient for a height of 0, too.
fn f_angle(size: &Tensor) -> Result<Tensor, LossError> {
    let upright = size.f_narrow(-1, 1, 1)?.f_ge(0)?;
    let size = size.f_where_self(&upright, &size.f_neg()?)?;
    Ok(size.f_select(-1, 0)?.f_atan2(&size.f_select(-1, 1)?)?)
}

/// The reduced losses in the kind of `input`; the mean over no boxes is 0.
pub(super) fn f_reduce(losses: &Tensor, reduction: Reduction, input: &Tensor) -> Result<Tensor, LossError> {
    let reduction = match reduction {
        Reduction::Mean if losses.numel() == 0 => Reduction::Sum,
        reduction => reduction,
    };
    Ok(reduction.f_apply(losses)?.f_to_kind(input.f_kind()?)?)
}

/// The option `eps` of the losses of boxes.
pub(super) fn check_eps(option: &'static str, eps: f64) -> Result<(), LossError> {
    check::option(option, eps, eps.is_finite() && eps >= 0.0, "a finite number of at least 0")
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
