//! Options of described losses: their types, which the crate's own messages tell, and random values of them.

use std::collections::BTreeMap;

use once_cell::sync::Lazy;
use serde::Deserialize;
use tch::Kind;
use tch_losses::AnyLoss;

use super::data::Data;
use super::random::Random;
use crate::numbers::rounded;

/// The type of an option.
#[derive(Debug, Clone, PartialEq)]
enum Type {
    Number,
    Integer,
    IntegerOrNone,
    Bool,
    Words(Vec<String>),
    Integers,
    Numbers,
    NumberOrNumbers,
    Alpha,
    LovaszClasses,
    Distance,
    EmbeddingReduction,
    WordsOrNumber(Vec<String>),
    Tensor,
    Loss(Vec<String>),
    Unknown,
}

/// The options of all losses, by the name of the loss and that of the option.
static TYPES: Lazy<BTreeMap<(&'static str, &'static str), Type>> = Lazy::new(|| {
    let mut types = BTreeMap::new();
    for loss in AnyLoss::names() {
        for option in AnyLoss::options(loss).unwrap_or_default() {
            types.insert((loss, *option), learn(loss, option));
        }
    }
    types
});

/// The type of an option, from what the crate says of a value that is none.
fn learn(loss: &str, option: &str) -> Type {
    let nonsense = Data::Map(vec![("?".into(), Data::Integer(0))]);
    let description = Data::Map(vec![("loss".into(), Data::text(loss)), (option.into(), nonsense)]);
    let Err(error) = AnyLoss::deserialize(description) else { return Type::Unknown };
    let message = error.to_string();
    let Some((_, expected)) = message.rsplit_once("expected ") else { return Type::Unknown };
    let words = || expected.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    match expected {
        "a number" => Type::Number,
        "a list of integers" => Type::Integers,
        "a list of numbers" => Type::Numbers,
        "true or false" => Type::Bool,
        _ if expected.starts_with("an integer or") => Type::IntegerOrNone,
        _ if expected.starts_with("an integer") => Type::Integer,
        _ if expected.starts_with("a number or a list") => Type::NumberOrNumbers,
        _ if expected.starts_with("a number, a list of one for each class") => Type::Alpha,
        _ if expected.starts_with("a list of numbers, or such") => Type::Tensor,
        _ if expected.contains("signal_to_noise") => Type::Distance,
        _ if expected.contains("low and high of a threshold") => Type::EmbeddingReduction,
        _ if expected.starts_with('"') && expected.ends_with(" or a number") => Type::WordsOrNumber(words()),
        _ if expected.contains("\"present\"") => Type::LovaszClasses,
        _ if expected.starts_with("one of \"") => Type::Words(words()),
        _ if expected.starts_with("one of ") => {
            let names = expected["one of ".len()..].split(", ");
            Type::Loss(names.map(|name| name.split_whitespace().next().unwrap_or_default().to_owned()).collect())
        }
        _ => Type::Unknown,
    }
}

/// What the arguments of a call are, as far as options depend on it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The shape of the input.
    pub shape: Vec<i64>,
    /// How many classes there are.
    pub classes: i64,
    /// Whether weights are one for each class; otherwise they are one for each element.
    pub class_weights: bool,
    /// The kind that tensors among the options will have: their numbers are some of that kind.
    pub kind: Kind,
    /// How often an option is set.
    pub often: f64,
    /// How often an option that is set is absurd.
    pub absurd: f64,
}

/// A description of the loss with random options. An option of `fixed` has the value given there, or is not set.
pub fn describe(loss: &str, facts: &Facts, fixed: &[(&str, Option<Data>)], random: &mut Random) -> Data {
    let mut fields = vec![("loss".to_owned(), Data::text(loss))];
    for option in AnyLoss::options(loss).unwrap_or_default() {
        if let Some((_, value)) = fixed.iter().find(|(name, _)| name == option) {
            fields.extend(value.clone().map(|value| ((*option).to_owned(), value)));
            continue;
        }
        // The reduction is what most code depends on.
        let often = if *option == "reduction" { 0.7 } else { facts.often };
        if !random.chance(often) {
            continue;
        }
        let of = TYPES.get(&(loss, *option)).unwrap_or(&Type::Unknown);
        fields.push(((*option).to_owned(), value(loss, option, of, facts, random)));
    }
    Data::Map(fields)
}

fn value(loss: &str, option: &str, of: &Type, facts: &Facts, random: &mut Random) -> Data {
    let absurd = random.chance(facts.absurd);
    match of {
        Type::Bool => Data::Bool(random.chance(0.5)),
        Type::Number if absurd => Data::Number(random.absurd()),
        Type::Number => Data::Number(number(loss, option, random)),
        Type::Integer | Type::IntegerOrNone if absurd => Data::Integer(integer_without_end(option, random)),
        Type::IntegerOrNone if random.chance(0.2) => Data::text("none"),
        Type::Integer | Type::IntegerOrNone => Data::Integer(integer(option, facts, random)),
        Type::Words(words) => Data::text(random.pick(words).clone()),
        Type::Integers if absurd => {
            let length = random.below(4);
            Data::List((0..length).map(|_| Data::Integer(random.absurd_integer())).collect())
        }
        Type::Integers => integers(option, facts, random),
        Type::Numbers | Type::NumberOrNumbers if absurd => {
            let length = random.below(4);
            Data::numbers((0..length).map(|_| random.absurd()).collect::<Vec<_>>())
        }
        Type::NumberOrNumbers if random.chance(0.6) => Data::Number(number(loss, option, random)),
        Type::Numbers | Type::NumberOrNumbers => {
            let length = if option == "quantiles" { *facts.shape.last().unwrap_or(&1) } else { random.between(1, 2) };
            Data::numbers((0..length.clamp(0, 9)).map(|_| number(loss, option, random)).collect::<Vec<_>>())
        }
        Type::Alpha => match random.below(4) {
            0 => Data::text("none"),
            1 => class_numbers(facts, absurd, random),
            _ => Data::Number(if absurd { random.absurd() } else { random.uniform(0.0, 1.0) }),
        },
        Type::LovaszClasses => match random.below(3) {
            0 => Data::text("present"),
            1 => Data::text("all"),
            _ => integers("classes", facts, random),
        },
        Type::Distance => distance(absurd, random),
        Type::EmbeddingReduction => embedding_reduction(absurd, random),
        Type::WordsOrNumber(words) if random.chance(0.7) => Data::text(random.pick(words).clone()),
        Type::WordsOrNumber(_) => Data::Number(if absurd { random.absurd() } else { random.uniform(0.5, 20.0) }),
        Type::Tensor => tensor(option, facts, absurd, random),
        Type::Loss(names) => {
            let name = random.pick(names).clone();
            let inner = if absurd { facts.clone() } else { Facts { often: 0.2, ..facts.clone() } };
            let unset = [("activation", None), ("reduction", None), ("ignore_index", None)];
            describe(&name, &inner, if random.chance(0.9) { &unset } else { &[] }, random)
        }
        Type::Unknown => Data::Null,
    }
}

/// A number that the option is made for.
fn number(loss: &str, option: &str, random: &mut Random) -> f64 {
    let (least, most) = match (loss, option) {
        (_, "label_smoothing" | "clip" | "quantiles" | "target_threshold" | "reduced_threshold") => (0.0, 0.6),
        (_, "eps" | "smooth" | "smooth_nr" | "smooth_dr" | "alpha_eps" | "minimum") => (1e-6, 0.5),
        ("hausdorff_dt", "alpha") => (0.5, 2.5),
        ("ms_ssim_l1", "alpha") | ("soft_dice_cldice", "alpha") => (0.0, 1.0),
        (_, "k1" | "k2" | "temperature") => (0.01, 0.9),
        (_, "weights") => (0.1, 0.6),
        (_, "sigma" | "sigmas") => (0.3, 1.2),
        (_, "gamma" | "gamma_neg" | "gamma_pos") => (0.0, 4.0),
        ("multi_similarity", "alpha" | "beta") => (0.5, 20.0),
        _ => (0.05, 2.0),
    };
    match random.below(6) {
        0 => random.uniform(least, most).round().clamp(least, most),
        1 => least,
        2 => (random.uniform(least, most) * 2.0).round() / 2.0,
        _ => random.uniform(least, most),
    }
}

fn integer(option: &str, facts: &Facts, random: &mut Random) -> i64 {
    match option {
        "p" => random.between(1, 2),
        "num_splits" => random.between(2, 3),
        "iterations" => random.between(1, 3),
        "dim" => random.between(-(facts.shape.len() as i64), facts.shape.len() as i64 - 1),
        "ignore_index" => *random.pick(&[0, 1, -100, 255, -1, facts.classes - 1]),
        _ => random.between(0, 3),
    }
}

/// An integer of any size, but for an option that says how often something is done: that would take as long.
fn integer_without_end(option: &str, random: &mut Random) -> i64 {
    let integer = random.absurd_integer();
    if option == "iterations" { integer.min(20) } else { integer }
}

fn integers(option: &str, facts: &Facts, random: &mut Random) -> Data {
    let integers: Vec<i64> = match option {
        "window_size" => {
            let length = if random.chance(0.7) { 1 } else { facts.shape.len() as i64 - 2 };
            (0..length.max(1)).map(|_| *random.pick(&[1, 2, 3, 3, 3])).collect()
        }
        _ => {
            let mut all: Vec<i64> = (0..facts.classes).collect();
            random.shuffle(&mut all);
            let length = random.between(1, facts.classes.max(1)) as usize;
            all.into_iter().take(length).collect()
        }
    };
    Data::List(integers.into_iter().map(Data::Integer).collect())
}

fn class_numbers(facts: &Facts, absurd: bool, random: &mut Random) -> Data {
    let length = if absurd { random.between(0, 4) } else { facts.classes };
    Data::numbers((0..length).map(|_| weight(absurd, facts, random)).collect::<Vec<_>>())
}

fn weight(absurd: bool, facts: &Facts, random: &mut Random) -> f64 {
    let number = match random.below(8) {
        0 if absurd => random.absurd(),
        1 => 0.0,
        2 => 1.0,
        _ => random.uniform(0.1, 2.0),
    };
    rounded(number, facts.kind)
}

/// A weight or a mask.
fn tensor(option: &str, facts: &Facts, absurd: bool, random: &mut Random) -> Data {
    let mut shape = if facts.class_weights { vec![facts.classes] } else { facts.shape.clone() };
    if !facts.class_weights && ["pos_weight", "mask"].contains(&option) {
        for size in &mut shape {
            if random.chance(0.2) {
                *size = 1;
            }
        }
    }
    if absurd {
        shape = (0..random.below(4)).map(|_| random.between(0, 3)).collect();
    }
    // A list in a list is a tensor of two dimensions, and there is none of no dimension.
    if shape.is_empty() || shape.iter().product::<i64>() > 4000 {
        shape = vec![1];
    }
    let booleans = option == "mask";
    nested(&shape, &mut || {
        if booleans { Data::Bool(random.chance(0.7)) } else { Data::Number(weight(absurd, facts, random)) }
    })
}

fn nested(shape: &[i64], number: &mut dyn FnMut() -> Data) -> Data {
    match shape {
        [] => number(),
        [size, rest @ ..] => Data::List((0..*size).map(|_| nested(rest, number)).collect()),
    }
}

/// A measure of distance between embeddings.
fn distance(absurd: bool, random: &mut Random) -> Data {
    let measure = *random.pick(&["lp", "cosine", "dot_product", "signal_to_noise"]);
    let mut fields = vec![("measure".to_owned(), Data::text(measure))];
    if random.chance(0.4) {
        fields.push(("normalize_embeddings".into(), Data::Bool(random.chance(0.5))));
    }
    for name in ["p", "power"] {
        if random.chance(0.3) {
            let number = if absurd { random.absurd() } else { *random.pick(&[1.0, 2.0, 3.0, 1.5]) };
            fields.push((name.into(), Data::Number(number)));
        }
    }
    Data::Map(fields)
}

fn embedding_reduction(absurd: bool, random: &mut Random) -> Data {
    match random.below(7) {
        0 => Data::text("none"),
        1 => Data::text("mean"),
        2 => Data::text("mean_non_zero"),
        3 => Data::text("sum"),
        4 => Data::text("per_anchor"),
        5 => {
            let of_anchors = *random.pick(&["none", "mean", "mean_non_zero", "sum"]);
            Data::Map(vec![("per_anchor".into(), Data::text(of_anchors))])
        }
        _ => {
            let mut bound = |name: &str| {
                let number = if absurd { random.absurd() } else { random.uniform(0.0, 1.0) };
                random.chance(0.6).then(|| (name.to_owned(), Data::Number(number)))
            };
            Data::Map([bound("low"), bound("high")].into_iter().flatten().collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_a_type_that_is_known() {
        let unknown = TYPES.iter().filter(|((loss, _), of)| **of == Type::Unknown && *loss != "sum");
        assert_eq!(unknown.count(), 0, "learn() does not understand what the crate says of an option");
    }
}
