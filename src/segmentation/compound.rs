//! What the losses share that are the sum of a loss over regions and a loss over pixels.

use tch::{Kind, Tensor};

use super::activation::{Activating, Activation};
use super::mask::f_drop_background;
use super::region::{Grouping, PlainCrossEntropy, RegionLoss, Regions, not_negative};
use super::{DiceLoss, FocalTverskyLoss, GeneralizedDiceLoss, JaccardLoss, TverskyLoss};
use crate::classification::MeanOver;
use crate::kernels::{NumberOperations, Total, f_own, f_plain, takes_region};
use crate::loss::f_has_no_elements;
use crate::numeric::{f_reals, result_kind, wide_kind};
use crate::option_tensors::{OptionTensors, Replace};
use crate::precomputed::Precomputed;
use crate::{
    BceWithLogitsLoss, CrossEntropyLoss, Loss, LossError, OneVsRestFocalLoss, Reduction, SigmoidFocalLoss,
    SoftmaxFocalLoss, check,
};

/// The loss over regions in a sum with a loss over pixels.
///
/// Each of these losses can be passed as it is, such as `.overlap(JaccardLoss::new())`. Where it was not given an
/// activation it has that of the loss over pixels: the softmax, or the sigmoid.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Overlap {
    /// The Dice loss.
    Dice(DiceLoss),
    /// The Jaccard loss.
    Jaccard(JaccardLoss),
    /// The Tversky loss.
    Tversky(TverskyLoss),
    /// The focal Tversky loss.
    FocalTversky(FocalTverskyLoss),
    /// The generalised Dice loss.
    GeneralizedDice(GeneralizedDiceLoss),
}

/// What `$body` makes of the loss in an enum of several.
macro_rules! each {
    ($enum:ident::{$($variant:ident),+}, $of:expr, $loss:ident => $body:expr) => {
        match $of {
            $($enum::$variant($loss) => $body,)+
        }
    };
}

impl Overlap {
    fn loss(&self) -> &dyn RegionLoss {
        each!(Overlap::{Dice, Jaccard, Tversky, FocalTversky, GeneralizedDice}, self, loss => loss)
    }

    fn loss_mut(&mut self) -> &mut dyn RegionLoss {
        each!(Overlap::{Dice, Jaccard, Tversky, FocalTversky, GeneralizedDice}, self, loss => loss)
    }
}

/// The loss over pixels in a sum with a loss over regions.
#[derive(Debug, Clone)]
pub(super) enum Pixelwise {
    CrossEntropy(CrossEntropyLoss),
    BceWithLogits(BceWithLogitsLoss),
    SoftmaxFocal(SoftmaxFocalLoss),
    SigmoidFocal(SigmoidFocalLoss),
    OneVsRestFocal(OneVsRestFocalLoss),
}

impl Pixelwise {
    fn as_loss(&self) -> &dyn Loss {
        each!(Pixelwise::{CrossEntropy, BceWithLogits, SoftmaxFocal, SigmoidFocal, OneVsRestFocal}, self, loss => loss)
    }

    fn reduction(&self) -> Reduction {
        each!(Pixelwise::{CrossEntropy, BceWithLogits, SoftmaxFocal, SigmoidFocal, OneVsRestFocal}, self,
            loss => loss.reduction())
    }

    /// The activation that is part of this loss.
    fn activation(&self) -> Activation {
        match self {
            Pixelwise::CrossEntropy(_) | Pixelwise::SoftmaxFocal(_) => Activation::Softmax,
            Pixelwise::BceWithLogits(_) | Pixelwise::SigmoidFocal(_) | Pixelwise::OneVsRestFocal(_) => {
                Activation::Sigmoid
            }
        }
    }

    /// The same loss, which ignores this target, if there is one. The binary cross entropy has no such option; see
    /// [`Compound::f_pixelwise`].
    fn ignoring(self, ignore_index: Option<i64>) -> Self {
        let Some(ignore_index) = ignore_index else { return self };
        match self {
            Pixelwise::CrossEntropy(loss) => Pixelwise::CrossEntropy(loss.ignore_index(ignore_index)),
            Pixelwise::SoftmaxFocal(loss) => Pixelwise::SoftmaxFocal(loss.ignore_index(ignore_index)),
            Pixelwise::SigmoidFocal(loss) => Pixelwise::SigmoidFocal(loss.ignore_index(ignore_index)),
            Pixelwise::OneVsRestFocal(loss) => Pixelwise::OneVsRestFocal(loss.ignore_index(ignore_index)),
            Pixelwise::BceWithLogits(loss) => Pixelwise::BceWithLogits(loss),
        }
    }
}

/// An enum of several losses, of which each can be passed as it is.
macro_rules! variants {
    ($enum:ident: $($variant:ident($loss:ident)),+) => {
        crate::options::from_variants!($enum: $($loss => $variant),+);

        impl crate::option_tensors::OptionTensors for $enum {
            fn map_tensors(&self, replace: &mut crate::option_tensors::Replace) -> Self {
                match self {
                    $($enum::$variant(loss) => $enum::$variant(loss.map_tensors(replace)),)+
                }
            }
        }

    };
}
pub(super) use variants;

/// Such an enum as an option: the data are a description of one of the losses.
macro_rules! described_variants {
    ($enum:ident: $($variant:ident($loss:ident)),+) => {
        super::compound::variants!($enum: $($variant($loss)),+);

        #[cfg(feature = "serde")]
        impl crate::description::OptionValue for $enum {
            fn f_read(
                value: &crate::description::Value,
                place: crate::description::Place,
            ) -> Result<Self, crate::description::Mismatch> {
                use crate::description::{Described, Mismatch, Table, f_one_of};
                let (name, fields) = f_one_of(value, &[$($loss::NAMES),+]).map_err(Mismatch::Inside)?;
                $(
                    if name == $loss::NAMES[0] {
                        return Ok($enum::$variant($loss::f_read(fields, place).map_err(Mismatch::Inside)?));
                    }
                )+
                Err(Mismatch::Inside(format!("there is no loss {name}")))
            }

            fn f_write(
                &self,
            ) -> Result<crate::description::Value, crate::description::Problem> {
                match self {
                    $($enum::$variant(loss) => crate::description::Described::f_write_named(loss),)+
                }
            }
        }
    };
}
pub(super) use described_variants;

described_variants!(Overlap: Dice(DiceLoss), Jaccard(JaccardLoss), Tversky(TverskyLoss),
    FocalTversky(FocalTverskyLoss), GeneralizedDice(GeneralizedDiceLoss));
variants!(Pixelwise: CrossEntropy(CrossEntropyLoss), BceWithLogits(BceWithLogitsLoss),
    SoftmaxFocal(SoftmaxFocalLoss), SigmoidFocal(SigmoidFocalLoss), OneVsRestFocal(OneVsRestFocalLoss));

/// What a sum of such losses, which its method `parts` makes, has as a [`Loss`].
macro_rules! loss_of_parts {
    () => {
        crate::option_tensors::with_tensors!();

        fn f_is_empty(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
            self.parts().f_is_empty(input, target)
        }

        fn f_check_options(&self) -> Result<(), LossError> {
            self.parts().f_check_options()
        }

        fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
            self.parts().f_forward(input, target)
        }
    };
}
pub(super) use loss_of_parts;

/// A loss over regions and a loss over pixels, and how much each of them counts.
#[derive(Debug)]
pub(super) struct Compound {
    pub(super) overlap: Overlap,
    pub(super) pixelwise: Pixelwise,
    /// The name of the option that is the loss over pixels, and what to take for a single class.
    pub(super) pixelwise_option: (&'static str, &'static str),
    /// The target that both ignore.
    pub(super) ignore_index: Option<i64>,
    /// The factor of the loss over regions, and the name of that option.
    pub(super) lambda_overlap: (&'static str, f64),
    /// The factor of the loss over pixels, and the name of that option.
    pub(super) lambda_pixelwise: (&'static str, f64),
    /// Whether a focal loss of sigmoids counts class 0.
    pub(super) focal_background: bool,
}

impl OptionTensors for Compound {
    fn map_tensors(&self, replace: &mut Replace) -> Self {
        Self { overlap: self.overlap.map_tensors(replace), pixelwise: self.pixelwise.map_tensors(replace), ..*self }
    }
}

impl Compound {
    pub(super) fn f_forward(self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        check::arguments(input, target)?;
        self.f_check_own()?;
        if self.pixelwise.activation() == Activation::Softmax && input.size().get(1) == Some(&1) {
            let expected =
                format!("at least two classes for a softmax; for a single one take {}", self.pixelwise_option.1);
            return Err(check::shape_error(("input", input), expected));
        }
        let parts = self.with_common_options();
        if let Some(loss) = parts.f_fused(input, target)? {
            return Ok(loss);
        }
        parts.f_precomputed(input, target, Self::f_compute)
    }

    /// The same with the common options set in both parts: the activation, where the loss over regions has none of its
    /// own, and the ignored target.
    fn with_common_options(self) -> Self {
        let Compound { mut overlap, pixelwise, ignore_index, .. } = self;
        let regions = overlap.loss_mut().regions_mut();
        regions.activation = regions.activation.or(pixelwise.activation());
        regions.ignore_index = ignore_index.or(regions.ignore_index);
        let pixelwise = pixelwise.ignoring(ignore_index);
        Self { overlap, pixelwise, ..self }
    }

    /// Whether no pixel counts.
    pub(super) fn f_is_empty(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        // A target that the sum takes may be an error for the loss over pixels alone. Only ignored pixels matter here.
        self.pixelwise.as_loss().f_is_empty(input, target).or_else(|_| f_has_no_elements(input))
    }

    /// The options of the sum itself.
    fn f_check_own(&self) -> Result<(), LossError> {
        let factors = [self.lambda_overlap, self.lambda_pixelwise];
        factors.iter().try_for_each(|(option, factor)| not_negative(option, *factor))?;
        let sigmoids = matches!(self.pixelwise, Pixelwise::SigmoidFocal(_));
        let (background, expected) = (self.focal_background, "true, but for a focal loss of sigmoids over masks");
        check::option("focal_background", background, background || sigmoids, expected)
    }

    /// Those of its parts, too, where no input is needed for it.
    pub(super) fn f_check_options(&self) -> Result<(), LossError> {
        self.f_check_own()?;
        self.overlap.loss().f_check_options()?;
        self.pixelwise.as_loss().f_check_options()
    }

    /// The loss of regions and cross entropy from one pass over a softmax; nothing where the engine does not take it.
    fn f_fused(&self, input: &Tensor, target: &Tensor) -> Result<Option<Tensor>, LossError> {
        let Pixelwise::CrossEntropy(loss) = &self.pixelwise else { return Ok(None) };
        let Some((weight, ignore_index, mean_over, reduction)) = loss.plain(input) else { return Ok(None) };
        let overlap = self.overlap.loss();
        let regions = overlap.regions();
        if !is_softmax(regions) || !takes_region(input) {
            return Ok(None);
        }
        let (kind, classes, masks) = (input.f_kind()?, input.size()[1], target.size() == input.size());
        // The engine takes the call only where both parts ignore the same pixels.
        let same_pixels = match (regions.ignore_index, masks) {
            (None, true) => ignore_index < 0,
            (None, false) => !(0..classes).contains(&ignore_index),
            (Some(ignored), _) => !masks && ignored == ignore_index,
        };
        // Weights may be of any floating kind: they are converted to the kind of the computation.
        let plain = |weight: &Tensor| {
            let fits = weight.size() == [classes] && weight.device() == input.device() && !weight.requires_grad();
            fits && check::floating(("weight", weight)).is_ok()
        };
        if !same_pixels || masks && target.f_kind()? != kind || !weight.is_none_or(plain) {
            return Ok(None);
        }
        // Kernels read their memory, and a backward pass reads it again, when others may have written to it.
        let f_kept = |weight: &Tensor| match weight.f_kind()? {
            Kind::Double => f_own(weight),
            _ => Ok(f_plain(&weight.f_detach()?.f_to_kind(Kind::Double)?)?.f_contiguous()?),
        };
        let weight = weight.map(f_kept).transpose()?;
        let entropy = PlainCrossEntropy { weight, ignore_index };
        overlap.f_score().map_err(|error| error.in_term("overlap"))?;
        let measured = regions.f_measure_with(&entropy, input, target).map_err(|error| error.in_term("overlap"))?;
        let Some((sizes, sum, weights)) = measured else { return Ok(None) };
        let divisor = match (reduction, mean_over) {
            (Reduction::Mean, MeanOver::Counted) if !masks => weights,
            (Reduction::Mean, _) => Total::Number((input.numel() as i64 / classes) as f64),
            _ => Total::Number(1.0),
        };
        let pixelwise = divisor.f_divide(&sum)?;
        let overlap = overlap.f_of_sizes(&sizes).map_err(|error| error.in_term("overlap"))?;
        Ok(Some(self.f_sum(&overlap, &pixelwise, input)?))
    }

    /// The loss of options that were checked.
    fn f_compute(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        let kind = wide_kind(input)?;
        let (overlap, pixelwise) = self.f_parts(input, target, kind)?;
        self.f_sum(&overlap, &pixelwise, input)
    }

    /// The weighted sum of both losses, in the kind of the input.
    fn f_sum(&self, overlap: &Tensor, pixelwise: &Tensor, input: &Tensor) -> Result<Tensor, LossError> {
        let kind = wide_kind(input)?;
        let overlap = f_times(overlap, self.lambda_overlap.1)?;
        let pixelwise = f_times(&pixelwise.f_to_kind(kind)?, self.lambda_pixelwise.1)?;
        Ok(self.f_to_pixels(&overlap, &pixelwise, input.dim())?.f_add(&pixelwise)?.f_to_kind(result_kind(input)?)?)
    }

    /// The two losses, of one softmax where both of them take it.
    fn f_parts(&self, input: &Tensor, target: &Tensor, kind: Kind) -> Result<(Tensor, Tensor), LossError> {
        let overlap = self.overlap.loss();
        let shared = match &self.pixelwise {
            _ if !is_softmax(overlap.regions()) || input.dim() < 2 => None,
            Pixelwise::CrossEntropy(loss) => Some(loss.f_with_log_probabilities(input, target)),
            Pixelwise::SoftmaxFocal(loss) => Some(loss.f_with_log_probabilities(input, target)),
            _ => None,
        };
        if let Some(shared) = shared {
            let (log_probabilities, pixelwise) = shared.map_err(|error| error.in_term(self.pixelwise_option.0))?;
            let none = Activating::Known(Activation::None);
            let overlap =
                overlap.f_of(&log_probabilities.f_exp()?, target, &none).map_err(|error| error.in_term("overlap"))?;
            return Ok((overlap, pixelwise));
        }
        let wide = input.f_to_kind(kind)?;
        let pixelwise = self.f_pixelwise(&wide, target).map_err(|error| error.in_term(self.pixelwise_option.0))?;
        Ok((overlap.f_forward(&wide, target).map_err(|error| error.in_term("overlap"))?, pixelwise))
    }

    /// The loss over pixels of an input in single precision at least.
    fn f_pixelwise(&self, wide: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
        match &self.pixelwise {
            Pixelwise::CrossEntropy(loss) => Ok(loss.f_with_log_probabilities(wide, target)?.1),
            Pixelwise::SoftmaxFocal(loss) => loss.f_forward(wide, target),
            Pixelwise::SigmoidFocal(loss) => {
                check::same_shape(("target", target), ("input", wide))?;
                let f_kept = |tensor| f_drop_background("focal_background", tensor, self.focal_background);
                loss.f_forward(&f_kept(wide)?, &f_kept(target)?)
            }
            Pixelwise::OneVsRestFocal(loss) => loss.f_forward(wide, target),
            Pixelwise::BceWithLogits(loss) => {
                let target = f_reals(("target", target), wide.f_kind()?)?;
                check::same_shape(("target", &target), ("input", wide))?;
                let Some(ignored) = self.ignore_index else { return loss.f_forward(wide, &target) };
                // The value of an ignored logit must not matter.
                let logits = wide.f_masked_fill_number(&target.f_eq_number(ignored)?, 0)?;
                loss.ignoring(ignored).f_forward(&logits, &target)
            }
        }
    }

    /// The losses of the regions in a shape that adds to those of the pixels, with or without a dimension of classes.
    fn f_to_pixels(&self, overlap: &Tensor, pixelwise: &Tensor, rank: usize) -> Result<Tensor, LossError> {
        let (regions, pixels) = (overlap.size(), pixelwise.size());
        if regions.is_empty() || pixels.is_empty() {
            return Ok(overlap.shallow_clone());
        }
        let mut shape = match self.overlap.loss().regions().grouping {
            Grouping::Class => [&[1], &regions[..]].concat(),
            _ => regions.clone(),
        };
        let fits = shape.iter().zip(&pixels).all(|(a, b)| a == b || *a == 1);
        if !fits || shape.len() > 1 && pixels.len() < rank {
            let actual = format!("None, with losses of shape {regions:?} and {pixels:?}");
            return Err(LossError::Option { option: "reduction", expected: "losses that add up".into(), actual });
        }
        shape.resize(pixels.len(), 1);
        Ok(overlap.f_reshape(&shape)?)
    }
}

fn is_softmax(regions: &Regions) -> bool {
    matches!(regions.activation, Activating::Known(Activation::Softmax))
}

/// `loss` · `factor`. A factor of 1 is left out: for a small loss the product costs as much as the loss itself.
fn f_times(loss: &Tensor, factor: f64) -> Result<Tensor, LossError> {
    Ok(if factor == 1.0 { loss.shallow_clone() } else { loss.f_mul_number(factor)? })
}

impl Precomputed for Compound {
    fn reduction(&self) -> Reduction {
        match self.overlap.loss().regions().reduction {
            Reduction::None => Reduction::None,
            _ => self.pixelwise.reduction(),
        }
    }
}
