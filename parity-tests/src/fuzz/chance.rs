//! Makes a call by chance: of which loss, with which options and arguments.

use anyhow::Result;
use tch::Tensor;

use super::call::{Call, Order};
use super::random::Random;
use super::tensors::{Intent, is_floating, values};
use super::{described, direct, families};

/// The names of all losses.
pub fn losses() -> Vec<&'static str> {
    families::losses().chain(direct::losses()).collect()
}

/// The loss of the call of a seed: the first thing that it decides.
pub fn loss_of(seed: u64, losses: &[&'static str]) -> &'static str {
    losses[Random::new(seed).below(losses.len())]
}

/// The call of a seed.
pub fn call(seed: u64, losses: &[&'static str]) -> Result<Call> {
    let mut random = Random::new(seed);
    let loss = *random.pick(losses);
    let intent = Intent { sensible: random.chance(0.75) };
    let mut call = match direct::call(loss, intent, &mut random) {
        Some(call) => call?,
        None => described::call(loss, intent, &mut random)?,
    };
    for (position, (_, tensor)) in call.arguments.iter_mut().enumerate() {
        let often = if position == 0 { 0.9 } else { 0.35 };
        if tensor.defined() && is_floating(tensor.kind()) && random.chance(often) {
            *tensor = tensor.f_detach()?.f_set_requires_grad(true)?;
        }
    }
    // Not every layout can be joined with another; then both stay as they are.
    let _ = alias(&mut call, &mut random);
    call.takes_embeddings = families::takes_embeddings(loss) || direct::takes_embeddings(loss);
    look_at_numbers(&mut call);
    call.seed = random.seed();
    call.keep_graph = random.chance(0.5);
    call.order = *random.pick(&[Order::First, Order::First, Order::CreateGraph, Order::Second, Order::Second]);
    Ok(call)
}

/// Which numbers there are among the arguments and the options.
fn look_at_numbers(call: &mut Call) {
    const SHORT: f64 = 1e-9;
    let words = call.description.split(|letter: char| !letter.is_ascii_alphanumeric() && !".-".contains(letter));
    call.numbers = words.filter_map(|word| word.parse::<f64>().ok()).collect();
    call.largest = call.largest_option();
    let of_embeddings = call.takes_embeddings;
    for (_, tensor) in call.arguments.iter().filter(|(_, tensor)| tensor.defined()) {
        let numbers = values(tensor).unwrap_or_default();
        let features = tensor.size().last().map_or(1, |size| (*size).max(1) as usize);
        let is_short = |row: &[f64]| row.iter().any(|x| *x != 0.0) && row.iter().all(|x| x.abs() < SHORT);
        call.steep |= of_embeddings && is_floating(tensor.kind()) && numbers.chunks(features).any(is_short);
        let is_flat = |row: &[f64]| row.len() > 1 && row[0] != 0.0 && row.iter().all(|x| *x == row[0]);
        call.flat |= of_embeddings && is_floating(tensor.kind()) && numbers.chunks(features).any(is_flat);
        for number in numbers {
            call.infinite |= !number.is_finite();
            call.smallest = if number == 0.0 { call.smallest } else { call.smallest.min(number.abs()) };
            call.largest = if number.is_finite() { call.largest.max(number.abs()) } else { call.largest };
        }
    }
}

/// Sometimes two arguments are one tensor, or share memory.
fn alias(call: &mut Call, random: &mut Random) -> Result<()> {
    if call.arguments.len() < 2 || !random.chance(0.03) {
        return Ok(());
    }
    let [(_, first), (_, second), ..] = &mut call.arguments[..] else { return Ok(()) };
    let same = first.defined() && second.defined() && first.size() == second.size() && first.kind() == second.kind();
    if !same {
        return Ok(());
    }
    if random.chance(0.5) || first.dim() == 0 {
        *second = first.shallow_clone();
        call.same = true;
        return Ok(());
    }
    let leaf = first.requires_grad();
    let both = Tensor::f_cat(&[&first.f_detach()?, &second.f_detach()?.f_narrow(0, 0, first.size()[0].min(1))?], 0)?;
    let rows = first.size()[0];
    *first = both.f_narrow(0, 0, rows)?.f_set_requires_grad(leaf)?;
    *second = both.f_narrow(0, first.size()[0].min(1), rows)?;
    Ok(())
}
