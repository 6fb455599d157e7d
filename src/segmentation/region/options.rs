//! The options of the losses over regions, and their checks.

use tch::Tensor;

use crate::check::{self, Validity};
use crate::kernels::NumberOperations;
use crate::{InvalidValues, LossError, Reduction};

/// Which pixels make up one region, whose overlap is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
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
#[non_exhaustive]
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
#[non_exhaustive]
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
#[non_exhaustive]
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
#[non_exhaustive]
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
inner pub(in crate::segmentation) struct Regions;

/// The defaults, which are MONAI's.
new {
    ..region_options,
    ..score_options,
}
}

impl Regions {
    pub(super) fn f_check_options(&self, input: &Tensor) -> Result<(), LossError> {
        let shape = input.size();
        let fits = shape.len() >= 2 && shape[1] != 0;
        check::shape(("input", input), fits, "[N, C] or [N, C, d1, ...], with at least one class")?;
        let (classes, background) = (shape[1], self.include_background);
        check::option("include_background", background, background || classes > 1, "true with a single class")?;
        for &class in self.classes.iter().flatten() {
            check::option("classes", class, (0..classes).contains(&class), &format!("classes in [0, {classes})"))?;
        }
        let none_left = self.classes.as_ref().is_some_and(|classes| self.kept(classes).is_empty());
        check::option("classes", "empty", !none_left, "at least one class, besides a background that is excluded")?;
        self.f_check_numbers()
    }

    /// The part of the options that can be checked without an input.
    pub(in crate::segmentation) fn f_check_numbers(&self) -> Result<(), LossError> {
        for (option, value) in [("smooth_nr", self.smooth_nr), ("smooth_dr", self.smooth_dr), ("eps", self.eps)] {
            not_negative(option, value)?;
        }
        check::option("eps", self.eps, self.eps > 0.0 || !self.log_loss, "more than 0 with log_loss")
    }

    /// Checks the weights: with negative ones a weighted mean means nothing.
    pub(super) fn f_check_weight(&self, input: &Tensor) -> Result<Validity, LossError> {
        check::class_weight(self.weight.as_ref(), input, input.size()[1])?;
        let Some(weight) = &self.weight else { return Ok(Validity::CHECKED) };
        let (invalid, expected) =
            (weight.f_clamp_min_number(0)?.f_ne_tensor(weight)?, || "weights of at least 0".into());
        Validity::f_new(("weight", weight), invalid, expected, self.invalid_values)
    }

    /// Those of the chosen classes that are not an excluded background.
    pub(super) fn kept(&self, classes: &[i64]) -> Vec<i64> {
        classes.iter().copied().filter(|&class| self.include_background || class != 0).collect()
    }
}

/// The option is a number of at least 0, of which twice the value is still finite in single precision.
pub(in crate::segmentation) fn not_negative(option: &'static str, value: f64) -> Result<(), LossError> {
    check::option(option, value, (0.0..=f64::from(f32::MAX) / 2.0).contains(&value), "a finite number of at least 0")
}

/// The options that every loss over regions has.
macro_rules! region_options {
    ($($state:tt)*) => {
        crate::options::options! { @group $($state)*
            /// how the input becomes probabilities. Without an activation the input holds them, and a number far from
            /// \[0, 1\] is an error. With [`Activation::None`](crate::Activation::None) all numbers are taken as they
            /// are.
            pub(in crate::segmentation) activation: crate::segmentation::activation::Activating =
                crate::segmentation::activation::Activating::Unset => activation,
            /// how sizes are measured.
            pub(in crate::segmentation) measure: crate::OverlapMeasure = OverlapMeasure::Product,
            /// whether class 0 counts.
            pub(in crate::segmentation) include_background: bool = true,
            /// the classes that count, all where there is no list.
            pub(in crate::segmentation) classes: Option<Vec<i64>> = None => integers,
            /// the class index, or the value of a mask, that is ignored.
            pub(in crate::segmentation) ignore_index: Option<i64> = None,
            /// what `ignore_index` means in a target of the input's shape.
            pub(in crate::segmentation) ignore_scope: crate::IgnoreScope = IgnoreScope::Element,
            /// what is added to the numerator.
            pub(in crate::segmentation) smooth_nr: f64 = 1e-5,
            /// what is added to the denominator.
            pub(in crate::segmentation) smooth_dr: f64 = 1e-5,
            /// what a class index does that is out of range, or a mask or an input without activation that is not in
            /// \[0, 1\].
            pub(in crate::segmentation) invalid_values: crate::InvalidValues = InvalidValues::default(),
            /// the reduction.
            pub(in crate::segmentation) reduction: crate::Reduction = Reduction::Mean,
        }
    };
}
pub(in crate::segmentation) use region_options;

/// The options of the losses with one score for each region.
macro_rules! score_options {
    ($($state:tt)*) => {
        crate::options::options! { @group $($state)*
            /// which pixels make up a region.
            pub(in crate::segmentation) grouping: crate::Grouping = Grouping::SampleAndClass,
            /// a weight, of at least 0, for each class of the input: a factor of the losses of its regions, or of its
            /// share in the sizes where a region spans all classes. It is on the device of the input, in any floating
            /// kind.
            pub(in crate::segmentation) weight: Option<tch::Tensor> = None,
            /// what the mean of weighted losses is divided by.
            pub(in crate::segmentation) weighted_mean: crate::WeightedMean = WeightedMean::Count,
            /// what a region without a pixel of the target contributes.
            pub(in crate::segmentation) empty_mask: crate::EmptyMask = EmptyMask::Formula,
            /// the least value of the denominator and of the logarithm's argument.
            pub(in crate::segmentation) eps: f64 = 1e-7,
            /// whether the loss is −log of the score instead of 1 − score.
            pub(in crate::segmentation) log_loss: bool = false,
        }
    };
}
pub(in crate::segmentation) use score_options;
