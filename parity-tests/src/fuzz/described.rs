//! Losses of `(input, target)` by their description.

use anyhow::{Result, anyhow};
use serde::Deserialize;
use tch::{Device, Tensor};
use tch_losses::{AnyLoss, Loss};

use super::arguments::{Arguments, make};
use super::call::{Call, Parts};
use super::data::Data;
use super::disturb::disturb;
use super::families::{Family, family};
use super::options::{self, Facts};
use super::random::Random;
use super::tensors;
use super::tensors::Intent;

/// A call of a loss.
pub fn call(loss: &'static str, intent: Intent, random: &mut Random) -> Result<Call> {
    let family = family(loss).ok_or_else(|| anyhow!("{loss} has no family in families.rs"))?;
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
    let compute = move |arguments: &[Tensor], kind| Ok(vec![read(kind)?.f_forward(&arguments[0], &arguments[1])?]);
    let parts = move |arguments: &[Tensor], kind| again(kind)?.f_parts(&arguments[0], &arguments[1]);
    let mut call = Call::new(loss, description.to_string(), arguments, of_options, Box::new(compute));
    call.parts = wants_parts.then(|| -> Parts { Box::new(parts) });
    call.data = Some(description);
    Ok(call)
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
