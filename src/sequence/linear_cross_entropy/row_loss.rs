//! The loss of rows of logits and its gradient, computed in place.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::shard::{ClassShard, OwnTargets, Spread, f_over_all, f_peak};
use crate::kernels::{self, LogitRows, Note, NumberOperations, Unchecked, f_logits};
use crate::numeric::{f_filled, f_share_of, f_times, wide_kind};
use crate::{InvalidValues, LossError};

/// The number of logits that the CPU computes at a time: as many as stay in its second-level cache over several
/// operations.
const BLOCK: i64 = 1 << 18;

/// The loss of a row of logits z with the target t: Σ_c t\[c\] (lse − z\[c\]) and λ lse², where lse = log Σ_c exp
/// z\[c\].
#[derive(Debug)]
pub(super) struct RowLoss {
    /// One number per class, in single precision at least.
    pub(super) weight: Option<Tensor>,
    label_smoothing: f64,
    z_loss: f64,
    soft_cap: Option<f64>,
    /// Where other processes have other classes of the rows.
    shard: Option<Arc<dyn ClassShard>>,
    /// Where the targets of rows have not been checked.
    pub(super) unchecked: Option<UncheckedTargets>,
}

/// What is done with class indices on CUDA that only the kernels check; see [`Unchecked`].
#[derive(Debug)]
pub(super) struct UncheckedTargets {
    ignored: i64,
    note: Option<Tensor>,
    /// 1 where all classes so far were in range, else 0.
    pub(super) valid: Tensor,
}

impl UncheckedTargets {
    pub(super) fn f_new(ignored: i64, note: Option<&Note>, (kind, device): (Kind, Device)) -> Result<Self, LossError> {
        let f_memory = |note: &Note| InvalidValues::f_memory(device, note.argument, &note.expected);
        Ok(Self { ignored, note: note.map(f_memory).transpose()?, valid: Tensor::f_ones([0_i64; 0], (kind, device))? })
    }

    fn for_kernels(&self) -> Unchecked<'_> {
        Unchecked { ignored: self.ignored, note: self.note.as_ref(), valid: &self.valid }
    }

    /// The same by tensor operations, of rows that no kernel takes: targets of a class in range, and where there was none.
    fn f_check(
        &self,
        of_rows: &Tensor,
        ignored: Option<&Tensor>,
        classes: i64,
    ) -> Result<(RowTarget, Tensor), LossError> {
        let of_rows = f_filled(of_rows, ignored, 0)?;
        let within = of_rows.f_clamp_number(0, (classes - 1).max(0))?;
        let invalid = within.f_ne_tensor(&of_rows)?;
        let all = invalid.f_any()?.f_logical_not()?;
        let _ = self.valid.shallow_clone().f_mul_(&all.f_to_kind(self.valid.f_kind()?)?)?;
        if let Some(note) = &self.note {
            let _ = note.shallow_clone().f_logical_and_(&all)?;
        }
        let ignored = match ignored {
            Some(ignored) => ignored.f_logical_or(&invalid)?,
            None => invalid.shallow_clone(),
        };
        Ok((RowTarget::Indices { classes: within, ignored: Some(ignored) }, invalid))
    }
}

/// The targets of rows of logits.
#[derive(Debug)]
pub(super) enum RowTarget {
    /// One class for each row; where it is ignored it may be any class, and where it is unchecked any number.
    Indices { classes: Tensor, ignored: Option<Tensor> },
    /// A probability for each class.
    Probabilities(Tensor),
}

impl RowTarget {
    pub(super) fn f_narrow(&self, start: i64, length: i64) -> Result<RowTarget, LossError> {
        self.f_map(|tensor| Ok(tensor.f_narrow(0, start, length)?))
    }

    /// The target as another view of its tensors.
    pub(super) fn f_map(&self, view: impl Fn(&Tensor) -> Result<Tensor, LossError>) -> Result<RowTarget, LossError> {
        Ok(match self {
            RowTarget::Indices { classes, ignored } => {
                RowTarget::Indices { classes: view(classes)?, ignored: ignored.as_ref().map(view).transpose()? }
            }
            RowTarget::Probabilities(probabilities) => RowTarget::Probabilities(view(probabilities)?),
        })
    }

    /// Which targets are ignored, if some are.
    pub(super) fn ignored(&self) -> Option<&Tensor> {
        match self {
            RowTarget::Indices { ignored, .. } => ignored.as_ref(),
            RowTarget::Probabilities(_) => None,
        }
    }
}

/// Two numbers per row, one for its cross entropy and one for its z-loss.
#[derive(Debug)]
pub(super) struct PerRow {
    pub(super) entropy: Tensor,
    pub(super) z: Tensor,
}

impl PerRow {
    pub(super) fn f_map(&self, view: impl Fn(&Tensor) -> Result<Tensor, LossError>) -> Result<PerRow, LossError> {
        Ok(PerRow { entropy: view(&self.entropy)?, z: view(&self.z)? })
    }
}

/// What loss and gradient both need of the target t of some rows.
struct Distribution {
    /// Σ_c t\[c\]
    total: Tensor,
    /// Σ_c t\[c\] x\[c\] for the shifted logits x.
    product: Tensor,
    form: Form,
}

enum Form {
    /// `own` for the class of `targets`, and in addition ε/C times the class weight for every class.
    Spike {
        targets: OwnTargets,
        own: Tensor,
    },
    Dense(Tensor),
}

impl RowLoss {
    /// For logits that are computed in `kind`.
    pub(super) fn f_new(
        weight: Option<&Tensor>,
        label_smoothing: f64,
        z_loss: f64,
        soft_cap: Option<f64>,
        kind: Kind,
    ) -> Result<RowLoss, LossError> {
        let weight = weight.map(|weight| weight.f_detach()?.f_to_kind(kind)).transpose()?;
        Ok(RowLoss { weight, label_smoothing, z_loss, soft_cap, shard: None, unchecked: None })
    }

    /// The classes of this process, where others have others.
    pub(super) fn shard(&self) -> Option<&dyn ClassShard> {
        self.shard.as_deref()
    }

    /// The same where other processes have other classes, if there is a `shard`.
    pub(super) fn of_shard(self, shard: Option<Arc<dyn ClassShard>>) -> RowLoss {
        RowLoss { shard, ..self }
    }

    /// The losses of the rows `[n, C]` of logits. `logits` is overwritten: with the derivatives of the result with
    /// respect to these losses it becomes the gradient of the result, without them its content is lost.
    pub(super) fn f_chunk_loss_and_gradient(
        &self,
        logits: &Tensor,
        target: &RowTarget,
        derivatives: Option<&PerRow>,
    ) -> Result<PerRow, LossError> {
        if let Some(losses) = self.f_fused(logits, target, derivatives)? {
            return Ok(losses);
        }
        let (Some(unchecked), RowTarget::Indices { classes, ignored }) = (&self.unchecked, target) else {
            return self.f_composite(logits, target, derivatives);
        };
        let (target, invalid) = unchecked.f_check(classes, ignored.as_ref(), logits.size2()?.1)?;
        let losses = self.f_composite(logits, &target, derivatives)?;
        losses.f_map(|losses| Ok(losses.f_masked_fill_number(&invalid, f64::NAN)?))
    }

    /// The same by tensor operations, of targets that are valid.
    fn f_composite(
        &self,
        logits: &Tensor,
        target: &RowTarget,
        derivatives: Option<&PerRow>,
    ) -> Result<PerRow, LossError> {
        let (rows, classes) = logits.size2()?;
        let kind = wide_kind(logits)?;
        // Processes meet once for all rows.
        let in_blocks = logits.device() == Device::Cpu && self.shard.is_none();
        let step = if in_blocks { (BLOCK / classes).max(1) } else { rows };
        let (mut entropy, mut z) = (vec![], vec![]);
        for start in (0..rows).step_by(step.max(1) as usize) {
            let length = step.min(rows - start);
            let narrow = |tensor: &Tensor| Ok::<_, LossError>(tensor.f_narrow(0, start, length)?);
            let mut rows = narrow(logits)?;
            let mut block = rows.f_to_kind(kind)?;
            let derivatives = derivatives.map(|derivatives| derivatives.f_map(narrow)).transpose()?;
            let losses = self.f_block(&mut block, &target.f_narrow(start, length)?, derivatives.as_ref())?;
            if derivatives.is_some() && rows.f_kind()? != kind {
                rows.f_copy_(&block)?;
            }
            entropy.push(losses.entropy);
            z.push(losses.z);
        }
        Ok(PerRow { entropy: Tensor::f_cat(&entropy, 0)?, z: Tensor::f_cat(&z, 0)? })
    }

    /// The same by the engine, or `None` where the engine does not take the call.
    fn f_fused(
        &self,
        logits: &Tensor,
        target: &RowTarget,
        derivatives: Option<&PerRow>,
    ) -> Result<Option<PerRow>, LossError> {
        let RowTarget::Indices { classes, ignored } = target else { return Ok(None) };
        if self.shard.is_some() || !kernels::takes_rows(logits) {
            return Ok(None);
        }
        let target = match self.unchecked {
            Some(_) => classes.shallow_clone(),
            None => f_filled(classes, ignored.as_ref(), -1)?,
        };
        let derivatives = derivatives.map(|of| of.f_map(|of| Ok(of.f_contiguous()?))).transpose()?;
        let losses = f_logits(&LogitRows {
            logits,
            target: &target.f_contiguous()?,
            unchecked: self.unchecked.as_ref().map(UncheckedTargets::for_kernels),
            weight: self.weight.as_ref(),
            smoothing: self.label_smoothing,
            z_loss: self.z_loss,
            soft_cap: self.soft_cap,
            derivatives: derivatives.as_ref().map(|of| [&of.entropy, &of.z]),
        })?;
        Ok(losses.map(|[entropy, z]| PerRow { entropy, z }))
    }

    fn f_block(
        &self,
        logits: &mut Tensor,
        target: &RowTarget,
        derivatives: Option<&PerRow>,
    ) -> Result<PerRow, LossError> {
        if let Some(ignored) = target.ignored() {
            // Ignored rows are replaced by zeros, so that an infinite or NaN logit in them does not get into the
            // gradient.
            let _ = logits.f_masked_fill_number_(&ignored.f_unsqueeze(1)?, 0)?;
        }
        let slope = self.f_cap(logits, derivatives.is_some())?;
        let peak = f_peak(self.shard(), logits)?;
        let _ = logits.f_sub_(&peak)?;
        let distribution = self.f_distribution(logits, target)?;
        let _ = logits.f_exp_()?;
        let own = [logits.f_sum_dim_intlist(1, false, None)?, distribution.product];
        let [sum, product] = f_over_all(self.shard(), own)?;
        let log_sum = sum.f_log()?;
        let log_sum_exp = log_sum.f_add(&peak.f_squeeze_dim(1)?)?;
        let losses = PerRow {
            entropy: log_sum.f_mul(&distribution.total)?.f_sub(&product)?,
            z: log_sum_exp.f_square()?.f_mul_number(self.z_loss)?,
        };
        if let Some(derivatives) = derivatives {
            let z = log_sum_exp.f_mul(&derivatives.z)?.f_mul_number(2.0 * self.z_loss)?;
            let factor = distribution.total.f_mul(&derivatives.entropy)?.f_add(&z)?.f_div(&sum)?;
            let _ = logits.f_mul_(&factor.f_unsqueeze(1)?)?;
            self.f_subtract(logits, &distribution.form, &derivatives.entropy)?;
            if let Some(slope) = slope {
                let _ = logits.f_mul_(&slope)?;
            }
        }
        losses.f_map(|losses| f_filled(losses, target.ignored(), 0))
    }

    /// Caps the logits, and returns the slope of the cap where the gradient needs it.
    fn f_cap(&self, logits: &mut Tensor, gradient: bool) -> Result<Option<Tensor>, LossError> {
        let Some(cap) = self.soft_cap else { return Ok(None) };
        let _ = logits.f_div_number_(cap)?.f_tanh_()?;
        let slope = gradient.then(|| logits.f_square()?.f_neg_()?.f_add_number_(1)).transpose()?;
        let _ = logits.f_mul_number_(cap)?;
        Ok(slope)
    }

    fn f_distribution(&self, shifted: &Tensor, target: &RowTarget) -> Result<Distribution, LossError> {
        match target {
            RowTarget::Indices { classes, .. } => self.f_spike(shifted, classes),
            RowTarget::Probabilities(probabilities) => self.f_dense(shifted, probabilities),
        }
    }

    fn f_spike(&self, shifted: &Tensor, classes: &Tensor) -> Result<Distribution, LossError> {
        let targets = OwnTargets::f_new(self.shard(), classes, shifted.size2()?.1)?;
        let own = match &self.weight {
            Some(weight) => weight.f_index_select(0, classes)?,
            None => classes.f_ones_like()?.f_to_kind(shifted.f_kind()?)?,
        };
        let own = own.f_mul_number(1.0 - self.label_smoothing)?;
        let mut product = targets.f_logits(shifted)?.f_mul(&own)?;
        let mut total = own.shallow_clone();
        if self.label_smoothing != 0.0 {
            let spread = self.f_spread(shifted)?;
            product = product.f_add(&shifted.f_mv(&spread.own)?)?;
            total = total.f_add(&spread.total)?;
        }
        Ok(Distribution { total, product, form: Form::Spike { targets, own } })
    }

    /// What the smoothing gives to the classes.
    fn f_spread(&self, logits: &Tensor) -> Result<Spread, LossError> {
        Spread::f_new(self.shard(), self.label_smoothing, self.weight.as_ref(), logits)
    }

    fn f_dense(&self, shifted: &Tensor, probabilities: &Tensor) -> Result<Distribution, LossError> {
        let mut target = probabilities.f_to_kind(shifted.f_kind()?)?;
        if self.label_smoothing != 0.0 {
            let share = self.label_smoothing / shifted.size2()?.1 as f64;
            target = target.f_mul_number(1.0 - self.label_smoothing)?.f_add_number(share)?;
        }
        let target = f_times(&target, self.weight.as_ref())?;
        let total = target.f_sum_dim_intlist(1, false, None)?;
        let product = f_share_of(&target, shifted)?.f_sum_dim_intlist(1, false, None)?;
        Ok(Distribution { total, product, form: Form::Dense(target) })
    }

    /// Subtracts the target, times the derivative of its row.
    fn f_subtract(&self, logits: &mut Tensor, target: &Form, derivative: &Tensor) -> Result<(), LossError> {
        let negative = derivative.f_neg()?;
        match target {
            Form::Dense(target) => {
                let _ = logits.f_addcmul_(&negative.f_unsqueeze(1)?, target)?;
            }
            Form::Spike { targets, own } => {
                targets.f_add(logits, negative.f_mul(own)?)?;
                if self.label_smoothing != 0.0 {
                    let spread = self.f_spread(logits)?;
                    let _ = logits.f_addcmul_(&negative.f_unsqueeze(1)?, &spread.own)?;
                }
            }
        }
        Ok(())
    }
}
