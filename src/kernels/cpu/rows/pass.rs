//! The tensors of a call as a job of the CPU, and what its losses are scaled by.

use tch::Kind;

use super::job::{Factors, Job};
use super::options::Options;
use crate::kernels::cpu::elements::{Numbers, integers};
use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::output::Output;
use crate::kernels::cpu::parallel;
use crate::kernels::rows::{Layout, RowReduction};

impl Layout {
    /// What the sum of the losses is multiplied by: 1 over the divisor of the mean.
    pub(in crate::kernels::cpu) fn scale<W: Wide>(&self, options: &Options<W>, reduction: RowReduction) -> f64 {
        let divisor = match reduction {
            RowReduction::None | RowReduction::Sum => 1.0,
            RowReduction::Mean => (self.input.numel() / self.classes) as f64,
            RowReduction::WeightedMean | RowReduction::CountedMean => {
                let target = integers(&self.target);
                let weighted = reduction == RowReduction::WeightedMean && options.weight.is_some();
                parallel::sum(target.len(), 1, |range| {
                    let counted = target[range].iter().filter(|class| **class != options.ignored);
                    match weighted {
                        true => counted.map(|class| options.weight_of(*class as usize)).sum(),
                        false => counted.count() as f64,
                    }
                })
            }
        };
        if divisor == 0.0 && reduction == RowReduction::WeightedMean && self.all_weightless(options) {
            // A mean of no weight is 0 / 0. Without this line the terms that smoothing spreads over the other classes
            // would make it infinite.
            return f64::NAN;
        }
        1.0 / divisor
    }

    /// Whether the class of each target that is not ignored has weight 0.
    fn all_weightless<W: Wide>(&self, options: &Options<W>) -> bool {
        let counted = integers(&self.target).iter().filter(|class| **class != options.ignored);
        counted.copied().all(|class| options.weight_of(class as usize) == 0.0)
    }

    /// The call as its tasks see it.
    pub(in crate::kernels::cpu) fn job<'a, W: Wide>(
        &'a self,
        options: &'a Options<W>,
        factors: Factors<'a, W>,
        losses: Option<&'a Output<W>>,
        gradient: Option<&'a Output<W>>,
    ) -> Job<'a, W> {
        let (classes, numbers) = match self.target.f_kind() {
            Ok(Kind::Int64) => (integers(&self.target), Numbers::NONE),
            _ => (&[][..], Numbers::of(&self.target)),
        };
        Job {
            options,
            input: Numbers::of(&self.input),
            target: classes,
            numbers,
            classes: self.classes,
            inner: self.inner,
            factors,
            losses,
            gradient,
        }
    }
}
