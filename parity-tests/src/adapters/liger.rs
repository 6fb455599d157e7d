//! Liger-Kernel: `pytorch/liger.py` runs its Triton kernel on the CPU, its chunked losses run there by themselves.

use tch::{Kind, Tensor};
use tch_losses::{
    Chunking, CpoLoss, DistillationLoss, DpoLoss, DpoVariant, KtoLoss, LinearDistillation, LinearKto, LinearPreference,
    OrpoLoss, PairLogProbs, PreferenceLoss, SequenceLogProbs, SimpoLoss, SoftLoss, TokenReduction,
};

use super::Equality::Close;
use super::papers::language_model;
use super::papers::preference::{Head, dpo_variant, tensors};
use super::{Adapter, Outcome, adapter};
use crate::arguments::{Arguments, EvalError};

const POLICY: &[&str] = &["lin_weight", "_input", "target", "bias"];
const DISTILLATION: &[&str] = &[
    "student_input",
    "student_weight",
    "teacher_input",
    "teacher_weight",
    "true_labels",
    "student_bias",
    "teacher_bias",
];

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("LinearCrossEntropy (Liger)", &["liger.fused_linear_cross_entropy"],
        &["input", "linear_weight", "target"], Close, linear_cross_entropy),
    adapter("DpoLoss (Liger)", &["liger_kernel.chunked_loss.LigerFusedLinearDPOLoss"],
        &["lin_weight", "_input", "target", "bias", "ref_input", "ref_weight", "ref_bias"], Close, dpo),
    adapter("OrpoLoss (Liger)", &["liger_kernel.chunked_loss.LigerFusedLinearORPOLoss"],
        &["lin_weight", "_input", "target", "bias", "nll_target"], Close, orpo),
    adapter("SimpoLoss (Liger)", &["liger_kernel.chunked_loss.LigerFusedLinearSimPOLoss"], POLICY, Close, simpo),
    adapter("CpoLoss (Liger)", &["liger_kernel.chunked_loss.LigerFusedLinearCPOLoss"], POLICY, Close, cpo),
    adapter("KtoLoss (Liger)", &["liger_kernel.chunked_loss.LigerFusedLinearKTOLoss"],
        &["_input", "lin_weight", "target", "bias", "preference_labels", "ref_input", "ref_weight", "ref_bias", "kl"],
        Close, kto),
    adapter("DistillationLoss (Liger)", &["liger_kernel.chunked_loss.LigerFusedLinearJSDLoss"],
        DISTILLATION, Close, jensen_shannon),
    adapter("DistillationLoss (Liger's cosine)", &["liger_kernel.chunked_loss.LigerFusedLinearCosineSimilarityLoss"],
        DISTILLATION, Close, cosine),
];

fn linear_cross_entropy(arguments: &mut Arguments) -> Outcome {
    language_model(arguments, Some(Chunking::Rows(4)))
}

/// The options that say how, and not what.
fn log_probs(arguments: &mut Arguments, average: bool) -> Result<SequenceLogProbs, EvalError> {
    compilation(arguments)?;
    let reduction = if average { TokenReduction::Mean } else { TokenReduction::Sum };
    let log_probs = SequenceLogProbs::new().ignore_index(arguments.integer("ignore_index", -100)?);
    Ok(log_probs.token_reduction(reduction).chunking(Chunking::Rows(4)))
}

fn compilation(arguments: &mut Arguments) -> Result<(), EvalError> {
    arguments.boolean("compiled", true)?;
    arguments.integer("chunk_size", 1)?;
    Ok(())
}

/// The reference model, where it is to be used.
fn reference(arguments: &mut Arguments, default: bool) -> Result<Option<Head>, EvalError> {
    let model = Head::reference(arguments)?;
    match (arguments.boolean("use_ref_model", default)?, model) {
        (false, _) => Ok(None),
        (true, Some(model)) => Ok(Some(model)),
        (true, None) => Err(EvalError::Rejected("argument ref_input is missing".into())),
    }
}

/// Liger's metrics come after the loss, all in single precision at least.
fn preference<L: PreferenceLoss>(
    loss: L,
    arguments: &mut Arguments,
    average: bool,
    reference: Option<Head>,
) -> Result<Vec<Tensor>, EvalError> {
    let with_nll = arguments.boolean("compute_nll_loss", loss.nll_weight() != 0.0)?;
    let alpha = arguments.number("alpha", 1.0)?;
    let loss =
        LinearPreference::new(loss).log_probs(log_probs(arguments, average)?).alpha(if with_nll { alpha } else { 0.0 });
    let policy = Head::take(["_input", "lin_weight", "bias"], arguments)?;
    let (target, nll_target) = (arguments.tensor("target")?, arguments.optional_tensor("nll_target")?);
    let model = reference.as_ref().map(Head::model);
    let output = match nll_target {
        // Only the chosen answers have one, and they are the first half.
        Some(tokens) => {
            let chosen = tokens.f_narrow(0, 0, tokens.size()[0] / 2)?;
            loss.f_forward_with_nll_target(policy.view(), &target, &chosen, model)?
        }
        None => loss.f_forward(policy.view(), &target, model)?,
    };
    Ok(vec![
        output.loss,
        output.chosen_log_probs,
        output.rejected_log_probs,
        output.chosen_logits_mean,
        output.rejected_logits_mean,
        if with_nll { output.nll } else { output.nll.f_zeros_like()? },
        output.chosen_rewards,
        output.rejected_rewards,
    ])
}

fn dpo(arguments: &mut Arguments) -> Outcome {
    let name = arguments.text("loss_type")?.unwrap_or_else(|| "sigmoid".into());
    let variant = dpo_variant(&name, arguments.number("discopop_tau", 0.05)?)?;
    let smoothing = arguments.number("label_smoothing", 0.0)?;
    let loss = DpoLoss::new().beta(arguments.number("beta", 0.1)?).variant(variant);
    // Liger ignores it in the other variants.
    let smooth = matches!(variant, DpoVariant::Robust | DpoVariant::ExoPair);
    let loss = loss.label_smoothing(if smooth { smoothing } else { 0.0 });
    let average = arguments.boolean("average_log_prob", false)?;
    let reference = reference(arguments, true)?;
    Ok(tensors(preference(loss, arguments, average, reference)?))
}

fn orpo(arguments: &mut Arguments) -> Outcome {
    let mut outputs = preference(OrpoLoss::new().beta(arguments.number("beta", 0.1)?), arguments, true, None)?;
    let log_odds = OrpoLoss::f_log_odds_ratio(PairLogProbs::new(&outputs[1], &outputs[2]))?;
    outputs.extend([log_odds.f_log_sigmoid()?.f_mean(None)?, log_odds.f_mean(None)?]);
    Ok(tensors(outputs))
}

fn simpo(arguments: &mut Arguments) -> Outcome {
    let loss = SimpoLoss::new()
        .beta(arguments.number("beta", 0.1)?)
        .gamma(arguments.number("gamma", 0.5)?)
        .label_smoothing(arguments.number("label_smoothing", 0.0)?);
    Ok(tensors(preference(loss, arguments, true, None)?))
}

fn cpo(arguments: &mut Arguments) -> Outcome {
    let loss = CpoLoss::new().beta(arguments.number("beta", 0.1)?);
    let loss = loss.label_smoothing(arguments.number("label_smoothing", 0.0)?);
    let average = arguments.boolean("average_log_prob", false)?;
    Ok(tensors(preference(loss, arguments, average, None)?))
}

/// Liger has the sums of the metrics over the desirable and over the undesirable answers.
fn kto(arguments: &mut Arguments) -> Outcome {
    let average = arguments.boolean("average_log_prob", false)?;
    let loss =
        LinearKto::new(KtoLoss::new().beta(arguments.number("beta", 0.1)?)).log_probs(log_probs(arguments, average)?);
    let reference = reference(arguments, false)?;
    let policy = Head::take(["_input", "lin_weight", "bias"], arguments)?;
    let (target, labels) = (arguments.tensor("target")?, arguments.tensor("preference_labels")?);
    let kl = arguments.optional_tensor("kl")?;
    let model = reference.as_ref().map(Head::model);
    let output = loss.f_forward(policy.view(), &target, &labels, model, kl.as_ref())?;
    let logits = target.size()[1] * policy.view().weight.size()[0];
    let mut outputs = vec![output.loss];
    for metric in [output.log_probs, output.logits_means.f_mul_scalar(logits)?, output.rewards] {
        for labels in [labels.shallow_clone(), labels.f_logical_not()?] {
            outputs.push(metric.f_mul(&labels)?.f_sum(None)?);
        }
    }
    Ok(tensors(outputs))
}

fn jensen_shannon(arguments: &mut Arguments) -> Outcome {
    let beta = arguments.number("beta", 0.5)?;
    distillation(SoftLoss::JensenShannon(beta), 1.0, arguments)
}

/// The factor of the cosine is a part of Liger's soft loss.
fn cosine(arguments: &mut Arguments) -> Outcome {
    let beta = arguments.number("beta", 0.5)?;
    distillation(SoftLoss::Cosine, beta, arguments)
}

fn distillation(soft_loss: SoftLoss, factor: f64, arguments: &mut Arguments) -> Outcome {
    compilation(arguments)?;
    let loss = DistillationLoss::new()
        .soft_loss(soft_loss)
        .temperature(arguments.number("temperature", 1.0)?)
        .soft_weight(factor * arguments.number("weight_soft_loss", 0.5)?)
        .hard_weight(arguments.number("weight_hard_loss", 0.5)?)
        .ignore_index(arguments.integer("ignore_index", -100)?);
    let loss = LinearDistillation::new(loss).chunking(Chunking::Rows(4));
    let student = Head::take(["student_input", "student_weight", "student_bias"], arguments)?;
    let teacher = Head::take(["teacher_input", "teacher_weight", "teacher_bias"], arguments)?;
    let target = arguments.tensor("true_labels")?;
    let output = loss.f_forward(student.view(), teacher.view(), Some(&target))?;
    let mut outputs = vec![output.loss];
    if arguments.boolean("return_soft_hard_loss", false)? {
        outputs.extend([output.soft_loss.f_mul_scalar(factor)?, output.hard_loss]);
    }
    // Liger adds up in single precision whatever comes.
    let single = |tensor: &Tensor| tensor.f_to_kind(Kind::Float);
    Ok(tensors(outputs.iter().map(single).collect::<Result<_, _>>()?))
}
