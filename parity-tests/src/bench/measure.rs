//! Rounds in which the sides take turns, and what comes out of them.

use anyhow::Result;
use serde::Serialize;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// The loss of inputs that need no gradient
    Forward,
    /// The loss and the gradients
    Backward,
}

impl Pass {
    /// The name in a table.
    pub fn title(self) -> &'static str {
        match self {
            Pass::Forward => "fwd",
            Pass::Backward => "fwd+bwd",
        }
    }

    /// The name in the commands of the Python side.
    pub fn command(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
        }
    }
}

/// Something that can be timed.
pub trait Side {
    /// Seconds of `count` calls, after a pause and `warm` calls that are not timed.
    fn time(&self, pass: Pass, warm: u64, count: u64) -> Result<f64>;
}

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many rounds at most.
    pub rounds: u32,
    /// How long a side calls in each round, where a call is shorter than that.
    pub batch_seconds: f64,
    /// How long the rounds of one pass may take together; there are [`FEWEST_ROUNDS`] whatever they take.
    pub budget_seconds: f64,
}

const FEWEST_ROUNDS: u32 = 3;
/// Warm-up goes on for this long, or for a call where that is longer …
const WARM_SECONDS: f64 = 0.002;
/// … but a call as long as this has warmed up by itself.
const NO_WARM_SECONDS: f64 = 0.5;
/// What a switch from one side to the other costs besides.
const SWITCH_SECONDS: f64 = 0.006;

/// How many calls a side makes in a round.
#[derive(Debug, Clone, Copy)]
struct Batch {
    warm: u64,
    count: u64,
    seconds: f64,
}

/// Measures the sides in turns. The result has for each side the seconds per call of every round.
pub fn measure(sides: &[&dyn Side], pass: Pass, plan: Plan) -> Result<Vec<Vec<f64>>> {
    let batches: Vec<Batch> = sides.iter().map(|side| calibrate(*side, pass, plan)).collect::<Result<_>>()?;
    let round_seconds: f64 = batches.iter().map(|batch| batch.seconds).sum();
    let affordable = (plan.budget_seconds / round_seconds) as u32;
    let rounds = affordable.clamp(FEWEST_ROUNDS.min(plan.rounds), plan.rounds);
    let mut samples = vec![Vec::new(); sides.len()];
    for round in 0..rounds as usize {
        // Each side comes first in turn, so that none always follows the same other.
        for step in 0..sides.len() {
            let at = (round + step) % sides.len();
            let Batch { warm, count, .. } = batches[at];
            samples[at].push(sides[at].time(pass, warm, count)? / count as f64);
        }
    }
    Ok(samples)
}

fn calibrate(side: &dyn Side, pass: Pass, plan: Plan) -> Result<Batch> {
    let mut call = side.time(pass, 1, 1)?;
    let mut count = 1;
    while call * (count as f64) < plan.batch_seconds / 4.0 {
        count *= 4;
        call = side.time(pass, 0, count)? / count as f64;
    }
    let calls = |seconds: f64| ((seconds / call).ceil() as u64).max(1);
    let warm = if call > NO_WARM_SECONDS { 0 } else { calls(WARM_SECONDS) };
    let count = calls(plan.batch_seconds);
    Ok(Batch { warm, count, seconds: call * (warm + count) as f64 + SWITCH_SECONDS })
}

/// The middle of some numbers and their spread.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Quartiles {
    /// A quarter is below.
    pub lower: f64,
    /// Half is below.
    pub median: f64,
    /// Three quarters are below.
    pub upper: f64,
}

impl Quartiles {
    /// The quartiles of at least one number, interpolated.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Quartiles {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let quantile = |fraction: f64| {
            let place = fraction * (values.len() - 1) as f64;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Quartiles { lower: quantile(0.25), median: quantile(0.5), upper: quantile(0.75) }
    }

    /// The quartiles of the ratio round by round.
    pub fn of_ratios(numerators: &[f64], denominators: &[f64]) -> Quartiles {
        Quartiles::of(numerators.iter().zip(denominators).map(|(numerator, denominator)| numerator / denominator))
    }
}

/// The geometric mean, or nothing for nothing.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated() {
        let Quartiles { lower, median, upper } = Quartiles::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((lower, median, upper), (1.75, 2.5, 3.25));
        assert_eq!(Quartiles::of([7.0]).median, 7.0);
    }

    #[test]
    fn ratios_are_those_of_the_rounds() {
        assert_eq!(Quartiles::of_ratios(&[2.0, 40.0, 6.0], &[1.0, 10.0, 2.0]).median, 3.0);
    }

    #[test]
    fn the_geometric_mean_of_reciprocals_is_one() {
        assert!((geometric_mean(&[4.0, 0.25]).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(geometric_mean(&[]), None);
    }
}
