//! Losses of language models: `pytorch/papers/preference.py`.

use tch::Tensor;
use tch_losses::{
    Chunking, CpoLoss, DistillationLoss, DpoLoss, DpoVariant, IpoLoss, KtoLoss, LinearDistillation, LinearHead,
    LinearKto, LinearPreference, OrpoLoss, PairLogProbs, PreferenceLoss, ReferenceModel, SequenceLogProbs, SimpoLoss,
    SoftLoss, TokenReduction,
};

use super::super::Equality::Close;
use super::super::{Adapter, Outcome, Outputs, adapter, with};
use crate::arguments::{Arguments, EvalError};

const POLICY: &[&str] = &["chosen", "rejected"];
const BOTH: &[&str] = &["chosen", "rejected", "reference_chosen", "reference_rejected"];

#[rustfmt::skip]
pub(in super::super) const ADAPTERS: &[Adapter] = &[
    adapter("DpoLoss", &["papers.preference.dpo_loss"], BOTH, Close, |arguments| pairs("dpo", arguments)),
    adapter("IpoLoss", &["papers.preference.ipo_loss"], BOTH, Close, |arguments| pairs("ipo", arguments)),
    adapter("OrpoLoss", &["papers.preference.orpo_loss"], POLICY, Close, |arguments| pairs("orpo", arguments)),
    adapter("SimpoLoss", &["papers.preference.simpo_loss"], POLICY, Close, |arguments| pairs("simpo", arguments)),
    adapter("CpoLoss", &["papers.preference.cpo_loss"], POLICY, Close, |arguments| pairs("cpo", arguments)),
    adapter("KtoLoss", &["papers.preference.kto_loss"], &["policy", "reference", "labels", "kl"], Close, kto),
    adapter("LinearPreference", &["papers.preference.linear_preference"],
        &["input", "weight", "target", "bias", "ref_input", "ref_weight", "ref_bias", "nll_target"],
        Close, linear_preference),
    adapter("LinearKto", &["papers.preference.linear_kto"],
        &["input", "weight", "target", "bias", "labels", "ref_input", "ref_weight", "ref_bias", "kl"],
        Close, linear_kto),
    adapter("DistillationLoss", &["papers.preference.distillation_loss"],
        &["input", "teacher", "target"], Close, distillation),
    adapter("LinearDistillation", &["papers.preference.linear_distillation"],
        &["student_input", "student_weight", "teacher_input", "teacher_weight", "target", "student_bias",
            "teacher_bias"],
        Close, linear_distillation),
];

/// The loss of pairs that has this name, with the options of its formula.
fn criterion(name: &str, arguments: &mut Arguments) -> Result<Box<dyn PreferenceLoss>, EvalError> {
    let beta = arguments.number("beta", 0.1)?;
    let reduction = arguments.reduction()?;
    Ok(match name {
        "dpo" => {
            let variant = arguments.text("variant")?.unwrap_or_else(|| "sigmoid".into());
            let variant = dpo_variant(&variant, arguments.number("tau", 0.05)?)?;
            let smoothing = arguments.number("label_smoothing", 0.0)?;
            Box::new(DpoLoss::new().beta(beta).variant(variant).label_smoothing(smoothing).reduction(reduction))
        }
        "ipo" => Box::new(IpoLoss::new().beta(beta).reduction(reduction)),
        "orpo" => Box::new(OrpoLoss::new().beta(beta).reduction(reduction)),
        "simpo" => {
            let loss = SimpoLoss::new().beta(beta).gamma(arguments.number("gamma", 0.5)?).reduction(reduction);
            Box::new(loss.label_smoothing(arguments.number("label_smoothing", 0.0)?))
        }
        "cpo" => {
            let smoothing = arguments.number("label_smoothing", 0.0)?;
            Box::new(CpoLoss::new().beta(beta).label_smoothing(smoothing).reduction(reduction))
        }
        other => return Err(EvalError::Unsupported(format!("loss {other:?}"))),
    })
}

/// The variant by the name that Liger and the formula share.
pub(in super::super) fn dpo_variant(name: &str, tau: f64) -> Result<DpoVariant, EvalError> {
    Ok(match name {
        "sigmoid" => DpoVariant::Sigmoid,
        "hinge" => DpoVariant::Hinge,
        "exo_pair" => DpoVariant::ExoPair,
        "nca_pair" => DpoVariant::NcaPair,
        "robust" => DpoVariant::Robust,
        "bco_pair" => DpoVariant::BcoPair,
        "sppo_hard" => DpoVariant::SppoHard,
        "apo_zero" => DpoVariant::ApoZero,
        "apo_down" => DpoVariant::ApoDown,
        "discopop" => DpoVariant::DiscoPop(tau),
        other => return Err(EvalError::Rejected(format!("there is no variant {other:?}"))),
    })
}

fn pairs(name: &str, arguments: &mut Arguments) -> Outcome {
    let loss = criterion(name, arguments)?;
    let (chosen, rejected) = (arguments.tensor("chosen")?, arguments.tensor("rejected")?);
    let reference_chosen = arguments.optional_tensor("reference_chosen")?;
    let reference_rejected = arguments.optional_tensor("reference_rejected")?;
    let reference = reference_chosen.as_ref().zip(reference_rejected.as_ref());
    let reference = reference.map(|(chosen, rejected)| PairLogProbs::new(chosen, rejected));
    Ok(loss.f_forward(PairLogProbs::new(&chosen, &rejected), reference)?.into())
}

fn kto_loss(arguments: &mut Arguments) -> Result<KtoLoss, EvalError> {
    Ok(KtoLoss::new()
        .beta(arguments.number("beta", 0.1)?)
        .desirable_weight(arguments.number("desirable_weight", 1.0)?)
        .undesirable_weight(arguments.number("undesirable_weight", 1.0)?)
        .reduction(arguments.reduction()?))
}

fn kto(arguments: &mut Arguments) -> Outcome {
    let loss = kto_loss(arguments)?;
    let (policy, labels) = (arguments.tensor("policy")?, arguments.tensor("labels")?);
    let (reference, kl) = (arguments.optional_tensor("reference")?, arguments.optional_tensor("kl")?);
    Ok(loss.f_forward(&policy, reference.as_ref(), &labels, kl.as_ref())?.into())
}

/// The tensors of a last layer.
pub(in super::super) struct Head {
    input: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Head {
    pub(in super::super) fn take(names: [&str; 3], arguments: &mut Arguments) -> Result<Head, EvalError> {
        Ok(Head {
            input: arguments.tensor(names[0])?,
            weight: arguments.tensor(names[1])?,
            bias: arguments.optional_tensor(names[2])?,
        })
    }

    /// That of a reference model, where there is one.
    pub(in super::super) fn reference(arguments: &mut Arguments) -> Result<Option<Head>, EvalError> {
        let Some(input) = arguments.optional_tensor("ref_input")? else { return Ok(None) };
        let (weight, bias) = (arguments.tensor("ref_weight")?, arguments.optional_tensor("ref_bias")?);
        Ok(Some(Head { input, weight, bias }))
    }

    pub(in super::super) fn view(&self) -> LinearHead<'_> {
        LinearHead { input: &self.input, weight: &self.weight, bias: self.bias.as_ref() }
    }

    pub(in super::super) fn model(&self) -> ReferenceModel<'_> {
        ReferenceModel::Head(self.view())
    }
}

fn log_probs(arguments: &mut Arguments) -> Result<SequenceLogProbs, EvalError> {
    let average = arguments.boolean("average", false)?;
    let log_probs = SequenceLogProbs::new()
        .ignore_index(arguments.integer("ignore_index", -100)?)
        .token_reduction(if average { TokenReduction::Mean } else { TokenReduction::Sum })
        .chunking(Chunking::Rows(arguments.integer("chunk", 4)?));
    Ok(with(log_probs, arguments.number_or_none("softcap", None)?, SequenceLogProbs::soft_cap))
}

fn linear_preference(arguments: &mut Arguments) -> Outcome {
    let name = arguments.text("loss")?.unwrap_or_else(|| "dpo".into());
    let loss = LinearPreference::new(criterion(&name, arguments)?)
        .log_probs(log_probs(arguments)?)
        .alpha(arguments.number("alpha", 0.0)?);
    let policy = Head::take(["input", "weight", "bias"], arguments)?;
    let reference = Head::reference(arguments)?;
    let (target, nll_target) = (arguments.tensor("target")?, arguments.optional_tensor("nll_target")?);
    let model = reference.as_ref().map(Head::model);
    let output = match nll_target {
        Some(nll_target) => loss.f_forward_with_nll_target(policy.view(), &target, &nll_target, model)?,
        None => loss.f_forward(policy.view(), &target, model)?,
    };
    Ok(tensors(vec![
        output.loss,
        output.chosen_log_probs,
        output.rejected_log_probs,
        output.chosen_logits_mean,
        output.rejected_logits_mean,
        output.nll,
        output.chosen_rewards,
        output.rejected_rewards,
    ]))
}

pub(in super::super) fn tensors(tensors: Vec<Tensor>) -> Outputs {
    Outputs { tensors, state: Vec::new() }
}

fn linear_kto(arguments: &mut Arguments) -> Outcome {
    let loss = LinearKto::new(kto_loss(arguments)?).log_probs(log_probs(arguments)?);
    let policy = Head::take(["input", "weight", "bias"], arguments)?;
    let (target, labels) = (arguments.tensor("target")?, arguments.tensor("labels")?);
    let (reference, kl) = (Head::reference(arguments)?, arguments.optional_tensor("kl")?);
    let model = reference.as_ref().map(Head::model);
    let output = loss.f_forward(policy.view(), &target, &labels, model, kl.as_ref())?;
    Ok(tensors(vec![output.loss, output.log_probs, output.logits_means, output.rewards]))
}

fn distillation_loss(arguments: &mut Arguments) -> Result<DistillationLoss, EvalError> {
    let beta = arguments.number("beta", 0.5)?;
    let soft_loss = match arguments.text("divergence")?.as_deref() {
        None | Some("jsd") => SoftLoss::JensenShannon(beta),
        Some("forward") => SoftLoss::ForwardKl,
        Some("reverse") => SoftLoss::ReverseKl,
        Some("cosine") => SoftLoss::Cosine,
        Some(other) => return Err(EvalError::Unsupported(format!("divergence {other:?}"))),
    };
    Ok(DistillationLoss::new()
        .soft_loss(soft_loss)
        .temperature(arguments.number("temperature", 1.0)?)
        .temperature_squared(arguments.boolean("temperature_squared", false)?)
        .soft_weight(arguments.number("soft_weight", 0.5)?)
        .hard_weight(arguments.number("hard_weight", 0.5)?)
        .ignore_index(arguments.integer("ignore_index", -100)?)
        .reduction(arguments.reduction()?))
}

fn distillation(arguments: &mut Arguments) -> Outcome {
    let loss = distillation_loss(arguments)?;
    let (input, teacher) = (arguments.tensor("input")?, arguments.tensor("teacher")?);
    Ok(loss.f_forward(&input, &teacher, arguments.optional_tensor("target")?.as_ref())?.into())
}

fn linear_distillation(arguments: &mut Arguments) -> Outcome {
    let loss = LinearDistillation::new(distillation_loss(arguments)?);
    let loss = loss.chunking(Chunking::Rows(arguments.integer("chunk", 4)?));
    let student = Head::take(["student_input", "student_weight", "student_bias"], arguments)?;
    let teacher = Head::take(["teacher_input", "teacher_weight", "teacher_bias"], arguments)?;
    let target = arguments.optional_tensor("target")?;
    let output = loss.f_forward(student.view(), teacher.view(), target.as_ref())?;
    Ok(tensors(vec![output.loss, output.soft_loss, output.hard_loss]))
}
