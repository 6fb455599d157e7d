//! How the losses of boxes or scores become the result: weight, divisor and reduction.

use tch::{Kind, Tensor};

use crate::divisor::{Divisor, f_positives};
use crate::kernels::NumberOperations;
use crate::numeric::{f_reals, f_times, result_kind, wide_kind};
use crate::{LossError, MeanParts, Reduction, WhenEmpty, check};

/// What a loss of detection has one loss for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Losses {
    /// Pairs of boxes `[*, 4]`, all of which are positive.
    Boxes,
    /// Targets `[*]`, all of which are positive.
    Targets,
    /// Scores `[*]`, of which those with a target above 0 are positive.
    Scores,
}

/// How the losses of boxes or scores become the result.
pub(super) struct Reducing<'a> {
    losses: Losses,
    input: &'a Tensor,
    target: &'a Tensor,
    weight: Option<&'a Tensor>,
    divisor: Divisor,
    reduction: Reduction,
    /// The shape of the losses.
    shape: Vec<i64>,
}

impl<'a> Reducing<'a> {
    pub(super) fn new(
        losses: Losses,
        [input, target]: [&'a Tensor; 2],
        weight: Option<&'a Tensor>,
        divisor: Divisor,
        reduction: Reduction,
    ) -> Self {
        let mut shape = target.size();
        if matches!(losses, Losses::Boxes) {
            shape.pop();
        }
        Self { losses, input, target, weight, divisor, reduction, shape }
    }

    /// The reduced loss, given the `losses` of an input with any reduction.
    pub(super) fn f_apply(
        &self,
        losses: impl Fn(&Tensor, Reduction) -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        let input = self.input;
        self.f_check()?;
        let counts = self.divisor != Divisor::Losses && self.reduction == Reduction::Mean;
        if self.weight.is_none() && !counts {
            return losses(input, self.reduction);
        }
        // A sum may be too large for half precision.
        let wide = input.f_to_kind(wide_kind(input)?)?;
        let loss = match self.reduction {
            Reduction::None => self.f_weighted(&losses(&wide, Reduction::None)?)?,
            Reduction::Sum => self.f_sum(&wide, &losses)?,
            // The loss itself says what its mean over no losses is.
            Reduction::Mean if self.divisor == Divisor::Losses && self.shape.contains(&0) => {
                losses(&wide, Reduction::Mean)?
            }
            Reduction::Mean => self.divisor.f_parts(self.f_sum(&wide, &losses)?, self.f_count()?)?.f_value()?,
        };
        Ok(loss.f_to_kind(result_kind(input)?)?)
    }

    /// Numerator and denominator of the mean. The denominator may be below 1, so that those of several calls can be
    /// added before the bound.
    pub(super) fn f_parts(
        &self,
        losses: impl Fn(&Tensor, Reduction) -> Result<Tensor, LossError>,
    ) -> Result<MeanParts, LossError> {
        self.f_check()?;
        let numerator = self.f_sum(&self.input.f_to_kind(wide_kind(self.input)?)?, &losses)?;
        let parts = self.divisor.f_parts(numerator, self.f_count()?)?;
        // As torchvision's.
        let zero = matches!(self.losses, Losses::Boxes) && self.divisor == Divisor::Losses;
        Ok(if zero { parts.when_empty(WhenEmpty::Zero) } else { parts })
    }

    /// The divisor, before the bound of at least 1.
    fn f_count(&self) -> Result<Tensor, LossError> {
        let all = self.shape.iter().product::<i64>();
        self.divisor.f_count(&self.shape, self.weight, self.input, || match self.losses {
            Losses::Scores => f_positives(self.target),
            _ => Ok(Tensor::f_full_number(&[], all, (Kind::Double, self.input.device()))?),
        })
    }

    fn f_check(&self) -> Result<(), LossError> {
        self.divisor.check()?;
        let Some(weight) = self.weight else { return Ok(()) };
        check::devices(&[("input", self.input), ("weight", weight)])?;
        let size = weight.size();
        let fits = |(a, b): (&i64, &i64)| a == b || *a == 1;
        if size.len() <= self.shape.len() && size.iter().rev().zip(self.shape.iter().rev()).all(fits) {
            return Ok(());
        }
        let of = match self.losses {
            Losses::Boxes => "the boxes",
            Losses::Targets => "target",
            Losses::Scores => "input",
        };
        let expected = format!("a shape that broadcasts to {:?}, that of {of}", self.shape);
        Err(check::shape_error(("weight", weight), expected))
    }

    fn f_sum(
        &self,
        input: &Tensor,
        losses: impl Fn(&Tensor, Reduction) -> Result<Tensor, LossError>,
    ) -> Result<Tensor, LossError> {
        match self.weight {
            Some(_) => Ok(self.f_weighted(&losses(input, Reduction::None)?)?.f_sum(None)?),
            None => losses(input, Reduction::Sum),
        }
    }

    fn f_weighted(&self, losses: &Tensor) -> Result<Tensor, LossError> {
        let weight = self.weight.map(|weight| f_reals(("weight", weight), losses.f_kind()?)).transpose()?;
        f_times(losses, weight.as_ref())
    }
}

/// The methods of [`Loss`](crate::Loss) that losses of detection share. Given are what the losses are of and the check
/// of the arguments; the loss has a method `f_reduced`, which computes it before weight and divisor.
macro_rules! loss_of {
    ($losses:ident, $check:path) => {
        crate::option_tensors::with_tensors!();

        fn f_forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, LossError> {
            super::reducing::loss_of!(@reduced self, input, target, $losses, $check, f_apply)
        }

        fn f_parts(&self, input: &Tensor, target: &Tensor) -> Result<crate::MeanParts, LossError> {
            super::reducing::loss_of!(@reduced self, input, target, $losses, $check, f_parts)
        }
    };
    (@reduced $loss:ident, $input:ident, $target:ident, $losses:ident, $check:path, $f_method:ident) => {{
        $check($input, $target)?;
        $loss.f_check_options()?;
        let (weight, divisor, reduction) = ($loss.weight.as_ref(), $loss.divisor, $loss.reduction);
        let losses = super::reducing::Losses::$losses;
        let reducing = super::reducing::Reducing::new(losses, [$input, $target], weight, divisor, reduction);
        reducing.$f_method(|input, reduction| $loss.f_reduced(input, $target, reduction))
    }};
}
pub(super) use loss_of;
