//! Losses of `(input, target)` by their description: which arguments each of them takes.

use anyhow::{Result, anyhow};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use tch_losses::{AnyLoss, Loss};

use super::call::{Call, Intent, Order};
use super::data::Data;
use super::options::{self, Facts};
use super::random::Random;
use super::tensors::{self, Special, Values};

/// What a loss takes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Family {
    /// Two tensors of one shape.
    Elements { input: Values, target: Values },
    /// Logits of classes in the second dimension; the target has indices, or where it may the probabilities.
    Classes { probabilities: bool, spatial: bool, input: Values },
    /// Logits and the labels of each row.
    Labels,
    /// Logits of quantiles, one for each of the last dimension.
    Quantiles,
    /// Images split into augmented copies.
    Splits,
    /// Embeddings and their labels.
    Embeddings,
    /// Two tensors `[N, D]`.
    Views,
    /// Regions of classes, of `least` dimensions and more.
    Regions { least: usize },
    /// One channel, or any shape.
    Binary,
    /// Images.
    Images,
    /// Boxes.
    Boxes,
    /// Bins along the last dimension.
    Bins,
    /// A sum of losses of elements or of classes.
    Sum,
}

/// What a loss takes, by its name.
fn family(loss: &str) -> Option<Family> {
    let elements = |input, target| Some(Family::Elements { input, target });
    let classes = |probabilities, spatial, input| Some(Family::Classes { probabilities, spatial, input });
    match loss {
        "huber" | "l1" | "mse" | "smooth_l1" | "cauchy" | "charbonnier" | "geman_mcclure" | "log_cosh" | "mape"
        | "welsch" | "psnr" => elements(Values::Real, Values::Real),
        "msle" => elements(Values::Positive, Values::Positive),
        "poisson_nll" => elements(Values::Positive, Values::Positive),
        "bce" => elements(Values::Unit, Values::Soft),
        "asymmetric_multi_label"
        | "bce_with_logits"
        | "poly_bce_with_logits"
        | "sigmoid_focal"
        | "quality_focal"
        | "varifocal"
        | "multi_label_soft_margin" => elements(Values::Real, Values::Soft),
        "hinge" | "soft_margin" | "hinge_embedding" => elements(Values::Real, Values::Signs),
        "kl_div" => elements(Values::Negative, Values::Unit),
        "quantile" => Some(Family::Quantiles),
        "asymmetric_single_label" | "one_vs_rest_focal" => classes(false, true, Values::Real),
        "categorical_hinge" | "cross_entropy" | "poly_cross_entropy" | "softmax_focal" => {
            classes(true, true, Values::Real)
        }
        "nll" => classes(false, true, Values::LogProbabilities(1)),
        "soft_bce_with_logits" => classes(true, true, Values::Real),
        "multi_margin" => classes(false, false, Values::Real),
        "jsd_cross_entropy" => Some(Family::Splits),
        "multi_label_margin" => Some(Family::Labels),
        "contrastive"
        | "batch_triplet_margin"
        | "lifted_structure"
        | "generalized_lifted_structure"
        | "multi_similarity"
        | "nt_xent"
        | "sup_con"
        | "circle"
        | "n_pairs" => Some(Family::Embeddings),
        "dice" | "dice_cross_entropy" | "dice_focal" | "focal_tversky" | "generalized_dice" | "jaccard" | "tversky" => {
            Some(Family::Regions { least: 2 })
        }
        "lovasz_softmax" => classes(false, true, Values::Probabilities(1)),
        "hausdorff_dt" | "soft_cldice" | "soft_dice_cldice" => Some(Family::Regions { least: 4 }),
        "lovasz_hinge" | "mcc" => Some(Family::Binary),
        "barlow_twins" | "negative_cosine_similarity" | "vicreg" => Some(Family::Views),
        "ssim" | "ms_ssim" | "ms_ssim_l1" => Some(Family::Images),
        "complete_box_iou" | "distance_box_iou" | "generalized_box_iou" => Some(Family::Boxes),
        "distribution_focal" => Some(Family::Bins),
        "sum" => Some(Family::Sum),
        _ => None,
    }
}

/// Whether the first argument is logits of classes.
pub fn takes_logits_of_classes(loss: &str) -> bool {
    matches!(family(loss), Some(Family::Classes { .. } | Family::Splits)) || loss == "distillation"
}

/// Whether each element or pixel has a loss of its own, which the numbers of others do not change.
pub fn is_local(loss: &str) -> bool {
    use Family::{Classes, Elements, Quantiles, Sum};
    matches!(family(loss), Some(Elements { .. } | Classes { .. } | Quantiles | Sum))
        || ["margin_ranking", "gaussian_nll"].contains(&loss)
}

/// Whether the arguments are embeddings.
pub fn takes_embeddings(loss: &str) -> bool {
    matches!(family(loss), Some(Family::Embeddings | Family::Views))
}

/// The names of the losses that can be described.
pub fn losses() -> impl Iterator<Item = &'static str> {
    AnyLoss::names()
}

/// The arguments that a loss is made for.
struct Arguments {
    input: Tensor,
    target: Tensor,
    facts: Facts,
    /// Options that depend on the arguments.
    fixed: Vec<(&'static str, Option<Data>)>,
}

/// A call of a loss.
pub fn call(loss: &'static str, intent: Intent, random: &mut Random) -> Result<Call> {
    let family = family(loss).ok_or_else(|| anyhow!("{loss} has no family in described.rs"))?;
    let kind = tensors::floating(random);
    let of_options = if random.chance(0.9) { kind } else { *random.pick(&tensors::FLOATING) };
    let made = make(loss, family, [kind, of_options], intent, random)?;
    let Arguments { input, target, facts, fixed } = made;
    let description = match family {
        Family::Sum => sum(&facts, random),
        _ => options::describe(loss, &facts, &fixed, random),
    };
    let mut arguments = vec![("input", input), ("target", target)];
    if !intent.sensible {
        disturb(&mut arguments, random);
    }
    // The loss is read in each call, so that one that cannot be read is a rejected one.
    let read = {
        let description = description.clone();
        move |kind| -> Result<AnyLoss, tch_losses::LossError> {
            let read = AnyLoss::deserialize(description.clone());
            read.map_err(|error| rejected(error.to_string()))?.f_to(Device::Cpu, kind)
        }
    };
    let again = read.clone();
    let wants_parts = intent.sensible && random.chance(0.2) && takes_mean(&description);
    Ok(Call {
        loss,
        description: description.to_string(),
        data: Some(description),
        arguments,
        options: of_options,
        compute: Box::new(move |arguments, kind| Ok(vec![read(kind)?.f_forward(&arguments[0], &arguments[1])?])),
        parts: wants_parts.then(|| -> super::call::Parts {
            Box::new(move |arguments, kind| again(kind)?.f_parts(&arguments[0], &arguments[1]))
        }),
        seed: 0,
        same: false,
        extreme: false,
        infinite: false,
        infinite_target: false,
        largest: 0.0,
        steep: false,
        shown: false,
        order: Order::First,
        keep_graph: false,
    })
}

/// Whether the result is a mean: then it is the quotient of the parts.
fn takes_mean(description: &Data) -> bool {
    let Data::Map(fields) = description else { return false };
    let reduction = fields.iter().find(|(name, _)| name == "reduction").map(|(_, value)| value);
    // The default of some is none.
    reduction.is_some_and(|value| *value == Data::text("mean"))
}

/// An error of this crate that says what reading said.
fn rejected(message: String) -> tch_losses::LossError {
    tch_losses::LossError::Term {
        term: "description".into(),
        source: Box::new(tch_losses::LossError::NoMean { loss: message, reason: "it could not be read" }),
    }
}

/// A shape of up to `most` dimensions, small most of the time, now and then with a dimension of 0.
pub fn shape(least: usize, most: usize, random: &mut Random) -> Vec<i64> {
    let dims = least + random.below(most - least + 1);
    (0..dims).map(|_| size(random)).collect()
}

fn size(random: &mut Random) -> i64 {
    match random.below(40) {
        0 => 0,
        1..5 => 1,
        5 => random.between(6, 20),
        _ => random.between(2, 5),
    }
}

/// A tensor of a sensible call has values of the edge now and then.
pub fn special(intent: Intent, random: &mut Random) -> Special {
    match random.below(20) {
        0..3 => Special::Finite,
        3 => Special::Any,
        4..10 if !intent.sensible => Special::Any,
        _ => Special::None,
    }
}

fn make(
    loss: &str,
    family: Family,
    [kind, of_options]: [Kind; 2],
    intent: Intent,
    random: &mut Random,
) -> Result<Arguments> {
    let mut facts = Facts {
        shape: Vec::new(),
        classes: 3,
        class_weights: false,
        kind: of_options,
        often: if random.chance(0.3) { 0.0 } else { 0.3 },
        absurd: if intent.sensible { 0.02 } else { 0.4 },
    };
    let mut fixed = Vec::new();
    let draw = |shape: &[i64], kind, values, random: &mut Random| {
        let special = special(intent, random);
        tensors::tensor(shape, kind, values, special, random)
    };
    let (input, target) = match family {
        Family::Elements { input, target } => {
            let least = if loss == "multi_label_soft_margin" { 2 } else { 0 };
            let shape = shape(least, 5, random);
            let (mut of_input, mut of_target) = (input, target);
            if loss == "poisson_nll" {
                let log_input = random.chance(0.6);
                fixed.push(("log_input", Some(Data::Bool(log_input))));
                of_input = if log_input { Values::Real } else { Values::Positive };
            }
            if loss == "kl_div" {
                let log_target = random.chance(0.4);
                fixed.push(("log_target", Some(Data::Bool(log_target))));
                of_target = if log_target { Values::Negative } else { Values::Unit };
            }
            let of_kind = target_kind(loss, kind, of_target, random);
            let target = draw(&shape, of_kind, of_target, random)?;
            (draw(&shape, kind, of_input, random)?, target)
        }
        Family::Classes { probabilities, spatial, input } => {
            let mut shape = class_shape(spatial, random);
            if loss == "lovasz_softmax" && shape.len() == 1 {
                shape.insert(0, 2);
            }
            let class_dim = usize::from(shape.len() > 1);
            facts.classes = shape[class_dim];
            facts.class_weights = loss != "soft_bce_with_logits";
            let input = match input {
                Values::LogProbabilities(_) => Values::LogProbabilities(class_dim),
                Values::Probabilities(_) if random.chance(0.5) => {
                    fixed.push(("activation", Some(Data::text("none"))));
                    Values::Probabilities(class_dim)
                }
                Values::Probabilities(_) => {
                    fixed.push(("activation", Some(Data::text("softmax"))));
                    Values::Real
                }
                other => other,
            };
            let target = if probabilities && random.chance(0.4) {
                draw(
                    &shape,
                    kind,
                    if loss == "soft_bce_with_logits" { Values::Soft } else { Values::Probabilities(class_dim) },
                    random,
                )?
            } else {
                let mut without = shape.clone();
                without.remove(class_dim);
                draw(&without, tensors::integer(random), Values::Classes(facts.classes), random)?
            };
            (draw(&shape, kind, input, random)?, target)
        }
        Family::Labels => {
            let shape = shape(0, 2, random);
            facts.classes = *shape.last().unwrap_or(&1);
            let of_target = *random.pick(&[Kind::Int64, Kind::Int64, Kind::Int, Kind::Int16]);
            let target = draw(&shape, of_target, Values::Labels(facts.classes), random)?;
            (draw(&shape, kind, Values::Real, random)?, target)
        }
        Family::Quantiles => {
            let shape = shape(1, 4, random);
            let many = random.chance(0.5) && (1..9).contains(shape.last().unwrap_or(&0));
            let quantile = |random: &mut Random| random.uniform(0.01, 0.99);
            let quantiles = match many {
                true => Data::numbers((0..*shape.last().unwrap_or(&0)).map(|_| quantile(random)).collect::<Vec<_>>()),
                false => Data::Number(quantile(random)),
            };
            fixed.push(("quantiles", Some(quantiles)));
            let target = if many { &shape[..shape.len() - 1] } else { &shape[..] };
            facts.shape = target.to_vec();
            let target = draw(target, kind, Values::Real, random)?;
            (draw(&shape, kind, Values::Real, random)?, target)
        }
        Family::Splits => {
            let splits = random.between(2, 3);
            fixed.push(("num_splits", Some(Data::Integer(splits))));
            let mut shape = class_shape(true, random);
            if shape.len() == 1 {
                shape.insert(0, 2);
            }
            facts.classes = shape[1];
            let rows = shape[0];
            shape[0] *= splits;
            let mut of_target = shape.clone();
            of_target.remove(1);
            if random.chance(0.5) {
                of_target[0] = rows;
            }
            let target = match random.chance(0.3) {
                true => draw(&shape, kind, Values::Probabilities(1), random)?,
                false => draw(&of_target, tensors::integer(random), Values::Classes(facts.classes), random)?,
            };
            (draw(&shape, kind, Values::Real, random)?, target)
        }
        Family::Embeddings => {
            let (rows, features) = (random.between(1, 9), if random.chance(0.1) { 1 } else { random.between(2, 6) });
            let labels = *random.pick(&[1, 2, 3, 3, 5]);
            let target = draw(&[rows], tensors::integer(random), Values::Classes(labels), random)?;
            (draw(&[rows, features], kind, Values::Real, random)?, target)
        }
        Family::Views => {
            let mut shape = shape(2, if loss == "barlow_twins" { 2 } else { 3 }, random);
            shape[0] = shape[0].max(2);
            let target = draw(&shape, kind, Values::Real, random)?;
            (draw(&shape, kind, Values::Real, random)?, target)
        }
        Family::Regions { least } => {
            let mut shape = shape(least, 5, random);
            shape[1] = *random.pick(&[1, 2, 3, 3, 4]);
            facts.classes = shape[1];
            facts.class_weights = true;
            if loss == "soft_dice_cldice" && intent.sensible {
                fixed.push(("reduction", Some(Data::text(*random.pick(&["mean", "sum"])))));
            }
            let activation = *random.pick(&["none", "sigmoid", "softmax"]);
            let (mut input, name) = match activation {
                "none" => (Values::Unit, "none"),
                // A softmax over one channel is constant.
                "softmax" if shape[1] > 1 || random.chance(0.05) => (Values::Real, "softmax"),
                _ => (Values::Real, "sigmoid"),
            };
            // A loss of sigmoids takes masks, and so does one channel.
            let mut masks = random.chance(0.5) || shape[1] == 1;
            match loss {
                "dice_cross_entropy" | "dice_focal" => {
                    input = Values::Real;
                    let sigmoid = shape[1] == 1 || random.chance(0.4);
                    masks |= sigmoid;
                    fixed.extend(compound(loss, sigmoid, random));
                    if loss == "dice_focal" && intent.sensible && random.chance(0.8) {
                        fixed.push(("focal_background", None));
                    }
                }
                _ => fixed.push(("activation", Some(Data::text(name)))),
            }
            let target = if masks {
                let of_kind =
                    if random.chance(0.7) { kind } else { *random.pick(&[Kind::Bool, Kind::Uint8, Kind::Int64]) };
                draw(
                    &shape,
                    of_kind,
                    if tensors::is_floating(of_kind) { Values::Soft } else { Values::Binary },
                    random,
                )?
            } else {
                let mut without = shape.clone();
                without.remove(1);
                draw(&without, tensors::integer(random), Values::Classes(facts.classes), random)?
            };
            (draw(&shape, kind, input, random)?, target)
        }
        Family::Binary => {
            let mut shape = shape(1, 4, random);
            let squeezed = shape.len() > 2 && random.chance(0.4);
            let mut of_target = shape.clone();
            if squeezed {
                shape[1] = 1;
                of_target = shape.clone();
                of_target.remove(1);
            }
            let mut input = Values::Real;
            if loss == "mcc" {
                // A softmax needs classes.
                let activation = *random.pick(&["none", "sigmoid"]);
                fixed.push(("activation", Some(Data::text(activation))));
                input = if activation == "none" { Values::Unit } else { Values::Real };
            }
            let of_kind = if random.chance(0.6) { kind } else { *random.pick(&[Kind::Bool, Kind::Uint8, Kind::Int64]) };
            let target = draw(&of_target, of_kind, Values::Binary, random)?;
            (draw(&shape, kind, input, random)?, target)
        }
        Family::Images => {
            let dims = if loss == "ms_ssim_l1" || random.chance(0.7) { 2 } else { random.between(1, 3) as usize };
            let side = |random: &mut Random| random.between(if loss == "ssim" { 4 } else { 8 }, 11);
            let mut shape = vec![random.between(1, 2), random.between(1, 3)];
            shape.extend((0..dims).map(|_| side(random)));
            let window = Data::List(vec![Data::Integer(*random.pick(&[1, 3, 3]))]);
            if loss != "ms_ssim_l1" && intent.sensible {
                fixed.push(("window_size", Some(window)));
            }
            if loss == "ms_ssim" && intent.sensible {
                let scales = random.between(1, 2);
                fixed.push(("weights", Some(Data::numbers((0..scales).map(|_| 0.5).collect::<Vec<_>>()))));
            }
            if loss == "ms_ssim_l1" && intent.sensible {
                fixed.push(("sigmas", Some(Data::numbers([0.5, 1.0]))));
            }
            let target = draw(&shape, kind, Values::Unit, random)?;
            (draw(&shape, kind, Values::Unit, random)?, target)
        }
        Family::Boxes => {
            let mut shape = shape(0, 3, random);
            shape.push(4);
            let of_target = if random.chance(0.85) { kind } else { *random.pick(&tensors::FLOATING) };
            let target = draw(&shape, of_target, Values::Boxes, random)?;
            (draw(&shape, kind, Values::Boxes, random)?, target)
        }
        Family::Bins => {
            let of_target = shape(0, 3, random);
            let mut shape = of_target.clone();
            let bins = random.between(1, 6);
            shape.push(bins + 1);
            let target = draw(&of_target, kind, Values::Bins(bins), random)?;
            (draw(&shape, kind, Values::Real, random)?, target)
        }
        Family::Sum => {
            let shape = shape(1, 4, random);
            let target = draw(&shape, kind, Values::Soft, random)?;
            (draw(&shape, kind, Values::Real, random)?, target)
        }
    };
    if facts.shape.is_empty() {
        facts.shape = input.size();
    }
    Ok(Arguments { input, target, facts, fixed })
}

/// A loss of elements takes targets of other kinds now and then; where they are cut to integers they are whole.
fn target_kind(loss: &str, kind: Kind, values: Values, random: &mut Random) -> Kind {
    let whole = matches!(values, Values::Binary | Values::Signs | Values::Soft);
    if loss == "bce" || loss == "kl_div" || random.chance(0.85) {
        return kind;
    }
    match random.below(3) {
        0 => tensors::floating(random),
        1 if whole && values != Values::Signs => Kind::Bool,
        _ => tensors::integer(random),
    }
}

/// Options of an overlap with another loss that go with one another.
fn compound(loss: &str, sigmoid: bool, random: &mut Random) -> Vec<(&'static str, Option<Data>)> {
    let part = |name: &str, options: &[(&str, &str)]| {
        let mut fields = vec![("loss".to_owned(), Data::text(name))];
        fields.extend(options.iter().map(|(name, value)| ((*name).to_owned(), Data::text(*value))));
        Some(Data::Map(fields))
    };
    const OF_SOFTMAX: [&str; 2] = ["softmax_focal", "one_vs_rest_focal"];
    if !sigmoid && random.chance(0.3) {
        return Vec::new();
    }
    let overlap = *random.pick(&["dice", "jaccard", "tversky", "generalized_dice", "focal_tversky"]);
    let activation = if sigmoid { "sigmoid" } else { "softmax" };
    let mut options = vec![("overlap", part(overlap, &[("activation", activation)]))];
    options.push(match (loss, sigmoid) {
        ("dice_cross_entropy", true) => ("cross_entropy", part("bce_with_logits", &[])),
        ("dice_cross_entropy", false) => ("cross_entropy", part("cross_entropy", &[])),
        (_, true) => ("focal", part("sigmoid_focal", &[])),
        (_, false) => ("focal", part(OF_SOFTMAX[random.below(OF_SOFTMAX.len())], &[])),
    });
    options
}

/// `[C]`, `[N, C]` or `[N, C, d₁, …]`.
fn class_shape(spatial: bool, random: &mut Random) -> Vec<i64> {
    let mut shape = if spatial { shape(1, 5, random) } else { shape(1, 2, random) };
    let class_dim = usize::from(shape.len() > 1);
    shape[class_dim] = match random.below(12) {
        0 => 1,
        1 => random.between(10, 40),
        _ => random.between(2, 5),
    };
    shape
}

/// A description of a weighted sum of losses of elements.
fn sum(facts: &Facts, random: &mut Random) -> Data {
    const TERMS: [&str; 6] = ["mse", "l1", "bce_with_logits", "sigmoid_focal", "huber", "smooth_l1"];
    let mut names = TERMS;
    random.shuffle(&mut names);
    let count = random.between(1, 3) as usize;
    let terms = names.into_iter().take(count).map(|term| {
        let Data::Map(mut fields) = options::describe(term, facts, &[("reduction", None)], random) else {
            return Data::text(term);
        };
        if random.chance(0.7) {
            let factor = if random.chance(facts.absurd) { random.absurd() } else { random.uniform(-1.0, 2.0) };
            fields.push(("factor".into(), Data::Number(factor)));
        }
        Data::Map(fields)
    });
    Data::Map(vec![("loss".into(), Data::text("sum")), ("terms".into(), Data::List(terms.collect()))])
}

/// Makes one or two of the arguments something else.
pub fn disturb(arguments: &mut [(&'static str, Tensor)], random: &mut Random) {
    for _ in 0..=random.below(2) {
        let position = random.below(arguments.len());
        let tensor = &mut arguments[position].1;
        // Not every operation takes every kind; then it stays as it is.
        let other = disturbed(tensor, random).unwrap_or_else(|_| tensor.shallow_clone());
        *tensor = other;
    }
}

fn disturbed(tensor: &Tensor, random: &mut Random) -> Result<Tensor> {
    Ok({
        match random.below(9) {
            0 => tensor.f_to_kind(tensors::any_kind(random))?,
            1 => tensor.f_unsqueeze(random.between(-1, 0))?,
            2 if tensor.dim() > 0 && tensor.size()[0] > 0 => tensor.f_select(0, 0)?,
            3 if tensor.dim() > 0 => {
                let dim = random.between(0, tensor.dim() as i64 - 1);
                tensor.f_narrow(dim, 0, random.between(0, tensor.size()[dim as usize]))?
            }
            4 if tensor.dim() > 1 => tensor.f_transpose(0, -1)?,
            5 => tensors::tensor(&shape(0, 5, random), tensors::any_kind(random), Values::Real, Special::Any, random)?,
            6 if random.chance(0.1) => odd_layout(tensor, random),
            7 => tensors::tensor(&tensor.size(), tensors::any_kind(random), Values::Real, Special::Any, random)?,
            _ => tensor.shallow_clone(),
        }
    })
}

/// A tensor that is not plain: none at all, sparse, or of another layout.
fn odd_layout(tensor: &Tensor, random: &mut Random) -> Tensor {
    let sparse = |tensor: &Tensor| tensor.f_to_sparse(None::<tch::Layout>, None::<i64>, None::<i64>);
    let odd = match random.below(6) {
        0 => Ok(Tensor::new()),
        1 => sparse(tensor),
        2 => tensor.f_to_sparse_csr(None),
        3 => tensor.f_to_mkldnn(None),
        4 => Tensor::f_internal_efficientzerotensor(tensor.size(), (tensor.kind(), Device::Cpu)),
        _ => tensor.f_internal_neg_view(),
    };
    // Not every tensor can be had so.
    odd.unwrap_or_else(|_| tensor.shallow_clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_has_a_family() {
        let missing: Vec<_> = losses().filter(|loss| family(loss).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
