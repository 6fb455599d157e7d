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

/// Pairs of boxes without an area, equal, far apart and inverted, for the tests of all losses.
#[cfg(test)]
pub(super) fn degenerate() -> Vec<([f64; 4], [f64; 4])> {
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
