//! Rows of logits of which each process has some classes.

use std::fmt::Debug;

use tch::{Kind, Tensor};

use crate::LossError;
use crate::kernels::NumberOperations;

/// The classes of this process among those of all, and how processes put together what they know of a row.
pub(crate) trait ClassShard: Debug + Send + Sync {
    /// The first class of this process.
    fn first(&self) -> i64;

    /// The number of classes of all processes.
    fn all(&self) -> i64;

    /// The greatest of the numbers of all processes, element by element.
    fn f_greatest(&self, own: &Tensor) -> Result<Tensor, LossError>;

    /// The sum of the numbers of all processes, element by element.
    fn f_sum(&self, own: &Tensor) -> Result<Tensor, LossError>;
}

/// The targets of rows among the classes of this process.
pub(super) struct OwnTargets {
    /// Positions among the own classes; any where the target is one of another process.
    pub(super) class: Tensor,
    /// Where the target is one of another process; none where this one has all classes.
    pub(super) elsewhere: Option<Tensor>,
}

impl OwnTargets {
    pub(super) fn f_new(shard: Option<&dyn ClassShard>, classes: &Tensor, own: i64) -> Result<Self, LossError> {
        let Some(shard) = shard else { return Ok(Self { class: classes.shallow_clone(), elsewhere: None }) };
        let place = classes.f_sub_number(shard.first())?;
        let elsewhere = place.f_lt_number(0)?.f_logical_or(&place.f_ge_number(own)?)?;
        Ok(Self { class: place.f_masked_fill_number(&elsewhere, 0)?, elsewhere: Some(elsewhere) })
    }

    /// One number per row, which is 0 where the target is elsewhere.
    pub(super) fn f_here(&self, numbers: Tensor) -> Result<Tensor, LossError> {
        match &self.elsewhere {
            Some(elsewhere) => Ok(numbers.f_masked_fill_number(elsewhere, 0)?),
            None => Ok(numbers),
        }
    }

    /// The logit of the target of each row, 0 where it is elsewhere.
    pub(super) fn f_logits(&self, logits: &Tensor) -> Result<Tensor, LossError> {
        if logits.size2()?.1 == 0 {
            return Ok(Tensor::f_zeros(self.class.size(), (logits.f_kind()?, logits.device()))?);
        }
        self.f_here(logits.f_gather(1, &self.class.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?)
    }

    /// Adds a number for each row to its target, where that is here.
    pub(super) fn f_add(&self, logits: &mut Tensor, numbers: Tensor) -> Result<(), LossError> {
        if logits.size2()?.1 > 0 {
            let numbers = self.f_here(numbers)?.f_unsqueeze(1)?;
            let _ = logits.f_scatter_add_(1, &self.class.f_unsqueeze(1)?, &numbers)?;
        }
        Ok(())
    }
}

/// The greatest logit of each row, `[n, 1]`.
pub(super) fn f_peak(shard: Option<&dyn ClassShard>, logits: &Tensor) -> Result<Tensor, LossError> {
    let Some(shard) = shard else { return Ok(logits.f_amax(1, true)?) };
    let (rows, own) = logits.size2()?;
    let own = match own {
        0 => Tensor::f_full_number(&[rows, 1], f64::NEG_INFINITY, (logits.f_kind()?, logits.device()))?,
        _ => logits.f_amax(1, true)?,
    };
    shard.f_greatest(&own)
}

/// Two numbers per row, each the sum of those of all processes.
pub(super) fn f_over_all(shard: Option<&dyn ClassShard>, own: [Tensor; 2]) -> Result<[Tensor; 2], LossError> {
    let Some(shard) = shard else { return Ok(own) };
    let sums = shard.f_sum(&Tensor::f_stack(&own, 0)?)?;
    Ok([sums.f_select(0, 0)?, sums.f_select(0, 1)?])
}

/// What the smoothing gives to each of the own classes, `[C]`, and to all classes together.
pub(super) struct Spread {
    pub(super) own: Tensor,
    pub(super) total: Tensor,
}

impl Spread {
    pub(super) fn f_new(
        shard: Option<&dyn ClassShard>,
        smoothing: f64,
        weight: Option<&Tensor>,
        logits: &Tensor,
    ) -> Result<Self, LossError> {
        let own = logits.size2()?.1;
        let (first, all) = shard.map_or((0, own), |shard| (shard.first(), shard.all()));
        let share = smoothing / all as f64;
        let of_all = match weight {
            Some(weight) => weight.f_mul_number(share)?,
            None => Tensor::f_full_number(&[all], share, (logits.f_kind()?, logits.device()))?,
        };
        Ok(Self { own: of_all.f_narrow(0, first, own)?, total: of_all.f_sum(None::<Kind>)? })
    }
}
