//! The engine of cross entropy with z-loss of a chunk of logits, for linear cross entropy. The gradient overwrites the
//! logits.

use tch::{Kind, Tensor};

use super::engine::are_aligned;
use super::launch::{Block, Kernel};
use super::modules;
use super::rows::{Outputs, RowCall, f_weights, grid, plan};
use super::softmax::EXPONENTIALS;
use super::source::Recipe;
use super::source::rows::rows as source;
use crate::LossError;
use crate::autograd::Header;
use crate::kernels::rows::LogitRows;
use crate::numeric::{is_floating, wide_kind};

const LOGITS: Kernel = Kernel { name: c"logits", types: &["LogitCall"] };

/// See [`kernels::f_logits`](crate::kernels::f_logits).
pub(in crate::kernels) fn f_logits(rows: &LogitRows) -> Result<Option<[Tensor; 2]>, LossError> {
    let (logits, wide) = (rows.logits, wide_kind(rows.logits)?);
    if !takes(rows, wide)? {
        return Ok(None);
    }
    let (kind, device, count) = (logits.f_kind()?, logits.device(), rows.target.numel());
    let classes = logits.numel() / count;
    let plan = plan([classes, 1], kind, are_aligned([logits]), 1, 1);
    let capped = format!("#define CAPPED {}\ntypedef Element Factor;\n", i32::from(rows.soft_cap.is_some()));
    let parameters = [rows.z_loss, rows.soft_cap.unwrap_or(1.0)];
    let definitions = plan.definitions() + &capped;
    let write = |recipe: &Recipe| source(recipe, &[EXPONENTIALS, include_str!("source/logits.cu")]);
    let recipe = Recipe { kind, parameters: parameters.len(), definitions, formulas: vec![], write };
    let Some(launcher) = modules::launcher_of(device, recipe, &[LOGITS]) else { return Ok(None) };
    let losses = || Tensor::f_empty([count as i64], (wide, device));
    let losses = [losses()?, losses()?];
    let (weights, weight_sum) = f_weights(rows.weight, logits, rows.smoothing)?;
    let call = RowCall {
        kind,
        input: logits,
        target: rows.target,
        weights: weights.as_ref(),
        weight_sum: weight_sum.as_ref(),
        rows: count,
        classes,
        inner: 1,
        ignored: Some(rows.unchecked.map_or(-1, |unchecked| unchecked.ignored)),
        smoothing: rows.smoothing,
        parameters: &parameters,
        outputs: Outputs {
            gradient: rows.derivatives.map(|_| logits),
            note: rows.unchecked.and_then(|unchecked| unchecked.note),
            ..Outputs::default()
        },
    };
    let mut block = Block::default();
    block.tensors(rows.derivatives.map_or([None; 2], |derivatives| derivatives.map(Some)));
    block.tensors(&losses);
    block.tensors([rows.unchecked.map(|unchecked| unchecked.valid)]);
    call.write(&mut block);
    // SAFETY: the block has the layout of `LogitCall`; all tensors are on the device and of the kinds and lengths that
    // it says, and their memory is freed on the same stream, behind the kernel.
    let launched = unsafe { block.launch(&*launcher, LOGITS, grid(count, plan)) };
    Ok(launched.then_some(losses))
}

fn takes(rows: &LogitRows, wide: Kind) -> Result<bool, LossError> {
    let (kind, logits) = (rows.logits.f_kind()?, Header::of(rows.logits));
    let fits = |tensor: &Tensor, kind: Kind| {
        let header = Header::of(tensor);
        header.is_numbers_of(kind) && header.is_on_device_of(&logits) && header.is_contiguous()
    };
    let is_beside = |weight: &Tensor| Header::of(weight).is_on_device_of(&logits);
    Ok(is_floating(kind)
        && fits(rows.logits, kind)
        && logits.elements() != 0
        && fits(rows.target, Kind::Int64)
        && rows.unchecked.is_none_or(|unchecked| fits(unchecked.valid, wide))
        && rows.weight.is_none_or(is_beside)
        && rows.derivatives.is_none_or(|derivatives| derivatives.into_iter().all(|tensor| fits(tensor, wide))))
}
