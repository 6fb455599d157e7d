//! Losses of language models and of large vocabularies.

use anyhow::Result;
use tch::{Kind, nn};
use tch_losses::{
    AdaptiveLogSoftmaxConfig, AdaptiveLogSoftmaxWithLoss, Chunking, CpoLoss, CtcLoss, DistillationLoss, DpoLoss,
    DpoVariant, IpoLoss, KtoLoss, LinearCrossEntropy, LinearCrossEntropyConfig, LinearCrossEntropyLoss,
    LinearDistillation, LinearHead, LinearKto, LinearPreference, Loss, OrpoLoss, PairLogProbs, PreferenceLoss,
    Reduction, ReferenceModel, SequenceLogProbs, SimpoLoss, SoftLoss, TokenReduction,
};

use super::super::call::Compute;
use super::super::tensors::Values;
use super::super::tensors::shape;
use super::{Maker, one};

pub const LOSSES: &[&str] = &[
    "ctc",
    "linear_cross_entropy",
    "linear_cross_entropy.module",
    "adaptive_log_softmax",
    "dpo",
    "ipo",
    "orpo",
    "simpo",
    "cpo",
    "kto",
    "sequence_log_probs",
    "linear_preference",
    "linear_kto",
    "distillation",
    "linear_distillation",
];

pub fn make(loss: &str, maker: &mut Maker) -> Result<Compute> {
    match loss {
        "ctc" => ctc(maker),
        "linear_cross_entropy" => linear_cross_entropy(maker),
        "linear_cross_entropy.module" => linear_cross_entropy_module(maker),
        "adaptive_log_softmax" => adaptive_log_softmax(maker),
        "kto" => kto(maker),
        "sequence_log_probs" => sequence_log_probs(maker),
        "linear_preference" => linear_preference(maker),
        "linear_kto" => linear_kto(maker),
        "distillation" => distillation(maker),
        "linear_distillation" => linear_distillation(maker),
        _ => preference(loss, maker),
    }
}

fn ctc(maker: &mut Maker) -> Result<Compute> {
    let (steps, classes) = (maker.random.between(1, 8), maker.random.between(2, 5));
    let batch = if maker.random.chance(0.8) { maker.random.between(1, 3) } else { 0 };
    let rows = batch.max(1);
    let mut lengths = |most: i64| -> Vec<i64> { (0..rows).map(|_| maker.random.between(0, most)).collect() };
    let (mut input_lengths, target_lengths) = (lengths(steps), lengths(3));
    if maker.random.chance(0.7) {
        input_lengths.fill(steps);
    }
    if maker.is_absurd() {
        input_lengths[0] = maker.random.absurd_integer();
    }
    maker.say("input_lengths", &input_lengths);
    maker.say("target_lengths", &target_lengths);
    let loss = CtcLoss::new().zero_infinity(maker.flag("zero_infinity")).reduction(maker.reduction());
    let loss = loss.blank(maker.integer("blank", 0, 0, classes - 1));
    let of_input = if batch == 0 { vec![steps, classes] } else { vec![steps, batch, classes] };
    maker.argument("log_probs", &of_input, Values::LogProbabilities(of_input.len() - 1))?;
    let most = target_lengths.iter().copied().max().unwrap_or(0);
    match batch {
        0 => maker.classes("targets", &[most], classes)?,
        _ if maker.random.chance(0.5) => maker.classes("targets", &[batch, most], classes)?,
        _ => maker.classes("targets", &[target_lengths.iter().sum()], classes)?,
    }
    Ok(Box::new(move |tensors, _| one(loss.f_forward(&tensors[0], &tensors[1], &input_lengths, &target_lengths))))
}

/// The cross entropy of a linear layer, as far as it has no tensors.
fn entropy(maker: &mut Maker) -> impl Fn() -> LinearCrossEntropy + use<> {
    let smoothing = maker.number("label_smoothing", 0.0, 0.0, 0.5);
    let z_loss = maker.number("z_loss", 0.0, 0.0, 0.2);
    let soft_cap = if maker.flag("soft_cap") { Some(maker.number("soft_cap", 5.0, 1.0, 30.0)) } else { None };
    let chunking = if maker.random.chance(0.5) {
        let rows = maker.integer("rows", 2, 1, 4);
        let chunking = [Chunking::Rows(rows), Chunking::AspectRatio(1)];
        Some(maker.one_of("chunking", &chunking))
    } else {
        None
    };
    let ignored = if maker.flag("ignore 1") { Some(1) } else { None };
    let (invalid, reduction) = (maker.invalid_values(), maker.reduction());
    move || {
        let mut loss =
            LinearCrossEntropy::new().label_smoothing(smoothing).invalid_values(invalid).reduction(reduction);
        if ignored.is_some() {
            loss = loss.ignore_index(ignored);
        }
        if z_loss != 0.0 {
            loss = loss.z_loss(z_loss);
        }
        if let Some(cap) = soft_cap {
            loss = loss.soft_cap(cap);
        }
        match chunking {
            Some(chunking) => loss.chunking(chunking),
            None => loss,
        }
    }
}

fn linear_cross_entropy(maker: &mut Maker) -> Result<Compute> {
    let (rows, features, classes) =
        (maker.random.between(0, 6), maker.random.between(1, 5), maker.random.between(1, 6));
    let loss = entropy(maker);
    let (single, bias, weight) = (maker.random.chance(0.1), maker.flag("bias"), maker.flag("weight"));
    let of_input = if single { vec![features] } else { vec![rows, features] };
    maker.argument("input", &of_input, Values::Real)?;
    maker.argument("linear_weight", &[classes, features], Values::Real)?;
    match maker.random.chance(0.2) {
        true => {
            let mut of_target = of_input.clone();
            of_target[of_input.len() - 1] = classes;
            maker.argument("target", &of_target, Values::Probabilities(of_target.len() - 1))?;
        }
        false => maker.classes("target", &of_input[..of_input.len() - 1], classes)?,
    }
    if bias {
        maker.argument("linear_bias", &[classes], Values::Real)?;
    }
    if weight {
        maker.argument("weight", &[classes], Values::Positive)?;
    }
    Ok(Box::new(move |tensors, _| {
        let loss = if weight { loss().weight(tensors[tensors.len() - 1].f_detach()?) } else { loss() };
        one(loss.f_forward(&tensors[0], &tensors[1], &tensors[2], bias.then(|| &tensors[3])))
    }))
}

fn linear_cross_entropy_module(maker: &mut Maker) -> Result<Compute> {
    let (rows, features, classes) =
        (maker.random.between(1, 5), maker.random.between(1, 5), maker.random.between(1, 5));
    let out_features = shape(0, 2, maker.random);
    maker.say("out_features", &out_features);
    let (loss, bias, own, seed) = (entropy(maker), maker.flag("bias"), maker.kind, maker.random.between(0, 99));
    maker.argument("input", &[rows, features], Values::Real)?;
    maker.classes("target", &[&[rows], &out_features[..]].concat(), classes)?;
    Ok(Box::new(move |tensors, kind| {
        let config = LinearCrossEntropyConfig::new().out_features(&out_features).bias(bias).cross_entropy(loss());
        let mut store = seeded(seed);
        let module = LinearCrossEntropyLoss::f_new(store.root(), features, classes, config)?;
        in_kind(&mut store, own, kind);
        one(module.f_forward(&tensors[0], &tensors[1]))
    }))
}

/// A store whose variables are the same each time.
fn seeded(seed: i64) -> nn::VarStore {
    tch::manual_seed(seed);
    nn::VarStore::new(tch::Device::Cpu)
}

/// The variables as they are in `own`, in another kind.
fn in_kind(store: &mut nn::VarStore, own: Kind, kind: Kind) {
    store.set_kind(own);
    if kind != own {
        store.set_kind(kind);
    }
}

fn adaptive_log_softmax(maker: &mut Maker) -> Result<Compute> {
    let (rows, features) = (maker.random.between(1, 5), maker.random.between(4, 6));
    let (classes, cutoffs) = (maker.random.between(6, 9), vec![maker.random.between(1, 3), maker.random.between(4, 5)]);
    let (head_bias, own, seed) = (maker.flag("head_bias"), maker.kind, maker.random.between(0, 99));
    let div_value = maker.number("div_value", 2.0, 1.0, 4.0);
    maker.say("classes and cutoffs", (classes, &cutoffs));
    maker.argument("input", &[rows, features], Values::Real)?;
    maker.classes("target", &[rows], classes)?;
    Ok(Box::new(move |tensors, kind| {
        let config = AdaptiveLogSoftmaxConfig::new().div_value(div_value).head_bias(head_bias);
        let mut store = seeded(seed);
        let module = AdaptiveLogSoftmaxWithLoss::f_new(store.root(), features, classes, &cutoffs, config)?;
        in_kind(&mut store, own, kind);
        let output = module.f_forward(&tensors[0], &tensors[1])?;
        Ok(vec![output.output, output.loss])
    }))
}

/// A loss of preferences with its options, and whether it knows a reference model.
fn preference_loss(loss: &str, maker: &mut Maker) -> (Box<dyn PreferenceLoss>, bool) {
    let (beta, reduction) = (maker.number("beta", 0.1, 0.05, 2.0), maker.reduction());
    match loss {
        "ipo" => (Box::new(IpoLoss::new().beta(beta).reduction(reduction)), true),
        "orpo" => (Box::new(OrpoLoss::new().beta(beta).reduction(reduction)), false),
        "simpo" => {
            let (gamma, smoothing) =
                (maker.number("gamma", 0.5, 0.0, 2.0), maker.number("label_smoothing", 0.0, 0.0, 0.4));
            (Box::new(SimpoLoss::new().beta(beta).gamma(gamma).label_smoothing(smoothing).reduction(reduction)), false)
        }
        "cpo" => {
            let smoothing = maker.number("label_smoothing", 0.0, 0.0, 0.4);
            (Box::new(CpoLoss::new().beta(beta).label_smoothing(smoothing).reduction(reduction)), false)
        }
        _ => {
            use DpoVariant::*;
            let variants =
                [Sigmoid, Hinge, ExoPair, NcaPair, Robust, BcoPair, SppoHard, ApoZero, ApoDown, DiscoPop(0.05)];
            let variant = maker.one_of("variant", &variants);
            let smooths = matches!(variant, Sigmoid | Robust | ExoPair) || !maker.intent.sensible;
            let smoothing = if smooths { maker.number("label_smoothing", 0.0, 0.01, 0.4) } else { 0.0 };
            (Box::new(DpoLoss::new().beta(beta).variant(variant).label_smoothing(smoothing).reduction(reduction)), true)
        }
    }
}

fn preference(loss: &str, maker: &mut Maker) -> Result<Compute> {
    let (loss, knows_reference) = preference_loss(loss, maker);
    let with_reference = knows_reference && maker.flag("reference");
    let shape = if maker.random.chance(0.8) { shape(1, 1, maker.random) } else { shape(0, 2, maker.random) };
    for name in
        ["chosen", "rejected", "ref_chosen", "ref_rejected"].into_iter().take(if with_reference { 4 } else { 2 })
    {
        maker.argument(name, &shape, Values::Negative)?;
    }
    Ok(Box::new(move |tensors, _| {
        let reference = with_reference.then(|| PairLogProbs::new(&tensors[2], &tensors[3]));
        one(loss.f_forward(PairLogProbs::new(&tensors[0], &tensors[1]), reference))
    }))
}

fn kto_loss(maker: &mut Maker) -> KtoLoss {
    let loss = KtoLoss::new().beta(maker.number("beta", 0.1, 0.05, 2.0));
    let loss = loss.desirable_weight(maker.number("desirable_weight", 1.0, 0.0, 2.0));
    loss.undesirable_weight(maker.number("undesirable_weight", 1.0, 0.0, 2.0)).reduction(maker.reduction())
}

fn kto(maker: &mut Maker) -> Result<Compute> {
    let loss = kto_loss(maker);
    let (reference, kl) = (maker.flag("reference"), maker.flag("kl"));
    let shape = shape(1, 1, maker.random);
    maker.argument("policy", &shape, Values::Negative)?;
    maker.argument_of("labels", &shape, Kind::Bool, Values::Binary)?;
    if reference {
        maker.argument("reference", &shape, Values::Negative)?;
    }
    if kl {
        maker.argument("kl", &[], Values::Positive)?;
    }
    Ok(Box::new(move |tensors, _| {
        let of_kl = kl.then(|| &tensors[tensors.len() - 1]);
        one(loss.f_forward(&tensors[0], reference.then(|| &tensors[2]), &tensors[1], of_kl))
    }))
}

fn log_probs(maker: &mut Maker) -> SequenceLogProbs {
    let mut loss = SequenceLogProbs::new().invalid_values(maker.invalid_values());
    if maker.random.chance(0.4) {
        loss = loss.token_reduction(maker.one_of("token_reduction", &[TokenReduction::Sum, TokenReduction::Mean]));
    }
    if maker.random.chance(0.4) {
        loss = loss.chunking(Chunking::Rows(maker.integer("rows", 1, 1, 3)));
    }
    if maker.random.chance(0.2) {
        loss = loss.soft_cap(maker.number("soft_cap", 10.0, 1.0, 30.0));
    }
    loss.ignore_index(maker.integer("ignore_index", -100, 0, 1))
}

/// The arguments of a model's last layer and of its targets, for this many sequences.
fn head(maker: &mut Maker, sequences: i64) -> Result<(i64, i64)> {
    let (tokens, features, words) =
        (maker.random.between(1, 4), maker.random.between(1, 4), maker.random.between(2, 5));
    maker.argument("input", &[sequences, tokens, features], Values::Real)?;
    maker.argument("weight", &[words, features], Values::Real)?;
    maker.argument("bias", &[words], Values::Real)?;
    maker.classes("target", &[sequences, tokens], words)?;
    Ok((tokens, words))
}

fn sequence_log_probs(maker: &mut Maker) -> Result<Compute> {
    let loss = log_probs(maker);
    let sequences = maker.random.between(1, 4);
    head(maker, sequences)?;
    Ok(Box::new(move |t, _| one(loss.f_forward(LinearHead::new(&t[0], &t[1]).bias(&t[2]), &t[3]))))
}

fn linear_preference(maker: &mut Maker) -> Result<Compute> {
    let name = maker.one_of("loss", &["dpo", "ipo", "orpo", "simpo", "cpo"]);
    let (loss, knows_reference) = preference_loss(name, maker);
    let mut loss = LinearPreference::new(loss).log_probs(log_probs(maker));
    if maker.random.chance(0.3) {
        loss = loss.alpha(maker.number("alpha", 1.0, 0.0, 2.0));
    }
    let reference = knows_reference && maker.flag("reference");
    let pairs = maker.random.between(1, 3);
    let (tokens, words) = head(maker, 2 * pairs)?;
    let of_chosen = maker.flag("nll_target");
    if of_chosen {
        maker.classes("nll_target", &[pairs, tokens], words)?;
    }
    if reference {
        maker.argument("reference", &[2 * pairs], Values::Negative)?;
    }
    Ok(Box::new(move |t, _| {
        let policy = LinearHead::new(&t[0], &t[1]).bias(&t[2]);
        let reference = reference.then(|| ReferenceModel::LogProbs(&t[t.len() - 1]));
        let output = match of_chosen {
            true => loss.f_forward_with_nll_target(policy, &t[3], &t[4], reference)?,
            false => loss.f_forward(policy, &t[3], reference)?,
        };
        Ok(vec![output.loss, output.chosen_log_probs, output.rejected_log_probs, output.nll])
    }))
}

fn linear_kto(maker: &mut Maker) -> Result<Compute> {
    let loss = LinearKto::new(kto_loss(maker)).log_probs(log_probs(maker));
    let (sequences, reference) = (maker.random.between(1, 4), maker.flag("reference"));
    head(maker, sequences)?;
    maker.argument_of("labels", &[sequences], Kind::Bool, Values::Binary)?;
    Ok(Box::new(move |t, _| {
        let policy = LinearHead::new(&t[0], &t[1]).bias(&t[2]);
        let reference = reference.then_some(ReferenceModel::Head(policy));
        let output = loss.f_forward(policy, &t[3], &t[4], reference, None)?;
        Ok(vec![output.loss, output.log_probs, output.rewards])
    }))
}

fn distillation_loss(labels: bool, reductions: &[Reduction], maker: &mut Maker) -> DistillationLoss {
    let share = maker.random.uniform(0.0, 1.0);
    let soft = maker.one_of(
        "soft_loss",
        &[SoftLoss::ForwardKl, SoftLoss::ReverseKl, SoftLoss::JensenShannon(share), SoftLoss::Cosine],
    );
    let loss = DistillationLoss::new().soft_loss(soft).temperature(maker.number("temperature", 1.0, 0.2, 4.0));
    let loss = loss.temperature_squared(maker.flag("temperature_squared"));
    let loss = loss.soft_weight(maker.number("soft_weight", 0.5, 0.0, 1.0));
    let hard = if labels || !maker.intent.sensible { maker.number("hard_weight", 0.5, 0.0, 1.0) } else { 0.0 };
    let loss = loss.hard_weight(hard);
    let loss = loss.invalid_values(maker.invalid_values()).reduction(maker.one_of("reduction", reductions));
    loss.ignore_index(maker.integer("ignore_index", -100, 0, 1))
}

fn distillation(maker: &mut Maker) -> Result<Compute> {
    let labels = maker.flag("labels");
    let loss = distillation_loss(labels, &[Reduction::None, Reduction::Mean, Reduction::Sum], maker);
    let mut shape = shape(1, 4, maker.random);
    let dim = usize::from(shape.len() > 1);
    shape[dim] = maker.random.between(1, 6);
    let classes = shape[dim];
    maker.argument("input", &shape, Values::Real)?;
    maker.argument("teacher", &shape, Values::Real)?;
    if labels {
        shape.remove(dim);
        maker.classes("target", &shape, classes)?;
    }
    Ok(Box::new(move |t, _| one(loss.f_forward(&t[0], &t[1], labels.then(|| &t[2])))))
}

/// The loss has no result for each token.
fn linear_distillation(maker: &mut Maker) -> Result<Compute> {
    let labels = maker.flag("labels");
    let loss = LinearDistillation::new(distillation_loss(labels, &[Reduction::Mean, Reduction::Sum], maker));
    let loss = loss.chunking(Chunking::Rows(maker.integer("rows", 2, 1, 4)));
    let (rows, classes) = (maker.random.between(1, 5), maker.random.between(2, 5));
    let (features, of_teacher) = (maker.random.between(1, 4), maker.random.between(1, 4));
    maker.argument("input", &[rows, features], Values::Real)?;
    maker.argument("weight", &[classes, features], Values::Real)?;
    maker.argument("teacher_input", &[rows, of_teacher], Values::Real)?;
    maker.argument("teacher_weight", &[classes, of_teacher], Values::Real)?;
    if labels {
        maker.classes("target", &[rows], classes)?;
    }
    Ok(Box::new(move |t, _| {
        let (student, teacher) = (LinearHead::new(&t[0], &t[1]), LinearHead::new(&t[2], &t[3]));
        let output = loss.f_forward(student, teacher, labels.then(|| &t[4]))?;
        Ok(vec![output.loss, output.soft_loss, output.hard_loss])
    }))
}
