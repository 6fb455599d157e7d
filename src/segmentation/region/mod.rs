//! What the losses of overlapping regions share: their options, the sizes of the regions, and the way to one loss.

mod entropy;
mod measure;
mod options;
mod reduce;
mod score;

use tch::Tensor;

use super::activation::Activating;
use crate::{Loss, LossError};

pub(super) use entropy::PlainCrossEntropy;
pub(super) use measure::Sizes;
pub use options::{EmptyMask, Grouping, IgnoreScope, OverlapMeasure, WeightedMean};
pub(super) use options::{Regions, not_negative, region_options, score_options};
pub(super) use score::Score;

/// A loss that is a function of the sizes of regions.
pub(super) trait RegionLoss: Loss {
    /// The options that all these losses have.
    fn regions(&self) -> &Regions;

    /// The same, to be changed.
    fn regions_mut(&mut self) -> &mut Regions;

    /// The score of a region, once the options are checked that this loss alone has.
    fn f_score(&self) -> Result<Score, LossError>;

    /// The loss of regions of these sizes.
    fn f_of_sizes(&self, sizes: &Sizes) -> Result<Tensor, LossError> {
        let loss = self.regions().f_loss_of(sizes, self.f_score()?, sizes.kind)?;
        self.regions().f_finish(&loss, sizes)
    }

    /// The loss of an input and a target, with this activation.
    fn f_of(&self, input: &Tensor, target: &Tensor, activation: &Activating) -> Result<Tensor, LossError> {
        self.f_score()?;
        self.f_of_sizes(&self.regions().f_measure(input, target, activation)?)
    }
}

/// The methods of a [`RegionLoss`] that say where its options are: in the field `regions`.
macro_rules! with_regions {
    () => {
        fn regions(&self) -> &Regions {
            &self.regions
        }

        fn regions_mut(&mut self) -> &mut Regions {
            &mut self.regions
        }
    };
}
pub(super) use with_regions;

/// What a [`RegionLoss`] has as a [`Loss`].
macro_rules! loss_of_regions {
    () => {
        crate::option_tensors::with_tensors!();

        fn f_check_options(&self) -> Result<(), LossError> {
            self.f_score()?;
            self.regions.f_check_numbers()
        }

        fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
            self.f_of(input, target, &self.regions.activation)
        }
    };
}
pub(super) use loss_of_regions;
