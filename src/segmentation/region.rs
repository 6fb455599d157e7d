//! What the losses of overlapping regions share: their options, the sizes of the regions, and the way to one loss.

use tch::{Kind, Tensor};

use super::activation::{Activating, Activation, f_activate, f_check_input, f_check_masks, f_check_softmax, f_poison};
use super::compound::{Overlap, PlainCrossEntropy};
use crate::check::{self, ClassIndices, Validity};
use crate::kernels::{
    Entropy, NumberOperations, Pointwise, Real, Regional, Sums, choose, f_pointwise_to, f_region, takes_region,
};
use crate::precomputed::Precomputed;
use crate::{InvalidValues, Loss, LossError, Reduction, numeric};

/// Which pixels make up one region, whose overlap is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Grouping {
    /// Those of one class in one sample: `[N, C]` regions. The default, as in MONAI and in kornia's `macro`.
    #[default]
    SampleAndClass,
    /// Those of one class in the whole batch: `[C]` regions, as in MONAI's `batch` and in segmentation-models-pytorch.
    Class,
    /// All of one sample, whatever the class: `[N]` regions, as in kornia's `micro`.
    Sample,
    /// All there are.
    All,
}

/// How the sizes of two regions and of their intersection are measured, where p and t are the shares, in \[0, 1\],
/// that a pixel has in them.
///
/// For a target of zeros and ones `Product` and `Minimum` are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum OverlapMeasure {
    /// The sizes Σp and Σt, the intersection Σpt. The default.
    #[default]
    Product,
    /// The sizes Σp² and Σt², the intersection Σpt: V-Net's Dice, MONAI's `squared_pred`.
    Squared,
    /// The sizes Σp and Σt, the intersection Σmin(p, t): right for soft targets too, where `Product` is not least at
    /// p = t. MONAI's `soft_label`, segmentation-models-pytorch.
    Minimum,
}

/// What a region without a pixel of the target contributes, such as a class that is absent from a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum EmptyMask {
    /// What the formula says: 0 where nothing is predicted either and there is smoothing, else nearly 1. The default,
    /// as in MONAI.
    #[default]
    Formula,
    /// 0, and it still counts in the mean, as in segmentation-models-pytorch.
    Zero,
    /// Nothing, and it is left out of the mean, as in kornia's `macro`. The mean of a sample in which nothing is left
    /// is 1.
    Skip,
}

/// What the mean of weighted losses is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum WeightedMean {
    /// Their number. The default, as in MONAI.
    #[default]
    Count,
    /// The sum of their weights, as in segmentation-models-pytorch and kornia.
    Weight,
}

/// What is ignored in a target of the input's shape; a class index always stands for its pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum IgnoreScope {
    /// The elements that are `ignore_index`. The default, as in segmentation-models-pytorch.
    #[default]
    Element,
    /// The pixels of the class `ignore_index`, with all their classes; if there is no such class, the pixels of no
    /// class at all. As in MONAI.
    Pixel,
}

crate::options::words!(Grouping, OverlapMeasure, EmptyMask, WeightedMean, IgnoreScope);

crate::options::options! {
/// The options of a loss over regions.
inner pub(super) struct Regions;

/// The defaults, which are MONAI's.
new {
    ..region_options,
    ..score_options,
}
}

/// The sums of regions, and which targets and inputs they are valid of.
type Measured = ([Tensor; 3], Validity, Validity);

/// What else a target can be that does not have the shape of class indices.
const OR_MASKS: &str = ", or that of input for masks";

/// A loss that is a function of the sizes of regions.
pub(super) trait RegionLoss: Loss {
    /// Its options.
    fn regions(&self) -> &Regions;

    /// The same loss with these options.
    fn with_regions(&self, regions: Regions) -> Overlap;

    /// Checks those options that the regions do not have.
    fn f_check_own(&self) -> Result<(), LossError> {
        Ok(())
    }

    /// The loss of regions of these sizes.
    fn f_of_sizes(&self, sizes: &Sizes) -> Result<Tensor, LossError>;

    /// The loss of an input and a target.
    fn f_of_input(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        self.f_of(input, target, &self.regions().activation)
    }

    /// The loss with another activation.
    fn f_of(&self, input: &Tensor, target: &Tensor, activation: &Activating) -> Result<Tensor, LossError> {
        self.f_check_own()?;
        self.f_of_sizes(&self.regions().f_measure(input, target, activation)?)
    }
}

/// The sizes of all regions.
pub(super) struct Sizes {
    /// |p ∩ t|.
    pub(super) intersection: Tensor,
    /// |p|.
    pub(super) input: Tensor,
    /// |t|.
    pub(super) target: Tensor,
    /// Which inputs, targets and weights were valid.
    validity: Vec<Validity>,
    /// The kind of the loss.
    pub(super) kind: Kind,
}

impl Sizes {
    /// What `f` makes of them; which targets and weights were valid stays with the sizes themselves.
    pub(super) fn f_map(&self, f: impl Fn(&Tensor) -> Result<Tensor, LossError>) -> Result<Self, LossError> {
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
    fn f_measure(&self, input: &Tensor, target: &Tensor, activation: &Activating) -> Result<Sizes, LossError> {
        check::devices(&[("input", input), ("target", target)])?;
        check::floating(("input", input))?;
        self.f_check_options(input)?;
        f_check_softmax(activation.activation(), input)?;
        let valid_weight = self.f_check_weight(input)?;
        let (kind, input) = (input.f_kind()?, activation.f_prepare(input)?);
        if let Some(sums) = self.f_fused(&input, target, activation, None)? {
            return self.f_sizes(sums.regions, vec![valid_weight], kind);
        }
        let wide = input.f_to_kind(numeric::wide_kind(&input)?)?;
        let (sums, valid_target, valid_input) = self.f_composite(&wide, target, activation)?;
        self.f_sizes(sums, vec![valid_input, valid_target, valid_weight], kind)
    }

    /// The sizes of all regions of a softmax, and the sums of a cross entropy of the same; nothing where the engine
    /// does not take the call.
    pub(super) fn f_measure_with(
        &self,
        entropy: &PlainCrossEntropy,
        input: &Tensor,
        target: &Tensor,
    ) -> Result<Option<(Sizes, Tensor, f64)>, LossError> {
        self.f_check_options(input)?;
        let valid_weight = self.f_check_weight(input)?;
        let sums = self.f_fused(input, target, &Activating::Known(Activation::Softmax), Some(entropy))?;
        let Some(Sums { regions, entropy: Some(entropy), weight }) = sums else { return Ok(None) };
        // The parts are added up before they are rounded to the input's kind.
        let sizes = self.f_sizes(regions, vec![valid_weight], numeric::wide_kind(input)?)?;
        Ok(Some((sizes, entropy, weight)))
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
        if !masks && self.invalid_values == InvalidValues::Nan {
            return Ok(None);
        }
        let target = if !masks {
            check::integers(("target", &check::class_target(target, input, 1, OR_MASKS)?.1))?
        } else if target.f_kind()? == input.f_kind()? {
            target.shallow_clone()
        } else {
            numeric::f_reals(("target", target), numeric::wide_kind(input)?)?
        };
        let formula = Regional {
            activation: activation.activation(),
            measure: self.measure,
            ignored: self.ignore_index,
            expected: activation.expected(),
            entropy: entropy.map(|entropy| Entropy { weight: entropy.weight.clone() }),
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

    fn f_check_options(&self, input: &Tensor) -> Result<(), LossError> {
        let shape = input.size();
        if shape.len() < 2 || shape[1] == 0 {
            return Err(check::shape_error(("input", input), "[N, C] or [N, C, d1, ...], with at least one class"));
        }
        let (classes, background) = (shape[1], self.include_background);
        check::option("include_background", background, background || classes > 1, "true with a single class")?;
        for &class in self.classes.iter().flatten() {
            check::option("classes", class, (0..classes).contains(&class), &format!("classes in [0, {classes})"))?;
        }
        let none_left = self.classes.as_ref().is_some_and(|classes| self.kept(classes).is_empty());
        check::option("classes", "empty", !none_left, "at least one class, besides a background that is excluded")?;
        self.f_check_numbers()
    }

    /// The options that need no input to be looked at.
    pub(super) fn f_check_numbers(&self) -> Result<(), LossError> {
        for (option, value) in [("smooth_nr", self.smooth_nr), ("smooth_dr", self.smooth_dr), ("eps", self.eps)] {
            not_negative(option, value)?;
        }
        check::option("eps", self.eps, self.eps > 0.0 || !self.log_loss, "more than 0 with log_loss")
    }

    /// Checks the weights; negative ones make no mean.
    fn f_check_weight(&self, input: &Tensor) -> Result<Validity, LossError> {
        let Some(weight) = &self.weight else {
            return Ok(Validity::CHECKED);
        };
        check::class_weight(weight, input, input.size()[1])?;
        check::floating(("weight", weight))?;
        Validity::f_new(
            ("weight", weight),
            weight.f_ge_number(0)?,
            || "weights of at least 0".into(),
            self.invalid_values,
        )
    }

    /// Those of the chosen classes that are not an excluded background.
    fn kept(&self, classes: &[i64]) -> Vec<i64> {
        classes.iter().copied().filter(|&class| self.include_background || class != 0).collect()
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
            // After the activation; there is nothing to be checked where there is one.
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
        let (indices, counted) = match &ignored {
            Some(ignored) => (indices.f_masked_fill_number(ignored, 0)?, ignored.f_logical_not()?),
            None => (indices.shallow_clone(), indices.f_ones_like()?),
        };
        let input = f_activate(input, activation, ignored.as_ref())?;
        let (kind, valid_input) = (input.f_kind()?, f_check_input(&input)?);
        if self.measure == OverlapMeasure::Minimum {
            // Where both are the same the gradient is halved, also that of the classes which a pixel is not of.
            let shares = input.f_detach()?.f_zeros_like()?.f_scatter(1, &indices, &counted.f_to_kind(kind)?)?;
            return Ok((self.f_sums(&input, &shares)?, target.validity, valid_input));
        }
        let intersections = f_sum_by_class(&input.f_gather(1, &indices, false)?, &indices, classes)?.f_to_kind(kind)?;
        let sizes = f_sum_by_class(&counted, &indices, classes)?.f_to_kind(kind)?;
        Ok(([intersections, self.f_size(&input)?, sizes], target.validity, valid_input))
    }

    /// The sizes of the regions, from those of each sample and class.
    fn f_group(&self, sums: Tensor) -> Result<Tensor, LossError> {
        let sums = self.f_select(&sums, 1)?;
        let f_weighted = |sums: Tensor| match self.f_weight(&sums)? {
            Some(weight) => Ok(sums.f_mul(&weight)?),
            None => Ok::<_, LossError>(sums),
        };
        Ok(match self.grouping {
            Grouping::SampleAndClass => sums,
            Grouping::Class => sums.f_sum_dim_intlist(0, false, None)?,
            Grouping::Sample => f_weighted(sums)?.f_sum_dim_intlist(1, false, None)?,
            Grouping::All => f_weighted(sums)?.f_sum(None)?,
        })
    }

    /// The weights of the classes that count.
    fn f_weight(&self, like: &Tensor) -> Result<Option<Tensor>, LossError> {
        let Some(weight) = &self.weight else {
            return Ok(None);
        };
        Ok(Some(self.f_select(&weight.f_to_kind(like.f_kind()?)?, 0)?))
    }

    /// The classes that count, of those along `dim`.
    fn f_select(&self, tensor: &Tensor, dim: i64) -> Result<Tensor, LossError> {
        match &self.classes {
            Some(classes) => {
                let kept = Tensor::f_from_slice(&self.kept(classes))?.f_to_device(tensor.device())?;
                Ok(tensor.f_index_select(dim, &kept)?)
            }
            None if self.include_background => Ok(tensor.shallow_clone()),
            None => Ok(tensor.f_narrow(dim, 1, tensor.size()[dim as usize] - 1)?),
        }
    }

    fn smoothing(&self) -> Smoothing {
        Smoothing { numerator: self.smooth_nr, denominator: self.smooth_dr, eps: self.eps, log_loss: self.log_loss }
    }

    /// The loss of each region with this score.
    pub(super) fn f_losses_of(&self, sizes: &Sizes, score: Score) -> Result<Tensor, LossError> {
        let scored = Scored { score, smoothing: self.smoothing(), of_present: false };
        scored.f_of(sizes, Reduction::None, sizes.intersection.f_kind()?)
    }

    /// The loss of regions with this score, of this kind where that spares a conversion.
    pub(super) fn f_loss_of(&self, sizes: &Sizes, score: Score, kind: Kind) -> Result<Tensor, LossError> {
        if self.empty_mask == EmptyMask::Skip || self.weight.is_some() {
            return self.f_reduce(&self.f_losses_of(sizes, score)?, sizes);
        }
        let scored = Scored { score, smoothing: self.smoothing(), of_present: self.empty_mask == EmptyMask::Zero };
        // Losses that are not reduced have the kind of the sizes.
        let kind = if self.reduction == Reduction::None { sizes.intersection.f_kind()? } else { kind };
        scored.f_of(sizes, self.reduction, kind)
    }

    /// From the losses of the regions to the loss: empty masks, weights and reduction.
    pub(super) fn f_reduce(&self, losses: &Tensor, sizes: &Sizes) -> Result<Tensor, LossError> {
        let losses = match self.empty_mask {
            EmptyMask::Formula => losses.shallow_clone(),
            EmptyMask::Zero | EmptyMask::Skip => f_of_present(losses, &sizes.target)?,
        };
        let counts = match self.empty_mask {
            EmptyMask::Formula | EmptyMask::Zero => None,
            EmptyMask::Skip => Some(sizes.target.f_gt_number(0)?.f_to_kind(losses.f_kind()?)?),
        };
        let weight = match self.grouping {
            Grouping::SampleAndClass | Grouping::Class => self.f_weight(&losses)?,
            Grouping::Sample | Grouping::All => None,
        };
        let losses = match &weight {
            Some(weight) => losses.f_mul(weight)?,
            None => losses,
        };
        if self.reduction != Reduction::Mean {
            return self.reduction.f_apply(&losses);
        }
        let weight = weight.filter(|_| self.weighted_mean == WeightedMean::Weight);
        let shares = match (weight, counts) {
            (None, None) => return Ok(losses.f_mean(None)?),
            (Some(weight), None) => weight.f_expand_as(&losses)?,
            (None, Some(counts)) => counts,
            (Some(weight), Some(counts)) => counts.f_mul(&weight)?,
        };
        f_mean_of_means(&losses, &shares)
    }

    /// The loss in the input's kind; NaN where a class index was invalid.
    pub(super) fn f_finish(&self, loss: &Tensor, sizes: &Sizes) -> Result<Tensor, LossError> {
        let loss = loss.f_to_kind(sizes.kind)?;
        f_poison(loss, &sizes.validity)
    }
}

impl Precomputed for Regions {
    fn reduction(&self) -> Reduction {
        self.reduction
    }
}

/// What score a region has, given the sizes of the intersection, of the input's region and of the target's.
#[derive(Clone, Copy)]
pub(super) enum Score {
    /// Twice the intersection over both sizes.
    Dice,
    /// Intersection over union.
    Jaccard,
    /// With weights of false positives and false negatives.
    Tversky { alpha: f64, beta: f64 },
}

impl Score {
    pub(super) fn f_tversky(alpha: f64, beta: f64) -> Result<Self, LossError> {
        not_negative("alpha", alpha)?;
        not_negative("beta", beta)?;
        Ok(Self::Tversky { alpha, beta })
    }

    fn f_losses(self, [intersection, input, target]: [&Tensor; 3], smoothing: Smoothing) -> Result<Tensor, LossError> {
        let eps = smoothing.eps;
        match self {
            Self::Dice => smoothing.f_losses(&intersection.f_mul_number(2)?, &input.f_add(target)?, 2.0 * eps),
            Self::Jaccard => smoothing.f_losses(intersection, &input.f_add(target)?.f_sub(intersection)?, eps),
            Self::Tversky { alpha, beta } => {
                let false_positives = input.f_sub(intersection)?.f_mul_number(alpha)?;
                let false_negatives = target.f_sub(intersection)?.f_mul_number(beta)?;
                let denominator = intersection.f_add(&false_positives)?.f_add(&false_negatives)?;
                smoothing.f_losses(intersection, &denominator, eps)
            }
        }
    }
}

/// What keeps a score finite, and what becomes of it.
#[derive(Clone, Copy)]
struct Smoothing {
    numerator: f64,
    denominator: f64,
    eps: f64,
    log_loss: bool,
}

impl Smoothing {
    /// The loss of each region, of which the score is `numerator / denominator` with smoothing; the denominator is kept
    /// at `least` or more.
    fn f_losses(self, numerator: &Tensor, denominator: &Tensor, least: f64) -> Result<Tensor, LossError> {
        let numerator = numerator.f_add_number(self.numerator)?;
        let score = f_ratio(&numerator, &denominator.f_add_number(self.denominator)?, least)?;
        if !self.log_loss {
            return Ok(score.f_rsub_number(1)?);
        }
        Ok(f_at_least(&score, self.eps)?.f_log()?.f_neg()?)
    }

    /// The loss of a score, and its derivatives with respect to numerator and denominator.
    #[inline(always)]
    fn loss<R: Real>(self, numerator: R, denominator: R, least: f64) -> (R, R, R) {
        let (zero, one) = (R::of(0.0), R::of(1.0));
        let (numerator, sum) = (numerator + R::of(self.numerator), denominator + R::of(self.denominator));
        let small = R::Mask::from(least > 0.0) & sum.less(R::of(least));
        let denominator = choose(small, R::of(least), sum);
        // 0 / 0 is 0.
        let nothing = denominator.equal(zero);
        let denominator = choose(nothing, one, denominator);
        let score = choose(nothing, zero, numerator / denominator);
        let of_numerator = choose(nothing, zero, one / denominator);
        let of_denominator = choose(small, zero, -(score * of_numerator));
        if !self.log_loss {
            return (one - score, -of_numerator, -of_denominator);
        }
        let slope = choose(score.less(R::of(self.eps)), zero, -(one / score));
        (-score.at_least(R::of(self.eps)).ln(), slope * of_numerator, slope * of_denominator)
    }
}

/// The formula of the loss of a region.
#[derive(Clone, Copy)]
struct Scored {
    score: Score,
    smoothing: Smoothing,
    /// Whether a region that is empty in the target costs nothing.
    of_present: bool,
}

impl Scored {
    fn f_of(self, sizes: &Sizes, reduction: Reduction, kind: Kind) -> Result<Tensor, LossError> {
        let arguments = [&sizes.intersection, &sizes.input, &sizes.target];
        f_pointwise_to(kind, self, arguments, reduction, move |arguments| {
            let mut losses = self.score.f_losses(arguments, self.smoothing)?;
            if self.of_present {
                losses = f_of_present(&losses, arguments[2])?;
            }
            Ok(reduction.f_apply(&losses)?.f_to_kind(kind)?)
        })
    }

    #[inline(always)]
    fn of_all<R: Real>(self, [intersection, input, target]: [R; 3]) -> (R, [R; 3]) {
        let (one, two, eps) = (R::of(1.0), R::of(2.0), self.smoothing.eps);
        match self.score {
            Score::Dice => {
                let (loss, of_numerator, of_sum) = self.smoothing.loss(two * intersection, input + target, 2.0 * eps);
                (loss, [two * of_numerator, of_sum, of_sum])
            }
            Score::Jaccard => {
                let union = input + target - intersection;
                let (loss, of_intersection, of_union) = self.smoothing.loss(intersection, union, eps);
                (loss, [of_intersection - of_union, of_union, of_union])
            }
            Score::Tversky { alpha, beta } => {
                let (alpha, beta) = (R::of(alpha), R::of(beta));
                let sum = intersection + (input - intersection) * alpha + (target - intersection) * beta;
                let (loss, of_intersection, of_sum) = self.smoothing.loss(intersection, sum, eps);
                (loss, [of_intersection + (one - alpha - beta) * of_sum, alpha * of_sum, beta * of_sum])
            }
        }
    }
}

impl Pointwise<3> for Scored {
    #[inline(always)]
    fn evaluate<R: Real>(self, sizes: [R; 3]) -> (R, [R; 3]) {
        // No target is smaller than nothing.
        let absent = R::of(if self.of_present { 0.0 } else { -1.0 });
        let (loss, slopes) = self.of_all(sizes);
        // A NaN stays one: it is an error that training has to show.
        let nothing = sizes[2].less_equal(absent) & loss.is_number();
        let counted = |number: R| choose(nothing, R::of(0.0), number);
        let [a, b, c] = slopes;
        (counted(loss), [counted(a), counted(b), counted(c)])
    }
}

/// The losses of the regions that the target has; those of the others are 0, unless they are NaN.
fn f_of_present(losses: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
    let nothing = target.f_le_number(0)?.f_logical_and(&losses.f_isnan()?.f_logical_not()?)?;
    Ok(losses.f_masked_fill_number(&nothing, 0)?)
}

/// Those sums of the engine that have a gradient, by differentiable tensor operations.
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
        let entropy = PlainCrossEntropy { weight: entropy.weight.clone(), ignore_index: ignore_index.unwrap_or(-100) };
        sums.push(entropy.f_sum(&wide, target)?);
    }
    Ok(sums)
}

/// The option is a number of at least 0, of which twice the value is still finite in single precision.
pub(super) fn not_negative(option: &'static str, value: f64) -> Result<(), LossError> {
    check::option(option, value, (0.0..=f64::from(f32::MAX) / 2.0).contains(&value), "a finite number of at least 0")
}

/// The sums `[N, C]` over the pixels.
fn f_sum_pixels(tensor: &Tensor) -> Result<Tensor, LossError> {
    let pixels: Vec<i64> = (2..tensor.dim() as i64).collect();
    if pixels.is_empty() {
        return Ok(tensor.shallow_clone());
    }
    Ok(tensor.f_sum_dim_intlist(pixels, false, None)?)
}

/// The sums `[N, C]` of a value per pixel, by the pixel's class. In double precision: it adds up one by one.
fn f_sum_by_class(values: &Tensor, indices: &Tensor, classes: i64) -> Result<Tensor, LossError> {
    let samples = values.size()[0];
    let pixels = values.size()[2..].iter().product::<i64>();
    let (values, indices) = (values.f_reshape([samples, pixels])?, indices.f_reshape([samples, pixels])?);
    let bins = Tensor::f_zeros([samples, classes], (Kind::Double, values.device()))?;
    Ok(bins.f_scatter_add(1, &indices, &values.f_to_kind(Kind::Double)?)?)
}

/// `numerator / denominator`, with a denominator of `least` or more; 0 / 0 is 0.
fn f_ratio(numerator: &Tensor, denominator: &Tensor, least: f64) -> Result<Tensor, LossError> {
    if least > 0.0 {
        return Ok(numerator.f_div(&f_at_least(denominator, least)?)?);
    }
    numeric::f_ratio(numerator, denominator)
}

/// The numbers, or `least`. Other than libtorch's clamp it has a NaN gradient where a number is NaN.
fn f_at_least(numbers: &Tensor, least: f64) -> Result<Tensor, LossError> {
    Ok(numbers.f_masked_fill_number(&numbers.f_lt_number(least)?, least)?)
}

/// The weighted mean over the last dimension, then the plain one. The mean of nothing is 1: no overlap.
fn f_mean_of_means(losses: &Tensor, shares: &Tensor) -> Result<Tensor, LossError> {
    let f_last = |tensor: &Tensor| match tensor.dim() {
        0 => Ok(tensor.shallow_clone()),
        _ => tensor.f_sum_dim_intlist(-1, false, None),
    };
    let (sum, share) = (f_last(losses)?, f_last(shares)?);
    let nothing = share.f_eq_number(0)?;
    let means = sum.f_div(&share.f_masked_fill_number(&nothing, 1)?)?.f_masked_fill_number(&nothing, 1)?;
    Ok(means.f_mean(None)?)
}

/// The options that every loss over regions has.
macro_rules! region_options {
    ($($state:tt)*) => {
        crate::options::options! { @group $($state)*
            /// what makes probabilities of the input. Without one the input holds them, and a number far from \[0, 1\]
            /// is an error. With [`Activation::None`](crate::Activation::None) all numbers are taken as they are.
            pub(super) activation: crate::segmentation::activation::Activating =
                crate::segmentation::activation::Activating::Unset => activation,
            /// how sizes are measured.
            pub(super) measure: crate::OverlapMeasure = OverlapMeasure::Product,
            /// whether class 0 counts.
            pub(super) include_background: bool = true,
            /// the classes that count, all where there is no list.
            pub(super) classes: Option<Vec<i64>> = None => integers,
            /// the class index, or the value of a mask, that counts nothing.
            pub(super) ignore_index: Option<i64> = None,
            /// what `ignore_index` means in a target of the input's shape.
            pub(super) ignore_scope: crate::IgnoreScope = IgnoreScope::Element,
            /// what is added to the numerator.
            pub(super) smooth_nr: f64 = 1e-5,
            /// what is added to the denominator.
            pub(super) smooth_dr: f64 = 1e-5,
            /// what a class index does that is out of range, or a mask or an input without activation that is not in
            /// \[0, 1\].
            pub(super) invalid_values: crate::InvalidValues = InvalidValues::Error,
            /// the reduction.
            pub(super) reduction: crate::Reduction = Reduction::Mean,
        }
    };
}
pub(super) use region_options;

/// The options of the losses with one score for each region.
macro_rules! score_options {
    ($($state:tt)*) => {
        crate::options::options! { @group $($state)*
            /// which pixels make up a region.
            pub(super) grouping: crate::Grouping = Grouping::SampleAndClass,
            /// a weight, of at least 0, for each class of the input: a factor of the losses of its regions, or of its
            /// share in the sizes where a region spans all classes. It is on the device of the input, in any floating
            /// kind.
            pub(super) weight: Option<tch::Tensor> = None,
            /// what the mean of weighted losses is divided by.
            pub(super) weighted_mean: crate::WeightedMean = WeightedMean::Count,
            /// what a region without a pixel of the target contributes.
            pub(super) empty_mask: crate::EmptyMask = EmptyMask::Formula,
            /// the least value of the denominator and of the logarithm's argument.
            pub(super) eps: f64 = 1e-7,
            /// whether the loss is −log of the score instead of 1 − score.
            pub(super) log_loss: bool = false,
        }
    };
}
pub(super) use score_options;
