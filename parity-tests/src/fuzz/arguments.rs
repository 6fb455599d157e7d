//! The arguments of a described loss.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::data::Data;
use super::families::Family;
use super::options::Facts;
use super::random::Random;
use super::tensors::Intent;
use super::tensors::{self, Values, shape, special};

/// The arguments that a loss is made for.
pub struct Arguments {
    /// The first one.
    pub input: Tensor,
    /// The second one.
    pub target: Tensor,
    /// What the options depend on.
    pub facts: Facts,
    /// Options that depend on the arguments.
    pub fixed: Vec<(&'static str, Option<Data>)>,
}

/// Makes the arguments of a family, of a kind and, where that is another one, with options of a kind.
pub fn make(
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
