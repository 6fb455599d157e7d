//! The losses of `torch.nn` and `torch.nn.functional`.

use std::collections::BTreeMap;

use tch::{Device, Tensor, nn};
use tch_losses::{
    AdaptiveLogSoftmaxConfig, AdaptiveLogSoftmaxWithLoss, BceLoss, BceWithLogitsLoss, Chunking, CosineEmbeddingLoss,
    CrossEntropyLoss, CtcLoss, GaussianNllLoss, HingeEmbeddingLoss, HuberLoss, KlDivLoss, KlDivReduction, L1Loss,
    LinearCrossEntropy, LinearCrossEntropyConfig, LinearCrossEntropyLoss, LossError, MarginRankingLoss, MseLoss,
    MultiLabelMarginLoss, MultiLabelSoftMarginLoss, MultiMarginLoss, NllLoss, PoissonNllLoss, SmoothL1Loss,
    SoftMarginLoss, TripletMarginLoss, TripletMarginWithDistanceLoss,
};

use super::Equality::{Bitwise, BitwiseComposite, Close};
use super::{Adapter, Outcome, Outputs, adapter, pair, with};
use crate::arguments::{Argument, Arguments, EvalError};
use crate::case::Value;

#[rustfmt::skip]
pub(super) const ADAPTERS: &[Adapter] = &[
    adapter("L1Loss", &["torch.nn.L1Loss", "torch.nn.functional.l1_loss"],
        &["input", "target", "size_average", "reduce", "reduction", "weight"], BitwiseComposite, l1),
    adapter("MSELoss", &["torch.nn.MSELoss", "torch.nn.functional.mse_loss"],
        &["input", "target", "size_average", "reduce", "reduction", "weight"], BitwiseComposite, mse),
    adapter("SmoothL1Loss", &["torch.nn.SmoothL1Loss", "torch.nn.functional.smooth_l1_loss"],
        &["input", "target", "size_average", "reduce", "reduction", "beta"], BitwiseComposite, smooth_l1),
    adapter("HuberLoss", &["torch.nn.HuberLoss", "torch.nn.functional.huber_loss"],
        &["input", "target", "reduction", "delta", "weight"], BitwiseComposite, huber),
    adapter("PoissonNLLLoss", &["torch.nn.PoissonNLLLoss", "torch.nn.functional.poisson_nll_loss"],
        &["input", "target", "log_input", "full", "size_average", "eps", "reduce", "reduction"], BitwiseComposite, poisson_nll),
    adapter("GaussianNLLLoss", &["torch.nn.GaussianNLLLoss", "torch.nn.functional.gaussian_nll_loss"],
        &["input", "target", "var", "full", "eps", "reduction"], BitwiseComposite, gaussian_nll),
    adapter("CrossEntropyLoss", &["torch.nn.CrossEntropyLoss", "torch.nn.functional.cross_entropy"],
        &["input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing"],
        BitwiseComposite, cross_entropy),
    adapter("NLLLoss", &["torch.nn.NLLLoss", "torch.nn.NLLLoss2d", "torch.nn.functional.nll_loss"],
        &["input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction"], BitwiseComposite, nll),
    adapter("BCELoss", &["torch.nn.BCELoss", "torch.nn.functional.binary_cross_entropy"],
        &["input", "target", "weight", "size_average", "reduce", "reduction"], BitwiseComposite, bce),
    adapter("BCEWithLogitsLoss",
        &["torch.nn.BCEWithLogitsLoss", "torch.nn.functional.binary_cross_entropy_with_logits"],
        &["input", "target", "weight", "size_average", "reduce", "reduction", "pos_weight"], BitwiseComposite, bce_with_logits),
    adapter("SoftMarginLoss", &["torch.nn.SoftMarginLoss", "torch.nn.functional.soft_margin_loss"],
        &["input", "target", "size_average", "reduce", "reduction"], Close, soft_margin),
    adapter("MultiMarginLoss", &["torch.nn.MultiMarginLoss", "torch.nn.functional.multi_margin_loss"],
        &["input", "target", "p", "margin", "weight", "size_average", "reduce", "reduction"], Close, multi_margin),
    adapter("MultiLabelMarginLoss", &["torch.nn.MultiLabelMarginLoss", "torch.nn.functional.multilabel_margin_loss"],
        &["input", "target", "size_average", "reduce", "reduction"], BitwiseComposite, multi_label_margin),
    adapter("MultiLabelSoftMarginLoss",
        &["torch.nn.MultiLabelSoftMarginLoss", "torch.nn.functional.multilabel_soft_margin_loss"],
        &["input", "target", "weight", "size_average", "reduce", "reduction"], BitwiseComposite, multi_label_soft_margin),
    adapter("KLDivLoss", &["torch.nn.KLDivLoss", "torch.nn.functional.kl_div"],
        &["input", "target", "size_average", "reduce", "reduction", "log_target"], BitwiseComposite, kl_div),
    adapter("HingeEmbeddingLoss", &["torch.nn.HingeEmbeddingLoss", "torch.nn.functional.hinge_embedding_loss"],
        &["input", "target", "margin", "size_average", "reduce", "reduction"], BitwiseComposite, hinge_embedding),
    adapter("CosineEmbeddingLoss", &["torch.nn.CosineEmbeddingLoss", "torch.nn.functional.cosine_embedding_loss"],
        &["input1", "input2", "target", "margin", "size_average", "reduce", "reduction"], BitwiseComposite, cosine_embedding),
    adapter("MarginRankingLoss", &["torch.nn.MarginRankingLoss", "torch.nn.functional.margin_ranking_loss"],
        &["input1", "input2", "target", "margin", "size_average", "reduce", "reduction"], BitwiseComposite, margin_ranking),
    adapter("TripletMarginLoss", &["torch.nn.TripletMarginLoss", "torch.nn.functional.triplet_margin_loss"],
        &["anchor", "positive", "negative", "margin", "p", "eps", "swap", "size_average", "reduce", "reduction"],
        BitwiseComposite, triplet_margin),
    adapter("TripletMarginWithDistanceLoss",
        &["torch.nn.TripletMarginWithDistanceLoss", "torch.nn.functional.triplet_margin_with_distance_loss"],
        &["anchor", "positive", "negative"], BitwiseComposite, triplet_margin_with_distance),
    adapter("CTCLoss", &["torch.nn.CTCLoss", "torch.nn.functional.ctc_loss"],
        &["log_probs", "targets", "input_lengths", "target_lengths", "blank", "reduction", "zero_infinity"],
        Bitwise, ctc),
    adapter("LinearCrossEntropyLoss", &["torch.nn.functional.linear_cross_entropy"],
        &["input", "linear_weight", "target"], Close, linear_cross_entropy),
    adapter("LinearCrossEntropyLoss", &["torch.nn.LinearCrossEntropyLoss"],
        &["input", "target"], Close, linear_cross_entropy_module),
    adapter("AdaptiveLogSoftmaxWithLoss", &["torch.nn.AdaptiveLogSoftmaxWithLoss"],
        &["input", "target"], Bitwise, adaptive_log_softmax),
];

// PyTorch broadcasts wherever this crate asks for `.broadcast(true)`.

fn l1(arguments: &mut Arguments) -> Outcome {
    let loss = L1Loss::new().broadcast(true).reduction(arguments.reduction()?);
    pair(&with(loss, arguments.optional_tensor("weight")?, L1Loss::weight), arguments)
}

fn mse(arguments: &mut Arguments) -> Outcome {
    let loss = MseLoss::new().broadcast(true).reduction(arguments.reduction()?);
    pair(&with(loss, arguments.optional_tensor("weight")?, MseLoss::weight), arguments)
}

fn smooth_l1(arguments: &mut Arguments) -> Outcome {
    let loss = SmoothL1Loss::new().broadcast(true).beta(arguments.number("beta", 1.0)?);
    pair(&loss.reduction(arguments.reduction()?), arguments)
}

fn huber(arguments: &mut Arguments) -> Outcome {
    let loss = HuberLoss::new().broadcast(true).delta(arguments.number("delta", 1.0)?);
    let loss = loss.reduction(arguments.reduction()?);
    pair(&with(loss, arguments.optional_tensor("weight")?, HuberLoss::weight), arguments)
}

fn poisson_nll(arguments: &mut Arguments) -> Outcome {
    let loss = PoissonNllLoss::new()
        .broadcast(true)
        .log_input(arguments.boolean("log_input", true)?)
        .full(arguments.boolean("full", false)?)
        .eps(arguments.number("eps", 1e-8)?)
        .reduction(arguments.reduction()?);
    pair(&loss, arguments)
}

fn gaussian_nll(arguments: &mut Arguments) -> Outcome {
    let loss = GaussianNllLoss::new()
        .broadcast(true)
        .full(arguments.boolean("full", false)?)
        .eps(arguments.number("eps", 1e-6)?)
        .reduction(arguments.reduction()?);
    let (input, target) = (arguments.tensor("input")?, arguments.tensor("target")?);
    match arguments.take("var") {
        Some(Argument::Tensor(var)) => Ok(loss.f_forward(&input, &target, &var)?.into()),
        Some(Argument::Plain(Value::Float(var))) => Ok(loss.f_forward(&input, &target, var)?.into()),
        other => Err(EvalError::Rejected(format!("var is {other:?}, neither a tensor nor a float"))),
    }
}

fn cross_entropy(arguments: &mut Arguments) -> Outcome {
    let loss = CrossEntropyLoss::new()
        .ignore_index(arguments.integer("ignore_index", -100)?)
        .label_smoothing(arguments.number("label_smoothing", 0.0)?)
        .reduction(arguments.reduction()?);
    pair(&with(loss, arguments.optional_tensor("weight")?, CrossEntropyLoss::weight), arguments)
}

fn nll(arguments: &mut Arguments) -> Outcome {
    let loss = NllLoss::new().ignore_index(arguments.integer("ignore_index", -100)?).reduction(arguments.reduction()?);
    pair(&with(loss, arguments.optional_tensor("weight")?, NllLoss::weight), arguments)
}

fn bce(arguments: &mut Arguments) -> Outcome {
    let loss = BceLoss::new().reduction(arguments.reduction()?);
    pair(&with(loss, arguments.optional_tensor("weight")?, BceLoss::weight), arguments)
}

fn bce_with_logits(arguments: &mut Arguments) -> Outcome {
    let loss = BceWithLogitsLoss::new().reduction(arguments.reduction()?);
    let loss = with(loss, arguments.optional_tensor("weight")?, BceWithLogitsLoss::weight);
    pair(&with(loss, arguments.optional_tensor("pos_weight")?, BceWithLogitsLoss::pos_weight), arguments)
}

fn soft_margin(arguments: &mut Arguments) -> Outcome {
    pair(&SoftMarginLoss::new().broadcast(true).reduction(arguments.reduction()?), arguments)
}

fn multi_margin(arguments: &mut Arguments) -> Outcome {
    let loss = MultiMarginLoss::new()
        .p(arguments.integer("p", 1)?)
        .margin(arguments.number("margin", 1.0)?)
        .reduction(arguments.reduction()?);
    pair(&with(loss, arguments.optional_tensor("weight")?, MultiMarginLoss::weight), arguments)
}

fn multi_label_margin(arguments: &mut Arguments) -> Outcome {
    pair(&MultiLabelMarginLoss::new().reduction(arguments.reduction()?), arguments)
}

fn multi_label_soft_margin(arguments: &mut Arguments) -> Outcome {
    let loss = MultiLabelSoftMarginLoss::new().broadcast(true).reduction(arguments.reduction()?);
    pair(&with(loss, arguments.optional_tensor("weight")?, MultiLabelSoftMarginLoss::weight), arguments)
}

fn kl_div(arguments: &mut Arguments) -> Outcome {
    let reduction = match arguments.reduction_name()?.as_str() {
        "none" => KlDivReduction::None,
        "mean" => KlDivReduction::Mean,
        "batchmean" => KlDivReduction::BatchMean,
        "sum" => KlDivReduction::Sum,
        other => return Err(EvalError::Rejected(format!("there is no reduction {other:?}"))),
    };
    let log_target = arguments.boolean("log_target", false)?;
    pair(&KlDivLoss::new().broadcast(true).log_target(log_target).reduction(reduction), arguments)
}

fn hinge_embedding(arguments: &mut Arguments) -> Outcome {
    let loss = HingeEmbeddingLoss::new().broadcast(true).margin(arguments.number("margin", 1.0)?);
    pair(&loss.reduction(arguments.reduction()?), arguments)
}

fn cosine_embedding(arguments: &mut Arguments) -> Outcome {
    let loss = CosineEmbeddingLoss::new().broadcast(true).margin(arguments.number("margin", 0.0)?);
    let loss = loss.reduction(arguments.reduction()?);
    let (input1, input2) = (arguments.tensor("input1")?, arguments.tensor("input2")?);
    Ok(loss.f_forward(&input1, &input2, &arguments.tensor("target")?)?.into())
}

fn margin_ranking(arguments: &mut Arguments) -> Outcome {
    let loss = MarginRankingLoss::new().broadcast(true).margin(arguments.number("margin", 0.0)?);
    let loss = loss.reduction(arguments.reduction()?);
    let (input1, input2) = (arguments.tensor("input1")?, arguments.tensor("input2")?);
    Ok(loss.f_forward(&input1, &input2, &arguments.tensor("target")?)?.into())
}

/// The anchor, the positive and the negative of a triplet.
fn triplet(arguments: &mut Arguments) -> Result<[Tensor; 3], EvalError> {
    Ok([arguments.tensor("anchor")?, arguments.tensor("positive")?, arguments.tensor("negative")?])
}

fn triplet_margin(arguments: &mut Arguments) -> Outcome {
    let loss = TripletMarginLoss::new()
        .broadcast(true)
        .margin(arguments.number("margin", 1.0)?)
        .p(arguments.number("p", 2.0)?)
        .eps(arguments.number("eps", 1e-6)?)
        .swap(arguments.boolean("swap", false)?)
        .reduction(arguments.reduction()?);
    let [anchor, positive, negative] = triplet(arguments)?;
    Ok(loss.f_forward(&anchor, &positive, &negative)?.into())
}

fn triplet_margin_with_distance(arguments: &mut Arguments) -> Outcome {
    let loss = TripletMarginWithDistanceLoss::new()
        .margin(arguments.number("margin", 1.0)?)
        .swap(arguments.boolean("swap", false)?)
        .reduction(arguments.reduction()?);
    let loss = match arguments.take("distance_function") {
        None => loss,
        Some(argument) => loss.distance_function(distance(argument)?),
    };
    let [anchor, positive, negative] = triplet(arguments)?;
    Ok(loss.f_forward(&anchor, &positive, &negative)?.into())
}

type Distance = Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor, LossError> + Send>;

/// The distance functions of torch that the cases use.
fn distance(argument: Argument) -> Result<Distance, EvalError> {
    let Argument::Plain(Value::Object(path, options)) = argument else {
        return Err(EvalError::Unsupported(format!("distance_function {argument:?}")));
    };
    let mut options = plain(options.unwrap_or_default());
    match path.as_str() {
        "torch.nn.PairwiseDistance" | "torch.nn.functional.pairwise_distance" | "torch.pairwise_distance" => {
            let (p, eps) = (options.number("p", 2.0)?, options.number("eps", 1e-6)?);
            let keepdim = options.boolean("keepdim", false)?;
            options.finish()?;
            Ok(Box::new(move |a, b| Ok(Tensor::f_pairwise_distance(a, b, p, eps, keepdim)?)))
        }
        "torch.nn.CosineSimilarity" | "torch.nn.functional.cosine_similarity" | "torch.cosine_similarity" => {
            let (dim, eps) = (options.integer("dim", 1)?, options.number("eps", 1e-8)?);
            options.finish()?;
            Ok(Box::new(move |a, b| Ok(Tensor::f_cosine_similarity(a, b, dim, eps)?)))
        }
        other => Err(EvalError::Unsupported(format!("distance_function {other}"))),
    }
}

/// Options of an object as arguments.
fn plain(options: BTreeMap<String, Value>) -> Arguments {
    let mut arguments = Arguments::default();
    for (name, value) in options {
        arguments.insert(&name, Argument::Plain(value));
    }
    arguments
}

fn ctc(arguments: &mut Arguments) -> Outcome {
    let loss = CtcLoss::new()
        .blank(arguments.integer("blank", 0)?)
        .zero_infinity(arguments.boolean("zero_infinity", false)?)
        .reduction(arguments.reduction()?);
    let (log_probs, targets) = (arguments.tensor("log_probs")?, arguments.tensor("targets")?);
    let (input_lengths, target_lengths) = (arguments.integers("input_lengths")?, arguments.integers("target_lengths")?);
    Ok(loss.f_forward(&log_probs, &targets, &input_lengths, &target_lengths)?.into())
}

/// A loss with parameters, made by `build` and loaded with the state of the case.
pub(super) fn module<M>(
    arguments: &mut Arguments,
    build: impl FnOnce(&nn::Path) -> Result<M, LossError>,
) -> Result<(M, Vec<(String, Tensor)>), EvalError> {
    // The parameters take the device of the call and the kind of the state.
    arguments.take("device");
    arguments.take("dtype");
    let store = nn::VarStore::new(arguments.device.unwrap_or(Device::Cpu));
    let module = build(&store.root())?;
    let mut parameters = Vec::new();
    let state = std::mem::take(&mut arguments.state);
    for (name, tensor) in &state {
        let Some(mut parameter) = store.variables().remove(name) else {
            return Err(EvalError::Rejected(format!("the loss has no parameter {name}")));
        };
        if parameter.size() != tensor.size() {
            let (actual, expected) = (tensor.size(), parameter.size());
            return Err(EvalError::Rejected(format!("{name} has shape {actual:?}, expected {expected:?}")));
        }
        // In place, so that the module sees it.
        parameter.f_set_data(tensor)?;
        parameters.push((name.clone(), parameter));
    }
    if !state.is_empty() && state.len() != store.len() {
        return Err(EvalError::Rejected(format!("{} parameters, expected {}", state.len(), store.len())));
    }
    Ok((module, parameters))
}

fn adaptive_log_softmax(arguments: &mut Arguments) -> Outcome {
    let config = AdaptiveLogSoftmaxConfig::new()
        .div_value(arguments.number("div_value", 4.0)?)
        .head_bias(arguments.boolean("head_bias", false)?);
    let (features, classes) = (arguments.integer("in_features", 0)?, arguments.integer("n_classes", 0)?);
    let cutoffs = arguments.integers("cutoffs")?;
    let build = |path: &nn::Path| AdaptiveLogSoftmaxWithLoss::f_new(path, features, classes, &cutoffs, config);
    let (loss, state) = module(arguments, build)?;
    let result = loss.f_forward(&arguments.tensor("input")?, &arguments.tensor("target")?)?;
    Ok(Outputs { tensors: vec![result.output, result.loss], state })
}

/// The options that the function and the module share.
fn linear_cross_entropy_options(arguments: &mut Arguments) -> Result<LinearCrossEntropy, EvalError> {
    let loss = LinearCrossEntropy::new()
        .ignore_index(arguments.optional_integer("ignore_index")?)
        .label_smoothing(arguments.number("label_smoothing", 0.0)?)
        .reduction(arguments.reduction()?);
    let loss = with(loss, arguments.optional_tensor("weight")?, LinearCrossEntropy::weight);
    match arguments.take("options") {
        None => Ok(loss),
        Some(Argument::Plain(Value::Object(path, options))) if path == "torch.nn.LinearCrossEntropyOptions" => {
            let mut options = plain(options.unwrap_or_default());
            let acc_dtype = options.kind("acc_dtype")?;
            Ok(with(loss.chunking(chunking(options)?), acc_dtype, LinearCrossEntropy::acc_dtype))
        }
        Some(other) => Err(EvalError::Unsupported(format!("options {other:?}"))),
    }
}

const ACCUMULATION_POLICIES: [&str; 4] = ["auto", "accurate", "balanced", "compact"];

/// The policies of accumulation and graph retention change nothing here: all of a chunk is computed in one dtype, and
/// the graph is that of plain operations.
fn chunking(mut options: Arguments) -> Result<Chunking, EvalError> {
    if let Some(policy) = options.text("acc_policy")?.filter(|policy| !ACCUMULATION_POLICIES.contains(&&**policy)) {
        return Err(EvalError::Rejected(format!("there is no acc_policy {policy:?}")));
    }
    options.boolean("allow_retain_graph", false)?;
    let rows = options.optional_integer("batch_chunk_size")?;
    let method = options.text("chunking_method")?;
    options.finish()?;
    match (rows, method.as_deref()) {
        (Some(rows), _) => Ok(Chunking::Rows(rows)),
        // PyTorch's choice, except for half precision on the CPU.
        (None, None | Some("auto")) => Ok(Chunking::AspectRatio(2)),
        (None, Some("aspect_ratio")) => Ok(Chunking::AspectRatio(1)),
        (None, Some(method)) => match method.strip_prefix("aspect_ratio:").map(str::parse) {
            Some(Ok(factor)) => Ok(Chunking::AspectRatio(factor)),
            _ => Err(EvalError::Rejected(format!("there is no chunking method {method:?}"))),
        },
    }
}

fn linear_cross_entropy(arguments: &mut Arguments) -> Outcome {
    let loss = linear_cross_entropy_options(arguments)?;
    let (input, linear_weight) = (arguments.tensor("input")?, arguments.tensor("linear_weight")?);
    let linear_bias = arguments.optional_tensor("linear_bias")?;
    Ok(loss.f_forward(&input, &linear_weight, &arguments.tensor("target")?, linear_bias.as_ref())?.into())
}

fn linear_cross_entropy_module(arguments: &mut Arguments) -> Outcome {
    let out_features = if arguments.contains("out_features") { arguments.integers("out_features")? } else { vec![] };
    let config = LinearCrossEntropyConfig::new()
        .out_features(&out_features)
        .bias(arguments.boolean("bias", false)?)
        .cross_entropy(linear_cross_entropy_options(arguments)?);
    let (features, classes) = (arguments.integer("in_features", 0)?, arguments.integer("num_classes", 0)?);
    let build = |path: &nn::Path| LinearCrossEntropyLoss::f_new(path, features, classes, config);
    let (loss, state) = module(arguments, build)?;
    Ok(Outputs { state, ..pair(&loss, arguments)? })
}
