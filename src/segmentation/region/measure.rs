//! The sizes of the regions of an input and a target, by the engine or by tensor operations.

use tch::{Kind, Tensor};

use super::entropy::PlainCrossEntropy;
use super::options::{Grouping, IgnoreScope, OverlapMeasure, Regions};
use crate::check::{self, ClassIndices, Validity};
use crate::kernels::{
    Entropy, NumberOperations, Regional, Sums, Total, f_beside, f_region, is_on_cuda, takes_region, waits,
};
use crate::segmentation::activation::{
    Activating, Activation, f_activate, f_check_input, f_check_masks, f_check_softmax,
};
use crate::{InvalidValues, LossError, numeric};

/// The sums of regions, and which targets and inputs are valid.
type Measured = ([Tensor; 3], Validity, Validity);

/// What a target can be that does not have the shape of class indices.
const OR_MASKS: &str = ", or that of input for masks";

/// The sizes of all regions.
pub(in crate::segmentation) struct Sizes {
    /// |p ∩ t|.
    pub(in crate::segmentation) intersection: Tensor,
    /// |p|.
    pub(in crate::segmentation) input: Tensor,
    /// |t|.
    pub(in crate::segmentation) target: Tensor,
    /// Which inputs, targets and weights were valid.
    pub(super) validity: Vec<Validity>,
    /// The kind of the loss.
    pub(in crate::segmentation) kind: Kind,
}

impl Sizes {
    /// Those of the intersections, of the input's regions and of the target's.
    pub(super) fn each(&self) -> [&Tensor; 3] {
        [&self.intersection, &self.input, &self.target]
    }
    /// The sizes that `f` makes of these. What is known about valid targets and weights stays with `self`.
    pub(in crate::segmentation) fn f_map(
        &self,
        f: impl Fn(&Tensor) -> Result<Tensor, LossError>,
    ) -> Result<Self, LossError> {
        Ok(Self {
            intersection: f(&self.intersection)?,
            input: f(&self.input)?,
            target: f(&self.target)?,
            validity: vec![],
            kind: self.kind,
        })
    }
}

impl Regions {
    /// Checks the call and measures the regions of `input`, after `activation`, and of `target`.
    pub(super) fn f_measure(
        &self,
        input: &Tensor,
        target: &Tensor,
        activation: &Activating,
    ) -> Result<Sizes, LossError> {
        check::arguments(input, target)?;
        self.f_check_options(input)?;
        f_check_softmax(activation.activation(), input)?;
        let valid_weight = self.f_check_weight(input)?;
        let (kind, input) = (numeric::result_kind(input)?, activation.f_prepare(input)?);
        if let Some(sums) = self.f_fused(&input, target, activation, None)? {
            return self.f_sizes(sums.regions, vec![self.f_found(sums.valid)?, valid_weight], kind);
        }
        let wide = input.f_to_kind(numeric::wide_kind(&input)?)?;
        let (sums, valid_target, valid_input) = self.f_composite(&wide, target, activation)?;
        self.f_sizes(sums, vec![valid_input, valid_target, valid_weight], kind)
    }

    /// The sizes of all regions of a softmax, and the sums of a cross entropy of the same; nothing where the engine
    /// does not take the call.
    pub(in crate::segmentation) fn f_measure_with(
        &self,
        entropy: &PlainCrossEntropy,
        input: &Tensor,
        target: &Tensor,
    ) -> Result<Option<(Sizes, Tensor, Total)>, LossError> {
        self.f_check_options(input)?;
        let valid_weight = self.f_check_weight(input)?;
        let sums = self.f_fused(input, target, &Activating::Known(Activation::Softmax), Some(entropy))?;
        let Some(Sums { regions, entropy: Some(entropy), weight, valid }) = sums else { return Ok(None) };
        let valid = self.f_found(valid)?;
        let entropy = valid.f_poison(&entropy, false)?;
        // The parts are added up before they are rounded to the input's kind.
        let sizes = self.f_sizes(regions, vec![valid, valid_weight], numeric::wide_kind(input)?)?;
        Ok(Some((sizes, entropy, weight)))
    }

    /// What the engine has found of the values of input and target.
    fn f_found(&self, valid: Option<Tensor>) -> Result<Validity, LossError> {
        let expected = "classes or masks in range, and probabilities in [0, 1] without an activation";
        Validity::f_found("input or target", valid, expected, self.invalid_values)
    }

    fn f_sizes(&self, sums: [Tensor; 3], validity: Vec<Validity>, kind: Kind) -> Result<Sizes, LossError> {
        let [intersection, input, target] = sums;
        let (intersection, input) = (self.f_group(intersection)?, self.f_group(input)?);
        Ok(Sizes { intersection, input, target: self.f_group(target)?, validity, kind })
    }

    /// The sums `[N, C]` by the engine; nothing where it does not take the call.
    fn f_fused(
        &self,
        input: &Tensor,
        target: &Tensor,
        activation: &Activating,
        entropy: Option<&PlainCrossEntropy>,
    ) -> Result<Option<Sums>, LossError> {
        let masks = target.size() == input.size();
        let element_wise = self.ignore_scope == IgnoreScope::Element || input.size()[1] == 1;
        if !takes_region(input) || self.ignore_index.is_some() && masks && !element_wise {
            return Ok(None);
        }
        if !masks && self.invalid_values == InvalidValues::Nan && !is_on_cuda(input) {
            return Ok(None);
        }
        let target = f_target(input, target)?;
        let formula = Regional {
            activation: activation.activation(),
            measure: self.measure,
            ignored: self.ignore_index,
            expected: activation.expected(),
            entropy: entropy.map(|entropy| Entropy { weight: entropy.weight.as_ref().map(Tensor::shallow_clone) }),
        };
        let ignore_scope = self.ignore_scope;
        let composite = {
            let formula = formula.clone();
            move |input: &Tensor, target: &Tensor| f_differentiable_sums(&formula, ignore_scope, input, target)
        };
        f_region(formula, input, &target, composite)
    }

    /// The sums `[N, C]` of the intersections, the input's and the target's regions, by tensor operations. And whether
    /// target and input are valid.
    fn f_composite(&self, wide: &Tensor, target: &Tensor, activation: &Activating) -> Result<Measured, LossError> {
        let (masks, expected) = (target.size() == wide.size(), activation.expected());
        let activation = activation.activation();
        let f_check_input = |counted: &Tensor| f_check_input(counted, expected.clone(), self.invalid_values);
        if !masks {
            return self.f_of_indices(wide, target, activation, f_check_input);
        }
        let target = numeric::f_reals(("target", target), wide.f_kind()?)?;
        self.f_of_masks(wide, &target, activation, f_check_input)
    }

    /// The sizes `[N, C]` of the intersections, the input's and the target's regions, for a target of the input's
    /// shape.
    fn f_of_masks(
        &self,
        input: &Tensor,
        target: &Tensor,
        activation: Activation,
        f_check_input: impl Fn(&Tensor) -> Result<Validity, LossError>,
    ) -> Result<Measured, LossError> {
        let f_measured = |input: &Tensor, target: &Tensor, ignored: Option<i64>| {
            let valid_target = f_check_masks(target, ignored, self.invalid_values)?;
            // Checked after the activation. Its result is always in range, and so this finds something only where there
            // is none.
            let valid_input = f_check_input(input)?;
            Ok((self.f_sums(input, target)?, valid_target, valid_input))
        };
        let Some(ignore_index) = self.ignore_index else {
            return f_measured(&f_activate(input, activation, None)?, target, None);
        };
        let classes = input.size()[1];
        if self.ignore_scope == IgnoreScope::Element || classes == 1 {
            let ignored = target.f_eq_number(ignore_index)?;
            let input = f_activate(input, activation, Some(&ignored))?;
            return f_measured(&input, &target.f_masked_fill_number(&ignored, 0)?, Some(ignore_index));
        }
        let kept = if (0..classes).contains(&ignore_index) {
            target.f_narrow(1, ignore_index, 1)?.f_rsub_number(1)?
        } else {
            target.f_sum_dim_intlist(1, true, None)?.f_gt_number(0)?.f_to_kind(target.f_kind()?)?
        };
        let input = f_activate(input, activation, Some(&kept.f_eq_number(0)?))?;
        f_measured(&input.f_mul(&kept)?, &target.f_mul(&kept)?, None)
    }

    fn f_sums(&self, input: &Tensor, target: &Tensor) -> Result<[Tensor; 3], LossError> {
        let intersection = match self.measure {
            OverlapMeasure::Minimum => input.f_minimum(target)?,
            OverlapMeasure::Product | OverlapMeasure::Squared => input.f_mul(target)?,
        };
        Ok([f_sum_pixels(&intersection)?, self.f_size(input)?, self.f_size(target)?])
    }

    fn f_size(&self, region: &Tensor) -> Result<Tensor, LossError> {
        match self.measure {
            OverlapMeasure::Squared => f_sum_pixels(&region.f_square()?),
            OverlapMeasure::Product | OverlapMeasure::Minimum => f_sum_pixels(region),
        }
    }

    /// The same for class indices, of which a one-hot mask is made for the minimum alone.
    fn f_of_indices(
        &self,
        input: &Tensor,
        target: &Tensor,
        activation: Activation,
        f_check_input: impl Fn(&Tensor) -> Result<Validity, LossError>,
    ) -> Result<Measured, LossError> {
        let (classes, target) = check::class_target(target, input, 1, OR_MASKS)?;
        let target = ClassIndices::f_new(&target, classes, self.ignore_index, self.invalid_values)?;
        let indices = target.indices.f_unsqueeze(1)?;
        let ignored = target.f_ignored()?.map(|ignored| ignored.f_unsqueeze(1)).transpose()?;
        let indices = numeric::f_filled(&indices, ignored.as_ref(), 0)?;
        let counted = || match &ignored {
            Some(ignored) => ignored.f_logical_not(),
            None => indices.f_ones_like(),
        };
        let input = f_activate(input, activation, ignored.as_ref())?;
        let (kind, valid_input) = (input.f_kind()?, f_check_input(&input)?);
        // A GPU adds up numbers by their class one after the other, and takes more operations for it. It makes a mask.
        if self.measure == OverlapMeasure::Minimum || waits(&input) {
            // The minimum of two equal numbers halves the gradient. A mask is made so that this also holds for the
            // classes that a pixel is not of.
            let mut shares = input.f_detach()?.f_zeros_like()?;
            let _ = match &ignored {
                Some(_) => shares.f_scatter_(1, &indices, &counted()?.f_to_kind(kind)?)?,
                None => shares.f_scatter_number_(1, &indices, 1)?,
            };
            return Ok((self.f_sums(&input, &shares)?, target.validity, valid_input));
        }
        let intersections = f_sum_by_class(&input.f_gather(1, &indices, false)?, &indices, classes)?.f_to_kind(kind)?;
        let sizes = f_sum_by_class(&counted()?, &indices, classes)?.f_to_kind(kind)?;
        Ok(([intersections, self.f_size(&input)?, sizes], target.validity, valid_input))
    }

    /// The sizes of the regions, from those of each sample and class.
    fn f_group(&self, sums: Tensor) -> Result<Tensor, LossError> {
        let sums = self.f_select(&sums, 1)?;
        let f_weighted = |sums: Tensor| numeric::f_times(&sums, self.f_weight(&sums)?.as_ref());
        Ok(match self.grouping {
            Grouping::SampleAndClass => sums,
            Grouping::Class => sums.f_sum_dim_intlist(0, false, None)?,
            Grouping::Sample => f_weighted(sums)?.f_sum_dim_intlist(1, false, None)?,
            Grouping::All => f_weighted(sums)?.f_sum(None)?,
        })
    }

    /// The weights of the classes that count.
    pub(super) fn f_weight(&self, like: &Tensor) -> Result<Option<Tensor>, LossError> {
        let Some(weight) = &self.weight else {
            return Ok(None);
        };
        Ok(Some(self.f_select(&weight.f_to_kind(like.f_kind()?)?, 0)?))
    }

    /// The classes that count, of those along `dim`.
    pub(super) fn f_select(&self, tensor: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        match &self.classes {
            Some(classes) => numeric::f_parts_at(tensor, dim, &self.kept(classes)),
            None if self.include_background => Ok(tensor.shallow_clone()),
            None => Ok(tensor.f_narrow(dim, 1, tensor.size()[dim as usize] - 1)?),
        }
    }
}

/// The target as the engine reads it: on CUDA as it is.
fn f_target(input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    let (kind, own) = (input.f_kind()?, target.f_kind()?);
    if target.size() != input.size() {
        let (_, target) = check::class_target(target, input, 1, OR_MASKS)?;
        let as_it_is = is_on_cuda(input) && own != Kind::Bool && f_beside(input, &target)?.is_some() && own != kind;
        return if as_it_is { Ok(target) } else { check::integers(("target", &target)) };
    }
    if own == kind || is_on_cuda(input) && f_beside(input, target)?.is_some() {
        return Ok(target.shallow_clone());
    }
    numeric::f_reals(("target", target), numeric::wide_kind(input)?)
}

/// The sums that have a gradient, by differentiable tensor operations, for the second derivative of the engine's
/// result.
fn f_differentiable_sums(
    formula: &Regional,
    ignore_scope: IgnoreScope,
    input: &Tensor,
    target: &Tensor,
) -> Result<Vec<Tensor>, LossError> {
    let &Regional { measure, ignored: ignore_index, .. } = formula;
    let regions = Regions { measure, ignore_index, ignore_scope, ..Regions::new() };
    let wide = input.f_to_kind(numeric::wide_kind(input)?)?;
    let activation = Activating::Known(formula.activation);
    let ([intersection, size, _], ..) = regions.f_composite(&wide, target, &activation)?;
    let mut sums = vec![intersection, size];
    if let Some(entropy) = &formula.entropy {
        let Entropy { weight } = entropy.clone();
        let entropy = PlainCrossEntropy { weight, ignore_index: ignore_index.unwrap_or(-100) };
        sums.push(entropy.f_sum(&wide, target)?);
    }
    Ok(sums)
}

/// The sums `[N, C]` over the pixels.
fn f_sum_pixels(tensor: &Tensor) -> Result<Tensor, LossError> {
    let pixels: Vec<i64> = (2..tensor.dim() as i64).collect();
    if pixels.is_empty() {
        return Ok(tensor.shallow_clone());
    }
    Ok(tensor.f_sum_dim_intlist(pixels, false, None)?)
}

/// The sums `[N, C]` of a value per pixel, by the pixel's class. In double precision, because `scatter_add` adds up one
/// number after the other, which loses digits.
fn f_sum_by_class(values: &Tensor, indices: &Tensor, classes: i64) -> Result<Tensor, LossError> {
    let samples = values.size()[0];
    let pixels = values.size()[2..].iter().product::<i64>();
    let (values, indices) = (values.f_reshape([samples, pixels])?, indices.f_reshape([samples, pixels])?);
    let bins = Tensor::f_zeros([samples, classes], (Kind::Double, values.device()))?;
    Ok(bins.f_scatter_add(1, &indices, &values.f_to_kind(Kind::Double)?)?)
}
