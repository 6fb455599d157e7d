//! Differences that are meant.

use tch::Kind;

use super::call::Call;
use super::families::{Family, family, takes_elements};
use super::truth::Which;
use crate::differences::SUMS_ON_CUDA;

/// A difference that is meant, or none of the crate's doing.
#[derive(Debug)]
pub struct Expected {
    /// Whether it is one: by the call, which result it is of, a number of this crate's, and the one that it is held
    /// against.
    holds: fn(&Call, Which, f64, f64) -> bool,
    /// Why.
    pub reason: &'static str,
}

/// Those between both backends. Where one is between the values, there may be others between the derivatives.
pub const BETWEEN_BACKENDS: &[Expected] = &[
    Expected {
        holds: is_over_another_count,
        reason: "the mean is over the losses that are not 0, and an engine keeps e⁻⁸⁰ where tensor operations make 0 of it",
    },
    Expected {
        holds: |call, _, own, other| {
            let is_fault = takes_elements(call.loss) && other.is_finite();
            call.has_huge_numbers() && !(own.is_finite() && other.is_finite()) && !is_fault
        },
        reason: "of a number that is infinite, or whose square is, a sum of terms is infinite or NaN, whichever comes first",
    },
    Expected {
        holds: |call, _, own, other| {
            call.has_absurd_options() && !takes_elements(call.loss) && !own.is_nan() && !other.is_nan()
        },
        reason: "beside an option of more than 10¹⁵, or less than 10⁻¹⁵, tensor operations keep no digit of the terms",
    },
    Expected {
        holds: |call, _, _, _| (call.infinite || call.largest > 1e4) && family(call.loss) == Some(Family::Images),
        reason: "the variance under a window has few digits left of the numbers beside one of more than 10⁴",
    },
    Expected {
        holds: |call, which, own, other| which != Which::Output && is_sum_beyond(call, own, other),
        reason: SUM,
    },
    Expected {
        holds: |call, _, own, other| {
            let is_infinite = |option: &f64| option.abs() > f64::from(f32::MAX);
            let alike = own.is_nan() == other.is_nan() || !own.is_finite() && !other.is_finite();
            call.has_options_beyond_single() && (alike || call.numbers.iter().any(is_infinite))
        },
        reason: BEYOND,
    },
    Expected {
        holds: |call, which, _, _| which == Which::Second && call.has_huge_numbers() && !takes_elements(call.loss),
        reason: "a second derivative is a difference of squares of numbers of more than 10¹⁵",
    },
    Expected { holds: is_certain_answer, reason: CERTAIN },
    Expected {
        holds: |call, _, _, _| call.has_huge_numbers() && call.takes_embeddings,
        reason: "the distances of an embedding of more than 10¹⁵ have no digit of the others, nor directions beside it",
    },
    Expected { holds: is_mean_over_no_weight, reason: NO_WEIGHT },
    Expected {
        holds: |call, _, own, other| {
            call.flat && call.description.contains("signal_to_noise") && own.is_nan() == other.is_nan()
        },
        reason: "an embedding of equal numbers is all noise: the distance is 1 but for rounding, which is also a margin",
    },
    Expected {
        holds: |call, which, _, _| call.steep && which != Which::Output,
        reason: "the slope of the unit vector of an embedding shorter than 1e-9 multiplies the last digit by 10⁹ and more",
    },
];

/// Those between the engines of CUDA, or the tensor operations there, and the tensor operations of the CPU.
pub const ON_CUDA: &[Expected] = &[
    Expected {
        holds: |call, _, own, other| {
            family(call.loss) == Some(Family::Images) && (own - other).abs() <= 0.01 * other.abs().max(0.01)
        },
        reason: SUMS_ON_CUDA,
    },
    Expected {
        holds: |call, which, _, _| which != Which::Output && call.has_huge_numbers() && takes_elements(call.loss),
        reason: "derivatives are formulas on CUDA, in which numbers of more than 10¹⁵ cancel, or are infinite",
    },
    Expected {
        holds: |call, _, _, _| call.infinite && takes_elements(call.loss),
        reason: "nobody looks for infinite numbers on CUDA, beside which a share of 0 is NaN",
    },
    Expected {
        holds: |call, which, own, other| {
            which == Which::Output && call.takes_embeddings && !own.is_finite() && !other.is_finite()
        },
        reason: "between embeddings that are all infinitely far the loss is no number, infinite or NaN",
    },
];

/// Those between both backends and double precision.
pub const BESIDE_DOUBLE: &[Expected] = &[
    Expected { holds: is_mean_over_no_weight, reason: NO_WEIGHT },
    Expected { holds: is_over_another_count, reason: "the same: a loss of e⁻⁸⁰ is 0 in single precision" },
    Expected {
        holds: |call, _, _, _| call.has_huge_numbers(),
        reason: "what overflows in single precision does not in double precision",
    },
    Expected { holds: |call, _, own, other| is_sum_beyond(call, own, other), reason: SUM },
    Expected { holds: |call, _, _, _| call.has_options_beyond_single(), reason: BEYOND },
    Expected {
        holds: |call, _, _, _| call.description.contains("generalized_dice") && call.smallest < 1e-18,
        reason: "the square of a volume is 0 in single precision",
    },
    Expected {
        holds: |call, _, _, _| call.loss == "kl_div" && call.largest > 88.0,
        reason: "e⁸⁹ is infinite in single precision",
    },
    Expected { holds: is_certain_answer, reason: CERTAIN },
];

const SUM: &str = "what one loss has is out of the range of the kind, and what the mean has is not";

/// Whether a number overflowed as a part of a sum over all elements that does not.
fn is_sum_beyond(call: &Call, own: f64, other: f64) -> bool {
    let count = 16.0 * call.arguments[0].1.numel() as f64;
    let is_double = call.arguments.iter().any(|(_, tensor)| tensor.defined() && tensor.kind() == Kind::Double);
    let most = if is_double { f64::MAX } else { f32::MAX.into() };
    own.is_infinite() && own * other > 0.0 && other.abs() > most / count
}

const NO_WEIGHT: &str =
    "a mean over weights whose sum is 0 is NaN, and so is its gradient, but for the numbers below ε";

fn is_mean_over_no_weight(call: &Call, which: Which, own: f64, _: f64) -> bool {
    call.loss == "msle" && call.description.contains("weight") && which != Which::Output && own.is_nan()
}

const BEYOND: &str = "an option is infinite or 0 in single precision";
const CERTAIN: &str = "log(1 - p) of a certain answer is bounded by the precision of the kind";

/// The odds of an answer whose probability is 1 in the kind.
fn is_certain_answer(call: &Call, _: Which, _: f64, _: f64) -> bool {
    call.loss == "orpo" || call.description.contains("orpo")
}

/// The reason for a difference, where a row has one.
pub fn find(rows: &[Expected], call: &Call, which: Which, own: f64, other: f64) -> Option<&'static str> {
    rows.iter().find(|row| (row.holds)(call, which, own, other)).map(|row| row.reason)
}

/// Whether two means are one sum over two counts, neither of them more than the rows.
fn is_over_another_count(call: &Call, _: Which, own: f64, other: f64) -> bool {
    const MOST: i64 = 12;
    if !["MeanNonZero", "mean_non_zero"].iter().any(|word| call.description.contains(word)) {
        return false;
    }
    let (rows, kind) = (call.arguments[0].1.size().first().copied().unwrap_or(1).min(MOST), call.arguments[0].1.kind());
    let digit = match kind {
        Kind::BFloat16 => 8e-3,
        Kind::Half => 1e-3,
        _ => 1e-5,
    };
    let is_near = |a: f64, b: f64| (a - b).abs() <= digit * b.abs();
    (1..=rows).any(|n| (1..=rows).any(|m| is_near(own * n as f64, other * m as f64)))
}
